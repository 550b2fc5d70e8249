//! Pools of codes, channels last.

use midtread_num::QRange;
use midtread_num::requant::multiplier;
use midtread_num::round::ties_even;

use super::{Bytes, Conv2d, Rule, code};
use crate::par;

/// The mean of each channel over all pixels: `y = rule(sum of (code - zero_point))`, where the rule's factor holds the
/// division by the number of pixels. `x` is (image, pixel, channel), `y` (image, channel).
///
/// # Panics
///
/// When the elements are not as many as the sizes say.
pub fn global_average_pool(
    [images, pixels, channels]: [usize; 3],
    x: Bytes,
    zero_point: i32,
    rule: &Rule,
    y: &mut [u8],
) {
    assert_eq!(x.data.len(), images * pixels * channels, "the input's elements");
    assert_eq!(y.len(), images * channels, "the output's elements");
    let zeros = (pixels as i32).wrapping_mul(zero_point);
    for (i, y) in y.chunks_exact_mut(channels.max(1)).enumerate() {
        let image = &x.data[i * pixels * channels..][..pixels * channels];
        // As many channels at a time as a cache line has bytes.
        for (first, y) in y.chunks_mut(LINE).enumerate().map(|(i, y)| (i * LINE, y)) {
            let mut sums = [0_i32; LINE];
            for pixel in image.chunks_exact(channels) {
                for (sum, &byte) in sums.iter_mut().zip(&pixel[first..][..y.len()]) {
                    *sum = sum.wrapping_add(code(byte, x.is_signed));
                }
            }
            for (y, sum) in y.iter_mut().zip(sums) {
                *y = rule.code(sum.wrapping_sub(zeros)) as u8;
            }
        }
    }
}

/// Channels that are summed together.
const LINE: usize = 64;

/// What makes codes of the sums of windows.
#[derive(Clone, Copy, Debug)]
pub enum Mean<'a> {
    /// The mean of `(code - zero_point) * scale` in `f32`, summed in the window's order; divided by the output's
    /// scale, its zero point added, rounded to even: ONNX Runtime's QLinearAveragePool.
    Float {
        /// Scales of the input and of the output.
        scales: [f32; 2],
        /// The output's.
        zero_point: i32,
        /// The output's.
        range: QRange,
    },
    /// The rule for a sum over so many pixels, by that number less one.
    Fixed(&'a [Rule]),
}

/// The mean of each window. `conv` gives the sizes, with as many groups as channels, and `output` the output's, which
/// may be more than `conv` says: windows may reach past the padding. A window's sum is divided by the pixels in it,
/// or with `include_pads` by those and the padding's, of which there is `conv.pads`.
///
/// # Panics
///
/// When the elements are not as many as the sizes say.
pub fn average_pool(
    conv: &Conv2d,
    output: [usize; 2],
    include_pads: bool,
    x: Bytes,
    zero_point: i32,
    mean: &Mean,
    y: &mut [u8],
) {
    let c = conv.c_in;
    let ([height, width], [kh, kw]) = (conv.input, conv.kernel);
    let [out_h, out_w] = output;
    assert_eq!(x.data.len(), conv.n * height * width * c, "the input's elements");
    assert_eq!(y.len(), conv.n * out_h * out_w * c, "the output's elements");
    par::for_each_chunk(y, (out_w * c).max(1), (out_w * c * kh * kw) as f32 / 4.0, |start, y| {
        for (i, y) in y.chunks_exact_mut(c).enumerate() {
            let pixel = start / c + i;
            let (row, col) = (pixel / out_w, pixel % out_w);
            let image = &x.data[row / out_h * height * width * c..][..height * width * c];
            let (mut inside, mut with_pads) = (0, 0);
            let taps = |f: &mut dyn FnMut(usize, usize)| {
                for t in 0..kh * kw {
                    f(
                        row % out_h * conv.strides[0] + t / kw * conv.dilations[0],
                        col * conv.strides[1] + t % kw * conv.dilations[1],
                    );
                }
            };
            let pixel_at = |top: usize, left: usize| {
                let (r, s) = (top.wrapping_sub(conv.pads[0]), left.wrapping_sub(conv.pads[1]));
                (r < height && s < width).then(|| &image[(r * width + s) * c..][..c])
            };
            taps(&mut |top, left| {
                inside += usize::from(pixel_at(top, left).is_some());
                with_pads += usize::from(
                    top < height + conv.pads[0] + conv.pads[2]
                        && left < width + conv.pads[1] + conv.pads[3],
                );
            });
            let n = if include_pads { with_pads } else { inside };
            for (first, y) in y.chunks_mut(LINE).enumerate().map(|(i, y)| (i * LINE, y)) {
                match *mean {
                    Mean::Float { scales: [scale, y_scale], zero_point: y_zero, range } => {
                        let mut sums = [0.0_f32; LINE];
                        taps(&mut |top, left| {
                            let Some(pixel) = pixel_at(top, left) else { return };
                            for (sum, &byte) in sums.iter_mut().zip(&pixel[first..][..y.len()]) {
                                *sum += (code(byte, x.is_signed) - zero_point) as f32 * scale;
                            }
                        });
                        let (lo, hi) = (range.qmin() as f32, range.qmax() as f32);
                        for (y, sum) in y.iter_mut().zip(sums) {
                            let steps = multiplier(sum / n as f32, 1.0, y_scale) + y_zero as f32;
                            *y = ties_even(steps).max(lo).min(hi) as i32 as u8;
                        }
                    }
                    Mean::Fixed(rules) => {
                        let mut sums = [0_i32; LINE];
                        taps(&mut |top, left| {
                            let Some(pixel) = pixel_at(top, left) else { return };
                            for (sum, &byte) in sums.iter_mut().zip(&pixel[first..][..y.len()]) {
                                *sum += code(byte, x.is_signed) - zero_point;
                            }
                        });
                        for (y, sum) in y.iter_mut().zip(sums) {
                            *y = rules[n.max(1) - 1].code(sum) as u8;
                        }
                    }
                }
            }
        }
    });
}

/// The greatest code of each window. `conv` gives the sizes, with as many groups as channels, and `output` the output's,
/// which may be more than `conv` says: windows may reach past the padding, which takes no part.
///
/// # Panics
///
/// When the elements are not as many as the sizes say.
pub fn max_pool(conv: &Conv2d, output: [usize; 2], x: Bytes, y: &mut [u8]) {
    let c = conv.c_in;
    let ([height, width], [kh, kw]) = (conv.input, conv.kernel);
    let [out_h, out_w] = output;
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
