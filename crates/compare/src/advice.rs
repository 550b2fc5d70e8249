//! What may have gone wrong with a tensor, and the option that would help.

use midtread_graph::{DataType, Tensor};
use midtread_num::ErrorSums;
use serde::Serialize;

use crate::{
    profile::Profile,
    sums::{Channels, TensorSums},
    view::{Grid, integers},
    weights::WeightPair,
};

/// A cause of error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A scale that does not belong to its integers.
    BrokenScale,
    /// Channels that stand in each other's place.
    SwappedChannels,
    /// Values outside of the range.
    Clipped,
    /// A range much wider than the values.
    TooWide,
    /// A few values far from all others make the range wide.
    Outliers,
    /// Channels that share a scale and differ a hundredfold.
    ChannelRanges,
    /// Channels that rounding made zero.
    DeadChannels,
    /// Biases at the end of the 32-bit integers.
    BiasOverflow,
    /// Sums of products beyond the integers they are computed in.
    SaturatedSums,
    /// NaN or infinity.
    NotFinite,
}

/// One piece of advice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// What it is about.
    pub cause: Cause,
    /// A sentence without its stop.
    pub text: String,
    /// What would help: an option of `midtread quantize`, where one does.
    pub option: Option<String>,
}

impl Advice {
    fn new(cause: Cause, text: String, option: Option<&str>) -> Self {
        Self { cause, text, option: option.map(Into::into) }
    }
}

/// What is known of an activation.
pub(crate) struct Activation<'a> {
    pub(crate) node: &'a str,
    pub(crate) own: Option<&'a TensorSums>,
    pub(crate) accumulated: &'a TensorSums,
    /// Of rounding alone.
    pub(crate) rounding: Option<&'a TensorSums>,
    /// Share of values outside of the range.
    pub(crate) clipped: f64,
    pub(crate) profile: &'a Profile,
    /// How floats become integers, and how they are read.
    pub(crate) grids: Option<(&'a Grid, &'a Grid)>,
}

/// Below this ratio of signal to noise a tensor is worth a word, in dB: 8 bits over a normal distribution give 35 to 40.
const WORTH_A_WORD_DB: f64 = 28.0;

/// Ranges of channels this far apart leave the quiet ones one bit of eight.
const FAR_APART: f32 = 100.0;

/// The causes of an activation's own error, the surest first.
pub(crate) fn of_activation(a: &Activation<'_>) -> Vec<Advice> {
    let mut found = Vec::new();
    if !a.accumulated.total.squared.is_finite() {
        let text = "one of the models makes NaN or infinity of it".to_owned();
        found.push(Advice::new(Cause::NotFinite, text, None));
        return found;
    }
    let Some((to, from)) = a.grids else { return found };
    if let (Some(x), Some(y)) = (to.one(), from.one())
        && (x.scale(), x.zero_point()) != (y.scale(), y.zero_point())
    {
        let text = format!(
            "it is quantized with scale {} and zero point {}, and read with scale {} and zero point {}",
            short(x.scale()),
            x.zero_point(),
            short(y.scale()),
            y.zero_point()
        );
        found.push(Advice::new(Cause::BrokenScale, text, None));
    }
    let is_poor = a.own.or(a.rounding).is_some_and(|sums| sums.worst_db() < WORTH_A_WORD_DB);
    let (Some(rounding), Some(params), Some((min, max)), true) =
        (a.rounding, to.one(), a.profile.min_max, is_poor)
    else {
        return found;
    };
    let exclude = format!("--exclude '{}'", a.node);
    let (lo, hi) = params.real_range(to.range);
    // Rounding to the nearest step makes scale^2 / 12 of noise; what is beyond twice that was clipped.
    let step = f64::from(params.scale());
    if 1e-4 < a.clipped && step * step / 6.0 < rounding.total.mse() {
        let text = format!(
            "{} of its values, which go from {} to {}, lie outside of its range of {} to {}",
            percent(a.clipped),
            short(min),
            short(max),
            short(lo),
            short(hi)
        );
        found.push(Advice::new(Cause::Clipped, text, Some("--calibrator min_max")));
        return found;
    }
    if rounding.worst_db() >= WORTH_A_WORD_DB {
        return found;
    }
    let (width, used) = (hi - lo, max.max(0.0) - min.min(0.0));
    let mut quiet: Vec<f32> =
        a.profile.channel_max.iter().copied().filter(|&max| max != 0.0).collect();
    quiet.sort_by(f32::total_cmp);
    let median = quiet.get(quiet.len() / 2).copied().unwrap_or(0.0);
    let loudest = quiet.last().copied().unwrap_or(0.0);
    let channel = a.profile.channel_max.iter().position(|&max| max == loudest).unwrap_or(0);
    if 4.0 * used < width {
        let text = format!(
            "its scale is {} times what its values need: the range is {} to {}, the values go from {} to {}",
            short(width / used.max(f32::MIN_POSITIVE)),
            short(lo),
            short(hi),
            short(min),
            short(max)
        );
        let help = "--data with samples like these, or --calibrator mse";
        found.push(Advice::new(Cause::TooWide, text, Some(help)));
    } else if 2 < quiet.len() && FAR_APART * median < loudest {
        let text = format!(
            "its channels share a scale, and channel {channel} reaches {} where half of the channels stay below {}",
            short(loudest),
            short(median)
        );
        found.push(Advice::new(
            Cause::ChannelRanges,
            text,
            Some(&format!("{exclude}, or --activations u16")),
        ));
    } else if 8.0 * a.profile.percentile(0.999) < a.profile.max_abs() {
        let text = format!(
            "outliers make its range wide: 99.9 % of the values stay below {}, the largest is {}",
            short(a.profile.percentile(0.999)),
            short(a.profile.max_abs())
        );
        found.push(Advice::new(
            Cause::Outliers,
            text,
            Some("--calibrator percentile, or --calibrator mse"),
        ));
    } else {
        let lost = rounding
            .channels
            .iter()
            .filter(|[signal, noise]| *signal != 0.0 && 0.5 * signal < *noise);
        let (n_lost, n) = (lost.count(), rounding.channels.len());
        // Every healthy network has a few among hundreds: one in twenty is worth a word.
        if 1 < n && n <= 20 * n_lost {
            let text = format!(
                "{n_lost} of {n} channels are so much quieter than the loudest that rounding leaves little of them"
            );
            found.push(Advice::new(Cause::DeadChannels, text, Some(&exclude)));
        }
    }
    found
}

/// The causes of a constant's error.
pub(crate) fn of_weight(pair: &WeightPair, channels: Channels, sums: &TensorSums) -> Vec<Advice> {
    let mut found = Vec::new();
    let (float, quantized) = pair.slices();
    if let Some(n) = pair.codes.as_ref().and_then(overflowing_biases) {
        let text = format!(
            "{n} of its elements need more than 32 bits at the scale of input times weight"
        );
        found.push(Advice::new(Cause::BiasOverflow, text, Some("--bias float")));
        return found;
    }
    if !sums.total.squared.is_finite() {
        let text = "it holds NaN or infinity".to_owned();
        found.push(Advice::new(Cause::NotFinite, text, None));
        return found;
    }
    if WORTH_A_WORD_DB <= sums.worst_db() || pair.codes.is_none() {
        return found;
    }
    let of = |values: &[f32], c: usize| -> Vec<f32> {
        let mut channel = Vec::with_capacity(channels.outer * channels.inner);
        channels.runs(|at, elements| {
            if at == c {
                channel.extend_from_slice(&values[elements]);
            }
        });
        channel
    };
    // The most wrong channels are looked at one by one.
    let mut wrong: Vec<usize> = (0..sums.channels.len())
        .filter(|&c| {
            let [signal, noise] = sums.channels[c];
            signal * 0.02 < noise
        })
        .collect();
    let loss = |c: usize| {
        let [signal, noise] = sums.channels[c];
        if signal == 0.0 { f64::INFINITY } else { noise / signal }
    };
    wrong.sort_by(|&a, &b| loss(b).total_cmp(&loss(a)).then(a.cmp(&b)));
    let n_wrong = wrong.len();
    wrong.truncate(16);
    let mut swapped = Vec::new();
    let mut scaled = Vec::new();
    let mut dead = 0;
    for &c in &wrong {
        let (a, b) = (of(&float, c), of(&quantized, c));
        let own = ErrorSums::of(&a, &b);
        if own.other_squared == 0.0 && own.reference_squared != 0.0 {
            dead += 1;
        } else if 0.98 < own.cosine() {
            // Best factor in the least squares sense.
            scaled.push((c, own.product / own.reference_squared));
        } else if 2 < a.len() {
            let like = (0..sums.channels.len())
                .filter(|&other| other != c)
                .find(|&other| 0.98 < ErrorSums::of(&of(&float, other), &b).cosine());
            swapped.extend(like.map(|other| (c, other)));
        }
    }
    scaled.retain(|(_, factor)| !(0.9..=1.1).contains(factor));
    if let [(c, other), ..] = swapped[..] {
        let text = format!(
            "{} of its {} channels stand in another's place: channel {c} holds what belongs to channel {other}",
            swapped.len(),
            sums.channels.len()
        );
        found.push(Advice::new(Cause::SwappedChannels, text, None));
    }
    if let [(c, factor), ..] = scaled[..] {
        let text = if sums.channels.len() == 1 {
            format!(
                "its integers are right and its scale is not: all is {} times too large",
                short(factor as f32)
            )
        } else {
            format!(
                "the integers of channel {c} are right and their scale is not: all is {} times too large \
                 ({} such of {} channels)",
                short(factor as f32),
                scaled.len(),
                sums.channels.len()
            )
        };
        found.push(Advice::new(Cause::BrokenScale, text, None));
    }
    if !found.is_empty() {
        return found;
    }
    let mut maxima: Vec<f32> = (0..sums.channels.len())
        .map(|c| of_max(&of(&float, c)))
        .filter(|&max| max != 0.0)
        .collect();
    maxima.sort_by(f32::total_cmp);
    let share_a_scale = pair.grid.as_ref().is_some_and(|grid| grid.one().is_some());
    if let ([low, .., high], true) = (&maxima[..], share_a_scale)
        && FAR_APART * low < *high
    {
        let text = format!(
            "its channels share a scale and differ {}-fold, from {} to {}",
            short(high / low),
            short(*low),
            short(*high)
        );
        found.push(Advice::new(Cause::ChannelRanges, text, Some("--granularity per_channel")));
    }
    if dead != 0 && found.is_empty() {
        let text = format!("at least {dead} of {} channels became zero", sums.channels.len());
        let help = if share_a_scale { "--granularity per_channel" } else { "--overrides" };
        found.push(Advice::new(Cause::DeadChannels, text, Some(help)));
    }
    if found.is_empty() && n_wrong != 0 {
        let profile = Profile::of(&float, channels);
        if 8.0 * profile.percentile(0.99) < profile.max_abs() {
            let text = format!(
                "outliers make its range wide: 99 % of it stays below {}, the largest is {}",
                short(profile.percentile(0.99)),
                short(profile.max_abs())
            );
            let help = if share_a_scale {
                "--granularity per_channel"
            } else {
                "--granularity blocked:32"
            };
            found.push(Advice::new(Cause::Outliers, text, Some(help)));
        }
    }
    found
}

/// Elements of a 32-bit bias that lie at the end of the integers, within a float's rounding of it.
fn overflowing_biases(codes: &Tensor) -> Option<usize> {
    if codes.dtype() != DataType::Int32 {
        return None;
    }
    let n =
        codes.to_vec::<i32>().ok()?.iter().filter(|q| i32::MAX - 128 <= q.saturating_abs()).count();
    (n != 0).then_some(n)
}

/// What there is to say about the sums of products of an operator whose input has 8 bits: `(32, n)` if `n` outputs can
/// exceed 32 bits, `(16, n)` if `n` pairs of products can exceed 16.
///
/// CPUs without VNNI instructions (AVX2, AVX-512 before it) add each two products of u8 and i8 in 16 bits, and saturate.
pub(crate) fn saturation(pair: &WeightPair, channels: Channels) -> Option<(u32, usize)> {
    let (codes, grid) = (pair.codes.as_ref()?, pair.grid.as_ref()?);
    if !matches!(codes.dtype(), DataType::Int8 | DataType::Uint8) {
        return None;
    }
    let codes = integers(codes)?;
    if codes.len() != channels.outer * channels.n * channels.inner {
        return None;
    }
    let mut by_channel: Vec<Vec<i64>> = vec![Vec::new(); channels.n];
    channels.runs(|c, at| by_channel[c].extend(codes[at].iter().map(|&q| i64::from(q))));
    let zero = |c: usize| {
        let params =
            if grid.params.len() == channels.n { grid.params.get(c) } else { grid.params.first() };
        i64::from(params.map_or(0, |p| p.zero_point()))
    };
    let (mut n_wide, mut n_pairs) = (0, 0);
    for (c, row) in by_channel.iter().enumerate() {
        let sum: i64 = row.iter().map(|q| 255 * (q - zero(c)).abs()).sum();
        n_wide += usize::from(i64::from(i32::MAX) < sum);
        if grid.dtype == DataType::Int8 {
            let beyond = |two: &&[i64]| {
                let ends = |keep: fn(i64) -> i64| 255 * two.iter().map(|q| keep(*q)).sum::<i64>();
                i64::from(i16::MAX) < ends(|q| q.max(0)) || ends(|q| q.min(0)) < i64::from(i16::MIN)
            };
            n_pairs += row.chunks(2).filter(beyond).count();
        }
    }
    match (n_wide, n_pairs) {
        (0, 0) => None,
        (0, n) => Some((16, n)),
        (n, _) => Some((32, n)),
    }
}

/// The word about sums beyond 32 bits.
pub(crate) fn wide_sums(n: usize) -> Advice {
    let text = format!("the sums of {n} of its outputs can exceed 32 bits");
    Advice::new(Cause::SaturatedSums, text, Some("--exclude, or --reduce-range"))
}

/// The word about sums of two products beyond 16 bits, of the whole model.
pub(crate) fn narrow_sums(n_weights: usize, n_pairs: usize) -> Advice {
    let text = format!(
        "in {n_weights} weights, {n_pairs} pairs of products can exceed 16 bits, where CPUs without VNNI instructions \
         saturate (this comparison does not)"
    );
    Advice::new(Cause::SaturatedSums, text, Some("--reduce-range"))
}

/// What a node's weight does to its output, said at the output.
pub(crate) fn through(weight: &str, advice: &Advice) -> Advice {
    Advice { text: format!("its weight `{weight}`: {}", advice.text), ..advice.clone() }
}

fn of_max(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, x| max.max(x.abs()))
}

/// Four digits.
fn short(x: f32) -> String {
    if x == 0.0 || (0.001..1e5).contains(&x.abs()) {
        let digits = (3 - x.abs().max(1e-3).log10().floor() as i32).clamp(0, 6) as usize;
        let text = format!("{x:.digits$}");
        return if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text
        };
    }
    format!("{x:.3e}")
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_with_four_digits() {
        for (x, want) in [
            (0.0, "0"),
            (1.0, "1"),
            (-2.5, "-2.5"),
            (123.456, "123.5"),
            (99999.0, "99999"),
            (0.012_345, "0.01235"),
            (1e-7, "1.000e-7"),
            (2.5e8, "2.500e8"),
        ] {
            assert_eq!(short(x), want);
        }
    }

    #[test]
    fn a_bias_at_the_end_of_the_integers_has_overflowed() {
        assert_eq!(overflowing_biases(&Tensor::vector(&[1_i32, i32::MAX, i32::MIN, -7])), Some(2));
        assert_eq!(overflowing_biases(&Tensor::vector(&[1_i32, 1 << 30])), None);
        assert_eq!(overflowing_biases(&Tensor::vector(&[127_i8])), None);
    }
}
