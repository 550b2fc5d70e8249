//! Images with their channels last, and as ONNX stores them.

use midtread_graph::{DataType, Tensor};
use midtread_kernels::transpose::transpose;
use midtread_ops::{OpError, Pool};

/// A value while the program runs.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    /// As ONNX stores it.
    Plain(Tensor),
    /// 8-bit codes whose sizes are (image, row, column, channel).
    ChannelsLast(Tensor),
}

impl Held {
    /// As ONNX stores it.
    pub(crate) fn into_plain(self, pool: &Pool) -> Result<Tensor, OpError> {
        match self {
            Self::Plain(tensor) => Ok(tensor),
            Self::ChannelsLast(tensor) => permuted(tensor, [0, 3, 1, 2], pool),
        }
    }

    /// With the channels of an image last. `tensor` is (image, channel, row, column) otherwise.
    pub(crate) fn into_channels_last(self, pool: &Pool) -> Result<Tensor, OpError> {
        match self {
            Self::Plain(tensor) => permuted(tensor, [0, 2, 3, 1], pool),
            Self::ChannelsLast(tensor) => Ok(tensor),
        }
    }

    /// The element type.
    pub(crate) fn dtype(&self) -> DataType {
        match self {
            Self::Plain(tensor) | Self::ChannelsLast(tensor) => tensor.dtype(),
        }
    }

    /// The sizes as ONNX has them.
    pub(crate) fn dims(&self) -> Vec<usize> {
        match self {
            Self::Plain(tensor) => tensor.dims().to_vec(),
            Self::ChannelsLast(tensor) => [0, 3, 1, 2].iter().map(|&d| tensor.dims()[d]).collect(),
        }
    }
}

fn permuted(tensor: Tensor, perm: [usize; 4], pool: &Pool) -> Result<Tensor, OpError> {
    let dims = tensor.dims();
    if dims.len() != 4 || tensor.dtype().n_bytes(1) != Some(1) {
        return Err(OpError::Invalid(format!("sizes {dims:?} where an image of codes is needed")));
    }
    let new_dims: Vec<usize> = perm.iter().map(|&d| dims[d]).collect();
    // With one channel, or one pixel, nothing moves.
    let moving: Vec<usize> = perm.into_iter().filter(|&d| dims[d] != 1).collect();
    if moving.is_sorted() {
        return Ok(tensor.reshaped(new_dims)?);
    }
    let mut out = pool.tensor(tensor.dtype(), new_dims)?;
    transpose(tensor.as_bytes(), dims, &perm, out.bytes_mut());
    Ok(out)
}
