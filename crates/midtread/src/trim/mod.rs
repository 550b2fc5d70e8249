//! Network-specific widths: how few bits each group of a network's numbers needs, found by trying.
//!
//! What Ristretto (Gysel 2016) did for Caffe: dynamic fixed point, minifloat or power-of-two weights, widths searched for
//! each group by itself, with an error margin. Ristretto scores the combination once and gives up where it misses the
//! margin; here it is repaired, group by group, until it holds, and what is written is scored again.
//!
//! Each layer has its own integer and fraction lengths, for its weights and for what it takes and makes, from measured
//! ranges; the calibrator decides what of a range counts. Reading order: the types below, [`formats`] (one tensor's
//! numbers), [`search`] (which widths), [`trim`] (the whole way).

pub mod formats;
pub mod search;

use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::atomic::{AtomicUsize, Ordering},
};

use midtread_exec::Interpreter;
use midtread_graph::{Model, Tensor, ValueId};
use midtread_num::{QRange, Sign, Span, Symmetry};
use midtread_passes::PrepareOptions;
use midtread_quant::{
    Format as Form, Plan, PlanOptions, Stats, Target, apply,
    calibrate::{Calibrator, Collect, Pass, Samples, Watch},
    plan::{Decision, IntType, Operand, Params, WeightGranularity, plan},
};

use crate::{
    error::Error,
    evaluate::top5,
    quantize::{Measuring, Progress},
};
use formats::Numbers;
use search::{Group, Search, Widths};

/// What kind of numbers a network is trimmed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Integers of one width with a binary point for each tensor.
    FixedPoint,
    /// Floats of few bits; the split into exponent and mantissa is each group's.
    Minifloat,
    /// Weights are a sign and a power of two; activations are fixed point.
    PowerOfTwo,
}

impl Mode {
    /// `fixed-point`, `minifloat`, `power-of-two`.
    pub fn name(self) -> &'static str {
        match self {
            Self::FixedPoint => "fixed-point",
            Self::Minifloat => "minifloat",
            Self::PowerOfTwo => "power-of-two",
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::FixedPoint, Self::Minifloat, Self::PowerOfTwo]
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| format!("`{text}` is not a mode: fixed-point, minifloat, power-of-two"))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a value between two numbers becomes one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, halves to even: ONNX's QuantizeLinear.
    #[default]
    Nearest,
    /// Up with the probability of the part that is cut off (fixed point only). The written model rounds its weights so,
    /// and its activations to the nearest, because ONNX has nothing else.
    Stochastic,
}

impl FromStr for Rounding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "nearest" => Ok(Self::Nearest),
            "stochastic" => Ok(Self::Stochastic),
            _ => Err(format!("`{text}` is not a rounding: nearest, stochastic")),
        }
    }
}

/// What to do.
pub struct Options<'a> {
    /// How the model is prepared.
    pub prepare: PrepareOptions,
    /// To what kind of numbers.
    pub mode: Mode,
    /// How values become numbers.
    pub rounding: Rounding,
    /// Of stochastic rounding.
    pub seed: u64,
    /// The share of right answers that may be lost, 0 to 1.
    pub margin: f64,
    /// What of the measured ranges of activations counts.
    pub calibrator: Calibrator,
    /// The most times that the network is scored.
    pub max_trials: usize,
    /// The right classes of each sample. Without: the classes that the float network gives.
    pub labels: Option<&'a [Vec<usize>]>,
    /// Samples worked on at once, each on a thread of its own.
    pub n_threads: usize,
    /// Memory that values may take.
    pub max_bytes: Option<usize>,
    /// Told what goes on besides trying.
    pub progress: &'a dyn Progress,
    /// Told of each trial before it begins and as its samples are done.
    pub trials: &'a (dyn Fn(&Trying<'_>) + Sync),
    /// Set by whoever wants it to end.
    pub interrupted: &'a std::sync::atomic::AtomicBool,
}

/// A trial that is going on.
#[derive(Debug)]
pub struct Trying<'a> {
    /// Counted from 1.
    pub trial: usize,
    /// How many there may be, as far as is known.
    pub n_trials: usize,
    /// Samples done of this trial, and of how many.
    pub samples: (usize, usize),
    /// `weights of products in 6 bits`.
    pub what: &'a str,
}

/// One scored trial.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// What was tried.
    pub what: String,
    /// Bits of each group; `None` where it was in float.
    pub widths: Widths,
    /// Share of right answers.
    pub score: f64,
}

/// One tensor's numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Trimmed {
    /// Its name.
    pub tensor: String,
    /// Which group it belongs to.
    pub group: Group,
    /// Elements (of a weight; of an activation 0).
    pub n_elements: usize,
    /// The range that counts, as a magnitude.
    pub max_abs: f32,
    /// Its numbers.
    pub numbers: Numbers,
}

/// A trimmed network, and what led to it.
pub struct Outcome {
    /// Share of right answers of the float network.
    pub float_score: f64,
    /// Share of the trimmed one's, as it was simulated.
    pub score: f64,
    /// Of the model that is written.
    pub written_score: f64,
    /// Whether that keeps the margin.
    pub keeps_margin: bool,
    /// Bits of each group.
    pub widths: Widths,
    /// Every tensor, in the order of the names.
    pub tensors: Vec<Trimmed>,
    /// In order.
    pub trials: Vec<Trial>,
    /// The result: QDQ with power-of-two scales (fixed point), otherwise the float operators on trimmed weights.
    pub model: Model,
    /// What ONNX can say of it; fixed point only.
    pub plan: Option<Plan>,
    /// The float model as it was trimmed.
    pub prepared: Model,
}

/// Prepares, measures, searches and writes.
pub fn trim(model: Model, samples: &dyn Samples, options: &Options<'_>) -> Result<Outcome, Error> {
    check(options)?;
    options.progress.stage("prepare", None);
    // 16-bit QuantizeLinear is operator set 21's.
    let opset = Some(options.prepare.opset.unwrap_or(21).max(21));
    let prepare = PrepareOptions { opset, ..options.prepare.clone() };
    let (prepared, _) = midtread_passes::prepare(model, &prepare)?;
    let measuring = Measuring {
        collect: Collect::Histogram,
        watch: Watch::Quantizable,
        n_threads: options.n_threads,
        max_bytes: options.max_bytes,
        progress: options.progress,
        interrupted: options.interrupted,
    };
    let stats = measuring.run(&prepared, samples)?;
    options.progress.stage("search", None);
    let base = base_plan(&prepared, &stats, options)?;
    let network = Network::new(&prepared, base, &stats, samples, options)?;
    network.trim()
}

fn check(options: &Options<'_>) -> Result<(), Error> {
    let refuse = |what: &str| Err(Error::Options(what.to_owned()));
    if !(0.0..1.0).contains(&options.margin) {
        return refuse("an error margin is a share of the answers, from 0 to below 100 %");
    }
    if options.rounding == Rounding::Stochastic && options.mode == Mode::Minifloat {
        return refuse("stochastic rounding is for fixed point: a minifloat's steps differ");
    }
    Ok(())
}

/// Everything in 16 bits: which tensors take part, and their ranges.
fn base_plan(prepared: &Model, stats: &Stats, options: &Options<'_>) -> Result<Plan, Error> {
    let plan_options = PlanOptions {
        activation_type: IntType::I16,
        activation_symmetry: Symmetry::Symmetric,
        weight_type: IntType::I16,
        granularity: WeightGranularity::PerTensor,
        calibrator: options.calibrator,
        ..PlanOptions::default()
    };
    Ok(plan(prepared, Some(stats), &Target::find("onnx")?, &plan_options)?)
}

/// A network that is being trimmed.
struct Network<'a> {
    prepared: &'a Model,
    base: Plan,
    samples: &'a dyn Samples,
    names: Vec<String>,
    options: &'a Options<'a>,
    /// By key in the plan.
    tensors: BTreeMap<String, Source<'a>>,
    trials: Vec<Trial>,
    /// First answers of the float network, by sample.
    float_answers: Vec<usize>,
}

/// What a tensor's numbers are made from.
pub(crate) struct Source<'a> {
    pub(crate) id: ValueId,
    pub(crate) group: Group,
    pub(crate) max_abs: f32,
    /// A weight's values.
    pub(crate) values: Option<Vec<f32>>,
    /// What was measured of an activation, if anything.
    pub(crate) stats: Option<&'a midtread_quant::calibrate::TensorStats>,
}

impl<'a> Network<'a> {
    fn new(
        prepared: &'a Model,
        base: Plan,
        stats: &'a Stats,
        samples: &'a dyn Samples,
        options: &'a Options<'a>,
    ) -> Result<Self, Error> {
        let graph = &prepared.graph;
        // Which operator takes a weight.
        let mut users: BTreeMap<&str, &str> = BTreeMap::new();
        for node in &base.nodes {
            let Decision::Quantized { inputs, .. } = &node.decision else { continue };
            for operand in inputs {
                if let Operand::Tensor(key) = operand {
                    users.entry(key).or_insert(&node.op_type);
                }
            }
        }
        let mut tensors = BTreeMap::new();
        for (key, tensor) in &base.tensors {
            let name = tensor.of.as_deref().unwrap_or(key);
            let id = graph.find(name).ok_or_else(|| {
                Error::Options(format!("`{name}` of the plan is not in the model"))
            })?;
            let Params::PerTensor(params) = &tensor.params else {
                return Err(Error::Options(format!("`{key}` of the plan is not per tensor")));
            };
            let constant = graph.constant(id);
            let group = match (constant, users.get(key.as_str())) {
                (None, _) => Group::Activations,
                (Some(_), Some(op_type)) if op_type.starts_with("Conv") => Group::ConvWeights,
                (Some(_), _) => Group::ProductWeights,
            };
            let values = constant.map(|t| t.to_vec::<f32>()).transpose();
            let values = values.map_err(|err| Error::Options(format!("`{name}`: {err}")))?;
            let max_abs = match &values {
                Some(values) => values.iter().fold(0.0_f32, |max, x| max.max(x.abs())),
                None => params.real_range(tensor.range).1,
            };
            let stats = stats.tensors().get(name);
            tensors.insert(key.clone(), Source { id, group, max_abs, values, stats });
        }
        if tensors.is_empty() {
            return Err(Error::Options(
                "there is nothing to trim: no node takes part in quantization".to_owned(),
            ));
        }
        if let Some(labels) = options.labels
            && labels.len() != samples.names().len()
        {
            return Err(Error::Options(format!(
                "{} labels for {} samples",
                labels.len(),
                samples.names().len()
            )));
        }
        Ok(Self {
            prepared,
            base,
            samples,
            names: samples.names(),
            options,
            tensors,
            trials: Vec::new(),
            float_answers: Vec::new(),
        })
    }

    fn trim(mut self) -> Result<Outcome, Error> {
        let float = self.answers(self.prepared, &BTreeMap::new(), "float")?;
        self.float_answers.clone_from(&float);
        let float_score = self.share_right(&float);
        self.note("float", &Widths::default(), float_score);
        let floor = float_score - self.options.margin;

        let groups: Vec<(Group, u64)> = Group::ALL
            .into_iter()
            .filter_map(|group| {
                let of_group = self.tensors.values().filter(|t| t.group == group);
                let n: usize = of_group.map(|t| t.values.as_ref().map_or(1, Vec::len)).sum();
                (0 < n).then_some((group, n as u64))
            })
            .collect();
        let search = Search {
            groups,
            floor,
            // Powers of two of more bits than these lie below every weight.
            max_weight_width: if self.options.mode == Mode::PowerOfTwo { 8 } else { 16 },
            max_trials: self.options.max_trials,
        };
        let mut found = search.run(&mut |what, widths| self.score(what, widths))?;

        // What is written is not always what was simulated (biases are integers too), so it is scored.
        loop {
            let numbers = self.numbers(&found.widths);
            let (model, plan) = self.write(&numbers)?;
            let what = "the model that is written";
            let answers = match (&plan, self.options.mode) {
                (Some(_), _) => self.answers(&model, &BTreeMap::new(), what)?,
                // Its activations are no part of an ONNX file: they are simulated.
                (None, _) => self.answers(&model, &self.activations(&numbers), what)?,
            };
            let written_score = self.share_right(&answers);
            self.note(what, &found.widths, written_score);
            let keeps_margin = floor <= written_score + 1e-12;
            let n_left = self.options.max_trials.saturating_sub(self.trials.len());
            if !keeps_margin && found.keeps_margin && 1 < n_left && found.widths.widen_all(&search)
            {
                found.score = self.score("repair: a bit more for every group", &found.widths)?;
                continue;
            }
            let mut tensors: Vec<Trimmed> = Vec::new();
            for (key, source) in &self.tensors {
                tensors.push(Trimmed {
                    tensor: key.clone(),
                    group: source.group,
                    n_elements: source.values.as_ref().map_or(0, Vec::len),
                    max_abs: source.max_abs,
                    numbers: numbers[key].clone(),
                });
            }
            return Ok(Outcome {
                float_score,
                score: found.score,
                written_score,
                keeps_margin,
                widths: found.widths,
                tensors,
                trials: self.trials,
                model,
                plan,
                prepared: self.prepared.clone(),
            });
        }
    }

    fn note(&mut self, what: &str, widths: &Widths, score: f64) {
        let trial = Trial { what: what.to_owned(), widths: widths.clone(), score };
        self.trials.push(trial);
    }

    /// Simulates the network with these widths and scores it.
    fn score(&mut self, what: &str, widths: &Widths) -> Result<f64, Error> {
        let numbers = self.numbers(widths);
        let mut model = self.prepared.clone();
        self.round_weights(&mut model, &numbers);
        let answers = self.answers(&model, &self.activations(&numbers), what)?;
        let score = self.share_right(&answers);
        self.note(what, widths, score);
        Ok(score)
    }

    /// Every tensor's numbers in groups that have a width.
    fn numbers(&self, widths: &Widths) -> BTreeMap<String, Numbers> {
        let options = self.options;
        let mut numbers = BTreeMap::new();
        for group in Group::ALL {
            let Some(n_bits) = widths.get(group) else { continue };
            let of_group: Vec<(&String, &Source<'_>)> =
                self.tensors.iter().filter(|(_, t)| t.group == group).collect();
            let sources: Vec<&Source<'_>> = of_group.iter().map(|(_, t)| *t).collect();
            let made = formats::of_group(
                options.mode,
                options.rounding,
                &options.calibrator,
                n_bits,
                &sources,
            );
            numbers.extend(of_group.iter().map(|(key, _)| (*key).clone()).zip(made));
        }
        numbers
    }

    fn activations(&self, numbers: &BTreeMap<String, Numbers>) -> BTreeMap<ValueId, Numbers> {
        let activations = self.tensors.iter().filter(|(_, t)| t.values.is_none());
        activations.filter_map(|(key, t)| Some((t.id, numbers.get(key)?.clone()))).collect()
    }

    /// First answers of a model, with some values rewritten as they are made.
    fn answers(
        &self,
        model: &Model,
        rewritten: &BTreeMap<ValueId, Numbers>,
        what: &str,
    ) -> Result<Vec<usize>, Error> {
        let options = self.options;
        let n_threads = options.n_threads.clamp(1, self.names.len().max(1));
        let max_bytes = options.max_bytes.map(|n| n / n_threads);
        let interpreter =
            Interpreter::new(model, midtread_exec::Options { max_bytes }).map_err(Error::Run)?;
        let (trial, n_trials) = (self.trials.len() + 1, self.expected_trials());
        let most = AtomicUsize::new(0);
        let progress = |done: usize| {
            if most.fetch_max(done, Ordering::Relaxed) < done {
                let samples = (done, self.names.len());
                (options.trials)(&Trying { trial, n_trials, samples, what });
            }
        };
        (options.trials)(&Trying { trial, n_trials, samples: (0, self.names.len()), what });
        let work = |i: usize, kept: &mut Vec<(usize, usize)>| {
            let sample = self.samples.sample(i).map_err(Error::Sample)?;
            let mut rewrite = |id: ValueId, _: &str, tensor: &mut Tensor| {
                if let Some(numbers) = rewritten.get(&id)
                    && let Ok(values) = tensor.to_mut::<f32>()
                {
                    numbers.round_in_place(values, self.seed(id, i as u64 + 1));
                }
            };
            let outputs = match rewritten.is_empty() {
                true => interpreter.run(sample.inputs),
                false => interpreter.run_rewritten(sample.inputs, &mut rewrite),
            };
            let outputs = outputs
                .map_err(|source| Error::RunSample { sample: self.names[i].clone(), source })?;
            let (name, scores) = outputs
                .first()
                .ok_or_else(|| Error::Options("the model has no output".to_owned()))?;
            let top = top5(scores).and_then(|top| top.first().copied()).ok_or_else(|| {
                Error::Options(format!(
                    "output `{name}` is {:?} of {}, not one row of float scores",
                    scores.dims(),
                    scores.dtype()
                ))
            })?;
            kept.push((i, top));
            Ok(())
        };
        let pass = Pass { n_threads, progress: &progress, interrupted: options.interrupted };
        let kept = pass
            .run(self.names.len(), Vec::new, work)
            .map_err(|failed| failed.unwrap_or(Error::Interrupted))?;
        let mut kept: Vec<_> = kept.into_iter().flatten().collect();
        kept.sort_unstable();
        Ok(kept.into_iter().map(|(_, answer)| answer).collect())
    }

    /// Four trials a group, and some repairs.
    fn expected_trials(&self) -> usize {
        let n_groups = Group::ALL
            .into_iter()
            .filter(|group| self.tensors.values().any(|t| t.group == *group))
            .count();
        (4 * n_groups + 5).max(self.trials.len() + 1).min(self.options.max_trials.max(1))
    }

    fn share_right(&self, answers: &[usize]) -> f64 {
        let is_right = |(i, answer): (usize, &usize)| match self.options.labels {
            Some(labels) => labels[i].contains(answer),
            None => self.float_answers.get(i).is_none_or(|right| right == answer),
        };
        let n = answers.iter().enumerate().filter(|&pair| is_right(pair)).count();
        n as f64 / answers.len().max(1) as f64
    }

    /// Of one tensor in one sample; 0 is no sample.
    fn seed(&self, id: ValueId, sample: u64) -> u64 {
        let mixed = self.options.seed ^ (id.idx() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ sample.wrapping_mul(0xd1b5_4a32_d192_ed03)
    }

    /// The model with these numbers.
    fn write(&self, numbers: &BTreeMap<String, Numbers>) -> Result<(Model, Option<Plan>), Error> {
        let mut model = self.prepared.clone();
        if self.options.mode == Mode::FixedPoint {
            let mut plan = self.base.clone();
            for (key, tensor) in &mut plan.tensors {
                let Some(Numbers::Fixed { n_bits, params, .. }) = numbers.get(key) else {
                    continue;
                };
                tensor.int_type = if *n_bits <= 8 { IntType::I8 } else { IntType::I16 };
                tensor.range = fixed_range(*n_bits);
                tensor.params = Params::PerTensor(*params);
            }
            self.keep_large_biases(&mut plan)?;
            plan.options.insert("trimmed".to_owned(), self.options.mode.to_string());
            if self.options.rounding == Rounding::Stochastic {
                // Values that the nearest rounding keeps: the integers are chosen here.
                self.round_weights(&mut model, numbers);
                plan.model = midtread_quant::plan::fingerprint(&model);
            }
            return Ok((apply(&model, &plan, Form::Qdq)?, Some(plan)));
        }
        self.round_weights(&mut model, numbers);
        Ok((model, None))
    }

    fn round_weights(&self, model: &mut Model, numbers: &BTreeMap<String, Numbers>) {
        for (key, source) in &self.tensors {
            if let (Some(values), Some(numbers)) = (&source.values, numbers.get(key)) {
                let rounded = numbers.round_all(values, self.seed(source.id, 0));
                let dims = model.graph.constant(source.id).map(|t| t.dims().to_vec());
                let tensor = Tensor::from_slice(dims.unwrap_or_default(), &rounded);
                model.graph.set_constant(source.id, tensor.expect("as many as there were"));
            }
        }
    }

    /// A bias whose integer would not fit 32 bits stays in float.
    fn keep_large_biases(&self, plan: &mut Plan) -> Result<(), Error> {
        let mut large = Vec::new();
        for (key, bias) in &plan.biases {
            let name = bias.of.as_deref().unwrap_or(key);
            let scale = |key: &str| match &plan.tensors[key].params {
                Params::PerTensor(params) => f64::from(params.scale()),
                _ => f64::MIN_POSITIVE,
            };
            let step = scale(&bias.input) * scale(&bias.weight);
            let constant =
                self.prepared.graph.find(name).and_then(|id| self.prepared.graph.constant(id));
            let values = constant.and_then(|t| t.to_vec::<f32>().ok()).unwrap_or_default();
            let max = values.iter().fold(0.0_f64, |max, x| max.max(f64::from(x.abs())));
            if f64::from(i32::MAX) * step < max {
                large.push(key.clone());
            }
        }
        for key in &large {
            plan.biases.remove(key);
        }
        for node in &mut plan.nodes {
            let Decision::Quantized { inputs, .. } = &mut node.decision else { continue };
            for operand in inputs {
                if matches!(operand, Operand::Bias(key) if large.contains(key)) {
                    *operand = Operand::Keep;
                }
            }
        }
        Ok(())
    }
}

/// `-2^(n-1) ..= 2^(n-1) - 1`.
pub(crate) fn fixed_range(n_bits: u32) -> QRange {
    QRange::of(n_bits, Sign::Signed, Span::Full).expect("2 to 16 bits are a range")
}
