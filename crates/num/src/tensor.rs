//! Whole tensors at any granularity: the definition that kernels are compared with.

use alloc::vec::Vec;
use core::fmt;

use crate::affine::{QParams, QParamsError, QRange, Symmetry};
use crate::granularity::{Layout, Run, RunParams};

/// An integer that holds quantized values.
pub trait Code: Copy {
    /// From a value that is in the type's range.
    fn from_i32(q: i32) -> Self;
    /// The value.
    fn to_i32(self) -> i32;
}

macro_rules! code {
    ($($ty:ty),*) => {$(
        impl Code for $ty {
            #[inline]
            fn from_i32(q: i32) -> Self {
                q as Self
            }
            #[inline]
            fn to_i32(self) -> i32 {
                self as i32
            }
        }
    )*};
}

code!(i8, u8, i16, u16, i32);

/// ONNX `QuantizeLinear`: `dst[i] = params.quantize(src[i])` with the parameters of element `i`.
///
/// `params` are in the order of [`Layout::param_of`]. `T` has to hold `range`.
///
/// # Panics
///
/// When the slices' lengths are not those of `layout`.
pub fn quantize<T: Code>(
    src: &[f32],
    dst: &mut [T],
    layout: Layout,
    params: &[QParams],
    range: QRange,
) {
    check_lengths(layout, src.len(), dst.len(), params.len());
    for Run { elements, params: which } in layout.runs() {
        for (k, (x, q)) in src[elements.clone()].iter().zip(&mut dst[elements]).enumerate() {
            *q = T::from_i32(params[nth(which, k)].quantize(*x, range));
        }
    }
}

/// ONNX `DequantizeLinear`: `dst[i] = params.dequantize(src[i])` with the parameters of element `i`.
///
/// # Panics
///
/// When the slices' lengths are not those of `layout`.
pub fn dequantize<T: Code>(src: &[T], dst: &mut [f32], layout: Layout, params: &[QParams]) {
    check_lengths(layout, src.len(), dst.len(), params.len());
    for Run { elements, params: which } in layout.runs() {
        for (k, (q, x)) in src[elements.clone()].iter().zip(&mut dst[elements]).enumerate() {
            *x = params[nth(which, k)].dequantize(q.to_i32());
        }
    }
}

/// Quantizes and dequantizes in place: what the values become, in `f32`.
///
/// # Panics
///
/// When the slices' lengths are not those of `layout`.
pub fn fake_quantize(values: &mut [f32], layout: Layout, params: &[QParams], range: QRange) {
    check_lengths(layout, values.len(), values.len(), params.len());
    for Run { elements, params: which } in layout.runs() {
        for (k, x) in values[elements].iter_mut().enumerate() {
            *x = params[nth(which, k)].fake_quantize(*x, range);
        }
    }
}

/// Divides each value by its scale: what is left is rounded to a floating type (ONNX `QuantizeLinear` to one).
///
/// # Panics
///
/// When the slices' lengths are not those of `layout`.
pub fn divide_by_scales(values: &mut [f32], layout: Layout, params: &[QParams]) {
    check_lengths(layout, values.len(), values.len(), params.len());
    for Run { elements, params: which } in layout.runs() {
        for (k, x) in values[elements].iter_mut().enumerate() {
            *x /= params[nth(which, k)].scale();
        }
    }
}

/// Multiplies each value with its scale: the reverse of [`divide_by_scales`].
///
/// # Panics
///
/// When the slices' lengths are not those of `layout`.
pub fn multiply_by_scales(values: &mut [f32], layout: Layout, params: &[QParams]) {
    check_lengths(layout, values.len(), values.len(), params.len());
    for Run { elements, params: which } in layout.runs() {
        for (k, x) in values[elements].iter_mut().enumerate() {
            *x *= params[nth(which, k)].scale();
        }
    }
}

/// Parameters that cover each group of elements: the weight quantizer of onnxruntime, at any granularity.
///
/// In `f64` from each group's extremes. onnxruntime does so per tensor and per axis; its blocked
/// form subtracts in `f32` and can differ in the last bit of the scale.
///
/// Symmetric groups all have the same zero point, also those that hold only zeros: QLinearConv
/// takes one for all channels. (A single group of zeros has 0, as [`QParams::symmetric`].)
///
/// # Panics
///
/// When `values` are not as many as `layout` has.
pub fn params_of(
    values: &[f32],
    layout: Layout,
    range: QRange,
    symmetry: Symmetry,
) -> Result<Vec<QParams>, ParamsError> {
    let shared = symmetry == Symmetry::Symmetric && 1 < layout.n_params();
    min_max_of(values, layout)
        .into_iter()
        .enumerate()
        .map(|(param, (min, max))| {
            let params = symmetry.params(min, max, range).and_then(|params| match shared {
                true => QParams::new(params.scale(), range.symmetric_zero_point(), range),
                false => Ok(params),
            });
            params.map_err(|source| ParamsError { param, source })
        })
        .collect()
}

/// The smallest and largest element of each group, in the order of the parameters.
///
/// A group without elements has `(0, 0)`; one with a NaN has `(NaN, NaN)`.
///
/// # Panics
///
/// When `values` are not as many as `layout` has.
pub fn min_max_of(values: &[f32], layout: Layout) -> Vec<(f32, f32)> {
    assert_eq!(values.len(), layout.n_elements(), "one value an element");
    let mut bounds = alloc::vec![(f32::INFINITY, f32::NEG_INFINITY); layout.n_params()];
    for Run { elements, params: which } in layout.runs() {
        for (k, x) in values[elements].iter().enumerate() {
            let (min, max) = &mut bounds[nth(which, k)];
            if x.is_nan() || min.is_nan() {
                (*min, *max) = (f32::NAN, f32::NAN);
            } else {
                (*min, *max) = (min.min(*x), max.max(*x));
            }
        }
    }
    for bound in &mut bounds {
        if *bound == (f32::INFINITY, f32::NEG_INFINITY) {
            *bound = (0.0, 0.0);
        }
    }
    bounds
}

/// Which group of elements has no parameters, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParamsError {
    /// The parameter's place in the order of [`Layout::param_of`].
    pub param: usize,
    /// What is wrong with the values.
    pub source: QParamsError,
}

impl fmt::Display for ParamsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "parameter {}", self.param)
    }
}

impl core::error::Error for ParamsError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&self.source)
    }
}

fn nth(params: RunParams, k: usize) -> usize {
    match params {
        RunParams::One(param) => param,
        RunParams::Each(first) => first + k,
    }
}

fn check_lengths(layout: Layout, n_src: usize, n_dst: usize, n_params: usize) {
    assert_eq!(n_src, layout.n_elements(), "one source value an element");
    assert_eq!(n_dst, layout.n_elements(), "one result an element");
    assert_eq!(n_params, layout.n_params(), "the layout's number of parameters");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::granularity::Granularity;

    #[test]
    fn every_channel_uses_its_own_parameters() {
        let weights = [1.0, -2.0, 0.5, 10.0, -20.0, 5.0];
        let layout = Granularity::PerAxis { axis: 0 }.layout(&[2, 3]).unwrap();
        let range = QRange::I8_NARROW;
        let params = params_of(&weights, layout, range, Symmetry::Symmetric).unwrap();
        let mut codes = [0_i8; 6];
        quantize(&weights, &mut codes, layout, &params, range);
        assert_eq!(codes, [64, -127, 32, 64, -127, 32]);

        let mut back = [0.0; 6];
        dequantize(&codes, &mut back, layout, &params);
        let mut faked = weights;
        fake_quantize(&mut faked, layout, &params, range);
        assert_eq!(back, faked);
    }

    #[test]
    fn a_value_that_is_not_finite_is_refused_with_its_group() {
        let layout = Granularity::PerAxis { axis: 1 }.layout(&[2, 3]).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let values = [1.0, 2.0, 3.0, 4.0, 5.0, bad];
            let refused = params_of(&values, layout, QRange::I8, Symmetry::Asymmetric).unwrap_err();
            assert_eq!(refused.param, 2, "{bad}");
        }
        let nan_first = [f32::NAN, 1.0, 1.0, 2.0, 1.0, 1.0];
        assert!(params_of(&nan_first, layout, QRange::I8, Symmetry::Symmetric).is_err());
    }

    #[test]
    fn a_channel_of_zeros_shares_the_zero_point_of_the_others() {
        let layout = Granularity::PerAxis { axis: 0 }.layout(&[2, 2]).unwrap();
        let params = params_of(&[0.0, 0.0, -1.0, 2.0], layout, QRange::U8, Symmetry::Symmetric);
        let params: Vec<i32> = params.unwrap().iter().map(|p| p.zero_point()).collect();
        assert_eq!(params, [128, 128]);
    }

    #[test]
    fn an_empty_tensor_has_parameters_and_no_codes() {
        let layout = Granularity::PerTensor.layout(&[0, 4]).unwrap();
        let params = params_of(&[], layout, QRange::U8, Symmetry::Asymmetric).unwrap();
        assert_eq!(params, [QParams::new(1.0, 0, QRange::U8).unwrap()]);
        quantize::<u8>(&[], &mut [], layout, &params, QRange::U8);
    }
}
