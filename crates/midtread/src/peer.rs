//! ONNX Runtime's time for the same models, from a Python that has it.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use midtread_graph::Tensor;
use serde::Deserialize;

use crate::{error::Error, latency::Latency};

const SCRIPT: &str = include_str!("peer.py");

/// A Python that can import `onnxruntime`.
#[derive(Clone, Debug)]
pub struct OnnxRuntime {
    python: PathBuf,
    /// `1.32.0`.
    pub version: String,
}

#[derive(Deserialize)]
struct Times {
    runs: Vec<Vec<f64>>,
}

impl OnnxRuntime {
    /// The named Python, or the first of `python3` and `python` that has it. `None` if none was named and none has it.
    pub fn find(python: Option<&Path>) -> Result<Option<Self>, Error> {
        let version = |python: &Path| {
            let script = "import onnxruntime; print(onnxruntime.__version__)";
            let output = Command::new(python).args(["-c", script]).output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            output.status.success().then_some(text)
        };
        let names = match python {
            Some(python) => vec![python.to_owned()],
            None => vec!["python3".into(), "python".into()],
        };
        for name in names {
            if let Some(version) = version(&name) {
                return Ok(Some(Self { python: name, version }));
            }
        }
        match python {
            Some(python) => Err(Error::Options(format!(
                "{} is no Python that can import onnxruntime",
                python.display()
            ))),
            None => Ok(None),
        }
    }

    /// Times of each model in turns on the same inputs, with its default optimizations.
    pub fn latencies(
        &self,
        models: &[&Path],
        inputs: &[(String, Tensor)],
        n_runs: usize,
        n_threads: usize,
    ) -> Result<Vec<Latency>, Error> {
        let folder = tempfile::tempdir()
            .map_err(|source| Error::File { path: std::env::temp_dir(), source })?;
        let mut files = serde_json::Map::new();
        for (i, (name, tensor)) in inputs.iter().enumerate() {
            let path = midtread_data::write::write_npy(folder.path(), &i.to_string(), tensor)?;
            files.insert(name.clone(), path.to_string_lossy().into());
        }
        let task = serde_json::json!({
            "models": models, "inputs": files, "runs": n_runs, "threads": n_threads,
        });
        let failed = |source| Error::File { path: self.python.clone(), source };
        let mut child = Command::new(&self.python)
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that has ended says why on stderr.
            let _ = stdin.write_all(task.to_string().as_bytes());
        }
        let output = child.wait_with_output().map_err(failed)?;
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let problem =
            || Error::Options(format!("ONNX Runtime could not run the models: {}", last.trim()));
        if !output.status.success() {
            return Err(problem());
        }
        let times: Times = serde_json::from_slice(&output.stdout).map_err(|_| problem())?;
        if times.runs.len() != models.len() || times.runs.iter().any(Vec::is_empty) {
            return Err(problem());
        }
        Ok(times.runs.into_iter().map(|runs| Latency::of(runs, n_threads)).collect())
    }
}
