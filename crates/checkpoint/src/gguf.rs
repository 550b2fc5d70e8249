//! The GGUF format: what llama.cpp and its kin load.
//!
//! Little-endian: `GGUF`, a version (2 and 3 are read, 3 is written), the numbers of tensors and of keys, the keys with
//! typed values, the tensors' names, sizes (the last dimension first), types and offsets, and after padding to
//! `general.alignment` (32 unless the key says otherwise) the data, each tensor at a multiple of the alignment. Values
//! that midtread has no business with are kept as the bytes they are. Source: ggml's description of the format,
//! `docs/gguf.md`.

use std::collections::BTreeSet;
use std::fmt;

use crate::dtype::DType;
use crate::error::Error;
use crate::files::Source;
use crate::tensor::{Spec, Tensor, n_elements};

/// The first bytes of a file.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
/// Unless `general.alignment` says otherwise.
pub(crate) const DEFAULT_ALIGNMENT: u64 = 32;
/// More than that before the data is refused. Large vocabularies take some 20 MB.
const MAX_HEADER: u64 = 1 << 30;
/// ggml's.
const MAX_DIMS: u32 = 4;
/// Arrays in arrays.
const MAX_DEPTH: u32 = 4;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// `general.name`.
    pub key: String,
    /// The type and the value as they stand in the file.
    raw: Vec<u8>,
}

/// A value, as far as one can show it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any integer.
    Int(i128),
    /// Any float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    String(String),
    /// How many elements it has, and the first few.
    Array(u64, Vec<Value>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(x) => write!(f, "{x}"),
            Self::Float(x) => write!(f, "{x}"),
            Self::Bool(x) => write!(f, "{x}"),
            Self::String(x) => f.write_str(x),
            Self::Array(n, first) => {
                let first: Vec<String> = first.iter().map(Self::to_string).collect();
                let more = if (first.len() as u64) < *n { ", ..." } else { "" };
                write!(f, "{n} values: [{}{more}]", first.join(", "))
            }
        }
    }
}

impl KeyValue {
    /// A number.
    pub(crate) fn u32(key: &str, value: u32) -> Self {
        let raw = [4_u32.to_le_bytes(), value.to_le_bytes()].concat();
        Self { key: key.to_owned(), raw }
    }

    /// Text.
    pub(crate) fn string(key: &str, value: &str) -> Self {
        let mut raw = 8_u32.to_le_bytes().to_vec();
        raw.extend((value.len() as u64).to_le_bytes());
        raw.extend(value.as_bytes());
        Self { key: key.to_owned(), raw }
    }

    /// Its value.
    pub fn value(&self) -> Value {
        let mut bytes = Bytes { bytes: &self.raw, at: 0, n_file: self.raw.len() as u64 };
        let ty = bytes.u32().expect("checked when it was read");
        bytes.value(ty, 0).expect("checked when it was read")
    }

    /// Its value, if it is an integer.
    pub fn int(&self) -> Option<i128> {
        match self.value() {
            Value::Int(x) => Some(x),
            _ => None,
        }
    }
}

/// A file's own part, without the tensors' data.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) keys: Vec<KeyValue>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) version: u32,
    pub(crate) alignment: u64,
}

/// Why parsing stops.
#[derive(Debug)]
enum Stop {
    /// The bytes read so far end too early; the file goes on.
    More,
    /// It is wrong.
    Bad(String),
}

impl From<String> for Stop {
    fn from(what: String) -> Self {
        Self::Bad(what)
    }
}

/// The beginning of a file.
struct Bytes<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The length of the whole file.
    n_file: u64,
}

impl<'a> Bytes<'a> {
    fn take(&mut self, n: u64) -> Result<&'a [u8], Stop> {
        if self.n_file - (self.at as u64) < n {
            return Err(Stop::Bad(format!(
                "it ends where {n} bytes from {} on are needed",
                self.at
            )));
        }
        let end = self.at + n as usize;
        let bytes = self.bytes.get(self.at..end).ok_or(Stop::More)?;
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        Ok(*self.take(N as u64)?.first_chunk().expect("as many as were asked for"))
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Stop> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, Stop> {
        let n = self.u64()?;
        Ok(String::from_utf8_lossy(self.take(n)?).into_owned())
    }

    fn value(&mut self, ty: u32, depth: u32) -> Result<Value, Stop> {
        Ok(match ty {
            0 => Value::Int(self.array::<1>()?[0].into()),
            1 => Value::Int((self.array::<1>()?[0] as i8).into()),
            2 => Value::Int(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Int(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Int(self.u32()?.into()),
            5 => Value::Int((self.u32()? as i32).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::String(self.text()?),
            9 => {
                if depth == MAX_DEPTH {
                    return Err(Stop::Bad("arrays nest too deep".into()));
                }
                let ty = self.u32()?;
                let n = self.u64()?;
                let mut first = vec![];
                if let Some(size) = fixed_size(ty) {
                    let n_bytes = n.checked_mul(size).ok_or("an array is too long".to_owned())?;
                    let mut values = Bytes { at: 0, n_file: n_bytes, bytes: self.take(n_bytes)? };
                    for _ in 0..n.min(SHOWN) {
                        first.push(values.value(ty, depth + 1)?);
                    }
                } else {
                    for _ in 0..n {
                        let value = self.value(ty, depth + 1)?;
                        if (first.len() as u64) < SHOWN {
                            first.push(value);
                        }
                    }
                }
                Value::Array(n, first)
            }
            10 => Value::Int(self.u64()?.into()),
            11 => Value::Int((self.u64()? as i64).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(Stop::Bad(format!("the value type {ty} is not known"))),
        })
    }
}

/// Elements of an array that are shown.
const SHOWN: u64 = 4;

fn fixed_size(ty: u32) -> Option<u64> {
    match ty {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Reads everything before the data.
pub(crate) fn read(source: &Source, file: usize) -> Result<Header, Error> {
    let mut n = 1 << 20;
    loop {
        let head = source.head(n)?;
        match parse(&head, source.len, file) {
            Ok(header) => return Ok(header),
            Err(Stop::More) if n < MAX_HEADER => n *= 2,
            Err(Stop::More) => {
                let what = format!("its keys and names take more than {MAX_HEADER} bytes");
                return Err(Error::malformed(&source.path, what));
            }
            Err(Stop::Bad(what)) => return Err(Error::malformed(&source.path, what)),
        }
    }
}

fn parse(head: &[u8], n_file: u64, file: usize) -> Result<Header, Stop> {
    let mut bytes = Bytes { bytes: head, at: 0, n_file };
    if &bytes.array::<4>()? != MAGIC {
        return Err(Stop::Bad("it is not a GGUF file".into()));
    }
    let version = bytes.u32()?;
    if !(2..=3).contains(&version) {
        let what = if (2..=3).contains(&version.swap_bytes()) {
            "it is a big-endian GGUF file, which is not supported".into()
        } else {
            format!("it has GGUF version {version}; 2 and 3 are known")
        };
        return Err(Stop::Bad(what));
    }
    let (n_tensors, n_keys) = (bytes.u64()?, bytes.u64()?);
    let mut keys = vec![];
    let mut names = BTreeSet::new();
    for i in 0..n_keys {
        let key = bytes.text()?;
        let start = bytes.at;
        let ty = bytes.u32()?;
        bytes.value(ty, 0).map_err(|stop| match stop {
            Stop::Bad(what) => Stop::Bad(format!("key {i}, `{key}`: {what}")),
            more => more,
        })?;
        if !names.insert(key.clone()) {
            return Err(Stop::Bad(format!("the key `{key}` is there twice")));
        }
        keys.push(KeyValue { key, raw: head[start..bytes.at].to_vec() });
    }
    let alignment = match keys.iter().find(|kv| kv.key == "general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(kv) => match kv.int() {
            Some(n @ 1..=0x10_0000) if n.count_ones() == 1 => n as u64,
            _ => {
                let what =
                    format!("`general.alignment` is {}, not a small power of two", kv.value());
                return Err(Stop::Bad(what));
            }
        },
    };
    let mut tensors = vec![];
    names.clear();
    for _ in 0..n_tensors {
        let name = bytes.text()?;
        let bad = |what: String| Stop::Bad(format!("tensor `{name}`: {what}"));
        let n_dims = bytes.u32()?;
        if MAX_DIMS < n_dims {
            return Err(bad(format!("it has {n_dims} dimensions, and {MAX_DIMS} are possible")));
        }
        let mut dims = (0..n_dims).map(|_| bytes.u64()).collect::<Result<Vec<_>, _>>()?;
        dims.reverse();
        let ty = bytes.u32()?;
        let offset = bytes.u64()?;
        let dtype =
            DType::from_ggml(ty).ok_or_else(|| bad(format!("the type {ty} is not known")))?;
        let n = n_elements(&dims).ok_or_else(|| bad("its size is too large".into()))?;
        let cols = dims.last().copied().unwrap_or(1);
        let n_bytes = dtype.bytes_of(n, cols).ok_or_else(|| {
            bad(format!("rows of {cols} are not whole blocks of {}", dtype.block_size))
        })?;
        if !offset.is_multiple_of(alignment) {
            return Err(bad(format!("its offset {offset} is not a multiple of {alignment}")));
        }
        if !names.insert(name.clone()) {
            return Err(bad("it is there twice".into()));
        }
        tensors.push(Tensor { name, dims, dtype, file, offset, n_bytes });
    }
    let data = (bytes.at as u64).next_multiple_of(alignment);
    for tensor in &mut tensors {
        let end =
            tensor.offset.checked_add(data).and_then(|start| start.checked_add(tensor.n_bytes));
        if end.is_none_or(|end| n_file < end) && tensor.n_bytes != 0 {
            let what = format!("tensor `{}`: its data is not within the file", tensor.name);
            return Err(Stop::Bad(what));
        }
        tensor.offset = tensor.offset.saturating_add(data);
    }
    let mut places: Vec<&Tensor> = tensors.iter().filter(|t| t.n_bytes != 0).collect();
    places.sort_by_key(|t| t.offset);
    for pair in places.windows(2) {
        if pair[1].offset < pair[0].offset + pair[0].n_bytes {
            let (a, b) = (&pair[0].name, &pair[1].name);
            return Err(Stop::Bad(format!("the data of `{a}` and `{b}` overlap")));
        }
    }
    Ok(Header { keys, tensors, version, alignment })
}

/// The alignment that keys ask for.
pub(crate) fn alignment(keys: &[KeyValue]) -> u64 {
    let key = keys.iter().find(|kv| kv.key == "general.alignment");
    key.and_then(KeyValue::int).map_or(DEFAULT_ALIGNMENT, |n| n as u64)
}

/// A file's bytes before the data, padded, and the offset of each tensor from the file's start, with the whole length.
///
/// Fails where a type has no number in the format.
pub(crate) fn header(
    keys: &[KeyValue],
    tensors: &[&Spec],
) -> Result<(Vec<u8>, Vec<u64>, u64), Error> {
    let alignment = alignment(keys);
    let mut bytes = MAGIC.to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    let put_text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    for kv in keys {
        put_text(&mut bytes, &kv.key);
        bytes.extend(&kv.raw);
    }
    let mut names = BTreeSet::new();
    let mut offsets = vec![];
    let mut end = 0_u64;
    for tensor in tensors {
        let ty = tensor.dtype.ggml.ok_or_else(|| {
            Error::Options(format!(
                "tensor `{}` has the type {}, which GGUF does not have",
                tensor.name, tensor.dtype.name
            ))
        })?;
        if MAX_DIMS < tensor.dims.len() as u32 {
            return Err(Error::Options(format!(
                "tensor `{}` has {} dimensions, and GGUF has {MAX_DIMS} at most",
                tensor.name,
                tensor.dims.len()
            )));
        }
        if !names.insert(&tensor.name) {
            return Err(Error::Options(format!("two tensors would be called `{}`", tensor.name)));
        }
        put_text(&mut bytes, &tensor.name);
        bytes.extend((tensor.dims.len() as u32).to_le_bytes());
        tensor.dims.iter().rev().for_each(|dim| bytes.extend(dim.to_le_bytes()));
        bytes.extend(ty.to_le_bytes());
        bytes.extend(end.to_le_bytes());
        offsets.push(end);
        end = (end + tensor.n_bytes).next_multiple_of(alignment);
    }
    bytes.resize(bytes.len().next_multiple_of(alignment as usize), 0);
    let data = bytes.len() as u64;
    offsets.iter_mut().for_each(|offset| *offset += data);
    Ok((bytes, offsets, data + end))
}
