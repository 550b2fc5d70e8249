//! Measuring: one pass over a user's data leaves, for every tensor, a summary of bounded size from which every
//! calibrator's range is computed afterwards.
//!
//! The summary ([`TensorStats`]) is the extrema of each sample and a histogram whose bins are the same for every
//! tensor ever seen, so adding two is exact: halves merged equal the whole, in any order, from any number of threads.
//! Trying another calibrator costs no second pass.
//!
//! Reading order: [`histogram`] (the bins), [`stats`] (what is kept, merged, saved), [`samples`] (working through data
//! on several threads), [`run`] (the pass over the data), then the calibrators, one file each, listed in
//! [`CALIBRATORS`].

mod entropy;
pub mod histogram;
mod min_max;
mod moving_average;
mod mse;
mod percentile;
pub mod run;
pub mod samples;
pub mod stats;

use midtread_num::QRange;

pub use run::{Collect, Options, RunError, Watch, calibrate, tensors_to_observe};
pub use samples::{Pass, Samples};
pub use stats::{CalibrateError, Stats, TensorStats};

/// A named way to choose a range. The name is what the CLI, the Python API and saved plans use.
pub struct CalibratorDef {
    /// `snake_case`, unique.
    pub name: &'static str,
    /// One line for `--help` and the reference documentation.
    pub summary: &'static str,
    /// Whether it reads the histogram, which costs the pass more than the extrema alone.
    pub needs_histogram: bool,
    /// The range of a tensor of which at least one finite value was seen.
    range: fn(&TensorStats, &Calibrator, &RangeGoal) -> (f32, f32),
}

/// Every calibrator. `--calibrator`, the Python enum and the reference documentation are generated from this list,
/// and the laws in `tests` run over it.
pub static CALIBRATORS: &[CalibratorDef] =
    &[min_max::DEF, moving_average::DEF, percentile::DEF, entropy::DEF, mse::DEF];

/// A calibrator with its settings.
#[derive(Clone, Copy)]
pub struct Calibrator {
    /// Which one.
    pub def: &'static CalibratorDef,
    /// `percentile`: the share of values, in percent, that the range keeps. In (0, 100].
    pub percentile: f64,
    /// `moving_average`: the weight of each new sample. In (0, 1].
    pub averaging_constant: f64,
}

impl Calibrator {
    /// The calibrator of this name with default settings.
    pub fn named(name: &str) -> Option<Self> {
        let def = CALIBRATORS.iter().find(|def| def.name == name)?;
        Some(Self { def, percentile: 99.999, averaging_constant: 0.01 })
    }
}

impl std::fmt::Debug for Calibrator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.def.name)
    }
}

/// What a range will be quantized to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RangeGoal {
    /// Integers to use.
    pub range: QRange,
    /// Whether the range will be made symmetric about 0.
    pub symmetric: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOALS: [RangeGoal; 3] = [
        RangeGoal { range: QRange::U8, symmetric: false },
        RangeGoal { range: QRange::I8, symmetric: false },
        RangeGoal { range: QRange::I8_NARROW, symmetric: true },
    ];

    fn stats_of(samples: &[&[f32]]) -> TensorStats {
        let mut stats = TensorStats::new(samples.len());
        for (i, values) in samples.iter().enumerate() {
            stats.observe(i, values, Collect::Histogram);
        }
        stats
    }

    fn range(name: &str, samples: &[&[f32]], goal: RangeGoal) -> Option<(f32, f32)> {
        stats_of(samples).range(&Calibrator::named(name).unwrap(), &goal)
    }

    /// Seeded, with a sum of uniforms for a bell.
    fn bell(n: usize, mut state: u64) -> Vec<f32> {
        let mut uniform = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
        };
        (0..n).map(|_| (0..12).map(|_| uniform()).sum()).collect()
    }

    #[test]
    fn every_calibrator_keeps_the_laws() {
        let bell = bell(20_000, 7);
        let relu: Vec<f32> = bell.iter().map(|x| x.max(0.0)).collect();
        for def in CALIBRATORS {
            for goal in GOALS {
                let name = def.name;
                assert_eq!(range(name, &[], goal), None, "{name}: nothing seen");
                let none: &[f32] = &[f32::NAN, f32::INFINITY];
                assert_eq!(range(name, &[none, &[]], goal), None, "{name}: nothing finite seen");

                for data in
                    [&bell[..], &relu, &[0.5, -2.0, f32::NAN, 3.0], &[-1.0], &[0.0; 9], &[1e-42]]
                {
                    let finite = data.iter().copied().filter(|x| x.is_finite());
                    let lo = finite.clone().fold(f32::INFINITY, f32::min);
                    let hi = finite.fold(f32::NEG_INFINITY, f32::max);
                    let (min, max) = range(name, &[data], goal).unwrap();
                    assert!(
                        lo <= min && min <= max && max <= hi,
                        "{name}: [{min}, {max}] within [{lo}, {hi}]"
                    );
                }
            }
        }
    }

    #[test]
    fn outliers_are_clipped_by_every_calibrator_that_searches() {
        let mut data = bell(200_000, 3);
        data[17] = 100.0;
        // One outlier of 200,000 moves the least squared error to about 79 for 255 steps: (21^2 + 0) / 200,000 of
        // clipping against 0.32^2 / 12 of rounding.
        for (name, least, most) in
            [("percentile", 3.0, 6.0), ("entropy", 2.0, 30.0), ("mse", 2.0, 95.0)]
        {
            for goal in GOALS {
                let (min, max) = range(name, &[&data], goal).unwrap();
                assert!((least..most).contains(&max), "{name}, {goal:?}: [{min}, {max}]");
            }
        }
        assert_eq!(range("min_max", &[&data], GOALS[0]).unwrap().1, 100.0);
    }

    #[test]
    fn a_range_without_tails_is_kept_nearly_whole_by_the_searching_calibrators() {
        let data: Vec<f32> = (0..100_000).map(|i| (i as f32 / 50_000.0) - 1.0).collect();
        for name in ["entropy", "mse", "percentile"] {
            let (min, max) = range(name, &[&data], GOALS[1]).unwrap();
            assert!(min < -0.97 && 0.97 < max, "{name}: [{min}, {max}]");
        }
    }

    #[test]
    fn names_are_unique_and_found() {
        for def in CALIBRATORS {
            assert_eq!(CALIBRATORS.iter().filter(|d| d.name == def.name).count(), 1);
            assert_eq!(Calibrator::named(def.name).unwrap().def.name, def.name);
        }
        assert!(Calibrator::named("minmax").is_none());
    }
}
