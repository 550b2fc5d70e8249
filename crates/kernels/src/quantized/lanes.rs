//! Lanes of `i32` and `f32`, so that an integer kernel is written once for every instruction set. As
//! [`crate::simd::Simd`], whose token is the proof that the CPU has the instructions.

/// `N` lanes and what can be done to all of them at once.
pub(super) trait Lanes: Copy {
    /// A register of `i32`, or of pairs of `i16`.
    type I: Copy;
    /// A register of `f32`.
    type F: Copy;
    const N: usize;

    fn splat(self, x: i32) -> Self::I;
    fn load(self, x: &[i32]) -> Self::I;
    /// `2 * N` bytes, sign-extended: each lane two `i16`.
    fn load_pairs(self, x: &[i8]) -> Self::I;
    /// Each lane the `i16` of a byte of `a`, and in its upper half that of `b`.
    fn zip<const SIGNED: bool>(self, a: &[u8], b: &[u8]) -> Self::I;
    /// Each lane a byte.
    fn load_bytes<const SIGNED: bool>(self, x: &[u8]) -> Self::I;
    /// In each lane, `acc` plus the two products of the pairs, wrapping.
    fn dot(self, acc: Self::I, a: Self::I, b: Self::I) -> Self::I;
    fn add(self, a: Self::I, b: Self::I) -> Self::I;
    fn to_f32(self, x: Self::I) -> Self::F;
    fn splat_f32(self, x: f32) -> Self::F;
    fn load_f32(self, x: &[f32]) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn add_f32(self, a: Self::F, b: Self::F) -> Self::F;
    /// `min(max(x, lo), hi)` of numbers.
    fn clamp(self, x: Self::F, lo: Self::F, hi: Self::F) -> Self::F;
    /// To the nearest integer, ties to even; `|x|` is below 2^31.
    fn round(self, x: Self::F) -> Self::I;
    fn store_f32(self, y: &mut [f32], x: Self::F);
    /// The lowest byte of each lane.
    fn store_bytes(self, y: &mut [u8], x: Self::I);
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

impl Lanes for Scalar {
    type I = [i32; 8];
    type F = [f32; 8];
    const N: usize = 8;

    #[inline(always)]
    fn splat(self, x: i32) -> [i32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn load(self, x: &[i32]) -> [i32; 8] {
        *x.first_chunk().expect("eight lanes")
    }
    #[inline(always)]
    fn load_pairs(self, x: &[i8]) -> [i32; 8] {
        let x: &[i8; 16] = x.first_chunk().expect("sixteen bytes");
        std::array::from_fn(|i| pair(i16::from(x[2 * i]), i16::from(x[2 * i + 1])))
    }
    #[inline(always)]
    fn zip<const SIGNED: bool>(self, a: &[u8], b: &[u8]) -> [i32; 8] {
        let (a, b) = (self.load_bytes::<SIGNED>(a), self.load_bytes::<SIGNED>(b));
        std::array::from_fn(|i| pair(a[i] as i16, b[i] as i16))
    }
    #[inline(always)]
    fn load_bytes<const SIGNED: bool>(self, x: &[u8]) -> [i32; 8] {
        let x: &[u8; 8] = x.first_chunk().expect("eight bytes");
        x.map(|byte| super::code(byte, SIGNED))
    }
    #[inline(always)]
    fn dot(self, acc: [i32; 8], a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        std::array::from_fn(|i| {
            let low = i32::from(a[i] as i16) * i32::from(b[i] as i16);
            acc[i].wrapping_add(low).wrapping_add((a[i] >> 16) * (b[i] >> 16))
        })
    }
    #[inline(always)]
    fn add(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn to_f32(self, x: [i32; 8]) -> [f32; 8] {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    fn splat_f32(self, x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn load_f32(self, x: &[f32]) -> [f32; 8] {
        *x.first_chunk().expect("eight lanes")
    }
    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn add_f32(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn clamp(self, x: [f32; 8], lo: [f32; 8], hi: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| {
            let x = if x[i] > lo[i] { x[i] } else { lo[i] };
            if x < hi[i] { x } else { hi[i] }
        })
    }
    #[inline(always)]
    fn round(self, x: [f32; 8]) -> [i32; 8] {
        x.map(|x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    fn store_f32(self, y: &mut [f32], x: [f32; 8]) {
        *y.first_chunk_mut().expect("eight lanes") = x;
    }
    #[inline(always)]
    fn store_bytes(self, y: &mut [u8], x: [i32; 8]) {
        *y.first_chunk_mut().expect("eight bytes") = x.map(|x| x as u8);
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

    use super::Lanes;

    /// What is the same for every width but for the names. Every method's body runs where `new` was called, which
    /// needs the instructions; pointers come from slices that are as long as a register.
    macro_rules! x86_lanes {
        ($name:ident, $features:literal, $i:ty, $f:ty, $n:literal,
         $splat:ident $load:ident $widen:ident $madd:ident $add:ident $to_f32:ident
         $splat_f32:ident $load_f32:ident $mul:ident $add_f32:ident $min:ident $max:ident $round:ident $store_f32:ident) => {
            #[derive(Clone, Copy)]
            pub(in super::super) struct $name(());

            impl $name {
                #[inline]
                #[target_feature(enable = $features)]
                pub(in super::super) fn new() -> Self {
                    Self(())
                }
            }

            impl Lanes for $name {
                type I = $i;
                type F = $f;
                const N: usize = $n;

                #[inline(always)]
                fn splat(self, x: i32) -> $i {
                    // SAFETY: `self` was made where the CPU has these instructions.
                    unsafe { $splat(x) }
                }
                #[inline(always)]
                fn load(self, x: &[i32]) -> $i {
                    let x: &[i32; $n] = x.first_chunk().expect("a register's lanes");
                    // SAFETY: `x` is a register's width of readable bytes; and as above.
                    unsafe { $load(x.as_ptr().cast()) }
                }
                #[inline(always)]
                fn load_pairs(self, x: &[i8]) -> $i {
                    let x: &[i8; 2 * $n] = x.first_chunk().expect("two bytes a lane");
                    // SAFETY: `x` is half a register's width of readable bytes; and as above.
                    unsafe { $widen::<true>(x.as_ptr().cast()) }
                }
                #[inline(always)]
                fn zip<const SIGNED: bool>(self, a: &[u8], b: &[u8]) -> $i {
                    let a: &[u8; $n] = a.first_chunk().expect("a byte a lane");
                    let b: &[u8; $n] = b.first_chunk().expect("a byte a lane");
                    // SAFETY: a byte a lane is readable at either; and as above.
                    unsafe { Self::zip_at::<SIGNED>(a.as_ptr(), b.as_ptr()) }
                }
                #[inline(always)]
                fn load_bytes<const SIGNED: bool>(self, x: &[u8]) -> $i {
                    let x: &[u8; $n] = x.first_chunk().expect("a byte a lane");
                    // SAFETY: `x` is a byte a lane of readable bytes; and as above.
                    unsafe { Self::bytes_at::<SIGNED>(x.as_ptr()) }
                }
                #[inline(always)]
                fn dot(self, acc: $i, a: $i, b: $i) -> $i {
                    // SAFETY: as above.
                    unsafe { $add(acc, $madd(a, b)) }
                }
                #[inline(always)]
                fn add(self, a: $i, b: $i) -> $i {
                    // SAFETY: as above.
                    unsafe { $add(a, b) }
                }
                #[inline(always)]
                fn to_f32(self, x: $i) -> $f {
                    // SAFETY: as above.
                    unsafe { $to_f32(x) }
                }
                #[inline(always)]
                fn splat_f32(self, x: f32) -> $f {
                    // SAFETY: as above.
                    unsafe { $splat_f32(x) }
                }
                #[inline(always)]
                fn load_f32(self, x: &[f32]) -> $f {
                    let x: &[f32; $n] = x.first_chunk().expect("a register's lanes");
                    // SAFETY: `x` is a register's width of readable bytes; and as above.
                    unsafe { $load_f32(x.as_ptr()) }
                }
                #[inline(always)]
                fn mul(self, a: $f, b: $f) -> $f {
                    // SAFETY: as above.
                    unsafe { $mul(a, b) }
                }
                #[inline(always)]
                fn add_f32(self, a: $f, b: $f) -> $f {
                    // SAFETY: as above.
                    unsafe { $add_f32(a, b) }
                }
                #[inline(always)]
                fn clamp(self, x: $f, lo: $f, hi: $f) -> $f {
                    // SAFETY: as above.
                    unsafe { $min($max(x, lo), hi) }
                }
                #[inline(always)]
                fn round(self, x: $f) -> $i {
                    // SAFETY: as above. The rounding mode is the nearest even one, which Rust programs leave alone.
                    unsafe { $round(x) }
                }
                #[inline(always)]
                fn store_f32(self, y: &mut [f32], x: $f) {
                    let y: &mut [f32; $n] = y.first_chunk_mut().expect("a register's lanes");
                    // SAFETY: `y` is a register's width of writable bytes; and as above.
                    unsafe { $store_f32(y.as_mut_ptr(), x) }
                }
                #[inline(always)]
                fn store_bytes(self, y: &mut [u8], x: $i) {
                    let y: &mut [u8; $n] = y.first_chunk_mut().expect("a byte a lane");
                    // SAFETY: `y` is a byte a lane of writable bytes; and as above.
                    unsafe { Self::bytes_to(y.as_mut_ptr(), x) }
                }
            }
        };
    }

    x86_lanes!(
        Avx2, "avx2,fma", __m256i, __m256, 8,
        _mm256_set1_epi32 _mm256_loadu_si256 widen_256 _mm256_madd_epi16 _mm256_add_epi32 _mm256_cvtepi32_ps
        _mm256_set1_ps _mm256_loadu_ps _mm256_mul_ps _mm256_add_ps _mm256_min_ps _mm256_max_ps _mm256_cvtps_epi32
        _mm256_storeu_ps
    );
    x86_lanes!(
        Avx512, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl", __m512i, __m512, 16,
        _mm512_set1_epi32 _mm512_loadu_si512 widen_512 _mm512_madd_epi16 _mm512_add_epi32 _mm512_cvtepi32_ps
        _mm512_set1_ps _mm512_loadu_ps _mm512_mul_ps _mm512_add_ps _mm512_min_ps _mm512_max_ps _mm512_cvtps_epi32
        _mm512_storeu_ps
    );

    /// # Safety
    ///
    /// 16 readable bytes at `x`.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn widen_256<const SIGNED: bool>(x: *const __m128i) -> __m256i {
        // SAFETY: the caller's promise; the load takes any alignment.
        let x = unsafe { _mm_loadu_si128(x) };
        if SIGNED { _mm256_cvtepi8_epi16(x) } else { _mm256_cvtepu8_epi16(x) }
    }

    /// # Safety
    ///
    /// 32 readable bytes at `x`.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw")]
    unsafe fn widen_512<const SIGNED: bool>(x: *const __m256i) -> __m512i {
        // SAFETY: the caller's promise; the load takes any alignment.
        let x = unsafe { _mm256_loadu_si256(x) };
        if SIGNED { _mm512_cvtepi8_epi16(x) } else { _mm512_cvtepu8_epi16(x) }
    }

    impl Avx2 {
        /// # Safety
        ///
        /// 8 readable bytes at `a` and at `b`.
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn zip_at<const SIGNED: bool>(a: *const u8, b: *const u8) -> __m256i {
            // SAFETY: the caller's promise; the load takes any alignment.
            let a = unsafe { _mm_loadl_epi64(a.cast()) };
            // SAFETY: as above.
            let b = unsafe { _mm_loadl_epi64(b.cast()) };
            let zipped = _mm_unpacklo_epi8(a, b);
            if SIGNED { _mm256_cvtepi8_epi16(zipped) } else { _mm256_cvtepu8_epi16(zipped) }
        }

        /// # Safety
        ///
        /// 8 readable bytes at `x`.
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn bytes_at<const SIGNED: bool>(x: *const u8) -> __m256i {
            // SAFETY: the caller's promise; the load takes any alignment.
            let x = unsafe { _mm_loadl_epi64(x.cast()) };
            if SIGNED { _mm256_cvtepi8_epi32(x) } else { _mm256_cvtepu8_epi32(x) }
        }

        /// # Safety
        ///
        /// 8 writable bytes at `y`.
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn bytes_to(y: *mut u8, x: __m256i) {
            let x = _mm256_and_si256(x, _mm256_set1_epi32(0xFF));
            let half = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let bytes = _mm_packus_epi16(half, half);
            // SAFETY: the caller's promise; the store takes any alignment.
            unsafe { _mm_storel_epi64(y.cast(), bytes) };
        }
    }

    impl Avx512 {
        /// # Safety
        ///
        /// 16 readable bytes at `a` and at `b`.
        #[inline]
        #[target_feature(enable = "avx2,avx512f,avx512bw")]
        unsafe fn zip_at<const SIGNED: bool>(a: *const u8, b: *const u8) -> __m512i {
            // SAFETY: the caller's promise; the load takes any alignment.
            let a = unsafe { _mm_loadu_si128(a.cast()) };
            // SAFETY: as above.
            let b = unsafe { _mm_loadu_si128(b.cast()) };
            let zipped = _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b));
            if SIGNED { _mm512_cvtepi8_epi16(zipped) } else { _mm512_cvtepu8_epi16(zipped) }
        }

        /// # Safety
        ///
        /// 16 readable bytes at `x`.
        #[inline]
        #[target_feature(enable = "avx2,avx512f")]
        unsafe fn bytes_at<const SIGNED: bool>(x: *const u8) -> __m512i {
            // SAFETY: the caller's promise; the load takes any alignment.
            let x = unsafe { _mm_loadu_si128(x.cast()) };
            if SIGNED { _mm512_cvtepi8_epi32(x) } else { _mm512_cvtepu8_epi32(x) }
        }

        /// # Safety
        ///
        /// 16 writable bytes at `y`.
        #[inline]
        #[target_feature(enable = "avx2,avx512f")]
        unsafe fn bytes_to(y: *mut u8, x: __m512i) {
            let bytes = _mm512_cvtepi32_epi8(x);
            // SAFETY: the caller's promise; the store takes any alignment.
            unsafe { _mm_storeu_si128(y.cast(), bytes) };
        }
    }
}
