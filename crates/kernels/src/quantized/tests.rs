use proptest::prelude::*;

use super::*;
use midtread_num::QRange;
use midtread_num::requant::{Multiplier, SumMultipliers};
use midtread_num::softmax::Softmax;

use crate::conv::tests::convs;

/// Bytes of a linear congruential generator.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

fn requant(n: usize, seed: u64, is_signed: bool, zero_point: i32) -> (Requant, Vec<i32>, Vec<f32>) {
    let bytes = noise(2 * n, seed);
    let bias: Vec<i32> = bytes[..n].iter().map(|&b| (i32::from(b) - 128) * 90).collect();
    // Powers of two among them, so that ties happen.
    let mut scales: Vec<f32> = bytes[n..]
        .iter()
        .map(|&b| if b < 64 { 0.0078125 } else { f32::from(b) * 7.1e-5 })
        .collect();
    // Now and then one that brings sums out of the range of `i32`, or even of `f32`.
    if bytes[0] < 16 {
        scales[n / 2] = 3.0e6;
    } else if bytes[0] < 32 {
        scales[n / 2] = -3.0e38;
    } else if bytes[0] < 96 {
        scales[n / 2] = 3.5;
    }
    let codes = if is_signed { [-128, 127] } else { [0, 255] };
    (Requant::new(&bias, &scales, codes, zero_point), bias, scales)
}

/// The definition of a code, and of a number.
fn expected(sum: i32, bias: i32, scale: f32, is_signed: bool, zero_point: i32) -> (u8, f32) {
    let number = (sum + bias) as f32 * scale;
    let [lo, hi] = if is_signed { [-128, 127] } else { [0, 255] };
    let code = number.max((lo - zero_point) as f32).min((hi - zero_point) as f32);
    ((code.round_ties_even() as i32 + zero_point) as u8, number)
}

proptest! {
    #[test]
    fn every_variant_of_a_product_gives_the_codes_of_the_definition(
        (m, k, n) in (1_usize..30, 0_usize..70, 1_usize..70),
        (x_signed, y_signed) in (any::<bool>(), any::<bool>()),
        zero_point in 0_i32..100,
        seed: u64,
    ) {
        let (x, w) = (noise(m * k, seed), noise(k * n, seed ^ 1));
        let x = Bytes { data: &x, is_signed: x_signed };
        let weights = Weights::new(k, n, |p, j| w[p * n + j].cast_signed());
        let (requant, bias, scales) = requant(n, seed ^ 2, y_signed, zero_point);
        let want: Vec<(u8, f32)> = (0..m * n)
            .map(|i| {
                let (row, j) = (i / n, i % n);
                let sum = (0..k)
                    .map(|p| x.value(row * k + p) * i32::from(w[p * n + j].cast_signed()))
                    .sum();
                expected(sum, bias[j], scales[j], y_signed, zero_point)
            })
            .collect();
        let (codes, numbers): (Vec<u8>, Vec<f32>) = want.into_iter().unzip();
        product::tests::each_variant(m, x, &weights, &requant, |name, got, got_numbers| {
            assert_eq!(got, codes, "{name}");
            assert_eq!(got_numbers, numbers, "{name}");
        });
    }

    #[test]
    fn a_row_that_is_added_to_a_product_gives_the_codes_of_the_sum_of_two_tensors(
        (m, k, n) in (1_usize..30, 1_usize..40, 1_usize..70),
        signs: [bool; 3],
        is_swapped: bool,
        (zero_point, factors) in (0_i32..100, [0.01_f32..3.0, 0.01_f32..3.0]),
        offsets in [-99.0_f32..99.0, -99.0_f32..99.0],
        seed: u64,
    ) {
        let (x, w, row) = (noise(m * k, seed), noise(k * n, seed ^ 1), noise(n, seed ^ 3));
        let [made_signed, row_signed, y_signed] = signs;
        let x = Bytes { data: &x, is_signed: false };
        let weights = Weights::new(k, n, |p, j| w[p * n + j].cast_signed());
        let (requant, _, _) = requant(n, seed ^ 2, made_signed, zero_point);
        let [lo, hi] = if y_signed { [-100.0, 127.0] } else { [3.0, 250.0] };
        let [offset, swapped_offset] = offsets;
        let add = Add { factors, offset, swapped_offset, lo, hi };

        let mut made = vec![0xAA; m * n];
        product(m, x, &weights, &requant, &mut Out::Codes(&mut made));
        let mut want = vec![0xAA; m * n];
        let swapped = Add { factors: [factors[1], factors[0]], offset: swapped_offset, ..add };
        for (made, want) in made.chunks_exact(n).zip(want.chunks_exact_mut(n)) {
            let made = Bytes { data: made, is_signed: made_signed };
            let row = Bytes { data: &row, is_signed: row_signed };
            match is_swapped {
                false => pairwise(&Pairwise::Add(add), made, row, want),
                true => pairwise(&Pairwise::Add(swapped), row, made, want),
            }
        }
        let row = Bytes { data: &row, is_signed: row_signed };
        let requant = requant.with_row(&add, row, is_swapped);
        product::tests::each_variant(m, x, &weights, &requant, |name, got, _| {
            assert_eq!(got, want, "{name}");
        });
    }

    #[test]
    fn a_product_of_two_is_that_of_its_codes_less_their_zero_points_wherever_the_matrices_lie(
        ([o, p], m, k, n) in (prop::array::uniform2(1_usize..4), 1_usize..40, 0_usize..70, 1_usize..40),
        (a_signed, b_signed, y_signed) in (any::<bool>(), any::<bool>(), any::<bool>()),
        // Whether a factor or the product has its second count of matrices inside of its rows, the second factor is
        // transposed, or is one for all.
        (a_inside, b_inside, y_inside, turned, is_one) in any::<(bool, bool, bool, bool, bool)>(),
        (zeros, y_zero, is_fixed) in ([0_i32..100, 0_i32..100], 0_i32..100, any::<bool>()),
        seed: u64,
    ) {
        let strides = |rows: usize, columns: usize, inside: bool| {
            let outer = [0, 0, 0, 0, p * rows * columns, if inside { columns } else { rows * columns }];
            Strides { outer, row: if inside { p * columns } else { columns }, column: 1 }
        };
        let (a_lie, y_lie) = (strides(m, k, a_inside), strides(m, n, y_inside));
        let mut b_lie = if turned { strides(n, k, b_inside) } else { strides(k, n, b_inside) };
        if turned {
            (b_lie.row, b_lie.column) = (b_lie.column, b_lie.row);
        }
        if is_one {
            b_lie.outer = [0; MAX_OUTER];
        }
        let of =
            Matrices { outer: [1, 1, 1, 1, o, p], m, k, n, a: a_lie, b: b_lie, y: y_lie };
        let (a, b) = (noise(o * p * m * k, seed), noise(o * p * k * n, seed ^ 1));
        let (a, b) = (Bytes { data: &a, is_signed: a_signed }, Bytes { data: &b, is_signed: b_signed });
        let (codes, scale) = (if y_signed { [-100, 120] } else { [3, 250] }, 0.0009765625_f32);
        let multiplier = Multiplier::from_real(f64::from(scale)).unwrap();
        let factor = if is_fixed { Factor::Fixed(multiplier) } else { Factor::Float(scale) };
        let requant = Requant::uniform(factor, codes, y_zero);
        let (mut want, mut want_numbers) = (vec![0xAA; o * p * m * n], vec![-7.0; o * p * m * n]);
        let at = |of: &Strides, i: usize, row: usize, column: usize| {
            i / p * of.outer[4] + i % p * of.outer[5] + row * of.row + column * of.column
        };
        for i in 0..o * p {
            for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
                let products = (0..k).map(|q| {
                    let (a, b) = (a.value(at(&a_lie, i, row, q)), b.value(at(&b_lie, i, q, column)));
                    (a - zeros[0]) * (b - zeros[1])
                });
                let sum: i32 = products.sum();
                let rule = Rule { factor, zero_point: y_zero, range: QRange::new(-128, 255).unwrap(), codes };
                want[at(&y_lie, i, row, column)] = rule.code(sum) as u8;
                // Numbers have no multipliers.
                want_numbers[at(&y_lie, i, row, column)] = if is_fixed { 0.0 } else { sum as f32 * scale };
            }
        }
        let len = want.len();
        matrices::tests::each_variant(&of, a, b, zeros, &requant, len, |name, got, numbers| {
            assert_eq!(got, want, "{name}");
            assert!(is_fixed || numbers == want_numbers, "{name}");
        });
    }

    #[test]
    fn a_convolution_channels_last_is_the_integer_convolution_requantized(
        conv in convs(),
        // Some with more channels than any register has lanes.
        more in prop::sample::select(vec![0_usize, 0, 31]),
        (x_signed, y_signed) in (any::<bool>(), any::<bool>()),
        (x_zero, y_zero) in (0_i32..100, 0_i32..100),
        seed: u64,
    ) {
        let is_depthwise = conv.groups == conv.c_in && conv.groups == conv.c_out;
        let n = conv.c_in + more;
        let conv = if is_depthwise { Conv2d { c_in: n, c_out: n, groups: n, ..conv } } else { conv };
        let [x_len, w_len, y_len] = conv.lens();
        let (x, w) = (noise(x_len, seed), noise(w_len, seed ^ 1));
        let (c_in, c_out) = (conv.c_in / conv.groups, conv.c_out / conv.groups);
        let n_taps = conv.kernel[0] * conv.kernel[1];
        let weight = |channel: usize, c: usize, t: usize| {
            w[(channel * c_in + c) * n_taps + t].cast_signed()
        };
        let (_, bias, scales) = requant(conv.c_out, seed ^ 2, y_signed, y_zero);

        // The definition, channels first.
        let codes: Vec<u8> = to_channels_first(&x, conv.n, conv.c_in);
        let mut sums = vec![0; y_len];
        let signed: Vec<i8> = w.iter().map(|w| w.cast_signed()).collect();
        let as_i8: Vec<i8> = codes.iter().map(|x| x.cast_signed()).collect();
        let first = if x_signed { crate::int8::Codes::I8(&as_i8) } else { crate::int8::Codes::U8(&codes) };
        crate::int8::conv_integer(&conv, first, x_zero, crate::int8::Codes::I8(&signed), &[0], &mut sums);
        let pixels = y_len / (conv.n * conv.c_out).max(1);
        let mut want = vec![0; y_len];
        for (i, &sum) in sums.iter().enumerate() {
            let (image, c, p) = (i / (conv.c_out * pixels), i / pixels % conv.c_out, i % pixels);
            let code = expected(sum, bias[c], scales[c], y_signed, y_zero).0;
            want[(image * pixels + p) * conv.c_out + c] = code;
        }

        // The bias of codes: what the zero point adds is taken off.
        let folded: Vec<i32> = (0..conv.c_out)
            .map(|channel| {
                let sum: i32 =
                    (0..c_in * n_taps).map(|i| i32::from(weight(channel, i / n_taps, i % n_taps))).sum();
                bias[channel] - x_zero * sum
            })
            .collect();
        let range = if y_signed { [-128, 127] } else { [0, 255] };
        let x = Bytes { data: &x, is_signed: x_signed };
        let groups: Vec<(Weights, Requant)> = (0..conv.groups)
            .map(|g| {
                let at = |p: usize, j: usize| weight(g * c_out + j, p % c_in, p / c_in);
                let part = g * c_out..(g + 1) * c_out;
                let requant = Requant::new(&folded[part.clone()], &scales[part], range, y_zero);
                let weights = Weights::of_windows(conv.kernel, conv.dilations[1], c_in, c_out, at);
                (weights, requant)
            })
            .collect();
        let (weights, requants): (Vec<_>, Vec<_>) = groups.into_iter().unzip();
        let mut y = vec![0xAA; y_len];
        super::conv(&conv, x, x_zero, &weights, &requants, &mut Out::Codes(&mut y));
        prop_assert_eq!(&y, &want);
        product::tests::each_variant_of_conv(&conv, x, x_zero, &weights, &requants, |name, got| {
            assert_eq!(got, want, "{name}");
        });

        if is_depthwise {
            let weights = DepthwiseWeights::new(
                conv.kernel, conv.strides, conv.dilations, conv.c_in, |t, c| weight(c, 0, t),
            );
            let requant = Requant::new(&folded, &scales, range, y_zero);
            depthwise::tests::each_variant(&conv, x, x_zero, &weights, &requant, |name, got| {
                assert_eq!(got, want, "{name}");
            });
        }
    }

    #[test]
    fn every_variant_of_a_sum_gives_the_codes_of_the_definition(
        n in 0_usize..100,
        (a_signed, b_signed) in (any::<bool>(), any::<bool>()),
        factors in [0.001_f32..3.0, 0.001_f32..3.0],
        offset in -200.0_f32..200.0,
        seed: u64,
    ) {
        let (a, b) = (noise(n, seed), noise(n, seed ^ 1));
        let (a, b) = (Bytes { data: &a, is_signed: a_signed }, Bytes { data: &b, is_signed: b_signed });
        let sum = Pairwise::Add(Add { factors, offset, swapped_offset: 0.0, lo: 0.0, hi: 255.0 });
        let want: Vec<u8> = (0..n)
            .map(|i| {
                let b = (b.value(i) as f32).mul_add(factors[1], offset);
                let x = (a.value(i) as f32).mul_add(factors[0], b);
                x.clamp(0.0, 255.0).round_ties_even() as u8
            })
            .collect();
        pairwise::tests::each_variant(&sum, a, b, |name, got| assert_eq!(got, want, "{name}"));
        let mut y = vec![0xAA; n];
        pairwise(&sum, a, b, &mut y);
        prop_assert_eq!(y, want);
    }

    #[test]
    fn every_variant_of_a_softmax_gives_the_codes_of_the_definition(
        (rows, len) in (0_usize..30, 1_usize..70),
        is_signed: bool,
        (x_scale, y_scale) in (0.0001_f32..0.3, 0.001_f32..0.02),
        zero_point in -20_i32..20,
        seed: u64,
    ) {
        let x = noise(rows * len, seed);
        let of = Softmax::new(len, x_scale, y_scale, zero_point);
        let mut want = Vec::new();
        for row in x.chunks_exact(len) {
            let bytes: Vec<usize> = row
                .iter()
                .map(|&x| if is_signed { (i32::from(x as i8) + 128) as usize } else { usize::from(x) })
                .collect();
            let top = bytes.iter().max().unwrap();
            let e = |byte: usize| of.exponentials[255 - top + byte];
            let sum = bytes.iter().fold(0.0_f32, |sum, &byte| sum + e(byte));
            want.extend(bytes.iter().map(|&byte| of.code(e(byte), sum) as u8));
        }
        let x = Bytes { data: &x, is_signed };
        softmax::tests::each_variant(&of, len, x, |name, got| assert_eq!(got, want, "{name}"));
        let mut y = vec![0xAA; want.len()];
        super::softmax(&of, len, x, &mut y);
        prop_assert_eq!(y, want);
    }

    #[test]
    fn a_mean_over_pixels_is_the_sum_requantized(
        (images, pixels, channels) in (1_usize..3, 1_usize..60, 1_usize..40),
        is_signed: bool,
        seed: u64,
    ) {
        let x = noise(images * pixels * channels, seed);
        let x = Bytes { data: &x, is_signed };
        let range = if is_signed { QRange::I8 } else { QRange::U8 };
        let rule = Rule { factor: Factor::Float(0.37 / pixels as f32), zero_point: 3, range, codes: [10, 100] };
        let mut y = vec![0; images * channels];
        global_average_pool([images, pixels, channels], x, 7, &rule, &mut y);
        for (i, &y) in y.iter().enumerate() {
            let (image, c) = (i / channels, i % channels);
            let sum: i32 =
                (0..pixels).map(|p| x.value((image * pixels + p) * channels + c) - 7).sum();
            let code = (sum as f32 * (0.37 / pixels as f32)).round_ties_even() as i32 + 3;
            prop_assert_eq!(y, code.clamp(10, 100) as u8);
        }
    }

    #[test]
    fn products_and_fixed_point_sums_of_codes_are_those_of_the_definition(
        dims in prop::collection::vec(1_usize..9, 1..5),
        ones in [0_u8..16, 0_u8..16],
        (a_signed, b_signed, is_fixed, is_sum) in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        seed: u64,
    ) {
        // Sizes of 1 of either input stand for any size.
        let [a_dims, b_dims] = ones.map(|ones| {
            dims.iter().enumerate().map(|(d, &n)| if ones >> d & 1 == 1 { 1 } else { n }).collect::<Vec<_>>()
        });
        let y_dims: Vec<usize> = a_dims.iter().zip(&b_dims).map(|(&a, &b)| a.max(b)).collect();
        let len = |dims: &[usize]| dims.iter().product::<usize>();
        let (a, b) = (noise(len(&a_dims), seed), noise(len(&b_dims), seed ^ 1));
        let (a, b) = (Bytes { data: &a, is_signed: a_signed }, Bytes { data: &b, is_signed: b_signed });
        let real = 0.0123_f32;
        let factor = match is_fixed {
            true => Factor::Fixed(Multiplier::from_real(f64::from(real)).unwrap()),
            false => Factor::Float(real),
        };
        let rule = Rule { factor, zero_point: 5, range: QRange::U8, codes: [4, 130] };
        let sum = SumMultipliers::from_reals([0.31, 0.77]).unwrap();
        let op = match is_sum {
            true => Pairwise::AddFixed(sum, [7, 9], rule),
            false => Pairwise::Mul(Mul { zero_points: [7, 9], rule }),
        };
        let at = |i: usize, dims: &[usize]| {
            let (mut i, mut at, mut step) = (i, 0, 1);
            for d in (0..dims.len()).rev() {
                at += if dims[d] == 1 { 0 } else { i % y_dims[d] * step };
                i /= y_dims[d];
                step *= dims[d];
            }
            at
        };
        let want: Vec<u8> = (0..len(&y_dims))
            .map(|i| {
                let (a, b) = (a.value(at(i, &a_dims)) - 7, b.value(at(i, &b_dims)) - 9);
                match is_sum {
                    true => sum.requantize([a, b], 5, QRange::U8).clamp(4, 130) as u8,
                    false => rule.code(a * b) as u8,
                }
            })
            .collect();
        let mut y = vec![0xAA; want.len()];
        pairwise_broadcast(&op, (a, &a_dims), (b, &b_dims), &y_dims, &mut y);
        prop_assert_eq!(&y, &want);
        if a_dims == b_dims {
            pairwise::tests::each_variant(&op, a, b, |name, got| assert_eq!(got, want, "{name}"));
        }
    }

    #[test]
    fn a_product_without_floating_point_gives_the_codes_of_the_definition(
        (m, k, n) in (1_usize..10, 1_usize..40, 1_usize..40),
        seed: u64,
    ) {
        let (x, w) = (noise(m * k, seed), noise(k * n, seed ^ 1));
        let x = Bytes { data: &x, is_signed: false };
        let weights = Weights::new(k, n, |p, j| w[p * n + j].cast_signed());
        let (_, bias, scales) = requant(n, seed ^ 2, false, 0);
        let multipliers: Vec<Multiplier> =
            scales.iter().map(|&s| Multiplier::from_real(f64::from(s.abs().min(1e6))).unwrap()).collect();
        let requant = Requant::fixed_point(&bias, &multipliers, [2, 250], 11);
        let mut y = vec![0xAA; m * n];
        product(m, x, &weights, &requant, &mut Out::Codes(&mut y));
        for (i, &y) in y.iter().enumerate() {
            let (row, j) = (i / n, i % n);
            let sum: i32 =
                (0..k).map(|p| x.value(row * k + p) * i32::from(w[p * n + j].cast_signed())).sum();
            let code = multipliers[j].requantize(sum + bias[j], 11, QRange::U8).clamp(2, 250);
            prop_assert_eq!(i32::from(y), code);
        }
    }

    #[test]
    fn a_mean_over_windows_is_the_mean_of_the_pixels_inside(
        conv in convs(),
        (is_fixed, include_pads) in (any::<bool>(), any::<bool>()),
        seed: u64,
    ) {
        let pads = std::array::from_fn(|d| conv.pads[d].min(conv.kernel[d % 2] - 1));
        let (groups, c_out) = (conv.c_in, conv.c_in);
        let conv = Conv2d { groups, c_out, pads, dilations: [1, 1], ..conv };
        let ([x_len, _, y_len], c) = (conv.lens(), conv.c_in);
        let x = noise(x_len, seed);
        let x = Bytes { data: &x, is_signed: false };
        let rules: Vec<Rule> = (1..=conv.kernel[0] * conv.kernel[1])
            .map(|n| {
                let factor = Factor::Fixed(Multiplier::from_real(0.4 / n as f64).unwrap());
                Rule { factor, zero_point: 9, range: QRange::U8, codes: [0, 255] }
            })
            .collect();
        let mean = match is_fixed {
            true => Mean::Fixed(&rules),
            false => Mean::Float { scales: [0.02, 0.05], zero_point: 9, range: QRange::U8 },
        };
        let mut y = vec![0xAA; y_len];
        average_pool(&conv, conv.output(), include_pads, x, 100, &mean, &mut y);
        let [out_h, out_w] = conv.output();
        for (i, &y) in y.iter().enumerate() {
            let (image, row, col, channel) =
                (i / (out_h * out_w * c), i / (out_w * c) % out_h, i / c % out_w, i % c);
            let seen: Vec<i32> = (0..conv.kernel[0] * conv.kernel[1]).filter_map(|t| {
                let r = (row * conv.strides[0] + t / conv.kernel[1]).checked_sub(conv.pads[0])?;
                let s = (col * conv.strides[1] + t % conv.kernel[1]).checked_sub(conv.pads[1])?;
                let is_inside = r < conv.input[0] && s < conv.input[1];
                let at = ((image * conv.input[0] + r) * conv.input[1] + s) * c + channel;
                is_inside.then(|| x.value(at) - 100)
            }).collect();
            // Without `ceil_mode` no window reaches past the padding.
            let n = if include_pads { conv.kernel[0] * conv.kernel[1] } else { seen.len() };
            let want = match is_fixed {
                true => rules[n - 1].code(seen.iter().sum()),
                false => {
                    let sum: f32 = seen.iter().map(|&x| x as f32 * 0.02).sum();
                    (sum / n as f32 / 0.05 + 9.0).round_ties_even().clamp(0.0, 255.0) as i32
                }
            };
            prop_assert_eq!(i32::from(y), want);
        }
    }

    #[test]
    fn a_maximum_pool_takes_the_greatest_code_and_no_padding(
        conv in convs(),
        is_signed: bool,
        seed: u64,
    ) {
        // Every window sees a pixel, as ONNX asks of pads.
        let pads = std::array::from_fn(|d| conv.pads[d].min(conv.kernel[d % 2] - 1));
        let (groups, c_out) = (conv.c_in, conv.c_in);
        let conv = Conv2d { groups, c_out, pads, dilations: [1, 1], ..conv };
        let ([x_len, _, y_len], c) = (conv.lens(), conv.c_in);
        let x = noise(x_len, seed);
        let x = Bytes { data: &x, is_signed };
        let mut y = vec![0xAA; y_len];
        max_pool(&conv, conv.output(), x, &mut y);
        let [out_h, out_w] = conv.output();
        for (i, &y) in y.iter().enumerate() {
            let (image, row, col, channel) =
                (i / (out_h * out_w * c), i / (out_w * c) % out_h, i / c % out_w, i % c);
            let seen = (0..conv.kernel[0] * conv.kernel[1]).filter_map(|t| {
                let r = (row * conv.strides[0] + t / conv.kernel[1]).checked_sub(conv.pads[0])?;
                let s = (col * conv.strides[1] + t % conv.kernel[1]).checked_sub(conv.pads[1])?;
                let is_inside = r < conv.input[0] && s < conv.input[1];
                let at = ((image * conv.input[0] + r) * conv.input[1] + s) * c + channel;
                is_inside.then(|| x.value(at))
            });
            prop_assert_eq!(Some(code(y, is_signed)), seen.max());
        }
    }
}

/// (image, pixel, channel) to (image, channel, pixel).
fn to_channels_first(x: &[u8], images: usize, channels: usize) -> Vec<u8> {
    let pixels = x.len() / (images * channels).max(1);
    let mut out = vec![0; x.len()];
    for (i, &x) in x.iter().enumerate() {
        let (image, p, c) = (i / (pixels * channels), i / channels % pixels, i % channels);
        out[(image * channels + c) * pixels + p] = x;
    }
    out
}

#[test]
fn products_of_two_are_cut_into_tasks_that_change_no_code() {
    let (heads, m, k, n) = (3, 301, 64, 290);
    let (a, b) = (noise(heads * m * k, 5), noise(heads * k * n, 6));
    let (a, b) = (Bytes { data: &a, is_signed: false }, Bytes { data: &b, is_signed: false });
    let lie = |row: usize| Strides { outer: [0, 0, 0, 0, 0, row], row: heads * row, column: 1 };
    let outer = [1, 1, 1, 1, 1, heads];
    let of = Matrices { outer, m, k, n, a: lie(k), b: lie(n), y: lie(n) };
    let requant = Requant::uniform(Factor::Float(0.0001), [0, 255], 100);
    let on_threads = |n_threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let mut y = vec![0xAA; heads * m * n];
        pool.install(|| {
            product_of_two(&of, a, b, [7, 200], &requant, &mut Out::Codes(&mut y));
        });
        y
    };
    let one = on_threads(1);
    for (head, row, column) in [(0, 0, 0), (1, 299, 3), (2, 300, 289)] {
        let product = |p: usize| {
            let a = a.value(row * heads * k + head * k + p) - 7;
            a * (b.value(p * heads * n + head * n + column) - 200)
        };
        let sum: i32 = (0..k).map(product).sum();
        let code = (sum as f32 * 0.0001).round_ties_even() as i32 + 100;
        assert!((1..255).contains(&code), "not at the end of the range: {code}");
        assert_eq!(i32::from(one[row * heads * n + head * n + column]), code.clamp(0, 255));
    }
    for n_threads in [2, 5] {
        assert_eq!(on_threads(n_threads), one, "{n_threads} threads");
    }
}

#[test]
fn large_products_are_cut_into_blocks_and_tasks_that_change_no_code() {
    let (m, k, n) = (401, 333, 75);
    let (x, w) = (noise(m * k, 5), noise(k * n, 6));
    let weights = Weights::new(k, n, |p, j| w[p * n + j].cast_signed());
    let (requant, bias, scales) = requant(n, 7, false, 11);
    let x = Bytes { data: &x, is_signed: false };
    for n_threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let mut y = vec![0xAA; m * n];
        pool.install(|| product(m, x, &weights, &requant, &mut Out::Codes(&mut y)));
        for (i, &y) in y.iter().enumerate() {
            let (row, j) = (i / n, i % n);
            let sum =
                (0..k).map(|p| x.value(row * k + p) * i32::from(w[p * n + j].cast_signed())).sum();
            assert_eq!(y, expected(sum, bias[j], scales[j], false, 11).0, "{n_threads} threads");
        }
    }
}
