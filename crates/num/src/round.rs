//! Rounding to an integer, by name.

/// How a real number becomes an integer.
///
/// [`Rounding::TiesEven`] is what ONNX, onnxruntime and every SIMD conversion use, and the only one
/// that the product quantizes with. The others exist in other tools' formats and to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Rounding {
    /// To the nearest; halves to the even neighbor: 0.5 -> 0, 1.5 -> 2, -2.5 -> -2.
    #[default]
    TiesEven,
    /// To the nearest; halves away from zero: 0.5 -> 1, -2.5 -> -3. C's `round`, TFLite's quantizer.
    TiesAway,
    /// Downwards: -0.1 -> -1.
    Floor,
    /// Upwards: 0.1 -> 1.
    Ceil,
    /// Towards zero: 1.9 -> 1, -1.9 -> -1. A C cast.
    Toward0,
    /// To the nearest; halves upwards: 0.5 -> 1, -2.5 -> -2. What `(acc + half) >> shift` does.
    TiesUp,
}

impl Rounding {
    /// Every mode, in the order of the enum.
    pub const ALL: &'static [Self] =
        &[Self::TiesEven, Self::TiesAway, Self::Floor, Self::Ceil, Self::Toward0, Self::TiesUp];

    /// The name that options and reports use: `"ties_even"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::TiesEven => "ties_even",
            Self::TiesAway => "ties_away",
            Self::Floor => "floor",
            Self::Ceil => "ceil",
            Self::Toward0 => "toward_0",
            Self::TiesUp => "ties_up",
        }
    }

    /// The mode called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mode| mode.name() == name)
    }

    /// `x` as an integer. NaN and infinities stay what they are.
    pub fn round(self, x: f64) -> f64 {
        match self {
            Self::TiesEven => ties_even_f64(x),
            Self::TiesAway => libm::round(x),
            Self::Floor => libm::floor(x),
            Self::Ceil => libm::ceil(x),
            Self::Toward0 => libm::trunc(x),
            Self::TiesUp => {
                // Not `floor(x + 0.5)`: for 0.49999999999999994 the sum rounds to 1.
                let floor = libm::floor(x);
                if x - floor < 0.5 { floor } else { libm::ceil(x) }
            }
        }
    }
}

/// `x` rounded to the nearest integer, halves to even; `f32::round_ties_even` for `no_std`.
#[inline]
pub fn ties_even(x: f32) -> f32 {
    // Above 2^23 every f32 is an integer; below, adding 2^23 leaves no bits for the fraction.
    const TWO_23: f32 = 8_388_608.0;
    let magnitude = x.abs();
    if magnitude < TWO_23 { ((magnitude + TWO_23) - TWO_23).copysign(x) } else { x }
}

/// [`ties_even`] for `f64`.
#[inline]
pub fn ties_even_f64(x: f64) -> f64 {
    const TWO_52: f64 = 4_503_599_627_370_496.0;
    let magnitude = x.abs();
    if magnitude < TWO_52 { ((magnitude + TWO_52) - TWO_52).copysign(x) } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_differ_as_their_docs_say() {
        #[rustfmt::skip]
        let cases = [
            //  x      even  away  floor  ceil  to 0   up
            (  0.5, [  0.0,  1.0,  0.0,   1.0,  0.0,  1.0]),
            (  1.5, [  2.0,  2.0,  1.0,   2.0,  1.0,  2.0]),
            ( -0.5, [ -0.0, -1.0, -1.0,  -0.0, -0.0, -0.0]),
            ( -2.5, [ -2.0, -3.0, -3.0,  -2.0, -2.0, -2.0]),
            ( -0.1, [ -0.0, -0.0, -1.0,  -0.0, -0.0, -0.0]),
            (  1.9, [  2.0,  2.0,  1.0,   2.0,  1.0,  2.0]),
            (0.49999999999999994, [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]),
        ];
        for (x, want) in cases {
            for (mode, want) in Rounding::ALL.iter().zip(want) {
                assert_eq!(mode.round(x), want, "{} of {x}", mode.name());
            }
        }
    }

    #[test]
    fn names_lead_back_to_their_modes() {
        for mode in Rounding::ALL {
            assert_eq!(Rounding::from_name(mode.name()), Some(*mode));
        }
        assert_eq!(Rounding::from_name("nearest"), None);
    }

    #[test]
    fn ties_even_is_the_standard_library_s_bit_for_bit() {
        let mut bits = 1_u32;
        for i in 0..2_000_000_u32 {
            bits ^= bits << 13;
            bits ^= bits >> 17;
            bits ^= bits << 5;
            let near_a_tie = (i % 5000) as f32 * 0.5 * if i % 2 == 0 { 1.0 } else { -1.0 };
            for x in
                [f32::from_bits(bits), near_a_tie, near_a_tie.next_up(), near_a_tie.next_down()]
            {
                let (got, want) = (ties_even(x), x.round_ties_even());
                assert!(
                    got.to_bits() == want.to_bits() || want.is_nan() && got.is_nan(),
                    "{x}: {got}"
                );
                let (x, want) = (f64::from(x), f64::from(x).round_ties_even());
                let got = ties_even_f64(x);
                assert!(
                    got.to_bits() == want.to_bits() || want.is_nan() && got.is_nan(),
                    "{x}: {got}"
                );
            }
        }
        for x in [8_388_607.5_f32, 8_388_608.0, 8_388_609.0, 16_777_217.0, f32::INFINITY, -0.0] {
            assert_eq!(ties_even(x).to_bits(), x.round_ties_even().to_bits(), "{x}");
        }
    }
}
