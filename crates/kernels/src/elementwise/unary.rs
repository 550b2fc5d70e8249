//! Functions of one tensor.

use crate::autovec::autovec;
use crate::par;
use crate::variant::{self, VariantInfo};

use super::math;

/// A function of one `f32`. The names are ONNX's.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is ONNX's operator of that name")]
pub enum UnaryOp {
    Abs,
    Ceil,
    Celu {
        alpha: f32,
    },
    /// `min(max(x, lo), hi)`; NaN stays NaN.
    Clip {
        lo: f32,
        hi: f32,
    },
    Cos,
    Elu {
        alpha: f32,
    },
    Erf,
    Exp,
    Floor,
    Gelu,
    GeluTanh,
    HardSigmoid {
        alpha: f32,
        beta: f32,
    },
    HardSwish,
    LeakyRelu {
        alpha: f32,
    },
    Log,
    Mish,
    Neg,
    Reciprocal,
    /// NaN stays NaN.
    Relu,
    /// To the nearest, ties to even.
    Round,
    Selu {
        alpha: f32,
        gamma: f32,
    },
    Sigmoid,
    Sign,
    /// `x * sigmoid(x)`; ONNX's `Swish` with `alpha` 1.
    Silu,
    Sin,
    Softplus,
    Softsign,
    Sqrt,
    Tan,
    Tanh,
    ThresholdedRelu {
        alpha: f32,
    },
}

autovec!(pub(super) VARIANTS, fn(op: UnaryOp, x: &[f32], y: &mut [f32]) = run);

#[inline(always)]
fn run(op: UnaryOp, x: &[f32], y: &mut [f32]) {
    use UnaryOp::*;
    match op {
        Abs => each(x, y, f32::abs),
        Ceil => each(x, y, f32::ceil),
        Celu { alpha } => each(x, y, |x| {
            let low = alpha * (math::exp(x / alpha) - 1.0);
            if x < 0.0 { low } else { x }
        }),
        Clip { lo, hi } => each(x, y, |x| {
            let x = if x < lo { lo } else { x };
            if hi < x { hi } else { x }
        }),
        Cos => each(x, y, libm::cosf),
        Elu { alpha } => each(x, y, |x| {
            let low = alpha * (math::exp(x) - 1.0);
            if x < 0.0 { low } else { x }
        }),
        Erf => each(x, y, math::erf),
        Exp => each(x, y, math::exp),
        Floor => each(x, y, f32::floor),
        Gelu => each(x, y, math::gelu),
        GeluTanh => each(x, y, math::gelu_tanh),
        HardSigmoid { alpha, beta } => each(x, y, |x| hard_sigmoid(x, alpha, beta)),
        HardSwish => each(x, y, |x| x * hard_sigmoid(x, 1.0 / 6.0, 0.5)),
        LeakyRelu { alpha } => each(x, y, |x| if x < 0.0 { alpha * x } else { x }),
        Log => each(x, y, libm::logf),
        Mish => each(x, y, |x| x * math::tanh(softplus(x))),
        Neg => each(x, y, |x| -x),
        Reciprocal => each(x, y, |x| 1.0 / x),
        Relu => each(x, y, |x| if x < 0.0 { 0.0 } else { x }),
        Round => each(x, y, f32::round_ties_even),
        Selu { alpha, gamma } => each(x, y, |x| {
            let low = gamma * (alpha * math::exp(x) - alpha);
            if x <= 0.0 { low } else { gamma * x }
        }),
        Sigmoid => each(x, y, math::sigmoid),
        Sign => each(x, y, |x| {
            if 0.0 < x {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                x
            }
        }),
        Silu => each(x, y, math::silu),
        Sin => each(x, y, libm::sinf),
        Softplus => each(x, y, softplus),
        Softsign => each(x, y, |x| x / (1.0 + x.abs())),
        Sqrt => each(x, y, f32::sqrt),
        Tan => each(x, y, libm::tanf),
        Tanh => each(x, y, math::tanh),
        ThresholdedRelu { alpha } => each(x, y, |x| if alpha < x { x } else { 0.0 }),
    }
}

#[inline(always)]
fn each(x: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = f(*x);
    }
}

/// `max(0, min(1, alpha * x + beta))`.
#[inline(always)]
fn hard_sigmoid(x: f32, alpha: f32, beta: f32) -> f32 {
    let y = alpha * x + beta;
    let y = if 1.0 < y { 1.0 } else { y };
    if y < 0.0 { 0.0 } else { y }
}

/// `log(1 + e^x)`, without overflow.
#[inline(always)]
fn softplus(x: f32) -> f32 {
    let high = if x < 0.0 { 0.0 } else { x };
    high + libm::log1pf(math::exp(-x.abs()))
}

/// Estimated nanoseconds for an element.
fn cost(op: UnaryOp) -> f32 {
    use UnaryOp::*;
    match op {
        Abs | Clip { .. } | LeakyRelu { .. } | Neg | Relu | HardSigmoid { .. } | HardSwish => 0.2,
        Ceil | Floor | Round | Sign | Sqrt | Reciprocal | Softsign | ThresholdedRelu { .. } => 0.5,
        Cos | Log | Mish | Sin | Softplus | Tan => 10.0,
        _ => 1.0,
    }
}

/// `y[i] = op(x[i])`.
///
/// # Panics
///
/// When the slices differ in length.
pub fn unary(op: UnaryOp, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "the input's and the output's elements");
    let run = variant::select(VARIANTS);
    par::for_each_chunk(y, 16, 16.0 * cost(op), |start, y| run(op, &x[start..][..y.len()], y));
}

/// `x[i] = op(x[i])`.
pub fn unary_in_place(op: UnaryOp, x: &mut [f32]) {
    let run = variant::select(VARIANTS);
    par::for_each_chunk(x, 16, 16.0 * cost(op), |_, x| {
        let mut before = [0.0; 1024];
        for x in x.chunks_mut(1024) {
            let before = &mut before[..x.len()];
            before.copy_from_slice(x);
            run(op, before, x);
        }
    });
}

/// `y[i] = f(x[i])` for any types; the loop runs on several threads where it is long.
///
/// # Panics
///
/// When the slices differ in length.
pub fn map<T: Copy + Sync, U: Send>(x: &[T], y: &mut [U], f: impl Fn(T) -> U + Sync) {
    assert_eq!(x.len(), y.len(), "the input's and the output's elements");
    par::for_each_chunk(y, 16, 16.0, |start, y| {
        for (y, x) in y.iter_mut().zip(&x[start..]) {
            *y = f(*x);
        }
    });
}

pub(super) fn describe() -> Vec<VariantInfo> {
    variant::describe("elementwise::unary", VARIANTS)
}
