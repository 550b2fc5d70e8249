//! Scales that are quantized themselves: bitsandbytes' double quantization.
//!
//! The `absmax` of NF4's or FP4's blocks, less their mean, become codes of the signed dynamic map in blocks of 256:
//! `8 / 64 + 32 / (64 * 256)` bits for each weight instead of `32 / 64`. ("QLoRA", Dettmers et al. 2023, section 3.)

use alloc::vec;
use alloc::vec::Vec;

use super::codebook::{
    Codebook, FP4_CODE, NF4_CODE, block_size, dequantize_blocks, dynamic_map, pad, quantize_blocks,
};
use super::{
    Encoded, FormatDef, FormatError, Matrix, PartLayout, PartType, Settings, Shape, Sharing, bits,
    f32_bytes, f32s,
};

/// Scales that share a scale.
pub const BLOCK_SIZE: usize = 256;

/// `absmax` as codes: the codes, the scale of each [`BLOCK_SIZE`] of them, and the mean that was taken off.
pub fn quantize_scales(absmax: &[f32]) -> (Vec<i32>, Vec<f32>, f32) {
    // In f64: torch adds f32s in an order of its own, and this is within its rounding.
    let sum: f64 = absmax.iter().map(|x| f64::from(*x)).sum();
    let offset = (sum / absmax.len().max(1) as f64) as f32;
    let (codes, scales) = quantize_scales_from(absmax, offset);
    (codes, scales, offset)
}

/// [`quantize_scales`] with the mean given.
pub fn quantize_scales_from(absmax: &[f32], offset: f32) -> (Vec<i32>, Vec<f32>) {
    let centered: Vec<f32> = absmax.iter().map(|x| x - offset).collect();
    quantize_blocks(&Codebook::new(dynamic_map(true)), &centered, BLOCK_SIZE)
}

/// The `absmax` that codes stand for.
pub fn dequantize_scales(codes: &[i32], scales: &[f32], offset: f32) -> Vec<f32> {
    let mut absmax =
        dequantize_blocks(&Codebook::new(dynamic_map(true)), codes, scales, BLOCK_SIZE);
    absmax.iter_mut().for_each(|x| *x += offset);
    absmax
}

fn layout(shape: &Shape, settings: &Settings<'_>) -> Vec<PartLayout> {
    let n_scales = settings.sharing.n_groups(shape);
    vec![
        PartLayout::new("codes", PartType::U8, shape.n().div_ceil(2)),
        PartLayout::new("absmax", PartType::U8, n_scales),
        PartLayout::new("nested_absmax", PartType::F32, n_scales.div_ceil(BLOCK_SIZE)),
        PartLayout::shared("nested_offset", PartType::F32, 1, Sharing::Tensor),
    ]
}

fn quantize(
    code: [f32; 16],
    matrix: &Matrix<'_>,
    settings: &Settings<'_>,
) -> Result<Encoded, FormatError> {
    matrix.finite()?;
    let codebook = Codebook::new(code.to_vec());
    let (codes, absmax) = quantize_blocks(&codebook, matrix.values(), block_size(settings));
    let (scale_codes, scales, offset) = quantize_scales(&absmax);
    let scale_codes = scale_codes.iter().map(|code| *code as f32).collect();
    let params =
        vec![("absmax", scale_codes), ("nested_absmax", scales), ("nested_offset", vec![offset])];
    Ok(Encoded::with(codes, params))
}

fn dequantize(code: [f32; 16], encoded: &Encoded, settings: &Settings<'_>) -> Vec<f32> {
    let codes: Vec<i32> = encoded.param("absmax").iter().map(|code| *code as i32).collect();
    let offset = encoded.param("nested_offset")[0];
    let absmax = dequantize_scales(&codes, encoded.param("nested_absmax"), offset);
    let codebook = Codebook::new(code.to_vec());
    dequantize_blocks(&codebook, &encoded.codes, &absmax, block_size(settings))
}

fn pack(code: [f32; 16], encoded: &Encoded) -> Vec<Vec<u8>> {
    vec![
        bits::pack_high_first(&encoded.codes, pad(&Codebook::new(code.to_vec()))),
        encoded.param("absmax").iter().map(|code| *code as u8).collect(),
        f32_bytes(encoded.param("nested_absmax")),
        f32_bytes(encoded.param("nested_offset")),
    ]
}

fn unpack(parts: &[&[u8]], shape: &Shape) -> Encoded {
    let params = vec![
        ("absmax", parts[1].iter().map(|code| f32::from(*code)).collect()),
        ("nested_absmax", f32s(parts[2])),
        ("nested_offset", f32s(parts[3])),
    ];
    Encoded::with(bits::unpack_high_first(parts[0], shape.n()), params)
}

macro_rules! nested {
    ($(#[$doc:meta])* $def:ident, $name:literal, $code:ident, $summary:literal) => {
        $(#[$doc])*
        pub static $def: FormatDef = FormatDef {
            name: $name,
            summary: $summary,
            source: "QLoRA (Dettmers et al. 2023), double quantization; bitsandbytes",
            numbers: &[],
            sharing: Sharing::Block(64),
            sharing_is_free: true,
            is_flat: true,
            needs_max_abs: false,
            layout,
            quantize: |matrix, settings| quantize($code, matrix, settings),
            dequantize: |encoded, _, settings| dequantize($code, encoded, settings),
            pack: |encoded, _, _| pack($code, encoded),
            unpack: |parts, shape, _| unpack(parts, shape),
        };
    };
}

nested!(
    /// `nf4_nested`.
    NF4, "nf4_nested", NF4_CODE, "NF4 whose scales are 8-bit codes themselves: 4.13 bits a weight"
);
nested!(
    /// `fp4_nested`.
    FP4, "fp4_nested", FP4_CODE, "bitsandbytes' FP4 whose scales are 8-bit codes themselves"
);
