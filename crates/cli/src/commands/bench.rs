//! `midtread bench`.

use std::{
    num::NonZero,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Args;
use midtread::{
    Loaded, Requantize, Runner, Runtime,
    cost::multiplications,
    graph::Tensor,
    latency::{Latency, NodeLatency, peak, profile, run_times},
    peer::{OnnxRuntime, Session},
};
use serde_json::{Value, json};

use crate::{
    context::{Context, Outcome},
    samples,
    table::{size, table},
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread bench model.onnx model.int8.onnx --inputs in.npz
  midtread bench model.int8.onnx --inputs in.npz --runtime engine --thread-counts 1,2,4
  midtread bench model.int8.onnx --inputs in.npz --runtime engine --profile
  midtread bench model.onnx model.int8.onnx --inputs in.npz --python venv/bin/python --memory

ONNX Runtime is timed too where --python, or MIDTREAD_PYTHON, or python3 has it. The share of the
peak is that of the multiplications which the model's convolutions and products ask for, against
what this machine's units do at most (measured): in 8 bits where a model is quantized and the
engine or ONNX Runtime runs it, in f32 otherwise.")]
pub(crate) struct Bench {
    /// The models, or compiled programs, all with the same inputs
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// The inputs, by name: an .npz file, or an .npy file for models with one input
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// What runs them: interpreter, engine
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "interpreter,engine",
          value_parser = super::run::parse_runtime)]
    runtime: Vec<Runtime>,
    /// With how many threads
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1")]
    thread_counts: Vec<NonZero<usize>>,
    /// How often each runs, in rounds of all of them
    #[arg(long, value_name = "N", default_value = "50")]
    repeat: NonZero<usize>,
    /// How the engine comes from sums to codes: float, fixed-point
    #[arg(long, value_name = "HOW", default_value = "float",
          value_parser = super::compile::parse_requantize)]
    requantize: Requantize,
    /// A Python that has onnxruntime, which is then timed too
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// Leave ONNX Runtime out
    #[arg(long, conflicts_with = "python")]
    no_onnxruntime: bool,
    /// Show the time of each operator, and its share of the peak
    #[arg(long)]
    profile: bool,
    /// Show the most memory that a process has which only loads and runs the model
    #[arg(long)]
    memory: bool,
}

/// What runs a model.
enum Side {
    Own(Runtime, Box<Runner>),
    OnnxRuntime(Session),
}

/// One line of the table.
struct Row<'a> {
    model: &'a Opened<'a>,
    side: Side,
    n_threads: usize,
    times: Vec<f64>,
    peak_bytes: Option<u64>,
}

/// A model and what it computes.
struct Opened<'a> {
    path: &'a Path,
    loaded: Loaded,
    inputs: Vec<(String, Tensor)>,
    /// By node; `None` of a compiled program, whose nodes are gone.
    multiplications: Option<std::collections::BTreeMap<String, u64>>,
    is_quantized: bool,
}

impl Opened<'_> {
    fn operations(&self) -> Option<f64> {
        let sum: u64 = self.multiplications.as_ref()?.values().sum();
        Some(2.0 * sum as f64)
    }
}

impl Bench {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        let peer = match self.no_onnxruntime {
            true => None,
            false => OnnxRuntime::find(self.python.as_deref())?,
        };
        let version = peer.as_ref().map_or("", |peer| &peer.version);
        let models =
            self.models.iter().map(|path| self.open(path)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut rows = Vec::new();
        for model in &models {
            for n_threads in self.thread_counts.iter().map(|n| n.get()) {
                let row =
                    |side| Row { model, side, n_threads, times: Vec::new(), peak_bytes: None };
                for &runtime in &self.runtime {
                    let is_program = matches!(model.loaded, Loaded::Program(_));
                    if is_program && runtime == Runtime::Interpreter {
                        continue;
                    }
                    let runtime = runtime.requantizing(self.requantize);
                    let runner = model.loaded.runner(runtime, None)?;
                    rows.push(row(Side::Own(runtime, Box::new(runner))));
                }
                if let (Some(peer), Loaded::Model(_)) = (&peer, &model.loaded) {
                    match peer.start(model.path, &model.inputs, n_threads) {
                        Ok(session) => rows.push(row(Side::OnnxRuntime(session))),
                        Err(e) => context.warn(e.to_string()),
                    }
                }
            }
        }
        self.time(&mut rows, context)?;
        let peaks = self.thread_counts.iter().map(|n| Ok((n.get(), peak(n.get())?)));
        let peaks = peaks.collect::<anyhow::Result<Vec<_>>>()?;
        let peak_of = |n_threads: usize| {
            peaks.iter().find(|(n, _)| *n == n_threads).and_then(|(_, peak)| *peak)
        };
        if self.memory {
            for row in &mut rows {
                if let Side::Own(runtime, _) = &row.side {
                    row.peak_bytes = self.peak_bytes(row.model.path, *runtime, row.n_threads);
                }
            }
        } else {
            rows.iter_mut().for_each(|row| row.peak_bytes = None);
        }
        let runs: Vec<Value> =
            rows.iter().map(|row| row.json(peak_of(row.n_threads), version)).collect();
        let profiles = match self.profile {
            true => self.profiles(&rows, &peak_of)?,
            false => Vec::new(),
        };
        if context.json {
            let peaks: Vec<_> = peaks
                .iter()
                .map(|(n, peak)| {
                    json!({ "threads": n, "int8_ops": peak.map(|p| p[0]), "float_ops": peak.map(|p| p[1]) })
                })
                .collect();
            let mut document = json!({ "runs": runs, "peaks": peaks });
            if self.profile {
                document["profiles"] = profiles.iter().map(Profile::json).collect();
            }
            context.print_json(&document);
            return Ok(Outcome::Done);
        }
        context.say(self.run_table(&runs).trim_end());
        for (n, peak) in &peaks {
            if let Some([int8, float]) = peak {
                context.say(format!(
                    "peak of {n} thread{}: {:.0} G int8, {:.0} G f32 operations a second",
                    if *n == 1 { "" } else { "s" },
                    int8 / 1e9,
                    float / 1e9
                ));
            }
        }
        for profile in &profiles {
            context.say(profile.table().trim_end());
        }
        Ok(Outcome::Done)
    }

    fn open<'a>(&self, path: &'a Path) -> anyhow::Result<Opened<'a>> {
        let loaded = Loaded::open(path)?;
        let inputs = samples::read_inputs_of(&self.inputs, &loaded)?;
        let (multiplications, is_quantized) = match &loaded {
            Loaded::Model(model) => {
                let mut nodes = model.graph.nodes.iter();
                let is_quantized = nodes.any(|node| {
                    node.op_type.contains("Quantize")
                        || node.op_type.starts_with("QLinear")
                        || node.op_type.ends_with("Integer")
                });
                (Some(multiplications(model, &inputs)?), is_quantized)
            }
            Loaded::Program(_) => (None, true),
        };
        Ok(Opened { path, loaded, inputs, multiplications, is_quantized })
    }

    /// In turns, so that what slows the machine for a while slows all of them.
    fn time(&self, rows: &mut [Row<'_>], context: &Context) -> anyhow::Result<()> {
        const ROUNDS: usize = 5;
        let repeat = self.repeat.get().div_ceil(ROUNDS);
        let bar = context.bar("rounds", ROUNDS * rows.len());
        for _ in 0..ROUNDS {
            for row in &mut *rows {
                context.check_interrupted()?;
                match &mut row.side {
                    Side::Own(_, runner) => {
                        let inputs = &row.model.inputs;
                        row.times.extend(run_times(runner, inputs, repeat, row.n_threads)?);
                    }
                    Side::OnnxRuntime(session) => {
                        let (times, peak) = session.times(repeat)?;
                        row.times.extend(times);
                        row.peak_bytes = Some(peak);
                    }
                }
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// The most memory of a process that loads the model and runs it twice.
    fn peak_bytes(&self, model: &Path, runtime: Runtime, n_threads: usize) -> Option<u64> {
        let mut command = Command::new(std::env::current_exe().ok()?);
        let requantize = match runtime {
            Runtime::EngineFixedPoint => "fixed-point",
            _ => "float",
        };
        let name = if runtime == Runtime::Interpreter { "interpreter" } else { "engine" };
        command.arg("run").arg(model).arg("--inputs").arg(&self.inputs);
        command.args(["--repeat", "1", "--json", "--quiet", "--runtime", name]);
        command.args(["--requantize", requantize, "--threads", &n_threads.to_string()]);
        let output = command.output().ok().filter(|output| output.status.success())?;
        let document: Value = serde_json::from_slice(&output.stdout).ok()?;
        document["peak_bytes"].as_u64()
    }

    fn run_table(&self, runs: &[Value]) -> String {
        let mut titles = vec![
            "model",
            "runtime",
            "threads",
            "median ms",
            "shortest",
            "p90",
            "p99",
            "a second",
            "peak",
        ];
        if self.memory {
            titles.push("memory");
        }
        let mut shown = vec![titles.into_iter().map(str::to_owned).collect::<Vec<_>>()];
        for run in runs {
            let number = |name: &str| run[name].as_f64();
            let ms = |name: &str| number(name).map_or("-".into(), |ms| format!("{ms:.3}"));
            let path = Path::new(run["model"].as_str().unwrap_or_default());
            let mut row = vec![
                path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
                run["runtime"].as_str().unwrap_or_default().to_owned(),
                run["threads"].to_string(),
                ms("median_ms"),
                ms("min_ms"),
                ms("p90_ms"),
                ms("p99_ms"),
                number("per_second").map_or("-".into(), |n| format!("{n:.1}")),
                number("peak_fraction")
                    .map_or("-".into(), |share| format!("{:.0} %", share * 100.0)),
            ];
            if self.memory {
                row.push(run["peak_bytes"].as_u64().map_or("-".into(), size));
            }
            shown.push(row);
        }
        table(&shown)
    }

    fn profiles(
        &self,
        rows: &[Row<'_>],
        peak_of: &dyn Fn(usize) -> Option<[f64; 2]>,
    ) -> anyhow::Result<Vec<Profile>> {
        let mut profiles = Vec::new();
        for row in rows {
            let Side::Own(runtime, runner) = &row.side else { continue };
            let nodes = profile(runner, &row.model.inputs, self.repeat.get(), row.n_threads)?;
            let peak = peak_of(row.n_threads);
            let share = |node: &NodeLatency| {
                let n = *row.model.multiplications.as_ref()?.get(&node.node)?;
                let peak = peak?[usize::from(!node.is_integer)];
                // A layout change bears the name of the node that it is for, and multiplies nothing.
                let multiplies = !node.inputs.starts_with("channels") && 0.0 < node.ms;
                multiplies.then(|| 2.0 * n as f64 / (node.ms / 1e3) / peak)
            };
            let title = format!(
                "{}, {}, {} thread{}",
                row.model.path.display(),
                runtime.name(),
                row.n_threads,
                if row.n_threads == 1 { "" } else { "s" }
            );
            let model = row.model.path.display().to_string();
            let (runtime, n_threads) = (runtime.name(), row.n_threads);
            let nodes = nodes.into_iter().map(|node| (share(&node), node)).collect();
            profiles.push(Profile { title, model, runtime, n_threads, nodes });
        }
        Ok(profiles)
    }
}

impl Row<'_> {
    fn json(&self, peak: Option<[f64; 2]>, peer_version: &str) -> Value {
        let t = Latency::of(self.times.clone(), self.n_threads);
        let (runtime, in_integers) = match &self.side {
            Side::Own(runtime, _) => (
                runtime.name().to_owned(),
                self.model.is_quantized && *runtime != Runtime::Interpreter,
            ),
            Side::OnnxRuntime(_) => {
                (format!("onnxruntime {peer_version}"), self.model.is_quantized)
            }
        };
        let peak = peak.map(|peak| peak[usize::from(!in_integers)]);
        let rate = self.model.operations().filter(|n| 0.0 < *n).map(|n| n / (t.median / 1e3));
        json!({
            "model": self.model.path, "runtime": runtime, "threads": self.n_threads,
            "median_ms": t.median, "min_ms": t.min, "p90_ms": t.p90, "p99_ms": t.p99,
            "per_second": t.per_second, "runs": t.runs,
            "peak_fraction": rate.zip(peak).map(|(rate, peak)| rate / peak),
            "peak_bytes": self.peak_bytes,
        })
    }
}

/// The times of a model's parts.
struct Profile {
    title: String,
    model: String,
    runtime: &'static str,
    n_threads: usize,
    /// With the share of the peak, where the part multiplies.
    nodes: Vec<(Option<f64>, NodeLatency)>,
}

impl Profile {
    /// The slowest parts, and the sums of each kind.
    fn table(&self) -> String {
        const MOST: usize = 25;
        let all: f64 = self.nodes.iter().map(|(_, node)| node.ms).sum();
        let mut nodes: Vec<_> = self.nodes.iter().collect();
        nodes.sort_by(|(_, a), (_, b)| b.ms.total_cmp(&a.ms));
        let mut rows = vec![
            ["node", "operator", "how", "ms", "of all", "of peak"].map(str::to_owned).to_vec(),
        ];
        for (share, node) in nodes.iter().take(MOST) {
            rows.push(vec![
                node.node.clone(),
                node.op_type.clone(),
                node.inputs.clone(),
                format!("{:.3}", node.ms),
                format!("{:.1} %", 100.0 * node.ms / all),
                share.map_or("-".into(), |share| format!("{:.0} %", 100.0 * share)),
            ]);
        }
        let left = nodes.len().saturating_sub(MOST);
        let more = if left == 0 { String::new() } else { format!("... and {left} more\n") };
        format!("\n{}: {all:.3} ms\n{}{more}", self.title, table(&rows))
    }

    fn json(&self) -> Value {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|(share, node)| {
                json!({
                    "node": node.node, "op_type": node.op_type, "how": node.inputs, "ms": node.ms,
                    "peak_fraction": share,
                })
            })
            .collect();
        json!({ "model": self.model, "runtime": self.runtime, "threads": self.n_threads, "nodes": nodes })
    }
}
