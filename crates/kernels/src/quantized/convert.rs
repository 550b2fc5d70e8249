//! Codes from numbers, numbers from codes, and codes from codes, shared out to threads.

use alloc::vec::Vec;

use midtread_num::{QParams, QRange};

use crate::autovec::autovec;
use crate::variant::{self, Isa, Variant, VariantInfo};
use crate::{par, quantize};

/// Elements that are a task's least share.
const UNIT: usize = 4096;

/// [`QParams::quantize`] of every element, for a `range` within 0..=255.
///
/// # Panics
///
/// When the slices differ in length, or the type does not hold `range`.
pub fn quantize_u8(x: &[f32], y: &mut [u8], params: QParams, range: QRange) {
    assert_eq!(x.len(), y.len(), "one code a value");
    par::for_each_chunk(y, UNIT, 400.0, |start, y| {
        quantize::quantize_u8(&x[start..start + y.len()], y, params, range);
    });
}

/// [`QParams::quantize`] of every element, for a `range` within -128..=127.
///
/// # Panics
///
/// When the slices differ in length, or the type does not hold `range`.
pub fn quantize_i8(x: &[f32], y: &mut [i8], params: QParams, range: QRange) {
    assert_eq!(x.len(), y.len(), "one code a value");
    par::for_each_chunk(y, UNIT, 400.0, |start, y| {
        quantize::quantize_i8(&x[start..start + y.len()], y, params, range);
    });
}

/// [`QParams::dequantize`] of every element.
///
/// # Panics
///
/// When the slices differ in length.
pub fn dequantize_u8(x: &[u8], y: &mut [f32], params: QParams) {
    assert_eq!(x.len(), y.len(), "one value a code");
    par::for_each_chunk(y, UNIT, 400.0, |start, y| {
        quantize::dequantize_u8(&x[start..start + y.len()], y, params);
    });
}

/// [`QParams::dequantize`] of every element.
///
/// # Panics
///
/// When the slices differ in length.
pub fn dequantize_i8(x: &[i8], y: &mut [f32], params: QParams) {
    assert_eq!(x.len(), y.len(), "one value a code");
    par::for_each_chunk(y, UNIT, 400.0, |start, y| {
        quantize::dequantize_i8(&x[start..start + y.len()], y, params);
    });
}

type Map = fn(&[u8; 256], &[u8], &mut [u8]);

/// Fastest first. All give the same bits.
static MAP: &[Variant<Map>] = &[
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx512_vbmi",
        Isa::Avx512,
        variant::has_avx512_vbmi,
        // SAFETY: `Variant::get` hands this out only when `has_avx512_vbmi` has found the features.
        |table, x, y| unsafe { map_avx512_vbmi(table, x, y) },
    ),
    Variant::scalar(map_one_by_one),
];

/// `y = table[x]`.
///
/// # Panics
///
/// When the slices differ in length.
pub fn map(table: &[u8; 256], x: &[u8], y: &mut [u8]) {
    assert_eq!(x.len(), y.len(), "one code a code");
    let run = variant::select(MAP);
    par::for_each_chunk(y, UNIT, 500.0, |start, y| run(table, &x[start..start + y.len()], y));
}

fn map_one_by_one(table: &[u8; 256], x: &[u8], y: &mut [u8]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = table[usize::from(x)];
    }
}

/// The table in four registers: an instruction looks up 64 codes in two of them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn map_avx512_vbmi(table: &[u8; 256], x: &[u8], y: &mut [u8]) {
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(x: &[u8; 64]) -> __m512i {
        // SAFETY: a register's width of readable bytes; the load takes any alignment.
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }

    let parts = table.as_chunks::<64>().0;
    let (a, b, c, d) = (load(&parts[0]), load(&parts[1]), load(&parts[2]), load(&parts[3]));
    let (x, x_rest) = x.as_chunks::<64>();
    let (y, y_rest) = y.as_chunks_mut::<64>();
    for (y, x) in y.iter_mut().zip(x) {
        let codes = load(x);
        // The two ignore the highest bit, which says which of them is right.
        let low = _mm512_permutex2var_epi8(a, codes, b);
        let high = _mm512_permutex2var_epi8(c, codes, d);
        let codes = _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
        // SAFETY: a register's width of writable bytes; the store takes any alignment.
        unsafe { _mm512_storeu_si512(y.as_mut_ptr().cast(), codes) };
    }
    map_one_by_one(table, x_rest, y_rest);
}

autovec!(INTERLEAVE, fn(planes: [&[u8]; 3], y: &mut [u8]) = interleave_planes);

#[inline(always)]
fn interleave_planes([a, b, c]: [&[u8]; 3], y: &mut [u8]) {
    let pixels = y.as_chunks_mut::<3>().0.iter_mut();
    for (((y, a), b), c) in pixels.zip(a).zip(b).zip(c) {
        *y = [*a, *b, *c];
    }
}

/// Images of three planes to pixels of three channels: a transposition whose loops are too short for the general one.
///
/// # Panics
///
/// When the slices differ in length or are not whole images.
pub fn interleave(x: &[u8], images: usize, y: &mut [u8]) {
    assert_eq!(x.len(), y.len(), "one code a code");
    if y.is_empty() {
        return;
    }
    assert!(y.len().is_multiple_of(3 * images), "whole images of three planes");
    let run = variant::select(INTERLEAVE);
    let len = y.len() / images;
    for (x, y) in x.chunks_exact(len).zip(y.chunks_exact_mut(len)) {
        let plane = |i: usize| &x[i * len / 3..][..len / 3];
        par::for_each_chunk(y, 3 * UNIT, 1000.0, |start, y| {
            run([0, 1, 2].map(|i| &plane(i)[start / 3..][..y.len() / 3]), y);
        });
    }
}

pub(super) fn describe() -> Vec<VariantInfo> {
    [
        variant::describe("quantized::map", MAP),
        variant::describe("quantized::interleave", INTERLEAVE),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_brings_three_planes_together() {
        for (images, pixels) in [(0, 5), (1, 1), (2, 77), (1, 9000)] {
            let x: Vec<u8> = (0..images * 3 * pixels).map(|i| (i * 37 + i / 256) as u8).collect();
            let at = |i: usize| x[i / (3 * pixels) * 3 * pixels + i % 3 * pixels + i / 3 % pixels];
            let want: Vec<u8> = (0..x.len()).map(at).collect();
            let mut y = vec![0xAA; x.len()];
            interleave(&x, images, &mut y);
            assert_eq!(y, want, "{images}, {pixels}");
            for variant in INTERLEAVE.iter().filter(|_| images == 1) {
                let Some(run) = variant.get() else { continue };
                let mut y = vec![0xAA; x.len()];
                run([0, 1, 2].map(|i| &x[i * pixels..][..pixels]), &mut y);
                assert_eq!(y, want, "{}, {pixels}", variant.name);
            }
        }
    }

    #[test]
    fn every_variant_of_a_table_gives_what_is_in_it_for_every_code() {
        let table: [u8; 256] = std::array::from_fn(|i| (i * 167 + 13) as u8);
        for len in [0, 1, 63, 64, 65, 300, 512] {
            let x: Vec<u8> = (0..len).map(|i| (i * 37 + i / 256) as u8).collect();
            let want: Vec<u8> = x.iter().map(|&x| table[usize::from(x)]).collect();
            for variant in MAP {
                let Some(run) = variant.get() else { continue };
                let mut y = vec![0xAA; len];
                run(&table, &x, &mut y);
                assert_eq!(y, want, "{}, {len}", variant.name);
            }
        }
    }
}
