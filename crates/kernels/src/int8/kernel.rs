//! The tile of an integer product: words of `a` times a panel of words of `b`, in registers.

#![expect(
    clippy::needless_range_loop,
    reason = "registers are addressed by their place in the tile"
)]

use std::ops::Range;

use crate::par::Disjoint;
use crate::variant::{Isa, Variant};

/// What a word of 32 bits holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// Two `i16` of each factor, zero points subtracted.
    I16,
    /// Four `u8` of the first factor, four `i8` of the second.
    U8I8,
}

impl Words {
    /// How many `k` a word covers.
    pub(super) fn len(self) -> usize {
        match self {
            Self::I16 => 2,
            Self::U8I8 => 4,
        }
    }
}

/// A block of the product: `rows` of `a` times packed panels for `cols`, over the words `ks`.
pub(super) struct Block<'a> {
    /// By rows, `lda` apart, from row 0 and word 0.
    pub(super) a: &'a [i32],
    pub(super) lda: usize,
    pub(super) rows: Range<usize>,
    pub(super) ks: Range<usize>,
    /// `nr` columns each; within one, word after word.
    pub(super) panels: &'a [i32],
    pub(super) cols: Range<usize>,
    /// By rows, `ldc` apart, from row 0 and column 0. No other thread has these rows and columns of it.
    pub(super) c: &'a Disjoint<'a, i32>,
    pub(super) ldc: usize,
    /// Whether the sum starts here; otherwise it goes on from what `c` holds.
    pub(super) is_first: bool,
}

/// An implementation, the size of its tiles and the words it reads.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    pub(super) mr: usize,
    pub(super) nr: usize,
    pub(super) words: Words,
    pub(super) run: fn(&Block),
}

/// Fastest first. All give the same integers.
pub(super) static VARIANTS: &[Variant<Kernel>] = &[
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx512_vnni-8x32",
        Isa::Avx512,
        crate::variant::has_avx512_vnni,
        Kernel {
            mr: 8,
            nr: 32,
            words: Words::U8I8,
            // SAFETY: `Variant::get` hands this out only when `has_avx512_vnni` has found the features.
            run: |block| unsafe { x86_64::avx512_vnni(block) },
        },
    ),
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx512-8x32",
        Isa::Avx512,
        crate::variant::has_avx512,
        Kernel {
            mr: 8,
            nr: 32,
            words: Words::I16,
            // SAFETY: `Variant::get` hands this out only when `has_avx512` has found the features.
            run: |block| unsafe { x86_64::avx512(block) },
        },
    ),
    #[cfg(target_arch = "x86_64")]
    Variant::new(
        "avx2-6x16",
        Isa::Avx2,
        crate::variant::has_avx2,
        Kernel {
            mr: 6,
            nr: 16,
            words: Words::I16,
            // SAFETY: `Variant::get` hands this out only when `has_avx2` has found the features.
            run: |block| unsafe { x86_64::avx2(block) },
        },
    ),
    // Tests also run the four-byte words on any CPU.
    #[cfg(test)]
    Variant::new(
        "scalar_bytes",
        Isa::Scalar,
        || true,
        Kernel { mr: 3, nr: 4, words: Words::U8I8, run: |block| run::<_, 3>(ScalarBytes, block) },
    ),
    Variant::scalar(Kernel {
        mr: 4,
        nr: 8,
        words: Words::I16,
        run: |block| run::<_, 4>(Scalar, block),
    }),
];

/// Lanes of words.
trait Dot: Copy {
    type V: Copy;
    const N: usize;

    fn splat(self, x: i32) -> Self::V;
    fn load(self, x: &[i32]) -> Self::V;
    fn store(self, y: &mut [i32], v: Self::V);
    /// In each lane, `acc` plus the products of what the words of `a` and `b` hold, wrapping.
    fn dot(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V;
}

#[derive(Clone, Copy)]
struct Scalar;

impl Dot for Scalar {
    type V = [i32; 4];
    const N: usize = 4;

    fn splat(self, x: i32) -> [i32; 4] {
        [x; 4]
    }
    fn load(self, x: &[i32]) -> [i32; 4] {
        *x.first_chunk().expect("four words")
    }
    fn store(self, y: &mut [i32], v: [i32; 4]) {
        *y.first_chunk_mut().expect("four words") = v;
    }
    fn dot(self, acc: [i32; 4], a: [i32; 4], b: [i32; 4]) -> [i32; 4] {
        std::array::from_fn(|i| {
            let low = i32::from(a[i] as i16) * i32::from(b[i] as i16);
            let high = (a[i] >> 16) * (b[i] >> 16);
            acc[i].wrapping_add(low).wrapping_add(high)
        })
    }
}

#[cfg(test)]
#[derive(Clone, Copy)]
struct ScalarBytes;

#[cfg(test)]
impl Dot for ScalarBytes {
    type V = [i32; 2];
    const N: usize = 2;

    fn splat(self, x: i32) -> [i32; 2] {
        [x; 2]
    }
    fn load(self, x: &[i32]) -> [i32; 2] {
        *x.first_chunk().expect("two words")
    }
    fn store(self, y: &mut [i32], v: [i32; 2]) {
        *y.first_chunk_mut().expect("two words") = v;
    }
    fn dot(self, acc: [i32; 2], a: [i32; 2], b: [i32; 2]) -> [i32; 2] {
        std::array::from_fn(|i| {
            let (a, b) = (a[i].to_ne_bytes(), b[i].to_ne_bytes());
            (0..4).fold(acc[i], |acc, j| {
                acc.wrapping_add(i32::from(a[j]) * i32::from(b[j].cast_signed()))
            })
        })
    }
}

/// Runs a block in tiles of at most `MR` rows and two registers.
#[inline(always)]
fn run<D: Dot, const MR: usize>(d: D, block: &Block) {
    let kc = block.ks.len();
    let nr = 2 * D::N;
    for panel in (0..block.cols.len()).step_by(nr) {
        let b = &block.panels[panel * kc..][..nr * kc];
        let n_cols = nr.min(block.cols.len() - panel);
        let n_tiles = block.rows.len().div_ceil(MR);
        for i in 0..n_tiles {
            let rows = crate::par::share(block.rows.len(), n_tiles, i);
            let row = block.rows.start + rows.start;
            let tile = Tile { block, row, col: block.cols.start + panel, n_cols, b };
            match rows.len() {
                1 => tile.run::<D, 1>(d),
                2 => tile.run::<D, 2>(d),
                3 => tile.run::<D, 3>(d),
                4 if 4 <= MR => tile.run::<D, 4>(d),
                5 if 5 <= MR => tile.run::<D, 5>(d),
                6 if 6 <= MR => tile.run::<D, 6>(d),
                7 if 7 <= MR => tile.run::<D, 7>(d),
                8 if 8 <= MR => tile.run::<D, 8>(d),
                _ => unreachable!("no tile is higher than the kernel's"),
            }
        }
    }
}

/// Where a tile is, and its panel.
struct Tile<'a> {
    block: &'a Block<'a>,
    row: usize,
    col: usize,
    n_cols: usize,
    b: &'a [i32],
}

impl Tile<'_> {
    /// `MR` rows times two registers of columns.
    #[inline(always)]
    fn run<D: Dot, const MR: usize>(&self, d: D) {
        let block = self.block;
        let kc = block.ks.len();
        let mut a: [&[i32]; MR] = [&[]; MR];
        for i in 0..MR {
            a[i] = &block.a[(self.row + i) * block.lda + block.ks.start..][..kc];
        }
        let mut acc = [[d.splat(0); 2]; MR];
        if !block.is_first {
            for i in 0..MR {
                let mut row = [0; 64];
                row[..self.n_cols].copy_from_slice(self.c_row(i));
                for j in 0..2 {
                    acc[i][j] = d.load(&row[j * D::N..]);
                }
            }
        }
        for (p, b) in self.b.chunks_exact(2 * D::N).enumerate().take(kc) {
            let b0 = d.load(b);
            let b1 = d.load(&b[D::N..]);
            for i in 0..MR {
                let av = d.splat(a[i][p]);
                acc[i][0] = d.dot(acc[i][0], av, b0);
                acc[i][1] = d.dot(acc[i][1], av, b1);
            }
        }
        for i in 0..MR {
            let c = self.c_row(i);
            if self.n_cols == 2 * D::N {
                for j in 0..2 {
                    d.store(&mut c[j * D::N..], acc[i][j]);
                }
            } else {
                let mut row = [0; 64];
                for j in 0..2 {
                    d.store(&mut row[j * D::N..], acc[i][j]);
                }
                c.copy_from_slice(&row[..self.n_cols]);
            }
        }
    }

    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the block has its rows and columns to itself")]
    fn c_row(&self, i: usize) -> &mut [i32] {
        let start = (self.row + i) * self.block.ldc + self.col;
        // SAFETY: these elements are in this block's rows and columns, which no other thread has, and callers hold
        // one row at a time.
        unsafe { self.block.c.slice(start, self.n_cols) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::*;

    use super::{Block, Dot, run};

    macro_rules! dot {
        ($name:ident, $features:literal, $v:ty, $n:literal, $splat:ident $load:ident $store:ident,
         |$acc:ident, $a:ident, $b:ident| $dot:expr) => {
            #[derive(Clone, Copy)]
            struct $name(());

            impl $name {
                #[inline]
                #[target_feature(enable = $features)]
                fn new() -> Self {
                    Self(())
                }

                #[inline]
                #[target_feature(enable = $features)]
                fn dot_words($acc: $v, $a: $v, $b: $v) -> $v {
                    $dot
                }
            }

            impl Dot for $name {
                type V = $v;
                const N: usize = $n;

                #[inline(always)]
                fn splat(self, x: i32) -> $v {
                    // SAFETY: `self` was made where the CPU has these instructions.
                    unsafe { $splat(x) }
                }
                #[inline(always)]
                fn load(self, x: &[i32]) -> $v {
                    let x: &[i32; $n] = x.first_chunk().expect("a register's words");
                    // SAFETY: `x` is a register's width of readable bytes, the load takes any alignment, and
                    // `self` was made where the CPU has these instructions.
                    unsafe { $load(x.as_ptr().cast()) }
                }
                #[inline(always)]
                fn store(self, y: &mut [i32], v: $v) {
                    let y: &mut [i32; $n] = y.first_chunk_mut().expect("a register's words");
                    // SAFETY: `y` is a register's width of writable bytes, the store takes any alignment, and
                    // `self` was made where the CPU has these instructions.
                    unsafe { $store(y.as_mut_ptr().cast(), v) }
                }
                #[inline(always)]
                fn dot(self, acc: $v, a: $v, b: $v) -> $v {
                    // SAFETY: `self` was made where the CPU has these instructions.
                    unsafe { Self::dot_words(acc, a, b) }
                }
            }
        };
    }

    dot!(
        Avx2, "avx2,fma", __m256i, 8, _mm256_set1_epi32 _mm256_loadu_si256 _mm256_storeu_si256,
        |acc, a, b| _mm256_add_epi32(acc, _mm256_madd_epi16(a, b))
    );
    dot!(
        Avx512, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl", __m512i, 16,
        _mm512_set1_epi32 _mm512_loadu_si512 _mm512_storeu_si512,
        |acc, a, b| _mm512_add_epi32(acc, _mm512_madd_epi16(a, b))
    );
    dot!(
        Avx512Vnni, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni", __m512i, 16,
        _mm512_set1_epi32 _mm512_loadu_si512 _mm512_storeu_si512,
        |acc, a, b| _mm512_dpbusd_epi32(acc, a, b)
    );

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(block: &Block) {
        run::<_, 6>(Avx2::new(), block);
    }

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn avx512(block: &Block) {
        run::<_, 8>(Avx512::new(), block);
    }

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn avx512_vnni(block: &Block) {
        run::<_, 8>(Avx512Vnni::new(), block);
    }
}
