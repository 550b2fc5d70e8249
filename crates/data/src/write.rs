//! Arrays for NumPy.

use std::{
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use midtread_graph::{DataType, Tensor};

use crate::error::Error;

/// Writes a tensor to `NAME.npy` in `folder`, which is made if there is none, and returns the file's path. Characters
/// that file names cannot have become `_`; bfloat16 becomes float32, which holds each of its values. The file is
/// written under another name and renamed.
pub fn write_npy(folder: &Path, name: &str, tensor: &Tensor) -> Result<PathBuf, Error> {
    let file_name: String = name
        .chars()
        .map(|c| if c.is_control() || "/\\:*?\"<>|".contains(c) { '_' } else { c })
        .collect();
    let path = folder.join(format!("{file_name}.npy"));
    let descr = match tensor.dtype() {
        DataType::Float | DataType::Bfloat16 => "<f4",
        DataType::Double => "<f8",
        DataType::Float16 => "<f2",
        DataType::Int8 => "|i1",
        DataType::Int16 => "<i2",
        DataType::Int32 => "<i4",
        DataType::Int64 => "<i8",
        DataType::Uint8 => "|u1",
        DataType::Uint16 => "<u2",
        DataType::Uint32 => "<u4",
        DataType::Uint64 => "<u8",
        DataType::Bool => "|b1",
        DataType::Complex64 => "<c8",
        DataType::Complex128 => "<c16",
        dtype => return Err(Error::NoNumpyType { name: name.to_owned(), dtype }),
    };
    // A tuple of one has a comma after it.
    let dims: String = tensor.dims().iter().map(|d| format!("{d}, ")).collect();
    let dims = if tensor.dims().len() == 1 { dims.trim_end() } else { dims.trim_end_matches(", ") };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    // Ten bytes come before, and the elements begin at a multiple of 64.
    let n = (10 + header.len() + 1).next_multiple_of(64) - 10;
    header.extend(std::iter::repeat_n(' ', n - header.len() - 1));
    header.push('\n');

    let write = || {
        std::fs::create_dir_all(folder)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".").suffix(".partial");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(folder)?;
        let mut out = BufWriter::new(file.as_file_mut());
        // Dozens of sizes make a header longer than 65,535 bytes impossible.
        out.write_all(b"\x93NUMPY\x01\x00")?;
        out.write_all(&u16::try_from(n).map_err(std::io::Error::other)?.to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        if tensor.dtype() == DataType::Bfloat16 {
            for bytes in tensor.as_bytes().chunks_exact(2) {
                out.write_all(&[0, 0, bytes[0], bytes[1]])?;
            }
        } else {
            out.write_all(tensor.as_bytes())?;
        }
        out.flush()?;
        drop(out);
        file.persist(&path).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(|source| Error::Write { path: path.clone(), source })?;
    Ok(path)
}
