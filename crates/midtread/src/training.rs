//! The whole way from a float model to one that was trained for its integers.

use midtread_graph::{Model, Sample};
use midtread_passes::PrepareOptions;
use midtread_quant::{Plan, Scheme, apply, calibrate::Samples, required_opset};
use midtread_train::{Data, Epoch, Hooks, Score, Start};

use crate::{
    error::Error,
    quantize::{Options, collect, measure, prepare_for},
};

/// A trained, quantized model, and what it is compared with.
pub struct TrainedModel {
    /// The float model as it was planned.
    pub prepared: Model,
    /// The result, ready to be saved.
    pub model: Model,
    /// What was decided, with the trained parameters.
    pub plan: Plan,
    /// Every epoch.
    pub epochs: Vec<Epoch>,
    /// Which epoch the weights are of, from 1.
    pub best: usize,
    /// Numbers that were trained.
    pub n_parameters: usize,
    /// Batch normalizations that were folded while training.
    pub n_norms: usize,
    /// The most bytes of values that a step kept for its way back.
    pub kept_bytes: usize,
    /// Scores on the validation data, if there is any.
    pub scores: Option<Scores>,
    /// Quantized without training, by the same plan.
    pub ptq: Model,
    /// The same with what can be had back without training; see [`midtread_train::recover`].
    pub recovered: Model,
}

/// Scores of four models on the same data.
#[derive(Clone, Copy, Debug)]
pub struct Scores {
    /// The float model.
    pub float: Score,
    /// Quantized without training, by the same plan.
    pub ptq: Score,
    /// The same with what can be had back without training.
    pub recovered: Score,
    /// Trained and quantized: the model that is saved, run as it is.
    pub qat: Score,
}

/// Some of the samples of a data set, as a data set.
struct Part<'a>(&'a dyn Samples, &'a [usize]);

impl Samples for Part<'_> {
    fn names(&self) -> Vec<String> {
        let names = self.0.names();
        self.1.iter().map(|&i| names[i].clone()).collect()
    }

    fn sample(&self, i: usize) -> Result<Sample, Box<dyn std::error::Error + Send + Sync>> {
        self.0.sample(self.1[i])
    }
}

/// How a model is trained, besides how it is quantized.
#[derive(Clone, Copy)]
pub struct TrainingRun<'a> {
    /// The training's own options.
    pub training: &'a midtread_train::Options,
    /// Activations' first ranges are measured on so many samples of the data.
    pub n_calibration: usize,
    /// What [`Hooks::checkpoint`] was given last, to go on from there.
    pub resume: Option<&'a [u8]>,
}

/// Prepares, measures, plans, trains and applies. The scheme must be static or weight-only.
pub fn train(
    model: Model,
    data: Data<'_>,
    validation: Option<Data<'_>>,
    options: &Options<'_>,
    run: TrainingRun<'_>,
    hooks: &(dyn Hooks + Sync),
) -> Result<TrainedModel, Error> {
    let TrainingRun { training, n_calibration, resume } = run;
    training.check()?;
    if options.plan.scheme == Scheme::Dynamic {
        return Err(Error::Options(
            "scales that are computed at run time cannot be trained".into(),
        ));
    }
    options.progress.stage("prepare", None);
    let (prepared, _) = prepare_for(model.clone(), options)?;
    let opset = prepared.opset("").unwrap_or(1);
    let unfused = PrepareOptions {
        passes: options.prepare.passes.clone().without("fuse_batch_norm")?,
        opset: Some(opset),
        ..options.prepare.clone()
    };
    let (unfused, _) = midtread_passes::prepare(model, &unfused)?;
    let stats = match options.plan.scheme {
        Scheme::Static => {
            let first = &data.which[..n_calibration.min(data.which.len())];
            let kept = options.collect.unwrap_or_else(|| collect(&options.plan));
            Some(measure(&prepared, &Part(data.samples, first), kept, options)?)
        }
        Scheme::Dynamic | Scheme::WeightOnly => None,
    };
    options.progress.stage("plan", None);
    let plan = midtread_quant::plan(&prepared, stats.as_ref(), &options.target, &options.plan)?;
    debug_assert!(required_opset(&plan, options.format) <= opset);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.n_threads)
        .build()
        .map_err(|e| Error::Options(format!("no threads: {e}")))?;
    // Without training the plan is as it is; first, so that it fails before the long part.
    let ptq = apply(&prepared, &plan, options.format)?;
    let start = Start { prepared: &prepared, unfused: &unfused, plan: &plan };
    options.progress.stage("recover", None);
    let batch = training.micro_batch.unwrap_or(training.batch);
    let (model, recovered) = pool.install(|| midtread_train::recover(start, data, batch))?;
    let recovered = apply(&model, &recovered, options.format)?;
    options.progress.stage("train", None);
    let trained = pool.install(|| {
        midtread_train::train(start, data, validation, training, resume, hooks, options.interrupted)
    })?;
    options.progress.stage("apply", None);
    let model = apply(&trained.model, &trained.plan, options.format)?;
    let scores = match validation {
        Some(validation) => {
            options.progress.stage("score", None);
            let score = |model: &Model| {
                midtread_train::score(
                    model,
                    &prepared,
                    &validation,
                    training.batch,
                    options.interrupted,
                )
            };
            let scores = pool.install(|| -> Result<Scores, midtread_train::Error> {
                Ok(Scores {
                    float: score(&prepared)?,
                    ptq: score(&ptq)?,
                    recovered: score(&recovered)?,
                    qat: score(&model)?,
                })
            })?;
            Some(scores)
        }
        None => None,
    };
    let midtread_train::Trained { plan, epochs, best, n_norms, n_parameters, kept_bytes, .. } =
        trained;
    Ok(TrainedModel {
        prepared,
        model,
        plan,
        epochs,
        best,
        n_parameters,
        n_norms,
        kept_bytes,
        scores,
        ptq,
        recovered,
    })
}
