//! Whether a difference in accuracy between two models on the same samples is more than chance.

use serde::Serialize;

/// Two models' right and wrong answers to the same samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Paired {
    /// Samples.
    pub n: u64,
    /// Samples that only the first model has right.
    pub lost: u64,
    /// Samples that only the second model has right.
    pub gained: u64,
}

/// 97.5 % and 80 % quantiles of the normal distribution.
const Z_975: f64 = 1.959_963_984_540_054;
const Z_80: f64 = 0.841_621_233_572_914;

impl Paired {
    /// Counts answers: whether the first and the second model is right, a sample each.
    pub fn of(answers: impl IntoIterator<Item = (bool, bool)>) -> Self {
        let mut paired = Self::default();
        for (first, second) in answers {
            paired.n += 1;
            paired.lost += u64::from(first && !second);
            paired.gained += u64::from(!first && second);
        }
        paired
    }

    /// What the second model loses: the first one's share of right answers less the second's.
    pub fn drop(&self) -> f64 {
        if self.n == 0 { 0.0 } else { (self.lost as f64 - self.gained as f64) / self.n as f64 }
    }

    /// A 95 % confidence interval of the drop, by Bonett and Price's adjusted Wald interval for paired proportions
    /// ("Adjusted Wald confidence interval for a difference of binomial proportions based on paired data", 2012).
    pub fn interval(&self) -> (f64, f64) {
        let n = self.n as f64 + 2.0;
        let (lost, gained) = ((self.lost as f64 + 1.0) / n, (self.gained as f64 + 1.0) / n);
        let drop = lost - gained;
        let half = Z_975 * ((lost + gained - drop * drop) / n).sqrt();
        ((drop - half).max(-1.0), (drop + half).min(1.0))
    }

    /// McNemar's exact test: how likely a difference at least as large is if neither model is better. Two-sided.
    pub fn p_value(&self) -> f64 {
        let (n, few) = (self.lost + self.gained, self.lost.min(self.gained));
        // Terms of the binomial distribution as logarithms: 2^-n is no number beyond a thousand.
        let mut log_term = -(n as f64) * std::f64::consts::LN_2;
        let mut sum = 0.0;
        for k in 0..=few {
            sum += log_term.exp();
            log_term += ((n - k) as f64 / (k + 1) as f64).ln();
        }
        (2.0 * sum).min(1.0)
    }

    /// Samples that would be needed to tell a drop this large from none, at 5 % and with 80 % power, if the two models
    /// go on to differ as often as here.
    pub fn samples_to_tell(&self, drop: f64) -> u64 {
        let n = self.n as f64 + 2.0;
        let differ = (self.lost + self.gained + 1) as f64 / n;
        ((Z_975 + Z_80).powi(2) * differ / (drop * drop)).ceil() as u64
    }

    /// Whether the drop is at most `most`.
    pub fn verdict(&self, most: f64) -> Verdict {
        let (low, high) = self.interval();
        match (high <= most, most < low) {
            (true, _) => Verdict::Within,
            (_, true) => Verdict::Exceeded,
            _ => Verdict::Unknown,
        }
    }
}

/// A 95 % confidence interval of a share of `n` samples, by Wilson's score ("Probable inference, the law of succession,
/// and statistical inference", 1927).
pub fn wilson(share: f64, n: usize) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let (n, z2) = (n as f64, Z_975 * Z_975);
    let middle = share + z2 / (2.0 * n);
    let half = Z_975 * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    let all = 1.0 + z2 / n;
    (((middle - half) / all).max(0.0), ((middle + half) / all).min(1.0))
}

/// Whether a drop is at most what is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// With 95 % confidence, it is.
    Within,
    /// With 95 % confidence, it is not.
    Exceeded,
    /// There are too few samples to tell.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_hold_the_truth_95_times_of_a_hundred() {
        let mut state = 1_u64;
        let mut uniform = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        const TRIALS: usize = 4000;
        for (n, lost, gained) in
            [(200, 0.08, 0.05), (500, 0.04, 0.02), (1000, 0.03, 0.03), (1000, 0.1, 0.02)]
        {
            let mut n_held = 0;
            for _ in 0..TRIALS {
                let answers = (0..n).map(|_| match uniform() {
                    u if u < lost => (true, false),
                    u if u < lost + gained => (false, true),
                    _ => (true, true),
                });
                let (low, high) = Paired::of(answers).interval();
                n_held += usize::from((low..=high).contains(&(lost - gained)));
            }
            let coverage = n_held as f64 / TRIALS as f64;
            assert!(
                (0.93..=0.97).contains(&coverage),
                "{n} samples, {lost} and {gained}: {coverage}"
            );
        }
    }

    #[test]
    fn mcnemars_test_is_the_binomial_one() {
        let p = |lost, gained| Paired { n: 2000, lost, gained }.p_value();
        // 2 (1 + 5) / 2^5, by hand.
        assert!((p(4, 1) - 0.375).abs() < 1e-12, "{}", p(4, 1));
        // 2 (1 + 10 + 45) / 2^10.
        assert!((p(2, 8) - 0.109_375).abs() < 1e-12, "{}", p(2, 8));
        assert_eq!((p(0, 0), p(5, 5)), (1.0, 1.0));
        // The normal approximation, corrected for continuity: 299 / sqrt(2700) = 5.754 deviations, p = 8.7e-9.
        assert!((8e-9..1e-8).contains(&p(1500, 1200)), "{}", p(1500, 1200));
    }

    #[test]
    fn a_share_of_few_samples_is_known_roughly() {
        // Worked by hand: (0.8 + 0.192073 ± 1.96 * sqrt(0.016 + 0.009604)) / 1.384146.
        let (low, high) = wilson(0.8, 10);
        assert!((low - 0.490_16).abs() < 1e-4 && (high - 0.943_32).abs() < 1e-4, "{low} {high}");
        assert_eq!(wilson(0.5, 0), (0.0, 1.0));
        let (low, high) = wilson(1.0, 100);
        assert!((0.96..0.97).contains(&low) && high == 1.0, "{low} {high}");
    }

    #[test]
    fn a_gate_needs_samples_enough_to_tell() {
        let few = Paired { n: 50, lost: 1, gained: 1 };
        assert_eq!(few.verdict(0.005), Verdict::Unknown);
        assert_eq!(Paired { n: 50_000, lost: 500, gained: 480 }.verdict(0.005), Verdict::Within);
        assert_eq!(Paired { n: 1000, lost: 90, gained: 10 }.verdict(0.005), Verdict::Exceeded);
        // With that many samples of this kind, an equal model is told from one that is 0.5 % worse.
        let n = few.samples_to_tell(0.005);
        let rate = 1.5 / 52.0;
        let more = Paired { n, lost: (rate * n as f64) as u64, gained: (rate * n as f64) as u64 };
        assert_eq!(more.verdict(0.005), Verdict::Within, "{n} samples: {:?}", more.interval());
    }
}
