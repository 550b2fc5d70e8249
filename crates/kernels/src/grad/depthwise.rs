//! Gradients of convolutions with one input and one output channel a group.
//!
//! The input's plane is sorted by the remainders of row and column modulo the strides, with the padding in place, and
//! the output's gradient is laid out with the same distance between rows, zeros behind each row. Then every element of
//! the kernel meets the whole plane as one run of neighbors at a fixed offset: a sum of products for the weight's
//! gradient, a sum of scaled neighbors for the input's, whatever the stride and the dilation.

use crate::autovec::autovec;
use crate::conv::Conv2d;
use crate::par::{self, Disjoint};
use crate::variant::{self, VariantInfo};

use super::n_groups;

/// Whether this module computes it.
pub(super) fn is_direct(conv: &Conv2d) -> bool {
    conv.is_depthwise() && conv.c_out == conv.groups
}

/// Lanes of the sums.
const N: usize = 16;

/// Where things lie in the sorted plane.
struct Geometry {
    /// Distance between rows.
    pitch: usize,
    /// Elements of the output's gradient laid out with that distance, up to whole vectors.
    n_dy: usize,
    /// Elements of the sorted plane.
    n_plane: usize,
    /// For each kernel element, where its run begins.
    offsets: Vec<usize>,
    /// For each row of the input: where the row of its remainder begins.
    rows: Vec<usize>,
    /// For each column of the input: where it lies in a row's part.
    cols: Vec<usize>,
}

impl Geometry {
    fn new(conv: &Conv2d) -> Self {
        let [out_h, out_w] = conv.output();
        let [kh, kw] = conv.kernel;
        let [stride_h, stride_w] = conv.strides;
        let reach_w = (kw - 1) * conv.dilations[1];
        let reach_h = (kh - 1) * conv.dilations[0];
        // A position (row, column) of the padded input lies in the plane of its remainders.
        let pitch =
            (out_w + reach_w / stride_w).max((conv.input[1] + conv.pads[1]).div_ceil(stride_w));
        let n_rows =
            (out_h + reach_h / stride_h).max((conv.input[0] + conv.pads[0]).div_ceil(stride_h));
        let n_dy = (out_h * pitch).next_multiple_of(N);
        // A run may read past the last row.
        let plane = (n_rows * pitch).max((reach_h / stride_h) * pitch + reach_w / stride_w + n_dy);
        let at = |row: usize, col: usize| {
            let remainders = row % stride_h * stride_w + col % stride_w;
            remainders * plane + row / stride_h * pitch + col / stride_w
        };
        let offsets = (0..kh * kw)
            .map(|t| at(t / kw * conv.dilations[0], t % kw * conv.dilations[1]))
            .collect();
        let rows = (0..conv.input[0]).map(|row| at(row + conv.pads[0], 0)).collect();
        let cols = (0..conv.input[1]).map(|col| at(0, col + conv.pads[1])).collect();
        Self { pitch, n_dy, n_plane: stride_h * stride_w * plane, offsets, rows, cols }
    }

    /// The output's gradient with this distance between rows.
    fn lay_out(&self, dy: &[f32], out_w: usize, to: &mut [f32]) {
        to.fill(0.0);
        for (from, to) in dy.chunks_exact(out_w).zip(to.chunks_mut(self.pitch)) {
            to[..out_w].copy_from_slice(from);
        }
    }

    /// The input's plane, sorted. What lies between is zero already.
    fn sort(&self, x: &[f32], width: usize, to: &mut [f32]) {
        for (from, &row) in x.chunks_exact(width).zip(&self.rows) {
            for (x, &col) in from.iter().zip(&self.cols) {
                to[row + col] = *x;
            }
        }
    }
}

autovec!(DOT, fn(dy: &[f32], plane: &[f32], offsets: &[usize], sums: &mut [[f32; N]]) = dot);

/// `sums[t] += dy * plane[offsets[t]..]`, lane by lane.
#[inline(always)]
fn dot(dy: &[f32], plane: &[f32], offsets: &[usize], sums: &mut [[f32; N]]) {
    for (&offset, sum) in offsets.iter().zip(sums) {
        let mut acc = *sum;
        let x = plane[offset..][..dy.len()].as_chunks::<N>().0;
        for (dy, x) in dy.as_chunks::<N>().0.iter().zip(x) {
            for ((acc, dy), x) in acc.iter_mut().zip(dy).zip(x) {
                *acc = dy.mul_add(*x, *acc);
            }
        }
        *sum = acc;
    }
}

autovec!(COLLECT, fn(dy: &[f32], w: &[f32], starts: &[usize], plane: &mut [f32]) = collect);

/// `plane[i] = sum(w[t] * dy[starts[t] + i])`, with each sum in registers: added up in the plane, every element of the
/// kernel would have to wait for what the one before it stored.
#[inline(always)]
fn collect(dy: &[f32], w: &[f32], starts: &[usize], plane: &mut [f32]) {
    for (i, to) in plane.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        let mut sum = [0.0; N];
        for (&start, &w) in starts.iter().zip(w) {
            let dy = &dy[start + i * N..][..N];
            for (sum, dy) in sum.iter_mut().zip(dy) {
                *sum = w.mul_add(*dy, *sum);
            }
        }
        *to = sum;
    }
}

/// Estimated time of a plane on one thread.
fn cost_ns(conv: &Conv2d) -> usize {
    let [oh, ow] = conv.output();
    oh * ow * conv.kernel[0] * conv.kernel[1] / 8 + 50
}

pub(super) fn input(conv: &Conv2d, w: &[f32], dy: &[f32], dx: &mut [f32]) {
    let geometry = Geometry::new(conv);
    let [out_h, out_w] = conv.output();
    let (n_out, n_in, taps) =
        (out_h * out_w, conv.input[0] * conv.input[1], conv.kernel[0] * conv.kernel[1]);
    let run = variant::select(COLLECT);
    let n_planes = conv.n * conv.c_in;
    // The plane of each pair of remainders has its own elements of the kernel.
    let n_remainders = conv.strides[0] * conv.strides[1];
    let part = geometry.n_plane / n_remainders;
    let padded_part = part.next_multiple_of(N);
    let elements: Vec<Vec<(usize, usize)>> = (0..n_remainders)
        .map(|r| {
            let all = geometry.offsets.iter().enumerate();
            all.filter(|(_, o)| *o / part == r).map(|(t, o)| (t, o % part)).collect()
        })
        .collect();
    // Where rows and columns lie once each part is as long as whole vectors are.
    let padded = |at: &usize| at / part * padded_part + at % part;
    let rows: Vec<usize> = geometry.rows.iter().map(padded).collect();
    let cols: Vec<usize> = geometry.cols.iter().map(padded).collect();
    // Zeros before and behind the gradient, as far as the elements reach.
    let before = elements.iter().flatten().map(|&(_, o)| o).max().unwrap_or(0);
    let n_laid_out = before + padded_part.max(geometry.n_dy);
    let starts: Vec<Vec<usize>> =
        elements.iter().map(|e| e.iter().map(|&(_, o)| before - o).collect()).collect();
    let dx = Disjoint::new(dx);
    par::for_each_task(n_planes, n_planes * cost_ns(conv), |i| {
        // SAFETY: each plane is its own.
        let dx = unsafe { dx.slice(i * n_in, n_in) };
        par::with_scratch(n_laid_out + n_remainders * padded_part + taps, |scratch| {
            let (laid_out, rest) = scratch.split_at_mut(n_laid_out);
            let (planes, own_w) = rest.split_at_mut(n_remainders * padded_part);
            laid_out[..before].fill(0.0);
            geometry.lay_out(&dy[i * n_out..][..n_out], out_w, &mut laid_out[before..]);
            let w = &w[i % conv.c_in * taps..][..taps];
            for (r, plane) in planes.chunks_exact_mut(padded_part).enumerate() {
                for (own, &(t, _)) in own_w.iter_mut().zip(&elements[r]) {
                    *own = w[t];
                }
                run(laid_out, &own_w[..elements[r].len()], &starts[r], plane);
            }
            for (to, &row) in dx.chunks_exact_mut(conv.input[1]).zip(&rows) {
                for (to, &col) in to.iter_mut().zip(&cols) {
                    *to = planes[row + col];
                }
            }
        });
    });
}

pub(super) fn weights(conv: &Conv2d, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let geometry = Geometry::new(conv);
    let [out_h, out_w] = conv.output();
    let (n_out, n_in, taps) =
        (out_h * out_w, conv.input[0] * conv.input[1], conv.kernel[0] * conv.kernel[1]);
    let run = variant::select(DOT);
    let n_groups = n_groups(conv.n);
    let mut sums = vec![[0.0; N]; n_groups * conv.c_in * taps];
    let parts = Disjoint::new(&mut sums);
    let n_tasks = n_groups * conv.c_in;
    par::for_each_task(n_tasks, conv.n * conv.c_in * cost_ns(conv), |task| {
        let (images, channel) = (task / conv.c_in, task % conv.c_in);
        // SAFETY: each task has its own sums.
        let sums = unsafe { parts.slice(task * taps, taps) };
        par::with_scratch(geometry.n_dy + geometry.n_plane, |scratch| {
            let (laid_out, plane) = scratch.split_at_mut(geometry.n_dy);
            plane.fill(0.0);
            for image in par::share(conv.n, n_groups, images) {
                let i = image * conv.c_in + channel;
                geometry.lay_out(&dy[i * n_out..][..n_out], out_w, laid_out);
                geometry.sort(&x[i * n_in..][..n_in], conv.input[1], plane);
                run(laid_out, plane, &geometry.offsets, sums);
            }
        });
    });
    for group in sums.chunks_exact(conv.c_in * taps) {
        for (dw, lanes) in dw.iter_mut().zip(group) {
            *dw += lanes.iter().sum::<f32>();
        }
    }
}

pub(super) fn describe() -> Vec<VariantInfo> {
    [
        variant::describe("grad::depthwise_weights", DOT),
        variant::describe("grad::depthwise_input", COLLECT),
    ]
    .concat()
}
