//! From a model to a program: which clusters become integer steps, and in which layout values lie.

use std::collections::HashMap;

use midtread_exec::{Interpreter, topological_order};
use midtread_graph::{
    AttrValue, DataType, Dim, Graph, Model, Node, Tensor, TypeKind, ValueId, model::opset_of,
};
use midtread_num::{
    QParams,
    bias::quantize_bias,
    requant::{multiplier, real_multiplier},
};
use midtread_ops::{Args, EvalCtx, OpDef, OpError, Pool};

use crate::{
    cluster::{Bias, Cluster, Codes, Finder, Input, Kind, QuantizedWeights},
    code::{
        Attribute, Code, Constant, Conv, Factors, Matmul, Op, Operator, Pads, Pair, Port, Product,
        Quant, Row, Single, Size, Step, To, Window,
    },
    compute::fixed_factor,
    error::Error,
    program::{Options, Requantize},
};

/// Finds the integer steps of a model.
pub(crate) fn compile(model: &Model, options: &Options) -> Result<Code, Error> {
    let interpreter = Interpreter::new(model, midtread_exec::Options { max_bytes: None })?;
    let graph = interpreter.graph();
    let opsets = interpreter.opset_imports();
    let is_fixed = options.requantize == Requantize::FixedPoint;
    let finder = Finder::new(graph, opset_of(opsets, "").unwrap_or(13), is_fixed);
    let lower = Lower { graph, opsets, finder: &finder, is_fixed };
    let mut wanted = Wanted::default();
    graph.outputs.iter().for_each(|&id| wanted.tensor(graph, id));
    let mut found = Vec::new();
    // From the outputs back, so that what only a cluster's inside needed is never asked for.
    for i in topological_order(graph)?.into_iter().rev() {
        let node = &graph.nodes[i];
        if node.is("DynamicQuantizeLinear")
            && let (Some(codes), Some(x)) = (node.output(0), node.input(0))
            && wanted.dynamic.contains_key(&codes)
        {
            found.push((i, Found::Dynamic { x, codes }));
            wanted.tensor(graph, x);
        }
        if !node.outputs.iter().flatten().any(|id| wanted.is(*id)) {
            continue;
        }
        let cluster = finder.cluster(i).and_then(|cluster| lower.cluster(&cluster));
        let item = match cluster {
            Some(made) => Found::Made(made),
            None => Found::Node(lower.operator(i)?),
        };
        match &item {
            Found::Made(Made { reads: Reads::Dynamic(codes), .. }) => {
                wanted.dynamic.insert(*codes, ());
            }
            Found::Made(made) => made.reads.ids().for_each(|id| wanted.tensor(graph, id)),
            Found::Node(_) => node.inputs.iter().flatten().for_each(|&id| wanted.tensor(graph, id)),
            Found::Dynamic { .. } => {}
        }
        found.push((i, item));
    }
    found.reverse();
    let mut constants: Vec<Option<Tensor>> = (graph.value_ids())
        .map(|id| if wanted.is(id) { finder.constant(id) } else { None })
        .collect();
    fold(graph, opsets, &mut found, &mut constants)?;
    Emit::new(&lower, constants)?.emit(found)
}

/// What a run asks for.
#[derive(Default)]
struct Wanted {
    tensors: Vec<bool>,
    /// Codes whose scale goes with them.
    dynamic: HashMap<ValueId, ()>,
}

impl Wanted {
    fn tensor(&mut self, graph: &Graph, id: ValueId) {
        self.tensors.resize(graph.values().len(), false);
        self.tensors[id.idx()] = true;
    }

    fn is(&self, id: ValueId) -> bool {
        self.tensors.get(id.idx()) == Some(&true)
    }
}

/// What becomes of a node.
enum Found {
    Made(Made),
    Node(Operator),
    /// Quantizes `x`, whose codes products read.
    Dynamic {
        x: ValueId,
        codes: ValueId,
    },
}

/// An integer step before its values have numbers.
struct Made {
    op: Op,
    /// The node with the attributes.
    node: usize,
    reads: Reads,
    output: ValueId,
    layout: Layout,
}

enum Reads {
    Values(Vec<ValueId>),
    /// What an operator reads.
    Inputs(Vec<Option<Input>>),
    /// Codes whose scale and zero point go with them.
    Dynamic(ValueId),
}

impl Reads {
    fn ids(&self) -> impl Iterator<Item = ValueId> {
        let (values, inputs) = match self {
            Self::Values(values) => (&values[..], &[][..]),
            Self::Inputs(inputs) => (&[][..], &inputs[..]),
            Self::Dynamic(id) => (std::slice::from_ref(id), &[][..]),
        };
        let inputs = inputs.iter().flatten().filter_map(|input| match input {
            Input::Value(id) => Some(*id),
            Input::Constant(_) => None,
        });
        values.iter().copied().chain(inputs)
    }
}

/// How a step wants images.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    Last,
    Plain,
    /// As its inputs are.
    Either,
}

struct Lower<'a> {
    graph: &'a Graph,
    opsets: &'a [(String, i64)],
    finder: &'a Finder<'a>,
    is_fixed: bool,
}

impl Lower<'_> {
    /// The integer form of a cluster, or `None` where it has none.
    fn cluster(&self, cluster: &Cluster) -> Option<Made> {
        let node = &self.graph.nodes[cluster.node];
        let read = |x: &Codes| Reads::Values(vec![x.id]);
        let is_fixed = self.is_fixed;
        let single = |x: &Codes, y: Quant| Single { x: x.params, y, is_fixed };
        let (op, reads, layout) = match (&cluster.kind, cluster.params) {
            (Kind::Conv { x, weights, bias }, Some(y)) => (
                self.conv(node, weights, Some((x, bias, y)), cluster.clamp)?,
                read(x),
                Layout::Last,
            ),
            (Kind::DynamicConv { x, weights, conv }, _) => {
                let op = self.conv(&self.graph.nodes[*conv], weights, None, None)?;
                (op, Reads::Dynamic(*x), Layout::Last)
            }
            (Kind::Product { x, weights, bias, is_transposed, row }, y) => {
                let &[rows, columns] = weights.codes.dims() else { return None };
                let (k, n) = if *is_transposed { (columns, rows) } else { (rows, columns) };
                let channels = Channels::new(weights, n, i64::from(!is_transposed), x, bias)?;
                let at = |j: usize, p: usize| {
                    if *is_transposed { j * columns + p } else { p * columns + j }
                };
                let rows = channels.rows(k, at);
                // What comes before a row, if there is one.
                let (made, clamp) = match row {
                    Some(row) => (Some(row.before), row.clamp),
                    None => (y, cluster.clamp),
                };
                let row = match (row, y) {
                    (Some(row), Some(y)) => Some(Row {
                        pair: Pair {
                            inputs: [row.before, row.params],
                            output: y,
                            codes: clamped_codes(y, cluster.clamp),
                            is_fixed,
                        },
                        is_swapped: row.is_swapped,
                        codes: row.codes.to_shared_bytes(),
                    }),
                    _ => None,
                };
                let product = Product {
                    k,
                    bias: channels.folded(&rows, k, x.params.zero_point)?,
                    weights: rows.into(),
                    x_signed: x.params.is_signed,
                    to: channels.to(x.params.scale, made, clamp, is_fixed)?,
                    row,
                };
                (Op::Product(product), read(x), Layout::Plain)
            }
            (Kind::DynamicProduct { x, weights, shift }, _) => {
                let &[k, n] = weights.codes.dims() else { return None };
                let channels = Channels { weights, scales: Vec::new(), bias: vec![0; n] };
                // The sum of so many products of codes is an `i32`.
                if !channels.has_params(n, 1) || !channels.fits_bytes() || (1 << 16) < k {
                    return None;
                }
                let shifts = match shift {
                    Some(shift) => Some(shift.to_vec::<f32>().ok().filter(|s| s.len() == n)?),
                    None => None,
                };
                let rows = channels.rows(k, |j, p| p * n + j);
                let scales = (0..n).map(|j| at(&weights.scales, j)).collect();
                let product = Product {
                    k,
                    bias: channels.folded(&rows, k, 1)?,
                    weights: rows.into(),
                    x_signed: false,
                    to: To::Dynamic { scales, shifts },
                    row: None,
                };
                (Op::Product(product), Reads::Dynamic(*x), Layout::Plain)
            }
            (Kind::Add { inputs } | Kind::Mul { inputs }, Some(y)) => {
                let pair = Pair {
                    inputs: inputs.map(|x| x.params),
                    output: y,
                    codes: clamped_codes(y, cluster.clamp),
                    is_fixed,
                };
                let is_sum = matches!(cluster.kind, Kind::Add { .. });
                let op = if is_sum { Op::Add(pair) } else { Op::Mul(pair) };
                (op, Reads::Values(inputs.map(|x| x.id).to_vec()), Layout::Either)
            }
            (Kind::Matmul { inputs, perms }, y) => {
                let matmul = Matmul {
                    inputs: inputs.map(|x| x.params),
                    output: y,
                    codes: y.map_or([0, 0], |y| clamped_codes(y, cluster.clamp)),
                    perms: perms.clone(),
                    is_fixed,
                };
                let ids = inputs.map(|x| x.id).to_vec();
                (Op::Matmul(matmul), Reads::Values(ids), Layout::Plain)
            }
            (Kind::Softmax { x }, Some(y)) => (Op::Softmax(single(x, y)), read(x), Layout::Plain),
            (Kind::Concat { inputs }, Some(y)) => {
                let rank = inputs.iter().find_map(|x| self.rank(x.id));
                let axis = node.int("axis")?;
                let axis = if axis < 0 { axis + rank? as i64 } else { axis };
                let axis = usize::try_from(axis).ok()?;
                if inputs.iter().any(|x| x.params.is_signed != y.is_signed) || inputs.is_empty() {
                    return None;
                }
                let tables = inputs.iter().map(|x| code_table(x.params, y));
                let op = Op::Concat { axis, tables: tables.collect::<Option<_>>()? };
                (op, Reads::Values(inputs.iter().map(|x| x.id).collect()), Layout::Either)
            }
            (Kind::GlobalAveragePool { x }, Some(y)) => {
                (Op::Mean(single(x, y)), read(x), Layout::Last)
            }
            (Kind::AveragePool { x }, Some(y)) => {
                let window = window(node, node.ints("kernel_shape")?)?;
                let include_pads = node.int("count_include_pad").unwrap_or(0) != 0;
                (Op::AveragePool(window, single(x, y), include_pads), read(x), Layout::Last)
            }
            (Kind::MaxPool { x, is_signed }, _) => {
                let window = window(node, node.ints("kernel_shape")?)?;
                if node.int("storage_order").unwrap_or(0) != 0 {
                    return None;
                }
                (Op::MaxPool(window, *is_signed), Reads::Values(vec![*x]), Layout::Last)
            }
            (Kind::Region { x, nodes }, Some(y)) => {
                let codes = self.table(x, nodes)?;
                let op = Op::Table(codes, [x.params.is_signed, y.is_signed]);
                (op, read(x), Layout::Either)
            }
            (Kind::CodeTable { x }, Some(y)) => {
                let codes = self.table_of_codes(x.params, node)?;
                let op = Op::Table(codes, [x.params.is_signed, y.is_signed]);
                (op, read(x), Layout::Either)
            }
            (Kind::Reshape { x, reshape }, _) => {
                (Op::Reshape(reshape.clone()), Reads::Values(vec![*x]), Layout::Plain)
            }
            (Kind::Transpose { x, perm }, _) => {
                (Op::Transpose(perm.clone()), Reads::Values(vec![*x]), Layout::Plain)
            }
            (Kind::Moves { inputs }, _) => {
                let operator = self.operator_of(node).ok()?;
                (Op::Operator(operator), Reads::Inputs(inputs.clone()), Layout::Plain)
            }
            (Kind::Instead { op_type, inputs }, _) => {
                let opset = opset_of(self.opsets, "").unwrap_or(13);
                let mut attrs = attributes(node)?;
                attrs.push(("opset".to_owned(), Attribute::Int(opset)));
                // Before version 13 the default was 1.
                if node.int("axis").is_none() && 13 <= opset {
                    attrs.push(("axis".to_owned(), Attribute::Int(-1)));
                }
                let (domain, op_type) = ("com.microsoft".to_owned(), (*op_type).to_owned());
                let operator = Operator { domain, op_type, opset: 1, attrs };
                (Op::Operator(operator), Reads::Inputs(inputs.clone()), Layout::Plain)
            }
            (Kind::Quantize { x }, Some(y)) => {
                (Op::Quantize(y), Reads::Values(vec![*x]), Layout::Plain)
            }
            (Kind::Dequantize { x }, _) => (Op::Dequantize(x.params), read(x), Layout::Plain),
            _ => return None,
        };
        // What a machine would refuse (scales too far apart for a factor) is left to the operators. Weights were checked.
        if !matches!(op, Op::Conv(_) | Op::Product(_) | Op::Operator(_)) {
            crate::compute::ready(op.clone(), reads.ids().count()).ok()?;
        }
        Some(Made { op, node: cluster.node, reads, output: cluster.output, layout })
    }

    /// A convolution of codes of known parameters, or of such as come with them.
    fn conv(
        &self,
        node: &Node,
        weights: &QuantizedWeights,
        known: Option<(&Codes, &Bias, Quant)>,
        clamp: Option<(f32, f32)>,
    ) -> Option<Op> {
        let &[n, c_in, kh, kw] = weights.codes.dims() else { return None };
        if node.ints("kernel_shape").is_some_and(|k| k != [kh as i64, kw as i64]) {
            return None;
        }
        let window = window(node, &[kh as i64, kw as i64])?;
        let groups = usize::try_from(node.int("group").unwrap_or(1)).ok().filter(|&g| 0 < g)?;
        let k = kh * kw * c_in;
        // To (row, column, channel).
        let index = |j: usize, p: usize| (j * c_in + p % c_in) * kh * kw + p / c_in;
        let conv = |channels: &Channels<'_>, zero, to| {
            let rows = channels.rows(k, index);
            Some(Conv {
                window,
                groups,
                c_in,
                bias: channels.folded(&rows, k, zero)?,
                weights: rows.into(),
                x_zero: 0,
                x_signed: false,
                to,
            })
        };
        let Some((x, bias, y)) = known else {
            let channels = Channels { weights, scales: Vec::new(), bias: vec![0; n] };
            if !channels.has_params(n, 0) || !channels.fits_bytes() || (1 << 16) < k || groups != 1
            {
                return None;
            }
            let scales = (0..n).map(|j| at(&weights.scales, j)).collect();
            return Some(Op::Conv(conv(&channels, 1, To::Dynamic { scales, shifts: None })?));
        };
        let channels = Channels::new(weights, n, 0, x, bias)?;
        let to = channels.to(x.params.scale, Some(y), clamp, self.is_fixed)?;
        let Quant { zero_point: x_zero, is_signed: x_signed, .. } = x.params;
        let conv = conv(&channels, x_zero, to)?;
        n.is_multiple_of(groups).then_some(Op::Conv(Conv { x_zero, x_signed, ..conv }))
    }

    /// How many dimensions a value has, where it is known.
    fn rank(&self, id: ValueId) -> Option<usize> {
        Some(self.graph.type_of(id)?.dims()?.len())
    }

    /// What some nodes make of all codes, the last of them.
    fn table(&self, x: &Codes, nodes: &[usize]) -> Option<Box<[u8; 256]>> {
        let mut known = HashMap::from([(x.id, all_codes(x.params)?)]);
        let mut last = None;
        for &i in nodes {
            let node = &self.graph.nodes[i];
            let def = midtread_ops::find(&node.domain, &node.op_type)?;
            let args = node.inputs.iter().map(|id| {
                let Some(id) = *id else { return Some(None) };
                known.get(&id).cloned().or_else(|| self.finder.constant(id)).map(Some)
            });
            let args = args.collect::<Option<Vec<_>>>()?;
            let made = first(def, node, opset_of(self.opsets, &node.domain)?, args)?;
            known.insert(node.output(0)?, made.clone());
            last = Some(made);
        }
        Some(Box::new(last?.as_bytes().try_into().ok()?))
    }

    /// An operator on codes over all of them.
    fn table_of_codes(&self, x: Quant, node: &Node) -> Option<Box<[u8; 256]>> {
        let def = midtread_ops::find(&node.domain, &node.op_type)?;
        let args = [&[Some(all_codes(x)?)][..], &self.others(node)].concat();
        let codes = first(def, node, opset_of(self.opsets, &node.domain)?, args)?;
        Some(Box::new(codes.as_bytes().try_into().ok()?))
    }

    /// The constants that a node reads besides its first input.
    fn others(&self, node: &Node) -> Vec<Option<Tensor>> {
        let others = node.inputs.iter().skip(1);
        others.map(|id| id.and_then(|id| self.finder.constant(id))).collect()
    }

    /// Node `i` as an operator.
    fn operator(&self, i: usize) -> Result<Operator, Error> {
        self.operator_of(&self.graph.nodes[i])
    }

    fn operator_of(&self, node: &Node) -> Result<Operator, Error> {
        let unsupported = |what| Error::Unsupported {
            node: self.graph.label(node).to_owned(),
            op_type: node.op_type.clone(),
            what,
        };
        if node.subgraphs().next().is_some() {
            return Err(unsupported("a subgraph"));
        }
        midtread_ops::find(&node.domain, &node.op_type)
            .ok_or_else(|| unsupported("this operator"))?;
        let opset =
            opset_of(self.opsets, &node.domain).ok_or_else(|| unsupported("this operator set"))?;
        let attrs = attributes(node).ok_or_else(|| unsupported("an attribute of this type"))?;
        let (domain, op_type) = (node.domain.clone(), node.op_type.clone());
        Ok(Operator { domain, op_type, opset, attrs })
    }
}

fn first(def: &OpDef, node: &Node, opset: i64, args: Vec<Option<Tensor>>) -> Option<Tensor> {
    let pool = Pool::default();
    let outputs = def.evaluate_tensors(&EvalCtx { node, opset, pool: &pool }, Args(args)).ok()?;
    outputs.into_iter().next()
}

fn dtype_of(p: Quant) -> DataType {
    if p.is_signed { DataType::Int8 } else { DataType::Uint8 }
}

fn all_codes(x: Quant) -> Option<Tensor> {
    let codes: Vec<u8> = (0..=255).collect();
    Tensor::from_bytes(dtype_of(x), vec![256], codes.into()).ok()
}

/// Codes to the nearest of other parameters; no table where they are the same.
fn code_table(x: Quant, y: Quant) -> Option<Option<Box<[u8; 256]>>> {
    if x == y {
        return Some(None);
    }
    let params = |p: Quant| QParams::new(p.scale, p.zero_point, p.range()).ok();
    let (from, to) = (params(x)?, params(y)?);
    let code = |byte: u8| {
        let code = if x.is_signed { i32::from(byte.cast_signed()) } else { i32::from(byte) };
        to.quantize(from.dequantize(code), y.range()) as u8
    };
    Some(Some(Box::new(std::array::from_fn(|byte| code(byte as u8)))))
}

fn window(node: &Node, kernel: &[i64]) -> Option<Window> {
    let pair = |list: Option<&[i64]>| -> Option<[usize; 2]> {
        let list = list.filter(|l| !l.is_empty()).unwrap_or(&[1, 1]);
        let sizes: Option<Vec<usize>> = list.iter().map(|&n| usize::try_from(n).ok()).collect();
        sizes?.try_into().ok()
    };
    let pads = match node.str("auto_pad").unwrap_or("NOTSET") {
        "NOTSET" | "" => match node.ints("pads").filter(|pads| !pads.is_empty()) {
            Some(pads) => {
                let pads: Option<Vec<usize>> =
                    pads.iter().map(|&n| usize::try_from(n).ok()).collect();
                Pads::Said(pads?.try_into().ok()?)
            }
            None => Pads::Said([0; 4]),
        },
        "VALID" => Pads::Said([0; 4]),
        "SAME_UPPER" => Pads::SameUpper,
        "SAME_LOWER" => Pads::SameLower,
        _ => return None,
    };
    let window = Window {
        kernel: pair(Some(kernel))?,
        strides: pair(node.ints("strides"))?,
        dilations: pair(node.ints("dilations"))?,
        pads,
        ceil: node.int("ceil_mode").unwrap_or(0) != 0,
    };
    window.check().ok()?;
    Some(window)
}

fn constant(tensor: &Tensor) -> Option<Constant> {
    (tensor.dtype() != DataType::String).then(|| Constant {
        elem: tensor.dtype().to_onnx(),
        dims: tensor.dims().to_vec(),
        data: tensor.to_shared_bytes(),
    })
}

/// A node's attributes; `None` where one is of a kind that programs do not hold.
fn attributes(node: &Node) -> Option<Vec<(String, Attribute)>> {
    let one = |value: &AttrValue| {
        Some(match value {
            AttrValue::Float(x) => Attribute::Float(*x),
            AttrValue::Int(i) => Attribute::Int(*i),
            AttrValue::String(s) => Attribute::String(s.clone()),
            AttrValue::Tensor(t) => Attribute::Tensor(constant(t)?),
            AttrValue::Floats(x) => Attribute::Floats(x.clone()),
            AttrValue::Ints(i) => Attribute::Ints(i.clone()),
            AttrValue::Strings(s) => Attribute::Strings(s.clone()),
            _ => return None,
        })
    };
    node.attrs.iter().map(|attr| Some((attr.name.clone(), one(&attr.value)?))).collect()
}

/// Evaluates the operators whose inputs are all constant, once and for all.
fn fold(
    graph: &Graph,
    opsets: &[(String, i64)],
    found: &mut Vec<(usize, Found)>,
    constants: &mut [Option<Tensor>],
) -> Result<(), Error> {
    let pool = Pool::default();
    let mut error = None;
    found.retain(|(i, item)| {
        let node = &graph.nodes[*i];
        let is_constant = node.inputs.iter().flatten().all(|id| constants[id.idx()].is_some());
        let (Found::Node(_), true, None) = (item, is_constant, &error) else { return true };
        if node.op_type.starts_with("Random") {
            return true;
        }
        let evaluated = || -> Result<Vec<Tensor>, OpError> {
            let missing = || OpError::Unsupported("this operator".to_owned());
            let def = midtread_ops::find(&node.domain, &node.op_type).ok_or_else(missing)?;
            let opset = opset_of(opsets, &node.domain).ok_or_else(missing)?;
            let args = node.inputs.iter().map(|id| constants[(*id)?.idx()].clone()).collect();
            def.evaluate_tensors(&EvalCtx { node, opset, pool: &pool }, Args(args))
        };
        match evaluated() {
            Ok(outputs) => {
                for (tensor, id) in outputs.into_iter().zip(&node.outputs) {
                    if let Some(id) = id {
                        constants[id.idx()] = Some(tensor);
                    }
                }
                false
            }
            Err(source) => {
                let (node, op_type) = (graph.label(node).to_owned(), node.op_type.clone());
                error = Some(Error::Node { node, op_type, source });
                true
            }
        }
    });
    error.map_or(Ok(()), Err)
}

/// Numbers the values and writes the steps.
struct Emit<'a> {
    lower: &'a Lower<'a>,
    constants: Vec<Option<Tensor>>,
    code: Code,
    /// By value of the graph: its number as ONNX stores it, and with channels last.
    plain: Vec<Option<u32>>,
    last: Vec<Option<u32>>,
    dynamic: HashMap<ValueId, u32>,
}

impl<'a> Emit<'a> {
    fn new(lower: &'a Lower<'a>, constants: Vec<Option<Tensor>>) -> Result<Self, Error> {
        let n = lower.graph.values().len();
        let mut emit = Self {
            lower,
            constants,
            code: Code::default(),
            plain: vec![None; n],
            last: vec![None; n],
            dynamic: HashMap::new(),
        };
        for &id in &lower.graph.inputs {
            let value = emit.value();
            emit.plain[id.idx()] = Some(value);
            let port = port(lower.graph, id, value);
            emit.code.inputs.push(port);
            if let Some(tensor) = &lower.graph.value(id).constant {
                emit.keep(value, tensor, "an input", "")?;
            }
        }
        Ok(emit)
    }

    fn value(&mut self) -> u32 {
        self.code.n_values += 1;
        self.code.n_values - 1
    }

    fn keep(&mut self, value: u32, tensor: &Tensor, node: &str, op: &str) -> Result<(), Error> {
        let constant = constant(tensor).ok_or_else(|| Error::Unsupported {
            node: node.to_owned(),
            op_type: op.to_owned(),
            what: "a constant of strings",
        })?;
        self.code.constants.push((value, constant));
        Ok(())
    }

    fn step(
        &mut self,
        node: &Node,
        op: Op,
        why: String,
        inputs: Vec<Option<u32>>,
        outputs: Vec<Option<u32>>,
    ) {
        let (node, op_type) = (self.lower.graph.label(node).to_owned(), node.op_type.clone());
        self.code.steps.push(Step { node, op_type, why, op, inputs, outputs });
    }

    /// A value as ONNX stores it, for `node`.
    fn plain(&mut self, id: ValueId, node: &Node) -> Result<u32, Error> {
        if let Some(value) = self.plain[id.idx()] {
            return Ok(value);
        }
        let value = self.value();
        if let Some(last) = self.last[id.idx()] {
            self.step(node, Op::ToPlain, String::new(), vec![Some(last)], vec![Some(value)]);
        } else if let Some(tensor) = self.constants[id.idx()].clone() {
            self.keep(value, &tensor, self.lower.graph.label(node), &node.op_type)?;
        } else {
            return Err(Error::Unsupported {
                node: self.lower.graph.label(node).to_owned(),
                op_type: node.op_type.clone(),
                what: "a value that no node makes",
            });
        }
        self.plain[id.idx()] = Some(value);
        Ok(value)
    }

    /// A value with channels last, for `node`.
    fn last(&mut self, id: ValueId, node: &Node) -> Result<u32, Error> {
        if let Some(value) = self.last[id.idx()] {
            return Ok(value);
        }
        let plain = self.plain(id, node)?;
        let value = self.value();
        self.step(node, Op::ToLast, String::new(), vec![Some(plain)], vec![Some(value)]);
        self.last[id.idx()] = Some(value);
        Ok(value)
    }

    fn emit(mut self, found: Vec<(usize, Found)>) -> Result<Code, Error> {
        let graph = self.lower.graph;
        for (i, item) in found {
            let node = &graph.nodes[i];
            match item {
                Found::Dynamic { x, codes } => {
                    let (x, value) = (self.plain(x, node)?, self.value());
                    self.step(
                        node,
                        Op::DynamicQuantize,
                        String::new(),
                        vec![Some(x)],
                        vec![Some(value)],
                    );
                    self.dynamic.insert(codes, value);
                }
                Found::Node(operator) => {
                    let mut inputs = Vec::new();
                    for id in &node.inputs {
                        inputs.push(id.map(|id| self.plain(id, node)).transpose()?);
                    }
                    let outputs = node.outputs.iter().map(|id| {
                        let (id, value) = ((*id)?, self.value());
                        self.plain[id.idx()] = Some(value);
                        Some(value)
                    });
                    let outputs = outputs.collect();
                    let why = self.lower.finder.why_not(i);
                    self.step(node, Op::Operator(operator), why, inputs, outputs);
                }
                Found::Made(made) => self.made(made)?,
            }
        }
        for &id in &graph.outputs {
            let none = Node::new("", "output", [], []);
            let value = self.plain(id, &none)?;
            let port = port(graph, id, value);
            self.code.outputs.push(port);
        }
        Ok(self.code)
    }

    fn made(&mut self, made: Made) -> Result<(), Error> {
        let graph = self.lower.graph;
        let Made { mut op, node, reads, output, layout } = made;
        let node = &graph.nodes[node];
        let is_last = match layout {
            Layout::Last => true,
            Layout::Plain => false,
            // Channels last where one input is, and the others are images too.
            Layout::Either => {
                let is_image =
                    |id: ValueId| self.last[id.idx()].is_some() || self.lower.rank(id) == Some(4);
                reads.ids().any(|id| self.last[id.idx()].is_some()) && reads.ids().all(is_image)
            }
        };
        let mut inputs = Vec::new();
        match reads {
            Reads::Values(ids) => {
                for id in ids {
                    let value = if is_last { self.last(id, node)? } else { self.plain(id, node)? };
                    inputs.push(Some(value));
                }
            }
            Reads::Inputs(all) => {
                for input in all {
                    inputs.push(match input {
                        None => None,
                        Some(Input::Value(id)) => Some(self.plain(id, node)?),
                        Some(Input::Constant(tensor)) => {
                            let value = self.value();
                            self.keep(value, &tensor, graph.label(node), &node.op_type)?;
                            Some(value)
                        }
                    });
                }
            }
            Reads::Dynamic(codes) => {
                let value = self.dynamic[&codes];
                // As any other value, once more for the layout.
                inputs.push(Some(value));
            }
        }
        if let Op::Concat { axis, .. } = &mut op
            && is_last
        {
            // Where dimension `d` of (image, channel, row, column) is.
            *axis = *[0, 3, 1, 2].get(*axis).unwrap_or(axis);
        }
        let value = self.value();
        let layouts = if is_last { &mut self.last } else { &mut self.plain };
        layouts[output.idx()] = Some(value);
        self.step(node, op, String::new(), inputs, vec![Some(value)]);
        Ok(())
    }
}

fn port(graph: &Graph, id: ValueId, value: u32) -> Port {
    let ty = graph.value(id).ty.as_ref();
    let tensor = ty.filter(|ty| matches!(ty.kind, TypeKind::Tensor { .. }));
    let size = |dim: &Dim| match dim {
        Dim::Known(n) => Size::Known(*n),
        Dim::Symbol(name) => Size::Named(name.clone()),
        Dim::Unknown => Size::Unknown,
    };
    Port {
        name: graph.value_name(id).to_owned(),
        elem: tensor.and_then(|ty| ty.elem()).map_or(0, DataType::to_onnx),
        dims: tensor.and_then(|ty| ty.dims()).map(|dims| dims.iter().map(size).collect()),
        value,
    }
}

/// The output channels of some weights.
struct Channels<'a> {
    weights: &'a QuantizedWeights,
    scales: Vec<f32>,
    bias: Vec<i32>,
}

impl<'a> Channels<'a> {
    /// `None` where scales, zero points or the bias are not one for each of the `n` channels, or a weight less its
    /// zero point is no `i8`.
    fn new(
        weights: &'a QuantizedWeights,
        n: usize,
        axis: i64,
        x: &Codes,
        bias: &Bias,
    ) -> Option<Self> {
        let channels = Self { weights, scales: Vec::new(), bias: Vec::new() };
        if !channels.has_params(n, axis) || !channels.fits_bytes() {
            return None;
        }
        let scales: Vec<f32> = (0..n).map(|c| x.params.scale * at(&weights.scales, c)).collect();
        if !scales.iter().all(|s| s.is_finite() && 0.0 < *s) {
            return None;
        }
        let bias = match bias {
            Bias::None => vec![0; n],
            Bias::Codes(codes, None) => codes.to_vec().ok()?,
            Bias::Codes(codes, Some(of)) => {
                let is_same = |c: usize| (at(of, c) - scales[c]).abs() <= 1e-5 * scales[c];
                if !(of.len() == 1 || of.len() == n) || !(0..n).all(is_same) {
                    return None;
                }
                codes.to_vec().ok()?
            }
            Bias::Numbers(numbers) => {
                let numbers = numbers.to_vec::<f32>().ok()?;
                numbers.iter().zip(&scales).map(|(&b, &s)| quantize_bias(b, s)).collect()
            }
        };
        (bias.len() == n).then_some(Self { scales, bias, ..channels })
    }

    /// Whether scales and zero points are one, or one for each of `n` channels along `axis`.
    fn has_params(&self, n: usize, axis: i64) -> bool {
        [self.weights.scales.len(), self.weights.zero_points.len()]
            .into_iter()
            .all(|len| len == 1 || (len == n && self.weights.axis == axis))
    }

    /// Whether every weight less any zero point is an `i8`.
    fn fits_bytes(&self) -> bool {
        let zeros = &self.weights.zero_points;
        let (Some(&least), Some(&most)) = (zeros.iter().min(), zeros.iter().max()) else {
            return false;
        };
        let mut codes = (0..self.weights.codes.len()).map(|i| self.code(i));
        codes.all(|code| -128 <= code - most && code - least <= 127)
    }

    fn code(&self, i: usize) -> i32 {
        let byte = self.weights.codes.as_bytes()[i];
        if self.weights.codes.dtype() == DataType::Int8 {
            i32::from(byte.cast_signed())
        } else {
            i32::from(byte)
        }
    }

    /// The weights less their zero points, `k` for each channel: weight `p` of channel `j` is element `index(j, p)`.
    fn rows(&self, k: usize, index: impl Fn(usize, usize) -> usize) -> Vec<u8> {
        let n = self.bias.len();
        let weight = |j: usize, p: usize| {
            let value = self.code(index(j, p)) - at(&self.weights.zero_points, j);
            i8::try_from(value).expect("checked when the channels were made").cast_unsigned()
        };
        (0..n).flat_map(|j| (0..k).map(move |p| (j, p))).map(|(j, p)| weight(j, p)).collect()
    }

    /// The bias, less what the zero point of the input adds. `None` where it is no `i32`.
    fn folded(&self, rows: &[u8], k: usize, zero_point: i32) -> Option<Vec<i32>> {
        let sum = |j: usize| -> i64 {
            rows[j * k..][..k].iter().map(|w| i64::from(w.cast_signed())).sum()
        };
        let folded = self.bias.iter().enumerate();
        folded
            .map(|(j, &bias)| i32::try_from(i64::from(bias) - sum(j) * i64::from(zero_point)).ok())
            .collect()
    }

    /// What becomes of the sums: codes, or numbers without a `y`.
    fn to(
        &self,
        x_scale: f32,
        y: Option<Quant>,
        clamp: Option<(f32, f32)>,
        is_fixed: bool,
    ) -> Option<To> {
        let Some(y) = y else { return Some(To::Numbers { scales: self.scales.clone() }) };
        let scales = (0..self.bias.len()).map(|j| [x_scale, at(&self.weights.scales, j), y.scale]);
        let factors = if is_fixed {
            // A channel whose weights are all zero may have any scale.
            let least = |s: [f32; 3]| real_multiplier(s[0], s[1], s[2]) < 2.0_f64.powi(-32);
            let factor = |s| {
                if least(s) { fixed_factor([1.0, 2.0_f32.powi(-32), 1.0]) } else { fixed_factor(s) }
            };
            Factors::Fixed(scales.map(factor).collect::<Option<_>>()?)
        } else {
            let factors: Vec<f32> = scales.map(|[x, w, y]| multiplier(x, w, y)).collect();
            if !factors.iter().all(|f| f.is_finite()) {
                return None;
            }
            Factors::Float(factors)
        };
        let (codes, zero_point) = (clamped_codes(y, clamp), y.zero_point);
        Some(To::Codes { factors, codes, zero_point, is_signed: y.is_signed })
    }
}

/// One value for all, or one for each.
fn at<T: Copy>(values: &[T], i: usize) -> T {
    values[if values.len() == 1 { 0 } else { i }]
}

/// The least and the greatest code of numbers that are clamped before they are quantized: quantizing is monotonic.
fn clamped_codes(y: Quant, clamp: Option<(f32, f32)>) -> [i32; 2] {
    let range = y.range();
    let all = [range.qmin(), range.qmax()];
    let Some((low, high)) = clamp else { return all };
    let Ok(params) = QParams::new(y.scale, y.zero_point, range) else { return all };
    [params.quantize(low, range), params.quantize(high, range)]
}
