//! ggml's blocks against the bytes that its own code gave. `testdata/golden/README.md` says which.

use midtread_num::formats::{Format, Matrix, Shape, ggml};
use serde_json::Value;

fn golden() -> Value {
    let path = format!("{}/../../testdata/golden/ggml_quants.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{path}: {err}"));
    serde_json::from_str(&text).unwrap_or_else(|err| panic!("{path}: {err}"))
}

fn f32s(value: &Value) -> Vec<f32> {
    value
        .as_array()
        .expect("numbers")
        .iter()
        .map(|x| x.as_f64().expect("a number") as f32)
        .collect()
}

/// Little-endian `f32`s in hexadecimal digits.
fn f32s_in_hex(value: &Value) -> Vec<f32> {
    hex(value).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// The tensor that all was made from.
fn x(golden: &Value) -> Vec<f32> {
    let bits = golden["x_bits"].as_array().expect("bit patterns");
    let bits = bits.iter().map(|b| u32::from_str_radix(b.as_str().unwrap(), 16).unwrap());
    bits.map(f32::from_bits).collect()
}

fn hex(value: &Value) -> Vec<u8> {
    let text = value.as_str().expect("hexadecimal digits");
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// Every format, by its name here and in the file.
fn formats() -> Vec<(Format<'static>, String)> {
    let names =
        ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_nl"];
    names.iter().map(|name| (Format::named(name).unwrap(), (*name).to_owned())).collect()
}

#[test]
fn bytes_and_values_are_those_of_ggml_with_and_without_importances() {
    let golden = golden();
    let x = x(&golden);
    let importance = f32s(&golden["imatrix"]);
    let shape = Shape { rows: 2, cols: 256 };
    let matrix = Matrix::new(&x, shape.cols).unwrap();
    let mut n_compared = 0;
    for (format, name) in formats() {
        for prefix in ["", "imatrix_"] {
            let want = &golden["results"][&name];
            let Some(bytes) = want.get(format!("{prefix}bytes")) else {
                assert_eq!((name.as_str(), prefix), ("q8_0", "imatrix_"), "the only one left out");
                continue;
            };
            let bytes = hex(bytes);
            let mut format = format;
            format.settings.importance = (!prefix.is_empty()).then_some(importance.as_slice());
            let encoded = format.quantize(&matrix).unwrap();
            assert_eq!(
                format.pack(&encoded, shape),
                std::slice::from_ref(&bytes),
                "{prefix}{name}"
            );
            assert_eq!(format.unpack(&[&bytes], shape).unwrap(), encoded, "{prefix}{name}");
            let values = format.dequantize(&encoded, shape);
            if prefix.is_empty() {
                assert_eq!(values, f32s_in_hex(&want["dequant"]), "{name}");
            }
            assert_eq!(format.bits_per_weight(shape), bytes.len() as f64 * 8.0 / 512.0, "{name}");
            n_compared += 1;
        }
    }
    assert_eq!(n_compared, 21);
}

#[test]
fn rows_of_bytes_are_the_same_blocks() {
    let golden = golden();
    let x = x(&golden);
    for (format, name) in formats() {
        let ty = ggml::block_type(format.def).expect("a format of ggml");
        let want = &golden["results"][&name];
        let n_bytes = x.len() / ty.block_size * ty.n_bytes;
        let mut bytes = vec![0xAA; n_bytes];
        for (row, bytes) in x.chunks(256).zip(bytes.chunks_mut(n_bytes / 2)) {
            ty.quantize_row(row, None, bytes);
        }
        assert_eq!(bytes, hex(&want["bytes"]), "{name}");
        let mut values = vec![f32::NAN; x.len()];
        ty.dequantize_row(&bytes, &mut values);
        assert_eq!(values, f32s_in_hex(&want["dequant"]), "{name}");
    }
}

#[test]
fn every_byte_pattern_survives_unpacking() {
    let mut state = 3_u64;
    for (format, name) in formats() {
        let ty = ggml::block_type(format.def).expect("a format of ggml");
        for _ in 0..50 {
            let mut bytes: Vec<u8> = Vec::new();
            for _ in 0..ty.n_bytes {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                bytes.push((state >> 56) as u8);
            }
            let block = (ty.unpack)(&bytes);
            if !(block.d.is_finite() && block.m.is_finite()) {
                continue;
            }
            let mut again = vec![0xAA; ty.n_bytes];
            (ty.pack)(&block, &mut again);
            assert_eq!(again, bytes, "{name}");
        }
    }
}

#[test]
fn zeros_one_value_and_short_rows_are_defined() {
    for (format, name) in formats() {
        let block = ggml::block_type(format.def).expect("a format of ggml").block_size;
        let zeros = vec![0.0; block];
        assert_eq!(format.round_trip(&Matrix::row(&zeros)).unwrap(), zeros, "{name}");
        let short = vec![1.0; block - 1];
        let refused = format.quantize(&Matrix::row(&short)).unwrap_err().to_string();
        assert!(refused.contains(&block.to_string()), "{name}: {refused}");
        assert!(format.round_trip(&Matrix::row(&[])).unwrap().is_empty(), "{name}");
        for x in [1.0, -3.5, 100.0] {
            let same = vec![x; block];
            for back in format.round_trip(&Matrix::row(&same)).unwrap() {
                // A block of one value is the end of its range, as exact as the float16 scale (11 bits) or, where
                // codes are asymmetric and the value positive, the integer scales are.
                assert!((back - x).abs() <= 1e-3 * x.abs(), "{name}: {x} became {back}");
            }
        }
    }
}
