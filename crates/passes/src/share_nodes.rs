//! Nodes that compute the same of the same are one.
//!
//! Two nodes of one operator with the same inputs and attributes give the same outputs, unless the operator draws random
//! numbers. Nodes with graphs in their attributes are left alone.

use std::collections::HashMap;

use midtread_graph::{Attr, AttrValue, Graph, Model, Node, Rewrite, ValueId};

use crate::{
    error::Error,
    fold_constants::is_random,
    prepare::{Ctx, PassDef},
    view::View,
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "share_nodes",
    summary: "nodes that compute the same of the same are one",
    is_default: false,
    run,
};

/// What must be equal, besides the attributes.
type Key = (String, String, String, Vec<Option<ValueId>>);

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    let graph = &mut model.graph;
    let view = View::new(graph);
    let mut seen: HashMap<Key, Vec<usize>> = HashMap::new();
    let mut map: Vec<Option<ValueId>> = vec![None; graph.values().len()];
    let mut rewrite = Rewrite::default();
    for i in 0..graph.nodes.len() {
        // A value stands for one that stays, so one step is the whole way.
        for id in graph.nodes[i].inputs.iter_mut().flatten() {
            *id = map[id.idx()].unwrap_or(*id);
        }
        let node = &graph.nodes[i];
        if node.inputs.is_empty() || is_random(&node.op_type) || node.subgraphs().next().is_some() {
            continue;
        }
        let (op_type, domain, overload) =
            (node.op_type.clone(), node.domain.clone(), node.overload.clone());
        let others = seen.entry((op_type, domain, overload, node.inputs.clone())).or_default();
        let Some(&first) = others.iter().find(|&&j| same_attrs(&graph.nodes[j], node)) else {
            others.push(i);
            continue;
        };
        let label = graph.label(node).to_owned();
        match replacements(graph, &view, first, i) {
            Ok(pairs) => {
                ctx.change(&label, format!("is `{}`", graph.label(&graph.nodes[first])));
                pairs.into_iter().for_each(|(from, to)| map[from.idx()] = Some(to));
                rewrite.remove(i);
            }
            Err(because) => ctx.skip(&label, because),
        }
    }
    rewrite.apply(graph);
    Ok(())
}

/// Which value stands for which, if the second node goes.
fn replacements(
    graph: &Graph,
    view: &View,
    first: usize,
    second: usize,
) -> Result<Vec<(ValueId, ValueId)>, &'static str> {
    let mut pairs = Vec::new();
    for (k, from) in graph.nodes[second].outputs.iter().enumerate() {
        let Some(from) = *from else { continue };
        if view.links.is_output(from) {
            return Err("it makes an output of the graph, which keeps its name");
        }
        if view.links.is_captured(from) {
            return Err("a subgraph uses its output by name");
        }
        let to = graph.nodes[first].output(k);
        pairs.push((from, to.ok_or("the node that computes the same leaves an output out")?));
    }
    Ok(pairs)
}

fn same_attrs(a: &Node, b: &Node) -> bool {
    let has =
        |node: &Node, attr: &Attr| node.attr(&attr.name).is_some_and(|v| same(v, &attr.value));
    a.attrs.len() == b.attrs.len() && a.attrs.iter().all(|attr| has(b, attr))
}

fn same(a: &AttrValue, b: &AttrValue) -> bool {
    let bits = |xs: &[f32]| xs.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    match (a, b) {
        (AttrValue::Float(a), AttrValue::Float(b)) => a.to_bits() == b.to_bits(),
        (AttrValue::Int(a), AttrValue::Int(b)) => a == b,
        (AttrValue::String(a), AttrValue::String(b)) => a == b,
        (AttrValue::Tensor(a), AttrValue::Tensor(b)) => a == b,
        (AttrValue::Floats(a), AttrValue::Floats(b)) => bits(a) == bits(b),
        (AttrValue::Ints(a), AttrValue::Ints(b)) => a == b,
        (AttrValue::Strings(a), AttrValue::Strings(b)) => a == b,
        _ => false,
    }
}
