//! NVFP4: E2M1 elements, an E4M3 scale for each block of 16, one `f32` scale for the tensor.
//!
//! `global = max_abs / (6 * 448)`, `scale = E4M3(block_max / (6 * global))`, `code = E2M1(x / (scale * global))`; what
//! is stored of a block of zeros is the scale 1. A block so small that its scale would round to 0 gets the smallest
//! scale there is. As in NVIDIA's ModelOpt, zeros have the code 0 whatever their sign, and a negative value that rounds
//! to 0 has the code of minus zero.

use alloc::vec;
use alloc::vec::Vec;

use super::float::{FloatType, Overflow};
use super::{
    Encoded, FormatDef, FormatError, Matrix, PartLayout, PartType, Settings, Sharing, bits,
    f32_bytes, f32s, max_abs,
};

const ELEMENT: FloatType = FloatType::FP4_E2M1;
const SCALE: FloatType = FloatType::FP8_E4M3FN;

/// `nvfp4`.
pub static DEF: FormatDef = FormatDef {
    name: "nvfp4",
    summary: "E2M1 floats, blocks of 16 with an E4M3 scale, and one for the tensor",
    source: "NVIDIA ModelOpt, `NVFP4QTensor`",
    numbers: &[],
    sharing: Sharing::Block(16),
    sharing_is_free: false,
    is_flat: false,
    needs_max_abs: true,
    layout: |shape, settings| {
        vec![
            PartLayout::new("codes", PartType::U8, shape.n().div_ceil(2)),
            PartLayout::new("scale", PartType::F8E4M3Fn, settings.sharing.n_groups(shape)),
            PartLayout::shared("global_scale", PartType::F32, 1, Sharing::Tensor),
        ]
    },
    quantize: |matrix, settings| quantize(matrix, settings),
    dequantize: |encoded, shape, settings| {
        let global = encoded.param("global_scale")[0];
        let mut values = Vec::with_capacity(shape.n());
        for (group, scale) in settings.sharing.groups(shape).zip(encoded.param("scale")) {
            let scale = SCALE.decode(*scale as u32) * global;
            values.extend(
                encoded.codes[group].iter().map(|code| ELEMENT.decode(*code as u32) * scale),
            );
        }
        values
    },
    pack: |encoded, _, _| {
        vec![
            bits::pack(&encoded.codes, 4),
            encoded.param("scale").iter().map(|scale| *scale as u8).collect(),
            f32_bytes(encoded.param("global_scale")),
        ]
    },
    unpack: |parts, shape, _| {
        let scales = parts[1].iter().map(|scale| f32::from(*scale)).collect();
        let params = vec![("scale", scales), ("global_scale", f32s(parts[2]))];
        Encoded::with(bits::unpack(parts[0], shape.n(), 4), params)
    },
};

fn quantize(matrix: &Matrix<'_>, settings: &Settings<'_>) -> Result<Encoded, FormatError> {
    matrix.finite()?;
    let max = settings.max_abs_of(matrix.values());
    let global = max / (ELEMENT.max() * SCALE.max());
    let global = if global < f32::MIN_POSITIVE { 1.0 } else { global };
    let mut codes = Vec::with_capacity(matrix.shape().n());
    let mut scales = Vec::new();
    for group in settings.sharing.groups(&matrix.shape()) {
        let x = &matrix.values()[group];
        let scale = match max_abs(x) {
            0.0 => SCALE.encode(1.0, Overflow::Saturate),
            max => SCALE.encode(max / (ELEMENT.max() * global), Overflow::Saturate).max(1),
        };
        let step = SCALE.decode(scale) * global;
        codes.extend(x.iter().map(|x| match *x {
            0.0 => 0,
            x => ELEMENT.encode(x / step, Overflow::Saturate) as i32,
        }));
        scales.push(scale as f32);
    }
    Ok(Encoded::with(codes, vec![("scale", scales), ("global_scale", vec![global])]))
}
