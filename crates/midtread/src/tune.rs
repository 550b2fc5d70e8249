//! Tuning: one calibration, many ways of quantizing from it, each judged; the cheapest that keeps the quality is taken.
//!
//! Calibration keeps a histogram of every tensor, so that every calibrator and every form of plan can be tried without
//! another pass over its data. The search is greedy, in stages: how ranges are chosen; which form scales have; which
//! layers, the most sensitive first, stay in float; and, if that is asked for, which layers, the least sensitive first,
//! bear weights of four bits. Each stage goes on from the best of those before it. What cannot be planned for the
//! target is kept with the reason.
//!
//! The way that is taken was chosen by the samples it was judged by, so that it looks a little better on them than it
//! is: an honest figure is that of `evaluate` on others.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use midtread_compare::Sensitivity;
use midtread_graph::Model;
use midtread_num::Symmetry;
use midtread_quant::{
    Format, Plan, PlanOptions, Scheme, Target, apply,
    calibrate::{CALIBRATORS, Calibrator},
    plan::{
        CachedRanges, Decision, IntType, Operand, Pattern, Ranges, WeightGranularity, plan_ranges,
    },
};
use serde::Serialize;

use crate::{error::Error, judge::Quality, page::macs, quantize::Measured};

/// What is to be small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cost {
    /// The file.
    #[default]
    Size,
    /// The time of one sample.
    Latency,
}

impl Cost {
    /// Of a trial: bytes or milliseconds.
    pub fn of(self, trial: &Trial) -> f64 {
        match self {
            Self::Size => trial.bytes as f64,
            Self::Latency => trial.latency_ms,
        }
    }
}

/// What is tuned, and by whom it is judged.
pub struct Task<'a> {
    /// The float model, prepared, with histograms of its tensors if the scheme is static.
    pub measured: &'a Measured,
    /// The device.
    pub target: &'a Target,
    /// The form of the result.
    pub format: Format,
    /// Where the search begins: what the user asked for.
    pub plan: &'a PlanOptions,
    /// The most quality that may be lost ([`Quality::loss`]).
    pub max_loss: f64,
    /// What is to be small among those that lose no more.
    pub cost: Cost,
    /// Whether weights of four bits are tried.
    pub four_bit: bool,
    /// No trial is begun after this long; the first is always finished.
    pub budget: Option<Duration>,
    /// Says how good a model is.
    pub judge: &'a dyn Fn(&Model) -> Result<Quality, Error>,
    /// Says how long it takes, in milliseconds.
    pub time: &'a dyn Fn(&Model) -> Result<f64, Error>,
    /// Ranks the layers of a plan, the most sensitive first.
    pub rank: &'a dyn Fn(&PlanOptions) -> Result<Sensitivity, Error>,
    /// Called with the name of what is tried next.
    pub progress: &'a dyn Fn(&str),
    /// Looked at between trials.
    pub interrupted: &'a AtomicBool,
}

/// One way of quantizing that was tried.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// `mse, 2 in float`: how ranges are chosen, the form of scales, and how many layers are otherwise.
    pub name: String,
    /// Size of the file.
    pub bytes: u64,
    /// Time of one sample, in milliseconds.
    pub latency_ms: f64,
    /// How good it is.
    pub quality: Quality,
    /// Share of the multiplications that are done on integers, 0 to 1; `None` if there are none.
    pub share_quantized: Option<f64>,
    /// Layers that are in float because the search left them there.
    pub n_float: usize,
    /// Layers whose weights have four bits.
    pub n_four_bit: usize,
    /// Whether no other trial is as good in cost and in quality, and better in one.
    pub on_front: bool,
    /// Whether it loses no more than was allowed.
    pub is_within: bool,
}

/// A way that cannot be gone.
#[derive(Clone, Debug, Serialize)]
pub struct Refused {
    /// What it would have been.
    pub name: String,
    /// Why not.
    pub reason: String,
}

/// What came of the search.
pub struct Tuned {
    /// All that was tried, in that order.
    pub trials: Vec<Trial>,
    /// What could not be.
    pub refused: Vec<Refused>,
    /// Which of the trials is taken.
    pub best: usize,
    /// Its options.
    pub options: PlanOptions,
    /// Its plan.
    pub plan: Plan,
    /// The quantized model.
    pub model: Model,
    /// The layers of the best plan of eight bits, ranked, if the search came so far.
    pub sensitivity: Option<Sensitivity>,
    /// Whether the budget ended the search.
    pub is_cut_short: bool,
}

/// A way of quantizing.
#[derive(Clone)]
struct Way {
    calibrator: String,
    form: Option<&'static str>,
    n_float: usize,
    n_four_bit: usize,
    options: PlanOptions,
}

impl Way {
    fn name(&self) -> String {
        let mut parts = vec![self.calibrator.clone()];
        parts.extend(self.form.map(str::to_owned));
        let layers = |n: usize, what: &str| (n != 0).then(|| format!("{n} in {what}"));
        parts.extend(layers(self.n_float, "float"));
        parts.extend(layers(self.n_four_bit, "4 bits"));
        parts.join(", ")
    }
}

/// Why a trial gave nothing.
enum Stop {
    Failed(Error),
    OutOfTime,
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

struct Search<'a> {
    task: &'a Task<'a>,
    ranges: Option<CachedRanges<'a>>,
    start: Instant,
    tried: Vec<(Way, Trial)>,
    refused: Vec<Refused>,
    sensitivity: Option<Sensitivity>,
}

/// Searches.
///
/// # Errors
///
/// When the first way, the user's own, cannot be planned, or a model cannot be run. Later ways that cannot be planned
/// are in [`Tuned::refused`].
pub fn tune(task: &Task<'_>) -> Result<Tuned, Error> {
    let ranges = task.measured.stats.as_ref().map(|stats| CachedRanges::new(stats));
    let mut search = Search {
        task,
        ranges,
        start: Instant::now(),
        tried: Vec::new(),
        refused: Vec::new(),
        sensitivity: None,
    };
    let is_cut_short = match search.stages() {
        Ok(()) => false,
        Err(Stop::OutOfTime) => true,
        Err(Stop::Failed(error)) => return Err(error),
    };
    search.mark_front();
    let best = search.cheapest().expect("the first way was tried");
    let options = search.tried[best].0.options.clone();
    let (plan, model) = search.quantize(&options)?;
    Ok(Tuned {
        best,
        options,
        plan,
        model,
        is_cut_short,
        trials: search.tried.into_iter().map(|(_, trial)| trial).collect(),
        refused: search.refused,
        sensitivity: search.sensitivity,
    })
}

impl Search<'_> {
    fn stages(&mut self) -> Result<(), Stop> {
        let first = Way {
            calibrator: match self.task.plan.scheme {
                Scheme::Static => self.task.plan.calibrator.def.name.to_owned(),
                scheme => scheme.to_string(),
            },
            form: None,
            n_float: 0,
            n_four_bit: 0,
            options: self.task.plan.clone(),
        };
        self.attempt(first.clone())?;
        self.calibrators(&first)?;
        self.forms()?;
        self.layers_in_float()?;
        if self.task.four_bit {
            self.weights_of_four_bits()?;
        }
        Ok(())
    }

    /// How ranges are chosen.
    fn calibrators(&mut self, first: &Way) -> Result<(), Stop> {
        if self.task.plan.scheme != Scheme::Static {
            return Ok(());
        }
        // Half of them differ from `min_max` only on values that samples have once in a while.
        let others = CALIBRATORS.iter().filter(|def| {
            def.name != first.options.calibrator.def.name && def.name != "moving_average"
        });
        for def in others {
            let mut way = first.clone();
            way.options.calibrator = Calibrator::named(def.name).expect("it is in the list");
            way.calibrator = def.name.to_owned();
            self.attempt(way)?;
        }
        Ok(())
    }

    /// Which form scales have.
    fn forms(&mut self) -> Result<(), Stop> {
        let best = self.best();
        let other = |name, change: &dyn Fn(&mut PlanOptions)| {
            let mut way = Way { form: Some(name), ..best.clone() };
            change(&mut way.options);
            way
        };
        let is_symmetric = best.options.activation_symmetry == Symmetry::Symmetric;
        let mut ways = Vec::new();
        if self.task.plan.scheme == Scheme::Static && !is_symmetric {
            ways.push(other("symmetric activations", &|options| {
                options.activation_symmetry = Symmetry::Symmetric;
            }));
        }
        if best.options.weight_symmetry != Some(Symmetry::Asymmetric) {
            ways.push(other("asymmetric weights", &|options| {
                options.weight_symmetry = Some(Symmetry::Asymmetric);
            }));
        }
        if best.options.granularity == WeightGranularity::PerChannel {
            ways.push(other("weights per tensor", &|options| {
                options.granularity = WeightGranularity::PerTensor;
            }));
        }
        ways.into_iter().try_for_each(|way| self.attempt(way))
    }

    /// Which layers stay in float: twice as many each time until enough is kept, then as few of those as will do.
    fn layers_in_float(&mut self) -> Result<(), Stop> {
        let best = self.best();
        self.check()?;
        (self.task.progress)("ranking the layers");
        let ranking = (self.task.rank)(&best.options)?;
        let labels: Vec<String> = ranking.layers.iter().map(|layer| layer.node.clone()).collect();
        self.sensitivity = Some(ranking);
        let with = |n: usize| {
            let mut way = Way { n_float: n, ..best.clone() };
            let exclude = labels[..n].iter().map(|label| Pattern::Name(label.clone()));
            way.options.exclude.extend(exclude);
            way
        };
        // With one layer and two, the front shows what more quality would cost even where nothing has to be repaired.
        let (mut n, mut too_few) = (1, 0);
        let most = labels.len() / 2;
        let mut enough = None;
        while n <= most {
            let is_enough = self.attempt_within(with(n))?;
            if is_enough && 2 <= n {
                enough = Some(n);
                break;
            }
            if !is_enough {
                too_few = n;
            }
            n *= 2;
        }
        let Some(mut enough) = enough.filter(|_| too_few != 0) else { return Ok(()) };
        while too_few + 1 < enough {
            let middle = usize::midpoint(too_few, enough);
            match self.attempt_within(with(middle))? {
                true => enough = middle,
                false => too_few = middle,
            }
        }
        Ok(())
    }

    /// Which layers bear weights of four bits: as many as keep enough, found by halving.
    fn weights_of_four_bits(&mut self) -> Result<(), Stop> {
        let best = self.best();
        self.check()?;
        (self.task.progress)("ranking the layers in 4 bits");
        let mut narrow = best.options.clone();
        narrow.weight_type = IntType::I4;
        let ranking = match (self.task.rank)(&narrow) {
            Ok(ranking) => ranking,
            Err(Error::Interrupted) => return Err(Error::Interrupted.into()),
            Err(error) => {
                let reason = chain(&error);
                self.refused.push(Refused { name: "weights in 4 bits".into(), reason });
                return Ok(());
            }
        };
        let weights = self.weights(&best.options)?;
        // The least sensitive first.
        let labels: Vec<&str> = (ranking.layers.iter().rev().map(|layer| layer.node.as_str()))
            .filter(|label| weights.iter().any(|(node, _)| node == label))
            .collect();
        let with = |n: usize| {
            let mut way = Way { n_four_bit: n, ..best.clone() };
            let chosen: BTreeSet<&str> = labels[..n].iter().copied().collect();
            for (_, weight) in weights.iter().filter(|(node, _)| chosen.contains(node.as_str())) {
                let entry = way.options.overrides.tensors.entry(weight.clone());
                entry.or_default().int_type = Some(IntType::I4);
            }
            way
        };
        let (mut some, mut too_many) = (0, labels.len() + 1);
        let mut n = labels.len();
        while some < n && n < too_many {
            match self.attempt_within(with(n))? {
                true => some = n,
                false => too_many = n,
            }
            // A layer more or less of many is below what samples can tell.
            if too_many - some <= labels.len() / 16 + 1 {
                break;
            }
            n = usize::midpoint(some, too_many);
        }
        Ok(())
    }

    /// Layers and their weights.
    fn weights(&self, options: &PlanOptions) -> Result<Vec<(String, String)>, Stop> {
        let plan = self.plan(options)?;
        let graph = &self.task.measured.prepared.graph;
        let constants: BTreeSet<&str> = graph
            .values()
            .iter()
            .filter(|value| value.constant.is_some())
            .map(|value| value.name())
            .collect();
        let mut weights = Vec::new();
        for node in &plan.nodes {
            let Decision::Quantized { inputs, .. } = &node.decision else { continue };
            for input in inputs {
                let Operand::Tensor(key) = input else { continue };
                let of = plan.tensors.get(key).and_then(|tensor| tensor.of.as_deref());
                let name = of.unwrap_or(key);
                if constants.contains(name) {
                    weights.push((node.node.clone(), name.to_owned()));
                }
            }
        }
        Ok(weights)
    }

    /// The best of eight bits so far: of those that keep enough the cheapest, else the one that keeps most.
    fn best(&self) -> Way {
        self.tried[self.cheapest().expect("the first way was tried")].0.clone()
    }

    fn cheapest(&self) -> Option<usize> {
        let cost = |trial: &Trial| self.task.cost.of(trial);
        (0..self.tried.len()).min_by(|&i, &j| {
            let (a, b) = (&self.tried[i].1, &self.tried[j].1);
            // What is no number is worst.
            let value = |trial: &Trial| trial.quality.value.max(f64::NEG_INFINITY);
            let by_quality = value(b).total_cmp(&value(a));
            let by_cost = cost(a).total_cmp(&cost(b));
            b.is_within.cmp(&a.is_within).then(match a.is_within {
                // A hundredth of the cost is no reason to lose quality.
                true if 1e-2 * cost(b) < (cost(a) - cost(b)).abs() => by_cost.then(by_quality),
                _ => by_quality.then(by_cost),
            })
        })
    }

    fn check(&self) -> Result<(), Stop> {
        if self.task.interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted.into());
        }
        let is_over = self.task.budget.is_some_and(|budget| budget <= self.start.elapsed());
        if is_over && !self.tried.is_empty() { Err(Stop::OutOfTime) } else { Ok(()) }
    }

    fn plan(&self, options: &PlanOptions) -> Result<Plan, Error> {
        let ranges = self.ranges.as_ref().map(|ranges| ranges as &dyn Ranges);
        Ok(plan_ranges(&self.task.measured.prepared, ranges, self.task.target, options)?)
    }

    fn quantize(&self, options: &PlanOptions) -> Result<(Plan, Model), Error> {
        let plan = self.plan(options)?;
        let model = apply(&self.task.measured.prepared, &plan, self.task.format)?;
        Ok((plan, model))
    }

    /// Tries a way, and says whether it keeps enough.
    fn attempt_within(&mut self, way: Way) -> Result<bool, Stop> {
        let n = self.tried.len();
        self.attempt(way)?;
        Ok(self.tried.get(n).is_some_and(|(_, trial)| trial.is_within))
    }

    fn attempt(&mut self, way: Way) -> Result<(), Stop> {
        self.check()?;
        let name = way.name();
        (self.task.progress)(&name);
        let (plan, model) = match self.quantize(&way.options) {
            Ok(made) => made,
            // Nothing can be said of the user's own way but why it is none.
            Err(error) if self.tried.is_empty() => return Err(error.into()),
            Err(error) => {
                self.refused.push(Refused { name, reason: chain(&error) });
                return Ok(());
            }
        };
        let quality = (self.task.judge)(&model)?;
        let trial = Trial {
            bytes: midtread_onnx::n_bytes(&model),
            latency_ms: (self.task.time)(&model)?,
            quality,
            share_quantized: share_quantized(&self.task.measured.prepared, &plan),
            n_float: way.n_float,
            n_four_bit: way.n_four_bit,
            on_front: false,
            is_within: quality.loss <= self.task.max_loss,
            name,
        };
        self.tried.push((way, trial));
        Ok(())
    }

    fn mark_front(&mut self) {
        let of = |(_, trial): &(Way, Trial)| (self.task.cost.of(trial), trial.quality.value);
        let points: Vec<(f64, f64)> = self.tried.iter().map(of).collect();
        for (i, (_, trial)) in self.tried.iter_mut().enumerate() {
            trial.on_front = is_on_front(&points, i);
        }
    }
}

/// Whether no other point has a cost as small and a quality as high, and one of them better; of equal ones the first.
fn is_on_front(points: &[(f64, f64)], i: usize) -> bool {
    let (cost, value) = points[i];
    !points.iter().enumerate().any(|(j, &(c, v))| {
        let is_as_good = c <= cost && value <= v;
        is_as_good && (c < cost || value < v || j < i)
    })
}

fn share_quantized(model: &Model, plan: &Plan) -> Option<f64> {
    let (mut all, mut integers) = (0, 0);
    for (node, decided) in model.graph.nodes.iter().zip(&plan.nodes) {
        let n = macs(&model.graph, node).unwrap_or(0);
        all += n;
        integers += if matches!(decided.decision, Decision::Quantized { .. }) { n } else { 0 };
    }
    (all != 0).then(|| integers as f64 / all as f64)
}

/// An error and its causes in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_has_what_nothing_beats() {
        let points = [
            (10.0, 0.9),
            (10.0, 0.8),
            (5.0, 0.7),
            (12.0, 0.9),
            (6.0, 0.7),
            (10.0, 0.9),
            (13.0, 0.95),
        ];
        let front: Vec<usize> = (0..points.len()).filter(|&i| is_on_front(&points, i)).collect();
        assert_eq!(front, [0, 2, 6]);
    }
}
