//! Blocks of 32 with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! Codes of four bits lie as pairs `j`, `j + 16` in byte `j`, the first in the lower half; the fifth bits are a 32-bit
//! word. The 0-types' scale is `widest / -2^(bits - 1)`: the widest element, whatever its sign, gets the code 0.

use super::fit::{self, Loss, Steps};
use super::{Block, BlockType, Importance, f16, get_f16, put_f16};

const SIZE: usize = 32;

pub(super) static Q4_0: BlockType = BlockType {
    block_size: SIZE,
    n_bytes: 18,
    n_sub_blocks: 0,
    has_min: false,
    quantize: |x, importance| signed(8, x, importance),
    value: |block, i| (block.codes[i] - 8) as f32 * block.d,
    pack: |block, bytes| {
        put_f16(block.d, bytes);
        pack_halves(block, &mut bytes[2..]);
    },
    unpack: |bytes| unpack(get_f16(bytes), 0.0, 0, &bytes[2..]),
};

pub(super) static Q4_1: BlockType = BlockType {
    block_size: SIZE,
    n_bytes: 20,
    n_sub_blocks: 0,
    has_min: true,
    quantize: |x, importance| with_min(15, x, importance),
    value: |block, i| block.codes[i] as f32 * block.d + block.m,
    pack: |block, bytes| {
        put_f16(block.d, bytes);
        put_f16(block.m, &mut bytes[2..]);
        pack_halves(block, &mut bytes[4..]);
    },
    unpack: |bytes| unpack(get_f16(bytes), get_f16(&bytes[2..]), 0, &bytes[4..]),
};

pub(super) static Q5_0: BlockType = BlockType {
    block_size: SIZE,
    n_bytes: 22,
    n_sub_blocks: 0,
    has_min: false,
    quantize: |x, importance| signed(16, x, importance),
    value: |block, i| (block.codes[i] - 16) as f32 * block.d,
    pack: |block, bytes| {
        put_f16(block.d, bytes);
        bytes[2..6].copy_from_slice(&fifth_bits(block).to_le_bytes());
        pack_halves(block, &mut bytes[6..]);
    },
    unpack: |bytes| unpack(get_f16(bytes), 0.0, word(&bytes[2..]), &bytes[6..]),
};

pub(super) static Q5_1: BlockType = BlockType {
    block_size: SIZE,
    n_bytes: 24,
    n_sub_blocks: 0,
    has_min: true,
    quantize: |x, importance| with_min(31, x, importance),
    value: |block, i| block.codes[i] as f32 * block.d + block.m,
    pack: |block, bytes| {
        put_f16(block.d, bytes);
        put_f16(block.m, &mut bytes[2..]);
        bytes[4..8].copy_from_slice(&fifth_bits(block).to_le_bytes());
        pack_halves(block, &mut bytes[8..]);
    },
    unpack: |bytes| unpack(get_f16(bytes), get_f16(&bytes[2..]), word(&bytes[4..]), &bytes[8..]),
};

pub(super) static Q8_0: BlockType = BlockType {
    block_size: SIZE,
    n_bytes: 34,
    n_sub_blocks: 0,
    has_min: false,
    quantize: |x, _| {
        let d = fit::widest(x).abs() / 127.0;
        let inverse = inverse(d);
        let mut block = Block { d: f16(d), ..Block::ZERO };
        for (x, code) in x.iter().zip(&mut block.codes) {
            // Halves away from zero.
            *code = libm::roundf(x * inverse) as i32;
        }
        block
    },
    value: |block, i| block.codes[i] as f32 * block.d,
    pack: |block, bytes| {
        put_f16(block.d, bytes);
        for (byte, code) in bytes[2..].iter_mut().zip(&block.codes) {
            *byte = *code as u8;
        }
    },
    unpack: |bytes| {
        let mut block = Block { d: get_f16(bytes), ..Block::ZERO };
        for (code, byte) in block.codes.iter_mut().zip(&bytes[2..]) {
            *code = i32::from(*byte as i8);
        }
        block
    },
};

/// Codes `0..2 * half` around `half`.
fn signed(half: i32, x: &[f32], importance: Option<Importance<'_>>) -> Block {
    let mut block = Block::ZERO;
    if let Some(importance) = importance {
        block.d = f16(fit::symmetric(half, x, &weights(x, importance), &mut block.codes));
        return block;
    }
    let d = fit::widest(x) / -half as f32;
    let inverse = inverse(d);
    block.d = f16(d);
    for (x, code) in x.iter().zip(&mut block.codes) {
        // A truncation after the shift: halves go up.
        *code = ((x * inverse + (half as f32 + 0.5)) as i32).min(2 * half - 1);
    }
    block
}

/// Codes `0..=n_max` from the minimum.
fn with_min(n_max: i32, x: &[f32], importance: Option<Importance<'_>>) -> Block {
    let mut block = Block::ZERO;
    if let Some(importance) = importance {
        let steps = Steps { start: -0.9, step: 0.05, n: 36, loss: Loss::Squared };
        let weights = weights(x, importance);
        let (d, m) = fit::with_min(n_max, x, &weights, &mut block.codes, steps);
        (block.d, block.m) = (f16(d), f16(-m));
        return block;
    }
    let min = x.iter().fold(f32::MAX, |min, x| if *x < min { *x } else { min });
    let max = x.iter().fold(f32::MIN, |max, x| if max < *x { *x } else { max });
    let d = (max - min) / n_max as f32;
    let inverse = inverse(d);
    (block.d, block.m) = (f16(d), f16(min));
    for (x, code) in x.iter().zip(&mut block.codes) {
        *code = (((x - min) * inverse + 0.5) as i32).min(n_max);
    }
    block
}

fn weights(x: &[f32], importance: Importance<'_>) -> [f32; SIZE] {
    let mut weights = [0.0; SIZE];
    for ((w, x), column) in weights.iter_mut().zip(x).zip(importance.columns) {
        *w = column * libm::sqrtf(importance.row_mean_square + x * x);
    }
    weights
}

/// `1 / d`; 0 for 0, and for a subnormal that has no inverse.
fn inverse(d: f32) -> f32 {
    let inverse = 1.0 / d;
    if inverse.is_finite() { inverse } else { 0.0 }
}

fn pack_halves(block: &Block, bytes: &mut [u8]) {
    for (j, byte) in bytes.iter_mut().enumerate() {
        *byte = (block.codes[j] & 15 | (block.codes[j + 16] & 15) << 4) as u8;
    }
}

fn fifth_bits(block: &Block) -> u32 {
    (0..SIZE).map(|j| ((block.codes[j] >> 4 & 1) as u32) << j).sum()
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn unpack(d: f32, m: f32, fifth: u32, halves: &[u8]) -> Block {
    let mut block = Block { d, m, ..Block::ZERO };
    for (j, byte) in halves.iter().enumerate() {
        block.codes[j] = i32::from(byte & 15);
        block.codes[j + 16] = i32::from(byte >> 4);
    }
    for (j, code) in block.codes[..SIZE].iter_mut().enumerate() {
        *code |= (fifth >> j & 1) as i32 * 16;
    }
    block
}
