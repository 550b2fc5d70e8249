//! Runs a quantized model in integers.
//!
//! [`Program::compile`] looks for the clusters that a quantizer writes, DequantizeLinear, operator, QuantizeLinear, or
//! for their QOperator form, and makes one step of each: codes in, codes out, the weights packed once, images channels
//! last. Every other node is a step that evaluates it as the interpreter does, and codes are brought into ONNX's layout
//! only where such a node asks for them. [`Program::steps`] says what became of every node.
//!
//! An integer step computes what ONNX Runtime's kernels compute (QLinearConv and its kin): the sums are exact, and the
//! float that they are scaled to is rounded once, where the cluster's definition rounds the product of every
//! dequantized pair. So its codes are those of the definition, or now and then the neighbouring ones.
//!
//! Reading order: [`program`] (a program and a run), `cluster` (what is looked for), `step` (what is computed),
//! `layout` (channels first and last), [`error`].
#![forbid(unsafe_code)]

mod cluster;
pub mod error;
mod layout;
pub mod program;
mod step;

pub use error::Error;
pub use program::{Program, StepInfo};
