//! The tile of a product: rows of `a` times a panel of `b`, in registers.

#![expect(
    clippy::needless_range_loop,
    reason = "registers are addressed by their place in the tile"
)]

use std::ops::Range;

use crate::par::Disjoint;
use crate::simd::Simd;
use crate::variant::{Isa, Variant};

use super::{Bias, Epilogue, Normalize, panel_width};

/// A block of the product: `rows` of `a` times packed panels for `cols`, over `ks`.
pub(super) struct Block<'a> {
    /// By rows, `lda` apart, from row 0 and `k` 0.
    pub(super) a: &'a [f32],
    pub(super) lda: usize,
    pub(super) rows: Range<usize>,
    pub(super) ks: Range<usize>,
    /// `nr` columns each, the last as wide as `panel_width` says; within one, `k` after `k`.
    pub(super) panels: &'a [f32],
    pub(super) cols: Range<usize>,
    /// By rows, `ldc` apart, from row 0 and column 0. No other thread has these rows and columns of it.
    pub(super) c: &'a Disjoint<'a, f32>,
    pub(super) ldc: usize,
    /// Whether tiles follow each other along the rows, and not down a panel.
    pub(super) by_rows: bool,
    /// Whether the sum starts here; otherwise it goes on from what `c` holds.
    pub(super) is_first: bool,
    /// Whether the sum ends here, and the epilogue is due.
    pub(super) is_last: bool,
    pub(super) epilogue: &'a Epilogue<'a>,
}

/// An implementation and the size of its tiles.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Rows of a tile, at most.
    pub(super) mr: usize,
    /// Columns of a panel.
    pub(super) nr: usize,
    pub(super) run: fn(&Block),
}

/// Fastest first. All give the same bits.
pub(super) static VARIANTS: &[Variant<Kernel>] = &[
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx512-8x32",
        Isa::Avx512,
        crate::variant::has_avx512,
        Kernel {
            mr: 8,
            nr: 32,
            // SAFETY: `Variant::get` hands this out only when `has_avx512` has found the features.
            run: |block| unsafe { avx512(block) },
        },
    ),
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx2-6x16",
        Isa::Avx2,
        crate::variant::has_avx2,
        Kernel {
            mr: 6,
            nr: 16,
            // SAFETY: `Variant::get` hands this out only when `has_avx2` has found the features.
            run: |block| unsafe { avx2(block) },
        },
    ),
    Variant::scalar(Kernel { mr: 4, nr: 16, run: scalar }),
];

/// The definition, element by element.
fn scalar(block: &Block) {
    for row in block.rows.clone() {
        let a = &block.a[row * block.lda..][block.ks.clone()];
        for col in block.cols.clone() {
            let (panel, j) = ((col - block.cols.start) / 16 * 16, (col - block.cols.start) % 16);
            let width = panel_width(block.cols.len() - panel, 16);
            let b = &block.panels[panel * a.len()..];
            // SAFETY: this element is in this block's rows and columns, which no other thread has.
            let c = unsafe { block.c.slice(row * block.ldc + col, 1) };
            let mut sum = if block.is_first { 0.0 } else { c[0] };
            for (p, &a) in a.iter().enumerate() {
                sum = a.mul_add(b[p * width + j], sum);
            }
            c[0] = if block.is_last { block.epilogue.apply(sum, row, col) } else { sum };
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(block: &Block) {
    run::<_, 6>(crate::simd::Avx2::new(), block);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512(block: &Block) {
    run::<_, 8>(crate::simd::Avx512::new(), block);
}

/// Runs a block in tiles of at most `MR` rows and two registers.
#[inline(always)]
fn run<S: Simd, const MR: usize>(s: S, block: &Block) {
    let nr = 2 * S::N;
    // Tiles of as equal heights as can be: sixteen rows are 6, 5, 5 rather than 6, 6, 4, because a low tile has too few
    // sums to hide the latency of an addition.
    let n_tiles = block.rows.len().div_ceil(MR);
    let n_panels = block.cols.len().div_ceil(nr);
    for i in 0..n_tiles * n_panels {
        let (tile, panel) =
            if block.by_rows { (i / n_panels, i % n_panels) } else { (i % n_tiles, i / n_tiles) };
        let rows = crate::par::share(block.rows.len(), n_tiles, tile);
        let n_cols = nr.min(block.cols.len() - panel * nr);
        let width = panel_width(n_cols, nr);
        let tile = Tile {
            block,
            row: block.rows.start + rows.start,
            col: block.cols.start + panel * nr,
            n_cols,
            b: &block.panels[panel * nr * block.ks.len()..][..width * block.ks.len()],
        };
        if width == nr {
            tile.run_rows::<S, 2>(s, rows.len());
        } else {
            tile.run_rows::<S, 1>(s, rows.len());
        }
    }
}

/// Where a tile is, and its panel.
struct Tile<'a> {
    block: &'a Block<'a>,
    row: usize,
    col: usize,
    n_cols: usize,
    b: &'a [f32],
}

impl Tile<'_> {
    #[inline(always)]
    fn run_rows<S: Simd, const NV: usize>(&self, s: S, n_rows: usize) {
        match n_rows {
            1 => self.run::<S, 1, NV>(s),
            2 => self.run::<S, 2, NV>(s),
            3 => self.run::<S, 3, NV>(s),
            4 => self.run::<S, 4, NV>(s),
            5 => self.run::<S, 5, NV>(s),
            6 => self.run::<S, 6, NV>(s),
            7 if 8 < S::N => self.run::<S, 7, NV>(s),
            8 if 8 < S::N => self.run::<S, 8, NV>(s),
            _ => unreachable!("no tile is higher than the kernel's"),
        }
    }

    /// `MR` rows times `NV` registers of columns.
    #[inline(always)]
    fn run<S: Simd, const MR: usize, const NV: usize>(&self, s: S) {
        let block = self.block;
        let kc = block.ks.len();
        let mut a: [&[f32]; MR] = [&[]; MR];
        for i in 0..MR {
            a[i] = &block.a[(self.row + i) * block.lda + block.ks.start..][..kc];
        }
        let mut acc = [[s.splat(0.0); NV]; MR];
        let is_whole = self.n_cols == NV * S::N;
        if !block.is_first {
            for i in 0..MR {
                let c = self.c_row(i);
                let mut row = [0.0; 64];
                let c = if is_whole {
                    &*c
                } else {
                    row[..self.n_cols].copy_from_slice(c);
                    &row[..]
                };
                for j in 0..NV {
                    acc[i][j] = s.load(&c[j * S::N..]);
                }
            }
        }

        for (p, b) in self.b.chunks_exact(NV * S::N).enumerate().take(kc) {
            let mut bv = [s.splat(0.0); NV];
            for j in 0..NV {
                bv[j] = s.load(&b[j * S::N..]);
            }
            for i in 0..MR {
                let av = s.splat(a[i][p]);
                for j in 0..NV {
                    acc[i][j] = s.fma(av, bv[j], acc[i][j]);
                }
            }
        }

        if block.is_last {
            self.finish(s, &mut acc);
        }
        for i in 0..MR {
            let c = self.c_row(i);
            if is_whole {
                for j in 0..NV {
                    s.store(&mut c[j * S::N..], acc[i][j]);
                }
            } else {
                let mut row = [0.0; 64];
                for j in 0..NV {
                    s.store(&mut row[j * S::N..], acc[i][j]);
                }
                c.copy_from_slice(&row[..self.n_cols]);
            }
        }
    }

    /// The epilogue of [`Epilogue::apply`] on a tile.
    #[inline(always)]
    fn finish<S: Simd, const MR: usize, const NV: usize>(&self, s: S, acc: &mut [[S::V; NV]; MR]) {
        let epilogue = self.block.epilogue;
        if epilogue.alpha != 1.0 {
            let alpha = s.splat(epilogue.alpha);
            for i in 0..MR {
                for j in 0..NV {
                    acc[i][j] = s.mul(acc[i][j], alpha);
                }
            }
        }
        match epilogue.bias {
            Bias::None => {}
            Bias::PerRow(bias) => {
                let bias = &bias[self.row..][..MR];
                for i in 0..MR {
                    let bias = s.splat(bias[i]);
                    for j in 0..NV {
                        acc[i][j] = s.add(acc[i][j], bias);
                    }
                }
            }
            Bias::PerColumn(bias) => {
                let mut row = [0.0; 64];
                row[..self.n_cols].copy_from_slice(&bias[self.col..][..self.n_cols]);
                for j in 0..NV {
                    let bias = s.load(&row[j * S::N..]);
                    for i in 0..MR {
                        acc[i][j] = s.add(acc[i][j], bias);
                    }
                }
            }
        }
        if let Some(Normalize { mean, factor, shift }) = epilogue.normalize {
            let rows = self.row..self.row + MR;
            let (mean, factor, shift) = (&mean[rows.clone()], &factor[rows.clone()], &shift[rows]);
            for i in 0..MR {
                let (mean, factor, shift) =
                    (s.splat(-mean[i]), s.splat(factor[i]), s.splat(shift[i]));
                for j in 0..NV {
                    acc[i][j] = s.add(s.mul(s.add(acc[i][j], mean), factor), shift);
                }
            }
        }
        if let Some((lo, hi)) = epilogue.clamp {
            let (lo, hi) = (s.splat(lo), s.splat(hi));
            for i in 0..MR {
                for j in 0..NV {
                    // In this order NaN stays.
                    acc[i][j] = s.min(hi, s.max(lo, acc[i][j]));
                }
            }
        }
    }

    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the block has its rows and columns to itself")]
    fn c_row(&self, i: usize) -> &mut [f32] {
        let start = (self.row + i) * self.block.ldc + self.col;
        // SAFETY: these elements are in this block's rows and columns, which no other thread has, and callers hold
        // one row at a time.
        unsafe { self.block.c.slice(start, self.n_cols) }
    }
}
