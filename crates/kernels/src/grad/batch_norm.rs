//! Batch normalization with the statistics of the batch, and its gradient. Tensors are (image, channel, position).

use crate::autovec::autovec;
use crate::par::{self, Disjoint};
use crate::variant::{self, VariantInfo};

/// Sizes of a normalized tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planes {
    /// Images.
    pub n: usize,
    /// Channels.
    pub channels: usize,
    /// Elements of a channel of an image.
    pub len: usize,
}

impl Planes {
    fn check(&self, len: usize) {
        assert_eq!(self.n * self.channels * self.len, len, "as many elements as the sizes say");
    }

    /// The elements of a channel, image by image.
    pub(super) fn of<'a>(&self, x: &'a [f32], channel: usize) -> impl Iterator<Item = &'a [f32]> {
        let Self { n, channels, len } = *self;
        (0..n).map(move |i| &x[(i * channels + channel) * len..][..len])
    }
}

/// Lanes of the sums.
const N: usize = 16;

autovec!(MOMENTS, fn(x: &[f32], shift: f32) -> [f32; 2] = moments);

/// Sums of `x - shift` and of its squares.
#[inline(always)]
fn moments(x: &[f32], shift: f32) -> [f32; 2] {
    let mut lanes = [[0.0_f32; N]; 2];
    let (xs, rest) = x.as_chunks::<N>();
    for x in xs {
        for i in 0..N {
            let d = x[i] - shift;
            lanes[0][i] += d;
            lanes[1][i] = d.mul_add(d, lanes[1][i]);
        }
    }
    for (i, x) in rest.iter().enumerate() {
        let d = x - shift;
        lanes[0][i] += d;
        lanes[1][i] = d.mul_add(d, lanes[1][i]);
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// Mean and (biased) variance of each channel over images and positions.
///
/// # Panics
///
/// When a slice has another length than the sizes say, or a channel has no elements.
pub fn statistics(planes: Planes, x: &[f32], mean: &mut [f32], var: &mut [f32]) {
    planes.check(x.len());
    assert_eq!([mean.len(), var.len()], [planes.channels; 2], "statistics of each channel");
    let count = planes.n * planes.len;
    assert!(0 < count, "a mean of something");
    let run = variant::select(MOMENTS);
    let (means, vars) = (Disjoint::new(mean), Disjoint::new(var));
    par::for_each_task(planes.channels, x.len() / 8, |c| {
        // Near the mean, so that the squares do not cancel.
        let shift =
            planes.of(x, c).next().map_or(0.0, |plane| run(plane, 0.0)[0] / planes.len as f32);
        let (mut sum, mut squares) = (0.0_f64, 0.0_f64);
        for plane in planes.of(x, c) {
            let [s, q] = run(plane, shift);
            sum += f64::from(s);
            squares += f64::from(q);
        }
        let offset = sum / count as f64;
        // SAFETY: each channel is its own.
        let mean = unsafe { means.slice(c, 1) };
        // SAFETY: as above.
        let var = unsafe { vars.slice(c, 1) };
        mean[0] = (f64::from(shift) + offset) as f32;
        var[0] = (squares / count as f64 - offset * offset).max(0.0) as f32;
    });
}

autovec!(AFFINE, fn(x: &[f32], factor: f32, shift: f32, y: &mut [f32]) = affine_body);

#[inline(always)]
fn affine_body(x: &[f32], factor: f32, shift: f32, y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = x.mul_add(factor, shift);
    }
}

/// `y = x * factor + shift` with a factor and a shift for each channel.
///
/// # Panics
///
/// When a slice has another length than the sizes say.
pub fn affine(planes: Planes, x: &[f32], factor: &[f32], shift: &[f32], y: &mut [f32]) {
    planes.check(x.len());
    planes.check(y.len());
    assert_eq!([factor.len(), shift.len()], [planes.channels; 2], "parameters of each channel");
    let run = variant::select(AFFINE);
    let y = Disjoint::new(y);
    let n_planes = planes.n * planes.channels;
    par::for_each_task(n_planes, x.len() / 8, |i| {
        let c = i % planes.channels;
        // SAFETY: each plane is its own.
        let y = unsafe { y.slice(i * planes.len, planes.len) };
        run(&x[i * planes.len..][..planes.len], factor[c], shift[c], y);
    });
}

autovec!(PRODUCTS, fn(x: &[f32], dy: &[f32], mean: f32) -> [f32; 2] = products);

/// Sums of `dy` and of `dy * (x - mean)`.
#[inline(always)]
fn products(x: &[f32], dy: &[f32], mean: f32) -> [f32; 2] {
    let mut lanes = [[0.0_f32; N]; 2];
    let (xs, x_rest) = x.as_chunks::<N>();
    let (dys, dy_rest) = dy.as_chunks::<N>();
    for (x, dy) in xs.iter().zip(dys) {
        for i in 0..N {
            lanes[0][i] += dy[i];
            lanes[1][i] = dy[i].mul_add(x[i] - mean, lanes[1][i]);
        }
    }
    for (i, (x, dy)) in x_rest.iter().zip(dy_rest).enumerate() {
        lanes[0][i] += dy;
        lanes[1][i] = dy.mul_add(x - mean, lanes[1][i]);
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// For each channel, the sums of `dy` and of `dy * (x - mean)`.
///
/// # Panics
///
/// When a slice has another length than the sizes say.
pub fn sums(planes: Planes, x: &[f32], dy: &[f32], mean: &[f32]) -> Vec<[f32; 2]> {
    planes.check(x.len());
    planes.check(dy.len());
    assert_eq!(mean.len(), planes.channels, "a mean of each channel");
    let run = variant::select(PRODUCTS);
    let mut sums = vec![[0.0; 2]; planes.channels];
    let out = Disjoint::new(&mut sums);
    par::for_each_task(planes.channels, x.len() / 8, |c| {
        let mut total = [0.0_f64; 2];
        for (x, dy) in planes.of(x, c).zip(planes.of(dy, c)) {
            let [a, b] = run(x, dy, mean[c]);
            total = [total[0] + f64::from(a), total[1] + f64::from(b)];
        }
        // SAFETY: each channel is its own.
        let out = unsafe { out.slice(c, 1) };
        out[0] = total.map(|t| t as f32);
    });
    sums
}

autovec!(
    COMBINE,
    fn(x: &[f32], dy: &[f32], factors: [f32; 3], dx: &mut [f32]) = combine_body
);

#[inline(always)]
fn combine_body(x: &[f32], dy: &[f32], [of_dy, of_x, shift]: [f32; 3], dx: &mut [f32]) {
    for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
        *dx = dy.mul_add(of_dy, x.mul_add(of_x, shift));
    }
}

/// `dx = factors[c][0] * dy + factors[c][1] * x + factors[c][2]`.
///
/// # Panics
///
/// When a slice has another length than the sizes say.
pub fn combine(planes: Planes, x: &[f32], dy: &[f32], factors: &[[f32; 3]], dx: &mut [f32]) {
    planes.check(x.len());
    planes.check(dy.len());
    planes.check(dx.len());
    assert_eq!(factors.len(), planes.channels, "factors of each channel");
    let run = variant::select(COMBINE);
    let dx = Disjoint::new(dx);
    par::for_each_task(planes.n * planes.channels, x.len() / 8, |i| {
        let part = i * planes.len..(i + 1) * planes.len;
        // SAFETY: each plane is its own.
        let dx = unsafe { dx.slice(part.start, planes.len) };
        run(&x[part.clone()], &dy[part], factors[i % planes.channels], dx);
    });
}

pub(super) fn describe() -> Vec<VariantInfo> {
    [
        variant::describe("grad::batch_norm_moments", MOMENTS),
        variant::describe("grad::batch_norm_affine", AFFINE),
        variant::describe("grad::batch_norm_products", PRODUCTS),
        variant::describe("grad::batch_norm_combine", COMBINE),
    ]
    .concat()
}
