//! The calibration histogram: how many elements have which leading 16 bits.
//!
//! The key of an `f32` is the upper half of its bits: sign, exponent and 7 bits of mantissa, so 128
//! bins an octave and a bin is at most 1/128 of its value wide. No logarithm is taken, bins are the
//! same for every tensor, and counts are integers: adding slices in any order, on any number of
//! threads, and merging gives the same histogram to the bit. The range is exact beside it.
//!
//! Architecture invariant: a summary of a tensor does not depend on how its elements were split into slices.

use std::cell::RefCell;

use crate::autovec::autovec;
use crate::min_max::{Extremes, INFINITY_BITS, LANES, count_kinds};
use crate::variant::{VariantInfo, describe, select};

/// The rows of `variants()` for this module.
pub(crate) fn variants() -> Vec<VariantInfo> {
    describe("histogram::summarize", SCAN)
}

/// The bin of `x`: the upper 16 bits, those of 0.0 for -0.0.
pub fn key(x: f32) -> u16 {
    ((x + 0.0).to_bits() >> 16) as u16
}

/// The values whose key is `key`, from the one nearest to zero to the one farthest from it. Both
/// have the key's sign; for a key of the largest exponent they are not finite.
pub fn bounds(key: u16) -> (f32, f32) {
    let bits = u32::from(key) << 16;
    (f32::from_bits(bits), f32::from_bits(bits | 0xFFFF))
}

/// Bins of one sign and exponent.
const PAGE: usize = 128;
const N_PAGES: usize = 65536 / PAGE;
/// The exponent of infinities and NaN, among the pages of one sign.
const NOT_FINITE: usize = 255;

/// Counts by key. Holds memory for the octaves that occur only: 1 KiB each, and rarely more than fifty occur.
#[derive(Clone, Debug)]
pub struct Counts {
    pages: Box<[Option<Box<[u64; PAGE]>>; N_PAGES]>,
}

impl Default for Counts {
    fn default() -> Self {
        Self { pages: Box::new([const { None }; N_PAGES]) }
    }
}

impl PartialEq for Counts {
    /// Equal counts; a page of zeros equals no page.
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Counts {
    /// How many elements have this key.
    pub fn get(&self, key: u16) -> u64 {
        let key = usize::from(key);
        self.pages[key / PAGE].as_ref().map_or(0, |page| page[key % PAGE])
    }

    /// Adds `n` elements of this key.
    pub fn add(&mut self, key: u16, n: u64) {
        let key = usize::from(key);
        self.page(key / PAGE)[key % PAGE] += n;
    }

    /// The keys that occur and how many elements have them, from the most negative value to the largest.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u64)> {
        let negative = (0x8000..=0xFFFF_u16).rev();
        let page = |key: u16| self.pages[usize::from(key) / PAGE].as_ref();
        negative
            .chain(0..0x8000)
            .filter_map(move |key| Some((key, page(key)?[usize::from(key) % PAGE])))
            .filter(|(_, n)| *n != 0)
    }

    /// The number of elements.
    pub fn total(&self) -> u64 {
        self.pages.iter().flatten().flat_map(|page| page.iter()).sum()
    }

    /// Adds what `other` has counted.
    pub fn merge(&mut self, other: &Self) {
        for (at, page) in other.pages.iter().enumerate() {
            let Some(page) = page else { continue };
            for (mine, n) in self.page(at).iter_mut().zip(page.iter()) {
                *mine += n;
            }
        }
    }

    /// Bytes of memory held.
    pub fn n_bytes(&self) -> usize {
        let n_pages = self.pages.iter().flatten().count();
        size_of_val(&*self.pages) + n_pages * size_of::<[u64; PAGE]>()
    }

    fn page(&mut self, at: usize) -> &mut [u64; PAGE] {
        self.pages[at].get_or_insert_with(|| Box::new([0; PAGE]))
    }
}

/// What one pass over a tensor leaves behind: its exact range and its histogram.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Range, and how many elements are not finite.
    pub extremes: Extremes,
    /// The finite elements.
    pub counts: Counts,
}

impl Summary {
    /// Adds what `other` has seen.
    pub fn merge(&mut self, other: &Self) {
        self.extremes = self.extremes.merge(other.extremes);
        self.counts.merge(&other.counts);
    }
}

/// Adds the elements of `src` to `summary`, in one pass over the memory.
///
/// 0.6 ns an element on one core of a 2.45 GHz EPYC of the Zen 3 generation, for 100,000 normally distributed
/// elements; about 2 ns in slices shorter than 4,096, which are counted without the tables of the long ones.
pub fn summarize(src: &[f32], summary: &mut Summary) {
    if src.len() < LONG {
        let found = select(SCAN)(src);
        summary.extremes = summary.extremes.merge(found.extremes(src));
        for x in src {
            if x.is_finite() {
                summary.counts.add(key(*x), 1);
            }
        }
        return;
    }
    // A table's counters are `u32`.
    for part in src.chunks(1 << 30) {
        TABLES.with_borrow_mut(|tables| tables.summarize(part, summary));
    }
}

/// Counts the elements of `src` by key: [`summarize`] without the range.
pub fn add(src: &[f32], counts: &mut Counts) {
    let mut summary = Summary { extremes: Extremes::default(), counts: std::mem::take(counts) };
    summarize(src, &mut summary);
    *counts = summary.counts;
}

/// From here on, counting in tables and collecting them costs less than counting in pages.
const LONG: usize = 4096;

/// Neighbors are counted in different tables: an increment waits for the one before it when both
/// are of one counter, and activations have runs of equal elements.
const N_TABLES: usize = 4;

/// Counters from one table to the next: not a multiple of 4 KiB, or the CPU would take counters of
/// one key for one address when it checks whether a load has to wait for a store.
const TABLE: usize = 65536 + 80;

/// Elements scanned and then counted: 16 KiB, which the first-level cache holds in between.
const BLOCK: usize = 4096;

thread_local! {
    static TABLES: RefCell<Tables> = const { RefCell::new(Tables(Vec::new())) };
}

/// Counters that are all 0 between calls.
struct Tables(Vec<u32>);

impl Tables {
    fn summarize(&mut self, src: &[f32], summary: &mut Summary) {
        self.0.resize(N_TABLES * TABLE, 0);
        let scan = select(SCAN);
        let mut seen = Magnitudes::default();
        for block in src.chunks(BLOCK) {
            let found = scan(block);
            summary.extremes = summary.extremes.merge(found.extremes(block));
            seen.merge(found.magnitudes);
            self.count(block);
        }
        self.collect(seen, &mut summary.counts);
    }

    fn count(&mut self, block: &[f32]) {
        let [a, b, c, d] = self.tables();
        let (fours, rest) = block.as_chunks::<N_TABLES>();
        // `as u16` makes the index one that the tables have.
        let key = |x: f32| usize::from((x.to_bits() >> 16) as u16);
        for x in fours {
            a[key(x[0])] += 1;
            b[key(x[1])] += 1;
            c[key(x[2])] += 1;
            d[key(x[3])] += 1;
        }
        for x in rest {
            a[key(*x)] += 1;
        }
    }

    fn tables(&mut self) -> [&mut [u32; 65536]; N_TABLES] {
        let mut rest = &mut self.0[..];
        std::array::from_fn(|_| {
            let (table, later) = std::mem::take(&mut rest).split_at_mut(TABLE);
            rest = later;
            table.first_chunk_mut().expect("a table")
        })
    }

    /// Moves the counts to `counts`. The keys between the smallest and the largest magnitude, of
    /// both signs and of zeros, are all that can have any.
    fn collect(&mut self, seen: Magnitudes, counts: &mut Counts) {
        let mut tables = self.tables();
        // Without a nonzero element `min` is above `max`.
        let first = (seen.min.min(seen.max) >> 16) as usize / PAGE;
        let last = (seen.max >> 16) as usize / PAGE;
        for sign in [0, N_PAGES / 2] {
            for page in (first..=last).chain((first != 0).then_some(0)) {
                let start = (sign + page) * PAGE;
                let mut sums = [0_u32; PAGE];
                for table in &tables {
                    let bins: &[u32; PAGE] = table[start..].first_chunk().expect("a page");
                    for (sum, n) in sums.iter_mut().zip(bins) {
                        *sum += n;
                    }
                }
                if sums == [0; PAGE] {
                    continue;
                }
                for table in tables.each_mut() {
                    table[start..start + PAGE].fill(0);
                }
                if page == NOT_FINITE {
                    continue;
                }
                if sign != 0 && page == 0 {
                    // -0.0 is counted with 0.0. What is left here are the smallest subnormals.
                    sums[0] -= seen.n_negative_zeros;
                }
                if sums != [0; PAGE] {
                    for (total, n) in counts.page(sign + page).iter_mut().zip(sums) {
                        *total += u64::from(n);
                    }
                }
            }
        }
        if seen.n_negative_zeros != 0 {
            counts.add(0, u64::from(seen.n_negative_zeros));
        }
    }
}

/// What a scan finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scan {
    /// Smallest element. Means nothing unless all are finite.
    min: f32,
    /// Largest element. Means nothing unless all are finite.
    max: f32,
    magnitudes: Magnitudes,
}

impl Scan {
    /// Those of `src`, in which this was found.
    fn extremes(&self, src: &[f32]) -> Extremes {
        if INFINITY_BITS <= self.magnitudes.max {
            return count_kinds(src);
        }
        let n_finite = src.len() as u64;
        Extremes { min: self.min, max: self.max, n_finite, ..Extremes::default() }
    }
}

/// Magnitudes as bits, which are ordered as the numbers are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Magnitudes {
    /// The largest.
    max: u32,
    /// The smallest that is not 0; all ones when there is none.
    min: u32,
    /// Elements that are -0.0.
    n_negative_zeros: u32,
}

impl Default for Magnitudes {
    fn default() -> Self {
        Self { max: 0, min: u32::MAX, n_negative_zeros: 0 }
    }
}

impl Magnitudes {
    fn merge(&mut self, other: Self) {
        self.max = self.max.max(other.max);
        self.min = self.min.min(other.min);
        self.n_negative_zeros += other.n_negative_zeros;
    }
}

autovec!(SCAN, fn(src: &[f32]) -> Scan = scan);

#[inline(always)]
fn scan(src: &[f32]) -> Scan {
    const SIGN: u32 = 1 << 31;
    let mut min = [f32::INFINITY; LANES];
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut max_abs = [0_u32; LANES];
    // One less than the magnitude, so that 0 wraps to the largest.
    let mut min_abs = [u32::MAX; LANES];
    let mut n_negative_zeros = [0_u32; LANES];
    let (rows, rest) = src.as_chunks::<LANES>();
    for row in rows {
        for i in 0..LANES {
            let x = row[i];
            min[i] = if x < min[i] { x } else { min[i] };
            max[i] = if max[i] < x { x } else { max[i] };
            max_abs[i] = max_abs[i].max(x.to_bits() & !SIGN);
            min_abs[i] = min_abs[i].min((x.to_bits() & !SIGN).wrapping_sub(1));
            n_negative_zeros[i] += u32::from(x.to_bits() == SIGN);
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        min[i] = if x < min[i] { x } else { min[i] };
        max[i] = if max[i] < x { x } else { max[i] };
        max_abs[i] = max_abs[i].max(x.to_bits() & !SIGN);
        min_abs[i] = min_abs[i].min((x.to_bits() & !SIGN).wrapping_sub(1));
        n_negative_zeros[i] += u32::from(x.to_bits() == SIGN);
    }
    for i in 1..LANES {
        min[0] = if min[i] < min[0] { min[i] } else { min[0] };
        max[0] = if max[0] < max[i] { max[i] } else { max[0] };
        max_abs[0] = max_abs[0].max(max_abs[i]);
        min_abs[0] = min_abs[0].min(min_abs[i]);
        n_negative_zeros[0] += n_negative_zeros[i];
    }
    Scan {
        // -0.0 becomes 0.0.
        min: min[0] + 0.0,
        max: max[0] + 0.0,
        magnitudes: Magnitudes {
            max: max_abs[0],
            min: min_abs[0].saturating_add(1),
            n_negative_zeros: n_negative_zeros[0],
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::min_max::min_max;

    /// The histogram by its definition.
    fn by_definition(src: &[f32]) -> BTreeMap<u16, u64> {
        let mut counts = BTreeMap::new();
        for x in src.iter().filter(|x| x.is_finite()) {
            let bits = if *x == 0.0 { 0 } else { x.to_bits() };
            *counts.entry((bits >> 16) as u16).or_default() += 1;
        }
        counts
    }

    fn check(src: &[f32]) {
        let mut summary = Summary::default();
        summarize(src, &mut summary);
        let counted: BTreeMap<u16, u64> = summary.counts.iter().collect();
        assert_eq!(counted, by_definition(src), "{} elements", src.len());
        assert_eq!(summary.extremes, min_max(src));
        assert_eq!(summary.counts.total(), summary.extremes.n_finite);
        let mut alone = Counts::default();
        add(src, &mut alone);
        assert_eq!(alone, summary.counts);
    }

    fn bits(seed: u64) -> impl Iterator<Item = u32> {
        let mut state = seed;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u32
        })
    }

    /// Elements around 1, as an activation's are.
    fn activation(len: usize, seed: u64) -> Vec<f32> {
        bits(seed).map(|b| (b as f32 / u32::MAX as f32 - 0.3).max(0.0) * 6.0).take(len).collect()
    }

    #[test]
    fn long_and_short_slices_are_counted_alike() {
        for len in (0..=70).chain([4095, 4096, 4097, 8192, 8195, 50_001]) {
            check(&activation(len, 1));
            // Every kind of float: NaN, infinities, subnormals.
            check(&bits(2).map(f32::from_bits).take(len).collect::<Vec<_>>());
            // One exponent from the smallest to the largest, so that the first and last page are any.
            for exponent in [0, 1, 100, 254, 255] {
                let src: Vec<f32> = bits(3)
                    .map(|b| f32::from_bits(b & 0x807F_FFFF | exponent << 23))
                    .take(len)
                    .collect();
                check(&src);
            }
        }
    }

    #[test]
    fn zeros_of_both_signs_are_one_bin_and_subnormals_their_own() {
        for len in [10, 5000] {
            for values in [
                &[0.0, -0.0][..],
                &[-0.0],
                &[-0.0, -1e-45],
                &[-0.0, 1.0, -1.0],
                &[-0.0, f32::NAN, f32::NEG_INFINITY, -1e-44, 3.0],
                &[f32::NAN],
            ] {
                let src: Vec<f32> = values.iter().cycle().take(len).copied().collect();
                check(&src);
                let mut counts = Counts::default();
                add(&src, &mut counts);
                let n_zeros = src.iter().filter(|x| **x == 0.0).count() as u64;
                assert_eq!(counts.get(key(0.0)), n_zeros);
                assert_eq!(key(-0.0), key(0.0));
            }
        }
    }

    #[test]
    fn any_split_merged_in_any_order_is_the_whole() {
        let mut src = activation(30_000, 5);
        src[100] = f32::NAN;
        src[20_000] = f32::NEG_INFINITY;
        src.iter_mut().step_by(7).for_each(|x| *x = -*x);
        let mut whole = Summary::default();
        summarize(&src, &mut whole);
        for n in [1, 1000, 4096, 12_345, 29_999] {
            let mut parts: Vec<Summary> = src
                .chunks(n.max(3))
                .map(|part| {
                    let mut summary = Summary::default();
                    summarize(part, &mut summary);
                    summary
                })
                .collect();
            parts.reverse();
            let mut merged = Summary::default();
            parts.iter().for_each(|part| merged.merge(part));
            assert_eq!(merged, whole);
            let mut continued = Summary::default();
            src.chunks(n.max(3)).for_each(|part| summarize(part, &mut continued));
            assert_eq!(continued, whole);
        }
    }

    #[test]
    fn keys_come_in_the_order_of_their_values_and_hold_them() {
        let mut counts = Counts::default();
        let src = [-3.0, -0.5, -1e-45, 0.0, 1e-40, 0.25, 0.2501, 7.0, 3e38, -3e38];
        add(&src, &mut counts);
        let keys: Vec<u16> = counts.iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), 9, "0.25 and 0.2501 share a bin");
        let lows: Vec<f32> = keys.iter().map(|key| bounds(*key).0.min(bounds(*key).1)).collect();
        assert!(lows.windows(2).all(|pair| pair[0] < pair[1]), "{lows:?}");
        for x in src {
            let (near, far) = bounds(key(x));
            assert!(near.abs() <= x.abs() && x.abs() <= far.abs(), "{x} in {near}..{far}");
            assert!(x.abs() < 1e-30 || (far - near).abs() <= x.abs() / 128.0);
        }
    }

    #[test]
    fn memory_follows_the_octaves_that_occur() {
        let mut counts = Counts::default();
        add(&activation(100_000, 6), &mut counts);
        assert!(counts.n_bytes() < 60_000, "{} bytes", counts.n_bytes());
    }

    #[test]
    fn every_variant_scans_alike() {
        let mut n_zeros = 0;
        for len in 0..=130 {
            let specials = [0.0, -0.0, f32::NAN, -1e-45, f32::INFINITY];
            for n_specials in 0..=specials.len() {
                let mut src = activation(len, 7);
                for (x, special) in src.iter_mut().rev().zip(&specials[..n_specials]) {
                    *x = *special;
                }
                let want = scan(&src);
                let negative_zeros = src.iter().filter(|x| x.to_bits() == 1 << 31).count();
                assert_eq!(want.magnitudes.n_negative_zeros as usize, negative_zeros);
                n_zeros += negative_zeros;
                for variant in SCAN {
                    let Some(run) = variant.get() else { continue };
                    assert_eq!(run(&src), want, "{} of {src:?}", variant.name);
                }
            }
        }
        assert!(0 < n_zeros);
    }
}
