use proptest::prelude::*;

use super::*;

/// Two floats within `n` units in the last place of `b`, or `n` times the smallest normal float.
fn is_close(a: f32, b: f64, n: f64) -> bool {
    let ulp = f64::from((b as f32).abs().max(f32::MIN_POSITIVE)) * f64::from(f32::EPSILON);
    (f64::from(a) - b).abs() <= n * ulp || f64::from(a) == b
}

fn rows() -> impl Strategy<Value = (Vec<f32>, usize)> {
    (1_usize..70, 1_usize..5)
        .prop_flat_map(|(len, n)| (prop::collection::vec(-20.0_f32..20.0, len * n), Just(len)))
}

proptest! {
    #[test]
    fn softmax_is_within_a_few_ulp_and_the_same_in_every_variant((x, len) in rows()) {
        let mut want: Option<Vec<u32>> = None;
        for variant in SOFTMAX {
            let Some(run) = variant.get() else { continue };
            let mut y = vec![f32::NAN; x.len()];
            run(&x, &mut y, len, false);
            let bits: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
            prop_assert_eq!(want.get_or_insert_with(|| bits.clone()), &bits, "{}", variant.name);
            for (x, y) in x.chunks(len).zip(y.chunks(len)) {
                let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let e: Vec<f64> = x.iter().map(|x| f64::from(x - top).exp()).collect();
                let total: f64 = e.iter().sum();
                for (y, e) in y.iter().zip(e) {
                    // One each for the exponential and the two products, and for the sum of up to 70 of them in 16
                    // lanes up to 5 + 4.
                    prop_assert!(is_close(*y, e / total, 13.0), "{} {}", y, e / total);
                }
            }
        }
    }

    #[test]
    fn log_softmax_is_the_logarithm_of_softmax((x, len) in rows()) {
        let mut y = vec![f32::NAN; x.len()];
        log_softmax(&x, len, &mut y);
        for (x, y) in x.chunks(len).zip(y.chunks(len)) {
            let top = f64::from(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let total: f64 = x.iter().map(|x| (f64::from(*x) - top).exp()).sum();
            for (y, x) in y.iter().zip(x) {
                let want = f64::from(*x) - top - total.ln();
                // Differences of numbers up to 40, rounded twice.
                prop_assert!((f64::from(*y) - want).abs() <= 2.0 * 40.0 * f64::from(f32::EPSILON));
            }
        }
    }

    #[test]
    fn layer_norm_is_the_definition_in_every_variant((x, len) in rows(), has_bias: bool) {
        let scale: Vec<f32> = (0..len).map(|i| 0.5 + i as f32 / 8.0).collect();
        let bias: Vec<f32> = (0..len).map(|i| i as f32 - 3.0).collect();
        let bias = has_bias.then_some(&bias[..]);
        let norm = LayerNorm { scale: &scale, bias, epsilon: 1e-3 };
        let mut first: Option<Vec<u32>> = None;
        for variant in LAYER_NORM {
            let Some(run) = variant.get() else { continue };
            let mut y = vec![f32::NAN; x.len()];
            run(norm, &x, &mut y);
            let bits: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
            prop_assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits, "{}", variant.name);
            for (x, y) in x.chunks(len).zip(y.chunks(len)) {
                let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / len as f64;
                let var = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / len as f64;
                for (i, (x, y)) in x.iter().zip(y).enumerate() {
                    let factor = f64::from(scale[i]) / (var + 1e-3).sqrt();
                    let want = (f64::from(*x) - mean) * factor + bias.map_or(0.0, |b| f64::from(b[i]));
                    // The mean is off by a few ULP of 20, which the factor enlarges; then the bias.
                    let error = (8.0 * 20.0 * factor + want.abs() * 8.0 + 70.0) * f64::from(f32::EPSILON);
                    prop_assert!((f64::from(*y) - want).abs() <= error, "{} {}", y, want);
                }
            }
        }
    }

    #[test]
    fn reductions_of_small_integers_are_exact_along_any_dimension(
        dims in prop::array::uniform3(1_usize..20),
        seed in 0_usize..1000,
    ) {
        let [outer, reduced, inner] = dims;
        let x: Vec<f32> = (0..outer * reduced * inner).map(|i| ((i * 31 + seed) % 17) as f32 - 8.0).collect();
        let column = |i: usize| -> Vec<f32> {
            (0..reduced).map(|r| x[(i / inner * reduced + r) * inner + i % inner]).collect()
        };
        let sum = |c: &[f32]| c.iter().sum::<f32>();
        let squares = |c: &[f32]| c.iter().map(|x| x * x).sum::<f32>();
        type Case<'a> = (ReduceOp, &'a dyn Fn(&[f32]) -> f32);
        let cases: [Case; 7] = [
            (ReduceOp::Sum, &sum),
            (ReduceOp::Mean, &|c| sum(c) / c.len() as f32),
            (ReduceOp::Max, &|c| c.iter().copied().fold(f32::NEG_INFINITY, f32::max)),
            (ReduceOp::Min, &|c| c.iter().copied().fold(f32::INFINITY, f32::min)),
            (ReduceOp::L1, &|c| c.iter().map(|x| x.abs()).sum()),
            (ReduceOp::L2, &|c| squares(c).sqrt()),
            (ReduceOp::SumSquare, &squares),
        ];
        for (op, want) in cases {
            let mut y = vec![f32::NAN; outer * inner];
            reduce(op, &x, dims, &mut y);
            for (i, y) in y.iter().enumerate() {
                prop_assert_eq!(*y, want(&column(i)), "{:?}", op);
            }
        }
        let mut y = vec![f32::NAN; outer * inner];
        reduce(ReduceOp::LogSumExp, &x, dims, &mut y);
        for (i, y) in y.iter().enumerate() {
            let want = column(i).iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
            // The logarithm of a sum, shifted by up to 8.
            prop_assert!((f64::from(*y) - want).abs() <= 16.0 * f64::from(f32::EPSILON), "{} {}", y, want);
        }
    }
}

#[test]
fn nan_is_the_maximum_and_the_minimum_and_spoils_its_row_of_softmax() {
    for at in [0, 5, 16, 20] {
        let mut x = [1.0; 21];
        x[at] = f32::NAN;
        for op in [ReduceOp::Max, ReduceOp::Min, ReduceOp::Sum] {
            for dims in [[1, 21, 1], [1, 7, 3]] {
                let mut y = vec![0.0; dims[2]];
                reduce(op, &x, dims, &mut y);
                assert!(y[at % dims[2]].is_nan(), "{op:?} at {at}");
            }
        }
        let mut y = [0.0; 21];
        softmax(&x, 21, &mut y);
        assert!(y.iter().all(|y| y.is_nan()), "at {at}");
    }
}

#[test]
fn softmax_of_minus_infinity_is_zero_and_large_inputs_do_not_overflow() {
    let mut y = [0.0; 4];
    softmax(&[f32::NEG_INFINITY, 1e38, 1e38, -1e38], 4, &mut y);
    assert_eq!(y, [0.0, 0.5, 0.5, 0.0]);
}

#[test]
fn variants_of_a_reduction_have_the_same_bits() {
    for len in 0..=100 {
        let x: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        for op in [ReduceOp::Sum, ReduceOp::SumSquare, ReduceOp::Prod, ReduceOp::LogSumExp] {
            let all: Vec<u32> = REDUCE_ROW
                .iter()
                .filter_map(|v| v.get())
                .map(|run| run(op, &x).to_bits())
                .collect();
            assert!(all.iter().all(|bits| *bits == all[0]), "{op:?} of {len}");
        }
    }
}

#[test]
fn batch_and_instance_normalization_scale_each_channel() {
    // Two images of two channels of two.
    let x = [1.0, 3.0, 10.0, 30.0, 5.0, 5.0, -2.0, 2.0];
    let mut y = [0.0; 8];
    let params = [&[2.0, 1.0][..], &[0.5, 0.0], &[1.0, 10.0], &[3.0, 15.0]];
    batch_norm(&x, 2, params, 1.0, &mut y);
    assert_eq!(y, [0.5, 2.5, 0.0, 5.0, 4.5, 4.5, -3.0, -2.0]);
    instance_norm(&x, 2, &[1.0, 2.0], &[0.0, 1.0], 0.0, &mut y);
    assert_eq!(y[..4], [-1.0, 1.0, -1.0, 3.0]);
    assert_eq!(y[6..], [-1.0, 3.0]);
}

#[test]
fn a_normalized_row_has_length_one() {
    let mut y = [9.0; 6];
    l2_normalize(&[3.0, 4.0, 0.0, 0.0, 0.0, 0.0], 3, 1e-12, &mut y);
    assert_eq!(y, [0.6, 0.8, 0.0, 0.0, 0.0, 0.0]);
}
