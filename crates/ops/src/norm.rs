//! Normalizations: batch, layer, instance, group, RMS, local response, and to unit length.

use midtread_graph::{DataType, Element, Tensor};
use midtread_kernels::norm as kernel;

use crate::{
    attr,
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    infer::{InferCtx, normalize_axis},
    shape::product,
    sym::SymDim,
    typed::{by_type, check_type, elements, from_reals, in_f32, reals},
};

const ROLE: Role = Role::Float("its statistics need float32");

/// A float type: statistics are `f64` whichever it is.
trait Real: Element + Into<f64> + std::ops::Add<Output = Self> + std::ops::Mul<Output = Self> {
    fn of(x: f64) -> Self;
}

impl Real for f32 {
    fn of(x: f64) -> Self {
        x as Self
    }
}

impl Real for f64 {
    fn of(x: f64) -> Self {
        x
    }
}

/// The function for the first input's type.
macro_rules! by_real {
    ($ctx:expr, $args:expr, $f:ident) => {
        by_type!($args.required(0)?.dtype(), T in [f32, f64] => $f::<T>($ctx, $args))
    };
}

/// ONNX BatchNormalization 1, 6 (both have `is_test`), 7, 9, 14 and 15 (`training_mode`).
///
/// With `training_mode` the statistics are the input's, and the other outputs the running ones, updated.
pub(crate) static BATCH_NORMALIZATION: OpDef = OpDef {
    op_type: "BatchNormalization",
    domain: "",
    versions: &[1, 6, 7, 9, 14, 15],
    attrs: &["consumed_inputs", "epsilon", "is_test", "momentum", "spatial", "training_mode"],
    infer: |ctx| {
        same_as_first(ctx)?;
        for i in [1, 2] {
            ctx.set(i, ctx.elem(2 + i), ctx.dims(2 + i).map(<[_]>::to_vec));
        }
        Ok(())
    },
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
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, args| by_real!(ctx, args, instance_norm))
    }),
    role: ROLE,
};

/// ONNX GroupNormalization 21 (whose scale and bias are per channel).
pub(crate) static GROUP_NORMALIZATION: OpDef = OpDef {
    op_type: "GroupNormalization",
    domain: "",
    versions: &[21],
    attrs: &["epsilon", "num_groups", "stash_type"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, |ctx, args| by_real!(ctx, args, group_norm))),
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
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, |ctx, args| by_real!(ctx, args, rms_norm))),
    role: ROLE,
};

/// ONNX LpNormalization 1 and 22.
pub(crate) static LP_NORMALIZATION: OpDef = OpDef {
    op_type: "LpNormalization",
    domain: "",
    versions: &[1, 22],
    attrs: &["axis", "p"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, |ctx, args| by_real!(ctx, args, lp_norm))),
    role: ROLE,
};

/// ONNX LRN 1 and 13.
pub(crate) static LRN: OpDef = OpDef {
    op_type: "LRN",
    domain: "",
    versions: &[1, 13],
    attrs: &["alpha", "beta", "bias", "size"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, |ctx, args| by_real!(ctx, args, lrn))),
    role: ROLE,
};

/// The output has the type and the sizes of the first input.
pub(crate) fn same_as_first(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    ctx.set(0, ctx.elem(0), ctx.dims(0).map(<[_]>::to_vec));
    Ok(())
}

/// The parameter `i`, one element for each of `n` channels.
fn per_channel<T: Element>(
    args: &Args,
    i: usize,
    n: usize,
) -> Result<std::borrow::Cow<'_, [T]>, OpError> {
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
        return batch_norm_training(ctx, &args);
    }
    if ctx.opset < 7 && !attr::flag(ctx.node, "is_test", false)? {
        return Err(OpError::Unsupported("`is_test` 0".to_owned()));
    }
    if ctx.opset < 14 && 1 < ctx.node.outputs.iter().flatten().count() {
        return Err(OpError::Unsupported("the outputs of training".to_owned()));
    }
    if !attr::flag(ctx.node, "spatial", true)? {
        return Err(OpError::Unsupported("`spatial` 0".to_owned()));
    }
    let eps = attr::float(ctx.node, "epsilon", 1e-5)?;
    let x = args.take(0)?;
    let channels = x.dims().get(1).copied().unwrap_or(1);
    let plane = product(x.dims().get(2..).unwrap_or_default());
    if x.dtype() == DataType::Double {
        return batch_norm_f64(ctx, &args, x, plane, f64::from(eps));
    }
    let (scale, bias) = (per_channel(&args, 1, channels)?, per_channel(&args, 2, channels)?);
    let (mean, var) = (per_channel(&args, 3, channels)?, per_channel(&args, 4, channels)?);
    let src = elements::<f32>(&x)?;
    let y = ctx.pool.fill::<f32>(x.dims().to_vec(), |y| {
        kernel::batch_norm(&src, plane, [&scale, &bias, &mean, &var], eps, y);
        Ok(())
    })?;
    Ok(vec![y])
}

fn batch_norm_f64(
    ctx: &EvalCtx<'_>,
    args: &Args,
    mut x: Tensor,
    plane: usize,
    eps: f64,
) -> Result<Vec<Tensor>, OpError> {
    let channels = x.dims().get(1).copied().unwrap_or(1);
    let parameter = |i: usize| {
        let values = reals(args.required(i)?)?;
        if values.len() != channels {
            return Err(OpError::Invalid(format!("input {i} of {} elements", values.len())));
        }
        Ok(values)
    };
    let [scale, bias, mean, var] = [parameter(1)?, parameter(2)?, parameter(3)?, parameter(4)?];
    for (i, plane) in own_of::<f64>(ctx, &mut x)?.chunks_exact_mut(plane.max(1)).enumerate() {
        let c = i % channels;
        let factor = scale[c] / (var[c] + eps).sqrt();
        plane.iter_mut().for_each(|e| *e = (*e - mean[c]) * factor + bias[c]);
    }
    Ok(vec![x])
}

fn batch_norm_training(ctx: &EvalCtx<'_>, args: &Args) -> Result<Vec<Tensor>, OpError> {
    let eps = f64::from(attr::float(ctx.node, "epsilon", 1e-5)?);
    let momentum = f64::from(attr::float(ctx.node, "momentum", 0.9)?);
    let x = args.required(0)?;
    let channels = x.dims().get(1).copied().unwrap_or(1);
    let plane = product(x.dims().get(2..).unwrap_or_default());
    let parameter = |i: usize| {
        let values = reals(args.required(i)?)?;
        if values.len() != channels {
            return Err(OpError::Invalid(format!(
                "input {i} has {} elements for {channels} channels",
                values.len()
            )));
        }
        Ok(values)
    };
    let [scale, bias, mut mean, mut var] =
        [parameter(1)?, parameter(2)?, parameter(3)?, parameter(4)?];
    let mut y = reals(x)?;
    let batch = x.len() / (channels * plane).max(1);
    let n = (batch * plane) as f64;
    for c in 0..channels {
        let at = |i: usize| (i / plane * channels + c) * plane + i % plane;
        let own_mean = (0..batch * plane).map(|i| y[at(i)]).sum::<f64>() / n;
        let own_var = (0..batch * plane).map(|i| (y[at(i)] - own_mean).powi(2)).sum::<f64>() / n;
        let factor = scale[c] / (own_var + eps).sqrt();
        (0..batch * plane).for_each(|i| y[at(i)] = (y[at(i)] - own_mean) * factor + bias[c]);
        mean[c] = mean[c] * momentum + own_mean * (1.0 - momentum);
        var[c] = var[c] * momentum + own_var * (1.0 - momentum);
    }
    let running = |i: usize, values: &[f64]| {
        let like = args.required(i)?;
        from_reals(ctx, like.dtype(), like.dims().to_vec(), values)
    };
    Ok(vec![
        from_reals(ctx, x.dtype(), x.dims().to_vec(), &y)?,
        running(3, &mean)?,
        running(4, &var)?,
    ])
}

/// The elements of `x`, to be changed: in place where nobody else holds them, else in memory of the pool.
pub(crate) fn own<'a>(ctx: &EvalCtx<'_>, x: &'a mut Tensor) -> Result<&'a mut [f32], OpError> {
    own_of(ctx, x)
}

fn own_of<'a, T: Element>(ctx: &EvalCtx<'_>, x: &'a mut Tensor) -> Result<&'a mut [T], OpError> {
    check_type(x, T::DATA_TYPE)?;
    if !x.is_unique() {
        let mut copy = ctx.pool.tensor(x.dtype(), x.dims().to_vec())?;
        copy.bytes_mut().copy_from_slice(x.as_bytes());
        *x = copy;
    }
    Ok(x.to_mut()?)
}

/// Mean and variance, the sums in `f64`.
fn moments<T: Real>(x: &[T]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().map(|&e| e.into()).sum::<f64>() / n;
    let var = x.iter().map(|&e| (e.into() - mean).powi(2)).sum::<f64>() / n;
    (mean, var)
}

fn instance_norm<T: Real>(ctx: &EvalCtx<'_>, mut args: Args) -> Result<Vec<Tensor>, OpError> {
    let eps = attr::float(ctx.node, "epsilon", 1e-5)?;
    let mut x = args.take(0)?;
    if x.dims().len() < 3 {
        return Err(OpError::Invalid(format!("input of sizes {:?}", x.dims())));
    }
    let (channels, plane) = (x.dims()[1], product(&x.dims()[2..]));
    let (scale, bias) =
        (per_channel::<T>(&args, 1, channels)?, per_channel::<T>(&args, 2, channels)?);
    for (i, plane) in own_of::<T>(ctx, &mut x)?.chunks_exact_mut(plane.max(1)).enumerate() {
        let (mean, var) = moments(plane);
        let factor: f64 = Into::<f64>::into(scale[i % channels]) / (var + f64::from(eps)).sqrt();
        let shift: f64 = Into::<f64>::into(bias[i % channels]) - mean * factor;
        for e in plane {
            *e = T::of((*e).into() * factor + shift);
        }
    }
    Ok(vec![x])
}

fn group_norm<T: Real>(ctx: &EvalCtx<'_>, mut args: Args) -> Result<Vec<Tensor>, OpError> {
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
    let (scale, bias) =
        (per_channel::<T>(&args, 1, channels)?, per_channel::<T>(&args, 2, channels)?);
    let per_group = channels / groups;
    for (i, group) in
        own_of::<T>(ctx, &mut x)?.chunks_exact_mut((per_group * plane).max(1)).enumerate()
    {
        let (mean, var) = moments(group);
        let inv = 1.0 / (var + f64::from(eps)).sqrt();
        for (c, plane) in group.chunks_exact_mut(plane).enumerate() {
            let c = i % groups * per_group + c;
            for e in plane {
                *e = T::of(((*e).into() - mean) * inv) * scale[c] + bias[c];
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
    let x = args.take(0)?;
    let axis = normalize_axis(attr::int(ctx.node, "axis", -1)?, x.dims().len())?;
    let stats_dims: Vec<usize> =
        x.dims().iter().enumerate().map(|(i, &d)| if i < axis { d } else { 1 }).collect();
    let wants_stats = 1 < ctx.node.outputs.len();
    if x.dtype() == DataType::Double {
        let (y, [means, invs]) = layer_norm_of::<f64>(ctx, &args, x, axis, eps)?;
        let means = Tensor::from_slice(stats_dims.clone(), &means)?;
        let mut outputs = vec![y, means, Tensor::from_slice(stats_dims, &invs)?];
        outputs.truncate(ctx.node.outputs.len().max(1));
        return Ok(outputs);
    }
    if !wants_stats {
        let scale = trailing::<f32>(args.required(1)?, &x.dims()[axis..])?;
        let bias = args.get(2).map(|b| trailing::<f32>(b, &x.dims()[axis..])).transpose()?;
        let src = elements::<f32>(&x)?;
        let y = ctx.pool.fill::<f32>(x.dims().to_vec(), |y| {
            kernel::layer_norm(&src, &scale, bias.as_deref(), eps, y);
            Ok(())
        })?;
        return Ok(vec![y]);
    }
    let (y, [means, invs]) = layer_norm_of::<f32>(ctx, &args, x, axis, eps)?;
    let means = Tensor::from_slice(stats_dims.clone(), &means)?;
    Ok(vec![y, means, Tensor::from_slice(stats_dims, &invs)?])
}

/// The normalized rows, their means, and the inverses of their deviations.
fn layer_norm_of<T: Real>(
    ctx: &EvalCtx<'_>,
    args: &Args,
    mut x: Tensor,
    axis: usize,
    eps: f32,
) -> Result<(Tensor, [Vec<f32>; 2]), OpError> {
    let n = product(&x.dims()[axis..]);
    let scale = trailing::<T>(args.required(1)?, &x.dims()[axis..])?;
    let bias = args.get(2).map(|b| trailing::<T>(b, &x.dims()[axis..])).transpose()?;
    let (mut means, mut invs) = (Vec::new(), Vec::new());
    for row in own_of::<T>(ctx, &mut x)?.chunks_exact_mut(n.max(1)) {
        let (mean, var) = moments(row);
        let inv = 1.0 / (var + f64::from(eps)).sqrt();
        for (i, e) in row.iter_mut().enumerate() {
            let scaled = T::of(((*e).into() - mean) * inv) * scale[i];
            *e = bias.as_ref().map_or(scaled, |b| scaled + b[i]);
        }
        means.push(mean as f32);
        invs.push(inv as f32);
    }
    Ok((x, [means, invs]))
}

/// A parameter that broadcasts to the normalized dimensions, laid out over them.
fn trailing<T: Real>(tensor: &Tensor, dims: &[usize]) -> Result<Vec<T>, OpError> {
    // The parameters may be of another float type.
    let values: std::borrow::Cow<'_, [T]> = match tensor.dtype() == T::DATA_TYPE {
        true => elements(tensor)?,
        false => reals(tensor)?.into_iter().map(T::of).collect(),
    };
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
    let mut out = vec![T::of(0.0); product(dims)];
    view.copy(&values, &mut out);
    Ok(out)
}

fn rms_norm<T: Real>(ctx: &EvalCtx<'_>, mut args: Args) -> Result<Vec<Tensor>, OpError> {
    let eps = attr::float(ctx.node, "epsilon", 1e-5)?;
    let mut x = args.take(0)?;
    let axis = normalize_axis(attr::int(ctx.node, "axis", -1)?, x.dims().len())?;
    let n = product(&x.dims()[axis..]);
    let scale = trailing::<T>(args.required(1)?, &x.dims()[axis..])?;
    for row in own_of::<T>(ctx, &mut x)?.chunks_exact_mut(n.max(1)) {
        let square = row.iter().map(|&e| Into::<f64>::into(e).powi(2)).sum::<f64>() / n as f64;
        let inv = T::of(1.0 / (square + f64::from(eps)).sqrt());
        for (e, &scale) in row.iter_mut().zip(&scale) {
            *e = *e * inv * scale;
        }
    }
    Ok(vec![x])
}

fn lp_norm<T: Real>(ctx: &EvalCtx<'_>, mut args: Args) -> Result<Vec<Tensor>, OpError> {
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
    for block in own_of::<T>(ctx, &mut x)?.chunks_exact_mut(n * inner) {
        for i in 0..inner {
            let along = || (i..n * inner).step_by(inner);
            let value = |at: usize| -> f64 { block[at].into() };
            let norm: f64 = match p {
                1 => along().map(|at| value(at).abs()).sum(),
                _ => along().map(|at| value(at).powi(2)).sum::<f64>().sqrt(),
            };
            // A vector of zeros has no direction; it stays zero.
            if norm != 0.0 {
                along().for_each(|at| block[at] = T::of(block[at].into() / norm));
            }
        }
    }
    Ok(vec![x])
}

fn lrn<T: Real>(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let size = attr::size(ctx.node, "size", 0)?;
    let alpha = attr::float(ctx.node, "alpha", 1e-4)?;
    let beta = attr::float(ctx.node, "beta", 0.75)?;
    let bias = attr::float(ctx.node, "bias", 1.0)?;
    if x.dims().len() < 2 || size == 0 {
        return Err(OpError::Invalid(format!("`size` {size} over sizes {:?}", x.dims())));
    }
    let (channels, plane) = (x.dims()[1], product(&x.dims()[2..]));
    let src = elements::<T>(x)?;
    let y = ctx.pool.fill::<T>(x.dims().to_vec(), |y| {
        for (i, y) in y.iter_mut().enumerate() {
            let (n, c, at) = (i / (channels * plane), i / plane % channels, i % plane);
            let from = c.saturating_sub((size - 1) / 2);
            let to = (c + (size - 1).div_ceil(2) + 1).min(channels);
            let value = |c: usize| -> f64 { src[(n * channels + c) * plane + at].into() };
            let square: f64 = (from..to).map(|c| value(c).powi(2)).sum();
            let sum = f64::from(bias) + f64::from(alpha) / size as f64 * square;
            *y = T::of(value(c) / sum.powf(f64::from(beta)));
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
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, args| by_real!(ctx, args, mean_variance_norm))
    }),
    role: ROLE,
};

fn mean_variance_norm<T: Real>(ctx: &EvalCtx<'_>, mut args: Args) -> Result<Vec<Tensor>, OpError> {
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
    let src = own_of::<T>(ctx, &mut x)?;
    let (mut sums, mut squares) = (vec![0.0_f64; groups], vec![0.0_f64; groups]);
    let mut at = crate::shape::Odometer::new(&dims, &[&steps]);
    for &e in &*src {
        sums[at.offsets[0] as usize] += e.into();
        at.advance();
    }
    for &e in &*src {
        let group = at.offsets[0] as usize;
        squares[group] += (e.into() - sums[group] / n).powi(2);
        at.advance();
    }
    for e in src {
        let group = at.offsets[0] as usize;
        *e = T::of(((*e).into() - sums[group] / n) / ((squares[group] / n).sqrt() + 1e-9));
        at.advance();
    }
    Ok(vec![x])
}
