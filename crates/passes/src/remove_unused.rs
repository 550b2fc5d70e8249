//! Nodes and initializers that no output depends on go.

use midtread_graph::Model;

use crate::{
    error::Error,
    prepare::{Ctx, PassDef},
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "remove_unused",
    summary: "nodes and initializers that no output depends on go",
    is_default: true,
    run,
};

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

    let before = graph.initializers.clone();
    graph.drop_unused();
    for id in before {
        if graph.value(id).constant.is_none() {
            ctx.change(graph.value_name(id), "is gone: no node uses it");
        }
    }
    Ok(())
}
