//! Sixteen lanes of `i32` and `f32`, so that an integer kernel is written once for every instruction set. As
//! [`crate::simd::Simd`], whose token is the proof that the CPU has the instructions.

/// How many lanes there are, whatever the registers.
pub(super) const N: usize = 16;

/// Sixteen lanes and what can be done to all of them at once.
pub(super) trait Lanes: Copy {
    /// Of `i32`, or of pairs of `i16`.
    type I: Copy;
    /// Of `f32`.
    type F: Copy;

    fn splat(self, x: i32) -> Self::I;
    fn load(self, x: &[i32]) -> Self::I;
    /// Four bytes a lane: the first and the third as `i16`, and the second and the fourth.
    fn load_pairs(self, x: &[i8; 4 * N]) -> [Self::I; 2];
    /// Each lane the `i16` of a byte of `a`, and in its upper half that of `b`.
    fn zip<const SIGNED: bool>(self, a: &[u8; N], b: &[u8; N]) -> Self::I;
    /// Each lane a byte.
    fn load_bytes<const SIGNED: bool>(self, x: &[u8]) -> Self::I;
    /// In each lane, `acc` plus the two products of the pairs, wrapping.
    fn dot(self, acc: Self::I, a: Self::I, b: Self::I) -> Self::I;
    fn add(self, a: Self::I, b: Self::I) -> Self::I;
    fn sub(self, a: Self::I, b: Self::I) -> Self::I;
    fn to_f32(self, x: Self::I) -> Self::F;
    fn splat_f32(self, x: f32) -> Self::F;
    fn load_f32(self, x: &[f32]) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn add_f32(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `min(max(x, lo), hi)` of numbers.
    fn clamp(self, x: Self::F, lo: Self::F, hi: Self::F) -> Self::F;
    /// To the nearest integer, ties to even; `|x|` is below 2^31.
    fn round(self, x: Self::F) -> Self::I;
    fn store_f32(self, y: &mut [f32], x: Self::F);
    fn store(self, y: &mut [i32; N], x: Self::I);
    /// Each lane as a byte: it is between -128 and 255.
    fn store_bytes(self, y: &mut [u8], x: Self::I);
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

impl Lanes for Scalar {
    type I = [i32; 16];
    type F = [f32; 16];

    #[inline(always)]
    fn splat(self, x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn load(self, x: &[i32]) -> [i32; 16] {
        *x.first_chunk().expect("sixteen lanes")
    }
    #[inline(always)]
    fn load_pairs(self, x: &[i8; 4 * N]) -> [[i32; 16]; 2] {
        [0, 1].map(|at| {
            std::array::from_fn(|i| pair(i16::from(x[4 * i + at]), i16::from(x[4 * i + 2 + at])))
        })
    }
    #[inline(always)]
    fn zip<const SIGNED: bool>(self, a: &[u8; N], b: &[u8; N]) -> [i32; 16] {
        let wide = |byte| super::code(byte, SIGNED) as i16;
        std::array::from_fn(|i| pair(wide(a[i]), wide(b[i])))
    }
    #[inline(always)]
    fn load_bytes<const SIGNED: bool>(self, x: &[u8]) -> [i32; 16] {
        let x: &[u8; 16] = x.first_chunk().expect("sixteen bytes");
        x.map(|byte| super::code(byte, SIGNED))
    }
    #[inline(always)]
    fn dot(self, acc: [i32; 16], a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| {
            let low = i32::from(a[i] as i16) * i32::from(b[i] as i16);
            acc[i].wrapping_add(low).wrapping_add((a[i] >> 16) * (b[i] >> 16))
        })
    }
    #[inline(always)]
    fn add(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn sub(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn to_f32(self, x: [i32; 16]) -> [f32; 16] {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    fn splat_f32(self, x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn load_f32(self, x: &[f32]) -> [f32; 16] {
        *x.first_chunk().expect("sixteen lanes")
    }
    #[inline(always)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn add_f32(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn mul_add(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| libm::fmaf(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn clamp(self, x: [f32; 16], lo: [f32; 16], hi: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| {
            let x = if x[i] > lo[i] { x[i] } else { lo[i] };
            if x < hi[i] { x } else { hi[i] }
        })
    }
    #[inline(always)]
    fn round(self, x: [f32; 16]) -> [i32; 16] {
        x.map(|x| midtread_num::round::ties_even(x) as i32)
    }
    #[inline(always)]
    fn store_f32(self, y: &mut [f32], x: [f32; 16]) {
        *y.first_chunk_mut().expect("sixteen lanes") = x;
    }
    #[inline(always)]
    fn store(self, y: &mut [i32; N], x: [i32; 16]) {
        *y = x;
    }
    #[inline(always)]
    fn store_bytes(self, y: &mut [u8], x: [i32; 16]) {
        *y.first_chunk_mut().expect("sixteen bytes") = x.map(|x| x as u8);
    }
}

/// Two `i16`, the first in the low half.
#[inline(always)]
pub(super) fn pair(low: i16, high: i16) -> i32 {
    i32::from(high) << 16 | i32::from(low as u16)
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::*;

    use super::{Lanes, N};

    /// AVX2: two registers.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(());

    /// AVX-512 F, BW, DQ and VL: one register.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(());

    impl Avx2 {
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        pub(in super::super) fn new() -> Self {
            Self(())
        }
    }

    impl Avx512 {
        #[inline]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        pub(in super::super) fn new() -> Self {
            Self(())
        }
    }

    /// A method whose body runs in a function with the features: a token of the type is made nowhere else than where
    /// the CPU has them.
    macro_rules! with_features {
        ($features:literal: $(fn $name:ident $(<const $signed:ident: bool>)? ($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block)*) => {
            $(
                #[inline(always)]
                fn $name $(<const $signed: bool>)? (self, $($arg: $ty),*) $(-> $ret)? {
                    #[inline]
                    #[target_feature(enable = $features)]
                    fn with_features $(<const $signed: bool>)? ($($arg: $ty),*) $(-> $ret)? $body
                    // SAFETY: `self` was made where the CPU has these features.
                    unsafe { with_features $(::<$signed>)? ($($arg),*) }
                }
            )*
        };
    }

    /// The first `LEN` elements.
    fn first<T, const LEN: usize>(x: &[T]) -> &[T; LEN] {
        x.first_chunk().expect("a value for each lane")
    }

    /// The first `LEN` elements.
    fn first_mut<T, const LEN: usize>(x: &mut [T]) -> &mut [T; LEN] {
        x.first_chunk_mut().expect("a place for each lane")
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_16(x: &[u8; 16]) -> __m128i {
        // SAFETY: sixteen readable bytes; the load takes any alignment.
        unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store_16(y: &mut [u8; 16], x: __m128i) {
        // SAFETY: sixteen writable bytes; the store takes any alignment.
        unsafe { _mm_storeu_si128(y.as_mut_ptr().cast(), x) };
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn widen<const SIGNED: bool>(x: __m128i) -> __m256i {
        if SIGNED { _mm256_cvtepi8_epi16(x) } else { _mm256_cvtepu8_epi16(x) }
    }

    impl Lanes for Avx2 {
        type I = [__m256i; 2];
        type F = [__m256; 2];

        with_features! { "avx2,fma":
            fn splat(x: i32) -> [__m256i; 2] {
                [_mm256_set1_epi32(x); 2]
            }
            fn load(x: &[i32]) -> [__m256i; 2] {
                let x: &[i32; N] = first(x);
                [0, 8].map(|at| {
                    let half: &[i32; 8] = first(&x[at..]);
                    // SAFETY: a register's width of readable bytes; the load takes any alignment.
                    unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
                })
            }
            fn load_pairs(x: &[i8; 4 * N]) -> [[__m256i; 2]; 2] {
                let x = [0, 32].map(|at| {
                    let half: &[i8; 32] = first(&x[at..]);
                    // SAFETY: a register's width of readable bytes; the load takes any alignment.
                    unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
                });
                let even = x.map(|x| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)));
                [even, x.map(|x| _mm256_srai_epi16::<8>(x))]
            }
            fn zip<const SIGNED: bool>(a: &[u8; N], b: &[u8; N]) -> [__m256i; 2] {
                let (a, b) = (load_16(a), load_16(b));
                [widen::<SIGNED>(_mm_unpacklo_epi8(a, b)), widen::<SIGNED>(_mm_unpackhi_epi8(a, b))]
            }
            fn load_bytes<const SIGNED: bool>(x: &[u8]) -> [__m256i; 2] {
                let x = load_16(first(x));
                [x, _mm_srli_si128::<8>(x)].map(|half| {
                    if SIGNED { _mm256_cvtepi8_epi32(half) } else { _mm256_cvtepu8_epi32(half) }
                })
            }
            fn dot(acc: [__m256i; 2], a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
                let low = _mm256_add_epi32(acc[0], _mm256_madd_epi16(a[0], b[0]));
                [low, _mm256_add_epi32(acc[1], _mm256_madd_epi16(a[1], b[1]))]
            }
            fn add(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
                [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])]
            }
            fn sub(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
                [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])]
            }
            fn to_f32(x: [__m256i; 2]) -> [__m256; 2] {
                [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])]
            }
            fn splat_f32(x: f32) -> [__m256; 2] {
                [_mm256_set1_ps(x); 2]
            }
            fn load_f32(x: &[f32]) -> [__m256; 2] {
                let x: &[f32; N] = first(x);
                [0, 8].map(|at| {
                    let half: &[f32; 8] = first(&x[at..]);
                    // SAFETY: a register's width of readable bytes; the load takes any alignment.
                    unsafe { _mm256_loadu_ps(half.as_ptr()) }
                })
            }
            fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
                [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
            }
            fn add_f32(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
                [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
            }
            fn mul_add(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
                [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
            }
            fn clamp(x: [__m256; 2], lo: [__m256; 2], hi: [__m256; 2]) -> [__m256; 2] {
                let low = _mm256_min_ps(_mm256_max_ps(x[0], lo[0]), hi[0]);
                [low, _mm256_min_ps(_mm256_max_ps(x[1], lo[1]), hi[1])]
            }
            fn round(x: [__m256; 2]) -> [__m256i; 2] {
                // The rounding mode is the nearest even one, which Rust programs leave alone.
                [_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1])]
            }
            fn store_f32(y: &mut [f32], x: [__m256; 2]) {
                let y: &mut [f32; N] = first_mut(y);
                for (half, x) in y.chunks_exact_mut(8).zip(x) {
                    let half: &mut [f32; 8] = first_mut(half);
                    // SAFETY: a register's width of writable bytes; the store takes any alignment.
                    unsafe { _mm256_storeu_ps(half.as_mut_ptr(), x) };
                }
            }
            fn store(y: &mut [i32; N], x: [__m256i; 2]) {
                for (half, x) in y.as_chunks_mut::<8>().0.iter_mut().zip(x) {
                    // SAFETY: a register's width of writable bytes; the store takes any alignment.
                    unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), x) };
                }
            }
            fn store_bytes(y: &mut [u8], x: [__m256i; 2]) {
                // In each half of the register: four of the first eight lanes, then four of the last.
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(x[0], x[1]));
                let words = _mm256_and_si256(words, _mm256_set1_epi16(0xFF));
                let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                store_16(first_mut(y), _mm_packus_epi16(low, high));
            }
        }
    }

    impl Lanes for Avx512 {
        type I = __m512i;
        type F = __m512;

        with_features! { "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl":
            fn splat(x: i32) -> __m512i {
                _mm512_set1_epi32(x)
            }
            fn load(x: &[i32]) -> __m512i {
                let x: &[i32; N] = first(x);
                // SAFETY: a register's width of readable bytes; the load takes any alignment.
                unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
            }
            fn load_pairs(x: &[i8; 4 * N]) -> [__m512i; 2] {
                // SAFETY: a register's width of readable bytes; the load takes any alignment.
                let x = unsafe { _mm512_loadu_si512(x.as_ptr().cast()) };
                [_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x)), _mm512_srai_epi16::<8>(x)]
            }
            fn zip<const SIGNED: bool>(a: &[u8; N], b: &[u8; N]) -> __m512i {
                let (a, b) = (load_16(a), load_16(b));
                let zipped = _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b));
                if SIGNED { _mm512_cvtepi8_epi16(zipped) } else { _mm512_cvtepu8_epi16(zipped) }
            }
            fn load_bytes<const SIGNED: bool>(x: &[u8]) -> __m512i {
                let x = load_16(first(x));
                if SIGNED { _mm512_cvtepi8_epi32(x) } else { _mm512_cvtepu8_epi32(x) }
            }
            fn dot(acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
                _mm512_add_epi32(acc, _mm512_madd_epi16(a, b))
            }
            fn add(a: __m512i, b: __m512i) -> __m512i {
                _mm512_add_epi32(a, b)
            }
            fn sub(a: __m512i, b: __m512i) -> __m512i {
                _mm512_sub_epi32(a, b)
            }
            fn to_f32(x: __m512i) -> __m512 {
                _mm512_cvtepi32_ps(x)
            }
            fn splat_f32(x: f32) -> __m512 {
                _mm512_set1_ps(x)
            }
            fn load_f32(x: &[f32]) -> __m512 {
                let x: &[f32; N] = first(x);
                // SAFETY: a register's width of readable bytes; the load takes any alignment.
                unsafe { _mm512_loadu_ps(x.as_ptr()) }
            }
            fn mul(a: __m512, b: __m512) -> __m512 {
                _mm512_mul_ps(a, b)
            }
            fn add_f32(a: __m512, b: __m512) -> __m512 {
                _mm512_add_ps(a, b)
            }
            fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
                _mm512_fmadd_ps(a, b, c)
            }
            fn clamp(x: __m512, lo: __m512, hi: __m512) -> __m512 {
                _mm512_min_ps(_mm512_max_ps(x, lo), hi)
            }
            fn round(x: __m512) -> __m512i {
                // The rounding mode is the nearest even one, which Rust programs leave alone.
                _mm512_cvtps_epi32(x)
            }
            fn store_f32(y: &mut [f32], x: __m512) {
                let y: &mut [f32; N] = first_mut(y);
                // SAFETY: a register's width of writable bytes; the store takes any alignment.
                unsafe { _mm512_storeu_ps(y.as_mut_ptr(), x) };
            }
            fn store(y: &mut [i32; N], x: __m512i) {
                // SAFETY: a register's width of writable bytes; the store takes any alignment.
                unsafe { _mm512_storeu_si512(y.as_mut_ptr().cast(), x) };
            }
            fn store_bytes(y: &mut [u8], x: __m512i) {
                store_16(first_mut(y), _mm512_cvtepi32_epi8(x));
            }
        }
    }
}
