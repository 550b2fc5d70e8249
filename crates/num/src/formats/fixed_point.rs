//! Dynamic fixed point: integers of one width whose binary point is the tensor's own.
//!
//! `fixedN`: `q = clamp(round(x * 2^fl))` with halves away from zero, `x' = q * 2^-fl`. The fraction length `fl` is the
//! width less the integer length, `ceil(log2(max_abs) + 1)` for weights and `ceil(log2(max_abs))` for activations
//! (Ristretto, Gysel 2016: one bit short on purpose). It may be negative, and larger than the width.

use alloc::vec;

use super::float::exp2;
use super::{Encoded, FormatDef, Matrix, PartLayout, PartType, Settings, Sharing, bits};
use crate::round::Rounding;

/// `fixed2` to `fixed16`.
pub static DEF: FormatDef = FormatDef {
    name: "fixedN",
    summary: "N-bit integers times a power of two, the tensor's own",
    source: "Ristretto (Gysel 2016), dynamic fixed point",
    numbers: &[(2, 16)],
    sharing: Sharing::Tensor,
    sharing_is_free: true,
    is_flat: false,
    needs_max_abs: false,
    layout: |shape, settings| {
        let sharing = settings.sharing;
        let codes = match settings.n {
            8 => PartLayout::new("codes", PartType::I8, shape.n()),
            16 => PartLayout::new("codes", PartType::I16, shape.n()),
            n => PartLayout::new("codes", PartType::U8, bits::packed_len(shape.n(), n)),
        };
        let n_groups = sharing.n_groups(shape);
        vec![codes, PartLayout::shared("fraction_length", PartType::I16, n_groups, sharing)]
    },
    quantize: |matrix, settings| quantize(matrix, settings),
    dequantize: |encoded, shape, settings| {
        let mut values = vec![0.0; shape.n()];
        let groups = settings.sharing.groups(shape).zip(encoded.param("fraction_length"));
        for (group, fraction_length) in groups {
            for i in group {
                values[i] = encoded.codes[i] as f32 * exp2(-*fraction_length as i32);
            }
        }
        values
    },
    pack: |encoded, _, settings| {
        let lengths = encoded.param("fraction_length");
        let lengths = lengths.iter().flat_map(|fl| (*fl as i16).to_le_bytes()).collect();
        vec![bits::pack(&encoded.codes, settings.n), lengths]
    },
    unpack: |parts, shape, settings| {
        let lengths = parts[1].as_chunks().0.iter().map(|fl| f32::from(i16::from_le_bytes(*fl)));
        let codes = bits::unpack_signed(parts[0], shape.n(), settings.n);
        Encoded::with(codes, vec![("fraction_length", lengths.collect())])
    },
};

fn quantize(matrix: &Matrix<'_>, settings: &Settings<'_>) -> Result<Encoded, super::FormatError> {
    matrix.finite()?;
    let mut codes = vec![0; matrix.shape().n()];
    let mut lengths = vec![];
    for group in settings.sharing.groups(&matrix.shape()) {
        let x = &matrix.values()[group.clone()];
        let max = match settings.sharing {
            Sharing::Tensor => settings.max_abs_of(x),
            _ => super::max_abs(x),
        };
        let fraction_length = fraction_length(max, settings.n, Holds::Weights);
        lengths.push(fraction_length as f32);
        for (x, code) in x.iter().zip(&mut codes[group]) {
            *code = self::code(*x, settings.n, fraction_length);
        }
    }
    Ok(Encoded::with(codes, vec![("fraction_length", lengths)]))
}

/// What the numbers are: Ristretto counts the sign bit for one and not the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holds {
    /// Weights and biases: the largest magnitude fits.
    Weights,
    /// Activations: one bit finer, at the price of the upper half of the largest binade.
    Activations,
}

/// Bits before the binary point, the sign included for weights. Any for 0; the caller's bits then all are fraction.
pub fn integer_length(max_abs: f32, holds: Holds) -> i32 {
    if max_abs == 0.0 {
        return 0;
    }
    // ceil(log2): exact, from the bits.
    let bits = f64::from(max_abs).to_bits();
    let floor = (bits >> 52) as i32 - 1023;
    let ceil = floor + i32::from(bits & ((1 << 52) - 1) != 0);
    match holds {
        Holds::Weights => ceil + 1,
        Holds::Activations => ceil,
    }
}

/// Bits after the binary point.
pub fn fraction_length(max_abs: f32, n_bits: u32, holds: Holds) -> i32 {
    // 2^-fl stays a float.
    (n_bits as i32 - integer_length(max_abs, holds)).clamp(-120, 126)
}

/// `clamp(round(x * 2^fraction_length))`, halves away from zero. NaN is 0.
pub fn code(x: f32, n_bits: u32, fraction_length: i32) -> i32 {
    let half = f64::from(1 << (n_bits - 1));
    let scaled = f64::from(x) * f64::from(exp2(fraction_length));
    Rounding::TiesAway.round(scaled).clamp(-half, half - 1.0) as i32
}
