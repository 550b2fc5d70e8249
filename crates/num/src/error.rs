//! How far a tensor is from what it should be.
//!
//! All sums are in `f64` and in a fixed order that depends on the number of elements alone, so a
//! figure in a report is the same on every machine.

use core::fmt;

/// Sums over pairs of a `reference` element and another, from which the measures follow.
///
/// Sums of several pieces of a tensor may be merged; a merged figure can differ from that of the
/// whole in the last digits. A NaN in either tensor, or the same infinity in both, makes the
/// measures NaN, `max_abs` included.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorSums {
    /// Pairs.
    pub n: u64,
    /// Sum of `|reference - other|`.
    pub abs: f64,
    /// Sum of `(reference - other)^2`.
    pub squared: f64,
    /// The largest `|reference - other|`, 0 without pairs.
    pub max_abs: f64,
    /// Sum of `reference^2`.
    pub reference_squared: f64,
    /// Sum of `other^2`.
    pub other_squared: f64,
    /// Sum of `reference * other`.
    pub product: f64,
}

/// Independent sums, so that the additions of neighbors do not wait for each other.
const N_LANES: usize = 8;

impl ErrorSums {
    /// The sums over two tensors of one shape.
    ///
    /// # Panics
    ///
    /// When the slices differ in length.
    pub fn of(reference: &[f32], other: &[f32]) -> Self {
        assert_eq!(reference.len(), other.len(), "tensors of one shape");
        let mut lanes = [Self::default(); N_LANES];
        let (reference_rows, reference_rest) = reference.as_chunks::<N_LANES>();
        let (other_rows, other_rest) = other.as_chunks::<N_LANES>();
        for (reference_row, other_row) in reference_rows.iter().zip(other_rows) {
            for i in 0..N_LANES {
                lanes[i].add(f64::from(reference_row[i]), f64::from(other_row[i]));
            }
        }
        for (i, (r, o)) in reference_rest.iter().zip(other_rest).enumerate() {
            lanes[i].add(f64::from(*r), f64::from(*o));
        }
        lanes.into_iter().fold(Self::default(), Self::merge)
    }

    /// The sums over `f64` values, for figures that are not tensors.
    ///
    /// # Panics
    ///
    /// When the slices differ in length.
    pub fn of_f64(reference: &[f64], other: &[f64]) -> Self {
        assert_eq!(reference.len(), other.len(), "tensors of one shape");
        let mut sums = Self::default();
        for (r, o) in reference.iter().zip(other) {
            sums.add(*r, *o);
        }
        sums
    }

    #[inline]
    fn add(&mut self, reference: f64, other: f64) {
        let error = (reference - other).abs();
        self.n += 1;
        self.abs += error;
        self.squared += error * error;
        self.max_abs = max_or_nan(self.max_abs, error);
        self.reference_squared += reference * reference;
        self.other_squared += other * other;
        self.product += reference * other;
    }

    /// The sums over the elements of both.
    pub fn merge(self, later: Self) -> Self {
        Self {
            n: self.n + later.n,
            abs: self.abs + later.abs,
            squared: self.squared + later.squared,
            max_abs: max_or_nan(self.max_abs, later.max_abs),
            reference_squared: self.reference_squared + later.reference_squared,
            other_squared: self.other_squared + later.other_squared,
            product: self.product + later.product,
        }
    }

    /// Mean squared error; 0 without elements.
    pub fn mse(&self) -> f64 {
        if self.n == 0 { 0.0 } else { self.squared / self.n as f64 }
    }

    /// Mean absolute error; 0 without elements.
    pub fn mae(&self) -> f64 {
        if self.n == 0 { 0.0 } else { self.abs / self.n as f64 }
    }

    /// Signal to quantization noise ratio in dB: `10 log10(sum reference^2 / sum (reference - other)^2)`.
    ///
    /// Infinite for tensors that are equal, two empty ones included; minus infinity when the
    /// reference is all zeros and the other is not.
    pub fn sqnr_db(&self) -> f64 {
        if self.squared == 0.0 {
            return f64::INFINITY;
        }
        10.0 * libm::log10(self.reference_squared / self.squared)
    }

    /// Cosine of the angle between the two tensors as vectors, in -1..=1.
    ///
    /// 1 when both are all zeros or empty, 0 when one of them is.
    pub fn cosine(&self) -> f64 {
        if self.reference_squared == 0.0 && self.other_squared == 0.0 {
            return 1.0;
        }
        if self.reference_squared == 0.0 || self.other_squared == 0.0 {
            return 0.0;
        }
        // Two roots: the product of the sums may overflow or underflow.
        let cosine =
            self.product / (libm::sqrt(self.reference_squared) * libm::sqrt(self.other_squared));
        cosine.clamp(-1.0, 1.0)
    }
}

impl fmt::Display for ErrorSums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "mse {:.3e}, mae {:.3e}, max {:.3e}, sqnr {:.2} dB, cosine {:.6}",
            self.mse(),
            self.mae(),
            self.max_abs,
            self.sqnr_db(),
            self.cosine()
        )
    }
}

/// `f64::max` drops a NaN.
fn max_or_nan(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Kullback-Leibler divergence of `q` from `p` in nats: `sum p ln(p / q)`.
///
/// `p` and `q` are distributions over the same bins; the caller has made each sum to 1. A bin that
/// `p` leaves empty adds 0; one that `q` leaves empty and `p` does not makes the divergence
/// infinite. 0 without bins.
///
/// # Panics
///
/// When the slices differ in length.
pub fn kl_divergence(p: &[f64], q: &[f64]) -> f64 {
    assert_eq!(p.len(), q.len(), "distributions over the same bins");
    let mut sum = 0.0;
    for (p, q) in p.iter().zip(q) {
        // `q == 0` divides to infinity, whose logarithm is the infinity that is meant.
        if *p != 0.0 {
            sum += p * libm::log(p / q);
        }
    }
    sum
}

/// [`kl_divergence`] of `softmax(other)` from `softmax(reference)`, averaged over the rows of
/// `n_classes` logits.
///
/// The best single predictor of lost accuracy that needs no labels. 0 without rows.
///
/// # Panics
///
/// When the slices differ in length or are not whole rows.
pub fn softmax_kl(reference: &[f32], other: &[f32], n_classes: usize) -> f64 {
    let mut sum = 0.0;
    let n_rows = for_rows(reference, other, n_classes, |reference, other| {
        let (reference_log, other_log) = (log_sum_exp(reference), log_sum_exp(other));
        for (r, o) in reference.iter().zip(other) {
            let log_p = f64::from(*r) - reference_log;
            let log_q = f64::from(*o) - other_log;
            // A logit of minus infinity has probability 0, and 0 * -inf is NaN.
            if log_p != f64::NEG_INFINITY {
                sum += libm::exp(log_p) * (log_p - log_q);
            }
        }
    });
    if n_rows == 0 { 0.0 } else { sum / n_rows as f64 }
}

/// The share of rows of `n_classes` values whose largest is at the same place, the first of equals;
/// 1 without rows.
///
/// # Panics
///
/// When the slices differ in length or are not whole rows.
pub fn top1_agreement(reference: &[f32], other: &[f32], n_classes: usize) -> f64 {
    let mut n_same = 0_u64;
    let n_rows = for_rows(reference, other, n_classes, |reference, other| {
        n_same += u64::from(first_of_largest(reference) == first_of_largest(other));
    });
    if n_rows == 0 { 1.0 } else { n_same as f64 / n_rows as f64 }
}

fn for_rows(
    reference: &[f32],
    other: &[f32],
    n_classes: usize,
    mut row: impl FnMut(&[f32], &[f32]),
) -> usize {
    assert_eq!(reference.len(), other.len(), "tensors of one shape");
    if reference.is_empty() {
        return 0;
    }
    assert!(n_classes != 0 && reference.len().is_multiple_of(n_classes), "whole rows");
    for (reference, other) in reference.chunks(n_classes).zip(other.chunks(n_classes)) {
        row(reference, other);
    }
    reference.len() / n_classes
}

/// `ln(sum exp(x))`, without overflow.
fn log_sum_exp(row: &[f32]) -> f64 {
    let max = row.iter().fold(f64::NEG_INFINITY, |max, x| max.max(f64::from(*x)));
    let sum: f64 = row.iter().map(|x| libm::exp(f64::from(*x) - max)).sum();
    max + libm::log(sum)
}

fn first_of_largest(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if row[best] < *x {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn measures_are_their_formulas_at_every_length() {
        let mut bits = 7_u32;
        let mut next = || {
            bits ^= bits << 13;
            bits ^= bits >> 17;
            bits ^= bits << 5;
            bits as f32 / u32::MAX as f32 - 0.5
        };
        for len in 1..=40 {
            let a: Vec<f32> = (0..len).map(|_| next()).collect();
            let b: Vec<f32> = a.iter().map(|x| x + 0.1 * next()).collect();
            let sums = ErrorSums::of(&a, &b);
            let n = len as f64;
            let errors: Vec<f64> =
                a.iter().zip(&b).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
            let square_sum = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            let mse = errors.iter().map(|e| e * e).sum::<f64>() / n;
            // The orders of summation differ: a few f64 roundings.
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-13 * b.abs();
            assert!(close(sums.mse(), mse));
            assert!(close(sums.mae(), errors.iter().map(|e| e.abs()).sum::<f64>() / n));
            assert_eq!(sums.max_abs, errors.iter().fold(0.0, |m: f64, e| m.max(e.abs())));
            assert!(close(sums.sqnr_db(), 10.0 * (square_sum(&a) / (mse * n)).log10()));
            let dot: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!(close(sums.cosine(), dot / (square_sum(&a) * square_sum(&b)).sqrt()));
            let halves = ErrorSums::of(&a[..len / 2], &b[..len / 2])
                .merge(ErrorSums::of(&a[len / 2..], &b[len / 2..]));
            assert!(
                close(halves.mse(), mse) && halves.max_abs == sums.max_abs && halves.n == sums.n
            );
        }
    }

    #[test]
    fn empty_and_equal_tensors_have_no_error() {
        for values in [&[][..], &[0.0, 0.0], &[1.5, -2.0]] {
            let sums = ErrorSums::of(values, values);
            assert_eq!((sums.mse(), sums.mae(), sums.max_abs), (0.0, 0.0, 0.0));
            assert_eq!(sums.sqnr_db(), f64::INFINITY);
            assert!((sums.cosine() - 1.0).abs() < 1e-15);
        }
        assert_eq!(ErrorSums::of(&[0.0], &[1.0]).sqnr_db(), f64::NEG_INFINITY);
        assert_eq!(ErrorSums::of(&[0.0], &[1.0]).cosine(), 0.0);
        assert_eq!(kl_divergence(&[], &[]), 0.0);
        assert_eq!((softmax_kl(&[], &[], 10), top1_agreement(&[], &[], 10)), (0.0, 1.0));
    }

    #[test]
    fn a_nan_is_seen_wherever_it_is() {
        for at in 0..20 {
            let mut values = [1.0_f32; 20];
            values[at] = f32::NAN;
            for sums in [ErrorSums::of(&values, &[1.0; 20]), ErrorSums::of(&[1.0; 20], &values)] {
                assert!(sums.mse().is_nan() && sums.max_abs.is_nan() && sums.sqnr_db().is_nan());
                assert!(sums.cosine().is_nan());
            }
        }
    }

    #[test]
    fn large_and_small_values_keep_their_angle() {
        for scale in [1e38_f32, 1e-38] {
            let cosine = ErrorSums::of(&[scale, 0.0], &[scale, scale]).cosine();
            assert!((cosine - 0.5_f64.sqrt()).abs() < 1e-7, "{cosine}");
        }
    }

    #[test]
    fn divergence_is_zero_for_equals_and_infinite_for_what_cannot_happen() {
        assert_eq!(kl_divergence(&[0.25, 0.75], &[0.25, 0.75]), 0.0);
        assert_eq!(kl_divergence(&[0.5, 0.5], &[1.0, 0.0]), f64::INFINITY);
        assert_eq!(kl_divergence(&[1.0, 0.0], &[0.5, 0.5]), 2.0_f64.ln());
        let row = [3.0, f32::NEG_INFINITY, 1000.0];
        assert_eq!(softmax_kl(&row, &row, 3), 0.0);
        assert_eq!(top1_agreement(&[1.0, 2.0, 5.0, 4.0], &[3.0, 2.0, 7.0, 0.0], 2), 0.5);
    }
}
