//! ggml's K types: Q2_K, Q4_K, Q5_K and Q6_K, whose scales are searched for.
//!
//! A search adds up from left to right, so it cannot be spread over a sub-block; instead sixteen sub-blocks are searched
//! side by side, one a lane, each exactly as `midtread_num::formats::ggml::fit` does it.

use midtread_num::formats::ggml::{self, Block, MAX_BLOCK, fit};
use midtread_num::formats::{Format, Matrix};

use super::floats::{f16_saturated, from_f16};
use super::int8::MAX_ABS;
use super::small_integer;
use crate::autovec::autovec;
use crate::min_max::INFINITY_BITS;
use crate::variant::{VariantInfo, describe, select};

pub(super) fn variants() -> Vec<VariantInfo> {
    [
        describe("formats::k::fit_min_32", FIT_MIN_32),
        describe("formats::k::fit_min_16", FIT_MIN_16),
        describe("formats::k::fit_symmetric_16", FIT_SYMMETRIC_16),
        describe("formats::k::codes", CODES),
    ]
    .concat()
}

/// Sub-blocks side by side.
const N: usize = 16;

/// A value for each lane.
type Lanes = [f32; N];

/// A type of superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KType {
    /// Two bits.
    Q2,
    /// Four bits.
    Q4,
    /// Five bits.
    Q5,
    /// Six bits.
    Q6,
}

impl KType {
    /// Every one.
    pub const ALL: &'static [Self] = &[Self::Q2, Self::Q4, Self::Q5, Self::Q6];

    /// The name of its format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q2 => "q2_k",
            Self::Q4 => "q4_k",
            Self::Q5 => "q5_k",
            Self::Q6 => "q6_k",
        }
    }

    fn block_type(self) -> &'static ggml::BlockType {
        let def = match self {
            Self::Q2 => &ggml::Q2_K,
            Self::Q4 => &ggml::Q4_K,
            Self::Q5 => &ggml::Q5_K,
            Self::Q6 => &ggml::Q6_K,
        };
        ggml::block_type(def).expect("a block type of the list")
    }
}

/// Rows of whole superblocks, with the importance of each of the `cols` columns where there is one. Whether all is
/// finite.
///
/// # Panics
///
/// When the lengths do not fit.
pub fn rows(
    ty: KType,
    src: &[f32],
    importance: Option<&[f32]>,
    cols: usize,
    blocks: &mut [u8],
) -> bool {
    let n_bytes = ty.block_type().n_bytes;
    assert!(
        cols.is_multiple_of(MAX_BLOCK) && src.len().is_multiple_of(cols.max(1)),
        "whole blocks"
    );
    assert_eq!(blocks.len(), src.len() / MAX_BLOCK * n_bytes, "the bytes of the blocks");
    assert!(importance.is_none_or(|w| w.len() == cols), "an importance a column");
    let max_abs_bits = select(MAX_ABS)(src);
    if INFINITY_BITS <= max_abs_bits {
        return false;
    }
    let largest = f32::from_bits(max_abs_bits);
    let heaviest = importance.map_or(1.0, |w| w.iter().fold(0.0, |max: f32, w| max.max(w.abs())));
    // The losses grow with the cube of the values. Where a sum could overflow, what is not a number is compared, and a
    // lane would have to branch as the definition does: nobody's weights are as large.
    if !(largest <= 1e10 && largest * heaviest <= 1e12) {
        by_definition(ty, src, importance, cols, blocks);
        return true;
    }
    let per_row = cols / MAX_BLOCK;
    let columns = |i: usize| {
        let block = i % per_row;
        importance.map(|w| w[block * MAX_BLOCK..].first_chunk().expect("a whole block"))
    };
    let src = src.as_chunks::<MAX_BLOCK>().0;
    match ty {
        KType::Q2 => {
            for (i, (x, bytes)) in src.iter().zip(blocks.chunks_exact_mut(n_bytes)).enumerate() {
                with_mins::<16, 1>(ty, [x], [columns(i)], [bytes]);
            }
        }
        KType::Q4 | KType::Q5 => {
            // Two superblocks have the sixteen sub-blocks of a search. A last one goes with itself.
            let pairs = src.chunks(2).zip(blocks.chunks_mut(2 * n_bytes));
            for (i, (x, bytes)) in pairs.enumerate() {
                match (x, bytes.split_at_mut(n_bytes)) {
                    ([a, b], (first, second)) => {
                        let columns = [columns(2 * i), columns(2 * i + 1)];
                        with_mins::<32, 2>(ty, [a, b], columns, [first, second]);
                    }
                    ([a], (first, _)) => {
                        let mut ignored = [0; MAX_BLOCK];
                        let columns = [columns(2 * i); 2];
                        with_mins::<32, 2>(ty, [a, a], columns, [first, &mut ignored[..n_bytes]]);
                    }
                    _ => unreachable!("chunks of two"),
                }
            }
        }
        KType::Q6 => {
            for (i, (x, bytes)) in src.iter().zip(blocks.chunks_exact_mut(n_bytes)).enumerate() {
                q6(x, columns(i), bytes);
            }
        }
    }
    true
}

fn by_definition(
    ty: KType,
    src: &[f32],
    importance: Option<&[f32]>,
    cols: usize,
    blocks: &mut [u8],
) {
    let mut format = Format::named(ty.name()).expect("a format of the list");
    format.settings.importance = importance;
    let matrix = Matrix::new(src, cols).expect("whole rows");
    let codes = format.quantize(&matrix).expect("finite values");
    blocks.copy_from_slice(&format.pack(&codes, matrix.shape())[0]);
}

/// Where a search looks: `fit::Steps` for sixteen sub-blocks.
#[derive(Clone, Copy)]
struct Search {
    n_max: f32,
    start: f32,
    step: f32,
    n: i32,
    is_absolute: bool,
}

/// `B` superblocks of sub-blocks of `SUB`, sixteen together.
fn with_mins<const SUB: usize, const B: usize>(
    ty: KType,
    x: [&[f32; MAX_BLOCK]; B],
    importance: [Option<&[f32; MAX_BLOCK]>; B],
    bytes: [&mut [u8]; B],
) {
    let n_subs = MAX_BLOCK / SUB;
    let (n_max, scale_max, start, n) = match ty {
        KType::Q2 => (3, 15, -0.5, 15),
        KType::Q4 => (15, 63, -1.0, 20),
        _ => (31, 63, -0.5, 15),
    };
    let mut search =
        Search { n_max: n_max as f32, start, step: 0.1, n, is_absolute: ty == KType::Q2 };
    let mut lanes = [[0.0; N]; SUB];
    let mut weights = [[0.0; N]; SUB];
    for (b, x) in x.iter().enumerate() {
        let mean_square = importance[b].map(|_| {
            let sum = fit::sum_of_squares(*x);
            if SUB == 16 { sum / 256.0 } else { 2.0 * sum / 256.0 }
        });
        for j in 0..n_subs {
            let lane = b * n_subs + j;
            let sub = &x[j * SUB..(j + 1) * SUB];
            for (i, x) in sub.iter().enumerate() {
                lanes[i][lane] = *x;
            }
            if let (Some(columns), Some(mean_square)) = (importance[b], mean_square) {
                for (i, (x, column)) in sub.iter().zip(&columns[j * SUB..]).enumerate() {
                    weights[i][lane] = column * (mean_square + x * x).sqrt();
                }
            }
        }
    }
    if importance[0].is_some() {
        search = Search { start: -0.9, step: 0.05, n: 36, is_absolute: false, ..search };
    } else {
        own_weights(&lanes, &mut weights, SUB != 16);
    }
    let mut found =
        Found { codes: [[0.0; N]; SUB], scales: [0.0; N], mins: [0.0; N], sums: [0.0; N] };
    fit_min(&search, &lanes, &weights, &mut found);
    for (b, bytes) in bytes.into_iter().enumerate() {
        let of = b * n_subs..(b + 1) * n_subs;
        let (scales, mins) = (&found.scales[of.clone()], &found.mins[of.clone()]);
        let mut block = empty();
        let (d, m) = match importance[b] {
            Some(_) => {
                let sums = &found.sums[of];
                let d = fit::positive(scale_max, scales, sums, &mut block.scales);
                (d, fit::positive(scale_max, mins, sums, &mut block.mins))
            }
            None => (
                integers(scale_max, scales, &mut block.scales),
                integers(scale_max, mins, &mut block.mins),
            ),
        };
        (block.d, block.m) = (f16(d), f16(m));
        for j in 0..n_subs {
            let codes = &mut block.codes[j * SUB..(j + 1) * SUB];
            let d = block.d * block.scales[j] as f32;
            if d == 0.0 {
                for (code, level) in codes.iter_mut().zip(&found.codes) {
                    *code = level[b * n_subs + j] as i32;
                }
            } else {
                let m = block.m * block.mins[j] as f32;
                select(CODES)(&x[b][j * SUB..(j + 1) * SUB], m, d, 0.0, n_max as f32, codes);
            }
        }
        (ty.block_type().pack)(&block, bytes);
    }
}

fn empty() -> Block {
    Block { d: 0.0, m: 0.0, scales: [0; 16], mins: [0; 16], codes: [0; MAX_BLOCK] }
}

/// As `float16` has it, at most 65504.
fn f16(x: f32) -> f32 {
    let mut value = [0.0];
    from_f16(&[f16_saturated(x).to_le_bytes()], &mut value);
    value[0]
}

/// Values of at least 0 as integers `0..=n_max`, the largest as `n_max`; what 1 stands for.
fn integers(n_max: i32, x: &[f32], codes: &mut [i32; 16]) -> f32 {
    let max = x.iter().fold(0.0_f32, |max, x| if max < *x { *x } else { max });
    let inverse = if 0.0 < max { n_max as f32 / max } else { 0.0 };
    for (x, code) in x.iter().zip(codes) {
        *code = ((inverse * x).round_ties_even() as i32).clamp(0, n_max);
    }
    max / n_max as f32
}

/// Without importances: the magnitude, for sub-blocks of 32 on top of their root mean square.
#[inline(always)]
fn own_weights<const SUB: usize>(x: &[Lanes; SUB], weights: &mut [Lanes; SUB], has_base: bool) {
    let mut base = [0.0; N];
    if has_base {
        for x in x {
            for l in 0..N {
                base[l] += x[l] * x[l];
            }
        }
        base = base.map(|sum: f32| (sum / SUB as f32).sqrt());
    }
    for (w, x) in weights.iter_mut().zip(x) {
        for l in 0..N {
            w[l] = base[l] + x[l].abs();
        }
    }
}

/// What a search finds for each lane.
struct Found<const SUB: usize> {
    codes: [Lanes; SUB],
    scales: Lanes,
    /// Of the opposite sign: at least 0.
    mins: Lanes,
    /// Of the weights.
    sums: Lanes,
}

fn fit_min<const SUB: usize>(
    search: &Search,
    x: &[Lanes; SUB],
    weights: &[Lanes; SUB],
    found: &mut Found<SUB>,
) {
    // One list a size; a generic static there is not.
    let (x, weights) = (x.as_slice(), weights.as_slice());
    let codes = found.codes.as_mut_slice();
    let list = if SUB == 32 { FIT_MIN_32 } else { FIT_MIN_16 };
    select(list)(search, x, weights, codes, [&mut found.scales, &mut found.mins, &mut found.sums]);
}

autovec!(FIT_MIN_32, fn(search: &Search, x: &[Lanes], w: &[Lanes], codes: &mut [Lanes], out: [&mut Lanes; 3]) = fit_min_body::<32>);
autovec!(FIT_MIN_16, fn(search: &Search, x: &[Lanes], w: &[Lanes], codes: &mut [Lanes], out: [&mut Lanes; 3]) = fit_min_body::<16>);

/// `round(x)` cut to `0..=n_max`; NaN becomes 0.
#[inline(always)]
fn level(x: f32, n_max: f32) -> f32 {
    let x = x.round_ties_even();
    let x = if 0.0 < x { x } else { 0.0 };
    if x < n_max { x } else { n_max }
}

/// `fit::with_min` for sixteen sub-blocks.
#[inline(always)]
fn fit_min_body<const SUB: usize>(
    search: &Search,
    x: &[Lanes],
    w: &[Lanes],
    codes: &mut [Lanes],
    out: [&mut Lanes; 3],
) {
    let x: &[Lanes; SUB] = x.first_chunk().expect("as many as a sub-block has");
    let w: &[Lanes; SUB] = w.first_chunk().expect("as many as a sub-block has");
    let codes: &mut [Lanes; SUB] = codes.first_chunk_mut().expect("as many as a sub-block has");
    let [scale, min, sum_w] = out;
    let (mut smallest, mut max) = (x[0], x[0]);
    *sum_w = w[0];
    let mut sum_x = [0.0; N];
    for l in 0..N {
        sum_x[l] = w[0][l] * x[0][l];
    }
    for (x, w) in x.iter().zip(w).skip(1) {
        for l in 0..N {
            smallest[l] = if x[l] < smallest[l] { x[l] } else { smallest[l] };
            max[l] = if max[l] < x[l] { x[l] } else { max[l] };
            sum_w[l] += w[l];
            sum_x[l] += w[l] * x[l];
        }
    }
    let n_max = search.n_max;
    let smallest = smallest.map(|min| if 0.0 < min { 0.0 } else { min });
    *min = smallest;
    let loss = |scale: &Lanes, min: &Lanes, codes: &[Lanes; SUB]| {
        let mut sum = [0.0; N];
        for ((x, w), code) in x.iter().zip(w).zip(codes) {
            for l in 0..N {
                let error = scale[l] * code[l] + min[l] - x[l];
                sum[l] += w[l] * if search.is_absolute { error.abs() } else { error * error };
            }
        }
        sum
    };
    let put_codes = |inverse: &Lanes, min: &Lanes, codes: &mut [Lanes; SUB]| {
        for (x, code) in x.iter().zip(codes) {
            for l in 0..N {
                code[l] = level(inverse[l] * (x[l] - min[l]), n_max);
            }
        }
    };
    let mut inverse = [0.0; N];
    for l in 0..N {
        inverse[l] = n_max / (max[l] - min[l]);
        scale[l] = 1.0 / inverse[l];
    }
    put_codes(&inverse, min, codes);
    let mut least = loss(scale, min, codes);
    let mut trial = [[0.0; N]; SUB];
    for step in 0..=search.n {
        for l in 0..N {
            inverse[l] = (search.start + search.step * step as f32 + n_max) / (max[l] - min[l]);
        }
        put_codes(&inverse, min, &mut trial);
        let (mut sum_l, mut sum_ll, mut sum_xl) = ([0.0; N], [0.0; N], [0.0; N]);
        for ((x, w), code) in x.iter().zip(w).zip(&trial) {
            for l in 0..N {
                let wl = w[l] * code[l];
                sum_l[l] += wl;
                sum_ll[l] += wl * code[l];
                sum_xl[l] += wl * x[l];
            }
        }
        let (mut this_scale, mut this_min) = ([0.0; N], [0.0; N]);
        let mut is_solved = [false; N];
        for l in 0..N {
            let determinant = sum_w[l] * sum_ll[l] - sum_l[l] * sum_l[l];
            is_solved[l] = 0.0 < determinant;
            this_scale[l] = (sum_w[l] * sum_xl[l] - sum_x[l] * sum_l[l]) / determinant;
            this_min[l] = (sum_ll[l] * sum_x[l] - sum_l[l] * sum_xl[l]) / determinant;
            let is_above = 0.0 < this_min[l];
            this_scale[l] = if is_above { sum_xl[l] / sum_ll[l] } else { this_scale[l] };
            this_min[l] = if is_above { 0.0 } else { this_min[l] };
        }
        let this_loss = loss(&this_scale, &this_min, &trial);
        let mut is_better = [0_u32; N];
        for l in 0..N {
            let better = is_solved[l] & (this_loss[l] < least[l]);
            is_better[l] = if better { u32::MAX } else { 0 };
            least[l] = if better { this_loss[l] } else { least[l] };
            scale[l] = if better { this_scale[l] } else { scale[l] };
            min[l] = if better { this_min[l] } else { min[l] };
        }
        for (code, trial) in codes.iter_mut().zip(&trial) {
            for l in 0..N {
                code[l] = if is_better[l] != 0 { trial[l] } else { code[l] };
            }
        }
    }
    for l in 0..N {
        // Of equal values, all at least 0 or all the same: no levels.
        let is_flat = max[l] <= smallest[l];
        scale[l] = if is_flat { 0.0 } else { scale[l] };
        min[l] = -if is_flat { smallest[l] } else { min[l] };
        for code in &mut *codes {
            code[l] = if is_flat { 0.0 } else { code[l] };
        }
    }
}

fn q6(x: &[f32; MAX_BLOCK], importance: Option<&[f32; MAX_BLOCK]>, bytes: &mut [u8]) {
    let (mut lanes, mut weights) = ([[0.0; N]; 16], [[0.0; N]; 16]);
    for j in 0..16 {
        for i in 0..16 {
            let at = 16 * j + i;
            lanes[i][j] = x[at];
            weights[i][j] = importance.map_or(x[at] * x[at], |columns| columns[at]);
        }
    }
    let (mut levels, mut scales) = ([[0.0; N]; 16], [0.0; N]);
    select(FIT_SYMMETRIC_16)(32.0, &lanes, &weights, &mut levels, &mut scales);
    let widest = fit::widest(&scales);
    let mut block = empty();
    if fit::EPSILON <= widest.abs() {
        let inverse = -128.0 / widest;
        block.d = f16(1.0 / inverse);
        for (scale, x) in block.scales.iter_mut().zip(&scales) {
            *scale = ((inverse * x).round_ties_even() as i32).clamp(-128, 127);
        }
        for j in 0..16 {
            let codes = &mut block.codes[16 * j..16 * (j + 1)];
            let d = block.d * block.scales[j] as f32;
            if d == 0.0 {
                for (code, level) in codes.iter_mut().zip(&levels) {
                    *code = level[j] as i32;
                }
            } else {
                select(CODES)(&x[16 * j..16 * (j + 1)], 0.0, d, -32.0, 31.0, codes);
                codes.iter_mut().for_each(|code| *code += 32);
            }
        }
    }
    (KType::Q6.block_type().pack)(&block, bytes);
}

autovec!(pub(super) FIT_SYMMETRIC_16, fn(n_max: f32, x: &[Lanes; 16], w: &[Lanes; 16], codes: &mut [Lanes; 16], scale: &mut Lanes) = fit_symmetric_body);

/// `fit::symmetric` for sixteen sub-blocks.
#[inline(always)]
fn fit_symmetric_body(
    n_max: f32,
    x: &[Lanes; 16],
    w: &[Lanes; 16],
    codes: &mut [Lanes; 16],
    scale: &mut Lanes,
) {
    let mut widest = [0.0_f32; N];
    for x in x {
        for l in 0..N {
            widest[l] = if widest[l].abs() < x[l].abs() { x[l] } else { widest[l] };
        }
    }
    let level = |x: f32| {
        let x = x.round_ties_even();
        let x = if -n_max < x { x } else { -n_max };
        if x < n_max - 1.0 { x } else { n_max - 1.0 }
    };
    let products = |inverse: &Lanes| {
        let (mut xl, mut ll) = ([0.0; N], [0.0; N]);
        for (x, w) in x.iter().zip(w) {
            for l in 0..N {
                let code = level(inverse[l] * x[l]);
                xl[l] += w[l] * x[l] * code;
                ll[l] += w[l] * code * code;
            }
        }
        (xl, ll)
    };
    let mut inverse = widest.map(|widest| -n_max / widest);
    let (xl, ll) = products(&inverse);
    let mut best = [0.0; N];
    for l in 0..N {
        scale[l] = if ll[l] == 0.0 { 0.0 } else { xl[l] / ll[l] };
        best[l] = scale[l] * xl[l];
    }
    for step in (-9..=9).filter(|step| *step != 0) {
        let trial = widest.map(|widest| -(n_max + 0.1 * step as f32) / widest);
        let (xl, ll) = products(&trial);
        for l in 0..N {
            let is_better = (0.0 < ll[l]) & (best[l] * ll[l] < xl[l] * xl[l]);
            inverse[l] = if is_better { trial[l] } else { inverse[l] };
            scale[l] = if is_better { xl[l] / ll[l] } else { scale[l] };
            best[l] = if is_better { scale[l] * xl[l] } else { best[l] };
        }
    }
    for (x, code) in x.iter().zip(codes) {
        for l in 0..N {
            let value = n_max + level(inverse[l] * x[l]);
            code[l] = if widest[l].abs() < fit::EPSILON { 0.0 } else { value };
        }
    }
    for l in 0..N {
        scale[l] = if widest[l].abs() < fit::EPSILON { 0.0 } else { scale[l] };
    }
}

autovec!(CODES, fn(x: &[f32], m: f32, d: f32, lo: f32, hi: f32, codes: &mut [i32]) = codes_body);

/// `(x + m) / d` to the nearest integer, cut to `lo..=hi`.
#[inline(always)]
fn codes_body(x: &[f32], m: f32, d: f32, lo: f32, hi: f32, codes: &mut [i32]) {
    for (x, code) in x.iter().zip(codes) {
        let y = ((x + m) / d).round_ties_even();
        let y = if lo < y { y } else { lo };
        *code = small_integer(if y < hi { y } else { hi });
    }
}
