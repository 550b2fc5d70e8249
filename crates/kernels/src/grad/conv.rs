//! Gradients of [`conv2d`](crate::conv::conv2d).

use crate::conv::{Conv2d, Windows};
use crate::gemm::{Epilogue, MatRef, gemm};
use crate::par::{self, Disjoint};

use super::{accumulate, depthwise, n_groups};

/// `dx`, the gradient of `sum(dy * conv2d(x, w))` in `x`.
///
/// # Panics
///
/// When a slice has another length than the sizes say.
pub fn conv2d_input(conv: &Conv2d, w: &[f32], dy: &[f32], dx: &mut [f32]) {
    conv.check(dx.len(), w.len(), dy.len());
    dx.fill(0.0);
    if dy.is_empty() || dx.is_empty() {
        return;
    }
    if depthwise::is_direct(conv) {
        depthwise::input(conv, w, dy, dx);
        return;
    }
    let Sizes { m, k, n, x_len } = Sizes::of(conv);
    let dx = Disjoint::new(dx);
    let n_products = conv.n * conv.groups;
    par::for_each_task(n_products, n_products * m * k * n / 32, |i| {
        let group = i % conv.groups;
        let w = MatRef::new(&w[group * m * k..], m, k).t();
        let dy = MatRef::new(&dy[i * m * n..], m, n);
        // SAFETY: each image's group has its own input.
        let dx = unsafe { dx.slice(i * x_len, x_len) };
        if conv.is_pointwise() {
            gemm(w, dy, dx, &Epilogue::default());
        } else {
            par::with_scratch(k * n, |windows| {
                gemm(w, dy, windows, &Epilogue::default());
                for (row, from) in windows.chunks_exact(n).enumerate() {
                    add_row(conv, row, from, dx);
                }
            });
        }
    });
}

/// `dw`, the gradient of `sum(dy * conv2d(x, w))` in `w`.
///
/// # Panics
///
/// When a slice has another length than the sizes say.
pub fn conv2d_weights(conv: &Conv2d, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    conv.check(x.len(), dw.len(), dy.len());
    dw.fill(0.0);
    if dy.is_empty() || dw.is_empty() {
        return;
    }
    if depthwise::is_direct(conv) {
        depthwise::weights(conv, x, dy, dw);
        return;
    }
    let Sizes { m, k, n, x_len } = Sizes::of(conv);
    let n_groups = n_groups(conv.n);
    // One sum for each group of images, added in order at the end.
    let mut sums = vec![0.0; n_groups * dw.len()];
    let parts = Disjoint::new(&mut sums);
    par::for_each_task(n_groups * conv.groups, conv.n * conv.groups * m * k * n / 32, |task| {
        let (images, group) = (task / conv.groups, task % conv.groups);
        // SAFETY: each task has its own part.
        let sum = unsafe { parts.slice(images * dw.len() + group * m * k, m * k) };
        let n_windows = if conv.is_pointwise() { 0 } else { k * n };
        par::with_scratch(m * k + n_windows, |scratch| {
            let (product, windows) = scratch.split_at_mut(m * k);
            for image in par::share(conv.n, n_groups, images) {
                let i = image * conv.groups + group;
                let x = &x[i * x_len..][..x_len];
                let dy = MatRef::new(&dy[i * m * n..], m, n);
                let right = if conv.is_pointwise() {
                    MatRef::new(x, k, n).t()
                } else {
                    let source = Windows::new(conv, x);
                    for (row, out) in windows.chunks_exact_mut(n).enumerate() {
                        source.row(row, 0, out);
                    }
                    MatRef::new(windows, k, n).t()
                };
                gemm(dy, right, product, &Epilogue::default());
                super::add_body(product, sum);
            }
        });
    });
    for part in sums.chunks_exact(dw.len()) {
        accumulate(part, dw);
    }
}

/// The matrix product of one image's group: `m` output channels, `k` elements of a window, `n` positions.
struct Sizes {
    m: usize,
    k: usize,
    n: usize,
    x_len: usize,
}

impl Sizes {
    fn of(conv: &Conv2d) -> Self {
        let [oh, ow] = conv.output();
        let in_group = conv.c_in / conv.groups;
        Self {
            m: conv.c_out / conv.groups,
            k: in_group * conv.kernel[0] * conv.kernel[1],
            n: oh * ow,
            x_len: in_group * conv.input[0] * conv.input[1],
        }
    }
}

/// Adds row `k` of the windows' gradients to where the windows were read: the reverse of [`Windows::row`].
fn add_row(conv: &Conv2d, k: usize, from: &[f32], dx: &mut [f32]) {
    let [kh, kw] = conv.kernel;
    let [height, width] = conv.input;
    let (channel, tap_row, tap_col) = (k / (kh * kw), k / kw % kh, k % kw);
    let plane = &mut dx[channel * height * width..][..height * width];
    let [stride_h, stride_w] = conv.strides;
    let (row_offset, col_offset) = (tap_row * conv.dilations[0], tap_col * conv.dilations[1]);
    let [pad_top, pad_left, ..] = conv.pads;
    let out_width = conv.output()[1];
    let n_before = pad_left.saturating_sub(col_offset).div_ceil(stride_w).min(out_width);
    let n_inside =
        (width + pad_left).saturating_sub(col_offset).div_ceil(stride_w).clamp(n_before, out_width);
    if n_before == n_inside {
        return;
    }
    let first = col_offset + n_before * stride_w - pad_left;
    for (out_row, from) in from.chunks_exact(out_width).enumerate() {
        let row = (out_row * stride_h + row_offset).checked_sub(pad_top).filter(|r| *r < height);
        let Some(row) = row else { continue };
        let to = &mut plane[row * width..][..width][first..];
        let from = &from[n_before..n_inside];
        if stride_w == 1 {
            for (to, from) in to.iter_mut().zip(from) {
                *to += from;
            }
        } else {
            for (to, from) in to.iter_mut().step_by(stride_w).zip(from) {
                *to += from;
            }
        }
    }
}
