//! What calibration leaves behind.

use std::{collections::BTreeMap, fmt::Write as _, mem::take};

use serde::{Deserialize, Serialize};

use midtread_kernels::{
    histogram::{Counts, Summary, summarize},
    min_max::{Extremes, min_max},
};

use super::{Calibrator, Collect, RangeGoal};

/// Summaries of every observed tensor of one model over a set of samples.
///
/// Merging is exact and does not depend on order: a data set measured in pieces, on any number of threads or
/// machines, gives the same `Stats`, and the same text, as measured in one go.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    model: String,
    collect: Collect,
    /// Names, sorted.
    samples: Vec<String>,
    tensors: BTreeMap<String, TensorStats>,
}

/// The summary of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorStats {
    /// Smallest and largest finite value by sample; `None` where a sample had none.
    extrema: Vec<Option<(f32, f32)>>,
    counts: Counts,
    n_finite: u64,
    n_nan: u64,
    n_infinite: u64,
}

/// Why statistics could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// The tensor was not observed.
    #[error("tensor `{0}` is not in the statistics")]
    NotObserved(String),
    /// Nothing finite was seen of the tensor.
    #[error("tensor `{tensor}` saw no finite value ({n_nan} NaN, {n_infinite} infinite)")]
    NothingFinite {
        /// Its name.
        tensor: String,
        /// How many NaN there were.
        n_nan: u64,
        /// How many infinities.
        n_infinite: u64,
    },
    /// The calibrator reads histograms and the statistics have none.
    #[error("calibrator `{0}` needs histograms, and these statistics hold only extrema")]
    NoHistogram(&'static str),
    /// Two statistics that do not belong together.
    #[error("the statistics cannot be merged: {0}")]
    Merge(String),
    /// A text that is not statistics.
    #[error("line {line} is not calibration statistics: {what}")]
    Parse {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
}

impl CalibrateError {
    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotObserved(_) => {
                "the statistics may belong to another version of the model: calibrate again"
            }
            Self::NothingFinite { .. } => {
                "check the data, or run `midtread inspect` on the node that makes it"
            }
            Self::NoHistogram(_) => "calibrate again with `--collect histogram`",
            Self::Merge(_) => "merge statistics of the same model over different samples",
            Self::Parse { .. } => "statistics are written by `midtread calibrate`",
        })
    }
}

impl TensorStats {
    /// Nothing seen yet of `n_samples` samples.
    pub fn new(n_samples: usize) -> Self {
        Self {
            extrema: vec![None; n_samples],
            counts: Counts::default(),
            n_finite: 0,
            n_nan: 0,
            n_infinite: 0,
        }
    }

    /// Takes in the values that sample `sample` has. Those that are not finite are counted and otherwise skipped.
    pub fn observe(&mut self, sample: usize, values: &[f32], collect: Collect) {
        let seen = match collect {
            Collect::Extrema => min_max(values),
            Collect::Histogram => {
                let mut summary =
                    Summary { extremes: Extremes::default(), counts: take(&mut self.counts) };
                summarize(values, &mut summary);
                self.counts = summary.counts;
                summary.extremes
            }
        };
        self.n_finite += seen.n_finite;
        self.n_nan += seen.n_nan;
        self.n_infinite += seen.n_infinite;
        let slot = &mut self.extrema[sample];
        *slot = match (*slot, seen.range()) {
            (Some((lo, hi)), Some((min, max))) => Some((lo.min(min), hi.max(max))),
            (a, b) => a.or(b),
        };
    }

    /// The smallest and the largest finite value seen. Zero is +0, so that text and order of merging do not matter.
    pub fn min_max(&self) -> Option<(f32, f32)> {
        let seen = self.extrema.iter().flatten();
        seen.copied().reduce(|(lo, hi), (min, max)| (lo.min(min), hi.max(max)))
    }

    /// Each sample's extrema, in the order of the samples' names.
    pub fn extrema(&self) -> &[Option<(f32, f32)>] {
        &self.extrema
    }

    /// The counts; empty when only extrema were collected.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How many finite values, NaN and infinities were seen.
    pub fn n_seen(&self) -> (u64, u64, u64) {
        (self.n_finite, self.n_nan, self.n_infinite)
    }

    /// The calibrator's range; `None` while no finite value has been seen.
    pub fn range(&self, calibrator: &Calibrator, goal: &RangeGoal) -> Option<(f32, f32)> {
        let (lo, hi) = self.min_max()?;
        let (min, max) = (calibrator.def.range)(self, calibrator, goal);
        // A bin may reach past the values in it.
        let min = min.clamp(lo, hi);
        Some((min, max.clamp(min, hi)))
    }

    fn merge(&mut self, other: &Self) {
        self.counts.merge(&other.counts);
        self.n_finite += other.n_finite;
        self.n_nan += other.n_nan;
        self.n_infinite += other.n_infinite;
    }
}

impl Stats {
    /// Nothing seen yet. `samples` may be in any order; [`Stats::sample_idx`] tells where each went.
    pub(super) fn new(
        model: String,
        collect: Collect,
        mut samples: Vec<String>,
    ) -> Result<Self, CalibrateError> {
        samples.sort();
        if let Some(twice) = samples.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(CalibrateError::Merge(format!("two samples are called `{}`", twice[0])));
        }
        Ok(Self { model, collect, samples, tensors: BTreeMap::new() })
    }

    /// The fingerprint of the model that was measured.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// What was collected.
    pub fn collect(&self) -> Collect {
        self.collect
    }

    /// The samples' names, sorted.
    pub fn samples(&self) -> &[String] {
        &self.samples
    }

    /// Every tensor's summary, by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorStats> {
        &self.tensors
    }

    /// Whether the tensor was observed.
    pub fn contains(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    /// The range a calibrator chooses for a tensor.
    pub fn range(
        &self,
        tensor: &str,
        calibrator: &Calibrator,
        goal: &RangeGoal,
    ) -> Result<(f32, f32), CalibrateError> {
        let stats = self
            .tensors
            .get(tensor)
            .ok_or_else(|| CalibrateError::NotObserved(tensor.to_owned()))?;
        if calibrator.def.needs_histogram && self.collect == Collect::Extrema {
            return Err(CalibrateError::NoHistogram(calibrator.def.name));
        }
        stats.range(calibrator, goal).ok_or_else(|| CalibrateError::NothingFinite {
            tensor: tensor.to_owned(),
            n_nan: stats.n_nan,
            n_infinite: stats.n_infinite,
        })
    }

    pub(super) fn sample_idx(&self, name: &str) -> Option<usize> {
        self.samples.binary_search_by(|s| s.as_str().cmp(name)).ok()
    }

    /// The summary of a tensor, made empty if there is none.
    pub(super) fn tensor_mut(&mut self, name: &str) -> &mut TensorStats {
        // Looked up first: `entry` would copy the name every time.
        if !self.tensors.contains_key(name) {
            self.tensors.insert(name.to_owned(), TensorStats::new(self.samples.len()));
        }
        self.tensors.get_mut(name).expect("just inserted")
    }

    /// Adds what another pass over the same samples' list has seen (one of several threads).
    pub(super) fn absorb(&mut self, other: &Self) {
        for (name, theirs) in &other.tensors {
            let ours = self.tensor_mut(name);
            ours.merge(theirs);
            for (a, b) in ours.extrema.iter_mut().zip(&theirs.extrema) {
                *a = a.or(*b);
            }
        }
    }

    /// Statistics over the samples of both. Fails for another model, another kind of collection, and where a sample
    /// is in both (it would count twice).
    pub fn merge(&self, other: &Self) -> Result<Self, CalibrateError> {
        if self.model != other.model {
            return Err(CalibrateError::Merge("they are of different models".into()));
        }
        if self.collect != other.collect {
            return Err(CalibrateError::Merge("one has histograms, the other only extrema".into()));
        }
        let samples: Vec<String> = self.samples.iter().chain(&other.samples).cloned().collect();
        let mut merged = Self::new(self.model.clone(), self.collect, samples)?;
        for part in [self, other] {
            let to: Vec<usize> = part
                .samples
                .iter()
                .map(|s| merged.sample_idx(s).expect("every sample is there"))
                .collect();
            for (name, theirs) in &part.tensors {
                let ours = merged.tensor_mut(name);
                ours.merge(theirs);
                for (&i, extrema) in to.iter().zip(&theirs.extrema) {
                    ours.extrema[i] = *extrema;
                }
            }
        }
        Ok(merged)
    }

    /// As text: a header, then one tensor a line, sorted, in JSON.
    pub fn to_text(&self) -> String {
        let header = Header {
            midtread_stats: VERSION,
            model: self.model.clone(),
            collect: self.collect,
            samples: self.samples.clone(),
        };
        let mut text = json(&header);
        for (name, tensor) in &self.tensors {
            let mut bins = String::new();
            for (key, n) in tensor.counts.iter() {
                write!(bins, "{}{key:04x}:{n}", if bins.is_empty() { "" } else { " " })
                    .expect("strings grow");
            }
            text.push('\n');
            text += &json(&Line {
                tensor: name.clone(),
                n: tensor.n_finite,
                n_nan: tensor.n_nan,
                n_infinite: tensor.n_infinite,
                extrema: tensor.extrema.clone(),
                bins,
            });
        }
        text.push('\n');
        text
    }

    /// From text.
    pub fn from_text(text: &str) -> Result<Self, CalibrateError> {
        let bad = |line: usize, what: String| CalibrateError::Parse { line: line + 1, what };
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let (_, first) = lines.next().ok_or_else(|| bad(0, "it is empty".into()))?;
        let header: Header = serde_json::from_str(first).map_err(|e| bad(0, e.to_string()))?;
        if header.midtread_stats != VERSION {
            return Err(bad(0, format!("version {} is not {VERSION}", header.midtread_stats)));
        }
        if !header.samples.is_sorted() {
            return Err(bad(0, "the samples are not sorted".into()));
        }
        let mut stats = Self::new(header.model, header.collect, header.samples)?;
        for (i, line) in lines {
            let line: Line = serde_json::from_str(line).map_err(|e| bad(i, e.to_string()))?;
            if line.extrema.len() != stats.samples.len() {
                let what =
                    format!("{} extrema for {} samples", line.extrema.len(), stats.samples.len());
                return Err(bad(i, what));
            }
            if line
                .extrema
                .iter()
                .flatten()
                .any(|(min, max)| !(min.is_finite() && max.is_finite() && min <= max))
            {
                return Err(bad(i, "extrema are not finite, or not in order".into()));
            }
            let mut counts = Counts::default();
            for bin in line.bins.split_whitespace() {
                let parsed = bin.split_once(':').and_then(|(key, n)| {
                    let (key, n) = (u16::from_str_radix(key, 16).ok()?, n.parse().ok()?);
                    // The bins of infinity and NaN are never counted in.
                    ((key & 0x7fff) < 0x7f80).then_some((key, n))
                });
                let (key, n) =
                    parsed.ok_or_else(|| bad(i, format!("`{bin}` is not a bin and its count")))?;
                counts.add(key, n);
            }
            let tensor = TensorStats {
                extrema: line.extrema,
                counts,
                n_finite: line.n,
                n_nan: line.n_nan,
                n_infinite: line.n_infinite,
            };
            if stats.tensors.insert(line.tensor.clone(), tensor).is_some() {
                return Err(bad(i, format!("tensor `{}` is there twice", line.tensor)));
            }
        }
        Ok(stats)
    }
}

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    midtread_stats: u32,
    model: String,
    collect: Collect,
    samples: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    tensor: String,
    n: u64,
    n_nan: u64,
    n_infinite: u64,
    extrema: Vec<Option<(f32, f32)>>,
    /// `key:count`, the key being the bin's bfloat16 pattern in hexadecimal.
    bins: String,
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("no map with keys that are not strings")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seed: usize) -> Vec<f32> {
        (0..500).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 * 0.01 - 3.0).collect()
    }

    fn measured(names: &[&str]) -> Stats {
        let mut stats = Stats::new(
            "m".into(),
            Collect::Histogram,
            names.iter().map(|n| n.to_string()).collect(),
        )
        .unwrap();
        for name in names {
            let i = stats.sample_idx(name).unwrap();
            let values = sample(name.len() * 31 + usize::from(name.as_bytes()[0]));
            stats.tensor_mut("x").observe(i, &values, Collect::Histogram);
            stats.tensor_mut("y").observe(i, &values[..i % 3], Collect::Histogram);
        }
        stats
    }

    #[test]
    fn halves_merged_in_any_order_equal_the_whole() {
        let whole = measured(&["a", "b", "c", "d", "e"]);
        let (left, right) = (measured(&["d", "a"]), measured(&["e", "c", "b"]));
        assert_eq!(left.merge(&right).unwrap().tensors["x"], whole.tensors["x"]);
        assert_eq!(left.merge(&right).unwrap().to_text(), right.merge(&left).unwrap().to_text());
        let thirds = [measured(&["c"]), measured(&["a", "e"]), measured(&["b", "d"])];
        let one = thirds[0].merge(&thirds[1]).unwrap().merge(&thirds[2]).unwrap();
        let two = thirds[2].merge(&thirds[0]).unwrap().merge(&thirds[1]).unwrap();
        assert_eq!(one, two);
        assert_eq!(one.tensors["x"], whole.tensors["x"]);
    }

    #[test]
    fn text_is_read_back_exactly() {
        let mut stats = measured(&["a", "b"]);
        let hard =
            [f32::MIN_POSITIVE, -0.1, 1.0e-45, f32::MAX, 16_777_217.0, f32::NAN, f32::NEG_INFINITY];
        stats.tensor_mut("z").observe(1, &hard, Collect::Histogram);
        let text = stats.to_text();
        let back = Stats::from_text(&text).unwrap();
        assert_eq!(back, stats);
        assert_eq!(back.to_text(), text);
        assert_eq!(back.tensors["z"].n_seen(), (5, 1, 1));
    }

    #[test]
    fn a_sample_is_not_counted_twice() {
        let (a, b) = (measured(&["a", "b"]), measured(&["b", "c"]));
        assert!(a.merge(&b).unwrap_err().to_string().contains("`b`"));
        let mut other = measured(&["x"]);
        other.model = "another".into();
        assert!(a.merge(&other).is_err());
    }

    #[test]
    fn text_that_is_not_statistics_is_refused_with_its_line() {
        let text = measured(&["a"]).to_text();
        for (from, to, line) in [
            ("\"midtread_stats\":1", "\"midtread_stats\":9", 1),
            ("\"n\":", "\"m\":", 2),
            ("\"bins\":\"", "\"bins\":\"7f80:1 ", 2),
            ("\"bins\":\"", "\"bins\":\"zz:1 ", 2),
        ] {
            let error = Stats::from_text(&text.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line}")), "{error}");
        }
        assert!(Stats::from_text("").is_err());
    }
}
