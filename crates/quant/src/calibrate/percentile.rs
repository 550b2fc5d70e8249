//! All but a small share of what was seen.

use super::{
    Calibrator, CalibratorDef, RangeGoal, TensorStats,
    histogram::{Bin, bins, magnitudes},
};

pub(super) const DEF: CalibratorDef = CalibratorDef {
    name: "percentile",
    summary: "all but the outermost values, 0.001 % of them by default",
    needs_histogram: true,
    range,
};

/// Half of what is left out is left out on each side; in a symmetric range, by magnitude.
fn range(stats: &TensorStats, calibrator: &Calibrator, goal: &RangeGoal) -> (f32, f32) {
    let (min, max) = stats.min_max().expect("the caller checks that something was seen");
    let kept = (calibrator.percentile / 100.0).clamp(0.0, 1.0);
    if goal.symmetric {
        let bound = quantile(&magnitudes(stats.counts()), kept) as f32;
        return (min.max(-bound), max.min(bound));
    }
    let bins = bins(stats.counts());
    let left_out = (1.0 - kept) / 2.0;
    let (lo, hi) = (quantile(&bins, left_out) as f32, quantile(&bins, 1.0 - left_out) as f32);
    (lo.clamp(min, max), hi.clamp(min, max))
}

/// The value below which a share `p` of what was counted lies: exact in rank at the bins' bounds, interpolated within.
fn quantile(bins: &[Bin], p: f64) -> f64 {
    let total: u64 = bins.iter().map(|bin| bin.n).sum();
    let rank = p * total as f64;
    let mut below = 0.0;
    for bin in bins {
        let n = bin.n as f64;
        if rank <= below + n {
            return bin.lo + (bin.hi - bin.lo) * ((rank - below) / n).clamp(0.0, 1.0);
        }
        below += n;
    }
    bins.last().map_or(0.0, |bin| bin.hi)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::Collect;
    use midtread_num::QRange;

    #[test]
    fn quantiles_of_a_uniform_tensor_are_within_a_bin_of_exact() {
        let data: Vec<f32> = (0..100_000).map(|i| i as f32 / 100_000.0 - 0.25).collect();
        let mut stats = TensorStats::new(1);
        stats.observe(0, &data, Collect::Histogram);
        let mut calibrator = Calibrator::named("percentile").unwrap();
        for percentile in [90.0, 99.0, 99.9] {
            calibrator.percentile = percentile;
            let goal = RangeGoal { range: QRange::U8, symmetric: false };
            let (lo, hi) = stats.range(&calibrator, &goal).unwrap();
            let out = (1.0 - percentile / 100.0) / 2.0;
            // One bin is 1/128 of the value at most.
            assert!((f64::from(lo) - (out - 0.25)).abs() < 0.25 / 128.0, "{percentile}: {lo}");
            assert!((f64::from(hi) - (0.75 - out)).abs() < 0.75 / 128.0, "{percentile}: {hi}");
        }
    }

    #[test]
    fn one_hundred_percent_is_everything() {
        let mut stats = TensorStats::new(1);
        stats.observe(0, &[-1.5, 0.25, 7.0], Collect::Histogram);
        let mut calibrator = Calibrator::named("percentile").unwrap();
        calibrator.percentile = 100.0;
        for symmetric in [false, true] {
            let goal = RangeGoal { range: QRange::I8, symmetric };
            assert_eq!(stats.range(&calibrator, &goal), Some((-1.5, 7.0)));
        }
    }
}
