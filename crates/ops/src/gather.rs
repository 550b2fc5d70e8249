//! Operators that pick, join and cut: Gather, Concat, Split, Slice, Pad, OneHot, NonZero, ...

use midtread_graph::{DataType, Tensor};

use crate::{
    attr,
    def::{Eval, InputRole, OpDef, OutputRole, Role},
    eval::{Args, EvalCtx, OpError},
    infer::{InferCtx, normalize_axis},
    layout::MOVES,
    norm::same_as_first,
    shape::{Move, Odometer, View, blank, known, moved, normalize_axes, product, strides},
    sym::SymDim,
    typed::indices,
};

/// Entries of `data` along an axis. ONNX Gather 1, 11 and 13.
pub(crate) static GATHER: OpDef = OpDef {
    op_type: "Gather",
    domain: "",
    versions: &[1, 11, 13],
    attrs: &["axis"],
    infer: infer_gather,
    eval: Eval::Tensors(gather),
    role: Role::Quantized {
        // A table of embeddings is a weight.
        inputs: &[InputRole::Weight { channel_axis: |_, _| None }, InputRole::Parameter],
        output: OutputRole::SameAs(0),
    },
};

fn infer_gather(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let axis = attr::int(ctx.node, "axis", 0)?;
    let dims = match (ctx.dims(0), ctx.dims(1)) {
        (Some(data), Some(at)) => {
            let axis = normalize_axis(axis, data.len())?;
            Some([&data[..axis], at, &data[axis + 1..]].concat())
        }
        _ => None,
    };
    ctx.set(0, ctx.elem(0), dims);
    if ctx.rank(0) == Some(1)
        && ctx.rank(1).is_some_and(|r| r <= 1)
        && let (Some(data), Some(at)) = (ctx.value(0), ctx.known_value(1))
    {
        let n = data.len() as i64;
        let pick = |i: &i64| {
            let i = if *i < 0 { i + n } else { *i };
            usize::try_from(i).ok().and_then(|i| data.get(i)).cloned()
        };
        ctx.set_value(0, at.iter().map(pick).collect());
    }
    Ok(())
}

fn gather(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    struct Rows {
        at: Vec<usize>,
        /// Entries along the axis, and elements of one entry.
        n: usize,
        inner: usize,
    }
    impl Move for Rows {
        fn run<E: Clone>(&self, srcs: &[&[E]], dst: &mut [E]) -> Result<(), OpError> {
            if dst.is_empty() {
                return Ok(());
            }
            let blocks = srcs[0].chunks_exact(self.n * self.inner);
            for (src, dst) in blocks.zip(dst.chunks_exact_mut(self.at.len() * self.inner)) {
                for (&at, dst) in self.at.iter().zip(dst.chunks_exact_mut(self.inner)) {
                    dst.clone_from_slice(&src[at * self.inner..][..self.inner]);
                }
            }
            Ok(())
        }
    }
    let (data, at) = (args.required(0)?, args.required(1)?);
    let axis = normalize_axis(attr::int(ctx.node, "axis", 0)?, data.dims().len())?;
    let n = data.dims()[axis];
    let dims = [&data.dims()[..axis], at.dims(), &data.dims()[axis + 1..]].concat();
    let how =
        Rows { at: in_bounds(&indices(at)?, n)?, n, inner: product(&data.dims()[axis + 1..]) };
    Ok(vec![moved(ctx, &[data], dims, &how)?])
}

/// Indices counted from the front, each below `n`.
pub(crate) fn in_bounds(at: &[i64], n: usize) -> Result<Vec<usize>, OpError> {
    let len = n as i64;
    at.iter()
        .map(|&i| {
            let from_front = if i < 0 { i + len } else { i };
            (0..len)
                .contains(&from_front)
                .then_some(from_front as usize)
                .ok_or_else(|| OpError::Invalid(format!("index {i} of {n} entries")))
        })
        .collect()
}

/// ONNX GatherElements 11 and 13.
pub(crate) static GATHER_ELEMENTS: OpDef = OpDef {
    op_type: "GatherElements",
    domain: "",
    versions: &[11, 13],
    attrs: &["axis"],
    infer: |ctx| {
        ctx.set(0, ctx.elem(0), ctx.dims(1).map(<[_]>::to_vec));
        Ok(())
    },
    eval: Eval::Tensors(gather_elements),
    role: Role::Quantized {
        inputs: &[InputRole::Weight { channel_axis: |_, _| None }, InputRole::Parameter],
        output: OutputRole::SameAs(0),
    },
};

/// Elements from given positions.
pub(crate) struct Picks(pub(crate) Vec<usize>);

impl Move for Picks {
    fn run<E: Clone>(&self, srcs: &[&[E]], dst: &mut [E]) -> Result<(), OpError> {
        for (d, &at) in dst.iter_mut().zip(&self.0) {
            *d = srcs[0][at].clone();
        }
        Ok(())
    }
}

fn gather_elements(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (data, at) = (args.required(0)?, args.required(1)?);
    let axis = normalize_axis(attr::int(ctx.node, "axis", 0)?, data.dims().len())?;
    let fits = |(i, (&d, &a)): (usize, (&usize, &usize))| i == axis || a <= d;
    if data.dims().len() != at.dims().len()
        || !data.dims().iter().zip(at.dims()).enumerate().all(fits)
    {
        return Err(OpError::Invalid(format!(
            "indices of sizes {:?} into {:?}",
            at.dims(),
            data.dims()
        )));
    }
    let positions = in_bounds(&indices(at)?, data.dims()[axis])?;
    let own = strides(data.dims());
    let across: Vec<isize> =
        own.iter().enumerate().map(|(i, &s)| if i == axis { 0 } else { s as isize }).collect();
    let mut odometer = Odometer::new(at.dims(), &[&across]);
    let picks = positions.into_iter().map(|p| {
        let at = odometer.offsets[0] as usize + p * own[axis];
        odometer.advance();
        at
    });
    Ok(vec![moved(ctx, &[data], at.dims().to_vec(), &Picks(picks.collect()))?])
}

/// ONNX GatherND 11, 12 (`batch_dims`) and 13.
pub(crate) static GATHER_ND: OpDef = OpDef {
    op_type: "GatherND",
    domain: "",
    versions: &[11, 12, 13],
    attrs: &["batch_dims"],
    infer: |ctx| {
        let batch = attr::size(ctx.node, "batch_dims", 0)?;
        let dims = match (ctx.dims(0), ctx.dims(1)) {
            (Some(data), Some([head @ .., depth])) => depth
                .as_known()
                .and_then(|d| data.get(batch + d as usize..))
                .map(|rest| [head, rest].concat()),
            _ => None,
        };
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(gather_nd),
    role: MOVES,
};

fn gather_nd(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    struct Slices {
        starts: Vec<usize>,
        inner: usize,
    }
    impl Move for Slices {
        fn run<E: Clone>(&self, srcs: &[&[E]], dst: &mut [E]) -> Result<(), OpError> {
            for (&start, dst) in self.starts.iter().zip(dst.chunks_exact_mut(self.inner.max(1))) {
                dst.clone_from_slice(&srcs[0][start..start + self.inner]);
            }
            Ok(())
        }
    }
    let (data, at) = (args.required(0)?, args.required(1)?);
    let batch = attr::size(ctx.node, "batch_dims", 0)?;
    let refused = || {
        OpError::Invalid(format!(
            "indices of sizes {:?} into {:?} with {batch} batches",
            at.dims(),
            data.dims()
        ))
    };
    let (&depth, head) = at.dims().split_last().ok_or_else(refused)?;
    let rest = data.dims().get(batch + depth..).ok_or_else(refused)?;
    if head.len() < batch || head[..batch] != data.dims()[..batch] {
        return Err(refused());
    }
    let own = strides(data.dims());
    let per_batch = product(&data.dims()[batch..]);
    let n_per_batch = product(&head[batch..]);
    let mut starts = Vec::with_capacity(product(head));
    for (i, index) in indices(at)?.chunks(depth.max(1)).take(product(head)).enumerate() {
        let mut start = i / n_per_batch.max(1) * per_batch;
        for (d, &j) in index.iter().take(depth).enumerate() {
            start += in_bounds(&[j], data.dims()[batch + d])?[0] * own[batch + d];
        }
        starts.push(start);
    }
    let how = Slices { starts, inner: product(rest) };
    Ok(vec![moved(ctx, &[data], [head, rest].concat(), &how)?])
}

/// ONNX Concat 4, 11 and 13.
pub(crate) static CONCAT: OpDef = OpDef {
    op_type: "Concat",
    domain: "",
    versions: &[4, 11, 13],
    attrs: &["axis"],
    infer: infer_concat,
    eval: Eval::Tensors(concat),
    role: Role::Quantized { inputs: &[InputRole::Activation], output: OutputRole::AllSame },
};

fn concat_axis(node: &midtread_graph::Node, rank: usize) -> Result<usize, OpError> {
    let axis = attr::opt_int(node, "axis")?.ok_or(OpError::MissingAttr("axis"))?;
    normalize_axis(axis, rank)
}

/// The sizes of the joined tensor; `None` without inputs.
pub(crate) fn concat_dims(
    node: &midtread_graph::Node,
    all: &[&[SymDim]],
) -> Result<Option<Vec<SymDim>>, OpError> {
    let Some(first) = all.first() else { return Ok(None) };
    let axis = concat_axis(node, first.len())?;
    if all.iter().any(|d| d.len() != first.len()) {
        return Err(OpError::Invalid("inputs have different numbers of dimensions".to_owned()));
    }
    let along = |d: usize| {
        if d == axis {
            return all.iter().fold(SymDim::known(0), |sum, dims| sum.add(&dims[d]));
        }
        // Equal in every input; the one that is known best.
        let best = all.iter().find(|dims| dims[d].as_known().is_some());
        let best = best.or_else(|| all.iter().find(|dims| dims[d] != SymDim::Unknown));
        best.map_or(SymDim::Unknown, |dims| dims[d].clone())
    };
    Ok(Some((0..first.len()).map(along).collect()))
}

fn infer_concat(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let all: Option<Vec<&[SymDim]>> = (0..ctx.n_inputs()).map(|i| ctx.dims(i)).collect();
    let dims = match all {
        Some(all) => concat_dims(ctx.node, &all)?,
        None => None,
    };
    ctx.set(0, ctx.elem(0), dims);
    if (0..ctx.n_inputs()).all(|i| ctx.rank(i) == Some(1)) {
        let values: Option<Vec<Vec<SymDim>>> = (0..ctx.n_inputs()).map(|i| ctx.value(i)).collect();
        ctx.set_value(0, values.map(|v| v.concat()));
    }
    Ok(())
}

pub(crate) fn concat(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let srcs: Vec<&Tensor> = (0..args.len()).map(|i| args.required(i)).collect::<Result<_, _>>()?;
    let first = srcs.first().ok_or(OpError::MissingInput(0))?;
    let axis = concat_axis(ctx.node, first.dims().len())?;
    Ok(vec![joined(ctx, &srcs, axis)?])
}

/// At least one tensor, joined along an axis.
pub(crate) fn joined(ctx: &EvalCtx<'_>, srcs: &[&Tensor], axis: usize) -> Result<Tensor, OpError> {
    struct Join {
        /// Elements of each source between two steps of the dimensions before the axis.
        runs: Vec<usize>,
    }
    impl Move for Join {
        fn run<E: Clone>(&self, srcs: &[&[E]], dst: &mut [E]) -> Result<(), OpError> {
            let step: usize = self.runs.iter().sum();
            if step == 0 {
                return Ok(());
            }
            for (i, mut dst) in dst.chunks_exact_mut(step).enumerate() {
                for (src, &run) in srcs.iter().zip(&self.runs) {
                    let (own, rest) = dst.split_at_mut(run);
                    own.clone_from_slice(&src[i * run..][..run]);
                    dst = rest;
                }
            }
            Ok(())
        }
    }
    let first = srcs[0].dims();
    let same = |t: &&Tensor| {
        t.dims().len() == first.len()
            && (0..first.len()).all(|d| d == axis || t.dims()[d] == first[d])
    };
    if let Some(other) = srcs.iter().copied().find(|t| !same(t)) {
        return Err(OpError::Invalid(format!(
            "sizes {first:?} and {:?} along axis {axis}",
            other.dims()
        )));
    }
    let mut dims = first.to_vec();
    dims[axis] = srcs.iter().map(|t| t.dims()[axis]).sum();
    let how = Join { runs: srcs.iter().map(|t| product(&t.dims()[axis..])).collect() };
    moved(ctx, srcs, dims, &how)
}

/// Tensors of equal sizes, joined along a new axis.
pub(crate) fn stacked(ctx: &EvalCtx<'_>, srcs: &[Tensor], axis: usize) -> Result<Tensor, OpError> {
    if let Some(short) = srcs.iter().find(|t| t.dims().len() < axis) {
        return Err(OpError::Invalid(format!("sizes {:?} and a new axis {axis}", short.dims())));
    }
    let widened = srcs.iter().map(|t| {
        let mut dims = t.dims().to_vec();
        dims.insert(axis, 1);
        Ok(t.reshaped(dims)?)
    });
    let widened = widened.collect::<Result<Vec<_>, OpError>>()?;
    joined(ctx, &widened.iter().collect::<Vec<_>>(), axis)
}

/// `n` entries along an axis, from `start`.
pub(crate) fn part(
    ctx: &EvalCtx<'_>,
    x: &Tensor,
    axis: usize,
    start: usize,
    n: usize,
) -> Result<Tensor, OpError> {
    let own: Vec<isize> = strides(x.dims()).iter().map(|&s| s as isize).collect();
    let mut dims = x.dims().to_vec();
    dims[axis] = n;
    let offset = start * own[axis] as usize;
    moved(ctx, &[x], dims.clone(), &View { dims, strides: own, offset })
}

/// Entry `i` along an axis, without the axis.
pub(crate) fn entry(
    ctx: &EvalCtx<'_>,
    x: &Tensor,
    axis: usize,
    i: usize,
) -> Result<Tensor, OpError> {
    let one = part(ctx, x, axis, i, 1)?;
    let mut dims = one.dims().to_vec();
    dims.remove(axis);
    Ok(one.reshaped(dims)?)
}

/// ONNX Split 2, 11, 13 (sizes become an input) and 18 (`num_outputs`).
pub(crate) static SPLIT: OpDef = OpDef {
    op_type: "Split",
    domain: "",
    versions: &[2, 11, 13, 18],
    attrs: &["axis", "num_outputs", "split"],
    infer: infer_split,
    eval: Eval::Tensors(split),
    role: MOVES,
};

/// Sizes of the parts of `n` elements.
fn split_sizes(
    node: &midtread_graph::Node,
    opset: i64,
    wanted: Option<Vec<i64>>,
    n: usize,
) -> Result<Vec<usize>, OpError> {
    let parts = node.outputs.len();
    if let Some(wanted) = wanted {
        let sizes = crate::layout::to_sizes(&wanted)?;
        if crate::shape::sum(&sizes) != n || sizes.len() != parts {
            return Err(OpError::Invalid(format!(
                "{n} entries in {parts} parts of sizes {sizes:?}"
            )));
        }
        return Ok(sizes);
    }
    let even = opset < 18;
    let n_outputs = parts;
    let parts = if even { parts } else { attr::size(node, "num_outputs", parts)? };
    if n_outputs < parts {
        return Err(OpError::Invalid(format!("{parts} parts for {n_outputs} outputs")));
    }
    if parts == 0 || even && !n.is_multiple_of(parts) {
        return Err(OpError::Invalid(format!("{n} entries in {parts} equal parts")));
    }
    let size = n.div_ceil(parts);
    Ok((0..parts).map(|i| size.min(n.saturating_sub(i * size))).collect())
}

fn infer_split(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let wanted = match attr::ints(ctx.node, "split")? {
        Some(ints) => Some(Some(ints.to_vec())),
        None if ctx.input(1).is_some() => ctx.known_value(1).map(Some),
        None => Some(None),
    };
    let Some(dims) = ctx.dims(0) else {
        (0..ctx.node.outputs.len()).for_each(|i| ctx.set(i, ctx.elem(0), None));
        return Ok(());
    };
    let axis = normalize_axis(attr::int(ctx.node, "axis", 0)?, dims.len())?;
    let n = dims[axis].as_known().and_then(|n| usize::try_from(n).ok());
    let sizes = match (wanted, n) {
        (Some(Some(wanted)), None) => Some(crate::layout::to_sizes(&wanted)?),
        (Some(wanted), Some(n)) => Some(split_sizes(ctx.node, ctx.opset, wanted, n)?),
        _ => None,
    };
    for i in 0..ctx.node.outputs.len() {
        let mut part = dims.to_vec();
        part[axis] = match &sizes {
            Some(sizes) => sizes.get(i).map_or(SymDim::Unknown, |&s| SymDim::known(s as i64)),
            None => SymDim::Unknown,
        };
        ctx.set(i, ctx.elem(0), Some(part));
    }
    Ok(())
}

fn split(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let axis = normalize_axis(attr::int(ctx.node, "axis", 0)?, x.dims().len())?;
    let wanted = match args.get(1) {
        Some(sizes) => Some(indices(sizes)?),
        None => attr::ints(ctx.node, "split")?.map(<[i64]>::to_vec),
    };
    let sizes = split_sizes(ctx.node, ctx.opset, wanted, x.dims()[axis])?;
    let mut start = 0;
    let parts = sizes.into_iter().map(|size| {
        let from = start;
        start += size;
        part(ctx, x, axis, from, size)
    });
    parts.collect()
}

/// ONNX Slice 1 (bounds in attributes), 10, 11 and 13.
pub(crate) static SLICE: OpDef = OpDef {
    op_type: "Slice",
    domain: "",
    versions: &[1, 10, 11, 13],
    attrs: &["axes", "ends", "starts"],
    infer: infer_slice,
    eval: Eval::Tensors(slice),
    role: MOVES,
};

/// One axis of a Slice.
struct Cut {
    axis: usize,
    start: i64,
    end: i64,
    step: i64,
}

fn cuts(
    rank: usize,
    starts: &[i64],
    ends: &[i64],
    axes: Option<&[i64]>,
    steps: Option<&[i64]>,
) -> Result<Vec<Cut>, OpError> {
    let all: Vec<i64> = (0..starts.len() as i64).collect();
    let axes = normalize_axes(axes.unwrap_or(&all), rank)?;
    let ones = vec![1; starts.len()];
    let steps = steps.unwrap_or(&ones);
    if [ends.len(), axes.len(), steps.len()].iter().any(|&n| n != starts.len()) {
        return Err(OpError::Invalid("starts, ends, axes and steps differ in number".to_owned()));
    }
    if steps.contains(&0) {
        return Err(OpError::Invalid("a step of 0".to_owned()));
    }
    let cut = |i: usize| Cut { axis: axes[i], start: starts[i], end: ends[i], step: steps[i] };
    Ok((0..starts.len()).map(cut).collect())
}

impl Cut {
    /// The first position of `n`, and how many follow at distance `step`.
    fn over(&self, n: usize) -> (usize, usize) {
        let n = n as i64;
        let (lo, hi) = if 0 < self.step { (0, n) } else { (-1, n - 1) };
        let clamp = |i: i64| (if i < 0 { i.saturating_add(n) } else { i }).clamp(lo, hi);
        let (start, end) = (clamp(self.start), clamp(self.end));
        let distance = if 0 < self.step { end - start } else { start - end };
        let count = distance.max(0) as u64;
        (start.max(0) as usize, count.div_ceil(self.step.unsigned_abs()) as usize)
    }
}

fn slice(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let list = |i: usize, name: &'static str| -> Result<Option<Vec<i64>>, OpError> {
        if ctx.opset < 10 {
            return Ok(attr::ints(ctx.node, name)?.map(<[i64]>::to_vec));
        }
        args.get(i).map(indices).transpose()
    };
    let starts = list(1, "starts")?.ok_or(OpError::MissingInput(1))?;
    let ends = list(2, "ends")?.ok_or(OpError::MissingInput(2))?;
    let (axes, steps) = (list(3, "axes")?, list(4, "steps")?);
    let cuts = cuts(x.dims().len(), &starts, &ends, axes.as_deref(), steps.as_deref())?;
    let mut view = View {
        dims: x.dims().to_vec(),
        strides: strides(x.dims()).iter().map(|&s| s as isize).collect(),
        offset: 0,
    };
    for cut in &cuts {
        let (start, count) = cut.over(x.dims()[cut.axis]);
        view.offset += start * view.strides[cut.axis] as usize;
        view.dims[cut.axis] = count;
        view.strides[cut.axis] *= cut.step as isize;
    }
    if view.dims == x.dims() && cuts.iter().all(|c| c.step == 1) {
        return Ok(vec![x.clone()]);
    }
    Ok(vec![moved(ctx, &[x], view.dims.clone(), &view)?])
}

fn infer_slice(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let Some(dims) = ctx.dims(0) else {
        ctx.set(0, ctx.elem(0), None);
        return Ok(());
    };
    let old = ctx.opset < 10;
    let list = |i: usize, name: &'static str| -> Result<Option<Vec<SymDim>>, OpError> {
        if old {
            return Ok(
                attr::ints(ctx.node, name)?.map(|l| l.iter().map(|&i| SymDim::known(i)).collect())
            );
        }
        Ok(ctx.value(i))
    };
    let absent = |i: usize, name: &str| {
        if old { ctx.node.attr(name).is_none() } else { ctx.input(i).is_none() }
    };
    let numbers = |list: Option<Vec<SymDim>>| -> Option<Vec<i64>> {
        list?.iter().map(SymDim::as_known).collect()
    };
    let (starts, ends) = (list(1, "starts")?, list(2, "ends")?);
    let axes = numbers(list(3, "axes")?);
    let steps = numbers(list(4, "steps")?);
    let mut out = dims.to_vec();
    let known_axes = axes.is_some() || absent(3, "axes");
    let n = starts.as_ref().or(ends.as_ref()).map(Vec::len);
    let (true, Some(n)) = (known_axes, n) else {
        ctx.set(0, ctx.elem(0), Some(vec![SymDim::Unknown; dims.len()]));
        return Ok(());
    };
    let all: Vec<i64> = (0..n as i64).collect();
    let axes = normalize_axes(axes.as_deref().unwrap_or(&all), dims.len())?;
    let steps = if absent(4, "steps") { Some(vec![1; n]) } else { steps };
    let mut only = None;
    for (i, &axis) in axes.iter().enumerate() {
        let at = |list: &Option<Vec<SymDim>>| list.as_ref().and_then(|l| l.get(i)).cloned();
        let (start, end) = (at(&starts), at(&ends));
        let step = steps.as_ref().and_then(|s| s.get(i)).copied();
        let size = known(&dims[axis..=axis]).map(|s| s[0]);
        out[axis] = match (start.as_ref().and_then(SymDim::as_known), &end, step, size) {
            (Some(start), Some(end), Some(step), Some(size))
                if end.as_known().is_some() && step != 0 =>
            {
                let cut = Cut { axis, start, end: end.as_known().unwrap_or(0), step };
                let (first, count) = cut.over(size);
                only = Some((first, count, step));
                SymDim::known(count as i64)
            }
            (Some(start), Some(end), Some(1), _) => sliced_size(&dims[axis], start, end),
            _ => SymDim::Unknown,
        };
    }
    ctx.set(0, ctx.elem(0), Some(out));
    if let (1, Some((first, count, step)), Some(value)) = (dims.len(), only, ctx.value(0)) {
        let pick = |i: usize| {
            let at = first as i64 + i as i64 * step;
            usize::try_from(at).ok().and_then(|at| value.get(at)).cloned()
        };
        ctx.set_value(0, (0..count).map(pick).collect());
    }
    Ok(())
}

/// Elements of `start..end` of a size that is an expression. Only forms that are exact for every size that the model
/// can have are given; that a size is at least as large as a constant bound is not known.
fn sliced_size(size: &SymDim, start: i64, end: &SymDim) -> SymDim {
    match end.as_known() {
        // To the end, from the front or from a number before the end.
        Some(end) if i64::from(i32::MAX) <= end && 0 <= start => match start {
            0 => size.clone(),
            _ => size.sub(&SymDim::known(start)),
        },
        Some(_) => SymDim::Unknown,
        None if start == 0 && end.same(size) => size.clone(),
        // A prefix as long as another size says.
        None if start == 0 => end.clone(),
        None => SymDim::Unknown,
    }
}

/// ONNX Pad 1 and 2 (pads in an attribute), 11, 13, 18 (axes), 19 (`wrap`), 21, 23, 24 and 25.
pub(crate) static PAD: OpDef = OpDef {
    op_type: "Pad",
    domain: "",
    versions: &[2, 11, 13, 18, 19, 21, 23, 24, 25],
    attrs: &["mode", "pads", "value"],
    infer: infer_pad,
    eval: Eval::Tensors(pad),
    // A constant other than 0 may lie outside the input's range, so the output has its own.
    role: Role::Quantized {
        inputs: &[InputRole::Activation, InputRole::Parameter],
        output: OutputRole::Calibrated,
    },
};

/// Padding before and after each dimension, from the list over `axes`.
fn pads_of(pads: &[i64], axes: Option<&[i64]>, rank: usize) -> Result<Vec<(i64, i64)>, OpError> {
    let all: Vec<i64> = (0..rank as i64).collect();
    let axes = normalize_axes(axes.unwrap_or(&all), rank)?;
    if pads.len() != 2 * axes.len() {
        return Err(OpError::Invalid(format!("{} pads of {} dimensions", pads.len(), axes.len())));
    }
    let mut out = vec![(0, 0); rank];
    for (i, &axis) in axes.iter().enumerate() {
        out[axis] = (pads[i], pads[axes.len() + i]);
    }
    Ok(out)
}

fn infer_pad(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let pads = match attr::ints(ctx.node, "pads")? {
        Some(pads) => Some(pads.to_vec()),
        None => ctx.known_value(1),
    };
    let axes = if ctx.input(3).is_some() { ctx.known_value(3).map(Some) } else { Some(None) };
    let dims = match (ctx.dims(0), pads, axes) {
        (Some(dims), Some(pads), Some(axes)) => {
            let pads = pads_of(&pads, axes.as_deref(), dims.len())?;
            let grown = |(d, &(a, b)): (&SymDim, &(i64, i64))| d.add(&SymDim::known(a + b));
            Some(dims.iter().zip(&pads).map(grown).collect())
        }
        (Some(dims), _, _) => Some(vec![SymDim::Unknown; dims.len()]),
        _ => None,
    };
    ctx.set(0, ctx.elem(0), dims);
    Ok(())
}

/// For each dimension, where each output position comes from, as an offset; `None` is the second tensor's one element.
pub(crate) struct Padded<'a> {
    pub(crate) dims: &'a [usize],
    pub(crate) from: Vec<Vec<Option<usize>>>,
}

impl Move for Padded<'_> {
    fn run<E: Clone>(&self, srcs: &[&[E]], dst: &mut [E]) -> Result<(), OpError> {
        let none = vec![0; self.dims.len()];
        let mut odometer = Odometer::new(self.dims, &[&none]);
        for d in dst {
            let at = odometer.position().iter().zip(&self.from);
            let from = at.map(|(&p, from)| from[p]).sum::<Option<usize>>();
            *d = from.map_or(&srcs[1][0], |at| &srcs[0][at]).clone();
            odometer.advance();
        }
        Ok(())
    }
}

fn pad(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let rank = x.dims().len();
    let (pads, axes) = if ctx.opset < 11 {
        (attr::ints(ctx.node, "pads")?.ok_or(OpError::MissingAttr("pads"))?.to_vec(), None)
    } else {
        (indices(args.required(1)?)?, args.get(3).map(indices).transpose()?)
    };
    let pads = pads_of(&pads, axes.as_deref(), rank)?;
    let fill = match args.get(2).filter(|_| 11 <= ctx.opset) {
        Some(value) if value.len() == 1 => value.clone(),
        Some(_) => return Err(OpError::Invalid("the constant is not one number".to_owned())),
        None => match (x.dtype(), attr::float(ctx.node, "value", 0.0)?) {
            (DataType::Float, value) => Tensor::scalar(value),
            (dtype, 0.0) => blank(dtype)?,
            (dtype, _) => return Err(crate::typed::unsupported_type(dtype)),
        },
    };
    let mode = attr::string(ctx.node, "mode", "constant")?;
    let own = strides(x.dims());
    let (mut dims, mut from) = (Vec::new(), Vec::new());
    for (d, &(before, after)) in pads.iter().enumerate() {
        let n = x.dims()[d] as i64;
        let size = usize::try_from(n + before + after)
            .map_err(|_| OpError::Invalid(format!("pads {before} and {after} of {n} entries")))?;
        let source = |i: i64| -> Result<Option<usize>, OpError> {
            let inside = (0..n).contains(&i);
            let at = match mode {
                _ if inside => i,
                "constant" => return Ok(None),
                _ if n == 0 => return Err(OpError::Invalid("nothing to pad with".to_owned())),
                "edge" => i.clamp(0, n - 1),
                "wrap" => i.rem_euclid(n),
                "reflect" if n == 1 => 0,
                "reflect" => {
                    let period = 2 * (n - 1);
                    let i = i.rem_euclid(period);
                    i.min(period - i)
                }
                other => return Err(OpError::Invalid(format!("`mode` is `{other}`"))),
            };
            Ok(Some(at as usize * own[d]))
        };
        from.push((0..size as i64).map(|i| source(i - before)).collect::<Result<Vec<_>, _>>()?);
        dims.push(size);
    }
    let how = Padded { dims: &dims, from };
    Ok(vec![moved(ctx, &[x, &fill], dims.clone(), &how)?])
}

/// The upper or lower triangle of matrices. ONNX Trilu 14.
pub(crate) static TRILU: OpDef = OpDef {
    op_type: "Trilu",
    domain: "",
    versions: &[14],
    attrs: &["upper"],
    infer: same_as_first,
    eval: Eval::Tensors(trilu),
    role: Role::Structural,
};

fn trilu(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    struct Triangle {
        rows: usize,
        cols: usize,
        k: i64,
        upper: bool,
    }
    impl Move for Triangle {
        fn run<E: Clone>(&self, srcs: &[&[E]], dst: &mut [E]) -> Result<(), OpError> {
            for (i, d) in dst.iter_mut().enumerate() {
                let (row, col) = (i / self.cols % self.rows, i % self.cols);
                let beyond = col as i64 - row as i64;
                let kept = if self.upper { self.k <= beyond } else { beyond <= self.k };
                *d = if kept { &srcs[0][i] } else { &srcs[1][0] }.clone();
            }
            Ok(())
        }
    }
    let x = args.required(0)?;
    let Some(&[rows, cols]) = x.dims().last_chunk() else {
        return Err(OpError::Invalid(format!("a matrix of sizes {:?}", x.dims())));
    };
    let k = args.get(1).map(indices).transpose()?.and_then(|k| k.first().copied()).unwrap_or(0);
    let zero = blank(x.dtype())?;
    let how = Triangle { rows, cols, k, upper: attr::flag(ctx.node, "upper", true)? };
    Ok(vec![moved(ctx, &[x, &zero], x.dims().to_vec(), &how)?])
}

/// ONNX OneHot 9, 11 and 28.
pub(crate) static ONE_HOT: OpDef = OpDef {
    op_type: "OneHot",
    domain: "",
    versions: &[9, 11, 28],
    attrs: &["axis"],
    infer: |ctx| {
        let depth =
            ctx.value(1).filter(|v| v.len() == 1).map_or(SymDim::Unknown, |mut v| v.remove(0));
        let dims = match ctx.dims(0) {
            Some(dims) => {
                let mut dims = dims.to_vec();
                let axis = normalize_axis(attr::int(ctx.node, "axis", -1)?, dims.len() + 1)?;
                dims.insert(axis, depth);
                Some(dims)
            }
            None => None,
        };
        ctx.set(0, ctx.elem(2), dims);
        Ok(())
    },
    eval: Eval::Tensors(one_hot),
    role: Role::Structural,
};

/// Numbers that stand for indices, whatever their type.
fn integers(ctx: &EvalCtx<'_>, tensor: &Tensor) -> Result<Vec<i64>, OpError> {
    indices(&crate::cast::cast(ctx, tensor.clone(), DataType::Int64)?)
}

fn one_hot(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    struct Marks {
        /// For each index its class, if it has one.
        class: Vec<Option<usize>>,
        depth: usize,
        inner: usize,
    }
    impl Move for Marks {
        fn run<E: Clone>(&self, srcs: &[&[E]], dst: &mut [E]) -> Result<(), OpError> {
            let (off, on) = (&srcs[0][0], &srcs[0][1]);
            dst.fill(off.clone());
            for (i, class) in self.class.iter().enumerate() {
                if let Some(class) = class {
                    dst[(i / self.inner * self.depth + class) * self.inner + i % self.inner] =
                        on.clone();
                }
            }
            Ok(())
        }
    }
    let (at, values) = (args.required(0)?, args.required(2)?);
    let depth = integers(ctx, args.required(1)?)?;
    let ([depth], 2) = (&depth[..], values.len()) else {
        return Err(OpError::Invalid(
            "the depth is not one number or the values are not two".to_owned(),
        ));
    };
    let axis = normalize_axis(attr::int(ctx.node, "axis", -1)?, at.dims().len() + 1)?;
    let mut dims = at.dims().to_vec();
    let n = usize::try_from(*depth).map_err(|_| OpError::Invalid(format!("a depth of {depth}")))?;
    dims.insert(axis, n);
    let class = |&i: &i64| {
        let i = if i < 0 { i + depth } else { i };
        (0..*depth).contains(&i).then_some(i as usize)
    };
    let how = Marks {
        class: integers(ctx, at)?.iter().map(class).collect(),
        depth: n,
        inner: product(&at.dims()[axis..]).max(1),
    };
    Ok(vec![moved(ctx, &[values], dims, &how)?])
}

/// ONNX NonZero 9 and 13.
pub(crate) static NON_ZERO: OpDef = OpDef {
    op_type: "NonZero",
    domain: "",
    versions: &[9, 13],
    attrs: &[],
    infer: |ctx| {
        let rank = ctx.rank(0).map_or(SymDim::Unknown, |r| SymDim::known(r as i64));
        let n = ctx.fresh_symbol();
        ctx.set(0, Some(DataType::Int64), Some(vec![rank, n]));
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        let x = args.required(0)?;
        let truth = crate::cast::cast(ctx, x.clone(), DataType::Bool)?;
        let at: Vec<usize> = (0..x.len()).filter(|&i| truth.as_bytes()[i] != 0).collect();
        let own = strides(x.dims());
        let mut out = Vec::with_capacity(x.dims().len() * at.len());
        for (d, &stride) in own.iter().enumerate() {
            out.extend(at.iter().map(|i| (i / stride % x.dims()[d]) as i64));
        }
        Ok(vec![Tensor::from_slice(vec![x.dims().len(), at.len()], &out)?])
    }),
    role: Role::Structural,
};

/// Which elements of an order are flipped. ONNX ReverseSequence 10 and 28.
pub(crate) static REVERSE_SEQUENCE: OpDef = OpDef {
    op_type: "ReverseSequence",
    domain: "",
    versions: &[10, 28],
    attrs: &["batch_axis", "time_axis"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| {
        let x = args.required(0)?;
        let time = attr::size(ctx.node, "time_axis", 0)?;
        let batch = attr::size(ctx.node, "batch_axis", 1)?;
        let lens = indices(args.required(1)?)?;
        if x.dims().len() < 2 || time + batch != 1 || lens.len() != x.dims()[batch] {
            return Err(OpError::Invalid(format!(
                "{} lengths of sizes {:?}",
                lens.len(),
                x.dims()
            )));
        }
        let own = strides(x.dims());
        let none = vec![0; x.dims().len()];
        let mut odometer = Odometer::new(x.dims(), &[&none]);
        let picks = (0..x.len()).map(|i| {
            let at = odometer.position();
            let (t, len) = (at[time], lens[at[batch]].clamp(0, x.dims()[time] as i64) as usize);
            let from = if t < len { i - t * own[time] + (len - 1 - t) * own[time] } else { i };
            odometer.advance();
            from
        });
        let how = Picks(picks.collect());
        Ok(vec![moved(ctx, &[x], x.dims().to_vec(), &how)?])
    }),
    role: MOVES,
};
