use midtread_num::{QParams, QRange};

use super::batch_norm::{self, Planes};
use super::fake_quantize::fake_quantize_grad;
use super::*;
use crate::conv::{Conv2d, conv2d};
use crate::gemm::Epilogue;

/// Small numbers in an order that looks random; eighths, so that short sums are exact.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % 17) as f32 / 8.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn convs() -> Vec<Conv2d> {
    let base = Conv2d {
        n: 3,
        c_in: 4,
        c_out: 6,
        input: [7, 6],
        kernel: [3, 3],
        strides: [1, 1],
        pads: [1, 1, 1, 1],
        dilations: [1, 1],
        groups: 1,
    };
    let mut all = Vec::new();
    for groups in [1, 2, 4] {
        for c_out in [4, 8] {
            for strides in [[1, 1], [2, 2], [2, 3]] {
                for (kernel, pads) in [
                    ([3, 3], [1, 1, 1, 1]),
                    ([1, 1], [0; 4]),
                    ([3, 2], [0, 1, 2, 1]),
                    ([5, 5], [2; 4]),
                ] {
                    for dilations in [[1, 1], [2, 1]] {
                        all.push(Conv2d {
                            groups,
                            c_out,
                            strides,
                            kernel,
                            pads,
                            dilations,
                            ..base
                        });
                    }
                }
            }
        }
    }
    all.push(Conv2d { c_in: 16, c_out: 16, groups: 16, input: [14, 14], ..base });
    all.push(Conv2d { n: 19, c_in: 1, c_out: 5, input: [9, 9], ..base });
    all.retain(|conv| !conv.output().contains(&0));
    all
}

#[test]
fn gradients_of_a_convolution_are_its_adjoints() {
    // `sum(dy * conv(x, w))` is linear in x and in w, so it equals `sum(dx * x)` and `sum(dw * w)`. All terms are
    // multiples of 1/512 below 2^15, so every sum is exact in f32.
    for conv in convs() {
        let [x_len, w_len, y_len] = conv.lens();
        let (x, w, dy) = (numbers(x_len, 1), numbers(w_len, 2), numbers(y_len, 3));
        let mut y = vec![0.0; y_len];
        conv2d(&conv, &x, &w, &Epilogue::default(), &mut y);
        let (mut dx, mut dw) = (vec![f32::NAN; x_len], vec![f32::NAN; w_len]);
        conv2d_input(&conv, &w, &dy, &mut dx);
        conv2d_weights(&conv, &x, &dy, &mut dw);
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        assert_eq!(dot(&dx, &x), dot(&dy, &y), "{conv:?}");
        assert_eq!(dot(&dw, &w), dot(&dy, &y), "{conv:?}");
        // One element at a time as well: a sum could hide two that are exchanged.
        for i in [0, x_len / 2, x_len - 1] {
            let mut one = vec![0.0; x_len];
            one[i] = 1.0;
            conv2d(&conv, &one, &w, &Epilogue::default(), &mut y);
            assert_eq!(f64::from(dx[i]), dot(&dy, &y), "input {i}: {conv:?}");
        }
        for i in 0..w_len.min(40) {
            let mut one = vec![0.0; w_len];
            one[i] = 1.0;
            conv2d(&conv, &x, &one, &Epilogue::default(), &mut y);
            assert_eq!(f64::from(dw[i]), dot(&dy, &y), "weight {i}: {conv:?}");
        }
    }
}

#[test]
fn gradients_do_not_depend_on_the_number_of_threads() {
    let conv = Conv2d {
        n: 13,
        c_in: 24,
        c_out: 24,
        input: [14, 14],
        kernel: [3, 3],
        strides: [1, 1],
        pads: [1; 4],
        dilations: [1, 1],
        groups: 1,
    };
    for conv in [conv, Conv2d { groups: 24, ..conv }] {
        let [x_len, w_len, y_len] = conv.lens();
        let thirds = |n, seed| numbers(n, seed).iter().map(|x| x / 3.0).collect::<Vec<f32>>();
        let (x, w, dy) = (thirds(x_len, 4), thirds(w_len, 5), thirds(y_len, 6));
        let params = QParams::new(0.1, 3, QRange::U8).unwrap();
        let run = |n_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| {
                let (mut dx, mut dw) = (vec![0.0; x_len], vec![0.0; w_len]);
                conv2d_input(&conv, &w, &dy, &mut dx);
                conv2d_weights(&conv, &x, &dy, &mut dw);
                let planes = Planes { n: 13, channels: 24, len: 196 };
                let (mut mean, mut var) = (vec![0.0; 24], vec![0.0; 24]);
                batch_norm::statistics(planes, &x, &mut mean, &mut var);
                let sums = batch_norm::sums(planes, &x, &dy, &mean);
                let mut masked = vec![0.0; x_len];
                let grads = fake_quantize_grad(&x, &dy, params, QRange::U4, &mut masked);
                (dx, dw, mean, var, sums, masked, grads)
            })
        };
        assert!(run(1) == run(3), "{conv:?}");
    }
}

#[test]
fn a_value_has_a_gradient_where_its_rounded_integer_is_in_the_range() {
    let params = QParams::new(0.25, 8, QRange::U4).unwrap();
    let x = [-3.0, -2.05, -2.0, 0.1, 1.75, 1.87, 1.88, f32::INFINITY, f32::NAN];
    let dy = [1.0; 9];
    let mut dx = [0.0; 9];
    let grads = fake_quantize_grad(&x, &dy, params, QRange::U4, &mut dx);
    // 1.88 / 0.25 = 7.52 rounds to 8, one above 15 - 8.
    assert_eq!(dx, [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    // 1.75 is the bound itself.
    assert_eq!(grads.upper_bound, 4.0);
    assert_eq!(grads.zero_point, -0.25 * 3.0);
}

#[test]
fn statistics_are_the_means_over_images_and_positions() {
    let planes = Planes { n: 5, channels: 3, len: 37 };
    let x: Vec<f32> = numbers(5 * 3 * 37, 7).iter().map(|x| 1000.0 + x).collect();
    let (mut mean, mut var) = ([0.0; 3], [0.0; 3]);
    batch_norm::statistics(planes, &x, &mut mean, &mut var);
    for c in 0..3 {
        let values: Vec<f64> = planes.of(&x, c).flatten().map(|x| f64::from(*x)).collect();
        let m = values.iter().sum::<f64>() / values.len() as f64;
        let v = values.iter().map(|x| (x - m).powi(2)).sum::<f64>() / values.len() as f64;
        // One rounding to f32 of the mean; sums of 37 exact eighths, squared, for the variance.
        assert!((f64::from(mean[c]) - m).abs() <= 1000.0 * f64::from(f32::EPSILON), "{c}");
        assert!((f64::from(var[c]) / v - 1.0).abs() < 1e-5, "{c}: {} {v}", var[c]);
    }
}
