//! Integers of 1 to 16 bits with a scale for each group.
//!
//! `intN` is symmetric: `x' = scale * q`, `q` in `-(2^(N-1) - 1)..=2^(N-1) - 1`, `scale = max_abs / qmax`. `uintN` is
//! asymmetric: `x' = scale * (q - zero_point)` over the group's own range, extended to 0. Both quantize as
//! [`QParams::quantize`] does. One bit is a sign: `int1` is `scale * (+1 or -1)` with `scale = mean |x|`, which is the
//! best one (XNOR-Net, Rastegari et al. 2016), and 0 is `+1`.

use alloc::vec;
use alloc::vec::Vec;

use super::{
    Encoded, FormatDef, FormatError, Matrix, PartLayout, PartType, Settings, Shape, Sharing, bits,
    f32_bytes, f32s, max_abs, search,
};
use crate::affine::{QParams, QRange, Sign, Span};

/// `int1` to `int16`.
pub static SIGNED: FormatDef = FormatDef {
    name: "intN",
    summary: "N-bit integers, symmetric; one scale a row",
    source: "ONNX QuantizeLinear with zero point 0; one bit: XNOR-Net",
    numbers: &[(1, 16)],
    sharing: Sharing::Row,
    sharing_is_free: true,
    is_flat: false,
    needs_max_abs: false,
    layout: |shape, settings| layout(shape, settings, true),
    quantize: |matrix, settings| quantize(matrix, settings, true),
    dequantize: |encoded, shape, settings| dequantize(encoded, shape, settings, true),
    pack: |encoded, _, settings| {
        vec![bits::pack(&encoded.codes, settings.n), f32_bytes(encoded.param("scale"))]
    },
    unpack: |parts, shape, settings| {
        let codes = if settings.n == 1 {
            bits::unpack(parts[0], shape.n(), 1)
        } else {
            bits::unpack_signed(parts[0], shape.n(), settings.n)
        };
        Encoded::with(codes, vec![("scale", f32s(parts[1]))])
    },
};

/// `uint1` to `uint16`.
pub static UNSIGNED: FormatDef = FormatDef {
    name: "uintN",
    summary: "N-bit integers, asymmetric; one scale and zero point a row",
    source: "ONNX QuantizeLinear",
    numbers: &[(1, 16)],
    sharing: Sharing::Row,
    sharing_is_free: true,
    is_flat: false,
    needs_max_abs: false,
    layout: |shape, settings| layout(shape, settings, false),
    quantize: |matrix, settings| quantize(matrix, settings, false),
    dequantize: |encoded, shape, settings| dequantize(encoded, shape, settings, false),
    pack: |encoded, _, settings| {
        let zero_points = encoded.param("zero_point");
        let bytes = match settings.n {
            ..=8 => zero_points.iter().map(|z| *z as u8).collect(),
            _ => zero_points.iter().flat_map(|z| (*z as u16).to_le_bytes()).collect(),
        };
        vec![bits::pack(&encoded.codes, settings.n), f32_bytes(encoded.param("scale")), bytes]
    },
    unpack: |parts, shape, settings| {
        let zero_points = match settings.n {
            ..=8 => parts[2].iter().map(|z| f32::from(*z)).collect(),
            _ => parts[2].as_chunks().0.iter().map(|z| f32::from(u16::from_le_bytes(*z))).collect(),
        };
        let codes = bits::unpack(parts[0], shape.n(), settings.n);
        Encoded::with(codes, vec![("scale", f32s(parts[1])), ("zero_point", zero_points)])
    },
};

fn layout(shape: &Shape, settings: &Settings<'_>, is_signed: bool) -> Vec<PartLayout> {
    let sharing = settings.sharing;
    let n_groups = sharing.n_groups(shape);
    let codes = match (settings.n, is_signed) {
        (8, true) => PartLayout::new("codes", PartType::I8, shape.n()),
        (16, true) => PartLayout::new("codes", PartType::I16, shape.n()),
        (16, false) => PartLayout::new("codes", PartType::U16, shape.n()),
        (n, _) => PartLayout::new("codes", PartType::U8, bits::packed_len(shape.n(), n)),
    };
    let mut parts = vec![codes, PartLayout::shared("scale", PartType::F32, n_groups, sharing)];
    if !is_signed {
        let ty = if settings.n <= 8 { PartType::U8 } else { PartType::U16 };
        parts.push(PartLayout::shared("zero_point", ty, n_groups, sharing));
    }
    parts
}

/// The integers of `intN` (two bits and more) or `uintN`.
pub fn range(n: u32, is_signed: bool) -> QRange {
    let (sign, span) =
        if is_signed { (Sign::Signed, Span::Narrow) } else { (Sign::Unsigned, Span::Full) };
    QRange::of(n, sign, span).expect("2 to 16 bits, or 1 to 16 unsigned ones")
}

fn quantize(
    matrix: &Matrix<'_>,
    settings: &Settings<'_>,
    is_signed: bool,
) -> Result<Encoded, FormatError> {
    matrix.finite()?;
    let shape = matrix.shape();
    let mut codes = Vec::with_capacity(shape.n());
    let (mut scales, mut zero_points) = (Vec::new(), Vec::new());
    for group in settings.sharing.groups(&shape) {
        let x = &matrix.values()[group.clone()];
        let importance = search::columns(settings, &group, shape.cols);
        if is_signed && settings.n == 1 {
            scales.push(mean_abs(x, importance));
            codes.extend(x.iter().map(|x| i32::from(0.0 <= *x)));
            continue;
        }
        let range = range(settings.n, is_signed);
        let max = match settings.sharing {
            Sharing::Tensor => settings.max_abs_of(x),
            _ => max_abs(x),
        };
        let params = if is_signed { symmetric(max, range) } else { asymmetric(x, 1.0, range) };
        let params = match settings.search {
            search::Search::MaxAbs => params,
            search::Search::Mse => {
                let candidates =
                    (0..search::N_STEPS).map(|i| 1.0 - i as f32 / 100.0).map(|shrink| {
                        if is_signed {
                            symmetric(max * shrink, range)
                        } else {
                            asymmetric(x, shrink, range)
                        }
                    });
                search::best(candidates, |params| {
                    search::error(x, importance, |x| params.fake_quantize(x, range))
                })
                .unwrap_or(params)
            }
        };
        codes.extend(x.iter().map(|x| params.quantize(*x, range)));
        scales.push(params.scale());
        zero_points.push(params.zero_point() as f32);
    }
    let mut params = vec![("scale", scales)];
    if !is_signed {
        params.push(("zero_point", zero_points));
    }
    Ok(Encoded::with(codes, params))
}

/// Scale and zero point of a row of `intN` whose largest magnitude is `max_abs`.
pub fn symmetric(max_abs: f32, range: QRange) -> QParams {
    QParams::symmetric(-max_abs, max_abs, range).expect("a finite interval")
}

/// Of `uintN` over the range of `x`, both ends times `shrink`.
fn asymmetric(x: &[f32], shrink: f32, range: QRange) -> QParams {
    let (min, max) = x.iter().fold((0.0_f32, 0.0_f32), |(min, max), x| (min.min(*x), max.max(*x)));
    let (min, max) = (min * shrink, max * shrink);
    // One bit has one step, and the width of an interval can be more than the largest `f32`: then half of it is kept.
    QParams::from_min_max(min, max, range)
        .or_else(|_| QParams::from_min_max(min / 2.0, max / 2.0, range))
        .expect("a finite interval with 0")
}

/// `sum w |x| / sum w`; 1 without elements, or when all are 0.
fn mean_abs(x: &[f32], importance: Option<&[f32]>) -> f32 {
    let weight = |i: usize| importance.map_or(1.0, |w| f64::from(w[i]));
    let (mut sum, mut n) = (0.0, 0.0);
    for (i, x) in x.iter().enumerate() {
        sum += weight(i) * f64::from(x.abs());
        n += weight(i);
    }
    let mean = (sum / n) as f32;
    if mean.is_finite() { mean } else { 0.0 }
}

fn dequantize(
    encoded: &Encoded,
    shape: &Shape,
    settings: &Settings<'_>,
    is_signed: bool,
) -> Vec<f32> {
    let scales = encoded.param("scale");
    let mut values = Vec::with_capacity(shape.n());
    for (i, group) in settings.sharing.groups(shape).enumerate() {
        let zero_point = if is_signed { 0 } else { encoded.param("zero_point")[i] as i32 };
        values.extend(encoded.codes[group].iter().map(|code| match (is_signed, settings.n) {
            (true, 1) => scales[i] * (2 * code - 1) as f32,
            _ => scales[i] * (code - zero_point) as f32,
        }));
    }
    values
}
