use proptest::prelude::*;

use super::*;

/// How many units in the last place of `want` the result is off; at least the smallest normal float's unit.
fn ulp_error(got: f32, want: f64) -> f64 {
    if f64::from(got) == want || (got.is_infinite() && got == want as f32) {
        return 0.0;
    }
    let exponent = want.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
    (f64::from(got) - want).abs() / (exponent - 23.0).exp2()
}

/// Every float with the low 10 bits of its pattern zero, of both signs: four million.
fn floats() -> impl Iterator<Item = f32> {
    (0..=u32::MAX >> 10)
        .map(|bits| f32::from_bits(bits << 10 | bits & 0x3FF))
        .filter(|x| x.is_finite())
}

/// The worst input of `f` among `floats`, and its error.
fn worst(f: fn(f32) -> f32, definition: fn(f64) -> f64) -> (f64, f32) {
    floats()
        .map(|x| (ulp_error(f(x), definition(f64::from(x))), x))
        .fold((0.0, 0.0), |worst, error| if worst.0 < error.0 { error } else { worst })
}

#[test]
fn functions_are_within_their_stated_error() {
    type Case = (&'static str, f64, fn(f32) -> f32, fn(f64) -> f64);
    let cases: [Case; 4] = [
        ("exp", 1.0, math::exp, f64::exp),
        ("sigmoid", 3.0, math::sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
        ("tanh", 3.0, math::tanh, f64::tanh),
        ("erf", 2.0, math::erf, libm::erf),
    ];
    for (name, bound, f, definition) in cases {
        let (error, x) = worst(f, definition);
        println!("{name}: {error:.3} ULP at {x:e}");
        assert!(error <= bound, "{name}({x:e}) is {error} ULP off");
    }
}

#[test]
fn functions_at_the_ends_are_what_they_converge_to() {
    let inf = f32::INFINITY;
    assert_eq!(
        [math::exp(inf), math::exp(-inf), math::exp(89.0), math::exp(-104.0)],
        [inf, 0.0, inf, 0.0]
    );
    assert_eq!([math::sigmoid(inf), math::sigmoid(-inf)], [1.0, 0.0]);
    assert_eq!(
        [math::tanh(inf), math::tanh(-inf), math::erf(inf), math::erf(-inf)],
        [1.0, -1.0, 1.0, -1.0]
    );
    for f in [math::exp, math::sigmoid, math::tanh, math::erf, math::gelu, math::silu] {
        assert!(f(f32::NAN).is_nan());
    }
    for f in [math::tanh, math::erf, math::gelu, math::silu] {
        assert_eq!(f(-0.0).to_bits(), (-0.0_f32).to_bits(), "an odd function keeps the sign of 0");
    }
    // The smallest subnormal, and the floats on either side of the logarithm of the largest.
    assert_eq!(math::exp(-103.2), f32::from_bits(1));
    assert!(math::exp(88.722_83).is_finite());
    assert_eq!(math::exp(88.722_84), inf);
}

const OPS: &[UnaryOp] = &[
    UnaryOp::Abs,
    UnaryOp::Ceil,
    UnaryOp::Celu { alpha: 0.7 },
    UnaryOp::Clip { lo: -1.0, hi: 6.0 },
    UnaryOp::Cos,
    UnaryOp::Elu { alpha: 1.5 },
    UnaryOp::Erf,
    UnaryOp::Exp,
    UnaryOp::Floor,
    UnaryOp::Gelu,
    UnaryOp::GeluTanh,
    UnaryOp::HardSigmoid { alpha: 0.2, beta: 0.5 },
    UnaryOp::HardSwish,
    UnaryOp::LeakyRelu { alpha: 0.1 },
    UnaryOp::Log,
    UnaryOp::Mish,
    UnaryOp::Neg,
    UnaryOp::Reciprocal,
    UnaryOp::Relu,
    UnaryOp::Round,
    UnaryOp::Selu { alpha: 1.673_263_2, gamma: 1.050_701 },
    UnaryOp::Sigmoid,
    UnaryOp::Sign,
    UnaryOp::Silu,
    UnaryOp::Sin,
    UnaryOp::Softplus,
    UnaryOp::Softsign,
    UnaryOp::Sqrt,
    UnaryOp::Tan,
    UnaryOp::Tanh,
    UnaryOp::ThresholdedRelu { alpha: 1.0 },
];

/// The ONNX specification's formula, in `f64`.
fn definition(op: UnaryOp, x: f64) -> f64 {
    use UnaryOp::*;
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match op {
        Abs => x.abs(),
        Ceil => x.ceil(),
        Celu { alpha } => {
            x.max(0.0) + (f64::from(alpha) * ((x / f64::from(alpha)).exp() - 1.0)).min(0.0)
        }
        Clip { lo, hi } => x.max(f64::from(lo)).min(f64::from(hi)),
        Cos => x.cos(),
        Elu { alpha } => {
            if x < 0.0 {
                f64::from(alpha) * (x.exp() - 1.0)
            } else {
                x
            }
        }
        Erf => libm::erf(x),
        Exp => x.exp(),
        Floor => x.floor(),
        Gelu => 0.5 * x * (1.0 + libm::erf(x / 2.0_f64.sqrt())),
        GeluTanh => {
            0.5 * x
                * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        HardSigmoid { alpha, beta } => (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
        HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        LeakyRelu { alpha } => {
            if x < 0.0 {
                f64::from(alpha) * x
            } else {
                x
            }
        }
        Log => x.ln(),
        Mish => x * x.exp().ln_1p().tanh(),
        Neg => -x,
        Reciprocal => 1.0 / x,
        Relu => x.max(0.0),
        Round => x.round_ties_even(),
        Selu { alpha, gamma } => {
            let (alpha, gamma) = (f64::from(alpha), f64::from(gamma));
            if x <= 0.0 { gamma * (alpha * x.exp() - alpha) } else { gamma * x }
        }
        Sigmoid => sigmoid(x),
        Sign => {
            if x == 0.0 {
                0.0
            } else {
                x.signum()
            }
        }
        Silu => x * sigmoid(x),
        Sin => x.sin(),
        Softplus => x.exp().ln_1p(),
        Softsign => x / (1.0 + x.abs()),
        Sqrt => x.sqrt(),
        Tan => x.tan(),
        Tanh => x.tanh(),
        ThresholdedRelu { alpha } => {
            if f64::from(alpha) < x {
                x
            } else {
                0.0
            }
        }
    }
}

#[test]
fn unary_operators_are_onnx_formulas() {
    let x: Vec<f32> = (-4000..4000).map(|i| i as f32 / 256.0).collect();
    for &op in OPS {
        let mut y = vec![0.0; x.len()];
        unary(op, &x, &mut y);
        for (x, y) in x.iter().zip(&y) {
            let want = definition(op, f64::from(*x));
            // Where terms of the size of 1 or of `x` cancel, they leave their own rounding, enlarged by at most 2.
            let error = 8.0 * f64::from(f32::EPSILON) * (1.0 + want.abs().max(f64::from(x.abs())));
            let is_close = (f64::from(*y) - want).abs() <= error;
            let both_nan = y.is_nan() && want.is_nan();
            let same_infinity = f64::from(*y) == want;
            // `tan` is as steep as its square.
            let steep =
                op == UnaryOp::Tan && (f64::from(*y) - want).abs() <= error * (1.0 + want * want);
            assert!(
                is_close || both_nan || same_infinity || steep,
                "{op:?}({x}) = {y}, not {want}"
            );
        }
    }
}

#[test]
fn unary_variants_have_the_same_bits_for_every_length_and_hard_value() {
    let hard = [
        0.0,
        -0.0,
        0.5,
        -0.5,
        2.5,
        0.625,
        0.921_875,
        88.7,
        -88.7,
        89.0,
        -104.0,
        3e9,
        -3e9,
        1e-45,
        -1e-40,
        f32::MIN_POSITIVE,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    // Any NaN is one NaN: which operand's payload survives is the instruction's choice.
    let bits = |y: &[f32]| -> Vec<u32> {
        y.iter().map(|y| if y.is_nan() { u32::MAX } else { y.to_bits() }).collect()
    };
    for &op in OPS {
        for len in 0..=70 {
            let x: Vec<f32> = hard.iter().copied().cycle().skip(len % 7).take(len).collect();
            let all: Vec<Vec<u32>> = unary::VARIANTS
                .iter()
                .filter_map(|v| v.get())
                .map(|run| {
                    let mut y = vec![7.0; len];
                    run(op, &x, &mut y);
                    bits(&y)
                })
                .collect();
            assert!(all.iter().all(|y| *y == all[0]), "{op:?} of {x:?}");
            let mut y = x.clone();
            unary_in_place(op, &mut y);
            assert_eq!(bits(&y), all[0], "{op:?} in place");
        }
    }
}

/// Two shapes that broadcast.
fn shapes() -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
    prop::collection::vec((1_usize..6, 0..4), 0..5).prop_flat_map(|dims| {
        let side = |one: i32| -> Vec<usize> {
            dims.iter().map(|(size, kind)| if *kind == one { 1 } else { *size }).collect()
        };
        let (a, b) = (side(1), side(2));
        // Leading dimensions may be left out of one.
        let n = b.iter().take_while(|size| **size == 1).count();
        (Just(a), Just(b), 0..=n).prop_map(|(a, b, n)| (a, b[n..].to_vec()))
    })
}

proptest! {
    #[test]
    fn broadcasting_pairs_the_elements_that_onnx_pairs((a_dims, b_dims) in shapes()) {
        let dims = broadcast_dims(&a_dims, &b_dims).unwrap();
        let numbers = |dims: &[usize], step: f32| -> Vec<f32> {
            (0..dims.iter().product::<usize>()).map(|i| (i + 1) as f32 * step).collect()
        };
        let (a, b) = (numbers(&a_dims, 1.0), numbers(&b_dims, 1000.0));
        let mut y = vec![0.0; dims.iter().product()];
        binary(BinaryOp::Add, &a, &a_dims, &b, &b_dims, &mut y);
        let mut pairs = vec![(0.0, 0.0); y.len()];
        broadcast_with(&a, &a_dims, &b, &b_dims, &mut pairs, |a, b| (a, b));
        for i in 0..y.len() {
            // The position, from the last dimension to the first, in each input.
            let at = |own: &[usize]| {
                let (mut rest, mut index, mut step) = (i, 0, 1);
                for d in (0..dims.len()).rev() {
                    let p = rest % dims[d];
                    rest /= dims[d];
                    if let Some(d) = (d + own.len()).checked_sub(dims.len()) {
                        if own[d] != 1 {
                            index += p * step;
                        }
                        step *= own[d];
                    }
                }
                index
            };
            let want = (a[at(&a_dims)], b[at(&b_dims)]);
            prop_assert_eq!(pairs[i], want);
            prop_assert_eq!(y[i], want.0 + want.1);
        }
    }
}

#[test]
fn binary_operators_are_onnx_formulas_in_every_variant() {
    let values = [0.0_f32, -0.0, 1.0, -1.0, 2.5, -3.0, 1e-40, f32::MAX, f32::INFINITY, f32::NAN];
    let a: Vec<f32> = values.iter().flat_map(|a| [*a; 10]).collect();
    let b: Vec<f32> = values.iter().copied().cycle().take(100).collect();
    let nan_or = |a: f32, b: f32, y: f32| if a.is_nan() || b.is_nan() { f32::NAN } else { y };
    type Case<'a> = (BinaryOp, &'a dyn Fn(f32, f32) -> f32);
    let cases: [Case; 8] = [
        (BinaryOp::Add, &|a, b| a + b),
        (BinaryOp::Sub, &|a, b| a - b),
        (BinaryOp::Mul, &|a, b| a * b),
        (BinaryOp::Div, &|a, b| a / b),
        (BinaryOp::Pow, &|a, b| libm::powf(a, b)),
        (BinaryOp::Min, &|a, b| nan_or(a, b, a.min(b))),
        (BinaryOp::Max, &|a, b| nan_or(a, b, a.max(b))),
        (BinaryOp::PRelu, &|a, b| if a < 0.0 { a * b } else { a }),
    ];
    for (op, want) in cases {
        let mut y = vec![0.0; 100];
        binary(op, &a, &[100], &b, &[100], &mut y);
        for i in 0..100 {
            let want = want(a[i], b[i]);
            assert!(
                y[i] == want || (y[i].is_nan() && want.is_nan()),
                "{op:?}({}, {}) = {}",
                a[i],
                b[i],
                y[i]
            );
        }
    }
}

#[test]
fn powers_of_one_exponent_are_products() {
    let mut y = [0.0; 3];
    binary(BinaryOp::Pow, &[3.0, -2.0, 0.5], &[3], &[2.0], &[1], &mut y);
    assert_eq!(y, [9.0, 4.0, 0.25]);
    binary(BinaryOp::Pow, &[3.0, -2.0, 0.5], &[3], &[3.0], &[], &mut y);
    assert_eq!(y, [27.0, -8.0, 0.125]);
}

#[test]
fn the_number_of_threads_changes_no_element() {
    let x: Vec<f32> = (0..200_003).map(|i| i as f32 / 10_000.0 - 10.0).collect();
    let run = |n_threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let mut y = vec![0.0; 2 * x.len()];
        pool.install(|| {
            unary(UnaryOp::Erf, &x, &mut y[..x.len()]);
            let (a, b) = y.split_at_mut(x.len());
            binary(BinaryOp::Mul, a, &[1, x.len()], &[3.0], &[1, 1], b);
        });
        y
    };
    let want = run(1);
    assert!(run(3) == want && run(2) == want);
}

#[test]
fn shapes_that_do_not_broadcast_have_no_common_shape() {
    assert_eq!(broadcast_dims(&[2, 3], &[2]), None);
    assert_eq!(broadcast_dims(&[5, 1], &[4]), Some(vec![5, 4]));
    assert_eq!(broadcast_dims(&[0, 1], &[1, 4]), Some(vec![0, 4]));
}
