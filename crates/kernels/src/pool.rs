//! Pooling: the maximum or the mean of windows.

use crate::norm;
use crate::par;

/// The sizes of a pooling of `n_planes` planes (images times channels). A 1-D one has height 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool2d {
    /// Images times channels.
    pub n_planes: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of a window.
    pub kernel: [usize; 2],
    /// Steps between windows.
    pub strides: [usize; 2],
    /// Padding: top, left, bottom, right.
    pub pads: [usize; 4],
    /// Steps between the elements of a window.
    pub dilations: [usize; 2],
    /// How the output's size is rounded.
    pub rounding: Rounding,
}

/// ONNX `ceil_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Only whole windows (`ceil_mode = 0`).
    Floor,
    /// A last window may hang over the end, but not start there (`ceil_mode = 1`).
    Ceil,
}

/// ONNX `count_include_pad`: what a mean is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divisor {
    /// The window's elements inside of the input.
    Inside,
    /// The window's elements inside of the padded input.
    Padded,
}

impl Pool2d {
    /// Height and width of the output.
    pub fn output(&self) -> [usize; 2] {
        std::array::from_fn(|d| {
            let window = self.dilations[d] * (self.kernel[d] - 1) + 1;
            let padded = self.input[d] + self.pads[d] + self.pads[d + 2];
            let Some(room) = padded.checked_sub(window) else { return 0 };
            match self.rounding {
                Rounding::Floor => room / self.strides[d] + 1,
                Rounding::Ceil => {
                    let n = room.div_ceil(self.strides[d]) + 1;
                    // A window that would start in the padding after the input is left out.
                    if self.input[d] + self.pads[d] <= (n - 1) * self.strides[d] {
                        n - 1
                    } else {
                        n
                    }
                }
            }
        })
    }

    fn check(&self, x: usize, y: usize) {
        assert!(
            self.kernel.iter().chain(&self.strides).chain(&self.dilations).all(|&d| 0 < d),
            "a window, strides and dilations of at least one: {self:?}"
        );
        let [oh, ow] = self.output();
        assert_eq!(x, self.n_planes * self.input[0] * self.input[1], "the input's elements");
        assert_eq!(y, self.n_planes * oh * ow, "the output's elements");
    }

    /// For each output column, the first input column of its window and the window's taps inside of the input.
    fn spans(&self, d: usize) -> Vec<Span> {
        (0..self.output()[d])
            .map(|o| {
                let (start, step) = (o * self.strides[d], self.dilations[d]);
                let taps =
                    |end: usize| end.saturating_sub(start).div_ceil(step).min(self.kernel[d]);
                let first = self.pads[d].saturating_sub(start).div_ceil(step);
                let end = taps(self.pads[d] + self.input[d]);
                let n_inside = end.saturating_sub(first);
                Span {
                    first: if n_inside == 0 { 0 } else { start + first * step - self.pads[d] },
                    n_inside,
                    n_padded: taps(self.pads[d] + self.input[d] + self.pads[d + 2]),
                }
            })
            .collect()
    }

    /// Calls `f(row_span, col_span, plane)` for every output element.
    fn each<T: Copy + Sync, Y: Send>(
        &self,
        x: &[T],
        y: &mut [Y],
        f: impl Fn(&Span, &Span, &[T]) -> Y + Sync,
    ) {
        self.check(x.len(), y.len());
        let [height, width] = self.input;
        let (rows, cols) = (self.spans(0), self.spans(1));
        let plane_len = rows.len() * cols.len();
        let cost = (plane_len * self.kernel[0] * self.kernel[1]) as f32;
        par::for_each_chunk(y, plane_len, cost, |start, y| {
            for (i, y) in y.chunks_exact_mut(plane_len).enumerate() {
                let plane = &x[(start / plane_len + i) * height * width..][..height * width];
                for (row, y) in rows.iter().zip(y.chunks_exact_mut(cols.len())) {
                    for (col, y) in cols.iter().zip(y) {
                        *y = f(row, col, plane);
                    }
                }
            }
        });
    }
}

/// A window along one dimension.
struct Span {
    /// Its first element inside of the input.
    first: usize,
    /// Its elements inside of the input.
    n_inside: usize,
    /// Its elements inside of the padded input.
    n_padded: usize,
}

/// The largest element of each window; the padding takes no part. `lowest` is less than or equal to every value of
/// the type: a window without elements has it.
///
/// Works on integer codes too, as long as input and output have the same scale and zero point. A NaN is skipped.
///
/// # Panics
///
/// When a slice has another length than the sizes say.
pub fn max_pool<T: Copy + PartialOrd + Send + Sync>(
    pool: &Pool2d,
    x: &[T],
    lowest: T,
    y: &mut [T],
) {
    let width = pool.input[1];
    let [step_h, step_w] = pool.dilations;
    pool.each(x, y, |rows, cols, plane| {
        let mut top = lowest;
        for r in 0..rows.n_inside {
            let row = &plane[(rows.first + r * step_h) * width + cols.first..];
            for c in 0..cols.n_inside {
                let x = row[c * step_w];
                top = if top < x { x } else { top };
            }
        }
        top
    });
}

/// The largest element of each window and where it is: its index in the plane, and the plane's number times the
/// plane's elements (ONNX `MaxPool`'s second output with `storage_order = 0`). Of equals, the first.
///
/// # Panics
///
/// As [`max_pool`].
pub fn max_pool_indices<T: Copy + PartialOrd + Send + Sync>(
    pool: &Pool2d,
    x: &[T],
    lowest: T,
    y: &mut [T],
    indices: &mut [i64],
) {
    assert_eq!(y.len(), indices.len(), "an index for each element");
    let [height, width] = pool.input;
    let [step_h, step_w] = pool.dilations;
    max_pool(pool, x, lowest, y);
    pool.each(x, indices, |rows, cols, plane| {
        let mut best = (rows.first * width + cols.first, lowest);
        for r in 0..rows.n_inside {
            for c in 0..cols.n_inside {
                let index = (rows.first + r * step_h) * width + cols.first + c * step_w;
                if best.1 < plane[index] {
                    best = (index, plane[index]);
                }
            }
        }
        best.0 as i64
    });
    let [oh, ow] = pool.output();
    for (i, index) in indices.iter_mut().enumerate() {
        *index += (i / (oh * ow) * height * width) as i64;
    }
}

/// The mean of each window. The sum goes row by row from 0; an empty window gives 0.
///
/// # Panics
///
/// When a slice has another length than the sizes say.
pub fn average_pool(pool: &Pool2d, divisor: Divisor, x: &[f32], y: &mut [f32]) {
    let width = pool.input[1];
    let [step_h, step_w] = pool.dilations;
    pool.each(x, y, |rows, cols, plane| {
        let mut sum = 0.0;
        for r in 0..rows.n_inside {
            let row = &plane[(rows.first + r * step_h) * width + cols.first..];
            for c in 0..cols.n_inside {
                sum += row[c * step_w];
            }
        }
        let n = match divisor {
            Divisor::Inside => rows.n_inside * cols.n_inside,
            Divisor::Padded => rows.n_padded * cols.n_padded,
        };
        if n == 0 { 0.0 } else { sum / n as f32 }
    });
}

/// The mean of each plane of `plane_len` elements, the sum as [`norm::sum`]'s.
///
/// # Panics
///
/// When `x` is not `y.len()` planes.
pub fn global_average_pool(x: &[f32], plane_len: usize, y: &mut [f32]) {
    norm::reduce(norm::ReduceOp::Mean, x, [y.len(), plane_len, 1], y);
}

/// The largest of each plane of `plane_len` elements.
///
/// # Panics
///
/// When `x` is not `y.len()` planes.
pub fn global_max_pool(x: &[f32], plane_len: usize, y: &mut [f32]) {
    norm::reduce(norm::ReduceOp::Max, x, [y.len(), plane_len, 1], y);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A pooling and its input, of small random sizes.
    fn pools() -> impl Strategy<Value = (Pool2d, Vec<f32>)> {
        let pair = |r: std::ops::Range<usize>| prop::array::uniform2(r);
        (
            1_usize..3,
            pair(1..9),
            pair(1..4),
            pair(1..4),
            pair(1..3),
            prop::array::uniform4(0_usize..3),
            any::<bool>(),
        )
            .prop_map(|(n_planes, input, kernel, strides, dilations, pads, ceil)| {
                let rounding = if ceil { Rounding::Ceil } else { Rounding::Floor };
                let pads = std::array::from_fn(|d| pads[d].min(kernel[d % 2] - 1));
                Pool2d { n_planes, input, kernel, strides, pads, dilations, rounding }
            })
            .prop_flat_map(|pool| {
                let len = pool.n_planes * pool.input[0] * pool.input[1];
                let x = prop::collection::vec((-8_i32..8).prop_map(|x| x as f32), len);
                (Just(pool), x)
            })
    }

    /// The window's values in order and its elements in the padded input, tap by tap.
    fn window(pool: &Pool2d, x: &[f32], plane: usize, o: [usize; 2]) -> (Vec<f32>, usize) {
        let (mut values, mut n_padded) = (vec![], 0);
        for i in 0..pool.kernel[0] {
            for j in 0..pool.kernel[1] {
                let at = [i, j];
                let p: [usize; 2] =
                    std::array::from_fn(|d| o[d] * pool.strides[d] + at[d] * pool.dilations[d]);
                let end = |d: usize| pool.pads[d] + pool.input[d];
                if (0..2).all(|d| p[d] < end(d) + pool.pads[d + 2]) {
                    n_padded += 1;
                }
                if (0..2).all(|d| (pool.pads[d]..end(d)).contains(&p[d])) {
                    let [r, c] = [p[0] - pool.pads[0], p[1] - pool.pads[1]];
                    values.push(x[(plane * pool.input[0] + r) * pool.input[1] + c]);
                }
            }
        }
        (values, n_padded)
    }

    proptest! {
        #[test]
        fn pools_are_what_the_windows_hold((pool, x) in pools()) {
            let [oh, ow] = pool.output();
            let n = pool.n_planes * oh * ow;
            let (mut top, mut indices) = (vec![0.0; n], vec![0; n]);
            let (mut inside, mut padded) = (vec![0.0; n], vec![0.0; n]);
            max_pool_indices(&pool, &x, f32::MIN, &mut top, &mut indices);
            average_pool(&pool, Divisor::Inside, &x, &mut inside);
            average_pool(&pool, Divisor::Padded, &x, &mut padded);
            for i in 0..n {
                let (values, n_padded) = window(&pool, &x, i / (oh * ow), [i / ow % oh, i % ow]);
                let want = values.iter().copied().fold(f32::MIN, f32::max);
                prop_assert_eq!(top[i], want);
                if !values.is_empty() {
                    prop_assert_eq!(x[indices[i] as usize], want);
                }
                // Sums of small integers are exact.
                let sum: f32 = values.iter().sum();
                let mean = |n: usize| if n == 0 { 0.0 } else { sum / n as f32 };
                prop_assert_eq!(inside[i], mean(values.len()));
                prop_assert_eq!(padded[i], mean(n_padded));
            }
        }
    }

    #[test]
    fn ceil_adds_the_last_window_unless_it_starts_in_the_padding() {
        let mut pool = Pool2d {
            n_planes: 1,
            input: [4, 5],
            kernel: [3, 3],
            strides: [2, 2],
            pads: [0; 4],
            dilations: [1, 1],
            rounding: Rounding::Floor,
        };
        assert_eq!(pool.output(), [1, 2]);
        pool.rounding = Rounding::Ceil;
        assert_eq!(pool.output(), [2, 2]);
        // Windows of 1 every 4 from a line of 3 with 2 after it: the second would start at 4, in the padding.
        pool =
            Pool2d { input: [3, 3], kernel: [1, 1], strides: [4, 4], pads: [0, 0, 2, 2], ..pool };
        assert_eq!(pool.output(), [1, 1]);
    }

    #[test]
    fn codes_are_pooled_as_they_are() {
        let pool = Pool2d {
            n_planes: 1,
            input: [1, 4],
            kernel: [1, 2],
            strides: [1, 2],
            pads: [0; 4],
            dilations: [1, 1],
            rounding: Rounding::Floor,
        };
        let mut y = [0; 2];
        max_pool(&pool, &[-128_i8, -3, 5, 127], i8::MIN, &mut y);
        assert_eq!(y, [-3, 127]);
    }

    #[test]
    fn the_mean_of_a_plane_is_its_sum_by_its_length() {
        let x: Vec<f32> = (0..98).map(|i| i as f32).collect();
        let (mut mean, mut top) = ([0.0; 2], [0.0; 2]);
        global_average_pool(&x, 49, &mut mean);
        global_max_pool(&x, 49, &mut top);
        assert_eq!((mean, top), ([24.0, 73.0], [48.0, 97.0]));
    }
}
