//! Number formats for weights, fast: what `midtread_num::formats` defines, byte for byte.
//!
//! Unlike other kernels these choose scales, because how they are chosen is part of what the formats are. Each quantizer
//! returns whether all values were finite; if one was not, what it wrote means nothing, and the definition says which.
//!
//! [`int8`] (one scale a row, LLM.int8), [`codebook`] (NF4 and FP4), [`simple`] (ggml's Q4_0 and Q8_0), [`k`] (ggml's K
//! types), [`floats`] (16-bit floats and back).

use crate::variant::VariantInfo;

pub mod codebook;
pub mod floats;
pub mod int8;
pub mod k;
pub mod simple;

#[cfg(test)]
mod tests;

/// The rows of `variants()` for this module.
pub(crate) fn variants() -> Vec<VariantInfo> {
    [codebook::variants(), floats::variants(), int8::variants(), k::variants(), simple::variants()]
        .concat()
}

/// The largest bits without the sign: those of the largest magnitude, where all are finite.
#[inline(always)]
fn max_abs_bits(x: &[f32]) -> u32 {
    // One plain fold: of lanes in an array the compiler makes gathers.
    x.iter().fold(0, |max, x| max.max(x.to_bits() & !(1 << 31)))
}

/// Adding it rounds to an integer, ties to even, which then stands in the lowest bits: for magnitudes up to 2^22.
const MAGIC: f32 = 12_582_912.0;

/// The integer that a small integral `x` is. Cheaper than a conversion that must saturate.
#[inline(always)]
fn small_integer(x: f32) -> i32 {
    (x + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32
}
