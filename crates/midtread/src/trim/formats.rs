//! One tensor's numbers: from its range and a width to a fraction length or a split, and values to them.

use midtread_num::{
    QParams,
    formats::{
        Format, Matrix,
        fixed_point::{Holds, fraction_length},
        float::{FloatType, exp2},
    },
};
use midtread_quant::calibrate::{Calibrator, histogram};

use super::{Mode, Rounding, Source, fixed_range};

/// The numbers that a tensor may have.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    /// `q * 2^-fraction_length`, `q` of `n_bits`.
    Fixed {
        /// Sign included.
        n_bits: u32,
        /// Bits after the binary point; may be negative, or more than there are.
        fraction_length: i32,
        /// The same as scale and zero point.
        params: QParams,
        /// How values become `q`.
        rounding: Rounding,
    },
    /// Floats of this split, past the largest saturated.
    Float(FloatType),
    /// A sign and a power of two, or zero, in so many bits.
    Power(u32),
}

impl Numbers {
    /// Sign included.
    pub fn n_bits(&self) -> u32 {
        match self {
            Self::Fixed { n_bits, .. } | Self::Power(n_bits) => *n_bits,
            Self::Float(float) => float.n_bits(),
        }
    }

    /// Bits before the binary point (sign included) and after it.
    pub fn lengths(&self) -> Option<(i32, i32)> {
        match self {
            Self::Fixed { n_bits, fraction_length, .. } => {
                Some((*n_bits as i32 - fraction_length, *fraction_length))
            }
            Self::Float(_) | Self::Power(_) => None,
        }
    }

    /// Each value as one of these numbers. NaN becomes the least, as in QuantizeLinear.
    pub fn round_in_place(&self, values: &mut [f32], seed: u64) {
        match self {
            Self::Fixed { n_bits, params, rounding: Rounding::Nearest, .. } => {
                let range = fixed_range(*n_bits);
                values.iter_mut().for_each(|x| *x = params.fake_quantize(*x, range));
            }
            Self::Fixed { n_bits, params, fraction_length, rounding: Rounding::Stochastic } => {
                let range = fixed_range(*n_bits);
                let mut noise = Noise(seed);
                let up = f64::from(exp2(*fraction_length));
                for x in values {
                    // Exact: a product with a power of two. The floor of a sum is where chance comes in.
                    let q = (f64::from(*x) * up + noise.next()).floor();
                    let q = q.clamp(f64::from(range.qmin()), f64::from(range.qmax())) as i32;
                    *x = params.dequantize(q);
                }
            }
            Self::Float(float) => values.iter_mut().for_each(|x| *x = float.round(*x)),
            Self::Power(_) => {
                let rounded = self.round_all(values, seed);
                values.copy_from_slice(&rounded);
            }
        }
    }

    /// The same in another vector.
    pub fn round_all(&self, values: &[f32], seed: u64) -> Vec<f32> {
        if let Self::Power(n_bits) = self {
            let format = Format::named(&format!("pow2_{n_bits}")).expect("2 to 8 bits are named");
            // Values that are not finite were refused when the network was planned.
            return format.round_trip(&Matrix::row(values)).unwrap_or_else(|_| values.to_vec());
        }
        let mut rounded = values.to_vec();
        self.round_in_place(&mut rounded, seed);
        rounded
    }
}

/// The numbers of each tensor of a group, in order.
pub(crate) fn of_group(
    mode: Mode,
    rounding: Rounding,
    calibrator: &Calibrator,
    n_bits: u32,
    sources: &[&Source<'_>],
) -> Vec<Numbers> {
    let is_weights = sources.iter().any(|source| source.values.is_some());
    match mode {
        Mode::Minifloat => {
            let split = best_split(n_bits, sources);
            sources.iter().map(|_| Numbers::Float(split)).collect()
        }
        Mode::PowerOfTwo if is_weights => sources.iter().map(|_| Numbers::Power(n_bits)).collect(),
        Mode::FixedPoint | Mode::PowerOfTwo => sources
            .iter()
            .map(|source| fixed(n_bits, source, calibrator.def.name != "min_max", rounding))
            .collect(),
    }
}

/// Fixed point over the range that counts. A weight's range is its largest magnitude, or, where outliers need not
/// count (`is_robust`), the power of two with the least squared error.
fn fixed(n_bits: u32, source: &Source<'_>, is_robust: bool, rounding: Rounding) -> Numbers {
    let range = fixed_range(n_bits);
    let numbers = |fraction_length: i32| {
        let params = QParams::new(exp2(-fraction_length), 0, range).expect("a power of two");
        Numbers::Fixed { n_bits, fraction_length, params, rounding }
    };
    let covers_all = fraction_length(source.max_abs, n_bits, Holds::Weights);
    let Some(values) = source.values.as_ref().filter(|_| is_robust) else {
        return numbers(covers_all);
    };
    let error = |fraction_length: i32| -> f64 {
        let nearest = match numbers(fraction_length) {
            Numbers::Fixed { params, .. } => params,
            _ => unreachable!("it is fixed point"),
        };
        values.iter().map(|x| square(nearest.fake_quantize(*x, range) - x)).sum()
    };
    let candidates = covers_all..=(covers_all + 4).min(126);
    let best = candidates.map(|fl| (error(fl), fl)).min_by(|a, b| a.0.total_cmp(&b.0));
    numbers(best.map_or(covers_all, |(_, fl)| fl))
}

fn square(x: f32) -> f64 {
    f64::from(x) * f64::from(x)
}

/// The split of `n_bits` with the least squared error relative to each tensor's own squares.
fn best_split(n_bits: u32, sources: &[&Source<'_>]) -> FloatType {
    let splits = (1..=(n_bits - 1).min(8)).map(|e| FloatType::minifloat(e, n_bits - 1 - e));
    let error = |split: FloatType| -> f64 {
        let of = |source: &&Source<'_>| {
            let mut sums = (0.0, 0.0);
            let mut add = |x: f32, n: f64| {
                sums.0 += n * square(split.round(x) - x);
                sums.1 += n * square(x);
            };
            match (&source.values, source.stats) {
                (Some(values), _) => {
                    // Every so many: a split is not worth a pass over every weight.
                    let step = values.len().div_ceil(4096).max(1);
                    values.iter().step_by(step).for_each(|x| add(*x, 1.0));
                }
                (None, Some(stats)) => {
                    for bin in histogram::bins(stats.counts()) {
                        add((0.5 * (bin.lo + bin.hi)) as f32, bin.n as f64);
                    }
                }
                (None, None) => add(source.max_abs, 1.0),
            }
            if 0.0 < sums.1 { sums.0 / sums.1 } else { 0.0 }
        };
        sources.iter().map(of).sum()
    };
    splits
        .map(|split| (error(split), split))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, split)| split)
        .expect("there is a split of two bits")
}

/// Numbers from 0 to below 1: SplitMix64 (Steele, Lea and Flood 2014).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(values: &[f32]) -> Source<'static> {
        let max_abs = values.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let id = midtread_graph::Graph::default().intern("w");
        let group = super::super::Group::ConvWeights;
        Source { id, group, max_abs, values: Some(values.to_vec()), stats: None }
    }

    #[test]
    fn fixed_point_is_num_s_and_its_lengths_add_up() {
        let values = [0.75, -1.3, 0.01, 2.9];
        let numbers = fixed(6, &source(&values), false, Rounding::Nearest);
        // 2.9 needs ceil(log2(2.9)) + 1 = 3 bits before the point.
        assert_eq!(numbers.lengths(), Some((3, 3)));
        assert_eq!(numbers.round_all(&values, 0), [0.75, -1.25, 0.0, 2.875]);
        let codes = values.map(|x| midtread_num::formats::fixed_point::code(x, 6, 3));
        assert_eq!(codes, [6, -10, 0, 23]);
    }

    #[test]
    fn an_outlier_counts_only_where_ranges_are_not_robust() {
        let mut values: Vec<f32> = (0..1000).map(|i| (i as f32 / 500.0 - 1.0) * 0.4).collect();
        values.push(1.1);
        let lengths =
            |is_robust| fixed(4, &source(&values), is_robust, Rounding::Nearest).lengths();
        assert_eq!(lengths(false), Some((2, 2)));
        assert_eq!(lengths(true), Some((0, 4)));
    }

    #[test]
    fn stochastic_rounding_is_right_on_average_and_the_same_for_a_seed() {
        let values = vec![0.3_f32; 20_000];
        let numbers = fixed(4, &source(&[0.9]), false, Rounding::Stochastic);
        let a = numbers.round_all(&values, 7);
        assert_eq!(a, numbers.round_all(&values, 7));
        assert_ne!(a, numbers.round_all(&values, 8));
        // Steps of 1/8: 0.25 or 0.375.
        assert!(a.iter().all(|x| *x == 0.25 || *x == 0.375));
        let mean = a.iter().map(|x| f64::from(*x)).sum::<f64>() / a.len() as f64;
        // Six standard errors of a mean of 20,000 coins of 0.4: 6 * 0.125 * sqrt(0.24 / 20000).
        assert!((mean - 0.3).abs() < 0.0026, "{mean}");
    }

    #[test]
    fn a_minifloat_s_split_follows_the_spread() {
        let narrow: Vec<f32> = (0..256).map(|i| 0.5 + i as f32 / 512.0).collect();
        let wide: Vec<f32> = (0..256).map(|i| exp2(i % 24 - 20)).collect();
        let exponent_bits = |values: &[f32]| best_split(8, &[&source(values)]).exponent_bits;
        assert!(exponent_bits(&narrow) < exponent_bits(&wide));
    }
}
