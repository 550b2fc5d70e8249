//! IQ4_NL: 4-bit codes that index a table, a scale for each block of 32.

use super::fit;
use super::{Block, BlockType, Importance, f16, get_f16, put_f16};

/// The table.
pub const VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Trials on either side of the first.
const N_TRIALS: i32 = 7;

pub(super) static IQ4_NL: BlockType = BlockType {
    block_size: 32,
    n_bytes: 18,
    n_sub_blocks: 0,
    has_min: false,
    quantize,
    value: |block, i| block.d * f32::from(VALUES[block.codes[i] as usize]),
    pack: |block, bytes| {
        put_f16(block.d, bytes);
        for (j, byte) in bytes[2..].iter_mut().enumerate() {
            *byte = (block.codes[j] | block.codes[j + 16] << 4) as u8;
        }
    },
    unpack: |bytes| {
        let mut block = Block { d: get_f16(bytes), ..Block::ZERO };
        for (j, byte) in bytes[2..].iter().enumerate() {
            block.codes[j] = i32::from(byte & 15);
            block.codes[j + 16] = i32::from(byte >> 4);
        }
        block
    },
};

fn quantize(x: &[f32], importance: Option<Importance<'_>>) -> Block {
    let mut block = Block::ZERO;
    let widest = fit::widest(x);
    if widest.abs() < fit::EPSILON {
        // The table has no 0: what makes the block zeros is its scale.
        block.codes[..x.len()].fill(code(0.0) as i32);
        return block;
    }
    let mean_square = fit::sum_of_squares(x) * (2.0 / x.len() as f32);
    let weight = |i: usize| match importance {
        Some(importance) => importance.columns[i] * libm::sqrtf(mean_square + x[i] * x[i]),
        None => x[i] * x[i],
    };
    let products = |inverse: f32| {
        let (mut qx, mut qq) = (0.0_f32, 0.0_f32);
        for (i, x) in x.iter().enumerate() {
            let q = f32::from(VALUES[code(inverse * x)]);
            let w = weight(i);
            qx += w * q * x;
            qq += w * q * q;
        }
        (qx, qq)
    };
    let lowest = f32::from(VALUES[0]);
    let (qx, qq) = products(1.0 / (-widest / lowest));
    let mut scale = qx / qq;
    let mut best = scale * qx;
    for trial in -N_TRIALS..=N_TRIALS {
        let (qx, qq) = products((trial as f32 + lowest) / widest);
        if 0.0 < qq && best * qq < qx * qx {
            scale = qx / qq;
            best = scale * qx;
        }
    }
    block.d = f16(scale);
    let inverse = if scale == 0.0 || scale.is_nan() { 0.0 } else { 1.0 / scale };
    for (x, code) in x.iter().zip(&mut block.codes) {
        *code = self::code(inverse * x) as i32;
    }
    block
}

/// The nearest entry; halfway the upper one.
fn code(x: f32) -> usize {
    let value = |i: usize| f32::from(VALUES[i]);
    let above = VALUES.partition_point(|entry| f32::from(*entry) <= x);
    match above {
        0 => 0,
        16 => 15,
        _ if x - value(above - 1) < value(above) - x => above - 1,
        _ => above,
    }
}
