//! What the samples show.
//!
//! A sample may have several right answers (`tabby` and `tiger cat`): a prediction is right if it is any of them.

use std::{collections::BTreeMap, fs, path::Path};

use midtread_graph::DataType;
use serde_json::Value;

use crate::{error::Error, idx, source::extension};

/// The classes of samples, by file name or by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Labels {
    /// By the sample's file name.
    ByName(BTreeMap<String, Vec<usize>>),
    /// By the sample's position.
    ByIndex(Vec<Vec<usize>>),
}

impl Labels {
    /// Reads labels: CSV (`file,label`, with or without a line of titles, several labels with `|` between them), JSON
    /// (`{"file": label}`, `{"file": [label, ...]}`, a list of either by position, or a list of
    /// `{"file": ..., "labels": ...}`), or an IDX file (also compressed with gzip), by position.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let bad = |what: String| Error::Labels { path: path.to_owned(), what };
        match extension(path).as_str() {
            "csv" | "json" => {
                let text = fs::read_to_string(path).map_err(Error::io(path))?;
                let labels =
                    if extension(path) == "csv" { from_csv(&text) } else { from_json(&text) };
                labels.map_err(bad)
            }
            _ if idx::is_idx(path)? => {
                let array = idx::read(path)?;
                if array.dims().len() != 1 || array.dtype() != DataType::Uint8 {
                    return Err(bad(format!("{}{:?} are no labels", array.dtype(), array.dims())));
                }
                Ok(Self::ByIndex(array.as_bytes().iter().map(|&x| vec![usize::from(x)]).collect()))
            }
            _ => Err(bad("it is neither CSV, JSON nor IDX".to_owned())),
        }
    }

    /// The right answers for sample `i`, called `name`; `None` where there are none. A name matches as a path, as a
    /// file name, or without its extension, in this order.
    pub fn get(&self, i: usize, name: &str) -> Option<&[usize]> {
        match self {
            Self::ByIndex(labels) => labels.get(i).map(Vec::as_slice),
            Self::ByName(labels) => {
                let file = name.rsplit('/').next().unwrap_or(name);
                let exact = labels.get(name).or_else(|| labels.get(file)).map(Vec::as_slice);
                // `cat.npy` was made from `cat.png`.
                exact.or_else(|| {
                    let start = labels
                        .range(stem(file).to_owned()..)
                        .take_while(|(key, _)| key.starts_with(stem(file)));
                    start
                        .into_iter()
                        .find(|(key, _)| stem(key) == stem(file))
                        .map(|(_, labels)| labels.as_slice())
                })
            }
        }
    }

    /// How many samples have labels.
    pub fn n_labeled(&self) -> usize {
        match self {
            Self::ByName(labels) => labels.len(),
            Self::ByIndex(labels) => labels.len(),
        }
    }
}

fn stem(file: &str) -> &str {
    file.rsplit_once('.').map_or(file, |(stem, _)| stem)
}

fn from_csv(text: &str) -> Result<Labels, String> {
    let mut labels = BTreeMap::new();
    for (i, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let bad = |what: &str| format!("line {}: {what}: `{line}`", i + 1);
        let (file, label) = line.rsplit_once(',').ok_or_else(|| bad("there is no comma"))?;
        let unquoted = |text: &str| text.trim().trim_matches('"').to_owned();
        let parsed: Result<Vec<usize>, _> =
            unquoted(label).split('|').map(|l| l.trim().parse()).collect();
        match parsed {
            Ok(classes) => {
                if labels.insert(unquoted(file), classes).is_some() {
                    return Err(bad("the file is there twice"));
                }
            }
            // Titles.
            Err(_) if i == 0 => {}
            Err(_) => return Err(bad("the label is no number")),
        }
    }
    if labels.is_empty() { Err("there are none".to_owned()) } else { Ok(Labels::ByName(labels)) }
}

fn from_json(text: &str) -> Result<Labels, String> {
    let classes = |at: &str, value: &Value| -> Result<Vec<usize>, String> {
        let one = |value: &Value| {
            let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
            number.ok_or_else(|| format!("{at}: {value} is no class number"))
        };
        match value {
            Value::Array(list) => list.iter().map(one).collect(),
            value => Ok(vec![one(value)?]),
        }
    };
    let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    match value {
        Value::Object(map) => {
            let labels = map
                .iter()
                .map(|(file, value)| Ok((file.clone(), classes(&format!("`{file}`"), value)?)));
            Ok(Labels::ByName(labels.collect::<Result<_, String>>()?))
        }
        Value::Array(list) if list.first().is_some_and(Value::is_object) => {
            let entry = |(i, entry): (usize, &Value)| {
                let file = entry.get("file").and_then(Value::as_str);
                let file = file.ok_or_else(|| format!("entry {i} has no `file`"))?;
                let value = entry.get("labels").or_else(|| entry.get("label"));
                let value = value.ok_or_else(|| format!("entry {i} has no `labels`"))?;
                Ok((file.to_owned(), classes(&format!("`{file}`"), value)?))
            };
            Ok(Labels::ByName(list.iter().enumerate().map(entry).collect::<Result<_, String>>()?))
        }
        Value::Array(list) => {
            let labels =
                list.iter().enumerate().map(|(i, value)| classes(&format!("entry {i}"), value));
            Ok(Labels::ByIndex(labels.collect::<Result<_, _>>()?))
        }
        _ => Err("it is neither an object nor a list".to_owned()),
    }
}
