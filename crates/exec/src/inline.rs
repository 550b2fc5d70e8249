//! Calls of the model's own functions, replaced by what the functions consist of.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use midtread_graph::{
    Attr, AttrValue, Function, Graph, Model, Node, ValueId,
    model::{canonical_domain, opset_of},
};

use crate::error::Error;

/// Functions call functions at most this deep.
const MAX_DEPTH: usize = 64;

/// What functions may expand to: one that calls another twice, which calls another twice, is soon larger than any model.
const MAX_NODES: usize = 1 << 16;

/// Domain, operator and overload.
type Key<'a> = (&'a str, &'a str, &'a str);

/// The model with every call of one of its functions replaced by the function's nodes, or `None` where there is no
/// call. Inner values are named `<label of the call>/<name in the function>`.
///
/// Fails for functions that call themselves or that stand on other versions of an operator set than the model. Calls in
/// subgraphs stay: they are expanded when the subgraph is prepared.
pub fn inline_functions(model: &Model) -> Result<Option<Model>, Error> {
    let functions: BTreeMap<Key<'_>, &Function> = model
        .functions
        .iter()
        .map(|f| ((canonical_domain(&f.domain), f.name.as_str(), f.overload.as_str()), f))
        .collect();
    if functions.is_empty() || !model.graph.nodes.iter().any(|n| functions.contains_key(&key(n))) {
        return Ok(None);
    }
    let mut model_out = model.clone();
    let nodes = std::mem::take(&mut model_out.graph.nodes);
    let mut inliner =
        Inliner { functions, model: &mut model_out, nodes: Vec::new(), n_expanded: 0 };
    for node in nodes {
        inliner.expand(node, 0)?;
    }
    model_out.graph.nodes = inliner.nodes;
    Ok(Some(model_out))
}

fn key(node: &Node) -> Key<'_> {
    (canonical_domain(&node.domain), &node.op_type, &node.overload)
}

struct Inliner<'a> {
    functions: BTreeMap<Key<'a>, &'a Function>,
    model: &'a mut Model,
    nodes: Vec<Node>,
    /// Calls, and the nodes that they stand for.
    n_expanded: usize,
}

impl Inliner<'_> {
    fn expand(&mut self, call: Node, depth: usize) -> Result<(), Error> {
        let Some(&function) = self.functions.get(&key(&call)) else {
            self.nodes.push(call);
            return Ok(());
        };
        let label = self.model.graph.label(&call).to_owned();
        let refuse = |what: &str| {
            Err(Error::Unsupported {
                node: label.clone(),
                op_type: call.op_type.clone(),
                what: what.to_owned(),
            })
        };
        if MAX_DEPTH < depth {
            return refuse("a function that calls itself");
        }
        self.n_expanded += 1 + function.body.nodes.len();
        if MAX_NODES < self.n_expanded {
            return refuse("one of so many calls that they come to more than 65,536 nodes");
        }
        if call.inputs.len() > function.body.inputs.len()
            || call.outputs.len() > function.body.outputs.len()
        {
            return refuse("a call with more inputs or outputs than the function has");
        }
        self.import(function, &label, &call)?;

        // Values of the body, by index, as values of the graph.
        let mut map: HashMap<usize, Option<ValueId>> = HashMap::new();
        for (i, id) in function.body.inputs.iter().enumerate() {
            map.insert(id.idx(), call.input(i));
        }
        let made: BTreeSet<usize> = function
            .body
            .nodes
            .iter()
            .flat_map(|n| n.outputs.iter().flatten())
            .map(|id| id.idx())
            .collect();
        let mut handed_on = Vec::new();
        for (i, id) in function.body.outputs.iter().enumerate() {
            let Some(out) = call.output(i) else { continue };
            match (map.get(&id.idx()).copied(), made.contains(&id.idx())) {
                // An input handed through, or an output wanted twice.
                (Some(source), _) => {
                    let Some(source) = source else {
                        return refuse("an output that is an input left out");
                    };
                    handed_on.push(Node::new("Identity", "", [source], [out]));
                }
                (None, true) => {
                    map.insert(id.idx(), Some(out));
                }
                (None, false) => return refuse("an output that the function does not make"),
            }
        }
        for node in &function.body.nodes {
            let inner = self.instance(node, function, &call, &label, &mut map);
            let Some(inner) = inner else {
                return refuse("a subgraph with names of the graph around it");
            };
            self.expand(inner, depth + 1)?;
        }
        // After the nodes that make what they hand on.
        self.nodes.extend(handed_on);
        Ok(())
    }

    /// A node of the body as a node of the graph. `None` where names in its subgraphs would mean something else.
    fn instance(
        &mut self,
        node: &Node,
        function: &Function,
        call: &Node,
        label: &str,
        map: &mut HashMap<usize, Option<ValueId>>,
    ) -> Option<Node> {
        let graph: &mut Graph = &mut self.model.graph;
        let mut value = |id: ValueId| {
            *map.entry(id.idx()).or_insert_with(|| {
                Some(graph.fresh(&format!("{label}/{}", function.body.value_name(id))))
            })
        };
        let mut inner = node.clone();
        inner.inputs = node.inputs.iter().map(|id| value((*id)?)).collect();
        inner.outputs = node.outputs.iter().map(|id| value((*id)?)).collect();
        if !node.name.is_empty() {
            inner.name = format!("{label}/{}", node.name);
        }
        let mut captured = Vec::new();
        node.subgraphs().for_each(|g| g.captures(&mut captured));
        let captured = captured.into_iter().filter_map(|name| {
            let id = value(function.body.find(&name)?);
            Some((name, id))
        });
        let captured: Vec<(String, Option<ValueId>)> = captured.collect();
        let names = captured.into_iter().map(|(name, id)| {
            // Left out by the call, and used all the same: nothing has this name, and the schedule says so.
            let new =
                id.map_or_else(|| format!("{label}/{name}"), |id| graph.value_name(id).to_owned());
            (name, new)
        });
        let names: BTreeMap<String, String> = names.collect();
        inner.attrs = node.attrs.iter().filter_map(|attr| resolve(attr, function, call)).collect();
        let are_renamed = inner.attrs.iter_mut().all(|attr| match &mut attr.value {
            AttrValue::Graph(graph) => instantiate(graph, &names, function, call),
            _ => true,
        });
        are_renamed.then_some(inner)
    }

    /// Checks that the function's operators mean the same in the model.
    fn import(&mut self, function: &Function, label: &str, call: &Node) -> Result<(), Error> {
        for (domain, version) in &function.opset_imports {
            match opset_of(&self.model.opset_imports, domain) {
                Some(v) if v == *version => {}
                None => self.model.set_opset(domain, *version),
                Some(v) => {
                    let what = format!(
                        "a function of operator set {version} in a model of operator set {v}"
                    );
                    return Err(Error::Unsupported {
                        node: label.to_owned(),
                        op_type: call.op_type.clone(),
                        what,
                    });
                }
            }
        }
        Ok(())
    }
}

/// Renames what a subgraph of a function captures, and follows its references to the call's attributes. `false` where
/// a name is taken.
fn instantiate(
    graph: &mut Graph,
    names: &BTreeMap<String, String>,
    function: &Function,
    call: &Node,
) -> bool {
    let own = graph.owned();
    let mut inner_names = names.clone();
    for id in graph.value_ids().collect::<Vec<_>>() {
        if own[id.idx()] {
            inner_names.remove(graph.value_name(id));
        } else if let Some(new) = names.get(graph.value_name(id))
            && !graph.rename(id, new)
        {
            return false;
        }
    }
    graph.nodes.iter_mut().all(|node| {
        node.attrs = node.attrs.iter().filter_map(|attr| resolve(attr, function, call)).collect();
        node.attrs.iter_mut().all(|attr| match &mut attr.value {
            AttrValue::Graph(graph) => instantiate(graph, &inner_names, function, call),
            _ => true,
        })
    })
}

/// An attribute of a node of the body, with references to the call's attributes followed.
fn resolve(attr: &Attr, function: &Function, call: &Node) -> Option<Attr> {
    let AttrValue::Ref { name, .. } = &attr.value else { return Some(attr.clone()) };
    let given = call.attr(name);
    let default = || function.attribute_defaults.iter().find(|a| a.name == *name).map(|a| &a.value);
    let value = given.or_else(default)?.clone();
    Some(Attr { name: attr.name.clone(), value, doc_string: attr.doc_string.clone() })
}
