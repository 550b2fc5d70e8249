//! Which value of the float model a logical tensor of the quantized model stands for.
//!
//! By name first: quantizers keep the names of values, or put a suffix behind them. What is left is matched by its
//! place in the graph: a node of the same operator whose operands are already matched makes the value that belongs
//! to the float node's. Clamps that were absorbed into a range (a Relu or Clip that the quantized model lacks, because
//! the integers end where it clamps) are seen: the quantized tensor then stands for what comes *out* of the clamp,
//! whatever its name says.

use std::collections::HashMap;

use midtread_graph::{Graph, Links, Node, ValueId};
use midtread_ops::{Role, find};
use serde::Serialize;

use crate::view::{View, base_names, float_form, variables};

/// How a pair was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Equal names, but for suffixes that tools write.
    Name,
    /// The same place in both graphs.
    Position,
}

/// Which form of a logical tensor is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// What the rest of the quantized model reads.
    After,
    /// What goes into its QuantizeLinear: only where that and what the rest reads stand for different values of the
    /// float model.
    Before,
}

/// A value of the float model and the logical tensor that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// In the float model.
    pub float: ValueId,
    /// Index in [`View::logicals`].
    pub logical: usize,
    /// In which form.
    pub point: Point,
    /// How it was found.
    pub by: By,
}

/// Every pair of two models.
#[derive(Clone, Debug, Default)]
pub struct Matching {
    /// In the order of the float graph.
    pub pairs: Vec<Pair>,
    /// Node of the float graph, and the node of the quantized graph that does the same.
    pub nodes: Vec<(usize, usize)>,
    /// Values of the float model (made by nodes, of which the outputs depend) that the quantized model lacks.
    pub missing: Vec<ValueId>,
}

impl Matching {
    /// Matches a float graph with a quantized one.
    pub fn new(float: &Graph, quantized: &View<'_>) -> Self {
        let links = Links::new(float);
        let mut walk = Walk {
            float,
            links,
            quantized,
            logical_of: vec![None; float.values().len()],
            taken: vec![false; quantized.logicals.len()],
            users: users(quantized),
        };
        walk.by_name();
        walk.boundaries();
        let order = midtread_exec::topological_order(float)
            .unwrap_or_else(|_| (0..float.nodes.len()).collect());
        for &i in &order {
            walk.by_position(i);
        }
        walk.finish(&order)
    }
}

struct Walk<'a> {
    float: &'a Graph,
    links: Links,
    quantized: &'a View<'a>,
    /// By float value.
    logical_of: Vec<Option<(usize, By)>>,
    /// By logical tensor: whether a float value has it.
    taken: Vec<bool>,
    /// By logical tensor: the nodes that compute with it.
    users: Vec<Vec<usize>>,
}

/// The nodes that compute with each logical tensor; those that only change its form are not among them.
fn users(view: &View<'_>) -> Vec<Vec<usize>> {
    let mut users = vec![Vec::new(); view.logicals.len()];
    for (i, node) in view.graph.nodes.iter().enumerate() {
        if matches!(
            node.op_type.as_str(),
            "QuantizeLinear" | "DequantizeLinear" | "DynamicQuantizeLinear"
        ) {
            continue;
        }
        for id in node.inputs.iter().flatten() {
            if let Some(at) = view.logical(*id)
                && users[at].last() != Some(&i)
            {
                users[at].push(i);
            }
        }
    }
    users
}

impl Walk<'_> {
    fn by_name(&mut self) {
        let variables = variables(self.float);
        for (at, logical) in self.quantized.logicals.iter().enumerate() {
            let names = || logical.values.iter().map(|&id| self.quantized.graph.value_name(id));
            // Exact names go first: `x_quantized` may be a value of the float model too.
            let exact = names().find_map(|name| variables.get(name));
            let found = exact.or_else(|| {
                names().find_map(|name| base_names(name).into_iter().find_map(|n| variables.get(n)))
            });
            if let Some(&id) = found
                && self.logical_of[id.idx()].is_none()
            {
                self.set(id, at, By::Name);
            }
        }
    }

    /// Inputs and outputs correspond by position where their names do not.
    fn boundaries(&mut self) {
        let view = self.quantized;
        let inputs = |graph: &Graph| -> Vec<ValueId> { graph.required_inputs().collect() };
        let both = [
            (inputs(self.float), inputs(view.graph)),
            (self.float.outputs.clone(), view.graph.outputs.clone()),
        ];
        for (float, quantized) in both {
            if float.len() != quantized.len() {
                continue;
            }
            for (a, b) in float.into_iter().zip(quantized) {
                if let Some(at) = view.logical(b)
                    && self.logical_of[a.idx()].is_none()
                    && !self.taken[at]
                {
                    self.set(a, at, By::Position);
                }
            }
        }
    }

    fn set(&mut self, id: ValueId, at: usize, by: By) {
        self.logical_of[id.idx()] = Some((at, by));
        self.taken[at] = true;
    }

    fn by_position(&mut self, i: usize) {
        let node = &self.float.nodes[i];
        let unmatched = |walk: &Self, k: usize| {
            node.output(k).is_some_and(|id| walk.logical_of[id.idx()].is_none())
        };
        if !(0..node.outputs.len()).any(|k| unmatched(self, k)) {
            return;
        }
        // Operands that vary must all be matched.
        let mut operands = Vec::new();
        for (k, id) in node.inputs.iter().enumerate() {
            let Some(id) = *id else { continue };
            if self.float.constant(id).is_some() {
                continue;
            }
            let Some((at, _)) = self.logical_of[id.idx()] else { return };
            operands.push((k, at));
        }
        let Some(&(_, first)) = operands.first() else { return };
        let does_the_same = |walk: &Self, j: usize| {
            let other = &walk.quantized.graph.nodes[j];
            let form = float_form(other);
            form.op_type == node.op_type
                && operands.iter().all(|&(k, at)| {
                    let id = form.operands.get(k).and_then(|[value, ..]| other.input((*value)?));
                    id.and_then(|id| walk.quantized.logical(id)) == Some(at)
                })
                && other
                    .output(0)
                    .and_then(|id| walk.quantized.logical(id))
                    .is_some_and(|at| !walk.taken[at])
        };
        let found = self.users[first].iter().copied().find(|&j| does_the_same(self, j));
        if let Some(j) = found {
            let other = &self.quantized.graph.nodes[j];
            for k in 0..node.outputs.len() {
                let Some(id) = node.output(k).filter(|_| unmatched(self, k)) else { continue };
                let at = other.output(k).and_then(|id| self.quantized.logical(id));
                if let Some(at) = at.filter(|&at| !self.taken[at]) {
                    self.set(id, at, By::Position);
                }
            }
        } else if is_transparent(node)
            && let Some(out) = node.output(0).filter(|_| unmatched(self, 0))
            && !self.users[first]
                .iter()
                .any(|&j| self.quantized.graph.nodes[j].op_type == node.op_type)
        {
            // The quantized model does without this clamp or identity.
            self.logical_of[out.idx()] = Some((first, By::Position));
        } else if let Some(out) = node.output(0).filter(|_| unmatched(self, 0))
            && let Some(at) = self.absorbed_clamp(out)
            && let Some(j) = self.quantized.maker(at)
            && float_form(&self.quantized.graph.nodes[j]).op_type == node.op_type
        {
            // The same, where the quantized tensor has the name of what comes out of the clamp.
            self.logical_of[out.idx()] = Some((at, By::Position));
        }
    }

    /// The logical tensor of what comes out of the clamp that alone reads `id`.
    fn absorbed_clamp(&self, id: ValueId) -> Option<usize> {
        let clamp = &self.float.nodes[self.links.only_consumer(id)?];
        let out = clamp.output(0).filter(|_| is_transparent(clamp))?;
        self.logical_of[out.idx()].map(|(at, _)| at)
    }

    fn finish(self, order: &[usize]) -> Matching {
        let mut matching = Matching::default();
        let given = self.float.inputs.iter().copied();
        let made =
            order.iter().flat_map(|&i| self.float.nodes[i].outputs.iter().flatten().copied());
        let values: Vec<ValueId> = given.chain(made).collect();
        // Of several float values with one logical tensor, the last is what the rest of the model reads.
        let mut last: HashMap<usize, ValueId> = HashMap::new();
        for id in &values {
            if let Some((at, _)) = self.logical_of[id.idx()] {
                last.insert(at, *id);
            }
        }
        for id in values {
            let Some((logical, by)) = self.logical_of[id.idx()] else {
                if self.links.producer(id).is_some() {
                    matching.missing.push(id);
                }
                continue;
            };
            let found = &self.quantized.logicals[logical];
            let is_last = last[&logical] == id;
            let point = if is_last { Point::After } else { Point::Before };
            // A value before a clamp exists in the quantized model only where floats go into the quantizer.
            let exists = is_last || (found.codes.is_some() && found.pre.is_some());
            if exists {
                matching.pairs.push(Pair { float: id, logical, point, by });
            }
            // Whichever of them the operator makes.
            let Some(i) = self.links.producer(id) else { continue };
            let Some(j) = self.quantized.maker(logical) else { continue };
            let same =
                float_form(&self.quantized.graph.nodes[j]).op_type == self.float.nodes[i].op_type;
            if same {
                matching.nodes.push((i, j));
            } else if let Some(j) = self.integer_product(j, &self.float.nodes[i]) {
                matching.nodes.push((i, j));
            }
        }
        matching.nodes.sort_unstable();
        matching.nodes.dedup_by_key(|pair| pair.0);
        matching
    }

    /// The product of integers whose sum the nodes up to `j` (Cast, Mul, Add) turn into floats.
    fn integer_product(&self, j: usize, node: &Node) -> Option<usize> {
        let mut at = j;
        for _ in 0..4 {
            let other = &self.quantized.graph.nodes[at];
            let form = float_form(other);
            if form.op_type == node.op_type || (form.op_type == "MatMul" && node.op_type == "Gemm")
            {
                return Some(at);
            }
            if !matches!(other.op_type.as_str(), "Cast" | "Mul" | "Add" | "Reshape") {
                return None;
            }
            at = other.inputs.iter().flatten().find_map(|&id| {
                let maker = self.quantized.producer(id)?;
                (!self.quantized.is_constant(id)).then_some(maker).filter(|&m| {
                    matches!(
                        self.quantized.graph.nodes[m].op_type.as_str(),
                        "Cast" | "Mul" | "MatMulInteger" | "ConvInteger" | "Reshape" | "MatMul"
                    )
                })
            })?;
        }
        None
    }
}

/// Whether a quantizer may leave the node out without changing the values that it lets through.
fn is_transparent(node: &Node) -> bool {
    is_clamp(node) || matches!(node.op_type.as_str(), "Identity" | "Dropout")
}

/// Whether a node clamps (Relu, Clip), so that the range of integers can do its work.
pub fn is_clamp(node: &Node) -> bool {
    find(&node.domain, &node.op_type).is_some_and(|def| matches!(def.role, Role::Clamp { .. }))
}
