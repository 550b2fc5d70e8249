//! The steps of a program.

use midtread_graph::{DataType, Node, Tensor, ValueId};
use midtread_kernels::quantized::{
    self as kernel, Add, Bytes, DepthwiseWeights, Out, Requant, Weights,
};
use midtread_num::{
    QRange,
    bias::quantize_bias,
    requant::{multiplier, sum_factors},
};
use midtread_ops::{Args, EvalCtx, OpDef, OpError, Pool, window};

use crate::{
    cluster::{Bias, Cluster, Codes, Kind, Params, QuantizedWeights},
    layout::Held,
};

/// One thing that a program does.
pub(crate) struct Step {
    pub(crate) work: Work,
    /// The node with the attributes.
    pub(crate) node: usize,
    /// The types of the codes that it reads, which come first among its inputs.
    pub(crate) codes: Vec<DataType>,
    /// What it reads, in the order in which `run` gets it.
    pub(crate) inputs: Vec<Option<ValueId>>,
    pub(crate) outputs: Vec<Option<ValueId>>,
    /// For each input: whether nothing reads the value afterwards.
    pub(crate) is_last_use: Vec<bool>,
}

impl Step {
    /// Computes the outputs. Every input that is not left out is `Some`.
    pub(crate) fn run(
        &self,
        node: &Node,
        inputs: Vec<Option<Held>>,
        pool: &Pool,
    ) -> Result<Vec<Held>, OpError> {
        for (held, &dtype) in inputs.iter().zip(&self.codes) {
            if let Some(held) = held
                && held.dtype() != dtype
            {
                return Err(OpError::Invalid(format!(
                    "codes of type {dtype} by their zero point, and {} by their elements",
                    held.dtype()
                )));
            }
        }
        self.work.run(node, inputs, pool)
    }
}

/// How a step computes its outputs.
pub(crate) enum Work {
    /// As the interpreter does.
    Operator {
        def: &'static OpDef,
        opset: i64,
    },
    /// Moves codes without looking at them: the operator itself, on codes.
    Moves {
        def: &'static OpDef,
        opset: i64,
    },
    Conv {
        x_zero: i32,
        weights: ConvWeights,
        w_dims: Vec<usize>,
        out: DataType,
    },
    /// `out` is `None` for numbers.
    Product {
        weights: Weights,
        requant: Requant,
        is_signed: bool,
        out: Option<DataType>,
    },
    /// Of codes whose scale and zero point are inputs: numbers.
    DynamicProduct {
        weights: Weights,
        scales: Vec<f32>,
        sums: Vec<i32>,
        shift: Option<Vec<f32>>,
    },
    Add {
        add: Add,
        inputs: [Params; 2],
        output: Params,
    },
    GlobalAveragePool {
        x: Params,
        y: Params,
    },
    MaxPool {
        is_signed: bool,
    },
    Table {
        codes: Box<[u8; 256]>,
        out: DataType,
    },
}

/// Packed weights and what makes codes of the sums.
pub(crate) enum ConvWeights {
    /// One matrix for each group.
    Groups(Vec<Weights>, Vec<Requant>),
    Depthwise(DepthwiseWeights, Requant),
}

impl Work {
    /// `Conv in integers`, for people.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Operator { .. } => "operator",
            Self::Moves { .. } => "codes moved",
            Self::Conv { weights: ConvWeights::Depthwise(..), .. } => {
                "integer depthwise convolution"
            }
            Self::Conv { .. } => "integer convolution",
            Self::Product { .. } => "integer product",
            Self::DynamicProduct { .. } => "dynamic integer product",
            Self::Add { .. } => "integer sum",
            Self::GlobalAveragePool { .. } => "integer mean",
            Self::MaxPool { .. } => "integer maximum",
            Self::Table { .. } => "table of codes",
        }
    }

    /// The integer form of a cluster and what it reads, or `None` where it has none.
    pub(crate) fn of(
        cluster: &Cluster,
        node: &Node,
        opset: i64,
    ) -> Option<(Self, Vec<Option<ValueId>>)> {
        let read = |x: &Codes| vec![Some(x.id)];
        Some(match (&cluster.kind, cluster.params) {
            (Kind::Conv { x, weights, bias }, Some(y)) => {
                let w_dims = weights.codes.dims().to_vec();
                if w_dims.len() != 4 {
                    return None;
                }
                let groups =
                    usize::try_from(node.int("group").unwrap_or(1)).ok().filter(|&g| 0 < g)?;
                let channels = Channels::new(weights, w_dims[0], 0, x, bias)?;
                let weights = channels.conv(&w_dims, groups, x, y, cluster.clamp)?;
                let work =
                    Self::Conv { x_zero: x.params.zero_point, weights, w_dims, out: y.dtype() };
                (work, read(x))
            }
            (Kind::Product { x, weights, bias, is_transposed }, y) => {
                let &[rows, columns] = weights.codes.dims() else { return None };
                let (k, n) = if *is_transposed { (columns, rows) } else { (rows, columns) };
                let axis = i64::from(!is_transposed);
                let channels = Channels::new(weights, n, axis, x, bias)?;
                let at = |p: usize, j: usize| {
                    if *is_transposed { j * columns + p } else { p * columns + j }
                };
                let requant = channels.requant(0..n, k, at, x, y, cluster.clamp)?;
                let weights = Weights::new(k, n, |p, j| channels.weight(at(p, j), j));
                let out = y.map(|y| y.dtype());
                let is_signed = x.params.is_signed;
                (Self::Product { weights, requant, is_signed, out }, read(x))
            }
            (Kind::DynamicProduct { x, weights, shift }, _) => {
                let &[k, n] = weights.codes.dims() else { return None };
                let channels = Channels { weights, scales: Vec::new(), bias: Vec::new() };
                // The sum of so many products of codes is an `i32`.
                if !channels.has_params(n, 1) || !channels.fits_bytes() || (1 << 16) < k {
                    return None;
                }
                let weight = |p: usize, j: usize| channels.weight(p * n + j, j);
                let sum = |j| (0..k).map(|p| i32::from(weight(p, j))).sum();
                let shift = match shift {
                    Some(shift) => Some(shift.to_vec::<f32>().ok().filter(|s| s.len() == n)?),
                    None => None,
                };
                let work = Self::DynamicProduct {
                    scales: (0..n).map(|j| at(&weights.scales, j)).collect(),
                    sums: (0..n).map(sum).collect(),
                    weights: Weights::new(k, n, weight),
                    shift,
                };
                (work, x.map(Some).to_vec())
            }
            (Kind::Add { inputs: [a, b] }, Some(y)) => {
                let inputs = [a.params, b.params];
                let (factors, offset) = sum_factors(
                    inputs.map(|p| p.scale),
                    inputs.map(|p| p.zero_point),
                    y.scale,
                    y.zero_point,
                );
                let [lo, hi] = y.codes().map(|code| code as f32);
                let add = Add { factors, offset, lo, hi };
                (Self::Add { add, inputs, output: y }, vec![Some(a.id), Some(b.id)])
            }
            (Kind::GlobalAveragePool { x }, Some(y)) => {
                (Self::GlobalAveragePool { x: x.params, y }, read(x))
            }
            (Kind::MaxPool { x }, Some(_)) => {
                let is_plain = node.int("ceil_mode").unwrap_or(0) == 0
                    && node.ints("kernel_shape").is_some_and(|k| k.len() == 2);
                is_plain.then(|| (Self::MaxPool { is_signed: x.params.is_signed }, read(x)))?
            }
            (Kind::Moves { x }, Some(_)) => {
                let def = midtread_ops::find(&node.domain, &node.op_type)?;
                let mut inputs = node.inputs.clone();
                *inputs.first_mut()? = Some(x.id);
                (Self::Moves { def, opset }, inputs)
            }
            // Made by `Work::table`, which needs the values of the other inputs.
            _ => return None,
        })
    }

    /// A function of one number over all codes: dequantized, evaluated and quantized as the operators say.
    pub(crate) fn table(
        x: Params,
        y: Params,
        node: &Node,
        opset: i64,
        others: &[Option<Tensor>],
    ) -> Option<Self> {
        let pool = Pool::default();
        let evaluate = |def: &'static OpDef, node: &Node, args| {
            let outputs = evaluate(def, &EvalCtx { node, opset, pool: &pool }, Args(args)).ok()?;
            outputs.into_iter().next()
        };
        let codes: Vec<u8> = (0..=255).collect();
        let codes = Tensor::from_bytes(x.dtype(), vec![256], codes.into()).ok()?;
        let of = |p: Params| -> Option<[Option<Tensor>; 2]> {
            let zero =
                Tensor::from_bytes(p.dtype(), Vec::new(), vec![p.zero_point as u8].into()).ok()?;
            Some([Some(Tensor::scalar(p.scale)), Some(zero)])
        };
        let linear = |op_type: &str| {
            Some((midtread_ops::find("", op_type)?, Node::new(op_type, "", [], [])))
        };
        let (dequantize, dq_node) = linear("DequantizeLinear")?;
        let (quantize, q_node) = linear("QuantizeLinear")?;
        let x = evaluate(dequantize, &dq_node, [&[Some(codes)][..], &of(x)?].concat())?;
        let def = midtread_ops::find(&node.domain, &node.op_type)?;
        let numbers = evaluate(def, node, [&[Some(x)][..], others].concat())?;
        let table = evaluate(quantize, &q_node, [&[Some(numbers)][..], &of(y)?].concat())?;
        let codes: [u8; 256] = table.as_bytes().try_into().ok()?;
        Some(Self::Table { codes: Box::new(codes), out: y.dtype() })
    }

    fn run(
        &self,
        node: &Node,
        mut inputs: Vec<Option<Held>>,
        pool: &Pool,
    ) -> Result<Vec<Held>, OpError> {
        let mut take =
            |i: usize| inputs.get_mut(i).and_then(Option::take).ok_or(OpError::MissingInput(i));
        let output = match self {
            Self::Operator { def, opset } | Self::Moves { def, opset } => {
                let args =
                    inputs.into_iter().map(|held| held.map(|h| h.into_plain(pool)).transpose());
                let args = Args(args.collect::<Result<_, _>>()?);
                let outputs = evaluate(def, &EvalCtx { node, opset: *opset, pool }, args)?;
                return Ok(outputs.into_iter().map(Held::Plain).collect());
            }
            Self::Conv { x_zero, weights, w_dims, out } => {
                let x = take(0)?;
                let conv = window::conv_2d(node, &x.dims(), w_dims)?;
                let x = x.into_channels_last(pool)?;
                let [height, width] = conv.output();
                let mut y = pool.tensor(*out, vec![conv.n, height, width, conv.c_out])?;
                let bytes = bytes(&x);
                match weights {
                    ConvWeights::Groups(weights, requants) => {
                        let out = &mut Out::Codes(y.bytes_mut());
                        kernel::conv(&conv, bytes, *x_zero, weights, requants, out);
                    }
                    ConvWeights::Depthwise(weights, requant) => {
                        kernel::depthwise(&conv, bytes, *x_zero, weights, requant, y.bytes_mut());
                    }
                }
                Held::ChannelsLast(y)
            }
            Self::Product { weights, requant, is_signed, out } => {
                let x = take(0)?.into_plain(pool)?;
                let (m, dims) = product_dims(&x, weights)?;
                let mut y = pool.tensor(out.unwrap_or(DataType::Float), dims)?;
                let bytes = Bytes { data: x.as_bytes(), is_signed: *is_signed };
                if out.is_some() {
                    kernel::product(m, bytes, weights, requant, &mut Out::Codes(y.bytes_mut()));
                } else {
                    kernel::product(m, bytes, weights, requant, &mut Out::Numbers(y.to_mut()?));
                }
                Held::Plain(y)
            }
            Self::DynamicProduct { weights, scales, sums, shift } => {
                let x = take(0)?.into_plain(pool)?;
                let (scale, zero) = (take(1)?.into_plain(pool)?, take(2)?.into_plain(pool)?);
                let (Some(scale), Some(zero)) = (scale.item::<f32>(), zero.item::<u8>()) else {
                    let what = "a scale or a zero point that is not one number".to_owned();
                    return Err(OpError::Invalid(what));
                };
                let bias: Vec<i32> = sums.iter().map(|sum| -sum * i32::from(zero)).collect();
                let scales: Vec<f32> = scales.iter().map(|s| scale * s).collect();
                let requant = Requant::to_numbers(&bias, &scales, shift.as_deref());
                let (m, dims) = product_dims(&x, weights)?;
                let mut y = pool.tensor(DataType::Float, dims)?;
                kernel::product(m, bytes(&x), weights, &requant, &mut Out::Numbers(y.to_mut()?));
                Held::Plain(y)
            }
            Self::Add { add, inputs: params, output } => {
                let (a, b) = (take(0)?, take(1)?);
                if a.dims() != b.dims() {
                    let (a, b) = (a.into_plain(pool)?, b.into_plain(pool)?);
                    return Ok(vec![Held::Plain(broadcast_add([a, b], params, output, pool)?)]);
                }
                let is_last = [&a, &b].iter().any(|x| matches!(x, Held::ChannelsLast(_)));
                let [a, b] = if is_last {
                    [a.into_channels_last(pool)?, b.into_channels_last(pool)?]
                } else {
                    [a.into_plain(pool)?, b.into_plain(pool)?]
                };
                let mut y = pool.tensor(output.dtype(), a.dims().to_vec())?;
                let sum = kernel::Pairwise::Add(*add);
                kernel::pairwise(&sum, bytes(&a), bytes(&b), y.bytes_mut());
                if is_last { Held::ChannelsLast(y) } else { Held::Plain(y) }
            }
            Self::GlobalAveragePool { x: params, y: out } => {
                let x = take(0)?.into_channels_last(pool)?;
                let &[images, height, width, channels] = x.dims() else {
                    return Err(OpError::Invalid(format!("a mean over sizes {:?}", x.dims())));
                };
                let n = height * width;
                if n == 0 {
                    return Err(OpError::Invalid(format!("a mean over sizes {:?}", x.dims())));
                }
                // Sums of so many codes, less their zero points, are `i32`.
                if 1 << 22 < n {
                    return Err(OpError::Invalid(format!("a mean over {n} pixels")));
                }
                let factor = multiplier(params.scale, 1.0, out.scale * n as f32);
                let rule = kernel::Rule {
                    factor: kernel::Factor::Float(factor),
                    zero_point: out.zero_point,
                    range: if out.is_signed { QRange::I8 } else { QRange::U8 },
                };
                let mut y = pool.tensor(out.dtype(), vec![images, 1, 1, channels])?;
                kernel::global_average_pool(
                    [images, n, channels],
                    bytes(&x),
                    params.zero_point,
                    &rule,
                    y.bytes_mut(),
                );
                Held::ChannelsLast(y)
            }
            Self::MaxPool { is_signed } => {
                let x = take(0)?;
                let conv = window::pool_2d(node, &x.dims())?;
                let x = x.into_channels_last(pool)?;
                let [height, width] = conv.output();
                let mut y = pool.tensor(x.dtype(), vec![conv.n, height, width, conv.c_out])?;
                let bytes = Bytes { data: x.as_bytes(), is_signed: *is_signed };
                kernel::max_pool(&conv, [height, width], bytes, y.bytes_mut());
                Held::ChannelsLast(y)
            }
            Self::Table { codes, out } => {
                let x = take(0)?;
                let map = |x: &Tensor| -> Result<Tensor, OpError> {
                    let mut y = pool.tensor(*out, x.dims().to_vec())?;
                    for (y, &x) in y.bytes_mut().iter_mut().zip(x.as_bytes()) {
                        *y = codes[usize::from(x)];
                    }
                    Ok(y)
                };
                match x {
                    Held::Plain(x) => Held::Plain(map(&x)?),
                    Held::ChannelsLast(x) => Held::ChannelsLast(map(&x)?),
                }
            }
        };
        Ok(vec![output])
    }
}

/// Rows of `x` and the sizes of its product with a matrix.
fn product_dims(x: &Tensor, weights: &Weights) -> Result<(usize, Vec<usize>), OpError> {
    let mut dims = x.dims().to_vec();
    if dims.pop() != Some(weights.k()) || x.dtype().n_bytes(1) != Some(1) {
        return Err(OpError::Invalid(format!(
            "{}{:?} times a matrix of {} rows",
            x.dtype(),
            x.dims(),
            weights.k()
        )));
    }
    let m = dims.iter().product();
    dims.push(weights.n());
    Ok((m, dims))
}

/// An operator's outputs.
pub(crate) fn evaluate(def: &OpDef, ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    def.evaluate_tensors(ctx, args)
}

fn bytes(x: &Tensor) -> Bytes<'_> {
    Bytes { data: x.as_bytes(), is_signed: x.dtype() == DataType::Int8 }
}

/// A sum whose inputs are of different sizes.
fn broadcast_add(
    inputs: [Tensor; 2],
    params: &[Params; 2],
    output: &Params,
    pool: &Pool,
) -> Result<Tensor, OpError> {
    let def = midtread_ops::find("com.microsoft", "QLinearAdd").expect("it is in the table");
    let node = Node::new(def.op_type, "", [], []).with_domain(def.domain);
    let [a, b] = inputs;
    let with = |codes: Option<Tensor>, p: &Params| -> Result<Vec<Option<Tensor>>, OpError> {
        let zero = Tensor::from_bytes(p.dtype(), Vec::new(), vec![p.zero_point as u8].into())?;
        Ok(codes.map(Some).into_iter().chain([Some(Tensor::scalar(p.scale)), Some(zero)]).collect())
    };
    let args =
        [with(Some(a), &params[0])?, with(Some(b), &params[1])?, with(None, output)?].concat();
    let outputs = evaluate(def, &EvalCtx { node: &node, opset: 1, pool }, Args(args))?;
    outputs.into_iter().next().ok_or(OpError::MissingInput(0))
}

/// The output channels of some weights.
struct Channels<'a> {
    weights: &'a QuantizedWeights,
    scales: Vec<f32>,
    bias: Vec<i32>,
}

impl<'a> Channels<'a> {
    /// `None` where scales, zero points or the bias are not one for each of the `n` channels, or a weight less its
    /// zero point is no `i8`.
    fn new(
        weights: &'a QuantizedWeights,
        n: usize,
        axis: i64,
        x: &Codes,
        bias: &Bias,
    ) -> Option<Self> {
        let channels = Self { weights, scales: Vec::new(), bias: Vec::new() };
        if !channels.has_params(n, axis) || !channels.fits_bytes() {
            return None;
        }
        let scales: Vec<f32> = (0..n).map(|c| x.params.scale * at(&weights.scales, c)).collect();
        if !scales.iter().all(|s| s.is_finite() && 0.0 < *s) {
            return None;
        }
        let bias = match bias {
            Bias::None => vec![0; n],
            Bias::Codes(codes, None) => codes.to_vec().ok()?,
            Bias::Codes(codes, Some(of)) => {
                let is_same = |c: usize| (at(of, c) - scales[c]).abs() <= 1e-5 * scales[c];
                if !(of.len() == 1 || of.len() == n) || !(0..n).all(is_same) {
                    return None;
                }
                codes.to_vec().ok()?
            }
            Bias::Numbers(numbers) => {
                let numbers = numbers.to_vec::<f32>().ok()?;
                numbers.iter().zip(&scales).map(|(&b, &s)| quantize_bias(b, s)).collect()
            }
        };
        (bias.len() == n).then_some(Self { scales, bias, ..channels })
    }

    /// Whether scales and zero points are one, or one for each of `n` channels along `axis`.
    fn has_params(&self, n: usize, axis: i64) -> bool {
        [self.weights.scales.len(), self.weights.zero_points.len()]
            .into_iter()
            .all(|len| len == 1 || (len == n && self.weights.axis == axis))
    }

    /// Whether every weight less any zero point is an `i8`.
    fn fits_bytes(&self) -> bool {
        (0..self.weights.codes.len()).all(|i| {
            self.weights.zero_points.iter().all(|z| i8::try_from(self.code(i) - z).is_ok())
        })
    }

    fn code(&self, i: usize) -> i32 {
        let byte = self.weights.codes.as_bytes()[i];
        if self.weights.codes.dtype() == DataType::Int8 {
            i32::from(byte.cast_signed())
        } else {
            i32::from(byte)
        }
    }

    /// Element `i` of the weights, which belongs to `channel`, less its zero point.
    fn weight(&self, i: usize, channel: usize) -> i8 {
        let value = self.code(i) - at(&self.weights.zero_points, channel);
        i8::try_from(value).expect("checked when the channels were made")
    }

    /// What makes codes (or numbers) of the sums of some channels, each over `k` weights: weight `p` of channel `j`
    /// of these is element `index(p, j)`.
    fn requant(
        &self,
        channels: std::ops::Range<usize>,
        k: usize,
        index: impl Fn(usize, usize) -> usize,
        x: &Codes,
        y: Option<Params>,
        clamp: Option<(f32, f32)>,
    ) -> Option<Requant> {
        let first = channels.start;
        let folded: Option<Vec<i32>> = channels
            .clone()
            .map(|c| {
                let weights = (0..k).map(|p| i64::from(self.weight(index(p, c - first), c)));
                let zeros = weights.sum::<i64>() * i64::from(x.params.zero_point);
                i32::try_from(i64::from(self.bias[c]) - zeros).ok()
            })
            .collect();
        let Some(y) = y else {
            return Some(Requant::new(&folded?, &self.scales[channels], [0, 0], 0));
        };
        let scales: Vec<f32> = channels
            .map(|c| multiplier(x.params.scale, at(&self.weights.scales, c), y.scale))
            .collect();
        if !scales.iter().all(|s| s.is_finite()) {
            return None;
        }
        Some(Requant::new(&folded?, &scales, clamped_codes(y, clamp), y.zero_point))
    }

    fn conv(
        &self,
        w_dims: &[usize],
        groups: usize,
        x: &Codes,
        y: Params,
        clamp: Option<(f32, f32)>,
    ) -> Option<ConvWeights> {
        let (n, c_in, n_taps) = (w_dims[0], w_dims[1], w_dims[2] * w_dims[3]);
        if n % groups != 0 {
            return None;
        }
        let per_group = n / groups;
        if c_in == 1 && per_group == 1 && 1 < groups {
            let requant = self.requant(0..n, n_taps, |t, c| c * n_taps + t, x, Some(y), clamp)?;
            let weights = DepthwiseWeights::new(n_taps, n, |t, c| self.weight(c * n_taps + t, c));
            return Some(ConvWeights::Depthwise(weights, requant));
        }
        let mut all = (Vec::new(), Vec::new());
        for first in (0..n).step_by(per_group) {
            // Rows are (kernel row, kernel column, channel).
            let index = |p: usize, j: usize| ((first + j) * c_in + p % c_in) * n_taps + p / c_in;
            let k = n_taps * c_in;
            all.1.push(self.requant(first..first + per_group, k, index, x, Some(y), clamp)?);
            all.0.push(Weights::new(k, per_group, |p, j| self.weight(index(p, j), first + j)));
        }
        Some(ConvWeights::Groups(all.0, all.1))
    }
}

/// One value for all, or one for each.
fn at<T: Copy>(values: &[T], i: usize) -> T {
    values[if values.len() == 1 { 0 } else { i }]
}

/// The least and the greatest code of numbers that are clamped before they are quantized: quantizing is monotonic.
fn clamped_codes(y: Params, clamp: Option<(f32, f32)>) -> [i32; 2] {
    let [lo, hi] = y.codes();
    let Some((low, high)) = clamp else { return [lo, hi] };
    let range = midtread_num::QRange::new(lo, hi).expect("a type's codes are a range");
    let Ok(params) = midtread_num::QParams::new(y.scale, y.zero_point, range) else {
        return [lo, hi];
    };
    [params.quantize(low, range), params.quantize(high, range)]
}
