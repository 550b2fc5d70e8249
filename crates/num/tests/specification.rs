//! The worked figures that the project's specification gives for single values and small tensors.

use midtread_num::textbook::{Affine, Overflow, quantize_unit};
use midtread_num::uniform::{Kind, Uniform};
use midtread_num::{ErrorSums, QParams, QRange, Rounding, Span};

const X: [f64; 15] = [
    199.9341, -9.1758, 0.0, 7.1529, 123.2222, 101.2439, 182.7486, 88.2835, 58.6505, -8.1758,
    -4.9222, 159.3742, 110.0036, 159.674, 198.9341,
];

const X2: [f64; 20] = [
    -16.88845729,
    -14.73619101,
    -9.84795077,
    -2.16624371,
    -13.58845586,
    -13.89295657,
    -5.13396663,
    -7.43403557,
    -2.02378329,
    -4.6139564,
    13.66297264,
    12.94906411,
    4.74121694,
    5.52796603,
    5.09095534,
    8.92738701,
    7.37523507,
    2.56579524,
    16.80063994,
    13.47113548,
];

fn codes(affine: Affine, x: &[f64]) -> Vec<i64> {
    x.iter().map(|x| affine.quantize(*x, Rounding::TiesEven).code).collect()
}

fn mse(affine: Affine, x: &[f64]) -> f64 {
    let back: Vec<f64> = x.iter().map(|x| affine.quantize(*x, Rounding::TiesEven).value).collect();
    ErrorSums::of_f64(x, &back).mse()
}

#[test]
fn pi_unsaturated_is_22_in_four_bits_and_399_in_eight() {
    let pi = std::f64::consts::PI;
    for (bits, code, value) in [(4, 22, 3.142857142857143), (8, 399, 3.141732283464567)] {
        let kept = quantize_unit(pi, bits, Rounding::TiesEven, Overflow::Keep).unwrap();
        assert_eq!((kept.code, kept.value), (code, value));
        assert!(kept.saturated, "and it says that the type has no such code");
        assert_eq!(kept.error, (pi - value).abs());

        let qmax = (1 << (bits - 1)) - 1;
        let cut = quantize_unit(pi, bits, Rounding::TiesEven, Overflow::Saturate).unwrap();
        assert_eq!((cut.code, cut.value, cut.saturated), (qmax, 1.0, true));
    }
    let inside = quantize_unit(-0.5, 8, Rounding::TiesEven, Overflow::Saturate).unwrap();
    assert_eq!((inside.code, inside.saturated), (-64, false));
    assert!(quantize_unit(0.5, 1, Rounding::TiesEven, Overflow::Keep).is_err());
}

#[test]
fn the_asymmetric_example_gives_the_printed_figures() {
    let affine = Affine::unsigned(-9.1758, 199.9341, 8).unwrap();
    assert_eq!((affine.scale, affine.zero_point), (0.8200388235294118, 11));
    let want = [255, 0, 11, 20, 161, 134, 234, 119, 83, 1, 5, 205, 145, 206, 254];
    assert_eq!(codes(affine, &X), want);
    assert_eq!(format!("{:.2}", mse(affine, &X)), "0.05");

    // The product's quantizer gives the same codes on these values.
    let params = QParams::from_min_max(-9.1758, 199.9341, QRange::U8).unwrap();
    assert_eq!((params.scale(), params.zero_point()), (0.8200388235294118_f64 as f32, 11));
    let codes: Vec<i64> =
        X.iter().map(|x| i64::from(params.quantize(*x as f32, QRange::U8))).collect();
    assert_eq!(codes, want);
}

#[test]
fn the_signed_form_is_the_unsigned_one_moved_by_half() {
    let unsigned = Affine::unsigned(-9.1758, 199.9341, 8).unwrap();
    let signed = Affine::signed(-9.1758, 199.9341, 8).unwrap();
    assert_eq!((signed.qmin, signed.qmax, signed.zero_point), (-128, 127, 11 - 128));
    // As printed: s = 255 / (max - min), z = -round(min * s) - 128.
    let s = 255.0 / (199.9341_f64 + 9.1758);
    assert_eq!(signed.zero_point, -((-9.1758 * s).round() as i64) - 128);
    let moved: Vec<i64> = codes(unsigned, &X).iter().map(|q| q - 128).collect();
    assert_eq!(codes(signed, &X), moved);
}

#[test]
fn the_general_form_clips_to_the_chosen_interval() {
    let affine = Affine::unsigned(-9.1758, 199.9341, 8).unwrap().clipped_to(0.0, 100.0);
    assert_eq!((affine.qmin, affine.qmax), (11, 133));
    let want = [133, 11, 11, 20, 133, 133, 133, 119, 83, 11, 11, 133, 133, 133, 133];
    assert_eq!(codes(affine, &X), want);
    assert!(affine.quantize(-9.0, Rounding::TiesEven).saturated);
}

#[test]
fn the_symmetric_examples_give_the_printed_figures() {
    let affine = Affine::symmetric(199.9341, 8).unwrap();
    assert_eq!((affine.scale, affine.zero_point), (1.5742842519685039, 0));
    assert_eq!((affine.qmin, affine.qmax), (-127, 127));
    let want = [127, -6, 0, 5, 78, 64, 116, 56, 37, -5, -3, 101, 70, 101, 126];
    assert_eq!(codes(affine, &X), want);
    assert_eq!(format!("{:.2}", mse(affine, &X)), "0.15");

    let affine = Affine::symmetric(16.88845729, 8).unwrap();
    // The figure was made from values with more digits than are printed: 1e-9 relative.
    assert!((affine.scale - 0.13297997865189634).abs() <= 1e-9, "{}", affine.scale);
    let want = [
        -127, -111, -74, -16, -102, -104, -39, -56, -15, -35, 103, 97, 36, 42, 38, 67, 55, 19, 126,
        101,
    ];
    assert_eq!(codes(affine, &X2), want);
    assert_eq!(format!("{:.5}", mse(affine, &X2)), "0.00159");

    let params = QParams::symmetric(X2[0] as f32, X2[18] as f32, QRange::I8_NARROW).unwrap();
    let codes: Vec<i64> =
        X2.iter().map(|x| i64::from(params.quantize(*x as f32, QRange::I8_NARROW))).collect();
    assert_eq!(codes, want);
}

/// Mean squared error on a standard normal variable, by integration over each cell of the staircase.
fn gaussian_mse(quantizer: Uniform) -> f64 {
    const N: i32 = 400_000;
    let step = 16.0 / f64::from(N);
    let mut sum = 0.0;
    for i in 0..N {
        let x = -8.0 + (f64::from(i) + 0.5) * step;
        let error = x - quantizer.quantize(x);
        sum += error * error * (-0.5 * x * x).exp() * step;
    }
    sum / std::f64::consts::TAU.sqrt()
}

#[test]
fn mid_rise_loses_less_than_mid_tread_at_few_bits_by_the_known_amounts() {
    // Optimal steps and their errors, found independently by numerical optimization.
    for (bits, kind, span, step, mse) in [
        (2, Kind::MidRise, Span::Full, 0.9957651912978246, 0.11884606425124525),
        (2, Kind::MidTread, Span::Full, 1.0481470367591899, 0.1494310589252243),
        (2, Kind::MidTread, Span::Narrow, 1.2242498124531134, 0.1901740598193707),
        (3, Kind::MidRise, Span::Full, 0.5861890472618155, 0.0374397261797115),
        (3, Kind::MidTread, Span::Full, 0.6016541635408853, 0.040638259598575824),
        (4, Kind::MidRise, Span::Full, 0.33525506376594155, 0.011542888849503791),
        (4, Kind::MidTread, Span::Narrow, 0.35321455363840965, 0.012889415517453696),
    ] {
        let got = gaussian_mse(Uniform::new(kind, step, bits, span).unwrap());
        // The step of the integration is 4e-5.
        assert!((got - mse).abs() <= 1e-4 * mse, "{bits} bits {kind:?} {span:?}: {got}, not {mse}");
        for other in [0.99 * step, 1.01 * step] {
            let worse = gaussian_mse(Uniform::new(kind, other, bits, span).unwrap());
            assert!(got < worse, "{bits} bits {kind:?} {span:?}: the step is the best one");
        }
    }
}
