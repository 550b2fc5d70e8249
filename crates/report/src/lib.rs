//! What quantization did, as data, and that data as one self-contained HTML page.
//!
//! The page is a view of [`Report`]: it computes nothing, loads nothing from a network, and holds the same data as
//! JSON. Reading order: the types below, [`html`] (the page), [`comparison`] (the page of
//! two models compared), [`svg`] (its pictures).
#![forbid(unsafe_code)]

pub mod comparison;
pub mod html;
pub mod svg;

use serde::Serialize;

/// A model before and after.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What the page is called.
    pub title: String,
    /// A sentence under the title.
    pub subtitle: String,
    /// The variants side by side, the float model first.
    pub variants: Vec<Variant>,
    /// What each step did, in order.
    pub steps: Vec<Step>,
    /// Every node and what became of it, in graph order.
    pub nodes: Vec<NodeRow>,
    /// Every quantized tensor, by name.
    pub tensors: Vec<TensorRow>,
    /// Right and wrong answers by class, when labels were given: class name, float top-1, quantized top-1.
    pub classes: Vec<ClassRow>,
}

/// One model's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Variant {
    /// `float32`, `int8`.
    pub name: String,
    /// Size of the file.
    pub bytes: u64,
    /// Share of right answers, 0 to 1.
    pub top1: Option<f64>,
    /// Share of samples on which it agrees with the float model, 0 to 1.
    pub agreement: Option<f64>,
    /// Median time of one run of one sample.
    pub latency_ms: Option<f64>,
    /// What ran it.
    pub runtime: String,
}

/// One step of the work.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// `prepare`, `calibrate`.
    pub name: String,
    /// What it did, in a sentence.
    pub did: String,
    /// How long it took.
    pub seconds: f64,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeRow {
    /// What people call it.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// `quantized`, `absorbed`, `float`, `structural`.
    pub status: String,
    /// Why.
    pub reason: String,
}

/// One tensor.
#[derive(Clone, Debug, Serialize)]
pub struct TensorRow {
    /// Its name.
    pub tensor: String,
    /// `uint8`, `int8 per channel`.
    pub dtype: String,
    /// The scale, or the smallest and largest of several.
    pub scale: String,
    /// The zero point.
    pub zero_point: String,
    /// Where the parameters come from.
    pub why: String,
    /// Heights of a histogram of the values over the range, 0 to 1, when one was collected.
    pub histogram: Vec<f32>,
}

/// One class.
#[derive(Clone, Debug, Serialize)]
pub struct ClassRow {
    /// Its name.
    pub class: String,
    /// Share of right answers of each variant, 0 to 1.
    pub top1: Vec<f64>,
}
