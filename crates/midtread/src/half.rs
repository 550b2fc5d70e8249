//! From a float32 model to one in float16 or bfloat16.

use std::{sync::atomic::AtomicBool, time::Instant};

use midtread_graph::Model;
use midtread_passes::PrepareOptions;
use midtread_quant::{
    Stats, Target,
    calibrate::{Collect, Samples, Watch},
    half::{self, HalfOptions, HalfPlan, HalfType},
};

use crate::{
    error::Error,
    quantize::{Measuring, Progress},
};

/// What to do.
pub struct Options<'a> {
    /// How the model is prepared.
    pub prepare: PrepareOptions,
    /// What the plan is told.
    pub half: HalfOptions,
    /// The device.
    pub target: Target,
    /// Samples measured at once, each on a thread of its own.
    pub n_threads: usize,
    /// Memory that values may take while measuring.
    pub max_bytes: Option<usize>,
    /// Told what goes on.
    pub progress: &'a dyn Progress,
    /// Set by whoever wants it to end.
    pub interrupted: &'a AtomicBool,
}

/// A model in 16 bits, and what led to it.
pub struct Converted {
    /// The result, ready to be saved.
    pub model: Model,
    /// The float32 model as it was planned.
    pub prepared: Model,
    /// What was measured, if there was data.
    pub stats: Option<Stats>,
    /// What was decided.
    pub plan: HalfPlan,
    /// Stages and the seconds they took, in order.
    pub seconds: Vec<(&'static str, f64)>,
}

/// Prepares, measures if there are samples, plans and applies.
pub fn convert(
    model: Model,
    samples: Option<&dyn Samples>,
    options: &Options<'_>,
) -> Result<Converted, Error> {
    let mut seconds = Vec::new();
    let mut timed = |name, since: Instant| seconds.push((name, since.elapsed().as_secs_f64()));

    let start = Instant::now();
    options.progress.stage("prepare", None);
    let prepared = prepare(model, &options.prepare, options.half.half)?;
    timed("prepare", start);
    // So that options which do not fit are found before the data is read.
    half::plan(&prepared, None, &options.target, &options.half)?;

    let mut stats = None;
    if let Some(samples) = samples {
        let start = Instant::now();
        let measuring = Measuring {
            collect: Collect::Extrema,
            watch: Watch::Floats,
            n_threads: options.n_threads,
            max_bytes: options.max_bytes,
            progress: options.progress,
            interrupted: options.interrupted,
        };
        stats = Some(measuring.run(&prepared, samples)?);
        timed("calibrate", start);
    }

    let start = Instant::now();
    options.progress.stage("plan", None);
    let plan = half::plan(&prepared, stats.as_ref(), &options.target, &options.half)?;
    timed("plan", start);

    let start = Instant::now();
    options.progress.stage("apply", None);
    let model = half::apply(&prepared, &plan)?;
    timed("apply", start);
    Ok(Converted { model, prepared, stats, plan, seconds })
}

/// Prepares a model that is going to be converted: most operators have bfloat16 from operator set 13 on.
pub fn prepare(model: Model, options: &PrepareOptions, half: HalfType) -> Result<Model, Error> {
    let opset = match half {
        HalfType::Float16 => options.opset,
        HalfType::Bfloat16 => Some(options.opset.unwrap_or(13).max(13)),
    };
    Ok(midtread_passes::prepare(model, &PrepareOptions { opset, ..options.clone() })?.0)
}
