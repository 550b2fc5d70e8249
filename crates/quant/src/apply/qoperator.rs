//! The QOperator form: operators on integers, and QuantizeLinear and DequantizeLinear only where integers and floats
//! meet.
//!
//! The walk goes through the nodes in order and knows of every value in which forms it exists so far. A node with an
//! integer form takes and makes integers; any other takes floats, made from integers at its border.

use std::collections::HashMap;

use midtread_graph::{AttrValue, Graph, Model, Node, Rewrite, ValueId};

use crate::{
    apply::{
        qdq::{Constants, activations, adopt_absorbed_outputs, narrow_bounds},
        store::{Store, int_type_like},
    },
    error::Error,
    plan::{Decision, Io, NodePlan, Operand, Params, Plan},
};

/// onnxruntime's operators on integers outside the specification.
const MICROSOFT: &str = "com.microsoft";

/// Operators that move 8-bit integers as they move floats, given that all parameters are equal.
const MOVES: &[&str] = &[
    "ArgMax",
    "Flatten",
    "Gather",
    "GatherElements",
    "MaxPool",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
    "Where",
];

pub(super) fn apply(model: &Model, plan: &Plan) -> Result<Model, Error> {
    if let Some((name, tensor)) = plan.tensors.iter().find(|(_, t)| t.int_type.n_bits() != 8) {
        let what = tensor.int_type;
        return Err(Error::Options(format!(
            "the qoperator format has 8-bit tensors only, and `{name}` is {what}"
        )));
    }
    let mut model = model.clone();
    let graph = &mut model.graph;
    let store = Store::new(graph, plan)?;
    let mut absorbed = Rewrite::default();
    adopt_absorbed_outputs(graph, plan, &mut absorbed)?;
    let keys: HashMap<ValueId, &str> =
        activations(graph, plan, &store)?.into_iter().map(|(key, id)| (id, key)).collect();
    if let Some(key) =
        keys.values().filter(|key| narrow_bounds(&plan.tensors[**key]).is_some()).min()
    {
        return Err(Error::Options(format!(
            "the qoperator format has no clipped activations, and `{key}` uses fewer bits than its type"
        )));
    }
    let mut constants = Constants::new(graph, plan, &store)?;
    let no_float = vec![false; graph.values().len()];
    let mut walk =
        Walk { store, keys, integers: HashMap::new(), no_float, out: Rewrite::default() };
    let mut uses_microsoft = false;
    for (i, node_plan) in plan.nodes.iter().enumerate() {
        match &node_plan.decision {
            Decision::Absorbed { .. } => walk.out.remove(i),
            Decision::Float { .. } | Decision::Structural => walk.floats_for(graph, i),
            Decision::Quantized { inputs, outputs } => {
                if inputs.len() != graph.nodes[i].inputs.len()
                    || outputs.len() != graph.nodes[i].outputs.len()
                {
                    let what = format!(
                        "node `{}` of the plan has other inputs or outputs",
                        node_plan.node
                    );
                    return Err(Error::Options(what));
                }
                match walk.integer_form(graph, i, node_plan, inputs, outputs)? {
                    Some(node) => {
                        uses_microsoft |= node.domain == MICROSOFT;
                        graph.nodes[i] = node;
                    }
                    None => {
                        for (k, operand) in inputs.iter().enumerate() {
                            let output = match operand {
                                Operand::Tensor(key) if walk.store.is_constant(key) => constants
                                    .dequantize(graph, i, key, &mut walk.store, &mut walk.out),
                                Operand::Bias(key) => constants.dequantize_bias(
                                    graph,
                                    i,
                                    key,
                                    &mut walk.store,
                                    &mut walk.out,
                                )?,
                                Operand::Tensor(_) | Operand::Keep | Operand::Dynamic => continue,
                            };
                            graph.nodes[i].inputs[k] = Some(output);
                        }
                        walk.floats_for(graph, i);
                    }
                }
            }
        }
    }
    // What callers get is floats.
    let n_nodes = graph.nodes.len();
    for id in graph.outputs.clone() {
        walk.float(graph, n_nodes, id);
    }
    let Walk { mut store, mut out, .. } = walk;
    constants.share(graph, &mut store, &mut out);
    out.apply(graph);
    if plan.io == Io::Integer {
        super::qdq::integer_io(graph);
    }
    if uses_microsoft && model.opset(MICROSOFT).is_none() {
        model.set_opset(MICROSOFT, 1);
    }
    Ok(model)
}

struct Walk<'a> {
    store: Store<'a>,
    /// The activations that have parameters.
    keys: HashMap<ValueId, &'a str>,
    /// The integers of a value, once they exist.
    integers: HashMap<ValueId, ValueId>,
    /// By value: whether so far only its integers exist.
    no_float: Vec<bool>,
    out: Rewrite,
}

impl<'a> Walk<'a> {
    /// The value's integers, for node `i`.
    fn integer(&mut self, graph: &mut Graph, i: usize, id: ValueId) -> Option<ValueId> {
        if let Some(&integers) = self.integers.get(&id) {
            return Some(integers);
        }
        let key = *self.keys.get(&id)?;
        let integers = self.new_integers(graph, id);
        let (scale, zero_point) = self.store.params(graph, key);
        let name = format!("{key}_QuantizeLinear");
        self.out.insert_before(
            i,
            Node::new("QuantizeLinear", &name, [id, scale, zero_point], [integers]),
        );
        Some(integers)
    }

    /// A value for the integers of `id`.
    fn new_integers(&mut self, graph: &mut Graph, id: ValueId) -> ValueId {
        let key = self.keys[&id];
        let integers = graph.fresh(&format!("{key}_quantized"));
        let dtype = self.store.tensor(key).int_type.data_type();
        graph.value_mut(integers).ty = int_type_like(graph, id, dtype);
        self.integers.insert(id, integers);
        integers
    }

    /// Makes floats of a value that exists only as integers, before node `i`.
    fn float(&mut self, graph: &mut Graph, i: usize, id: ValueId) {
        if !self.no_float.get(id.idx()).copied().unwrap_or(false) {
            return;
        }
        self.no_float[id.idx()] = false;
        let (key, integers) = (self.keys[&id], self.integers[&id]);
        let (scale, zero_point) = self.store.params(graph, key);
        let name = format!("{key}_DequantizeLinear");
        self.out.insert_before(
            i,
            Node::new("DequantizeLinear", &name, [integers, scale, zero_point], [id]),
        );
    }

    /// Makes the floats that node `i`, which computes in float, takes.
    fn floats_for(&mut self, graph: &mut Graph, i: usize) {
        let mut wanted: Vec<ValueId> = graph.nodes[i].inputs.iter().flatten().copied().collect();
        let mut captured = Vec::new();
        graph.nodes[i].subgraphs().for_each(|g| g.captures(&mut captured));
        wanted.extend(captured.iter().filter_map(|name| graph.find(name)));
        for id in wanted {
            self.float(graph, i, id);
        }
    }

    /// The node on integers that stands in for node `i`, if there is one.
    fn integer_form(
        &mut self,
        graph: &mut Graph,
        i: usize,
        node_plan: &'a NodePlan,
        inputs: &'a [Operand],
        outputs: &'a [Option<String>],
    ) -> Result<Option<Node>, Error> {
        let node = graph.nodes[i].clone();
        let Some(form) = self.form(&node, inputs, outputs) else { return Ok(None) };
        let name =
            if node.name.is_empty() { String::new() } else { format!("{}_quant", node_plan.node) };

        // Every operand's integers, scale and zero point.
        let mut args = Vec::with_capacity(inputs.len());
        for (k, operand) in inputs.iter().enumerate() {
            let Some(id) = node.input(k) else {
                args.push(Arg::Absent);
                continue;
            };
            args.push(match operand {
                Operand::Tensor(key) if self.store.is_constant(key) => {
                    let value = self.store.constant(graph, key);
                    let (scale, zero_point) = self.store.params(graph, key);
                    Arg::Quantized(value, scale, zero_point)
                }
                Operand::Tensor(key) => {
                    let Some(value) = self.integer(graph, i, id) else { return Ok(None) };
                    let (scale, zero_point) = self.store.params(graph, key);
                    Arg::Quantized(value, scale, zero_point)
                }
                Operand::Bias(key) => Arg::Plain(self.store.bias(graph, key)?.value),
                Operand::Keep | Operand::Dynamic => {
                    self.float(graph, i, id);
                    Arg::Plain(id)
                }
            });
        }
        let mut made = Vec::with_capacity(outputs.len());
        for (k, key) in outputs.iter().enumerate() {
            made.push(match (node.output(k), key) {
                (Some(id), Some(_)) => {
                    let integers = self.new_integers(graph, id);
                    if self.no_float.len() <= id.idx() {
                        self.no_float.resize(id.idx() + 1, false);
                    }
                    self.no_float[id.idx()] = true;
                    Some(integers)
                }
                (id, _) => id,
            });
        }
        let y = outputs.first().and_then(Option::as_deref).map(|key| self.store.params(graph, key));

        let op_type = match form {
            Form::Move => node.op_type.clone(),
            Form::QGemm => "QGemm".to_owned(),
            Form::QLinear | Form::QLinearMicrosoft | Form::QLinearConcat => {
                format!("QLinear{}", node.op_type)
            }
        };
        let mut new = Node { op_type, name, outputs: made, inputs: Vec::new(), ..node.clone() };
        new.inputs = match (form, y) {
            (Form::Move, _) => args.iter().map(|arg| arg.value()).collect(),
            (Form::QLinear | Form::QLinearMicrosoft, Some((scale, zero_point))) => {
                let mut list: Vec<_> =
                    args.iter().filter(|a| a.is_quantized()).flat_map(Arg::triple).collect();
                list.extend([Some(scale), Some(zero_point)]);
                // The bias of QLinearConv comes last.
                list.extend(args.iter().skip(2).filter(|a| !a.is_quantized()).map(Arg::value));
                list
            }
            (Form::QGemm, Some((scale, zero_point))) => {
                let mut list: Vec<_> = args.iter().take(2).flat_map(Arg::triple).collect();
                list.extend([args.get(2).and_then(Arg::value), Some(scale), Some(zero_point)]);
                list
            }
            (Form::QLinearConcat, Some((scale, zero_point))) => {
                let mut list = vec![Some(scale), Some(zero_point)];
                list.extend(args.iter().flat_map(Arg::triple));
                list
            }
            (_, None) => unreachable!("every form but moves has a quantized output"),
        };
        if matches!(form, Form::QGemm | Form::QLinearMicrosoft | Form::QLinearConcat) {
            new.domain = MICROSOFT.to_owned();
        }
        match node.op_type.as_str() {
            // beta is 1, and QGemm has none.
            "Gemm" => new.attrs.retain(|a| a.name != "beta"),
            "AveragePool" | "GlobalAveragePool" => new.set_attr("channels_last", AttrValue::Int(0)),
            _ => {}
        }
        Ok(Some(new))
    }

    /// Which form a node has on integers, if it has one for these operands.
    fn form(&self, node: &Node, inputs: &[Operand], outputs: &[Option<String>]) -> Option<Form> {
        let key = |k: usize| match inputs.get(k) {
            Some(Operand::Tensor(key)) => Some(key.as_str()),
            _ => None,
        };
        let keys: Vec<&str> = (0..inputs.len()).filter_map(key).collect();
        let tensor = |key: &str| self.store.tensor(key);
        let made: Vec<&str> = outputs.iter().flatten().map(String::as_str).collect();
        let same_type =
            || keys.iter().chain(&made).all(|k| tensor(k).int_type == tensor(keys[0]).int_type);
        let zero_points_equal = |key: &str| {
            let params = tensor(key).params.as_slice();
            params.iter().all(|p| p.zero_point() == params[0].zero_point())
        };
        let bias_is_integer = |k: usize| match inputs.get(k) {
            None | Some(Operand::Bias(_)) => true,
            Some(_) => node.input(k).is_none(),
        };
        // Unsigned activations take either weights; signed ones, in onnxruntime, only signed.
        let types_go_together = || {
            let [x, w, ..] = keys[..] else { return false };
            tensor(x).int_type == tensor(made[0]).int_type
                && (!tensor(x).int_type.is_signed() || tensor(w).int_type.is_signed())
        };
        if keys.is_empty() || !node.domain.is_empty() && node.domain != "ai.onnx" {
            return None;
        }
        if MOVES.contains(&node.op_type.as_str()) {
            let same = keys.iter().chain(&made).all(|k| tensor(k).params == tensor(keys[0]).params)
                && same_type();
            return (same && !self.store.is_constant(keys[0])).then_some(Form::Move);
        }
        if made.len() != 1 {
            return None;
        }
        match node.op_type.as_str() {
            "Conv" => {
                let (_, w) = (key(0)?, key(1)?);
                let per_output = matches!(
                    tensor(w).params,
                    Params::PerTensor(_) | Params::PerAxis { axis: 0, .. }
                );
                let fits = per_output && self.store.is_constant(w) && zero_points_equal(w);
                (fits && bias_is_integer(2) && types_go_together()).then_some(Form::QLinear)
            }
            "MatMul" => {
                let (_, w) = (key(0)?, key(1)?);
                let fits = match tensor(w).params {
                    Params::PerTensor(_) => true,
                    Params::PerAxis { axis, .. } => {
                        axis == 1 && self.store.integers(w).dims().len() == 2
                    }
                    Params::Blocked { .. } => false,
                };
                (fits && zero_points_equal(w) && types_go_together()).then_some(Form::QLinear)
            }
            "Gemm" => {
                let (_, w) = (key(0)?, key(1)?);
                let per_output = match tensor(w).params {
                    Params::PerTensor(_) => true,
                    Params::PerAxis { axis, .. } => {
                        axis == usize::from(node.int("transB").unwrap_or(0) == 0)
                    }
                    Params::Blocked { .. } => false,
                };
                let fits = per_output && zero_points_equal(w) && bias_is_integer(2);
                let plain = ["alpha", "beta"].iter().all(|a| node.float(a).unwrap_or(1.0) == 1.0);
                (fits && plain && types_go_together()).then_some(Form::QGemm)
            }
            "Add" | "Mul" => (keys.len() == 2 && same_type()).then_some(Form::QLinearMicrosoft),
            "LeakyRelu" | "Sigmoid" | "GlobalAveragePool" => {
                same_type().then_some(Form::QLinearMicrosoft)
            }
            "AveragePool" => {
                let plain = node.attr("dilations").is_none();
                (plain && same_type()).then_some(Form::QLinearMicrosoft)
            }
            "Concat" => {
                (keys.len() == node.inputs.len() && same_type()).then_some(Form::QLinearConcat)
            }
            _ => None,
        }
    }
}

/// How a node looks on integers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As on floats.
    Move,
    /// QLinearConv, QLinearMatMul.
    QLinear,
    /// QLinearAdd and others of the same layout outside the specification.
    QLinearMicrosoft,
    QGemm,
    QLinearConcat,
}

enum Arg {
    Absent,
    Plain(ValueId),
    /// Integers, scale, zero point.
    Quantized(ValueId, ValueId, ValueId),
}

impl Arg {
    fn value(&self) -> Option<ValueId> {
        match self {
            Self::Absent => None,
            Self::Plain(value) | Self::Quantized(value, ..) => Some(*value),
        }
    }

    fn is_quantized(&self) -> bool {
        matches!(self, Self::Quantized(..))
    }

    fn triple(&self) -> Vec<Option<ValueId>> {
        match self {
            Self::Quantized(value, scale, zero_point) => {
                vec![Some(*value), Some(*scale), Some(*zero_point)]
            }
            Self::Absent | Self::Plain(_) => Vec::new(),
        }
    }
}
