//! The formulas as textbooks print them, in `f64`.
//!
//! For teaching and for checking other people's figures. They differ from [`crate::affine`] where
//! real tools do: the zero point is added before rounding, the interval is not extended to 0, and
//! saturation can be left out.

use crate::affine::{QParamsError, Sign, Span};
use crate::round::Rounding;

/// What happens to a code outside the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// It becomes the nearest code of the type.
    Saturate,
    /// It stays, as in exercises that ignore the type's limits.
    Keep,
}

/// A value, quantized and back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantized {
    /// The integer.
    pub code: i64,
    /// What it stands for.
    pub value: f64,
    /// `|x - value|`.
    pub error: f64,
    /// Whether the nearest code is outside the type.
    pub saturated: bool,
}

/// `q = round(x * (2^(bits - 1) - 1))`, for an `x` that is meant to lie in [-1, 1].
///
/// `bits` is 2..=32. With [`Overflow::Keep`] pi has the 4-bit "code" 22 and the 8-bit one 399;
/// saturated they are 7 and 127. NaN has the code 0, and 0 as its value.
///
/// Refuses other widths.
pub fn quantize_unit(
    x: f64,
    bits: u32,
    rounding: Rounding,
    overflow: Overflow,
) -> Result<Quantized, QParamsError> {
    if !(2..=32).contains(&bits) {
        return Err(QParamsError::Width { bits, sign: Sign::Signed, span: Span::Narrow });
    }
    let qmax = (1_i64 << (bits - 1)) - 1;
    // `as` saturates at 64 bits.
    let nearest = rounding.round(x * qmax as f64) as i64;
    let saturated = !(-qmax..=qmax).contains(&nearest);
    let code = match overflow {
        Overflow::Saturate => nearest.clamp(-qmax, qmax),
        Overflow::Keep => nearest,
    };
    let value = code as f64 / qmax as f64;
    Ok(Quantized { code, value, error: (x - value).abs(), saturated })
}

/// `x' = scale * (q - zero_point)` with the codes `qmin..=qmax`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Real step between neighbors.
    pub scale: f64,
    /// The code of 0; outside `qmin..=qmax` when 0 is outside the interval.
    pub zero_point: i64,
    /// Smallest code.
    pub qmin: i64,
    /// Largest code.
    pub qmax: i64,
}

impl Affine {
    /// Unsigned: `scale = (max - min) / (2^bits - 1)`, `zero_point = -round(min / scale)`, codes
    /// `0..=2^bits - 1`.
    ///
    /// `bits` is 1..=32. Refuses an interval that is empty or not finite.
    pub fn unsigned(min: f64, max: f64, bits: u32) -> Result<Self, QParamsError> {
        check_bits(bits, Sign::Unsigned)?;
        let qmax = (1_i64 << bits) - 1;
        let scale = (max - min) / qmax as f64;
        check_scale(scale)?;
        let zero_point = -(Rounding::TiesEven.round(min / scale) as i64);
        Ok(Self { scale, zero_point, qmin: 0, qmax })
    }

    /// Signed: the unsigned one, moved down by `2^(bits - 1)`.
    ///
    /// Textbooks write it with `s = 1 / scale = (2^bits - 1) / (max - min)` and
    /// `zero_point = -round(min * s) - 2^(bits - 1)`. (One prints `2^bits + 1`, against its own example.)
    pub fn signed(min: f64, max: f64, bits: u32) -> Result<Self, QParamsError> {
        let half = 1_i64 << (bits.clamp(1, 32) - 1);
        let unsigned = Self::unsigned(min, max, bits)?;
        Ok(Self { zero_point: unsigned.zero_point - half, qmin: -half, qmax: half - 1, ..unsigned })
    }

    /// Symmetric: `scale = max_abs / (2^(bits - 1) - 1)`, zero point 0, codes `-(2^(bits - 1) - 1)` to
    /// `2^(bits - 1) - 1`.
    ///
    /// `bits` is 2..=32.
    pub fn symmetric(max_abs: f64, bits: u32) -> Result<Self, QParamsError> {
        if bits < 2 {
            return Err(QParamsError::Width { bits, sign: Sign::Signed, span: Span::Narrow });
        }
        check_bits(bits, Sign::Signed)?;
        let qmax = (1_i64 << (bits - 1)) - 1;
        let scale = max_abs / qmax as f64;
        check_scale(scale)?;
        Ok(Self { scale, zero_point: 0, qmin: -qmax, qmax })
    }

    /// The same codes, of which only those of `[a, b]` are used: the general form
    /// `q = clip(round(x / S + Z), round(a / S + Z), round(b / S + Z))`.
    pub fn clipped_to(self, a: f64, b: f64) -> Self {
        Self {
            qmin: self.nearest(a, Rounding::TiesEven),
            qmax: self.nearest(b, Rounding::TiesEven),
            ..self
        }
    }

    /// `clamp(round(x / scale + zero_point), qmin, qmax)`, and what it stands for.
    pub fn quantize(self, x: f64, rounding: Rounding) -> Quantized {
        let nearest = self.nearest(x, rounding);
        // Not `clamp`, which panics where `clipped_to` was given an interval in the wrong order.
        let code = nearest.max(self.qmin).min(self.qmax);
        let value = self.dequantize(code);
        Quantized { code, value, error: (x - value).abs(), saturated: code != nearest }
    }

    /// `scale * (q - zero_point)`.
    pub fn dequantize(self, q: i64) -> f64 {
        self.scale * (q - self.zero_point) as f64
    }

    /// `x / scale + zero_point`, which [`Self::quantize`] rounds.
    pub fn scaled(self, x: f64) -> f64 {
        x / self.scale + self.zero_point as f64
    }

    fn nearest(self, x: f64, rounding: Rounding) -> i64 {
        rounding.round(self.scaled(x)) as i64
    }
}

fn check_bits(bits: u32, sign: Sign) -> Result<(), QParamsError> {
    if (1..=32).contains(&bits) {
        Ok(())
    } else {
        Err(QParamsError::Width { bits, sign, span: Span::Full })
    }
}

fn check_scale(scale: f64) -> Result<(), QParamsError> {
    if scale.is_finite() && 0.0 < scale { Ok(()) } else { Err(QParamsError::Scale(scale as f32)) }
}
