use proptest::prelude::*;

use super::*;

/// The definition on codes that were widened already.
fn definition(
    [m, k, n]: [usize; 3],
    a: &[i32],
    a_zero_points: &[i32],
    b: &[i32],
    b_zero_points: &[i32],
) -> Vec<i32> {
    let zero =
        |zero_points: &[i32], i: usize| zero_points[if zero_points.len() == 1 { 0 } else { i }];
    (0..m * n)
        .map(|c| {
            let (i, j) = (c / n, c % n);
            (0..k).fold(0_i32, |sum, p| {
                let a = a[i * k + p] - zero(a_zero_points, i);
                sum.wrapping_add(a * (b[p * n + j] - zero(b_zero_points, j)))
            })
        })
        .collect()
}

fn widened(codes: Codes) -> Vec<i32> {
    match codes {
        Codes::U8(codes) => codes.iter().map(|x| i32::from(*x)).collect(),
        Codes::I8(codes) => codes.iter().map(|x| i32::from(*x)).collect(),
    }
}

/// Codes with both ends of the type among them.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            match state >> 61 {
                0 => 0,
                1 => 255,
                2 => 128,
                _ => (state >> 32) as u8,
            }
        })
        .collect()
}

/// The same bytes as either type.
fn codes<'a>(bytes: &'a [u8], signed: &'a [i8], is_signed: bool) -> Codes<'a> {
    if is_signed { Codes::I8(signed) } else { Codes::U8(bytes) }
}

fn signed(bytes: &[u8]) -> Vec<i8> {
    bytes.iter().map(|x| x.cast_signed()).collect()
}

proptest! {
    #[test]
    fn every_variant_equals_the_definition(
        (m, k, n) in (1_usize..30, 0_usize..50, 1_usize..80),
        (a_signed, b_signed, per_row, per_col) in any::<(bool, bool, bool, bool)>(),
        seed: u64,
    ) {
        let (a, b) = (noise(m * k, seed), noise(k * n, seed ^ 1));
        let (a_i8, b_i8) = (signed(&a), signed(&b));
        let (a, b) = (codes(&a, &a_i8, a_signed), codes(&b, &b_i8, b_signed));
        let zeros = |n: usize, is_signed: bool, seed: u64| {
            let bytes = noise(n, seed);
            widened(codes(&bytes, &signed(&bytes), is_signed))
        };
        let a_zeros = zeros(if per_row { m } else { 1 }, a_signed, seed ^ 2);
        let b_zeros = zeros(if per_col { n } else { 1 }, b_signed, seed ^ 3);
        let want = definition([m, k, n], &widened(a), &a_zeros, &widened(b), &b_zeros);
        for variant in kernel::VARIANTS {
            let Some(kernel) = variant.get() else { continue };
            let mut c = vec![-1; m * n];
            typed!(a => typed!(b => {
                let rows = Matrix { data: b, n };
                product(kernel, [m, k, n], a, &a_zeros, &rows, &b_zeros, &mut c);
            }));
            prop_assert_eq!(&c, &want, "{}", variant.name);
        }
        let mut c = vec![-1; m * n];
        matmul_integer([m, k, n], a, &a_zeros, b, &b_zeros, &mut c);
        prop_assert_eq!(c, want, "dispatch");
    }

    #[test]
    fn every_convolution_equals_the_definition(
        conv in crate::conv::tests::convs(),
        (x_signed, w_signed, per_channel) in any::<(bool, bool, bool)>(),
        x_zero_byte: u8,
        seed: u64,
    ) {
        let [x, w, y] = conv.lens();
        let (x, w) = (noise(x, seed), noise(w, seed ^ 1));
        let (x_i8, w_i8) = (signed(&x), signed(&w));
        let (x, w) = (codes(&x, &x_i8, x_signed), codes(&w, &w_i8, w_signed));
        let x_zero = if x_signed { i32::from(x_zero_byte.cast_signed()) } else { i32::from(x_zero_byte) };
        let bytes = noise(if per_channel { conv.c_out } else { 1 }, seed ^ 2);
        let w_zeros = widened(codes(&bytes, &signed(&bytes), w_signed));
        let mut got = vec![-1; y];
        conv_integer(&conv, x, x_zero, w, &w_zeros, &mut got);

        // The float definition, exact because every sum is below 2^24.
        let x: Vec<f32> = widened(x).iter().map(|x| (x - x_zero) as f32).collect();
        let per_filter = conv.lens()[1] / conv.c_out;
        prop_assume!(per_filter * 255 * 255 < 1 << 24);
        let w: Vec<f32> = widened(w)
            .iter()
            .enumerate()
            .map(|(i, w)| (w - w_zeros[if per_channel { i / per_filter } else { 0 }]) as f32)
            .collect();
        let mut want = vec![0.0; y];
        let any_rank = crate::conv::ConvNd {
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
        crate::conv::conv_nd(&any_rank, &x, &w, None, &mut want);
        prop_assert_eq!(got, want.iter().map(|y| *y as i32).collect::<Vec<_>>());
    }
}

#[test]
fn pairs_of_the_largest_products_do_not_saturate() {
    // VPMADDUBSW would give 32767 for each pair: 65534 instead of 129540.
    let (a, b) = ([255_u8; 4], [127_i8; 4]);
    let mut c = [0];
    matmul_integer([1, 4, 1], Codes::U8(&a), &[0], Codes::I8(&b), &[0], &mut c);
    assert_eq!(c, [129_540]);
}

#[test]
fn blocks_of_k_rows_and_columns_add_up() {
    let [m, k, n] = [70, 2001, 300];
    let (a, b) = (noise(m * k, 1), noise(k * n, 2));
    let b_i8 = signed(&b);
    let want =
        definition([m, k, n], &widened(Codes::U8(&a)), &[131], &widened(Codes::I8(&b_i8)), &[-3]);
    for variant in kernel::VARIANTS {
        let Some(kernel) = variant.get() else { continue };
        let mut c = vec![-1; m * n];
        product(kernel, [m, k, n], &a, &[131], &Matrix { data: &b_i8[..], n }, &[-3], &mut c);
        assert!(c == want, "{}", variant.name);
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let [m, k, n] = [100, 300, 500];
    let (a, b) = (noise(m * k, 1), noise(k * n, 2));
    let product = |n_threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let mut c = vec![-1; m * n];
        pool.install(|| {
            matmul_integer([m, k, n], Codes::U8(&a), &[3], Codes::U8(&b), &[250], &mut c);
        });
        c
    };
    let want = product(1);
    for n_threads in [2, 5] {
        assert!(product(n_threads) == want, "{n_threads} threads");
    }
}

#[test]
#[should_panic(expected = "zero points of the codes' type")]
fn a_zero_point_outside_of_the_type_is_refused() {
    matmul_integer([1, 1, 1], Codes::U8(&[1]), &[-1], Codes::U8(&[1]), &[0], &mut [0]);
}
