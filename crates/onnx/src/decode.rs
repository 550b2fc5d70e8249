//! Protobuf messages to the model in memory.

use bytes::Bytes;
use midtread_graph::{
    Attr, AttrValue, DataType, Dim, Function, Graph, Model, Node, Opaque, Shape, Tensor, Type,
    TypeKind, ValueId,
};
use prost::Message as _;

use crate::{
    MAX_IR_VERSION,
    error::{Problem, TensorProblem},
    external::Files,
    order,
    proto::{
        AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
        SparseTensorProto, StringStringEntryProto, TensorShapeProto, TypeProto, ValueInfoProto,
        tensor_shape_proto::dimension, type_proto,
    },
    tensor::{self, Naming},
};

/// The model, its nodes in topological order and every name resolved.
pub(crate) fn model(proto: ModelProto, mut files: Files) -> Result<Model, Problem> {
    let version = proto.ir_version.unwrap_or(0);
    let Some(graph_proto) = proto.graph else {
        return Err(Problem::NotOnnx { what: "it has no graph" });
    };
    if !(1..=MAX_IR_VERSION).contains(&version) {
        return Err(Problem::IrVersion { version });
    }
    // Operator sets came with IR version 3; before, there was one.
    if 3 <= version && proto.opset_import.is_empty() {
        return Err(Problem::NoOpset);
    }
    let mut opaque = Opaque::new();
    mark(&mut opaque, 2, proto.producer_name.as_deref());
    mark(&mut opaque, 3, proto.producer_version.as_deref());
    mark(&mut opaque, 4, proto.domain.as_deref());
    mark(&mut opaque, 5, proto.model_version.filter(|&v| v == 0).map(|_| ""));
    mark(&mut opaque, 6, proto.doc_string.as_deref());
    carry(&mut opaque, 20, proto.training_info);
    carry(&mut opaque, 26, proto.configuration);
    let opset_imports = imports(&mut opaque, 8, proto.opset_import);
    let functions: Result<_, _> =
        proto.functions.into_iter().map(|f| function(f, &mut files)).collect();
    Ok(Model {
        ir_version: version,
        opset_imports,
        producer_name: proto.producer_name.unwrap_or_default(),
        producer_version: proto.producer_version.unwrap_or_default(),
        domain: proto.domain.unwrap_or_default(),
        model_version: proto.model_version.unwrap_or_default(),
        doc_string: proto.doc_string.unwrap_or_default(),
        graph: graph(graph_proto, None, &mut files)?,
        metadata: pairs(proto.metadata_props),
        functions: functions?,
        opaque,
    })
}

/// `metadata_props`.
pub(crate) fn pairs(entries: Vec<StringStringEntryProto>) -> Vec<(String, String)> {
    entries.into_iter().map(|e| (e.key.unwrap_or_default(), e.value.unwrap_or_default())).collect()
}

/// The imports of field `number`. Most programs write the default domain as an empty string; `opaque` gets a mark
/// for those that leave it out.
fn imports(
    opaque: &mut Opaque,
    number: u32,
    entries: Vec<OperatorSetIdProto>,
) -> Vec<(String, i64)> {
    if entries.iter().any(|e| e.domain.is_none()) {
        opaque.push((number, Bytes::new()));
    }
    entries
        .into_iter()
        .map(|e| (e.domain.unwrap_or_default(), e.version.unwrap_or_default()))
        .collect()
}

/// Notes that a field is in the file though it says nothing, so that it is written again.
fn mark(opaque: &mut Opaque, number: u32, value: Option<&str>) {
    if value == Some("") {
        opaque.push((number, Bytes::new()));
    }
}

fn carry(opaque: &mut Opaque, number: u32, values: Vec<Bytes>) {
    opaque.extend(values.into_iter().map(|bytes| (number, bytes)));
}

/// The graphs around a subgraph.
struct Scope<'a> {
    graph: &'a Graph,
    /// By value: whether the graph defines it. Values added since are not defined there.
    defined: &'a [bool],
    outer: Option<&'a Scope<'a>>,
}

impl Scope<'_> {
    fn defines(&self, name: &str) -> bool {
        let own = self.graph.find(name).is_some_and(|id| self.defined.get(id.idx()) == Some(&true));
        own || self.outer.is_some_and(|outer| outer.defines(name))
    }
}

/// Which values of a graph are defined.
#[derive(Default)]
struct Defined(Vec<bool>);

impl Defined {
    fn add(
        &mut self,
        graph: &mut Graph,
        name: &str,
        by: impl Fn() -> String,
    ) -> Result<ValueId, Problem> {
        let id = graph.intern(name);
        if self.0.len() <= id.idx() {
            self.0.resize(id.idx() + 1, false);
        }
        if std::mem::replace(&mut self.0[id.idx()], true) {
            return Err(Problem::Redefined { value: name.to_owned(), by: by() });
        }
        Ok(id)
    }
}

fn graph(
    proto: GraphProto,
    outer: Option<&Scope<'_>>,
    files: &mut Files,
) -> Result<Graph, Problem> {
    let mut graph = Graph::default();
    graph.metadata = pairs(proto.metadata_props);
    mark(&mut graph.opaque, 2, proto.name.as_deref());
    mark(&mut graph.opaque, 10, proto.doc_string.as_deref());
    carry(&mut graph.opaque, 14, proto.quantization_annotation);
    graph.name = proto.name.unwrap_or_default();
    graph.doc_string = proto.doc_string.unwrap_or_default();

    let mut defined = Defined::default();
    for info in proto.input {
        let name = named(&info, "a graph's input")?;
        let id = defined.add(&mut graph, name, || "as an input".to_owned())?;
        graph.inputs.push(id);
        describe(&mut graph, id, info)?;
    }
    for tensor in proto.initializer {
        let name = tensor.name.clone().filter(|n| !n.is_empty());
        let name = name.ok_or(Problem::Unnamed { what: "an initializer" })?;
        // One that is also an input gives it a default.
        let id = match graph.find(&name).filter(|&id| graph.value(id).constant.is_none()) {
            Some(id) => id,
            None => defined.add(&mut graph, &name, || "as an initializer".to_owned())?,
        };
        let tensor = tensor::decode(tensor, Naming::OfValue, files)?;
        check_default(&name, graph.value(id).ty.as_ref(), &tensor)?;
        graph.set_constant(id, tensor);
    }
    for bytes in proto.sparse_initializer {
        sparse_initializer(&mut graph, &mut defined, bytes.clone())?;
        graph.opaque.push((15, bytes));
    }
    let n_nodes = proto.node.len();
    for node in &proto.node {
        for name in node.output.iter().filter(|name| !name.is_empty()) {
            defined.add(&mut graph, name, || format!("by node `{}`", label(node)))?;
        }
    }
    // From here on, values that are added are used without being defined here.
    let defined = defined.0;

    graph.nodes.reserve_exact(n_nodes);
    for node_proto in proto.node {
        let scope = Scope { graph: &graph, defined: &defined, outer };
        for name in node_proto.input.iter().filter(|name| !name.is_empty()) {
            if !scope.defines(name) {
                let by = format!("node `{}`", label(&node_proto));
                return Err(Problem::Undefined { value: name.clone(), by });
            }
        }
        let (mut node, inputs, outputs) = node(node_proto, Some(&scope), files)?;
        let mut ids = |names: Vec<String>| {
            names.iter().map(|name| (!name.is_empty()).then(|| graph.intern(name))).collect()
        };
        node.inputs = ids(inputs);
        node.outputs = ids(outputs);
        graph.nodes.push(node);
    }
    for info in proto.output {
        let name = named(&info, "a graph's output")?;
        if !(Scope { graph: &graph, defined: &defined, outer }).defines(name) {
            let by = "the graph's list of outputs".to_owned();
            return Err(Problem::Undefined { value: name.to_owned(), by });
        }
        let id = graph.intern(name);
        graph.outputs.push(id);
        describe(&mut graph, id, info)?;
    }
    value_info(&mut graph, proto.value_info)?;
    order::sort(&mut graph)?;
    Ok(graph)
}

/// An input's default must be what the input is declared to be: everything behind it is computed from that.
fn check_default(name: &str, declared: Option<&Type>, default: &Tensor) -> Result<(), Problem> {
    let Some(ty) = declared else { return Ok(()) };
    let fits = ty.elem().is_none_or(|elem| elem == default.dtype())
        && ty.dims().is_none_or(|dims| {
            let known = |(dim, &n): (&Dim, &usize)| dim.known().is_none_or(|dim| dim == n);
            dims.len() == default.dims().len() && dims.iter().zip(default.dims()).all(known)
        });
    if fits {
        return Ok(());
    }
    let (elem, dims) = (default.dtype(), default.dims());
    let what = format!("its default is {elem}{dims:?}, and its declared type {ty}");
    Err(Problem::Type { value: name.to_owned(), what })
}

fn function(proto: FunctionProto, files: &mut Files) -> Result<Function, Problem> {
    let mut opaque = Opaque::new();
    mark(&mut opaque, 8, proto.doc_string.as_deref());
    mark(&mut opaque, 10, proto.domain.as_deref());
    mark(&mut opaque, 13, proto.overload.as_deref());
    let opset_imports = imports(&mut opaque, 9, proto.opset_import);
    let info = |name: String| ValueInfoProto { name: Some(name), ..ValueInfoProto::default() };
    // A body is a graph whose inputs and outputs have names only.
    let body = GraphProto {
        node: proto.node,
        input: proto.input.into_iter().map(info).collect(),
        output: proto.output.into_iter().map(info).collect(),
        value_info: proto.value_info,
        ..GraphProto::default()
    };
    let label = proto.name.clone().unwrap_or_default();
    let defaults: Result<_, _> = proto
        .attribute_proto
        .into_iter()
        .map(|a| attr(a, None, &label, "function", files))
        .collect();
    Ok(Function {
        name: proto.name.unwrap_or_default(),
        domain: proto.domain.unwrap_or_default(),
        overload: proto.overload.unwrap_or_default(),
        attributes: proto.attribute,
        attribute_defaults: defaults?,
        opset_imports,
        doc_string: proto.doc_string.unwrap_or_default(),
        body: graph(body, None, files)?,
        metadata: pairs(proto.metadata_props),
        opaque,
    })
}

fn value_info(graph: &mut Graph, infos: Vec<ValueInfoProto>) -> Result<(), Problem> {
    let mut listed = vec![false; graph.values().len()];
    for info in infos {
        let id = graph.intern(named(&info, "a value with a type")?);
        listed.resize(graph.values().len(), false);
        // Of entries with the same name, the first counts.
        if !std::mem::replace(&mut listed[id.idx()], true) {
            graph.value_info.push(id);
            describe(graph, id, info)?;
        }
    }
    Ok(())
}

fn named<'a>(info: &'a ValueInfoProto, what: &'static str) -> Result<&'a str, Problem> {
    info.name.as_deref().filter(|name| !name.is_empty()).ok_or(Problem::Unnamed { what })
}

/// Takes over what the file says about a value, unless it said so before.
fn describe(graph: &mut Graph, id: ValueId, info: ValueInfoProto) -> Result<(), Problem> {
    let ty = info.r#type.map(decode_type).transpose();
    let ty = ty.map_err(|what| Problem::Type { value: graph.value_name(id).to_owned(), what })?;
    let value = graph.value_mut(id);
    if value.ty.is_none() {
        value.ty = ty;
    }
    if value.doc_string.is_empty() {
        value.doc_string = info.doc_string.unwrap_or_default();
    }
    if value.metadata.is_empty() {
        value.metadata = pairs(info.metadata_props);
    }
    Ok(())
}

fn sparse_initializer(
    graph: &mut Graph,
    defined: &mut Defined,
    bytes: Bytes,
) -> Result<(), Problem> {
    let proto = SparseTensorProto::decode(bytes).map_err(crate::error::undecodable)?;
    let values = proto.values.unwrap_or_default();
    let name = values.name.as_deref().filter(|n| !n.is_empty());
    let name = name.ok_or(Problem::Unnamed { what: "a sparse initializer" })?;
    let bad = |source| Problem::Tensor { tensor: name.to_owned(), source };
    let number = values.data_type.unwrap_or(0);
    let elem = DataType::from_onnx(number).ok_or_else(|| bad(TensorProblem::DataType(number)))?;
    let dims = tensor::dims(&proto.dims).map_err(bad)?;
    let id = match graph.find(name).filter(|id| graph.inputs.contains(id)) {
        Some(id) => id,
        None => defined.add(graph, name, || "as a sparse initializer".to_owned())?,
    };
    // What it stands for is a dense tensor.
    let dims = dims.into_iter().map(Dim::Known).collect();
    graph.value_mut(id).ty.get_or_insert_with(|| Type::tensor(elem, Some(dims)));
    Ok(())
}

/// A type, or a clause that says what is wrong with it.
fn decode_type(proto: TypeProto) -> Result<Type, String> {
    use type_proto::Value;
    let boxed =
        |ty: Option<Box<TypeProto>>| ty.map(|ty| decode_type(*ty).map(Box::new)).transpose();
    let kind = match proto.value {
        None => TypeKind::Unset,
        Some(Value::TensorType(t)) => {
            TypeKind::Tensor { elem: elem(t.elem_type)?, shape: shape(t.shape)? }
        }
        Some(Value::SparseTensorType(t)) => {
            TypeKind::SparseTensor { elem: elem(t.elem_type)?, shape: shape(t.shape)? }
        }
        Some(Value::SequenceType(t)) => TypeKind::Sequence(boxed(t.elem_type)?),
        Some(Value::OptionalType(t)) => TypeKind::Optional(boxed(t.elem_type)?),
        Some(Value::MapType(t)) => {
            TypeKind::Map { key: elem(t.key_type)?, value: boxed(t.value_type)? }
        }
        Some(Value::OpaqueType(t)) => TypeKind::Opaque {
            domain: t.domain.unwrap_or_default(),
            name: t.name.unwrap_or_default(),
        },
    };
    Ok(Type { kind, denotation: proto.denotation.unwrap_or_default() })
}

fn elem(number: Option<i32>) -> Result<Option<DataType>, String> {
    match number.unwrap_or(0) {
        0 => Ok(None),
        n => {
            DataType::from_onnx(n).map(Some).ok_or_else(|| format!("element type {n} is not known"))
        }
    }
}

fn shape(proto: Option<TensorShapeProto>) -> Result<Option<Shape>, String> {
    let Some(proto) = proto else { return Ok(None) };
    let mut shape = Shape::default();
    let has_denotation = proto.dim.iter().any(|d| d.denotation.is_some());
    for dim in proto.dim {
        shape.dims.push(match dim.value {
            Some(dimension::Value::DimValue(n)) => match usize::try_from(n) {
                Ok(n) => Dim::Known(n),
                // Not allowed, and written by several exporters for "not known".
                Err(_) if n == -1 => Dim::Unknown,
                Err(_) => return Err(format!("size {n} is not possible")),
            },
            Some(dimension::Value::DimParam(name)) if !name.is_empty() => Dim::Symbol(name),
            _ => Dim::Unknown,
        });
        if has_denotation {
            shape.denotations.push(dim.denotation.unwrap_or_default());
        }
    }
    Ok(Some(shape))
}

/// What a node is called in errors: as [`Graph::label`].
fn label(node: &NodeProto) -> &str {
    let name = node.name.as_deref().filter(|n| !n.is_empty());
    let output = || node.output.iter().find(|n| !n.is_empty()).map(String::as_str);
    name.or_else(output).unwrap_or_else(|| node.op_type())
}

/// The node, without its inputs and outputs, and their names.
fn node(
    proto: NodeProto,
    scope: Option<&Scope<'_>>,
    files: &mut Files,
) -> Result<(Node, Vec<String>, Vec<String>), Problem> {
    let op_type = proto.op_type.clone().unwrap_or_default();
    let label = label(&proto).to_owned();
    if op_type.is_empty() {
        let what = "it has no operator type".to_owned();
        return Err(Problem::Node { node: label, op_type, what });
    }
    let mut opaque = Opaque::new();
    mark(&mut opaque, 3, proto.name.as_deref());
    mark(&mut opaque, 6, proto.doc_string.as_deref());
    mark(&mut opaque, 7, proto.domain.as_deref());
    mark(&mut opaque, 8, proto.overload.as_deref());
    carry(&mut opaque, 10, proto.device_configurations);
    let attrs = proto.attribute.into_iter().map(|a| attr(a, scope, &label, &op_type, files));
    let node = Node {
        attrs: attrs.collect::<Result<_, _>>()?,
        name: proto.name.unwrap_or_default(),
        op_type,
        domain: proto.domain.unwrap_or_default(),
        overload: proto.overload.unwrap_or_default(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        doc_string: proto.doc_string.unwrap_or_default(),
        metadata: pairs(proto.metadata_props),
        opaque,
    };
    Ok((node, proto.input, proto.output))
}

fn attr(
    proto: AttributeProto,
    scope: Option<&Scope<'_>>,
    node: &str,
    op_type: &str,
    files: &mut Files,
) -> Result<Attr, Problem> {
    let name = proto.name.clone().unwrap_or_default();
    let bad = |what: &str| Problem::Node {
        node: node.to_owned(),
        op_type: op_type.to_owned(),
        what: format!("attribute `{name}` {what}"),
    };
    let kind = match proto.r#type.unwrap_or(0) {
        0 => kind_of(&proto),
        kind => kind,
    };
    let bad_type = |what: String| bad(&what);
    let tensor = |t, files: &mut Files| {
        tensor::decode(t, Naming::InNotes, files).map_err(|problem| match problem {
            Problem::Tensor { tensor, source } if tensor.is_empty() => {
                Problem::Tensor { tensor: format!("{node}.{name}"), source }
            }
            problem => problem,
        })
    };
    let value = if let Some(from) = proto.ref_attr_name.filter(|n| !n.is_empty()) {
        AttrValue::Ref { name: from, ty: kind }
    } else {
        match kind {
            1 => AttrValue::Float(proto.f.unwrap_or_default()),
            2 => AttrValue::Int(proto.i.unwrap_or_default()),
            3 => AttrValue::String(proto.s.unwrap_or_default()),
            4 => AttrValue::Tensor(tensor(*proto.t.ok_or_else(|| bad("has no tensor"))?, files)?),
            5 => {
                let g = *proto.g.ok_or_else(|| bad("has no graph"))?;
                AttrValue::Graph(Box::new(graph(g, scope, files)?))
            }
            6 => AttrValue::Floats(proto.floats),
            7 => AttrValue::Ints(proto.ints),
            8 => AttrValue::Strings(proto.strings),
            9 => {
                let tensors = proto.tensors.into_iter().map(|t| tensor(t, files));
                AttrValue::Tensors(tensors.collect::<Result<_, _>>()?)
            }
            10 => {
                let graphs = proto.graphs.into_iter().map(|g| graph(g, scope, files));
                AttrValue::Graphs(graphs.collect::<Result<_, _>>()?)
            }
            11 => {
                let bytes = proto.sparse_tensor.ok_or_else(|| bad("has no sparse tensor"))?;
                AttrValue::Opaque { ty: kind, fields: vec![(22, bytes)] }
            }
            12 => {
                let mut fields = Opaque::new();
                carry(&mut fields, 23, proto.sparse_tensors);
                AttrValue::Opaque { ty: kind, fields }
            }
            13 => {
                let ty = *proto.tp.ok_or_else(|| bad("has no type"))?;
                AttrValue::Type(Box::new(decode_type(ty).map_err(bad_type)?))
            }
            14 => {
                let types = proto.type_protos.into_iter().map(decode_type);
                AttrValue::Types(types.collect::<Result<_, _>>().map_err(bad_type)?)
            }
            0 => return Err(bad("has no value")),
            n => return Err(bad(&format!("is of type {n}, which is not known"))),
        }
    };
    Ok(Attr { name, value, doc_string: proto.doc_string.unwrap_or_default() })
}

/// The type of an attribute that does not say (IR version 1): that of the field which is there. 0 if none is.
fn kind_of(proto: &AttributeProto) -> i32 {
    let present = [
        (1, proto.f.is_some()),
        (2, proto.i.is_some()),
        (3, proto.s.is_some()),
        (4, proto.t.is_some()),
        (5, proto.g.is_some()),
        (6, !proto.floats.is_empty()),
        (7, !proto.ints.is_empty()),
        (8, !proto.strings.is_empty()),
        (9, !proto.tensors.is_empty()),
        (10, !proto.graphs.is_empty()),
        (11, proto.sparse_tensor.is_some()),
        (12, !proto.sparse_tensors.is_empty()),
        (13, proto.tp.is_some()),
        (14, !proto.type_protos.is_empty()),
    ];
    present.iter().find(|(_, present)| *present).map_or(0, |&(kind, _)| kind)
}
