//! `midtread apply`.

use std::path::PathBuf;

use clap::Args;
use midtread::{
    Plan,
    onnx::{self, SaveOptions},
};
use serde_json::json;

use crate::{
    args::{FormatArgs, OpsetArgs, PrepareArgs},
    context::{Context, Outcome, default_output, read_text},
    samples,
    table::size,
};

#[derive(Args)]
#[command(after_help = "Example:
  midtread apply model.onnx --plan model.plan -o model.int8.onnx")]
pub(crate) struct Apply {
    /// The float model that was planned
    model: PathBuf,
    /// The plan
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    /// Where the quantized model goes [default: MODEL with .int8.onnx]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    prepare: PrepareArgs,
    #[command(flatten)]
    opset: OpsetArgs,
}

impl Apply {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        let plan = Plan::from_text(&read_text(&self.plan)?).map_err(midtread::Error::from)?;
        let model = onnx::load(&self.model).map_err(midtread::Error::from)?;
        let bytes_in = samples::model_bytes(&self.model, &model)?;
        let (prepared, _) =
            midtread::passes::prepare(model, &self.prepare.options(Some(self.opset.opset))?)
                .map_err(midtread::Error::from)?;
        let result =
            midtread::apply(&prepared, &plan, self.format.format).map_err(midtread::Error::from)?;
        let output = self.output.clone().unwrap_or_else(|| default_output(&self.model, "int8"));
        context.check_interrupted()?;
        let saved =
            onnx::save(&result, &output, &SaveOptions::default()).map_err(midtread::Error::from)?;
        if context.json {
            context.print_json(&json!({
                "output": output.display().to_string(),
                "bytes_in": bytes_in,
                "bytes_out": saved.n_bytes,
            }));
        }
        context.say(format!("{}: {} -> {}", output.display(), size(bytes_in), size(saved.n_bytes)));
        Ok(Outcome::Done)
    }
}
