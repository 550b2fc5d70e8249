//! Sums of two tensors of codes.

use super::Bytes;
use super::lanes::{Lanes, N, Scalar};
use crate::par;
use crate::variant::{self, Isa, Variant, VariantInfo};

/// `code = clamp(round(a * factors[0] + b * factors[1] + offset), lo, hi)`, where `a` and `b` are codes.
///
/// For `y = a + b` the factors are `scale_a / scale_y` and `scale_b / scale_y`, and the offset is
/// `zero_point_y - (factors[0] * zero_point_a + factors[1] * zero_point_b)`: ONNX Runtime's QLinearAdd.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Add {
    /// Of the two inputs.
    pub factors: [f32; 2],
    /// Added last.
    pub offset: f32,
    /// The least code.
    pub lo: f32,
    /// The greatest.
    pub hi: f32,
}

type Run = fn(&Add, Bytes, Bytes, &mut [u8]);

/// Fastest first. All give the same bits.
static VARIANTS: &[Variant<Run>] = &[
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx512",
        Isa::Avx512,
        variant::has_avx512,
        // SAFETY: `Variant::get` hands this out only when `has_avx512` has found the features.
        |add, a, b, y| unsafe { avx512(add, a, b, y) },
    ),
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `Variant::get` hands this out only when `has_avx2` has found the features.
    Variant::new("avx2", Isa::Avx2, variant::has_avx2, |add, a, b, y| unsafe {
        avx2(add, a, b, y)
    }),
    Variant::scalar(|add, a, b, y| run(Scalar, add, a, b, y)),
];

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(add: &Add, a: Bytes, b: Bytes, y: &mut [u8]) {
    run(super::lanes::Avx2::new(), add, a, b, y);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512(add: &Add, a: Bytes, b: Bytes, y: &mut [u8]) {
    run(super::lanes::Avx512::new(), add, a, b, y);
}

pub(super) fn describe() -> Vec<VariantInfo> {
    variant::describe("quantized::add", VARIANTS)
}

/// The sum of two tensors of the same elements.
///
/// # Panics
///
/// When they are not as many.
pub fn add(add: &Add, a: Bytes, b: Bytes, y: &mut [u8]) {
    assert_eq!([a.data.len(), b.data.len()], [y.len(); 2], "as many elements of each");
    let kernel = variant::select(VARIANTS);
    par::for_each_chunk(y, 64, 16.0, |start, y| {
        let part = |x: Bytes<'_>| start..start + y.len().min(x.data.len() - start);
        let (pa, pb) = (part(a), part(b));
        let a = Bytes { data: &a.data[pa], ..a };
        let b = Bytes { data: &b.data[pb], ..b };
        kernel(add, a, b, y);
    });
}

#[inline(always)]
fn run<L: Lanes>(l: L, add: &Add, a: Bytes, b: Bytes, y: &mut [u8]) {
    let whole = y.len() / N * N;
    for at in (0..whole).step_by(N) {
        let codes = lanes(l, add, a, &a.data[at..], b, &b.data[at..]);
        l.store_bytes(&mut y[at..], codes);
    }
    if whole < y.len() {
        let mut longer = [[0; 16]; 3];
        let n = y.len() - whole;
        longer[0][..n].copy_from_slice(&a.data[whole..]);
        longer[1][..n].copy_from_slice(&b.data[whole..]);
        let codes = lanes(l, add, a, &longer[0], b, &longer[1]);
        l.store_bytes(&mut longer[2], codes);
        y[whole..].copy_from_slice(&longer[2][..n]);
    }
}

#[inline(always)]
fn lanes<L: Lanes>(l: L, add: &Add, a: Bytes, a_data: &[u8], b: Bytes, b_data: &[u8]) -> L::I {
    let load = |x: Bytes<'_>, data| {
        l.to_f32(if x.is_signed { l.load_bytes::<true>(data) } else { l.load_bytes::<false>(data) })
    };
    let a = l.mul(load(a, a_data), l.splat_f32(add.factors[0]));
    let b = l.mul(load(b, b_data), l.splat_f32(add.factors[1]));
    let sum = l.add_f32(l.add_f32(a, b), l.splat_f32(add.offset));
    l.round(l.clamp(sum, l.splat_f32(add.lo), l.splat_f32(add.hi)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Every variant's sum, with the variant's name.
    pub(in super::super) fn each_variant(
        add: &Add,
        a: Bytes,
        b: Bytes,
        mut check: impl FnMut(&str, Vec<u8>),
    ) {
        for variant in VARIANTS {
            let Some(kernel) = variant.get() else { continue };
            let mut y = vec![0xAA; a.data.len()];
            kernel(add, a, b, &mut y);
            check(variant.name, y);
        }
    }
}
