//! What `midtread quantize` and `midtread inspect` do with checkpoints: safetensors and GGUF files.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;
use midtread::checkpoint::{
    Checkpoint, Container, Importances, Item, Keys, Options, Plan, Run, Stored, Weights, Written,
    convert, gguf, plan,
};
use midtread::num::formats::Search;
use midtread::quantize::peak_bytes;
use serde_json::{Value, json};

use crate::args::Bytes;
use crate::context::{Context, Outcome, check_output};
use crate::table::{shorten, size, table};

/// What only checkpoints take.
#[derive(Args)]
#[command(next_help_heading = "Checkpoints (.safetensors, .safetensors.index.json, .gguf)")]
pub(crate) struct CheckpointArgs {
    /// Keep these tensors as they are: a name or a glob (repeatable)
    #[arg(long, value_name = "GLOB")]
    keep: Vec<String>,
    /// Convert these tensors although they are norms, embeddings, biases or the output layer (repeatable)
    #[arg(long, value_name = "GLOB")]
    convert: Vec<String>,
    /// Quantize the scales of nf4 and fp4 too
    #[arg(long)]
    nested: bool,
    /// How scales are chosen: max_abs, or mse, which looks for the least squared error
    #[arg(long, value_name = "WAY", value_parser = search_values())]
    search: Option<String>,
    /// How much each column of a weight matters: llama.cpp's importance matrix as GGUF, or a safetensors file with a
    /// float32 vector for each weight, under its name
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,
    /// Under which keys safetensors has what is quantized: bitsandbytes (nf4, fp4 and llm_int8 unless you say
    /// otherwise), plain
    #[arg(long, value_name = "LAYOUT", value_parser = key_values())]
    keys: Option<String>,
    /// Take the keys of this GGUF file (network, vocabulary) for the one that is written
    #[arg(long, value_name = "FILE.gguf")]
    metadata: Option<PathBuf>,
    /// Bytes of a shard, if the output is an index: 2G [default: 5 GB]
    #[arg(long, value_name = "SIZE")]
    shard_size: Option<Bytes>,
}

fn search_values() -> clap::builder::PossibleValuesParser {
    Search::ALL.iter().map(|search| search.name()).collect::<Vec<_>>().into()
}

fn key_values() -> clap::builder::PossibleValuesParser {
    Keys::ALL.iter().map(|keys| keys.name()).collect::<Vec<_>>().into()
}

impl CheckpointArgs {
    /// The first option that was given, if any.
    pub(super) fn used(&self) -> Option<&'static str> {
        [
            ("--keep", !self.keep.is_empty()),
            ("--convert", !self.convert.is_empty()),
            ("--nested", self.nested),
            ("--search", self.search.is_some()),
            ("--importance", self.importance.is_some()),
            ("--keys", self.keys.is_some()),
            ("--metadata", self.metadata.is_some()),
            ("--shard-size", self.shard_size.is_some()),
        ]
        .into_iter()
        .find_map(|(name, is_used)| is_used.then_some(name))
    }

    fn options(&self, weights: &str, container: Container) -> anyhow::Result<Options> {
        let weights = Weights::named(weights).map_err(midtread::Error::from)?;
        let mut options = Options::new(weights, container);
        options.keep = self.keep.clone();
        options.convert = self.convert.clone();
        options.nested = self.nested;
        if let Some(name) = &self.search {
            options.search =
                Search::from_name(name).context("clap takes only names in the list")?;
        }
        options.keys = self
            .keys
            .as_ref()
            .and_then(|name| Keys::ALL.iter().copied().find(|keys| keys.name() == name));
        if let Some(path) = &self.importance {
            options.importances = Some(Importances::open(path).map_err(midtread::Error::from)?);
        }
        if let Some(path) = &self.metadata {
            let other = Checkpoint::open(path).map_err(midtread::Error::from)?;
            if other.container != Container::Gguf || container != Container::Gguf {
                bail!("--metadata takes the keys of a GGUF file for another one");
            }
            options.gguf_keys = Some(other.keys);
        }
        if let Some(bytes) = self.shard_size {
            if container != Container::Sharded {
                bail!("--shard-size needs an output that ends in .safetensors.index.json");
            }
            options.shard_bytes = bytes.0 as u64;
        }
        Ok(options)
    }
}

/// `model.safetensors` as `model.nf4.safetensors`, the index of shards as one of shards.
fn default_output(model: &Path, container: Container, weights: &str) -> PathBuf {
    let tag: String =
        weights.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let name = model.file_name().unwrap_or_default().to_string_lossy();
    let (stem, suffix) = match container {
        Container::Sharded => {
            (name.trim_end_matches(".safetensors.index.json"), ".safetensors.index.json")
        }
        Container::Safetensors => (name.trim_end_matches(".safetensors"), ".safetensors"),
        Container::Gguf => (name.trim_end_matches(".gguf"), ".gguf"),
    };
    model.with_file_name(format!("{stem}.{tag}{suffix}"))
}

/// `midtread quantize` of a checkpoint.
pub(super) fn quantize(
    context: &Context,
    model: &Path,
    output: Option<&Path>,
    weights: &str,
    args: &CheckpointArgs,
    whole_ledger: bool,
) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let checkpoint = Checkpoint::open(model).map_err(midtread::Error::from)?;
    let output = match output {
        Some(path) => path.to_owned(),
        None => default_output(model, checkpoint.container, weights),
    };
    let container = Container::of_path(&output).with_context(|| {
        format!("`{}` must end in .safetensors, .safetensors.index.json or .gguf", output.display())
    })?;
    check_output(&output)?;
    let options = args.options(weights, container)?;
    let plan = plan(&checkpoint, &options).map_err(midtread::Error::from)?;
    plan.remarks.iter().for_each(|remark| context.warn(remark));
    let bar = context.bytes_bar("quantize", checkpoint.n_bytes());
    let run = Run {
        n_threads: context.n_threads,
        progress: &|n| bar.set_position(n),
        interrupted: &context.interrupted,
    };
    let written = convert(&checkpoint, &plan, &options, &output, &run);
    bar.finish_and_clear();
    let written = written.map_err(midtread::Error::from)?;
    let seconds = start.elapsed().as_secs_f64();
    if context.json {
        context.print_json(&document(&checkpoint, &plan, &written, seconds));
        return Ok(Outcome::Done);
    }
    let n_bytes = checkpoint.n_bytes();
    context.say(format!(
        "{} -> {}: {} -> {} ({:.2} of it), {:.1} s, {:.0} MB/s",
        model.display(),
        output.display(),
        size(n_bytes),
        size(written.n_bytes),
        written.n_bytes as f64 / n_bytes.max(1) as f64,
        seconds,
        n_bytes as f64 / 1e6 / seconds.max(1e-3)
    ));
    let n_kept = plan.items.iter().filter(|item| item.is_kept()).count();
    context.say(format!("{} tensors converted, {n_kept} kept", plan.items.len() - n_kept));
    context.say(ledger_text(&checkpoint, &plan, whole_ledger).trim_end());
    Ok(Outcome::Done)
}

fn name<'a>(checkpoint: &'a Checkpoint, item: &Item) -> &'a str {
    &checkpoint.entries[item.entry].name
}

fn document(checkpoint: &Checkpoint, plan: &Plan, written: &Written, seconds: f64) -> Value {
    let row = |item: &Item| {
        json!({
            "tensor": name(checkpoint, item),
            "dims": checkpoint.entries[item.entry].dims,
            "status": if item.is_kept() { "kept" } else { "converted" },
            "from": item.types.0,
            "to": item.types.1,
            "reason": item.reason,
            "importance": item.has_importance,
            "bytes_in": item.n_bytes.0,
            "bytes_out": item.n_bytes.1,
        })
    };
    json!({
        "outputs": written.paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        "bytes_in": checkpoint.n_bytes(),
        "bytes_out": written.n_bytes,
        "ledger": plan.items.iter().map(row).collect::<Vec<_>>(),
        "remarks": plan.remarks,
        "seconds": seconds,
        "thread_seconds": {
            "read": written.seconds.read,
            "encode": written.seconds.encode,
            "write": written.seconds.write,
        },
        "peak_bytes": peak_bytes(),
    })
}

/// The ledger for people. Tensors of the same fate are one line, unless all are asked for.
fn ledger_text(checkpoint: &Checkpoint, plan: &Plan, all: bool) -> String {
    let mut rows = vec![["tensor", "from", "to", "reason"].map(str::to_owned).to_vec()];
    let row = |tensor: String, item: &Item| {
        vec![tensor, item.types.0.clone(), item.types.1.clone(), item.reason.clone()]
    };
    if all {
        rows.extend(plan.items.iter().map(|item| row(shorten(name(checkpoint, item), 44), item)));
        return table(&rows);
    }
    let mut groups: Vec<(&Item, usize)> = vec![];
    for item in &plan.items {
        let is_like = |other: &Item| {
            other.types == item.types
                && other.reason == item.reason
                && other.is_kept() == item.is_kept()
        };
        match groups.iter_mut().find(|(first, _)| is_like(first)) {
            Some((_, n)) => *n += 1,
            None => groups.push((item, 1)),
        }
    }
    for (item, n) in groups {
        let first = shorten(name(checkpoint, item), 36);
        let tensor = if n == 1 { first } else { format!("{first} and {} more", n - 1) };
        rows.push(row(tensor, item));
    }
    table(&rows)
}

/// `midtread inspect` of a checkpoint.
pub(super) fn inspect(context: &Context, path: &Path) -> anyhow::Result<Outcome> {
    let checkpoint = Checkpoint::open(path).map_err(midtread::Error::from)?;
    let ty = |stored: &Stored| match stored {
        Stored::Plain(i) => checkpoint.tensors[*i].dtype.name.to_owned(),
        Stored::Parts(parts) => format!("{} ({} keys)", parts.format.name(), parts.keys.name()),
    };
    let bytes = |stored: &Stored| -> u64 {
        match stored {
            Stored::Plain(i) => checkpoint.tensors[*i].n_bytes,
            Stored::Parts(parts) => parts.n_bytes(&checkpoint),
        }
    };
    let keys: Vec<(String, gguf::Value)> =
        checkpoint.keys.iter().map(|kv| (kv.key.clone(), kv.value())).collect();
    if context.json {
        let tensors = checkpoint.entries.iter().map(|entry| {
            json!({
                "name": entry.name,
                "dims": entry.dims,
                "type": ty(&entry.stored),
                "bytes": bytes(&entry.stored),
            })
        });
        let text = |value: &gguf::Value| value.to_string();
        context.print_json(&json!({
            "container": checkpoint.container.name(),
            "files": checkpoint.paths().map(|path| path.display().to_string()).collect::<Vec<_>>(),
            "bytes": checkpoint.n_bytes(),
            "version": checkpoint.gguf.map(|(version, _)| version),
            "alignment": checkpoint.gguf.map(|(_, alignment)| alignment),
            "metadata": checkpoint.metadata,
            "keys": keys.iter().map(|(key, value)| (key.clone(), text(value).into())).collect::<serde_json::Map<_, _>>(),
            "tensors": tensors.collect::<Vec<_>>(),
        }));
        return Ok(Outcome::Done);
    }
    let n: u64 = checkpoint.entries.iter().map(|entry| entry.n()).sum();
    context.say(format!(
        "{}: {}{}, {}, {} tensors, {n} elements",
        path.display(),
        checkpoint.container.name(),
        checkpoint.gguf.map_or(String::new(), |(v, a)| format!(" version {v}, alignment {a}")),
        size(checkpoint.n_bytes()),
        checkpoint.entries.len(),
    ));
    let metadata = checkpoint.metadata.iter().map(|(key, value)| (key.clone(), value.clone()));
    for (key, value) in metadata.chain(keys.iter().map(|(key, v)| (key.clone(), v.to_string()))) {
        context.say(format!("  {key}: {}", shorten(&value.replace('\n', " "), 70)));
    }
    let mut rows = vec![["tensor", "sizes", "type", "bytes"].map(str::to_owned).to_vec()];
    for entry in &checkpoint.entries {
        let dims: Vec<String> = entry.dims.iter().map(u64::to_string).collect();
        rows.push(vec![
            shorten(&entry.name, 50),
            format!("[{}]", dims.join(", ")),
            ty(&entry.stored),
            size(bytes(&entry.stored)),
        ]);
    }
    context.say(table(&rows).trim_end());
    Ok(Outcome::Done)
}
