//! `midtread compile`.

use std::path::PathBuf;

use clap::Args;
use midtread::{EngineOptions, Requantize, engine::Code, onnx};
use serde_json::json;

use crate::{
    context::{self, Context, Outcome},
    table::size,
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread compile model.int8.onnx -o model.mtp
  midtread compile model.int8.onnx -o model.mtp --requantize fixed-point
  midtread run model.mtp --inputs in.npz --runtime engine")]
pub(crate) struct Compile {
    /// The quantized model
    model: PathBuf,
    /// Where to write the program [default: MODEL.mtp]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// From sums to codes: in f32 as ONNX Runtime, or by a multiplier and a shift
    #[arg(long, value_name = "HOW", default_value = "float", value_parser = parse_requantize)]
    requantize: Requantize,
}

impl Compile {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        let output = self.output.clone().unwrap_or_else(|| self.model.with_extension("mtp"));
        context::check_output(&output)?;
        let model = onnx::load(&self.model).map_err(midtread::Error::from)?;
        let options = EngineOptions { requantize: self.requantize };
        let code = Code::compile(&model, &options).map_err(midtread::Error::from)?;
        let n_operators = code.steps.iter().filter(|step| step.op.kind() == "operator").count();
        let n_steps = code.steps.len();
        let bytes = code.to_bytes();
        context.check_interrupted()?;
        context::write(&output, &bytes)?;
        if context.json {
            context.print_json(&json!({
                "output": output, "bytes": bytes.len(), "steps": n_steps, "operators": n_operators,
                "requantize": self.requantize.name(),
            }));
        }
        let left = match n_operators {
            0 => "all on codes: it runs without the operators too".to_owned(),
            n => format!("{n} of them operators (midtread inspect MODEL --engine says why)"),
        };
        context.say(format!(
            "{}: {}, {n_steps} steps, {left}",
            output.display(),
            size(bytes.len() as u64)
        ));
        Ok(Outcome::Done)
    }
}

/// `--requantize`.
pub(crate) fn parse_requantize(text: &str) -> Result<Requantize, String> {
    Requantize::ALL.iter().copied().find(|r| r.name() == text).ok_or_else(|| {
        let names: Vec<_> = Requantize::ALL.iter().map(|r| r.name()).collect();
        format!("one of {}", names.join(", "))
    })
}
