//! `midtread trim`.

use std::{path::PathBuf, sync::Mutex};

use clap::Args;
use indicatif::ProgressBar;
use midtread::{
    Error,
    onnx::{self, SaveOptions},
    quant::calibrate::Samples,
    trim::{
        self, Mode, Options, Outcome as Found, Rounding, Trial, Trimmed, formats::Numbers,
        search::Group,
    },
};
use serde_json::{Value, json};

use crate::{
    args::{CalibratorArgs, DataArgs, PrepareArgs},
    context::{Context, Outcome, check_output, default_output, write},
    samples,
    table::{percent, size, table},
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread trim model.onnx --data images/ --labels labels.csv --mode fixed-point --error-margin 1% -o trimmed.onnx
  midtread trim model.onnx --data images/ --mode minifloat --error-margin 0.5% --samples 256
  midtread trim model.onnx --data images/ --labels labels.csv --calibrator mse --save-plan trimmed.plan")]
pub(crate) struct Trim {
    /// The float model
    model: PathBuf,
    /// Where the trimmed model goes [default: MODEL with .trimmed.onnx]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    /// The right answers: CSV (file,label), JSON ({\"file\": label}) or an IDX file [default: the float model's answers]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// To what kind of numbers: fixed-point, minifloat, power-of-two (weights; activations in fixed point)
    #[arg(long, default_value = "fixed-point", value_name = "MODE")]
    mode: Mode,
    /// The percentage of right answers that may be lost: 1%
    #[arg(long, default_value = "1%", value_name = "PERCENT", value_parser = super::evaluate::parse_percent)]
    error_margin: f64,
    /// How values become numbers: nearest, stochastic
    #[arg(long, default_value = "nearest", value_name = "ROUNDING")]
    rounding: Rounding,
    /// Seed of stochastic rounding
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Score the network at most so often
    #[arg(long, default_value_t = 60, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_trials: u32,
    #[command(flatten)]
    calibrator: CalibratorArgs,
    #[command(flatten)]
    prepare: PrepareArgs,
    /// Keep the plan in this file (fixed-point)
    #[arg(long, value_name = "FILE")]
    save_plan: Option<PathBuf>,
}

impl Trim {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        let start = std::time::Instant::now();
        let output = self.output.clone().unwrap_or_else(|| default_output(&self.model, "trimmed"));
        [Some(&output), self.save_plan.as_ref()]
            .into_iter()
            .flatten()
            .try_for_each(|p| check_output(p))?;
        if self.save_plan.is_some() && self.mode != Mode::FixedPoint {
            anyhow::bail!("--save-plan: a plan has integers, and {} has none", self.mode);
        }
        let model = onnx::load(&self.model).map_err(Error::from)?;
        let bytes_in = samples::model_bytes(&self.model, &model)?;
        let data = samples::open(&self.data, &model, context)?;
        let labels = self.labels.as_ref().map(|path| samples::labels(path, &data)).transpose()?;
        let progress = context.stages();
        let bar: Mutex<Option<ProgressBar>> = Mutex::new(None);
        let n_samples = data.names().len();
        let options = Options {
            prepare: self.prepare.options(None)?,
            mode: self.mode,
            rounding: self.rounding,
            seed: self.seed,
            margin: self.error_margin,
            calibrator: self.calibrator.calibrator("min_max"),
            max_trials: self.max_trials as usize,
            labels: labels.as_deref(),
            n_threads: context.n_threads,
            max_bytes: context.max_bytes,
            progress: &progress,
            trials: &|trying| {
                let mut bar = bar.lock().expect("no panic while the lock is held");
                let bar = bar.get_or_insert_with(|| context.bar("trials", n_samples));
                // Over all trials that are expected, so that the time left is that of the whole search.
                bar.set_length((trying.n_trials * trying.samples.1) as u64);
                bar.set_position(((trying.trial - 1) * trying.samples.1 + trying.samples.0) as u64);
                if trying.samples.0 == 0 {
                    bar.set_message(trying.what.to_owned());
                }
            },
            interrupted: &context.interrupted,
        };
        let found = trim::trim(model, &data, &options);
        if let Some(bar) = bar.lock().expect("no panic while the lock is held").take() {
            bar.finish_and_clear();
        }
        drop(progress);
        let found = found?;
        context.check_interrupted()?;
        if let (Some(path), Some(plan)) = (&self.save_plan, &found.plan) {
            write(path, plan.to_text().as_bytes())?;
        }
        let saved =
            onnx::save(&found.model, &output, &SaveOptions::default()).map_err(Error::from)?;
        let seconds = start.elapsed().as_secs_f64();
        if context.json {
            let mut document = document(&found, self.mode);
            document["output"] = json!(output.display().to_string());
            document["bytes_in"] = json!(bytes_in);
            document["bytes_out"] = json!(saved.n_bytes);
            document["samples"] = json!(n_samples);
            document["seconds"] = json!(seconds);
            context.print_json(&document);
        }
        context.say(text(&found, self.mode).trim_end());
        context.say(format!(
            "\n{} -> {}: {} -> {}, {} trials on {n_samples} samples, {seconds:.1} s",
            self.model.display(),
            output.display(),
            size(bytes_in),
            size(saved.n_bytes),
            found.trials.len(),
        ));
        if self.mode != Mode::FixedPoint {
            context.say("The file's weights are trimmed; ONNX has no operator that would trim its activations so.");
        }
        Ok(if found.keeps_margin { Outcome::Done } else { Outcome::CheckFailed })
    }
}

fn text(found: &Found, mode: Mode) -> String {
    let mut rows = vec![
        ["tensor", "group", "bits", "integer", "fraction", "largest"].map(str::to_owned).to_vec(),
    ];
    for Trimmed { tensor, group, max_abs, numbers, .. } in &found.tensors {
        let (integer, fraction) = match (numbers, numbers.lengths()) {
            (_, Some((integer, fraction))) => (integer.to_string(), fraction.to_string()),
            (Numbers::Float(float), None) => {
                (format!("e{}", float.exponent_bits), format!("m{}", float.mantissa_bits))
            }
            (_, None) => (String::new(), String::new()),
        };
        rows.push(vec![
            tensor.clone(),
            group.name().to_owned(),
            numbers.n_bits().to_string(),
            integer,
            fraction,
            format!("{max_abs:.4}"),
        ]);
    }
    let mut text = table(&rows);
    text.push('\n');
    for group in Group::ALL {
        if let Some(n_bits) = found.widths.get(group) {
            text += &format!("{}: {n_bits} bits\n", group.name());
        }
    }
    text += &format!(
        "right answers: {} in float, {} in {mode}, {} as written: the margin is {}\n",
        percent(found.float_score),
        percent(found.score),
        percent(found.written_score),
        if found.keeps_margin { "kept" } else { "NOT kept" }
    );
    text
}

fn document(found: &Found, mode: Mode) -> Value {
    let widths = |widths: &midtread::trim::search::Widths| -> Value {
        widths
            .0
            .iter()
            .map(|(group, bits)| (group.name().to_owned(), json!(bits)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let tensor = |t: &Trimmed| {
        let lengths = t.numbers.lengths();
        let float = match &t.numbers {
            Numbers::Float(float) => Some((float.exponent_bits, float.mantissa_bits)),
            _ => None,
        };
        json!({
            "tensor": t.tensor,
            "group": t.group.name(),
            "elements": t.n_elements,
            "max_abs": t.max_abs,
            "bits": t.numbers.n_bits(),
            "integer_length": lengths.map(|l| l.0),
            "fraction_length": lengths.map(|l| l.1),
            "exponent_bits": float.map(|f| f.0),
            "mantissa_bits": float.map(|f| f.1),
        })
    };
    let trial =
        |t: &Trial| json!({ "what": t.what, "widths": widths(&t.widths), "score": t.score });
    json!({
        "mode": mode.name(),
        "float_score": found.float_score,
        "score": found.score,
        "written_score": found.written_score,
        "keeps_margin": found.keeps_margin,
        "widths": widths(&found.widths),
        "tensors": found.tensors.iter().map(tensor).collect::<Vec<_>>(),
        "trials": found.trials.iter().map(trial).collect::<Vec<_>>(),
    })
}
