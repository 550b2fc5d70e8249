//! Windows that slide over the spatial dimensions: strides, dilations and padding of convolutions and pools.

use midtread_graph::Node;
use midtread_kernels::conv::Conv2d;

use crate::{attr, conv::ConvSizes, eval::OpError, pool::pool_window, sym::SymDim};

/// The sizes of a convolution over images: `x` (image, channel, row, column), `w` (output channel, channel of a group,
/// row, column).
pub fn conv_2d(node: &Node, x: &[usize], w: &[usize]) -> Result<Conv2d, OpError> {
    let conv = ConvSizes::read(node, x, w)?.to_2d()?;
    conv.ok_or_else(|| OpError::Invalid(format!("a convolution over sizes {x:?}")))
}

/// The sizes of a pool over images, as those of a convolution with a group for each channel. `ceil_mode` must be 0.
pub fn pool_2d(node: &Node, x: &[usize]) -> Result<Conv2d, OpError> {
    let win = pool_window(node, x)?;
    let &[n, channels, height, width] = x else {
        return Err(OpError::Invalid(format!("a pool over sizes {x:?}")));
    };
    let pair = |list: &[usize]| [list[0], list[1]];
    Ok(Conv2d {
        n,
        c_in: channels,
        c_out: channels,
        input: [height, width],
        kernel: pair(&win.kernel),
        strides: pair(&win.strides),
        pads: [win.begin[0], win.begin[1], win.end[0], win.end[1]],
        dilations: pair(&win.dilations),
        groups: channels,
    })
}

/// `auto_pad`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AutoPad {
    NotSet,
    SameUpper,
    SameLower,
    Valid,
}

/// The attributes that say how a window slides, with their defaults.
#[derive(Clone, Debug)]
pub(crate) struct WindowAttrs {
    pub(crate) strides: Vec<usize>,
    pub(crate) dilations: Vec<usize>,
    pub(crate) begin: Vec<usize>,
    pub(crate) end: Vec<usize>,
    pub(crate) auto_pad: AutoPad,
    /// `ceil_mode`: the last window may reach past the padded input.
    pub(crate) ceil: bool,
}

/// A window over an input of known sizes: one entry per spatial dimension in every list.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) input: Vec<usize>,
    pub(crate) kernel: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    pub(crate) dilations: Vec<usize>,
    /// Padding before and after.
    pub(crate) begin: Vec<usize>,
    pub(crate) end: Vec<usize>,
    /// Sizes of the output.
    pub(crate) out: Vec<usize>,
}

impl WindowAttrs {
    /// Reads the attributes for `rank` spatial dimensions.
    pub(crate) fn read(node: &Node, rank: usize) -> Result<Self, OpError> {
        let list = |name: &'static str, n: usize, default: usize| -> Result<Vec<usize>, OpError> {
            let list = attr::sizes(node, name)?
                .filter(|l| !l.is_empty())
                .unwrap_or_else(|| vec![default; n]);
            if list.len() != n {
                return Err(OpError::Invalid(format!(
                    "`{name}` has {} elements, not {n}",
                    list.len()
                )));
            }
            Ok(list)
        };
        let mut begin = list("pads", 2 * rank, 0)?;
        let end = begin.split_off(rank);
        let (strides, dilations) = (list("strides", rank, 1)?, list("dilations", rank, 1)?);
        if strides.iter().chain(&dilations).any(|&s| s == 0) {
            return Err(OpError::Invalid("a stride or dilation is 0".to_owned()));
        }
        let auto_pad = match attr::string(node, "auto_pad", "NOTSET")? {
            "NOTSET" | "" => AutoPad::NotSet,
            "SAME_UPPER" => AutoPad::SameUpper,
            "SAME_LOWER" => AutoPad::SameLower,
            "VALID" => AutoPad::Valid,
            other => return Err(OpError::Invalid(format!("`auto_pad` is `{other}`"))),
        };
        Ok(Self {
            strides,
            dilations,
            begin,
            end,
            auto_pad,
            ceil: attr::flag(node, "ceil_mode", false)?,
        })
    }

    /// The window over an input of the given spatial sizes.
    pub(crate) fn over(&self, input: &[usize], kernel: &[usize]) -> Result<Window, OpError> {
        let rank = input.len();
        let (mut begin, mut end, mut out) = (self.begin.clone(), self.end.clone(), vec![0; rank]);
        for d in 0..rank {
            let reach = reach(kernel[d], self.dilations[d])?;
            let (size, stride) = (input[d], self.strides[d]);
            match self.auto_pad {
                AutoPad::SameUpper | AutoPad::SameLower => {
                    out[d] = size.div_ceil(stride);
                    let total = (out[d].saturating_sub(1) * stride + reach).saturating_sub(size);
                    begin[d] = if self.auto_pad == AutoPad::SameUpper {
                        total / 2
                    } else {
                        total - total / 2
                    };
                    end[d] = total - begin[d];
                    continue;
                }
                AutoPad::Valid => (begin[d], end[d]) = (0, 0),
                AutoPad::NotSet => {}
            }
            let padded = size + begin[d] + end[d];
            let room = padded.checked_sub(reach).ok_or_else(|| {
                OpError::Invalid(format!(
                    "the window of {reach} is larger than the padded input of {padded}"
                ))
            })?;
            out[d] = if self.ceil { room.div_ceil(stride) } else { room / stride } + 1;
            // A window must not begin in the padding behind the input.
            if self.ceil && size + begin[d] <= (out[d] - 1) * stride {
                out[d] -= 1;
            }
        }
        Ok(Window {
            input: input.to_vec(),
            kernel: kernel.to_vec(),
            strides: self.strides.clone(),
            dilations: self.dilations.clone(),
            begin,
            end,
            out,
        })
    }

    /// The output's spatial sizes, as far as they follow from the input's.
    pub(crate) fn infer(&self, input: &[SymDim], kernel: &[usize]) -> Result<Vec<SymDim>, OpError> {
        let mut out = Vec::with_capacity(input.len());
        for (d, size) in input.iter().enumerate() {
            let stride = SymDim::known(self.strides[d] as i64);
            if let Some(n) = size.as_known().and_then(|n| usize::try_from(n).ok()) {
                let one = Self {
                    strides: vec![self.strides[d]],
                    dilations: vec![self.dilations[d]],
                    begin: vec![self.begin[d]],
                    end: vec![self.end[d]],
                    ..*self
                };
                out.push(SymDim::known(one.over(&[n], &kernel[d..=d])?.out[0] as i64));
                continue;
            }
            let ceil_div =
                |x: &SymDim| x.add(&SymDim::known(self.strides[d] as i64 - 1)).div(&stride);
            let reach = reach(kernel[d], self.dilations[d])? as i64;
            out.push(match self.auto_pad {
                AutoPad::SameUpper | AutoPad::SameLower => ceil_div(size),
                _ => {
                    let pads = match self.auto_pad {
                        AutoPad::Valid => 0,
                        _ => (self.begin[d] + self.end[d]) as i64,
                    };
                    let room = size.add(&SymDim::known(pads - reach));
                    match self.ceil {
                        // Whether the last window is dropped depends on the size.
                        true if self.strides[d] != 1 => SymDim::Unknown,
                        _ => room.div(&stride).add(&SymDim::known(1)),
                    }
                }
            });
        }
        Ok(out)
    }
}

/// Input elements from a window's first to its last.
fn reach(kernel: usize, dilation: usize) -> Result<usize, OpError> {
    match kernel.checked_sub(1).and_then(|k| k.checked_mul(dilation)) {
        Some(n) => Ok(n + 1),
        None => Err(OpError::Invalid("a kernel's size is 0".to_owned())),
    }
}

impl Window {
    /// The same window with size-1 dimensions in front, so that it has three.
    pub(crate) fn to_3d(&self) -> Result<Self, OpError> {
        let lead = 3_usize.checked_sub(self.input.len()).ok_or_else(|| {
            OpError::Unsupported(format!("a window over {} dimensions", self.input.len()))
        })?;
        let pad = |list: &[usize], with: usize| [vec![with; lead], list.to_vec()].concat();
        Ok(Self {
            input: pad(&self.input, 1),
            kernel: pad(&self.kernel, 1),
            strides: pad(&self.strides, 1),
            dilations: pad(&self.dilations, 1),
            begin: pad(&self.begin, 0),
            end: pad(&self.end, 0),
            out: pad(&self.out, 1),
        })
    }

    /// The kernel positions `k` of dimension `d` for which output `o` reads inside the input, as a range, and the
    /// input position of the first.
    pub(crate) fn taps(&self, d: usize, o: usize) -> (std::ops::Range<usize>, usize) {
        let (start, dilation) = (o * self.strides[d], self.dilations[d]);
        let first = self.begin[d].saturating_sub(start).div_ceil(dilation);
        let last = (self.input[d] + self.begin[d])
            .saturating_sub(start)
            .div_ceil(dilation)
            .min(self.kernel[d]);
        let first = first.min(last);
        (first..last, (start + first * dilation).saturating_sub(self.begin[d]))
    }

    /// The outputs `o` of dimension `d` for which kernel position `k` reads inside the input, as a range, and the
    /// input position that the first reads.
    pub(crate) fn reach_of(&self, d: usize, k: usize) -> (std::ops::Range<usize>, usize) {
        let (shift, stride) = (k * self.dilations[d], self.strides[d]);
        let first = self.begin[d].saturating_sub(shift).div_ceil(stride);
        let last =
            (self.input[d] + self.begin[d]).saturating_sub(shift).div_ceil(stride).min(self.out[d]);
        let first = first.min(last);
        (first..last, (first * stride + shift).saturating_sub(self.begin[d]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_and_reach_are_the_positions_inside_the_input() {
        for (input, kernel, stride, dilation, begin, end) in [
            (7, 3, 2, 1, 1, 1),
            (5, 3, 1, 2, 2, 2),
            (4, 5, 3, 1, 2, 4),
            (1, 1, 1, 1, 0, 0),
            (3, 2, 2, 3, 3, 0),
        ] {
            let attrs = WindowAttrs {
                strides: vec![stride],
                dilations: vec![dilation],
                begin: vec![begin],
                end: vec![end],
                auto_pad: AutoPad::NotSet,
                ceil: false,
            };
            let w = attrs.over(&[input], &[kernel]).unwrap();
            let at = |o: usize, k: usize| {
                (o * stride + k * dilation).checked_sub(begin).filter(|&i| i < input)
            };
            for o in 0..w.out[0] {
                let (range, first) = w.taps(0, o);
                for k in 0..kernel {
                    assert_eq!(range.contains(&k), at(o, k).is_some(), "{w:?} o {o} k {k}");
                }
                assert!(range.is_empty() || at(o, range.start) == Some(first));
            }
            for k in 0..kernel {
                let (range, first) = w.reach_of(0, k);
                for o in 0..w.out[0] {
                    assert_eq!(range.contains(&o), at(o, k).is_some(), "{w:?} o {o} k {k}");
                }
                assert!(range.is_empty() || at(range.start, k) == Some(first));
            }
        }
    }
}
