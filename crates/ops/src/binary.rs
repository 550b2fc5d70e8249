//! Elementwise operators of several inputs, which broadcast: arithmetic, comparison, logic, Where.

use midtread_graph::{DataType, Element, Node, Tensor};
use midtread_kernels::elementwise::{BinaryOp, binary, broadcast_with};

use crate::{
    attr,
    def::{Eval, InputRole, OpDef, OutputRole, Role},
    eval::{Args, EvalCtx, OpError},
    infer::InferCtx,
    shape::{Odometer, broadcast, broadcast_inputs, broadcast_strides, broadcast_syms},
    sym::SymDim,
    typed::{bools, by_type, elements, fill_bools, in_f32},
    unary::NO_INTEGER_FORM,
};

const TWO_ACTIVATIONS: Role = Role::Quantized {
    inputs: &[InputRole::Activation, InputRole::Activation],
    output: OutputRole::Calibrated,
};

/// The arithmetic of one type. Integers wrap.
pub(crate) trait Number: Element + PartialOrd {
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// Integers are rounded towards 0. The caller has refused a divisor of 0.
    fn div(self, other: Self) -> Self;
    fn is_integer_zero(self) -> bool;
    /// `self - floor(self / other) * other`, or with the sign of `self` (C's `fmod`).
    fn rem_floor(self, other: Self) -> Self;
    fn rem_trunc(self, other: Self) -> Self;
}

macro_rules! integer {
    ($($t:ty),*) => {$(
        impl Number for $t {
            fn add(self, other: Self) -> Self { self.wrapping_add(other) }
            fn sub(self, other: Self) -> Self { self.wrapping_sub(other) }
            fn mul(self, other: Self) -> Self { self.wrapping_mul(other) }
            fn div(self, other: Self) -> Self { self.wrapping_div(other) }
            fn is_integer_zero(self) -> bool { self == 0 }
            #[allow(unused_comparisons, reason = "the same text serves unsigned types")]
            fn rem_floor(self, other: Self) -> Self {
                let rest = self.wrapping_rem(other);
                if rest != 0 && (rest < 0) != (other < 0) { rest.wrapping_add(other) } else { rest }
            }
            fn rem_trunc(self, other: Self) -> Self { self.wrapping_rem(other) }
        }
    )*};
}

macro_rules! float {
    ($($t:ty),*) => {$(
        impl Number for $t {
            fn add(self, other: Self) -> Self { self + other }
            fn sub(self, other: Self) -> Self { self - other }
            fn mul(self, other: Self) -> Self { self * other }
            fn div(self, other: Self) -> Self { self / other }
            fn is_integer_zero(self) -> bool { false }
            fn rem_floor(self, other: Self) -> Self {
                let rest = self % other;
                if rest == 0.0 {
                    rest.copysign(other)
                } else if (rest < 0.0) != (other < 0.0) {
                    rest + other
                } else {
                    rest
                }
            }
            fn rem_trunc(self, other: Self) -> Self { self % other }
        }
    )*};
}

integer!(i8, i16, i32, i64, u8, u16, u32, u64);
float!(f32, f64);

/// `f` of two broadcast tensors of one type. By pointer: types and functions times broadcasting loops would be most of
/// the crate's code, and `f32` has kernels.
pub(crate) fn combine<T: Element>(
    ctx: &EvalCtx<'_>,
    a: &Tensor,
    b: &Tensor,
    f: fn(T, T) -> T,
) -> Result<Tensor, OpError> {
    let dims = broadcast(&[a.dims(), b.dims()])?;
    let (xa, xb) = (elements::<T>(a)?, elements::<T>(b)?);
    ctx.pool.fill::<T>(dims, |y| {
        broadcast_with(&xa, a.dims(), &xb, b.dims(), y, f);
        Ok(())
    })
}

/// The kernel's function of two broadcast `f32` tensors.
pub(crate) fn kernel(
    ctx: &EvalCtx<'_>,
    a: &Tensor,
    b: &Tensor,
    op: BinaryOp,
) -> Result<Tensor, OpError> {
    let dims = broadcast(&[a.dims(), b.dims()])?;
    let (xa, xb) = (elements::<f32>(a)?, elements::<f32>(b)?);
    ctx.pool.fill::<f32>(dims, |y| {
        binary(op, &xa, a.dims(), &xb, b.dims(), y);
        Ok(())
    })
}

/// The broadcast sizes and the first input's type; the elements too where they are expressions of sizes.
fn infer_arithmetic(
    ctx: &mut InferCtx<'_>,
    f: Option<fn(&SymDim, &SymDim) -> SymDim>,
) -> Result<(), OpError> {
    ctx.set(0, ctx.elem(0), infer_pair(ctx)?);
    let short = |i: usize| ctx.rank(i).is_some_and(|r| r <= 1);
    if let (Some(f), true) = (f, ctx.n_inputs() == 2 && short(0) && short(1))
        && let (Some(a), Some(b)) = (ctx.value(0), ctx.value(1))
    {
        let n = a.len().max(b.len());
        if (a.len() == n || a.len() == 1) && (b.len() == n || b.len() == 1) {
            let pick = |v: &[SymDim], i: usize| v[if v.len() == 1 { 0 } else { i }].clone();
            ctx.set_value(0, Some((0..n).map(|i| f(&pick(&a, i), &pick(&b, i))).collect()));
        }
    }
    Ok(())
}

/// Same as `infer_arithmetic` for operators whose results are never sizes.
pub(crate) fn infer_broadcast(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    infer_arithmetic(ctx, None)
}

/// The attributes that say how inputs broadcast before operator set 7.
const LEGACY: &[&str] = &["axis", "broadcast", "consumed_inputs"];

/// Sizes of the second input with which it broadcasts as today. Before operator set 7 it did only with `broadcast`,
/// and its first dimension then lies on dimension `axis` of the first input, or its last on the last.
fn legacy_dims<D: Clone>(
    node: &Node,
    opset: i64,
    a_rank: usize,
    b: &[D],
    one: D,
) -> Result<Vec<D>, OpError> {
    let mut dims = b.to_vec();
    if 7 <= opset {
        return Ok(dims);
    }
    if let Some(axis) = attr::opt_int(node, "axis")?.filter(|_| !b.is_empty()) {
        let axis = crate::infer::normalize_axis(axis, a_rank)?;
        if a_rank < axis + b.len() {
            return Err(OpError::Invalid(format!(
                "{} dimensions from dimension {axis} of {a_rank}",
                b.len()
            )));
        }
        dims.resize(a_rank - axis, one);
    }
    Ok(dims)
}

/// [`broadcast_inputs`] of two, as their operator set says.
fn infer_pair(ctx: &InferCtx<'_>) -> Result<Option<Vec<SymDim>>, OpError> {
    match (ctx.dims(0), ctx.dims(1)) {
        (Some(a), Some(b)) if ctx.opset < 7 => {
            let b = legacy_dims(ctx.node, ctx.opset, a.len(), b, SymDim::known(1))?;
            Ok(Some(broadcast_syms(&[a, &b])?))
        }
        _ => broadcast_inputs(ctx, 0..ctx.n_inputs()),
    }
}

/// The two inputs, the second with sizes that broadcast as today.
fn pair(ctx: &EvalCtx<'_>, args: &mut Args) -> Result<(Tensor, Tensor), OpError> {
    let (a, b) = (args.take(0)?, args.take(1)?);
    let dims = legacy_dims(ctx.node, ctx.opset, a.dims().len(), b.dims(), 1)?;
    let b = if dims == b.dims() { b } else { b.reshaped(dims)? };
    Ok((a, b))
}

macro_rules! arithmetic {
    ($(#[$doc:meta])* $name:ident: $op:literal, $op_name:ident, $method:ident, $role:expr, $sym:expr) => {
        $(#[$doc])*
        pub(crate) static $name: OpDef = OpDef {
            op_type: $op,
            domain: "",
            versions: &[1, 6, 7, 13, 14],
            attrs: LEGACY,
            infer: |ctx| infer_arithmetic(ctx, $sym),
            eval: Eval::Tensors(|ctx, args| {
                in_f32(ctx, args, |ctx, mut args| {
                    let (a, b) = pair(ctx, &mut args)?;
                    if a.dtype() == DataType::Float {
                        return Ok(vec![kernel(ctx, &a, &b, BinaryOp::$op_name)?]);
                    }
                    by_type!(a.dtype(), T in [f64, i8, i16, i32, i64, u8, u16, u32, u64] => {
                        check_divisor::<T>($op, &b)?;
                        Ok(vec![combine::<T>(ctx, &a, &b, Number::$method)?])
                    })
                })
            }),
            role: $role,
        };
    };
}

/// Integer division by zero is undefined in the specification: refused.
fn check_divisor<T: Number>(op: &str, b: &Tensor) -> Result<(), OpError> {
    if matches!(op, "Div" | "Mod") && elements::<T>(b)?.iter().any(|b| b.is_integer_zero()) {
        return Err(OpError::Invalid("an integer is divided by 0".to_owned()));
    }
    Ok(())
}

/// Numbers are divided towards 0, as the elements are; sizes are not negative.
fn divided(a: &SymDim, b: &SymDim) -> SymDim {
    match (a.as_known(), b.as_known()) {
        (Some(a), Some(b)) => a.checked_div(b).map_or(SymDim::Unknown, SymDim::known),
        _ => a.div(b),
    }
}

arithmetic! {
    /// ONNX Add 1, 6, 7, 13 and 14.
    ADD: "Add", Add, add, TWO_ACTIVATIONS, Some(SymDim::add)
}
arithmetic! {
    /// ONNX Sub 1, 6, 7, 13 and 14.
    SUB: "Sub", Sub, sub, NO_INTEGER_FORM, Some(SymDim::sub)
}
arithmetic! {
    /// ONNX Mul 1, 6, 7, 13 and 14.
    MUL: "Mul", Mul, mul, TWO_ACTIVATIONS, Some(SymDim::mul)
}
arithmetic! {
    /// ONNX Div 1, 6, 7, 13 and 14.
    DIV: "Div", Div, div, NO_INTEGER_FORM, Some(divided)
}

/// ONNX Mod 10, 13 and 28.
pub(crate) static MOD: OpDef = OpDef {
    op_type: "Mod",
    domain: "",
    versions: &[10, 13, 28],
    attrs: &["fmod"],
    infer: infer_broadcast,
    eval: Eval::Tensors(|ctx, args| {
        let trunc = attr::flag(ctx.node, "fmod", false)?;
        in_f32(ctx, args, |ctx, mut args| {
            let (a, b) = (args.take(0)?, args.take(1)?);
            by_type!(a.dtype(), T in [f32, f64, i8, i16, i32, i64, u8, u16, u32, u64] => {
                check_divisor::<T>("Mod", &b)?;
                let f = if trunc { T::rem_trunc } else { T::rem_floor };
                Ok(vec![combine::<T>(ctx, &a, &b, f)?])
            })
        })
    }),
    role: NO_INTEGER_FORM,
};

/// ONNX Pow 1, 7, 12, 13 and 15; base and exponent may have different types.
pub(crate) static POW: OpDef = OpDef {
    op_type: "Pow",
    domain: "",
    versions: &[1, 7, 12, 13, 15],
    attrs: LEGACY,
    infer: infer_broadcast,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, pow)),
    role: NO_INTEGER_FORM,
};

fn pow(ctx: &EvalCtx<'_>, mut args: Args) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = pair(ctx, &mut args)?;
    if a.dtype() == DataType::Float && b.dtype() == DataType::Float {
        return Ok(vec![kernel(ctx, &a, &b, BinaryOp::Pow)?]);
    }
    let dims = broadcast(&[a.dims(), b.dims()])?;
    let exponents: Vec<Exponent> = by_type!(b.dtype(), B in [f32, f64, i8, i16, i32, i64, u8, u16, u32, u64] => {
        Ok(elements::<B>(&b)?.iter().map(|b| b.exponent()).collect())
    })?;
    by_type!(a.dtype(), A in [f32, f64, i32, i64] => {
        let xa = elements::<A>(&a)?;
        let y = ctx.pool.fill::<A>(dims, |out| {
            broadcast_with(&xa, a.dims(), &exponents, b.dims(), out, Power::power);
            Ok(())
        })?;
        Ok(vec![y])
    })
}

/// An exponent: integers are kept, so that integer powers are exact.
#[derive(Clone, Copy)]
enum Exponent {
    Int(i64),
    Real(f64),
}

trait ToExponent {
    fn exponent(self) -> Exponent;
}

macro_rules! exponent {
    ($($t:ty => $variant:ident),*) => {$(
        impl ToExponent for $t {
            fn exponent(self) -> Exponent {
                Exponent::$variant(self as _)
            }
        }
    )*};
}

exponent!(f32 => Real, f64 => Real, i8 => Int, i16 => Int, i32 => Int, i64 => Int, u8 => Int, u16 => Int,
    u32 => Int, u64 => Int);

trait Power: Copy {
    fn power(self, exponent: Exponent) -> Self;
}

impl Power for f32 {
    fn power(self, exponent: Exponent) -> Self {
        match exponent {
            Exponent::Int(i) => self.powf(i as f32),
            Exponent::Real(r) => self.powf(r as f32),
        }
    }
}

impl Power for f64 {
    fn power(self, exponent: Exponent) -> Self {
        match exponent {
            Exponent::Int(i) => self.powf(i as f64),
            Exponent::Real(r) => self.powf(r),
        }
    }
}

macro_rules! integer_power {
    ($($t:ty),*) => {$(
        impl Power for $t {
            fn power(self, exponent: Exponent) -> Self {
                match exponent {
                    Exponent::Int(i) => match u32::try_from(i) {
                        Ok(i) => self.wrapping_pow(i),
                        Err(_) => (self as f64).powf(i as f64) as Self,
                    },
                    Exponent::Real(r) => (self as f64).powf(r) as Self,
                }
            }
        }
    )*};
}

integer_power!(i32, i64);

macro_rules! variadic {
    ($(#[$doc:meta])* $name:ident: $op:literal, $versions:expr, $kernel:expr, [$($rust:ty),*], $f:expr) => {
        $(#[$doc])*
        pub(crate) static $name: OpDef = OpDef {
            op_type: $op,
            domain: "",
            versions: &$versions,
            attrs: &[],
            infer: infer_broadcast,
            eval: Eval::Tensors(|ctx, args| {
                in_f32(ctx, args, |ctx, mut args| {
                    let mut sum = args.take(0)?;
                    let n = args.len();
                    if sum.dtype() == DataType::Float {
                        for i in 1..n {
                            sum = kernel(ctx, &sum, args.required(i)?, $kernel)?;
                        }
                    } else {
                        by_type!(sum.dtype(), T in [$($rust),*] => {
                            for i in 1..n {
                                sum = combine::<T>(ctx, &sum, args.required(i)?, $f)?;
                            }
                            Ok(())
                        })?;
                    }
                    if $op == "Mean" {
                        sum = match sum.dtype() {
                            DataType::Float => crate::unary::map(ctx, sum, |x: f32| x / n as f32)?,
                            _ => crate::unary::map(ctx, sum, |x: f64| x / n as f64)?,
                        };
                    }
                    Ok(vec![sum])
                })
            }),
            role: NO_INTEGER_FORM,
        };
    };
}

variadic! {
    /// ONNX Sum 6, 8 and 13.
    SUM: "Sum", [6, 8, 13], BinaryOp::Add, [f64], |a, b| a + b
}
variadic! {
    /// ONNX Mean 6, 8 and 13.
    MEAN: "Mean", [6, 8, 13], BinaryOp::Add, [f64], |a, b| a + b
}
// A comparison with NaN is false, so NaN in either place must be looked for: the result is NaN.
variadic! {
    /// ONNX Max 6, 8, 12 and 13.
    MAX: "Max", [6, 8, 12, 13], BinaryOp::Max, [f64, i8, i16, i32, i64, u8, u16, u32, u64],
    |a, b| if a < b || is_nan(b) { b } else { a }
}
variadic! {
    /// ONNX Min 6, 8, 12 and 13.
    MIN: "Min", [6, 8, 12, 13], BinaryOp::Min, [f64, i8, i16, i32, i64, u8, u16, u32, u64],
    |a, b| if b < a || is_nan(b) { b } else { a }
}

#[expect(clippy::eq_op, reason = "NaN is what differs from itself")]
pub(crate) fn is_nan<T: PartialEq>(x: T) -> bool {
    x != x
}

/// A `bool` of the broadcast sizes.
fn infer_comparison(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let dims = infer_pair(ctx)?;
    ctx.set(0, Some(DataType::Bool), dims);
    Ok(())
}

/// `f` of two broadcast tensors of one type, as 0 or 1.
fn compare<T: Element>(
    ctx: &EvalCtx<'_>,
    a: &Tensor,
    b: &Tensor,
    f: fn(T, T) -> bool,
) -> Result<Vec<Tensor>, OpError> {
    let dims = broadcast(&[a.dims(), b.dims()])?;
    let (xa, xb) = (elements::<T>(a)?, elements::<T>(b)?);
    let y = fill_bools(ctx, dims, |out| {
        broadcast_with(&xa, a.dims(), &xb, b.dims(), out, |a, b| u8::from(f(a, b)));
    })?;
    Ok(vec![y])
}

macro_rules! comparison {
    ($(#[$doc:meta])* $name:ident: $op:literal, $versions:expr, $f:expr) => {
        $(#[$doc])*
        pub(crate) static $name: OpDef = OpDef {
            op_type: $op,
            domain: "",
            versions: &$versions,
            attrs: LEGACY,
            infer: infer_comparison,
            eval: Eval::Tensors(|ctx, args| {
                in_f32(ctx, args, |ctx, mut args| {
                    let (a, b) = &pair(ctx, &mut args)?;
                    if a.dtype() == DataType::Bool && $op == "Equal" {
                        return logic(ctx, a, b, |a, b| a == b);
                    }
                    if a.dtype() == DataType::String && $op == "Equal" {
                        return equal_strings(ctx, a, b);
                    }
                    by_type!(a.dtype(), T in [f32, f64, i8, i16, i32, i64, u8, u16, u32, u64] => {
                        compare::<T>(ctx, a, b, $f)
                    })
                })
            }),
            role: Role::Structural,
        };
    };
}

comparison! {
    /// ONNX Equal 1, 7, 11, 13 and 19.
    EQUAL: "Equal", [1, 7, 11, 13, 19], |a, b| a == b
}
comparison! {
    /// ONNX Less 1, 7, 9 and 13.
    LESS: "Less", [1, 7, 9, 13], |a, b| a < b
}
comparison! {
    /// ONNX LessOrEqual 12 and 16.
    LESS_OR_EQUAL: "LessOrEqual", [12, 16], |a, b| a <= b
}
comparison! {
    /// ONNX Greater 1, 7, 9 and 13.
    GREATER: "Greater", [1, 7, 9, 13], |a, b| b < a
}
comparison! {
    /// ONNX GreaterOrEqual 12 and 16.
    GREATER_OR_EQUAL: "GreaterOrEqual", [12, 16], |a, b| b <= a
}

/// Whether the broadcast strings are the same bytes.
fn equal_strings(ctx: &EvalCtx<'_>, a: &Tensor, b: &Tensor) -> Result<Vec<Tensor>, OpError> {
    let dims = broadcast(&[a.dims(), b.dims()])?;
    let y = fill_bools(ctx, dims, |_| ())?;
    let pairs = crate::text::pairs(a, b, y.dims())?;
    let bits: Vec<u8> = pairs.into_iter().map(|(a, b)| u8::from(a == b)).collect();
    Ok(vec![Tensor::from_slice(y.dims().to_vec(), &bits)?.with_dtype(DataType::Bool)?])
}

/// `f` of two broadcast tensors of `bool`.
fn logic(
    ctx: &EvalCtx<'_>,
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(bool, bool) -> bool + Sync,
) -> Result<Vec<Tensor>, OpError> {
    let dims = broadcast(&[a.dims(), b.dims()])?;
    let (xa, xb) = (bools(a)?, bools(b)?);
    let y = fill_bools(ctx, dims, |out| {
        broadcast_with(xa, a.dims(), xb, b.dims(), out, |a: u8, b: u8| u8::from(f(a != 0, b != 0)));
    })?;
    Ok(vec![y])
}

macro_rules! logical {
    ($(#[$doc:meta])* $name:ident: $op:literal, $f:expr) => {
        $(#[$doc])*
        pub(crate) static $name: OpDef = OpDef {
            op_type: $op,
            domain: "",
            versions: &[1, 7],
            attrs: LEGACY,
            infer: infer_comparison,
            eval: Eval::Tensors(|ctx, mut args| {
                let (a, b) = pair(ctx, &mut args)?;
                logic(ctx, &a, &b, $f)
            }),
            role: Role::Structural,
        };
    };
}

logical! {
    /// ONNX And 1 and 7.
    AND: "And", |a, b| a && b
}
logical! {
    /// ONNX Or 1 and 7.
    OR: "Or", |a, b| a || b
}
logical! {
    /// ONNX Xor 1 and 7.
    XOR: "Xor", |a, b| a != b
}

/// `x` where it is not negative, else `slope * x`. ONNX PRelu 1, 6 (one slope, or one a channel), 7, 9 and 16: the
/// slope broadcasts to `x`.
pub(crate) static PRELU: OpDef = OpDef {
    op_type: "PRelu",
    domain: "",
    versions: &[1, 6, 7, 9, 16],
    attrs: &["consumed_inputs"],
    infer: crate::norm::same_as_first,
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, mut args| {
            let (x, mut slope) = (args.take(0)?, args.take(1)?);
            if ctx.opset < 7 && slope.dims().len() == 1 && 1 < x.dims().len() {
                let mut dims = vec![1; x.dims().len() - 1];
                dims[0] = slope.len();
                slope = slope.reshaped(dims)?;
            }
            if broadcast(&[x.dims(), slope.dims()])? != x.dims() {
                return Err(OpError::Invalid(format!(
                    "a slope of sizes {:?} for an input of sizes {:?}",
                    slope.dims(),
                    x.dims()
                )));
            }
            Ok(vec![match x.dtype() {
                DataType::Float => kernel(ctx, &x, &slope, BinaryOp::PRelu)?,
                _ => by_type!(x.dtype(), T in [f64, i32, i64, u32, u64] => {
                    combine::<T>(ctx, &x, &slope, |x, slope| {
                        if x < T::default() { Number::mul(slope, x) } else { x }
                    })
                })?,
            }])
        })
    }),
    role: NO_INTEGER_FORM,
};

/// `a * sigmoid(alpha * a) * b`. ONNX SwiGLU 28.
pub(crate) static SWIGLU: OpDef = OpDef {
    op_type: "SwiGLU",
    domain: "",
    versions: &[28],
    attrs: &["alpha"],
    infer: crate::norm::same_as_first,
    eval: Eval::Tensors(|ctx, args| {
        let alpha = attr::float(ctx.node, "alpha", 1.0)?;
        in_f32(ctx, args, |ctx, args| {
            let (a, b) = (args.required(0)?, args.required(1)?);
            if a.dims() != b.dims() {
                return Err(OpError::Invalid(format!(
                    "a gate of sizes {:?} for values of sizes {:?}",
                    a.dims(),
                    b.dims()
                )));
            }
            by_type!(a.dtype(), T in [f32, f64] => {
                let (xa, xb) = (elements::<T>(a)?, elements::<T>(b)?);
                let alpha = T::from(alpha);
                let y = ctx.pool.fill::<T>(a.dims().to_vec(), |y| {
                    for ((y, &a), &b) in y.iter_mut().zip(&*xa).zip(&*xb) {
                        *y = a / (1.0 + (-alpha * a).exp()) * b;
                    }
                    Ok(())
                })?;
                Ok(vec![y])
            })
        })
    }),
    role: NO_INTEGER_FORM,
};

/// ONNX Where 9 and 16.
pub(crate) static WHERE: OpDef = OpDef {
    op_type: "Where",
    domain: "",
    versions: &[9, 16],
    attrs: &[],
    infer: |ctx| {
        let dims = broadcast_inputs(ctx, 0..3)?;
        ctx.set(0, ctx.elem(1), dims);
        Ok(())
    },
    eval: Eval::Tensors(select),
    role: Role::Quantized {
        inputs: &[InputRole::Parameter, InputRole::Activation, InputRole::Activation],
        output: OutputRole::Calibrated,
    },
};

pub(crate) fn select(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    struct Select<'a> {
        condition: &'a [u8],
        out_dims: &'a [usize],
        strides: [Vec<isize>; 3],
    }
    impl crate::shape::Move for Select<'_> {
        fn run<E: Clone>(&self, srcs: &[&[E]], dst: &mut [E]) -> Result<(), OpError> {
            let [c, x, y] = &self.strides;
            let mut odometer = Odometer::new(self.out_dims, &[c, x, y]);
            for e in dst {
                let [c, x, y] = odometer.offsets[..] else { unreachable!("three sets of strides") };
                let chosen = if self.condition[c as usize] != 0 {
                    &srcs[0][x as usize]
                } else {
                    &srcs[1][y as usize]
                };
                *e = chosen.clone();
                odometer.advance();
            }
            Ok(())
        }
    }
    let (condition, x, y) = (args.required(0)?, args.required(1)?, args.required(2)?);
    let dims = broadcast(&[condition.dims(), x.dims(), y.dims()])?;
    let how = Select {
        condition: bools(condition)?,
        out_dims: &dims,
        strides: [condition, x, y].map(|t| broadcast_strides(t.dims(), &dims)),
    };
    Ok(vec![crate::shape::moved(ctx, &[x, y], dims.clone(), &how)?])
}
