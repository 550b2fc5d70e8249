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
    let done = match op {
        Pairwise::Add(add) => sums_of_64(add, a, b, y),
        _ => 0,
    };
    let (a, b) = (a.part(done..a.data.len()), b.part(done..b.data.len()));
    run(super::lanes::Avx512::new(), op, a, b, &mut y[done..]);
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
        Pairwise::Add(add) => run_with(l, a, b, y, add),
        Pairwise::Mul(Mul { zero_points, rule }) => match rule.factor {
            Factor::Float(factor) => {
                let [lo, hi] = rule.codes.map(|code| (code - rule.zero_point) as f32);
                let zeros = zero_points.map(|z| -(z as f32));
                let zero_point = rule.zero_point;
                run_with(l, a, b, y, &Products { zeros, factor, lo, hi, zero_point });
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

/// What becomes of codes as numbers. No closure, because that would not be compiled for its caller's instructions.
trait Codes {
    fn codes<L: Lanes>(&self, l: L, a: L::F, b: L::F) -> L::I;
}

impl Codes for Add {
    #[inline(always)]
    fn codes<L: Lanes>(&self, l: L, a: L::F, b: L::F) -> L::I {
        let b = l.mul_add(b, l.splat_f32(self.factors[1]), l.splat_f32(self.offset));
        let sum = l.mul_add(a, l.splat_f32(self.factors[0]), b);
        l.round(l.clamp(sum, l.splat_f32(self.lo), l.splat_f32(self.hi)))
    }
}

struct Products {
    zeros: [f32; 2],
    factor: f32,
    lo: f32,
    hi: f32,
    zero_point: i32,
}

impl Codes for Products {
    #[inline(always)]
    fn codes<L: Lanes>(&self, l: L, a: L::F, b: L::F) -> L::I {
        // The product of two codes is below 2^17, so exact.
        let a = l.add_f32(a, l.splat_f32(self.zeros[0]));
        let b = l.add_f32(b, l.splat_f32(self.zeros[1]));
        let x = l.mul(l.mul(a, b), l.splat_f32(self.factor));
        let x = l.clamp(x, l.splat_f32(self.lo), l.splat_f32(self.hi));
        l.add(l.round(x), l.splat(self.zero_point))
    }
}

/// Sixteen at a time.
#[inline(always)]
fn run_with<L: Lanes>(l: L, a: Bytes, b: Bytes, y: &mut [u8], of: &impl Codes) {
    let whole = y.len() / N * N;
    for at in (0..whole).step_by(N) {
        let codes = of.codes(l, numbers(l, a, &a.data[at..]), numbers(l, b, &b.data[at..]));
        l.store_bytes(&mut y[at..], codes);
    }
    if whole < y.len() {
        let mut longer = [[0; 16]; 3];
        let n = y.len() - whole;
        longer[0][..n].copy_from_slice(&a.data[whole..]);
        longer[1][..n].copy_from_slice(&b.data[whole..]);
        let codes = of.codes(l, numbers(l, a, &longer[0]), numbers(l, b, &longer[1]));
        l.store_bytes(&mut longer[2], codes);
        y[whole..].copy_from_slice(&longer[2][..n]);
    }
}

#[inline(always)]
fn numbers<L: Lanes>(l: L, x: Bytes, data: &[u8]) -> L::F {
    l.to_f32(if x.is_signed { l.load_bytes::<true>(data) } else { l.load_bytes::<false>(data) })
}

/// Sums, 64 at a time: how many. What is left is for [`run`], and all where a number may not be in the range of `i32`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn sums_of_64(add: &Add, a: Bytes, b: Bytes, y: &mut [u8]) -> usize {
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    fn numbers(codes: &[u8; 64], part: usize, is_signed: bool) -> __m512 {
        let codes = &codes.as_chunks::<16>().0[part];
        // SAFETY: sixteen readable bytes; the load takes any alignment.
        let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
        let codes =
            if is_signed { _mm512_cvtepi8_epi32(codes) } else { _mm512_cvtepu8_epi32(codes) };
        _mm512_cvtepi32_ps(codes)
    }

    let [f, g] = add.factors;
    let bound = 255.0 * (f.abs() + g.abs()) + add.offset.abs();
    if bound.is_nan() || 2.0e9 <= bound {
        return 0;
    }
    // Signed codes are made as unsigned ones, 128 greater.
    let moved = if add.lo < 0.0 { 128 } else { 0 };
    let [lo, hi] = [add.lo, add.hi].map(|code| _mm512_set1_epi8((code as i32 + moved) as i8));
    let [factor_a, factor_b] = [f, g].map(|factor| _mm512_set1_ps(factor));
    let offset = _mm512_set1_ps(add.offset);
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let (y, left) = y.as_chunks_mut::<64>();
    let (a_codes, b_codes) = (a.data.as_chunks::<64>().0, b.data.as_chunks::<64>().0);
    let n = 64 * y.len();
    debug_assert_eq!(left.len(), a.data.len() - n, "as many of each");
    for ((y, a_codes), b_codes) in y.iter_mut().zip(a_codes).zip(b_codes) {
        let mut codes = [_mm512_setzero_si512(); 4];
        for (part, codes) in codes.iter_mut().enumerate() {
            let b = _mm512_fmadd_ps(numbers(b_codes, part, b.is_signed), factor_b, offset);
            let sum = _mm512_fmadd_ps(numbers(a_codes, part, a.is_signed), factor_a, b);
            *codes = _mm512_cvtps_epi32(sum);
        }
        let [a, b, c, d] = codes;
        let (low, high) = (_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
        let to_u8 = _mm512_set1_epi16(moved as i16);
        let (low, high) = (_mm512_adds_epi16(low, to_u8), _mm512_adds_epi16(high, to_u8));
        let codes = _mm512_packus_epi16(low, high);
        let codes = _mm512_min_epu8(_mm512_max_epu8(codes, lo), hi);
        let codes = _mm512_xor_si512(codes, _mm512_set1_epi8(moved as i8));
        // Each 128 bits hold four codes of each of the four.
        let codes = _mm512_permutexvar_epi32(order, codes);
        // SAFETY: 64 writable bytes; the store takes any alignment.
        unsafe { _mm512_storeu_si512(y.as_mut_ptr().cast(), codes) };
    }
    n
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
