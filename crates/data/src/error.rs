//! What can be wrong with data.

use std::{
    io,
    path::{Path, PathBuf},
};

use midtread_graph::DataType;

use crate::spec::Expected;

/// Why a sample could not be read, or does not fit the model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused.
    #[error("`{}` cannot be read", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },

    /// A path at which there is nothing to use.
    #[error("`{}` holds no pictures, arrays or test data sets", path.display())]
    NoData {
        /// The file or folder.
        path: PathBuf,
    },

    /// A folder in which there is more than one kind of thing.
    #[error("`{}` holds both {one} and {other}", path.display())]
    Ambiguous {
        /// The folder.
        path: PathBuf,
        /// A kind of data, plural.
        one: &'static str,
        /// Another.
        other: &'static str,
    },

    /// A picture that cannot be decoded.
    #[error("picture `{}` cannot be decoded", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The decoder's reason.
        #[source]
        source: image::ImageError,
    },

    /// A file that is not what its name says, or uses something that is not supported.
    #[error("`{}`: {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// A clause.
        what: String,
    },

    /// A tensor in a test data set that cannot be read.
    #[error("test data")]
    Tensor(#[source] midtread_onnx::Error),

    /// Pictures, and nobody said what the model wants of them.
    #[error("`{}` holds pictures, and how to turn them into numbers is not given", path.display())]
    NoPreprocess {
        /// The file or folder.
        path: PathBuf,
    },

    /// A preprocessing that is not valid.
    #[error("preprocessing {name}: {what}")]
    Preprocess {
        /// A preset's name or a file's.
        name: String,
        /// A clause.
        what: String,
    },

    /// A model that pictures cannot be given to.
    #[error("pictures are one tensor, and the model has {n_inputs} inputs")]
    NotAnImageModel {
        /// How many inputs must be given.
        n_inputs: usize,
    },

    /// An input that the sample does not have.
    #[error("sample `{sample}` has nothing for the input `{input}`; it has {}", list(found))]
    MissingInput {
        /// The sample.
        sample: String,
        /// The model's name for it.
        input: String,
        /// What the sample has.
        found: Vec<String>,
    },

    /// Something that the model does not take.
    #[error(
        "sample `{sample}` has `{found}`, which is no input of the model; those are {}",
        list(inputs)
    )]
    UnknownInput {
        /// The sample.
        sample: String,
        /// What it has.
        found: String,
        /// What the model takes.
        inputs: Vec<String>,
    },

    /// The elements have another type than the model takes.
    #[error(
        "sample `{sample}`, input `{input}`: the model takes {expected}, and the data is {found}"
    )]
    InputType {
        /// The sample.
        sample: String,
        /// The input.
        input: String,
        /// What the model takes.
        expected: DataType,
        /// What the sample has.
        found: DataType,
    },

    /// The sizes are others than the model takes.
    #[error(
        "sample `{sample}`, input `{input}`: the model takes {expected}, and the data is {found:?}"
    )]
    InputShape {
        /// The sample.
        sample: String,
        /// The input.
        input: String,
        /// What the model takes.
        expected: Expected,
        /// What the sample has.
        found: Vec<usize>,
    },

    /// Arrays for several inputs that do not hold the same number of samples.
    #[error("`{}` holds {n} samples of `{input}` and {other_n} of `{other}`", path.display())]
    Lengths {
        /// The file or folder.
        path: PathBuf,
        /// One input.
        input: String,
        /// Its samples.
        n: usize,
        /// Another input.
        other: String,
        /// Its samples.
        other_n: usize,
    },

    /// Data in which there is no number.
    #[error("sample `{sample}`, input `{input}`: none of its {n} values is finite")]
    NotFinite {
        /// The sample.
        sample: String,
        /// The input.
        input: String,
        /// How many values there are.
        n: usize,
    },

    /// Random data for an input whose sizes are not known.
    #[error(
        "input `{input}` has no known size along axis {axis}, so random data cannot be made for it"
    )]
    UnknownSize {
        /// The input.
        input: String,
        /// Which size.
        axis: usize,
    },

    /// An input of a kind or type that data cannot be made or read for.
    #[error("input `{input}`: {what} is not supported")]
    Unsupported {
        /// The input.
        input: String,
        /// A noun phrase.
        what: String,
    },

    /// An output that NumPy has no type for.
    #[error("`{name}` is of type {dtype}, which .npy files do not have")]
    NoNumpyType {
        /// The output.
        name: String,
        /// Its type.
        dtype: DataType,
    },

    /// A file that cannot be written.
    #[error("`{}` cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },

    /// Labels that cannot be read.
    #[error("labels in `{}`: {what}", path.display())]
    Labels {
        /// The file.
        path: PathBuf,
        /// A clause.
        what: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }

    pub(crate) fn format(path: &Path, what: impl Into<String>) -> Self {
        Self::Format { path: path.to_owned(), what: what.into() }
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => "check the path",
            Self::NoData { .. } => {
                "give a folder of png, jpg, bmp or webp pictures, a .npy or .npz file or a folder of them, an IDX file, \
                 or a folder with test_data_set_* in it"
            }
            Self::Ambiguous { .. } => "give a folder, or a file, with one of them",
            Self::Image { .. } => "remove the file, or save it again",
            Self::NoPreprocess { .. } => {
                "name a preset (imagenet, imagenet_tf, efficientnet_lite, ...) or a TOML file that describes the steps"
            }
            Self::MissingInput { .. } | Self::UnknownInput { .. } => {
                "the keys of an .npz file, or the names of the files in a folder, are the model's input names"
            }
            Self::InputType { .. } => "convert the data first, in NumPy with `x.astype(...)`",
            Self::InputShape { .. } => {
                "a leading axis of size 1 is added where it lacks; all other sizes must be the model's"
            }
            Self::NotFinite { .. } => {
                "the program that wrote the data may have failed; look at it before calibrating"
            }
            Self::UnknownSize { .. } => "fix the size in the model, or use real data",
            Self::Labels { .. } => {
                "CSV: one `file,label` a line, several labels with `|` between them; JSON: {\"file\": label} or a list"
            }
            _ => return None,
        })
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
