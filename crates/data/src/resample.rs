//! Pillow's resampling, bit for bit.
//!
//! Preprocessing decides what a network sees, and networks are measured behind Pillow, so this is not "a bicubic
//! filter" but that one: `src/libImaging/Resample.c` of Pillow (MIT-CMU licence) as arithmetic. Coefficients are made
//! in `f64`, rounded to 22 bits after the point, and applied to bytes in two passes, rows first, with a sum in `i32`
//! and bytes between the passes. A SIMD library that keeps 14 bits of the coefficients differed from it in one of
//! seven values of a noisy picture, by one gray level.

use crate::preprocess::Filter;

/// Bits after the point of a coefficient: what 32 leave for a byte and two of overshoot.
const PRECISION: u32 = 32 - 8 - 2;

/// Resamples `bytes`, rows of `width` pixels of `n_channels`, to another size. All sizes are at least 1.
pub(crate) fn resample(
    bytes: &[u8],
    n_channels: usize,
    (width, height): (usize, usize),
    (new_width, new_height): (usize, usize),
    filter: Filter,
) -> Vec<u8> {
    if filter == Filter::Nearest {
        let columns = nearest(width, new_width);
        let row =
            |y: usize| columns.iter().flat_map(move |&x| pixel(bytes, n_channels, y * width + x));
        return nearest(height, new_height).into_iter().flat_map(row).copied().collect();
    }
    let mut out = bytes.to_vec();
    if width != new_width {
        out = rows(&out, n_channels, width, &Taps::new(width, new_width, filter));
    }
    if height != new_height {
        out = columns(&out, n_channels * new_width, &Taps::new(height, new_height, filter));
    }
    out
}

fn pixel(bytes: &[u8], n_channels: usize, i: usize) -> &[u8] {
    &bytes[i * n_channels..][..n_channels]
}

/// The position that each new one is taken from. The sum, and not a product, is what Pillow rounds.
fn nearest(size: usize, new_size: usize) -> Vec<usize> {
    let scale = size as f64 / new_size as f64;
    let mut center = scale * 0.5;
    let mut next = || {
        let at = (center as usize).min(size - 1);
        center += scale;
        at
    };
    (0..new_size).map(|_| next()).collect()
}

/// For each new position, the first old one that counts, and the coefficients from there on.
struct Taps(Vec<(usize, Vec<i32>)>);

impl Taps {
    fn new(size: usize, new_size: usize, filter: Filter) -> Self {
        let scale = size as f64 / new_size as f64;
        // The filter is widened when a picture becomes smaller, not when it becomes larger.
        let stretch = scale.max(1.0);
        let support = half_width(filter) * stretch;
        let taps = (0..new_size).map(|i| {
            let center = (i as f64 + 0.5) * scale;
            // Casts take negative numbers to 0.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(size);
            let weight = |x: usize| weight(filter, (x as f64 - center + 0.5) * (1.0 / stretch));
            let weights: Vec<f64> = (first..end).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |w: &f64| {
                let scaled = if sum == 0.0 { *w } else { w / sum } * f64::from(1 << PRECISION);
                // Halves go away from zero.
                (scaled + if scaled < 0.0 { -0.5 } else { 0.5 }) as i32
            };
            (first, weights.iter().map(fixed).collect())
        });
        Self(taps.collect())
    }
}

/// How far from its center a filter reaches.
fn half_width(filter: Filter) -> f64 {
    match filter {
        Filter::Nearest => 0.5,
        Filter::Bilinear => 1.0,
        Filter::Bicubic => 2.0,
        Filter::Lanczos => 3.0,
    }
}

fn weight(filter: Filter, x: f64) -> f64 {
    const A: f64 = -0.5;
    let sinc = |x: f64| {
        let x = x * std::f64::consts::PI;
        if x == 0.0 { 1.0 } else { x.sin() / x }
    };
    match filter {
        Filter::Bicubic => match x.abs() {
            x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        },
        Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
        Filter::Lanczos => 0.0,
        Filter::Nearest | Filter::Bilinear => (1.0 - x.abs()).max(0.0),
    }
}

/// A sum of bytes times coefficients as a byte, halves up.
fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION - 1);

/// Makes each row as long as there are taps.
fn rows(bytes: &[u8], n_channels: usize, width: usize, taps: &Taps) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() / width * taps.0.len());
    for row in bytes.chunks_exact(width * n_channels) {
        for (first, weights) in &taps.0 {
            let mut sums = [HALF; 3];
            let pixels = row[first * n_channels..].chunks_exact(n_channels);
            for (pixel, &weight) in pixels.zip(weights) {
                for (sum, &byte) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(byte) * weight;
                }
            }
            out.extend(sums[..n_channels].iter().map(|&sum| to_byte(sum)));
        }
    }
    out
}

/// Makes as many rows, of `n` bytes each, as there are taps.
fn columns(bytes: &[u8], n: usize, taps: &Taps) -> Vec<u8> {
    let mut out = Vec::with_capacity(n * taps.0.len());
    let mut sums = vec![0_i32; n];
    for (first, weights) in &taps.0 {
        sums.fill(HALF);
        for (row, &weight) in bytes[first * n..].chunks_exact(n).zip(weights) {
            for (sum, &byte) in sums.iter_mut().zip(row) {
                *sum += i32::from(byte) * weight;
            }
        }
        out.extend(sums.iter().map(|&sum| to_byte(sum)));
    }
    out
}
