//! Superblocks of 256 whose sub-blocks have integer scales: Q2_K to Q6_K.
//!
//! Every type works in three steps: a scale (and a minimum) for each sub-block, then integers for those with a
//! `float16` for all of them, then the codes again with what the integers stand for.

#![expect(
    clippy::needless_range_loop,
    reason = "sub-blocks are addressed by their place in the block"
)]

use super::fit::{self, Loss, Steps};
use super::{
    Block, BlockType, Importance, MAX_BLOCK, MAX_SUB_BLOCKS, f16, get_f16, nearest, put_f16,
};

type Subs = [f32; MAX_SUB_BLOCKS];

pub(super) static Q2_K: BlockType = BlockType {
    block_size: 256,
    n_bytes: 84,
    n_sub_blocks: 16,
    has_min: true,
    quantize: |x, importance| {
        let own = Steps { start: -0.5, step: 0.1, n: 15, loss: Loss::Absolute };
        with_mins::<16>(3, 15, own, x, importance)
    },
    value: |block, i| value_with_min(block, i, 16),
    pack: |block, bytes| {
        for (j, byte) in bytes[..16].iter_mut().enumerate() {
            *byte = (block.scales[j] | block.mins[j] << 4) as u8;
        }
        pack_two_bits(&block.codes, &mut bytes[16..80]);
        put_f16(block.d, &mut bytes[80..]);
        put_f16(block.m, &mut bytes[82..]);
    },
    unpack: |bytes| {
        let mut block = Block { d: get_f16(&bytes[80..]), m: get_f16(&bytes[82..]), ..Block::ZERO };
        for (j, byte) in bytes[..16].iter().enumerate() {
            block.scales[j] = i32::from(byte & 15);
            block.mins[j] = i32::from(byte >> 4);
        }
        unpack_two_bits(&bytes[16..80], &mut block.codes);
        block
    },
};

pub(super) static Q3_K: BlockType = BlockType {
    block_size: 256,
    n_bytes: 110,
    n_sub_blocks: 16,
    has_min: false,
    quantize: quantize_q3,
    value: |block, i| block.d * block.scales[i / 16] as f32 * (block.codes[i] - 4) as f32,
    pack: |block, bytes| {
        bytes.fill(0);
        for (i, code) in block.codes.iter().enumerate() {
            bytes[i % 32] |= ((code >> 2) as u8) << (i / 32);
        }
        pack_two_bits(&block.codes, &mut bytes[32..96]);
        for (j, scale) in block.scales.iter().enumerate() {
            let l = scale + 32;
            bytes[96 + j % 8] |= ((l & 15) << (4 * (j / 8))) as u8;
            bytes[104 + j % 4] |= ((l >> 4) << (2 * (j / 4))) as u8;
        }
        put_f16(block.d, &mut bytes[108..]);
    },
    unpack: |bytes| {
        let mut block = Block { d: get_f16(&bytes[108..]), ..Block::ZERO };
        unpack_two_bits(&bytes[32..96], &mut block.codes);
        for (i, code) in block.codes.iter_mut().enumerate() {
            *code |= i32::from(bytes[i % 32] >> (i / 32) & 1) << 2;
        }
        for (j, scale) in block.scales.iter_mut().enumerate() {
            let low = bytes[96 + j % 8] >> (4 * (j / 8)) & 15;
            let high = bytes[104 + j % 4] >> (2 * (j / 4)) & 3;
            *scale = i32::from(low | high << 4) - 32;
        }
        block
    },
};

pub(super) static Q4_K: BlockType = BlockType {
    block_size: 256,
    n_bytes: 144,
    n_sub_blocks: 8,
    has_min: true,
    quantize: |x, importance| {
        let own = Steps { start: -1.0, step: 0.1, n: 20, loss: Loss::Squared };
        with_mins::<32>(15, 63, own, x, importance)
    },
    value: |block, i| value_with_min(block, i, 32),
    pack: |block, bytes| {
        pack_head(block, bytes);
        pack_four_bits(&block.codes, &mut bytes[16..]);
    },
    unpack: |bytes| {
        let mut block = unpack_head(bytes);
        unpack_four_bits(&bytes[16..], &mut block.codes);
        block
    },
};

pub(super) static Q5_K: BlockType = BlockType {
    block_size: 256,
    n_bytes: 176,
    n_sub_blocks: 8,
    has_min: true,
    quantize: |x, importance| {
        let own = Steps { start: -0.5, step: 0.1, n: 15, loss: Loss::Squared };
        with_mins::<32>(31, 63, own, x, importance)
    },
    value: |block, i| value_with_min(block, i, 32),
    pack: |block, bytes| {
        pack_head(block, bytes);
        bytes[16..48].fill(0);
        for (i, code) in block.codes.iter().enumerate() {
            bytes[16 + i % 32] |= ((code >> 4) as u8) << (i / 32);
        }
        pack_four_bits(&block.codes, &mut bytes[48..]);
    },
    unpack: |bytes| {
        let mut block = unpack_head(bytes);
        unpack_four_bits(&bytes[48..], &mut block.codes);
        for (i, code) in block.codes.iter_mut().enumerate() {
            *code |= i32::from(bytes[16 + i % 32] >> (i / 32) & 1) << 4;
        }
        block
    },
};

pub(super) static Q6_K: BlockType = BlockType {
    block_size: 256,
    n_bytes: 210,
    n_sub_blocks: 16,
    has_min: false,
    quantize: quantize_q6,
    value: |block, i| block.d * block.scales[i / 16] as f32 * (block.codes[i] - 32) as f32,
    pack: |block, bytes| {
        for half in 0..2 {
            let codes = &block.codes[128 * half..];
            for l in 0..32 {
                let [a, b, c, d] = [codes[l], codes[l + 32], codes[l + 64], codes[l + 96]];
                bytes[64 * half + l] = (a & 15 | (c & 15) << 4) as u8;
                bytes[64 * half + l + 32] = (b & 15 | (d & 15) << 4) as u8;
                bytes[128 + 32 * half + l] =
                    (a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6) as u8;
            }
        }
        for (byte, scale) in bytes[192..208].iter_mut().zip(&block.scales) {
            *byte = *scale as u8;
        }
        put_f16(block.d, &mut bytes[208..]);
    },
    unpack: |bytes| {
        let mut block = Block { d: get_f16(&bytes[208..]), ..Block::ZERO };
        for (i, code) in block.codes.iter_mut().enumerate() {
            let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
            let low = bytes[64 * half + 32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
            let high = bytes[128 + 32 * half + l] >> (2 * quarter) & 3;
            *code = i32::from(low | high << 4);
        }
        for (scale, byte) in block.scales.iter_mut().zip(&bytes[192..208]) {
            *scale = i32::from(*byte as i8);
        }
        block
    },
};

/// With importances every type searches here.
const WITH_IMPORTANCE: Steps = Steps { start: -0.9, step: 0.05, n: 36, loss: Loss::Squared };

fn value_with_min(block: &Block, i: usize, sub: usize) -> f32 {
    let (scale, min) = (block.scales[i / sub] as f32, block.mins[i / sub] as f32);
    block.d * scale * block.codes[i] as f32 - block.m * min
}

/// Q2_K, Q4_K and Q5_K: codes `0..=n_max`, scales and minima `0..=scale_max`, sub-blocks of `SUB`.
fn with_mins<const SUB: usize>(
    n_max: i32,
    scale_max: i32,
    own: Steps,
    x: &[f32],
    importance: Option<Importance<'_>>,
) -> Block {
    let mut block = Block::ZERO;
    let n_subs = MAX_BLOCK / SUB;
    let (mut scales, mut mins, mut sums): (Subs, Subs, Subs) = Default::default();
    // llama.cpp: the mean square of the superblock for Q2_K, twice that for the others.
    let mean_square = fit::sum_of_squares(x);
    let mean_square = if SUB == 16 { mean_square / 256.0 } else { 2.0 * mean_square / 256.0 };
    for j in 0..n_subs {
        let of = j * SUB..(j + 1) * SUB;
        let x = &x[of.clone()];
        let mut weights = [0.0; SUB];
        match importance {
            Some(importance) => {
                for ((w, x), column) in
                    weights.iter_mut().zip(x).zip(&importance.columns[of.clone()])
                {
                    *w = column * libm::sqrtf(mean_square + x * x);
                }
            }
            None => {
                let base =
                    if SUB == 16 { 0.0 } else { libm::sqrtf(fit::sum_of_squares(x) / SUB as f32) };
                weights.iter_mut().zip(x).for_each(|(w, x)| *w = base + x.abs());
            }
        }
        sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
        let steps = if importance.is_some() { WITH_IMPORTANCE } else { own };
        (scales[j], mins[j]) = fit::with_min(n_max, x, &weights, &mut block.codes[of], steps);
    }
    if importance.is_some() {
        let d = fit::positive(scale_max, &scales[..n_subs], &sums, &mut block.scales);
        let m = fit::positive(scale_max, &mins[..n_subs], &sums, &mut block.mins);
        (block.d, block.m) = (f16(d), f16(m));
    } else {
        block.d = integers(scale_max, &scales[..n_subs], &mut block.scales);
        block.m = integers(scale_max, &mins[..n_subs], &mut block.mins);
    }
    for j in 0..n_subs {
        let d = block.d * block.scales[j] as f32;
        if d == 0.0 {
            continue;
        }
        let m = block.m * block.mins[j] as f32;
        for i in j * SUB..(j + 1) * SUB {
            block.codes[i] = nearest((x[i] + m) / d).clamp(0, n_max);
        }
    }
    block
}

/// Values of at least 0 as integers `0..=n_max`, the largest as `n_max`; what 1 stands for.
fn integers(n_max: i32, x: &[f32], codes: &mut Subs32) -> f32 {
    let max = x.iter().fold(0.0_f32, |max, x| if max < *x { *x } else { max });
    let inverse = if 0.0 < max { n_max as f32 / max } else { 0.0 };
    for (x, code) in x.iter().zip(codes) {
        *code = nearest(inverse * x).clamp(0, n_max);
    }
    f16(max / n_max as f32)
}

type Subs32 = [i32; MAX_SUB_BLOCKS];

fn quantize_q3(x: &[f32], importance: Option<Importance<'_>>) -> Block {
    let mut block = Block::ZERO;
    let (mut scales, mut sums): (Subs, Subs) = Default::default();
    let mean_square = 2.0 * fit::sum_of_squares(x) / 256.0;
    for j in 0..16 {
        let of = 16 * j..16 * (j + 1);
        let x = &x[of.clone()];
        let codes = &mut block.codes[of.clone()];
        match importance {
            Some(importance) => {
                let mut weights = [0.0; 16];
                for ((w, x), column) in weights.iter_mut().zip(x).zip(&importance.columns[of]) {
                    *w = column * libm::sqrtf(mean_square + x * x);
                }
                sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
                scales[j] = fit::symmetric(4, x, &weights, codes);
            }
            None => scales[j] = fit::symmetric_by_descent(4, x, codes),
        }
    }
    match importance {
        Some(_) => {
            let d = fit::symmetric(32, &scales, &sums, &mut block.scales);
            block.scales.iter_mut().for_each(|scale| *scale -= 32);
            block.d = f16(d);
        }
        None => {
            let widest = fit::widest(&scales);
            if widest == 0.0 {
                block.scales = [-32; 16];
            } else {
                let inverse = -32.0 / widest;
                for (scale, x) in block.scales.iter_mut().zip(&scales) {
                    *scale = nearest(inverse * x).clamp(-32, 31);
                }
                block.d = f16(1.0 / inverse);
            }
        }
    }
    for (i, code) in block.codes.iter_mut().enumerate() {
        let d = block.d * block.scales[i / 16] as f32;
        if d != 0.0 {
            *code = 4 + nearest(x[i] / d).clamp(-4, 3);
        }
    }
    block
}

fn quantize_q6(x: &[f32], importance: Option<Importance<'_>>) -> Block {
    let mut block = Block::ZERO;
    let mut scales = Subs::default();
    for j in 0..16 {
        let of = 16 * j..16 * (j + 1);
        let x = &x[of.clone()];
        let mut weights = [0.0; 16];
        match importance {
            Some(importance) => weights.copy_from_slice(&importance.columns[of.clone()]),
            None => weights.iter_mut().zip(x).for_each(|(w, x)| *w = x * x),
        }
        scales[j] = fit::symmetric(32, x, &weights, &mut block.codes[of]);
    }
    let widest = fit::widest(&scales);
    if widest.abs() < fit::EPSILON {
        return Block::ZERO;
    }
    let inverse = -128.0 / widest;
    block.d = f16(1.0 / inverse);
    for (scale, x) in block.scales.iter_mut().zip(&scales) {
        *scale = nearest(inverse * x).clamp(-128, 127);
    }
    for (i, code) in block.codes.iter_mut().enumerate() {
        let d = block.d * block.scales[i / 16] as f32;
        if d != 0.0 {
            *code = 32 + nearest(x[i] / d).clamp(-32, 31);
        }
    }
    block
}

/// Q4_K's and Q5_K's first 16 bytes: two `float16` and eight 6-bit pairs.
fn pack_head(block: &Block, bytes: &mut [u8]) {
    put_f16(block.d, bytes);
    put_f16(block.m, &mut bytes[2..]);
    let packed = &mut bytes[4..16];
    for j in 0..4 {
        let (scale, min) = (block.scales[j + 4], block.mins[j + 4]);
        packed[j] = (block.scales[j] | (scale >> 4) << 6) as u8;
        packed[j + 4] = (block.mins[j] | (min >> 4) << 6) as u8;
        packed[j + 8] = (scale & 15 | (min & 15) << 4) as u8;
    }
}

fn unpack_head(bytes: &[u8]) -> Block {
    let mut block = Block { d: get_f16(bytes), m: get_f16(&bytes[2..]), ..Block::ZERO };
    let packed = &bytes[4..16];
    for j in 0..4 {
        block.scales[j] = i32::from(packed[j] & 63);
        block.mins[j] = i32::from(packed[j + 4] & 63);
        block.scales[j + 4] = i32::from(packed[j + 8] & 15 | packed[j] >> 6 << 4);
        block.mins[j + 4] = i32::from(packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4);
    }
    block
}

/// For each 64 elements 32 bytes: the first 32 in the lower halves.
fn pack_four_bits(codes: &[i32; MAX_BLOCK], bytes: &mut [u8]) {
    for (i, byte) in bytes[..128].iter_mut().enumerate() {
        let first = i / 32 * 64 + i % 32;
        *byte = (codes[first] & 15 | (codes[first + 32] & 15) << 4) as u8;
    }
}

fn unpack_four_bits(bytes: &[u8], codes: &mut [i32; MAX_BLOCK]) {
    for (i, code) in codes.iter_mut().enumerate() {
        *code = i32::from(bytes[i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2)) & 15);
    }
}

/// For each 128 elements 32 bytes: elements `l`, `l + 32`, `l + 64`, `l + 96` from the lowest bits up. Of more bits the
/// lower two.
fn pack_two_bits(codes: &[i32; MAX_BLOCK], bytes: &mut [u8]) {
    bytes.fill(0);
    for (i, code) in codes.iter().enumerate() {
        bytes[i / 128 * 32 + i % 32] |= ((code & 3) << (2 * (i / 32 % 4))) as u8;
    }
}

fn unpack_two_bits(bytes: &[u8], codes: &mut [i32; MAX_BLOCK]) {
    for (i, code) in codes.iter_mut().enumerate() {
        *code = i32::from(bytes[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3);
    }
}
