//! Operators: for each one its versions, its shape rule, its evaluation and its role in quantization, side by side.
//!
//! One file a family (`conv.rs`, `unary.rs`, ...) with an [`OpDef`] for each operator in it, and one line each in
//! [`table`]. Everything that walks the table (the interpreter, shape inference, the planner, the tests and
//! `docs/reference/operators.md`) finds a new operator by itself.
//!
//! Reading order: [`def`] (what an operator is), [`sym`] (sizes as expressions), [`infer`] (what a shape rule sees),
//! [`eval`] (what an evaluation sees), [`table`]; then what the families share, `attr` (attributes), `typed`
//! (element types), `shape` (broadcasting and strides), `window` (sliding windows); then the families; [`grad`] (their
//! gradients).
#![forbid(unsafe_code)]

pub mod def;
pub mod eval;
pub mod grad;
pub mod infer;
pub mod sym;
pub mod table;

mod attr;
mod shape;
mod typed;
pub mod window;

mod attention;
mod binary;
mod bits;
mod cast;
mod channels_last;
mod constant;
mod control;
mod conv;
mod deform_conv;
mod einsum;
mod flex_attention;
mod followers;
mod fused;
mod gather;
mod layout;
mod linear_attention;
mod loss;
mod matmul;
mod multi_head;
mod norm;
mod packed;
mod patches;
mod pool;
mod qlinear;
mod quantize;
mod random;
mod recurrent;
mod reduce;
mod resize;
mod scatter;
mod sequence;
mod signal;
mod softmax;
mod text;
mod unary;
mod vision;

pub use constant::constant_value;
pub use conv::conv_then;
pub use def::{Eval, InputRole, OpDef, OutputRole, Role};
pub use eval::{Args, Bodies, Datum, EvalCtx, NoBodies, OpError, Pool};
pub use followers::Followers;
pub use grad::{GRADS, GradCtx, GradDef, Reads, STEPS, find_grad};
pub use infer::{InferCtx, Info};
pub use sym::SymDim;
pub use table::{OPS, find};
