//! Softmax and its relatives.

use midtread_graph::{DataType, Element, Node, Tensor};
use midtread_kernels::norm as kernel;

use crate::{
    attr,
    def::{Eval, InputRole, OpDef, OutputRole, Role},
    eval::{Args, EvalCtx, OpError},
    infer::normalize_axis,
    norm::same_as_first,
    shape::product,
    typed::{by_type, elements, in_f32},
    unary::NO_INTEGER_FORM,
};

/// ONNX Softmax 1, 11 (over all dimensions from `axis` on) and 13 (over `axis`).
pub(crate) static SOFTMAX: OpDef = OpDef {
    op_type: "Softmax",
    domain: "",
    versions: &[1, 11, 13],
    attrs: &["axis"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, args| along(ctx, &args, Kind::Softmax))
    }),
    role: Role::Quantized { inputs: &[InputRole::Activation], output: OutputRole::Fixed(0.0, 1.0) },
};

/// ONNX LogSoftmax 1, 11 and 13.
pub(crate) static LOG_SOFTMAX: OpDef = OpDef {
    op_type: "LogSoftmax",
    domain: "",
    versions: &[1, 11, 13],
    attrs: &["axis"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, args| along(ctx, &args, Kind::LogSoftmax))
    }),
    role: NO_INTEGER_FORM,
};

/// 1 at the (first) largest element, 0 elsewhere. ONNX Hardmax 1, 11 and 13.
pub(crate) static HARDMAX: OpDef = OpDef {
    op_type: "Hardmax",
    domain: "",
    versions: &[1, 11, 13],
    attrs: &["axis"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, args| along(ctx, &args, Kind::Hardmax))
    }),
    role: NO_INTEGER_FORM,
};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Softmax,
    LogSoftmax,
    Hardmax,
}

/// Elements that are normalized together: how many, and how far apart.
pub(crate) fn normalized_run(
    node: &Node,
    opset: i64,
    dims: &[usize],
) -> Result<(usize, usize), OpError> {
    if opset < 13 {
        let axis = attr::int(node, "axis", 1)?;
        // Before version 11 the axis may be the rank itself: groups of one element.
        let axis =
            if axis == dims.len() as i64 { dims.len() } else { normalize_axis(axis, dims.len())? };
        return Ok((product(&dims[axis..]), 1));
    }
    let axis = normalize_axis(attr::int(node, "axis", -1)?, dims.len())?;
    Ok((dims[axis], product(&dims[axis + 1..])))
}

fn along(ctx: &EvalCtx<'_>, args: &Args, kind: Kind) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let (n, inner) = normalized_run(ctx.node, ctx.opset, x.dims())?;
    if x.dtype() == DataType::Float && inner == 1 && kind != Kind::Hardmax {
        let src = elements::<f32>(x)?;
        let y = ctx.pool.fill::<f32>(x.dims().to_vec(), |dst| {
            match kind {
                Kind::Softmax => kernel::softmax(&src, n, dst),
                _ => kernel::log_softmax(&src, n, dst),
            }
            Ok(())
        })?;
        return Ok(vec![y]);
    }
    by_type!(x.dtype(), T in [f32, f64] => {
        let src = elements::<T>(x)?;
        let y = ctx.pool.fill::<T>(x.dims().to_vec(), |dst| {
            if dst.is_empty() {
                return Ok(());
            }
            if inner == 1 {
                for (src, dst) in src.chunks_exact(n).zip(dst.chunks_exact_mut(n)) {
                    dst.copy_from_slice(src);
                    one(dst, kind);
                }
                return Ok(());
            }
            let mut run = vec![T::default(); n];
            for (src, dst) in src.chunks_exact(n * inner).zip(dst.chunks_exact_mut(n * inner)) {
                for i in 0..inner {
                    run.iter_mut().zip(src[i..].iter().step_by(inner)).for_each(|(r, &s)| *r = s);
                    one(&mut run, kind);
                    dst[i..].iter_mut().step_by(inner).zip(&run).for_each(|(d, &r)| *d = r);
                }
            }
            Ok(())
        })?;
        Ok(vec![y])
    })
}

/// One group, in place.
fn one<T: Float>(run: &mut [T], kind: Kind) {
    let max = run.iter().fold(T::LEAST, |a, &b| if a < b { b } else { a });
    match kind {
        Kind::Softmax => {
            let mut sum = T::ZERO;
            for e in &mut *run {
                *e = (*e - max).exp();
                sum = sum + *e;
            }
            let inv = T::ONE / sum;
            run.iter_mut().for_each(|e| *e = *e * inv);
        }
        Kind::LogSoftmax => {
            let sum = run.iter().fold(T::ZERO, |sum, &e| sum + (e - max).exp());
            let log = sum.ln();
            run.iter_mut().for_each(|e| *e = *e - max - log);
        }
        Kind::Hardmax => {
            let at = run.iter().position(|e| *e == max).unwrap_or(0);
            run.fill(T::ZERO);
            run[at] = T::ONE;
        }
    }
}

/// What Softmax needs of a float type.
trait Float:
    Element
    + PartialOrd
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
{
    const ZERO: Self;
    const ONE: Self;
    const LEAST: Self;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
}

macro_rules! float {
    ($($t:ty),*) => {$(
        impl Float for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const LEAST: Self = Self::NEG_INFINITY;
            fn exp(self) -> Self { self.exp() }
            fn ln(self) -> Self { self.ln() }
        }
    )*};
}

float!(f32, f64);
