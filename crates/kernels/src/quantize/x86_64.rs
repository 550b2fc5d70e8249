//! AVX2 and AVX-512.
//!
//! Three facts that every function here rests on. MAXPS and MINPS return their second operand when
//! one is NaN, so `max(v, lo)` turns NaN into the smallest code. CVTPS2DQ rounds to nearest even
//! and sends every out-of-range float, large ones too, to `i32::MIN`, so the clamp comes before it;
//! the bounds are integers, so that changes no rounding. After clamp and conversion a code is in
//! its type's range, so narrowing it loses nothing.

pub(super) mod avx2 {
    use std::arch::x86_64::*;

    use midtread_num::{QParams, QRange, requant};

    /// What turns a quotient into a code.
    #[derive(Clone, Copy)]
    struct Rounder {
        lo: __m256,
        hi: __m256,
        zero_point: __m256i,
    }

    impl Rounder {
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn new(zero_point: i32, range: QRange) -> Self {
            Self {
                lo: _mm256_set1_ps((range.qmin() - zero_point) as f32),
                hi: _mm256_set1_ps((range.qmax() - zero_point) as f32),
                zero_point: _mm256_set1_epi32(zero_point),
            }
        }

        /// The clamped and rounded quotient, without the zero point.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn steps(self, v: __m256) -> __m256i {
            _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, self.lo), self.hi))
        }

        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn code(self, v: __m256) -> __m256i {
            _mm256_add_epi32(self.steps(v), self.zero_point)
        }
    }

    macro_rules! quantize {
        ($f:ident, $ty:ty, $store:ident) => {
            #[target_feature(enable = "avx2,fma")]
            pub(crate) fn $f(src: &[f32], dst: &mut [$ty], params: QParams, range: QRange) {
                let (src_tiles, src_tail) = src.as_chunks::<32>();
                let (dst_tiles, dst_tail) = dst.as_chunks_mut::<32>();
                let scale = _mm256_set1_ps(params.scale());
                let rounder = Rounder::new(params.zero_point(), range);
                for (x, q) in src_tiles.iter().zip(dst_tiles) {
                    let [x0, x1, x2, x3] = load_f32(x);
                    let a = rounder.code(_mm256_div_ps(x0, scale));
                    let b = rounder.code(_mm256_div_ps(x1, scale));
                    let c = rounder.code(_mm256_div_ps(x2, scale));
                    let d = rounder.code(_mm256_div_ps(x3, scale));
                    $store(q, a, b, c, d);
                }
                for (x, q) in src_tail.iter().zip(dst_tail) {
                    *q = params.quantize(*x, range) as $ty;
                }
            }
        };
    }

    quantize!(quantize_u8, u8, store_u8);
    quantize!(quantize_i8, i8, store_i8);
    quantize!(quantize_u16, u16, store_u16);
    quantize!(quantize_i16, i16, store_i16);

    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn fake_quantize(src: &[f32], dst: &mut [f32], params: QParams, range: QRange) {
        let (src_tiles, src_tail) = src.as_chunks::<8>();
        let (dst_tiles, dst_tail) = dst.as_chunks_mut::<8>();
        let scale = _mm256_set1_ps(params.scale());
        let rounder = Rounder::new(params.zero_point(), range);
        for (x, y) in src_tiles.iter().zip(dst_tiles) {
            // Through integers: a quotient rounded in `f32` could be -0.0, and `q - zero_point` cannot.
            let steps = rounder.steps(_mm256_div_ps(load8_f32(x), scale));
            store8_f32(y, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(steps)));
        }
        for (x, y) in src_tail.iter().zip(dst_tail) {
            *y = params.fake_quantize(*x, range);
        }
    }

    macro_rules! requantize {
        ($f:ident, $channels:ident, $ty:ty, $store:ident) => {
            #[target_feature(enable = "avx2,fma")]
            pub(crate) fn $f(
                acc: &[i32],
                dst: &mut [$ty],
                multiplier: f32,
                zero_point: i32,
                range: QRange,
            ) {
                let (acc_tiles, acc_tail) = acc.as_chunks::<32>();
                let (dst_tiles, dst_tail) = dst.as_chunks_mut::<32>();
                let m = _mm256_set1_ps(multiplier);
                let rounder = Rounder::new(zero_point, range);
                for (acc, q) in acc_tiles.iter().zip(dst_tiles) {
                    let [x0, x1, x2, x3] = load_i32(acc);
                    let a = rounder.code(_mm256_mul_ps(_mm256_cvtepi32_ps(x0), m));
                    let b = rounder.code(_mm256_mul_ps(_mm256_cvtepi32_ps(x1), m));
                    let c = rounder.code(_mm256_mul_ps(_mm256_cvtepi32_ps(x2), m));
                    let d = rounder.code(_mm256_mul_ps(_mm256_cvtepi32_ps(x3), m));
                    $store(q, a, b, c, d);
                }
                for (acc, q) in acc_tail.iter().zip(dst_tail) {
                    *q = requant::requantize(*acc, multiplier, zero_point, range) as $ty;
                }
            }

            #[target_feature(enable = "avx2,fma")]
            pub(crate) fn $channels(
                acc: &[i32],
                dst: &mut [$ty],
                multipliers: &[f32],
                zero_point: i32,
                range: QRange,
            ) {
                let (acc_tiles, acc_tail) = acc.as_chunks::<32>();
                let (dst_tiles, dst_tail) = dst.as_chunks_mut::<32>();
                let (multiplier_tiles, multiplier_tail) = multipliers.as_chunks::<32>();
                let rounder = Rounder::new(zero_point, range);
                for ((acc, m), q) in acc_tiles.iter().zip(multiplier_tiles).zip(dst_tiles) {
                    let [x0, x1, x2, x3] = load_i32(acc);
                    let [m0, m1, m2, m3] = load_f32(m);
                    let a = rounder.code(_mm256_mul_ps(_mm256_cvtepi32_ps(x0), m0));
                    let b = rounder.code(_mm256_mul_ps(_mm256_cvtepi32_ps(x1), m1));
                    let c = rounder.code(_mm256_mul_ps(_mm256_cvtepi32_ps(x2), m2));
                    let d = rounder.code(_mm256_mul_ps(_mm256_cvtepi32_ps(x3), m3));
                    $store(q, a, b, c, d);
                }
                for ((acc, m), q) in acc_tail.iter().zip(multiplier_tail).zip(dst_tail) {
                    *q = requant::requantize(*acc, *m, zero_point, range) as $ty;
                }
            }
        };
    }

    requantize!(requantize_u8, requantize_channels_u8, u8, store_u8);
    requantize!(requantize_i8, requantize_channels_i8, i8, store_i8);

    // The packs work in 128-bit halves; the permutations put the result back in order.

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn store_u8(q: &mut [u8; 32], a: __m256i, b: __m256i, c: __m256i, d: __m256i) {
        let packed = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        let ordered =
            _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        // SAFETY: `q` is 32 writable bytes, and `storeu` takes any alignment.
        unsafe { _mm256_storeu_si256(q.as_mut_ptr().cast(), ordered) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn store_i8(q: &mut [i8; 32], a: __m256i, b: __m256i, c: __m256i, d: __m256i) {
        let packed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        let ordered =
            _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        // SAFETY: `q` is 32 writable bytes, and `storeu` takes any alignment.
        unsafe { _mm256_storeu_si256(q.as_mut_ptr().cast(), ordered) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn store_u16(q: &mut [u16; 32], a: __m256i, b: __m256i, c: __m256i, d: __m256i) {
        let halves = q.as_chunks_mut::<16>().0;
        for (half, packed) in
            halves.iter_mut().zip([_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d)])
        {
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            // SAFETY: `half` is 32 writable bytes, and `storeu` takes any alignment.
            unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), ordered) }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn store_i16(q: &mut [i16; 32], a: __m256i, b: __m256i, c: __m256i, d: __m256i) {
        let halves = q.as_chunks_mut::<16>().0;
        for (half, packed) in
            halves.iter_mut().zip([_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d)])
        {
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            // SAFETY: `half` is 32 writable bytes, and `storeu` takes any alignment.
            unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), ordered) }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn load_f32(x: &[f32; 32]) -> [__m256; 4] {
        let x = x.as_chunks::<8>().0;
        [load8_f32(&x[0]), load8_f32(&x[1]), load8_f32(&x[2]), load8_f32(&x[3])]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn load_i32(x: &[i32; 32]) -> [__m256i; 4] {
        let x = x.as_chunks::<8>().0;
        [load8_i32(&x[0]), load8_i32(&x[1]), load8_i32(&x[2]), load8_i32(&x[3])]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn load8_f32(x: &[f32; 8]) -> __m256 {
        // SAFETY: `x` is 32 readable bytes, and `loadu` takes any alignment.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn load8_i32(x: &[i32; 8]) -> __m256i {
        // SAFETY: `x` is 32 readable bytes, and `loadu` takes any alignment.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn store8_f32(y: &mut [f32; 8], v: __m256) {
        // SAFETY: `y` is 32 writable bytes, and `storeu` takes any alignment.
        unsafe { _mm256_storeu_ps(y.as_mut_ptr(), v) }
    }
}

pub(super) mod avx512 {
    use std::arch::x86_64::*;

    use midtread_num::{QParams, QRange, requant};

    /// What turns a quotient into a code.
    #[derive(Clone, Copy)]
    struct Rounder {
        lo: __m512,
        hi: __m512,
        zero_point: __m512i,
    }

    impl Rounder {
        #[inline]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        fn new(zero_point: i32, range: QRange) -> Self {
            Self {
                lo: _mm512_set1_ps((range.qmin() - zero_point) as f32),
                hi: _mm512_set1_ps((range.qmax() - zero_point) as f32),
                zero_point: _mm512_set1_epi32(zero_point),
            }
        }

        /// The clamped and rounded quotient, without the zero point.
        #[inline]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        fn steps(self, v: __m512) -> __m512i {
            _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, self.lo), self.hi))
        }

        #[inline]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        fn code(self, v: __m512) -> __m512i {
            _mm512_add_epi32(self.steps(v), self.zero_point)
        }
    }

    macro_rules! quantize {
        ($f:ident, $ty:ty, $store:ident) => {
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            pub(crate) fn $f(src: &[f32], dst: &mut [$ty], params: QParams, range: QRange) {
                let (src_tiles, src_tail) = src.as_chunks::<16>();
                let (dst_tiles, dst_tail) = dst.as_chunks_mut::<16>();
                let scale = _mm512_set1_ps(params.scale());
                let rounder = Rounder::new(params.zero_point(), range);
                for (x, q) in src_tiles.iter().zip(dst_tiles) {
                    $store(q, rounder.code(_mm512_div_ps(load_f32(x), scale)));
                }
                for (x, q) in src_tail.iter().zip(dst_tail) {
                    *q = params.quantize(*x, range) as $ty;
                }
            }
        };
    }

    quantize!(quantize_u8, u8, store_u8);
    quantize!(quantize_i8, i8, store_i8);
    quantize!(quantize_u16, u16, store_u16);
    quantize!(quantize_i16, i16, store_i16);

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(crate) fn fake_quantize(src: &[f32], dst: &mut [f32], params: QParams, range: QRange) {
        let (src_tiles, src_tail) = src.as_chunks::<16>();
        let (dst_tiles, dst_tail) = dst.as_chunks_mut::<16>();
        let scale = _mm512_set1_ps(params.scale());
        let rounder = Rounder::new(params.zero_point(), range);
        for (x, y) in src_tiles.iter().zip(dst_tiles) {
            let steps = rounder.steps(_mm512_div_ps(load_f32(x), scale));
            let value = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(steps));
            // SAFETY: `y` is 64 writable bytes, and `storeu` takes any alignment.
            unsafe { _mm512_storeu_ps(y.as_mut_ptr(), value) }
        }
        for (x, y) in src_tail.iter().zip(dst_tail) {
            *y = params.fake_quantize(*x, range);
        }
    }

    macro_rules! requantize {
        ($f:ident, $channels:ident, $ty:ty, $store:ident) => {
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            pub(crate) fn $f(
                acc: &[i32],
                dst: &mut [$ty],
                multiplier: f32,
                zero_point: i32,
                range: QRange,
            ) {
                let (acc_tiles, acc_tail) = acc.as_chunks::<16>();
                let (dst_tiles, dst_tail) = dst.as_chunks_mut::<16>();
                let m = _mm512_set1_ps(multiplier);
                let rounder = Rounder::new(zero_point, range);
                for (acc, q) in acc_tiles.iter().zip(dst_tiles) {
                    $store(q, rounder.code(_mm512_mul_ps(_mm512_cvtepi32_ps(load_i32(acc)), m)));
                }
                for (acc, q) in acc_tail.iter().zip(dst_tail) {
                    *q = requant::requantize(*acc, multiplier, zero_point, range) as $ty;
                }
            }

            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            pub(crate) fn $channels(
                acc: &[i32],
                dst: &mut [$ty],
                multipliers: &[f32],
                zero_point: i32,
                range: QRange,
            ) {
                let (acc_tiles, acc_tail) = acc.as_chunks::<16>();
                let (dst_tiles, dst_tail) = dst.as_chunks_mut::<16>();
                let (multiplier_tiles, multiplier_tail) = multipliers.as_chunks::<16>();
                let rounder = Rounder::new(zero_point, range);
                for ((acc, m), q) in acc_tiles.iter().zip(multiplier_tiles).zip(dst_tiles) {
                    let product = _mm512_mul_ps(_mm512_cvtepi32_ps(load_i32(acc)), load_f32(m));
                    $store(q, rounder.code(product));
                }
                for ((acc, m), q) in acc_tail.iter().zip(multiplier_tail).zip(dst_tail) {
                    *q = requant::requantize(*acc, *m, zero_point, range) as $ty;
                }
            }
        };
    }

    requantize!(requantize_u8, requantize_channels_u8, u8, store_u8);
    requantize!(requantize_i8, requantize_channels_i8, i8, store_i8);

    // VPMOVDB and VPMOVDW keep the low bits, which are the code for signed and unsigned alike.

    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    fn store_u8(q: &mut [u8; 16], codes: __m512i) {
        let codes = _mm512_cvtepi32_epi8(codes);
        // SAFETY: `q` is 16 writable bytes, and `storeu` takes any alignment.
        unsafe { _mm_storeu_si128(q.as_mut_ptr().cast(), codes) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    fn store_i8(q: &mut [i8; 16], codes: __m512i) {
        let codes = _mm512_cvtepi32_epi8(codes);
        // SAFETY: `q` is 16 writable bytes, and `storeu` takes any alignment.
        unsafe { _mm_storeu_si128(q.as_mut_ptr().cast(), codes) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    fn store_u16(q: &mut [u16; 16], codes: __m512i) {
        let codes = _mm512_cvtepi32_epi16(codes);
        // SAFETY: `q` is 32 writable bytes, and `storeu` takes any alignment.
        unsafe { _mm256_storeu_si256(q.as_mut_ptr().cast(), codes) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    fn store_i16(q: &mut [i16; 16], codes: __m512i) {
        let codes = _mm512_cvtepi32_epi16(codes);
        // SAFETY: `q` is 32 writable bytes, and `storeu` takes any alignment.
        unsafe { _mm256_storeu_si256(q.as_mut_ptr().cast(), codes) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    fn load_f32(x: &[f32; 16]) -> __m512 {
        // SAFETY: `x` is 64 readable bytes, and `loadu` takes any alignment.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    fn load_i32(x: &[i32; 16]) -> __m512i {
        // SAFETY: `x` is 64 readable bytes, and `loadu` takes any alignment.
        unsafe { _mm512_loadu_epi32(x.as_ptr()) }
    }
}
