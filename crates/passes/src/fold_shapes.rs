//! Integer tensors whose elements shape inference knows become constants.
//!
//! `Shape(x)` of an `x` whose sizes are numbers, and what is computed from it.

use midtread_graph::{DataType, Model, Rewrite, Tensor};
use midtread_ops::{Info, SymDim};

use crate::{
    error::Error,
    infer_shapes::infer,
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
        if view.links.is_output(out) || graph.nodes[i].subgraphs().next().is_some() {
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

/// The tensor that an inferred value is, if every element is a number.
fn tensor_of(info: &Info) -> Option<Tensor> {
    let values: Vec<i64> =
        info.value.as_ref()?.iter().map(SymDim::as_known).collect::<Option<_>>()?;
    let dims = info.dims.as_ref()?.iter().map(|d| usize::try_from(d.as_known()?).ok());
    let dims: Vec<usize> = dims.collect::<Option<_>>()?;
    match info.elem? {
        DataType::Int64 => Tensor::from_slice(dims, &values).ok(),
        DataType::Int32 => {
            let values: Vec<i32> =
                values.into_iter().map(|v| i32::try_from(v).ok()).collect::<Option<_>>()?;
            Tensor::from_slice(dims, &values).ok()
        }
        _ => None,
    }
}
