//! Depthwise convolutions with AVX-512 VNNI: four neighbouring pixels of a channel become the bytes of a lane, so that
//! an instruction adds up to four taps.

#![expect(
    clippy::needless_range_loop,
    reason = "registers are addressed by their place in the tile"
)]

use alloc::vec::Vec;
use std::arch::x86_64::*;
use std::ops::Range;

use super::depthwise::{Job, QuadBlock};
use super::lanes::N;
use super::vnni::{ToCodes, copy, load, load_f32, store_16, store_32, store_64, unrolled};
use super::weights::Quad;
use crate::par;

/// A quad of each channel of a block: four registers, the k-th with the k-th four of each sixteen channels.
type Quads = [Quad; 4];

/// Bytes of quads at once: they stay in the first-level cache.
const MAX_BYTES: usize = 20 << 10;

impl par::Scratch for Quads {
    #[cfg(feature = "std")]
    fn free<R>(f: impl FnOnce(&mut Vec<Vec<Self>>) -> R) -> R {
        std::thread_local! {
            static FREE: std::cell::RefCell<Vec<Vec<Quads>>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        FREE.with_borrow_mut(f)
    }
}

/// Some rows of the output, which are the caller's. The scales are small.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn run(job: &Job, rows: Range<usize>) {
    par::with_vec(|quads| run_with(job, rows, quads));
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn run_with(job: &Job, rows: Range<usize>, quads: &mut Vec<Quads>) {
    let conv = job.conv;
    let [out_h, out_w] = conv.output();
    let layout = &job.weights.quads;
    let reach = (conv.kernel[0] - 1) * conv.dilations[0] + 1;
    let mut row = rows.start;
    while row < rows.end {
        let (image, first) = (row / out_h, row % out_h);
        let n_rows = (rows.end - row).min(out_h - first);
        for block in &layout.blocks {
            let to_codes = BlockToCodes::new(job, block);
            let n_tiles = out_w.div_ceil(layout.group * (4 / block.n_lanes));
            let at_once = (MAX_BYTES / (reach * layout.n_sets * size_of::<Quads>())).max(1);
            for tile in (0..n_tiles).step_by(at_once) {
                let columns = Columns::new(job, block, tile..n_tiles.min(tile + at_once));
                // A line of the padded image is where its number modulo `reach` says.
                quads.resize(reach * columns.n_quads, [Quad([0; 4 * N]); 4]);
                let mut next_line = 0;
                for i in 0..n_rows {
                    let top = (first + i) * conv.strides[0];
                    for line in top.max(next_line)..top + reach {
                        let at = line % reach * columns.n_quads;
                        columns.gather(image, line, &mut quads[at..at + columns.n_quads]);
                    }
                    next_line = top + reach;
                    match layout.group {
                        1 => columns.run::<1>(quads, top, row + i, &to_codes),
                        2 => columns.run::<2>(quads, top, row + i, &to_codes),
                        _ => columns.run::<4>(quads, top, row + i, &to_codes),
                    }
                }
            }
        }
        row += n_rows;
    }
}

/// Some columns of the output and some channels, in tiles of one group in each part of a register.
struct Columns<'a> {
    job: &'a Job<'a>,
    block: &'a QuadBlock,
    tiles: Range<usize>,
    /// Groups in a tile.
    n_parts: usize,
    /// Quads of a line, and how many there are from one tile to the next.
    n_quads: usize,
    advance: usize,
    n_channels: usize,
}

impl<'a> Columns<'a> {
    fn new(job: &'a Job<'a>, block: &'a QuadBlock, tiles: Range<usize>) -> Self {
        let layout = &job.weights.quads;
        let n_parts = 4 / block.n_lanes;
        // With one group in a tile, neighbours share the quads that both see.
        let is_shared = n_parts == 1 && layout.n_sets > 1;
        let advance = if is_shared { job.conv.strides[1] } else { layout.n_sets };
        let n_quads = (tiles.len() - 1) * advance + layout.n_sets;
        let n_channels = (block.n_lanes * N).min(job.conv.c_in - block.first);
        Self { job, block, tiles, n_parts, n_quads, advance, n_channels }
    }

    /// Where quad `i` begins in a padded row, for the first of the tile's parts, and how far on it is for the next.
    fn pixel(&self, i: usize) -> [usize; 2] {
        let (stride, layout) = (self.job.conv.strides[1], &self.job.weights.quads);
        let step = layout.group * stride;
        let first = self.tiles.start * self.n_parts * step;
        if self.advance == layout.n_sets {
            let (tile, set) = (i / layout.n_sets, i % layout.n_sets);
            [first + tile * self.n_parts * step + 4 * set, step]
        } else {
            [first + 4 * i, 0]
        }
    }

    /// The quads of a row of a padded image, as `u8`.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn gather(&self, image: usize, padded_row: usize, quads: &mut [Quads]) {
        let (conv, x) = (self.job.conv, self.job.x);
        let ([height, width], c) = (conv.input, conv.c_in);
        let flip = if x.is_signed { 0x80 } else { 0 };
        let padding = self.job.zero_point as u8;
        let row = padded_row.wrapping_sub(conv.pads[0]);
        if height <= row {
            quads.fill([Quad([(padding ^ flip).cast_signed(); 4 * N]); 4]);
            return;
        }
        let line = &x.data[(image * height + row) * width * c..][..width * c];
        let flip = _mm512_set1_epi8(flip.cast_signed());
        let part_len = self.block.n_lanes * N;
        for (i, quads) in quads.iter_mut().enumerate() {
            let [pixel, step] = self.pixel(i);
            let first = pixel.wrapping_sub(conv.pads[1]);
            let last = pixel + (self.n_parts - 1) * step + 3;
            let at = first.wrapping_mul(c).wrapping_add(self.block.first);
            let end = (last * c + self.block.first + part_len).checked_sub(conv.pads[1] * c);
            let mut pixels = [_mm512_setzero_si512(); 4];
            if conv.pads[1] <= pixel && end.is_some_and(|end| end <= line.len()) {
                // All of it is in the line: the last part of the last pixel ends there.
                let at = line.as_ptr().wrapping_add(at);
                let step = step * c;
                for t in 0..4 {
                    let at = at.wrapping_add(t * c);
                    pixels[t] = match self.n_parts {
                        1 => load_64(at),
                        2 => {
                            let low = _mm512_castsi256_si512(load_32(at));
                            _mm512_inserti64x4::<1>(low, load_32(at.wrapping_add(step)))
                        }
                        _ => {
                            let x = _mm512_castsi128_si512(load_16(at));
                            let x = _mm512_inserti32x4::<1>(x, load_16(at.wrapping_add(step)));
                            let x = _mm512_inserti32x4::<2>(x, load_16(at.wrapping_add(2 * step)));
                            _mm512_inserti32x4::<3>(x, load_16(at.wrapping_add(3 * step)))
                        }
                    };
                }
            } else {
                for t in 0..4 {
                    let mut bytes = [padding; 4 * N];
                    for (part, bytes) in bytes.chunks_exact_mut(part_len).enumerate() {
                        let column = first.wrapping_add(part * step + t);
                        if column < width {
                            let channels = &line[column * c + self.block.first..];
                            bytes[..self.n_channels].copy_from_slice(&channels[..self.n_channels]);
                        }
                    }
                    pixels[t] = load_64(bytes.as_ptr());
                }
            }
            for x in &mut pixels {
                *x = _mm512_xor_si512(*x, flip);
            }
            let [a, b, c, d] = pixels;
            // Two pixels' bytes in turn, and then the four's.
            let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
            store_quad(&mut quads[0], _mm512_unpacklo_epi16(ab, cd));
            store_quad(&mut quads[1], _mm512_unpackhi_epi16(ab, cd));
            let (ab, cd) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
            store_quad(&mut quads[2], _mm512_unpacklo_epi16(ab, cd));
            store_quad(&mut quads[3], _mm512_unpackhi_epi16(ab, cd));
        }
    }

    /// A row of the output, which sees the lines from `top` on. `G` is the size of a group. As many tiles at once as
    /// have four outputs in each part, so that weights are loaded for all of them.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn run<const G: usize>(
        &self,
        lines: &[Quads],
        top: usize,
        row: usize,
        to_codes: &BlockToCodes,
    ) {
        let (conv, n_parts) = (self.job.conv, self.n_parts);
        let (c, out_w) = (conv.c_in, conv.output()[1]);
        let n_sets = self.job.weights.quads.n_sets;
        let weights = self.block.weights.as_chunks::<4>().0;
        let is_whole = self.n_channels == 4 * N / n_parts;
        let reach = lines.len() / self.n_quads;
        let first = row * out_w * c + self.block.first;
        let y = self.job.y.pointer(first, (out_w - 1) * c + self.n_channels);
        for first in (0..self.tiles.len()).step_by(4 / G) {
            // Where there are fewer tiles, the last is computed several times.
            let tile = |t: usize| (first + t).min(self.tiles.len() - 1);
            let mut acc = [to_codes.bias; 4];
            for (r, weights) in weights.chunks_exact(n_sets * G).enumerate() {
                let line = (top + r * conv.dilations[0]) % reach * self.n_quads;
                let line = &lines[line..][..self.n_quads];
                for (set, weights) in weights.as_chunks::<G>().0.iter().enumerate() {
                    for k in 0..4 {
                        for t in 0..4 / G {
                            let x = load_quad(&line[tile(t) * self.advance + set][k]);
                            for j in 0..G {
                                let (i, w) = (t * G + j, load_quad(&weights[j][k]));
                                acc[i][k] = _mm512_dpbusd_epi32(acc[i][k], x, w);
                            }
                        }
                    }
                }
            }
            unrolled!(i < 4 => {
                let codes = to_codes.codes(acc[i]);
                // The parts' columns are `G` from one to the next.
                let column = (self.tiles.start + tile(i / G)) * n_parts * G + i % G;
                let part = |i: usize| y.wrapping_add((column + i * G) * c);
                if is_whole && column + (n_parts - 1) * G < out_w {
                    if n_parts == 1 {
                        store_64(part(0), codes);
                    } else if n_parts == 2 {
                        store_32(part(0), _mm512_castsi512_si256(codes));
                        store_32(part(1), _mm512_extracti64x4_epi64::<1>(codes));
                    } else {
                        store_16(part(0), _mm512_castsi512_si128(codes));
                        store_16(part(1), _mm512_extracti32x4_epi32::<1>(codes));
                        store_16(part(2), _mm512_extracti32x4_epi32::<2>(codes));
                        store_16(part(3), _mm512_extracti32x4_epi32::<3>(codes));
                    }
                } else {
                    let mut bytes = [0; 4 * N];
                    store_64(bytes.as_mut_ptr(), codes);
                    for (i, bytes) in bytes.chunks_exact(4 * N / n_parts).enumerate() {
                        if column + i * G < out_w {
                            copy(&bytes[..self.n_channels], part(i));
                        }
                    }
                }
            });
        }
    }
}

/// What makes codes of a block's sums.
struct BlockToCodes {
    bias: [__m512i; 4],
    scales: [__m512; 4],
    to_codes: ToCodes,
}

impl BlockToCodes {
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn new(job: &Job, block: &QuadBlock) -> Self {
        let requant = job.requant;
        let mut bias = [_mm512_setzero_si512(); 4];
        let mut scales = [_mm512_setzero_ps(); 4];
        for k in 0..4 {
            let of = |i| block.channel(k, i).min(job.conv.c_in - 1);
            bias[k] = load(&std::array::from_fn::<_, N, _>(|i| requant.bias[of(i)]));
            scales[k] = load_f32(&std::array::from_fn::<_, N, _>(|i| requant.scales[of(i)]));
            if job.x.is_signed {
                bias[k] = _mm512_sub_epi32(bias[k], load(&block.moved[k]));
            }
        }
        Self { bias, scales, to_codes: ToCodes::new(&requant) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn codes(&self, sums: [__m512i; 4]) -> __m512i {
        let mut numbers = [_mm512_setzero_ps(); 4];
        for k in 0..4 {
            numbers[k] = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[k]), self.scales[k]);
        }
        self.to_codes.codes(numbers)
    }
}

/// The bytes from `x` on, which are in the line: `gather` has seen it.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_64(x: *const u8) -> __m512i {
    // SAFETY: the load takes any alignment.
    unsafe { _mm512_loadu_si512(x.cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_32(x: *const u8) -> __m256i {
    // SAFETY: as above.
    unsafe { _mm256_loadu_si256(x.cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_16(x: *const u8) -> __m128i {
    // SAFETY: as above.
    unsafe { _mm_loadu_si128(x.cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_quad(quad: &Quad) -> __m512i {
    // SAFETY: a register's width of readable bytes on a register's border.
    unsafe { _mm512_load_si512(quad.0.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_quad(quad: &mut Quad, x: __m512i) {
    // SAFETY: a register's width of writable bytes on a register's border.
    unsafe { _mm512_store_si512(quad.0.as_mut_ptr().cast(), x) };
}
