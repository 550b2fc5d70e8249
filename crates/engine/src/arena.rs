//! One piece of memory for all values of a run.

use alloc::{format, vec::Vec};
use core::ops::Range;

use crate::fault::Fault;

/// A cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// Bytes of a line; what every value begins at a multiple of.
pub(crate) const LINE: usize = 64;

/// Bytes at a cache line's border.
#[derive(Default)]
pub(crate) struct Arena(Vec<Line>);

impl Arena {
    /// Room for `n_bytes`, which hold what they held before, or zeros. Never gives memory back.
    pub(crate) fn grow(&mut self, n_bytes: usize) -> Result<(), Fault> {
        let lines = n_bytes.div_ceil(LINE);
        if self.0.len() < lines {
            self.0.try_reserve_exact(lines - self.0.len()).map_err(|_| no_memory(n_bytes))?;
            self.0.resize(lines, Line([0; LINE]));
        }
        Ok(())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.0.len() * LINE
    }
}

pub(crate) fn no_memory(n_bytes: usize) -> Fault {
    Fault::new(format!("{n_bytes} bytes cannot be had"))
}

/// A value's bytes and the steps during which it is needed, from the one that makes it to the last that reads it.
pub(crate) struct Life {
    pub(crate) n_bytes: usize,
    pub(crate) steps: Range<usize>,
}

/// Where each value lies, and how many bytes that takes: the largest first, each at the lowest place that no value of
/// the same time has.
pub(crate) fn plan(lives: &[Life]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..lives.len()).filter(|&i| 0 < lives[i].n_bytes).collect();
    order.sort_by_key(|&i| (core::cmp::Reverse(lives[i].n_bytes), lives[i].steps.start));
    let (mut offsets, mut total) = (alloc::vec![0; lives.len()], 0);
    // Those that have a place, by place.
    let mut placed: Vec<usize> = Vec::new();
    for i in order {
        let (life, mut at) = (&lives[i], 0);
        let size = |i: usize| lives[i].n_bytes.next_multiple_of(LINE);
        for &j in &placed {
            let other = &lives[j].steps;
            let is_same_time = other.start < life.steps.end && life.steps.start < other.end;
            if is_same_time {
                if at + size(i) <= offsets[j] {
                    break;
                }
                at = at.max(offsets[j] + size(j));
            }
        }
        offsets[i] = at;
        total = total.max(at + size(i));
        let next = placed.partition_point(|&j| offsets[j] <= at);
        placed.insert(next, i);
    }
    (offsets, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_one_time_do_not_overlap_and_others_share() {
        let life = |n_bytes, steps| Life { n_bytes, steps };
        let lives = [
            life(1000, 0..2),
            life(70, 1..3),
            life(1000, 2..4),
            life(500, 3..5),
            life(0, 0..9),
            life(64, 0..5),
        ];
        let (offsets, total) = plan(&lives);
        for i in 0..lives.len() {
            for j in 0..i {
                let [a, b] = [i, j].map(|i| offsets[i]..offsets[i] + lives[i].n_bytes);
                let [s, t] = [i, j].map(|i| &lives[i].steps);
                let is_same_time = s.start < t.end && t.start < s.end;
                let overlap = a.start < b.end && b.start < a.end;
                assert!(!(is_same_time && overlap), "{i} and {j}: {offsets:?}");
            }
        }
        assert!(total < 1024 + 1024, "the two large ones share a place: {total}");
    }
}
