//! How long a model takes.

use std::time::Instant;

use midtread_graph::Tensor;
use serde::Serialize;

use crate::{error::Error, runtime::Runner};

/// Times of single runs in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// How many runs.
    pub runs: usize,
    /// Threads that one run may use.
    pub threads: usize,
    /// Shortest.
    pub min: f64,
    /// Half of the runs took less.
    pub median: f64,
    /// Nine of ten took less.
    pub p90: f64,
    /// Ninety-nine of a hundred took less.
    pub p99: f64,
    /// Runs a second, one after the other.
    pub per_second: f64,
}

/// How long one node takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeLatency {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// Types and sizes of its inputs, or how the engine computes it.
    pub inputs: String,
    /// Whether it computes on codes.
    pub is_integer: bool,
    /// The shortest time, in milliseconds.
    pub ms: f64,
}

impl Latency {
    /// Of single runs that took so many milliseconds each, at least one.
    pub fn of(mut times: Vec<f64>, threads: usize) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        Self {
            runs: times.len(),
            threads,
            min: times[0],
            median: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            per_second: 1e3 * times.len() as f64 / times.iter().sum::<f64>(),
        }
    }
}

/// Runs the model `n_runs` times on the same inputs, after two runs that are not counted: milliseconds of each.
pub fn run_times(
    runner: &Runner,
    inputs: &[(String, Tensor)],
    n_runs: usize,
    n_threads: usize,
) -> Result<Vec<f64>, Error> {
    pool(n_threads)?.install(|| {
        let once = || {
            let inputs = inputs.to_vec();
            let start = Instant::now();
            runner.run(inputs)?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        };
        once().and_then(|_| once())?;
        (0..n_runs.max(1)).map(|_| once()).collect()
    })
}

/// What [`run_times`] of `n_runs` amount to.
pub fn latency(
    runner: &Runner,
    inputs: &[(String, Tensor)],
    n_runs: usize,
    n_threads: usize,
) -> Result<Latency, Error> {
    Ok(Latency::of(run_times(runner, inputs, n_runs, n_threads)?, n_threads))
}

/// The shortest time of each node in `n_runs` runs, in the order in which they ran.
pub fn profile(
    runner: &Runner,
    inputs: &[(String, Tensor)],
    n_runs: usize,
    n_threads: usize,
) -> Result<Vec<NodeLatency>, Error> {
    pool(n_threads)?.install(|| {
        let mut shortest: Vec<NodeLatency> = Vec::new();
        for _ in 0..n_runs.max(1) {
            let times = runner.run_profiled(inputs.to_vec())?;
            for (i, time) in times.into_iter().enumerate() {
                let ms = time.time.as_secs_f64() * 1e3;
                match shortest.get_mut(i) {
                    Some(node) => node.ms = node.ms.min(ms),
                    None => shortest.push(NodeLatency {
                        node: time.node,
                        op_type: time.op_type,
                        inputs: time.detail,
                        is_integer: time.is_integer,
                        ms,
                    }),
                }
            }
        }
        Ok(shortest)
    })
}

/// What all threads together do at most a second: operations on 8-bit codes and on `f32`. `None` where it is not known.
pub fn peak(n_threads: usize) -> Result<Option<[f64; 2]>, Error> {
    let peaks = pool(n_threads)?.broadcast(|_| midtread_kernels::peak::measure());
    let sum = |of: fn(&midtread_kernels::peak::Peak) -> f64| {
        peaks.iter().map(|peak| peak.as_ref().map(of)).sum::<Option<f64>>()
    };
    Ok(sum(|peak| peak.int8).zip(sum(|peak| peak.float)).map(<[f64; 2]>::from))
}

fn pool(n_threads: usize) -> Result<rayon::ThreadPool, Error> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(n_threads)
        .build()
        .map_err(|e| Error::Options(format!("{n_threads} threads cannot be had: {e}")))
}
