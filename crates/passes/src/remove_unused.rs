//! Nodes and initializers that no output depends on go, and outputs that nodes need not have.

use midtread_graph::{Model, ValueId};

use crate::{
    error::Error,
    prepare::{Ctx, PassDef},
    view::View,
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "remove_unused",
    summary: "nodes and initializers that no output depends on go",
    is_default: true,
    run,
};

/// Operators whose outputs behind the first may be left out without another meaning of those before.
const OPTIONAL_OUTPUTS: &[&str] =
    &["Dropout", "GRU", "LSTM", "LayerNormalization", "MaxPool", "RNN", "Unique"];

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    let graph = &mut model.graph;
    let mut wanted = vec![false; graph.values().len()];
    graph.outputs.iter().for_each(|id| wanted[id.idx()] = true);
    let mut keep = vec![false; graph.nodes.len()];
    let mut captured = Vec::new();
    for (keep, node) in keep.iter_mut().zip(&graph.nodes).rev() {
        if !node.outputs.iter().flatten().any(|id| wanted[id.idx()]) {
            continue;
        }
        *keep = true;
        captured.clear();
        node.subgraphs().for_each(|g| g.captures(&mut captured));
        let captured = captured.iter().filter_map(|name| graph.find(name));
        node.inputs
            .iter()
            .copied()
            .flatten()
            .chain(captured)
            .for_each(|id| wanted[id.idx()] = true);
    }
    for (node, _) in graph.nodes.iter().zip(&keep).filter(|(_, keep)| !**keep) {
        ctx.change(graph.label(node), "is gone: no output depends on it");
    }
    let mut keep = keep.into_iter();
    graph.nodes.retain(|_| keep.next().expect("one for each node"));

    let view = View::new(graph);
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        if !OPTIONAL_OUTPUTS.iter().any(|op_type| node.is(op_type)) {
            continue;
        }
        let is_needed = |id: ValueId| {
            let links = &view.links;
            !links.consumers(id).is_empty() || links.is_output(id) || links.is_captured(id)
        };
        let n = 1 + node.outputs.iter().rposition(|id| id.is_some_and(is_needed)).unwrap_or(0);
        if node.outputs.iter().skip(n).any(Option::is_some) {
            let label = graph.label(node).to_owned();
            ctx.change(&label, "leaves out what nobody uses");
            graph.nodes[i].outputs.truncate(n);
        }
    }

    let before = graph.initializers.clone();
    graph.drop_unused();
    for id in before {
        if graph.value(id).constant.is_none() {
            ctx.change(graph.value_name(id), "is gone: no node uses it");
        }
    }
    Ok(())
}
