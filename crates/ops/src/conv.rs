//! Conv and ConvTranspose.

use std::ops::{Add, AddAssign, Mul};

use midtread_graph::{DataType, Element, Node, Tensor};
use midtread_kernels::{
    conv::{Conv2d, conv2d},
    gemm::Bias,
};

use crate::{
    attr,
    def::{Eval, InputRole, OpDef, OutputRole, Role},
    eval::{Args, EvalCtx, OpError},
    followers::Followers,
    infer::InferCtx,
    shape::known,
    sym::SymDim,
    typed::{by_type, elements, in_f32},
    window::{AutoPad, Window, WindowAttrs},
};

/// `y = w * x + b` over sliding windows. ONNX Conv 1, 11 and 22.
pub(crate) static CONV: OpDef = OpDef {
    op_type: "Conv",
    domain: "",
    versions: &[1, 11, 22],
    attrs: &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"],
    infer: |ctx| infer_conv(ctx, ctx.elem(0)),
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, conv)),
    role: Role::Quantized {
        inputs: &[
            InputRole::Activation,
            InputRole::Weight { channel_axis: |_, rank| (1 < rank).then_some(0) },
            InputRole::Bias,
        ],
        output: OutputRole::Calibrated,
    },
};

/// The adjoint of Conv. ONNX ConvTranspose 1, 11 and 22.
pub(crate) static CONV_TRANSPOSE: OpDef = OpDef {
    op_type: "ConvTranspose",
    domain: "",
    versions: &[1, 11, 22],
    attrs: &[
        "auto_pad",
        "dilations",
        "group",
        "kernel_shape",
        "output_padding",
        "output_shape",
        "pads",
        "strides",
    ],
    infer: infer_conv_transpose,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, conv_transpose)),
    role: Role::Quantized {
        // Weights are (in, out / group, ...), unlike Conv's (out, in / group, ...).
        inputs: &[
            InputRole::Activation,
            InputRole::Weight { channel_axis: |_, rank| (1 < rank).then_some(1) },
            InputRole::Bias,
        ],
        output: OutputRole::Calibrated,
    },
};

/// Sizes of a convolution, checked against each other.
pub(crate) struct ConvSizes {
    pub(crate) batch: usize,
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) groups: usize,
    pub(crate) window: Window,
}

impl ConvSizes {
    /// From the attributes and the sizes of `x` (N, C, spatial) and `w` (M, C / group, kernel).
    pub(crate) fn read(node: &Node, x: &[usize], w: &[usize]) -> Result<Self, OpError> {
        if x.len() < 3 || w.len() != x.len() {
            return Err(OpError::Invalid(format!(
                "a convolution of sizes {x:?} with weights of sizes {w:?}"
            )));
        }
        let groups = attr::size(node, "group", 1)?;
        let (in_channels, out_channels) = (x[1], w[0]);
        if groups == 0
            || out_channels % groups != 0
            || w[1].checked_mul(groups) != Some(in_channels)
        {
            return Err(OpError::Invalid(format!(
                "{in_channels} input channels do not fit {groups} groups of weights of sizes {w:?}"
            )));
        }
        let kernel = kernel_shape(node, &w[2..])?;
        let window = WindowAttrs::read(node, kernel.len())?.over(&x[2..], &kernel)?;
        Ok(Self { batch: x[0], in_channels, out_channels, groups, window })
    }

    /// The kernel's sizes, if it is a convolution over one or two dimensions.
    pub(crate) fn to_2d(&self) -> Result<Option<Conv2d>, OpError> {
        let win = self.window.to_3d()?;
        if 2 < self.window.input.len() {
            return Ok(None);
        }
        Ok(Some(Conv2d {
            n: self.batch,
            c_in: self.in_channels,
            c_out: self.out_channels,
            input: [win.input[1], win.input[2]],
            kernel: [win.kernel[1], win.kernel[2]],
            strides: [win.strides[1], win.strides[2]],
            pads: [win.begin[1], win.begin[2], win.end[1], win.end[2]],
            dilations: [win.dilations[1], win.dilations[2]],
            groups: self.groups,
        }))
    }

    /// Sizes of the output.
    pub(crate) fn out_dims(&self) -> Vec<usize> {
        [&[self.batch, self.out_channels][..], &self.window.out].concat()
    }
}

/// The kernel's sizes, which the attribute may repeat.
fn kernel_shape(node: &Node, of_weights: &[usize]) -> Result<Vec<usize>, OpError> {
    match attr::sizes(node, "kernel_shape")? {
        Some(shape) if !shape.is_empty() && shape != of_weights => Err(OpError::Invalid(format!(
            "`kernel_shape` is {shape:?}, the weights' is {of_weights:?}"
        ))),
        _ => Ok(of_weights.to_vec()),
    }
}

/// Shape rule of Conv, and of its integer forms, whose element types differ.
pub(crate) fn infer_conv(ctx: &mut InferCtx<'_>, elem: Option<DataType>) -> Result<(), OpError> {
    infer_conv_of(ctx, 1, elem)
}

/// The same with the weights at another input.
pub(crate) fn infer_conv_of(
    ctx: &mut InferCtx<'_>,
    weights: usize,
    elem: Option<DataType>,
) -> Result<(), OpError> {
    let dims = match (ctx.dims(0), ctx.dims(weights)) {
        (Some(x), Some(w)) if 3 <= x.len() && x.len() == w.len() => {
            let head = [x[0].clone(), w[0].clone()];
            let kernel = match attr::sizes(ctx.node, "kernel_shape")? {
                Some(shape) if shape.len() + 2 == x.len() => Some(shape),
                _ => known(&w[2..]),
            };
            let spatial = match kernel {
                Some(kernel) => {
                    WindowAttrs::read(ctx.node, kernel.len())?.infer(&x[2..], &kernel)?
                }
                None => vec![SymDim::Unknown; x.len() - 2],
            };
            Some([&head[..], &spatial].concat())
        }
        (Some(x), _) if 3 <= x.len() => {
            let mut dims = vec![SymDim::Unknown; x.len()];
            dims[0] = x[0].clone();
            Some(dims)
        }
        _ => None,
    };
    ctx.set(0, elem, dims);
    Ok(())
}

fn conv(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    conv_then(ctx, args, &Followers::default())
}

/// A Conv, and the followers in the same pass. They must be none where the tensors are not float32 over one or two
/// dimensions.
pub fn conv_then(
    ctx: &EvalCtx<'_>,
    args: Args,
    followers: &Followers,
) -> Result<Vec<Tensor>, OpError> {
    let (x, w) = (args.required(0)?, args.required(1)?);
    let sizes = ConvSizes::read(ctx.node, x.dims(), w.dims())?;
    let bias = args.get(2);
    if let Some(bias) = bias
        && bias.dims() != [sizes.out_channels]
    {
        return Err(OpError::Invalid(format!(
            "the bias has sizes {:?} for {} output channels",
            bias.dims(),
            sizes.out_channels
        )));
    }
    if let (DataType::Float, Some(conv)) = (x.dtype(), sizes.to_2d()?) {
        let (x, w) = (elements::<f32>(x)?, elements::<f32>(w)?);
        let bias = bias.map(elements::<f32>).transpose()?;
        let y = ctx.pool.fill::<f32>(sizes.out_dims(), |y| {
            let bias = bias.as_deref().map_or(Bias::None, Bias::PerRow);
            conv2d(&conv, &x, &w, &followers.epilogue(bias), y);
            Ok(())
        })?;
        return Ok(vec![y]);
    }
    if !followers.is_empty() {
        return Err(crate::typed::unsupported_type(x.dtype()));
    }
    by_type!(x.dtype(), T in [f32, f64] => {
        let (x, w) = (elements::<T>(x)?, elements::<T>(w)?);
        let bias = bias.map(elements::<T>).transpose()?;
        let y = ctx.pool.fill::<T>(sizes.out_dims(), |y| conv_direct(&x, &w, bias.as_deref(), &sizes, y))?;
        Ok(vec![y])
    })
}

/// Arithmetic that a convolution is defined in.
pub(crate) trait Ring:
    Copy + Default + Add<Output = Self> + Mul<Output = Self> + AddAssign
{
}
impl<T: Copy + Default + Add<Output = T> + Mul<Output = T> + AddAssign> Ring for T {}

/// The definition, over any arithmetic: rows of the output gather scaled rows of the input.
pub(crate) fn conv_direct<T: Ring>(
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    sizes: &ConvSizes,
    y: &mut [T],
) -> Result<(), OpError> {
    let win = sizes.window.to_3d()?;
    let (x_plane, y_plane) =
        (win.input.iter().product::<usize>(), win.out.iter().product::<usize>());
    let taps = win.kernel.iter().product::<usize>();
    let in_per_group = sizes.in_channels / sizes.groups;
    let out_per_group = sizes.out_channels / sizes.groups;
    if y_plane == 0 {
        return Ok(());
    }
    for (plane_idx, plane) in y.chunks_exact_mut(y_plane).enumerate() {
        let (n, m) = (plane_idx / sizes.out_channels, plane_idx % sizes.out_channels);
        plane.fill(bias.map_or(T::default(), |b| b[m]));
        for c in 0..in_per_group {
            let channel = n * sizes.in_channels + m / out_per_group * in_per_group + c;
            let x = &x[channel * x_plane..][..x_plane];
            let w = &w[(m * in_per_group + c) * taps..][..taps];
            add_scaled_windows(x, w, &win, plane);
        }
    }
    Ok(())
}

fn add_scaled_windows<T: Ring>(x: &[T], w: &[T], win: &Window, y: &mut [T]) {
    let (in_h, in_w) = (win.input[1], win.input[2]);
    let (out_h, out_w) = (win.out[1], win.out[2]);
    let mut w = w.iter();
    for kd in 0..win.kernel[0] {
        let (depths, first_d) = win.reach_of(0, kd);
        for kh in 0..win.kernel[1] {
            let (rows, first_h) = win.reach_of(1, kh);
            for kw in 0..win.kernel[2] {
                let (cols, first_w) = win.reach_of(2, kw);
                let &w = w.next().expect("one weight per tap");
                if cols.is_empty() {
                    continue;
                }
                for od in depths.clone() {
                    let id = first_d + (od - depths.start) * win.strides[0];
                    for oh in rows.clone() {
                        let ih = first_h + (oh - rows.start) * win.strides[1];
                        let x = &x[(id * in_h + ih) * in_w + first_w..(id * in_h + ih + 1) * in_w];
                        let y = &mut y[(od * out_h + oh) * out_w..][..out_w][cols.clone()];
                        for (y, &x) in y.iter_mut().zip(x.iter().step_by(win.strides[2])) {
                            *y += w * x;
                        }
                    }
                }
            }
        }
    }
}

/// How ConvTranspose scatters: [`Window`] is that of the convolution it is the adjoint of, whose input is this
/// one's output.
fn transpose_window(
    node: &Node,
    input: &[usize],
    kernel: &[usize],
) -> Result<(WindowAttrs, Vec<usize>), OpError> {
    let rank = input.len();
    let mut attrs = WindowAttrs::read(node, rank)?;
    let extra = attr::sizes(node, "output_padding")?.unwrap_or_else(|| vec![0; rank]);
    let wanted = attr::sizes(node, "output_shape")?.filter(|s| !s.is_empty());
    if extra.len() != rank || wanted.as_ref().is_some_and(|w| w.len() != rank) {
        return Err(OpError::Invalid(
            "`output_padding` or `output_shape` has another rank".to_owned(),
        ));
    }
    let mut out = vec![0; rank];
    for d in 0..rank {
        let full = input[d].saturating_sub(1) * attrs.strides[d]
            + extra[d]
            + kernel[d].saturating_sub(1) * attrs.dilations[d]
            + 1;
        let same = matches!(attrs.auto_pad, AutoPad::SameUpper | AutoPad::SameLower);
        match &wanted {
            None if !same => {
                if attrs.auto_pad == AutoPad::Valid {
                    (attrs.begin[d], attrs.end[d]) = (0, 0);
                }
                out[d] = full.saturating_sub(attrs.begin[d] + attrs.end[d]);
            }
            _ => {
                out[d] = wanted.as_ref().map_or(input[d] * attrs.strides[d], |w| w[d]);
                let total = full.saturating_sub(out[d]);
                let less = total / 2;
                attrs.begin[d] =
                    if attrs.auto_pad == AutoPad::SameUpper { less } else { total - less };
                attrs.end[d] = total - attrs.begin[d];
            }
        }
    }
    Ok((attrs, out))
}

fn infer_conv_transpose(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let groups = attr::size(ctx.node, "group", 1)? as i64;
    let dims = match (ctx.dims(0), ctx.dims(1)) {
        (Some(x), Some(w)) if 3 <= x.len() && x.len() == w.len() => {
            let mut dims = vec![x[0].clone(), w[1].mul(&SymDim::known(groups))];
            for d in 2..x.len() {
                let sizes = (known(&x[2..]), known(&w[2..]));
                dims.push(match sizes {
                    (Some(x), Some(w)) => {
                        SymDim::known(transpose_window(ctx.node, &x, &w)?.1[d - 2] as i64)
                    }
                    _ => SymDim::Unknown,
                });
            }
            Some(dims)
        }
        _ => None,
    };
    ctx.set(0, ctx.elem(0), dims);
    Ok(())
}

/// The convolution over one or two dimensions that a ConvTranspose is the adjoint of, given the sizes of `x` and `w`.
pub(crate) fn transpose_sizes(node: &Node, x: &[usize], w: &[usize]) -> Result<Conv2d, OpError> {
    let groups = attr::size(node, "group", 1)?;
    if x.len() < 3 || w.len() != x.len() || groups == 0 || !x[1].is_multiple_of(groups) {
        return Err(OpError::Invalid(format!("sizes {x:?} and {w:?} in {groups} groups")));
    }
    let kernel = kernel_shape(node, &w[2..])?;
    let (attrs, out) = transpose_window(node, &x[2..], &kernel)?;
    let window = Window {
        input: out,
        kernel,
        strides: attrs.strides,
        dilations: attrs.dilations,
        begin: attrs.begin,
        end: attrs.end,
        out: x[2..].to_vec(),
    };
    let sizes =
        ConvSizes { batch: x[0], in_channels: w[1] * groups, out_channels: x[1], groups, window };
    let conv = sizes.to_2d()?.filter(|conv| {
        conv.output()[..] == sizes.window.to_3d().map_or([0; 2], |win| [win.out[1], win.out[2]])[..]
    });
    conv.ok_or_else(|| OpError::Unsupported("a gradient of this window".into()))
}

fn conv_transpose(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (x, w, bias) = (args.required(0)?, args.required(1)?, args.get(2));
    let (xd, wd) = (x.dims(), w.dims());
    let groups = attr::size(ctx.node, "group", 1)?;
    if xd.len() < 3 || wd.len() != xd.len() || wd[0] != xd[1] || groups == 0 || xd[1] % groups != 0
    {
        return Err(OpError::Invalid(format!(
            "a transposed convolution of sizes {xd:?} with weights of sizes {wd:?} in {groups} groups"
        )));
    }
    let kernel = kernel_shape(ctx.node, &wd[2..])?;
    let (attrs, out) = transpose_window(ctx.node, &xd[2..], &kernel)?;
    let win = Window {
        input: out.clone(),
        kernel,
        strides: attrs.strides,
        dilations: attrs.dilations,
        begin: attrs.begin,
        end: attrs.end,
        out: xd[2..].to_vec(),
    };
    let win = win.to_3d()?;
    let out_channels = wd[1] * groups;
    let dims = [&[xd[0], out_channels][..], &out].concat();
    if bias.is_some_and(|b| b.dims() != [out_channels]) {
        return Err(OpError::Invalid(format!("the bias is not of {out_channels} elements")));
    }
    by_type!(x.dtype(), T in [f32, f64] => {
        let (x, w) = (elements::<T>(x)?, elements::<T>(w)?);
        let bias = bias.map(elements::<T>).transpose()?;
        let y = ctx.pool.fill::<T>(dims, |y| {
            scatter(&x, &w, bias.as_deref(), (xd[1], out_channels, groups), &win, y);
            Ok(())
        })?;
        Ok(vec![y])
    })
}

fn scatter<T: Element + Ring>(
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    (in_channels, out_channels, groups): (usize, usize, usize),
    win: &Window,
    y: &mut [T],
) {
    let (x_plane, y_plane) =
        (win.out.iter().product::<usize>(), win.input.iter().product::<usize>());
    let taps = win.kernel.iter().product::<usize>();
    if y_plane == 0 {
        return;
    }
    let (in_per_group, out_per_group) = (in_channels / groups, out_channels / groups);
    for (plane_idx, plane) in y.chunks_exact_mut(y_plane).enumerate() {
        let (n, m) = (plane_idx / out_channels, plane_idx % out_channels);
        plane.fill(bias.map_or(T::default(), |b| b[m]));
        for c in 0..in_per_group {
            let channel = m / out_per_group * in_per_group + c;
            let x = &x[(n * in_channels + channel) * x_plane..][..x_plane];
            let w = &w[(channel * out_per_group + m % out_per_group) * taps..][..taps];
            scatter_plane(x, w, win, plane);
        }
    }
}

fn scatter_plane<T: Ring>(x: &[T], w: &[T], win: &Window, y: &mut [T]) {
    let (y_h, y_w) = (win.input[1], win.input[2]);
    let mut x = x.iter();
    for od in 0..win.out[0] {
        for oh in 0..win.out[1] {
            for ow in 0..win.out[2] {
                let &x = x.next().expect("one element per position");
                let ((kd, d), (kh, h), (kw, col)) =
                    (win.taps(0, od), win.taps(1, oh), win.taps(2, ow));
                for kd_i in kd.clone() {
                    let yd = d + (kd_i - kd.start) * win.dilations[0];
                    for kh_i in kh.clone() {
                        let yh = h + (kh_i - kh.start) * win.dilations[1];
                        for kw_i in kw.clone() {
                            let yw = col + (kw_i - kw.start) * win.dilations[2];
                            y[(yd * y_h + yh) * y_w + yw] +=
                                x * w[(kd_i * win.kernel[1] + kh_i) * win.kernel[2] + kw_i];
                        }
                    }
                }
            }
        }
    }
}
