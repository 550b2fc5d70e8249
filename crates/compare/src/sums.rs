//! Sums of errors, whole and by channel.

use midtread_num::ErrorSums;

/// How a tensor's elements lie: `outer` slices, each of `n` channels of `inner` neighbors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// How often the channels repeat.
    pub outer: usize,
    /// How many there are.
    pub n: usize,
    /// Elements of one, side by side.
    pub inner: usize,
}

impl Channels {
    /// The channels of a tensor of these sizes along `axis`; all one channel without one.
    pub fn new(dims: &[usize], axis: Option<usize>) -> Self {
        match axis.filter(|&axis| axis < dims.len()) {
            Some(axis) => Self {
                outer: dims[..axis].iter().product(),
                n: dims[axis],
                inner: dims[axis + 1..].iter().product(),
            },
            None => Self { outer: 1, n: 1, inner: dims.iter().product() },
        }
    }

    /// Calls `run` with each run of neighbors of one channel: the channel and the place of the elements.
    pub fn runs(self, mut run: impl FnMut(usize, std::ops::Range<usize>)) {
        for i in 0..self.outer * self.n {
            run(i % self.n, i * self.inner..(i + 1) * self.inner);
        }
    }
}

/// The error of a tensor, whole and by channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorSums {
    /// Over all elements.
    pub total: ErrorSums,
    /// By channel: sum of squares of the reference, and of the differences.
    pub channels: Vec<[f64; 2]>,
}

impl TensorSums {
    /// The sums over two tensors of one shape.
    ///
    /// # Panics
    ///
    /// When the slices differ in length, or are not as long as `channels` says.
    pub fn of(reference: &[f32], other: &[f32], channels: Channels) -> Self {
        assert_eq!(reference.len(), channels.outer * channels.n * channels.inner, "sizes");
        if channels.n == 1 {
            let total = ErrorSums::of(reference, other);
            return Self { channels: vec![[total.reference_squared, total.squared]], total };
        }
        let mut by_channel = vec![[0.0; 2]; channels.n];
        // Channels of a few elements would spend their time on the beginning and end of each run.
        if channels.inner < 8 {
            let rows = reference.chunks(channels.n * channels.inner);
            for (a, b) in rows.zip(other.chunks(channels.n * channels.inner)) {
                let pairs = a.chunks(channels.inner).zip(b.chunks(channels.inner));
                for (sums, (a, b)) in by_channel.iter_mut().zip(pairs) {
                    for (r, o) in a.iter().zip(b) {
                        let (r, o) = (f64::from(*r), f64::from(*o));
                        sums[0] += r * r;
                        sums[1] += (r - o) * (r - o);
                    }
                }
            }
            return Self { total: ErrorSums::of(reference, other), channels: by_channel };
        }
        let mut total = ErrorSums::default();
        channels.runs(|channel, at| {
            let sums = ErrorSums::of(&reference[at.clone()], &other[at]);
            by_channel[channel][0] += sums.reference_squared;
            by_channel[channel][1] += sums.squared;
            total = total.merge(sums);
        });
        Self { total, channels: by_channel }
    }

    /// The sums over the elements of both. Tensors of other numbers of channels (a size that varies from sample to
    /// sample) keep only the total.
    pub fn merge(&mut self, later: &Self) {
        let is_first = self.total.n == 0 && self.channels.is_empty();
        self.total = self.total.merge(later.total);
        if is_first {
            self.channels.clone_from(&later.channels);
        } else if self.channels.len() == later.channels.len() {
            for (a, b) in self.channels.iter_mut().zip(&later.channels) {
                a[0] += b[0];
                a[1] += b[1];
            }
        } else {
            self.channels = vec![[self.total.reference_squared, self.total.squared]];
        }
    }

    /// Signal to noise in dB as if every channel were equally loud: `-10 log10(mean over channels of noise / signal)`,
    /// a channel counting at most 1 (lost).
    ///
    /// A tensor whose few loud channels are exact while all others are lost has a high [`ErrorSums::sqnr_db`] and a
    /// low one of these; the layer after it, with weights of its own for each channel, feels the second.
    pub fn channel_sqnr_db(&self) -> f64 {
        let ratio = |&[signal, noise]: &[f64; 2]| match (signal == 0.0, noise == 0.0) {
            (_, true) => 0.0,
            (true, false) => 1.0,
            (false, false) => (noise / signal).min(1.0),
        };
        let n = self.channels.len().max(1) as f64;
        let mean = self.channels.iter().map(ratio).sum::<f64>() / n;
        if mean == 0.0 { f64::INFINITY } else { -10.0 * mean.log10() }
    }

    /// The lower of the two measures: what a ranking goes by.
    pub fn worst_db(&self) -> f64 {
        let (total, channels) = (self.total.sqnr_db(), self.channel_sqnr_db());
        // A NaN is worse than anything.
        if total.is_nan() { f64::NEG_INFINITY } else { total.min(channels) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_summed_wherever_their_axis_lies() {
        let a: Vec<f32> = (0..24).map(|i| i as f32 - 7.5).collect();
        let b: Vec<f32> = a.iter().map(|x| (x * 0.5).round() * 2.0).collect();
        for (dims, axis) in
            [(vec![2, 3, 4], 0), (vec![2, 3, 4], 1), (vec![2, 3, 4], 2), (vec![1, 2, 12], 1)]
        {
            let channels = Channels::new(&dims, Some(axis));
            let sums = TensorSums::of(&a, &b, channels);
            let inner: usize = dims[axis + 1..].iter().product();
            for (c, got) in sums.channels.iter().enumerate() {
                let own = |i: &usize| i / inner % dims[axis] == c;
                let noise: f64 = (0..24).filter(own).map(|i| f64::from(a[i] - b[i]).powi(2)).sum();
                let signal: f64 = (0..24).filter(own).map(|i| f64::from(a[i]).powi(2)).sum();
                // Halves squared: every sum is exact.
                assert_eq!(*got, [signal, noise], "channel {c} of {dims:?} along {axis}");
            }
            assert_eq!(sums.total.squared, ErrorSums::of(&a, &b).squared);
        }
    }

    #[test]
    fn one_loud_channel_does_not_hide_the_lost_ones() {
        // A channel at 1000 that is exact to 0.1 %, three at 1 that are lost.
        let a = [1000.0, 1000.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        let b = [1001.0, 1001.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let sums = TensorSums::of(&a, &b, Channels { outer: 1, n: 4, inner: 2 });
        assert!(53.0 < sums.total.sqnr_db(), "{}", sums.total.sqnr_db());
        assert!((sums.channel_sqnr_db() - 1.249).abs() < 1e-3, "{}", sums.channel_sqnr_db());
        assert_eq!(sums.worst_db(), sums.channel_sqnr_db());
    }

    #[test]
    fn merging_adds_and_a_nan_is_worst() {
        let channels = Channels { outer: 1, n: 2, inner: 1 };
        let one = TensorSums::of(&[1.0, 2.0], &[1.5, 2.0], channels);
        let mut sum = TensorSums::default();
        sum.merge(&one);
        sum.merge(&one);
        assert_eq!((sum.total.n, &sum.channels), (4, &vec![[2.0, 0.5], [8.0, 0.0]]));
        let nan = TensorSums::of(&[1.0, 2.0], &[f32::NAN, 2.0], channels);
        assert_eq!(nan.worst_db(), f64::NEG_INFINITY);
    }
}
