//! Matrix products.

use midtread_graph::{DataType, Element, Tensor};
use midtread_kernels::gemm::{Bias, Epilogue, MatRef, gemm as gemm_kernel, gemm_batch};

use crate::{
    attr,
    conv::Ring,
    def::{Eval, InputRole, OpDef, OutputRole, Role},
    eval::{Args, EvalCtx, OpError},
    infer::InferCtx,
    shape::{Odometer, View, broadcast, broadcast_strides, broadcast_syms, product},
    sym::SymDim,
    typed::{by_type, elements, from_reals, in_f32, reals},
};

/// ONNX MatMul 1, 9 and 13: as `numpy.matmul`.
pub(crate) static MATMUL: OpDef = OpDef {
    op_type: "MatMul",
    domain: "",
    versions: &[1, 9, 13],
    attrs: &[],
    infer: |ctx| infer_matmul(ctx, 1, ctx.elem(0)),
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, matmul)),
    role: MATMUL_ROLE,
};

pub(crate) const MATMUL_ROLE: Role = Role::Quantized {
    inputs: &[
        InputRole::Activation,
        InputRole::Weight { channel_axis: |_, rank| (2 <= rank).then(|| rank - 1) },
    ],
    output: OutputRole::Calibrated,
};

/// `alpha * A' * B' + beta * C`. ONNX Gemm 1, 6 (both have `broadcast`, without which C has the result's sizes), 7, 9,
/// 11 and 13.
pub(crate) static GEMM: OpDef = OpDef {
    op_type: "Gemm",
    domain: "",
    versions: &[1, 6, 7, 9, 11, 13],
    attrs: &["alpha", "beta", "broadcast", "transA", "transB"],
    infer: infer_gemm,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, gemm)),
    role: Role::Quantized {
        inputs: &[
            InputRole::Activation,
            InputRole::Weight {
                channel_axis: |node, _| {
                    Some(if node.int("transB").unwrap_or(0) == 0 { 1 } else { 0 })
                },
            },
            InputRole::Bias,
        ],
        output: OutputRole::Calibrated,
    },
};

/// Shape rule of MatMul and its integer forms: input 0 times input `rhs`.
pub(crate) fn infer_matmul(
    ctx: &mut InferCtx<'_>,
    rhs: usize,
    elem: Option<DataType>,
) -> Result<(), OpError> {
    let dims = match (ctx.dims(0), ctx.dims(rhs)) {
        (Some(a), Some(b)) if !a.is_empty() && !b.is_empty() => Some(matmul_syms(a, b)?),
        _ => None,
    };
    ctx.set(0, elem, dims);
    Ok(())
}

pub(crate) fn matmul_syms(a: &[SymDim], b: &[SymDim]) -> Result<Vec<SymDim>, OpError> {
    let (k_a, k_b) = (&a[a.len() - 1], &b[b.len().saturating_sub(2)]);
    if let (Some(x), Some(y)) = (k_a.as_known(), k_b.as_known())
        && x != y
    {
        return Err(OpError::Invalid(format!("a product over {x} and {y} elements")));
    }
    let batch_a = &a[..a.len().saturating_sub(2)];
    let batch_b = &b[..b.len().saturating_sub(2)];
    let mut dims = broadcast_syms(&[batch_a, batch_b])?;
    if 2 <= a.len() {
        dims.push(a[a.len() - 2].clone());
    }
    if 2 <= b.len() {
        dims.push(b[b.len() - 1].clone());
    }
    Ok(dims)
}

/// Sizes of a batched matrix product, checked against each other.
pub(crate) struct Product {
    /// Which of the left and right matrices each of the result's is made of.
    pub(crate) pairs: Vec<(usize, usize)>,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Sizes of the result: the batch, and those of `m` and `n` that are no vector's.
    pub(crate) dims: Vec<usize>,
}

impl Product {
    pub(crate) fn new(a: &[usize], b: &[usize]) -> Result<Self, OpError> {
        if a.is_empty() || b.is_empty() {
            return Err(OpError::Invalid("a product of a tensor without dimensions".to_owned()));
        }
        let a2 = if a.len() == 1 { vec![1, a[0]] } else { a.to_vec() };
        let b2 = if b.len() == 1 { vec![b[0], 1] } else { b.to_vec() };
        let (batch_a, &[m, k]) = a2.split_last_chunk().expect("two or more sizes");
        let (batch_b, &[k_b, n]) = b2.split_last_chunk().expect("two or more sizes");
        if k != k_b {
            return Err(OpError::Invalid(format!("a product of sizes {a:?} and {b:?}")));
        }
        let batch = broadcast(&[batch_a, batch_b])?;
        let strides_a = broadcast_strides(batch_a, &batch);
        let strides_b = broadcast_strides(batch_b, &batch);
        let mut odometer = Odometer::new(&batch, &[&strides_a, &strides_b]);
        let pairs = (0..product(&batch))
            .map(|_| {
                let pair = (odometer.offsets[0] as usize, odometer.offsets[1] as usize);
                odometer.advance();
                pair
            })
            .collect();
        let mut dims = batch;
        if 2 <= a.len() {
            dims.push(m);
        }
        if 2 <= b.len() {
            dims.push(n);
        }
        Ok(Self { pairs, m, n, k, dims })
    }
}

fn matmul(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (args.required(0)?, args.required(1)?);
    if a.dtype() == DataType::Float {
        return product_f32(ctx, a, b, 1.0);
    }
    by_type!(a.dtype(), T in [f64, i32, i64, u32, u64] => matmul_of::<T>(ctx, a, b))
}

/// `alpha * a * b` of batches of `f32` matrices.
pub(crate) fn product_f32(
    ctx: &EvalCtx<'_>,
    a: &Tensor,
    b: &Tensor,
    alpha: f32,
) -> Result<Vec<Tensor>, OpError> {
    let p = Product::new(a.dims(), b.dims())?;
    let (xa, xb) = (elements::<f32>(a)?, elements::<f32>(b)?);
    let offsets: Vec<(usize, usize)> =
        p.pairs.iter().map(|&(i, j)| (i * p.m * p.k, j * p.k * p.n)).collect();
    let y = ctx.pool.fill::<f32>(p.dims.clone(), |y| {
        if !y.is_empty() {
            let (a, b) = (MatRef::new(&xa, p.m, p.k), MatRef::new(&xb, p.k, p.n));
            gemm_batch(&offsets, a, b, y, &Epilogue { alpha, ..Epilogue::default() });
        }
        Ok(())
    })?;
    Ok(vec![y])
}

/// `a * w'` of the rows of `a` and an `f32` matrix `w` with a row for each column of the result.
pub(crate) fn product_transposed_f32(
    ctx: &EvalCtx<'_>,
    a: &Tensor,
    w: &Tensor,
) -> Result<Tensor, OpError> {
    let (&[n, k], Some((&k_a, head))) = (w.dims(), a.dims().split_last()) else {
        return Err(OpError::Invalid(format!(
            "a product of sizes {:?} and {:?}",
            a.dims(),
            w.dims()
        )));
    };
    if k != k_a {
        return Err(OpError::Invalid(format!(
            "a product of sizes {:?} and {:?}",
            a.dims(),
            w.dims()
        )));
    }
    let (xa, xw) = (elements::<f32>(a)?, elements::<f32>(w)?);
    ctx.pool.fill::<f32>([head, &[n]].concat(), |y| {
        let a = MatRef::new(&xa, product(head), k);
        gemm_kernel(a, MatRef::new(&xw, n, k).t(), y, &Epilogue::default());
        Ok(())
    })
}

fn matmul_of<T: Element + Ring>(
    ctx: &EvalCtx<'_>,
    a: &Tensor,
    b: &Tensor,
) -> Result<Vec<Tensor>, OpError> {
    let p = Product::new(a.dims(), b.dims())?;
    let (xa, xb) = (elements::<T>(a)?, elements::<T>(b)?);
    let y = ctx.pool.fill::<T>(p.dims.clone(), |y| {
        y.fill(T::default());
        for (&(i, j), y) in p.pairs.iter().zip(y.chunks_exact_mut((p.m * p.n).max(1))) {
            let (a, b) = (&xa[i * p.m * p.k..][..p.m * p.k], &xb[j * p.k * p.n..][..p.k * p.n]);
            add_product(a, b, y, p.k, p.n);
        }
        Ok(())
    })?;
    Ok(vec![y])
}

/// `y += a * b`, row by row.
fn add_product<T: Ring>(a: &[T], b: &[T], y: &mut [T], k: usize, n: usize) {
    if k == 0 || n == 0 {
        return;
    }
    for (a, y) in a.chunks_exact(k).zip(y.chunks_exact_mut(n)) {
        for (&a, b) in a.iter().zip(b.chunks_exact(n)) {
            for (y, &b) in y.iter_mut().zip(b) {
                *y += a * b;
            }
        }
    }
}

fn infer_gemm(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let pick = |i: usize, trans: &'static str, d: usize| -> Result<SymDim, OpError> {
        let d = if attr::flag(ctx.node, trans, false)? { 1 - d } else { d };
        Ok(match ctx.dims(i) {
            Some(dims) if dims.len() == 2 => dims[d].clone(),
            Some(dims) => {
                return Err(OpError::Invalid(format!("input {i} has {} dimensions", dims.len())));
            }
            None => SymDim::Unknown,
        })
    };
    let dims = vec![pick(0, "transA", 0)?, pick(1, "transB", 1)?];
    ctx.set(0, ctx.elem(0), Some(dims));
    Ok(())
}

fn gemm(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (a, b, c) = (args.required(0)?, args.required(1)?, args.get(2));
    let (turn_a, turn_b) =
        (attr::flag(ctx.node, "transA", false)?, attr::flag(ctx.node, "transB", false)?);
    let alpha = attr::float(ctx.node, "alpha", 1.0)?;
    let beta = attr::float(ctx.node, "beta", 1.0)?;
    let turned = |x: &Tensor, turn: bool| match (x.dims(), turn) {
        (&[rows, cols], true) => Some([cols, rows]),
        (&[rows, cols], false) => Some([rows, cols]),
        _ => None,
    };
    let ([m, k], n) = match (turned(a, turn_a), turned(b, turn_b)) {
        (Some([m, k]), Some([k_b, n])) if k == k_b => ([m, k], n),
        _ => {
            return Err(OpError::Invalid(format!(
                "a product of sizes {:?} and {:?}",
                a.dims(),
                b.dims()
            )));
        }
    };
    if let Some(c) = c
        && broadcast(&[c.dims(), &[m, n]])? != [m, n]
    {
        return Err(OpError::Invalid(format!(
            "C of sizes {:?} for a result of {m} x {n}",
            c.dims()
        )));
    }
    if a.dtype() == DataType::Double {
        let factors = (f64::from(alpha), f64::from(beta));
        return gemm_of(ctx, [a, b], [turn_a, turn_b], c, factors, [m, k, n]);
    }
    if a.dtype() != DataType::Float {
        if (alpha, beta) != (1.0, 1.0) {
            return Err(OpError::Unsupported("`alpha` or `beta` of integers".to_owned()));
        }
        return by_type!(a.dtype(), T in [i32, i64, u32, u64] => {
            gemm_of::<T>(ctx, [a, b], [turn_a, turn_b], c, (1, 1), [m, k, n])
        });
    }
    let (xa, xb) = (elements::<f32>(a)?, elements::<f32>(b)?);
    let xc = c.map(elements::<f32>).transpose()?;
    let matrix = |x, turn: bool, [rows, cols]: [usize; 2]| match turn {
        false => MatRef::new(x, rows, cols),
        true => MatRef::new(x, cols, rows).t(),
    };
    let is_row = c.is_some_and(|c| c.len() == n && c.dims().last() == Some(&n));
    let y = ctx.pool.fill::<f32>(vec![m, n], |y| {
        let bias = match &xc {
            Some(c) if is_row && beta == 1.0 => Bias::PerColumn(c),
            _ => Bias::None,
        };
        let (a, b) = (matrix(&xa, turn_a, [m, k]), matrix(&xb, turn_b, [k, n]));
        gemm_kernel(a, b, y, &Epilogue { alpha, bias, ..Epilogue::default() });
        if let (Bias::None, Some(xc), Some(c)) = (bias, &xc, c) {
            y.iter_mut().zip(spread(xc, c.dims(), m, n)).for_each(|(y, c)| *y += beta * c);
        }
        Ok(())
    })?;
    Ok(vec![y])
}

/// `c` broadcast to `m` x `n`.
fn spread<T: Copy + Default>(c: &[T], dims: &[usize], m: usize, n: usize) -> Vec<T> {
    let view = View { dims: vec![m, n], strides: broadcast_strides(dims, &[m, n]), offset: 0 };
    let mut full = vec![T::default(); m * n];
    view.copy(c, &mut full);
    full
}

fn gemm_of<T: Element + Ring>(
    ctx: &EvalCtx<'_>,
    [a, b]: [&Tensor; 2],
    [turn_a, turn_b]: [bool; 2],
    c: Option<&Tensor>,
    (alpha, beta): (T, T),
    [m, k, n]: [usize; 3],
) -> Result<Vec<Tensor>, OpError> {
    let a = if turn_a { transpose2(ctx, a)? } else { a.clone() };
    let b = if turn_b { transpose2(ctx, b)? } else { b.clone() };
    let (xa, xb) = (elements::<T>(&a)?, elements::<T>(&b)?);
    let xc = c.map(elements::<T>).transpose()?;
    let y = ctx.pool.fill::<T>(vec![m, n], |y| {
        y.fill(T::default());
        add_product(&xa, &xb, y, k, n);
        y.iter_mut().for_each(|y| *y = alpha * *y);
        if let (Some(xc), Some(c)) = (&xc, c) {
            y.iter_mut().zip(spread(xc, c.dims(), m, n)).for_each(|(y, c)| *y += beta * c);
        }
        Ok(())
    })?;
    Ok(vec![y])
}

fn transpose2(ctx: &EvalCtx<'_>, x: &Tensor) -> Result<Tensor, OpError> {
    if x.dims().len() != 2 {
        return Err(OpError::Invalid(format!("a matrix of sizes {:?}", x.dims())));
    }
    crate::layout::transposed(ctx, x.clone(), &[1, 0])
}

/// Determinants. ONNX Det 11 and 22.
pub(crate) static DET: OpDef = OpDef {
    op_type: "Det",
    domain: "",
    versions: &[11, 22],
    attrs: &[],
    infer: |ctx| {
        let dims = ctx.dims(0).map(|dims| dims[..dims.len().saturating_sub(2)].to_vec());
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        let x = args.required(0)?;
        let (batch, n) = match x.dims().split_last_chunk() {
            Some((batch, &[n, m])) if n == m => (batch.to_vec(), n),
            _ => return Err(OpError::Invalid(format!("matrices of sizes {:?}", x.dims()))),
        };
        let mut values = reals(x)?;
        let y: Vec<f64> = match n {
            0 => vec![1.0; product(&batch)],
            _ => values.chunks_exact_mut(n * n).map(|m| determinant(m, n)).collect(),
        };
        Ok(vec![from_reals(ctx, x.dtype(), batch, &y)?])
    }),
    role: Role::Float("its sums need float32"),
};

/// By elimination with the largest pivot of each column, in place.
fn determinant(m: &mut [f64], n: usize) -> f64 {
    let mut det = 1.0;
    for k in 0..n {
        let size = |i: &usize| m[i * n + k].abs();
        let pivot = (k..n).max_by(|a, b| size(a).total_cmp(&size(b))).unwrap_or(k);
        if m[pivot * n + k] == 0.0 {
            return 0.0;
        }
        if pivot != k {
            (0..n).for_each(|j| m.swap(k * n + j, pivot * n + j));
            det = -det;
        }
        det *= m[k * n + k];
        for i in k + 1..n {
            let factor = m[i * n + k] / m[k * n + k];
            (k..n).for_each(|j| m[i * n + j] -= factor * m[k * n + j]);
        }
    }
    det
}
