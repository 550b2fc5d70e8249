//! Reductions.

use midtread_graph::Tensor;

use crate::{
    eval::OpError,
    grad::{GradCtx, GradDef, Reads},
    reduce::reduced_axes_of,
    shape::{Odometer, broadcast_strides},
    typed::elements,
};

/// `dy * slope(x, y, n)`, where `y` is what the element was reduced to, with `n` elements.
fn spread(
    ctx: &GradCtx<'_>,
    slope: impl Fn(f32, f32, usize) -> f32,
) -> Result<Vec<Option<Tensor>>, OpError> {
    let dims = ctx.dims(0)?;
    let axes = reduced_axes_of(ctx.node, ctx.inputs.get(1).and_then(Option::as_ref), dims.len())?;
    let kept: Vec<usize> =
        dims.iter().enumerate().map(|(i, &d)| if axes.contains(&i) { 1 } else { d }).collect();
    let n = axes.iter().map(|&a| dims[a]).product();
    let strides = broadcast_strides(&kept, dims);
    let dy = elements::<f32>(ctx.dy()?)?;
    let (x, y) = (ctx.opt_x(0)?, ctx.outputs.first().and_then(Option::as_ref));
    let y = y.map(elements::<f32>).transpose()?;
    ctx.each(|i| {
        if i != 0 {
            return Ok(None);
        }
        ctx.like(0, |dx| {
            let mut odometer = Odometer::new(dims, &[&strides]);
            for (k, dx) in dx.iter_mut().enumerate() {
                let at = odometer.offsets[0] as usize;
                let (x, y) = (x.as_ref().map_or(0.0, |x| x[k]), y.as_ref().map_or(0.0, |y| y[at]));
                *dx = dy[at] * slope(x, y, n);
                odometer.advance();
            }
            Ok(())
        })
    })
}

macro_rules! reductions {
    ($($name:ident: $op:literal, $reads:expr, |$x:ident, $y:ident, $n:ident| $slope:expr;)*) => {$(
        pub(super) static $name: GradDef = GradDef {
            op_type: $op,
            domain: "",
            reads: $reads,
            grad: |ctx| spread(ctx, |$x, $y, $n| $slope),
        };
    )*};
}

reductions! {
    REDUCE_L1: "ReduceL1", Reads::Inputs, |x, _y, _n| if x < 0.0 { -1.0 } else { 1.0 };
    REDUCE_L2: "ReduceL2", Reads::All, |x, y, _n| if y == 0.0 { 0.0 } else { x / y };
    REDUCE_LOG_SUM_EXP: "ReduceLogSumExp", Reads::All, |x, y, _n| (x - y).exp();
    REDUCE_MAX: "ReduceMax", Reads::All, |x, y, _n| if x == y { 1.0 } else { 0.0 };
    REDUCE_MEAN: "ReduceMean", Reads::InputsFrom(1), |_x, _y, n| 1.0 / n as f32;
    REDUCE_MIN: "ReduceMin", Reads::All, |x, y, _n| if x == y { 1.0 } else { 0.0 };
    REDUCE_SUM: "ReduceSum", Reads::InputsFrom(1), |_x, _y, _n| 1.0;
    REDUCE_SUM_SQUARE: "ReduceSumSquare", Reads::Inputs, |x, _y, _n| 2.0 * x;
}
