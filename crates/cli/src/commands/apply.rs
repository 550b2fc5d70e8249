//! `midtread apply`.

use std::path::PathBuf;

use clap::Args;
use midtread::{
    Plan,
    onnx::{self, SaveOptions},
    quant::half::{self, HalfPlan},
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

/// The two kinds of plans.
enum AnyPlan {
    Integers(Plan),
    Half(HalfPlan),
}

impl Apply {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        let text = read_text(&self.plan)?;
        let half_key = format!("{{\"{}\"", half::text::KEY);
        let plan = match text.starts_with(&half_key) {
            true => HalfPlan::from_text(&text).map(AnyPlan::Half),
            false => Plan::from_text(&text).map(AnyPlan::Integers),
        };
        let plan = plan.map_err(midtread::Error::from)?;
        let model = onnx::load(&self.model).map_err(midtread::Error::from)?;
        let bytes_in = samples::model_bytes(&self.model, &model)?;
        let prepare = self.prepare.options(Some(self.opset.opset))?;
        let (prepared, _) =
            midtread::passes::prepare(model, &prepare).map_err(midtread::Error::from)?;
        let (result, tag) = match &plan {
            AnyPlan::Half(plan) => (half::apply(&prepared, plan), plan.half.name()),
            AnyPlan::Integers(plan) => {
                (midtread::apply(&prepared, plan, self.format.format), "int8")
            }
        };
        let result = result.map_err(midtread::Error::from)?;
        let output = self.output.clone().unwrap_or_else(|| default_output(&self.model, tag));
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
