//! Operators that keep every element and change the sizes, or the order: Reshape, Transpose, Squeeze, ...

use midtread_graph::{DataType, Tensor};
use midtread_kernels::transpose::transpose;

use crate::{
    attr,
    def::{Eval, InputRole, OpDef, OutputRole, Role},
    eval::{Args, EvalCtx, OpError},
    infer::{InferCtx, normalize_axis},
    norm::same_as_first,
    shape::{
        View, broadcast, broadcast_strides, broadcast_syms, moved, normalize_axes, product, strides,
    },
    sym::SymDim,
    typed::indices,
};

/// Moves or selects values of its first input; the others say how.
pub(crate) const MOVES: Role = Role::Quantized {
    inputs: &[InputRole::Activation, InputRole::Parameter],
    output: OutputRole::SameAs(0),
};

/// ONNX Identity 1, 13, 14, 16, 19, 21, 23, 24 and 25.
pub(crate) static IDENTITY: OpDef = OpDef {
    op_type: "Identity",
    domain: "",
    versions: &[1, 13, 14, 16, 19, 21, 23, 24, 25],
    attrs: &[],
    infer: |ctx| {
        let info = ctx.input(0).cloned().unwrap_or_default();
        ctx.set_info(0, info);
        Ok(())
    },
    eval: Eval::Data(|_, mut inputs| match inputs.first_mut().and_then(Option::take) {
        Some(value) => Ok(vec![value]),
        None => Err(OpError::MissingInput(0)),
    }),
    role: MOVES,
};

/// ONNX Dropout 1, 6 (both have `is_test`), 7, 10, 12, 13 and 22: the identity, but in training.
pub(crate) static DROPOUT: OpDef = OpDef {
    op_type: "Dropout",
    domain: "",
    versions: &[1, 6, 7, 10, 12, 13, 22],
    attrs: &["consumed_inputs", "is_test", "ratio", "seed"],
    infer: |ctx| {
        same_as_first(ctx)?;
        let mask = if ctx.opset < 10 { ctx.elem(0) } else { Some(DataType::Bool) };
        ctx.set(1, mask, ctx.dims(0).map(<[_]>::to_vec));
        Ok(())
    },
    eval: Eval::Tensors(|ctx, mut args| {
        let x = args.take(0)?;
        if ctx.opset < 7 && !attr::flag(ctx.node, "is_test", false)? {
            return Err(OpError::Unsupported("`is_test` 0".to_owned()));
        }
        if args.get(2).is_some_and(|t| t.as_bytes().iter().any(|&b| b != 0)) {
            let ratio = args.get(1).map(crate::typed::reals).transpose()?;
            let ratio = ratio.and_then(|r| r.first().copied()).unwrap_or(0.5);
            return crate::random::dropped(ctx, &x, ratio);
        }
        if ctx.node.outputs.len() < 2 {
            return Ok(vec![x]);
        }
        let mask = crate::typed::fill_bools(ctx, x.dims().to_vec(), |m| m.fill(1))?;
        // Before version 10 the mask had the input's type.
        let elem = if ctx.opset < 10 { x.dtype() } else { DataType::Bool };
        let mask = crate::cast::cast(ctx, mask, elem)?;
        Ok(vec![x, mask])
    }),
    role: MOVES,
};

/// ONNX Reshape 5, 13, 14, 19, 21, 23, 24 and 25.
pub(crate) static RESHAPE: OpDef = OpDef {
    op_type: "Reshape",
    domain: "",
    versions: &[5, 13, 14, 19, 21, 23, 24, 25],
    attrs: &["allowzero"],
    infer: infer_reshape,
    eval: Eval::Tensors(|ctx, mut args| {
        let x = args.take(0)?;
        let wanted = indices(args.required(1)?)?;
        let dims = reshaped_dims(x.dims(), &wanted, attr::flag(ctx.node, "allowzero", false)?)?;
        Ok(vec![x.reshaped(dims)?])
    }),
    role: MOVES,
};

fn reshaped_dims(from: &[usize], wanted: &[i64], allow_zero: bool) -> Result<Vec<usize>, OpError> {
    let refused = || OpError::Invalid(format!("sizes {from:?} do not become {wanted:?}"));
    let mut dims = Vec::with_capacity(wanted.len());
    let mut open = None;
    for (i, &d) in wanted.iter().enumerate() {
        dims.push(match d {
            0 if !allow_zero => *from.get(i).ok_or_else(refused)?,
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            d => usize::try_from(d).map_err(|_| refused())?,
        });
    }
    if let Some(i) = open {
        let (n, rest) = (product(from), product(&dims));
        if rest == 0 || n % rest != 0 {
            return Err(refused());
        }
        dims[i] = n / rest;
    }
    if midtread_graph::tensor::n_elements(&dims)? != product(from) {
        return Err(refused());
    }
    Ok(dims)
}

fn infer_reshape(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let allow_zero = attr::flag(ctx.node, "allowzero", false)?;
    let from = ctx.dims(0);
    // A shape that is not known may still be of known length.
    let dims = match (ctx.value(1), ctx.dims(1)) {
        (Some(wanted), _) => Some(reshaped_syms(from, &wanted, allow_zero)?),
        (None, Some([n])) => {
            n.as_known().and_then(|n| usize::try_from(n).ok()).map(|n| vec![SymDim::Unknown; n])
        }
        _ => None,
    };
    ctx.set(0, ctx.elem(0), dims);
    Ok(())
}

fn reshaped_syms(
    from: Option<&[SymDim]>,
    wanted: &[SymDim],
    allow_zero: bool,
) -> Result<Vec<SymDim>, OpError> {
    if let (Some(from), Some(wanted)) = (
        from.and_then(crate::shape::known),
        wanted.iter().map(SymDim::as_known).collect::<Option<Vec<_>>>(),
    ) {
        let dims = reshaped_dims(&from, &wanted, allow_zero)?;
        return Ok(dims.into_iter().map(|d| SymDim::known(d as i64)).collect());
    }
    let mut open = None;
    let mut dims: Vec<SymDim> = Vec::with_capacity(wanted.len());
    for (i, d) in wanted.iter().enumerate() {
        dims.push(match d.as_known() {
            Some(0) if !allow_zero => {
                from.and_then(|f| f.get(i)).cloned().unwrap_or(SymDim::Unknown)
            }
            Some(-1) => {
                open = Some(i);
                SymDim::Unknown
            }
            _ => d.clone(),
        });
    }
    if let (Some(i), Some(from)) = (open, from) {
        // Sizes that stay, even unknown ones, cancel.
        let mut rest: Vec<&SymDim> = from.iter().collect();
        let mut by = SymDim::known(1);
        for (j, d) in dims.iter().enumerate().filter(|&(j, _)| j != i) {
            let kept = matches!(wanted[j].as_known(), Some(0)) && !allow_zero;
            match rest
                .iter()
                .position(|r| if kept { std::ptr::eq(*r, &from[j]) } else { r.same(d) })
            {
                Some(at) => drop(rest.remove(at)),
                None => by = by.mul(d),
            }
        }
        let n = rest.iter().fold(SymDim::known(1), |n, d| n.mul(d));
        dims[i] = n.div(&by);
    }
    Ok(dims)
}

/// ONNX Flatten 1, 9, 11, 13, 21, 23, 24 and 25.
pub(crate) static FLATTEN: OpDef = OpDef {
    op_type: "Flatten",
    domain: "",
    versions: &[1, 9, 11, 13, 21, 23, 24, 25],
    attrs: &["axis"],
    infer: |ctx| {
        let dims = match ctx.dims(0) {
            Some(dims) => {
                let axis = flatten_axis(ctx.node, dims.len())?;
                let product = |d: &[SymDim]| d.iter().fold(SymDim::known(1), |n, d| n.mul(d));
                Some(vec![product(&dims[..axis]), product(&dims[axis..])])
            }
            None => Some(vec![SymDim::Unknown; 2]),
        };
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, mut args| {
        let x = args.take(0)?;
        let axis = flatten_axis(ctx.node, x.dims().len())?;
        let dims = vec![product(&x.dims()[..axis]), product(&x.dims()[axis..])];
        Ok(vec![x.reshaped(dims)?])
    }),
    role: MOVES,
};

/// From 0 up to the rank itself.
fn flatten_axis(node: &midtread_graph::Node, rank: usize) -> Result<usize, OpError> {
    match attr::int(node, "axis", 1)? {
        axis if usize::try_from(axis) == Ok(rank) => Ok(rank),
        axis => normalize_axis(axis, rank),
    }
}

/// Axes from input 1, or before opset 13 from the attribute.
fn axes_of(ctx: &EvalCtx<'_>, args: &Args) -> Result<Option<Vec<i64>>, OpError> {
    match args.get(1) {
        Some(axes) => Ok(Some(indices(axes)?)),
        None => Ok(attr::ints(ctx.node, "axes")?.map(<[i64]>::to_vec)),
    }
}

/// The same for a shape rule; the inner option is whether there are any, the outer whether that is known.
pub(crate) fn infer_axes(ctx: &InferCtx<'_>) -> Result<Option<Option<Vec<i64>>>, OpError> {
    if let Some(axes) = attr::ints(ctx.node, "axes")? {
        return Ok(Some(Some(axes.to_vec())));
    }
    match ctx.input(1) {
        None => Ok(Some(None)),
        Some(_) => Ok(ctx.known_value(1).map(Some)),
    }
}

/// ONNX Squeeze 1, 11 and 13 (axes become an input), 21, 23, 24 and 25.
pub(crate) static SQUEEZE: OpDef = OpDef {
    op_type: "Squeeze",
    domain: "",
    versions: &[1, 11, 13, 21, 23, 24, 25],
    attrs: &["axes"],
    infer: |ctx| {
        let dims = match (ctx.dims(0), infer_axes(ctx)?) {
            (Some(dims), Some(axes)) => squeezed(dims, axes.as_deref(), SymDim::as_known)?,
            _ => None,
        };
        ctx.set(0, ctx.elem(0), dims);
        if ctx.rank(0).is_some_and(|r| r <= 1) {
            ctx.set_value(0, ctx.value(0));
        }
        Ok(())
    },
    eval: Eval::Tensors(|ctx, mut args| {
        let x = args.take(0)?;
        let axes = axes_of(ctx, &args)?;
        let dims =
            squeezed(x.dims(), axes.as_deref(), |&d| Some(d as i64))?.expect("sizes are known");
        Ok(vec![x.reshaped(dims)?])
    }),
    role: MOVES,
};

/// The sizes without those axes, or without every size of 1; `None` where it is not known which these are.
fn squeezed<D: Clone>(
    dims: &[D],
    axes: Option<&[i64]>,
    known: impl Fn(&D) -> Option<i64>,
) -> Result<Option<Vec<D>>, OpError> {
    let gone: Vec<usize> = match axes {
        Some(axes) => {
            let axes = normalize_axes(axes, dims.len())?;
            if let Some((&a, n)) =
                axes.iter().find_map(|a| known(&dims[*a]).filter(|&n| n != 1).map(|n| (a, n)))
            {
                return Err(OpError::Invalid(format!("axis {a} of size {n} is to be left out")));
            }
            axes
        }
        None => {
            if dims.iter().any(|d| known(d).is_none()) {
                return Ok(None);
            }
            (0..dims.len()).filter(|&i| known(&dims[i]) == Some(1)).collect()
        }
    };
    let left = dims.iter().enumerate().filter(|(i, _)| !gone.contains(i));
    Ok(Some(left.map(|(_, d)| d.clone()).collect()))
}

/// ONNX Unsqueeze 1, 11 and 13 (axes become an input), 21, 23, 24 and 25.
pub(crate) static UNSQUEEZE: OpDef = OpDef {
    op_type: "Unsqueeze",
    domain: "",
    versions: &[1, 11, 13, 21, 23, 24, 25],
    attrs: &["axes"],
    infer: |ctx| {
        let dims = match (ctx.dims(0), infer_axes(ctx)?) {
            (Some(dims), Some(Some(axes))) => Some(unsqueezed(dims, &axes, SymDim::known(1))?),
            _ => None,
        };
        ctx.set(0, ctx.elem(0), dims);
        // A size becomes a list of one size.
        if ctx.rank(0) == Some(0) && infer_axes(ctx)?.flatten().is_some_and(|a| a.len() == 1) {
            ctx.set_value(0, ctx.value(0));
        }
        Ok(())
    },
    eval: Eval::Tensors(|ctx, mut args| {
        let x = args.take(0)?;
        let axes = axes_of(ctx, &args)?.ok_or(OpError::MissingAttr("axes"))?;
        let dims = unsqueezed(x.dims(), &axes, 1)?;
        Ok(vec![x.reshaped(dims)?])
    }),
    role: MOVES,
};

fn unsqueezed<D: Clone>(dims: &[D], axes: &[i64], one: D) -> Result<Vec<D>, OpError> {
    let axes = normalize_axes(axes, dims.len() + axes.len())?;
    let mut rest = dims.iter();
    Ok((0..dims.len() + axes.len())
        .map(|i| {
            if axes.contains(&i) {
                one.clone()
            } else {
                rest.next().expect("as many as left").clone()
            }
        })
        .collect())
}

/// ONNX Transpose 1, 13, 21, 23, 24 and 25.
pub(crate) static TRANSPOSE: OpDef = OpDef {
    op_type: "Transpose",
    domain: "",
    versions: &[1, 13, 21, 23, 24, 25],
    attrs: &["perm"],
    infer: |ctx| {
        let dims = match ctx.dims(0) {
            Some(dims) => {
                Some(permutation(ctx.node, dims.len())?.iter().map(|&p| dims[p].clone()).collect())
            }
            None => None,
        };
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, mut args| {
        let x = args.take(0)?;
        let perm = permutation(ctx.node, x.dims().len())?;
        transposed(ctx, x, &perm).map(|y| vec![y])
    }),
    role: MOVES,
};

fn permutation(node: &midtread_graph::Node, rank: usize) -> Result<Vec<usize>, OpError> {
    let Some(perm) = attr::ints(node, "perm")? else { return Ok((0..rank).rev().collect()) };
    let axes = normalize_axes(perm, rank)?;
    if axes.len() != rank {
        return Err(OpError::Invalid(format!("`perm` {perm:?} of {rank} dimensions")));
    }
    Ok(axes)
}

/// Dimension `i` of the result is dimension `perm[i]` of `x`.
pub(crate) fn transposed(ctx: &EvalCtx<'_>, x: Tensor, perm: &[usize]) -> Result<Tensor, OpError> {
    let dims: Vec<usize> = perm.iter().map(|&p| x.dims()[p]).collect();
    // Sizes of 1 may go anywhere: the order of the elements is that of the others.
    let long = || perm.iter().filter(|&&p| x.dims()[p] != 1);
    if long().is_sorted() {
        return Ok(x.reshaped(dims)?);
    }
    let bits = x.dtype().n_bits();
    if let Some(8 | 16 | 32 | 64) = bits {
        let x = x.to_aligned();
        let mut y = ctx.pool.tensor(x.dtype(), dims)?;
        macro_rules! of_width {
            ($t:ty) => {{
                let dst = bytemuck::cast_slice_mut::<u8, $t>(y.bytes_mut());
                transpose(bytemuck::cast_slice::<u8, $t>(x.as_bytes()), x.dims(), perm, dst);
            }};
        }
        match bits {
            Some(8) => of_width!(u8),
            Some(16) => of_width!(u16),
            Some(32) => of_width!(u32),
            _ => of_width!(u64),
        }
        return Ok(y);
    }
    let own = strides(x.dims());
    let view = View {
        dims: dims.clone(),
        strides: perm.iter().map(|&p| own[p] as isize).collect(),
        offset: 0,
    };
    moved(ctx, &[&x], dims, &view)
}

/// ONNX Expand 8 and 13.
pub(crate) static EXPAND: OpDef = OpDef {
    op_type: "Expand",
    domain: "",
    versions: &[8, 13],
    attrs: &[],
    infer: |ctx| {
        let dims = match (ctx.dims(0), ctx.value(1)) {
            (Some(dims), Some(wanted)) => Some(broadcast_syms(&[dims, &wanted])?),
            _ => None,
        };
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, mut args| {
        let x = args.take(0)?;
        let wanted: Vec<usize> = to_sizes(&indices(args.required(1)?)?)?;
        let dims = broadcast(&[x.dims(), &wanted])?;
        if product(&dims) == x.len() {
            return Ok(vec![x.reshaped(dims)?]);
        }
        let view =
            View { dims: dims.clone(), strides: broadcast_strides(x.dims(), &dims), offset: 0 };
        Ok(vec![moved(ctx, &[&x], dims, &view)?])
    }),
    role: MOVES,
};

/// Sizes from the elements of a shape tensor.
pub(crate) fn to_sizes(values: &[i64]) -> Result<Vec<usize>, OpError> {
    let sizes = values.iter().map(|&v| usize::try_from(v)).collect::<Result<_, _>>();
    sizes.map_err(|_| OpError::Invalid(format!("{values:?} are not sizes")))
}

/// ONNX Tile 6 and 13.
pub(crate) static TILE: OpDef = OpDef {
    op_type: "Tile",
    domain: "",
    versions: &[6, 13],
    attrs: &[],
    infer: |ctx| {
        let dims = match (ctx.dims(0), ctx.value(1)) {
            (Some(dims), Some(repeats)) if dims.len() == repeats.len() => {
                Some(dims.iter().zip(&repeats).map(|(d, r)| d.mul(r)).collect())
            }
            (Some(dims), _) => Some(vec![SymDim::Unknown; dims.len()]),
            _ => None,
        };
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, mut args| {
        let x = args.take(0)?;
        let repeats = to_sizes(&indices(args.required(1)?)?)?;
        if repeats.len() != x.dims().len() {
            return Err(OpError::Invalid(format!("{repeats:?} repeats of sizes {:?}", x.dims())));
        }
        let dims: Vec<usize> = x.dims().iter().zip(&repeats).map(|(d, r)| d * r).collect();
        // Each dimension is (repeats, size), of which only the second moves in the source.
        let (mut split, mut steps) = (Vec::new(), Vec::new());
        for ((&d, &r), &s) in x.dims().iter().zip(&repeats).zip(&strides(x.dims())) {
            split.extend([r, d]);
            steps.extend([0, s as isize]);
        }
        Ok(vec![moved(ctx, &[&x], dims, &View { dims: split, strides: steps, offset: 0 })?])
    }),
    role: MOVES,
};

/// ONNX DepthToSpace 1, 11, 13 and 28.
pub(crate) static DEPTH_TO_SPACE: OpDef = OpDef {
    op_type: "DepthToSpace",
    domain: "",
    versions: &[1, 11, 13, 28],
    attrs: &["blocksize", "mode"],
    infer: |ctx| {
        let b = SymDim::known(attr::int(ctx.node, "blocksize", 0)?);
        let dims = match ctx.dims(0) {
            Some([n, c, h, w]) => Some(vec![n.clone(), c.div(&b.mul(&b)), h.mul(&b), w.mul(&b)]),
            _ => None,
        };
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, mut args| {
        let x = args.take(0)?;
        let b = attr::size(ctx.node, "blocksize", 0)?;
        let &[n, c, h, w] = x.dims() else {
            return Err(OpError::Invalid(format!("input of sizes {:?}", x.dims())));
        };
        let block = b.checked_mul(b).filter(|&block| block != 0 && c % block == 0);
        let Some(block) = block else {
            return Err(OpError::Invalid(format!("{c} channels in blocks of {b} x {b}")));
        };
        let out_c = c / block;
        let (dims, perm) = match attr::string(ctx.node, "mode", "DCR")? {
            "DCR" => (vec![n, b, b, out_c, h, w], [0, 3, 4, 1, 5, 2]),
            "CRD" => (vec![n, out_c, b, b, h, w], [0, 1, 4, 2, 5, 3]),
            other => return Err(OpError::Invalid(format!("`mode` is `{other}`"))),
        };
        let y = transposed(ctx, x.reshaped(dims)?, &perm)?;
        Ok(vec![y.reshaped(vec![n, out_c, h * b, w * b])?])
    }),
    role: MOVES,
};

/// ONNX SpaceToDepth 1, 13 and 28.
pub(crate) static SPACE_TO_DEPTH: OpDef = OpDef {
    op_type: "SpaceToDepth",
    domain: "",
    versions: &[1, 13, 28],
    attrs: &["blocksize", "mode"],
    infer: |ctx| {
        let b = SymDim::known(attr::int(ctx.node, "blocksize", 0)?);
        let dims = match ctx.dims(0) {
            Some([n, c, h, w]) => Some(vec![n.clone(), c.mul(&b).mul(&b), h.div(&b), w.div(&b)]),
            _ => None,
        };
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, mut args| {
        let x = args.take(0)?;
        let b = attr::size(ctx.node, "blocksize", 0)?;
        let &[n, c, h, w] = x.dims() else {
            return Err(OpError::Invalid(format!("input of sizes {:?}", x.dims())));
        };
        if b == 0 || h % b != 0 || w % b != 0 {
            return Err(OpError::Invalid(format!("{h} x {w} in blocks of {b} x {b}")));
        }
        let x = x.reshaped(vec![n, c, h / b, b, w / b, b])?;
        let perm = match attr::string(ctx.node, "mode", "DCR")? {
            "DCR" => [0, 3, 5, 1, 2, 4],
            "CRD" => [0, 1, 3, 5, 2, 4],
            other => return Err(OpError::Invalid(format!("`mode` is `{other}`"))),
        };
        let y = transposed(ctx, x, &perm)?;
        Ok(vec![y.reshaped(vec![n, c.saturating_mul(b).saturating_mul(b), h / b, w / b])?])
    }),
    role: MOVES,
};
