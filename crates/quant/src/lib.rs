//! What the project is for: measuring a model, deciding how every tensor is represented, and writing that down in
//! a new model.
//!
//! Three stages, each a pure function of what the one before left behind:
//!
//! ```text
//! calibrate: Model + samples          -> Stats   what values each tensor took        (saveable)
//! plan:      Model + Stats + Target   -> Plan    scale, zero point and why, a tensor (saveable)
//! apply:     Model + Plan + Format    -> Model   the only code that writes Q/DQ nodes
//! ```
//!
//! Reading order: [`calibrate`], [`mod@plan`] (its types first, then `decide`), [`mod@apply`], [`half`] (float16 and bfloat16
//! models: a plan and an `apply` of their own), [`blocks`] (weights in blocks, in the forms of ONNX Runtime's operators), [`error`].
#![forbid(unsafe_code)]

pub mod apply;
pub mod blocks;
pub mod calibrate;
pub mod error;
pub mod half;
pub mod plan;

pub use apply::{Format, apply, required_opset};
pub use calibrate::Stats;
pub use error::Error;
pub use plan::{Decision, NodePlan, Plan, PlanOptions, Scheme, Target, TensorPlan, Why, plan};

#[cfg(test)]
mod testing;
