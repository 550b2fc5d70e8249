//! Convolutions and matrix products.

use midtread_graph::Tensor;
use midtread_kernels::{
    conv::{Conv2d, conv2d},
    gemm::{Epilogue, MatRef, gemm, gemm_batch},
    grad::{accumulate, batch_norm::Planes, batch_norm::sums, conv2d_input, conv2d_weights},
};

use crate::{
    attr,
    conv::{ConvSizes, transpose_sizes},
    einsum::gradient,
    eval::{EvalCtx, OpError},
    grad::{GradCtx, GradDef, Reads, sum_to},
    matmul::Product,
    typed::elements,
};

/// Of input, weights and bias.
pub(super) static CONV: GradDef = GradDef {
    op_type: "Conv",
    domain: "",
    reads: Reads::Inputs,
    grad: |ctx| {
        let conv = ConvSizes::read(ctx.node, ctx.dims(0)?, ctx.dims(1)?)?.to_2d()?;
        let conv =
            conv.ok_or_else(|| OpError::Unsupported("a gradient over three dimensions".into()))?;
        let dy = elements::<f32>(ctx.dy()?)?;
        ctx.each(|i| match i {
            0 => ctx.like(0, |dx| {
                conv2d_input(&conv, &ctx.x(1)?, &dy, dx);
                Ok(())
            }),
            1 => ctx.like(1, |dw| {
                conv2d_weights(&conv, &ctx.x(0)?, &dy, dw);
                Ok(())
            }),
            _ => of_bias(ctx, i, &dy),
        })
    },
};

/// The gradient of a transposed convolution is a convolution.
pub(super) static CONV_TRANSPOSE: GradDef = GradDef {
    op_type: "ConvTranspose",
    domain: "",
    reads: Reads::Inputs,
    grad: |ctx| {
        let adjoint: Conv2d = transpose_sizes(ctx.node, ctx.dims(0)?, ctx.dims(1)?)?;
        let dy = elements::<f32>(ctx.dy()?)?;
        ctx.each(|i| match i {
            0 => ctx.like(0, |dx| {
                conv2d(&adjoint, &dy, &ctx.x(1)?, &Epilogue::default(), dx);
                Ok(())
            }),
            1 => ctx.like(1, |dw| {
                conv2d_weights(&adjoint, &dy, &ctx.x(0)?, dw);
                Ok(())
            }),
            _ => of_bias(ctx, i, &dy),
        })
    },
};

/// Sums over images and positions.
fn of_bias(ctx: &GradCtx<'_>, i: usize, dy: &[f32]) -> Result<Option<Tensor>, OpError> {
    let dims = ctx.dy()?.dims();
    let planes = Planes { n: dims[0], channels: dims[1], len: dims[2..].iter().product() };
    ctx.like(i, |db| {
        let zeros = vec![0.0; planes.channels];
        let sums = sums(planes, dy, dy, &zeros);
        db.iter_mut().zip(sums).for_each(|(db, [sum, _])| *db = sum);
        Ok(())
    })
}

/// `alpha * A' * B' + beta * C`.
pub(super) static GEMM: GradDef = GradDef {
    op_type: "Gemm",
    domain: "",
    reads: Reads::Inputs,
    grad: |ctx| {
        let (turn_a, turn_b) =
            (attr::flag(ctx.node, "transA", false)?, attr::flag(ctx.node, "transB", false)?);
        let alpha = attr::float(ctx.node, "alpha", 1.0)?;
        let beta = attr::float(ctx.node, "beta", 1.0)?;
        let dy = ctx.dy()?;
        let &[m, n] = dy.dims() else { return Err(OpError::Invalid("no matrix".into())) };
        let grad = elements::<f32>(dy)?;
        let dy_matrix = MatRef::new(&grad, m, n);
        let epilogue = Epilogue { alpha, ..Epilogue::default() };
        let matrix = |dims: &[usize]| (dims[0], dims[1]);
        ctx.each(|i| match i {
            0 => {
                let (rows, cols) = matrix(ctx.dims(1)?);
                let b = ctx.x(1)?;
                let b = MatRef::new(&b, rows, cols);
                let b = if turn_b { b.t() } else { b };
                ctx.like(0, |dx| {
                    // Of A' it is dy * B'^T; of A, where A' is its transpose, the transpose of that.
                    let (left, right) =
                        if turn_a { (b, dy_matrix.t()) } else { (dy_matrix, b.t()) };
                    gemm(left, right, dx, &epilogue);
                    Ok(())
                })
            }
            1 => {
                let (rows, cols) = matrix(ctx.dims(0)?);
                let a = ctx.x(0)?;
                let a = MatRef::new(&a, rows, cols);
                let a = if turn_a { a.t() } else { a };
                ctx.like(1, |dx| {
                    let (left, right) =
                        if turn_b { (dy_matrix.t(), a) } else { (a.t(), dy_matrix) };
                    gemm(left, right, dx, &epilogue);
                    Ok(())
                })
            }
            _ => {
                let dc = sum_to(ctx.pool, dy, ctx.dims(i)?)?;
                if beta == 1.0 {
                    return Ok(Some(dc));
                }
                ctx.like(i, |dx| {
                    dx.iter_mut().zip(dc.as_slice::<f32>()?).for_each(|(dx, dc)| *dx = beta * dc);
                    Ok(())
                })
            }
        })
    },
};

/// Each factor's gradient is an Einsum of the others and the output's.
pub(super) static EINSUM: GradDef = GradDef {
    op_type: "Einsum",
    domain: "",
    reads: Reads::Inputs,
    grad: |ctx| {
        let inputs: Option<Vec<&Tensor>> = ctx.inputs.iter().map(Option::as_ref).collect();
        let inputs = inputs.ok_or(OpError::MissingInput(0))?;
        let eval = EvalCtx { node: ctx.node, opset: ctx.opset, pool: ctx.pool };
        ctx.each(|i| gradient(&eval, i, &inputs, ctx.dy()?).map(Some))
    },
};

/// Batches that broadcast: a matrix used several times gets the sum.
pub(super) static MATMUL: GradDef = GradDef {
    op_type: "MatMul",
    domain: "",
    reads: Reads::Inputs,
    grad: |ctx| {
        let product = Product::new(ctx.dims(0)?, ctx.dims(1)?)?;
        let Product { pairs, m, n, k, .. } = &product;
        let (m, n, k) = (*m, *n, *k);
        let dy = elements::<f32>(ctx.dy()?)?;
        // One right matrix for all left ones, in order: one taller product.
        let is_tall =
            pairs.iter().enumerate().all(|(p, &pair)| pair == (p, 0)) && ctx.x(1)?.len() == k * n;
        let epilogue = Epilogue::default();
        ctx.each(|i| {
            let (a, b) = (ctx.x(0)?, ctx.x(1)?);
            ctx.like(i, |dx| {
                if is_tall {
                    let rows = m * pairs.len();
                    let dy = MatRef::new(&dy, rows, n);
                    match i {
                        0 => gemm(dy, MatRef::new(&b, k, n).t(), dx, &epilogue),
                        _ => gemm(MatRef::new(&a, rows, k).t(), dy, dx, &epilogue),
                    }
                    return Ok(());
                }
                let len = if i == 0 { m * k } else { k * n };
                let mut parts = vec![0.0; pairs.len() * len];
                let offsets: Vec<(usize, usize)> = pairs
                    .iter()
                    .enumerate()
                    .map(
                        |(p, &(l, r))| {
                            if i == 0 { (p * m * n, r * k * n) } else { (l * m * k, p * m * n) }
                        },
                    )
                    .collect();
                if parts.is_empty() || m * n * k == 0 {
                    dx.fill(0.0);
                    return Ok(());
                }
                match i {
                    0 => {
                        let (dy, b) = (MatRef::new(&dy, m, n), MatRef::new(&b, k, n).t());
                        gemm_batch(&offsets, dy, b, &mut parts, &epilogue);
                    }
                    _ => {
                        let (a, dy) = (MatRef::new(&a, m, k).t(), MatRef::new(&dy, m, n));
                        gemm_batch(&offsets, a, dy, &mut parts, &epilogue);
                    }
                }
                dx.fill(0.0);
                for (part, &(l, r)) in parts.chunks_exact(len).zip(pairs) {
                    accumulate(part, &mut dx[if i == 0 { l } else { r } * len..][..len]);
                }
                Ok(())
            })
        })
    },
};
