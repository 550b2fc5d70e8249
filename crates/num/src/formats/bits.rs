//! Codes of any width as a stream of bits: the first code in the lowest bits of the first byte, and so on across
//! bytes. For 8, 4 and 2 bits it is ONNX's packing ([`crate::pack`]), for 6 bits ONNX's FLOAT6 (four codes in three
//! bytes). The rest of the last byte is 0.

use alloc::vec;
use alloc::vec::Vec;

/// Bytes that `n` codes of `bits` bits take.
pub const fn packed_len(n: usize, bits: u32) -> usize {
    (n * bits as usize).div_ceil(8)
}

/// The low `bits` bits (1..=16) of every code.
pub fn pack(codes: &[i32], bits: u32) -> Vec<u8> {
    let mut bytes = vec![0; packed_len(codes.len(), bits)];
    let mask = (1_u32 << bits) - 1;
    for (i, code) in codes.iter().enumerate() {
        let at = i * bits as usize;
        let shifted = (*code as u32 & mask) << (at % 8);
        for (byte, part) in bytes[at / 8..].iter_mut().zip(shifted.to_le_bytes()) {
            *byte |= part;
        }
    }
    bytes
}

/// `n` codes of `bits` bits, from 0 up.
///
/// # Panics
///
/// When `bytes` are too few.
pub fn unpack(bytes: &[u8], n: usize, bits: u32) -> Vec<i32> {
    let mask = (1_u32 << bits) - 1;
    let code = |i: usize| {
        let at = i * bits as usize;
        let last = (at + bits as usize).div_ceil(8);
        let word =
            bytes[at / 8..last].iter().rev().fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
        (word >> (at % 8) & mask) as i32
    };
    (0..n).map(code).collect()
}

/// [`unpack`] of two's complement.
pub fn unpack_signed(bytes: &[u8], n: usize, bits: u32) -> Vec<i32> {
    let shift = 32 - bits;
    unpack(bytes, n, bits).into_iter().map(|code| code << shift >> shift).collect()
}

/// Two codes a byte, the first in the upper half: bitsandbytes' order. An odd end is filled with `pad`.
pub fn pack_high_first(codes: &[i32], pad: i32) -> Vec<u8> {
    codes.chunks(2).map(|pair| (pair[0] << 4 | pair.get(1).copied().unwrap_or(pad)) as u8).collect()
}

/// `n` codes of [`pack_high_first`].
pub fn unpack_high_first(bytes: &[u8], n: usize) -> Vec<i32> {
    bytes.iter().flat_map(|byte| [i32::from(byte >> 4), i32::from(byte & 15)]).take(n).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::SubByte;

    #[test]
    fn every_width_comes_back_at_every_length() {
        for bits in 1..=16 {
            for n in 0..=40 {
                let codes: Vec<i32> =
                    (0..n).map(|i| (i * 40_503 + 7) as i32 & ((1 << bits) - 1)).collect();
                let bytes = pack(&codes, bits);
                assert_eq!(bytes.len(), packed_len(n, bits));
                assert_eq!(unpack(&bytes, n, bits), codes, "{bits} bits");
                let signed: Vec<i32> =
                    codes.iter().map(|code| code << (32 - bits) >> (32 - bits)).collect();
                assert_eq!(unpack_signed(&pack(&signed, bits), n, bits), signed);
            }
        }
    }

    #[test]
    fn four_and_two_bits_are_onnx_order_and_six_bits_four_in_three_bytes() {
        let codes = [-8, 7, -1, 0, 3];
        let onnx = SubByte::Int4.pack(&codes.map(|q: i32| q as i8)).unwrap();
        assert_eq!(pack(&codes, 4), onnx);
        let codes = [-2, 1, -1, 0, 1];
        assert_eq!(pack(&codes, 2), SubByte::Int2.pack(&codes.map(|q: i32| q as i8)).unwrap());
        assert_eq!(pack(&[0x3F, 0, 0x3F, 1], 6), [0x3F, 0xF0, 0x07]);
    }

    #[test]
    fn high_first_fills_an_odd_end() {
        assert_eq!(pack_high_first(&[1, 2, 3], 7), [0x12, 0x37]);
        assert_eq!(unpack_high_first(&[0x12, 0x37], 3), [1, 2, 3]);
    }
}
