//! Half-quadratic quantization: integers with a zero point that is a real number, found without data.
//!
//! For each group it looks for the zero point with the least `sum |x - x'|^0.7`, a norm that forgives outliers: by turns
//! the errors are shrunk towards 0 and the zero point is set to fit what is left ("Half-Quadratic Quantization of Large
//! Machine Learning Models", Badri and Shaji 2023; the arithmetic is that of ONNX Runtime's port). The scale stays that
//! of the range. `x' = scale * (q - zero_point)`; MatMulNBits takes such zero points as they are.

use alloc::vec;
use alloc::vec::Vec;

use super::{
    Encoded, FormatDef, FormatError, Matrix, PartLayout, PartType, Settings, Sharing, bits,
    f32_bytes, f32s,
};
use crate::round::ties_even;

/// What the search is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Whether the zero point begins at an integer.
    pub round_zero: bool,
    /// Turns at most.
    pub n_iterations: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { round_zero: true, n_iterations: 20 }
    }
}

/// `hqq2` to `hqq8`.
pub static DEF: FormatDef = FormatDef {
    name: "hqqN",
    summary: "N-bit integers with a real zero point searched for, blocks of 64",
    source: "Half-Quadratic Quantization (Badri, Shaji 2023); ONNX Runtime's port",
    numbers: &[(1, 8)],
    sharing: Sharing::Block(64),
    sharing_is_free: true,
    is_flat: false,
    needs_max_abs: false,
    layout: |shape, settings| {
        let sharing = settings.sharing;
        let n_groups = sharing.n_groups(shape);
        vec![
            PartLayout::new("codes", PartType::U8, bits::packed_len(shape.n(), settings.n)),
            PartLayout::shared("scale", PartType::F32, n_groups, sharing),
            PartLayout::shared("zero_point", PartType::F32, n_groups, sharing),
        ]
    },
    quantize: |matrix, settings| quantize(matrix, settings),
    dequantize: |encoded, shape, settings| {
        let (scales, zeros) = (encoded.param("scale"), encoded.param("zero_point"));
        let mut values = Vec::with_capacity(shape.n());
        for (i, group) in settings.sharing.groups(shape).enumerate() {
            let value = |q: &i32| ((*q as f32 - zeros[i]) * scales[i]).clamp(f32::MIN, f32::MAX);
            values.extend(encoded.codes[group].iter().map(value));
        }
        values
    },
    pack: |encoded, _, settings| {
        vec![
            bits::pack(&encoded.codes, settings.n),
            f32_bytes(encoded.param("scale")),
            f32_bytes(encoded.param("zero_point")),
        ]
    },
    unpack: |parts, shape, settings| {
        let params = vec![("scale", f32s(parts[1])), ("zero_point", f32s(parts[2]))];
        Encoded::with(bits::unpack(parts[0], shape.n(), settings.n), params)
    },
};

fn quantize(matrix: &Matrix<'_>, settings: &Settings<'_>) -> Result<Encoded, FormatError> {
    matrix.finite()?;
    let mut codes = vec![0; matrix.shape().n()];
    let (mut scales, mut zeros) = (vec![], vec![]);
    for group in settings.sharing.groups(&matrix.shape()) {
        let x = &matrix.values()[group.clone()];
        // Each group stops by itself. (ONNX Runtime's port stops all groups of a tensor together.)
        let fit = fit(&[x], settings.n, Options::default());
        let (scale, zero) = (1.0 / fit.inverse_scales[0], fit.zeros[0]);
        for (x, code) in x.iter().zip(&mut codes[group]) {
            *code = fit.code(0, *x);
        }
        scales.push(scale);
        zeros.push(zero);
    }
    Ok(Encoded::with(codes, vec![("scale", scales), ("zero_point", zeros)]))
}

/// What was found for some groups.
pub struct Fit {
    /// `1 / scale` of each.
    pub inverse_scales: Vec<f32>,
    /// The zero point of each.
    pub zeros: Vec<f32>,
    qmax: f32,
}

impl Fit {
    /// The code of a value of group `i`.
    pub fn code(&self, i: usize, x: f32) -> i32 {
        code(x, self.inverse_scales[i], self.zeros[i], self.qmax)
    }
}

fn code(x: f32, inverse_scale: f32, zero: f32, qmax: f32) -> i32 {
    ties_even(x * inverse_scale + zero).clamp(0.0, qmax) as i32
}

/// Searches the zero points of `groups` together: they stop when the mean error of all no longer falls.
pub fn fit(groups: &[&[f32]], n_bits: u32, options: Options) -> Fit {
    let qmax = ((1_u32 << n_bits) - 1) as f32;
    let (mut inverse_scales, mut zeros) = (vec![], vec![]);
    for x in groups {
        let min = x.iter().copied().fold(f32::INFINITY, f32::min);
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // At most an eighth of the largest `f32`, so that the scale is finite; what is beyond is cut.
        let width = if max <= min { qmax } else { (max - min).min(f32::MAX / 8.0) };
        let inverse_scale = (qmax / width).min(2e4);
        let zero = if min.is_finite() { -min * inverse_scale } else { 0.0 };
        inverse_scales.push(inverse_scale);
        zeros.push(if options.round_zero { ties_even(zero) } else { zero });
    }
    let n: usize = groups.iter().map(|x| x.len()).sum();
    let mut beta = 10.0_f32;
    let mut least = f32::INFINITY;
    for _ in 0..options.n_iterations {
        let mut error = 0.0_f64;
        let mut next = zeros.clone();
        for (i, x) in groups.iter().enumerate() {
            let (inverse_scale, zero) = (inverse_scales[i], zeros[i]);
            let mut sum = 0.0_f64;
            for x in *x {
                let q = ties_even(x * inverse_scale + zero).clamp(0.0, qmax);
                let back = (q - zero) / inverse_scale;
                let shrunk = shrink(x - back, beta);
                sum += f64::from(q - (x - shrunk) * inverse_scale);
                error += f64::from((x - back).abs());
            }
            if !x.is_empty() {
                next[i] = (sum / x.len() as f64) as f32;
            }
        }
        zeros = next;
        beta *= 1.01;
        let mean = (error / n.max(1) as f64) as f32;
        if mean < least {
            least = mean;
        } else {
            break;
        }
    }
    Fit { inverse_scales, zeros, qmax }
}

/// The proximal step of `|x|^0.7`: what is left of an error.
fn shrink(x: f32, beta: f32) -> f32 {
    let left = x.abs() - libm::powf(x.abs() + 1e-8, 0.7 - 1.0) / beta;
    if 0.0 < left { left.copysign(x) } else { 0.0 }
}
