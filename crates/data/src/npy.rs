//! NumPy's array files: `\x93NUMPY`, a version, and a Python dictionary that says the rest.
//!
//! <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>

use std::io::{self, Read};

use midtread_graph::{AlignedBuf, DataType, Tensor, tensor::n_elements};

/// What comes before the elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) dtype: DataType,
    /// Whether the bytes of an element are in the other order than this machine's.
    swapped: bool,
    /// Whether the first index changes fastest.
    pub(crate) fortran_order: bool,
    pub(crate) dims: Vec<usize>,
    /// Where the elements begin.
    pub(crate) data_at: u64,
}

/// Why a file is no array: the system's reason, or a clause.
#[derive(Debug)]
pub(crate) enum NpyError {
    Io(io::Error),
    Format(String),
}

impl From<io::Error> for NpyError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Format("it ends too early".to_owned()),
            _ => Self::Io(error),
        }
    }
}

impl Header {
    /// Reads up to the elements.
    pub(crate) fn read(from: &mut impl Read) -> Result<Self, NpyError> {
        let bad = |what: &str| NpyError::Format(what.to_owned());
        let mut start = [0; 8];
        from.read_exact(&mut start)?;
        if start[..6] != *b"\x93NUMPY" {
            return Err(bad("it is not a .npy file"));
        }
        let (n, n_bytes) = match start[6] {
            1 => {
                let mut n = [0; 2];
                from.read_exact(&mut n)?;
                (usize::from(u16::from_le_bytes(n)), 2)
            }
            2 | 3 => {
                let mut n = [0; 4];
                from.read_exact(&mut n)?;
                (u32::from_le_bytes(n) as usize, 4)
            }
            version => {
                return Err(NpyError::Format(format!(
                    "version {version} of the .npy format is not known"
                )));
            }
        };
        if 1 << 20 < n {
            return Err(bad("its header is longer than 1 MiB"));
        }
        let mut text = vec![0; n];
        from.read_exact(&mut text)?;
        let text = String::from_utf8(text).map_err(|_| bad("its header is not text"))?;
        let header = Self::parse(&text, 8 + n_bytes + n as u64).map_err(NpyError::Format)?;
        if header.n_bytes().is_none() {
            return Err(NpyError::Format(format!(
                "{:?} has more elements than can be addressed",
                header.dims
            )));
        }
        Ok(header)
    }

    fn parse(text: &str, data_at: u64) -> Result<Self, String> {
        let after = |key: &str| {
            let at = text
                .find(&format!("'{key}'"))
                .ok_or_else(|| format!("its header has no `{key}`"))?;
            let rest = text[at + key.len() + 2..].trim_start();
            rest.strip_prefix(':')
                .map(str::trim_start)
                .ok_or_else(|| format!("`{key}` has no value"))
        };
        let descr = after("descr")?;
        let Some(descr) = descr.strip_prefix('\'').and_then(|d| d.split_once('\'')).map(|(d, _)| d)
        else {
            return Err("arrays of records are not supported".to_owned());
        };
        let mut chars = descr.chars();
        let (order, kind) = (chars.next().unwrap_or(' '), chars.as_str());
        let dtype = match kind {
            "f2" => DataType::Float16,
            "f4" => DataType::Float,
            "f8" => DataType::Double,
            "i1" => DataType::Int8,
            "i2" => DataType::Int16,
            "i4" => DataType::Int32,
            "i8" => DataType::Int64,
            "u1" => DataType::Uint8,
            "u2" => DataType::Uint16,
            "u4" => DataType::Uint32,
            "u8" => DataType::Uint64,
            "b1" => DataType::Bool,
            "c8" => DataType::Complex64,
            "c16" => DataType::Complex128,
            _ => return Err(format!("elements of type `{descr}` are not supported")),
        };
        let fortran_order = match after("fortran_order")? {
            t if t.starts_with("True") => true,
            t if t.starts_with("False") => false,
            _ => return Err("`fortran_order` is neither True nor False".to_owned()),
        };
        let shape =
            after("shape")?.strip_prefix('(').and_then(|s| s.split_once(')')).map(|(s, _)| s);
        let shape = shape.ok_or("`shape` is no tuple")?;
        let sizes = shape.split(',').map(str::trim).filter(|s| !s.is_empty());
        let dims = sizes
            .map(|s| {
                s.trim_end_matches('L').parse().map_err(|_| format!("size `{s}` is no number"))
            })
            .collect::<Result<Vec<usize>, _>>()?;
        Ok(Self { dtype, swapped: order == '>', fortran_order, dims, data_at })
    }

    /// Of all elements; `None` where that overflows.
    pub(crate) fn n_bytes(&self) -> Option<usize> {
        self.dtype.n_bytes(n_elements(&self.dims).ok()?)
    }

    /// One element.
    pub(crate) fn element_bytes(&self) -> usize {
        self.dtype.n_bytes(1).expect("of a fixed size")
    }

    /// The tensor of `dims` whose elements come next in `from`, of which there are `left` bytes.
    pub(crate) fn read_elements(
        &self,
        dims: &[usize],
        from: &mut impl Read,
        left: u64,
    ) -> Result<Tensor, NpyError> {
        let n_bytes =
            n_elements(dims).ok().and_then(|n| self.dtype.n_bytes(n)).unwrap_or(usize::MAX);
        // Before anything is allocated.
        if left < n_bytes as u64 {
            return Err(NpyError::Format(format!(
                "{dims:?} needs {n_bytes} bytes, and the file has {left}"
            )));
        }
        let mut buf = AlignedBuf::zeroed(n_bytes);
        let bytes = buf.as_bytes_mut();
        from.read_exact(bytes)?;
        let size = self.element_bytes();
        if self.swapped {
            let part = if matches!(self.dtype, DataType::Complex64 | DataType::Complex128) {
                size / 2
            } else {
                size
            };
            bytes.chunks_exact_mut(part).for_each(<[u8]>::reverse);
        }
        if self.fortran_order && 1 < dims.len() {
            buf = from_fortran(buf.as_bytes(), dims, size);
        }
        Ok(Tensor::from_buf(self.dtype, dims.to_vec(), buf).expect("as long as the sizes call for"))
    }
}

/// Elements with the last index changing fastest, from those with the first.
fn from_fortran(bytes: &[u8], dims: &[usize], size: usize) -> AlignedBuf {
    let mut out = AlignedBuf::zeroed(bytes.len());
    // How far apart neighbours along each axis are in `bytes`.
    let strides: Vec<usize> =
        dims.iter().scan(size, |stride, &d| Some(std::mem::replace(stride, *stride * d))).collect();
    let mut index = vec![0; dims.len()];
    let mut from = 0;
    for to in out.as_bytes_mut().chunks_exact_mut(size) {
        to.copy_from_slice(&bytes[from..from + size]);
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            from += strides[axis];
            if index[axis] < dims[axis] {
                break;
            }
            from -= strides[axis] * dims[axis];
            index[axis] = 0;
        }
    }
    out
}
