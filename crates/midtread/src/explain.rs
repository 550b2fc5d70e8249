//! What quantization does to one value and to one tensor, and what each type can hold, step by step.
//!
//! [`value_integer`] and [`value_float`] work one value out; [`tensor`] quantizes a tensor and puts other quantizers and
//! calibrators beside it; [`types`] is the table of types. All of it is data with a text beside it: whoever prints it
//! computes nothing.

use midtread_graph::{DataType, Tensor};
use midtread_num::{
    ErrorSums, Granularity, QParams, QRange, Rounding, Sign, Span, Symmetry,
    formats::{
        FORMATS, Format, Shape,
        float::{FLOAT_TYPES, FloatType, Overflow as FloatOverflow, Specials},
    },
    nonuniform::{Law, LloydMax},
    textbook::{Affine, Overflow, quantize_unit},
    uniform::{Kind, Uniform},
};
use midtread_quant::{
    calibrate::{CALIBRATORS, Calibrator, Collect, RangeGoal, TensorStats},
    half::HalfType,
    plan::{IntType, TARGETS, Target},
};
use serde::Serialize;

use crate::Error;

/// One value in a type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ValueReport {
    /// The integer, or the bits of a float as one.
    pub code: i64,
    /// What the code stands for. JSON has no infinity and NaN: there it is null.
    pub value: f64,
    /// `|x - value|`.
    pub error: f64,
    /// Whether `x` is outside what the type holds.
    pub saturated: bool,
    /// Sign, exponent and mantissa of a float.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fields: Option<Fields>,
    /// The arithmetic, a line a step.
    pub steps: Vec<String>,
}

/// The bits of a float.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fields {
    /// One bit.
    pub sign: String,
    /// The exponent field.
    pub exponent: String,
    /// The mantissa field.
    pub mantissa: String,
    /// What is taken off the exponent field.
    pub bias: i32,
    /// `normal`, `subnormal`, `zero`, `infinity` or `nan`.
    pub class: &'static str,
}

fn options(error: impl std::fmt::Display) -> Error {
    Error::Options(error.to_string())
}

/// `x` as an integer of `bits` bits over `range`, [-1, 1] unless given; with `unsaturated` codes may leave the type.
///
/// A range symmetric about 0 has the zero point 0 and signed codes, any other is quantized asymmetrically with codes
/// from 0. The formulas are the textbook's, in `f64`. Refuses a range that is empty or not finite, and other widths than
/// 2 to 32 bits.
pub fn value_integer(
    x: f64,
    bits: u32,
    range: Option<(f64, f64)>,
    unsaturated: bool,
) -> Result<ValueReport, Error> {
    if !(2..=32).contains(&bits) {
        return Err(options(format!("{bits} bits: integers of 2 to 32 bits can be explained")));
    }
    if !x.is_finite() {
        return Err(options(format!("{x} has no integer")));
    }
    let (min, max) = range.unwrap_or((-1.0, 1.0));
    if !(min < max && (max - min).is_finite()) {
        return Err(options(format!("the range {min} to {max} is empty or not finite")));
    }
    let overflow = if unsaturated { Overflow::Keep } else { Overflow::Saturate };
    let mut steps = Vec::new();
    let quantized;
    let (qmin, qmax);
    if (min, max) == (-1.0, 1.0) {
        quantized = quantize_unit(x, bits, Rounding::TiesEven, overflow).map_err(options)?;
        qmax = (1_i64 << (bits - 1)) - 1;
        qmin = -qmax;
        steps.push(format!("levels = 2^({bits} - 1) - 1 = {qmax}"));
        steps.push(format!("x * levels = {x} * {qmax} = {}", x * qmax as f64));
    } else {
        let affine = if min == -max {
            Affine::symmetric(max, bits)
        } else {
            Affine::unsigned(min, max, bits)
        };
        let affine = affine.map_err(options)?;
        (qmin, qmax) = (affine.qmin, affine.qmax);
        let (scale, zero_point) = (affine.scale, affine.zero_point);
        if min == -max {
            steps.push(format!("scale = {max} / (2^({bits} - 1) - 1) = {scale}"));
        } else {
            steps.push(format!("scale = ({max} - {min}) / (2^{bits} - 1) = {scale}"));
            steps.push(format!("zero_point = -round({min} ÷ {scale}) = {zero_point}"));
        }
        let scaled = affine.scaled(x);
        steps.push(format!("x ÷ scale + zero_point = {x} ÷ {scale} + {zero_point} = {scaled}"));
        let cut = affine.quantize(x, Rounding::TiesEven);
        quantized = if unsaturated {
            let free = Affine { qmin: i64::MIN / 4, qmax: i64::MAX / 4, ..affine };
            let mut free = free.quantize(x, Rounding::TiesEven);
            free.saturated = cut.saturated;
            free
        } else {
            cut
        };
    }
    let code = quantized.code;
    let how = match (quantized.saturated, unsaturated) {
        (false, _) => format!("rounded to the nearest, halves to even: code = {code}"),
        (true, false) => format!("rounded and cut to {qmin}..{qmax}: code = {code} (saturated)"),
        (true, true) => {
            format!("rounded: code = {code}, which {bits} bits cannot hold ({qmin}..{qmax})")
        }
    };
    steps.push(how);
    steps.push(format!("back: {}", quantized.value));
    steps.push(format!("error = |{x} - {}| = {}", quantized.value, quantized.error));
    Ok(ValueReport {
        code,
        value: quantized.value,
        error: quantized.error,
        saturated: quantized.saturated,
        fields: None,
        steps,
    })
}

/// `x` as a float: `float32`, `float16`, `bfloat16`, `fp8_e4m3fn` and the others, or `eXmY`.
///
/// Rounded once, to the nearest, ties to even; what is too large becomes infinite in the 16- and 32-bit types and the
/// largest value in the others, as ONNX's Cast does.
pub fn value_float(x: f64, name: &str) -> Result<ValueReport, Error> {
    let name = name.to_ascii_lowercase();
    let (bits, value, n_exponent, n_mantissa, bias, max) = if name == "float32" {
        let rounded = x as f32;
        (rounded.to_bits(), f64::from(rounded), 8, 23, 127, f64::from(f32::MAX))
    } else {
        let ty = float_type(&name)?;
        let overflow =
            if ty.n_bits() == 16 { FloatOverflow::Special } else { FloatOverflow::Saturate };
        let code = ty.encode_f64(x, overflow);
        (
            code,
            f64::from(ty.decode(code)),
            ty.exponent_bits,
            ty.mantissa_bits,
            ty.bias,
            f64::from(ty.max()),
        )
    };
    let mantissa = bits & ((1 << n_mantissa) - 1);
    let exponent = (bits >> n_mantissa) & ((1 << n_exponent) - 1);
    let sign = bits >> (n_mantissa + n_exponent) & 1;
    let class = match (value, exponent) {
        (v, _) if v.is_nan() => "nan",
        (v, _) if v.is_infinite() => "infinity",
        (0.0, _) => "zero",
        (_, 0) => "subnormal",
        _ => "normal",
    };
    let saturated = x.is_finite() && (!value.is_finite() || max < x.abs() && value.abs() == max);
    let binary = |n: u32, width: u32| {
        if width == 0 { String::new() } else { format!("{n:0w$b}", w = width as usize) }
    };
    let fields = Fields {
        sign: binary(sign, 1),
        exponent: binary(exponent, n_exponent),
        mantissa: binary(mantissa, n_mantissa),
        bias,
        class,
    };
    let mut steps = Vec::new();
    if x.is_finite() && x != 0.0 {
        if let Some(text) = binary_fraction(x) {
            steps.push(format!("{x} = {text}b"));
        }
        let (text, power) = normalized(x);
        steps.push(format!("{x} = {text}b x 2^{power}"));
    }
    match class {
        "normal" => {
            let power = exponent as i32 - bias;
            steps.push(format!(
                "exponent field = {power} + {bias} = {exponent} = {}b",
                fields.exponent
            ));
            let significand = 1.0 + f64::from(mantissa) / f64::from(n_mantissa).exp2();
            let minus = if sign == 1 { "-" } else { "" };
            steps.push(format!("{minus}{significand} x 2^{power} = {value}"));
        }
        "subnormal" => {
            let power = 1 - bias - n_mantissa as i32;
            steps
                .push(format!("below the smallest normal value, 2^{}: exponent field 0", 1 - bias));
            steps.push(format!("{mantissa} x 2^{power} = {value}"));
        }
        _ => steps.push(format!("{class}: {value}")),
    }
    if saturated {
        steps.push(format!("the largest finite value is {max}: saturated"));
    }
    steps.push(
        format!("{} {} {}", fields.sign, fields.exponent, fields.mantissa).trim_end().to_owned(),
    );
    let error = if x == value || x.is_nan() && value.is_nan() { 0.0 } else { (x - value).abs() };
    steps.push(format!("error = |{x} - {value}| = {error}"));
    Ok(ValueReport { code: i64::from(bits), value, error, saturated, fields: Some(fields), steps })
}

/// The type called `name`; `fp8_e4m3` is `fp8_e4m3fn`, and `eXmY` any split of at most 16 bits.
fn float_type(name: &str) -> Result<FloatType, Error> {
    let name = if name == "fp8_e4m3" { "fp8_e4m3fn" } else { name };
    if let Some(ty) = FLOAT_TYPES.iter().find(|ty| ty.name == name) {
        return Ok(*ty);
    }
    match Format::named(name) {
        Ok(format) if format.def.name == "eXmY" => {
            Ok(FloatType::minifloat(format.settings.n, format.settings.m))
        }
        _ => {
            let names: Vec<&str> = FLOAT_TYPES.iter().map(|ty| ty.name).collect();
            let names = names.join(", ");
            Err(options(format!(
                "there is no float type `{name}`: float32, {names}, or eXmY such as e3m4"
            )))
        }
    }
}

/// `1010101.001` for 85.125; none where that takes more than 40 digits.
fn binary_fraction(x: f64) -> Option<String> {
    let size = x.abs();
    if size >= 2_f64.powi(32) {
        return None;
    }
    let mut fraction = size.fract();
    let mut text = format!("{}{:b}", if x < 0.0 { "-" } else { "" }, size as u64);
    let mut n_digits = 0;
    while fraction != 0.0 {
        if n_digits == 0 {
            text.push('.');
        }
        n_digits += 1;
        if 40 < n_digits {
            return None;
        }
        fraction *= 2.0;
        text.push(if fraction < 1.0 { '0' } else { '1' });
        fraction = fraction.fract();
    }
    Some(text)
}

/// `1.010101001` and 6 for 85.125; digits beyond 32 are left out, and say so with `...`.
fn normalized(x: f64) -> (String, i32) {
    // Subnormal f64s come to the normal ones first.
    let (size, shift) =
        if x.abs() < f64::MIN_POSITIVE { (x.abs() * 2_f64.powi(64), -64) } else { (x.abs(), 0) };
    let power = (size.to_bits() >> 52) as i32 - 1023 + shift;
    let digits = format!("{:052b}", size.to_bits() & ((1 << 52) - 1));
    let digits = digits.trim_end_matches('0');
    let minus = if x < 0.0 { "-" } else { "" };
    let text = match digits.len() {
        0 => format!("{minus}1"),
        1..=32 => format!("{minus}1.{digits}"),
        _ => format!("{minus}1.{}...", &digits[..32]),
    };
    (text, power)
}

/// How a tensor is to be quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorOptions {
    /// Integers of 2 to 16 bits.
    pub bits: u32,
    /// Symmetric: signed codes without the lowest. Asymmetric: codes from 0.
    pub symmetry: Symmetry,
    /// Which elements share a scale.
    pub granularity: Granularity,
    /// Asymmetric codes are signed: the same less `2^(bits - 1)`.
    pub is_signed: bool,
    /// The values that the codes cover, instead of all there are: what lies outside is cut off.
    pub range: Option<(f32, f32)>,
}

/// A tensor, quantized and back.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorReport {
    /// Its shape.
    pub dims: Vec<usize>,
    /// Smallest and largest code.
    pub range: (i32, i32),
    /// The scales, a value for each group.
    pub scales: Vec<f32>,
    /// The zero points.
    pub zero_points: Vec<i32>,
    /// The codes, in the order of the elements.
    pub codes: Vec<i32>,
    /// What they stand for.
    pub values: Vec<f32>,
    /// How far that is from the tensor.
    #[serde(flatten)]
    pub error: Loss,
    /// Counts of values between `min` and `max`, in bins of one width.
    pub histogram: Histogram,
    /// Other quantizers with as many bits, for the tensor as a whole.
    pub quantizers: Vec<Rival>,
    /// The range that each calibrator chooses, and what it loses, for the tensor as a whole.
    pub calibrators: Vec<Calibrated>,
}

/// Measures of an error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Loss {
    /// Mean of squares.
    pub mse: f64,
    /// Mean magnitude.
    pub mae: f64,
    /// Largest magnitude.
    pub max_error: f64,
    /// Signal to noise in decibels; null in JSON when nothing is lost.
    pub sqnr_db: f64,
    /// Cosine of the angle between the two.
    pub cosine: f64,
}

impl Loss {
    fn of(x: &[f32], back: impl Iterator<Item = f64>) -> Self {
        let reference: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let back: Vec<f64> = back.collect();
        let sums = ErrorSums::of_f64(&reference, &back);
        Self {
            mse: sums.mse(),
            mae: sums.mae(),
            max_error: sums.max_abs,
            sqnr_db: sums.sqnr_db(),
            cosine: sums.cosine(),
        }
    }
}

/// A quantizer beside the asked one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rival {
    /// `mid_tread`, `mid_rise`, `mu_law`, `a_law` or `lloyd_max`.
    pub name: &'static str,
    /// The values it has, in rising order.
    pub levels: Vec<f64>,
    /// What it loses.
    #[serde(flatten)]
    pub error: Loss,
}

/// A calibrator's range.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibrated {
    /// Its name.
    pub name: &'static str,
    /// The range.
    pub range: (f32, f32),
    /// The scale.
    pub scale: f32,
    /// The zero point.
    pub zero_point: i32,
    /// What it loses.
    #[serde(flatten)]
    pub error: Loss,
}

/// Counts in bins of one width.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Histogram {
    /// The smallest value.
    pub min: f32,
    /// The largest.
    pub max: f32,
    /// How many values each bin has; the largest value is in the last one.
    pub counts: Vec<u64>,
}

impl Histogram {
    fn of(x: &[f32], n_bins: usize) -> Self {
        let (min, max) = min_max(x);
        let mut counts = vec![0; n_bins];
        let width = (f64::from(max) - f64::from(min)) / n_bins as f64;
        for x in x {
            let bin =
                if 0.0 < width { ((f64::from(*x) - f64::from(min)) / width) as usize } else { 0 };
            counts[bin.min(n_bins - 1)] += 1;
        }
        Self { min, max, counts }
    }

    /// The left end of a bin.
    pub fn left(&self, bin: usize) -> f64 {
        let (min, max) = (f64::from(self.min), f64::from(self.max));
        min + (max - min) * bin as f64 / self.counts.len() as f64
    }

    /// A line a bin, bars of at most `width` characters.
    pub fn lines(&self, width: usize) -> Vec<String> {
        let most = self.counts.iter().copied().max().unwrap_or(0).max(1);
        let line = |(bin, count): (usize, &u64)| {
            let eighths = (*count as f64 / most as f64 * (8 * width) as f64).round() as usize;
            let eighths = if 0 < *count { eighths.max(1) } else { 0 };
            let mut bar = "█".repeat(eighths / 8);
            bar.extend(
                [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉']
                    .get(eighths % 8)
                    .filter(|_| eighths % 8 != 0),
            );
            format!("{:>12.5} {bar} {count}", self.left(bin))
        };
        self.counts.iter().enumerate().map(line).collect()
    }
}

fn min_max(x: &[f32]) -> (f32, f32) {
    let min = x.iter().copied().fold(f32::INFINITY, f32::min);
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if x.is_empty() { (0.0, 0.0) } else { (min, max) }
}

/// The bins of [`TensorReport::histogram`].
const N_BINS: usize = 24;
/// Quantizers of more bits have no table of levels here: Lloyd-Max would take long to fit, and is of no use.
const MAX_LEVEL_BITS: u32 = 8;

/// Quantizes a tensor as ONNX does, and puts other quantizers and every calibrator beside it.
///
/// Refuses NaN and infinities, an empty tensor, other widths than 2 to 16, and an axis that the shape does not have.
pub fn tensor(dims: &[usize], x: &[f32], o: &TensorOptions) -> Result<TensorReport, Error> {
    if !(2..=16).contains(&o.bits) {
        return Err(options(format!("{} bits: tensors are explained with 2 to 16", o.bits)));
    }
    if x.is_empty() {
        return Err(options("the tensor has no elements"));
    }
    if let Some(i) = x.iter().position(|x| !x.is_finite()) {
        return Err(options(format!("element {i} is {}, which no integer stands for", x[i])));
    }
    let (sign, span) = match o.symmetry {
        Symmetry::Symmetric => (Sign::Signed, Span::Narrow),
        Symmetry::Asymmetric if o.is_signed => (Sign::Signed, Span::Full),
        Symmetry::Asymmetric => (Sign::Unsigned, Span::Full),
    };
    let range = QRange::of(o.bits, sign, span).map_err(options)?;
    let layout = o.granularity.layout(dims).map_err(options)?;
    let params = match o.range {
        None => midtread_num::tensor::params_of(x, layout, range, o.symmetry).map_err(options)?,
        Some((min, max)) if min < max && (max - min).is_finite() => {
            let one = o.symmetry.params(min, max, range).map_err(options)?;
            vec![one; layout.n_params()]
        }
        Some((min, max)) => {
            return Err(options(format!("the range {min} to {max} is empty or not finite")));
        }
    };
    let of = |i: usize| params[layout.param_of(i)];
    let codes: Vec<i32> = x.iter().enumerate().map(|(i, x)| of(i).quantize(*x, range)).collect();
    let values: Vec<f32> = codes.iter().enumerate().map(|(i, q)| of(i).dequantize(*q)).collect();
    Ok(TensorReport {
        dims: dims.to_vec(),
        range: (range.qmin(), range.qmax()),
        scales: params.iter().map(|p| p.scale()).collect(),
        zero_points: params.iter().map(|p| p.zero_point()).collect(),
        error: Loss::of(x, values.iter().map(|x| f64::from(*x))),
        histogram: Histogram::of(x, N_BINS),
        quantizers: rivals(x, o.bits)?,
        calibrators: calibrated(x, range, o.symmetry)?,
        codes,
        values,
    })
}

fn rivals(x: &[f32], bits: u32) -> Result<Vec<Rival>, Error> {
    let max = f64::from(midtread_num::formats::max_abs(x));
    if max == 0.0 || MAX_LEVEL_BITS < bits {
        return Ok(vec![]);
    }
    let wide = |x: &f32| f64::from(*x);
    let half = f64::from(1 << (bits - 1));
    let tread =
        Uniform::new(Kind::MidTread, max / (half - 1.0), bits, Span::Narrow).map_err(options)?;
    let rise = Uniform::new(Kind::MidRise, max / half, bits, Span::Full).map_err(options)?;
    let values: Vec<f64> = x.iter().map(wide).collect();
    let lloyd = LloydMax::fit(&values, 1 << bits).expect("there are values and levels");
    let law = |name, law: Law| Rival {
        name,
        levels: law.levels(bits, max),
        error: Loss::of(x, values.iter().map(|x| law.quantize(*x, bits, max))),
    };
    let even = |name, q: Uniform| Rival {
        name,
        levels: q.levels(),
        error: Loss::of(x, values.iter().map(|x| q.quantize(*x))),
    };
    Ok(vec![
        even("mid_tread", tread),
        even("mid_rise", rise),
        law("mu_law", Law::MU),
        law("a_law", Law::A_LAW),
        Rival {
            name: "lloyd_max",
            levels: lloyd.levels().to_vec(),
            error: Loss::of(x, values.iter().map(|x| lloyd.quantize(*x))),
        },
    ])
}

fn calibrated(x: &[f32], range: QRange, symmetry: Symmetry) -> Result<Vec<Calibrated>, Error> {
    let mut stats = TensorStats::new(1);
    stats.observe(0, x, Collect::Histogram);
    let goal = RangeGoal { range, symmetric: symmetry == Symmetry::Symmetric };
    let mut rows = Vec::new();
    for def in CALIBRATORS {
        let calibrator = Calibrator::named(def.name).expect("it is in the list");
        let Some((min, max)) = stats.range(&calibrator, &goal) else { continue };
        let params: QParams = symmetry.params(min, max, range).map_err(options)?;
        rows.push(Calibrated {
            name: def.name,
            range: (min, max),
            scale: params.scale(),
            zero_point: params.zero_point(),
            error: Loss::of(x, x.iter().map(|x| f64::from(params.fake_quantize(*x, range)))),
        });
    }
    Ok(rows)
}

/// The elements of a tensor of numbers, as `f32`s.
///
/// Refuses other element types than floats of 32 and 64 bits and integers of 8 to 64.
pub fn floats(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    let values = match tensor.dtype() {
        DataType::Float => tensor.to_vec::<f32>(),
        DataType::Double => tensor.to_vec::<f64>().map(|x| x.iter().map(|x| *x as f32).collect()),
        DataType::Int8 => tensor.to_vec::<i8>().map(|x| x.iter().map(|x| f32::from(*x)).collect()),
        DataType::Uint8 => tensor.to_vec::<u8>().map(|x| x.iter().map(|x| f32::from(*x)).collect()),
        DataType::Int32 => tensor.to_vec::<i32>().map(|x| x.iter().map(|x| *x as f32).collect()),
        DataType::Int64 => tensor.to_vec::<i64>().map(|x| x.iter().map(|x| *x as f32).collect()),
        other => {
            return Err(options(format!("elements of type {} cannot be explained", other.name())));
        }
    };
    values.map_err(options)
}

impl TensorReport {
    /// The histogram, and over it the staircases of the mid-tread, mid-rise, companding and Lloyd-Max quantizers.
    pub fn svg(&self) -> String {
        let (width, height) = (720.0, 360.0);
        let ends = self.quantizers.iter().flat_map(|q| q.levels.iter().copied());
        let (min, max) = (f64::from(self.histogram.min), f64::from(self.histogram.max));
        let (lo, hi) = ends.fold((min, max), |(lo, hi), x| (lo.min(x), hi.max(x)));
        let span = if lo < hi { hi - lo } else { 1.0 };
        let at_x = |x: f64| 50.0 + (width - 70.0) * (x - lo) / span;
        let at_y = |y: f64| height - 40.0 - (height - 70.0) * (y - lo) / span;
        let mut svg = format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"><rect width="{width}" height="{height}" fill="#fff"/>"##
        );
        let most = self.histogram.counts.iter().copied().max().unwrap_or(1).max(1) as f64;
        for (bin, count) in self.histogram.counts.iter().enumerate() {
            let (left, right) =
                (at_x(self.histogram.left(bin)), at_x(self.histogram.left(bin + 1)));
            let tall = (height - 70.0) * *count as f64 / most;
            svg += &format!(
                r##"<rect x="{left:.1}" y="{:.1}" width="{:.1}" height="{tall:.1}" fill="#cfd8e3"/>"##,
                height - 40.0 - tall,
                (right - left).max(1.0),
            );
        }
        let colors = [
            ("mid_tread", "#0b6e4f"),
            ("mid_rise", "#c8553d"),
            ("lloyd_max", "#3d5a80"),
            ("mu_law", "#8e6c00"),
            ("a_law", "#7a4b94"),
        ];
        for (i, (name, color)) in colors.into_iter().enumerate() {
            let Some(rival) = self.quantizers.iter().find(|rival| rival.name == name) else {
                continue;
            };
            let mut path = format!("M{:.1},{:.1}", at_x(lo), at_y(rival.levels[0]));
            for pair in rival.levels.windows(2) {
                let border = at_x(0.5 * (pair[0] + pair[1]));
                path +=
                    &format!("L{border:.1},{:.1}L{border:.1},{:.1}", at_y(pair[0]), at_y(pair[1]));
            }
            path += &format!("L{:.1},{:.1}", at_x(hi), at_y(rival.levels[rival.levels.len() - 1]));
            svg +=
                &format!(r#"<path d="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>"#);
            let y = 20 + 16 * i;
            svg += &format!(
                r#"<text x="56" y="{y}" fill="{color}">{name}, MSE {:.3e}</text>"#,
                rival.error.mse
            );
        }
        let axis = height - 40.0;
        svg += &format!(r##"<path d="M50,{axis}H{}" stroke="#333"/>"##, width - 20.0);
        for (x, anchor) in [(lo, "start"), (hi, "end")] {
            let (at, below) = (at_x(x), axis + 18.0);
            svg +=
                &format!(r#"<text x="{at:.1}" y="{below}" text-anchor="{anchor}">{x:.4}</text>"#);
        }
        svg + "</svg>\n"
    }
}

/// A type and what it holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TypeRow {
    /// Its name.
    pub name: String,
    /// What it is.
    pub summary: &'static str,
    /// Where it is defined.
    pub source: &'static str,
    /// Bits of an element, with its share of scales in a matrix of 4096 x 4096.
    pub bits: f64,
    /// How much smaller than float32.
    pub size_ratio: f64,
    /// The smallest value, of a type without a scale; the smallest code of an integer.
    pub min: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
    /// The distance of neighbors: 1 for integers, at 1.0 for floats.
    pub step: Option<f64>,
    /// The smallest positive value with a whole mantissa.
    pub min_normal: Option<f64>,
    /// The smallest positive value.
    pub min_subnormal: Option<f64>,
    /// What products are summed in.
    pub accumulator: &'static str,
    /// The ONNX operator set whose QuantizeLinear (for floats of 16 bits: Cast) has it.
    pub onnx_opset: Option<u32>,
    /// Who runs models in it: targets in whose file it is, and the programs that define it.
    pub runtimes: Vec<&'static str>,
}

/// What ONNX makes of a type: name, accumulator, operator set.
type Known = (&'static str, &'static str, Option<u32>);

/// Facts that no arithmetic gives. Operator sets: QuantizeLinear's type lists in ONNX 1.23; for float16 and bfloat16
/// Cast's.
const KNOWN: &[Known] = &[
    ("float32", "float32", Some(1)),
    ("float16", "float16 or float32", Some(6)),
    ("bfloat16", "float32", Some(13)),
    ("int8", "int32", Some(10)),
    ("uint8", "int32", Some(10)),
    ("int16", "int32 or int64", Some(21)),
    ("uint16", "int32 or int64", Some(21)),
    ("int4", "int32", Some(21)),
    ("uint4", "int32", Some(21)),
    ("int2", "int32", Some(25)),
    ("uint2", "int32", Some(25)),
    ("fp8_e4m3fn", "float32", Some(19)),
    ("fp8_e5m2", "float32", Some(19)),
    ("fp8_e4m3fnuz", "float32", Some(19)),
    ("fp8_e5m2fnuz", "float32", Some(19)),
    ("fp4_e2m1", "float32", Some(23)),
    ("nf4", "float32", None),
    ("fp4", "float32", None),
    ("nf4_nested", "float32", None),
    ("fp4_nested", "float32", None),
    ("llm_int8", "int32", None),
    ("matmul_nbits4", "float32 or int32", None),
    ("matmul_nbits4_asymmetric", "float32 or int32", None),
    ("matmul_bnb4_nf4", "float32", None),
    ("matmul_bnb4_fp4", "float32", None),
];

/// Names under which families appear in the table.
const SHOWN: &[(&str, &[&str])] = &[
    ("intN", &["int16", "int8", "int4", "int2", "int1"]),
    ("uintN", &["uint16", "uint8", "uint4", "uint2"]),
    ("hqqN", &["hqq4"]),
    ("pow2_N", &["pow2_4"]),
    ("fixedN", &["fixed8"]),
    ("eXmY", &["e3m4"]),
    ("bfpN", &["bfp8"]),
    ("matmul_nbitsN", &["matmul_nbits4"]),
    ("matmul_nbitsN_asymmetric", &["matmul_nbits4_asymmetric"]),
];

/// The table of types; with a name the row of that type alone.
///
/// Refuses a name that no type has.
pub fn types(name: Option<&str>) -> Result<Vec<TypeRow>, Error> {
    match name.map(str::to_ascii_lowercase).as_deref() {
        Some("float32") => Ok(vec![float32()]),
        Some("fp8_e4m3") => types(Some("fp8_e4m3fn")),
        Some(name) => Ok(vec![row(name)?]),
        None => {
            let names = FORMATS.iter().flat_map(|def| {
                let shown = SHOWN.iter().find(|(family, _)| *family == def.name);
                shown.map_or_else(|| vec![def.name], |(_, names)| names.to_vec())
            });
            let rows = names.map(row).collect::<Result<Vec<_>, _>>()?;
            Ok(std::iter::once(float32()).chain(rows).collect())
        }
    }
}

fn float32() -> TypeRow {
    TypeRow {
        name: "float32".into(),
        summary: "single precision: 8 + 23 bits",
        source: "IEEE 754 binary32",
        bits: 32.0,
        size_ratio: 1.0,
        min: Some(f64::from(f32::MIN)),
        max: Some(f64::from(f32::MAX)),
        step: Some(f64::from(f32::EPSILON)),
        min_normal: Some(f64::from(f32::MIN_POSITIVE)),
        min_subnormal: Some(f64::from(f32::from_bits(1))),
        accumulator: "float32",
        onnx_opset: Some(1),
        runtimes: runtimes("float32", None),
    }
}

/// Targets whose files have the type, and who else runs it, from where the format is defined.
fn runtimes(name: &str, source: Option<&str>) -> Vec<&'static str> {
    // The specification is no runtime.
    let files = TARGETS.iter().filter(|(target, _)| *target != "onnx");
    let has = |target: &Target| {
        let int_type = name.replacen("uint", "u", 1).replacen("int", "i", 1).parse::<IntType>();
        let half = name.parse::<HalfType>();
        match (int_type, half) {
            (Ok(int_type), _) => {
                target.weights.types.contains(&int_type)
                    || target.activations.types.contains(&int_type)
            }
            (_, Ok(half)) => target.halves.contains_key(&half),
            _ => name == "float32",
        }
    };
    let mut found: Vec<&'static str> = files
        .filter(|(target, text)| Target::from_toml(target, text).is_ok_and(|target| has(&target)))
        .map(|(target, _)| *target)
        .collect();
    let source = source.unwrap_or_default();
    if name.starts_with("matmul_") {
        found.extend(["midtread", "onnxruntime_cpu"]);
    }
    for (word, runtime) in [("bitsandbytes", "bitsandbytes"), ("ggml", "llama.cpp")] {
        if source.contains(word) {
            found.push(runtime);
        }
    }
    found
}

fn row(name: &str) -> Result<TypeRow, Error> {
    let format = Format::named(name).map_err(options)?;
    let bits = format.bits_per_weight(Shape { rows: 4096, cols: 4096 });
    let known = KNOWN.iter().find(|known| known.0 == name);
    let mut row = TypeRow {
        name: format.name(),
        summary: format.def.summary,
        source: format.def.source,
        bits,
        size_ratio: 32.0 / bits,
        min: None,
        max: None,
        step: None,
        min_normal: None,
        min_subnormal: None,
        accumulator: known.map_or("float32", |known| known.1),
        onnx_opset: known.and_then(|known| known.2),
        runtimes: runtimes(name, Some(format.def.source)),
    };
    if let Ok(ty) = float_type(name) {
        let smallest = if ty.mantissa_bits == 0 { ty.min_normal() } else { ty.min_subnormal() };
        row.min = Some(-f64::from(ty.max()));
        row.max = Some(f64::from(ty.max()));
        row.step = Some((-f64::from(ty.mantissa_bits)).exp2());
        row.min_normal = Some(f64::from(ty.min_normal()));
        row.min_subnormal = Some(f64::from(smallest));
        if ty.specials == Specials::None && ty.n_bits() < 5 {
            row.step = Some(f64::from(ty.min_subnormal()));
        }
    }
    let sign = match format.def.name {
        "intN" => Sign::Signed,
        "uintN" => Sign::Unsigned,
        _ => return Ok(row),
    };
    row.accumulator = known.map_or("int32", |known| known.1);
    // What the type holds; as weights signed ones leave out the lowest.
    let range = QRange::of(format.settings.n, sign, Span::Full).map_err(options)?;
    let (min, max, step) = if (format.settings.n, sign) == (1, Sign::Signed) {
        (-1, 1, 2.0)
    } else {
        (range.qmin(), range.qmax(), 1.0)
    };
    (row.min, row.max, row.step) = (Some(f64::from(min)), Some(f64::from(max)), Some(step));
    Ok(row)
}
