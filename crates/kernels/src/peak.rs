//! What the arithmetic units do at most, measured: what a share of the peak is a share of.

/// Operations a second of one thread, a multiplication and an addition being two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Products of 8-bit codes, summed in 32 bits.
    pub int8: f64,
    /// Products of `f32`.
    pub float: f64,
}

/// Measures for a few milliseconds, in registers alone, with the widest instructions that this CPU has for it. `None`
/// where this does not know any.
pub fn measure() -> Option<Peak> {
    #[cfg(target_arch = "x86_64")]
    return x86_64::measure();
    #[cfg(not(target_arch = "x86_64"))]
    None
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::{arch::x86_64::*, hint::black_box, time::Instant};

    use super::Peak;
    use crate::variant::{has_avx2, has_avx512};

    /// Sums that do not wait for each other: more than an instruction's latency times how many start in a cycle.
    const N: usize = 12;

    /// A loop that runs its body so often, and the operations of one body.
    type Loop = (fn(usize) -> i32, usize);

    pub(super) fn measure() -> Option<Peak> {
        if !has_avx2() {
            return None;
        }
        let has_vnni = has_avx512() && is_x86_feature_detected!("avx512vnni");
        let int8: Loop = match (has_vnni, has_avx512()) {
            // SAFETY: the CPU has been asked for these instructions.
            (true, _) => (|n| unsafe { vnni_512(n) }, N * 64 * 2),
            // SAFETY: as above.
            (_, true) => (|n| unsafe { madd_512(n) }, N * 32 * 2),
            // SAFETY: as above.
            _ => (|n| unsafe { madd_256(n) }, N * 16 * 2),
        };
        let float: Loop = match has_avx512() {
            // SAFETY: as above.
            true => (|n| unsafe { fma_512(n) }, N * 16 * 2),
            // SAFETY: as above.
            false => (|n| unsafe { fma_256(n) }, N * 8 * 2),
        };
        Some(Peak { int8: rate(int8), float: rate(float) })
    }

    /// The best of many short stretches: others use the machine too.
    fn rate((run, ops): Loop) -> f64 {
        const BODIES: usize = 20_000;
        let once = || {
            let start = Instant::now();
            black_box(run(black_box(BODIES)));
            start.elapsed().as_secs_f64()
        };
        let least = (0..60).map(|_| once()).fold(f64::INFINITY, f64::min);
        (BODIES * ops) as f64 / least
    }

    macro_rules! integer {
        ($name:ident, $features:literal, $ty:ty, $zero:ident, $splat:ident, |$acc:ident, $a:ident, $b:ident| $body:expr,
         $low:expr) => {
            #[target_feature(enable = $features)]
            fn $name(n: usize) -> i32 {
                let mut accs = [$zero(); N];
                let ($a, $b) = ($splat(black_box(0x0102_0304)), $splat(black_box(0x0101_0201)));
                for _ in 0..n {
                    for acc in &mut accs {
                        let $acc = *acc;
                        *acc = $body;
                    }
                }
                let low: fn(&$ty) -> i32 = $low;
                accs.iter().map(low).fold(0, i32::wrapping_add)
            }
        };
    }

    integer!(
        vnni_512,
        "avx512f,avx512bw,avx512vnni",
        __m512i,
        _mm512_setzero_si512,
        _mm512_set1_epi32,
        |acc, a, b| _mm512_dpbusd_epi32(acc, a, b),
        |acc| {
            // SAFETY: sixteen integers are as large as the register.
            let lanes: [i32; 16] = unsafe { std::mem::transmute(*acc) };
            lanes[0]
        }
    );
    integer!(
        madd_512,
        "avx512f,avx512bw",
        __m512i,
        _mm512_setzero_si512,
        _mm512_set1_epi32,
        |acc, a, b| _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_xor_si512(a, acc), b)),
        |acc| {
            // SAFETY: as above.
            let lanes: [i32; 16] = unsafe { std::mem::transmute(*acc) };
            lanes[0]
        }
    );
    integer!(
        madd_256,
        "avx2",
        __m256i,
        _mm256_setzero_si256,
        _mm256_set1_epi32,
        |acc, a, b| _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_xor_si256(a, acc), b)),
        |acc| {
            // SAFETY: eight integers are as large as the register.
            let lanes: [i32; 8] = unsafe { std::mem::transmute(*acc) };
            lanes[0]
        }
    );

    #[target_feature(enable = "avx512f")]
    fn fma_512(n: usize) -> i32 {
        let mut accs = [_mm512_setzero_ps(); N];
        let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
        for _ in 0..n {
            for acc in &mut accs {
                *acc = _mm512_fmadd_ps(a, *acc, b);
            }
        }
        accs.iter().map(|acc| _mm512_reduce_add_ps(*acc) as i32).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    fn fma_256(n: usize) -> i32 {
        let mut accs = [_mm256_setzero_ps(); N];
        let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
        for _ in 0..n {
            for acc in &mut accs {
                *acc = _mm256_fmadd_ps(a, *acc, b);
            }
        }
        accs.iter().map(|acc| _mm256_cvtss_f32(*acc) as i32).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_a_number_that_hardware_can_have() {
        let Some(Peak { int8, float }) = measure() else { return };
        for rate in [int8, float] {
            assert!((1e7..1e13).contains(&rate), "{rate}");
        }
    }
}
