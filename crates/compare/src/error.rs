//! Why models could not be compared.

/// Why two models could not be compared. The causes are in `source`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no data.
    #[error("there is no sample to compare on")]
    NoSamples,
    /// One of the models cannot be run at all.
    #[error("the {which} model cannot be run")]
    Model {
        /// `float` or `quantized`.
        which: &'static str,
        /// Why.
        #[source]
        source: midtread_exec::Error,
    },
    /// One of the models failed on a sample.
    #[error("the {which} model on sample `{sample}`")]
    Run {
        /// `float` or `quantized`.
        which: &'static str,
        /// The sample's name.
        sample: String,
        /// Why.
        #[source]
        source: midtread_exec::Error,
    },
    /// A sample could not be read.
    #[error("sample `{sample}` cannot be read")]
    Sample {
        /// Its name.
        sample: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The two models have nothing in common.
    #[error("no tensor of the float model was found in the quantized one")]
    NothingMatches,
    /// A single node could not be evaluated again.
    #[error("node `{node}`")]
    Node {
        /// What people call it.
        node: String,
        /// Why.
        #[source]
        source: midtread_ops::OpError,
    },
    /// The float model could not be prepared, planned or quantized (sensitivity).
    #[error(transparent)]
    Quant(#[from] midtread_quant::Error),
    /// A saved state that does not belong here, or options that do not go together.
    #[error("{0}")]
    Options(String),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Model { source, .. } | Self::Run { source, .. } => source.hint(),
            Self::NothingMatches => Some(
                "check that the quantized model was made from this float model: they share neither names of values nor structure",
            ),
            Self::Quant(e) => e.hint(),
            _ => None,
        }
    }
}
