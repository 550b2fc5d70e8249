//! `midtread report`.

use std::{num::NonZero, path::PathBuf};

use clap::Args;
use midtread::{
    Comparison, Error, evaluate::Difference, judge::Measure, manifest::Recorded, onnx,
    peer::OnnxRuntime, report::page::Variant,
};
use serde_json::json;

use crate::{
    args::DataArgs,
    context::{Context, Outcome, check_output, write},
    judging::{self, Timing},
    pages, samples,
    table::{percent, shorten, size, table},
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread report model.onnx model.int8.onnx --data pictures/ --labels labels.csv
  midtread report model.onnx model.int8.onnx --data pictures/ --labels labels.csv -o report.html
  midtread report model.onnx model.int8.onnx --data pictures/ --python venv/bin/python --thread-counts 1,2")]
pub(crate) struct ReportCommand {
    /// The model before quantization
    float: PathBuf,
    /// The model after it, by this or any other tool
    quantized: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// The right answers: CSV (file,label), JSON ({\"file\": label}) or an IDX file
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// A program that is given a folder of outputs and prints a number (see `midtread evaluate`)
    #[arg(long, value_name = "COMMAND")]
    metric_command: Option<String>,
    /// Write the report as one HTML page that needs no network
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A Python that has ONNX Runtime, to time both models there too [default: python3, if it has it]
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Time with how many threads
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1")]
    thread_counts: Vec<NonZero<usize>>,
    /// How often each model is timed
    #[arg(long, value_name = "N", default_value = "50")]
    repeat: NonZero<usize>,
}

/// What the table shows.
struct Before {
    variants: [Variant; 2],
    difference: Option<Difference>,
    comparison: Comparison,
}

impl ReportCommand {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        if let Some(path) = &self.output {
            check_output(path)?;
        }
        let peer = OnnxRuntime::find(self.python.as_deref())?;
        let [float, quantized] =
            [&self.float, &self.quantized].map(|path| onnx::load(path).map_err(Error::from));
        let (float, quantized) = (float?, quantized?);
        let data = samples::open(&self.data, &float, context)?;
        let labels = self.labels.as_ref().map(|path| samples::labels(path, &data)).transpose()?;
        let recorded = Recorded::new(&data, usize::MAX);
        let comparison = pages::compared(&float, &quantized, &recorded, context)?;
        let bytes = [
            samples::model_bytes(&self.float, &float)?,
            samples::model_bytes(&self.quantized, &quantized)?,
        ];
        let mut before = Before {
            variants: [
                pages::variant(&self.float, bytes[0], None),
                pages::variant(&self.quantized, bytes[1], Some(&comparison)),
            ],
            difference: None,
            comparison,
        };
        let models = [&float, &quantized];
        if let Some(labels) = labels {
            let measure = Measure::Top1(labels);
            before.difference =
                judging::judge(&mut before.variants, models, &recorded, measure, context)?;
        }
        if let Some(command) = &self.metric_command {
            let measure = Measure::Command(command.clone());
            judging::judge(&mut before.variants, models, &data, measure, context)?;
        }
        let thread_counts: Vec<usize> = self.thread_counts.iter().map(|n| n.get()).collect();
        let timing = Timing {
            thread_counts: &thread_counts,
            repeat: self.repeat.get(),
            peer: peer.as_ref().map(|peer| (peer, [&*self.float, &*self.quantized])),
        };
        let inputs = judging::first_inputs(&data)?;
        timing.time(&mut before.variants, models, &inputs, context)?;
        context.check_interrupted()?;
        if let Some(path) = &self.output {
            let files = [(self.float.as_path(), bytes[0]), (self.quantized.as_path(), bytes[1])];
            let mut page = pages::of_two(files, &float, &recorded, &before.comparison, context)?;
            page.variants = before.variants.to_vec();
            page.difference = before.difference.map(serde_json::to_value).transpose()?;
            context.check_interrupted()?;
            write(path, page.to_html().as_bytes())?;
        }
        if context.json {
            context.print_json(&json!({
                "samples": before.comparison.samples,
                "variants": before.variants,
                "difference": before.difference,
                "outputs": before.comparison.outputs,
                "onnxruntime": peer.as_ref().map(|peer| &peer.version),
                "report": self.output,
            }));
        } else {
            self.show(&before, peer.as_ref(), context);
        }
        Ok(Outcome::Done)
    }

    fn show(&self, before: &Before, peer: Option<&OnnxRuntime>, context: &Context) {
        let variants = &before.variants;
        let mut heading = vec!["model".to_owned(), "size".to_owned()];
        let has_top1 = variants[0].top1.is_some();
        let has_metric = variants[0].metric.is_some();
        heading.extend(has_top1.then(|| "top-1".to_owned()));
        heading.extend(has_metric.then(|| "metric".to_owned()));
        heading.push("agrees".to_owned());
        heading
            .extend(variants[0].latencies.iter().map(|l| format!("{} x{}", l.runtime, l.threads)));
        let dash = || "–".to_owned();
        let mut rows = vec![heading];
        for v in variants {
            let mut row = vec![shorten(&v.name, 24), size(v.bytes)];
            row.extend(v.top1.map(percent));
            row.extend(v.metric.map(|x| format!("{x:.5}")));
            row.push(v.agreement.map_or_else(dash, percent));
            row.extend(v.latencies.iter().map(|l| format!("{:.3} ms", l.median_ms)));
            rows.push(row);
        }
        context.say(table(&rows).trim_end());
        if let Some(difference) = &before.difference {
            super::evaluate::say_difference(difference, context);
        }
        for output in &before.comparison.outputs {
            context.say(format!(
                "output `{}`: {:.1} dB, cosine {:.5}, over {} samples",
                output.name, output.sqnr_db, output.cosine, before.comparison.samples
            ));
        }
        match peer {
            Some(peer) => context.say(format!(
                "latency: medians of {} runs, in midtread's engine and in ONNX Runtime {}",
                self.repeat, peer.version
            )),
            None => context.say(format!(
                "latency: medians of {} runs in midtread's engine; for ONNX Runtime's, name a Python that has it: --python",
                self.repeat
            )),
        }
        if let Some(path) = &self.output {
            context.say(format!("the report is in {}", path.display()));
        }
    }
}
