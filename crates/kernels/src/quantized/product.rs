//! Matrix products, and convolutions as such.

#![expect(
    clippy::needless_range_loop,
    reason = "registers are addressed by their place in the tile"
)]

use alloc::vec::Vec;
use std::ops::Range;

use super::lanes::{Lanes, N, Scalar};
use super::weights::{Quad, Weights};
use super::windows::{Rows, Windows, with_buffers};
use super::{Bytes, Conv2d, Out, Requant};
use crate::par::{self, Disjoint, grid};
use crate::variant::{self, Isa, Variant, VariantInfo};

/// A block of the product: some rows of the first factor times some panels.
pub(super) struct Block<'a> {
    pub(super) rows: Rows<'a>,
    pub(super) weights: &'a Weights,
    pub(super) panels: Range<usize>,
    /// Whether the rows were `i8` and have been moved to `u8`.
    pub(super) is_moved: bool,
    pub(super) requant: &'a Requant,
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
struct Kernel {
    run: fn(&Block),
    /// Products of codes in a nanosecond, about.
    speed: usize,
}

/// Fastest first. All give the same bits.
static VARIANTS: &[Variant<Kernel>] = &[
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx512_vnni-12x32",
        Isa::Avx512,
        variant::has_avx512_vnni,
        // SAFETY: `Variant::get` hands this out only when `has_avx512_vnni` has found the features.
        Kernel { run: |block| unsafe { avx512_vnni(block) }, speed: 200 },
    ),
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx512-8x32",
        Isa::Avx512,
        variant::has_avx512,
        // SAFETY: `Variant::get` hands this out only when `has_avx512` has found the features.
        Kernel { run: |block| unsafe { avx512(block) }, speed: 100 },
    ),
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx2-6x16",
        Isa::Avx2,
        variant::has_avx2,
        // SAFETY: `Variant::get` hands this out only when `has_avx2` has found the features.
        Kernel { run: |block| unsafe { avx2(block) }, speed: 80 },
    ),
    Variant::scalar(Kernel { run: |block| run_block::<_, 4, 1>(Scalar, block), speed: 4 }),
];

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn avx512_vnni(block: &Block) {
    // The other kernel rounds numbers of any size, and with multipliers.
    match block.out {
        DisjointOut::Codes(_) if !block.requant.is_small => avx512(block),
        _ => super::vnni::product(block),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(block: &Block) {
    run_block::<_, 6, 1>(super::lanes::Avx2::new(), block);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512(block: &Block) {
    run_block::<_, 8, 2>(super::lanes::Avx512::new(), block);
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
    assert_eq!(weights.segments()[0], 1, "the weights of a matrix");
    requant.check(weights.n());
    let rows = Windows::of_matrix(m, weights.k(), x.data, x.is_signed);
    run(kernel, &rows, weights, requant, &disjoint(out), 0, weights.n());
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
        let segments = weights.segments();
        assert!(
            segments == [kh * kw, c_in] || (segments == [kh, kw * c_in] && conv.dilations[1] == 1),
            "weights packed for such windows: {segments:?} for {conv:?}"
        );
        requant.check(c_out);
        let channels = group * c_in..(group + 1) * c_in;
        let padding = zero_point as u8;
        let rows = Windows { conv: *conv, data: x.data, flip, padding, channels };
        run(kernel, &rows, weights, requant, &out, group * c_out, conv.c_out);
    }
}

fn disjoint<'a>(out: &'a mut Out) -> DisjointOut<'a> {
    match out {
        Out::Codes(codes) => DisjointOut::Codes(Disjoint::new(codes)),
        Out::Numbers(numbers) => DisjointOut::Numbers(Disjoint::new(numbers)),
    }
}

fn run(
    kernel: Kernel,
    windows: &Windows,
    weights: &Weights,
    requant: &Requant,
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
        let block_len = windows.block_len(weights);
        with_buffers(|buffers| {
            for first in all_rows.clone().step_by(block_len) {
                let rows = first..all_rows.end.min(first + block_len);
                let start = first * pitch + column;
                (kernel.run)(&Block {
                    rows: windows.rows(rows, weights, buffers),
                    weights,
                    panels: panels.clone(),
                    is_moved: windows.flip != 0,
                    requant,
                    out,
                    start,
                    pitch,
                });
            }
        });
    });
}

/// Runs a block in tiles of at most `MR` rows and `P` panels, with the codes widened to `i16`.
#[inline(always)]
fn run_block<L: Lanes, const MR: usize, const P: usize>(l: L, block: &Block) {
    let n_words = 2 * block.weights.n_words();
    let n_rows = block.rows.n_rows;
    // As many rows at once as fit a quarter of a second-level cache.
    let at_once = ((1 << 15) / n_words.max(1)).clamp(6, 240) / 6 * 6;
    par::with_scratch(at_once.min(n_rows) * n_words, |all_words: &mut [i32]| {
        for first in (0..n_rows).step_by(at_once) {
            let n_rows = at_once.min(n_rows - first);
            let words = &mut all_words[..n_rows * n_words];
            for (i, words) in words.chunks_exact_mut(n_words.max(1)).enumerate() {
                widen(block, first + i, words);
            }
            for panel in block.panels.clone().step_by(P) {
                let is_last = block.panels.end - panel < P;
                for row in (0..n_rows).step_by(MR) {
                    let tile =
                        Tile { block, words: &words[row * n_words..], row: first + row, panel };
                    let height = MR.min(n_rows - row);
                    if P == 1 || is_last {
                        tile.run_rows::<L, MR, 1>(l, height);
                    } else {
                        tile.run_rows::<L, MR, P>(l, height);
                    }
                }
            }
        }
    });
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
        let (block, weights) = (self.block, self.block.weights);
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
            match block.out {
                DisjointOut::Codes(out) => {
                    for i in 0..MR {
                        let codes = requant.codes(l, l.sub(acc[i][j], moved));
                        // SAFETY: these rows and columns are this task's.
                        let out = unsafe { out.slice(start + i * block.pitch, n_columns) };
                        store(out, |y| l.store_bytes(y, codes));
                    }
                }
                DisjointOut::Numbers(out) => {
                    for i in 0..MR {
                        let numbers = requant.numbers(l, l.sub(acc[i][j], moved));
                        // SAFETY: as above.
                        let out = unsafe { out.slice(start + i * block.pitch, n_columns) };
                        store(out, |y| l.store_f32(y, numbers));
                    }
                }
            }
        }
    }
}

/// Calls `write` with room for all lanes, of which `out` may want the first ones only.
#[inline(always)]
pub(super) fn store<T: Copy + Default>(out: &mut [T], write: impl FnOnce(&mut [T])) {
    if out.len() == N {
        write(out);
    } else {
        let mut lanes = [T::default(); N];
        write(&mut lanes);
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
