//! What becomes of numbers in 16 bits.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use midtread_graph::Tensor;
use midtread_num::{error::ErrorSums, formats::float::Overflow};

use super::{HalfType, Storage};
use crate::plan::constants::floats;

/// The part of the type's range that activations may use on the data that was measured: other data may reach further.
pub const HEADROOM: f32 = 0.5;

/// A tensor of which less is left than this (in decibels of signal over noise) has most of its values among or below
/// the subnormals. Rounding alone leaves 73 (float16, 11 bits of precision).
const MIN_SQNR_DB: f64 = 50.0;

/// Constants of up to so many elements are settings, each of which has to survive; of larger ones, small elements may
/// vanish beside large ones.
const MAX_SETTING: usize = 16;

/// The largest relative error of a setting: an epsilon that is off by a tenth does its work.
const MAX_SETTING_ERROR: f32 = 0.1;

/// Why a constant does not fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Misfit {
    /// This finite value is past the largest one.
    Overflows(f32),
    /// This setting is lost among the smallest numbers.
    Vanishes(f32),
    /// Its values as a whole are too small: so many decibels are left.
    TooSmall(f64),
}

/// What `x` becomes; past the largest number, an infinity.
fn rounded(x: f32, half: HalfType) -> f32 {
    let numbers = half.numbers();
    numbers.decode(numbers.encode(x, Overflow::Special))
}

/// The smallest magnitude that becomes infinite: halfway from the largest number to the next there would be, which is even.
fn overflow(half: HalfType) -> f32 {
    let numbers = half.numbers();
    let max = numbers.max();
    let below = numbers.decode(numbers.encode(max, Overflow::Special) - 1);
    max + (max - below) / 2.0
}

/// Whether a float32 constant keeps its meaning. NaN and infinities have their like in 16 bits.
pub fn check(tensor: &Tensor, half: HalfType) -> Result<(), Misfit> {
    let Ok(values) = floats(tensor) else { return Ok(()) };
    let limit = overflow(half);
    let overflows = |x: &f32| x.is_finite() && limit <= x.abs();
    // Whole chunks without a branch are vectors; models have billions of these.
    let chunk =
        values.chunks(1024).find(|chunk| chunk.iter().fold(false, |any, x| any | overflows(x)));
    if let Some(x) = chunk.and_then(|chunk| chunk.iter().find(|x| overflows(x))) {
        return Err(Misfit::Overflows(*x));
    }
    if values.len() <= MAX_SETTING {
        let is_lost = |x: &&f32| {
            x.is_finite() && MAX_SETTING_ERROR * x.abs() < (rounded(**x, half) - **x).abs()
        };
        return values.iter().find(is_lost).map_or(Ok(()), |x| Err(Misfit::Vanishes(*x)));
    }
    // bfloat16 has float32's exponents: nothing is too small.
    if half == HalfType::Bfloat16 {
        return Ok(());
    }
    let mut sums = ErrorSums::default();
    let mut narrow = [f16::ZERO; 1024];
    let mut wide = [0.0_f32; 1024];
    for chunk in values.chunks(1024) {
        let (narrow, wide) = (&mut narrow[..chunk.len()], &mut wide[..chunk.len()]);
        narrow.convert_from_f32_slice(chunk);
        narrow.convert_to_f32_slice(wide);
        if chunk.iter().all(|x| x.is_finite()) {
            sums = sums.merge(ErrorSums::of(chunk, wide));
        }
    }
    let sqnr = sums.sqnr_db();
    if sqnr < MIN_SQNR_DB { Err(Misfit::TooSmall(sqnr)) } else { Ok(()) }
}

impl Misfit {
    /// A clause about the constant `name`.
    pub fn reason(self, name: &str, half: HalfType) -> String {
        let numbers = half.numbers();
        match self {
            Self::Overflows(x) => {
                format!("`{name}` holds {x:?}; the largest {half} is {}", numbers.max())
            }
            Self::Vanishes(x) => {
                let becomes = rounded(x, half);
                format!("`{name}` holds {x:e}, which would become {becomes:e} in {half}")
            }
            Self::TooSmall(db) => format!(
                "the values of `{name}` are too small for {half} (normal from {:.1e}): {db:.0} dB would be left",
                numbers.min_normal()
            ),
        }
    }
}

/// A float32 tensor in 16 bits, to nearest even.
pub fn convert(tensor: &Tensor, half: HalfType, storage: &Storage) -> Tensor {
    let values = floats(tensor).expect("only float32 constants are converted");
    let limit = match storage {
        Storage::Mask => HEADROOM * half.numbers().max(),
        Storage::Half | Storage::Float(_) => f32::INFINITY,
    };
    let mut made = Tensor::zeros(half.data_type(), tensor.dims().to_vec())
        .expect("half as many bytes as there are");
    let limited: Vec<f32>;
    let values: &[f32] = if limit.is_finite() {
        limited = values.iter().map(|x| x.clamp(-limit, limit)).collect();
        &limited
    } else {
        &values
    };
    match half {
        HalfType::Float16 => {
            let dst = made.to_mut::<f16>().expect("the type is float16");
            dst.convert_from_f32_slice(values);
        }
        HalfType::Bfloat16 => {
            let dst = made.to_mut::<bf16>().expect("the type is bfloat16");
            dst.convert_from_f32_slice(values);
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_or_are_named() {
        let check = |x: f32, half| check(&Tensor::scalar(x), half);
        assert_eq!(check(1e-5, HalfType::Float16), Ok(()));
        assert_eq!(check(1e-12, HalfType::Float16), Err(Misfit::Vanishes(1e-12)));
        // 1.19e-7 is two steps of the smallest subnormal: 19 % off.
        assert_eq!(check(1e-7, HalfType::Float16), Err(Misfit::Vanishes(1e-7)));
        assert_eq!(check(1e-12, HalfType::Bfloat16), Ok(()));
        assert_eq!(check(65504.0, HalfType::Float16), Ok(()));
        // 65519 rounds down to the largest number, 65520 up to infinity.
        assert_eq!(check(65519.0, HalfType::Float16), Ok(()));
        assert_eq!(check(65520.0, HalfType::Float16), Err(Misfit::Overflows(65520.0)));
        assert_eq!(check(f32::MIN, HalfType::Float16), Err(Misfit::Overflows(f32::MIN)));
        assert_eq!(check(f32::NEG_INFINITY, HalfType::Float16), Ok(()));
        assert_eq!(check(0.0, HalfType::Float16), Ok(()));
    }

    #[test]
    fn what_overflows_is_what_rounds_to_infinity() {
        for half in [HalfType::Float16, HalfType::Bfloat16] {
            let limit = overflow(half);
            assert!(!rounded(limit, half).is_finite(), "{half}");
            assert!(rounded(limit.next_down(), half).is_finite(), "{half}");
            let mut values = vec![1.0; 3000];
            values[2500] = -limit;
            let found = check(&Tensor::vector(&values), half);
            assert_eq!(found, Err(Misfit::Overflows(-limit)));
        }
    }

    #[test]
    fn small_weights_may_vanish_beside_large_ones_and_not_all_of_them() {
        let mut values: Vec<f32> = (1..=100).map(|i| i as f32 / 100.0).collect();
        values.push(1e-9);
        assert_eq!(check(&Tensor::vector(&values), HalfType::Float16), Ok(()));
        let tiny: Vec<f32> = values.iter().map(|x| x * 1e-6).collect();
        let misfit = check(&Tensor::vector(&tiny), HalfType::Float16).unwrap_err();
        assert!(matches!(misfit, Misfit::TooSmall(db) if (20.0..50.0).contains(&db)), "{misfit:?}");
        assert_eq!(check(&Tensor::vector(&tiny), HalfType::Bfloat16), Ok(()));
    }

    #[test]
    fn every_converted_number_is_the_definitions() {
        let mut x = 0x1234_5678_u32;
        let mut values = midtread_testkit::HARD.to_vec();
        for _ in 0..5000 {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            values.push(f32::from_bits(x));
        }
        // Near float16's range, where random patterns seldom fall.
        values.extend((0..5000).map(|i| (i as f32 - 2500.0) * 2.7e-8));
        values.extend([65504.0, 65519.996, 65520.0, -65520.0, 2.98e-8, 2.981e-8]);
        for half in [HalfType::Float16, HalfType::Bfloat16] {
            let made = convert(&Tensor::vector(&values), half, &Storage::Half);
            let bits: Vec<u16> =
                made.as_bytes().as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
            for (x, bits) in values.iter().zip(bits) {
                let got = half.numbers().decode(u32::from(bits));
                let want = rounded(*x, half);
                assert!(
                    got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                    "{x:e}: {got:e}, not {want:e}"
                );
            }
        }
    }
}
