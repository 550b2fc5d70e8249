//! Nodes all of whose inputs are constant become constants, evaluated by the operators of the interpreter.
//!
//! Never folded: operators that draw random numbers, `QuantizeLinear` and `DequantizeLinear` (a weight stored in
//! integers is stored that way on purpose), and what would make the constants larger by more than
//! [`crate::PrepareOptions::max_growth`] in total.

use std::cell::Cell;

use midtread_graph::{Graph, Model, Node, Rewrite, Tensor, model::opset_of};
use midtread_ops::{Args, EvalCtx, InferCtx, Info, OpDef, OpError, Pool};

use crate::{
    error::Error,
    prepare::{Ctx, PassDef},
    view::View,
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "fold_constants",
    summary: "nodes all of whose inputs are constant become constants",
    is_default: true,
    run,
};

/// Operators that are evaluated when the model runs, even if their inputs are constant.
const NEVER: &[&str] = &["DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"];

/// Whether an operator may give something else each time.
pub(crate) fn is_random(op_type: &str) -> bool {
    const RANDOM: &[&str] = &[
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    ];
    RANDOM.contains(&op_type)
}

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    let view = View::new(&model.graph);
    let pool = Pool::default();
    let mut rewrite = Rewrite::default();
    for i in 0..model.graph.nodes.len() {
        let node = &model.graph.nodes[i];
        let label = model.graph.label(node).to_owned();
        match fold(model, &view, node, ctx, &pool) {
            Ok(folded) => {
                ctx.growth += folded.growth;
                let outputs = node.outputs.clone();
                for (id, tensor) in outputs.iter().zip(folded.outputs) {
                    if let Some(id) = id {
                        model.graph.set_constant(*id, tensor);
                    }
                }
                rewrite.remove(i);
                ctx.change(&label, "is constant");
            }
            Err(None) => {}
            Err(Some(because)) => ctx.skip(&label, because),
        }
    }
    rewrite.apply(&mut model.graph);
    Ok(())
}

struct Folded {
    outputs: Vec<Tensor>,
    /// Bytes of the outputs less those of inputs that nothing else uses.
    growth: i64,
}

/// The outputs of a node with constant inputs; `None` where the rule is not about the node.
fn fold(
    model: &Model,
    view: &View,
    node: &Node,
    ctx: &Ctx<'_>,
    pool: &Pool,
) -> Result<Folded, Option<String>> {
    let graph = &model.graph;
    let constants: Option<Vec<Option<Tensor>>> = node
        .inputs
        .iter()
        .map(|id| id.map_or(Some(None), |id| Some(Some(view.constant(graph, id)?.clone()))))
        .collect();
    let constants = constants.ok_or(None)?;
    if NEVER.contains(&node.op_type.as_str())
        || is_random(&node.op_type)
        || node.is("Constant")
        || node.subgraphs().next().is_some()
        || node.outputs.iter().flatten().any(|&id| view.links.is_output(id))
    {
        return Err(None);
    }
    let Some(def) = midtread_ops::find(&node.domain, &node.op_type) else {
        return Err(Some(format!("operator {} is not supported", node.op_type)));
    };
    let opset = opset_of(&model.opset_imports, &node.domain).ok_or(None)?;
    def.check(node, opset).map_err(|err| Some(err.to_string()))?;

    let freed = freed_bytes(graph, view, node);
    let allowed =
        i64::try_from(ctx.options.max_growth).unwrap_or(i64::MAX).saturating_sub(ctx.growth);
    let allowed = usize::try_from(allowed.saturating_add(freed)).unwrap_or(0);
    let too_large = |n_bytes: usize| {
        Err(Some(format!(
            "its {n_bytes} bytes are more than the {allowed} by which constants may grow here"
        )))
    };
    if let Some(n_bytes) = inferred_bytes(def, node, opset, &constants)
        && allowed < n_bytes
    {
        return too_large(n_bytes);
    }
    pool.set_max_tensor(allowed);
    let args = Args(constants.into_iter().map(|c| c.map(|c| c.to_aligned())).collect());
    let outputs = match def.evaluate_tensors(&EvalCtx { node, opset, pool }, args) {
        Ok(outputs) => outputs,
        Err(OpError::Memory { needed }) => return too_large(needed),
        Err(err) => return Err(Some(err.to_string())),
    };
    let n_wanted = node.outputs.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    if outputs.len() < n_wanted {
        return Err(Some(format!("output {} is not supported", outputs.len())));
    }
    let n_bytes: usize = outputs.iter().map(|t| t.as_bytes().len()).sum();
    if allowed < n_bytes {
        return too_large(n_bytes);
    }
    Ok(Folded { outputs, growth: i64::try_from(n_bytes).unwrap_or(i64::MAX).saturating_sub(freed) })
}

/// Bytes of the inputs that are not used any more when the node is gone.
fn freed_bytes(graph: &Graph, view: &View, node: &Node) -> i64 {
    let mut ids: Vec<_> = node.inputs.iter().copied().flatten().collect();
    ids.sort_unstable();
    ids.dedup();
    let only_here = ids.into_iter().filter(|&id| view.links.only_consumer(id).is_some());
    let n_bytes: usize =
        only_here.filter_map(|id| Some(view.constant(graph, id)?.as_bytes().len())).sum();
    i64::try_from(n_bytes).unwrap_or(i64::MAX)
}

/// The size of the outputs, where the shape rule tells, before anything of that size is made.
fn inferred_bytes(
    def: &OpDef,
    node: &Node,
    opset: i64,
    constants: &[Option<Tensor>],
) -> Option<usize> {
    let info = |t: &Tensor| Info { constant: Some(t.clone()), ..Info::of(t) };
    let inputs: Vec<Option<Info>> = constants.iter().map(|c| c.as_ref().map(info)).collect();
    let n_fresh = Cell::new(0);
    let mut ctx = InferCtx::new(node, opset, &inputs, &n_fresh);
    (def.infer)(&mut ctx).ok()?;
    ctx.into_outputs().iter().try_fold(0_usize, |sum, output| {
        let dims: Vec<usize> = output
            .dims
            .as_ref()?
            .iter()
            .map(|d| usize::try_from(d.as_known()?).ok())
            .collect::<Option<_>>()?;
        let n = midtread_graph::tensor::n_elements(&dims).unwrap_or(usize::MAX);
        Some(sum.saturating_add(output.elem?.n_bytes(n).unwrap_or(usize::MAX)))
    })
}
