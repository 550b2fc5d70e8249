//! The pass over the data: both models on each sample, the errors of every pair added up.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use midtread_exec::{Interpreter, Named};
use midtread_graph::{DataType, Graph, Links, Model, Node, Sample, Tensor, ValueId};
use midtread_num::tensor::{Code, quantize};
use midtread_ops::Pool;
use midtread_passes::{PrepareOptions, prepare};
use midtread_quant::calibrate::Samples;

use crate::{
    advice::{self, Activation, Advice},
    error::Error,
    matching::{Matching, Pair, Point},
    outputs::{OutputSums, Scores},
    own::{Unit, Usage, as_f32, rounded},
    profile::Profile,
    result::{Comparison, Kind, OutputRow, TensorRow, Unmatched},
    sums::{Channels, TensorSums},
    view::{Grid, View, dequantized, float_form},
    weights::{WeightPair, match_weights},
};

/// How to compare.
pub struct Options<'a> {
    /// Samples worked on at once, each on a thread of its own.
    pub n_threads: usize,
    /// Memory that all of them may hold values in, together: fewer are worked on at once where it is little.
    pub max_bytes: Option<usize>,
    /// Called with the number of samples done.
    pub progress: &'a (dyn Fn(usize) + Sync),
    /// Looked at between samples.
    pub interrupted: &'a AtomicBool,
}

/// Compares a quantized model with the float one it was made from.
///
/// Memory is bounded by the values of one sample a thread and sums for every tensor, however many samples there are.
/// The figures depend on the models and the samples alone.
pub fn compare(
    float: &Model,
    quantized: &Model,
    samples: &dyn Samples,
    options: &Options<'_>,
) -> Result<Comparison, Error> {
    let names = samples.names();
    if names.is_empty() {
        return Err(Error::NoSamples);
    }
    let interpreter = |which, model: &Model, max_bytes: Option<usize>| {
        Interpreter::new(model, midtread_exec::Options { max_bytes })
            .map_err(|source| Error::Model { which, source })
    };
    // The schedule only: the models that run are made below, once their share of the memory is known.
    let found = interpreter("quantized", quantized, None)?;
    let view = View::new(found.graph(), found.opset_imports());
    let original = interpreter("float", float, None)?;
    let (matching, weights, n_found) = matches(original.graph(), &view);
    // Where preparing makes more of the quantized model appear in the float one, it was prepared.
    let prepared = prepare(float.clone(), &PrepareOptions::default()).ok().map(|(model, _)| model);
    let prepared = prepared
        .and_then(|model| interpreter("float", &model, None).ok().map(|run| (model, run)))
        .map(|(model, run)| (matches(run.graph(), &view), model, run))
        .filter(|((.., n), ..)| n_found < *n);
    let is_prepared = prepared.is_some();
    let (matching, weights, float, graph) = match &prepared {
        Some(((matching, weights, _), model, run)) => (matching, weights, model, run.graph()),
        None => (&matching, &weights, float, original.graph()),
    };
    if matching.pairs.is_empty() {
        return Err(Error::NothingMatches);
    }

    let n_threads = options.n_threads.clamp(1, names.len());
    let share = options.max_bytes.map(|n| n / n_threads);
    let comparer = Comparer::new(
        interpreter("float", float, share)?,
        interpreter("quantized", quantized, share)?,
        graph,
        &view,
        matching,
        weights,
    );
    let totals = comparer.run(samples, &names, n_threads, options)?;
    Ok(comparer.rows(&totals, names.len(), is_prepared))
}

type Matches = (Matching, Vec<WeightPair>, usize);

fn matches(graph: &Graph, view: &View<'_>) -> Matches {
    let matching = Matching::new(graph, view);
    let weights = match_weights(graph, view, &matching);
    let n = matching.pairs.len() + weights.len();
    (matching, weights, n)
}

/// A pair, and what is looked at.
struct Watched {
    pair: Pair,
    /// The value of the quantized model that is compared.
    quantized: ValueId,
    /// How it is read, if it is integers.
    decode: Option<Grid>,
    /// How floats become integers there, and how those are read.
    grids: Option<(Grid, Grid)>,
    /// What makes it, where that is not the same in both models.
    unit: Option<Unit>,
    /// What it is if it is an output.
    output: Option<Scores>,
}

struct Comparer<'a> {
    float: Interpreter,
    quantized: Interpreter,
    graph: &'a Graph,
    view: &'a View<'a>,
    matching: &'a Matching,
    weights: &'a [WeightPair],
    watched: Vec<Watched>,
    /// By value of the quantized model.
    by_quantized: HashMap<ValueId, Vec<usize>>,
    /// Values of the float model that are kept while a sample is worked on.
    needed: HashSet<ValueId>,
}

/// The sums over one pair.
#[derive(Clone, Debug, Default)]
struct PairSums {
    accumulated: TensorSums,
    own: Option<TensorSums>,
    rounding: Option<TensorSums>,
    usage: Usage,
    profile: Profile,
    output: Option<OutputSums>,
}

impl PairSums {
    fn merge(&mut self, later: &Self) {
        fn both(a: &mut Option<TensorSums>, b: &Option<TensorSums>) {
            if let Some(b) = b {
                a.get_or_insert_default().merge(b);
            }
        }
        self.accumulated.merge(&later.accumulated);
        both(&mut self.own, &later.own);
        both(&mut self.rounding, &later.rounding);
        self.usage.merge(&later.usage);
        self.profile.merge(&later.profile);
        if let Some(output) = &later.output {
            self.output.get_or_insert_default().merge(output);
        }
    }
}

/// Sums in the order of the samples, whichever is done first.
struct Ordered {
    next: usize,
    waiting: BTreeMap<usize, Vec<PairSums>>,
    totals: Vec<PairSums>,
    failed: Option<(usize, Error)>,
}

impl<'a> Comparer<'a> {
    fn new(
        float: Interpreter,
        quantized: Interpreter,
        graph: &'a Graph,
        view: &'a View<'a>,
        matching: &'a Matching,
        weights: &'a [WeightPair],
    ) -> Self {
        let links = Links::new(graph);
        let matched: HashSet<ValueId> = matching.pairs.iter().map(|pair| pair.float).collect();
        let changed: HashMap<&str, &WeightPair> = weights
            .iter()
            .filter(|w| w.sums().squared != 0.0)
            .map(|w| (w.name.as_str(), w))
            .collect();
        let (mut replaced, mut dynamic) = (BTreeMap::new(), Vec::new());
        for &(i, j) in &matching.nodes {
            let (node, other) = (&graph.nodes[i], &view.graph.nodes[j]);
            let form = float_form(other);
            for (k, id) in node.inputs.iter().enumerate() {
                let Some(id) = *id else { continue };
                if let Some(weight) = changed.get(graph.value_name(id)) {
                    replaced.insert((i, k), weight.dequantized.clone());
                }
                let operand = form.operands.get(k).and_then(|[value, ..]| other.input((*value)?));
                let is_dynamic = operand.is_some_and(|id| {
                    view.logical(id).is_some_and(|at| {
                        let logical = &view.logicals[at];
                        logical.is_dynamic && logical.pre != Some(id)
                    })
                });
                if is_dynamic || (other.op_type == "DynamicQuantizeMatMul" && k == 0) {
                    dynamic.push((i, k));
                }
            }
        }
        let mut watched = Vec::new();
        for &pair in &matching.pairs {
            let logical = &view.logicals[pair.logical];
            let is_after = pair.point == Point::After;
            let grids = logical
                .quantize
                .clone()
                .filter(|_| is_after && logical.codes.is_some() && !logical.is_dynamic)
                .map(|to| {
                    let from = logical.dequantize.clone().unwrap_or_else(|| to.clone());
                    (to, from)
                });
            let codes =
                logical.codes.filter(|_| !logical.is_dynamic).zip(logical.dequantize.clone());
            let (value, decode) = match (is_after, logical.post, codes, logical.pre) {
                (false, _, _, Some(pre)) => (pre, None),
                (true, Some(post), ..) => (post, None),
                (true, None, Some((codes, grid)), _) => (codes, Some(grid)),
                (true, None, None, Some(pre)) => (pre, None),
                _ => continue,
            };
            let unit = Unit::new(
                graph,
                &links,
                pair.float,
                &|id| matched.contains(&id),
                &replaced,
                &dynamic,
            );
            let output =
                graph.outputs.contains(&pair.float).then(|| scores(graph, &links, pair.float));
            watched.push(Watched { pair, quantized: value, decode, grids, unit, output });
        }
        let mut by_quantized: HashMap<ValueId, Vec<usize>> = HashMap::new();
        let mut needed: HashSet<ValueId> = HashSet::new();
        for (i, w) in watched.iter().enumerate() {
            by_quantized.entry(w.quantized).or_default().push(i);
            needed.insert(w.pair.float);
            needed.extend(w.unit.iter().flat_map(|unit| unit.inputs.iter().copied()));
        }
        Self { float, quantized, graph, view, matching, weights, watched, by_quantized, needed }
    }

    fn run(
        &self,
        samples: &dyn Samples,
        names: &[String],
        n_threads: usize,
        options: &Options<'_>,
    ) -> Result<Vec<PairSums>, Error> {
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let stop = AtomicBool::new(false);
        let ordered = Mutex::new(Ordered {
            next: 0,
            waiting: BTreeMap::new(),
            totals: vec![PairSums::default(); self.watched.len()],
            failed: None,
        });
        let turned = Condvar::new();
        const LOCKED: &str = "no panic while the lock is held";
        let worker = || {
            let pool = Pool::default();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let is_over =
                    || stop.load(Ordering::Relaxed) || options.interrupted.load(Ordering::Relaxed);
                // Sums that wait for their turn take memory: nobody runs far ahead.
                let mut state = ordered.lock().expect(LOCKED);
                while state.next + 2 * n_threads < i && !is_over() {
                    let wait = std::time::Duration::from_millis(100);
                    state = turned.wait_timeout(state, wait).expect(LOCKED).0;
                }
                drop(state);
                if names.len() <= i || is_over() {
                    return;
                }
                let result = samples
                    .sample(i)
                    .map_err(|source| Error::Sample { sample: names[i].clone(), source })
                    .and_then(|sample| self.measure(sample, &names[i], &pool));
                let mut state = ordered.lock().expect(LOCKED);
                match result {
                    Ok(sums) => drop(state.waiting.insert(i, sums)),
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        if state.failed.as_ref().is_none_or(|(at, _)| i < *at) {
                            state.failed = Some((i, error));
                        }
                    }
                }
                loop {
                    let at = state.next;
                    let Some(sums) = state.waiting.remove(&at) else { break };
                    for (total, sums) in state.totals.iter_mut().zip(&sums) {
                        total.merge(sums);
                    }
                    state.next += 1;
                }
                turned.notify_all();
                drop(state);
                (options.progress)(done.fetch_add(1, Ordering::Relaxed) + 1);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..n_threads {
                scope.spawn(|| match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
                    Ok(pool) => pool.install(worker),
                    Err(_) => worker(),
                });
            }
        });
        if options.interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let state = ordered.into_inner().expect(LOCKED);
        match state.failed {
            Some((_, error)) => Err(error),
            None => Ok(state.totals),
        }
    }

    fn measure(&self, sample: Sample, name: &str, pool: &Pool) -> Result<Vec<PairSums>, Error> {
        let failed = |which| {
            let sample = name.to_owned();
            move |source| Error::Run { which, sample, source }
        };
        let inputs = self.quantized_inputs(&sample.inputs);
        let mut values: HashMap<ValueId, Tensor> = HashMap::new();
        self.float
            .run_observed(sample.inputs, &mut |id, _, tensor| {
                if self.needed.contains(&id) {
                    values.insert(id, tensor.clone());
                }
            })
            .map_err(failed("float"))?;
        let mut all = vec![PairSums::default(); self.watched.len()];
        self.quantized
            .run_observed(inputs, &mut |id, _, tensor| {
                for &i in self.by_quantized.get(&id).into_iter().flatten() {
                    if let Some(reference) = values.get(&self.watched[i].pair.float) {
                        self.watched[i].accumulate(reference, tensor, &mut all[i]);
                    }
                }
            })
            .map_err(failed("quantized"))?;
        for (watched, sums) in self.watched.iter().zip(&mut all) {
            let Some(tensor) = values.get(&watched.pair.float) else { continue };
            let Some(reference) = as_f32(tensor) else { continue };
            let channels = channels_of(tensor.dims());
            sums.profile = Profile::of(&reference, channels);
            if let Some((to, from)) = &watched.grids {
                let out = rounded(&reference, tensor.dims(), to, from, &mut sums.usage);
                sums.rounding = out.map(|out| TensorSums::of(&reference, &out, channels));
            }
            sums.own = match &watched.unit {
                None => sums.rounding.clone(),
                Some(unit) => {
                    let made = unit
                        .run(self.graph, self.float.opset_imports(), &values, pool)
                        .map_err(|(i, source)| Error::Node {
                            node: self.graph.label(&self.graph.nodes[i]).to_owned(),
                            source,
                        })?;
                    let out = as_f32(&made).filter(|out| out.len() == reference.len());
                    let out = out.and_then(|out| match &watched.grids {
                        Some((to, from)) => {
                            rounded(&out, made.dims(), to, from, &mut Usage::default())
                        }
                        None => Some(out.into_owned()),
                    });
                    out.map(|out| TensorSums::of(&reference, &out, channels))
                }
            };
        }
        Ok(all)
    }

    /// The same inputs for the quantized model: by name, or by place where names differ; integers where it takes them.
    fn quantized_inputs(&self, inputs: &[(String, Tensor)]) -> Named {
        let ports = self.quantized.inputs();
        let known = |name: &str| ports.iter().any(|port| port.name == name);
        let float_names: Vec<&str> =
            self.graph.required_inputs().map(|id| self.graph.value_name(id)).collect();
        inputs
            .iter()
            .map(|(name, tensor)| {
                let place = float_names.iter().position(|n| n == name);
                let other = place.and_then(|i| ports.iter().filter(|p| !p.has_default).nth(i));
                let name = match other {
                    Some(port) if !known(name) => port.name.clone(),
                    _ => name.clone(),
                };
                let id = self.view.graph.find(&name);
                let grid = id
                    .filter(|&id| {
                        let elem = self.view.graph.value(id).ty.as_ref().and_then(|t| t.elem());
                        tensor.dtype() == DataType::Float && elem != Some(DataType::Float)
                    })
                    .and_then(|id| self.view.logicals[self.view.logical(id)?].quantize.as_ref());
                let codes = grid.and_then(|grid| to_codes(tensor, grid));
                (name, codes.unwrap_or_else(|| tensor.clone()))
            })
            .collect()
    }

    fn rows(&self, totals: &[PairSums], n_samples: usize, is_prepared: bool) -> Comparison {
        let graph = self.graph;
        let links = Links::new(graph);
        let label = |i: usize| graph.label(&graph.nodes[i]).to_owned();
        let mut unmatched: Vec<Unmatched> = Vec::new();
        let missing = |id: ValueId, reason: &str| Unmatched {
            name: graph.value_name(id).to_owned(),
            reason: reason.to_owned(),
        };
        for &id in &self.matching.missing {
            unmatched.push(missing(id, "the quantized model has no such value"));
        }

        let mut rows: Vec<(f64, TensorRow)> = Vec::new();
        let mut outputs = Vec::new();
        let mut of_weights: BTreeMap<usize, Vec<(String, Vec<Advice>)>> = BTreeMap::new();
        let (mut n_narrow, mut n_pairs) = (0, 0);
        for weight in self.weights.iter().filter(|w| w.codes.is_some()) {
            let (i, k) = weight.of;
            let node = &graph.nodes[i];
            let channels =
                Channels::new(weight.float.dims(), weight_axis(node, k, weight.float.dims().len()));
            let (a, b) = weight.slices();
            let sums = TensorSums::of(&a, &b, channels);
            let mut found = advice::of_weight(weight, channels, &sums);
            match advice::saturation(weight, channels) {
                Some((32, n)) => found.push(advice::wide_sums(n)),
                Some((_, n)) => {
                    n_narrow += 1;
                    n_pairs += n;
                }
                None => {}
            }
            of_weights.entry(i).or_default().push((weight.name.clone(), found.clone()));
            let profile = Profile::of(&a, channels);
            let grid = weight.grid.as_ref();
            rows.push((
                sums.worst_db(),
                TensorRow {
                    name: weight.name.clone(),
                    kind: if weight.float.dims().len() == 1 { Kind::Bias } else { Kind::Weight },
                    rank: 0,
                    node: label(i),
                    op_type: node.op_type.clone(),
                    quantized_name: weight.quantized_name.clone(),
                    matched_by: crate::matching::By::Position,
                    point: Point::After,
                    dtype: weight.codes.as_ref().map(|c| c.dtype().name().to_owned()),
                    sqnr_db: sums.total.sqnr_db(),
                    own_sqnr_db: Some(sums.total.sqnr_db()),
                    rounding_sqnr_db: Some(sums.total.sqnr_db()),
                    channel_sqnr_db: Some(sums.channel_sqnr_db()),
                    mse: sums.total.mse(),
                    mae: sums.total.mae(),
                    max_error: sums.total.max_abs,
                    cosine: sums.total.cosine(),
                    clipped: clipped_share(weight, &a),
                    codes_used: weight.codes_used(),
                    min_max: profile.min_max,
                    range: grid.and_then(range_of),
                    scale: grid.and_then(scales_of),
                    advice: found,
                    order: i,
                },
            ));
        }

        for (watched, sums) in self.watched.iter().zip(totals) {
            let id = watched.pair.float;
            if sums.accumulated.total.n == 0 {
                unmatched.push(missing(id, "its sizes or types differ in the two models"));
                continue;
            }
            let total = &sums.accumulated.total;
            let producer = links.producer(id);
            let node = producer.map_or_else(String::new, label);
            if let Some(output) = &sums.output {
                outputs.push((
                    graph.outputs.iter().position(|&o| o == id),
                    OutputRow {
                        name: graph.value_name(id).to_owned(),
                        sqnr_db: total.sqnr_db(),
                        mse: total.mse(),
                        mae: total.mae(),
                        max_error: total.max_abs,
                        cosine: total.cosine(),
                        kl: output.kl(),
                        agreement: output.agreement(),
                        top5_agreement: output.top5(),
                    },
                ));
            }
            // What neither rounds nor computes otherwise only passes on: it is no place where error is born.
            let grids = watched.grids.as_ref();
            let own = sums.own.as_ref();
            let mut found = advice::of_activation(&Activation {
                node: &node,
                own,
                accumulated: &sums.accumulated,
                rounding: sums.rounding.as_ref(),
                clipped: sums.usage.clipped(),
                profile: &sums.profile,
                grids: grids.map(|(to, from)| (to, from)),
            });
            for i in watched.unit.iter().flat_map(|unit| &unit.nodes) {
                for (weight, list) in of_weights.get(i).into_iter().flatten() {
                    found.extend(list.iter().map(|a| advice::through(weight, a)));
                }
            }
            let n_all = grids.map(|(to, _)| to.range.n_steps() as f64 + 1.0);
            rows.push((
                own.map_or(f64::INFINITY, TensorSums::worst_db),
                TensorRow {
                    name: graph.value_name(id).to_owned(),
                    kind: Kind::Activation,
                    rank: 0,
                    op_type: producer.map_or_else(String::new, |i| graph.nodes[i].op_type.clone()),
                    node,
                    quantized_name: self.view.graph.value_name(watched.quantized).to_owned(),
                    matched_by: watched.pair.by,
                    point: watched.pair.point,
                    dtype: grids.map(|(to, _)| to.dtype.name().to_owned()),
                    sqnr_db: total.sqnr_db(),
                    own_sqnr_db: own.map(|s| s.total.sqnr_db()),
                    rounding_sqnr_db: sums.rounding.as_ref().map(|s| s.total.sqnr_db()),
                    channel_sqnr_db: own.map(TensorSums::channel_sqnr_db),
                    mse: total.mse(),
                    mae: total.mae(),
                    max_error: total.max_abs,
                    cosine: total.cosine(),
                    clipped: grids.map(|_| sums.usage.clipped()),
                    codes_used: n_all.map(|n| f64::from(sums.usage.n_codes()) / n),
                    min_max: sums.profile.min_max,
                    range: grids.and_then(|(to, _)| range_of(to)),
                    scale: grids.and_then(|(to, _)| scales_of(to)),
                    advice: found,
                    order: producer.map_or(0, |i| i + 1),
                },
            ));
        }
        // Worst own error first; of those without any, the most that accumulated; then as the graph has them.
        rows.sort_by(|(a, x), (b, y)| {
            let accumulated = |row: &TensorRow| {
                if row.sqnr_db.is_nan() { f64::NEG_INFINITY } else { row.sqnr_db }
            };
            a.total_cmp(b)
                .then(accumulated(x).total_cmp(&accumulated(y)))
                .then(x.order.cmp(&y.order))
                .then_with(|| x.name.cmp(&y.name))
        });
        let tensors: Vec<TensorRow> = rows
            .into_iter()
            .enumerate()
            .map(|(i, (_, row))| TensorRow { rank: i + 1, ..row })
            .collect();
        outputs.sort_by_key(|(at, _)| *at);
        let remarks = (n_narrow != 0).then(|| advice::narrow_sums(n_narrow, n_pairs));
        Comparison {
            samples: n_samples,
            prepared: is_prepared,
            tensors,
            outputs: outputs.into_iter().map(|(_, row)| row).collect(),
            unmatched,
            remarks: remarks.into_iter().collect(),
        }
    }
}

impl Watched {
    fn accumulate(&self, reference: &Tensor, tensor: &Tensor, sums: &mut PairSums) {
        let decoded = match &self.decode {
            Some(grid) => match dequantized(tensor, grid) {
                Some(decoded) => decoded,
                None => return,
            },
            None => tensor.clone(),
        };
        let (Some(a), Some(b)) = (as_f32(reference), as_f32(&decoded)) else { return };
        if a.len() != b.len() {
            return;
        }
        sums.accumulated = TensorSums::of(&a, &b, channels_of(reference.dims()));
        sums.output = self.output.map(|scores| OutputSums::of(&a, &b, reference.dims(), scores));
    }
}

/// Channels of an activation: the second dimension of feature maps, the last one of rows.
fn channels_of(dims: &[usize]) -> Channels {
    let axis = match dims.len() {
        0 | 1 => None,
        2 | 3 => Some(dims.len() - 1),
        _ => Some(1),
    };
    Channels::new(dims, axis)
}

/// The dimension of a weight along which an operator's outputs lie.
pub fn weight_axis(node: &Node, k: usize, rank: usize) -> Option<usize> {
    if rank < 2 {
        return None;
    }
    match (node.op_type.as_str(), k) {
        ("Conv" | "Gather", _) => Some(0),
        ("ConvTranspose", _) => Some(1),
        ("Gemm", 1) if node.int("transB").unwrap_or(0) != 0 => Some(0),
        _ => Some(rank - 1),
    }
}

/// What an output is, by the operator that makes it, looking through those that only move values.
pub(crate) fn scores(graph: &Graph, links: &Links, output: ValueId) -> Scores {
    let mut id = output;
    for _ in 0..8 {
        let Some(node) = links.producer(id).map(|i| &graph.nodes[i]) else { break };
        match node.op_type.as_str() {
            "Softmax" => return Scores::Probabilities,
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Identity" | "Cast" => {}
            _ => break,
        }
        let Some(before) = node.input(0) else { break };
        id = before;
    }
    Scores::Logits
}

fn to_codes(tensor: &Tensor, grid: &Grid) -> Option<Tensor> {
    fn all<T: Code + midtread_graph::Element>(
        values: &[f32],
        dims: &[usize],
        grid: &Grid,
        zero: T,
    ) -> Option<Tensor> {
        let mut codes = vec![zero; values.len()];
        quantize(values, &mut codes, grid.layout(dims)?, &grid.params, grid.range);
        Tensor::from_slice(dims.to_vec(), &codes).ok()
    }
    let values = as_f32(tensor)?;
    match grid.dtype {
        DataType::Uint8 => all(&values, tensor.dims(), grid, 0_u8),
        DataType::Int8 => all(&values, tensor.dims(), grid, 0_i8),
        DataType::Uint16 => all(&values, tensor.dims(), grid, 0_u16),
        DataType::Int16 => all(&values, tensor.dims(), grid, 0_i16),
        _ => None,
    }
}

/// Share of a constant's floats outside of its range.
fn clipped_share(weight: &WeightPair, values: &[f32]) -> Option<f64> {
    let grid = weight.grid.as_ref()?;
    let mut usage = Usage::default();
    rounded(values, weight.float.dims(), grid, grid, &mut usage)?;
    Some(usage.clipped())
}

/// The smallest and largest number that any of the pairs represents.
fn range_of(grid: &Grid) -> Option<(f32, f32)> {
    grid.params.iter().map(|p| p.real_range(grid.range)).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

fn scales_of(grid: &Grid) -> Option<(f32, f32)> {
    grid.params.iter().map(|p| (p.scale(), p.scale())).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}
