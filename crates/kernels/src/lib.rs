//! The fast arithmetic: every SIMD instruction and every line of `unsafe` in midtread.
//!
//! A kernel is a safe function over slices. Behind it stands a static list of implementations,
//! fastest first, ending with a scalar one that any CPU can run ([`variant`]). An integer kernel
//! gives the same bytes whichever implementation runs, and those bytes are what `midtread-num`
//! defines; its tests walk the list and compare.
//!
//! Architecture invariant: no kernel decides anything about quantization. Scales, zero points and
//! ranges come in as arguments; only in [`formats`] the definition says how they are chosen.
//!
//! Architecture invariant: a result does not depend on the number of threads.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;
// So that a path of `std` that `core` has as well is written as everywhere else.
#[cfg(not(feature = "std"))]
extern crate core as std;

/// What the program is compiled for: nothing can be asked at run time.
#[cfg(all(not(feature = "std"), target_arch = "x86_64"))]
macro_rules! is_x86_feature_detected {
    ($feature:tt) => {
        cfg!(target_feature = $feature)
    };
}

pub mod variant;

mod autovec;
mod par;
#[cfg(feature = "std")]
mod simd;

#[cfg(feature = "std")]
pub mod conv;
#[cfg(not(feature = "std"))]
#[path = "conv/sizes.rs"]
pub mod conv;
#[cfg(feature = "std")]
pub mod elementwise;
#[cfg(feature = "std")]
pub mod formats;
#[cfg(feature = "std")]
pub mod gemm;
#[cfg(feature = "std")]
pub mod grad;
#[cfg(feature = "std")]
pub mod int8;
#[cfg(feature = "std")]
pub mod norm;
#[cfg(feature = "std")]
pub mod peak;
#[cfg(feature = "std")]
pub mod pool;
pub mod quantized;
pub mod transpose;

#[cfg(feature = "std")]
pub mod histogram;
pub mod min_max;
pub mod quantize;

pub use variant::{Isa, VariantInfo, variants};

/// The modules whose kernels [`variants`] lists. A module with a list of variants adds its line.
static DESCRIBE: &[variant::Describe] = &[
    #[cfg(feature = "std")]
    gemm::describe,
    #[cfg(feature = "std")]
    conv::describe,
    #[cfg(feature = "std")]
    elementwise::describe,
    #[cfg(feature = "std")]
    norm::describe,
    #[cfg(feature = "std")]
    grad::describe,
    #[cfg(feature = "std")]
    int8::describe,
    quantized::describe,
    quantize::variants,
    #[cfg(feature = "std")]
    formats::variants,
    min_max::variants,
    #[cfg(feature = "std")]
    histogram::variants,
];
