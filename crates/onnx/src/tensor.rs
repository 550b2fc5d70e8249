//! `TensorProto`: the many ways in which ONNX stores elements, and the one that midtread keeps.

use midtread_graph::{AlignedBuf, DataType, Notes, Tensor, TensorError, tensor::n_elements};

use crate::{
    error::{Problem, TensorProblem},
    external::{Files, Location},
    proto::TensorProto,
};

/// Where a tensor's name goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// The value of an initializer has it.
    OfValue,
    /// Nothing else has it.
    InNotes,
}

/// The tensor, sharing the bytes of `raw_data` or of the file with external data.
pub(crate) fn decode(
    mut proto: TensorProto,
    naming: Naming,
    files: &mut Files,
) -> Result<Tensor, Problem> {
    let name = proto.name.take().unwrap_or_default();
    let metadata = crate::decode::pairs(std::mem::take(&mut proto.metadata_props));
    let doc_string = proto.doc_string.take().unwrap_or_default();
    let tensor = elements(proto, files)
        .map_err(|source| Problem::Tensor { tensor: name.clone(), source })?;
    let name = if naming == Naming::InNotes { name } else { String::new() };
    Ok(tensor.with_notes(Notes { name, doc_string, metadata }))
}

/// Sizes, which a file gives as signed numbers.
pub(crate) fn dims(dims: &[i64]) -> Result<Vec<usize>, TensorProblem> {
    dims.iter().map(|&d| usize::try_from(d).map_err(|_| TensorProblem::Dim(d))).collect()
}

fn elements(proto: TensorProto, files: &mut Files) -> Result<Tensor, TensorProblem> {
    let number = proto.data_type.unwrap_or(0);
    let dtype = DataType::from_onnx(number).ok_or(TensorProblem::DataType(number))?;
    let dims = dims(&proto.dims)?;
    let n = n_elements(&dims)?;
    if proto.segment.is_some() {
        return Err(TensorProblem::Segment);
    }
    let Some(n_bits) = dtype.n_bits() else {
        return strings(proto, dims, n);
    };
    let n_bytes = dtype.n_bytes(n).ok_or_else(|| TensorError::TooLarge { dims: dims.clone() })?;

    if proto.data_location == Some(1) {
        let at = location(&proto)?;
        return files.external(&at, dtype, dims, n_bytes);
    }
    let typed = typed_len(&proto, dtype);
    match proto.raw_data {
        Some(raw) if typed.1 == 0 || !raw.is_empty() => {
            return Ok(files.inline(dtype, dims, raw)?);
        }
        _ if typed.1 == 0 && 0 < n => return Err(TensorProblem::NoData(n)),
        _ => {}
    }
    // Entries that the type and the sizes call for: complex numbers take two, packed types share one.
    let needed = match dtype {
        DataType::Complex64 | DataType::Complex128 => n.checked_mul(2),
        _ if n_bits < 8 && n_bits != 6 => Some(n_bytes),
        _ => Some(n),
    };
    let (field, got) = typed;
    if needed != Some(got) {
        return Err(TensorProblem::Count { field, needed: needed.unwrap_or(usize::MAX), got });
    }

    let ints = &proto.int32_data;
    let buf = match dtype {
        DataType::Float | DataType::Complex64 => copy(&proto.float_data),
        DataType::Double | DataType::Complex128 => copy(&proto.double_data),
        DataType::Int64 => copy(&proto.int64_data),
        DataType::Uint64 => copy(&proto.uint64_data),
        DataType::Int32 => copy(ints),
        // The low bits, as everyone reads them: numbers that do not fit wrap around.
        DataType::Uint32 => narrow(&proto.uint64_data, |&x| (x as u32).to_le_bytes()),
        DataType::Bool => narrow(ints, |&x| [u8::from(x != 0)]),
        _ if n_bits == 6 => six_bits(ints),
        _ if n_bits <= 8 => narrow(ints, |&x| [x as u8]),
        _ => narrow(ints, |&x| (x as u16).to_le_bytes()),
    };
    Ok(Tensor::from_buf(dtype, dims, buf)?)
}

/// Name and length of the typed field that holds elements of `dtype`.
fn typed_len(proto: &TensorProto, dtype: DataType) -> (&'static str, usize) {
    match dtype {
        DataType::Float | DataType::Complex64 => ("float_data", proto.float_data.len()),
        DataType::Double | DataType::Complex128 => ("double_data", proto.double_data.len()),
        DataType::Int64 => ("int64_data", proto.int64_data.len()),
        DataType::Uint32 | DataType::Uint64 => ("uint64_data", proto.uint64_data.len()),
        DataType::String => ("string_data", proto.string_data.len()),
        _ => ("int32_data", proto.int32_data.len()),
    }
}

fn strings(proto: TensorProto, dims: Vec<usize>, needed: usize) -> Result<Tensor, TensorProblem> {
    let got = proto.string_data.len();
    if got == 0 && 0 < needed {
        return Err(TensorProblem::NoData(needed));
    }
    if got != needed {
        return Err(TensorProblem::Count { field: "string_data", needed, got });
    }
    Ok(Tensor::from_strings(dims, proto.string_data)?)
}

fn copy<T: bytemuck::Pod>(entries: &[T]) -> AlignedBuf {
    AlignedBuf::from_bytes(bytemuck::cast_slice(entries))
}

fn narrow<T, const N: usize>(entries: &[T], bytes: impl Fn(&T) -> [u8; N]) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(entries.len() * N);
    for (to, entry) in buf.as_bytes_mut().chunks_exact_mut(N).zip(entries) {
        to.copy_from_slice(&bytes(entry));
    }
    buf
}

/// Four elements in three bytes, the first in the lowest bits.
fn six_bits(entries: &[i32]) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed((entries.len() * 6).div_ceil(8));
    for (to, group) in buf.as_bytes_mut().chunks_mut(3).zip(entries.chunks(4)) {
        let bits =
            group.iter().enumerate().fold(0, |bits, (i, &x)| bits | (x as u32 & 0x3f) << (6 * i));
        to.copy_from_slice(&bits.to_le_bytes()[..to.len()]);
    }
    buf
}

fn location(proto: &TensorProto) -> Result<Location, TensorProblem> {
    let mut at = Location::default();
    let mut numbers = Vec::new();
    for entry in &proto.external_data {
        match (entry.key(), entry.value()) {
            ("location", value) => at.location = value.to_owned(),
            (key @ ("offset" | "length"), value) => numbers.push((key, value)),
            // "checksum" (of the whole file, which nobody checks) and keys of single programs.
            _ => {}
        }
    }
    for (key, value) in numbers {
        let Ok(number) = value.parse() else {
            let what = format!("{key} `{value}` is not a number");
            return Err(TensorProblem::External { location: at.location, what });
        };
        if key == "offset" {
            at.offset = number;
        } else {
            at.length = Some(number);
        }
    }
    Ok(at)
}
