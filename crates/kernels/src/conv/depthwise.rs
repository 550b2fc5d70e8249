//! Convolutions whose groups have one input channel.
//!
//! A channel is first copied into a padded plane, its columns sorted by their remainder modulo the horizontal stride:
//! so every kernel element reads a run of neighbours for a run of outputs, whatever the stride and the dilation, and
//! the inner loop has no borders.

#![expect(
    clippy::needless_range_loop,
    reason = "registers are addressed by their place in the tile"
)]

use crate::gemm::{Bias, Epilogue, Normalize};
use crate::par::{self, Disjoint};
use crate::simd::{Scalar, Simd};
use crate::variant::{self, Isa, Variant, VariantInfo};

use super::Conv2d;
use super::im2col::copy_strided;

/// One output plane from a prepared input plane.
struct Plane<'a> {
    /// Rows of the padded plane; row `r` starts at `r * pitch`. Readable up to a register past the last.
    x: &'a [f32],
    pitch: usize,
    stride_h: usize,
    /// The weights.
    w: &'a [f32],
    /// Where each reads, from the first element of the window.
    offsets: &'a [usize],
    /// Of one row.
    epilogue: &'a Epilogue<'a>,
    height: usize,
    width: usize,
}

/// Prepares a channel's plane in the scratch and computes its outputs.
type Run = fn(&Channel, &mut [f32], &mut [f32]);

/// One channel of one image.
struct Channel<'a> {
    conv: &'a Conv2d,
    geometry: &'a Geometry,
    x: &'a [f32],
    /// The kernels of its output channels, after each other.
    w: &'a [f32],
    /// Of these output channels.
    epilogue: &'a Epilogue<'a>,
}

/// Fastest first. All give the same bits.
static VARIANTS: &[Variant<Run>] = &[
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx512",
        Isa::Avx512,
        variant::has_avx512,
        // SAFETY: `Variant::get` hands this out only when `has_avx512` has found the features.
        |channel, padded, y| unsafe { avx512(channel, padded, y) },
    ),
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx2",
        Isa::Avx2,
        variant::has_avx2,
        // SAFETY: `Variant::get` hands this out only when `has_avx2` has found the features.
        |channel, padded, y| unsafe { avx2(channel, padded, y) },
    ),
    Variant::scalar(|channel, padded, y| run_channel(Scalar, channel, padded, y)),
];

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(channel: &Channel, padded: &mut [f32], y: &mut [f32]) {
    run_channel(crate::simd::Avx2::new(), channel, padded, y);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512(channel: &Channel, padded: &mut [f32], y: &mut [f32]) {
    run_channel(crate::simd::Avx512::new(), channel, padded, y);
}

pub(super) fn describe() -> Vec<VariantInfo> {
    variant::describe("conv::depthwise", VARIANTS)
}

/// The widest register, in floats: how far past a row's end a load may reach.
const SLACK: usize = 16;

pub(super) fn run(conv: &Conv2d, x: &[f32], w: &[f32], epilogue: &Epilogue, y: &mut [f32]) {
    run_with(variant::select(VARIANTS), conv, x, w, epilogue, y);
}

/// Where the prepared plane of a channel has its columns.
struct Geometry {
    /// Rows that some window reads.
    n_rows: usize,
    pitch: usize,
    /// Where each kernel element reads, from the first element of the window.
    offsets: Vec<usize>,
    /// How a row is copied: for each remainder, the first column there, the first column of the input, and how many.
    runs: Vec<[usize; 3]>,
}

impl Geometry {
    fn new(conv: &Conv2d) -> Self {
        let [out_h, out_w] = conv.output();
        let [kh, kw] = conv.kernel;
        let [dilation_h, dilation_w] = conv.dilations;
        let stride = conv.strides[1];
        let phase = out_w + ((kw - 1) * dilation_w) / stride;
        let pitch = phase * stride.min((kw - 1) * dilation_w + 1);
        let offsets = (0..kh * kw)
            .map(|t| {
                let col = t % kw * dilation_w;
                t / kw * dilation_h * pitch + col % stride * phase + col / stride
            })
            .collect();
        let (width, left) = (conv.input[1], conv.pads[1]);
        let runs = (0..pitch / phase)
            .map(|remainder| {
                // Column `i` there is column `i * stride + remainder` of the padded image.
                let first = left.saturating_sub(remainder).div_ceil(stride);
                let source = first * stride + remainder - left;
                let n =
                    width.saturating_sub(source).div_ceil(stride).min(phase.saturating_sub(first));
                [remainder * phase + first, source, n]
            })
            .filter(|[.., n]| 0 < *n)
            .collect();
        let n_rows = (out_h - 1) * conv.strides[0] + (kh - 1) * dilation_h + 1;
        Self { n_rows, pitch, offsets, runs }
    }

    fn len(&self) -> usize {
        self.n_rows * self.pitch + SLACK
    }
}

/// Estimated time on one thread.
fn cost_ns(conv: &Conv2d) -> usize {
    let [out_h, out_w] = conv.output();
    conv.n * conv.c_out * out_h * (out_w + 8) * conv.kernel[0] * conv.kernel[1] / 16
}

fn run_with(run: Run, conv: &Conv2d, x: &[f32], w: &[f32], epilogue: &Epilogue, y: &mut [f32]) {
    let geometry = Geometry::new(conv);
    let [out_h, out_w] = conv.output();
    let (n_taps, x_len) = (geometry.offsets.len(), conv.input[0] * conv.input[1]);
    let n_planes = conv.n * conv.c_in;
    let multiplier = conv.c_out / conv.groups;
    let y_len = multiplier * out_h * out_w;
    let cost = cost_ns(conv);
    let n_tasks = par::n_tasks(cost).min(n_planes);
    let y = Disjoint::new(y);
    par::for_each_task(n_tasks, cost, |task| {
        par::with_scratch(geometry.len(), |padded| {
            padded.fill(0.0);
            for i in par::share(n_planes, n_tasks, task) {
                let c = i % conv.c_in * multiplier;
                let channel = Channel {
                    conv,
                    geometry: &geometry,
                    x: &x[i * x_len..][..x_len],
                    w: &w[c * n_taps..][..multiplier * n_taps],
                    epilogue: &epilogue.rows(c..c + multiplier),
                };
                // SAFETY: each channel of each image has its own output planes.
                run(&channel, padded, unsafe { y.slice(i * y_len, y_len) });
            }
        });
    });
}

/// The convolution of integers: element `i` of the input is `x(i)`. All sums must be below 2^24, where floats are
/// exact.
pub(crate) fn run_integer(
    conv: &Conv2d,
    x: impl Fn(usize) -> f32 + Sync,
    w: &[f32],
    y: &mut [i32],
) {
    // One image's channel at a time, as an image of its own.
    let [out_h, out_w] = conv.output();
    let (x_len, y_len) = (conv.input[0] * conv.input[1], out_h * out_w);
    let multiplier = conv.c_out / conv.groups;
    let w_len = multiplier * conv.kernel[0] * conv.kernel[1];
    let one = Conv2d { n: 1, c_in: 1, c_out: multiplier, groups: 1, ..*conv };
    let run = variant::select(VARIANTS);
    let n_planes = conv.n * conv.c_in;
    let unit_cost = cost_ns(conv) as f32 / n_planes as f32;
    par::for_each_chunk(y, multiplier * y_len, unit_cost, |start, y| {
        par::with_scratch(x_len + multiplier * y_len, |scratch| {
            let (plane, sums) = scratch.split_at_mut(x_len);
            for (i, y) in y.chunks_exact_mut(multiplier * y_len).enumerate() {
                let i = start / (multiplier * y_len) + i;
                for (j, to) in plane.iter_mut().enumerate() {
                    *to = x(i * x_len + j);
                }
                let w = &w[i % conv.c_in * w_len..][..w_len];
                run_with(run, &one, plane, w, &Epilogue::default(), sums);
                for (y, sum) in y.iter_mut().zip(&*sums) {
                    *y = *sum as i32;
                }
            }
        });
    });
}

#[inline(always)]
fn run_channel<S: Simd>(s: S, channel: &Channel, padded: &mut [f32], y: &mut [f32]) {
    let &Channel { conv, geometry, x, w, epilogue } = channel;
    copy_plane(s, conv, geometry, x, padded);
    let [height, width] = conv.output();
    let n_taps = geometry.offsets.len();
    for (c, (w, y)) in w.chunks_exact(n_taps).zip(y.chunks_exact_mut(height * width)).enumerate() {
        let plane = Plane {
            x: padded,
            pitch: geometry.pitch,
            stride_h: conv.strides[0],
            w,
            offsets: &geometry.offsets,
            epilogue: &epilogue.rows(c..c + 1),
            height,
            width,
        };
        run_plane(s, &plane, y);
    }
}

/// Copies a channel to where the taps expect it. The padding holds zeros already.
#[inline(always)]
fn copy_plane<S: Simd>(s: S, conv: &Conv2d, geometry: &Geometry, x: &[f32], padded: &mut [f32]) {
    let [height, width] = conv.input;
    let [top, _, ..] = conv.pads;
    let rows = x.chunks_exact(width).take(geometry.n_rows.saturating_sub(top)).take(height);
    let padded = padded.chunks_exact_mut(geometry.pitch).skip(top);
    for (from, to) in rows.zip(padded) {
        for &[first, source, n] in &geometry.runs {
            copy_run(s, &from[source..], conv.strides[1], &mut to[first..first + n]);
        }
    }
}

/// `to[i] = from[i * stride]`, without a call for the short runs that a row of a small image is.
#[inline(always)]
fn copy_run<S: Simd>(s: S, from: &[f32], stride: usize, to: &mut [f32]) {
    let n = to.len();
    match stride {
        1 if S::N <= n => {
            let from = &from[..n];
            let whole = n / S::N * S::N;
            for i in (0..whole).step_by(S::N) {
                s.store(&mut to[i..], s.load(&from[i..]));
            }
            // Over what is there already.
            s.store(&mut to[n - S::N..], s.load(&from[n - S::N..]));
        }
        1 if 4 <= n => {
            let from = &from[..n];
            for (to, from) in to.as_chunks_mut::<4>().0.iter_mut().zip(from.as_chunks::<4>().0) {
                *to = *from;
            }
            let last: [f32; 4] = *from.last_chunk().expect("four elements");
            *to.last_chunk_mut().expect("four elements") = last;
        }
        2 => {
            let mut i = 0;
            while i + S::N <= n && 2 * (i + S::N) <= from.len() {
                s.store(&mut to[i..], s.load_even(&from[2 * i..]));
                i += S::N;
            }
            while i < n {
                to[i] = from[2 * i];
                i += 1;
            }
        }
        _ => copy_strided(from, stride, to),
    }
}

#[inline(always)]
fn run_plane<S: Simd>(s: S, plane: &Plane, y: &mut [f32]) {
    if !S::HAS_LATENCY {
        for col in (0..plane.width).step_by(S::N) {
            run_columns::<S, 1, 1>(s, plane, col, y);
        }
        return;
    }
    // Rows and registers of columns at once: enough sums to hide the latency of an addition.
    let mut col = 0;
    while col < plane.width {
        match (plane.width - col).div_ceil(S::N) {
            1 => run_columns::<S, 7, 1>(s, plane, col, y),
            2 => run_columns::<S, 4, 2>(s, plane, col, y),
            3 => run_columns::<S, 3, 3>(s, plane, col, y),
            _ => run_columns::<S, 2, 4>(s, plane, col, y),
        }
        col += 4 * S::N;
    }
}

/// All rows of the `V` registers of columns that start at `col`, `R` rows at a time.
#[inline(always)]
fn run_columns<S: Simd, const R: usize, const V: usize>(
    s: S,
    plane: &Plane,
    col: usize,
    y: &mut [f32],
) {
    if plane.height < R {
        for row in 0..plane.height {
            run_tile::<S, 1, V>(s, plane, row, col, y);
        }
        return;
    }
    for row in (0..=plane.height - R).step_by(R) {
        run_tile::<S, R, V>(s, plane, row, col, y);
    }
    if !plane.height.is_multiple_of(R) {
        // Some of these rows again.
        run_tile::<S, R, V>(s, plane, plane.height - R, col, y);
    }
}

#[inline(always)]
fn run_tile<S: Simd, const R: usize, const V: usize>(
    s: S,
    plane: &Plane,
    row: usize,
    col: usize,
    y: &mut [f32],
) {
    let n_cols = (plane.width - col).min(V * S::N);
    let step = plane.stride_h * plane.pitch;
    let mut acc = [[s.splat(0.0); V]; R];
    for (&w, &offset) in plane.w.iter().zip(plane.offsets) {
        let w = s.splat(w);
        let x = &plane.x[row * step + col + offset..];
        assert!((R - 1) * step + V * S::N <= x.len(), "the window is inside the plane");
        for r in 0..R {
            for v in 0..V {
                // SAFETY: the line above, since `r < R` and `v < V`.
                let x = unsafe { s.load_at(x, r * step + v * S::N) };
                acc[r][v] = s.fma(w, x, acc[r][v]);
            }
        }
    }
    // Where a row's columns are all here, what is stored past its end is the next row's, which is stored later.
    let may_spill = n_cols == plane.width;
    for r in 0..R {
        let start = (row + r) * plane.width + col;
        for v in 0..V {
            let mut sum = acc[r][v];
            if let Bias::PerRow(bias) = plane.epilogue.bias {
                sum = s.add(sum, s.splat(bias[0]));
            }
            if let Some(Normalize { mean, factor, shift }) = plane.epilogue.normalize {
                sum = s.add(
                    s.mul(s.add(sum, s.splat(-mean[0])), s.splat(factor[0])),
                    s.splat(shift[0]),
                );
            }
            if let Some((lo, hi)) = plane.epilogue.clamp {
                sum = s.min(s.splat(hi), s.max(s.splat(lo), sum));
            }
            let n_left = n_cols.saturating_sub(v * S::N).min(S::N);
            let y = &mut y[start + (v * S::N).min(n_cols)..];
            if n_left == S::N || (may_spill && 0 < n_left && S::N <= y.len()) {
                s.store(y, sum);
            } else if 0 < n_left {
                let mut lanes = [0.0; SLACK];
                s.store(&mut lanes, sum);
                y[..n_left].copy_from_slice(&lanes[..n_left]);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn check_variants(
        conv: &Conv2d,
        x: &[f32],
        w: &[f32],
        epilogue: &Epilogue,
        want: &[f32],
    ) {
        for variant in VARIANTS {
            let Some(run) = variant.get() else { continue };
            let mut y = vec![f32::NAN; want.len()];
            run_with(run, conv, x, w, epilogue, &mut y);
            let same = y.iter().zip(want).all(|(y, want)| y.to_bits() == want.to_bits());
            assert!(same, "{}: {conv:?}", variant.name);
        }
    }
}
