//! A quantized model as its reader sees it: logical tensors, and constants as floats.
//!
//! `x -> QuantizeLinear -> x_q -> DequantizeLinear -> x_dq` is one logical tensor with three values. Operators on
//! integers (QLinearConv and its like) make only the integers, whose parameters are among the operator's inputs.

use std::{borrow::Cow, collections::HashMap, num::NonZero};

use midtread_graph::{DataType, Graph, Node, Tensor, ValueId, model::opset_of};
use midtread_num::{
    Granularity, Layout, QParams, QRange,
    pack::SubByte,
    tensor::{Code, dequantize},
};
use midtread_ops::{Args, EvalCtx, Pool};
use midtread_quant::plan::constants::floats;

/// How the integers of a tensor are read: parameters, and the integers of the type.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Scales and zero points: one for the tensor, one for each index along `axis`, or one for each block.
    pub params: Vec<QParams>,
    /// Counted from the end if negative. Means nothing where there is one pair and no block.
    pub axis: i64,
    /// 0 for parameters that are not blocked.
    pub block_size: usize,
    /// Every integer of the element type.
    pub range: QRange,
    /// The element type.
    pub dtype: DataType,
}

impl Grid {
    /// The parameters, if the whole tensor has one pair.
    pub fn one(&self) -> Option<QParams> {
        match self.params[..] {
            [one] if self.block_size == 0 => Some(one),
            _ => None,
        }
    }

    /// Which parameter belongs to which element of a tensor of these sizes; `None` if they do not fit it.
    pub fn layout(&self, dims: &[usize]) -> Option<Layout> {
        let axis = || match usize::try_from(self.axis) {
            Ok(axis) => Some(axis),
            Err(_) => dims.len().checked_sub(usize::try_from(self.axis.unsigned_abs()).ok()?),
        };
        let granularity = match (self.one(), NonZero::new(self.block_size)) {
            (Some(_), _) => Granularity::PerTensor,
            (None, None) => Granularity::PerAxis { axis: axis()? },
            (None, Some(block_size)) => Granularity::Blocked { axis: axis()?, block_size },
        };
        let layout = granularity.layout(dims).ok()?;
        (layout.n_params() == self.params.len()).then_some(layout)
    }
}

/// One tensor of the computation, in all forms in which the quantized model has it.
#[derive(Clone, Debug, Default)]
pub struct Logical {
    /// The floats that are quantized, where the model has them.
    pub pre: Option<ValueId>,
    /// The integers.
    pub codes: Option<ValueId>,
    /// The floats that come out of dequantizing.
    pub post: Option<ValueId>,
    /// How floats become integers; `None` where nothing quantizes it with constant parameters.
    pub quantize: Option<Grid>,
    /// How integers become floats: as `quantize`, unless the model is broken.
    pub dequantize: Option<Grid>,
    /// Whether the parameters are computed while the model runs.
    pub is_dynamic: bool,
    /// All values, in the order of the graph.
    pub values: Vec<ValueId>,
}

/// The quantized graph, analyzed.
pub struct View<'a> {
    /// The graph.
    pub graph: &'a Graph,
    opset_imports: &'a [(String, i64)],
    /// The logical tensors, in the order in which the graph makes them.
    pub logicals: Vec<Logical>,
    /// By value: index into `logicals`, for everything that is not constant.
    of_value: Vec<Option<usize>>,
    /// By value: the node that makes it.
    producer: Vec<Option<usize>>,
    /// By value: the same in every run.
    is_constant: Vec<bool>,
}

/// A node as an operator on floats: its name there, and for each float operand the positions of value, scale and
/// zero point among the node's inputs.
pub struct FloatForm<'a> {
    /// `Conv` of a `QLinearConv`.
    pub op_type: Cow<'a, str>,
    /// One for each input of the float operator.
    pub operands: Vec<[Option<usize>; 3]>,
    /// Positions of the output's scale and zero point.
    pub output: Option<[usize; 2]>,
}

/// What a node computes, in terms of the float operator it stands for.
pub fn float_form(node: &Node) -> FloatForm<'_> {
    let one = |value| [Some(value), None, None];
    let triple = |value| [Some(value), Some(value + 1), Some(value + 2)];
    let form = |op_type: &'static str, operands: Vec<[Option<usize>; 3]>, output| FloatForm {
        op_type: Cow::Borrowed(op_type),
        operands,
        output,
    };
    let is_quantize = matches!(node.op_type.as_str(), "QuantizeLinear" | "DequantizeLinear");
    match node.op_type.as_str() {
        "QLinearConv" => form("Conv", vec![triple(0), triple(3), one(8)], Some([6, 7])),
        "QLinearMatMul" => form("MatMul", vec![triple(0), triple(3)], Some([6, 7])),
        "QGemm" => form("Gemm", vec![triple(0), triple(3), one(6)], Some([7, 8])),
        "ConvInteger" => form("Conv", vec![one(0), one(1)], None),
        "MatMulInteger" => form("MatMul", vec![one(0), one(1)], None),
        "MatMulNBits" => form("MatMul", vec![one(0), one(1)], None),
        "DynamicQuantizeMatMul" => form("MatMul", vec![one(0), [Some(1), Some(2), Some(3)]], None),
        "MatMulIntegerToFloat" => {
            form("MatMul", vec![[Some(0), Some(2), Some(4)], [Some(1), Some(3), Some(5)]], None)
        }
        "QLinearConcat" => {
            let n = node.inputs.len().saturating_sub(2) / 3;
            form("Concat", (0..n).map(|i| triple(2 + 3 * i)).collect(), Some([0, 1]))
        }
        "QLinearWhere" => form("Where", vec![one(0), triple(1), triple(4)], Some([7, 8])),
        name if name.starts_with("QLinear") && !is_quantize => {
            let op_type = Cow::Borrowed(&name["QLinear".len()..]);
            // Two operands and an output are eight inputs, one operand and an output five.
            if 6 < node.inputs.len() {
                FloatForm { op_type, operands: vec![triple(0), triple(3)], output: Some([6, 7]) }
            } else {
                FloatForm { op_type, operands: vec![triple(0)], output: Some([3, 4]) }
            }
        }
        name => FloatForm {
            op_type: Cow::Borrowed(name),
            operands: (0..node.inputs.len()).map(one).collect(),
            output: None,
        },
    }
}

/// Operators that move integers as they are.
const MOVES: &[&str] = &[
    "Flatten",
    "Gather",
    "GatherElements",
    "Identity",
    "MaxPool",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
    "Expand",
    "DepthToSpace",
    "SpaceToDepth",
    "Pad",
];

/// Constants are looked for through at most this many nodes.
const MAX_DEPTH: usize = 16;

impl<'a> View<'a> {
    /// Looks at every node once. `graph` is in an order in which values are made before they are used.
    pub fn new(graph: &'a Graph, opset_imports: &'a [(String, i64)]) -> Self {
        let n = graph.values().len();
        let mut view = Self {
            graph,
            opset_imports,
            logicals: Vec::new(),
            of_value: vec![None; n],
            producer: vec![None; n],
            is_constant: graph.value_ids().map(|id| graph.constant(id).is_some()).collect(),
        };
        for &id in &graph.inputs {
            if !view.is_constant[id.idx()] {
                view.own_logical(id);
            }
        }
        let order = midtread_exec::topological_order(graph)
            .unwrap_or_else(|_| (0..graph.nodes.len()).collect());
        for i in order {
            view.add(i);
        }
        view.find_missing_grids();
        view
    }

    fn add(&mut self, i: usize) {
        let node = &self.graph.nodes[i];
        let outputs: Vec<ValueId> = node.outputs.iter().flatten().copied().collect();
        for id in &outputs {
            self.producer[id.idx()] = Some(i);
        }
        let is_constant = !node.inputs.is_empty()
            && node.subgraphs().next().is_none()
            && node.inputs.iter().flatten().all(|id| self.is_constant[id.idx()]);
        if is_constant || (node.is("Constant") && node.inputs.is_empty()) {
            outputs.iter().for_each(|id| self.is_constant[id.idx()] = true);
            return;
        }
        let x = node.input(0).and_then(|id| Some((id, self.of_value[id.idx()]?)));
        let grid = |view: &Self, dtype: Option<DataType>| {
            view.grid(node.input(1), node.input(2), dtype, axis(node), block_size(node))
        };
        match (node.op_type.as_str(), x, &outputs[..]) {
            ("QuantizeLinear", Some((x, at)), &[codes]) => {
                let found = grid(self, self.graph.value(codes).ty.as_ref().and_then(|t| t.elem()));
                let is_constant = node.input(1).is_some_and(|scale| self.is_constant[scale.idx()]);
                let logical = &mut self.logicals[at];
                // A second pair after the first rounds again: the first pair's parameters describe the tensor.
                logical.pre.get_or_insert(x);
                if logical.codes.is_none() {
                    logical.codes = Some(codes);
                    logical.quantize = found;
                    logical.is_dynamic = !is_constant;
                }
                logical.values.push(codes);
                self.of_value[codes.idx()] = Some(at);
            }
            ("DequantizeLinear", Some((codes, at)), &[post]) => {
                let dtype = self.graph.value(codes).ty.as_ref().and_then(|t| t.elem());
                let dtype = dtype.or(self.logicals[at].quantize.as_ref().map(|g| g.dtype));
                let found = grid(self, dtype);
                let logical = &mut self.logicals[at];
                logical.codes.get_or_insert(codes);
                if logical.post.is_none() || logical.codes != Some(codes) {
                    logical.post = Some(post);
                    logical.dequantize = found;
                }
                logical.values.push(post);
                self.of_value[post.idx()] = Some(at);
            }
            ("DynamicQuantizeLinear", Some((x, at)), [codes, params @ ..]) => {
                let logical = &mut self.logicals[at];
                logical.pre.get_or_insert(x);
                logical.is_dynamic = true;
                logical.values.push(*codes);
                self.of_value[codes.idx()] = Some(at);
                for id in params {
                    self.own_logical(*id);
                }
            }
            _ => {
                let form = float_form(node);
                for (k, id) in outputs.iter().enumerate() {
                    let at = self.own_logical(*id);
                    let from = x.map(|(_, from)| from);
                    let moved = (MOVES.contains(&node.op_type.as_str()))
                        .then(|| from.map(|from| self.logicals[from].clone()))
                        .flatten()
                        .filter(|l| l.codes.is_some() && l.codes == node.input(0));
                    let found = match form.output {
                        Some([scale, zero_point]) if k == 0 => {
                            let dtype = self.graph.value(*id).ty.as_ref().and_then(|t| t.elem());
                            self.grid(node.input(scale), node.input(zero_point), dtype, None, 0)
                        }
                        _ => None,
                    };
                    let is_integers = found.is_some() || moved.is_some();
                    let logical = &mut self.logicals[at];
                    if is_integers {
                        logical.codes = Some(*id);
                        logical.pre = None;
                        logical.quantize = found.or_else(|| moved.and_then(|l| l.quantize));
                        logical.dequantize = logical.quantize.clone();
                    }
                }
            }
        }
    }

    /// A logical tensor of its own, with `id` as its floats.
    fn own_logical(&mut self, id: ValueId) -> usize {
        let at = self.logicals.len();
        self.logicals.push(Logical { pre: Some(id), values: vec![id], ..Logical::default() });
        self.of_value[id.idx()] = Some(at);
        at
    }

    /// Integers whose producer does not tell their parameters: an operator that takes them does.
    fn find_missing_grids(&mut self) {
        for node in &self.graph.nodes {
            for [value, scale, zero_point] in float_form(node).operands {
                let (Some(value), Some(scale)) = (value, scale) else { continue };
                let Some(id) = node.input(value) else { continue };
                let Some(at) = self.of_value[id.idx()] else { continue };
                let dtype = self.graph.value(id).ty.as_ref().and_then(|t| t.elem());
                let zero_point = zero_point.and_then(|k| node.input(k));
                let Some(grid) = self.grid(node.input(scale), zero_point, dtype, None, 0) else {
                    continue;
                };
                let logical = &mut self.logicals[at];
                if logical.codes.is_none() && logical.pre == Some(id) {
                    (logical.codes, logical.pre) = (Some(id), None);
                }
                if logical.quantize.is_none() && logical.codes == Some(id) && !logical.is_dynamic {
                    logical.quantize = Some(grid.clone());
                }
                // What reads the integers says what they mean.
                if logical.post.is_none() && logical.codes == Some(id) {
                    logical.dequantize = Some(grid);
                }
            }
        }
        for logical in &mut self.logicals {
            if logical.dequantize.is_none() && !logical.is_dynamic {
                logical.dequantize = logical.quantize.clone();
            }
            // Integers that come from a caller: what reads them says how they were meant.
            if logical.quantize.is_none() && logical.codes.is_some() && !logical.is_dynamic {
                logical.quantize = logical.dequantize.clone();
            }
            if logical.codes.is_some() && logical.codes == logical.pre {
                logical.pre = None;
            }
        }
    }

    /// The parameters that two constants hold; `None` for those that are not constant, not valid, or of a type
    /// without a grid of integers (int32, 8-bit floats).
    fn grid(
        &self,
        scale: Option<ValueId>,
        zero_point: Option<ValueId>,
        dtype: Option<DataType>,
        axis: Option<i64>,
        block_size: usize,
    ) -> Option<Grid> {
        let scale = self.constant(scale?)?;
        let zero_point = match zero_point {
            Some(id) => Some(self.constant(id)?),
            None => None,
        };
        grid_of(&scale, zero_point.as_ref(), dtype, axis, block_size)
    }

    /// The logical tensor of a value; `None` for constants.
    pub fn logical(&self, id: ValueId) -> Option<usize> {
        self.of_value.get(id.idx()).copied().flatten()
    }

    /// The node that makes a value.
    pub fn producer(&self, id: ValueId) -> Option<usize> {
        self.producer.get(id.idx()).copied().flatten()
    }

    /// The node that computes a logical tensor (not the one that only quantizes it).
    pub fn maker(&self, at: usize) -> Option<usize> {
        self.logicals[at].values.first().and_then(|&id| self.producer(id))
    }

    /// Whether a value is the same in every run.
    pub fn is_constant(&self, id: ValueId) -> bool {
        self.is_constant[id.idx()]
    }

    /// A value that is the same in every run, computed where need be.
    pub fn constant(&self, id: ValueId) -> Option<Tensor> {
        self.constant_at(id, 0)
    }

    fn constant_at(&self, id: ValueId, depth: usize) -> Option<Tensor> {
        if let Some(tensor) = self.graph.constant(id) {
            return Some(tensor.to_aligned());
        }
        if !self.is_constant[id.idx()] || MAX_DEPTH < depth {
            return None;
        }
        let node = &self.graph.nodes[self.producer(id)?];
        let inputs: Option<Vec<Option<Tensor>>> = node
            .inputs
            .iter()
            .map(|input| match input {
                Some(input) => self.constant_at(*input, depth + 1).map(Some),
                None => Some(None),
            })
            .collect();
        let def = midtread_ops::find(&node.domain, &node.op_type)?;
        let opset = opset_of(self.opset_imports, &node.domain)?;
        let pool = Pool::default();
        let outputs =
            def.evaluate_tensors(&EvalCtx { node, opset, pool: &pool }, Args(inputs?)).ok()?;
        let k = node.outputs.iter().position(|out| *out == Some(id))?;
        outputs.into_iter().nth(k)
    }

    /// The floats that operand `k` of a node's float form stands for, if they are constant, with the integers they
    /// are stored as (where they are).
    pub fn operand(&self, node: &Node, k: usize) -> Option<Operand> {
        if node.op_type == "MatMulNBits" && k == 1 {
            return self.n_bits_weight(node);
        }
        let [value, scale, zero_point] = *float_form(node).operands.get(k)?;
        let id = node.input(value?)?;
        let stored = self.constant(id)?;
        if stored.dtype() == DataType::Float {
            let source = self.producer(id).map(|i| &self.graph.nodes[i]);
            let codes = source
                .filter(|source| {
                    source.is("DequantizeLinear") || source.op_type == "DequantizeLinear"
                })
                .and_then(|source| {
                    let codes = self.constant(source.input(0)?)?;
                    let grid = self.grid(
                        source.input(1),
                        source.input(2),
                        Some(codes.dtype()),
                        axis(source),
                        block_size(source),
                    );
                    Some((codes, grid, self.graph.value_name(source.input(0)?).to_owned()))
                });
            let name = self.graph.value_name(id).to_owned();
            return Some(match codes {
                Some((codes, grid, stored_name)) => {
                    Operand { floats: stored, codes: Some(codes), grid, name: stored_name }
                }
                None => Operand { floats: stored, codes: None, grid: None, name },
            });
        }
        // Integers whose scale stands beside them, or in the graph under a name that goes with theirs.
        let name = self.graph.value_name(id).to_owned();
        let beside = |suffix: &str| {
            let base = name.strip_suffix("_quantized").unwrap_or(&name);
            self.graph.find(&format!("{base}{suffix}"))
        };
        let scale = scale.and_then(|k| node.input(k)).or_else(|| beside("_scale"));
        let own_zero_point = match node.op_type.as_str() {
            "ConvInteger" | "MatMulInteger" => node.input(2 + k),
            _ => None,
        };
        let zero_point = zero_point
            .and_then(|k| node.input(k))
            .or(own_zero_point)
            .or_else(|| beside("_zero_point"));
        if stored.dtype() == DataType::Int32 {
            return self.int_bias(node, &stored, name);
        }
        let axis = match node.op_type.as_str() {
            "QLinearConv" | "ConvInteger" => 0,
            "QGemm" if node.int("transB").unwrap_or(0) != 0 => 0,
            _ => -1,
        };
        let grid = self.grid(scale, zero_point, Some(stored.dtype()), Some(axis), 0)?;
        let floats = dequantized(&stored, &grid)?;
        Some(Operand { floats, codes: Some(stored), grid: Some(grid), name })
    }

    /// The bias of an operator on integers: its scale is the product of those of input and weight.
    fn int_bias(&self, node: &Node, codes: &Tensor, name: String) -> Option<Operand> {
        let form = float_form(node);
        let scale = |k: usize| -> Option<Vec<f32>> {
            let scale = self.constant(node.input((*form.operands.get(k)?)[1]?)?)?;
            Some(floats(&scale).ok()?.into_owned())
        };
        let (x, w) = (scale(0)?, scale(1)?);
        let codes_of = codes.to_vec::<i32>().ok()?;
        let [x] = x[..] else { return None };
        let values: Option<Vec<f32>> = codes_of
            .iter()
            .enumerate()
            .map(|(i, &q)| {
                let w = if w.len() == 1 { w[0] } else { *w.get(i)? };
                let scale = midtread_num::bias::bias_scale(x, w).ok()?;
                Some(midtread_num::bias::dequantize_bias(q, scale))
            })
            .collect();
        let floats = Tensor::from_slice(codes.dims().to_vec(), &values?).ok()?;
        Some(Operand { floats, codes: Some(codes.clone()), grid: None, name })
    }

    /// ONNX Runtime's MatMulNBits: `N` rows of blocks along `K`, 2, 4 or 8 bits, low bits first; the float operator
    /// takes the transposed.
    fn n_bits_weight(&self, node: &Node) -> Option<Operand> {
        let size = |name: &str| usize::try_from(node.int(name)?).ok();
        let (k, n) = (size("K")?, size("N")?);
        let (bits, block) = (size("bits").unwrap_or(4), size("block_size")?);
        if !matches!(bits, 2 | 4 | 8) || block == 0 {
            return None;
        }
        let id = node.input(1)?;
        let packed = self.constant(id)?;
        let scales = self.constant(node.input(2)?)?;
        let scales = floats(&scales).ok()?;
        let zero_points = node.input(3).and_then(|id| self.constant(id));
        let (n_blocks, per_byte) = (k.div_ceil(block), 8 / bits);
        let (blob, zero_point_row) = (block * bits / 8, n_blocks.div_ceil(per_byte));
        let bytes = packed.as_bytes();
        if bytes.len() < n.checked_mul(n_blocks)?.checked_mul(blob)?
            || scales.len() < n.checked_mul(n_blocks)?
        {
            return None;
        }
        let field = |byte: u8, i: usize| {
            i32::from((byte >> (i % per_byte * bits)) & (((1_u16 << bits) - 1) as u8))
        };
        let mut values = vec![0.0_f32; k.checked_mul(n)?];
        for row in 0..n {
            for b in 0..n_blocks {
                let zero_point = match &zero_points {
                    None => 1 << (bits - 1),
                    Some(z) if z.dtype() == DataType::Uint8 => {
                        field(*z.as_bytes().get(row * zero_point_row + b / per_byte)?, b)
                    }
                    // Zero points in float are no grid.
                    Some(_) => return None,
                };
                let range = QRange::new(0, (1 << bits) - 1).ok()?;
                let params = QParams::new(scales[row * n_blocks + b], zero_point, range).ok()?;
                for i in 0..block.min(k - b * block) {
                    let byte = bytes[(row * n_blocks + b) * blob + i / per_byte];
                    values[(b * block + i) * n + row] = params.dequantize(field(byte, i));
                }
            }
        }
        let floats = Tensor::from_slice(vec![k, n], &values).ok()?;
        let name = self.graph.value_name(id).to_owned();
        Some(Operand { floats, codes: None, grid: None, name })
    }
}

/// A constant operand of the quantized model.
pub struct Operand {
    /// As the model computes with it.
    pub floats: Tensor,
    /// As it is stored, where that is integers.
    pub codes: Option<Tensor>,
    /// How its integers are read.
    pub grid: Option<Grid>,
    /// The name of what is stored.
    pub name: String,
}

fn axis(node: &Node) -> Option<i64> {
    // ONNX's default, since version 13.
    Some(node.int("axis").unwrap_or(1))
}

fn block_size(node: &Node) -> usize {
    node.int("block_size").and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
}

/// Parameters from tensors. `axis` may count from the end; where the scales are one, it does not matter.
fn grid_of(
    scale: &Tensor,
    zero_point: Option<&Tensor>,
    dtype: Option<DataType>,
    axis: Option<i64>,
    block_size: usize,
) -> Option<Grid> {
    let dtype = zero_point.map(Tensor::dtype).or(dtype)?;
    let range = range_of(dtype)?;
    let scales = floats(scale).ok()?;
    let zero_points = match zero_point {
        Some(tensor) => integers(tensor)?,
        None => vec![0; scales.len()],
    };
    if scales.len() != zero_points.len() {
        return None;
    }
    let params: Option<Vec<QParams>> = scales
        .iter()
        .zip(&zero_points)
        .map(|(&scale, &zero_point)| QParams::new(scale, zero_point, range).ok())
        .collect();
    Some(Grid { params: params?, axis: axis.unwrap_or(0), block_size, range, dtype })
}

/// Every integer of a type that has a grid.
fn range_of(dtype: DataType) -> Option<QRange> {
    Some(match dtype {
        DataType::Int8 => QRange::I8,
        DataType::Uint8 => QRange::U8,
        DataType::Int16 => QRange::I16,
        DataType::Uint16 => QRange::U16,
        other => sub_byte(other)?.range(),
    })
}

fn sub_byte(dtype: DataType) -> Option<SubByte> {
    Some(match dtype {
        DataType::Int4 => SubByte::Int4,
        DataType::Uint4 => SubByte::Uint4,
        DataType::Int2 => SubByte::Int2,
        DataType::Uint2 => SubByte::Uint2,
        _ => return None,
    })
}

/// The elements of an integer tensor.
pub fn integers(tensor: &Tensor) -> Option<Vec<i32>> {
    fn all<T: midtread_graph::Element + Code>(tensor: &Tensor) -> Option<Vec<i32>> {
        Some(tensor.to_vec::<T>().ok()?.into_iter().map(Code::to_i32).collect())
    }
    match tensor.dtype() {
        DataType::Int8 => all::<i8>(tensor),
        DataType::Uint8 => all::<u8>(tensor),
        DataType::Int16 => all::<i16>(tensor),
        DataType::Uint16 => all::<u16>(tensor),
        DataType::Int32 => all::<i32>(tensor),
        other => {
            let codes = sub_byte(other)?.unpack(tensor.as_bytes(), tensor.len()).ok()?;
            Some(codes.into_iter().map(i32::from).collect())
        }
    }
}

/// The floats that integers stand for; `None` if the parameters do not fit the tensor.
pub fn dequantized(codes: &Tensor, grid: &Grid) -> Option<Tensor> {
    let layout = grid.layout(codes.dims())?;
    let mut values = vec![0.0; codes.len()];
    dequantize(&integers(codes)?, &mut values, layout, &grid.params);
    Tensor::from_slice(codes.dims().to_vec(), &values).ok()
}

/// The base names a value's name may have been made from, by the suffixes that tools write: itself first, then
/// without one suffix, then without two.
pub fn base_names(name: &str) -> Vec<&str> {
    const SUFFIXES: &[&str] = &[
        "_QuantizeLinear_Input",
        "_QuantizeLinear_Output",
        "_DequantizeLinear_Output",
        "_QuantizeLinear",
        "_DequantizeLinear",
        "_quantized",
        "_dequantized",
        "_quantize",
        "_dequantize",
        "_QuantizeLinearOutput",
        "_DequantizeLinearOutput",
        "_qdq",
        "_q",
        "_dq",
        "_fq",
        ":quantized",
        ":dequantized",
    ];
    let mut names = vec![name];
    let mut rest = name;
    for _ in 0..2 {
        // A tool that dequantizes once for each reader numbers them; a suffix may itself end in a number.
        let unnumbered = rest
            .rsplit_once('_')
            .filter(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
            .map_or(rest, |(base, _)| base);
        let strip = |text: &'_ str| {
            SUFFIXES.iter().find_map(|suffix| {
                text.ends_with(suffix).then(|| text.len() - suffix.len()).filter(|&n| 0 < n)
            })
        };
        let Some(len) = strip(rest).or_else(|| strip(unnumbered)) else { break };
        rest = &rest[..len];
        names.push(rest);
    }
    names
}

/// By name, the values of a graph that are not constant.
pub fn variables(graph: &Graph) -> HashMap<&str, ValueId> {
    let made = graph.nodes.iter().flat_map(|node| node.outputs.iter().flatten());
    let given = graph.inputs.iter().filter(|&&id| graph.constant(id).is_none());
    made.chain(given).map(|&id| (graph.value_name(id), id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_the_suffixes_that_tools_write() {
        let last = |name| base_names(name).last().copied().unwrap().to_owned();
        assert_eq!(last("conv1_out_DequantizeLinear_Output"), "conv1_out");
        assert_eq!(last("conv1_out_DequantizeLinear_Output_1"), "conv1_out");
        assert_eq!(last("conv1_out_QuantizeLinear_Input"), "conv1_out");
        assert_eq!(last("w_quantized"), "w");
        assert_eq!(last("bias_quantized_DequantizeLinear_Output"), "bias");
        // A number that belongs to the name stays, and so does a name that is nothing but a suffix.
        assert_eq!(last("conv_1"), "conv_1");
        assert_eq!(last("_quantized"), "_quantized");
    }

    #[test]
    fn axes_from_the_end_are_resolved_by_the_rank() {
        let two = Tensor::vector(&[0.5_f32, 0.25]);
        let zero = Tensor::vector(&[0_i8, 0]);
        for (axis, dims, want) in [(-1, vec![3, 2], 1), (-2, vec![2, 5], 0), (0, vec![2, 5], 0)] {
            let grid = grid_of(&two, Some(&zero), None, Some(axis), 0).unwrap();
            let layout = Granularity::PerAxis { axis: want }.layout(&dims).unwrap();
            assert_eq!(grid.layout(&dims), Some(layout), "{axis} of {dims:?}");
            assert_eq!(grid.layout(&[3, 3]), None, "two parameters for three channels");
        }
        assert_eq!(grid_of(&Tensor::vector(&[0.0_f32, 1.0]), Some(&zero), None, Some(0), 0), None);
    }

    #[test]
    fn codes_of_every_width_are_read() {
        let int4 = Tensor::from_bytes(DataType::Int4, vec![3], vec![0x9F, 0x07].into()).unwrap();
        assert_eq!(integers(&int4), Some(vec![-1, -7, 7]));
        let uint4 = Tensor::from_bytes(DataType::Uint4, vec![3], vec![0x9F, 0x07].into()).unwrap();
        assert_eq!(integers(&uint4), Some(vec![15, 9, 7]));
        assert_eq!(integers(&Tensor::vector(&[-5_i8, 5])), Some(vec![-5, 5]));
        assert_eq!(integers(&Tensor::vector(&[0.0_f32])), None);
    }
}
