//! The four steps of looking into a quantized model by hand: match weights, expose intermediate values, collect them,
//! match them.
//!
//! What onnxruntime.quantization's `qdq_loss_debug` does with functions of these purposes, for any tool's models, in
//! QDQ and QOperator form, without needing the float model's values. [`midtread_compare::compare`] does all of it in one
//! pass that holds one sample at a time; these hold every value of every sample, and are for few samples.

use std::collections::BTreeMap;

use midtread_compare::{
    matching::{Matching, Point},
    view::{View, base_names, dequantized},
    weights,
};
use midtread_graph::{Model, Tensor};
use midtread_quant::calibrate::Samples;

pub use midtread_compare::weights::WeightPair;

use crate::{
    error::Error,
    evaluate::{RunOptions, map_outputs},
};

/// Values by name, one for each sample.
pub type Collected = BTreeMap<String, Vec<Tensor>>;

/// One tensor as the models have it, one value for each sample.
#[derive(Clone, Debug, PartialEq)]
pub struct ActivationMatch {
    /// In the float model; `None` if its values were not collected.
    pub float: Option<Vec<Tensor>>,
    /// In the quantized model, before it is quantized; `None` where an operator makes integers.
    pub before: Option<Vec<Tensor>>,
    /// In the quantized model, after its integers are dequantized.
    pub after: Vec<Tensor>,
}

/// Every constant of the float model that the quantized one stores as integers, by its name there, with what those
/// integers stand for. Names need not be equal: constants belong to nodes that match.
pub fn match_weights(float: &Model, quantized: &Model) -> BTreeMap<String, WeightPair> {
    let view = View::new(&quantized.graph, &quantized.opset_imports);
    let matching = Matching::new(&float.graph, &view);
    let pairs = weights::match_weights(&float.graph, &view, &matching);
    pairs.into_iter().filter(|w| w.codes.is_some()).map(|w| (w.name.clone(), w)).collect()
}

/// The model with every value that its nodes make as an output, behind its own, if `is_wanted` says so of the operator's
/// type and the value's name.
pub fn expose_intermediates(model: &Model, is_wanted: &dyn Fn(&str, &str) -> bool) -> Model {
    let mut model = model.clone();
    let graph = &mut model.graph;
    let mut outputs = graph.outputs.clone();
    for node in &graph.nodes {
        for &id in node.outputs.iter().flatten() {
            if !outputs.contains(&id) && is_wanted(&node.op_type, graph.value_name(id)) {
                outputs.push(id);
            }
        }
    }
    graph.value_info.retain(|id| !outputs.contains(id));
    graph.outputs = outputs;
    model
}

/// What comes out of a model, by output, one value for each sample. All of it is held.
pub fn collect(
    model: &Model,
    samples: &dyn Samples,
    options: &RunOptions<'_>,
) -> Result<Collected, Error> {
    let each = map_outputs(model, samples, options, |_, outputs| Ok(outputs.to_vec()))?;
    let mut collected = Collected::new();
    for (name, tensor) in each.into_iter().flatten() {
        collected.entry(name).or_default().push(tensor);
    }
    Ok(collected)
}

/// Joins what [`collect`] gave of a quantized model with its intermediate values exposed and, if there is one, of the
/// float model: by the float model's names for tensors or, without it, by the names they seem to have had.
pub fn match_activations(
    quantized: &Model,
    of_quantized: &Collected,
    float: Option<(&Model, &Collected)>,
) -> BTreeMap<String, ActivationMatch> {
    let view = View::new(&quantized.graph, &quantized.opset_imports);
    let pairs = float.map(|(model, values)| (Matching::new(&model.graph, &view), model, values));
    let name_of = |id| view.graph.value_name(id);
    let mut found = BTreeMap::new();
    for (at, logical) in view.logicals.iter().enumerate() {
        if logical.quantize.is_none() && logical.dequantize.is_none() {
            continue;
        }
        let values = |id| of_quantized.get(name_of(id)).cloned();
        let decoded = || {
            let (codes, grid) = (values(logical.codes?)?, logical.dequantize.as_ref()?);
            codes.iter().map(|codes| dequantized(codes, grid)).collect::<Option<Vec<_>>>()
        };
        let Some(after) = logical.post.and_then(values).or_else(decoded) else { continue };
        let pair = pairs.as_ref().and_then(|(matching, model, values)| {
            let is_this =
                |p: &&midtread_compare::matching::Pair| p.logical == at && p.point == Point::After;
            let pair = matching.pairs.iter().find(is_this)?;
            let name = model.graph.value_name(pair.float).to_owned();
            let float = values.get(&name).cloned();
            Some((name, float))
        });
        let first = logical.values.first().map(|&id| name_of(id)).unwrap_or_default();
        let guessed = || base_names(first).last().copied().unwrap_or(first).to_owned();
        let (name, float) = pair.unwrap_or_else(|| (guessed(), None));
        let before = logical.pre.and_then(values);
        found.insert(name, ActivationMatch { float, before, after });
    }
    found
}
