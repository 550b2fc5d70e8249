//! What every format promises, whatever it is.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::*;

/// Every format, families at their smallest and largest numbers and in between, and with other blocks where it can.
fn formats() -> Vec<Format<'static>> {
    let mut formats = vec![];
    for def in FORMATS {
        let mut names: Vec<String> = vec![def.name.to_string()];
        for (letter, (lo, hi)) in
            ['N', 'X', 'Y'].into_iter().filter(|c| def.name.contains(*c)).zip(def.numbers)
        {
            names = (names.iter())
                .flat_map(|name| {
                    [*lo, lo.midpoint(*hi), *hi].map(|n| name.replace(letter, &n.to_string()))
                })
                .collect();
        }
        for name in names {
            if let Ok(format) = Format::named(&name) {
                formats.push(format);
                if def.sharing_is_free {
                    formats.push(Format::named(&alloc::format!("{name}:16")).unwrap());
                }
            } else {
                assert!(
                    name.starts_with('e'),
                    "{name}: only a float of more than 16 bits is refused"
                );
            }
        }
    }
    formats
}

/// Values like weights: about normal, one stream a seed.
fn weights(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed * 2 + 1;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| 0.1 * (uniform() + uniform() + uniform() + uniform())).collect()
}

/// `n` values in rows of `cols` that the format takes: whole blocks where it asks for them.
fn rows_for(format: &Format<'_>, x: Vec<f32>, cols: usize) -> (Vec<f32>, usize) {
    match format.quantize(&Matrix::new(&x, cols).unwrap()) {
        Err(FormatError::Blocks { block, .. }) => {
            let x = x.iter().copied().cycle().take(2 * block).collect();
            (x, block)
        }
        _ => (x, cols),
    }
}

fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

#[test]
fn names_are_unique_and_lead_back_to_their_format() {
    for (i, def) in FORMATS.iter().enumerate() {
        assert!(FORMATS[..i].iter().all(|other| other.name != def.name), "{}", def.name);
        assert!(!def.summary.is_empty() && !def.source.is_empty());
    }
    for format in formats() {
        let again = Format::named(&format.name()).unwrap();
        assert_eq!(again.name(), format.name());
        assert_eq!(again.settings, format.settings, "{}", format.name());
    }
    for name in [
        "", "int0", "int17", "int08", "nf4:", "nf4:0", "nf4:row", "mxfp4:16", "e9m1", "e8m8",
        "int4:x",
    ] {
        assert!(Format::named(name).is_err(), "`{name}` is refused");
    }
    assert_eq!(Format::named("INT4:32").unwrap().name(), "int4:32");
}

#[test]
fn bytes_have_the_lengths_of_the_layout_and_come_back_as_the_same_codes() {
    for format in formats() {
        for (n, cols) in
            [(0, 0), (0, 7), (1, 1), (2, 1), (15, 5), (33, 33), (77, 11), (130, 65), (640, 320)]
        {
            let (x, cols) =
                if n == 0 { (vec![], cols) } else { rows_for(&format, weights(n, 3), cols) };
            let matrix = Matrix::new(&x, cols).unwrap();
            let shape = matrix.shape();
            let encoded = format.quantize(&matrix).unwrap();
            assert_eq!(encoded.codes.len(), x.len(), "{format:?}: a code for each element");
            let parts = format.pack(&encoded, shape);
            let lengths: Vec<usize> = parts.iter().map(Vec::len).collect();
            let layout: Vec<usize> = format.layout(shape).iter().map(PartLayout::n_bytes).collect();
            assert_eq!(lengths, layout, "{format:?}, {n} elements in rows of {cols}");
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let unpacked = format.unpack(&parts, shape).unwrap();
            assert_eq!(unpacked, encoded, "{format:?}, {n} elements in rows of {cols}");
            assert_eq!(format.dequantize(&unpacked, shape).len(), x.len());
        }
    }
}

#[test]
fn parts_of_another_length_are_refused() {
    for format in formats() {
        let (x, cols) = rows_for(&format, weights(64, 1), 32);
        let matrix = Matrix::new(&x, cols).unwrap();
        let parts = format.pack(&format.quantize(&matrix).unwrap(), matrix.shape());
        let mut slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        slices[0] = &parts[0][1..];
        let error = format.unpack(&slices, matrix.shape()).unwrap_err();
        assert!(matches!(error, FormatError::Length { .. }), "{format:?}: {error}");
        let error = format.unpack(&slices[1..], matrix.shape()).unwrap_err();
        assert!(matches!(error, FormatError::Parts { .. }), "{format:?}: {error}");
    }
}

#[test]
fn zeros_come_back_as_zeros() {
    for format in formats() {
        let (_, cols) = rows_for(&format, vec![1.0; 66], 33);
        for zero in [0.0, -0.0] {
            let x = vec![zero; 2 * cols];
            let back = format.round_trip(&Matrix::new(&x, cols).unwrap()).unwrap();
            assert!(back.iter().all(|x| *x == 0.0), "{format:?}: {back:?}");
        }
    }
}

#[test]
fn subnormal_and_huge_values_come_back_finite_and_no_farther_off_than_they_are_large() {
    for format in formats() {
        if format.settings.sharing == Sharing::Nothing {
            continue;
        }
        for size in [1e-45_f32, 3e-40, 1.2e-38, 1e-30, 1e30, 1e38, f32::MAX] {
            let x: Vec<f32> = weights(66, 5).iter().map(|x| (x * 5.0) * size).collect();
            let (x, cols) = rows_for(&format, x, 33);
            let back = format.round_trip(&Matrix::new(&x, cols).unwrap()).unwrap();
            let largest = max_abs(&x);
            for (x, back) in x.iter().zip(&back) {
                // float16 scales (ggml's) end at 65504; what is above is cut.
                let is_f16 = format.def.name.starts_with('q') || format.def.name.starts_with("iq");
                assert!(is_f16 || back.is_finite(), "{format:?}: {x} became {back}");
                assert!(
                    is_f16 || back.abs() <= 2.0 * largest.max(1.2e-38),
                    "{format:?}: {x} became {back}"
                );
            }
        }
    }
}

#[test]
fn nan_and_infinity_are_kept_by_floats_spoil_their_mx_block_and_are_refused_by_all_others() {
    for format in formats() {
        let (x, cols) = rows_for(&format, weights(128, 2), 64);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = x.clone();
            x[40] = bad;
            let matrix = Matrix::new(&x, cols).unwrap();
            let name = format.def.name;
            if format.settings.sharing == Sharing::Nothing {
                let back = format.round_trip(&matrix).unwrap();
                match name {
                    "float16" | "bfloat16" => {
                        assert!(
                            back[40] == bad || back[40].is_nan() && bad.is_nan(),
                            "{name}: {}",
                            back[40]
                        );
                    }
                    _ if name.starts_with("fp8") && bad.is_nan() => {
                        assert!(back[40].is_nan(), "{name}")
                    }
                    // No NaN: minus zero, as the onnx reference does.
                    _ if bad.is_nan() => assert_eq!(back[40], 0.0, "{name}"),
                    // Saturated.
                    _ => assert!(
                        back[40].is_finite() && 0.0 < back[40] * bad,
                        "{name}: {}",
                        back[40]
                    ),
                }
                assert!(back[..40].iter().all(|x| x.is_finite()));
            } else if name.starts_with("mx") {
                let back = format.round_trip(&matrix).unwrap();
                for (i, x) in back.iter().enumerate() {
                    assert_eq!(x.is_nan(), (32..64).contains(&i), "{name}: element {i} is {x}");
                }
            } else {
                let error = format.quantize(&matrix).unwrap_err();
                assert!(
                    matches!(error, FormatError::NotFinite { at: 40, .. }),
                    "{format:?}: {error}"
                );
            }
        }
    }
}

#[test]
fn a_constant_tensor_and_one_value_keep_their_sign_and_about_their_size() {
    for format in formats() {
        // Without a scale of their own, the small floats have nothing near 0.37; one bit and two of a real zero point.
        if format.settings.sharing == Sharing::Nothing {
            continue;
        }
        for value in [0.37_f32, -0.37] {
            for n in [1, 40] {
                let (x, cols) = rows_for(&format, vec![value; n], n);
                let back = format.round_trip(&Matrix::new(&x, cols).unwrap()).unwrap();
                for y in back {
                    assert!((y / value - 1.0).abs() <= 0.4, "{format:?}: {value} became {y}");
                }
            }
        }
    }
}

#[test]
fn more_bits_lose_less_and_the_search_never_loses_more() {
    let x = weights(4096, 11);
    let matrix = Matrix::new(&x, 256).unwrap();
    let importance: Vec<f32> = (0..256).map(|i| 0.1 + (i % 7) as f32).collect();
    for format in formats() {
        let nearest = squared_error(&x, &format.round_trip(&matrix).unwrap());
        let power = squared_error(&x, &vec![0.0; x.len()]);
        // Any format keeps more than it loses, from 4 bits on at least 12 dB. The exceptions are named.
        let least_db = match format.def.name {
            // An offset of half the interval, or a coarse grid without a scale.
            "uintN" | "ternary" | "hqqN" | "eXmY" | "pow2_N" | "fixedN" | "fp4_e2m1"
            | "fp6_e3m2" | "fp6_e2m3" => -20.0,
            // Two bits by name.
            "q2_k" => 10.0,
            _ if (1..=3).contains(&format.settings.n) => 0.0,
            _ => 12.0,
        };
        let db = 10.0 * libm::log10(power / nearest.max(1e-300));
        assert!(least_db < db, "{format:?}: {db} dB");
        let mut searched = format;
        searched.settings.search = Search::Mse;
        let best = squared_error(&x, &searched.round_trip(&matrix).unwrap());
        assert!(
            best <= nearest * (1.0 + 1e-12),
            "{format:?}: {best} after the search, {nearest} before"
        );
        searched.settings.importance = Some(&importance);
        searched.quantize(&matrix).unwrap();
        searched.settings.importance = Some(&importance[1..]);
        let is_one_row = format.def.is_flat;
        assert!(
            searched.quantize(&matrix).is_err() || is_one_row,
            "{format:?}: 255 importances, 256 columns"
        );
    }
    for (fewer, more) in [
        ("int2", "int4"),
        ("int4", "int8"),
        ("int8", "int16"),
        ("bfp4", "bfp8"),
        ("nf4", "dynamic8"),
    ] {
        let error =
            |name| squared_error(&x, &Format::named(name).unwrap().round_trip(&matrix).unwrap());
        assert!(error(more) < error(fewer), "{more} loses less than {fewer}");
    }
}

#[test]
fn bits_per_weight_count_the_parameters() {
    let shape = Shape { rows: 1024, cols: 4096 };
    for (name, bits) in [
        ("int8", 8.0 + 32.0 / 4096.0),
        ("int4:32", 5.0),
        ("uint4:32", 4.0 + 40.0 / 32.0),
        ("float16", 16.0),
        ("nf4", 4.5),
        ("nf4_nested", 4.0 + 8.0 / 64.0 + 32.0 / (64.0 * 256.0) + 32.0 / (1024.0 * 4096.0)),
        ("mxfp4", 4.25),
        ("mxfp6_e2m3", 6.25),
        ("nvfp4", 4.5 + 32.0 / (1024.0 * 4096.0)),
        ("bfp8", 8.5),
        ("matmul_nbits4", 5.0),
        ("llm_int8", 8.0 + 32.0 / 4096.0),
    ] {
        assert_eq!(Format::named(name).unwrap().bits_per_weight(shape), bits, "{name}");
    }
    assert_eq!(Format::named("int8").unwrap().bits_per_weight(Shape { rows: 0, cols: 3 }), 0.0);
}
