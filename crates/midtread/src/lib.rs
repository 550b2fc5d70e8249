//! Quantization of ONNX models: measure a float model on real data, decide how every tensor is represented in few
//! bits, write a model that runs anywhere ONNX runs, and say what that cost and why.
//!
//! ```no_run
//! use midtread::{Format, PlanOptions, Stats, Target, apply, onnx, plan};
//!
//! # fn main() -> Result<(), midtread::Error> {
//! let model = onnx::load("mobilenet.onnx")?;
//! # let (prepared, stats): (midtread::graph::Model, Stats) = todo();
//! let plan = plan(&prepared, Some(&stats), &Target::find("onnxruntime_cpu")?, &PlanOptions::default())?;
//! let quantized = apply(&prepared, &plan, Format::Qdq)?;
//! onnx::save(&quantized, "mobilenet.int8.onnx", &onnx::SaveOptions::default())?;
//! # Ok(())
//! # }
//! # fn todo() -> (midtread::graph::Model, Stats) { unreachable!() }
//! ```
//!
//! [`quantize()`] does all of it. Its stages are functions too, for those who want to look between them, and what they
//! leave behind ([`Stats`], [`Plan`]) is text that can be saved, compared and edited:
//! `load -> prepare -> calibrate -> plan -> apply -> save`.
//!
//! Reading order: [`mod@quantize`] (the whole way), [`mod@half`] (the same to float16 and bfloat16),
//! [`mod@trim`] (as few bits as an error margin allows), [`mod@tune`] (many ways tried), [`judge`], [`evaluate`] (how good a model is), [`mod@metric`],
//! [`significance`], [`sensitivity`], [`training`] (quantization-aware), [`runtime`], [`latency`], [`peer`] (ONNX Runtime's time), [`samples`],
//! [`mod@page`] and [`manifest`] (the report), [`debug`], [`demo`], [`mod@explain`] (one value, one tensor, every type), [`error`].
#![forbid(unsafe_code)]

pub mod cost;
pub mod debug;
pub mod demo;
pub mod error;
pub mod evaluate;
pub mod explain;
pub mod half;
pub mod judge;
pub mod latency;
pub mod manifest;
pub mod metric;
pub mod page;
pub mod peer;
pub mod quantize;
pub mod runtime;
pub mod samples;
pub mod sensitivity;
pub mod significance;
pub mod training;
pub mod trim;
pub mod tune;

pub use midtread_checkpoint as checkpoint;
pub use midtread_compare as compare;
pub use midtread_data as data;
pub use midtread_engine as engine;
pub use midtread_exec as exec;
pub use midtread_graph as graph;
pub use midtread_kernels as kernels;
pub use midtread_num as num;
pub use midtread_onnx as onnx;
pub use midtread_ops as ops;
pub use midtread_passes as passes;
pub use midtread_quant as quant;
pub use midtread_report as report;
pub use midtread_train as train;

pub use error::Error;
pub use midtread_compare::Comparison;
pub use midtread_quant::{Format, Plan, PlanOptions, Scheme, Stats, Target, apply, plan};
pub use quantize::{Options, Quantized, quantize};
pub use runtime::{EngineOptions, Loaded, Requantize, Runner, Runtime};
