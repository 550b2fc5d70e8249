//! A tensor's own error: the node that makes it in the float model, run again on the float model's values, with the
//! quantized model's weights, and its result rounded as the quantized model rounds it.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use half::{bf16, f16, slice::HalfFloatSliceExt};
use midtread_graph::{DataType, Graph, Links, Tensor, ValueId, model::opset_of};
use midtread_kernels::{min_max::min_max, quantize as kernel};
use midtread_num::{
    QRange,
    dynamic::{ZeroScale, quantize_linear_params},
    tensor::{dequantize, quantize},
};
use midtread_ops::{Args, EvalCtx, OpError, Pool};

use crate::view::Grid;

/// Nodes that are run again together: an operator, and clamps after it that the quantized model has absorbed.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    /// Of the float graph, in order.
    pub(crate) nodes: Vec<usize>,
    /// What it makes.
    pub(crate) output: ValueId,
    /// Operands that the quantized model has other values for: by (node, input).
    pub(crate) replaced: BTreeMap<(usize, usize), Tensor>,
    /// Operands that the quantized model rounds while it runs.
    pub(crate) dynamic: Vec<(usize, usize)>,
    /// Values of the float model that it takes.
    pub(crate) inputs: Vec<ValueId>,
}

/// Chains longer than this are not looked through.
const MAX_NODES: usize = 4;

impl Unit {
    /// The unit that makes `output`, back to values that the quantized model has too. `None` where all that it does
    /// is the same in both models.
    pub(crate) fn new(
        graph: &Graph,
        links: &Links,
        output: ValueId,
        is_matched: &dyn Fn(ValueId) -> bool,
        replaced: &BTreeMap<(usize, usize), Tensor>,
        dynamic: &[(usize, usize)],
    ) -> Option<Self> {
        let mut nodes = vec![links.producer(output)?];
        while nodes.len() < MAX_NODES {
            let mut varying = graph.nodes[nodes[0]]
                .inputs
                .iter()
                .flatten()
                .filter(|id| graph.constant(**id).is_none());
            let (Some(&id), None) = (varying.next(), varying.next()) else { break };
            let Some(before) = links.producer(id).filter(|_| !is_matched(id)) else { break };
            nodes.insert(0, before);
        }
        let of = |at: &(usize, usize)| nodes.contains(&at.0);
        let replaced: BTreeMap<_, _> =
            replaced.iter().filter(|(at, _)| of(at)).map(|(at, t)| (*at, t.clone())).collect();
        let dynamic: Vec<_> = dynamic.iter().copied().filter(of).collect();
        if replaced.is_empty() && dynamic.is_empty() {
            return None;
        }
        let made: Vec<ValueId> =
            nodes.iter().flat_map(|&i| graph.nodes[i].outputs.iter().flatten().copied()).collect();
        let inputs = nodes
            .iter()
            .flat_map(|&i| graph.nodes[i].inputs.iter().flatten().copied())
            .filter(|id| graph.constant(*id).is_none() && !made.contains(id))
            .collect();
        Some(Self { nodes, output, replaced, dynamic, inputs })
    }

    /// Runs it on the float model's values.
    pub(crate) fn run(
        &self,
        graph: &Graph,
        opset_imports: &[(String, i64)],
        values: &HashMap<ValueId, Tensor>,
        pool: &Pool,
    ) -> Result<Tensor, (usize, OpError)> {
        let mut made: HashMap<ValueId, Tensor> = HashMap::new();
        for &i in &self.nodes {
            let node = &graph.nodes[i];
            let fail = |what: &str| (i, OpError::Unsupported(what.to_owned()));
            let mut args = Vec::with_capacity(node.inputs.len());
            for (k, id) in node.inputs.iter().enumerate() {
                let Some(id) = *id else {
                    args.push(None);
                    continue;
                };
                let tensor = self
                    .replaced
                    .get(&(i, k))
                    .or_else(|| made.get(&id))
                    .or_else(|| values.get(&id))
                    .cloned()
                    .or_else(|| graph.constant(id).map(Tensor::to_aligned))
                    .ok_or_else(|| fail("a value that was not kept"))?;
                let is_dynamic = self.dynamic.contains(&(i, k));
                args.push(Some(if is_dynamic { rounded_at_run_time(&tensor) } else { tensor }));
            }
            let def = midtread_ops::find(&node.domain, &node.op_type)
                .ok_or_else(|| fail("an operator that is not known"))?;
            let opset = opset_of(opset_imports, &node.domain).unwrap_or(1);
            let ctx = EvalCtx { node, opset, pool };
            let outputs = def.evaluate_tensors(&ctx, Args(args)).map_err(|e| (i, e))?;
            for (id, tensor) in node.outputs.iter().zip(outputs) {
                if let Some(id) = id {
                    made.insert(*id, tensor);
                }
            }
        }
        made.remove(&self.output)
            .ok_or_else(|| (self.nodes[0], OpError::Unsupported("an output left out".to_owned())))
    }
}

/// What DynamicQuantizeLinear and back make of a tensor; itself where its values are no floats or not finite.
fn rounded_at_run_time(tensor: &Tensor) -> Tensor {
    let mut tensor = tensor.clone();
    let Ok(values) = tensor.to_mut::<f32>() else { return tensor };
    if let Some((min, max)) = min_max(values).range()
        && let Ok(params) = quantize_linear_params(min, max, ZeroScale::One)
    {
        kernel::fake_quantize_in_place(values, params, QRange::U8);
    }
    tensor
}

/// What rounding does to values, counted over many tensors. Merging is exact.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    /// Values.
    pub(crate) n: u64,
    /// Values more than half a step outside of the range.
    pub(crate) n_clipped: u64,
    /// Which integers occur, from the smallest of the type, a bit each.
    pub(crate) seen: Vec<u64>,
}

impl Usage {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.n += other.n;
        self.n_clipped += other.n_clipped;
        self.seen.resize(self.seen.len().max(other.seen.len()), 0);
        for (a, b) in self.seen.iter_mut().zip(&other.seen) {
            *a |= b;
        }
    }

    /// Share of values clipped, 0 to 1.
    pub(crate) fn clipped(&self) -> f64 {
        if self.n == 0 { 0.0 } else { self.n_clipped as f64 / self.n as f64 }
    }

    /// Distinct integers that occur.
    pub(crate) fn n_codes(&self) -> u32 {
        self.seen.iter().map(|bits| bits.count_ones()).sum()
    }

    fn see(&mut self, q: i32, range: QRange) {
        let i = (q - range.qmin()) as usize;
        self.seen[i / 64] |= 1 << (i % 64);
    }
}

/// Quantizes with one grid and dequantizes with another (the same, in a sound model); `None` where a grid does not fit
/// the tensor.
pub(crate) fn rounded(
    values: &[f32],
    dims: &[usize],
    to: &Grid,
    from: &Grid,
    usage: &mut Usage,
) -> Option<Vec<f32>> {
    let n_words = (to.range.n_steps() as usize + 1).div_ceil(64);
    usage.seen.resize(usage.seen.len().max(n_words), 0);
    usage.n += values.len() as u64;
    let mut out = vec![0.0; values.len()];
    if let (Some(params), Some(back), DataType::Uint8 | DataType::Int8) =
        (to.one(), from.one(), to.dtype)
    {
        let half = 0.5 * f64::from(params.scale());
        let (lo, hi) = params.real_range(to.range);
        let (lo, hi) = ((f64::from(lo) - half) as f32, (f64::from(hi) + half) as f32);
        usage.n_clipped += values.iter().map(|x| u64::from(*x < lo || hi < *x)).sum::<u64>();
        let mut seen = [false; 256];
        if to.dtype == DataType::Uint8 {
            let mut codes = vec![0_u8; values.len()];
            kernel::quantize_u8(values, &mut codes, params, to.range);
            codes.iter().for_each(|q| seen[usize::from(*q)] = true);
            kernel::dequantize_u8(&codes, &mut out, back);
        } else {
            let mut codes = vec![0_i8; values.len()];
            kernel::quantize_i8(values, &mut codes, params, to.range);
            codes.iter().for_each(|q| seen[(i32::from(*q) + 128) as usize] = true);
            kernel::dequantize_i8(&codes, &mut out, back);
        }
        for (i, _) in seen.iter().enumerate().filter(|(_, seen)| **seen) {
            usage.see(i as i32 + to.range.qmin(), to.range);
        }
        return Some(out);
    }
    let (layout, back) = (to.layout(dims)?, from.layout(dims)?);
    let mut codes = vec![0_i32; values.len()];
    quantize(values, &mut codes, layout, &to.params, to.range);
    for run in layout.runs() {
        for (i, x) in run.elements.clone().zip(&values[run.elements]) {
            let params = to.params[layout.param_of(i)];
            usage.n_clipped += u64::from(params.saturates(*x, to.range));
            usage.see(codes[i], to.range);
        }
    }
    dequantize(&codes, &mut out, back, &from.params);
    Some(out)
}

/// A tensor's elements as `f32`; `None` for integers.
pub(crate) fn as_f32(tensor: &Tensor) -> Option<Cow<'_, [f32]>> {
    fn widened(n: usize, fill: impl FnOnce(&mut [f32])) -> Cow<'static, [f32]> {
        let mut values = vec![0.0; n];
        fill(&mut values);
        Cow::Owned(values)
    }
    match tensor.dtype() {
        DataType::Float => match tensor.as_slice() {
            Ok(values) => Some(Cow::Borrowed(values)),
            Err(_) => tensor.to_vec().ok().map(Cow::Owned),
        },
        DataType::Float16 => {
            let halves = tensor.to_vec::<f16>().ok()?;
            Some(widened(halves.len(), |out| halves.convert_to_f32_slice(out)))
        }
        DataType::Bfloat16 => {
            let halves = tensor.to_vec::<bf16>().ok()?;
            Some(widened(halves.len(), |out| halves.convert_to_f32_slice(out)))
        }
        DataType::Double => {
            Some(Cow::Owned(tensor.to_vec::<f64>().ok()?.into_iter().map(|x| x as f32).collect()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use midtread_num::QParams;

    use super::*;

    fn grid(scale: f32, zero_point: i32, range: QRange, dtype: DataType) -> Grid {
        let params = vec![QParams::new(scale, zero_point, range).unwrap()];
        Grid { params, axis: 0, block_size: 0, range, dtype }
    }

    #[test]
    fn rounding_counts_what_it_clips_and_uses_in_every_type() {
        let values = [-1.0, 0.0, 0.2, 0.3, 1.0, 99.0];
        for (dtype, range, zero_point) in [
            (DataType::Uint8, QRange::U8, 0),
            (DataType::Int8, QRange::I8, -128),
            (DataType::Uint16, QRange::U16, 0),
        ] {
            let grid = grid(0.25, zero_point, range, dtype);
            let mut usage = Usage::default();
            let out = rounded(&values, &[6], &grid, &grid, &mut usage).unwrap();
            let top = (63.75_f32).max(if dtype == DataType::Uint16 { 99.0 } else { 0.0 });
            assert_eq!(out, [0.0, 0.0, 0.25, 0.25, 1.0, top], "{dtype}");
            // -1 and, in eight bits, 99.
            assert_eq!(usage.n_clipped, if dtype == DataType::Uint16 { 1 } else { 2 }, "{dtype}");
            assert_eq!(usage.n_codes(), 4, "0, 1, 4 and the largest of {dtype}");
        }
    }

    #[test]
    fn a_model_that_reads_integers_with_another_scale_is_seen() {
        let (to, from) =
            (grid(0.25, 0, QRange::U8, DataType::Uint8), grid(0.5, 0, QRange::U8, DataType::Uint8));
        let out = rounded(&[1.0], &[1], &to, &from, &mut Usage::default());
        assert_eq!(out, Some(vec![2.0]));
    }
}
