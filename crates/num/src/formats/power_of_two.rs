//! Powers of two: a multiplication by such a weight is a shift.
//!
//! `pow2_N`: a sign and `N - 1` bits for the exponent, of which 0 means zero. The largest exponent is the one nearest
//! to the tensor's largest magnitude; the others follow below. [`nearest`] is the conversion of a single value, with
//! the two ways of rounding.

use alloc::vec;

use super::float::exp2;
use super::{
    Encoded, FormatDef, Matrix, PartLayout, PartType, Settings, Sharing, bits, f32_bytes, f32s,
};

/// Where the border between two powers of two is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Border {
    /// Halfway, at `1.5 * 2^e`: the least error.
    Middle,
    /// At `sqrt(2) * 2^e`: rounding of the logarithm, as Ristretto does (Gysel 2016).
    Logarithm,
}

/// `pow2_2` to `pow2_8`.
pub static DEF: FormatDef = FormatDef {
    name: "pow2_N",
    summary: "a sign and a power of two, N bits; the largest exponent is the tensor's",
    source: "Incremental Network Quantization (Zhou et al. 2017); Ristretto (Gysel 2016) rounds the logarithm",
    numbers: &[(2, 8)],
    sharing: Sharing::Tensor,
    sharing_is_free: true,
    is_flat: false,
    needs_max_abs: false,
    layout: |shape, settings| {
        let sharing = settings.sharing;
        vec![
            PartLayout::new("codes", PartType::U8, bits::packed_len(shape.n(), settings.n)),
            PartLayout::shared("max_exponent", PartType::F32, sharing.n_groups(shape), sharing),
        ]
    },
    quantize: |matrix, settings| quantize(matrix, settings),
    dequantize: |encoded, shape, settings| {
        let mut values = vec![0.0; shape.n()];
        let groups = settings.sharing.groups(shape).zip(encoded.param("max_exponent"));
        for (group, max_exponent) in groups {
            for i in group {
                values[i] = value(encoded.codes[i], settings.n, *max_exponent as i32);
            }
        }
        values
    },
    pack: |encoded, _, settings| {
        vec![bits::pack(&encoded.codes, settings.n), f32_bytes(encoded.param("max_exponent"))]
    },
    unpack: |parts, shape, settings| {
        let codes = bits::unpack(parts[0], shape.n(), settings.n);
        Encoded::with(codes, vec![("max_exponent", f32s(parts[1]))])
    },
};

fn quantize(matrix: &Matrix<'_>, settings: &Settings<'_>) -> Result<Encoded, super::FormatError> {
    matrix.finite()?;
    let mut codes = vec![0; matrix.shape().n()];
    let mut exponents = vec![];
    for group in settings.sharing.groups(&matrix.shape()) {
        let x = &matrix.values()[group.clone()];
        let max = match settings.sharing {
            Sharing::Tensor => settings.max_abs_of(x),
            _ => super::max_abs(x),
        };
        // Within what an f32 scale of the smallest exponent can hold.
        let max_exponent = exponent(max, Border::Middle).unwrap_or(0).clamp(-20, 126);
        exponents.push(max_exponent as f32);
        for (x, code) in x.iter().zip(&mut codes[group]) {
            *code = self::code(*x, settings.n, max_exponent);
        }
    }
    Ok(Encoded::with(codes, vec![("max_exponent", exponents)]))
}

/// Exponents of `pow2_N` besides zero: 1 to this.
const fn n_exponents(n: u32) -> i32 {
    (1 << (n - 1)) - 1
}

fn code(x: f32, n: u32, max_exponent: i32) -> i32 {
    let min_exponent = max_exponent - n_exponents(n) + 1;
    // Halfway between zero and the smallest power is the border to zero; a tie becomes zero.
    if x.abs() <= 0.5 * exp2(min_exponent) {
        return 0;
    }
    let exponent = exponent(x.abs(), Border::Middle)
        .map_or(max_exponent, |e| e.clamp(min_exponent, max_exponent));
    (i32::from(x < 0.0) << (n - 1)) | (exponent - min_exponent + 1)
}

fn value(code: i32, n: u32, max_exponent: i32) -> f32 {
    let field = code & n_exponents(n);
    if field == 0 {
        return 0.0;
    }
    let magnitude = exp2(max_exponent - n_exponents(n) + field);
    if code >> (n - 1) & 1 == 1 { -magnitude } else { magnitude }
}

/// The exponent of the power of two nearest to `magnitude`; none for 0.
fn exponent(magnitude: f32, border: Border) -> Option<i32> {
    if magnitude == 0.0 {
        return None;
    }
    let bits = f64::from(magnitude).to_bits();
    let floor = (bits >> 52) as i32 - 1023;
    let significand = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    let up = match border {
        Border::Middle => 1.5 <= significand,
        // Ristretto: round(log2), halves away from zero; no f64 is exactly halfway.
        Border::Logarithm => core::f64::consts::SQRT_2 <= significand,
    };
    Some(floor + i32::from(up))
}

/// `x` as the nearest of `±2^min_exponent ..= ±2^max_exponent`. There is no zero: it becomes `+2^min_exponent`, as in
/// Ristretto.
pub fn nearest(x: f32, min_exponent: i32, max_exponent: i32, border: Border) -> f32 {
    let exponent =
        exponent(x.abs(), border).unwrap_or(min_exponent).clamp(min_exponent, max_exponent);
    if x < 0.0 { -exp2(exponent) } else { exp2(exponent) }
}
