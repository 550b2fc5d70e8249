//! What the float model's values look like: enough to say why a range does not suit them. Merging is exact.

/// Values of one tensor over many samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// Values.
    pub n: u64,
    /// The smallest and the largest; `None` before any number was seen.
    pub min_max: Option<(f32, f32)>,
    /// By channel, the largest absolute value.
    pub channel_max: Vec<f32>,
    /// Counts of absolute values by their exponent and the first three bits after it.
    magnitudes: Vec<u64>,
}

/// Bits of an absolute value that tell its bin: 8 of exponent, 3 of mantissa. The edges of a bin are 6 % to 13 % apart.
const SHIFT: u32 = 20;
const N_BINS: usize = 1 << 11;

impl Profile {
    /// Of one tensor, whose channels lie as `channels` says.
    pub fn of(values: &[f32], channels: crate::sums::Channels) -> Self {
        let mut profile = Self {
            n: values.len() as u64,
            min_max: None,
            channel_max: vec![0.0; channels.n],
            magnitudes: vec![0; N_BINS],
        };
        for x in values {
            profile.magnitudes[(x.abs().to_bits() >> SHIFT) as usize] += 1;
        }
        profile.min_max = midtread_kernels::min_max::min_max(values).range();
        channels.runs(|c, at| {
            let max = values[at].iter().fold(0.0_f32, |max, x| max.max(x.abs()));
            profile.channel_max[c] = profile.channel_max[c].max(max);
        });
        profile
    }

    /// Both together. Tensors whose number of channels varies keep no channels.
    pub fn merge(&mut self, later: &Self) {
        if self.n == 0 {
            self.clone_from(later);
            return;
        }
        self.n += later.n;
        self.min_max = match (self.min_max, later.min_max) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (one, other) => one.or(other),
        };
        if self.channel_max.len() == later.channel_max.len() {
            for (a, b) in self.channel_max.iter_mut().zip(&later.channel_max) {
                *a = a.max(*b);
            }
        } else {
            self.channel_max.clear();
        }
        for (a, b) in self.magnitudes.iter_mut().zip(&later.magnitudes) {
            *a += b;
        }
    }

    /// The largest absolute value.
    pub fn max_abs(&self) -> f32 {
        self.min_max.map_or(0.0, |(min, max)| min.abs().max(max.abs()))
    }

    /// An absolute value that this share of the values does not exceed: the upper edge of its bin.
    pub fn percentile(&self, share: f64) -> f32 {
        let wanted = (share * self.n as f64).ceil() as u64;
        let mut seen = 0;
        for (bin, n) in self.magnitudes.iter().enumerate() {
            seen += n;
            if wanted <= seen && 0 < seen {
                return f32::from_bits((bin as u32 + 1) << SHIFT).min(self.max_abs());
            }
        }
        self.max_abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sums::Channels;

    #[test]
    fn a_percentile_is_within_a_bin_above_the_exact_one_and_merging_is_exact() {
        let values: Vec<f32> =
            (1..=1000).map(|i| if i % 2 == 0 { i as f32 } else { -(i as f32) }).collect();
        let channels = |n: usize| Channels { outer: 1, n: 2, inner: n / 2 };
        let whole = Profile::of(&values, channels(1000));
        for share in [0.5, 0.9, 0.99, 0.999, 1.0] {
            let (exact, got) = (1000.0 * share as f32, whole.percentile(share));
            assert!(exact <= got && got <= 1.13 * exact, "{share}: {got}, not {exact}");
        }
        assert_eq!((whole.min_max, whole.max_abs()), (Some((-999.0, 1000.0)), 1000.0));
        assert_eq!(whole.channel_max, [500.0, 1000.0]);
        let mut halves = Profile::default();
        for half in values.chunks(500) {
            halves.merge(&Profile::of(half, channels(500)));
        }
        assert_eq!((halves.min_max, halves.magnitudes), (whole.min_max, whole.magnitudes));
    }
}
