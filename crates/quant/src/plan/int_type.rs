//! The integer types a tensor can be quantized to.

use std::{fmt, str::FromStr};

use midtread_graph::DataType;
use midtread_num::{QRange, Sign, Span};

/// An ONNX integer type that QuantizeLinear or DequantizeLinear has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are the types")]
pub enum IntType {
    I4,
    U4,
    I8,
    U8,
    I16,
    U16,
}

impl IntType {
    /// Every type.
    pub const ALL: [Self; 6] = [Self::I4, Self::U4, Self::I8, Self::U8, Self::I16, Self::U16];

    /// `i8`, `u8`, ... as in Rust, on the command line and in target files.
    pub fn name(self) -> &'static str {
        match self {
            Self::I4 => "i4",
            Self::U4 => "u4",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::I16 => "i16",
            Self::U16 => "u16",
        }
    }

    /// ONNX element type.
    pub fn data_type(self) -> DataType {
        match self {
            Self::I4 => DataType::Int4,
            Self::U4 => DataType::Uint4,
            Self::I8 => DataType::Int8,
            Self::U8 => DataType::Uint8,
            Self::I16 => DataType::Int16,
            Self::U16 => DataType::Uint16,
        }
    }

    /// The type with this ONNX element type.
    pub fn from_data_type(dtype: DataType) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.data_type() == dtype)
    }

    /// Bits of an element.
    pub fn n_bits(self) -> usize {
        match self {
            Self::I4 | Self::U4 => 4,
            Self::I8 | Self::U8 => 8,
            Self::I16 | Self::U16 => 16,
        }
    }

    /// Whether it has negative values.
    pub fn is_signed(self) -> bool {
        matches!(self, Self::I4 | Self::I8 | Self::I16)
    }

    /// The part `span` of its integers. Types of four bits keep their most negative value when narrow, as in
    /// onnxruntime (one of 16 levels is too many to lose), and unsigned types have nothing to narrow.
    pub fn range(self, span: Span) -> QRange {
        let (sign, span) = match (self.is_signed(), span) {
            (true, Span::Narrow) if self.n_bits() == 4 => (Sign::Signed, Span::Full),
            (true, span) => (Sign::Signed, span),
            (false, Span::Narrow) => (Sign::Unsigned, Span::Full),
            (false, span) => (Sign::Unsigned, span),
        };
        QRange::of(self.n_bits() as u32, sign, span)
            .expect("no type is too narrow for any of these")
    }

    /// [`Self::range`] of a type of `n_bits`, which this type holds: all of its integers up to four bits.
    pub fn range_of_bits(self, n_bits: u32, span: Span) -> Option<QRange> {
        let (sign, span) = match (self.is_signed(), span) {
            (true, Span::Narrow) if n_bits <= 4 => (Sign::Signed, Span::Full),
            (true, span) => (Sign::Signed, span),
            (false, Span::Narrow) => (Sign::Unsigned, Span::Full),
            (false, span) => (Sign::Unsigned, span),
        };
        QRange::of(n_bits, sign, span).ok().filter(|range| range.is_within(self.range(Span::Full)))
    }

    /// The first operator set whose QuantizeLinear and DequantizeLinear have it.
    pub fn opset(self) -> i64 {
        match self {
            Self::I8 | Self::U8 => 10,
            Self::I4 | Self::U4 | Self::I16 | Self::U16 => 21,
        }
    }
}

impl fmt::Display for IntType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for IntType {
    type Err = String;

    /// Takes `i8` and ONNX's `int8`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found =
            Self::ALL.into_iter().find(|t| t.name() == text || t.data_type().name() == text);
        found.ok_or_else(|| {
            format!("`{text}` is not one of the integer types i4, u4, i8, u8, i16, u16")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_onnxruntimes() {
        use Span::*;
        let got = |t: IntType, w| (t.range(w).qmin(), t.range(w).qmax());
        for (t, full, narrow, reduced) in [
            (IntType::I8, (-128, 127), (-127, 127), (-64, 64)),
            (IntType::U8, (0, 255), (0, 255), (0, 127)),
            (IntType::I16, (-32768, 32767), (-32767, 32767), (-16384, 16384)),
            (IntType::U16, (0, 65535), (0, 65535), (0, 32767)),
            (IntType::I4, (-8, 7), (-8, 7), (-4, 3)),
            (IntType::U4, (0, 15), (0, 15), (0, 7)),
        ] {
            assert_eq!(
                [got(t, Full), got(t, Narrow), got(t, Reduced)],
                [full, narrow, reduced],
                "{t}"
            );
        }
    }

    #[test]
    fn fewer_bits_than_the_type_has_are_a_part_of_it() {
        let got = |t: IntType, n| t.range_of_bits(n, Span::Narrow).map(|r| (r.qmin(), r.qmax()));
        assert_eq!(got(IntType::I4, 2), Some((-2, 1)));
        assert_eq!(got(IntType::I4, 4), Some((-8, 7)));
        assert_eq!(got(IntType::I8, 6), Some((-31, 31)));
        assert_eq!(got(IntType::U4, 3), Some((0, 7)));
        assert_eq!(got(IntType::U4, 5), None);
        assert_eq!(IntType::U4.range_of_bits(1, Span::Reduced), None);
    }

    #[test]
    fn names_are_read_back_in_both_spellings() {
        for t in IntType::ALL {
            assert_eq!(t.name().parse(), Ok(t));
            assert_eq!(t.data_type().name().parse(), Ok(t));
            assert_eq!(IntType::from_data_type(t.data_type()), Some(t));
        }
        assert!("int2".parse::<IntType>().is_err());
    }
}
