//! From sums to codes.

use alloc::{vec, vec::Vec};
use midtread_num::QRange;
use midtread_num::requant::{Multiplier, requantize};

use super::lanes::{Lanes, N};

/// How the sums of each output channel become codes, or numbers.
#[derive(Clone, Debug)]
pub struct Requant {
    /// Added to the sums; as many as output channels, filled up to whole registers.
    pub(super) bias: Vec<i32>,
    pub(super) scales: Vec<f32>,
    /// Added to numbers.
    pub(super) shifts: Option<Vec<f32>>,
    /// Instead of `scales`, where there is no floating point.
    multipliers: Option<Vec<[Multiplier; N]>>,
    lo: f32,
    hi: f32,
    pub(super) codes: [i32; 2],
    pub(super) zero_point: i32,
    /// Whether every scaled sum is in the range of `i32`, because the scales are below 1.
    pub(super) is_small: bool,
    /// The largest magnitude of a bias and of a scale; infinite where there are multipliers.
    largest: [f64; 2],
}

/// From one sum to a code, with the same factor for all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// What a sum is multiplied with.
    pub factor: Factor,
    /// Where it then lies.
    pub zero_point: i32,
    /// The codes of the output's type.
    pub range: QRange,
    /// The least and the greatest of them that the result is kept between.
    pub codes: [i32; 2],
}

/// What a sum is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Factor {
    /// In `f32`, as [`requantize`] does.
    Float(f32),
    /// Without floating point, as [`Multiplier::requantize`] does.
    Fixed(Multiplier),
}

impl Rule {
    /// The code of a sum.
    #[inline]
    pub fn code(&self, acc: i32) -> i32 {
        let code = match self.factor {
            Factor::Float(factor) => requantize(acc, factor, self.zero_point, self.range),
            Factor::Fixed(factor) => factor.requantize(acc, self.zero_point, self.range),
        };
        code.clamp(self.codes[0], self.codes[1])
    }
}

/// A [`Requant`] in registers.
#[derive(Clone, Copy)]
pub(super) struct Channels<'a, L: Lanes> {
    multipliers: Option<&'a [Multiplier; N]>,
    codes: [i32; 2],
    zero: i32,
    bias: L::I,
    scales: L::F,
    shifts: Option<L::F>,
    lo: L::F,
    hi: L::F,
    zero_point: L::I,
}

impl<L: Lanes> Channels<'_, L> {
    /// The codes of sums.
    #[inline(always)]
    pub(super) fn codes(&self, l: L, sums: L::I) -> L::I {
        if let Some(multipliers) = self.multipliers {
            let mut acc = [0; N];
            let [lo, hi] = self.codes;
            l.store(&mut acc, l.add(sums, self.bias));
            for (acc, multiplier) in acc.iter_mut().zip(multipliers) {
                let code = multiplier.apply(*acc) + i64::from(self.zero);
                *acc = code.clamp(i64::from(lo), i64::from(hi)) as i32;
            }
            return l.load(&acc);
        }
        let x = l.clamp(self.scaled(l, sums), self.lo, self.hi);
        l.add(l.round(x), self.zero_point)
    }

    /// The numbers of sums.
    #[inline(always)]
    pub(super) fn numbers(&self, l: L, sums: L::I) -> L::F {
        let x = self.scaled(l, sums);
        self.shifts.map_or(x, |shifts| l.add_f32(x, shifts))
    }

    #[inline(always)]
    fn scaled(&self, l: L, sums: L::I) -> L::F {
        l.mul(l.to_f32(l.add(sums, self.bias)), self.scales)
    }
}

/// What is written.
#[derive(Debug)]
pub enum Out<'a> {
    /// Codes: `clamp(round(f32(acc) * scale), lo, hi) + zero_point`.
    Codes(&'a mut [u8]),
    /// Numbers: `f32(acc) * scale`, plus a shift where there is one.
    Numbers(&'a mut [f32]),
}

impl Out<'_> {
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Codes(codes) => codes.len(),
            Self::Numbers(numbers) => numbers.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Requant {
    /// `bias` is added to the sums of codes: for an input with zero point `z` it is the layer's bias minus `z` times
    /// the sum of the channel's weights. `scales` are `scale_x * scale_w / scale_y`, one for each channel. `codes` are
    /// the least and the greatest code, and `zero_point` the output's.
    ///
    /// # Panics
    ///
    /// When the two differ in length, or a scale is not a number.
    pub fn new(bias: &[i32], scales: &[f32], codes: [i32; 2], zero_point: i32) -> Self {
        assert_eq!(bias.len(), scales.len(), "a bias and a scale for each channel");
        assert!(scales.iter().all(|s| s.is_finite()), "scales are numbers");
        let is_small = scales.iter().all(|scale| scale.abs() < 1.0);
        let largest = [
            bias.iter().map(|bias| f64::from(*bias).abs()).fold(0.0, f64::max),
            scales.iter().map(|scale| f64::from(*scale).abs()).fold(0.0, f64::max),
        ];
        let scales = filled(scales, 0.0);
        Self { scales, is_small, largest, ..Self::empty(bias, codes, zero_point) }
    }

    /// As [`Requant::new`], without floating point: [`Multiplier::requantize`].
    ///
    /// # Panics
    ///
    /// When the two differ in length.
    pub fn fixed_point(
        bias: &[i32],
        multipliers: &[Multiplier],
        codes: [i32; 2],
        zero_point: i32,
    ) -> Self {
        assert_eq!(bias.len(), multipliers.len(), "a bias and a multiplier for each channel");
        let one = Multiplier::from_real(1.0).expect("1 is in range");
        let lanes = filled(multipliers, one).as_chunks().0.to_vec();
        Self { multipliers: Some(lanes), ..Self::empty(bias, codes, zero_point) }
    }

    /// For [`Out::Numbers`] alone: `f32(sum + bias) * scale + shift`, each step rounded.
    ///
    /// # Panics
    ///
    /// When they differ in length.
    pub fn to_numbers(bias: &[i32], scales: &[f32], shifts: Option<&[f32]>) -> Self {
        assert_eq!(bias.len(), scales.len(), "a bias and a scale for each channel");
        assert!(shifts.is_none_or(|s| s.len() == bias.len()), "a shift for each channel");
        let shifts = shifts.map(|shifts| filled(shifts, 0.0));
        Self { scales: filled(scales, 0.0), shifts, ..Self::empty(bias, [0, 0], 0) }
    }

    /// Other biases and scales for the same channels, in place.
    ///
    /// # Panics
    ///
    /// When they are not as many.
    pub fn set_numbers(&mut self, values: impl ExactSizeIterator<Item = (i32, f32)>) {
        assert_eq!(values.len().next_multiple_of(N), self.bias.len(), "as many channels");
        for ((bias, scale), new) in self.bias.iter_mut().zip(&mut self.scales).zip(values) {
            (*bias, *scale) = new;
        }
    }

    fn empty(bias: &[i32], codes: [i32; 2], zero_point: i32) -> Self {
        let [lo, hi] = codes.map(|code| (code - zero_point) as f32);
        let bias = filled(bias, 0);
        let scales = vec![0.0; bias.len()];
        Self {
            bias,
            scales,
            shifts: None,
            multipliers: None,
            lo,
            hi,
            codes,
            zero_point,
            is_small: false,
            largest: [f64::INFINITY; 2],
        }
    }

    /// Whether every scaled sum of so many products of a `u8` and an `i8` is in the range of `i32`, with room for what
    /// rounding adds.
    pub(super) fn is_small_after(&self, n_products: usize) -> bool {
        let [bias, scale] = self.largest;
        self.is_small || (bias + n_products as f64 * 32640.0) * scale < 1_073_741_824.0
    }

    /// What concerns the sixteen channels from `channel` on.
    #[inline(always)]
    pub(super) fn channels<L: Lanes>(&self, l: L, channel: usize) -> Channels<'_, L> {
        Channels {
            multipliers: self.multipliers.as_ref().map(|lanes| &lanes[channel / N]),
            codes: self.codes,
            zero: self.zero_point,
            bias: l.load(&self.bias[channel..]),
            scales: l.load_f32(&self.scales[channel..]),
            shifts: self.shifts.as_ref().map(|shifts| l.load_f32(&shifts[channel..])),
            lo: l.splat_f32(self.lo),
            hi: l.splat_f32(self.hi),
            zero_point: l.splat(self.zero_point),
        }
    }

    /// Panics when it is for another number of channels.
    pub(super) fn check(&self, n_channels: usize) {
        assert_eq!(self.bias.len(), n_channels.next_multiple_of(N), "a bias for each channel");
    }
}

/// Up to whole registers.
fn filled<T: Copy>(values: &[T], with: T) -> Vec<T> {
    let mut values = values.to_vec();
    values.resize(values.len().next_multiple_of(N), with);
    values
}
