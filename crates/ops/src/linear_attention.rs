//! Operators of recurrent language models: attention without softmax, and convolutions that carry their past.

use midtread_graph::Tensor;

use crate::{
    attr,
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    sym::SymDim,
    typed::{elements, narrowed, widened},
};

/// ONNX LinearAttention 27: a state of a matrix a head, updated position by position.
///
/// `S = exp(g) * S + k (x) v` with the decay `g` of `gated` rules; `delta` rules add `beta * (v - S' k)` in place of
/// `v`. The output at each position is `scale * q' S`. The state is kept in `f32`.
pub(crate) static LINEAR_ATTENTION: OpDef = OpDef {
    op_type: "LinearAttention",
    domain: "",
    versions: &[27],
    attrs: &["chunk_size", "kv_num_heads", "q_num_heads", "scale", "update_rule"],
    infer: |ctx| {
        let heads = |name| Ok::<_, OpError>(SymDim::known(attr::int(ctx.node, name, 0)?));
        let (q_heads, kv_heads) = (heads("q_num_heads")?, heads("kv_num_heads")?);
        let (mut y, mut state) = (None, None);
        if let (Some([b, t, q]), Some([_, _, v])) = (ctx.dims(0), ctx.dims(2)) {
            let (d_k, d_v) = (q.div(&q_heads), v.div(&kv_heads));
            y = Some(vec![b.clone(), t.clone(), q_heads.mul(&d_v)]);
            state = Some(vec![b.clone(), kv_heads, d_k, d_v]);
        }
        let state_elem = if ctx.input(3).is_some() { ctx.elem(3) } else { ctx.elem(0) };
        ctx.set(0, ctx.elem(0), y);
        ctx.set(1, state_elem, state);
        Ok(())
    },
    eval: Eval::Tensors(linear_attention),
    role: Role::Float("its state needs float32"),
};

fn linear_attention(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (is_gated, is_delta) = match attr::string(ctx.node, "update_rule", "gated_delta")? {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return Err(OpError::Invalid(format!("`update_rule` is `{other}`"))),
    };
    let (query, key, value) = (args.required(0)?, args.required(1)?, args.required(2)?);
    let (n_q, n_kv) =
        (attr::size(ctx.node, "q_num_heads", 0)?, attr::size(ctx.node, "kv_num_heads", 0)?);
    let refused = |what: &str, tensor: &Tensor| {
        OpError::Invalid(format!(
            "{what} of sizes {:?} with {n_q} over {n_kv} heads",
            tensor.dims()
        ))
    };
    if n_kv == 0 || n_q == 0 || !n_q.is_multiple_of(n_kv) {
        return Err(refused("a query", query));
    }
    let packed = |what: &str, x: &Tensor, heads: usize| match *x.dims() {
        [b, t, all] if all % heads == 0 && 0 < all => Ok([b, t, all / heads]),
        _ => Err(refused(what, x)),
    };
    let [batch, length, d_k] = packed("a query", query, n_q)?;
    let [_, _, d_v] = packed("a value", value, n_kv)?;
    let state_dims = [batch, n_kv, d_k, d_v];
    let fits = key.dims() == [batch, length, n_kv * d_k]
        && value.dims()[..2] == [batch, length]
        && args.get(3).is_none_or(|past| past.dims() == state_dims);
    if !fits {
        return Err(refused("keys", key));
    }
    // Rows of an optional input: how many numbers there are for each position, if it is as the rule wants it.
    let optional = |i: usize, wanted: bool, what: &str, sizes: &[usize]| match (args.get(i), wanted)
    {
        (None, false) => Ok(None),
        (Some(x), true) => match *x.dims() {
            [b, t, n] if (b, t) == (batch, length) && sizes.contains(&n) => {
                Ok(Some((elements::<f32>(&widened(ctx, x)?)?.into_owned(), n)))
            }
            _ => Err(refused(what, x)),
        },
        (None, true) => Err(OpError::MissingInput(i)),
        (Some(x), false) => Err(refused(what, x)),
    };
    let decay = optional(4, is_gated, "a decay", &[n_kv, n_kv * d_k])?;
    let beta = optional(5, is_delta, "a rate", &[n_kv, 1])?;
    let scale = match attr::float(ctx.node, "scale", 0.0)? {
        0.0 => 1.0 / (d_k as f32).sqrt(),
        scale => scale,
    };
    let [q, k, v] = [widened(ctx, query)?, widened(ctx, key)?, widened(ctx, value)?];
    let (q, k, v) = (elements::<f32>(&q)?, elements::<f32>(&k)?, elements::<f32>(&v)?);
    let mut states = match args.get(3) {
        Some(past) => elements::<f32>(&widened(ctx, past)?)?.into_owned(),
        None => vec![0.0; batch * n_kv * d_k * d_v],
    };
    let y = ctx.pool.fill::<f32>(vec![batch, length, n_q * d_v], |y| {
        y.fill(0.0);
        let mut add = vec![0.0; d_v];
        for (i, state) in states.chunks_exact_mut((d_k * d_v).max(1)).enumerate() {
            let (b, head) = (i / n_kv, i % n_kv);
            for t in b * length..(b + 1) * length {
                let key = &k[(t * n_kv + head) * d_k..][..d_k];
                if let Some((decay, n)) = &decay {
                    for (j, row) in state.chunks_exact_mut(d_v).enumerate() {
                        let at = if *n == n_kv { head } else { head * d_k + j };
                        let factor = decay[t * n + at].exp();
                        row.iter_mut().for_each(|s| *s *= factor);
                    }
                }
                add.copy_from_slice(&v[(t * n_kv + head) * d_v..][..d_v]);
                if let Some((beta, n)) = &beta {
                    for (row, k) in state.chunks_exact(d_v).zip(key) {
                        add.iter_mut().zip(row).for_each(|(a, s)| *a -= s * k);
                    }
                    let rate = beta[t * n + if *n == 1 { 0 } else { head }];
                    add.iter_mut().for_each(|a| *a *= rate);
                }
                for (row, k) in state.chunks_exact_mut(d_v).zip(key) {
                    row.iter_mut().zip(&add).for_each(|(s, a)| *s += k * a);
                }
                let per_kv = n_q / n_kv;
                for h in head * per_kv..(head + 1) * per_kv {
                    let query = &q[(t * n_q + h) * d_k..][..d_k];
                    let out = &mut y[(t * n_q + h) * d_v..][..d_v];
                    for (row, q) in state.chunks_exact(d_v).zip(query) {
                        out.iter_mut().zip(row).for_each(|(y, s)| *y += scale * q * s);
                    }
                }
            }
        }
        Ok(())
    })?;
    let state = Tensor::from_slice(state_dims.to_vec(), &states)?;
    let state_type = args.get(3).map_or(query.dtype(), Tensor::dtype);
    Ok(vec![narrowed(ctx, &y, query.dtype())?, narrowed(ctx, &state, state_type)?])
}

/// ONNX CausalConvWithState 27: a depthwise convolution over the past, whose last entries are carried on.
pub(crate) static CAUSAL_CONV_WITH_STATE: OpDef = OpDef {
    op_type: "CausalConvWithState",
    domain: "",
    versions: &[27],
    attrs: &["activation"],
    infer: |ctx| {
        let state = match (ctx.dims(0), ctx.dims(1)) {
            (Some([b, c, _]), Some([_, _, k])) => {
                Some(vec![b.clone(), c.clone(), k.sub(&SymDim::known(1))])
            }
            _ => None,
        };
        ctx.set(0, ctx.elem(0), ctx.dims(0).map(<[_]>::to_vec));
        ctx.set(1, ctx.elem(0), state);
        Ok(())
    },
    eval: Eval::Tensors(causal_conv),
    role: Role::Float("its state was not quantized"),
};

fn causal_conv(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (x, w) = (args.required(0)?, args.required(1)?);
    let is_silu = match attr::string(ctx.node, "activation", "none")? {
        "none" => false,
        "silu" | "swish" => true,
        other => return Err(OpError::Invalid(format!("`activation` is `{other}`"))),
    };
    let (&[batch, channels, length], &[w_channels, 1, k]) = (x.dims(), w.dims()) else {
        return Err(OpError::Invalid(format!("{:?} with a kernel of {:?}", x.dims(), w.dims())));
    };
    let fits = w_channels == channels
        && 0 < k
        && args.get(2).is_none_or(|bias| bias.dims() == [channels])
        && args.get(3).is_none_or(|past| past.dims() == [batch, channels, k - 1]);
    if !fits {
        return Err(OpError::Invalid(format!(
            "{:?} with a kernel of {:?}, a bias of {:?} and a past of {:?}",
            x.dims(),
            w.dims(),
            args.get(2).map(Tensor::dims),
            args.get(3).map(Tensor::dims)
        )));
    }
    let dtype = x.dtype();
    let (wide_x, wide_w) = (widened(ctx, x)?, widened(ctx, w)?);
    let (src, w) = (elements::<f32>(&wide_x)?, elements::<f32>(&wide_w)?);
    let wide = |i: usize| -> Result<Option<Vec<f32>>, OpError> {
        let wide = args.get(i).map(|t| widened(ctx, t)).transpose()?;
        wide.map(|t| Ok(elements::<f32>(&t)?.into_owned())).transpose()
    };
    let (bias, past) = (wide(2)?, wide(3)?);
    let mut state = Vec::with_capacity(batch * channels * (k - 1));
    let y = ctx.pool.fill::<f32>(x.dims().to_vec(), |y| {
        let mut row = vec![0.0; k - 1 + length];
        for i in 0..batch * channels {
            let c = i % channels;
            if let Some(past) = &past {
                row[..k - 1].copy_from_slice(&past[i * (k - 1)..][..k - 1]);
            }
            row[k - 1..].copy_from_slice(&src[i * length..][..length]);
            let (w, bias) = (&w[c * k..][..k], bias.as_ref().map_or(0.0, |b| b[c]));
            for (t, y) in y[i * length..][..length].iter_mut().enumerate() {
                *y = row[t..].iter().zip(w).map(|(x, w)| x * w).sum::<f32>() + bias;
            }
            state.extend_from_slice(&row[length..]);
        }
        Ok(())
    })?;
    // The convolution's result is rounded to the input's type before the activation, as the specification's function is.
    let mut y = narrowed(ctx, &y, dtype)?;
    if is_silu {
        let silu = |x: f32| x / (1.0 + (-x).exp());
        y = narrowed(ctx, &crate::unary::map(ctx, widened(ctx, &y)?, silu)?, dtype)?;
    }
    let state = Tensor::from_slice(vec![batch, channels, k - 1], &state)?;
    Ok(vec![y, narrowed(ctx, &state, dtype)?])
}
