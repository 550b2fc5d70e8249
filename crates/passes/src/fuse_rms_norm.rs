//! Division by the root of the mean square, as exporters write it out, becomes `RMSNormalization`, from operator set 23 on.
//!
//! ```text
//! y = x / sqrt(mean(x^2) + epsilon) * gamma
//! ```
//!
//! with the division as a product with the reciprocal, too. `gamma` is a constant as long as the last axis. The results
//! differ by rounding alone.

use midtread_graph::{AttrValue, Model, ValueId};

use crate::{
    error::Error,
    fuse_layer_norm::{affine, root_of_mean, square_of},
    pattern::{Found, Input, Pattern, fuse},
    prepare::{Ctx, PassDef},
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "fuse_rms_norm",
    summary: "a normalization by the mean square written out becomes RMSNormalization (operator set 23)",
    is_default: false,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    if model.opset("").is_none_or(|opset| opset < 23) {
        return Ok(());
    }
    fuse(model, ctx, rms_norm)
}

fn rms_norm(pattern: &Pattern<'_>, i: usize) -> Option<Found> {
    let node = &pattern.graph.nodes[i];
    let [Some(a), Some(b)] = node.inputs[..] else { return None };
    let (x, root) = match node.op_type.as_str() {
        "Div" => (a, b),
        "Mul" => [(a, b), (b, a)].into_iter().find_map(|(x, inverse)| {
            pattern.attempt(|| Some((x, reciprocal(pattern, inverse)?)))
        })?,
        _ => return None,
    };
    let (square, epsilon) = root_of_mean(pattern, root)?;
    if square_of(pattern, square)? != x || !pattern.is_float(x) {
        return None;
    }
    let (last, gamma, _) = affine(pattern, i, node.output(0)?, x, "Mul");
    let inputs = vec![Input::Value(x), Input::Value(gamma?)];
    let attrs = vec![("axis", AttrValue::Int(-1)), ("epsilon", AttrValue::Float(epsilon))];
    Some(Found { op_type: "RMSNormalization", domain: "", inputs, attrs, last })
}

/// The `r` of `1 / r`.
fn reciprocal(pattern: &Pattern<'_>, id: ValueId) -> Option<ValueId> {
    pattern.attempt(|| pattern.made_by(id, "Reciprocal")?.input(0)).or_else(|| {
        pattern.attempt(|| {
            let node = pattern.made_by(id, "Div")?;
            (pattern.scalar(node.input(0)?)? == 1.0).then_some(node.input(1)?)
        })
    })
}
