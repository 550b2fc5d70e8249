//! The graph as it is trained: forwards with fake quantization where the plan has it, and backwards.

mod recover;

pub(crate) use recover::Moments;

use std::collections::{BTreeMap, HashMap};

use midtread_exec::topological_order;
use midtread_graph::{DataType, Graph, Model, Tensor, TensorError, ValueId, model::opset_of};
use midtread_kernels::grad::accumulate;
use midtread_num::{
    QParams, QRange,
    bias::{bias_scale, quantize_bias, weight_scale_for_bias},
};
use midtread_ops::{
    Args, Eval, EvalCtx, GradCtx, GradDef, OpDef, OpError, Pool, STEPS, find, find_grad,
};
use midtread_quant::{
    Decision, Plan, Why,
    plan::{Operand, Params, fingerprint},
};

use crate::{
    error::Error,
    norm::{BatchCache, Norm},
    quantizer::{ActivationQuantizer, WeightQuantizer},
};

/// What a pass through the graph does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Phase {
    /// Whether anything is quantized.
    pub(crate) is_quantized: bool,
    /// The statistics of normalizations.
    pub(crate) norm: Statistics,
    /// How fast observed ranges follow; `None` where nothing is observed.
    pub(crate) observe: Option<f32>,
    /// Whether what the gradient reads is kept.
    pub(crate) keeps: bool,
}

/// What normalizations divide by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Statistics {
    /// The running ones: they are folded.
    Running,
    /// The batch's. The running ones follow by so much, if at all.
    Batch { momentum: Option<f32> },
}

impl Phase {
    /// As the deployed model.
    pub(crate) const DEPLOYED: Self =
        Self { is_quantized: true, norm: Statistics::Running, observe: None, keeps: false };
}

/// Numbers that are trained.
#[derive(Debug)]
pub(crate) struct Param {
    pub(crate) value: Vec<f32>,
    pub(crate) grad: Vec<f32>,
    pub(crate) kind: ParamKind,
    at: Place,
}

/// What a parameter is to the optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParamKind {
    /// It decays.
    Weight,
    /// Biases and normalizations: they do not.
    Other,
}

/// Where a parameter belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Constant(ValueId),
    NormWeight(usize),
    Gamma(usize),
    Beta(usize),
}

/// A constant as one or more nodes take it.
#[derive(Debug)]
pub(crate) struct Slot {
    source: Source,
    quant: SlotQuant,
    dims: Vec<usize>,
    /// Before quantization.
    raw: Vec<f32>,
    /// As nodes see it.
    value: Tensor,
    grad: Vec<f32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Param(usize),
    FoldedWeight(usize),
    FoldedBias(usize),
    /// Not trained.
    Fixed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotQuant {
    None,
    Weight(usize),
    /// The activation's and the weight's quantizers.
    Bias(usize, usize),
}

/// What a node takes at a position.
#[derive(Clone, Debug)]
enum Input {
    Absent,
    Value(ValueId),
    Constant(Tensor),
    Slot(usize),
}

/// A node, ready to be run both ways.
struct Step {
    node: usize,
    def: &'static OpDef,
    opset: i64,
    grad: Option<&'static GradDef>,
    inputs: Vec<Input>,
    /// With and without quantization.
    outputs: [Vec<Option<ValueId>>; 2],
    /// Whether it is left out where things are quantized.
    is_absorbed: bool,
    norm: Option<usize>,
    /// Values with their last use here: when nothing is kept, and when what gradients read is.
    dropped: [Vec<ValueId>; 2],
}

/// The graph as it is trained.
pub(crate) struct Net {
    graph: Graph,
    steps: Vec<Step>,
    pub(crate) params: Vec<Param>,
    slots: Vec<Slot>,
    pub(crate) weights: Vec<WeightQuantizer>,
    /// The slot of each weight quantizer.
    weight_slots: Vec<usize>,
    pub(crate) activations: Vec<ActivationQuantizer>,
    quantizer_of: Vec<Option<usize>>,
    pub(crate) norms: Vec<Norm>,
    needs_grad: Vec<bool>,
    /// Where the segments begin whose values are computed again on the way back; none: all are kept.
    cuts: Vec<usize>,
    /// Whether memory that is free goes back instead of waiting for the next step.
    is_sparing: bool,
    /// Bytes of the largest value so far.
    largest: usize,
    pool: Pool,
}

/// The values of one pass.
pub(crate) struct Tape {
    phase: Phase,
    values: Vec<Option<Tensor>>,
    /// Before quantization.
    raws: Vec<Option<Tensor>>,
    dims: Vec<Option<Vec<usize>>>,
    norms: Vec<Option<BatchCache>>,
    /// The values at the beginning of each segment but the last, and that.
    saved: Vec<(usize, Vec<Option<Tensor>>)>,
    /// The first step whose values are there.
    from: usize,
}

impl Tape {
    /// A value as its users see it.
    pub(crate) fn value(&self, id: ValueId) -> Option<&Tensor> {
        self.values[id.idx()].as_ref()
    }

    /// Bytes that it holds, each buffer once.
    pub(crate) fn n_bytes(&self) -> usize {
        let saved = self.saved.iter().flat_map(|(_, values)| values);
        let products = self.norms.iter().flatten().map(|cache| &cache.product);
        let all = self.values.iter().chain(&self.raws).chain(saved).flatten().chain(products);
        let buffers: BTreeMap<*const u8, usize> =
            all.map(|t| (t.as_bytes().as_ptr(), t.as_bytes().len())).collect();
        buffers.values().sum()
    }
}

/// Inputs of these operators are weights wherever they are constant.
const WEIGHT_INPUTS: &[(&str, &[usize])] = &[
    ("BatchNormalization", &[1, 2]),
    ("Conv", &[1, 2]),
    ("ConvTranspose", &[1, 2]),
    ("GRU", &[1, 2, 3]),
    ("Gather", &[0]),
    ("Gemm", &[0, 1, 2]),
    ("GroupNormalization", &[1, 2]),
    ("InstanceNormalization", &[1, 2]),
    ("LSTM", &[1, 2, 3, 7]),
    ("LayerNormalization", &[1, 2]),
    ("MatMul", &[0, 1]),
    ("PRelu", &[1]),
    ("RMSNormalization", &[1]),
];

/// Constants that these operators combine with an activation are biases and factors if they vary along one dimension.
const CHANNEL_OPERATORS: &[&str] = &["Add", "Div", "Mul", "Sub"];

impl Net {
    /// `unfused` is the same model prepared without folding normalizations. `wanted` are values that must stay to be
    /// read, and get gradients: the output and inner values to match.
    pub(crate) fn new(
        prepared: &Model,
        unfused: &Model,
        plan: &Plan,
        wanted: &[ValueId],
    ) -> Result<Self, Error> {
        let graph = prepared.graph.clone();
        if plan.model != fingerprint(prepared) || plan.nodes.len() != graph.nodes.len() {
            return Err(Error::Options("the plan is of another model".into()));
        }
        let n = graph.values().len();
        let mut is_constant: Vec<bool> =
            graph.values().iter().map(|v| v.constant.is_some()).collect();
        graph.inputs.iter().for_each(|id| is_constant[id.idx()] = false);
        let mut net = Self {
            steps: Vec::new(),
            params: Vec::new(),
            slots: Vec::new(),
            weights: Vec::new(),
            weight_slots: Vec::new(),
            activations: Vec::new(),
            quantizer_of: vec![None; n],
            norms: crate::norm::find(unfused, prepared),
            needs_grad: vec![false; n],
            cuts: Vec::new(),
            is_sparing: false,
            largest: 0,
            pool: Pool::keeping(4096),
            graph,
        };
        net.place_activations(plan, &is_constant)?;
        net.place_steps(prepared, plan, &is_constant)?;
        net.find_gradients(wanted)?;
        net.find_last_uses(wanted);
        Ok(net)
    }

    /// One quantizer for each set of activations that share parameters.
    fn place_activations(&mut self, plan: &Plan, is_constant: &[bool]) -> Result<(), Error> {
        let mut groups: BTreeMap<String, usize> = BTreeMap::new();
        let mut keys: Vec<&String> = Vec::new();
        for node in &plan.nodes {
            let Decision::Quantized { inputs, outputs } = &node.decision else { continue };
            keys.extend(inputs.iter().filter_map(|operand| match operand {
                Operand::Tensor(key) => Some(key),
                _ => None,
            }));
            keys.extend(outputs.iter().flatten());
        }
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let tensor = &plan.tensors[key];
            let id = self.find(tensor.of.as_deref().unwrap_or(key))?;
            if is_constant[id.idx()] {
                continue;
            }
            let Params::PerTensor(params) = tensor.params else {
                return Err(Error::Options(format!("activation `{key}` is not per tensor")));
            };
            let leader = match &tensor.why {
                Why::SameAs(leader) | Why::Shared(leader) => leader.clone(),
                _ => key.clone(),
            };
            let next = self.activations.len();
            let group = *groups.entry(leader).or_insert(next);
            if group == next {
                self.activations.push(ActivationQuantizer::new(params, tensor.range));
            }
            let quantizer = &mut self.activations[group];
            if quantizer.params() != params {
                return Err(Error::Options(format!(
                    "`{key}` does not share what the plan says it shares"
                )));
            }
            quantizer.keys.push(key.clone());
            let dims = self.graph.type_of(id).and_then(|ty| ty.dims().map(<[_]>::to_vec));
            let known = dims.iter().flatten().skip(1).map(|d| d.known().unwrap_or(1));
            quantizer.n_features = quantizer.n_features.max(known.product());
            // What comes in has the range it has; what an operator fixes is fixed.
            if self.graph.inputs.contains(&id)
                || matches!(tensor.why, Why::Fixed(_) | Why::Override)
            {
                quantizer.is_free = false;
            }
            self.quantizer_of[id.idx()] = Some(group);
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<ValueId, Error> {
        self.graph
            .find(name)
            .ok_or_else(|| Error::Options(format!("`{name}` of the plan is not in the model")))
    }

    fn place_steps(
        &mut self,
        model: &Model,
        plan: &Plan,
        is_constant: &[bool],
    ) -> Result<(), Error> {
        let order = topological_order(&self.graph)?;
        let mut made: HashMap<(ValueId, Option<String>), usize> = HashMap::new();
        let mut biases: Vec<(usize, String)> = Vec::new();
        let mut weight_of_key: HashMap<String, usize> = HashMap::new();
        let norm_of: HashMap<usize, usize> =
            self.norms.iter().enumerate().map(|(i, norm)| (norm.node, i)).collect();
        for i in order {
            let node = self.graph.nodes[i].clone();
            let label = self.graph.label(&node).to_owned();
            let refuse = |what: &str| {
                let (node, op_type) = (label.clone(), node.op_type.clone());
                let source = OpError::Unsupported(what.to_owned());
                Err(Error::Node { node, op_type, pass: "forwards", source })
            };
            let Some(def) = find(&node.domain, &node.op_type) else {
                return refuse("this operator");
            };
            if !matches!(def.eval, Eval::Tensors(_)) || node.subgraphs().next().is_some() {
                return refuse("training through sequences and inner graphs");
            }
            let opset = opset_of(&model.opset_imports, &node.domain).unwrap_or(1);
            if let Err(source) = def.check(&node, opset) {
                return Err(Error::Node {
                    node: label,
                    op_type: node.op_type,
                    pass: "forwards",
                    source,
                });
            }
            let decision = &plan.nodes[i].decision;
            let norm = norm_of.get(&i).copied();
            let mut inputs = Vec::with_capacity(node.inputs.len());
            for (k, id) in node.inputs.iter().enumerate() {
                let Some(id) = *id else {
                    inputs.push(Input::Absent);
                    continue;
                };
                if !is_constant[id.idx()] {
                    inputs.push(Input::Value(id));
                    continue;
                }
                let operand = match decision {
                    Decision::Quantized { inputs, .. } => inputs.get(k).unwrap_or(&Operand::Keep),
                    _ => &Operand::Keep,
                };
                let key = match operand {
                    Operand::Tensor(key) | Operand::Bias(key) => Some(key.clone()),
                    Operand::Dynamic => return refuse("training with dynamic scales"),
                    Operand::Keep => self.shared_key(plan, id),
                };
                let constant =
                    self.graph.value(id).constant.clone().expect("it is constant").to_aligned();
                let trainable = is_trainable(&node.op_type, k, &constant);
                if constant.dtype() != DataType::Float
                    || (key.is_none() && !trainable && norm.is_none())
                {
                    inputs.push(Input::Constant(constant));
                    continue;
                }
                let slot = match made.get(&(id, key.clone())) {
                    Some(&slot) => slot,
                    None => {
                        let source = match (norm, k) {
                            (Some(norm), 1) => Source::FoldedWeight(norm),
                            (Some(norm), 2) => Source::FoldedBias(norm),
                            _ if trainable => Source::Param(self.param_of(id, &constant)?),
                            _ => Source::Fixed,
                        };
                        let slot = self.add_slot(source, &constant)?;
                        if let Some(key) = &key {
                            if let Operand::Bias(_) = operand {
                                biases.push((slot, key.clone()));
                            } else {
                                let tensor = &plan.tensors[key];
                                let quantizer = WeightQuantizer::new(key, tensor, constant.dims());
                                let Some(quantizer) = quantizer else {
                                    return refuse("training weights that are quantized in blocks");
                                };
                                weight_of_key.insert(key.clone(), self.weights.len());
                                self.slots[slot].quant = SlotQuant::Weight(self.weights.len());
                                self.weights.push(quantizer);
                                self.weight_slots.push(slot);
                            }
                        }
                        made.insert((id, key), slot);
                        slot
                    }
                };
                inputs.push(Input::Slot(slot));
            }
            let plain = node.outputs.clone();
            let mut quantized = plain.clone();
            if let Decision::Quantized { outputs, .. } = decision {
                for (to, key) in quantized.iter_mut().zip(outputs) {
                    if let Some(key) = key {
                        *to = Some(self.find(plan.tensors[key].of.as_deref().unwrap_or(key))?);
                    }
                }
            }
            self.steps.push(Step {
                node: i,
                def,
                opset,
                grad: find_grad(&node.domain, &node.op_type),
                inputs,
                outputs: [quantized, plain],
                is_absorbed: matches!(decision, Decision::Absorbed { .. }),
                norm,
                dropped: [Vec::new(), Vec::new()],
            });
        }
        for (slot, key) in biases {
            let bias = &plan.biases[&key];
            let input =
                self.find(plan.tensors[&bias.input].of.as_deref().unwrap_or(&bias.input))?;
            let activation = self.quantizer_of[input.idx()];
            let (Some(activation), Some(&weight)) = (activation, weight_of_key.get(&bias.weight))
            else {
                return Err(Error::Options(format!("bias `{key}` has no scale in the plan")));
            };
            self.slots[slot].quant = SlotQuant::Bias(activation, weight);
        }
        for norm in 0..self.norms.len() {
            let Norm { weight, gamma, beta, .. } = &self.norms[norm];
            let parts = [
                (weight.clone(), ParamKind::Weight, Place::NormWeight(norm)),
                (gamma.clone(), ParamKind::Other, Place::Gamma(norm)),
                (beta.clone(), ParamKind::Other, Place::Beta(norm)),
            ];
            for (value, kind, at) in parts {
                let grad = vec![0.0; value.len()];
                self.params.push(Param { value, grad, kind, at });
            }
        }
        if self.params.is_empty() {
            return Err(Error::Options("the model has no weights that can be trained".into()));
        }
        Ok(())
    }

    /// A large constant that somebody takes as integers is read from them by all.
    fn shared_key(&self, plan: &Plan, id: ValueId) -> Option<String> {
        let name = self.graph.value_name(id);
        let tensor = plan.tensors.get(name)?;
        let is_large = 64 <= self.graph.value(id).constant.as_ref()?.len();
        (tensor.of.is_none() && is_large).then(|| name.to_owned())
    }

    fn param_of(&mut self, id: ValueId, constant: &Tensor) -> Result<usize, Error> {
        if let Some(found) = self.params.iter().position(|p| p.at == Place::Constant(id)) {
            return Ok(found);
        }
        let value = floats(constant)?;
        let kind = if constant.dims().len() < 2 { ParamKind::Other } else { ParamKind::Weight };
        let grad = vec![0.0; value.len()];
        self.params.push(Param { value, grad, kind, at: Place::Constant(id) });
        Ok(self.params.len() - 1)
    }

    fn add_slot(&mut self, source: Source, constant: &Tensor) -> Result<usize, Error> {
        let raw = floats(constant)?;
        self.slots.push(Slot {
            source,
            quant: SlotQuant::None,
            dims: constant.dims().to_vec(),
            grad: vec![0.0; raw.len()],
            raw,
            value: constant.clone(),
        });
        Ok(self.slots.len() - 1)
    }

    /// Which values depend on what is trained, and whether everything on the way has a gradient.
    fn find_gradients(&mut self, wanted: &[ValueId]) -> Result<(), Error> {
        let mut before_output = vec![false; self.graph.values().len()];
        wanted.iter().for_each(|id| before_output[id.idx()] = true);
        for step in self.steps.iter().rev() {
            let is_wanted =
                step.outputs.iter().flatten().flatten().any(|id| before_output[id.idx()]);
            if is_wanted {
                for input in &step.inputs {
                    if let Input::Value(id) = input {
                        before_output[id.idx()] = true;
                    }
                }
            }
        }
        for step in &self.steps {
            let node = &self.graph.nodes[step.node];
            let depends = step.inputs.iter().any(|input| match input {
                Input::Slot(slot) => self.slots[*slot].source != Source::Fixed,
                Input::Value(id) => self.needs_grad[id.idx()],
                Input::Absent | Input::Constant(_) => false,
            });
            if !depends || STEPS.contains(&node.op_type.as_str()) {
                continue;
            }
            let outputs: Vec<ValueId> = step.outputs.iter().flatten().flatten().copied().collect();
            if step.grad.is_none() && outputs.iter().any(|id| before_output[id.idx()]) {
                return Err(Error::NoGradient {
                    node: self.graph.label(node).to_owned(),
                    op_type: node.op_type.clone(),
                });
            }
            if step.grad.is_some() {
                outputs.iter().for_each(|id| self.needs_grad[id.idx()] = true);
            }
        }
        Ok(())
    }

    fn find_last_uses(&mut self, wanted: &[ValueId]) {
        let n = self.graph.values().len();
        // What some gradient reads, by the value as users see it, or as its node made it.
        let mut is_read = vec![false; n];
        let mut last = vec![None; n];
        for (s, step) in self.steps.iter().enumerate() {
            let differentiates =
                step.outputs.iter().flatten().flatten().any(|id| self.needs_grad[id.idx()]);
            let reads = step.grad.filter(|_| differentiates).map(|grad| grad.reads);
            for (k, input) in step.inputs.iter().enumerate() {
                if let Input::Value(id) = input {
                    last[id.idx()] = Some(s);
                    is_read[id.idx()] |= reads.is_some_and(|reads| reads.input(k));
                }
            }
            for id in step.outputs.iter().flatten().flatten() {
                last[id.idx()] = Some(s);
                is_read[id.idx()] |= reads.is_some_and(|reads| reads.outputs());
            }
        }
        let outputs = self.graph.outputs.clone();
        for id in self.graph.value_ids() {
            let Some(s) = last[id.idx()] else { continue };
            if wanted.contains(&id) || outputs.contains(&id) {
                continue;
            }
            self.steps[s].dropped[0].push(id);
            if !is_read[id.idx()] {
                self.steps[s].dropped[1].push(id);
            }
        }
    }

    /// Keeps the values between some segments of the graph alone, and computes the others again on the way back: with
    /// the square root of the number of steps as many segments as steps in one, and one more pass forwards.
    pub(crate) fn recompute(&mut self) {
        let n = self.steps.len();
        let n_segments = n.isqrt().max(1);
        self.cuts = (0..n_segments).map(|i| i * n / n_segments).collect();
        self.is_sparing = true;
    }

    /// Gives memory back that only what is larger than usual would need again.
    fn spare(&self) {
        if self.is_sparing {
            self.pool.trim(2 * self.largest);
        }
    }

    /// Brings what nodes take up to date with the parameters and scales.
    pub(crate) fn refresh(&mut self, is_quantized: bool) -> Result<(), Error> {
        for param in &self.params {
            match param.at {
                Place::Constant(_) => {}
                Place::NormWeight(n) => self.norms[n].weight.copy_from_slice(&param.value),
                Place::Gamma(n) => self.norms[n].gamma.copy_from_slice(&param.value),
                Place::Beta(n) => self.norms[n].beta.copy_from_slice(&param.value),
            }
        }
        self.norms.iter_mut().for_each(Norm::fold);
        for slot in &mut self.slots {
            match slot.source {
                Source::Param(p) => slot.raw.copy_from_slice(&self.params[p].value),
                Source::FoldedWeight(n) => slot.raw = self.norms[n].folded_weight(),
                Source::FoldedBias(n) => slot.raw = self.norms[n].folded_bias(),
                Source::Fixed => {}
            }
        }
        if is_quantized {
            self.raise_for_biases();
        }
        (0..self.slots.len())
            .try_for_each(|slot| self.write_slot(slot, is_quantized))
            .map_err(tensor)
    }

    /// What nodes take at a slot, from what it is before quantization.
    fn write_slot(&mut self, slot: usize, is_quantized: bool) -> Result<(), TensorError> {
        let (weights, activations) = (&self.weights, &self.activations);
        let Slot { raw, value, quant, dims, .. } = &mut self.slots[slot];
        let mut made = std::mem::replace(value, Tensor::scalar(0.0_f32));
        if !made.is_unique() {
            made = Tensor::from_slice(dims.clone(), raw)?;
        }
        let out = made.to_mut::<f32>()?;
        match (is_quantized, *quant) {
            (true, SlotQuant::Weight(w)) => weights[w].apply(raw, out),
            (true, SlotQuant::Bias(a, w)) => {
                let (x, quantizer) = (activations[a].params(), &weights[w]);
                for (i, (out, raw)) in out.iter_mut().zip(raw.iter()).enumerate() {
                    let channel = if quantizer.scales.len() == 1 { 0 } else { i };
                    *out = match bias_scale(x.scale(), quantizer.params(channel).scale()) {
                        // As DequantizeLinear has it, in f32.
                        Ok(scale) => QParams::new(scale, 0, QRange::I16)
                            .map_or(*raw, |params| params.dequantize(quantize_bias(*raw, scale))),
                        Err(_) => *raw,
                    };
                }
            }
            _ => out.copy_from_slice(raw),
        }
        *value = made;
        Ok(())
    }

    /// Raises weight scales with which a bias would not fit 32 bits, as the plan does.
    fn raise_for_biases(&mut self) {
        for slot in &self.slots {
            let SlotQuant::Bias(a, w) = slot.quant else { continue };
            let x = self.activations[a].params().scale();
            let n_channels = self.weights[w].scales.len();
            for (i, bias) in slot.raw.iter().enumerate() {
                let channel = if n_channels == 1 { 0 } else { i };
                let scale = self.weights[w].params(channel).scale();
                if let Some(raised) = weight_scale_for_bias(x, scale, *bias) {
                    self.weights[w].scales[channel] = raised;
                }
            }
        }
    }

    /// Scales of weights: least squared error, or (`observed`) what covers the largest.
    pub(crate) fn fit_weights(&mut self, observed: bool) {
        for (quantizer, &slot) in self.weights.iter_mut().zip(&self.weight_slots) {
            let raw = &self.slots[slot].raw;
            if observed { quantizer.observe(raw) } else { quantizer.fit(raw) }
        }
    }

    /// A tape with the inputs.
    fn tape(&mut self, inputs: Vec<(ValueId, Tensor)>, phase: Phase) -> Result<Tape, Error> {
        let n = self.graph.values().len();
        let mut tape = Tape {
            phase,
            values: vec![None; n],
            raws: vec![None; n],
            dims: vec![None; n],
            norms: (0..self.norms.len()).map(|_| None).collect(),
            saved: Vec::new(),
            from: 0,
        };
        for (id, tensor) in inputs {
            self.arrive(&mut tape, id, tensor.to_aligned(), phase).map_err(|source| {
                Error::Node {
                    node: self.graph.value_name(id).to_owned(),
                    op_type: "input".into(),
                    pass: "forwards",
                    source,
                }
            })?;
        }
        Ok(tape)
    }

    /// The outputs for these inputs.
    pub(crate) fn forward(
        &mut self,
        inputs: Vec<(ValueId, Tensor)>,
        phase: Phase,
    ) -> Result<Tape, Error> {
        let mut tape = self.tape(inputs, phase)?;
        if phase.keeps {
            tape.from = self.cuts.last().copied().unwrap_or(0);
        }
        let passing = Phase { keeps: false, ..phase };
        for s in 0..self.steps.len() {
            if s < tape.from && self.cuts.contains(&s) {
                tape.saved.push((s, tape.values.clone()));
            }
            let phase = if s < tape.from { passing } else { phase };
            self.run_step(s, &mut tape, phase)?;
        }
        Ok(tape)
    }

    fn run_step(&mut self, s: usize, tape: &mut Tape, phase: Phase) -> Result<(), Error> {
        let which = usize::from(!phase.is_quantized);
        let step = &self.steps[s];
        if phase.is_quantized && step.is_absorbed {
            return Ok(());
        }
        let node = &self.graph.nodes[step.node];
        let failed = |source| Error::Node {
            node: self.graph.label(node).to_owned(),
            op_type: node.op_type.clone(),
            pass: "forwards",
            source,
        };
        let args = step.inputs.iter().map(|input| self.read(tape, input)).collect::<Vec<_>>();
        let outputs = match (step.norm, phase.norm, &args[..]) {
            (Some(n), Statistics::Batch { momentum }, [Some(x), Some(w), ..]) => {
                let norm = &mut self.norms[n];
                let w = w.as_slice::<f32>().map_err(|e| failed(e.into()))?;
                let made = norm.forward(&self.pool, node, x, w, momentum);
                let (y, cache) = made.map_err(failed)?;
                if phase.keeps {
                    tape.norms[n] = Some(cache);
                }
                vec![y]
            }
            _ => {
                let ctx = EvalCtx { node, opset: step.opset, pool: &self.pool };
                step.def.evaluate_tensors(&ctx, Args(args)).map_err(failed)?
            }
        };
        let ids = step.outputs[which].clone();
        let (label, op_type) = (step.node, node.op_type.clone());
        for (id, tensor) in ids.into_iter().zip(outputs) {
            let Some(id) = id else { continue };
            self.arrive(tape, id, tensor, phase).map_err(|source| Error::Node {
                node: self.graph.label(&self.graph.nodes[label]).to_owned(),
                op_type: op_type.clone(),
                pass: "forwards",
                source,
            })?;
        }
        let [unused, unread] = &self.steps[s].dropped;
        for id in unused {
            // What was quantized is quantized again when it is read.
            if !phase.keeps || unread.contains(id) || tape.raws[id.idx()].is_some() {
                tape.values[id.idx()] = None;
            }
        }
        self.spare();
        Ok(())
    }

    fn read(&self, tape: &Tape, input: &Input) -> Option<Tensor> {
        match input {
            Input::Absent => None,
            Input::Value(id) => tape.values[id.idx()].clone(),
            Input::Constant(tensor) => Some(tensor.clone()),
            Input::Slot(slot) => Some(self.slots[*slot].value.clone()),
        }
    }

    /// A value is there: its users see it quantized where the plan has a pair.
    fn arrive(
        &mut self,
        tape: &mut Tape,
        id: ValueId,
        tensor: Tensor,
        phase: Phase,
    ) -> Result<(), OpError> {
        tape.dims[id.idx()] = Some(tensor.dims().to_vec());
        self.largest = self.largest.max(tensor.as_bytes().len());
        let Some(q) = self.quantizer_of[id.idx()] else {
            tape.values[id.idx()] = Some(tensor);
            return Ok(());
        };
        let quantizer = &mut self.activations[q];
        if let Some(momentum) = phase.observe {
            quantizer.observe(&tensor, momentum);
        }
        if !phase.is_quantized {
            tape.values[id.idx()] = Some(tensor);
            return Ok(());
        }
        tape.values[id.idx()] = Some(quantizer.apply(&self.pool, &tensor)?);
        if phase.keeps && self.needs_grad[id.idx()] {
            tape.raws[id.idx()] = Some(tensor);
        }
        Ok(())
    }

    /// Adds the gradients of `sum(value * seed)` to those of the parameters and scales.
    pub(crate) fn backward(
        &mut self,
        mut tape: Tape,
        seeds: Vec<(ValueId, Tensor)>,
    ) -> Result<(), Error> {
        let phase = tape.phase;
        let which = usize::from(!phase.is_quantized);
        let mut grads: Vec<Option<Tensor>> = vec![None; self.graph.values().len()];
        for (id, seed) in seeds {
            add(&mut grads[id.idx()], seed)?;
        }
        for s in (0..self.steps.len()).rev() {
            if s < tape.from {
                let (from, values) = tape.saved.pop().expect("there is one for each segment");
                (tape.from, tape.values) = (from, values);
                // Once more, and nothing follows it a second time.
                let norm = match phase.norm {
                    Statistics::Batch { .. } => Statistics::Batch { momentum: None },
                    Statistics::Running => Statistics::Running,
                };
                let again = Phase { observe: None, norm, ..phase };
                for s in from..=s {
                    self.run_step(s, &mut tape, again)?;
                }
            }
            let step = &self.steps[s];
            if phase.is_quantized && step.is_absorbed {
                continue;
            }
            let ids = step.outputs[which].clone();
            let mut outs: Vec<Option<Tensor>> = ids
                .iter()
                .map(|id| {
                    id.and_then(|id| grads[id.idx()].take())
                        .filter(|g| g.dtype() == DataType::Float)
                })
                .collect();
            let (Some(def), true) = (step.grad, outs.iter().any(Option::is_some)) else { continue };
            let node = &self.graph.nodes[step.node];
            let failed = |source| Error::Node {
                node: self.graph.label(node).to_owned(),
                op_type: node.op_type.clone(),
                pass: "backwards",
                source,
            };
            let mut made: Vec<Option<Tensor>> = vec![None; ids.len()];
            for ((id, grad), made) in ids.iter().zip(&mut outs).zip(&mut made) {
                let Some(id) = id else { continue };
                let raw = tape.raws[id.idx()].take();
                if let (Some(raw), Some(dy), Some(q)) =
                    (&raw, grad.as_ref(), self.quantizer_of[id.idx()])
                {
                    let dx = self.activations[q].back(&self.pool, raw, dy).map_err(failed)?;
                    *grad = Some(dx);
                }
                // Whoever takes the value comes later, and is done.
                let value = tape.values[id.idx()].take();
                *made = raw.or(value);
            }
            let wanted: Vec<bool> = step
                .inputs
                .iter()
                .map(|input| match input {
                    Input::Value(id) => self.needs_grad[id.idx()],
                    Input::Slot(slot) => self.slots[*slot].source != Source::Fixed,
                    Input::Absent | Input::Constant(_) => false,
                })
                .collect();
            if !wanted.contains(&true) {
                continue;
            }
            for (k, input) in step.inputs.iter().enumerate() {
                let Input::Value(id) = input else { continue };
                if let (None, Some(raw), Some(q), true) = (
                    &tape.values[id.idx()],
                    &tape.raws[id.idx()],
                    self.quantizer_of[id.idx()],
                    def.reads.input(k),
                ) {
                    let value = self.activations[q].apply(&self.pool, raw).map_err(failed)?;
                    tape.values[id.idx()] = Some(value);
                }
            }
            let args: Vec<Option<Tensor>> =
                step.inputs.iter().map(|input| self.read(&tape, input)).collect();
            if let (Some(n), Some(cache)) =
                (step.norm, step.norm.and_then(|n| tape.norms[n].take()))
            {
                let (Some(x), Some(w), Some(dy)) = (&args[0], &args[1], &outs[0]) else { continue };
                let w = w.as_slice::<f32>().map_err(|e| failed(e.into()))?;
                let result = self.norms[n]
                    .backward(&self.pool, node, (x, wanted[0]), w, &cache, dy)
                    .map_err(failed)?;
                if let (Some(dx), Input::Value(id)) = (result.x, &step.inputs[0]) {
                    add(&mut grads[id.idx()], dx)?;
                }
                if let Input::Slot(slot) = step.inputs[1] {
                    accumulate(&result.weight, &mut self.slots[slot].grad);
                }
                // Folding is undone by the batch's statistics: gamma and beta act after them alone.
                for param in &mut self.params {
                    match param.at {
                        Place::Gamma(at) if at == n => accumulate(&result.gamma, &mut param.grad),
                        Place::Beta(at) if at == n => accumulate(&result.beta, &mut param.grad),
                        _ => {}
                    }
                }
                continue;
            }
            let in_dims: Vec<Option<Vec<usize>>> = step
                .inputs
                .iter()
                .map(|input| match input {
                    Input::Absent => None,
                    Input::Value(id) => tape.dims[id.idx()].clone(),
                    Input::Constant(tensor) => Some(tensor.dims().to_vec()),
                    Input::Slot(slot) => Some(self.slots[*slot].dims.clone()),
                })
                .collect();
            let ctx = GradCtx {
                node,
                opset: step.opset,
                pool: &self.pool,
                inputs: &args,
                in_dims: &in_dims,
                outputs: &made,
                grads: &outs,
                wanted: &wanted,
            };
            let results = (def.grad)(&ctx).map_err(failed)?;
            for (input, grad) in step.inputs.iter().zip(results) {
                match (input, grad) {
                    (Input::Value(id), Some(grad)) => add(&mut grads[id.idx()], grad)?,
                    (Input::Slot(slot), Some(grad)) => {
                        accumulate(
                            grad.as_slice::<f32>().map_err(tensor)?,
                            &mut self.slots[*slot].grad,
                        );
                    }
                    _ => {}
                }
            }
            self.spare();
        }
        Ok(())
    }

    /// Brings the gradients of what nodes took back to the parameters, through quantization and folding.
    pub(crate) fn pull_back(&mut self, phase: Phase) {
        let Self { slots, params, weights, norms, .. } = self;
        let find = |params: &[Param], at: Place| {
            params.iter().position(|p| p.at == at).expect("each norm has its three")
        };
        for slot in slots {
            let Slot { source, quant, raw, grad, .. } = slot;
            if phase.is_quantized
                && let SlotQuant::Weight(w) = *quant
            {
                weights[w].back(raw, grad);
            }
            match *source {
                Source::Param(p) => accumulate(grad, &mut params[p].grad),
                Source::FoldedWeight(n) => {
                    let (w, g) =
                        (find(params, Place::NormWeight(n)), find(params, Place::Gamma(n)));
                    let mut weight = std::mem::take(&mut params[w].grad);
                    let is_folded = phase.norm == Statistics::Running;
                    let gamma = is_folded.then_some(&mut params[g].grad[..]);
                    norms[n].unfold_weight(grad, &mut weight, gamma);
                    params[w].grad = weight;
                }
                // With the batch's statistics nobody took it.
                Source::FoldedBias(n) if phase.norm == Statistics::Running => {
                    let (g, b) = (find(params, Place::Gamma(n)), find(params, Place::Beta(n)));
                    let mut gamma = std::mem::take(&mut params[g].grad);
                    norms[n].unfold_bias(grad, &mut gamma, &mut params[b].grad);
                    params[g].grad = gamma;
                }
                Source::FoldedBias(_) | Source::Fixed => {}
            }
            grad.fill(0.0);
        }
    }

    /// Sets all gradients to 0.
    pub(crate) fn clear_gradients(&mut self) {
        self.params.iter_mut().for_each(|p| p.grad.fill(0.0));
        self.weights.iter_mut().for_each(|w| w.grads.fill(0.0));
        for a in &mut self.activations {
            (a.scale_grad, a.zero_point_grad, a.bound_grad) = (0.0, 0.0, 0.0);
        }
    }

    /// Calls `f` with everything that changes while training, in a fixed order.
    pub(crate) fn visit(&mut self, mut f: impl FnMut(&mut [f32])) {
        self.params.iter_mut().for_each(|p| f(&mut p.value));
        for norm in &mut self.norms {
            f(&mut norm.mean);
            f(&mut norm.var);
        }
        self.weights.iter_mut().for_each(|w| f(&mut w.scales));
        for a in &mut self.activations {
            for number in a.state.as_array() {
                f(std::slice::from_mut(number));
            }
        }
    }

    /// The prepared model with the present weights, and the plan with the present parameters, and `how` they came.
    pub(crate) fn finish(
        &mut self,
        prepared: &Model,
        plan: &Plan,
        how: (&str, &str),
    ) -> Result<(Model, Plan), Error> {
        self.refresh(true)?;
        let (mut model, mut plan) = (prepared.clone(), plan.clone());
        for param in &self.params {
            if let Place::Constant(id) = param.at {
                let dims = self
                    .graph
                    .value(id)
                    .constant
                    .as_ref()
                    .map_or_else(Vec::new, |t| t.dims().to_vec());
                model
                    .graph
                    .set_constant(id, Tensor::from_slice(dims, &param.value).map_err(tensor)?);
            }
        }
        for norm in &self.norms {
            let node = &self.graph.nodes[norm.node];
            let parts = [
                (1, norm.dims.clone(), norm.folded_weight()),
                (2, vec![norm.beta.len()], norm.folded_bias()),
            ];
            for (input, dims, values) in parts {
                let id = node.input(input).expect("it was found by its weight and bias");
                model.graph.set_constant(id, Tensor::from_slice(dims, &values).map_err(tensor)?);
            }
        }
        for quantizer in &self.weights {
            let tensor = plan.tensors.get_mut(&quantizer.key).expect("keys are the plan's");
            let params = quantizer.to_params(&tensor.params);
            if params != tensor.params {
                (tensor.params, tensor.why) = (params, Why::Trained);
            }
        }
        for quantizer in &self.activations {
            for key in &quantizer.keys {
                let tensor = plan.tensors.get_mut(key).expect("keys are the plan's");
                let params = Params::PerTensor(quantizer.params());
                let is_changed = params != tensor.params;
                tensor.params = params;
                let why = tensor.why.clone();
                // Those that share say so; a leader that a clamp took in is not there any more.
                let leads = match &why {
                    Why::SameAs(leader) => !plan.tensors.contains_key(leader),
                    Why::Shared(_) => false,
                    _ => true,
                };
                if is_changed && leads {
                    plan.tensors.get_mut(key).expect("keys are the plan's").why = Why::Trained;
                }
            }
        }
        plan.options.insert(how.0.to_owned(), how.1.to_owned());
        plan.model = fingerprint(&model);
        Ok((model, plan))
    }
}

/// Whether a constant at this input is one of the model's weights.
fn is_trainable(op_type: &str, input: usize, constant: &Tensor) -> bool {
    if constant.len() < 2 || constant.dtype() != DataType::Float {
        return false;
    }
    let by_place =
        WEIGHT_INPUTS.iter().any(|(op, inputs)| *op == op_type && inputs.contains(&input));
    let varies_along_one = constant.dims().iter().filter(|&&d| 1 < d).count() == 1;
    by_place || (CHANNEL_OPERATORS.contains(&op_type) && varies_along_one)
}

fn floats(constant: &Tensor) -> Result<Vec<f32>, Error> {
    constant.to_vec::<f32>().map_err(tensor)
}

fn tensor(error: TensorError) -> Error {
    Error::Options(error.to_string())
}

/// `sum += grad`.
fn add(sum: &mut Option<Tensor>, grad: Tensor) -> Result<(), Error> {
    match sum {
        None => *sum = Some(grad),
        Some(sum) => {
            let grad = grad.as_slice::<f32>().map_err(tensor)?;
            accumulate(grad, sum.to_mut::<f32>().map_err(tensor)?);
        }
    }
    Ok(())
}
