//! What a quantization is told as: figures of a model, sentences for its steps, and the report of both.

use midtread_compare::Comparison;
use midtread_report::{
    Page,
    page::{ClassRow, Latency, Step, Variant},
};

use crate::{
    evaluate::{Difference, Prediction, score},
    latency,
    page::Sources,
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
    /// Time of one sample on one thread.
    pub latency: latency::Latency,
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
        (latency, runtime): (latency::Latency, Runtime),
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
            latency,
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
    let step = |&(name, seconds): &(&str, f64)| Step {
        name: name.to_owned(),
        did: did(name),
        seconds: Some(seconds),
    };
    result.seconds.iter().map(step).collect()
}

/// The page of a quantization whose models were scored, the float model first.
pub fn page(
    result: &Quantized,
    comparison: &Comparison,
    steps: Vec<Step>,
    figures: [&Figures; 2],
    difference: Option<Difference>,
    classes: &[String],
) -> Page {
    let variant = |f: &&Figures| Variant {
        name: f.name.clone(),
        bytes: f.bytes,
        top1: Some(f.top1),
        agreement: f.agreement,
        latencies: vec![Latency {
            runtime: f.runtime.name().to_owned(),
            threads: 1,
            median_ms: f.latency.median,
            min_ms: f.latency.min,
        }],
        ..Variant::default()
    };
    let class = |(i, name): (usize, &String)| ClassRow {
        class: name.clone(),
        top1: figures.iter().map(|f| f.by_class.get(i).copied().unwrap_or(0.0)).collect(),
    };
    let sources = Sources {
        model: &result.prepared,
        plan: Some(&result.plan),
        stats: result.stats.as_ref(),
        comparison: Some(comparison),
        sensitivity: None,
    };
    let subtitle = "A MobileNetV2-like network on the 10,000 test images of Fashion-MNIST";
    Page {
        variants: figures.iter().map(variant).collect(),
        difference: difference.map(|d| serde_json::to_value(d).expect("plain data")),
        steps,
        classes: classes.iter().enumerate().map(class).collect(),
        ..crate::page::page("fashion_mobilenet: float32 and int8", subtitle, &sources)
    }
}
