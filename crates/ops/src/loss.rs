//! Losses of classification. They are of training, but evaluation graphs have them too.

use midtread_graph::{DataType, Node, Tensor};

use crate::{
    attr,
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    infer::InferCtx,
    shape::product,
    sym::SymDim,
    typed::{from_reals, indices, reals},
};

const ROLE: Role = Role::Float("it measures the model, whose results it is not part of");

/// ONNX NegativeLogLikelihoodLoss 12, 13 and 22.
pub(crate) static NEGATIVE_LOG_LIKELIHOOD_LOSS: OpDef = OpDef {
    op_type: "NegativeLogLikelihoodLoss",
    domain: "",
    versions: &[12, 13, 22],
    attrs: &["ignore_index", "reduction"],
    infer: infer_loss,
    eval: Eval::Tensors(|ctx, args| {
        let x = args.required(0)?;
        Ok(vec![loss(ctx, &args, &reals(x)?)?])
    }),
    role: ROLE,
};

/// ONNX SoftmaxCrossEntropyLoss 12 and 13: the loss above of the logarithm of Softmax, which is the second output.
pub(crate) static SOFTMAX_CROSS_ENTROPY_LOSS: OpDef = OpDef {
    op_type: "SoftmaxCrossEntropyLoss",
    domain: "",
    versions: &[12, 13],
    attrs: &["ignore_index", "reduction"],
    infer: infer_loss,
    eval: Eval::Tensors(|ctx, args| {
        let x = args.required(0)?;
        let log_probabilities = log_softmax(&reals(x)?, x.dims())?;
        let mut outputs = vec![loss(ctx, &args, &log_probabilities)?];
        if 1 < ctx.node.outputs.len() {
            outputs.push(from_reals(ctx, x.dtype(), x.dims().to_vec(), &log_probabilities)?);
        }
        Ok(outputs)
    }),
    role: ROLE,
};

#[derive(Clone, Copy, PartialEq)]
enum Reduction {
    None,
    Sum,
    Mean,
}

fn reduction(node: &Node) -> Result<Reduction, OpError> {
    match attr::string(node, "reduction", "mean")? {
        "none" => Ok(Reduction::None),
        "sum" => Ok(Reduction::Sum),
        "mean" => Ok(Reduction::Mean),
        other => Err(OpError::Invalid(format!("`reduction` is `{other}`"))),
    }
}

fn infer_loss(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let dims = match (reduction(ctx.node)?, ctx.dims(0)) {
        (Reduction::None, Some([n, _, rest @ ..])) => {
            Some(std::iter::once(n).chain(rest).cloned().collect::<Vec<SymDim>>())
        }
        (Reduction::None, _) => ctx.dims(1).map(<[_]>::to_vec),
        _ => Some(Vec::new()),
    };
    ctx.set(0, ctx.elem(0), dims);
    ctx.set(1, ctx.elem(0), ctx.dims(0).map(<[_]>::to_vec));
    Ok(())
}

/// Batches, classes, and the product of the sizes behind them.
fn sizes(dims: &[usize]) -> Result<[usize; 3], OpError> {
    match dims {
        [n, classes, rest @ ..] => Ok([*n, *classes, product(rest)]),
        _ => Err(OpError::Invalid(format!("no classes in sizes {dims:?}"))),
    }
}

fn log_softmax(x: &[f64], dims: &[usize]) -> Result<Vec<f64>, OpError> {
    let [n, classes, inner] = sizes(dims)?;
    let mut y = x.to_vec();
    for i in 0..n * inner {
        let at = |c: usize| (i / inner * classes + c) * inner + i % inner;
        let max = (0..classes).map(|c| x[at(c)]).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = (0..classes).map(|c| (x[at(c)] - max).exp()).sum();
        (0..classes).for_each(|c| y[at(c)] = x[at(c)] - max - sum.ln());
    }
    Ok(y)
}

fn loss(ctx: &EvalCtx<'_>, args: &Args, log_probabilities: &[f64]) -> Result<Tensor, OpError> {
    let (x, target) = (args.required(0)?, args.required(1)?);
    let [n, classes, inner] = sizes(x.dims())?;
    let labels = indices(target)?;
    let weights = args.get(2).map(reals).transpose()?;
    if labels.len() != n * inner || weights.as_ref().is_some_and(|w| w.len() != classes) {
        return Err(OpError::Invalid(format!(
            "labels of {:?} for scores of {:?}, or not one weight for each of {classes} classes",
            target.dims(),
            x.dims()
        )));
    }
    let ignored = attr::opt_int(ctx.node, "ignore_index")?;
    let mut losses = Vec::with_capacity(labels.len());
    let mut total_weight = 0.0;
    for (i, &label) in labels.iter().enumerate() {
        if Some(label) == ignored {
            losses.push(0.0);
            continue;
        }
        let class = usize::try_from(label).ok().filter(|&c| c < classes).ok_or_else(|| {
            OpError::Invalid(format!("label {label}, but there are {classes} classes"))
        })?;
        let weight = weights.as_ref().map_or(1.0, |w| w[class]);
        total_weight += weight;
        losses.push(-weight * log_probabilities[(i / inner * classes + class) * inner + i % inner]);
    }
    let (dims, values) = match reduction(ctx.node)? {
        Reduction::None => (target.dims().to_vec(), losses),
        Reduction::Sum => (Vec::new(), vec![losses.iter().sum()]),
        Reduction::Mean => (Vec::new(), vec![losses.iter().sum::<f64>() / total_weight]),
    };
    let dtype = if x.dtype().is_float() { x.dtype() } else { DataType::Float };
    from_reals(ctx, dtype, dims, &values)
}
