//! Element types: what a file says its bytes are, and how they become `f32`.

use midtread_num::formats::float::FloatType;
use midtread_num::formats::ggml::{self, BlockType};

/// A type of elements, or of blocks of them.
#[derive(Debug)]
pub struct DType {
    /// As options and reports spell it.
    pub name: &'static str,
    /// As a safetensors header spells it, if it can.
    pub safetensors: Option<&'static str>,
    /// The number in a GGUF file, if it has one.
    pub ggml: Option<u32>,
    /// Elements of a block; 1 for a type without blocks.
    pub block_size: usize,
    /// Bytes of a block.
    pub n_bytes: usize,
    /// How to read it as numbers, for types that this version can.
    pub values: Option<Values>,
}

/// How bytes are numbers.
#[derive(Clone, Copy)]
pub enum Values {
    /// `float32`.
    F32,
    /// `float16`.
    F16,
    /// `bfloat16`.
    Bf16,
    /// A byte each.
    Float8(FloatType),
    /// ggml's blocks, and the name of their format.
    Blocks(&'static str),
}

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "Bf16",
            Self::Float8(ty) => ty.name,
            Self::Blocks(name) => name,
        })
    }
}

impl PartialEq for DType {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl DType {
    /// The type that a safetensors header calls `name`.
    pub fn from_safetensors(name: &str) -> Option<&'static Self> {
        DTYPES.iter().find(|ty| ty.safetensors == Some(name))
    }

    /// The type with that number in GGUF.
    pub fn from_ggml(id: u32) -> Option<&'static Self> {
        DTYPES.iter().find(|ty| ty.ggml == Some(id))
    }

    /// The type called `name` here.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn named(name: &str) -> &'static Self {
        DTYPES.iter().find(|ty| ty.name == name).expect("the name of a type in the list")
    }

    /// The bytes of `n` elements that are in rows of `cols`; `None` when a row is not whole blocks or the number is
    /// beyond `u64`.
    pub fn bytes_of(&self, n: u64, cols: u64) -> Option<u64> {
        let block = self.block_size as u64;
        // safetensors packs its small floats over rows, ggml's blocks end with them.
        let unit = if self.ggml.is_some() && n != 0 { cols } else { n };
        unit.is_multiple_of(block).then(|| (n / block).checked_mul(self.n_bytes as u64))?
    }

    /// The ggml block type, for types that are blocks.
    pub fn blocks(&self) -> Option<&'static BlockType> {
        match self.values {
            Some(Values::Blocks(name)) => {
                let format = midtread_num::formats::Format::named(name).ok()?;
                ggml::block_type(format.def)
            }
            _ => None,
        }
    }
}

const fn plain(
    name: &'static str,
    safetensors: Option<&'static str>,
    ggml: Option<u32>,
    n_bytes: usize,
    values: Option<Values>,
) -> DType {
    DType { name, safetensors, ggml, block_size: 1, n_bytes, values }
}

/// A type of ggml that this version can read and write.
const fn blocks(name: &'static str, id: u32, block_size: usize, n_bytes: usize) -> DType {
    let values = Some(Values::Blocks(name));
    DType { name, safetensors: None, ggml: Some(id), block_size, n_bytes, values }
}

/// A type that is only carried.
const fn opaque(
    name: &'static str,
    safetensors: Option<&'static str>,
    ggml: Option<u32>,
    block_size: usize,
    n_bytes: usize,
) -> DType {
    DType { name, safetensors, ggml, block_size, n_bytes, values: None }
}

/// Every type that a file may have. Numbers and block sizes: `ggml.h` and `ggml-common.h` of llama.cpp; names: the
/// safetensors format.
#[rustfmt::skip]
pub static DTYPES: &[DType] = &[
    plain("float32", Some("F32"), Some(0), 4, Some(Values::F32)),
    plain("float16", Some("F16"), Some(1), 2, Some(Values::F16)),
    plain("bfloat16", Some("BF16"), Some(30), 2, Some(Values::Bf16)),
    plain("fp8_e4m3fn", Some("F8_E4M3"), None, 1, Some(Values::Float8(FloatType::FP8_E4M3FN))),
    plain("fp8_e5m2", Some("F8_E5M2"), None, 1, Some(Values::Float8(FloatType::FP8_E5M2))),
    plain("fp8_e4m3fnuz", Some("F8_E4M3FNUZ"), None, 1, Some(Values::Float8(FloatType::FP8_E4M3FNUZ))),
    plain("fp8_e5m2fnuz", Some("F8_E5M2FNUZ"), None, 1, Some(Values::Float8(FloatType::FP8_E5M2FNUZ))),
    plain("bool", Some("BOOL"), None, 1, None),
    plain("uint8", Some("U8"), None, 1, None),
    plain("int8", Some("I8"), Some(24), 1, None),
    plain("uint16", Some("U16"), None, 2, None),
    plain("int16", Some("I16"), Some(25), 2, None),
    plain("uint32", Some("U32"), None, 4, None),
    plain("int32", Some("I32"), Some(26), 4, None),
    plain("uint64", Some("U64"), None, 8, None),
    plain("int64", Some("I64"), Some(27), 8, None),
    plain("float64", Some("F64"), Some(28), 8, None),
    plain("complex64", Some("C64"), None, 8, None),
    plain("e8m0", Some("F8_E8M0"), None, 1, None),
    opaque("fp4_e2m1", Some("F4"), None, 2, 1),
    opaque("fp6_e2m3", Some("F6_E2M3"), None, 4, 3),
    opaque("fp6_e3m2", Some("F6_E3M2"), None, 4, 3),
    blocks("q4_0", 2, 32, 18),
    blocks("q4_1", 3, 32, 20),
    blocks("q5_0", 6, 32, 22),
    blocks("q5_1", 7, 32, 24),
    blocks("q8_0", 8, 32, 34),
    blocks("q2_k", 10, 256, 84),
    blocks("q3_k", 11, 256, 110),
    blocks("q4_k", 12, 256, 144),
    blocks("q5_k", 13, 256, 176),
    blocks("q6_k", 14, 256, 210),
    blocks("iq4_nl", 20, 32, 18),
    opaque("q8_1", None, Some(9), 32, 36),
    opaque("q8_k", None, Some(15), 256, 292),
    opaque("iq2_xxs", None, Some(16), 256, 66),
    opaque("iq2_xs", None, Some(17), 256, 74),
    opaque("iq3_xxs", None, Some(18), 256, 98),
    opaque("iq1_s", None, Some(19), 256, 50),
    opaque("iq3_s", None, Some(21), 256, 110),
    opaque("iq2_s", None, Some(22), 256, 82),
    opaque("iq4_xs", None, Some(23), 256, 136),
    opaque("iq1_m", None, Some(29), 256, 56),
    opaque("tq1_0", None, Some(34), 256, 54),
    opaque("tq2_0", None, Some(35), 256, 66),
    opaque("mxfp4", None, Some(39), 32, 17),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_unique_and_blocks_are_those_of_num() {
        for (i, ty) in DTYPES.iter().enumerate() {
            for other in &DTYPES[..i] {
                assert_ne!(ty.name, other.name);
                assert!(ty.ggml.is_none() || ty.ggml != other.ggml, "{} {}", ty.name, other.name);
                assert!(ty.safetensors.is_none() || ty.safetensors != other.safetensors);
            }
            assert!(ty.safetensors.is_some() || ty.ggml.is_some(), "{}", ty.name);
            if let Some(Values::Blocks(_)) = ty.values {
                let blocks = ty.blocks().unwrap();
                assert_eq!((ty.block_size, ty.n_bytes), (blocks.block_size, blocks.n_bytes));
            }
        }
    }

    #[test]
    fn bytes_count_whole_blocks_of_a_row_and_refuse_what_is_too_large() {
        let q4_k = DType::named("q4_k");
        assert_eq!(q4_k.bytes_of(1024, 512), Some(4 * 144));
        assert_eq!(q4_k.bytes_of(1024, 128), None);
        assert_eq!(q4_k.bytes_of(0, 0), Some(0));
        assert_eq!(DType::named("fp4_e2m1").bytes_of(6, 3), Some(3));
        assert_eq!(DType::named("fp4_e2m1").bytes_of(3, 3), None);
        assert_eq!(DType::named("float32").bytes_of(u64::MAX / 2, 1), None);
    }
}
