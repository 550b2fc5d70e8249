//! Runs a quantized model in integers.
//!
//! [`Code::compile`] looks for the clusters that a quantizer writes, DequantizeLinear, operator, QuantizeLinear, or for
//! their QOperator form, and makes one step of each: codes in, codes out, images channels last. Every other node is a
//! step that evaluates it as the interpreter does, and codes are brought into ONNX's layout only where such a node asks
//! for them. A [`Code`] is data, which can be saved and read again; a [`Program`] is ready to run: it has the weights
//! packed for this CPU, and its [`Program::steps`] say what became of every node and why.
//!
//! An integer step computes what ONNX Runtime's kernels compute (QLinearConv and its kin): the sums are exact, and the
//! float that they are scaled to is rounded once, where the cluster's definition rounds the product of every
//! dequantized pair. So its codes are those of the definition, or now and then the neighbouring ones.
//!
//! Without the feature `std`, what is left is a [`Machine`] and its [`Session`]s, for devices: they run a `Code` read
//! from bytes whose steps are integer steps throughout, with `core` and `alloc`.
//!
//! Reading order: [`code`] (a program as data), `file` (as bytes), [`machine`] (values and runs), `compute` (what the
//! steps do), `arena` (where values lie); with `std` `cluster` (what is looked for in a model), `lower` (from there to a
//! program), `host` (operators), [`program`] (runs on tensors), [`error`].
#![forbid(unsafe_code)]
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod arena;
pub mod code;
mod compute;
pub mod dims;
pub mod fault;
mod file;
pub mod machine;

#[cfg(feature = "std")]
mod cluster;
#[cfg(feature = "std")]
pub mod error;
#[cfg(feature = "std")]
mod host;
#[cfg(feature = "std")]
mod lower;
#[cfg(feature = "std")]
pub mod program;

pub use code::Code;
pub use fault::Fault;
pub use machine::{Elem, Machine, Session, StepInfo};

#[cfg(feature = "std")]
pub use error::Error;
#[cfg(feature = "std")]
pub use program::{Options, Program, Requantize};
