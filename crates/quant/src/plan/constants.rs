//! Parameters from a constant's own values.

use std::borrow::Cow;

use midtread_graph::{DataType, Tensor};
use midtread_num::{Granularity, Layout, QParams, QRange, Symmetry, tensor::params_of};

use crate::{
    error::Error,
    plan::{Params, WeightGranularity},
};

/// The elements of an `f32` constant, or what else it is.
pub fn floats(tensor: &Tensor) -> Result<Cow<'_, [f32]>, DataType> {
    match tensor.as_slice() {
        Ok(values) => Ok(Cow::Borrowed(values)),
        // A mapped file may hold them at any alignment.
        Err(_) if tensor.dtype() == DataType::Float => {
            Ok(Cow::Owned(tensor.to_vec().expect("the type is checked")))
        }
        Err(_) => Err(tensor.dtype()),
    }
}

/// Refuses NaN and infinities, by name and place.
pub fn check_finite(name: &str, values: &[f32]) -> Result<(), Error> {
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(element) => {
            let what = if values[element].is_nan() { "NaN" } else { "an infinity" };
            Err(Error::NotFinite { tensor: name.to_owned(), what, element })
        }
    }
}

impl Params {
    /// Which elements share a pair.
    pub fn granularity(&self) -> Granularity {
        match *self {
            Self::PerTensor(_) => Granularity::PerTensor,
            Self::PerAxis { axis, .. } => Granularity::PerAxis { axis },
            Self::Blocked { axis, block_size, .. } => Granularity::Blocked { axis, block_size },
        }
    }

    /// From pairs in order; `None` if a per-tensor set has not exactly one.
    pub fn from_parts(granularity: Granularity, params: Vec<QParams>) -> Option<Self> {
        Some(match granularity {
            Granularity::PerTensor => match params[..] {
                [one] => Self::PerTensor(one),
                _ => return None,
            },
            Granularity::PerAxis { axis } => Self::PerAxis { axis, params },
            Granularity::Blocked { axis, block_size } => Self::Blocked { axis, block_size, params },
        })
    }

    /// Which parameter belongs to which element of a tensor of these sizes; `None` if they do not fit it.
    pub fn layout(&self, dims: &[usize]) -> Option<Layout> {
        let layout = self.granularity().layout(dims).ok()?;
        (layout.n_params() == self.as_slice().len()).then_some(layout)
    }
}

/// The granularity of a weight whose output channels lie on `channel_axis` (if they lie on one).
///
/// Blocks run along the other dimension of a matrix, the one that is summed over; weights of other ranks have no
/// single such dimension and are quantized per channel instead.
pub fn weight_granularity(
    wanted: WeightGranularity,
    rank: usize,
    channel_axis: Option<usize>,
) -> Granularity {
    match (wanted, channel_axis) {
        (WeightGranularity::PerTensor, _) | (_, None) => Granularity::PerTensor,
        (WeightGranularity::Blocked(block_size), Some(axis)) if rank == 2 => {
            Granularity::Blocked { axis: 1 - axis, block_size }
        }
        (_, Some(axis)) => Granularity::PerAxis { axis },
    }
}

/// Parameters that cover every value of a constant, which must be finite and not empty.
pub fn params_of_constant(
    name: &str,
    values: &[f32],
    dims: &[usize],
    granularity: Granularity,
    range: QRange,
    symmetry: Symmetry,
) -> Result<Params, Error> {
    let layout = granularity
        .layout(dims)
        .expect("axes come from the operator table, checked against the rank");
    let params = params_of(values, layout, range, symmetry)
        .map_err(|err| Error::QParams { tensor: name.to_owned(), source: err.source })?;
    Ok(Params::from_parts(granularity, params).expect("one pair for a whole tensor"))
}
