//! Whatever can go wrong, in one type.

use std::{io::ErrorKind, path::PathBuf};

/// Why something could not be done. The causes are in `source`; [`Error::hint`] says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model file could not be read or written.
    #[error(transparent)]
    Onnx(#[from] midtread_onnx::Error),
    /// A model could not be prepared.
    #[error("the model cannot be prepared")]
    Prepare(#[from] midtread_passes::Error),
    /// Data could not be read.
    #[error(transparent)]
    Data(#[from] midtread_data::Error),
    /// The pass over the data failed.
    #[error("calibration failed")]
    Calibrate(#[from] midtread_quant::calibrate::RunError),
    /// Statistics could not be read or merged.
    #[error(transparent)]
    Stats(#[from] midtread_quant::calibrate::CalibrateError),
    /// No plan could be made or applied.
    #[error(transparent)]
    Quant(#[from] midtread_quant::Error),
    /// Two models could not be compared.
    #[error(transparent)]
    Compare(#[from] midtread_compare::Error),
    /// A model could not be trained.
    #[error("training failed")]
    Train(#[source] midtread_train::Error),
    /// A model could not be run.
    #[error("the model cannot be run")]
    Run(#[source] midtread_exec::Error),
    /// A model could not be compiled or run by the engine.
    #[error("the model cannot be run by the engine")]
    Engine(#[from] midtread_engine::Error),
    /// A compiled program could not be read.
    #[error("{}", path.display())]
    Program {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: midtread_engine::Fault,
    },
    /// A model could not be run on a sample.
    #[error("sample `{sample}`")]
    RunSample {
        /// Its name.
        sample: String,
        /// Why.
        #[source]
        source: midtread_exec::Error,
    },
    /// A sample could not be read; the error says which.
    #[error(transparent)]
    Sample(Box<dyn std::error::Error + Send + Sync>),
    /// A file could not be read or written.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A checkpoint could not be read, converted or written.
    #[error(transparent)]
    Checkpoint(#[from] midtread_checkpoint::Error),
    /// Options that do not go together or do not fit the model.
    #[error("{0}")]
    Options(String),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        use midtread_quant::calibrate::RunError;
        match self {
            Self::Onnx(e) => e.hint().map(Into::into),
            Self::Data(e) => e.hint().map(Into::into),
            Self::Calibrate(RunError::Model(e) | RunError::Run { source: e, .. }) => {
                e.hint().map(Into::into)
            }
            Self::Calibrate(RunError::Stats(e)) | Self::Stats(e) => e.hint().map(Into::into),
            Self::Calibrate(RunError::Read(source)) | Self::Sample(source) => {
                source.downcast_ref::<midtread_data::Error>()?.hint().map(Into::into)
            }
            Self::Quant(e) => e.hint().map(Into::into),
            Self::Train(e) => e.hint().map(Into::into),
            Self::Compare(e) => e.hint().map(Into::into),
            Self::Checkpoint(e) => e.hint().map(Into::into),
            Self::File { source, .. } => match source.kind() {
                ErrorKind::NotFound | ErrorKind::NotADirectory => {
                    Some("check the path; folders are not made".into())
                }
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                    Some("check the permissions of the file and its folder".into())
                }
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                    Some("free some space, or write to another disk".into())
                }
                _ => None,
            },
            Self::Program { .. } => Some("compile the model again: `midtread compile`".into()),
            Self::Run(e) | Self::RunSample { source: e, .. } => e.hint().map(Into::into),
            _ => None,
        }
    }
}

impl From<midtread_train::Error> for Error {
    fn from(error: midtread_train::Error) -> Self {
        match error {
            midtread_train::Error::Interrupted => Self::Interrupted,
            midtread_train::Error::Read(source) => Self::Sample(source),
            other => Self::Train(other),
        }
    }
}
