//! Attention whose scores and weights the model's own graphs change.

use midtread_graph::{DataType, Node, Tensor};

use crate::{
    attr,
    cast::cast,
    def::{Eval, Inputs, OpDef, Outputs, Role},
    eval::{Args, Bodies, Datum, EvalCtx, OpError},
    matmul::MATMUL,
    quantize::type_attr,
    shape::{View, moved, strides},
    softmax::SOFTMAX,
    typed::{from_reals, reals, unsupported_type},
};

/// ONNX FlexAttention 1, a preview: `softmax(score_mod(scale * Q K'))`, then `prob_mod`, times V.
pub(crate) static FLEX_ATTENTION: OpDef = OpDef {
    op_type: "FlexAttention",
    domain: "ai.onnx.preview",
    versions: &[1],
    attrs: &["prob_mod", "scale", "score_mod", "softmax_precision"],
    infer: |ctx| {
        let dims = match (ctx.dims(0), ctx.dims(2)) {
            (Some([b, h, s, _]), Some([.., d])) => {
                Some(vec![b.clone(), h.clone(), s.clone(), d.clone()])
            }
            _ => None,
        };
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Bodies(flex_attention),
    role: Role::Float("its products were not quantized one by one"),
};

/// `(batch, heads, positions, size)` with every head `times` times, and with `turned` the last two dimensions exchanged.
fn repeated(ctx: &EvalCtx<'_>, x: &Tensor, times: usize, turned: bool) -> Result<Tensor, OpError> {
    let &[b, h, s, d] = x.dims() else {
        return Err(OpError::Invalid(format!("heads of sizes {:?}", x.dims())));
    };
    let own: Vec<isize> = strides(x.dims()).into_iter().map(|step| step as isize).collect();
    let (mut dims, mut steps) = (vec![b, h, times, s, d], vec![own[0], own[1], 0, own[2], own[3]]);
    if turned {
        dims.swap(3, 4);
        steps.swap(3, 4);
    }
    let y =
        moved(ctx, &[x], dims.clone(), &View { dims: dims.clone(), strides: steps, offset: 0 })?;
    Ok(y.reshaped(vec![b, h * times, dims[3], dims[4]])?)
}

fn flex_attention(ctx: &EvalCtx<'_>, inputs: Inputs, bodies: &dyn Bodies) -> Outputs {
    let tensors = inputs.into_iter().map(|x| x.map(Datum::into_tensor).transpose());
    let mut args = Args(tensors.collect::<Result<_, _>>()?);
    let (q, k, v) = (args.take(0)?, args.take(1)?, args.take(2)?);
    let dtype = q.dtype();
    let wide = match type_attr(ctx.node, "softmax_precision")? {
        Some(wide @ (DataType::Float | DataType::Double)) => wide,
        Some(other) => return Err(unsupported_type(other)),
        None if dtype == DataType::Double => DataType::Double,
        None => DataType::Float,
    };
    let (
        &[batch, heads, _, size],
        &[batch_2, kv_heads, n_keys, size_2],
        &[_, v_heads, n_values, _],
    ) = (q.dims(), k.dims(), v.dims())
    else {
        return Err(OpError::Invalid(format!("{:?} over {:?}", q.dims(), k.dims())));
    };
    let fits = (batch, size, kv_heads, n_keys) == (batch_2, size_2, v_heads, n_values)
        && kv_heads != 0
        && heads.is_multiple_of(kv_heads);
    if !fits {
        return Err(OpError::Invalid(format!("{:?} over {:?}", q.dims(), k.dims())));
    }
    let [q, k, v] = [cast(ctx, q, wide)?, cast(ctx, k, wide)?, cast(ctx, v, wide)?];
    let (k, v) =
        (repeated(ctx, &k, heads / kv_heads, true)?, repeated(ctx, &v, heads / kv_heads, false)?);
    let run = |op: &OpDef, args: Vec<Tensor>| -> Result<Tensor, OpError> {
        let node = Node::new(op.op_type, "", Vec::new(), Vec::new());
        let own = EvalCtx { node: &node, opset: 13, pool: ctx.pool };
        Ok(op.evaluate_tensors(&own, Args(args.into_iter().map(Some).collect()))?.remove(0))
    };
    let changed = |x: Tensor, name: &'static str| -> Result<Tensor, OpError> {
        if ctx.node.attr(name).is_none() {
            return Ok(x);
        }
        let dims = x.dims().to_vec();
        let mut outputs = bodies.run(name, vec![Datum::Tensor(x)])?;
        match outputs.pop().map(Datum::into_tensor).transpose()? {
            Some(y) if y.dims() == dims && y.dtype() == wide => Ok(y),
            y => Err(OpError::Invalid(format!("`{name}` makes {y:?} of {dims:?}"))),
        }
    };
    let scale = match attr::opt_float(ctx.node, "scale")? {
        Some(scale) => f64::from(scale),
        None => 1.0 / (size as f64).sqrt(),
    };
    let scores = run(&MATMUL, vec![q, k])?;
    let scaled: Vec<f64> = reals(&scores)?.into_iter().map(|s| s * scale).collect();
    let scores = from_reals(ctx, wide, scores.dims().to_vec(), &scaled)?;
    let weights = run(&SOFTMAX, vec![changed(scores, "score_mod")?])?;
    let y = run(&MATMUL, vec![changed(weights, "prob_mod")?, v])?;
    Ok(vec![Datum::Tensor(cast(ctx, y, dtype)?)])
}
