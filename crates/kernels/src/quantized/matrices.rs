//! Products of two tensors of codes that are both made while a program runs, such as those of attention.

use alloc::vec::Vec;
use std::ops::Range;

use super::lanes::N;
use super::product::{Block, DisjointOut, Kernel, VARIANTS, disjoint};
use super::requant::RequantView;
use super::weights::{Panels, Quad};
use super::windows::{Rows, SPARE};
use super::{Bytes, Out, Requant};
use crate::autovec::autovec;
use crate::par;
use crate::variant;

/// The most dimensions that count matrices.
pub const MAX_OUTER: usize = 6;

/// How far apart the elements of some matrices lie in a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strides {
    /// From one matrix to the next, along each of the dimensions that count them; 0 where it is the same matrix.
    pub outer: [usize; MAX_OUTER],
    /// From one row to the next.
    pub row: usize,
    /// From one column to the next.
    pub column: usize,
}

/// Matrices of `m` rows and `k` columns times such of `k` rows and `n` columns, and where they lie: a transposition of
/// either factor or of the result costs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrices {
    /// How many there are.
    pub outer: [usize; MAX_OUTER],
    /// Rows of the first factor.
    pub m: usize,
    /// What is summed over.
    pub k: usize,
    /// Columns of the second factor.
    pub n: usize,
    /// Of the first factor; from one column to the next it is 1.
    pub a: Strides,
    /// Of the second.
    pub b: Strides,
    /// Of the product; from one column to the next it is 1, and no two elements are one.
    pub y: Strides,
}

impl Matrices {
    fn n_matrices(&self) -> usize {
        self.outer.iter().product()
    }

    /// Where the first element of matrix `i` is.
    fn start(&self, mut i: usize, of: &Strides) -> usize {
        let mut start = 0;
        for (size, stride) in self.outer.iter().zip(of.outer).rev() {
            start += i % size * stride;
            i /= size;
        }
        start
    }

    /// One more than the greatest index.
    fn reach(&self, [rows, columns]: [usize; 2], of: &Strides) -> usize {
        let outer = self.outer.iter().zip(of.outer).map(|(size, stride)| (size - 1) * stride);
        outer.sum::<usize>() + (rows - 1) * of.row + (columns - 1) * of.column + 1
    }

    /// Whether every element of the product has a place of its own.
    fn is_disjoint(&self) -> bool {
        let mut dims = [(1, 0); MAX_OUTER + 2];
        for (dim, of) in dims.iter_mut().zip(self.outer.into_iter().zip(self.y.outer)) {
            *dim = of;
        }
        dims[MAX_OUTER..].copy_from_slice(&[(self.m, self.y.row), (self.n, self.y.column)]);
        dims.sort_unstable_by_key(|(_, stride)| *stride);
        let mut reach = 1;
        dims.into_iter().filter(|(size, _)| 1 < *size).all(|(size, stride)| {
            let is_beyond = reach <= stride;
            reach += (size - 1) * stride;
            is_beyond
        })
    }
}

/// `y = requant(sum of (a - zero_points[0]) * (b - zero_points[1]))`, the requantization one for all
/// ([`Requant::uniform`]). The sums are exact, and wrap at 32 bits.
///
/// # Panics
///
/// When a matrix is not inside its elements, or a stride is none that can be had.
pub fn product_of_two(
    of: &Matrices,
    a: Bytes,
    b: Bytes,
    zero_points: [i32; 2],
    requant: &Requant,
    y: &mut Out,
) {
    run(variant::select(VARIANTS), of, a, b, zero_points, requant, y);
}

fn run(
    kernel: Kernel,
    of: &Matrices,
    a: Bytes,
    b: Bytes,
    zero_points: [i32; 2],
    requant: &Requant,
    y: &mut Out,
) {
    let &Matrices { m, k, n, .. } = of;
    let n_matrices = of.n_matrices();
    if n_matrices == 0 || m == 0 || n == 0 {
        return;
    }
    assert!(of.y.column == 1 && (of.a.column == 1 || k < 2), "columns side by side: {of:?}");
    assert!(of.is_disjoint(), "a place for each element of the product: {of:?}");
    assert!(of.reach([m, n], &of.y) <= y.len(), "the product is inside its elements: {of:?}");
    if 0 < k {
        assert!(of.reach([m, k], &of.a) <= a.data.len(), "the first factor is: {of:?}");
        assert!(of.reach([k, n], &of.b) <= b.data.len(), "the second factor is: {of:?}");
    }
    assert!(requant.view().bias.len() == N, "one requantization for all");
    let cost = n_matrices.saturating_mul(m).saturating_mul(k).saturating_mul(n) / kernel.speed;
    let n_tasks = par::n_tasks(cost);
    // The rows of a matrix are cut only where there are few matrices, because the second factor is packed for each cut.
    let n_m = (n_tasks / n_matrices).clamp(1, m.div_ceil(2 * SPARE));
    let out = disjoint(y);
    let job = Job { kernel, of, a, b, zero_points, requant: requant.view(), out: &out };
    let n_parts = n_matrices * n_m;
    let n_tasks = n_tasks.min(n_parts);
    par::for_each_task(n_tasks, cost, |task| {
        with_buffers(|buffers| {
            for part in par::share(n_parts, n_tasks, task) {
                job.run(part / n_m, par::share(m, n_m, part % n_m), buffers);
            }
        });
    });
}

struct Job<'a> {
    kernel: Kernel,
    of: &'a Matrices,
    a: Bytes<'a>,
    b: Bytes<'a>,
    zero_points: [i32; 2],
    requant: RequantView<'a>,
    out: &'a DisjointOut<'a>,
}

/// Memory of a thread.
struct Buffers<'a> {
    quads: &'a mut Vec<Quad>,
    rows: &'a mut Vec<u8>,
    starts: &'a mut Vec<u32>,
    /// For each column, and for each row.
    bias: [&'a mut Vec<i32>; 2],
    words: &'a mut Vec<i32>,
}

fn with_buffers(f: impl FnOnce(&mut Buffers)) {
    par::with_vec(|quads| {
        par::with_vec(|rows| {
            par::with_vec(|starts| {
                par::with_vec(|columns| {
                    par::with_vec(|sums| {
                        par::with_vec(|words| {
                            let bias = [columns, sums];
                            f(&mut Buffers { quads, rows, starts, bias, words })
                        })
                    })
                })
            })
        })
    })
}

impl par::Scratch for Quad {
    #[cfg(feature = "std")]
    fn free<R>(f: impl FnOnce(&mut Vec<Vec<Self>>) -> R) -> R {
        std::thread_local! {
            static FREE: std::cell::RefCell<Vec<Vec<Quad>>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        FREE.with_borrow_mut(f)
    }
}

/// Rows whose sums are computed together.
const AT_ONCE: usize = 240;

impl Job<'_> {
    /// Some rows of matrix `i`.
    ///
    /// Kernels multiply `u8` by `i8`. So the codes of `a` may be moved up by 128, and those of `b` down, and with them
    /// their zero points. What is then subtracted from the sum of products of codes is the zero point of `a` times the
    /// sum of a column, and the zero point of `b` times the sum of a row, less what that counts twice.
    fn run(&self, i: usize, all_rows: Range<usize>, buffers: &mut Buffers) {
        let &Matrices { k, n, .. } = self.of;
        let (a_start, b_start) = (self.of.start(i, &self.of.a), self.of.start(i, &self.of.b));
        let [a_zero, b_zero] = self.zero_points;
        let a_zero = if self.a.is_signed { a_zero + 128 } else { a_zero };
        let b_zero = if self.b.is_signed { b_zero } else { b_zero - 128 };
        let [column_bias, row_bias] = &mut buffers.bias;

        buffers.quads.resize(n.div_ceil(N) * k.div_ceil(4), Quad::default());
        column_bias.resize(n.next_multiple_of(N), 0);
        let flip = if self.b.is_signed { 0 } else { 0x80 };
        let b = Second { data: self.b.data.get(b_start..).unwrap_or(&[]), of: self.of, flip };
        variant::select(PACK)(&b, buffers.quads, column_bias);
        let all_zeros = (k as i32).wrapping_mul(a_zero).wrapping_mul(b_zero);
        for bias in column_bias.iter_mut() {
            *bias = all_zeros.wrapping_sub(bias.wrapping_mul(a_zero));
        }

        for first in all_rows.clone().step_by(AT_ONCE) {
            let rows = first..all_rows.end.min(first + AT_ONCE);
            let start = a_start + rows.start * self.of.a.row;
            let step = self.of.a.row;
            // Read in whole words, where what follows a row in its last word is there: its weights are 0.
            let n_bytes = (rows.len() - 1) * step + k.next_multiple_of(4);
            let is_direct = !self.a.is_signed && start + n_bytes <= self.a.data.len();
            let (data, step) = if is_direct {
                (&self.a.data[start..][..n_bytes], step)
            } else {
                let to = k.next_multiple_of(4);
                buffers.rows.clear();
                buffers.rows.resize(rows.len() * to, 0);
                let flip = if self.a.is_signed { 0x80 } else { 0 };
                if 0 < k {
                    for (i, row) in buffers.rows.chunks_exact_mut(to).enumerate() {
                        let from = &self.a.data[start + i * step..][..k];
                        row.iter_mut().zip(from).for_each(|(row, from)| *row = from ^ flip);
                    }
                }
                (&buffers.rows[..], to)
            };
            assert!(n_bytes <= u32::MAX as usize, "rows within 4 GiB");
            let n_rows = rows.len();
            let row = |i: usize| i.min(n_rows - 1);
            buffers.starts.clear();
            buffers.starts.extend((0..n_rows + SPARE).map(|i| (row(i) * step) as u32));
            let has_row_bias = b_zero != 0;
            if has_row_bias {
                row_bias.resize(n_rows + SPARE, 0);
                variant::select(SUMS)(data, step, k, &mut row_bias[..n_rows]);
                row_bias[..n_rows].iter_mut().for_each(|s| *s = s.wrapping_mul(-b_zero));
                let last = row_bias[n_rows - 1];
                row_bias[n_rows..].fill(last);
            }
            let weights = Panels::of_matrix(k, n, buffers.quads);
            let block = Block {
                rows: Rows { data, n_rows, starts: buffers.starts, offsets: &[0] },
                weights,
                panels: 0..weights.n_panels(),
                is_moved: false,
                requant: RequantView { bias: column_bias, ..self.requant },
                row_bias: has_row_bias.then_some(&row_bias[..]),
                out: self.out,
                start: self.of.start(i, &self.of.y) + rows.start * self.of.y.row,
                pitch: self.of.y.row,
            };
            (self.kernel.run)(&block, buffers.words);
        }
    }
}

/// A second factor.
struct Second<'a> {
    /// From its first element on.
    data: &'a [u8],
    of: &'a Matrices,
    /// What makes `i8` of the codes.
    flip: u8,
}

autovec!(PACK, fn(b: &Second, quads: &mut [Quad], sums: &mut [i32]) = pack);

/// The panels of `b`, and the sum of each column.
#[inline(always)]
fn pack(b: &Second, quads: &mut [Quad], sums: &mut [i32]) {
    let &Matrices { k, n, b: Strides { row, column, .. }, .. } = b.of;
    sums.fill(0);
    let n_words = k.div_ceil(4);
    let panels = quads.chunks_exact_mut(n_words.max(1)).zip(sums.as_chunks_mut::<N>().0);
    for (panel, (quads, sums)) in panels.enumerate() {
        let first = panel * N;
        let n_columns = N.min(n - first);
        for (word, quad) in quads.iter_mut().enumerate() {
            let n_rows = 4.min(k - 4 * word);
            let quad = &mut quad.0;
            if n_columns == N && n_rows == 4 && column == 1 {
                let rows: [&[u8; N]; 4] = std::array::from_fn(|r| {
                    let start = (4 * word + r) * row + first;
                    b.data[start..].first_chunk().expect("sixteen columns")
                });
                for i in 0..N {
                    for r in 0..4 {
                        quad[4 * i + r] = (rows[r][i] ^ b.flip).cast_signed();
                    }
                }
            } else if n_columns == N && n_rows == 4 && row == 1 {
                for i in 0..N {
                    let start = (first + i) * column + 4 * word;
                    let four: &[u8; 4] = b.data[start..].first_chunk().expect("four rows");
                    for r in 0..4 {
                        quad[4 * i + r] = (four[r] ^ b.flip).cast_signed();
                    }
                }
            } else {
                *quad = [0; 4 * N];
                for i in 0..n_columns {
                    for r in 0..n_rows {
                        let code = b.data[(4 * word + r) * row + (first + i) * column];
                        quad[4 * i + r] = (code ^ b.flip).cast_signed();
                    }
                }
            }
            for i in 0..N {
                let four: i32 = (0..4).map(|r| i32::from(quad[4 * i + r])).sum();
                sums[i] = sums[i].wrapping_add(four);
            }
        }
    }
}

autovec!(SUMS, fn(data: &[u8], step: usize, k: usize, sums: &mut [i32]) = row_sums);

/// The sum of the first `k` codes of each row.
#[inline(always)]
fn row_sums(data: &[u8], step: usize, k: usize, sums: &mut [i32]) {
    for (i, sum) in sums.iter_mut().enumerate() {
        let row = &data[i * step..][..k];
        let (chunks, rest) = row.as_chunks::<128>();
        // So many codes are summed in sixteen bits.
        let mut total = 0_i32;
        for chunk in chunks {
            let mut lanes = [0_u16; 32];
            for part in chunk.as_chunks::<32>().0 {
                for (lane, code) in lanes.iter_mut().zip(part) {
                    *lane += u16::from(*code);
                }
            }
            let four: u16 = lanes.iter().sum();
            total = total.wrapping_add(i32::from(four));
        }
        let rest: i32 = rest.iter().map(|code| i32::from(*code)).sum();
        *sum = total.wrapping_add(rest);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Every variant's product, with the variant's name.
    pub(in super::super) fn each_variant(
        of: &Matrices,
        a: Bytes,
        b: Bytes,
        zero_points: [i32; 2],
        requant: &Requant,
        len: usize,
        mut check: impl FnMut(&str, Vec<u8>, Vec<f32>),
    ) {
        for variant in VARIANTS {
            let Some(kernel) = variant.get() else { continue };
            let (mut codes, mut numbers) = (vec![0xAA; len], vec![-7.0; len]);
            for out in [&mut Out::Codes(&mut codes), &mut Out::Numbers(&mut numbers)] {
                run(kernel, of, a, b, zero_points, requant, out);
            }
            check(variant.name, codes, numbers);
        }
    }
}
