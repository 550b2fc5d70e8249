//! Elementwise operators of one input, and the activation functions.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use midtread_graph::{DataType, Element, Node, Tensor};
use midtread_kernels::elementwise::{UnaryOp, unary as unary_kernel, unary_in_place};

use crate::{
    attr,
    def::{Eval, InputRole, OpDef, OutputRole, Role},
    eval::{Args, EvalCtx, OpError},
    infer::InferCtx,
    norm::same_as_first,
    typed::{bools, by_type, elements, fill_bools, in_f32},
};

/// No runtime that this project knows computes it on integers.
pub(crate) const NO_INTEGER_FORM: Role = Role::Float("it has no integer form");

/// Quantized with a calibrated range before and after it.
pub(crate) const CALIBRATED: Role =
    Role::Quantized { inputs: &[InputRole::Activation], output: OutputRole::Calibrated };

/// `f` of every element: in place where nobody else holds them, else in memory of the pool.
pub(crate) fn map<T: Element>(
    ctx: &EvalCtx<'_>,
    x: Tensor,
    f: impl Fn(T) -> T,
) -> Result<Tensor, OpError> {
    map_dyn(ctx, x, &f)
}

/// [`map`], once for each type and not for each function: what matters in `f32` has a kernel.
fn map_dyn<T: Element>(
    ctx: &EvalCtx<'_>,
    mut x: Tensor,
    f: &dyn Fn(T) -> T,
) -> Result<Tensor, OpError> {
    if x.is_unique() {
        for e in x.to_mut::<T>()? {
            *e = f(*e);
        }
        return Ok(x);
    }
    let src = elements::<T>(&x)?;
    ctx.pool.fill::<T>(x.dims().to_vec(), |dst| {
        for (d, &s) in dst.iter_mut().zip(src.iter()) {
            *d = f(s);
        }
        Ok(())
    })
}

/// The kernel's function of every element of an `f32` tensor: in place where nobody else holds it.
pub(crate) fn kernel(ctx: &EvalCtx<'_>, mut x: Tensor, op: UnaryOp) -> Result<Tensor, OpError> {
    if x.is_unique() {
        unary_in_place(op, x.to_mut()?);
        return Ok(x);
    }
    let src = elements::<f32>(&x)?;
    ctx.pool.fill::<f32>(x.dims().to_vec(), |dst| {
        unary_kernel(op, &src, dst);
        Ok(())
    })
}

/// An operator that maps each element `$x` of one of the types to `$body`, of the same type `$t`. `$setup` reads
/// attributes of `$node`. With `f32 = $kernel`, a kernel does so for `f32`, and `$body` is for the other types.
macro_rules! unary {
    ($(#[$doc:meta])* $name:ident: $op:literal, $versions:expr, $role:expr, f32 = $kernel:expr,
     $t:ident in [$($rust:ty),*], |$node:ident| [$($attr:literal),*] { $($setup:tt)* }, |$x:ident| $body:expr) => {
        $(#[$doc])*
        pub(crate) static $name: OpDef = OpDef {
            op_type: $op,
            domain: "",
            versions: &$versions,
            attrs: &[$($attr),*],
            infer: same_as_first,
            eval: Eval::Tensors(|ctx, args| {
                in_f32(ctx, args, |ctx, mut args| {
                    let x = args.take(0)?;
                    let $node = ctx.node;
                    if x.dtype() == DataType::Float {
                        type $t = f32;
                        $($setup)*
                        return Ok(vec![kernel(ctx, x, $kernel)?]);
                    }
                    by_type!(x.dtype(), $t in [$($rust),*] => {
                        $($setup)*
                        Ok(vec![map::<$t>(ctx, x, |$x: $t| $body)?])
                    })
                })
            }),
            role: $role,
        };
    };
    ($(#[$doc:meta])* $name:ident: $op:literal, $versions:expr, $role:expr, f32 = $kernel:expr,
     $t:ident in [$($rust:ty),*], |$x:ident| $body:expr) => {
        $(#[$doc])*
        pub(crate) static $name: OpDef = OpDef {
            op_type: $op,
            domain: "",
            versions: &$versions,
            attrs: &[],
            infer: same_as_first,
            eval: Eval::Tensors(|ctx, args| {
                in_f32(ctx, args, |ctx, mut args| {
                    let x = args.take(0)?;
                    if x.dtype() == DataType::Float {
                        return Ok(vec![kernel(ctx, x, $kernel)?]);
                    }
                    by_type!(x.dtype(), $t in [$($rust),*] => {
                        Ok(vec![map::<$t>(ctx, x, |$x: $t| $body)?])
                    })
                })
            }),
            role: $role,
        };
    };
    ($(#[$doc:meta])* $name:ident: $op:literal, $versions:expr, $role:expr, $t:ident in [$($rust:ty),*],
     |$node:ident| [$($attr:literal),*] { $($setup:tt)* }, |$x:ident| $body:expr) => {
        $(#[$doc])*
        pub(crate) static $name: OpDef = OpDef {
            op_type: $op,
            domain: "",
            versions: &$versions,
            attrs: &[$($attr),*],
            infer: same_as_first,
            eval: Eval::Tensors(|ctx, args| {
                in_f32(ctx, args, |ctx, mut args| {
                    let x = args.take(0)?;
                    by_type!(x.dtype(), $t in [$($rust),*] => {
                        let $node = ctx.node;
                        $($setup)*
                        Ok(vec![map::<$t>(ctx, x, |$x: $t| $body)?])
                    })
                })
            }),
            role: $role,
        };
    };
    ($(#[$doc:meta])* $name:ident: $op:literal, $versions:expr, $role:expr, $t:ident in [$($rust:ty),*],
     |$x:ident| $body:expr) => {
        $(#[$doc])*
        pub(crate) static $name: OpDef = OpDef {
            op_type: $op,
            domain: "",
            versions: &$versions,
            attrs: &[],
            infer: same_as_first,
            eval: Eval::Tensors(|ctx, args| {
                in_f32(ctx, args, |ctx, mut args| {
                    let x = args.take(0)?;
                    by_type!(x.dtype(), $t in [$($rust),*] => {
                        Ok(vec![map::<$t>(ctx, x, |$x: $t| $body)?])
                    })
                })
            }),
            role: $role,
        };
    };
}

/// A float type.
trait Real: Copy {
    /// An attribute's value in this type.
    fn of(x: f32) -> Self;
}

impl Real for f32 {
    fn of(x: f32) -> Self {
        x
    }
}

impl Real for f64 {
    fn of(x: f32) -> Self {
        f64::from(x)
    }
}

unary! {
    /// ONNX Exp 6 and 13.
    EXP: "Exp", [6, 13], NO_INTEGER_FORM, f32 = UnaryOp::Exp, T in [f64], |x| x.exp()
}
unary! {
    /// Natural logarithm. ONNX Log 6 and 13.
    LOG: "Log", [6, 13], NO_INTEGER_FORM, f32 = UnaryOp::Log, T in [f64], |x| x.ln()
}
unary! {
    /// ONNX Sqrt 6 and 13.
    SQRT: "Sqrt", [6, 13], NO_INTEGER_FORM, f32 = UnaryOp::Sqrt, T in [f64], |x| x.sqrt()
}
unary! {
    /// ONNX Reciprocal 6 and 13.
    RECIPROCAL: "Reciprocal", [6, 13], NO_INTEGER_FORM, f32 = UnaryOp::Reciprocal, T in [f64], |x| 1.0 / x
}
unary! {
    /// ONNX Floor 6 and 13.
    FLOOR: "Floor", [6, 13], NO_INTEGER_FORM, f32 = UnaryOp::Floor, T in [f64], |x| x.floor()
}
unary! {
    /// ONNX Ceil 6 and 13.
    CEIL: "Ceil", [6, 13], NO_INTEGER_FORM, f32 = UnaryOp::Ceil, T in [f64], |x| x.ceil()
}
unary! {
    /// To the nearest integer, halves to even. ONNX Round 11 and 22.
    ROUND: "Round", [11, 22], NO_INTEGER_FORM, f32 = UnaryOp::Round, T in [f64], |x| x.round_ties_even()
}
unary! {
    /// ONNX Sigmoid 6 and 13.
    SIGMOID: "Sigmoid", [6, 13], CALIBRATED, f32 = UnaryOp::Sigmoid, T in [f64], |x| 1.0 / (1.0 + (-x).exp())
}
unary! {
    /// ONNX Tanh 6 and 13.
    TANH: "Tanh", [6, 13], NO_INTEGER_FORM, f32 = UnaryOp::Tanh, T in [f64], |x| x.tanh()
}
unary! {
    /// ONNX Erf 9 and 13.
    ERF: "Erf", [9, 13], NO_INTEGER_FORM, f32 = UnaryOp::Erf, T in [f64], |x| libm::erf(x)
}
unary! {
    /// ONNX Sin 7 and 22.
    SIN: "Sin", [7, 22], NO_INTEGER_FORM, f32 = UnaryOp::Sin, T in [f64], |x| x.sin()
}
unary! {
    /// ONNX Cos 7 and 22.
    COS: "Cos", [7, 22], NO_INTEGER_FORM, f32 = UnaryOp::Cos, T in [f64], |x| x.cos()
}
unary! {
    /// ONNX Tan 7 and 22.
    TAN: "Tan", [7, 22], NO_INTEGER_FORM, f32 = UnaryOp::Tan, T in [f64], |x| x.tan()
}
unary! {
    /// ONNX Asin 7 and 22.
    ASIN: "Asin", [7, 22], NO_INTEGER_FORM, T in [f32, f64], |x| x.asin()
}
unary! {
    /// ONNX Acos 7 and 22.
    ACOS: "Acos", [7, 22], NO_INTEGER_FORM, T in [f32, f64], |x| x.acos()
}
unary! {
    /// ONNX Atan 7 and 22.
    ATAN: "Atan", [7, 22], NO_INTEGER_FORM, T in [f32, f64], |x| x.atan()
}
unary! {
    /// ONNX Sinh 9 and 22.
    SINH: "Sinh", [9, 22], NO_INTEGER_FORM, T in [f32, f64], |x| x.sinh()
}
unary! {
    /// ONNX Cosh 9 and 22.
    COSH: "Cosh", [9, 22], NO_INTEGER_FORM, T in [f32, f64], |x| x.cosh()
}
unary! {
    /// ONNX Asinh 9 and 22.
    ASINH: "Asinh", [9, 22], NO_INTEGER_FORM, T in [f32, f64], |x| x.asinh()
}
unary! {
    /// ONNX Acosh 9 and 22.
    ACOSH: "Acosh", [9, 22], NO_INTEGER_FORM, T in [f32, f64], |x| x.acosh()
}
unary! {
    /// ONNX Atanh 9 and 22.
    ATANH: "Atanh", [9, 22], NO_INTEGER_FORM, T in [f32, f64], |x| x.atanh()
}
unary! {
    /// `ln(1 + exp(x))`, without overflow. ONNX Softplus 1 and 22.
    SOFTPLUS: "Softplus", [1, 22], NO_INTEGER_FORM, f32 = UnaryOp::Softplus, T in [f64],
    |x| x.max(0.0) + (-x.abs()).exp().ln_1p()
}
unary! {
    /// ONNX Softsign 1 and 22.
    SOFTSIGN: "Softsign", [1, 22], NO_INTEGER_FORM, f32 = UnaryOp::Softsign, T in [f64], |x| x / (1.0 + x.abs())
}
unary! {
    /// `x * min(max(x / 6 + 1 / 2, 0), 1)`. ONNX HardSwish 14 and 22.
    HARD_SWISH: "HardSwish", [14, 22], NO_INTEGER_FORM, f32 = UnaryOp::HardSwish, T in [f64],
    |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)
}
unary! {
    /// `x * tanh(softplus(x))`. ONNX Mish 18 and 22.
    MISH: "Mish", [18, 22], NO_INTEGER_FORM, f32 = UnaryOp::Mish, T in [f64],
    |x| x * (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh()
}
unary! {
    /// ONNX LeakyRelu 6 and 16.
    LEAKY_RELU: "LeakyRelu", [6, 16], CALIBRATED, f32 = UnaryOp::LeakyRelu { alpha }, T in [f64],
    |node| ["alpha"] { let alpha = T::of(attr::float(node, "alpha", 0.01)?); },
    |x| if x < 0.0 { alpha * x } else { x }
}
unary! {
    /// ONNX ThresholdedRelu 10 and 22.
    THRESHOLDED_RELU: "ThresholdedRelu", [10, 22], NO_INTEGER_FORM, f32 = UnaryOp::ThresholdedRelu { alpha }, T in [f64],
    |node| ["alpha"] { let alpha = T::of(attr::float(node, "alpha", 1.0)?); },
    |x| if alpha < x { x } else { 0.0 }
}
unary! {
    /// ONNX Elu 6 and 22.
    ELU: "Elu", [6, 22], NO_INTEGER_FORM, f32 = UnaryOp::Elu { alpha }, T in [f64],
    |node| ["alpha"] { let alpha = T::of(attr::float(node, "alpha", 1.0)?); },
    |x| if x < 0.0 { alpha * x.exp_m1() } else { x }
}
unary! {
    /// ONNX Celu 12 and 28.
    CELU: "Celu", [12, 28], NO_INTEGER_FORM, f32 = UnaryOp::Celu { alpha }, T in [f64],
    |node| ["alpha"] { let alpha = T::of(attr::float(node, "alpha", 1.0)?); },
    |x| x.max(0.0) + (alpha * (x / alpha).exp_m1()).min(0.0)
}
unary! {
    /// ONNX Selu 6 and 22.
    SELU: "Selu", [6, 22], NO_INTEGER_FORM, f32 = UnaryOp::Selu { alpha, gamma }, T in [f64],
    |node| ["alpha", "gamma"] {
        let alpha = T::of(attr::float(node, "alpha", 1.673_263_2)?);
        let gamma = T::of(attr::float(node, "gamma", 1.050_701)?);
    },
    |x| gamma * if x <= 0.0 { alpha * x.exp_m1() } else { x }
}
unary! {
    /// ONNX HardSigmoid 6 and 22.
    HARD_SIGMOID: "HardSigmoid", [6, 22], NO_INTEGER_FORM, f32 = UnaryOp::HardSigmoid { alpha, beta }, T in [f64],
    |node| ["alpha", "beta"] {
        let alpha = T::of(attr::float(node, "alpha", 0.2)?);
        let beta = T::of(attr::float(node, "beta", 0.5)?);
    },
    |x| (alpha * x + beta).clamp(0.0, 1.0)
}
unary! {
    /// `x` where it is farther than `lambd` from 0, moved towards 0 by `bias`. ONNX Shrink 9.
    SHRINK: "Shrink", [9], NO_INTEGER_FORM, T in [f32, f64],
    |node| ["bias", "lambd"] {
        let bias = T::of(attr::float(node, "bias", 0.0)?);
        let lambd = T::of(attr::float(node, "lambd", 0.5)?);
    },
    |x| if x < -lambd { x + bias } else if lambd < x { x - bias } else { 0.0 }
}
unary! {
    /// `x * sigmoid(alpha * x)`. ONNX Swish 24.
    SWISH: "Swish", [24], NO_INTEGER_FORM, T in [f32, f64],
    |node| ["alpha"] { let alpha = T::of(attr::float(node, "alpha", 1.0)?); },
    |x| x / (1.0 + (-alpha * x).exp())
}
unary! {
    /// ONNX Abs 6 and 13.
    ABS: "Abs", [6, 13], NO_INTEGER_FORM, f32 = UnaryOp::Abs, T in [f64, i8, i16, i32, i64, u8, u16, u32, u64],
    |x| x.magnitude()
}
unary! {
    /// ONNX Neg 6 and 13.
    NEG: "Neg", [6, 13], NO_INTEGER_FORM, f32 = UnaryOp::Neg, T in [f64, i8, i16, i32, i64], |x| x.negated()
}
unary! {
    /// ONNX Sign 9 and 13.
    SIGN: "Sign", [9, 13], NO_INTEGER_FORM, f32 = UnaryOp::Sign, T in [f64, i8, i16, i32, i64, u8, u16, u32, u64],
    |x| x.sign()
}

/// What Abs, Neg and Sign are for each type. Integers wrap.
trait Signed: Copy {
    fn magnitude(self) -> Self;
    fn negated(self) -> Self;
    fn sign(self) -> Self;
}

macro_rules! signed {
    ($($t:ty),*) => {$(
        impl Signed for $t {
            fn magnitude(self) -> Self {
                self.wrapping_abs()
            }
            fn negated(self) -> Self {
                self.wrapping_neg()
            }
            fn sign(self) -> Self {
                self.signum()
            }
        }
    )*};
}

macro_rules! unsigned {
    ($($t:ty),*) => {$(
        impl Signed for $t {
            fn magnitude(self) -> Self {
                self
            }
            fn negated(self) -> Self {
                self.wrapping_neg()
            }
            fn sign(self) -> Self {
                self.min(1)
            }
        }
    )*};
}

macro_rules! real {
    ($($t:ty),*) => {$(
        impl Signed for $t {
            fn magnitude(self) -> Self {
                self.abs()
            }
            fn negated(self) -> Self {
                -self
            }
            fn sign(self) -> Self {
                // Unlike `signum`, 0 of a zero.
                if self < 0.0 { -1.0 } else if 0.0 < self { 1.0 } else { self }
            }
        }
    )*};
}

signed!(i8, i16, i32, i64);
unsigned!(u8, u16, u32, u64);
real!(f32, f64);

/// ONNX Relu 6, 13 and 14.
pub(crate) static RELU: OpDef = OpDef {
    op_type: "Relu",
    domain: "",
    versions: &[6, 13, 14],
    attrs: &[],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, mut args| {
            let x = args.take(0)?;
            if x.dtype() == DataType::Float {
                return Ok(vec![kernel(ctx, x, UnaryOp::Relu)?]);
            }
            by_type!(x.dtype(), T in [f64, i8, i16, i32, i64] => {
                let zero = T::default();
                // Written so that NaN stays NaN.
                Ok(vec![map::<T>(ctx, x, |x| if x < zero { zero } else { x })?])
            })
        })
    }),
    role: Role::Clamp { bounds: |_, _| Some((0.0, f32::INFINITY)) },
};

/// ONNX Clip 6 (bounds in attributes), 11, 12 and 13.
pub(crate) static CLIP: OpDef = OpDef {
    op_type: "Clip",
    domain: "",
    versions: &[6, 11, 12, 13],
    attrs: &["max", "min"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, clip)),
    role: Role::Clamp { bounds: clip_bounds },
};

/// From the attributes of the old form and the inputs of the new one; a node has at most one of them.
pub(crate) fn clip_bounds(
    node: &Node,
    constants: &dyn Fn(usize) -> Option<f32>,
) -> Option<(f32, f32)> {
    let bound = |name: &str, i: usize, none: f32| match (node.float(name), node.input(i)) {
        (Some(f), _) => Some(f),
        (None, Some(_)) => constants(i),
        (None, None) => Some(none),
    };
    Some((bound("min", 1, f32::NEG_INFINITY)?, bound("max", 2, f32::INFINITY)?))
}

fn clip(ctx: &EvalCtx<'_>, mut args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.take(0)?;
    if ctx.opset < 11 {
        let lo = attr::opt_float(ctx.node, "min")?.unwrap_or(f32::NEG_INFINITY);
        let hi = attr::opt_float(ctx.node, "max")?.unwrap_or(f32::INFINITY);
        return Ok(vec![match x.dtype() {
            DataType::Float => kernel(ctx, x, UnaryOp::Clip { lo, hi })?,
            _ => map::<f64>(ctx, x, |x| clamp(x, f64::from(lo), f64::from(hi)))?,
        }]);
    }
    if x.dtype() == DataType::Float {
        let lo = bound(&args, 1, f32::NEG_INFINITY)?;
        let hi = bound(&args, 2, f32::INFINITY)?;
        return Ok(vec![kernel(ctx, x, UnaryOp::Clip { lo, hi })?]);
    }
    by_type!(x.dtype(), T in [f64, i8, i16, i32, i64, u8, u16, u32, u64] => {
        let (lo, hi) = (bound(&args, 1, T::MIN)?, bound(&args, 2, T::MAX)?);
        Ok(vec![map::<T>(ctx, x, |x| clamp(x, lo, hi))?])
    })
}

/// The one number that input `i` is.
fn bound<T: Element>(args: &Args, i: usize, none: T) -> Result<T, OpError> {
    let Some(tensor) = args.get(i) else { return Ok(none) };
    tensor.item().ok_or_else(|| OpError::Invalid(format!("input {i} is not one {}", T::DATA_TYPE)))
}

/// NaN stays; where the bounds are in the wrong order, everything is the upper one.
fn clamp<T: PartialOrd>(x: T, lo: T, hi: T) -> T {
    let x = if x < lo { lo } else { x };
    if hi < x { hi } else { x }
}

/// `x / 2 * (1 + erf(x / sqrt(2)))`, or with `approximate` the tanh formula. ONNX Gelu 20.
pub(crate) static GELU: OpDef = OpDef {
    op_type: "Gelu",
    domain: "",
    versions: &[20],
    attrs: &["approximate"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, gelu)),
    role: NO_INTEGER_FORM,
};

/// The same, exact. ONNX Runtime's Gelu, before the operator was standard.
pub(crate) static MS_GELU: OpDef = OpDef {
    op_type: "Gelu",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &[],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, gelu)),
    role: NO_INTEGER_FORM,
};

fn gelu(ctx: &EvalCtx<'_>, mut args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.take(0)?;
    let is_exact = match attr::string(ctx.node, "approximate", "none")? {
        "none" => true,
        "tanh" => false,
        other => return Err(OpError::Invalid(format!("`approximate` is `{other}`"))),
    };
    let y = match (x.dtype(), is_exact) {
        (DataType::Float, true) => kernel(ctx, x, UnaryOp::Gelu)?,
        (DataType::Float, false) => kernel(ctx, x, UnaryOp::GeluTanh)?,
        (_, true) => map::<f64>(ctx, x, |x| 0.5 * x * (1.0 + libm::erf(x * FRAC_1_SQRT_2)))?,
        (_, false) => {
            let root = (2.0 / PI).sqrt();
            map::<f64>(ctx, x, |x| 0.5 * x * (1.0 + (root * (x + 0.044715 * x * x * x)).tanh()))?
        }
    };
    Ok(vec![y])
}

/// ONNX Not 1.
pub(crate) static NOT: OpDef = OpDef {
    op_type: "Not",
    domain: "",
    versions: &[1],
    attrs: &[],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| {
        let x = args.required(0)?;
        let src = bools(x)?;
        let y = fill_bools(ctx, x.dims().to_vec(), |dst| {
            for (d, &s) in dst.iter_mut().zip(src) {
                *d = u8::from(s == 0);
            }
        })?;
        Ok(vec![y])
    }),
    role: Role::Structural,
};

/// ONNX IsNaN 9, 13 and 20.
pub(crate) static IS_NAN: OpDef = OpDef {
    op_type: "IsNaN",
    domain: "",
    versions: &[9, 13, 20],
    attrs: &[],
    infer: infer_bool,
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, args| test_float(ctx, &args, |x| x.is_nan()))
    }),
    role: Role::Structural,
};

/// ONNX IsInf 10 and 20.
pub(crate) static IS_INF: OpDef = OpDef {
    op_type: "IsInf",
    domain: "",
    versions: &[10, 20],
    attrs: &["detect_negative", "detect_positive"],
    infer: infer_bool,
    eval: Eval::Tensors(|ctx, args| {
        let positive = attr::flag(ctx.node, "detect_positive", true)?;
        let negative = attr::flag(ctx.node, "detect_negative", true)?;
        in_f32(ctx, args, |ctx, args| {
            test_float(ctx, &args, |x| {
                x == f64::INFINITY && positive || x == f64::NEG_INFINITY && negative
            })
        })
    }),
    role: Role::Structural,
};

/// A `bool` of the first input's sizes.
fn infer_bool(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    ctx.set(0, Some(DataType::Bool), ctx.dims(0).map(<[_]>::to_vec));
    Ok(())
}

fn test_float(
    ctx: &EvalCtx<'_>,
    args: &Args,
    test: impl Fn(f64) -> bool,
) -> Result<Vec<Tensor>, OpError> {
    let mut x = args.required(0)?.clone();
    if crate::cast::small_float(x.dtype()).is_some() {
        x = crate::cast::cast(ctx, x, DataType::Float)?;
    }
    by_type!(x.dtype(), T in [f32, f64] => {
        let src = elements::<T>(&x)?;
        let y = fill_bools(ctx, x.dims().to_vec(), |dst| {
            for (d, &s) in dst.iter_mut().zip(src.iter()) {
                #[allow(clippy::useless_conversion, reason = "the same text serves `f32`")]
                let value = f64::from(s);
                *d = u8::from(test(value));
            }
        })?;
        Ok(vec![y])
    })
}
