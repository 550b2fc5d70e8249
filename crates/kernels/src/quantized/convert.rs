//! Codes from numbers, numbers from codes, and codes from codes, shared out to threads.

use midtread_num::{QParams, QRange};

use crate::{par, quantize};

/// Elements that are a task's least share.
const UNIT: usize = 4096;

/// [`QParams::quantize`] of every element, for a `range` within 0..=255.
///
/// # Panics
///
/// When the slices differ in length, or the type does not hold `range`.
pub fn quantize_u8(x: &[f32], y: &mut [u8], params: QParams, range: QRange) {
    assert_eq!(x.len(), y.len(), "one code a value");
    par::for_each_chunk(y, UNIT, 400.0, |start, y| {
        quantize::quantize_u8(&x[start..start + y.len()], y, params, range);
    });
}

/// [`QParams::quantize`] of every element, for a `range` within -128..=127.
///
/// # Panics
///
/// When the slices differ in length, or the type does not hold `range`.
pub fn quantize_i8(x: &[f32], y: &mut [i8], params: QParams, range: QRange) {
    assert_eq!(x.len(), y.len(), "one code a value");
    par::for_each_chunk(y, UNIT, 400.0, |start, y| {
        quantize::quantize_i8(&x[start..start + y.len()], y, params, range);
    });
}

/// [`QParams::dequantize`] of every element.
///
/// # Panics
///
/// When the slices differ in length.
pub fn dequantize_u8(x: &[u8], y: &mut [f32], params: QParams) {
    assert_eq!(x.len(), y.len(), "one value a code");
    par::for_each_chunk(y, UNIT, 400.0, |start, y| {
        quantize::dequantize_u8(&x[start..start + y.len()], y, params);
    });
}

/// [`QParams::dequantize`] of every element.
///
/// # Panics
///
/// When the slices differ in length.
pub fn dequantize_i8(x: &[i8], y: &mut [f32], params: QParams) {
    assert_eq!(x.len(), y.len(), "one value a code");
    par::for_each_chunk(y, UNIT, 400.0, |start, y| {
        quantize::dequantize_i8(&x[start..start + y.len()], y, params);
    });
}

/// `y = table[x]`.
///
/// # Panics
///
/// When the slices differ in length.
pub fn map(table: &[u8; 256], x: &[u8], y: &mut [u8]) {
    assert_eq!(x.len(), y.len(), "one code a code");
    par::for_each_chunk(y, UNIT, 2000.0, |start, y| {
        for (y, &x) in y.iter_mut().zip(&x[start..]) {
            *y = table[usize::from(x)];
        }
    });
}
