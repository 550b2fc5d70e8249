//! Operators that ONNX Runtime's optimizer makes of several (`com.microsoft`, version 1), but attention.

use midtread_graph::{DataType, Node, Tensor};
use midtread_kernels::{
    elementwise::{BinaryOp, UnaryOp},
    norm as kernel,
};

use crate::{
    attr, binary, channels_last,
    conv::{CONV, infer_conv},
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    gather::in_bounds,
    infer::{InferCtx, normalize_axis},
    matmul::GEMM,
    norm::same_as_first,
    pool::MAX_POOL,
    shape::{broadcast, product},
    sym::SymDim,
    typed::{elements, in_f32, indices},
    unary::{self, NO_INTEGER_FORM},
};

const ROLE: Role = Role::Float("its statistics need float32");
const DOMAIN: &str = "com.microsoft";

/// `x + bias`, and then a function; the bias may be left out.
fn biased(ctx: &EvalCtx<'_>, mut args: Args, op: UnaryOp) -> Result<Vec<Tensor>, OpError> {
    let x = args.take(0)?;
    let x = match args.get(1) {
        Some(bias) => binary::kernel(ctx, &x, bias, BinaryOp::Add)?,
        None => x,
    };
    Ok(vec![unary::kernel(ctx, x, op)?])
}

/// `com.microsoft` BiasGelu: the exact form of a sum.
pub(crate) static BIAS_GELU: OpDef = OpDef {
    op_type: "BiasGelu",
    domain: DOMAIN,
    versions: &[1],
    attrs: &[],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, args| biased(ctx, args, UnaryOp::Gelu))
    }),
    role: NO_INTEGER_FORM,
};

/// `com.microsoft` FastGelu: the tanh form, of a sum where there is a bias.
pub(crate) static FAST_GELU: OpDef = OpDef {
    op_type: "FastGelu",
    domain: DOMAIN,
    versions: &[1],
    attrs: &[],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, args| biased(ctx, args, UnaryOp::GeluTanh))
    }),
    role: NO_INTEGER_FORM,
};

/// `x * sigmoid(alpha * x)`. `com.microsoft` QuickGelu.
pub(crate) static QUICK_GELU: OpDef = OpDef {
    op_type: "QuickGelu",
    domain: DOMAIN,
    versions: &[1],
    attrs: &["alpha"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| {
        let alpha = attr::float(ctx.node, "alpha", 1.702)?;
        in_f32(ctx, args, |ctx, mut args| {
            let x = args.take(0)?;
            Ok(vec![unary::map::<f32>(ctx, x, |x| x / (1.0 + (-alpha * x).exp()))?])
        })
    }),
    role: NO_INTEGER_FORM,
};

fn infer_skip(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let dims = ctx.dims(0).map(<[_]>::to_vec);
    let stats = dims
        .as_deref()
        .and_then(|dims| dims.split_last())
        .map(|(_, head)| [head, &[SymDim::known(1)]].concat());
    ctx.set(0, ctx.elem(0), dims.clone());
    ctx.set(1, Some(DataType::Float), stats.clone());
    ctx.set(2, Some(DataType::Float), stats);
    ctx.set(3, ctx.elem(0), dims);
    Ok(())
}

/// `x + skip + bias`.
fn skipped(
    ctx: &EvalCtx<'_>,
    x: &Tensor,
    skip: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, OpError> {
    if broadcast(&[x.dims(), skip.dims()])? != x.dims() {
        return Err(OpError::Invalid(format!("{:?} skips to {:?}", skip.dims(), x.dims())));
    }
    let sum = binary::kernel(ctx, x, skip, BinaryOp::Add)?;
    match bias {
        Some(bias) => binary::kernel(ctx, &sum, bias, BinaryOp::Add),
        None => Ok(sum),
    }
}

/// The normalized sum, and the sum itself where the fourth output is wanted. The statistics, which only training has,
/// are refused.
fn skip_outputs(ctx: &EvalCtx<'_>, y: Tensor, sum: Tensor) -> Result<Vec<Tensor>, OpError> {
    if ctx.node.outputs.iter().skip(1).take(2).any(Option::is_some) {
        return Err(OpError::Unsupported("the outputs `mean` and `inv_std_var`".to_owned()));
    }
    // The two between are not asked for.
    let mut outputs = vec![y, Tensor::scalar(0.0_f32), Tensor::scalar(0.0_f32), sum];
    outputs.truncate(ctx.node.outputs.len());
    Ok(outputs)
}

/// A parameter of `n` elements.
fn vector(args: &Args, i: usize, n: usize) -> Result<std::borrow::Cow<'_, [f32]>, OpError> {
    let tensor = args.required(i)?;
    if tensor.len() != n {
        return Err(OpError::Invalid(format!("input {i} of {} elements, not {n}", tensor.len())));
    }
    elements(tensor)
}

/// LayerNormalization of a sum. `com.microsoft` SkipLayerNormalization.
pub(crate) static SKIP_LAYER_NORMALIZATION: OpDef = OpDef {
    op_type: "SkipLayerNormalization",
    domain: DOMAIN,
    versions: &[1],
    attrs: &["epsilon"],
    infer: infer_skip,
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, args| {
            let eps = attr::float(ctx.node, "epsilon", 1e-12)?;
            let sum = skipped(ctx, args.required(0)?, args.required(1)?, args.get(4))?;
            let n = sum.dims().last().copied().unwrap_or(1);
            let gamma = vector(&args, 2, n)?;
            let beta = args.get(3).map(|_| vector(&args, 3, n)).transpose()?;
            let src = elements::<f32>(&sum)?;
            let y = ctx.pool.fill::<f32>(sum.dims().to_vec(), |y| {
                kernel::layer_norm(&src, &gamma, beta.as_deref(), eps, y);
                Ok(())
            })?;
            drop(src);
            skip_outputs(ctx, y, sum)
        })
    }),
    role: ROLE,
};

/// RMSNormalization of a sum. `com.microsoft` SkipSimplifiedLayerNormalization.
pub(crate) static SKIP_SIMPLIFIED_LAYER_NORMALIZATION: OpDef = OpDef {
    op_type: "SkipSimplifiedLayerNormalization",
    domain: DOMAIN,
    versions: &[1],
    attrs: &["epsilon"],
    infer: infer_skip,
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, args| {
            let eps = attr::float(ctx.node, "epsilon", 1e-12)?;
            let sum = skipped(ctx, args.required(0)?, args.required(1)?, args.get(3))?;
            let n = sum.dims().last().copied().unwrap_or(1);
            let gamma = vector(&args, 2, n)?;
            let src = elements::<f32>(&sum)?;
            let y = ctx.pool.fill::<f32>(sum.dims().to_vec(), |y| {
                let _ = rms_rows(&src, &gamma, eps, y);
                Ok(())
            })?;
            drop(src);
            skip_outputs(ctx, y, sum)
        })
    }),
    role: ROLE,
};

/// Rows divided by their root mean square, times a scale for each column; the factor of each row.
fn rms_rows(src: &[f32], gamma: &[f32], eps: f32, y: &mut [f32]) -> Vec<f32> {
    let n = gamma.len().max(1);
    let mut factors = Vec::with_capacity(src.len() / n);
    for (src, y) in src.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        let square = src.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n as f64;
        let factor = (1.0 / (square + f64::from(eps)).sqrt()) as f32;
        y.iter_mut().zip(src).zip(gamma).for_each(|((y, x), g)| *y = x * factor * g);
        factors.push(factor);
    }
    factors
}

/// RMSNormalization before it was standard: in the default domain, but ONNX Runtime's own.
pub(crate) static SIMPLIFIED_LAYER_NORMALIZATION: OpDef = OpDef {
    op_type: "SimplifiedLayerNormalization",
    domain: "",
    versions: &[1],
    attrs: &["axis", "epsilon", "stash_type"],
    infer: |ctx| {
        same_as_first(ctx)?;
        let axis = attr::int(ctx.node, "axis", -1)?;
        let stats = match ctx.dims(0) {
            Some(dims) => {
                let axis = normalize_axis(axis, dims.len())?;
                let rest = vec![SymDim::known(1); dims.len() - axis];
                Some([&dims[..axis], &rest].concat())
            }
            None => None,
        };
        ctx.set(1, Some(DataType::Float), stats);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, args| {
            let eps = attr::float(ctx.node, "epsilon", 1e-5)?;
            let x = args.required(0)?;
            let axis = normalize_axis(attr::int(ctx.node, "axis", -1)?, x.dims().len())?;
            let gamma = vector(&args, 1, product(&x.dims()[axis..]))?;
            let src = elements::<f32>(x)?;
            let mut factors = Vec::new();
            let y = ctx.pool.fill::<f32>(x.dims().to_vec(), |y| {
                factors = rms_rows(&src, &gamma, eps, y);
                Ok(())
            })?;
            let mut dims = x.dims().to_vec();
            dims[axis..].fill(1);
            Ok(vec![y, Tensor::from_slice(dims, &factors)?])
        })
    }),
    role: ROLE,
};

/// The embeddings of words, positions and segments, added and normalized. `com.microsoft` EmbedLayerNormalization.
pub(crate) static EMBED_LAYER_NORMALIZATION: OpDef = OpDef {
    op_type: "EmbedLayerNormalization",
    domain: DOMAIN,
    versions: &[1],
    attrs: &["epsilon", "mask_index_type"],
    infer: |ctx| {
        let hidden = ctx.dims(2).and_then(|d| d.get(1)).cloned().unwrap_or(SymDim::Unknown);
        let dims = ctx.dims(0).map(|ids| [ids, &[hidden]].concat());
        let batch = ctx.dims(0).and_then(|d| d.first()).cloned();
        ctx.set(0, ctx.elem(2), dims.clone());
        ctx.set(1, Some(DataType::Int32), batch.map(|b| vec![b]));
        ctx.set(2, ctx.elem(2), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, |ctx, args| embed(ctx, &args))),
    role: Role::Float("it looks up and normalizes"),
};

fn embed(ctx: &EvalCtx<'_>, args: &Args) -> Result<Vec<Tensor>, OpError> {
    let eps = attr::float(ctx.node, "epsilon", 1e-12)?;
    let ids = args.required(0)?;
    let &[batch, len] = ids.dims() else {
        return Err(OpError::Invalid(format!("words of sizes {:?}", ids.dims())));
    };
    let hidden = args.required(2)?.dims().last().copied().unwrap_or(0);
    // Rows of a table, one for each word.
    let mut sum = vec![0.0_f32; batch * len * hidden];
    let mut add = |table: &Tensor, at: &[i64]| -> Result<(), OpError> {
        let &[rows, columns] = table.dims() else {
            return Err(OpError::Invalid(format!("a table of sizes {:?}", table.dims())));
        };
        if columns != hidden || at.len() != batch * len {
            return Err(OpError::Invalid(format!("{} rows of a table of {columns}", at.len())));
        }
        let values = elements::<f32>(table)?;
        let at = in_bounds(at, rows)?;
        for (sum, at) in sum.chunks_exact_mut(hidden.max(1)).zip(at) {
            let row = &values[at * hidden..][..hidden];
            sum.iter_mut().zip(row).for_each(|(s, e)| *s += e);
        }
        Ok(())
    };
    add(args.required(2)?, &indices(ids)?)?;
    let positions = match args.get(8).map(indices).transpose()? {
        Some(at) if at.len() == len => at.repeat(batch),
        Some(at) => at,
        None => (0..batch * len).map(|i| (i % len) as i64).collect(),
    };
    add(args.required(3)?, &positions)?;
    if let (Some(segments), Some(table)) = (args.get(1), args.get(4)) {
        add(table, &indices(segments)?)?;
    }
    let (gamma, beta) = (vector(args, 5, hidden)?, vector(args, 6, hidden)?);
    let dims = vec![batch, len, hidden];
    let y = ctx.pool.fill::<f32>(dims.clone(), |y| {
        kernel::layer_norm(&sum, &gamma, Some(&beta), eps, y);
        Ok(())
    })?;
    // How many words there are, counted from the mask.
    let counts = match args.get(7).map(indices).transpose()? {
        Some(mask) if mask.len() == batch * len => {
            mask.chunks_exact(len.max(1)).map(|row| row.iter().sum::<i64>() as i32).collect()
        }
        Some(mask) => return Err(OpError::Invalid(format!("a mask of {} elements", mask.len()))),
        None => vec![0; batch],
    };
    Ok(vec![y, Tensor::vector(&counts), Tensor::from_slice(dims, &sum)?])
}

/// The function in the attribute `activation`, if there is one.
fn activated(ctx: &EvalCtx<'_>, y: Tensor, params: [f32; 2]) -> Result<Tensor, OpError> {
    let [alpha, beta] = params;
    let f: &dyn Fn(f32) -> f32 = match attr::string(ctx.node, "activation", "")? {
        "" => return Ok(y),
        "Relu" => &|x| x.max(0.0),
        "Tanh" => &f32::tanh,
        "Sigmoid" => &|x| 1.0 / (1.0 + (-x).exp()),
        "LeakyRelu" => &|x| if x < 0.0 { alpha * x } else { x },
        "Clip" => &|x| x.max(alpha).min(beta),
        "HardSigmoid" => &|x| (alpha * x + beta).clamp(0.0, 1.0),
        other => return Err(OpError::Unsupported(format!("`activation` {other}"))),
    };
    unary::map(ctx, y, f)
}

/// A node of the standard operator that this one was made of.
fn plain(node: &Node, op_type: &str, without: &[&str]) -> Node {
    let mut plain = node.clone();
    plain.op_type = op_type.to_owned();
    plain.domain = String::new();
    plain.attrs.retain(|attr| !without.contains(&attr.name.as_str()));
    plain
}

/// Conv, a tensor added to it, and a function. `com.microsoft` FusedConv.
pub(crate) static FUSED_CONV: OpDef = OpDef {
    op_type: "FusedConv",
    domain: DOMAIN,
    versions: &[1],
    attrs: &[
        "activation",
        "activation_params",
        "auto_pad",
        "dilations",
        "group",
        "kernel_shape",
        "pads",
        "strides",
    ],
    infer: |ctx| infer_conv(ctx, ctx.elem(0)),
    eval: Eval::Tensors(|ctx, mut args| {
        let added = args.0.get_mut(3).and_then(Option::take);
        args.0.truncate(3);
        let node = plain(ctx.node, "Conv", &["activation", "activation_params"]);
        let conv = EvalCtx { node: &node, opset: 11, pool: ctx.pool };
        let mut y = CONV.evaluate_tensors(&conv, args)?.remove(0);
        if let Some(added) = added {
            y = binary::kernel(ctx, &y, &added, BinaryOp::Add)?;
        }
        let params = match ctx.node.attr("activation_params") {
            Some(midtread_graph::AttrValue::Floats(params)) => params.as_slice(),
            _ => &[],
        };
        let param = |i: usize, default| params.get(i).copied().unwrap_or(default);
        Ok(vec![activated(ctx, y, [param(0, 0.01), param(1, 0.0)])?])
    }),
    role: Role::Float("it was not taken apart"),
};

/// Gemm and a function. `com.microsoft` FusedGemm.
pub(crate) static FUSED_GEMM: OpDef = OpDef {
    op_type: "FusedGemm",
    domain: DOMAIN,
    versions: &[1],
    attrs: &[
        "activation",
        "activation_alpha",
        "activation_beta",
        "activation_gamma",
        "alpha",
        "beta",
        "transA",
        "transB",
    ],
    infer: |ctx| (GEMM.infer)(ctx),
    eval: Eval::Tensors(|ctx, args| {
        let own = ["activation", "activation_alpha", "activation_beta", "activation_gamma"];
        let node = plain(ctx.node, "Gemm", &own);
        let gemm = EvalCtx { node: &node, opset: 11, pool: ctx.pool };
        let y = GEMM.evaluate_tensors(&gemm, args)?.remove(0);
        let alpha = attr::float(ctx.node, "activation_alpha", 0.01)?;
        let beta = attr::float(ctx.node, "activation_beta", 0.0)?;
        Ok(vec![activated(ctx, y, [alpha, beta])?])
    }),
    role: Role::Float("it was not taken apart"),
};

/// MaxPool with the channels last. `com.microsoft` NhwcMaxPool.
pub(crate) static NHWC_MAX_POOL: OpDef = OpDef {
    op_type: "NhwcMaxPool",
    domain: DOMAIN,
    versions: &[1],
    attrs: &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides"],
    infer: |ctx| channels_last::infer(ctx, 12, MAX_POOL.infer),
    eval: Eval::Tensors(|ctx, args| {
        channels_last::eval(ctx, args, |ctx, args| {
            let node = plain(ctx.node, "MaxPool", &[]);
            let pool = EvalCtx { node: &node, opset: 12, pool: ctx.pool };
            MAX_POOL.evaluate_tensors(&pool, args)
        })
    }),
    role: crate::layout::MOVES,
};
