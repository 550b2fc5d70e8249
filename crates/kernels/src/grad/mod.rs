//! Gradients: what training needs besides the forward kernels.
//!
//! A gradient is named after what it is of: [`conv2d_input`] is the derivative of a sum of `dy * conv2d(x, w)` in `x`.
//! As everywhere in this crate, a result does not depend on the number of threads: sums over images are cut into
//! groups whose number the sizes alone decide, and the groups' sums are added in order.
//!
//! Reading order: [`conv`] (convolutions as matrix products, depthwise ones directly), [`fake_quantize`] (the
//! straight-through estimator and the gradients of scale and zero point), [`batch_norm`] (with statistics of the
//! batch), [`accumulate`].

pub mod batch_norm;
mod conv;
mod depthwise;
pub mod fake_quantize;

pub use conv::{conv2d_input, conv2d_weights};

use crate::autovec::autovec;
use crate::par;
use crate::variant::{self, VariantInfo};

autovec!(ADD, fn(x: &[f32], y: &mut [f32]) = add_body);

#[inline(always)]
fn add_body(x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

/// `y[i] += x[i]`.
///
/// # Panics
///
/// When the slices differ in length.
pub fn accumulate(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "as many to add as there are");
    let run = variant::select(ADD);
    par::for_each_chunk(y, 16, 16.0 * 0.2, |start, y| run(&x[start..][..y.len()], y));
}

/// How many groups `n` images are cut into: enough for every machine this is likely to run on, few enough that adding
/// the groups' sums costs little.
fn n_groups(n: usize) -> usize {
    n.clamp(1, 8)
}

/// The implementations, for `midtread inspect --cpu`.
pub(crate) fn describe() -> Vec<VariantInfo> {
    [
        variant::describe("grad::accumulate", ADD),
        depthwise::describe(),
        fake_quantize::describe(),
        batch_norm::describe(),
    ]
    .concat()
}

#[cfg(test)]
mod tests;
