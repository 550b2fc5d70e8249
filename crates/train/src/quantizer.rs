//! Fake quantization while training: of a weight with a scale for each channel, and of an activation.

use midtread_graph::Tensor;
use midtread_kernels::{
    grad::fake_quantize::fake_quantize_grad, min_max::min_max, quantize::fake_quantize,
};
use midtread_num::{QParams, QRange};
use midtread_ops::{OpError, Pool};
use midtread_quant::plan::{Params, TensorPlan};

use crate::options::Scales;

/// No scale becomes smaller: what divides by it stays finite.
const MIN_SCALE: f32 = 1e-12;

/// The quantizer of a constant.
#[derive(Debug)]
pub(crate) struct WeightQuantizer {
    /// Key in [`midtread_quant::Plan::tensors`].
    pub(crate) key: String,
    pub(crate) range: QRange,
    pub(crate) scales: Vec<f32>,
    pub(crate) zero_points: Vec<i32>,
    /// Gradients of the scales.
    pub(crate) grads: Vec<f32>,
    /// Sizes before, along and behind the axis of the channels.
    outer: usize,
    inner: usize,
}

impl WeightQuantizer {
    /// With the plan's parameters; `None` for blocks, which are not trained.
    pub(crate) fn new(key: &str, plan: &TensorPlan, dims: &[usize]) -> Option<Self> {
        let (outer, inner) = match plan.params {
            Params::PerTensor(_) => (1, dims.iter().product()),
            Params::PerAxis { axis, .. } => {
                (dims[..axis].iter().product(), dims[axis + 1..].iter().product())
            }
            Params::Blocked { .. } => return None,
        };
        let params = plan.params.as_slice();
        Some(Self {
            key: key.to_owned(),
            range: plan.range,
            scales: params.iter().map(|p| p.scale()).collect(),
            zero_points: params.iter().map(|p| p.zero_point()).collect(),
            grads: vec![0.0; params.len()],
            outer,
            inner,
        })
    }

    pub(crate) fn params(&self, channel: usize) -> QParams {
        let scale = self.scales[channel].max(MIN_SCALE);
        QParams::new(scale, self.zero_points[channel], self.range)
            .expect("scales are kept finite and positive, zero points are the plan's")
    }

    /// The plan's form of the parameters.
    pub(crate) fn to_params(&self, like: &Params) -> Params {
        let all: Vec<QParams> = (0..self.scales.len()).map(|c| self.params(c)).collect();
        Params::from_parts(like.granularity(), all).expect("as many as there were")
    }

    /// Calls `f` with each channel's elements of `a` and `b`, the latter to be written.
    fn channels(&self, a: &[f32], b: &mut [f32], mut f: impl FnMut(usize, &[f32], &mut [f32])) {
        let (n, inner) = (self.scales.len(), self.inner);
        if self.outer == 1 && 0 < inner {
            for (c, (a, b)) in a.chunks_exact(inner).zip(b.chunks_exact_mut(inner)).enumerate() {
                f(c, a, b);
            }
            return;
        }
        let (mut from, mut to) = (vec![0.0; self.outer * inner], vec![0.0; self.outer * inner]);
        for c in 0..n {
            for o in 0..self.outer {
                let at = (o * n + c) * inner;
                from[o * inner..][..inner].copy_from_slice(&a[at..][..inner]);
                to[o * inner..][..inner].copy_from_slice(&b[at..][..inner]);
            }
            f(c, &from, &mut to);
            for o in 0..self.outer {
                let at = (o * n + c) * inner;
                b[at..][..inner].copy_from_slice(&to[o * inner..][..inner]);
            }
        }
    }

    /// What the weights become.
    pub(crate) fn apply(&self, raw: &[f32], out: &mut [f32]) {
        self.channels(raw, out, |c, raw, out| fake_quantize(raw, out, self.params(c), self.range));
    }

    /// The gradient of what they became becomes that of the weights; the scales' are added up.
    pub(crate) fn back(&mut self, raw: &[f32], grad: &mut [f32]) {
        let mut scale_grads = vec![0.0; self.scales.len()];
        let mut dx = Vec::new();
        self.channels(raw, grad, |c, raw, grad| {
            dx.resize(raw.len(), 0.0);
            scale_grads[c] =
                fake_quantize_grad(raw, grad, self.params(c), self.range, &mut dx).scale as f32;
            grad.copy_from_slice(&dx);
        });
        self.grads.iter_mut().zip(scale_grads).for_each(|(sum, grad)| *sum += grad);
    }

    /// The scale of each channel that covers its largest magnitude.
    pub(crate) fn observe(&mut self, raw: &[f32]) {
        let mut scales = self.scales.clone();
        let steps = self.range.n_steps() as f32;
        let mut unused = raw.to_vec();
        self.channels(raw, &mut unused, |c, raw, _| {
            let max_abs = raw.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
            if 0.0 < max_abs {
                scales[c] = 2.0 * max_abs / steps;
            }
        });
        self.scales = scales;
    }

    /// The scale of each channel, between a fifth and all of the plan's, with the least squared error: what covers
    /// every value is far too coarse for few bits.
    pub(crate) fn fit(&mut self, raw: &[f32]) {
        let mut scales = self.scales.clone();
        let mut unused = raw.to_vec();
        let mut buffer = Vec::new();
        self.channels(raw, &mut unused, |c, raw, _| {
            buffer.resize(raw.len(), 0.0);
            let full = self.params(c);
            let mut best = f64::INFINITY;
            for part in (10..=50).rev() {
                let scale = (full.scale() * part as f32 / 50.0).max(MIN_SCALE);
                let Ok(params) = QParams::new(scale, full.zero_point(), self.range) else {
                    continue;
                };
                fake_quantize(raw, &mut buffer, params, self.range);
                let error: f64 =
                    raw.iter().zip(&buffer).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                if error < best {
                    (best, scales[c]) = (error, scale);
                }
            }
        });
        self.scales = scales;
    }

    /// Multiplies each channel of the weights, whose integers stay.
    pub(crate) fn widen(&mut self, weights: &mut [f32], factors: &[f64]) {
        let raw = weights.to_vec();
        self.channels(&raw, weights, |c, raw, out| {
            out.iter_mut().zip(raw).for_each(|(out, raw)| *out = raw * factors[c] as f32);
        });
        self.scales.iter_mut().zip(factors).for_each(|(scale, factor)| *scale *= *factor as f32);
    }

    /// LSQ's factor of the scales' gradients: `1 / sqrt(elements of a channel * largest integer)`.
    pub(crate) fn grad_factor(&self) -> f32 {
        let n = (self.outer * self.inner) as f32;
        1.0 / (n * self.range.qmax().max(1) as f32).sqrt()
    }
}

/// The quantizer of activations that share their parameters.
#[derive(Debug)]
pub(crate) struct ActivationQuantizer {
    /// Keys in [`midtread_quant::Plan::tensors`].
    pub(crate) keys: Vec<String>,
    pub(crate) range: QRange,
    pub(crate) state: ActivationState,
    pub(crate) scale_grad: f64,
    pub(crate) zero_point_grad: f64,
    /// Of the upper bound, by PACT.
    pub(crate) bound_grad: f64,
    /// Whether its parameters may change: not where the operator or the model's input says what they are.
    pub(crate) is_free: bool,
    /// Whether the plan's zero point is at neither end of the range: one at an end stays there.
    pub(crate) has_free_zero_point: bool,
    /// Elements of a sample.
    pub(crate) n_features: usize,
}

/// What changes of an activation's quantizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ActivationState {
    pub(crate) scale: f32,
    /// Rounded where it is used.
    pub(crate) zero_point: f32,
    /// Moving averages of the extrema.
    pub(crate) low: f32,
    pub(crate) high: f32,
    /// 1 once something was observed.
    pub(crate) is_seen: f32,
}

impl ActivationState {
    pub(crate) fn as_array(&mut self) -> [&mut f32; 5] {
        [&mut self.scale, &mut self.zero_point, &mut self.low, &mut self.high, &mut self.is_seen]
    }
}

impl ActivationQuantizer {
    pub(crate) fn new(params: QParams, range: QRange) -> Self {
        let zero_point = params.zero_point();
        Self {
            keys: Vec::new(),
            range,
            state: ActivationState {
                scale: params.scale(),
                zero_point: zero_point as f32,
                low: 0.0,
                high: 0.0,
                is_seen: 0.0,
            },
            scale_grad: 0.0,
            zero_point_grad: 0.0,
            bound_grad: 0.0,
            is_free: true,
            has_free_zero_point: zero_point != range.qmin()
                && zero_point != range.qmax()
                && zero_point != range.symmetric_zero_point(),
            n_features: 1,
        }
    }

    pub(crate) fn params(&self) -> QParams {
        let zero_point = self.state.zero_point.round_ties_even() as i32;
        let zero_point = zero_point.clamp(self.range.qmin(), self.range.qmax());
        QParams::new(self.state.scale.max(MIN_SCALE), zero_point, self.range)
            .expect("scales are kept finite and positive")
    }

    pub(crate) fn apply(&self, pool: &Pool, x: &Tensor) -> Result<Tensor, OpError> {
        let src = x.as_slice::<f32>()?;
        pool.fill(x.dims().to_vec(), |out| {
            fake_quantize(src, out, self.params(), self.range);
            Ok(())
        })
    }

    /// The gradient of the input; the parameters' are added up.
    pub(crate) fn back(&mut self, pool: &Pool, x: &Tensor, dy: &Tensor) -> Result<Tensor, OpError> {
        let (src, grad) = (x.as_slice::<f32>()?, dy.as_slice::<f32>()?);
        let mut sums = Default::default();
        let dx = pool.fill(x.dims().to_vec(), |dx| {
            sums = fake_quantize_grad(src, grad, self.params(), self.range, dx);
            Ok(())
        })?;
        self.scale_grad += sums.scale;
        self.zero_point_grad += sums.zero_point;
        self.bound_grad += sums.upper_bound;
        Ok(dx)
    }

    /// Moves the averages of the extrema towards this batch's.
    pub(crate) fn observe(&mut self, x: &Tensor, momentum: f32) {
        let Some((min, max)) = x.as_slice::<f32>().ok().and_then(|x| min_max(x).range()) else {
            return;
        };
        let state = &mut self.state;
        if state.is_seen == 0.0 {
            (state.low, state.high, state.is_seen) = (min, max, 1.0);
        } else {
            state.low += momentum * (min - state.low);
            state.high += momentum * (max - state.high);
        }
    }

    /// Takes the parameters from the averages.
    pub(crate) fn adopt(&mut self) {
        if self.state.is_seen == 0.0 || !self.is_free {
            return;
        }
        let is_symmetric = self.state.zero_point as i32 == self.range.symmetric_zero_point();
        let made = if is_symmetric {
            QParams::symmetric(self.state.low, self.state.high, self.range)
        } else {
            QParams::from_min_max(self.state.low, self.state.high, self.range)
        };
        if let Ok(params) = made {
            self.state.scale = params.scale();
            self.state.zero_point = params.zero_point() as f32;
        }
    }

    /// The gradient of the scale that `scales` asks for.
    pub(crate) fn scale_gradient(&self, scales: Scales) -> f64 {
        // PACT learns alpha = scale * (qmax - zero point).
        let reach = f64::from(self.range.qmax()) - f64::from(self.params().zero_point());
        let from_zero = self.params().zero_point() == self.range.qmin();
        match scales {
            Scales::Pact if from_zero => {
                self.bound_grad * reach + PACT_DECAY * f64::from(self.state.scale) * reach * reach
            }
            _ => self.scale_grad,
        }
    }

    /// LSQ's factor of the gradients.
    pub(crate) fn grad_factor(&self) -> f32 {
        let steps = (self.range.qmax() - self.range.qmin()).max(1);
        1.0 / (self.n_features.max(1) as f32 * steps as f32).sqrt()
    }
}

/// PACT's penalty on the upper bound's square.
const PACT_DECAY: f64 = 1e-4;
