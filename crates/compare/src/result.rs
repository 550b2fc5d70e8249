//! What comparing leaves behind. Figures that are infinite (no error at all) are `null` in JSON.

use serde::Serialize;

use crate::{
    advice::Advice,
    matching::{By, Point},
};

/// What a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Made while the model runs.
    Activation,
    /// A constant with as many dimensions as an operator's weights have.
    Weight,
    /// A constant with one dimension.
    Bias,
}

/// Two models compared.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Samples both were run on.
    pub samples: usize,
    /// Whether the float model was prepared first (batch normalization folded and so on), because more of the
    /// quantized model is found in it then.
    pub prepared: bool,
    /// The worst first.
    pub tensors: Vec<TensorRow>,
    /// The models' outputs, in the float model's order.
    pub outputs: Vec<OutputRow>,
    /// Values of the float model that have no counterpart, and why.
    pub unmatched: Vec<Unmatched>,
    /// What is to be said of the model as a whole.
    pub remarks: Vec<Advice>,
}

/// One tensor in both models.
#[derive(Clone, Debug, Serialize)]
pub struct TensorRow {
    /// The float model's name for it.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Position in the ranking by own error, from 1.
    pub rank: usize,
    /// The node that makes it (or takes it, if it is constant).
    pub node: String,
    /// That node's operator.
    pub op_type: String,
    /// The quantized model's name for what is compared.
    pub quantized_name: String,
    /// How the two were found to belong together.
    pub matched_by: By,
    /// In which form the quantized model's tensor is meant.
    pub point: Point,
    /// The integer type, if it is quantized: `uint8`.
    pub dtype: Option<String>,
    /// Signal to quantization noise ratio of the accumulated error, in dB.
    pub sqnr_db: f64,
    /// That of the tensor's own error; `None` where the two models do the same with it.
    pub own_sqnr_db: Option<f64>,
    /// That of rounding alone: float values quantized and dequantized. `None` where it is not quantized.
    pub rounding_sqnr_db: Option<f64>,
    /// Own error as if every channel were equally loud ([`crate::sums::TensorSums::channel_sqnr_db`]).
    pub channel_sqnr_db: Option<f64>,
    /// Mean of the squares of the accumulated error.
    pub mse: f64,
    /// Mean of its absolute values.
    pub mae: f64,
    /// The largest of them.
    pub max_error: f64,
    /// Cosine between the two tensors.
    pub cosine: f64,
    /// Share of the float model's values that fall outside of the range of the integers.
    pub clipped: Option<f64>,
    /// Share of the integers of the type that occur.
    pub codes_used: Option<f64>,
    /// The smallest and largest value of the float model.
    pub min_max: Option<(f32, f32)>,
    /// The smallest and largest value that the integers stand for.
    pub range: Option<(f32, f32)>,
    /// Scale, or the smallest and the largest of several.
    pub scale: Option<(f32, f32)>,
    /// What may have gone wrong, and what would help.
    pub advice: Vec<Advice>,
    /// Its place in the graph, from 0.
    pub order: usize,
}

/// One output.
#[derive(Clone, Debug, Serialize)]
pub struct OutputRow {
    /// The float model's name for it.
    pub name: String,
    /// Signal to quantization noise ratio in dB.
    pub sqnr_db: f64,
    /// Mean squared error.
    pub mse: f64,
    /// Mean absolute error.
    pub mae: f64,
    /// The largest error.
    pub max_error: f64,
    /// Cosine between the two.
    pub cosine: f64,
    /// Divergence of the quantized model's answers from the float model's in nats, if it is rows of scores.
    pub kl: Option<f64>,
    /// Share of rows with the same first answer.
    pub agreement: Option<f64>,
    /// Share of rows whose first float answer is among the quantized model's first five.
    pub top5_agreement: Option<f64>,
}

/// A value without a counterpart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unmatched {
    /// The float model's name for it.
    pub name: String,
    /// A clause.
    pub reason: String,
}

impl Comparison {
    /// The lowest accumulated ratio of the outputs, in dB.
    pub fn worst_output_db(&self) -> f64 {
        self.outputs.iter().map(|o| o.sqnr_db).fold(f64::INFINITY, f64::min)
    }
}
