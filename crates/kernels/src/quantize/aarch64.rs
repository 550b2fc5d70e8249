//! NEON.
//!
//! FMAXNM returns the number when the other operand is NaN, so `maxnm(v, lo)` turns NaN into the
//! smallest code. FCVTNS rounds to nearest even. After clamp and conversion a code is in its type's
//! range, so narrowing loses nothing.

use std::arch::aarch64::*;

use midtread_num::{QParams, QRange, requant};

/// What turns a quotient into a code.
#[derive(Clone, Copy)]
struct Rounder {
    lo: float32x4_t,
    hi: float32x4_t,
    zero_point: int32x4_t,
}

impl Rounder {
    #[inline]
    #[target_feature(enable = "neon")]
    fn new(zero_point: i32, range: QRange) -> Self {
        Self {
            lo: vdupq_n_f32((range.qmin() - zero_point) as f32),
            hi: vdupq_n_f32((range.qmax() - zero_point) as f32),
            zero_point: vdupq_n_s32(zero_point),
        }
    }

    /// The clamped and rounded quotient, without the zero point.
    #[inline]
    #[target_feature(enable = "neon")]
    fn steps(self, v: float32x4_t) -> int32x4_t {
        vcvtnq_s32_f32(vminnmq_f32(vmaxnmq_f32(v, self.lo), self.hi))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn code(self, v: float32x4_t) -> int32x4_t {
        vaddq_s32(self.steps(v), self.zero_point)
    }
}

macro_rules! quantize {
    ($f:ident, $ty:ty, $store:ident) => {
        #[target_feature(enable = "neon")]
        pub(super) fn $f(src: &[f32], dst: &mut [$ty], params: QParams, range: QRange) {
            let (src_tiles, src_tail) = src.as_chunks::<8>();
            let (dst_tiles, dst_tail) = dst.as_chunks_mut::<8>();
            let scale = vdupq_n_f32(params.scale());
            let rounder = Rounder::new(params.zero_point(), range);
            for (x, q) in src_tiles.iter().zip(dst_tiles) {
                let x = x.as_chunks::<4>().0;
                let a = rounder.code(vdivq_f32(load_f32(&x[0]), scale));
                let b = rounder.code(vdivq_f32(load_f32(&x[1]), scale));
                $store(q, a, b);
            }
            for (x, q) in src_tail.iter().zip(dst_tail) {
                *q = params.quantize(*x, range) as $ty;
            }
        }
    };
}

quantize!(quantize_u8, u8, store_u8);
quantize!(quantize_i8, i8, store_i8);
quantize!(quantize_u16, u16, store_u16);
quantize!(quantize_i16, i16, store_i16);

#[target_feature(enable = "neon")]
pub(super) fn fake_quantize(src: &[f32], dst: &mut [f32], params: QParams, range: QRange) {
    let (src_tiles, src_tail) = src.as_chunks::<4>();
    let (dst_tiles, dst_tail) = dst.as_chunks_mut::<4>();
    let scale = vdupq_n_f32(params.scale());
    let rounder = Rounder::new(params.zero_point(), range);
    for (x, y) in src_tiles.iter().zip(dst_tiles) {
        let steps = rounder.steps(vdivq_f32(load_f32(x), scale));
        let value = vmulq_f32(scale, vcvtq_f32_s32(steps));
        // SAFETY: `y` is 16 writable bytes.
        unsafe { vst1q_f32(y.as_mut_ptr(), value) }
    }
    for (x, y) in src_tail.iter().zip(dst_tail) {
        *y = params.fake_quantize(*x, range);
    }
}

macro_rules! requantize {
    ($f:ident, $channels:ident, $ty:ty, $store:ident) => {
        #[target_feature(enable = "neon")]
        pub(super) fn $f(
            acc: &[i32],
            dst: &mut [$ty],
            multiplier: f32,
            zero_point: i32,
            range: QRange,
        ) {
            let (acc_tiles, acc_tail) = acc.as_chunks::<8>();
            let (dst_tiles, dst_tail) = dst.as_chunks_mut::<8>();
            let m = vdupq_n_f32(multiplier);
            let rounder = Rounder::new(zero_point, range);
            for (acc, q) in acc_tiles.iter().zip(dst_tiles) {
                let acc = acc.as_chunks::<4>().0;
                let a = rounder.code(vmulq_f32(vcvtq_f32_s32(load_i32(&acc[0])), m));
                let b = rounder.code(vmulq_f32(vcvtq_f32_s32(load_i32(&acc[1])), m));
                $store(q, a, b);
            }
            for (acc, q) in acc_tail.iter().zip(dst_tail) {
                *q = requant::requantize(*acc, multiplier, zero_point, range) as $ty;
            }
        }

        #[target_feature(enable = "neon")]
        pub(super) fn $channels(
            acc: &[i32],
            dst: &mut [$ty],
            multipliers: &[f32],
            zero_point: i32,
            range: QRange,
        ) {
            let (acc_tiles, acc_tail) = acc.as_chunks::<8>();
            let (dst_tiles, dst_tail) = dst.as_chunks_mut::<8>();
            let (multiplier_tiles, multiplier_tail) = multipliers.as_chunks::<8>();
            let rounder = Rounder::new(zero_point, range);
            for ((acc, m), q) in acc_tiles.iter().zip(multiplier_tiles).zip(dst_tiles) {
                let (acc, m) = (acc.as_chunks::<4>().0, m.as_chunks::<4>().0);
                let a = rounder.code(vmulq_f32(vcvtq_f32_s32(load_i32(&acc[0])), load_f32(&m[0])));
                let b = rounder.code(vmulq_f32(vcvtq_f32_s32(load_i32(&acc[1])), load_f32(&m[1])));
                $store(q, a, b);
            }
            for ((acc, m), q) in acc_tail.iter().zip(multiplier_tail).zip(dst_tail) {
                *q = requant::requantize(*acc, *m, zero_point, range) as $ty;
            }
        }
    };
}

requantize!(requantize_u8, requantize_channels_u8, u8, store_u8);
requantize!(requantize_i8, requantize_channels_i8, i8, store_i8);

// XTN keeps the low bits, which are the code for signed and unsigned alike.

#[inline]
#[target_feature(enable = "neon")]
fn narrow(a: int32x4_t, b: int32x4_t) -> int16x8_t {
    vcombine_s16(vmovn_s32(a), vmovn_s32(b))
}

#[inline]
#[target_feature(enable = "neon")]
fn store_u8(q: &mut [u8; 8], a: int32x4_t, b: int32x4_t) {
    let codes = vreinterpret_u8_s8(vmovn_s16(narrow(a, b)));
    // SAFETY: `q` is 8 writable bytes.
    unsafe { vst1_u8(q.as_mut_ptr(), codes) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store_i8(q: &mut [i8; 8], a: int32x4_t, b: int32x4_t) {
    let codes = vmovn_s16(narrow(a, b));
    // SAFETY: `q` is 8 writable bytes.
    unsafe { vst1_s8(q.as_mut_ptr(), codes) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store_u16(q: &mut [u16; 8], a: int32x4_t, b: int32x4_t) {
    let codes = vreinterpretq_u16_s16(narrow(a, b));
    // SAFETY: `q` is 16 writable bytes.
    unsafe { vst1q_u16(q.as_mut_ptr(), codes) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store_i16(q: &mut [i16; 8], a: int32x4_t, b: int32x4_t) {
    let codes = narrow(a, b);
    // SAFETY: `q` is 16 writable bytes.
    unsafe { vst1q_s16(q.as_mut_ptr(), codes) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_f32(x: &[f32; 4]) -> float32x4_t {
    // SAFETY: `x` is 16 readable bytes.
    unsafe { vld1q_f32(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_i32(x: &[i32; 4]) -> int32x4_t {
    // SAFETY: `x` is 16 readable bytes.
    unsafe { vld1q_s32(x.as_ptr()) }
}
