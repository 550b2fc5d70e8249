//! Which layers cost the most: each quantized alone, and each alone left in float, ranked by what the outputs lose.
//!
//! Both are the models that `quantize --include LAYER` and `quantize --exclude LAYER` would write, so what is measured
//! is what can be had. What a model shares with the float model, or with the one that is quantized as a whole, is run
//! once a sample ([`crate::suffix`]). Every layer is measured on the same samples, one after the other, so that the
//! work can end after any sample, and go on from there another time ([`State`]).

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use midtread_exec::Interpreter;
use midtread_graph::{Links, Model, Tensor, ValueId};
use midtread_num::ErrorSums;
use midtread_quant::{
    Format, Plan, PlanOptions, Target, apply,
    calibrate::Samples,
    plan::{CachedRanges, Decision, Pattern, Ranges, plan_ranges},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    error::Error,
    outputs::{OutputSums, Scores},
    own::as_f32,
    run::scores,
    suffix::{Numbering, Suffix},
};

/// What is quantized, and how.
pub struct Task<'a> {
    /// The float model, prepared.
    pub prepared: &'a Model,
    /// Where ranges come from; `None` for schemes that need none.
    pub ranges: Option<&'a (dyn Ranges + Sync)>,
    /// The device.
    pub target: &'a Target,
    /// How the whole model is quantized.
    pub plan: &'a PlanOptions,
}

/// How to measure.
pub struct Options<'a> {
    /// Layers worked on at once, each on a thread of its own.
    pub n_threads: usize,
    /// Memory that values may take.
    pub max_bytes: Option<usize>,
    /// No sample is begun after this long. The first is always finished.
    pub budget: Option<Duration>,
    /// The right classes of each sample, by its position: then accuracy ranks, and loss only where it is equal.
    pub labels: Option<&'a (dyn Fn(usize) -> Vec<usize> + Sync)>,
    /// What an earlier run left behind, to go on from.
    pub resume: Option<State>,
    /// Called after each sample with what is known by then.
    pub checkpoint: &'a mut dyn FnMut(&State),
    /// Called with the runs that are done, of how many.
    pub progress: &'a (dyn Fn(usize, usize) + Sync),
    /// Looked at between runs.
    pub interrupted: &'a AtomicBool,
}

/// What a model's outputs lose against the float model's, over all samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Effect {
    /// What the ranking goes by: the mean over the outputs of the divergence of their rows of scores in nats or, where
    /// an output has none, of its noise as a share of its signal.
    pub loss: f64,
    /// Signal to noise in dB, of the output that has the least.
    pub sqnr_db: f64,
    /// Divergence in nats, of the first output that is rows of scores.
    pub kl: Option<f64>,
    /// Share of rows with the float model's first answer, of that output.
    pub agreement: Option<f64>,
    /// Share of right first answers, where those are known.
    pub top1: Option<f64>,
}

/// A layer, or an operator without weights, that is quantized.
#[derive(Clone, Debug, Serialize)]
pub struct LayerRow {
    /// From 1, the most sensitive first.
    pub rank: usize,
    /// What people call it.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// Its first output.
    pub tensor: String,
    /// The float model with only this layer quantized.
    pub alone: Effect,
    /// The quantized model with only this layer in float.
    pub in_float: Effect,
    /// How much of the quantized model's loss goes away with the latter; below 0 where errors cancelled each other.
    pub gain: f64,
}

/// What measuring leaves behind.
#[derive(Clone, Debug, Serialize)]
pub struct Sensitivity {
    /// Samples that every layer was measured on.
    pub samples: usize,
    /// Samples there were; more than `samples` if the budget was spent.
    pub samples_given: usize,
    /// The float model's share of right first answers.
    pub float_top1: Option<f64>,
    /// The model quantized as a whole.
    pub quantized: Effect,
    /// The most sensitive first.
    pub layers: Vec<LayerRow>,
    /// Nodes that are quantized only together with their neighbours (they move values or select them): no layers of
    /// their own.
    pub only_with_others: Vec<String>,
    /// Nodes evaluated for one sample.
    pub nodes_run: usize,
    /// Nodes there would have been to evaluate if every model had been run as a whole.
    pub nodes_whole: usize,
}

impl Sensitivity {
    /// The layers to keep in float: the `n` most sensitive.
    pub fn keep_in_float(&self, n: usize) -> impl Iterator<Item = &LayerRow> {
        self.layers.iter().take(n)
    }

    /// How many of the most sensitive layers make up half of what all layers lose, each by itself.
    pub fn half_of_the_loss(&self) -> usize {
        let total: f64 = self.layers.iter().map(|layer| layer.alone.loss).sum();
        let mut sum = 0.0;
        let enough = self.layers.iter().position(|layer| {
            sum += layer.alone.loss;
            total <= 2.0 * sum
        });
        enough.map_or(0, |i| i + 1)
    }
}

/// How far the work is; can be saved and gone on from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Version of this form.
    pub midtread_sensitivity: u32,
    /// Fingerprint of the prepared model.
    pub model: String,
    /// Checksum of everything that was decided about it.
    pub plan: String,
    /// Every sample, in order.
    pub samples: Vec<String>,
    /// How many of them are done.
    pub n_done: usize,
    /// The layers, in the order of the graph.
    pub layers: Vec<String>,
    /// Whether answers were compared with labels.
    pub has_labels: bool,
    /// Sums over the samples done, as bits of 64-bit floats and counts: the float model, the quantized one, then two
    /// for each layer (alone, in float).
    sums: Vec<Vec<u64>>,
}

const VERSION: u32 = 1;

impl State {
    /// From its JSON.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let state: Self = serde_json::from_str(text)
            .map_err(|e| Error::Options(format!("this is no saved sensitivity: {e}")))?;
        if state.midtread_sensitivity != VERSION {
            return Err(Error::Options(format!(
                "version {} is not {VERSION}",
                state.midtread_sensitivity
            )));
        }
        Ok(state)
    }

    /// Whether `self` belongs to the work that would begin with `fresh`; says what differs.
    fn check(&self, fresh: &Self) -> Result<(), Error> {
        let differs = [
            (self.model != fresh.model, "another model"),
            (self.plan != fresh.plan, "other options or statistics"),
            (self.samples != fresh.samples, "other samples"),
            (self.has_labels != fresh.has_labels, "labels, or none"),
            (self.layers != fresh.layers, "other layers"),
            (
                self.sums.len() != fresh.sums.len()
                    || self.sums.iter().any(|s| s.len() != fresh.sums[0].len())
                    || self.samples.len() < self.n_done,
                "other sums",
            ),
        ];
        match differs.into_iter().find(|(differs, _)| *differs) {
            Some((_, what)) => Err(Error::Options(format!(
                "the saved state is of {what}: it cannot be gone on from"
            ))),
            None => Ok(()),
        }
    }
}

/// A layer, and its two models.
struct Layer {
    node: usize,
    label: String,
    alone: Suffix,
    in_float: Suffix,
}

/// Sums over the outputs of one model.
#[derive(Clone, Default)]
struct Totals {
    outputs: Vec<OutputSums>,
    n_right: u64,
}

/// Measures the sensitivity of every layer.
///
/// Memory is bounded by the values of one sample in two models, one run a thread, and each model's own weights. The
/// figures depend on the model, the plan and the samples alone.
pub fn sensitivity(
    task: &Task<'_>,
    samples: &dyn Samples,
    options: Options<'_>,
) -> Result<Sensitivity, Error> {
    let start = Instant::now();
    let names = samples.names();
    if names.is_empty() {
        return Err(Error::NoSamples);
    }
    let work = Work::new(task, &options)?;
    let mut state = work.state(names, options.labels.is_some());
    if let Some(saved) = options.resume.clone() {
        saved.check(&state)?;
        state = saved;
    }
    let mut totals: Vec<Totals> = state.sums.iter().map(|sums| Totals::from_bits(sums)).collect();
    let n_before = state.n_done;
    let n_runs = (state.samples.len() - state.n_done) * work.n_models();
    let done = AtomicUsize::new(0);
    let run_done = || (options.progress)(done.fetch_add(1, Ordering::Relaxed) + 1, n_runs);
    for i in state.n_done..state.samples.len() {
        let is_over = options.budget.is_some_and(|budget| budget <= start.elapsed());
        if is_over && 0 < n_before.max(i) {
            break;
        }
        let right = options.labels.map(|labels| labels(i));
        let one =
            work.measure(samples, i, &state.samples[i], right.as_deref(), &options, &run_done)?;
        for (total, one) in totals.iter_mut().zip(&one) {
            total.merge(one);
        }
        state.n_done = i + 1;
        state.sums = totals.iter().map(Totals::to_bits).collect();
        (options.checkpoint)(&state);
    }
    Ok(work.result(&totals, &state))
}

struct Work<'a> {
    task: &'a Task<'a>,
    plan: Plan,
    float: Interpreter,
    quantized: Interpreter,
    layers: Vec<Layer>,
    only_with_others: Vec<String>,
    /// Values of either model that suffixes and figures need.
    kept: [BTreeSet<ValueId>; 2],
    scores: Vec<Scores>,
}

impl<'a> Work<'a> {
    fn new(task: &'a Task<'a>, options: &Options<'_>) -> Result<Self, Error> {
        let n_threads = options.n_threads.max(1);
        let max_bytes = options.max_bytes.map(|n| n / n_threads);
        let cached = task.ranges.map(CachedRanges::new);
        let quantize = |include: Option<&str>, exclude: Option<&str>| {
            let mut plan = task.plan.clone();
            if let Some(label) = include {
                plan.include = vec![Pattern::Name(label.to_owned())];
            }
            plan.exclude.extend(exclude.map(|label| Pattern::Name(label.to_owned())));
            let ranges = cached.as_ref().map(|cached| cached as &dyn Ranges);
            let plan = plan_ranges(task.prepared, ranges, task.target, &plan)?;
            let model = apply(task.prepared, &plan, Format::Qdq)?;
            Ok::<_, Error>((plan, model))
        };
        let mut numbering = Numbering::default();
        let mut number = |model: Model| {
            numbering.number(model).map_err(|(node, source)| Error::Node { node, source })
        };
        let model_error = |which| move |source| Error::Model { which, source };

        let (plan, quantized) = quantize(None, None)?;
        let (float, quantized) = (number(task.prepared.clone())?, number(quantized)?);
        let (of_float, of_quantized) = (float.values(), quantized.values());
        let exec = || midtread_exec::Options { max_bytes };
        let run =
            |which, model: &Model| Interpreter::new(model, exec()).map_err(model_error(which));
        let (float, quantized) = (run("float", &float.model)?, run("quantized", &quantized.model)?);

        let mut seen = BTreeSet::new();
        let candidates: Vec<(usize, String)> = (plan.nodes.iter().enumerate())
            .filter(|(_, node)| matches!(node.decision, Decision::Quantized { .. }))
            .filter(|(_, node)| seen.insert(node.node.clone()))
            .map(|(i, node)| (i, node.node.clone()))
            .collect();
        let (mut layers, mut only_with_others) = (Vec::new(), Vec::new());
        for some in candidates.chunks(2 * n_threads) {
            let models: Vec<_> = some
                .par_iter()
                .map(|(_, label)| {
                    if options.interrupted.load(Ordering::Relaxed) {
                        return Err(Error::Interrupted);
                    }
                    let (alone, in_float) =
                        (quantize(Some(label), None)?, quantize(None, Some(label))?);
                    let is_layer = alone.0.counts().quantized != 0;
                    Ok(is_layer.then_some((alone.1, in_float.1)))
                })
                .collect();
            for (&(node, ref label), models) in some.iter().zip(models) {
                let Some((alone, in_float)) = models? else {
                    only_with_others.push(label.clone());
                    continue;
                };
                let alone = Suffix::new(&of_float, number(alone)?, exec());
                let in_float = Suffix::new(&of_quantized, number(in_float)?, exec());
                let alone = alone.map_err(model_error("quantized"))?;
                let in_float = in_float.map_err(model_error("quantized"))?;
                if alone.is_base() && in_float.is_base() {
                    only_with_others.push(label.clone());
                    continue;
                }
                layers.push(Layer { node, label: label.clone(), alone, in_float });
            }
        }
        if layers.is_empty() {
            return Err(Error::Options("no layer of the model is quantized".into()));
        }
        let mut kept = [BTreeSet::new(), BTreeSet::new()];
        for layer in &layers {
            kept[0].extend(layer.alone.inputs());
            kept[1].extend(layer.in_float.inputs());
        }
        let links = Links::new(float.graph());
        let outputs = &float.graph().outputs;
        let scores = outputs.iter().map(|&id| scores(float.graph(), &links, id)).collect();
        Ok(Self { task, plan, float, quantized, layers, only_with_others, kept, scores })
    }

    /// The float model, the quantized one, and two for each layer.
    fn n_models(&self) -> usize {
        2 + 2 * self.layers.len()
    }

    fn state(&self, samples: Vec<String>, has_labels: bool) -> State {
        let none = Totals { outputs: vec![OutputSums::default(); self.scores.len()], n_right: 0 };
        State {
            midtread_sensitivity: VERSION,
            model: self.plan.model.clone(),
            plan: checksum(&self.plan.to_text()),
            samples,
            n_done: 0,
            layers: self.layers.iter().map(|layer| layer.label.clone()).collect(),
            has_labels,
            sums: vec![none.to_bits(); self.n_models()],
        }
    }

    /// The sums over one sample, a model each.
    fn measure(
        &self,
        samples: &dyn Samples,
        i: usize,
        name: &str,
        right: Option<&[usize]>,
        options: &Options<'_>,
        run_done: &(dyn Fn() + Sync),
    ) -> Result<Vec<Totals>, Error> {
        let sample = samples
            .sample(i)
            .map_err(|source| Error::Sample { sample: name.to_owned(), source })?;
        let failed = |which| move |source| Error::Run { which, sample: name.to_owned(), source };
        let mut n_bytes = 0;
        let mut base = |which, interpreter: &Interpreter, kept: &BTreeSet<ValueId>| {
            let mut values: HashMap<ValueId, Tensor> = HashMap::new();
            let mut observe = |id: ValueId, _: &str, tensor: &Tensor| {
                if kept.contains(&id) {
                    n_bytes += tensor.as_bytes().len();
                    values.insert(id, tensor.clone());
                }
            };
            let outputs = interpreter
                .run_observed(sample.inputs.clone(), &mut observe)
                .map_err(failed(which))?;
            run_done();
            let outputs: Vec<Tensor> = outputs.into_iter().map(|(_, tensor)| tensor).collect();
            Ok::<_, Error>((values, outputs))
        };
        let (of_float, reference) = base("float", &self.float, &self.kept[0])?;
        let (of_quantized, quantized) = base("quantized", &self.quantized, &self.kept[1])?;
        if let Some(limit) = options.max_bytes.filter(|&limit| limit < n_bytes) {
            return Err(Error::Options(format!(
                "what the layers share takes {} MB for one sample, and all values may take {} MB: raise --max-memory",
                n_bytes >> 20,
                limit >> 20
            )));
        }
        let n = 2 * self.layers.len();
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let results: Mutex<Vec<Option<Result<Totals, Error>>>> =
            Mutex::new((0..n).map(|_| None).collect());
        let worker = || {
            loop {
                let k = next.fetch_add(1, Ordering::Relaxed);
                let is_over =
                    stop.load(Ordering::Relaxed) || options.interrupted.load(Ordering::Relaxed);
                if n <= k || is_over {
                    return;
                }
                let layer = &self.layers[k / 2];
                let outputs = match k % 2 {
                    0 => layer.alone.run(&of_float),
                    _ => layer.in_float.run(&of_quantized),
                };
                let totals = outputs
                    .map_err(failed("quantized"))
                    .and_then(|outputs| self.totals(&reference, &outputs, right));
                stop.fetch_or(totals.is_err(), Ordering::Relaxed);
                results.lock().expect("no panic while the lock is held")[k] = Some(totals);
                run_done();
            }
        };
        let in_one_thread = || match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
            Ok(pool) => pool.install(worker),
            Err(_) => worker(),
        };
        std::thread::scope(|scope| {
            for _ in 0..options.n_threads.clamp(1, n) {
                scope.spawn(in_one_thread);
            }
        });
        if options.interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let mut all = vec![
            self.totals(&reference, &reference, right)?,
            self.totals(&reference, &quantized, right)?,
        ];
        let results = results.into_inner().expect("no panic while the lock is held");
        // All are there, but for those after one that failed.
        for result in results.into_iter().flatten() {
            all.push(result?);
        }
        Ok(all)
    }

    fn totals(
        &self,
        reference: &[Tensor],
        outputs: &[Tensor],
        right: Option<&[usize]>,
    ) -> Result<Totals, Error> {
        let mut totals = Totals::default();
        for (i, ((a, b), &scores)) in reference.iter().zip(outputs).zip(&self.scores).enumerate() {
            // Integers (indices, masks) have no noise.
            let (Some(x), Some(y)) = (as_f32(a), as_f32(b)) else {
                totals.outputs.push(OutputSums::default());
                continue;
            };
            if x.len() != y.len() {
                let text = "an output has another size when a layer is quantized";
                return Err(Error::Options(text.into()));
            }
            totals.outputs.push(OutputSums::of(&x, &y, a.dims(), scores));
            if let (0, Some(right)) = (i, right) {
                let best = (0..y.len()).max_by(|&p, &q| y[p].total_cmp(&y[q]).then(q.cmp(&p)));
                totals.n_right += u64::from(best.is_some_and(|class| right.contains(&class)));
            }
        }
        Ok(totals)
    }

    fn result(&self, totals: &[Totals], state: &State) -> Sensitivity {
        let n = state.n_done;
        let effect = |totals: &Totals| totals.effect(state.has_labels.then_some(n));
        let quantized = effect(&totals[1]);
        let graph = &self.task.prepared.graph;
        let mut layers: Vec<LayerRow> = (self.layers.iter().enumerate())
            .map(|(k, layer)| {
                let (alone, in_float) = (effect(&totals[2 + 2 * k]), effect(&totals[3 + 2 * k]));
                let node = &graph.nodes[layer.node];
                LayerRow {
                    rank: 0,
                    node: layer.label.clone(),
                    op_type: node.op_type.clone(),
                    tensor: node
                        .output(0)
                        .map_or_else(String::new, |id| graph.value_name(id).to_owned()),
                    alone,
                    in_float,
                    gain: quantized.loss - in_float.loss,
                }
            })
            .collect();
        // A NaN is worse than anything.
        let worse = |x: f64| if x.is_nan() { f64::INFINITY } else { x };
        layers.sort_by(|a, b| {
            let top1 = |row: &LayerRow| row.alone.top1.unwrap_or(0.0);
            top1(a)
                .total_cmp(&top1(b))
                .then(worse(b.alone.loss).total_cmp(&worse(a.alone.loss)))
                .then(worse(b.gain).total_cmp(&worse(a.gain)))
        });
        layers.iter_mut().enumerate().for_each(|(i, layer)| layer.rank = i + 1);
        let suffixes = || self.layers.iter().flat_map(|layer| [&layer.alone, &layer.in_float]);
        let both = self.float.n_nodes() + self.quantized.n_nodes();
        Sensitivity {
            samples: n,
            samples_given: state.samples.len(),
            float_top1: effect(&totals[0]).top1,
            quantized,
            only_with_others: self.only_with_others.clone(),
            nodes_run: both + suffixes().map(Suffix::n_nodes).sum::<usize>(),
            nodes_whole: both * (1 + self.layers.len()),
            layers,
        }
    }
}

impl Totals {
    fn merge(&mut self, later: &Self) {
        for (a, b) in self.outputs.iter_mut().zip(&later.outputs) {
            a.merge(b);
        }
        self.n_right += later.n_right;
    }

    fn effect(&self, n_labelled: Option<usize>) -> Effect {
        let seen = || self.outputs.iter().filter(|o| o.sums.n != 0);
        let rows = seen().find(|o| o.n_rows != 0);
        let n = seen().count().max(1) as f64;
        Effect {
            loss: seen().map(OutputSums::loss).sum::<f64>() / n,
            sqnr_db: seen().map(|o| o.sums.sqnr_db()).fold(f64::INFINITY, f64::min),
            kl: rows.and_then(OutputSums::kl),
            agreement: rows.and_then(OutputSums::agreement),
            top1: n_labelled.map(|n| self.n_right as f64 / n.max(1) as f64),
        }
    }

    fn to_bits(&self) -> Vec<u64> {
        let mut bits = vec![self.n_right];
        for o in &self.outputs {
            let s = o.sums;
            bits.extend([s.n, o.n_rows, o.n_same, o.n_in_top5]);
            let sums = [
                o.kl,
                s.abs,
                s.squared,
                s.max_abs,
                s.reference_squared,
                s.other_squared,
                s.product,
            ];
            bits.extend(sums.map(f64::to_bits));
        }
        bits
    }

    fn from_bits(bits: &[u64]) -> Self {
        let (n_right, outputs) = bits.split_first().map_or((0, bits), |(n, rest)| (*n, rest));
        let (outputs, _) = outputs.as_chunks::<11>();
        let one = |&[n, n_rows, n_same, n_in_top5, ref sums @ ..]: &[u64; 11]| {
            let [kl, abs, squared, max_abs, reference_squared, other_squared, product] =
                sums.map(f64::from_bits);
            let sums =
                ErrorSums { n, abs, squared, max_abs, reference_squared, other_squared, product };
            OutputSums { sums, n_rows, kl, n_same, n_in_top5 }
        };
        Self { outputs: outputs.iter().map(one).collect(), n_right }
    }
}

/// FNV-1a: tells plans apart that a user mixed up.
fn checksum(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_survive_being_saved_bit_for_bit() {
        let sums = OutputSums::of(&[0.1, 0.7, f32::MAX], &[0.2, 0.5, -1.0], &[3], Scores::Logits);
        let totals = Totals { outputs: vec![sums, OutputSums::default()], n_right: 3 };
        let text = serde_json::to_string(&totals.to_bits()).unwrap();
        let back = Totals::from_bits(&serde_json::from_str::<Vec<u64>>(&text).unwrap());
        assert_eq!((back.outputs, back.n_right), (totals.outputs, 3));
    }

    #[test]
    fn half_of_the_loss_counts_from_the_top() {
        let effect = |loss| Effect { loss, sqnr_db: 0.0, kl: None, agreement: None, top1: None };
        let layer = |loss| LayerRow {
            rank: 0,
            node: String::new(),
            op_type: String::new(),
            tensor: String::new(),
            alone: effect(loss),
            in_float: effect(0.0),
            gain: 0.0,
        };
        let of = |losses: &[f64]| Sensitivity {
            samples: 1,
            samples_given: 1,
            float_top1: None,
            quantized: effect(1.0),
            layers: losses.iter().map(|&loss| layer(loss)).collect(),
            only_with_others: Vec::new(),
            nodes_run: 0,
            nodes_whole: 0,
        };
        assert_eq!(of(&[3.0, 3.0, 2.0, 1.0]).half_of_the_loss(), 2);
        assert_eq!(of(&[9.0, 1.0]).half_of_the_loss(), 1);
        assert_eq!(of(&[]).half_of_the_loss(), 0);
    }
}
