//! `midtread compare`.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use midtread::{
    Error,
    compare::{Advice, Comparison, TensorRow},
    manifest::Recorded,
    onnx,
    quant::calibrate::Samples,
};

use crate::{
    args::{DataArgs, JudgeArgs},
    context::{Context, Outcome, check_output, write},
    judging::{self, Timing},
    pages, samples,
    table::{percent, shorten, table},
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread compare model.onnx model.int8.onnx --data pictures/ --samples 64
  midtread compare model.onnx model.int8.onnx --data pictures/ --rows 0 --json > tensors.json
  midtread compare model.onnx model.int8.onnx --data pictures/ --labels labels.csv --report compare.html
  midtread compare model.onnx model.int8.onnx --data pictures/ --min-output-sqnr 20")]
pub(crate) struct Compare {
    /// The model before quantization
    float: PathBuf,
    /// The model after it, by this or any other tool
    quantized: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Rows of the table, 0 for all; JSON always has all
    #[arg(long, default_value_t = 20, value_name = "N")]
    rows: usize,
    /// Exit with status 1 if an output has less signal to noise than this, in dB
    #[arg(long, value_name = "DB")]
    min_output_sqnr: Option<f64>,
    /// Write all of it as one HTML page that needs no network
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    judge: JudgeArgs,
}

impl Compare {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        if let Some(path) = &self.report {
            check_output(path)?;
        } else if let Some(option) = self.judge.used() {
            bail!("{option} is for the page: add --report FILE (or see `midtread evaluate`)");
        }
        let float = onnx::load(&self.float).map_err(Error::from)?;
        let quantized = onnx::load(&self.quantized).map_err(Error::from)?;
        let data = samples::open(&self.data, &float, context)?;
        let recorded = Recorded::new(&data, usize::MAX);
        let result = pages::compared(&float, &quantized, &recorded, context)?;
        if let Some(path) = &self.report {
            let files = [
                (self.float.as_path(), samples::model_bytes(&self.float, &float)?),
                (self.quantized.as_path(), samples::model_bytes(&self.quantized, &quantized)?),
            ];
            let models = [&float, &quantized];
            let mut page = pages::of_two(files, &float, &recorded, &result, context)?;
            let (judge, data) = (&self.judge, Some(&recorded as &dyn Samples));
            let found = judging::judge_by_labels(
                &mut page.variants,
                models,
                judge,
                &self.data,
                data,
                context,
            )?;
            page.difference = found.map(serde_json::to_value).transpose()?;
            let inputs = judging::first_inputs(&recorded)?;
            Timing::BRIEF.time(&mut page.variants, models, &inputs, context)?;
            context.check_interrupted()?;
            write(path, page.to_html().as_bytes())?;
        }
        if context.json {
            context.print_json(&serde_json::to_value(&result)?);
        } else {
            self.show(&result, context);
        }
        // A NaN passes no check.
        let (worst, least) = (result.worst_output_db(), self.min_output_sqnr);
        if let Some(least) = least.filter(|&least| worst.is_nan() || worst < least) {
            context.warn(format!("an output has {worst:.1} dB, less than {least} dB"));
            return Ok(Outcome::CheckFailed);
        }
        Ok(Outcome::Done)
    }

    fn show(&self, result: &Comparison, context: &Context) {
        let prepared = if result.prepared { ", the float model prepared" } else { "" };
        context.say(format!(
            "{} tensors in both models, {} only in the float one; {} samples{prepared}\n",
            result.tensors.len(),
            result.unmatched.len(),
            result.samples
        ));
        let n = if self.rows == 0 { result.tensors.len() } else { self.rows };
        let heading =
            ["tensor, worst first", "own dB", "dB", "max error", "cosine", "clipped", "codes"];
        let mut rows = vec![heading.map(String::from).to_vec()];
        rows.extend(result.tensors.iter().take(n).map(row));
        context.say(table(&rows));
        context.say("own dB: the tensor's own rounding and weights, on float inputs; dB: all error so far\n");
        let heading = ["output", "dB", "max error", "cosine", "KL", "agreement", "in top 5"];
        let mut rows = vec![heading.map(String::from).to_vec()];
        let share = |x: Option<f64>| x.map_or_else(|| "–".into(), percent);
        rows.extend(result.outputs.iter().map(|o| {
            vec![
                shorten(&o.name, NAME),
                db(Some(o.sqnr_db)),
                format!("{:.2e}", o.max_error),
                format!("{:.5}", o.cosine),
                o.kl.map_or_else(|| "–".into(), |kl| format!("{kl:.2e}")),
                share(o.agreement),
                share(o.top5_agreement),
            ]
        }));
        context.say(table(&rows));
        let advised: Vec<&TensorRow> =
            result.tensors.iter().take(n.max(20)).filter(|t| !t.advice.is_empty()).collect();
        for tensor in advised.iter().take(MAX_ADVICE) {
            context.say(format!("{} ({}):", tensor.name, tensor.op_type));
            tensor.advice.iter().for_each(|advice| say_advice(advice, context));
        }
        if MAX_ADVICE < advised.len() {
            context.say("(more advice with --json)");
        }
        for remark in &result.remarks {
            context.say("the whole model:");
            say_advice(remark, context);
        }
    }
}

/// Characters of a name in the table: the whole then fits 80 columns.
const NAME: usize = 28;

/// Tensors that are explained in text.
const MAX_ADVICE: usize = 8;

fn say_advice(advice: &Advice, context: &Context) {
    context.say(format!("  {}", advice.text));
    if let Some(option) = &advice.option {
        context.say(format!("  -> {option}"));
    }
}

fn row(tensor: &TensorRow) -> Vec<String> {
    vec![
        shorten(&tensor.name, NAME),
        db(tensor.own_sqnr_db),
        db(Some(tensor.sqnr_db)),
        format!("{:.2e}", tensor.max_error),
        format!("{:.5}", tensor.cosine),
        tensor.clipped.map_or_else(|| "–".into(), percent),
        tensor.codes_used.map_or_else(|| "–".into(), percent),
    ]
}

/// A dash for a tensor without error, and for one to which both models do the same.
fn db(x: Option<f64>) -> String {
    match x {
        Some(x) if x.is_nan() => "– NaN".to_owned(),
        Some(x) if x.is_finite() => format!("{x:.1}"),
        Some(x) if x < 0.0 => "-inf".to_owned(),
        _ => "–".to_owned(),
    }
}
