//! `x * HardSigmoid(x)` and `x * clip(x + 3, 0, 6) / 6` become `HardSwish`, from operator set 14 on.
//!
//! Not a default: integer kernels have the parts (a clamp, a product of two tensors) and not the whole. The results differ
//! by rounding alone.

use midtread_graph::{Model, ValueId};

use crate::{
    error::Error,
    pattern::{Found, Input, Pattern, exactly, fuse},
    prepare::{Ctx, PassDef},
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "fuse_hard_swish",
    summary: "x * clip(x + 3, 0, 6) / 6 becomes HardSwish (operator set 14)",
    is_default: false,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    if model.opset("").is_none_or(|opset| opset < 14) {
        return Ok(());
    }
    fuse(model, ctx, hard_swish)
}

fn hard_swish(pattern: &Pattern<'_>, i: usize) -> Option<Found> {
    let node = &pattern.graph.nodes[i];
    let y = node.output(0)?;
    if !node.is("Mul") && !node.is("Div") {
        return None;
    }
    let (gate, x, _) = pattern.probe(|| {
        let (candidates, _) = pattern.factors(y, &|_| false);
        candidates.iter().find_map(|&id| gate_of(pattern, id))
    })?;
    let (_, _, sixth) = gate_of(pattern, gate)?;
    let (factors, product) = pattern.factors(y, &|id| id == x || id == gate);
    let mut both = [x, gate];
    both.sort_unstable();
    if factors != both || !exactly(product, sixth) || !pattern.is_float(x) {
        return None;
    }
    let inputs = vec![Input::Value(x)];
    Some(Found { op_type: "HardSwish", domain: "", inputs, attrs: Vec::new(), last: i })
}

/// A factor that is one of the two gates: itself, its `x`, and what the constant factors must come to.
fn gate_of(pattern: &Pattern<'_>, id: ValueId) -> Option<(ValueId, ValueId, f64)> {
    let whole = || Some((id, hard_sigmoid(pattern, id)?, 1.0));
    let clip = || Some((id, clipped(pattern, id)?, 1.0 / 6.0));
    pattern.attempt(whole).or_else(|| pattern.attempt(clip))
}

/// The `x` of `HardSigmoid(x)` with the slope 1/6.
fn hard_sigmoid(pattern: &Pattern<'_>, id: ValueId) -> Option<ValueId> {
    let node = pattern.made_by(id, "HardSigmoid")?;
    let is_it = exactly(node.float("alpha").unwrap_or(0.2), 1.0 / 6.0)
        && node.float("beta").unwrap_or(0.5) == 0.5;
    node.input(0).filter(|_| is_it)
}

/// The `x` of `clip(x + 3, 0, 6)`.
fn clipped(pattern: &Pattern<'_>, id: ValueId) -> Option<ValueId> {
    let node = pattern.made_by(id, "Clip")?;
    let is_it = pattern.scalar(node.input(1)?)? == 0.0 && pattern.scalar(node.input(2)?)? == 6.0;
    let (x, three) = pattern.shifted(node.input(0)?)?;
    (is_it && three == 3.0).then_some(x)
}
