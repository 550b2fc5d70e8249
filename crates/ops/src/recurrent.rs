//! Recurrent layers: RNN, GRU and LSTM.

use midtread_graph::{AttrValue, DataType, Node, Tensor};
use midtread_num::QRange;

use crate::{
    attr,
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    infer::InferCtx,
    shape::product,
    sym::SymDim,
    typed::{elements, in_f32, indices},
};

const ROLE: Role = Role::Float("its state is kept in float32 from step to step");

macro_rules! recurrent {
    ($(#[$doc:meta])* $name:ident: $op:literal, $kind:ident, [$($attr:literal),*]) => {
        $(#[$doc])*
        pub(crate) static $name: OpDef = OpDef {
            op_type: $op,
            domain: "",
            versions: &[7, 14, 22],
            attrs: &["activation_alpha", "activation_beta", "activations", "clip", "direction",
                "hidden_size", $($attr),*],
            infer: infer_recurrent,
            eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, |ctx, args| run(ctx, &args, Kind::$kind, false))),
            role: ROLE,
        };
    };
}

recurrent! {
    /// ONNX RNN 7, 14 (`layout`) and 22.
    RNN: "RNN", Rnn, ["layout"]
}
recurrent! {
    /// ONNX GRU 7, 14 (`layout`) and 22.
    GRU: "GRU", Gru, ["layout", "linear_before_reset"]
}
recurrent! {
    /// ONNX LSTM 7, 14 (`layout`) and 22.
    LSTM: "LSTM", Lstm, ["input_forget", "layout"]
}

/// `com.microsoft` DynamicQuantizeLSTM: LSTM with weights in codes, which lie transposed. The inputs are quantized all
/// together, the state before each step, each sequence's on its own.
pub(crate) static DYNAMIC_QUANTIZE_LSTM: OpDef = OpDef {
    op_type: "DynamicQuantizeLSTM",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &[
        "activation_alpha",
        "activation_beta",
        "activations",
        "clip",
        "direction",
        "hidden_size",
        "input_forget",
    ],
    infer: |ctx| {
        let hidden = match (attr::opt_int(ctx.node, "hidden_size")?, ctx.dims(2)) {
            (Some(hidden), _) => SymDim::known(hidden),
            (None, Some([_, hidden, _])) => hidden.clone(),
            _ => SymDim::Unknown,
        };
        infer_layers(ctx, hidden)
    },
    eval: Eval::Tensors(dynamic_quantize_lstm),
    role: Role::Float("it is quantized already"),
};

/// Weights `(directions, n, rows)` of codes as real ones `(directions, rows, n)`.
fn turned_weights(
    ctx: &EvalCtx<'_>,
    args: &Args,
    [codes, scale]: [usize; 2],
) -> Result<Tensor, OpError> {
    let (codes, scale, zero) = (args.required(codes)?, args.required(scale)?, args.get(scale + 1));
    let &[directions, n, rows] = codes.dims() else {
        return Err(OpError::Invalid(format!("weights of sizes {:?}", codes.dims())));
    };
    let range = crate::quantize::code_range(codes.dtype())
        .ok_or_else(|| crate::typed::unsupported_type(codes.dtype()))?;
    let params = crate::quantize::params(ctx, scale, zero, range)?;
    if params.len() != directions && params.len() != directions * rows {
        return Err(OpError::Invalid(format!("{} scales of weights", params.len())));
    }
    let values = crate::quantize::codes(codes)?;
    ctx.pool.fill::<f32>(vec![directions, rows, n], |w| {
        for (i, w) in w.iter_mut().enumerate() {
            let (d, row, k) = (i / (rows * n), i / n % rows, i % n);
            let own = if params.len() == directions { d } else { d * rows + row };
            *w = params[own].dequantize(values[(d * n + k) * rows + row]);
        }
        Ok(())
    })
}

/// What values are after they were quantized to `u8` with the parameters of DynamicQuantizeLinear.
fn through_codes(values: &mut [f32]) -> Result<(), OpError> {
    let params = crate::quantize::dynamic_params(values)?;
    values.iter_mut().for_each(|x| *x = params.fake_quantize(*x, QRange::U8));
    Ok(())
}

fn dynamic_quantize_lstm(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let mut x = args.required(0)?.clone();
    through_codes(crate::norm::own(ctx, &mut x)?)?;
    let (w, r) = (turned_weights(ctx, &args, [1, 8])?, turned_weights(ctx, &args, [2, 10])?);
    let mut plain = vec![Some(x), Some(w), Some(r)];
    plain.extend((3..8).map(|i| args.get(i).cloned()));
    run(ctx, &Args(plain), Kind::Lstm, true)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rnn,
    Gru,
    Lstm,
}

impl Kind {
    fn n_gates(self) -> usize {
        match self {
            Self::Rnn => 1,
            Self::Gru => 3,
            Self::Lstm => 4,
        }
    }

    fn default_activations(self) -> &'static [&'static str] {
        match self {
            Self::Rnn => &["Tanh"],
            Self::Gru => &["Sigmoid", "Tanh"],
            Self::Lstm => &["Sigmoid", "Tanh", "Tanh"],
        }
    }
}

/// For each direction, whether it runs backwards.
pub(crate) fn directions(node: &Node) -> Result<&'static [bool], OpError> {
    match attr::string(node, "direction", "forward")? {
        "forward" => Ok(&[false]),
        "reverse" => Ok(&[true]),
        "bidirectional" => Ok(&[false, true]),
        other => Err(OpError::Invalid(format!("`direction` is {other:?}"))),
    }
}

fn infer_recurrent(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let hidden = match (attr::opt_int(ctx.node, "hidden_size")?, ctx.dims(2)) {
        (Some(hidden), _) => SymDim::known(hidden),
        (None, Some([_, _, hidden])) => hidden.clone(),
        _ => SymDim::Unknown,
    };
    infer_layers(ctx, hidden)
}

fn infer_layers(ctx: &mut InferCtx<'_>, hidden: SymDim) -> Result<(), OpError> {
    let n_directions = SymDim::known(directions(ctx.node)?.len() as i64);
    let batch_first = attr::flag(ctx.node, "layout", false)?;
    let (time, batch) = match ctx.dims(0) {
        Some([batch, time, _]) if batch_first => (time.clone(), batch.clone()),
        Some([time, batch, _]) => (time.clone(), batch.clone()),
        _ => (SymDim::Unknown, SymDim::Unknown),
    };
    let (y, state) = if batch_first {
        let state = vec![batch.clone(), n_directions.clone(), hidden.clone()];
        (vec![batch, time, n_directions, hidden], state)
    } else {
        let state = vec![n_directions.clone(), batch.clone(), hidden.clone()];
        (vec![time, n_directions, batch, hidden], state)
    };
    ctx.set(0, ctx.elem(0), Some(y));
    ctx.set(1, ctx.elem(0), Some(state.clone()));
    ctx.set(2, ctx.elem(0), Some(state));
    Ok(())
}

/// An activation function with its parameters.
#[derive(Clone, Copy)]
struct Activation {
    f: fn(f32, f32, f32) -> f32,
    alpha: f32,
    beta: f32,
}

impl Activation {
    fn of(self, x: f32) -> f32 {
        (self.f)(x, self.alpha, self.beta)
    }

    /// The functions of one node, for each direction in turn. A parameter list has an entry for each function that
    /// has the parameter, in order.
    fn all(node: &Node, kind: Kind, n_directions: usize) -> Result<Vec<Self>, OpError> {
        let floats = |name: &'static str| match node.attr(name) {
            None => Ok(Vec::new()),
            Some(AttrValue::Floats(floats)) => Ok(floats.clone()),
            Some(_) => Err(OpError::Invalid(format!("attribute `{name}` is not a list of floats"))),
        };
        let (alphas, betas) = (floats("activation_alpha")?, floats("activation_beta")?);
        let (mut alphas, mut betas) = (alphas.into_iter(), betas.into_iter());
        let names: Vec<String> = match node.attr("activations") {
            Some(AttrValue::Strings(names)) => {
                names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
            }
            _ => kind
                .default_activations()
                .repeat(n_directions)
                .iter()
                .map(|s| s.to_string())
                .collect(),
        };
        if names.len() != kind.default_activations().len() * n_directions {
            return Err(OpError::Invalid(format!("{} activation functions", names.len())));
        }
        let one = |name: &String| {
            type F = fn(f32, f32, f32) -> f32;
            let (f, alpha, beta): (F, Option<f32>, Option<f32>) = match name.to_lowercase().as_str()
            {
                "relu" => (|x, _, _| x.max(0.0), None, None),
                "tanh" => (|x, _, _| x.tanh(), None, None),
                "sigmoid" => (|x, _, _| 1.0 / (1.0 + (-x).exp()), None, None),
                "affine" => (|x, a, b| a * x + b, Some(1.0), Some(0.0)),
                "leakyrelu" => (|x, a, _| if x < 0.0 { a * x } else { x }, Some(0.01), None),
                "thresholdedrelu" => (|x, a, _| if a < x { x } else { 0.0 }, Some(1.0), None),
                "scaledtanh" => (|x, a, b| a * (b * x).tanh(), Some(1.0), Some(1.0)),
                "hardsigmoid" => (|x, a, b| (a * x + b).clamp(0.0, 1.0), Some(0.2), Some(0.5)),
                "elu" => (|x, a, _| if x < 0.0 { a * x.exp_m1() } else { x }, Some(1.0), None),
                "softsign" => (|x, _, _| x / (1.0 + x.abs()), None, None),
                "softplus" => (|x, _, _| x.max(0.0) + (-x.abs()).exp().ln_1p(), None, None),
                _ => return Err(OpError::Unsupported(format!("activation `{name}`"))),
            };
            let next = |default: Option<f32>, given: &mut std::vec::IntoIter<f32>| {
                default.map_or(0.0, |default| given.next().unwrap_or(default))
            };
            let (alpha, beta) = (next(alpha, &mut alphas), next(beta, &mut betas));
            Ok(Self { f, alpha, beta })
        };
        names.iter().map(one).collect()
    }
}

/// Sum of products, in eight partial sums.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, rest_a) = a.as_chunks::<8>();
    let (b, rest_b) = b.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Input `i`, which has these sizes if it is there.
fn sized<'a>(
    args: &'a Args,
    i: usize,
    dims: &[usize],
) -> Result<Option<std::borrow::Cow<'a, [f32]>>, OpError> {
    match args.get(i) {
        None => Ok(None),
        Some(t) if t.dims() == dims => Ok(Some(elements::<f32>(t)?)),
        Some(t) => {
            Err(OpError::Invalid(format!("input {i} has the sizes {:?}, not {dims:?}", t.dims())))
        }
    }
}

/// What one direction of a layer has: weights, recurrent weights, biases of both, peepholes.
struct Layer<'a> {
    kind: Kind,
    n_in: usize,
    hidden: usize,
    w: &'a [f32],
    r: &'a [f32],
    /// Of the inputs, and then of the state.
    bias: &'a [f32],
    /// For the input, output and forget gate.
    peephole: Option<&'a [f32]>,
    activations: &'a [Activation],
    clip: f32,
    linear_before_reset: bool,
    input_forget: bool,
}

impl Layer<'_> {
    /// What gate `g` gets from the inputs for the hidden element `j`.
    fn of_input(&self, g: usize, j: usize, x: &[f32]) -> f32 {
        let row = g * self.hidden + j;
        dot(x, &self.w[row * self.n_in..][..self.n_in]) + self.bias[row]
    }

    /// What gate `g` gets from the state.
    fn of_state(&self, g: usize, j: usize, h: &[f32]) -> f32 {
        let row = g * self.hidden + j;
        let bias = self.bias[self.kind.n_gates() * self.hidden + row];
        dot(h, &self.r[row * self.hidden..][..self.hidden]) + bias
    }

    fn clipped(&self, x: f32) -> f32 {
        x.max(-self.clip).min(self.clip)
    }

    /// One step of one sequence: `h` and `c` become the next ones. `next` and `scratch` are as long as they.
    fn step(&self, x: &[f32], h: &mut [f32], c: &mut [f32], next: &mut [f32], scratch: &mut [f32]) {
        let gate = |g: usize, j: usize, h: &[f32]| self.of_input(g, j, x) + self.of_state(g, j, h);
        let act = |i: usize, x: f32| self.activations[i].of(self.clipped(x));
        match self.kind {
            Kind::Rnn => {
                for (j, next) in next.iter_mut().enumerate() {
                    *next = act(0, gate(0, j, h));
                }
            }
            Kind::Gru => {
                // `scratch` is the reset state.
                for (j, reset) in scratch.iter_mut().enumerate() {
                    *reset = act(0, gate(1, j, h));
                }
                if !self.linear_before_reset {
                    scratch.iter_mut().zip(&*h).for_each(|(reset, h)| *reset *= h);
                }
                for (j, next) in next.iter_mut().enumerate() {
                    let update = act(0, gate(0, j, h));
                    let of_state = if self.linear_before_reset {
                        scratch[j] * self.of_state(2, j, h)
                    } else {
                        self.of_state(2, j, scratch)
                    };
                    let new = act(1, self.of_input(2, j, x) + of_state);
                    *next = (1.0 - update) * new + update * h[j];
                }
            }
            Kind::Lstm => {
                let peep = |g: usize, j: usize, c: f32| {
                    self.peephole.map_or(0.0, |p| p[g * self.hidden + j] * c)
                };
                for (j, next) in next.iter_mut().enumerate() {
                    let input = act(0, gate(0, j, h) + peep(0, j, c[j]));
                    let forget = if self.input_forget {
                        1.0 - input
                    } else {
                        act(0, gate(2, j, h) + peep(2, j, c[j]))
                    };
                    c[j] = forget * c[j] + input * act(1, gate(3, j, h));
                    let output = act(0, gate(1, j, h) + peep(1, j, c[j]));
                    *next = output * self.activations[2].of(c[j]);
                }
            }
        }
        h.copy_from_slice(next);
    }
}

fn run(
    ctx: &EvalCtx<'_>,
    args: &Args,
    kind: Kind,
    quantizes_state: bool,
) -> Result<Vec<Tensor>, OpError> {
    let node = ctx.node;
    let (x, w, r) = (args.required(0)?, args.required(1)?, args.required(2)?);
    let batch_first = attr::flag(node, "layout", false)?;
    let directions = directions(node)?;
    let (n_directions, n_gates) = (directions.len(), kind.n_gates());
    let (&[a, b, n_in], &[_, _, hidden]) = (x.dims(), r.dims()) else {
        return Err(OpError::Invalid(format!("inputs of {:?} and {:?}", x.dims(), r.dims())));
    };
    let (time, batch) = if batch_first { (b, a) } else { (a, b) };
    let rows = n_gates * hidden;
    sized(args, 1, &[n_directions, rows, n_in])?;
    sized(args, 2, &[n_directions, rows, hidden])?;
    let bias = sized(args, 3, &[n_directions, 2 * rows])?
        .unwrap_or_else(|| vec![0.0; n_directions * 2 * rows].into());
    let lens = match args.get(4).map(indices).transpose()? {
        Some(lens) if lens.len() == batch => {
            lens.iter().map(|&n| n.clamp(0, time as i64) as usize).collect()
        }
        Some(lens) => return Err(OpError::Invalid(format!("{} lengths for {batch}", lens.len()))),
        None => vec![time; batch],
    };
    let state_dims =
        if batch_first { [batch, n_directions, hidden] } else { [n_directions, batch, hidden] };
    let (h0, c0) = (
        sized(args, 5, &state_dims)?,
        match kind {
            Kind::Lstm => sized(args, 6, &state_dims)?,
            _ => None,
        },
    );
    let peephole = match kind {
        Kind::Lstm => sized(args, 7, &[n_directions, 3 * hidden])?,
        _ => None,
    };
    let activations = Activation::all(node, kind, n_directions)?;
    let (xs, ws, rs) = (elements::<f32>(x)?, elements::<f32>(w)?, elements::<f32>(r)?);
    let y_dims = if batch_first {
        vec![batch, time, n_directions, hidden]
    } else {
        vec![time, n_directions, batch, hidden]
    };
    let n_state = product(&state_dims);
    // What lies behind a sequence's end stays zero.
    let mut y_tensor = ctx.pool.tensor(DataType::Float, y_dims)?;
    let y = y_tensor.to_mut::<f32>()?;
    y.fill(0.0);
    let (mut last_h, mut last_c) = (vec![0.0_f32; n_state], vec![0.0_f32; n_state]);
    let (mut next, mut scratch) = (vec![0.0; hidden], vec![0.0; hidden]);
    let part = |d: usize, n: usize| d * n..(d + 1) * n;
    for (d, &backwards) in directions.iter().enumerate() {
        let n_act = activations.len() / n_directions;
        let layer = Layer {
            kind,
            n_in,
            hidden,
            w: &ws[part(d, rows * n_in)],
            r: &rs[part(d, rows * hidden)],
            bias: &bias[part(d, 2 * rows)],
            peephole: peephole.as_ref().map(|p| &p[part(d, 3 * hidden)]),
            activations: &activations[d * n_act..][..n_act],
            clip: attr::float(node, "clip", f32::INFINITY)?,
            linear_before_reset: attr::flag(node, "linear_before_reset", false)?,
            input_forget: attr::flag(node, "input_forget", false)?,
        };
        for (b, &len) in lens.iter().enumerate() {
            let state = if batch_first { b * n_directions + d } else { d * batch + b } * hidden;
            let state = state..state + hidden;
            let initial = |given: &Option<std::borrow::Cow<'_, [f32]>>| {
                given
                    .as_ref()
                    .map_or_else(|| vec![0.0; hidden], |given| given[state.clone()].to_vec())
            };
            let (mut h, mut c) = (initial(&h0), initial(&c0));
            for t in 0..len {
                let t = if backwards { len - 1 - t } else { t };
                let (from, to) = if batch_first {
                    (b * time + t, (b * time + t) * n_directions + d)
                } else {
                    (t * batch + b, (t * n_directions + d) * batch + b)
                };
                if quantizes_state {
                    through_codes(&mut h)?;
                }
                layer.step(&xs[from * n_in..][..n_in], &mut h, &mut c, &mut next, &mut scratch);
                y[to * hidden..][..hidden].copy_from_slice(&h);
            }
            last_h[state.clone()].copy_from_slice(&h);
            last_c[state].copy_from_slice(&c);
        }
    }
    let state = |x: &[f32]| Tensor::from_slice(state_dims.to_vec(), x);
    let mut outputs = vec![y_tensor, state(&last_h)?];
    if kind == Kind::Lstm {
        outputs.push(state(&last_c)?);
    }
    Ok(outputs)
}
