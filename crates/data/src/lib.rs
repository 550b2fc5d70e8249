//! Samples for a model from what people have: pictures, arrays, ONNX test data sets, the MNIST family's files.
//!
//! [`open`] looks at a path, finds out what it is, and returns a [`Source`]: a list of named samples that are read
//! and decoded one at a time, from any number of threads, when they are asked for. What a sample holds is matched
//! with the model's inputs ([`InputSpec`]) before anything runs: a wrong name, type or shape is an error that says
//! which sample, which input, what was expected and what was found. Nothing is guessed: pictures need a
//! [`Preprocess`], random numbers must be asked for.
//!
//! Reading order: [`spec`] (what a model takes), [`source`] (what a path holds), [`preprocess`] (from a picture to a
//! tensor), `resample`, `images`, `arrays` over `npy` and `zip`, `idx`, [`test_sets`], [`random`](mod@random), [`labels`],
//! [`write`](mod@write),
//! [`error`].
#![forbid(unsafe_code)]

mod arrays;
pub mod error;
mod idx;
mod images;
pub mod labels;
mod npy;
pub mod preprocess;
pub mod random;
mod resample;
pub mod source;
pub mod spec;
pub mod test_sets;
pub mod write;
mod zip;

pub use crate::{
    arrays::read_npy,
    error::Error,
    labels::Labels,
    preprocess::{PRESETS, Preprocess, Preset},
    random::random,
    source::{Options, Source, open},
    spec::InputSpec,
};

#[cfg(test)]
mod tests;
