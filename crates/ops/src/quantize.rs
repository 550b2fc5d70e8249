//! QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear. The arithmetic is `midtread-num`'s.

use std::{num::NonZeroUsize, ops::Range};

use midtread_graph::{DataType, Node, Tensor};
use midtread_kernels::{min_max::min_max, quantize as kernel};
use midtread_num::{
    Granularity, Layout, QParams, QRange, dynamic,
    granularity::{Run, RunParams},
    pack::SubByte,
    tensor::{self, Code},
};
use rayon::prelude::*;

use crate::{
    attr,
    cast::{Rounding, cast, cast_as, small_float, small_floats},
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    infer::{InferCtx, normalize_axis},
    typed::{elements, narrowed, unsupported_type, widened},
};

/// ONNX QuantizeLinear 10, 13 (per axis), 19, 21 (blocked), 23, 24, 25 and 28.
pub(crate) static QUANTIZE_LINEAR: OpDef = OpDef {
    op_type: "QuantizeLinear",
    domain: "",
    versions: &[10, 13, 19, 21, 23, 24, 25, 28],
    attrs: &["axis", "block_size", "output_dtype", "precision", "saturate"],
    infer: |ctx| infer_quantize(ctx),
    eval: Eval::Tensors(quantize_linear),
    role: Role::Structural,
};

/// ONNX DequantizeLinear 10, 13 (per axis), 19, 21 (blocked), 23, 24, 25 and 28.
pub(crate) static DEQUANTIZE_LINEAR: OpDef = OpDef {
    op_type: "DequantizeLinear",
    domain: "",
    versions: &[10, 13, 19, 21, 23, 24, 25, 28],
    attrs: &["axis", "block_size", "output_dtype"],
    infer: |ctx| infer_dequantize(ctx),
    eval: Eval::Tensors(dequantize_linear),
    role: Role::Structural,
};

/// QuantizeLinear of 16- and 4-bit types before opset 21, in ONNX Runtime's domain.
pub(crate) static MS_QUANTIZE_LINEAR: OpDef = OpDef {
    op_type: "QuantizeLinear",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &["axis"],
    infer: |ctx| infer_quantize(ctx),
    eval: Eval::Tensors(quantize_linear),
    role: Role::Structural,
};

/// DequantizeLinear of 16- and 4-bit types before opset 21, in ONNX Runtime's domain.
pub(crate) static MS_DEQUANTIZE_LINEAR: OpDef = OpDef {
    op_type: "DequantizeLinear",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &["axis"],
    infer: |ctx| infer_dequantize(ctx),
    eval: Eval::Tensors(dequantize_linear),
    role: Role::Structural,
};

/// ONNX DynamicQuantizeLinear 11. A tensor of zeros has scale 1, as in ONNX Runtime.
pub(crate) static DYNAMIC_QUANTIZE_LINEAR: OpDef = OpDef {
    op_type: "DynamicQuantizeLinear",
    domain: "",
    versions: &[11],
    attrs: &[],
    infer: |ctx| {
        ctx.set(0, Some(DataType::Uint8), ctx.dims(0).map(<[_]>::to_vec));
        ctx.set(1, Some(DataType::Float), Some(Vec::new()));
        ctx.set(2, Some(DataType::Uint8), Some(Vec::new()));
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        let x = args.required(0)?;
        let src = elements::<f32>(x)?;
        let params = dynamic_params(&src)?;
        let codes =
            quantized(ctx, &src, x.dims(), Granularity::PerTensor, &[params], DataType::Uint8)?;
        Ok(vec![codes, Tensor::scalar(params.scale()), Tensor::scalar(params.zero_point() as u8)])
    }),
    role: Role::Structural,
};

/// Parameters of DynamicQuantizeLinear for these values.
pub(crate) fn dynamic_params(values: &[f32]) -> Result<QParams, OpError> {
    let extremes = min_max(values);
    if extremes.n_infinite != 0 {
        return Err(OpError::Invalid("infinite values have no scale".to_owned()));
    }
    let (min, max) = extremes.range().unwrap_or((0.0, 0.0));
    let params = dynamic::quantize_linear_params(min, max, dynamic::ZeroScale::One);
    params.map_err(|err| OpError::Invalid(err.to_string()))
}

/// The integers of a quantized type.
pub(crate) fn code_range(dtype: DataType) -> Option<QRange> {
    Some(match dtype {
        DataType::Uint8 => QRange::U8,
        DataType::Int8 => QRange::I8,
        DataType::Uint16 => QRange::U16,
        DataType::Int16 => QRange::I16,
        DataType::Uint4 => QRange::U4,
        DataType::Int4 => QRange::I4,
        DataType::Uint2 => QRange::U2,
        DataType::Int2 => QRange::I2,
        _ => return None,
    })
}

/// The packed form of a type smaller than a byte.
pub(crate) fn sub_byte(dtype: DataType) -> Option<SubByte> {
    Some(match dtype {
        DataType::Uint4 => SubByte::Uint4,
        DataType::Int4 => SubByte::Int4,
        DataType::Uint2 => SubByte::Uint2,
        DataType::Int2 => SubByte::Int2,
        _ => return None,
    })
}

/// The elements of any integer tensor that holds codes or sums, widened.
pub(crate) fn codes(tensor: &Tensor) -> Result<Vec<i32>, OpError> {
    macro_rules! widened {
        ($t:ty) => {
            elements::<$t>(tensor)?.iter().map(|&q| i32::from(q)).collect()
        };
    }
    Ok(match tensor.dtype() {
        DataType::Uint8 => widened!(u8),
        DataType::Int8 => widened!(i8),
        DataType::Uint16 => widened!(u16),
        DataType::Int16 => widened!(i16),
        DataType::Int32 => widened!(i32),
        dtype => match sub_byte(dtype) {
            Some(packing) => {
                (0..tensor.len()).map(|i| i32::from(packing.get(tensor.as_bytes(), i))).collect()
            }
            None => return Err(unsupported_type(dtype)),
        },
    })
}

/// How scales of sizes `scale` belong to a tensor of sizes `dims`.
fn granularity(node: &Node, dims: &[usize], scale: &[usize]) -> Result<Granularity, OpError> {
    let block_size = attr::size(node, "block_size", 0)?;
    let axis = attr::int(node, "axis", 1)?;
    match (NonZeroUsize::new(block_size), scale) {
        (None, [] | [1]) => Ok(Granularity::PerTensor),
        (None, &[n]) => {
            let axis = normalize_axis(axis, dims.len())?;
            if dims[axis] != n {
                return Err(OpError::Invalid(format!("{n} scales for {} channels", dims[axis])));
            }
            Ok(Granularity::PerAxis { axis })
        }
        (None, _) => {
            Err(OpError::Invalid(format!("scales of sizes {scale:?} without `block_size`")))
        }
        (Some(block_size), _) => {
            let axis = normalize_axis(axis, dims.len())?;
            let blocked = Granularity::Blocked { axis, block_size };
            if blocked.params_shape(dims).ok().as_deref() != Some(scale) {
                return Err(OpError::Invalid(format!(
                    "scales of sizes {scale:?} for blocks of {block_size} along axis {axis} of {dims:?}"
                )));
            }
            Ok(blocked)
        }
    }
}

/// Checked parameters from a scale and a zero point tensor of the same sizes (or none: 0).
pub(crate) fn params(
    ctx: &EvalCtx<'_>,
    scale: &Tensor,
    zero_point: Option<&Tensor>,
    range: QRange,
) -> Result<Vec<QParams>, OpError> {
    let scale_f32 = widened(ctx, scale)?;
    let scales = elements::<f32>(&scale_f32)?;
    let zero_points = zero_point.map(codes).transpose()?;
    if zero_points.as_ref().is_some_and(|z| z.len() != scales.len()) {
        return Err(OpError::Invalid(format!(
            "{} scales and another number of zero points",
            scales.len()
        )));
    }
    let pair = |i: usize| {
        let zero_point = zero_points.as_ref().map_or(0, |z| z[i]);
        QParams::new(scales[i], zero_point, range).map_err(|err| OpError::Invalid(err.to_string()))
    };
    (0..scales.len()).map(pair).collect()
}

/// The scales of codes of a floating type, whose zero points have to be 0.
fn float_params(
    ctx: &EvalCtx<'_>,
    scale: &Tensor,
    zero_point: Option<&Tensor>,
) -> Result<Vec<QParams>, OpError> {
    if let Some(z) = zero_point
        && (z.len() != scale.len() || small_floats(z)?.iter().any(|&z| z != 0.0))
    {
        return Err(OpError::Invalid(format!("a zero point other than 0 of type {}", z.dtype())));
    }
    params(ctx, scale, None, QRange::I8)
}

/// An element type in an attribute; 0 says nothing.
pub(crate) fn type_attr(node: &Node, name: &'static str) -> Result<Option<DataType>, OpError> {
    match attr::int(node, name, 0)? {
        0 => Ok(None),
        number => i32::try_from(number)
            .ok()
            .and_then(DataType::from_onnx)
            .map(Some)
            .ok_or_else(|| OpError::Invalid(format!("`{name}` is {number}"))),
    }
}

/// The type of the codes: the zero point's, `output_dtype`, or `uint8`.
fn code_type(node: &Node, zero_point: Option<DataType>) -> Result<DataType, OpError> {
    let wanted = type_attr(node, "output_dtype")?;
    match (zero_point, wanted) {
        (Some(zero_point), Some(wanted)) if zero_point != wanted => Err(OpError::Invalid(format!(
            "`output_dtype` is {wanted} and the zero point {zero_point}"
        ))),
        (Some(dtype), _) | (None, Some(dtype)) => Ok(dtype),
        (None, None) => Ok(DataType::Uint8),
    }
}

fn infer_quantize(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let elem = match (ctx.input(2), ctx.elem(2)) {
        (Some(_), None) => None,
        (_, zero_point) => Some(code_type(ctx.node, zero_point)?),
    };
    ctx.set(0, elem, ctx.dims(0).map(<[_]>::to_vec));
    Ok(())
}

fn infer_dequantize(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let elem = type_attr(ctx.node, "output_dtype")?.or(ctx.elem(1));
    ctx.set(0, elem, ctx.dims(0).map(<[_]>::to_vec));
    Ok(())
}

/// Divides in `f32` also where the scale is a 16-bit float, as ONNX Runtime does; `precision` of a 16-bit float is
/// refused.
fn quantize_linear(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (x, scale, zero_point) = (args.required(0)?, args.required(1)?, args.get(2));
    if let Some(precision) = type_attr(ctx.node, "precision")?
        && precision != DataType::Float
    {
        return Err(OpError::Unsupported(format!("`precision` {precision}")));
    }
    let dtype = code_type(ctx.node, zero_point.map(Tensor::dtype))?;
    let granularity = granularity(ctx.node, x.dims(), scale.dims())?;
    let wide = widened(ctx, x)?;
    if small_float(dtype).is_some() {
        let params = float_params(ctx, scale, zero_point)?;
        let mut values = cast(ctx, wide, DataType::Float)?;
        tensor::divide_by_scales(values.to_mut()?, layout(granularity, x.dims())?, &params);
        if zero_point.is_some() && dtype.n_bits().is_some_and(|bits| bits < 8) {
            // The zero point is added, to -0 too, which becomes 0.
            values.to_mut::<f32>()?.iter_mut().for_each(|x| *x += 0.0);
        }
        return Ok(vec![cast_as(ctx, values, dtype, Rounding::read(ctx)?)?]);
    }
    let range = code_range(dtype).ok_or_else(|| unsupported_type(dtype))?;
    let params = params(ctx, scale, zero_point, range)?;
    let src = match wide.dtype() {
        DataType::Int32 => elements::<i32>(&wide)?.iter().map(|&i| i as f32).collect(),
        _ => elements::<f32>(&wide)?,
    };
    Ok(vec![quantized(ctx, &src, x.dims(), granularity, &params, dtype)?])
}

/// A tensor of codes of type `dtype`.
pub(crate) fn quantized(
    ctx: &EvalCtx<'_>,
    src: &[f32],
    dims: &[usize],
    granularity: Granularity,
    params: &[QParams],
    dtype: DataType,
) -> Result<Tensor, OpError> {
    let range = code_range(dtype).ok_or_else(|| unsupported_type(dtype))?;
    let layout = layout(granularity, dims)?;
    let mut out = ctx.pool.tensor(dtype, dims.to_vec())?;
    match dtype {
        DataType::Uint8 => {
            quantize_runs(src, out.to_mut()?, layout, params, range, kernel::quantize_u8)
        }
        DataType::Int8 => {
            quantize_runs(src, out.to_mut()?, layout, params, range, kernel::quantize_i8)
        }
        DataType::Uint16 => {
            quantize_runs(src, out.to_mut()?, layout, params, range, kernel::quantize_u16)
        }
        DataType::Int16 => {
            quantize_runs(src, out.to_mut()?, layout, params, range, kernel::quantize_i16)
        }
        _ => {
            let packing = sub_byte(dtype).ok_or_else(|| unsupported_type(dtype))?;
            let mut codes = vec![0_i8; src.len()];
            tensor::quantize(src, &mut codes, layout, params, range);
            let bytes = packing.pack(&codes).map_err(|err| OpError::Invalid(err.to_string()))?;
            out.bytes_mut().copy_from_slice(&bytes);
        }
    }
    Ok(out)
}

/// Elements that a thread takes at a time: more than a thread costs to wake, fewer than a cache holds.
const CHUNK: usize = 1 << 14;

/// Runs with parameters of their own, if the layout consists of such and they are long enough for a kernel.
fn long_runs(layout: Layout) -> Option<impl Iterator<Item = (Range<usize>, usize)>> {
    let one = |run: Run| match run.params {
        RunParams::One(param) => Some((run.elements, param)),
        RunParams::Each(_) => None,
    };
    let (first, _) = one(layout.runs().next()?)?;
    (16 <= first.len()).then(|| layout.runs().filter_map(one))
}

fn quantize_runs<T: Code + Send>(
    src: &[f32],
    dst: &mut [T],
    layout: Layout,
    params: &[QParams],
    range: QRange,
    kernel: fn(&[f32], &mut [T], QParams, QRange),
) {
    let Some(runs) = long_runs(layout) else {
        return tensor::quantize(src, dst, layout, params, range);
    };
    for (at, param) in runs {
        let chunks = dst[at.clone()].par_chunks_mut(CHUNK).zip(src[at].par_chunks(CHUNK));
        chunks.for_each(|(dst, src)| kernel(src, dst, params[param], range));
    }
}

fn dequantize_runs<T: Code + Sync>(
    src: &[T],
    dst: &mut [f32],
    layout: Layout,
    params: &[QParams],
    kernel: fn(&[T], &mut [f32], QParams),
) {
    let Some(runs) = long_runs(layout) else { return tensor::dequantize(src, dst, layout, params) };
    for (at, param) in runs {
        let chunks = dst[at.clone()].par_chunks_mut(CHUNK).zip(src[at].par_chunks(CHUNK));
        chunks.for_each(|(dst, src)| kernel(src, dst, params[param]));
    }
}

fn layout(granularity: Granularity, dims: &[usize]) -> Result<Layout, OpError> {
    granularity.layout(dims).map_err(|err| OpError::Invalid(err.to_string()))
}

fn dequantize_linear(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (x, scale, zero_point) = (args.required(0)?, args.required(1)?, args.get(2));
    let to = type_attr(ctx.node, "output_dtype")?.unwrap_or(scale.dtype());
    if zero_point.is_some_and(|z| z.dtype() != x.dtype()) {
        return Err(OpError::Invalid(format!(
            "a zero point of another type than the codes, {}",
            x.dtype()
        )));
    }
    let granularity = granularity(ctx.node, x.dims(), scale.dims())?;
    if small_float(x.dtype()).is_some() {
        let params = float_params(ctx, scale, zero_point)?;
        let mut y = cast(ctx, x.clone(), DataType::Float)?;
        tensor::multiply_by_scales(y.to_mut()?, layout(granularity, x.dims())?, &params);
        return Ok(vec![cast(ctx, y, to)?]);
    }
    // Sums of products have no zero point.
    let range = match x.dtype() {
        DataType::Int32 => QRange::I16,
        dtype => code_range(dtype).ok_or_else(|| unsupported_type(dtype))?,
    };
    let params = params(ctx, scale, zero_point, range)?;
    let y = dequantized(ctx, x, granularity, &params)?;
    if !matches!(to, DataType::Float | DataType::Float16 | DataType::Bfloat16) {
        return Err(unsupported_type(to));
    }
    Ok(vec![narrowed(ctx, &y, to)?])
}

/// Codes as `f32`.
pub(crate) fn dequantized(
    ctx: &EvalCtx<'_>,
    x: &Tensor,
    granularity: Granularity,
    params: &[QParams],
) -> Result<Tensor, OpError> {
    let layout = layout(granularity, x.dims())?;
    ctx.pool.fill::<f32>(x.dims().to_vec(), |dst| {
        match x.dtype() {
            DataType::Uint8 => {
                dequantize_runs(&elements(x)?, dst, layout, params, kernel::dequantize_u8)
            }
            DataType::Int8 => {
                dequantize_runs(&elements(x)?, dst, layout, params, kernel::dequantize_i8)
            }
            DataType::Uint16 => {
                dequantize_runs(&elements(x)?, dst, layout, params, kernel::dequantize_u16)
            }
            DataType::Int16 => {
                dequantize_runs(&elements(x)?, dst, layout, params, kernel::dequantize_i16)
            }
            DataType::Int32 => tensor::dequantize(&elements::<i32>(x)?, dst, layout, params),
            dtype => {
                let packing = sub_byte(dtype).ok_or_else(|| unsupported_type(dtype))?;
                let codes: Vec<i8> = (0..x.len()).map(|i| packing.get(x.as_bytes(), i)).collect();
                tensor::dequantize(&codes, dst, layout, params);
            }
        }
        Ok(())
    })
}
