//! What a user says about single nodes and tensors.
//!
//! ```toml
//! keep_float = ["/features/conv_1", "type:Softmax"] # nodes, as `--exclude` names them
//!
//! [tensors.conv1_out]
//! type = "u16"             # another integer type
//! symmetry = "symmetric"
//! min = -1.0               # a range instead of the calibrator's ...
//! max = 1.0
//!
//! [tensors."/features/relu6"]
//! calibrator = "percentile"  # ... or another calibrator ...
//! percentile = 99.9
//!
//! [tensors.probabilities]
//! scale = 0.00390625       # ... or the parameters themselves
//! zero_point = 0
//!
//! [tensors."head.weight"]
//! granularity = "per_tensor" # constants only
//! ```

use std::collections::BTreeMap;

use midtread_num::{QParams, QRange, Span, Symmetry};
use serde::Deserialize;

use crate::{
    calibrate::{CALIBRATORS, Calibrator},
    error::Error,
    plan::{IntType, Pattern, WeightGranularity, names::nearest, options::symmetry_from_word},
};

/// Overrides by name.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Nodes that stay in float, besides those that the options exclude.
    pub keep_float: Vec<Pattern>,
    /// Sorted, so that the first problem reported is always the same.
    pub tensors: BTreeMap<String, Override>,
}

/// What is different about one tensor.
#[derive(Clone, Debug, Default)]
pub struct Override {
    /// Its integer type.
    pub int_type: Option<IntType>,
    /// Whether its zero point is free.
    pub symmetry: Option<Symmetry>,
    /// Its range; not with `params` or `calibrator`.
    pub range: Option<(f32, f32)>,
    /// Its scale and zero point; not with `range`, `calibrator` or `symmetry`.
    pub params: Option<(f32, i32)>,
    /// How its range is chosen; not with `range` or `params`.
    pub calibrator: Option<Calibrator>,
    /// Which of its elements share parameters; for constants.
    pub granularity: Option<WeightGranularity>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OverridesFile {
    #[serde(default)]
    keep_float: Vec<String>,
    #[serde(default)]
    tensors: BTreeMap<String, toml::Spanned<OverrideFile>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OverrideFile {
    #[serde(rename = "type")]
    int_type: Option<String>,
    symmetry: Option<String>,
    min: Option<f32>,
    max: Option<f32>,
    scale: Option<f32>,
    zero_point: Option<i32>,
    calibrator: Option<String>,
    percentile: Option<f64>,
    averaging_constant: Option<f64>,
    granularity: Option<String>,
}

impl Overrides {
    /// From the text of an overrides file; every entry is checked. `file` is for the message.
    pub fn from_toml(file: &str, text: &str) -> Result<Self, Error> {
        let bad = |at: Option<usize>, problem: String| Error::File {
            file: file.to_owned(),
            line: at.map(|at| text[..at.min(text.len())].matches('\n').count() + 1),
            problem,
        };
        let raw: OverridesFile = toml::from_str(text)
            .map_err(|err| bad(err.span().map(|span| span.start), err.message().to_owned()))?;
        let mut tensors = BTreeMap::new();
        for (name, entry) in raw.tensors {
            let at = entry.span().start;
            let entry = entry.into_inner().check();
            let entry =
                entry.map_err(|problem| bad(Some(at), format!("tensor `{name}`: {problem}")))?;
            tensors.insert(name, entry);
        }
        let Ok(keep_float) = raw.keep_float.iter().map(|text| text.parse()).collect();
        Ok(Self { keep_float, tensors })
    }
}

impl OverrideFile {
    fn check(self) -> Result<Override, String> {
        let int_type: Option<IntType> = self.int_type.as_deref().map(str::parse).transpose()?;
        let symmetry = self.symmetry.as_deref().map(symmetry_from_word).transpose()?;
        let granularity = self.granularity.as_deref().map(str::parse).transpose()?;
        let range = match (self.min, self.max) {
            (None, None) => None,
            (Some(min), Some(max)) if min.is_finite() && max.is_finite() && min <= max => {
                Some((min, max))
            }
            (Some(min), Some(max)) => {
                return Err(format!("[{min}, {max}] is not a finite interval"));
            }
            _ => return Err("`min` and `max` come together".into()),
        };
        let params = match (self.scale, self.zero_point) {
            (None, None) => None,
            (Some(scale), Some(zero_point)) => Some((scale, zero_point)),
            _ => return Err("`scale` and `zero_point` come together".into()),
        };
        if let Some((scale, zero_point)) = params {
            // Without a type, whatever some type could hold: held to the tensor's own type when it is planned.
            let any = QRange::new(-32768, 65535).expect("the widest range is one");
            let range = int_type.map_or(any, |t| t.range(Span::Full));
            QParams::new(scale, zero_point, range).map_err(|err| err.to_string())?;
        }
        let calibrator = match &self.calibrator {
            None if self.percentile.is_some() || self.averaging_constant.is_some() => {
                return Err("`percentile` and `averaging_constant` need a `calibrator`".into());
            }
            None => None,
            Some(name) => {
                let unknown = || {
                    let near = nearest(name, CALIBRATORS.iter().map(|def| def.name));
                    let near =
                        near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                    format!("`{name}` is not a calibrator{near}")
                };
                let mut calibrator = Calibrator::named(name).ok_or_else(unknown)?;
                calibrator.percentile = self.percentile.unwrap_or(calibrator.percentile);
                calibrator.averaging_constant =
                    self.averaging_constant.unwrap_or(calibrator.averaging_constant);
                if !(0.0 < calibrator.percentile && calibrator.percentile <= 100.0) {
                    return Err(format!("percentile {} is not in (0, 100]", calibrator.percentile));
                }
                if !(0.0 < calibrator.averaging_constant && calibrator.averaging_constant <= 1.0) {
                    return Err(format!(
                        "averaging_constant {} is not in (0, 1]",
                        calibrator.averaging_constant
                    ));
                }
                Some(calibrator)
            }
        };
        let n_ways = [range.is_some(), params.is_some(), calibrator.is_some()]
            .iter()
            .filter(|&&b| b)
            .count();
        if 1 < n_ways {
            return Err("a range, a scale and a calibrator exclude each other".into());
        }
        if params.is_some() && symmetry.is_some() {
            return Err("`symmetry` says nothing beside `zero_point`".into());
        }
        Ok(Override { int_type, symmetry, range, params, calibrator, granularity })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_checked_not_only_the_first() {
        let text = "[tensors.a]\ntype = \"i8\"\n\n[tensors.b]\ntype = \"i8\"\nscale = -1.0\nzero_point = 0\n";
        let err = Overrides::from_toml("o.toml", text).unwrap_err();
        assert_eq!(
            err.to_string(),
            "o.toml line 4: tensor `b`: scale must be finite and positive: -1"
        );
    }

    #[test]
    fn nodes_to_keep_in_float_are_named_as_exclude_names_them() {
        let text = "keep_float = [\"fc\", \"type:Softmax\"]\n[tensors.a]\ntype = \"i8\"\n";
        let overrides = Overrides::from_toml("o.toml", text).unwrap();
        let want = [Pattern::Name("fc".into()), Pattern::OpType("Softmax".into())];
        assert_eq!((&overrides.keep_float[..], overrides.tensors.len()), (&want[..], 1));
    }

    #[test]
    fn contradictions_and_slips_are_refused() {
        for (entry, problem) in [
            ("min = 0.0", "come together"),
            ("min = 1.0\nmax = 0.0", "not a finite interval"),
            ("min = 0.0\nmax = inf", "not a finite interval"),
            ("scale = 0.1", "come together"),
            ("scale = 0.1\nzero_point = 300\ntype = \"u8\"", "zero_point 300 is outside 0..=255"),
            ("scale = 0.1\nzero_point = 0\nmin = 0.0\nmax = 1.0", "exclude each other"),
            ("scale = 0.1\nzero_point = 0\nsymmetry = \"symmetric\"", "says nothing"),
            ("calibrator = \"minmax\"", "did you mean `min_max`"),
            ("calibrator = \"percentile\"\npercentile = 0.0", "not in (0, 100]"),
            ("percentile = 99.0", "need a `calibrator`"),
            ("typ = \"i8\"", "unknown field `typ`"),
            ("type = \"int7\"", "not one of the integer types"),
            ("granularity = \"blocked\"", "not a granularity"),
        ] {
            let got = Overrides::from_toml("o", &format!("[tensors.x]\n{entry}\n"));
            let err = got.expect_err(entry);
            assert!(err.to_string().contains(problem), "{entry}: {err}");
        }
    }
}
