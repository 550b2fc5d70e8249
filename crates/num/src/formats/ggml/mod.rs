//! ggml's blocks, byte for byte: what llama.cpp runs.
//!
//! Rows are whole blocks of 32 or, for the K types, 256 elements. A block has a `float16` scale `d`, some have an offset
//! `m` (`dmin`) or, for the K types, integer scales and minima of sub-blocks: `x' = d * scale * q - dmin * min`. Codes
//! are chosen as ggml's portable C code does: without importances by its `_ref` functions (IQ4_NL: by its search, as
//! llama.cpp's tool does), with importances by those that `llama-quantize --imatrix` calls. Sums are `f32`, from left to
//! right: the bytes depend on it.
//!
//! [`simple`] has the blocks of 32, [`k`] those of 256, [`iq4`] the non-linear one, [`fit`] the searches for scales.
//!
//! Source: llama.cpp, `ggml-quants.c` and `ggml-common.h`, at 0c1e57098. What is not as there: a scale beyond 65504, the
//! largest of `float16`, becomes 65504 instead of infinity, which would make the block NaN.

use alloc::vec;
use alloc::vec::Vec;

use super::float::{FloatType, Overflow};
use super::{
    Encoded, FormatDef, FormatError, Matrix, PartLayout, PartType, Settings, Shape, Sharing,
};
use crate::round::ties_even;

pub mod fit;
mod iq4;
mod k;
mod simple;

pub use iq4::VALUES as IQ4_NL_VALUES;

/// Elements of the largest block.
pub const MAX_BLOCK: usize = 256;
/// Sub-blocks of the largest block.
const MAX_SUB_BLOCKS: usize = 16;

/// A block taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Its scale, one that `float16` has.
    pub d: f32,
    /// Its offset, or the scale of the sub-blocks' minima.
    pub m: f32,
    /// Scales of the sub-blocks.
    pub scales: [i32; MAX_SUB_BLOCKS],
    /// Minima of the sub-blocks.
    pub mins: [i32; MAX_SUB_BLOCKS],
    /// Codes, from 0 up; signed for Q8_0.
    pub codes: [i32; MAX_BLOCK],
}

impl Block {
    const ZERO: Self = Self {
        d: 0.0,
        m: 0.0,
        scales: [0; MAX_SUB_BLOCKS],
        mins: [0; MAX_SUB_BLOCKS],
        codes: [0; MAX_BLOCK],
    };
}

/// What codes are chosen by besides the values.
#[derive(Clone, Copy, Debug)]
pub struct Importance<'a> {
    /// Of the block's columns.
    pub columns: &'a [f32],
    /// The mean square of the whole row.
    pub row_mean_square: f32,
}

/// A type of block.
pub struct BlockType {
    /// Elements of a block.
    pub block_size: usize,
    /// Bytes of a block.
    pub n_bytes: usize,
    /// Sub-blocks with a scale of their own; 0 for the simple types.
    pub n_sub_blocks: usize,
    /// Whether there is an offset `m`.
    pub has_min: bool,
    /// Values to a block.
    pub quantize: fn(&[f32], Option<Importance<'_>>) -> Block,
    /// The value of a code, given its block and its place.
    pub value: fn(&Block, usize) -> f32,
    /// To bytes.
    pub pack: fn(&Block, &mut [u8]),
    /// From bytes.
    pub unpack: fn(&[u8]) -> Block,
}

impl BlockType {
    /// A row to bytes; `bytes` are those of its blocks.
    ///
    /// # Panics
    ///
    /// When `row` is not whole blocks, or lengths differ.
    pub fn quantize_row(&self, row: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
        assert!(row.len().is_multiple_of(self.block_size), "whole blocks");
        assert_eq!(
            bytes.len(),
            row.len() / self.block_size * self.n_bytes,
            "the bytes of the blocks"
        );
        for (block, bytes) in
            self.blocks_of(row, importance).zip(bytes.chunks_exact_mut(self.n_bytes))
        {
            (self.pack)(&block, bytes);
        }
    }

    /// Bytes of blocks to values.
    ///
    /// # Panics
    ///
    /// When the lengths do not fit.
    pub fn dequantize_row(&self, bytes: &[u8], row: &mut [f32]) {
        assert_eq!(
            bytes.len() * self.block_size,
            row.len() * self.n_bytes,
            "the bytes of the blocks"
        );
        let blocks = bytes.chunks_exact(self.n_bytes);
        for (bytes, values) in blocks.zip(row.chunks_exact_mut(self.block_size)) {
            let block = (self.unpack)(bytes);
            for (i, x) in values.iter_mut().enumerate() {
                *x = (self.value)(&block, i);
            }
        }
    }

    fn blocks_of<'a>(
        &self,
        row: &'a [f32],
        importance: Option<&'a [f32]>,
    ) -> impl Iterator<Item = Block> + 'a {
        let (size, quantize) = (self.block_size, self.quantize);
        let row_mean_square = fit::sum_of_squares(row) / row.len() as f32;
        row.chunks_exact(size).enumerate().map(move |(i, x)| {
            let columns = importance.map(|w| &w[i * size..(i + 1) * size]);
            quantize(x, columns.map(|columns| Importance { columns, row_mean_square }))
        })
    }
}

fn layout(ty: &BlockType, shape: &Shape) -> Vec<PartLayout> {
    let n_blocks = shape.rows * shape.cols.div_ceil(ty.block_size);
    vec![PartLayout::new("blocks", PartType::U8, n_blocks * ty.n_bytes)]
}

fn quantize(
    name: &'static str,
    ty: &BlockType,
    matrix: &Matrix<'_>,
    settings: &Settings<'_>,
) -> Result<Encoded, FormatError> {
    let cols = matrix.shape().cols;
    if matrix.shape().n() != 0 && !cols.is_multiple_of(ty.block_size) {
        return Err(FormatError::Blocks { format: name, cols, block: ty.block_size });
    }
    matrix.finite()?;
    let rows = matrix.values().chunks_exact(cols.max(1));
    Ok(encoded(ty, rows.flat_map(|row| ty.blocks_of(row, settings.importance))))
}

/// The names of parameters: `d` and `m` of blocks, `scale` and `min` of sub-blocks.
fn encoded(ty: &BlockType, blocks: impl Iterator<Item = Block>) -> Encoded {
    let (mut codes, mut d, mut m) = (vec![], vec![], vec![]);
    let (mut scales, mut mins) = (vec![], vec![]);
    for block in blocks {
        codes.extend_from_slice(&block.codes[..ty.block_size]);
        d.push(block.d);
        m.push(block.m);
        scales.extend(block.scales[..ty.n_sub_blocks].iter().map(|scale| *scale as f32));
        mins.extend(block.mins[..ty.n_sub_blocks].iter().map(|min| *min as f32));
    }
    let mut params = vec![("d", d)];
    if ty.has_min {
        params.push(("m", m));
    }
    if ty.n_sub_blocks != 0 {
        params.push(("scale", scales));
        if ty.has_min {
            params.push(("min", mins));
        }
    }
    Encoded::with(codes, params)
}

fn blocks(ty: &BlockType, encoded: &Encoded) -> impl Iterator<Item = Block> {
    encoded.codes.chunks_exact(ty.block_size).enumerate().map(move |(i, codes)| {
        let mut block = Block { d: encoded.param("d")[i], ..Block::ZERO };
        block.codes[..codes.len()].copy_from_slice(codes);
        let subs = i * ty.n_sub_blocks..(i + 1) * ty.n_sub_blocks;
        if ty.has_min {
            block.m = encoded.param("m")[i];
        }
        if ty.n_sub_blocks != 0 {
            let scales = &encoded.param("scale")[subs.clone()];
            scales.iter().zip(&mut block.scales).for_each(|(x, scale)| *scale = *x as i32);
            if ty.has_min {
                let mins = &encoded.param("min")[subs];
                mins.iter().zip(&mut block.mins).for_each(|(x, min)| *min = *x as i32);
            }
        }
        block
    })
}

fn dequantize(ty: &BlockType, encoded: &Encoded) -> Vec<f32> {
    blocks(ty, encoded)
        .flat_map(|block| (0..ty.block_size).map(move |i| (ty.value)(&block, i)))
        .collect()
}

fn pack(ty: &BlockType, encoded: &Encoded) -> Vec<Vec<u8>> {
    let mut bytes = vec![0; encoded.codes.len() / ty.block_size * ty.n_bytes];
    for (block, bytes) in blocks(ty, encoded).zip(bytes.chunks_exact_mut(ty.n_bytes)) {
        (ty.pack)(&block, bytes);
    }
    vec![bytes]
}

macro_rules! ggml {
    ($(#[$doc:meta])* $def:ident, $name:literal, $ty:expr, $block:literal, $summary:literal) => {
        $(#[$doc])*
        pub static $def: FormatDef = FormatDef {
            name: $name,
            summary: $summary,
            source: "llama.cpp, ggml-quants.c",
            numbers: &[],
            sharing: Sharing::Block($block),
            sharing_is_free: false,
            is_flat: false,
            needs_max_abs: false,
            layout: |shape, _| layout(&$ty, shape),
            quantize: |matrix, settings| quantize($name, &$ty, matrix, settings),
            dequantize: |encoded, _, _| dequantize(&$ty, encoded),
            pack: |encoded, _, _| pack(&$ty, encoded),
            unpack: |parts, _, _| {
                encoded(&$ty, parts[0].chunks_exact($ty.n_bytes).map(|bytes| ($ty.unpack)(bytes)))
            },
        };
    };
}

ggml!(
    /// `q4_0`.
    Q4_0, "q4_0", simple::Q4_0, 32, "4 bits, a scale a block of 32: 4.5 bits a weight"
);
ggml!(
    /// `q4_1`.
    Q4_1, "q4_1", simple::Q4_1, 32, "4 bits, a scale and a minimum a block of 32"
);
ggml!(
    /// `q5_0`.
    Q5_0, "q5_0", simple::Q5_0, 32, "5 bits, a scale a block of 32"
);
ggml!(
    /// `q5_1`.
    Q5_1, "q5_1", simple::Q5_1, 32, "5 bits, a scale and a minimum a block of 32"
);
ggml!(
    /// `q8_0`.
    Q8_0, "q8_0", simple::Q8_0, 32, "8 bits, a scale a block of 32: 8.5 bits a weight"
);
ggml!(
    /// `q2_k`.
    Q2_K, "q2_k", k::Q2_K, 256, "2 bits, 4-bit scales and minima of 16: 2.625 bits a weight"
);
ggml!(
    /// `q3_k`.
    Q3_K, "q3_k", k::Q3_K, 256, "3 bits, 6-bit scales of 16: 3.4375 bits a weight"
);
ggml!(
    /// `q4_k`.
    Q4_K, "q4_k", k::Q4_K, 256, "4 bits, 6-bit scales and minima of 32: 4.5 bits a weight"
);
ggml!(
    /// `q5_k`.
    Q5_K, "q5_k", k::Q5_K, 256, "5 bits, 6-bit scales and minima of 32: 5.5 bits a weight"
);
ggml!(
    /// `q6_k`.
    Q6_K, "q6_k", k::Q6_K, 256, "6 bits, 8-bit scales of 16: 6.5625 bits a weight"
);
ggml!(
    /// `iq4_nl`.
    IQ4_NL, "iq4_nl", iq4::IQ4_NL, 32, "4-bit codes of a table, a scale a block of 32"
);

/// The type of block that a format of this module has.
pub fn block_type(def: &FormatDef) -> Option<&'static BlockType> {
    static TYPES: &[(&FormatDef, &BlockType)] = &[
        (&Q4_0, &simple::Q4_0),
        (&Q4_1, &simple::Q4_1),
        (&Q5_0, &simple::Q5_0),
        (&Q5_1, &simple::Q5_1),
        (&Q8_0, &simple::Q8_0),
        (&Q2_K, &k::Q2_K),
        (&Q3_K, &k::Q3_K),
        (&Q4_K, &k::Q4_K),
        (&Q5_K, &k::Q5_K),
        (&Q6_K, &k::Q6_K),
        (&IQ4_NL, &iq4::IQ4_NL),
    ];
    TYPES.iter().find(|(of, _)| core::ptr::eq(*of, def)).map(|(_, ty)| *ty)
}

/// `x` as `float16` has it, at most 65504.
fn f16(x: f32) -> f32 {
    FloatType::FLOAT16.round(x)
}

fn put_f16(x: f32, bytes: &mut [u8]) {
    let bits = FloatType::FLOAT16.encode(x, Overflow::Saturate) as u16;
    bytes[..2].copy_from_slice(&bits.to_le_bytes());
}

fn get_f16(bytes: &[u8]) -> f32 {
    FloatType::FLOAT16.decode(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])))
}

/// The nearest integer, ties to even: ggml's `nearest_int`.
fn nearest(x: f32) -> i32 {
    ties_even(x) as i32
}
