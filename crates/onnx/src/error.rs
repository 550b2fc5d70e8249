//! What can be wrong with a file, or with writing one.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use midtread_graph::TensorError;

use crate::MAX_IR_VERSION;

/// Why a model could not be read or written: the file, and what is wrong with it.
#[derive(Debug)]
pub struct Error {
    path: Option<PathBuf>,
    problem: Problem,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The system refused.
    #[error("cannot be {doing}")]
    Io {
        /// A participle: "opened", "written".
        doing: &'static str,
        /// Its reason.
        #[source]
        source: io::Error,
    },

    /// A folder, a device, a pipe.
    #[error("is not a regular file")]
    NotAFile,

    /// The bytes are something else.
    #[error("is not an ONNX model: {what}")]
    NotOnnx {
        /// A clause: "it is empty", "it looks like a ZIP archive".
        what: &'static str,
    },

    /// The file ends too early.
    #[error("is cut off: `{at}` needs {needed} bytes, and {got} are left")]
    Truncated {
        /// Fields and positions from the outermost, `graph.node[3].attribute[0]`.
        at: String,
        /// Bytes that it should have.
        needed: u64,
        /// Bytes that there are.
        got: u64,
    },

    /// The bytes break protobuf's rules, or ONNX's.
    #[error("is damaged or not an ONNX model: at byte {offset}, in `{at}`: {what}")]
    Malformed {
        /// Fields and positions from the outermost.
        at: String,
        /// Where in the file, or in the protobuf message.
        offset: usize,
        /// A clause.
        what: String,
    },

    /// The file has a field that the definitions of its IR version do not have.
    #[error(
        "`{at}` has field {number}, which {message} does not define up to IR version {MAX_IR_VERSION}"
    )]
    UnknownField {
        /// Fields and positions from the outermost.
        at: String,
        /// The protobuf message.
        message: &'static str,
        /// The field's number.
        number: u32,
    },

    /// Reading would take far more memory than the file is large, or more stack than there is.
    #[error("is refused: {what}")]
    Excessive {
        /// A clause.
        what: String,
    },

    /// Made for a newer (or no) version of the format.
    #[error("has IR version {version}; versions 1 to {MAX_IR_VERSION} are known")]
    IrVersion {
        /// What the file says; 0 where it says nothing.
        version: i64,
    },

    /// The model says nothing about the operators it uses.
    #[error("imports no operator set")]
    NoOpset,

    /// A constant cannot be read or written.
    #[error("tensor `{tensor}`")]
    Tensor {
        /// Its name; in an attribute without one, the attribute's.
        tensor: String,
        /// What is wrong with it.
        #[source]
        source: TensorProblem,
    },

    /// A declared type cannot be read.
    #[error("value `{value}`: {what}")]
    Type {
        /// The value.
        value: String,
        /// A clause.
        what: String,
    },

    /// A node cannot be read.
    #[error("node `{node}` ({op_type}): {what}")]
    Node {
        /// `NodeProto.name`, or its first output when unnamed.
        node: String,
        /// `NodeProto.op_type`.
        op_type: String,
        /// A clause.
        what: String,
    },

    /// A name stands for two values.
    #[error("value `{value}` is defined twice, the second time {by}")]
    Redefined {
        /// The name.
        value: String,
        /// "by node `x`", "as an initializer".
        by: String,
    },

    /// Nothing makes a value that something uses.
    #[error("{by} uses `{value}`, which is not defined")]
    Undefined {
        /// The name.
        value: String,
        /// "node `x`", "the graph's list of outputs".
        by: String,
    },

    /// Nodes that wait for each other.
    #[error(
        "node `{node}` is part of a cycle, or behind one: {n_nodes} nodes cannot be put in order"
    )]
    Cycle {
        /// The first of them in the file.
        node: String,
        /// How many there are.
        n_nodes: usize,
    },

    /// A part of the model that must have a name has none.
    #[error("{what} has no name")]
    Unnamed {
        /// A noun phrase: "an initializer".
        what: &'static str,
    },

    /// Something that only carrying is not enough for.
    #[error("{what} is not supported")]
    Unsupported {
        /// A noun phrase.
        what: String,
    },

    /// The model does not fit a protobuf file.
    #[error("would have {n_bytes} bytes, and a protobuf file can have {max_bytes} at most")]
    TooLargeForProtobuf {
        /// What the file would have.
        n_bytes: u64,
        /// What it can have.
        max_bytes: u64,
    },
}

/// What is wrong with a tensor in a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorProblem {
    /// A negative size, or one that cannot be addressed.
    #[error("size {0} is not possible")]
    Dim(i64),

    /// An element type that this version does not know.
    #[error("element type {0} is not known")]
    DataType(i32),

    /// The data does not fit the sizes.
    #[error(transparent)]
    Shape(#[from] TensorError),

    /// A typed field that does not have the right number of entries.
    #[error("`{field}` has {got} entries where {needed} are needed")]
    Count {
        /// Field of `TensorProto`.
        field: &'static str,
        /// How many the type and the sizes call for.
        needed: usize,
        /// How many there are.
        got: usize,
    },

    /// The tensor has elements and no data.
    #[error("it has {0} elements and no data")]
    NoData(usize),

    /// `TensorProto.segment`, which no known program writes.
    #[error("tensors in segments are not supported")]
    Segment,

    /// Its data lies in another file.
    #[error("external data `{location}`: {what}")]
    External {
        /// As the model names it.
        location: String,
        /// A clause.
        what: String,
    },

    /// Its data lies in another file, which cannot be used.
    #[error("external data `{location}` cannot be {doing}")]
    ExternalIo {
        /// As the model names it.
        location: String,
        /// A participle.
        doing: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn in_file(path: &Path, problem: Problem) -> Self {
        Self { path: Some(path.to_owned()), problem }
    }

    /// The same error, in the file at `path`: for bytes that the caller read.
    pub fn at(self, path: &Path) -> Self {
        Self { path: Some(path.to_owned()), ..self }
    }

    /// The file, where it is known.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What is wrong with it.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        use io::ErrorKind::*;
        match &self.problem {
            Problem::Io { source, .. } => match source.kind() {
                NotFound | NotADirectory => Some("check the path; folders are not made"),
                PermissionDenied | ReadOnlyFilesystem => {
                    Some("check the permissions of the file and its folder")
                }
                StorageFull | QuotaExceeded => Some("free some space, or write to another disk"),
                _ => None,
            },
            Problem::NotAFile => Some("give the path of the .onnx file itself"),
            Problem::NotOnnx { .. } => {
                Some("export the model to ONNX first; the file must be a ModelProto")
            }
            Problem::Truncated { .. } | Problem::Malformed { .. } => {
                Some("the file may be an incomplete download or copy; fetch or export it again")
            }
            Problem::IrVersion { version: 1.. } | Problem::UnknownField { .. } => Some(
                "the file may come from a newer version of ONNX: update midtread, or export for an older one",
            ),
            Problem::Tensor { source: TensorProblem::ExternalIo { .. }, .. } => Some(
                "the files with the weights must lie beside the .onnx file, under the names it gives them",
            ),
            Problem::Tensor { source: TensorProblem::External { .. }, .. } => {
                Some("external data must lie in the model's own folder and must not be cut off")
            }
            Problem::TooLargeForProtobuf { .. } => Some("allow external data"),
            _ => None,
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self { path: None, problem }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "`{}`", path.display())?,
            None => f.write_str("the model")?,
        }
        match &self.problem {
            // These go on with the file as their subject.
            Problem::Io { .. }
            | Problem::NotAFile
            | Problem::NotOnnx { .. }
            | Problem::Truncated { .. }
            | Problem::Malformed { .. }
            | Problem::Excessive { .. }
            | Problem::IrVersion { .. }
            | Problem::NoOpset
            | Problem::TooLargeForProtobuf { .. } => write!(f, " {}", self.problem),
            _ => write!(f, ": {}", self.problem),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.problem)
    }
}

/// What prost says of bytes that the scan let through: packed numbers that are cut off, for the most part.
pub(crate) fn undecodable(source: prost::DecodeError) -> Problem {
    Problem::Malformed { at: "the model".to_owned(), offset: 0, what: source.to_string() }
}
