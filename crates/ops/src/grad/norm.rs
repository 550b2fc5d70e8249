//! Normalizations and softmax.

use midtread_graph::Tensor;
use midtread_kernels::grad::batch_norm::{Planes, combine, sums};

use crate::{
    attr,
    eval::OpError,
    grad::{GradCtx, GradDef, Reads},
    infer::normalize_axis,
    shape::product,
    softmax::normalized_run,
    typed::elements,
};

/// With the statistics that the node has: an affine function of each channel. Mean and variance are no parameters.
pub(super) static BATCH_NORMALIZATION: GradDef = GradDef {
    op_type: "BatchNormalization",
    domain: "",
    reads: Reads::Inputs,
    grad: |ctx| {
        let dims = ctx.dims(0)?;
        let channels = dims.get(1).copied().unwrap_or(1);
        let planes =
            Planes { n: dims[0], channels, len: product(dims.get(2..).unwrap_or_default()) };
        let eps = attr::float(ctx.node, "epsilon", 1e-5)?;
        let (x, scale, mean, var) = (ctx.x(0)?, ctx.x(1)?, ctx.x(3)?, ctx.x(4)?);
        let dy = elements::<f32>(ctx.dy()?)?;
        let inverse: Vec<f32> = var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
        let sums = sums(planes, &x, &dy, &mean);
        ctx.each(|i| match i {
            0 => ctx.like(0, |dx| {
                let factors: Vec<[f32; 3]> =
                    scale.iter().zip(&inverse).map(|(s, k)| [s * k, 0.0, 0.0]).collect();
                combine(planes, &x, &dy, &factors, dx);
                Ok(())
            }),
            1 | 2 => ctx.like(i, |dx| {
                for (c, dx) in dx.iter_mut().enumerate() {
                    *dx = if i == 1 { sums[c][1] * inverse[c] } else { sums[c][0] };
                }
                Ok(())
            }),
            _ => Ok(None),
        })
    },
};

/// Gradients of `scale * (x - mean) / sqrt(var + eps) + bias` over rows with statistics of their own. `param(row, i)`
/// is where the scale and the bias of element `i` of a row are. Without a mean (`centered` false) it is RMS's.
fn rows(
    ctx: &GradCtx<'_>,
    n: usize,
    centered: bool,
    param: impl Fn(usize, usize) -> usize,
) -> Result<Vec<Option<Tensor>>, OpError> {
    let eps = f64::from(attr::float(ctx.node, "epsilon", 1e-5)?);
    let (x, scale) = (ctx.x(0)?, ctx.x(1)?);
    let dy = elements::<f32>(ctx.dy()?)?;
    let (mut d_scale, mut d_bias) = (vec![0.0_f64; scale.len()], vec![0.0_f64; scale.len()]);
    let mut dx_all = vec![0.0_f32; x.len()];
    let n_rows = x.len().checked_div(n).unwrap_or(0);
    for row in 0..n_rows {
        let part = row * n..(row + 1) * n;
        let (x, dy, dx) = (&x[part.clone()], &dy[part.clone()], &mut dx_all[part]);
        let mean =
            if centered { x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64 } else { 0.0 };
        let var = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
        let inverse = 1.0 / (var + eps).sqrt();
        // Means of the normalized value's gradient, and of its product with the value.
        let (mut g_mean, mut gx_mean) = (0.0, 0.0);
        for i in 0..n {
            let at = param(row, i);
            let normalized = (f64::from(x[i]) - mean) * inverse;
            let g = f64::from(dy[i]) * f64::from(scale[at]);
            g_mean += g;
            gx_mean += g * normalized;
            d_scale[at] += f64::from(dy[i]) * normalized;
            d_bias[at] += f64::from(dy[i]);
        }
        (g_mean, gx_mean) = (if centered { g_mean / n as f64 } else { 0.0 }, gx_mean / n as f64);
        for i in 0..n {
            let normalized = (f64::from(x[i]) - mean) * inverse;
            let g = f64::from(dy[i]) * f64::from(scale[param(row, i)]);
            dx[i] = (inverse * (g - g_mean - normalized * gx_mean)) as f32;
        }
    }
    ctx.each(|i| match i {
        0 => ctx.like(0, |dx| {
            dx.copy_from_slice(&dx_all);
            Ok(())
        }),
        1 | 2 => ctx.like(i, |dx| {
            let from = if i == 1 { &d_scale } else { &d_bias };
            dx.iter_mut().zip(from).for_each(|(dx, from)| *dx = *from as f32);
            Ok(())
        }),
        _ => Ok(None),
    })
}

/// Over the dimensions from `axis` on.
fn trailing(ctx: &GradCtx<'_>, centered: bool) -> Result<Vec<Option<Tensor>>, OpError> {
    let dims = ctx.dims(0)?;
    let axis = normalize_axis(attr::int(ctx.node, "axis", -1)?, dims.len())?;
    let n = product(&dims[axis..]);
    let n_params = product(ctx.dims(1)?);
    if n_params != n && n_params != 1 {
        return Err(OpError::Unsupported("a gradient of a scale that is repeated".into()));
    }
    rows(ctx, n, centered, |_, i| i % n_params.max(1))
}

pub(super) static LAYER_NORMALIZATION: GradDef = GradDef {
    op_type: "LayerNormalization",
    domain: "",
    reads: Reads::Inputs,
    grad: |ctx| trailing(ctx, true),
};

pub(super) static RMS_NORMALIZATION: GradDef = GradDef {
    op_type: "RMSNormalization",
    domain: "",
    reads: Reads::Inputs,
    grad: |ctx| trailing(ctx, false),
};

pub(super) static INSTANCE_NORMALIZATION: GradDef = GradDef {
    op_type: "InstanceNormalization",
    domain: "",
    reads: Reads::Inputs,
    grad: |ctx| {
        let dims = ctx.dims(0)?;
        rows(ctx, product(&dims[2..]), true, |row, _| row % dims[1])
    },
};

/// Version 18 has a scale for each group, version 21 one for each channel.
pub(super) static GROUP_NORMALIZATION: GradDef = GradDef {
    op_type: "GroupNormalization",
    domain: "",
    reads: Reads::Inputs,
    grad: |ctx| {
        let dims = ctx.dims(0)?;
        let groups = attr::size(ctx.node, "num_groups", 1)?.max(1);
        let (in_group, plane) = (dims[1] / groups, product(&dims[2..]));
        let per_channel = 21 <= ctx.opset;
        rows(ctx, in_group * plane, true, |row, i| {
            let group = row % groups;
            if per_channel { group * in_group + i / plane.max(1) } else { group }
        })
    },
};

/// Calls `f` with the output, its gradient and the input's gradient of each group of elements.
fn groups(
    ctx: &GradCtx<'_>,
    f: impl Fn(&[f32], &[f32], &mut [f32]),
) -> Result<Vec<Option<Tensor>>, OpError> {
    let dims = ctx.dims(0)?;
    let (n, inner) = normalized_run(ctx.node, ctx.opset, dims)?;
    let (y, dy) = (ctx.y()?, elements::<f32>(ctx.dy()?)?);
    ctx.each(|_| {
        ctx.like(0, |dx| {
            let mut buffers = [vec![0.0; n], vec![0.0; n], vec![0.0; n]];
            let n_groups = y.len().checked_div(n).unwrap_or(0);
            for group in 0..n_groups {
                let start = group / inner * n * inner + group % inner;
                if inner == 1 {
                    let part = start..start + n;
                    f(&y[part.clone()], &dy[part.clone()], &mut dx[part]);
                    continue;
                }
                let [ys, dys, dxs] = &mut buffers;
                for i in 0..n {
                    (ys[i], dys[i]) = (y[start + i * inner], dy[start + i * inner]);
                }
                f(ys, dys, dxs);
                for i in 0..n {
                    dx[start + i * inner] = dxs[i];
                }
            }
            Ok(())
        })
    })
}

pub(super) static SOFTMAX: GradDef = GradDef {
    op_type: "Softmax",
    domain: "",
    reads: Reads::Outputs,
    grad: |ctx| {
        groups(ctx, |y, dy, dx| {
            let dot: f64 = y.iter().zip(dy).map(|(&y, &dy)| f64::from(y) * f64::from(dy)).sum();
            for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
                *dx = y * (dy - dot as f32);
            }
        })
    },
};

pub(super) static LOG_SOFTMAX: GradDef = GradDef {
    op_type: "LogSoftmax",
    domain: "",
    reads: Reads::Outputs,
    grad: |ctx| {
        groups(ctx, |y, dy, dx| {
            let sum: f64 = dy.iter().map(|&dy| f64::from(dy)).sum();
            for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
                *dx = dy - y.exp() * sum as f32;
            }
        })
    },
};
