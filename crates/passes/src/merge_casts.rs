//! A Cast after one that loses nothing takes that one's input.
//!
//! `Cast(Cast(x, m), t)` is `Cast(x, t)` where type `m` has every value of `x`'s type: `float16` to `float`, `int32` to
//! `int64`, `bool` to any number. Where `t` is `x`'s own type, nothing remains to be done, and
//! [`eliminate_identity`](crate::eliminate_identity) takes the node out.

use midtread_graph::{DataType, Graph, Model, Node};

use crate::{
    error::Error,
    prepare::{Ctx, PassDef},
    view::View,
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "merge_casts",
    summary: "a Cast takes the input of one before it that loses nothing",
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
    if !node.is("Cast") || !before.is("Cast") {
        return None;
    }
    let from = graph.type_of(before.input(0)?)?.elem()?;
    let target = |node: &Node| DataType::from_onnx(i32::try_from(node.int("to")?).ok()?);
    // What is out of an 8-bit or 4-bit float's range depends on where it comes from.
    let to = target(node).filter(|to| to.n_bits().is_some_and(|n| 8 <= n))?;
    let is_tiny = to.is_float() && to.n_bits() == Some(8);
    (!is_tiny && keeps_all(from, target(before)?)).then_some(first)
}

/// Whether `to` has every value of `from`, and tells them apart.
fn keeps_all(from: DataType, to: DataType) -> bool {
    use DataType::*;
    match from {
        Bool => matches!(
            to,
            Uint8
                | Int8
                | Uint16
                | Int16
                | Int32
                | Int64
                | Uint32
                | Uint64
                | Float16
                | Bfloat16
                | Float
                | Double
        ),
        Uint8 => matches!(
            to,
            Uint16 | Int16 | Int32 | Int64 | Uint32 | Uint64 | Float16 | Bfloat16 | Float | Double
        ),
        Int8 => matches!(to, Int16 | Int32 | Int64 | Float16 | Bfloat16 | Float | Double),
        Uint16 => matches!(to, Int32 | Int64 | Uint32 | Uint64 | Float | Double),
        Int16 => matches!(to, Int32 | Int64 | Float | Double),
        Int32 => matches!(to, Int64 | Double),
        Uint32 => matches!(to, Int64 | Uint64 | Double),
        Float16 | Bfloat16 => matches!(to, Float | Double),
        Float => to == Double,
        _ => false,
    }
}
