//! Softmax of codes, by ONNX Runtime's formula for QLinearSoftmax.

use crate::requant::multiplier;

/// The numbers behind the softmax of rows of one length, from codes of one scale to codes of another.
///
/// A code is `round(e * floor(1 / y_scale) / sum) + zero_point`, at most 255, where `e` is the code's exponential less
/// the greatest of its row, and `sum` the row's of these, added in `f32` from the first to the last.
#[derive(Clone, Debug, PartialEq)]
pub struct Softmax {
    /// By 255 less the greatest byte of the row plus the byte, where signed codes are moved up by 128. So much greater
    /// than the true ones that small ones stay normal and a sum of as many as a row has is finite.
    pub exponentials: [f32; 256],
    factor: f32,
    zero_point: i32,
}

impl Softmax {
    /// Of rows of `len` codes.
    pub fn new(len: usize, x_scale: f32, y_scale: f32, y_zero_point: i32) -> Self {
        let bound = libm::log(f64::from(f32::MAX) / len as f64) - 5.0;
        let head_room = f64::from(multiplier(1.0, 1.0, x_scale)) * bound.max(0.0);
        let exponential =
            |i: usize| libm::exp((i as f64 - 255.0 + head_room) * f64::from(x_scale)) as f32;
        Self {
            exponentials: core::array::from_fn(exponential),
            factor: libm::floorf(multiplier(1.0, 1.0, y_scale)),
            zero_point: y_zero_point,
        }
    }

    /// The code of an exponential in a row of this sum.
    #[inline(always)]
    pub fn code(&self, exponential: f32, sum: f32) -> i32 {
        let most = (255 - self.zero_point) as f32;
        let steps = (exponential * self.factor / sum).min(most);
        // To the nearest, ties to even: from 2^23 on, numbers are integers, and the last bits say which. Steps are
        // neither negative nor more than 383.
        const TWO_23: f32 = 8_388_608.0;
        ((steps + TWO_23).to_bits() - TWO_23.to_bits()).cast_signed() + self.zero_point
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_true_softmax_but_for_the_factor_that_is_cut() {
        let row = [3_u8, 200, 17, 190, 203, 0, 90];
        let (x_scale, y_scale) = (0.05_f32, 1.0 / 256.0);
        let softmax = Softmax::new(row.len(), x_scale, y_scale, 0);
        let e = |byte: u8| softmax.exponentials[usize::from(255 - 203 + byte)];
        let sum: f32 = row.iter().map(|&byte| e(byte)).sum();
        let true_e = |byte: u8| (f64::from(byte) * f64::from(x_scale)).exp();
        let true_sum: f64 = row.iter().map(|&byte| true_e(byte)).sum();
        for byte in row {
            let code = softmax.code(e(byte), sum);
            let want = true_e(byte) / true_sum * 256.0;
            assert!((f64::from(code) - want).abs() <= 0.501, "{byte}: {code}, {want}");
        }
    }

    #[test]
    fn ties_go_to_the_even_code() {
        // Factor 256, and half of a step more than a whole number of them.
        let softmax = Softmax::new(4, 0.1, 1.0 / 256.0, 3);
        for steps in 0..250 {
            let code = softmax.code(2.0 * steps as f32 + 1.0, 512.0);
            let even = (steps as f32 + 0.5).round_ties_even() as i32;
            assert_eq!(code, even + 3, "{steps} and a half");
        }
    }

    #[test]
    fn no_scale_and_no_length_gives_a_code_beyond_the_greatest_or_an_infinite_sum() {
        for len in [1, 2, 1000, 1 << 40] {
            for scale in [f32::MIN_POSITIVE, 1e-9, 0.02, 1.0, 3e5, f32::MAX] {
                for zero_point in [-128, 0, 255] {
                    let softmax = Softmax::new(len, scale, scale, zero_point);
                    let greatest = softmax.exponentials[255];
                    assert!((greatest * len as f32).is_finite(), "{len}, {scale}");
                    let code = softmax.code(greatest, greatest);
                    assert!((zero_point..=255).contains(&code), "{len}, {scale}: {code}");
                }
            }
        }
    }
}
