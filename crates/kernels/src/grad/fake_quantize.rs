//! The straight-through estimator, and the gradients of scale and zero point.
//!
//! Of `y = scale * (clamp(round(x / scale) + zero_point, qmin, qmax) - zero_point)`, with `v = round(x / scale)`:
//!
//! | | below the range | inside | above |
//! |---|---|---|---|
//! | `dy/dx` | 0 | 1 | 0 |
//! | `dy/dscale` | `qmin - zero_point` | `v - x / scale` | `qmax - zero_point` |
//! | `dy/dzero_point` | `-scale` | 0 | `-scale` |
//!
//! Inside is where the rounded integer lies in the range, so that what is clipped by less than half a step still has
//! a gradient: PyTorch's `fake_quantize`. The gradient of the scale is LSQ's (Esser et al., 2020), that of the zero
//! point PyTorch's learnable fake quantization (LSQ+ learns an offset instead, in the scale's units).

use midtread_num::{QParams, QRange};

use crate::autovec::autovec;
use crate::par::{self, Disjoint};
use crate::variant::{self, VariantInfo};

/// Gradients of the parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ParamGrads {
    /// Of the scale.
    pub scale: f64,
    /// Of the zero point, as if it were a real number.
    pub zero_point: f64,
    /// The sum of the output's gradients where the value was at or above the largest real value of the range: PACT's
    /// gradient of that bound (Choi et al., 2018).
    pub upper_bound: f64,
}

/// Elements that share a partial sum in `f32`, before it is added in `f64`.
const BLOCK: usize = 4096;
/// Lanes of the partial sums.
const N: usize = 16;

/// Sums of a block: the scale's inside the range; below and above it, and at the upper bound or above (without their
/// factors).
type Sums = [f32; 4];

autovec!(
    VARIANTS,
    fn(x: &[f32], dy: &[f32], params: QParams, range: QRange, dx: &mut [f32]) -> Sums = block
);

#[inline(always)]
fn block(x: &[f32], dy: &[f32], params: QParams, range: QRange, dx: &mut [f32]) -> Sums {
    let lo = (range.qmin() - params.zero_point()) as f32;
    let hi = (range.qmax() - params.zero_point()) as f32;
    let scale = params.scale();
    let mut lanes = [[0.0_f32; N]; 4];
    let one = |x: f32, dy: f32| {
        let v = x / scale;
        let rounded = v.round_ties_even();
        let (below, above) = (rounded < lo, hi < rounded);
        let dx = if below || above || x.is_nan() { 0.0 } else { dy };
        let inside = dx * (rounded - v);
        let inside = if dx == 0.0 { 0.0 } else { inside };
        let where_true = |is: bool| if is { dy } else { 0.0 };
        (dx, [inside, where_true(below), where_true(above), where_true(hi <= v)])
    };
    let (xs, x_rest) = x.as_chunks::<N>();
    let (dys, dy_rest) = dy.as_chunks::<N>();
    let (dxs, dx_rest) = dx.as_chunks_mut::<N>();
    for ((x, dy), dx) in xs.iter().zip(dys).zip(dxs) {
        for i in 0..N {
            let (d, sums) = one(x[i], dy[i]);
            dx[i] = d;
            for (lanes, sum) in lanes.iter_mut().zip(sums) {
                lanes[i] += sum;
            }
        }
    }
    for (i, ((x, dy), dx)) in x_rest.iter().zip(dy_rest).zip(dx_rest).enumerate() {
        let (d, sums) = one(*x, *dy);
        *dx = d;
        for (lanes, sum) in lanes.iter_mut().zip(sums) {
            lanes[i] += sum;
        }
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// `dx`, and the parameters' gradients, of [`fake_quantize`](crate::quantize::fake_quantize) at `x`, given the
/// output's gradient `dy`.
///
/// # Panics
///
/// When the slices differ in length.
pub fn fake_quantize_grad(
    x: &[f32],
    dy: &[f32],
    params: QParams,
    range: QRange,
    dx: &mut [f32],
) -> ParamGrads {
    assert_eq!([x.len(), dy.len()], [dx.len(); 2], "one gradient a value");
    let run = variant::select(VARIANTS);
    let n_blocks = x.len().div_ceil(BLOCK);
    let mut sums = vec![[0.0_f32; 4]; n_blocks];
    let len = x.len();
    let (dx, parts) = (Disjoint::new(dx), Disjoint::new(&mut sums));
    par::for_each_task(n_blocks, len / 2, |i| {
        let (start, n) = (i * BLOCK, BLOCK.min(len - i * BLOCK));
        // SAFETY: each block is its own.
        let dx = unsafe { dx.slice(start, n) };
        // SAFETY: each block has its own sums.
        let sums = unsafe { parts.slice(i, 1) };
        sums[0] = run(&x[start..][..n], &dy[start..][..n], params, range, dx);
    });
    let total = |k: usize| sums.iter().map(|s| f64::from(s[k])).sum::<f64>();
    let [inside, below, above, upper_bound] = [0, 1, 2, 3].map(total);
    let lo = f64::from(range.qmin() - params.zero_point());
    let hi = f64::from(range.qmax() - params.zero_point());
    ParamGrads {
        scale: inside + below * lo + above * hi,
        zero_point: -f64::from(params.scale()) * (below + above),
        upper_bound,
    }
}

pub(super) fn describe() -> Vec<VariantInfo> {
    variant::describe("grad::fake_quantize", VARIANTS)
}
