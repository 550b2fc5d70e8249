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

use crate::gemm::{Bias, Epilogue, MatRef, gemm_panels};
use crate::par::{self, Disjoint};
use crate::variant::VariantInfo;

pub(crate) use im2col::Windows;
pub use naive::{ConvNd, conv_nd, conv_transpose_nd};

/// The sizes of a convolution of `n` images. A 1-D one has height 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Images.
    pub n: usize,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Steps between windows, vertical and horizontal.
    pub strides: [usize; 2],
    /// Padding: top, left, bottom, right, as ONNX orders `pads`.
    pub pads: [usize; 4],
    /// Steps between the elements of a window.
    pub dilations: [usize; 2],
    /// Groups of channels.
    pub groups: usize,
}

impl Conv2d {
    /// Height and width of the output: `floor((in + pads - dilation * (kernel - 1) - 1) / stride) + 1`, and 0 where
    /// no window fits.
    pub fn output(&self) -> [usize; 2] {
        std::array::from_fn(|d| {
            let window = self.dilations[d] * (self.kernel[d] - 1) + 1;
            let padded = self.input[d] + self.pads[d] + self.pads[d + 2];
            if padded < window { 0 } else { (padded - window) / self.strides[d] + 1 }
        })
    }

    /// Elements of the input, the weights and the output.
    pub fn lens(&self) -> [usize; 3] {
        let [oh, ow] = self.output();
        [
            self.n * self.c_in * self.input[0] * self.input[1],
            self.c_out * (self.c_in / self.groups) * self.kernel[0] * self.kernel[1],
            self.n * self.c_out * oh * ow,
        ]
    }

    pub(crate) fn check(&self, x: usize, w: usize, y: usize) {
        assert!(
            self.kernel.iter().chain(&self.strides).chain(&self.dilations).all(|&d| 0 < d),
            "a kernel, strides and dilations of at least one: {self:?}"
        );
        assert!(0 < self.groups, "at least one group");
        assert_eq!(self.c_in % self.groups, 0, "input channels in equal groups");
        assert_eq!(self.c_out % self.groups, 0, "output channels in equal groups");
        assert_eq!([x, w, y], self.lens(), "elements of the input, the weights and the output");
    }

    pub(crate) fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.strides == [1, 1] && self.pads == [0; 4]
    }

    pub(crate) fn is_depthwise(&self) -> bool {
        self.c_in == self.groups && 1 < self.groups
    }
}

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
