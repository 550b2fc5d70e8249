//! Splitting work over the threads of the rayon pool that the caller is in.

use alloc::vec::Vec;
#[cfg(feature = "std")]
use std::cell::RefCell;
use std::marker::PhantomData;

/// Threads of the pool that the caller is in.
fn n_threads() -> usize {
    #[cfg(feature = "std")]
    return rayon::current_num_threads();
    #[cfg(not(feature = "std"))]
    1
}

/// Runs `task(0)`, ..., `task(n_tasks - 1)`, on one thread when the pool has one or when all of them together cost
/// less than waking another thread. `cost` is the estimated work of all tasks, in nanoseconds.
pub(crate) fn for_each_task(n_tasks: usize, cost: usize, task: impl Fn(usize) + Sync) {
    if n_tasks <= 1 || cost < 2 * MIN_TASK_NS || n_threads() == 1 {
        (0..n_tasks).for_each(task);
        return;
    }
    #[cfg(feature = "std")]
    {
        use rayon::iter::{IntoParallelIterator, ParallelIterator};
        (0..n_tasks).into_par_iter().for_each(&task);
    }
}

/// How many tasks to cut work of `cost` nanoseconds into: one for one thread, and otherwise a few for each thread
/// so that none waits long for the last, but none shorter than is worth a thread's while.
pub(crate) fn n_tasks(cost: usize) -> usize {
    match n_threads() {
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
    #[cfg(feature = "std")]
    {
        use rayon::iter::{IndexedParallelIterator, ParallelIterator};
        use rayon::slice::ParallelSliceMut;
        let len = n_units.div_ceil(n_tasks) * unit;
        out.par_chunks_mut(len).enumerate().for_each(|(i, chunk)| f(i * len, chunk));
    }
}

/// Into how many parts to cut the rows and the columns, to have about `n_tasks` tasks.
///
/// Cutting the rows costs packing `b` again, which is about as much work as three tiles of each panel.
pub(crate) fn grid(n_tasks: usize, n_tiles: usize, n_panels: usize) -> (usize, usize) {
    if n_tasks <= 1 {
        return (1, 1);
    }
    (1..=n_tasks.min(n_tiles))
        .map(|n_m| (n_m, n_tasks.div_ceil(n_m).min(n_panels)))
        .min_by_key(|(n_m, n_n)| {
            let task = n_panels.div_ceil(*n_n) * (n_tiles.div_ceil(*n_m) + 3);
            task * (n_m * n_n).div_ceil(n_threads())
        })
        .expect("at least one way")
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

    /// Element `start`, as the first of `len` that are inside the slice. Which of them are the caller's is its affair.
    #[inline(always)]
    pub(crate) fn pointer(&self, start: usize, len: usize) -> *mut T {
        assert!(start <= self.len && len <= self.len - start, "a tile is inside the output");
        self.ptr.wrapping_add(start)
    }
}

/// A type that scratch memory is made of.
pub(crate) trait Scratch: Copy + Default + 'static {
    /// Scratch memory that a thread has free.
    #[cfg(feature = "std")]
    fn free<R>(f: impl FnOnce(&mut Vec<Vec<Self>>) -> R) -> R;
}

macro_rules! scratch {
    ($($ty:ty),*) => {$(
        impl Scratch for $ty {
            #[cfg(feature = "std")]
            fn free<R>(f: impl FnOnce(&mut Vec<Vec<Self>>) -> R) -> R {
                thread_local! {
                    static FREE: RefCell<Vec<Vec<$ty>>> = const { RefCell::new(Vec::new()) };
                }
                FREE.with_borrow_mut(f)
            }
        }
    )*};
}

scratch!(f32, i32, u32, u8);

/// Calls `f` with a vector whose contents are whatever was there before. Nested calls get different ones. Each thread
/// keeps its vectors for the next call.
pub(crate) fn with_vec<T: Scratch, R>(f: impl FnOnce(&mut Vec<T>) -> R) -> R {
    #[cfg(feature = "std")]
    let mut buffer = T::free(Vec::pop).unwrap_or_default();
    #[cfg(not(feature = "std"))]
    let mut buffer = Vec::new();
    let result = f(&mut buffer);
    #[cfg(feature = "std")]
    T::free(|free| free.push(buffer));
    result
}

/// Calls `f` with `len` elements of scratch memory, on a cache line's border, so that no vector load straddles two
/// lines. Its contents are whatever was there before.
pub(crate) fn with_scratch<T: Scratch, R>(len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    let room = 64 / size_of::<T>() - 1;
    with_vec(|buffer: &mut Vec<T>| {
        if buffer.len() < len + room {
            buffer.resize(len + room, T::default());
        }
        let start = buffer.as_ptr().align_offset(64).min(room);
        f(&mut buffer[start..start + len])
    })
}
