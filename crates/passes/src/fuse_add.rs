//! Addition and subtraction of constants per channel go into the bias before them.
//!
//! `Conv(x, W, b) + c` becomes `Conv(x, W, b + c)`, and the same for ConvTranspose and Gemm, and for `- c`. The bias is
//! rounded once more than before, and where it is added decides the last bits: outputs differ by rounding alone.
//! `MatMul` has no bias; `MatMul` and `Add` stay as they are, which is the form quantizers look for.

use midtread_graph::{Graph, Model, Rewrite};

use crate::{
    error::Error,
    fuse::{Linear, Refusal, all_finite, unmet},
    prepare::{Ctx, PassDef},
    view::View,
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "fuse_add",
    summary: "addition of constants per channel goes into the bias of the Conv, ConvTranspose or Gemm before it",
    is_default: true,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    let graph = &mut model.graph;
    let mut view = View::new(graph);
    let mut rewrite = Rewrite::default();
    for i in 0..graph.nodes.len() {
        match fused(graph, &view, i) {
            Ok((linear, bias)) => {
                let out = graph.nodes[i].output(0).expect("checked");
                let at = graph.label(&graph.nodes[linear.node]).to_owned();
                let what = format!("took in `{}`", graph.label(&graph.nodes[i]));
                linear.replace(graph, &mut view, None, Some(bias), out);
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

fn fused(graph: &Graph, view: &View, i: usize) -> Result<(Linear, Vec<f32>), Refusal> {
    let node = &graph.nodes[i];
    let is_add = node.is("Add");
    if !is_add && !node.is("Sub") {
        return Err(None);
    }
    let ([Some(a), Some(b)], Some(_)) = (&node.inputs[..], node.output(0)) else {
        return Err(None);
    };
    // Only a sum may have its constant first.
    let (x, c) = match (view.constant(graph, *a), view.constant(graph, *b)) {
        (None, Some(c)) => (*a, c),
        (Some(c), None) if is_add => (*b, c),
        _ => return Err(None),
    };
    let linear = Linear::before(graph, view, x, i, &["Conv", "ConvTranspose", "Gemm"])?;
    let label = graph.label(node);
    let c = linear.per_channel(c).map_err(|because| unmet(label, because))?;
    let bias: Vec<f32> = (0..linear.n_channels)
        .map(|i| {
            let b = linear.bias.as_ref().map_or(0.0, |bias| bias[i]);
            if is_add { b + c[i] } else { b - c[i] }
        })
        .collect();
    if !all_finite(&bias) {
        return Err(unmet(label, "a bias would not be finite"));
    }
    Ok((linear, bias))
}
