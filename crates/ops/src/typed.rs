//! Tensors as slices of a Rust type, and operators over several element types.

use std::borrow::Cow;

use half::{bf16, f16, slice::HalfFloatSliceExt};
use midtread_graph::{DataType, Element, Tensor, TensorError};

use crate::eval::{Args, EvalCtx, OpError};

/// `body` with `$t` as the Rust type of `$dtype`, if it is one of those listed.
macro_rules! by_type {
    ($dtype:expr, $t:ident in [$($rust:ty),* $(,)?] => $body:expr) => {
        match $dtype {
            $(d if d == <$rust as midtread_graph::Element>::DATA_TYPE => {
                type $t = $rust;
                $body
            })*
            other => Err($crate::typed::unsupported_type(other)),
        }
    };
}
pub(crate) use by_type;

/// An element type that an operator does not take here.
pub(crate) fn unsupported_type(dtype: DataType) -> OpError {
    OpError::Unsupported(format!("element type {dtype}"))
}

/// The elements; copied where they lie unaligned in a file.
pub(crate) fn elements<T: Element>(tensor: &Tensor) -> Result<Cow<'_, [T]>, OpError> {
    match tensor.as_slice() {
        Ok(slice) => Ok(Cow::Borrowed(slice)),
        Err(TensorError::Unaligned(_)) => Ok(Cow::Owned(tensor.to_vec()?)),
        Err(err) => Err(err.into()),
    }
}

/// One byte per element of a `bool` tensor: zero is false.
pub(crate) fn bools(tensor: &Tensor) -> Result<&[u8], OpError> {
    check_type(tensor, DataType::Bool)?;
    Ok(tensor.as_bytes())
}

/// An error if the tensor has another element type.
pub(crate) fn check_type(tensor: &Tensor, asked: DataType) -> Result<(), OpError> {
    match tensor.dtype() {
        got if got == asked => Ok(()),
        got => Err(TensorError::Type { asked, got }.into()),
    }
}

/// A tensor of `bool` made by writing one byte (0 or 1) per element.
pub(crate) fn fill_bools(
    ctx: &EvalCtx<'_>,
    dims: Vec<usize>,
    write: impl FnOnce(&mut [u8]),
) -> Result<Tensor, OpError> {
    let mut out = ctx.pool.tensor(DataType::Bool, dims)?;
    write(out.bytes_mut());
    Ok(out)
}

/// Runs an operator that is defined on `f32`, also on 16-bit floats: they are converted, and the float results
/// converted back (one rounding, as in runtimes that compute halves in single precision).
pub(crate) fn in_f32(
    ctx: &EvalCtx<'_>,
    mut args: Args,
    eval: impl FnOnce(&EvalCtx<'_>, Args) -> Result<Vec<Tensor>, OpError>,
) -> Result<Vec<Tensor>, OpError> {
    let is_half = |t: &&Tensor| matches!(t.dtype(), DataType::Float16 | DataType::Bfloat16);
    let Some(half) = args.0.iter().flatten().find(is_half).map(Tensor::dtype) else {
        return eval(ctx, args);
    };
    for tensor in args.0.iter_mut().flatten() {
        *tensor = widened(ctx, tensor)?;
    }
    eval(ctx, args)?.iter().map(|t| narrowed(ctx, t, half)).collect()
}

/// 16-bit floats as `f32`; anything else as it is.
pub(crate) fn widened(ctx: &EvalCtx<'_>, tensor: &Tensor) -> Result<Tensor, OpError> {
    let dims = tensor.dims().to_vec();
    match tensor.dtype() {
        DataType::Float16 => ctx.pool.fill::<f32>(dims, |dst| {
            elements::<f16>(tensor)?.convert_to_f32_slice(dst);
            Ok(())
        }),
        DataType::Bfloat16 => ctx.pool.fill::<f32>(dims, |dst| {
            elements::<bf16>(tensor)?.convert_to_f32_slice(dst);
            Ok(())
        }),
        _ => Ok(tensor.clone()),
    }
}

/// An `f32` tensor as one of the 16-bit floats, rounded to nearest even; anything else as it is.
pub(crate) fn narrowed(
    ctx: &EvalCtx<'_>,
    tensor: &Tensor,
    to: DataType,
) -> Result<Tensor, OpError> {
    let dims = tensor.dims().to_vec();
    match (tensor.dtype(), to) {
        (DataType::Float, DataType::Float16) => ctx.pool.fill::<f16>(dims, |dst| {
            dst.convert_from_f32_slice(&elements::<f32>(tensor)?);
            Ok(())
        }),
        (DataType::Float, DataType::Bfloat16) => ctx.pool.fill::<bf16>(dims, |dst| {
            dst.convert_from_f32_slice(&elements::<f32>(tensor)?);
            Ok(())
        }),
        _ => Ok(tensor.clone()),
    }
}

/// The elements of an integer tensor that gives shapes, axes or indices.
pub(crate) fn indices(tensor: &Tensor) -> Result<Vec<i64>, OpError> {
    crate::infer::ints(tensor).ok_or_else(|| unsupported_type(tensor.dtype()))
}

/// The elements of a tensor of floats or integers of at most 32 bits (all exact), as `f64`. For operators that are
/// rare enough to be computed in double precision whatever their type.
pub(crate) fn reals(tensor: &Tensor) -> Result<Vec<f64>, OpError> {
    macro_rules! widened {
        ($t:ty) => {
            elements::<$t>(tensor)?.iter().map(|&x| f64::from(x)).collect()
        };
    }
    Ok(match tensor.dtype() {
        DataType::Float => widened!(f32),
        DataType::Double => widened!(f64),
        DataType::Float16 => widened!(f16),
        DataType::Bfloat16 => widened!(bf16),
        DataType::Uint8 => widened!(u8),
        DataType::Int8 => widened!(i8),
        DataType::Uint16 => widened!(u16),
        DataType::Int16 => widened!(i16),
        DataType::Uint32 => widened!(u32),
        DataType::Int32 => widened!(i32),
        dtype => return Err(unsupported_type(dtype)),
    })
}

/// A tensor of a float type whose elements are these, each rounded once.
pub(crate) fn from_reals(
    ctx: &EvalCtx<'_>,
    dtype: DataType,
    dims: Vec<usize>,
    values: &[f64],
) -> Result<Tensor, OpError> {
    macro_rules! rounded {
        ($t:ty, $f:expr) => {
            ctx.pool.fill::<$t>(dims, |dst| {
                if dst.len() != values.len() {
                    return Err(OpError::Invalid(format!(
                        "{} elements where {} are needed",
                        values.len(),
                        dst.len()
                    )));
                }
                dst.iter_mut().zip(values).for_each(|(d, &x)| *d = $f(x));
                Ok(())
            })
        };
    }
    match dtype {
        DataType::Float => rounded!(f32, |x| x as f32),
        DataType::Double => rounded!(f64, |x| x),
        DataType::Float16 => rounded!(f16, f16::from_f64),
        DataType::Bfloat16 => rounded!(bf16, bf16::from_f64),
        dtype => Err(unsupported_type(dtype)),
    }
}
