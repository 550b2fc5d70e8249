//! What every command has: threads, a way to stop, and the choice between JSON and text.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, bail};
use indicatif::ProgressBar;
use midtread::{Runtime, evaluate::RunOptions, quantize::Progress};

use crate::{args::Common, progress};

/// How a command ended that did what it was asked to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is well.
    Done,
    /// A check that the user asked for failed.
    CheckFailed,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::CheckFailed => Self::from(1),
        }
    }
}

/// What every command has.
pub(crate) struct Context {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) n_threads: usize,
    pub(crate) max_bytes: Option<usize>,
    pub(crate) interrupted: Arc<AtomicBool>,
}

impl Context {
    pub(crate) fn new(common: &Common) -> anyhow::Result<Self> {
        if let Err(message) = midtread::kernels::variant::requested() {
            bail!("MIDTREAD_ISA: {message}");
        }
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = interrupted.clone();
        // The first Ctrl-C ends the work at the next step, so that no half file is left; the second ends it now.
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::Relaxed) {
                midtread::onnx::remove_partial_files();
                std::process::exit(2);
            }
            eprintln!("\nstopping (again to stop at once)");
        })
        .context("Ctrl-C cannot be caught")?;
        let n_cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
        Ok(Self {
            json: common.json,
            quiet: common.quiet,
            n_threads: common.threads.map_or(n_cpus, |n| n.get()),
            max_bytes: common
                .max_memory
                .map(|m| m.0)
                .or_else(midtread::quantize::default_max_bytes),
            interrupted,
        })
    }

    /// Fails once the user has asked to stop: called before each step that writes.
    pub(crate) fn check_interrupted(&self) -> anyhow::Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(midtread::Error::Interrupted.into());
        }
        Ok(())
    }

    /// The one JSON document of a command, on stdout.
    pub(crate) fn print_json(&self, value: &serde_json::Value) {
        print(&serde_json::to_string_pretty(value).expect("plain data"));
    }

    /// A line for people: on stdout, or nowhere when stdout is for JSON.
    pub(crate) fn say(&self, line: impl AsRef<str>) {
        if !self.json && !self.quiet {
            print(line.as_ref());
        }
    }

    /// A warning, on stderr.
    pub(crate) fn warn(&self, line: impl AsRef<str>) {
        if !self.quiet {
            eprintln!("warning: {}", line.as_ref());
        }
    }

    /// A bar for `n` steps, hidden if nobody wants it.
    pub(crate) fn bar(&self, what: &str, n: usize) -> ProgressBar {
        if self.quiet { ProgressBar::hidden() } else { progress::bar(what, n) }
    }

    /// A bar for `n` bytes, hidden if nobody wants it.
    pub(crate) fn bytes_bar(&self, what: &str, n: u64) -> ProgressBar {
        if self.quiet { ProgressBar::hidden() } else { progress::bytes_bar(what, n) }
    }

    /// How a model is run over samples: by the interpreter, unless the caller changes that.
    pub(crate) fn run_options<'a>(
        &'a self,
        progress: &'a (dyn Fn(usize) + Sync),
    ) -> RunOptions<'a> {
        RunOptions {
            runtime: Runtime::Interpreter,
            n_threads: self.n_threads,
            max_bytes: self.max_bytes,
            output: None,
            progress,
            interrupted: &self.interrupted,
        }
    }

    /// Bars for a library call that reports stages.
    pub(crate) fn stages(&self) -> Stages {
        Stages { quiet: self.quiet, bar: Mutex::new(ProgressBar::hidden()) }
    }
}

/// A line on stdout. Whoever reads it may have seen enough (`| head`): then it goes nowhere.
fn print(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Shows the stage that is going on.
pub(crate) struct Stages {
    quiet: bool,
    bar: Mutex<ProgressBar>,
}

impl Stages {
    /// Takes the bar away, for someone who shows another.
    pub(crate) fn clear(&self) {
        let mut bar = self.bar.lock().expect("no panic while the lock is held");
        std::mem::replace(&mut *bar, ProgressBar::hidden()).finish_and_clear();
    }
}

impl Progress for Stages {
    fn stage(&self, name: &'static str, n: Option<usize>) {
        if self.quiet {
            return;
        }
        let next = match n {
            Some(n) => progress::bar(name, n),
            None => progress::spinner(name),
        };
        let mut bar = self.bar.lock().expect("no panic while the lock is held");
        std::mem::replace(&mut *bar, next).finish_and_clear();
    }

    fn done(&self, n: usize) {
        self.bar.lock().expect("no panic while the lock is held").set_position(n as u64);
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        if let Ok(bar) = self.bar.lock() {
            bar.finish_and_clear();
        }
    }
}

/// Reads a text file, naming it where that fails.
pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(path)
        .map_err(|source| midtread::Error::File { path: path.to_owned(), source })?)
}

/// Writes a file beside its final name and renames it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    check_output(path)?;
    let failed = |source| midtread::Error::File { path: path.to_owned(), source };
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder_of(path)).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Fails if no file can be made at `path`: called before the work whose result goes there.
pub(crate) fn check_output(path: &Path) -> anyhow::Result<()> {
    // A folder cannot be replaced by a file, and a device must not be.
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        bail!("{}: not a regular file", path.display());
    }
    tempfile::tempfile_in(folder_of(path))
        .map_err(|source| midtread::Error::File { path: path.to_owned(), source })?;
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `model.onnx` as `model.int8.onnx`.
pub(crate) fn default_output(model: &Path, tag: &str) -> PathBuf {
    model.with_extension(format!("{tag}.onnx"))
}
