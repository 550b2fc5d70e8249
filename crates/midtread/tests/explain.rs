//! The figures of the project's specification, as `explain` gives them.

use midtread::explain::{TensorOptions, TensorReport, tensor, types, value_float, value_integer};
use midtread::num::{Granularity, Symmetry};

const X: [f32; 15] = [
    199.9341, -9.1758, 0.0, 7.1529, 123.2222, 101.2439, 182.7486, 88.2835, 58.6505, -8.1758,
    -4.9222, 159.3742, 110.0036, 159.674, 198.9341,
];

#[expect(clippy::excessive_precision, reason = "as printed")]
const X2: [f32; 20] = [
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

fn explained(x: &[f32], bits: u32, symmetry: Symmetry, granularity: Granularity) -> TensorReport {
    tensor(&[x.len()], x, &options(bits, symmetry, granularity)).unwrap()
}

fn options(bits: u32, symmetry: Symmetry, granularity: Granularity) -> TensorOptions {
    TensorOptions { bits, symmetry, granularity, is_signed: false, range: None }
}

#[test]
fn pi_is_22_in_four_bits_and_399_in_eight_unless_it_is_cut() {
    let pi = std::f64::consts::PI;
    for (bits, code, value) in [(4, 22, 3.142857142857143), (8, 399, 3.141732283464567)] {
        let report = value_integer(pi, bits, None, true).unwrap();
        assert_eq!((report.code, report.value, report.saturated), (code, value, true));
        assert_eq!(report.error, (pi - value).abs());
        assert!(
            report.steps.iter().any(|step| step.contains(&format!("code = {code}"))),
            "{:?}",
            report.steps
        );
        let cut = value_integer(pi, bits, None, false).unwrap();
        assert_eq!((cut.code, cut.value, cut.saturated), ((1 << (bits - 1)) - 1, 1.0, true));
    }
    let half = value_integer(-0.5, 8, Some((-1.0, 1.0)), false).unwrap();
    assert_eq!((half.code, half.saturated), (-64, false));
}

#[test]
fn a_range_of_its_own_has_the_formulas_of_the_tensor() {
    let report = value_integer(7.1529, 8, Some((-9.1758, 199.9341)), false).unwrap();
    assert_eq!((report.code, report.saturated), (20, false));
    assert!(report.steps[0].contains("0.8200388235294118"), "{:?}", report.steps);
    assert!(report.steps[1].ends_with("= 11"), "{:?}", report.steps);
    let outside = value_integer(400.0, 8, Some((-9.1758, 199.9341)), true).unwrap();
    assert!(outside.saturated && 255 < outside.code && outside.error <= 0.42, "{outside:?}");
    assert_eq!(value_integer(400.0, 8, Some((-9.1758, 199.9341)), false).unwrap().code, 255);
    for (bits, range) in
        [(1, None), (33, None), (8, Some((1.0, 1.0))), (8, Some((0.0, f64::INFINITY)))]
    {
        assert!(value_integer(0.5, bits, range, false).is_err(), "{bits} {range:?}");
    }
    assert!(value_integer(f64::NAN, 8, None, false).is_err());
}

#[test]
fn a_float_is_taken_apart_as_in_the_textbook() {
    let report = value_float(85.125, "float32").unwrap();
    let fields = report.fields.as_ref().unwrap();
    let bits = [&fields.sign[..], &fields.exponent, &fields.mantissa];
    assert_eq!(bits, ["0", "10000101", "01010100100000000000000"]);
    assert_eq!(report.steps[0], "85.125 = 1010101.001b");
    assert_eq!(report.steps[1], "85.125 = 1.010101001b x 2^6");
    assert_eq!(report.steps[2], "exponent field = 6 + 127 = 133 = 10000101b");
    assert_eq!((report.value, report.error, report.saturated), (85.125, 0.0, false));
    assert_eq!(report.code, i64::from(85.125_f32.to_bits()));
}

#[test]
fn what_does_not_fit_float16_is_said() {
    // LayerNorm's epsilon, the smallest subnormal, the ends.
    let class = |x: f64| {
        let report = value_float(x, "float16").unwrap();
        (report.fields.unwrap().class, report.value, report.saturated)
    };
    assert_eq!(class(1e-12), ("zero", 0.0, false));
    assert_eq!(class(6e-8), ("subnormal", 2_f64.powi(-24), false));
    assert_eq!(class(6.2e-5).0, "normal");
    assert_eq!(class(65504.0), ("normal", 65504.0, false));
    assert_eq!(class(65520.0), ("infinity", f64::INFINITY, true));
    let fp8 = value_float(1000.0, "fp8_e4m3").unwrap();
    assert_eq!((fp8.code, fp8.value, fp8.saturated), (0x7E, 448.0, true));
    assert_eq!(value_float(-0.3, "e3m4").unwrap().value, -0.296875);
    assert!(value_float(1.0, "e9m9").unwrap_err().to_string().contains("bfloat16"));
    // One rounding, not two: 1 + 2^-11 + 2^-40 is above the middle, and its float32 is the middle.
    assert_eq!(
        value_float(1.0 + 2_f64.powi(-11) + 2_f64.powi(-40), "float16").unwrap().code,
        0x3C01
    );
}

#[test]
fn the_asymmetric_tensor_has_the_printed_figures() {
    let report = explained(&X, 8, Symmetry::Asymmetric, Granularity::PerTensor);
    assert_eq!(report.scales, [0.820_038_8]);
    assert_eq!(report.zero_points, [11]);
    assert_eq!(report.codes, [255, 0, 11, 20, 161, 134, 234, 119, 83, 1, 5, 205, 145, 206, 254]);
    assert_eq!(format!("{:.2}", report.error.mse), "0.05");
}

#[test]
fn the_symmetric_tensors_have_the_printed_figures() {
    let report = explained(&X, 8, Symmetry::Symmetric, Granularity::PerTensor);
    assert_eq!(report.scales, [1.5742842519685039_f64 as f32]);
    assert_eq!(report.zero_points, [0]);
    assert_eq!(report.codes, [127, -6, 0, 5, 78, 64, 116, 56, 37, -5, -3, 101, 70, 101, 126]);
    assert_eq!(format!("{:.2}", report.error.mse), "0.15");

    let report = explained(&X2, 8, Symmetry::Symmetric, Granularity::PerTensor);
    assert_eq!(report.scales, [0.13297997865189634_f64 as f32]);
    let codes = [
        -127, -111, -74, -16, -102, -104, -39, -56, -15, -35, 103, 97, 36, 42, 38, 67, 55, 19, 126,
        101,
    ];
    assert_eq!(report.codes, codes);
    assert_eq!(format!("{:.5}", report.error.mse), "0.00159");
}

#[test]
fn signed_codes_are_half_a_type_lower_and_a_range_cuts_off() {
    let unsigned = explained(&X, 8, Symmetry::Asymmetric, Granularity::PerTensor);
    let plain = options(8, Symmetry::Asymmetric, Granularity::PerTensor);
    let signed = tensor(&[X.len()], &X, &TensorOptions { is_signed: true, ..plain }).unwrap();
    assert_eq!(signed.scales, unsigned.scales);
    assert_eq!(signed.zero_points, [11 - 128]);
    let lower: Vec<i32> = unsigned.codes.iter().map(|q| q - 128).collect();
    assert_eq!(signed.codes, lower);

    let cut = TensorOptions { range: Some((0.0, 100.0)), ..plain };
    let cut = tensor(&[X.len()], &X, &cut).unwrap();
    assert_eq!((cut.zero_points[0], cut.codes[0], cut.codes[1]), (0, 255, 0));
    assert_eq!(cut.error.max_error, f64::from(X[0]) - f64::from(cut.values[0]));
    assert!(tensor(&[1], &[1.0], &TensorOptions { range: Some((1.0, 1.0)), ..plain }).is_err());
}

#[test]
fn rows_columns_channels_and_blocks_have_a_scale_each() {
    let x = &X[..12];
    let block_size = std::num::NonZeroUsize::new(3).unwrap();
    for (granularity, n) in [
        (Granularity::PerTensor, 1),
        (Granularity::PerAxis { axis: 0 }, 2),
        (Granularity::PerAxis { axis: 1 }, 6),
        (Granularity::Blocked { axis: 1, block_size }, 4),
    ] {
        let options = options(4, Symmetry::Symmetric, granularity);
        let report = tensor(&[2, 6], x, &options).unwrap();
        assert_eq!(report.scales.len(), n, "{granularity:?}");
        let whole = explained(x, 4, Symmetry::Symmetric, Granularity::PerTensor);
        assert!(
            report.error.mse <= whole.error.mse,
            "{granularity:?} loses no more than the whole tensor"
        );
    }
    let options = options(4, Symmetry::Symmetric, Granularity::PerAxis { axis: 2 });
    assert!(tensor(&[2, 6], x, &options).is_err(), "there is no such axis");
}

#[test]
fn other_quantizers_and_every_calibrator_stand_beside_it() {
    let report = explained(&X2, 4, Symmetry::Symmetric, Granularity::PerTensor);
    let mse = |name: &str| report.quantizers.iter().find(|q| q.name == name).unwrap().error.mse;
    // The same formula, in f64 here and in f32 there.
    assert!((mse("mid_tread") / report.error.mse - 1.0).abs() < 1e-5);
    for name in ["mid_tread", "mid_rise", "mu_law", "a_law"] {
        assert!(mse("lloyd_max") <= mse(name), "Lloyd-Max loses least, not more than {name}");
    }
    assert!(
        !report.quantizers.iter().find(|q| q.name == "mid_rise").unwrap().levels.contains(&0.0)
    );
    let names: Vec<&str> = report.calibrators.iter().map(|c| c.name).collect();
    let all: Vec<&str> =
        midtread::quant::calibrate::CALIBRATORS.iter().map(|def| def.name).collect();
    assert_eq!(names, all);
    let loss = |name: &str| report.calibrators.iter().find(|c| c.name == name).unwrap().error.mse;
    assert!((loss("min_max") - report.error.mse).abs() <= 1e-12, "min_max is what was asked for");
    assert_eq!(report.histogram.counts.iter().sum::<u64>(), 20);
    assert_eq!(report.histogram.lines(10).len(), report.histogram.counts.len());
    let svg = report.svg();
    assert!(
        svg.starts_with("<svg")
            && svg.contains("mid_rise")
            && svg.contains("mu_law")
            && svg.ends_with("</svg>\n")
    );
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

#[test]
fn odd_tensors_are_explained_or_refused_with_a_reason() {
    for x in [&[0.0][..], &[0.0; 5], &[3.5], &[-1e-42, 1e-42], &[f32::MAX, f32::MIN]] {
        for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric] {
            let report = explained(x, 8, symmetry, Granularity::PerTensor);
            assert_eq!(report.codes.len(), x.len());
            assert_eq!(report.histogram.counts.iter().sum::<u64>(), x.len() as u64);
            assert!(!report.svg().contains("NaN"), "{x:?}");
        }
    }
    let options = options(8, Symmetry::Symmetric, Granularity::PerTensor);
    let error = tensor(&[3], &[1.0, f32::NAN, 2.0], &options).unwrap_err().to_string();
    assert!(error.contains("element 1"), "{error}");
    assert!(tensor(&[0], &[], &options).is_err());
    assert!(tensor(&[1], &[1.0], &TensorOptions { bits: 17, ..options }).is_err());
}

#[test]
fn the_table_of_types_has_the_known_bounds() {
    let row = |name: &str| types(Some(name)).unwrap().remove(0);
    let half = row("float16");
    assert_eq!((half.max, half.size_ratio), (Some(65504.0), 2.0));
    assert_eq!(
        (half.min_normal, half.min_subnormal),
        (Some(2_f64.powi(-14)), Some(2_f64.powi(-24)))
    );
    assert_eq!((row("fp8_e4m3").max, row("fp8_e5m2").max), (Some(448.0), Some(57344.0)));
    for (name, min, max, ratio) in [
        ("int8", -128.0, 127.0, 4.0),
        ("int4", -8.0, 7.0, 8.0),
        ("int1", -1.0, 1.0, 32.0),
        ("uint8", 0.0, 255.0, 4.0),
    ] {
        let row = row(name);
        assert_eq!((row.min, row.max, row.accumulator), (Some(min), Some(max), "int32"), "{name}");
        // A float32 scale for each row of 4096 is the rest.
        assert!((row.size_ratio / ratio - 1.0).abs() < 0.01, "{name}: {}", row.size_ratio);
    }
    assert_eq!((row("int4").onnx_opset, row("int2").onnx_opset), (Some(21), Some(25)));
    let runs = |name: &str, runtime: &str| row(name).runtimes.contains(&runtime);
    assert!(runs("int4", "onnxruntime_cpu") && !runs("int2", "onnxruntime_cpu"));
    assert!(runs("uint8", "openvino") && !runs("uint8", "tensorrt") && runs("float16", "tensorrt"));
    assert!(
        runs("nf4", "bitsandbytes")
            && runs("q4_0", "llama.cpp")
            && runs("matmul_nbits4", "onnxruntime_cpu")
    );
    assert!(row("fixed8").runtimes.is_empty());
    let all = types(None).unwrap();
    for name in [
        "float32", "bfloat16", "int16", "uint2", "nf4", "mxfp4", "ternary", "bfp8", "fixed8",
        "pow2_4",
    ] {
        assert!(all.iter().any(|row| row.name == name), "{name} is in the table");
    }
    assert!(types(Some("int17")).is_err());
}
