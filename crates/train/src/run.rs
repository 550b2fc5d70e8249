//! The loop: batches, passes, steps, scores, checkpoints.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use midtread_exec::Interpreter;
use midtread_graph::{DataType, Graph, Links, Model, Tensor, ValueId};
use midtread_ops::OpError;
use midtread_quant::{Plan, calibrate::Samples};
use serde::{Deserialize, Serialize};

use crate::{
    batches,
    checkpoint::Header,
    error::Error,
    loss,
    net::{Moments, Net, ParamKind, Phase, Statistics, Tape},
    optimizer::{Steps, rate_at},
    options::{Augment, Optimizer, Options, Scales},
};

/// What the samples should give.
#[derive(Clone, Debug)]
pub enum Labels {
    /// The right classes of each sample; the first counts in training, any of them in a score.
    Classes(Vec<Vec<usize>>),
    /// The output of each sample.
    Values(Vec<Tensor>),
}

/// Samples and what they should give, if that is known.
#[derive(Clone, Copy)]
pub struct Data<'a> {
    /// The samples.
    pub samples: &'a dyn Samples,
    /// Which of them, by index.
    pub which: &'a [usize],
    /// For every sample.
    pub labels: Option<&'a Labels>,
}

/// What is trained.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    /// The float model, prepared as for quantization.
    pub prepared: &'a Model,
    /// The same, prepared without folding batch normalizations: those it has are folded while training.
    pub unfused: &'a Model,
    /// Of `prepared`.
    pub plan: &'a Plan,
}

/// Whoever runs a training.
pub trait Hooks {
    /// After each step.
    fn progress(&self, progress: &Progress);
    /// After each epoch.
    fn epoch(&self, epoch: &Epoch);
    /// Keeps where the run stands.
    fn checkpoint(&self, bytes: &[u8]) -> std::io::Result<()>;
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Steps done, of all epochs.
    pub step: usize,
    /// Steps of all epochs.
    pub n_steps: usize,
    /// The epoch, from 1.
    pub epoch: usize,
    /// Mean loss of the epoch so far.
    pub loss: f64,
    /// The present learning rate.
    pub learning_rate: f32,
}

/// One epoch, done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// From 1.
    pub epoch: usize,
    /// Mean loss.
    pub loss: f64,
    /// Learning rate of the last step.
    pub learning_rate: f32,
    /// Score on the validation data.
    pub score: Option<Score>,
    /// Time it took.
    pub seconds: f64,
}

/// How good the quantized model is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Share of right first answers, where classes are known; else of first answers that are the float model's; of
    /// values, the negative mean squared error.
    pub value: f64,
    /// Mean squared difference from the float model's output.
    pub difference: f64,
}

/// A trained model, ready to be quantized.
pub struct Trained {
    /// The float model with the trained weights.
    pub model: Model,
    /// The plan with the trained parameters.
    pub plan: Plan,
    /// All epochs.
    pub epochs: Vec<Epoch>,
    /// Which epoch the weights are of, from 1.
    pub best: usize,
    /// Batch normalizations that were folded while training.
    pub n_norms: usize,
    /// Numbers that were trained.
    pub n_parameters: usize,
    /// The most bytes of values that a step kept for its way back, since the start or the last resumption.
    pub kept_bytes: usize,
}

/// Trains. Threads are those of the rayon pool that the caller is in; the result does not depend on how many they are.
///
/// `resume` is what [`Hooks::checkpoint`] was given last.
pub fn train(
    start: Start<'_>,
    data: Data<'_>,
    validation: Option<Data<'_>>,
    options: &Options,
    resume: Option<&[u8]>,
    hooks: &dyn Hooks,
    interrupted: &AtomicBool,
) -> Result<Trained, Error> {
    options.check()?;
    let mut run = Run::new(start, data, validation, options, hooks)?;
    let mut header = Header::start(run.identity());
    let mut best = Vec::new();
    match resume {
        Some(bytes) => {
            let (read, numbers, kept) = Header::read(bytes, &header.run)?;
            run.load(&numbers)?;
            run.steps.n = read.n_steps;
            (header, best) = (read, kept);
        }
        None => run.prepare_scales()?,
    }
    while header.epoch < options.epochs && !run.is_over(&header) {
        run.epoch(&mut header, &best, interrupted)?;
        let epoch = header.history.last().expect("an epoch was added");
        hooks.epoch(epoch);
        let score = epoch.score.map(|s| s.value);
        if score.is_none_or(|score| header.best.is_none_or(|(best, _)| best < score)) {
            header.best = Some((score.unwrap_or(0.0), epoch.epoch));
            best = run.numbers_of_net();
        }
        hooks.checkpoint(&header.write(&run.numbers(), &best)).map_err(Error::Write)?;
    }
    run.load_net(&best)?;
    let n_parameters = run.net.params.iter().map(|p| p.value.len()).sum();
    let n_norms = run.net.norms.len();
    let (model, plan) = {
        let scales = format!("{:?}", options.scales).to_lowercase();
        run.net.finish(start.prepared, start.plan, ("trained", &scales))?
    };
    let best = header.best.map_or(0, |(_, epoch)| epoch);
    let kept_bytes = run.kept_bytes;
    Ok(Trained { model, plan, epochs: header.history, best, n_norms, n_parameters, kept_bytes })
}

/// Quantizes without training, and gives the layers' outputs their mean and spread back: scales of weights with the
/// least error, and biases and scales corrected by the first `n` samples, which are in memory at once.
pub fn recover(start: Start<'_>, data: Data<'_>, n: usize) -> Result<(Model, Plan), Error> {
    let graph = &start.prepared.graph;
    let output = scores(graph)?;
    let mut net = Net::new(start.prepared, start.prepared, start.plan, &[output])?;
    net.refresh(false)?;
    net.fit_weights(false);
    let n = fixed_batch(graph).unwrap_or(n).min(data.which.len());
    let inputs = batches::join(&batches::read(data.samples, &data.which[..n], None)?)?;
    let corrections = net.corrections();
    let teacher = Interpreter::new(start.prepared, midtread_exec::Options::default())?;
    let mut float = HashMap::new();
    let mut failed = None;
    teacher.run_observed(inputs.clone(), &mut |id, name, tensor| {
        let Some(at) = corrections.iter().find(|c| c.value == id) else { return };
        match Moments::of(tensor, at.axis) {
            Ok(moments) => {
                float.insert(id, moments);
            }
            Err(source) => {
                let node = name.to_owned();
                failed = Some(Error::Node { node, op_type: "".into(), pass: "forwards", source });
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    net.recover(named(graph, inputs)?, &float)?;
    net.finish(start.prepared, start.plan, ("recovered", "moments"))
}

struct Run<'a> {
    start: Start<'a>,
    data: Data<'a>,
    validation: Option<Data<'a>>,
    options: &'a Options,
    hooks: &'a dyn Hooks,
    net: Net,
    teacher: Interpreter,
    steps: Steps,
    output: ValueId,
    /// Inner values to match.
    features: Vec<ValueId>,
    n_batches: usize,
    /// Samples run at once.
    micro_batch: usize,
    /// Whether the model says that they are so many.
    is_fixed: bool,
    kept_bytes: usize,
}

impl<'a> Run<'a> {
    fn new(
        start: Start<'a>,
        data: Data<'a>,
        validation: Option<Data<'a>>,
        options: &'a Options,
        hooks: &'a dyn Hooks,
    ) -> Result<Self, Error> {
        let graph = &start.prepared.graph;
        let output = scores(graph)?;
        let find = |name: &String| {
            let unknown =
                || Error::Options(format!("`{name}` to be matched is not in the prepared model"));
            graph.find(name).ok_or_else(unknown)
        };
        let features = options.features.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        let wanted: Vec<ValueId> = [output].into_iter().chain(features.iter().copied()).collect();
        let mut net = Net::new(start.prepared, start.unfused, start.plan, &wanted)?;
        if options.recompute {
            net.recompute();
        }
        check_labels(&data, options)?;
        let teacher = Interpreter::new(start.prepared, midtread_exec::Options::default())?;
        let sizes: Vec<usize> = net
            .params
            .iter()
            .map(|p| p.value.len())
            .chain(net.weights.iter().map(|w| w.scales.len()))
            .chain(net.activations.iter().map(|_| 2))
            .collect();
        // A batch that the model fixes is what is run at once.
        let fixed = fixed_batch(graph);
        let batch = options.batch.min(data.which.len().max(1));
        let micro_batch =
            options.micro_batch.unwrap_or(batch).min(fixed.unwrap_or(batch)).clamp(1, batch);
        if fixed.is_some_and(|n| micro_batch != n || !batch.is_multiple_of(n)) {
            return Err(Error::Options(format!(
                "the model fixes batches of {}, which do not fit batches of {batch}",
                fixed.unwrap_or(1)
            )));
        }
        let n_batches = data.which.len() / batch;
        if n_batches == 0 {
            return Err(Error::Options("there are no samples to train with".into()));
        }
        let steps = Steps::new(options.optimizer, &sizes);
        Ok(Self {
            start,
            data,
            validation,
            options,
            hooks,
            net,
            teacher,
            steps,
            output,
            features,
            n_batches,
            micro_batch,
            is_fixed: fixed.is_some(),
            kept_bytes: 0,
        })
    }

    /// What makes a checkpoint this run's.
    fn identity(&self) -> String {
        let plan = &self.start.plan;
        format!(
            "{} {:?} {:?} {} samples",
            plan.model,
            plan.options,
            self.options,
            self.data.which.len()
        )
    }

    /// Whether no better score has come for long enough.
    fn is_over(&self, header: &Header) -> bool {
        let (Some(patience), Some((_, best))) = (self.options.patience, header.best) else {
            return false;
        };
        self.validation.is_some() && best + patience < header.epoch + 1
    }

    /// Scales to start from: the plan's of activations; of weights those with the least error.
    fn prepare_scales(&mut self) -> Result<(), Error> {
        self.net.refresh(false)?;
        match self.options.scales {
            Scales::Fixed => {}
            Scales::Observed => self.net.fit_weights(true),
            Scales::Learned | Scales::Pact => self.net.fit_weights(false),
        }
        Ok(())
    }

    fn numbers_of_net(&mut self) -> Vec<f32> {
        let mut numbers = Vec::new();
        self.net.visit(|part| numbers.extend_from_slice(part));
        numbers
    }

    fn numbers(&mut self) -> Vec<f32> {
        let mut numbers = self.numbers_of_net();
        self.steps.visit(|part| numbers.extend_from_slice(part));
        numbers
    }

    fn load_net<'n>(&mut self, numbers: &'n [f32]) -> Result<&'n [f32], Error> {
        let mut rest = Some(numbers);
        self.net.visit(|part| take(part, &mut rest));
        rest.ok_or_else(|| Error::Checkpoint("has too few numbers".into()))
    }

    fn load(&mut self, numbers: &[f32]) -> Result<(), Error> {
        let mut rest = Some(self.load_net(numbers)?);
        self.steps.visit(|part| take(part, &mut rest));
        match rest {
            Some([]) => Ok(()),
            _ => Err(Error::Checkpoint("has another number of numbers".into())),
        }
    }

    /// One epoch, or what is left of it.
    fn epoch(
        &mut self,
        header: &mut Header,
        best: &[f32],
        interrupted: &AtomicBool,
    ) -> Result<(), Error> {
        let since = Instant::now();
        let options = self.options;
        let order = batches::order(self.data.which.len(), options.seed, header.epoch);
        let batch = options.batch.min(order.len());
        let n_steps = self.n_batches * options.epochs;
        let mut rate = 0.0;
        while header.step < self.n_batches {
            if interrupted.load(Ordering::Relaxed) {
                header.n_steps = self.steps.n;
                self.hooks
                    .checkpoint(&header.write(&self.numbers(), best))
                    .map_err(Error::Write)?;
                return Err(Error::Interrupted);
            }
            let which: Vec<usize> =
                order[header.step * batch..][..batch].iter().map(|&i| self.data.which[i]).collect();
            let step = header.epoch * self.n_batches + header.step;
            rate = rate_at(step, n_steps, options.warmup, options.learning_rate);
            let loss = self.step(&which, step, n_steps, header.epoch, rate)?;
            header.loss += loss;
            header.step += 1;
            header.n_steps = self.steps.n;
            self.hooks.progress(&Progress {
                step: step + 1,
                n_steps,
                epoch: header.epoch + 1,
                loss: header.loss / header.step as f64,
                learning_rate: rate,
            });
            let is_due = header.step.is_multiple_of(options.checkpoint_steps.max(1));
            if is_due && header.step < self.n_batches {
                self.hooks
                    .checkpoint(&header.write(&self.numbers(), best))
                    .map_err(Error::Write)?;
            }
        }
        let score = match self.validation {
            Some(validation) => Some(self.score(&validation, interrupted)?),
            None => None,
        };
        header.epoch += 1;
        header.history.push(Epoch {
            epoch: header.epoch,
            loss: header.loss / self.n_batches as f64,
            learning_rate: rate,
            score,
            seconds: since.elapsed().as_secs_f64(),
        });
        (header.step, header.loss) = (0, 0.0);
        Ok(())
    }

    /// What a step does, by how far the run is.
    fn phase(&self, step: usize, n_steps: usize) -> Phase {
        let options = self.options;
        let before = |share: f32| step < (f64::from(share) * n_steps as f64).ceil() as usize;
        // However long the delay, the last step is quantized.
        let is_quantized = !before(options.delay) || step + 1 == n_steps;
        let observes =
            !is_quantized || (options.scales == Scales::Observed && before(options.freeze_ranges));
        Phase {
            is_quantized,
            norm: if before(options.freeze_norms) {
                Statistics::Batch { momentum: Some(options.momentum) }
            } else {
                Statistics::Running
            },
            observe: observes.then_some(options.momentum),
            keeps: true,
        }
    }

    fn step(
        &mut self,
        which: &[usize],
        step: usize,
        n_steps: usize,
        epoch: usize,
        rate: f32,
    ) -> Result<f64, Error> {
        let options = self.options;
        let phase = self.phase(step, n_steps);
        if phase.is_quantized && 0 < step && !self.phase(step - 1, n_steps).is_quantized {
            // The end of the delay: ranges are those that were measured.
            self.net.activations.iter_mut().for_each(|a| a.adopt());
            self.net.refresh(false)?;
            if options.scales != Scales::Fixed {
                self.net.fit_weights(options.scales == Scales::Observed);
            }
        }
        if phase.is_quantized && options.scales == Scales::Observed && phase.observe.is_some() {
            self.net.activations.iter_mut().for_each(|a| a.adopt());
            self.net.refresh(false)?;
            self.net.fit_weights(true);
        }
        self.net.refresh(phase.is_quantized)?;
        self.net.clear_gradients();
        let samples = batches::read(
            self.data.samples,
            which,
            Some((options.augment, options.seed, epoch)).filter(|(a, ..)| *a != Augment::default()),
        )?;
        let mut total = 0.0;
        let n = which.len() as f64;
        for (samples, which) in samples.chunks(self.micro_batch).zip(which.chunks(self.micro_batch))
        {
            let share = samples.len() as f64 / n;
            let inputs = batches::join(samples)?;
            let (teacher, inner) = self.ask_teacher(&inputs)?;
            let tape = self.net.forward(self.named(inputs)?, phase)?;
            self.kept_bytes = self.kept_bytes.max(tape.n_bytes());
            let (loss, seeds) = self.loss(&tape, which, teacher.as_ref(), &inner, share)?;
            total += loss;
            self.net.backward(tape, seeds)?;
        }
        if !total.is_finite() {
            return Err(Error::Diverged { loss: total, step: step + 1 });
        }
        self.net.pull_back(phase);
        self.update(phase, rate);
        Ok(total)
    }

    /// The float model's output and inner values.
    fn ask_teacher(
        &self,
        inputs: &[(String, Tensor)],
    ) -> Result<(Option<Tensor>, Vec<Tensor>), Error> {
        let loss = &self.options.loss;
        if loss.distill == 0.0 && loss.features == 0.0 {
            return Ok((None, Vec::new()));
        }
        if self.features.is_empty() {
            let name = self.start.prepared.graph.value_name(self.output);
            return Ok((Some(value_of(&self.teacher, name, inputs.to_vec())?), Vec::new()));
        }
        let mut output = None;
        let mut inner: Vec<Option<Tensor>> = vec![None; self.features.len()];
        self.teacher.run_observed(inputs.to_vec(), &mut |id, _, tensor| {
            if id == self.output {
                output = Some(tensor.clone());
            }
            if let Some(k) = self.features.iter().position(|f| *f == id) {
                inner[k] = Some(tensor.clone());
            }
        })?;
        let inner: Option<Vec<Tensor>> = inner.into_iter().collect();
        let inner =
            inner.ok_or_else(|| Error::Options("a value to be matched is not computed".into()))?;
        Ok((output, inner))
    }

    fn named(&self, inputs: Vec<(String, Tensor)>) -> Result<Vec<(ValueId, Tensor)>, Error> {
        named(&self.start.prepared.graph, inputs)
    }

    /// The loss of a part of a batch, and its gradients.
    fn loss(
        &self,
        tape: &Tape,
        which: &[usize],
        teacher: Option<&Tensor>,
        inner: &[Tensor],
        share: f64,
    ) -> Result<(f64, Vec<(ValueId, Tensor)>), Error> {
        let options = &self.options.loss;
        let failed = |source: OpError| Error::Node {
            node: self.start.prepared.graph.value_name(self.output).to_owned(),
            op_type: "loss".into(),
            pass: "forwards",
            source,
        };
        let output = tape.value(self.output).expect("it stays to be read");
        let mut grad = vec![0.0; output.len()];
        let mut total = 0.0;
        let weight = |part: f32| f64::from(part) * share;
        match self.data.labels {
            Some(Labels::Classes(classes)) if options.cross_entropy != 0.0 => {
                let right = |i: &usize| classes[*i].first().copied();
                let right: Option<Vec<usize>> = which.iter().map(right).collect();
                let right = right.ok_or_else(|| Error::Options("a sample has no class".into()))?;
                total +=
                    loss::cross_entropy(output, &right, weight(options.cross_entropy), &mut grad)
                        .map_err(failed)?;
            }
            Some(Labels::Values(values)) if options.squared != 0.0 => {
                let mut wanted = Vec::with_capacity(output.len());
                for i in which {
                    wanted.extend(values[*i].to_vec::<f32>().map_err(|e| failed(e.into()))?);
                }
                let wanted = Tensor::from_slice(vec![wanted.len()], &wanted)
                    .map_err(|e| failed(e.into()))?;
                total += loss::squared(output, &wanted, weight(options.squared), &mut grad)
                    .map_err(failed)?;
            }
            _ => {}
        }
        if let (Some(teacher), true) = (teacher, options.distill != 0.0) {
            let part = weight(options.distill);
            // Without classes there is nothing to soften.
            let is_class = output.dims().last().is_some_and(|&n| 1 < n)
                && !matches!(self.data.labels, Some(Labels::Values(_)));
            total += if is_class {
                loss::distill(output, teacher, f64::from(options.temperature), part, &mut grad)
            } else {
                loss::squared(output, teacher, part, &mut grad)
            }
            .map_err(failed)?;
        }
        let tensor = |dims: &[usize], values: &[f32]| {
            Tensor::from_slice(dims.to_vec(), values).map_err(|e| failed(e.into()))
        };
        let mut seeds = vec![(self.output, tensor(output.dims(), &grad)?)];
        for (id, wanted) in self.features.iter().zip(inner) {
            let value = tape
                .value(*id)
                .ok_or_else(|| Error::Options("a value to be matched is absorbed".into()))?;
            let mut grad = vec![0.0; value.len()];
            let part = weight(options.features) / self.features.len() as f64;
            total += loss::features(value, wanted, part, &mut grad).map_err(failed)?;
            seeds.push((*id, tensor(value.dims(), &grad)?));
        }
        Ok((total, seeds))
    }

    /// One step of everything that is trained.
    fn update(&mut self, phase: Phase, rate: f32) {
        let options = self.options;
        let net = &mut self.net;
        if let Some(most) = options.clip {
            let squares =
                net.params.iter().flat_map(|p| &p.grad).map(|&g| f64::from(g) * f64::from(g));
            let norm = squares.sum::<f64>().sqrt();
            if f64::from(most) < norm {
                let factor = (f64::from(most) / norm) as f32;
                net.params.iter_mut().flat_map(|p| &mut p.grad).for_each(|g| *g *= factor);
            }
        }
        self.steps.n += 1;
        let steps = &mut self.steps;
        let mut group = 0;
        for param in &mut net.params {
            let decay = if param.kind == ParamKind::Weight { options.weight_decay } else { 0.0 };
            steps.step(group, &mut param.value, &param.grad, rate, decay);
            group += 1;
        }
        let learns = phase.is_quantized && matches!(options.scales, Scales::Learned | Scales::Pact);
        let is_log = options.optimizer == Optimizer::Adam;
        for quantizer in &mut net.weights {
            if learns {
                let factor = quantizer.grad_factor();
                step_scales(
                    steps,
                    group,
                    &mut quantizer.scales,
                    &quantizer.grads,
                    factor,
                    rate,
                    is_log,
                );
            }
            group += 1;
        }
        for quantizer in &mut net.activations {
            if learns && quantizer.is_free {
                let factor = quantizer.grad_factor();
                let scale_grad = quantizer.scale_gradient(options.scales) as f32;
                let zero_grad = quantizer.zero_point_grad as f32 * factor;
                // Both moments are in one group: the scale's, then the zero point's.
                let scale = quantizer.state.scale;
                let (mut values, grads) = if is_log {
                    (
                        [scale.ln(), quantizer.state.zero_point / ZERO_POINT_RATE],
                        [scale_grad * scale * factor, zero_grad],
                    )
                } else {
                    (
                        [scale, quantizer.state.zero_point / ZERO_POINT_RATE],
                        [scale_grad * factor, zero_grad],
                    )
                };
                steps.step(group, &mut values, &grads, rate, 0.0);
                let made = if is_log { values[0].exp() } else { values[0] };
                // A step that would turn a scale around halves it.
                quantizer.state.scale =
                    if made.is_finite() { made.max(0.5 * scale) } else { scale };
                if quantizer.has_free_zero_point && options.scales == Scales::Learned {
                    let (lo, hi) = (quantizer.range.qmin() as f32, quantizer.range.qmax() as f32);
                    quantizer.state.zero_point = (values[1] * ZERO_POINT_RATE).clamp(lo, hi);
                }
            }
            group += 1;
        }
    }

    /// How good the model is, as deployed.
    fn score(&mut self, data: &Data<'_>, interrupted: &AtomicBool) -> Result<Score, Error> {
        self.net.refresh(true)?;
        let (n, is_fixed) = (self.micro_batch, self.is_fixed);
        score_with(data, n, is_fixed, interrupted, |inputs| {
            let name = self.start.prepared.graph.value_name(self.output).to_owned();
            let float = value_of(&self.teacher, &name, inputs.clone())?;
            let tape = self.net.forward(self.named(inputs)?, Phase::DEPLOYED)?;
            Ok((tape.value(self.output).expect("it stays to be read").clone(), float))
        })
    }
}

/// How good a model is, whatever made it: its first output against the labels and the float model's.
///
/// `batch` samples are run at once, where the models leave that open.
pub fn score(
    model: &Model,
    float: &Model,
    data: &Data<'_>,
    batch: usize,
    interrupted: &AtomicBool,
) -> Result<Score, Error> {
    let names = [model, float]
        .map(|m| m.graph.outputs.first().map(|id| m.graph.value_name(*id).to_owned()));
    let [Some(name), Some(float_name)] = names else {
        return Err(Error::Options("the model has no output".into()));
    };
    let fixed = fixed_batch(&float.graph);
    let options = midtread_exec::Options::default;
    let (model, float) = (Interpreter::new(model, options())?, Interpreter::new(float, options())?);
    score_with(data, fixed.unwrap_or(batch), fixed.is_some(), interrupted, |inputs| {
        let output = value_of(&model, &name, inputs.clone())?;
        Ok((output, value_of(&float, &float_name, inputs)?))
    })
}

/// Inputs by their place in the graph.
fn named(graph: &Graph, inputs: Vec<(String, Tensor)>) -> Result<Vec<(ValueId, Tensor)>, Error> {
    let of = |(name, tensor): (String, Tensor)| match graph.find(&name) {
        Some(id) if graph.inputs.contains(&id) => Ok((id, tensor)),
        _ => Err(Error::Options(format!("the model has no input `{name}`"))),
    };
    inputs.into_iter().map(of).collect()
}

/// A value of a model, which need not be an output.
fn value_of(
    model: &Interpreter,
    name: &str,
    inputs: Vec<(String, Tensor)>,
) -> Result<Tensor, Error> {
    let mut found = None;
    if model.outputs().iter().any(|port| port.name == name) {
        found = model.run(inputs)?.into_iter().find(|(n, _)| n == name).map(|(_, tensor)| tensor);
    } else {
        model.run_observed(inputs, &mut |_, n, tensor| {
            if n == name {
                found = Some(tensor.clone());
            }
        })?;
    }
    found.ok_or_else(|| Error::Options(format!("`{name}` is not computed")))
}

/// The score of what `run` makes of each batch: the output, and the float model's.
fn score_with(
    data: &Data<'_>,
    batch: usize,
    is_fixed: bool,
    interrupted: &AtomicBool,
    mut run: impl FnMut(Vec<(String, Tensor)>) -> Result<(Tensor, Tensor), Error>,
) -> Result<Score, Error> {
    let (mut right, mut n_rows, mut squares, mut n) = (0_usize, 0_usize, 0.0_f64, 0_usize);
    let (mut errors, mut n_errors) = (0.0_f64, 0_usize);
    let distance = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    let bad = |e: midtread_graph::TensorError| Error::Options(e.to_string());
    for which in data.which.chunks(batch.max(1)) {
        if interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        if which.len() < batch && is_fixed {
            continue;
        }
        let (output, float) = run(batches::join(&batches::read(data.samples, which, None)?)?)?;
        let (values, float) =
            (output.to_vec::<f32>().map_err(bad)?, float.to_vec::<f32>().map_err(bad)?);
        squares += distance(&values, &float);
        n += values.len();
        let width = output.dims().last().copied().unwrap_or(1).max(1);
        for (k, (row, float)) in
            values.chunks_exact(width).zip(float.chunks_exact(width)).enumerate()
        {
            let classes = match data.labels {
                Some(Labels::Classes(classes)) => which.get(k).map(|i| classes[*i].as_slice()),
                _ => None,
            };
            right += usize::from(match classes {
                Some(classes) => classes.contains(&first(row)),
                None => first(row) == first(float),
            });
            n_rows += 1;
        }
        if let Some(Labels::Values(wanted)) = data.labels {
            let mut all = Vec::with_capacity(values.len());
            for i in which {
                all.extend(wanted[*i].to_vec::<f32>().map_err(bad)?);
            }
            errors += distance(&values, &all);
            n_errors += values.len();
        }
    }
    let value = match data.labels {
        Some(Labels::Values(_)) => -errors / n_errors.max(1) as f64,
        _ => right as f64 / n_rows.max(1) as f64,
    };
    Ok(Score { value, difference: squares / n.max(1) as f64 })
}

/// How many samples a model takes at once, if it says so.
fn fixed_batch(graph: &Graph) -> Option<usize> {
    let given = graph.inputs.iter().filter(|id| graph.value(**id).constant.is_none());
    given.filter_map(|id| graph.value(*id).ty.as_ref()?.dims()?.first()?.known()).min()
}

/// Zero points move in whole steps of the type: so many times the learning rate.
const ZERO_POINT_RATE: f32 = 10.0;

/// One step of scales, in their logarithm where `is_log`.
fn step_scales(
    steps: &mut Steps,
    group: usize,
    scales: &mut [f32],
    grads: &[f32],
    factor: f32,
    rate: f32,
    is_log: bool,
) {
    let (mut values, grads): (Vec<f32>, Vec<f32>) = scales
        .iter()
        .zip(grads)
        .map(|(s, g)| if is_log { (s.ln(), g * s * factor) } else { (*s, g * factor) })
        .unzip();
    steps.step(group, &mut values, &grads, rate, 0.0);
    for (scale, value) in scales.iter_mut().zip(values) {
        let made = if is_log { value.exp() } else { value };
        // A step that would turn a scale around halves it.
        *scale = if made.is_finite() { made.max(0.5 * *scale) } else { *scale };
    }
}

/// Fills `part` from the front of what is left; `None` once that is too short.
fn take(part: &mut [f32], rest: &mut Option<&[f32]>) {
    *rest = rest.and_then(|numbers| numbers.split_at_checked(part.len())).map(|(own, rest)| {
        part.copy_from_slice(own);
        rest
    });
}

/// The place of the largest; of equals, the first.
fn first(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if row[best] < *x {
            best = i;
        }
    }
    best
}

/// The output that is trained: the first; if it is a softmax's, what goes into that.
fn scores(graph: &Graph) -> Result<ValueId, Error> {
    let output =
        *graph.outputs.first().ok_or_else(|| Error::Options("the model has no output".into()))?;
    let elem = graph.type_of(output).and_then(|ty| ty.elem());
    if elem.is_some_and(|elem| elem != DataType::Float) {
        return Err(Error::Options(format!(
            "output `{}` does not hold floats",
            graph.value_name(output)
        )));
    }
    let links = Links::new(graph);
    let node = links.producer(output).map(|i| &graph.nodes[i]);
    let before = node.filter(|n| n.is("Softmax") || n.is("LogSoftmax")).and_then(|n| n.input(0));
    Ok(before.unwrap_or(output))
}

fn check_labels(data: &Data<'_>, options: &Options) -> Result<(), Error> {
    let refuse = |what: &str| Err(Error::Options(what.to_owned()));
    let n = data.samples.names().len();
    match data.labels {
        Some(Labels::Classes(classes)) if classes.len() != n => {
            refuse("not every sample has a label")
        }
        Some(Labels::Values(values)) if values.len() != n => refuse("not every sample has values"),
        Some(Labels::Classes(_)) if options.loss.squared != 0.0 => {
            refuse("a squared loss needs values, not classes")
        }
        Some(Labels::Values(_)) if options.loss.cross_entropy != 0.0 => {
            refuse("a cross-entropy needs classes, not values")
        }
        None if options.loss.cross_entropy != 0.0 || options.loss.squared != 0.0 => {
            refuse("a loss with labels needs labels: give them, or distill alone")
        }
        _ => Ok(()),
    }
}
