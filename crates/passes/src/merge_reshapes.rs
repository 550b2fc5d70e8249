//! A Reshape after a node that only changes sizes, too, takes that node's input.
//!
//! `Reshape(Reshape(x, s), t)` is `Reshape(x, t)`: the elements are the same in the same order, and their number too, so
//! that a -1 in `t` stands for the same size. A 0 in `t` copies a size of what comes in between, and then both stay.
//! Flatten, Squeeze and Unsqueeze before a Reshape go as well.

use midtread_graph::{Graph, Model};

use crate::{
    error::Error,
    prepare::{Ctx, PassDef},
    view::View,
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "merge_reshapes",
    summary: "a Reshape takes the input of a Reshape, Flatten, Squeeze or Unsqueeze before it",
    is_default: false,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    let graph = &mut model.graph;
    let view = View::new(graph);
    for i in 0..graph.nodes.len() {
        let Some(first) = before(graph, &view, i) else { continue };
        let label = graph.label(&graph.nodes[i]).to_owned();
        let what = format!("takes the input of `{}`", graph.label(&graph.nodes[first]));
        graph.nodes[i].inputs[0] = graph.nodes[first].input(0);
        ctx.change(&label, what);
    }
    Ok(())
}

fn before(graph: &Graph, view: &View, i: usize) -> Option<usize> {
    let node = &graph.nodes[i];
    let first = view.producer(node.input(0)?)?;
    let before = &graph.nodes[first];
    let only_sizes = ["Reshape", "Flatten", "Squeeze", "Unsqueeze"].iter().any(|op| before.is(op));
    if !node.is("Reshape") || !only_sizes {
        return None;
    }
    before.input(0)?;
    let shape = view.constant(graph, node.input(1)?)?.to_vec::<i64>().ok()?;
    let copies = node.int("allowzero").unwrap_or(0) == 0 && shape.contains(&0);
    (!copies).then_some(first)
}
