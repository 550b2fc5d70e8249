//! ggml's Q4_0 and Q8_0: blocks of 32 with a `float16` scale.

use super::floats::f16_saturated;
use super::{MAGIC, small_integer};
use crate::autovec::autovec;
use crate::min_max::INFINITY_BITS;
use crate::variant::{VariantInfo, describe, select};

pub(super) fn variants() -> Vec<VariantInfo> {
    [describe("formats::simple::q4_0", Q4_0), describe("formats::simple::q8_0", Q8_0)].concat()
}

const SIZE: usize = 32;

/// Whole blocks of Q4_0. Whether all is finite.
///
/// # Panics
///
/// When the lengths do not fit.
pub fn q4_0(src: &[f32], blocks: &mut [u8]) -> bool {
    assert!(src.len().is_multiple_of(SIZE), "whole blocks");
    assert_eq!(blocks.len(), src.len() / SIZE * 18, "the bytes of the blocks");
    select(Q4_0)(src, blocks)
}

/// Whole blocks of Q8_0. Whether all is finite.
///
/// # Panics
///
/// When the lengths do not fit.
pub fn q8_0(src: &[f32], blocks: &mut [u8]) -> bool {
    assert!(src.len().is_multiple_of(SIZE), "whole blocks");
    assert_eq!(blocks.len(), src.len() / SIZE * 34, "the bytes of the blocks");
    select(Q8_0)(src, blocks)
}

autovec!(pub(super) Q4_0, fn(src: &[f32], blocks: &mut [u8]) -> bool = q4_0_body);
autovec!(pub(super) Q8_0, fn(src: &[f32], blocks: &mut [u8]) -> bool = q8_0_body);

#[inline(always)]
fn max_abs_bits(x: &[f32; SIZE]) -> u32 {
    let mut max = x.map(|x| x.to_bits() & !(1 << 31));
    let mut width = SIZE / 2;
    while width != 0 {
        for i in 0..width {
            max[i] = max[i].max(max[i + width]);
        }
        width /= 2;
    }
    max[0]
}

/// `1 / d`; 0 for 0, and for a subnormal that has no inverse.
#[inline(always)]
fn inverse(d: f32) -> f32 {
    let inverse = 1.0 / d;
    if inverse.is_finite() { inverse } else { 0.0 }
}

#[inline(always)]
fn q4_0_body(src: &[f32], blocks: &mut [u8]) -> bool {
    let mut is_finite = true;
    let (src, blocks) = (src.as_chunks::<SIZE>().0, blocks.as_chunks_mut::<18>().0);
    for (x, block) in src.iter().zip(blocks) {
        let bits = max_abs_bits(x);
        is_finite &= bits < INFINITY_BITS;
        // The widest element, the first of equals; of zeros a positive one.
        let negative = bits | 1 << 31;
        let (mut n_positive, mut n_negative) = (0, 0);
        for x in x {
            n_positive += u32::from(x.to_bits() == bits);
            n_negative += u32::from(x.to_bits() == negative);
        }
        let is_negative = match (n_positive, n_negative) {
            (_, 0) => false,
            _ if bits == 0 => false,
            (0, _) => true,
            _ => {
                let first = x.iter().find(|x| x.abs().to_bits() == bits);
                first.is_some_and(|x| x.is_sign_negative())
            }
        };
        let widest = if is_negative { f32::from_bits(negative) } else { f32::from_bits(bits) };
        let d = widest / -8.0;
        let inverse = inverse(d);
        block[..2].copy_from_slice(&f16_saturated(d).to_le_bytes());
        let mut codes = [0_u8; SIZE];
        for i in 0..SIZE {
            let code = small_integer((x[i] * inverse + 8.5).trunc());
            codes[i] = code.min(15) as u8;
        }
        for j in 0..SIZE / 2 {
            block[2 + j] = codes[j] | codes[j + SIZE / 2] << 4;
        }
    }
    is_finite
}

#[inline(always)]
fn q8_0_body(src: &[f32], blocks: &mut [u8]) -> bool {
    let mut is_finite = true;
    let (src, blocks) = (src.as_chunks::<SIZE>().0, blocks.as_chunks_mut::<34>().0);
    for (x, block) in src.iter().zip(blocks) {
        let bits = max_abs_bits(x);
        is_finite &= bits < INFINITY_BITS;
        let d = f32::from_bits(bits) / 127.0;
        let inverse = inverse(d);
        block[..2].copy_from_slice(&f16_saturated(d).to_le_bytes());
        let codes = &mut block[2..];
        for i in 0..SIZE {
            let y = x[i] * inverse;
            // The number before 1/2: with 1/2 itself, 0.49999997 would become 1.
            let rounded = (y.abs() + 0.499_999_97).trunc().copysign(y);
            codes[i] = small_integer((rounded + MAGIC) - MAGIC) as u8;
        }
    }
    is_finite
}
