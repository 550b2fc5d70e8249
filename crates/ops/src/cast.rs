//! Cast: between element types.

use half::{bf16, f16};
use midtread_graph::{Bytes, DataType, Tensor};
use midtread_num::formats::{
    bits,
    float::{FloatType, Overflow},
};

use crate::{
    attr,
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    quantize::{codes, sub_byte, type_attr},
    typed::{bools, elements, fill_bools, unsupported_type},
};

/// ONNX Cast 6, 9, 13, 19, 21, 23, 24, 25 and 28.
///
/// To a float type: to nearest, halves to even; the types of 8 bits saturate unless `saturate` is 0, those of fewer
/// always do. To `float8e8m0`: as `round_mode` says, of the magnitude. From a float type to an integer type: towards zero; where the
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
        Ok(vec![cast_as(ctx, args.take(0)?, to, Rounding::read(ctx)?)?])
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
        Ok(vec![cast_as(ctx, args.take(0)?, to, Rounding::read(ctx)?)?])
    }),
    role: Role::Structural,
};

/// ONNX BitCast 26: the same bytes as another type of the same width.
pub(crate) static BIT_CAST: OpDef = OpDef {
    op_type: "BitCast",
    domain: "",
    versions: &[26],
    attrs: &["to"],
    infer: |ctx| {
        let to = type_attr(ctx.node, "to")?.ok_or(OpError::MissingAttr("to"))?;
        ctx.set(0, Some(to), ctx.dims(0).map(<[_]>::to_vec));
        Ok(())
    },
    eval: Eval::Tensors(|ctx, mut args| {
        let to = type_attr(ctx.node, "to")?.ok_or(OpError::MissingAttr("to"))?;
        let x = args.take(0)?;
        if x.dtype() == DataType::String || to == DataType::String {
            return Err(unsupported_type(DataType::String));
        }
        if to == DataType::Bool {
            // Any byte but 0 is true, and true is 1.
            let bits = x.with_dtype(DataType::Bool)?;
            let y = fill_bools(ctx, bits.dims().to_vec(), |y| {
                y.iter_mut().zip(bits.as_bytes()).for_each(|(y, &b)| *y = u8::from(b != 0));
            })?;
            return Ok(vec![y]);
        }
        Ok(vec![x.with_dtype(to)?])
    }),
    role: Role::Structural,
};

/// How values become one of the small float types.
#[derive(Clone, Copy)]
pub(crate) struct Rounding {
    overflow: Overflow,
    scale: ScaleRounding,
}

/// Of a magnitude to a power of two: `round_mode`.
#[derive(Clone, Copy, PartialEq)]
enum ScaleRounding {
    Up,
    Down,
    Nearest,
}

impl Rounding {
    pub(crate) const SATURATE: Self =
        Self { overflow: Overflow::Saturate, scale: ScaleRounding::Up };

    pub(crate) fn read(ctx: &EvalCtx<'_>) -> Result<Self, OpError> {
        let saturates = attr::flag(ctx.node, "saturate", true)?;
        let scale = match attr::string(ctx.node, "round_mode", "up")? {
            "up" => ScaleRounding::Up,
            "down" => ScaleRounding::Down,
            "nearest" => ScaleRounding::Nearest,
            other => return Err(OpError::Invalid(format!("`round_mode` is `{other}`"))),
        };
        Ok(Self { overflow: if saturates { Overflow::Saturate } else { Overflow::Special }, scale })
    }

    /// The code of `float8e8m0` for a value: its power of two plus 127; 255 is NaN.
    fn scale_code(self, x: f64) -> u8 {
        // As the specification's reference: from `f32`, whose exponent field is the code.
        let bits = (x as f32).to_bits();
        let (exponent, fraction) = ((bits >> 23 & 0xff) as u8, bits & 0x7f_ffff);
        if exponent == 0xff {
            return 0xff;
        }
        let half = 0x40_0000;
        let up = match self.scale {
            ScaleRounding::Up => fraction != 0,
            ScaleRounding::Down => false,
            // A tie goes up, but for subnormal values, where half of the smallest code is no tie in value.
            ScaleRounding::Nearest => half < fraction || fraction == half && exponent != 0,
        };
        match up {
            true if exponent == 0xfe && self.overflow == Overflow::Saturate => 0xfe,
            true => exponent + 1,
            false => exponent,
        }
    }
}

/// The definition of a float type of 4, 6 or 8 bits.
pub(crate) fn small_float(dtype: DataType) -> Option<FloatType> {
    Some(match dtype {
        DataType::Float8E4M3FN => FloatType::FP8_E4M3FN,
        DataType::Float8E4M3FNUZ => FloatType::FP8_E4M3FNUZ,
        DataType::Float8E5M2 => FloatType::FP8_E5M2,
        DataType::Float8E5M2FNUZ => FloatType::FP8_E5M2FNUZ,
        DataType::Float6E2M3 => FloatType::FP6_E2M3,
        DataType::Float6E3M2 => FloatType::FP6_E3M2,
        DataType::Float4E2M1 => FloatType::FP4_E2M1,
        _ => return None,
    })
}

/// The values of a tensor of small floats.
pub(crate) fn small_floats(x: &Tensor) -> Result<Vec<f32>, OpError> {
    if x.dtype() == DataType::Float8E8M0 {
        let value = |&code: &u8| match code {
            0xff => f32::NAN,
            0 => f32::from_bits(0x40_0000),
            e => f32::from_bits(u32::from(e) << 23),
        };
        return Ok(x.as_bytes().iter().map(value).collect());
    }
    let ty = small_float(x.dtype()).ok_or_else(|| unsupported_type(x.dtype()))?;
    let codes = bits::unpack(x.as_bytes(), x.len(), ty.n_bits());
    Ok(codes.into_iter().map(|code| ty.decode(code as u32)).collect())
}

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
    cast_as(ctx, x, to, Rounding::SATURATE)
}

/// The number that a string says.
fn parsed(string: &[u8]) -> Result<f64, OpError> {
    let text = String::from_utf8_lossy(string);
    // Rust reads `inf`, `+INF`, `nan`, digits and exponents as the specification has them.
    text.trim().parse().map_err(|_| OpError::Invalid(format!("`{text}` is not a number")))
}

/// Strings as numbers, or numbers as strings.
fn cast_strings(ctx: &EvalCtx<'_>, x: &Tensor, to: DataType) -> Result<Tensor, OpError> {
    let dims = x.dims().to_vec();
    if let Some(strings) = x.as_strings() {
        // An integer of 64 bits has digits that an `f64` does not.
        let int = |s: &Bytes| -> Result<i64, OpError> {
            let exact = std::str::from_utf8(s).ok().and_then(|s| s.trim().parse().ok());
            exact.map_or_else(|| Ok(parsed(s)? as i64), Ok)
        };
        if matches!(to, DataType::Int64 | DataType::Uint64) {
            let ints = strings.iter().map(int).collect::<Result<Vec<_>, _>>()?;
            return cast_from::<i64>(ctx, &ints, &dims, to, Rounding::SATURATE);
        }
        let values = strings.iter().map(|s| parsed(s)).collect::<Result<Vec<_>, _>>()?;
        return cast_from::<f64>(ctx, &values, &dims, to, Rounding::SATURATE);
    }
    macro_rules! printed {
        ($t:ty, $f:expr) => {
            elements::<$t>(x)?.iter().map(|&e| Bytes::from($f(e))).collect()
        };
    }
    let strings: Vec<Bytes> = match x.dtype() {
        DataType::Float => printed!(f32, |e: f32| float_text(e.into(), e.to_string())),
        DataType::Double => printed!(f64, |e: f64| float_text(e, e.to_string())),
        DataType::Float16 => {
            printed!(f16, |e: f16| float_text(e.into(), e.to_f32().to_string()))
        }
        DataType::Bfloat16 => {
            printed!(bf16, |e: bf16| float_text(e.into(), e.to_f32().to_string()))
        }
        DataType::Bool => {
            let text = |&b: &u8| Bytes::from_static(if b != 0 { b"1" } else { b"0" });
            bools(x)?.iter().map(text).collect()
        }
        DataType::Uint64 => printed!(u64, |e: u64| e.to_string()),
        dtype if small_float(dtype).is_some() || dtype == DataType::Float8E8M0 => {
            return cast_strings(ctx, &cast(ctx, x.clone(), DataType::Float)?, to);
        }
        _ => {
            let wide = cast(ctx, x.clone(), DataType::Int64)?;
            elements::<i64>(&wide)?.iter().map(|e| e.to_string().into()).collect()
        }
    };
    Ok(Tensor::from_strings(dims, strings)?)
}

/// The shortest digits that give the value again, with a decimal point; `NaN`, `INF` and `-INF`.
fn float_text(value: f64, digits: String) -> String {
    match value {
        _ if value.is_nan() => "NaN".to_owned(),
        _ if value.is_infinite() => if 0.0 < value { "INF" } else { "-INF" }.to_owned(),
        _ => digits,
    }
}

/// [`cast`] with a rule for the small float types.
pub(crate) fn cast_as(
    ctx: &EvalCtx<'_>,
    x: Tensor,
    to: DataType,
    rounding: Rounding,
) -> Result<Tensor, OpError> {
    if x.dtype() == to {
        return Ok(x);
    }
    if x.dtype() == DataType::String || to == DataType::String {
        return cast_strings(ctx, &x, to);
    }
    match x.dtype() {
        DataType::Float => cast_from::<f32>(ctx, &elements(&x)?, x.dims(), to, rounding),
        DataType::Double => cast_from::<f64>(ctx, &elements(&x)?, x.dims(), to, rounding),
        DataType::Float16 => cast_from::<f16>(ctx, &elements(&x)?, x.dims(), to, rounding),
        DataType::Bfloat16 => cast_from::<bf16>(ctx, &elements(&x)?, x.dims(), to, rounding),
        DataType::Uint8 => cast_from::<u8>(ctx, &elements(&x)?, x.dims(), to, rounding),
        DataType::Int8 => cast_from::<i8>(ctx, &elements(&x)?, x.dims(), to, rounding),
        DataType::Uint16 => cast_from::<u16>(ctx, &elements(&x)?, x.dims(), to, rounding),
        DataType::Int16 => cast_from::<i16>(ctx, &elements(&x)?, x.dims(), to, rounding),
        DataType::Uint32 => cast_from::<u32>(ctx, &elements(&x)?, x.dims(), to, rounding),
        DataType::Int32 => cast_from::<i32>(ctx, &elements(&x)?, x.dims(), to, rounding),
        DataType::Uint64 => cast_from::<u64>(ctx, &elements(&x)?, x.dims(), to, rounding),
        DataType::Int64 => cast_from::<i64>(ctx, &elements(&x)?, x.dims(), to, rounding),
        DataType::Bool => {
            let bits: Vec<u8> = bools(&x)?.iter().map(|&b| u8::from(b != 0)).collect();
            cast_from::<u8>(ctx, &bits, x.dims(), to, rounding)
        }
        dtype if small_float(dtype).is_some() || dtype == DataType::Float8E8M0 => {
            cast_from::<f32>(ctx, &small_floats(&x)?, x.dims(), to, rounding)
        }
        dtype if sub_byte(dtype).is_some() => {
            cast_from::<i32>(ctx, &codes(&x)?, x.dims(), to, rounding)
        }
        dtype => Err(unsupported_type(dtype)),
    }
}

fn cast_from<S: Castable>(
    ctx: &EvalCtx<'_>,
    src: &[S],
    dims: &[usize],
    to: DataType,
    rounding: Rounding,
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
        DataType::Float8E8M0 => {
            let mut y = ctx.pool.tensor(to, dims.to_vec())?;
            let codes = src.iter().map(|s| rounding.scale_code(s.to_f64()));
            y.bytes_mut().iter_mut().zip(codes).for_each(|(y, code)| *y = code);
            Ok(y)
        }
        _ if small_float(to).is_some() => {
            let ty = small_float(to).ok_or_else(|| unsupported_type(to))?;
            let code = |s: &S| ty.encode_f64(s.to_f64(), rounding.overflow) as i32;
            let bytes = bits::pack(&src.iter().map(code).collect::<Vec<_>>(), ty.n_bits());
            Ok(Tensor::from_bytes(to, dims.to_vec(), bytes.into())?)
        }
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
