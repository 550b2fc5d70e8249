//! Operators on 8-bit codes: the standard ones, and those of ONNX Runtime (`com.microsoft`, version 1).
//!
//! Results are those of ONNX Runtime on x86 bit for bit, unless an operator says otherwise: products are summed in
//! `i32`, multiplied in `f32` by `x_scale * w_scale / y_scale`, clamped, rounded to nearest even, and the zero point
//! is added.

use half::{bf16, f16};
use midtread_graph::{DataType, Node, Tensor};
use midtread_kernels::{
    elementwise::{BinaryOp, broadcast_with},
    int8::{Codes, conv_integer, matmul_integer},
    quantize as kernel,
};
use midtread_num::{QParams, QRange, requant, softmax::Softmax, tensor::Code};

use crate::{
    attr, channels_last,
    conv::{ConvSizes, conv_direct, infer_conv, infer_conv_of},
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    gather::concat_dims,
    infer::InferCtx,
    matmul::{Product, infer_matmul},
    norm::same_as_first,
    pool::{average_divisors, for_each_window, infer_global, infer_pool, pool_window},
    quantize::{code_range, codes, dynamic_params, params},
    shape::{broadcast, broadcast_strides, product},
    softmax::normalized_run,
    sym::SymDim,
    typed::{by_type, elements, unsupported_type},
};

const ROLE: Role = Role::Float("it is quantized already");

/// `u8` or `i8` elements.
fn codes8(tensor: &Tensor) -> Result<Codes<'_>, OpError> {
    match tensor.dtype() {
        DataType::Uint8 => Ok(Codes::U8(tensor.as_slice()?)),
        DataType::Int8 => Ok(Codes::I8(tensor.as_slice()?)),
        dtype => Err(unsupported_type(dtype)),
    }
}

/// Zero points of an input: 0 where there are none.
fn zero_points(tensor: Option<&Tensor>) -> Result<Vec<i32>, OpError> {
    tensor.map_or(Ok(vec![0]), codes)
}

/// The one zero point of an input.
fn zero_point(tensor: Option<&Tensor>) -> Result<i32, OpError> {
    match zero_points(tensor)?[..] {
        [z] => Ok(z),
        _ => Err(OpError::Unsupported("more than one zero point of an activation".to_owned())),
    }
}

/// The scales of an input; 16-bit floats widened.
fn scales(args: &Args, i: usize) -> Result<Vec<f32>, OpError> {
    let scales = args.required(i)?;
    match scales.dtype() {
        DataType::Float16 => Ok(elements::<f16>(scales)?.iter().map(|s| s.to_f32()).collect()),
        DataType::Bfloat16 => Ok(elements::<bf16>(scales)?.iter().map(|s| s.to_f32()).collect()),
        _ => Ok(elements::<f32>(scales)?.into_owned()),
    }
}

/// The one scale of an input.
fn scale(args: &Args, i: usize) -> Result<f32, OpError> {
    match scales(args, i)?[..] {
        [scale] => Ok(scale),
        _ => Err(OpError::Unsupported("more than one scale of an activation".to_owned())),
    }
}

/// Parameters of one activation: scale at input `i`, zero point behind it.
fn activation(
    ctx: &EvalCtx<'_>,
    args: &Args,
    i: usize,
    dtype: DataType,
) -> Result<QParams, OpError> {
    let range = code_range(dtype).ok_or_else(|| unsupported_type(dtype))?;
    match params(ctx, args.required(i)?, args.get(i + 1), range)?[..] {
        [params] => Ok(params),
        _ => Err(OpError::Unsupported("more than one scale of an activation".to_owned())),
    }
}

/// The element type of an optional zero point: `uint8` without one.
fn code_type(zero_point: Option<&Tensor>) -> DataType {
    zero_point.map_or(DataType::Uint8, Tensor::dtype)
}

/// Writes 8-bit codes.
fn fill_codes(
    ctx: &EvalCtx<'_>,
    dtype: DataType,
    dims: Vec<usize>,
    mut code: impl FnMut(usize) -> i32,
) -> Result<Tensor, OpError> {
    match dtype {
        DataType::Uint8 => ctx.pool.fill::<u8>(dims, |dst| {
            dst.iter_mut().enumerate().for_each(|(i, d)| *d = code(i) as u8);
            Ok(())
        }),
        DataType::Int8 => ctx.pool.fill::<i8>(dims, |dst| {
            dst.iter_mut().enumerate().for_each(|(i, d)| *d = code(i) as i8);
            Ok(())
        }),
        dtype => Err(unsupported_type(dtype)),
    }
}

/// ONNX MatMulInteger 10.
pub(crate) static MATMUL_INTEGER: OpDef = OpDef {
    op_type: "MatMulInteger",
    domain: "",
    versions: &[10],
    attrs: &[],
    infer: |ctx| infer_matmul(ctx, 1, Some(DataType::Int32)),
    eval: Eval::Tensors(|_, args| {
        let (a, b) = (args.required(0)?, args.required(1)?);
        let (product, acc) = sums(a, args.get(2), b, args.get(3))?;
        Ok(vec![Tensor::from_slice(product.dims, &acc)?])
    }),
    role: ROLE,
};

/// The `i`-th of matrices of `len` elements.
fn part(x: Codes<'_>, i: usize, len: usize) -> Codes<'_> {
    match x {
        Codes::U8(x) => Codes::U8(&x[i * len..][..len]),
        Codes::I8(x) => Codes::I8(&x[i * len..][..len]),
    }
}

/// The `i32` products of a batch of matrices.
fn sums(
    a: &Tensor,
    a_zero_point: Option<&Tensor>,
    b: &Tensor,
    b_zero_point: Option<&Tensor>,
) -> Result<(Product, Vec<i32>), OpError> {
    let p = Product::new(a.dims(), b.dims())?;
    let (za, zb) = (zero_points(a_zero_point)?, zero_points(b_zero_point)?);
    let (n_a, n_b) = (a.len() / (p.m * p.k).max(1), b.len() / (p.k * p.n).max(1));
    // One for all, one for each row or column, or one for each of each matrix.
    let own = |z: &[i32], i: usize, per: usize, n: usize| -> Result<Vec<i32>, OpError> {
        match z.len() {
            1 => Ok(z.to_vec()),
            len if len == per => Ok(z.to_vec()),
            len if len == per * n => Ok(z[i * per..][..per].to_vec()),
            len => Err(OpError::Invalid(format!("{len} zero points for {per} rows or columns"))),
        }
    };
    let mut acc = vec![0; p.pairs.len() * p.m * p.n];
    let (xa, xb) = (codes8(a)?, codes8(b)?);
    // One right factor for all rows: one taller product.
    if n_b == 1 && za.len() == 1 {
        let m = p.pairs.len() * p.m;
        matmul_integer([m, p.k, p.n], xa, &za, xb, &own(&zb, 0, p.n, 1)?, &mut acc);
        return Ok((p, acc));
    }
    for (&(i, j), acc) in p.pairs.iter().zip(acc.chunks_exact_mut((p.m * p.n).max(1))) {
        let (za, zb) = (own(&za, i, p.m, n_a)?, own(&zb, j, p.n, n_b)?);
        let (a, b) = (part(xa, i, p.m * p.k), part(xb, j, p.k * p.n));
        matmul_integer([p.m, p.k, p.n], a, &za, b, &zb, acc);
    }
    Ok((p, acc))
}

/// ONNX ConvInteger 10.
pub(crate) static CONV_INTEGER: OpDef = OpDef {
    op_type: "ConvInteger",
    domain: "",
    versions: &[10],
    attrs: &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"],
    infer: |ctx| infer_conv(ctx, Some(DataType::Int32)),
    eval: Eval::Tensors(|ctx, args| {
        let (x, w) = (args.required(0)?, args.required(1)?);
        let sizes = ConvSizes::read(ctx.node, x.dims(), w.dims())?;
        let y = ctx.pool.fill::<i32>(sizes.out_dims(), |acc| {
            conv_sums(&sizes, x, args.get(2), w, args.get(3), acc)
        })?;
        Ok(vec![y])
    }),
    role: ROLE,
};

fn conv_sums(
    sizes: &ConvSizes,
    x: &Tensor,
    x_zero_point: Option<&Tensor>,
    w: &Tensor,
    w_zero_point: Option<&Tensor>,
    acc: &mut [i32],
) -> Result<(), OpError> {
    let (zx, zw) = (zero_point(x_zero_point)?, zero_points(w_zero_point)?);
    if !matches!(zw.len(), 1) && zw.len() != sizes.out_channels {
        return Err(OpError::Invalid(format!(
            "{} zero points for {} channels",
            zw.len(),
            sizes.out_channels
        )));
    }
    if let Some(conv) = sizes.to_2d()? {
        conv_integer(&conv, codes8(x)?, zx, codes8(w)?, &zw, acc);
        return Ok(());
    }
    let per_channel = w.len() / sizes.out_channels.max(1);
    let x: Vec<i32> = codes(x)?.into_iter().map(|q| q - zx).collect();
    let nth = |i: usize| zw[if zw.len() == 1 { 0 } else { i / per_channel }];
    let w: Vec<i32> = codes(w)?.into_iter().enumerate().map(|(i, q)| q - nth(i)).collect();
    conv_direct(&x, &w, None, sizes, acc)
}

/// ONNX QLinearConv 10.
pub(crate) static QLINEAR_CONV: OpDef = OpDef {
    op_type: "QLinearConv",
    domain: "",
    versions: &[10],
    attrs: &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"],
    infer: |ctx| infer_conv_of(ctx, 3, ctx.elem(7)),
    eval: Eval::Tensors(qlinear_conv),
    role: ROLE,
};

/// QLinearConv of ONNX Runtime, which may have the channels last.
pub(crate) static MS_QLINEAR_CONV: OpDef = OpDef {
    op_type: "QLinearConv",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &["auto_pad", "channels_last", "dilations", "group", "kernel_shape", "pads", "strides"],
    infer: |ctx| channels_last::infer_as_asked(ctx, |ctx| infer_conv_of(ctx, 3, ctx.elem(7))),
    eval: Eval::Tensors(|ctx, args| channels_last::eval_as_asked(ctx, args, qlinear_conv)),
    role: ROLE,
};

fn qlinear_conv(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (x, w) = (args.required(0)?, args.required(3)?);
    let sizes = ConvSizes::read(ctx.node, x.dims(), w.dims())?;
    let mut acc = ctx.pool.tensor(DataType::Int32, sizes.out_dims())?;
    conv_sums(&sizes, x, args.get(2), w, args.get(5), acc.to_mut()?)?;
    let plane = product(&sizes.window.out);
    if let Some(bias) = args.get(8) {
        let bias = elements::<i32>(bias)?;
        if bias.len() != sizes.out_channels {
            return Err(OpError::Invalid(format!("a bias of {} elements", bias.len())));
        }
        for (i, acc) in acc.to_mut::<i32>()?.chunks_exact_mut(plane.max(1)).enumerate() {
            let bias = bias[i % bias.len()];
            acc.iter_mut().for_each(|a| *a = a.wrapping_add(bias));
        }
    }
    let multipliers = multipliers(&args, 1, 4, 6, sizes.out_channels)?;
    let y = requantized_rows(ctx, &acc, sizes.out_dims(), plane, &multipliers, args.get(7))?;
    ctx.pool.give_back(acc);
    Ok(vec![y])
}

/// `x_scale * w_scale / y_scale` for each of `n` channels, or the one for all.
fn multipliers(args: &Args, x: usize, w: usize, y: usize, n: usize) -> Result<Vec<f32>, OpError> {
    let (sx, sy) = (scale(args, x)?, scale(args, y)?);
    let sw = scales(args, w)?;
    if sw.len() != 1 && sw.len() != n {
        return Err(OpError::Invalid(format!("{} scales for {n} channels", sw.len())));
    }
    Ok(sw.iter().map(|&sw| requant::multiplier(sx, sw, sy)).collect())
}

/// Sums in rows of `len`, each with the next of the multipliers.
fn requantized_rows(
    ctx: &EvalCtx<'_>,
    acc: &Tensor,
    dims: Vec<usize>,
    len: usize,
    multipliers: &[f32],
    zero_point_tensor: Option<&Tensor>,
) -> Result<Tensor, OpError> {
    let acc = acc.as_slice::<i32>()?;
    let z = zero_point(zero_point_tensor)?;
    let len = if multipliers.len() == 1 { acc.len() } else { len }.max(1);
    macro_rules! write {
        ($t:ty, $f:path, $range:expr) => {
            ctx.pool.fill::<$t>(dims, |dst| {
                let rows = acc.chunks(len).zip(dst.chunks_mut(len)).enumerate();
                for (i, (acc, dst)) in rows {
                    $f(acc, dst, multipliers[i % multipliers.len()], z, $range);
                }
                Ok(())
            })
        };
    }
    match code_type(zero_point_tensor) {
        DataType::Uint8 => write!(u8, kernel::requantize_u8, QRange::U8),
        DataType::Int8 => write!(i8, kernel::requantize_i8, QRange::I8),
        dtype => Err(unsupported_type(dtype)),
    }
}

/// Sums in rows as long as there are multipliers, or one multiplier for all.
fn requantized_columns(
    ctx: &EvalCtx<'_>,
    acc: &[i32],
    dims: Vec<usize>,
    multipliers: &[f32],
    zero_point_tensor: Option<&Tensor>,
) -> Result<Tensor, OpError> {
    let z = zero_point(zero_point_tensor)?;
    match code_type(zero_point_tensor) {
        DataType::Uint8 => ctx.pool.fill::<u8>(dims, |dst| {
            kernel::requantize_channels_u8(acc, dst, multipliers, z, QRange::U8);
            Ok(())
        }),
        DataType::Int8 => ctx.pool.fill::<i8>(dims, |dst| {
            kernel::requantize_channels_i8(acc, dst, multipliers, z, QRange::I8);
            Ok(())
        }),
        dtype => Err(unsupported_type(dtype)),
    }
}

/// ONNX QLinearMatMul 10 and 21, 8-bit codes.
pub(crate) static QLINEAR_MATMUL: OpDef = OpDef {
    op_type: "QLinearMatMul",
    domain: "",
    versions: &[10, 21],
    attrs: &[],
    infer: |ctx| infer_matmul(ctx, 3, ctx.elem(7)),
    eval: Eval::Tensors(|ctx, args| {
        let (a, b) = (args.required(0)?, args.required(3)?);
        let (p, acc) = sums(a, args.get(2), b, args.get(5))?;
        let multipliers = multipliers(&args, 1, 4, 6, p.n)?;
        Ok(vec![requantized_columns(ctx, &acc, p.dims, &multipliers, args.get(7))?])
    }),
    role: ROLE,
};

fn infer_broadcast_pair(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let dims = match (ctx.dims(0), ctx.dims(3)) {
        (Some(a), Some(b)) => Some(crate::shape::broadcast_syms(&[a, b])?),
        _ => None,
    };
    ctx.set(0, ctx.elem(0), dims);
    Ok(())
}

/// The quantized sum of two tensors. `com.microsoft` QLinearAdd.
pub(crate) static QLINEAR_ADD: OpDef = OpDef {
    op_type: "QLinearAdd",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &[],
    infer: infer_broadcast_pair,
    eval: Eval::Tensors(|ctx, args| {
        let (a, b) = (args.required(0)?, args.required(3)?);
        let dtype = a.dtype();
        let range = code_range(dtype).ok_or_else(|| unsupported_type(dtype))?;
        let [pa, pb, pc] = [
            activation(ctx, &args, 1, dtype)?,
            activation(ctx, &args, 4, dtype)?,
            activation(ctx, &args, 6, dtype)?,
        ];
        by_type!(dtype, T in [u8, i8] => {
            let (xa, xb) = (elements::<T>(a)?, elements::<T>(b)?);
            let y = ctx.pool.fill::<T>(broadcast(&[a.dims(), b.dims()])?, |y| {
                broadcast_with(&xa, a.dims(), &xb, b.dims(), y, |a, b| {
                    T::from_i32(pc.quantize(pa.dequantize(a.to_i32()) + pb.dequantize(b.to_i32()), range))
                });
                Ok(())
            })?;
            Ok(vec![y])
        })
    }),
    role: ROLE,
};

/// The quantized product of two tensors. `com.microsoft` QLinearMul.
pub(crate) static QLINEAR_MUL: OpDef = OpDef {
    op_type: "QLinearMul",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &[],
    infer: infer_broadcast_pair,
    eval: Eval::Tensors(|ctx, args| {
        let (a, b) = (args.required(0)?, args.required(3)?);
        let dtype = a.dtype();
        let range = code_range(dtype).ok_or_else(|| unsupported_type(dtype))?;
        let [pa, pb, pc] = [
            activation(ctx, &args, 1, dtype)?,
            activation(ctx, &args, 4, dtype)?,
            activation(ctx, &args, 6, dtype)?,
        ];
        let multiplier = requant::multiplier(pa.scale(), pb.scale(), pc.scale());
        by_type!(dtype, T in [u8, i8] => {
            let (xa, xb) = (elements::<T>(a)?, elements::<T>(b)?);
            let y = ctx.pool.fill::<T>(broadcast(&[a.dims(), b.dims()])?, |y| {
                broadcast_with(&xa, a.dims(), &xb, b.dims(), y, |a, b| {
                    let acc = (a.to_i32() - pa.zero_point()) * (b.to_i32() - pb.zero_point());
                    T::from_i32(requant::requantize(acc, multiplier, pc.zero_point(), range))
                });
                Ok(())
            })?;
            Ok(vec![y])
        })
    }),
    role: ROLE,
};

/// Elements of one of two tensors of codes. `com.microsoft` QLinearWhere.
pub(crate) static QLINEAR_WHERE: OpDef = OpDef {
    op_type: "QLinearWhere",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &[],
    infer: |ctx| {
        let dims = match (ctx.dims(0), ctx.dims(1), ctx.dims(4)) {
            (Some(c), Some(x), Some(y)) => Some(crate::shape::broadcast_syms(&[c, x, y])?),
            _ => None,
        };
        ctx.set(0, ctx.elem(1), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        let (condition, x, y) = (args.required(0)?, args.required(1)?, args.required(4)?);
        let dtype = x.dtype();
        let range = code_range(dtype).ok_or_else(|| unsupported_type(dtype))?;
        let [px, py, pz] = [
            activation(ctx, &args, 2, dtype)?,
            activation(ctx, &args, 5, dtype)?,
            activation(ctx, &args, 7, dtype)?,
        ];
        let moved = |x: &Tensor, px: QParams| match px == pz {
            true => Ok(x.clone()),
            false => through_table(ctx, x, |q| pz.quantize(px.dequantize(q), range)),
        };
        let (x, y) = (moved(x, px)?, moved(y, py)?);
        crate::binary::select(ctx, Args(vec![Some(condition.clone()), Some(x), Some(y)]))
    }),
    role: ROLE,
};

/// `f` of the real value that each code stands for, as a table of all codes.
fn by_table(
    ctx: &EvalCtx<'_>,
    args: &Args,
    f: impl Fn(f32) -> f32,
) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let (px, py) = (activation(ctx, args, 1, x.dtype())?, activation(ctx, args, 3, x.dtype())?);
    let range = code_range(x.dtype()).ok_or_else(|| unsupported_type(x.dtype()))?;
    Ok(vec![through_table(ctx, x, |q| py.quantize(f(px.dequantize(q)), range))?])
}

/// `f` of every code of an 8-bit tensor.
fn through_table(ctx: &EvalCtx<'_>, x: &Tensor, f: impl Fn(i32) -> i32) -> Result<Tensor, OpError> {
    let from_byte =
        |b: u8| if x.dtype() == DataType::Int8 { i32::from(b as i8) } else { i32::from(b) };
    codes8(x)?;
    let table: Vec<u8> = (0..=255).map(|b| f(from_byte(b)) as u8).collect();
    let mut y = ctx.pool.tensor(x.dtype(), x.dims().to_vec())?;
    for (d, &s) in y.bytes_mut().iter_mut().zip(x.as_bytes()) {
        *d = table[usize::from(s)];
    }
    Ok(y)
}

/// `com.microsoft` QLinearSigmoid.
pub(crate) static QLINEAR_SIGMOID: OpDef = OpDef {
    op_type: "QLinearSigmoid",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &[],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| by_table(ctx, &args, |x| 1.0 / (1.0 + (-x).exp()))),
    role: ROLE,
};

/// `com.microsoft` QLinearLeakyRelu.
pub(crate) static QLINEAR_LEAKY_RELU: OpDef = OpDef {
    op_type: "QLinearLeakyRelu",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &["alpha"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| {
        let alpha = attr::float(ctx.node, "alpha", 0.01)?;
        by_table(ctx, &args, |x| if x < 0.0 { alpha * x } else { x })
    }),
    role: ROLE,
};

/// Inputs of any parameters, joined with those of the output. `com.microsoft` QLinearConcat.
pub(crate) static QLINEAR_CONCAT: OpDef = OpDef {
    op_type: "QLinearConcat",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &["axis"],
    infer: |ctx| {
        let inputs: Option<Vec<&[SymDim]>> =
            (2..ctx.n_inputs()).step_by(3).map(|i| ctx.dims(i)).collect();
        let dims = match inputs {
            Some(inputs) => concat_dims(ctx.node, &inputs)?,
            None => None,
        };
        ctx.set(0, ctx.elem(2), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        let dtype = code_type(args.get(1));
        let range = code_range(dtype).ok_or_else(|| unsupported_type(dtype))?;
        let py = activation(ctx, &args, 0, dtype)?;
        let parts = (2..args.len()).step_by(3).map(|i| {
            let (x, px) = (args.required(i)?, activation(ctx, &args, i + 1, dtype)?);
            if px == py {
                return Ok(x.clone());
            }
            through_table(ctx, x, |q| py.quantize(px.dequantize(q), range))
        });
        let parts = parts.map(|p| p.map(Some)).collect::<Result<Vec<_>, OpError>>()?;
        crate::gather::concat(ctx, Args(parts))
    }),
    role: ROLE,
};

/// `com.microsoft` QLinearGlobalAveragePool.
pub(crate) static QLINEAR_GLOBAL_AVERAGE_POOL: OpDef = OpDef {
    op_type: "QLinearGlobalAveragePool",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &["channels_last"],
    infer: |ctx| channels_last::infer_as_asked(ctx, infer_global),
    eval: Eval::Tensors(|ctx, args| channels_last::eval_as_asked(ctx, args, global_average)),
    role: ROLE,
};

fn global_average(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let (px, py) = (activation(ctx, &args, 1, x.dtype())?, activation(ctx, &args, 3, x.dtype())?);
    let range = code_range(x.dtype()).ok_or_else(|| unsupported_type(x.dtype()))?;
    let plane = product(x.dims().get(2..).unwrap_or_default());
    let dims = x.dims().iter().enumerate().map(|(i, &d)| if i < 2 { d } else { 1 }).collect();
    let src = codes(x)?;
    let multiplier = requant::multiplier(px.scale(), 1.0, py.scale() * plane as f32);
    let y = fill_codes(ctx, x.dtype(), dims, |i| {
        let sum: i32 = src[i * plane..][..plane].iter().sum();
        requant::requantize(
            sum - px.zero_point() * plane as i32,
            multiplier,
            py.zero_point(),
            range,
        )
    })?;
    Ok(vec![y])
}

/// `com.microsoft` QLinearAveragePool: the mean in `f32`, and the zero point added before rounding, so that ties
/// differ from QuantizeLinear's where it is odd.
pub(crate) static QLINEAR_AVERAGE_POOL: OpDef = OpDef {
    op_type: "QLinearAveragePool",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &[
        "auto_pad",
        "ceil_mode",
        "channels_last",
        "count_include_pad",
        "kernel_shape",
        "pads",
        "strides",
    ],
    infer: |ctx| {
        channels_last::infer_as_asked(ctx, |ctx| {
            let dims = infer_pool(ctx)?;
            ctx.set(0, ctx.elem(0), dims);
            Ok(())
        })
    },
    eval: Eval::Tensors(|ctx, args| channels_last::eval_as_asked(ctx, args, average)),
    role: ROLE,
};

fn average(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let (px, py) = (activation(ctx, &args, 1, x.dtype())?, activation(ctx, &args, 3, x.dtype())?);
    let range = code_range(x.dtype()).ok_or_else(|| unsupported_type(x.dtype()))?;
    let own = pool_window(ctx.node, x.dims())?;
    let win = own.to_3d()?;
    let divisors = average_divisors(&win, attr::flag(ctx.node, "count_include_pad", false)?);
    let (in_plane, out_plane) = (product(&win.input), product(&win.out));
    let src = codes(x)?;
    let dims = [&x.dims()[..2], &own.out].concat();
    let mut means = vec![0.0_f32; product(&dims)];
    for (c, means) in means.chunks_exact_mut(out_plane.max(1)).enumerate() {
        let src = &src[c * in_plane..][..in_plane];
        for_each_window(&win, |o, positions| {
            means[o] = positions.map(|at| px.dequantize(src[at])).sum::<f32>() / divisors[o] as f32;
        });
    }
    let (lo, hi) = (range.qmin() as f32, range.qmax() as f32);
    let y = fill_codes(ctx, x.dtype(), dims, |i| {
        let steps = requant::multiplier(means[i], 1.0, py.scale());
        (steps + py.zero_point() as f32).round_ties_even().max(lo).min(hi) as i32
    })?;
    Ok(vec![y])
}

/// `com.microsoft` QLinearSoftmax, as ONNX Runtime computes it: a table of exponentials, `floor(1 / y_scale)` as
/// the factor, and saturation at 255 only.
pub(crate) static QLINEAR_SOFTMAX: OpDef = OpDef {
    op_type: "QLinearSoftmax",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &["axis", "opset"],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, args| {
        let x = args.required(0)?;
        let (px, py) =
            (activation(ctx, &args, 1, x.dtype())?, activation(ctx, &args, 3, x.dtype())?);
        let opset = attr::int(ctx.node, "opset", 13)?;
        let (n, inner) = normalized_run(ctx.node, opset, x.dims())?;
        let signed = x.dtype() == DataType::Int8;
        let bytes: Vec<usize> =
            codes(x)?.into_iter().map(|q| (if signed { q + 128 } else { q }) as usize).collect();
        let softmax = Softmax::new(n, px.scale(), py.scale(), py.zero_point());
        let table = &softmax.exponentials;
        let mut out = vec![0; x.len()];
        for group in 0..x.len() / n.max(1) {
            let start = group / inner * n * inner + group % inner;
            let along = || (0..n).map(|i| start + i * inner);
            let max = along().map(|at| bytes[at]).max().unwrap_or(0);
            let sum: f32 = along().map(|at| table[255 - max + bytes[at]]).sum();
            for at in along() {
                out[at] = softmax.code(table[255 - max + bytes[at]], sum);
            }
        }
        Ok(vec![fill_codes(ctx, x.dtype(), x.dims().to_vec(), |i| out[i])?])
    }),
    role: ROLE,
};

/// `com.microsoft` QGemm: codes, or `f32` where no output scale is given.
pub(crate) static QGEMM: OpDef = OpDef {
    op_type: "QGemm",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &["alpha", "transA", "transB"],
    infer: |ctx| {
        let pick = |i: usize, trans: &'static str, d: usize| -> Result<SymDim, OpError> {
            let d = if attr::flag(ctx.node, trans, false)? { 1 - d } else { d };
            Ok(ctx.dims(i).and_then(|dims| dims.get(d)).cloned().unwrap_or(SymDim::Unknown))
        };
        let dims = vec![pick(0, "transA", 0)?, pick(3, "transB", 1)?];
        let elem = if ctx.input(7).is_some() { ctx.elem(8) } else { Some(DataType::Float) };
        ctx.set(0, elem, Some(dims));
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        let alpha = attr::float(ctx.node, "alpha", 1.0)?;
        let turned = |i: usize, name: &'static str| -> Result<Tensor, OpError> {
            let x = args.required(i)?;
            if x.dims().len() != 2 {
                return Err(OpError::Invalid(format!("a matrix of sizes {:?}", x.dims())));
            }
            if attr::flag(ctx.node, name, false)? {
                crate::layout::transposed(ctx, x.clone(), &[1, 0])
            } else {
                Ok(x.clone())
            }
        };
        let (a, b) = (turned(0, "transA")?, turned(3, "transB")?);
        let (p, mut acc) = sums(&a, args.get(2), &b, args.get(5))?;
        if let Some(c) = args.get(6) {
            let strides = broadcast_strides(c.dims(), &p.dims);
            if broadcast(&[c.dims(), &p.dims])? != p.dims {
                return Err(OpError::Invalid(format!("C of sizes {:?}", c.dims())));
            }
            let c = elements::<i32>(c)?;
            for (i, acc) in acc.iter_mut().enumerate() {
                let at = (i / p.n) as isize * strides[0] + (i % p.n) as isize * strides[1];
                *acc = acc.wrapping_add(c[at as usize]);
            }
        }
        let sa = alpha * scale(&args, 1)?;
        let sb = elements::<f32>(args.required(4)?)?;
        if sb.len() != 1 && sb.len() != p.n {
            return Err(OpError::Invalid(format!("{} scales for {} columns", sb.len(), p.n)));
        }
        let Some(_) = args.get(7) else {
            let scales: Vec<f32> = sb.iter().map(|sb| sa * sb).collect();
            let y = ctx.pool.fill::<f32>(p.dims, |y| {
                scaled_sums(&acc, &scales, None, y);
                Ok(())
            })?;
            return Ok(vec![y]);
        };
        let sy = scale(&args, 7)?;
        let multipliers: Vec<f32> = sb.iter().map(|&sb| requant::multiplier(sa, sb, sy)).collect();
        Ok(vec![requantized_columns(ctx, &acc, p.dims, &multipliers, args.get(8))?])
    }),
    role: ROLE,
};

/// Sums as real numbers: a scale for each column or one for all, and a bias for each column.
fn scaled_sums(acc: &[i32], scales: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let n = scales.len().max(bias.map_or(1, <[f32]>::len));
    for (acc, y) in acc.chunks(n).zip(y.chunks_mut(n)) {
        for (j, (&acc, y)) in acc.iter().zip(y).enumerate() {
            let scaled = acc as f32 * scales[if scales.len() == 1 { 0 } else { j }];
            *y = match bias {
                Some(bias) => scaled + bias[j],
                None => scaled,
            };
        }
    }
}

/// `f32` activations quantized on the way, times constant codes. `com.microsoft` DynamicQuantizeMatMul.
pub(crate) static DYNAMIC_QUANTIZE_MATMUL: OpDef = OpDef {
    op_type: "DynamicQuantizeMatMul",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &[],
    infer: |ctx| infer_matmul(ctx, 1, Some(DataType::Float)),
    eval: Eval::Tensors(|ctx, args| {
        let x = args.required(0)?;
        let src = elements::<f32>(x)?;
        let px = dynamic_params(&src)?;
        let a = crate::quantize::quantized(
            ctx,
            &src,
            x.dims(),
            midtread_num::Granularity::PerTensor,
            &[px],
            DataType::Uint8,
        )?;
        let za = Tensor::scalar(px.zero_point() as u8);
        to_float(
            ctx,
            &a,
            Some(&za),
            args.required(1)?,
            args.get(3),
            px.scale(),
            args.required(2)?,
            args.get(4),
        )
    }),
    role: ROLE,
};

/// The product of two tensors of codes, in `f32`. `com.microsoft` MatMulIntegerToFloat.
pub(crate) static MATMUL_INTEGER_TO_FLOAT: OpDef = OpDef {
    op_type: "MatMulIntegerToFloat",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &[],
    infer: |ctx| infer_matmul(ctx, 1, Some(DataType::Float)),
    eval: Eval::Tensors(|ctx, args| {
        let (a, b) = (args.required(0)?, args.required(1)?);
        to_float(
            ctx,
            a,
            args.get(4),
            b,
            args.get(5),
            scale(&args, 2)?,
            args.required(3)?,
            args.get(6),
        )
    }),
    role: ROLE,
};

/// The product of two tensors of codes with their scales and zero points, in `f32`.
pub(crate) fn float_product(
    ctx: &EvalCtx<'_>,
    (a, b): (&Tensor, &Tensor),
    (a_scale, b_scale): (&Tensor, &Tensor),
    (a_zero_point, b_zero_point): (Option<&Tensor>, Option<&Tensor>),
) -> Result<Tensor, OpError> {
    let a_scale = match elements::<f32>(a_scale)?[..] {
        [scale] => scale,
        _ => return Err(OpError::Unsupported("more than one scale of an activation".to_owned())),
    };
    Ok(to_float(ctx, a, a_zero_point, b, b_zero_point, a_scale, b_scale, None)?.remove(0))
}

#[expect(clippy::too_many_arguments, reason = "two operands of three parts each")]
fn to_float(
    ctx: &EvalCtx<'_>,
    a: &Tensor,
    a_zero_point: Option<&Tensor>,
    b: &Tensor,
    b_zero_point: Option<&Tensor>,
    a_scale: f32,
    b_scale: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Vec<Tensor>, OpError> {
    let (p, acc) = sums(a, a_zero_point, b, b_zero_point)?;
    let scales: Vec<f32> = elements::<f32>(b_scale)?.iter().map(|s| a_scale * s).collect();
    let bias = bias.map(elements::<f32>).transpose()?;
    if scales.len() != 1 && scales.len() != p.n || bias.as_ref().is_some_and(|b| b.len() != p.n) {
        return Err(OpError::Invalid(format!("scales or bias that are not of {} columns", p.n)));
    }
    let y = ctx.pool.fill::<f32>(p.dims, |y| {
        scaled_sums(&acc, &scales, bias.as_deref(), y);
        Ok(())
    })?;
    Ok(vec![y])
}

/// The order in which FusedMatMul takes an operand's dimensions: with `batch` the first goes before the last, with
/// `name` the last two change places.
fn turned_axes(
    node: &Node,
    rank: usize,
    name: &'static str,
    batch: &'static str,
) -> Result<Vec<usize>, OpError> {
    let mut perm: Vec<usize> = (0..rank).collect();
    if 2 <= rank {
        if attr::flag(node, batch, false)? {
            perm[..rank - 1].rotate_left(1);
        }
        if attr::flag(node, name, false)? {
            perm.swap(rank - 1, rank - 2);
        }
    }
    Ok(perm)
}

/// `com.microsoft` FusedMatMul: MatMul with a factor and transposed operands.
pub(crate) static FUSED_MATMUL: OpDef = OpDef {
    op_type: "FusedMatMul",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &["alpha", "transA", "transB", "transBatchA", "transBatchB"],
    infer: |ctx| {
        let turned = |i: usize, name: &'static str, batch: &'static str| {
            let Some(dims) = ctx.dims(i) else { return Ok(None) };
            let perm = turned_axes(ctx.node, dims.len(), name, batch)?;
            Ok::<_, OpError>(Some(perm.iter().map(|&d| dims[d].clone()).collect::<Vec<_>>()))
        };
        let dims = match (turned(0, "transA", "transBatchA")?, turned(1, "transB", "transBatchB")?)
        {
            (Some(a), Some(b)) if !a.is_empty() && !b.is_empty() => {
                Some(crate::matmul::matmul_syms(&a, &b)?)
            }
            _ => None,
        };
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        crate::typed::in_f32(ctx, args, |ctx, args| {
            let turned = |i: usize, name: &'static str, batch: &'static str| {
                let x = args.required(i)?;
                let perm = turned_axes(ctx.node, x.dims().len(), name, batch)?;
                crate::layout::transposed(ctx, x.clone(), &perm)
            };
            let (a, b) = (turned(0, "transA", "transBatchA")?, turned(1, "transB", "transBatchB")?);
            crate::matmul::product_f32(ctx, &a, &b, attr::float(ctx.node, "alpha", 1.0)?)
        })
    }),
    role: ROLE,
};

/// Weights of 2, 4 or 8 bits in blocks along `K`, decoded to `f32` and multiplied. `com.microsoft` MatMulNBits.
///
/// `accuracy_level` allows ONNX Runtime to quantize the activations too; here they stay as they are.
pub(crate) static MATMUL_N_BITS: OpDef = OpDef {
    op_type: "MatMulNBits",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &["K", "N", "accuracy_level", "bits", "block_size", "weight_prepacked"],
    infer: |ctx| {
        let n = SymDim::known(attr::int(ctx.node, "N", 0)?);
        let dims = ctx.dims(0).and_then(|d| d.split_last()).map(|(_, head)| [head, &[n]].concat());
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        crate::typed::in_f32(ctx, args, |ctx, args| {
            let (k, n) = (attr::size(ctx.node, "K", 0)?, attr::size(ctx.node, "N", 0)?);
            let bits = attr::size(ctx.node, "bits", 4)?;
            let block = attr::size(ctx.node, "block_size", 0)?;
            if !matches!(bits, 2 | 4 | 8) || block == 0 || !(block * bits).is_multiple_of(8) {
                return Err(OpError::Unsupported(format!("`bits` {bits} in blocks of {block}")));
            }
            if args.get(4).is_some() || attr::flag(ctx.node, "weight_prepacked", false)? {
                return Err(OpError::Unsupported("`g_idx` or `weight_prepacked`".to_owned()));
            }
            let a = args.required(0)?;
            let packed = args.required(1)?.as_bytes();
            let scales = elements::<f32>(args.required(2)?)?;
            let n_blocks = k.div_ceil(block);
            let (block_bytes, zero_bytes) = (block * bits / 8, (n_blocks * bits).div_ceil(8));
            if packed.len() != n * n_blocks * block_bytes || scales.len() != n * n_blocks {
                return Err(OpError::Invalid(format!(
                    "{} bytes and {} scales for {n} columns of {n_blocks} blocks",
                    packed.len(),
                    scales.len()
                )));
            }
            let per_byte = 8 / bits;
            let mask = if bits == 8 { 0xff } else { (1_u8 << bits) - 1 };
            let code = |bytes: &[u8], i: usize| bytes[i / per_byte] >> (i % per_byte * bits) & mask;
            let zero_points: Vec<f32> = match args.get(3) {
                None => vec![f32::from(1_u8 << (bits - 1)); n * n_blocks],
                Some(z) if z.dtype() == DataType::Uint8 && z.len() == n * zero_bytes => (0..n
                    * n_blocks)
                    .map(|i| {
                        f32::from(code(&z.as_bytes()[i / n_blocks * zero_bytes..], i % n_blocks))
                    })
                    .collect(),
                Some(z) if z.dtype() == DataType::Float && z.len() == n * n_blocks => z.to_vec()?,
                Some(z) => {
                    return Err(OpError::Invalid(format!(
                        "zero points {}{:?}",
                        z.dtype(),
                        z.dims()
                    )));
                }
            };
            // Column by column, as the blocks lie: the transpose of what is multiplied with.
            let mut w = vec![0.0_f32; n * k];
            for (col, w) in w.chunks_exact_mut(k.max(1)).enumerate() {
                for (b, w) in w.chunks_mut(block).enumerate() {
                    let at = col * n_blocks + b;
                    let bytes = &packed[at * block_bytes..][..block_bytes];
                    for (i, w) in w.iter_mut().enumerate() {
                        *w = (f32::from(code(bytes, i)) - zero_points[at]) * scales[at];
                    }
                }
            }
            let w = Tensor::from_slice(vec![n, k], &w)?;
            let y = crate::matmul::product_transposed_f32(ctx, a, &w)?;
            match args.get(5) {
                Some(bias) => Ok(vec![crate::binary::kernel(ctx, &y, bias, BinaryOp::Add)?]),
                None => Ok(vec![y]),
            }
        })
    }),
    role: ROLE,
};
