//! Forms of operators with the channels last: the form with the channels second, its first input turned before and its
//! output turned back.

use std::cell::Cell;

use midtread_graph::{Node, Tensor};

use crate::{
    attr,
    eval::{Args, EvalCtx, OpError},
    infer::{InferCtx, Info},
    layout::transposed,
    sym::SymDim,
};

type Infer = fn(&mut InferCtx<'_>) -> Result<(), OpError>;
type Eval = fn(&EvalCtx<'_>, Args) -> Result<Vec<Tensor>, OpError>;

/// The orders of dimensions that put the channels second, and last again.
fn orders(rank: usize) -> (Vec<usize>, Vec<usize>) {
    let second = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    (second, [0].into_iter().chain(2..rank).chain([1]).collect())
}

/// The shape rule of the form with the channels last, of a node that `rule` reads as version `opset`.
pub(crate) fn infer(ctx: &mut InferCtx<'_>, opset: i64, rule: Infer) -> Result<(), OpError> {
    let turned = |dims: &[SymDim], order: &[usize]| -> Vec<SymDim> {
        order.iter().map(|&d| dims[d].clone()).collect()
    };
    let Some(dims) = ctx.dims(0).filter(|dims| 3 <= dims.len()) else {
        ctx.set(0, ctx.elem(0), None);
        return Ok(());
    };
    let (second, last) = orders(dims.len());
    let mut inputs: Vec<Option<Info>> =
        (0..ctx.n_inputs()).map(|i| ctx.input(i).cloned()).collect();
    inputs[0] = Some(Info::new(ctx.elem(0), Some(turned(dims, &second))));
    let none = Cell::new(0);
    let mut inner = InferCtx::new(ctx.node, opset, &inputs, &none);
    rule(&mut inner)?;
    let out = inner.into_outputs().swap_remove(0);
    ctx.set(0, out.elem, out.dims.map(|dims| turned(&dims, &last)));
    Ok(())
}

/// The output of the form with the channels last.
pub(crate) fn eval(ctx: &EvalCtx<'_>, mut args: Args, f: Eval) -> Result<Vec<Tensor>, OpError> {
    let x = args.take(0)?;
    if x.dims().len() < 3 {
        return Err(OpError::Invalid(format!("an input of sizes {:?}", x.dims())));
    }
    let (second, last) = orders(x.dims().len());
    args.0[0] = Some(transposed(ctx, x, &second)?);
    let y = f(ctx, args)?.remove(0);
    Ok(vec![transposed(ctx, y, &last)?])
}

fn is_asked(node: &Node) -> Result<bool, OpError> {
    attr::flag(node, "channels_last", false)
}

/// `rule`, or with `channels_last` the rule of that form.
pub(crate) fn infer_as_asked(ctx: &mut InferCtx<'_>, rule: Infer) -> Result<(), OpError> {
    if is_asked(ctx.node)? { infer(ctx, ctx.opset, rule) } else { rule(ctx) }
}

/// `f`, or with `channels_last` that form.
pub(crate) fn eval_as_asked(
    ctx: &EvalCtx<'_>,
    args: Args,
    f: Eval,
) -> Result<Vec<Tensor>, OpError> {
    if is_asked(ctx.node)? { eval(ctx, args, f) } else { f(ctx, args) }
}
