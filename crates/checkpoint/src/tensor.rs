//! What files hold, and what will be written.

use midtread_num::formats::Shape;

use crate::dtype::DType;

/// A tensor as a file has it.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its sizes, the last the one whose elements are neighbors.
    pub dims: Vec<u64>,
    /// Its type.
    pub dtype: &'static DType,
    /// Which of the checkpoint's files.
    pub(crate) file: usize,
    /// From the file's start.
    pub(crate) offset: u64,
    /// Bytes of its data.
    pub n_bytes: u64,
}

/// A tensor that will be written.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) dtype: &'static DType,
    pub(crate) n_bytes: u64,
}

/// The product of sizes, if it and every partial one are addressable.
pub(crate) fn n_elements(dims: &[u64]) -> Option<u64> {
    let n = dims.iter().try_fold(1_u64, |n, dim| n.checked_mul(*dim))?;
    (n <= i64::MAX as u64).then_some(n)
}

/// Last dimensions below this are those of a convolution's kernel.
const MIN_COLS: u64 = 32;

/// The rows of a tensor: runs of its last dimension. Of a tensor with three dimensions and more whose last is short, a
/// convolution's kernel, all that belongs to one index of the first, an output channel.
pub fn rows(dims: &[u64]) -> Shape {
    let n = dims.iter().product::<u64>() as usize;
    let cols = match dims {
        [] => 1,
        [_, .., last] if dims.len() < 3 || MIN_COLS <= *last => *last as usize,
        [first, rest @ ..] if !rest.is_empty() && *first != 0 => n / *first as usize,
        [.., last] => *last as usize,
    };
    Shape { rows: n.checked_div(cols).unwrap_or(0), cols }
}

/// The rows that ggml sees: always the last dimension.
pub(crate) fn ggml_rows(dims: &[u64]) -> Shape {
    let n = dims.iter().product::<u64>() as usize;
    let cols = dims.last().copied().unwrap_or(1) as usize;
    Shape { rows: n.checked_div(cols).unwrap_or(0), cols }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_last_dimension_and_of_a_convolution_an_output_channel() {
        for (dims, want) in [
            (&[][..], (1, 1)),
            (&[5], (1, 5)),
            (&[0], (0, 0)),
            (&[3, 4], (3, 4)),
            (&[0, 4], (0, 4)),
            (&[3, 0], (0, 0)),
            (&[8, 3, 7, 7], (8, 147)),
            (&[8, 256, 64], (2048, 64)),
            (&[8, 256, 3], (8, 768)),
        ] {
            let shape = rows(dims);
            assert_eq!((shape.rows, shape.cols), want, "{dims:?}");
        }
        assert_eq!(n_elements(&[1 << 40, 1 << 40]), None);
        assert_eq!(n_elements(&[u64::MAX]), None);
    }
}
