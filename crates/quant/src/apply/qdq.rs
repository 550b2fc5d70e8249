//! The QDQ form, also of weight-only plans: float operators, with QuantizeLinear and DequantizeLinear around every
//! tensor that has parameters.
//!
//! An activation has one pair, after its producer, and every user reads what comes out of it: also those that stay
//! in float, which thereby see what the others see. A constant is stored as integers, with one DequantizeLinear.

use std::collections::{BTreeSet, HashMap};

use midtread_graph::{Graph, Links, Model, Node, Rewrite, Tensor, ValueId, edit::replace_uses};
use midtread_num::Span;

use crate::{
    apply::store::{Store, int_type_like, value_of},
    error::Error,
    plan::{Decision, Io, Operand, Params, Plan, TensorPlan},
};

/// A constant that some nodes take as integers and others as floats is read from its integers by all, so that it is
/// not stored twice, unless it is this small: bounds of a clamp have to stay constant.
const MIN_SHARED: usize = 64;

pub(super) fn apply(model: &Model, plan: &Plan) -> Result<Model, Error> {
    let mut model = model.clone();
    let graph = &mut model.graph;
    let mut store = Store::new(graph, plan)?;
    let links = Links::new(graph);
    let mut rewrite = Rewrite::default();
    adopt_absorbed_outputs(graph, plan, &mut rewrite)?;

    // Constants and biases, each dequantized before its first user.
    let mut constants = Constants::new(graph, plan, &store)?;
    for (i, node_plan) in plan.nodes.iter().enumerate() {
        let Decision::Quantized { inputs, outputs } = &node_plan.decision else { continue };
        if inputs.len() != graph.nodes[i].inputs.len()
            || outputs.len() != graph.nodes[i].outputs.len()
        {
            return Err(Error::Options(format!(
                "node `{}` of the plan has other inputs or outputs",
                node_plan.node
            )));
        }
        if is_table(graph, i, &node_plan.decision, &store) {
            lookup(graph, i, inputs, &mut store, &mut rewrite);
            continue;
        }
        for (k, operand) in inputs.iter().enumerate() {
            let output = match operand {
                Operand::Tensor(key) if store.is_constant(key) => {
                    constants.dequantize(graph, i, key, &mut store, &mut rewrite)
                }
                Operand::Bias(key) => {
                    constants.dequantize_bias(graph, i, key, &mut store, &mut rewrite)?
                }
                Operand::Tensor(_) | Operand::Keep | Operand::Dynamic => continue,
            };
            graph.nodes[i].inputs[k] = Some(output);
        }
    }
    constants.share(graph, &mut store, &mut rewrite);

    // Activations.
    let wanted = activations(graph, plan, &store)?;
    let mut replaced = Vec::new();
    for (key, id) in wanted {
        let tensor = store.tensor(key);
        let (scale, zero_point) = store.params(graph, key);
        let dtype = tensor.int_type.data_type();
        let name = graph.value_name(id).to_owned();
        let producer = graph_producer(&links, plan, graph, id);
        let ty = graph.value(id).ty.clone();
        let quantized = graph.fresh(&format!("{name}_QuantizeLinear_Output"));
        graph.value_mut(quantized).ty = int_type_like(graph, id, dtype);
        let is_output = links.is_output(id);

        // A graph output is what comes out of the pair, so what went by its name gets another.
        let (before, after) = match producer {
            Some(p) if is_output => {
                let before = graph.fresh(&format!("{name}_QuantizeLinear_Input"));
                graph.value_mut(before).ty = ty;
                let outputs = graph.nodes[p].outputs.iter_mut();
                outputs.filter(|out| **out == Some(id)).for_each(|out| *out = Some(before));
                (before, id)
            }
            _ => {
                let after = graph.fresh(&format!("{name}_DequantizeLinear_Output"));
                graph.value_mut(after).ty = ty;
                replaced.push((id, after));
                (id, after)
            }
        };
        // QuantizeLinear saturates at its type's bounds: narrower ones are a Clip before it.
        let clip = narrow_bounds(tensor).map(|(lo, hi)| {
            let [lo, hi] = [("min", lo), ("max", hi)].map(|(what, bound)| {
                graph.add_constant(&format!("{name}_Clip_{what}"), Tensor::scalar(bound))
            });
            let clipped = graph.fresh(&format!("{name}_Clip_Output"));
            graph.value_mut(clipped).ty = graph.value(before).ty.clone();
            Node::new("Clip", &format!("{name}_Clip"), [before, lo, hi], [clipped])
        });
        let clipped = clip.as_ref().and_then(|node| node.output(0)).unwrap_or(before);
        let quantize = Node::new(
            "QuantizeLinear",
            &format!("{name}_QuantizeLinear"),
            [clipped, scale, zero_point],
            [quantized],
        );
        let dequantize = Node::new(
            "DequantizeLinear",
            &format!("{name}_DequantizeLinear"),
            [quantized, scale, zero_point],
            [after],
        );
        match producer {
            Some(p) => {
                clip.into_iter().for_each(|clip| rewrite.insert_after(p, clip));
                rewrite.insert_after(p, quantize);
                rewrite.insert_after(p, dequantize);
            }
            None => {
                clip.into_iter().for_each(|clip| rewrite.insert_before(0, clip));
                rewrite.insert_before(0, quantize);
                rewrite.insert_before(0, dequantize);
            }
        }
    }
    replace_uses(graph, &replaced);
    rewrite.apply(graph);
    if plan.io == Io::Integer {
        integer_io(graph);
    }
    raise_ir_version(&mut model, plan);
    Ok(model)
}

/// The real bounds of an activation that uses fewer bits than its type has. (Leaving out the most negative value
/// alone, as symmetric ranges do, needs no Clip: nothing calibrated reaches it.)
pub(super) fn narrow_bounds(tensor: &TensorPlan) -> Option<(f32, f32)> {
    let whole = tensor.int_type.range(Span::Narrow);
    let Params::PerTensor(params) = tensor.params else { return None };
    (tensor.range.n_steps() < whole.n_steps()).then(|| params.real_range(tensor.range))
}

/// Gives the outputs of absorbed clamps to the nodes that take over their work, and removes the clamps.
pub(super) fn adopt_absorbed_outputs(
    graph: &mut Graph,
    plan: &Plan,
    rewrite: &mut Rewrite,
) -> Result<(), Error> {
    for (i, node) in plan.nodes.iter().enumerate() {
        match &node.decision {
            Decision::Absorbed { .. } => rewrite.remove(i),
            Decision::Quantized { outputs, .. } => {
                for (k, key) in outputs.iter().enumerate() {
                    let Some(key) = key else { continue };
                    let id = value_of(graph, key, plan.tensors[key].of.as_deref())?;
                    if let Some(out) = graph.nodes[i].outputs.get_mut(k) {
                        *out = Some(id);
                    }
                }
            }
            Decision::Float { .. } | Decision::Structural => {}
        }
    }
    Ok(())
}

/// The activations that quantized nodes take or make, in the plan's order.
pub(super) fn activations<'a>(
    graph: &Graph,
    plan: &'a Plan,
    store: &Store<'_>,
) -> Result<Vec<(&'a str, ValueId)>, Error> {
    let mut keys = BTreeSet::new();
    for node in &plan.nodes {
        let Decision::Quantized { inputs, outputs } = &node.decision else { continue };
        let taken = inputs.iter().filter_map(|operand| match operand {
            Operand::Tensor(key) if !store.is_constant(key) => Some(key.as_str()),
            _ => None,
        });
        keys.extend(taken.chain(outputs.iter().flatten().map(String::as_str)));
    }
    let mut found = Vec::with_capacity(keys.len());
    for key in keys {
        if !matches!(plan.tensors[key].params, Params::PerTensor(_)) {
            return Err(Error::Options(format!(
                "activation `{key}` of the plan is not per tensor"
            )));
        }
        found.push((key, value_of(graph, key, None)?));
    }
    Ok(found)
}

/// The node that makes a value once absorbed clamps are gone.
fn graph_producer(links: &Links, plan: &Plan, graph: &Graph, id: ValueId) -> Option<usize> {
    let mut p = links.producer(id)?;
    // A clamp's output is made by the node before it, whose output was renamed; clamps come in rows.
    while matches!(plan.nodes[p].decision, Decision::Absorbed { .. }) {
        p = links.producer(graph.nodes[p].input(0)?)?;
    }
    Some(p)
}

/// Constants dequantized for the nodes that take them.
pub(super) struct Constants<'a> {
    dequantized: HashMap<&'a str, ValueId>,
    /// The first set of parameters of each large constant.
    keys: HashMap<ValueId, &'a str>,
    /// The first node that takes such a constant as floats.
    float_reader: HashMap<ValueId, usize>,
}

impl<'a> Constants<'a> {
    pub(super) fn new(graph: &Graph, plan: &'a Plan, store: &Store<'_>) -> Result<Self, Error> {
        let mut keys = HashMap::new();
        for (key, tensor) in
            plan.tensors.iter().filter(|(key, t)| t.of.is_none() && store.is_constant(key))
        {
            let id = value_of(graph, key, tensor.of.as_deref())?;
            if MIN_SHARED <= store.integers(key).len() {
                keys.insert(id, key.as_str());
            }
        }
        let mut float_reader = HashMap::new();
        for (i, (node, node_plan)) in graph.nodes.iter().zip(&plan.nodes).enumerate() {
            for (k, id) in node.inputs.iter().enumerate() {
                let Some(id) = id.filter(|id| keys.contains_key(id)) else { continue };
                let is_quantized = match &node_plan.decision {
                    Decision::Quantized { inputs, .. } => {
                        matches!(inputs.get(k), Some(Operand::Tensor(_) | Operand::Bias(_)))
                    }
                    Decision::Absorbed { .. } => true,
                    Decision::Float { .. } | Decision::Structural => false,
                };
                if !is_quantized {
                    float_reader.entry(id).or_insert(i);
                }
            }
        }
        Ok(Self { dequantized: HashMap::new(), keys, float_reader })
    }

    /// The constant's floats, for node `i`.
    pub(super) fn dequantize(
        &mut self,
        graph: &mut Graph,
        i: usize,
        key: &'a str,
        store: &mut Store<'a>,
        rewrite: &mut Rewrite,
    ) -> ValueId {
        if let Some(&output) = self.dequantized.get(key) {
            return output;
        }
        let float = graph.find(key).filter(|id| self.keys.contains_key(id));
        let first =
            float.and_then(|id| self.float_reader.get(&id)).map_or(i, |&reader| reader.min(i));
        let (node, output) = store.dequantize_constant(graph, key);
        rewrite.insert_before(first, node);
        self.dequantized.insert(key, output);
        output
    }

    /// The bias's floats, for node `i`.
    pub(super) fn dequantize_bias(
        &mut self,
        graph: &mut Graph,
        i: usize,
        key: &'a str,
        store: &mut Store<'a>,
        rewrite: &mut Rewrite,
    ) -> Result<ValueId, Error> {
        if let Some(&output) = self.dequantized.get(key) {
            return Ok(output);
        }
        let (node, output) = store.dequantize_bias(graph, key)?;
        rewrite.insert_before(i, node);
        self.dequantized.insert(key, output);
        Ok(output)
    }

    /// Lets those that take large constants as floats read the stored integers too.
    pub(super) fn share(mut self, graph: &mut Graph, store: &mut Store<'a>, rewrite: &mut Rewrite) {
        let mut readers: Vec<(ValueId, usize)> =
            self.float_reader.iter().map(|(&id, &i)| (id, i)).collect();
        readers.sort_unstable();
        let mut outputs = HashMap::new();
        for (id, first) in readers {
            let key = self.keys[&id];
            outputs.insert(id, self.dequantize(graph, first, key, store, rewrite));
        }
        if outputs.is_empty() {
            return;
        }
        for node in &mut graph.nodes {
            for input in node.inputs.iter_mut().flatten() {
                if let Some(&output) = outputs.get(input) {
                    *input = output;
                }
            }
        }
    }
}

/// Whether node `i` looks up rows of a constant that is stored as integers of whole bytes.
pub(super) fn is_table(graph: &Graph, i: usize, decision: &Decision, store: &Store<'_>) -> bool {
    let Decision::Quantized { inputs, outputs } = decision else { return false };
    let (Some(Operand::Tensor(key)), Some(None)) = (inputs.first(), outputs.first()) else {
        return false;
    };
    let tensor = store.tensor(key);
    graph.nodes[i].is("Gather")
        && store.is_constant(key)
        && matches!(tensor.params, Params::PerTensor(_))
        && 8 <= tensor.int_type.n_bits()
}

/// Gather on integers, and DequantizeLinear on what it found.
pub(super) fn lookup<'a>(
    graph: &mut Graph,
    i: usize,
    inputs: &'a [Operand],
    store: &mut Store<'a>,
    rewrite: &mut Rewrite,
) {
    let Some(Operand::Tensor(key)) = inputs.first() else { return };
    let Some(output) = graph.nodes[i].output(0) else { return };
    let name = graph.value_name(output).to_owned();
    let table = store.constant(graph, key);
    let (scale, zero_point) = store.params(graph, key);
    let found = graph.fresh(&format!("{name}_quantized"));
    graph.value_mut(found).ty =
        int_type_like(graph, output, store.tensor(key).int_type.data_type());
    graph.nodes[i].inputs[0] = Some(table);
    graph.nodes[i].outputs[0] = Some(found);
    let name = format!("{name}_DequantizeLinear");
    rewrite.insert_after(
        i,
        Node::new("DequantizeLinear", &name, [found, scale, zero_point], [output]),
    );
}

/// Lets callers give and take integers: removes the QuantizeLinear of every input that has no other use and the
/// DequantizeLinear of every output.
pub(super) fn integer_io(graph: &mut Graph) {
    let links = Links::new(graph);
    let mut rewrite = Rewrite::default();
    for id in graph.inputs.clone() {
        let Some(q) = links.only_consumer(id).filter(|&i| graph.nodes[i].is("QuantizeLinear"))
        else {
            continue;
        };
        let Some(quantized) =
            graph.nodes[q].output(0).filter(|_| graph.nodes[q].input(0) == Some(id))
        else {
            continue;
        };
        let (from, users) =
            (graph.value(quantized).ty.clone(), links.consumers(quantized).to_vec());
        graph.value_mut(id).ty = from;
        for i in users {
            graph.nodes[i]
                .inputs
                .iter_mut()
                .filter(|x| **x == Some(quantized))
                .for_each(|x| *x = Some(id));
        }
        rewrite.remove(q);
    }
    for id in graph.outputs.clone() {
        let Some(d) = links.producer(id).filter(|&i| graph.nodes[i].is("DequantizeLinear")) else {
            continue;
        };
        let Some(quantized) = graph.nodes[d].input(0) else { continue };
        // A stored constant as an output stays as it is.
        let Some(q) = links.producer(quantized) else { continue };
        if links.only_consumer(quantized) != Some(d) {
            continue;
        }
        let name = graph.value_name(id).to_owned();
        graph.nodes[q]
            .outputs
            .iter_mut()
            .filter(|x| **x == Some(quantized))
            .for_each(|x| *x = Some(id));
        let float = graph.value(id).ty.clone();
        graph.value_mut(id).ty = graph.value(quantized).ty.clone();
        if links.consumers(id).is_empty() {
            rewrite.remove(d);
            continue;
        }
        let inside = graph.fresh(&format!("{name}_DequantizeLinear_Output"));
        graph.value_mut(inside).ty = float;
        graph.nodes[d].inputs[0] = Some(id);
        graph.nodes[d].outputs[0] = Some(inside);
        for &i in links.consumers(id) {
            graph.nodes[i]
                .inputs
                .iter_mut()
                .filter(|x| **x == Some(id))
                .for_each(|x| *x = Some(inside));
        }
    }
    rewrite.apply(graph);
}

/// IR version 10 brings the types of four bits.
fn raise_ir_version(model: &mut Model, plan: &Plan) {
    if plan.tensors.values().any(|t| t.int_type.n_bits() == 4) {
        model.ir_version = model.ir_version.max(10);
    }
}
