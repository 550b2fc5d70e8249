//! The bias of an integer convolution or matrix product: `i32`, with the scale of the sums it is added to.

use crate::affine::QParamsError;
use crate::round::ties_even_f64;

/// The scale of a bias: that of the products, `x_scale * w_scale` in `f32`, with zero point 0.
///
/// Refuses a product that is not a positive finite `f32`, such as `1e-30 * 1e-30`.
pub fn bias_scale(x_scale: f32, w_scale: f32) -> Result<f32, QParamsError> {
    let scale = x_scale * w_scale;
    if scale.is_finite() && scale > 0.0 { Ok(scale) } else { Err(QParamsError::Scale(scale)) }
}

/// `round_ties_even(bias / scale)` in `f64`, saturated to `i32`. NaN gives 0.
///
/// In `f64` because an `f32` quotient has 24 bits and the code has 31: 0.1 in steps of 1e-9 is 100000004, and
/// 100000008 in `f32`.
pub fn quantize_bias(bias: f32, scale: f32) -> i32 {
    // `as` saturates.
    ties_even_f64(f64::from(bias) / f64::from(scale)) as i32
}

/// `scale * q`, computed in `f64` and rounded once.
pub fn dequantize_bias(q: i32, scale: f32) -> f32 {
    (f64::from(scale) * f64::from(q)) as f32
}

/// A larger weight scale, when with `w_scale` the bias would not fit an `i32`; `None` when it fits.
///
/// `max_abs_bias` is the largest magnitude among the biases that share `w_scale`. A channel whose
/// weights are tiny and whose bias is not would saturate silently: with `x_scale = 1e-3` and
/// `w_scale = 1e-9`, a bias of 3 is 3e12 steps. The weight is then quantized again, more coarsely,
/// with the scale returned. onnxruntime's `_adjust_weight_scale_for_int32_bias`, with its margin of
/// 1.0001, for symmetric weights. A bias that is not finite has no scale and gives `None`.
pub fn weight_scale_for_bias(x_scale: f32, w_scale: f32, max_abs_bias: f32) -> Option<f32> {
    let n_steps = f64::from(i32::MAX) - f64::from(i32::MIN + 1);
    let smallest = 1.0001 * (2.0 * f64::from(max_abs_bias.abs())) / n_steps;
    let scale = f64::from(x_scale) * f64::from(w_scale);
    if !(0.0 < scale && scale < smallest && smallest.is_finite()) {
        return None;
    }
    let enlarged = (f64::from(w_scale) * (smallest / scale)) as f32;
    enlarged.is_finite().then_some(enlarged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_rounded_in_f64_and_saturates() {
        assert_eq!(quantize_bias(16_777_218.0, 2.0), 8_388_609);
        assert_eq!(quantize_bias(1.0, 1.0 / 3.0), 3);
        assert_eq!([0.5, 1.5, -2.5].map(|b| quantize_bias(b, 1.0)), [0, 2, -2]);
        assert_eq!(quantize_bias(1e9, 1e-9), i32::MAX);
        assert_eq!(quantize_bias(-1e9, 1e-9), i32::MIN);
        assert_eq!(quantize_bias(0.1, 1e-9), 100_000_004);
        assert_eq!((0.1_f32 / 1e-9_f32) as i32, 100_000_008);
    }

    #[test]
    fn an_enlarged_weight_scale_lets_the_bias_fit_and_is_not_larger_than_needed() {
        for (x_scale, w_scale, bias) in [(1e-3, 1e-9, 3.0), (0.02, 1e-20, -7.5), (1.0, 1e-12, 0.5)]
        {
            let enlarged = weight_scale_for_bias(x_scale, w_scale, bias).unwrap();
            let q = quantize_bias(bias, bias_scale(x_scale, enlarged).unwrap());
            let magnitude = q.unsigned_abs();
            assert!((2_147_000_000..i32::MAX as u32).contains(&magnitude), "{bias}: {q}");
            assert_eq!(weight_scale_for_bias(x_scale, enlarged * 1.000_001, bias), None);
        }
    }

    #[test]
    fn a_bias_that_fits_or_is_not_finite_leaves_the_scale_alone() {
        for bias in [0.0, 1.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(weight_scale_for_bias(0.01, 0.01, bias), None, "{bias}");
        }
    }

    #[test]
    fn products_that_underflow_are_refused() {
        assert_eq!(bias_scale(0.5, 0.25), Ok(0.125));
        assert_eq!(bias_scale(1e-30, 1e-30), Err(QParamsError::Scale(0.0)));
        assert_eq!(bias_scale(1e30, 1e30), Err(QParamsError::Scale(f32::INFINITY)));
    }
}
