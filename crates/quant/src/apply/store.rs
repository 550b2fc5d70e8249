//! Constants as integers, and the initializers of scales and zero points.

use std::collections::{BTreeMap, HashMap};

use midtread_graph::{AlignedBuf, AttrValue, DataType, Graph, Node, Tensor, Type, ValueId};
use midtread_num::{
    Layout,
    bias::{bias_scale, quantize_bias},
    pack::SubByte,
    tensor::quantize,
};
use rayon::prelude::*;

use crate::{
    error::Error,
    plan::{
        BiasPlan, Decision, IntType, Operand, Params, Plan, TensorPlan, Why, constants::floats,
        decide::bias_axis,
    },
};

/// What a plan calls for that is independent of the form: integer constants, made ahead of time, and parameters,
/// written when a node first wants them.
pub(super) struct Store<'a> {
    pub(super) plan: &'a Plan,
    /// Integer form of each constant, by key.
    quantized: HashMap<&'a str, Tensor>,
    /// By key, once in the graph.
    constants: HashMap<&'a str, ValueId>,
    transposed: HashMap<&'a str, ValueId>,
    params: HashMap<&'a str, (ValueId, ValueId)>,
    biases: HashMap<&'a str, Bias>,
}

/// An `i32` bias in the graph.
#[derive(Clone, Copy)]
pub(super) struct Bias {
    pub(super) value: ValueId,
    pub(super) scale: ValueId,
    pub(super) zero_point: ValueId,
    pub(super) axis: Option<usize>,
}

/// The value whose parameters (or quantized form) a key of the plan names.
pub(super) fn value_of(graph: &Graph, key: &str, of: Option<&str>) -> Result<ValueId, Error> {
    let name = of.unwrap_or(key);
    graph.find(name).ok_or_else(|| Error::Unknown {
        what: "tensor",
        name: name.to_owned(),
        problem: "is in the plan and not in the model".to_owned(),
        suggest: None,
    })
}

/// By value: whether it is an initializer that no caller can replace.
pub(super) fn constants_of(graph: &Graph) -> Vec<bool> {
    let mut is_constant: Vec<bool> = graph.values().iter().map(|v| v.constant.is_some()).collect();
    graph.inputs.iter().for_each(|id| is_constant[id.idx()] = false);
    is_constant
}

impl<'a> Store<'a> {
    /// Quantizes every constant that a quantized node takes, in parallel.
    pub(super) fn new(graph: &Graph, plan: &'a Plan) -> Result<Self, Error> {
        let is_constant = constants_of(graph);
        let mut wanted: BTreeMap<&'a str, ValueId> = BTreeMap::new();
        for node in &plan.nodes {
            let Decision::Quantized { inputs, .. } = &node.decision else { continue };
            for operand in inputs {
                let Operand::Tensor(key) = operand else { continue };
                let id = value_of(graph, key, plan.tensors[key].of.as_deref())?;
                if is_constant[id.idx()] {
                    wanted.insert(key, id);
                }
            }
        }
        let wanted: Vec<(&str, ValueId)> = wanted.into_iter().collect();
        let quantized: Vec<Result<Tensor, Error>> = wanted
            .par_iter()
            .map(|&(key, id)| {
                let tensor = graph.value(id).constant.as_ref().expect("only constants are wanted");
                quantize_constant(key, tensor, &plan.tensors[key])
            })
            .collect();
        let keys = wanted.into_iter().map(|(key, _)| key);
        let quantized = keys
            .zip(quantized)
            .map(|(key, tensor)| Ok((key, tensor?)))
            .collect::<Result<_, Error>>()?;
        let (constants, transposed) = (HashMap::new(), HashMap::new());
        Ok(Self {
            plan,
            quantized,
            constants,
            transposed,
            params: HashMap::new(),
            biases: HashMap::new(),
        })
    }

    /// The plan for a key. Plans are checked when they are read: every key has one.
    pub(super) fn tensor(&self, key: &str) -> &'a TensorPlan {
        &self.plan.tensors[key]
    }

    /// Whether the key is a constant's.
    pub(super) fn is_constant(&self, key: &str) -> bool {
        self.quantized.contains_key(key)
    }

    /// The initializer with the integers of a constant.
    pub(super) fn constant(&mut self, graph: &mut Graph, key: &'a str) -> ValueId {
        if let Some(&id) = self.constants.get(key) {
            return id;
        }
        let tensor = self.quantized[key].clone();
        let id = graph.add_constant(&format!("{key}_quantized"), tensor);
        self.constants.insert(key, id);
        id
    }

    /// The integers of a constant that is a matrix, transposed.
    pub(super) fn transposed(&mut self, graph: &mut Graph, key: &'a str) -> ValueId {
        if let Some(&id) = self.transposed.get(key) {
            return id;
        }
        let tensor = transpose(&self.quantized[key]);
        let id = graph.add_constant(&format!("{key}_quantized"), tensor);
        self.transposed.insert(key, id);
        id
    }

    /// The integers of a constant.
    pub(super) fn integers(&self, key: &str) -> &Tensor {
        &self.quantized[key]
    }

    /// The initializers of a tensor's scales and zero points. Tensors that share parameters share them.
    pub(super) fn params(&mut self, graph: &mut Graph, key: &'a str) -> (ValueId, ValueId) {
        if let Some(&ids) = self.params.get(key) {
            return ids;
        }
        let tensor = self.tensor(key);
        let leader = match &tensor.why {
            Why::SameAs(leader) | Why::Shared(leader) if leader != key => Some(leader.as_str()),
            _ => None,
        };
        let plan = self.plan;
        let shared =
            leader.and_then(|leader| plan.tensors.get_key_value(leader)).filter(|(_, other)| {
                other.params == tensor.params
                    && other.int_type == tensor.int_type
                    && !matches!(other.why, Why::SameAs(_))
            });
        let ids = match shared {
            Some((leader, _)) => self.params(graph, leader),
            None => {
                let dims = match &tensor.params {
                    Params::PerTensor(_) => Vec::new(),
                    Params::PerAxis { params, .. } => vec![params.len()],
                    Params::Blocked { .. } => {
                        let granularity = tensor.params.granularity();
                        let shape = granularity.params_shape(self.quantized[key].dims());
                        shape.expect("the parameters fitted when the constant was quantized")
                    }
                };
                let (scales, zero_points) = param_tensors(tensor, dims);
                let scale = graph.add_constant(&format!("{key}_scale"), scales);
                let zero_point = graph.add_constant(&format!("{key}_zero_point"), zero_points);
                (scale, zero_point)
            }
        };
        self.params.insert(key, ids);
        ids
    }

    /// The initializers of a bias.
    pub(super) fn bias(&mut self, graph: &mut Graph, key: &'a str) -> Result<Bias, Error> {
        if let Some(&bias) = self.biases.get(key) {
            return Ok(bias);
        }
        let BiasPlan { of, input, weight } = &self.plan.biases[key];
        let id = value_of(graph, key, of.as_deref())?;
        let misfit = |what: &str| Error::Options(format!("bias `{key}` of the plan {what}"));
        let tensor = graph.value(id).constant.clone().ok_or_else(|| misfit("is not constant"))?;
        let values = floats(&tensor).map_err(|dtype| misfit(&format!("is {dtype}")))?;
        let weight = &self.tensor(weight).params;
        let axis =
            bias_axis(tensor.dims(), weight).ok_or_else(|| misfit("does not fit its weight"))?;
        let Params::PerTensor(x) = self.tensor(input).params else {
            return Err(misfit("has an input that is not per tensor"));
        };
        let scales: Result<Vec<f32>, _> =
            weight.as_slice().iter().map(|w| bias_scale(x.scale(), w.scale())).collect();
        let scales = scales.map_err(|source| Error::QParams { tensor: key.to_owned(), source })?;
        let scale_of = |i: usize| scales[if axis.is_some() { i } else { 0 }];
        let integers: Vec<i32> =
            values.iter().enumerate().map(|(i, &b)| quantize_bias(b, scale_of(i))).collect();
        let integers =
            Tensor::from_slice(tensor.dims().to_vec(), &integers).expect("as many as there were");
        let (scales, zero_points) = match axis {
            None => (Tensor::scalar(scales[0]), Tensor::scalar(0_i32)),
            Some(_) => (Tensor::vector(&scales), Tensor::vector(&vec![0_i32; scales.len()])),
        };
        let bias = Bias {
            value: graph.add_constant(&format!("{key}_quantized"), integers),
            scale: graph.add_constant(&format!("{key}_quantized_scale"), scales),
            zero_point: graph.add_constant(&format!("{key}_quantized_zero_point"), zero_points),
            axis,
        };
        self.biases.insert(key, bias);
        Ok(bias)
    }

    /// DequantizeLinear over a stored constant, and its output.
    pub(super) fn dequantize_constant(
        &mut self,
        graph: &mut Graph,
        key: &'a str,
    ) -> (Node, ValueId) {
        let value = self.constant(graph, key);
        let (scale, zero_point) = self.params(graph, key);
        let dims = graph.type_of(value).and_then(|ty| ty.dims().map(<[_]>::to_vec));
        let output =
            graph.fresh_typed(&format!("{key}_DequantizeLinear_Output"), DataType::Float, dims);
        let name = format!("{key}_DequantizeLinear");
        let node = Node::new("DequantizeLinear", &name, [value, scale, zero_point], [output]);
        (with_params_attrs(node, &self.tensor(key).params), output)
    }

    /// DequantizeLinear over a bias, and its output.
    pub(super) fn dequantize_bias(
        &mut self,
        graph: &mut Graph,
        key: &'a str,
    ) -> Result<(Node, ValueId), Error> {
        let Bias { value, scale, zero_point, axis } = self.bias(graph, key)?;
        let dims = graph.type_of(value).and_then(|ty| ty.dims().map(<[_]>::to_vec));
        let output =
            graph.fresh_typed(&format!("{key}_DequantizeLinear_Output"), DataType::Float, dims);
        let name = format!("{key}_DequantizeLinear");
        let node = Node::new("DequantizeLinear", &name, [value, scale, zero_point], [output]);
        let node = match axis {
            Some(axis) => node.with_attr("axis", AttrValue::Int(axis as i64)),
            None => node,
        };
        Ok((node, output))
    }
}

/// The attributes that say which elements share a scale.
pub(super) fn with_params_attrs(node: Node, params: &Params) -> Node {
    match *params {
        Params::PerTensor(_) => node,
        Params::PerAxis { axis, .. } => node.with_attr("axis", AttrValue::Int(axis as i64)),
        Params::Blocked { axis, block_size, .. } => node
            .with_attr("axis", AttrValue::Int(axis as i64))
            .with_attr("block_size", AttrValue::Int(block_size.get() as i64)),
    }
}

/// The type of an integer tensor of the sizes that the float one has.
pub(super) fn int_type_like(graph: &Graph, float: ValueId, dtype: DataType) -> Option<Type> {
    let dims = graph.type_of(float).and_then(|ty| ty.dims().map(<[_]>::to_vec));
    Some(Type::tensor(dtype, dims))
}

/// Scales and zero points as tensors of these sizes.
fn param_tensors(tensor: &TensorPlan, dims: Vec<usize>) -> (Tensor, Tensor) {
    let params = tensor.params.as_slice();
    let scales: Vec<f32> = params.iter().map(|p| p.scale()).collect();
    let codes: Vec<i32> = params.iter().map(|p| p.zero_point()).collect();
    let scales =
        Tensor::from_slice(dims.clone(), &scales).expect("as many as there are parameters");
    (scales, tensor_of_codes(tensor.int_type, dims, &codes))
}

/// A tensor of integers that the type holds.
fn tensor_of_codes(int_type: IntType, dims: Vec<usize>, codes: &[i32]) -> Tensor {
    let fits = "codes are within the type and as many as the sizes say";
    macro_rules! of {
        ($t:ty) => {
            Tensor::from_slice(dims, &codes.iter().map(|&q| q as $t).collect::<Vec<$t>>())
                .expect(fits)
        };
    }
    match int_type {
        IntType::I8 => of!(i8),
        IntType::U8 => of!(u8),
        IntType::I16 => of!(i16),
        IntType::U16 => of!(u16),
        IntType::I4 | IntType::U4 => {
            pack(int_type, dims, &codes.iter().map(|&q| q as i8).collect::<Vec<i8>>())
        }
    }
}

/// Four-bit codes, two to a byte.
fn pack(int_type: IntType, dims: Vec<usize>, codes: &[i8]) -> Tensor {
    let sub = if int_type.is_signed() { SubByte::Int4 } else { SubByte::Uint4 };
    let bytes = sub.pack(codes).expect("codes are within the type");
    Tensor::from_buf(int_type.data_type(), dims, AlignedBuf::from_bytes(&bytes))
        .expect("packed as the type wants")
}

/// Rows and columns of an 8-bit matrix exchanged.
fn transpose(tensor: &Tensor) -> Tensor {
    let &[rows, columns] = tensor.dims() else { unreachable!("only matrices are transposed") };
    let bytes = tensor.as_bytes();
    let mut out = AlignedBuf::zeroed(bytes.len());
    for (c, column) in
        out.as_bytes_mut()[..rows * columns].chunks_exact_mut(rows.max(1)).enumerate()
    {
        for (r, byte) in column.iter_mut().enumerate() {
            *byte = bytes[r * columns + c];
        }
    }
    Tensor::from_buf(tensor.dtype(), vec![columns, rows], out).expect("as many bytes as before")
}

/// A constant's integers.
fn quantize_constant(key: &str, tensor: &Tensor, plan: &TensorPlan) -> Result<Tensor, Error> {
    let misfit = |what: String| Error::Options(format!("tensor `{key}` of the plan {what}"));
    let values = floats(tensor).map_err(|dtype| misfit(format!("is {dtype}")))?;
    let dims = tensor.dims().to_vec();
    let layout: Layout = plan
        .params
        .layout(&dims)
        .ok_or_else(|| misfit(format!("has parameters that do not fit its sizes {dims:?}")))?;
    let params = plan.params.as_slice();
    macro_rules! of {
        ($t:ty) => {{
            let mut codes = vec![0 as $t; values.len()];
            quantize(&values, &mut codes, layout, params, plan.range);
            codes
        }};
    }
    let fits = "as many codes as values";
    Ok(match plan.int_type {
        IntType::I8 => Tensor::from_slice(dims, &of!(i8)).expect(fits),
        IntType::U8 => Tensor::from_slice(dims, &of!(u8)).expect(fits),
        IntType::I16 => Tensor::from_slice(dims, &of!(i16)).expect(fits),
        IntType::U16 => Tensor::from_slice(dims, &of!(u16)).expect(fits),
        IntType::I4 | IntType::U4 => pack(plan.int_type, dims, &of!(i8)),
    })
}
