//! Which keys a quantized tensor has in a safetensors file, and how they are recognized.
//!
//! [`Keys::Bitsandbytes`] is what bitsandbytes and transformers load. A 4-bit tensor `T` has `T` (codes, `uint8`,
//! `[ceil(n / 2), 1]`), `T.absmax`, `T.quant_map` and `T.quant_state.bitsandbytes__nf4` (or `__fp4`: a JSON text as
//! `uint8`); with nested scales `T.absmax` is `uint8` and `T.nested_absmax` and `T.nested_quant_map` are there too.
//! LLM.int8 has `P.weight` (`int8`), `P.SCB` (`float32`, a row's largest magnitude) and `P.weight_format` (`uint8`, 0).
//!
//! [`Keys::Plain`] is midtread's own, for every other format: a key `T.PART` for each part of the format's layout
//! (`T.codes`, `T.scale`, `T.zero_point`, `T.blocks`, ...), with the part's type. The `__metadata__` key `midtread` says
//! in JSON what they are: `{"T": {"format": "int4:32", "dtype": "float32", "dims": [4096, 4096]}}`. Codes of 8 and 16
//! bits have the tensor's sizes, other codes are a stream of bits; parameters have `[rows, blocks]` or `[rows]`.
//! `float16`, `bfloat16` and FP8 without scales are ordinary tensors.

use std::collections::{BTreeMap, BTreeSet};

use midtread_num::formats::codebook::{FP4_CODE, NF4_CODE, dynamic_map};
use midtread_num::formats::{Format, PartLayout, PartType, Shape, Sharing, nested};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::dtype::DType;
use crate::error::Error;
use crate::files::Source;
use crate::safetensors::Metadata;
use crate::tensor::{Spec, Tensor, n_elements, rows};

/// Under which keys a quantized tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// What bitsandbytes and transformers load.
    Bitsandbytes,
    /// A key a part, described in the metadata.
    Plain,
}

impl Keys {
    /// As options spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bitsandbytes => "bitsandbytes",
            Self::Plain => "plain",
        }
    }

    /// Every layout.
    pub const ALL: &'static [Self] = &[Self::Bitsandbytes, Self::Plain];
}

/// A tensor by its meaning.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its sizes.
    pub dims: Vec<u64>,
    /// How it is stored.
    pub stored: Stored,
}

/// How a tensor is stored.
#[derive(Debug)]
pub enum Stored {
    /// As one tensor of the file, at that place in [`Checkpoint::tensors`](crate::Checkpoint::tensors).
    Plain(usize),
    /// In parts.
    Parts(Parts),
}

/// A quantized tensor's parts.
#[derive(Debug)]
pub struct Parts {
    /// What they are in.
    pub format: Format<'static>,
    /// Under which keys.
    pub keys: Keys,
    /// The type that the values had before.
    pub dtype: &'static DType,
    /// Rows and columns that the format sees.
    pub(crate) shape: Shape,
    /// In the order of the format's layout.
    pub(crate) parts: Vec<Part>,
    /// All tensors of the file that belong to it.
    pub(crate) tensors: Vec<usize>,
}

impl Parts {
    /// Bytes of everything that belongs to it.
    pub fn n_bytes(&self, checkpoint: &crate::Checkpoint) -> u64 {
        self.tensors.iter().map(|i| checkpoint.tensors[*i].n_bytes).sum()
    }
}

/// Where a part's bytes are.
#[derive(Debug)]
pub(crate) enum Part {
    Tensor(usize),
    Bytes(Vec<u8>),
}

impl Entry {
    pub(crate) fn plain(tensor: &Tensor, i: usize) -> Self {
        Self { name: tensor.name.clone(), dims: tensor.dims.clone(), stored: Stored::Plain(i) }
    }

    /// Elements.
    pub fn n(&self) -> u64 {
        self.dims.iter().product()
    }
}

/// What the metadata say of a tensor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Described {
    pub(crate) format: String,
    pub(crate) dtype: String,
    pub(crate) dims: Vec<u64>,
}

/// The key of the metadata.
pub(crate) const METADATA_KEY: &str = "midtread";

/// Adds a shard's text to that of others: maps of tensors are united, other texts are taken once.
pub(crate) fn merge_metadata(all: &mut String, text: String) {
    type Map = BTreeMap<String, Described>;
    match (serde_json::from_str::<Map>(all), serde_json::from_str::<Map>(&text)) {
        (Ok(mut map), Ok(more)) => {
            map.extend(more);
            *all = serde_json::to_string(&map).expect("plain data");
        }
        _ => *all = text,
    }
}

/// The type that a part of a layout has in a file.
pub(crate) fn part_dtype(ty: PartType) -> &'static DType {
    DType::named(match ty {
        PartType::U8 => "uint8",
        PartType::I8 => "int8",
        PartType::U16 => "uint16",
        PartType::I16 => "int16",
        PartType::F16 => "float16",
        PartType::Bf16 => "bfloat16",
        PartType::F32 => "float32",
        PartType::F8E4M3Fn => "fp8_e4m3fn",
        PartType::F8E5M2 => "fp8_e5m2",
    })
}

/// The type of an ordinary tensor that is all that a format needs, if that is so.
pub(crate) fn as_dtype(format: &Format<'_>) -> Option<&'static DType> {
    let is_plain = format.settings.sharing == Sharing::Nothing;
    ["float16", "bfloat16", "fp8_e4m3fn", "fp8_e5m2"]
        .into_iter()
        .find(|name| is_plain && format.def.name == *name)
        .map(DType::named)
}

/// The code table and the name of a 4-bit format in bitsandbytes' words, and whether its scales are nested.
pub(crate) fn four_bit(format: &Format<'_>) -> Option<(&'static str, [f32; 16], bool)> {
    match format.def.name {
        "nf4" => Some(("nf4", NF4_CODE, false)),
        "fp4" => Some(("fp4", FP4_CODE, false)),
        "nf4_nested" => Some(("nf4", NF4_CODE, true)),
        "fp4_nested" => Some(("fp4", FP4_CODE, true)),
        _ => None,
    }
}

/// Whether bitsandbytes has the format.
pub(crate) fn is_bitsandbytes(format: &Format<'_>) -> bool {
    four_bit(format).is_some() || format.def.name == "llm_int8"
}

/// Where the bytes of a layout's part go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Slot {
    /// Into the tensor with that place among the specs.
    Spec(usize),
    /// Into the JSON text that is the tensor with that place.
    NestedOffset(usize),
}

/// The tensors that a quantized one becomes.
pub(crate) struct Written {
    pub(crate) specs: Vec<Spec>,
    /// For each part of the layout.
    pub(crate) slots: Vec<Slot>,
    /// Bytes that are known beforehand, with the place among the specs.
    pub(crate) constants: Vec<(usize, Vec<u8>)>,
}

/// The keys of a tensor in a format.
pub(crate) fn write(
    name: &str,
    dims: &[u64],
    dtype: &DType,
    format: &Format<'_>,
    shape: Shape,
    keys: Keys,
) -> Written {
    match keys {
        Keys::Plain => write_plain(name, dims, format, shape),
        Keys::Bitsandbytes => match four_bit(format) {
            Some(_) => write_four_bit(name, dims, dtype, format, shape),
            None => write_llm_int8(name, dims, shape),
        },
    }
}

fn write_plain(name: &str, dims: &[u64], format: &Format<'_>, shape: Shape) -> Written {
    let layout = format.layout(shape);
    let dims_of = |part: &PartLayout| {
        let (len, rows) = (part.len, shape.rows);
        if len == shape.n() && part.name == "codes" {
            dims.to_vec()
        } else if part.is_whole || rows == 0 || !len.is_multiple_of(rows) || format.def.is_flat {
            vec![len as u64]
        } else if len == rows {
            vec![rows as u64]
        } else {
            vec![rows as u64, (len / rows) as u64]
        }
    };
    let specs = layout.iter().map(|part| Spec {
        name: format!("{name}.{}", part.name),
        dims: dims_of(part),
        dtype: part_dtype(part.ty),
        n_bytes: part.n_bytes() as u64,
    });
    let specs: Vec<Spec> = specs.collect();
    let slots = (0..specs.len()).map(Slot::Spec).collect();
    Written { specs, slots, constants: vec![] }
}

/// Longer than any quant state of a tensor with that many dimensions.
fn state_len(dims: &[u64]) -> u64 {
    256 + 22 * dims.len() as u64
}

/// The JSON text of a quant state, filled up with spaces.
pub(crate) fn quant_state(
    format: &Format<'_>,
    dims: &[u64],
    dtype: &DType,
    nested_offset: f32,
) -> Vec<u8> {
    let (quant_type, _, is_nested) = four_bit(format).expect("a 4-bit format of bitsandbytes");
    let mut state = json!({
        "quant_type": quant_type,
        "blocksize": block_size(format),
        "dtype": dtype.name,
        "shape": dims,
    });
    if is_nested {
        state["nested_blocksize"] = json!(nested::BLOCK_SIZE);
        state["nested_dtype"] = json!("float32");
        state["nested_offset"] = json!(nested_offset);
    }
    let mut text = state.to_string().into_bytes();
    text.resize(state_len(dims) as usize, b' ');
    text
}

fn block_size(format: &Format<'_>) -> usize {
    match format.settings.sharing {
        Sharing::Block(size) => size,
        _ => unreachable!("flat formats have blocks"),
    }
}

fn write_four_bit(
    name: &str,
    dims: &[u64],
    dtype: &DType,
    format: &Format<'_>,
    shape: Shape,
) -> Written {
    let (quant_type, code, is_nested) = four_bit(format).expect("the caller has looked");
    let layout = format.layout(shape);
    let spec = |suffix: &str, dims: &[u64], dtype: &str| {
        let dtype = DType::named(dtype);
        let n_bytes = dims.iter().product::<u64>() * dtype.n_bytes as u64;
        Spec { name: format!("{name}{suffix}"), dims: dims.to_vec(), dtype, n_bytes }
    };
    let n_scales = layout[1].len as u64;
    let state = format!(".quant_state.bitsandbytes__{quant_type}");
    let mut specs = vec![
        spec("", &[layout[0].len as u64, 1], "uint8"),
        spec(".absmax", &[n_scales], if is_nested { "uint8" } else { "float32" }),
        spec(".quant_map", &[16], "float32"),
        spec(&state, &[state_len(dims)], "uint8"),
    ];
    let mut slots = vec![Slot::Spec(0), Slot::Spec(1)];
    let mut constants = vec![(2, bytes_of(&code)), (3, quant_state(format, dims, dtype, 0.0))];
    if is_nested {
        specs.push(spec(".nested_absmax", &[layout[2].len as u64], "float32"));
        specs.push(spec(".nested_quant_map", &[256], "float32"));
        slots.extend([Slot::Spec(4), Slot::NestedOffset(3)]);
        constants.push((5, bytes_of(&dynamic_map(true))));
    }
    Written { specs, slots, constants }
}

fn write_llm_int8(name: &str, dims: &[u64], shape: Shape) -> Written {
    let prefix = name.strip_suffix("weight").expect("the plan lets only such names through");
    let spec = |name: String, dims: Vec<u64>, dtype, n_bytes| Spec {
        name,
        dims,
        dtype: DType::named(dtype),
        n_bytes,
    };
    let specs = vec![
        spec(name.to_owned(), dims.to_vec(), "int8", shape.n() as u64),
        spec(format!("{prefix}SCB"), vec![shape.rows as u64], "float32", 4 * shape.rows as u64),
        spec(format!("{prefix}weight_format"), vec![], "uint8", 1),
    ];
    Written { specs, slots: vec![Slot::Spec(0), Slot::Spec(1)], constants: vec![(2, vec![0])] }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// What the tensors of safetensors files mean.
pub(crate) fn entries(
    sources: &[Source],
    tensors: &[Tensor],
    metadata: &Metadata,
) -> Result<Vec<Entry>, Error> {
    let by_name: BTreeMap<&str, usize> =
        tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
    let reader = Reader { sources, tensors, by_name };
    let mut found: Vec<Entry> = reader.described(metadata)?;
    for (i, tensor) in tensors.iter().enumerate() {
        let four_bit = ["nf4", "fp4"].into_iter().find_map(|quant_type| {
            let suffix = format!(".quant_state.bitsandbytes__{quant_type}");
            Some((tensor.name.strip_suffix(&suffix)?, quant_type))
        });
        if let Some((name, quant_type)) = four_bit {
            found.push(reader.four_bit(name, quant_type, i)?);
        } else if let Some(prefix) = tensor.name.strip_suffix("SCB") {
            found.extend(reader.llm_int8(prefix, i)?);
        }
    }
    let mut taken = BTreeSet::new();
    for entry in &found {
        if let Stored::Parts(parts) = &entry.stored {
            for i in &parts.tensors {
                if !taken.insert(*i) {
                    let what = format!("tensor `{}` is part of two", tensors[*i].name);
                    return Err(Error::malformed(&sources[tensors[*i].file].path, what));
                }
            }
        }
    }
    let plain = tensors.iter().enumerate().filter(|(i, _)| !taken.contains(i));
    found.extend(plain.map(|(i, tensor)| Entry::plain(tensor, i)));
    // In the order of their data.
    found.sort_by_key(|entry| match &entry.stored {
        Stored::Plain(i) => *i,
        Stored::Parts(parts) => parts.tensors.iter().copied().min().unwrap_or(0),
    });
    Ok(found)
}

struct Reader<'a> {
    sources: &'a [Source],
    tensors: &'a [Tensor],
    by_name: BTreeMap<&'a str, usize>,
}

impl Reader<'_> {
    fn bad(&self, tensor: usize, what: impl Into<String>) -> Error {
        let tensor = &self.tensors[tensor];
        let what = format!("tensor `{}`: {}", tensor.name, what.into());
        Error::malformed(&self.sources[tensor.file].path, what)
    }

    /// The parts of a layout, after all that a file can have wrong about them.
    #[expect(clippy::too_many_arguments, reason = "what a quantized tensor is made of")]
    fn parts(
        &self,
        name: &str,
        first: usize,
        dims: Vec<u64>,
        dtype: &str,
        format: Format<'static>,
        keys: Keys,
        parts: Vec<Part>,
        extra: &[usize],
    ) -> Result<Entry, Error> {
        let bad = |what: String| self.bad(first, what);
        let n = n_elements(&dims).ok_or_else(|| bad("its size is too large".into()))?;
        let n_bytes = parts.iter().map(|part| match part {
            Part::Tensor(i) => self.tensors[*i].n_bytes,
            Part::Bytes(bytes) => bytes.len() as u64,
        });
        // No format has less than half a bit: so nothing below can overflow.
        if 16 * n_bytes.sum::<u64>() < n {
            return Err(bad(format!("its parts are too small for {n} elements")));
        }
        let dtype = ["float32", "float16", "bfloat16"]
            .into_iter()
            .find(|name| *name == dtype)
            .ok_or_else(|| bad(format!("values of `{dtype}` are not supported")))?;
        let shape = rows(&dims);
        let layout = format.layout(shape);
        if layout.len() != parts.len() {
            return Err(bad(format!("{} parts instead of {}", parts.len(), layout.len())));
        }
        for (part, layout) in parts.iter().zip(&layout) {
            let (dtype, n_bytes) = match part {
                Part::Tensor(i) => (self.tensors[*i].dtype, self.tensors[*i].n_bytes),
                Part::Bytes(bytes) => (part_dtype(layout.ty), bytes.len() as u64),
            };
            if n_bytes != layout.n_bytes() as u64 || dtype != part_dtype(layout.ty) {
                return Err(bad(format!(
                    "its {} are {n_bytes} bytes of {}, and {} should be {} bytes of {}",
                    layout.name,
                    dtype.name,
                    format.name(),
                    layout.n_bytes(),
                    part_dtype(layout.ty).name
                )));
            }
        }
        let own = parts.iter().filter_map(|part| match part {
            Part::Tensor(i) => Some(*i),
            Part::Bytes(_) => None,
        });
        let mut tensors: Vec<usize> = own.chain(extra.iter().copied()).collect();
        tensors.sort_unstable();
        tensors.dedup();
        let dtype = DType::named(dtype);
        let stored = Stored::Parts(Parts { format, keys, dtype, shape, parts, tensors });
        Ok(Entry { name: name.to_owned(), dims, stored })
    }

    fn described(&self, metadata: &Metadata) -> Result<Vec<Entry>, Error> {
        let Some(text) = metadata.get(METADATA_KEY) else { return Ok(vec![]) };
        let path = &self.sources[0].path;
        let bad =
            |what: String| Error::malformed(path, format!("metadata `{METADATA_KEY}`: {what}"));
        let described: BTreeMap<String, Described> =
            serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        let entry = |(name, described): (String, Described)| {
            let format = Format::named(&described.format)
                .map_err(|e| bad(format!("tensor `{name}`: {e}")))?;
            let shape = Shape { rows: 1, cols: 0 };
            let part = |part: &PartLayout| {
                let key = format!("{name}.{}", part.name);
                let i = self.by_name.get(key.as_str());
                i.copied().ok_or_else(|| bad(format!("there is no tensor `{key}`")))
            };
            let parts = format.layout(shape).iter().map(part).collect::<Result<Vec<_>, _>>()?;
            let first = parts[0];
            let parts = parts.into_iter().map(Part::Tensor).collect();
            let (dims, dtype) = (described.dims, described.dtype);
            self.parts(&name, first, dims, &dtype, format, Keys::Plain, parts, &[])
        };
        described.into_iter().map(entry).collect()
    }

    fn get(&self, name: &str, first: usize) -> Result<usize, Error> {
        self.by_name
            .get(name)
            .copied()
            .ok_or_else(|| self.bad(first, format!("there is no `{name}` beside it")))
    }

    fn bytes(&self, i: usize, max: u64) -> Result<Vec<u8>, Error> {
        let tensor = &self.tensors[i];
        if max < tensor.n_bytes {
            return Err(self.bad(i, format!("it has more than {max} bytes")));
        }
        let mut bytes = vec![0; tensor.n_bytes as usize];
        self.sources[tensor.file].read_at(&mut bytes, tensor.offset)?;
        Ok(bytes)
    }

    fn four_bit(&self, name: &str, quant_type: &str, state: usize) -> Result<Entry, Error> {
        #[derive(Deserialize)]
        struct State {
            blocksize: u64,
            dtype: String,
            shape: Vec<u64>,
            nested_blocksize: Option<u64>,
            nested_offset: Option<f32>,
        }
        let text = self.bytes(state, 1 << 16)?;
        let parsed: State = serde_json::from_slice(&text)
            .map_err(|e| self.bad(state, format!("it is not a quant state: {e}")))?;
        let is_nested = parsed.nested_offset.is_some();
        let format =
            format!("{quant_type}{}:{}", if is_nested { "_nested" } else { "" }, parsed.blocksize);
        let format = Format::named(&format).map_err(|e| self.bad(state, e.to_string()))?;
        let suffixed = |suffix: &str| self.get(&format!("{name}{suffix}"), state);
        let map = suffixed(".quant_map")?;
        let (_, code, _) = four_bit(&format).expect("a 4-bit format by its name");
        if self.bytes(map, 64)? != bytes_of(&code) {
            let what = format!("it is not the table of {quant_type}");
            return Err(self.bad(map, what));
        }
        let mut parts =
            vec![Part::Tensor(self.get(name, state)?), Part::Tensor(suffixed(".absmax")?)];
        let mut extra = vec![state, map];
        if let Some(offset) = parsed.nested_offset {
            if parsed.nested_blocksize != Some(nested::BLOCK_SIZE as u64) {
                return Err(self.bad(state, "only nested blocks of 256 are known"));
            }
            parts.push(Part::Tensor(suffixed(".nested_absmax")?));
            parts.push(Part::Bytes(offset.to_le_bytes().to_vec()));
            extra.push(suffixed(".nested_quant_map")?);
        }
        let (dims, dtype) = (parsed.shape, &parsed.dtype);
        self.parts(name, state, dims, dtype, format, Keys::Bitsandbytes, parts, &extra)
    }

    /// `None` where the key is no scale of LLM.int8.
    fn llm_int8(&self, prefix: &str, scb: usize) -> Result<Option<Entry>, Error> {
        let name = format!("{prefix}weight");
        let Some(weight) = self.by_name.get(name.as_str()).copied() else { return Ok(None) };
        if self.tensors[weight].dtype.name != "int8" || self.tensors[weight].dims.len() != 2 {
            return Ok(None);
        }
        let mut extra = vec![];
        if let Some(order) = self.by_name.get(format!("{prefix}weight_format").as_str()).copied() {
            if self.bytes(order, 8)?.iter().any(|byte| *byte != 0) {
                return Err(self.bad(order, "only the order `row` (0) is known"));
            }
            extra.push(order);
        }
        let format = Format::named("llm_int8").expect("a format of the list");
        let dims = self.tensors[weight].dims.clone();
        let parts = vec![Part::Tensor(weight), Part::Tensor(scb)];
        let keys = Keys::Bitsandbytes;
        self.parts(&name, weight, dims, "float16", format, keys, parts, &extra).map(Some)
    }
}
