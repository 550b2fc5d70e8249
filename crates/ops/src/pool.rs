//! Pooling.

use midtread_graph::{DataType, Element, Tensor};
use midtread_kernels::pool::{self as kernel, Divisor, Pool2d, Rounding};

use crate::{
    attr,
    def::{Eval, InputRole, OpDef, OutputRole, Role},
    eval::{Args, EvalCtx, OpError},
    infer::InferCtx,
    shape::product,
    sym::SymDim,
    typed::{by_type, elements, in_f32, unsupported_type},
    unary::{CALIBRATED, NO_INTEGER_FORM},
    window::{Window, WindowAttrs},
};

const SELECTS: Role =
    Role::Quantized { inputs: &[InputRole::Activation], output: OutputRole::SameAs(0) };

/// ONNX MaxPool 1, 8 (indices), 10 (`ceil_mode`), 11, 12 (8-bit integers) and 22.
pub(crate) static MAX_POOL: OpDef = OpDef {
    op_type: "MaxPool",
    domain: "",
    versions: &[1, 8, 10, 11, 12, 22],
    attrs: &[
        "auto_pad",
        "ceil_mode",
        "dilations",
        "kernel_shape",
        "pads",
        "storage_order",
        "strides",
    ],
    infer: |ctx| {
        let dims = infer_pool(ctx)?;
        ctx.set(0, ctx.elem(0), dims.clone());
        ctx.set(1, Some(DataType::Int64), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, max_pool)),
    role: SELECTS,
};

/// ONNX AveragePool 1, 7 (`count_include_pad`), 10 (`ceil_mode`), 11, 19 (dilations) and 22.
pub(crate) static AVERAGE_POOL: OpDef = OpDef {
    op_type: "AveragePool",
    domain: "",
    versions: &[1, 7, 10, 11, 19, 22],
    attrs: &[
        "auto_pad",
        "ceil_mode",
        "count_include_pad",
        "dilations",
        "kernel_shape",
        "pads",
        "strides",
    ],
    infer: |ctx| {
        let dims = infer_pool(ctx)?;
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, average_pool)),
    // ONNX Runtime's quantizer gives the output the input's parameters.
    role: SELECTS,
};

/// ONNX GlobalAveragePool 1 and 22.
pub(crate) static GLOBAL_AVERAGE_POOL: OpDef = OpDef {
    op_type: "GlobalAveragePool",
    domain: "",
    versions: &[1, 22],
    attrs: &[],
    infer: infer_global,
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, args| {
            global(ctx, &args, kernel::global_average_pool, |plane| {
                plane.iter().sum::<f64>() / plane.len() as f64
            })
        })
    }),
    role: CALIBRATED,
};

/// ONNX GlobalMaxPool 1 and 22.
pub(crate) static GLOBAL_MAX_POOL: OpDef = OpDef {
    op_type: "GlobalMaxPool",
    domain: "",
    versions: &[1, 22],
    attrs: &[],
    infer: infer_global,
    eval: Eval::Tensors(|ctx, args| {
        in_f32(ctx, args, |ctx, args| {
            global(ctx, &args, kernel::global_max_pool, |plane| {
                plane.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b))
            })
        })
    }),
    role: SELECTS,
};

/// ONNX LpPool 11, 18 and 22.
pub(crate) static LP_POOL: OpDef = OpDef {
    op_type: "LpPool",
    domain: "",
    versions: &[11, 18, 22],
    attrs: &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "p", "pads", "strides"],
    infer: |ctx| {
        let dims = infer_pool(ctx)?;
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, lp_pool)),
    role: NO_INTEGER_FORM,
};

pub(crate) fn infer_pool(ctx: &InferCtx<'_>) -> Result<Option<Vec<SymDim>>, OpError> {
    let Some(dims) = ctx.dims(0).filter(|d| 3 <= d.len()) else { return Ok(None) };
    let kernel =
        attr::sizes(ctx.node, "kernel_shape")?.ok_or(OpError::MissingAttr("kernel_shape"))?;
    if kernel.len() + 2 != dims.len() {
        return Err(OpError::Invalid(format!(
            "`kernel_shape` is {kernel:?} for {} dimensions",
            dims.len()
        )));
    }
    let spatial = WindowAttrs::read(ctx.node, kernel.len())?.infer(&dims[2..], &kernel)?;
    Ok(Some([&dims[..2], &spatial].concat()))
}

/// Sizes of 1 behind batch and channel.
pub(crate) fn infer_global(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let dims = ctx.dims(0).map(|dims| {
        let one = |(i, d): (usize, &SymDim)| if i < 2 { d.clone() } else { SymDim::known(1) };
        dims.iter().enumerate().map(one).collect()
    });
    ctx.set(0, ctx.elem(0), dims);
    Ok(())
}

/// One number for each channel's plane: the kernel's of `f32`, `f` of `f64`.
fn global(
    ctx: &EvalCtx<'_>,
    args: &Args,
    kernel: fn(&[f32], usize, &mut [f32]),
    f: impl Fn(&[f64]) -> f64,
) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let plane = product(x.dims().get(2..).unwrap_or_default());
    if plane == 0 {
        return Err(OpError::Invalid(format!("a pool over no elements: sizes {:?}", x.dims())));
    }
    let dims = x.dims().iter().enumerate().map(|(i, &d)| if i < 2 { d } else { 1 }).collect();
    let y = match x.dtype() {
        DataType::Float => ctx.pool.fill::<f32>(dims, |dst| {
            kernel(&elements(x)?, plane, dst);
            Ok(())
        })?,
        _ => {
            let src = elements::<f64>(x)?;
            ctx.pool.fill::<f64>(dims, |dst| {
                dst.iter_mut().zip(src.chunks_exact(plane)).for_each(|(d, plane)| *d = f(plane));
                Ok(())
            })?
        }
    };
    Ok(vec![y])
}

/// The window of a pool over `dims`.
pub(crate) fn pool_window(node: &midtread_graph::Node, dims: &[usize]) -> Result<Window, OpError> {
    let kernel = attr::sizes(node, "kernel_shape")?.ok_or(OpError::MissingAttr("kernel_shape"))?;
    if dims.len() < 3 || kernel.len() + 2 != dims.len() {
        return Err(OpError::Invalid(format!("`kernel_shape` is {kernel:?} for sizes {dims:?}")));
    }
    WindowAttrs::read(node, kernel.len())?.over(&dims[2..], &kernel)
}

/// Calls `f` with every output position's index and an iterator over the input positions in its window.
pub(crate) fn for_each_window(
    win: &Window,
    mut f: impl FnMut(usize, &mut dyn Iterator<Item = usize>),
) {
    let (in_h, in_w) = (win.input[1], win.input[2]);
    let mut at = 0;
    for od in 0..win.out[0] {
        let (kd, d) = win.taps(0, od);
        for oh in 0..win.out[1] {
            let (kh, h) = win.taps(1, oh);
            for ow in 0..win.out[2] {
                let (kw, w) = win.taps(2, ow);
                let mut positions = (0..kd.len()).flat_map(|i| {
                    let row = (d + i * win.dilations[0]) * in_h;
                    let kw = kw.clone();
                    (0..kh.len()).flat_map(move |j| {
                        let col = (row + h + j * win.dilations[1]) * in_w + w;
                        (0..kw.len()).map(move |k| col + k * win.dilations[2])
                    })
                });
                f(at, &mut positions);
                at += 1;
            }
        }
    }
}

/// The kernel's sizes of a window over one or two dimensions.
fn to_2d(own: &Window, n_planes: usize) -> Result<Option<Pool2d>, OpError> {
    if 2 < own.input.len() {
        return Ok(None);
    }
    let win = own.to_3d()?;
    let mut pool = Pool2d {
        n_planes,
        input: [win.input[1], win.input[2]],
        kernel: [win.kernel[1], win.kernel[2]],
        strides: [win.strides[1], win.strides[2]],
        pads: [win.begin[1], win.begin[2], win.end[1], win.end[2]],
        dilations: [win.dilations[1], win.dilations[2]],
        rounding: Rounding::Floor,
    };
    // How sizes were rounded shows in the output's.
    if pool.output() != win.out[1..] {
        pool.rounding = Rounding::Ceil;
    }
    Ok(Some(pool))
}

fn max_pool(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    match x.dtype() {
        DataType::Float => max_pool_of(ctx, x, f32::NEG_INFINITY),
        DataType::Double => max_pool_of(ctx, x, f64::NEG_INFINITY),
        DataType::Int8 => max_pool_of(ctx, x, i8::MIN),
        DataType::Uint8 => max_pool_of(ctx, x, u8::MIN),
        dtype => Err(unsupported_type(dtype)),
    }
}

fn max_pool_of<T: Element + PartialOrd>(
    ctx: &EvalCtx<'_>,
    x: &Tensor,
    lowest: T,
) -> Result<Vec<Tensor>, OpError> {
    let own = pool_window(ctx.node, x.dims())?;
    let win = own.to_3d()?;
    let dims = [&x.dims()[..2], &own.out].concat();
    let (in_plane, out_plane) = (product(&win.input), product(&win.out));
    let column_major = attr::flag(ctx.node, "storage_order", false)?;
    let mut indices = vec![0_i64; if 1 < ctx.node.outputs.len() { product(&dims) } else { 0 }];
    let src = elements::<T>(x)?;
    let y = ctx.pool.fill::<T>(dims.clone(), |dst| {
        match to_2d(&own, product(&x.dims()[..2]))? {
            Some(pool) if indices.is_empty() => kernel::max_pool(&pool, &src, lowest, dst),
            Some(pool) => {
                kernel::max_pool_indices(&pool, &src, lowest, dst, &mut indices);
                if column_major {
                    for (i, index) in indices.iter_mut().enumerate() {
                        let plane = i / out_plane * in_plane;
                        *index = flat_index(plane, *index as usize - plane, &win.input, true);
                    }
                }
            }
            None => {
                for (c, dst) in dst.chunks_exact_mut(out_plane.max(1)).enumerate() {
                    let src = &src[c * in_plane..][..in_plane];
                    for_each_window(&win, |o, positions| {
                        let (mut best, mut best_at) = (lowest, 0);
                        for at in positions {
                            if best < src[at] {
                                (best, best_at) = (src[at], at);
                            }
                        }
                        dst[o] = best;
                        if let Some(index) = indices.get_mut(c * out_plane + o) {
                            *index = flat_index(c * in_plane, best_at, &win.input, column_major);
                        }
                    });
                }
            }
        }
        Ok(())
    })?;
    let mut out = vec![y];
    if 1 < ctx.node.outputs.len() {
        out.push(Tensor::from_slice(dims, &indices)?);
    }
    Ok(out)
}

/// The index over the whole input; inside a plane counted down the columns if `column_major`.
fn flat_index(plane: usize, at: usize, input: &[usize], column_major: bool) -> i64 {
    let at = if column_major {
        let (h, w) = (input[1], input[2]);
        let (d, i, j) = (at / (h * w), at / w % h, at % w);
        d + (i + j * h) * input[0]
    } else {
        at
    };
    (plane + at) as i64
}

fn average_pool(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let own = pool_window(ctx.node, x.dims())?;
    let win = own.to_3d()?;
    let include_pad = attr::flag(ctx.node, "count_include_pad", false)?;
    let dims = [&x.dims()[..2], &own.out].concat();
    if let (DataType::Float, Some(pool)) = (x.dtype(), to_2d(&own, product(&x.dims()[..2]))?) {
        let divisor = if include_pad { Divisor::Padded } else { Divisor::Inside };
        let src = elements::<f32>(x)?;
        let y = ctx.pool.fill::<f32>(dims, |y| {
            kernel::average_pool(&pool, divisor, &src, y);
            Ok(())
        })?;
        return Ok(vec![y]);
    }
    let divisors = average_divisors(&win, include_pad);
    let (in_plane, out_plane) = (product(&win.input), product(&win.out));
    by_type!(x.dtype(), T in [f32, f64] => {
        let src = elements::<T>(x)?;
        let y = ctx.pool.fill::<T>(dims, |dst| {
            for (c, dst) in dst.chunks_exact_mut(out_plane.max(1)).enumerate() {
                let src = &src[c * in_plane..][..in_plane];
                for_each_window(&win, |o, positions| {
                    dst[o] = positions.map(|at| src[at]).sum::<T>() / divisors[o] as T;
                });
            }
            Ok(())
        })?;
        Ok(vec![y])
    })
}

/// What each window's sum is divided by: its elements inside the input, or with `include_pad` inside the padded
/// input (a last window of `ceil_mode` may reach past that).
pub(crate) fn average_divisors(win: &Window, include_pad: bool) -> Vec<usize> {
    let counts = |d: usize| -> Vec<usize> {
        (0..win.out[d])
            .map(|o| match include_pad {
                false => win.taps(d, o).0.len(),
                true => {
                    let padded = win.input[d] + win.begin[d] + win.end[d];
                    let room = padded.saturating_sub(o * win.strides[d]);
                    room.div_ceil(win.dilations[d]).min(win.kernel[d])
                }
            })
            .collect()
    };
    let [depth, rows, cols] = [0, 1, 2].map(counts);
    let mut out = Vec::with_capacity(product(&win.out));
    for d in &depth {
        for r in &rows {
            out.extend(cols.iter().map(|c| d * r * c));
        }
    }
    out
}

fn lp_pool(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let p = attr::int(ctx.node, "p", 2)? as i32;
    let own = pool_window(ctx.node, x.dims())?;
    let win = own.to_3d()?;
    let dims = [&x.dims()[..2], &own.out].concat();
    let (in_plane, out_plane) = (product(&win.input), product(&win.out));
    by_type!(x.dtype(), T in [f32, f64] => {
        let src = elements::<T>(x)?;
        let y = ctx.pool.fill::<T>(dims, |dst| {
            for (c, dst) in dst.chunks_exact_mut(out_plane.max(1)).enumerate() {
                let src = &src[c * in_plane..][..in_plane];
                for_each_window(&win, |o, positions| {
                    let sum: T = positions.map(|at| src[at].abs().powi(p)).sum();
                    dst[o] = sum.powf(1.0 / p as T);
                });
            }
            Ok(())
        })?;
        Ok(vec![y])
    })
}
