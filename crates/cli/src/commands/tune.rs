//! `midtread tune`.

use std::{num::NonZero, path::PathBuf, time::Duration};

use clap::Args;
use midtread::{
    Error, Runner, Runtime, Scheme,
    compare::sensitivity::{self, Sensitivity},
    evaluate::{RunOptions, predict},
    graph::Model,
    judge::{Judge, Measure},
    latency::latency,
    manifest::Recorded,
    onnx::{self, SaveOptions},
    page::{Sources, page},
    passes::PrepareOptions,
    quant::{
        PlanOptions,
        calibrate::{Collect, Samples},
    },
    quantize::{Measured, Options as QuantizeOptions, measured},
    report::page::{Latency as LatencyRow, Point},
    samples::DataSamples,
    tune::{Cost, Task, Trial, Tuned, tune},
};
use serde_json::json;

use crate::{
    args::{DataArgs, FormatArgs, JudgeArgs, PlanArgs, PrepareArgs},
    context::{Context, Outcome, check_output, default_output, write},
    judging, pages, samples,
    table::{percent, shorten, size, table},
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread tune model.onnx --data pictures/ --valid held_out/ --valid-labels labels.csv --max-drop 0.5%
  midtread tune model.onnx --data pictures/ --labels labels.csv --four-bit --report tune.html
  midtread tune model.onnx --data pictures/ --labels labels.csv --cost latency --budget 10m
  midtread tune bert.onnx --scheme dynamic --data sentences.npz --values
  midtread tune detect.onnx --data pictures/ --metric-command 'python map.py truth.json' --max-drop 1%

What is tried, from one calibration: every calibrator; symmetric activations, asymmetric weights, one
scale a weight; the most sensitive layers in float; with --four-bit the least sensitive ones in 4 bits.
The model that is written is the cheapest that loses no more than --max-drop; if there is none, the best
(and the exit status is 1). It was chosen by the samples it was judged by: for an honest figure score it
on others with `midtread evaluate`.")]
pub(crate) struct Tune {
    /// The float model
    model: PathBuf,
    /// Where the quantized model goes [default: MODEL with .int8.onnx]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    judge: JudgeArgs,
    /// Without right answers: judge by the cosine of the first output, not by the first answers that agree with float's
    #[arg(long, conflicts_with_all = ["labels", "valid_labels", "metric_command"])]
    values: bool,
    /// Let a program judge (see `midtread evaluate`): more is better, and --max-drop is a share of the float model's number
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["labels", "valid_labels"])]
    metric_command: Option<String>,
    /// How much may be lost: of right answers, of agreement, of cosine or of the program's number
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = super::evaluate::parse_percent)]
    max_drop: f64,
    /// What is to be small: size, latency (of one sample in the engine, on one thread)
    #[arg(long, value_name = "WHAT", default_value = "size", value_parser = parse_cost)]
    cost: Cost,
    /// Also try weights of 4 bits in layers that bear them: smaller, seldom faster; raises the model to operator set 21
    #[arg(long)]
    four_bit: bool,
    /// Calibrate on the first N samples of --data
    #[arg(long, value_name = "N", default_value = "256")]
    calibration_samples: NonZero<usize>,
    /// Rank layers by the first N of those
    #[arg(long, value_name = "N", default_value = "16")]
    ranking_samples: NonZero<usize>,
    /// Begin no other trial after this long: 60s, 5m, 1h
    #[arg(long, value_name = "TIME", value_parser = super::sensitivity::parse_duration)]
    budget: Option<Duration>,
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    prepare: PrepareArgs,
    /// Keep the plan of the model that is written in this file
    #[arg(long, value_name = "FILE")]
    save_plan: Option<PathBuf>,
    /// Write the trials, the front and the model that is taken as one HTML page that needs no network
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn parse_cost(text: &str) -> Result<Cost, String> {
    match text {
        "size" => Ok(Cost::Size),
        "latency" => Ok(Cost::Latency),
        _ => Err("it is size or latency".into()),
    }
}

/// Samples that the page's comparison is about, at most.
const MAX_COMPARED: usize = 32;

impl Tune {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        let plan = self.plan.options()?;
        let output = self.output.clone().unwrap_or_else(|| default_output(&self.model, "int8"));
        let outputs = [&self.save_plan, &self.report].map(Option::as_ref);
        outputs.into_iter().flatten().chain([&output]).try_for_each(|path| check_output(path))?;
        let model = onnx::load(&self.model).map_err(Error::from)?;
        let bytes_in = samples::model_bytes(&self.model, &model)?;
        let data = samples::open(&self.data, &model, context)?;
        let valid = self.judge.valid.as_deref();
        let valid = valid.map(|path| samples::open_at(path, &self.data, None, &model, context));
        let valid = valid.transpose()?;
        let judged: &DataSamples = valid.as_ref().unwrap_or(&data);
        let labels = self.judge.valid_labels.as_ref().or(self.judge.labels.as_ref());
        let labels = labels.map(|path| samples::labels(path, judged)).transpose()?;

        let target = self.plan.target()?;
        let calibration = Recorded::new(&data, self.calibration_samples.get());
        let measured = self.measured(model, &calibration, &plan, context)?;
        let bar = context.bar("judge", judged.names().len());
        let progress = |n| bar.set_position(n as u64);
        let options = context.run_options(&progress);
        let measure = self.measure(labels, &measured.prepared, judged, &options)?;
        let judge = Judge::new(&measured.prepared, judged, measure, options)?;
        let inputs = judging::first_inputs(judged)?;
        let of_float = time(&measured.prepared, &inputs)?;
        let ranked = Recorded::new(&data, self.ranking_samples.get());
        let tuned = tune(&Task {
            measured: &measured,
            target: &target,
            format: self.format.format,
            plan: &plan,
            max_loss: self.max_drop,
            cost: self.cost,
            four_bit: self.four_bit,
            budget: self.budget,
            judge: &|model| judge.judge(model),
            time: &|model| time(model, &inputs),
            rank: &|plan| rank(&measured, plan, &target, &ranked, context),
            progress: &|name| bar.set_message(shorten(name, 40)),
            interrupted: &context.interrupted,
        });
        bar.finish_and_clear();
        let tuned = tuned?;
        context.check_interrupted()?;
        if let Some(path) = &self.save_plan {
            write(path, tuned.plan.to_text().as_bytes())?;
        }
        let saved =
            onnx::save(&tuned.model, &output, &SaveOptions::default()).map_err(Error::from)?;
        let best = &tuned.trials[tuned.best];
        if let Some(path) = &self.report {
            let n_compared = self.calibration_samples.get().min(MAX_COMPARED);
            let some = Recorded::new(&data, n_compared);
            let comparison = pages::compared(&measured.prepared, &tuned.model, &some, context)?;
            let sources = Sources {
                model: &measured.prepared,
                plan: Some(&tuned.plan),
                stats: measured.stats.as_ref(),
                comparison: Some(&comparison),
                sensitivity: tuned.sensitivity.as_ref(),
            };
            let title = format!("{} tuned", pages::name(&self.model));
            let subtitle = format!(
                "{} ways tried; taken: {}; judged by {} samples",
                tuned.trials.len(),
                best.name,
                judge.n_samples()
            );
            let mut page = page(&title, &subtitle, &sources);
            let latency = |median_ms| LatencyRow {
                runtime: "engine".into(),
                threads: 1,
                median_ms,
                min_ms: median_ms,
            };
            page.variants = vec![
                pages::variant(&self.model, bytes_in, None),
                pages::variant(&output, saved.n_bytes, Some(&comparison)),
            ];
            for (variant, ms) in page.variants.iter_mut().zip([of_float, best.latency_ms]) {
                variant.latencies.push(latency(ms));
            }
            judging::show(&mut page.variants, &judge, &best.quality);
            page.difference = best.quality.difference.map(serde_json::to_value).transpose()?;
            page.pareto = tuned.trials.iter().map(|trial| self.point(trial)).collect();
            page.pareto_axes = [
                match self.cost {
                    Cost::Size => "size in kB".to_owned(),
                    Cost::Latency => "latency in ms".to_owned(),
                },
                judge.measure().name().to_owned(),
            ];
            let files = [("model", &*self.model), ("output", &*output)];
            page.manifest.push(pages::inputs(&files, Some(&calibration))?);
            context.check_interrupted()?;
            write(path, page.to_html().as_bytes())?;
        }
        if context.json {
            context.print_json(&json!({
                "output": output,
                "measure": judge.measure().name(),
                "samples": judge.n_samples(),
                "float": { "bytes": bytes_in, "value": judge.of_float.value, "latency_ms": of_float },
                "max_loss": self.max_drop,
                "best": tuned.best,
                "is_within": best.is_within,
                "is_cut_short": tuned.is_cut_short,
                "trials": tuned.trials,
                "refused": tuned.refused,
                "report": self.report,
            }));
        } else {
            self.show(&tuned, &judge, (bytes_in, of_float), &output, context);
        }
        if !best.is_within {
            context.warn(format!(
                "no way that was tried loses {} or less: the best is written",
                percent(self.max_drop)
            ));
            return Ok(Outcome::CheckFailed);
        }
        Ok(Outcome::Done)
    }

    /// Prepares and calibrates, with what every trial may ask for.
    fn measured(
        &self,
        model: Model,
        calibration: &Recorded<'_>,
        plan: &PlanOptions,
        context: &Context,
    ) -> anyhow::Result<Measured> {
        const FOUR_BITS: i64 = 21;
        let progress = context.stages();
        let prepare = self.prepare.options(None)?;
        let opset = self.four_bit.then(|| model.opset("").unwrap_or(1).max(FOUR_BITS));
        let options = QuantizeOptions {
            prepare: PrepareOptions { opset, ..prepare },
            target: self.plan.target()?,
            format: self.format.format,
            collect: Some(Collect::Histogram),
            n_threads: context.n_threads,
            max_bytes: context.max_bytes,
            progress: &progress,
            interrupted: &context.interrupted,
            plan: plan.clone(),
        };
        let is_static = plan.scheme == Scheme::Static;
        let samples = is_static.then_some(calibration as &dyn Samples);
        Ok(measured(model, None, samples, &options)?)
    }

    /// What decides.
    fn measure(
        &self,
        labels: Option<Vec<Vec<usize>>>,
        model: &Model,
        judged: &dyn Samples,
        options: &RunOptions<'_>,
    ) -> anyhow::Result<Measure> {
        if let Some(labels) = labels {
            return Ok(Measure::Top1(labels));
        }
        if let Some(command) = &self.metric_command {
            return Ok(Measure::Command(command.clone()));
        }
        // A model whose first output is no row of scores has no answers that could agree.
        let first = Recorded::new(judged, 1);
        let answers = !self.values && predict(model, &first, options).is_ok();
        Ok(if answers { Measure::Agreement } else { Measure::Cosine })
    }

    fn point(&self, trial: &Trial) -> Point {
        Point {
            name: trial.name.clone(),
            cost: self.cost.of(trial) / if self.cost == Cost::Size { 1e3 } else { 1.0 },
            quality: trial.quality.value,
            on_front: trial.on_front,
        }
    }

    fn show(
        &self,
        tuned: &Tuned,
        judge: &Judge<'_>,
        (bytes_in, of_float): (u64, f64),
        output: &std::path::Path,
        context: &Context,
    ) {
        let name = judge.measure().name();
        let value = |x: f64| match judge.measure() {
            Measure::Top1(_) | Measure::Agreement => percent(x),
            Measure::Cosine | Measure::Command(_) => format!("{x:.5}"),
        };
        let heading = ["", "way", "size", name, "lost", "latency", "integers"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        let dash = || "–".to_owned();
        rows.push(vec![
            String::new(),
            "float".to_owned(),
            size(bytes_in),
            value(judge.of_float.value),
            dash(),
            format!("{of_float:.3} ms"),
            dash(),
        ]);
        for (i, trial) in tuned.trials.iter().enumerate() {
            let mark = match (i == tuned.best, trial.on_front) {
                (true, _) => ">",
                (_, true) => "*",
                _ => "",
            };
            rows.push(vec![
                mark.to_owned(),
                trial.name.clone(),
                size(trial.bytes),
                value(trial.quality.value),
                percent(trial.quality.loss),
                format!("{:.3} ms", trial.latency_ms),
                trial.share_quantized.map_or_else(dash, percent),
            ]);
        }
        context.say(table(&rows).trim_end());
        context.say("> taken; * on the front: nothing tried is as cheap and as good, and better in one; integers: share of multiplications");
        for refused in &tuned.refused {
            context.say(format!("not possible: {}: {}", refused.name, refused.reason));
        }
        if tuned.is_cut_short {
            context.say("the budget ended the search");
        }
        let best = &tuned.trials[tuned.best];
        context.say(format!(
            "{} -> {}: {}, {} -> {}, {name} {} of {} over {} samples",
            self.model.display(),
            output.display(),
            best.name,
            size(bytes_in),
            size(best.bytes),
            value(best.quality.value),
            value(judge.of_float.value),
            judge.n_samples()
        ));
        if let Some(difference) = &best.quality.difference {
            super::evaluate::say_difference(difference, context);
        }
        if let Some(path) = &self.report {
            context.say(format!("the report is in {}", path.display()));
        }
    }
}

/// The median of one sample in the engine, on one thread, in milliseconds.
fn time(model: &Model, inputs: &[(String, midtread::graph::Tensor)]) -> Result<f64, Error> {
    const RUNS: usize = 20;
    Ok(latency(&Runner::new(model, Runtime::Engine, None)?, inputs, RUNS, 1)?.median)
}

fn rank(
    measured: &Measured,
    plan: &PlanOptions,
    target: &midtread::Target,
    samples: &dyn Samples,
    context: &Context,
) -> Result<Sensitivity, Error> {
    let task = sensitivity::Task {
        prepared: &measured.prepared,
        ranges: measured.stats.as_ref().map(|stats| stats as _),
        target,
        plan,
    };
    let bar = context.bar("sensitivity", 0);
    let options = sensitivity::Options {
        n_threads: context.n_threads,
        max_bytes: context.max_bytes,
        budget: None,
        labels: None,
        resume: None,
        checkpoint: &mut |_| {},
        progress: &|done, of| {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
        },
        interrupted: &context.interrupted,
    };
    let result = sensitivity::sensitivity(&task, samples, options);
    bar.finish_and_clear();
    result.map_err(|error| match error {
        midtread::compare::Error::Interrupted => Error::Interrupted,
        other => other.into(),
    })
}
