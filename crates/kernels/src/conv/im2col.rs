//! The windows of a convolution as the second factor of a matrix product: row (channel, kernel row, kernel column),
//! column (output row, output column). Only ever a block of it exists.

use std::ops::Range;

use crate::gemm::{PanelSource, copy_panel_row, panel_width};

use super::Conv2d;

/// The windows of one image's group.
pub(crate) struct Windows<'a, T> {
    conv: &'a Conv2d,
    /// The group's channels.
    x: &'a [T],
    out_width: usize,
    /// What lies in the padding.
    pad: T,
}

impl<'a, T: Copy + Default> Windows<'a, T> {
    /// With zeros in the padding.
    pub(crate) fn new(conv: &'a Conv2d, x: &'a [T]) -> Self {
        Self::padded(conv, x, T::default())
    }

    pub(crate) fn padded(conv: &'a Conv2d, x: &'a [T], pad: T) -> Self {
        Self { conv, x, out_width: conv.output()[1], pad }
    }

    /// Row `k` of columns `start..start + out.len()`.
    pub(crate) fn row(&self, k: usize, start: usize, out: &mut [T]) {
        let [kh, kw] = self.conv.kernel;
        let [height, width] = self.conv.input;
        let (channel, tap_row, tap_col) = (k / (kh * kw), k / kw % kh, k % kw);
        let plane = &self.x[channel * height * width..][..height * width];
        let [stride_h, stride_w] = self.conv.strides;
        let (row_offset, col_offset) =
            (tap_row * self.conv.dilations[0], tap_col * self.conv.dilations[1]);
        let [pad_top, pad_left, ..] = self.conv.pads;

        let (mut out_row, mut out_col) = (start / self.out_width, start % self.out_width);
        let mut rest = out;
        while !rest.is_empty() {
            let len = rest.len().min(self.out_width - out_col);
            let (run, after) = rest.split_at_mut(len);
            rest = after;
            match (out_row * stride_h + row_offset).checked_sub(pad_top).filter(|r| *r < height) {
                Some(row) => {
                    let from = &plane[row * width..][..width];
                    // Column `out_col + i` reads `first + i * stride_w - pad_left`.
                    let first = out_col * stride_w + col_offset;
                    let n_before = pad_left.saturating_sub(first).div_ceil(stride_w).min(len);
                    let n_inside = (width + pad_left)
                        .saturating_sub(first)
                        .div_ceil(stride_w)
                        .clamp(n_before, len);
                    run[..n_before].fill(self.pad);
                    run[n_inside..].fill(self.pad);
                    if n_before < n_inside {
                        let from = &from[first + n_before * stride_w - pad_left..];
                        copy_strided(from, stride_w, &mut run[n_before..n_inside]);
                    }
                }
                None => run.fill(self.pad),
            }
            out_col = 0;
            out_row += 1;
        }
    }
}

/// `out[i] = from[i * stride]`.
#[inline(always)]
pub(crate) fn copy_strided<T: Copy>(from: &[T], stride: usize, out: &mut [T]) {
    match stride {
        1 => out.copy_from_slice(&from[..out.len()]),
        2 => {
            // All but the last have a neighbour to be read with.
            let Some((last, most)) = out.split_last_mut() else { return };
            let n = most.len();
            for (to, from) in most.iter_mut().zip(from.as_chunks::<2>().0) {
                *to = from[0];
            }
            *last = from[2 * n];
        }
        _ => {
            for (to, from) in out.iter_mut().zip(from.chunks(stride)) {
                *to = from[0];
            }
        }
    }
}

impl PanelSource for Windows<'_, f32> {
    fn pack(&self, ks: Range<usize>, cols: Range<usize>, nr: usize, panels: &mut [f32]) {
        // Made in runs of this many columns, then cut into panels.
        let mut run = [0.0; 512];
        let kc = ks.len();
        let step = run.len() / nr * nr;
        for start in cols.clone().step_by(step) {
            let n_cols = step.min(cols.end - start);
            for (p, k) in ks.clone().enumerate() {
                self.row(k, start, &mut run[..n_cols]);
                run[n_cols..n_cols.next_multiple_of(nr)].fill(0.0);
                for col in (0..n_cols).step_by(nr) {
                    let width = panel_width((n_cols - col).min(nr), nr);
                    let to = (start - cols.start + col) * kc + p * width;
                    copy_panel_row(&run[col..][..width], &mut panels[to..][..width]);
                }
            }
        }
    }
}
