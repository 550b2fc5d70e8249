//! `midtread plan`.

use std::path::PathBuf;

use clap::Args;
use midtread::{onnx, quant::half::HalfOptions};
use serde_json::json;

use super::quantize::{half_ledger, half_ledger_text, half_summary, ledger, ledger_text};
use crate::{
    args::{OpsetArgs, PlanArgs, PrepareArgs},
    context::{Context, Outcome, write},
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread plan model.onnx --stats model.stats -o model.plan
  midtread plan model.onnx --stats model.stats --calibrator mse -o other.plan && diff model.plan other.plan")]
pub(crate) struct PlanCommand {
    /// The float model; it is prepared first, as `quantize` does
    model: PathBuf,
    /// What `calibrate` left behind (the static scheme needs it)
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Where the plan goes
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    prepare: PrepareArgs,
    #[command(flatten)]
    opset: OpsetArgs,
}

impl PlanCommand {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        if let Some(options) = self.plan.half(None)? {
            return self.run_half(&options, context);
        }
        let (options, target) = (self.plan.options()?, self.plan.target()?);
        let stats = self.stats.as_deref().map(super::stats::load).transpose()?;
        let model = onnx::load(&self.model).map_err(midtread::Error::from)?;
        let (prepared, _) =
            midtread::passes::prepare(model, &self.prepare.options(Some(self.opset.opset))?)
                .map_err(midtread::Error::from)?;
        let plan = midtread::plan(&prepared, stats.as_ref(), &target, &options)
            .map_err(midtread::Error::from)?;
        write(&self.output, plan.to_text().as_bytes())?;
        let counts = plan.counts();
        if context.json {
            context.print_json(&json!({
                "output": self.output.display().to_string(),
                "tensors": plan.tensors.len(),
                "nodes": { "quantized": counts.quantized, "float": counts.float },
                "ledger": ledger(&plan),
            }));
        }
        context.say(format!(
            "{}: {} tensors, {} nodes quantized, {} absorbed, {} kept in float",
            self.output.display(),
            plan.tensors.len(),
            counts.quantized,
            counts.absorbed,
            counts.float
        ));
        context.say(ledger_text(&plan, false).trim_end());
        Ok(Outcome::Done)
    }

    fn run_half(&self, options: &HalfOptions, context: &Context) -> anyhow::Result<Outcome> {
        let target = self.plan.target()?;
        let stats = self.stats.as_deref().map(super::stats::load).transpose()?;
        let model = onnx::load(&self.model).map_err(midtread::Error::from)?;
        let prepare = self.prepare.options(Some(self.opset.opset))?;
        let prepared = midtread::half::prepare(model, &prepare, options.half)?;
        let plan = midtread::quant::half::plan(&prepared, stats.as_ref(), &target, options)
            .map_err(midtread::Error::from)?;
        write(&self.output, plan.to_text().as_bytes())?;
        if context.json {
            let counts = plan.counts();
            context.print_json(&json!({
                "output": self.output.display().to_string(),
                "nodes": { "half": counts.half, "float": counts.float, "either": counts.either },
                "ledger": half_ledger(&plan),
            }));
        }
        context.say(format!("{}: {}", self.output.display(), half_summary(&plan)));
        context.say(half_ledger_text(&plan, false).trim_end());
        Ok(Outcome::Done)
    }
}
