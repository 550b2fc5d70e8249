//! Between `f32` and integers: quantize, dequantize, fake-quantize, and requantization of `i32` sums.
//!
//! Each function works on a slice with one scale and one zero point; a tensor quantized per channel
//! is a loop over its slices. All give exactly what `midtread-num` defines for one value: they
//! divide by the scale, round ties to even, saturate, and make NaN the smallest code.

use alloc::vec::Vec;

use midtread_num::requant::requantize;
use midtread_num::{QParams, QRange};

use crate::autovec::autovec;
use crate::variant::{Isa, Variant, VariantInfo, describe, select};
#[cfg(target_arch = "x86_64")]
use crate::variant::{has_avx2, has_avx512};

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86_64;

/// The rows of `variants()` for this module.
pub(crate) fn variants() -> Vec<VariantInfo> {
    [
        describe("quantize::quantize_u8", QUANTIZE_U8),
        describe("quantize::quantize_i8", QUANTIZE_I8),
        describe("quantize::quantize_u16", QUANTIZE_U16),
        describe("quantize::quantize_i16", QUANTIZE_I16),
        describe("quantize::dequantize_u8", DEQUANTIZE_U8),
        describe("quantize::dequantize_i8", DEQUANTIZE_I8),
        describe("quantize::dequantize_u16", DEQUANTIZE_U16),
        describe("quantize::dequantize_i16", DEQUANTIZE_I16),
        describe("quantize::dequantize_i32", DEQUANTIZE_I32),
        describe("quantize::fake_quantize", FAKE_QUANTIZE),
        describe("quantize::requantize_u8", REQUANTIZE_U8),
        describe("quantize::requantize_i8", REQUANTIZE_I8),
        describe("quantize::requantize_channels_u8", REQUANTIZE_CHANNELS_U8),
        describe("quantize::requantize_channels_i8", REQUANTIZE_CHANNELS_I8),
    ]
    .concat()
}

/// A list of the implementations of one function, all of the same name in each instruction set's module.
macro_rules! list {
    ($list:ident, $f:ident, fn($($arg:ident: $ty:ty),*), $scalar:expr) => {
        static $list: &[Variant<fn($($ty),*)>] = &[
            #[cfg(target_arch = "x86_64")]
            Variant::new("avx512", Isa::Avx512, has_avx512, |$($arg),*| {
                // SAFETY: `Variant::get` hands this out only when `has_avx512` has found the features.
                unsafe { x86_64::avx512::$f($($arg),*) }
            }),
            #[cfg(target_arch = "x86_64")]
            Variant::new("avx2", Isa::Avx2, has_avx2, |$($arg),*| {
                // SAFETY: `Variant::get` hands this out only when `has_avx2` has found the features.
                unsafe { x86_64::avx2::$f($($arg),*) }
            }),
            #[cfg(target_arch = "aarch64")]
            Variant::new("neon", Isa::Neon, || std::arch::is_aarch64_feature_detected!("neon"), |$($arg),*| {
                // SAFETY: `Variant::get` hands this out only when the CPU has NEON.
                unsafe { aarch64::$f($($arg),*) }
            }),
            Variant::scalar($scalar),
        ];
    };
}

macro_rules! quantize {
    ($(#[$doc:meta])* $f:ident, $list:ident, $ty:ty, $storage:expr) => {
        $(#[$doc])*
        ///
        /// # Panics
        ///
        /// When the slices differ in length, or the type does not hold `range`.
        pub fn $f(src: &[f32], dst: &mut [$ty], params: QParams, range: QRange) {
            assert_eq!(src.len(), dst.len(), "one code a value");
            assert!(range.is_within($storage), "the type holds {range}");
            select($list)(src, dst, params, range);
        }

        list!(
            $list,
            $f,
            fn(src: &[f32], dst: &mut [$ty], params: QParams, range: QRange),
            |src, dst, params, range| {
                for (x, q) in src.iter().zip(dst) {
                    *q = params.quantize(*x, range) as $ty;
                }
            }
        );
    };
}

quantize!(
    /// [`QParams::quantize`] of every element, for a `range` within 0..=255.
    quantize_u8, QUANTIZE_U8, u8, QRange::U8
);
quantize!(
    /// [`QParams::quantize`] of every element, for a `range` within -128..=127.
    quantize_i8, QUANTIZE_I8, i8, QRange::I8
);
quantize!(
    /// [`QParams::quantize`] of every element, for a `range` within 0..=65535.
    quantize_u16, QUANTIZE_U16, u16, QRange::U16
);
quantize!(
    /// [`QParams::quantize`] of every element, for a `range` within -32768..=32767.
    quantize_i16, QUANTIZE_I16, i16, QRange::I16
);

macro_rules! dequantize {
    ($(#[$doc:meta])* $f:ident, $list:ident, $body:ident, $ty:ty) => {
        $(#[$doc])*
        ///
        /// # Panics
        ///
        /// When the slices differ in length.
        pub fn $f(src: &[$ty], dst: &mut [f32], params: QParams) {
            assert_eq!(src.len(), dst.len(), "one value a code");
            select($list)(src, dst, params);
        }

        autovec!($list, fn(src: &[$ty], dst: &mut [f32], params: QParams) = $body);

        #[inline(always)]
        fn $body(src: &[$ty], dst: &mut [f32], params: QParams) {
            for (q, x) in src.iter().zip(dst) {
                *x = params.dequantize(i32::from(*q));
            }
        }
    };
}

dequantize!(
    /// [`QParams::dequantize`] of every element.
    dequantize_u8, DEQUANTIZE_U8, dequantize_u8_body, u8
);
dequantize!(
    /// [`QParams::dequantize`] of every element.
    dequantize_i8, DEQUANTIZE_I8, dequantize_i8_body, i8
);
dequantize!(
    /// [`QParams::dequantize`] of every element.
    dequantize_u16, DEQUANTIZE_U16, dequantize_u16_body, u16
);
dequantize!(
    /// [`QParams::dequantize`] of every element.
    dequantize_i16, DEQUANTIZE_I16, dequantize_i16_body, i16
);

/// `scale * src`, the sums and biases of integer kernels, whose zero point is 0: ONNX
/// `DequantizeLinear` of INT32.
///
/// The integer becomes `f32` first: exact up to 2^24, to nearest even beyond, as in onnxruntime.
///
/// # Panics
///
/// When the slices differ in length.
pub fn dequantize_i32(src: &[i32], dst: &mut [f32], scale: f32) {
    assert_eq!(src.len(), dst.len(), "one value a code");
    select(DEQUANTIZE_I32)(src, dst, scale);
}

autovec!(DEQUANTIZE_I32, fn(src: &[i32], dst: &mut [f32], scale: f32) = dequantize_i32_body);

#[inline(always)]
fn dequantize_i32_body(src: &[i32], dst: &mut [f32], scale: f32) {
    for (q, x) in src.iter().zip(dst) {
        *x = scale * *q as f32;
    }
}

/// [`QParams::fake_quantize`] of every element: exactly dequantize(quantize(x)), without the integers.
///
/// # Panics
///
/// When the slices differ in length.
pub fn fake_quantize(src: &[f32], dst: &mut [f32], params: QParams, range: QRange) {
    assert_eq!(src.len(), dst.len(), "one result a value");
    select(FAKE_QUANTIZE)(src, dst, params, range);
}

/// [`fake_quantize`] in place.
pub fn fake_quantize_in_place(values: &mut [f32], params: QParams, range: QRange) {
    // Through a block that stays in the first-level cache, so that there is one kernel to write and to test.
    const BLOCK: usize = 1024;
    let mut copy = [0.0; BLOCK];
    let run = select(FAKE_QUANTIZE);
    for block in values.chunks_mut(BLOCK) {
        let copy = &mut copy[..block.len()];
        copy.copy_from_slice(block);
        run(copy, block, params, range);
    }
}

list!(
    FAKE_QUANTIZE,
    fake_quantize,
    fn(src: &[f32], dst: &mut [f32], params: QParams, range: QRange),
    |src, dst, params, range| {
        for (x, y) in src.iter().zip(dst) {
            *y = params.fake_quantize(*x, range);
        }
    }
);

macro_rules! requantize {
    ($(#[$doc:meta])* $f:ident, $list:ident, $(#[$channels_doc:meta])* $channels:ident, $channels_list:ident,
     $ty:ty, $storage:expr) => {
        $(#[$doc])*
        ///
        /// # Panics
        ///
        /// When the slices differ in length, the type does not hold `range`, or `range` not `zero_point`.
        pub fn $f(acc: &[i32], dst: &mut [$ty], multiplier: f32, zero_point: i32, range: QRange) {
            assert_eq!(acc.len(), dst.len(), "one code a sum");
            assert!(range.is_within($storage), "the type holds {range}");
            assert!(range.contains(zero_point), "{range} holds the zero point {zero_point}");
            select($list)(acc, dst, multiplier, zero_point, range);
        }

        list!(
            $list,
            $f,
            fn(acc: &[i32], dst: &mut [$ty], multiplier: f32, zero_point: i32, range: QRange),
            |acc, dst, multiplier, zero_point, range| {
                for (acc, q) in acc.iter().zip(dst) {
                    *q = requantize(*acc, multiplier, zero_point, range) as $ty;
                }
            }
        );

        $(#[$channels_doc])*
        ///
        /// # Panics
        ///
        /// When the slices differ in length or are not whole rows, the type does not hold `range`,
        /// or `range` not `zero_point`.
        pub fn $channels(
            acc: &[i32],
            dst: &mut [$ty],
            multipliers: &[f32],
            zero_point: i32,
            range: QRange,
        ) {
            assert_eq!(acc.len(), dst.len(), "one code a sum");
            assert!(range.is_within($storage), "the type holds {range}");
            assert!(range.contains(zero_point), "{range} holds the zero point {zero_point}");
            if acc.is_empty() {
                return;
            }
            assert!(!multipliers.is_empty() && acc.len().is_multiple_of(multipliers.len()), "whole rows");
            let run = select($channels_list);
            // Short rows are made long, or they would all be tails.
            let repeated;
            let multipliers = if multipliers.len() < SHORT_ROW && multipliers.len() < acc.len() {
                repeated = multipliers.repeat(SHORT_ROW.div_ceil(multipliers.len()));
                &repeated
            } else {
                multipliers
            };
            for (acc, dst) in acc.chunks(multipliers.len()).zip(dst.chunks_mut(multipliers.len())) {
                run(acc, dst, &multipliers[..acc.len()], zero_point, range);
            }
        }

        list!(
            $channels_list,
            $channels,
            fn(acc: &[i32], dst: &mut [$ty], multipliers: &[f32], zero_point: i32, range: QRange),
            |acc, dst, multipliers, zero_point, range| {
                for ((acc, multiplier), q) in acc.iter().zip(multipliers).zip(dst) {
                    *q = requantize(*acc, *multiplier, zero_point, range) as $ty;
                }
            }
        );
    };
}

const SHORT_ROW: usize = 128;

requantize!(
    /// [`requantize`] of every sum, for a `range` within 0..=255. The bias is already in `acc`.
    requantize_u8,
    REQUANTIZE_U8,
    /// [`requantize`] with a multiplier for each channel, the channels last: `acc` is rows of
    /// `multipliers.len()`, and element `i` uses multiplier `i % multipliers.len()`.
    requantize_channels_u8,
    REQUANTIZE_CHANNELS_U8,
    u8,
    QRange::U8
);
requantize!(
    /// [`requantize`] of every sum, for a `range` within -128..=127. The bias is already in `acc`.
    requantize_i8,
    REQUANTIZE_I8,
    /// [`requantize`] with a multiplier for each channel, the channels last: `acc` is rows of
    /// `multipliers.len()`, and element `i` uses multiplier `i % multipliers.len()`.
    requantize_channels_i8,
    REQUANTIZE_CHANNELS_I8,
    i8,
    QRange::I8
);
