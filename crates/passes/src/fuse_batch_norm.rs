//! `BatchNormalization` after a convolution or a matrix product goes into its weights and bias.
//!
//! `BatchNormalization(Conv(x, W, b))` becomes `Conv(x, W', b')`, where for each output channel
//!
//! ```text
//! k = gamma / sqrt(var + epsilon)      W' = k * W      b' = k * (b - mean) + beta
//! ```
//!
//! in float32 and in this order, which is ONNX Runtime's: ranges calibrated on the two programs' prepared models
//! agree to the rounding of the convolutions. Outputs differ from the unfused model's by rounding alone, some units
//! in the last place of the largest term of the sum.
//!
//! A `MatMul` has no bias: one of two matrices becomes a `Gemm`, which has. A batch of products is left alone, for
//! the channels of the normalization (axis 1) are not the columns of the product there.

use midtread_graph::{Graph, Model, Rewrite};

use crate::{
    error::Error,
    fuse::{Linear, Refusal, all_finite, floats, unmet},
    prepare::{Ctx, PassDef},
    view::View,
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "fuse_batch_norm",
    summary: "`BatchNormalization` goes into the weights of the Conv, ConvTranspose, Gemm or MatMul before it",
    is_default: true,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    let opset = model.opset("").unwrap_or(1);
    let graph = &mut model.graph;
    let mut view = View::new(graph);
    let mut rewrite = Rewrite::default();
    for i in 0..graph.nodes.len() {
        match fused(graph, &view, i, opset) {
            Ok(fused) => {
                let out = graph.nodes[i].output(0).expect("checked");
                let at = graph.label(&graph.nodes[fused.linear.node]).to_owned();
                let what = format!("took in `{}`", graph.label(&graph.nodes[i]));
                fused.linear.replace(graph, &mut view, Some(fused.weight), Some(fused.bias), out);
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

struct Fused {
    linear: Linear,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

fn fused(graph: &Graph, view: &View, i: usize, opset: i64) -> Result<Fused, Refusal> {
    let node = &graph.nodes[i];
    if !node.is("BatchNormalization") {
        return Err(None);
    }
    let label = graph.label(node);
    let [Some(x), Some(gamma), Some(beta), Some(mean), Some(var)] = node.inputs[..] else {
        return Err(None);
    };
    node.output(0).ok_or(None)?;
    let is_training = match opset {
        ..=6 => node.int("is_test").unwrap_or(0) == 0,
        7..=13 => node.outputs.iter().skip(1).any(Option::is_some),
        _ => node.int("training_mode").unwrap_or(0) != 0,
    };
    if is_training || node.outputs.iter().skip(1).any(Option::is_some) {
        return Err(unmet(label, "it is in training mode"));
    }
    if opset < 9 && node.int("spatial").is_some_and(|spatial| spatial != 1) {
        return Err(unmet(label, "it does not normalize per channel"));
    }
    let linear = Linear::before(graph, view, x, i, &["Conv", "ConvTranspose", "Gemm", "MatMul"])?;
    if graph.nodes[linear.node].is("MatMul") {
        if opset < 7 {
            return Err(unmet(label, "Gemm before operator set 7 takes no bias per channel"));
        }
        // The normalized axis is 1, which is the product's last, the one with its columns, in a matrix alone.
        if !linear.is_of_matrices() {
            return Err(unmet(label, "the MatMul before it is not known to be of two matrices"));
        }
    }
    let parameter = |id| {
        let name = graph.value_name(id);
        let tensor = view.constant(graph, id).ok_or_else(|| unmet(name, "it is not constant"))?;
        let values = floats(tensor).ok_or_else(|| unmet(name, "it is not float32"))?;
        if values.len() != linear.n_channels {
            return Err(unmet(name, "it does not have one value per channel"));
        }
        Ok(values)
    };
    let (gamma, beta, mean, var) =
        (parameter(gamma)?, parameter(beta)?, parameter(mean)?, parameter(var)?);
    let epsilon = node.float("epsilon").unwrap_or(1e-5);

    let k: Vec<f32> =
        gamma.iter().zip(&var).map(|(gamma, var)| gamma / (var + epsilon).sqrt()).collect();
    if !all_finite(&k) {
        return Err(unmet(label, "its scale is not finite for some channel"));
    }
    let weight = linear.scaled(&k, |w, k| w * k);
    let bias: Vec<f32> = (0..linear.n_channels)
        .map(|c| (linear.bias.as_ref().map_or(0.0, |b| b[c]) - mean[c]) * k[c] + beta[c])
        .collect();
    if !all_finite(&weight) || !all_finite(&bias) {
        return Err(unmet(label, "a weight would not be finite"));
    }
    Ok(Fused { linear, weight, bias })
}
