//! A Pad with zeros before a convolution goes into the convolution's own padding.
//!
//! `Conv(Pad(x, p, 0), W)` with pads `q` is `Conv(x, W)` with pads `p + q`, for pads that are not negative and lie along
//! the dimensions that the convolution slides over.

use midtread_graph::{AttrValue, Graph, Model};

use crate::{
    error::Error,
    fuse::{Refusal, unmet},
    prepare::{Ctx, PassDef},
    view::View,
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "fuse_pad",
    summary: "a Pad with zeros goes into the padding of the convolution after it",
    is_default: false,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    let opset = model.opset("").unwrap_or(1);
    let graph = &mut model.graph;
    let view = View::new(graph);
    for i in 0..graph.nodes.len() {
        match fused(graph, &view, i, opset) {
            Ok((pad, pads)) => {
                let label = graph.label(&graph.nodes[i]).to_owned();
                let what = format!("took in `{}`", graph.label(&graph.nodes[pad]));
                graph.nodes[i].inputs[0] = graph.nodes[pad].input(0);
                let conv = &mut graph.nodes[i];
                conv.attrs.retain(|attr| attr.name != "auto_pad");
                conv.set_attr("pads", AttrValue::Ints(pads));
                ctx.change(&label, what);
            }
            Err(None) => {}
            Err(Some((at, because))) => ctx.skip(&at, because),
        }
    }
    Ok(())
}

/// The Pad, and the pads of both.
fn fused(graph: &Graph, view: &View, i: usize, opset: i64) -> Result<(usize, Vec<i64>), Refusal> {
    let conv = &graph.nodes[i];
    if !conv.is("Conv") {
        return Err(None);
    }
    let x = conv.input(0).ok_or(None)?;
    let pad = view.producer(x).ok_or(None)?;
    let node = &graph.nodes[pad];
    if !node.is("Pad") || node.input(0).is_none() || opset < 2 {
        return Err(None);
    }
    let label = graph.label(node);
    if node.str("mode").is_some_and(|mode| mode != "constant") {
        return Err(unmet(label, "it does not pad with a constant"));
    }
    if node.input(3).is_some() {
        return Err(unmet(label, "it names its axes"));
    }
    let constant = |k: usize| view.constant(graph, node.input(k)?);
    let pads = match opset {
        ..=10 => node.ints("pads").map(<[i64]>::to_vec),
        _ => constant(1).and_then(|t| t.to_vec::<i64>().ok()),
    };
    let pads = pads.ok_or_else(|| unmet(label, "what it adds is not constant"))?;
    let is_zero = match opset {
        ..=10 => node.float("value").unwrap_or(0.0) == 0.0,
        _ => {
            node.input(2).is_none()
                || constant(2).is_some_and(|t| t.as_bytes().iter().all(|&byte| byte == 0))
        }
    };
    if !is_zero {
        return Err(unmet(label, "it does not pad with zeros"));
    }
    if !matches!(conv.str("auto_pad"), None | Some("NOTSET" | "VALID")) {
        return Err(unmet(label, "the convolution after it pads by itself"));
    }
    let rank = pads.len() / 2;
    if rank < 3
        || pads.iter().any(|&p| p < 0)
        || [0, 1, rank, rank + 1].iter().any(|&k| pads[k] != 0)
    {
        return Err(unmet(
            label,
            "it does more than to add around what the convolution slides over",
        ));
    }
    let own = match conv.str("auto_pad") {
        Some("VALID") => None,
        _ => conv.ints("pads"),
    };
    let own = own.map_or_else(|| vec![0; 2 * rank - 4], <[i64]>::to_vec);
    let added = pads[2..rank].iter().chain(&pads[rank + 2..]);
    if own.len() != 2 * rank - 4 {
        return Err(unmet(label, "the convolution after it has another rank"));
    }
    let sums: Option<Vec<i64>> = own.iter().zip(added).map(|(a, b)| a.checked_add(*b)).collect();
    sums.map(|sums| (pad, sums)).ok_or_else(|| unmet(label, "it pads by too much"))
}
