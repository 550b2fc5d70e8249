//! Functions of single elements, and of pairs of them.

use midtread_graph::{DataType, Tensor};
use midtread_kernels::elementwise::map;
use rayon::prelude::*;

use crate::{
    attr,
    eval::OpError,
    grad::{GradCtx, GradDef, Reads, sum_to},
    shape::{Odometer, broadcast_strides},
    typed::elements,
};

/// `dy * f(x)`, or of the output where that says enough.
macro_rules! unary {
    ($($name:ident: $op:literal, $domain:literal, $reads:ident, |$ctx:ident| { $($setup:tt)* }, |$x:ident| $slope:expr;)*) => {$(
        pub(super) static $name: GradDef = GradDef {
            op_type: $op,
            domain: $domain,
            reads: Reads::$reads,
            grad: |$ctx| {
                $($setup)*
                let read = if Reads::$reads == Reads::Outputs { $ctx.y()? } else { $ctx.x(0)? };
                slopes($ctx, &read, |$x: f32| $slope)
            },
        };
    )*};
}

/// `dy * slope(read)` for input 0.
fn slopes(
    ctx: &GradCtx<'_>,
    read: &[f32],
    slope: impl Fn(f32) -> f32 + Sync,
) -> Result<Vec<Option<Tensor>>, OpError> {
    let dy = elements::<f32>(ctx.dy()?)?;
    ctx.each(|i| match i {
        0 => ctx.like(0, |dx| {
            map(read, dx, &slope);
            dx.iter_mut().zip(dy.iter()).for_each(|(dx, dy)| *dx *= dy);
            Ok(())
        }),
        _ => Ok(None),
    })
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The slope of `x * cdf(x)` of the normal distribution.
fn gelu(x: f32) -> f32 {
    let cdf = 0.5 * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2));
    let density = (-0.5 * x * x).exp() * 0.398_942_3;
    x.mul_add(density, cdf)
}

/// The slope of Gelu's tanh formula.
fn gelu_tanh(x: f32) -> f32 {
    let (a, b) = (0.797_884_6_f32, 0.044_715_f32);
    let t = (a * (x + b * x * x * x)).tanh();
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * a * (1.0 + 3.0 * b * x * x)
}

unary! {
    ABS: "Abs", "", Inputs, |ctx| {}, |x| if x < 0.0 { -1.0 } else if 0.0 < x { 1.0 } else { 0.0 };
    COS: "Cos", "", Inputs, |ctx| {}, |x| -x.sin();
    ELU: "Elu", "", Inputs, |ctx| { let alpha = attr::float(ctx.node, "alpha", 1.0)?; },
        |x| if x < 0.0 { alpha * x.exp() } else { 1.0 };
    ERF: "Erf", "", Inputs, |ctx| {}, |x| std::f32::consts::FRAC_2_SQRT_PI * (-x * x).exp();
    EXP: "Exp", "", Outputs, |ctx| {}, |y| y;
    HARD_SIGMOID: "HardSigmoid", "", Outputs, |ctx| { let alpha = attr::float(ctx.node, "alpha", 0.2)?; },
        |y| if 0.0 < y && y < 1.0 { alpha } else { 0.0 };
    HARD_SWISH: "HardSwish", "", Inputs, |ctx| {},
        |x| if x <= -3.0 { 0.0 } else if 3.0 <= x { 1.0 } else { (2.0 * x + 3.0) / 6.0 };
    LEAKY_RELU: "LeakyRelu", "", Inputs, |ctx| { let alpha = attr::float(ctx.node, "alpha", 0.01)?; },
        |x| if x < 0.0 { alpha } else { 1.0 };
    LOG: "Log", "", Inputs, |ctx| {}, |x| 1.0 / x;
    MISH: "Mish", "", Inputs, |ctx| {}, |x| {
        let t = (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh();
        t + x * (1.0 - t * t) * sigmoid(x)
    };
    MS_GELU: "Gelu", "com.microsoft", Inputs, |ctx| {}, |x| gelu(x);
    NEG: "Neg", "", Inputs, |ctx| {}, |_x| -1.0;
    RECIPROCAL: "Reciprocal", "", Outputs, |ctx| {}, |y| -y * y;
    RELU: "Relu", "", Outputs, |ctx| {}, |y| if 0.0 < y { 1.0 } else { 0.0 };
    SELU: "Selu", "", Inputs, |ctx| {
        let alpha = attr::float(ctx.node, "alpha", 1.673_263_2)?;
        let gamma = attr::float(ctx.node, "gamma", 1.050_701)?;
    }, |x| if x <= 0.0 { gamma * alpha * x.exp() } else { gamma };
    SIGMOID: "Sigmoid", "", Outputs, |ctx| {}, |y| y * (1.0 - y);
    SIN: "Sin", "", Inputs, |ctx| {}, |x| x.cos();
    SOFTPLUS: "Softplus", "", Inputs, |ctx| {}, |x| sigmoid(x);
    SOFTSIGN: "Softsign", "", Inputs, |ctx| {}, |x| 1.0 / ((1.0 + x.abs()) * (1.0 + x.abs()));
    SQRT: "Sqrt", "", Outputs, |ctx| {}, |y| 0.5 / y;
    SWISH: "Swish", "", Inputs, |ctx| { let alpha = attr::float(ctx.node, "alpha", 1.0)?; }, |x| {
        let s = sigmoid(alpha * x);
        s + alpha * x * s * (1.0 - s)
    };
    TANH: "Tanh", "", Outputs, |ctx| {}, |y| 1.0 - y * y;
}

/// Of either formula.
pub(super) static GELU: GradDef = GradDef {
    op_type: "Gelu",
    domain: "",
    reads: Reads::Inputs,
    grad: |ctx| {
        let exact = attr::string(ctx.node, "approximate", "none")? == "none";
        slopes(ctx, &ctx.x(0)?, if exact { gelu } else { gelu_tanh })
    },
};

/// 1 strictly inside the bounds and on them, as the straight-through estimator has it.
pub(super) static CLIP: GradDef = GradDef {
    op_type: "Clip",
    domain: "",
    reads: Reads::Inputs,
    grad: |ctx| {
        let bound = |name: &'static str, i: usize, none: f32| -> Result<f32, OpError> {
            match attr::opt_float(ctx.node, name)? {
                Some(bound) => Ok(bound),
                None => Ok(ctx.opt_x(i)?.map_or(none, |x| x[0])),
            }
        };
        let lo = bound("min", 1, f32::NEG_INFINITY)?;
        let hi = bound("max", 2, f32::INFINITY)?;
        slopes(ctx, &ctx.x(0)?, |x| if lo <= x && x <= hi { 1.0 } else { 0.0 })
    },
};

/// From float to float it is the identity; into other types nothing flows back.
pub(super) static CAST: GradDef = GradDef {
    op_type: "Cast",
    domain: "",
    reads: Reads::Nothing,
    grad: |ctx| {
        let is_float = attr::int(ctx.node, "to", 1)? == i64::from(DataType::Float as i32);
        ctx.each(|_| Ok(if is_float { Some(ctx.dy()?.clone()) } else { None }))
    },
};

/// In inference it is the identity.
pub(super) static DROPOUT: GradDef = GradDef {
    op_type: "Dropout",
    domain: "",
    reads: Reads::Nothing,
    grad: |ctx| ctx.each(|i| Ok(if i == 0 { Some(ctx.dy()?.clone()) } else { None })),
};

/// `scale * dy`, summed to the sizes of each input.
fn linear(ctx: &GradCtx<'_>, scale: impl Fn(usize) -> f32) -> Result<Vec<Option<Tensor>>, OpError> {
    ctx.each(|i| {
        let dy = sum_to(ctx.pool, ctx.dy()?, ctx.dims(i)?)?;
        let scale = scale(i);
        if scale == 1.0 {
            return Ok(Some(dy));
        }
        ctx.like(i, |dx| {
            map(&elements::<f32>(&dy)?, dx, |dy| scale * dy);
            Ok(())
        })
    })
}

macro_rules! linears {
    ($($name:ident: $op:literal, |$ctx:ident, $i:ident| $scale:expr;)*) => {$(
        pub(super) static $name: GradDef = GradDef {
            op_type: $op,
            domain: "",
            reads: Reads::Nothing,
            grad: |$ctx| linear($ctx, |$i| $scale),
        };
    )*};
}

linears! {
    ADD: "Add", |ctx, _i| 1.0;
    MEAN: "Mean", |ctx, _i| 1.0 / ctx.in_dims.len() as f32;
    SUB: "Sub", |ctx, i| if i == 0 { 1.0 } else { -1.0 };
    SUM: "Sum", |ctx, _i| 1.0;
}

/// `dy * slope(a, b)` over the broadcast sizes, summed to the sizes of the input, for both inputs.
fn pairs(
    ctx: &GradCtx<'_>,
    slope: impl Fn(usize, f32, f32) -> f32 + Sync,
) -> Result<Vec<Option<Tensor>>, OpError> {
    let dy = ctx.dy()?;
    let (a, b, grad) = (ctx.x(0)?, ctx.x(1)?, elements::<f32>(dy)?);
    let (of_a, of_b) =
        (broadcast_strides(ctx.dims(0)?, dy.dims()), broadcast_strides(ctx.dims(1)?, dy.dims()));
    ctx.each(|i| {
        let full = ctx.pool.fill::<f32>(dy.dims().to_vec(), |out| {
            if a.len() == out.len() && b.len() == out.len() {
                out.par_iter_mut().enumerate().with_min_len(4096).for_each(|(k, out)| {
                    *out = grad[k] * slope(i, a[k], b[k]);
                });
                return Ok(());
            }
            let mut odometer = Odometer::new(dy.dims(), &[&of_a, &of_b]);
            for (out, &dy) in out.iter_mut().zip(grad.iter()) {
                let [at_a, at_b] = [odometer.offsets[0] as usize, odometer.offsets[1] as usize];
                *out = dy * slope(i, a[at_a], b[at_b]);
                odometer.advance();
            }
            Ok(())
        })?;
        Ok(Some(sum_to(ctx.pool, &full, ctx.dims(i)?)?))
    })
}

macro_rules! pairs {
    ($($name:ident: $op:literal, |$i:ident, $a:ident, $b:ident| $slope:expr;)*) => {$(
        pub(super) static $name: GradDef = GradDef {
            op_type: $op,
            domain: "",
            reads: Reads::Inputs,
            grad: |ctx| pairs(ctx, |$i, $a, $b| $slope),
        };
    )*};
}

pairs! {
    DIV: "Div", |i, a, b| if i == 0 { 1.0 / b } else { -a / (b * b) };
    MUL: "Mul", |i, a, b| if i == 0 { b } else { a };
    POW: "Pow", |i, a, b| if i == 0 { b * a.powf(b - 1.0) } else { a.powf(b) * a.ln() };
    PRELU: "PRelu", |i, a, b| match (i, a < 0.0) {
        (0, true) => b,
        (0, false) => 1.0,
        (_, true) => a,
        (_, false) => 0.0,
    };
}

/// To the first input that has the value.
fn picked(ctx: &GradCtx<'_>) -> Result<Vec<Option<Tensor>>, OpError> {
    let dy = ctx.dy()?;
    let (y, grad) = (ctx.y()?, elements::<f32>(dy)?);
    let inputs = (0..ctx.in_dims.len()).map(|i| ctx.x(i)).collect::<Result<Vec<_>, _>>()?;
    let strides: Vec<Vec<isize>> = (0..inputs.len())
        .map(|i| Ok(broadcast_strides(ctx.dims(i)?, dy.dims())))
        .collect::<Result<_, OpError>>()?;
    let strides: Vec<&[isize]> = strides.iter().map(Vec::as_slice).collect();
    let mut sums: Vec<Vec<f32>> = inputs.iter().map(|x| vec![0.0; x.len()]).collect();
    let mut odometer = Odometer::new(dy.dims(), &strides);
    for (y, dy) in y.iter().zip(grad.iter()) {
        let at = |i: usize| odometer.offsets[i] as usize;
        if let Some(i) = (0..inputs.len()).find(|&i| inputs[i][at(i)] == *y) {
            sums[i][odometer.offsets[i] as usize] += dy;
        }
        odometer.advance();
    }
    ctx.each(|i| Ok(Some(Tensor::from_slice(ctx.dims(i)?.to_vec(), &sums[i])?)))
}

pub(super) static MAX: GradDef =
    GradDef { op_type: "Max", domain: "", reads: Reads::All, grad: picked };
pub(super) static MIN: GradDef =
    GradDef { op_type: "Min", domain: "", reads: Reads::All, grad: picked };
