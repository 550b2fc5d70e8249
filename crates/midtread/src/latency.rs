//! How long a model takes.

use std::time::Instant;

use midtread_exec::Interpreter;
use midtread_graph::{Model, Tensor};
use serde::Serialize;

use crate::error::Error;

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
}

/// Runs the model `n_runs` times on the same inputs, after two runs that are not counted.
pub fn latency(
    model: &Model,
    inputs: &[(String, Tensor)],
    n_runs: usize,
    n_threads: usize,
) -> Result<Latency, Error> {
    let interpreter =
        Interpreter::new(model, midtread_exec::Options { max_bytes: None }).map_err(Error::Run)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(n_threads)
        .build()
        .map_err(|e| Error::Options(format!("{n_threads} threads cannot be had: {e}")))?;
    let n_runs = n_runs.max(1);
    let mut times = pool.install(|| {
        let once = || {
            let inputs = inputs.to_vec();
            let start = Instant::now();
            interpreter.run(inputs).map_err(Error::Run)?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        };
        once().and_then(|_| once())?;
        (0..n_runs).map(|_| once()).collect::<Result<Vec<f64>, Error>>()
    })?;
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    Ok(Latency { runs: n_runs, threads: n_threads, min: times[0], median: at(0.5), p90: at(0.9) })
}
