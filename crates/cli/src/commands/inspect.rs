//! `midtread inspect`.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Args;
use midtread::{
    checkpoint::Checkpoint,
    engine::{Program, StepInfo},
    graph::{Graph, Model, Type},
    onnx,
};
use serde_json::json;

use super::checkpoint;
use crate::{
    context::{Context, Outcome},
    samples,
    table::{size, table},
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread inspect model.onnx
  midtread inspect model.onnx --nodes
  midtread inspect model.int8.onnx --engine
  midtread inspect model.safetensors
  midtread inspect model.gguf --json
  midtread inspect --cpu")]
pub(crate) struct Inspect {
    /// The model: ONNX, safetensors or GGUF
    #[arg(required_unless_present = "cpu")]
    model: Option<PathBuf>,
    /// List every node
    #[arg(long)]
    nodes: bool,
    /// Show how the engine computes each node
    #[arg(long)]
    engine: bool,
    /// Show which kernels this machine runs
    #[arg(long)]
    cpu: bool,
}

impl Inspect {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        if self.cpu {
            cpu(context);
        }
        if let Some(path) = &self.model {
            if Checkpoint::is_one(path) {
                return checkpoint::inspect(context, path);
            }
            let model = onnx::load(path).map_err(midtread::Error::from)?;
            let graph = &model.graph;
            let port = |id: &midtread::graph::ValueId| {
                let ty = graph.type_of(*id).as_ref().map_or("?".into(), Type::to_string);
                (graph.value_name(*id).to_owned(), ty)
            };
            let inputs: Vec<_> = graph.inputs.iter().map(port).collect();
            let outputs: Vec<_> = graph.outputs.iter().map(port).collect();
            let ops = operators(graph);
            let weights: usize = constants(graph).map(|t| t.len()).sum();
            let bytes = samples::model_bytes(path, &model)?;
            if context.json {
                let ports = |ports: &[(String, String)]| -> Vec<_> {
                    ports.iter().map(|(name, ty)| json!({ "name": name, "type": ty })).collect()
                };
                let steps = match self.engine {
                    true => Some(
                        steps(&model)?
                            .into_iter()
                            .map(|s| json!({ "node": s.node, "op_type": s.op_type, "kind": s.kind, "why": s.why }))
                            .collect::<Vec<_>>(),
                    ),
                    false => None,
                };
                context.print_json(&json!({
                    "engine": steps,
                    "ir_version": model.ir_version,
                    "opsets": model.opset_imports.iter().cloned().collect::<BTreeMap<_, _>>(),
                    "producer": model.producer_name,
                    "bytes": bytes,
                    "elements_of_constants": weights,
                    "inputs": ports(&inputs),
                    "outputs": ports(&outputs),
                    "nodes": graph.nodes.len(),
                    "operators": ops,
                }));
                return Ok(Outcome::Done);
            }
            let opsets: Vec<String> = model
                .opset_imports
                .iter()
                .map(|(domain, v)| {
                    format!("{} {v}", if domain.is_empty() { "ai.onnx" } else { domain })
                })
                .collect();
            context.say(format!(
                "{}: {}, IR {}, {}, by {}",
                path.display(),
                size(bytes),
                model.ir_version,
                opsets.join(", "),
                if model.producer_name.is_empty() { "nobody named" } else { &model.producer_name }
            ));
            context.say(format!("{} nodes, {weights} elements in constants", graph.nodes.len()));
            for (what, ports) in [("input ", &inputs), ("output", &outputs)] {
                for (name, ty) in ports {
                    context.say(format!("  {what}  {name}: {ty}"));
                }
            }
            let mut rows = vec![vec!["operator".to_owned(), "nodes".to_owned(), "here".to_owned()]];
            for (op, n) in &ops {
                let (domain, op_type) = op.rsplit_once('.').unwrap_or(("", op));
                let here =
                    if midtread::ops::find(domain, op_type).is_some() { "runs" } else { "unknown" };
                rows.push(vec![op.clone(), n.to_string(), here.to_owned()]);
            }
            context.say(table(&rows).trim_end());
            if self.nodes {
                context.say(node_table(graph).trim_end());
            }
            if self.engine {
                context.say(step_table(&steps(&model)?).trim_end());
            }
        }
        Ok(Outcome::Done)
    }
}

/// How the engine computes what, and why not in integers.
fn steps(model: &Model) -> anyhow::Result<Vec<StepInfo>> {
    let program = Program::compile(model, &midtread::EngineOptions::default());
    Ok(program.map_err(midtread::Error::from)?.steps().collect())
}

/// The steps, how many there are of each kind, and the reasons.
fn step_table(steps: &[StepInfo]) -> String {
    let mut rows = vec![["node", "operator", "computed as"].map(str::to_owned).to_vec()];
    let (mut kinds, mut reasons) = (BTreeMap::new(), BTreeMap::new());
    for step in steps {
        *kinds.entry(step.kind).or_insert(0) += 1;
        rows.push(vec![step.node.clone(), step.op_type.clone(), step.kind.to_owned()]);
        if !step.why.is_empty() {
            reasons.entry(&step.why).or_insert_with(Vec::new).push(&step.node[..]);
        }
    }
    let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} x {kind}")).collect();
    let mut text = format!("{}\n{}", table(&rows), kinds.join(", "));
    if !reasons.is_empty() {
        text += "\n\nnot in integers, because";
        for (why, nodes) in reasons {
            text += &format!("\n  {why}:\n    {}", nodes.join(", "));
        }
    }
    text
}

fn constants(graph: &Graph) -> impl Iterator<Item = &midtread::graph::Tensor> {
    graph.initializers.iter().filter_map(|&id| graph.value(id).constant.as_ref())
}

fn operators(graph: &Graph) -> BTreeMap<String, usize> {
    let mut ops = BTreeMap::new();
    for node in &graph.nodes {
        let domain = midtread::graph::model::canonical_domain(&node.domain);
        let name = if domain.is_empty() {
            node.op_type.clone()
        } else {
            format!("{domain}.{}", node.op_type)
        };
        *ops.entry(name).or_insert(0) += 1;
    }
    ops
}

fn node_table(graph: &Graph) -> String {
    let mut rows = vec![["node", "operator", "inputs", "output"].map(str::to_owned).to_vec()];
    for node in &graph.nodes {
        let names: Vec<&str> =
            node.inputs.iter().map(|id| id.map_or("-", |id| graph.value_name(id))).collect();
        let output = node.output(0).map_or(String::new(), |id| {
            let ty = graph.type_of(id).as_ref().map_or("?".into(), Type::to_string);
            format!("{}: {ty}", graph.value_name(id))
        });
        rows.push(vec![
            graph.label(node).to_owned(),
            node.op_type.clone(),
            names.join(" "),
            output,
        ]);
    }
    table(&rows)
}

fn cpu(context: &Context) {
    let variants = midtread::kernels::variants();
    if context.json {
        let rows: Vec<_> = variants
            .iter()
            .map(|v| json!({ "kernel": v.kernel, "variant": v.name, "available": v.available, "selected": v.selected }))
            .collect();
        let peak = midtread::kernels::peak::measure().map(|peak| peak.int8 / 2.0);
        context.print_json(&json!({ "kernels": rows, "int8_products_per_second": peak }));
        return;
    }
    let mut rows = vec![["kernel", "variant", "here"].map(str::to_owned).to_vec()];
    for v in &variants {
        let here = match (v.selected, v.available) {
            (true, _) => "used",
            (false, true) => "available",
            (false, false) => "no",
        };
        rows.push(vec![v.kernel.to_owned(), v.name.to_owned(), here.to_owned()]);
    }
    context.say(table(&rows).trim_end());
}
