//! ONNX Runtime, in a Python that has it, to be timed beside the runtimes here.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, bail};

/// Reads a number of runs, answers with their milliseconds.
const SCRIPT: &str = "\
import json, resource, sys, time
import numpy as np, onnxruntime as ort
model, inputs, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
options = ort.SessionOptions()
options.intra_op_num_threads = threads
options.inter_op_num_threads = 1
options.log_severity_level = 3
session = ort.InferenceSession(model, options, providers=['CPUExecutionProvider'])
given = np.load(inputs)
names = [i.name for i in session.get_inputs()]
feed = {n: given[n] for n in names if n in given} if inputs.endswith('.npz') else {names[0]: given}
session.run(None, feed); session.run(None, feed)
print(json.dumps(ort.__version__), flush=True)
for line in sys.stdin:
    times = []
    for _ in range(int(line)):
        start = time.perf_counter()
        session.run(None, feed)
        times.append((time.perf_counter() - start) * 1e3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([times, peak]), flush=True)
";

/// A session of ONNX Runtime.
pub(crate) struct OnnxRuntime {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub(crate) version: String,
}

/// A Python in which ONNX Runtime and NumPy can be imported: the one that is named, or `MIDTREAD_PYTHON`, or the one on the
/// path. An error where the named one has none.
pub(crate) fn find_python(named: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    let python = match named {
        Some(path) => path.to_owned(),
        None => std::env::var_os("MIDTREAD_PYTHON").map_or_else(|| "python3".into(), PathBuf::from),
    };
    let check = Command::new(&python)
        .args(["-c", "import numpy, onnxruntime"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match check {
        Ok(status) if status.success() => Ok(Some(python)),
        _ if named.is_none() => Ok(None),
        Ok(_) => bail!("{}: onnxruntime and numpy cannot be imported there", python.display()),
        Err(e) => Err(e).with_context(|| python.display().to_string()),
    }
}

impl OnnxRuntime {
    pub(crate) fn start(
        python: &Path,
        model: &Path,
        inputs: &Path,
        n_threads: usize,
    ) -> anyhow::Result<Self> {
        let mut child = Command::new(python)
            .args(["-c", SCRIPT])
            .args([model, inputs])
            .arg(n_threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| python.display().to_string())?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (Some(stdin), Some(stdout)) = (stdin, stdout) else { bail!("no pipe to Python") };
        let mut this =
            Self { child, stdin, stdout: BufReader::new(stdout), version: String::new() };
        this.version = serde_json::from_str(&this.line(model)?)?;
        Ok(this)
    }

    /// Milliseconds of so many runs, and the most memory that the process has had.
    pub(crate) fn times(&mut self, model: &Path, n: usize) -> anyhow::Result<(Vec<f64>, u64)> {
        writeln!(self.stdin, "{n}").and_then(|()| self.stdin.flush())?;
        Ok(serde_json::from_str(&self.line(model)?)?)
    }

    fn line(&mut self, model: &Path) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            bail!("ONNX Runtime does not run {}", model.display());
        }
        Ok(line)
    }
}

impl Drop for OnnxRuntime {
    fn drop(&mut self) {
        // It is this one's child, and has nothing to finish.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
