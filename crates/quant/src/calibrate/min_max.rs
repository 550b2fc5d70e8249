//! Everything that was seen.

use super::{Calibrator, CalibratorDef, RangeGoal, TensorStats};

pub(super) const DEF: CalibratorDef = CalibratorDef {
    name: "min_max",
    summary: "the smallest and the largest value seen",
    needs_histogram: false,
    range,
};

fn range(stats: &TensorStats, _: &Calibrator, _: &RangeGoal) -> (f32, f32) {
    stats.min_max().expect("the caller checks that something was seen")
}
