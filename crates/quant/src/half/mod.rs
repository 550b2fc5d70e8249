//! Models in 16-bit floats: float16 or bfloat16 instead of float32, decided node by node.
//!
//! [`plan()`] is pure and asks of every node: is there such a form of the operator, does the target have a kernel for
//! it, do its constants and (where there is data) its activations fit, does an epsilon stay above zero. What is left
//! in float32 has a reason with a name in it. [`apply()`] writes the answer into the graph and decides nothing.
//!
//! Weights of nodes that stay in float32 for want of a kernel are stored in 16 bits all the same, and cast when the
//! model is loaded. Graphs in attributes (If, Loop, Scan) are planned like any other; what they take from the graph
//! around them, and what they give back, is float32.
//!
//! Reading order: the types below, [`forms`] (what the specification allows), [`fit`] (what the numbers allow),
//! [`decide`](mod@decide), [`mod@apply`], [`text`].

pub mod apply;
pub mod decide;
pub mod fit;
pub mod forms;
pub mod text;

use std::{fmt, str::FromStr};

use midtread_graph::DataType;
use midtread_num::formats::float::FloatType;

use crate::plan::Pattern;

pub use apply::apply;
pub use decide::plan;

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HalfType {
    /// IEEE 754 binary16: 11 bits of precision, up to 65504.
    Float16,
    /// The upper half of a float32: 8 bits of precision, and float32's range.
    Bfloat16,
}

impl HalfType {
    /// `float16` or `bfloat16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
        }
    }

    /// ONNX element type.
    pub fn data_type(self) -> DataType {
        match self {
            Self::Float16 => DataType::Float16,
            Self::Bfloat16 => DataType::Bfloat16,
        }
    }

    /// Its numbers.
    pub fn numbers(self) -> FloatType {
        match self {
            Self::Float16 => FloatType::FLOAT16,
            Self::Bfloat16 => FloatType::BFLOAT16,
        }
    }
}

impl FromStr for HalfType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "float16" => Ok(Self::Float16),
            "bfloat16" => Ok(Self::Bfloat16),
            _ => Err(format!("`{text}` is not a 16-bit float: float16, bfloat16")),
        }
    }
}

impl fmt::Display for HalfType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a user can ask for.
#[derive(Clone, Debug)]
pub struct HalfOptions {
    /// Which type.
    pub half: HalfType,
    /// Whether the model's own inputs and outputs keep their types. Otherwise an input that is used in 16 bits
    /// becomes one of 16 bits, and so does an output that is made in 16 bits.
    pub keep_io_types: bool,
    /// If not empty, only nodes that one of these matches are converted.
    pub include: Vec<Pattern>,
    /// Nodes that stay in float32.
    pub exclude: Vec<Pattern>,
}

/// What becomes of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HalfPlan {
    /// Of the model it was made for: [`crate::plan::fingerprint()`] in hexadecimal.
    pub model: String,
    /// Which type.
    pub half: HalfType,
    /// The target's name.
    pub target: String,
    /// As in [`HalfOptions`].
    pub keep_io_types: bool,
    /// The main graph, then, for each of its nodes in order, the graphs in its attributes and theirs.
    pub graphs: Vec<GraphPlan>,
}

/// What becomes of one graph's nodes and constants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GraphPlan {
    /// Empty for the main graph; of others, the labels of the nodes it is in: `If_0/then_branch/`.
    pub path: String,
    /// In graph order.
    pub nodes: Vec<HalfNode>,
    /// float32 constants, in the order of the values.
    pub constants: Vec<HalfConstant>,
}

/// What becomes of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HalfNode {
    /// [`midtread_graph::Graph::label`].
    pub node: String,
    /// `NodeProto.op_type`.
    pub op_type: String,
    /// Decided.
    pub decision: HalfDecision,
}

/// What becomes of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HalfDecision {
    /// It computes in 16 bits.
    Half,
    /// It computes in float32, for a reason (a clause).
    Float(String),
    /// It has no float32 input or output, or takes whatever type comes.
    Either,
}

impl HalfDecision {
    /// `half`, `float` or `either`.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Half => "half",
            Self::Float(_) => "float",
            Self::Either => "either",
        }
    }

    /// Why, for a node in float32.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Float(reason) => Some(reason),
            Self::Half | Self::Either => None,
        }
    }
}

/// How a constant is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HalfConstant {
    /// Its name in its graph.
    pub constant: String,
    /// Decided.
    pub storage: Storage,
}

/// How a constant is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In 16 bits.
    Half,
    /// In 16 bits, with values past half of the largest finite number brought back to there: it only keeps masked
    /// scores from counting in a Softmax.
    Mask,
    /// As it is, for a reason (a clause).
    Float(String),
}

/// Counts of a plan's decisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the decisions'")]
pub struct HalfCounts {
    pub half: usize,
    pub float: usize,
    pub either: usize,
    pub half_constants: usize,
    pub float_constants: usize,
}

impl HalfPlan {
    /// How many nodes and constants fared how.
    pub fn counts(&self) -> HalfCounts {
        let mut counts = HalfCounts::default();
        for graph in &self.graphs {
            for node in &graph.nodes {
                match node.decision {
                    HalfDecision::Half => counts.half += 1,
                    HalfDecision::Float(_) => counts.float += 1,
                    HalfDecision::Either => counts.either += 1,
                }
            }
            for constant in &graph.constants {
                match constant.storage {
                    Storage::Half | Storage::Mask => counts.half_constants += 1,
                    Storage::Float(_) => counts.float_constants += 1,
                }
            }
        }
        counts
    }
}
