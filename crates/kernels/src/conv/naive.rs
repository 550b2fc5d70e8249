//! Convolutions as their definition says, for any number of spatial dimensions. The 2-D ones are tested against it.

/// The sizes of a convolution with any number of spatial dimensions.
#[derive(Clone, Copy, Debug)]
pub struct ConvNd<'a> {
    /// Images.
    pub n: usize,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Spatial sizes of the input.
    pub input: &'a [usize],
    /// Spatial sizes of the kernel.
    pub kernel: &'a [usize],
    /// Steps between windows.
    pub strides: &'a [usize],
    /// Padding before each dimension. What lies after needs no number: the output's size says it.
    pub pads: &'a [usize],
    /// Steps between the elements of a window.
    pub dilations: &'a [usize],
    /// Groups of channels.
    pub groups: usize,
    /// Spatial sizes of the output.
    pub output: &'a [usize],
}

impl ConvNd<'_> {
    fn check(&self) {
        let rank = self.input.len();
        for dims in [self.kernel, self.strides, self.pads, self.dilations, self.output] {
            assert_eq!(dims.len(), rank, "one number for each spatial dimension");
        }
        assert!(0 < self.groups, "at least one group");
        assert_eq!(self.c_in % self.groups, 0, "input channels in equal groups");
        assert_eq!(self.c_out % self.groups, 0, "output channels in equal groups");
    }
}

/// `y = conv(x, w) + bias`, window element by window element. The order of the sums is [`super::conv2d`]'s.
///
/// # Panics
///
/// When a slice has another length than the sizes say, or groups do not divide the channels.
pub fn conv_nd(conv: &ConvNd, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    conv.check();
    let (n_in, n_taps, n_out) = (volume(conv.input), volume(conv.kernel), volume(conv.output));
    let (m, channels) = (conv.c_out / conv.groups, conv.c_in / conv.groups);
    assert_eq!(x.len(), conv.n * conv.c_in * n_in, "the input's elements");
    assert_eq!(w.len(), conv.c_out * channels * n_taps, "the weights' elements");
    assert_eq!(y.len(), conv.n * conv.c_out * n_out, "the output's elements");
    assert!(bias.is_none_or(|bias| bias.len() == conv.c_out), "a bias for each output channel");

    let (mut at, mut tap) = (vec![0; conv.output.len()], vec![0; conv.output.len()]);
    for (i, y) in y.chunks_exact_mut(n_out.max(1)).enumerate() {
        let (image, c_out) = (i / conv.c_out, i % conv.c_out);
        for (o, y) in y.iter_mut().enumerate() {
            unravel(o, conv.output, &mut at);
            let mut sum = 0.0_f32;
            for c in 0..channels {
                let plane = &x[(image * conv.c_in + c_out / m * channels + c) * n_in..][..n_in];
                let w = &w[(c_out * channels + c) * n_taps..][..n_taps];
                for (t, &w) in w.iter().enumerate() {
                    unravel(t, conv.kernel, &mut tap);
                    let mut index = Some(0);
                    for d in 0..at.len() {
                        let p = (at[d] * conv.strides[d] + tap[d] * conv.dilations[d])
                            .checked_sub(conv.pads[d])
                            .filter(|p| *p < conv.input[d]);
                        index = index.zip(p).map(|(index, p)| index * conv.input[d] + p);
                    }
                    sum = w.mul_add(index.map_or(0.0, |i| plane[i]), sum);
                }
            }
            *y = bias.map_or(sum, |bias| sum + bias[c_out]);
        }
    }
}

/// ONNX `ConvTranspose`, version 11: `y[at * stride + tap * dilation - pad] += x[at] * w[tap]`, then the bias.
///
/// `conv` names the sizes of this operator's own input and output; `w` is (c_in, c_out / groups, kernel...). The sum
/// of an element is a chain of fused multiply-adds from 0 over (input channel, input position) in increasing order.
///
/// # Panics
///
/// As [`conv_nd`].
pub fn conv_transpose_nd(conv: &ConvNd, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    conv.check();
    let (n_in, n_taps, n_out) = (volume(conv.input), volume(conv.kernel), volume(conv.output));
    let (m, channels) = (conv.c_out / conv.groups, conv.c_in / conv.groups);
    assert_eq!(x.len(), conv.n * conv.c_in * n_in, "the input's elements");
    assert_eq!(w.len(), conv.c_in * m * n_taps, "the weights' elements");
    assert_eq!(y.len(), conv.n * conv.c_out * n_out, "the output's elements");
    assert!(bias.is_none_or(|bias| bias.len() == conv.c_out), "a bias for each output channel");

    let (mut at, mut tap) = (vec![0; conv.input.len()], vec![0; conv.input.len()]);
    for (i, y) in y.chunks_exact_mut(n_out.max(1)).enumerate() {
        let (image, c_out) = (i / conv.c_out, i % conv.c_out);
        y.fill(0.0);
        for c in 0..channels {
            let c_in = c_out / m * channels + c;
            let plane = &x[(image * conv.c_in + c_in) * n_in..][..n_in];
            let w = &w[(c_in * m + c_out % m) * n_taps..][..n_taps];
            for (p, &x) in plane.iter().enumerate() {
                unravel(p, conv.input, &mut at);
                for (t, &w) in w.iter().enumerate() {
                    unravel(t, conv.kernel, &mut tap);
                    let mut index = Some(0);
                    for d in 0..at.len() {
                        let o = (at[d] * conv.strides[d] + tap[d] * conv.dilations[d])
                            .checked_sub(conv.pads[d])
                            .filter(|o| *o < conv.output[d]);
                        index = index.zip(o).map(|(index, o)| index * conv.output[d] + o);
                    }
                    if let Some(index) = index {
                        y[index] = x.mul_add(w, y[index]);
                    }
                }
            }
        }
        if let Some(bias) = bias {
            y.iter_mut().for_each(|y| *y += bias[c_out]);
        }
    }
}

fn volume(dims: &[usize]) -> usize {
    dims.iter().product()
}

/// The position of element `i` of a tensor stored by rows.
fn unravel(mut i: usize, dims: &[usize], at: &mut [usize]) {
    for d in (0..dims.len()).rev() {
        at[d] = i % dims[d];
        i /= dims[d];
    }
}
