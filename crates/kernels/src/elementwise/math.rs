//! Functions of an `f32` without branches, so that a loop over them becomes vector instructions.
//!
//! Each is made of additions, multiplications, divisions and fused multiply-adds alone, in one order, so it gives the
//! same bits wherever it runs. The stated error is the largest seen against `f64` over all finite inputs that the
//! tests visit, in units in the last place (ULP) of the result.

// The coefficients are written as their sources give them.
#![expect(clippy::excessive_precision, reason = "coefficients as published")]

/// Adding and subtracting it rounds a float below 2^22 to an integer, ties to even, and leaves that integer in the low
/// bits.
const ROUND: f32 = 12_582_912.0;

/// `2^n` for `-126 <= n <= 127`.
#[inline(always)]
fn exp2_int(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// `if x < lo { lo } else if x > hi { hi } else { x }`, so NaN stays.
#[inline(always)]
fn clamp_keep_nan(x: f32, lo: f32, hi: f32) -> f32 {
    let x = if x < lo { lo } else { x };
    if x > hi { hi } else { x }
}

/// `e^x`. At most 1 ULP off where the result is normal, 2 where it is subnormal.
///
/// Cephes' `expf`: `x = n ln 2 + r`, a polynomial of degree 7 in `r`, then two multiplications by powers of two, so
/// that subnormal results are rounded and large ones become infinite.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Beyond these the result is 0 or infinite, and `n` must stay small enough for its halves.
    let x = clamp_keep_nan(x, -110.0, 100.0);
    let t = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    let r = n.mul_add(-0.693_359_375, x);
    let r = n.mul_add(2.121_944_40e-4, r);
    let mut p = 1.987_569_150_0e-4_f32;
    p = p.mul_add(r, 1.398_199_950_7e-3);
    p = p.mul_add(r, 8.333_451_907_3e-3);
    p = p.mul_add(r, 4.166_579_589_4e-2);
    p = p.mul_add(r, 1.666_666_545_9e-1);
    p = p.mul_add(r, 5.000_000_120_1e-1);
    let p = (p * r).mul_add(r, r) + 1.0;
    let n = t.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    // NaN leaves garbage in `n`; the masks keep the powers finite, and NaN times them is NaN.
    let half = (n >> 1).clamp(-80, 80);
    let rest = (n.wrapping_sub(half)).clamp(-80, 80);
    p * exp2_int(half) * exp2_int(rest)
}

/// `1 / (1 + e^-x)`. At most 3 ULP off.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    // With e^-|x|, which is at most 1, a result near 0 keeps its precision.
    let z = exp(-x.abs());
    let top = if x < 0.0 { z } else { 1.0 };
    top / (1.0 + z)
}

/// Hyperbolic tangent. At most 3 ULP off.
///
/// Cephes' `tanhf`: an odd polynomial below 0.625, `1 - 2 / (e^2x + 1)` above.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let z = x.abs();
    let large = 1.0 - 2.0 / (exp(z + z) + 1.0);
    let s = x * x;
    let mut p = -5.704_988_727_45e-3_f32;
    p = p.mul_add(s, 2.063_908_879_54e-2);
    p = p.mul_add(s, -5.373_971_555_31e-2);
    p = p.mul_add(s, 1.333_144_220_36e-1);
    p = p.mul_add(s, -3.333_328_194_22e-1);
    let small = (p * s).mul_add(x, x);
    (if z < 0.625 { small } else { large }).copysign(x)
}

/// The error function. At most 2 ULP off.
///
/// An odd polynomial below 0.921875, `1 - e^p(x)` above (N. Juffa's coefficients, which ONNX Runtime uses too).
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let s = x * x;
    let mut p = -5.967_617_03e-4_f32;
    p = p.mul_add(s, 4.991_194_23e-3);
    p = p.mul_add(s, -2.676_813_49e-2);
    p = p.mul_add(s, 1.128_199_25e-1);
    p = p.mul_add(s, -3.761_253_36e-1);
    p = p.mul_add(s, 1.283_791_66e-1);
    let small = p.mul_add(x, x);

    let z = x.abs();
    // From here on the result is 1.
    let t = if z > 3.925 { 3.925 } else { z };
    let s = t * t;
    let p = (-1.728_534_70e-5_f32).mul_add(t, 3.831_971_26e-4);
    let q = (-3.883_964_38e-3_f32).mul_add(t, 2.425_462_19e-2);
    let mut p = p.mul_add(s, q);
    p = p.mul_add(t, -1.067_778_77e-1);
    p = p.mul_add(t, -6.348_466_87e-1);
    p = p.mul_add(t, -1.287_175_12e-1);
    p = p.mul_add(t, -t);
    let large = 1.0 - exp(p);
    (if z > 0.921_875 { large } else { small }).copysign(x)
}

/// `x / 2 * (1 + erf(x / sqrt(2)))`: ONNX `Gelu`.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// ONNX `Gelu` with `approximate = "tanh"`.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    let inner = 0.797_884_56 * (0.044_715 * x * x).mul_add(x, x);
    0.5 * x * (1.0 + tanh(inner))
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}
