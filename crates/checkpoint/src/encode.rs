//! Values to the bytes of a format's parts: by `num`'s definition, or by a kernel that gives the same bytes.

use midtread_num::formats::{Format, FormatError, Matrix, Shape};

/// Encodes rows; `parts` become the bytes of the parts of the format's layout.
pub(crate) fn encode(
    format: &Format<'_>,
    values: &[f32],
    shape: Shape,
    parts: &mut Vec<Vec<u8>>,
) -> Result<(), FormatError> {
    let matrix = Matrix::new(values, shape.cols)?;
    let encoded = format.quantize(&matrix)?;
    *parts = format.pack(&encoded, shape);
    Ok(())
}
