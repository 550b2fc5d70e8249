use super::*;

/// Values at which float-to-integer conversions differ between instruction sets.
#[rustfmt::skip]
const HARD: &[f32] = &[
    0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 127.5, -128.5, 254.5, 255.5, 32767.5, 65534.5, 3e9, -3e9,
    1e20, -1e20, 1e-45, -1e-45, f32::MIN_POSITIVE, 2147483648.0, -2147483904.0, 8388609.0, f32::MAX,
    f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN,
];

/// xorshift64, so that a failure can be made again.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }

    /// Positive, from 2^-20 to 2^12.
    fn scale(&mut self) -> f32 {
        f32::from_bits((107 << 23) + self.bits() % (32 << 23))
    }
}

/// Calls `check` with sources of every length, hard values, ties and random bits, and parameters
/// for `ranges`.
fn for_cases(ranges: &[QRange], mut check: impl FnMut(&[f32], QParams, QRange)) {
    let mut random = Random(1);
    for &range in ranges {
        let middle = (range.qmin() + range.qmax()) / 2;
        for zero_point in [range.qmin(), 0, middle, range.qmax()] {
            for scale in [1.0, 1e-4, 0.1, 3.0, f32::MIN_POSITIVE, f32::MAX, random.scale()] {
                let params = QParams::new(scale, zero_point, range).unwrap();
                for len in 0..=130 {
                    let skip = random.bits() as usize % HARD.len();
                    let mut src: Vec<f32> =
                        HARD.iter().cycle().skip(skip).take(len).copied().collect();
                    check(&src, params, range);
                    src.iter_mut().for_each(|x| *x = f32::from_bits(random.bits()));
                    check(&src, params, range);
                }
            }
        }
        for _ in 0..200 {
            let (scale, zero_point) = (random.scale(), middle);
            let params = QParams::new(scale, zero_point, range).unwrap();
            // Every tie of 8 bits, and of 16 bits some: 257 steps are more than any narrower range.
            let step = (range.n_steps() / 257).max(1);
            let ties: Vec<f32> = (range.qmin() - 10..range.qmax() + 10)
                .step_by(step as usize)
                .flat_map(|q| {
                    let tie = ((q - zero_point) as f32 + 0.5) * scale;
                    [tie.next_down(), tie, tie.next_up()]
                })
                .collect();
            check(&ties, params, range);
        }
    }
}

macro_rules! quantize_test {
    ($test:ident, $list:ident, $dequantize_list:ident, $ty:ty, $ranges:expr) => {
        #[test]
        fn $test() {
            let mut n_saturated = 0;
            for_cases($ranges, |src, params, range| {
                let want: Vec<$ty> =
                    src.iter().map(|&x| params.quantize(x, range) as $ty).collect();
                n_saturated += want.iter().filter(|q| i32::from(**q) == range.qmax()).count();
                for variant in $list {
                    let Some(run) = variant.get() else { continue };
                    let mut got = vec![77; src.len()];
                    run(src, &mut got, params, range);
                    assert_eq!(got, want, "{} of {src:?}, {params:?}, {range}", variant.name);
                }
                let back: Vec<u32> =
                    want.iter().map(|q| params.dequantize(i32::from(*q)).to_bits()).collect();
                for variant in $dequantize_list {
                    let Some(run) = variant.get() else { continue };
                    let mut got = vec![7.7; src.len()];
                    run(&want, &mut got, params);
                    let got: Vec<u32> = got.into_iter().map(f32::to_bits).collect();
                    assert_eq!(got, back, "{} of {want:?}, {params:?}", variant.name);
                }
            });
            assert!(10_000 < n_saturated, "the cases saturate");
        }
    };
}

quantize_test!(
    u8_variants_equal_the_definition_at_every_length_tie_and_hard_value,
    QUANTIZE_U8,
    DEQUANTIZE_U8,
    u8,
    &[QRange::U8, QRange::U8_REDUCED, QRange::U4]
);
quantize_test!(
    i8_variants_equal_the_definition_at_every_length_tie_and_hard_value,
    QUANTIZE_I8,
    DEQUANTIZE_I8,
    i8,
    &[QRange::I8, QRange::I8_NARROW, QRange::I8_REDUCED, QRange::I4, QRange::I2]
);
quantize_test!(
    u16_variants_equal_the_definition_at_every_length_tie_and_hard_value,
    QUANTIZE_U16,
    DEQUANTIZE_U16,
    u16,
    &[QRange::U16]
);
quantize_test!(
    i16_variants_equal_the_definition_at_every_length_tie_and_hard_value,
    QUANTIZE_I16,
    DEQUANTIZE_I16,
    i16,
    &[QRange::I16, QRange::I16_NARROW]
);

#[test]
fn fake_quantize_variants_equal_the_definition_to_the_bit() {
    let mut n_zeros = 0;
    for_cases(
        &[QRange::U8, QRange::I8_NARROW, QRange::I4, QRange::U16, QRange::I16],
        |src, params, range| {
            let want: Vec<u32> =
                src.iter().map(|&x| params.fake_quantize(x, range).to_bits()).collect();
            assert!(!want.contains(&(-0.0_f32).to_bits()));
            n_zeros += want.iter().filter(|bits| **bits == 0).count();
            for variant in FAKE_QUANTIZE {
                let Some(run) = variant.get() else { continue };
                let mut got = vec![7.7; src.len()];
                run(src, &mut got, params, range);
                let got: Vec<u32> = got.into_iter().map(f32::to_bits).collect();
                assert_eq!(got, want, "{} of {src:?}, {params:?}, {range}", variant.name);
            }
            let mut in_place = src.to_vec();
            fake_quantize_in_place(&mut in_place, params, range);
            assert!(in_place.iter().map(|x| x.to_bits()).eq(want));
        },
    );
    assert!(10_000 < n_zeros, "among them -0.0, whose sign the integers drop");
}

#[test]
fn fake_quantize_in_place_goes_on_after_its_first_block() {
    let params = QParams::new(0.5, 3, QRange::U8).unwrap();
    for len in [1023, 1024, 1025, 3000] {
        let mut values: Vec<f32> = (0..len).map(|i| i as f32 * 0.03).collect();
        let want: Vec<f32> = values.iter().map(|x| params.fake_quantize(*x, QRange::U8)).collect();
        fake_quantize_in_place(&mut values, params, QRange::U8);
        assert_eq!(values, want);
    }
}

macro_rules! requantize_test {
    ($test:ident, $list:ident, $channels_list:ident, $channels:ident, $ty:ty, $ranges:expr) => {
        #[test]
        fn $test() {
            let mut random = Random(3);
            for &range in $ranges {
                for zero_point in [range.qmin(), 0, range.qmax()] {
                    for len in 0..=130 {
                        // Small sums with ties at the factor 1/2, large ones that f32 rounds, and the ends.
                        let acc: Vec<i32> = (0..len)
                            .map(|i| match i % 4 {
                                0 => random.bits() as i32 % 600,
                                1 => random.bits() as i32,
                                2 => random.bits() as i32 >> 6,
                                _ => [i32::MIN, i32::MAX, 16_777_217, -16_777_219][i / 4 % 4],
                            })
                            .collect();
                        let multipliers: Vec<f32> = (0..len)
                            .map(|i| match i % 5 {
                                0 => 0.5,
                                1 => random.scale(),
                                2 => random.scale() * 1e-6,
                                3 => [f32::NAN, f32::INFINITY, f32::MIN_POSITIVE, 1e-45][i / 5 % 4],
                                _ => 1.0 / 256.0,
                            })
                            .collect();
                        for multiplier in multipliers.iter().copied().take(5) {
                            let want: Vec<$ty> = acc
                                .iter()
                                .map(|acc| requantize(*acc, multiplier, zero_point, range) as $ty)
                                .collect();
                            for variant in $list {
                                let Some(run) = variant.get() else { continue };
                                let mut got = vec![77; len];
                                run(&acc, &mut got, multiplier, zero_point, range);
                                assert_eq!(got, want, "{} of {acc:?} * {multiplier}", variant.name);
                            }
                        }
                        let want: Vec<$ty> = acc
                            .iter()
                            .zip(&multipliers)
                            .map(|(acc, m)| requantize(*acc, *m, zero_point, range) as $ty)
                            .collect();
                        for variant in $channels_list {
                            let Some(run) = variant.get() else { continue };
                            let mut got = vec![77; len];
                            run(&acc, &mut got, &multipliers, zero_point, range);
                            assert_eq!(got, want, "{} of {acc:?} * {multipliers:?}", variant.name);
                        }
                    }
                }
            }
            // Rows of every width, short and long ones.
            for n_channels in 1..=140 {
                for n_rows in [0, 1, 2, 7, 131] {
                    let range = $ranges[0];
                    let acc: Vec<i32> =
                        (0..n_rows * n_channels).map(|_| random.bits() as i32 >> 12).collect();
                    let multipliers: Vec<f32> =
                        (0..n_channels).map(|_| random.scale() * 1e-4).collect();
                    let want: Vec<$ty> = acc
                        .iter()
                        .enumerate()
                        .map(|(i, acc)| {
                            requantize(*acc, multipliers[i % n_channels], 3, range) as $ty
                        })
                        .collect();
                    let mut got = vec![77; acc.len()];
                    $channels(&acc, &mut got, &multipliers, 3, range);
                    assert_eq!(got, want, "{n_rows} rows of {n_channels}");
                }
            }
        }
    };
}

requantize_test!(
    u8_requantization_equals_the_definition,
    REQUANTIZE_U8,
    REQUANTIZE_CHANNELS_U8,
    requantize_channels_u8,
    u8,
    &[QRange::U8, QRange::U8_REDUCED]
);
requantize_test!(
    i8_requantization_equals_the_definition,
    REQUANTIZE_I8,
    REQUANTIZE_CHANNELS_I8,
    requantize_channels_i8,
    i8,
    &[QRange::I8, QRange::I8_NARROW]
);

#[test]
fn dispatch_runs_and_checks_its_arguments() {
    let params = QParams::new(1.0, 0, QRange::U8).unwrap();
    let mut codes = [0; 3];
    quantize_u8(&[1.0, 2.0, f32::NAN], &mut codes, params, QRange::U8);
    assert_eq!(codes, [1, 2, 0]);
    let mut back = [0.0; 3];
    dequantize_u8(&codes, &mut back, params);
    assert_eq!(back, [1.0, 2.0, 0.0]);
    dequantize_i32(&[16_777_217, -3, i32::MAX], &mut back, 0.5);
    assert_eq!(back, [8_388_608.0, -1.5, 1_073_741_824.0]);
    requantize_u8(&[3, 5, -7], &mut codes, 0.5, 10, QRange::U8);
    assert_eq!(codes, [12, 12, 6]);
    let too_wide = || quantize_i8(&[1.0], &mut [0], params, QRange::U8);
    assert!(std::panic::catch_unwind(too_wide).is_err(), "i8 does not hold 0..=255");
}

#[test]
fn dequantize_i32_variants_round_to_f32_as_the_standard_library() {
    let mut random = Random(5);
    for len in 0..=130 {
        let src: Vec<i32> = (0..len).map(|i| random.bits() as i32 >> (i % 32)).collect();
        let scale = random.scale();
        let want: Vec<f32> = src.iter().map(|q| scale * *q as f32).collect();
        for variant in DEQUANTIZE_I32 {
            let Some(run) = variant.get() else { continue };
            let mut got = vec![7.7; len];
            run(&src, &mut got, scale);
            assert_eq!(got, want, "{} of {src:?} * {scale}", variant.name);
        }
    }
}
