//! Calls of the model's own functions, replaced by what the functions consist of.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use midtread_graph::{
    Attr, AttrValue, Function, Graph, Model, Node, ValueId,
    model::{canonical_domain, opset_of},
};

use crate::error::Error;

/// Functions call functions at most this deep.
const MAX_DEPTH: usize = 64;

/// Domain, operator and overload.
type Key<'a> = (&'a str, &'a str, &'a str);

/// The model with every call of one of its functions replaced by the function's nodes, or `None` where there is no
/// call. Inner values are named `<label of the call>/<name in the function>`.
///
/// Fails for functions that call themselves, that stand on other versions of an operator set than the model or
/// that have subgraphs in them, and for calls in subgraphs.
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
    let mut inliner = Inliner { functions, model: &mut model_out, nodes: Vec::new() };
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
            if node.subgraphs().next().is_some() {
                return refuse("a function with a subgraph");
            }
            let inner = self.instance(node, function, &call, &label, &mut map);
            self.expand(inner, depth + 1)?;
        }
        // After the nodes that make what they hand on.
        self.nodes.extend(handed_on);
        Ok(())
    }

    /// A node of the body as a node of the graph.
    fn instance(
        &mut self,
        node: &Node,
        function: &Function,
        call: &Node,
        label: &str,
        map: &mut HashMap<usize, Option<ValueId>>,
    ) -> Node {
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
        inner.attrs = node.attrs.iter().filter_map(|attr| resolve(attr, function, call)).collect();
        inner
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

/// An attribute of a node of the body, with references to the call's attributes followed.
fn resolve(attr: &Attr, function: &Function, call: &Node) -> Option<Attr> {
    let AttrValue::Ref { name, .. } = &attr.value else { return Some(attr.clone()) };
    let given = call.attr(name);
    let default = || function.attribute_defaults.iter().find(|a| a.name == *name).map(|a| &a.value);
    let value = given.or_else(default)?.clone();
    Some(Attr { name: attr.name.clone(), value, doc_string: attr.doc_string.clone() })
}
