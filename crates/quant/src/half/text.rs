//! 16-bit plans as text: JSON lines like those of [`crate::plan::text`], in graph order.

use serde::{Deserialize, Serialize};

use super::{GraphPlan, HalfConstant, HalfDecision, HalfNode, HalfPlan, Storage};
use crate::error::Error;

/// The key of the first line, by which such a plan is told from others.
pub const KEY: &str = "midtread_half_plan";

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderLine {
    midtread_half_plan: u32,
    model: String,
    #[serde(rename = "type")]
    half: String,
    target: String,
    keep_io_types: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Graph {
        graph: String,
    },
    Node {
        node: String,
        op_type: String,
        status: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    Constant {
        constant: String,
        storage: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

impl HalfPlan {
    /// As text. The same plan gives the same text.
    pub fn to_text(&self) -> String {
        let header = HeaderLine {
            midtread_half_plan: VERSION,
            model: self.model.clone(),
            half: self.half.to_string(),
            target: self.target.clone(),
            keep_io_types: self.keep_io_types,
        };
        let mut text = json(&header);
        for graph in &self.graphs {
            text += &json(&Line::Graph { graph: graph.path.clone() });
            for HalfNode { node, op_type, decision } in &graph.nodes {
                text += &json(&Line::Node {
                    node: node.clone(),
                    op_type: op_type.clone(),
                    status: decision.status().to_owned(),
                    reason: decision.reason().map(str::to_owned),
                });
            }
            for HalfConstant { constant, storage } in &graph.constants {
                let (storage, reason) = match storage {
                    Storage::Half => ("half", None),
                    Storage::Mask => ("mask", None),
                    Storage::Float(reason) => ("float", Some(reason.clone())),
                };
                let (constant, storage) = (constant.clone(), storage.to_owned());
                text += &json(&Line::Constant { constant, storage, reason });
            }
        }
        text
    }

    /// From text, every line checked.
    pub fn from_text(text: &str) -> Result<Self, Error> {
        let bad = |i: usize, problem: String| Error::File {
            file: "plan".to_owned(),
            line: Some(i + 1),
            problem,
        };
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let (i, first) = lines.next().ok_or_else(|| bad(0, "it is empty".to_owned()))?;
        let header: HeaderLine =
            serde_json::from_str(first).map_err(|err| bad(i, err.to_string()))?;
        if header.midtread_half_plan != VERSION {
            let found = header.midtread_half_plan;
            return Err(bad(
                i,
                format!("version {found} of such plans is not known, only {VERSION}"),
            ));
        }
        let mut plan = Self {
            model: header.model,
            half: header.half.parse().map_err(|problem| bad(i, problem))?,
            target: header.target,
            keep_io_types: header.keep_io_types,
            graphs: Vec::new(),
        };
        for (i, line) in lines {
            let line = serde_json::from_str(line).map_err(|_| {
                bad(i, "a line is about a `graph`, a `node` or a `constant`".to_owned())
            })?;
            add(&mut plan.graphs, line).map_err(|problem| bad(i, problem))?;
        }
        Ok(plan)
    }
}

fn add(graphs: &mut Vec<GraphPlan>, line: Line) -> Result<(), String> {
    if let Line::Graph { graph } = line {
        graphs.push(GraphPlan { path: graph, ..GraphPlan::default() });
        return Ok(());
    }
    let graph = graphs.last_mut().ok_or("a `graph` comes before its nodes")?;
    match line {
        Line::Graph { .. } => unreachable!("returned above"),
        Line::Node { node, op_type, status, reason } => {
            let decision = match (status.as_str(), reason) {
                ("half", None) => HalfDecision::Half,
                ("either", None) => HalfDecision::Either,
                ("float", Some(reason)) => HalfDecision::Float(reason),
                _ => return Err(format!("node `{node}`: half, either, or float with a `reason`")),
            };
            graph.nodes.push(HalfNode { node, op_type, decision });
        }
        Line::Constant { constant, storage, reason } => {
            let storage = match (storage.as_str(), reason) {
                ("half", None) => Storage::Half,
                ("mask", None) => Storage::Mask,
                ("float", Some(reason)) => Storage::Float(reason),
                _ => {
                    let problem = "half, mask, or float with a `reason`";
                    return Err(format!("constant `{constant}`: {problem}"));
                }
            };
            graph.constants.push(HalfConstant { constant, storage });
        }
    }
    Ok(())
}

fn json(line: &impl Serialize) -> String {
    let mut text = serde_json::to_string(line).expect("strings can be written");
    text.push('\n');
    text
}
