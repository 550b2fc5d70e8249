use proptest::prelude::*;

use super::*;
use crate::elementwise::{UnaryOp, unary_in_place};
use crate::gemm::Normalize;
use crate::norm::batch_norm;

/// Numbers of many magnitudes, so that a sum in another order has other bits.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let magnitude = [1.0, 0.001, 30.0][(state >> 8) as usize % 3];
            ((state >> 40) as f32 / 8_388_608.0 - 1.0) * magnitude
        })
        .collect()
}

pub(crate) fn convs() -> impl Strategy<Value = Conv2d> {
    let pair = |r: std::ops::Range<usize>| prop::array::uniform2(r);
    let channels = prop_oneof![
        // Dense and grouped.
        (1_usize..4, 1_usize..4, 1_usize..8).prop_map(|(g, i, o)| (g * i, g * o, g)),
        // Depthwise, with one and several outputs a channel.
        (2_usize..6, 1_usize..3).prop_map(|(g, multiplier)| (g, g * multiplier, g)),
    ];
    (
        (1_usize..3, channels, prop::array::uniform2(1_usize..40)),
        (pair(1..6), pair(1..4), prop::array::uniform4(0_usize..4), pair(1..3)),
    )
        .prop_map(|((n, (c_in, c_out, groups), input), (kernel, strides, pads, dilations))| {
            Conv2d { n, c_in, c_out, input, kernel, strides, pads, dilations, groups }
        })
}

fn definition(conv: &Conv2d, x: &[f32], w: &[f32], epilogue: &Epilogue) -> Vec<f32> {
    let mut y = vec![f32::NAN; conv.lens()[2]];
    let any_rank = ConvNd {
        n: conv.n,
        c_in: conv.c_in,
        c_out: conv.c_out,
        input: &conv.input,
        kernel: &conv.kernel,
        strides: &conv.strides,
        pads: &conv.pads[..2],
        dilations: &conv.dilations,
        groups: conv.groups,
        output: &conv.output(),
    };
    let bias = match epilogue.bias {
        Bias::PerRow(bias) => Some(bias),
        _ => None,
    };
    conv_nd(&any_rank, x, w, bias, &mut y);
    if let Some(Normalize { mean, factor, shift }) = epilogue.normalize {
        // Scales of `factor` over variances of 1: what follows is the normalization itself.
        let (plane, ones) = (conv.output().iter().product(), vec![1.0; conv.c_out]);
        let x = y.clone();
        batch_norm(&x, plane, [factor, shift, mean, &ones], 0.0, &mut y);
    }
    if let Some((lo, hi)) = epilogue.clamp {
        unary_in_place(UnaryOp::Clip { lo, hi }, &mut y);
    }
    y
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The result and what it should be, bit for bit.
fn both(conv: &Conv2d, seed: u64, [bias, normalize, clamp]: [bool; 3]) -> [Vec<u32>; 2] {
    let [x, w, y] = conv.lens();
    let (mut x, w, mut y) = (noise(x, seed), noise(w, seed ^ 1), vec![f32::NAN; y]);
    // Stays NaN through everything that follows.
    if let Some(x) = x.first_mut() {
        *x = f32::NAN;
    }
    let params: [_; 4] = std::array::from_fn(|i| noise(conv.c_out, seed ^ (2 + i as u64)));
    let [b, mean, factor, shift] = &params;
    let epilogue = Epilogue {
        bias: if bias { Bias::PerRow(b) } else { Bias::None },
        normalize: normalize.then_some(Normalize { mean, factor, shift }),
        clamp: clamp.then_some((-2.0, 6.0)),
        ..Epilogue::default()
    };
    conv2d(conv, &x, &w, &epilogue, &mut y);
    [bits(&y), bits(&definition(conv, &x, &w, &epilogue))]
}

proptest! {
    #[test]
    fn every_convolution_has_the_bits_of_the_definition(
        conv in convs(),
        seed: u64,
        parts: [bool; 3],
    ) {
        let [got, want] = both(&conv, seed, parts);
        prop_assert_eq!(got, want);
    }

    #[test]
    fn every_depthwise_variant_has_the_bits_of_the_definition(
        conv in convs().prop_filter("depthwise", |c| c.is_depthwise() && c.lens()[2] != 0),
        seed: u64,
    ) {
        let [x, w, _] = conv.lens();
        let (x, w, bias) = (noise(x, seed), noise(w, seed ^ 1), noise(conv.c_out, seed ^ 2));
        let normalize = Some(Normalize { mean: &bias, factor: &bias, shift: &bias });
        let epilogue =
            Epilogue { bias: Bias::PerRow(&bias), normalize, clamp: Some((0.0, 6.0)), alpha: 1.0 };
        let want = definition(&conv, &x, &w, &epilogue);
        depthwise::tests::check_variants(&conv, &x, &w, &epilogue, &want);
    }
}

const SMALL: Conv2d = Conv2d {
    n: 1,
    c_in: 3,
    c_out: 32,
    input: [33, 35],
    kernel: [3, 3],
    strides: [2, 2],
    pads: [1, 1, 1, 1],
    dilations: [1, 1],
    groups: 1,
};

#[test]
fn the_layers_of_a_mobile_network_have_the_bits_of_the_definition() {
    let layers = [
        SMALL,
        Conv2d { pads: [0, 0, 1, 1], ..SMALL },
        // Several blocks of `k` and of columns.
        Conv2d { c_in: 40, c_out: 9, input: [40, 41], strides: [1, 1], ..SMALL },
        Conv2d {
            c_in: 400,
            c_out: 13,
            input: [7, 7],
            kernel: [1, 1],
            strides: [1, 1],
            pads: [0; 4],
            ..SMALL
        },
        Conv2d { c_in: 7, c_out: 7, groups: 7, input: [56, 56], strides: [1, 1], ..SMALL },
        Conv2d { c_in: 7, c_out: 7, groups: 7, input: [57, 112], ..SMALL },
        Conv2d {
            c_in: 5,
            c_out: 5,
            groups: 5,
            input: [28, 28],
            kernel: [5, 5],
            pads: [2; 4],
            ..SMALL
        },
        Conv2d {
            c_in: 5,
            c_out: 5,
            groups: 5,
            input: [7, 7],
            kernel: [5, 5],
            strides: [1, 1],
            pads: [2; 4],
            ..SMALL
        },
        Conv2d {
            c_in: 5,
            c_out: 5,
            groups: 5,
            input: [14, 14],
            kernel: [3, 3],
            strides: [1, 1],
            ..SMALL
        },
    ];
    for conv in layers {
        let [got, want] = both(&conv, 11, [true; 3]);
        assert!(got == want, "{conv:?}");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let dense = Conv2d { c_in: 16, input: [60, 60], ..SMALL };
    let depthwise = Conv2d { c_in: 64, c_out: 64, groups: 64, input: [60, 60], ..SMALL };
    for conv in [dense, depthwise] {
        let [want, _] = both(&conv, 3, [true, true, false]);
        for n_threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            assert!(
                pool.install(|| both(&conv, 3, [true, true, false]))[0] == want,
                "{n_threads} threads"
            );
        }
    }
}

#[test]
fn a_window_larger_than_the_padded_input_gives_nothing() {
    let conv = Conv2d { input: [2, 9], pads: [0; 4], c_in: 1, c_out: 1, ..SMALL };
    assert_eq!(conv.output(), [0, 4]);
    conv2d(&conv, &[0.0; 18], &[0.0; 9], &Epilogue::default(), &mut []);
}

#[test]
#[should_panic(expected = "elements of the input, the weights and the output")]
fn a_short_input_is_refused() {
    let [x, w, y] = SMALL.lens();
    conv2d(&SMALL, &vec![0.0; x - 1], &vec![0.0; w], &Epilogue::default(), &mut vec![0.0; y]);
}

#[test]
fn a_transposed_convolution_is_the_adjoint() {
    // <conv(x, w), y> = <x, conv_transpose(y, w)>, exact on small integers; `w` reads (out, in) one way and (in, out)
    // the other.
    let conv = Conv2d { c_in: 4, c_out: 6, groups: 2, input: [7, 8], dilations: [1, 2], ..SMALL };
    let small = |len: usize, seed: usize| -> Vec<f32> {
        (0..len).map(|i| ((i * 7 + seed * 13) % 11) as f32 - 5.0).collect()
    };
    let [x, w, y] = conv.lens();
    let (x, w, y) = (small(x, 1), small(w, 2), small(y, 3));
    let mut conv_x = vec![0.0; y.len()];
    conv2d(&conv, &x, &w, &Epilogue::default(), &mut conv_x);
    let transposed = ConvNd {
        n: conv.n,
        c_in: conv.c_out,
        c_out: conv.c_in,
        input: &conv.output(),
        kernel: &conv.kernel,
        strides: &conv.strides,
        pads: &conv.pads[..2],
        dilations: &conv.dilations,
        groups: conv.groups,
        output: &conv.input,
    };
    let mut back = vec![f32::NAN; x.len()];
    conv_transpose_nd(&transposed, &y, &w, None, &mut back);
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    assert_eq!(dot(&conv_x, &y), dot(&x, &back));
}
