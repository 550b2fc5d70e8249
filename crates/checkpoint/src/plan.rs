//! What becomes of each tensor, decided before anything is written.

use midtread_num::formats::{Format, Search, Shape, Sharing, ggml};

use crate::checkpoint::{Checkpoint, Container};
use crate::dtype::DType;
use crate::error::Error;
use crate::gguf::KeyValue;
use crate::importance::Importances;
use crate::layout::{self, Described, Entry, Keys, METADATA_KEY, Slot, Stored};
use crate::rules::{self, KEPT_NAMES, KEPT_NAMES_GGUF, Layers, MIXES, Mix};
use crate::safetensors::Metadata;
use crate::tensor::{Spec, ggml_rows, rows};

/// What weights become.
#[derive(Clone, Copy, Debug)]
pub enum Weights {
    /// `float32`.
    Float32,
    /// One of `num`'s formats.
    Format(Format<'static>),
    /// A mixture of ggml's.
    Mix(&'static Mix),
}

impl Weights {
    /// By what users write: `float32`, `q4_k_m`, or a format of `num` (`nf4`, `int4:32`).
    pub fn named(text: &str) -> Result<Self, Error> {
        let lower = text.to_ascii_lowercase();
        if lower == "float32" {
            return Ok(Self::Float32);
        }
        if let Some(mix) = MIXES.iter().find(|mix| mix.name == lower) {
            return Ok(Self::Mix(mix));
        }
        // The names of ONNX's integers, which the same option takes for models.
        let long = match lower.split_at_checked(1) {
            Some(("i", bits)) if bits.starts_with(|c: char| c.is_ascii_digit()) => {
                format!("int{bits}")
            }
            Some(("u", bits)) if bits.starts_with(|c: char| c.is_ascii_digit()) => {
                format!("uint{bits}")
            }
            _ => lower,
        };
        let format = Format::named(&long).map_err(|e| Error::Options(e.to_string()))?;
        Ok(Self::Format(format))
    }

    /// As users write it.
    pub fn name(&self) -> String {
        match self {
            Self::Float32 => "float32".into(),
            Self::Format(format) => format.name(),
            Self::Mix(mix) => mix.name.into(),
        }
    }

    /// Whether it is a floating type without scales, in which norms and embeddings lose nothing that matters.
    fn is_float(&self) -> bool {
        match self {
            Self::Float32 => true,
            Self::Format(format) => matches!(format.def.name, "float16" | "bfloat16"),
            Self::Mix(_) => false,
        }
    }
}

/// How a checkpoint is converted.
#[derive(Debug)]
pub struct Options {
    /// What weights become.
    pub weights: Weights,
    /// What kind of file is written.
    pub container: Container,
    /// Whether the scales of NF4 and FP4 are quantized too.
    pub nested: bool,
    /// How scales are chosen.
    pub search: Search,
    /// Under which keys; `None`: bitsandbytes' for its formats.
    pub keys: Option<Keys>,
    /// Tensors that keep their type: globs.
    pub keep: Vec<String>,
    /// Tensors that are converted although [`KEPT_NAMES`] or their dimensions say otherwise: globs.
    pub convert: Vec<String>,
    /// How much columns matter.
    pub importances: Option<Importances>,
    /// Keys of a GGUF file to write instead of the source's.
    pub gguf_keys: Option<Vec<KeyValue>>,
    /// Bytes of a shard at most, where one tensor is not more.
    pub shard_bytes: u64,
}

impl Options {
    /// Those that most people want.
    pub fn new(weights: Weights, container: Container) -> Self {
        Self {
            weights,
            container,
            nested: false,
            search: Search::MaxAbs,
            keys: None,
            keep: vec![],
            convert: vec![],
            importances: None,
            gguf_keys: None,
            shard_bytes: 5_000_000_000,
        }
    }
}

/// What a tensor becomes.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// What it is.
    Same,
    /// `float32`.
    Float32,
    /// That.
    Format(Format<'static>),
}

/// What becomes of one tensor.
#[derive(Debug)]
pub struct Item {
    /// Its place in [`Checkpoint::entries`].
    pub entry: usize,
    /// Its new type.
    pub target: Target,
    /// As the ledger shows it: before and after.
    pub types: (String, String),
    /// Why; empty where it is simply what was asked for.
    pub reason: String,
    /// Bytes before and after.
    pub n_bytes: (u64, u64),
    /// Rows that the target sees.
    pub(crate) shape: Shape,
    /// The tensors that it becomes, at these places of [`Plan::specs`].
    pub(crate) specs: std::ops::Range<usize>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) constants: Vec<(usize, Vec<u8>)>,
    /// What the metadata say of it, with its name.
    pub(crate) described: Option<(String, Described)>,
    /// Whether importances are used.
    pub has_importance: bool,
}

impl Item {
    /// Whether it keeps its type.
    pub fn is_kept(&self) -> bool {
        matches!(self.target, Target::Same)
    }
}

/// What becomes of a checkpoint.
#[derive(Debug)]
pub struct Plan {
    /// One for each entry, in their order.
    pub items: Vec<Item>,
    pub(crate) container: Container,
    pub(crate) specs: Vec<Spec>,
    pub(crate) metadata: Metadata,
    pub(crate) keys: Vec<KeyValue>,
    pub(crate) shard_bytes: u64,
    /// What the user should know besides.
    pub remarks: Vec<String>,
}

/// Decides what becomes of each tensor.
pub fn plan(checkpoint: &Checkpoint, options: &Options) -> Result<Plan, Error> {
    check(options)?;
    let layers = Layers::of(checkpoint.entries.iter().map(|entry| entry.name.as_str()));
    let mut plan = Plan {
        items: vec![],
        container: options.container,
        specs: vec![],
        metadata: checkpoint.metadata.clone(),
        keys: vec![],
        shard_bytes: options.shard_bytes,
        remarks: vec![],
    };
    for (i, entry) in checkpoint.entries.iter().enumerate() {
        let (mut target, mut reason) = decide(checkpoint, entry, options, &layers);
        if is_that_already(checkpoint, entry, target) {
            target = Target::Same;
            if reason.is_empty() {
                reason = "it is that already".into();
            }
        }
        add(&mut plan, checkpoint, i, target, reason, options);
    }
    for patterns in [&options.keep, &options.convert] {
        let unused = |pattern: &&String| {
            let one = std::slice::from_ref(*pattern);
            !checkpoint.entries.iter().any(|entry| rules::matched(one, &entry.name).is_some())
        };
        for pattern in patterns.iter().filter(unused) {
            plan.remarks.push(format!("no tensor matches `{pattern}`"));
        }
    }
    if plan.items.iter().all(Item::is_kept) && !plan.items.is_empty() {
        plan.remarks.push("no tensor is converted".into());
    }
    if options.importances.is_some() && !plan.items.iter().any(|item| item.has_importance) {
        return Err(Error::Options("no importances are of a tensor that uses them".into()));
    }
    if options.container == Container::Gguf {
        gguf_keys(&mut plan, checkpoint, options);
    } else {
        plan.metadata.remove(METADATA_KEY);
        if checkpoint.container == Container::Gguf {
            text_of_keys(&mut plan, &checkpoint.keys);
        }
    }
    Ok(plan)
}

/// Refuses options that do not go together.
fn check(options: &Options) -> Result<(), Error> {
    let name = options.weights.name();
    let refuse = |what: String| Err(Error::Options(what));
    let is_gguf = options.container == Container::Gguf;
    let mut is_four_bit = false;
    if let Weights::Format(format) = &options.weights {
        is_four_bit = layout::four_bit(format).is_some();
        if is_gguf && (rules::ggml_dtype(&name).is_none()) {
            return refuse(format!(
                "`{name}` is not a type of GGUF: float32, float16, bfloat16, {} are",
                ggml_names().join(", ")
            ));
        }
        if options.keys == Some(Keys::Bitsandbytes) && !layout::is_bitsandbytes(format) {
            return refuse(format!("bitsandbytes has no `{name}`: nf4, fp4 and llm_int8 it has"));
        }
    }
    if matches!(options.weights, Weights::Mix(_)) && !is_gguf {
        return refuse(format!(
            "`{name}` is a mixture for GGUF: give an output that ends in .gguf"
        ));
    }
    if options.nested && !is_four_bit {
        return refuse(format!("only nf4 and fp4 have nested scales, not `{name}`"));
    }
    Ok(())
}

/// ggml's formats and the mixtures.
fn ggml_names() -> Vec<&'static str> {
    let formats = midtread_num::formats::FORMATS.iter();
    let blocks = formats.filter(|def| ggml::block_type(def).is_some()).map(|def| def.name);
    blocks.chain(MIXES.iter().map(|mix| mix.name)).collect()
}

/// The type of a tensor, and why.
fn decide(
    checkpoint: &Checkpoint,
    entry: &Entry,
    options: &Options,
    layers: &Layers,
) -> (Target, String) {
    let is_gguf = options.container == Container::Gguf;
    let keep = |reason: String| (same(checkpoint, entry, options), reason);
    if let Stored::Plain(i) = entry.stored {
        let dtype = checkpoint.tensors[i].dtype;
        if dtype.values.is_none() {
            return (Target::Same, format!("{} is not converted", dtype.name));
        }
    }
    if let Some(pattern) = rules::matched(&options.keep, &entry.name) {
        return keep(format!("--keep {pattern}"));
    }
    let is_forced = rules::matched(&options.convert, &entry.name).is_some();
    if !is_forced && !options.weights.is_float() && matches!(entry.stored, Stored::Plain(_)) {
        if entry.dims.len() < 2 {
            return keep("less than two dimensions".into());
        }
        let names = if is_gguf { KEPT_NAMES_GGUF } else { KEPT_NAMES };
        if let Some(what) = rules::kept_name(names, &entry.name) {
            return keep(what.into());
        }
    }
    let mut format = match options.weights {
        Weights::Float32 => return (Target::Float32, String::new()),
        Weights::Format(format) => format,
        Weights::Mix(mix) => {
            Format::named(mix.format(&entry.name, layers)).expect("a format of the list")
        }
    };
    if options.weights.is_float() && is_gguf && entry.dims.len() < 2 {
        return (Target::Float32, "less than two dimensions: llama.cpp adds in float32".into());
    }
    if options.nested {
        let sharing = format.settings.sharing;
        let name = format!("{}_nested:{sharing}", format.def.name);
        format = Format::named(&name).unwrap_or(format);
    }
    format.settings.search = options.search;
    let keys = options.keys.unwrap_or(Keys::Bitsandbytes);
    if !is_gguf && keys == Keys::Bitsandbytes && layout::is_bitsandbytes(&format) {
        if entry.dims.len() != 2 {
            return keep("bitsandbytes' layers are matrices".into());
        }
        if format.def.name == "llm_int8" && !entry.name.ends_with("weight") {
            return keep("its name does not end in `weight`, where bitsandbytes' keys are".into());
        }
    }
    let shape = if is_gguf { ggml_rows(&entry.dims) } else { rows(&entry.dims) };
    if let Some(blocks) = ggml::block_type(format.def)
        && shape.n() != 0
        && !shape.cols.is_multiple_of(blocks.block_size)
    {
        let reason =
            format!("rows of {} are not whole blocks of {}", shape.cols, blocks.block_size);
        if !is_gguf {
            return keep(reason);
        }
        let name = rules::fallback(&format, &entry.dims).expect("rows are not whole blocks");
        let search = format.settings.search;
        format = Format::named(name).expect("a format of the list");
        format.settings.search = search;
        return (Target::Format(format), reason);
    }
    (Target::Format(format), String::new())
}

/// Whether a tensor has its new type.
fn is_that_already(checkpoint: &Checkpoint, entry: &Entry, target: Target) -> bool {
    let Stored::Plain(i) = entry.stored else { return false };
    match (target, checkpoint.tensors[i].dtype.name) {
        (Target::Same, _) => false,
        (Target::Float32, name) => name == "float32",
        (Target::Format(format), name) => name == format.name(),
    }
}

/// A tensor that is kept: as it is, if the file can have that.
fn same(checkpoint: &Checkpoint, entry: &Entry, options: &Options) -> Target {
    if options.container != Container::Gguf {
        return Target::Same;
    }
    match entry.stored {
        // What llama.cpp adds or multiplies by must be float32.
        Stored::Plain(_) if checkpoint.container != Container::Gguf && entry.dims.len() < 2 => {
            Target::Float32
        }
        Stored::Plain(i) if checkpoint.tensors[i].dtype.ggml.is_some() => Target::Same,
        Stored::Plain(_) | Stored::Parts(_) => Target::Float32,
    }
}

/// Adds the tensors that an entry becomes.
fn add(
    plan: &mut Plan,
    checkpoint: &Checkpoint,
    i: usize,
    target: Target,
    reason: String,
    options: &Options,
) {
    let entry = &checkpoint.entries[i];
    let is_gguf = options.container == Container::Gguf;
    let first = plan.specs.len();
    let (mut slots, mut constants, mut described) = (vec![Slot::Spec(0)], vec![], None);
    let (before, n_before) = match &entry.stored {
        Stored::Plain(t) => {
            let tensor = &checkpoint.tensors[*t];
            (tensor.dtype.name.to_owned(), tensor.n_bytes)
        }
        Stored::Parts(parts) => (parts.format.name(), parts.n_bytes(checkpoint)),
    };
    let shape = if is_gguf { ggml_rows(&entry.dims) } else { rows(&entry.dims) };
    let plain = |dtype: &'static DType| {
        let n_bytes = dtype.bytes_of(entry.n(), entry.dims.last().copied().unwrap_or(1));
        Spec {
            name: entry.name.clone(),
            dims: entry.dims.clone(),
            dtype,
            n_bytes: n_bytes.expect("the plan looks at blocks first"),
        }
    };
    let mut after = before.clone();
    match target {
        Target::Same => match &entry.stored {
            Stored::Plain(t) => {
                let tensor = &checkpoint.tensors[*t];
                let blocks =
                    tensor.dtype.safetensors.is_none().then(|| tensor.dtype.blocks()).flatten();
                if blocks.is_some() && !is_gguf {
                    // safetensors has no such type: its bytes become a part, with a word in the metadata.
                    plan.specs.push(Spec {
                        name: format!("{}.blocks", entry.name),
                        dims: vec![tensor.n_bytes],
                        dtype: DType::named("uint8"),
                        n_bytes: tensor.n_bytes,
                    });
                    described = describe(entry, tensor.dtype.name.into(), "float32");
                } else {
                    plan.specs.push(plain(tensor.dtype));
                }
            }
            Stored::Parts(parts) => {
                for t in &parts.tensors {
                    let tensor = &checkpoint.tensors[*t];
                    plan.specs.push(Spec {
                        name: tensor.name.clone(),
                        dims: tensor.dims.clone(),
                        dtype: tensor.dtype,
                        n_bytes: tensor.n_bytes,
                    });
                }
                if parts.keys == Keys::Plain {
                    described = describe(entry, parts.format.name(), parts.dtype.name);
                }
            }
        },
        Target::Float32 => {
            after = "float32".into();
            plan.specs.push(plain(DType::named("float32")));
        }
        Target::Format(format) => {
            after = format.name();
            let dtype_after = if is_gguf {
                rules::ggml_dtype(format.def.name)
            } else {
                layout::as_dtype(&format)
            };
            if let Some(dtype) = dtype_after {
                plan.specs.push(plain(dtype));
            } else {
                let keys = match options.keys {
                    None if layout::is_bitsandbytes(&format) => Keys::Bitsandbytes,
                    keys => keys.unwrap_or(Keys::Plain),
                };
                let original = original_dtype(checkpoint, entry);
                let written =
                    layout::write(&entry.name, &entry.dims, original, &format, shape, keys);
                plan.specs.extend(written.specs);
                (slots, constants) = (written.slots, written.constants);
                if keys == Keys::Plain {
                    described = describe(entry, format.name(), original.name);
                }
            }
        }
    }
    let n_after = plan.specs[first..].iter().map(|spec| spec.n_bytes).sum();
    let has_importance = match (&options.importances, target) {
        (Some(importances), Target::Format(format)) => {
            !format.def.is_flat
                && format.settings.sharing != Sharing::Nothing
                && importances.get(&entry.name).is_some()
        }
        _ => false,
    };
    plan.items.push(Item {
        entry: i,
        target,
        types: (before, after),
        reason,
        n_bytes: (n_before, n_after),
        shape,
        specs: first..plan.specs.len(),
        slots,
        constants,
        described,
        has_importance,
    });
}

fn describe(entry: &Entry, format: String, dtype: &str) -> Option<(String, Described)> {
    let described = Described { format, dtype: dtype.into(), dims: entry.dims.clone() };
    Some((entry.name.clone(), described))
}

/// The keys of a GGUF file: those that there were, and what its types are.
fn gguf_keys(plan: &mut Plan, checkpoint: &Checkpoint, options: &Options) {
    plan.keys = match &options.gguf_keys {
        Some(keys) => keys.clone(),
        None if checkpoint.container == Container::Gguf => checkpoint.keys.clone(),
        None => {
            let texts = checkpoint.metadata.iter().filter(|(key, _)| *key != METADATA_KEY);
            texts.map(|(key, value)| KeyValue::string(key, value)).collect()
        }
    };
    let file_type = match options.weights {
        Weights::Mix(mix) => Some(mix.file_type),
        Weights::Float32 => Some(0),
        Weights::Format(format) => rules::file_type(format.def.name),
    };
    let mut set = |kv: KeyValue| match plan.keys.iter_mut().find(|old| old.key == kv.key) {
        Some(old) => *old = kv,
        None => plan.keys.push(kv),
    };
    set(KeyValue::u32("general.quantization_version", 2));
    if let Some(file_type) = file_type {
        set(KeyValue::u32("general.file_type", file_type));
    }
    if !plan.keys.iter().any(|kv| kv.key == "general.architecture") {
        plan.remarks.push(
            "no key says what network this is, so llama.cpp will not run it: give the keys of a GGUF file of the same network with --metadata"
                .into(),
        );
    }
}

/// What safetensors' metadata can have of a GGUF file's keys: text, numbers and truth values, as text.
fn text_of_keys(plan: &mut Plan, keys: &[KeyValue]) {
    let mut n_arrays = 0;
    for kv in keys {
        match kv.value() {
            crate::gguf::Value::Array(..) => n_arrays += 1,
            value => {
                plan.metadata.insert(kv.key.clone(), value.to_string());
            }
        }
    }
    if n_arrays != 0 {
        plan.remarks.push(format!(
            "{n_arrays} lists among the keys, a vocabulary mostly, have no place in safetensors: for the way back keep the GGUF file, and give it with --metadata"
        ));
    }
}

/// The type that a tensor's values had before any quantization, as bitsandbytes is told.
pub(crate) fn original_dtype(checkpoint: &Checkpoint, entry: &Entry) -> &'static DType {
    let dtype = match &entry.stored {
        Stored::Plain(t) => checkpoint.tensors[*t].dtype,
        Stored::Parts(parts) => parts.dtype,
    };
    match dtype.name {
        "float16" | "bfloat16" => dtype,
        _ => DType::named("float32"),
    }
}
