//! Checkpoints: weights in safetensors and GGUF files, read, converted to any number format, and written.
//!
//! ```no_run
//! use midtread_checkpoint::{Checkpoint, Container, Options, Run, Weights, convert, plan};
//! # fn main() -> Result<(), midtread_checkpoint::Error> {
//! let checkpoint = Checkpoint::open("model.safetensors".as_ref())?;
//! let options = Options::new(Weights::named("nf4")?, Container::Safetensors);
//! let plan = plan(&checkpoint, &options)?;
//! for item in plan.items.iter().filter(|item| item.is_kept()) {
//!     println!("{}: {}", checkpoint.entries[item.entry].name, item.reason);
//! }
//! let run = Run { n_threads: 2, progress: &|_| (), interrupted: &false.into() };
//! convert(&checkpoint, &plan, &options, "out.safetensors".as_ref(), &run)?;
//! # Ok(())
//! # }
//! ```
//!
//! Reading order: [`dtype`] (element types), [`safetensors`] and [`gguf`] (the two formats), [`layout`] (the keys of
//! quantized tensors), [`checkpoint`] (an open one), [`rules`] (what keeps its type), [`mod@plan`] (what becomes of each
//! tensor), `read` and `encode` (bytes to values and values to bytes), [`mod@convert`] (doing it), [`importance`],
//! `files`, [`error`].
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod convert;
pub mod dtype;
mod encode;
pub mod error;
mod files;
pub mod gguf;
pub mod importance;
pub mod layout;
pub mod plan;
mod read;
pub mod rules;
pub mod safetensors;
pub mod tensor;

pub use checkpoint::{Checkpoint, Container};
pub use convert::{Run, Written, convert};
pub use error::Error;
pub use importance::Importances;
pub use layout::{Entry, Keys, Stored};
pub use plan::{Item, Options, Plan, Target, Weights, plan};
pub use tensor::Tensor;

#[cfg(test)]
mod tests;
