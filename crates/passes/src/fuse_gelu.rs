//! The two forms of Gelu that exporters write out become `Gelu`, from operator set 20 on.
//!
//! ```text
//! 0.5 x (1 + erf(x / sqrt(2)))                                approximate = "none"
//! 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))           approximate = "tanh"
//! ```
//!
//! with the factors in any order, the cube as a power or as products. Constants must be these numbers to the precision of
//! `float32`. The results differ by rounding alone.

use midtread_graph::{AttrValue, Model, ValueId};

use crate::{
    error::Error,
    pattern::{Found, Input, Pattern, exactly, fuse},
    prepare::{Ctx, PassDef},
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "fuse_gelu",
    summary: "0.5 x (1 + erf(x / sqrt 2)), or with tanh, becomes Gelu (operator set 20)",
    is_default: false,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    if model.opset("").is_none_or(|opset| opset < 20) {
        return Ok(());
    }
    fuse(model, ctx, gelu)
}

fn gelu(pattern: &Pattern<'_>, i: usize) -> Option<Found> {
    let node = &pattern.graph.nodes[i];
    let y = node.output(0).filter(|_| node.is("Mul"))?;
    // A product inside a larger one is looked at from the outside.
    if pattern.view.links.only_consumer(y).is_some_and(|user| {
        let user = &pattern.graph.nodes[user];
        user.is("Mul") && pattern.with_scalar(user).is_some()
    }) {
        return None;
    }
    let (gate, x) = pattern.probe(|| {
        let (candidates, _) = pattern.factors(y, &|_| false);
        candidates.iter().find_map(|&gate| Some((gate, one_plus(pattern, gate)?.0)))
    })?;
    let (_, approximate) = one_plus(pattern, gate)?;
    // Again, now that it is known where to stop: `x` may be a product itself.
    let (mut factors, half) = pattern.factors(y, &|id| id == x || id == gate);
    factors.retain(|&id| id != gate);
    if factors != [x] || half != 0.5 || !pattern.is_float(x) {
        return None;
    }
    let attrs = match approximate {
        "none" => Vec::new(),
        _ => vec![("approximate", AttrValue::String(approximate.into()))],
    };
    Some(Found { op_type: "Gelu", domain: "", inputs: vec![Input::Value(x)], attrs, last: i })
}

/// The `x` of `1 + erf(..)` or `1 + tanh(..)`, and the attribute that says which.
fn one_plus(pattern: &Pattern<'_>, id: ValueId) -> Option<(ValueId, &'static str)> {
    pattern.attempt(|| {
        let (inner, one) = pattern.shifted(id)?;
        let erf = || Some((pattern.attempt(|| erf(pattern, inner))?, "none"));
        let tanh = || Some((pattern.attempt(|| tanh(pattern, inner))?, "tanh"));
        erf().or_else(tanh).filter(|_| one == 1.0)
    })
}

/// The `x` of `erf(x / sqrt(2))`.
fn erf(pattern: &Pattern<'_>, id: ValueId) -> Option<ValueId> {
    let (x, factor) = pattern.scaled(pattern.made_by(id, "Erf")?.input(0)?)?;
    exactly(factor, std::f64::consts::FRAC_1_SQRT_2).then_some(x)
}

/// The `x` of `tanh(sqrt(2 / pi) (x + 0.044715 x^3))`, or with `x (1 + 0.044715 x^2)` in the place of the sum.
fn tanh(pattern: &Pattern<'_>, id: ValueId) -> Option<ValueId> {
    let inner = pattern.made_by(id, "Tanh")?.input(0)?;
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let sum = || {
        let (sum, factor) = pattern.scaled(inner)?;
        let [Some(a), Some(b)] = pattern.made_by(sum, "Add")?.inputs[..] else { return None };
        let x = [(a, b), (b, a)]
            .into_iter()
            .find_map(|(x, cube)| pattern.attempt(|| is_power(pattern, cube, x, 3).then_some(x)))?;
        exactly(factor, root).then_some(x)
    };
    let product = || {
        let (factors, factor) = pattern.factors(inner, &|_| false);
        let [a, b] = factors[..] else { return None };
        let x = [(a, b), (b, a)].into_iter().find_map(|(x, sum)| {
            pattern.attempt(|| {
                let (square, one) = pattern.shifted(sum)?;
                (one == 1.0 && is_power(pattern, square, x, 2)).then_some(x)
            })
        })?;
        exactly(factor, root).then_some(x)
    };
    pattern.attempt(sum).or_else(|| pattern.attempt(product))
}

/// Whether `id` is `0.044715 x^n`.
fn is_power(pattern: &Pattern<'_>, id: ValueId, x: ValueId, n: usize) -> bool {
    let (factors, c) = pattern.factors(id, &|id| id == x);
    let is_it = match factors[..] {
        [power] if power != x => pattern
            .attempt(|| {
                let node = pattern.made_by(power, "Pow")?;
                let exponent = pattern.scalar(node.input(1)?)?;
                (node.input(0) == Some(x) && exponent == n as f32).then_some(())
            })
            .is_some(),
        _ => factors == vec![x; n],
    };
    is_it && exactly(c, 0.044715)
}
