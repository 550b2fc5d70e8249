//! Models that are almost right: a few changes to one that is.
//!
//! Bytes changed at random rarely get past the reader. These do: another operator, an attribute of 2^62, an input
//! left out, a weight without elements.

use midtread_graph::{
    Attr, AttrValue, Bytes, DataType, Dim, Graph, Model, Node, Shape, Tensor, Type, TypeKind,
    ValueId,
};

/// A sequence of numbers that depends on its seed alone (SplitMix64).
pub struct Rng(u64);

impl Rng {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..n`; 0 for 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len()))
    }
}

/// Numbers at which arithmetic goes wrong.
const INTS: &[i64] = &[
    0,
    1,
    -1,
    2,
    -2,
    3,
    5,
    16,
    64,
    255,
    1 << 16,
    i32::MAX as i64,
    i32::MIN as i64,
    1 << 32,
    1 << 40,
    1 << 62,
    i64::MAX,
    i64::MIN,
];

const FLOATS: &[f32] =
    &[0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e30, -3e9, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];

const TYPES: &[DataType] = &[
    DataType::Float,
    DataType::Float,
    DataType::Int64,
    DataType::Int32,
    DataType::Uint8,
    DataType::Int8,
    DataType::Bool,
    DataType::Double,
    DataType::Float16,
    DataType::Bfloat16,
    DataType::Int4,
    DataType::Uint2,
    DataType::Float8E4M3FN,
    DataType::String,
];

/// Bytes of a tensor that is made anew.
const MAX_TENSOR: usize = 4096;

/// The bytes of the model with a few changes; `None` where it cannot be written.
pub fn changed(mut model: Model, rng: &mut Rng) -> Option<Vec<u8>> {
    for _ in 0..=rng.below(3) {
        match rng.below(16) {
            0 => {
                let version = 1 + rng.below(26) as i64;
                model.set_opset("", version);
            }
            1 if !model.functions.is_empty() => {
                let i = rng.below(model.functions.len());
                change_graph(&mut model.functions[i].body, rng);
            }
            _ => change_graph(&mut model.graph, rng),
        }
    }
    midtread_onnx::to_bytes(&model).ok()
}

fn change_graph(graph: &mut Graph, rng: &mut Rng) {
    // Into a body, half of the time.
    if rng.below(2) == 0 {
        let mut inner: Vec<&mut Graph> = Vec::new();
        for attr in graph.nodes.iter_mut().flat_map(|n| &mut n.attrs) {
            match &mut attr.value {
                AttrValue::Graph(graph) => inner.push(graph),
                AttrValue::Graphs(graphs) => inner.extend(graphs),
                _ => {}
            }
        }
        if !inner.is_empty() {
            let i = rng.below(inner.len());
            return change_graph(inner.swap_remove(i), rng);
        }
    }
    match rng.below(12) {
        0..=5 => change_node(graph, rng),
        6..=8 => change_constant(graph, rng),
        9 | 10 => change_type(graph, rng),
        _ => change_list(graph, rng),
    }
}

fn any_value(graph: &Graph, rng: &mut Rng) -> Option<ValueId> {
    let ids: Vec<ValueId> = graph.value_ids().collect();
    rng.pick(&ids).copied()
}

fn change_node(graph: &mut Graph, rng: &mut Rng) {
    let i = rng.below(graph.nodes.len());
    let other = any_value(graph, rng);
    let taken = graph.nodes.iter().flat_map(|n| &n.attrs).map(|a| a.value.clone());
    let taken: Vec<AttrValue> = taken.take(64).collect();
    let Some(node) = graph.nodes.get_mut(i) else { return };
    match rng.below(10) {
        0..=3 => change_attr(node, &taken, rng),
        4 => {
            let at = rng.below(node.inputs.len() + 1);
            if at < node.inputs.len() {
                node.inputs[at] = other;
            } else {
                node.inputs.push(other);
            }
        }
        5 => {
            let at = rng.below(node.inputs.len());
            if let Some(input) = node.inputs.get_mut(at) {
                *input = None;
            }
        }
        6 => drop(node.inputs.pop()),
        7 => {
            let at = rng.below(node.inputs.len());
            if 1 < node.inputs.len() {
                node.inputs.swap(0, at);
            }
        }
        8 => {
            if let Some(def) = rng.pick(midtread_ops::OPS) {
                node.op_type = def.op_type.to_owned();
                node.domain = def.domain.to_owned();
            }
        }
        _ => {
            let at = rng.below(node.outputs.len());
            if 1 < node.outputs.len() {
                node.outputs[at] = None;
            }
        }
    }
}

fn change_attr(node: &mut Node, taken: &[AttrValue], rng: &mut Rng) {
    let def = midtread_ops::find(&node.domain, &node.op_type);
    let i = rng.below(node.attrs.len() + 1);
    if i == node.attrs.len() {
        // One that the operator knows and the node does not have.
        let Some(name) = def.and_then(|def| rng.pick(def.attrs)) else { return };
        let value = match rng.below(4) {
            0 => AttrValue::Int(int(rng)),
            1 => AttrValue::Ints((0..rng.below(5)).map(|_| int(rng)).collect()),
            2 => AttrValue::Float(float(rng)),
            _ => match rng.pick(taken) {
                Some(value) => value.clone(),
                None => AttrValue::String(Bytes::from_static(b"SAME_UPPER")),
            },
        };
        node.attrs.retain(|a| a.name != *name);
        node.attrs.push(Attr { name: (*name).to_owned(), value, doc_string: String::new() });
        return;
    }
    if rng.below(6) == 0 {
        node.attrs.remove(i);
        return;
    }
    match &mut node.attrs[i].value {
        AttrValue::Int(value) => *value = int(rng),
        AttrValue::Float(value) => *value = float(rng),
        AttrValue::Ints(values) => match rng.below(4) {
            0 => values.push(int(rng)),
            1 => drop(values.pop()),
            _ => {
                let at = rng.below(values.len());
                if let Some(value) = values.get_mut(at) {
                    *value = int(rng);
                }
            }
        },
        AttrValue::Floats(values) => match rng.below(3) {
            0 => values.push(float(rng)),
            1 => drop(values.pop()),
            _ => {
                let at = rng.below(values.len());
                if let Some(value) = values.get_mut(at) {
                    *value = float(rng);
                }
            }
        },
        AttrValue::String(text) => {
            let texts = taken.iter().filter_map(|v| match v {
                AttrValue::String(text) => Some(text.clone()),
                _ => None,
            });
            *text = rng.pick(&texts.collect::<Vec<_>>()).cloned().unwrap_or_default();
        }
        AttrValue::Tensor(tensor) => *tensor = another(tensor, rng),
        value => *value = AttrValue::Int(int(rng)),
    }
}

fn int(rng: &mut Rng) -> i64 {
    match rng.below(3) {
        0 => rng.below(8) as i64 - 3,
        _ => *rng.pick(INTS).expect("not empty"),
    }
}

fn float(rng: &mut Rng) -> f32 {
    *rng.pick(FLOATS).expect("not empty")
}

fn change_constant(graph: &mut Graph, rng: &mut Rng) {
    let Some(id) = rng.pick(&graph.initializers.clone()).copied() else {
        // Or a value becomes one.
        if let Some(&id) = rng.pick(&graph.inputs.clone()) {
            graph.set_constant(id, another(&Tensor::vector(&[1_i64, 2]), rng));
        }
        return;
    };
    let Some(tensor) = graph.value(id).constant.clone() else { return };
    graph.set_constant(id, another(&tensor, rng));
}

/// A tensor of other elements, sizes or type.
fn another(tensor: &Tensor, rng: &mut Rng) -> Tensor {
    let mut dtype = tensor.dtype();
    let mut dims = tensor.dims().to_vec();
    match rng.below(8) {
        0 => dtype = *rng.pick(TYPES).expect("not empty"),
        1 => dims.push(rng.below(3)),
        2 => drop(dims.pop()),
        3 | 4 => {
            let at = rng.below(dims.len());
            if let Some(dim) = dims.get_mut(at) {
                *dim = [0, 1, 2, 3, 7, 33][rng.below(6)];
            }
        }
        _ => {
            let mut changed = tensor.clone();
            let n = changed.len();
            let at = rng.below(n);
            match dtype {
                _ if n == 0 => {}
                DataType::Int64 => changed.to_mut::<i64>().expect("its type")[at] = int(rng),
                DataType::Int32 => changed.to_mut::<i32>().expect("its type")[at] = int(rng) as i32,
                DataType::Float => changed.to_mut::<f32>().expect("its type")[at] = float(rng),
                _ => {
                    let byte = rng.below(256) as u8;
                    let n_bytes = changed.as_bytes().len();
                    if let Some(b) = changed.bytes_mut().get_mut(at % n_bytes.max(1)) {
                        *b = byte;
                    }
                }
            }
            return changed;
        }
    }
    let n = midtread_graph::tensor::n_elements(&dims).unwrap_or(usize::MAX);
    if dtype == DataType::String {
        let strings = vec![Bytes::from_static(b"x"); n.min(MAX_TENSOR)];
        return Tensor::from_strings(dims, strings).unwrap_or_else(|_| tensor.clone());
    }
    let Some(n_bytes) = dtype.n_bytes(n).filter(|&n| n <= MAX_TENSOR) else {
        return tensor.clone();
    };
    let old = tensor.as_bytes();
    let bytes: Vec<u8> =
        (0..n_bytes).map(|i| *old.get(i % old.len().max(1)).unwrap_or(&1)).collect();
    Tensor::from_bytes(dtype, dims, bytes.into()).unwrap_or_else(|_| tensor.clone())
}

fn change_type(graph: &mut Graph, rng: &mut Rng) {
    let Some(id) = any_value(graph, rng) else { return };
    let elem = *rng.pick(TYPES).expect("not empty");
    let value = graph.value_mut(id);
    let Some(Type { kind: TypeKind::Tensor { elem: old, shape }, .. }) = &mut value.ty else {
        value.ty = Some(Type::tensor(elem, Some(vec![Dim::Known(2); rng.below(5)])));
        return;
    };
    match rng.below(5) {
        0 => *old = Some(elem),
        1 => *shape = None,
        2 => {
            let dims = &mut shape.get_or_insert_with(Shape::default).dims;
            dims.push(Dim::Known(rng.below(3)));
        }
        _ => {
            let dims = &mut shape.get_or_insert_with(Shape::default).dims;
            let at = rng.below(dims.len());
            if let Some(dim) = dims.get_mut(at) {
                *dim = match rng.below(4) {
                    0 => Dim::Unknown,
                    1 => Dim::Symbol("N".to_owned()),
                    2 => Dim::Known(rng.below(4)),
                    _ => Dim::Known(usize::try_from(int(rng)).unwrap_or(0)),
                };
            }
        }
    }
}

fn change_list(graph: &mut Graph, rng: &mut Rng) {
    let i = rng.below(graph.nodes.len());
    match rng.below(4) {
        0 if !graph.nodes.is_empty() => {
            // Its outputs are inputs from now on.
            let node = graph.nodes.remove(i);
            graph.inputs.extend(node.outputs.into_iter().flatten());
        }
        1 if !graph.nodes.is_empty() => {
            let mut node = graph.nodes[i].clone();
            for id in node.outputs.iter_mut().flatten() {
                *id = graph.fresh("again");
                graph.outputs.push(*id);
            }
            graph.nodes.push(node);
        }
        2 => {
            if let Some(id) = any_value(graph, rng) {
                graph.outputs.push(id);
            }
        }
        _ => {
            let at = rng.below(graph.outputs.len());
            if 1 < graph.outputs.len() {
                graph.outputs.remove(at);
            }
        }
    }
}
