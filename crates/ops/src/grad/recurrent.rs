//! LSTM and GRU: backwards through time, the gates computed again on the way.
//!
//! With the default activation functions. Gates are in ONNX's order: `iofc` and `zrh`; peepholes are `iof`.

use midtread_graph::Tensor;

use crate::{
    attr,
    eval::OpError,
    grad::{GradCtx, GradDef, Reads},
    recurrent::directions,
    typed::indices,
};

pub(super) static LSTM: GradDef =
    GradDef { op_type: "LSTM", domain: "", reads: Reads::Inputs, grad: |ctx| layer(ctx, 4, lstm) };

pub(super) static GRU: GradDef =
    GradDef { op_type: "GRU", domain: "", reads: Reads::Inputs, grad: |ctx| layer(ctx, 3, gru) };

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `to += k * from`.
fn add_scaled(k: f32, from: &[f32], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += k * from);
}

/// The parameters of one direction.
struct Params<'a> {
    n_in: usize,
    hidden: usize,
    n_gates: usize,
    w: &'a [f32],
    r: &'a [f32],
    /// Of the inputs, then of the state.
    bias: &'a [f32],
    /// What gates get from the cell, each from its own element; empty if nothing.
    peepholes: &'a [f32],
    linear_before_reset: bool,
}

/// Their gradients.
struct Grads {
    w: Vec<f32>,
    r: Vec<f32>,
    bias: Vec<f32>,
    peepholes: Vec<f32>,
}

impl Params<'_> {
    /// What a gate's row gets from the inputs.
    fn of_input(&self, row: usize, x: &[f32]) -> f32 {
        dot(x, &self.w[row * self.n_in..][..self.n_in]) + self.bias[row]
    }

    /// What a gate's row gets from the state.
    fn of_state(&self, row: usize, h: &[f32]) -> f32 {
        let bias = self.bias[self.n_gates * self.hidden + row];
        dot(h, &self.r[row * self.hidden..][..self.hidden]) + bias
    }

    /// What a gate's row gets from the cell.
    fn of_cell(&self, row: usize, c: f32) -> f32 {
        self.peepholes.get(row).map_or(0.0, |p| p * c)
    }

    /// Sends the gradient `d` of a row's part from the cell on: the result is the cell's.
    fn back_cell(&self, row: usize, d: f32, c: f32, grads: &mut Grads) -> f32 {
        let Some(p) = self.peepholes.get(row) else { return 0.0 };
        grads.peepholes[row] += d * c;
        d * p
    }

    /// Sends the gradient `d` of a row's part from the inputs on.
    fn back_input(&self, row: usize, d: f32, x: &[f32], dx: &mut [f32], grads: &mut Grads) {
        add_scaled(d, x, &mut grads.w[row * self.n_in..][..self.n_in]);
        add_scaled(d, &self.w[row * self.n_in..][..self.n_in], dx);
        grads.bias[row] += d;
    }

    /// Sends the gradient `d` of a row's part from the state on.
    fn back_state(&self, row: usize, d: f32, h: &[f32], dh: &mut [f32], grads: &mut Grads) {
        add_scaled(d, h, &mut grads.r[row * self.hidden..][..self.hidden]);
        add_scaled(d, &self.r[row * self.hidden..][..self.hidden], dh);
        grads.bias[self.n_gates * self.hidden + row] += d;
    }
}

/// One sequence: the inputs of its steps in the order they were taken, first states, the gradients of the steps'
/// outputs; then those of the last states, which become those of the first.
struct Sequence<'a> {
    xs: Vec<&'a [f32]>,
    h0: Vec<f32>,
    c0: Vec<f32>,
    d_ys: Vec<Vec<f32>>,
    dh: Vec<f32>,
    dc: Vec<f32>,
}

/// Computes the gradients of one sequence; the result has those of the inputs, step by step.
type Cell = fn(&Params<'_>, &mut Sequence<'_>, &mut Grads) -> Vec<Vec<f32>>;

fn lstm(p: &Params<'_>, seq: &mut Sequence<'_>, grads: &mut Grads) -> Vec<Vec<f32>> {
    let n = p.hidden;
    let (mut h, mut c) = (seq.h0.clone(), seq.c0.clone());
    // For each step: state before it, cell before it, the four gates, the cell after it.
    let mut tape = Vec::with_capacity(seq.xs.len());
    for x in &seq.xs {
        let gate = |g: usize, j: usize| p.of_input(g * n + j, x) + p.of_state(g * n + j, &h);
        let gates: Vec<[f32; 4]> = (0..n)
            .map(|j| {
                let i = sigmoid(gate(0, j) + p.of_cell(j, c[j]));
                let f = sigmoid(gate(2, j) + p.of_cell(2 * n + j, c[j]));
                let g = gate(3, j).tanh();
                // The output's gate sees the cell after the step.
                let o = sigmoid(gate(1, j) + p.of_cell(n + j, f * c[j] + i * g));
                [i, o, f, g]
            })
            .collect();
        let next_c: Vec<f32> =
            (0..n).map(|j| gates[j][2] * c[j] + gates[j][0] * gates[j][3]).collect();
        let next_h: Vec<f32> = (0..n).map(|j| gates[j][1] * next_c[j].tanh()).collect();
        tape.push((
            std::mem::replace(&mut h, next_h),
            std::mem::replace(&mut c, next_c.clone()),
            gates,
            next_c,
        ));
    }
    let mut d_xs = vec![vec![0.0; p.n_in]; seq.xs.len()];
    for (t, (h, c, gates, next_c)) in tape.iter().enumerate().rev() {
        let mut dh_before = vec![0.0; n];
        for j in 0..n {
            let dh = seq.dh[j] + seq.d_ys[t][j];
            let [i, o, f, g] = gates[j];
            let squashed = next_c[j].tanh();
            let d_o = dh * squashed * o * (1.0 - o);
            let dc = seq.dc[j]
                + dh * o * (1.0 - squashed * squashed)
                + p.back_cell(n + j, d_o, next_c[j], grads);
            let d =
                [dc * g * i * (1.0 - i), d_o, dc * c[j] * f * (1.0 - f), dc * i * (1.0 - g * g)];
            for (gate, &d) in d.iter().enumerate() {
                p.back_input(gate * n + j, d, seq.xs[t], &mut d_xs[t], grads);
                p.back_state(gate * n + j, d, h, &mut dh_before, grads);
            }
            seq.dc[j] = dc * f
                + p.back_cell(j, d[0], c[j], grads)
                + p.back_cell(2 * n + j, d[2], c[j], grads);
        }
        seq.dh = dh_before;
    }
    d_xs
}

fn gru(p: &Params<'_>, seq: &mut Sequence<'_>, grads: &mut Grads) -> Vec<Vec<f32>> {
    let n = p.hidden;
    let mut h = seq.h0.clone();
    // For each step: state before it; update and reset gates; the new state's part from the state; the new state.
    let mut tape = Vec::with_capacity(seq.xs.len());
    for x in &seq.xs {
        let gate = |g: usize, j: usize| p.of_input(g * n + j, x) + p.of_state(g * n + j, &h);
        let z: Vec<f32> = (0..n).map(|j| sigmoid(gate(0, j))).collect();
        let r: Vec<f32> = (0..n).map(|j| sigmoid(gate(1, j))).collect();
        let reset: Vec<f32> = r.iter().zip(&h).map(|(r, h)| r * h).collect();
        let from_state: Vec<f32> = (0..n)
            .map(|j| p.of_state(2 * n + j, if p.linear_before_reset { &h } else { &reset }))
            .collect();
        let new: Vec<f32> = (0..n)
            .map(|j| {
                let state =
                    if p.linear_before_reset { r[j] * from_state[j] } else { from_state[j] };
                (p.of_input(2 * n + j, x) + state).tanh()
            })
            .collect();
        let next: Vec<f32> = (0..n).map(|j| (1.0 - z[j]) * new[j] + z[j] * h[j]).collect();
        tape.push((std::mem::replace(&mut h, next), z, r, reset, from_state, new));
    }
    let mut d_xs = vec![vec![0.0; p.n_in]; seq.xs.len()];
    for (t, (h, z, r, reset, from_state, new)) in tape.iter().enumerate().rev() {
        let (mut dh_before, mut d_reset, mut dr) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        for j in 0..n {
            let dh = seq.dh[j] + seq.d_ys[t][j];
            dh_before[j] += dh * z[j];
            let dz = dh * (h[j] - new[j]) * z[j] * (1.0 - z[j]);
            let d_new = dh * (1.0 - z[j]) * (1.0 - new[j] * new[j]);
            p.back_input(2 * n + j, d_new, seq.xs[t], &mut d_xs[t], grads);
            if p.linear_before_reset {
                dr[j] += d_new * from_state[j];
                p.back_state(2 * n + j, d_new * r[j], h, &mut dh_before, grads);
            } else {
                p.back_state(2 * n + j, d_new, reset, &mut d_reset, grads);
            }
            p.back_input(j, dz, seq.xs[t], &mut d_xs[t], grads);
            p.back_state(j, dz, h, &mut dh_before, grads);
        }
        for j in 0..n {
            dr[j] += d_reset[j] * h[j];
            dh_before[j] += d_reset[j] * r[j];
            let d = dr[j] * r[j] * (1.0 - r[j]);
            p.back_input(n + j, d, seq.xs[t], &mut d_xs[t], grads);
            p.back_state(n + j, d, h, &mut dh_before, grads);
        }
        seq.dh = dh_before;
    }
    d_xs
}

fn layer(ctx: &GradCtx<'_>, n_gates: usize, cell: Cell) -> Result<Vec<Option<Tensor>>, OpError> {
    let node = ctx.node;
    let refuse = |what: &str| Err(OpError::Unsupported(format!("a gradient with {what}")));
    if node.attr("activations").is_some() {
        return refuse("`activations`");
    }
    if node.attr("clip").is_some() || attr::flag(node, "input_forget", false)? {
        return refuse("`clip` or `input_forget`");
    }
    if attr::flag(node, "layout", false)? {
        return refuse("`layout` 1");
    }
    let directions = directions(node)?;
    let (x, w, r) = (ctx.x(0)?, ctx.x(1)?, ctx.x(2)?);
    let (&[time, batch, n_in], &[_, _, hidden]) = (ctx.dims(0)?, ctx.dims(2)?) else {
        return Err(OpError::Invalid("inputs are not of three dimensions".into()));
    };
    let n_directions = directions.len();
    let rows = n_gates * hidden;
    let bias = ctx.opt_x(3)?.unwrap_or_else(|| vec![0.0; n_directions * 2 * rows].into());
    let lens = match ctx.inputs.get(4).and_then(Option::as_ref) {
        Some(lens) => indices(lens)?.iter().map(|&n| n.clamp(0, time as i64) as usize).collect(),
        None => vec![time; batch],
    };
    let state = |i: usize| -> Result<Vec<f32>, OpError> {
        Ok(ctx.opt_x(i)?.map_or_else(|| vec![0.0; n_directions * batch * hidden], |s| s.to_vec()))
    };
    let (h0, c0) = (state(5)?, state(6)?);
    let peepholes = ctx.opt_x(7)?.unwrap_or_default();
    let n_peepholes = peepholes.len() / n_directions;
    let grad = |i: usize, n: usize| -> Result<Vec<f32>, OpError> {
        match ctx.grads.get(i).and_then(Option::as_ref) {
            Some(grad) => Ok(grad.to_vec::<f32>()?),
            None => Ok(vec![0.0; n]),
        }
    };
    let d_y = grad(0, time * n_directions * batch * hidden)?;
    let (d_last_h, d_last_c) =
        (grad(1, n_directions * batch * hidden)?, grad(2, n_directions * batch * hidden)?);
    let mut results =
        [x.len(), w.len(), r.len(), bias.len(), 0, h0.len(), c0.len(), peepholes.len()]
            .map(|n| vec![0.0_f32; n]);
    for (d, &backwards) in directions.iter().enumerate() {
        let part = |n: usize| d * n..(d + 1) * n;
        let params = Params {
            n_in,
            hidden,
            n_gates,
            w: &w[part(rows * n_in)],
            r: &r[part(rows * hidden)],
            bias: &bias[part(2 * rows)],
            peepholes: &peepholes[part(n_peepholes)],
            linear_before_reset: attr::flag(node, "linear_before_reset", false)?,
        };
        let mut grads = Grads {
            w: vec![0.0; rows * n_in],
            r: vec![0.0; rows * hidden],
            bias: vec![0.0; 2 * rows],
            peepholes: vec![0.0; n_peepholes],
        };
        for (b, &len) in lens.iter().enumerate() {
            let steps: Vec<usize> =
                (0..len).map(|t| if backwards { len - 1 - t } else { t }).collect();
            let own = (d * batch + b) * hidden..(d * batch + b + 1) * hidden;
            let mut seq = Sequence {
                xs: steps.iter().map(|t| &x[(t * batch + b) * n_in..][..n_in]).collect(),
                h0: h0[own.clone()].to_vec(),
                c0: c0[own.clone()].to_vec(),
                d_ys: steps
                    .iter()
                    .map(|t| {
                        d_y[((t * n_directions + d) * batch + b) * hidden..][..hidden].to_vec()
                    })
                    .collect(),
                dh: d_last_h[own.clone()].to_vec(),
                dc: d_last_c[own.clone()].to_vec(),
            };
            let d_xs = cell(&params, &mut seq, &mut grads);
            for (t, d_x) in steps.iter().zip(&d_xs) {
                add_scaled(1.0, d_x, &mut results[0][(t * batch + b) * n_in..][..n_in]);
            }
            results[5][own.clone()].copy_from_slice(&seq.dh);
            results[6][own].copy_from_slice(&seq.dc);
        }
        results[1][part(rows * n_in)].copy_from_slice(&grads.w);
        results[2][part(rows * hidden)].copy_from_slice(&grads.r);
        results[3][part(2 * rows)].copy_from_slice(&grads.bias);
        results[7][part(n_peepholes)].copy_from_slice(&grads.peepholes);
    }
    ctx.each(|i| match results.get(i) {
        Some(result) if i != 4 => Ok(Some(Tensor::from_slice(ctx.dims(i)?.to_vec(), result)?)),
        _ => Ok(None),
    })
}
