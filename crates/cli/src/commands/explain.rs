//! `midtread explain`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use midtread::{
    explain::{self, Loss, TensorOptions, TensorReport, TypeRow, ValueReport},
    num::{Granularity, Symmetry},
};

use crate::{
    context::{Context, Outcome, write},
    table::table,
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread explain value 3.14159 --bits 4 --unsaturated
  midtread explain value 17.5 --bits 8 --range -20,60
  midtread explain value 85.125 --format float32
  midtread explain tensor weights.npy --scheme symmetric --bits 4 --per block:32 --svg weights.svg
  midtread explain type
  midtread explain type fp8_e4m3fn")]
pub(crate) struct Explain {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One value: its code, the value back, the error, the arithmetic
    Value(Value),
    /// A tensor: scales, codes, errors, a histogram, other quantizers and calibrators beside it
    Tensor(Tensor),
    /// Every number type: what it holds and what it costs
    Type {
        /// Only this one: float16, int4, nf4, e3m4, ...
        name: Option<String>,
    },
}

#[derive(Args)]
struct Value {
    /// The value
    #[arg(allow_negative_numbers = true)]
    x: f64,
    /// As an integer of so many bits
    #[arg(long, value_name = "N", required_unless_present = "format")]
    bits: Option<u32>,
    /// The values that the integers cover [default: -1,1]
    #[arg(long, value_name = "MIN,MAX", allow_hyphen_values = true, value_parser = range, requires = "bits")]
    range: Option<(f64, f64)>,
    /// Let the code leave the type, as exercises do
    #[arg(long, requires = "bits")]
    unsaturated: bool,
    /// As a float: float32, float16, bfloat16, fp8_e4m3, e3m4, ...
    #[arg(long, value_name = "TYPE", conflicts_with = "bits")]
    format: Option<String>,
}

#[derive(Args)]
struct Tensor {
    /// A .npy file
    file: PathBuf,
    /// Whether 0 has the code 0
    #[arg(long, value_enum, default_value = "symmetric")]
    scheme: Scheme,
    /// With asymmetric: codes from -2^(N - 1) instead of 0
    #[arg(long)]
    signed: bool,
    /// Quantize this range and cut off what lies outside [default: all values]
    #[arg(long, value_name = "MIN,MAX", allow_hyphen_values = true, value_parser = range)]
    range: Option<(f64, f64)>,
    /// Bits of a code
    #[arg(long, value_name = "N", default_value_t = 8)]
    bits: u32,
    /// What shares a scale: tensor, row, column, channel:AXIS or block:SIZE (along the last axis)
    #[arg(long, value_name = "WHAT", default_value = "tensor", value_parser = Per::parse)]
    per: Per,
    /// Draw the histogram and the staircases
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scheme {
    Symmetric,
    Asymmetric,
}

/// `--per`, before the shape is known.
#[derive(Clone, Copy)]
enum Per {
    Tensor,
    Row,
    Column,
    Channel(usize),
    Block(std::num::NonZeroUsize),
}

impl Per {
    fn parse(text: &str) -> Result<Self, String> {
        let number = |n: &str| n.parse().map_err(|_| format!("`{n}` is not a usable number"));
        match text.split_once(':') {
            None if text == "tensor" => Ok(Self::Tensor),
            None if text == "row" => Ok(Self::Row),
            None if text == "column" => Ok(Self::Column),
            Some(("channel", axis)) => number(axis).map(Self::Channel),
            Some(("block", size)) => number(size)
                .and_then(|n| {
                    std::num::NonZeroUsize::new(n).ok_or_else(|| "a block has an element".into())
                })
                .map(Self::Block),
            _ => Err("tensor, row, column, channel:AXIS or block:SIZE".into()),
        }
    }

    /// Rows are along the first axis, columns along the last.
    fn granularity(self, rank: usize) -> Granularity {
        let last = rank.saturating_sub(1);
        match self {
            Self::Tensor => Granularity::PerTensor,
            Self::Row => Granularity::PerAxis { axis: 0 },
            Self::Column => Granularity::PerAxis { axis: last },
            Self::Channel(axis) => Granularity::PerAxis { axis },
            Self::Block(block_size) => Granularity::Blocked { axis: last, block_size },
        }
    }
}

fn range(text: &str) -> Result<(f64, f64), String> {
    let number = |x: &str| x.trim().parse().map_err(|_| format!("`{x}` is not a number"));
    let (min, max) = text.split_once(',').ok_or("two numbers with a comma between: -1,1")?;
    Ok((number(min)?, number(max)?))
}

impl Explain {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        match &self.what {
            What::Value(value) => {
                let report = match (value.bits, &value.format) {
                    (Some(bits), _) => {
                        explain::value_integer(value.x, bits, value.range, value.unsaturated)?
                    }
                    (None, Some(format)) => explain::value_float(value.x, format)?,
                    (None, None) => unreachable!("clap asks for one of the two"),
                };
                show_value(&report, context);
            }
            What::Tensor(args) => {
                let tensor = midtread::data::read_npy(&args.file).map_err(midtread::Error::from)?;
                let symmetry = match args.scheme {
                    Scheme::Symmetric => Symmetry::Symmetric,
                    Scheme::Asymmetric => Symmetry::Asymmetric,
                };
                let granularity = args.per.granularity(tensor.dims().len());
                let options = TensorOptions {
                    bits: args.bits,
                    symmetry,
                    granularity,
                    is_signed: args.signed,
                    range: args.range.map(|(min, max)| (min as f32, max as f32)),
                };
                let named =
                    |error| anyhow::Error::from(error).context(args.file.display().to_string());
                let x = explain::floats(&tensor).map_err(named)?;
                let report = explain::tensor(tensor.dims(), &x, &options).map_err(named)?;
                if let Some(path) = &args.svg {
                    write(path, report.svg().as_bytes())?;
                }
                show_tensor(&x, &report, context);
            }
            What::Type { name } => show_types(&explain::types(name.as_deref())?, context),
        }
        Ok(Outcome::Done)
    }
}

fn show_value(report: &ValueReport, context: &Context) {
    if context.json {
        context.print_json(&serde_json::to_value(report).expect("plain data"));
    }
    for step in &report.steps {
        context.say(step);
    }
    if let Some(f) = &report.fields {
        let width = |bits: &str, title: &str| bits.len().max(title.len());
        let (e, m) = (width(&f.exponent, "exponent"), width(&f.mantissa, "mantissa"));
        let line = |l: &str, c: &str, r: &str| {
            format!("{l}──────{c}{}{c}{}{r}", "─".repeat(e + 2), "─".repeat(m + 2))
        };
        context.say(line("┌", "┬", "┐"));
        context.say(format!("│ sign │ {:<e$} │ {:<m$} │", "exponent", "mantissa"));
        context.say(format!("│ {:<4} │ {:<e$} │ {:<m$} │", f.sign, f.exponent, f.mantissa));
        context.say(line("└", "┴", "┘"));
    }
}

/// Elements and groups that are shown one by one.
const MAX_SHOWN: usize = 32;

fn loss(loss: &Loss) -> Vec<String> {
    vec![
        format!("{:.4e}", loss.mse),
        format!("{:.4e}", loss.max_error),
        format!("{:.2}", loss.sqnr_db),
        format!("{:.6}", loss.cosine),
    ]
}

fn heading(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn show_tensor(x: &[f32], report: &TensorReport, context: &Context) {
    if context.json {
        context.print_json(&serde_json::to_value(report).expect("plain data"));
        return;
    }
    let (qmin, qmax) = report.range;
    context.say(format!(
        "shape {:?}, codes {qmin} to {qmax}, {} scale(s)",
        report.dims,
        report.scales.len()
    ));
    let mut rows = vec![heading(&["group", "scale", "zero_point"])];
    for (i, (scale, zero_point)) in
        report.scales.iter().zip(&report.zero_points).enumerate().take(MAX_SHOWN)
    {
        rows.push(vec![i.to_string(), scale.to_string(), zero_point.to_string()]);
    }
    context.say(table(&rows));
    let mut rows = vec![heading(&["element", "value", "code", "back"])];
    for (i, x) in x.iter().enumerate().take(MAX_SHOWN) {
        rows.push(vec![
            i.to_string(),
            x.to_string(),
            report.codes[i].to_string(),
            report.values[i].to_string(),
        ]);
    }
    context.say(table(&rows));
    let names = ["quantizer", "MSE", "largest error", "SQNR dB", "cosine"];
    let mut rows = vec![heading(&names)];
    rows.push([vec!["as asked".to_owned()], loss(&report.error)].concat());
    rows.extend(
        report.quantizers.iter().map(|q| [vec![q.name.to_owned()], loss(&q.error)].concat()),
    );
    context.say(table(&rows));
    let mut rows =
        vec![heading(&["calibrator", "min", "max", "MSE", "largest error", "SQNR dB", "cosine"])];
    rows.extend(report.calibrators.iter().map(|c| {
        let (min, max) = c.range;
        [vec![c.name.to_owned(), format!("{min:.5}"), format!("{max:.5}")], loss(&c.error)].concat()
    }));
    context.say(table(&rows));
    for line in report.histogram.lines(40) {
        context.say(line);
    }
}

fn show_types(rows: &[TypeRow], context: &Context) {
    if context.json {
        context.print_json(&serde_json::to_value(rows).expect("plain data"));
        return;
    }
    let number = |x: Option<f64>| x.map_or("–".into(), number);
    if let [row] = rows {
        context.say(format!("{}: {}", row.name, row.summary));
        context.say(format!("  defined by          {}", row.source));
        context.say(format!(
            "  bits a weight       {:.4} ({:.2} times smaller than float32)",
            row.bits, row.size_ratio
        ));
        context.say(format!("  smallest, largest   {} … {}", number(row.min), number(row.max)));
        context.say(format!("  step                {}", number(row.step)));
        context.say(format!("  smallest normal     {}", number(row.min_normal)));
        context.say(format!("  smallest subnormal  {}", number(row.min_subnormal)));
        context.say(format!("  accumulator         {}", row.accumulator));
        context.say(format!(
            "  ONNX operator set   {}",
            row.onnx_opset.map_or("–".into(), |n| n.to_string())
        ));
        context.say(format!("  runtimes            {}", runtimes(row)));
        return;
    }
    let titles = ["type", "bits", "smaller", "min", "max", "step", "normal", "subnormal"];
    let mut lines = vec![heading(&titles)];
    lines.extend(rows.iter().map(|row| {
        vec![
            row.name.clone(),
            format!("{:.3}", row.bits),
            format!("{:.2}x", row.size_ratio),
            number(row.min),
            number(row.max),
            number(row.step),
            number(row.min_normal),
            number(row.min_subnormal),
        ]
    }));
    context.say(table(&lines));
    let mut lines = vec![heading(&["type", "accumulator", "opset", "runtimes"])];
    lines.extend(rows.iter().map(|row| {
        vec![
            row.name.clone(),
            row.accumulator.to_owned(),
            row.onnx_opset.map_or("–".into(), |n| n.to_string()),
            runtimes(row),
        ]
    }));
    context.say(table(&lines));
}

fn runtimes(row: &TypeRow) -> String {
    if row.runtimes.is_empty() { "–".to_owned() } else { row.runtimes.join(", ") }
}

fn number(x: f64) -> String {
    if x == 0.0 || (1e-3..1e6).contains(&x.abs()) { x.to_string() } else { format!("{x:.4e}") }
}
