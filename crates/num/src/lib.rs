//! The definition of the numbers.
pub mod affine;
pub use affine::{QParams, QParamsError, QRange};
