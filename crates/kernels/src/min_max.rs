//! The smallest and largest element of a slice, and what is not a number in it.

use alloc::vec::Vec;

use crate::autovec::autovec;
use crate::variant::{VariantInfo, describe, select};

/// The rows of `variants()` for this module.
pub(crate) fn variants() -> Vec<VariantInfo> {
    describe("min_max::min_max", SCAN)
}

/// The range of the finite elements, and how many elements are of which kind.
///
/// Exact, and the same for any split of the elements into slices whose extremes are merged. The
/// zero of a bound is +0.0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extremes {
    /// The smallest finite element; infinity when there is none.
    pub min: f32,
    /// The largest finite element; minus infinity when there is none.
    pub max: f32,
    /// Elements that are finite.
    pub n_finite: u64,
    /// Elements that are NaN.
    pub n_nan: u64,
    /// Elements that are infinity or minus infinity.
    pub n_infinite: u64,
}

impl Default for Extremes {
    /// Those of no elements.
    fn default() -> Self {
        Self { min: f32::INFINITY, max: f32::NEG_INFINITY, n_finite: 0, n_nan: 0, n_infinite: 0 }
    }
}

impl Extremes {
    /// The smallest and the largest finite element, if there is one.
    pub fn range(&self) -> Option<(f32, f32)> {
        (self.n_finite != 0).then_some((self.min, self.max))
    }

    /// Elements of every kind.
    pub fn n(&self) -> u64 {
        self.n_finite + self.n_nan + self.n_infinite
    }

    /// The extremes of both.
    pub fn merge(self, other: Self) -> Self {
        Self {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            n_finite: self.n_finite + other.n_finite,
            n_nan: self.n_nan + other.n_nan,
            n_infinite: self.n_infinite + other.n_infinite,
        }
    }
}

/// The extremes of `src`.
pub fn min_max(src: &[f32]) -> Extremes {
    let run = select(SCAN);
    let mut extremes = Extremes::default();
    for block in src.chunks(BLOCK) {
        let (min, max, max_abs_bits) = run(block);
        extremes = extremes.merge(if max_abs_bits < INFINITY_BITS {
            Extremes { min, max, n_finite: block.len() as u64, ..Extremes::default() }
        } else {
            count_kinds(block)
        });
    }
    extremes
}

/// Elements that are looked at again one by one when one of them is not finite.
const BLOCK: usize = 4096;

/// The bits of infinity. Those of a NaN, without its sign, are more, and those of a finite number fewer.
pub(crate) const INFINITY_BITS: u32 = 0x7F80_0000;

/// [`min_max`] of a slice that may hold anything.
pub(crate) fn count_kinds(src: &[f32]) -> Extremes {
    let mut extremes = Extremes::default();
    for &x in src {
        if x.is_finite() {
            extremes.min = if x < extremes.min { x } else { extremes.min };
            extremes.max = if extremes.max < x { x } else { extremes.max };
            extremes.n_finite += 1;
        } else if x.is_nan() {
            extremes.n_nan += 1;
        } else {
            extremes.n_infinite += 1;
        }
    }
    // -0.0 becomes 0.0.
    extremes.min += 0.0;
    extremes.max += 0.0;
    extremes
}

autovec!(SCAN, fn(src: &[f32]) -> (f32, f32, u32) = scan);

/// Elements handled side by side: four registers of AVX2, two of AVX-512.
pub(crate) const LANES: usize = 32;

/// Smallest, largest, and the largest bits without the sign. The first two mean nothing unless the
/// third says that all are finite.
#[inline(always)]
fn scan(src: &[f32]) -> (f32, f32, u32) {
    let mut min = [f32::INFINITY; LANES];
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut max_abs_bits = [0_u32; LANES];
    let (rows, rest) = src.as_chunks::<LANES>();
    for row in rows {
        for i in 0..LANES {
            let x = row[i];
            min[i] = if x < min[i] { x } else { min[i] };
            max[i] = if max[i] < x { x } else { max[i] };
            max_abs_bits[i] = max_abs_bits[i].max(x.to_bits() & !(1 << 31));
        }
    }
    for &x in rest {
        min[0] = if x < min[0] { x } else { min[0] };
        max[0] = if max[0] < x { x } else { max[0] };
        max_abs_bits[0] = max_abs_bits[0].max(x.to_bits() & !(1 << 31));
    }
    for i in 1..LANES {
        min[0] = if min[i] < min[0] { min[i] } else { min[0] };
        max[0] = if max[0] < max[i] { max[i] } else { max[0] };
        max_abs_bits[0] = max_abs_bits[0].max(max_abs_bits[i]);
    }
    // -0.0 becomes 0.0.
    (min[0] + 0.0, max[0] + 0.0, max_abs_bits[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 * 1e-3 - 7000.0
            })
            .collect()
    }

    #[test]
    fn every_variant_finds_the_extremes_wherever_they_are() {
        for len in 1..=130 {
            let src = random(len, 9);
            for at in 0..len {
                let mut src = src.clone();
                src[at] = -1e9;
                src[(at + 1) % len] = 1e9;
                let want = (src.iter().copied().fold(f32::INFINITY, f32::min), 1e9);
                for variant in SCAN {
                    let Some(run) = variant.get() else { continue };
                    let (min, max, bits) = run(&src);
                    assert_eq!((min, max), want, "{} of {src:?}", variant.name);
                    assert_eq!(bits, 1e9_f32.to_bits());
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_counted_and_left_out_of_the_range() {
        for len in [1, 5, 33, 130, 5000] {
            for at in [0, len / 2, len - 1] {
                for (bad, n_nan, n_infinite) in [
                    (f32::NAN, 1, 0),
                    (-f32::NAN, 1, 0),
                    (f32::INFINITY, 0, 1),
                    (f32::NEG_INFINITY, 0, 1),
                ] {
                    let mut src = random(len, 3);
                    let mut finite = src.clone();
                    finite.remove(at);
                    src[at] = bad;
                    let got = min_max(&src);
                    assert_eq!((got.n_nan, got.n_infinite), (n_nan, n_infinite));
                    assert_eq!(got.range(), min_max(&finite).range(), "{len} {at} {bad}");
                    assert_eq!(got.n(), len as u64);
                }
            }
        }
        assert_eq!(min_max(&[]).range(), None);
        assert_eq!(min_max(&[f32::NAN, f32::INFINITY]).range(), None);
    }

    #[test]
    fn bounds_of_zero_are_positive_whatever_the_order() {
        for src in [[0.0, -0.0], [-0.0, 0.0], [-0.0, -0.0]] {
            let (min, max) = min_max(&src).range().unwrap();
            assert_eq!((min.to_bits(), max.to_bits()), (0, 0));
            let (min, max) = min_max(&[src[0], src[1], f32::NAN]).range().unwrap();
            assert_eq!((min.to_bits(), max.to_bits()), (0, 0));
        }
    }

    #[test]
    fn merging_halves_gives_the_whole() {
        let mut src = random(10_000, 4);
        src[77] = f32::NAN;
        src[9_000] = f32::INFINITY;
        for at in [0, 1, 4096, 5000, 10_000] {
            assert_eq!(min_max(&src[..at]).merge(min_max(&src[at..])), min_max(&src));
            assert_eq!(min_max(&src[at..]).merge(min_max(&src[..at])), min_max(&src));
        }
    }
}
