//! Sums and products of two tensors of codes, element by element.

use alloc::vec::Vec;
use std::ops::Range;

use midtread_num::requant::SumMultipliers;

use super::lanes::{Lanes, N, Scalar};
use super::{Bytes, Factor, Rule};
use crate::par;
use crate::variant::{self, Isa, Variant, VariantInfo};

/// `code = clamp(round(a * factors[0] + (b * factors[1] + offset)), lo, hi)`, where `a` and `b` are codes and both sums are
/// rounded with their product: ONNX Runtime's QLinearAdd on CPUs with fused multiply-add.
///
/// For `y = a + b` the factors are `scale_a / scale_y` and `scale_b / scale_y`, and the offset is
/// [`midtread_num::requant::sum_factors`]'s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Add {
    /// Of the two inputs.
    pub factors: [f32; 2],
    /// Added first.
    pub offset: f32,
    /// The offset of `b + a`, which is computed where one code of `a` is added to many of `b`.
    pub swapped_offset: f32,
    /// The least code.
    pub lo: f32,
    /// The greatest.
    pub hi: f32,
}

impl Add {
    /// The sum of `b` and `a`.
    fn swapped(self) -> Self {
        let [a, b] = self.factors;
        let (offset, swapped_offset) = (self.swapped_offset, self.offset);
        Self { factors: [b, a], offset, swapped_offset, ..self }
    }
}

/// `code = rule((a - zero_points[0]) * (b - zero_points[1]))`: ONNX Runtime's QLinearMul, where the factor is
/// `scale_a * scale_b / scale_y`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mul {
    /// Of the two inputs.
    pub zero_points: [i32; 2],
    /// From a product to a code.
    pub rule: Rule,
}

/// What is made of two codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pairwise {
    /// Their sum.
    Add(Add),
    /// Their sum without floating point: the multipliers, the zero points of the two, and the output's rule, whose
    /// factor plays no part.
    AddFixed(SumMultipliers, [i32; 2], Rule),
    /// Their product.
    Mul(Mul),
}

type Run = fn(&Pairwise, Bytes, Bytes, &mut [u8]);

/// Fastest first. All give the same bits.
static VARIANTS: &[Variant<Run>] = &[
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx512",
        Isa::Avx512,
        variant::has_avx512,
        // SAFETY: `Variant::get` hands this out only when `has_avx512` has found the features.
        |op, a, b, y| unsafe { avx512(op, a, b, y) },
    ),
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `Variant::get` hands this out only when `has_avx2` has found the features.
    Variant::new("avx2", Isa::Avx2, variant::has_avx2, |op, a, b, y| unsafe { avx2(op, a, b, y) }),
    Variant::scalar(|op, a, b, y| run(Scalar, op, a, b, y)),
];

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(op: &Pairwise, a: Bytes, b: Bytes, y: &mut [u8]) {
    run(super::lanes::Avx2::new(), op, a, b, y);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512(op: &Pairwise, a: Bytes, b: Bytes, y: &mut [u8]) {
    run(super::lanes::Avx512::new(), op, a, b, y);
}

pub(super) fn describe() -> Vec<VariantInfo> {
    variant::describe("quantized::pairwise", VARIANTS)
}

/// What `op` makes of two tensors of the same elements.
///
/// # Panics
///
/// When they are not as many.
pub fn pairwise(op: &Pairwise, a: Bytes, b: Bytes, y: &mut [u8]) {
    assert_eq!([a.data.len(), b.data.len()], [y.len(); 2], "as many elements of each");
    let kernel = variant::select(VARIANTS);
    par::for_each_chunk(y, 64, 16.0, |start, y| {
        let part = start..start + y.len();
        kernel(op, a.part(part.clone()), b.part(part), y);
    });
}

/// As [`pairwise`], where a size of 1 of an input stands for any size of the output. All sizes are of one rank.
///
/// # Panics
///
/// When the sizes do not fit each other or the elements.
pub fn pairwise_broadcast(
    op: &Pairwise,
    (a, a_dims): (Bytes, &[usize]),
    (b, b_dims): (Bytes, &[usize]),
    y_dims: &[usize],
    y: &mut [u8],
) {
    let rank = y_dims.len();
    assert_eq!([a_dims.len(), b_dims.len()], [rank; 2], "sizes of one rank");
    let fits = |dims: &[usize]| dims.iter().zip(y_dims).all(|(&d, &n)| d == n || d == 1);
    assert!(fits(a_dims) && fits(b_dims), "{a_dims:?} and {b_dims:?} to {y_dims:?}");
    for (len, dims) in [(a.data.len(), a_dims), (b.data.len(), b_dims), (y.len(), y_dims)] {
        assert_eq!(len, dims.iter().product::<usize>(), "as many elements as sizes {dims:?} say");
    }
    if y.is_empty() {
        return;
    }
    // The innermost dimensions in which each input goes on, or each stands still, are one run.
    let kind = |d: usize| (y_dims[d] != 1).then(|| (a_dims[d] != 1, b_dims[d] != 1));
    let last = (0..rank).rev().find_map(kind).unwrap_or((true, true));
    let outer = (0..rank).rev().find(|&d| kind(d).is_some_and(|k| k != last)).map_or(0, |d| d + 1);
    let run: usize = y_dims[outer..].iter().product();
    let kernel = variant::select(VARIANTS);
    let start_of = |mut i: usize, dims: &[usize]| {
        let (mut at, mut step) = (0, dims[outer..].iter().product::<usize>());
        for d in (0..outer).rev() {
            if dims[d] != 1 {
                at += i % y_dims[d] * step;
            }
            i /= y_dims[d];
            step *= dims[d];
        }
        at
    };
    par::for_each_chunk(y, run, run as f32 / 4.0 + 5.0, |start, y| {
        for (i, y) in y.chunks_exact_mut(run).enumerate() {
            let i = start / run + i;
            let (a_at, b_at) = (start_of(i, a_dims), start_of(i, b_dims));
            match last {
                (true, true) => kernel(op, a.part(a_at..a_at + run), b.part(b_at..b_at + run), y),
                (true, false) => {
                    let b = Bytes { data: &[b.data[b_at]; 64], ..b };
                    for (j, y) in y.chunks_mut(64).enumerate() {
                        let from = a_at + j * 64;
                        kernel(op, a.part(from..from + y.len()), b.part(0..y.len()), y);
                    }
                }
                (false, _) => {
                    let a = Bytes { data: &[a.data[a_at]; 64], ..a };
                    if let Pairwise::Add(add) = op {
                        let op = Pairwise::Add(add.swapped());
                        for (j, y) in y.chunks_mut(64).enumerate() {
                            let from = b_at + j * 64;
                            kernel(&op, b.part(from..from + y.len()), a.part(0..y.len()), y);
                        }
                        continue;
                    }
                    for (j, y) in y.chunks_mut(64).enumerate() {
                        let from = b_at + j * 64;
                        kernel(op, a.part(0..y.len()), b.part(from..from + y.len()), y);
                    }
                }
            }
        }
    });
}

impl<'a> Bytes<'a> {
    /// Some of them.
    fn part(self, range: Range<usize>) -> Bytes<'a> {
        Bytes { data: &self.data[range], ..self }
    }
}

#[inline(always)]
fn run<L: Lanes>(l: L, op: &Pairwise, a: Bytes, b: Bytes, y: &mut [u8]) {
    match op {
        Pairwise::Add(add) => run_with(l, a, b, y, |l, a, b| sums(l, add, a, b)),
        Pairwise::Mul(Mul { zero_points, rule }) => match rule.factor {
            Factor::Float(factor) => {
                let [lo, hi] = rule.codes.map(|code| (code - rule.zero_point) as f32);
                let zeros = zero_points.map(|z| -(z as f32));
                run_with(l, a, b, y, |l, a, b| {
                    // The product of two codes is below 2^17, so exact.
                    let a = l.add_f32(a, l.splat_f32(zeros[0]));
                    let b = l.add_f32(b, l.splat_f32(zeros[1]));
                    let x = l.mul(l.mul(a, b), l.splat_f32(factor));
                    let x = l.clamp(x, l.splat_f32(lo), l.splat_f32(hi));
                    l.add(l.round(x), l.splat(rule.zero_point))
                });
            }
            Factor::Fixed(_) => {
                for (i, y) in y.iter_mut().enumerate() {
                    let acc = (a.value(i) - zero_points[0]) * (b.value(i) - zero_points[1]);
                    *y = rule.code(acc) as u8;
                }
            }
        },
        Pairwise::AddFixed(multipliers, zero_points, rule) => {
            for (i, y) in y.iter_mut().enumerate() {
                let steps = [a.value(i) - zero_points[0], b.value(i) - zero_points[1]];
                let code = multipliers.requantize(steps, rule.zero_point, rule.range);
                *y = code.clamp(rule.codes[0], rule.codes[1]) as u8;
            }
        }
    }
}

/// `f` of the codes as numbers, sixteen at a time.
#[inline(always)]
fn run_with<L: Lanes>(l: L, a: Bytes, b: Bytes, y: &mut [u8], f: impl Fn(L, L::F, L::F) -> L::I) {
    let load = |x: Bytes<'_>, data: &[u8]| {
        l.to_f32(if x.is_signed { l.load_bytes::<true>(data) } else { l.load_bytes::<false>(data) })
    };
    let whole = y.len() / N * N;
    for at in (0..whole).step_by(N) {
        let codes = f(l, load(a, &a.data[at..]), load(b, &b.data[at..]));
        l.store_bytes(&mut y[at..], codes);
    }
    if whole < y.len() {
        let mut longer = [[0; 16]; 3];
        let n = y.len() - whole;
        longer[0][..n].copy_from_slice(&a.data[whole..]);
        longer[1][..n].copy_from_slice(&b.data[whole..]);
        let codes = f(l, load(a, &longer[0]), load(b, &longer[1]));
        l.store_bytes(&mut longer[2], codes);
        y[whole..].copy_from_slice(&longer[2][..n]);
    }
}

#[inline(always)]
fn sums<L: Lanes>(l: L, add: &Add, a: L::F, b: L::F) -> L::I {
    let b = l.mul_add(b, l.splat_f32(add.factors[1]), l.splat_f32(add.offset));
    let sum = l.mul_add(a, l.splat_f32(add.factors[0]), b);
    l.round(l.clamp(sum, l.splat_f32(add.lo), l.splat_f32(add.hi)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Every variant's result, with the variant's name.
    pub(in super::super) fn each_variant(
        op: &Pairwise,
        a: Bytes,
        b: Bytes,
        mut check: impl FnMut(&str, Vec<u8>),
    ) {
        for variant in VARIANTS {
            let Some(kernel) = variant.get() else { continue };
            let mut y = vec![0xAA; a.data.len()];
            kernel(op, a, b, &mut y);
            check(variant.name, y);
        }
    }
}
