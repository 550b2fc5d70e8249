//! What an operator's shape rule sees, and says.

use std::cell::Cell;

use midtread_graph::{DataType, Graph, Node, Tensor, Type, TypeKind};

use crate::{eval::OpError, sym::SymDim};

/// What is known of one value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Info {
    /// Element type.
    pub elem: Option<DataType>,
    /// Sizes; `None` where even the rank is unknown.
    pub dims: Option<Vec<SymDim>>,
    /// The elements of an integer tensor of at most one dimension that takes part in computing shapes.
    pub value: Option<Vec<SymDim>>,
    /// The tensor of a constant.
    pub constant: Option<Tensor>,
    /// Of a sequence: what is known of every tensor in it. (An optional value is described as what it holds.)
    pub element: Option<Box<Info>>,
}

impl Info {
    /// A tensor of which type and sizes are known as far as given.
    pub fn new(elem: Option<DataType>, dims: Option<Vec<SymDim>>) -> Self {
        Self { elem, dims, ..Self::default() }
    }

    /// What is known of a tensor from its type and sizes alone.
    pub fn of(tensor: &Tensor) -> Self {
        let size = |&d: &usize| SymDim::from_dim(&midtread_graph::Dim::Known(d));
        Self::new(Some(tensor.dtype()), Some(tensor.dims().iter().map(size).collect()))
    }

    /// What a type says of a value.
    pub fn declared(ty: &Type) -> Self {
        match &ty.kind {
            TypeKind::Tensor { .. } => {
                let dims = ty.dims().map(|dims| dims.iter().map(SymDim::from_dim).collect());
                Self::new(ty.elem(), dims)
            }
            TypeKind::Sequence(element) => {
                Self::sequence(element.as_deref().map(Self::declared).unwrap_or_default())
            }
            TypeKind::Optional(inner) => inner.as_deref().map(Self::declared).unwrap_or_default(),
            _ => Self::default(),
        }
    }

    /// A sequence of tensors like `element`.
    pub fn sequence(element: Self) -> Self {
        Self { element: Some(Box::new(element)), ..Self::default() }
    }

    /// What holds for both of two values.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let elem = self.elem.filter(|_| self.elem == other.elem);
        let dims = match (&self.dims, &other.dims) {
            (Some(a), Some(b)) if a.len() == b.len() => {
                let both = |(a, b): (&SymDim, &SymDim)| {
                    if a.same(b) { a.clone() } else { SymDim::Unknown }
                };
                Some(a.iter().zip(b).map(both).collect())
            }
            _ => None,
        };
        let value = self.value.clone().filter(|_| self.value == other.value);
        let constant = self.constant.clone().filter(|_| self.constant == other.constant);
        let element = match (&self.element, &other.element) {
            (Some(a), Some(b)) => Some(Box::new(a.common(b))),
            _ => None,
        };
        Self { elem, dims, value, constant, element }
    }
}

/// Infers a graph in a node's attributes: what its outputs are, from what its inputs are.
pub type InferBody<'a> = &'a dyn Fn(&Graph, Vec<Info>) -> Vec<Info>;

/// A shape rule's surroundings.
pub struct InferCtx<'a> {
    /// The node: its attributes.
    pub node: &'a Node,
    /// The version of the node's operator set that the model imports.
    pub opset: i64,
    inputs: &'a [Option<Info>],
    outputs: Vec<Info>,
    n_fresh: &'a Cell<usize>,
    infer_body: Option<InferBody<'a>>,
}

impl<'a> InferCtx<'a> {
    /// For one node. `n_fresh` counts the symbols made so far in the graph.
    pub fn new(
        node: &'a Node,
        opset: i64,
        inputs: &'a [Option<Info>],
        n_fresh: &'a Cell<usize>,
    ) -> Self {
        Self {
            node,
            opset,
            inputs,
            outputs: vec![Info::default(); node.outputs.len()],
            n_fresh,
            infer_body: None,
        }
    }

    /// The same, for a node with graphs.
    #[must_use]
    pub fn with_bodies(mut self, infer_body: InferBody<'a>) -> Self {
        self.infer_body = Some(infer_body);
        self
    }

    /// What the outputs of the graph in the attribute `name` are. Nothing, where nobody can tell.
    pub fn body(&self, name: &str, inputs: Vec<Info>) -> Vec<Info> {
        match (self.infer_body, self.node.attr(name)) {
            (Some(infer), Some(midtread_graph::AttrValue::Graph(graph))) => infer(graph, inputs),
            _ => Vec::new(),
        }
    }

    /// Input `i`, if it is there.
    pub fn input(&self, i: usize) -> Option<&'a Info> {
        self.inputs.get(i)?.as_ref()
    }

    /// How many input positions there are.
    pub fn n_inputs(&self) -> usize {
        self.inputs.len()
    }

    /// Element type of input `i`.
    pub fn elem(&self, i: usize) -> Option<DataType> {
        self.input(i)?.elem
    }

    /// Sizes of input `i`.
    pub fn dims(&self, i: usize) -> Option<&'a [SymDim]> {
        self.input(i)?.dims.as_deref()
    }

    /// Rank of input `i`.
    pub fn rank(&self, i: usize) -> Option<usize> {
        self.dims(i).map(<[_]>::len)
    }

    /// The constant tensor that input `i` is.
    pub fn constant(&self, i: usize) -> Option<&'a Tensor> {
        self.input(i)?.constant.as_ref()
    }

    /// The elements of input `i`, an integer tensor whose elements are known or expressions.
    pub fn value(&self, i: usize) -> Option<Vec<SymDim>> {
        let info = self.input(i)?;
        if let Some(value) = &info.value {
            return Some(value.clone());
        }
        Some(ints(info.constant.as_ref()?)?.into_iter().map(SymDim::known).collect())
    }

    /// The elements of input `i` if every one is a number.
    pub fn known_value(&self, i: usize) -> Option<Vec<i64>> {
        self.value(i)?.iter().map(SymDim::as_known).collect()
    }

    /// Says what output `i` is. Ignored for outputs nobody asks for.
    pub fn set(&mut self, i: usize, elem: Option<DataType>, dims: Option<Vec<SymDim>>) {
        if let Some(out) = self.outputs.get_mut(i) {
            (out.elem, out.dims) = (elem, dims);
        }
    }

    /// Says what the elements of output `i`, an integer tensor of at most one dimension, are.
    pub fn set_value(&mut self, i: usize, value: Option<Vec<SymDim>>) {
        if let Some(out) = self.outputs.get_mut(i) {
            out.value = value;
        }
    }

    /// Says all there is to say of output `i`.
    pub fn set_info(&mut self, i: usize, info: Info) {
        if let Some(out) = self.outputs.get_mut(i) {
            *out = info;
        }
    }

    /// Says that output `i` is this tensor, whatever the inputs.
    pub fn set_constant(&mut self, i: usize, tensor: &Tensor) {
        if let Some(out) = self.outputs.get_mut(i) {
            let dims =
                tensor.dims().iter().map(|&d| SymDim::known(i64::try_from(d).unwrap_or(i64::MAX)));
            (out.elem, out.dims) = (Some(tensor.dtype()), Some(dims.collect()));
            out.constant = Some(tensor.clone());
        }
    }

    /// A size that depends on the data (NonZero): a symbol that nothing else has.
    pub fn fresh_symbol(&mut self) -> SymDim {
        self.n_fresh.set(self.n_fresh.get() + 1);
        SymDim::symbol(&format!("unk__{}", self.n_fresh.get()))
    }

    /// What was said.
    pub fn into_outputs(self) -> Vec<Info> {
        self.outputs
    }
}

/// The elements of an `int64` or `int32` tensor.
pub fn ints(tensor: &Tensor) -> Option<Vec<i64>> {
    match tensor.dtype() {
        DataType::Int64 => tensor.to_vec().ok(),
        DataType::Int32 => Some(tensor.to_vec::<i32>().ok()?.into_iter().map(i64::from).collect()),
        _ => None,
    }
}

/// `axis` counted from the front.
pub fn normalize_axis(axis: i64, rank: usize) -> Result<usize, OpError> {
    let n = i64::try_from(rank).unwrap_or(i64::MAX);
    let from_front = if axis < 0 { axis.checked_add(n) } else { Some(axis) };
    from_front
        .filter(|a| (0..n).contains(a))
        .and_then(|a| usize::try_from(a).ok())
        .ok_or_else(|| OpError::Invalid(format!("axis {axis} is not one of {rank} dimensions")))
}
