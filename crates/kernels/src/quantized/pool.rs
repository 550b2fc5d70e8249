//! Pools of codes, channels last.

use super::lanes::{N, Scalar};
use super::{Bytes, Conv2d, Requant, code};
use crate::par;

/// The mean of each channel over all pixels: `y = requant(sum of codes)`, where the requantization's scales hold the
/// division by the number of pixels. `x` is (image, pixel, channel), `y` (image, channel).
///
/// # Panics
///
/// When the elements are not as many as the sizes say.
pub fn global_average_pool(
    [images, pixels, channels]: [usize; 3],
    x: Bytes,
    requant: &Requant,
    y: &mut [u8],
) {
    assert_eq!(x.data.len(), images * pixels * channels, "the input's elements");
    assert_eq!(y.len(), images * channels, "the output's elements");
    requant.check(channels);
    if y.is_empty() {
        return;
    }
    let mut sums = vec![[0_i32; N]; channels.div_ceil(N)];
    for (i, y) in y.chunks_exact_mut(channels).enumerate() {
        sums.fill([0; N]);
        let sums = sums.as_flattened_mut();
        for pixel in x.data[i * pixels * channels..][..pixels * channels].chunks_exact(channels) {
            for (sum, &byte) in sums.iter_mut().zip(pixel) {
                *sum += code(byte, x.is_signed);
            }
        }
        for (c, sums) in sums.as_chunks::<N>().0.iter().enumerate() {
            let codes = requant.channels(Scalar, c * N).codes(Scalar, *sums);
            for (y, code) in y[c * N..].iter_mut().zip(codes) {
                *y = code as u8;
            }
        }
    }
}

/// The greatest code of each window. `conv` gives the sizes, with as many groups as channels; the padding takes no
/// part.
///
/// # Panics
///
/// When the elements are not as many as the sizes say.
pub fn max_pool(conv: &Conv2d, x: Bytes, y: &mut [u8]) {
    let c = conv.c_in;
    let ([height, width], [kh, kw]) = (conv.input, conv.kernel);
    let [out_h, out_w] = conv.output();
    assert_eq!(x.data.len(), conv.n * height * width * c, "the input's elements");
    assert_eq!(y.len(), conv.n * out_h * out_w * c, "the output's elements");
    // Flipping the sign bit puts signed bytes in the order of unsigned ones.
    let flip = if x.is_signed { 0x80 } else { 0 };
    par::for_each_chunk(y, (out_w * c).max(1), (out_w * c * kh * kw) as f32 / 16.0, |start, y| {
        for (i, y) in y.chunks_exact_mut(c).enumerate() {
            let pixel = start / c + i;
            let (row, col) = (pixel / out_w, pixel % out_w);
            let image = &x.data[row / out_h * height * width * c..][..height * width * c];
            y.fill(0);
            for t in 0..kh * kw {
                let top = row % out_h * conv.strides[0] + t / kw * conv.dilations[0];
                let left = col * conv.strides[1] + t % kw * conv.dilations[1];
                let (r, s) = (top.wrapping_sub(conv.pads[0]), left.wrapping_sub(conv.pads[1]));
                if r < height && s < width {
                    for (y, &x) in y.iter_mut().zip(&image[(r * width + s) * c..][..c]) {
                        *y = (*y).max(x ^ flip);
                    }
                }
            }
            y.iter_mut().for_each(|y| *y ^= flip);
        }
    });
}
