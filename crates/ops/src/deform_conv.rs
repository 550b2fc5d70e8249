//! Convolutions whose kernels' elements are moved.

use midtread_graph::Tensor;

use crate::{
    attr,
    conv::{ConvSizes, infer_conv},
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    typed::{from_reals, reals},
};

/// ONNX DeformConv 19 and 22, over two dimensions: outside the image there are zeros.
pub(crate) static DEFORM_CONV: OpDef = OpDef {
    op_type: "DeformConv",
    domain: "",
    versions: &[19, 22],
    attrs: &["dilations", "group", "kernel_shape", "offset_group", "pads", "strides"],
    infer: |ctx| infer_conv(ctx, ctx.elem(0)),
    eval: Eval::Tensors(deform_conv),
    role: Role::Float("it interpolates between elements at places that are computed"),
};

/// A plane between whose elements is interpolated.
fn sample(plane: &[f64], [h, w]: [usize; 2], y: f64, x: f64) -> f64 {
    let (floor_y, floor_x) = (y.floor(), x.floor());
    let (ty, tx) = (y - floor_y, x - floor_x);
    let at = |y: f64, x: f64| {
        let inside = 0.0 <= y && y < h as f64 && 0.0 <= x && x < w as f64;
        if inside { plane[y as usize * w + x as usize] } else { 0.0 }
    };
    let row = |y: f64| at(y, floor_x) * (1.0 - tx) + at(y, floor_x + 1.0) * tx;
    row(floor_y) * (1.0 - ty) + row(floor_y + 1.0) * ty
}

fn deform_conv(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (x, w, offset) = (args.required(0)?, args.required(1)?, args.required(2)?);
    let sizes = ConvSizes::read(ctx.node, x.dims(), w.dims())?;
    let win = &sizes.window;
    let (&[h, width], &[kh, kw], &[oh, ow]) = (&win.input[..], &win.kernel[..], &win.out[..])
    else {
        return Err(OpError::Unsupported(format!("a deformed convolution of {:?}", x.dims())));
    };
    let offset_groups = attr::size(ctx.node, "offset_group", 1)?;
    let (taps, places) = (kh * kw, oh * ow);
    let fits = offset_groups != 0
        && sizes.in_channels % offset_groups == 0
        && offset.dims() == [sizes.batch, 2 * offset_groups * taps, oh, ow]
        && args.get(3).is_none_or(|bias| bias.dims() == [sizes.out_channels])
        && args.get(4).is_none_or(|m| m.dims() == [sizes.batch, offset_groups * taps, oh, ow]);
    if !fits {
        return Err(OpError::Invalid(format!(
            "offsets of sizes {:?} for {offset_groups} groups of {kh} x {kw} places of {oh} x {ow}",
            offset.dims()
        )));
    }
    let (src, w, offsets) = (reals(x)?, reals(w)?, reals(offset)?);
    let bias = args.get(3).map(reals).transpose()?;
    let mask = args.get(4).map(reals).transpose()?;
    let per_offset_group = sizes.in_channels / offset_groups;
    let in_per_group = sizes.in_channels / sizes.groups;
    let out_per_group = sizes.out_channels / sizes.groups;
    let mut y = vec![0.0; sizes.batch * sizes.out_channels * places];
    // What each weight of each input channel is multiplied with at one place.
    let mut columns = vec![0.0; sizes.in_channels * taps];
    for place in 0..sizes.batch * places {
        let (b, place) = (place / places, place % places);
        let origin = [
            (place / ow * win.strides[0]) as f64 - win.begin[0] as f64,
            (place % ow * win.strides[1]) as f64 - win.begin[1] as f64,
        ];
        for (i, column) in columns.iter_mut().enumerate() {
            let (c, tap) = (i / taps, i % taps);
            let tap_at = (b * offset_groups + c / per_offset_group) * taps + tap;
            let moved = |d: usize| offsets[(tap_at * 2 + d) * places + place];
            let at_y = origin[0] + (tap / kw * win.dilations[0]) as f64 + moved(0);
            let at_x = origin[1] + (tap % kw * win.dilations[1]) as f64 + moved(1);
            let plane = &src[(b * sizes.in_channels + c) * h * width..][..h * width];
            let weight = mask.as_ref().map_or(1.0, |m| m[tap_at * places + place]);
            *column = weight * sample(plane, [h, width], at_y, at_x);
        }
        for c in 0..sizes.out_channels {
            let w = &w[c * in_per_group * taps..][..in_per_group * taps];
            let columns = &columns[c / out_per_group * in_per_group * taps..][..w.len()];
            let sum: f64 = w.iter().zip(columns).map(|(w, x)| w * x).sum();
            y[(b * sizes.out_channels + c) * places + place] =
                sum + bias.as_ref().map_or(0.0, |bias| bias[c]);
        }
    }
    Ok(vec![from_reals(ctx, x.dtype(), sizes.out_dims(), &y)?])
}
