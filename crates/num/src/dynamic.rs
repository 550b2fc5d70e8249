//! Parameters chosen while the model runs: ONNX `DynamicQuantizeLinear` (opset 11).

use crate::affine::{QParams, QParamsError, QRange};
use crate::round::ties_even;

/// The scale of a tensor that holds only zeros, on which the implementations differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ZeroScale {
    /// 1: onnxruntime.
    #[default]
    One,
    /// 1/255: the Python reference of onnx.
    OneStep,
}

/// Parameters for [`QRange::U8`] of a tensor whose smallest and largest elements are `min` and `max`.
///
/// `scale = (max - min) / 255` and `zero_point = saturate(round_ties_even(-min / scale))` after the
/// interval was extended to 0, all in `f32`, as the operator is defined: the scale is not the `f64`
/// one of [`QParams::from_min_max`] and can differ from it in the last bit.
///
/// An interval whose scale underflows to 0 counts as all zeros. Refuses bounds that are not finite,
/// and an interval whose length is not.
pub fn quantize_linear_params(
    min: f32,
    max: f32,
    zero_scale: ZeroScale,
) -> Result<QParams, QParamsError> {
    if !(min.is_finite() && max.is_finite() && min <= max) {
        return Err(QParamsError::Bounds { min, max });
    }
    let (min, max) = (min.min(0.0), max.max(0.0));
    let scale = (max - min) / 255.0;
    if scale == 0.0 {
        let scale = match zero_scale {
            ZeroScale::One => 1.0,
            ZeroScale::OneStep => 1.0 / 255.0,
        };
        return QParams::new(scale, 0, QRange::U8);
    }
    let zero_point = ties_even((0.0 - min / scale).clamp(0.0, 255.0)) as i32;
    QParams::new(scale, zero_point, QRange::U8)
}
