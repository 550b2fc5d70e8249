//! Signed bytes with one scale a row.

use midtread_num::QRange;
use midtread_num::formats::int;

use super::{MAGIC, max_abs_bits, small_integer};
use crate::autovec::autovec;
use crate::min_max::INFINITY_BITS;
use crate::quantize::quantize_i8;
use crate::variant::{VariantInfo, describe, select};

pub(super) fn variants() -> Vec<VariantInfo> {
    [describe("formats::int8::max_abs", MAX_ABS), describe("formats::int8::times", TIMES)].concat()
}

autovec!(pub(super) MAX_ABS, fn(x: &[f32]) -> u32 = max_abs_bits);

/// `int8` with a scale a row: codes from -127 to 127. Whether all is finite.
///
/// # Panics
///
/// When the lengths do not fit.
pub fn rows(src: &[f32], cols: usize, codes: &mut [i8], scales: &mut [f32]) -> bool {
    let max_abs = select(MAX_ABS);
    for_rows(src, cols, codes, scales, |row, codes, scale| {
        let bits = max_abs(row);
        if INFINITY_BITS <= bits {
            return false;
        }
        let params = int::symmetric(f32::from_bits(bits), QRange::I8_NARROW);
        quantize_i8(row, codes, params, QRange::I8_NARROW);
        *scale = params.scale();
        true
    })
}

/// LLM.int8 without outliers: codes and each row's largest magnitude. Whether all is finite.
///
/// # Panics
///
/// When the lengths do not fit.
pub fn llm_int8_rows(src: &[f32], cols: usize, codes: &mut [i8], absmax: &mut [f32]) -> bool {
    let (max_abs, times) = (select(MAX_ABS), select(TIMES));
    for_rows(src, cols, codes, absmax, |row, codes, absmax| {
        let bits = max_abs(row);
        if INFINITY_BITS <= bits {
            return false;
        }
        *absmax = f32::from_bits(bits);
        let factor = if bits == 0 { 0.0 } else { 1.0 / *absmax * 127.0 };
        if factor.is_finite() {
            times(row, factor, codes);
        } else {
            // Of magnitudes below 4e-37: an infinite product is the largest code, and 0 stays 0.
            for (x, q) in row.iter().zip(codes) {
                *q = (x * factor).round_ties_even() as i8;
            }
        }
        true
    })
}

fn for_rows(
    src: &[f32],
    cols: usize,
    codes: &mut [i8],
    params: &mut [f32],
    row: impl Fn(&[f32], &mut [i8], &mut f32) -> bool,
) -> bool {
    assert_eq!(src.len(), codes.len(), "one code a value");
    assert_eq!(src.len(), cols * params.len(), "whole rows");
    if src.is_empty() {
        return true;
    }
    let rows = src.chunks_exact(cols).zip(codes.chunks_exact_mut(cols)).zip(params);
    rows.fold(true, |all, ((x, q), param)| row(x, q, param) && all)
}

autovec!(TIMES, fn(src: &[f32], factor: f32, codes: &mut [i8]) = times);

/// Products of at most 127 to the nearest integer, ties to even.
#[inline(always)]
fn times(src: &[f32], factor: f32, codes: &mut [i8]) {
    for (x, q) in src.iter().zip(codes) {
        *q = small_integer((x * factor + MAGIC) - MAGIC) as i8;
    }
}
