//! Products of `f32` matrices.
//!
//! The definition: `c[i][j]` is one chain of fused multiply-adds `fma(a[i][p], b[p][j], acc)` from `acc = 0` in
//! increasing `p`, then multiplied by `alpha` (unless it is 1), then the bias is added, then it is normalized, then
//! clamped; each step rounds once. Every variant and every number of threads gives these bits, because the work is split over tiles of
//! the output and never along `p`. The distance from the exact sum is below `k * 2^-24 * sum |a * b|`.
//!
//! Layout: a task owns a rectangle of the output. For each block of `k` it packs the block of `b` into panels as wide
//! as a tile, and runs down each panel, which stays in the first-level cache, with the rows of `a`, which are read
//! where they are. The panels can come from a matrix or from the windows of a convolution ([`PanelSource`]).

mod kernel;
mod pack;

use std::ops::Range;

use crate::par::{self, Disjoint, grid};
use crate::variant::{self, VariantInfo};

use self::kernel::{Block, Kernel};
pub(crate) use self::pack::{PanelSource, copy_panel_row};

/// A matrix in a slice, stored by rows or by columns.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    data: &'a [f32],
    n_rows: usize,
    n_cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// `n_rows` rows of `n_cols` elements, one row after the other. `data` may be longer.
    ///
    /// # Panics
    ///
    /// When `data` is shorter.
    pub fn new(data: &'a [f32], n_rows: usize, n_cols: usize) -> Self {
        let len = n_rows.checked_mul(n_cols).expect("a matrix that fits memory");
        assert!(len <= data.len(), "{n_rows} x {n_cols} elements of {}", data.len());
        Self { data, n_rows, n_cols, row_stride: n_cols, col_stride: 1 }
    }

    /// The transpose, of the same elements.
    pub fn t(self) -> Self {
        Self {
            n_rows: self.n_cols,
            n_cols: self.n_rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Columns.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    fn at(&self, row: usize, col: usize) -> f32 {
        self.data[row * self.row_stride + col * self.col_stride]
    }

    /// The matrix of the same shape that starts `offset` elements further on.
    fn skip(self, offset: usize) -> Self {
        let data = &self.data[offset..];
        assert!(
            self.n_rows * self.n_cols <= data.len(),
            "a matrix at {offset} is inside its slice"
        );
        Self { data, ..self }
    }
}

/// What is added to the product.
#[derive(Clone, Copy, Debug, Default)]
pub enum Bias<'a> {
    /// Nothing.
    #[default]
    None,
    /// One value for each row, as a convolution's.
    PerRow(&'a [f32]),
    /// One value for each column, as a linear layer's.
    PerColumn(&'a [f32]),
}

/// `(x - mean) * factor + shift` with values for each row, each step rounded, as [`crate::norm::batch_norm`] has it.
#[derive(Clone, Copy, Debug)]
pub struct Normalize<'a> {
    /// Subtracted first.
    pub mean: &'a [f32],
    /// Multiplied with: [`crate::norm::batch_norm_factors`].
    pub factor: &'a [f32],
    /// Added last.
    pub shift: &'a [f32],
}

/// What happens to each element of the product before it is written: `clamp(normalize(alpha * sum + bias))`.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// A factor; 1 multiplies nothing.
    pub alpha: f32,
    /// What is added.
    pub bias: Bias<'a>,
    /// A batch normalization that follows.
    pub normalize: Option<Normalize<'a>>,
    /// `(lo, hi)`: what is below `lo` becomes `lo`, then what is above `hi` becomes `hi`; NaN stays.
    pub clamp: Option<(f32, f32)>,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Self { alpha: 1.0, bias: Bias::None, normalize: None, clamp: None }
    }
}

impl Epilogue<'_> {
    pub(crate) fn check(&self, m: usize, n: usize) {
        match self.bias {
            Bias::None => {}
            Bias::PerRow(bias) => assert_eq!(bias.len(), m, "a bias for each row"),
            Bias::PerColumn(bias) => assert_eq!(bias.len(), n, "a bias for each column"),
        }
        if let Some(Normalize { mean, factor, shift }) = self.normalize {
            assert_eq!([mean.len(), factor.len(), shift.len()], [m; 3], "parameters for each row");
        }
    }

    /// What concerns some of the rows.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Self {
        let bias = match self.bias {
            Bias::PerRow(bias) => Bias::PerRow(&bias[rows.clone()]),
            bias => bias,
        };
        let normalize = self.normalize.map(|Normalize { mean, factor, shift }| Normalize {
            mean: &mean[rows.clone()],
            factor: &factor[rows.clone()],
            shift: &shift[rows.clone()],
        });
        Self { bias, normalize, ..*self }
    }

    /// The definition, for element (`row`, `col`).
    fn apply(&self, sum: f32, row: usize, col: usize) -> f32 {
        let mut y = if self.alpha == 1.0 { sum } else { sum * self.alpha };
        match self.bias {
            Bias::None => {}
            Bias::PerRow(bias) => y += bias[row],
            Bias::PerColumn(bias) => y += bias[col],
        }
        if let Some(Normalize { mean, factor, shift }) = self.normalize {
            y = (y - mean[row]) * factor[row] + shift[row];
        }
        if let Some((lo, hi)) = self.clamp {
            y = if lo > y { lo } else { y };
            y = if hi < y { hi } else { y };
        }
        y
    }
}

/// `c = epilogue(a * b)`, `c` stored by rows.
///
/// # Panics
///
/// When the inner sizes differ, or `c` or the bias has another length than the product has elements, rows or columns.
pub fn gemm(a: MatRef, b: MatRef, c: &mut [f32], epilogue: &Epilogue) {
    gemm_batch(&[(0, 0)], a, b, c, epilogue);
}

/// One product for each pair of `offsets`, all of one shape, written one after the other.
///
/// `a` and `b` are the first matrices of slices that hold several; a pair is how many elements further on the two
/// factors start. So a batch that broadcasts repeats an offset.
///
/// # Panics
///
/// As [`gemm`]'s, and when a factor is not inside its slice.
pub fn gemm_batch(
    offsets: &[(usize, usize)],
    a: MatRef,
    b: MatRef,
    c: &mut [f32],
    epilogue: &Epilogue,
) {
    let (m, k, n) = (a.n_rows, a.n_cols, b.n_cols);
    assert_eq!(k, b.n_rows, "the inner sizes");
    assert_eq!(c.len(), offsets.len() * m * n, "the product's elements");
    epilogue.check(m, n);
    if c.is_empty() {
        return;
    }
    // One factor for all, and rows that follow each other: it is one taller product.
    if let [(a0, b0), rest @ ..] = offsets
        && !rest.is_empty()
        && !matches!(epilogue.bias, Bias::PerRow(_))
        && epilogue.normalize.is_none()
        && a.col_stride == 1
        && offsets.iter().enumerate().all(|(i, o)| *o == (a0 + i * m * k, *b0))
    {
        let tall = MatRef::new(&a.data[*a0..], m * offsets.len(), k);
        return gemm_batch(&[(0, *b0)], tall, b, c, epilogue);
    }
    let kernel = variant::select(kernel::VARIANTS);
    let one = |i: usize, c: &mut [f32]| {
        let (a, b) = (a.skip(offsets[i].0), b.skip(offsets[i].1));
        if m == 1 && b.col_stride != 1 && b.row_stride == 1 && epilogue.normalize.is_none() {
            // One row times a matrix stored by columns: the transposed product reads both as they are.
            let bias = match epilogue.bias {
                Bias::PerColumn(bias) => Bias::PerRow(bias),
                Bias::PerRow(bias) => Bias::PerColumn(bias),
                Bias::None => Bias::None,
            };
            run(
                kernel,
                b.data,
                b.col_stride,
                [n, k, 1],
                &a.t(),
                c,
                &Epilogue { bias, ..*epilogue },
            );
        } else if a.col_stride == 1 {
            run(kernel, a.data, a.row_stride, [m, k, n], &b, c, epilogue);
        } else {
            // The kernels broadcast along the rows of `a`.
            par::with_scratch(m * k, |rows| {
                pack::copy_rows(&a, rows);
                run(kernel, rows, k, [m, k, n], &b, c, epilogue);
            });
        }
    };
    if let [_] = offsets {
        return one(0, c);
    }
    let c = Disjoint::new(c);
    par::for_each_task(offsets.len(), cost_ns(m, k, n).saturating_mul(offsets.len()), |i| {
        // SAFETY: each task has its own product.
        one(i, unsafe { c.slice(i * m * n, m * n) });
    });
}

/// Estimated time of a product on one thread.
fn cost_ns(m: usize, k: usize, n: usize) -> usize {
    m.saturating_mul(k).saturating_mul(n) / 32
}

/// `c = epilogue(a * b)` where `b` comes in panels: `a` is `m` rows of `k`, `lda` apart.
pub(crate) fn gemm_panels(
    a: &[f32],
    lda: usize,
    [m, k, n]: [usize; 3],
    b: &impl PanelSource,
    c: &mut [f32],
    epilogue: &Epilogue,
) {
    epilogue.check(m, n);
    assert_eq!(c.len(), m * n, "the product's elements");
    run(variant::select(kernel::VARIANTS), a, lda, [m, k, n], b, c, epilogue);
}

/// At most this many `k` at once: a panel of that height and six rows of `a` fit the first-level cache.
const MAX_KC: usize = 320;
/// At most this much of `k` goes by rows.
const MAX_KC_BY_ROWS: usize = 64;
/// Floats in a block of panels that stays in the first-level cache.
const MAX_L1_BLOCK: usize = 1 << 12;
/// Floats in a block of panels: a quarter of the second-level cache.
const MAX_PANELS: usize = 1 << 15;
/// Floats in a block of `a`: half of the second-level cache.
const MAX_A_BLOCK: usize = 1 << 16;

fn run(
    kernel: Kernel,
    a: &[f32],
    lda: usize,
    [m, k, n]: [usize; 3],
    b: &impl PanelSource,
    c: &mut [f32],
    epilogue: &Epilogue,
) {
    if m == 0 || n == 0 {
        return;
    }
    let cost = cost_ns(m, k, n);
    let n_panels = n.div_ceil(kernel.nr);
    let (n_tasks_m, n_tasks_n) = grid(par::n_tasks(cost), m.div_ceil(kernel.mr), n_panels);
    let c = Disjoint::new(c);
    par::for_each_task(n_tasks_m * n_tasks_n, cost, |task| {
        let rows = par::share(m, n_tasks_m, task % n_tasks_m);
        let panels = par::share(n_panels, n_tasks_n, task / n_tasks_m);
        let cols = panels.start * kernel.nr..n.min(panels.end * kernel.nr);
        run_task(kernel, a, lda, k, n, b, rows, cols, &c, epilogue);
    });
}

#[expect(clippy::too_many_arguments, reason = "a task is what `run` knows and a rectangle")]
fn run_task(
    kernel: Kernel,
    a: &[f32],
    lda: usize,
    k: usize,
    n: usize,
    b: &impl PanelSource,
    rows: Range<usize>,
    cols: Range<usize>,
    c: &Disjoint<f32>,
    epilogue: &Epilogue,
) {
    let n_k_blocks = k.div_ceil(MAX_KC).max(1);
    let kc = k.div_ceil(n_k_blocks);
    // A short `k` leaves little to compute for each element that is written, so the tiles go along the rows, which
    // writes long runs, over a block that fits the first-level cache; otherwise down a panel.
    let by_rows = kc <= MAX_KC_BY_ROWS;
    let max_panels = if by_rows { MAX_L1_BLOCK } else { MAX_PANELS };
    let nc = (max_panels / (kc.max(1) * kernel.nr)).max(1) * kernel.nr;
    let mc = (MAX_A_BLOCK / kc.max(1) / kernel.mr).max(1) * kernel.mr;
    let width = nc.min((cols.end - cols.start).next_multiple_of(kernel.nr));
    par::with_scratch(kc * width, |panels| {
        for col in cols.clone().step_by(nc) {
            let cols = col..cols.end.min(col + nc);
            for k_block in 0..n_k_blocks {
                let ks = k.min(k_block * kc)..k.min((k_block + 1) * kc);
                b.pack(ks.clone(), cols.clone(), kernel.nr, panels);
                for row in rows.clone().step_by(mc) {
                    (kernel.run)(&Block {
                        a,
                        lda,
                        rows: row..rows.end.min(row + mc),
                        ks: ks.clone(),
                        panels,
                        cols: cols.clone(),
                        c,
                        ldc: n,
                        by_rows,
                        is_first: k_block == 0,
                        is_last: k_block + 1 == n_k_blocks,
                        epilogue,
                    });
                }
            }
        }
    });
}

/// How wide a panel of `n_cols` columns, at most `nr`, is stored: `nr`, or half of it where that is enough.
pub(crate) fn panel_width(n_cols: usize, nr: usize) -> usize {
    if n_cols <= nr / 2 { nr / 2 } else { nr }
}

/// The implementations, for `midtread inspect --cpu`.
pub(crate) fn describe() -> Vec<VariantInfo> {
    variant::describe("gemm::gemm", kernel::VARIANTS)
}

#[cfg(test)]
mod tests;
