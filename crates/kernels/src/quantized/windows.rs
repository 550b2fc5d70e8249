//! The windows of a convolution over an image stored channels last.

use alloc::vec::Vec;
use std::ops::Range;

use crate::conv::Conv2d;

/// Where the rows of the first factor of a product come from: one for each output pixel.
pub(super) trait Rows: Sync {
    /// Writes the bytes of row `row`, one after the other.
    fn bytes<'a>(&'a self, row: usize, buffer: &'a mut Vec<u8>) -> &'a [u8];
}

/// Rows that are there as they are.
pub(super) struct Flat<'a> {
    pub(super) data: &'a [u8],
    pub(super) k: usize,
}

impl Rows for Flat<'_> {
    fn bytes<'a>(&'a self, row: usize, _: &'a mut Vec<u8>) -> &'a [u8] {
        &self.data[row * self.k..][..self.k]
    }
}

/// Windows: for each, kernel row after kernel row, column after column, the channels of a group.
pub(super) struct Windows<'a> {
    pub(super) conv: &'a Conv2d,
    pub(super) data: &'a [u8],
    /// What the padding holds: the byte of the zero point.
    pub(super) padding: u8,
    pub(super) channels: Range<usize>,
    /// Of the output, [`Conv2d::output`].
    pub(super) output: [usize; 2],
}

impl Rows for Windows<'_> {
    fn bytes<'a>(&'a self, row: usize, buffer: &'a mut Vec<u8>) -> &'a [u8] {
        let [out_h, out_w] = self.output;
        let (line, column) = (row / out_w, row % out_w);
        let (image, line) = (line / out_h, line % out_h);
        let ([height, width], c) = (self.conv.input, self.conv.c_in);
        let data = &self.data[image * height * width * c..][..height * width * c];
        let [kh, kw] = self.conv.kernel;
        let [dilation_h, dilation_w] = self.conv.dilations;
        let top = line * self.conv.strides[0];
        let left = column * self.conv.strides[1];
        let whole_rows = dilation_w == 1
            && self.channels.len() == c
            && self.conv.pads[1] <= left
            && left + kw <= self.conv.pads[1] + width;
        buffer.clear();
        for i in 0..kh {
            let y = (top + i * dilation_h).wrapping_sub(self.conv.pads[0]);
            if height <= y {
                buffer.resize(buffer.len() + kw * self.channels.len(), self.padding);
                continue;
            }
            if whole_rows {
                let start = (y * width + left - self.conv.pads[1]) * c;
                buffer.extend_from_slice(&data[start..start + kw * c]);
                continue;
            }
            for j in 0..kw {
                let x = (left + j * dilation_w).wrapping_sub(self.conv.pads[1]);
                if width <= x {
                    buffer.resize(buffer.len() + self.channels.len(), self.padding);
                } else {
                    let pixel = &data[(y * width + x) * c..][..c];
                    buffer.extend_from_slice(&pixel[self.channels.clone()]);
                }
            }
        }
        buffer
    }
}
