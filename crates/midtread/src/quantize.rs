//! The whole way from a float model to a quantized one.

use std::{sync::atomic::AtomicBool, time::Instant};

use midtread_graph::Model;
use midtread_passes::PrepareOptions;
use midtread_quant::{
    Format, Plan, PlanOptions, Scheme, Stats, Target, apply,
    calibrate::{self, CalibrateError, Calibrator, Collect, RangeGoal, Samples, Watch},
    plan::{Ranges, fingerprint, plan_ranges},
    required_opset,
};

use crate::error::Error;

/// What to do, besides what the plan is told.
pub struct Options<'a> {
    /// How the model is prepared.
    pub prepare: PrepareOptions,
    /// What the plan is told.
    pub plan: PlanOptions,
    /// The device.
    pub target: Target,
    /// The form of the result.
    pub format: Format,
    /// What to keep of each tensor while measuring. `None`: what the plan's calibrators read, and no more.
    pub collect: Option<Collect>,
    /// Samples measured at once, each on a thread of its own.
    pub n_threads: usize,
    /// Memory that values may take while measuring. [`default_max_bytes`] is a quarter of the machine's.
    pub max_bytes: Option<usize>,
    /// Told what goes on.
    pub progress: &'a dyn Progress,
    /// Set by whoever wants it to end.
    pub interrupted: &'a AtomicBool,
}

/// Someone who wants to know how far the work is.
pub trait Progress: Sync {
    /// A stage (`prepare`, `calibrate`, `plan`, `apply`) begins; `n` are the steps it will take, if it counts any.
    fn stage(&self, name: &'static str, n: Option<usize>);
    /// So many of the stage's steps are done.
    fn done(&self, n: usize);
}

/// Nobody wants to know.
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &'static str, _: Option<usize>) {}
    fn done(&self, _: usize) {}
}

/// A quantized model, and everything that led to it.
pub struct Quantized {
    /// The result, ready to be saved.
    pub model: Model,
    /// The float model as it was planned.
    pub prepared: Model,
    /// What preparing did.
    pub prepare_report: midtread_passes::Report,
    /// What was measured; `None` for schemes that need no data.
    pub stats: Option<Stats>,
    /// What was decided.
    pub plan: Plan,
    /// Stages and the seconds they took, in order.
    pub seconds: Vec<(&'static str, f64)>,
}

/// Prepares, measures, plans and applies.
///
/// `samples` may be `None` for the dynamic and weight-only schemes. All options are checked before the first sample
/// is read.
pub fn quantize(
    model: Model,
    samples: Option<&dyn Samples>,
    options: &Options<'_>,
) -> Result<Quantized, Error> {
    let Measured { prepared, prepare_report, stats, mut seconds } =
        measured(model, None, samples, options)?;
    let mut timed = |name, since: Instant| seconds.push((name, since.elapsed().as_secs_f64()));

    let start = Instant::now();
    options.progress.stage("plan", None);
    let plan = midtread_quant::plan(&prepared, stats.as_ref(), &options.target, &options.plan)?;
    timed("plan", start);

    let start = Instant::now();
    options.progress.stage("apply", None);
    let model = apply(&prepared, &plan, options.format)?;
    timed("apply", start);
    Ok(Quantized { model, prepared, prepare_report, stats, plan, seconds })
}

/// A model ready to be planned.
pub struct Measured {
    /// As it is planned.
    pub prepared: Model,
    /// What preparing did.
    pub prepare_report: midtread_passes::Report,
    /// What was measured; `None` for schemes that need no data.
    pub stats: Option<Stats>,
    /// Stages and the seconds they took, in order.
    pub seconds: Vec<(&'static str, f64)>,
}

/// The first half of [`quantize`]: prepares and, unless `stats` are given, measures.
///
/// All options are checked before the first sample is read.
pub fn measured(
    model: Model,
    stats: Option<Stats>,
    samples: Option<&dyn Samples>,
    options: &Options<'_>,
) -> Result<Measured, Error> {
    let mut seconds = Vec::new();
    let mut timed = |name, since: Instant| seconds.push((name, since.elapsed().as_secs_f64()));

    let start = Instant::now();
    options.progress.stage("prepare", None);
    let (prepared, prepare_report) = prepare_for(model, options)?;
    timed("prepare", start);

    let stats = match options.plan.scheme {
        Scheme::Static if stats.is_some() => {
            let is_another = |stats: &Stats| {
                !stats.model().is_empty() && stats.model() != fingerprint(&prepared)
            };
            if stats.as_ref().is_some_and(is_another) {
                return Err(midtread_quant::Error::StatsOfAnotherModel.into());
            }
            stats
        }
        Scheme::Static => {
            let samples = samples.ok_or(midtread_quant::Error::NoStats)?;
            let start = Instant::now();
            let stats = measure(
                &prepared,
                samples,
                options.collect.unwrap_or_else(|| collect(&options.plan)),
                options,
            )?;
            timed("calibrate", start);
            Some(stats)
        }
        Scheme::Dynamic | Scheme::WeightOnly => None,
    };
    Ok(Measured { prepared, prepare_report, stats, seconds })
}

/// Prepares a model, in the operator set that its plan will need.
pub(crate) fn prepare_for(
    model: Model,
    options: &Options<'_>,
) -> Result<(Model, midtread_passes::Report), Error> {
    let (mut prepared, mut report) = midtread_passes::prepare(model, &options.prepare)?;
    // A plan with ranges made up, so that everything in which the options, the target and the model contradict each
    // other is found before the data is read. It also tells which operator set is needed.
    let trial = plan_ranges(&prepared, Some(&AnyRange), &options.target, &options.plan)?;
    let opset = required_opset(&trial, options.format);
    if prepared.opset("").is_some_and(|version| version < opset) {
        let raised = PrepareOptions { opset: Some(opset), ..options.prepare.clone() };
        let (model, second) = midtread_passes::prepare(prepared, &raised)?;
        prepared = model;
        report.passes.extend(second.passes);
    }
    Ok((prepared, report))
}

/// Ranges for a trial plan: every tensor was seen, between -1 and 1.
struct AnyRange;

impl Ranges for AnyRange {
    fn contains(&self, _: &str) -> bool {
        true
    }

    fn range(&self, _: &str, _: &Calibrator, _: &RangeGoal) -> Result<(f32, f32), CalibrateError> {
        Ok((-1.0, 1.0))
    }
}

/// What the plan's calibrators read: nothing more is collected.
pub(crate) fn collect(plan: &PlanOptions) -> Collect {
    let overrides = plan.overrides.tensors.values().filter_map(|o| o.calibrator.as_ref());
    let histogram =
        overrides.chain([&plan.calibrator]).any(|calibrator| calibrator.def.needs_histogram);
    if histogram { Collect::Histogram } else { Collect::Extrema }
}

/// Measures a prepared model.
pub fn measure(
    prepared: &Model,
    samples: &dyn Samples,
    collect: Collect,
    options: &Options<'_>,
) -> Result<Stats, Error> {
    Measuring {
        collect,
        watch: Watch::Quantizable,
        n_threads: options.n_threads,
        max_bytes: options.max_bytes,
        progress: options.progress,
        interrupted: options.interrupted,
    }
    .run(prepared, samples)
}

/// How a model is measured.
pub(crate) struct Measuring<'a> {
    pub(crate) collect: Collect,
    pub(crate) watch: Watch,
    pub(crate) n_threads: usize,
    pub(crate) max_bytes: Option<usize>,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) interrupted: &'a AtomicBool,
}

impl Measuring<'_> {
    pub(crate) fn run(&self, prepared: &Model, samples: &dyn Samples) -> Result<Stats, Error> {
        self.progress.stage("calibrate", Some(samples.names().len()));
        let stats = calibrate::calibrate(
            prepared,
            samples,
            &calibrate::Options {
                model: fingerprint(prepared),
                collect: self.collect,
                watch: self.watch,
                n_threads: self.n_threads,
                max_bytes: self.max_bytes,
                progress: &|n| self.progress.done(n),
                interrupted: self.interrupted,
            },
        );
        match stats {
            Err(calibrate::RunError::Interrupted) => Err(Error::Interrupted),
            other => Ok(other?),
        }
    }
}

/// A quarter of the machine's memory, where the system tells how much it has.
pub fn default_max_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024 / 4)
}

/// The most memory this process has had in use, where the system tells.
pub fn peak_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
