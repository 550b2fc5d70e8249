//! Codes of four and two bits in bytes, as ONNX stores them: the first code in the lowest bits, the
//! rest of the last byte 0.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::affine::QRange;

/// An element type smaller than a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SubByte {
    /// ONNX INT4, two's complement.
    Int4,
    /// ONNX UINT4.
    Uint4,
    /// ONNX INT2, two's complement.
    Int2,
    /// ONNX UINT2.
    Uint2,
}

impl SubByte {
    /// Every type.
    pub const ALL: &'static [Self] = &[Self::Int4, Self::Uint4, Self::Int2, Self::Uint2];

    /// Bits of one code.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Int4 | Self::Uint4 => 4,
            Self::Int2 | Self::Uint2 => 2,
        }
    }

    /// Values of the type.
    pub const fn range(self) -> QRange {
        match self {
            Self::Int4 => QRange::I4,
            Self::Uint4 => QRange::U4,
            Self::Int2 => QRange::I2,
            Self::Uint2 => QRange::U2,
        }
    }

    /// Codes in one byte.
    pub const fn per_byte(self) -> usize {
        (8 / self.bits()) as usize
    }

    /// Bytes that `n_codes` take.
    pub const fn packed_len(self, n_codes: usize) -> usize {
        n_codes.div_ceil(self.per_byte())
    }

    /// Puts `codes` into bytes.
    ///
    /// `i8` holds every value of all four types. Refuses a code that the type does not have.
    pub fn pack(self, codes: &[i8]) -> Result<Vec<u8>, PackError> {
        let range = self.range();
        if let Some(at) = codes.iter().position(|q| !range.contains(i32::from(*q))) {
            return Err(PackError::Code { at, code: codes[at], range });
        }
        let mask = (1_u8 << self.bits()) - 1;
        let mut bytes = vec![0; self.packed_len(codes.len())];
        for (byte, group) in bytes.iter_mut().zip(codes.chunks(self.per_byte())) {
            for (i, q) in group.iter().enumerate() {
                *byte |= (*q as u8 & mask) << (i as u32 * self.bits());
            }
        }
        Ok(bytes)
    }

    /// The first `n_codes` codes of `bytes`.
    ///
    /// Refuses `bytes` of another length than [`Self::packed_len`]. What the unused bits of the
    /// last byte hold is ignored.
    pub fn unpack(self, bytes: &[u8], n_codes: usize) -> Result<Vec<i8>, PackError> {
        if bytes.len() != self.packed_len(n_codes) {
            return Err(PackError::Length { n_bytes: bytes.len(), n_codes, bits: self.bits() });
        }
        Ok((0..n_codes).map(|i| self.get(bytes, i)).collect())
    }

    /// Code `i` of `bytes`.
    ///
    /// # Panics
    ///
    /// When `bytes` are too few.
    #[inline]
    pub fn get(self, bytes: &[u8], i: usize) -> i8 {
        let bits = self.bits();
        let shift = (i % self.per_byte()) as u32 * bits;
        // To the top of the byte, which drops the later codes, and down again with the type's own shift.
        let top = bytes[i / self.per_byte()] << (8 - bits - shift);
        match self {
            Self::Int4 | Self::Int2 => (top as i8) >> (8 - bits),
            Self::Uint4 | Self::Uint2 => (top >> (8 - bits)) as i8,
        }
    }
}

/// Why codes could not be packed or unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PackError {
    /// A code that the type does not have.
    Code {
        /// Its place.
        at: usize,
        /// The code.
        code: i8,
        /// The type's values.
        range: QRange,
    },
    /// Too few bytes, or too many.
    Length {
        /// Bytes given.
        n_bytes: usize,
        /// Codes asked for.
        n_codes: usize,
        /// Bits of one.
        bits: u32,
    },
}

impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code { at, code, range } => write!(f, "code {at} is {code}, outside {range}"),
            Self::Length { n_bytes, n_codes, bits } => {
                write!(f, "{n_codes} codes of {bits} bits do not fill {n_bytes} bytes")
            }
        }
    }
}

impl core::error::Error for PackError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_at_every_place() {
        for ty in SubByte::ALL {
            let range = ty.range();
            let all: Vec<i8> = (range.qmin()..=range.qmax()).map(|q| q as i8).collect();
            for len in 0..=40 {
                let codes: Vec<i8> = all.iter().cycle().skip(len).take(len).copied().collect();
                let bytes = ty.pack(&codes).unwrap();
                assert_eq!(bytes.len(), ty.packed_len(len));
                assert_eq!(ty.unpack(&bytes, len).unwrap(), codes, "{ty:?}");
            }
        }
    }

    #[test]
    fn unused_bits_are_written_as_zero_and_not_read() {
        assert_eq!(SubByte::Int4.pack(&[-1, -1, -1]).unwrap(), [0xFF, 0x0F]);
        assert_eq!(SubByte::Int4.unpack(&[0xFF, 0xAF], 3).unwrap(), [-1, -1, -1]);
    }

    #[test]
    fn codes_and_lengths_that_do_not_fit_are_refused() {
        let refused = SubByte::Uint4.pack(&[3, 16]);
        assert_eq!(refused, Err(PackError::Code { at: 1, code: 16, range: QRange::U4 }));
        assert!(SubByte::Int2.pack(&[-3]).is_err());
        for n_codes in [2, 5] {
            let refused = SubByte::Int4.unpack(&[0, 0], n_codes);
            assert_eq!(refused, Err(PackError::Length { n_bytes: 2, n_codes, bits: 4 }));
        }
    }
}
