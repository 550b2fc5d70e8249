//! Softmax of codes.

use alloc::vec::Vec;

use midtread_num::softmax::Softmax;

use super::Bytes;
use crate::autovec::autovec;
use crate::par;
use crate::variant::{self, VariantInfo};

/// Rows whose sums are made together: each is a chain of additions.
const AT_ONCE: usize = 8;

/// Some rows.
struct Rows<'a> {
    of: &'a Softmax,
    len: usize,
    /// What makes `u8` of the codes.
    flip: u8,
    x: &'a [u8],
}

/// The softmax of every row of `len` codes.
///
/// # Panics
///
/// When the slices differ in length or are not whole rows.
pub fn softmax(of: &Softmax, len: usize, x: Bytes, y: &mut [u8]) {
    assert_eq!(x.data.len(), y.len(), "one code a code");
    if y.is_empty() {
        return;
    }
    assert!(y.len().is_multiple_of(len), "whole rows");
    let run = variant::select(VARIANTS);
    let flip = if x.is_signed { 0x80 } else { 0 };
    // Where there are few rows, so many together are not worth it.
    let unit = if y.len() < 32 * AT_ONCE * len { len } else { AT_ONCE * len };
    par::for_each_chunk(y, unit, 0.8 * unit as f32, |start, y| {
        par::with_scratch(AT_ONCE * len, |e: &mut [f32]| {
            let x = &x.data[start..start + y.len()];
            run(&Rows { of, len, flip, x }, e, y);
        });
    });
}

autovec!(VARIANTS, fn(rows: &Rows, e: &mut [f32], y: &mut [u8]) = run);

#[inline(always)]
fn run(rows: &Rows, e: &mut [f32], y: &mut [u8]) {
    let len = rows.len;
    // Twice as many as there are, so that every sum of two bytes is an index.
    let mut table = [0.0; 512];
    table[..256].copy_from_slice(&rows.of.exponentials);
    for (x, y) in rows.x.chunks(AT_ONCE * len).zip(y.chunks_mut(AT_ONCE * len)) {
        some(rows, &table, x, &mut e[..y.len()], y);
    }
}

/// The exponentials of some rows, their sums and codes.
#[inline(always)]
fn some(rows: &Rows, table: &[f32; 512], x: &[u8], e: &mut [f32], y: &mut [u8]) {
    let &Rows { of, len, flip, .. } = rows;
    for (x, e) in x.chunks_exact(len).zip(e.chunks_exact_mut(len)) {
        let mut top = 0;
        for code in x {
            top = top.max(code ^ flip);
        }
        for (e, code) in e.iter_mut().zip(x) {
            *e = table[usize::from(255 - top) + usize::from(code ^ flip)];
        }
    }
    let mut sums = [0.0_f32; AT_ONCE];
    if e.len() == AT_ONCE * len {
        let (first, last) = e.split_at(AT_ONCE / 2 * len);
        let four = |e| {
            let mut rows = <[f32]>::chunks_exact(e, len).map(<[f32]>::iter);
            std::array::from_fn::<_, 4, _>(|_| rows.next().expect("four rows"))
        };
        let ([a, b, c, d], [f, g, h, i]) = (four(first), four(last));
        let (first, last) = (a.zip(b).zip(c.zip(d)), f.zip(g).zip(h.zip(i)));
        for (((a, b), (c, d)), ((f, g), (h, i))) in first.zip(last) {
            for (sum, e) in sums.iter_mut().zip([a, b, c, d, f, g, h, i]) {
                *sum += e;
            }
        }
    } else {
        for (sum, e) in sums.iter_mut().zip(e.chunks_exact(len)) {
            *sum = e.iter().fold(0.0, |sum, e| sum + e);
        }
    }
    let rows = y.chunks_exact_mut(len).zip(e.chunks_exact(len));
    for ((y, e), sum) in rows.zip(sums) {
        for (y, e) in y.iter_mut().zip(e) {
            *y = of.code(*e, sum) as u8;
        }
    }
}

pub(super) fn describe() -> Vec<VariantInfo> {
    variant::describe("quantized::softmax", VARIANTS)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Every variant's result, with the variant's name.
    pub(in super::super) fn each_variant(
        of: &Softmax,
        len: usize,
        x: Bytes,
        mut check: impl FnMut(&str, Vec<u8>),
    ) {
        for variant in VARIANTS {
            let Some(kernel) = variant.get() else { continue };
            let (mut y, mut e) = (vec![0xAA; x.data.len()], vec![0.0; AT_ONCE * len]);
            let flip = if x.is_signed { 0x80 } else { 0 };
            kernel(&Rows { of, len, flip, x: x.data }, &mut e, &mut y);
            check(variant.name, y);
        }
    }
}
