//! The weights of ONNX Runtime's `MatMulNBits` (com.microsoft, version 1).
//!
//! A row here is a column of the operator's `K x N` weight: `K` elements in blocks of `block_size`, the last filled
//! with zeros to full size. Codes of 2, 4 or 8 bits, the first in the lowest bits; zero points packed alike, row by
//! row. Symmetric: `scale = m / -2^(bits - 1)` with `m` the element of the largest magnitude, so that it gets the one
//! code more that its side has, and the zero point `2^(bits - 1)` is not stored. Asymmetric: over the range with 0.
//! Codes are `round(x * (1 / scale) + zero_point)`, halves away from zero: what MLAS does, and not what QuantizeLinear
//! does.

use alloc::vec;
use alloc::vec::Vec;

use super::{
    Encoded, FormatDef, FormatError, Matrix, PartLayout, PartType, Search, Settings, Shape,
    Sharing, bits, f32_bytes, f32s, search,
};

fn block_size(settings: &Settings<'_>, cols: usize) -> usize {
    match settings.sharing {
        Sharing::Block(size) => size,
        _ => cols.max(1),
    }
}

/// Bytes of the zero points of a row.
fn zero_point_bytes(n_blocks: usize, n_bits: u32) -> usize {
    bits::packed_len(n_blocks, n_bits)
}

fn n_blocks(shape: &Shape, settings: &Settings<'_>) -> usize {
    shape.cols.div_ceil(block_size(settings, shape.cols))
}

fn layout(shape: &Shape, settings: &Settings<'_>, is_symmetric: bool) -> Vec<PartLayout> {
    let n_blocks = n_blocks(shape, settings);
    let n_padded = shape.rows * n_blocks * block_size(settings, shape.cols);
    let mut parts = vec![
        PartLayout::new("codes", PartType::U8, bits::packed_len(n_padded, settings.n)),
        PartLayout::new("scale", PartType::F32, shape.rows * n_blocks),
    ];
    if !is_symmetric {
        let n_bytes = shape.rows * zero_point_bytes(n_blocks, settings.n);
        parts.push(PartLayout::new("zero_point", PartType::U8, n_bytes));
    }
    parts
}

/// Scale and zero point of a block.
pub fn params(x: &[f32], n_bits: u32, is_symmetric: bool) -> (f32, i32) {
    let (min, max) = x.iter().fold((0.0_f32, 0.0_f32), |(min, max), x| (min.min(*x), max.max(*x)));
    if is_symmetric {
        let widest = if min.abs() < max { max } else { min };
        let half = 1 << (n_bits - 1);
        return (widest / -(half as f32), half);
    }
    let qmax = (1 << n_bits) - 1;
    let width = max - min;
    // The width of an interval can be more than the largest `f32`.
    let scale =
        if width.is_finite() { width / qmax as f32 } else { max / qmax as f32 - min / qmax as f32 };
    let zero_point =
        if scale == 0.0 { 0.0 } else { round_away(-min / scale).clamp(0.0, qmax as f32) };
    (scale, zero_point as i32)
}

/// The code of a value.
pub fn code(x: f32, scale: f32, zero_point: i32, n_bits: u32) -> i32 {
    let reciprocal = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let qmax = ((1 << n_bits) - 1) as f32;
    round_away(x * reciprocal + zero_point as f32).clamp(0.0, qmax) as i32
}

/// C's `roundf`: halves away from zero.
fn round_away(x: f32) -> f32 {
    libm::roundf(x)
}

fn quantize(
    matrix: &Matrix<'_>,
    settings: &Settings<'_>,
    is_symmetric: bool,
) -> Result<Encoded, FormatError> {
    matrix.finite()?;
    let shape = matrix.shape();
    let mut codes = Vec::with_capacity(shape.n());
    let (mut scales, mut zero_points) = (Vec::new(), Vec::new());
    for group in Sharing::Block(block_size(settings, shape.cols)).groups(&shape) {
        let x = &matrix.values()[group.clone()];
        let (widest, zero_point) = params(x, settings.n, is_symmetric);
        let scale = match settings.search {
            Search::MaxAbs => widest,
            Search::Mse => {
                let importance = search::columns(settings, &group, shape.cols);
                let candidates = (0..search::N_STEPS).map(|i| widest * (1.0 - i as f32 / 100.0));
                search::best(candidates, |scale| {
                    search::error(x, importance, |x| {
                        (code(x, scale, zero_point, settings.n) - zero_point) as f32 * scale
                    })
                })
                .unwrap_or(widest)
            }
        };
        codes.extend(x.iter().map(|x| code(*x, scale, zero_point, settings.n)));
        scales.push(scale);
        zero_points.push(zero_point as f32);
    }
    Ok(Encoded::with(codes, vec![("scale", scales), ("zero_point", zero_points)]))
}

fn dequantize(encoded: &Encoded, shape: &Shape, settings: &Settings<'_>) -> Vec<f32> {
    let (scales, zero_points) = (encoded.param("scale"), encoded.param("zero_point"));
    let mut values = Vec::with_capacity(shape.n());
    let groups = Sharing::Block(block_size(settings, shape.cols)).groups(shape);
    for (i, group) in groups.enumerate() {
        let block = encoded.codes[group].iter();
        values.extend(block.map(|code| (*code as f32 - zero_points[i]) * scales[i]));
    }
    values
}

fn pack(
    encoded: &Encoded,
    shape: &Shape,
    settings: &Settings<'_>,
    is_symmetric: bool,
) -> Vec<Vec<u8>> {
    let (n_bits, block_size) = (settings.n, block_size(settings, shape.cols));
    let n_blocks = n_blocks(shape, settings);
    let mut padded = Vec::with_capacity(shape.rows * n_blocks * block_size);
    for row in encoded.codes.chunks(shape.cols.max(1)) {
        padded.extend_from_slice(row);
        padded.resize(padded.len() + n_blocks * block_size - row.len(), 0);
    }
    let mut parts = vec![bits::pack(&padded, n_bits), f32_bytes(encoded.param("scale"))];
    if !is_symmetric {
        let zero_points: Vec<i32> = encoded.param("zero_point").iter().map(|z| *z as i32).collect();
        let rows = zero_points.chunks(n_blocks.max(1));
        // What fills a row's last byte is 2^(bits - 1) too, as ONNX Runtime has it.
        let n_codes = zero_point_bytes(n_blocks, n_bits) * 8 / n_bits as usize;
        let filled = |row: &[i32]| {
            let mut row = row.to_vec();
            row.resize(n_codes, 1 << (n_bits - 1));
            let mut bytes = bits::pack(&row, n_bits);
            bytes.resize(zero_point_bytes(n_blocks, n_bits), 0);
            bytes
        };
        parts.push(rows.flat_map(filled).collect());
    }
    parts
}

fn unpack(parts: &[&[u8]], shape: &Shape, settings: &Settings<'_>, is_symmetric: bool) -> Encoded {
    let (n_bits, block_size) = (settings.n, block_size(settings, shape.cols));
    let n_blocks = n_blocks(shape, settings);
    let padded = bits::unpack(parts[0], shape.rows * n_blocks * block_size, n_bits);
    let rows = padded.chunks((n_blocks * block_size).max(1));
    let codes = if shape.n() == 0 {
        vec![]
    } else {
        rows.flat_map(|row| row[..shape.cols].iter().copied()).collect()
    };
    let zero_points = if is_symmetric {
        vec![(1 << (n_bits - 1)) as f32; shape.rows * n_blocks]
    } else {
        let rows = parts[2].chunks(zero_point_bytes(n_blocks, n_bits).max(1));
        rows.flat_map(|row| bits::unpack(row, n_blocks, n_bits)).map(|z| z as f32).collect()
    };
    Encoded::with(codes, vec![("scale", f32s(parts[1])), ("zero_point", zero_points)])
}

macro_rules! matmul_nbits {
    ($(#[$doc:meta])* $def:ident, $name:literal, $is_symmetric:literal, $summary:literal) => {
        $(#[$doc])*
        pub static $def: FormatDef = FormatDef {
            name: $name,
            summary: $summary,
            source: "ONNX Runtime, com.microsoft MatMulNBits version 1; MLAS q4_dq",
            numbers: &[(2, 8)],
            sharing: Sharing::Block(32),
            sharing_is_free: true,
            is_flat: false,
            needs_max_abs: false,
            layout: |shape, settings| layout(shape, settings, $is_symmetric),
            quantize: |matrix, settings| quantize(matrix, settings, $is_symmetric),
            dequantize,
            pack: |encoded, shape, settings| pack(encoded, shape, settings, $is_symmetric),
            unpack: |parts, shape, settings| unpack(parts, shape, settings, $is_symmetric),
        };
    };
}

matmul_nbits!(
    /// `matmul_nbits2` to `matmul_nbits8`.
    SYMMETRIC, "matmul_nbitsN", true, "N-bit codes as ONNX Runtime's MatMulNBits has them, blocks of 32"
);
matmul_nbits!(
    /// `matmul_nbits2_asymmetric` to `matmul_nbits8_asymmetric`.
    ASYMMETRIC, "matmul_nbitsN_asymmetric", false, "the same with a zero point a block"
);
