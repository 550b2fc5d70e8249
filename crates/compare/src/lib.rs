//! What quantization did to a model: a float model and a quantized one, matched tensor by tensor and run on the same
//! samples, say where error is born, where it merely passes, and what would help.
//!
//! The quantized model may come from anywhere: what is known of it is its graph. [`view`] finds the *logical tensors*
//! in it (a value, its integers and what they are dequantized to are one), [`matching`] finds the value of the float
//! model that each stands for, [`weights`] does the same for constants. [`mod@run`] then runs both models in one pass
//! with bounded memory and adds up, per tensor, two errors:
//!
//! - the *accumulated* one: the quantized model's value against the float model's;
//! - its *own*: the node that makes it, run on float inputs with the quantized model's weights, and its output
//!   rounded as the quantized model rounds it. Error that a tensor merely inherits is not in it.
//!
//! The figures do not depend on the number of threads. Reading order: [`view`], [`matching`], [`weights`], `own`,
//! [`sums`], [`profile`], [`mod@run`], [`outputs`], [`advice`], [`result`], [`mod@sensitivity`] (one layer at a time), `suffix`,
//! [`error`].
#![forbid(unsafe_code)]

pub mod advice;
pub mod error;
pub mod matching;
pub mod outputs;
mod own;
pub mod profile;
pub mod result;
pub mod run;
pub mod sensitivity;
mod suffix;
pub mod sums;
pub mod view;
pub mod weights;

pub use advice::Advice;
pub use error::Error;
pub use result::{Comparison, Kind, OutputRow, TensorRow, Unmatched};
pub use run::{Options, compare};
pub use sensitivity::{Sensitivity, sensitivity};
