//! What a quantization is told as: figures of a model, sentences for its steps, and the report of both.

use midtread_num::QParams;
use midtread_quant::{
    calibrate::{TensorStats, histogram::bins},
    plan::{Params, TensorPlan},
};
use midtread_report::{ClassRow, NodeRow, Report, Step, TensorRow, Variant};

use crate::{
    evaluate::{Prediction, score},
    quantize::Quantized,
    runtime::Runtime,
};

/// One model, scored.
#[derive(Clone, Debug)]
pub struct Figures {
    /// `float32`, `int8`.
    pub name: String,
    /// Size of its file.
    pub bytes: u64,
    /// Share of right answers, 0 to 1.
    pub top1: f64,
    /// Share of answers that are the float model's.
    pub agreement: Option<f64>,
    /// Median time of one sample on one thread.
    pub latency_ms: f64,
    /// What that was measured in.
    pub runtime: Runtime,
    /// Share of right answers by class.
    pub by_class: Vec<f64>,
}

impl Figures {
    /// Scores a model's answers: `right` are the right classes of each sample, the first of which counts as its class.
    pub fn new(
        name: &str,
        bytes: u64,
        answers: &[Prediction],
        right: &[Vec<usize>],
        float: Option<&[Prediction]>,
        (latency_ms, runtime): (f64, Runtime),
    ) -> Self {
        let labels = |i: usize| right[i].clone();
        let scored = score(answers, Some(&labels), float);
        let n_classes = right.iter().flatten().max().map_or(0, |&c| c + 1);
        let mut counts = vec![(0_u32, 0_u32); n_classes];
        for (answer, right) in answers.iter().zip(right) {
            if let (Some(&class), Some(top)) = (right.first(), answer.top.first()) {
                counts[class].0 += u32::from(right.contains(top));
                counts[class].1 += 1;
            }
        }
        let share =
            |&(hits, n): &(u32, u32)| if n == 0 { 0.0 } else { f64::from(hits) / f64::from(n) };
        Self {
            name: name.to_owned(),
            bytes,
            top1: scored.top1.unwrap_or(0.0),
            agreement: scored.agreement,
            latency_ms,
            runtime,
            by_class: counts.iter().map(share).collect(),
        }
    }
}

/// What each step did, in sentences.
pub fn steps(result: &Quantized, n_samples: usize) -> Vec<Step> {
    let counts = result.plan.counts();
    let did = |stage: &str| match stage {
        "prepare" => {
            let changed: Vec<String> = result
                .prepare_report
                .passes
                .iter()
                .filter(|pass| !pass.changes.is_empty())
                .map(|pass| format!("{} {}", pass.name, pass.changes.len()))
                .collect();
            let what = if changed.is_empty() {
                "nothing to change".to_owned()
            } else {
                changed.join(", ")
            };
            format!("{} nodes left ({what})", result.prepared.graph.nodes.len())
        }
        "calibrate" => {
            let n_tensors = result.stats.as_ref().map_or(0, |stats| stats.tensors().len());
            format!("measured {n_tensors} tensors over {n_samples} samples")
        }
        "plan" => format!(
            "{} nodes quantized, {} absorbed into others, {} kept in float",
            counts.quantized, counts.absorbed, counts.float
        ),
        _ => format!("wrote {} nodes", result.model.graph.nodes.len()),
    };
    let step =
        |&(name, seconds): &(&str, f64)| Step { name: name.to_owned(), did: did(name), seconds };
    result.seconds.iter().map(step).collect()
}

/// The report of a quantization whose models were scored, the float model first.
pub fn report(
    result: &Quantized,
    steps: Vec<Step>,
    figures: [&Figures; 2],
    classes: &[String],
) -> Report {
    let variant = |f: &&Figures| Variant {
        name: f.name.clone(),
        bytes: f.bytes,
        top1: Some(f.top1),
        agreement: f.agreement,
        latency_ms: Some(f.latency_ms),
        runtime: format!("midtread {}", f.runtime.name()),
    };
    let node = |n: &midtread_quant::NodePlan| NodeRow {
        node: n.node.clone(),
        op_type: n.op_type.clone(),
        status: n.decision.status().to_owned(),
        reason: n.decision.reason().unwrap_or_default(),
    };
    let tensor = |(name, plan): (&String, &TensorPlan)| {
        let stats = result.stats.as_ref().and_then(|stats| stats.tensors().get(name));
        tensor_row(name, plan, stats)
    };
    let class = |(i, name): (usize, &String)| ClassRow {
        class: name.clone(),
        top1: figures.iter().map(|f| f.by_class.get(i).copied().unwrap_or(0.0)).collect(),
    };
    Report {
        title: "fashion_mobilenet: float32 and int8".to_owned(),
        subtitle: "A MobileNetV2-like network on the 10,000 test images of Fashion-MNIST"
            .to_owned(),
        variants: figures.iter().map(variant).collect(),
        steps,
        nodes: result.plan.nodes.iter().map(node).collect(),
        tensors: result.plan.tensors.iter().map(tensor).collect(),
        classes: classes.iter().enumerate().map(class).collect(),
    }
}

fn tensor_row(name: &str, plan: &TensorPlan, stats: Option<&TensorStats>) -> TensorRow {
    let params = plan.params.as_slice();
    let form = match &plan.params {
        Params::PerTensor(_) => "",
        Params::PerAxis { .. } => " per channel",
        Params::Blocked { .. } => " blocked",
    };
    let span = |text: &dyn Fn(&QParams) -> String, lo: &QParams, hi: &QParams| {
        let (lo, hi) = (text(lo), text(hi));
        if lo == hi { lo } else { format!("{lo} … {hi}") }
    };
    let by_scale = |a: &&QParams, b: &&QParams| a.scale().total_cmp(&b.scale());
    let by_zero = |p: &&QParams| p.zero_point();
    let scale = match (params.iter().min_by(by_scale), params.iter().max_by(by_scale)) {
        (Some(lo), Some(hi)) => span(&|p| format!("{:.3e}", p.scale()), lo, hi),
        _ => String::new(),
    };
    let zero_point = match (params.iter().min_by_key(by_zero), params.iter().max_by_key(by_zero)) {
        (Some(lo), Some(hi)) => span(&|p| p.zero_point().to_string(), lo, hi),
        _ => String::new(),
    };
    TensorRow {
        tensor: name.to_owned(),
        dtype: format!("{}{form}", plan.int_type.name()),
        scale,
        zero_point,
        why: plan.why.to_string(),
        histogram: stats.map(heights).unwrap_or_default(),
    }
}

/// 32 heights over the tensor's range; roots of the counts, so that tails can be seen. Zeros are left out: they are
/// half of a Relu's output.
fn heights(stats: &TensorStats) -> Vec<f32> {
    const N: usize = 32;
    let Some((min, max)) = stats.min_max() else { return Vec::new() };
    let (min, max) = (f64::from(min), f64::from(max));
    if stats.counts().total() == 0 || max <= min {
        return Vec::new();
    }
    let mut counts = [0.0_f64; N];
    for bin in bins(stats.counts()).iter().filter(|bin| bin.lo != bin.hi) {
        let at = ((bin.lo + bin.hi) / 2.0 - min) / (max - min) * N as f64;
        counts[(at.max(0.0) as usize).min(N - 1)] += bin.n as f64;
    }
    let most = counts.iter().copied().fold(1.0, f64::max);
    counts.iter().map(|n| (n / most).sqrt() as f32).collect()
}
