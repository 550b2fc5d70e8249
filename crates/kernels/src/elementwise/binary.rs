//! Functions of two tensors, with ONNX's multidirectional broadcasting.

use crate::autovec::autovec;
use crate::par;
use crate::variant::{self, VariantInfo};

/// A function of two `f32`. The names are ONNX's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is ONNX's operator of that name")]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    /// `x^y` by `libm`, and by multiplication where `y` is one scalar 2 or 3.
    Pow,
    /// NaN where either is NaN.
    Min,
    /// NaN where either is NaN.
    Max,
    /// `if x < 0 { x * slope } else { x }`.
    PRelu,
}

/// What of a run is one value for all of it.
#[derive(Clone, Copy)]
enum Run<'a> {
    Both(&'a [f32], &'a [f32]),
    Left(f32, &'a [f32]),
    Right(&'a [f32], f32),
}

autovec!(VARIANTS, fn(op: BinaryOp, run: Run, y: &mut [f32]) = run_op);

#[inline(always)]
fn run_op(op: BinaryOp, run: Run, y: &mut [f32]) {
    match op {
        BinaryOp::Add => each(run, y, |a, b| a + b),
        BinaryOp::Sub => each(run, y, |a, b| a - b),
        BinaryOp::Mul => each(run, y, |a, b| a * b),
        BinaryOp::Div => each(run, y, |a, b| a / b),
        BinaryOp::Pow => match run {
            Run::Right(_, 2.0) => each(run, y, |a, _| a * a),
            Run::Right(_, 3.0) => each(run, y, |a, _| a * a * a),
            Run::Right(_, 0.5) => each(run, y, |a, _| a.sqrt()),
            _ => each(run, y, libm::powf),
        },
        BinaryOp::Min => each(run, y, |a, b| if a < b || a.is_nan() { a } else { b }),
        BinaryOp::Max => each(run, y, |a, b| if b < a || a.is_nan() { a } else { b }),
        BinaryOp::PRelu => each(run, y, |x, slope| if x < 0.0 { x * slope } else { x }),
    }
}

#[inline(always)]
fn each(run: Run, y: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    match run {
        Run::Both(a, b) => {
            for (y, (a, b)) in y.iter_mut().zip(a.iter().zip(b)) {
                *y = f(*a, *b);
            }
        }
        Run::Left(a, b) => {
            for (y, b) in y.iter_mut().zip(b) {
                *y = f(a, *b);
            }
        }
        Run::Right(a, b) => {
            for (y, a) in y.iter_mut().zip(a) {
                *y = f(*a, b);
            }
        }
    }
}

/// `y = op(a, b)`, `y` of the broadcast shape.
///
/// # Panics
///
/// When a slice has another length than its sizes say, or the shapes do not broadcast.
pub fn binary(
    op: BinaryOp,
    a: &[f32],
    a_dims: &[usize],
    b: &[f32],
    b_dims: &[usize],
    y: &mut [f32],
) {
    let kernel = variant::select(VARIANTS);
    let cost = match op {
        BinaryOp::Pow => 5.0,
        _ => 0.25,
    };
    runs(a, a_dims, b, b_dims, y, cost, |a, b, y| {
        let run = match (a, b) {
            (a, &[b]) => Run::Right(a, b),
            (&[a], b) => Run::Left(a, b),
            (a, b) => Run::Both(a, b),
        };
        kernel(op, run, y);
    });
}

/// ONNX `PRelu`: `slope` broadcasts to `x`.
///
/// # Panics
///
/// As [`binary`].
pub fn prelu(x: &[f32], x_dims: &[usize], slope: &[f32], slope_dims: &[usize], y: &mut [f32]) {
    binary(BinaryOp::PRelu, x, x_dims, slope, slope_dims, y);
}

/// `y = f(a, b)` for any types, `y` of the broadcast shape.
///
/// # Panics
///
/// As [`binary`].
pub fn broadcast_with<A: Copy + Sync, B: Copy + Sync, Y: Send>(
    a: &[A],
    a_dims: &[usize],
    b: &[B],
    b_dims: &[usize],
    y: &mut [Y],
    f: impl Fn(A, B) -> Y + Sync,
) {
    runs(a, a_dims, b, b_dims, y, 1.0, |a, b, y| match (a, b) {
        (a, &[b]) => y.iter_mut().zip(a).for_each(|(y, a)| *y = f(*a, b)),
        (&[a], b) => y.iter_mut().zip(b).for_each(|(y, b)| *y = f(a, *b)),
        (a, b) => y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = f(*a, *b)),
    });
}

/// The shape that two shapes broadcast to: of each dimension, counted from the last, they have the same size or one
/// has 1. `None` where they do not.
pub fn broadcast_dims(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], d: usize| (d + dims.len()).checked_sub(rank).map_or(1, |d| dims[d]);
    (0..rank)
        .map(|d| match (at(a, d), at(b, d)) {
            (a, b) if a == b => Some(a),
            (1, b) => Some(b),
            (a, 1) => Some(a),
            _ => None,
        })
        .collect()
}

/// A dimension of the output and how far one step along it goes in each input; 0 where it broadcasts.
#[derive(Clone, Copy)]
struct Dim {
    size: usize,
    a_step: usize,
    b_step: usize,
}

/// Calls `f` for every run of outputs, with the two inputs for it: as many as the run is long, or one for all of it.
fn runs<A: Sync, B: Sync, Y: Send>(
    a: &[A],
    a_dims: &[usize],
    b: &[B],
    b_dims: &[usize],
    y: &mut [Y],
    cost: f32,
    f: impl Fn(&[A], &[B], &mut [Y]) + Sync,
) {
    assert_eq!(a.len(), a_dims.iter().product::<usize>(), "the first input's elements");
    assert_eq!(b.len(), b_dims.iter().product::<usize>(), "the second input's elements");
    let dims = broadcast_dims(a_dims, b_dims)
        .unwrap_or_else(|| panic!("{a_dims:?} and {b_dims:?} do not broadcast"));
    assert_eq!(y.len(), dims.iter().product::<usize>(), "the output's elements");
    if y.is_empty() {
        return;
    }
    let mut dims = merged(&dims, a_dims, b_dims);
    let inner = dims.pop().unwrap_or(Dim { size: 1, a_step: 0, b_step: 0 });
    // Where a run is cut: one run is worth a thread's while only when long.
    let unit = if dims.is_empty() { 16 } else { inner.size };
    par::for_each_chunk(y, unit, unit as f32 * cost, |start, y| {
        let mut rest = y;
        let mut at = start;
        while !rest.is_empty() {
            let offset = at % inner.size;
            let len = rest.len().min(inner.size - offset);
            let (run, after) = rest.split_at_mut(len);
            rest = after;
            let (mut a_at, mut b_at, mut i) =
                (offset * inner.a_step, offset * inner.b_step, at / inner.size);
            for dim in dims.iter().rev() {
                a_at += i % dim.size * dim.a_step;
                b_at += i % dim.size * dim.b_step;
                i /= dim.size;
            }
            let a = &a[a_at..][..if inner.a_step == 0 { 1 } else { len }];
            let b = &b[b_at..][..if inner.b_step == 0 { 1 } else { len }];
            f(a, b, run);
            at += len;
        }
    });
}

/// The output's dimensions, without those of size 1, and with neighbours made one where both inputs go on from one to
/// the next as the output does.
fn merged(dims: &[usize], a_dims: &[usize], b_dims: &[usize]) -> Vec<Dim> {
    let steps = |own: &[usize]| {
        let mut steps = vec![0; dims.len()];
        let mut step = 1;
        for d in (0..own.len()).rev() {
            if own[d] != 1 {
                steps[d + dims.len() - own.len()] = step;
            }
            step *= own[d];
        }
        steps
    };
    let (a_steps, b_steps) = (steps(a_dims), steps(b_dims));
    let mut merged: Vec<Dim> = Vec::with_capacity(dims.len());
    for (d, &size) in dims.iter().enumerate().filter(|(_, size)| **size != 1) {
        let dim = Dim { size, a_step: a_steps[d], b_step: b_steps[d] };
        match merged.last_mut() {
            Some(last) if last.a_step == dim.a_step * size && last.b_step == dim.b_step * size => {
                *last = Dim { size: last.size * size, ..dim };
            }
            _ => merged.push(dim),
        }
    }
    merged
}

pub(super) fn describe() -> Vec<VariantInfo> {
    variant::describe("elementwise::binary", VARIANTS)
}
