//! Operators that only move elements: what comes out is found by moving numbers instead of values.
//!
//! The operator is run once more on the positions of its inputs' elements (from 1; what the operator makes up itself,
//! such as padding, is 0). So the gradient of every such operator is one function, which adds each output element's
//! gradient to the element it came from.

use midtread_graph::{DataType, Tensor};

use crate::{
    attr,
    eval::{Args, EvalCtx, OpError},
    grad::{GradCtx, GradDef, Reads},
    resize::interpolation_gradient,
    shape::product,
    table::find,
};

macro_rules! moves {
    ($($name:ident: $op:literal, $data:expr, $reads:expr;)*) => {$(
        pub(super) static $name: GradDef = GradDef {
            op_type: $op,
            domain: "",
            reads: $reads,
            grad: |ctx| moved(ctx, &|i| $data.contains(&i)),
        };
    )*};
}

const ALL: std::ops::Range<usize> = 0..usize::MAX;
const FIRST: std::ops::Range<usize> = 0..1;

moves! {
    CONCAT: "Concat", ALL, Reads::Nothing;
    DEPTH_TO_SPACE: "DepthToSpace", FIRST, Reads::Nothing;
    EXPAND: "Expand", FIRST, Reads::InputsFrom(1);
    GATHER: "Gather", FIRST, Reads::InputsFrom(1);
    GATHER_ELEMENTS: "GatherElements", FIRST, Reads::InputsFrom(1);
    GATHER_ND: "GatherND", FIRST, Reads::InputsFrom(1);
    SLICE: "Slice", FIRST, Reads::InputsFrom(1);
    SPACE_TO_DEPTH: "SpaceToDepth", FIRST, Reads::Nothing;
    SPLIT: "Split", FIRST, Reads::InputsFrom(1);
    TILE: "Tile", FIRST, Reads::InputsFrom(1);
    TRANSPOSE: "Transpose", FIRST, Reads::Nothing;
    TRILU: "Trilu", FIRST, Reads::InputsFrom(1);
    WHERE: "Where", 1..3, Reads::Inputs;
}

/// The value in the padding is no element, so its place is taken by 0.
pub(super) static PAD: GradDef = GradDef {
    op_type: "Pad",
    domain: "",
    reads: Reads::InputsFrom(1),
    grad: |ctx| {
        let mut inputs = ctx.inputs.to_vec();
        if let Some(value) = inputs.get_mut(2).and_then(Option::as_mut) {
            *value = Tensor::from_slice(value.dims().to_vec(), &vec![0_i64; value.len()])?;
        }
        moved(&GradCtx { inputs: &inputs, ..*ctx }, &|i| i == 0)
    },
};

/// Nearest elements are moved; interpolated ones are sums.
pub(super) static RESIZE: GradDef = GradDef {
    op_type: "Resize",
    domain: "",
    reads: Reads::InputsFrom(1),
    grad: |ctx| {
        if attr::string(ctx.node, "mode", "nearest")? != "nearest" {
            let eval = EvalCtx { node: ctx.node, opset: ctx.opset, pool: ctx.pool };
            let args = Args(ctx.inputs.to_vec());
            return ctx.each(|i| match i {
                0 => interpolation_gradient(&eval, ctx.dims(0)?, &args, ctx.dy()?).map(Some),
                _ => Ok(None),
            });
        }
        if ctx.node.attr("extrapolation_value").is_some() {
            return Err(OpError::Unsupported("a gradient with `extrapolation_value`".into()));
        }
        moved(ctx, &|i| i == 0)
    },
};

macro_rules! scatters {
    ($($name:ident: $op:literal;)*) => {$(
        /// What is written over gets nothing.
        pub(super) static $name: GradDef = GradDef {
            op_type: $op,
            domain: "",
            reads: Reads::InputsFrom(1),
            grad: |ctx| match attr::string(ctx.node, "reduction", "none")? {
                "none" => moved(ctx, &|i| i != 1),
                other => Err(OpError::Unsupported(format!("a gradient with `reduction` {other}"))),
            },
        };
    )*};
}

scatters! {
    SCATTER_ELEMENTS: "ScatterElements";
    SCATTER_ND: "ScatterND";
}

macro_rules! reshapes {
    ($($name:ident: $op:literal;)*) => {$(
        /// The same elements under other sizes.
        pub(super) static $name: GradDef = GradDef {
            op_type: $op,
            domain: "",
            reads: Reads::Nothing,
            grad: |ctx| {
                ctx.each(|i| match i {
                    0 => Ok(Some(ctx.dy()?.reshaped(ctx.dims(0)?.to_vec())?)),
                    _ => Ok(None),
                })
            },
        };
    )*};
}

reshapes! {
    FLATTEN: "Flatten";
    IDENTITY: "Identity";
    RESHAPE: "Reshape";
    SQUEEZE: "Squeeze";
    UNSQUEEZE: "Unsqueeze";
}

/// `is_data` says which inputs are moved; the others say how.
fn moved(
    ctx: &GradCtx<'_>,
    is_data: &dyn Fn(usize) -> bool,
) -> Result<Vec<Option<Tensor>>, OpError> {
    let mut next = 1_i64;
    let mut starts = vec![0_usize; ctx.in_dims.len()];
    let mut args = Vec::with_capacity(ctx.in_dims.len());
    for (i, dims) in ctx.in_dims.iter().enumerate() {
        args.push(match dims {
            Some(dims) if is_data(i) => {
                let n = product(dims);
                starts[i] = next as usize;
                let positions: Vec<i64> = (next..next + n as i64).collect();
                next += n as i64;
                Some(Tensor::from_slice(dims.clone(), &positions)?)
            }
            _ => ctx.inputs[i].clone(),
        });
    }
    let def = find(&ctx.node.domain, &ctx.node.op_type)
        .ok_or_else(|| OpError::Unsupported(format!("operator {}", ctx.node.op_type)))?;
    let eval = EvalCtx { node: ctx.node, opset: ctx.opset, pool: ctx.pool };
    let positions = def.evaluate_tensors(&eval, Args(args))?;
    let mut sums = vec![0.0_f32; next as usize];
    for (positions, grad) in positions.iter().zip(ctx.grads) {
        let Some(grad) = grad else { continue };
        debug_assert_eq!(positions.dtype(), DataType::Int64);
        for (&at, &dy) in positions.as_slice::<i64>()?.iter().zip(grad.as_slice::<f32>()?) {
            sums[at as usize] += dy;
        }
    }
    ctx.each(|i| {
        if !is_data(i) {
            return Ok(None);
        }
        ctx.like(i, |dx| {
            dx.copy_from_slice(&sums[starts[i]..][..dx.len()]);
            Ok(())
        })
    })
}
