//! `midtread run`.

use std::{num::NonZero, path::PathBuf};

use clap::Args;
use midtread::{
    Loaded, Requantize, Runtime,
    graph::Tensor,
    latency::{latency, profile},
    quantize::peak_bytes,
};
use serde_json::json;

use crate::{
    context::{Context, Outcome},
    samples,
    table::table,
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread run model.onnx --inputs in.npz --outputs out/
  midtread run model.onnx --inputs in.npz --repeat 100 --threads 1
  midtread run model.onnx --inputs in.npz --profile
  midtread run model.int8.onnx --inputs in.npz --runtime engine --repeat 100")]
pub(crate) struct Run {
    /// The model, or a compiled program
    model: PathBuf,
    /// The inputs, by name: an .npz file, or an .npy file for a model with one input
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Write each output to this folder, as NAME.npy
    #[arg(long, value_name = "FOLDER")]
    outputs: Option<PathBuf>,
    /// Run this many times and show how long one takes
    #[arg(long, value_name = "N")]
    repeat: Option<NonZero<usize>>,
    /// What runs it: the interpreter, exactly as ONNX says, or the engine, in integers
    #[arg(long, value_name = "NAME", default_value = "interpreter", value_parser = parse_runtime)]
    runtime: Runtime,
    /// How the engine comes from sums to codes: float, as ONNX Runtime, or fixed-point
    #[arg(long, value_name = "HOW", default_value = "float",
          value_parser = super::compile::parse_requantize)]
    requantize: Requantize,
    /// Show how long each node takes, at its shortest of --repeat runs
    #[arg(long)]
    profile: bool,
}

impl Run {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        let loaded = Loaded::open(&self.model)?;
        let inputs = samples::read_inputs_of(&self.inputs, &loaded)?;
        let runtime = self.runtime.requantizing(self.requantize);
        let runner = loaded.runner(runtime, context.max_bytes)?;
        drop(loaded);
        let outputs = runner.run(inputs.clone())?;
        if let Some(path) = &self.outputs {
            samples::write_outputs(path, &outputs)?;
        }
        let times = match self.repeat {
            Some(n) => Some(latency(&runner, &inputs, n.get(), context.n_threads)?),
            None => None,
        };
        let nodes = match self.profile {
            true => Some(profile(
                &runner,
                &inputs,
                self.repeat.map_or(1, NonZero::get),
                context.n_threads,
            )?),
            false => None,
        };
        if context.json {
            let ports: Vec<_> = outputs
                .iter()
                .map(
                    |(name, t)| json!({ "name": name, "type": t.dtype().name(), "dims": t.dims() }),
                )
                .collect();
            context.print_json(&json!({
                "outputs": ports, "latency_ms": times, "nodes": nodes, "peak_bytes": peak_bytes(),
            }));
            return Ok(Outcome::Done);
        }
        for (name, tensor) in &outputs {
            context.say(format!("{name}: {}", describe(tensor)));
        }
        if let Some(t) = times {
            context.say(format!(
                "{} runs on {} threads: median {:.3} ms, shortest {:.3} ms, nine of ten within {:.3} ms, 99 of 100 within {:.3} ms",
                t.runs, t.threads, t.median, t.min, t.p90, t.p99
            ));
        }
        if let Some(mut nodes) = nodes {
            nodes.sort_by(|a, b| b.ms.total_cmp(&a.ms));
            let mut rows = vec![["node", "operator", "inputs", "ms"].map(str::to_owned).to_vec()];
            for n in nodes.into_iter().take(40) {
                rows.push(vec![n.node, n.op_type, n.inputs, format!("{:.3}", n.ms)]);
            }
            context.say(table(&rows).trim_end());
        }
        Ok(Outcome::Done)
    }
}

/// `--runtime`.
pub(crate) fn parse_runtime(text: &str) -> Result<Runtime, String> {
    Runtime::ALL.iter().copied().find(|r| r.name() == text).ok_or_else(|| {
        let names: Vec<_> = Runtime::ALL.iter().map(|r| r.name()).collect();
        format!("one of {}", names.join(", "))
    })
}

/// Type, sizes and the first few elements.
fn describe(tensor: &Tensor) -> String {
    let head = match tensor.to_vec::<f32>() {
        Ok(values) => {
            let shown: Vec<String> = values.iter().take(8).map(|x| format!("{x:.5}")).collect();
            format!(" [{}{}]", shown.join(", "), if values.len() > 8 { ", …" } else { "" })
        }
        Err(_) => String::new(),
    };
    format!("{} {:?}{head}", tensor.dtype(), tensor.dims())
}
