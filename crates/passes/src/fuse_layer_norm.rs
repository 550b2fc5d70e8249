//! Normalization over the last axis, as exporters write it out, becomes `LayerNormalization`, from operator set 17 on.
//!
//! ```text
//! d = x - mean(x)        y = d / sqrt(mean(d^2) + epsilon) * gamma + beta
//! ```
//!
//! with the square as a power or a product, `gamma` and `beta` constants as long as the axis; without them it is the same
//! with ones. The results differ by rounding alone.

use midtread_graph::{AttrValue, Dim, Model, Tensor, ValueId};

use crate::{
    error::Error,
    pattern::{Found, Input, Pattern, fuse},
    prepare::{Ctx, PassDef},
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "fuse_layer_norm",
    summary: "a layer normalization written out becomes LayerNormalization (operator set 17)",
    is_default: false,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    if model.opset("").is_none_or(|opset| opset < 17) {
        return Ok(());
    }
    fuse(model, ctx, layer_norm)
}

fn layer_norm(pattern: &Pattern<'_>, i: usize) -> Option<Found> {
    let node = &pattern.graph.nodes[i];
    if !node.is("Div") {
        return None;
    }
    let (d, y) = (node.input(0)?, node.output(0)?);
    let (square, epsilon) = root_of_mean(pattern, node.input(1)?)?;
    if square_of(pattern, square)? != d {
        return None;
    }
    let difference = pattern.made_by(d, "Sub")?;
    let x = difference.input(0)?;
    let mean = pattern.made_by(difference.input(1)?, "ReduceMean")?;
    if mean.input(0) != Some(x) || !pattern.is_over_last(mean, x) || !pattern.is_float(x) {
        return None;
    }
    let Some(Dim::Known(n)) = pattern.dims(x)?.last().cloned() else { return None };
    let (last, gamma, after) = affine(pattern, i, y, x, "Mul");
    let (last, beta, _) = match gamma {
        Some(_) => affine(pattern, last, after, x, "Add"),
        None => (last, None, after),
    };
    let gamma =
        gamma.map_or_else(|| Input::New("scale", Tensor::vector(&vec![1.0_f32; n])), Input::Value);
    let mut inputs = vec![Input::Value(x), gamma];
    inputs.extend(beta.map(Input::Value));
    let attrs = vec![("axis", AttrValue::Int(-1)), ("epsilon", AttrValue::Float(epsilon))];
    Some(Found { op_type: "LayerNormalization", domain: "", inputs, attrs, last })
}

/// The `s` and `e` of `sqrt(mean(s) + e)`, the mean over the last axis.
pub(crate) fn root_of_mean(pattern: &Pattern<'_>, id: ValueId) -> Option<(ValueId, f32)> {
    let root = pattern.made_by(id, "Sqrt")?;
    let (mean, epsilon) = pattern.shifted(root.input(0)?)?;
    let mean = pattern.made_by(mean, "ReduceMean")?;
    let square = mean.input(0)?;
    (pattern.is_over_last(mean, square) && 0.0 <= epsilon).then_some((square, epsilon))
}

/// The `d` of `d^2` or `d * d`.
pub(crate) fn square_of(pattern: &Pattern<'_>, id: ValueId) -> Option<ValueId> {
    let power = || {
        let node = pattern.made_by(id, "Pow")?;
        (pattern.scalar(node.input(1)?)? == 2.0).then_some(node.input(0)?)
    };
    let product = || {
        let node = pattern.made_by(id, "Mul")?;
        (node.input(0) == node.input(1)).then_some(node.input(0)?)
    };
    pattern.attempt(power).or_else(|| pattern.attempt(product))
}

/// Whether the one node that uses `y`, which node `i` makes, multiplies by or adds a constant along `x`'s last axis: then
/// that node, the constant and its output.
pub(crate) fn affine(
    pattern: &Pattern<'_>,
    i: usize,
    y: ValueId,
    x: ValueId,
    op_type: &str,
) -> (usize, Option<ValueId>, ValueId) {
    let next = || {
        let (user, node) = pattern.used_by(y, op_type)?;
        let [Some(a), Some(b)] = node.inputs[..] else { return None };
        let constant = if a == y { b } else { a };
        if !pattern.is_along_last(constant, x) {
            return None;
        }
        pattern.take(i);
        Some((user, Some(constant), node.output(0)?))
    };
    next().unwrap_or((i, None, y))
}
