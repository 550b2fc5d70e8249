//! The clusters that become integer steps.

use midtread_graph::{DataType, Graph, Links, Node, Tensor, ValueId};
use midtread_ops::constant_value;

/// Scale and zero point of a tensor of 8-bit codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Params {
    pub(crate) scale: f32,
    pub(crate) zero_point: i32,
    pub(crate) is_signed: bool,
}

impl Params {
    /// The least and the greatest code.
    pub(crate) fn codes(&self) -> [i32; 2] {
        if self.is_signed { [-128, 127] } else { [0, 255] }
    }

    pub(crate) fn dtype(&self) -> DataType {
        if self.is_signed { DataType::Int8 } else { DataType::Uint8 }
    }
}

/// Codes that a step reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes {
    pub(crate) id: ValueId,
    pub(crate) params: Params,
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
    /// `x` times a matrix, which is stored transposed or not.
    Product {
        x: Codes,
        weights: QuantizedWeights,
        bias: Bias,
        is_transposed: bool,
    },
    Add {
        inputs: [Codes; 2],
    },
    GlobalAveragePool {
        x: Codes,
    },
    MaxPool {
        x: Codes,
    },
    /// A function of one number: a table of codes.
    Table {
        x: Codes,
    },
    /// An operator that moves codes and does not look at them.
    Moves {
        x: Codes,
    },
    /// `x` is quantized while the model runs: its codes, scale and zero point are values. The product is scaled to
    /// numbers, and `shift` added.
    DynamicProduct {
        x: [ValueId; 3],
        weights: QuantizedWeights,
        shift: Option<Tensor>,
    },
}

impl Kind {
    /// The codes that are read.
    pub(crate) fn codes(&self) -> Vec<Codes> {
        match self {
            Self::Conv { x, .. }
            | Self::Product { x, .. }
            | Self::GlobalAveragePool { x }
            | Self::MaxPool { x }
            | Self::Table { x }
            | Self::Moves { x } => vec![*x],
            Self::Add { inputs } => inputs.to_vec(),
            Self::DynamicProduct { .. } => Vec::new(),
        }
    }
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
    pub(crate) params: Option<Params>,
}

/// What is known of a graph while clusters are looked for.
pub(crate) struct Finder<'a> {
    graph: &'a Graph,
    links: Links,
    is_input: Vec<bool>,
}

/// Functions of one number that are tables over 256 codes.
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
/// Operators whose output's elements are their first input's.
const MOVES: &[&str] = &["Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"];

impl<'a> Finder<'a> {
    pub(crate) fn new(graph: &'a Graph) -> Self {
        let mut is_input = vec![false; graph.values().len()];
        graph.inputs.iter().for_each(|id| is_input[id.idx()] = true);
        Self { graph, links: Links::new(graph), is_input }
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
        let node = &self.graph.nodes[i];
        match (node.domain.as_str(), node.op_type.as_str()) {
            ("", "QuantizeLinear") => self.before_quantize(node),
            ("", "QLinearConv") => {
                let weights = self.weights(node, 3, 4, 5, 0)?;
                let bias = match node.input(8) {
                    Some(id) => Bias::Codes(self.constant(id)?, None),
                    None => Bias::None,
                };
                let kind = Kind::Conv { x: self.codes_of(node, 0)?, weights, bias };
                self.qoperator(i, kind, 6)
            }
            ("", "QLinearMatMul") => {
                let weights = self.weights(node, 3, 4, 5, 1)?;
                let x = self.codes_of(node, 0)?;
                let kind = Kind::Product { x, weights, bias: Bias::None, is_transposed: false };
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
                let kind =
                    Kind::Product { x: self.codes_of(node, 0)?, weights, bias, is_transposed };
                match node.input(7) {
                    Some(_) => self.qoperator(i, kind, 7),
                    None => self.float_output(i, kind),
                }
            }
            ("com.microsoft", "QLinearAdd") => {
                let inputs = [self.codes_of(node, 0)?, self.codes_of(node, 3)?];
                self.qoperator(i, Kind::Add { inputs }, 6)
            }
            ("com.microsoft", "QLinearGlobalAveragePool")
                if node.int("channels_last").unwrap_or(0) == 0 =>
            {
                self.qoperator(i, Kind::GlobalAveragePool { x: self.codes_of(node, 0)? }, 3)
            }
            ("", "MatMul" | "Gemm") => self.float_output(i, self.product(node)?),
            ("", "Mul") => self.float_output(i, self.dynamic_product(node, None)?),
            ("", "Add") => self.float_output(i, self.dynamic_product_and_shift(node)?),
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
            && matches!(inner.op_type.as_str(), "Conv" | "Gemm" | "MatMul")
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
            "MatMul" | "Gemm" => self.product(node)?,
            "Add" => Kind::Add {
                inputs: [self.dequantized(node.input(0)?)?, self.dequantized(node.input(1)?)?],
            },
            "GlobalAveragePool" => Kind::GlobalAveragePool { x: self.dequantized(node.input(0)?)? },
            "MaxPool" if node.output(1).is_none() => {
                let x = self.dequantized(node.input(0)?)?;
                (x.params == params).then_some(Kind::MaxPool { x })?
            }
            op if UNARY.contains(&op) && self.others_are_constant(node) => {
                Kind::Table { x: self.dequantized(node.input(0)?)? }
            }
            op if MOVES.contains(&op) => {
                let x = self.dequantized(node.input(0)?)?;
                (x.params == params).then_some(Kind::Moves { x })?
            }
            _ => return None,
        };
        Some(Cluster { kind, node: i, clamp, output, params: Some(params) })
    }

    fn only_producer(&self, id: ValueId) -> Option<(usize, &'a Node)> {
        self.links.only_consumer(id)?;
        self.producer(id)
    }

    fn others_are_constant(&self, node: &Node) -> bool {
        node.inputs.iter().skip(1).flatten().all(|&id| self.constant(id).is_some())
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
        Some(Kind::Product { x, weights, bias, is_transposed })
    }

    /// What ONNX Runtime's dynamic quantizer writes: `Mul(Cast(MatMulInteger), Mul(scale_x, scale_w))`, where `x` comes
    /// from a DynamicQuantizeLinear.
    fn dynamic_product(&self, mul: &Node, shift: Option<Tensor>) -> Option<Kind> {
        let (cast, scales) = one_of_each(mul, |id| {
            let (_, node) = self.only_producer(id)?;
            (node.is("Cast") && node.int("to") == Some(1)).then_some(node)
        })?;
        let (_, product) = self.only_producer(cast.input(0)?)?;
        let (_, scales) = self.producer(scales)?;
        if !product.is("MatMulInteger") || !scales.is("Mul") {
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
        let axis = codes.dims().len() as i64 - 1;
        let weights = QuantizedWeights { codes, scales, zero_points, axis };
        Some(Kind::DynamicProduct { x, weights, shift })
    }

    fn dynamic_product_and_shift(&self, add: &Node) -> Option<Kind> {
        let (shift, product) = one_of_each(add, |id| self.constant(id))?;
        let (_, mul) = self.only_producer(product)?;
        let is_row = shift.dims().len() == 1 && shift.dtype() == DataType::Float;
        (is_row && mul.is("Mul")).then(|| self.dynamic_product(mul, Some(shift)))?
    }

    /// The codes behind a DequantizeLinear with one scale.
    fn dequantized(&self, id: ValueId) -> Option<Codes> {
        let (_, node) = self.producer(id)?;
        if !node.is("DequantizeLinear") || self.constant(node.input(0)?).is_some() {
            return None;
        }
        let params = self.params(node.input(1)?, node.input(2), None)?;
        Some(Codes { id: node.input(0)?, params })
    }

    /// Input `at` and the two after it: codes, scale, zero point.
    fn codes_of(&self, node: &Node, at: usize) -> Option<Codes> {
        let id = node.input(at)?;
        if self.constant(id).is_some() {
            return None;
        }
        Some(Codes { id, params: self.params(node.input(at + 1)?, node.input(at + 2), None)? })
    }

    fn params(&self, scale: ValueId, zero: Option<ValueId>, dtype: Option<i64>) -> Option<Params> {
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
        (scale.is_finite() && 0.0 < scale).then_some(Params { scale, zero_point, is_signed })
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
        if !matches!(codes.dtype(), DataType::Uint8 | DataType::Int8) {
            return None;
        }
        let scales = self.constant(node.input(scale)?)?.to_vec::<f32>().ok()?;
        let zero_points = self.zero_points(node.input(zero))?;
        let axis = if axis < 0 { axis + codes.dims().len() as i64 } else { axis };
        Some(QuantizedWeights { codes, scales, zero_points, axis })
    }

    /// Constant zero points of weights; 0 where they are left out.
    fn zero_points(&self, id: Option<ValueId>) -> Option<Vec<i32>> {
        let Some(id) = id else { return Some(vec![0]) };
        let zero = self.constant(id)?;
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

/// What `find` makes of one of a node's two inputs, in whichever order they are, and the other input.
fn one_of_each<T>(node: &Node, find: impl Fn(ValueId) -> Option<T>) -> Option<(T, ValueId)> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    find(a).map(|found| (found, b)).or_else(|| Some((find(b)?, a)))
}
