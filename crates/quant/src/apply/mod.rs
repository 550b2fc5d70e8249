//! Doing: writing a plan into a graph. The only code that makes Quantize, Dequantize and QLinear nodes; it decides
//! nothing.
//!
//! Reading order: [`apply()`], [`store`] (constants as integers), [`qdq`], [`qoperator`], [`dynamic`] (also the
//! weight-only form).

mod dynamic;
mod qdq;
mod qoperator;
mod store;

use std::{fmt, str::FromStr};

use midtread_graph::Model;

use crate::{
    error::Error,
    plan::{Decision, Params, Plan, Scheme, fingerprint, names::nearest},
};

/// The two forms in which ONNX writes a statically quantized model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Float operators between QuantizeLinear and DequantizeLinear; the runtime fuses them.
    Qdq,
    /// Operators on integers: QLinearConv, QLinearMatMul, and more in the domain `com.microsoft`.
    QOperator,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "qdq" => Ok(Self::Qdq),
            "qoperator" => Ok(Self::QOperator),
            _ => {
                let near = nearest(text, ["qdq", "qoperator"]);
                let near =
                    near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                Err(format!("`{text}` is not a format: qdq, qoperator{near}"))
            }
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qdq => "qdq",
            Self::QOperator => "qoperator",
        })
    }
}

/// The smallest version of the default operator set that has everything the plan needs.
pub fn required_opset(plan: &Plan, format: Format) -> i64 {
    let mut needed = match (plan.scheme, format) {
        (Scheme::Dynamic, _) => 11,
        // MaxPool takes 8-bit integers from 12 on.
        (Scheme::Static, Format::QOperator) => 12,
        (Scheme::Static | Scheme::WeightOnly, _) => 10,
    };
    for tensor in plan.tensors.values() {
        needed = needed.max(tensor.int_type.opset());
        needed = needed.max(match tensor.params {
            Params::PerTensor(_) => 10,
            Params::PerAxis { .. } => 13,
            Params::Blocked { .. } => 21,
        });
    }
    needed
}

/// The quantized model. `format` is about the static scheme; the others have one form each.
///
/// Names are onnxruntime's (`{t}_scale`, `{t}_zero_point`, `{t}_quantized`, `{t}_QuantizeLinear`, ...); inputs and
/// outputs keep their names, and their types unless the plan asks for integers. Constants that nothing uses any more
/// are gone, so that the file is not larger than the float model's.
///
/// Fails for a plan made for another model, and for a model whose operator set is older than [`required_opset`].
pub fn apply(model: &Model, plan: &Plan, format: Format) -> Result<Model, Error> {
    let got = fingerprint(model);
    if plan.model != got || plan.nodes.len() != model.graph.nodes.len() {
        return Err(Error::OtherModel { plan: plan.model.clone(), model: got });
    }
    let needed = required_opset(plan, format);
    let version = model.opset("").unwrap_or(0);
    if version < needed
        && plan.nodes.iter().any(|n| matches!(n.decision, Decision::Quantized { .. }))
    {
        return Err(Error::Opset { needed, got: version });
    }
    let mut quantized = match (plan.scheme, format) {
        (Scheme::Static, Format::Qdq) => qdq::apply(model, plan)?,
        (Scheme::Static, Format::QOperator) => qoperator::apply(model, plan)?,
        (Scheme::WeightOnly, _) => qdq::apply(model, plan)?,
        (Scheme::Dynamic, _) => dynamic::apply(model, plan)?,
    };
    quantized.graph.drop_unused();
    Ok(quantized)
}

#[cfg(test)]
mod tests;
