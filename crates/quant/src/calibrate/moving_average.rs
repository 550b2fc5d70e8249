//! The extrema of the samples, averaged in their order.

use super::{Calibrator, CalibratorDef, RangeGoal, TensorStats};

pub(super) const DEF: CalibratorDef = CalibratorDef {
    name: "moving_average",
    summary: "the running average of each sample's smallest and largest value",
    needs_histogram: false,
    range,
};

/// `m <- m + c * (m_new - m)`, which begins with the first sample's extrema (Krishnamoorthi 2018, 3.2.1, as torch's
/// `MovingAverageMinMaxObserver`). Unlike there, no weaker than the mean: `c` is at least 1 over the number of samples
/// so far, or the first of a few dozen samples would decide alone.
fn range(stats: &TensorStats, calibrator: &Calibrator, _: &RangeGoal) -> (f32, f32) {
    let mut average: Option<(f64, f64)> = None;
    for (i, (min, max)) in stats.extrema().iter().flatten().enumerate() {
        let (min, max) = (f64::from(*min), f64::from(*max));
        let c = calibrator.averaging_constant.max(1.0 / (i + 1) as f64);
        average = Some(match average {
            None => (min, max),
            Some((lo, hi)) => (lo + c * (min - lo), hi + c * (max - hi)),
        });
    }
    let (min, max) = average.expect("the caller checks that something was seen");
    (min as f32, max as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::{Collect, RangeGoal};
    use midtread_num::QRange;

    #[test]
    fn the_constant_decides_how_much_a_new_sample_counts() {
        let mut stats = TensorStats::new(3);
        for (i, x) in [1.0_f32, 2.0, 6.0].iter().enumerate() {
            stats.observe(i, &[*x, -*x], Collect::Extrema);
        }
        let goal = RangeGoal { range: QRange::I8, symmetric: false };
        let mut calibrator = Calibrator::named("moving_average").unwrap();
        assert_eq!(
            stats.range(&calibrator, &goal),
            Some((-3.0, 3.0)),
            "the mean, while it weighs more"
        );
        calibrator.averaging_constant = 0.9;
        // 1 -> 1 + .9 * 1 = 1.9 -> 1.9 + .9 * 4.1 = 5.59
        assert_eq!(stats.range(&calibrator, &goal), Some((-5.59, 5.59)));
    }
}
