//! Searches for the scale of a few values, as ggml does them.
//!
//! Each takes the levels that the codes have and weights, writes the codes and returns the scale. All sums are `f32`
//! and go from left to right.

use super::nearest;

/// Below this a block counts as zeros.
pub const EPSILON: f32 = 1e-15;

/// `sum x^2`.
pub fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, x| sum + x * x)
}

/// The element of the largest magnitude, the first of equals; 0 without elements.
pub fn widest(x: &[f32]) -> f32 {
    x.iter().fold(0.0_f32, |widest, x| if widest.abs() < x.abs() { *x } else { widest })
}

/// `sum w x l` and `sum w l^2`: the best scale for the codes is their quotient.
#[derive(Clone, Copy, Default)]
struct Products {
    xl: f32,
    ll: f32,
}

impl Products {
    fn of(x: &[f32], weights: &[f32], level: impl Fn(f32) -> f32) -> Self {
        let mut sums = Self::default();
        for (x, w) in x.iter().zip(weights) {
            let l = level(*x);
            sums.xl += w * x * l;
            sums.ll += w * l * l;
        }
        sums
    }

    fn scale(self) -> f32 {
        if self.ll == 0.0 { 0.0 } else { self.xl / self.ll }
    }
}

/// A scale for codes around 0: levels `-n_max..n_max`, written as `0..2 * n_max`. ggml's `make_qx_quants`: 19 trials.
pub fn symmetric(n_max: i32, x: &[f32], weights: &[f32], codes: &mut [i32]) -> f32 {
    let widest = widest(x);
    if widest.abs() < EPSILON {
        codes[..x.len()].fill(0);
        return 0.0;
    }
    let level = |inverse: f32| move |x: f32| nearest(inverse * x).clamp(-n_max, n_max - 1);
    let mut inverse = -(n_max as f32) / widest;
    let sums = Products::of(x, weights, |x| level(inverse)(x) as f32);
    let mut scale = sums.scale();
    let mut best = scale * sums.xl;
    for step in (-9..=9).filter(|step| *step != 0) {
        let trial = -(n_max as f32 + 0.1 * step as f32) / widest;
        let sums = Products::of(x, weights, |x| level(trial)(x) as f32);
        if 0.0 < sums.ll && best * sums.ll < sums.xl * sums.xl {
            inverse = trial;
            scale = sums.xl / sums.ll;
            best = scale * sums.xl;
        }
    }
    for (x, code) in x.iter().zip(codes) {
        *code = n_max + level(inverse)(*x);
    }
    scale
}

/// As [`symmetric`], but one code after the other is moved as long as that helps. ggml's `make_q3_quants`; weights are
/// `x^2`.
pub fn symmetric_by_descent(n_max: i32, x: &[f32], codes: &mut [i32]) -> f32 {
    let widest = widest(x);
    if widest.abs() < EPSILON {
        codes[..x.len()].fill(0);
        return 0.0;
    }
    let inverse = -(n_max as f32) / widest;
    let mut sums = Products::default();
    for (x, code) in x.iter().zip(&mut *codes) {
        let l = nearest(inverse * x).clamp(-n_max, n_max - 1);
        *code = l;
        let w = x * x;
        sums.xl += w * x * l as f32;
        sums.ll += w * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let mut n_changed = 0;
        for (x, code) in x.iter().zip(&mut *codes) {
            let (w, l) = (x * x, *code as f32);
            let mut xl = sums.xl - w * x * l;
            if xl <= 0.0 {
                continue;
            }
            let mut ll = sums.ll - w * l * l;
            let next = nearest(x * ll / xl).clamp(-n_max, n_max - 1);
            if next == *code {
                continue;
            }
            xl += w * x * next as f32;
            ll += w * next as f32 * next as f32;
            if 0.0 < ll && sums.xl * sums.xl * ll < xl * xl * sums.ll {
                *code = next;
                sums = Products { xl, ll };
                n_changed += 1;
            }
        }
        if n_changed == 0 {
            break;
        }
    }
    codes[..x.len()].iter_mut().for_each(|code| *code += n_max);
    if 0.0 < sums.ll { sums.xl / sums.ll } else { 0.0 }
}

/// What an error costs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Its magnitude.
    Absolute,
    /// Its square.
    Squared,
}

/// Where [`with_min`] looks.
#[derive(Clone, Copy)]
pub struct Steps {
    /// The first trial has `n_max + start` levels over the range,
    pub start: f32,
    /// the next so many more,
    pub step: f32,
    /// and the last is this many steps on.
    pub n: i32,
    /// What is made small.
    pub loss: Loss,
}

/// A scale and a minimum: levels `0..=n_max`, `x' = scale * l - min`. ggml's `make_qkx2_quants` and `make_qkx3_quants`:
/// for each trial the codes, then the best scale and minimum for them in closed form.
///
/// The minimum that was best so far is the one that the next trial starts from; without that the bytes are others.
pub fn with_min(
    n_max: i32,
    x: &[f32],
    weights: &[f32],
    codes: &mut [i32],
    steps: Steps,
) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for (x, w) in x.iter().zip(weights).skip(1) {
        min = if *x < min { *x } else { min };
        max = if max < *x { *x } else { max };
        sum_w += w;
        sum_x += w * x;
    }
    if 0.0 < min {
        min = 0.0;
    }
    if max <= min {
        codes[..x.len()].fill(0);
        return (0.0, -min);
    }
    let loss = |scale: f32, min: f32, codes: &[i32]| {
        let mut sum = 0.0;
        for ((x, w), l) in x.iter().zip(weights).zip(codes) {
            let error = scale * *l as f32 + min - x;
            sum += w * if steps.loss == Loss::Absolute { error.abs() } else { error * error };
        }
        sum
    };
    let put_codes = |inverse: f32, min: f32, codes: &mut [i32]| {
        for (x, code) in x.iter().zip(codes) {
            *code = nearest(inverse * (x - min)).clamp(0, n_max);
        }
    };
    let inverse = n_max as f32 / (max - min);
    let mut scale = 1.0 / inverse;
    put_codes(inverse, min, codes);
    let mut least = loss(scale, min, codes);
    let mut trial = [0; 32];
    let trial = &mut trial[..x.len()];
    for step in 0..=steps.n {
        let inverse = (steps.start + steps.step * step as f32 + n_max as f32) / (max - min);
        put_codes(inverse, min, trial);
        let (mut sum_l, mut sum_ll, mut sum_xl) = (0.0_f32, 0.0_f32, 0.0_f32);
        for ((x, w), l) in x.iter().zip(weights).zip(&*trial) {
            let l = *l as f32;
            sum_l += w * l;
            sum_ll += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_ll - sum_l * sum_l;
        if 0.0 < determinant {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
            if 0.0 < this_min {
                this_min = 0.0;
                this_scale = sum_xl / sum_ll;
            }
            let this_loss = loss(this_scale, this_min, trial);
            if this_loss < least {
                codes[..x.len()].copy_from_slice(trial);
                (least, scale, min) = (this_loss, this_scale, this_min);
            }
        }
    }
    (scale, -min)
}

/// A scale for values of at least 0: levels `0..=n_max`. ggml's `make_qp_quants`.
pub fn positive(n_max: i32, x: &[f32], weights: &[f32], codes: &mut [i32]) -> f32 {
    let max = x.iter().fold(0.0_f32, |max, x| if max < *x { *x } else { max });
    if max < EPSILON {
        codes[..x.len()].fill(0);
        return 0.0;
    }
    let loss = |inverse: f32, cut: i32| {
        let scale = 1.0 / inverse;
        let mut sum = 0.0;
        for (x, w) in x.iter().zip(weights) {
            let error = x - scale * nearest(inverse * x).min(cut) as f32;
            sum += w * error * error;
        }
        sum
    };
    let mut inverse = n_max as f32 / max;
    let mut least = loss(inverse, i32::MAX);
    for step in (-4..=4).filter(|step| *step != 0) {
        let trial = (0.1 * step as f32 + n_max as f32) / max;
        let trial_loss = loss(trial, n_max);
        if trial_loss < least {
            (least, inverse) = (trial_loss, trial);
        }
    }
    let mut sums = Products::default();
    for ((x, w), code) in x.iter().zip(weights).zip(&mut *codes) {
        *code = nearest(inverse * x).min(n_max);
        sums.xl += w * x * *code as f32;
        sums.ll += w * *code as f32 * *code as f32;
    }
    for _ in 0..5 {
        let mut n_changed = 0;
        for ((x, w), code) in x.iter().zip(weights).zip(&mut *codes) {
            let l = *code as f32;
            let mut xl = sums.xl - w * x * l;
            let mut ll = sums.ll - w * l * l;
            if xl <= 0.0 || ll <= 0.0 {
                continue;
            }
            let next = nearest(x * ll / xl).min(n_max);
            if next == *code {
                continue;
            }
            xl += w * x * next as f32;
            ll += w * next as f32 * next as f32;
            if sums.xl * sums.xl * ll < xl * xl * sums.ll {
                *code = next;
                sums = Products { xl, ll };
                n_changed += 1;
            }
        }
        if n_changed == 0 {
            break;
        }
    }
    if 0.0 < sums.ll { sums.xl / sums.ll } else { 0.0 }
}
