//! Pools.

use crate::{
    attr,
    eval::OpError,
    grad::{GradCtx, GradDef, Reads},
    pool::{average_divisors, for_each_window, pool_window},
    shape::product,
    typed::elements,
};
use midtread_graph::Tensor;

/// Each window's gradient goes to its elements in equal parts.
pub(super) static AVERAGE_POOL: GradDef = GradDef {
    op_type: "AveragePool",
    domain: "",
    reads: Reads::Nothing,
    grad: |ctx| {
        let include_pad = attr::flag(ctx.node, "count_include_pad", false)?;
        windows(ctx, |win, _, dy, dx| {
            let divisors = average_divisors(win, include_pad);
            for_each_window(win, |o, positions| {
                let part = dy[o] / divisors[o] as f32;
                positions.for_each(|at| dx[at] += part);
            });
        })
    },
};

/// To the first largest element of each window.
pub(super) static MAX_POOL: GradDef = GradDef {
    op_type: "MaxPool",
    domain: "",
    reads: Reads::Inputs,
    grad: |ctx| {
        windows(ctx, |win, x, dy, dx| {
            for_each_window(win, |o, positions| {
                let mut best = (f32::NEG_INFINITY, None);
                for at in positions {
                    if best.0 < x[at] {
                        best = (x[at], Some(at));
                    }
                }
                if let (_, Some(at)) = best {
                    dx[at] += dy[o];
                }
            });
        })
    },
};

/// What a pool does to the gradient of one plane: window, input, the output's gradient, the input's.
type Plane<'a> = &'a (dyn Fn(&crate::window::Window, &[f32], &[f32], &mut [f32]) + Sync);

fn windows(
    ctx: &GradCtx<'_>,
    plane: impl Fn(&crate::window::Window, &[f32], &[f32], &mut [f32]) + Sync,
) -> Result<Vec<Option<Tensor>>, OpError> {
    let plane: Plane<'_> = &plane;
    let win = pool_window(ctx.node, ctx.dims(0)?)?.to_3d()?;
    let (in_plane, out_plane) = (product(&win.input), product(&win.out));
    let dy = elements::<f32>(ctx.dy()?)?;
    let x = ctx.opt_x(0)?;
    ctx.each(|_| {
        ctx.like(0, |dx| {
            use rayon::prelude::*;
            dx.par_chunks_mut(in_plane.max(1)).enumerate().with_min_len(4).for_each(|(i, dx)| {
                dx.fill(0.0);
                let x = x.as_deref().map_or(&[][..], |x| &x[i * in_plane..][..in_plane]);
                plane(&win, x, &dy[i * out_plane..][..out_plane], dx);
            });
            Ok(())
        })
    })
}

/// In equal parts.
pub(super) static GLOBAL_AVERAGE_POOL: GradDef = GradDef {
    op_type: "GlobalAveragePool",
    domain: "",
    reads: Reads::Nothing,
    grad: |ctx| {
        let plane = product(&ctx.dims(0)?[2..]);
        let dy = elements::<f32>(ctx.dy()?)?;
        ctx.each(|_| {
            ctx.like(0, |dx| {
                for (dx, dy) in dx.chunks_exact_mut(plane.max(1)).zip(dy.iter()) {
                    dx.fill(dy / plane as f32);
                }
                Ok(())
            })
        })
    },
};

/// To the first largest element.
pub(super) static GLOBAL_MAX_POOL: GradDef = GradDef {
    op_type: "GlobalMaxPool",
    domain: "",
    reads: Reads::All,
    grad: |ctx| {
        let plane = product(&ctx.dims(0)?[2..]);
        let (x, y, dy) = (ctx.x(0)?, ctx.y()?, elements::<f32>(ctx.dy()?)?);
        ctx.each(|_| {
            ctx.like(0, |dx| {
                dx.fill(0.0);
                let planes = dx.chunks_exact_mut(plane.max(1)).zip(x.chunks_exact(plane.max(1)));
                for ((dx, x), (y, dy)) in planes.zip(y.iter().zip(dy.iter())) {
                    if let Some(at) = x.iter().position(|x| x == y) {
                        dx[at] = *dy;
                    }
                }
                Ok(())
            })
        })
    },
};
