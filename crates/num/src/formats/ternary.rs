//! `scale * (-1, 0 or 1)`, in two bits.
//!
//! Ternary weight networks (Li, Zhang, Liu 2016): codes are 0 up to `0.7 * mean |x|`, and the scale is the mean
//! magnitude of the others, which is the best one for those codes.

use alloc::vec;
use alloc::vec::Vec;

use super::{
    Encoded, FormatDef, FormatError, Matrix, PartLayout, PartType, Settings, Sharing, bits,
    f32_bytes, f32s, search,
};

/// `ternary`.
pub static DEF: FormatDef = FormatDef {
    name: "ternary",
    summary: "-1, 0 and 1 times a scale a row",
    source: "Ternary Weight Networks (Li et al. 2016)",
    numbers: &[],
    sharing: Sharing::Row,
    sharing_is_free: true,
    is_flat: false,
    needs_max_abs: false,
    layout: |shape, settings| {
        let sharing = settings.sharing;
        vec![
            PartLayout::new("codes", PartType::U8, bits::packed_len(shape.n(), 2)),
            PartLayout::shared("scale", PartType::F32, sharing.n_groups(shape), sharing),
        ]
    },
    quantize,
    dequantize: |encoded, shape, settings| {
        let mut values = Vec::with_capacity(shape.n());
        for (group, scale) in settings.sharing.groups(shape).zip(encoded.param("scale")) {
            values.extend(encoded.codes[group].iter().map(|code| scale * *code as f32));
        }
        values
    },
    pack: |encoded, _, _| vec![bits::pack(&encoded.codes, 2), f32_bytes(encoded.param("scale"))],
    unpack: |parts, shape, _| {
        let codes = bits::unpack_signed(parts[0], shape.n(), 2);
        Encoded::with(codes, vec![("scale", f32s(parts[1]))])
    },
};

fn quantize(matrix: &Matrix<'_>, settings: &Settings<'_>) -> Result<Encoded, FormatError> {
    matrix.finite()?;
    let shape = matrix.shape();
    let mut codes = Vec::with_capacity(shape.n());
    let mut scales = Vec::new();
    for group in settings.sharing.groups(&shape) {
        let x = &matrix.values()[group.clone()];
        let importance = search::columns(settings, &group, shape.cols);
        let weight = |i: usize| importance.map_or(1.0, |w| f64::from(w[i]));
        let mean = x.iter().map(|x| f64::from(x.abs())).sum::<f64>() / x.len().max(1) as f64;
        let threshold = 0.7 * mean;
        let (mut sum, mut n) = (0.0, 0.0);
        for (i, x) in x.iter().enumerate() {
            let magnitude = f64::from(x.abs());
            codes.push(if magnitude <= threshold {
                0
            } else if *x < 0.0 {
                -1
            } else {
                1
            });
            if threshold < magnitude {
                sum += weight(i) * magnitude;
                n += weight(i);
            }
        }
        scales.push(if 0.0 < n { (sum / n) as f32 } else { 0.0 });
    }
    Ok(Encoded::with(codes, vec![("scale", scales)]))
}
