//! Element types and sizes of every value, from the inputs' and the operators' shape rules.
//!
//! Sizes are expressions over the names that the inputs' types have; elements of integer tensors that shapes are
//! computed with (`Shape`, `Gather`, `Concat`, ...) are followed too. What a file says of a value is used where the
//! rules leave something open, and reported where they contradict it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use midtread_graph::{
    AttrValue, DataType, Dim, Function, Graph, Model, Node, Tensor, Type, TypeKind, ValueId,
    model::{canonical_domain, opset_of},
};
use midtread_ops::{Args, EvalCtx, InferCtx, Info, OpDef, Pool, SymDim};

use crate::{
    error::Error,
    prepare::{Ctx, PassDef},
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "infer_shapes",
    summary: "element types and sizes of every value, as expressions over the inputs' sizes",
    is_default: true,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    let inference = infer(model);
    for (id, because) in &inference.contradictions {
        ctx.change(model.graph.value_name(*id), format!("has another type: {because}"));
    }
    for (node, because) in &inference.refusals {
        ctx.skip(node, because.clone());
    }
    let n_learned = write_types(&mut model.graph, &inference.infos);
    write_body_types(&mut model.graph, &inference);
    ctx.learned_types(n_learned);
    Ok(())
}

/// What inference found out.
#[derive(Debug, Default)]
pub struct Inference {
    /// What is known of each value, by [`ValueId::idx`].
    pub infos: Vec<Info>,
    /// Values of which the file says what cannot be; a clause each.
    pub contradictions: Vec<(ValueId, String)>,
    /// Nodes whose form is not known, or that the shape rule found to be against the specification: the label, and
    /// what the rule said.
    pub refusals: Vec<(String, String)>,
    /// Of the graphs in nodes' attributes: by the node's index, and the graph's place among [`Node::subgraphs`].
    pub bodies: BTreeMap<(usize, usize), Inference>,
}

/// Applies the shape rules of all nodes, in their order, which must be topological.
///
/// Graphs in attributes and functions are inferred with what is known where they are used. Nodes whose operator is not
/// in the table give what the file says of their outputs, and so do those beyond a bound on the work, which only graphs
/// nested on purpose reach.
pub fn infer(model: &Model) -> Inference {
    let n_nodes =
        model.graph.nodes.len() + model.functions.iter().map(|f| f.body.nodes.len()).sum::<usize>();
    let scope = Scope {
        model,
        imports: &model.opset_imports,
        n_fresh: &Cell::new(0),
        n_left: &Cell::new(MIN_WORK + WORK_PER_NODE * n_nodes),
        pool: &Pool::default(),
        depth: 0,
        outer: None,
    };
    scope.infer(&model.graph, None)
}

/// Nodes of bodies and functions that are looked at: a loop's body up to eight times, and so on inside of it.
const MIN_WORK: usize = 100_000;
const WORK_PER_NODE: usize = 64;

/// Functions call functions at most this deep.
const MAX_DEPTH: usize = 32;

/// One graph among those that enclose it.
struct Scope<'a> {
    model: &'a Model,
    /// The operator sets of the model, or of the function that this is a part of.
    imports: &'a [(String, i64)],
    /// Counts the symbols made so far in the whole model.
    n_fresh: &'a Cell<usize>,
    /// Nodes inside of others that may still be looked at.
    n_left: &'a Cell<usize>,
    pool: &'a Pool,
    /// How many functions this is inside of.
    depth: usize,
    /// The graph around this one, as far as it is inferred, and its scope.
    outer: Option<(&'a Scope<'a>, &'a Graph, &'a [Info])>,
}

impl Scope<'_> {
    /// What a name means in the graphs around.
    fn captured(&self, name: &str) -> Info {
        let mut outer = self.outer;
        while let Some((scope, graph, infos)) = outer {
            match graph.find(name).map(|id| &infos[id.idx()]) {
                Some(info) if *info != Info::default() => return info.clone(),
                _ => outer = scope.outer,
            }
        }
        Info::default()
    }

    /// Of a body, `given` is what its inputs are, over what it says itself.
    fn infer(&self, graph: &Graph, given: Option<Vec<Info>>) -> Inference {
        let mut is_output = vec![false; graph.values().len()];
        graph.outputs.iter().for_each(|id| is_output[id.idx()] = true);
        let mut is_input = vec![false; graph.values().len()];
        graph.inputs.iter().for_each(|id| is_input[id.idx()] = true);

        let mut result = Inference {
            infos: vec![Info::default(); graph.values().len()],
            ..Inference::default()
        };
        if self.outer.is_some() {
            let own = graph.owned();
            for id in graph.value_ids().filter(|id| !own[id.idx()]) {
                result.infos[id.idx()] = self.captured(graph.value_name(id));
            }
        }
        for id in graph.inputs.iter().chain(&graph.initializers) {
            let value = graph.value(*id);
            let info = &mut result.infos[id.idx()];
            *info = match &value.constant {
                // Before IR version 4 every constant is listed as an input.
                Some(tensor) if !is_input[id.idx()] || self.model.ir_version < 4 => {
                    Info { constant: Some(tensor.clone()), ..Info::of(tensor) }
                }
                _ => value.ty.as_ref().map(Info::declared).unwrap_or_default(),
            };
            if self.outer.is_none() && given.is_none() {
                name_dims(info, value.name());
            }
        }
        for (id, info) in graph.inputs.iter().zip(given.into_iter().flatten()) {
            let ty = graph.value(*id).ty.as_ref();
            result.infos[id.idx()] = merge(info, ty, false).0;
        }

        for (i, node) in graph.nodes.iter().enumerate() {
            let inputs: Vec<Option<Info>> =
                node.inputs.iter().map(|id| Some(result.infos[(*id)?.idx()].clone())).collect();
            let bodies = RefCell::default();
            let outputs = self.infer_node(graph, &result.infos, node, &inputs, &bodies);
            let bodies = bodies.into_inner().into_iter();
            result.bodies.extend(bodies.map(|(k, inference)| ((i, k), inference)));
            let outputs = match outputs {
                Ok(outputs) => outputs,
                Err(because) => {
                    result.refusals.push((graph.label(node).to_owned(), because));
                    Vec::new()
                }
            };
            let mut outputs = outputs.into_iter();
            for id in &node.outputs {
                let inferred = outputs.next().unwrap_or_default();
                let Some(id) = *id else { continue };
                let (info, contradiction) =
                    merge(inferred, graph.value(id).ty.as_ref(), is_output[id.idx()]);
                result.contradictions.extend(contradiction.map(|text| (id, text)));
                result.infos[id.idx()] = info;
            }
        }
        result
    }

    fn infer_node(
        &self,
        graph: &Graph,
        infos: &[Info],
        node: &Node,
        inputs: &[Option<Info>],
        bodies: &RefCell<BTreeMap<usize, Inference>>,
    ) -> Result<Vec<Info>, String> {
        if let Some(function) = self.function(node) {
            return Ok(self.call(function, node, inputs));
        }
        let (def, opset) = match (
            midtread_ops::find(&node.domain, &node.op_type),
            opset_of(self.imports, &node.domain),
        ) {
            (Some(def), Some(opset)) => (def, opset),
            _ => return Ok(Vec::new()),
        };
        def.check(node, opset).map_err(|err| err.to_string())?;
        let body = |body: &Graph, given: Vec<Info>| {
            if !self.spend(body) {
                return Vec::new();
            }
            let scope = Scope { outer: Some((self, graph, infos)), ..*self };
            let inference = scope.infer(body, Some(given));
            let outputs = body.outputs.iter().map(|id| inference.infos[id.idx()].clone()).collect();
            if let Some(k) = node.subgraphs().position(|g| std::ptr::eq(g, body)) {
                bodies.borrow_mut().insert(k, inference);
            }
            outputs
        };
        let mut ctx = InferCtx::new(node, opset, inputs, self.n_fresh).with_bodies(&body);
        (def.infer)(&mut ctx).map_err(|err| err.to_string())?;
        let mut outputs = ctx.into_outputs();
        if let Some(tensors) = self.evaluated(def, opset, node, inputs) {
            for (info, tensor) in outputs.iter_mut().zip(tensors) {
                *info = Info { constant: Some(tensor.clone()), ..Info::of(&tensor) };
            }
        }
        Ok(outputs)
    }

    /// What a node of [`SMALL`] makes of small tensors that are all known. Of more than one dimension, or of another
    /// type than integers, the shape rules do not follow elements.
    fn evaluated(
        &self,
        def: &OpDef,
        opset: i64,
        node: &Node,
        inputs: &[Option<Info>],
    ) -> Option<Vec<Tensor>> {
        if !node.domain.is_empty() || !SMALL.contains(&node.op_type.as_str()) || inputs.is_empty() {
            return None;
        }
        let known = |info: &Option<Info>| match info {
            None => Some(None),
            Some(Info { constant: Some(tensor), .. }) => {
                (tensor.as_bytes().len() <= MAX_SMALL).then(|| Some(tensor.to_aligned()))
            }
            Some(info) => tensor_of(info).map(Some),
        };
        let args = Args(inputs.iter().map(known).collect::<Option<_>>()?);
        self.pool.set_max_tensor(MAX_SMALL);
        def.evaluate_tensors(&EvalCtx { node, opset, pool: self.pool }, args).ok()
    }

    /// The model's function that the node calls.
    fn function(&self, node: &Node) -> Option<&Function> {
        let key = (canonical_domain(&node.domain), &node.op_type, &node.overload);
        self.model
            .functions
            .iter()
            .find(|f| (canonical_domain(&f.domain), &f.name, &f.overload) == key)
    }

    /// What a function gives for these inputs. Nothing, where it leads too deep.
    fn call(&self, function: &Function, node: &Node, inputs: &[Option<Info>]) -> Vec<Info> {
        if MAX_DEPTH <= self.depth || !self.spend(&function.body) {
            return Vec::new();
        }
        let mut body = function.body.clone();
        resolve_attrs(&mut body, function, node);
        let given = inputs.iter().map(|info| info.clone().unwrap_or_default()).collect();
        let scope =
            Scope { imports: &function.opset_imports, depth: self.depth + 1, outer: None, ..*self };
        let inference = scope.infer(&body, Some(given));
        body.outputs.iter().map(|id| inference.infos[id.idx()].clone()).collect()
    }

    /// Whether there is work left for a graph.
    fn spend(&self, graph: &Graph) -> bool {
        let left = self.n_left.get().checked_sub(1 + graph.nodes.len());
        self.n_left.set(left.unwrap_or(0));
        left.is_some()
    }
}

/// Attributes that are the caller's, as this call has them; without one, the function's default, or none.
fn resolve_attrs(body: &mut Graph, function: &Function, call: &Node) {
    for node in &mut body.nodes {
        node.attrs.retain_mut(|attr| {
            if let AttrValue::Ref { name, .. } = &attr.value {
                let default = function.attribute_defaults.iter().find(|a| a.name == *name);
                match call.attr(name).or(default.map(|a| &a.value)) {
                    Some(value) => attr.value = value.clone(),
                    None => return false,
                }
            }
            match &mut attr.value {
                AttrValue::Graph(graph) => resolve_attrs(graph, function, call),
                AttrValue::Graphs(graphs) => {
                    graphs.iter_mut().for_each(|graph| resolve_attrs(graph, function, call));
                }
                _ => {}
            }
            true
        });
    }
}

/// What is known of a value, from its node's rule and from what the file says; and whether these contradict.
///
/// A number or an expression over the inputs' sizes that was inferred stands; what the file says fills in the rest
/// (a name of an output's size stays as long as no number is known). Where they contradict, the rule is believed:
/// it follows from the inputs, while the file's remark may have been made before somebody changed them.
fn merge(inferred: Info, ty: Option<&Type>, is_output: bool) -> (Info, Option<String>) {
    let Info { elem, dims, element, .. } = ty.map(Info::declared).unwrap_or_default();
    let mut info = inferred;
    info.element = info.element.or(element);
    let mut contradiction = None;
    match (info.elem, elem) {
        (Some(a), Some(b)) if a != b => {
            contradiction = Some(format!("the file said it is {b}, but its node makes {a}"));
        }
        (None, Some(_)) => info.elem = elem,
        _ => {}
    }
    match (&mut info.dims, dims) {
        (Some(a), Some(b)) if a.len() != b.len() => {
            contradiction = Some(format!(
                "the file said it has rank {}, but its node makes {}",
                b.len(),
                a.len()
            ));
        }
        (Some(a), Some(b)) => {
            for (axis, (a, b)) in a.iter_mut().zip(b).enumerate() {
                match (a.as_known(), b.as_known()) {
                    (Some(x), Some(y)) if x != y => {
                        contradiction = Some(format!(
                            "the file said its size {axis} is {y}, but its node makes {x}"
                        ));
                    }
                    (Some(_), _) => {}
                    // The value's own elements were computed with the inferred size; they stay consistent.
                    (None, Some(_)) if is_unnamed(a) || is_output => *a = b,
                    (None, None) if is_unnamed(a) && b != SymDim::Unknown => *a = b,
                    _ => {}
                }
            }
        }
        (a @ None, Some(b)) => *a = Some(b),
        (_, None) => {}
    }
    // Without an element type nothing is written, and there is nothing to correct.
    let contradiction = contradiction.filter(|_| info.elem.is_some());
    (info, contradiction)
}

/// Operators that sizes are computed with, and whose work is no more than they take and make.
const SMALL: &[&str] = &[
    "Add",
    "And",
    "Cast",
    "Ceil",
    "Concat",
    "ConstantOfShape",
    "Div",
    "Equal",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "Range",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "Reshape",
    "ScatterElements",
    "ScatterND",
    "Slice",
    "Split",
    "Squeeze",
    "Sub",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// Bytes of a tensor that is followed element by element.
const MAX_SMALL: usize = 8192;

/// The tensor that an inferred value of at most one dimension is, if every element is an integer that is known.
pub(crate) fn tensor_of(info: &Info) -> Option<Tensor> {
    if let Some(tensor) = &info.constant {
        let is_int = matches!(tensor.dtype(), DataType::Int64 | DataType::Int32);
        let is_small = tensor.dims().len() <= 1 && tensor.as_bytes().len() <= MAX_SMALL;
        return (is_int && is_small).then(|| tensor.clone());
    }
    let values: Vec<i64> =
        info.value.as_ref()?.iter().map(SymDim::as_known).collect::<Option<_>>()?;
    let dims = info.dims.as_ref()?.iter().map(|d| usize::try_from(d.as_known()?).ok());
    let dims: Vec<usize> = dims.collect::<Option<_>>()?;
    match info.elem? {
        DataType::Int64 => Tensor::from_slice(dims, &values).ok(),
        DataType::Int32 => {
            let values: Vec<i32> =
                values.into_iter().map(|v| i32::try_from(v).ok()).collect::<Option<_>>()?;
            Tensor::from_slice(dims, &values).ok()
        }
        _ => None,
    }
}

/// Gives sizes of an input that the file leaves open the names by which [`fix_dims`] knows them: `pixels:0`.
fn name_dims(info: &mut Info, input: &str) {
    for (axis, dim) in info.dims.iter_mut().flatten().enumerate() {
        if *dim == SymDim::Unknown {
            *dim = SymDim::symbol(&format!("{input}:{axis}"));
        }
    }
}

/// Whether nothing is known, or only that it is a size that the data decides.
fn is_unnamed(dim: &SymDim) -> bool {
    match dim {
        SymDim::Unknown => true,
        SymDim::Expr(expr) => expr.to_string().contains("unk__"),
    }
}

/// Writes what is known to the values, and lists them among those whose types a file holds. Returns how many types
/// changed.
fn write_types(graph: &mut Graph, infos: &[Info]) -> usize {
    let mut is_listed = vec![false; graph.values().len()];
    let listed = graph.value_info.iter().chain(&graph.inputs).chain(&graph.outputs);
    listed.for_each(|id| is_listed[id.idx()] = true);
    let mut is_output = vec![false; graph.values().len()];
    graph.outputs.iter().for_each(|id| is_output[id.idx()] = true);

    let made: Vec<ValueId> =
        graph.nodes.iter().flat_map(|n| n.outputs.iter().copied().flatten()).collect();
    let mut n_changed = 0;
    for id in made {
        let info = &infos[id.idx()];
        let Some(elem) = info.elem else { continue };
        let mut dims: Option<Vec<Dim>> =
            info.dims.as_ref().map(|dims| dims.iter().map(SymDim::to_dim).collect());
        let value = graph.value_mut(id);
        let before = value.ty.as_ref();
        if before.is_some_and(|ty| !matches!(ty.kind, TypeKind::Tensor { .. } | TypeKind::Unset)) {
            continue;
        }
        if is_output[id.idx()] {
            keep_names(&mut dims, before);
        }
        let mut ty = Type::tensor(elem, dims);
        if let Some(before) = before {
            ty.denotation.clone_from(&before.denotation);
            keep_denotations(&mut ty, before);
        }
        if before != Some(&ty) {
            value.ty = Some(ty);
            n_changed += 1;
        }
        if !std::mem::replace(&mut is_listed[id.idx()], true) {
            graph.value_info.push(id);
        }
    }
    n_changed
}

/// Gives the values of the graphs in attributes their element types, those that they capture included. They are known
/// to whoever looks at the graph, and not written to the file.
fn write_body_types(graph: &mut Graph, inference: &Inference) {
    for (i, node) in graph.nodes.iter_mut().enumerate() {
        for (k, body) in node.subgraphs_mut().enumerate() {
            let Some(inner) = inference.bodies.get(&(i, k)) else { continue };
            for id in body.value_ids() {
                let info = &inner.infos[id.idx()];
                let value = body.value_mut(id);
                if let (None, None, Some(elem)) = (&value.ty, &info.element, info.elem) {
                    let dims = info.dims.as_ref();
                    let dims = dims.map(|dims| dims.iter().map(SymDim::to_dim).collect());
                    value.ty = Some(Type::tensor(elem, dims));
                }
            }
            write_body_types(body, inner);
        }
    }
}

/// A graph output's sizes keep the names that the file gives them, where no number is known.
fn keep_names(dims: &mut Option<Vec<Dim>>, before: Option<&Type>) {
    let (Some(dims), Some(before)) = (dims.as_mut(), before.and_then(Type::dims)) else { return };
    if dims.len() == before.len() {
        for (dim, before) in dims.iter_mut().zip(before) {
            if dim.known().is_none() && *before != Dim::Unknown {
                dim.clone_from(before);
            }
        }
    }
}

fn keep_denotations(ty: &mut Type, before: &Type) {
    if let (
        TypeKind::Tensor { shape: Some(shape), .. },
        TypeKind::Tensor { shape: Some(before), .. },
    ) = (&mut ty.kind, &before.kind)
        && shape.dims.len() == before.dims.len()
    {
        shape.denotations.clone_from(&before.denotations);
    }
}

/// Gives sizes of the inputs fixed values: by the name the model gives them (`batch`), or as `input:axis`.
///
/// What the file says about values in between is forgotten where it names such a size.
pub fn fix_dims(model: &mut Model, dims: &BTreeMap<String, usize>) -> Result<(), Error> {
    if dims.is_empty() {
        return Ok(());
    }
    let graph = &mut model.graph;
    let required: Vec<ValueId> = graph.required_inputs().collect();
    let mut by_symbol: BTreeMap<String, usize> = BTreeMap::new();
    let mut by_axis: Vec<(ValueId, usize, usize)> = Vec::new();
    for (name, &size) in dims {
        let has_symbol = required.iter().any(|&id| {
            let dims = graph.value(id).ty.as_ref().and_then(Type::dims);
            dims.is_some_and(|dims| dims.contains(&Dim::Symbol(name.clone())))
        });
        if has_symbol {
            by_symbol.insert(name.clone(), size);
            continue;
        }
        let position = name.rsplit_once(':').and_then(|(input, axis)| {
            let id = required.iter().copied().find(|&id| graph.value_name(id) == input)?;
            let axis: usize = axis.parse().ok()?;
            let rank = graph.value(id).ty.as_ref()?.dims()?.len();
            (axis < rank).then_some((id, axis))
        });
        let Some((id, axis)) = position else {
            return Err(Error::UnknownDim {
                name: name.clone(),
                known: dim_names(graph, &required),
            });
        };
        let dim = graph.value(id).ty.as_ref().and_then(Type::dims).map(|dims| dims[axis].clone());
        match dim {
            Some(Dim::Known(before)) if before != size => {
                let input = graph.value_name(id).to_owned();
                return Err(Error::FixedDim { input, axis, size: before, wanted: size });
            }
            // The same size has the same name everywhere.
            Some(Dim::Symbol(symbol)) => {
                by_symbol.insert(symbol, size);
            }
            _ => by_axis.push((id, axis, size)),
        }
    }

    for &(id, axis, size) in &by_axis {
        if let Some(dims) = dims_mut(graph, id) {
            dims[axis] = Dim::Known(size);
        }
    }
    for id in graph.value_ids() {
        for dim in dims_mut(graph, id).into_iter().flatten() {
            let Dim::Symbol(symbol) = &*dim else { continue };
            match by_symbol.get(symbol) {
                Some(&size) => *dim = Dim::Known(size),
                None if !is_name(symbol) => *dim = Dim::Unknown,
                None => {}
            }
        }
    }
    Ok(())
}

fn dims_mut(graph: &mut Graph, id: ValueId) -> Option<&mut Vec<Dim>> {
    match &mut graph.value_mut(id).ty.as_mut()?.kind {
        TypeKind::Tensor { shape, .. } => Some(&mut shape.as_mut()?.dims),
        _ => None,
    }
}

/// Whether a size's text is a name rather than an expression over names.
fn is_name(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | ':' | '/' | '-'))
}

fn dim_names(graph: &Graph, inputs: &[ValueId]) -> String {
    let mut names: Vec<String> = Vec::new();
    for &id in inputs {
        for (axis, dim) in
            graph.value(id).ty.as_ref().and_then(Type::dims).unwrap_or_default().iter().enumerate()
        {
            let name = match dim {
                Dim::Known(_) => continue,
                Dim::Symbol(symbol) => format!("`{symbol}`"),
                Dim::Unknown => format!("`{}:{axis}`", graph.value_name(id)),
            };
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
