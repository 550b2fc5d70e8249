//! How good a model's answers are.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use midtread_exec::Interpreter;
use midtread_graph::{DataType, Model, Tensor};
use midtread_quant::calibrate::Samples;
use serde::Serialize;

use crate::error::Error;

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
        let scores = match options.output {
            Some(name) => outputs.iter().find(|(n, _)| n == name),
            None => outputs.first(),
        };
        let (name, scores) = scores.ok_or_else(|| {
            Error::Options(format!(
                "the model has no output `{}`",
                options.output.unwrap_or_default()
            ))
        })?;
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
fn map_outputs<T: Send>(
    model: &Model,
    samples: &dyn Samples,
    options: &RunOptions<'_>,
    keep: impl Fn(&str, &[(String, Tensor)]) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let names = samples.names();
    let n_threads = options.n_threads.clamp(1, names.len().max(1));
    let max_bytes = options.max_bytes.map(|n| n / n_threads);
    let interpreter =
        Interpreter::new(model, midtread_exec::Options { max_bytes }).map_err(Error::Run)?;
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let kept: Mutex<Vec<(usize, Result<T, Error>)>> = Mutex::new(Vec::with_capacity(names.len()));
    let worker = || {
        let mut own = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= names.len() || options.interrupted.load(Ordering::Relaxed) {
                break;
            }
            let name = &names[i];
            let result = samples
                .sample(i)
                .map_err(|source| Error::Sample { sample: name.clone(), source })
                .and_then(|s| {
                    let on = |source| Error::RunSample { sample: name.clone(), source };
                    interpreter.run(s.inputs).map_err(on)
                })
                .and_then(|outputs| keep(name, &outputs));
            if result.is_err() {
                next.store(names.len(), Ordering::Relaxed);
            }
            own.push((i, result));
            (options.progress)(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
        kept.lock().expect("no panic while the lock is held").extend(own);
    };
    std::thread::scope(|scope| {
        for _ in 0..n_threads {
            scope.spawn(|| match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
                Ok(pool) => pool.install(worker),
                Err(_) => worker(),
            });
        }
    });
    if options.interrupted.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    let mut kept = kept.into_inner().expect("no panic while the lock is held");
    kept.sort_by_key(|&(i, _)| i);
    kept.into_iter().map(|(_, result)| result).collect()
}

/// The classes of the five largest of one row of scores.
fn top5(scores: &Tensor) -> Option<Vec<usize>> {
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
    Evaluation {
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
    fn scores_count_any_label_and_agreement_the_first_answer() {
        let p = |top: &[usize]| Prediction { sample: String::new(), top: top.to_vec() };
        let ours = [p(&[3, 1]), p(&[2, 0]), p(&[0, 1]), p(&[5, 4])];
        let theirs = [p(&[3, 2]), p(&[0, 2]), p(&[0, 9]), p(&[4, 5])];
        let labels = |i: usize| [vec![1, 3], vec![0], vec![7], vec![5]][i].clone();
        let e = score(&ours, Some(&labels), Some(&theirs));
        assert_eq!((e.top1, e.top5, e.agreement), (Some(0.5), Some(0.75), Some(0.5)));
        assert_eq!(
            score(&[], Some(&labels), None),
            Evaluation { samples: 0, ..Evaluation::default() }
        );
    }
}
