//! Softmax, normalizations and reductions.
//!
//! A sum along contiguous elements is kept in 16 lanes, element `i` in lane `i % 16`, each lane from front to back,
//! and the lanes are added in pairs at the end ([`sum`]). A sum across rows goes from the first row to the last. So
//! the bits are the same on every CPU and for any number of threads, and the error of a long sum along elements is a
//! 16th of a plain one's.

use crate::autovec::autovec;
use crate::elementwise::math;
use crate::par::{self, Disjoint};
use crate::variant::{self, VariantInfo};

/// Lanes of a sum.
const LANES: usize = 16;

/// Folds `x` in lanes: `f(lane, element)`, then the lanes in pairs.
#[inline(always)]
fn fold(
    x: &[f32],
    start: f32,
    f: impl Fn(f32, f32) -> f32,
    merge: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut lanes = [start; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = f(lanes[i], chunk[i]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane = f(*lane, *x);
    }
    let mut n = LANES / 2;
    while 0 < n {
        for i in 0..n {
            lanes[i] = merge(lanes[i], lanes[i + n]);
        }
        n /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn add(a: f32, b: f32) -> f32 {
    a + b
}

/// The larger, and NaN where either is NaN.
#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if b < a || a.is_nan() { a } else { b }
}

/// The smaller, and NaN where either is NaN.
#[inline(always)]
fn min(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

autovec!(SOFTMAX, fn(x: &[f32], y: &mut [f32], len: usize, log: bool) = softmax_rows);

#[inline(always)]
fn softmax_rows(x: &[f32], y: &mut [f32], len: usize, log: bool) {
    for (x, y) in x.chunks_exact(len).zip(y.chunks_exact_mut(len)) {
        let top = fold(x, f32::NEG_INFINITY, max, max);
        for (y, x) in y.iter_mut().zip(x) {
            *y = math::exp(x - top);
        }
        let total = fold(y, 0.0, add, add);
        if log {
            let log_total = libm::logf(total);
            for (y, x) in y.iter_mut().zip(x) {
                *y = x - top - log_total;
            }
        } else {
            let factor = 1.0 / total;
            for y in y.iter_mut() {
                *y *= factor;
            }
        }
    }
}

/// `e^(x - max) / sum` of every row of `len` elements; the quotient is a product with the sum's reciprocal, as ONNX
/// Runtime's.
///
/// # Panics
///
/// When the slices differ in length or are not whole rows.
pub fn softmax(x: &[f32], len: usize, y: &mut [f32]) {
    softmax_or_log(x, len, false, y);
}

/// `x - max - log(sum e^(x - max))` of every row of `len` elements.
///
/// # Panics
///
/// As [`softmax`].
pub fn log_softmax(x: &[f32], len: usize, y: &mut [f32]) {
    softmax_or_log(x, len, true, y);
}

fn softmax_or_log(x: &[f32], len: usize, log: bool, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "the input's and the output's elements");
    if x.is_empty() {
        return;
    }
    assert_eq!(x.len() % len, 0, "whole rows");
    let run = variant::select(SOFTMAX);
    par::for_each_chunk(y, len, len as f32, |start, y| run(&x[start..][..y.len()], y, len, log));
}

/// What layer normalization does with the rows: their length, `scale`, `bias` and `epsilon`.
#[derive(Clone, Copy)]
struct LayerNorm<'a> {
    scale: &'a [f32],
    bias: Option<&'a [f32]>,
    epsilon: f32,
}

autovec!(LAYER_NORM, fn(norm: LayerNorm, x: &[f32], y: &mut [f32]) = layer_norm_rows);

#[inline(always)]
fn layer_norm_rows(norm: LayerNorm, x: &[f32], y: &mut [f32]) {
    let len = norm.scale.len();
    for (x, y) in x.chunks_exact(len).zip(y.chunks_exact_mut(len)) {
        let mean = fold(x, 0.0, add, add) / len as f32;
        for (y, x) in y.iter_mut().zip(x) {
            *y = x - mean;
        }
        let variance = fold(y, 0.0, |sum, d| d.mul_add(d, sum), add) / len as f32;
        let factor = 1.0 / (variance + norm.epsilon).sqrt();
        match norm.bias {
            Some(bias) => {
                for (y, (scale, bias)) in y.iter_mut().zip(norm.scale.iter().zip(bias)) {
                    *y = *y * factor * scale + bias;
                }
            }
            None => {
                for (y, scale) in y.iter_mut().zip(norm.scale) {
                    *y = *y * factor * scale;
                }
            }
        }
    }
}

/// ONNX `LayerNormalization`, version 17, of every row of `scale.len()` elements:
/// `(x - mean) / sqrt(variance + epsilon) * scale + bias`, the variance from the differences (two passes).
///
/// # Panics
///
/// When the slices are not whole rows or `bias` has another length than `scale`.
pub fn layer_norm(x: &[f32], scale: &[f32], bias: Option<&[f32]>, epsilon: f32, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "the input's and the output's elements");
    assert!(bias.is_none_or(|bias| bias.len() == scale.len()), "a bias for each scale");
    if x.is_empty() {
        return;
    }
    assert_eq!(x.len() % scale.len(), 0, "whole rows");
    let run = variant::select(LAYER_NORM);
    let len = scale.len();
    par::for_each_chunk(y, len, len as f32 * 0.5, |start, y| {
        run(LayerNorm { scale, bias, epsilon }, &x[start..][..y.len()], y);
    });
}

/// ONNX `InstanceNormalization` of planes of `len` elements, `scale.len()` channels after each other.
///
/// # Panics
///
/// When `x` is not a whole number of images of `scale.len()` planes, or the lengths of `scale` and `bias` differ.
pub fn instance_norm(
    x: &[f32],
    len: usize,
    scale: &[f32],
    bias: &[f32],
    epsilon: f32,
    y: &mut [f32],
) {
    assert_eq!(x.len(), y.len(), "the input's and the output's elements");
    assert_eq!(scale.len(), bias.len(), "a bias for each scale");
    if x.is_empty() {
        return;
    }
    assert_eq!(x.len() % (len * scale.len()), 0, "whole images");
    par::for_each_chunk(y, len, len as f32, |start, y| {
        for (i, y) in y.chunks_exact_mut(len).enumerate() {
            let x = &x[start + i * len..][..len];
            let channel = (start / len + i) % scale.len();
            let mean = sum(x) / len as f32;
            for (y, x) in y.iter_mut().zip(x) {
                *y = x - mean;
            }
            let variance = sum_squares(y) / len as f32;
            let factor = scale[channel] / (variance + epsilon).sqrt();
            for y in y.iter_mut() {
                *y = *y * factor + bias[channel];
            }
        }
    });
}

/// ONNX `BatchNormalization` for inference: `(x - mean) / sqrt(var + epsilon) * scale + bias` in planes of `len`
/// elements, one for each channel of each image.
///
/// # Panics
///
/// When `x` is not whole images, or the four parameters differ in length.
pub fn batch_norm(x: &[f32], len: usize, params: [&[f32]; 4], epsilon: f32, y: &mut [f32]) {
    let [scale, bias, mean, var] = params;
    let factors = batch_norm_factors(scale, var, epsilon);
    assert_eq!(x.len(), y.len(), "the input's and the output's elements");
    assert!(params.iter().all(|p| p.len() == scale.len()), "four parameters for each channel");
    if x.is_empty() {
        return;
    }
    assert_eq!(x.len() % (len * scale.len()), 0, "whole images");
    par::for_each_chunk(y, len, len as f32 * 0.25, |start, y| {
        for (i, y) in y.chunks_exact_mut(len).enumerate() {
            let c = (start / len + i) % scale.len();
            for (y, x) in y.iter_mut().zip(&x[start + i * len..]) {
                *y = (x - mean[c]) * factors[c] + bias[c];
            }
        }
    });
}

/// What [`batch_norm`] multiplies each channel with: `scale / sqrt(var + epsilon)`.
pub fn batch_norm_factors(scale: &[f32], var: &[f32], epsilon: f32) -> Vec<f32> {
    scale.iter().zip(var).map(|(scale, var)| scale / (var + epsilon).sqrt()).collect()
}

/// The sum of `x` in 16 lanes.
pub fn sum(x: &[f32]) -> f32 {
    variant::select(REDUCE_ROW)(ReduceOp::Sum, x)
}

/// The sum of squares of `x` in 16 lanes.
pub fn sum_squares(x: &[f32]) -> f32 {
    variant::select(REDUCE_ROW)(ReduceOp::SumSquare, x)
}

/// A reduction. The names are ONNX's, without `Reduce`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is ONNX's operator of that name")]
pub enum ReduceOp {
    Sum,
    Mean,
    /// NaN where any is NaN.
    Max,
    /// NaN where any is NaN.
    Min,
    Prod,
    L1,
    L2,
    SumSquare,
    LogSum,
    LogSumExp,
}

impl ReduceOp {
    /// What nothing reduces to.
    fn start(self) -> f32 {
        match self {
            Self::Max => f32::NEG_INFINITY,
            Self::Min => f32::INFINITY,
            Self::Prod => 1.0,
            _ => 0.0,
        }
    }

    /// What is done to the folded value.
    fn finish(self, value: f32, n: usize) -> f32 {
        match self {
            Self::Mean => value / n as f32,
            Self::L2 => value.sqrt(),
            Self::LogSum => libm::logf(value),
            _ => value,
        }
    }
}

autovec!(REDUCE_ROW, fn(op: ReduceOp, x: &[f32]) -> f32 = reduce_row);

#[inline(always)]
fn reduce_row(op: ReduceOp, x: &[f32]) -> f32 {
    let start = op.start();
    let value = match op {
        ReduceOp::Sum | ReduceOp::Mean | ReduceOp::LogSum => fold(x, start, add, add),
        ReduceOp::Max => fold(x, start, max, max),
        ReduceOp::Min => fold(x, start, min, min),
        ReduceOp::Prod => fold(x, start, |a, b| a * b, |a, b| a * b),
        ReduceOp::L1 => fold(x, start, |a, b| a + b.abs(), add),
        ReduceOp::L2 | ReduceOp::SumSquare => fold(x, start, |a, b| b.mul_add(b, a), add),
        ReduceOp::LogSumExp => {
            let top = fold(x, f32::NEG_INFINITY, max, max);
            // An infinite maximum would give inf - inf; the sum is infinite or zero with 0 as well.
            let shift = if top.is_finite() { top } else { 0.0 };
            let total = fold(x, 0.0, |a, b| a + math::exp(b - shift), add);
            libm::logf(total) + shift
        }
    };
    op.finish(value, x.len())
}

autovec!(REDUCE_ACROSS, fn(op: ReduceOp, x: &[f32], y: &mut [f32]) = reduce_across);

/// Folds a row into the row of results.
#[inline(always)]
fn reduce_across(op: ReduceOp, x: &[f32], y: &mut [f32]) {
    #[inline(always)]
    fn each(x: &[f32], y: &mut [f32], f: impl Fn(f32, f32) -> f32) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = f(*y, *x);
        }
    }
    match op {
        ReduceOp::Sum | ReduceOp::Mean | ReduceOp::LogSum => each(x, y, add),
        ReduceOp::Max => each(x, y, max),
        ReduceOp::Min => each(x, y, min),
        ReduceOp::Prod => each(x, y, |a, b| a * b),
        ReduceOp::L1 => each(x, y, |a, b| a + b.abs()),
        ReduceOp::L2 | ReduceOp::SumSquare => each(x, y, |a, b| b.mul_add(b, a)),
        ReduceOp::LogSumExp => unreachable!("computed on columns that were made rows"),
    }
}

/// Reduces the middle dimension of (outer, reduced, inner): `y[o][i] = op over r of x[o][r][i]`.
///
/// A tensor whose reduced dimensions are not neighbours is transposed first.
///
/// # Panics
///
/// When a slice has another length than the sizes say.
pub fn reduce(op: ReduceOp, x: &[f32], [outer, reduced, inner]: [usize; 3], y: &mut [f32]) {
    assert_eq!(x.len(), outer * reduced * inner, "the input's elements");
    assert_eq!(y.len(), outer * inner, "the output's elements");
    if y.is_empty() {
        return;
    }
    if inner == 1 {
        let run = variant::select(REDUCE_ROW);
        par::for_each_chunk(y, 1, reduced as f32 * 0.25, |start, y| {
            for (i, y) in y.iter_mut().enumerate() {
                *y = run(op, &x[(start + i) * reduced..][..reduced]);
            }
        });
        return;
    }
    let run = variant::select(REDUCE_ACROSS);
    let run_row = variant::select(REDUCE_ROW);
    let y = Disjoint::new(y);
    par::for_each_task(outer, x.len() / 4, |o| {
        // SAFETY: each outer index has its own row.
        let y = unsafe { y.slice(o * inner, inner) };
        let x = &x[o * reduced * inner..][..reduced * inner];
        if op == ReduceOp::LogSumExp {
            par::with_scratch(reduced, |column| {
                for (i, y) in y.iter_mut().enumerate() {
                    for (r, c) in column.iter_mut().enumerate() {
                        *c = x[r * inner + i];
                    }
                    *y = run_row(op, column);
                }
            });
            return;
        }
        y.fill(op.start());
        for row in x.chunks_exact(inner) {
            run(op, row, y);
        }
        y.iter_mut().for_each(|y| *y = op.finish(*y, reduced));
    });
}

/// Reduces the middle dimension of (outer, reduced, inner) for any type, from the first to the last.
///
/// # Panics
///
/// As [`reduce`].
pub fn reduce_with<T: Copy, U>(
    x: &[T],
    [outer, reduced, inner]: [usize; 3],
    y: &mut [U],
    start: impl Fn() -> U,
    f: impl Fn(U, T) -> U,
) {
    assert_eq!(x.len(), outer * reduced * inner, "the input's elements");
    assert_eq!(y.len(), outer * inner, "the output's elements");
    for (i, y) in y.iter_mut().enumerate() {
        let first = i / inner * reduced * inner + i % inner;
        *y = (0..reduced).fold(start(), |value, r| f(value, x[first + r * inner]));
    }
}

/// `x / max(sqrt(sum x^2), epsilon)` of every row of `len` elements.
///
/// # Panics
///
/// When the slices differ in length or are not whole rows.
pub fn l2_normalize(x: &[f32], len: usize, epsilon: f32, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "the input's and the output's elements");
    if x.is_empty() {
        return;
    }
    assert_eq!(x.len() % len, 0, "whole rows");
    for (x, y) in x.chunks_exact(len).zip(y.chunks_exact_mut(len)) {
        let norm = sum_squares(x).sqrt().max(epsilon);
        for (y, x) in y.iter_mut().zip(x) {
            *y = x / norm;
        }
    }
}

/// The implementations, for `midtread inspect --cpu`.
pub(crate) fn describe() -> Vec<VariantInfo> {
    [
        variant::describe("norm::softmax", SOFTMAX),
        variant::describe("norm::layer_norm", LAYER_NORM),
        variant::describe("norm::reduce", REDUCE_ROW),
        variant::describe("norm::reduce_across", REDUCE_ACROSS),
    ]
    .concat()
}

#[cfg(test)]
mod tests;
