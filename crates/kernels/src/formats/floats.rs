//! 16-bit floats: `f32` to their bits and back.

use crate::autovec::autovec;
use crate::variant::{VariantInfo, describe, select};

pub(super) fn variants() -> Vec<VariantInfo> {
    [
        describe("formats::floats::from_f16", FROM_F16),
        describe("formats::floats::from_bf16", FROM_BF16),
        describe("formats::floats::to_f16", TO_F16),
        describe("formats::floats::to_bf16", TO_BF16),
    ]
    .concat()
}

macro_rules! conversion {
    ($(#[$doc:meta])* $f:ident, $list:ident, $body:ident, $from:ty, $to:ty, $one:ident) => {
        $(#[$doc])*
        ///
        /// # Panics
        ///
        /// When the slices differ in length.
        pub fn $f(src: &[$from], dst: &mut [$to]) {
            assert_eq!(src.len(), dst.len(), "one result a value");
            select($list)(src, dst);
        }

        autovec!(pub(super) $list, fn(src: &[$from], dst: &mut [$to]) = $body);

        #[inline(always)]
        fn $body(src: &[$from], dst: &mut [$to]) {
            for (x, y) in src.iter().zip(dst) {
                *y = $one(*x);
            }
        }
    };
}

conversion!(
    /// What little-endian binary16 stands for.
    from_f16, FROM_F16, from_f16_body, [u8; 2], f32, f16_value
);
conversion!(
    /// What little-endian bfloat16 stands for.
    from_bf16, FROM_BF16, from_bf16_body, [u8; 2], f32, bf16_value
);
conversion!(
    /// Binary16, ties to even, infinite from 65520 on, little-endian.
    to_f16, TO_F16, to_f16_body, f32, [u8; 2], f16_bytes
);
conversion!(
    /// bfloat16, ties to even, little-endian.
    to_bf16, TO_BF16, to_bf16_body, f32, [u8; 2], bf16_bytes
);

#[inline(always)]
fn f16_value(bytes: [u8; 2]) -> f32 {
    let bits = u32::from(u16::from_le_bytes(bytes));
    let (sign, magnitude) = ((bits & 0x8000) << 16, bits & 0x7FFF);
    // Exact: the exponent's bias is put right by a multiplication, subnormal numbers by the way.
    let finite = (f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = 0x7F80_0000 | if 0x7C00 < magnitude { 0x40_0000 } else { 0 };
    f32::from_bits(sign | if 0x7C00 <= magnitude { special } else { finite })
}

#[inline(always)]
fn bf16_value(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// Binary16 without its sign, for what is finite; beyond its end more than 0x7BFF.
#[inline(always)]
fn f16_magnitude(x: f32) -> u32 {
    let bits = x.to_bits() & !(1 << 31);
    let normal = bits.wrapping_sub(112 << 23).wrapping_add(0xFFF + (bits >> 13 & 1)) >> 13;
    // Adding 1/2 rounds to a multiple of 2^-24.
    let subnormal = (f32::from_bits(bits) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    if bits < 113 << 23 { subnormal } else { normal }
}

#[inline(always)]
fn f16_bytes(x: f32) -> [u8; 2] {
    let bits = x.to_bits();
    let magnitude = bits & !(1 << 31);
    let finite = f16_magnitude(x).min(0x7C00);
    let special = if 0x7F80_0000 < magnitude { 0x7E00 } else { 0x7C00 };
    let code = if 0x7F80_0000 <= magnitude { special } else { finite };
    ((code | (bits >> 16 & 0x8000)) as u16).to_le_bytes()
}

/// Binary16 with the largest finite number for all beyond it: the scales of ggml's blocks.
#[inline(always)]
pub(super) fn f16_saturated(x: f32) -> u16 {
    (f16_magnitude(x).min(0x7BFF) | (x.to_bits() >> 16 & 0x8000)) as u16
}

#[inline(always)]
fn bf16_bytes(x: f32) -> [u8; 2] {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    let is_nan = 0x7F80_0000 < bits & !(1 << 31);
    let code = if is_nan { 0x7FC0 | (bits >> 16 & 0x8000) } else { rounded };
    (code as u16).to_le_bytes()
}
