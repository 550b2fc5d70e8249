//! Writing a [`HalfPlan`] into a model.
//!
//! Every float32 value keeps its name and type as long as something takes it as float32; what is made or taken in 16
//! bits is another value beside it (`NAME_float16`), and one Cast leads from the one to the other, however many users
//! there are.

use std::collections::{HashMap, HashSet};

use midtread_graph::{
    AttrValue, DataType, Graph, Links, Model, Node, Rewrite, Tensor, Type, ValueId, model::opset_of,
};
use rayon::prelude::*;

use super::{
    GraphPlan, HalfDecision, HalfPlan, HalfType, Storage,
    fit::convert,
    forms::{self, Port},
};
use crate::{error::Error, plan::fingerprint};

/// The model in 16 bits, as the plan says. Fails for a plan made for another model.
pub fn apply(model: &Model, plan: &HalfPlan) -> Result<Model, Error> {
    let got = fingerprint(model);
    if plan.model != got {
        return Err(Error::OtherModel { plan: plan.model.clone(), model: got });
    }
    let mut model = model.clone();
    let imports = model.opset_imports.clone();
    let mut plans = plan.graphs.iter();
    let mut names = HashSet::new();
    all_names(&model.graph, &mut names);
    let mut writer =
        Writer { imports: &imports, half: plan.half, keep_io_types: plan.keep_io_types, names };
    writer.write(&mut model.graph, &mut plans, &HashMap::new())?;
    model.graph.drop_unused();
    Ok(model)
}

fn all_names(graph: &Graph, names: &mut HashSet<String>) {
    names.extend(graph.values().iter().map(|v| v.name().to_owned()));
    graph.nodes.iter().flat_map(Node::subgraphs).for_each(|body| all_names(body, names));
}

/// The names that values of the graphs around go by in 16 bits, by their names.
type Twins = HashMap<String, String>;

struct Writer<'a> {
    imports: &'a [(String, i64)],
    half: HalfType,
    keep_io_types: bool,
    /// Of all values in all graphs: a name in a body must be none of the graphs around it.
    names: HashSet<String>,
}

impl Writer<'_> {
    /// One graph, then those in its nodes, in the order in which they were planned.
    fn write(
        &mut self,
        graph: &mut Graph,
        plans: &mut std::slice::Iter<'_, GraphPlan>,
        outer: &Twins,
    ) -> Result<(), Error> {
        let mismatch =
            |what: &str| Error::Options(format!("the plan does not fit the model: {what}"));
        let plan = plans.next().ok_or_else(|| mismatch("a graph is missing"))?;
        if plan.nodes.len() != graph.nodes.len()
            || plan.nodes.iter().zip(&graph.nodes).any(|(p, node)| p.op_type != node.op_type)
        {
            return Err(mismatch(&format!("graph `{}` has other nodes", plan.path)));
        }
        let mut stored = Vec::new();
        for constant in &plan.constants {
            let id = graph.find(&constant.constant);
            let id = id.filter(|&id| {
                graph.value(id).constant.as_ref().is_some_and(|t| t.dtype() == DataType::Float)
            });
            let id = id.ok_or_else(|| {
                mismatch(&format!("`{}` is not a float32 constant", constant.constant))
            })?;
            if !matches!(constant.storage, Storage::Float(_)) {
                stored.push((id, &constant.storage));
            }
        }
        let tensors: Vec<(ValueId, Tensor)> = stored
            .into_par_iter()
            .map(|(id, storage)| {
                let tensor = graph.value(id).constant.as_ref().expect("it was looked at");
                (id, convert(tensor, self.half, storage))
            })
            .collect();
        let (twins, casts) = self.rewire(graph, plan, tensors, outer);
        for body in graph.nodes.iter_mut().flat_map(Node::subgraphs_mut) {
            self.write(body, plans, &twins)?;
        }
        remove_idle(graph, &casts);
        Ok(())
    }

    /// `wanted`, or `wanted` with a number if any graph has that name.
    fn fresh(&mut self, wanted: String) -> String {
        let mut name = wanted.clone();
        for i in 1.. {
            if self.names.insert(name.clone()) {
                break;
            }
            name = format!("{wanted}_{i}");
        }
        name
    }

    /// Rewires one graph. Returns what its bodies may take in 16 bits, and the outputs of the casts that were added.
    fn rewire(
        &mut self,
        graph: &mut Graph,
        plan: &GraphPlan,
        stored: Vec<(ValueId, Tensor)>,
        outer: &Twins,
    ) -> (Twins, Vec<ValueId>) {
        let is_main = plan.path.is_empty();
        let n = graph.values().len();
        let owned = graph.owned();
        let links = Links::new(graph);
        let is_float: Vec<bool> = graph
            .value_ids()
            .map(|id| graph.type_of(id).as_ref().and_then(Type::elem) == Some(DataType::Float))
            .collect();
        let (imports, half) = (self.imports, self.half);
        let form = |node: &Node| {
            opset_of(imports, &node.domain).and_then(|opset| forms::find(node, opset, half))
        };
        let mut casts = Vec::new();

        // Who wants what. A Cast takes what there is.
        let mut in_half = vec![false; n];
        let mut in_float: Vec<bool> = graph.value_ids().map(|id| links.is_captured(id)).collect();
        let mut made_half = vec![false; n];
        for (node, p) in graph.nodes.iter().zip(&plan.nodes) {
            let form = form(node).filter(|_| p.decision == HalfDecision::Half);
            for (k, id) in node.inputs.iter().enumerate() {
                let Some(id) = id.filter(|id| is_float[id.idx()]) else { continue };
                match form.map(|form| form.input(k)) {
                    Some(Port::Half) => in_half[id.idx()] = true,
                    _ if p.decision == HalfDecision::Either => {}
                    _ => in_float[id.idx()] = true,
                }
            }
            for (k, id) in node.outputs.iter().enumerate() {
                let Some(id) = id.filter(|id| is_float[id.idx()]) else { continue };
                made_half[id.idx()] = form.is_some_and(|form| form.output(k) == Port::Half);
            }
        }
        let converts_io = is_main && !self.keep_io_types;
        let becomes_half_output =
            |id: ValueId, made: bool| converts_io && made && !links.is_captured(id);
        for &id in &graph.outputs {
            if !becomes_half_output(id, made_half[id.idx()]) {
                in_float[id.idx()] = true;
            }
        }
        let mut half_inputs = Vec::new();
        for &id in &graph.inputs {
            let is_required = graph.value(id).constant.is_none();
            if converts_io
                && is_required
                && in_half[id.idx()]
                && !links.is_captured(id)
                && !links.is_output(id)
            {
                made_half[id.idx()] = true;
                half_inputs.push(id);
            }
        }
        // A Cast to float32 whose result is only wanted in 16 bits makes that.
        for node in graph.nodes.iter_mut().filter(|node| node.is("Cast")) {
            let Some(out) = node.output(0).filter(|id| is_float[id.idx()]) else { continue };
            if in_half[out.idx()] && !in_float[out.idx()] {
                made_half[out.idx()] = true;
                node.set_attr("to", AttrValue::Int(self.half.data_type().to_onnx().into()));
            }
        }

        let mut rewrite = Rewrite::default();
        let mut twin: Vec<Option<ValueId>> = vec![None; n];
        for (id, tensor) in stored {
            let name = self.fresh(format!("{}_{}", graph.value_name(id), self.half));
            let made = graph.add_constant(&name, tensor);
            twin[id.idx()] = Some(made);
            let ty = graph.type_of(id);
            let value = graph.value_mut(id);
            value.constant = None;
            if in_float[id.idx()] {
                value.ty = ty;
                rewrite.insert_before(0, cast(graph, made, id, DataType::Float));
                casts.push(id);
            }
        }
        graph.initializers.retain(|id| twin.get(id.idx()).is_none_or(Option::is_none));
        // Values that are there in 16 bits alone.
        let only_half: Vec<bool> =
            (0..n).map(|i| (made_half[i] || twin[i].is_some()) && !in_float[i]).collect();
        for id in graph.value_ids().take(n) {
            let i = id.idx();
            if !is_float[i] || twin[i].is_some() {
                continue;
            }
            let becomes_output = links.is_output(id) && becomes_half_output(id, made_half[i]);
            if !made_half[i] && !in_half[i] {
                continue;
            }
            let around = outer.get(graph.value_name(id)).filter(|_| !owned[i]);
            if let Some(name) = around {
                // The graph around this one has it in 16 bits already.
                let ty = graph.type_of(id).map(|ty| with_elem(&ty, self.half.data_type()));
                let made = graph.intern(name);
                graph.value_mut(made).ty = ty;
                twin[i] = Some(made);
                continue;
            }
            let name = self.fresh(format!("{}_{}", graph.value_name(id), self.half));
            if !made_half[i]
                && let Some(tensor) = graph.value(id).constant.clone()
                && !graph.inputs.contains(&id)
            {
                // A small constant that is wanted in both types.
                twin[i] =
                    Some(graph.add_constant(&name, convert(&tensor, self.half, &Storage::Half)));
                continue;
            }
            let made = graph.intern(&name);
            graph.value_mut(made).ty =
                graph.type_of(id).map(|ty| with_elem(&ty, self.half.data_type()));
            twin[i] = Some(made);
            let is_input = half_inputs.contains(&id);
            let (from, to, elem) = match made_half[i] {
                true => (made, id, DataType::Float),
                false => (id, made, self.half.data_type()),
            };
            if !made_half[i] || in_float[i] {
                let cast = cast(graph, from, to, elem);
                casts.push(to);
                match links.producer(id) {
                    Some(p) => rewrite.insert_after(p, cast),
                    None => rewrite.insert_before(0, cast),
                }
            }
            if is_input || becomes_output {
                // The caller's name goes with the value that the caller gives or gets.
                swap_names(graph, id, made);
                for own in graph.inputs.iter_mut().chain(&mut graph.outputs) {
                    if *own == id {
                        *own = made;
                    }
                }
            }
        }
        for (i, p) in plan.nodes.iter().enumerate() {
            self.rewire_node(graph, i, &p.decision, &twin, &made_half, &only_half);
        }
        rewrite.apply(graph);
        let mut twins = outer.clone();
        twins
            .retain(|name, _| graph.find(name).is_none_or(|id| owned.get(id.idx()) != Some(&true)));
        for (i, id) in graph.value_ids().take(n).enumerate() {
            if let Some(made) = twin[i].filter(|_| links.is_captured(id)) {
                twins.insert(graph.value_name(id).to_owned(), graph.value_name(made).to_owned());
            }
        }
        (twins, casts)
    }

    /// Gives node `i` the 16-bit values that it takes and makes, and sets the attributes that name a type.
    fn rewire_node(
        &self,
        graph: &mut Graph,
        i: usize,
        decision: &HalfDecision,
        twin: &[Option<ValueId>],
        made_half: &[bool],
        only_half: &[bool],
    ) {
        let other = |id: ValueId| twin.get(id.idx()).copied().flatten();
        let node = &mut graph.nodes[i];
        let opset = opset_of(self.imports, &node.domain);
        let form = opset.and_then(|opset| forms::find(node, opset, self.half));
        let form = form.filter(|_| *decision == HalfDecision::Half);
        for (k, input) in node.inputs.iter_mut().enumerate() {
            let Some((id, half)) = input.and_then(|id| Some((id, other(id)?))) else { continue };
            let takes_half = match form {
                Some(form) => form.input(k) == Port::Half,
                None => *decision == HalfDecision::Either && only_half[id.idx()],
            };
            if takes_half {
                *input = Some(half);
            }
        }
        for output in &mut node.outputs {
            let Some((id, half)) = output.and_then(|id| Some((id, other(id)?))) else { continue };
            if made_half[id.idx()] {
                *output = Some(half);
            }
        }
        if form.is_none() {
            return;
        }
        let number = AttrValue::Int(self.half.data_type().to_onnx().into());
        match node.op_type.as_str() {
            "ConstantOfShape" => {
                let value = match node.attr("value") {
                    Some(AttrValue::Tensor(tensor)) => convert(tensor, self.half, &Storage::Half),
                    _ => convert(&Tensor::vector(&[0.0_f32]), self.half, &Storage::Half),
                };
                node.set_attr("value", AttrValue::Tensor(value));
            }
            "RandomNormal" | "RandomUniform" => node.set_attr("dtype", number),
            "Bernoulli" | "EyeLike" | "RandomNormalLike" | "RandomUniformLike"
                if node.attr("dtype").is_some() =>
            {
                node.set_attr("dtype", number);
            }
            _ => {}
        }
    }
}

fn cast(graph: &Graph, from: ValueId, to: ValueId, elem: DataType) -> Node {
    let name = format!("{}_to_{}", graph.value_name(from), elem.name());
    Node::new("Cast", &name, [from], [to]).with_attr("to", AttrValue::Int(elem.to_onnx().into()))
}

/// Removes those of the casts whose results nobody takes, now that the bodies have chosen.
fn remove_idle(graph: &mut Graph, casts: &[ValueId]) {
    let links = Links::new(graph);
    let mut rewrite = Rewrite::default();
    for &id in casts {
        let is_idle =
            links.consumers(id).is_empty() && !links.is_output(id) && !links.is_captured(id);
        if let Some(i) = links.producer(id).filter(|_| is_idle) {
            rewrite.remove(i);
        }
    }
    rewrite.apply(graph);
}

/// A tensor type of other elements.
fn with_elem(ty: &Type, elem: DataType) -> Type {
    Type { denotation: ty.denotation.clone(), ..Type::tensor(elem, ty.dims().map(<[_]>::to_vec)) }
}

/// Gives each the name of the other.
fn swap_names(graph: &mut Graph, a: ValueId, b: ValueId) {
    let (name_a, name_b) = (graph.value_name(a).to_owned(), graph.value_name(b).to_owned());
    let mut between = format!("{name_a}_");
    while !graph.rename(a, &between) {
        between.push('_');
    }
    graph.rename(b, &name_a);
    graph.rename(a, &name_b);
}
