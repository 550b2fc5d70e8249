//! Nodes whose output is their input, bit for bit, go.
//!
//! `Identity`, `Dropout` outside of training, `Cast` to the same type, `Transpose` that keeps the order, `Reshape`
//! and `Expand` to the same sizes, `Pad` by nothing, `Concat`, `Sum`, `Max`, `Min` and `Mean` of one tensor, and
//! arithmetic with a constant that changes nothing: `x * 1`, `x / 1`, `x - 0`. Not `x + 0`: it turns -0.0 into 0.0.

use midtread_graph::{DataType, Dim, Graph, Model, Node, Rewrite, Tensor, Type, ValueId};

use crate::{
    error::Error,
    prepare::{Ctx, PassDef},
    view::View,
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "eliminate_identity",
    summary: "nodes whose output is their input go",
    is_default: true,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    let opset = model.opset("").unwrap_or(1);
    let graph = &mut model.graph;
    let mut view = View::new(graph);
    // What stands for a value from here on.
    let mut map: Vec<Option<ValueId>> = vec![None; graph.values().len()];
    let mut rewrite = Rewrite::default();
    for i in 0..graph.nodes.len() {
        for id in graph.nodes[i].inputs.iter_mut().flatten() {
            *id = resolve(&map, *id);
        }
        let node = &graph.nodes[i];
        if !is_identity(graph, &view, node, opset) {
            continue;
        }
        let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { continue };
        let label = graph.label(node).to_owned();
        if view.links.is_captured(y) {
            ctx.skip(&label, "a subgraph uses its output by name");
            continue;
        }
        if !view.links.is_output(y) {
            if graph.value(x).ty.is_none() && view.constant(graph, x).is_none() {
                graph.value_mut(x).ty = graph.value(y).ty.clone();
            }
            map[y.idx()] = Some(x);
            rewrite.remove(i);
            ctx.change(&label, "is gone: its output is its input");
            continue;
        }
        // The output's name stays: the node before makes it under that name.
        let Some(producer) = view.producer(x) else {
            ctx.skip(&label, "it hands an input or a constant on to an output of the graph");
            continue;
        };
        if view.links.is_output(x) || view.links.is_captured(x) {
            ctx.skip(&label, "its input is needed under its own name, too");
            continue;
        }
        let outputs = &mut graph.nodes[producer].outputs;
        outputs.iter_mut().filter(|id| **id == Some(x)).for_each(|id| *id = Some(y));
        view.set_producer(y, x, producer);
        map[x.idx()] = Some(y);
        rewrite.remove(i);
        ctx.change(&label, "is gone: its output is its input");
    }
    if !rewrite.is_empty() {
        for node in &mut graph.nodes {
            for id in node.inputs.iter_mut().flatten() {
                *id = resolve(&map, *id);
            }
        }
    }
    rewrite.apply(graph);
    Ok(())
}

/// Follows the map to its end. It has no cycle: a value is entered when its one maker, or the node behind, goes.
fn resolve(map: &[Option<ValueId>], mut id: ValueId) -> ValueId {
    while let Some(next) = map[id.idx()] {
        id = next;
    }
    id
}

fn is_identity(graph: &Graph, view: &View, node: &Node, opset: i64) -> bool {
    if !midtread_graph::model::canonical_domain(&node.domain).is_empty() {
        return false;
    }
    let Some(x) = node.input(0) else { return false };
    let constant = |i: usize| view.constant(graph, node.input(i)?);
    let others_unused = node.outputs.iter().skip(1).flatten().all(|&id| is_unused(view, id));
    match node.op_type.as_str() {
        "Identity" => true,
        "Dropout" => {
            // Before version 7 an attribute says whether this is training; since 12 an input does.
            let is_inference = match opset {
                ..=6 => node.int("is_test").unwrap_or(0) != 0,
                7..=11 => true,
                _ => match node.input(2) {
                    None => true,
                    Some(_) => constant(2).is_some_and(|t| t.as_bytes() == [0]),
                },
            };
            is_inference && others_unused
        }
        "Cast" => {
            let to = node.int("to").and_then(|to| DataType::from_onnx(i32::try_from(to).ok()?));
            to.is_some() && to == graph.type_of(x).and_then(|ty| ty.elem())
        }
        "Transpose" => {
            node.ints("perm").is_some_and(|perm| perm.iter().copied().eq(0..perm.len() as i64))
        }
        "Reshape" | "Expand" => same_dims(graph, x, node.output(0)),
        "Pad" => {
            let pads = match opset {
                ..=10 => node.ints("pads").or(node.ints("paddings")).map(<[i64]>::to_vec),
                _ => constant(1).and_then(|t| t.to_vec().ok()),
            };
            pads.is_some_and(|pads| pads.iter().all(|&p| p == 0))
        }
        "Concat" | "Sum" | "Max" | "Min" | "Mean" => node.inputs.len() == 1,
        "Mul" => is_neutral(graph, view, node, 1.0),
        "Div" => is_neutral(graph, view, node, 1.0),
        "Sub" => is_neutral(graph, view, node, 0.0),
        _ => false,
    }
}

fn is_unused(view: &View, id: ValueId) -> bool {
    view.links.consumers(id).is_empty() && !view.links.is_output(id) && !view.links.is_captured(id)
}

/// Whether all sizes are known to be the same: equal numbers, or equal expressions.
fn same_dims(graph: &Graph, x: ValueId, y: Option<ValueId>) -> bool {
    let dims = |id: ValueId| graph.type_of(id).and_then(|ty: Type| ty.dims().map(<[Dim]>::to_vec));
    match (dims(x), y.and_then(dims)) {
        (Some(x), Some(y)) => x == y && !x.contains(&Dim::Unknown),
        _ => false,
    }
}

/// Whether input 1 is a constant all of whose elements are `neutral`, and does not make the result larger than
/// input 0.
fn is_neutral(graph: &Graph, view: &View, node: &Node, neutral: f32) -> bool {
    let [Some(x), Some(c)] = node.inputs[..] else { return false };
    let Some(constant) = view.constant(graph, c) else { return false };
    let Some(rank) = graph.type_of(x).and_then(|ty| ty.dims().map(<[Dim]>::len)) else {
        return false;
    };
    let fits = constant.dims().len() <= rank && constant.dims().iter().all(|&d| d == 1);
    fits && equals(constant, neutral)
}

fn equals(constant: &Tensor, value: f32) -> bool {
    match constant.dtype() {
        DataType::Float => {
            constant.to_vec::<f32>().is_ok_and(|v| v.iter().all(|x| x.to_bits() == value.to_bits()))
        }
        DataType::Int64 => {
            constant.to_vec::<i64>().is_ok_and(|v| v.iter().all(|&x| x == value as i64))
        }
        DataType::Int32 => {
            constant.to_vec::<i32>().is_ok_and(|v| v.iter().all(|&x| x == value as i32))
        }
        _ => false,
    }
}
