//! The clusters that become integer steps.

use midtread_graph::{DataType, Graph, Links, Node, Tensor, ValueId};
use midtread_ops::constant_value;

use crate::code::{Quant, Reshape};

/// Codes that a step reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes {
    pub(crate) id: ValueId,
    pub(crate) params: Quant,
}

/// Constant weights: codes, scales (one, or one for each output channel) and zero points.
#[derive(Clone, Debug)]
pub(crate) struct QuantizedWeights {
    pub(crate) codes: Tensor,
    pub(crate) scales: Vec<f32>,
    pub(crate) zero_points: Vec<i32>,
    /// Which dimension the scales go along; meaningless for one scale.
    pub(crate) axis: i64,
}

/// A bias as it stands in the model.
#[derive(Clone, Debug)]
pub(crate) enum Bias {
    None,
    /// Steps of the scales, or of `scale_x * scale_w` where none are said.
    Codes(Tensor, Option<Vec<f32>>),
    Numbers(Tensor),
}

/// What a cluster computes.
#[derive(Debug)]
pub(crate) enum Kind {
    /// The node whose attributes hold the window, and whether it is followed by a clamp between two numbers.
    Conv {
        x: Codes,
        weights: QuantizedWeights,
        bias: Bias,
    },
    /// `x` times a matrix, which is stored transposed or not; and a row of codes that is added to codes.
    Product {
        x: Codes,
        weights: QuantizedWeights,
        bias: Bias,
        is_transposed: bool,
        row: Option<Row>,
    },
    /// Both made in the run, and orders of dimensions in which they are read and the product is written.
    Matmul {
        inputs: [Codes; 2],
        perms: [Option<Vec<usize>>; 3],
    },
    /// Along the last dimension.
    Softmax {
        x: Codes,
    },
    Add {
        inputs: [Codes; 2],
    },
    Mul {
        inputs: [Codes; 2],
    },
    Concat {
        inputs: Vec<Codes>,
    },
    GlobalAveragePool {
        x: Codes,
    },
    AveragePool {
        x: Codes,
    },
    /// Of signed codes, or not.
    MaxPool {
        x: ValueId,
        is_signed: bool,
    },
    /// Some nodes, in order, the last of which makes a code that depends on one code of `x` alone: a table of codes.
    Region {
        x: Codes,
        nodes: Vec<usize>,
    },
    /// The same, as an operator on codes.
    CodeTable {
        x: Codes,
    },
    /// Other sizes.
    Reshape {
        x: ValueId,
        reshape: Reshape,
    },
    /// Another order of dimensions.
    Transpose {
        x: ValueId,
        perm: Vec<usize>,
    },
    /// An operator that moves codes and does not look at them, and what it reads.
    Moves {
        inputs: Vec<Option<Input>>,
    },
    /// An operator on codes in place of the node.
    Instead {
        op_type: &'static str,
        inputs: Vec<Option<Input>>,
    },
    Quantize {
        x: ValueId,
    },
    /// With the parameters of the codes.
    Dequantize {
        x: Codes,
    },
    /// `x` is quantized while the model runs. The product is scaled to numbers, and `shift` added.
    DynamicProduct {
        x: ValueId,
        weights: QuantizedWeights,
        shift: Option<Tensor>,
    },
    DynamicConv {
        x: ValueId,
        weights: QuantizedWeights,
        /// The node with the window.
        conv: usize,
    },
}

/// What an operator reads.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Value(ValueId),
    Constant(Tensor),
}

/// A row of constant codes that is added to a product's.
#[derive(Debug)]
pub(crate) struct Row {
    /// The product's parameters before it.
    pub(crate) before: Quant,
    /// Numbers that the product was kept between.
    pub(crate) clamp: Option<(f32, f32)>,
    pub(crate) params: Quant,
    pub(crate) codes: Tensor,
    /// Whether the row is the first of the sum.
    pub(crate) is_swapped: bool,
}

/// Some nodes that become one step.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) kind: Kind,
    /// The node with the attributes.
    pub(crate) node: usize,
    /// Numbers that the result is kept between before it is quantized.
    pub(crate) clamp: Option<(f32, f32)>,
    /// The value made.
    pub(crate) output: ValueId,
    /// Its quantization; `None` where it stays a float.
    pub(crate) params: Option<Quant>,
}

/// What is known of a graph while clusters are looked for.
pub(crate) struct Finder<'a> {
    graph: &'a Graph,
    links: Links,
    is_input: Vec<bool>,
    /// Of ONNX's operators.
    opset: i64,
    /// Whether nothing may be computed in floating point.
    is_fixed: bool,
}

/// Functions of one number, whose other inputs are constants.
const UNARY: &[&str] = &[
    "Abs",
    "Celu",
    "Clip",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mish",
    "Neg",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tanh",
    "ThresholdedRelu",
];
/// Operators whose every element is a function of one element of each input.
const ELEMENTWISE: &[&str] = &[
    "Add",
    "Ceil",
    "Cos",
    "Div",
    "Floor",
    "Log",
    "Max",
    "Min",
    "Mul",
    "Pow",
    "Reciprocal",
    "Round",
    "Sign",
    "Sin",
    "Sub",
];
/// Operators whose output's elements are their first input's, besides those that only change its sizes.
const MOVES: &[&str] =
    &["DepthToSpace", "Expand", "Gather", "GatherND", "Slice", "SpaceToDepth", "Tile"];
/// Operators whose output's codes are their first input's, with the same parameters.
const KEEP_CODES: &[&str] = &[
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GatherND",
    "Identity",
    "MaxPool",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];

impl<'a> Finder<'a> {
    pub(crate) fn new(graph: &'a Graph, opset: i64, is_fixed: bool) -> Self {
        let mut is_input = vec![false; graph.values().len()];
        graph.inputs.iter().for_each(|id| is_input[id.idx()] = true);
        Self { graph, links: Links::new(graph), is_input, opset, is_fixed }
    }

    /// The value, where it is the same in every run.
    pub(crate) fn constant(&self, id: ValueId) -> Option<Tensor> {
        if self.is_input[id.idx()] {
            return None;
        }
        if let Some(tensor) = &self.graph.value(id).constant {
            return Some(tensor.to_aligned());
        }
        let node = &self.graph.nodes[self.links.producer(id)?];
        (node.op_type == "Constant").then(|| constant_value(node).ok())?
    }

    fn producer(&self, id: ValueId) -> Option<(usize, &'a Node)> {
        let i = self.links.producer(id)?;
        Some((i, &self.graph.nodes[i]))
    }

    /// The cluster that ends with node `i`, if there is one.
    pub(crate) fn cluster(&self, i: usize) -> Option<Cluster> {
        let cluster = self.cluster_at(i)?;
        Some(self.matmul_and_transpose(&cluster).unwrap_or(cluster))
    }

    fn cluster_at(&self, i: usize) -> Option<Cluster> {
        let node = &self.graph.nodes[i];
        match (node.domain.as_str(), node.op_type.as_str()) {
            ("", "QuantizeLinear") => {
                self.region(i).or_else(|| self.before_quantize(node)).or_else(|| {
                    let params =
                        self.params(node.input(1)?, node.input(2), node.int("output_dtype"))?;
                    let x = node.input(0).filter(|&x| self.constant(x).is_none())?;
                    let is_float =
                        self.graph.type_of(node.input(1)?)?.elem() == Some(DataType::Float);
                    let output = node.output(0)?;
                    let kind = Kind::Quantize { x };
                    is_float.then_some(Cluster {
                        kind,
                        node: i,
                        clamp: None,
                        output,
                        params: Some(params),
                    })
                })
            }
            ("", "DequantizeLinear") => {
                let x = self.dequantized(node.output(0)?)?;
                self.float_output(i, Kind::Dequantize { x })
            }
            ("", "QLinearConv") => {
                let weights = self.weights(node, 3, 4, 5, 0)?;
                let bias = match node.input(8) {
                    Some(id) => Bias::Codes(self.constant(id)?, None),
                    None => Bias::None,
                };
                let kind = Kind::Conv { x: self.codes_of(node, 0)?, weights, bias };
                self.qoperator(i, kind, 6)
            }
            ("", "QLinearMatMul") if self.constant(node.input(3)?).is_none() => {
                let inputs = [self.codes_of(node, 0)?, self.codes_of(node, 3)?];
                self.qoperator(i, self.matmul(inputs), 6)
            }
            ("", "QLinearMatMul") => {
                let weights = self.weights(node, 3, 4, 5, 1)?;
                let x = self.codes_of(node, 0)?;
                let kind =
                    Kind::Product { x, weights, bias: Bias::None, is_transposed: false, row: None };
                self.qoperator(i, kind, 6)
            }
            ("com.microsoft", "QGemm") => {
                if node.int("transA").unwrap_or(0) != 0 || node.float("alpha").unwrap_or(1.0) != 1.0
                {
                    return None;
                }
                let is_transposed = node.int("transB").unwrap_or(0) != 0;
                let bias = match node.input(6) {
                    Some(id) => Bias::Codes(self.constant(id)?, None),
                    None => Bias::None,
                };
                let weights = self.weights(node, 3, 4, 5, i64::from(!is_transposed))?;
                let x = self.codes_of(node, 0)?;
                let kind = Kind::Product { x, weights, bias, is_transposed, row: None };
                match node.input(7) {
                    Some(_) => self.qoperator(i, kind, 7),
                    None => self.float_output(i, kind),
                }
            }
            ("com.microsoft", "QLinearAdd") => {
                let inputs = [self.any_codes_of(node, 0)?, self.any_codes_of(node, 3)?];
                let sum = self.qoperator(i, Kind::Add { inputs }, 6)?;
                Some(self.product_and_row(&inputs, &sum).unwrap_or(sum))
            }
            ("com.microsoft", "QLinearMul") => {
                let inputs = [self.any_codes_of(node, 0)?, self.any_codes_of(node, 3)?];
                self.qoperator(i, Kind::Mul { inputs }, 6)
            }
            ("com.microsoft", "QLinearSoftmax") => {
                let x = self.codes_of(node, 0)?;
                let opset = node.int("opset").unwrap_or(13);
                let cluster = self.qoperator(i, Kind::Softmax { x }, 3)?;
                self.is_along_last(node, x.id, opset).then_some(cluster)
            }
            ("com.microsoft", "QLinearConcat") => {
                let inputs = (2..node.inputs.len()).step_by(3).map(|at| self.codes_of(node, at));
                let inputs = inputs.collect::<Option<Vec<_>>>()?;
                self.qoperator(i, Kind::Concat { inputs }, 0)
            }
            ("com.microsoft", "QLinearAveragePool")
                if node.int("channels_last").unwrap_or(0) == 0 =>
            {
                self.qoperator(i, Kind::AveragePool { x: self.codes_of(node, 0)? }, 3)
            }
            ("com.microsoft", "QLinearLeakyRelu" | "QLinearSigmoid") => {
                self.qoperator(i, Kind::CodeTable { x: self.codes_of(node, 0)? }, 3)
            }
            ("com.microsoft", "QLinearGlobalAveragePool")
                if node.int("channels_last").unwrap_or(0) == 0 =>
            {
                self.qoperator(i, Kind::GlobalAveragePool { x: self.codes_of(node, 0)? }, 3)
            }
            ("", "MatMul" | "Gemm") => self.float_output(i, self.product(node)?),
            ("", "Mul") => {
                let kind = self.dynamic_product(node, None).or_else(|| self.dynamic_conv(node))?;
                self.float_output(i, kind)
            }
            ("", "Add") => self.float_output(i, self.dynamic_product_and_shift(node)?),
            ("", "MaxPool") if node.output(1).is_none() => {
                let x = node.input(0)?;
                let is_signed = self.code_type(x, 0)?;
                self.float_output(i, Kind::MaxPool { x, is_signed })
            }
            // Numbers stay with the operators, which do not copy them.
            ("", _) => {
                let x = node.input(0)?;
                self.code_type(x, 0)?;
                self.float_output(i, self.moved(node, x)?)
            }
            _ => None,
        }
    }

    /// A QOperator node: scale and zero point of its output are inputs `at` and `at + 1`.
    fn qoperator(&self, i: usize, kind: Kind, at: usize) -> Option<Cluster> {
        let node = &self.graph.nodes[i];
        let params = self.params(node.input(at)?, node.input(at + 1), None)?;
        let output = node.output(0)?;
        Some(Cluster { kind, node: i, clamp: None, output, params: Some(params) })
    }

    fn float_output(&self, i: usize, kind: Kind) -> Option<Cluster> {
        let output = self.graph.nodes[i].output(0)?;
        Some(Cluster { kind, node: i, clamp: None, output, params: None })
    }

    /// What comes before a QuantizeLinear, if nothing else uses it.
    fn before_quantize(&self, quantize: &Node) -> Option<Cluster> {
        let params =
            self.params(quantize.input(1)?, quantize.input(2), quantize.int("output_dtype"))?;
        let output = quantize.output(0)?;
        let (mut i, mut node) = self.only_producer(quantize.input(0)?)?;
        let mut clamp = None;
        if matches!(node.op_type.as_str(), "Relu" | "Clip")
            && node.domain.is_empty()
            && let Some((before, inner)) = self.only_producer(node.input(0)?)
            && matches!(inner.op_type.as_str(), "Conv" | "Gemm" | "MatMul" | "Add" | "Mul")
        {
            clamp = Some(self.bounds(node)?);
            (i, node) = (before, inner);
        }
        if !node.domain.is_empty() && node.domain != "com.microsoft" {
            return None;
        }
        let kind = match node.op_type.as_str() {
            "Conv" => Kind::Conv {
                x: self.dequantized(node.input(0)?)?,
                weights: self.dequantized_weights(node.input(1)?)?,
                bias: self.bias(node.input(2))?,
            },
            "MatMul" | "Gemm" => match self.product(node) {
                Some(kind) => kind,
                // Both factors are made while the model runs.
                None if node.op_type == "MatMul" => {
                    let inputs = [node.input(0)?, node.input(1)?].map(|id| self.dequantized(id));
                    self.matmul([inputs[0]?, inputs[1]?])
                }
                None => return None,
            },
            op @ ("Add" | "Mul") => {
                let inputs = [node.input(0)?, node.input(1)?].map(|id| self.any_dequantized(id));
                let inputs = [inputs[0]?, inputs[1]?];
                if inputs.iter().all(|x| self.constant(x.id).is_some()) {
                    return None;
                }
                if op == "Mul" {
                    Kind::Mul { inputs }
                } else {
                    let params = Some(params);
                    let sum =
                        Cluster { kind: Kind::Add { inputs }, node: i, clamp, output, params };
                    return Some(self.product_and_row(&inputs, &sum).unwrap_or(sum));
                }
            }
            "Concat" => {
                let inputs = node.inputs.iter().map(|&id| self.dequantized(id?));
                Kind::Concat { inputs: inputs.collect::<Option<Vec<_>>>()? }
            }
            "GlobalAveragePool" => Kind::GlobalAveragePool { x: self.dequantized(node.input(0)?)? },
            "AveragePool" => Kind::AveragePool { x: self.dequantized(node.input(0)?)? },
            "Softmax" if self.is_along_last(node, node.input(0)?, self.opset) => {
                Kind::Softmax { x: self.dequantized(node.input(0)?)? }
            }
            "Softmax" => {
                let x = self.dequantized(node.input(0)?)?;
                let inputs =
                    [&[Some(Input::Value(x.id))][..], &of(x.params)?, &of(params)?].concat();
                Kind::Instead { op_type: "QLinearSoftmax", inputs }
            }
            "MaxPool" if node.output(1).is_none() => {
                let x = self.dequantized(node.input(0)?)?;
                (x.params == params)
                    .then_some(Kind::MaxPool { x: x.id, is_signed: params.is_signed })?
            }
            _ => {
                let x = self.dequantized(node.input(0)?)?;
                (x.params == params).then(|| self.moved(node, x.id))??
            }
        };
        Some(Cluster { kind, node: i, clamp, output, params: Some(params) })
    }

    fn only_producer(&self, id: ValueId) -> Option<(usize, &'a Node)> {
        self.links.only_consumer(id)?;
        self.producer(id)
    }

    /// What only moves elements of `x`.
    fn moved(&self, node: &Node, x: ValueId) -> Option<Kind> {
        let list = |i: usize, name: &str| match node.input(i) {
            Some(id) => Some(Some(self.constant(id)?.to_vec::<i64>().ok()?)),
            None => Some(node.ints(name).map(<[i64]>::to_vec)),
        };
        let reshape = match node.op_type.as_str() {
            "Reshape" => Reshape::To {
                sizes: list(1, "shape")??,
                allow_zero: node.int("allowzero").unwrap_or(0) != 0,
            },
            "Flatten" => Reshape::Flatten(node.int("axis").unwrap_or(1)),
            "Squeeze" => Reshape::Squeeze(list(1, "axes")?),
            "Unsqueeze" => Reshape::Unsqueeze(list(1, "axes")??),
            "Identity" => Reshape::Squeeze(Some(Vec::new())),
            "Transpose" => {
                let perm = node.ints("perm")?.iter().map(|&d| usize::try_from(d).ok());
                return Some(Kind::Transpose { x, perm: perm.collect::<Option<_>>()? });
            }
            op if MOVES.contains(&op) || self.is_nearest_resize(node) => {
                let mut inputs: Vec<_> =
                    node.inputs.iter().map(|id| id.map(Input::Value)).collect();
                *inputs.first_mut()? = Some(Input::Value(x));
                return Some(Kind::Moves { inputs });
            }
            _ => return None,
        };
        Some(Kind::Reshape { x, reshape })
    }

    fn is_nearest_resize(&self, node: &Node) -> bool {
        node.op_type == "Resize" && node.str("mode").unwrap_or("nearest") == "nearest"
    }

    /// Whether a value's codes are signed, where it is known to be codes.
    fn code_type(&self, id: ValueId, depth: usize) -> Option<bool> {
        let (_, node) = self.producer(id)?;
        let at = match (node.domain.as_str(), node.op_type.as_str()) {
            ("", "QuantizeLinear") => {
                return Some(
                    self.params(node.input(1)?, node.input(2), node.int("output_dtype"))?.is_signed,
                );
            }
            ("", "QLinearConv" | "QLinearMatMul")
            | ("com.microsoft", "QLinearAdd" | "QLinearMul") => 7,
            ("com.microsoft", "QGemm") => 8,
            ("com.microsoft", "QLinearConcat") => 1,
            (
                "com.microsoft",
                "QLinearGlobalAveragePool"
                | "QLinearAveragePool"
                | "QLinearLeakyRelu"
                | "QLinearSigmoid"
                | "QLinearSoftmax",
            ) => 4,
            // A long chain of them is not worth following.
            ("", op) if KEEP_CODES.contains(&op) && depth < 64 => {
                return self.code_type(node.input(0)?, depth + 1);
            }
            _ => return None,
        };
        match self.constant(node.input(at)?)?.dtype() {
            DataType::Uint8 => Some(false),
            DataType::Int8 => Some(true),
            _ => None,
        }
    }

    /// Why node `i` is not done in integers: a clause.
    pub(crate) fn why_not(&self, i: usize) -> String {
        let node = &self.graph.nodes[i];
        let name = |id: ValueId| self.graph.value_name(id).to_owned();
        let op = node.op_type.as_str();
        let is_quantizable = UNARY.contains(&op)
            || KEEP_CODES.contains(&op)
            || [
                "Conv",
                "MatMul",
                "Gemm",
                "Add",
                "Mul",
                "Concat",
                "GlobalAveragePool",
                "AveragePool",
                "Softmax",
                "Resize",
            ]
            .contains(&op);
        if op.starts_with("QLinear") || op == "QGemm" || op.ends_with("Integer") {
            return "on codes, by the operator's definition: weights or parameters that are not constant, or a form without a kernel".to_owned();
        }
        if op == "MatMulNBits" {
            return "its weights are widened to numbers, as its definition says".to_owned();
        }
        if matches!(op, "QuantizeLinear" | "DequantizeLinear" | "DynamicQuantizeLinear") {
            return "more than one scale, another type than 8-bit codes, or codes that other operators read too".to_owned();
        }
        if !is_quantizable || !(node.domain.is_empty() || node.domain == "com.microsoft") {
            return "there is no integer form of the operator".to_owned();
        }
        for id in node.inputs.iter().take(if op == "Concat" { usize::MAX } else { 2 }).flatten() {
            let is_data = node.inputs.first() == Some(&Some(*id))
                || ["Conv", "MatMul", "Gemm", "Add", "Mul", "Concat"].contains(&op);
            let is_dequantized = self.producer(*id).is_some_and(|(_, p)| p.is("DequantizeLinear"));
            if is_data && !is_dequantized {
                return format!("its input `{}` is not quantized", name(*id));
            }
        }
        let output = node.output(0);
        let consumers: Vec<&Node> = output
            .map_or(&[][..], |id| self.links.consumers(id))
            .iter()
            .map(|&c| &self.graph.nodes[c])
            .collect();
        match (output, &consumers[..]) {
            (Some(id), [_, _, ..]) => format!("its result `{}` is used more than once before it is quantized", name(id)),
            (Some(id), [next]) if !next.is("QuantizeLinear") => {
                format!("its result `{}` goes to {} before it is quantized", name(id), next.op_type)
            }
            (Some(id), []) => format!("its result `{}` is not quantized", name(id)),
            _ => "its parameters have no integer kernel: more than one scale, other types, or other attributes".to_owned(),
        }
    }

    /// A product of two, which reads and writes its matrices in another order of dimensions where a Transpose gives one.
    fn matmul(&self, mut inputs: [Codes; 2]) -> Kind {
        let mut perms = [None, None, None];
        for (i, (x, folded)) in inputs.iter_mut().zip(&mut perms).enumerate() {
            let turned = self.links.producer(x.id).and_then(|at| self.cluster_at(at));
            if let Some(Cluster { kind: Kind::Transpose { x: before, perm }, .. }) = turned
                && (i == 1 || keeps_last(&perm))
            {
                (x.id, *folded) = (before, Some(perm));
            }
        }
        Kind::Matmul { inputs, perms }
    }

    /// A Transpose of a product of two that nothing else reads.
    fn matmul_and_transpose(&self, transpose: &Cluster) -> Option<Cluster> {
        let Kind::Transpose { x, perm } = &transpose.kind else { return None };
        let made = self.only_producer_of_codes(*x, transpose.node)?;
        let Cluster { kind: Kind::Matmul { inputs, perms: [a, b, None] }, .. } = made else {
            return None;
        };
        let kind = Kind::Matmul { inputs, perms: [a, b, Some(perm.clone())] };
        let is_codes = made.params.is_some() && keeps_last(perm);
        is_codes.then_some(Cluster { kind, output: transpose.output, ..made })
    }

    /// A sum of a product's codes, which nothing else reads, and a constant row.
    fn product_and_row(&self, inputs: &[Codes; 2], sum: &Cluster) -> Option<Cluster> {
        let at = inputs.iter().position(|x| self.constant(x.id).is_some())?;
        let (row, x) = (inputs[at], inputs[1 - at]);
        let codes = self.constant(row.id)?;
        let made = self.only_producer_of_codes(x.id, sum.node)?;
        let Kind::Product { x: of, weights, bias, is_transposed, row: None } = made.kind else {
            return None;
        };
        let n = *weights.codes.dims().get(usize::from(!is_transposed))?;
        let rank = self.graph.type_of(x.id).and_then(|ty| Some(ty.dims()?.len()));
        let is_row = codes.len() == n
            && codes.dims().last() == Some(&n)
            && 1 < n
            && (codes.dims().len() == 1 || rank.is_some_and(|rank| codes.dims().len() <= rank));
        if !is_row || self.is_fixed || made.params != Some(x.params) {
            return None;
        }
        let (before, clamp) = (x.params, made.clamp);
        let row = Row { before, clamp, params: row.params, codes, is_swapped: at == 0 };
        let kind = Kind::Product { x: of, weights, bias, is_transposed, row: Some(row) };
        let Cluster { clamp, output, params, .. } = *sum;
        Some(Cluster { kind, node: made.node, clamp, output, params })
    }

    /// The cluster that makes codes, where node `reader` alone reads them, as they are or dequantized.
    fn only_producer_of_codes(&self, id: ValueId, reader: usize) -> Option<Cluster> {
        let mut next = self.links.only_consumer(id)?;
        let node = &self.graph.nodes[next];
        if node.is("DequantizeLinear") {
            next = self.links.only_consumer(node.output(0)?)?;
        }
        (next == reader).then(|| self.cluster_at(self.links.producer(id)?))?
    }

    /// Whether a softmax goes along the last dimension. Before version 13 it went along all from its axis on.
    fn is_along_last(&self, node: &Node, x: ValueId, opset: i64) -> bool {
        let rank = self.graph.type_of(x).and_then(|ty| Some(ty.dims()?.len() as i64));
        match node.int("axis") {
            Some(-1) => true,
            Some(axis) => rank.is_some_and(|rank| axis == rank - 1),
            None if opset < 13 => rank == Some(2),
            None => true,
        }
    }

    /// What a QuantizeLinear makes codes of, where these depend on one code each.
    fn region(&self, i: usize) -> Option<Cluster> {
        let quantize = &self.graph.nodes[i];
        let params =
            self.params(quantize.input(1)?, quantize.input(2), quantize.int("output_dtype"))?;
        let mut nodes = Vec::new();
        // A number in a vector gives a vector: only where there is one anyway.
        let rank = self.graph.type_of(quantize.input(0)?).and_then(|ty| Some(ty.dims()?.len()));
        let most = usize::from(rank.is_some_and(|rank| 1 < rank));
        let x = self.source(quantize.input(0)?, most, &mut nodes)?;
        nodes.push(i);
        // The node that people know it by: the last that is no conversion.
        let is_conversion = |node: &Node| node.is("QuantizeLinear") || node.is("DequantizeLinear");
        let known = nodes.iter().rev().find(|i| !is_conversion(&self.graph.nodes[**i]));
        let node = known.copied().unwrap_or(i);
        let (output, params) = (quantize.output(0)?, Some(params));
        Some(Cluster { kind: Kind::Region { x, nodes }, node, clamp: None, output, params })
    }

    /// The codes, each of which gives one of the numbers; and the nodes in between, in order, added to `nodes`. Constants
    /// have `most` dimensions or fewer.
    fn source(&self, id: ValueId, most: usize, nodes: &mut Vec<usize>) -> Option<Codes> {
        /// More are no activation function.
        const MOST: usize = 64;
        let (i, node) = self.producer(id)?;
        if MOST < nodes.len() {
            return None;
        }
        let x = match node.op_type.as_str() {
            "DequantizeLinear" if node.domain.is_empty() => {
                let x = self.dequantized(id)?;
                let n_before = nodes.len();
                // Those codes may be made of others one by one in turn.
                let deeper = self.producer(x.id).and_then(|(before, quantize)| {
                    if !quantize.is("QuantizeLinear") {
                        return None;
                    }
                    self.params(
                        quantize.input(1)?,
                        quantize.input(2),
                        quantize.int("output_dtype"),
                    )?;
                    let x = self.source(quantize.input(0)?, most, nodes)?;
                    nodes.push(before);
                    Some(x)
                });
                if deeper.is_none() {
                    nodes.truncate(n_before);
                }
                deeper.unwrap_or(x)
            }
            op if UNARY.contains(&op) || ELEMENTWISE.contains(&op) => {
                let mut found: Option<Codes> = None;
                for &id in node.inputs.iter().flatten() {
                    if self.scalar(id, most, nodes).is_some() {
                        continue;
                    }
                    let x = self.source(id, most, nodes)?;
                    if found.is_some_and(|found| found.id != x.id || found.params != x.params) {
                        return None;
                    }
                    found = Some(x);
                }
                found?
            }
            _ => return None,
        };
        if !nodes.contains(&i) {
            nodes.push(i);
        }
        Some(x)
    }

    /// Whether a value is one constant number; if a DequantizeLinear makes it, that is added to `nodes`.
    fn scalar(&self, id: ValueId, most: usize, nodes: &mut Vec<usize>) -> Option<()> {
        let is_one =
            |id: ValueId| self.constant(id).is_some_and(|x| x.len() == 1 && x.dims().len() <= most);
        if is_one(id) {
            return Some(());
        }
        let (i, node) = self.producer(id)?;
        let is_scalar =
            node.is("DequantizeLinear") && node.inputs.iter().flatten().all(|&id| is_one(id));
        if is_scalar && !nodes.contains(&i) {
            nodes.push(i);
        }
        is_scalar.then_some(())
    }

    fn bounds(&self, node: &Node) -> Option<(f32, f32)> {
        if node.op_type == "Relu" {
            return Some((0.0, f32::INFINITY));
        }
        let bound = |name: &str, i: usize, none: f32| match node.input(i) {
            Some(id) => self.constant(id)?.item::<f32>(),
            None => Some(node.float(name).unwrap_or(none)),
        };
        Some((bound("min", 1, f32::NEG_INFINITY)?, bound("max", 2, f32::INFINITY)?))
    }

    fn product(&self, node: &Node) -> Option<Kind> {
        let is_gemm = node.op_type == "Gemm";
        let factor = |name| node.float(name).unwrap_or(1.0);
        if is_gemm
            && (node.int("transA").unwrap_or(0) != 0
                || factor("alpha") != 1.0
                || factor("beta") != 1.0)
        {
            return None;
        }
        let is_transposed = is_gemm && node.int("transB").unwrap_or(0) != 0;
        let (x, weights) =
            (self.dequantized(node.input(0)?)?, self.dequantized_weights(node.input(1)?)?);
        let bias = if is_gemm { self.bias(node.input(2))? } else { Bias::None };
        Some(Kind::Product { x, weights, bias, is_transposed, row: None })
    }

    /// What ONNX Runtime's dynamic quantizer writes: `Mul(Cast(MatMulInteger), Mul(scale_x, scale_w))`, where `x` comes
    /// from a DynamicQuantizeLinear.
    fn dynamic(&self, mul: &Node, op_type: &str) -> Option<(ValueId, QuantizedWeights, usize)> {
        let is_conv = op_type == "ConvInteger";
        let (cast, scales) = one_of_each(mul, |id| {
            let (_, node) = self.only_producer(id)?;
            (node.is("Cast") && node.int("to") == Some(1)).then_some(node)
        })?;
        let (at, product) = self.only_producer(cast.input(0)?)?;
        let (_, scales) = self.producer(scales)?;
        if !product.is(op_type) || !scales.is("Mul") {
            return None;
        }
        let (w_scales, x_scale) = one_of_each(scales, |id| self.constant(id))?;
        let (_, quantize) = self.producer(x_scale)?;
        let x = [product.input(0)?, x_scale, product.input(2)?];
        let made = (0..3).map(|i| quantize.output(i));
        if !quantize.is("DynamicQuantizeLinear") || !made.eq(x.map(Some)) {
            return None;
        }
        let codes = self.constant(product.input(1)?)?;
        let scales = w_scales.to_vec::<f32>().ok()?;
        let zero_points = self.zero_points(product.input(3))?;
        let axis = if is_conv { 0 } else { codes.dims().len() as i64 - 1 };
        let weights = QuantizedWeights { codes, scales, zero_points, axis };
        Some((x[0], weights, at))
    }

    fn dynamic_product(&self, mul: &Node, shift: Option<Tensor>) -> Option<Kind> {
        let (x, weights, _) = self.dynamic(mul, "MatMulInteger")?;
        Some(Kind::DynamicProduct { x, weights, shift })
    }

    fn dynamic_conv(&self, mul: &Node) -> Option<Kind> {
        let (x, weights, conv) = self.dynamic(mul, "ConvInteger")?;
        Some(Kind::DynamicConv { x, weights, conv })
    }

    fn dynamic_product_and_shift(&self, add: &Node) -> Option<Kind> {
        let (shift, product) = one_of_each(add, |id| self.constant(id))?;
        let (_, mul) = self.only_producer(product)?;
        let is_row = shift.dims().len() == 1 && shift.dtype() == DataType::Float;
        (is_row && mul.is("Mul")).then(|| self.dynamic_product(mul, Some(shift)))?
    }

    /// The codes behind a DequantizeLinear with one scale, which are made in the run.
    fn dequantized(&self, id: ValueId) -> Option<Codes> {
        self.any_dequantized(id).filter(|x| self.constant(x.id).is_none())
    }

    /// The codes behind a DequantizeLinear with one scale.
    fn any_dequantized(&self, id: ValueId) -> Option<Codes> {
        let (_, node) = self.producer(id)?;
        if !node.is("DequantizeLinear") {
            return None;
        }
        let params = self.params(node.input(1)?, node.input(2), None)?;
        Some(Codes { id: node.input(0)?, params })
    }

    /// Input `at` and the two after it: codes that are made in the run, scale, zero point.
    fn codes_of(&self, node: &Node, at: usize) -> Option<Codes> {
        self.any_codes_of(node, at).filter(|x| self.constant(x.id).is_none())
    }

    /// Input `at` and the two after it: codes, scale, zero point.
    fn any_codes_of(&self, node: &Node, at: usize) -> Option<Codes> {
        let id = node.input(at)?;
        Some(Codes { id, params: self.params(node.input(at + 1)?, node.input(at + 2), None)? })
    }

    fn params(&self, scale: ValueId, zero: Option<ValueId>, dtype: Option<i64>) -> Option<Quant> {
        let scale = self.constant(scale)?.item::<f32>()?;
        let (zero_point, is_signed) = match zero {
            Some(id) => {
                let zero = self.constant(id)?;
                match zero.dtype() {
                    DataType::Uint8 => (i32::from(zero.item::<u8>()?), false),
                    DataType::Int8 => (i32::from(zero.item::<i8>()?), true),
                    _ => return None,
                }
            }
            // ONNX's default is uint8.
            None => match dtype.unwrap_or(0) {
                0 | 2 => (0, false),
                3 => (0, true),
                _ => return None,
            },
        };
        (scale.is_finite() && 0.0 < scale).then_some(Quant { scale, zero_point, is_signed })
    }

    fn dequantized_weights(&self, id: ValueId) -> Option<QuantizedWeights> {
        let (_, node) = self.producer(id)?;
        if !node.is("DequantizeLinear") || node.int("block_size").unwrap_or(0) != 0 {
            return None;
        }
        self.weights(node, 0, 1, 2, node.int("axis").unwrap_or(1))
    }

    fn weights(
        &self,
        node: &Node,
        codes: usize,
        scale: usize,
        zero: usize,
        axis: i64,
    ) -> Option<QuantizedWeights> {
        let codes = self.constant(node.input(codes)?)?;
        let codes = bytes_of_codes(&codes)?;
        let scales = self.constant(node.input(scale)?)?.to_vec::<f32>().ok()?;
        let zero_points = self.zero_points(node.input(zero))?;
        let axis = if axis < 0 { axis + codes.dims().len() as i64 } else { axis };
        Some(QuantizedWeights { codes, scales, zero_points, axis })
    }

    /// Constant zero points of weights; 0 where they are left out.
    fn zero_points(&self, id: Option<ValueId>) -> Option<Vec<i32>> {
        let Some(id) = id else { return Some(vec![0]) };
        let zero = bytes_of_codes(&self.constant(id)?)?;
        Some(match zero.dtype() {
            DataType::Uint8 => zero.to_vec::<u8>().ok()?.into_iter().map(i32::from).collect(),
            DataType::Int8 => zero.to_vec::<i8>().ok()?.into_iter().map(i32::from).collect(),
            _ => return None,
        })
    }

    /// A bias behind a DequantizeLinear, in float, or none.
    fn bias(&self, id: Option<ValueId>) -> Option<Bias> {
        let Some(id) = id else { return Some(Bias::None) };
        if let Some(numbers) = self.constant(id) {
            return (numbers.dtype() == DataType::Float).then_some(Bias::Numbers(numbers));
        }
        let (_, node) = self.producer(id)?;
        let codes = self.constant(node.input(0)?)?;
        let scales = self.constant(node.input(1)?)?.to_vec::<f32>().ok()?;
        let is_bias = node.is("DequantizeLinear") && codes.dtype() == DataType::Int32;
        is_bias.then_some(Bias::Codes(codes, Some(scales)))
    }
}

/// Whether the last dimension stays the last.
fn keeps_last(perm: &[usize]) -> bool {
    perm.last().is_some_and(|&last| last == perm.len() - 1)
}

/// What `find` makes of one of a node's two inputs, in whichever order they are, and the other input.
fn one_of_each<T>(node: &Node, find: impl Fn(ValueId) -> Option<T>) -> Option<(T, ValueId)> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    find(a).map(|found| (found, b)).or_else(|| Some((find(b)?, a)))
}

/// Scale and zero point as constants that an operator reads.
fn of(params: Quant) -> Option<[Option<Input>; 2]> {
    let dtype = if params.is_signed { DataType::Int8 } else { DataType::Uint8 };
    let zero = Tensor::from_bytes(dtype, Vec::new(), vec![params.zero_point as u8].into()).ok()?;
    Some([Tensor::scalar(params.scale), zero].map(|tensor| Some(Input::Constant(tensor))))
}

/// Codes of 8 bits as they are, and of 4 bits one a byte.
fn bytes_of_codes(codes: &Tensor) -> Option<Tensor> {
    let nibble = |i: usize| codes.as_bytes()[i / 2] >> (i % 2 * 4) & 15;
    let dims = codes.dims().to_vec();
    match codes.dtype() {
        DataType::Uint8 | DataType::Int8 => Some(codes.clone()),
        DataType::Uint4 => {
            let bytes: Vec<u8> = (0..codes.len()).map(nibble).collect();
            Tensor::from_slice(dims, &bytes).ok()
        }
        DataType::Int4 => {
            // The sign bit of the nibble to the byte's.
            let bytes: Vec<i8> =
                (0..codes.len()).map(|i| (nibble(i) << 4).cast_signed() >> 4).collect();
            Tensor::from_slice(dims, &bytes).ok()
        }
        _ => None,
    }
}
