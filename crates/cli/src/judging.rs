//! Accuracy and latency of a model before and after, for tables and pages.

use std::path::Path;

use midtread::{
    Error, Runner, Runtime,
    evaluate::Difference,
    graph::{Model, Tensor},
    judge::{Judge, Measure, Quality},
    latency::{Latency, run_times},
    peer::OnnxRuntime,
    quant::calibrate::Samples,
    report::page::{Latency as LatencyRow, Variant},
};

use crate::{
    args::{DataArgs, JudgeArgs},
    context::Context,
    samples,
};

/// Puts what a measure says of both models into the table; how right answers differ is returned.
pub(crate) fn judge(
    variants: &mut [Variant],
    [float, quantized]: [&Model; 2],
    data: &dyn Samples,
    measure: Measure,
    context: &Context,
) -> anyhow::Result<Option<Difference>> {
    let bar = context.bar(measure.name(), data.names().len());
    let progress = |n| bar.set_position(n as u64);
    let options = context.run_options(&progress);
    let judge = Judge::new(float, data, measure, options)?;
    let quality = judge.judge(quantized)?;
    bar.finish_and_clear();
    show(variants, &judge, &quality);
    Ok(quality.difference)
}

/// Puts what a judge says of the float model and of another into the table.
pub(crate) fn show(variants: &mut [Variant], judge: &Judge<'_>, quality: &Quality) {
    for (variant, value) in variants.iter_mut().zip([judge.of_float.value, quality.value]) {
        match judge.measure() {
            Measure::Top1(_) => {
                variant.top1 = Some(value);
                variant.top1_interval = judge.interval(value);
            }
            Measure::Agreement => {}
            Measure::Cosine | Measure::Command(_) => variant.metric = Some(value),
        }
    }
    if let Some(variant) = variants.get_mut(1) {
        variant.agreement = quality.agreement.or(variant.agreement);
    }
}

/// Judges both models by the right answers that the options name, if they name any.
pub(crate) fn judge_by_labels(
    variants: &mut [Variant],
    models: [&Model; 2],
    args: &JudgeArgs,
    data_args: &DataArgs,
    data: Option<&dyn Samples>,
    context: &Context,
) -> anyhow::Result<Option<Difference>> {
    let valid = args.valid.as_deref();
    let valid = valid.map(|path| samples::open_at(path, data_args, None, models[0], context));
    let valid = valid.transpose()?;
    let judged = valid.as_ref().map(|valid| valid as &dyn Samples).or(data);
    let labels = args.valid_labels.as_ref().or(args.labels.as_ref());
    let (Some(judged), Some(labels)) = (judged, labels) else { return Ok(None) };
    let right = samples::labels(labels, judged)?;
    judge(variants, models, judged, Measure::Top1(right), context)
}

/// How models are timed.
pub(crate) struct Timing<'a> {
    pub(crate) thread_counts: &'a [usize],
    /// How often each model runs.
    pub(crate) repeat: usize,
    /// ONNX Runtime, and the models' files for it.
    pub(crate) peer: Option<(&'a OnnxRuntime, [&'a Path; 2])>,
}

impl Timing<'_> {
    /// What pages without options about time show.
    pub(crate) const BRIEF: Timing<'static> =
        Timing { thread_counts: &[1], repeat: 20, peer: None };

    /// Times two models in turns, in the engine and in ONNX Runtime, and puts that into the table.
    pub(crate) fn time(
        &self,
        variants: &mut [Variant],
        models: [&Model; 2],
        inputs: &[(String, Tensor)],
        context: &Context,
    ) -> anyhow::Result<()> {
        const ROUNDS: usize = 5;
        let runners = [
            Runner::new(models[0], Runtime::Engine, None)?,
            Runner::new(models[1], Runtime::Engine, None)?,
        ];
        let bar = context.bar("time", ROUNDS * self.thread_counts.len());
        for &n_threads in self.thread_counts {
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..ROUNDS {
                context.check_interrupted()?;
                // In turns, so that what slows the machine for a while slows both.
                for (times, runner) in times.iter_mut().zip(&runners) {
                    let repeat = self.repeat.div_ceil(ROUNDS);
                    times.extend(run_times(runner, inputs, repeat, n_threads)?);
                }
                bar.inc(1);
            }
            let mut add = |runtime: &str, i: usize, t: Latency| {
                variants[i].latencies.push(LatencyRow {
                    runtime: runtime.to_owned(),
                    threads: n_threads,
                    median_ms: t.median,
                    min_ms: t.min,
                });
            };
            for (i, times) in times.into_iter().enumerate() {
                add("engine", i, Latency::of(times, n_threads));
            }
            if let Some((peer, paths)) = self.peer {
                let found = peer.latencies(&paths, inputs, self.repeat, n_threads)?;
                found.into_iter().enumerate().for_each(|(i, t)| add("onnxruntime", i, t));
            }
        }
        bar.finish_and_clear();
        Ok(())
    }
}

/// The inputs that models are timed on.
pub(crate) fn first_inputs(data: &dyn Samples) -> anyhow::Result<Vec<(String, Tensor)>> {
    Ok(data.sample(0).map_err(Error::Sample)?.inputs)
}
