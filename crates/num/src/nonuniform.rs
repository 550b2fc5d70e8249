//! Quantizers whose levels are not evenly spaced: mu-law, A-law and Lloyd-Max, in `f64`.
//!
//! The laws of telephony (ITU-T G.711) quantize a compressed value evenly, so that small values get small steps;
//! Lloyd-Max (Lloyd 1957, Max 1960) puts a given number of levels where they lose least on given values.

use alloc::vec::Vec;

/// A compression of [-1, 1] onto itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Law {
    /// `sgn(x) * ln(1 + mu |x|) / ln(1 + mu)`. Telephony: 255.
    Mu(f64),
    /// `A |x| / (1 + ln A)` up to `1 / A`, `(1 + ln(A |x|)) / (1 + ln A)` beyond. Telephony: 87.6.
    A(f64),
}

impl Law {
    /// North America's and Japan's.
    pub const MU: Self = Self::Mu(255.0);
    /// Europe's.
    pub const A_LAW: Self = Self::A(87.6);

    /// `x`, cut to [-1, 1], compressed.
    pub fn compress(self, x: f64) -> f64 {
        let size = x.abs().min(1.0);
        let y = match self {
            Self::Mu(mu) => libm::log1p(mu * size) / libm::log1p(mu),
            Self::A(a) if a * size < 1.0 => a * size / (1.0 + libm::log(a)),
            Self::A(a) => (1.0 + libm::log(a * size)) / (1.0 + libm::log(a)),
        };
        libm::copysign(y, x)
    }

    /// The inverse of [`Self::compress`].
    pub fn expand(self, y: f64) -> f64 {
        let size = y.abs().min(1.0);
        let x = match self {
            Self::Mu(mu) => libm::expm1(size * libm::log1p(mu)) / mu,
            Self::A(a) if size * (1.0 + libm::log(a)) < 1.0 => size * (1.0 + libm::log(a)) / a,
            Self::A(a) => libm::exp(size * (1.0 + libm::log(a)) - 1.0) / a,
        };
        libm::copysign(x, y)
    }

    /// The levels of `bits` bits, 2..=16, for values of at most `max_abs`: `2^bits - 1` of them, 0 in the middle.
    pub fn levels(self, bits: u32, max_abs: f64) -> Vec<f64> {
        let qmax = (1_i32 << (bits.clamp(2, 16) - 1)) - 1;
        (-qmax..=qmax).map(|q| max_abs * self.expand(f64::from(q) / f64::from(qmax))).collect()
    }

    /// What `x` becomes: the nearest of the codes in the compressed domain, halves to even.
    pub fn quantize(self, x: f64, bits: u32, max_abs: f64) -> f64 {
        if max_abs <= 0.0 {
            return 0.0;
        }
        let qmax = f64::from((1_i32 << (bits.clamp(2, 16) - 1)) - 1);
        let code = crate::round::ties_even_f64(self.compress(x / max_abs) * qmax);
        max_abs * self.expand(code / qmax)
    }
}

/// Levels that lose least squared error on the values they were made from.
///
/// Invariant: at least one level, in rising order.
#[derive(Clone, Debug, PartialEq)]
pub struct LloydMax {
    levels: Vec<f64>,
}

impl LloydMax {
    /// At most `n_levels` levels for `values`, which have to be finite: from quantiles on, levels move to the means of
    /// what is nearest to them and borders to the middles, until nothing moves or 1000 turns are over.
    ///
    /// `None` without values or levels.
    pub fn fit(values: &[f64], n_levels: usize) -> Option<Self> {
        if values.is_empty() || n_levels == 0 {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mut sums = Vec::with_capacity(sorted.len() + 1);
        sums.push(0.0);
        for x in &sorted {
            sums.push(sums[sums.len() - 1] + x);
        }
        let n = sorted.len();
        let mut levels: Vec<f64> =
            (0..n_levels).map(|i| sorted[((2 * i + 1) * n / (2 * n_levels)).min(n - 1)]).collect();
        levels.dedup();
        for _ in 0..1000 {
            let mut next = Vec::with_capacity(levels.len());
            let mut start = 0;
            for i in 0..levels.len() {
                let end = match levels.get(i + 1) {
                    Some(right) => sorted.partition_point(|x| *x <= 0.5 * (levels[i] + right)),
                    None => n,
                };
                if start < end {
                    next.push((sums[end] - sums[start]) / (end - start) as f64);
                    start = end;
                } else {
                    next.push(levels[i]);
                }
            }
            let is_done = next == levels;
            levels = next;
            if is_done {
                break;
            }
        }
        Some(Self { levels })
    }

    /// The levels.
    pub fn levels(&self) -> &[f64] {
        &self.levels
    }

    /// The nearest level; at the middle of two the lower.
    pub fn quantize(&self, x: f64) -> f64 {
        let right = self.levels.partition_point(|level| *level < x);
        match (right.checked_sub(1).map(|i| self.levels[i]), self.levels.get(right)) {
            (Some(below), Some(above)) => {
                if *above - x < x - below {
                    *above
                } else {
                    below
                }
            }
            (Some(below), None) => below,
            (None, Some(above)) => *above,
            (None, None) => unreachable!("there is a level"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expanding_undoes_compressing() {
        for law in [Law::MU, Law::A_LAW, Law::Mu(8.0)] {
            for i in -1000..=1000 {
                let x = f64::from(i) / 1000.0;
                // A few ULP of 1: a logarithm and its inverse.
                assert!((law.expand(law.compress(x)) - x).abs() < 1e-14, "{law:?} {x}");
            }
            assert_eq!(law.compress(7.0), 1.0, "{law:?}: what is beyond 1 is cut");
            assert_eq!(law.levels(3, 2.0).len(), 7);
            assert_eq!(law.levels(3, 2.0)[3], 0.0);
            assert!((law.quantize(-9.0, 3, 2.0) + 2.0).abs() < 1e-14, "{law:?}");
        }
    }

    #[test]
    fn small_values_lose_less_with_a_law_than_with_even_steps() {
        let x = 0.003;
        let even = (x * 127.0_f64).round() / 127.0;
        for law in [Law::MU, Law::A_LAW] {
            assert!((law.quantize(x, 8, 1.0) - x).abs() < (even - x).abs(), "{law:?}");
        }
    }

    #[test]
    fn lloyd_max_of_evenly_spread_values_is_even_and_few_values_are_kept() {
        let even: Vec<f64> = (0..4000).map(|i| (f64::from(i) + 0.5) / 2000.0 - 1.0).collect();
        let fit = LloydMax::fit(&even, 4).unwrap();
        for (level, wanted) in fit.levels().iter().zip([-0.75, -0.25, 0.25, 0.75]) {
            // Points are 5e-4 apart, and a border between two of them may be anywhere.
            assert!((level - wanted).abs() < 1e-3, "{level} and {wanted}");
        }
        let few = LloydMax::fit(&[3.0, -1.0, 3.0, 7.0], 8).unwrap();
        assert_eq!([-1.0, 3.0, 7.0].map(|x| few.quantize(x)), [-1.0, 3.0, 7.0]);
        assert_eq!(few.quantize(5.0), 3.0, "the lower of two at the same distance");
        assert_eq!(LloydMax::fit(&[], 4), None);
        assert_eq!(LloydMax::fit(&[1.0], 0), None);
    }
}
