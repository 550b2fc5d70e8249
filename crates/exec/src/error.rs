//! Why a model could not be run.

use std::fmt;

use midtread_graph::{DataType, Dim};
use midtread_ops::OpError;

/// Why a model could not be run, or not on these inputs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operator that is not in the table.
    #[error("node `{node}`: operator {} is not supported", OpName { op_type, domain })]
    UnknownOperator {
        /// [`midtread_graph::Graph::label`] of the node.
        node: String,
        /// `NodeProto.op_type`.
        op_type: String,
        /// `NodeProto.domain`.
        domain: String,
    },
    /// The model imports no version of a node's domain.
    #[error("node `{node}` ({op_type}): the model imports no operator set for domain `{domain}`")]
    NoOpset {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// Its domain.
        domain: String,
    },
    /// The model imports a version of the operator that is older than any this program knows.
    #[error(
        "node `{node}`: {op_type} of operator set {version} is not supported, only from {oldest} on"
    )]
    OldOpset {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// The version imported.
        version: i64,
        /// The oldest version in the table.
        oldest: i64,
    },
    /// A form of the operator that no version in the table has, such as an unknown attribute.
    #[error("node `{node}` ({op_type} of operator set {version})")]
    Form {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// The version imported.
        version: i64,
        /// What is not known about it.
        #[source]
        source: OpError,
    },
    /// Something that is not implemented.
    #[error("node `{node}` ({op_type}): {what} is not supported")]
    Unsupported {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// A noun phrase: "a subgraph", "a call of a function that calls itself".
        what: String,
    },
    /// A node uses a value that nothing makes.
    #[error("node `{node}` ({op_type}) uses `{value}`, which no node, input or initializer makes")]
    Undefined {
        /// The node, or `the graph` for an output.
        node: String,
        /// Its operator.
        op_type: String,
        /// The value's name.
        value: String,
    },
    /// A graph output that nothing makes.
    #[error("output `{0}` is made by no node, input or initializer")]
    UndefinedOutput(String),
    /// A value with two makers.
    #[error("node `{node}` ({op_type}) makes `{value}`, which is already made")]
    MadeTwice {
        /// The second node.
        node: String,
        /// Its operator.
        op_type: String,
        /// The value's name.
        value: String,
    },
    /// Nodes that wait for one another.
    #[error("node `{node}` ({op_type}) depends on its own output")]
    Cycle {
        /// One of them.
        node: String,
        /// Its operator.
        op_type: String,
    },

    /// A name that is no input of the model.
    #[error("the model has no input `{name}` (it has {})", Names(known))]
    UnknownInput {
        /// The name given.
        name: String,
        /// The model's inputs.
        known: Vec<String>,
    },
    /// An input that was not given and has no default.
    #[error("input `{name}` is missing (given were {})", Names(given))]
    MissingInput {
        /// The input.
        name: String,
        /// Names that were given.
        given: Vec<String>,
    },
    /// An output that is no tensor, of a run that gives tensors.
    #[error("output `{name}` is {kind}, not a tensor")]
    OutputKind {
        /// The output.
        name: String,
        /// `a sequence`, `an empty optional`.
        kind: &'static str,
    },
    /// An input given twice.
    #[error("input `{0}` is given twice")]
    InputTwice(String),
    /// An input of another element type.
    #[error("input `{name}` is {got}, not {wanted}")]
    InputType {
        /// The input.
        name: String,
        /// The model's.
        wanted: DataType,
        /// The caller's.
        got: DataType,
    },
    /// An input of another rank or another size.
    #[error("input `{name}` has shape {got:?}, not {}", Dims(wanted))]
    InputShape {
        /// The input.
        name: String,
        /// The model's sizes.
        wanted: Vec<Dim>,
        /// The caller's.
        got: Vec<usize>,
    },
    /// Two sizes with the same name that differ.
    #[error(
        "input `{name}` has shape {got:?}, in which `{symbol}` is {size}, but input `{other}` has {other_size}"
    )]
    InputSymbol {
        /// The second input with the symbol.
        name: String,
        /// Its sizes.
        got: Vec<usize>,
        /// The name of the size.
        symbol: String,
        /// What it is in this input.
        size: usize,
        /// The first input with the symbol.
        other: String,
        /// What it is there.
        other_size: usize,
    },

    /// An operator refused.
    #[error("node `{node}` ({op_type}, inputs {inputs})")]
    Node {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// Types and sizes: `float[1,3,224,224], float[32,3,3,3], -`.
        inputs: String,
        /// What was wrong.
        #[source]
        source: OpError,
    },
    /// An operator gave fewer outputs than the node has.
    #[error("node `{node}` ({op_type}): output {index} is not supported")]
    Output {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// Position of the first output that is missing.
        index: usize,
    },
    /// More memory is needed than [`crate::Options::max_bytes`] allows.
    #[error(
        "node `{node}` ({op_type}, inputs {inputs}) needs {needed} bytes where {held} of {limit} are held"
    )]
    Memory {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// Types and sizes.
        inputs: String,
        /// Bytes of its outputs, or of the one that was too large.
        needed: usize,
        /// Bytes of the values that are still needed by then, and of those kept from run to run.
        held: usize,
        /// The limit.
        limit: usize,
    },
}

impl Error {
    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Memory { .. } => Some(
                "raise the memory limit, or give smaller batches; fewer samples at once need less too",
            ),
            Self::InputShape { .. } | Self::InputSymbol { .. } => Some(
                "the data must have the shape that the model declares; sizes that the model names may vary",
            ),
            Self::UnknownInput { .. } | Self::MissingInput { .. } => {
                Some("the names in the data must be those of the model's inputs")
            }
            Self::OldOpset { .. } => Some("the pass `upgrade_opset` may convert the model"),
            _ => None,
        }
    }
}

struct OpName<'a> {
    op_type: &'a str,
    domain: &'a str,
}

impl fmt::Display for OpName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.domain {
            "" => f.write_str(self.op_type),
            domain => write!(f, "{domain}.{}", self.op_type),
        }
    }
}

struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (i, name) in self.0.iter().enumerate() {
            write!(f, "{}`{name}`", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

struct Dims<'a>(&'a [Dim]);

impl fmt::Display for Dims<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.0.iter().map(Dim::to_string).collect();
        write!(f, "[{}]", dims.join(", "))
    }
}
