//! The definition of the numbers: what it means to quantize, in plain scalar code.
//!
//! Everything that midtread does with a scale and a zero point is defined here, once, and
//! everything faster is tested against it bit for bit. Read in this order:
//!
//! - [`affine`]: [`QRange`] and [`QParams`], one value to one integer and back, as ONNX defines it.
//! - [`round`]: the rounding modes by name.
//! - [`granularity`]: which parameters belong to which element of a tensor; [`tensor`]: whole
//!   slices at any granularity.
//! - [`bias`] and [`requant`]: what happens to the `i32` sums of integer kernels.
//! - [`softmax`]: softmax of codes.
//! - [`dynamic`]: parameters chosen while a model runs.
//! - [`pack`]: codes of less than a byte.
//! - [`formats`]: every number format for weights, from int4 to NF4 and MX.
//! - [`error`]: how far two tensors are apart.
//! - [`uniform`], [`nonuniform`] and [`textbook`]: the forms that people learn from, in `f64`.
//!
//! Architecture invariant: no other crate but `midtread-kernels` divides by a scale.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod affine;
pub mod bias;
pub mod dynamic;
pub mod error;
pub mod formats;
pub mod granularity;
pub mod nonuniform;
pub mod pack;
pub mod requant;
pub mod round;
pub mod softmax;
pub mod tensor;
pub mod textbook;
pub mod uniform;

pub use affine::{QParams, QParamsError, QRange, Sign, Span, Symmetry};
pub use error::ErrorSums;
pub use granularity::{Granularity, GranularityError, Layout};
pub use requant::Multiplier;
pub use round::Rounding;
