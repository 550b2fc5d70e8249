//! `midtread bench`.

use std::{num::NonZero, path::PathBuf};

use clap::Args;
use midtread::{
    Runner, Runtime,
    latency::{Latency, run_times},
    onnx,
};
use serde_json::json;

use crate::{
    context::{Context, Outcome},
    samples,
    table::table,
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread bench model.onnx model.int8.onnx --inputs in.npz
  midtread bench model.int8.onnx --inputs in.npz --runtime engine --thread-counts 1,2,4")]
pub(crate) struct Bench {
    /// The models, all with the same inputs
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// The inputs, by name: an .npz file, or an .npy file for models with one input
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// What runs them
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "interpreter,engine",
          value_parser = super::run::parse_runtime)]
    runtime: Vec<Runtime>,
    /// With how many threads
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1")]
    thread_counts: Vec<NonZero<usize>>,
    /// How often each runs, in rounds of all of them
    #[arg(long, value_name = "N", default_value = "50")]
    repeat: NonZero<usize>,
}

/// One line of the table.
struct Row {
    model: PathBuf,
    runner: Runner,
    inputs: Vec<(String, midtread::graph::Tensor)>,
    runtime: Runtime,
    n_threads: usize,
    times: Vec<f64>,
}

impl Bench {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        let mut rows = Vec::new();
        for path in &self.models {
            let model = onnx::load(path).map_err(midtread::Error::from)?;
            for &runtime in &self.runtime {
                for n_threads in &self.thread_counts {
                    rows.push(Row {
                        model: path.clone(),
                        runner: Runner::new(&model, runtime, None)?,
                        inputs: samples::read_inputs(&self.inputs, &model)?,
                        runtime,
                        n_threads: n_threads.get(),
                        times: Vec::new(),
                    });
                }
            }
        }
        // In turns, so that what slows the machine for a while slows all of them.
        const ROUNDS: usize = 5;
        let repeat = self.repeat.get().div_ceil(ROUNDS);
        let bar = context.bar("rounds", ROUNDS * rows.len());
        for _ in 0..ROUNDS {
            for row in &mut rows {
                row.times.extend(run_times(&row.runner, &row.inputs, repeat, row.n_threads)?);
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        let mut shown = vec![
            ["model", "runtime", "threads", "median ms", "shortest", "nine of ten within"]
                .map(str::to_owned)
                .to_vec(),
        ];
        let mut runs = Vec::new();
        for row in &rows {
            let t = Latency::of(row.times.clone(), row.n_threads);
            let model = row.model.display().to_string();
            runs.push(json!({
                "model": model, "runtime": row.runtime.name(), "threads": row.n_threads,
                "median_ms": t.median, "min_ms": t.min, "p90_ms": t.p90,
            }));
            let ms = [t.median, t.min, t.p90].map(|ms| format!("{ms:.3}"));
            shown.push(
                [&[model, row.runtime.name().to_owned(), row.n_threads.to_string()][..], &ms]
                    .concat(),
            );
        }
        if context.json {
            context.print_json(&json!({ "runs": runs }));
        } else {
            context.say(table(&shown).trim_end());
        }
        Ok(Outcome::Done)
    }
}
