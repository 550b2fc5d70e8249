//! From sums to codes.

use alloc::{boxed::Box, vec, vec::Vec};
use midtread_num::QRange;
use midtread_num::requant::{Multiplier, requantize};

use super::lanes::{Lanes, N};
use super::{Add, Bytes};

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
    /// What codes are put through.
    row: Option<Box<Row>>,
    lo: f32,
    hi: f32,
    pub(super) codes: [i32; 2],
    pub(super) zero_point: i32,
}

/// A row of codes, one for each channel, and the sum of codes with it: [`Add`] with what does not depend on the codes
/// computed ahead.
///
/// `round(clamp(code * factor + terms))`, and where the row is the first of the two
/// `round(clamp(first * first_factor + (code * factor + terms)))`.
#[derive(Clone, Debug)]
struct Row {
    factor: f32,
    terms: Vec<f32>,
    first: Option<(Vec<f32>, f32)>,
    lo: f32,
    hi: f32,
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
    row: Option<RowChannels<L>>,
}

/// A [`Row`] in registers.
#[derive(Clone, Copy)]
struct RowChannels<L: Lanes> {
    factor: L::F,
    terms: L::F,
    first: Option<(L::F, L::F)>,
    lo: L::F,
    hi: L::F,
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
        let codes = l.add(l.round(x), self.zero_point);
        let Some(row) = self.row else { return codes };
        let mut x = l.mul_add(l.to_f32(codes), row.factor, row.terms);
        if let Some((first, factor)) = row.first {
            x = l.mul_add(first, factor, x);
        }
        l.round(l.clamp(x, row.lo, row.hi))
    }

    /// The numbers of sums.
    #[inline(always)]
    pub(super) fn numbers(&self, l: L, sums: L::I) -> L::F {
        let x = self.scaled(l, sums);
        match self.shifts {
            Some(shifts) => l.add_f32(x, shifts),
            None => x,
        }
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
        Self { scales: filled(scales, 0.0), ..Self::empty(bias, codes, zero_point) }
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

    /// The same factor and no bias for every channel.
    ///
    /// # Panics
    ///
    /// When the factor is not a number.
    pub fn uniform(factor: Factor, codes: [i32; 2], zero_point: i32) -> Self {
        match factor {
            Factor::Float(factor) => Self::new(&[0; N], &[factor; N], codes, zero_point),
            Factor::Fixed(factor) => Self::fixed_point(&[0; N], &[factor; N], codes, zero_point),
        }
    }

    /// Codes are put through `add`, whose second input is the code of their channel in `row`. With `is_swapped` it is
    /// the first: `add` is then given as the sum of the codes and the row all the same.
    ///
    /// # Panics
    ///
    /// When the row's codes are not one for each channel, or there are multipliers.
    pub fn with_row(self, add: &Add, row: Bytes, is_swapped: bool) -> Self {
        self.check(row.data.len());
        assert!(self.multipliers.is_none(), "a sum in floating point");
        let [factor, row_factor] = add.factors;
        let numbers: Vec<f32> = (0..row.data.len()).map(|i| row.value(i) as f32).collect();
        let (terms, first) = if is_swapped {
            let terms = vec![add.swapped_offset; numbers.len()];
            (terms, Some((filled(&numbers, 0.0), row_factor)))
        } else {
            let term = |x: &f32| libm::fmaf(*x, row_factor, add.offset);
            (numbers.iter().map(term).collect(), None)
        };
        let row = Row { factor, terms: filled(&terms, 0.0), first, lo: add.lo, hi: add.hi };
        Self { row: Some(Box::new(row)), ..self }
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
        Self { bias, scales, shifts: None, multipliers: None, row: None, lo, hi, codes, zero_point }
    }

    /// As the kernels read it.
    pub(super) fn view(&self) -> RequantView<'_> {
        RequantView {
            bias: &self.bias,
            scales: &self.scales,
            shifts: self.shifts.as_deref(),
            multipliers: self.multipliers.as_deref(),
            row: self.row.as_ref().map(|row| RowView {
                factor: row.factor,
                terms: &row.terms,
                first: row.first.as_ref().map(|(first, factor)| (&first[..], *factor)),
                lo: row.lo,
                hi: row.hi,
            }),
            lo: self.lo,
            hi: self.hi,
            codes: self.codes,
            zero_point: self.zero_point,
        }
    }

    /// Panics when it is for another number of channels.
    pub(super) fn check(&self, n_channels: usize) {
        assert_eq!(self.bias.len(), n_channels.next_multiple_of(N), "a bias for each channel");
    }
}

/// What a [`Requant`] holds, wherever it lies.
#[derive(Clone, Copy)]
pub(super) struct RequantView<'a> {
    pub(super) bias: &'a [i32],
    /// Or sixteen that are all the same, for all.
    pub(super) scales: &'a [f32],
    pub(super) shifts: Option<&'a [f32]>,
    /// Or one sixteen, for all.
    pub(super) multipliers: Option<&'a [[Multiplier; N]]>,
    pub(super) row: Option<RowView<'a>>,
    pub(super) lo: f32,
    pub(super) hi: f32,
    pub(super) codes: [i32; 2],
    pub(super) zero_point: i32,
}

/// A [`Row`], wherever it lies.
#[derive(Clone, Copy)]
pub(super) struct RowView<'a> {
    pub(super) factor: f32,
    pub(super) terms: &'a [f32],
    pub(super) first: Option<(&'a [f32], f32)>,
    pub(super) lo: f32,
    pub(super) hi: f32,
}

impl<'a> RequantView<'a> {
    /// Whether codes are made without floating point.
    pub(super) fn is_fixed_point(&self) -> bool {
        self.multipliers.is_some()
    }

    /// The sixteen scales from channel `channel` on.
    #[inline(always)]
    pub(super) fn scales_from(&self, channel: usize) -> &'a [f32] {
        &self.scales[channel.min(self.scales.len() - N)..]
    }

    /// What concerns the sixteen channels from `channel` on.
    #[inline(always)]
    #[expect(
        clippy::manual_map,
        reason = "a closure would be compiled without its caller's instructions"
    )]
    pub(super) fn channels<L: Lanes>(&self, l: L, channel: usize) -> Channels<'a, L> {
        let shifts = match self.shifts {
            Some(shifts) => Some(l.load_f32(&shifts[channel..])),
            None => None,
        };
        let multipliers = self.multipliers.map(|lanes| &lanes[(channel / N).min(lanes.len() - 1)]);
        let row = match self.row {
            Some(row) => {
                let first = match row.first {
                    Some((x, f)) => Some((l.load_f32(&x[channel..]), l.splat_f32(f))),
                    None => None,
                };
                Some(RowChannels {
                    factor: l.splat_f32(row.factor),
                    terms: l.load_f32(&row.terms[channel..]),
                    first,
                    lo: l.splat_f32(row.lo),
                    hi: l.splat_f32(row.hi),
                })
            }
            None => None,
        };
        Channels {
            row,
            multipliers,
            codes: self.codes,
            zero: self.zero_point,
            bias: l.load(&self.bias[channel..]),
            scales: l.load_f32(self.scales_from(channel)),
            shifts,
            lo: l.splat_f32(self.lo),
            hi: l.splat_f32(self.hi),
            zero_point: l.splat(self.zero_point),
        }
    }
}

/// Up to whole registers.
fn filled<T: Copy>(values: &[T], with: T) -> Vec<T> {
    let mut values = values.to_vec();
    values.resize(values.len().next_multiple_of(N), with);
    values
}
