//! Why a model could not be trained.

use midtread_ops::OpError;

/// Why a model could not be trained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something about the model, the plan, the data or the options; a clause.
    #[error("{0}")]
    Options(String),
    /// An operator has no gradient, and what is to be trained lies before it.
    #[error("node `{node}`: {op_type} has no gradient, and weights before it are to be trained")]
    NoGradient {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
    },
    /// A node could not be evaluated or differentiated.
    #[error("node `{node}` ({op_type}), {pass}")]
    Node {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// `forwards` or `backwards`.
        pass: &'static str,
        /// Why.
        #[source]
        source: OpError,
    },
    /// The model's nodes cannot be put in order.
    #[error("the model cannot be run")]
    Model(#[from] midtread_exec::Error),
    /// The plan does not fit.
    #[error(transparent)]
    Quant(#[from] midtread_quant::Error),
    /// A sample could not be read; the error says which.
    #[error(transparent)]
    Read(Box<dyn std::error::Error + Send + Sync>),
    /// The loss is not a number any more.
    #[error("the loss is {loss} in step {step}")]
    Diverged {
        /// The loss.
        loss: f64,
        /// The step.
        step: usize,
    },
    /// A checkpoint is damaged or of another run.
    #[error("the checkpoint {0}")]
    Checkpoint(String),
    /// What is to be kept could not be written.
    #[error("the checkpoint cannot be written")]
    Write(#[source] std::io::Error),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NoGradient { .. } => {
                "keep it and what follows it out of training: cut the model before it"
            }
            Self::Diverged { .. } => "train with a smaller --learning-rate, or with --clip",
            Self::Checkpoint(_) => {
                "remove the checkpoint to start anew, or train with the options it was made with"
            }
            Self::Model(error) => return error.hint(),
            Self::Quant(error) => return error.hint(),
            _ => return None,
        })
    }
}
