//! Splitting work over the threads of the rayon pool that the caller is in.

use std::cell::RefCell;
use std::marker::PhantomData;

/// Runs `task(0)`, ..., `task(n_tasks - 1)`, on one thread when the pool has one or when all of them together cost
/// less than waking another thread. `cost` is the estimated work of all tasks, in nanoseconds.
pub(crate) fn for_each_task(n_tasks: usize, cost: usize, task: impl Fn(usize) + Sync) {
    if n_tasks <= 1 || cost < 2 * MIN_TASK_NS || rayon::current_num_threads() == 1 {
        (0..n_tasks).for_each(task);
        return;
    }
    use rayon::iter::{IntoParallelIterator, ParallelIterator};
    (0..n_tasks).into_par_iter().for_each(&task);
}

/// How many tasks to cut work of `cost` nanoseconds into: one for one thread, and otherwise a few for each thread
/// so that none waits long for the last, but none shorter than is worth a thread's while.
pub(crate) fn n_tasks(cost: usize) -> usize {
    match rayon::current_num_threads() {
        1 => 1,
        n_threads => (cost / MIN_TASK_NS).clamp(1, 4 * n_threads),
    }
}

/// Below this, handing a task to another thread costs about as much as doing it.
const MIN_TASK_NS: usize = 10_000;

/// The half-open range that task `i` of `n_tasks` has of `n_items`: as even as can be, in order.
pub(crate) fn share(n_items: usize, n_tasks: usize, i: usize) -> std::ops::Range<usize> {
    n_items * i / n_tasks..n_items * (i + 1) / n_tasks
}

/// Runs `f` on about equal pieces of `out`, each a multiple of `unit` elements, with the index of its first element.
/// `unit_cost` is the work of a unit in nanoseconds.
pub(crate) fn for_each_chunk<T: Send>(
    out: &mut [T],
    unit: usize,
    unit_cost: f32,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let n_units = if unit == 0 { 0 } else { out.len().div_ceil(unit) };
    let cost = (n_units as f32 * unit_cost) as usize;
    let n_tasks = n_tasks(cost).min(n_units);
    if n_tasks <= 1 {
        if !out.is_empty() {
            f(0, out);
        }
        return;
    }
    use rayon::iter::{IndexedParallelIterator, ParallelIterator};
    use rayon::slice::ParallelSliceMut;
    let len = n_units.div_ceil(n_tasks) * unit;
    out.par_chunks_mut(len).enumerate().for_each(|(i, chunk)| f(i * len, chunk));
}

/// A slice that several tasks write to, each its own elements.
pub(crate) struct Disjoint<'a, T> {
    ptr: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out `&mut [T]` to other threads, which `T: Send` allows; that no two overlap is what the caller of
// `slice` promises.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    ///
    /// While the result lives, no other result of this function has an element in common with it.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the caller promises that the results do not overlap")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "a tile is inside the output");
        // SAFETY: the elements are within the slice by the line above, so the pointer stays in bounds.
        let first = unsafe { self.ptr.add(start) };
        // SAFETY: they are initialized and borrowed for `'a`, and nobody else has them by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(first, len) }
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` floats of scratch memory, whose contents are whatever was there before. Nested calls get
/// different memory. Each thread keeps its scratch for the next call.
pub(crate) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < len + 15 {
        buffer.resize(len + 15, 0.0);
    }
    // On a cache line's border, so that no vector load straddles two lines.
    let start = buffer.as_ptr().align_offset(64).min(15);
    let result = f(&mut buffer[start..start + len]);
    SCRATCH.with_borrow_mut(|free| free.push(buffer));
    result
}
