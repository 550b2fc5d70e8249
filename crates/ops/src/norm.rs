//! Normalizations: batch, layer, instance, group, RMS, local response, and to unit length.

use midtread_graph::Tensor;
use midtread_kernels::norm as kernel;

use crate::{
    attr,
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    infer::{InferCtx, normalize_axis},
    shape::product,
    sym::SymDim,
    typed::{check_type, elements, in_f32},
};

const ROLE: Role = Role::Float("its statistics need float32");

/// ONNX BatchNormalization 7, 9, 14 and 15, of a trained network.
pub(crate) static BATCH_NORMALIZATION: OpDef = OpDef {
    op_type: "BatchNormalization",
    domain: "",
    versions: &[7, 9, 14, 15],
    attrs: &["epsilon", "momentum", "spatial", "training_mode"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, batch_norm)),
    role: Role::Float("it was not folded into a convolution before it"),
};

/// ONNX InstanceNormalization 6 and 22.
pub(crate) static INSTANCE_NORMALIZATION: OpDef = OpDef {
    op_type: "InstanceNormalization",
    domain: "",
    versions: &[6, 22],
    attrs: &["epsilon"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, instance_norm)),
    role: ROLE,
};

/// ONNX GroupNormalization 21 (whose scale and bias are per channel).
pub(crate) static GROUP_NORMALIZATION: OpDef = OpDef {
    op_type: "GroupNormalization",
    domain: "",
    versions: &[21],
    attrs: &["epsilon", "num_groups", "stash_type"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, group_norm)),
    role: ROLE,
};

/// ONNX LayerNormalization 17.
pub(crate) static LAYER_NORMALIZATION: OpDef = OpDef {
    op_type: "LayerNormalization",
    domain: "",
    versions: &[17],
    attrs: &["axis", "epsilon", "stash_type"],
    infer: infer_layer_norm,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, layer_norm)),
    role: ROLE,
};

/// ONNX RMSNormalization 23.
pub(crate) static RMS_NORMALIZATION: OpDef = OpDef {
    op_type: "RMSNormalization",
    domain: "",
    versions: &[23],
    attrs: &["axis", "epsilon", "stash_type"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, rms_norm)),
    role: ROLE,
};

/// ONNX LpNormalization 1 and 22.
pub(crate) static LP_NORMALIZATION: OpDef = OpDef {
    op_type: "LpNormalization",
    domain: "",
    versions: &[1, 22],
    attrs: &["axis", "p"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, lp_norm)),
    role: ROLE,
};

/// ONNX LRN 1 and 13.
pub(crate) static LRN: OpDef = OpDef {
    op_type: "LRN",
    domain: "",
    versions: &[1, 13],
    attrs: &["alpha", "beta", "bias", "size"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, lrn)),
    role: ROLE,
};

/// The output has the type and the sizes of the first input.
pub(crate) fn same_as_first(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    ctx.set(0, ctx.elem(0), ctx.dims(0).map(<[_]>::to_vec));
    Ok(())
}

/// The parameter `i`, one element for each of `n` channels.
fn per_channel(args: &Args, i: usize, n: usize) -> Result<std::borrow::Cow<'_, [f32]>, OpError> {
    let tensor = args.required(i)?;
    if tensor.len() != n {
        return Err(OpError::Invalid(format!(
            "input {i} has {} elements for {n} channels",
            tensor.len()
        )));
    }
    elements(tensor)
}

fn batch_norm(ctx: &EvalCtx<'_>, mut args: Args) -> Result<Vec<Tensor>, OpError> {
    if attr::flag(ctx.node, "training_mode", false)? {
        return Err(OpError::Unsupported("`training_mode` 1".to_owned()));
    }
    if !attr::flag(ctx.node, "spatial", true)? {
        return Err(OpError::Unsupported("`spatial` 0".to_owned()));
    }
    let eps = attr::float(ctx.node, "epsilon", 1e-5)?;
    let x = args.take(0)?;
    let channels = x.dims().get(1).copied().unwrap_or(1);
    if let Some(double) =
        args.0.iter().flatten().find(|t| t.dtype() == midtread_graph::DataType::Double)
    {
        return Err(crate::typed::unsupported_type(double.dtype()));
    }
    let (scale, bias) = (per_channel(&args, 1, channels)?, per_channel(&args, 2, channels)?);
    let (mean, var) = (per_channel(&args, 3, channels)?, per_channel(&args, 4, channels)?);
    let plane = product(x.dims().get(2..).unwrap_or_default());
    let src = elements::<f32>(&x)?;
    let y = ctx.pool.fill::<f32>(x.dims().to_vec(), |y| {
        kernel::batch_norm(&src, plane, [&scale, &bias, &mean, &var], eps, y);
        Ok(())
    })?;
    Ok(vec![y])
}

/// The elements of `x`, to be changed: in place where nobody else holds them, else in memory of the pool.
pub(crate) fn own<'a>(ctx: &EvalCtx<'_>, x: &'a mut Tensor) -> Result<&'a mut [f32], OpError> {
    check_type(x, midtread_graph::DataType::Float)?;
    if !x.is_unique() {
        let mut copy = ctx.pool.tensor(x.dtype(), x.dims().to_vec())?;
        copy.bytes_mut().copy_from_slice(x.as_bytes());
        *x = copy;
    }
    Ok(x.to_mut()?)
}

/// Mean and variance, the sums in `f64`.
fn moments(x: &[f32]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().map(|&e| f64::from(e)).sum::<f64>() / n;
    let var = x.iter().map(|&e| (f64::from(e) - mean).powi(2)).sum::<f64>() / n;
    (mean, var)
}

fn instance_norm(ctx: &EvalCtx<'_>, mut args: Args) -> Result<Vec<Tensor>, OpError> {
    let eps = attr::float(ctx.node, "epsilon", 1e-5)?;
    let mut x = args.take(0)?;
    if x.dims().len() < 3 {
        return Err(OpError::Invalid(format!("input of sizes {:?}", x.dims())));
    }
    let (channels, plane) = (x.dims()[1], product(&x.dims()[2..]));
    let (scale, bias) = (per_channel(&args, 1, channels)?, per_channel(&args, 2, channels)?);
    for (i, plane) in own(ctx, &mut x)?.chunks_exact_mut(plane.max(1)).enumerate() {
        let (mean, var) = moments(plane);
        let factor = f64::from(scale[i % channels]) / (var + f64::from(eps)).sqrt();
        let shift = f64::from(bias[i % channels]) - mean * factor;
        for e in plane {
            *e = (f64::from(*e) * factor + shift) as f32;
        }
    }
    Ok(vec![x])
}

fn group_norm(ctx: &EvalCtx<'_>, mut args: Args) -> Result<Vec<Tensor>, OpError> {
    let eps = attr::float(ctx.node, "epsilon", 1e-5)?;
    let groups = attr::size(ctx.node, "num_groups", 0)?;
    let mut x = args.take(0)?;
    if x.dims().len() < 2 || groups == 0 || x.dims()[1] % groups != 0 {
        return Err(OpError::Invalid(format!(
            "{groups} groups of an input of sizes {:?}",
            x.dims()
        )));
    }
    let (channels, plane) = (x.dims()[1], product(&x.dims()[2..]));
    let (scale, bias) = (per_channel(&args, 1, channels)?, per_channel(&args, 2, channels)?);
    let per_group = channels / groups;
    for (i, group) in own(ctx, &mut x)?.chunks_exact_mut((per_group * plane).max(1)).enumerate() {
        let (mean, var) = moments(group);
        let inv = 1.0 / (var + f64::from(eps)).sqrt();
        for (c, plane) in group.chunks_exact_mut(plane).enumerate() {
            let c = i % groups * per_group + c;
            for e in plane {
                *e = ((f64::from(*e) - mean) * inv) as f32 * scale[c] + bias[c];
            }
        }
    }
    Ok(vec![x])
}

fn infer_layer_norm(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    same_as_first(ctx)?;
    let stash = attr::int(ctx.node, "stash_type", 1)?;
    let stash = i32::try_from(stash).ok().and_then(midtread_graph::DataType::from_onnx);
    let stats = match ctx.dims(0) {
        Some(dims) => {
            let axis = normalize_axis(attr::int(ctx.node, "axis", -1)?, dims.len())?;
            let one =
                |(i, d): (usize, &SymDim)| if i < axis { d.clone() } else { SymDim::known(1) };
            Some(dims.iter().enumerate().map(one).collect::<Vec<_>>())
        }
        None => None,
    };
    ctx.set(1, stash, stats.clone());
    ctx.set(2, stash, stats);
    Ok(())
}

fn layer_norm(ctx: &EvalCtx<'_>, mut args: Args) -> Result<Vec<Tensor>, OpError> {
    let eps = attr::float(ctx.node, "epsilon", 1e-5)?;
    let mut x = args.take(0)?;
    let axis = normalize_axis(attr::int(ctx.node, "axis", -1)?, x.dims().len())?;
    let n = product(&x.dims()[axis..]);
    let scale = trailing(args.required(1)?, &x.dims()[axis..])?;
    let bias = args.get(2).map(|b| trailing(b, &x.dims()[axis..])).transpose()?;
    let stats_dims: Vec<usize> =
        x.dims().iter().enumerate().map(|(i, &d)| if i < axis { d } else { 1 }).collect();
    let wants_stats = 1 < ctx.node.outputs.len();
    if !wants_stats {
        let src = elements::<f32>(&x)?;
        let y = ctx.pool.fill::<f32>(x.dims().to_vec(), |y| {
            kernel::layer_norm(&src, &scale, bias.as_deref(), eps, y);
            Ok(())
        })?;
        return Ok(vec![y]);
    }
    let (mut means, mut invs) = (Vec::new(), Vec::new());
    for row in own(ctx, &mut x)?.chunks_exact_mut(n.max(1)) {
        let (mean, var) = moments(row);
        let inv = 1.0 / (var + f64::from(eps)).sqrt();
        for (i, e) in row.iter_mut().enumerate() {
            *e = ((f64::from(*e) - mean) * inv) as f32 * scale[i]
                + bias.as_ref().map_or(0.0, |b| b[i]);
        }
        means.push(mean as f32);
        invs.push(inv as f32);
    }
    let means = Tensor::from_slice(stats_dims.clone(), &means)?;
    Ok(vec![x, means, Tensor::from_slice(stats_dims, &invs)?])
}

/// A parameter that broadcasts to the normalized dimensions, laid out over them.
fn trailing(tensor: &Tensor, dims: &[usize]) -> Result<Vec<f32>, OpError> {
    let values = elements::<f32>(tensor)?;
    // Sizes of 1 in front of the normalized dimensions change nothing.
    let skip = tensor.dims().len().saturating_sub(dims.len());
    let (front, own) = tensor.dims().split_at(skip);
    if front.iter().any(|&d| d != 1) || crate::shape::broadcast(&[own, dims])? != dims {
        return Err(OpError::Unsupported(format!(
            "a scale or bias of sizes {:?} over {dims:?}",
            tensor.dims()
        )));
    }
    let view = crate::shape::View {
        dims: dims.to_vec(),
        strides: crate::shape::broadcast_strides(own, dims),
        offset: 0,
    };
    let mut out = vec![0.0; product(dims)];
    view.copy(&values, &mut out);
    Ok(out)
}

fn rms_norm(ctx: &EvalCtx<'_>, mut args: Args) -> Result<Vec<Tensor>, OpError> {
    let eps = attr::float(ctx.node, "epsilon", 1e-5)?;
    let mut x = args.take(0)?;
    let axis = normalize_axis(attr::int(ctx.node, "axis", -1)?, x.dims().len())?;
    let n = product(&x.dims()[axis..]);
    let scale = trailing(args.required(1)?, &x.dims()[axis..])?;
    for row in own(ctx, &mut x)?.chunks_exact_mut(n.max(1)) {
        let square = row.iter().map(|&e| f64::from(e).powi(2)).sum::<f64>() / n as f64;
        let inv = (1.0 / (square + f64::from(eps)).sqrt()) as f32;
        for (e, scale) in row.iter_mut().zip(&scale) {
            *e = *e * inv * scale;
        }
    }
    Ok(vec![x])
}

fn lp_norm(ctx: &EvalCtx<'_>, mut args: Args) -> Result<Vec<Tensor>, OpError> {
    let p = attr::int(ctx.node, "p", 2)?;
    if !matches!(p, 1 | 2) {
        return Err(OpError::Invalid(format!("`p` is {p}")));
    }
    let mut x = args.take(0)?;
    let axis = normalize_axis(attr::int(ctx.node, "axis", -1)?, x.dims().len())?;
    let (n, inner) = (x.dims()[axis], product(&x.dims()[axis + 1..]));
    if x.is_empty() {
        return Ok(vec![x]);
    }
    for block in own(ctx, &mut x)?.chunks_exact_mut(n * inner) {
        for i in 0..inner {
            let along = || (i..n * inner).step_by(inner);
            let norm: f32 = match p {
                1 => along().map(|at| block[at].abs()).sum(),
                _ => along().map(|at| block[at] * block[at]).sum::<f32>().sqrt(),
            };
            // A vector of zeros has no direction; it stays zero.
            if norm != 0.0 {
                along().for_each(|at| block[at] /= norm);
            }
        }
    }
    Ok(vec![x])
}

fn lrn(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let size = attr::size(ctx.node, "size", 0)?;
    let alpha = attr::float(ctx.node, "alpha", 1e-4)?;
    let beta = attr::float(ctx.node, "beta", 0.75)?;
    let bias = attr::float(ctx.node, "bias", 1.0)?;
    if x.dims().len() < 2 || size == 0 {
        return Err(OpError::Invalid(format!("`size` {size} over sizes {:?}", x.dims())));
    }
    let (channels, plane) = (x.dims()[1], product(&x.dims()[2..]));
    let src = elements::<f32>(x)?;
    let y = ctx.pool.fill::<f32>(x.dims().to_vec(), |y| {
        for (i, y) in y.iter_mut().enumerate() {
            let (n, c, at) = (i / (channels * plane), i / plane % channels, i % plane);
            let from = c.saturating_sub((size - 1) / 2);
            let to = (c + (size - 1).div_ceil(2) + 1).min(channels);
            let square: f32 =
                (from..to).map(|c| src[(n * channels + c) * plane + at].powi(2)).sum();
            *y = src[i] / (bias + alpha / size as f32 * square).powf(beta);
        }
        Ok(())
    })?;
    Ok(vec![y])
}

/// ONNX MeanVarianceNormalization 9 and 13.
pub(crate) static MEAN_VARIANCE_NORMALIZATION: OpDef = OpDef {
    op_type: "MeanVarianceNormalization",
    domain: "",
    versions: &[9, 13],
    attrs: &["axes"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, mean_variance_norm)),
    role: ROLE,
};

fn mean_variance_norm(ctx: &EvalCtx<'_>, mut args: Args) -> Result<Vec<Tensor>, OpError> {
    let mut x = args.take(0)?;
    let axes = attr::ints(ctx.node, "axes")?.unwrap_or(&[0, 2, 3]);
    let axes = crate::shape::normalize_axes(axes, x.dims().len())?;
    // Where the sums of an element are: positions without the axes that are summed over.
    let kept: Vec<usize> =
        x.dims().iter().enumerate().map(|(d, &n)| if axes.contains(&d) { 1 } else { n }).collect();
    let steps = crate::shape::broadcast_strides(&kept, x.dims());
    let groups = product(&kept);
    let n = (x.len() / groups.max(1)) as f64;
    let dims = x.dims().to_vec();
    let src = own(ctx, &mut x)?;
    let (mut sums, mut squares) = (vec![0.0_f64; groups], vec![0.0_f64; groups]);
    let mut at = crate::shape::Odometer::new(&dims, &[&steps]);
    for &e in &*src {
        sums[at.offsets[0] as usize] += f64::from(e);
        at.advance();
    }
    for &e in &*src {
        let group = at.offsets[0] as usize;
        squares[group] += (f64::from(e) - sums[group] / n).powi(2);
        at.advance();
    }
    for e in src {
        let group = at.offsets[0] as usize;
        *e = ((f64::from(*e) - sums[group] / n) / ((squares[group] / n).sqrt() + 1e-9)) as f32;
        at.advance();
    }
    Ok(vec![x])
}
