//! Operators of detection models: boxes, and sampling between pixels.

use midtread_graph::{DataType, Tensor};

use crate::{
    attr,
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    shape::product,
    sym::SymDim,
    typed::{elements, in_f32, indices, reals},
};

/// ONNX NonMaxSuppression 10 and 11.
pub(crate) static NON_MAX_SUPPRESSION: OpDef = OpDef {
    op_type: "NonMaxSuppression",
    domain: "",
    versions: &[10, 11],
    attrs: &["center_point_box"],
    infer: |ctx| {
        let n = ctx.fresh_symbol();
        ctx.set(0, Some(DataType::Int64), Some(vec![n, SymDim::known(3)]));
        Ok(())
    },
    eval: Eval::Tensors(non_max_suppression),
    role: Role::Float("it compares boxes and scores"),
};

/// A box by two opposite corners, the smaller coordinates first.
#[derive(Clone, Copy)]
struct Corners {
    low: [f32; 2],
    high: [f32; 2],
}

impl Corners {
    fn new(b: &[f32], is_center: bool) -> Self {
        let (a, b) = if is_center {
            let (x, y, w, h) = (b[0], b[1], b[2] / 2.0, b[3] / 2.0);
            ([y - h, x - w], [y + h, x + w])
        } else {
            ([b[0], b[1]], [b[2], b[3]])
        };
        Self { low: [a[0].min(b[0]), a[1].min(b[1])], high: [a[0].max(b[0]), a[1].max(b[1])] }
    }

    fn area(&self) -> f32 {
        (self.high[0] - self.low[0]) * (self.high[1] - self.low[1])
    }

    /// Whether intersection over union is more than `threshold`. Boxes without area overlap nothing.
    fn overlaps(&self, other: &Self, threshold: f32) -> bool {
        let common = Self {
            low: [self.low[0].max(other.low[0]), self.low[1].max(other.low[1])],
            high: [self.high[0].min(other.high[0]), self.high[1].min(other.high[1])],
        };
        if common.high[0] <= common.low[0] || common.high[1] <= common.low[1] {
            return false;
        }
        let (common, a, b) = (common.area(), self.area(), other.area());
        0.0 < a && 0.0 < b && threshold < common / (a + b - common)
    }
}

fn non_max_suppression(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (boxes, scores) = (args.required(0)?, args.required(1)?);
    let (&[batch, n, 4], &[batch_2, n_classes, n_2]) = (boxes.dims(), scores.dims()) else {
        return Err(OpError::Invalid(format!("{:?} and {:?}", boxes.dims(), scores.dims())));
    };
    if (batch, n) != (batch_2, n_2) {
        return Err(OpError::Invalid(format!("{:?} and {:?}", boxes.dims(), scores.dims())));
    }
    let max = args.get(2).map(indices).transpose()?;
    let max = max.and_then(|m| m.first().copied()).map_or(0, |m| usize::try_from(m).unwrap_or(0));
    let threshold = |i: usize| -> Result<Option<f32>, OpError> {
        Ok(args.get(i).map(elements::<f32>).transpose()?.and_then(|t| t.first().copied()))
    };
    let (iou, score) = (threshold(3)?.unwrap_or(0.0), threshold(4)?);
    let is_center = attr::flag(ctx.node, "center_point_box", false)?;
    let (boxes, scores) = (elements::<f32>(boxes)?, elements::<f32>(scores)?);
    let corners: Vec<Corners> = boxes.chunks_exact(4).map(|b| Corners::new(b, is_center)).collect();
    let mut out: Vec<i64> = Vec::new();
    for (row, scores) in scores.chunks_exact(n.max(1)).enumerate() {
        let (b, class) = (row / n_classes, row % n_classes);
        let corners = &corners[b * n..][..n];
        let mut order: Vec<usize> =
            (0..n).filter(|&i| score.is_none_or(|least| least < scores[i])).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let mut kept: Vec<usize> = Vec::new();
        for i in order {
            if kept.len() == max {
                break;
            }
            if !kept.iter().any(|&k| corners[k].overlaps(&corners[i], iou)) {
                kept.push(i);
            }
        }
        kept.iter().for_each(|&i| out.extend([b as i64, class as i64, i as i64]));
    }
    Ok(vec![Tensor::from_slice(vec![out.len() / 3, 3], &out)?])
}

/// ONNX GridSample 16, 20 (any number of dimensions) and 22.
pub(crate) static GRID_SAMPLE: OpDef = OpDef {
    op_type: "GridSample",
    domain: "",
    versions: &[16, 20, 22],
    attrs: &["align_corners", "mode", "padding_mode"],
    infer: |ctx| {
        let dims = match (ctx.dims(0), ctx.dims(1)) {
            (Some([n, c, ..]), Some([_, places @ .., _])) => {
                Some([&[n.clone(), c.clone()], places].concat())
            }
            _ => None,
        };
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, grid_sample)),
    role: Role::Float("it interpolates between elements at places that are computed"),
};

/// Places of a grid moved by a matrix. ONNX AffineGrid 20.
pub(crate) static AFFINE_GRID: OpDef = OpDef {
    op_type: "AffineGrid",
    domain: "",
    versions: &[20],
    attrs: &["align_corners"],
    infer: |ctx| {
        let dims = ctx.value(1).filter(|sizes| 4 <= sizes.len()).map(|sizes| {
            let coordinates = SymDim::known(sizes.len() as i64 - 2);
            [&sizes[..1], &sizes[2..], &[coordinates]].concat()
        });
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(affine_grid),
    role: Role::Float("it computes places"),
};

fn affine_grid(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let theta = args.required(0)?;
    let sizes = crate::layout::to_sizes(&indices(args.required(1)?)?)?;
    let align = attr::flag(ctx.node, "align_corners", false)?;
    let ([batch, _, spatial @ ..], &[batch_2, rows, columns]) = (&sizes[..], theta.dims()) else {
        return Err(OpError::Invalid(format!("{:?} for sizes {sizes:?}", theta.dims())));
    };
    let rank = spatial.len();
    if *batch != batch_2 || !matches!(rank, 2 | 3) || (rows, columns) != (rank, rank + 1) {
        return Err(OpError::Invalid(format!("{:?} for sizes {sizes:?}", theta.dims())));
    }
    let theta_values = reals(theta)?;
    let dims = [&[*batch], spatial, &[rank]].concat();
    let y = ctx.pool.fill::<f64>(dims, |y| {
        // From -1 to 1: at the corners' middles, or at the edges.
        let coordinate = |i: usize, n: usize| match (align, n) {
            (true, 1) => -1.0,
            (true, _) => 2.0 * i as f64 / (n as f64 - 1.0) - 1.0,
            (false, _) => (2.0 * i as f64 + 1.0) / n as f64 - 1.0,
        };
        for (i, y) in y.chunks_exact_mut(rank).enumerate() {
            let theta = &theta_values[i / product(spatial) * rows * columns..][..rows * columns];
            // The first coordinate is the last dimension's; the one behind the last is 1.
            let (mut place, mut at) = (i, [1.0; 4]);
            for d in (0..rank).rev() {
                at[rank - 1 - d] = coordinate(place % spatial[d], spatial[d]);
                place /= spatial[d];
            }
            at[rank] = 1.0;
            for (y, row) in y.iter_mut().zip(theta.chunks_exact(columns)) {
                *y = row.iter().zip(&at).map(|(t, at)| t * at).sum();
            }
        }
        Ok(())
    })?;
    Ok(vec![crate::cast::cast(ctx, y, theta.dtype())?])
}

/// What lies outside an image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

/// `x` thrown back into `low..=high` at its ends.
fn reflected(x: f32, low: f32, high: f32) -> f32 {
    let range = high - low;
    if range <= 0.0 {
        return low;
    }
    let beyond = if x < low {
        low - x
    } else if high < x {
        x - high
    } else {
        return x;
    };
    let times = (beyond / range).floor();
    let rest = beyond - times * range;
    if (times % 2.0 == 0.0) == (x < low) { low + rest } else { high - rest }
}

/// A position along one dimension, and the weight of the element there.
type Tap = (Option<usize>, f32);

/// Where along a dimension of `n` the coordinate `at` (-1 to 1) takes its elements from.
fn taps(at: f32, n: usize, mode: &str, padding: Padding, align: bool, taps: &mut Vec<Tap>) {
    let size = n as f32;
    let (low, high) = if align { (0.0, size - 1.0) } else { (-0.5, size - 0.5) };
    let mut x =
        if align { (at + 1.0) / 2.0 * (size - 1.0) } else { ((at + 1.0) * size - 1.0) / 2.0 };
    if mode == "nearest" {
        x = x.round_ties_even();
    }
    if x < low || high < x {
        match padding {
            Padding::Zeros => {}
            Padding::Border => x = x.clamp(0.0, size - 1.0),
            Padding::Reflection => x = reflected(x, low, high),
        }
    }
    let place = |i: f32| {
        let i = match padding {
            Padding::Zeros => i,
            Padding::Border => i.clamp(0.0, size - 1.0),
            Padding::Reflection => reflected(i, low, high).trunc().clamp(0.0, size - 1.0),
        };
        (0.0 <= i && i < size).then_some(i as usize)
    };
    let floor = x.floor();
    let t = x - floor;
    taps.clear();
    match mode {
        "nearest" => taps.push((place(x.round_ties_even()), 1.0)),
        "cubic" => {
            const A: f32 = -0.75;
            let near = |t: f32| ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0;
            let far = |t: f32| ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A;
            let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
            let at = [-1.0, 0.0, 1.0, 2.0].map(|i| place(floor + i));
            taps.extend(at.into_iter().zip(weights));
        }
        _ => taps.extend([(place(floor), 1.0 - t), (place(floor + 1.0), t)]),
    }
}

fn grid_sample(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (x, grid) = (args.required(0)?, args.required(1)?);
    let mode = match attr::string(ctx.node, "mode", "linear")? {
        "bilinear" | "linear" => "linear",
        "bicubic" | "cubic" => "cubic",
        "nearest" => "nearest",
        other => return Err(OpError::Invalid(format!("`mode` is {other:?}"))),
    };
    let padding = match attr::string(ctx.node, "padding_mode", "zeros")? {
        "zeros" => Padding::Zeros,
        "border" => Padding::Border,
        "reflection" => Padding::Reflection,
        other => return Err(OpError::Invalid(format!("`padding_mode` is {other:?}"))),
    };
    let align = attr::flag(ctx.node, "align_corners", false)?;
    let refused = || OpError::Invalid(format!("places {:?} in {:?}", grid.dims(), x.dims()));
    let ([n, channels, spatial @ ..], Some((&rank, [n_2, places @ ..]))) =
        (x.dims(), grid.dims().split_last())
    else {
        return Err(refused());
    };
    if n != n_2 || rank != spatial.len() || rank == 0 || places.len() != rank {
        return Err(refused());
    }
    let (plane, n_places) = (product(spatial), product(places));
    let (src, grid) = (elements::<f32>(x)?, elements::<f32>(grid)?);
    let dims = [&[*n, *channels], places].concat();
    let y = ctx.pool.fill::<f32>(dims, |y| {
        let mut along = vec![Vec::new(); rank];
        // Position in a plane and weight of every element that one place is made of.
        let mut points: Vec<Tap> = Vec::new();
        for b in 0..*n {
            for place in 0..n_places {
                let at = &grid[(b * n_places + place) * rank..][..rank];
                points.clear();
                points.push((Some(0), 1.0));
                // The last coordinate is the first dimension's.
                for (d, &size) in spatial.iter().enumerate() {
                    taps(at[rank - 1 - d], size, mode, padding, align, &mut along[d]);
                    points = points
                        .iter()
                        .flat_map(|&(at, w)| {
                            along[d]
                                .iter()
                                .map(move |&(i, v)| (at.zip(i).map(|(at, i)| at * size + i), w * v))
                        })
                        .collect();
                }
                for c in 0..*channels {
                    let row = b * channels + c;
                    let value = points
                        .iter()
                        .map(|&(at, w)| at.map_or(0.0, |at| src[row * plane + at] * w));
                    y[row * n_places + place] = value.sum();
                }
            }
        }
        Ok(())
    })?;
    Ok(vec![y])
}

/// ONNX RoiAlign 10, 16 (`coordinate_transformation_mode`) and 22.
pub(crate) static ROI_ALIGN: OpDef = OpDef {
    op_type: "RoiAlign",
    domain: "",
    versions: &[10, 16, 22],
    attrs: &[
        "coordinate_transformation_mode",
        "mode",
        "output_height",
        "output_width",
        "sampling_ratio",
        "spatial_scale",
    ],
    infer: |ctx| {
        let channels = ctx.dims(0).and_then(|d| d.get(1)).cloned().unwrap_or(SymDim::Unknown);
        let n = ctx.dims(1).and_then(|d| d.first()).cloned().unwrap_or(SymDim::Unknown);
        let [h, w] = ["output_height", "output_width"].map(|name| attr::int(ctx.node, name, 1));
        ctx.set(0, ctx.elem(0), Some(vec![n, channels, SymDim::known(h?), SymDim::known(w?)]));
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, roi_align)),
    role: Role::Float("it interpolates between elements at places that are computed"),
};

/// Four neighbors of a place in a plane of `h * w` with their weights; nothing outside.
fn neighbors(y: f32, x: f32, h: usize, w: usize) -> Option<[(usize, f32); 4]> {
    if !(-1.0..=h as f32).contains(&y) || !(-1.0..=w as f32).contains(&x) {
        return None;
    }
    let one = |at: f32, n: usize| {
        let at = at.max(0.0);
        let low = at as usize;
        if n <= low + 1 { (n - 1, n - 1, 0.0) } else { (low, low + 1, at - low as f32) }
    };
    let ((y0, y1, ly), (x0, x1, lx)) = (one(y, h), one(x, w));
    let (hy, hx) = (1.0 - ly, 1.0 - lx);
    Some([
        (y0 * w + x0, hy * hx),
        (y0 * w + x1, hy * lx),
        (y1 * w + x0, ly * hx),
        (y1 * w + x1, ly * lx),
    ])
}

fn roi_align(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let node = ctx.node;
    let (x, rois) = (args.required(0)?, args.required(1)?);
    let default = if ctx.opset < 16 { "output_half_pixel" } else { "half_pixel" };
    let half_pixel = match attr::string(node, "coordinate_transformation_mode", default)? {
        "half_pixel" => true,
        "output_half_pixel" => false,
        other => {
            return Err(OpError::Invalid(format!("`coordinate_transformation_mode` is {other:?}")));
        }
    };
    let is_max = match attr::string(node, "mode", "avg")? {
        "avg" => false,
        "max" => true,
        other => return Err(OpError::Invalid(format!("`mode` is {other:?}"))),
    };
    let (out_h, out_w) =
        (attr::size(node, "output_height", 1)?, attr::size(node, "output_width", 1)?);
    let ratio = attr::size(node, "sampling_ratio", 0)?;
    let scale = attr::float(node, "spatial_scale", 1.0)?;
    let batches = indices(args.required(2)?)?;
    let (&[n, channels, h, w], &[n_rois, 4]) = (x.dims(), rois.dims()) else {
        return Err(OpError::Invalid(format!("{:?} in {:?}", rois.dims(), x.dims())));
    };
    if batches.len() != n_rois || out_h == 0 || out_w == 0 || h == 0 || w == 0 {
        return Err(OpError::Invalid(format!("{} batches of {n_rois} regions", batches.len())));
    }
    let (src, rois) = (elements::<f32>(x)?, elements::<f32>(rois)?);
    let y = ctx.pool.fill::<f32>(vec![n_rois, channels, out_h, out_w], |y| {
        for (i, (&batch, roi)) in batches.iter().zip(rois.chunks_exact(4)).enumerate() {
            let batch = usize::try_from(batch).ok().filter(|&b| b < n);
            let batch = batch.ok_or_else(|| {
                OpError::Invalid(format!("a region of batch {:?} of {n}", batches[i]))
            })?;
            let offset = if half_pixel { 0.5 } else { 0.0 };
            let [x0, y0, x1, y1] = [0, 1, 2, 3].map(|k| roi[k] * scale - offset);
            let least = if half_pixel { f32::NEG_INFINITY } else { 1.0 };
            let (bin_h, bin_w) =
                ((y1 - y0).max(least) / out_h as f32, (x1 - x0).max(least) / out_w as f32);
            let count = |bin: f32| {
                let n = if ratio == 0 { bin.ceil().max(0.0) as usize } else { ratio };
                let refused = || OpError::Unsupported(format!("{n} samples along a bin"));
                if 1024 < n { Err(refused()) } else { Ok(n) }
            };
            let (grid_h, grid_w) = (count(bin_h)?, count(bin_w)?);
            for at in 0..out_h * out_w {
                let (py, px) = (at / out_w, at % out_w);
                let places = (0..grid_h * grid_w).map(|g| {
                    let (gy, gx) = (g / grid_w, g % grid_w);
                    let y = y0 + py as f32 * bin_h + (gy as f32 + 0.5) * bin_h / grid_h as f32;
                    let x = x0 + px as f32 * bin_w + (gx as f32 + 0.5) * bin_w / grid_w as f32;
                    neighbors(y, x, h, w)
                });
                let places: Vec<_> = places.collect();
                for c in 0..channels {
                    let plane = &src[(batch * channels + c) * h * w..][..h * w];
                    let one = |place: &Option<[(usize, f32); 4]>| -> f32 {
                        let Some(place) = place else { return 0.0 };
                        let weighted = place.iter().map(|&(at, weight)| plane[at] * weight);
                        if is_max {
                            weighted.fold(f32::NEG_INFINITY, f32::max)
                        } else {
                            weighted.sum()
                        }
                    };
                    let all = places.iter().map(one);
                    y[(i * channels + c) * out_h * out_w + at] = if places.is_empty() {
                        0.0
                    } else if is_max {
                        all.fold(f32::NEG_INFINITY, f32::max)
                    } else {
                        all.sum::<f32>() / places.len() as f32
                    };
                }
            }
        }
        Ok(())
    })?;
    Ok(vec![y])
}
