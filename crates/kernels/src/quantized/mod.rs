//! Convolutions, products and sums of 8-bit codes with the requantization in the same pass: what an integer engine
//! runs.
//!
//! Images are stored channels last ("NHWC"): a pixel's channels are neighbours, so that a 1x1 convolution is a matrix
//! product of what is there, and every kernel writes runs of channels. Codes are bytes; whether they are `u8` or `i8`
//! is said beside them ([`Bytes`]).
//!
//! The definition of a convolution or product: `acc = bias + sum code(x) * w` in `i32`, exact, where `w` has its zero
//! point subtracted and `bias` holds what the zero point of `x` adds ([`Requant::new`] says how); then
//! `clamp(round(f32(acc) * scale), lo, hi) + zero_point`, the rounding to even. These are ONNX Runtime's CPU formulas
//! for QLinearConv and QLinearMatMul. Every variant and every number of threads gives these bits.

mod convert;
mod depthwise;
mod lanes;
mod matrices;
mod pairwise;
mod pool;
mod product;
mod requant;
mod softmax;
#[cfg(target_arch = "x86_64")]
mod vnni;
#[cfg(target_arch = "x86_64")]
mod vnni_depthwise;
mod weights;
mod windows;

use alloc::vec::Vec;

use crate::conv::Conv2d;
use crate::variant::VariantInfo;

pub use convert::{dequantize_i8, dequantize_u8, interleave, map, quantize_i8, quantize_u8};
pub use depthwise::{DepthwiseWeights, depthwise};
pub use matrices::{MAX_OUTER, Matrices, Strides, product_of_two};
pub use pairwise::{Add, Mul, Pairwise, pairwise, pairwise_broadcast};
pub use pool::{Mean, average_pool, global_average_pool, max_pool};
pub use product::{conv, product};
pub use requant::{Factor, Out, Requant, Rule};
pub use softmax::softmax;
pub use weights::Weights;

/// Codes and whether they are signed.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a> {
    /// One byte a code.
    pub data: &'a [u8],
    /// Whether the bytes are `i8`, and not `u8`.
    pub is_signed: bool,
}

impl Bytes<'_> {
    /// The number that a byte is.
    #[inline(always)]
    pub fn value(&self, i: usize) -> i32 {
        code(self.data[i], self.is_signed)
    }
}

/// The number that a byte is.
#[inline(always)]
fn code(byte: u8, is_signed: bool) -> i32 {
    if is_signed { i32::from(byte.cast_signed()) } else { i32::from(byte) }
}

/// The implementations, for `midtread inspect --cpu`.
pub(crate) fn describe() -> Vec<VariantInfo> {
    [
        product::describe(),
        depthwise::describe(),
        pairwise::describe(),
        softmax::describe(),
        convert::describe(),
    ]
    .concat()
}

#[cfg(test)]
mod tests;
