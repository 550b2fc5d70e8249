//! Named tensors in NumPy's `.npz` (an uncompressed zip of `.npy`), to talk to the oracle.

use std::{fs, path::Path};

use midtread_graph::{DataType, Tensor};

/// NumPy's names of the element types that the oracle gives and takes.
const TYPES: &[(DataType, &str)] = &[
    (DataType::Float, "<f4"),
    (DataType::Double, "<f8"),
    (DataType::Float16, "<f2"),
    (DataType::Int8, "|i1"),
    (DataType::Uint8, "|u1"),
    (DataType::Int16, "<i2"),
    (DataType::Uint16, "<u2"),
    (DataType::Int32, "<i4"),
    (DataType::Uint32, "<u4"),
    (DataType::Int64, "<i8"),
    (DataType::Uint64, "<u8"),
    (DataType::Bool, "|b1"),
];

/// Writes tensors under their names.
///
/// # Panics
///
/// When the file cannot be written, or a type has no NumPy name.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, tensor) in tensors {
        let (name, data) = (format!("{name}.npy"), npy(tensor));
        let offset = file.len() as u32;
        let mut common = Vec::new();
        common.extend([20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0]);
        common.extend(crc32(&data).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        file.extend(b"PK\x03\x04");
        file.extend(&common);
        file.extend(name.as_bytes());
        file.extend(data);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, n) = (file.len() as u32, tensors.len() as u16);
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend(n.to_le_bytes());
    file.extend(n.to_le_bytes());
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    fs::write(path, file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Reads every tensor, in the file's order.
///
/// # Panics
///
/// When the file is not what `numpy.savez` writes.
pub fn read(path: &Path) -> Vec<(String, Tensor)> {
    let file = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let u16_at = |at: usize| usize::from(u16::from_le_bytes([file[at], file[at + 1]]));
    let u32_at =
        |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("four bytes")) as usize;
    let end = (0..=file.len() - 22)
        .rev()
        .find(|&i| file[i..].starts_with(b"PK\x05\x06"))
        .expect("a zip file");
    let (n, mut at) = (u16_at(end + 10), u32_at(end + 16));
    (0..n)
        .map(|_| {
            assert!(
                file[at..].starts_with(b"PK\x01\x02") && u16_at(at + 10) == 0,
                "an uncompressed entry"
            );
            let (size, name_len, local) = (u32_at(at + 24), u16_at(at + 28), u32_at(at + 42));
            let name = std::str::from_utf8(&file[at + 46..at + 46 + name_len]).expect("a name");
            at += 46 + name_len + u16_at(at + 30) + u16_at(at + 32);
            let data = local + 30 + u16_at(local + 26) + u16_at(local + 28);
            let tensor = from_npy(&file[data..data + size]);
            (name.strip_suffix(".npy").unwrap_or(name).to_owned(), tensor)
        })
        .collect()
}

/// A tensor from an `.npy` file in C order.
///
/// # Panics
///
/// When it is none.
pub fn from_npy(npy: &[u8]) -> Tensor {
    assert!(npy.starts_with(b"\x93NUMPY"), "an .npy file");
    let (len, start) = match npy[6] {
        1 => (usize::from(u16::from_le_bytes([npy[8], npy[9]])), 10),
        _ => (u32::from_le_bytes(npy[8..12].try_into().expect("four bytes")) as usize, 12),
    };
    let header = std::str::from_utf8(&npy[start..start + len]).expect("a header");
    let after = |key: &str| &header[header.find(key).expect("a key") + key.len()..];
    assert!(after("'fortran_order':").trim_start().starts_with("False"), "C order");
    let descr = after("'descr':").trim_start().trim_start_matches('\'');
    let (dtype, _) = TYPES.iter().find(|(_, name)| descr.starts_with(name)).expect("a known type");
    let shape = after("'shape':").trim_start().trim_start_matches('(');
    let shape = &shape[..shape.find(')').expect("a tuple")];
    let dims = shape.split(',').map(str::trim).filter(|d| !d.is_empty());
    let dims = dims.map(|d| d.parse().expect("a size")).collect();
    let data = npy[start + len..].to_vec();
    Tensor::from_bytes(*dtype, dims, data.into()).expect("as many bytes as the shape says")
}

fn npy(tensor: &Tensor) -> Vec<u8> {
    let (_, descr) =
        TYPES.iter().find(|(d, _)| *d == tensor.dtype()).expect("a type with a NumPy name");
    let dims: String = tensor.dims().iter().map(|d| format!("{d},")).collect();
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    // The data begins at a multiple of 64; the header ends with a new line.
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 10;
    let mut npy = b"\x93NUMPY\x01\x00".to_vec();
    npy.extend((padded as u16).to_le_bytes());
    npy.extend(format!("{header:<width$}\n", width = padded - 1).as_bytes());
    npy.extend(tensor.as_bytes());
    npy
}

fn crc32(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |mut crc, &byte| {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { 0xEDB8_8320 ^ (crc >> 1) } else { crc >> 1 };
        }
        crc
    });
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let tensors = [
            ("a".to_owned(), Tensor::from_slice(vec![2, 1], &[1.5_f32, -2.0]).unwrap()),
            ("b/c".to_owned(), Tensor::scalar(7_i64)),
            ("e".to_owned(), Tensor::vector::<u8>(&[])),
        ];
        let path = std::env::temp_dir().join(format!("midtread-npz-{}.npz", std::process::id()));
        write(&path, &tensors);
        assert_eq!(read(&path), tensors);
        fs::remove_file(&path).unwrap();
        // CRC-32 of "123456789", by which implementations are told apart.
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }
}
