//! Microscaling (OCP MX 1.0): blocks of 32 share a power of two, elements are small floats or integers.
//!
//! The scale is `2^e` in a byte (E8M0: biased by 127, 255 is NaN), `e = floor(log2 max_abs) - emax` with the element
//! type's largest exponent `emax`; an element is `x / 2^e`, rounded to the nearest, ties to even, and saturated. So
//! values of the top part of the largest binade (above 6 of 8 for E2M1) are cut, which the specification asks for.
//! [`ScaleRounding::Ceil`] avoids it. A block with NaN or infinity has the scale NaN: all of it is NaN. A block of zeros
//! has the smallest scale.

use alloc::vec;
use alloc::vec::Vec;

use super::float::{FloatType, Overflow, exp2};
use super::{
    Encoded, FormatDef, FormatError, Matrix, PartLayout, PartType, Search, Settings, Shape,
    Sharing, bits, max_abs, search,
};
use crate::round::ties_even;

/// How the shared exponent is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleRounding {
    /// The exponent of the largest magnitude: OCP MX 1.0.
    Floor,
    /// The smallest with which nothing is cut.
    Ceil,
}

/// What an element is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Element {
    /// A float.
    Float(FloatType),
    /// An 8-bit integer in units of 1/64.
    Int8,
}

/// The exponent of a block without a finite value.
const NAN: i32 = 128;

impl Element {
    const fn n_bits(self) -> u32 {
        match self {
            Self::Float(ty) => ty.n_bits(),
            Self::Int8 => 8,
        }
    }

    /// The exponent of the largest power of two.
    const fn max_exponent(self) -> i32 {
        match self {
            Self::Float(ty) => ty.max_exponent(),
            Self::Int8 => 0,
        }
    }

    fn max(self) -> f32 {
        match self {
            Self::Float(ty) => ty.max(),
            Self::Int8 => 127.0 / 64.0,
        }
    }

    fn encode(self, x: f32) -> i32 {
        match self {
            Self::Float(ty) => ty.encode(x, Overflow::Saturate) as i32,
            // -128 is a code, but one without a counterpart: OCP leaves it to the implementation.
            Self::Int8 => ties_even((x * 64.0).clamp(-127.0, 127.0)) as i32,
        }
    }

    fn decode(self, code: i32) -> f32 {
        match self {
            Self::Float(ty) => ty.decode(code as u32),
            Self::Int8 => code as f32 / 64.0,
        }
    }
}

/// The exponent that `x` shares.
pub fn shared_exponent(element: Element, x: &[f32], rounding: ScaleRounding) -> i32 {
    if x.iter().any(|x| !x.is_finite()) {
        return NAN;
    }
    let max = max_abs(x);
    // Exact, from the bits; far below any exponent for 0.
    let floor = (f64::from(max).to_bits() >> 52) as i32 - 1023 - element.max_exponent();
    let exponent = match rounding {
        ScaleRounding::Floor => floor,
        ScaleRounding::Ceil => {
            let is_cut =
                f64::from(element.max()) * f64::from(exp2(floor.clamp(-149, 127))) < f64::from(max);
            floor + i32::from(is_cut)
        }
    };
    exponent.clamp(-127, 127)
}

fn quantize(
    element: Element,
    matrix: &Matrix<'_>,
    settings: &Settings<'_>,
) -> Result<Encoded, FormatError> {
    let shape = matrix.shape();
    let mut codes = Vec::with_capacity(shape.n());
    let mut exponents = Vec::new();
    for group in settings.sharing.groups(&shape) {
        let x = &matrix.values()[group.clone()];
        let floor = shared_exponent(element, x, ScaleRounding::Floor);
        let exponent = match settings.search {
            _ if floor == NAN => NAN,
            Search::MaxAbs => floor,
            Search::Mse => {
                let importance = search::columns(settings, &group, shape.cols);
                let candidates = (floor - 1..=floor + 1).filter(|e| (-127..=127).contains(e));
                search::best([floor].into_iter().chain(candidates), |e| {
                    search::error(x, importance, |x| {
                        element.decode(element.encode(divide(x, e))) * exp2(e)
                    })
                })
                .unwrap_or(floor)
            }
        };
        if exponent == NAN {
            codes.extend(x.iter().map(|_| 0));
        } else {
            codes.extend(x.iter().map(|x| element.encode(divide(*x, exponent))));
        }
        exponents.push(exponent as f32);
    }
    Ok(Encoded::with(codes, vec![("exponent", exponents)]))
}

/// `x / 2^exponent`, exact: in f64, where neither end is near.
fn divide(x: f32, exponent: i32) -> f32 {
    (f64::from(x) / f64::from(exp2(exponent))) as f32
}

fn dequantize(
    element: Element,
    encoded: &Encoded,
    shape: &Shape,
    settings: &Settings<'_>,
) -> Vec<f32> {
    let mut values = Vec::with_capacity(shape.n());
    for (group, exponent) in settings.sharing.groups(shape).zip(encoded.param("exponent")) {
        let scale = if *exponent as i32 == NAN { f32::NAN } else { exp2(*exponent as i32) };
        values.extend(encoded.codes[group].iter().map(|code| element.decode(*code) * scale));
    }
    values
}

fn layout(element: Element, shape: &Shape, settings: &Settings<'_>) -> Vec<PartLayout> {
    let n_bytes = bits::packed_len(shape.n(), element.n_bits());
    vec![
        PartLayout::new("codes", PartType::U8, n_bytes),
        PartLayout::new("scale", PartType::U8, settings.sharing.n_groups(shape)),
    ]
}

fn pack(element: Element, encoded: &Encoded) -> Vec<Vec<u8>> {
    let scales = encoded.param("exponent").iter().map(|e| (*e as i32 + 127) as u8).collect();
    vec![bits::pack(&encoded.codes, element.n_bits()), scales]
}

fn unpack(element: Element, parts: &[&[u8]], shape: &Shape) -> Encoded {
    let exponents = parts[1].iter().map(|e| f32::from(*e) - 127.0).collect();
    let codes = match element {
        Element::Int8 => bits::unpack_signed(parts[0], shape.n(), 8),
        Element::Float(ty) => bits::unpack(parts[0], shape.n(), ty.n_bits()),
    };
    Encoded::with(codes, vec![("exponent", exponents)])
}

macro_rules! mx {
    ($(#[$doc:meta])* $def:ident, $name:literal, $element:expr, $summary:literal) => {
        $(#[$doc])*
        pub static $def: FormatDef = FormatDef {
            name: $name,
            summary: $summary,
            source: "OCP Microscaling Formats (MX) 1.0",
            numbers: &[],
            sharing: Sharing::Block(32),
            sharing_is_free: false,
            is_flat: false,
            needs_max_abs: false,
            layout: |shape, settings| layout($element, shape, settings),
            quantize: |matrix, settings| quantize($element, matrix, settings),
            dequantize: |encoded, shape, settings| dequantize($element, encoded, shape, settings),
            pack: |encoded, _, _| pack($element, encoded),
            unpack: |parts, shape, _| unpack($element, parts, shape),
        };
    };
}

mx!(
    /// `mxfp8_e4m3`.
    MXFP8_E4M3, "mxfp8_e4m3", Element::Float(FloatType::FP8_E4M3FN), "E4M3 floats, blocks of 32 with a power of two"
);
mx!(
    /// `mxfp8_e5m2`.
    MXFP8_E5M2, "mxfp8_e5m2", Element::Float(FloatType::FP8_E5M2), "E5M2 floats, blocks of 32 with a power of two"
);
mx!(
    /// `mxfp6_e3m2`.
    MXFP6_E3M2, "mxfp6_e3m2", Element::Float(FloatType::FP6_E3M2), "E3M2 floats, blocks of 32 with a power of two"
);
mx!(
    /// `mxfp6_e2m3`.
    MXFP6_E2M3, "mxfp6_e2m3", Element::Float(FloatType::FP6_E2M3), "E2M3 floats, blocks of 32 with a power of two"
);
mx!(
    /// `mxfp4`.
    MXFP4, "mxfp4", Element::Float(FloatType::FP4_E2M1), "E2M1 floats, blocks of 32 with a power of two"
);
mx!(
    /// `mxint8`.
    MXINT8, "mxint8", Element::Int8, "8-bit integers, blocks of 32 with a power of two"
);
