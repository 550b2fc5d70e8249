//! Integer tensors whose elements shape inference knows become constants.
//!
//! `Shape(x)` of an `x` whose sizes are numbers, and what is computed from it.

use midtread_graph::{Model, Rewrite};

use crate::{
    error::Error,
    infer_shapes::{infer, tensor_of},
    prepare::{Ctx, PassDef},
    view::View,
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "fold_shapes",
    summary: "integer tensors whose elements shape inference knows become constants",
    is_default: true,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    let infos = infer(model).infos;
    let graph = &mut model.graph;
    let view = View::new(graph);
    let mut rewrite = Rewrite::default();
    for i in 0..graph.nodes.len() {
        let [Some(out)] = graph.nodes[i].outputs[..] else { continue };
        let node = &graph.nodes[i];
        if view.links.is_output(out) || node.is("Constant") || node.subgraphs().next().is_some() {
            continue;
        }
        let Some(tensor) = tensor_of(&infos[out.idx()]) else { continue };
        let name = graph.value_name(out).to_owned();
        graph.set_constant(out, tensor);
        rewrite.remove(i);
        ctx.change(&name, "is a constant");
    }
    rewrite.apply(graph);
    Ok(())
}
