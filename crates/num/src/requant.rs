//! Requantization: from the `i32` sum of an integer kernel to a quantized value.
//!
//! - [`requantize`]: with an `f32` multiplier, as onnxruntime computes it. The product's default.
//! - [`Multiplier`]: without floating point, one rounding. For devices that have no FPU.
//! - [`GemmlowpMultiplier`]: without floating point, two roundings, as TFLite computes it. To
//!   reproduce its results.

use crate::affine::QRange;
use crate::round::ties_even;

/// The factor from a sum of products to steps of the result: `x_scale * w_scale / y_scale` in
/// `f32`, in this order.
pub fn multiplier(x_scale: f32, w_scale: f32, y_scale: f32) -> f32 {
    x_scale * w_scale / y_scale
}

/// The same factor in `f64`, from which a [`Multiplier`] is made.
pub fn real_multiplier(x_scale: f32, w_scale: f32, y_scale: f32) -> f64 {
    f64::from(x_scale) * f64::from(w_scale) / f64::from(y_scale)
}

/// The factors and the offset of a quantized sum: its code is `a * factors[0] + (b * factors[1] + offset)`, rounded and
/// saturated, where `a` and `b` are codes and each product is rounded together with its sum.
///
/// All in `f32`, as onnxruntime's QLinearAdd computes it on x86 with FMA, where the compiler fuses one product of the
/// offset as well: `y_zero_point - fma(factors[0], zero_points[0], factors[1] * zero_points[1])`.
pub fn sum_factors(
    scales: [f32; 2],
    zero_points: [i32; 2],
    y_scale: f32,
    y_zero_point: i32,
) -> ([f32; 2], f32) {
    let factors = scales.map(|scale| scale / y_scale);
    let [a, b] = zero_points.map(|z| z as f32);
    (factors, y_zero_point as f32 - libm::fmaf(factors[0], a, factors[1] * b))
}

/// `saturate(round_ties_even(acc * multiplier) + zero_point)`, the product in `f32`.
///
/// `acc` is rounded to `f32` first (to nearest even, from 2^24 on), and the product is clamped
/// before it is rounded, as onnxruntime's QLinearConv and QLinearMatMul do on x86 and ARM. A NaN
/// product gives `qmin`.
#[inline]
pub fn requantize(acc: i32, multiplier: f32, zero_point: i32, range: QRange) -> i32 {
    let lo = (range.qmin() - zero_point) as f32;
    let hi = (range.qmax() - zero_point) as f32;
    ties_even((acc as f32 * multiplier).max(lo).min(hi)) as i32 + zero_point
}

/// A positive real number as `mantissa * 2^-shift`.
///
/// Invariant: `2^30 <= mantissa < 2^31` and `1 <= shift <= 62`. So the number is held to 31 bits,
/// and `acc * mantissa + 2^(shift - 1)` fits an `i64` for every `i32` accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multiplier {
    mantissa: i32,
    shift: u32,
}

impl Multiplier {
    /// The nearest multiplier, or `None` outside `[2^-32, 2^29]`.
    pub fn from_real(real: f64) -> Option<Self> {
        if !(libm::exp2(-32.0)..=libm::exp2(29.0)).contains(&real) {
            return None;
        }
        // `real = fraction * 2^exponent` with `0.5 <= fraction < 1`, both exact.
        let (fraction, exponent) = libm::frexp(real);
        let mut shift = 31 - exponent;
        let mut mantissa = libm::round(libm::ldexp(fraction, 31)) as i64;
        if mantissa == 1 << 31 {
            // `real` was within half a unit of the next power of two.
            mantissa >>= 1;
            shift -= 1;
        }
        Some(Self { mantissa: mantissa as i32, shift: shift as u32 })
    }

    /// What [`Multiplier::mantissa`] and [`Multiplier::shift`] of another gave, checked.
    pub fn from_parts(mantissa: i32, shift: u32) -> Option<Self> {
        (1 << 30 <= mantissa && (1..=62).contains(&shift)).then_some(Self { mantissa, shift })
    }

    /// The 31 leading bits.
    pub fn mantissa(self) -> i32 {
        self.mantissa
    }

    /// The negated power of two that `mantissa` is multiplied with.
    pub fn shift(self) -> u32 {
        self.shift
    }

    /// `acc * self` to the nearest integer, halves towards positive infinity.
    ///
    /// For results of up to 16 bits, within one of `(acc as f32 * real as f32).round_ties_even()`,
    /// which is what a runtime with an FPU computes.
    pub fn apply(self, acc: i32) -> i64 {
        let product = i64::from(acc) * i64::from(self.mantissa);
        (product + (1 << (self.shift - 1))) >> self.shift
    }

    /// [`Self::apply`], then `+ zero_point` and saturation to `range`.
    pub fn requantize(self, acc: i32, zero_point: i32, range: QRange) -> i32 {
        let q = self.apply(acc) + i64::from(zero_point);
        q.clamp(i64::from(range.qmin()), i64::from(range.qmax())) as i32
    }
}

/// Two positive real numbers as `mantissas * 2^-shift`, for the sum of two quantized values without floating point.
///
/// Invariant: the larger mantissa is that of its [`Multiplier`], and so is the shift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumMultipliers {
    mantissas: [i32; 2],
    shift: u32,
}

impl SumMultipliers {
    /// The nearest multipliers (halves away from zero), or `None` where the larger is no [`Multiplier`] or the smaller
    /// no positive number.
    pub fn from_reals(reals: [f64; 2]) -> Option<Self> {
        let larger = Multiplier::from_real(if reals[1] < reals[0] { reals[0] } else { reals[1] })?;
        let mantissas = reals.map(|real| libm::round(libm::ldexp(real, larger.shift as i32)));
        if !reals.iter().all(|&real| 0.0 < real) {
            return None;
        }
        // The larger rounds to 2^31 at most where its own multiplier did not move to the next power of two.
        let mantissas = mantissas.map(|m| if m < 2_147_483_647.0 { m as i32 } else { i32::MAX });
        Some(Self { mantissas, shift: larger.shift })
    }

    /// What [`SumMultipliers::mantissas`] and [`SumMultipliers::shift`] of another gave, checked.
    pub fn from_parts(mantissas: [i32; 2], shift: u32) -> Option<Self> {
        let larger = Multiplier::from_parts(mantissas[0].max(mantissas[1]), shift)?;
        (0 <= mantissas[0].min(mantissas[1])).then_some(Self { mantissas, shift: larger.shift })
    }

    /// The integers that the two values are multiplied with.
    pub fn mantissas(self) -> [i32; 2] {
        self.mantissas
    }

    /// The negated power of two that both are multiplied with.
    pub fn shift(self) -> u32 {
        self.shift
    }

    /// `saturate(round(steps[0] * reals[0] + steps[1] * reals[1]) + zero_point)`, halves towards positive infinity, for
    /// steps of at most 16 bits.
    pub fn requantize(self, steps: [i32; 2], zero_point: i32, range: QRange) -> i32 {
        let product = |i: usize| i64::from(steps[i]) * i64::from(self.mantissas[i]);
        let sum = product(0) + product(1);
        let q = ((sum + (1 << (self.shift - 1))) >> self.shift) + i64::from(zero_point);
        q.clamp(i64::from(range.qmin()), i64::from(range.qmax())) as i32
    }
}

/// A positive real number as gemmlowp and TFLite hold it: `mantissa / 2^31 * 2^shift`, `2^30 <=
/// mantissa < 2^31`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmlowpMultiplier {
    mantissa: i32,
    shift: i32,
}

impl GemmlowpMultiplier {
    /// TFLite's `QuantizeMultiplier`: halves of the mantissa away from zero; below 2^-32 it becomes 0.
    ///
    /// `None` for what is negative, NaN or beyond 2^30.
    pub fn from_real(real: f64) -> Option<Self> {
        if !(0.0..=libm::exp2(30.0)).contains(&real) {
            return None;
        }
        let (fraction, mut shift) = libm::frexp(real);
        let mut mantissa = libm::round(libm::ldexp(fraction, 31)) as i64;
        if mantissa == 1 << 31 {
            mantissa >>= 1;
            shift += 1;
        }
        if shift < -31 {
            (mantissa, shift) = (0, 0);
        }
        Some(Self { mantissa: mantissa as i32, shift })
    }

    /// The fraction in units of 2^-31.
    pub fn mantissa(self) -> i32 {
        self.mantissa
    }

    /// The power of two that the fraction is multiplied with.
    pub fn shift(self) -> i32 {
        self.shift
    }

    /// gemmlowp's two roundings: the high half of the doubled product, then a division by a power of two.
    ///
    /// Not the nearest integer: 1 * 0.25 gives 1. The left shift of a multiplier above 1 wraps, as there.
    pub fn apply_double_rounding(self, acc: i32) -> i32 {
        let shifted = acc.wrapping_shl(self.shift.max(0) as u32);
        let high = saturating_rounding_doubling_high_mul(shifted, self.mantissa);
        rounding_divide_by_power_of_two(high, (-self.shift).max(0) as u32)
    }

    /// TFLite's one rounding (`TFLITE_SINGLE_ROUNDING`), halves towards positive infinity.
    pub fn apply_single_rounding(self, acc: i32) -> i64 {
        // `shift <= 30` because `real <= 2^30`, except for 2^30 itself, whose shift is 31.
        let right = (31 - self.shift) as u32;
        let product = i64::from(acc) * i64::from(self.mantissa);
        if right == 0 { product } else { (product + (1 << (right - 1))) >> right }
    }
}

/// gemmlowp's `SaturatingRoundingDoublingHighMul`: `a * b / 2^31`, halves towards positive
/// infinity; ARM's `SQRDMULH`.
pub fn saturating_rounding_doubling_high_mul(a: i32, b: i32) -> i32 {
    if a == i32::MIN && b == i32::MIN {
        return i32::MAX;
    }
    let product = i64::from(a) * i64::from(b);
    let nudge = if 0 <= product { 1 << 30 } else { 1 - (1 << 30) };
    // Truncates towards zero, as C does.
    ((product + nudge) / (1 << 31)) as i32
}

/// gemmlowp's `RoundingDivideByPOT`: `x / 2^exponent`, halves away from zero. `exponent` is at most 31.
pub fn rounding_divide_by_power_of_two(x: i32, exponent: u32) -> i32 {
    let mask = ((1_i64 << exponent) - 1) as i32;
    let remainder = x & mask;
    let threshold = (mask >> 1) + i32::from(x < 0);
    (x >> exponent) + i32::from(threshold < remainder)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REALS: &[f64] =
        &[2.4e-10, 1e-6, 0.00123, 0.25, 0.333, 0.5, 0.999_999_999_9, 1.0, 1.5, 7.0, 5e8];

    #[test]
    fn mantissa_is_normalized() {
        for &real in REALS {
            let m = Multiplier::from_real(real).unwrap();
            assert!(m.mantissa >= 1 << 30 && (1..=62).contains(&m.shift), "{real}: {m:?}");
            let value = f64::from(m.mantissa) * (-f64::from(m.shift)).exp2();
            assert!(((value - real) / real).abs() <= (-31.0_f64).exp2(), "{real}: {m:?}");
        }
        assert_eq!(Multiplier::from_real(0.0), None);
        assert_eq!(Multiplier::from_real(f64::NAN), None);
        // The ends of what it holds.
        for (real, shift) in [((-32.0_f64).exp2(), 62), (29.0_f64.exp2(), 1)] {
            assert_eq!(Multiplier::from_real(real), Some(Multiplier { mantissa: 1 << 30, shift }));
        }
    }

    #[test]
    fn the_sum_without_floating_point_is_the_nearest_code() {
        let range = QRange::U8;
        for (a, b) in [(0.25, 0.75), (1.3, 0.001), (0.7, 0.7), (1e-4, 1.0)] {
            let sum = SumMultipliers::from_reals([a, b]).unwrap();
            assert_eq!(SumMultipliers::from_parts(sum.mantissas(), sum.shift()), Some(sum));
            for steps in [[3, 5], [-255, 255], [200, -7], [0, 0], [1, 1]] {
                let real = f64::from(steps[0]) * a + f64::from(steps[1]) * b;
                let code = sum.requantize(steps, 20, range);
                let want = ((real + 0.5).floor() + 20.0).clamp(0.0, 255.0) as i32;
                assert_eq!(code, want, "{steps:?} of {a} and {b}");
            }
        }
        assert_eq!(SumMultipliers::from_reals([0.0, 1.0]), None);
        assert_eq!(SumMultipliers::from_parts([1 << 29, 3], 31), None, "not normalized");
    }

    #[test]
    fn apply_is_exact_in_i128() {
        let accs = (-1000..=1000).chain([i32::MIN, i32::MIN + 1, i32::MAX, 1 << 30, -(1 << 30)]);
        for acc in accs {
            for &real in REALS {
                let m = Multiplier::from_real(real).unwrap();
                let (n, d) = (
                    2 * i128::from(acc) * i128::from(m.mantissa) + (1_i128 << m.shift),
                    2_i128 << m.shift,
                );
                assert_eq!(i128::from(m.apply(acc)), n.div_euclid(d), "{acc} * {real}");
            }
        }
    }

    #[test]
    fn apply_is_within_one_of_the_f32_path() {
        let mut n_different = 0;
        for acc in (-3_000_000..3_000_000).step_by(997) {
            for &real in REALS {
                let float = (acc as f32 * real as f32).round_ties_even();
                if float.abs() <= 32768.0 {
                    let difference = Multiplier::from_real(real).unwrap().apply(acc) - float as i64;
                    assert!(difference.abs() <= 1, "{acc} * {real}: {difference}");
                    n_different += i64::abs(difference);
                }
            }
        }
        assert!(0 < n_different, "the two paths are expected to differ at some ties");
    }

    #[test]
    fn the_single_rounding_of_gemmlowp_s_form_is_ours() {
        for &real in REALS {
            let ours = Multiplier::from_real(real).unwrap();
            let theirs = GemmlowpMultiplier::from_real(real).unwrap();
            for acc in (-1000..=1000).chain([i32::MIN, i32::MAX]) {
                assert_eq!(theirs.apply_single_rounding(acc), ours.apply(acc), "{acc} * {real}");
            }
        }
    }

    #[test]
    fn requantize_saturates_and_rounds_ties_to_even() {
        let r = |acc, m| requantize(acc, m, 10, QRange::U8);
        assert_eq!([1, 3, -1, -3].map(|acc| r(acc, 0.5)), [10, 12, 10, 8]);
        assert_eq!([i32::MAX, i32::MIN].map(|acc| r(acc, 1e9)), [255, 0]);
        assert_eq!(r(0, f32::INFINITY), 0, "NaN gives qmin");
        // 2^24 + 1 becomes 2^24 before the product.
        assert_eq!(requantize(16_777_217, 1.0 / 16_777_216.0, 0, QRange::I8), 1);
    }

    #[test]
    fn double_rounding_turns_a_quarter_into_one() {
        let quarter = GemmlowpMultiplier::from_real(0.25).unwrap();
        assert_eq!(quarter.apply_double_rounding(1), 1);
        assert_eq!(quarter.apply_single_rounding(1), 0);
    }
}
