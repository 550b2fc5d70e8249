//! The weights of ONNX Runtime's `MatMulBnb4` (com.microsoft, version 1): bitsandbytes' NF4 and FP4.
//!
//! A row here is a column of the operator's `K x N` weight. Blocks are those of the rows laid end to end, so that one
//! may straddle two rows when `K` is not whole blocks. Codes and scales are [`codebook`]'s, except that every block is
//! multiplied by the reciprocal of its `absmax`, the short one too.

use alloc::vec;

use super::codebook::{self, Codebook, FP4_CODE, NF4_CODE};
use super::{
    Encoded, FormatDef, FormatError, Matrix, PartLayout, PartType, Settings, Sharing, bits,
    f32_bytes, f32s, max_abs,
};

fn quantize(
    code: [f32; 16],
    matrix: &Matrix<'_>,
    settings: &Settings<'_>,
) -> Result<Encoded, FormatError> {
    matrix.finite()?;
    let is_fp4 = code == FP4_CODE;
    let codebook = Codebook::new(code.to_vec());
    let (mut codes, mut scales) = (vec![], vec![]);
    for block in matrix.values().chunks(codebook::block_size(settings)) {
        let max = max_abs(block);
        // Infinite for 0 and the smallest subnormals, all of whose block becomes 0.
        let reciprocal = Some(1.0 / max).filter(|x: &f32| x.is_finite()).unwrap_or(0.0);
        codes.extend(block.iter().map(|x| {
            let x = x * reciprocal;
            if is_fp4 {
                // By magnitude, with the sign beside: a negative value near 0 has the code of the second zero, 8.
                i32::from(codebook.code(x.abs())) | i32::from(x < 0.0) << 3
            } else {
                i32::from(codebook.code(x))
            }
        }));
        scales.push(max);
    }
    Ok(Encoded::with(codes, vec![("absmax", scales)]))
}

macro_rules! matmul_bnb4 {
    ($(#[$doc:meta])* $def:ident, $name:literal, $code:ident, $summary:literal) => {
        $(#[$doc])*
        pub static $def: FormatDef = FormatDef {
            name: $name,
            summary: $summary,
            source: "ONNX Runtime, com.microsoft MatMulBnb4 version 1",
            numbers: &[],
            sharing: Sharing::Block(64),
            sharing_is_free: true,
            is_flat: true,
            needs_max_abs: false,
            layout: |shape, settings| {
                vec![
                    PartLayout::new("codes", PartType::U8, shape.n().div_ceil(2)),
                    PartLayout::new("absmax", PartType::F32, settings.sharing.n_groups(shape)),
                ]
            },
            quantize: |matrix, settings| quantize($code, matrix, settings),
            dequantize: |encoded, _, settings| {
                let codebook = Codebook::new($code.to_vec());
                let block_size = codebook::block_size(settings);
                codebook::dequantize_blocks(&codebook, &encoded.codes, encoded.param("absmax"), block_size)
            },
            pack: |encoded, _, _| {
                vec![bits::pack_high_first(&encoded.codes, 0), f32_bytes(encoded.param("absmax"))]
            },
            unpack: |parts, shape, _| {
                let codes = bits::unpack_high_first(parts[0], shape.n());
                Encoded::with(codes, vec![("absmax", f32s(parts[1]))])
            },
        };
    };
}

matmul_bnb4!(
    /// `matmul_bnb4_nf4`.
    NF4, "matmul_bnb4_nf4", NF4_CODE, "NF4 as ONNX Runtime's MatMulBnb4 has it, blocks of 64"
);
matmul_bnb4!(
    /// `matmul_bnb4_fp4`.
    FP4, "matmul_bnb4_fp4", FP4_CODE, "FP4 as ONNX Runtime's MatMulBnb4 has it, blocks of 64"
);
