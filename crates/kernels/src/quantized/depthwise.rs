//! Convolutions whose groups have one input and one output channel.

#![expect(
    clippy::needless_range_loop,
    reason = "registers are addressed by their place in the tile"
)]

use alloc::vec::Vec;
use std::ops::Range;

use super::lanes::{Lanes, N, Scalar, pair};
use super::product::store_codes;
use super::requant::{Channels, RequantView};
use super::weights::Quad;
use super::{Bytes, Conv2d, Requant};
use crate::par::{self, Disjoint};
use crate::variant::{self, Isa, Variant, VariantInfo};

/// The weights of a depthwise convolution, packed for the ways in which the variants read them.
#[derive(Clone, Debug)]
pub struct DepthwiseWeights {
    kernel: [usize; 2],
    /// The stride and the dilation between columns.
    windows: [usize; 2],
    channels: usize,
    /// Taps in pairs: (sixteen channels, pair of taps, channel), the channels filled up with zeros; and so the last
    /// pair, when the taps are odd.
    words: Vec<[i32; N]>,
    pub(super) quads: Quads,
}

impl DepthwiseWeights {
    /// From `at(tap, channel)`, with the zero points subtracted; taps are kernel row after kernel row. The strides and
    /// dilations are those that the convolution will have.
    pub fn new(
        kernel: [usize; 2],
        strides: [usize; 2],
        dilations: [usize; 2],
        channels: usize,
        at: impl Fn(usize, usize) -> i8,
    ) -> Self {
        let n_taps = kernel[0] * kernel[1];
        let n_pairs = n_taps.div_ceil(2);
        let at = |t: usize, c: usize| if t < n_taps && c < channels { at(t, c) } else { 0 };
        let words = (0..channels.div_ceil(N) * n_pairs)
            .map(|i| {
                let (first, t) = (i / n_pairs * N, i % n_pairs * 2);
                let at = |t, lane| i16::from(at(t, first + lane));
                std::array::from_fn(|lane| pair(at(t, lane), at(t + 1, lane)))
            })
            .collect();
        let windows = [strides[1], dilations[1]];
        let quads = Quads::new(kernel, windows, channels, at);
        Self { kernel, windows, channels, words, quads }
    }

    fn n_taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
}

/// Weights for quads: four pixels that are neighbours in a row.
///
/// Outputs are computed in groups of a few neighbours. What they see of an input row are one or more quads (`n_sets`),
/// and each of the group's outputs has its weights for each quad.
#[derive(Clone, Debug)]
pub(super) struct Quads {
    /// Outputs in a group.
    pub(super) group: usize,
    pub(super) n_sets: usize,
    pub(super) blocks: Vec<QuadBlock>,
}

/// Channels that are computed together: sixteen in each of `n_lanes` quarters of a register. Where these are fewer than
/// four, the quarters that are left have other groups.
#[derive(Clone, Debug)]
pub(super) struct QuadBlock {
    pub(super) first: usize,
    pub(super) n_lanes: usize,
    /// (kernel row, set, output, four channels of each sixteen): for each channel, the weights of a quad's pixels.
    pub(super) weights: Vec<Quad>,
    /// 128 times the sum of each channel's weights, in the same order of channels.
    pub(super) moved: [[i32; N]; 4],
}

impl QuadBlock {
    /// The channel in lane `i` of the register of fourths `k`.
    pub(super) fn channel(&self, k: usize, i: usize) -> usize {
        self.first + i / 4 % self.n_lanes * N + 4 * k + i % 4
    }
}

impl Quads {
    fn new(
        [kernel_h, kernel_w]: [usize; 2],
        [stride, dilation]: [usize; 2],
        channels: usize,
        at: impl Fn(usize, usize) -> i8,
    ) -> Self {
        let span = (kernel_w - 1) * dilation + 1;
        // As many outputs as one quad is enough for, or else four.
        let (group, n_sets) = match (stride, span) {
            (1, ..=3) => (2, 1),
            (_, ..=4) => (1, 1),
            _ => (4, (3 * stride + span).div_ceil(4)),
        };
        let mut blocks = Vec::new();
        let mut first = 0;
        while first < channels {
            // Half of a register at most is for channels that are not there.
            let n_lanes = [1, 2].into_iter().find(|n| channels - first <= n * N).unwrap_or(4);
            let mut block = QuadBlock { first, n_lanes, weights: Vec::new(), moved: [[0; N]; 4] };
            for i in 0..kernel_h * n_sets * group * 4 {
                let (row, set) = (i / (4 * group * n_sets), i / (4 * group) % n_sets);
                let (output, k) = (i / 4 % group, i % 4);
                let weight = |i: usize| {
                    let pixel = (4 * set + i % 4).checked_sub(output * stride)?;
                    let is_tap = pixel < span && pixel % dilation == 0;
                    let tap = row * kernel_w + pixel / dilation;
                    is_tap.then(|| at(tap, block.channel(k, i / 4)))
                };
                let weights = std::array::from_fn(|i| weight(i).unwrap_or(0));
                block.weights.push(Quad(weights));
            }
            let sum = |c| (0..kernel_h * kernel_w).map(|t| i32::from(at(t, c))).sum::<i32>();
            block.moved =
                std::array::from_fn(|k| std::array::from_fn(|i| 128 * sum(block.channel(k, i))));
            blocks.push(block);
            first += n_lanes * N;
        }
        Self { group, n_sets, blocks }
    }
}

/// A convolution and where it goes.
pub(super) struct Job<'a> {
    pub(super) conv: &'a Conv2d,
    pub(super) x: Bytes<'a>,
    pub(super) zero_point: i32,
    pub(super) weights: &'a DepthwiseWeights,
    pub(super) requant: RequantView<'a>,
    /// A row of the input as the padding would have it, for taps above and below.
    padding: &'a [u8],
    pub(super) y: Disjoint<'a, u8>,
}

/// A row of output pixels.
struct Row<'a> {
    /// What each tap sees for the row's first pixel, from its first channel on; an even number of them. Pixels are
    /// `step` bytes apart. For pixel `p`, `p * step + channels` bytes are there.
    taps: &'a [&'a [u8]],
    step: usize,
    n_pixels: usize,
    weights: &'a DepthwiseWeights,
    requant: RequantView<'a>,
    is_signed: bool,
}

/// Computes some rows of the output, which are the caller's; rows count through all images.
type Run = fn(&Job, Range<usize>);

/// Fastest first. All give the same bits.
static VARIANTS: &[Variant<Run>] = &[
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx512_vnni",
        Isa::Avx512,
        variant::has_avx512_vnni,
        // SAFETY: `Variant::get` hands this out only when `has_avx512_vnni` has found the features.
        |job, rows| unsafe { avx512_vnni(job, rows) },
    ),
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx512",
        Isa::Avx512,
        variant::has_avx512,
        // SAFETY: `Variant::get` hands this out only when `has_avx512` has found the features.
        |job, rows| unsafe { avx512(job, rows) },
    ),
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `Variant::get` hands this out only when `has_avx2` has found the features.
    Variant::new("avx2", Isa::Avx2, variant::has_avx2, |job, rows| unsafe { avx2(job, rows) }),
    Variant::scalar(|job, rows| run_rows(Scalar, job, rows)),
];

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(job: &Job, rows: Range<usize>) {
    run_rows(super::lanes::Avx2::new(), job, rows);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512(job: &Job, rows: Range<usize>) {
    run_rows(super::lanes::Avx512::new(), job, rows);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn avx512_vnni(job: &Job, rows: Range<usize>) {
    // The other kernel has the multipliers.
    if job.requant.is_fixed_point() {
        avx512(job, rows);
    } else {
        super::vnni_depthwise::run(job, rows);
    }
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
    conv.check(x.data.len(), weights.n_taps() * c, y.len());
    assert_eq!(weights.channels, c, "weights for each channel");
    assert_eq!(weights.kernel, conv.kernel, "weights of this size");
    let [stride, dilation] = weights.windows;
    assert_eq!([stride, dilation], [conv.strides[1], conv.dilations[1]], "packed for such windows");
    requant.check(c);
    if y.is_empty() {
        return;
    }
    let n_rows = conv.n * conv.output()[0];
    let cost = y.len() * weights.n_taps() / 60;
    let n_tasks = par::n_tasks(cost).min(n_rows);
    par::with_scratch(conv.input[1] * c, |padding: &mut [u8]| {
        padding.fill(zero_point as u8);
        let requant = requant.view();
        let job = Job { conv, x, zero_point, weights, requant, padding, y: Disjoint::new(y) };
        par::for_each_task(n_tasks, cost, |task| kernel(&job, par::share(n_rows, n_tasks, task)));
    });
}

/// Row by row, with the taps in pairs. Nothing that computes is in a closure, which would be compiled without the
/// instructions of its caller.
#[inline(always)]
fn run_rows<L: Lanes>(l: L, job: &Job, rows: Range<usize>) {
    let &Job { conv, x, weights, requant, padding, .. } = job;
    let (c, n_taps) = (conv.c_in, weights.n_taps());
    let [height, width] = conv.input;
    let [out_h, out_w] = conv.output();
    let inner = inner_columns(conv);
    let (mut few, mut many) = ([padding; 64], Vec::new());
    let taps = match few.get_mut(..n_taps.next_multiple_of(2)) {
        Some(few) => few,
        None => {
            many.resize(n_taps.next_multiple_of(2), padding);
            &mut many[..]
        }
    };
    for row in rows {
        let image = &x.data[row / out_h * height * width * c..][..height * width * c];
        let line = |t: usize| {
            let top = row % out_h * conv.strides[0] + t / conv.kernel[1] * conv.dilations[0];
            let y = top.wrapping_sub(conv.pads[0]);
            if y < height { &image[y * width * c..][..width * c] } else { padding }
        };
        let left = |t: usize| t % conv.kernel[1] * conv.dilations[1];
        // SAFETY: the caller has this row.
        let y = unsafe { job.y.slice(row * out_w * c, out_w * c) };
        let (step, is_signed) = (conv.strides[1] * c, x.is_signed);
        if !inner.is_empty() {
            for (t, tap) in taps[..n_taps].iter_mut().enumerate() {
                *tap = &line(t)[(inner.start * conv.strides[1] + left(t) - conv.pads[1]) * c..];
            }
            if n_taps % 2 == 1 {
                // Its weights are 0.
                taps[n_taps] = taps[0];
            }
            let y = &mut y[inner.start * c..inner.end * c];
            let n_pixels = inner.len();
            run_row(l, &Row { taps, step, n_pixels, weights, requant, is_signed }, y);
        }
        for col in (0..out_w).filter(|col| !inner.contains(col)) {
            for (t, tap) in taps[..n_taps].iter_mut().enumerate() {
                let x = (col * conv.strides[1] + left(t)).wrapping_sub(conv.pads[1]);
                *tap = if x < width { &line(t)[x * c..][..c] } else { &padding[..c] };
            }
            if n_taps % 2 == 1 {
                taps[n_taps] = taps[0];
            }
            let y = &mut y[col * c..][..c];
            run_row(l, &Row { taps, step, n_pixels: 1, weights, requant, is_signed }, y);
        }
    }
}

/// The output columns all of whose taps are inside the image.
fn inner_columns(conv: &Conv2d) -> Range<usize> {
    let reach = (conv.kernel[1] - 1) * conv.dilations[1] + 1;
    let start = conv.pads[1].div_ceil(conv.strides[1]);
    // Column `i` ends at `i * stride - pad + reach`.
    let Some(room) = (conv.input[1] + conv.pads[1]).checked_sub(reach) else { return 0..0 };
    let end = (room / conv.strides[1] + 1).min(conv.output()[1]);
    start.min(end)..end
}

#[inline(always)]
fn run_row<L: Lanes>(l: L, row: &Row, y: &mut [u8]) {
    let c = row.weights.channels;
    let n_pixels = row.n_pixels;
    assert_eq!(y.len(), n_pixels * c, "a row of pixels");
    let n_bytes = (n_pixels - 1) * row.step + c;
    assert!(row.taps.iter().all(|tap| n_bytes <= tap.len()), "every tap sees every pixel");
    let n_pairs = row.taps.len() / 2;
    for (block, words) in row.weights.words.chunks_exact(n_pairs).enumerate() {
        let channels = block * N..c.min((block + 1) * N);
        let requant = row.requant.channels(l, channels.start);
        let mut pixel = 0;
        if channels.len() == N {
            while pixel + 4 <= n_pixels {
                // SAFETY: sixteen channels of four pixels of the row, which every tap sees by the assertion above.
                unsafe { run_whole::<L, 4>(l, row, words, &requant, pixel, channels.start, y) };
                pixel += 4;
            }
            for pixel in pixel..n_pixels {
                // SAFETY: as above, of one pixel.
                unsafe { run_whole::<L, 1>(l, row, words, &requant, pixel, channels.start, y) };
            }
            continue;
        }
        // The last channels, fewer than a register has lanes.
        for pixel in 0..n_pixels {
            let at = pixel * row.step + channels.start;
            let mut sums = l.splat(0);
            for (taps, words) in row.taps.as_chunks::<2>().0.iter().zip(words) {
                let mut longer = [[0; N]; 2];
                for (longer, tap) in longer.iter_mut().zip(taps) {
                    longer[..channels.len()].copy_from_slice(&tap[at..at + channels.len()]);
                }
                sums = l.dot(sums, zip(l, row, &longer[0], &longer[1]), l.load(words));
            }
            let codes = requant.codes(l, sums);
            let start = pixel * c + channels.start;
            store_codes(l, &mut y[start..start + channels.len()], codes);
        }
    }
}

/// Sixteen channels of some pixels.
///
/// # Safety
///
/// Every tap is at least `(pixel + P - 1) * row.step + channel + 16` bytes long.
#[inline(always)]
unsafe fn run_whole<L: Lanes, const P: usize>(
    l: L,
    row: &Row,
    words: &[[i32; N]],
    requant: &Channels<L>,
    pixel: usize,
    channel: usize,
    y: &mut [u8],
) {
    let at: [usize; P] = std::array::from_fn(|i| (pixel + i) * row.step + channel);
    let mut sums = [l.splat(0); P];
    for ([a, b], words) in row.taps.as_chunks::<2>().0.iter().zip(words) {
        let w = l.load(words);
        for i in 0..P {
            // SAFETY: the caller's promise.
            let a = unsafe { sixteen(a, at[i]) };
            // SAFETY: as above.
            let b = unsafe { sixteen(b, at[i]) };
            sums[i] = l.dot(sums[i], zip(l, row, a, b), w);
        }
    }
    for i in 0..P {
        let start = (pixel + i) * row.weights.channels + channel;
        l.store_bytes(&mut y[start..start + N], requant.codes(l, sums[i]));
    }
}

/// Elements `at..at + 16`.
///
/// # Safety
///
/// `at + 16 <= x.len()`.
#[inline(always)]
unsafe fn sixteen(x: &[u8], at: usize) -> &[u8; N] {
    debug_assert!(at + N <= x.len(), "sixteen bytes at {at} of {}", x.len());
    // SAFETY: inside the slice by the caller's promise.
    let first = unsafe { x.as_ptr().add(at) };
    // SAFETY: sixteen bytes from there are in the slice, whose lifetime and sharing the result keeps.
    unsafe { &*first.cast() }
}

#[inline(always)]
fn zip<L: Lanes>(l: L, row: &Row, a: &[u8; N], b: &[u8; N]) -> L::I {
    if row.is_signed { l.zip::<true>(a, b) } else { l.zip::<false>(a, b) }
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
