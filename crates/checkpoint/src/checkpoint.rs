//! A checkpoint that is open: files, the tensors in them, and what the tensors mean.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::files::Source;
use crate::gguf::{self, KeyValue};
use crate::layout::{self, Entry};
use crate::safetensors::{self, Metadata};
use crate::tensor::Tensor;

/// What kind of file a checkpoint is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// One `.safetensors` file.
    Safetensors,
    /// Several of them and the index, `.safetensors.index.json`.
    Sharded,
    /// One `.gguf` file.
    Gguf,
}

impl Container {
    /// What a path's name says.
    pub fn of_path(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        if name.ends_with(".safetensors.index.json") {
            Some(Self::Sharded)
        } else if name.ends_with(".safetensors") {
            Some(Self::Safetensors)
        } else if name.ends_with(".gguf") {
            Some(Self::Gguf)
        } else {
            None
        }
    }

    /// As reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Sharded => "sharded safetensors",
            Self::Gguf => "GGUF",
        }
    }
}

/// An open checkpoint. Data is read when it is needed.
#[derive(Debug)]
pub struct Checkpoint {
    pub(crate) sources: Vec<Source>,
    /// What kind of file it is in.
    pub container: Container,
    /// The tensors of all files.
    pub tensors: Vec<Tensor>,
    /// What the tensors mean: those that are parts of a quantized one together.
    pub entries: Vec<Entry>,
    /// A safetensors file's text, that of all shards together.
    pub metadata: Metadata,
    /// A GGUF file's keys.
    pub keys: Vec<KeyValue>,
    /// A GGUF file's version and alignment.
    pub gguf: Option<(u32, u64)>,
}

impl Checkpoint {
    /// Whether the file at `path` is named or begins like a checkpoint.
    pub fn is_one(path: &Path) -> bool {
        if Container::of_path(path).is_some() {
            return true;
        }
        let head = Source::open(path).and_then(|source| source.head(9)).unwrap_or_default();
        head.starts_with(gguf::MAGIC) || safetensors::looks_like(&head)
    }

    /// Opens the checkpoint at `path`: a safetensors or GGUF file, or the index of several safetensors files.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let source = Source::open(path)?;
        if source.head(4)?.starts_with(gguf::MAGIC) {
            let header = gguf::read(&source, 0)?;
            let entries = header.tensors.iter().enumerate().map(|(i, t)| Entry::plain(t, i));
            return Ok(Self {
                container: Container::Gguf,
                entries: entries.collect(),
                metadata: Metadata::new(),
                keys: header.keys,
                gguf: Some((header.version, header.alignment)),
                tensors: header.tensors,
                sources: vec![source],
            });
        }
        if Container::of_path(path) == Some(Container::Sharded) {
            return Self::open_shards(&source);
        }
        let (tensors, metadata) = safetensors::read(&source, 0)?;
        Self::from_safetensors(Container::Safetensors, vec![source], tensors, metadata)
    }

    fn open_shards(source: &Source) -> Result<Self, Error> {
        let index = safetensors::read_index(source)?;
        let folder = source.path.parent().unwrap_or(Path::new(""));
        let (mut sources, mut all, mut metadata) = (vec![], vec![], Metadata::new());
        let mut seen = BTreeMap::new();
        for name in &index.files {
            let path = folder.join(name);
            let shard = Source::open(&path)?;
            let (tensors, text) = safetensors::read(&shard, sources.len())?;
            for tensor in &tensors {
                if let Some(other) = seen.insert(tensor.name.clone(), name) {
                    let what = format!("tensor `{}` is in `{other}` too", tensor.name);
                    return Err(Error::malformed(&path, what));
                }
            }
            for (key, value) in text {
                // Each shard has its own part of what midtread wrote.
                let parts = metadata.entry(key).or_insert_with(String::new);
                layout::merge_metadata(parts, value);
            }
            all.extend(tensors);
            sources.push(shard);
        }
        for (tensor, file) in &index.weight_map {
            if seen.get(tensor) != Some(&file) {
                let what = format!("tensor `{tensor}` is said to be in `{file}`, and is not");
                return Err(Error::malformed(&source.path, what));
            }
        }
        Self::from_safetensors(Container::Sharded, sources, all, metadata)
    }

    fn from_safetensors(
        container: Container,
        sources: Vec<Source>,
        tensors: Vec<Tensor>,
        metadata: Metadata,
    ) -> Result<Self, Error> {
        let entries = layout::entries(&sources, &tensors, &metadata)?;
        Ok(Self { sources, container, tensors, entries, metadata, keys: vec![], gguf: None })
    }

    /// The files it is in.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.sources.iter().map(|source| &source.path)
    }

    /// Bytes of all files.
    pub fn n_bytes(&self) -> u64 {
        self.sources.iter().map(|source| source.len).sum()
    }

    /// The bytes of a tensor from `offset` on.
    pub(crate) fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let tensor = &self.tensors[tensor];
        self.sources[tensor.file].read_at(bytes, tensor.offset + offset)
    }
}
