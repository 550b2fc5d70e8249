//! Block floating point: a block shares one exponent, each element has a signed mantissa.
//!
//! `bfpN`: the exponent is that of the block's largest magnitude, `2^e <= max_abs < 2^(e+1)`, in a byte (biased by 127);
//! elements are N-bit integers in units of `2^(e - N + 2)`, rounded to the nearest, ties to even, and saturated at
//! `±(2^(N-1) - 1)`. Exponents stop at -126, below which there is nothing that `f32` weights need.

use alloc::vec;
use alloc::vec::Vec;

use super::float::exp2;
use super::{Encoded, FormatDef, Matrix, PartLayout, PartType, Settings, Sharing, bits, max_abs};
use crate::round::ties_even_f64;

/// `bfp2` to `bfp16`, in blocks of 16.
pub static DEF: FormatDef = FormatDef {
    name: "bfpN",
    summary: "block floating point: N-bit mantissas, one exponent a block",
    source: "Wilkinson 1963; Microsoft Floating Point (Darvish Rouhani et al. 2020)",
    numbers: &[(2, 16)],
    sharing: Sharing::Block(16),
    sharing_is_free: true,
    is_flat: false,
    needs_max_abs: false,
    layout: |shape, settings| {
        let sharing = settings.sharing;
        vec![
            PartLayout::new("codes", PartType::U8, bits::packed_len(shape.n(), settings.n)),
            PartLayout::shared("exponent", PartType::U8, sharing.n_groups(shape), sharing),
        ]
    },
    quantize: |matrix, settings| quantize(matrix, settings),
    dequantize: |encoded, shape, settings| {
        let mut values = Vec::with_capacity(shape.n());
        for (group, exponent) in settings.sharing.groups(shape).zip(encoded.param("exponent")) {
            let unit = unit(*exponent as i32, settings.n);
            values.extend(encoded.codes[group].iter().map(|q| (f64::from(*q) * unit) as f32));
        }
        values
    },
    pack: |encoded, _, settings| {
        let exponents = encoded.param("exponent").iter().map(|e| (*e as i32 + 127) as u8).collect();
        vec![bits::pack(&encoded.codes, settings.n), exponents]
    },
    unpack: |parts, shape, settings| {
        let exponents = parts[1].iter().map(|e| f32::from(*e) - 127.0).collect();
        let codes = bits::unpack_signed(parts[0], shape.n(), settings.n);
        Encoded::with(codes, vec![("exponent", exponents)])
    },
};

/// The value of a mantissa's last bit; in `f64`, where the smallest is not a subnormal.
fn unit(exponent: i32, n_bits: u32) -> f64 {
    f64::from(exp2(exponent)) / f64::from(1 << (n_bits - 2))
}

fn quantize(matrix: &Matrix<'_>, settings: &Settings<'_>) -> Result<Encoded, super::FormatError> {
    matrix.finite()?;
    let mut codes = Vec::with_capacity(matrix.shape().n());
    let mut exponents = vec![];
    let qmax = f64::from((1 << (settings.n - 1)) - 1);
    for group in settings.sharing.groups(&matrix.shape()) {
        let x = &matrix.values()[group];
        let max = match settings.sharing {
            Sharing::Tensor => settings.max_abs_of(x),
            _ => max_abs(x),
        };
        let exponent = ((f64::from(max).to_bits() >> 52) as i32 - 1023).max(-126);
        let unit = unit(exponent, settings.n);
        // `unit` is a power of two: the division is exact.
        codes.extend(
            x.iter().map(|x| ties_even_f64(f64::from(*x) / unit).clamp(-qmax, qmax) as i32),
        );
        exponents.push(exponent as f32);
    }
    Ok(Encoded::with(codes, vec![("exponent", exponents)]))
}
