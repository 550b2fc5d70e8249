//! Why a model could not be quantized.

use midtread_num::QParamsError;

use crate::calibrate::CalibrateError;

/// Why a plan could not be made, read or applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A scale or zero point in a file, or derived from calibration, is unusable.
    #[error("tensor `{tensor}`")]
    QParams {
        /// Its name in the graph.
        tensor: String,
        /// What is wrong with the parameters.
        #[source]
        source: QParamsError,
    },

    /// No range could be had for a tensor that is to be quantized.
    #[error("tensor `{tensor}`")]
    Range {
        /// Its name in the graph.
        tensor: String,
        /// Why not.
        #[source]
        source: CalibrateError,
    },

    /// Static quantization without calibration.
    #[error("static quantization needs calibrated ranges, and there are none")]
    NoStats,

    /// A tensor that is to be quantized was not observed.
    #[error("{n_tensors} tensors were not calibrated, the first `{first}`")]
    NotCalibrated {
        /// In graph order.
        first: String,
        /// With it.
        n_tensors: usize,
    },

    /// The statistics were gathered on another model.
    #[error("these statistics are of another model")]
    StatsOfAnotherModel,

    /// A constant holds NaN or an infinity.
    #[error("constant `{tensor}` has {what} at element {element}")]
    NotFinite {
        /// Its name in the graph.
        tensor: String,
        /// "NaN" or "an infinity".
        what: &'static str,
        /// Index in row-major order.
        element: usize,
    },

    /// An option names something that the model (or the program) does not have.
    #[error("{what} `{name}` {problem}{}", suggestion(.suggest))]
    Unknown {
        /// What the option is: "node", "tensor", "operator type", "target".
        what: &'static str,
        /// As it was given.
        name: String,
        /// A clause: "is not in the model".
        problem: String,
        /// The nearest name that exists.
        suggest: Option<String>,
    },

    /// Options that contradict each other or the target.
    #[error("{0}")]
    Options(String),

    /// An entry of an overrides or target file is not usable.
    #[error("{file}{}: {problem}", line_text(.line))]
    File {
        /// "overrides", "plan", or the file's name.
        file: String,
        /// Counted from 1, where it is known.
        line: Option<usize>,
        /// What is wrong.
        problem: String,
    },

    /// The plan was made for another model.
    #[error("the plan was made for another model: it has fingerprint {plan}, this one {model}")]
    OtherModel {
        /// Of the model that was planned.
        plan: String,
        /// Of the model at hand.
        model: String,
    },

    /// The plan needs operators that a newer operator set brings.
    #[error("the plan needs operator set {needed}, and the model imports {got}")]
    Opset {
        /// The smallest that has everything.
        needed: i64,
        /// The model's.
        got: i64,
    },

    /// The model uses something this version does not implement.
    #[error("node `{node}` ({op_type}): {what} is not supported")]
    Unsupported {
        /// `NodeProto.name`, or its first output when unnamed.
        node: String,
        /// `NodeProto.op_type`.
        op_type: String,
        /// A noun phrase: "a dynamic `scale`".
        what: String,
    },
}

impl Error {
    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoStats => {
                Some("calibrate with sample data, or use the dynamic or weight-only scheme")
            }
            Self::NotCalibrated { .. } => Some(
                "calibrate the same prepared model that is planned; the data set may also be empty",
            ),
            Self::StatsOfAnotherModel => Some("calibrate this model again"),
            Self::NotFinite { .. } => {
                Some("the model is damaged, or the node that uses the constant can be excluded")
            }
            Self::OtherModel { .. } => {
                Some("plan this model again, or apply the plan to the model it was made for")
            }
            Self::Opset { .. } => Some("raise the model's operator set first (prepare does it)"),
            Self::QParams { .. }
            | Self::Range { .. }
            | Self::Unknown { .. }
            | Self::Options(_)
            | Self::File { .. }
            | Self::Unsupported { .. } => None,
        }
    }
}

fn suggestion(name: &Option<String>) -> String {
    name.as_ref().map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

fn line_text(line: &Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(" line {line}"))
}
