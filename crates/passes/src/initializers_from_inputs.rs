//! Initializers of old models stop being inputs.
//!
//! Before IR version 4 every initializer had to be listed among the inputs, and every runtime treated it as the
//! constant it was meant to be; from version 4 on, such an input is a default that callers may override.

use midtread_graph::Model;

use crate::{
    error::Error,
    prepare::{Ctx, PassDef},
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "initializers_from_inputs",
    summary: "initializers of models before IR version 4 are no longer listed as inputs",
    is_default: true,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    if 4 <= model.ir_version {
        return Ok(());
    }
    let graph = &mut model.graph;
    let (defaults, inputs): (Vec<_>, Vec<_>) =
        graph.inputs.iter().copied().partition(|id| graph.value(*id).constant.is_some());
    graph.inputs = inputs;
    for id in defaults {
        ctx.change(graph.value_name(id), "is no input any more");
    }
    model.ir_version = 4;
    Ok(())
}
