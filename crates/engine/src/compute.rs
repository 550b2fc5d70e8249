//! What the steps compute, on bytes.

use alloc::{boxed::Box, format, vec::Vec};

use midtread_kernels::{
    min_max::min_max,
    quantized::{
        self as kernel, Add, Bytes, DepthwiseWeights, Factor, MAX_OUTER, Matrices, Mean, Mul, Out,
        Pairwise, Requant, Rule, Strides, Weights,
    },
    transpose::transpose,
};
use midtread_num::{
    QParams, QRange, dynamic,
    requant::{Multiplier, SumMultipliers, multiplier, sum_factors},
    softmax::Softmax,
};

use crate::{
    code::{Conv, Factors, Matmul, Op, Pair, Product, Quant, Reshape, Row, Single, To, Window},
    dims::{Dims, MAX_RANK},
    fault::Fault,
    machine::{Elem, Meta, View},
};

/// A step's operation with packed weights.
pub(crate) enum Ready {
    Operator,
    Quantize(QParams, QRange, Elem),
    Dequantize(QParams, Elem),
    DynamicQuantize,
    Conv {
        window: Window,
        /// Input channels of a group, output channels, groups.
        channels: [usize; 3],
        x: Elem,
        x_zero: i32,
        weights: ConvWeights,
        out: Elem,
    },
    Product {
        weights: Weights,
        requant: Requant,
        x: Elem,
        out: Elem,
    },
    Matmul {
        of: Matmul,
        requant: Requant,
    },
    Softmax(Single),
    DynamicConv {
        window: Window,
        channels: [usize; 3],
        weights: Weights,
        requant: Requant,
        sums: Vec<i32>,
        scales: Vec<f32>,
    },
    DynamicProduct {
        weights: Weights,
        requant: Requant,
        sums: Vec<i32>,
        scales: Vec<f32>,
    },
    Pairwise {
        op: Pairwise,
        inputs: [Elem; 2],
        out: Elem,
    },
    Concat {
        axis: usize,
        tables: Vec<Option<Box<[u8; 256]>>>,
    },
    Mean(Single),
    AveragePool {
        window: Window,
        single: Single,
        include_pads: bool,
        /// For sums over one pixel, over two, ..., without floating point.
        rules: Vec<Rule>,
    },
    MaxPool(Window, Elem),
    Table(Box<[u8; 256]>, [Elem; 2]),
    Reshape(Reshape),
    Transpose(Vec<usize>),
    ToLast,
    ToPlain,
}

pub(crate) enum ConvWeights {
    /// One matrix for each group.
    Groups(Vec<Weights>, Vec<Requant>),
    Depthwise(DepthwiseWeights, Requant),
}

/// What a step needs besides its inputs, where scales are found in the run.
pub(crate) struct Dynamic<'a> {
    /// Scale and zero point of the first input's codes.
    pub(crate) of: (f32, u8),
    /// Room for the requantization.
    pub(crate) requant: Option<&'a mut Requant>,
}

impl<'a> Dynamic<'a> {
    /// The requantization for the input's scale and zero point: the factors are the product of the scales, and
    /// `sums` are minus the sums of the weights.
    fn requant(self, sums: &[i32], scales: &[f32]) -> Result<&'a Requant, Fault> {
        let (scale, zero_point) = self.of;
        let requant = self.requant.ok_or_else(|| Fault::new("no room to requantize"))?;
        let bias = |sum: &i32| sum.wrapping_mul(i32::from(zero_point));
        requant.set_numbers(sums.iter().zip(scales).map(|(sum, w)| (bias(sum), scale * w)));
        Ok(requant)
    }
}

/// Checks an operation and packs its weights.
pub(crate) fn ready(op: Op, n_inputs: usize) -> Result<Ready, Fault> {
    let needed = match &op {
        Op::Operator(_) => n_inputs,
        Op::Add(_) | Op::Mul(_) | Op::Matmul(_) => 2,
        Op::Concat { tables, .. } => tables.len().max(1),
        _ => 1,
    };
    if n_inputs != needed {
        return Err(Fault::new(format!("{n_inputs} inputs, and {needed} are taken")));
    }
    Ok(match op {
        Op::Operator(_) => Ready::Operator,
        Op::Quantize(y) => Ready::Quantize(params(&y)?, y.range(), Elem::codes(y.is_signed)),
        Op::Dequantize(x) => Ready::Dequantize(params(&x)?, Elem::codes(x.is_signed)),
        Op::DynamicQuantize => Ready::DynamicQuantize,
        Op::Conv(conv) => ready_conv(conv)?,
        Op::Product(product) => ready_product(product)?,
        Op::Matmul(of) => ready_matmul(of)?,
        Op::Softmax(single) => {
            let _ = (params(&single.x)?, params(&single.y)?);
            Ready::Softmax(single)
        }
        Op::Add(pair) => pairwise(&pair, sum(&pair)?),
        Op::Mul(pair) => {
            let [a, b] = pair.inputs;
            let factor = factor([a.scale, b.scale, pair.output.scale], pair.is_fixed)?;
            let rule = rule(factor, &pair)?;
            let zero_points = pair.inputs.map(|p| p.zero_point);
            pairwise(&pair, Pairwise::Mul(Mul { zero_points, rule }))
        }
        Op::Concat { axis, tables } => Ready::Concat { axis, tables },
        Op::Mean(single) => {
            let _ = (params(&single.x)?, params(&single.y)?);
            Ready::Mean(single)
        }
        Op::AveragePool(window, single, include_pads) => {
            window.check()?;
            let _ = (params(&single.x)?, params(&single.y)?);
            let n = window.kernel[0] * window.kernel[1];
            let rules = match single.is_fixed {
                true if 1 << 16 < n => return Err(Fault::new(format!("a window of {n} pixels"))),
                true => (1..=n).map(|n| mean_rule(&single, n)).collect::<Result<_, _>>()?,
                false => Vec::new(),
            };
            Ready::AveragePool { window, single, include_pads, rules }
        }
        Op::MaxPool(window, is_signed) => {
            window.check()?;
            Ready::MaxPool(window, Elem::codes(is_signed))
        }
        Op::Table(codes, signs) => Ready::Table(codes, signs.map(Elem::codes)),
        Op::Reshape(reshape) => Ready::Reshape(reshape),
        Op::Transpose(perm) => {
            check_permutation(&perm)?;
            Ready::Transpose(perm)
        }
        Op::ToLast => Ready::ToLast,
        Op::ToPlain => Ready::ToPlain,
    })
}

fn check_permutation(perm: &[usize]) -> Result<(), Fault> {
    if perm.len() <= MAX_RANK && (0..perm.len()).all(|d| perm.contains(&d)) {
        return Ok(());
    }
    Err(Fault::new(format!("{perm:?} is no permutation")))
}

fn params(quant: &Quant) -> Result<QParams, Fault> {
    QParams::new(quant.scale, quant.zero_point, quant.range()).map_err(|_| {
        Fault::new(format!("scale {} and zero point {}", quant.scale, quant.zero_point))
    })
}

/// `x * w / y` as what sums are multiplied with.
fn factor([x, w, y]: [f32; 3], is_fixed: bool) -> Result<Factor, Fault> {
    let none = || Fault::new(format!("scales {x}, {w} and {y} give no factor"));
    if is_fixed {
        return fixed_factor([x, w, y]).map(Factor::Fixed).ok_or_else(none);
    }
    let factor = multiplier(x, w, y);
    if factor.is_finite() { Ok(Factor::Float(factor)) } else { Err(none()) }
}

/// `x * w / y` without floating point, from `f64`.
pub(crate) fn fixed_factor([x, w, y]: [f32; 3]) -> Option<Multiplier> {
    Multiplier::from_real(midtread_num::requant::real_multiplier(x, w, y))
}

fn rule(factor: Factor, pair: &Pair) -> Result<Rule, Fault> {
    let _ = params(&pair.output)?;
    for x in &pair.inputs {
        params(x)?;
    }
    let (range, codes) = (pair.output.range(), pair.codes);
    if codes[1] < codes[0] || !codes.iter().all(|c| (range.qmin()..=range.qmax()).contains(c)) {
        return Err(Fault::new(format!("codes from {} to {}", codes[0], codes[1])));
    }
    Ok(Rule { factor, zero_point: pair.output.zero_point, range, codes })
}

fn sum(pair: &Pair) -> Result<Pairwise, Fault> {
    let ([a, b], y) = (pair.inputs, pair.output);
    let rule = rule(Factor::Float(1.0), pair)?;
    let zero_points = [a.zero_point, b.zero_point];
    if pair.is_fixed {
        let real = |x: Quant| midtread_num::requant::real_multiplier(x.scale, 1.0, y.scale);
        let sum = SumMultipliers::from_reals([real(a), real(b)])
            .ok_or_else(|| Fault::new("scales too far apart for fixed point"))?;
        return Ok(Pairwise::AddFixed(sum, zero_points, rule));
    }
    let (factors, offset) = sum_factors([a.scale, b.scale], zero_points, y.scale, y.zero_point);
    let swapped = ([b.scale, a.scale], [b.zero_point, a.zero_point]);
    let (_, swapped_offset) = sum_factors(swapped.0, swapped.1, y.scale, y.zero_point);
    if ![&factors[..], &[offset, swapped_offset]].concat().iter().all(|f| f.is_finite()) {
        return Err(Fault::new("scales too far apart"));
    }
    let [lo, hi] = rule.codes.map(|code| code as f32);
    Ok(Pairwise::Add(Add { factors, offset, swapped_offset, lo, hi }))
}

fn pairwise(pair: &Pair, op: Pairwise) -> Ready {
    let inputs = pair.inputs.map(|p| Elem::codes(p.is_signed));
    Ready::Pairwise { op, inputs, out: Elem::codes(pair.output.is_signed) }
}

/// From the sum over so many pixels to the code of their mean.
fn mean_rule(single: &Single, n: usize) -> Result<Rule, Fault> {
    let (x, y) = (single.x, single.y);
    // ONNX Runtime's: the output's scale times the number of pixels, in `f32`.
    let factor = match single.is_fixed {
        true => {
            let real = midtread_num::requant::real_multiplier(x.scale, 1.0, y.scale) / n as f64;
            Multiplier::from_real(real).map(Factor::Fixed)
        }
        false => Some(Factor::Float(multiplier(x.scale, 1.0, y.scale * n as f32))),
    };
    let factor = factor.ok_or_else(|| Fault::new("scales too far apart for fixed point"))?;
    let range = y.range();
    let codes = [range.qmin(), range.qmax()];
    Ok(Rule { factor, zero_point: y.zero_point, range, codes })
}

/// A requantization for some channels.
fn requant(bias: &[i32], to: &To, channels: core::ops::Range<usize>) -> Result<Requant, Fault> {
    let misfit = || Fault::new("factors that are not one for each channel");
    let bias = bias.get(channels.clone()).ok_or_else(misfit)?;
    Ok(match to {
        To::Codes { factors, codes, zero_point, is_signed } => {
            let all = if *is_signed { QRange::I8 } else { QRange::U8 };
            let is_code = |code: i32| (all.qmin()..=all.qmax()).contains(&code);
            if !codes.iter().all(|&c| is_code(c)) || codes[1] < codes[0] || !is_code(*zero_point) {
                return Err(Fault::new(format!("codes from {codes:?} around {zero_point}")));
            }
            match factors {
                Factors::Float(factors) => {
                    let factors = factors.get(channels).ok_or_else(misfit)?;
                    if !factors.iter().all(|f| f.is_finite()) {
                        return Err(Fault::new("a factor that is no number"));
                    }
                    Requant::new(bias, factors, *codes, *zero_point)
                }
                Factors::Fixed(factors) => {
                    let factors = factors.get(channels).ok_or_else(misfit)?;
                    Requant::fixed_point(bias, factors, *codes, *zero_point)
                }
            }
        }
        To::Numbers { scales } => {
            Requant::to_numbers(bias, scales.get(channels).ok_or_else(misfit)?, None)
        }
        To::Dynamic { scales, shifts } => {
            let shifts = match shifts {
                Some(shifts) => Some(shifts.get(channels.clone()).ok_or_else(misfit)?),
                None => None,
            };
            Requant::to_numbers(bias, scales.get(channels).ok_or_else(misfit)?, shifts)
        }
    })
}

fn out_elem(to: &To) -> Elem {
    match to {
        To::Codes { is_signed, .. } => Elem::codes(*is_signed),
        To::Numbers { .. } | To::Dynamic { .. } => Elem::F32,
    }
}

fn n_factors(to: &To) -> usize {
    match to {
        To::Codes { factors: Factors::Float(factors), .. } => factors.len(),
        To::Codes { factors: Factors::Fixed(factors), .. } => factors.len(),
        To::Numbers { scales } | To::Dynamic { scales, .. } => scales.len(),
    }
}

fn ready_conv(conv: Conv) -> Result<Ready, Fault> {
    let Conv { window, groups, c_in, weights, bias, x_zero, x_signed, to } = conv;
    window.check()?;
    let ([kh, kw], dilation_w) = (window.kernel, window.dilations[1]);
    let (n_taps, n) = (kh * kw, bias.len());
    let n_weights = n_taps.checked_mul(c_in).and_then(|k| k.checked_mul(n));
    let x_range = if x_signed { QRange::I8 } else { QRange::U8 };
    let is_whole = n_weights == Some(weights.len())
        && 0 < groups
        && n.is_multiple_of(groups)
        && c_in.checked_mul(groups).is_some()
        && n_factors(&to) == n
        && (x_range.qmin()..=x_range.qmax()).contains(&x_zero);
    let is_dynamic = matches!(to, To::Dynamic { .. });
    if !is_whole || window.ceil || (is_dynamic && (1 < groups || x_signed)) {
        return Err(Fault::new(format!(
            "{} weights of {n_taps} taps and {c_in} channels in {groups} groups for {n} channels",
            weights.len()
        )));
    }
    let weight = |channel: usize, p: usize| weights[channel * n_taps * c_in + p].cast_signed();
    if let To::Dynamic { scales, .. } = &to {
        return Ok(Ready::DynamicConv {
            window,
            channels: [c_in, n, groups],
            weights: Weights::of_windows([kh, kw], dilation_w, c_in, n, |p, j| weight(j, p)),
            requant: requant(&bias, &to, 0..n)?,
            scales: scales.clone(),
            sums: bias,
        });
    }
    let per_group = n / groups;
    let is_depthwise = c_in == 1 && per_group == 1 && 1 < groups;
    let packed = if is_depthwise && matches!(to, To::Codes { .. }) {
        let requant = requant(&bias, &to, 0..n)?;
        let at = |t, c| weight(c, t);
        let weights = DepthwiseWeights::new([kh, kw], window.strides, window.dilations, n, at);
        ConvWeights::Depthwise(weights, requant)
    } else {
        let (mut all, mut requants) = (Vec::new(), Vec::new());
        for first in (0..n).step_by(per_group.max(1)) {
            requants.push(requant(&bias, &to, first..first + per_group)?);
            let at = |p, j| weight(first + j, p);
            all.push(Weights::of_windows([kh, kw], dilation_w, c_in, per_group, at));
        }
        ConvWeights::Groups(all, requants)
    };
    Ok(Ready::Conv {
        window,
        channels: [c_in, n, groups],
        x: Elem::codes(x_signed),
        x_zero,
        weights: packed,
        out: out_elem(&to),
    })
}

fn ready_product(product: Product) -> Result<Ready, Fault> {
    let Product { k, weights, bias, x_signed, to, row } = product;
    let n = bias.len();
    if k.checked_mul(n) != Some(weights.len()) || n_factors(&to) != n {
        return Err(Fault::new(format!("{} weights in {k} rows and {n} columns", weights.len())));
    }
    let mut requant = requant(&bias, &to, 0..n)?;
    let mut out = out_elem(&to);
    if let Some(Row { pair, is_swapped, codes }) = row {
        // Of the product's own codes.
        let is_of_codes = match &to {
            To::Codes { factors: Factors::Float(_), zero_point, is_signed, .. } => {
                let from = pair.inputs[0];
                (from.zero_point, from.is_signed) == (*zero_point, *is_signed)
            }
            _ => false,
        };
        let (Pairwise::Add(add), true) = (sum(&pair)?, is_of_codes && codes.len() == n) else {
            return Err(Fault::new("a row that is not added to codes of a product"));
        };
        let row = Bytes { data: &codes, is_signed: pair.inputs[1].is_signed };
        requant = requant.with_row(&add, row, is_swapped);
        out = Elem::codes(pair.output.is_signed);
    }
    let packed = Weights::new(k, n, |p, j| weights[j * k + p].cast_signed());
    Ok(match to {
        To::Dynamic { scales, .. } => {
            if x_signed {
                return Err(Fault::new("a dynamic product of signed codes"));
            }
            Ready::DynamicProduct { weights: packed, requant, sums: bias, scales }
        }
        _ => Ready::Product { weights: packed, requant, x: Elem::codes(x_signed), out },
    })
}

fn ready_matmul(of: Matmul) -> Result<Ready, Fault> {
    let [a, b] = of.inputs;
    of.perms.iter().flatten().try_for_each(|perm| check_permutation(perm))?;
    let [rows, _, out] = &of.perms;
    // What is summed over is read as it lies, and so are the output's columns written.
    let keeps_last = |perm: &Vec<usize>| perm.last() == Some(&(perm.len().wrapping_sub(1)));
    if ![rows, out].into_iter().flatten().all(keeps_last) {
        return Err(Fault::new("a product of matrices whose rows do not lie in a row"));
    }
    let requant = match of.output {
        Some(y) => {
            let pair = Pair { inputs: [a, b], output: y, codes: of.codes, is_fixed: of.is_fixed };
            let rule = rule(factor([a.scale, b.scale, y.scale], of.is_fixed)?, &pair)?;
            Requant::uniform(rule.factor, rule.codes, rule.zero_point)
        }
        None => {
            let (a, b) = (params(&a)?, params(&b)?);
            let scale = a.scale() * b.scale();
            if !scale.is_finite() {
                return Err(Fault::new("scales whose product is no number"));
            }
            Requant::uniform(Factor::Float(scale), [0, 0], 0)
        }
    };
    Ok(Ready::Matmul { of, requant })
}

/// Where the matrices of a product lie, and the sizes of the output.
fn matrices(of: &Matmul, a: &Dims, b: &Dims) -> Result<(Matrices, Dims), Fault> {
    let misfit =
        || Fault::new(format!("matrices of sizes {a:?} and {b:?} in the orders {:?}", of.perms));
    let [a, b] = [(a, &of.perms[0]), (b, &of.perms[1])].map(|(dims, perm)| Turned::new(dims, perm));
    let (a, b) = (a.ok_or_else(misfit)?, b.ok_or_else(misfit)?);
    // A vector is a row, or a column, that is not there in the output.
    let (a_is_row, b_is_column) = (a.rank == 1, b.rank == 1);
    let (a, b) = (a.as_matrices(0), b.as_matrices(1));
    let (last_a, last_b) = (a.rank - 1, b.rank - 1);
    let (m, k, n) = (a.sizes[last_a - 1], a.sizes[last_a], b.sizes[last_b]);
    if b.sizes[last_b - 1] != k {
        return Err(misfit());
    }
    let n_outer = a.rank.max(b.rank) - 2;
    let (mut outer, mut a_outer, mut b_outer) = ([1; MAX_OUTER], [0; MAX_OUTER], [0; MAX_OUTER]);
    for d in 0..n_outer {
        // The last of the output's outer dimensions are the inputs' last.
        let of = |x: &Turned| match (d + x.rank).checked_sub(n_outer + 2) {
            Some(d) => (x.sizes[d], if x.sizes[d] == 1 { 0 } else { x.strides[d] }),
            None => (1, 0),
        };
        let at = MAX_OUTER - n_outer + d;
        let ((x, x_stride), (y, y_stride)) = (of(&a), of(&b));
        outer[at] = match (x, y) {
            (x, y) if x == y || y == 1 => x,
            (1, y) => y,
            _ => return Err(misfit()),
        };
        (a_outer[at], b_outer[at]) = (x_stride, y_stride);
    }

    let mut sizes = [0; MAX_RANK];
    sizes[..n_outer].copy_from_slice(&outer[MAX_OUTER - n_outer..]);
    let mut rank = n_outer;
    for (size, is_there) in [(m, !a_is_row), (n, !b_is_column)] {
        if is_there {
            sizes[rank] = size;
            rank += 1;
        }
    }
    // As they are stored, and from there back to the strides.
    let mut stored = sizes;
    let mut strides = [0; MAX_RANK];
    let identity: [usize; MAX_RANK] = core::array::from_fn(|d| d);
    let perm = of.perms[2].as_deref().unwrap_or(&identity[..rank]);
    if perm.len() != rank {
        return Err(misfit());
    }
    for (d, &from) in perm.iter().enumerate() {
        stored[d] = sizes[from];
    }
    let dims = Dims::new(&stored[..rank])?;
    let mut step = 1;
    for (d, &from) in perm.iter().enumerate().rev() {
        strides[from] = step;
        step *= stored[d];
    }
    let mut y = Strides { outer: [0; MAX_OUTER], row: 0, column: 1 };
    y.outer[MAX_OUTER - n_outer..].copy_from_slice(&strides[..n_outer]);
    if !a_is_row {
        // A column of a vector is of one element: one row after the other.
        y.row = strides[n_outer];
    }
    let lie = |x: &Turned, outer| Strides {
        outer,
        row: x.strides[x.rank - 2],
        column: x.strides[x.rank - 1],
    };
    let (a, b) = (lie(&a, a_outer), lie(&b, b_outer));
    Ok((Matrices { outer, m, k, n, a, b, y }, dims))
}

/// Sizes in another order, and how far apart their elements lie.
#[derive(Clone, Copy)]
struct Turned {
    rank: usize,
    sizes: [usize; MAX_RANK + 1],
    strides: [usize; MAX_RANK + 1],
}

impl Turned {
    /// `None` where the order is of another number of dimensions, or of none.
    fn new(dims: &Dims, perm: &Option<Vec<usize>>) -> Option<Self> {
        let rank = dims.len();
        if rank == 0 || perm.as_ref().is_some_and(|perm| perm.len() != rank) {
            return None;
        }
        let (mut sizes, mut strides) = ([1; MAX_RANK + 1], [0; MAX_RANK + 1]);
        for d in 0..rank {
            let from = perm.as_ref().map_or(d, |perm| perm[d]);
            sizes[d] = dims[from];
            strides[d] = dims[from + 1..].iter().product();
        }
        Some(Self { rank, sizes, strides })
    }

    /// With two dimensions at least: a vector gets one of size 1 at `at`.
    fn as_matrices(mut self, at: usize) -> Self {
        if self.rank == 1 {
            let (size, stride) = (self.sizes[0], self.strides[0]);
            self.rank = 2;
            (self.sizes[at], self.strides[at]) = (1, 0);
            (self.sizes[1 - at], self.strides[1 - at]) = (size, stride);
        }
        self
    }
}

/// Type and sizes of a step's output; `None` for an operator's, which are the host's affair.
pub(crate) fn output(
    step: &Ready,
    n_inputs: usize,
    input: &dyn Fn(usize) -> Result<Meta, Fault>,
) -> Result<Option<Meta>, Fault> {
    let typed = |i: usize, elem: Elem| -> Result<Dims, Fault> {
        let meta = input(i)?;
        if meta.elem != elem {
            let (is, has) = (elem.name(), meta.elem.name());
            return Err(Fault::new(match elem {
                Elem::F32 => format!("{has} where {is} is needed"),
                _ => format!("codes of type {is} by their zero point, and {has} by their elements"),
            }));
        }
        Ok(meta.dims)
    };
    let made = |elem: Elem, dims: &[usize]| Ok(Some(Meta { elem, dims: Dims::new(dims)? }));
    match step {
        Ready::Operator => Ok(None),
        Ready::Quantize(_, _, elem) => made(*elem, &typed(0, Elem::F32)?),
        Ready::Dequantize(_, elem) => made(Elem::F32, &typed(0, *elem)?),
        Ready::DynamicQuantize => made(Elem::U8, &typed(0, Elem::F32)?),
        Ready::Conv { window, channels, x, out, .. } => {
            let (conv, [height, width]) = convolution(window, channels, &typed(0, *x)?)?;
            made(*out, &[conv.n, height, width, conv.c_out])
        }
        Ready::DynamicConv { window, channels, .. } => {
            let dims = typed(0, Elem::U8)?;
            let (conv, [height, width]) = convolution(window, channels, &dims)?;
            made(Elem::F32, &[conv.n, height, width, conv.c_out])
        }
        Ready::Product { weights, x, out, .. } => product_meta(weights, *out, &typed(0, *x)?),
        Ready::DynamicProduct { weights, .. } => {
            product_meta(weights, Elem::F32, &typed(0, Elem::U8)?)
        }
        Ready::Matmul { of, .. } => {
            let [a, b] = of.inputs.map(|x| Elem::codes(x.is_signed));
            let (_, dims) = matrices(of, &typed(0, a)?, &typed(1, b)?)?;
            made(of.output.map_or(Elem::F32, |y| Elem::codes(y.is_signed)), &dims)
        }
        Ready::Softmax(single) => {
            let dims = typed(0, Elem::codes(single.x.is_signed))?;
            if dims.is_empty() {
                return Err(Fault::new("a softmax of one number without a dimension"));
            }
            made(Elem::codes(single.y.is_signed), &dims)
        }
        Ready::Pairwise { inputs, out, .. } => {
            let (a, b) = (typed(0, inputs[0])?, typed(1, inputs[1])?);
            made(*out, &broadcast(&a, &b)?)
        }
        Ready::Concat { axis, .. } => {
            let first = input(0)?;
            let mut sizes = [0; MAX_RANK];
            sizes[..first.dims.len()].copy_from_slice(&first.dims);
            let rank = first.dims.len();
            let misfit = |dims: &Dims| {
                Fault::new(format!("{:?} and {dims:?} are not joined at {axis}", first.dims))
            };
            if rank <= *axis {
                return Err(misfit(&first.dims));
            }
            for i in 1..n_inputs {
                let dims = typed(i, first.elem)?;
                let is_same = |d: usize| d == *axis || dims[d] == first.dims[d];
                if dims.len() != rank || !(0..rank).all(is_same) {
                    return Err(misfit(&dims));
                }
                sizes[*axis] =
                    sizes[*axis].checked_add(dims[*axis]).ok_or_else(|| misfit(&dims))?;
            }
            made(first.elem, &sizes[..rank])
        }
        Ready::Mean(single) => {
            let [n, height, width, c] = image(&typed(0, Elem::codes(single.x.is_signed))?)?;
            // Sums of so many codes, less their zero points, are `i32`.
            match height * width {
                0 => Err(Fault::new("a mean over no pixels")),
                pixels if 1 << 22 < pixels => {
                    Err(Fault::new(format!("a mean over {pixels} pixels")))
                }
                _ => made(Elem::codes(single.y.is_signed), &[n, 1, 1, c]),
            }
        }
        Ready::AveragePool { window, single, .. } => {
            let [n, height, width, c] = image(&typed(0, Elem::codes(single.x.is_signed))?)?;
            let (_, [out_h, out_w]) = window.over([n, c, c, c], [height, width])?;
            made(Elem::codes(single.y.is_signed), &[n, out_h, out_w, c])
        }
        Ready::MaxPool(window, elem) => {
            let [n, height, width, c] = image(&typed(0, *elem)?)?;
            let (_, [out_h, out_w]) = window.over([n, c, c, c], [height, width])?;
            made(*elem, &[n, out_h, out_w, c])
        }
        Ready::Table(_, [x, y]) => made(*y, &typed(0, *x)?),
        Ready::Reshape(reshape) => {
            let x = input(0)?;
            Ok(Some(Meta { dims: reshape.dims(&x.dims)?, ..x }))
        }
        Ready::Transpose(perm) => {
            let x = input(0)?;
            if perm.len() != x.dims.len() {
                return Err(Fault::new(format!("sizes {:?} in the order {perm:?}", x.dims)));
            }
            let mut sizes = [0; MAX_RANK];
            for (size, &d) in sizes.iter_mut().zip(perm) {
                *size = x.dims[d];
            }
            made(x.elem, &sizes[..perm.len()])
        }
        Ready::ToLast => {
            let x = input(0)?;
            let [n, c, height, width] = image(&x.dims)?;
            made(x.elem, &[n, height, width, c])
        }
        Ready::ToPlain => {
            let x = input(0)?;
            let [n, height, width, c] = image(&x.dims)?;
            made(x.elem, &[n, c, height, width])
        }
    }
}

fn image(dims: &Dims) -> Result<[usize; 4], Fault> {
    <[usize; 4]>::try_from(&dims[..])
        .map_err(|_| Fault::new(format!("sizes {dims:?} where an image of codes is needed")))
}

fn convolution(
    window: &Window,
    &[c_in, c_out, groups]: &[usize; 3],
    x: &Dims,
) -> Result<(midtread_kernels::conv::Conv2d, [usize; 2]), Fault> {
    let [n, height, width, c] = image(x)?;
    if c != c_in * groups {
        return Err(Fault::new(format!(
            "{c} input channels, and weights for {} in {groups} groups",
            c_in * groups
        )));
    }
    window.over([n, c, c_out, groups], [height, width])
}

/// Rows of `x` and the sizes of its product with a matrix.
fn product_meta(weights: &Weights, elem: Elem, x: &Dims) -> Result<Option<Meta>, Fault> {
    let Some((&k, rows)) = x.split_last().filter(|(k, _)| **k == weights.k()) else {
        return Err(Fault::new(format!("sizes {x:?} times a matrix of {} rows", weights.k())));
    };
    let _ = k;
    let mut sizes = [0; MAX_RANK];
    sizes[..rows.len()].copy_from_slice(rows);
    sizes[rows.len()] = weights.n();
    Ok(Some(Meta { elem, dims: Dims::new(&sizes[..x.len()])? }))
}

fn broadcast(a: &Dims, b: &Dims) -> Result<Dims, Fault> {
    let (a, b) = if a.len() < b.len() { (b, a) } else { (a, b) };
    let mut sizes = [0; MAX_RANK];
    let lead = a.len() - b.len();
    for (d, size) in sizes[..a.len()].iter_mut().enumerate() {
        let (x, y) = (a[d], d.checked_sub(lead).map_or(1, |d| b[d]));
        *size = match (x, y) {
            (x, y) if x == y || y == 1 => x,
            (1, y) => y,
            _ => return Err(Fault::new(format!("sizes {a:?} and {b:?} do not fit each other"))),
        };
    }
    Dims::new(&sizes[..a.len()])
}

/// The sizes with ones in front, so that there are `rank`.
fn led(dims: &Dims, rank: usize) -> [usize; MAX_RANK] {
    let mut sizes = [1; MAX_RANK];
    sizes[rank - dims.len()..rank].copy_from_slice(dims);
    sizes
}

fn codes<'a>(x: &View<'a>) -> Bytes<'a> {
    Bytes { data: x.bytes, is_signed: x.meta.elem == Elem::I8 }
}

fn numbers<'a>(x: &View<'a>) -> Result<&'a [f32], Fault> {
    bytemuck::try_cast_slice(x.bytes).map_err(|_| Fault::new("numbers at an odd address"))
}

fn numbers_mut(y: &mut [u8]) -> Result<&mut [f32], Fault> {
    bytemuck::try_cast_slice_mut(y).map_err(|_| Fault::new("numbers at an odd address"))
}

/// Computes a step whose output has the sizes that [`output`] said. Gives scale and zero point of codes whose range
/// was found.
pub(crate) fn compute<'a>(
    step: &Ready,
    n_inputs: usize,
    input: &dyn Fn(usize) -> Result<View<'a>, Fault>,
    dims: &Dims,
    y: &mut [u8],
    dynamic: Dynamic<'_>,
) -> Result<Option<(f32, u8)>, Fault> {
    match step {
        Ready::Operator => return Err(Fault::new("an operator as a step")),
        Ready::Quantize(params, range, elem) => {
            let x = input(0)?;
            let x = numbers(&x)?;
            if *elem == Elem::I8 {
                kernel::quantize_i8(x, bytemuck::cast_slice_mut(y), *params, *range);
            } else {
                kernel::quantize_u8(x, y, *params, *range);
            }
        }
        Ready::Dequantize(params, elem) => {
            let (x, y) = (input(0)?, numbers_mut(y)?);
            if *elem == Elem::I8 {
                kernel::dequantize_i8(bytemuck::cast_slice(x.bytes), y, *params);
            } else {
                kernel::dequantize_u8(x.bytes, y, *params);
            }
        }
        Ready::DynamicQuantize => {
            let x = input(0)?;
            let x = numbers(&x)?;
            let extremes = min_max(x);
            let (min, max) = extremes.range().unwrap_or((0.0, 0.0));
            let params = dynamic::quantize_linear_params(min, max, dynamic::ZeroScale::One);
            let params = params.ok().filter(|_| extremes.n_infinite == 0);
            let params = params.ok_or_else(|| Fault::new("infinite values have no scale"))?;
            kernel::quantize_u8(x, y, params, QRange::U8);
            return Ok(Some((params.scale(), params.zero_point() as u8)));
        }
        Ready::Conv { window, channels, x_zero, weights, out, .. } => {
            let x = input(0)?;
            let (conv, _) = convolution(window, channels, &x.meta.dims)?;
            match weights {
                ConvWeights::Groups(weights, requants) => {
                    let out = &mut match out {
                        Elem::F32 => Out::Numbers(numbers_mut(y)?),
                        _ => Out::Codes(y),
                    };
                    kernel::conv(&conv, codes(&x), *x_zero, weights, requants, out);
                }
                ConvWeights::Depthwise(weights, requant) => {
                    kernel::depthwise(&conv, codes(&x), *x_zero, weights, requant, y);
                }
            }
        }
        Ready::Product { weights, requant, out, .. } => {
            let x = input(0)?;
            let out = &mut match out {
                Elem::F32 => Out::Numbers(numbers_mut(y)?),
                _ => Out::Codes(y),
            };
            kernel::product(rows(&x, weights), codes(&x), weights, requant, out);
        }
        Ready::Matmul { of, requant } => {
            let (a, b) = (input(0)?, input(1)?);
            let (matrices, _) = matrices(of, &a.meta.dims, &b.meta.dims)?;
            let zero_points = of.inputs.map(|x| x.zero_point);
            let out = &mut match of.output {
                Some(_) => Out::Codes(y),
                None => Out::Numbers(numbers_mut(y)?),
            };
            kernel::product_of_two(&matrices, codes(&a), codes(&b), zero_points, requant, out);
        }
        Ready::Softmax(Single { x: from, y: to, .. }) => {
            let len = dims[dims.len() - 1];
            let of = Softmax::new(len, from.scale, to.scale, to.zero_point);
            kernel::softmax(&of, len, codes(&input(0)?), y);
        }
        Ready::DynamicConv { window, channels, weights, sums, scales, .. } => {
            let x = input(0)?;
            let (conv, _) = convolution(window, channels, &x.meta.dims)?;
            let zero_point = i32::from(dynamic.of.1);
            let requant = core::slice::from_ref(dynamic.requant(sums, scales)?);
            let out = &mut Out::Numbers(numbers_mut(y)?);
            let weights = core::slice::from_ref(weights);
            kernel::conv(&conv, codes(&x), zero_point, weights, requant, out);
        }
        Ready::DynamicProduct { weights, sums, scales, .. } => {
            let x = input(0)?;
            let requant = dynamic.requant(sums, scales)?;
            let out = &mut Out::Numbers(numbers_mut(y)?);
            kernel::product(rows(&x, weights), codes(&x), weights, requant, out);
        }
        Ready::Pairwise { op, .. } => {
            let (a, b) = (input(0)?, input(1)?);
            if a.meta.dims == b.meta.dims {
                kernel::pairwise(op, codes(&a), codes(&b), y);
            } else {
                let rank = dims.len();
                let (a_dims, b_dims) = (led(&a.meta.dims, rank), led(&b.meta.dims, rank));
                let (a, b) = ((codes(&a), &a_dims[..rank]), (codes(&b), &b_dims[..rank]));
                kernel::pairwise_broadcast(op, a, b, dims, y);
            }
        }
        Ready::Concat { axis, tables } => {
            let inner: usize = dims[axis + 1..].iter().product();
            let row = dims[*axis] * inner;
            let mut start = 0;
            for i in 0..n_inputs {
                let x = input(i)?;
                let len = x.meta.dims[*axis] * inner * x.meta.elem.n_bytes();
                let row = row * x.meta.elem.n_bytes();
                if len == 0 || row == 0 {
                    continue;
                }
                let table = tables.get(i).and_then(Option::as_ref);
                for (x, y) in x.bytes.chunks_exact(len).zip(y.chunks_exact_mut(row)) {
                    let y = &mut y[start..start + len];
                    match table {
                        None => y.copy_from_slice(x),
                        Some(table) => kernel::map(table, x, y),
                    }
                }
                start += len;
            }
        }
        Ready::Mean(single) => {
            let x = input(0)?;
            let [n, height, width, c] = image(&x.meta.dims)?;
            let rule = mean_rule(single, height * width)?;
            let sizes = [n, height * width, c];
            kernel::global_average_pool(sizes, codes(&x), single.x.zero_point, &rule, y);
        }
        Ready::AveragePool { window, single, include_pads, rules } => {
            let x = input(0)?;
            let [n, height, width, c] = image(&x.meta.dims)?;
            let (conv, output) = window.over([n, c, c, c], [height, width])?;
            let (from, to) = (single.x, single.y);
            let mean = match single.is_fixed {
                true => Mean::Fixed(rules),
                false => Mean::Float {
                    scales: [from.scale, to.scale],
                    zero_point: to.zero_point,
                    range: to.range(),
                },
            };
            let zero = from.zero_point;
            kernel::average_pool(&conv, output, *include_pads, codes(&x), zero, &mean, y);
        }
        Ready::MaxPool(window, _) => {
            let x = input(0)?;
            let [n, height, width, c] = image(&x.meta.dims)?;
            let (conv, output) = window.over([n, c, c, c], [height, width])?;
            kernel::max_pool(&conv, output, codes(&x), y);
        }
        Ready::Table(table, _) => kernel::map(table, input(0)?.bytes, y),
        Ready::Reshape(_) => y.copy_from_slice(input(0)?.bytes),
        Ready::Transpose(perm) => permute(&input(0)?, perm, y)?,
        Ready::ToLast => {
            let x = input(0)?;
            match image(&x.meta.dims)? {
                [n, 3, _, _] if x.meta.elem != Elem::F32 => kernel::interleave(x.bytes, n, y),
                _ => permute(&x, &[0, 2, 3, 1], y)?,
            }
        }
        Ready::ToPlain => permute(&input(0)?, &[0, 3, 1, 2], y)?,
    }
    Ok(None)
}

/// How many rows of the weights' length there are.
fn rows(x: &View<'_>, weights: &Weights) -> usize {
    let dims = &x.meta.dims;
    let _ = weights;
    dims[..dims.len() - 1].iter().product()
}

fn permute(x: &View<'_>, perm: &[usize], y: &mut [u8]) -> Result<(), Fault> {
    // Where only sizes of 1 change places, nothing moves.
    let dims = &x.meta.dims;
    let mut moving = perm.iter().filter(|&&d| dims[d] != 1);
    if moving.clone().zip(moving.by_ref().skip(1)).all(|(a, b)| a < b) {
        y.copy_from_slice(x.bytes);
        return Ok(());
    }
    match x.meta.elem {
        Elem::F32 => transpose(numbers(x)?, dims, perm, numbers_mut(y)?),
        _ => transpose(x.bytes, dims, perm, y),
    }
    Ok(())
}
