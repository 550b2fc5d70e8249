//! Reductions over axes, and what depends on order along one: ArgMax, TopK, CumSum.

use midtread_graph::{DataType, Element, Tensor};
use midtread_kernels::norm::{ReduceOp, reduce as reduce_kernel};

use crate::{
    attr,
    binary::Number as Arithmetic,
    def::{Eval, InputRole, OpDef, OutputRole, Role},
    eval::{Args, EvalCtx, OpError},
    infer::{InferCtx, normalize_axis},
    layout::{infer_axes, transposed},
    norm::same_as_first,
    shape::{normalize_axes, product},
    sym::SymDim,
    typed::{by_type, elements, in_f32, indices},
    unary::NO_INTEGER_FORM,
};

/// A type that can be reduced.
trait Number: Element + PartialOrd {
    /// Holds sums with less rounding than the type itself.
    type Sum: Copy + std::iter::Sum + std::iter::Product;
    fn widen(self) -> Self::Sum;
    fn narrow(sum: Self::Sum) -> Self;
    fn divide(sum: Self::Sum, n: usize) -> Self;
    fn magnitude(sum: Self::Sum) -> Self::Sum;
    fn square(sum: Self::Sum) -> Self::Sum;
    fn real(sum: Self::Sum) -> f64;
    fn from_real(x: f64) -> Self;
    const LEAST: Self;
    const GREATEST: Self;
}

macro_rules! number {
    ($($t:ty: $sum:ty, $least:expr, $greatest:expr);* $(;)?) => {$(
        impl Number for $t {
            type Sum = $sum;
            fn widen(self) -> $sum { self as $sum }
            fn narrow(sum: $sum) -> Self { sum as Self }
            fn divide(sum: $sum, n: usize) -> Self { (sum / n as $sum) as Self }
            fn magnitude(sum: $sum) -> $sum { if sum < 0 as $sum { 0 as $sum - sum } else { sum } }
            fn square(sum: $sum) -> $sum { sum * sum }
            fn real(sum: $sum) -> f64 { sum as f64 }
            fn from_real(x: f64) -> Self { x as Self }
            const LEAST: Self = $least;
            const GREATEST: Self = $greatest;
        }
    )*};
}

number! {
    f32: f64, f32::NEG_INFINITY, f32::INFINITY;
    f64: f64, f64::NEG_INFINITY, f64::INFINITY;
    i8: i128, i8::MIN, i8::MAX;
    u8: i128, u8::MIN, u8::MAX;
    i32: i128, i32::MIN, i32::MAX;
    u32: i128, u32::MIN, u32::MAX;
    i64: i128, i64::MIN, i64::MAX;
    u64: i128, u64::MIN, u64::MAX;
}

/// Axes from input 1, or from the attribute; all of them where there are none, unless `noop_with_empty_axes`.
fn reduced_axes(ctx: &EvalCtx<'_>, args: &Args, rank: usize) -> Result<Vec<usize>, OpError> {
    reduced_axes_of(ctx.node, args.get(1), rank)
}

/// The same of a node, given input 1.
pub(crate) fn reduced_axes_of(
    node: &midtread_graph::Node,
    axes: Option<&Tensor>,
    rank: usize,
) -> Result<Vec<usize>, OpError> {
    let axes = match axes {
        Some(axes) => Some(indices(axes)?),
        None => attr::ints(node, "axes")?.map(<[i64]>::to_vec),
    };
    all_or(axes, rank, attr::flag(node, "noop_with_empty_axes", false)?)
}

fn all_or(axes: Option<Vec<i64>>, rank: usize, noop: bool) -> Result<Vec<usize>, OpError> {
    match axes.filter(|a| !a.is_empty()) {
        Some(axes) => normalize_axes(&axes, rank),
        None if noop => Ok(Vec::new()),
        None => Ok((0..rank).collect()),
    }
}

fn infer_reduce(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let keep = attr::flag(ctx.node, "keepdims", true)?;
    let noop = attr::flag(ctx.node, "noop_with_empty_axes", false)?;
    let dims = match (ctx.dims(0), infer_axes(ctx)?) {
        (Some(dims), Some(axes)) => {
            let axes = all_or(axes, dims.len(), noop)?;
            Some(reduced_dims(dims, &axes, keep, SymDim::known(1)))
        }
        (Some(dims), None) if keep => Some(vec![SymDim::Unknown; dims.len()]),
        _ => None,
    };
    ctx.set(0, ctx.elem(0), dims);
    Ok(())
}

fn reduced_dims<D: Clone>(dims: &[D], axes: &[usize], keep: bool, one: D) -> Vec<D> {
    let left = dims.iter().enumerate().filter(|(i, _)| keep || !axes.contains(i));
    left.map(|(i, d)| if axes.contains(&i) { one.clone() } else { d.clone() }).collect()
}

/// One number for each group of elements: the kernel's of `f32`, else `f`'s.
fn reduce<T: Element>(
    ctx: &EvalCtx<'_>,
    args: &Args,
    op: ReduceOp,
    f: fn(&[T]) -> T,
) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let rank = x.dims().len();
    let mut axes = reduced_axes(ctx, args, rank)?;
    axes.sort_unstable();
    let keep = attr::flag(ctx.node, "keepdims", true)?;
    let dims = reduced_dims(x.dims(), &axes, keep, 1);
    let n = axes.iter().map(|&a| x.dims()[a]).product::<usize>();
    let are_neighbors = axes.windows(2).all(|w| w[0] + 1 == w[1]);
    if let (DataType::Float, true, Some(&first), Some(&last)) =
        (x.dtype(), are_neighbors, axes.first(), axes.last())
    {
        let sizes = [product(&x.dims()[..first]), n, product(&x.dims()[last + 1..])];
        let src = elements::<f32>(x)?;
        let y = ctx.pool.fill::<f32>(dims, |y| {
            reduce_kernel(op, &src, sizes, y);
            Ok(())
        })?;
        return Ok(vec![y]);
    }
    let kept = (0..rank).filter(|i| !axes.contains(i));
    let last: Vec<usize> = kept.chain(axes.iter().copied()).collect();
    let grouped = transposed(ctx, x.clone(), &last)?;
    let src = elements::<T>(&grouped)?;
    let y = ctx.pool.fill::<T>(dims, |dst| {
        for (i, d) in dst.iter_mut().enumerate() {
            *d = f(&src[i * n..][..n]);
        }
        Ok(())
    })?;
    Ok(vec![y])
}

/// [`in_f32`], and the extremes of `bool` are those of its bytes.
fn in_bytes(
    ctx: &EvalCtx<'_>,
    mut args: Args,
    op_type: &str,
    eval: impl FnOnce(&EvalCtx<'_>, Args) -> Result<Vec<Tensor>, OpError>,
) -> Result<Vec<Tensor>, OpError> {
    if args.required(0)?.dtype() != DataType::Bool || !matches!(op_type, "ReduceMax" | "ReduceMin")
    {
        return in_f32(ctx, args, eval);
    }
    args.0[0] = Some(args.required(0)?.with_dtype(DataType::Uint8)?);
    let one = |t: &Tensor| {
        // Of no elements the least byte is 255, and true is 1.
        let bits: Vec<u8> = t.as_bytes().iter().map(|&b| u8::from(b != 0)).collect();
        Ok(Tensor::from_slice(t.dims().to_vec(), &bits)?.with_dtype(DataType::Bool)?)
    };
    eval(ctx, args)?.iter().map(one).collect()
}

/// `noop_with_empty_axes` reduces nothing, but operators that change each element still do.
macro_rules! reduce {
    ($(#[$doc:meta])* $name:ident: $op:literal, $versions:expr, $kernel:ident, [$($rust:ty),*], $f:expr) => {
        $(#[$doc])*
        pub(crate) static $name: OpDef = OpDef {
            op_type: $op,
            domain: "",
            versions: &$versions,
            attrs: &["axes", "keepdims", "noop_with_empty_axes"],
            infer: infer_reduce,
            eval: Eval::Tensors(|ctx, args| {
                in_bytes(ctx, args, $op, |ctx, args| {
                    by_type!(args.required(0)?.dtype(), T in [$($rust),*] => {
                        reduce::<T>(ctx, &args, ReduceOp::$kernel, $f)
                    })
                })
            }),
            role: NO_INTEGER_FORM,
        };
    };
}

reduce! {
    /// ONNX ReduceSum 1, 11 and 13 (axes become an input).
    REDUCE_SUM: "ReduceSum", [1, 11, 13], Sum, [f32, f64, i32, i64, u32, u64],
    |x| T::narrow(x.iter().map(|e| e.widen()).sum())
}
reduce! {
    /// ONNX ReduceMean 1, 11, 13 and 18 (axes become an input).
    REDUCE_MEAN: "ReduceMean", [1, 11, 13, 18], Mean, [f32, f64, i32, i64, u32, u64],
    |x| T::divide(x.iter().map(|e| e.widen()).sum(), x.len().max(1))
}
reduce! {
    /// ONNX ReduceMax 1, 11, 12, 13, 18 and 20.
    REDUCE_MAX: "ReduceMax", [1, 11, 12, 13, 18, 20], Max, [f32, f64, i8, u8, i32, i64, u32, u64],
    |x| x.iter().fold(T::LEAST, |a, &b| if a < b || is_nan(b) { b } else { a })
}
reduce! {
    /// ONNX ReduceMin 1, 11, 12, 13, 18 and 20.
    REDUCE_MIN: "ReduceMin", [1, 11, 12, 13, 18, 20], Min, [f32, f64, i8, u8, i32, i64, u32, u64],
    |x| x.iter().fold(T::GREATEST, |a, &b| if b < a || is_nan(b) { b } else { a })
}
reduce! {
    /// ONNX ReduceProd 1, 11, 13 and 18.
    REDUCE_PROD: "ReduceProd", [1, 11, 13, 18], Prod, [f32, f64, i32, i64, u32, u64],
    |x| T::narrow(x.iter().map(|e| e.widen()).product())
}
reduce! {
    /// ONNX ReduceL1 1, 11, 13 and 18.
    REDUCE_L1: "ReduceL1", [1, 11, 13, 18], L1, [f32, f64, i32, i64, u32, u64],
    |x| T::narrow(x.iter().map(|e| T::magnitude(e.widen())).sum())
}
reduce! {
    /// ONNX ReduceL2 1, 11, 13 and 18.
    REDUCE_L2: "ReduceL2", [1, 11, 13, 18], L2, [f32, f64, i32, i64, u32, u64],
    |x| T::from_real(T::real(x.iter().map(|e| T::square(e.widen())).sum()).sqrt())
}
reduce! {
    /// ONNX ReduceSumSquare 1, 11, 13 and 18.
    REDUCE_SUM_SQUARE: "ReduceSumSquare", [1, 11, 13, 18], SumSquare, [f32, f64, i32, i64, u32, u64],
    |x| T::narrow(x.iter().map(|e| T::square(e.widen())).sum())
}
reduce! {
    /// ONNX ReduceLogSum 1, 11, 13, 18 and 28.
    REDUCE_LOG_SUM: "ReduceLogSum", [1, 11, 13, 18, 28], LogSum, [f32, f64],
    |x| T::from_real(T::real(x.iter().map(|e| e.widen()).sum()).ln())
}
reduce! {
    /// ONNX ReduceLogSumExp 1, 11, 13, 18 and 28.
    REDUCE_LOG_SUM_EXP: "ReduceLogSumExp", [1, 11, 13, 18, 28], LogSumExp, [f32, f64],
    |x| {
        let max = x.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(T::real(b.widen())));
        let shift = if max.is_finite() { max } else { 0.0 };
        T::from_real(x.iter().map(|e| (T::real(e.widen()) - shift).exp()).sum::<f64>().ln() + shift)
    }
}

#[expect(clippy::eq_op, reason = "NaN is what differs from itself")]
fn is_nan<T: PartialEq>(x: T) -> bool {
    x != x
}

/// Which element of its input an ArgMax or ArgMin picked has no scale: only the input may be quantized.
const ARG: Role =
    Role::Quantized { inputs: &[InputRole::Activation], output: OutputRole::Unquantized };

/// ONNX ArgMax 1, 11, 12 (`select_last_index`) and 13.
pub(crate) static ARG_MAX: OpDef = OpDef {
    op_type: "ArgMax",
    domain: "",
    versions: &[1, 11, 12, 13],
    attrs: &["axis", "keepdims", "select_last_index"],
    infer: infer_arg,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, |ctx, args| arg(ctx, &args, false))),
    role: ARG,
};

/// ONNX ArgMin 1, 11, 12 (`select_last_index`) and 13.
pub(crate) static ARG_MIN: OpDef = OpDef {
    op_type: "ArgMin",
    domain: "",
    versions: &[1, 11, 12, 13],
    attrs: &["axis", "keepdims", "select_last_index"],
    infer: infer_arg,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, |ctx, args| arg(ctx, &args, true))),
    role: NO_INTEGER_FORM,
};

fn infer_arg(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let keep = attr::flag(ctx.node, "keepdims", true)?;
    let dims = match ctx.dims(0) {
        Some(dims) => {
            let axis = normalize_axis(attr::int(ctx.node, "axis", 0)?, dims.len())?;
            Some(reduced_dims(dims, &[axis], keep, SymDim::known(1)))
        }
        None => None,
    };
    ctx.set(0, Some(DataType::Int64), dims);
    Ok(())
}

fn arg(ctx: &EvalCtx<'_>, args: &Args, least: bool) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let axis = normalize_axis(attr::int(ctx.node, "axis", 0)?, x.dims().len())?;
    let last = attr::flag(ctx.node, "select_last_index", false)?;
    let dims = reduced_dims(x.dims(), &[axis], attr::flag(ctx.node, "keepdims", true)?, 1);
    let (n, inner) = (x.dims()[axis], product(&x.dims()[axis + 1..]));
    if n == 0 && dims.iter().all(|&d| 0 < d) {
        return Err(OpError::Invalid(format!("no element along axis {axis} to choose from")));
    }
    by_type!(x.dtype(), T in [f32, f64, i8, u8, i16, u16, i32, u32, i64, u64] => {
        let src = elements::<T>(x)?;
        let y = ctx.pool.fill::<i64>(dims, |dst| {
            for (i, d) in dst.iter_mut().enumerate() {
                let run = src[i / inner * n * inner + i % inner..].iter().step_by(inner).take(n);
                let mut best: Option<(usize, T)> = None;
                for (at, &e) in run.enumerate() {
                    let better = best.is_none_or(|(_, b)| {
                        (if least { e < b } else { b < e }) || last && e == b
                    });
                    if better {
                        best = Some((at, e));
                    }
                }
                *d = best.map_or(0, |(at, _)| at as i64);
            }
            Ok(())
        })?;
        Ok(vec![y])
    })
}

/// ONNX TopK 1 (`k` in an attribute), 10, 11 (`largest`, `sorted`) and 24. Equal elements: the lower index first.
pub(crate) static TOP_K: OpDef = OpDef {
    op_type: "TopK",
    domain: "",
    versions: &[1, 10, 11, 24],
    attrs: &["axis", "k", "largest", "sorted"],
    infer: |ctx| {
        let k = match attr::opt_int(ctx.node, "k")? {
            Some(k) => SymDim::known(k),
            None => {
                ctx.value(1).filter(|v| v.len() == 1).map_or(SymDim::Unknown, |mut v| v.remove(0))
            }
        };
        let dims = match ctx.dims(0) {
            Some(dims) => {
                let mut dims = dims.to_vec();
                let axis = normalize_axis(attr::int(ctx.node, "axis", -1)?, dims.len())?;
                dims[axis] = k;
                Some(dims)
            }
            None => None,
        };
        ctx.set(0, ctx.elem(0), dims.clone());
        ctx.set(1, Some(DataType::Int64), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, top_k)),
    role: Role::Quantized {
        inputs: &[InputRole::Activation, InputRole::Parameter],
        output: OutputRole::SameAs(0),
    },
};

fn top_k(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let k = match args.get(1) {
        Some(k) => indices(k)?.first().copied().unwrap_or(-1),
        None => attr::opt_int(ctx.node, "k")?.ok_or(OpError::MissingAttr("k"))?,
    };
    let axis = normalize_axis(attr::int(ctx.node, "axis", -1)?, x.dims().len())?;
    let largest = attr::flag(ctx.node, "largest", true)?;
    let (n, inner) = (x.dims()[axis], product(&x.dims()[axis + 1..]));
    let k = usize::try_from(k)
        .ok()
        .filter(|&k| k <= n)
        .ok_or_else(|| OpError::Invalid(format!("the first {k} of {n} elements")))?;
    let mut dims = x.dims().to_vec();
    dims[axis] = k;
    let mut at = vec![0_i64; product(&dims)];
    by_type!(x.dtype(), T in [f32, f64, i8, u8, i16, u16, i32, u32, i64, u64] => {
        let src = elements::<T>(x)?;
        let y = ctx.pool.fill::<T>(dims.clone(), |dst| {
            if dst.is_empty() {
                return Ok(());
            }
            for i in 0..src.len() / n {
                let (outer, i) = (i / inner, i % inner);
                let element = |j: usize| src[(outer * n + j) * inner + i];
                let mut order: Vec<usize> = (0..n).collect();
                order.sort_by(|&a, &b| {
                    let (a, b) = (element(a), element(b));
                    let (a, b) = if largest { (b, a) } else { (a, b) };
                    a.partial_cmp(&b).unwrap_or(std::cmp::Ordering::Equal)
                });
                for (j, &from) in order[..k].iter().enumerate() {
                    let to = (outer * k + j) * inner + i;
                    (dst[to], at[to]) = (element(from), from as i64);
                }
            }
            Ok(())
        })?;
        Ok(vec![y, Tensor::from_slice(dims, &at)?])
    })
}

/// ONNX CumSum 11 and 14.
pub(crate) static CUM_SUM: OpDef = OpDef {
    op_type: "CumSum",
    domain: "",
    versions: &[11, 14],
    attrs: &["exclusive", "reverse"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, cum_sum)),
    role: Role::Quantized {
        inputs: &[InputRole::Activation, InputRole::Parameter],
        output: OutputRole::Calibrated,
    },
};

/// ONNX CumProd 26.
pub(crate) static CUM_PROD: OpDef = OpDef {
    op_type: "CumProd",
    domain: "",
    versions: &[26],
    attrs: &["exclusive", "reverse"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, args| {
            by_type!(args.required(0)?.dtype(), T in [f32, f64, i32, u32, i64, u64] => {
                cumulated::<T>(ctx, &args, T::from_real(1.0), Arithmetic::mul)
            })
        })
    }),
    role: NO_INTEGER_FORM,
};

fn cum_sum(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    by_type!(args.required(0)?.dtype(), T in [f32, f64, i32, u32, i64, u64] => {
        cumulated::<T>(ctx, &args, T::default(), Arithmetic::add)
    })
}

/// Each element combined with all before it along an axis; `first` is what there is before the first.
fn cumulated<T: Element>(
    ctx: &EvalCtx<'_>,
    args: &Args,
    first: T,
    f: fn(T, T) -> T,
) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let axis = indices(args.required(1)?)?;
    let [axis] = axis[..] else {
        return Err(OpError::Invalid("the axis is not one number".to_owned()));
    };
    let axis = normalize_axis(axis, x.dims().len())?;
    let exclusive = attr::flag(ctx.node, "exclusive", false)?;
    let reverse = attr::flag(ctx.node, "reverse", false)?;
    let (n, inner) = (x.dims()[axis], product(&x.dims()[axis + 1..]));
    let src = elements::<T>(x)?;
    let y = ctx.pool.fill::<T>(x.dims().to_vec(), |dst| {
        for i in 0..src.len() / n.max(1) {
            let start = i / inner * n * inner + i % inner;
            let mut total = first;
            for j in 0..n {
                let at = start + if reverse { n - 1 - j } else { j } * inner;
                let next = f(total, src[at]);
                dst[at] = if exclusive { total } else { next };
                total = next;
            }
        }
        Ok(())
    })?;
    Ok(vec![y])
}
