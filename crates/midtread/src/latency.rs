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

/// How long one node takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeLatency {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// Types and sizes of its inputs.
    pub inputs: String,
    /// The shortest time, in milliseconds.
    pub ms: f64,
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
    let n_runs = n_runs.max(1);
    let mut times = pool(n_threads)?.install(|| {
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

/// The shortest time of each node in `n_runs` runs, in the order in which they ran.
pub fn profile(
    interpreter: &Interpreter,
    inputs: &[(String, Tensor)],
    n_runs: usize,
    n_threads: usize,
) -> Result<Vec<NodeLatency>, Error> {
    pool(n_threads)?.install(|| {
        let mut shortest: Vec<NodeLatency> = Vec::new();
        for _ in 0..n_runs.max(1) {
            let (_, times) = interpreter.run_profiled(inputs.to_vec()).map_err(Error::Run)?;
            for (i, time) in times.into_iter().enumerate() {
                let ms = time.time.as_secs_f64() * 1e3;
                match shortest.get_mut(i) {
                    Some(node) => node.ms = node.ms.min(ms),
                    None => shortest.push(NodeLatency {
                        node: time.node,
                        op_type: time.op_type,
                        inputs: time.inputs,
                        ms,
                    }),
                }
            }
        }
        Ok(shortest)
    })
}

fn pool(n_threads: usize) -> Result<rayon::ThreadPool, Error> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(n_threads)
        .build()
        .map_err(|e| Error::Options(format!("{n_threads} threads cannot be had: {e}")))
}
