//! Images made larger or smaller.

use midtread_graph::{AttrValue, DataType, Element, Node, Tensor};

use crate::{
    attr,
    cast::cast,
    def::{Eval, OpDef},
    eval::{Args, EvalCtx, OpError},
    gather::Padded,
    infer::InferCtx,
    layout::{MOVES, to_sizes},
    shape::{Odometer, blank, moved, normalize_axes, product, strides},
    sym::SymDim,
    typed::{elements, indices, reals},
};

/// ONNX Resize 10, 11, 13, 18 (`antialias`, `axes`, `keep_aspect_ratio_policy`) and 19.
///
/// `align_corners` divides by the output's size, which is a whole number, as ONNX Runtime does; onnx's reference
/// divides by the scaled size before it is rounded. Integers are interpolated in `f32` and cut towards zero.
pub(crate) static RESIZE: OpDef = OpDef {
    op_type: "Resize",
    domain: "",
    versions: &[10, 11, 13, 18, 19],
    attrs: &[
        "antialias",
        "axes",
        "coordinate_transformation_mode",
        "cubic_coeff_a",
        "exclude_outside",
        "extrapolation_value",
        "keep_aspect_ratio_policy",
        "mode",
        "nearest_mode",
    ],
    infer: infer_resize,
    eval: Eval::Tensors(resize),
    role: MOVES,
};

/// ONNX Upsample 7 (scales in an attribute) and 9: nearest and linear.
pub(crate) static UPSAMPLE: OpDef = OpDef {
    op_type: "Upsample",
    domain: "",
    versions: &[7, 9],
    attrs: &["mode", "scales"],
    infer: infer_resize,
    eval: Eval::Tensors(resize),
    role: MOVES,
};

/// The positions of scales and sizes among the inputs.
fn inputs(node: &Node, opset: i64) -> (usize, usize) {
    if node.op_type == "Upsample" || opset < 11 { (1, usize::MAX) } else { (2, 3) }
}

/// Which sizes an aspect ratio that is kept may not exceed or stay below.
#[derive(Clone, Copy, PartialEq)]
enum Aspect {
    Stretch,
    NotLarger,
    NotSmaller,
}

fn aspect(node: &Node) -> Result<Aspect, OpError> {
    match attr::string(node, "keep_aspect_ratio_policy", "stretch")? {
        "stretch" => Ok(Aspect::Stretch),
        "not_larger" => Ok(Aspect::NotLarger),
        "not_smaller" => Ok(Aspect::NotSmaller),
        other => Err(OpError::Invalid(format!("`keep_aspect_ratio_policy` is `{other}`"))),
    }
}

fn axes(node: &Node, rank: usize) -> Result<Vec<usize>, OpError> {
    match attr::ints(node, "axes")? {
        Some(axes) => normalize_axes(axes, rank),
        None => Ok((0..rank).collect()),
    }
}

fn attr_floats(node: &Node, name: &'static str) -> Result<Option<Vec<f32>>, OpError> {
    match node.attr(name) {
        None => Ok(None),
        Some(AttrValue::Floats(floats)) => Ok(Some(floats.clone())),
        Some(_) => Err(OpError::Invalid(format!("attribute `{name}` is not a list of floats"))),
    }
}

/// What the sizes become, and the scale along each dimension.
fn resized(
    node: &Node,
    from: &[usize],
    scales: Option<&[f32]>,
    sizes: Option<&[i64]>,
) -> Result<(Vec<usize>, Vec<f64>), OpError> {
    let axes = axes(node, from.len())?;
    let mut dims = from.to_vec();
    let mut factors = vec![1.0; from.len()];
    match (scales, sizes) {
        (Some(scales), None) if scales.len() == axes.len() => {
            for (&axis, &scale) in axes.iter().zip(scales) {
                // Scales of 0 or less have no inverse.
                if !(0.0 < scale && scale.is_finite()) {
                    return Err(OpError::Invalid(format!("a scale of {scale}")));
                }
                dims[axis] = (from[axis] as f64 * f64::from(scale)).floor() as usize;
                factors[axis] = f64::from(scale);
            }
        }
        (None, Some(sizes)) if sizes.len() == axes.len() => {
            let sizes = to_sizes(sizes)?;
            let ratio = |(&axis, &size): (&usize, &usize)| size as f64 / from[axis] as f64;
            let ratios: Vec<f64> = axes.iter().zip(&sizes).map(ratio).collect();
            let common = match aspect(node)? {
                Aspect::Stretch => None,
                Aspect::NotLarger => ratios.iter().copied().reduce(f64::min),
                Aspect::NotSmaller => ratios.iter().copied().reduce(f64::max),
            };
            for (i, &axis) in axes.iter().enumerate() {
                (dims[axis], factors[axis]) = match common {
                    // Halves are rounded up.
                    Some(ratio) => ((ratio * from[axis] as f64 + 0.5).floor() as usize, ratio),
                    None => (sizes[i], ratios[i]),
                };
            }
        }
        _ => return Err(OpError::Invalid("not one scale or size for each axis".to_owned())),
    }
    Ok((dims, factors))
}

fn infer_resize(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let (scales, sizes) = inputs(ctx.node, ctx.opset);
    let scales = match attr_floats(ctx.node, "scales")? {
        Some(scales) => Some(scales),
        None => ctx.constant(scales).filter(|t| !t.is_empty()).and_then(|t| t.to_vec::<f32>().ok()),
    };
    let Some(dims) = ctx.dims(0) else {
        ctx.set(0, ctx.elem(0), None);
        return Ok(());
    };
    let axes = axes(ctx.node, dims.len())?;
    let aspect = aspect(ctx.node)?;
    let mut out = dims.to_vec();
    match (scales, ctx.value(sizes)) {
        (Some(scales), _) if scales.len() == axes.len() => {
            for (&axis, &scale) in axes.iter().zip(&scales) {
                out[axis] = match dims[axis].as_known() {
                    Some(d) => SymDim::known((d as f64 * f64::from(scale)).floor() as i64),
                    None if scale.fract() == 0.0 => dims[axis].mul(&SymDim::known(scale as i64)),
                    None => SymDim::Unknown,
                };
            }
        }
        (None, Some(sizes)) if sizes.len() == axes.len() && aspect == Aspect::Stretch => {
            axes.iter().zip(sizes).for_each(|(&axis, size)| out[axis] = size);
        }
        (None, Some(sizes)) if sizes.len() == axes.len() => {
            let sizes: Option<Vec<i64>> = sizes.iter().map(SymDim::as_known).collect();
            let known = crate::shape::known(dims).zip(sizes);
            match known {
                Some((from, sizes)) => {
                    let (dims, _) = resized(ctx.node, &from, None, Some(&sizes))?;
                    out = dims.iter().map(|&d| SymDim::known(d as i64)).collect();
                }
                None => axes.iter().for_each(|&axis| out[axis] = SymDim::Unknown),
            }
        }
        _ => axes.iter().for_each(|&axis| out[axis] = SymDim::Unknown),
    }
    ctx.set(0, ctx.elem(0), Some(out));
    Ok(())
}

/// How positions along one dimension correspond.
struct Positions<'a> {
    transform: &'a str,
    /// Sizes before and after.
    n: f64,
    out: f64,
    factor: f64,
    /// The part of the input that is shown, from 0 to 1.
    roi: (f64, f64),
}

impl Positions<'_> {
    /// Where output `i` lies in the input.
    fn source(&self, i: usize) -> Result<f64, OpError> {
        let (n, out, factor, i) = (self.n, self.out, self.factor, i as f64);
        Ok(match self.transform {
            "tf_crop_and_resize" => {
                let (start, end) = self.roi;
                let offset = if out <= 1.0 {
                    (end - start) * (n - 1.0) / 2.0
                } else {
                    i * (end - start) * (n - 1.0) / (out - 1.0)
                };
                start * (n - 1.0) + offset
            }
            _ if factor == 1.0 && n == out => i,
            "asymmetric" => i / factor,
            "half_pixel" => (i + 0.5) / factor - 0.5,
            "half_pixel_symmetric" => {
                // The input's middle and the output's coincide although the size was rounded down.
                n / 2.0 * (1.0 - out / (factor * n)) + (i + 0.5) / factor - 0.5
            }
            "tf_half_pixel_for_nn" => (i + 0.5) / factor,
            "pytorch_half_pixel" if out <= 1.0 => 0.0,
            "pytorch_half_pixel" => (i + 0.5) / factor - 0.5,
            "align_corners" if out == 1.0 => 0.0,
            "align_corners" => i * (n - 1.0) / (out - 1.0),
            other => {
                let name = "coordinate_transformation_mode";
                return Err(OpError::Invalid(format!("`{name}` is `{other}`")));
            }
        })
    }

    /// Whether output `i` lies outside the input, where only `tf_crop_and_resize` minds.
    fn is_outside(&self, i: usize) -> Result<bool, OpError> {
        let at = self.source(i)?;
        Ok(self.transform == "tf_crop_and_resize" && !(0.0..=self.n - 1.0).contains(&at))
    }
}

/// Weights of the neighbors of a position.
#[derive(Clone, Copy)]
struct Filter {
    /// The cubic's parameter; none: linear.
    cubic: Option<f64>,
    antialias: bool,
    exclude_outside: bool,
}

impl Filter {
    /// The elements of a dimension of `n`, clamped to it, that the position `at` is made of.
    fn taps(self, at: f64, n: usize, factor: f64) -> Vec<(usize, f64)> {
        // Made smaller, a filter without aliasing is as much wider.
        let shrink = if self.antialias { factor.min(1.0) } else { 1.0 };
        let reach = if self.cubic.is_some() { 2.0 } else { 1.0 };
        let start = (-reach / shrink).floor() as i64 + 1;
        let end = 2 - start;
        let floor = at.floor();
        let weight = |i: i64| {
            let x = ((i as f64 - (at - floor)) * shrink).abs();
            match self.cubic {
                Some(a) if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
                Some(a) if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
                Some(_) => 0.0,
                None => (1.0 - x).max(0.0),
            }
        };
        let last = n as i64 - 1;
        let mut taps: Vec<(usize, f64)> = (start..end)
            .map(|i| {
                let place = floor as i64 + i;
                let counts = !self.exclude_outside || (0..=last).contains(&place);
                (place.clamp(0, last) as usize, if counts { weight(i) } else { 0.0 })
            })
            .collect();
        let sum: f64 = taps.iter().map(|(_, w)| w).sum();
        if (self.antialias || self.exclude_outside) && sum != 0.0 {
            taps.iter_mut().for_each(|(_, w)| *w /= sum);
        }
        taps.retain(|&(_, w)| w != 0.0);
        taps
    }
}

/// For each position along a dimension the elements it is made of; `None` leaves the dimension as it is.
type Taps<T> = Option<Vec<Vec<(usize, T)>>>;

/// One dimension of values after the other: the weights of an interpolation in several are products.
fn interpolate<T>(
    ctx: &EvalCtx<'_>,
    mut x: Tensor,
    to: &[usize],
    taps: impl Fn(usize) -> Result<Taps<T>, OpError>,
) -> Result<Tensor, OpError>
where
    T: Element + Default + std::ops::Mul<Output = T> + std::ops::AddAssign,
{
    for d in 0..to.len() {
        let Some(taps) = taps(d)? else { continue };
        let mut dims = x.dims().to_vec();
        let (n, inner, outer) = (dims[d], product(&dims[d + 1..]), product(&dims[..d]));
        dims[d] = to[d];
        let values = elements::<T>(&x)?;
        let next = ctx.pool.fill::<T>(dims, |next| {
            next.fill(T::default());
            for o in 0..outer {
                for (i, taps) in taps.iter().enumerate() {
                    let row = &mut next[(o * to[d] + i) * inner..][..inner];
                    for &(at, weight) in taps {
                        let src = &values[(o * n + at) * inner..][..inner];
                        row.iter_mut().zip(src).for_each(|(y, &x)| *y += x * weight);
                    }
                }
            }
            Ok(())
        })?;
        drop(values);
        x = next;
    }
    Ok(x)
}

/// One node with sizes: what becomes of each dimension, and how.
struct Resizing<'a> {
    mode: &'a str,
    transform: &'a str,
    nearest_mode: &'a str,
    from: Vec<usize>,
    dims: Vec<usize>,
    positions: Vec<Positions<'a>>,
}

impl<'a> Resizing<'a> {
    fn read(node: &'a Node, opset: i64, from: &[usize], args: &Args) -> Result<Self, OpError> {
        let rank = from.len();
        let own = |name: &'static str, default: &'static str| attr::string(node, name, default);
        // Before version 11, and in Upsample, positions are only scaled, and nearest is the one below.
        let old = node.op_type == "Upsample" || opset < 11;
        let transform =
            own("coordinate_transformation_mode", if old { "asymmetric" } else { "half_pixel" })?;
        let (scales_at, sizes_at) = inputs(node, opset);
        let scales = match attr_floats(node, "scales")? {
            Some(scales) => Some(scales),
            None => {
                let scales = args.get(scales_at).filter(|t| !t.is_empty());
                scales.map(|t| t.to_vec::<f32>()).transpose()?
            }
        };
        let sizes = args.get(sizes_at).filter(|t| !t.is_empty()).map(indices).transpose()?;
        let (dims, factors) = resized(node, from, scales.as_deref(), sizes.as_deref())?;
        let mut roi = vec![(0.0, 1.0); rank];
        if transform == "tf_crop_and_resize" {
            let axes = axes(node, rank)?;
            let bounds = reals(args.required(1)?)?;
            if bounds.len() != 2 * axes.len() {
                return Err(OpError::Invalid(format!("{} bounds of a region", bounds.len())));
            }
            for (i, &axis) in axes.iter().enumerate() {
                roi[axis] = (bounds[i], bounds[axes.len() + i]);
            }
        }
        let positions = (0..rank)
            .map(|d| Positions {
                transform,
                n: from[d] as f64,
                out: dims[d] as f64,
                factor: factors[d],
                roi: roi[d],
            })
            .collect();
        let nearest_mode = own("nearest_mode", if old { "floor" } else { "round_prefer_floor" })?;
        let mode = own("mode", "nearest")?;
        Ok(Self { mode, transform, nearest_mode, from: from.to_vec(), dims, positions })
    }

    /// The weights along dimension `d`.
    fn taps(&self, node: &Node, d: usize) -> Result<Taps<f64>, OpError> {
        let filter = Filter {
            cubic: match self.mode {
                "linear" | "bilinear" => None,
                "cubic" => Some(f64::from(attr::float(node, "cubic_coeff_a", -0.75)?)),
                other => return Err(OpError::Invalid(format!("`mode` is `{other}`"))),
            },
            antialias: attr::flag(node, "antialias", false)?,
            exclude_outside: attr::flag(node, "exclude_outside", false)?,
        };
        let p = &self.positions[d];
        if p.factor == 1.0 && p.n == p.out && p.roi == (0.0, 1.0) {
            return Ok(None);
        }
        let one = |i| {
            let at = p.source(i)?.clamp(-4.0, p.n + 4.0);
            Ok(filter.taps(at, self.from[d], p.factor))
        };
        (0..self.dims[d]).map(one).collect::<Result<_, OpError>>().map(Some)
    }
}

/// The gradient of the input of an interpolation (not of `nearest`): each element gets back what it gave.
pub(crate) fn interpolation_gradient(
    ctx: &EvalCtx<'_>,
    from: &[usize],
    args: &Args,
    dy: &Tensor,
) -> Result<Tensor, OpError> {
    let resizing = Resizing::read(ctx.node, ctx.opset, from, args)?;
    if resizing.transform == "tf_crop_and_resize" {
        return Err(OpError::Unsupported("a gradient of `tf_crop_and_resize`".to_owned()));
    }
    interpolate::<f32>(ctx, dy.clone(), from, |d| {
        let Some(taps) = resizing.taps(ctx.node, d)? else { return Ok(None) };
        let mut back = vec![Vec::new(); from[d]];
        for (i, taps) in taps.iter().enumerate() {
            taps.iter().for_each(|&(at, weight)| back[at].push((i, weight as f32)));
        }
        Ok(Some(back))
    })
}

fn resize(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (x, node) = (args.required(0)?, ctx.node);
    let rank = x.dims().len();
    let resizing = Resizing::read(node, ctx.opset, x.dims(), &args)?;
    let Resizing { mode, transform, nearest_mode, dims, positions, .. } = &resizing;
    if x.is_empty() {
        let y = ctx.pool.tensor(x.dtype(), dims.clone())?;
        return match y.is_empty() {
            true => Ok(vec![y]),
            false => Err(OpError::Invalid("an image without elements made larger".to_owned())),
        };
    }
    let outside = attr::float(node, "extrapolation_value", 0.0)?;
    let outside = |dtype| match dtype {
        DataType::String => blank(dtype),
        _ => cast(ctx, Tensor::scalar(outside), dtype),
    };
    if *mode == "nearest" {
        let round: fn(f64) -> f64 = match *nearest_mode {
            "floor" => f64::floor,
            "ceil" => f64::ceil,
            "round_prefer_ceil" => |x| (x + 0.5).floor(),
            "round_prefer_floor" => |x| (x - 0.5).ceil(),
            other => return Err(OpError::Invalid(format!("`nearest_mode` is `{other}`"))),
        };
        let strides = strides(x.dims());
        let at = |d: usize, i: usize| -> Result<Option<usize>, OpError> {
            let at = round(positions[d].source(i)?).clamp(0.0, positions[d].n - 1.0);
            Ok((!positions[d].is_outside(i)?).then_some(at as usize * strides[d]))
        };
        midtread_graph::tensor::n_elements(dims)?;
        let from = (0..rank).map(|d| (0..dims[d]).map(|i| at(d, i)).collect());
        let from = from.collect::<Result<Vec<Vec<_>>, OpError>>()?;
        let how = Padded { dims, from };
        return Ok(vec![moved(ctx, &[x, &outside(x.dtype())?], dims.clone(), &how)?]);
    }
    if x.dtype() == DataType::String {
        return Err(crate::typed::unsupported_type(x.dtype()));
    }
    let taps = |d: usize| resizing.taps(node, d);
    let mut y = if x.dtype() == DataType::Double {
        interpolate(ctx, x.clone(), dims, taps)?
    } else {
        let wide = cast(ctx, x.clone(), DataType::Float)?;
        let narrow =
            |taps: Vec<(usize, f64)>| taps.into_iter().map(|(i, w)| (i, w as f32)).collect();
        let taps = |d| Ok(taps(d)?.map(|all| all.into_iter().map(narrow).collect()));
        interpolate::<f32>(ctx, wide, dims, taps)?
    };
    if *transform == "tf_crop_and_resize" {
        let outside = outside(y.dtype())?;
        let is_outside = |d: usize| (0..dims[d]).map(|i| positions[d].is_outside(i)).collect();
        let is_outside: Vec<Vec<bool>> = (0..rank).map(is_outside).collect::<Result<_, _>>()?;
        let none = vec![0; rank];
        let mut at = Odometer::new(dims, &[&none]);
        let width = outside.as_bytes().len();
        for e in y.bytes_mut().chunks_exact_mut(width) {
            if at.position().iter().zip(&is_outside).any(|(&p, is_outside)| is_outside[p]) {
                e.copy_from_slice(outside.as_bytes());
            }
            at.advance();
        }
    }
    Ok(vec![cast(ctx, y, x.dtype())?])
}
