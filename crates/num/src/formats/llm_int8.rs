//! LLM.int8(): int8 with a scale a row, and columns with outliers left in float.
//!
//! `q = round(x * (1 / absmax * 127))`, ties to even, `x' = q * absmax / 127`; magnitudes of at least `threshold` do not
//! count for `absmax`, and the columns that they are in are zeros in `q` and kept as they are ("LLM.int8()", Dettmers
//! et al. 2022; bitsandbytes' `int8_vectorwise_quant`). As a format for weights there is no threshold unless one is
//! set: bitsandbytes looks for outliers in activations only. In a tensor of one row outliers are cut out but their
//! columns stay, as there.

use alloc::vec;
use alloc::vec::Vec;

use super::{
    Encoded, FormatDef, FormatError, Matrix, PartLayout, PartType, Settings, Sharing, bits,
    f32_bytes, f32s,
};
use crate::round::ties_even;

/// A matrix as bitsandbytes' `int8_vectorwise_quant` gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Vectorwise {
    /// Codes, row by row; 0 in outlier columns.
    pub codes: Vec<i8>,
    /// The scale of each row times 127.
    pub absmax: Vec<f32>,
    /// Columns in which some magnitude reaches the threshold.
    pub outlier_columns: Vec<usize>,
}

/// Rows of int8, and the columns that have outliers.
pub fn quantize_rows(matrix: &Matrix<'_>, threshold: f32) -> Vectorwise {
    let shape = matrix.shape();
    let is_outlier = |x: f32| threshold <= x.abs();
    let rows = || matrix.values().chunks_exact(shape.cols.max(1));
    let outlier_columns: Vec<usize> =
        (0..shape.cols).filter(|c| rows().any(|row| is_outlier(row[*c]))).collect();
    let (mut codes, mut absmax) = (Vec::with_capacity(shape.n()), Vec::new());
    for row in rows() {
        let start = codes.len();
        let max =
            row.iter().fold(0.0_f32, |max, x| if is_outlier(*x) { max } else { max.max(x.abs()) });
        // A row of zeros has an infinite factor there, and 0 * inf becomes 0.
        // Rounded twice, as the reference does it on CPUs.
        let factor = if max == 0.0 { 0.0 } else { 1.0 / max * 127.0 };
        codes.extend(
            row.iter().map(|x| if is_outlier(*x) { 0 } else { ties_even(x * factor) as i8 }),
        );
        if 1 < shape.rows {
            outlier_columns.iter().for_each(|c| codes[start + c] = 0);
        }
        absmax.push(max);
    }
    Vectorwise { codes, absmax, outlier_columns }
}

/// `llm_int8`.
pub static DEF: FormatDef = FormatDef {
    name: "llm_int8",
    summary: "int8 with one absmax a row, as bitsandbytes stores Linear8bitLt",
    source: "LLM.int8() (Dettmers et al. 2022); bitsandbytes",
    numbers: &[],
    sharing: Sharing::Row,
    sharing_is_free: false,
    is_flat: false,
    needs_max_abs: false,
    layout: |shape, _| {
        vec![
            PartLayout::new("codes", PartType::I8, shape.n()),
            PartLayout::new("absmax", PartType::F32, shape.rows),
        ]
    },
    quantize: |matrix, settings| quantize(matrix, settings),
    dequantize: |encoded, shape, _| {
        let absmax = encoded.param("absmax");
        // bitsandbytes: `CB * SCB * 7.874015718698502e-3`, the factor in f32.
        let value = |(i, q): (usize, &i32)| {
            let (q, absmax) = (*q as f32, absmax[i / shape.cols]);
            let value = q * absmax * (1.0 / 127.0);
            // The product with the code is infinite from 2.7e36 on; then in the other order.
            if value.is_finite() { value } else { q * (absmax * (1.0 / 127.0)) }
        };
        let mut values: Vec<f32> = encoded.codes.iter().enumerate().map(value).collect();
        let columns = encoded.params.iter().find(|param| param.name == "outlier_columns");
        if let Some(columns) = columns {
            let outliers = encoded.param("outliers");
            let n = columns.values.len();
            for row in 0..shape.rows {
                for (k, column) in columns.values.iter().enumerate() {
                    values[row * shape.cols + *column as usize] = outliers[row * n + k];
                }
            }
        }
        values
    },
    pack: |encoded, _, _| vec![bits::pack(&encoded.codes, 8), f32_bytes(encoded.param("absmax"))],
    unpack: |parts, shape, _| {
        let codes = bits::unpack_signed(parts[0], shape.n(), 8);
        Encoded::with(codes, vec![("absmax", f32s(parts[1]))])
    },
};

fn quantize(matrix: &Matrix<'_>, settings: &Settings<'_>) -> Result<Encoded, FormatError> {
    matrix.finite()?;
    let rows = quantize_rows(matrix, settings.threshold);
    let mut params = vec![("absmax", rows.absmax)];
    if !rows.outlier_columns.is_empty() && 1 < matrix.shape().rows {
        let columns = rows.outlier_columns.iter().map(|c| *c as f32).collect();
        let kept = matrix.values().chunks_exact(matrix.shape().cols);
        let outliers = kept.flat_map(|row| rows.outlier_columns.iter().map(|c| row[*c])).collect();
        params.push(("outlier_columns", columns));
        params.push(("outliers", outliers));
    }
    Ok(Encoded::with(rows.codes.iter().map(|q| i32::from(*q)).collect(), params))
}
