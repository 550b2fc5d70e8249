//! Cast: between element types.

use half::{bf16, f16};
use midtread_graph::{DataType, Tensor};

use crate::{
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    quantize::{codes, sub_byte, type_attr},
    typed::{bools, elements, unsupported_type},
};

/// ONNX Cast 6, 9, 13, 19, 21, 23, 24, 25 and 28, without strings and 8-bit floats.
///
/// To a float type: to nearest, halves to even. From a float type to an integer type: towards zero; where the
/// specification leaves the result undefined it saturates, except that types of 4 and 2 bits take the low bits, and
/// NaN is 0. From an integer to a narrower one: the low bits. To `bool`: whether it is not zero.
pub(crate) static CAST: OpDef = OpDef {
    op_type: "Cast",
    domain: "",
    versions: &[6, 9, 13, 19, 21, 23, 24, 25, 28],
    attrs: &["round_mode", "saturate", "to"],
    infer: |ctx| {
        let to = type_attr(ctx.node, "to")?.ok_or(OpError::MissingAttr("to"))?;
        ctx.set(0, Some(to), ctx.dims(0).map(<[_]>::to_vec));
        if matches!(to, DataType::Int64 | DataType::Int32) {
            ctx.set_value(0, ctx.value(0));
        }
        Ok(())
    },
    eval: Eval::Tensors(|ctx, mut args| {
        let to = type_attr(ctx.node, "to")?.ok_or(OpError::MissingAttr("to"))?;
        Ok(vec![cast(ctx, args.take(0)?, to)?])
    }),
    role: Role::Structural,
};

/// ONNX CastLike 15, 19, 21, 23, 24 and 25.
pub(crate) static CAST_LIKE: OpDef = OpDef {
    op_type: "CastLike",
    domain: "",
    versions: &[15, 19, 21, 23, 24, 25],
    attrs: &["round_mode", "saturate"],
    infer: |ctx| {
        ctx.set(0, ctx.elem(1), ctx.dims(0).map(<[_]>::to_vec));
        Ok(())
    },
    eval: Eval::Tensors(|ctx, mut args: Args| {
        let to = args.required(1)?.dtype();
        Ok(vec![cast(ctx, args.take(0)?, to)?])
    }),
    role: Role::Structural,
};

/// A type that can be cast from; the wide types hold every value of the others on their side.
trait Castable: Copy {
    fn to_f64(self) -> f64;
    fn to_f32(self) -> f32;
    /// Floats are cut towards zero and saturate.
    fn to_i64(self) -> i64;
    fn to_u64(self) -> u64;
    /// Low bits, or of a float the saturated value of the type `[lo, hi]`.
    fn to_narrow(self, lo: i64, hi: i64) -> i64;
    fn is_zero(self) -> bool;
}

macro_rules! from_integer {
    ($($t:ty),*) => {$(
        impl Castable for $t {
            fn to_f64(self) -> f64 { self as f64 }
            fn to_f32(self) -> f32 { self as f32 }
            fn to_i64(self) -> i64 { self as i64 }
            fn to_u64(self) -> u64 { self as u64 }
            fn to_narrow(self, _: i64, _: i64) -> i64 { self as i64 }
            fn is_zero(self) -> bool { self == 0 }
        }
    )*};
}

macro_rules! from_float {
    ($($t:ty),*) => {$(
        impl Castable for $t {
            fn to_f64(self) -> f64 { f64::from(self) }
            fn to_f32(self) -> f32 { f64::from(self) as f32 }
            fn to_i64(self) -> i64 { f64::from(self) as i64 }
            fn to_u64(self) -> u64 { f64::from(self) as u64 }
            fn to_narrow(self, lo: i64, hi: i64) -> i64 { (f64::from(self) as i64).clamp(lo, hi) }
            fn is_zero(self) -> bool { f64::from(self) == 0.0 }
        }
    )*};
}

from_integer!(u8, i8, u16, i16, u32, i32, u64, i64);
from_float!(f16, bf16, f32, f64);

/// `x` with elements of type `to`.
pub(crate) fn cast(ctx: &EvalCtx<'_>, x: Tensor, to: DataType) -> Result<Tensor, OpError> {
    if x.dtype() == to {
        return Ok(x);
    }
    match x.dtype() {
        DataType::Float => cast_from::<f32>(ctx, &elements(&x)?, x.dims(), to),
        DataType::Double => cast_from::<f64>(ctx, &elements(&x)?, x.dims(), to),
        DataType::Float16 => cast_from::<f16>(ctx, &elements(&x)?, x.dims(), to),
        DataType::Bfloat16 => cast_from::<bf16>(ctx, &elements(&x)?, x.dims(), to),
        DataType::Uint8 => cast_from::<u8>(ctx, &elements(&x)?, x.dims(), to),
        DataType::Int8 => cast_from::<i8>(ctx, &elements(&x)?, x.dims(), to),
        DataType::Uint16 => cast_from::<u16>(ctx, &elements(&x)?, x.dims(), to),
        DataType::Int16 => cast_from::<i16>(ctx, &elements(&x)?, x.dims(), to),
        DataType::Uint32 => cast_from::<u32>(ctx, &elements(&x)?, x.dims(), to),
        DataType::Int32 => cast_from::<i32>(ctx, &elements(&x)?, x.dims(), to),
        DataType::Uint64 => cast_from::<u64>(ctx, &elements(&x)?, x.dims(), to),
        DataType::Int64 => cast_from::<i64>(ctx, &elements(&x)?, x.dims(), to),
        DataType::Bool => {
            let bits: Vec<u8> = bools(&x)?.iter().map(|&b| u8::from(b != 0)).collect();
            cast_from::<u8>(ctx, &bits, x.dims(), to)
        }
        dtype if sub_byte(dtype).is_some() => cast_from::<i32>(ctx, &codes(&x)?, x.dims(), to),
        dtype => Err(unsupported_type(dtype)),
    }
}

fn cast_from<S: Castable>(
    ctx: &EvalCtx<'_>,
    src: &[S],
    dims: &[usize],
    to: DataType,
) -> Result<Tensor, OpError> {
    macro_rules! write {
        ($t:ty, $f:expr) => {
            ctx.pool.fill::<$t>(dims.to_vec(), |dst| {
                for (d, &s) in dst.iter_mut().zip(src) {
                    *d = $f(s);
                }
                Ok(())
            })
        };
    }
    macro_rules! narrow {
        ($t:ty) => {
            write!($t, |s: S| s.to_narrow(i64::from(<$t>::MIN), i64::from(<$t>::MAX)) as $t)
        };
    }
    match to {
        DataType::Float => write!(f32, S::to_f32),
        DataType::Double => write!(f64, S::to_f64),
        DataType::Float16 => write!(f16, |s: S| f16::from_f64(s.to_f64())),
        DataType::Bfloat16 => write!(bf16, |s: S| bf16::from_f64(s.to_f64())),
        DataType::Int64 => write!(i64, S::to_i64),
        DataType::Uint64 => write!(u64, S::to_u64),
        DataType::Uint8 => narrow!(u8),
        DataType::Int8 => narrow!(i8),
        DataType::Uint16 => narrow!(u16),
        DataType::Int16 => narrow!(i16),
        DataType::Uint32 => narrow!(u32),
        DataType::Int32 => narrow!(i32),
        DataType::Bool => crate::typed::fill_bools(ctx, dims.to_vec(), |dst| {
            dst.iter_mut().zip(src).for_each(|(d, s)| *d = u8::from(!s.is_zero()));
        }),
        _ => {
            let packing = sub_byte(to).ok_or_else(|| unsupported_type(to))?;
            let range = packing.range();
            let (lo, hi) = (i64::from(range.qmin()), i64::from(range.qmax()));
            let n = hi - lo + 1;
            // Low bits for floats too, as onnx's reference does.
            let wrapped = |s: S| (s.to_i64().wrapping_sub(lo)).rem_euclid(n) + lo;
            let codes: Vec<i8> = src.iter().map(|&s| wrapped(s) as i8).collect();
            let bytes = packing.pack(&codes).map_err(|err| OpError::Invalid(err.to_string()))?;
            Ok(Tensor::from_bytes(to, dims.to_vec(), bytes.into())?)
        }
    }
}
