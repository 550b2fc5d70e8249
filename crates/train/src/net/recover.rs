//! Recovery without training: outputs of quantized layers get back the mean and the spread of the float ones.
//!
//! Rounding weights moves the mean of a layer's outputs and shrinks or widens them, a little for each layer, and deep
//! networks add that up. Both can be undone where the layer has a bias and scales of its own: layer by layer, in order,
//! each seeing the inputs that those before it now give (bias correction; Nagel et al., 2019, and for the spread Finkelstein
//! et al., 2019). A channel's scale takes the factor, so that its integers stay as they are.

use std::collections::HashMap;

use midtread_graph::{Tensor, ValueId};
use midtread_ops::{Args, EvalCtx, OpError};

use super::{Input, Net, Phase, SlotQuant, Source, tensor};
use crate::error::Error;

/// Mean and standard deviation of each channel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Moments {
    mean: Vec<f64>,
    deviation: Vec<f64>,
}

impl Moments {
    /// Along `axis`.
    pub(crate) fn of(x: &Tensor, axis: usize) -> Result<Self, OpError> {
        let dims = x.dims();
        let (n, inner) = (dims[axis], dims[axis + 1..].iter().product::<usize>().max(1));
        let values = x.as_slice::<f32>()?;
        let count = (values.len() / n.max(1)).max(1) as f64;
        let each = |f: &mut dyn FnMut(usize, f64)| {
            for (i, run) in values.chunks_exact(inner).enumerate() {
                run.iter().for_each(|&x| f(i % n, f64::from(x)));
            }
        };
        let (mut mean, mut squares) = (vec![0.0; n], vec![0.0; n]);
        each(&mut |c, x| mean[c] += x / count);
        each(&mut |c, x| squares[c] += (x - mean[c]).powi(2) / count);
        let deviation = squares.into_iter().map(f64::sqrt).collect();
        Ok(Self { mean, deviation })
    }
}

/// What can be corrected at a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Correction {
    step: usize,
    /// What the step computes, before any activation function that it takes in.
    pub(crate) value: ValueId,
    /// The channels' dimension.
    pub(crate) axis: usize,
    bias: usize,
    /// The slot of weights with a scale for each channel.
    weight: Option<usize>,
}

/// A channel is widened or narrowed by this factor at most: what asks for more is not rounding.
const MOST: f64 = 2.0;

impl Net {
    /// All that can be corrected: layers with a bias that nobody shares.
    pub(crate) fn corrections(&self) -> Vec<Correction> {
        let mut n_users = vec![0; self.slots.len()];
        let slots = self.steps.iter().flat_map(|step| &step.inputs);
        slots.for_each(|input| {
            if let Input::Slot(slot) = input {
                n_users[*slot] += 1;
            }
        });
        let is_own = |slot: usize| {
            let source = self.slots[slot].source;
            let n_slots = self.slots.iter().filter(|other| other.source == source).count();
            matches!(source, Source::Param(_)) && n_users[slot] == 1 && n_slots == 1
        };
        let of = |(s, step): (usize, &super::Step)| {
            let node = &self.graph.nodes[step.node];
            if step.is_absorbed || !["Conv", "ConvTranspose", "Gemm"].contains(&&*node.op_type) {
                return None;
            }
            let (Input::Slot(weight), Input::Slot(bias)) = (&step.inputs[1], step.inputs.get(2)?)
            else {
                return None;
            };
            let SlotQuant::Weight(quantizer) = self.slots[*weight].quant else { return None };
            let n_channels = self.slots[*bias].raw.len();
            let has_scales = self.weights[quantizer].scales.len() == n_channels;
            let value = (*step.outputs[1].first()?)?;
            is_own(*bias).then_some(Correction {
                step: s,
                value,
                axis: 1,
                bias: *bias,
                weight: Some(*weight).filter(|w| has_scales && is_own(*w)),
            })
        };
        self.steps.iter().enumerate().filter_map(of).collect()
    }

    /// Corrects weights and biases with one batch, of which the float model's outputs have the moments `float`.
    pub(crate) fn recover(
        &mut self,
        inputs: Vec<(ValueId, Tensor)>,
        float: &HashMap<ValueId, Moments>,
    ) -> Result<(), Error> {
        self.refresh(true)?;
        self.is_sparing = true;
        let corrections = self.corrections();
        let mut tape = self.tape(inputs, Phase::DEPLOYED)?;
        for s in 0..self.steps.len() {
            if let Some(correction) = corrections.iter().find(|c| c.step == s)
                && let Some(float) = float.get(&correction.value)
            {
                let step = &self.steps[s];
                let node = &self.graph.nodes[step.node];
                let failed = |source| Error::Node {
                    node: self.graph.label(node).to_owned(),
                    op_type: node.op_type.clone(),
                    pass: "forwards",
                    source,
                };
                let args = step.inputs.iter().map(|input| self.read(&tape, input)).collect();
                let ctx = EvalCtx { node, opset: step.opset, pool: &self.pool };
                let outputs = step.def.evaluate_tensors(&ctx, Args(args)).map_err(failed)?;
                let own = Moments::of(&outputs[0], correction.axis).map_err(failed)?;
                self.correct(*correction, &own, float)?;
            }
            self.run_step(s, &mut tape, Phase::DEPLOYED)?;
        }
        Ok(())
    }

    fn correct(&mut self, at: Correction, own: &Moments, float: &Moments) -> Result<(), Error> {
        let factors: Vec<f64> = (0..own.mean.len())
            .map(|c| match at.weight {
                Some(_) if 1e-6 < own.deviation[c] => {
                    (float.deviation[c] / own.deviation[c]).clamp(1.0 / MOST, MOST)
                }
                _ => 1.0,
            })
            .collect();
        if let Some(slot) = at.weight
            && let (Source::Param(p), SlotQuant::Weight(w)) =
                (self.slots[slot].source, self.slots[slot].quant)
        {
            let quantizer = &mut self.weights[w];
            quantizer.widen(&mut self.params[p].value, &factors);
        }
        if let Source::Param(p) = self.slots[at.bias].source {
            for (c, bias) in self.params[p].value.iter_mut().enumerate() {
                let moved = factors[c] * (f64::from(*bias) - own.mean[c]) + float.mean[c];
                *bias = moved as f32;
            }
        }
        for slot in [Some(at.bias), at.weight].into_iter().flatten() {
            if let Source::Param(p) = self.slots[slot].source {
                self.slots[slot].raw.copy_from_slice(&self.params[p].value);
            }
        }
        self.raise_for_biases();
        for slot in [Some(at.bias), at.weight].into_iter().flatten() {
            self.write_slot(slot, true).map_err(tensor)?;
        }
        Ok(())
    }
}
