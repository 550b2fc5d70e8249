//! Why a model could not be compiled or run.

use midtread_ops::OpError;

/// Why a model could not be compiled, or not run on these inputs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model, or the inputs, are not what can be run at all.
    #[error(transparent)]
    Model(#[from] midtread_exec::Error),
    /// The program, or what it does with these inputs, is wrong.
    #[error(transparent)]
    Fault(#[from] crate::Fault),
    /// Something that only the interpreter does.
    #[error(
        "node `{node}` ({op_type}): {what} is not supported by the engine: run the model with the interpreter"
    )]
    Unsupported {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// A noun phrase: "a subgraph".
        what: &'static str,
    },
    /// A node's inputs are not what its operator takes.
    #[error("node `{node}` ({op_type}): {source}")]
    Node {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// What is wrong.
        source: OpError,
    },
}
