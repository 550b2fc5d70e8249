//! Weights in blocks of few bits, in the forms that ONNX Runtime's own operators multiply with: MatMulNBits (2, 4 and 8
//! bits), MatMulBnb4 (NF4 and FP4), and GatherBlockQuantized for tables that are looked up.
//!
//! What the numbers are is defined in `num::formats` (`matmul_nbits`, `matmul_bnb4`, `hqq`); here is decided which nodes
//! take part ([`plan()`], pure), and the operators are written ([`apply()`]).

pub mod apply;
pub mod decide;

use std::{fmt, num::NonZero, str::FromStr};

use midtread_num::formats::{Format, Search};

use crate::plan::Pattern;

pub use apply::{Written, apply};
pub use decide::plan;

/// What a weight's elements become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockType {
    /// Integers of 2, 4 or 8 bits with a scale a block.
    Bits {
        /// How many.
        n_bits: u32,
        /// Whether a block has a zero point too.
        is_asymmetric: bool,
    },
    /// bitsandbytes' NF4.
    Nf4,
    /// bitsandbytes' FP4.
    Fp4,
}

impl BlockType {
    /// The block size that is used where none is asked for.
    pub fn default_block_size(self) -> NonZero<usize> {
        let size = match self {
            Self::Bits { .. } => 32,
            Self::Nf4 | Self::Fp4 => 64,
        };
        NonZero::new(size).expect("it is not 0")
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bits { n_bits, is_asymmetric: false } => write!(f, "i{n_bits}"),
            Self::Bits { n_bits, is_asymmetric: true } => write!(f, "u{n_bits}"),
            Self::Nf4 => f.write_str("nf4"),
            Self::Fp4 => f.write_str("fp4"),
        }
    }
}

/// How the scales of integers are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleSearch {
    /// So that the widest value fits: rounding to the nearest and nothing else.
    #[default]
    MaxAbs,
    /// The scale with the least squared error, among 80.
    Mse,
    /// Half-quadratic quantization: real zero points that lessen the error's 0.7-norm.
    Hqq,
}

impl FromStr for ScaleSearch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "max_abs" => Ok(Self::MaxAbs),
            "mse" => Ok(Self::Mse),
            "hqq" => Ok(Self::Hqq),
            _ => Err(format!("`{text}` is not a search for scales: max_abs, mse, hqq")),
        }
    }
}

/// What a user can ask for.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// What elements become.
    pub block_type: BlockType,
    /// Elements that share a scale, along the dimension that is summed over.
    pub block_size: NonZero<usize>,
    /// How scales are chosen (integers only).
    pub search: ScaleSearch,
    /// MatMulNBits' `accuracy_level`: 4 lets ONNX Runtime quantize activations to 8 bits while it multiplies. 0 leaves
    /// the choice to it.
    pub accuracy_level: u8,
    /// If not empty, only nodes that one of these matches are quantized.
    pub include: Vec<Pattern>,
    /// Nodes that stay as they are.
    pub exclude: Vec<Pattern>,
}

impl BlockOptions {
    /// The definition of what a weight becomes. HQQ's codes are packed like those of `matmul_nbits`.
    pub(crate) fn format(&self) -> Format<'static> {
        let size = self.block_size;
        let name = match (self.block_type, self.search) {
            (BlockType::Nf4, _) => format!("matmul_bnb4_nf4:{size}"),
            (BlockType::Fp4, _) => format!("matmul_bnb4_fp4:{size}"),
            (BlockType::Bits { n_bits, .. }, ScaleSearch::Hqq) => format!("hqq{n_bits}:{size}"),
            (BlockType::Bits { n_bits, is_asymmetric: false }, _) => {
                format!("matmul_nbits{n_bits}:{size}")
            }
            (BlockType::Bits { n_bits, is_asymmetric: true }, _) => {
                format!("matmul_nbits{n_bits}_asymmetric:{size}")
            }
        };
        let mut format = Format::named(&name).expect("these are in the list of formats");
        if self.search == ScaleSearch::Mse {
            format.settings.search = Search::Mse;
        }
        format
    }
}

/// What becomes of a model's weights.
#[derive(Clone, Debug)]
pub struct BlockPlan {
    /// Of the model it was made for: [`crate::plan::fingerprint()`] in hexadecimal.
    pub model: String,
    /// What was asked for.
    pub options: BlockOptions,
    /// In graph order.
    pub nodes: Vec<BlockNode>,
}

/// What becomes of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockNode {
    /// [`midtread_graph::Graph::label`].
    pub node: String,
    /// `NodeProto.op_type`.
    pub op_type: String,
    /// Decided.
    pub decision: BlockDecision,
}

/// What becomes of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockDecision {
    /// It multiplies with its second input, a constant matrix, in blocks.
    Product {
        /// Whether the constant has its sums along its second dimension (Gemm's `transB`).
        is_transposed: bool,
    },
    /// It looks up rows of its first input, a constant matrix, in blocks.
    Lookup,
    /// It stays as it is, for a reason (a clause).
    Float(String),
    /// It has no weight.
    NoWeight,
}
