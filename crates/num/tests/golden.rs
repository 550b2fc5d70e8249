//! The definition against what the reference implementations gave. `testdata/golden/README.md` says which.

use midtread_num::affine::with_min_real_range;
use midtread_num::dynamic::{self, ZeroScale};
use midtread_num::error::{softmax_kl, top1_agreement};
use midtread_num::granularity::{Granularity, Layout};
use midtread_num::pack::SubByte;
use midtread_num::requant::{
    GemmlowpMultiplier, multiplier, requantize, rounding_divide_by_power_of_two,
    saturating_rounding_doubling_high_mul,
};
use midtread_num::{ErrorSums, Multiplier, QParams, QRange, Sign, Span, Symmetry, bias, tensor};
use serde_json::Value;

fn golden(name: &str) -> Value {
    let path = format!("{}/../../testdata/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{path}: {err}"));
    serde_json::from_str(&text).unwrap_or_else(|err| panic!("{path}: {err}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("an array")
}

fn f64_of(value: &Value) -> f64 {
    match value.as_str() {
        Some("nan") => f64::NAN,
        Some("inf") => f64::INFINITY,
        Some("-inf") => f64::NEG_INFINITY,
        Some(other) => panic!("not a number: {other}"),
        None => value.as_f64().expect("a number"),
    }
}

fn f32_of(value: &Value) -> f32 {
    f64_of(value) as f32
}

fn f32s(value: &Value) -> Vec<f32> {
    list(value).iter().map(f32_of).collect()
}

fn i32_of(value: &Value) -> i32 {
    i32::try_from(value.as_i64().expect("an integer")).expect("an i32")
}

fn i32s(value: &Value) -> Vec<i32> {
    list(value).iter().map(i32_of).collect()
}

fn usizes(value: &Value) -> Vec<usize> {
    list(value).iter().map(|v| v.as_u64().expect("a count") as usize).collect()
}

/// `int8` and so on; `None` for the float types.
fn type_of(value: &Value) -> Option<(u32, Sign)> {
    let name = value.as_str().expect("a name");
    let (sign, bits) = match name.strip_prefix("uint") {
        Some(bits) => (Sign::Unsigned, bits),
        None => (Sign::Signed, name.strip_prefix("int")?),
    };
    Some((bits.parse().expect("a width"), sign))
}

fn full_range(value: &Value) -> Option<QRange> {
    let (bits, sign) = type_of(value)?;
    Some(QRange::of(bits, sign, Span::Full).unwrap())
}

fn symmetry_of(value: &Value) -> Symmetry {
    if value.as_bool().unwrap() { Symmetry::Symmetric } else { Symmetry::Asymmetric }
}

/// Whether two positive `f32` are the same or neighbors.
fn within_an_ulp(a: f32, b: f32) -> bool {
    a.to_bits().abs_diff(b.to_bits()) <= 1
}

#[test]
fn scale_and_zero_point_are_onnxruntime_s_to_the_bit() {
    let file = golden("affine_ort");
    let cases = list(&file["compute_scale_zp"]);
    assert_eq!(cases.len(), 312);
    for case in cases {
        let (bits, sign) = type_of(&case["type"]).unwrap();
        let symmetric = case["symmetric"].as_bool().unwrap();
        // onnxruntime's choice of range: reduced wins, and only int8 and int16 have a narrow one.
        let span = if case["reduce_range"].as_bool().unwrap() {
            Span::Reduced
        } else if symmetric && sign == Sign::Signed && 8 <= bits {
            Span::Narrow
        } else {
            Span::Full
        };
        let range = QRange::of(bits, sign, span).unwrap();
        assert_eq!((range.qmin(), range.qmax()), (i32_of(&case["qmin"]), i32_of(&case["qmax"])));

        let (min, max) = (f32_of(&case["rmin"]), f32_of(&case["rmax"]));
        let params = symmetry_of(&case["symmetric"]).params(min, max, range).unwrap();
        let bits = u32::from_str_radix(case["scale_bits"].as_str().unwrap(), 16).unwrap();
        assert_eq!(params.scale().to_bits(), bits, "{case}");
        assert_eq!(params.zero_point(), i32_of(&case["zero_point"]), "{case}");
    }
}

#[test]
fn min_real_range_widens_as_onnxruntime_does() {
    let file = golden("affine_ort");
    for case in list(&file["min_real_range"]) {
        let range = full_range(&case["type"]).unwrap();
        let (min, max) = with_min_real_range(
            f32_of(&case["rmin"]),
            f32_of(&case["rmax"]),
            f32_of(&case["min_real_range"]),
        );
        let params = symmetry_of(&case["symmetric"]).params(min, max, range).unwrap();
        assert_eq!(params.scale(), f32_of(&case["scale"]), "{case}");
        assert_eq!(params.zero_point(), i32_of(&case["zero_point"]), "{case}");
    }
}

#[test]
fn snapped_zero_points_are_onnxruntime_s() {
    let file = golden("affine_ort");
    for case in list(&file["snap_uint8"]) {
        let params =
            QParams::snapped(f32_of(&case["rmin"]), f32_of(&case["rmax"]), QRange::U8).unwrap();
        assert_eq!(params.scale(), f32_of(&case["scale"]), "{case}");
        assert_eq!(params.zero_point(), i32_of(&case["zero_point"]), "{case}");
    }
}

#[test]
fn codes_are_onnxruntime_s_for_ties_nan_and_infinities() {
    let file = golden("affine_ort");
    let runtime = &file["runtime_quantizelinear"];
    let shared_x = f32s(&runtime["x"]);
    let mut n_cases = 0;
    for case in list(&runtime["cases"]).iter().chain(list(&runtime["random"])) {
        let range = full_range(&case["type"]).unwrap();
        let params =
            QParams::new(f32_of(&case["scale"]), i32_of(&case["zero_point"]), range).unwrap();
        let x = if case["x"].is_null() { shared_x.clone() } else { f32s(&case["x"]) };
        for (x, y) in x.iter().zip(i32s(&case["y"])) {
            assert_eq!(params.quantize(*x, range), y, "{x}, {params:?}, {range}");
        }
        n_cases += 1;
    }
    assert_eq!(n_cases, 29);
}

#[test]
fn weights_quantized_ahead_of_time_are_onnxruntime_s() {
    let file = golden("affine_ort");
    for case in list(&file["offline"]) {
        let (bits, sign) = type_of(&case["type"]).unwrap();
        let symmetry = symmetry_of(&case["symmetric"]);
        let narrow = symmetry == Symmetry::Symmetric && sign == Sign::Signed && 8 <= bits;
        let range = QRange::of(bits, sign, if narrow { Span::Narrow } else { Span::Full }).unwrap();
        let x = f32s(&case["x"]);
        let layout = Granularity::PerTensor.layout(&[x.len()]).unwrap();
        let params = tensor::params_of(&x, layout, range, symmetry).unwrap();
        assert_eq!(params[0].scale(), f32_of(&case["scale"]), "{case}");
        assert_eq!(params[0].zero_point(), i32_of(&case["zero_point"]), "{case}");

        let mut codes = vec![0_i32; x.len()];
        tensor::quantize(&x, &mut codes, layout, &params, range);
        assert_eq!(codes, i32s(&case["q"]), "{case}");

        if let Some(packed) = case["packed"].as_str() {
            let ty = if sign == Sign::Signed { SubByte::Int4 } else { SubByte::Uint4 };
            let codes: Vec<i8> = codes.iter().map(|q| *q as i8).collect();
            assert_eq!(hex(&ty.pack(&codes).unwrap()), packed);
        }
    }
}

#[test]
fn blocked_weight_scales_are_onnxruntime_s_to_one_ulp() {
    let file = golden("affine_ort");
    for case in list(&file["blocked"]) {
        let (bits, sign) = type_of(&case["type"]).unwrap();
        let symmetry = symmetry_of(&case["symmetric"]);
        let narrow = symmetry == Symmetry::Symmetric && sign == Sign::Signed && 8 <= bits;
        let range = QRange::of(bits, sign, if narrow { Span::Narrow } else { Span::Full }).unwrap();
        let granularity = blocked(case);
        let shape = usizes(&case["shape"]);
        assert_eq!(granularity.params_shape(&shape).unwrap(), usizes(&case["out_shape"]));
        let layout = granularity.layout(&shape).unwrap();
        let params = tensor::params_of(&f32s(&case["w"]), layout, range, symmetry).unwrap();
        let zero_points: Vec<i32> = params.iter().map(|p| p.zero_point()).collect();
        assert_eq!(zero_points, i32s(&case["zero_point"]), "{case}");
        for (params, scale) in params.iter().zip(f32s(&case["scale"])) {
            // onnxruntime subtracts in f32 here, and in f64 everywhere else.
            assert!(within_an_ulp(params.scale(), scale), "{} {scale}", params.scale());
        }
    }
}

fn blocked(case: &Value) -> Granularity {
    let axis = case["axis"].as_u64().unwrap() as usize;
    let block_size = (case["block_size"].as_u64().unwrap() as usize).try_into().unwrap();
    Granularity::Blocked { axis, block_size }
}

#[test]
fn quantize_and_dequantize_linear_are_onnx_s_at_every_granularity() {
    let file = golden("onnx_quantize_linear");
    let mut n_cases = 0;
    for case in list(&file["cases"]) {
        // The float8 and float4 cases have no integer codes.
        let Some(range) = full_range(&case["type"]) else { continue };
        let x = f32s(&case["x"]);
        let shape = if case["shape"].is_null() { vec![x.len()] } else { usizes(&case["shape"]) };
        let granularity = match case["mode"].as_str().unwrap() {
            "per_tensor" | "ties" => Granularity::PerTensor,
            "per_axis" => Granularity::PerAxis { axis: case["axis"].as_u64().unwrap() as usize },
            "blocked" => {
                let granularity = blocked(case);
                let params_shape = granularity.params_shape(&shape).unwrap();
                assert_eq!(params_shape, usizes(&case["scale_shape"]));
                granularity
            }
            mode => panic!("unknown mode {mode}"),
        };
        let layout = granularity.layout(&shape).unwrap();
        let params: Vec<QParams> = f32s(&case["scale"])
            .into_iter()
            .zip(i32s(&case["zero_point"]))
            .map(|(scale, zero_point)| QParams::new(scale, zero_point, range).unwrap())
            .collect();
        let mut codes = vec![0_i32; x.len()];
        tensor::quantize(&x, &mut codes, layout, &params, range);
        assert_eq!(codes, i32s(&case["q"]), "{case}");
        if !case["dq"].is_null() {
            let mut back = vec![0.0; x.len()];
            tensor::dequantize(&codes, &mut back, layout, &params);
            assert_eq!(back, f32s(&case["dq"]), "{case}");
        }
        n_cases += 1;
    }
    assert_eq!(n_cases, 28);
}

#[test]
fn dynamic_quantize_linear_is_both_references() {
    let file = golden("dynamic_quantize_linear");
    let mut n_different = 0;
    for case in list(&file["cases"]) {
        let x = f32s(&case["x"]);
        let layout = Granularity::PerTensor.layout(&[x.len()]).unwrap();
        let (min, max) = tensor::min_max_of(&x, layout)[0];
        let ours = [ZeroScale::One, ZeroScale::OneStep]
            .map(|zero| dynamic::quantize_linear_params(min, max, zero).unwrap());
        for (params, want) in ours.iter().zip([case, &case["onnx_ref"]]) {
            assert_eq!(params.scale(), f32_of(&want["scale"]), "{case}");
            assert_eq!(params.zero_point(), i32_of(&want["zero_point"]), "{case}");
            let mut codes = vec![0_u8; x.len()];
            tensor::quantize(&x, &mut codes, layout, &[*params], QRange::U8);
            let codes: Vec<i32> = codes.into_iter().map(i32::from).collect();
            assert_eq!(codes, i32s(&want["y"]), "{case}");
        }
        n_different += usize::from(ours[0] != ours[1]);
    }
    assert_eq!(n_different, 1, "only the tensor of zeros");
    assert!(dynamic::quantize_linear_params(f32::NAN, 1.0, ZeroScale::One).is_err());
    assert!(dynamic::quantize_linear_params(f32::MIN, f32::MAX, ZeroScale::One).is_err());
}

#[test]
fn packed_bytes_are_onnx_s() {
    let file = golden("onnx_packing");
    let mut n_cases = 0;
    for case in list(&file["cases"]) {
        let ty = match case["type"].as_str().unwrap() {
            "int4" => SubByte::Int4,
            "uint4" => SubByte::Uint4,
            "int2" => SubByte::Int2,
            "uint2" => SubByte::Uint2,
            _ => continue,
        };
        let codes: Vec<i8> = i32s(&case["values"]).into_iter().map(|q| q as i8).collect();
        let bytes = ty.pack(&codes).unwrap();
        assert_eq!(hex(&bytes), case["raw_data"].as_str().unwrap(), "{case}");
        let as_i32: Vec<i32> = bytes.iter().map(|b| i32::from(*b)).collect();
        assert_eq!(as_i32, i32s(&case["int32_data"]), "{case}");
        assert_eq!(ty.unpack(&bytes, codes.len()).unwrap(), codes, "{case}");
        n_cases += 1;
    }
    assert_eq!(n_cases, 20);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn fixed_point_multipliers_are_gemmlowp_s_and_tflite_s() {
    let file = golden("integer_ops");
    let fixed = &file["fixedpoint"];
    for case in list(&fixed["mult"]) {
        let real = f64_of(&case["m"]);
        let m = GemmlowpMultiplier::from_real(real).unwrap();
        assert_eq!(
            (m.mantissa(), m.shift()),
            (i32_of(&case["q"]), i32_of(&case["shift"])),
            "{real}"
        );
        let want = i32s(&case["double_rounding"]).into_iter().zip(i32s(&case["single_rounding"]));
        let floats = i32s(&case["float_rne"]);
        for ((x, (double, single)), float) in i32s(&case["x"]).into_iter().zip(want).zip(floats) {
            assert_eq!(m.apply_double_rounding(x), double, "{x} * {real}");
            assert_eq!(m.apply_single_rounding(x), i64::from(single), "{x} * {real}");
            if let Some(ours) = Multiplier::from_real(real) {
                assert_eq!(ours.apply(x), i64::from(single), "{x} * {real}");
            }
            if float.abs() < 30_000 {
                assert_eq!(requantize(x, real as f32, 0, QRange::I16), float, "{x} * {real}");
            }
        }
    }
    for case in list(&fixed["srdhm"]) {
        let [a, b, want] = i32s(case)[..] else { panic!("{case}") };
        assert_eq!(saturating_rounding_doubling_high_mul(a, b), want, "{case}");
    }
    for case in list(&fixed["rdbypot"]) {
        let [x, exponent, want] = i32s(case)[..] else { panic!("{case}") };
        assert_eq!(rounding_divide_by_power_of_two(x, exponent as u32), want, "{case}");
    }
}

#[test]
fn requantization_is_onnxruntime_s() {
    let file = golden("integer_ops");
    for case in list(&file["requant_via_QLinearMatMul"]) {
        let m = multiplier(f32_of(&case["sa"]), f32_of(&case["sb"]), f32_of(&case["sy"]));
        for (acc, y) in i32s(&case["acc"]).into_iter().zip(i32s(&case["y"])) {
            assert_eq!(requantize(acc, m, i32_of(&case["zy"]), QRange::U8), y, "{acc} * {m}");
        }
    }
}

#[test]
fn requantized_matrix_products_are_onnxruntime_s() {
    let file = golden("integer_ops");
    for case in list(&file["qlinear_matmul"]) {
        let range = full_range(&case["type"]).unwrap();
        let [m, k, n] = ["M", "K", "N"].map(|key| case[key].as_u64().unwrap() as usize);
        let (a, b, sb) = (i32s(&case["a"]), i32s(&case["b"]), f32s(&case["sb"]));
        let za = i32_of(&case["za"]);
        let mut y = Vec::new();
        for row in 0..m {
            for col in 0..n {
                let acc = (0..k).map(|i| (a[row * k + i] - za) * b[i * n + col]).sum();
                let factor = multiplier(f32_of(&case["sa"]), sb[col], f32_of(&case["sy"]));
                y.push(requantize(acc, factor, i32_of(&case["zy"]), range));
            }
        }
        assert_eq!(y, i32s(&case["y"]), "{case}");
    }
}

#[test]
fn requantized_convolutions_are_onnxruntime_s() {
    let file = golden("integer_ops");
    for case in list(&file["qlinear_conv"]) {
        let range = full_range(&case["type"]).unwrap();
        let count = |key: &str| case[key].as_u64().unwrap() as usize;
        let (n_groups, n_in, n_out, kernel) =
            (count("group"), count("IC"), count("OC"), count("k"));
        let (stride, pad) = (count("stride"), count("pad"));
        let (x, w, bias) = (i32s(&case["x"]), i32s(&case["w"]), i32s(&case["bias"]));
        let scales = f32s(&case["sw"]);
        let out_size = usizes(&case["y_shape"])[2];
        let size = (1..).find(|n| n * n * n_in == x.len()).expect("a square image");
        let (in_per_group, out_per_group) = (n_in / n_groups, n_out / n_groups);
        let mut y = Vec::new();
        for oc in 0..n_out {
            let m = multiplier(f32_of(&case["sx"]), scales[oc % scales.len()], f32_of(&case["sy"]));
            for (oy, ox) in (0..out_size * out_size).map(|i| (i / out_size, i % out_size)) {
                let mut acc = bias[oc];
                for ic in 0..in_per_group {
                    for (ky, kx) in (0..kernel * kernel).map(|i| (i / kernel, i % kernel)) {
                        let (iy, ix) = (oy * stride + ky, ox * stride + kx);
                        if !(pad..size + pad).contains(&iy) || !(pad..size + pad).contains(&ix) {
                            continue;
                        }
                        let channel = oc / out_per_group * in_per_group + ic;
                        let at = (channel * size + iy - pad) * size + ix - pad;
                        let weight = w[((oc * in_per_group + ic) * kernel + ky) * kernel + kx];
                        acc += (x[at] - i32_of(&case["zx"])) * weight;
                    }
                }
                y.push(requantize(acc, m, i32_of(&case["zy"]), range));
            }
        }
        assert_eq!(y, i32s(&case["y"]), "{case}");
    }
}

#[test]
fn error_measures_are_the_reference_s() {
    let file = golden("recovery_metrics");
    let metrics = &file["metrics"];
    let (reference, other) = (f32s(&metrics["ref"]), f32s(&metrics["quant"]));
    let n_classes = usizes(&metrics["shape"])[1];
    let sums = ErrorSums::of(&reference, &other);
    // The reference's inputs are f64: rounding them to f32 moves the figures by 1e-7 relative.
    let close = |got: f64, key: &str| {
        let want = f64_of(&metrics[key]);
        assert!((got - want).abs() <= 1e-6 * want.abs(), "{key}: {got}, not {want}");
    };
    close(sums.sqnr_db(), "sqnr_db");
    close(sums.cosine(), "cos");
    close(softmax_kl(&reference, &other, n_classes), "kl_mean_nats");
    close(top1_agreement(&reference, &other, n_classes), "top1_agree");
}

#[test]
fn a_bias_s_scale_follows_from_input_and_weight() {
    // The weights and biases of the golden convolutions were quantized so: the product is exact
    // enough that dividing and multiplying give the integers back.
    let file = golden("integer_ops");
    for case in list(&file["qlinear_conv"]) {
        for q in i32s(&case["bias"]) {
            let scale = bias::bias_scale(f32_of(&case["sx"]), f32s(&case["sw"])[0]).unwrap();
            assert_eq!(bias::quantize_bias(bias::dequantize_bias(q, scale), scale), q);
        }
    }
}

#[test]
fn layouts_are_plain_data() {
    fn assert_copy<T: Copy + Send + Sync>() {}
    assert_copy::<Layout>();
    assert_copy::<QParams>();
}
