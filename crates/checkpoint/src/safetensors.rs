//! The safetensors format: eight bytes with the length of a JSON header, the header, the data.
//!
//! The header maps names to a type, sizes and the bytes of the data from where to where; `__metadata__` maps text to
//! text. As in the reference implementation a header has at most 100 MB, and the tensors fill the data without holes or
//! overlaps. Source: the format's description in the `safetensors` project.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::dtype::DType;
use crate::error::Error;
use crate::files::Source;
use crate::tensor::{Tensor, n_elements};

/// What the reference implementation reads at most.
const MAX_HEADER: u64 = 100_000_000;

/// Text by key.
pub type Metadata = BTreeMap<String, String>;

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

#[derive(Default)]
struct Header {
    tensors: Vec<(String, Info)>,
    metadata: Option<Metadata>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                let mut names = BTreeSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(de::Error::custom(format!("`{name}` is there twice")));
                    }
                    if name == "__metadata__" {
                        header.metadata = Some(map.next_value()?);
                    } else {
                        let info = map
                            .next_value()
                            .map_err(|e| de::Error::custom(format!("tensor `{name}`: {e}")))?;
                        header.tensors.push((name, info));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Whether the file begins like one: a plausible length, then `{`.
pub(crate) fn looks_like(head: &[u8]) -> bool {
    match head.split_first_chunk::<8>() {
        Some((len, [b'{', ..])) => u64::from_le_bytes(*len) <= MAX_HEADER,
        _ => false,
    }
}

/// The tensors of a file, in the order of their data, and its metadata.
pub(crate) fn read(source: &Source, file: usize) -> Result<(Vec<Tensor>, Metadata), Error> {
    let bad = |what: String| Error::malformed(&source.path, what);
    let mut len = [0; 8];
    if source.len < 8 {
        return Err(bad("it is too short for a safetensors file".into()));
    }
    source.read_at(&mut len, 0)?;
    let len = u64::from_le_bytes(len);
    if MAX_HEADER < len {
        return Err(bad(format!(
            "its header would have {len} bytes, and {MAX_HEADER} are allowed"
        )));
    }
    let data = 8 + len;
    if source.len < data {
        return Err(bad(format!("its header has {len} bytes, and the file ends before that")));
    }
    let mut bytes = vec![0; len as usize];
    source.read_at(&mut bytes, 8)?;
    let header: Header =
        serde_json::from_slice(&bytes).map_err(|e| bad(format!("its header: {e}")))?;
    drop(bytes);
    let mut tensors = Vec::with_capacity(header.tensors.len());
    for (name, info) in header.tensors {
        let bad = |what: String| Error::malformed(&source.path, format!("tensor `{name}`: {what}"));
        let dtype = DType::from_safetensors(&info.dtype)
            .ok_or_else(|| bad(format!("the type `{}` is not known", info.dtype)))?;
        let n = n_elements(&info.shape).ok_or_else(|| bad("its size is too large".into()))?;
        let cols = info.shape.last().copied().unwrap_or(1);
        let n_bytes = dtype
            .bytes_of(n, cols)
            .ok_or_else(|| bad("its size is not a whole number of bytes, or too large".into()))?;
        let [start, end] = info.data_offsets;
        if end < start || source.len - data < end {
            return Err(bad(format!("its data, {start}..{end}, is not within the file")));
        }
        if end - start != n_bytes {
            return Err(bad(format!(
                "{n} elements of {} are not {} bytes",
                dtype.name,
                end - start
            )));
        }
        tensors.push(Tensor { name, dims: info.shape, dtype, file, offset: data + start, n_bytes });
    }
    // Empty tensors may lie anywhere between others.
    tensors.sort_by_key(|t| (t.offset, t.n_bytes));
    let mut end = data;
    for tensor in &tensors {
        if tensor.offset != end {
            let what =
                if tensor.offset < end { "overlaps the one before it" } else { "leaves a gap" };
            return Err(bad(format!("tensor `{}` {what}", tensor.name)));
        }
        end += tensor.n_bytes;
    }
    if end != source.len {
        return Err(bad(format!("{} bytes at its end belong to no tensor", source.len - end)));
    }
    Ok((tensors, header.metadata.unwrap_or_default()))
}

/// The header of a file with these tensors in this order, and the offset of its data.
///
/// Fails where a type has no name in the format.
pub(crate) fn header(
    tensors: &[&crate::tensor::Spec],
    metadata: &Metadata,
) -> Result<Vec<u8>, Error> {
    let mut entries = Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".into(), json!(metadata));
    }
    let mut end = 0;
    for tensor in tensors {
        let dtype = tensor.dtype.safetensors.ok_or_else(|| {
            Error::Options(format!(
                "tensor `{}` has the type {}, which safetensors does not have: write a .gguf file, or name a type with --weights",
                tensor.name, tensor.dtype.name
            ))
        })?;
        let start = end;
        end += tensor.n_bytes;
        let info = json!({ "dtype": dtype, "shape": tensor.dims, "data_offsets": [start, end] });
        if entries.insert(tensor.name.clone(), info).is_some() || tensor.name == "__metadata__" {
            return Err(Error::Options(format!("two tensors would be called `{}`", tensor.name)));
        }
    }
    let mut json = serde_json::to_vec(&Value::Object(entries)).expect("plain data");
    // Data begins at a multiple of eight.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok(bytes)
}

/// The files of a sharded checkpoint, by the index beside them: `model.safetensors.index.json`.
pub(crate) struct Index {
    /// File names, each once, in order.
    pub(crate) files: Vec<String>,
    /// The file of each tensor.
    pub(crate) weight_map: BTreeMap<String, String>,
}

/// Reads an index. A name of a file that is not a plain name is refused: it could lead out of the folder.
pub(crate) fn read_index(source: &Source) -> Result<Index, Error> {
    #[derive(Deserialize)]
    struct Document {
        weight_map: BTreeMap<String, String>,
    }
    let bad = |what: String| Error::malformed(&source.path, what);
    if MAX_HEADER < source.len {
        return Err(bad(format!("an index of more than {MAX_HEADER} bytes is not read")));
    }
    let document: Document = serde_json::from_slice(&source.head(MAX_HEADER)?)
        .map_err(|e| bad(format!("it is not an index of safetensors files: {e}")))?;
    let files: BTreeSet<&String> = document.weight_map.values().collect();
    for name in &files {
        let is_plain = Path::new(name).file_name().is_some_and(|f| f == name.as_str())
            && !name.contains(['/', '\\', ':', '\0']);
        if !is_plain {
            return Err(bad(format!("`{name}` is not the plain name of a file beside it")));
        }
    }
    let files = files.into_iter().cloned().collect();
    Ok(Index { files, weight_map: document.weight_map })
}

/// The text of an index.
pub(crate) fn index(total_size: u64, weight_map: &BTreeMap<String, String>) -> Vec<u8> {
    let document = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    let mut text = serde_json::to_vec_pretty(&document).expect("plain data");
    text.push(b'\n');
    text
}
