//! In which order nodes run, and when a value is used for the last time.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use midtread_graph::{DataType, Graph, Links, Node, ValueId, model::opset_of};
use midtread_ops::{Eval, Followers, OpDef, constant_value};

use crate::{
    body::{Body, captured},
    error::Error,
};

/// One node, ready to be evaluated.
pub(crate) struct Step {
    /// Index in [`Graph::nodes`].
    pub(crate) node: usize,
    pub(crate) def: &'static OpDef,
    pub(crate) opset: i64,
    /// What its graphs take from the graph around them, as inputs behind its own.
    pub(crate) captured: Vec<ValueId>,
    /// Its graphs.
    pub(crate) bodies: Vec<Body>,
    /// For each input position, those captured included: whether the value is nowhere used after it (not even in a later position).
    pub(crate) is_last_use: Vec<bool>,
    /// For each output position: whether anything uses the value.
    pub(crate) is_used: Vec<bool>,
    /// Whether the outputs are the same in every run.
    pub(crate) is_constant: bool,
    /// The nodes after this one whose work it does as well, unless somebody watches.
    pub(crate) fused: Option<Fused>,
    /// Whether another step does this one's work as well, unless somebody watches.
    pub(crate) is_fused: bool,
}

/// A convolution's followers, which are done in the same pass.
pub(crate) struct Fused {
    pub(crate) followers: Followers,
    /// The index of the last one's step, whose output is made.
    pub(crate) last: usize,
}

impl Step {
    /// The inputs of its node, and what its graphs capture.
    pub(crate) fn inputs<'a>(
        &'a self,
        node: &'a Node,
    ) -> impl Iterator<Item = Option<ValueId>> + 'a {
        node.inputs.iter().copied().chain(self.captured.iter().map(|&id| Some(id)))
    }
}

/// Operators whose outputs differ although their inputs do not.
const RANDOM: &[&str] = &[
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
];

/// The nodes that the outputs depend on, in the order of the file as far as dependencies allow.
pub(crate) fn schedule(graph: &Graph, opset_imports: &[(String, i64)]) -> Result<Vec<Step>, Error> {
    let order = topological_order(graph)?;
    let needed = needed_nodes(graph, &order)?;
    let mut is_constant = vec![false; graph.values().len()];
    graph.initializers.iter().for_each(|id| is_constant[id.idx()] = true);
    graph.inputs.iter().for_each(|id| is_constant[id.idx()] = false);
    let mut steps = order
        .into_iter()
        .filter(|&i| needed[i])
        .map(|i| {
            let node = &graph.nodes[i];
            let (def, opset) = resolve(graph, node, opset_imports)?;
            let captured = captured(graph, node)?;
            let (is_last_use, is_used) =
                (vec![false; node.inputs.len() + captured.len()], vec![false; node.outputs.len()]);
            let same = !RANDOM.contains(&node.op_type.as_str())
                && node.subgraphs().next().is_none()
                && node.inputs.iter().flatten().all(|id| is_constant[id.idx()]);
            node.outputs.iter().flatten().for_each(|id| is_constant[id.idx()] = same);
            Ok(Step {
                node: i,
                def,
                opset,
                captured,
                bodies: Vec::new(),
                is_last_use,
                is_used,
                is_constant: same,
                fused: None,
                is_fused: false,
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;

    // Backwards, the first use met is the last one made.
    let mut used = vec![false; graph.values().len()];
    graph.outputs.iter().for_each(|id| used[id.idx()] = true);
    for step in steps.iter_mut().rev() {
        let node = &graph.nodes[step.node];
        for (is_used, id) in step.is_used.iter_mut().zip(&node.outputs) {
            *is_used = id.is_some_and(|id| used[id.idx()]);
        }
        let uses = step.inputs(node).collect::<Vec<_>>();
        for (is_last, id) in step.is_last_use.iter_mut().zip(uses).rev() {
            *is_last = id.is_some_and(|id| !std::mem::replace(&mut used[id.idx()], true));
        }
    }
    fuse(graph, &mut steps);
    Ok(steps)
}

/// Finds the followers of each float32 convolution.
fn fuse(graph: &Graph, steps: &mut [Step]) {
    let links = Links::new(graph);
    let mut is_input = vec![false; graph.values().len()];
    graph.inputs.iter().for_each(|id| is_input[id.idx()] = true);
    let step_of: BTreeMap<usize, usize> =
        steps.iter().enumerate().map(|(i, step)| (step.node, i)).collect();
    let constant = |id: ValueId| {
        let made = || {
            let node = &graph.nodes[links.producer(id)?];
            (node.op_type == "Constant").then(|| constant_value(node).ok())?
        };
        if is_input[id.idx()] { None } else { graph.value(id).constant.clone().or_else(made) }
    };
    for i in 0..steps.len() {
        let conv = &graph.nodes[steps[i].node];
        if conv.op_type != "Conv" || !conv.domain.is_empty() || steps[i].is_constant {
            continue;
        }
        let Some(weights) = conv.input(1).and_then(constant) else { continue };
        if weights.dtype() != DataType::Float || !(3..=4).contains(&weights.dims().len()) {
            continue;
        }
        let (mut followers, mut last) = (Followers::default(), i);
        while let Some(output) = graph.nodes[steps[last].node].output(0)
            && let Some(user) = links.only_consumer(output)
            && let Some(&next) = step_of.get(&user)
            && let node = &graph.nodes[user]
            && node.input(0) == Some(output)
            && node.outputs.iter().skip(1).all(Option::is_none)
            && followers.push(node, weights.dims()[0], &|i| node.input(i).and_then(constant))
        {
            steps[next].is_fused = true;
            last = next;
        }
        if last != i {
            steps[i].fused = Some(Fused { followers, last });
        }
    }
}

/// The definition and version of a node's operator.
fn resolve(
    graph: &Graph,
    node: &Node,
    opset_imports: &[(String, i64)],
) -> Result<(&'static OpDef, i64), Error> {
    let (op_type, domain) = (node.op_type.clone(), node.domain.clone());
    let label = || graph.label(node).to_owned();
    let Some(def) = midtread_ops::find(&node.domain, &node.op_type) else {
        return Err(Error::UnknownOperator { node: label(), op_type, domain });
    };
    let Some(version) = opset_of(opset_imports, &node.domain) else {
        return Err(Error::NoOpset { node: label(), op_type, domain });
    };
    let oldest = def.versions.first().copied().unwrap_or(1);
    if version < oldest {
        return Err(Error::OldOpset { node: label(), op_type, version, oldest });
    }
    if node.subgraphs().next().is_some() && !matches!(def.eval, Eval::Bodies(_)) {
        return Err(Error::Unsupported { node: label(), op_type, what: "a subgraph".to_owned() });
    }
    // An attribute that no version has may change the result. ONNX Runtime refuses it too.
    if let Err(source) = def.check(node, version) {
        return Err(Error::Form { node: label(), op_type, version, source });
    }
    Ok((def, version))
}

/// Indices of all nodes such that every value is made before it is used; the order of the file where that is one
/// already. Values that subgraphs take from this graph count as used by the node with the subgraph.
///
/// Fails for a value that nothing makes, for one that is made twice, and for nodes that wait for one another.
pub fn topological_order(graph: &Graph) -> Result<Vec<usize>, Error> {
    let n_values = graph.values().len();
    let mut maker: Vec<Option<usize>> = vec![None; n_values];
    let mut given = vec![false; n_values];
    graph.inputs.iter().chain(&graph.initializers).for_each(|id| given[id.idx()] = true);
    for (i, node) in graph.nodes.iter().enumerate() {
        for id in node.outputs.iter().flatten() {
            if given[id.idx()] || maker[id.idx()].replace(i).is_some() {
                return Err(Error::MadeTwice {
                    node: graph.label(node).to_owned(),
                    op_type: node.op_type.clone(),
                    value: graph.value_name(*id).to_owned(),
                });
            }
        }
    }

    let mut waits_for = vec![0_usize; graph.nodes.len()];
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        for id in uses(graph, node) {
            match maker[id.idx()] {
                Some(m) => {
                    users[m].push(i);
                    waits_for[i] += 1;
                }
                None if given[id.idx()] => {}
                None => {
                    return Err(Error::Undefined {
                        node: graph.label(node).to_owned(),
                        op_type: node.op_type.clone(),
                        value: graph.value_name(id).to_owned(),
                    });
                }
            }
        }
    }
    if let Some(id) = graph.outputs.iter().find(|id| !given[id.idx()] && maker[id.idx()].is_none())
    {
        return Err(Error::UndefinedOutput(graph.value_name(*id).to_owned()));
    }

    // Of the nodes that can run, the earliest in the file comes first.
    let mut ready: BinaryHeap<Reverse<usize>> =
        (0..graph.nodes.len()).filter(|&i| waits_for[i] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(graph.nodes.len());
    while let Some(Reverse(i)) = ready.pop() {
        order.push(i);
        for &user in &users[i] {
            waits_for[user] -= 1;
            if waits_for[user] == 0 {
                ready.push(Reverse(user));
            }
        }
    }
    if order.len() < graph.nodes.len() {
        let stuck =
            waits_for.iter().position(|&n| n != 0).expect("a node is missing from the order");
        let node = &graph.nodes[stuck];
        return Err(Error::Cycle {
            node: graph.label(node).to_owned(),
            op_type: node.op_type.clone(),
        });
    }
    Ok(order)
}

/// The values a node uses: its inputs, and what its subgraphs take from around them.
fn uses(graph: &Graph, node: &Node) -> Vec<ValueId> {
    let mut captured = Vec::new();
    node.subgraphs().for_each(|g| g.captures(&mut captured));
    let captured = captured.iter().filter_map(|name| graph.find(name));
    node.inputs.iter().copied().flatten().chain(captured).collect()
}

/// Which nodes the graph's outputs depend on.
fn needed_nodes(graph: &Graph, order: &[usize]) -> Result<Vec<bool>, Error> {
    let mut wanted = vec![false; graph.values().len()];
    graph.outputs.iter().for_each(|id| wanted[id.idx()] = true);
    let mut needed = vec![false; graph.nodes.len()];
    for &i in order.iter().rev() {
        let node = &graph.nodes[i];
        if node.outputs.iter().flatten().any(|id| wanted[id.idx()]) {
            needed[i] = true;
            uses(graph, node).iter().for_each(|id| wanted[id.idx()] = true);
        }
    }
    Ok(needed)
}
