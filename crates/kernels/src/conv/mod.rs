//! Convolutions of `f32` tensors, channels before space (ONNX's layout, "NCHW").
//!
//! The definition ([`Conv2d`], version 11 of ONNX `Conv`): an output element is one chain of fused multiply-adds from
//! 0 over (input channel of its group, kernel row, kernel column), in this order, where what lies in the padding
//! takes part as 0; then follows the [`Epilogue`]. Every way below gives these bits, for any
//! number of threads.
//!
//! The ways: a 1x1 convolution is a matrix product as it is; one whose groups have one input channel ("depthwise") is
//! computed directly; the others are a matrix product whose second factor, the windows, is made a block at a time.

pub(crate) mod depthwise;
mod im2col;
mod naive;
mod sizes;

use crate::gemm::{Bias, Epilogue, MatRef, gemm_panels};
use crate::par::{self, Disjoint};
use crate::variant::VariantInfo;

pub(crate) use im2col::Windows;
pub use naive::{ConvNd, conv_nd, conv_transpose_nd};
pub use sizes::Conv2d;

/// `y = epilogue(conv(x, w))`.
///
/// `x` is (n, c_in, height, width), `w` (c_out, c_in / groups, kernel height, kernel width), `y` (n, c_out, output
/// height, output width). The epilogue's rows are the output channels, so that a following batch normalization,
/// `Clip` or `Relu` costs nothing.
///
/// # Panics
///
/// When a slice has another length than the sizes say, groups do not divide the channels, or the epilogue is not
/// one for output channels.
pub fn conv2d(conv: &Conv2d, x: &[f32], w: &[f32], epilogue: &Epilogue, y: &mut [f32]) {
    conv.check(x.len(), w.len(), y.len());
    epilogue.check(conv.c_out, 0);
    assert!(
        epilogue.alpha == 1.0 && !matches!(epilogue.bias, Bias::PerColumn(_)),
        "no factor, and a bias for each output channel"
    );
    if y.is_empty() {
        return;
    }
    if conv.is_depthwise() {
        depthwise::run(conv, x, w, epilogue, y);
        return;
    }
    let [oh, ow] = conv.output();
    let (m, k, n) = (
        conv.c_out / conv.groups,
        conv.c_in / conv.groups * conv.kernel[0] * conv.kernel[1],
        oh * ow,
    );
    let x_len = conv.c_in / conv.groups * conv.input[0] * conv.input[1];
    let y = Disjoint::new(y);
    let n_products = conv.n * conv.groups;
    par::for_each_task(n_products, n_products * m * k * n / 32, |i| {
        let group = i % conv.groups;
        let x = &x[i * x_len..][..x_len];
        let w = &w[group * m * k..][..m * k];
        // SAFETY: each image's group has its own output.
        let y = unsafe { y.slice(i * m * n, m * n) };
        let epilogue = epilogue.rows(group * m..(group + 1) * m);
        if conv.is_pointwise() {
            gemm_panels(w, k, [m, k, n], &MatRef::new(x, k, n), y, &epilogue);
        } else {
            gemm_panels(w, k, [m, k, n], &im2col::Windows::new(conv, x), y, &epilogue);
        }
    });
}

/// The implementations, for `midtread inspect --cpu`.
pub(crate) fn describe() -> Vec<VariantInfo> {
    depthwise::describe()
}

#[cfg(test)]
pub(crate) mod tests;
