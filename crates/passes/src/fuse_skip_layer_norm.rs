//! A sum before a LayerNormalization becomes com.microsoft's `SkipLayerNormalization`, which does both.
//!
//! `LayerNormalization(a + b, gamma, beta)` over the last of three axes, for `a` and `b` of the same sizes; the sum is the
//! operator's fourth output, where something else needs it. Not a default: only ONNX Runtime runs the operator.

use midtread_graph::{AttrValue, Graph, Model, Node, Rewrite, ValueId};

use crate::{
    error::Error,
    fuse::{Refusal, unmet},
    prepare::{Ctx, PassDef},
    view::View,
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "fuse_skip_layer_norm",
    summary: "a sum and a LayerNormalization become ONNX Runtime's SkipLayerNormalization",
    is_default: false,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    let graph = &mut model.graph;
    let view = View::new(graph);
    let mut rewrite = Rewrite::default();
    let mut is_changed = false;
    for i in 0..graph.nodes.len() {
        match fused(graph, &view, i) {
            Ok((add, node)) => {
                let label = graph.label(&graph.nodes[i]).to_owned();
                ctx.change(&label, format!("took in `{}`", graph.label(&graph.nodes[add])));
                // In the place of the sum, which others may need; nothing between the two makes an input.
                graph.nodes[add] = node;
                rewrite.remove(i);
                is_changed = true;
            }
            Err(None) => {}
            Err(Some((at, because))) => ctx.skip(&at, because),
        }
    }
    rewrite.apply(graph);
    if is_changed && model.opset("com.microsoft").is_none() {
        model.set_opset("com.microsoft", 1);
    }
    Ok(())
}

/// The sum, and the node for both.
fn fused(graph: &Graph, view: &View, i: usize) -> Result<(usize, Node), Refusal> {
    let node = &graph.nodes[i];
    if !node.is("LayerNormalization") {
        return Err(None);
    }
    let label = graph.label(node);
    let (Some(sum), Some(gamma), Some(y)) = (node.input(0), node.input(1), node.output(0)) else {
        return Err(None);
    };
    let add = view.producer(sum).filter(|&add| graph.nodes[add].is("Add")).ok_or(None)?;
    let [Some(a), Some(b)] = graph.nodes[add].inputs[..] else { return Err(None) };
    if view.constant(graph, a).is_some() || view.constant(graph, b).is_some() {
        return Err(None);
    }
    let dims = |id: ValueId| graph.type_of(id).and_then(|ty| Some(ty.dims()?.to_vec()));
    if dims(a).is_none() || dims(a) != dims(b) || dims(a).is_some_and(|dims| dims.len() != 3) {
        return Err(unmet(
            label,
            "the two it would add are not known to have the same three sizes",
        ));
    }
    if !matches!(node.int("axis").unwrap_or(-1), -1 | 2) || node.outputs.len() != 1 {
        return Err(unmet(label, "it is not over the last axis alone, or gives its statistics"));
    }
    let constants = [Some(gamma), node.input(2)];
    if constants.iter().flatten().any(|&id| view.constant(graph, id).is_none()) {
        return Err(unmet(label, "its scale or bias is not constant"));
    }
    let is_needed = view.links.only_consumer(sum) != Some(i);
    let mut fused = Node {
        op_type: "SkipLayerNormalization".to_owned(),
        name: node.name.clone(),
        domain: "com.microsoft".to_owned(),
        inputs: vec![Some(a), Some(b), Some(gamma)],
        outputs: vec![Some(y)],
        ..Node::default()
    };
    fused.inputs.extend(node.input(2).map(Some));
    if is_needed {
        fused.outputs.extend([None, None, Some(sum)]);
    }
    let epsilon = AttrValue::Float(node.float("epsilon").unwrap_or(1e-5));
    Ok((add, fused.with_attr("epsilon", epsilon)))
}
