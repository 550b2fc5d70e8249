//! Number formats for weights: what the bits of each mean, and how a tensor gets there and back.
//!
//! A [`FormatDef`] is one format (or a family with widths in its name, `intN`): quantize, dequantize, pack, unpack and
//! the [`Layout`](FormatDef::layout) of what is stored, from which the bits per weight follow. [`FORMATS`] lists them;
//! [`Format::named`] finds one by what a user writes: `int4:32`, `nf4`, `e4m3`, `q4_k`.
//!
//! Reading order: [`float`] (every floating type of at most 16 bits), [`int`], [`ternary`], [`power_of_two`],
//! [`fixed_point`], [`block_float`], [`mx`], [`nvfp4`], [`codebook`] (NF4, FP4, the dynamic 8-bit map), [`nested`],
//! [`llm_int8`], [`ggml`], [`matmul_nbits`] and [`matmul_bnb4`], [`hqq`], [`search`].
//!
//! What is the same everywhere:
//!
//! - A tensor is a [`Matrix`] of rows; blocks lie along a row, and the last may be short. bitsandbytes' formats
//!   see one long row.
//! - Floating formats keep NaN and infinity as their type can, MX makes a block that has one a block of NaN. All others
//!   refuse ([`FormatError::NotFinite`]): an integer cannot say NaN, and one infinity would make its block zeros.
//! - An empty tensor has no codes. A block of zeros comes back as zeros, in every format that has a zero.
//! - The arithmetic is `f32`, one rounding an operation, sums from left to right, no fused multiply-add: what the
//!   reference implementations' portable builds do, so that the bytes are theirs.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

pub mod bits;
pub mod block_float;
pub mod codebook;
pub mod fixed_point;
pub mod float;
pub mod ggml;
pub mod hqq;
pub mod int;
pub mod llm_int8;
pub mod matmul_bnb4;
pub mod matmul_nbits;
pub mod mx;
pub mod nested;
pub mod nvfp4;
pub mod power_of_two;
pub mod search;
pub mod ternary;

pub use search::Search;

/// Every format. A new one is a file and its line here; the laws, `--weights` and `explain type` find it by themselves.
pub static FORMATS: &[&FormatDef] = &[
    &int::SIGNED,
    &int::UNSIGNED,
    &hqq::DEF,
    &ternary::DEF,
    &power_of_two::DEF,
    &fixed_point::DEF,
    &float::FLOAT16,
    &float::BFLOAT16,
    &float::FP8_E4M3FN,
    &float::FP8_E5M2,
    &float::FP8_E4M3FNUZ,
    &float::FP8_E5M2FNUZ,
    &float::FP6_E2M3,
    &float::FP6_E3M2,
    &float::FP4_E2M1,
    &float::MINIFLOAT,
    &block_float::DEF,
    &mx::MXFP8_E4M3,
    &mx::MXFP8_E5M2,
    &mx::MXFP6_E3M2,
    &mx::MXFP6_E2M3,
    &mx::MXFP4,
    &mx::MXINT8,
    &nvfp4::DEF,
    &codebook::NF4,
    &codebook::FP4,
    &codebook::DYNAMIC8,
    &nested::NF4,
    &nested::FP4,
    &llm_int8::DEF,
    &ggml::Q4_0,
    &ggml::Q4_1,
    &ggml::Q5_0,
    &ggml::Q5_1,
    &ggml::Q8_0,
    &ggml::Q2_K,
    &ggml::Q3_K,
    &ggml::Q4_K,
    &ggml::Q5_K,
    &ggml::Q6_K,
    &ggml::IQ4_NL,
    &matmul_nbits::SYMMETRIC,
    &matmul_nbits::ASYMMETRIC,
    &matmul_bnb4::NF4,
    &matmul_bnb4::FP4,
];

/// A format, or a family of them with numbers in the name.
pub struct FormatDef {
    /// What users write. `N`, `X` and `Y` stand for numbers: `intN` is `int1` to `int16`.
    pub name: &'static str,
    /// One line of help.
    pub summary: &'static str,
    /// Where it is defined.
    pub source: &'static str,
    /// The numbers that each letter of the name may be, in order.
    pub numbers: &'static [(u32, u32)],
    /// Which elements share parameters, unless the user says otherwise.
    pub sharing: Sharing,
    /// Whether users may say otherwise.
    pub sharing_is_free: bool,
    /// Whether rows do not matter: the tensor is one row.
    pub is_flat: bool,
    /// Whether some parameter needs the whole tensor ([`Settings::max_abs`]) although blocks are small.
    pub needs_max_abs: bool,
    /// What is stored: names, types and numbers of elements.
    pub layout: fn(&Shape, &Settings) -> Vec<PartLayout>,
    /// To codes and parameters.
    pub quantize: fn(&Matrix<'_>, &Settings) -> Result<Encoded, FormatError>,
    /// Back to values, `shape.n()` of them.
    pub dequantize: fn(&Encoded, &Shape, &Settings) -> Vec<f32>,
    /// Codes and parameters to bytes, a vector for each part of the layout.
    pub pack: fn(&Encoded, &Shape, &Settings) -> Vec<Vec<u8>>,
    /// And back. The parts have the lengths of the layout.
    pub unpack: fn(&[&[u8]], &Shape, &Settings) -> Encoded,
}

/// Which elements share parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// None: there are no parameters.
    Nothing,
    /// All of a tensor.
    Tensor,
    /// Those of a row.
    Row,
    /// So many neighbors in a row; the last block of a row may be shorter.
    Block(usize),
}

impl Sharing {
    /// How many groups share parameters. A tensor without elements is one group for [`Self::Tensor`].
    pub fn n_groups(self, shape: &Shape) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Tensor => 1,
            Self::Row => shape.rows,
            Self::Block(size) => shape.rows * shape.cols.div_ceil(size),
        }
    }

    /// The elements of each group, in order; for [`Self::Nothing`] one group of all.
    pub fn groups(self, shape: &Shape) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, cols, n) = (shape.rows, shape.cols, shape.n());
        let size = match self {
            Self::Nothing | Self::Tensor => n,
            Self::Row => cols,
            Self::Block(size) => size,
        };
        let whole = matches!(self, Self::Nothing | Self::Tensor);
        let (rows, cols) = if whole { (1, n) } else { (rows, cols) };
        let per_row = if whole {
            1
        } else if size == 0 {
            0
        } else {
            cols.div_ceil(size)
        };
        (0..rows * per_row).map(move |i| {
            let (row, block) = (i / per_row, i % per_row);
            row * cols + block * size..row * cols + cols.min((block + 1) * size)
        })
    }
}

impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("none"),
            Self::Tensor => f.write_str("tensor"),
            Self::Row => f.write_str("row"),
            Self::Block(size) => write!(f, "{size}"),
        }
    }
}

/// Rows and columns of a tensor: the last dimension is the row's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Elements of one.
    pub cols: usize,
}

impl Shape {
    /// Elements.
    pub const fn n(&self) -> usize {
        self.rows * self.cols
    }

    /// The same elements as one row.
    pub const fn flat(&self) -> Self {
        Self { rows: 1, cols: self.n() }
    }
}

/// The values of a tensor as rows.
///
/// Invariant: `rows * cols` values.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    values: &'a [f32],
    shape: Shape,
}

impl<'a> Matrix<'a> {
    /// Checks the invariant: `values` are whole rows of `cols`.
    pub fn new(values: &'a [f32], cols: usize) -> Result<Self, FormatError> {
        if values.is_empty() {
            return Ok(Self { values, shape: Shape { rows: 0, cols } });
        }
        if cols == 0 || !values.len().is_multiple_of(cols) {
            return Err(FormatError::Rows { n: values.len(), cols });
        }
        Ok(Self { values, shape: Shape { rows: values.len() / cols, cols } })
    }

    /// One row.
    pub fn row(values: &'a [f32]) -> Self {
        Self { values, shape: Shape { rows: usize::from(!values.is_empty()), cols: values.len() } }
    }

    /// Its values, row by row.
    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Refuses NaN and infinity, naming the first.
    pub(crate) fn finite(&self) -> Result<(), FormatError> {
        match self.values.iter().position(|x| !x.is_finite()) {
            Some(at) => Err(FormatError::NotFinite { at, value: self.values[at] }),
            None => Ok(()),
        }
    }
}

/// What a format can be told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings<'a> {
    /// The first number of the name: bits, exponent bits.
    pub n: u32,
    /// The second: mantissa bits.
    pub m: u32,
    /// Which elements share parameters.
    pub sharing: Sharing,
    /// How scales are chosen.
    pub search: Search,
    /// How much each column matters: the mean square of what it is multiplied with (llama.cpp's importance matrix). As
    /// many as a row has elements.
    pub importance: Option<&'a [f32]>,
    /// The largest magnitude of the whole tensor, where a piece of it is quantized by itself.
    pub max_abs: Option<f32>,
    /// LLM.int8: columns with a magnitude of at least this stay in float. Infinite: none do.
    pub threshold: f32,
}

impl Settings<'_> {
    /// `max_abs`, or that of `values`.
    pub(crate) fn max_abs_of(&self, values: &[f32]) -> f32 {
        self.max_abs.unwrap_or_else(|| max_abs(values))
    }
}

/// The largest magnitude, 0 without elements.
pub fn max_abs(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max: f32, x| if max < x.abs() { x.abs() } else { max })
}

/// A tensor in a format, taken apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    /// A code for each element, in the order of the elements. What a code means is up to the format; integers are
    /// themselves, floats their bits.
    pub codes: Vec<i32>,
    /// What the codes are scaled, shifted or looked up with, by name.
    pub params: Vec<Param>,
}

/// Parameters of one kind, one for each group that shares them.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// `scale`, `zero_point`, `absmax`, ...
    pub name: &'static str,
    /// As stored: a scale that is stored in float16 is one that float16 has.
    pub values: Vec<f32>,
}

impl Encoded {
    /// The parameters called `name`.
    ///
    /// # Panics
    ///
    /// When the format has none of that name.
    pub fn param(&self, name: &str) -> &[f32] {
        let param = self.params.iter().find(|param| param.name == name);
        &param.unwrap_or_else(|| panic!("the format has the parameter `{name}`")).values
    }

    pub(crate) fn with(codes: Vec<i32>, params: Vec<(&'static str, Vec<f32>)>) -> Self {
        let params = params.into_iter().map(|(name, values)| Param { name, values }).collect();
        Self { codes, params }
    }
}

/// One of the byte strings that a tensor is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartLayout {
    /// `codes`, `scale`, `blocks`, ...
    pub name: &'static str,
    /// Of its elements.
    pub ty: PartType,
    /// How many elements.
    pub len: usize,
    /// Whether it belongs to the tensor as a whole: pieces of a tensor all have the same.
    pub is_whole: bool,
}

impl PartLayout {
    pub(crate) const fn new(name: &'static str, ty: PartType, len: usize) -> Self {
        Self { name, ty, len, is_whole: false }
    }

    pub(crate) const fn shared(
        name: &'static str,
        ty: PartType,
        len: usize,
        sharing: Sharing,
    ) -> Self {
        Self { name, ty, len, is_whole: matches!(sharing, Sharing::Tensor) }
    }

    /// Bytes.
    pub const fn n_bytes(&self) -> usize {
        self.len * self.ty.n_bytes()
    }
}

/// The element type of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum PartType {
    U8,
    I8,
    U16,
    I16,
    F16,
    Bf16,
    F32,
    F8E4M3Fn,
    F8E5M2,
}

impl PartType {
    /// Bytes of one element.
    pub const fn n_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::F8E4M3Fn | Self::F8E5M2 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// A format with its settings: what a name stands for.
#[derive(Clone, Copy)]
pub struct Format<'a> {
    /// Which.
    pub def: &'static FormatDef,
    /// And how.
    pub settings: Settings<'a>,
}

impl fmt::Debug for Format<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Format")
            .field("name", &self.name())
            .field("settings", &self.settings)
            .finish()
    }
}

impl<'a> Format<'a> {
    /// The format that `text` names, with what shares parameters after a colon: `nf4`, `int4:32`, `fp8_e4m3fn:row`,
    /// `int8:tensor`.
    pub fn named(text: &str) -> Result<Self, FormatError> {
        let lower = text.to_ascii_lowercase();
        let (name, sharing) = match lower.split_once(':') {
            Some((name, sharing)) => (name, Some(sharing)),
            None => (lower.as_str(), None),
        };
        let unknown = || FormatError::Unknown { name: text.to_string() };
        let (def, numbers) = FORMATS
            .iter()
            .find_map(|def| Some((*def, numbers_in(name, def.name, def.numbers)?)))
            .ok_or_else(unknown)?;
        let sharing = match sharing {
            None => def.sharing,
            Some(_) if !def.sharing_is_free => {
                return Err(FormatError::Sharing { format: def.name, why: "its blocks are fixed" });
            }
            Some("tensor") => Sharing::Tensor,
            Some("row") => Sharing::Row,
            Some("none") if def.sharing == Sharing::Nothing => Sharing::Nothing,
            Some(number) => match number.parse() {
                Ok(size) if 0 < size => Sharing::Block(size),
                _ => return Err(FormatError::Sharing { format: def.name, why: SHARING_WORDS }),
            },
        };
        if def.is_flat && !matches!(sharing, Sharing::Block(_)) {
            return Err(FormatError::Sharing { format: def.name, why: "it has blocks: a number" });
        }
        let settings = Settings {
            n: numbers[0],
            m: numbers[1],
            sharing,
            search: Search::MaxAbs,
            importance: None,
            max_abs: None,
            threshold: f32::INFINITY,
        };
        let format = Self { def, settings };
        if def.name == float::MINIFLOAT.name && numbers[0] + numbers[1] > 15 {
            return Err(unknown());
        }
        Ok(format)
    }

    /// Its name with the numbers, and the sharing if it is not the usual one: what [`Self::named`] takes.
    pub fn name(&self) -> String {
        let mut name = String::new();
        for c in self.def.name.chars() {
            match c {
                'N' | 'X' => name += &self.settings.n.to_string(),
                'Y' => name += &self.settings.m.to_string(),
                c => name.push(c),
            }
        }
        if self.settings.sharing != self.def.sharing {
            name += &format!(":{}", self.settings.sharing);
        }
        name
    }

    /// The shape that it sees: one row, if rows do not matter to it.
    pub fn shape(&self, shape: Shape) -> Shape {
        if self.def.is_flat { shape.flat() } else { shape }
    }

    /// What is stored of a tensor of that shape.
    pub fn layout(&self, shape: Shape) -> Vec<PartLayout> {
        (self.def.layout)(&self.shape(shape), &self.settings)
    }

    /// Bits for each element of a tensor of that shape, parameters and padding included. 0 for an empty one.
    pub fn bits_per_weight(&self, shape: Shape) -> f64 {
        if shape.n() == 0 {
            return 0.0;
        }
        let bytes: usize = self.layout(shape).iter().map(PartLayout::n_bytes).sum();
        8.0 * bytes as f64 / shape.n() as f64
    }

    /// To codes and parameters.
    pub fn quantize(&self, matrix: &Matrix<'_>) -> Result<Encoded, FormatError> {
        if let Some(importance) = self.settings.importance
            && importance.len() != matrix.shape.cols
            && matrix.shape.rows != 0
        {
            return Err(FormatError::Importance { n: importance.len(), cols: matrix.shape.cols });
        }
        let matrix = Matrix { values: matrix.values, shape: self.shape(matrix.shape) };
        (self.def.quantize)(&matrix, &self.settings)
    }

    /// Back to values.
    pub fn dequantize(&self, encoded: &Encoded, shape: Shape) -> Vec<f32> {
        (self.def.dequantize)(encoded, &self.shape(shape), &self.settings)
    }

    /// Codes and parameters to bytes, a vector for each part of [`Self::layout`].
    pub fn pack(&self, encoded: &Encoded, shape: Shape) -> Vec<Vec<u8>> {
        (self.def.pack)(encoded, &self.shape(shape), &self.settings)
    }

    /// Bytes to codes and parameters. Refuses parts of other lengths than the layout's.
    pub fn unpack(&self, parts: &[&[u8]], shape: Shape) -> Result<Encoded, FormatError> {
        let layout = self.layout(shape);
        if layout.len() != parts.len() {
            return Err(FormatError::Parts { wanted: layout.len(), got: parts.len() });
        }
        for (part, bytes) in layout.iter().zip(parts) {
            if part.n_bytes() != bytes.len() {
                return Err(FormatError::Length {
                    part: part.name,
                    wanted: part.n_bytes(),
                    got: bytes.len(),
                });
            }
        }
        Ok((self.def.unpack)(parts, &self.shape(shape), &self.settings))
    }

    /// What a tensor becomes: quantized and dequantized.
    pub fn round_trip(&self, matrix: &Matrix<'_>) -> Result<Vec<f32>, FormatError> {
        Ok(self.dequantize(&self.quantize(matrix)?, matrix.shape))
    }
}

const SHARING_WORDS: &str = "after the colon comes `tensor`, `row` or a number of elements";

/// The numbers that stand in `text` for the capital letters of `pattern`, if it matches and they are in bounds.
fn numbers_in(text: &str, pattern: &str, bounds: &[(u32, u32)]) -> Option<[u32; 2]> {
    let mut numbers = [0; 2];
    let mut n_found = 0;
    let mut rest = text;
    for c in pattern.chars() {
        if matches!(c, 'N' | 'X' | 'Y') {
            let n_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (digits, after) = rest.split_at(n_digits);
            if digits.starts_with('0') && n_digits != 1 {
                return None;
            }
            let number = digits.parse().ok()?;
            let (lo, hi) = *bounds.get(n_found)?;
            if !(lo..=hi).contains(&number) {
                return None;
            }
            numbers[n_found] = number;
            n_found += 1;
            rest = after;
        } else {
            rest = rest.strip_prefix(c)?;
        }
    }
    rest.is_empty().then_some(numbers)
}

/// Why a tensor has no place in a format.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum FormatError {
    /// No format of that name.
    Unknown {
        /// What was written.
        name: String,
    },
    /// Parameters cannot be shared that way.
    Sharing {
        /// The format.
        format: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// The elements are not whole rows.
    Rows {
        /// Elements.
        n: usize,
        /// Elements of a row.
        cols: usize,
    },
    /// A row is not whole blocks.
    Blocks {
        /// The format.
        format: &'static str,
        /// Elements of a row.
        cols: usize,
        /// Elements of a block.
        block: usize,
    },
    /// NaN or infinity, where the format has neither.
    NotFinite {
        /// Its place.
        at: usize,
        /// It.
        value: f32,
    },
    /// As many importances as columns are needed.
    Importance {
        /// Given.
        n: usize,
        /// Columns.
        cols: usize,
    },
    /// Too few or too many byte strings.
    Parts {
        /// What the layout has.
        wanted: usize,
        /// Given.
        got: usize,
    },
    /// A byte string of another length.
    Length {
        /// Which.
        part: &'static str,
        /// Bytes that the layout has.
        wanted: usize,
        /// Bytes given.
        got: usize,
    },
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name } => write!(f, "there is no number format `{name}`"),
            Self::Sharing { format, why } => {
                write!(f, "`{format}` cannot share parameters that way: {why}")
            }
            Self::Rows { n, cols } => write!(f, "{n} elements are not whole rows of {cols}"),
            Self::Blocks { format, cols, block } => {
                write!(
                    f,
                    "`{format}` needs rows of whole blocks of {block}, and a row has {cols} elements"
                )
            }
            Self::NotFinite { at, value } => {
                write!(f, "element {at} is {value}, which the format cannot hold")
            }
            Self::Importance { n, cols } => {
                write!(f, "{n} importances for {cols} columns")
            }
            Self::Parts { wanted, got } => write!(f, "{got} byte strings instead of {wanted}"),
            Self::Length { part, wanted, got } => {
                write!(f, "`{part}` has {got} bytes instead of {wanted}")
            }
        }
    }
}

impl core::error::Error for FormatError {}

/// `f32`s as little-endian bytes.
pub(crate) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Little-endian bytes as `f32`s.
pub(crate) fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[cfg(test)]
mod tests;
