//! What a user can ask for.

use std::{fmt, num::NonZero, str::FromStr};

use midtread_num::{Span, Symmetry};

use crate::{
    calibrate::Calibrator,
    plan::{IntType, Overrides},
};

/// The three ways of quantizing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Weights and activations, with scales that are constants in the model.
    Static,
    /// Weights ahead of time, activations with scales computed at run time (DynamicQuantizeLinear).
    Dynamic,
    /// Weights only; they are dequantized and the computation is in float.
    WeightOnly,
}

/// Which elements of a weight share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightGranularity {
    /// All.
    PerTensor,
    /// Those of one output channel.
    PerChannel,
    /// Runs of this many elements along the dimension that is summed over (weight-only).
    Blocked(NonZero<usize>),
}

/// What becomes of constant biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BiasForm {
    /// `i32` with scale `input scale * weight scale`.
    Int32,
    /// As it is.
    Float,
}

/// The types of a quantized model's own inputs and outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// As in the float model.
    Float,
    /// Integers where the tensor is quantized: the caller quantizes and dequantizes.
    Integer,
}

/// Everything `plan` can be told, besides the target.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// Static by default.
    pub scheme: Scheme,
    /// `u8` by default.
    pub activation_type: IntType,
    /// Asymmetric by default.
    pub activation_symmetry: Symmetry,
    /// `i8` by default.
    pub weight_type: IntType,
    /// By default (`None`) symmetric for signed types and per-channel weights, else asymmetric.
    pub weight_symmetry: Option<Symmetry>,
    /// Per channel by default.
    pub granularity: WeightGranularity,
    /// Whether weights use a bit less ([`Span::Reduced`]), for CPUs whose 8-bit products saturate.
    pub reduce_range: bool,
    /// Use only so many bits of the weights' type (`i4` with 2: -2..=1). All of them by default.
    pub weight_bits: Option<u32>,
    /// The same for activations, whose values beyond are clipped before they are quantized.
    pub activation_bits: Option<u32>,
    /// `min_max` by default.
    pub calibrator: Calibrator,
    /// `Int32` by default.
    pub bias: BiasForm,
    /// `Float` by default.
    pub io: Io,
    /// If not empty, only nodes that one of these matches are quantized.
    pub include: Vec<Pattern>,
    /// Nodes that stay in float.
    pub exclude: Vec<Pattern>,
    /// About single tensors.
    pub overrides: Overrides,
}

impl PlanOptions {
    /// Nodes that stay in float, whether the options or the overrides say so.
    pub fn excluded(&self) -> impl Iterator<Item = &Pattern> + Clone {
        self.exclude.iter().chain(&self.overrides.keep_float)
    }
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            scheme: Scheme::Static,
            activation_type: IntType::U8,
            activation_symmetry: Symmetry::Asymmetric,
            weight_type: IntType::I8,
            weight_symmetry: None,
            granularity: WeightGranularity::PerChannel,
            reduce_range: false,
            weight_bits: None,
            activation_bits: None,
            calibrator: Calibrator::named("min_max").expect("it is in the list"),
            bias: BiasForm::Int32,
            io: Io::Float,
            include: Vec::new(),
            exclude: Vec::new(),
            overrides: Overrides::default(),
        }
    }
}

/// Which nodes an include or exclude option is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// By name: `*` stands for any text, `?` for any one character.
    Name(String),
    /// By operator type.
    OpType(String),
}

impl Pattern {
    /// Whether the pattern has wildcards.
    pub fn is_glob(&self) -> bool {
        matches!(self, Self::Name(name) if name.contains(['*', '?']))
    }

    /// Whether it is about this node.
    pub fn matches(&self, label: &str, op_type: &str) -> bool {
        match self {
            Self::Name(name) if self.is_glob() => glob(name, label),
            Self::Name(name) => name == label,
            Self::OpType(wanted) => wanted == op_type,
        }
    }
}

impl FromStr for Pattern {
    type Err = std::convert::Infallible;

    /// `type:Conv` is an operator type; everything else is a name or a glob.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.strip_prefix("type:") {
            Some(op_type) => Self::OpType(op_type.to_owned()),
            None => Self::Name(text.to_owned()),
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::OpType(op_type) => write!(f, "type:{op_type}"),
        }
    }
}

/// Whether `text` is `pattern`, in which `*` stands for any text and `?` for any one character. Linear in the text
/// for each `*`.
pub fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where to go on if what follows the last `*` does not match here.
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p, t));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => (p, t) = (p + 1, t + 1),
            _ => {
                let Some((star, from)) = retry else { return false };
                retry = Some((star, from + 1));
                (p, t) = (star + 1, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// A symmetry by its word.
pub fn symmetry_from_word(text: &str) -> Result<Symmetry, String> {
    match text {
        "symmetric" => Ok(Symmetry::Symmetric),
        "asymmetric" => Ok(Symmetry::Asymmetric),
        _ => Err(format!("`{text}` is not a symmetry: symmetric, asymmetric")),
    }
}

/// The word for a symmetry.
pub fn symmetry_word(symmetry: Symmetry) -> &'static str {
    match symmetry {
        Symmetry::Symmetric => "symmetric",
        Symmetry::Asymmetric => "asymmetric",
    }
}

/// What part of a type is used with this symmetry.
pub fn span_of(symmetry: Symmetry) -> Span {
    match symmetry {
        Symmetry::Symmetric => Span::Narrow,
        Symmetry::Asymmetric => Span::Full,
    }
}

macro_rules! words {
    ($type:ident, $what:literal, $($text:literal => $variant:expr),*) => {
        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok($variant),)*
                    _ => Err(format!(concat!("`{}` is not ", $what, ": {}"), text, [$($text),*].join(", "))),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(if *self == $variant {
                    return f.write_str($text);
                })*
                unreachable!("every variant has its word")
            }
        }
    };
}

words!(Scheme, "a scheme", "static" => Self::Static, "dynamic" => Self::Dynamic, "weight_only" => Self::WeightOnly);
words!(BiasForm, "a form of bias", "int32" => Self::Int32, "float" => Self::Float);
words!(Io, "a form of inputs and outputs", "float" => Self::Float, "integer" => Self::Integer);

impl FromStr for WeightGranularity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "per_tensor" => return Ok(Self::PerTensor),
            "per_channel" => return Ok(Self::PerChannel),
            _ => {}
        }
        let block_size = text.strip_prefix("blocked:").and_then(|n| n.parse().ok());
        let message =
            || format!("`{text}` is not a granularity: per_tensor, per_channel, blocked:SIZE");
        block_size.map(Self::Blocked).ok_or_else(message)
    }
}

impl fmt::Display for WeightGranularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerTensor => f.write_str("per_tensor"),
            Self::PerChannel => f.write_str("per_channel"),
            Self::Blocked(n) => write!(f, "blocked:{n}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_in_a_shell() {
        for (pattern, text, want) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abcbc", true),
            ("a*b*c", "a__b__bc", true),
            ("a*b*c", "a__c__b", false),
            ("?b", "ab", true),
            ("?", "", false),
            ("/layer.*/attn/?", "/layer.3/attn/q", true),
            ("ä*", "äb", true),
        ] {
            assert_eq!(glob(pattern, text), want, "{pattern} on {text}");
        }
    }

    #[test]
    fn a_glob_that_cannot_match_costs_no_more_than_its_stars_times_the_text() {
        let text = "a".repeat(20_000);
        assert!(!glob("*a*a*a*a*a*b", &text));
    }

    #[test]
    fn words_are_read_back() {
        for scheme in [Scheme::Static, Scheme::Dynamic, Scheme::WeightOnly] {
            assert_eq!(scheme.to_string().parse(), Ok(scheme));
        }
        for text in ["per_tensor", "per_channel", "blocked:32"] {
            assert_eq!(text.parse::<WeightGranularity>().unwrap().to_string(), text);
        }
        for text in ["blocked:0", "blocked", "per-channel"] {
            assert!(text.parse::<WeightGranularity>().is_err(), "{text}");
        }
        assert_eq!(
            "staic".parse::<Scheme>().unwrap_err(),
            "`staic` is not a scheme: static, dynamic, weight_only"
        );
    }
}
