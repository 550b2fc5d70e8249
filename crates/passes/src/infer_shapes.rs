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
    Dim, Graph, Model, Node, Type, TypeKind, ValueId,
    model::{canonical_domain, opset_of},
};
use midtread_ops::{InferCtx, Info, SymDim};

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
/// Graphs in attributes are inferred with what is known around them. Nodes whose operator is not in the table, and calls
/// of functions, give what the file says of their outputs.
pub fn infer(model: &Model) -> Inference {
    Scope { model, n_fresh: &Cell::new(0), outer: None }.infer(&model.graph, None)
}

/// One graph among those that enclose it.
struct Scope<'a> {
    model: &'a Model,
    /// Counts the symbols made so far in the whole model.
    n_fresh: &'a Cell<usize>,
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
                Some(tensor) if !is_input[id.idx()] => {
                    Info { constant: Some(tensor.clone()), ..Info::of(tensor) }
                }
                _ => value.ty.as_ref().map(Info::declared).unwrap_or_default(),
            };
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
        let key = (canonical_domain(&node.domain), &node.op_type, &node.overload);
        let function = self
            .model
            .functions
            .iter()
            .find(|f| (canonical_domain(&f.domain), &f.name, &f.overload) == key);
        let (def, opset) = match (
            midtread_ops::find(&node.domain, &node.op_type),
            opset_of(&self.model.opset_imports, &node.domain),
        ) {
            _ if function.is_some() => return Ok(Vec::new()),
            (Some(def), Some(opset)) => (def, opset),
            _ => return Ok(Vec::new()),
        };
        def.check(node, opset).map_err(|err| err.to_string())?;
        let body = |body: &Graph, given: Vec<Info>| {
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
        Ok(ctx.into_outputs())
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
