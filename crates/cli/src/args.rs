//! What can be said on the command line.

use std::{num::NonZero, path::PathBuf, str::FromStr};

use anyhow::bail;
use clap::{Args as ClapArgs, Parser, builder::PossibleValue};
use midtread::{
    num::Symmetry,
    passes::{PassSet, PrepareOptions},
    quant::{
        Format,
        blocks::{BlockOptions, BlockType, ScaleSearch},
        calibrate::{CALIBRATORS, Calibrator},
        half::{HalfOptions, HalfType},
        plan::{
            BiasForm, IntType, Io, Overrides, Pattern, PlanOptions, Scheme, TARGETS, Target,
            WeightGranularity as Granularity,
        },
    },
};

use crate::{commands::Command, context::read_text};

/// Quantize ONNX models: measure, decide, write, and say what it cost.
///
/// Most people need one command:
///
///     midtread quantize model.onnx --data pictures/ -o model.int8.onnx
#[derive(Parser)]
#[command(name = "midtread", version, max_term_width = 110, verbatim_doc_comment)]
#[command(
    after_help = "Exit status: 0 done; 1 done, but a check you asked for failed; 2 could not be done."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(ClapArgs)]
pub(crate) struct Common {
    /// Print one JSON document on stdout instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print no progress and no remarks
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Threads to use [default: all cores]
    #[arg(long, global = true, value_name = "N")]
    pub(crate) threads: Option<NonZero<usize>>,
    /// Memory that values may take while a model runs: 500M, 2G [default: a quarter of the machine's]
    #[arg(long, global = true, value_name = "SIZE")]
    pub(crate) max_memory: Option<Bytes>,
}

/// A number of bytes: `1000`, `512K`, `2G` (units of 1024).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bytes(pub(crate) usize);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..]
            .to_ascii_uppercase()
            .trim_end_matches('B')
            .trim_end_matches('I')
        {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            _ => return Err("a size is a number with K, M, G or T: 500M, 1.5G".into()),
        };
        let number: f64 = digits
            .parse()
            .map_err(|_| "a size is a number with K, M, G or T: 500M, 1.5G".to_owned())?;
        let bytes = number * (1_u64 << shift) as f64;
        if !(1.0..1e18).contains(&bytes) {
            return Err("a size must be at least one byte and not absurd".into());
        }
        Ok(Self(bytes as usize))
    }
}

/// Where samples come from.
#[derive(ClapArgs)]
pub(crate) struct DataArgs {
    /// Samples: a folder of pictures, .npy or .npz files, an ONNX test_data_set folder, or an IDX file
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Use at most this many samples
    #[arg(long, value_name = "N")]
    pub(crate) samples: Option<NonZero<usize>>,
    /// How pictures become inputs: the name of a preset, or a TOML file
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) preprocess: Option<String>,
    /// Use this many samples of random numbers instead of data: for trying things, not for quality
    #[arg(long, value_name = "N", conflicts_with = "data")]
    pub(crate) random: Option<NonZero<usize>>,
}

/// By what a model is judged.
#[derive(ClapArgs)]
pub(crate) struct JudgeArgs {
    /// The right answers to --data: CSV (file,label), JSON ({"file": label}) or an IDX file
    #[arg(long, value_name = "FILE", conflicts_with = "valid")]
    pub(crate) labels: Option<PathBuf>,
    /// Judge by these samples instead of those of --data
    #[arg(long, value_name = "PATH")]
    pub(crate) valid: Option<PathBuf>,
    /// The right answers to them
    #[arg(long, value_name = "FILE", requires = "valid")]
    pub(crate) valid_labels: Option<PathBuf>,
}

impl JudgeArgs {
    /// The first of these options that was given.
    pub(crate) fn used(&self) -> Option<&'static str> {
        let given = [(self.labels.is_some(), "--labels"), (self.valid.is_some(), "--valid")];
        given.into_iter().find_map(|(is_given, name)| is_given.then_some(name))
    }
}

/// How the model is prepared.
#[derive(ClapArgs)]
pub(crate) struct PrepareArgs {
    /// Leave out a pass (see `midtread prepare --list`)
    #[arg(long = "without", value_name = "PASS")]
    pub(crate) without: Vec<String>,
    /// Run a pass that is not a default, too
    #[arg(long = "with", value_name = "PASS")]
    pub(crate) with: Vec<String>,
    /// Run no other passes than these
    #[arg(long = "only", value_name = "PASS", conflicts_with_all = ["with", "without"])]
    pub(crate) only: Vec<String>,
    /// Fix a size that the model leaves open: batch=1
    #[arg(long = "dim", value_name = "NAME=SIZE", value_parser = parse_dim)]
    pub(crate) dims: Vec<(String, usize)>,
}

/// The operator set of commands that work in steps; `quantize` finds it by itself.
#[derive(ClapArgs)]
pub(crate) struct OpsetArgs {
    /// Raise the model to at least this operator set: 13 for scales per channel, 21 for 4-bit and 16-bit types
    #[arg(long, default_value_t = 13, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    pub(crate) opset: i64,
}

fn parse_dim(text: &str) -> Result<(String, usize), String> {
    let (name, size) = text.split_once('=').ok_or("write NAME=SIZE")?;
    let size = size.parse().map_err(|_| format!("`{size}` is not a size"))?;
    Ok((name.to_owned(), size))
}

impl PrepareArgs {
    /// `opset`: the operator set to raise the model to, if it is older.
    pub(crate) fn options(&self, opset: Option<i64>) -> anyhow::Result<PrepareOptions> {
        let mut passes = match self.only.is_empty() {
            true => PassSet::default(),
            false => PassSet::none(),
        };
        for name in self.with.iter().chain(&self.only) {
            passes = passes.with(name).map_err(midtread::Error::from)?;
        }
        for name in &self.without {
            passes = passes.without(name).map_err(midtread::Error::from)?;
        }
        Ok(PrepareOptions {
            passes,
            dims: self.dims.iter().cloned().collect(),
            opset,
            ..PrepareOptions::default()
        })
    }
}

/// An integer type, or so many bits of one: `i8`, `u4`, `i2` (stored as `i4`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Width {
    pub(crate) int_type: IntType,
    /// Where they are fewer than the type's.
    pub(crate) bits: Option<u32>,
}

impl From<IntType> for Width {
    fn from(int_type: IntType) -> Self {
        Self { int_type, bits: None }
    }
}

impl Width {
    pub(crate) fn n_bits(self) -> u32 {
        self.bits.unwrap_or(self.int_type.n_bits() as u32)
    }
}

impl FromStr for Width {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = match text.parse() {
            Ok(int_type) => return Ok(Self { int_type, bits: None }),
            Err(unknown) => unknown,
        };
        let bits: u32 = text
            .get(1..)
            .and_then(|n| n.parse().ok())
            .filter(|n| (2..16).contains(n))
            .ok_or(unknown)?;
        let store = if bits <= 4 {
            4
        } else if bits <= 8 {
            8
        } else {
            16
        };
        let int_type = format!("{}{store}", &text[..1]).parse()?;
        Ok(Self { int_type, bits: Some(bits) })
    }
}

/// What the plan is told.
#[derive(ClapArgs)]
pub(crate) struct PlanArgs {
    /// What is quantized: weights and activations, the latter with fixed (static) or run-time (dynamic) scales, or
    /// weights only
    #[arg(long, default_value = "static", value_name = "SCHEME", value_parser = scheme_values())]
    pub(crate) scheme: String,
    #[command(flatten)]
    pub(crate) calibrator: CalibratorArgs,
    /// Type of activations: u8, i8, u16, i16, u4, i4, or fewer bits of one of these: u2, u3, u6, ...
    #[arg(long, default_value = "u8", value_name = "TYPE")]
    pub(crate) activations: Width,
    /// Type of weights: i8, u8, i16, u16, i4, u4, or fewer bits of one of these (i2, i3, i6); with --scheme weight_only
    /// --format qoperator also nf4, fp4; or the whole model in float16 or bfloat16; of a checkpoint's any number format of
    /// `midtread explain type` (nf4, int4:32, q4_k), q4_k_m, q5_k_m, or float32
    #[arg(long, default_value = "i8", value_name = "TYPE")]
    pub(crate) weights: String,
    /// With float16 and bfloat16: the model's own inputs and outputs stay float32
    #[arg(long)]
    pub(crate) keep_io_types: bool,
    /// With --scheme weight_only --format qoperator: how scales are chosen: max_abs, mse, hqq
    #[arg(long, default_value = "max_abs", value_name = "SEARCH")]
    pub(crate) scale_search: ScaleSearch,
    /// With --scheme weight_only --format qoperator: MatMulNBits' accuracy_level; 1: float32, 4: activations in int8
    #[arg(long, default_value_t = 0, value_name = "LEVEL")]
    pub(crate) accuracy_level: u8,
    /// Put the zero point of activations in the middle of the type
    #[arg(long)]
    pub(crate) symmetric_activations: bool,
    /// Let the zero point of weights move
    #[arg(long)]
    pub(crate) asymmetric_weights: bool,
    /// Which elements of a weight share a scale: per_tensor, per_channel, blocked:SIZE (weight_only and qoperator:
    /// blocked:32, for nf4 and fp4 blocked:64, unless another size is given)
    #[arg(long, default_value = "per_channel", value_name = "FORM")]
    pub(crate) granularity: Granularity,
    /// Use 7 bits of 8 for weights, for CPUs whose 8-bit products saturate (AVX2 and AVX-512 without VNNI)
    #[arg(long)]
    pub(crate) reduce_range: bool,
    /// What becomes of biases: int32, float
    #[arg(long, default_value = "int32", value_name = "FORM")]
    pub(crate) bias: BiasForm,
    /// Types of the quantized model's own inputs and outputs: float, integer
    #[arg(long, default_value = "float", value_name = "FORM")]
    pub(crate) io: Io,
    /// Quantize only these nodes: a name, a glob, or type:OPERATOR (repeatable)
    #[arg(long, value_name = "PATTERN")]
    pub(crate) include: Vec<Pattern>,
    /// Keep these nodes in float: a name, a glob, or type:OPERATOR (repeatable)
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude: Vec<Pattern>,
    /// Settings of single tensors, as a TOML file
    #[arg(long, value_name = "FILE")]
    pub(crate) overrides: Option<PathBuf>,
    /// The device: a name or a TOML file
    #[arg(long, default_value = "onnxruntime_cpu", value_name = "NAME|FILE", long_help = target_help())]
    pub(crate) target: String,
}

/// What weights become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightType {
    /// Integers with scales.
    Int(Width),
    /// Not only they: the model computes in this type.
    Half(HalfType),
    /// What only operators on blocks have.
    Block(BlockType),
}

impl FromStr for WeightType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "float16" => Self::Half(HalfType::Float16),
            "bfloat16" => Self::Half(HalfType::Bfloat16),
            "nf4" => Self::Block(BlockType::Nf4),
            "fp4" => Self::Block(BlockType::Fp4),
            _ => Self::Int(text.parse().map_err(|err: String| {
                format!("{err}; nor is it nf4, fp4, float16 or bfloat16")
            })?),
        })
    }
}

fn target_help() -> String {
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    format!("The device: one of {}, or a TOML file", names.join(", "))
}

fn scheme_values() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(["static", "dynamic", "weight_only"])
}

/// How activation ranges are chosen.
#[derive(ClapArgs)]
pub(crate) struct CalibratorArgs {
    /// How activation ranges are chosen [default: min_max; for training mse]
    #[arg(long, value_name = "NAME", value_parser = calibrator_values())]
    pub(crate) calibrator: Option<String>,
    /// Calibrator percentile: the share of values, in percent, that a range keeps
    #[arg(long, default_value_t = 99.999, value_name = "P", value_parser = parse_percentile)]
    pub(crate) percentile: f64,
    /// Calibrator moving_average: the weight of each new sample
    #[arg(long, default_value_t = 0.01, value_name = "C", value_parser = parse_fraction)]
    pub(crate) averaging_constant: f64,
}

fn calibrator_values() -> clap::builder::PossibleValuesParser {
    CALIBRATORS
        .iter()
        .map(|def| PossibleValue::new(def.name).help(def.summary))
        .collect::<Vec<_>>()
        .into()
}

fn parse_percentile(text: &str) -> Result<f64, String> {
    let p: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if 50.0 < p && p <= 100.0 {
        Ok(p)
    } else {
        Err("a percentile is above 50 and at most 100".into())
    }
}

fn parse_fraction(text: &str) -> Result<f64, String> {
    let c: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if 0.0 < c && c <= 1.0 { Ok(c) } else { Err("a weight is above 0 and at most 1".into()) }
}

impl CalibratorArgs {
    /// `default` where none is named.
    pub(crate) fn calibrator(&self, default: &str) -> Calibrator {
        let name = self.calibrator.as_deref().unwrap_or(default);
        let mut calibrator = Calibrator::named(name).expect("clap takes only names in the list");
        calibrator.percentile = self.percentile;
        calibrator.averaging_constant = self.averaging_constant;
        calibrator
    }
}

impl PlanArgs {
    fn weight_type(&self) -> anyhow::Result<WeightType> {
        self.weights.parse().map_err(|why| anyhow::anyhow!("--weights {}: {why}", self.weights))
    }

    /// What was asked for, where the whole model is to be in 16 bits. Options that would have no effect are refused.
    pub(crate) fn half(&self, format: Option<Format>) -> anyhow::Result<Option<HalfOptions>> {
        let WeightType::Half(half) = self.weight_type()? else {
            if self.keep_io_types {
                bail!("--keep-io-types goes with --weights float16 or bfloat16");
            }
            return Ok(None);
        };
        let idle = [
            (self.scheme != "static", "--scheme"),
            (self.activations != Width::from(IntType::U8), "--activations"),
            (self.calibrator.calibrator.is_some(), "--calibrator"),
            (self.symmetric_activations, "--symmetric-activations"),
            (self.asymmetric_weights, "--asymmetric-weights"),
            (self.granularity != Granularity::PerChannel, "--granularity"),
            (self.reduce_range, "--reduce-range"),
            (self.bias != BiasForm::Int32, "--bias"),
            (self.io != Io::Float, "--io"),
            (self.overrides.is_some(), "--overrides"),
            (self.scale_search != ScaleSearch::MaxAbs, "--scale-search"),
            (self.accuracy_level != 0, "--accuracy-level"),
            (format.is_some_and(|format| format != Format::Qdq), "--format"),
        ];
        if let Some((_, option)) = idle.iter().find(|(is_set, _)| *is_set) {
            bail!("{option} is about integers, and --weights {half} makes a model in {half}");
        }
        Ok(Some(HalfOptions {
            half,
            keep_io_types: self.keep_io_types,
            include: self.include.clone(),
            exclude: self.exclude.clone(),
        }))
    }

    /// What was asked for, where weights go into blocks that operators of ONNX Runtime multiply with.
    pub(crate) fn blocks(&self, format: Format) -> anyhow::Result<Option<BlockOptions>> {
        let is_asked = self.scheme == "weight_only" && format == Format::QOperator;
        let block_type = match self.weight_type()? {
            WeightType::Block(block_type) if is_asked => block_type,
            WeightType::Block(block_type) => {
                bail!("{block_type} weights need --scheme weight_only --format qoperator")
            }
            WeightType::Int(width) if is_asked => {
                let is_asymmetric = !width.int_type.is_signed() || self.asymmetric_weights;
                BlockType::Bits { n_bits: width.n_bits(), is_asymmetric }
            }
            WeightType::Int(_) | WeightType::Half(_) => {
                if self.scale_search != ScaleSearch::MaxAbs || self.accuracy_level != 0 {
                    bail!(
                        "--scale-search and --accuracy-level need --scheme weight_only --format qoperator"
                    );
                }
                return Ok(None);
            }
        };
        if self.overrides.is_some() || self.reduce_range {
            bail!("--overrides and --reduce-range have no effect on operators that take blocks");
        }
        let block_size = match self.granularity {
            Granularity::Blocked(size) => size,
            Granularity::PerChannel => block_type.default_block_size(),
            Granularity::PerTensor => bail!("operators that take blocks have no scale per tensor"),
        };
        Ok(Some(BlockOptions {
            block_type,
            block_size,
            search: self.scale_search,
            accuracy_level: self.accuracy_level,
            include: self.include.clone(),
            exclude: self.exclude.clone(),
        }))
    }

    pub(crate) fn options(&self) -> anyhow::Result<PlanOptions> {
        let weights = match self.weight_type()? {
            WeightType::Int(weights) => weights,
            WeightType::Block(block_type) => {
                bail!(
                    "{block_type} weights need `quantize --scheme weight_only --format qoperator`"
                )
            }
            WeightType::Half(_) => unreachable!("16-bit models have options of their own"),
        };
        let overrides = match &self.overrides {
            Some(path) => Overrides::from_toml(&path.display().to_string(), &read_text(path)?)
                .map_err(midtread::Error::from)?,
            None => Overrides::default(),
        };
        let symmetry =
            |asymmetric| if asymmetric { Symmetry::Asymmetric } else { Symmetry::Symmetric };
        Ok(PlanOptions {
            scheme: self.scheme.parse::<Scheme>().map_err(midtread::Error::Options)?,
            activation_type: self.activations.int_type,
            activation_symmetry: symmetry(!self.symmetric_activations),
            weight_type: weights.int_type,
            weight_symmetry: self.asymmetric_weights.then_some(Symmetry::Asymmetric),
            granularity: self.granularity,
            reduce_range: self.reduce_range,
            weight_bits: weights.bits,
            activation_bits: self.activations.bits,
            calibrator: self.calibrator.calibrator("min_max"),
            bias: self.bias,
            io: self.io,
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            overrides,
        })
    }

    pub(crate) fn target(&self) -> anyhow::Result<Target> {
        Ok(Target::find(&self.target).map_err(midtread::Error::from)?)
    }
}

/// The form of a quantized model.
#[derive(ClapArgs)]
pub(crate) struct FormatArgs {
    /// How the result is written: qdq (QuantizeLinear/DequantizeLinear pairs) or qoperator (operators on integers; with
    /// weight_only MatMulNBits, MatMulBnb4 and GatherBlockQuantized)
    #[arg(long, default_value = "qdq", value_name = "FORM")]
    pub(crate) format: Format,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, want) in [
            ("1000", 1000),
            ("2K", 2048),
            ("1.5G", 3 << 29),
            ("500MiB", 500 << 20),
            ("1gb", 1 << 30),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(want)), "{text}");
        }
        for text in ["", "G", "-1G", "0", "1X", "1e30G", "nan"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn fewer_bits_are_stored_in_the_next_wider_type() {
        let width =
            |text: &str| text.parse::<Width>().map(|w| (w.int_type.name(), w.bits, w.n_bits()));
        assert_eq!(width("u8"), Ok(("u8", None, 8)));
        assert_eq!(width("i2"), Ok(("i4", Some(2), 2)));
        assert_eq!(width("u6"), Ok(("u8", Some(6), 6)));
        assert_eq!(width("i12"), Ok(("i16", Some(12), 12)));
        for bad in ["i1", "x4", "i", "i17", "4", "i-2", "ü2"] {
            assert!(width(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_option_has_a_help_line_and_no_two_clash() {
        use clap::CommandFactory;
        Args::command().debug_assert();
        for command in Args::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
        }
    }
}
