//! Two transpositions in a row are one.
//!
//! `Transpose(Transpose(x, p), q)` moves axis `p[q[i]]` of `x` to axis `i`. Where the result keeps the order, the node is
//! an identity, and [`eliminate_identity`](crate::eliminate_identity) takes it out.

use midtread_graph::{AttrValue, Graph, Model};

use crate::{
    error::Error,
    prepare::{Ctx, PassDef},
    view::View,
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "merge_transposes",
    summary: "two transpositions in a row are one",
    is_default: false,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    let graph = &mut model.graph;
    let view = View::new(graph);
    for i in 0..graph.nodes.len() {
        let Some((first, perm)) = merged(graph, &view, i) else { continue };
        let label = graph.label(&graph.nodes[i]).to_owned();
        let what = format!("does what `{}` did as well", graph.label(&graph.nodes[first]));
        graph.nodes[i].inputs[0] = graph.nodes[first].input(0);
        graph.nodes[i].set_attr("perm", AttrValue::Ints(perm));
        ctx.change(&label, what);
    }
    Ok(())
}

/// The node before and the order that both make.
fn merged(graph: &Graph, view: &View, i: usize) -> Option<(usize, Vec<i64>)> {
    let node = &graph.nodes[i];
    let first = view.producer(node.input(0)?)?;
    let before = &graph.nodes[first];
    if !node.is("Transpose") || !before.is("Transpose") {
        return None;
    }
    before.input(0)?;
    let (p, q) = (before.ints("perm")?, node.ints("perm")?);
    let at = |&axis: &i64| p.get(usize::try_from(axis).ok()?).copied();
    let perm: Vec<i64> = q.iter().map(at).collect::<Option<_>>()?;
    (p.len() == q.len()).then_some((first, perm))
}
