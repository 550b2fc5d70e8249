//! How good a model's answers are.

use std::sync::atomic::AtomicBool;

use midtread_graph::{DataType, Model, Tensor};
use midtread_num::ErrorSums;
use midtread_quant::calibrate::{Pass, Samples};
use serde::Serialize;

use crate::{
    error::Error,
    runtime::{Runner, Runtime},
    significance::Paired,
};

/// A classifier's answers to one sample: the classes of the five largest scores, the largest first. Of equal scores
/// the lower class comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// The sample's name.
    pub sample: String,
    /// At most five.
    pub top: Vec<usize>,
}

/// How to run a model over a data set.
pub struct RunOptions<'a> {
    /// What runs it.
    pub runtime: Runtime,
    /// Samples worked on at once, each on a thread of its own.
    pub n_threads: usize,
    /// Memory all of them may hold values in, together.
    pub max_bytes: Option<usize>,
    /// The output with the scores; the first if `None`.
    pub output: Option<&'a str>,
    /// Called with the number of samples done.
    pub progress: &'a (dyn Fn(usize) + Sync),
    /// Looked at between samples.
    pub interrupted: &'a AtomicBool,
}

/// Runs the model on every sample and keeps its answers, in the order of the samples.
pub fn predict(
    model: &Model,
    samples: &dyn Samples,
    options: &RunOptions<'_>,
) -> Result<Vec<Prediction>, Error> {
    map_outputs(model, samples, options, |sample, outputs| {
        let (name, scores) = wanted(outputs, options.output)?;
        let top = top5(scores).ok_or_else(|| {
            let what = format!(
                "output `{name}` is {:?} of {}, not one row of float scores",
                scores.dims(),
                scores.dtype()
            );
            Error::Options(what)
        })?;
        Ok(Prediction { sample: sample.to_owned(), top })
    })
}

/// Runs the model on every sample, on `n_threads` threads, and keeps what `keep` makes of the outputs.
pub(crate) fn map_outputs<T: Send>(
    model: &Model,
    samples: &dyn Samples,
    options: &RunOptions<'_>,
    keep: impl Fn(&str, &[(String, Tensor)]) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let names = samples.names();
    let runner = runner(model, names.len(), options)?;
    map_samples(&names, options, |i| {
        let sample = read(samples, i)?;
        keep(&names[i], &run(&runner, sample, &names[i])?)
    })
}

/// A model ready to run in its thread's share of the memory.
fn runner(model: &Model, n_samples: usize, options: &RunOptions<'_>) -> Result<Runner, Error> {
    let n_threads = options.n_threads.clamp(1, n_samples.max(1));
    Runner::new(model, options.runtime, options.max_bytes.map(|n| n / n_threads))
}

fn read(samples: &dyn Samples, i: usize) -> Result<Vec<(String, Tensor)>, Error> {
    Ok(samples.sample(i).map_err(Error::Sample)?.inputs)
}

fn run(
    runner: &Runner,
    inputs: Vec<(String, Tensor)>,
    name: &str,
) -> Result<Vec<(String, Tensor)>, Error> {
    runner.run(inputs).map_err(|error| match error {
        Error::Run(source) => Error::RunSample { sample: name.to_owned(), source },
        other => other,
    })
}

/// What `work` makes of each sample, on `n_threads` threads, in the order of the samples.
fn map_samples<T: Send>(
    names: &[String],
    options: &RunOptions<'_>,
    work: impl Fn(usize) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let n_threads = options.n_threads.clamp(1, names.len().max(1));
    let work = |i: usize, kept: &mut Vec<(usize, T)>| {
        kept.push((i, work(i)?));
        Ok(())
    };
    let pass = Pass { n_threads, progress: options.progress, interrupted: options.interrupted };
    let kept = pass
        .run(names.len(), Vec::new, work)
        .map_err(|failed| failed.unwrap_or(Error::Interrupted))?;
    let mut kept: Vec<_> = kept.into_iter().flatten().collect();
    kept.sort_unstable_by_key(|&(i, _)| i);
    Ok(kept.into_iter().map(|(_, kept)| kept).collect())
}

/// The classes of the five largest of one row of scores.
pub(crate) fn top5(scores: &Tensor) -> Option<Vec<usize>> {
    let n_classes = *scores.dims().last()?;
    if scores.dtype() != DataType::Float || n_classes == 0 || scores.len() != n_classes {
        return None;
    }
    let scores = scores.to_vec::<f32>().ok()?;
    let mut top: Vec<usize> = Vec::with_capacity(6);
    for (class, score) in scores.iter().enumerate() {
        let at = top.partition_point(|&other| scores[other].total_cmp(score).is_ge());
        if at < 5 {
            top.insert(at, class);
            top.truncate(5);
        }
    }
    Some(top)
}

/// A data set's score.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Evaluation {
    /// How many samples were scored.
    pub samples: usize,
    /// Share of samples whose first answer is one of their labels, 0 to 1.
    pub top1: Option<f64>,
    /// Share of samples with a label among the first five answers.
    pub top5: Option<f64>,
    /// Share of samples whose first answer is that of the other model.
    pub agreement: Option<f64>,
    /// How the first answers of the two models differ, where the right ones are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
}

/// The other model's share of right first answers less this one's: positive if this one is worse.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Samples that only one of the models has right.
    pub paired: Paired,
    /// The drop, 0 to 1.
    pub drop: f64,
    /// Where the drop of the whole population lies, with 95 % confidence.
    pub interval: (f64, f64),
    /// McNemar's exact test: how likely so large a difference is if neither model is better.
    pub p_value: f64,
    /// Samples needed to tell a drop of half a percent.
    pub samples_for_half_percent: u64,
}

impl Difference {
    /// Of two models' answers to the same samples.
    pub fn new(paired: Paired) -> Self {
        Self {
            paired,
            drop: paired.drop(),
            interval: paired.interval(),
            p_value: paired.p_value(),
            samples_for_half_percent: paired.samples_to_tell(0.005),
        }
    }
}

/// How far the values of an output are from another model's: a mean over the samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Closeness {
    /// How many samples.
    pub samples: usize,
    /// Mean absolute difference.
    pub mae: f64,
    /// Cosine of the angle between the two outputs.
    pub cosine: f64,
    /// Spearman's correlation between the ranks of their elements.
    pub spearman: f64,
}

/// Runs two models on every sample and compares the values of one output.
pub fn closeness(
    model: &Model,
    other: &Model,
    samples: &dyn Samples,
    options: &RunOptions<'_>,
) -> Result<Closeness, Error> {
    let names = samples.names();
    let runners = [runner(model, names.len(), options)?, runner(other, names.len(), options)?];
    let each = map_samples(&names, options, |i| {
        let inputs = read(samples, i)?;
        let values = |runner: &Runner, inputs| -> Result<Vec<f32>, Error> {
            let outputs = run(runner, inputs, &names[i])?;
            let (name, tensor) = wanted(&outputs, options.output)?;
            tensor.to_vec::<f32>().map_err(|_| {
                Error::Options(format!("output `{name}` is {}, not float", tensor.dtype()))
            })
        };
        let (ours, theirs) = (values(&runners[0], inputs.clone())?, values(&runners[1], inputs)?);
        if ours.len() != theirs.len() {
            return Err(Error::Options("the outputs of the two models differ in size".into()));
        }
        let sums = ErrorSums::of(&theirs, &ours);
        Ok([sums.mae(), sums.cosine(), spearman(&theirs, &ours)])
    })?;
    let n = each.len().max(1) as f64;
    let mean = |k: usize| each.iter().map(|figures| figures[k]).sum::<f64>() / n;
    Ok(Closeness { samples: each.len(), mae: mean(0), cosine: mean(1), spearman: mean(2) })
}

/// The output with this name, or the first.
fn wanted<'a>(
    outputs: &'a [(String, Tensor)],
    name: Option<&str>,
) -> Result<&'a (String, Tensor), Error> {
    let found = match name {
        Some(name) => outputs.iter().find(|(n, _)| n == name),
        None => outputs.first(),
    };
    found.ok_or_else(|| {
        Error::Options(format!("the model has no output `{}`", name.unwrap_or_default()))
    })
}

/// Correlation of ranks; equals share the mean of theirs. 1 where both are constant, 0 where one is.
fn spearman(a: &[f32], b: &[f32]) -> f64 {
    let ranks = |values: &[f32]| -> Vec<f64> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
        // Around the mean of all ranks, so that the cosine of ranks is their correlation.
        let middle = (values.len() as f64 - 1.0) / 2.0;
        let mut ranks = vec![0.0; values.len()];
        let mut start = 0;
        for equals in order.chunk_by(|&i, &j| values[i] == values[j]) {
            let rank = start as f64 + (equals.len() as f64 - 1.0) / 2.0 - middle;
            equals.iter().for_each(|&i| ranks[i] = rank);
            start += equals.len();
        }
        ranks
    };
    ErrorSums::of_f64(&ranks(a), &ranks(b)).cosine()
}

/// Scores answers. `labels` gives the right classes of sample `i`; `against` are another model's answers to the same
/// samples.
pub fn score(
    predictions: &[Prediction],
    labels: Option<&dyn Fn(usize) -> Vec<usize>>,
    against: Option<&[Prediction]>,
) -> Evaluation {
    let n = predictions.len();
    let share = |count: usize| (n > 0).then(|| count as f64 / n as f64);
    let hits = |k: usize| {
        labels.and_then(|labels| {
            share(
                (0..n)
                    .filter(|&i| predictions[i].top.iter().take(k).any(|c| labels(i).contains(c)))
                    .count(),
            )
        })
    };
    let same = |other: &[Prediction]| {
        predictions.iter().zip(other).filter(|(a, b)| a.top.first() == b.top.first()).count()
    };
    let difference = labels.zip(against).filter(|_| n != 0).map(|(labels, against)| {
        let is_right =
            |i: usize, p: &Prediction| p.top.first().is_some_and(|c| labels(i).contains(c));
        let both = predictions.iter().zip(against).enumerate();
        let answers = both.map(|(i, (ours, theirs))| (is_right(i, theirs), is_right(i, ours)));
        Difference::new(Paired::of(answers))
    });
    Evaluation {
        difference,
        samples: n,
        top1: hits(1),
        top5: hits(5),
        agreement: against.and_then(|o| share(same(o))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_five_largest_come_in_order_and_ties_go_to_the_lower_class() {
        let scores =
            Tensor::from_slice(vec![1, 7], &[0.1_f32, 5.0, 5.0, -1.0, 9.0, f32::NEG_INFINITY, 2.0])
                .unwrap();
        assert_eq!(top5(&scores), Some(vec![4, 1, 2, 6, 0]));
        assert_eq!(top5(&Tensor::vector(&[1.0_f32, 3.0])), Some(vec![1, 0]));
        assert_eq!(top5(&Tensor::from_slice(vec![2, 2], &[0.0_f32; 4]).unwrap()), None, "two rows");
    }

    #[test]
    fn ranks_are_correlated_whatever_the_values_are() {
        assert!((spearman(&[1.0, 2.0, 3.0], &[10.0, 20.0, 900.0]) - 1.0).abs() < 1e-12);
        assert!((spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]) + 1.0).abs() < 1e-12);
        // Ranks 0, 1.5, 1.5, 3 and 0, 1, 2, 3: covariance 4.5 of sqrt(4.5 * 5).
        let want = 4.5 / (4.5_f64 * 5.0).sqrt();
        assert!((spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]) - want).abs() < 1e-12);
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
    }

    #[test]
    fn scores_count_any_label_and_agreement_the_first_answer() {
        let p = |top: &[usize]| Prediction { sample: String::new(), top: top.to_vec() };
        let ours = [p(&[3, 1]), p(&[2, 0]), p(&[0, 1]), p(&[5, 4])];
        let theirs = [p(&[3, 2]), p(&[0, 2]), p(&[0, 9]), p(&[4, 5])];
        let labels = |i: usize| [vec![1, 3], vec![0], vec![7], vec![5]][i].clone();
        let e = score(&ours, Some(&labels), Some(&theirs));
        assert_eq!((e.top1, e.top5, e.agreement), (Some(0.5), Some(0.75), Some(0.5)));
        // Both have the first right; the others have the second too, and only we have the fourth.
        let paired = e.difference.unwrap().paired;
        assert_eq!((paired.n, paired.lost, paired.gained), (4, 1, 1));
        assert_eq!(
            score(&[], Some(&labels), None),
            Evaluation { samples: 0, ..Evaluation::default() }
        );
    }
}
