use proptest::prelude::*;

use super::*;

/// Element by element, in `k`'s order.
fn definition(a: MatRef, b: MatRef, epilogue: &Epilogue) -> Vec<f32> {
    let (m, k, n) = (a.n_rows, a.n_cols, b.n_cols);
    (0..m * n)
        .map(|i| {
            let sum = (0..k).fold(0.0, |sum, p| f32::mul_add(a.at(i / n, p), b.at(p, i % n), sum));
            epilogue.apply(sum, i / n, i % n)
        })
        .collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Numbers of many magnitudes, so that a sum in another order has other bits.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
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

fn matrix(data: &[f32], n_rows: usize, n_cols: usize, by_columns: bool) -> MatRef<'_> {
    if by_columns {
        MatRef::new(data, n_cols, n_rows).t()
    } else {
        MatRef::new(data, n_rows, n_cols)
    }
}

proptest! {
    #[test]
    fn every_variant_gives_the_bits_of_the_definition(
        (m, k, n) in (1_usize..40, 0_usize..50, 1_usize..90),
        (a_t, b_t, bias_kind, has_normalize, has_clamp, alpha) in
            (any::<bool>(), any::<bool>(), 0_usize..3, any::<bool>(), any::<bool>(), prop::sample::select(vec![1.0_f32, -0.7])),
        seed: u64,
    ) {
        let (a, b) = (noise(m * k, seed), noise(k * n, seed + 1));
        let (a, b) = (matrix(&a, m, k, a_t), matrix(&b, k, n, b_t));
        let (by_row, by_col) = (noise(m, seed + 2), noise(n, seed + 3));
        let bias = [Bias::None, Bias::PerRow(&by_row), Bias::PerColumn(&by_col)][bias_kind];
        let (mean, factor, shift) = (&by_row[..], &noise(m, seed + 4)[..], &noise(m, seed + 5)[..]);
        let normalize = has_normalize.then_some(Normalize { mean, factor, shift });
        let epilogue = Epilogue { alpha, bias, normalize, clamp: has_clamp.then_some((-3.0, 5.0)) };
        let want = definition(a, b, &epilogue);
        for variant in kernel::VARIANTS {
            let Some(kernel) = variant.get() else { continue };
            let mut rows = vec![0.0; m * k];
            pack::copy_rows(&a, &mut rows);
            let mut c = vec![f32::NAN; m * n];
            run(kernel, &rows, k, [m, k, n], &b, &mut c, &epilogue);
            prop_assert_eq!(bits(&c), bits(&want), "{}", variant.name);
        }
        let mut c = vec![f32::NAN; m * n];
        gemm(a, b, &mut c, &epilogue);
        prop_assert_eq!(bits(&c), bits(&want), "dispatch");
    }
}

#[test]
fn blocks_of_k_rows_and_columns_go_on_with_the_same_sum() {
    // More than one block of each: 3 of `k`, 3 of the rows, 2 of the columns.
    let (m, k, n) = (431, 700, 300);
    let (a, b) = (noise(m * k, 5), noise(k * n, 6));
    let bias = noise(m, 7);
    let epilogue =
        Epilogue { bias: Bias::PerRow(&bias), clamp: Some((-40.0, 40.0)), ..Epilogue::default() };
    let want = definition(MatRef::new(&a, m, k), MatRef::new(&b, k, n), &epilogue);
    for variant in kernel::VARIANTS {
        let Some(kernel) = variant.get() else { continue };
        let mut c = vec![f32::NAN; m * n];
        run(kernel, &a, k, [m, k, n], &MatRef::new(&b, k, n), &mut c, &epilogue);
        assert_eq!(bits(&c), bits(&want), "{}", variant.name);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let (m, k, n) = (129, 333, 515);
    let (a, b) = (noise(m * k, 1), noise(k * n, 2));
    let product = |n_threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let mut c = vec![f32::NAN; m * n];
        pool.install(|| {
            gemm(MatRef::new(&a, m, k), MatRef::new(&b, k, n), &mut c, &Epilogue::default());
        });
        bits(&c)
    };
    let want = product(1);
    for n_threads in [2, 3, 7] {
        assert!(product(n_threads) == want, "{n_threads} threads");
    }
}

#[test]
fn a_batch_is_its_products() {
    let (m, k, n) = (5, 9, 20);
    let (a, b) = (noise(6 * m * k, 1), noise(6 * k * n, 2));
    let bias = noise(n, 3);
    let epilogue = Epilogue { bias: Bias::PerColumn(&bias), ..Epilogue::default() };
    let in_order: Vec<_> = (0..6).map(|i| (i * m * k, i * k * n)).collect();
    let one_b: Vec<_> = (0..6).map(|i| (i * m * k, k * n)).collect();
    let mixed = vec![(0, 3 * k * n), (m * k, 3 * k * n), (0, 0)];
    for offsets in [in_order, one_b, mixed, vec![]] {
        for a_t in [false, true] {
            let first = matrix(&a, m, k, a_t);
            let mut c = vec![f32::NAN; offsets.len() * m * n];
            gemm_batch(&offsets, first, MatRef::new(&b, k, n), &mut c, &epilogue);
            let want: Vec<f32> = offsets
                .iter()
                .flat_map(|(i, j)| {
                    definition(first.skip(*i), MatRef::new(&b[*j..], k, n), &epilogue)
                })
                .collect();
            assert_eq!(bits(&c), bits(&want), "{offsets:?}");
        }
    }
}

#[test]
fn nan_and_infinity_go_through_and_the_clamp_keeps_nan() {
    let a = [f32::NAN, 1.0, f32::INFINITY, 1.0];
    let b = [1.0, 1.0];
    let mut c = [0.0; 2];
    gemm(MatRef::new(&a, 2, 2), MatRef::new(&b, 2, 1), &mut c, &Epilogue::default());
    assert!(c[0].is_nan() && c[1] == f32::INFINITY, "{c:?}");
    let epilogue = Epilogue { clamp: Some((0.0, 6.0)), ..Epilogue::default() };
    gemm(MatRef::new(&a, 2, 2), MatRef::new(&b, 2, 1), &mut c, &epilogue);
    assert!(c[0].is_nan() && c[1] == 6.0, "{c:?}");
}

#[test]
#[should_panic(expected = "the inner sizes")]
fn inner_sizes_that_differ_are_refused() {
    let x = [0.0; 12];
    gemm(MatRef::new(&x, 3, 4), MatRef::new(&x, 3, 4), &mut [0.0; 12], &Epilogue::default());
}
