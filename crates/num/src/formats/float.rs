//! Floating types of at most 16 bits: sign, exponent, mantissa, and what the last exponent means.
//!
//! A finite value is `(-1)^s * 2^(e - bias) * (1 + m / 2^M)` for an exponent field `e > 0` and
//! `(-1)^s * 2^(1 - bias) * m / 2^M` for `e = 0`. Types differ in the widths, the bias and [`Specials`]. Rounding is to
//! the nearest, ties to even, as everywhere (IEEE 754; "FP8 Formats for Deep Learning", Micikevicius et al. 2022; OCP
//! MX 1.0 for 6 and 4 bits; ONNX `Cast`).
//!
//! As a format for weights a type casts each value; with a sharing (`fp8_e4m3fn:row`) values are divided by
//! `scale = max_abs / largest` of their group first.

use alloc::vec;
use alloc::vec::Vec;

use super::{
    Encoded, FormatDef, FormatError, Matrix, PartLayout, PartType, Settings, Shape, Sharing, bits,
    f32_bytes, f32s, max_abs, search,
};
use crate::round::ties_even_f64;

/// What codes besides finite numbers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Specials {
    /// The last exponent is infinity (mantissa 0) and NaN: IEEE 754, E5M2.
    Ieee,
    /// The last code is NaN, for either sign; no infinity: E4M3FN.
    LastIsNan,
    /// Minus zero is NaN; no infinity: the FNUZ types.
    MinusZeroIsNan,
    /// None: FP6, FP4, and minifloats of any split.
    None,
}

/// What happens to a value beyond the largest finite one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// It becomes the largest finite one; infinity too. ONNX: `saturate = 1`.
    Saturate,
    /// It becomes infinity or NaN, whichever the type has; a type that has neither saturates. ONNX: `saturate = 0`.
    Special,
}

/// A floating type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FloatType {
    /// As `explain type` calls it.
    pub name: &'static str,
    /// Bits of the exponent field, 1..=8.
    pub exponent_bits: u32,
    /// Bits of the mantissa field, 0..=10.
    pub mantissa_bits: u32,
    /// What is subtracted from the exponent field.
    pub bias: i32,
    /// Infinity and NaN.
    pub specials: Specials,
}

/// Every named type.
pub static FLOAT_TYPES: &[FloatType] = &[
    FloatType::FLOAT16,
    FloatType::BFLOAT16,
    FloatType::FP8_E4M3FN,
    FloatType::FP8_E5M2,
    FloatType::FP8_E4M3FNUZ,
    FloatType::FP8_E5M2FNUZ,
    FloatType::FP6_E2M3,
    FloatType::FP6_E3M2,
    FloatType::FP4_E2M1,
];

impl FloatType {
    /// IEEE 754 binary16.
    pub const FLOAT16: Self = Self::new("float16", 5, 10, 15, Specials::Ieee);
    /// The upper half of float32.
    pub const BFLOAT16: Self = Self::new("bfloat16", 8, 7, 127, Specials::Ieee);
    /// ONNX FLOAT8E4M3FN.
    pub const FP8_E4M3FN: Self = Self::new("fp8_e4m3fn", 4, 3, 7, Specials::LastIsNan);
    /// ONNX FLOAT8E5M2.
    pub const FP8_E5M2: Self = Self::new("fp8_e5m2", 5, 2, 15, Specials::Ieee);
    /// ONNX FLOAT8E4M3FNUZ.
    pub const FP8_E4M3FNUZ: Self = Self::new("fp8_e4m3fnuz", 4, 3, 8, Specials::MinusZeroIsNan);
    /// ONNX FLOAT8E5M2FNUZ.
    pub const FP8_E5M2FNUZ: Self = Self::new("fp8_e5m2fnuz", 5, 2, 16, Specials::MinusZeroIsNan);
    /// ONNX FLOAT6E2M3.
    pub const FP6_E2M3: Self = Self::new("fp6_e2m3", 2, 3, 1, Specials::None);
    /// ONNX FLOAT6E3M2.
    pub const FP6_E3M2: Self = Self::new("fp6_e3m2", 3, 2, 3, Specials::None);
    /// ONNX FLOAT4E2M1.
    pub const FP4_E2M1: Self = Self::new("fp4_e2m1", 2, 1, 1, Specials::None);

    /// Any type.
    pub const fn new(
        name: &'static str,
        exponent_bits: u32,
        mantissa_bits: u32,
        bias: i32,
        specials: Specials,
    ) -> Self {
        Self { name, exponent_bits, mantissa_bits, bias, specials }
    }

    /// The minifloat of this split: bias `2^(X - 1) - 1`, subnormals, neither infinity nor NaN.
    ///
    /// With 8 exponent bits the bias is 128: with 127 the codes of the largest exponent would be `2^128` and more, which
    /// no `f32` is.
    pub const fn minifloat(exponent_bits: u32, mantissa_bits: u32) -> Self {
        let bias = match exponent_bits {
            0 => 0,
            8 => 128,
            _ => (1 << (exponent_bits - 1)) - 1,
        };
        Self::new("minifloat", exponent_bits, mantissa_bits, bias, Specials::None)
    }

    /// Sign, exponent and mantissa.
    pub const fn n_bits(self) -> u32 {
        1 + self.exponent_bits + self.mantissa_bits
    }

    /// The code of the largest finite value.
    pub const fn max_code(self) -> u32 {
        let all = (1 << (self.exponent_bits + self.mantissa_bits)) - 1;
        match self.specials {
            Specials::Ieee => all - (1 << self.mantissa_bits),
            Specials::LastIsNan => all - 1,
            Specials::MinusZeroIsNan | Specials::None => all,
        }
    }

    /// The largest finite value.
    pub fn max(self) -> f32 {
        self.decode(self.max_code())
    }

    /// The smallest positive value whose mantissa is whole.
    pub fn min_normal(self) -> f32 {
        exp2(1 - self.bias)
    }

    /// The smallest positive value.
    pub fn min_subnormal(self) -> f32 {
        exp2(1 - self.bias - self.mantissa_bits as i32)
    }

    /// The exponent of the largest power of two that it has: OCP's `emax`.
    pub const fn max_exponent(self) -> i32 {
        (self.max_code() >> self.mantissa_bits) as i32 - self.bias
    }

    /// The nearest code to `x`, ties to the even one.
    ///
    /// NaN becomes the type's NaN with the sign of `x`; a type without one makes it -0, as the onnx reference does.
    /// Minus zero becomes 0 in a type that has none.
    pub fn encode(self, x: f32, overflow: Overflow) -> u32 {
        self.encode_f64(f64::from(x), overflow)
    }

    /// [`Self::encode`] of an `f64`, with one rounding.
    pub fn encode_f64(self, x: f64, overflow: Overflow) -> u32 {
        let m = self.mantissa_bits;
        let sign = u32::from(x.is_sign_negative()) << (m + self.exponent_bits);
        let all = (1 << (self.exponent_bits + m)) - 1;
        let nan = match self.specials {
            // The quiet bit, which a type without mantissa bits lacks.
            Specials::Ieee => sign | (self.max_code() + 1) | if 0 < m { 1 << (m - 1) } else { 0 },
            Specials::LastIsNan => sign | all,
            Specials::MinusZeroIsNan | Specials::None => all + 1,
        };
        if x.is_nan() {
            return nan;
        }
        let magnitude = x.abs();
        // Every f32, subnormal ones too, is a normal f64, whose exponent field says its power of two. For 0 it is far
        // below any type's smallest exponent.
        let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(1 - self.bias);
        let code = if magnitude.is_infinite() {
            all + 1
        } else {
            // Exact: a division by a power of two, far from the ends of f64.
            let significand = ties_even_f64(magnitude / exp2_f64(exponent - m as i32));
            // A significand that rounds up to the next power of two carries into the exponent by itself.
            (((exponent + self.bias - 1) as u32) << m) + significand as u32
        };
        if code <= self.max_code() {
            let has_minus_zero = self.specials != Specials::MinusZeroIsNan;
            return if code == 0 && !has_minus_zero { 0 } else { sign | code };
        }
        match (overflow, self.specials) {
            (Overflow::Special, Specials::Ieee) => sign | (self.max_code() + 1),
            (Overflow::Special, Specials::LastIsNan | Specials::MinusZeroIsNan) => nan,
            (Overflow::Saturate, _) | (_, Specials::None) => sign | self.max_code(),
        }
    }

    /// What a code stands for; bits above the type's are ignored.
    pub fn decode(self, code: u32) -> f32 {
        let m = self.mantissa_bits;
        let magnitude = code & ((1 << (m + self.exponent_bits)) - 1);
        let is_negative = code >> (m + self.exponent_bits) & 1 == 1;
        let value = if self.max_code() < magnitude {
            let infinite = self.specials == Specials::Ieee && magnitude == self.max_code() + 1;
            if infinite { f32::INFINITY } else { f32::NAN }
        } else {
            let mantissa = magnitude & ((1 << m) - 1);
            match magnitude >> m {
                0 => (f64::from(mantissa) * exp2_f64(1 - self.bias - m as i32)) as f32,
                e => {
                    (f64::from(mantissa + (1 << m)) * exp2_f64(e as i32 - self.bias - m as i32))
                        as f32
                }
            }
        };
        if !is_negative {
            value
        } else if magnitude == 0 && self.specials == Specials::MinusZeroIsNan {
            f32::NAN
        } else {
            -value
        }
    }

    /// What `x` becomes, saturated.
    pub fn round(self, x: f32) -> f32 {
        self.decode(self.encode(x, Overflow::Saturate))
    }
}

/// `x` in IEEE 754 binary16, ties to even, to infinity beyond 65504.
pub fn f16_bits(x: f32) -> u16 {
    FloatType::FLOAT16.encode(x, Overflow::Special) as u16
}

/// What binary16 bits stand for.
pub fn f16_value(bits: u16) -> f32 {
    FloatType::FLOAT16.decode(u32::from(bits))
}

/// `2^k`, exact for -149..=127.
pub fn exp2(k: i32) -> f32 {
    exp2_f64(k) as f32
}

/// `2^k` for -1022..=1023.
fn exp2_f64(k: i32) -> f64 {
    f64::from_bits(((k + 1023) as u64) << 52)
}

fn layout(ty: FloatType, shape: &Shape, settings: &Settings<'_>) -> Vec<PartLayout> {
    let codes = match (ty.name, ty.n_bits()) {
        ("float16", _) => PartLayout::new("codes", PartType::F16, shape.n()),
        ("bfloat16", _) => PartLayout::new("codes", PartType::Bf16, shape.n()),
        ("fp8_e4m3fn", _) => PartLayout::new("codes", PartType::F8E4M3Fn, shape.n()),
        ("fp8_e5m2", _) => PartLayout::new("codes", PartType::F8E5M2, shape.n()),
        (_, n_bits) => PartLayout::new("codes", PartType::U8, bits::packed_len(shape.n(), n_bits)),
    };
    let mut parts = vec![codes];
    let sharing = settings.sharing;
    if sharing != Sharing::Nothing {
        parts.push(PartLayout::shared("scale", PartType::F32, sharing.n_groups(shape), sharing));
    }
    parts
}

fn quantize(
    ty: FloatType,
    matrix: &Matrix<'_>,
    settings: &Settings<'_>,
) -> Result<Encoded, FormatError> {
    let values = matrix.values();
    let code = |x: f32, overflow| ty.encode(x, overflow) as i32;
    if settings.sharing == Sharing::Nothing {
        // The 16-bit types become infinite, as every conversion to them does; the small ones saturate, as ONNX does.
        let overflow = if ty.n_bits() == 16 { Overflow::Special } else { Overflow::Saturate };
        return Ok(Encoded::with(values.iter().map(|x| code(*x, overflow)).collect(), vec![]));
    }
    matrix.finite()?;
    let mut codes = Vec::with_capacity(values.len());
    let mut scales = Vec::new();
    for group in settings.sharing.groups(&matrix.shape()) {
        let x = &values[group.clone()];
        let max = match settings.sharing {
            Sharing::Tensor => settings.max_abs_of(x),
            _ => max_abs(x),
        };
        let importance = search::columns(settings, &group, matrix.shape().cols);
        let largest = ty.max();
        let scale = search::scale(settings.search, x, importance, max / largest, |x, scale| {
            scale * ty.round(x / scale)
        });
        codes.extend(x.iter().map(|x| code(x / scale, Overflow::Saturate)));
        scales.push(scale);
    }
    Ok(Encoded::with(codes, vec![("scale", scales)]))
}

fn dequantize(
    ty: FloatType,
    encoded: &Encoded,
    shape: &Shape,
    settings: &Settings<'_>,
) -> Vec<f32> {
    let mut values: Vec<f32> = encoded.codes.iter().map(|code| ty.decode(*code as u32)).collect();
    if settings.sharing != Sharing::Nothing {
        for (group, scale) in settings.sharing.groups(shape).zip(encoded.param("scale")) {
            values[group].iter_mut().for_each(|x| *x *= scale);
        }
    }
    values
}

fn pack(ty: FloatType, encoded: &Encoded, settings: &Settings<'_>) -> Vec<Vec<u8>> {
    let mut parts = vec![bits::pack(&encoded.codes, ty.n_bits())];
    if settings.sharing != Sharing::Nothing {
        parts.push(f32_bytes(encoded.param("scale")));
    }
    parts
}

fn unpack(ty: FloatType, parts: &[&[u8]], shape: &Shape) -> Encoded {
    let codes = bits::unpack(parts[0], shape.n(), ty.n_bits());
    Encoded::with(codes, parts[1..].iter().map(|scales| ("scale", f32s(scales))).collect())
}

macro_rules! float_format {
    ($(#[$doc:meta])* $def:ident, $name:literal, $numbers:expr, $ty:expr, $summary:literal, $source:literal) => {
        $(#[$doc])*
        pub static $def: FormatDef = FormatDef {
            name: $name,
            summary: $summary,
            source: $source,
            numbers: $numbers,
            sharing: Sharing::Nothing,
            sharing_is_free: true,
            is_flat: false,
            needs_max_abs: false,
            layout: |shape, settings| layout($ty(settings), shape, settings),
            quantize: |matrix, settings| quantize($ty(settings), matrix, settings),
            dequantize: |encoded, shape, settings| dequantize($ty(settings), encoded, shape, settings),
            pack: |encoded, _, settings| pack($ty(settings), encoded, settings),
            unpack: |parts, shape, settings| unpack($ty(settings), parts, shape),
        };
    };
}

float_format!(
    /// `float16`.
    FLOAT16, "float16", &[], |_: &Settings<'_>| FloatType::FLOAT16, "half precision: 5 + 10 bits", "IEEE 754 binary16"
);
float_format!(
    /// `bfloat16`.
    BFLOAT16, "bfloat16", &[], |_: &Settings<'_>| FloatType::BFLOAT16, "the upper half of float32: 8 + 7 bits", "ONNX BFLOAT16"
);
float_format!(
    /// `fp8_e4m3fn`.
    FP8_E4M3FN, "fp8_e4m3fn", &[], |_: &Settings<'_>| FloatType::FP8_E4M3FN, "8-bit float, 4 + 3 bits, to 448", "ONNX FLOAT8E4M3FN (operator set 19)"
);
float_format!(
    /// `fp8_e5m2`.
    FP8_E5M2, "fp8_e5m2", &[], |_: &Settings<'_>| FloatType::FP8_E5M2, "8-bit float, 5 + 2 bits, to 57344", "ONNX FLOAT8E5M2 (operator set 19)"
);
float_format!(
    /// `fp8_e4m3fnuz`.
    FP8_E4M3FNUZ, "fp8_e4m3fnuz", &[], |_: &Settings<'_>| FloatType::FP8_E4M3FNUZ, "8-bit float, 4 + 3 bits, no minus zero, to 240", "ONNX FLOAT8E4M3FNUZ (operator set 19)"
);
float_format!(
    /// `fp8_e5m2fnuz`.
    FP8_E5M2FNUZ, "fp8_e5m2fnuz", &[], |_: &Settings<'_>| FloatType::FP8_E5M2FNUZ, "8-bit float, 5 + 2 bits, no minus zero, to 57344", "ONNX FLOAT8E5M2FNUZ (operator set 19)"
);
float_format!(
    /// `fp6_e2m3`.
    FP6_E2M3, "fp6_e2m3", &[], |_: &Settings<'_>| FloatType::FP6_E2M3, "6-bit float, 2 + 3 bits, to 7.5", "OCP MX 1.0; ONNX FLOAT6E2M3 (operator set 28)"
);
float_format!(
    /// `fp6_e3m2`.
    FP6_E3M2, "fp6_e3m2", &[], |_: &Settings<'_>| FloatType::FP6_E3M2, "6-bit float, 3 + 2 bits, to 28", "OCP MX 1.0; ONNX FLOAT6E3M2 (operator set 28)"
);
float_format!(
    /// `fp4_e2m1`.
    FP4_E2M1, "fp4_e2m1", &[], |_: &Settings<'_>| FloatType::FP4_E2M1, "4-bit float, 2 + 1 bits, to 6", "OCP MX 1.0; ONNX FLOAT4E2M1 (operator set 23)"
);
float_format!(
    /// `e2m1` to `e8m7`: any split of at most 16 bits.
    MINIFLOAT, "eXmY", &[(1, 8), (0, 10)],
    |settings: &Settings<'_>| FloatType::minifloat(settings.n, settings.m),
    "minifloat with X exponent and Y mantissa bits, without infinity and NaN", "IEEE 754's rules, every code a number"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_every_type_comes_back() {
        let splits = (1..=8).flat_map(|e| (0..=10).map(move |m| (e, m)));
        let minifloats =
            splits.filter(|(e, m)| e + m <= 15).map(|(e, m)| FloatType::minifloat(e, m));
        for ty in FLOAT_TYPES.iter().copied().chain(minifloats) {
            for code in 0..1 << ty.n_bits() {
                let x = ty.decode(code);
                if !x.is_nan() {
                    assert_eq!(ty.encode(x, Overflow::Special), code, "{ty:?} {x}");
                }
            }
        }
    }

    #[test]
    fn the_nearest_code_wins_and_ties_go_to_the_even_one() {
        for ty in FLOAT_TYPES {
            for code in 0..ty.max_code() {
                let (lo, hi) = (ty.decode(code), ty.decode(code + 1));
                // Exact: types have at most 11 significant bits. (bfloat16's largest sum overflows f32.)
                let middle = ((f64::from(lo) + f64::from(hi)) / 2.0) as f32;
                if middle.is_infinite() {
                    continue;
                }
                assert_eq!(
                    ty.encode(middle, Overflow::Saturate),
                    code + (code & 1),
                    "{ty:?} {middle}"
                );
                assert_eq!(ty.encode(middle.next_up(), Overflow::Saturate), code + 1);
                assert_eq!(ty.encode(middle.next_down(), Overflow::Saturate), code);
            }
        }
    }

    #[test]
    fn bounds_are_those_of_the_specifications() {
        for (ty, max, normal, subnormal) in [
            (FloatType::FLOAT16, 65504.0, 6.103_515_6e-5, 5.960_464_5e-8),
            (FloatType::FP8_E4M3FN, 448.0, 0.015625, 0.001953125),
            (FloatType::FP8_E4M3FNUZ, 240.0, 0.0078125, 0.0009765625),
            (FloatType::FP8_E5M2, 57344.0, 6.103_515_6e-5, 1.525_878_9e-5),
            (FloatType::FP8_E5M2FNUZ, 57344.0, 3.051_757_8e-5, 7.629_394_5e-6),
            (FloatType::FP6_E2M3, 7.5, 1.0, 0.125),
            (FloatType::FP6_E3M2, 28.0, 0.25, 0.0625),
            (FloatType::FP4_E2M1, 6.0, 1.0, 0.5),
        ] {
            assert_eq!((ty.max(), ty.min_normal(), ty.min_subnormal()), (max, normal, subnormal));
        }
    }
}
