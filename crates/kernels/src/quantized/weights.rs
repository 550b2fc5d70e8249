//! The second factor of a product, packed.

use alloc::{vec, vec::Vec};

use super::lanes::N;

/// Four rows of sixteen columns: for each column, the four of it. On a cache line's border.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Quad(pub(super) [i8; 4 * N]);

impl Default for Quad {
    fn default() -> Self {
        Self([0; 4 * N])
    }
}

/// The second factor of a product, packed: `k` rows of `n` weights with their zero points subtracted.
///
/// The rows are some segments of equal length: what lies together in the first factor. A matrix has one.
#[derive(Clone, Debug)]
pub struct Weights {
    n_segments: usize,
    segment_len: usize,
    n: usize,
    /// Panels of sixteen columns; within one, segment after segment; within these, four rows after four rows. Filled
    /// up with zeros.
    quads: Vec<Quad>,
    /// For each column, 128 times the sum of its weights: what a first factor of `i8` adds when it is moved to `u8`.
    /// Filled up with zeros.
    moved: Vec<i32>,
}

impl Weights {
    /// A matrix, from `at(row, column)`.
    pub fn new(k: usize, n: usize, at: impl Fn(usize, usize) -> i8) -> Self {
        Self::with_segments(1, k, n, at)
    }

    /// Of a convolution's group with `channels` input and `n` output channels: rows are (kernel row, kernel column,
    /// channel).
    pub fn of_windows(
        [kernel_h, kernel_w]: [usize; 2],
        dilation_w: usize,
        channels: usize,
        n: usize,
        at: impl Fn(usize, usize) -> i8,
    ) -> Self {
        // The pixels of a kernel row are neighbours where nothing is left out between them.
        if dilation_w == 1 {
            Self::with_segments(kernel_h, kernel_w * channels, n, at)
        } else {
            Self::with_segments(kernel_h * kernel_w, channels, n, at)
        }
    }

    fn with_segments(
        n_segments: usize,
        segment_len: usize,
        n: usize,
        at: impl Fn(usize, usize) -> i8,
    ) -> Self {
        let words = segment_len.div_ceil(4);
        let n_panels = n.div_ceil(N);
        let mut quads = Vec::with_capacity(n_panels * n_segments * words);
        let mut moved = vec![0_i32; n_panels * N];
        for panel in 0..n_panels {
            for (segment, word) in (0..n_segments).flat_map(|s| (0..words).map(move |w| (s, w))) {
                quads.push(Quad(std::array::from_fn(|i| {
                    let (row, column) = (4 * word + i % 4, panel * N + i / 4);
                    if segment_len <= row || n <= column {
                        return 0;
                    }
                    let weight = at(segment * segment_len + row, column);
                    // Sums wrap, as the kernels' do.
                    moved[column] = moved[column].wrapping_add(128 * i32::from(weight));
                    weight
                })));
            }
        }
        Self { n_segments, segment_len, n, quads, moved }
    }

    /// Rows.
    pub fn k(&self) -> usize {
        self.n_segments * self.segment_len
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// As the kernels read them.
    pub(super) fn panels(&self) -> Panels<'_> {
        let &Self { n_segments, segment_len, n, .. } = self;
        Panels { n_segments, segment_len, n, quads: &self.quads, moved: &self.moved }
    }
}

/// The second factor of a product, wherever its panels lie: what [`Weights`] holds.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    n_segments: usize,
    segment_len: usize,
    n: usize,
    quads: &'a [Quad],
    moved: &'a [i32],
}

impl<'a> Panels<'a> {
    /// A matrix of `k` rows and `n` columns, for first factors that are not moved.
    pub(super) fn of_matrix(k: usize, n: usize, quads: &'a [Quad]) -> Self {
        assert_eq!(quads.len(), k.div_ceil(4) * n.div_ceil(N), "panels of the matrix");
        Self { n_segments: 1, segment_len: k, n, quads, moved: &[] }
    }

    /// Rows.
    pub(super) fn k(&self) -> usize {
        self.n_segments * self.segment_len
    }

    /// Columns.
    pub(super) fn n(&self) -> usize {
        self.n
    }

    /// How many runs of bytes make up a row of the first factor, and how long each is.
    pub(super) fn segments(&self) -> [usize; 2] {
        [self.n_segments, self.segment_len]
    }

    /// Words of four bytes in a segment, the last filled up.
    pub(super) fn segment_words(&self) -> usize {
        self.segment_len.div_ceil(4)
    }

    /// Words of four bytes in a row of the first factor.
    pub(super) fn n_words(&self) -> usize {
        self.n_segments * self.segment_words()
    }

    /// Columns in sixteens.
    pub(super) fn n_panels(&self) -> usize {
        self.n.div_ceil(N)
    }

    /// Sixteen columns.
    pub(super) fn panel(&self, i: usize) -> &'a [Quad] {
        let len = self.n_words();
        &self.quads[i * len..][..len]
    }

    /// What is subtracted from the sums when a first factor of `i8` was moved to `u8`.
    pub(super) fn moved(&self) -> &'a [i32] {
        self.moved
    }
}
