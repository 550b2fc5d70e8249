//! AVX-512 VNNI: an instruction multiplies four `u8` by four `i8` in each of sixteen lanes and adds the products to an
//! `i32`, without saturation.

#![expect(
    clippy::needless_range_loop,
    reason = "registers are addressed by their place in the tile"
)]

use std::arch::x86_64::*;

use super::lanes::N;
use super::product::{Block, DisjointOut};
use super::requant::Requant;
use super::weights::Quad;

type Run = unsafe fn(&Tile);

/// For one panel and for two: tiles of how many rows there are, and their kernels. The highest nearly fill the 32
/// registers; two panels and twelve rows need few loads for many products, and few of the weights' bytes a cycle.
static TILES: [&[(usize, Run)]; 2] = [
    &[
        (1, tile::<1, 1>),
        (2, tile::<2, 1>),
        (4, tile::<4, 1>),
        (8, tile::<8, 1>),
        (12, tile::<12, 1>),
        (16, tile::<16, 1>),
    ],
    &[
        (1, tile::<1, 2>),
        (2, tile::<2, 2>),
        (4, tile::<4, 2>),
        (6, tile::<6, 2>),
        (8, tile::<8, 2>),
        (10, tile::<10, 2>),
        (12, tile::<12, 2>),
    ],
];

/// Some rows of a block times some panels.
struct Tile<'a> {
    block: &'a Block<'a>,
    /// The first row, and how many there are: as many as the kernel's or fewer.
    row: usize,
    n_rows: usize,
    panel: usize,
}

/// Runs a block in tiles. For codes, the scales are small ([`Requant::is_small`]).
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn product(block: &Block) {
    let n_rows = block.rows.n_rows;
    let mut panel = block.panels.start;
    while panel < block.panels.end {
        let n_panels = (block.panels.end - panel).min(2);
        let tiles = TILES[n_panels - 1];
        let highest = tiles.last().expect("some tiles").0;
        for row in (0..n_rows).step_by(highest) {
            let height = highest.min(n_rows - row);
            let (_, run) = tiles.iter().find(|(n, _)| height <= *n).expect("high enough");
            // SAFETY: this function's features are those of the tile's.
            unsafe { run(&Tile { block, row, n_rows: height, panel }) };
        }
        panel += n_panels;
    }
}

/// The block once for each `$i` below `$n`, which is at most 16: registers need to be addressed by constants.
macro_rules! unrolled {
    ($i:ident < $n:expr => $body:block) => {
        unrolled!(@ $i, $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $i:ident, $n:expr, $body:block, $($at:literal)*) => {
        $(if $at < $n {
            let $i: usize = $at;
            $body
        })*
    };
}

pub(super) use unrolled;

/// `MR` rows times `P` panels. Where there are fewer rows, the last is computed several times.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn tile<const MR: usize, const P: usize>(tile: &Tile) {
    let block = tile.block;
    let weights = block.weights;
    let starts: &[u32; MR] = block.rows.starts[tile.row..].first_chunk().expect("rows to spare");
    let rows = starts.map(|start| block.rows.data.as_ptr().wrapping_add(start as usize));
    let panels: [*const Quad; P] = std::array::from_fn(|j| weights.panel(tile.panel + j).as_ptr());
    let column = tile.panel * N;
    let mut acc = [[_mm512_setzero_si512(); P]; MR];
    for j in 0..P {
        let mut start = load(&block.requant.bias[column + j * N..]);
        if block.is_moved {
            start = _mm512_sub_epi32(start, load(&weights.moved()[column + j * N..]));
        }
        for i in 0..MR {
            acc[i][j] = start;
        }
    }
    let n_words = weights.segment_words();
    let mut quad = 0;
    for &offset in block.rows.offsets {
        let segment: [*const u8; MR] =
            std::array::from_fn(|i| rows[i].wrapping_add(offset as usize));
        for word in 0..n_words {
            let mut b = [_mm512_setzero_si512(); P];
            for j in 0..P {
                // SAFETY: a panel has a quad for each word of a row, and quads are on a register's border.
                b[j] = unsafe { _mm512_load_si512(panels[j].wrapping_add(quad).cast()) };
            }
            quad += 1;
            for i in 0..MR {
                // SAFETY: `Windows::rows` has checked that every word of every row is inside the data.
                let a = unsafe { segment[i].wrapping_add(4 * word).cast::<i32>().read_unaligned() };
                let a = _mm512_set1_epi32(a);
                for j in 0..P {
                    acc[i][j] = _mm512_dpbusd_epi32(acc[i][j], a, b[j]);
                }
            }
        }
    }

    let start = block.start + tile.row * block.pitch + column;
    let n_columns = (weights.n() - column).min(P * N);
    let last = tile.n_rows - 1;
    let len = last * block.pitch + n_columns;
    match block.out {
        DisjointOut::Codes(out) => {
            let to_codes = ToCodes::new(block.requant);
            let mut scales = [_mm512_setzero_ps(); P];
            for j in 0..P {
                scales[j] = load_f32(&block.requant.scales[column + j * N..]);
            }
            // Rows that are not there are the last one.
            let mut y = [out.pointer(start, len); MR];
            for i in 1..MR {
                y[i] = if i <= last { y[i - 1].wrapping_add(block.pitch) } else { y[i - 1] };
            }
            // Four registers become one: of two rows or of four.
            const { assert!(P == 1 || P == 2, "registers of a row") };
            let per_group = 4 / P;
            unrolled!(group < MR.div_ceil(per_group) => {
                let number = |t: usize| {
                    let i = (group * per_group + t / P).min(MR - 1);
                    _mm512_mul_ps(_mm512_cvtepi32_ps(acc[i][t % P]), scales[t % P])
                };
                let codes = to_codes.codes([number(0), number(1), number(2), number(3)]);
                let codes = to_codes.in_order(codes);
                let row = |t: usize| y[(group * per_group + t).min(MR - 1)];
                if n_columns < P * N {
                    let mut bytes = [0; 4 * N];
                    store_64(bytes.as_mut_ptr(), codes);
                    for (t, bytes) in bytes.chunks_exact(P * N).enumerate() {
                        copy(&bytes[..n_columns], row(t));
                    }
                } else if P == 2 {
                    store_32(row(0), _mm512_castsi512_si256(codes));
                    store_32(row(1), _mm512_extracti64x4_epi64::<1>(codes));
                } else {
                    store_16(row(0), _mm512_castsi512_si128(codes));
                    store_16(row(1), _mm512_extracti32x4_epi32::<1>(codes));
                    store_16(row(2), _mm512_extracti32x4_epi32::<2>(codes));
                    store_16(row(3), _mm512_extracti32x4_epi32::<3>(codes));
                }
            });
        }
        DisjointOut::Numbers(out) => {
            let y = out.pointer(start, len);
            // Through memory, whose addresses need not be constants.
            let mut sums = [[[0_i32; N]; P]; MR];
            unrolled!(i < MR => {
                for j in 0..P {
                    store_i32(&mut sums[i][j], acc[i][j]);
                }
            });
            for j in 0..P {
                let n = (n_columns - j * N).min(N);
                let scales = load_f32(&block.requant.scales[column + j * N..]);
                let shifts = match &block.requant.shifts {
                    Some(shifts) => load_f32(&shifts[column + j * N..]),
                    // Adding it changes nothing, not even the sign of a zero.
                    None => _mm512_set1_ps(-0.0),
                };
                for (i, sums) in sums[..=last].iter().enumerate() {
                    let numbers = _mm512_mul_ps(_mm512_cvtepi32_ps(load(&sums[j])), scales);
                    let y = y.wrapping_add(i * block.pitch + j * N);
                    store_f32(y, n, _mm512_add_ps(numbers, shifts));
                }
            }
        }
    }
}

/// A [`Requant`]'s way from scaled numbers to codes.
pub(super) struct ToCodes {
    zero_point: __m512i,
    lo: __m512i,
    hi: __m512i,
    moved: __m512i,
    order: __m512i,
}

impl ToCodes {
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn new(requant: &Requant) -> Self {
        // Signed codes are made as unsigned ones, 128 greater.
        let [lo, hi] = requant.codes;
        let moved = if lo < 0 { 128 } else { 0 };
        Self {
            zero_point: _mm512_set1_epi16((requant.zero_point + moved) as i16),
            lo: _mm512_set1_epi8((lo + moved) as i8),
            hi: _mm512_set1_epi8((hi + moved) as i8),
            moved: _mm512_set1_epi8(moved as i8),
            order: _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
        }
    }

    /// The codes of four times sixteen numbers, which are in the range of `i32` ([`Requant::is_small`],
    /// [`Requant::is_small_after`]): the first four of each, then the next four of each and so on. Clamping what is
    /// rounded is the same as rounding what is clamped, because the bounds are integers, and so is doing it after sums
    /// that saturate beyond the bounds.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn codes(&self, numbers: [__m512; 4]) -> __m512i {
        let [a, b, c, d] = numbers;
        let low = _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
        let high = _mm512_packs_epi32(_mm512_cvtps_epi32(c), _mm512_cvtps_epi32(d));
        let low = _mm512_adds_epi16(low, self.zero_point);
        let high = _mm512_adds_epi16(high, self.zero_point);
        let codes = _mm512_packus_epi16(low, high);
        let codes = _mm512_min_epu8(_mm512_max_epu8(codes, self.lo), self.hi);
        _mm512_xor_si512(codes, self.moved)
    }

    /// Fourths in a row to whole registers in a row.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn in_order(&self, codes: __m512i) -> __m512i {
        _mm512_permutexvar_epi32(self.order, codes)
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(x: &[i32]) -> __m512i {
    let x: &[i32; N] = x.first_chunk().expect("a value for each lane");
    // SAFETY: a register's width of readable bytes; the load takes any alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_f32(x: &[f32]) -> __m512 {
    let x: &[f32; N] = x.first_chunk().expect("a value for each lane");
    // SAFETY: a register's width of readable bytes; the load takes any alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

/// # Safety (of this and the stores below)
///
/// The elements from `y` on are inside the output, and this task's: `tile` has asked for them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_64(y: *mut u8, x: __m512i) {
    // SAFETY: the store takes any alignment.
    unsafe { _mm512_storeu_si512(y.cast(), x) };
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_32(y: *mut u8, x: __m256i) {
    // SAFETY: the store takes any alignment.
    unsafe { _mm256_storeu_si256(y.cast(), x) };
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_16(y: *mut u8, x: __m128i) {
    // SAFETY: the store takes any alignment.
    unsafe { _mm_storeu_si128(y.cast(), x) };
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_i32(y: &mut [i32; N], x: __m512i) {
    // SAFETY: a register's width of writable bytes; the store takes any alignment.
    unsafe { _mm512_storeu_si512(y.as_mut_ptr().cast(), x) };
}

pub(super) fn copy(from: &[u8], y: *mut u8) {
    // SAFETY: as said above, and `from` is memory of the caller's.
    unsafe { y.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
}

/// The first `n` numbers.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_f32(y: *mut f32, n: usize, x: __m512) {
    if n == N {
        // SAFETY: the store takes any alignment.
        unsafe { _mm512_storeu_ps(y, x) };
    } else {
        // SAFETY: the mask has a bit for each element, and no other is written.
        unsafe { _mm512_mask_storeu_ps(y, ((1_u32 << n) - 1) as u16, x) };
    }
}
