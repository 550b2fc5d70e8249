//! Every variant against `midtread_num::formats`, byte for byte.

use midtread_num::formats::codebook::{FP4_CODE, NF4_CODE};
use midtread_num::formats::float::FloatType;
use midtread_num::formats::float::Overflow;
use midtread_num::formats::{Format, Matrix, ggml};

use super::*;

/// Values like weights, of several sizes, one stream a seed.
fn weights(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed * 2 + 1;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| 0.1 * (uniform() + uniform() + uniform() + uniform())).collect()
}

/// Rows of 512 that are hard: of every size, zeros, one value, ties, equal magnitudes of both signs, few values.
fn cases() -> Vec<Vec<f32>> {
    let mut cases = vec![vec![0.0; 512], vec![-0.0; 512], vec![0.37; 512], vec![-2.5; 512]];
    for (seed, size) in
        [1.0, 1e-45, 1e-41, 3e-39, 1e-37, 1e-20, 7e4, 1e20, 3e38].into_iter().enumerate()
    {
        cases.push(weights(512, seed as u64).iter().map(|x| x * 5.0 * size).collect());
        // Many equal ones, as from bfloat16.
        cases.push(
            weights(512, 77 + seed as u64)
                .iter()
                .map(|x| (x * 40.0).round() * size * 0.1)
                .collect(),
        );
    }
    cases.push((0..512).map(|i| ((i % 31) as f32 - 15.0) * 0.5).collect());
    cases.push(
        (0..512)
            .map(|i| if i % 37 == 5 { if i % 2 == 0 { 3.0 } else { -3.0 } } else { 0.1 })
            .collect(),
    );
    cases.push((0..512).map(|i| if i == 300 { 1.0 } else { 0.0 }).collect());
    cases.push((0..512).map(|i| 1.0 + (i % 3) as f32).collect());
    cases.push((0..512).map(|i| -1.0 - (i % 5) as f32 * 1e-3).collect());
    cases.push((0..512).map(|i| f32::from_bits(0x3F80_0000 + i)).collect());
    // Every half of a byte's steps.
    cases.push((0..512).map(|i| (i as f32 - 254.0) * 0.5).collect());
    cases.iter_mut().flatten().for_each(|x| *x = x.clamp(f32::MIN, f32::MAX));
    cases
}

/// The bytes of the parts of a format.
fn packed(name: &str, x: &[f32], cols: usize, importance: Option<&[f32]>) -> Vec<Vec<u8>> {
    let mut format = Format::named(name).unwrap();
    format.settings.importance = importance;
    let matrix = Matrix::new(x, cols).unwrap();
    format.pack(&format.quantize(&matrix).unwrap(), matrix.shape())
}

#[test]
fn int8_rows_equal_the_definition() {
    for x in cases() {
        for cols in [512, 128, 1] {
            let (mut codes, mut scales) = (vec![0; 512], vec![0.0; 512 / cols]);
            assert!(int8::rows(&x, cols, &mut codes, &mut scales));
            let want = packed("int8", &x, cols, None);
            assert_eq!(codes, want[0].iter().map(|q| *q as i8).collect::<Vec<_>>());
            assert_eq!(f32_bytes(&scales), want[1], "{x:?}");
            assert!(int8::llm_int8_rows(&x, cols, &mut codes, &mut scales));
            let want = packed("llm_int8", &x, cols, None);
            assert_eq!(codes, want[0].iter().map(|q| *q as i8).collect::<Vec<_>>(), "{x:?}");
            assert_eq!(f32_bytes(&scales), want[1]);
        }
    }
}

fn f32_bytes(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn four_bit_variants_equal_the_definition_at_every_border() {
    for (name, code) in [("nf4", NF4_CODE), ("fp4", FP4_CODE)] {
        let table = codebook::FourBit::new(code);
        let borders = midtread_num::formats::codebook::Codebook::new(code.to_vec()).borders;
        let mut cases = cases();
        // Borders and their neighbors, in blocks whose largest magnitude is 1.
        let mut near: Vec<f32> =
            borders.iter().flat_map(|b| [b.next_down(), *b, b.next_up()]).collect();
        near.resize(63, 0.0);
        near.push(1.0);
        cases.push(near);
        for x in cases {
            for (block_size, len) in
                [(64, x.len()), (128, x.len() - 29), (4096, x.len()), (64, 1), (64, 63)]
            {
                let x = &x[..len.min(x.len())];
                let want = packed(&format!("{name}:{block_size}"), x, x.len(), None);
                let (mut codes, mut absmax) =
                    (vec![0; x.len().div_ceil(2)], vec![0.0; x.len().div_ceil(block_size)]);
                assert!(codebook::four_bit(x, block_size, &table, &mut codes, &mut absmax));
                assert_eq!(codes, want[0], "{name}:{block_size} of {x:?}");
                assert_eq!(f32_bytes(&absmax), want[1], "{name}:{block_size} of {x:?}");
            }
            let n = x.len() / 64 * 64;
            let want = packed(name, &x[..n], n, None);
            for variant in codebook::BLOCKS {
                let Some(run) = variant.get() else { continue };
                let (mut codes, mut absmax) = (vec![0; n / 2], vec![0.0; n / 64]);
                assert!(run(&x[..n], 64, &table, &mut codes, &mut absmax));
                assert_eq!(codes, want[0], "{} of {name}", variant.name);
                assert_eq!(f32_bytes(&absmax), want[1], "{} of {name}", variant.name);
            }
        }
    }
}

#[test]
fn ggml_variants_equal_the_definition() {
    for x in cases() {
        for (list, name, n_bytes) in [(simple::Q4_0, "q4_0", 18), (simple::Q8_0, "q8_0", 34)] {
            let want = packed(name, &x, 512, None);
            for variant in list {
                let Some(run) = variant.get() else { continue };
                let mut blocks = vec![0; 16 * n_bytes];
                assert!(run(&x, &mut blocks));
                assert_eq!(blocks, want[0], "{} of {name}: {x:?}", variant.name);
            }
        }
    }
}

#[test]
fn k_types_equal_the_definition_with_and_without_importances() {
    let importance: Vec<f32> = (0..512).map(|i| 0.01 + ((i * 7) % 23) as f32).collect();
    for (i, x) in cases().into_iter().enumerate() {
        for ty in k::KType::ALL {
            for importance in [None, Some(importance.as_slice())] {
                for cols in [512, 256] {
                    let importance = importance.map(|w| &w[..cols]);
                    let want = packed(ty.name(), &x, cols, importance);
                    let mut blocks = vec![0; want[0].len()];
                    assert!(k::rows(*ty, &x, importance, cols, &mut blocks));
                    assert!(
                        blocks == want[0],
                        "{}, case {i}, importances {}",
                        ty.name(),
                        importance.is_some()
                    );
                    // A single superblock.
                    let mut blocks = vec![0; want[0].len() / 2];
                    let own = importance.map(|w| &w[..256]);
                    assert!(k::rows(*ty, &x[..256], own, 256, &mut blocks));
                    assert_eq!(blocks, packed(ty.name(), &x[..256], 256, own)[0]);
                }
            }
        }
    }
}

#[test]
fn k_search_variants_find_the_same() {
    let x: Vec<[f32; 16]> = weights(512, 3).as_chunks().0.to_vec();
    let x16: &[[f32; 16]; 16] = x.first_chunk().unwrap();
    let w: Vec<[f32; 16]> = x.iter().map(|x| x.map(|x| 0.1 + x.abs())).collect();
    let w16: &[[f32; 16]; 16] = w.first_chunk().unwrap();
    let results: Vec<_> = k::FIT_SYMMETRIC_16
        .iter()
        .filter_map(|variant| variant.get())
        .map(|run| {
            let (mut codes, mut scale) = ([[0.0; 16]; 16], [0.0; 16]);
            run(32.0, x16, w16, &mut codes, &mut scale);
            (codes, scale.map(f32::to_bits))
        })
        .collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn what_is_not_finite_is_noticed_wherever_it_is() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 1, 255, 300, 511] {
            let mut x = weights(512, 1);
            x[at] = bad;
            let (mut codes, mut scales) = (vec![0; 512], vec![0.0; 2]);
            assert!(!int8::rows(&x, 256, &mut codes, &mut scales));
            assert!(!int8::llm_int8_rows(&x, 256, &mut codes, &mut scales));
            let table = codebook::FourBit::new(NF4_CODE);
            assert!(!codebook::four_bit(&x, 64, &table, &mut [0; 256], &mut [0.0; 8]));
            assert!(
                !codebook::four_bit(&x[..511.max(at)], 1024, &table, &mut [0; 256], &mut [0.0])
                    || at == 511
            );
            assert!(!simple::q4_0(&x, &mut [0; 16 * 18]));
            assert!(!simple::q8_0(&x, &mut [0; 16 * 34]));
            assert!(!k::rows(k::KType::Q4, &x, None, 512, &mut [0; 288]));
        }
    }
}

#[test]
fn sixteen_bit_floats_equal_the_definition() {
    let mut x: Vec<f32> = vec![];
    for bits in 0..=u16::MAX {
        for value in [
            FloatType::FLOAT16.decode(u32::from(bits)),
            FloatType::BFLOAT16.decode(u32::from(bits)),
        ] {
            let next = f32::from_bits(value.to_bits().wrapping_add(1 << 12));
            let half = f32::from_bits(value.to_bits().wrapping_add(1 << 15));
            x.extend([
                value,
                next,
                next.next_up(),
                next.next_down(),
                half,
                half.next_up(),
                half.next_down(),
            ]);
        }
    }
    x.extend([65519.996, 65520.0, 65504.0, 1e-8, 2.98e-8, 2.9802322e-8, 2.980233e-8]);
    for (to, from, ty) in [
        (floats::TO_F16, floats::FROM_F16, FloatType::FLOAT16),
        (floats::TO_BF16, floats::FROM_BF16, FloatType::BFLOAT16),
    ] {
        let want: Vec<[u8; 2]> =
            x.iter().map(|x| (ty.encode(*x, Overflow::Special) as u16).to_le_bytes()).collect();
        for variant in to {
            let Some(run) = variant.get() else { continue };
            let mut got = vec![[0; 2]; x.len()];
            run(&x, &mut got);
            for ((x, got), want) in x.iter().zip(&got).zip(&want) {
                assert_eq!(got, want, "{} {}: {x:e}, {:#x}", ty.name, variant.name, x.to_bits());
            }
        }
        let codes: Vec<[u8; 2]> = (0..=u16::MAX).map(u16::to_le_bytes).collect();
        for variant in from {
            let Some(run) = variant.get() else { continue };
            let mut got = vec![0.0; codes.len()];
            run(&codes, &mut got);
            for (code, got) in codes.iter().zip(got) {
                let want = ty.decode(u32::from(u16::from_le_bytes(*code)));
                let is_same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(is_same, "{} {}: {code:?} is {got}, not {want}", ty.name, variant.name);
            }
        }
    }
    for x in &x {
        if x.is_finite() {
            let want = FloatType::FLOAT16.encode(*x, Overflow::Saturate) as u16;
            assert_eq!(floats::f16_saturated(*x), want, "{x:e}");
        }
    }
}

#[test]
fn block_types_are_nums() {
    for ty in k::KType::ALL {
        let format = Format::named(ty.name()).unwrap();
        assert_eq!(ggml::block_type(format.def).unwrap().block_size, 256);
    }
}
