//! Convolutions whose groups have one input and one output channel.

use super::lanes::{Lanes, Scalar, pair};
use super::requant::PANEL;
use super::{Bytes, Conv2d, Requant};
use crate::par::{self, Disjoint};
use crate::variant::{self, Isa, Variant, VariantInfo};

/// The weights of a depthwise convolution, packed: taps in pairs, for each the two of every channel.
#[derive(Clone, Debug)]
pub struct DepthwiseWeights {
    n_taps: usize,
    channels: usize,
    /// (pair of taps, channel), the channels filled up with zeros; and so the last pair, when the taps are odd.
    words: Vec<i32>,
}

impl DepthwiseWeights {
    /// From `at(tap, channel)`, with the zero points subtracted; taps are kernel row after kernel row.
    pub fn new(n_taps: usize, channels: usize, at: impl Fn(usize, usize) -> i8) -> Self {
        let pitch = channels.next_multiple_of(PANEL);
        let mut words = vec![0; n_taps.div_ceil(2) * pitch];
        for (t, row) in words.chunks_exact_mut(pitch.max(1)).enumerate() {
            for (c, word) in row[..channels].iter_mut().enumerate() {
                let second = if 2 * t + 1 < n_taps { i16::from(at(2 * t + 1, c)) } else { 0 };
                *word = pair(i16::from(at(2 * t, c)), second);
            }
        }
        Self { n_taps, channels, words }
    }
}

/// One output pixel.
struct Pixel<'a> {
    /// The channels of what each tap sees, an even number of them.
    taps: &'a [&'a [u8]],
    weights: &'a DepthwiseWeights,
    requant: &'a Requant,
    is_signed: bool,
}

type Run = fn(&Pixel, &mut [u8]);

/// Fastest first. All give the same bits.
static VARIANTS: &[Variant<Run>] = &[
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `Variant::get` hands this out only when `has_avx512` has found the features.
    Variant::new("avx512", Isa::Avx512, variant::has_avx512, |pixel, y| unsafe {
        avx512(pixel, y)
    }),
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `Variant::get` hands this out only when `has_avx2` has found the features.
    Variant::new("avx2", Isa::Avx2, variant::has_avx2, |pixel, y| unsafe { avx2(pixel, y) }),
    Variant::scalar(|pixel, y| run_pixel(Scalar, pixel, y)),
];

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(pixel: &Pixel, y: &mut [u8]) {
    run_pixel(super::lanes::Avx2::new(), pixel, y);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512(pixel: &Pixel, y: &mut [u8]) {
    run_pixel(super::lanes::Avx512::new(), pixel, y);
}

pub(super) fn describe() -> Vec<VariantInfo> {
    variant::describe("quantized::depthwise", VARIANTS)
}

/// `y = requant(conv(x, weights))` of a convolution with as many groups as input and as output channels.
///
/// `x` is (image, row, column, channel), and so is `y`. The padding holds `zero_point`.
///
/// # Panics
///
/// When it is no such convolution, or the elements are not as many as the sizes say.
pub fn depthwise(
    conv: &Conv2d,
    x: Bytes,
    zero_point: i32,
    weights: &DepthwiseWeights,
    requant: &Requant,
    y: &mut [u8],
) {
    run(variant::select(VARIANTS), conv, x, zero_point, weights, requant, y);
}

fn run(
    kernel: Run,
    conv: &Conv2d,
    x: Bytes,
    zero_point: i32,
    weights: &DepthwiseWeights,
    requant: &Requant,
    y: &mut [u8],
) {
    let c = conv.c_in;
    assert!(c == conv.groups && c == conv.c_out, "a group for each channel: {conv:?}");
    conv.check(x.data.len(), weights.n_taps * c, y.len());
    assert_eq!(weights.channels, c, "weights for each channel");
    requant.check(c);
    if y.is_empty() {
        return;
    }
    let ([height, width], [kh, kw]) = (conv.input, conv.kernel);
    let [out_h, out_w] = conv.output();
    let padding = vec![zero_point as u8; c];
    let n_rows = conv.n * out_h;
    let cost = y.len() * weights.n_taps / 10;
    let n_tasks = par::n_tasks(cost).min(n_rows);
    let y = Disjoint::new(y);
    par::for_each_task(n_tasks, cost, |task| {
        let mut taps = vec![&padding[..]; weights.n_taps.next_multiple_of(2)];
        for row in par::share(n_rows, n_tasks, task) {
            let image = &x.data[row / out_h * height * width * c..][..height * width * c];
            let top = row % out_h * conv.strides[0];
            // SAFETY: each output row is one task's.
            let y = unsafe { y.slice(row * out_w * c, out_w * c) };
            for (col, y) in y.chunks_exact_mut(c).enumerate() {
                let left = col * conv.strides[1];
                for (t, tap) in taps[..kh * kw].iter_mut().enumerate() {
                    let y = (top + t / kw * conv.dilations[0]).wrapping_sub(conv.pads[0]);
                    let x = (left + t % kw * conv.dilations[1]).wrapping_sub(conv.pads[1]);
                    let is_inside = y < height && x < width;
                    *tap = if is_inside { &image[(y * width + x) * c..][..c] } else { &padding };
                }
                kernel(&Pixel { taps: &taps, weights, requant, is_signed: x.is_signed }, y);
            }
        }
    });
}

#[inline(always)]
fn run_pixel<L: Lanes>(l: L, pixel: &Pixel, y: &mut [u8]) {
    let channels = y.len();
    assert!(pixel.taps.iter().all(|tap| tap.len() == channels), "every tap sees all channels");
    if channels < L::N {
        // Too few for a register: longer ones, filled up.
        let mut longer = [[0_u8; PANEL]; 2];
        let mut sums = l.splat(0);
        for (t, taps) in pixel.taps.chunks_exact(2).enumerate() {
            for (to, tap) in longer.iter_mut().zip(taps) {
                to[..channels].copy_from_slice(tap);
            }
            sums = add_taps(l, pixel, sums, [&longer[0], &longer[1]], t, 0, 0);
        }
        let mut codes = [0; PANEL];
        l.store_bytes(&mut codes, pixel.requant.codes(l, sums, 0));
        y.copy_from_slice(&codes[..channels]);
        return;
    }
    let mut c = 0;
    while c < channels {
        // The last register may do some channels again.
        c = c.min(channels - L::N);
        let mut sums = l.splat(0);
        for (t, taps) in pixel.taps.chunks_exact(2).enumerate() {
            sums = add_taps(l, pixel, sums, [taps[0], taps[1]], t, c, c);
        }
        l.store_bytes(&mut y[c..], pixel.requant.codes(l, sums, c));
        c += L::N;
    }
}

/// Adds the products of a pair of taps: bytes from `at` on, for the channels from `c` on.
#[inline(always)]
fn add_taps<L: Lanes>(
    l: L,
    pixel: &Pixel,
    sums: L::I,
    [a, b]: [&[u8]; 2],
    t: usize,
    c: usize,
    at: usize,
) -> L::I {
    let (a, b) = (&a[at..], &b[at..]);
    let x = if pixel.is_signed { l.zip::<true>(a, b) } else { l.zip::<false>(a, b) };
    let pitch = pixel.weights.channels.next_multiple_of(PANEL);
    l.dot(sums, x, l.load(&pixel.weights.words[t * pitch + c..]))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Every variant's output, with the variant's name.
    pub(in super::super) fn each_variant(
        conv: &Conv2d,
        x: Bytes,
        zero_point: i32,
        weights: &DepthwiseWeights,
        requant: &Requant,
        mut check: impl FnMut(&str, Vec<u8>),
    ) {
        for variant in VARIANTS {
            let Some(kernel) = variant.get() else { continue };
            let mut y = vec![0xAA; conv.lens()[2]];
            run(kernel, conv, x, zero_point, weights, requant, &mut y);
            check(variant.name, y);
        }
    }
}
