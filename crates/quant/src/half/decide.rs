//! The walk over the graphs.
//!
//! For each graph by itself: what every node and constant is asked ([`Walk::first_reason`]); what a refused node means
//! for the next ones (a sum that an epsilon keeps from zero is divided by); and last, whether a few converted nodes
//! between float32 ones are worth the casts around them. Each step is linear in the graph.

use std::collections::{BTreeMap, HashMap, HashSet};

use midtread_graph::{
    DataType, Graph, Links, Model, Node, Type, TypeKind, ValueId, model::opset_of,
};
use midtread_ops::{InputRole, Role};
use rayon::prelude::*;

use super::{
    GraphPlan, HalfConstant, HalfDecision, HalfNode, HalfOptions, HalfPlan, HalfType, Storage,
    fit::{self, HEADROOM, Misfit},
    forms::{self, Port},
};
use crate::{
    calibrate::Stats,
    error::Error,
    plan::{Target, decide::Selection, fingerprint, target::HalfKernels},
};

/// Constants from this many elements on are stored in 16 bits even where they are used in float32.
const MIN_STORED: usize = 64;

/// Operators whose numbers count things: integers from 2049 (float16) or 257 (bfloat16) on would be lost.
const COUNTING: &[&str] = &["CumSum", "Range"];

/// Operators that move a mask from its constant to the Softmax it is for. What they compute besides it is small.
const MASKING: &[&str] = &[
    "Add",
    "Cast",
    "Concat",
    "Expand",
    "Mul",
    "Reshape",
    "Slice",
    "Squeeze",
    "Sub",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// Products of tensors: what computing in 16 bits is for.
const PRODUCTS: &[&str] =
    &["Attention", "Einsum", "GRU", "LSTM", "MatMulNBits", "MultiHeadAttention", "RNN"];

/// Decides which nodes of a prepared model compute in 16 bits, and how its constants are stored. Reads nothing but its
/// arguments. `stats`, where there are any, tell which activations fit.
pub fn plan(
    model: &Model,
    stats: Option<&Stats>,
    target: &Target,
    options: &HalfOptions,
) -> Result<HalfPlan, Error> {
    let fingerprint = fingerprint(model);
    if stats.is_some_and(|stats| !stats.model().is_empty() && stats.model() != fingerprint) {
        return Err(Error::StatsOfAnotherModel);
    }
    let half = options.half;
    let kernels = target.halves.get(&half).ok_or_else(|| {
        Error::Options(format!("target `{}` does not run {half} models", target.name))
    })?;
    let mut labels = (HashSet::new(), HashSet::new());
    all_labels(&model.graph, &mut labels);
    let selection = Selection::new(&labels.0, &labels.1, &options.include, options.exclude.iter())?;
    let scope =
        Scope { imports: &model.opset_imports, target, kernels, options, selection: &selection };
    let mut graphs = Vec::new();
    scope.plan(&model.graph, "", stats, &mut graphs);
    Ok(HalfPlan {
        model: fingerprint,
        half,
        target: target.name.clone(),
        keep_io_types: options.keep_io_types,
        graphs,
    })
}

fn all_labels<'a>(graph: &'a Graph, labels: &mut (HashSet<&'a str>, HashSet<&'a str>)) {
    for node in &graph.nodes {
        labels.0.insert(graph.label(node));
        labels.1.insert(node.op_type.as_str());
        node.subgraphs().for_each(|body| all_labels(body, labels));
    }
}

/// What is the same for all graphs of a model.
struct Scope<'a> {
    imports: &'a [(String, i64)],
    target: &'a Target,
    kernels: &'a HalfKernels,
    options: &'a HalfOptions,
    selection: &'a Selection<'a>,
}

impl Scope<'_> {
    /// Plans a graph, then those in its nodes.
    fn plan(&self, graph: &Graph, path: &str, stats: Option<&Stats>, plans: &mut Vec<GraphPlan>) {
        let plan = Walk::new(self, graph, stats, path.is_empty()).run(path);
        plans.push(plan);
        for node in &graph.nodes {
            for (attr, body) in node.bodies() {
                let path = format!("{path}{}/{attr}/", graph.label(node));
                // What is measured are the main graph's values.
                self.plan(body, &path, None, plans);
            }
        }
    }
}

/// The node labels of each graph with this path prefix come in this order also in [`super::apply`].
struct Walk<'a> {
    scope: &'a Scope<'a>,
    graph: &'a Graph,
    stats: Option<&'a Stats>,
    is_main: bool,
    links: Links,
    owned: Vec<bool>,
    is_input: Vec<bool>,
    misfits: HashMap<ValueId, Misfit>,
    /// Values on the way from a mask's constant to its Softmax, the constant included.
    masks: HashSet<ValueId>,
    decisions: Vec<HalfDecision>,
}

impl<'a> Walk<'a> {
    fn new(
        scope: &'a Scope<'a>,
        graph: &'a Graph,
        stats: Option<&'a Stats>,
        is_main: bool,
    ) -> Self {
        let mut is_input = vec![false; graph.values().len()];
        graph.inputs.iter().for_each(|id| is_input[id.idx()] = true);
        Self {
            scope,
            graph,
            stats,
            is_main,
            links: Links::new(graph),
            owned: graph.owned(),
            is_input,
            misfits: HashMap::new(),
            masks: HashSet::new(),
            decisions: Vec::new(),
        }
    }

    fn half(&self) -> HalfType {
        self.scope.options.half
    }

    fn name(&self, id: ValueId) -> &'a str {
        self.graph.value_name(id)
    }

    fn elem(&self, id: ValueId) -> Option<DataType> {
        self.graph.type_of(id).as_ref().and_then(Type::elem)
    }

    fn is_float(&self, id: ValueId) -> bool {
        self.elem(id) == Some(DataType::Float)
    }

    fn is_constant(&self, id: ValueId) -> bool {
        self.graph.value(id).constant.is_some() && !self.is_input[id.idx()]
    }

    fn form(&self, node: &Node) -> Option<forms::Form> {
        let opset = opset_of(self.scope.imports, &node.domain)?;
        forms::find(node, opset, self.half())
    }

    fn run(mut self, path: &str) -> GraphPlan {
        let constants: Vec<ValueId> = self
            .graph
            .value_ids()
            .filter(|&id| self.is_constant(id) && self.is_float(id))
            .collect();
        let half = self.half();
        let check = |id: &ValueId| {
            fit::check(self.graph.value(*id).constant.as_ref().expect("it is constant"), half)
        };
        let fits: Vec<_> = constants.par_iter().map(check).collect();
        for (&id, fit) in constants.iter().zip(fits) {
            match fit {
                Ok(()) => {}
                Err(Misfit::Overflows(_)) if self.is_mask(id) => {}
                Err(misfit) => {
                    self.misfits.insert(id, misfit);
                }
            }
        }
        let graph = self.graph;
        self.decisions = graph.nodes.iter().map(|node| self.first_decision(node)).collect();
        self.spread();
        self.dissolve_islands();
        let constants = constants
            .into_iter()
            .map(|id| HalfConstant {
                constant: self.name(id).to_owned(),
                storage: self.storage(id),
            })
            .collect();
        let nodes = graph.nodes.iter().zip(self.decisions).map(|(node, decision)| HalfNode {
            node: graph.label(node).to_owned(),
            op_type: node.op_type.clone(),
            decision,
        });
        GraphPlan { path: path.to_owned(), nodes: nodes.collect(), constants }
    }

    fn first_decision(&self, node: &Node) -> HalfDecision {
        let floats = |ids: &[Option<ValueId>]| ids.iter().flatten().any(|&id| self.is_float(id));
        let (has_input, has_output) = (floats(&node.inputs), floats(&node.outputs));
        if node.is("Cast") || node.is("Shape") || (!has_input && !has_output) {
            return HalfDecision::Either;
        }
        if node.is("CastLike") {
            return HalfDecision::Float("its result has the type of its second input".into());
        }
        match self.first_reason(node) {
            Some(reason) => HalfDecision::Float(reason),
            None => HalfDecision::Half,
        }
    }

    /// Why a node stays in float32, whatever its neighbors do.
    fn first_reason(&self, node: &Node) -> Option<String> {
        let (scope, half) = (self.scope, self.half());
        if node.subgraphs().next().is_some() {
            return Some("it takes and gives float32; its bodies are planned by themselves".into());
        }
        if let Some(reason) = scope.selection.refuses(self.graph.label(node), &node.op_type) {
            return Some(reason);
        }
        for &id in node.inputs.iter().chain(&node.outputs).flatten() {
            match self.graph.value(id).ty.as_ref().map(|ty| &ty.kind) {
                Some(TypeKind::Tensor { .. } | TypeKind::Unset) | None => {}
                Some(_) => return Some(format!("`{}` is not a tensor", self.name(id))),
            }
            if self.elem(id).is_none() {
                return Some("the type of one of its values is not known".to_owned());
            }
        }
        let Some(form) = self.form(node).filter(forms::Form::has_half) else {
            return Some(match forms::first_version(node, half) {
                Some(since) => format!("its operator has {half} from operator set {since} on"),
                None => format!("its operator has no {half} form"),
            });
        };
        if !scope.kernels.has(&node.domain, &node.op_type) {
            return Some(format!("{} has no {half} kernel for it", scope.target.name));
        }
        if COUNTING.contains(&node.op_type.as_str()) {
            return Some(format!("it counts, and {half} does not have every integer"));
        }
        if let Some(epsilon) = node.float("epsilon")
            && epsilon != 0.0
            && let Err(misfit) = fit::check(&midtread_graph::Tensor::scalar(epsilon), half)
        {
            return Some(misfit.reason("epsilon", half));
        }
        for (i, id) in node.inputs.iter().enumerate() {
            let Some(id) = *id else { continue };
            if form.input(i) == Port::Half
                && let Some(misfit) = self.misfits.get(&id)
            {
                return Some(misfit.reason(self.name(id), half));
            }
        }
        let ports = (node.inputs.iter().enumerate().map(|(i, id)| (*id, form.input(i))))
            .chain(node.outputs.iter().enumerate().map(|(i, id)| (*id, form.output(i))));
        ports
            .filter_map(|(id, port)| id.filter(|_| port == Port::Half))
            .find_map(|id| self.range_reason(id))
    }

    /// Why what was measured of a value does not fit.
    fn range_reason(&self, id: ValueId) -> Option<String> {
        let half = self.half();
        if half == HalfType::Bfloat16 || self.is_constant(id) || self.masks.contains(&id) {
            return None;
        }
        let (min, max) = self.stats?.tensors().get(self.name(id))?.min_max()?;
        let most = min.abs().max(max.abs());
        let numbers = half.numbers();
        if HEADROOM * numbers.max() < most {
            return Some(format!(
                "`{}` reaches {most:.4e} on the data; {half} ends at {} (half of it is kept for other data)",
                self.name(id),
                numbers.max()
            ));
        }
        if 0.0 < most && most < numbers.min_normal() {
            return Some(format!(
                "`{}` is at most {most:.1e} on the data: all subnormal in {half}",
                self.name(id)
            ));
        }
        None
    }

    /// Whether an overflowing constant only masks scores: every way from it leads through a few operators to a
    /// Softmax. Remembers those values.
    fn is_mask(&mut self, constant: ValueId) -> bool {
        let mut seen = HashSet::from([constant]);
        let mut open = vec![constant];
        while let Some(id) = open.pop() {
            if self.links.is_output(id) || self.links.is_captured(id) {
                return false;
            }
            for &i in self.links.consumers(id) {
                let node = &self.graph.nodes[i];
                if node.is("Softmax") {
                    continue;
                }
                // The constant itself may meet a constant of 0s and 1s, and what comes of it scores.
                if !MASKING.iter().any(|op_type| node.is(op_type)) {
                    return false;
                }
                open.extend(node.outputs.iter().flatten().filter(|id| seen.insert(**id)));
            }
        }
        // At least one Softmax: the constant has users, and all ways end.
        let is_used = !self.links.consumers(constant).is_empty();
        if is_used {
            self.masks.extend(seen);
        }
        is_used
    }

    /// What comes of a constant that does not fit must not be squeezed into 16 bits right after.
    fn spread(&mut self) {
        // Values that an epsilon keeps from zero, and values that a large constant may have made large.
        let mut guarded: HashMap<ValueId, ValueId> = HashMap::new();
        let mut large: HashMap<ValueId, ValueId> = HashMap::new();
        for (node, decision) in self.graph.nodes.iter().zip(&mut self.decisions) {
            let from = |map: &HashMap<ValueId, ValueId>| {
                node.inputs
                    .iter()
                    .enumerate()
                    .find_map(|(i, id)| Some((i, *map.get(id.as_ref()?)?)))
            };
            let misfit = |want: fn(&Misfit) -> bool| {
                let mut ids = node.inputs.iter().flatten();
                ids.find(|id| self.misfits.get(id).is_some_and(want)).copied()
            };
            let name = |id: ValueId| self.graph.value_name(id);
            if node.is("Add") || node.is("Max") || node.is("Clip") {
                if let Some(constant) = misfit(|m| matches!(m, Misfit::Vanishes(_))) {
                    guarded.extend(node.outputs.iter().flatten().map(|&id| (id, constant)));
                }
            } else if let Some((i, constant)) = from(&guarded) {
                let divides = node.is("Div") && i == 1
                    || node.is("Reciprocal")
                    || node.is("Log")
                    || node.is("Pow");
                if node.is("Sqrt") {
                    guarded.extend(node.outputs.iter().flatten().map(|&id| (id, constant)));
                }
                if (divides || node.is("Sqrt")) && *decision == HalfDecision::Half {
                    *decision = HalfDecision::Float(format!(
                        "it takes what `{}` keeps from being zero",
                        name(constant)
                    ));
                }
            }
            let measured =
                |id: &ValueId| self.stats.is_some_and(|s| s.contains(self.graph.value_name(*id)));
            if let Some(constant) = misfit(|m| matches!(m, Misfit::Overflows(_))) {
                let outputs = node.outputs.iter().flatten().filter(|id| !measured(id));
                large.extend(outputs.map(|&id| (id, constant)));
            }
            if let Some((_, constant)) = from(&large)
                && *decision == HalfDecision::Half
            {
                *decision = HalfDecision::Float(format!(
                    "it takes what `{}` may have made too large",
                    name(constant)
                ));
            }
        }
    }

    /// Sends groups of converted nodes back to float32 that hold no product of tensors and have casts around them.
    fn dissolve_islands(&mut self) {
        let n = self.graph.nodes.len();
        let mut groups = Union::new(n);
        let is_half: Vec<bool> = self.decisions.iter().map(|d| *d == HalfDecision::Half).collect();
        for (i, node) in self.graph.nodes.iter().enumerate().filter(|(i, _)| is_half[*i]) {
            let Some(form) = self.form(node) else { continue };
            for (k, id) in node.inputs.iter().enumerate() {
                let producer = id
                    .filter(|_| form.input(k) == Port::Half)
                    .and_then(|id| self.links.producer(id));
                if let Some(p) = producer.filter(|&p| is_half[p] && self.makes_half(p, *id)) {
                    groups.join(i, p);
                }
            }
        }
        // By group: whether there is a product in it, and the values that would be cast on their way in or out.
        let mut has_product = vec![false; n];
        let mut casts: BTreeMap<usize, HashSet<ValueId>> = BTreeMap::new();
        for (i, node) in self.graph.nodes.iter().enumerate().filter(|(i, _)| is_half[*i]) {
            let group = groups.find(i);
            has_product[group] |= is_product(node);
            let Some(form) = self.form(node) else { continue };
            let ins = node.inputs.iter().enumerate().filter_map(|(k, id)| {
                let id = id.filter(|&id| form.input(k) == Port::Half && self.is_float(id))?;
                self.comes_in_float(id, &is_half).then_some(id)
            });
            let outs = node.outputs.iter().flatten().copied();
            let outs = outs.filter(|&id| self.is_float(id) && self.goes_to_float(id, &is_half));
            casts.entry(group).or_default().extend(ins.chain(outs));
        }
        for i in (0..n).filter(|&i| is_half[i]) {
            let group = groups.find(i);
            let n_casts = casts.get(&group).map_or(0, HashSet::len);
            if !has_product[group] && 0 < n_casts {
                self.decisions[i] = HalfDecision::Float(
                    "in float32 like its neighbors: casts would cost more".to_owned(),
                );
            }
        }
    }

    fn makes_half(&self, p: usize, id: Option<ValueId>) -> bool {
        let node = &self.graph.nodes[p];
        let position = node.outputs.iter().position(|out| *out == id);
        position.is_some_and(|k| self.form(node).is_some_and(|form| form.output(k) == Port::Half))
    }

    /// Whether an input of a converted node would need a cast.
    fn comes_in_float(&self, id: ValueId, is_half: &[bool]) -> bool {
        if self.is_constant(id) {
            return false;
        }
        match self.links.producer(id) {
            // A Cast gives whatever type is wanted.
            Some(p) => !is_half[p] && !self.graph.nodes[p].is("Cast"),
            None => !self.is_main || self.scope.options.keep_io_types || !self.owned[id.idx()],
        }
    }

    /// Whether an output of a converted node would need a cast.
    fn goes_to_float(&self, id: ValueId, is_half: &[bool]) -> bool {
        let keeps_type = !self.is_main || self.scope.options.keep_io_types;
        self.links.is_captured(id)
            || (self.links.is_output(id) && keeps_type)
            || self
                .links
                .consumers(id)
                .iter()
                .any(|&i| !is_half[i] && matches!(self.decisions[i], HalfDecision::Float(_)))
    }

    /// How a constant is stored, given who uses it.
    fn storage(&self, id: ValueId) -> Storage {
        if let Some(misfit) = self.misfits.get(&id) {
            return Storage::Float(misfit.reason(self.name(id), self.half()));
        }
        if self.links.is_output(id) {
            return Storage::Float("the model gives it to its caller".to_owned());
        }
        let is_used_in_half = |&i: &usize| {
            let node = &self.graph.nodes[i];
            let form = self.form(node);
            self.decisions[i] == HalfDecision::Half
                && node.inputs.iter().enumerate().all(|(k, input)| {
                    *input != Some(id) || form.is_some_and(|form| form.input(k) == Port::Half)
                })
        };
        let users = self.links.consumers(id);
        let is_large = MIN_STORED <= self.graph.value(id).constant.as_ref().map_or(0, |t| t.len());
        let by_half_alone = !self.links.is_captured(id) && users.iter().all(is_used_in_half);
        if !is_large && !by_half_alone {
            return Storage::Float("nodes in float32 use it, and it is small".to_owned());
        }
        if self.masks.contains(&id) { Storage::Mask } else { Storage::Half }
    }
}

fn is_product(node: &Node) -> bool {
    let has_weight =
        midtread_ops::find(&node.domain, &node.op_type).is_some_and(|def| match &def.role {
            Role::Quantized { inputs, .. } => {
                inputs.iter().any(|role| matches!(role, InputRole::Weight { .. }))
            }
            _ => false,
        });
    has_weight || PRODUCTS.contains(&node.op_type.as_str())
}

/// Sets that are joined.
struct Union(Vec<usize>);

impl Union {
    fn new(n: usize) -> Self {
        Self((0..n).collect())
    }

    fn find(&mut self, mut i: usize) -> usize {
        while self.0[i] != i {
            self.0[i] = self.0[self.0[i]];
            i = self.0[i];
        }
        i
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        self.0[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests;
