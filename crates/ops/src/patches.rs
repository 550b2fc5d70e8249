//! Operators that put elements or patches back to where they came from, or cut around the middle.

use midtread_graph::Tensor;

use crate::{
    attr,
    def::{Eval, OpDef},
    eval::{Args, EvalCtx, OpError},
    gather::Padded,
    infer::{InferCtx, normalize_axis},
    layout::{MOVES, to_sizes},
    shape::{Move, Odometer, blank, moved, normalize_axes, product, strides},
    sym::SymDim,
    typed::{by_type, elements, in_f32, indices},
    unary::NO_INTEGER_FORM,
};

/// ONNX Col2Im 18: the sum of overlapping blocks.
pub(crate) static COL2IM: OpDef = OpDef {
    op_type: "Col2Im",
    domain: "",
    versions: &[18],
    attrs: &["dilations", "pads", "strides"],
    infer: |ctx| {
        let block = ctx.value(2).map(|sizes| sizes.iter().fold(SymDim::known(1), |n, d| n.mul(d)));
        let dims = match (ctx.dims(0), ctx.value(1)) {
            (Some([n, c, _]), Some(image)) => {
                let channels = block.map_or(SymDim::Unknown, |block| c.div(&block));
                Some([vec![n.clone(), channels], image].concat())
            }
            _ => None,
        };
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, col2im)),
    role: NO_INTEGER_FORM,
};

fn col2im(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let image = to_sizes(&indices(args.required(1)?)?)?;
    let block = to_sizes(&indices(args.required(2)?)?)?;
    let rank = image.len();
    let list = |name, n: usize, default| -> Result<Vec<usize>, OpError> {
        let sizes = attr::sizes(ctx.node, name)?.unwrap_or_else(|| vec![default; n]);
        if sizes.len() != n {
            return Err(OpError::Invalid(format!("`{name}` of {} elements", sizes.len())));
        }
        Ok(sizes)
    };
    let (dilations, step) = (list("dilations", rank, 1)?, list("strides", rank, 1)?);
    let pads = list("pads", 2 * rank, 0)?;
    let refused = || {
        OpError::Invalid(format!(
            "blocks of {block:?} in {:?} do not make an image of {image:?}",
            x.dims()
        ))
    };
    let &[batch, all, n_blocks] = x.dims() else { return Err(refused()) };
    let block_size = midtread_graph::tensor::n_elements(&block)?;
    if block.len() != rank || block_size == 0 || all % block_size != 0 || step.contains(&0) {
        return Err(refused());
    }
    // How many blocks lie along each dimension.
    let mut counts = Vec::with_capacity(rank);
    for d in 0..rank {
        let reach = dilations[d].checked_mul(block[d] - 1).and_then(|r| r.checked_add(1));
        let room = image[d].checked_add(pads[d]).and_then(|n| n.checked_add(pads[rank + d]));
        let free = reach.zip(room).and_then(|(reach, room)| room.checked_sub(reach));
        counts.push(free.ok_or_else(refused)? / step[d] + 1);
    }
    if midtread_graph::tensor::n_elements(&counts)? != n_blocks {
        return Err(refused());
    }
    let channels = all / block_size;
    let plane = midtread_graph::tensor::n_elements(&image)?;
    let steps: Vec<isize> = vec![0; rank];
    // Where each element of each block goes, `None` into the padding.
    let mut targets = Vec::with_capacity(block_size * n_blocks);
    let own = strides(&image);
    let mut in_block = Odometer::new(&block, &[&steps]);
    for _ in 0..block_size {
        let mut at_block = Odometer::new(&counts, &[&steps]);
        for _ in 0..n_blocks {
            let at = (0..rank).map(|d| {
                let at = at_block.position()[d] * step[d] + in_block.position()[d] * dilations[d];
                at.checked_sub(pads[d]).filter(|&at| at < image[d]).map(|at| at * own[d])
            });
            targets.push(at.sum::<Option<usize>>());
            at_block.advance();
        }
        in_block.advance();
    }
    let dims = [&[batch, channels], &image[..]].concat();
    by_type!(x.dtype(), T in [f32, f64, i8, i16, i32, i64, u8, u16, u32, u64] => {
        let src = elements::<T>(x)?;
        let y = ctx.pool.fill::<T>(dims, |y| {
            y.fill(T::default());
            let columns = src.chunks_exact((block_size * n_blocks).max(1));
            for (y, src) in y.chunks_exact_mut(plane.max(1)).zip(columns) {
                for (&x, target) in src.iter().zip(&targets) {
                    if let Some(at) = target {
                        y[*at] = crate::binary::Number::add(y[*at], x);
                    }
                }
            }
            Ok(())
        })?;
        Ok(vec![y])
    })
}

/// ONNX MaxUnpool 9, 11 and 22: each element where MaxPool found it, zeros elsewhere.
pub(crate) static MAX_UNPOOL: OpDef = OpDef {
    op_type: "MaxUnpool",
    domain: "",
    versions: &[9, 11, 22],
    attrs: &["kernel_shape", "pads", "strides"],
    infer: |ctx| {
        let dims = match (ctx.input(2), ctx.value(2), ctx.dims(0)) {
            (Some(_), sizes, _) => sizes,
            (None, _, Some(dims)) => {
                let sizes = unpooled(ctx.node, dims.len())?;
                let grown = |(d, &(step, add)): (&SymDim, &(i64, i64))| {
                    d.sub(&SymDim::known(1)).mul(&SymDim::known(step)).add(&SymDim::known(add))
                };
                let spatial = dims[2..].iter().zip(&sizes).map(grown);
                Some(dims[..2].iter().cloned().chain(spatial).collect())
            }
            _ => None,
        };
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(max_unpool),
    role: MOVES,
};

/// For each spatial dimension the stride, and what the kernel adds less the padding.
fn unpooled(node: &midtread_graph::Node, rank: usize) -> Result<Vec<(i64, i64)>, OpError> {
    let kernel = attr::ints(node, "kernel_shape")?.ok_or(OpError::MissingAttr("kernel_shape"))?;
    let n = kernel.len();
    let step = attr::ints(node, "strides")?.map_or_else(|| vec![1; n], <[i64]>::to_vec);
    let pads = attr::ints(node, "pads")?.map_or_else(|| vec![0; 2 * n], <[i64]>::to_vec);
    if n + 2 != rank || step.len() != n || pads.len() != 2 * n {
        return Err(OpError::Invalid(format!("a kernel of {kernel:?} for {rank} dimensions")));
    }
    let add = |d: usize| kernel[d].saturating_sub(pads[d]).saturating_sub(pads[n + d]);
    Ok((0..n).map(|d| (step[d], add(d))).collect())
}

fn max_unpool(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    struct Placed<'a> {
        /// Where each element goes.
        at: &'a [usize],
    }
    impl Move for Placed<'_> {
        fn run<E: Clone>(&self, srcs: &[&[E]], dst: &mut [E]) -> Result<(), OpError> {
            dst.fill(srcs[1][0].clone());
            for (x, &at) in srcs[0].iter().zip(self.at) {
                dst[at] = x.clone();
            }
            Ok(())
        }
    }
    let (x, at) = (args.required(0)?, args.required(1)?);
    let mut own = x.dims().get(..2).unwrap_or_default().to_vec();
    for (&d, (step, add)) in x.dims().iter().skip(2).zip(unpooled(ctx.node, x.dims().len())?) {
        let size = (d as i64 - 1).checked_mul(step).and_then(|n| n.checked_add(add));
        let size = size.and_then(|n| usize::try_from(n).ok());
        own.push(size.ok_or_else(|| OpError::Invalid(format!("no size comes from {d}")))?);
    }
    // The indices are of a tensor of the pooling's own sizes, which may lie in a larger one.
    let dims = match args.get(2) {
        Some(sizes) => to_sizes(&indices(sizes)?)?,
        None => own.clone(),
    };
    if at.dims() != x.dims() || dims.len() != own.len() || own.iter().zip(&dims).any(|(a, b)| b < a)
    {
        return Err(OpError::Invalid(format!("{:?} into {dims:?}", x.dims())));
    }
    let (from, to) = (strides(&own), strides(&dims));
    let places = crate::gather::in_bounds(&indices(at)?, product(&own))?;
    let place = |&i: &usize| (0..own.len()).map(|d| i / from[d] % own[d] * to[d]).sum();
    let places: Vec<usize> = places.iter().map(place).collect();
    let zero = blank(x.dtype())?;
    Ok(vec![moved(ctx, &[x, &zero], dims, &Placed { at: &places })?])
}

/// ONNX CenterCropPad 18: cut or filled with zeros around the middle; of an odd rest the larger part is at the end.
pub(crate) static CENTER_CROP_PAD: OpDef = OpDef {
    op_type: "CenterCropPad",
    domain: "",
    versions: &[18],
    attrs: &["axes"],
    infer: infer_center_crop_pad,
    eval: Eval::Tensors(center_crop_pad),
    role: MOVES,
};

fn infer_center_crop_pad(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let dims = match ctx.dims(0) {
        Some(dims) => {
            let axes = match attr::ints(ctx.node, "axes")? {
                Some(axes) => normalize_axes(axes, dims.len())?,
                None => (0..dims.len()).collect(),
            };
            let mut dims = dims.to_vec();
            let sizes = ctx.value(1).filter(|sizes| sizes.len() == axes.len());
            for (i, &axis) in axes.iter().enumerate() {
                dims[axis] = sizes.as_ref().map_or(SymDim::Unknown, |sizes| sizes[i].clone());
            }
            Some(dims)
        }
        None => None,
    };
    ctx.set(0, ctx.elem(0), dims);
    Ok(())
}

fn center_crop_pad(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let rank = x.dims().len();
    let axes = match attr::ints(ctx.node, "axes")? {
        Some(axes) => axes.iter().map(|&a| normalize_axis(a, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).collect::<Vec<_>>(),
    };
    let sizes = to_sizes(&indices(args.required(1)?)?)?;
    if sizes.len() != axes.len() {
        return Err(OpError::Invalid(format!("{} sizes for {} axes", sizes.len(), axes.len())));
    }
    let mut dims = x.dims().to_vec();
    axes.iter().zip(sizes).for_each(|(&axis, size)| dims[axis] = size);
    // Checked for its size before the lists of positions are made.
    midtread_graph::tensor::n_elements(&dims)?;
    let own = strides(x.dims());
    let from = (0..rank).map(|d| {
        let (n, size) = (x.dims()[d], dims[d]);
        let (skip, before) = (n.saturating_sub(size) / 2, size.saturating_sub(n) / 2);
        let source = |i: usize| i.checked_sub(before).map(|i| i + skip).filter(|&i| i < n);
        (0..size).map(|i| source(i).map(|i| i * own[d])).collect()
    });
    let how = Padded { dims: &dims, from: from.collect() };
    let zero = blank(x.dtype())?;
    Ok(vec![moved(ctx, &[x, &zero], dims.clone(), &how)?])
}
