//! Vectors of `f32` lanes, so that a float kernel is written once for every instruction set.
//!
//! A kernel is an `#[inline(always)]` function generic over [`Simd`]; each instruction set's wrapper is a
//! `#[target_feature]` function that makes the token and calls it, and the kernel is then compiled with that
//! wrapper's instructions. The token is the proof that the CPU has them: outside tests of the list it can only be
//! made inside such a function.
//!
//! Every operation rounds once, as IEEE 754 says, and [`Simd::fma`] once for both of its steps, so that the same
//! kernel gives the same bits whatever the width.

/// Lanes of `f32` and what can be done to all of them at once.
pub(crate) trait Simd: Copy {
    /// A register.
    type V: Copy;
    /// Lanes in a register.
    const N: usize;
    /// Whether a kernel gains from more sums at once than one register holds.
    const HAS_LATENCY: bool = true;

    fn splat(self, x: f32) -> Self::V;
    /// The first `N` elements of `x`. Panics when there are fewer.
    fn load(self, x: &[f32]) -> Self::V;
    /// Elements `start..start + N` of `x`.
    ///
    /// # Safety
    ///
    /// `start + N <= x.len()`.
    unsafe fn load_at(self, x: &[f32], start: usize) -> Self::V;
    /// Elements 0, 2, ..., `2 * N - 2` of `x`. Panics when there are fewer than `2 * N`.
    fn load_even(self, x: &[f32]) -> Self::V;
    /// Writes the first `N` elements of `y`. Panics when there are fewer.
    fn store(self, y: &mut [f32], v: Self::V);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `if a < b { a } else { b }`: `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`: `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Simd for Scalar {
    type V = [f32; 8];
    const N: usize = 8;
    const HAS_LATENCY: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> [f32; 8] {
        *x.first_chunk().expect("eight elements")
    }
    #[inline(always)]
    unsafe fn load_at(self, x: &[f32], start: usize) -> [f32; 8] {
        self.load(&x[start..])
    }
    #[inline(always)]
    fn load_even(self, x: &[f32]) -> [f32; 8] {
        let x: &[f32; 16] = x.first_chunk().expect("sixteen elements");
        std::array::from_fn(|i| x[2 * i])
    }
    #[inline(always)]
    fn store(self, y: &mut [f32], v: [f32; 8]) {
        *y.first_chunk_mut().expect("eight elements") = v;
    }
    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn fma(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn min(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn max(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::*;

    use super::Simd;

    macro_rules! x86_simd {
        ($(#[$doc:meta])* $name:ident, $features:literal, $v:ty, $n:literal,
         $splat:ident $load:ident $store:ident $add:ident $mul:ident $fma:ident $min:ident $max:ident, $even:ident) => {
            $(#[$doc])*
            #[derive(Clone, Copy)]
            pub(crate) struct $name(());

            impl $name {
                #[inline]
                #[target_feature(enable = $features)]
                pub(crate) fn new() -> Self {
                    Self(())
                }
            }

            impl Simd for $name {
                type V = $v;
                const N: usize = $n;

                #[inline(always)]
                fn splat(self, x: f32) -> $v {
                    // SAFETY: `self` was made where the CPU has these instructions.
                    unsafe { $splat(x) }
                }
                #[inline(always)]
                fn load(self, x: &[f32]) -> $v {
                    let x: &[f32; $n] = x.first_chunk().expect("a register's elements");
                    // SAFETY: `x` is a register's width of readable bytes, the load takes any alignment, and
                    // `self` was made where the CPU has these instructions.
                    unsafe { $load(x.as_ptr()) }
                }
                #[inline(always)]
                unsafe fn load_at(self, x: &[f32], start: usize) -> $v {
                    debug_assert!(start + $n <= x.len());
                    // SAFETY: the caller promises that a register's elements start there.
                    let first = unsafe { x.as_ptr().add(start) };
                    // SAFETY: they are readable, the load takes any alignment, and `self` was made where the CPU has
                    // these instructions.
                    unsafe { $load(first) }
                }
                #[inline(always)]
                fn load_even(self, x: &[f32]) -> $v {
                    let x: &[f32; 2 * $n] = x.first_chunk().expect("two registers' elements");
                    // SAFETY: `self` was made where the CPU has these instructions.
                    unsafe { $even(self.load(x), self.load(&x[$n..])) }
                }
                #[inline(always)]
                fn store(self, y: &mut [f32], v: $v) {
                    let y: &mut [f32; $n] = y.first_chunk_mut().expect("a register's elements");
                    // SAFETY: `y` is a register's width of writable bytes, the store takes any alignment, and
                    // `self` was made where the CPU has these instructions.
                    unsafe { $store(y.as_mut_ptr(), v) }
                }
                #[inline(always)]
                fn add(self, a: $v, b: $v) -> $v {
                    // SAFETY: `self` was made where the CPU has these instructions.
                    unsafe { $add(a, b) }
                }
                #[inline(always)]
                fn mul(self, a: $v, b: $v) -> $v {
                    // SAFETY: `self` was made where the CPU has these instructions.
                    unsafe { $mul(a, b) }
                }
                #[inline(always)]
                fn fma(self, a: $v, b: $v, c: $v) -> $v {
                    // SAFETY: `self` was made where the CPU has these instructions.
                    unsafe { $fma(a, b, c) }
                }
                #[inline(always)]
                fn min(self, a: $v, b: $v) -> $v {
                    // SAFETY: `self` was made where the CPU has these instructions.
                    unsafe { $min(a, b) }
                }
                #[inline(always)]
                fn max(self, a: $v, b: $v) -> $v {
                    // SAFETY: `self` was made where the CPU has these instructions.
                    unsafe { $max(a, b) }
                }
            }
        };
    }

    /// The even elements of `a` and then of `b`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn even_256(a: __m256, b: __m256) -> __m256 {
        // Within each half, two of `a` and two of `b`; then the quarters in order.
        let mixed = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
        _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(mixed))
    }

    /// The even elements of `a` and then of `b`.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    fn even_512(a: __m512, b: __m512) -> __m512 {
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        _mm512_permutex2var_ps(a, even, b)
    }

    x86_simd!(
        /// AVX2 with FMA.
        Avx2, "avx2,fma", __m256, 8,
        _mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps _mm256_add_ps _mm256_mul_ps _mm256_fmadd_ps
        _mm256_min_ps _mm256_max_ps, even_256
    );
    x86_simd!(
        /// AVX-512 F, BW, DQ and VL.
        Avx512, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl", __m512, 16,
        _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps _mm512_add_ps _mm512_mul_ps _mm512_fmadd_ps
        _mm512_min_ps _mm512_max_ps, even_512
    );
}
