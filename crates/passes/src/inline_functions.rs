//! Calls of the model's own functions become the functions' nodes.

use midtread_graph::Model;

use crate::{
    error::Error,
    prepare::{Ctx, PassDef},
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "inline_functions",
    summary: "calls of the model's own functions become the functions' nodes",
    is_default: true,
    run,
};

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    match midtread_exec::inline_functions(model) {
        Ok(None) => {}
        Ok(Some(inlined)) => {
            let at = model.graph.name.clone();
            *model = inlined;
            model.functions.clear();
            ctx.change(&at, "calls no functions any more");
        }
        Err(midtread_exec::Error::Unsupported { node, what, .. }) => {
            ctx.skip(&node, format!("it is {what}"))
        }
        Err(source) => {
            return Err(Error::Graph { graph: model.graph.name.clone(), source: Box::new(source) });
        }
    }
    Ok(())
}
