//! `midtread train`.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::Mutex,
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::ProgressBar;
use midtread::{
    Error,
    data::{self, InputSpec, Preprocess},
    graph::Model,
    onnx::{self, SaveOptions},
    page::Sources,
    quant::{calibrate::Samples, plan::IntType},
    report::{
        Page,
        page::Group,
        training::{EpochRow, Training, page},
    },
    samples as library_samples,
    significance::wilson,
    train::{
        Augment, Data, Epoch, Hooks, Labels, Loss, Optimizer, Options, Progress, RECIPES, Scales,
        Score, recipe_for_bits,
    },
    training::{TrainedModel, TrainingRun},
};
use serde_json::{Value, json};

use crate::{
    args::{DataArgs, FormatArgs, PlanArgs, PrepareArgs, Width},
    context::{Context, Outcome, Stages, check_output, default_output, write},
    judging::{self, Timing},
    pages, samples,
    table::{percent, size, table},
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread train model.onnx --data train/ --labels train.csv --preprocess imagenet --valid val/ --valid-labels val.csv -o model.int8.onnx
  midtread train model.onnx --data train/ --preprocess imagenet --weights i4 --activations u4 --holdout 1000
  midtread train model.onnx --data train-images-idx3-ubyte.gz --labels train-labels-idx1-ubyte.gz --preprocess fashion_mnist --flip \\
      --valid t10k-images-idx3-ubyte.gz --valid-labels t10k-labels-idx1-ubyte.gz --compare w8a8,w4a4,w2a4
  midtread train model.onnx --data train/ --preprocess imagenet -o out.onnx --resume")]
pub(crate) struct Train {
    /// The float model
    model: PathBuf,
    /// Where the quantized model goes [default: MODEL with .qat.onnx]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    /// The right answers, as in `evaluate`; without them the float model is the teacher
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Data to score each epoch with; it trains nothing, and the best epoch is kept
    #[arg(long, value_name = "PATH")]
    valid: Option<PathBuf>,
    /// The right answers for it; without them the score is agreement with the float model
    #[arg(long, value_name = "FILE", requires = "valid")]
    valid_labels: Option<PathBuf>,
    /// Score with the last N samples of the data, which then train nothing
    #[arg(long, value_name = "N", conflicts_with = "valid")]
    holdout: Option<usize>,
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    prepare: PrepareArgs,
    /// Train once for each of these widths of weights and activations, and compare: w8a8,w4a4,w2a4
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    compare: Vec<Widths>,
    /// Samples from which activations' first ranges are measured
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    calibration_samples: u32,
    #[command(flatten)]
    training: TrainingArgs,
    /// Where the run's state is kept until it is done [default: OUTPUT with .checkpoint]
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Go on from the checkpoint, if there is one; the result is that of a run that was never stopped
    #[arg(long)]
    resume: bool,
    /// Write the curves as one HTML page
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// How it is trained: what is not given is the recipe's.
#[derive(Args)]
#[command(next_help_heading = "Training")]
struct TrainingArgs {
    /// Settings that work as they are [default: by the number of bits]
    #[arg(long, value_name = "NAME", value_parser = recipes())]
    recipe: Option<String>,
    /// Passes over the data
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,
    /// Samples of a step
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Samples in memory at once; the gradients of a batch's parts are added up
    #[arg(long, value_name = "N")]
    micro_batch: Option<usize>,
    /// Keep fewer values for the way back and compute the others again: less memory, more time
    #[arg(long)]
    recompute: bool,
    /// How the weights are changed: adam, sgd (with momentum 0.9)
    #[arg(long, value_name = "NAME", value_parser = parse_optimizer)]
    optimizer: Option<Optimizer>,
    /// The largest learning rate; it falls along half a cosine
    #[arg(long, value_name = "X")]
    learning_rate: Option<f32>,
    /// Share of the steps in which it rises
    #[arg(long, value_name = "X")]
    warmup: Option<f32>,
    /// Decay of weights (not of scales, biases and normalizations)
    #[arg(long, value_name = "X")]
    weight_decay: Option<f32>,
    /// The largest norm of the gradient
    #[arg(long, value_name = "X")]
    clip: Option<f32>,
    /// Scales: learned (LSQ), pact, observed (by extrema), fixed (the plan's)
    #[arg(long, value_name = "NAME", value_parser = parse_scales)]
    scales: Option<Scales>,
    /// Weight of the cross-entropy with the labels
    #[arg(long, value_name = "X")]
    cross_entropy: Option<f32>,
    /// Weight of the distance from the float model's outputs
    #[arg(long, value_name = "X")]
    distill: Option<f32>,
    /// The temperature that softens them
    #[arg(long, value_name = "X")]
    temperature: Option<f32>,
    /// Also bring this inner value near the float model's (repeatable)
    #[arg(long, value_name = "TENSOR")]
    match_feature: Vec<String>,
    /// Share of the steps before anything is quantized
    #[arg(long, value_name = "X")]
    delay: Option<f32>,
    /// Share of the steps after which observed ranges freeze
    #[arg(long, value_name = "X")]
    freeze_ranges: Option<f32>,
    /// Share of the steps after which batch normalizations freeze; until then they use the batch's statistics
    #[arg(long, value_name = "X")]
    freeze_norms: Option<f32>,
    /// Move pictures by up to so many pixels each way
    #[arg(long, value_name = "PIXELS")]
    crop: Option<usize>,
    /// Mirror half of the pictures
    #[arg(long)]
    flip: bool,
    /// End after so many epochs without a better score
    #[arg(long, value_name = "N")]
    patience: Option<usize>,
    /// Steps between two checkpoints inside of an epoch
    #[arg(long, value_name = "N")]
    checkpoint_steps: Option<usize>,
    /// Decides every random choice
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

fn recipes() -> clap::builder::ValueParser {
    let values = RECIPES.iter().map(|r| clap::builder::PossibleValue::new(r.name).help(r.summary));
    clap::builder::PossibleValuesParser::new(values.collect::<Vec<_>>()).into()
}

fn parse_optimizer(text: &str) -> Result<Optimizer, String> {
    match text {
        "adam" => Ok(Optimizer::Adam),
        "sgd" => Ok(Optimizer::Sgd { momentum: 0.9 }),
        _ => Err("it is adam or sgd".into()),
    }
}

fn parse_scales(text: &str) -> Result<Scales, String> {
    match text {
        "learned" => Ok(Scales::Learned),
        "pact" => Ok(Scales::Pact),
        "observed" => Ok(Scales::Observed),
        "fixed" => Ok(Scales::Fixed),
        _ => Err("it is learned, pact, observed or fixed".into()),
    }
}

/// `w4a8`: bits of weights and of activations.
#[derive(Clone, Copy, Debug)]
struct Widths {
    weights: u32,
    activations: u32,
}

impl FromStr for Widths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.strip_prefix('w').and_then(|rest| rest.split_once('a'));
        let parsed = parts.and_then(|(w, a)| Some((w.parse().ok()?, a.parse().ok()?)));
        match parsed {
            Some((weights, activations))
                if (2..=8).contains(&weights) && (2..=8).contains(&activations) =>
            {
                Ok(Self { weights, activations })
            }
            _ => Err("widths are like w4a8, of 2 to 8 bits".into()),
        }
    }
}

impl Widths {
    fn name(self) -> String {
        format!("w{}a{}", self.weights, self.activations)
    }
}

/// The type of so many bits with the sign of `like`.
fn width(like: IntType, bits: u32) -> anyhow::Result<Width> {
    let sign = if like.is_signed() { 'i' } else { 'u' };
    format!("{sign}{bits}").parse().map_err(anyhow::Error::msg)
}

impl TrainingArgs {
    fn options(&self, bits: u32, labels: Option<&Labels>) -> Options {
        let recipe = match &self.recipe {
            Some(name) => {
                RECIPES.iter().find(|r| r.name == name).expect("clap takes only names in the list")
            }
            None => recipe_for_bits(bits),
        };
        let base = (recipe.options)();
        let has_classes = matches!(labels, Some(Labels::Classes(_)));
        let loss = Loss {
            cross_entropy: self.cross_entropy.unwrap_or(if has_classes {
                base.loss.cross_entropy
            } else {
                0.0
            }),
            squared: if matches!(labels, Some(Labels::Values(_))) { 1.0 } else { 0.0 },
            distill: self.distill.unwrap_or(if labels.is_some() { base.loss.distill } else { 1.0 }),
            temperature: self.temperature.unwrap_or(base.loss.temperature),
            features: if self.match_feature.is_empty() { 0.0 } else { 1.0 },
        };
        let augment = Augment {
            crop: self.crop.unwrap_or(base.augment.crop),
            flip: self.flip || base.augment.flip,
        };
        Options {
            epochs: self.epochs.unwrap_or(base.epochs),
            batch: self.batch.unwrap_or(base.batch),
            micro_batch: self.micro_batch.or(base.micro_batch),
            recompute: self.recompute || base.recompute,
            optimizer: self.optimizer.unwrap_or(base.optimizer),
            learning_rate: self.learning_rate.unwrap_or(base.learning_rate),
            warmup: self.warmup.unwrap_or(base.warmup),
            weight_decay: self.weight_decay.unwrap_or(base.weight_decay),
            clip: self.clip.or(base.clip),
            loss,
            features: self.match_feature.clone(),
            scales: self.scales.unwrap_or(base.scales),
            delay: self.delay.unwrap_or(base.delay),
            freeze_ranges: self.freeze_ranges.unwrap_or(base.freeze_ranges),
            freeze_norms: self.freeze_norms.unwrap_or(base.freeze_norms),
            augment,
            patience: self.patience.or(base.patience),
            checkpoint_steps: self.checkpoint_steps.unwrap_or(base.checkpoint_steps),
            seed: self.seed.unwrap_or(base.seed),
            ..base
        }
    }
}

/// Shows progress, and keeps checkpoints.
struct Watcher<'a> {
    context: &'a Context,
    stages: &'a Stages,
    checkpoint: &'a Path,
    metric: &'static str,
    n_epochs: usize,
    bar: Mutex<Option<ProgressBar>>,
    /// For the report: steps done, loss, learning rate.
    curve: Mutex<Vec<(usize, f64, f64)>>,
}

impl Hooks for Watcher<'_> {
    fn progress(&self, progress: &Progress) {
        let mut bar = self.bar.lock().expect("no panic while the lock is held");
        let bar = bar.get_or_insert_with(|| {
            self.stages.clear();
            let bar = self.context.bar("train", progress.n_steps);
            // A resumed run has not done what it did not do.
            bar.reset_eta();
            bar.set_position(progress.step as u64);
            bar
        });
        bar.set_position(progress.step as u64);
        bar.set_message(format!("train, loss {:.4}", progress.loss));
        if progress.step.is_multiple_of((progress.n_steps / 200).max(1)) {
            let mut curve = self.curve.lock().expect("no panic while the lock is held");
            curve.push((progress.step, progress.loss, progress.learning_rate.into()));
        }
    }

    fn epoch(&self, epoch: &Epoch) {
        let score =
            epoch.score.map(|s| format!(", {} {}", self.metric, shown(self.metric, s.value)));
        self.context.say(format!(
            "epoch {}/{}: loss {:.4}{}, {:.0} s",
            epoch.epoch,
            self.n_epochs,
            epoch.loss,
            score.unwrap_or_default(),
            epoch.seconds
        ));
    }

    fn checkpoint(&self, bytes: &[u8]) -> std::io::Result<()> {
        write(self.checkpoint, bytes).map_err(std::io::Error::other)
    }
}

fn shown(metric: &str, value: f64) -> String {
    if metric == "mse" { format!("{:.6}", -value) } else { percent(value) }
}

/// One trained model, as it is reported.
struct Run {
    name: String,
    output: PathBuf,
    bytes: u64,
    result: TrainedModel,
    seconds: f64,
}

impl Train {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        let output = self.output.clone().unwrap_or_else(|| default_output(&self.model, "qat"));
        check_output(&output)?;
        self.report.iter().try_for_each(|path| check_output(path))?;
        let model = onnx::load(&self.model).map_err(Error::from)?;
        let bytes_in = samples::model_bytes(&self.model, &model)?;
        let data = samples::open(&self.data, &model, context).context("training needs data")?;
        let names = data.names();
        let labels = match &self.labels {
            Some(path) => Some(self.read_labels(path, &model, &data)?),
            None => None,
        };
        let valid = match &self.valid {
            Some(path) => Some(self.open_valid(path, &model, context)?),
            None => None,
        };
        let valid_labels = match (&self.valid_labels, &valid) {
            (Some(path), Some(valid)) => Some(self.read_labels(path, &model, valid)?),
            _ => None,
        };
        let n_held = self.holdout.unwrap_or(0);
        if names.len() <= n_held {
            bail!("--holdout {n_held} leaves none of {} samples to train with", names.len());
        }
        let all: Vec<usize> = (0..names.len()).collect();
        let (trained, held) = all.split_at(names.len() - n_held);
        let valid_all: Vec<usize> = (0..valid.as_ref().map_or(0, |v| v.names().len())).collect();
        let train_data = Data { samples: &data, which: trained, labels: labels.as_ref() };
        let validation = match &valid {
            Some(valid) => {
                Some(Data { samples: valid, which: &valid_all, labels: valid_labels.as_ref() })
            }
            None if 0 < n_held => {
                Some(Data { samples: &data, which: held, labels: labels.as_ref() })
            }
            None => None,
        };
        let metric = match validation.and_then(|v| v.labels) {
            Some(Labels::Classes(_)) => "top-1",
            Some(Labels::Values(_)) => "mse",
            None => "agreement",
        };
        let widths: Vec<Option<Widths>> = if self.compare.is_empty() {
            vec![None]
        } else {
            self.compare.iter().copied().map(Some).collect()
        };
        let mut runs = Vec::new();
        for widths in widths {
            let output = match widths {
                Some(widths) => output.with_extension(format!("{}.onnx", widths.name())),
                None => output.clone(),
            };
            let run =
                self.train_one(&model, widths, output, train_data, validation, metric, context)?;
            runs.push(run);
        }
        let documents: Vec<Value> =
            runs.iter().map(|run| document(run, bytes_in, metric)).collect();
        if context.json {
            context.print_json(&match (&documents[..], self.compare.is_empty()) {
                ([one], true) => one.clone(),
                _ => json!({ "runs": documents }),
            });
            return Ok(Outcome::Done);
        }
        say_runs(&runs, bytes_in, metric, context);
        Ok(Outcome::Done)
    }

    #[expect(clippy::too_many_arguments, reason = "what is the same for all runs, and what is not")]
    fn train_one(
        &self,
        model: &Model,
        widths: Option<Widths>,
        output: PathBuf,
        data: Data<'_>,
        validation: Option<Data<'_>>,
        metric: &'static str,
        context: &Context,
    ) -> anyhow::Result<Run> {
        let start = Instant::now();
        if self.plan.half(Some(self.format.format))?.is_some() {
            bail!("training is for integers: --weights i8, i4, i2, ...");
        }
        let mut plan = self.plan.options()?;
        plan.calibrator = self.plan.calibrator.calibrator("mse");
        let mut weights = Width { int_type: plan.weight_type, bits: plan.weight_bits };
        let mut activations = Width { int_type: plan.activation_type, bits: plan.activation_bits };
        if let Some(widths) = widths {
            weights = width(plan.weight_type, widths.weights)?;
            activations = width(plan.activation_type, widths.activations)?;
            (plan.weight_type, plan.weight_bits) = (weights.int_type, weights.bits);
            (plan.activation_type, plan.activation_bits) = (activations.int_type, activations.bits);
        }
        let name = format!("w{}a{}", weights.n_bits(), activations.n_bits());
        let training =
            self.training.options(weights.n_bits().min(activations.n_bits()), data.labels);
        let checkpoint = match (&self.checkpoint, widths) {
            (Some(path), None) => path.clone(),
            (Some(path), Some(_)) => path.with_extension(format!("{name}.checkpoint")),
            (None, _) => output.with_extension("checkpoint"),
        };
        check_output(&checkpoint)?;
        check_output(&output)?;
        let resume = match self.resume.then(|| std::fs::read(&checkpoint)) {
            Some(Ok(bytes)) => Some(bytes),
            Some(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => {
                context
                    .warn(format!("{} is not there: training starts anew", checkpoint.display()));
                None
            }
            Some(Err(source)) => return Err(Error::File { path: checkpoint, source }.into()),
            None => None,
        };
        let progress = context.stages();
        let options = midtread::Options {
            prepare: self.prepare.options(None)?,
            target: self.plan.target()?,
            format: self.format.format,
            collect: None,
            n_threads: context.n_threads,
            max_bytes: context.max_bytes,
            progress: &progress,
            interrupted: &context.interrupted,
            plan,
        };
        let watcher = Watcher {
            context,
            stages: &progress,
            checkpoint: &checkpoint,
            metric,
            n_epochs: training.epochs,
            bar: Mutex::new(None),
            curve: Mutex::new(Vec::new()),
        };
        let result = midtread::training::train(
            model.clone(),
            data,
            validation,
            &options,
            TrainingRun {
                training: &training,
                n_calibration: self.calibration_samples as usize,
                resume: resume.as_deref(),
            },
            &watcher,
        );
        if let Some(bar) = watcher.bar.lock().expect("no panic while the lock is held").take() {
            bar.finish_and_clear();
        }
        progress.clear();
        let result = match result {
            Err(Error::Interrupted) if checkpoint.exists() => {
                context.warn(format!(
                    "{} keeps where it stands: go on with --resume",
                    checkpoint.display()
                ));
                return Err(Error::Interrupted.into());
            }
            other => other?,
        };
        let saved =
            onnx::save(&result.model, &output, &SaveOptions::default()).map_err(Error::from)?;
        if let Some(path) = &self.report {
            let path = match widths {
                Some(_) => path.with_extension(format!("{name}.html")),
                None => path.clone(),
            };
            let curve = watcher.curve.into_inner().expect("no panic while the lock is held");
            let bytes = [samples::model_bytes(&self.model, model)?, saved.n_bytes];
            let mut shown = training_of(&name, &self.model, metric, &result, bytes)?;
            shown.steps = curve;
            shown.manifest = vec![
                pages::inputs(&[("model", &self.model)], None)?,
                Group { name: "training".to_owned(), items: items(&training) },
                Group {
                    name: "plan".to_owned(),
                    items: result.plan.options.clone().into_iter().collect(),
                },
            ];
            let mut page = page(&shown);
            let sources = Sources {
                model: &result.prepared,
                plan: Some(&result.plan),
                stats: None,
                comparison: None,
                sensitivity: None,
            };
            let Page { nodes, tensors, .. } = midtread::page::page("", "", &sources);
            (page.nodes, page.tensors) = (nodes, tensors);
            if let Some(validation) = validation.filter(|_| metric == "top-1") {
                for variant in &mut page.variants {
                    let n = validation.which.len();
                    variant.top1_interval = variant.top1.map(|share| wilson(share, n));
                }
            }
            // Without validation data there is no table for it.
            if 2 <= page.variants.len() {
                let inputs = judging::first_inputs(data.samples)?;
                let models = [&result.prepared, &result.model];
                Timing::BRIEF.time(&mut page.variants, models, &inputs, context)?;
            }
            write(&path, page.to_html().as_bytes())?;
        }
        // The run is done, and its result is written.
        match std::fs::remove_file(&checkpoint) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::File { path: checkpoint, source: e }.into());
            }
            _ => {}
        }
        Ok(Run {
            name,
            output,
            bytes: saved.n_bytes,
            result,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    fn read_labels(
        &self,
        path: &Path,
        model: &Model,
        data: &impl Samples,
    ) -> anyhow::Result<Labels> {
        if path.extension().is_some_and(|e| e == "npy" || e == "npz") {
            return values(path, model, data);
        }
        let labels = data::Labels::open(path).map_err(Error::from)?;
        let names = data.names();
        let of = |(i, name): (usize, &String)| labels.get(i, name).map(<[usize]>::to_vec);
        let found: Vec<_> = names.iter().enumerate().map(of).collect();
        if let Some(i) = found.iter().position(Option::is_none) {
            bail!("{} has no label for sample `{}`", path.display(), names[i]);
        }
        Ok(Labels::Classes(found.into_iter().flatten().collect()))
    }

    fn open_valid(
        &self,
        path: &Path,
        model: &Model,
        context: &Context,
    ) -> anyhow::Result<library_samples::DataSamples> {
        let specs = InputSpec::of(model).map_err(Error::from)?;
        let preprocess = self.data.preprocess.as_deref().map(Preprocess::find);
        let preprocess = preprocess.transpose().map_err(Error::from)?;
        let opened =
            library_samples::open(path, &specs, &data::Options { preprocess, limit: None });
        let opened = opened.map_err(Error::from)?;
        if let Some(warning) = opened.0.warning() {
            context.warn(warning);
        }
        Ok(opened)
    }
}

/// The outputs that samples should give, along the leading axis of an array.
fn values(path: &Path, model: &Model, data: &impl Samples) -> anyhow::Result<Labels> {
    let graph = &model.graph;
    let Some(&output) = graph.outputs.first() else { bail!("the model has no output") };
    let spec = InputSpec {
        name: graph.value_name(output).to_owned(),
        dtype: midtread::graph::DataType::Float,
        dims: None,
        required: true,
    };
    let source = data::open(path, &[spec], &data::Options::default()).map_err(Error::from)?;
    let n = data.names().len();
    if source.names().len() != n {
        bail!("{} has values for {} samples of {n}", path.display(), source.names().len());
    }
    let one = |i| -> anyhow::Result<_> {
        let sample = source.sample(i).map_err(Error::from)?;
        sample.inputs.into_iter().next().map(|(_, tensor)| tensor).context("a sample has no values")
    };
    Ok(Labels::Values((0..n).map(one).collect::<anyhow::Result<_>>()?))
}

/// A training's options, by name.
fn items(options: &Options) -> Vec<(String, String)> {
    let Options { loss, augment, .. } = options;
    [
        ("epochs", options.epochs.to_string()),
        ("batch", options.batch.to_string()),
        ("optimizer", format!("{:?}", options.optimizer).to_lowercase()),
        ("learning_rate", options.learning_rate.to_string()),
        ("warmup", options.warmup.to_string()),
        ("weight_decay", options.weight_decay.to_string()),
        ("cross_entropy", loss.cross_entropy.to_string()),
        ("squared", loss.squared.to_string()),
        ("distill", loss.distill.to_string()),
        ("temperature", loss.temperature.to_string()),
        ("features", options.features.join(" ")),
        ("scales", format!("{:?}", options.scales).to_lowercase()),
        ("delay", options.delay.to_string()),
        ("freeze_ranges", options.freeze_ranges.to_string()),
        ("freeze_norms", options.freeze_norms.to_string()),
        ("crop", augment.crop.to_string()),
        ("flip", augment.flip.to_string()),
        ("seed", options.seed.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// The page's data, without its steps and its manifest.
fn training_of(
    name: &str,
    model: &Path,
    metric: &str,
    result: &TrainedModel,
    [float_bytes, bytes]: [u64; 2],
) -> anyhow::Result<Training> {
    let figure = |score: Score| if metric == "mse" { -score.value } else { score.value };
    let size = |model: &Model| onnx::to_bytes(model).map(|bytes| bytes.len() as u64);
    let models = match result.scores {
        Some(scores) => {
            let (ptq, recovered) = (size(&result.ptq)?, size(&result.recovered)?);
            vec![
                ("float".to_owned(), float_bytes, figure(scores.float)),
                ("trained".to_owned(), bytes, figure(scores.qat)),
                ("quantized without training".to_owned(), ptq, figure(scores.ptq)),
                ("recovered without training".to_owned(), recovered, figure(scores.recovered)),
            ]
        }
        None => Vec::new(),
    };
    let row =
        |e: &Epoch| EpochRow { loss: e.loss, metric: e.score.map(figure), seconds: e.seconds };
    Ok(Training {
        title: format!("{name}: {}", pages::name(model)),
        subtitle: format!(
            "{} numbers trained, {} batch normalizations folded while training.",
            result.n_parameters, result.n_norms
        ),
        metric: metric.to_owned(),
        epochs: result.epochs.iter().map(row).collect(),
        best: result.best,
        steps: Vec::new(),
        models,
        manifest: Vec::new(),
    })
}

fn document(run: &Run, bytes_in: u64, metric: &str) -> Value {
    let key = metric.replace('-', "");
    let figures = |score: Score| {
        let value = if metric == "mse" { -score.value } else { score.value };
        json!({ (key.as_str()): value, "output_mse": score.difference })
    };
    let epoch = |e: &Epoch| {
        json!({
            "epoch": e.epoch,
            "loss": e.loss,
            "learning_rate": e.learning_rate,
            "seconds": e.seconds,
            "valid": e.score.map(figures),
        })
    };
    let scores = run.result.scores;
    json!({
        "name": run.name,
        "output": run.output.display().to_string(),
        "bytes_in": bytes_in,
        "bytes_out": run.bytes,
        "epochs": run.result.epochs.iter().map(epoch).collect::<Vec<_>>(),
        "best_epoch": run.result.best,
        "parameters": run.result.n_parameters,
        "norms_folded_in_training": run.result.n_norms,
        "kept_bytes": run.result.kept_bytes,
        "float": scores.map(|s| figures(s.float)),
        "ptq": scores.map(|s| figures(s.ptq)),
        "recovered": scores.map(|s| figures(s.recovered)),
        "qat": scores.map(|s| figures(s.qat)),
        "seconds": run.seconds,
    })
}

fn say_runs(runs: &[Run], bytes_in: u64, metric: &str, context: &Context) {
    let heading = ["", "size", "float", "without training", "recovered", "trained", "s"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for run in runs {
        let cell =
            |score: Option<Score>| score.map_or("–".to_owned(), |s| shown(metric, s.value));
        let scores = run.result.scores;
        rows.push(vec![
            run.name.clone(),
            size(run.bytes),
            cell(scores.map(|s| s.float)),
            cell(scores.map(|s| s.ptq)),
            cell(scores.map(|s| s.recovered)),
            cell(scores.map(|s| s.qat)),
            format!("{:.0}", run.seconds),
        ]);
    }
    context.say(format!("{metric}; the float model has {}", size(bytes_in)));
    context.say(table(&rows).trim_end());
    for run in runs {
        context.say(format!("{}: {}", run.name, run.output.display()));
    }
}
