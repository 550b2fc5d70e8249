//! ONNX Runtime's time for the same models, from a Python that has it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use midtread_graph::Tensor;

use crate::{error::Error, latency::Latency};

const SCRIPT: &str = include_str!("peer.py");

/// A Python that can import `onnxruntime` and `numpy`.
#[derive(Clone, Debug)]
pub struct OnnxRuntime {
    python: PathBuf,
    /// `1.32.0`.
    pub version: String,
}

/// A model that is loaded there.
pub struct Session {
    model: PathBuf,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// Its inputs, as files.
    _inputs: tempfile::TempDir,
}

impl OnnxRuntime {
    /// The named Python, or the one in `MIDTREAD_PYTHON`, or the first of `python3` and `python` that has it. `None` if
    /// none was named and none has it.
    ///
    /// # Errors
    ///
    /// When the named one does not have it.
    pub fn find(python: Option<&Path>) -> Result<Option<Self>, Error> {
        let version = |python: &Path| {
            let script = "import numpy, onnxruntime; print(onnxruntime.__version__)";
            let output = Command::new(python)
                .args(["-c", script])
                .stdin(Stdio::null())
                .output()
                .ok()
                .filter(|output| output.status.success())?;
            Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let names = match (python, std::env::var_os("MIDTREAD_PYTHON")) {
            (Some(python), _) => vec![python.to_owned()],
            (None, Some(python)) => vec![python.into()],
            (None, None) => vec!["python3".into(), "python".into()],
        };
        for name in names {
            if let Some(version) = version(&name) {
                return Ok(Some(Self { python: name, version }));
            }
        }
        match python {
            Some(python) => Err(Error::Options(format!(
                "{} is no Python that can import onnxruntime and numpy",
                python.display()
            ))),
            None => Ok(None),
        }
    }

    /// Loads a model with its default optimizations, in a process of its own, and runs it twice.
    pub fn start(
        &self,
        model: &Path,
        inputs: &[(String, Tensor)],
        n_threads: usize,
    ) -> Result<Session, Error> {
        let folder = tempfile::tempdir()
            .map_err(|source| Error::File { path: std::env::temp_dir(), source })?;
        let mut files = serde_json::Map::new();
        for (i, (name, tensor)) in inputs.iter().enumerate() {
            let path = midtread_data::write::write_npy(folder.path(), &i.to_string(), tensor)?;
            files.insert(name.clone(), path.to_string_lossy().into());
        }
        let task = serde_json::json!({ "model": model, "inputs": files, "threads": n_threads });
        let failed = |source| Error::File { path: self.python.clone(), source };
        let mut child = Command::new(&self.python)
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let stdin = child.stdin.take().expect("it is piped");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut session =
            Session { model: model.to_owned(), child, stdin, stdout, _inputs: folder };
        session.ask(&task.to_string())?;
        Ok(session)
    }

    /// Times of each model in turns on the same inputs.
    pub fn latencies(
        &self,
        models: &[&Path],
        inputs: &[(String, Tensor)],
        n_runs: usize,
        n_threads: usize,
    ) -> Result<Vec<Latency>, Error> {
        const ROUNDS: usize = 5;
        let mut sessions = models
            .iter()
            .map(|model| self.start(model, inputs, n_threads))
            .collect::<Result<Vec<_>, _>>()?;
        let mut times = vec![Vec::new(); models.len()];
        for _ in 0..ROUNDS {
            for (session, times) in sessions.iter_mut().zip(&mut times) {
                times.extend(session.times(n_runs.div_ceil(ROUNDS).max(1))?.0);
            }
        }
        Ok(times.into_iter().map(|times| Latency::of(times, n_threads)).collect())
    }
}

impl Session {
    /// Milliseconds of so many runs, and the most memory that the process has had.
    pub fn times(&mut self, n_runs: usize) -> Result<(Vec<f64>, u64), Error> {
        let line = self.ask(&n_runs.to_string())?;
        serde_json::from_str(&line).map_err(|_| self.problem(&line))
    }

    fn ask(&mut self, line: &str) -> Result<String, Error> {
        // One that has ended says why on stderr.
        let _ = writeln!(self.stdin, "{line}").and_then(|()| self.stdin.flush());
        let mut answer = String::new();
        match self.stdout.read_line(&mut answer) {
            Ok(n) if n != 0 => Ok(answer),
            _ => {
                let mut said = String::new();
                if let Some(mut stderr) = self.child.stderr.take() {
                    let _ = stderr.read_to_string(&mut said);
                }
                let last = said.lines().rev().find(|line| !line.trim().is_empty());
                Err(self.problem(last.unwrap_or("it ended without a word")))
            }
        }
    }

    fn problem(&self, what: &str) -> Error {
        let (model, what) = (self.model.display(), what.trim());
        Error::Options(format!("ONNX Runtime could not run {model}: {what}"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It is this one's child, and has nothing to finish.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
