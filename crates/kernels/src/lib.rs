//! The fast arithmetic: every SIMD instruction and every line of `unsafe` in midtread.
//!
//! A kernel is a safe function over slices. Behind it stands a static list of implementations,
//! fastest first, ending with a scalar one that any CPU can run ([`variant`]). An integer kernel
//! gives the same bytes whichever implementation runs, and those bytes are what `midtread-num`
//! defines; its tests walk the list and compare.
//!
//! Architecture invariant: no kernel decides anything about quantization. Scales, zero points and
//! ranges come in as arguments.
//!
//! Architecture invariant: a result does not depend on the number of threads.

pub mod variant;

mod par;
mod simd;

pub mod conv;
pub mod elementwise;
pub mod gemm;
pub mod int8;
pub mod norm;
pub mod pool;
pub mod quantized;
pub mod transpose;

pub mod histogram;
pub mod min_max;
pub mod quantize;

pub use variant::{Isa, VariantInfo, variants};

/// The modules whose kernels [`variants`] lists. A module with a list of variants adds its line.
static DESCRIBE: &[variant::Describe] = &[
    gemm::describe,
    conv::describe,
    elementwise::describe,
    norm::describe,
    int8::describe,
    quantized::describe,
    quantize::variants,
    min_max::variants,
    histogram::variants,
];
