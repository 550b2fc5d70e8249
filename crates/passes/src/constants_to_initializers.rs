//! `Constant` nodes become initializers.
//!
//! Weights in `Constant` nodes are invisible to everything that looks for initializers, quantizers first of all.

use midtread_graph::{AttrValue, Graph, Model, Node, Notes, Rewrite, Tensor};

use crate::{
    error::Error,
    prepare::{Ctx, PassDef},
    view::View,
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "constants_to_initializers",
    summary: "`Constant` nodes become initializers",
    is_default: true,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    lift(&mut model.graph, ctx);
    Ok(())
}

/// In one graph and in the graphs of its nodes' attributes.
fn lift(graph: &mut Graph, ctx: &mut Ctx<'_>) {
    graph.nodes.iter_mut().flat_map(Node::subgraphs_mut).for_each(|body| lift(body, ctx));
    let view = View::new(graph);
    let mut rewrite = Rewrite::default();
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        if !node.is("Constant") {
            continue;
        }
        let Some(out) = node.output(0) else { continue };
        let name = graph.value_name(out).to_owned();
        if view.links.is_output(out) {
            ctx.skip(&name, "it is an output of the graph");
            continue;
        }
        match tensor_of(node) {
            Ok(tensor) => {
                graph.set_constant(out, tensor);
                rewrite.remove(i);
                ctx.change(&name, "is an initializer");
            }
            Err(because) => ctx.skip(&name, because),
        }
    }
    rewrite.apply(graph);
}

/// The tensor of a `Constant` node, which has exactly one of the attributes.
fn tensor_of(node: &Node) -> Result<Tensor, &'static str> {
    let [attr] = &node.attrs[..] else {
        return Err("it does not have exactly one attribute");
    };
    match (attr.name.as_str(), &attr.value) {
        // A name or remark of the attribute's tensor says nothing about the initializer.
        ("value", AttrValue::Tensor(tensor)) => Ok(tensor.clone().with_notes(Notes::default())),
        ("value_float", AttrValue::Float(value)) => Ok(Tensor::scalar(*value)),
        ("value_floats", AttrValue::Floats(values)) => Ok(Tensor::vector(values)),
        ("value_int", AttrValue::Int(value)) => Ok(Tensor::scalar(*value)),
        ("value_ints", AttrValue::Ints(values)) => Ok(Tensor::vector(values)),
        ("value_string", AttrValue::String(value)) => {
            Tensor::from_strings(Vec::new(), vec![value.clone()])
                .map_err(|_| "its string is no tensor")
        }
        ("value_strings", AttrValue::Strings(values)) => {
            Tensor::from_strings(vec![values.len()], values.clone())
                .map_err(|_| "its strings are no tensor")
        }
        ("sparse_value", _) => Err("its value is a sparse tensor"),
        _ => Err("its attribute is of no known form"),
    }
}
