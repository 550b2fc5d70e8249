//! Uniform quantizers of both kinds, and their staircases, in `f64`.
//!
//! A mid-tread quantizer has a level at exactly 0, in the middle of a tread of its staircase: every
//! tensor format here is one, because padding and ReLU make exact zeros. A mid-rise quantizer has a
//! threshold at 0 and uses an even number of levels evenly; at two and three bits it loses less.

use alloc::vec::Vec;

use crate::affine::{QParamsError, Sign, Span};
use crate::round::Rounding;

/// Where 0 is on the staircase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// On a tread: `x' = step * round(x / step)`. Halves to even.
    MidTread,
    /// On a rise: `x' = step * (floor(x / step) + 1/2)`.
    MidRise,
}

/// A uniform quantizer with its codes limited.
///
/// Invariant: `step` is finite and positive, `qmin <= 0 <= qmax`, `qmin < qmax`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Uniform {
    kind: Kind,
    step: f64,
    qmin: i64,
    qmax: i64,
}

impl Uniform {
    /// With the codes of `bits` signed bits, 1..=32: `-2^(bits - 1)` to `2^(bits - 1) - 1`.
    ///
    /// For [`Kind::MidTread`], [`Span::Narrow`] leaves out the lowest, so that the levels are
    /// symmetric; a mid-rise quantizer's already are. Refuses other widths and spans, and a `step`
    /// that is not positive and finite.
    pub fn new(kind: Kind, step: f64, bits: u32, span: Span) -> Result<Self, QParamsError> {
        if !(step.is_finite() && 0.0 < step) {
            return Err(QParamsError::Scale(step as f32));
        }
        let half = 1_i64 << (bits.clamp(1, 32) - 1);
        let (qmin, qmax) = match (kind, span) {
            (_, Span::Full) if (1..=32).contains(&bits) => (-half, half - 1),
            (Kind::MidTread, Span::Narrow) if (2..=32).contains(&bits) => (1 - half, half - 1),
            _ => return Err(QParamsError::Width { bits, sign: Sign::Signed, span }),
        };
        Ok(Self { kind, step, qmin, qmax })
    }

    /// The distance between neighboring levels.
    pub fn step(self) -> f64 {
        self.step
    }

    /// The smallest and the largest code.
    pub fn codes(self) -> (i64, i64) {
        (self.qmin, self.qmax)
    }

    /// The code of `x`, saturated. NaN has the code 0.
    pub fn code(self, x: f64) -> i64 {
        let rounding = match self.kind {
            Kind::MidTread => Rounding::TiesEven,
            Kind::MidRise => Rounding::Floor,
        };
        (rounding.round(x / self.step) as i64).clamp(self.qmin, self.qmax)
    }

    /// What a code stands for.
    pub fn level(self, code: i64) -> f64 {
        match self.kind {
            Kind::MidTread => self.step * code as f64,
            Kind::MidRise => self.step * (code as f64 + 0.5),
        }
    }

    /// What `x` becomes.
    pub fn quantize(self, x: f64) -> f64 {
        self.level(self.code(x))
    }

    /// The staircase: where it rises to the next level, from left to right. One fewer than the codes.
    pub fn thresholds(self) -> Vec<f64> {
        (self.qmin + 1..=self.qmax)
            .map(|code| match self.kind {
                Kind::MidTread => self.step * (code as f64 - 0.5),
                Kind::MidRise => self.step * code as f64,
            })
            .collect()
    }

    /// The levels from left to right.
    pub fn levels(self) -> Vec<f64> {
        (self.qmin..=self.qmax).map(|code| self.level(code)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mid_tread_has_a_level_at_zero() {
        let tread = Uniform::new(Kind::MidTread, 0.5, 3, Span::Full).unwrap();
        let rise = Uniform::new(Kind::MidRise, 0.5, 3, Span::Full).unwrap();
        assert_eq!(tread.levels(), [-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5]);
        assert_eq!(rise.levels(), [-1.75, -1.25, -0.75, -0.25, 0.25, 0.75, 1.25, 1.75]);
        assert_eq!(tread.thresholds(), [-1.75, -1.25, -0.75, -0.25, 0.25, 0.75, 1.25]);
        assert_eq!(rise.thresholds(), [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5]);
        assert_eq!((tread.quantize(0.0), rise.quantize(0.0)), (0.0, 0.25));
        assert_eq!((tread.quantize(99.0), rise.quantize(-99.0)), (1.5, -1.75));
    }

    #[test]
    fn a_value_between_two_thresholds_has_the_level_between_them() {
        for kind in [Kind::MidTread, Kind::MidRise] {
            for bits in 1..=8 {
                let q = Uniform::new(kind, 0.25, bits, Span::Full).unwrap();
                let (thresholds, levels) = (q.thresholds(), q.levels());
                assert_eq!(thresholds.len() + 1, levels.len());
                for (i, threshold) in thresholds.iter().enumerate() {
                    assert_eq!(q.quantize(threshold - 1e-6), levels[i], "{kind:?} {bits}");
                    assert_eq!(q.quantize(threshold + 1e-6), levels[i + 1], "{kind:?} {bits}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_quantizer_is_refused() {
        for step in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Uniform::new(Kind::MidTread, step, 8, Span::Full).is_err());
        }
        for (kind, bits, span) in [
            (Kind::MidTread, 0, Span::Full),
            (Kind::MidTread, 33, Span::Full),
            (Kind::MidTread, 1, Span::Narrow),
            (Kind::MidRise, 4, Span::Narrow),
            (Kind::MidTread, 4, Span::Reduced),
        ] {
            assert!(Uniform::new(kind, 1.0, bits, span).is_err(), "{kind:?} {bits} {span:?}");
        }
    }
}
