//! From sums to codes.

use super::lanes::{Lanes, N};

/// How the sums of each output channel become codes, or numbers.
#[derive(Clone, Debug)]
pub struct Requant {
    /// Added to the sums; as many as output channels, filled up to whole registers.
    pub(super) bias: Vec<i32>,
    pub(super) scales: Vec<f32>,
    /// Added to numbers.
    shifts: Option<Vec<f32>>,
    lo: f32,
    hi: f32,
    zero_point: i32,
}

/// A [`Requant`] in registers.
#[derive(Clone, Copy)]
pub(super) struct Channels<L: Lanes> {
    bias: L::I,
    scales: L::F,
    shifts: Option<L::F>,
    lo: L::F,
    hi: L::F,
    zero_point: L::I,
}

impl<L: Lanes> Channels<L> {
    /// The codes of sums.
    #[inline(always)]
    pub(super) fn codes(&self, l: L, sums: L::I) -> L::I {
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
        let n = bias.len().next_multiple_of(N);
        let (mut bias, mut scales) = (bias.to_vec(), scales.to_vec());
        bias.resize(n, 0);
        scales.resize(n, 0.0);
        let [lo, hi] = codes.map(|code| (code - zero_point) as f32);
        Self { bias, scales, shifts: None, lo, hi, zero_point }
    }

    /// For [`Out::Numbers`] alone: `f32(sum + bias) * scale + shift`, each step rounded.
    ///
    /// # Panics
    ///
    /// When they differ in length.
    pub fn to_numbers(bias: &[i32], scales: &[f32], shifts: Option<&[f32]>) -> Self {
        assert_eq!(bias.len(), scales.len(), "a bias and a scale for each channel");
        assert!(shifts.is_none_or(|s| s.len() == bias.len()), "a shift for each channel");
        let filled = |values: &[f32]| {
            let mut values = values.to_vec();
            values.resize(values.len().next_multiple_of(N), 0.0);
            values
        };
        let mut bias = bias.to_vec();
        bias.resize(bias.len().next_multiple_of(N), 0);
        let (scales, shifts) = (filled(scales), shifts.map(filled));
        Self { bias, scales, shifts, lo: 0.0, hi: 0.0, zero_point: 0 }
    }

    /// What concerns the sixteen channels from `channel` on.
    #[inline(always)]
    pub(super) fn channels<L: Lanes>(&self, l: L, channel: usize) -> Channels<L> {
        Channels {
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
