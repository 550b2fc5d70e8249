//! AVX-512 VNNI: an instruction multiplies four `u8` by four `i8` in each of sixteen lanes and adds the products to an
//! `i32`, without saturation.

#![expect(
    clippy::needless_range_loop,
    reason = "registers are addressed by their place in the tile"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::lanes::N;
use super::product::{Block, DisjointOut};
use super::requant::RequantView;
use super::weights::Quad;
use super::windows::SPARE;

/// Computes some rows of a block times a panel or two, as many of them as tiles are high or a multiple.
type Run = unsafe fn(&Block, usize, Range<usize>);

/// For one panel and for two: how high tiles are, and their kernels. The highest nearly fill the 32 registers; two panels
/// and twelve rows need few loads for many products, and few of the weights' bytes a cycle.
static TILES: [&[(usize, Run)]; 2] = [
    &[
        (1, tiles::<1, 1>),
        (2, tiles::<2, 1>),
        (4, tiles::<4, 1>),
        (8, tiles::<8, 1>),
        (12, tiles::<12, 1>),
        (16, tiles::<16, 1>),
    ],
    &[
        (1, tiles::<1, 2>),
        (2, tiles::<2, 2>),
        (4, tiles::<4, 2>),
        (6, tiles::<6, 2>),
        (8, tiles::<8, 2>),
        (10, tiles::<10, 2>),
        (12, tiles::<12, 2>),
    ],
];

/// Runs a block in tiles. For codes, without multipliers.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn product(block: &Block) {
    let n_rows = block.rows.n_rows;
    let mut panel = block.panels.start;
    while panel < block.panels.end {
        let n_panels = (block.panels.end - panel).min(2);
        let tiles = TILES[n_panels - 1];
        let mut row = 0;
        while row < n_rows {
            let left = n_rows - row;
            // The highest as long as they fit. What is left is the end of one that is high enough, whose first rows are
            // computed again, or some that are not.
            let mut high_enough = tiles.iter().filter(|(n, _)| left <= *n && *n <= n_rows);
            let lower = || tiles.iter().rev().find(|(n, _)| *n <= left).expect("one of one row");
            let (height, run) = high_enough.next().unwrap_or_else(lower);
            let rows = match left / height {
                0 => n_rows - height..n_rows,
                n => row..row + n * height,
            };
            row = rows.end;
            // SAFETY: this function's features are those of the tiles'.
            unsafe { run(block, panel, rows) };
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

/// Adds the products of `$word`, a pointer to word `$at` of row `$i`, and the panels' quads to the tile's sums. A macro,
/// because the compiler does not put a function into its caller when it has to stay with the caller's instructions.
macro_rules! add_products {
    ($acc:ident, $block:ident, $panels:ident, ($i:ident, $at:ident) => $word:expr) => {{
        let mut quad = 0;
        for &offset in $block.rows.offsets {
            for word in 0..$block.weights.segment_words() {
                let mut b = [_mm512_setzero_si512(); P];
                for j in 0..P {
                    // SAFETY: a panel has a quad for each word of a row, and quads are on a register's border.
                    b[j] = unsafe { _mm512_load_si512($panels[j].wrapping_add(quad).cast()) };
                }
                quad += 1;
                let $at = offset as usize + 4 * word;
                unrolled!($i < MR => {
                    let a: *const u8 = $word;
                    // SAFETY: `Windows::rows` has checked that every word of every row is inside the data.
                    let a = _mm512_set1_epi32(unsafe { a.cast::<i32>().read_unaligned() });
                    for j in 0..P {
                        $acc[$i][j] = _mm512_dpbusd_epi32($acc[$i][j], a, b[j]);
                    }
                });
            }
        }
    }};
}

/// Tiles of `MR` rows times `P` panels, one below the other.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn tiles<const MR: usize, const P: usize>(block: &Block, panel: usize, rows: Range<usize>) {
    let weights = block.weights;
    let column = panel * N;
    let mut panels = [std::ptr::null::<Quad>(); P];
    let mut bias = [_mm512_setzero_si512(); P];
    for j in 0..P {
        panels[j] = weights.panel(panel + j).as_ptr();
        bias[j] = load(&block.requant.bias[column + j * N..]);
        if block.is_moved {
            bias[j] = _mm512_sub_epi32(bias[j], load(&weights.moved()[column + j * N..]));
        }
    }
    let n_columns = (weights.n() - column).min(P * N);
    let to_codes = RowsToCodes::<P>::new(&block.requant, column, n_columns, block.pitch);
    let mut start = block.start + rows.start * block.pitch + column;
    for row in rows.step_by(MR) {
        let starts: &[u32; SPARE + 1] =
            block.rows.starts[row..].first_chunk().expect("rows to spare");
        let mut acc = [bias; MR];
        if let Some(bias) = block.row_bias {
            let bias: &[i32; MR] = bias[row..].first_chunk().expect("rows to spare");
            for i in 0..MR {
                for j in 0..P {
                    acc[i][j] = _mm512_add_epi32(acc[i][j], _mm512_set1_epi32(bias[i]));
                }
            }
        }
        // Most tiles lie inside a row of the image, where one step is enough to find all rows from a few of them.
        let step = starts[1].wrapping_sub(starts[0]);
        let first = block.rows.data.as_ptr().wrapping_add(starts[0] as usize);
        if are_steps::<MR>(starts, step) {
            let step = step as usize;
            let mut threes = [first; 6];
            for i in 1..6 {
                threes[i] = threes[i - 1].wrapping_add(3 * step);
            }
            add_products!(acc, block, panels, (i, at) => {
                threes[i / 3].wrapping_add(at).wrapping_add(i % 3 * step)
            });
        } else {
            let mut each = [first; MR];
            for i in 0..MR {
                each[i] = block.rows.data.as_ptr().wrapping_add(starts[i] as usize);
            }
            add_products!(acc, block, panels, (i, at) => each[i].wrapping_add(at));
        }
        let len = (MR - 1) * block.pitch + n_columns;
        match block.out {
            DisjointOut::Codes(out) => to_codes.store(acc, out.pointer(start, len)),
            DisjointOut::Numbers(out) => {
                store_numbers(block, column, n_columns, acc, out.pointer(start, len));
            }
        }
        start += MR * block.pitch;
    }
}

/// Whether the first `MR` of them are `step` apart.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn are_steps<const MR: usize>(starts: &[u32; SPARE + 1], step: u32) -> bool {
    let numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let steps = _mm512_mullo_epi32(numbers, _mm512_set1_epi32(step.cast_signed()));
    let want = _mm512_add_epi32(steps, _mm512_set1_epi32(starts[0].cast_signed()));
    // SAFETY: a register's width of readable bytes; the load takes any alignment.
    let starts = unsafe { _mm512_loadu_si512(starts.as_ptr().cast()) };
    let equal = u32::from(_mm512_cmpeq_epi32_mask(starts, want));
    equal.trailing_ones() as usize >= MR
}

/// From the sums of tiles of `P` panels to codes in memory.
struct RowsToCodes<const P: usize> {
    to_codes: ToCodes,
    with_row: Option<WithRow<P>>,
    scales: [__m512; P],
    n_columns: usize,
    pitch: usize,
}

impl<const P: usize> RowsToCodes<P> {
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn new(requant: &RequantView<'_>, column: usize, n_columns: usize, pitch: usize) -> Self {
        let mut scales = [_mm512_setzero_ps(); P];
        for j in 0..P {
            scales[j] = load_f32(requant.scales_from(column + j * N));
        }
        let (to_codes, with_row) = (ToCodes::new(requant), WithRow::new(requant, column));
        Self { to_codes, with_row, scales, n_columns, pitch }
    }

    /// Stores the codes of `MR` rows.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn store<const MR: usize>(&self, acc: [[__m512i; P]; MR], y: *mut u8) {
        // Four registers become one: of two rows or of four.
        const { assert!(P == 1 || P == 2, "registers of a row") };
        let per_group = 4 / P;
        unrolled!(group < MR.div_ceil(per_group) => {
            let mut numbers = [_mm512_setzero_ps(); 4];
            for t in 0..4 {
                let i = (group * per_group + t / P).min(MR - 1);
                let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[i][t % P]), self.scales[t % P]);
                numbers[t] = match &self.with_row {
                    Some(with_row) => with_row.sum(scaled, t % P),
                    None => scaled,
                };
            }
            let codes = self.to_codes.in_order(self.to_codes.codes(numbers));
            // A row that is not there is the last.
            let row = |t: usize| y.wrapping_add((group * per_group + t).min(MR - 1) * self.pitch);
            if self.n_columns < P * N {
                let mut bytes = [0; 4 * N];
                store_64(bytes.as_mut_ptr(), codes);
                for t in 0..per_group {
                    copy(&bytes[t * P * N..][..self.n_columns], row(t));
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
}

/// Stores the numbers of `MR` rows.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn store_numbers<const MR: usize, const P: usize>(
    block: &Block,
    column: usize,
    n_columns: usize,
    acc: [[__m512i; P]; MR],
    y: *mut f32,
) {
    for j in 0..P {
        let n = n_columns.saturating_sub(j * N).min(N);
        let scales = load_f32(block.requant.scales_from(column + j * N));
        let shifts = match &block.requant.shifts {
            Some(shifts) => load_f32(&shifts[column + j * N..]),
            // Adding it changes nothing, not even the sign of a zero.
            None => _mm512_set1_ps(-0.0),
        };
        unrolled!(i < MR => {
            let numbers = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[i][j]), scales);
            let y = y.wrapping_add(i * block.pitch + j * N);
            store_f32(y, n, _mm512_add_ps(numbers, shifts));
        });
    }
}

/// The sum of codes and a row of codes ([`RequantView::row`]), from numbers to numbers; for `P` registers.
struct WithRow<const P: usize> {
    lo: __m512,
    hi: __m512,
    zero_point: __m512,
    factor: __m512,
    terms: [__m512; P],
    first: Option<([__m512; P], __m512)>,
}

impl<const P: usize> WithRow<P> {
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn new(requant: &RequantView<'_>, column: usize) -> Option<Self> {
        let row = requant.row.as_ref()?;
        let channels = |x: &[f32]| std::array::from_fn(|j| load_f32(&x[column + j * N..]));
        Some(Self {
            lo: _mm512_set1_ps(requant.lo),
            hi: _mm512_set1_ps(requant.hi),
            zero_point: _mm512_set1_ps(requant.zero_point as f32),
            factor: _mm512_set1_ps(row.factor),
            terms: channels(row.terms),
            first: row.first.map(|(first, factor)| (channels(first), _mm512_set1_ps(factor))),
        })
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn sum(&self, scaled: __m512, j: usize) -> __m512 {
        let steps = _mm512_min_ps(_mm512_max_ps(scaled, self.lo), self.hi);
        // To the nearest integer, ties to even.
        let steps =
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(steps);
        let codes = _mm512_add_ps(steps, self.zero_point);
        let sum = _mm512_fmadd_ps(codes, self.factor, self.terms[j]);
        match &self.first {
            Some((first, factor)) => _mm512_fmadd_ps(first[j], *factor, sum),
            None => sum,
        }
    }
}

/// A [`RequantView`]'s way from scaled numbers to codes.
pub(super) struct ToCodes {
    zero_point: __m512i,
    lo: __m512i,
    /// The greatest code, as a number before the zero point is added.
    hi: __m512,
    moved: __m512i,
    order: __m512i,
}

impl ToCodes {
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn new(requant: &RequantView<'_>) -> Self {
        // A sum with a row has its zero point in it.
        let ([lo, hi], zero_point) = match &requant.row {
            Some(row) => ([row.lo, row.hi].map(|code| code as i32), 0),
            None => (requant.codes, requant.zero_point),
        };
        // Signed codes are made as unsigned ones, 128 greater.
        let moved = if lo < 0 { 128 } else { 0 };
        Self {
            zero_point: _mm512_set1_epi16((zero_point + moved) as i16),
            lo: _mm512_set1_epi8((lo + moved) as i8),
            hi: _mm512_set1_ps((hi - zero_point) as f32),
            moved: _mm512_set1_epi8(moved as i8),
            order: _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
        }
    }

    /// The codes of four times sixteen numbers: the first four of each, then the next four of each and so on.
    ///
    /// The conversion makes the least `i32` of every number that is none. So numbers that are too great have to be
    /// clamped before it; for those that are too small, and for what is left to clamp, it is the same to do it after
    /// the rounding, because the bounds are integers, and after sums that saturate beyond the bounds.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn codes(&self, numbers: [__m512; 4]) -> __m512i {
        let [a, b, c, d] = numbers;
        let rounded = |x| _mm512_cvtps_epi32(_mm512_min_ps(x, self.hi));
        let low = _mm512_packs_epi32(rounded(a), rounded(b));
        let high = _mm512_packs_epi32(rounded(c), rounded(d));
        let low = _mm512_adds_epi16(low, self.zero_point);
        let high = _mm512_adds_epi16(high, self.zero_point);
        let codes = _mm512_max_epu8(_mm512_packus_epi16(low, high), self.lo);
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
