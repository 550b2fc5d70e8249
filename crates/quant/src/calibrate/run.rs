//! The pass over the data.

use std::{collections::BTreeSet, sync::atomic::AtomicBool};

use midtread_exec::Interpreter;
use midtread_graph::{DataType, Graph, Links, Model, ValueId};
use midtread_ops::{Role, find};
use serde::{Deserialize, Serialize};

use super::{
    samples::{Pass, Samples},
    stats::{CalibrateError, Stats},
};

/// How much is kept of each tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Collect {
    /// Each sample's extrema: enough for `min_max` and `moving_average`.
    Extrema,
    /// The histogram as well: enough for every calibrator.
    Histogram,
}

/// Which values of the main graph are summarized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Watch {
    /// Those of which a planner of integers may want a range.
    #[default]
    Quantizable,
    /// Every float32 value.
    Floats,
}

/// How to calibrate.
pub struct Options<'a> {
    /// The model's fingerprint, kept with the statistics.
    pub model: String,
    /// What to keep.
    pub collect: Collect,
    /// Of which values.
    pub watch: Watch,
    /// How many samples are worked on at once, each on a thread of its own.
    pub n_threads: usize,
    /// The memory all of them may hold values in, together. `None` for no bound.
    pub max_bytes: Option<usize>,
    /// Called after each sample with how many are done.
    pub progress: &'a (dyn Fn(usize) + Sync),
    /// Looked at between samples: once it is set, the pass ends with [`RunError::Interrupted`].
    pub interrupted: &'a AtomicBool,
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
    /// A sample could not be read; the error says which.
    #[error(transparent)]
    Read(Box<dyn std::error::Error + Send + Sync>),
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
    let observed = match options.watch {
        Watch::Quantizable => tensors_to_observe(interpreter.graph()),
        Watch::Floats => vec![true; interpreter.graph().values().len()],
    };

    let work = |i: usize, stats: &mut Stats| {
        let sample = samples.sample(i).map_err(RunError::Read)?;
        let at = stats.sample_idx(&names[i]).expect("the names are the samples'");
        let mut observe = |id: ValueId, name: &str, tensor: &midtread_graph::Tensor| {
            if observed.get(id.idx()) == Some(&true)
                && let Ok(values) = tensor.as_slice::<f32>()
            {
                stats.tensor_mut(name).observe(at, values, options.collect);
            }
        };
        interpreter
            .run_observed(sample.inputs, &mut observe)
            .map(drop)
            .map_err(|source| RunError::Run { sample: names[i].clone(), source })
    };
    let pass = Pass { n_threads, progress: options.progress, interrupted: options.interrupted };
    let parts = pass
        .run(names.len(), || empty.clone(), work)
        .map_err(|failed| failed.unwrap_or(RunError::Interrupted))?;
    let mut stats = empty.clone();
    parts.iter().for_each(|part| stats.absorb(part));
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
