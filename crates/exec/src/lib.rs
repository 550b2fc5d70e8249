//! Runs a model node by node, exactly as ONNX defines its operators, and shows every value to whoever asks.
//!
//! The [`Interpreter`] is the reference of this program: constant folding, calibration, comparison of a float and
//! a quantized model all go through it. It checks a model once, when it is made; a run then allocates from a pool
//! that lives as long as the interpreter, gives the memory of each value back at its last use, and lets operators
//! change an input that nobody needs afterwards in place.
//!
//! ```no_run
//! # fn main() -> Result<(), midtread_exec::Error> {
//! # let (model, picture) = (midtread_graph::Model::default(), midtread_graph::Tensor::scalar(0.0_f32));
//! use midtread_exec::{Interpreter, Options};
//!
//! let interpreter = Interpreter::new(&model, Options::default())?;
//! let mut largest = 0;
//! let outputs = interpreter.run_observed(vec![("x".to_owned(), picture)], &mut |_, _name, value| {
//!     largest = largest.max(value.len());
//! })?;
//! # let _ = outputs;
//! # Ok(())
//! # }
//! ```
//!
//! Reading order: [`interpreter`] (construction and runs), `schedule` (order and last uses), `inline` (functions
//! of the model), `body` (graphs in attributes), [`error`].
#![forbid(unsafe_code)]

mod body;
pub mod error;
mod inline;
pub mod interpreter;
mod schedule;

pub use error::Error;
pub use inline::inline_functions;
pub use interpreter::{Interpreter, Named, NamedData, NodeTime, Options, Port, check_inputs};
pub use schedule::topological_order;
