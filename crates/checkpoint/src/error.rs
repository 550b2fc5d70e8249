//! What can be wrong with a checkpoint, or with converting one.

use std::{
    io,
    path::{Path, PathBuf},
};

use midtread_num::formats::FormatError;

/// Why a checkpoint could not be read, converted or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused.
    #[error("`{}` cannot be {doing}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// A participle: "opened", "written".
        doing: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A folder, a device, a pipe.
    #[error("`{}` is not a regular file", path.display())]
    NotAFile {
        /// It.
        path: PathBuf,
    },
    /// The bytes break the rules of the format.
    #[error("`{}`: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// A clause that names the tensor or the field.
        what: String,
    },
    /// A tensor cannot be represented that way.
    #[error("tensor `{tensor}`")]
    Tensor {
        /// Its name.
        tensor: String,
        /// Why not.
        #[source]
        source: FormatError,
    },
    /// What was asked for does not go together, or does not fit the checkpoint.
    #[error("{0}")]
    Options(String),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), doing, source }
    }

    pub(crate) fn malformed(path: &Path, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), what: what.into() }
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        use io::ErrorKind::*;
        match self {
            Self::Io { source, .. } => match source.kind() {
                NotFound | NotADirectory => Some("check the path; folders are not made"),
                PermissionDenied | ReadOnlyFilesystem => {
                    Some("check the permissions of the file and its folder")
                }
                StorageFull | QuotaExceeded => Some("free some space, or write to another disk"),
                UnexpectedEof => Some("the file became shorter while it was read"),
                _ => None,
            },
            Self::NotAFile { .. } => {
                Some("give the .safetensors, .safetensors.index.json or .gguf file itself")
            }
            Self::Malformed { .. } => {
                Some("the file may be an incomplete download or copy; fetch or export it again")
            }
            Self::Tensor { source: FormatError::NotFinite { .. }, .. } => {
                Some("keep the tensor as it is with --keep, or repair the checkpoint")
            }
            _ => None,
        }
    }
}
