//! ggml's block formats without super-blocks: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0, byte for byte.
//!
//! A block is 32 neighbors of a row with a float16 scale `d`, and in the `_1` formats a float16 minimum `m`:
//!
//! | format | value | `d` | code |
//! |---|---|---|---|
//! | Q4_0, Q5_0 | `d * (q - half)` | the element of the largest magnitude over `-half` | `floor(x / d + half + 0.5)` |
//! | Q4_1, Q5_1 | `d * q + m` | `(max - min) / qmax`, `m = min` | `floor((x - min) / d + 0.5)` |
//! | Q8_0 | `d * q` | `max_abs / 127` | `round(x / d)`, halves away from zero |
//!
//! `x / d` is `x * (1 / d)` with the `d` that is not yet rounded to float16. A row has to be whole blocks. The bytes of
//! a block are `d`, `m`, the fifth bits (bit `j` is element `j`'s), then codes: of 4 bits element `j` in the lower
//! and element `j + 16` in the upper half of byte `j`. Defined by `ggml-quants.c` (llama.cpp), `quantize_row_q*_ref`.
//! A scale beyond 65504, float16's largest value, is cut to that (ggml's becomes infinite, and the block NaN).

use alloc::vec;
use alloc::vec::Vec;

use super::float::{FloatType, Overflow, f16_value};
use super::{
    Encoded, FormatDef, FormatError, Matrix, PartLayout, PartType, Shape, Sharing, max_abs,
};

/// Elements of a block.
pub const BLOCK_SIZE: usize = 32;

/// One of the five.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    name: &'static str,
    n_bits: u32,
    has_min: bool,
}

const KIND_Q4_0: Kind = Kind { name: "q4_0", n_bits: 4, has_min: false };
const KIND_Q4_1: Kind = Kind { name: "q4_1", n_bits: 4, has_min: true };
const KIND_Q5_0: Kind = Kind { name: "q5_0", n_bits: 5, has_min: false };
const KIND_Q5_1: Kind = Kind { name: "q5_1", n_bits: 5, has_min: true };
const KIND_Q8_0: Kind = Kind { name: "q8_0", n_bits: 8, has_min: false };

impl Kind {
    /// Bytes of a block.
    const fn n_bytes(self) -> usize {
        let scales = if self.has_min { 4 } else { 2 };
        scales + BLOCK_SIZE * self.n_bits as usize / 8
    }
}

/// The float16 nearest to `x`, not beyond the largest.
fn half(x: f32) -> f32 {
    f16_value(half_bits(x))
}

fn half_bits(x: f32) -> u16 {
    FloatType::FLOAT16.encode(x, Overflow::Saturate) as u16
}

/// `1 / d`, 0 where that is no number.
fn reciprocal(d: f32) -> f32 {
    let reciprocal = 1.0 / d;
    if d != 0.0 && reciprocal.is_finite() { reciprocal } else { 0.0 }
}

fn quantize(kind: Kind, matrix: &Matrix<'_>) -> Result<Encoded, FormatError> {
    let shape = matrix.shape();
    if !shape.cols.is_multiple_of(BLOCK_SIZE) && shape.n() != 0 {
        return Err(FormatError::Blocks { format: kind.name, cols: shape.cols, block: BLOCK_SIZE });
    }
    matrix.finite()?;
    let mut codes = Vec::with_capacity(shape.n());
    let (mut scales, mut mins) = (Vec::new(), Vec::new());
    for x in matrix.values().chunks(BLOCK_SIZE) {
        let qmax = (1 << kind.n_bits) - 1;
        // C's conversion to `int8_t` of a positive value cuts the fraction off.
        let floor = |x: f32| (x as i32).min(qmax);
        let d = if kind.n_bits == 8 {
            let d = max_abs(x) / 127.0;
            let id = reciprocal(d);
            codes.extend(x.iter().map(|x| libm::roundf(x * id) as i32));
            d
        } else if kind.has_min {
            let min = x.iter().copied().fold(f32::INFINITY, f32::min);
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // The width of an interval can be more than the largest `f32`.
            let width = (max - min).min(f32::MAX);
            let d = width / qmax as f32;
            let id = reciprocal(d);
            codes.extend(x.iter().map(|x| floor((x - min) * id + 0.5)));
            mins.push(half(min));
            d
        } else {
            let middle = (1 << (kind.n_bits - 1)) as f32;
            // The first of the largest magnitude, with its sign.
            let widest = x
                .iter()
                .fold(0.0_f32, |widest, x| if widest.abs() < x.abs() { *x } else { widest });
            let d = widest / -middle;
            let id = reciprocal(d);
            codes.extend(x.iter().map(|x| floor(x * id + (middle + 0.5))));
            d
        };
        scales.push(half(d));
    }
    let mut params = vec![("d", scales)];
    if kind.has_min {
        params.push(("m", mins));
    }
    Ok(Encoded::with(codes, params))
}

fn dequantize(kind: Kind, encoded: &Encoded) -> Vec<f32> {
    let middle = if kind.has_min || kind.n_bits == 8 { 0 } else { 1 << (kind.n_bits - 1) };
    let mut values = Vec::with_capacity(encoded.codes.len());
    for (i, codes) in encoded.codes.chunks(BLOCK_SIZE).enumerate() {
        let d = encoded.param("d")[i];
        let m = if kind.has_min { encoded.param("m")[i] } else { 0.0 };
        values.extend(codes.iter().map(|q| {
            let value = (q - middle) as f32 * d;
            if kind.has_min { value + m } else { value }
        }));
    }
    values
}

fn pack(kind: Kind, encoded: &Encoded) -> Vec<Vec<u8>> {
    let mut bytes = Vec::with_capacity(encoded.codes.len().div_ceil(BLOCK_SIZE) * kind.n_bytes());
    for (i, q) in encoded.codes.chunks(BLOCK_SIZE).enumerate() {
        bytes.extend(half_bits(encoded.param("d")[i]).to_le_bytes());
        if kind.has_min {
            bytes.extend(half_bits(encoded.param("m")[i]).to_le_bytes());
        }
        if kind.n_bits == 8 {
            bytes.extend(q.iter().map(|q| *q as u8));
            continue;
        }
        if kind.n_bits == 5 {
            let high =
                q.iter().enumerate().fold(0_u32, |high, (j, q)| high | (*q as u32 >> 4 & 1) << j);
            bytes.extend(high.to_le_bytes());
        }
        let (low, high) = q.split_at(BLOCK_SIZE / 2);
        bytes.extend(low.iter().zip(high).map(|(low, high)| (low & 15 | (high & 15) << 4) as u8));
    }
    vec![bytes]
}

fn unpack(kind: Kind, parts: &[&[u8]]) -> Encoded {
    let (mut codes, mut scales, mut mins) = (Vec::new(), Vec::new(), Vec::new());
    for block in parts[0].chunks_exact(kind.n_bytes()) {
        let (d, mut rest) = block.split_at(2);
        scales.push(f16_value(u16::from_le_bytes([d[0], d[1]])));
        if kind.has_min {
            mins.push(f16_value(u16::from_le_bytes([rest[0], rest[1]])));
            rest = &rest[2..];
        }
        if kind.n_bits == 8 {
            codes.extend(rest.iter().map(|q| i32::from(*q as i8)));
            continue;
        }
        let mut fifth = 0;
        if kind.n_bits == 5 {
            fifth = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
            rest = &rest[4..];
        }
        let low = rest.iter().map(|byte| byte & 15);
        let nibbles = low.chain(rest.iter().map(|byte| byte >> 4)).enumerate();
        codes.extend(nibbles.map(|(j, q)| i32::from(q) | ((fifth >> j & 1) << 4) as i32));
    }
    let mut params = vec![("d", scales)];
    if kind.has_min {
        params.push(("m", mins));
    }
    Encoded::with(codes, params)
}

fn layout(kind: Kind, shape: &Shape) -> Vec<PartLayout> {
    vec![PartLayout::new("blocks", PartType::U8, shape.n() / BLOCK_SIZE * kind.n_bytes())]
}

macro_rules! ggml {
    ($(#[$doc:meta])* $def:ident, $kind:ident, $summary:literal) => {
        $(#[$doc])*
        pub static $def: FormatDef = FormatDef {
            name: $kind.name,
            summary: $summary,
            source: "ggml-quants.c (llama.cpp)",
            numbers: &[],
            sharing: Sharing::Block(BLOCK_SIZE),
            sharing_is_free: false,
            is_flat: false,
            needs_max_abs: false,
            layout: |shape, _| layout($kind, shape),
            quantize: |matrix, _| quantize($kind, matrix),
            dequantize: |encoded, _, _| dequantize($kind, encoded),
            pack: |encoded, _, _| pack($kind, encoded),
            unpack: |parts, _, _| unpack($kind, parts),
        };
    };
}

ggml!(
    /// `q4_0`.
    Q4_0, KIND_Q4_0, "ggml: 4 bits, a float16 scale for 32"
);
ggml!(
    /// `q4_1`.
    Q4_1, KIND_Q4_1, "ggml: 4 bits, a float16 scale and minimum for 32"
);
ggml!(
    /// `q5_0`.
    Q5_0, KIND_Q5_0, "ggml: 5 bits, a float16 scale for 32"
);
ggml!(
    /// `q5_1`.
    Q5_1, KIND_Q5_1, "ggml: 5 bits, a float16 scale and minimum for 32"
);
ggml!(
    /// `q8_0`.
    Q8_0, KIND_Q8_0, "ggml: 8 bits, a float16 scale for 32"
);
