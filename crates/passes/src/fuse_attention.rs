//! Scaled dot products with a softmax between them become `Attention`, from operator set 23 on.
//!
//! ```text
//! y = softmax(q k^T * scale + mask) v
//! ```
//!
//! for `q`, `k` and `v` of four dimensions (batch, head, token, channel), `k^T` as a transposition of the last two axes of
//! any order of four, the scale as a factor or divisor of the product or of `q`, and a `mask` of two to four dimensions or
//! none. Not a default: a quantizer sees the two products no more. The results differ by rounding alone.

use midtread_graph::{AttrValue, Model, ValueId};

use crate::{
    error::Error,
    pattern::{Found, Input, Pattern, fuse},
    prepare::{Ctx, PassDef},
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "fuse_attention",
    summary: "softmax(q k^T * scale + mask) v becomes Attention (operator set 23)",
    is_default: false,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    if model.opset("").is_none_or(|opset| opset < 23) {
        return Ok(());
    }
    fuse(model, ctx, attention)
}

fn attention(pattern: &Pattern<'_>, i: usize) -> Option<Found> {
    let node = &pattern.graph.nodes[i];
    if !node.is("MatMul") {
        return None;
    }
    let (p, v) = (node.input(0)?, node.input(1)?);
    let softmax = pattern.made_by(p, "Softmax")?;
    if !matches!(softmax.int("axis").unwrap_or(-1), -1 | 3) {
        return None;
    }
    let scores = softmax.input(0)?;
    let (product, scale, mask) = pattern
        .attempt(|| {
            let add = pattern.made_by(scores, "Add")?;
            let [Some(a), Some(b)] = add.inputs[..] else { return None };
            [(a, b), (b, a)].into_iter().find_map(|(scores, mask)| {
                let (product, scale) = pattern.attempt(|| scaled_product(pattern, scores))?;
                (2..=4).contains(&pattern.rank(mask)?).then_some((product, scale, Some(mask)))
            })
        })
        .or_else(|| {
            let (product, scale) = pattern.attempt(|| scaled_product(pattern, scores))?;
            Some((product, scale, None))
        })?;
    let [q, kt] = product;
    let (q, of_q) = pattern.scaled(q).unwrap_or((q, 1.0));
    let transpose = pattern.made_by(kt, "Transpose")?;
    let k0 = transpose.input(0)?;
    let perm: [usize; 4] =
        transpose.ints("perm")?.iter().map(|&p| p as usize).collect::<Vec<_>>().try_into().ok()?;
    let k = match perm {
        [0, 1, 3, 2] => Input::Value(k0),
        // The order that `k` itself would have.
        [a, b, c, d] => Input::Transposed(k0, [a, b, d, c].map(|p| p as i64).to_vec()),
    };
    let all = [q, kt, v];
    if !all.iter().all(|&id| pattern.is_float(id) && pattern.rank(id) == Some(4)) {
        return None;
    }
    // Products of matrices broadcast over batch and head; the operator does not.
    let same = |axis: usize| {
        let dims = all.map(|id| pattern.dims(id).map(|dims| dims[axis].clone()));
        dims[0] == dims[1] && dims[0] == dims[2] && dims[0] != Some(midtread_graph::Dim::Unknown)
    };
    if !same(0) || !same(1) {
        return None;
    }
    let mut inputs = vec![Input::Value(q), k, Input::Value(v)];
    inputs.extend(mask.map(Input::Value));
    let attrs = vec![("scale", AttrValue::Float(scale * of_q))];
    Some(Found { op_type: "Attention", domain: "", inputs, attrs, last: i })
}

/// The factors and the scale of a product of matrices.
fn scaled_product(pattern: &Pattern<'_>, id: ValueId) -> Option<([ValueId; 2], f32)> {
    let (product, scale) = pattern.scaled(id).unwrap_or((id, 1.0));
    let node = pattern.made_by(product, "MatMul")?;
    Some(([node.input(0)?, node.input(1)?], scale))
}
