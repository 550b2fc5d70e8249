//! `midtread prepare`.

use std::path::PathBuf;

use clap::Args;
use midtread::{
    onnx::{self, SaveOptions},
    passes::PASSES,
};
use serde_json::json;

use crate::{
    args::{OpsetArgs, PrepareArgs},
    context::{Context, Outcome, default_output},
    samples,
    table::{size, table},
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread prepare model.onnx -o model.prepared.onnx
  midtread prepare model.onnx --dim batch=1 --without fuse_batch_norm
  midtread prepare model.onnx --opset 23 --with fuse_attention
  midtread prepare model.onnx --only infer_shapes
  midtread prepare --list")]
pub(crate) struct Prepare {
    /// The model
    #[arg(required_unless_present = "list")]
    model: Option<PathBuf>,
    /// Where the prepared model goes [default: MODEL with .prepared.onnx]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    prepare: PrepareArgs,
    #[command(flatten)]
    opset: OpsetArgs,
    /// List the passes instead
    #[arg(long)]
    list: bool,
}

impl Prepare {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        if self.list {
            return Ok(list(context));
        }
        let path = self.model.as_ref().expect("clap asks for it");
        let model = onnx::load(path).map_err(midtread::Error::from)?;
        let bytes_in = samples::model_bytes(path, &model)?;
        let n_before = model.graph.nodes.len();
        let (prepared, report) =
            midtread::passes::prepare(model, &self.prepare.options(Some(self.opset.opset))?)
                .map_err(midtread::Error::from)?;
        let output = self.output.clone().unwrap_or_else(|| default_output(path, "prepared"));
        context.check_interrupted()?;
        let saved = onnx::save(&prepared, &output, &SaveOptions::default())
            .map_err(midtread::Error::from)?;
        if context.json {
            let passes: Vec<_> = report
                .passes
                .iter()
                .map(|pass| {
                    let skips: Vec<_> = pass
                        .skips
                        .iter()
                        .map(|s| json!({ "at": s.at, "because": s.because }))
                        .collect();
                    json!({ "pass": pass.name, "changes": pass.changes.len(), "refused": skips })
                })
                .collect();
            context.print_json(&json!({
                "output": output.display().to_string(),
                "bytes_in": bytes_in,
                "bytes_out": saved.n_bytes,
                "nodes_in": n_before,
                "nodes_out": prepared.graph.nodes.len(),
                "passes": passes,
            }));
            return Ok(Outcome::Done);
        }
        context.say(format!(
            "{}: {} -> {}, {n_before} -> {} nodes",
            output.display(),
            size(bytes_in),
            size(saved.n_bytes),
            prepared.graph.nodes.len()
        ));
        for pass in &report.passes {
            if !pass.changes.is_empty() || !pass.skips.is_empty() {
                context.say(format!("  {:<26} {:>5} changes", pass.name, pass.changes.len()));
            }
            for skip in &pass.skips {
                context.say(format!("    {}: {}", skip.at, skip.because));
            }
        }
        Ok(Outcome::Done)
    }
}

fn list(context: &Context) -> Outcome {
    if context.json {
        let passes: Vec<_> = PASSES
            .iter()
            .map(|p| json!({ "name": p.name, "default": p.is_default, "summary": p.summary }))
            .collect();
        context.print_json(&json!(passes));
    }
    let mut rows = vec![["pass", "default", "what it does"].map(str::to_owned).to_vec()];
    rows.extend(PASSES.iter().map(|p| {
        let default = if p.is_default { "yes" } else { "--with" };
        [p.name, default, p.summary].map(str::to_owned).to_vec()
    }));
    context.say(table(&rows).trim_end());
    Outcome::Done
}
