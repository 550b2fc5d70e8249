//! Attention, and what is done to its inputs.

use midtread_graph::{DataType, Tensor};

use crate::{
    attr,
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    infer::InferCtx,
    norm::same_as_first,
    quantize::type_attr,
    shape::{broadcast, broadcast_strides, product},
    sym::SymDim,
    typed::{bools, elements, in_f32, indices},
};

/// ONNX RotaryEmbedding 23.
pub(crate) static ROTARY_EMBEDDING: OpDef = OpDef {
    op_type: "RotaryEmbedding",
    domain: "",
    versions: &[23],
    attrs: &["interleaved", "num_heads", "rotary_embedding_dim"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, rotary_embedding)),
    role: Role::Float("its angles need float32"),
};

/// How the elements of a tensor of heads lie: batches, positions, heads, elements of one, and the distances between
/// them.
struct Heads {
    sizes: [usize; 4],
    steps: [usize; 3],
}

impl Heads {
    /// Of `(batch, heads, positions, size)`, or of `(batch, positions, heads * size)`.
    fn new(dims: &[usize], n_heads: usize) -> Result<Self, OpError> {
        match *dims {
            [b, h, s, d] => Ok(Self { sizes: [b, s, h, d], steps: [h * s * d, d, s * d] }),
            [b, s, all] if n_heads != 0 && all % n_heads == 0 => {
                let d = all / n_heads;
                Ok(Self { sizes: [b, s, n_heads, d], steps: [s * all, all, d] })
            }
            _ => Err(OpError::Invalid(format!("{n_heads} heads in sizes {dims:?}"))),
        }
    }

    /// Where the elements of a head at a position start.
    fn at(&self, b: usize, s: usize, h: usize) -> usize {
        b * self.steps[0] + s * self.steps[1] + h * self.steps[2]
    }
}

fn rotary_embedding(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (x, cos, sin) = (args.required(0)?, args.required(1)?, args.required(2)?);
    let heads = Heads::new(x.dims(), attr::size(ctx.node, "num_heads", 0)?)?;
    let [batch, length, n_heads, size] = heads.sizes;
    let rotated = match attr::size(ctx.node, "rotary_embedding_dim", 0)? {
        0 => size,
        n => n,
    };
    let half = rotated / 2;
    let interleaved = attr::flag(ctx.node, "interleaved", false)?;
    let rows = product(cos.dims()) / half.max(1);
    // The row of the cache for each position of each batch.
    let positions: Vec<i64> = match args.get(3) {
        Some(at) => indices(at)?,
        None => (0..(batch * length) as i64).collect(),
    };
    let positions = crate::gather::in_bounds(&positions, rows)?;
    let fits = positions.len() == batch * length
        && cos.dims() == sin.dims()
        && cos.dims().last() == Some(&half)
        && rotated % 2 == 0
        && rotated <= size;
    if !fits {
        return Err(OpError::Invalid(format!(
            "{} positions of a cache of {:?} for {:?}",
            positions.len(),
            cos.dims(),
            x.dims()
        )));
    }
    let (src, cos, sin) = (elements::<f32>(x)?, elements::<f32>(cos)?, elements::<f32>(sin)?);
    let y = ctx.pool.fill::<f32>(x.dims().to_vec(), |y| {
        y.copy_from_slice(&src);
        for (i, &row) in positions.iter().enumerate() {
            let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
            for h in 0..n_heads {
                let at = heads.at(i / length, i % length, h);
                rotate_row(&mut y[at..][..rotated], cos, sin, interleaved);
            }
        }
        Ok(())
    })?;
    Ok(vec![y])
}

/// Turns pairs of elements by angles: neighbors, or those of the first half with those of the second.
pub(crate) fn rotate_row(row: &mut [f32], cos: &[f32], sin: &[f32], interleaved: bool) {
    let half = cos.len();
    for k in 0..half {
        let (a, b) = if interleaved { (2 * k, 2 * k + 1) } else { (k, k + half) };
        let (x, y) = (row[a], row[b]);
        row[a] = cos[k] * x - sin[k] * y;
        row[b] = sin[k] * x + cos[k] * y;
    }
}

/// ONNX Attention 23, 24 (`nonpad_kv_seqlen`) and 25 (`left_window_size`, `right_window_size`).
pub(crate) static ATTENTION: OpDef = OpDef {
    op_type: "Attention",
    domain: "",
    versions: &[23, 24, 25],
    attrs: &[
        "is_causal",
        "kv_num_heads",
        "left_window_size",
        "q_num_heads",
        "qk_matmul_output_mode",
        "right_window_size",
        "scale",
        "softcap",
        "softmax_precision",
    ],
    infer: infer_attention,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, attention)),
    role: Role::Float("its products were not quantized one by one"),
};

fn infer_attention(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let n_heads =
        |name: &'static str| Ok::<_, OpError>(attr::opt_int(ctx.node, name)?.map(SymDim::known));
    let (q_heads, kv_heads) = (n_heads("q_num_heads")?, n_heads("kv_num_heads")?);
    // Batches, heads, positions and the size of a head.
    let heads = |i: usize, n: &Option<SymDim>| match (ctx.dims(i)?, n) {
        ([b, h, s, d], _) => Some([b.clone(), h.clone(), s.clone(), d.clone()]),
        ([b, s, all], Some(n)) => {
            let size = match (all.as_known(), n.as_known()) {
                (Some(all), Some(n)) => all.checked_div(n).map_or(SymDim::Unknown, SymDim::known),
                _ => SymDim::Unknown,
            };
            Some([b.clone(), n.clone(), s.clone(), size])
        }
        _ => None,
    };
    let (q, k, v) = (heads(0, &q_heads), heads(1, &kv_heads), heads(2, &kv_heads));
    let past = |i: usize| match ctx.input(i) {
        None => Some(SymDim::known(0)),
        Some(_) => Some(ctx.dims(i)?.get(2)?.clone()),
    };
    let with_past = |x: &[SymDim; 4], i: usize| {
        let [b, h, s, d] = x.clone();
        let s = past(i).map_or(SymDim::Unknown, |past| past.add(&s));
        vec![b, h, s, d]
    };
    let y = match (&q, &v, ctx.rank(0)) {
        (Some([b, h, s, _]), Some([.., d]), Some(4)) => {
            Some(vec![b.clone(), h.clone(), s.clone(), d.clone()])
        }
        (Some([b, h, s, _]), Some([.., d]), Some(3)) => Some(vec![b.clone(), s.clone(), h.mul(d)]),
        _ => None,
    };
    let (key, value) = (k.as_ref().map(|k| with_past(k, 4)), v.as_ref().map(|v| with_past(v, 5)));
    let qk = match (&q, &key) {
        (Some([b, h, s, _]), Some(key)) => {
            Some(vec![b.clone(), h.clone(), s.clone(), key[2].clone()])
        }
        _ => None,
    };
    ctx.set(0, ctx.elem(0), y);
    ctx.set(1, ctx.elem(1), key);
    ctx.set(2, ctx.elem(2), value);
    ctx.set(3, ctx.elem(0), qk);
    Ok(())
}

/// The entries of a cache before those of `x`, as `(batch, heads, positions, size)`.
fn with_past(
    x: &Tensor,
    heads: &Heads,
    past: Option<&Tensor>,
) -> Result<(Vec<f32>, [usize; 4]), OpError> {
    let [b, s, h, d] = heads.sizes;
    let n_past = match past.map(Tensor::dims) {
        None => 0,
        Some(&[b2, h2, n, d2]) if (b2, h2, d2) == (b, h, d) => n,
        Some(dims) => {
            return Err(OpError::Invalid(format!("a cache of {dims:?} for {:?}", x.dims())));
        }
    };
    let src = elements::<f32>(x)?;
    let past = past.map(elements::<f32>).transpose()?;
    let mut out = Vec::with_capacity(b * h * (n_past + s) * d);
    for row in 0..b * h {
        if let Some(past) = &past {
            out.extend_from_slice(&past[row * n_past * d..][..n_past * d]);
        }
        for i in 0..s {
            out.extend_from_slice(&src[heads.at(row / h, i, row % h)..][..d]);
        }
    }
    Ok((out, [b, h, n_past + s, d]))
}

fn attention(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let node = ctx.node;
    let (q, k, v) = (args.required(0)?, args.required(1)?, args.required(2)?);
    let n_kv = attr::size(node, "kv_num_heads", 0)?;
    let heads = Heads::new(q.dims(), attr::size(node, "q_num_heads", 0)?)?;
    let (k_heads, v_heads) = (Heads::new(k.dims(), n_kv)?, Heads::new(v.dims(), n_kv)?);
    let [batch, n_q, n_heads, size] = heads.sizes;
    let (keys, k_dims) = with_past(k, &k_heads, args.get(4))?;
    let (values, v_dims) = with_past(v, &v_heads, args.get(5))?;
    let ([_, n_kv, n_keys, _], v_size) = (k_dims, v_dims[3]);
    if k_dims[0] != batch
        || k_dims[3] != size
        || v_dims[..3] != k_dims[..3]
        || n_kv == 0
        || n_heads % n_kv != 0
    {
        return Err(OpError::Invalid(format!("{:?} over {k_dims:?} and {v_dims:?}", q.dims())));
    }
    let scale = attr::opt_float(node, "scale")?.unwrap_or(1.0 / (size as f32).sqrt()).sqrt();
    let softcap = attr::float(node, "softcap", 0.0)?;
    let mode = attr::int(node, "qk_matmul_output_mode", 0)?;
    let in_double = type_attr(node, "softmax_precision")? == Some(DataType::Double);
    let lens = args.get(6).map(indices).transpose()?;
    if lens.as_ref().is_some_and(|lens| lens.len() != batch) {
        return Err(OpError::Invalid(format!("lengths of other than {batch} batches")));
    }
    let is_causal = attr::flag(node, "is_causal", false)?;
    // How far a query sees; -1 is without end.
    let window = |name| {
        attr::int(node, name, -1).map(|n| (0..=i64::from(i32::MAX)).contains(&n).then_some(n))
    };
    let (left_window, right_window) = (window("left_window_size")?, window("right_window_size")?);
    let n_past = args.get(4).map_or(0, |past| past.dims()[2]) as i64;
    // A mask with fewer keys than there are hides the others.
    let full = [batch, n_heads, n_q, n_keys];
    let mask = args.get(3).map(|mask| {
        let n_masked = mask.dims().last().copied().unwrap_or(1).min(n_keys);
        let is_short = mask.dims().last().is_some_and(|&n| n < n_keys);
        let mut over = full;
        if is_short {
            over[3] = n_masked;
        }
        if broadcast(&[mask.dims(), &over])? != over {
            return Err(OpError::Invalid(format!("a mask of {:?} over {full:?}", mask.dims())));
        }
        let values: Vec<f32> = match mask.dtype() {
            DataType::Bool => {
                bools(mask)?.iter().map(|&b| if b != 0 { 0.0 } else { f32::NEG_INFINITY }).collect()
            }
            _ => elements::<f32>(mask)?.into_owned(),
        };
        Ok((values, broadcast_strides(mask.dims(), &over), over[3]))
    });
    let mask = mask.transpose()?;
    let src = elements::<f32>(q)?;
    let y_dims = match q.dims().len() {
        4 => vec![batch, n_heads, n_q, v_size],
        _ => vec![batch, n_q, n_heads * v_size],
    };
    let y_heads = Heads::new(&y_dims, n_heads)?;
    let mut y_tensor = ctx.pool.tensor(DataType::Float, y_dims)?;
    let y = y_tensor.to_mut::<f32>()?;
    y.fill(0.0);
    let mut qk = Vec::new();
    let wants_qk = 3 < node.outputs.len();
    for row in 0..batch * n_heads * n_q {
        let (b, h, i) = (row / (n_heads * n_q), row / n_q % n_heads, row % n_q);
        let kv = b * n_kv + h / (n_heads / n_kv);
        let query: Vec<f32> = src[heads.at(b, i, h)..][..size].iter().map(|q| q * scale).collect();
        let product = |j: usize| -> f32 {
            let key = &keys[(kv * n_keys + j) * size..][..size];
            query.iter().zip(key).map(|(q, k)| q * (k * scale)).sum()
        };
        let mut scores: Vec<f32> = (0..n_keys).map(product).collect();
        let mut shown = if wants_qk && mode == 0 { scores.clone() } else { Vec::new() };
        // Where the query lies among the keys.
        let position = match &lens {
            Some(lens) if args.get(4).is_none() => i as i64 + lens[b] - n_q as i64,
            _ => i as i64 + n_past,
        };
        // The first key that is not known to this query yet.
        let frontier = if is_causal { position + 1 } else { i64::MAX };
        let frontier = right_window.map_or(frontier, |n| frontier.min(position + n + 1));
        let first_key = left_window.map_or(i64::MIN, |n| position - n);
        let n_valid = lens.as_ref().map_or(i64::MAX, |lens| lens[b]).min(frontier);
        let hide = |scores: &mut [f32]| {
            for (j, score) in scores.iter_mut().enumerate() {
                if let Some((values, steps, n_masked)) = &mask {
                    let at: isize = [b, h, i, j]
                        .into_iter()
                        .zip(steps)
                        .map(|(at, step)| at as isize * step)
                        .sum();
                    *score += if j < *n_masked { values[at as usize] } else { f32::NEG_INFINITY };
                }
                if n_valid <= j as i64 || (j as i64) < first_key {
                    *score = f32::NEG_INFINITY;
                }
            }
        };
        if 0.0 < softcap {
            scores.iter_mut().for_each(|s| *s = (*s / softcap).tanh() * softcap);
        }
        if wants_qk && mode == 1 {
            shown.clone_from(&scores);
        }
        hide(&mut scores);
        if wants_qk && mode == 2 {
            shown.clone_from(&scores);
        }
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY {
            // No key is to be seen.
            scores.fill(0.0);
        } else if in_double {
            let exp = |s: f32| (f64::from(s) - f64::from(max)).exp();
            let sum: f64 = scores.iter().map(|&s| exp(s)).sum();
            scores.iter_mut().for_each(|s| *s = (exp(*s) / sum) as f32);
        } else {
            scores.iter_mut().for_each(|s| *s = (*s - max).exp());
            let sum: f32 = scores.iter().sum();
            scores.iter_mut().for_each(|s| *s /= sum);
        }
        if wants_qk {
            if mode == 3 {
                shown.clone_from(&scores);
            }
            qk.append(&mut shown);
        }
        let out = &mut y[y_heads.at(b, i, h)..][..v_size];
        for (j, weight) in scores.iter().enumerate() {
            let value = &values[(kv * n_keys + j) * v_size..][..v_size];
            out.iter_mut().zip(value).for_each(|(y, v)| *y += weight * v);
        }
    }
    let mut outputs = vec![
        y_tensor,
        Tensor::from_slice(k_dims.to_vec(), &keys)?,
        Tensor::from_slice(v_dims.to_vec(), &values)?,
    ];
    if wants_qk {
        outputs.push(Tensor::from_slice(full.to_vec(), &qk)?);
    }
    Ok(outputs)
}
