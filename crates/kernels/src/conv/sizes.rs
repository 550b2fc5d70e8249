//! The sizes of a convolution.

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

    #[cfg(feature = "std")]
    pub(crate) fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.strides == [1, 1] && self.pads == [0; 4]
    }

    #[cfg(feature = "std")]
    pub(crate) fn is_depthwise(&self) -> bool {
        self.c_in == self.groups && 1 < self.groups
    }
}
