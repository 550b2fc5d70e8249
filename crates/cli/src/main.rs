//! The command line: words into the library's types, and its results and errors into words. Nothing is computed here.
//!
//! Reading order: [`args`] (what can be said), [`commands`] (one file each), [`context`] (threads, interruption,
//! JSON or text), [`pages`], [`progress`], [`table`].
#![forbid(unsafe_code)]

mod args;
mod commands;
mod context;
mod judging;
mod pages;
mod progress;
mod samples;
mod table;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // `--help` and `--version` arrive here too; clap knows where each is printed.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let context = match context::Context::new(&args.common) {
        Ok(context) => context,
        Err(error) => return fail(&error),
    };
    match args.command.run(&context) {
        Ok(outcome) => outcome.into(),
        Err(error) => fail(&error),
    }
}

/// Tells what went wrong, with its causes on one line and what to do about it on the next.
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    let hint = error.chain().find_map(|cause| cause.downcast_ref::<midtread::Error>()?.hint());
    if let Some(hint) = hint {
        eprintln!("  hint: {hint}");
    }
    ExitCode::from(2)
}
