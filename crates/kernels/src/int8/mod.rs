//! Products and convolutions of 8-bit codes, with `i32` results.
//!
//! The definition: `sum over p of (a[i][p] - a_zero_point[i]) * (b[p][j] - b_zero_point[j])` in `i32`, wrapping. Every
//! variant and every number of threads gives exactly this.
//!
//! The kernels work on words of 32 bits, either of two `i16` (codes with their zero points already subtracted; AVX2's
//! VPMADDWD multiplies them without overflow, unlike VPMADDUBSW, which saturates at 255 * 127 * 2) or of four bytes
//! (codes moved to `u8` times `i8`, for VNNI), where what the zero points add is taken off at the end.

mod kernel;

use std::ops::Range;

use crate::conv::{Conv2d, Windows, depthwise};
use crate::gemm::copy_panel_row;
use crate::par::{self, Disjoint, grid};
use crate::variant::{self, VariantInfo};

use self::kernel::{Block, Kernel, Words};

/// 8-bit codes of either type.
#[derive(Clone, Copy, Debug)]
pub enum Codes<'a> {
    /// Unsigned.
    U8(&'a [u8]),
    /// Signed.
    I8(&'a [i8]),
}

impl Codes<'_> {
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(codes) => codes.len(),
            Self::I8(codes) => codes.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A type of code.
pub(crate) trait Code: Copy + Default + Send + Sync {
    /// What is added to make it a `u8`.
    const TO_U8: i16;
    fn wide(self) -> i16;
    fn narrow(value: i32) -> Self;
}

impl Code for u8 {
    const TO_U8: i16 = 0;
    #[inline(always)]
    fn wide(self) -> i16 {
        i16::from(self)
    }
    fn narrow(value: i32) -> Self {
        u8::try_from(value).expect("a zero point of the codes' type")
    }
}

impl Code for i8 {
    const TO_U8: i16 = 128;
    #[inline(always)]
    fn wide(self) -> i16 {
        i16::from(self)
    }
    fn narrow(value: i32) -> Self {
        i8::try_from(value).expect("a zero point of the codes' type")
    }
}

/// Calls `$body` with `$codes` as a slice of its type.
macro_rules! typed {
    ($codes:ident => $body:expr) => {
        match $codes {
            Codes::U8($codes) => $body,
            Codes::I8($codes) => $body,
        }
    };
}

/// `c[i][j] = sum over p of (a[i][p] - a_zero_points[i]) * (b[p][j] - b_zero_points[j])`: ONNX `MatMulInteger`.
///
/// `a` is `m` rows of `k`, `b` `k` rows of `n`. One zero point is for all rows (of `a`) or columns (of `b`).
///
/// # Panics
///
/// When a slice has another length than the sizes say, or a zero point is not a code.
pub fn matmul_integer(
    [m, k, n]: [usize; 3],
    a: Codes,
    a_zero_points: &[i32],
    b: Codes,
    b_zero_points: &[i32],
    c: &mut [i32],
) {
    assert_eq!(a.len(), m * k, "the first factor's elements");
    assert_eq!(b.len(), k * n, "the second factor's elements");
    assert_eq!(c.len(), m * n, "the product's elements");
    check_zero_points(a_zero_points, a, m);
    check_zero_points(b_zero_points, b, n);
    let kernel = variant::select(kernel::VARIANTS);
    typed!(a => typed!(b => {
        let rows = Matrix { data: b, n };
        product(kernel, [m, k, n], a, a_zero_points, &rows, b_zero_points, c);
    }));
}

fn check_zero_points(zero_points: &[i32], codes: Codes, n: usize) {
    assert!(
        zero_points.len() == 1 || zero_points.len() == n,
        "{} zero points for 1 or {n}",
        zero_points.len()
    );
    let range = match codes {
        Codes::U8(_) => 0..=255,
        Codes::I8(_) => -128..=127,
    };
    assert!(zero_points.iter().all(|z| range.contains(z)), "zero points of the codes' type");
}

/// `y = sum over the window of (x - x_zero_point) * (w - w_zero_points[channel])`: ONNX `ConvInteger`.
///
/// The padding holds `x_zero_point`, so it adds nothing. Shapes are [`crate::conv::conv2d`]'s; one zero point of the
/// weights is for all output channels.
///
/// # Panics
///
/// When a slice has another length than the sizes say, or a zero point is not a code.
pub fn conv_integer(
    conv: &Conv2d,
    x: Codes,
    x_zero_point: i32,
    w: Codes,
    w_zero_points: &[i32],
    y: &mut [i32],
) {
    conv.check(x.len(), w.len(), y.len());
    check_zero_points(&[x_zero_point], x, 1);
    check_zero_points(w_zero_points, w, conv.c_out);
    if y.is_empty() {
        return;
    }
    typed!(x => typed!(w => conv_typed(conv, x, x_zero_point, w, w_zero_points, y)));
}

fn conv_typed<X: Code, W: Code>(
    conv: &Conv2d,
    x: &[X],
    x_zero_point: i32,
    w: &[W],
    w_zero_points: &[i32],
    y: &mut [i32],
) {
    let n_taps = conv.kernel[0] * conv.kernel[1];
    // Integers below 2^24 and their sums are exact in f32, so the float kernel computes them: |x - z| and |w - z| are
    // at most 255.
    if conv.is_depthwise() && n_taps * 255 * 255 < 1 << 24 {
        let w: Vec<f32> = (0..w.len())
            .map(|i| {
                let z = w_zero_points[if w_zero_points.len() == 1 { 0 } else { i / n_taps }];
                (i32::from(w[i].wide()) - z) as f32
            })
            .collect();
        depthwise::run_integer(conv, |i| (i32::from(x[i].wide()) - x_zero_point) as f32, &w, y);
        return;
    }
    let kernel = variant::select(kernel::VARIANTS);
    let [oh, ow] = conv.output();
    let (m, channels) = (conv.c_out / conv.groups, conv.c_in / conv.groups);
    let (k, n) = (channels * n_taps, oh * ow);
    let x_len = channels * conv.input[0] * conv.input[1];
    let y = Disjoint::new(y);
    let n_products = conv.n * conv.groups;
    par::for_each_task(n_products, n_products * m * k * n / 64, |i| {
        let group = i % conv.groups;
        let x = &x[i * x_len..][..x_len];
        let w = &w[group * m * k..][..m * k];
        let w_zero_points = match w_zero_points {
            [one] => std::slice::from_ref(one),
            all => &all[group * m..][..m],
        };
        // SAFETY: each image's group has its own output.
        let y = unsafe { y.slice(i * m * n, m * n) };
        if conv.is_pointwise() {
            let rows = Matrix { data: x, n };
            product(kernel, [m, k, n], w, w_zero_points, &rows, &[x_zero_point], y);
        } else {
            let rows = Windows::padded(conv, x, X::narrow(x_zero_point));
            product(kernel, [m, k, n], w, w_zero_points, &rows, &[x_zero_point], y);
        }
    });
}

/// The second factor, row by row.
pub(crate) trait Rows<T>: Sync {
    /// Columns `start..start + out.len()` of row `k`.
    fn row(&self, k: usize, start: usize, out: &mut [T]);
}

struct Matrix<'a, T> {
    data: &'a [T],
    n: usize,
}

impl<T: Code> Rows<T> for Matrix<'_, T> {
    fn row(&self, k: usize, start: usize, out: &mut [T]) {
        out.copy_from_slice(&self.data[k * self.n + start..][..out.len()]);
    }
}

impl<T: Code> Rows<T> for Windows<'_, T> {
    fn row(&self, k: usize, start: usize, out: &mut [T]) {
        self.row(k, start, out);
    }
}

/// At most this many words of `k` at once.
const MAX_KC: usize = 320;
/// Words in a block of panels: a quarter of the second-level cache.
const MAX_PANELS: usize = 1 << 15;

fn product<A: Code, B: Code>(
    kernel: Kernel,
    [m, k, n]: [usize; 3],
    a: &[A],
    a_zero_points: &[i32],
    b: &impl Rows<B>,
    b_zero_points: &[i32],
    c: &mut [i32],
) {
    if c.is_empty() {
        return;
    }
    let n_words = k.div_ceil(kernel.words.len());
    let a_zero = |row: usize| a_zero_points[if a_zero_points.len() == 1 { 0 } else { row }];
    let moved_a_zero = |row: usize| a_zero(row) + i32::from(A::TO_U8);
    let mut a_words = vec![0_i32; m * n_words];
    if 0 < k {
        for (row, (words, a)) in
            a_words.chunks_exact_mut(n_words).zip(a.chunks_exact(k)).enumerate()
        {
            match kernel.words {
                Words::I16 => pack_pairs(a, a_zero(row) as i16, words),
                Words::U8I8 => pack_bytes(a, words),
            }
        }
    }

    let cost = m.saturating_mul(k).saturating_mul(n) / 64;
    let n_panels = n.div_ceil(kernel.nr);
    let (n_m, n_n) = grid(par::n_tasks(cost), m.div_ceil(kernel.mr), n_panels);
    let c = Disjoint::new(c);
    par::for_each_task(n_m * n_n, cost, |task| {
        let rows = par::share(m, n_m, task % n_m);
        let panels = par::share(n_panels, n_n, task / n_m);
        let cols = panels.start * kernel.nr..n.min(panels.end * kernel.nr);
        let task = Task { kernel, k, n, a_words: &a_words, n_words, rows, cols, c: &c };
        task.run(b, b_zero_points, moved_a_zero);
    });
}

/// A rectangle of the product.
struct Task<'a> {
    kernel: Kernel,
    k: usize,
    n: usize,
    a_words: &'a [i32],
    n_words: usize,
    rows: Range<usize>,
    cols: Range<usize>,
    c: &'a Disjoint<'a, i32>,
}

impl Task<'_> {
    fn run<B: Code>(&self, b: &impl Rows<B>, b_zero_points: &[i32], a_zero: impl Fn(usize) -> i32) {
        let Kernel { nr, words, .. } = self.kernel;
        let n_blocks = self.n_words.div_ceil(MAX_KC).max(1);
        let kc = self.n_words.div_ceil(n_blocks);
        let nc = (MAX_PANELS / (kc.max(1) * nr)).max(1) * nr;
        let width = nc.min(self.cols.len().next_multiple_of(nr));
        let mut panels = vec![0; kc * width];
        // Sums of the moved codes of `b`, for the moved zero points of `a`.
        let mut col_sums = vec![0_i32; width];
        for col in self.cols.clone().step_by(nc) {
            let cols = col..self.cols.end.min(col + nc);
            col_sums.fill(0);
            for block in 0..n_blocks {
                let ks = self.n_words.min(block * kc)..self.n_words.min((block + 1) * kc);
                pack_panels(
                    b,
                    b_zero_points,
                    self.k,
                    &ks,
                    &cols,
                    nr,
                    words,
                    &mut panels,
                    &mut col_sums,
                );
                (self.kernel.run)(&Block {
                    a: self.a_words,
                    lda: self.n_words,
                    rows: self.rows.clone(),
                    ks,
                    panels: &panels,
                    cols: cols.clone(),
                    c: self.c,
                    ldc: self.n,
                    is_first: block == 0,
                });
            }
            if words == Words::U8I8 {
                self.take_off_zero_points(&cols, b_zero_points, B::TO_U8, &col_sums, &a_zero);
            }
        }
    }

    /// `sum (a - za)(b - zb) = sum ab - zb sum a - za sum b + k za zb`, for the moved codes and zero points.
    fn take_off_zero_points(
        &self,
        cols: &Range<usize>,
        b_zero_points: &[i32],
        b_to_u8: i16,
        col_sums: &[i32],
        a_zero: &impl Fn(usize) -> i32,
    ) {
        let b_zero = |col: usize| {
            b_zero_points[if b_zero_points.len() == 1 { 0 } else { col }] + i32::from(b_to_u8) - 128
        };
        for row in self.rows.clone() {
            let words = &self.a_words[row * self.n_words..][..self.n_words];
            let row_sum = words.iter().fold(0_i32, |sum, w| {
                w.to_ne_bytes().iter().fold(sum, |sum, &byte| sum.wrapping_add(i32::from(byte)))
            });
            let za = a_zero(row);
            let rest = row_sum.wrapping_sub((self.k as i32).wrapping_mul(za));
            // SAFETY: this row of these columns is this task's.
            let c = unsafe { self.c.slice(row * self.n + cols.start, cols.len()) };
            for ((c, col), col_sum) in c.iter_mut().zip(cols.clone()).zip(col_sums) {
                let off = b_zero(col).wrapping_mul(rest).wrapping_add(za.wrapping_mul(*col_sum));
                *c = c.wrapping_sub(off);
            }
        }
    }
}

/// Words of two: the codes minus their zero point.
fn pack_pairs<A: Code>(a: &[A], zero_point: i16, words: &mut [i32]) {
    let (pairs, last) = a.as_chunks::<2>();
    for (word, [x, y]) in words.iter_mut().zip(pairs) {
        *word = pair(x.wide() - zero_point, y.wide() - zero_point);
    }
    if let [x] = last {
        words[pairs.len()] = pair(x.wide() - zero_point, 0);
    }
}

/// Words of four: the codes as `u8`. What the last word lacks is 0, which adds nothing.
fn pack_bytes<A: Code>(a: &[A], words: &mut [i32]) {
    for (word, codes) in words.iter_mut().zip(a.chunks(4)) {
        let mut bytes = [0; 4];
        for (byte, code) in bytes.iter_mut().zip(codes) {
            *byte = (code.wide() + A::TO_U8) as u8;
        }
        *word = i32::from_ne_bytes(bytes);
    }
}

/// Two `i16`, the first in the low half.
#[inline(always)]
fn pair(low: i16, high: i16) -> i32 {
    i32::from(high) << 16 | i32::from(low as u16)
}

/// Columns that are packed at once.
const RUN: usize = 256;

/// Words `ks` of columns `cols`: panels of `nr` columns, the last filled up with zeros.
#[expect(clippy::too_many_arguments, reason = "one loop, two word formats")]
fn pack_panels<B: Code>(
    b: &impl Rows<B>,
    zero_points: &[i32],
    k: usize,
    ks: &Range<usize>,
    cols: &Range<usize>,
    nr: usize,
    words: Words,
    panels: &mut [i32],
    col_sums: &mut [i32],
) {
    let kc = ks.len();
    let mut rows = [[B::default(); RUN]; 4];
    let mut run = [0_i32; RUN];
    let mut zeros = [0_i16; RUN];
    let step = RUN / nr * nr;
    for start in cols.clone().step_by(step) {
        let n_cols = step.min(cols.end - start);
        for (i, zero) in zeros[..n_cols].iter_mut().enumerate() {
            *zero = zero_points[if zero_points.len() == 1 { 0 } else { start + i }] as i16;
        }
        run.fill(0);
        for (p, word) in ks.clone().enumerate() {
            let n_rows = words.len().min(k - word * words.len());
            for (r, row) in rows[..n_rows].iter_mut().enumerate() {
                b.row(word * words.len() + r, start, &mut row[..n_cols]);
            }
            match words {
                Words::I16 => {
                    let (low, high) = (&rows[0][..n_cols], &rows[1][..n_cols]);
                    let (run, zeros) = (&mut run[..n_cols], &zeros[..n_cols]);
                    if n_rows == 2 {
                        for i in 0..n_cols {
                            run[i] = pair(low[i].wide() - zeros[i], high[i].wide() - zeros[i]);
                        }
                    } else {
                        for i in 0..n_cols {
                            run[i] = pair(low[i].wide() - zeros[i], 0);
                        }
                    }
                }
                Words::U8I8 => {
                    let sums = &mut col_sums[start - cols.start..][..n_cols];
                    for i in 0..n_cols {
                        let mut bytes = [0_u8; 4];
                        for (byte, row) in bytes.iter_mut().zip(&rows[..n_rows]) {
                            let moved = row[i].wide() + B::TO_U8 - 128;
                            *byte = moved as u8;
                            sums[i] += i32::from(moved);
                        }
                        run[i] = i32::from_ne_bytes(bytes);
                    }
                }
            }
            for col in (0..n_cols).step_by(nr) {
                let to = (start - cols.start + col) * kc + p * nr;
                copy_panel_row(&run[col..][..nr], &mut panels[to..][..nr]);
            }
        }
    }
}

/// The implementations, for `midtread inspect --cpu`.
pub(crate) fn describe() -> Vec<VariantInfo> {
    variant::describe("int8::matmul_integer", kernel::VARIANTS)
}

#[cfg(test)]
mod tests;
