//! `midtread report`.

use std::{num::NonZero, path::PathBuf};

use clap::Args;
use midtread::{
    Comparison, Error, Runner, Runtime,
    evaluate::{Difference, Prediction, RunOptions, predict, score},
    graph::{Model, Tensor},
    latency::{Latency, run_times},
    manifest::Recorded,
    metric::metric,
    onnx,
    peer::OnnxRuntime,
    quant::calibrate::Samples,
    report::page::{Latency as LatencyRow, Variant},
    significance::wilson,
};
use serde_json::json;

use crate::{
    args::DataArgs,
    context::{Context, Outcome, check_output, write},
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
        if let Some(labels) = &labels {
            self.answer(&mut before, models, &recorded, labels, context)?;
        }
        if let Some(command) = &self.metric_command {
            for (variant, model) in before.variants.iter_mut().zip(models) {
                let figure = self.run_all(context, "metric", &data, |options| {
                    metric(model, &data, options, command)
                })?;
                variant.metric = Some(figure);
            }
        }
        let inputs = data.sample(0).map_err(Error::Sample)?.inputs;
        self.time(&mut before, models, &inputs, peer.as_ref(), context)?;
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

    fn run_all<T>(
        &self,
        context: &Context,
        what: &str,
        data: &dyn Samples,
        work: impl FnOnce(&RunOptions<'_>) -> Result<T, Error>,
    ) -> anyhow::Result<T> {
        let bar = context.bar(what, data.names().len());
        let result = work(&RunOptions {
            runtime: Runtime::Interpreter,
            n_threads: context.n_threads,
            max_bytes: context.max_bytes,
            output: None,
            progress: &|n| bar.set_position(n as u64),
            interrupted: &context.interrupted,
        });
        bar.finish_and_clear();
        Ok(result?)
    }

    /// Accuracy of both.
    fn answer(
        &self,
        before: &mut Before,
        models: [&Model; 2],
        data: &dyn Samples,
        labels: &[Vec<usize>],
        context: &Context,
    ) -> anyhow::Result<()> {
        let answers = |model| -> anyhow::Result<Vec<Prediction>> {
            self.run_all(context, "answers", data, |options| predict(model, data, options))
        };
        let (float, quantized) = (answers(models[0])?, answers(models[1])?);
        let right = |i: usize| labels[i].clone();
        let scored =
            [score(&float, Some(&right), None), score(&quantized, Some(&right), Some(&float))];
        for (variant, score) in before.variants.iter_mut().zip(&scored) {
            variant.top1 = score.top1;
            variant.top1_interval = score.top1.map(|share| wilson(share, score.samples));
        }
        before.variants[1].agreement = scored[1].agreement;
        before.difference = scored[1].difference;
        Ok(())
    }

    /// Latency of both, in the engine and in ONNX Runtime.
    fn time(
        &self,
        before: &mut Before,
        models: [&Model; 2],
        inputs: &[(String, Tensor)],
        peer: Option<&OnnxRuntime>,
        context: &Context,
    ) -> anyhow::Result<()> {
        const ROUNDS: usize = 5;
        let runners = [
            Runner::new(models[0], Runtime::Engine, None)?,
            Runner::new(models[1], Runtime::Engine, None)?,
        ];
        let bar = context.bar("time", ROUNDS * self.thread_counts.len());
        for n_threads in self.thread_counts.iter().map(|n| n.get()) {
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..ROUNDS {
                context.check_interrupted()?;
                // In turns, so that what slows the machine for a while slows both.
                for (times, runner) in times.iter_mut().zip(&runners) {
                    let repeat = self.repeat.get().div_ceil(ROUNDS);
                    times.extend(run_times(runner, inputs, repeat, n_threads)?);
                }
                bar.inc(1);
            }
            let mut add = |runtime: &str, i: usize, t: Latency| {
                before.variants[i].latencies.push(LatencyRow {
                    runtime: runtime.to_owned(),
                    threads: n_threads,
                    median_ms: t.median,
                    min_ms: t.min,
                });
            };
            for (i, times) in times.into_iter().enumerate() {
                add("engine", i, Latency::of(times, n_threads));
            }
            if let Some(peer) = peer {
                let paths = [self.float.as_path(), self.quantized.as_path()];
                let found = peer.latencies(&paths, inputs, self.repeat.get(), n_threads)?;
                found.into_iter().enumerate().for_each(|(i, t)| add("onnxruntime", i, t));
            }
        }
        bar.finish_and_clear();
        Ok(())
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
