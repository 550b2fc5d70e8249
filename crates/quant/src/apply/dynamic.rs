//! The dynamic form: DynamicQuantizeLinear for activations, MatMulInteger and ConvInteger on integers, and the
//! product of the scales afterwards.
//!
//! ```text
//! x ── DynamicQuantizeLinear ─┬─ integers, zero point ── MatMulInteger ── Cast ── Mul ── (Add bias) ── y
//!                             └─ scale ── Mul by the weight's scale ──────────────┘
//! ```
//!
//! An activation that several nodes take is quantized once. Names are onnxruntime's.

use std::collections::HashMap;

use midtread_graph::{AttrValue, DataType, Graph, Model, Node, Rewrite, Tensor, Type, ValueId};

use crate::{
    apply::{
        qdq::{Constants, is_table, lookup},
        store::{Store, int_type_like, value_of},
    },
    error::Error,
    plan::{Decision, Operand, Params, Plan, constants::floats},
};

/// Integers, scale and zero point of an activation.
type Quantized = (ValueId, ValueId, ValueId);

pub(super) fn apply(model: &Model, plan: &Plan) -> Result<Model, Error> {
    let mut model = model.clone();
    let graph = &mut model.graph;
    let mut store = Store::new(graph, plan)?;
    let mut rewrite = Rewrite::default();
    let constants = Constants::new(graph, plan, &store)?;
    let mut activations: HashMap<ValueId, Quantized> = HashMap::new();
    for (i, node_plan) in plan.nodes.iter().enumerate() {
        let Decision::Quantized { inputs, .. } = &node_plan.decision else { continue };
        if is_table(graph, i, &node_plan.decision, &store) {
            lookup(graph, i, inputs, &mut store, &mut rewrite);
            continue;
        }
        let node = graph.nodes[i].clone();
        let unsupported = |what: &str| Error::Unsupported {
            node: node_plan.node.clone(),
            op_type: node_plan.op_type.clone(),
            what: what.to_owned(),
        };
        let (Some(Operand::Dynamic), Some(Operand::Tensor(key))) = (inputs.first(), inputs.get(1))
        else {
            return Err(unsupported("a plan that is not a dynamic activation times a constant"));
        };
        if value_of(graph, key, store.tensor(key).of.as_deref()).ok() != node.input(1)
            || !store.is_constant(key)
        {
            return Err(unsupported("a plan for another weight"));
        }
        let (Some(x), Some(y)) = (node.input(0), node.output(0)) else {
            return Err(unsupported("a missing input or output"));
        };
        let quantized = match activations.get(&x) {
            Some(&quantized) => quantized,
            None => {
                let quantized = quantize(graph, i, x, &mut rewrite);
                activations.insert(x, quantized);
                quantized
            }
        };
        let kernel = match node.op_type.as_str() {
            "MatMul" => Kernel::MatMul,
            "Gemm" => Kernel::Gemm,
            "Conv" => Kernel::Conv,
            _ => return Err(unsupported("its integer form")),
        };
        let nodes = replace(graph, &node, kernel, key, quantized, y, &mut store);
        rewrite.remove(i);
        nodes.into_iter().for_each(|node| rewrite.insert_after(i, node));
    }
    constants.share(graph, &mut store, &mut rewrite);
    rewrite.apply(graph);
    Ok(model)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kernel {
    MatMul,
    Gemm,
    Conv,
}

/// DynamicQuantizeLinear of `x`, before node `i`.
fn quantize(graph: &mut Graph, i: usize, x: ValueId, rewrite: &mut Rewrite) -> Quantized {
    let name = graph.value_name(x).to_owned();
    let integers = graph.fresh(&format!("{name}_quantized"));
    graph.value_mut(integers).ty = int_type_like(graph, x, DataType::Uint8);
    let scale = graph.fresh_typed(&format!("{name}_scale"), DataType::Float, Some(Vec::new()));
    let zero_point =
        graph.fresh_typed(&format!("{name}_zero_point"), DataType::Uint8, Some(Vec::new()));
    let outputs = [integers, scale, zero_point];
    let node = Node::new("DynamicQuantizeLinear", &format!("{name}_QuantizeLinear"), [x], outputs);
    rewrite.insert_before(i, node);
    (integers, scale, zero_point)
}

/// The nodes that stand in for a matrix product or convolution.
fn replace<'a>(
    graph: &mut Graph,
    node: &Node,
    kernel: Kernel,
    key: &'a str,
    (x, x_scale, x_zero_point): Quantized,
    y: ValueId,
    store: &mut Store<'a>,
) -> Vec<Node> {
    let is_transposed = kernel == Kernel::Gemm && node.int("transB").unwrap_or(0) != 0;
    let w = if is_transposed { store.transposed(graph, key) } else { store.constant(graph, key) };
    let alpha = match kernel {
        Kernel::Gemm => node.float("alpha").unwrap_or(1.0),
        Kernel::MatMul | Kernel::Conv => 1.0,
    };
    let w_scale = weight_scale(graph, kernel, key, alpha, store);
    let w_zero_point = weight_zero_point(graph, kernel, key, store);

    let y_name = graph.value_name(y).to_owned();
    let label = if node.name.is_empty() { y_name.clone() } else { node.name.clone() };
    let acc_type = int_type_like(graph, y, DataType::Int32);
    let float_type = int_type_like(graph, y, DataType::Float);
    let value = |graph: &mut Graph, name: String, ty: &Option<Type>| {
        let id = graph.fresh(&name);
        graph.value_mut(id).ty = ty.clone();
        id
    };

    let acc = value(graph, format!("{y_name}_output_quantized"), &acc_type);
    let op_type = if kernel == Kernel::Conv { "ConvInteger" } else { "MatMulInteger" };
    let mut integer =
        Node::new(op_type, &format!("{label}_quant"), [x, w, x_zero_point, w_zero_point], [acc]);
    if kernel == Kernel::Conv {
        integer.attrs = node.attrs.clone();
    }
    let float = value(graph, format!("{y_name}_output_quantized_cast_output"), &float_type);
    let cast = Node::new("Cast", &format!("{y_name}_output_quantized_cast"), [acc], [float])
        .with_attr("to", AttrValue::Int(i64::from(DataType::Float.to_onnx())));
    let scale = graph.fresh(&format!("{label}_quant_scales_mul:0"));
    let scales =
        Node::new("Mul", &format!("{label}_quant_scales_mul"), [x_scale, w_scale], [scale]);

    let bias = bias(graph, node, kernel, &label);
    let scaled = match bias {
        Some(_) => value(graph, format!("{y_name}quant_scaled_output"), &float_type),
        None => y,
    };
    let rescale =
        Node::new("Mul", &format!("{label}_quant_output_scale_mul"), [float, scale], [scaled]);
    let mut nodes = vec![integer, cast, scales, rescale];
    if let Some((before, bias)) = bias {
        nodes.extend(before);
        nodes.push(Node::new("Add", &format!("{y_name}_bias_add"), [scaled, bias], [y]));
    }
    nodes
}

/// The weight's scales in a shape that broadcasts over the output, times `alpha`.
fn weight_scale<'a>(
    graph: &mut Graph,
    kernel: Kernel,
    key: &'a str,
    alpha: f32,
    store: &mut Store<'a>,
) -> ValueId {
    let params = &store.tensor(key).params;
    let per_channel = !matches!(params, Params::PerTensor(_));
    if alpha == 1.0 && !(kernel == Kernel::Conv && per_channel) {
        return store.params(graph, key).0;
    }
    let scales: Vec<f32> = params.as_slice().iter().map(|p| p.scale() * alpha).collect();
    let mut dims = if per_channel { vec![scales.len()] } else { Vec::new() };
    if kernel == Kernel::Conv && per_channel {
        // One for each output channel, before the spatial dimensions.
        dims.extend(std::iter::repeat_n(1, store.integers(key).dims().len().saturating_sub(2)));
    }
    graph.add_constant(
        &format!("{key}_scale"),
        Tensor::from_slice(dims, &scales).expect("as many as there are"),
    )
}

/// The weight's zero point: one number where all are equal, which every runtime takes.
fn weight_zero_point<'a>(
    graph: &mut Graph,
    kernel: Kernel,
    key: &'a str,
    store: &mut Store<'a>,
) -> ValueId {
    let tensor = store.tensor(key);
    let params = tensor.params.as_slice();
    let first = params[0].zero_point();
    let all_equal = params.iter().all(|p| p.zero_point() == first);
    if matches!(tensor.params, Params::PerTensor(_)) && kernel != Kernel::Conv {
        return store.params(graph, key).1;
    }
    if !all_equal {
        return store.params(graph, key).1;
    }
    let name = format!("{key}_zero_point");
    let wanted = match tensor.int_type.is_signed() {
        true => Tensor::scalar(first as i8),
        false => Tensor::scalar(first as u8),
    };
    match graph.find(&name).filter(|&id| graph.constant(id) == Some(&wanted)) {
        Some(id) => id,
        None => graph.add_constant(&name, wanted),
    }
}

/// What is added to the scaled sums, and the nodes that make it.
fn bias(
    graph: &mut Graph,
    node: &Node,
    kernel: Kernel,
    label: &str,
) -> Option<(Vec<Node>, ValueId)> {
    let id = node.input(2)?;
    let constant = graph.constant(id).cloned();
    match kernel {
        Kernel::MatMul => None,
        Kernel::Gemm => {
            let beta = node.float("beta").unwrap_or(1.0);
            if beta == 1.0 {
                return Some((Vec::new(), id));
            }
            let scaled = constant.as_ref().and_then(|tensor| {
                let values: Vec<f32> = floats(tensor).ok()?.iter().map(|b| b * beta).collect();
                Tensor::from_slice(tensor.dims().to_vec(), &values).ok()
            });
            if let Some(tensor) = scaled {
                return Some((Vec::new(), graph.add_constant(&format!("{label}_bias"), tensor)));
            }
            let factor = graph.add_constant(&format!("{label}_beta"), Tensor::scalar(beta));
            let scaled = graph.fresh(&format!("{label}_bias"));
            let mul = Node::new("Mul", &format!("{label}_bias_mul"), [id, factor], [scaled]);
            Some((vec![mul], scaled))
        }
        Kernel::Conv => {
            // One for each output channel, before the spatial dimensions.
            let rank = graph.type_of(node.input(1)?)?.dims()?.len();
            let mut shape = vec![1_i64; rank];
            *shape.get_mut(1)? = -1;
            let reshaped = constant.as_ref().and_then(|tensor| {
                let dims = shape.iter().map(|&d| if d == 1 { 1 } else { tensor.len() }).collect();
                tensor.reshaped(dims).ok()
            });
            if let Some(tensor) = reshaped {
                let name = format!("{}_reshaped", graph.value_name(id));
                let found = graph.find(&name).filter(|&id| graph.constant(id) == Some(&tensor));
                let id = found.unwrap_or_else(|| graph.add_constant(&name, tensor));
                return Some((Vec::new(), id));
            }
            let shape =
                graph.add_constant(&format!("{label}_bias_reshape_shape"), Tensor::vector(&shape));
            let reshaped = graph.fresh(&format!("{label}_bias_reshape_output"));
            let node =
                Node::new("Reshape", &format!("{label}_bias_reshape"), [id, shape], [reshaped]);
            Some((vec![node], reshaped))
        }
    }
}
