//! Matrix products, and convolutions as such.

#![expect(
    clippy::needless_range_loop,
    reason = "registers are addressed by their place in the tile"
)]

use alloc::vec::Vec;
use std::ops::Range;

use super::lanes::{Lanes, N, Scalar};
use super::requant::RequantView;
use super::weights::{Panels, Quad, Weights};
use super::windows::{Rows, Windows, with_buffers};
use super::{Bytes, Conv2d, Out, Requant};
use crate::par::{self, Disjoint, grid};
use crate::variant::{self, Isa, Variant, VariantInfo};

/// A block of the product: some rows of the first factor times some panels.
pub(super) struct Block<'a> {
    pub(super) rows: Rows<'a>,
    pub(super) weights: Panels<'a>,
    pub(super) panels: Range<usize>,
    /// Whether the rows were `i8` and have been moved to `u8`.
    pub(super) is_moved: bool,
    pub(super) requant: RequantView<'a>,
    /// What is added to all sums of a row, and then as many more as [`Rows::starts`] has.
    pub(super) row_bias: Option<&'a [i32]>,
    /// Element (`row`, `column`) of the block is `out[start + row * pitch + column]`, where columns count from the
    /// weights' first.
    pub(super) out: &'a DisjointOut<'a>,
    pub(super) start: usize,
    pub(super) pitch: usize,
}

pub(super) enum DisjointOut<'a> {
    Codes(Disjoint<'a, u8>),
    Numbers(Disjoint<'a, f32>),
}

#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Runs a block, with scratch memory.
    pub(super) run: fn(&Block, &mut Vec<i32>),
    /// Products of codes in a nanosecond, about.
    pub(super) speed: usize,
}

/// Fastest first. All give the same bits.
pub(super) static VARIANTS: &[Variant<Kernel>] = &[
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx512_vnni-12x32",
        Isa::Avx512,
        variant::has_avx512_vnni,
        // SAFETY: `Variant::get` hands this out only when `has_avx512_vnni` has found the features.
        Kernel { run: |block, words| unsafe { avx512_vnni(block, words) }, speed: 200 },
    ),
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx512-8x32",
        Isa::Avx512,
        variant::has_avx512,
        // SAFETY: `Variant::get` hands this out only when `has_avx512` has found the features.
        Kernel { run: |block, words| unsafe { avx512(block, words) }, speed: 100 },
    ),
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx2-6x16",
        Isa::Avx2,
        variant::has_avx2,
        // SAFETY: `Variant::get` hands this out only when `has_avx2` has found the features.
        Kernel { run: |block, words| unsafe { avx2(block, words) }, speed: 80 },
    ),
    Variant::scalar(Kernel {
        run: |block, words| run_block::<_, 4, 1>(Scalar, block, words),
        speed: 4,
    }),
];

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn avx512_vnni(block: &Block, words: &mut Vec<i32>) {
    // The other kernel has the multipliers.
    match block.out {
        DisjointOut::Codes(_) if block.requant.is_fixed_point() => avx512(block, words),
        _ => super::vnni::product(block),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(block: &Block, words: &mut Vec<i32>) {
    run_block::<_, 6, 1>(super::lanes::Avx2::new(), block, words);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512(block: &Block, words: &mut Vec<i32>) {
    run_block::<_, 8, 2>(super::lanes::Avx512::new(), block, words);
}

pub(super) fn describe() -> Vec<VariantInfo> {
    variant::describe("quantized::product", VARIANTS)
}

/// `out = requant(x * weights)`: `x` is `m` rows of `k` codes, `out` `m` rows of `n`.
///
/// # Panics
///
/// When the elements are not as many as the sizes say.
pub fn product(m: usize, x: Bytes, weights: &Weights, requant: &Requant, out: &mut Out) {
    run_product(variant::select(VARIANTS), m, x, weights, requant, out);
}

fn run_product(
    kernel: Kernel,
    m: usize,
    x: Bytes,
    weights: &Weights,
    requant: &Requant,
    out: &mut Out,
) {
    assert_eq!(x.data.len(), m * weights.k(), "the first factor's elements");
    assert_eq!(out.len(), m * weights.n(), "the product's elements");
    let weights = weights.panels();
    assert_eq!(weights.segments()[0], 1, "the weights of a matrix");
    requant.check(weights.n());
    let rows = Windows::of_matrix(m, weights.k(), x.data, x.is_signed);
    run(kernel, &rows, weights, requant.view(), &disjoint(out), 0, weights.n());
}

/// `out = requant(conv(x, weights))`, with the weights of each group ([`Weights::of_windows`]) and likewise `requants`.
///
/// `x` is (image, row, column, channel), and so is `out`. The padding holds `zero_point`.
///
/// # Panics
///
/// When the elements are not as many as the sizes say.
pub fn conv(
    conv: &Conv2d,
    x: Bytes,
    zero_point: i32,
    weights: &[Weights],
    requants: &[Requant],
    out: &mut Out,
) {
    run_conv(variant::select(VARIANTS), conv, x, zero_point, weights, requants, out);
}

fn run_conv(
    kernel: Kernel,
    conv: &Conv2d,
    x: Bytes,
    zero_point: i32,
    weights: &[Weights],
    requants: &[Requant],
    out: &mut Out,
) {
    let [x_len, w_len, y_len] = conv.lens();
    conv.check(x.data.len(), w_len, out.len());
    assert_eq!([weights.len(), requants.len()], [conv.groups; 2], "weights for each group");
    assert_eq!([x.data.len(), out.len()], [x_len, y_len], "the input's and the output's elements");
    let (c_in, c_out) = (conv.c_in / conv.groups, conv.c_out / conv.groups);
    let flip = if x.is_signed { 0x80 } else { 0 };
    let out = disjoint(out);
    for (group, (weights, requant)) in weights.iter().zip(requants).enumerate() {
        assert_eq!([weights.k(), weights.n()], [w_len / conv.c_out, c_out], "the weights' sizes");
        let [kh, kw] = conv.kernel;
        let weights = weights.panels();
        let segments = weights.segments();
        assert!(
            segments == [kh * kw, c_in] || (segments == [kh, kw * c_in] && conv.dilations[1] == 1),
            "weights packed for such windows: {segments:?} for {conv:?}"
        );
        requant.check(c_out);
        let channels = group * c_in..(group + 1) * c_in;
        let padding = zero_point as u8;
        let rows = Windows { conv: *conv, data: x.data, flip, padding, channels };
        run(kernel, &rows, weights, requant.view(), &out, group * c_out, conv.c_out);
    }
}

pub(super) fn disjoint<'a>(out: &'a mut Out) -> DisjointOut<'a> {
    match out {
        Out::Codes(codes) => DisjointOut::Codes(Disjoint::new(codes)),
        Out::Numbers(numbers) => DisjointOut::Numbers(Disjoint::new(numbers)),
    }
}

fn run(
    kernel: Kernel,
    windows: &Windows,
    weights: Panels,
    requant: RequantView,
    out: &DisjointOut,
    column: usize,
    pitch: usize,
) {
    let m = windows.n();
    if m == 0 || weights.n() == 0 {
        return;
    }
    let cost = m.saturating_mul(weights.k()).saturating_mul(weights.n()) / kernel.speed;
    let (n_m, n_n) = grid(par::n_tasks(cost), m.div_ceil(6), weights.n_panels());
    par::for_each_task(n_m * n_n, cost, |task| {
        let all_rows = par::share(m, n_m, task % n_m);
        let panels = par::share(weights.n_panels(), n_n, task / n_m);
        let block_len = windows.block_len(&weights);
        par::with_vec(|words| {
            with_buffers(|buffers| {
                for first in all_rows.clone().step_by(block_len) {
                    let rows = first..all_rows.end.min(first + block_len);
                    let start = first * pitch + column;
                    let block = Block {
                        rows: windows.rows(rows, &weights, buffers),
                        weights,
                        panels: panels.clone(),
                        is_moved: windows.flip != 0,
                        requant,
                        row_bias: None,
                        out,
                        start,
                        pitch,
                    };
                    (kernel.run)(&block, words);
                }
            });
        });
    });
}

/// Runs a block in tiles of at most `MR` rows and `P` panels, with the codes widened to `i16` in `all_words`.
#[inline(always)]
fn run_block<L: Lanes, const MR: usize, const P: usize>(
    l: L,
    block: &Block,
    all_words: &mut Vec<i32>,
) {
    let n_words = 2 * block.weights.n_words();
    let n_rows = block.rows.n_rows;
    // As many rows at once as fit a quarter of a second-level cache.
    let at_once = ((1 << 15) / n_words.max(1)).clamp(6, 240) / 6 * 6;
    if all_words.len() < at_once.min(n_rows) * n_words {
        all_words.resize(at_once.min(n_rows) * n_words, 0);
    }
    for first in (0..n_rows).step_by(at_once) {
        let n_rows = at_once.min(n_rows - first);
        let words = &mut all_words[..n_rows * n_words];
        for (i, words) in words.chunks_exact_mut(n_words.max(1)).enumerate() {
            widen(block, first + i, words);
        }
        for panel in block.panels.clone().step_by(P) {
            let is_last = block.panels.end - panel < P;
            for row in (0..n_rows).step_by(MR) {
                let tile = Tile { block, words: &words[row * n_words..], row: first + row, panel };
                let height = MR.min(n_rows - row);
                if P == 1 || is_last {
                    tile.run_rows::<L, MR, 1>(l, height);
                } else {
                    tile.run_rows::<L, MR, P>(l, height);
                }
            }
        }
    }
}

/// Row `row` as words of two `i16`: for each four codes, the first and the third, then the second and the fourth.
#[inline(always)]
fn widen(block: &Block, row: usize, words: &mut [i32]) {
    let segment_words = block.weights.segment_words();
    let pairs = words.as_chunks_mut::<2>().0;
    for (s, pairs) in pairs.chunks_exact_mut(segment_words.max(1)).enumerate() {
        let bytes = block.rows.segment(row, s, 4 * segment_words);
        for (pair, quad) in pairs.iter_mut().zip(bytes.as_chunks::<4>().0) {
            let quad = u32::from_le_bytes(*quad);
            *pair = [quad & 0x00FF_00FF, quad >> 8 & 0x00FF_00FF].map(u32::cast_signed);
        }
    }
}

struct Tile<'a> {
    block: &'a Block<'a>,
    /// The widened rows, from the first of this tile on.
    words: &'a [i32],
    row: usize,
    panel: usize,
}

impl Tile<'_> {
    #[inline(always)]
    fn run_rows<L: Lanes, const MR: usize, const P: usize>(&self, l: L, n_rows: usize) {
        match n_rows {
            1 => self.run::<L, 1, P>(l),
            2 => self.run::<L, 2, P>(l),
            3 => self.run::<L, 3, P>(l),
            4 => self.run::<L, 4, P>(l),
            5 => self.run::<L, 5, P>(l),
            6 => self.run::<L, 6, P>(l),
            7 if 6 < MR => self.run::<L, 7, P>(l),
            8 if 6 < MR => self.run::<L, 8, P>(l),
            _ => unreachable!("no tile is higher than the kernel's"),
        }
    }

    /// `MR` rows times `P` panels.
    #[inline(always)]
    fn run<L: Lanes, const MR: usize, const P: usize>(&self, l: L) {
        let (block, weights) = (self.block, &self.block.weights);
        let n_words = weights.n_words();
        let mut rows: [&[[i32; 2]]; MR] = [&[]; MR];
        for i in 0..MR {
            rows[i] = &self.words[i * 2 * n_words..][..2 * n_words].as_chunks().0[..n_words];
        }
        let mut panels: [&[Quad]; P] = [&[]; P];
        for j in 0..P {
            panels[j] = &weights.panel(self.panel + j)[..n_words];
        }
        let mut acc = [[l.splat(0); P]; MR];
        for p in 0..n_words {
            let mut b = [[l.splat(0); 2]; P];
            for j in 0..P {
                b[j] = l.load_pairs(&panels[j][p].0);
            }
            for i in 0..MR {
                for half in 0..2 {
                    let a = l.splat(rows[i][p][half]);
                    for j in 0..P {
                        acc[i][j] = l.dot(acc[i][j], a, b[j][half]);
                    }
                }
            }
        }
        for j in 0..P {
            let column = (self.panel + j) * N;
            let n_columns = (weights.n() - column).min(N);
            let requant = block.requant.channels(l, column);
            let moved =
                if block.is_moved { l.load(&weights.moved()[column..]) } else { l.splat(0) };
            let start = block.start + self.row * block.pitch + column;
            for i in 0..MR {
                acc[i][j] = l.sub(acc[i][j], moved);
                if let Some(bias) = block.row_bias {
                    acc[i][j] = l.add(acc[i][j], l.splat(bias[self.row + i]));
                }
            }
            match block.out {
                DisjointOut::Codes(out) => {
                    for i in 0..MR {
                        let codes = requant.codes(l, acc[i][j]);
                        // SAFETY: these rows and columns are this task's.
                        let out = unsafe { out.slice(start + i * block.pitch, n_columns) };
                        store_codes(l, out, codes);
                    }
                }
                DisjointOut::Numbers(out) => {
                    for i in 0..MR {
                        let numbers = requant.numbers(l, acc[i][j]);
                        // SAFETY: as above.
                        let out = unsafe { out.slice(start + i * block.pitch, n_columns) };
                        store_numbers(l, out, numbers);
                    }
                }
            }
        }
    }
}

/// The first codes, as many as there is room for.
#[inline(always)]
pub(super) fn store_codes<L: Lanes>(l: L, out: &mut [u8], codes: L::I) {
    if out.len() == N {
        l.store_bytes(out, codes);
    } else {
        let mut lanes = [0; N];
        l.store_bytes(&mut lanes, codes);
        out.copy_from_slice(&lanes[..out.len()]);
    }
}

/// The first numbers, as many as there is room for.
#[inline(always)]
fn store_numbers<L: Lanes>(l: L, out: &mut [f32], numbers: L::F) {
    if out.len() == N {
        l.store_f32(out, numbers);
    } else {
        let mut lanes = [0.0; N];
        l.store_f32(&mut lanes, numbers);
        out.copy_from_slice(&lanes[..out.len()]);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Every variant's product of the rows, with the variant's name.
    pub(in super::super) fn each_variant(
        m: usize,
        x: Bytes,
        weights: &Weights,
        requant: &Requant,
        mut check: impl FnMut(&str, Vec<u8>, Vec<f32>),
    ) {
        for variant in VARIANTS {
            let Some(kernel) = variant.get() else { continue };
            let n = m * weights.n();
            let (mut codes, mut numbers) = (vec![0xAA; n], vec![f32::NAN; n]);
            for out in [&mut Out::Codes(&mut codes), &mut Out::Numbers(&mut numbers)] {
                run_product(kernel, m, x, weights, requant, out);
            }
            check(variant.name, codes, numbers);
        }
    }

    /// Every variant's convolution, with the variant's name.
    pub(in super::super) fn each_variant_of_conv(
        conv: &Conv2d,
        x: Bytes,
        zero_point: i32,
        weights: &[Weights],
        requants: &[Requant],
        mut check: impl FnMut(&str, Vec<u8>),
    ) {
        for variant in VARIANTS {
            let Some(kernel) = variant.get() else { continue };
            let mut y = vec![0xAA; conv.lens()[2]];
            let out = &mut Out::Codes(&mut y);
            run_conv(kernel, conv, x, zero_point, weights, requants, out);
            check(variant.name, y);
        }
    }
}
