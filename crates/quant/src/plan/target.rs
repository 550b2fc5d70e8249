//! What a device can run, as data. A new device is a TOML file, not a branch.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use midtread_graph::model::canonical_domain;
use midtread_num::Symmetry;
use serde::Deserialize;

use crate::{
    error::Error,
    half::HalfType,
    plan::{IntType, Scheme, WeightGranularity, names::nearest, options::symmetry_from_word},
};

/// What a device can run.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// `snake_case`, unique; the file's name.
    pub name: String,
    /// One line for `--help` and the reference documentation.
    pub summary: String,
    /// Ways of quantizing it runs.
    pub schemes: Vec<Scheme>,
    /// Forms of model it reads: `qdq`, `qoperator`.
    pub formats: Vec<String>,
    /// Whether its products of 8-bit integers saturate for full weights on some of its CPUs.
    pub suggests_reduce_range: bool,
    /// What activations may be.
    pub activations: Allowed,
    /// What weights may be.
    pub weights: Allowed,
    /// Operators it runs on integers, and what is special about each. Others stay in float.
    pub operators: BTreeMap<String, OperatorRule>,
    /// Operators it computes in 16-bit floats, by type. A type that is not there it does not read.
    pub halves: BTreeMap<HalfType, HalfKernels>,
}

/// The operators that a target computes in one of the 16-bit float types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HalfKernels {
    /// All whose specification has the type.
    All,
    /// These; an operator of another domain than ONNX's with its domain before it: `com.microsoft.Gelu`.
    Listed(BTreeSet<String>),
}

impl HalfKernels {
    /// Whether the operator is among them.
    pub fn has(&self, domain: &str, op_type: &str) -> bool {
        match self {
            Self::All => true,
            Self::Listed(names) if canonical_domain(domain).is_empty() => names.contains(op_type),
            Self::Listed(names) => names.contains(&format!("{domain}.{op_type}")),
        }
    }
}

/// Types and forms that a kind of tensor may have.
#[derive(Clone, Debug, PartialEq)]
pub struct Allowed {
    /// Integer types.
    pub types: Vec<IntType>,
    /// Where the zero point may be.
    pub symmetries: Vec<Symmetry>,
    /// `per_tensor`, `per_channel`, `blocked`. Empty for activations, which are per tensor.
    pub granularities: Vec<String>,
}

/// What is special about an operator on a target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OperatorRule {
    /// Whether its output stays in float.
    pub float_output: bool,
    /// Whether weights of this operator are per tensor whatever the options say.
    pub per_tensor_weights: bool,
    /// Why, for the documentation.
    pub note: String,
}

/// Every target that comes with the program: name and text.
pub static TARGETS: &[(&str, &str)] = &[
    ("midtread", include_str!("../../../../targets/midtread.toml")),
    ("onnx", include_str!("../../../../targets/onnx.toml")),
    ("onnxruntime_cpu", include_str!("../../../../targets/onnxruntime_cpu.toml")),
    ("openvino", include_str!("../../../../targets/openvino.toml")),
    ("tensorrt", include_str!("../../../../targets/tensorrt.toml")),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetFile {
    name: String,
    summary: String,
    schemes: Vec<String>,
    formats: Vec<String>,
    #[serde(default)]
    suggests_reduce_range: bool,
    activations: AllowedFile,
    weights: AllowedFile,
    operators: BTreeMap<String, RuleFile>,
    float16: Option<HalfFile>,
    bfloat16: Option<HalfFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HalfFile {
    operators: HalfOperators,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum HalfOperators {
    Word(String),
    List(BTreeSet<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AllowedFile {
    types: Vec<String>,
    symmetries: Vec<String>,
    #[serde(default)]
    granularities: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    #[serde(default)]
    float_output: bool,
    #[serde(default)]
    per_tensor_weights: bool,
    #[serde(default)]
    note: String,
}

impl Target {
    /// The target of this name, if `name` is one that comes with the program; otherwise the target in the file of
    /// this name, if it ends in `.toml`.
    pub fn find(name: &str) -> Result<Self, Error> {
        if let Some((_, text)) = TARGETS.iter().find(|(known, _)| *known == name) {
            return Self::from_toml(name, text);
        }
        if name.ends_with(".toml") {
            let text = std::fs::read_to_string(Path::new(name)).map_err(|err| Error::File {
                file: name.to_owned(),
                line: None,
                problem: err.to_string(),
            })?;
            return Self::from_toml(name, &text);
        }
        let known: Vec<&str> = TARGETS.iter().map(|(known, _)| *known).collect();
        Err(Error::Unknown {
            what: "target",
            name: name.to_owned(),
            problem: format!("is neither one of {} nor a .toml file", known.join(", ")),
            suggest: nearest(name, known),
        })
    }

    /// From the text of a target file. `file` is for the message.
    pub fn from_toml(file: &str, text: &str) -> Result<Self, Error> {
        let bad = |line, problem| Error::File { file: file.to_owned(), line, problem };
        let raw: TargetFile = toml::from_str(text).map_err(|err| {
            let line = err.span().map(|span| text[..span.start].matches('\n').count() + 1);
            bad(line, err.message().to_owned())
        })?;
        let schemes = words(&raw.schemes).map_err(|problem| bad(None, problem))?;
        for format in &raw.formats {
            if !["qdq", "qoperator"].contains(&format.as_str()) {
                return Err(bad(None, format!("`{format}` is not a format: qdq, qoperator")));
            }
        }
        for (what, allowed) in [("activations", &raw.activations), ("weights", &raw.weights)] {
            if allowed.types.is_empty() || allowed.symmetries.is_empty() {
                return Err(bad(
                    None,
                    format!("{what}: `types` and `symmetries` must not be empty"),
                ));
            }
            for granularity in &allowed.granularities {
                if !["per_tensor", "per_channel", "blocked"].contains(&granularity.as_str()) {
                    let problem = format!(
                        "`{granularity}` is not a granularity: per_tensor, per_channel, blocked"
                    );
                    return Err(bad(None, problem));
                }
            }
        }
        let allowed = |raw: AllowedFile| {
            Ok::<_, String>(Allowed {
                types: words(&raw.types)?,
                symmetries: raw
                    .symmetries
                    .iter()
                    .map(|text| symmetry_from_word(text))
                    .collect::<Result<_, _>>()?,
                granularities: raw.granularities,
            })
        };
        let mut halves = BTreeMap::new();
        for (half, file) in [(HalfType::Float16, raw.float16), (HalfType::Bfloat16, raw.bfloat16)] {
            let kernels = match file.map(|file| file.operators) {
                None => continue,
                Some(HalfOperators::Word(word)) if word == "all" => HalfKernels::All,
                Some(HalfOperators::Word(word)) => {
                    let problem =
                        format!("{half}: `{word}` is neither `all` nor a list of operators");
                    return Err(bad(None, problem));
                }
                Some(HalfOperators::List(names)) => HalfKernels::Listed(names),
            };
            halves.insert(half, kernels);
        }
        let operators = raw.operators.into_iter().map(|(op_type, rule)| {
            let RuleFile { float_output, per_tensor_weights, note } = rule;
            (op_type, OperatorRule { float_output, per_tensor_weights, note })
        });
        Ok(Self {
            name: raw.name,
            summary: raw.summary,
            schemes,
            formats: raw.formats,
            suggests_reduce_range: raw.suggests_reduce_range,
            activations: allowed(raw.activations).map_err(|problem| bad(None, problem))?,
            weights: allowed(raw.weights).map_err(|problem| bad(None, problem))?,
            operators: operators.collect(),
            halves,
        })
    }

    /// Whether weights may have this granularity.
    pub fn allows(&self, granularity: WeightGranularity) -> bool {
        let word = match granularity {
            WeightGranularity::PerTensor => "per_tensor",
            WeightGranularity::PerChannel => "per_channel",
            WeightGranularity::Blocked(_) => "blocked",
        };
        self.weights.granularities.iter().any(|g| g == word)
    }
}

fn words<T: std::str::FromStr<Err = String>>(texts: &[String]) -> Result<Vec<T>, String> {
    texts.iter().map(|text| text.parse()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_file_is_valid_sorted_and_named_after_itself() {
        assert!(TARGETS.windows(2).all(|w| w[0].0 < w[1].0));
        for (name, text) in TARGETS {
            let target =
                Target::from_toml(name, text).unwrap_or_else(|err| panic!("{name}: {err}"));
            assert_eq!(target.name, *name);
            assert!(
                !target.summary.is_empty()
                    && !target.schemes.is_empty()
                    && !target.formats.is_empty()
            );
            assert!(
                target.operators.contains_key("Conv") && target.operators.contains_key("MatMul"),
                "{name}"
            );
            assert!(target.allows(WeightGranularity::PerTensor), "{name}");
        }
    }

    #[test]
    fn every_target_file_in_the_folder_is_in_the_list() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../targets");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter_map(|file| file.strip_suffix(".toml").map(str::to_owned))
            .collect();
        files.sort();
        assert_eq!(files, TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }

    #[test]
    fn keys_and_words_that_are_not_known_are_refused_with_the_line() {
        let text = TARGETS[0].1;
        let err = Target::from_toml("t", &format!("colour = 1\n{text}")).unwrap_err();
        assert!(err.to_string().starts_with("t line 1: unknown field `colour`"), "{err}");
        let err = Target::from_toml("t", &text.replace("\"u8\"", "\"u9\"")).unwrap_err();
        assert!(err.to_string().contains("`u9` is not one of the integer types"), "{err}");
        let err = Target::find("onnxruntime").unwrap_err();
        assert!(matches!(err, Error::Unknown { .. }));
        let err = Target::find("openvine").unwrap_err();
        assert!(err.to_string().ends_with("did you mean `openvino`?"), "{err}");
    }
}
