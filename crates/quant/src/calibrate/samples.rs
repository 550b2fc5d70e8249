//! Samples, and working through them on several threads.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use midtread_graph::Sample;

/// Where samples come from: read when their turn comes, from any thread.
pub trait Samples: Sync {
    /// The samples' names, each different.
    fn names(&self) -> Vec<String>;
    /// Reads one. The error says which, by its name or its file's.
    fn sample(&self, i: usize) -> Result<Sample, Box<dyn std::error::Error + Send + Sync>>;
}

/// How the samples of a data set are worked through: each by one of several threads, which have a pool of one thread
/// each, so that the kernels they call do not share their work out again.
pub struct Pass<'a> {
    /// How many samples are worked on at once.
    pub n_threads: usize,
    /// Called after each sample with how many are done.
    pub progress: &'a (dyn Fn(usize) + Sync),
    /// Looked at between samples: once it is set, the pass ends.
    pub interrupted: &'a AtomicBool,
}

impl Pass<'_> {
    /// Calls `work` for each of `n` samples with what `start` made for its thread, and returns the latter, one for each
    /// thread. Which samples a thread has worked on, and in which order, is left to chance.
    ///
    /// After a failure the threads finish the samples they are at; of several failures the first sample's is returned.
    /// `Err(None)` says that the pass was interrupted.
    pub fn run<S: Send, E: Send>(
        &self,
        n: usize,
        start: impl Fn() -> S + Sync,
        work: impl Fn(usize, &mut S) -> Result<(), E> + Sync,
    ) -> Result<Vec<S>, Option<E>> {
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let failed: Mutex<Option<(usize, E)>> = Mutex::new(None);
        let worker = || {
            let mut state = start();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n || self.interrupted.load(Ordering::Relaxed) {
                    return state;
                }
                if let Err(error) = work(i, &mut state) {
                    next.store(n, Ordering::Relaxed);
                    let mut failed = failed.lock().expect("no panic while the lock is held");
                    if failed.as_ref().is_none_or(|(at, _)| i < *at) {
                        *failed = Some((i, error));
                    }
                    return state;
                }
                (self.progress)(done.fetch_add(1, Ordering::Relaxed) + 1);
            }
        };
        let states = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.n_threads.clamp(1, n.max(1)))
                .map(|_| {
                    scope.spawn(|| match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
                        Ok(pool) => pool.install(worker),
                        // The system has no thread to spare: this one then.
                        Err(_) => worker(),
                    })
                })
                .collect();
            let join = |worker: std::thread::ScopedJoinHandle<'_, S>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().map(join).collect()
        });
        if let Some((_, error)) = failed.into_inner().expect("no panic while the lock is held") {
            return Err(Some(error));
        }
        if self.interrupted.load(Ordering::Relaxed) { Err(None) } else { Ok(states) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass<'a>(n_threads: usize, interrupted: &'a AtomicBool) -> Pass<'a> {
        Pass { n_threads, progress: &|_| {}, interrupted }
    }

    #[test]
    fn each_sample_is_worked_on_once_and_every_one_is_counted() {
        let never = AtomicBool::new(false);
        for (n, n_threads) in [(0, 3), (1, 3), (100, 1), (100, 7)] {
            let most = AtomicUsize::new(0);
            let progress = |done| {
                most.fetch_max(done, Ordering::Relaxed);
            };
            let pass = Pass { progress: &progress, ..pass(n_threads, &never) };
            let work = |i, own: &mut Vec<usize>| {
                own.push(i);
                Ok::<(), ()>(())
            };
            let parts = pass.run(n, Vec::new, work).unwrap();
            assert_eq!(parts.len(), n_threads.min(n.max(1)));
            let mut all = parts.concat();
            all.sort_unstable();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
            assert_eq!(most.into_inner(), n);
        }
    }

    #[test]
    fn the_first_sample_s_failure_is_told_and_no_new_one_is_begun() {
        let never = AtomicBool::new(false);
        // Both threads are at work before either fails, and the later sample's failure is noted first, most likely.
        let both = std::sync::Barrier::new(2);
        let begun = AtomicUsize::new(0);
        let result = pass(2, &never).run(
            100,
            || (),
            |i, ()| {
                begun.fetch_add(1, Ordering::Relaxed);
                both.wait();
                if i == 0 {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
                Err::<(), _>(i)
            },
        );
        assert_eq!(result, Err(Some(0)));
        assert_eq!(begun.into_inner(), 2);
    }

    #[test]
    fn an_interrupted_pass_ends_before_the_next_sample() {
        let interrupted = AtomicBool::new(false);
        let result = pass(1, &interrupted).run(
            100,
            || 0,
            |i, n| {
                *n += 1;
                interrupted.store(i == 2, Ordering::Relaxed);
                assert!(i <= 2);
                Ok::<(), ()>(())
            },
        );
        assert_eq!(result, Err(None));
    }
}
