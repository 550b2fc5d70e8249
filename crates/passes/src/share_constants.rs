//! Initializers of the same type, sizes and bytes are one.
//!
//! Exporters write a `0.5` for every Gelu and a table of embeddings a second time for the output. One name stays, the
//! first; the other goes when nothing uses it.

use std::collections::HashMap;

use midtread_graph::{DataType, Model, Tensor, ValueId, edit::replace_uses};

use crate::{
    error::Error,
    prepare::{Ctx, PassDef},
    view::View,
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "share_constants",
    summary: "initializers with the same elements are one",
    is_default: false,
    run,
};

/// Of larger tensors, so many bytes are compared before all are.
const SAMPLE: usize = 4096;

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    let graph = &mut model.graph;
    let view = View::new(graph);
    let mut seen: HashMap<(DataType, Vec<usize>, Vec<u8>), Vec<ValueId>> = HashMap::new();
    let mut map = Vec::new();
    for &id in &graph.initializers {
        let Some(tensor) = view.constant(graph, id) else { continue };
        // A name that a subgraph or the caller knows stays; so do strings, whose bytes lie elsewhere.
        if tensor.as_strings().is_some() || view.links.is_output(id) || view.links.is_captured(id) {
            continue;
        }
        let bytes = tensor.as_bytes();
        let sample = bytes[..bytes.len().min(SAMPLE)].to_vec();
        let others = seen.entry((tensor.dtype(), tensor.dims().to_vec(), sample)).or_default();
        let same = |other: &&ValueId| {
            let other = view.constant(graph, **other).expect("it was one before");
            let is_same = SAMPLE >= bytes.len() || equal(tensor, other);
            tensor.release_pages();
            other.release_pages();
            is_same
        };
        match others.iter().find(same) {
            Some(&first) if !view.links.consumers(id).is_empty() => map.push((id, first)),
            Some(_) => {}
            None => others.push(id),
        }
    }
    for &(id, first) in &map {
        ctx.change(graph.value_name(id), format!("is `{}`", graph.value_name(first)));
    }
    replace_uses(graph, &map);
    Ok(())
}

fn equal(a: &Tensor, b: &Tensor) -> bool {
    a.as_bytes() == b.as_bytes()
}
