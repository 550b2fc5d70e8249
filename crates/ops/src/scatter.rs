//! Writing elements to given positions, and choosing entries by what is in them.

use std::cmp::Ordering;

use midtread_graph::{DataType, Tensor};

use crate::{
    attr,
    binary::{Number, is_nan},
    def::{Eval, InputRole, OpDef, OutputRole, Role},
    eval::{Args, EvalCtx, OpError},
    gather::{Picks, in_bounds},
    infer::{InferCtx, normalize_axis},
    norm::same_as_first,
    shape::{Move, Odometer, moved, product, strides},
    sym::SymDim,
    typed::{bools, by_type, check_type, elements, in_f32, indices},
    unary::NO_INTEGER_FORM,
};

/// ONNX ScatterElements 11, 13, 16 (`reduction`) and 18 (`max`, `min`).
pub(crate) static SCATTER_ELEMENTS: OpDef = OpDef {
    op_type: "ScatterElements",
    domain: "",
    versions: &[11, 13, 16, 18],
    attrs: &["axis", "reduction"],
    infer: same_as_first,
    eval: Eval::Tensors(scatter_elements),
    role: NO_INTEGER_FORM,
};

/// ONNX Scatter 9 and 11, the earlier name of ScatterElements.
pub(crate) static SCATTER: OpDef = OpDef {
    op_type: "Scatter",
    domain: "",
    versions: &[9, 11],
    attrs: &["axis"],
    infer: same_as_first,
    eval: Eval::Tensors(scatter_elements),
    role: NO_INTEGER_FORM,
};

/// ONNX ScatterND 11, 13, 16 (`reduction`) and 18 (`max`, `min`).
pub(crate) static SCATTER_ND: OpDef = OpDef {
    op_type: "ScatterND",
    domain: "",
    versions: &[11, 13, 16, 18],
    attrs: &["reduction"],
    infer: same_as_first,
    eval: Eval::Tensors(scatter_nd),
    role: NO_INTEGER_FORM,
};

/// ONNX TensorScatter 24: rows of a cache written in place of others.
pub(crate) static TENSOR_SCATTER: OpDef = OpDef {
    op_type: "TensorScatter",
    domain: "",
    versions: &[24],
    attrs: &["axis", "mode"],
    infer: same_as_first,
    eval: Eval::Tensors(tensor_scatter),
    role: NO_INTEGER_FORM,
};

/// Runs of `inner` elements, written one after another to the positions where they start.
struct Writes {
    starts: Vec<usize>,
    inner: usize,
}

impl Move for Writes {
    fn run<E: Clone>(&self, srcs: &[&[E]], dst: &mut [E]) -> Result<(), OpError> {
        dst.clone_from_slice(srcs[0]);
        if self.inner != 0 {
            for (&start, run) in self.starts.iter().zip(srcs[1].chunks_exact(self.inner)) {
                dst[start..start + self.inner].clone_from_slice(run);
            }
        }
        Ok(())
    }
}

/// `data` with `updates` written into it, or combined with what is there, in order.
fn written(
    ctx: &EvalCtx<'_>,
    data: &Tensor,
    updates: &Tensor,
    writes: &Writes,
) -> Result<Vec<Tensor>, OpError> {
    check_type(updates, data.dtype())?;
    let reduction = attr::string(ctx.node, "reduction", "none")?;
    if reduction == "none" {
        return Ok(vec![moved(ctx, &[data, updates], data.dims().to_vec(), writes)?]);
    }
    let args = Args(vec![Some(data.clone()), Some(updates.clone())]);
    in_f32(ctx, args, |ctx, args| {
        let (data, updates) = (args.required(0)?, args.required(1)?);
        by_type!(data.dtype(), T in [f32, f64, i8, i16, i32, i64, u8, u16, u32, u64] => {
            let f: fn(T, T) -> T = match reduction {
                "add" => Number::add,
                "mul" => Number::mul,
                "max" => |a, b| if a < b || is_nan(b) { b } else { a },
                "min" => |a, b| if b < a || is_nan(b) { b } else { a },
                other => return Err(OpError::Unsupported(format!("`reduction` {other}"))),
            };
            let (src, new) = (elements::<T>(data)?, elements::<T>(updates)?);
            let y = ctx.pool.fill::<T>(data.dims().to_vec(), |y| {
                y.copy_from_slice(&src);
                for (&start, run) in writes.starts.iter().zip(new.chunks_exact(writes.inner.max(1))) {
                    for (y, &new) in y[start..].iter_mut().zip(run) {
                        *y = f(*y, new);
                    }
                }
                Ok(())
            })?;
            Ok(vec![y])
        })
    })
}

fn scatter_elements(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (data, at, updates) = (args.required(0)?, args.required(1)?, args.required(2)?);
    let axis = normalize_axis(attr::int(ctx.node, "axis", 0)?, data.dims().len())?;
    let fits = |(d, (&n, &a)): (usize, (&usize, &usize))| d == axis || a <= n;
    if updates.dims() != at.dims()
        || at.dims().len() != data.dims().len()
        || !data.dims().iter().zip(at.dims()).enumerate().all(fits)
    {
        let (data, at, updates) = (data.dims(), at.dims(), updates.dims());
        return Err(OpError::Invalid(format!("updates {updates:?} at {at:?} of {data:?}")));
    }
    let positions = in_bounds(&indices(at)?, data.dims()[axis])?;
    let own = strides(data.dims());
    let across: Vec<isize> =
        own.iter().enumerate().map(|(i, &s)| if i == axis { 0 } else { s as isize }).collect();
    let mut odometer = Odometer::new(at.dims(), &[&across]);
    let starts = positions.into_iter().map(|p| {
        let at = odometer.offsets[0] as usize + p * own[axis];
        odometer.advance();
        at
    });
    written(ctx, data, updates, &Writes { starts: starts.collect(), inner: 1 })
}

fn scatter_nd(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (data, at, updates) = (args.required(0)?, args.required(1)?, args.required(2)?);
    let refused = || {
        let (data, at, updates) = (data.dims(), at.dims(), updates.dims());
        OpError::Invalid(format!("updates {updates:?} at {at:?} of {data:?}"))
    };
    let (&depth, head) = at.dims().split_last().ok_or_else(refused)?;
    let rest = data.dims().get(depth..).ok_or_else(refused)?;
    if updates.dims() != [head, rest].concat() {
        return Err(refused());
    }
    let own = strides(data.dims());
    let positions = indices(at)?;
    let starts = (0..product(head)).map(|i| {
        let index = &positions[i * depth..(i + 1) * depth];
        index
            .iter()
            .enumerate()
            .try_fold(0, |start, (d, &j)| Ok(start + in_bounds(&[j], data.dims()[d])?[0] * own[d]))
    });
    let starts = starts.collect::<Result<_, OpError>>()?;
    written(ctx, data, updates, &Writes { starts, inner: product(rest) })
}

fn tensor_scatter(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (cache, update) = (args.required(0)?, args.required(1)?);
    let (rank, refused) = (cache.dims().len(), || {
        OpError::Invalid(format!("an update of {:?} in {:?}", update.dims(), cache.dims()))
    });
    let axis = normalize_axis(attr::int(ctx.node, "axis", -2)?, rank)?;
    let circular = match attr::string(ctx.node, "mode", "linear")? {
        "linear" => false,
        "circular" => true,
        other => return Err(OpError::Invalid(format!("`mode` is {other:?}"))),
    };
    if axis == 0
        || update.dims().len() != rank
        || (0..rank).any(|d| d != axis && update.dims()[d] != cache.dims()[d])
    {
        return Err(refused());
    }
    let (batch, max, n) = (cache.dims()[0], cache.dims()[axis], update.dims()[axis]);
    let from = match args.get(2) {
        Some(at) => in_bounds(&indices(at)?, max.max(1))?,
        None => vec![0; batch],
    };
    if from.len() != batch || max < n || !circular && from.iter().any(|at| max < at + n) {
        return Err(refused());
    }
    let inner = product(&cache.dims()[axis + 1..]);
    let outer = product(&cache.dims()[1..axis]);
    let mut starts = Vec::with_capacity(batch * outer * n);
    for (b, from) in from.iter().enumerate() {
        for o in 0..outer {
            let first = (b * outer + o) * max;
            starts.extend((0..n).map(|i| (first + (from + i) % max) * inner));
        }
    }
    written(ctx, cache, update, &Writes { starts, inner })
}

/// ONNX Compress 9 and 11: the entries of which a `bool` says so.
pub(crate) static COMPRESS: OpDef = OpDef {
    op_type: "Compress",
    domain: "",
    versions: &[9, 11],
    attrs: &["axis"],
    infer: |ctx| {
        let n = ctx.fresh_symbol();
        let dims = along(ctx, |dims, axis| dims[axis] = n.clone())?
            .or_else(|| ctx.node.attr("axis").is_none().then(|| vec![n.clone()]));
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        let (x, wanted) = (args.required(0)?, bools(args.required(1)?)?);
        let (dims, n, inner, axis) = entries(ctx, x)?;
        if n < wanted.len() {
            return Err(OpError::Invalid(format!("{} conditions for {n} entries", wanted.len())));
        }
        let at: Vec<usize> = (0..wanted.len()).filter(|&i| wanted[i] != 0).collect();
        Ok(vec![chosen(ctx, x, dims, axis, inner, &at)?])
    }),
    role: Role::Quantized {
        inputs: &[InputRole::Activation, InputRole::Parameter],
        output: OutputRole::SameAs(0),
    },
};

/// The sizes of the first input changed at `axis`, where both are known and the node has one.
fn along(
    ctx: &InferCtx<'_>,
    change: impl Fn(&mut Vec<SymDim>, usize),
) -> Result<Option<Vec<SymDim>>, OpError> {
    let (Some(axis), Some(dims)) = (attr::opt_int(ctx.node, "axis")?, ctx.dims(0)) else {
        return Ok(None);
    };
    let mut dims = dims.to_vec();
    let axis = normalize_axis(axis, dims.len())?;
    change(&mut dims, axis);
    Ok(Some(dims))
}

/// The tensor as entries along the node's `axis`, or without one, as elements in a row: sizes, how many entries,
/// elements in a run of each, and the axis.
fn entries(ctx: &EvalCtx<'_>, x: &Tensor) -> Result<(Vec<usize>, usize, usize, usize), OpError> {
    let dims = match attr::opt_int(ctx.node, "axis")? {
        Some(_) => x.dims().to_vec(),
        None => vec![x.len()],
    };
    let axis = normalize_axis(attr::int(ctx.node, "axis", 0)?, dims.len())?;
    let (n, inner) = (dims[axis], product(&dims[axis + 1..]));
    Ok((dims, n, inner, axis))
}

/// The entries `at` along `axis`.
fn chosen(
    ctx: &EvalCtx<'_>,
    x: &Tensor,
    mut dims: Vec<usize>,
    axis: usize,
    inner: usize,
    at: &[usize],
) -> Result<Tensor, OpError> {
    let n = dims[axis];
    dims[axis] = at.len();
    let outer = product(&dims[..axis]);
    let mut picks = Vec::with_capacity(outer * at.len() * inner);
    for o in 0..outer {
        for &i in at {
            picks.extend((o * n + i) * inner..(o * n + i + 1) * inner);
        }
    }
    moved(ctx, &[x], dims, &Picks(picks))
}

/// ONNX Unique 11.
pub(crate) static UNIQUE: OpDef = OpDef {
    op_type: "Unique",
    domain: "",
    versions: &[11],
    attrs: &["axis", "sorted"],
    infer: |ctx| {
        let n = ctx.fresh_symbol();
        let dims = along(ctx, |dims, axis| dims[axis] = n.clone())?
            .or_else(|| ctx.node.attr("axis").is_none().then(|| vec![n.clone()]));
        ctx.set(0, ctx.elem(0), dims);
        for i in [1, 3] {
            ctx.set(i, Some(DataType::Int64), Some(vec![n.clone()]));
        }
        ctx.set(2, Some(DataType::Int64), Some(vec![SymDim::Unknown]));
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, unique)),
    role: Role::Structural,
};

fn unique(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    if x.dtype() == midtread_graph::DataType::Bool {
        let bytes = x.with_dtype(midtread_graph::DataType::Uint8)?;
        let mut outputs = unique(ctx, Args(vec![Some(bytes)]))?;
        outputs[0] = outputs[0].with_dtype(x.dtype())?;
        return Ok(outputs);
    }
    let (dims, n, inner, axis) = entries(ctx, x)?;
    let len = x.len() / n.max(1);
    let position = |i: usize, k: usize| (k / inner * n + i) * inner + k % inner;
    let mut order: Vec<usize> = (0..n).collect();
    // What is the same as the entry before it in this order.
    let same: Vec<bool> = if let Some(strings) = x.as_strings() {
        let compare = |a: usize, b: usize| {
            (0..len)
                .map(|k| strings[position(a, k)].cmp(&strings[position(b, k)]))
                .find(|o| o.is_ne())
                .unwrap_or(Ordering::Equal)
        };
        order.sort_by(|&a, &b| compare(a, b));
        order.windows(2).map(|w| compare(w[0], w[1]).is_eq()).collect()
    } else {
        by_type!(x.dtype(), T in [f32, f64, i8, i16, i32, i64, u8, u16, u32, u64] => {
            let src = elements::<T>(x)?;
            // NaN comes last, and is one.
            let one = |a: T, b: T| {
                a.partial_cmp(&b).unwrap_or_else(|| is_nan(a).cmp(&is_nan(b)))
            };
            let compare = |a: usize, b: usize| {
                (0..len).map(|k| one(src[position(a, k)], src[position(b, k)]))
                    .find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
            };
            order.sort_by(|&a, &b| compare(a, b));
            Ok(order.windows(2).map(|w| compare(w[0], w[1]).is_eq()).collect())
        })?
    };
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, &entry) in order.iter().enumerate() {
        match groups.last_mut() {
            Some(group) if same[i - 1] => group.push(entry),
            _ => groups.push(vec![entry]),
        }
    }
    if !attr::flag(ctx.node, "sorted", true)? {
        groups.sort_by_key(|group| group[0]);
    }
    let first: Vec<usize> = groups.iter().map(|group| group[0]).collect();
    let mut inverse = vec![0_i64; n];
    for (i, group) in groups.iter().enumerate() {
        group.iter().for_each(|&entry| inverse[entry] = i as i64);
    }
    let firsts: Vec<i64> = first.iter().map(|&i| i as i64).collect();
    let counts: Vec<i64> = groups.iter().map(|group| group.len() as i64).collect();
    let y = chosen(ctx, x, dims, axis, inner, &first)?;
    Ok(vec![y, Tensor::vector(&firsts), Tensor::vector(&inverse), Tensor::vector(&counts)])
}
