//! The pass over the data.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use midtread_exec::Interpreter;
use midtread_graph::{DataType, Graph, Links, Model, Sample, ValueId};
use midtread_ops::{Role, find};
use serde::{Deserialize, Serialize};

use super::stats::{CalibrateError, Stats};

/// How much is kept of each tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Collect {
    /// Each sample's extrema: enough for `min_max` and `moving_average`.
    Extrema,
    /// The histogram as well: enough for every calibrator.
    Histogram,
}

/// How to calibrate.
pub struct Options<'a> {
    /// The model's fingerprint, kept with the statistics.
    pub model: String,
    /// What to keep.
    pub collect: Collect,
    /// How many samples are worked on at once, each on a thread of its own.
    pub n_threads: usize,
    /// The memory all of them may hold values in, together. `None` for no bound.
    pub max_bytes: Option<usize>,
    /// Called after each sample with how many are done.
    pub progress: &'a (dyn Fn(usize) + Sync),
    /// Looked at between samples: once it is set, the pass ends with [`RunError::Interrupted`].
    pub interrupted: &'a AtomicBool,
}

/// Where samples come from: read when their turn comes, from any thread.
pub trait Samples: Sync {
    /// The samples' names, each different.
    fn names(&self) -> Vec<String>;
    /// Reads one.
    fn sample(&self, i: usize) -> Result<Sample, Box<dyn std::error::Error + Send + Sync>>;
}

/// Why a model could not be calibrated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// There is no data.
    #[error("there is no sample to calibrate with")]
    NoSamples,
    /// The model cannot be run.
    #[error("the model cannot be run")]
    Model(#[source] midtread_exec::Error),
    /// A sample could not be read.
    #[error("sample `{sample}` cannot be read")]
    Read {
        /// Its name.
        sample: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The model failed on a sample.
    #[error("sample `{sample}`")]
    Run {
        /// Its name.
        sample: String,
        /// Why.
        #[source]
        source: midtread_exec::Error,
    },
    /// The samples' names are not fit for statistics, or nothing finite was seen.
    #[error(transparent)]
    Stats(#[from] CalibrateError),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Runs the model on every sample and summarizes what a planner may want to quantize.
///
/// The result depends on the model and the samples alone: not on their order, nor on the number of threads. Memory
/// is bounded by the values of one sample a thread and by the summaries, however many samples there are.
pub fn calibrate(
    model: &Model,
    samples: &dyn Samples,
    options: &Options<'_>,
) -> Result<Stats, RunError> {
    let names = samples.names();
    if names.is_empty() {
        return Err(RunError::NoSamples);
    }
    let empty = Stats::new(options.model.clone(), options.collect, names.clone())?;

    let n_threads = options.n_threads.clamp(1, names.len());
    let max_bytes = options.max_bytes.map(|n| n / n_threads);
    let interpreter =
        Interpreter::new(model, midtread_exec::Options { max_bytes }).map_err(RunError::Model)?;
    let observed = tensors_to_observe(interpreter.graph());

    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let failed: Mutex<Option<(usize, RunError)>> = Mutex::new(None);
    let worker = || {
        let mut stats = empty.clone();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= names.len() || options.interrupted.load(Ordering::Relaxed) {
                return stats;
            }
            let observe = |sample: Sample, stats: &mut Stats| {
                let at = stats.sample_idx(&names[i]).expect("the names are the samples'");
                let mut observe = |id: ValueId, name: &str, tensor: &midtread_graph::Tensor| {
                    if observed.get(id.idx()) == Some(&true)
                        && let Ok(values) = tensor.as_slice::<f32>()
                    {
                        stats.tensor_mut(name).observe(at, values, options.collect);
                    }
                };
                interpreter.run_observed(sample.inputs, &mut observe).map(drop)
            };
            let result = samples
                .sample(i)
                .map_err(|source| RunError::Read { sample: names[i].clone(), source })
                .and_then(|sample| {
                    observe(sample, &mut stats)
                        .map_err(|source| RunError::Run { sample: names[i].clone(), source })
                });
            if let Err(error) = result {
                // The others stop; of several failures the first sample's is told, whoever was faster.
                next.store(names.len(), Ordering::Relaxed);
                let mut failed = failed.lock().expect("no panic while the lock is held");
                if failed.as_ref().is_none_or(|(at, _)| i < *at) {
                    *failed = Some((i, error));
                }
                return stats;
            }
            (options.progress)(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    // Each worker is a pool of one thread, so that the kernels it calls do not share its work out again.
    let mut stats = empty.clone();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..n_threads)
            .map(|_| {
                scope.spawn(|| match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
                    Ok(pool) => pool.install(worker),
                    // The system has no thread to spare: this one then.
                    Err(_) => worker(),
                })
            })
            .collect();
        for worker in workers {
            match worker.join() {
                Ok(part) => stats.absorb(&part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    if let Some((_, error)) = failed.into_inner().expect("no panic while the lock is held") {
        return Err(error);
    }
    if options.interrupted.load(Ordering::Relaxed) {
        return Err(RunError::Interrupted);
    }
    Ok(stats)
}

/// Which values, by index, a planner may want a range of: float values that a quantizable node uses or makes. One
/// that only a clamp uses is left out, since the clamp's output is what will be quantized.
pub fn tensors_to_observe(graph: &Graph) -> Vec<bool> {
    let links = Links::new(graph);
    let mut observed = vec![false; graph.values().len()];
    let mut wanted = BTreeSet::new();
    for node in &graph.nodes {
        let Some(def) = find(&node.domain, &node.op_type) else { continue };
        if matches!(def.role, Role::Quantized { .. } | Role::Clamp { .. }) {
            wanted.extend(node.inputs.iter().chain(&node.outputs).flatten());
        }
    }
    for id in wanted {
        let value = graph.value(id);
        let float =
            value.ty.as_ref().is_none_or(|ty| ty.elem().is_none_or(|e| e == DataType::Float));
        let only_clamped = links.only_consumer(id).is_some_and(|i| {
            let node = &graph.nodes[i];
            find(&node.domain, &node.op_type)
                .is_some_and(|def| matches!(def.role, Role::Clamp { .. }))
        });
        observed[id.idx()] = float && value.constant.is_none() && !only_clamped;
    }
    observed
}
