//! Matrix products, and convolutions as such.

#![expect(
    clippy::needless_range_loop,
    reason = "registers are addressed by their place in the tile"
)]

use alloc::{vec, vec::Vec};
use std::ops::Range;

use super::lanes::{Lanes, N, Scalar, pair};
use super::windows::{Flat, Rows, Windows};
use super::{Bytes, Conv2d, Out, Requant};
use crate::par::{self, Disjoint, grid};
use crate::variant::{self, Isa, Variant, VariantInfo};

/// The second factor of a product, packed: `k` rows of `n` weights with their zero points subtracted.
#[derive(Clone, Debug)]
pub struct Weights {
    k: usize,
    n: usize,
    /// Panels of 16 columns; within one, two rows after two rows; within these, the two of each column. Filled up
    /// with zeros.
    panels: Vec<i8>,
}

impl Weights {
    /// From `at(row, column)`.
    pub fn new(k: usize, n: usize, at: impl Fn(usize, usize) -> i8) -> Self {
        let n_words = k.div_ceil(2);
        let mut panels = vec![0; n.div_ceil(N) * n_words * 2 * N];
        for (i, panel) in panels.chunks_exact_mut((n_words * 2 * N).max(1)).enumerate() {
            for (word, lanes) in panel.chunks_exact_mut(2 * N).enumerate() {
                for (j, byte) in lanes.iter_mut().enumerate() {
                    let (row, column) = (2 * word + j % 2, i * N + j / 2);
                    if row < k && column < n {
                        *byte = at(row, column);
                    }
                }
            }
        }
        Self { k, n, panels }
    }

    /// Rows.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    fn n_words(&self) -> usize {
        self.k.div_ceil(2)
    }
}

/// A block of the product: packed rows of the first factor times `panels`.
struct Block<'a> {
    /// Rows of words, each as long as the weights'.
    rows: &'a [i32],
    n_rows: usize,
    weights: &'a Weights,
    panels: Range<usize>,
    requant: &'a Requant,
    /// Element (`row`, `column`) of the block is `out[start + row * pitch + column]`, where columns count from the
    /// weights' first.
    out: &'a DisjointOut<'a>,
    start: usize,
    pitch: usize,
}

enum DisjointOut<'a> {
    Codes(Disjoint<'a, u8>),
    Numbers(Disjoint<'a, f32>),
}

#[derive(Clone, Copy)]
struct Kernel {
    run: fn(&Block),
    /// Rows of bytes to rows of words.
    widen: fn(&[u8], bool, &mut [i32]),
}

/// Fastest first. All give the same bits.
static VARIANTS: &[Variant<Kernel>] = &[
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx512-8x32",
        Isa::Avx512,
        crate::variant::has_avx512,
        Kernel {
            // SAFETY: `Variant::get` hands these out only when `has_avx512` has found the features.
            run: |block| unsafe { avx512(block) },
            // SAFETY: as above.
            widen: |bytes, is_signed, words| unsafe { widen_avx2(bytes, is_signed, words) },
        },
    ),
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx2-6x16",
        Isa::Avx2,
        crate::variant::has_avx2,
        Kernel {
            // SAFETY: `Variant::get` hands these out only when `has_avx2` has found the features.
            run: |block| unsafe { avx2(block) },
            // SAFETY: as above.
            widen: |bytes, is_signed, words| unsafe { widen_avx2(bytes, is_signed, words) },
        },
    ),
    Variant::scalar(Kernel { run: |block| run_block::<_, 4, 1>(Scalar, block), widen }),
];

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

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn widen_avx2(bytes: &[u8], is_signed: bool, words: &mut [i32]) {
    widen(bytes, is_signed, words);
}

/// Words of two codes; what the last lacks is 0.
#[inline(always)]
fn widen(bytes: &[u8], is_signed: bool, words: &mut [i32]) {
    let (pairs, last) = bytes.as_chunks::<2>();
    if is_signed {
        for (word, [x, y]) in words.iter_mut().zip(pairs) {
            *word = pair(i16::from(x.cast_signed()), i16::from(y.cast_signed()));
        }
    } else {
        for (word, [x, y]) in words.iter_mut().zip(pairs) {
            *word = i32::from(*y) << 16 | i32::from(*x);
        }
    }
    if let [x] = last {
        words[pairs.len()] = pair(super::code(*x, is_signed) as i16, 0);
    }
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
    assert_eq!(x.data.len(), m * weights.k, "the first factor's elements");
    assert_eq!(out.len(), m * weights.n, "the product's elements");
    requant.check(weights.n);
    let kernel = variant::select(VARIANTS);
    let rows = Flat { data: x.data, k: weights.k };
    run(kernel, m, &rows, x.is_signed, weights, requant, &disjoint(out), 0, weights.n);
}

/// `out = requant(conv(x, weights))`, with one matrix of weights for each group: rows are (kernel row, kernel column,
/// channel of the group), columns the group's output channels. `requants` are likewise one for each group.
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
    let [x_len, w_len, y_len] = conv.lens();
    conv.check(x.data.len(), w_len, out.len());
    assert_eq!([weights.len(), requants.len()], [conv.groups; 2], "weights for each group");
    assert_eq!([x.data.len(), out.len()], [x_len, y_len], "the input's and the output's elements");
    let kernel = variant::select(VARIANTS);
    let [out_h, out_w] = conv.output();
    let m = conv.n * out_h * out_w;
    let (c_in, c_out) = (conv.c_in / conv.groups, conv.c_out / conv.groups);
    let out = disjoint(out);
    for (group, (weights, requant)) in weights.iter().zip(requants).enumerate() {
        assert_eq!([weights.k, weights.n], [w_len / conv.c_out, c_out], "the weights' sizes");
        requant.check(c_out);
        let column = group * c_out;
        if conv.is_pointwise() && conv.groups == 1 {
            let rows = Flat { data: x.data, k: weights.k };
            run(kernel, m, &rows, x.is_signed, weights, requant, &out, column, conv.c_out);
        } else {
            let channels = group * c_in..(group + 1) * c_in;
            let (padding, output) = (zero_point as u8, [out_h, out_w]);
            let rows = Windows { conv, data: x.data, padding, channels, output };
            run(kernel, m, &rows, x.is_signed, weights, requant, &out, column, conv.c_out);
        }
    }
}

fn disjoint<'a>(out: &'a mut Out) -> DisjointOut<'a> {
    match out {
        Out::Codes(codes) => DisjointOut::Codes(Disjoint::new(codes)),
        Out::Numbers(numbers) => DisjointOut::Numbers(Disjoint::new(numbers)),
    }
}

/// Words of packed rows at once: a quarter of the second-level cache.
const MAX_ROWS: usize = 1 << 15;

#[expect(clippy::too_many_arguments, reason = "a product and where it goes")]
fn run(
    kernel: Kernel,
    m: usize,
    rows: &impl Rows,
    is_signed: bool,
    weights: &Weights,
    requant: &Requant,
    out: &DisjointOut,
    column: usize,
    pitch: usize,
) {
    if m == 0 || weights.n == 0 {
        return;
    }
    let cost = m.saturating_mul(weights.k).saturating_mul(weights.n) / 80;
    let n_panels = weights.n.div_ceil(N);
    let (n_m, n_n) = grid(par::n_tasks(cost), m.div_ceil(6), n_panels);
    let n_words = weights.n_words();
    let block_rows = (MAX_ROWS / n_words.max(1)).clamp(6, 240) / 6 * 6;
    par::for_each_task(n_m * n_n, cost, |task| {
        let all_rows = par::share(m, n_m, task % n_m);
        let panels = par::share(n_panels, n_n, task / n_m);
        let n_packed = block_rows.min(all_rows.len()) * n_words;
        par::with_vec(|buffer| {
            par::with_scratch(n_packed, |words: &mut [i32]| {
                for row in all_rows.clone().step_by(block_rows) {
                    let n_rows = block_rows.min(all_rows.end - row);
                    for (i, words) in
                        words.chunks_exact_mut(n_words.max(1)).take(n_rows).enumerate()
                    {
                        (kernel.widen)(rows.bytes(row + i, buffer), is_signed, words);
                    }
                    (kernel.run)(&Block {
                        rows: &words[..n_rows * n_words],
                        n_rows,
                        weights,
                        panels: panels.clone(),
                        requant,
                        out,
                        start: row * pitch + column,
                        pitch,
                    });
                }
            })
        });
    });
}

/// Runs a block in tiles of at most `MR` rows and `P` panels.
#[inline(always)]
fn run_block<L: Lanes, const MR: usize, const P: usize>(l: L, block: &Block) {
    for panel in block.panels.clone().step_by(P) {
        let is_last = block.panels.end - panel < P;
        let mut row = 0;
        while row < block.n_rows {
            let n_rows = MR.min(block.n_rows - row);
            let tile = Tile { block, row, panel };
            if P == 1 || is_last {
                tile.run_rows::<L, MR, 1>(l, n_rows);
            } else {
                tile.run_rows::<L, MR, P>(l, n_rows);
            }
            row += n_rows;
        }
    }
}

struct Tile<'a> {
    block: &'a Block<'a>,
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
        let block = self.block;
        let n_words = block.weights.n_words();
        let panel_len = n_words * 2 * N;
        let mut rows: [&[i32]; MR] = [&[]; MR];
        for i in 0..MR {
            rows[i] = &block.rows[(self.row + i) * n_words..][..n_words];
        }
        let mut panels: [&[[i8; 2 * N]]; P] = [&[]; P];
        for j in 0..P {
            let panel = &block.weights.panels[(self.panel + j) * panel_len..][..panel_len];
            panels[j] = &panel.as_chunks().0[..n_words];
        }
        let mut acc = [[l.splat(0); P]; MR];
        for p in 0..n_words {
            let mut b = [l.splat(0); P];
            for j in 0..P {
                b[j] = l.load_pairs(&panels[j][p]);
            }
            for i in 0..MR {
                let a = l.splat(rows[i][p]);
                for j in 0..P {
                    acc[i][j] = l.dot(acc[i][j], a, b[j]);
                }
            }
        }
        for j in 0..P {
            let column = (self.panel + j) * N;
            let n_columns = (block.weights.n - column).min(N);
            let requant = block.requant.channels(l, column);
            let start = block.start + self.row * block.pitch + column;
            match block.out {
                DisjointOut::Codes(out) => {
                    for i in 0..MR {
                        let codes = requant.codes(l, acc[i][j]);
                        // SAFETY: these rows and columns are this task's.
                        let out = unsafe { out.slice(start + i * block.pitch, n_columns) };
                        store(out, |y| l.store_bytes(y, codes));
                    }
                }
                DisjointOut::Numbers(out) => {
                    for i in 0..MR {
                        let numbers = requant.numbers(l, acc[i][j]);
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
            let (mut codes, mut numbers) =
                (vec![0xAA; m * weights.n], vec![f32::NAN; m * weights.n]);
            for out in [&mut Out::Codes(&mut codes), &mut Out::Numbers(&mut numbers)] {
                let rows = Flat { data: x.data, k: weights.k };
                run(kernel, m, &rows, x.is_signed, weights, requant, &disjoint(out), 0, weights.n);
            }
            check(variant.name, codes, numbers);
        }
    }
}
