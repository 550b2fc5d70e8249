//! Which elements of a tensor share a scale and a zero point.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroUsize;
use core::ops::Range;

/// How parameters are shared, as ONNX `QuantizeLinear` distinguishes it.
///
/// Axes are counted from 0 and not from the end: negative axes are resolved where a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// One pair for the whole tensor.
    PerTensor,
    /// A pair for each index along `axis`.
    PerAxis {
        /// The dimension that the parameters run along.
        axis: usize,
    },
    /// A pair for each `block_size` neighbors along `axis`, for every index of the other
    /// dimensions. The last block may be shorter. Others call `block_size` the group size.
    Blocked {
        /// The dimension that is cut into blocks.
        axis: usize,
        /// Elements that share a pair.
        block_size: NonZeroUsize,
    },
}

impl Granularity {
    /// The dimension that the parameters run along, if they do.
    pub fn axis(self) -> Option<usize> {
        match self {
            Self::PerTensor => None,
            Self::PerAxis { axis } | Self::Blocked { axis, .. } => Some(axis),
        }
    }

    /// Where the parameters of a tensor of this shape belong.
    ///
    /// Refuses an axis that the shape does not have.
    pub fn layout(self, shape: &[usize]) -> Result<Layout, GranularityError> {
        let Some(axis) = self.axis() else {
            let inner = shape.iter().product();
            return Ok(Layout { outer: 1, len: 1, inner, block: Block::Axis });
        };
        if shape.len() <= axis {
            return Err(GranularityError { axis, rank: shape.len() });
        }
        let block = match self {
            Self::Blocked { block_size, .. } => Block::Of(block_size),
            _ => Block::Axis,
        };
        Ok(Layout {
            outer: shape[..axis].iter().product(),
            len: shape[axis],
            inner: shape[axis + 1..].iter().product(),
            block,
        })
    }

    /// The shape of ONNX's `y_scale`: `[]`, `[D]`, or `shape` with `ceil(D / block_size)` along the axis.
    pub fn params_shape(self, shape: &[usize]) -> Result<Vec<usize>, GranularityError> {
        self.layout(shape)?;
        Ok(match self {
            Self::PerTensor => Vec::new(),
            Self::PerAxis { axis } => vec![shape[axis]],
            Self::Blocked { axis, block_size } => {
                let mut params_shape = shape.to_vec();
                params_shape[axis] = shape[axis].div_ceil(block_size.get());
                params_shape
            }
        })
    }
}

/// An axis that the tensor does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GranularityError {
    /// The axis asked for.
    pub axis: usize,
    /// The number of dimensions there are.
    pub rank: usize,
}

impl fmt::Display for GranularityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "axis {} of a tensor with {} dimensions", self.axis, self.rank)
    }
}

impl core::error::Error for GranularityError {}

/// A [`Granularity`] on a shape: index arithmetic between elements and parameters, both in row-major order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Product of the dimensions before the axis.
    outer: usize,
    /// Length of the axis.
    len: usize,
    /// Product of the dimensions after it.
    inner: usize,
    block: Block,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    /// The parameters run along the axis only.
    Axis,
    /// The parameters have the tensor's rank.
    Of(NonZeroUsize),
}

/// Neighboring elements and the parameters they use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The elements.
    pub elements: Range<usize>,
    /// Their parameters.
    pub params: RunParams,
}

/// The parameters of a [`Run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunParams {
    /// All elements use this one.
    One(usize),
    /// The first element uses this one, the next the next, and so on.
    Each(usize),
}

impl Layout {
    /// Elements of the tensor.
    pub fn n_elements(self) -> usize {
        self.outer * self.len * self.inner
    }

    /// Scales, and zero points, of the tensor.
    pub fn n_params(self) -> usize {
        match self.block {
            Block::Axis => self.len,
            Block::Of(block_size) => self.outer * self.len.div_ceil(block_size.get()) * self.inner,
        }
    }

    /// Which parameter element `i` uses.
    ///
    /// # Panics
    ///
    /// When the tensor has no elements. The answer means nothing when it has no element `i`.
    pub fn param_of(self, i: usize) -> usize {
        let along = i / self.inner % self.len;
        match self.block {
            Block::Axis => along,
            Block::Of(block_size) => {
                let n_blocks = self.len.div_ceil(block_size.get());
                let before = i / self.inner / self.len;
                (before * n_blocks + along / block_size) * self.inner + i % self.inner
            }
        }
    }

    /// The tensor's elements in order, in the longest runs for which the parameters are simply told.
    pub fn runs(self) -> impl Iterator<Item = Run> {
        let Self { outer, len, inner, block } = self;
        // How many indices along the axis a run covers. Blocks of the last dimension are contiguous.
        let step = match block {
            Block::Of(block_size) if inner == 1 => block_size.get(),
            _ => 1,
        };
        let per_outer = if inner == 0 { 0 } else { len.div_ceil(step) };
        (0..outer * per_outer).map(move |run_idx| {
            let (before, nth) = (run_idx / per_outer, run_idx % per_outer);
            let along = nth * step;
            let start = (before * len + along) * inner;
            let end = start + step.min(len - along) * inner;
            let params = match block {
                Block::Axis => RunParams::One(along),
                Block::Of(_) if inner == 1 => RunParams::One(before * per_outer + nth),
                Block::Of(block_size) => {
                    let n_blocks = len.div_ceil(block_size.get());
                    RunParams::Each((before * n_blocks + along / block_size) * inner)
                }
            };
            Run { elements: start..end, params }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPES: &[&[usize]] =
        &[&[], &[1], &[7], &[4, 6], &[2, 3, 5], &[3, 1, 4, 2], &[0], &[3, 0], &[0, 3], &[2, 0, 3]];

    fn granularities(rank: usize) -> Vec<Granularity> {
        let mut all = vec![Granularity::PerTensor];
        for axis in 0..rank {
            all.push(Granularity::PerAxis { axis });
            for block_size in [1, 2, 3, 4, 100] {
                let block_size = NonZeroUsize::new(block_size).unwrap();
                all.push(Granularity::Blocked { axis, block_size });
            }
        }
        all
    }

    /// The parameter of the element at `index`, from ONNX's own words.
    fn by_index(granularity: Granularity, shape: &[usize], index: &[usize]) -> usize {
        let params_shape = granularity.params_shape(shape).unwrap();
        let param_index: Vec<usize> = match granularity {
            Granularity::PerTensor => vec![],
            Granularity::PerAxis { axis } => vec![index[axis]],
            Granularity::Blocked { axis, block_size } => {
                let mut param_index = index.to_vec();
                param_index[axis] /= block_size.get();
                param_index
            }
        };
        param_index.iter().zip(&params_shape).fold(0, |flat, (i, d)| flat * d + i)
    }

    #[test]
    fn every_element_finds_its_parameter_both_ways() {
        for shape in SHAPES {
            let n_elements: usize = shape.iter().product();
            for granularity in granularities(shape.len()) {
                let layout = granularity.layout(shape).unwrap();
                let n_params: usize = granularity.params_shape(shape).unwrap().iter().product();
                assert_eq!(layout.n_elements(), n_elements, "{granularity:?} of {shape:?}");
                assert_eq!(layout.n_params(), n_params, "{granularity:?} of {shape:?}");

                let want: Vec<usize> = (0..n_elements)
                    .map(|i| {
                        let mut rest = i;
                        let mut index: Vec<usize> = shape
                            .iter()
                            .rev()
                            .map(|d| {
                                let along = rest % d;
                                rest /= d;
                                along
                            })
                            .collect();
                        index.reverse();
                        by_index(granularity, shape, &index)
                    })
                    .collect();
                let one_by_one: Vec<usize> = (0..n_elements).map(|i| layout.param_of(i)).collect();
                assert_eq!(one_by_one, want, "{granularity:?} of {shape:?}");

                let mut by_runs = Vec::new();
                for run in layout.runs() {
                    assert_eq!(run.elements.start, by_runs.len(), "runs are in order");
                    assert!(!run.elements.is_empty());
                    by_runs.extend((0..run.elements.len()).map(|k| match run.params {
                        RunParams::One(param) => param,
                        RunParams::Each(first) => first + k,
                    }));
                }
                assert_eq!(by_runs, want, "{granularity:?} of {shape:?}");
            }
        }
    }

    #[test]
    fn an_axis_that_is_not_there_is_refused() {
        let refused = Granularity::PerAxis { axis: 2 }.layout(&[4, 6]);
        assert_eq!(refused, Err(GranularityError { axis: 2, rank: 2 }));
    }
}
