//! Other programs, with errors that say which one failed.

use std::process::{Command, ExitStatus, Stdio};

use crate::{Result, root};

/// The cargo that runs this task, in the repository's root.
pub(crate) fn cargo() -> Command {
    // Set by cargo for what it runs; with rustup it is the right toolchain's.
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Shows the command and runs it to its end.
pub(crate) fn run(command: &mut Command) -> Result {
    eprintln!("+ {}", words(command));
    let status = command.status().map_err(|error| not_started(command, &error))?;
    succeeded(command, status)
}

/// What the command writes to stdout; its stderr is shown as it comes.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    eprintln!("+ {}", words(command));
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|error| not_started(command, &error))?;
    succeeded(command, output.status)?;
    String::from_utf8(output.stdout).map_err(|_| format!("`{}` wrote no UTF-8", words(command)))
}

fn succeeded(command: &Command, status: ExitStatus) -> Result {
    if status.success() { Ok(()) } else { Err(format!("`{}` failed ({status})", words(command))) }
}

fn not_started(command: &Command, error: &std::io::Error) -> String {
    format!("`{}` could not be started: {error}", command.get_program().display())
}

fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
