//! The windows of a convolution over an image stored channels last: where the rows of a product's first factor lie.

use alloc::vec::Vec;
use std::ops::Range;

use super::weights::Panels;
use crate::conv::Conv2d;
use crate::par;

/// A convolution, or a product as one of windows of one pixel, and its image.
pub(super) struct Windows<'a> {
    pub(super) conv: Conv2d,
    /// (image, row, column, channel).
    pub(super) data: &'a [u8],
    /// What makes `u8` of the codes: 0x80 for `i8`, else 0.
    pub(super) flip: u8,
    /// What the padding holds, as a code: the byte of the zero point.
    pub(super) padding: u8,
    /// Those of the group.
    pub(super) channels: Range<usize>,
}

/// The bytes of some windows.
pub(super) struct Rows<'a> {
    /// `u8` codes.
    pub(super) data: &'a [u8],
    pub(super) n_rows: usize,
    /// Where each row begins, and then [`SPARE`] times the last one, for tiles that are higher than what is left.
    pub(super) starts: &'a [u32],
    /// Where each of its segments does, from there. Every segment of every row may be read in whole words.
    pub(super) offsets: &'a [u32],
}

/// One less than the rows of the highest tile.
pub(super) const SPARE: usize = 15;

/// Memory for [`Windows::rows`].
pub(super) struct Buffers<'a> {
    image: &'a mut Vec<u8>,
    starts: &'a mut Vec<u32>,
    offsets: &'a mut Vec<u32>,
}

/// Calls `f` with this thread's buffers.
pub(super) fn with_buffers<R>(f: impl FnOnce(&mut Buffers) -> R) -> R {
    par::with_vec(|image| {
        par::with_vec(|starts| par::with_vec(|offsets| f(&mut Buffers { image, starts, offsets })))
    })
}

impl<'a> Windows<'a> {
    /// `m` rows of `k` codes as an image `m` pixels high.
    pub(super) fn of_matrix(m: usize, k: usize, data: &'a [u8], is_signed: bool) -> Self {
        let conv = Conv2d {
            n: 1,
            c_in: k,
            c_out: 1,
            input: [m, 1],
            kernel: [1, 1],
            strides: [1, 1],
            pads: [0; 4],
            dilations: [1, 1],
            groups: 1,
        };
        let flip = if is_signed { 0x80 } else { 0 };
        Self { conv, data, flip, padding: 0, channels: 0..k }
    }

    /// Windows.
    pub(super) fn n(&self) -> usize {
        let [height, width] = self.conv.output();
        self.conv.n * height * width
    }

    /// Sizes of an image with its padding.
    fn padded(&self) -> [usize; 2] {
        let ([height, width], pads) = (self.conv.input, self.conv.pads);
        [height + pads[0] + pads[2], width + pads[1] + pads[3]]
    }

    /// Whether the image can be read as it is.
    fn is_direct(&self, weights: &Panels<'_>) -> bool {
        self.flip == 0
            && self.conv.pads == [0; 4]
            && self.channels.len() == self.conv.c_in
            && weights.segments()[1].is_multiple_of(4)
    }

    /// How many windows to look at together, so that what is read and written stays in the first-level cache; but
    /// enough of them that going through the weights for so many pays.
    pub(super) fn block_len(&self, weights: &Panels<'_>) -> usize {
        let [stride_h, stride_w] = self.conv.strides;
        let per_window = stride_h * stride_w * self.channels.len() + weights.n();
        let is_large = (1 << 19) < weights.k() * weights.n();
        let n_bytes = if is_large { 1 << 18 } else { 24 << 10 };
        (n_bytes / per_window.max(1)).max(96).next_multiple_of(48)
    }

    /// The windows `range`, kernel row after kernel row, column after column, the channels of the group.
    pub(super) fn rows<'b>(
        &'b self,
        range: Range<usize>,
        weights: &Panels<'_>,
        buffers: &'b mut Buffers<'_>,
    ) -> Rows<'b> {
        let conv = &self.conv;
        let ([padded_h, padded_w], [out_h, out_w]) = (self.padded(), conv.output());
        let c = self.channels.len();
        // Rows of padded images, counted through all images.
        let top = |line: usize| line / out_h * padded_h + line % out_h * conv.strides[0];
        let lines = range.start / out_w..(range.end - 1) / out_w + 1;
        let first = top(lines.start);
        let origin = first * padded_w * c;
        let data = if self.is_direct(weights) {
            &self.data[origin..]
        } else {
            let reach = (conv.kernel[0] - 1) * conv.dilations[0] + 1;
            self.copy(first..top(lines.end - 1) + reach, buffers.image);
            &buffers.image[..]
        };

        buffers.starts.resize(range.len() + SPARE, 0);
        let mut starts = &mut buffers.starts[..];
        let mut last = 0;
        for line in lines {
            let columns = range.start.max(line * out_w) - line * out_w
                ..range.end.min((line + 1) * out_w) - line * out_w;
            let (here, rest) = starts.split_at_mut(columns.len());
            let step = conv.strides[1] * c;
            let start = top(line) * padded_w * c - origin + columns.start * step;
            for (i, at) in here.iter_mut().enumerate() {
                *at = (start + i * step) as u32;
            }
            starts = rest;
            last = start + (columns.len() - 1) * step;
        }

        starts.fill(last as u32);

        let [n_segments, _] = weights.segments();
        let per_row = n_segments / conv.kernel[0];
        buffers.offsets.clear();
        buffers.offsets.extend((0..n_segments).map(|s| {
            let (row, column) = (s / per_row * conv.dilations[0], s % per_row * conv.dilations[1]);
            ((row * padded_w + column) * c) as u32
        }));
        let reach = last + buffers.offsets.last().map_or(0, |&at| at as usize);
        let reach = reach + 4 * weights.segment_words();
        assert!(reach <= data.len(), "every word of every window is inside the image");
        assert!(reach <= u32::MAX as usize, "windows within 4 GiB");
        Rows { data, n_rows: range.len(), starts: buffers.starts, offsets: buffers.offsets }
    }

    /// Rows of the padded images, as `u8`.
    fn copy(&self, rows: Range<usize>, out: &mut Vec<u8>) {
        let conv = &self.conv;
        let ([padded_h, padded_w], [height, width]) = (self.padded(), conv.input);
        let (c, all) = (self.channels.len(), conv.c_in);
        let padding = self.padding ^ self.flip;
        // Three more bytes, so that the last segment can be read in whole words.
        out.resize(rows.len() * padded_w * c + 3, 0);
        for (row, out) in rows.zip(out.chunks_exact_mut((padded_w * c).max(1))) {
            let (image, y) = (row / padded_h, (row % padded_h).wrapping_sub(conv.pads[0]));
            if height <= y {
                out.fill(padding);
                continue;
            }
            let line = &self.data[(image * height + y) * width * all..][..width * all];
            let (left, rest) = out.split_at_mut(conv.pads[1] * c);
            let (inner, right) = rest.split_at_mut(width * c);
            left.fill(padding);
            right.fill(padding);
            if c == all {
                inner.copy_from_slice(line);
            } else {
                for (to, from) in inner.chunks_exact_mut(c).zip(line.chunks_exact(all)) {
                    to.copy_from_slice(&from[self.channels.clone()]);
                }
            }
            if self.flip != 0 {
                inner.iter_mut().for_each(|byte| *byte ^= self.flip);
            }
        }
    }
}

impl Rows<'_> {
    /// The bytes of segment `s` of row `row`.
    pub(super) fn segment(&self, row: usize, s: usize, n_bytes: usize) -> &[u8] {
        &self.data[self.starts[row] as usize + self.offsets[s] as usize..][..n_bytes]
    }
}
