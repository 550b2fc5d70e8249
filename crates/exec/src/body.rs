//! Graphs in attributes (the branches of If, the bodies of Loop and Scan): checked and ordered once with the model,
//! run by the operator that has them.
//!
//! What a body takes from the graph around it becomes an input of the body, behind its own; a constant becomes one of
//! its own constants. So a body is an [`Interpreter`] like any other, with its own memory pools, and the limit of
//! [`Options::max_bytes`] holds for each separately.

use std::error::Error as _;

use midtread_graph::{AttrValue, Graph, Model, Node, Type, ValueId};
use midtread_ops::{Bodies, Datum, OpError};

use crate::{
    error::Error,
    interpreter::{Interpreter, Options},
};

/// One graph of a node.
pub(crate) struct Body {
    /// The attribute that holds it.
    attr: String,
    program: Interpreter,
    n_own_inputs: usize,
    /// For each input behind its own, the position among what the node's graphs capture.
    captured: Vec<usize>,
}

/// What the graphs of a node take from `graph` around them, each once: values that are made when the model runs.
pub(crate) fn captured(graph: &Graph, node: &Node) -> Result<Vec<ValueId>, Error> {
    let mut names = Vec::new();
    node.subgraphs().for_each(|g| g.captures(&mut names));
    let mut ids = Vec::new();
    for name in names {
        let id = graph.find(&name).ok_or_else(|| Error::Undefined {
            node: graph.label(node).to_owned(),
            op_type: node.op_type.clone(),
            value: name,
        })?;
        if graph.constant(id).is_none() && !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

impl Body {
    /// The graphs of a node of `model`'s graph.
    pub(crate) fn all(
        model: &Model,
        node: &Node,
        captured: &[ValueId],
        options: &Options,
    ) -> Result<Vec<Self>, Error> {
        let graphs = node.attrs.iter().filter_map(|attr| match &attr.value {
            AttrValue::Graph(graph) => Some((&attr.name, &**graph)),
            _ => None,
        });
        graphs.map(|(attr, graph)| Self::new(model, attr, graph, captured, options)).collect()
    }

    fn new(
        model: &Model,
        attr: &str,
        body: &Graph,
        captured: &[ValueId],
        options: &Options,
    ) -> Result<Self, Error> {
        let outer = &model.graph;
        let mut names = Vec::new();
        body.captures(&mut names);
        let mut graph = body.clone();
        let n_own_inputs = graph.inputs.len();
        let mut positions = Vec::new();
        for name in &names {
            let Some(id) = outer.find(name) else { continue };
            let own = graph.intern(name);
            match (outer.constant(id), captured.iter().position(|&c| c == id)) {
                (Some(tensor), _) => graph.set_constant(own, tensor.clone()),
                (None, Some(position)) if !graph.inputs.contains(&own) => {
                    graph.inputs.push(own);
                    positions.push(position);
                }
                (None, _) => {}
            }
        }
        let model = Model {
            graph,
            ir_version: model.ir_version,
            opset_imports: model.opset_imports.clone(),
            functions: model.functions.clone(),
            ..Model::default()
        };
        let program = Interpreter::new(&model, options.clone())?;
        Ok(Self { attr: attr.to_owned(), program, n_own_inputs, captured: positions })
    }
}

/// A node's graphs while the node runs.
pub(crate) struct Running<'a> {
    pub(crate) bodies: &'a [Body],
    /// What the graphs capture, in the order of [`captured`].
    pub(crate) captured: Vec<Option<Datum>>,
}

impl Running<'_> {
    fn body(&self, name: &'static str) -> Result<&Body, OpError> {
        self.bodies.iter().find(|b| b.attr == name).ok_or(OpError::MissingAttr(name))
    }
}

impl Bodies for Running<'_> {
    fn run(&self, name: &'static str, mut inputs: Vec<Datum>) -> Result<Vec<Datum>, OpError> {
        let body = self.body(name)?;
        if inputs.len() != body.n_own_inputs {
            return Err(OpError::Invalid(format!(
                "`{name}` has {} inputs, not {}",
                body.n_own_inputs,
                inputs.len()
            )));
        }
        for &position in &body.captured {
            inputs.push(self.captured[position].clone().unwrap_or(Datum::Empty));
        }
        body.program.run_body(inputs).map_err(|err| {
            let mut message = err.to_string();
            let mut source = err.source();
            while let Some(err) = source {
                message = format!("{message}: {err}");
                source = err.source();
            }
            OpError::Body { name, message }
        })
    }

    fn outputs(&self, name: &'static str) -> Result<Vec<Option<Type>>, OpError> {
        let outputs = self.body(name)?.program.outputs();
        Ok(outputs.iter().map(|port| port.ty.clone()).collect())
    }
}
