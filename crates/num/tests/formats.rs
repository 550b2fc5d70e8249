//! Number formats against the implementations that define them. `testdata/golden/README.md` says which.

use midtread_num::formats::codebook::{FP4_CODE, NF4_CODE, dynamic_map};
use midtread_num::formats::fixed_point::{self, Holds};
use midtread_num::formats::float::{FloatType, Overflow};
use midtread_num::formats::power_of_two::{self, Border};
use midtread_num::formats::{Encoded, Format, Matrix, bits, hqq, llm_int8, nested};
use midtread_num::nonuniform::{Law, LloydMax};
use serde_json::Value;

fn golden(name: &str) -> Value {
    let path = format!("{}/../../testdata/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{path}: {err}"));
    serde_json::from_str(&text).unwrap_or_else(|err| panic!("{path}: {err}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("an array")
}

fn f32_of(value: &Value) -> f32 {
    match value.as_str() {
        Some("nan") => f32::NAN,
        Some("inf") => f32::INFINITY,
        Some("-inf") => f32::NEG_INFINITY,
        Some(other) => panic!("not a number: {other}"),
        None => value.as_f64().expect("a number") as f32,
    }
}

fn f32s(value: &Value) -> Vec<f32> {
    list(value).iter().map(f32_of).collect()
}

fn i32s(value: &Value) -> Vec<i32> {
    list(value).iter().map(|v| v.as_i64().expect("an integer") as i32).collect()
}

fn usize_of(value: &Value) -> usize {
    value.as_u64().expect("a count") as usize
}

fn hex(value: &Value) -> Vec<u8> {
    let text = value.as_str().expect("hexadecimal digits");
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn hex_number(value: &Value) -> u32 {
    u32::from_str_radix(value.as_str().expect("hexadecimal digits"), 16).unwrap()
}

/// Equal to the bit, any NaN to any other.
#[track_caller]
fn assert_bits(got: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        let is_equal = got.to_bits() == wanted.to_bits() || got.is_nan() && wanted.is_nan();
        assert!(is_equal, "{what}: element {i} is {got:e} instead of {wanted:e}");
    }
}

const FLOATS: [(&str, FloatType); 7] = [
    ("float8_e4m3fn", FloatType::FP8_E4M3FN),
    ("float8_e4m3fnuz", FloatType::FP8_E4M3FNUZ),
    ("float8_e5m2", FloatType::FP8_E5M2),
    ("float8_e5m2fnuz", FloatType::FP8_E5M2FNUZ),
    ("float4_e2m1fn", FloatType::FP4_E2M1),
    ("float6_e2m3fn", FloatType::FP6_E2M3),
    ("float6_e3m2fn", FloatType::FP6_E3M2),
];

#[test]
fn every_code_of_the_small_floats_means_what_ml_dtypes_says() {
    let file = golden("float_formats");
    for (name, ty) in FLOATS {
        let wanted = f32s(&file["decode"][name]);
        assert_eq!(wanted.len(), 1 << ty.n_bits());
        let got: Vec<f32> = (0..1 << ty.n_bits()).map(|code| ty.decode(code)).collect();
        assert_bits(&got, &wanted, name);
    }
}

#[test]
fn casts_to_the_small_floats_are_onnx_s() {
    let file = golden("float_formats");
    let x = f32s(&file["encode_inputs"]);
    for (key, ty, overflow) in [
        ("float8_e4m3fn_saturate1", FloatType::FP8_E4M3FN, Overflow::Saturate),
        ("float8_e4m3fn_saturate0", FloatType::FP8_E4M3FN, Overflow::Special),
        ("float8_e4m3fnuz_saturate1", FloatType::FP8_E4M3FNUZ, Overflow::Saturate),
        ("float8_e4m3fnuz_saturate0", FloatType::FP8_E4M3FNUZ, Overflow::Special),
        ("float8_e5m2_saturate1", FloatType::FP8_E5M2, Overflow::Saturate),
        ("float8_e5m2_saturate0", FloatType::FP8_E5M2, Overflow::Special),
        ("float8_e5m2fnuz_saturate1", FloatType::FP8_E5M2FNUZ, Overflow::Saturate),
        ("float8_e5m2fnuz_saturate0", FloatType::FP8_E5M2FNUZ, Overflow::Special),
        ("float4e2m1", FloatType::FP4_E2M1, Overflow::Saturate),
    ] {
        let wanted = i32s(&file["onnx"][key]);
        assert_eq!(wanted.len(), x.len());
        for (x, wanted) in x.iter().zip(wanted) {
            let code = ty.encode(*x, overflow) as i32;
            let is_nan =
                x.is_nan() && ty.decode(code as u32).is_nan() && ty.decode(wanted as u32).is_nan();
            assert!(
                code == wanted || is_nan,
                "{key}: {x:e} became {code:#x} instead of {wanted:#x}"
            );
        }
    }
}

#[test]
fn float6_rounds_as_ml_dtypes_does() {
    let file = golden("float_formats");
    let x = f32s(&file["encode_inputs"]);
    for (name, ty) in FLOATS.into_iter().filter(|(name, _)| name.starts_with("float6")) {
        for (x, wanted) in x.iter().zip(i32s(&file["ml_dtypes"][name])) {
            if !x.is_nan() {
                assert_eq!(ty.encode(*x, Overflow::Saturate) as i32, wanted, "{name}: {x:e}");
            }
        }
    }
}

#[test]
fn float16_and_bfloat16_round_to_the_nearest_with_ties_to_even() {
    let file = golden("float_formats");
    let file = &file["fp16_bf16"];
    for (i, bits) in list(&file["x_bits"]).iter().enumerate() {
        let x = f32::from_bits(hex_number(bits));
        for (key, ty) in [("fp16", FloatType::FLOAT16), ("bf16", FloatType::BFLOAT16)] {
            let wanted = hex_number(&file[key][i]);
            assert_eq!(ty.encode(x, Overflow::Special), wanted, "{key}: {x:e}");
        }
    }
}

#[test]
fn tables_are_bitsandbytes_s() {
    let file = golden("bitsandbytes");
    assert_bits(&NF4_CODE, &f32s(&file["codes"]["nf4"]), "nf4");
    for (got, wanted) in FP4_CODE.iter().zip(f32s(&file["codes"]["fp4"])) {
        // One of its two zeros is printed as -0 or 0.
        assert_eq!(*got, wanted);
    }
    assert_bits(&dynamic_map(true), &f32s(&file["dynamic_map_signed8"]), "the signed dynamic map");
}

#[test]
fn nf4_and_fp4_have_bitsandbytes_s_bytes() {
    let file = golden("bitsandbytes");
    for case in list(&file["quant4"]) {
        let (ty, block_size) = (case["quant_type"].as_str().unwrap(), &case["blocksize"]);
        let format = Format::named(&format!("{ty}:{block_size}")).unwrap();
        let x = f32s(&case["x"]);
        let matrix = Matrix::row(&x);
        let encoded = format.quantize(&matrix).unwrap();
        let what = format!("{ty}, {} elements in blocks of {block_size}", x.len());
        assert_eq!(format.pack(&encoded, matrix.shape())[0], hex(&case["packed"]), "{what}");
        assert_bits(encoded.param("absmax"), &f32s(&case["absmax"]), &what);
        let back = format.dequantize(&encoded, matrix.shape());
        for (got, wanted) in back.iter().zip(f32s(&case["dequant"])) {
            assert_eq!(*got, wanted, "{what}");
        }
    }
}

#[test]
fn dynamic_8_bit_codes_are_bitsandbytes_s_or_nearer() {
    let file = golden("bitsandbytes");
    let (mut n_compared, mut n_different) = (0, 0);
    for case in list(&file["blockwise8"]) {
        let format = Format::named(&format!("dynamic8:{}", case["blocksize"])).unwrap();
        if case.get("q").is_none() {
            continue;
        }
        let x = f32s(&case["x"]);
        let encoded = format.quantize(&Matrix::row(&x)).unwrap();
        let (table, theirs) = (dynamic_map(true), i32s(&case["q"]));
        for (i, (code, theirs)) in encoded.codes.iter().zip(theirs).enumerate() {
            if *code != theirs {
                // bitsandbytes' C++ looks 8-bit codes up by an approximation: ours has to be the nearer one.
                let scaled = x[i] / encoded.param("absmax")[i / usize_of(&case["blocksize"])];
                let distance = |code: i32| (table[code as usize] - scaled).abs();
                assert!(distance(*code) < distance(theirs), "element {i}: {code} and {theirs}");
                n_different += 1;
            }
        }
        assert_bits(encoded.param("absmax"), &f32s(&case["absmax"]), "absmax");
        n_compared += x.len();
    }
    assert_eq!((n_compared, n_different), (612, 1));
}

#[test]
fn nested_scales_are_bitsandbytes_s() {
    let file = golden("bitsandbytes");
    let file = &file["nested"];
    let absmax = f32s(&file["absmax_fp32"]);
    let offset = f32_of(&file["offset"]);
    let (codes, scales, ours) = nested::quantize_scales(&absmax);
    assert!(
        ours.to_bits().abs_diff(offset.to_bits()) <= 1,
        "the mean, added in another order: {ours} and {offset}"
    );
    assert_eq!(codes, i32s(&file["qabsmax"]));
    let (codes_from_theirs, scales_from_theirs) = nested::quantize_scales_from(&absmax, offset);
    assert_eq!(codes, codes_from_theirs);
    assert!(scales.iter().zip(&scales_from_theirs).all(|(a, b)| (a - b).abs() <= 1e-7));
    let scales = scales_from_theirs;
    assert_bits(&scales, &f32s(&file["state2_absmax"]), "nested absmax");
    let back = nested::dequantize_scales(&codes, &scales, offset);
    assert_bits(&back, &f32s(&file["absmax_dequant"]), "absmax back");
}

#[test]
fn llm_int8_is_bitsandbytes_s_with_and_without_outliers() {
    let file = golden("bitsandbytes");
    let case = &file["int8_vectorwise"];
    let a = f32s(&case["A"]);
    let rows = usize_of(&case["shape"][0]);
    let matrix = Matrix::new(&a, a.len() / rows).unwrap();
    let codes = |rows: &llm_int8::Vectorwise| {
        rows.codes.iter().map(|q| i32::from(*q)).collect::<Vec<i32>>()
    };
    let with = llm_int8::quantize_rows(&matrix, f32_of(&case["threshold"]));
    assert_eq!(codes(&with), i32s(&case["q"]));
    assert_bits(&with.absmax, &f32s(&case["row_absmax"]), "absmax without outliers");
    let columns: Vec<usize> = list(&case["outlier_cols"]).iter().map(usize_of).collect();
    assert_eq!(with.outlier_columns, columns);
    let without = llm_int8::quantize_rows(&matrix, f32::INFINITY);
    assert_eq!(codes(&without), i32s(&case["q_no_threshold"]));
    assert_bits(&without.absmax, &f32s(&case["row_absmax_no_threshold"]), "absmax");
}

#[test]
fn mx_blocks_have_microxcaling_s_scales_and_codes() {
    let file = golden("mx_nvfp4");
    let x = f32s(&file["x"]);
    let matrix = Matrix::new(&x, x.len() / usize_of(&file["shape"][0])).unwrap();
    for case in list(&file["encoded"]) {
        let name = case["format"].as_str().unwrap();
        let format = Format::named(name).unwrap();
        let encoded = format.quantize(&matrix).unwrap();
        let parts = format.pack(&encoded, matrix.shape());
        let scales: Vec<i32> = parts[1].iter().map(|scale| i32::from(*scale)).collect();
        assert_eq!(scales, i32s(&case["scales_e8m0"]), "{name}");
        assert_eq!(encoded.codes, i32s(&case["codes"]), "{name}");
        if let Some(y) = case.get("y") {
            assert_bits(&format.dequantize(&encoded, matrix.shape()), &f32s(y), name);
        }
    }
}

#[test]
fn nvfp4_is_modelopt_s() {
    let file = golden("mx_nvfp4");
    let x = f32s(&file["x"]);
    let matrix = Matrix::new(&x, x.len() / usize_of(&file["shape"][0])).unwrap();
    let format = Format::named("nvfp4").unwrap();
    let case = &file["nvfp4"];
    let encoded = format.quantize(&matrix).unwrap();
    assert_eq!(encoded.param("global_scale")[0].to_bits(), f32_of(&case["global_scale"]).to_bits());
    let scales: Vec<i32> = encoded.param("scale").iter().map(|scale| *scale as i32).collect();
    assert_eq!(scales, i32s(&case["block_scale_codes"]));
    assert_eq!(encoded.codes, i32s(&case["codes"]));
    assert_eq!(format.pack(&encoded, matrix.shape())[0], hex(&case["packed"]));
    let back = format.dequantize(&encoded, matrix.shape());
    for (got, wanted) in back.iter().zip(f32s(&case["dequant"])) {
        // (code * scale) * global or code * (scale * global): one rounding apart.
        let is_near = got.to_bits().abs_diff(wanted.to_bits()) <= 1;
        assert!(*got == wanted || is_near, "{got} and {wanted}");
    }
}

/// `K x N`, row by row, to `N` rows of `K`.
fn transposed(w: &[f32], k: usize, n: usize) -> Vec<f32> {
    (0..n).flat_map(|j| (0..k).map(move |i| w[i * n + j])).collect()
}

#[test]
fn matmul_nbits_has_onnxruntime_s_bytes() {
    let file = golden("ort_matmul_nbits");
    let cases = list(&file["qoperator"]);
    assert_eq!(cases.len(), 18);
    for case in cases {
        let (k, n) = (usize_of(&case["K"]), usize_of(&case["N"]));
        let is_symmetric = case["symmetric"].as_bool().unwrap();
        let suffix = if is_symmetric { "" } else { "_asymmetric" };
        let name = format!("matmul_nbits{}{suffix}:{}", case["bits"], case["block_size"]);
        let format = Format::named(&name).unwrap();
        let w = transposed(&f32s(&case["w_KxN"]), k, n);
        let matrix = Matrix::new(&w, k).unwrap();
        let encoded = format.quantize(&matrix).unwrap();
        let parts = format.pack(&encoded, matrix.shape());
        assert_bits(encoded.param("scale"), &f32s(&case["scales_NxKb"]), &name);
        assert_eq!(parts[0], hex(&case["packed"]), "{name}, {k} x {n}");
        if !is_symmetric {
            assert_eq!(parts[2], hex(&case["zero_points"]), "{name}, {k} x {n}");
        }
    }
}

#[test]
fn matmul_bnb4_has_onnxruntime_s_bytes() {
    let file = golden("ort_matmul_nbits");
    for case in list(&file["matmul_bnb4"]) {
        let (k, n) = (usize_of(&case["K"]), usize_of(&case["N"]));
        let ty = case["quant_type"].as_str().unwrap();
        let format = Format::named(&format!("matmul_bnb4_{ty}:{}", case["block_size"])).unwrap();
        // The binding packs what it is given end to end; the caller transposes. The vectors were made without.
        let w = f32s(&case["w_KxN"]);
        assert_eq!(w.len(), k * n);
        let matrix = Matrix::new(&w, n).unwrap();
        let encoded = format.quantize(&matrix).unwrap();
        assert_bits(encoded.param("absmax"), &f32s(&case["absmax"]), ty);
        assert_eq!(format.pack(&encoded, matrix.shape())[0], hex(&case["packed"]), "{ty}");
    }
}

#[test]
fn blocks_are_ggml_s_byte_for_byte() {
    let file = golden("ggml_quants");
    let x: Vec<f32> =
        list(&file["x_bits"]).iter().map(|bits| f32::from_bits(hex_number(bits))).collect();
    let matrix = Matrix::new(&x, usize_of(&file["shape"][1])).unwrap();
    for name in ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"] {
        let format = Format::named(name).unwrap();
        let case = &file["results"][name];
        let encoded = format.quantize(&matrix).unwrap();
        assert_eq!(format.pack(&encoded, matrix.shape()), [hex(&case["bytes"])], "{name}");
        let wanted: Vec<f32> = (hex(&case["dequant"]).chunks_exact(4))
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        assert_bits(&format.dequantize(&encoded, matrix.shape()), &wanted, name);
    }
    let ragged = Matrix::new(&x[..66], 33).unwrap();
    let error = Format::named("q4_0").unwrap().quantize(&ragged).unwrap_err();
    assert!(error.to_string().contains("whole blocks of 32"), "{error}");
}

#[test]
fn hqq_finds_onnxruntime_s_zero_points_and_codes() {
    let file = golden("hqq");
    for case in list(&file["hqq"]) {
        let w = f32s(&case["w"]);
        let groups: Vec<&[f32]> = w.chunks(usize_of(&case["group"])).collect();
        let options = hqq::Options {
            round_zero: case["round_zero"].as_bool().unwrap(),
            n_iterations: if case["optimize"].as_bool().unwrap() { 20 } else { 0 },
        };
        let fit = hqq::fit(&groups, usize_of(&case["bits"]) as u32, options);
        for (i, zero) in f32s(&case["zero"]).into_iter().enumerate() {
            // torch adds a group's 16 or 32 terms in another order, for each of up to 20 turns.
            assert!(
                (fit.zeros[i] - zero).abs() <= 1e-5 * zero.abs().max(1.0),
                "{} and {zero}",
                fit.zeros[i]
            );
        }
        for (i, scale) in f32s(&case["scale"]).into_iter().enumerate() {
            // torch's quotient and reciprocal are an ULP off now and then.
            let ours = 1.0 / fit.inverse_scales[i];
            assert!(ours.to_bits().abs_diff(scale.to_bits()) <= 2, "{ours} and {scale}");
        }
        let codes = groups.iter().enumerate().flat_map(|(i, x)| x.iter().map(move |x| (i, *x)));
        let codes: Vec<i32> = codes.map(|(i, x)| fit.code(i, x)).collect();
        assert_eq!(codes, i32s(&case["q"]), "{} bits", case["bits"]);
    }
}

#[test]
fn fixed_point_and_powers_of_two_are_ristretto_s() {
    let file = golden("recovery_metrics");
    let file = &file["ristretto"];
    let x = f32s(&file["x"]);
    let max = midtread_num::formats::max_abs(&x);
    assert_eq!(
        i64::from(fixed_point::integer_length(max, Holds::Activations)),
        file["il_act"].as_i64().unwrap()
    );
    assert_eq!(
        i64::from(fixed_point::integer_length(max, Holds::Weights)),
        file["il_param"].as_i64().unwrap()
    );
    for case in list(&file["cases"]) {
        let (n_bits, fl) = (usize_of(&case["bw"]) as u32, case["fl"].as_i64().unwrap() as i32);
        for (x, wanted) in x.iter().zip(f32s(&case["y"])) {
            let back =
                fixed_point::code(*x, n_bits, fl) as f32 * midtread_num::formats::float::exp2(-fl);
            assert_eq!(back, wanted, "{x} with {n_bits} bits, {fl} of them fraction");
        }
    }
    let pow2 = &file["pow2"];
    let (lo, hi) =
        (pow2["min_exp"].as_i64().unwrap() as i32, pow2["max_exp"].as_i64().unwrap() as i32);
    for (x, wanted) in x.iter().zip(f32s(&pow2["y"])) {
        assert_eq!(power_of_two::nearest(*x, lo, hi, Border::Logarithm), wanted, "{x}");
    }
}

#[test]
fn packed_bits_of_sub_byte_tensors_are_onnx_s() {
    let file = golden("onnx_packing");
    let mut n_compared = 0;
    for case in list(&file["cases"]) {
        let width = match case["type"].as_str().unwrap() {
            "int4" | "uint4" => 4,
            "int2" | "uint2" => 2,
            _ => continue,
        };
        assert_eq!(bits::pack(&i32s(&case["values"]), width), hex(&case["raw_data"]), "{case}");
        n_compared += 1;
    }
    assert!(8 <= n_compared, "{n_compared} cases");
}

#[test]
fn an_encoded_tensor_without_the_parameter_says_so() {
    let empty = Encoded::default();
    assert!(std::panic::catch_unwind(|| empty.param("scale").len()).is_err());
}

#[test]
fn the_laws_of_telephony_have_their_published_values() {
    let file = golden("companding");
    for (key, law) in [("mu_law_F", Law::MU), ("a_law_F", Law::A_LAW)] {
        for (x, wanted) in list(&file["continuous_x"]).iter().zip(list(&file[key])) {
            let (x, wanted) = (x.as_f64().unwrap(), wanted.as_f64().unwrap());
            // Two logarithms, each within an ULP or two of 1.
            assert!(
                (law.compress(x) - wanted).abs() <= 1e-15,
                "{key}: {x} became {}",
                law.compress(x)
            );
        }
    }
}

#[test]
fn lloyd_max_finds_the_normal_distribution_s_best_levels() {
    let file = golden("companding");
    // The middles of 20,000 equal shares of the normal distribution, by bisection.
    let n = 20_000;
    let quantile = |share: f64| {
        let (mut lo, mut hi) = (-8.0, 8.0);
        for _ in 0..60 {
            let middle = 0.5 * (lo + hi);
            let below = 0.5 * (1.0 + libm::erf(middle / std::f64::consts::SQRT_2));
            if below < share { lo = middle } else { hi = middle }
        }
        lo
    };
    let x: Vec<f64> = (0..n).map(|i| quantile((f64::from(i) + 0.5) / f64::from(n))).collect();
    for (bits, key) in [(1, "gauss_1bit"), (2, "gauss_2bit"), (3, "gauss_3bit")] {
        let fit = LloydMax::fit(&x, 1 << bits).unwrap();
        for (level, wanted) in fit.levels().iter().zip(f32s(&file["lloyd_max"][key]["centroids"])) {
            // 20,000 points stand for the whole distribution; the reference integrates over a grid.
            assert!((level - f64::from(wanted)).abs() < 5e-3, "{bits} bits: {level} and {wanted}");
        }
    }
}
