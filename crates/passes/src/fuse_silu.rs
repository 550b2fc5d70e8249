//! `x * Sigmoid(alpha * x)` becomes `Swish`, from operator set 24 on.
//!
//! Not a default: few runtimes know the operator yet, and integer kernels have a table for Sigmoid. The results differ by
//! rounding alone.

use midtread_graph::{AttrValue, Model};

use crate::{
    error::Error,
    pattern::{Found, Input, Pattern, fuse},
    prepare::{Ctx, PassDef},
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "fuse_silu",
    summary: "x * Sigmoid(alpha x) becomes Swish (operator set 24)",
    is_default: false,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    if model.opset("").is_none_or(|opset| opset < 24) {
        return Ok(());
    }
    fuse(model, ctx, silu)
}

fn silu(pattern: &Pattern<'_>, i: usize) -> Option<Found> {
    let node = &pattern.graph.nodes[i];
    let [Some(a), Some(b)] = node.inputs[..] else { return None };
    if !node.is("Mul") {
        return None;
    }
    let (x, alpha) = [(a, b), (b, a)].into_iter().find_map(|(x, gate)| {
        pattern.attempt(|| {
            let inner = pattern.made_by(gate, "Sigmoid")?.input(0)?;
            if inner == x {
                return Some((x, 1.0));
            }
            pattern.scaled(inner).filter(|(of, _)| *of == x)
        })
    })?;
    if !pattern.is_float(x) {
        return None;
    }
    let attrs = if alpha == 1.0 { Vec::new() } else { vec![("alpha", AttrValue::Float(alpha))] };
    Some(Found { op_type: "Swish", domain: "", inputs: vec![Input::Value(x)], attrs, last: i })
}
