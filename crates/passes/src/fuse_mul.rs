//! Multiplication and division by constants per channel go into the weights before them.
//!
//! `Conv(x, W, b) * k` becomes `Conv(x, W * k, b * k)`, and the same for ConvTranspose, Gemm and MatMul, and for `/`.
//! Each weight is rounded once more than before: outputs differ by rounding alone.

use midtread_graph::{Graph, Model, Rewrite};

use crate::{
    error::Error,
    fuse::{Linear, Refusal, all_finite, unmet},
    prepare::{Ctx, PassDef},
    view::View,
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "fuse_mul",
    summary: "multiplication by constants per channel goes into the weights before it",
    is_default: true,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    let graph = &mut model.graph;
    let mut view = View::new(graph);
    let mut rewrite = Rewrite::default();
    for i in 0..graph.nodes.len() {
        match fused(graph, &view, i) {
            Ok((linear, weight, bias)) => {
                let out = graph.nodes[i].output(0).expect("checked");
                let at = graph.label(&graph.nodes[linear.node]).to_owned();
                let what = format!("took in `{}`", graph.label(&graph.nodes[i]));
                linear.replace(graph, &mut view, Some(weight), bias, out);
                rewrite.remove(i);
                ctx.change(&at, what);
            }
            Err(None) => {}
            Err(Some((at, because))) => ctx.skip(&at, because),
        }
    }
    rewrite.apply(graph);
    Ok(())
}

type Fused = (Linear, Vec<f32>, Option<Vec<f32>>);

fn fused(graph: &Graph, view: &View, i: usize) -> Result<Fused, Refusal> {
    let node = &graph.nodes[i];
    let is_mul = node.is("Mul");
    if !is_mul && !node.is("Div") {
        return Err(None);
    }
    let ([Some(a), Some(b)], Some(_)) = (&node.inputs[..], node.output(0)) else {
        return Err(None);
    };
    // Only a product may have its constant first.
    let (x, c) = match (view.constant(graph, *a), view.constant(graph, *b)) {
        (None, Some(c)) => (*a, c),
        (Some(c), None) if is_mul => (*b, c),
        _ => return Err(None),
    };
    let linear = Linear::before(graph, view, x, i, &["Conv", "ConvTranspose", "Gemm", "MatMul"])?;
    let label = graph.label(node);
    let k = linear.per_channel(c).map_err(|because| unmet(label, because))?;
    let f = |w: f32, k: f32| if is_mul { w * k } else { w / k };
    let weight = linear.scaled(&k, f);
    let bias: Option<Vec<f32>> =
        linear.bias.as_ref().map(|bias| bias.iter().zip(&k).map(|(&b, &k)| f(b, k)).collect());
    if !all_finite(&weight) || !bias.as_deref().is_none_or(all_finite) {
        return Err(unmet(label, "a weight would not be finite"));
    }
    Ok((linear, weight, bias))
}
