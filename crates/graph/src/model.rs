//! Models, graphs and nodes.

use std::collections::HashMap;

use bytes::Bytes;

use crate::{
    dtype::DataType,
    tensor::Tensor,
    types::{Dim, Type},
};

/// Protobuf fields that a file has and this program only carries: field number and encoded content.
pub type Opaque = Vec<(u32, Bytes)>;

/// A model: a graph, and what it needs in order to be read.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the names are ModelProto's")]
pub struct Model {
    pub ir_version: i64,
    /// (domain, version), in file order. The default domain is `""`.
    pub opset_imports: Vec<(String, i64)>,
    pub producer_name: String,
    pub producer_version: String,
    pub domain: String,
    pub model_version: i64,
    pub doc_string: String,
    pub graph: Graph,
    pub metadata: Vec<(String, String)>,
    pub functions: Vec<Function>,
    pub opaque: Opaque,
}

/// `FunctionProto`: an operator written in terms of others.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the names are FunctionProto's")]
pub struct Function {
    pub name: String,
    pub domain: String,
    pub overload: String,
    /// Attributes without a default value.
    pub attributes: Vec<String>,
    /// Attributes with one.
    pub attribute_defaults: Vec<Attr>,
    pub opset_imports: Vec<(String, i64)>,
    pub doc_string: String,
    /// The nodes, with the function's inputs and outputs as the graph's.
    pub body: Graph,
    pub metadata: Vec<(String, String)>,
    pub opaque: Opaque,
}

/// Nodes in an order in which every value is made before it is used, and the values they work on.
///
/// Invariant: names of values are unique, and every [`ValueId`] in the public fields is one of this graph's.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// `GraphProto.name`.
    pub name: String,
    /// `GraphProto.doc_string`.
    pub doc_string: String,
    /// In topological order.
    pub nodes: Vec<Node>,
    /// What the caller gives. One that is also an initializer has a default.
    pub inputs: Vec<ValueId>,
    /// What the caller gets.
    pub outputs: Vec<ValueId>,
    /// Values with a constant tensor, in file order.
    pub initializers: Vec<ValueId>,
    /// Values whose type is written to the file besides those of inputs and outputs.
    pub value_info: Vec<ValueId>,
    /// `GraphProto.metadata_props`.
    pub metadata: Vec<(String, String)>,
    /// Fields that are only carried.
    pub opaque: Opaque,
    values: Vec<Value>,
    by_name: HashMap<String, ValueId>,
}

/// A value's index in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(u32);

impl ValueId {
    /// The position in [`Graph::values`].
    pub fn idx(self) -> usize {
        self.0 as usize
    }
}

/// Something that nodes make and use. In a subgraph, one that is neither made there, nor an input, nor a constant,
/// is the enclosing graph's value of the same name.
#[derive(Clone, Debug, Default)]
pub struct Value {
    name: String,
    /// What is known of it, from the file or from shape inference.
    pub ty: Option<Type>,
    /// An initializer's tensor.
    pub constant: Option<Tensor>,
    /// `ValueInfoProto.doc_string`.
    pub doc_string: String,
    /// `ValueInfoProto.metadata_props`.
    pub metadata: Vec<(String, String)>,
}

impl Value {
    /// Unique in the graph, never empty.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// One operator applied.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the names are NodeProto's")]
pub struct Node {
    /// May be empty, and need not be unique: [`Graph::label`] is what people are shown.
    pub name: String,
    pub op_type: String,
    /// `""` is the default domain (a file's `ai.onnx` is kept as it is).
    pub domain: String,
    pub overload: String,
    /// `None` is an optional input left out.
    pub inputs: Vec<Option<ValueId>>,
    /// `None` is an optional output nobody wants.
    pub outputs: Vec<Option<ValueId>>,
    pub attrs: Vec<Attr>,
    pub doc_string: String,
    pub metadata: Vec<(String, String)>,
    pub opaque: Opaque,
}

/// `AttributeProto`.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are AttributeProto's")]
pub struct Attr {
    pub name: String,
    pub value: AttrValue,
    pub doc_string: String,
}

/// An attribute's value.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are AttributeProto's")]
pub enum AttrValue {
    Float(f32),
    Int(i64),
    String(Bytes),
    Tensor(Tensor),
    Graph(Box<Graph>),
    Type(Box<Type>),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Strings(Vec<Bytes>),
    Tensors(Vec<Tensor>),
    Graphs(Vec<Graph>),
    Types(Vec<Type>),
    /// Inside a function: the value of the attribute `name` of the node that calls it, of ONNX type number `ty`.
    Ref {
        name: String,
        ty: i32,
    },
    /// A kind that is only carried (sparse tensors): ONNX type number, and the attribute's encoded fields.
    Opaque {
        ty: i32,
        fields: Opaque,
    },
}

impl Model {
    /// The version of the operator set `domain` (`""` and `ai.onnx` are one) that the model imports.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        opset_of(&self.opset_imports, domain)
    }

    /// Imports `domain` at `version`, in place of the version imported so far.
    pub fn set_opset(&mut self, domain: &str, version: i64) {
        let domain = canonical_domain(domain);
        match self.opset_imports.iter_mut().find(|(d, _)| canonical_domain(d) == domain) {
            Some((_, v)) => *v = version,
            None => self.opset_imports.push((domain.to_owned(), version)),
        }
    }
}

/// The version of `domain` in a list of imports.
pub fn opset_of(imports: &[(String, i64)], domain: &str) -> Option<i64> {
    let domain = canonical_domain(domain);
    imports.iter().find(|(d, _)| canonical_domain(d) == domain).map(|&(_, version)| version)
}

/// `ai.onnx` is another name of the default domain.
pub fn canonical_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

impl Graph {
    /// Every value, by [`ValueId::idx`].
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// Every value's id, in order.
    pub fn value_ids(&self) -> impl Iterator<Item = ValueId> + use<> {
        (0..self.values.len() as u32).map(ValueId)
    }

    /// One value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.idx()]
    }

    /// One value, to be changed.
    pub fn value_mut(&mut self, id: ValueId) -> &mut Value {
        &mut self.values[id.idx()]
    }

    /// A value's name.
    pub fn value_name(&self, id: ValueId) -> &str {
        &self.values[id.idx()].name
    }

    /// The value with this name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.by_name.get(name).copied()
    }

    /// The value with this name, made if there is none. `name` must not be empty.
    pub fn intern(&mut self, name: &str) -> ValueId {
        assert!(!name.is_empty(), "an empty name stands for an absent value");
        if let Some(id) = self.find(name) {
            return id;
        }
        let id = ValueId(u32::try_from(self.values.len()).expect("fewer than 2^32 values"));
        self.values.push(Value { name: name.to_owned(), ..Value::default() });
        self.by_name.insert(name.to_owned(), id);
        id
    }

    /// Gives a value another name. `false`, and no change, where another value has it.
    pub fn rename(&mut self, id: ValueId, name: &str) -> bool {
        match self.find(name) {
            Some(other) => other == id,
            None => {
                let old = std::mem::replace(&mut self.values[id.idx()].name, name.to_owned());
                self.by_name.remove(&old);
                self.by_name.insert(name.to_owned(), id);
                true
            }
        }
    }

    /// A new value whose name is `wanted`, or `wanted` with a number if that is taken.
    pub fn fresh(&mut self, wanted: &str) -> ValueId {
        if self.find(wanted).is_none() {
            return self.intern(wanted);
        }
        let name = (1..)
            .map(|i| format!("{wanted}_{i}"))
            .find(|name| self.find(name).is_none())
            .expect("there are more numbers than values");
        self.intern(&name)
    }

    /// A new value of the given type.
    pub fn fresh_typed(&mut self, wanted: &str, elem: DataType, dims: Option<Vec<Dim>>) -> ValueId {
        let id = self.fresh(wanted);
        self.value_mut(id).ty = Some(Type::tensor(elem, dims));
        id
    }

    /// A new initializer whose name is `wanted`, or `wanted` with a number if that is taken.
    pub fn add_constant(&mut self, wanted: &str, tensor: Tensor) -> ValueId {
        let id = self.fresh(wanted);
        self.set_constant(id, tensor);
        id
    }

    /// Makes `id` an initializer, or gives it another tensor.
    pub fn set_constant(&mut self, id: ValueId, tensor: Tensor) {
        if self.values[id.idx()].constant.replace(tensor).is_none() {
            self.initializers.push(id);
        }
    }

    /// The tensor of `id` if it is constant: an initializer that no caller can override.
    pub fn constant(&self, id: ValueId) -> Option<&Tensor> {
        let tensor = self.value(id).constant.as_ref()?;
        (!self.inputs.contains(&id)).then_some(tensor)
    }

    /// Inputs that have no default, which a caller must give.
    pub fn required_inputs(&self) -> impl Iterator<Item = ValueId> {
        self.inputs.iter().copied().filter(|&id| self.value(id).constant.is_none())
    }

    /// What a node is called when people are told about it: its name, or its first output's, or its operator.
    pub fn label<'a>(&'a self, node: &'a Node) -> &'a str {
        if !node.name.is_empty() {
            return &node.name;
        }
        node.outputs
            .iter()
            .flatten()
            .next()
            .map_or(node.op_type.as_str(), |&id| self.value_name(id))
    }

    /// What is known of a value's element type and sizes; a constant's come from its tensor.
    pub fn type_of(&self, id: ValueId) -> Option<Type> {
        let value = self.value(id);
        match &value.constant {
            Some(tensor) => {
                let dims = tensor.dims().iter().map(|&d| Dim::Known(d)).collect();
                Some(Type::tensor(tensor.dtype(), Some(dims)))
            }
            None => value.ty.clone(),
        }
    }

    /// Removes initializers and type entries of values that no node, input or output refers to (nodes of
    /// subgraphs included), and returns how many initializers went.
    pub fn drop_unused(&mut self) -> usize {
        let mut used = vec![false; self.values.len()];
        let mut captured = Vec::new();
        for node in &self.nodes {
            for id in node.inputs.iter().chain(&node.outputs).flatten() {
                used[id.idx()] = true;
            }
            for graph in node.subgraphs() {
                graph.captures(&mut captured);
            }
        }
        for name in &captured {
            if let Some(id) = self.by_name.get(name) {
                used[id.idx()] = true;
            }
        }
        for id in self.inputs.iter().chain(&self.outputs) {
            used[id.idx()] = true;
        }
        let before = self.initializers.len();
        let values = &mut self.values;
        self.initializers.retain(|id| {
            if !used[id.idx()] {
                values[id.idx()].constant = None;
            }
            used[id.idx()]
        });
        self.value_info.retain(|id| used[id.idx()]);
        before - self.initializers.len()
    }

    /// For each value, whether it is this graph's own: an input, a constant, or made by a node here.
    pub fn owned(&self) -> Vec<bool> {
        let mut own = vec![false; self.values.len()];
        let made = self.nodes.iter().flat_map(|n| n.outputs.iter().flatten());
        for id in made.chain(&self.inputs).chain(&self.initializers) {
            own[id.idx()] = true;
        }
        own
    }

    /// Adds to `names` every name that this graph, used as a subgraph, takes from the graphs around it.
    pub fn captures(&self, names: &mut Vec<String>) {
        let own = self.owned();
        let used = self.nodes.iter().flat_map(|n| n.inputs.iter().flatten());
        for id in used.chain(&self.outputs).filter(|id| !own[id.idx()]) {
            names.push(self.value_name(*id).to_owned());
        }
        for graph in self.nodes.iter().flat_map(Node::subgraphs) {
            let mut inner = Vec::new();
            graph.captures(&mut inner);
            names.extend(
                inner.into_iter().filter(|n| !self.find(n).is_some_and(|id| own[id.idx()])),
            );
        }
    }
}

impl Node {
    /// A node of the default domain.
    pub fn new(
        op_type: &str,
        name: &str,
        inputs: impl IntoIterator<Item = ValueId>,
        outputs: impl IntoIterator<Item = ValueId>,
    ) -> Self {
        Self {
            op_type: op_type.to_owned(),
            name: name.to_owned(),
            inputs: inputs.into_iter().map(Some).collect(),
            outputs: outputs.into_iter().map(Some).collect(),
            ..Self::default()
        }
    }

    /// The same node with an attribute more.
    pub fn with_attr(mut self, name: &str, value: AttrValue) -> Self {
        self.attrs.push(Attr { name: name.to_owned(), value, doc_string: String::new() });
        self
    }

    /// The same node in another domain.
    pub fn with_domain(mut self, domain: &str) -> Self {
        self.domain = domain.to_owned();
        self
    }

    /// Whether this is operator `op_type` of the default domain.
    pub fn is(&self, op_type: &str) -> bool {
        self.op_type == op_type && canonical_domain(&self.domain).is_empty()
    }

    /// Input `i`, if it is there.
    pub fn input(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }

    /// Output `i`, if it is there.
    pub fn output(&self, i: usize) -> Option<ValueId> {
        self.outputs.get(i).copied().flatten()
    }

    /// An attribute's value.
    pub fn attr(&self, name: &str) -> Option<&AttrValue> {
        self.attrs.iter().find(|a| a.name == name).map(|a| &a.value)
    }

    /// Sets or replaces an attribute.
    pub fn set_attr(&mut self, name: &str, value: AttrValue) {
        match self.attrs.iter_mut().find(|a| a.name == name) {
            Some(attr) => attr.value = value,
            None => {
                self.attrs.push(Attr { name: name.to_owned(), value, doc_string: String::new() })
            }
        }
    }

    /// An integer attribute. `None` if it is absent or of another kind.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attr(name)? {
            AttrValue::Int(i) => Some(*i),
            _ => None,
        }
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.attr(name)? {
            AttrValue::Float(f) => Some(*f),
            _ => None,
        }
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attr(name)? {
            AttrValue::Ints(ints) => Some(ints),
            _ => None,
        }
    }

    /// A string attribute that is valid UTF-8.
    pub fn str(&self, name: &str) -> Option<&str> {
        match self.attr(name)? {
            AttrValue::String(s) => std::str::from_utf8(s).ok(),
            _ => None,
        }
    }

    /// The graphs in the attributes (bodies of If, Loop, Scan).
    pub fn subgraphs(&self) -> impl Iterator<Item = &Graph> {
        self.bodies().map(|(_, graph)| graph)
    }

    /// The same graphs, each with its attribute's name.
    pub fn bodies(&self) -> impl Iterator<Item = (&str, &Graph)> {
        self.attrs.iter().flat_map(|a| {
            let graphs: &[Graph] = match &a.value {
                AttrValue::Graph(graph) => std::slice::from_ref(&**graph),
                AttrValue::Graphs(graphs) => graphs,
                _ => &[],
            };
            graphs.iter().map(|graph| (a.name.as_str(), graph))
        })
    }

    /// The same graphs, to be changed, in the same order.
    pub fn subgraphs_mut(&mut self) -> impl Iterator<Item = &mut Graph> {
        self.attrs.iter_mut().flat_map(|a| match &mut a.value {
            AttrValue::Graph(graph) => std::slice::from_mut(&mut **graph),
            AttrValue::Graphs(graphs) => graphs,
            _ => &mut [],
        })
    }
}
