//! ONNX Runtime's attention operators (`com.microsoft`, version 1), as its CPU kernels compute them.
//!
//! A key that a mask hides gets `mask_filter_value` added to its score, one that lies in the future the lowest float.

use midtread_graph::{DataType, Tensor};
use midtread_kernels::{
    gemm::{Epilogue, MatRef, gemm},
    norm as kernel,
};

use crate::{
    attention::rotate_row,
    attr,
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    infer::InferCtx,
    matmul::product_f32,
    norm::same_as_first,
    qlinear::float_product,
    shape::broadcast_strides,
    sym::SymDim,
    typed::{elements, in_f32, indices},
};

const ROLE: Role = Role::Float("its products were not quantized one by one");
const DOMAIN: &str = "com.microsoft";

/// A tensor of heads: `(batch, heads, positions, size)`, row-major.
struct Rows {
    data: Vec<f32>,
    batch: usize,
    heads: usize,
    len: usize,
    size: usize,
}

impl Rows {
    /// From the columns `from..from + heads * size` of `(batch, positions, columns)`, with a bias for each of them.
    fn split(
        x: &[f32],
        [batch, len, columns]: [usize; 3],
        from: usize,
        [heads, size]: [usize; 2],
        bias: Option<&[f32]>,
    ) -> Self {
        let mut data = Vec::with_capacity(batch * heads * len * size);
        for b in 0..batch {
            for h in 0..heads {
                for s in 0..len {
                    let at = from + h * size;
                    let row = &x[(b * len + s) * columns + at..][..size];
                    match bias {
                        Some(bias) => data.extend(row.iter().zip(&bias[at..]).map(|(x, b)| x + b)),
                        None => data.extend_from_slice(row),
                    }
                }
            }
        }
        Self { data, batch, heads, len, size }
    }

    /// From a tensor of four dimensions.
    fn of(x: &Tensor) -> Result<Self, OpError> {
        let &[batch, heads, len, size] = x.dims() else {
            return Err(OpError::Invalid(format!("heads of sizes {:?}", x.dims())));
        };
        Ok(Self { data: elements::<f32>(x)?.into_owned(), batch, heads, len, size })
    }

    /// The positions of one head of one batch.
    fn head(&self, b: usize, h: usize) -> &[f32] {
        let n = self.len * self.size;
        &self.data[(b * self.heads + h) * n..][..n]
    }

    /// These positions behind the first `n_past` of `past`.
    fn after(self, past: &Self) -> Result<Self, OpError> {
        if (past.batch, past.heads, past.size) != (self.batch, self.heads, self.size) {
            return Err(OpError::Invalid(format!(
                "a past of {} batches, {} heads of {} before {}, {} and {}",
                past.batch, past.heads, past.size, self.batch, self.heads, self.size
            )));
        }
        let mut data = Vec::with_capacity(past.data.len() + self.data.len());
        for b in 0..self.batch {
            for h in 0..self.heads {
                data.extend_from_slice(past.head(b, h));
                data.extend_from_slice(self.head(b, h));
            }
        }
        Ok(Self { data, len: past.len + self.len, ..self })
    }

    fn tensor(&self) -> Result<Tensor, OpError> {
        Ok(Tensor::from_slice(vec![self.batch, self.heads, self.len, self.size], &self.data)?)
    }
}

/// How scores become weights.
struct Scores<'a> {
    scale: f32,
    /// `cap * tanh(score / cap)`; 0: not at all.
    softcap: f32,
    /// Adds to the scores of the query `[batch, head, position]`.
    mask: &'a dyn Fn([usize; 3], &mut [f32]),
    /// For each head, the exponent of a term of the sum that belongs to no key.
    sinks: Option<&'a [f32]>,
}

/// `(batch, positions, heads * v.size)`.
fn attend(
    ctx: &EvalCtx<'_>,
    q: &Rows,
    k: &Rows,
    v: &Rows,
    how: &Scores<'_>,
) -> Result<Tensor, OpError> {
    let fits = q.size == k.size
        && (k.batch, k.heads, k.len) == (v.batch, v.heads, v.len)
        && q.batch == k.batch
        && k.heads != 0
        && q.heads.is_multiple_of(k.heads);
    if !fits {
        return Err(OpError::Invalid(format!(
            "{} heads of {} over {} keys of {} heads of {} and {} values of {}",
            q.heads, q.size, k.len, k.heads, k.size, v.len, v.heads
        )));
    }
    let (n_q, n_k) = (q.len, k.len);
    let columns = q.heads * v.size;
    let mut scores = ctx.pool.tensor(DataType::Float, vec![n_q, n_k])?;
    let mut weights = ctx.pool.tensor(DataType::Float, vec![n_q, n_k])?;
    let mut out = vec![0.0; n_q * v.size];
    let y = ctx.pool.fill::<f32>(vec![q.batch, n_q, columns], |y| {
        if n_k == 0 {
            y.fill(0.0);
            return Ok(());
        }
        for (b, h) in (0..q.batch * q.heads).map(|i| (i / q.heads, i % q.heads)) {
            let kv = h / (q.heads / k.heads);
            let (scores, weights) = (scores.to_mut::<f32>()?, weights.to_mut::<f32>()?);
            let query = MatRef::new(q.head(b, h), n_q, q.size);
            let epilogue = Epilogue { alpha: how.scale, ..Epilogue::default() };
            gemm(query, MatRef::new(k.head(b, kv), n_k, k.size).t(), scores, &epilogue);
            for (i, row) in scores.chunks_exact_mut(n_k).enumerate() {
                if how.softcap != 0.0 {
                    row.iter_mut().for_each(|s| *s = how.softcap * (*s / how.softcap).tanh());
                }
                (how.mask)([b, h, i], row);
            }
            match how.sinks {
                None => kernel::softmax(scores, n_k, weights),
                Some(sinks) => {
                    let rows = scores.chunks_exact(n_k).zip(weights.chunks_exact_mut(n_k));
                    rows.for_each(|(scores, weights)| softmax_with(sinks[h], scores, weights));
                }
            }
            let weights = MatRef::new(weights, n_q, n_k);
            gemm(weights, MatRef::new(v.head(b, kv), n_k, v.size), &mut out, &Epilogue::default());
            for (s, row) in out.chunks_exact(v.size.max(1)).enumerate() {
                y[(b * n_q + s) * columns + h * v.size..][..v.size].copy_from_slice(row);
            }
        }
        Ok(())
    })?;
    Ok(y)
}

fn softmax_with(sink: f32, scores: &[f32], weights: &mut [f32]) {
    let max = scores.iter().copied().fold(sink, f32::max);
    weights.iter_mut().zip(scores).for_each(|(w, s)| *w = (s - max).exp());
    let sum: f32 = weights.iter().sum::<f32>() + (sink - max).exp();
    weights.iter_mut().for_each(|w| *w /= sum);
}

/// The scale of the scores: the attribute, or one over the root of a head's size.
fn score_scale(ctx: &EvalCtx<'_>, size: usize) -> Result<f32, OpError> {
    Ok(match attr::float(ctx.node, "scale", 0.0)? {
        0.0 => 1.0 / (size as f32).sqrt(),
        scale => scale,
    })
}

/// Attributes whose value asks for something that is not computed here.
fn refuse(ctx: &EvalCtx<'_>, names: &[&'static str]) -> Result<(), OpError> {
    match names.iter().find(|name| ctx.node.int(name).unwrap_or(0) != 0) {
        Some(name) => Err(OpError::Unsupported(format!("`{name}`"))),
        None => Ok(()),
    }
}

/// What is added to the scores of a query of one batch, for each key.
struct Mask {
    values: Vec<f32>,
    /// Keys.
    total: usize,
    /// Distances between batches and queries.
    steps: [usize; 2],
}

impl Mask {
    /// From lengths `(batch)`, ends and starts `(2 * batch)`, or zeros and ones for keys or for queries and keys.
    fn new(
        ctx: &EvalCtx<'_>,
        mask: &Tensor,
        [batch, len, total]: [usize; 3],
    ) -> Result<Self, OpError> {
        let filter = attr::float(ctx.node, "mask_filter_value", -10_000.0)?;
        let flags = indices(mask)?;
        let hidden = |is_hidden: bool| if is_hidden { filter } else { 0.0 };
        let (values, steps) = match *mask.dims() {
            [n] if n == batch || n == 2 * batch => {
                let shown = |i: usize| {
                    let (b, key) = (i / total, (i % total) as i64);
                    let start = if n == batch { 0 } else { flags[batch + b] };
                    start <= key && key < flags[b]
                };
                ((0..batch * total).map(|i| hidden(!shown(i))).collect(), [total, 0])
            }
            [b, t] if (b, t) == (batch, total) => {
                (flags.iter().map(|&f| hidden(f <= 0)).collect(), [total, 0])
            }
            [b, s, t] if (b, s, t) == (batch, len, total) => {
                (flags.iter().map(|&f| hidden(f <= 0)).collect(), [len * total, total])
            }
            _ => {
                return Err(OpError::Unsupported(format!(
                    "a mask of {:?} for {batch} batches of {len} queries and {total} keys",
                    mask.dims()
                )));
            }
        };
        Ok(Self { values, total, steps })
    }

    fn add(&self, b: usize, i: usize, row: &mut [f32]) {
        let own = &self.values[b * self.steps[0] + i * self.steps[1]..][..self.total];
        row.iter_mut().zip(own).for_each(|(s, m)| *s += m);
    }
}

/// A tensor that broadcasts to `(batch, heads, queries, keys)`.
struct Bias {
    values: Vec<f32>,
    steps: Vec<isize>,
}

impl Bias {
    fn new(bias: &Tensor, full: [usize; 4]) -> Result<Self, OpError> {
        if crate::shape::broadcast(&[bias.dims(), &full])? != full {
            return Err(OpError::Invalid(format!("a bias of {:?} over {full:?}", bias.dims())));
        }
        let values = elements::<f32>(bias)?.into_owned();
        Ok(Self { values, steps: broadcast_strides(bias.dims(), &full) })
    }

    fn add(&self, at: [usize; 3], row: &mut [f32]) {
        let start: isize = at.iter().zip(&self.steps).map(|(&i, step)| i as isize * step).sum();
        for (j, s) in row.iter_mut().enumerate() {
            *s += self.values[(start + j as isize * self.steps[3]) as usize];
        }
    }
}

/// All that masks the scores of Attention and MultiHeadAttention.
struct Masks {
    mask: Option<Mask>,
    bias: Option<Bias>,
    /// Positions before the first query, where the future is hidden.
    causal: Option<usize>,
}

impl Masks {
    fn add(&self, at: [usize; 3], row: &mut [f32]) {
        if let Some(mask) = &self.mask {
            mask.add(at[0], at[2], row);
        }
        if let Some(before) = self.causal {
            let known = (before + at[2] + 1).min(row.len());
            row[known..].fill(f32::MIN);
        }
        if let Some(bias) = &self.bias {
            bias.add(at, row);
        }
    }
}

/// `com.microsoft` Attention: the projections to queries, keys and values too.
pub(crate) static ATTENTION: OpDef = OpDef {
    op_type: "Attention",
    domain: DOMAIN,
    versions: &[1],
    attrs: &[
        "do_rotary",
        "mask_filter_value",
        "num_heads",
        "past_present_share_buffer",
        "qkv_hidden_sizes",
        "rotary_embedding_dim",
        "scale",
        "unidirectional",
    ],
    infer: |ctx| {
        let columns = match (attr::ints(ctx.node, "qkv_hidden_sizes")?, ctx.dims(1)) {
            (Some(&[_, _, v]), _) => SymDim::known(v),
            (None, Some([_, all])) => all.div(&SymDim::known(3)),
            _ => SymDim::Unknown,
        };
        infer_projected(ctx, columns, 4)
    },
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, args| {
            let (x, w) = (args.required(0)?, args.required(1)?);
            let projected = product_f32(ctx, x, w, 1.0)?.remove(0);
            let own = Inputs { bias: 2, mask: 3, past: 4, attention_bias: Some(5) };
            attention(ctx, &args, &projected, &own)
        })
    }),
    role: ROLE,
};

/// Where what Attention and QAttention take lies.
struct Inputs {
    bias: usize,
    mask: usize,
    past: usize,
    attention_bias: Option<usize>,
}

/// Outputs of Attention: `(batch, positions, columns)`, and keys and values of all positions.
fn infer_projected(ctx: &mut InferCtx<'_>, columns: SymDim, past: usize) -> Result<(), OpError> {
    let elem = ctx.elem(past - 2).filter(|e| e.is_float()).or(Some(DataType::Float));
    let y = match ctx.dims(0) {
        Some([b, s, _]) => Some(vec![b.clone(), s.clone(), columns.clone()]),
        _ => None,
    };
    let n_heads = SymDim::known(attr::int(ctx.node, "num_heads", 0)?);
    let present = match (ctx.dims(0), ctx.input(past), ctx.dims(past)) {
        (Some([b, s, _]), None, _) => {
            let size = columns.div(&n_heads);
            Some(vec![SymDim::known(2), b.clone(), n_heads, s.clone(), size])
        }
        (Some([_, s, _]), Some(_), Some([two, b, h, p, d])) => {
            Some(vec![two.clone(), b.clone(), h.clone(), p.add(s), d.clone()])
        }
        _ => None,
    };
    ctx.set(0, elem, y);
    ctx.set(1, elem, present);
    Ok(())
}

fn attention(
    ctx: &EvalCtx<'_>,
    args: &Args,
    projected: &Tensor,
    at: &Inputs,
) -> Result<Vec<Tensor>, OpError> {
    refuse(ctx, &["do_rotary", "past_present_share_buffer"])?;
    let heads = attr::size(ctx.node, "num_heads", 0)?;
    let &[batch, len, columns] = projected.dims() else {
        return Err(OpError::Invalid(format!("an input of sizes {:?}", projected.dims())));
    };
    let sizes = match attr::sizes(ctx.node, "qkv_hidden_sizes")? {
        Some(sizes) => sizes,
        None => vec![columns / 3; 3],
    };
    let &[q_size, k_size, v_size] = &sizes[..] else {
        return Err(OpError::Invalid(format!("`qkv_hidden_sizes` is {sizes:?}")));
    };
    let is_divided = heads != 0 && sizes.iter().all(|size| size % heads == 0);
    if !is_divided || q_size != k_size || sizes.iter().sum::<usize>() != columns {
        return Err(OpError::Invalid(format!("{heads} heads of {sizes:?} in {columns} columns")));
    }
    let bias = args.get(at.bias).map(elements::<f32>).transpose()?;
    if bias.as_ref().is_some_and(|bias| bias.len() != columns) {
        return Err(OpError::Invalid(format!("a bias of other than {columns} elements")));
    }
    let values = elements::<f32>(projected)?;
    let rows = |from: usize, size: usize| {
        Rows::split(&values, [batch, len, columns], from, [heads, size / heads], bias.as_deref())
    };
    let q = rows(0, q_size);
    let (mut k, mut v) = (rows(q_size, k_size), rows(q_size + k_size, v_size));
    let mut before = 0;
    if let Some(past) = args.get(at.past) {
        let &[2, b, h, n, d] = past.dims() else {
            return Err(OpError::Invalid(format!("a past of sizes {:?}", past.dims())));
        };
        let past = elements::<f32>(past)?;
        let part = |i: usize| Rows {
            data: past[i * past.len() / 2..][..past.len() / 2].to_vec(),
            batch: b,
            heads: h,
            len: n,
            size: d,
        };
        (k, v, before) = (k.after(&part(0))?, v.after(&part(1))?, n);
    }
    let full = [batch, heads, len, k.len];
    let mask = args.get(at.mask).map(|m| Mask::new(ctx, m, [batch, len, k.len])).transpose()?;
    let bias = at.attention_bias.and_then(|i| args.get(i));
    let is_causal = attr::flag(ctx.node, "unidirectional", false)?;
    let masks = Masks {
        mask,
        bias: bias.map(|bias| Bias::new(bias, full)).transpose()?,
        causal: is_causal.then_some(before),
    };
    let scores = Scores {
        scale: score_scale(ctx, q.size)?,
        softcap: 0.0,
        mask: &|at, row| masks.add(at, row),
        sinks: None,
    };
    let mut outputs = vec![attend(ctx, &q, &k, &v, &scores)?];
    if 1 < ctx.node.outputs.len() {
        if k.size != v.size {
            return Err(OpError::Unsupported("keys and values of other sizes as one".to_owned()));
        }
        let dims = vec![2, batch, heads, k.len, k.size];
        outputs.push(Tensor::from_slice(dims, &[k.data, v.data].concat())?);
    }
    Ok(outputs)
}

/// `com.microsoft` QAttention: Attention whose projection is of codes.
pub(crate) static QATTENTION: OpDef = OpDef {
    op_type: "QAttention",
    domain: DOMAIN,
    versions: &[1],
    attrs: &[
        "do_rotary",
        "mask_filter_value",
        "num_heads",
        "past_present_share_buffer",
        "scale",
        "unidirectional",
    ],
    infer: |ctx| {
        let columns = match ctx.dims(1) {
            Some([_, all]) => all.div(&SymDim::known(3)),
            _ => SymDim::Unknown,
        };
        infer_projected(ctx, columns, 8)?;
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        let (x, w) = (args.required(0)?, args.required(1)?);
        let scales = (args.required(3)?, args.required(4)?);
        let zero_points = (args.get(6), args.get(7));
        let projected = float_product(ctx, (x, w), scales, zero_points)?;
        let own = Inputs { bias: 2, mask: 5, past: 8, attention_bias: None };
        attention(ctx, &args, &projected, &own)
    }),
    role: Role::Float("it is quantized already"),
};

/// `com.microsoft` MultiHeadAttention: queries, keys and values given, apart or packed.
pub(crate) static MULTI_HEAD_ATTENTION: OpDef = OpDef {
    op_type: "MultiHeadAttention",
    domain: DOMAIN,
    versions: &[1],
    attrs: &["mask_filter_value", "num_heads", "scale", "unidirectional"],
    infer: |ctx| {
        let heads = SymDim::known(attr::int(ctx.node, "num_heads", 0)?);
        let y = match (ctx.dims(0), ctx.dims(2)) {
            (Some([b, s, _]), Some([_, _, columns])) => {
                Some(vec![b.clone(), s.clone(), columns.clone()])
            }
            (Some([b, s, _]), Some([_, h, _, d])) => Some(vec![b.clone(), s.clone(), h.mul(d)]),
            (Some([b, s, columns]), None) if ctx.input(2).is_none() => {
                Some(vec![b.clone(), s.clone(), columns.clone()])
            }
            (Some([b, s, h, _, d]), _) => Some(vec![b.clone(), s.clone(), h.mul(d)]),
            _ => None,
        };
        let present = |i: usize, past: usize| {
            let (b, s, d) = match (ctx.dims(0), ctx.dims(i)) {
                (_, Some([b, s, columns])) => (b.clone(), s.clone(), columns.div(&heads)),
                (_, Some([b, h, s, d])) if ctx.input(past).is_none() => {
                    return Some(vec![b.clone(), h.clone(), s.clone(), d.clone()]);
                }
                (Some([b, s, _, _, d]), None) => (b.clone(), s.clone(), d.clone()),
                _ => return None,
            };
            let s = match (ctx.input(past), ctx.dims(past)) {
                (None, _) => s,
                (Some(_), Some([_, _, p, _])) => p.add(&s),
                _ => SymDim::Unknown,
            };
            Some(vec![b, heads.clone(), s, d])
        };
        let (key, value) = (present(1, 6), present(2, 7));
        ctx.set(0, ctx.elem(0), y);
        ctx.set(1, ctx.elem(0), key);
        ctx.set(2, ctx.elem(0), value);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, |ctx, args| multi_head(ctx, &args))),
    role: ROLE,
};

fn multi_head(ctx: &EvalCtx<'_>, args: &Args) -> Result<Vec<Tensor>, OpError> {
    if args.get(8).is_some() || args.get(9).is_some() {
        return Err(OpError::Unsupported("a cache shared with the output".to_owned()));
    }
    if 3 < ctx.node.outputs.len() {
        return Err(OpError::Unsupported("the output `qk`".to_owned()));
    }
    let heads = attr::size(ctx.node, "num_heads", 0)?;
    let query = args.required(0)?;
    let (key, value) = (args.get(1), args.get(2));
    let bias = args.get(3).map(elements::<f32>).transpose()?;
    let refused = || {
        OpError::Invalid(format!(
            "{heads} heads of a query of {:?}, keys of {:?} and values of {:?}",
            query.dims(),
            key.map(Tensor::dims),
            value.map(Tensor::dims)
        ))
    };
    let need_bias = |n: usize| match &bias {
        Some(bias) if bias.len() < n => {
            Err(OpError::Invalid(format!("a bias of {} elements where {n} are needed", bias.len())))
        }
        _ => Ok(()),
    };
    // The columns of the bias for the input whose first is `from`.
    let own_bias = |from: usize| bias.as_deref().map(|bias| &bias[from..]);
    let plain = |x: &Tensor, from: usize| match *x.dims() {
        [b, s, columns] if heads != 0 && columns % heads == 0 => {
            need_bias(from + columns)?;
            let values = elements::<f32>(x)?;
            Ok(Rows::split(&values, [b, s, columns], 0, [heads, columns / heads], own_bias(from)))
        }
        _ => Err(refused()),
    };
    // Input `i` of `n` that lie side by side in each head.
    let packed = |x: &Tensor, i: usize, n: usize, first: usize| match *x.dims() {
        [b, s, h, parts, d] if h == heads && parts == n => {
            need_bias((first + n) * heads * d)?;
            let values = elements::<f32>(x)?;
            let mut rows = Vec::with_capacity(b * h * s * d);
            for (b, head, s) in (0..b * h * s).map(|at| (at / (h * s), at / s % h, at % s)) {
                let from = (((b * x.dims()[1] + s) * h + head) * n + i) * d;
                let row = &values[from..][..d];
                match own_bias((first + i) * heads * d + head * d) {
                    Some(bias) => rows.extend(row.iter().zip(bias).map(|(x, b)| x + b)),
                    None => rows.extend_from_slice(row),
                }
            }
            Ok(Rows { data: rows, batch: b, heads, len: s, size: d })
        }
        _ => Err(refused()),
    };
    let (q, mut k, mut v) = match (key, value) {
        (None, None) => (packed(query, 0, 3, 0)?, packed(query, 1, 3, 0)?, packed(query, 2, 3, 0)?),
        (Some(key), None) => (plain(query, 0)?, packed(key, 0, 2, 1)?, packed(key, 1, 2, 1)?),
        (Some(key), Some(value)) => {
            let q = plain(query, 0)?;
            let columns = heads * q.size;
            match key.dims().len() {
                // Keys and values of another sequence, with the bias in them already.
                4 => (q, Rows::of(key)?, Rows::of(value)?),
                _ => (q, plain(key, columns)?, plain(value, 2 * columns)?),
            }
        }
        (None, Some(_)) => return Err(OpError::MissingInput(1)),
    };
    let mut before = 0;
    if let (Some(past_key), Some(past_value)) = (args.get(6), args.get(7)) {
        let past_key = Rows::of(past_key)?;
        before = past_key.len;
        (k, v) = (k.after(&past_key)?, v.after(&Rows::of(past_value)?)?);
    }
    let full = [q.batch, heads, q.len, k.len];
    let mask = args.get(4).map(|m| Mask::new(ctx, m, [q.batch, q.len, k.len])).transpose()?;
    let is_causal = attr::flag(ctx.node, "unidirectional", false)?;
    let masks = Masks {
        mask,
        bias: args.get(5).map(|bias| Bias::new(bias, full)).transpose()?,
        causal: is_causal.then_some(before),
    };
    let scores = Scores {
        scale: score_scale(ctx, q.size)?,
        softcap: 0.0,
        mask: &|at, row| masks.add(at, row),
        sinks: None,
    };
    Ok(vec![attend(ctx, &q, &k, &v, &scores)?, k.tensor()?, v.tensor()?])
}

/// `com.microsoft` GroupQueryAttention: fewer heads of keys than of queries, over a cache, always causal.
pub(crate) static GROUP_QUERY_ATTENTION: OpDef = OpDef {
    op_type: "GroupQueryAttention",
    domain: DOMAIN,
    versions: &[1],
    attrs: &[
        "do_rotary",
        "k_norm_epsilon",
        "k_quant_type",
        "kv_num_heads",
        "local_window_size",
        "num_heads",
        "q_norm_epsilon",
        "qk_norm_epsilon",
        "qk_output",
        "rotary_interleaved",
        "scale",
        "smooth_softmax",
        "softcap",
        "v_quant_type",
    ],
    infer: |ctx| {
        let heads = SymDim::known(attr::int(ctx.node, "num_heads", 0)?);
        let kv_heads = SymDim::known(attr::int(ctx.node, "kv_num_heads", 0)?);
        let size = match (ctx.dims(0), ctx.input(1)) {
            (Some([_, _, columns]), Some(_)) => columns.div(&heads),
            (Some([_, _, columns]), None) => {
                columns.div(&heads.add(&kv_heads.mul(&SymDim::known(2))))
            }
            _ => SymDim::Unknown,
        };
        let total = match (ctx.value(6).as_deref(), ctx.input(3), ctx.dims(3)) {
            (Some([total]), None, _) => total.clone(),
            (Some([total]), Some(_), Some([_, _, past, _])) => {
                match (total.as_known(), past.as_known()) {
                    (Some(total), Some(past)) => SymDim::known(total.max(past)),
                    _ => SymDim::Unknown,
                }
            }
            _ => SymDim::Unknown,
        };
        let y = match ctx.dims(0) {
            Some([b, s, _]) => Some(vec![b.clone(), s.clone(), heads.mul(&size)]),
            _ => None,
        };
        let present = ctx.dims(0).map(|dims| vec![dims[0].clone(), kv_heads, total, size]);
        ctx.set(0, ctx.elem(0), y);
        ctx.set(1, ctx.elem(0), present.clone());
        ctx.set(2, ctx.elem(0), present);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, |ctx, args| group_query(ctx, &args))),
    role: ROLE,
};

/// Each head's vector divided by its root mean square, times a weight for each element.
fn normalize_heads(rows: &mut Rows, weight: &Tensor, eps: f32) -> Result<(), OpError> {
    let weight = elements::<f32>(weight)?;
    if weight.len() != rows.size {
        return Err(OpError::Invalid(format!(
            "{} weights for heads of {}",
            weight.len(),
            rows.size
        )));
    }
    for row in rows.data.chunks_exact_mut(rows.size.max(1)) {
        let square = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / weight.len() as f64;
        let inv = (1.0 / (square + f64::from(eps)).sqrt()) as f32;
        row.iter_mut().zip(&*weight).for_each(|(x, w)| *x = *x * inv * w);
    }
    Ok(())
}

fn group_query(ctx: &EvalCtx<'_>, args: &Args) -> Result<Vec<Tensor>, OpError> {
    refuse(ctx, &["qk_output"])?;
    for name in ["k_quant_type", "v_quant_type"] {
        if attr::string(ctx.node, name, "NONE")? != "NONE" {
            return Err(OpError::Unsupported(format!("`{name}`")));
        }
    }
    if args.get(16).is_some() {
        return Err(OpError::Unsupported("`query_seqlens`".to_owned()));
    }
    let (heads, kv_heads) =
        (attr::size(ctx.node, "num_heads", 0)?, attr::size(ctx.node, "kv_num_heads", 0)?);
    let query = args.required(0)?;
    let refused =
        || OpError::Invalid(format!("{heads} over {kv_heads} heads of {:?}", query.dims()));
    let &[batch, len, columns] = query.dims() else { return Err(refused()) };
    let values = elements::<f32>(query)?;
    let n_heads = if args.get(1).is_some() { heads } else { heads + 2 * kv_heads };
    if heads == 0 || kv_heads == 0 || columns % n_heads != 0 {
        return Err(refused());
    }
    let size = columns / n_heads;
    let part = |from: usize, n: usize| {
        Rows::split(&values, [batch, len, columns], from * size, [n, size], None)
    };
    let other = |i: usize| -> Result<Rows, OpError> {
        let x = args.required(i)?;
        if x.dims() != [batch, len, kv_heads * size] {
            return Err(refused());
        }
        let dims = [batch, len, kv_heads * size];
        Ok(Rows::split(&elements::<f32>(x)?, dims, 0, [kv_heads, size], None))
    };
    let (mut q, mut k, v) = match args.get(1) {
        Some(_) => (part(0, heads), other(1)?, other(2)?),
        None => (part(0, heads), part(heads, kv_heads), part(heads + kv_heads, kv_heads)),
    };
    let lens = indices(args.required(5)?)?;
    let total = match indices(args.required(6)?)?[..] {
        [total] => usize::try_from(total).map_err(|_| refused())?,
        _ => return Err(refused()),
    };
    let ends = lens.iter().map(|&n| n.checked_add(1).and_then(|n| usize::try_from(n).ok()));
    let ends: Vec<usize> = ends.collect::<Option<_>>().ok_or_else(refused)?;
    // A prompt starts an empty cache; its positions past a batch's end are filled up.
    let is_prompt = len == total;
    if ends.len() != batch || ends.iter().any(|&end| total < end || !is_prompt && end < len) {
        return Err(OpError::Invalid(format!("lengths {lens:?} of {total} positions")));
    }
    let before = |b: usize| if is_prompt { 0 } else { ends[b] - len };
    let eps = attr::float(ctx.node, "qk_norm_epsilon", 1e-6)?;
    if let (Some(q_weight), Some(k_weight)) = (args.get(14), args.get(15)) {
        normalize_heads(&mut q, q_weight, attr::float(ctx.node, "q_norm_epsilon", eps)?)?;
        normalize_heads(&mut k, k_weight, attr::float(ctx.node, "k_norm_epsilon", eps)?)?;
    }
    if attr::flag(ctx.node, "do_rotary", false)? {
        let (cos, sin) = (args.required(7)?, args.required(8)?);
        let interleaved = attr::flag(ctx.node, "rotary_interleaved", false)?;
        let positions: Vec<i64> = match args.get(9) {
            Some(ids) => indices(ids)?,
            None => (0..batch * len).map(|i| (before(i / len) + i % len) as i64).collect(),
        };
        if positions.len() != batch * len {
            return Err(OpError::Invalid(format!("{} positions", positions.len())));
        }
        for rows in [&mut q, &mut k] {
            rotate(rows, &positions, cos, sin, interleaved)?;
        }
    }
    let room = args.get(3).and_then(|past| past.dims().get(2).copied()).unwrap_or(0).max(total);
    let cached = |new: &Rows, i: usize| -> Result<Rows, OpError> {
        let past = args.get(i).map(Rows::of).transpose()?;
        let dims = vec![batch, kv_heads, room, size];
        let mut all = ctx.pool.tensor(DataType::Float, dims)?;
        let data = all.to_mut::<f32>()?;
        data.fill(0.0);
        for (at, row) in data.chunks_exact_mut((room * size).max(1)).enumerate() {
            let (b, h) = (at / kv_heads, at % kv_heads);
            if let Some(past) = &past {
                if (past.batch, past.heads, past.size) != (batch, kv_heads, size) {
                    return Err(refused());
                }
                // What lies behind is room, which is as good as empty.
                let n = before(b);
                if past.len < n {
                    return Err(refused());
                }
                row[..n * size].copy_from_slice(&past.head(b, h)[..n * size]);
            }
            let n = if is_prompt { ends[b] } else { len };
            row[before(b) * size..][..n * size].copy_from_slice(&new.head(b, h)[..n * size]);
        }
        Rows::of(&all)
    };
    let (k, v) = (cached(&k, 3)?, cached(&v, 4)?);
    let window = usize::try_from(attr::int(ctx.node, "local_window_size", -1)?).ok();
    let full = [batch, heads, len, total];
    let bias = args.get(10).map(|bias| Bias::new(bias, full)).transpose()?;
    let mask = |at: [usize; 3], row: &mut [f32]| {
        if let Some(bias) = &bias {
            bias.add(at, &mut row[..total]);
        }
        let end = (before(at[0]) + at[2] + 1).min(row.len());
        let start = window.map_or(0, |window| end.saturating_sub(window));
        row[..start].fill(f32::NEG_INFINITY);
        row[end..].fill(f32::NEG_INFINITY);
    };
    let zeros = vec![0.0; heads];
    let sinks = args.get(11).map(elements::<f32>).transpose()?;
    if sinks.as_ref().is_some_and(|sinks| sinks.len() != heads) {
        return Err(refused());
    }
    let is_smooth = attr::int(ctx.node, "smooth_softmax", 0)? == 1;
    let scores = Scores {
        scale: score_scale(ctx, size)?,
        softcap: attr::float(ctx.node, "softcap", 0.0)?,
        mask: &mask,
        sinks: sinks.as_deref().or(if is_smooth { Some(&zeros) } else { None }),
    };
    Ok(vec![attend(ctx, &q, &k, &v, &scores)?, k.tensor()?, v.tensor()?])
}

/// Rotates the heads at each position by the angles of that position.
fn rotate(
    rows: &mut Rows,
    positions: &[i64],
    cos: &Tensor,
    sin: &Tensor,
    interleaved: bool,
) -> Result<(), OpError> {
    let (&[n_rows, half], true) = (cos.dims(), cos.dims() == sin.dims()) else {
        return Err(OpError::Invalid(format!("angles of {:?} and {:?}", cos.dims(), sin.dims())));
    };
    if rows.size < 2 * half {
        return Err(OpError::Invalid(format!("{half} angles for heads of {}", rows.size)));
    }
    let positions = crate::gather::in_bounds(positions, n_rows)?;
    let (cos, sin) = (elements::<f32>(cos)?, elements::<f32>(sin)?);
    let (len, heads) = (rows.len, rows.heads);
    for (i, row) in rows.data.chunks_exact_mut(rows.size.max(1)).enumerate() {
        let at = positions[i / (heads * len) * len + i % len] * half;
        rotate_row(row, &cos[at..][..half], &sin[at..][..half], interleaved);
    }
    Ok(())
}

/// `com.microsoft` RotaryEmbedding.
pub(crate) static ROTARY_EMBEDDING: OpDef = OpDef {
    op_type: "RotaryEmbedding",
    domain: DOMAIN,
    versions: &[1],
    attrs: &["interleaved", "is_packed_batching", "num_heads", "rotary_embedding_dim", "scale"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, |ctx, args| rotary(ctx, &args))),
    role: Role::Float("its angles need float32"),
};

fn rotary(ctx: &EvalCtx<'_>, args: &Args) -> Result<Vec<Tensor>, OpError> {
    refuse(ctx, &["is_packed_batching"])?;
    let scale = attr::float(ctx.node, "scale", 1.0)?;
    if scale != 1.0 && scale != 0.0 {
        return Err(OpError::Unsupported(format!("`scale` {scale}")));
    }
    let (x, ids) = (args.required(0)?, args.required(1)?);
    let (cos, sin) = (args.required(2)?, args.required(3)?);
    let half = cos.dims().last().copied().unwrap_or(0);
    let interleaved = attr::flag(ctx.node, "interleaved", false)?;
    let refused = || OpError::Invalid(format!("{:?} with angles of {:?}", x.dims(), cos.dims()));
    let mut rows = match *x.dims() {
        [batch, len, columns] => {
            let heads = match attr::size(ctx.node, "num_heads", 0)? {
                0 if half != 0 => columns / (2 * half),
                heads => heads,
            };
            if heads == 0 || columns % heads != 0 {
                return Err(refused());
            }
            let dims = [batch, len, columns];
            Rows::split(&elements::<f32>(x)?, dims, 0, [heads, columns / heads], None)
        }
        _ => Rows::of(x)?,
    };
    let ids = indices(ids)?;
    let (batch, len) = (rows.batch, rows.len);
    let positions: Vec<i64> = match ids[..] {
        // The first position of all batches.
        [first] if batch * len != 1 => {
            (0..batch * len).map(|i| first.saturating_add((i % len) as i64)).collect()
        }
        _ if ids.len() == batch * len => ids,
        _ => return Err(refused()),
    };
    rotate(&mut rows, &positions, cos, sin, interleaved)?;
    if x.dims().len() == 4 {
        return Ok(vec![rows.tensor()?]);
    }
    // Back to heads side by side.
    let y = ctx.pool.fill::<f32>(x.dims().to_vec(), |y| {
        let columns = rows.heads * rows.size;
        for (i, row) in rows.data.chunks_exact(rows.size.max(1)).enumerate() {
            let (b, h, s) = (i / (rows.heads * len), i / len % rows.heads, i % len);
            y[(b * len + s) * columns + h * rows.size..][..rows.size].copy_from_slice(row);
        }
        Ok(())
    })?;
    Ok(vec![y])
}
