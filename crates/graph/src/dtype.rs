//! ONNX element types.

use std::fmt;

/// `TensorProto.DataType`, by the names of the specification (IR version 14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are the specification's")]
#[repr(u8)]
pub enum DataType {
    Float = 1,
    Uint8 = 2,
    Int8 = 3,
    Uint16 = 4,
    Int16 = 5,
    Int32 = 6,
    Int64 = 7,
    String = 8,
    Bool = 9,
    Float16 = 10,
    Double = 11,
    Uint32 = 12,
    Uint64 = 13,
    Complex64 = 14,
    Complex128 = 15,
    Bfloat16 = 16,
    Float8E4M3FN = 17,
    Float8E4M3FNUZ = 18,
    Float8E5M2 = 19,
    Float8E5M2FNUZ = 20,
    Uint4 = 21,
    Int4 = 22,
    Float4E2M1 = 23,
    Float8E8M0 = 24,
    Uint2 = 25,
    Int2 = 26,
    Float6E2M3 = 27,
    Float6E3M2 = 28,
}

impl DataType {
    /// Every type, in the order of its ONNX number (1, 2, 3, ...).
    #[rustfmt::skip]
    pub const ALL: [Self; 28] = [
        Self::Float, Self::Uint8, Self::Int8, Self::Uint16, Self::Int16, Self::Int32, Self::Int64, Self::String,
        Self::Bool, Self::Float16, Self::Double, Self::Uint32, Self::Uint64, Self::Complex64, Self::Complex128,
        Self::Bfloat16, Self::Float8E4M3FN, Self::Float8E4M3FNUZ, Self::Float8E5M2, Self::Float8E5M2FNUZ,
        Self::Uint4, Self::Int4, Self::Float4E2M1, Self::Float8E8M0, Self::Uint2, Self::Int2, Self::Float6E2M3,
        Self::Float6E3M2,
    ];

    /// The type with this ONNX number, if it is one of this version's.
    pub fn from_onnx(number: i32) -> Option<Self> {
        let idx = usize::try_from(number).ok()?.checked_sub(1)?;
        Self::ALL.get(idx).copied()
    }

    /// The ONNX number.
    pub fn to_onnx(self) -> i32 {
        self as i32
    }

    /// Bits one element takes in `raw_data`; `None` for strings. Types of fewer than 8 bits are packed, the first
    /// element in the lowest bits, and the last byte is padded with zeros.
    pub fn n_bits(self) -> Option<usize> {
        use DataType::*;
        Some(match self {
            String => return None,
            Uint2 | Int2 => 2,
            Uint4 | Int4 | Float4E2M1 => 4,
            Float6E2M3 | Float6E3M2 => 6,
            Uint8 | Int8 | Bool | Float8E4M3FN | Float8E4M3FNUZ | Float8E5M2 | Float8E5M2FNUZ
            | Float8E8M0 => 8,
            Uint16 | Int16 | Float16 | Bfloat16 => 16,
            Float | Int32 | Uint32 => 32,
            Int64 | Double | Uint64 | Complex64 => 64,
            Complex128 => 128,
        })
    }

    /// Bytes that `n_elements` take in `raw_data`; `None` for strings and where the count overflows.
    pub fn n_bytes(self, n_elements: usize) -> Option<usize> {
        Some(n_elements.checked_mul(self.n_bits()?)?.div_ceil(8))
    }

    /// Whether values are real numbers in a floating-point format.
    pub fn is_float(self) -> bool {
        use DataType::*;
        matches!(
            self,
            Float
                | Float16
                | Double
                | Bfloat16
                | Float8E4M3FN
                | Float8E4M3FNUZ
                | Float8E5M2
                | Float8E5M2FNUZ
                | Float4E2M1
                | Float8E8M0
                | Float6E2M3
                | Float6E3M2
        )
    }

    /// The name in type strings of the operator specification: `float`, `int8`, `float8e4m3fn`.
    pub fn name(self) -> &'static str {
        use DataType::*;
        match self {
            Float => "float",
            Uint8 => "uint8",
            Int8 => "int8",
            Uint16 => "uint16",
            Int16 => "int16",
            Int32 => "int32",
            Int64 => "int64",
            String => "string",
            Bool => "bool",
            Float16 => "float16",
            Double => "double",
            Uint32 => "uint32",
            Uint64 => "uint64",
            Complex64 => "complex64",
            Complex128 => "complex128",
            Bfloat16 => "bfloat16",
            Float8E4M3FN => "float8e4m3fn",
            Float8E4M3FNUZ => "float8e4m3fnuz",
            Float8E5M2 => "float8e5m2",
            Float8E5M2FNUZ => "float8e5m2fnuz",
            Uint4 => "uint4",
            Int4 => "int4",
            Float4E2M1 => "float4e2m1",
            Float8E8M0 => "float8e8m0",
            Uint2 => "uint2",
            Int2 => "int2",
            Float6E2M3 => "float6e2m3",
            Float6E3M2 => "float6e3m2",
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_specifications_and_names_are_unique() {
        for (i, dtype) in DataType::ALL.into_iter().enumerate() {
            assert_eq!(dtype.to_onnx(), i as i32 + 1);
            assert_eq!(DataType::from_onnx(i as i32 + 1), Some(dtype));
        }
        for number in [i32::MIN, -1, 0, 29, i32::MAX] {
            assert_eq!(DataType::from_onnx(number), None);
        }
        let mut names: Vec<_> = DataType::ALL.iter().map(|d| d.name()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), DataType::ALL.len());
    }

    #[test]
    fn packed_types_round_the_last_byte_up_and_counts_do_not_overflow() {
        assert_eq!(DataType::Int4.n_bytes(3), Some(2));
        assert_eq!(DataType::Uint2.n_bytes(5), Some(2));
        assert_eq!(DataType::Float6E2M3.n_bytes(4), Some(3));
        assert_eq!(DataType::Float.n_bytes(0), Some(0));
        assert_eq!(DataType::Float.n_bytes(usize::MAX), None);
        assert_eq!(DataType::String.n_bytes(1), None);
    }
}
