//! NF4 and FP4: the nearest of sixteen entries, two codes a byte.
//!
//! The search is the same for every instruction set: four comparisons, each with a border that the bits found so far
//! choose. The borders of a step are at most eight, which one permutation of a register finds.

use midtread_num::formats::codebook::{Codebook, MIN_ABSMAX};

use super::max_abs_bits;
use crate::min_max::INFINITY_BITS;
use crate::variant::{Isa, Variant, VariantInfo, describe, select};
#[cfg(target_arch = "x86_64")]
use crate::variant::{has_avx2, has_avx512};

pub(super) fn variants() -> Vec<VariantInfo> {
    describe("formats::codebook::blocks", BLOCKS)
}

/// Elements that a step of the fast variants takes: blocks must be multiples.
pub const UNIT: usize = 64;

/// A codebook of sixteen entries, as the search wants it.
#[derive(Clone, Debug)]
pub struct FourBit {
    codebook: Codebook16,
    /// The borders that each of the four comparisons may be with.
    steps: [[f32; 8]; 4],
}

#[derive(Clone, Debug)]
struct Codebook16 {
    borders: [f32; 15],
    order: [u8; 16],
}

impl FourBit {
    /// Of a table.
    pub fn new(table: [f32; 16]) -> Self {
        let Codebook { order, borders, .. } = Codebook::new(table.to_vec());
        let mut codebook = Codebook16 { borders: [0.0; 15], order: [0; 16] };
        codebook.borders.copy_from_slice(&borders);
        codebook.order.copy_from_slice(&order);
        let steps = std::array::from_fn(|step| {
            // Step 0 compares with border 7, step 1 with 3 or 11, and so on.
            let width = 16 >> step;
            std::array::from_fn(|i| {
                if i < 1 << step { borders[width * i + width / 2 - 1] } else { 0.0 }
            })
        });
        Self { codebook, steps }
    }

    /// The code of one value.
    #[inline(always)]
    fn code(&self, x: f32) -> u8 {
        self.codebook.order[self.codebook.borders.partition_point(|border| *border < x)]
    }
}

/// Blocks of `block_size`, a multiple of [`UNIT`], of a flat run; the last may be short. Two codes a byte, the first in the
/// upper half, an odd end filled with the code of 0; `absmax` as the format has it. Whether all is finite.
///
/// # Panics
///
/// When the lengths do not fit.
pub fn four_bit(
    src: &[f32],
    block_size: usize,
    table: &FourBit,
    codes: &mut [u8],
    absmax: &mut [f32],
) -> bool {
    assert!(block_size != 0 && block_size.is_multiple_of(UNIT), "blocks are whole units");
    assert_eq!(codes.len(), src.len().div_ceil(2), "two codes a byte");
    assert_eq!(absmax.len(), src.len().div_ceil(block_size), "one scale a block");
    let n_full = src.len() / block_size;
    let (full, rest) = src.split_at(n_full * block_size);
    let (full_codes, rest_codes) = codes.split_at_mut(full.len() / 2);
    let mut is_finite = select(BLOCKS)(full, block_size, table, full_codes, &mut absmax[..n_full]);
    if !rest.is_empty() {
        let bits = max_abs_bits(rest);
        is_finite &= bits < INFINITY_BITS;
        let divisor = f32::from_bits(bits).max(MIN_ABSMAX);
        absmax[n_full] = divisor;
        for (pair, byte) in rest.chunks(2).zip(rest_codes) {
            let code = |x: f32| table.code((x / divisor).clamp(-1.0, 1.0));
            let second = pair.get(1).map_or(table.code(0.0), |x| code(*x));
            *byte = code(pair[0]) << 4 | second;
        }
    }
    is_finite
}

pub(super) type Blocks = fn(
    src: &[f32],
    block_size: usize,
    table: &FourBit,
    codes: &mut [u8],
    absmax: &mut [f32],
) -> bool;

/// Whole blocks.
pub(super) static BLOCKS: &[Variant<Blocks>] = &[
    #[cfg(target_arch = "x86_64")]
    Variant::new("avx512", Isa::Avx512, has_avx512, |src, block_size, table, codes, absmax| {
        // SAFETY: `Variant::get` hands this out only when `has_avx512` has found the features.
        unsafe { x86_64::avx512::blocks(src, block_size, table, codes, absmax) }
    }),
    #[cfg(target_arch = "x86_64")]
    Variant::new("avx2", Isa::Avx2, has_avx2, |src, block_size, table, codes, absmax| {
        // SAFETY: `Variant::get` hands this out only when `has_avx2` has found the features.
        unsafe { x86_64::avx2::blocks(src, block_size, table, codes, absmax) }
    }),
    Variant::scalar(|src, block_size, table, codes, absmax| {
        for_blocks(src, block_size, codes, absmax, |x, reciprocal, bytes| {
            for (pair, byte) in x.as_chunks::<2>().0.iter().zip(bytes) {
                let [first, second] = pair.map(|x| table.code((x * reciprocal).clamp(-1.0, 1.0)));
                *byte = first << 4 | second;
            }
        })
    }),
];

/// Calls `code` with each unit, the reciprocal of its block's largest magnitude, and where its codes go.
#[inline(always)]
fn for_blocks(
    src: &[f32],
    block_size: usize,
    codes: &mut [u8],
    absmax: &mut [f32],
    code: impl Fn(&[f32; UNIT], f32, &mut [u8; UNIT / 2]),
) -> bool {
    let mut is_finite = true;
    let blocks = src.chunks_exact(block_size).zip(codes.chunks_exact_mut(block_size / 2));
    for ((block, codes), absmax) in blocks.zip(absmax) {
        let bits = max_abs_bits(block);
        is_finite &= bits < INFINITY_BITS;
        *absmax = f32::from_bits(bits);
        let reciprocal = 1.0 / if *absmax < MIN_ABSMAX { MIN_ABSMAX } else { *absmax };
        let units = block.as_chunks::<UNIT>().0.iter();
        for (x, bytes) in units.zip(codes.as_chunks_mut::<{ UNIT / 2 }>().0) {
            code(x, reciprocal, bytes);
        }
    }
    is_finite
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    pub(super) mod avx512 {
        use std::arch::x86_64::*;

        use super::super::{FourBit, UNIT, for_blocks};

        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        pub(crate) fn blocks(
            src: &[f32],
            block_size: usize,
            table: &FourBit,
            codes: &mut [u8],
            absmax: &mut [f32],
        ) -> bool {
            let first = _mm512_set1_ps(table.steps[0][0]);
            let [_, two, four, eight] = table.steps.each_ref().map(|borders| load_borders(borders));
            let order = load_order(&table.codebook.order);
            for_blocks(src, block_size, codes, absmax, |x, reciprocal, bytes| {
                let reciprocal = _mm512_set1_ps(reciprocal);
                let mut quarters = [_mm_setzero_si128(); 4];
                for (quarter, x) in quarters.iter_mut().zip(x.as_chunks::<16>().0) {
                    *quarter = places(x, reciprocal, first, [two, four, eight]);
                }
                let [a, b, c, d] = quarters;
                let places = _mm512_castsi128_si512(a);
                let places = _mm512_inserti32x4::<1>(places, b);
                let places = _mm512_inserti32x4::<2>(places, c);
                let places = _mm512_inserti32x4::<3>(places, d);
                let codes = _mm512_shuffle_epi8(order, places);
                // The first of two times 16, the second times 1.
                let pairs = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x0110));
                store(bytes, _mm512_cvtepi16_epi8(pairs));
            })
        }

        /// How many borders are below each value. (A product may be a rounding beyond 1, where no border is.)
        #[inline]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        fn places(x: &[f32; 16], reciprocal: __m512, first: __m512, steps: [__m512; 3]) -> __m128i {
            let one = _mm512_set1_epi32(1);
            let v = _mm512_mul_ps(load(x), reciprocal);
            let is_above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, first);
            let mut place = _mm512_maskz_mov_epi32(is_above, one);
            for borders in steps {
                let border = _mm512_permutexvar_ps(place, borders);
                let is_above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, border);
                let twice = _mm512_add_epi32(place, place);
                place = _mm512_mask_add_epi32(twice, is_above, twice, one);
            }
            _mm512_cvtepi32_epi8(place)
        }

        #[inline]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        fn load(x: &[f32; 16]) -> __m512 {
            // SAFETY: `x` is 64 readable bytes, and `loadu` takes any alignment.
            unsafe { _mm512_loadu_ps(x.as_ptr()) }
        }

        #[inline]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        fn load_borders(borders: &[f32; 8]) -> __m512 {
            // SAFETY: `borders` is 32 readable bytes, and `loadu` takes any alignment.
            _mm512_castps256_ps512(unsafe { _mm256_loadu_ps(borders.as_ptr()) })
        }

        #[inline]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        fn load_order(order: &[u8; 16]) -> __m512i {
            // SAFETY: `order` is 16 readable bytes, and `loadu` takes any alignment.
            _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(order.as_ptr().cast()) })
        }

        #[inline]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        fn store(bytes: &mut [u8; UNIT / 2], codes: __m256i) {
            // SAFETY: `bytes` is 32 writable bytes, and `storeu` takes any alignment.
            unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), codes) }
        }
    }

    pub(super) mod avx2 {
        use std::arch::x86_64::*;

        use super::super::{FourBit, for_blocks};

        #[target_feature(enable = "avx2,fma")]
        pub(crate) fn blocks(
            src: &[f32],
            block_size: usize,
            table: &FourBit,
            codes: &mut [u8],
            absmax: &mut [f32],
        ) -> bool {
            let first = _mm256_set1_ps(table.steps[0][0]);
            let [_, two, four, eight] = table.steps.each_ref().map(|borders| load(borders));
            let order = load_order(&table.codebook.order);
            for_blocks(src, block_size, codes, absmax, |x, reciprocal, bytes| {
                let reciprocal = _mm256_set1_ps(reciprocal);
                let halves = x.as_chunks::<32>().0.iter();
                for (x, bytes) in halves.zip(bytes.as_chunks_mut::<16>().0) {
                    let mut p = [_mm256_setzero_si256(); 4];
                    for (p, x) in p.iter_mut().zip(x.as_chunks::<8>().0) {
                        *p = places(x, reciprocal, first, [two, four, eight]);
                    }
                    // Packing works on each half of a register by itself: the last line puts them in order.
                    let packed = _mm256_packus_epi16(
                        _mm256_packus_epi32(p[0], p[1]),
                        _mm256_packus_epi32(p[2], p[3]),
                    );
                    let ordered = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                    let places = _mm256_permutevar8x32_epi32(packed, ordered);
                    let codes = _mm256_shuffle_epi8(order, places);
                    // The first of two times 16, the second times 1.
                    let pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x0110));
                    let packed = _mm256_packus_epi16(pairs, pairs);
                    let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
                    store(bytes, _mm256_castsi256_si128(packed));
                }
            })
        }

        /// How many borders are below each value. (A product may be a rounding beyond 1, where no border is.)
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn places(x: &[f32; 8], reciprocal: __m256, first: __m256, steps: [__m256; 3]) -> __m256i {
            let v = _mm256_mul_ps(load(x), reciprocal);
            let is_above = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(v, first));
            let mut place = _mm256_sub_epi32(_mm256_setzero_si256(), is_above);
            for borders in steps {
                let border = _mm256_permutevar8x32_ps(borders, place);
                let is_above = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(v, border));
                place = _mm256_sub_epi32(_mm256_add_epi32(place, place), is_above);
            }
            place
        }

        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn load(x: &[f32; 8]) -> __m256 {
            // SAFETY: `x` is 32 readable bytes, and `loadu` takes any alignment.
            unsafe { _mm256_loadu_ps(x.as_ptr()) }
        }

        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn load_order(order: &[u8; 16]) -> __m256i {
            // SAFETY: `order` is 16 readable bytes, and `loadu` takes any alignment.
            _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(order.as_ptr().cast()) })
        }

        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn store(bytes: &mut [u8; 16], codes: __m128i) {
            // SAFETY: `bytes` is 16 writable bytes, and `storeu` takes any alignment.
            unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), codes) }
        }
    }
}
