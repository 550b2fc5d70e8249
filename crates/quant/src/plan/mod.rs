//! Deciding: which nodes are quantized, what every tensor's scale and zero point are, and why. A plan is data: it
//! can be printed, saved, edited, compared, and made again with other options without calibrating again.
//!
//! Reading order: the types below, [`options`] (what a user can ask for), [`target`] (what a device can run),
//! [`overrides`] (what a user says about single tensors), [`mod@decide`] (the walk over the graph), [`groups`] (tensors
//! that share parameters), [`constants`] (parameters from a weight's own values), [`text`] (saving).

pub mod cached_ranges;
pub mod constants;
pub mod decide;
pub mod fingerprint;
pub mod groups;
pub mod int_type;
pub mod names;
pub mod options;
pub mod overrides;
pub mod target;
pub mod text;

use std::{collections::BTreeMap, fmt, num::NonZero};

use midtread_num::{QParams, QRange};

pub use cached_ranges::CachedRanges;
pub use decide::{Ranges, plan, plan_ranges};
pub use fingerprint::fingerprint;
pub use int_type::IntType;
pub use midtread_num::Symmetry;
pub use options::{BiasForm, Io, Pattern, PlanOptions, Scheme, WeightGranularity, glob};
pub use overrides::{Override, Overrides};
pub use target::{OperatorRule, TARGETS, Target};

/// What will be quantized and how. Ordered, so that two runs print and save the same plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Of the model it was made for: [`fingerprint()`] in hexadecimal.
    pub model: String,
    /// Which of the three ways of quantizing.
    pub scheme: Scheme,
    /// The target's name.
    pub target: String,
    /// Whether the quantized model's own inputs and outputs are integers.
    pub io: Io,
    /// The options that were used, one `name=value` each, for people to read.
    pub options: BTreeMap<String, String>,
    /// Parameters by name. The name is the tensor's, unless a constant needs several sets of parameters: then the
    /// second and later ones have names of their own and say whose they are in [`TensorPlan::of`].
    pub tensors: BTreeMap<String, TensorPlan>,
    /// Constants kept as `i32` with scale `input scale * weight scale` and zero point 0; names as in `tensors`.
    pub biases: BTreeMap<String, BiasPlan>,
    /// What becomes of each node, in graph order.
    pub nodes: Vec<NodePlan>,
}

/// One tensor's parameters and the reason for them.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorPlan {
    /// The constant these are parameters of, if this is not its first set.
    pub of: Option<String>,
    /// ONNX integer type.
    pub int_type: IntType,
    /// Integers the tensor may hold.
    pub range: QRange,
    /// Scales and zero points, and which elements share them.
    pub params: Params,
    /// Shown by `explain` and in the report.
    pub why: Why,
}

/// A bias kept as `i32`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BiasPlan {
    /// The constant, if this is not the first quantized form of it.
    pub of: Option<String>,
    /// Key in [`Plan::tensors`] of the activation whose scale goes into its own.
    pub input: String,
    /// Key in [`Plan::tensors`] of the weight whose scale, or scales, go into its own.
    pub weight: String,
}

/// Scales and zero points at one of ONNX's three granularities.
#[derive(Clone, Debug, PartialEq)]
pub enum Params {
    /// One pair for the whole tensor.
    PerTensor(QParams),
    /// A pair for each index along `axis`.
    PerAxis {
        /// Not negative.
        axis: usize,
        /// As many as the dimension is long.
        params: Vec<QParams>,
    },
    /// A pair for each run of `block_size` elements along `axis`.
    Blocked {
        /// Not negative.
        axis: usize,
        /// The last block of a row may be shorter.
        block_size: NonZero<usize>,
        /// In row-major order of the blocks.
        params: Vec<QParams>,
    },
}

impl Params {
    /// Every pair, in order.
    pub fn as_slice(&self) -> &[QParams] {
        match self {
            Self::PerTensor(params) => std::slice::from_ref(params),
            Self::PerAxis { params, .. } | Self::Blocked { params, .. } => params,
        }
    }
}

/// Why a tensor has the parameters it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// From the named calibrator.
    Calibrated(String),
    /// From the calibrated ranges of several tensors that must share: the name of the first of them.
    Shared(String),
    /// The constant's own values.
    Constant,
    /// The constant's own values, with scales raised where the named bias would not have fit `i32`.
    RaisedForBias(String),
    /// Shares the parameters of the named tensor.
    SameAs(String),
    /// The range of the operator (named by type) is known beforehand.
    Fixed(String),
    /// Set by the user.
    Override,
    /// Learned in quantization-aware training.
    Trained,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Calibrated(name) => write!(f, "calibrated: {name}"),
            Self::Shared(name) => write!(f, "shared: {name}"),
            Self::Constant => f.write_str("constant"),
            Self::RaisedForBias(bias) => write!(f, "constant, raised for bias: {bias}"),
            Self::SameAs(name) => write!(f, "same as: {name}"),
            Self::Fixed(op_type) => write!(f, "fixed: {op_type}"),
            Self::Override => f.write_str("override"),
            Self::Trained => f.write_str("trained"),
        }
    }
}

/// What becomes of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// [`midtread_graph::Graph::label`].
    pub node: String,
    /// `NodeProto.op_type`.
    pub op_type: String,
    /// Decided.
    pub decision: Decision,
}

/// What becomes of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It computes on, or moves, quantized values.
    Quantized {
        /// One per input position.
        inputs: Vec<Operand>,
        /// Key in [`Plan::tensors`] per output position; `None` stays in float (or is not wanted).
        outputs: Vec<Option<String>>,
    },
    /// It disappears: the range of the node it follows does its work.
    Absorbed {
        /// The label of that node.
        into: String,
    },
    /// It stays in float, for a reason.
    Float {
        /// A clause: "its input is not quantized".
        reason: String,
    },
    /// It computes on shapes, indices or masks.
    Structural,
}

/// How a quantized node takes an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operand {
    /// As it is (or absent).
    Keep,
    /// With the parameters of this key in [`Plan::tensors`].
    Tensor(String),
    /// As `i32`, by this key in [`Plan::biases`].
    Bias(String),
    /// With parameters that DynamicQuantizeLinear computes at run time.
    Dynamic,
}

/// How a node fared, in a word. The words of the JSON ledger.
impl Decision {
    /// `quantized`, `absorbed`, `float` or `structural`.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Quantized { .. } => "quantized",
            Self::Absorbed { .. } => "absorbed",
            Self::Float { .. } => "float",
            Self::Structural => "structural",
        }
    }

    /// Why, for a node that is not simply quantized.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Absorbed { into } => Some(format!("absorbed into the range of `{into}`")),
            Self::Float { reason } => Some(reason.clone()),
            Self::Quantized { .. } | Self::Structural => None,
        }
    }
}

/// Counts of a plan's decisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the decisions'")]
pub struct Counts {
    pub quantized: usize,
    pub absorbed: usize,
    pub float: usize,
    pub structural: usize,
}

impl Plan {
    /// How many nodes fared how.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for node in &self.nodes {
            match node.decision {
                Decision::Quantized { .. } => counts.quantized += 1,
                Decision::Absorbed { .. } => counts.absorbed += 1,
                Decision::Float { .. } => counts.float += 1,
                Decision::Structural => counts.structural += 1,
            }
        }
        counts
    }

    /// The nodes that take or make the tensor (or constant) `name`, and how: lines for `explain`.
    pub fn nodes_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a NodePlan> + 'a {
        self.nodes.iter().filter(move |node| match &node.decision {
            Decision::Quantized { inputs, outputs } => {
                inputs
                    .iter()
                    .any(|i| matches!(i, Operand::Tensor(t) | Operand::Bias(t) if t == name))
                    || outputs.iter().flatten().any(|t| t == name)
            }
            _ => false,
        })
    }
}
