//! Preparing a model for quantization: shapes inferred, constants folded, batch norms taken into convolutions,
//! operators brought to the version a plan needs.
//!
//! [`prepare()`] runs the passes of [`PASSES`] that [`PrepareOptions`] names, in the list's order, again and again
//! until none finds anything to do. Every pass says what it changed ([`Change`]) and where its rule applied but a
//! condition did not hold ([`Skip`]). The prepared model computes what the model computed; where rounding differs,
//! the pass says so in its own documentation.
//!
//! A new pass is a file here and a line in [`PASSES`].
//!
//! Reading order: [`prepare`](mod@prepare) (options, report, driver), [`infer_shapes`], then any pass.
#![forbid(unsafe_code)]

pub mod constants_to_initializers;
pub mod eliminate_identity;
pub mod error;
pub mod fold_constants;
pub mod fold_shapes;
mod fuse;
pub mod fuse_add;
pub mod fuse_attention;
pub mod fuse_batch_norm;
pub mod fuse_gelu;
pub mod fuse_hard_swish;
pub mod fuse_layer_norm;
pub mod fuse_mul;
pub mod fuse_pad;
pub mod fuse_rms_norm;
pub mod fuse_silu;
pub mod fuse_skip_layer_norm;
pub mod infer_shapes;
pub mod initializers_from_inputs;
pub mod inline_functions;
pub mod merge_casts;
pub mod merge_reshapes;
pub mod merge_transposes;
mod pattern;
pub mod prepare;
pub mod remove_unused;
pub mod share_constants;
pub mod share_nodes;
pub mod upgrade_opset;
mod view;

pub use error::Error;
pub use prepare::{
    Change, Ctx, PassDef, PassReport, PassSet, PrepareOptions, Report, Skip, prepare,
};
pub use upgrade_opset::upgrade;

/// Every pass, in the order in which they run. `--pass` and `--skip-pass` values and
/// `docs/reference/passes.md` are generated from this list.
pub static PASSES: &[&PassDef] = &[
    &inline_functions::DEF,
    &initializers_from_inputs::DEF,
    &constants_to_initializers::DEF,
    &infer_shapes::DEF,
    &upgrade_opset::DEF,
    &merge_transposes::DEF,
    &merge_reshapes::DEF,
    &merge_casts::DEF,
    &eliminate_identity::DEF,
    &fold_shapes::DEF,
    &fold_constants::DEF,
    &share_constants::DEF,
    &share_nodes::DEF,
    &fuse_gelu::DEF,
    &fuse_layer_norm::DEF,
    &fuse_rms_norm::DEF,
    &fuse_hard_swish::DEF,
    &fuse_silu::DEF,
    &fuse_attention::DEF,
    &fuse_skip_layer_norm::DEF,
    &fuse_pad::DEF,
    &fuse_batch_norm::DEF,
    &fuse_mul::DEF,
    &fuse_add::DEF,
    &remove_unused::DEF,
];
