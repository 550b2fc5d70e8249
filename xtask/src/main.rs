//! The repository's tasks, run as `cargo xtask TASK`. Here: the list of tasks and what each does; then
//!
//! - [`process`]: other programs, with errors that say which one failed;
//! - [`python`]: the Python environment that the tests and the asset tools use;
//! - [`fuzz`](mod@fuzz): libFuzzer over what reads files, and what lies behind it;
//! - [`invariants`]: rules of ARCHITECTURE.md that a search through the sources can check.
//!
//! No dependencies, so that `cargo xtask` starts in seconds from an empty cache.

mod fuzz;
mod invariants;
mod process;
mod python;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use process::{cargo, run};

/// An error is a sentence for the person at the terminal; nobody else reads it.
type Result<T = ()> = std::result::Result<T, String>;

/// A task: `cargo xtask <name>`.
struct Task {
    name: &'static str,
    usage: &'static str,
    summary: &'static str,
    run: fn(&[String]) -> Result,
}

/// Every task, in the order of `help`.
static TASKS: &[Task] = &[
    Task {
        name: "test",
        usage: "test [ARG ..]",
        summary: "set up Python and the assets, run all tests; ARGs go to the test runner",
        run: test,
    },
    Task {
        name: "assets",
        usage: "assets [NAME ..]",
        summary: "fetch and convert the models and data that tests and benchmarks use",
        run: |names| assets(names).map(drop),
    },
    Task {
        name: "generate",
        usage: "generate [--check]",
        summary: "remake the generated files that are checked in, or check that they are up to date",
        run: generate,
    },
    Task {
        name: "vendor",
        usage: "vendor [--check]",
        summary: "remake the report's bundle of libraries from what npm's lock file pins, or check that it is that",
        run: vendor,
    },
    Task {
        name: "ci",
        usage: "ci",
        summary: "everything that has to be green: formatting, clippy, invariants, docs, generated files, tests",
        run: ci,
    },
    Task {
        name: "fuzz",
        usage: "fuzz [TARGET ..]",
        summary: "fuzz these targets, or all, for `--seconds N` each [default: 300]; needs cargo-fuzz",
        run: fuzz::fuzz,
    },
    Task { name: "help", usage: "help", summary: "this list", run: help },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let name = match args.first().map_or("help", String::as_str) {
        "-h" | "--help" => "help",
        name => name,
    };
    let Some(task) = TASKS.iter().find(|task| task.name == name) else {
        eprintln!("error: there is no task `{name}`\n");
        eprint!("{}", list());
        return ExitCode::from(2);
    };
    match (task.run)(args.get(1..).unwrap_or_default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn list() -> String {
    let line = |task: &Task| format!("cargo xtask {:20} {}\n", task.usage, task.summary);
    TASKS.iter().map(line).collect()
}

fn help(_: &[String]) -> Result {
    print!("{}", list());
    Ok(())
}

fn test(args: &[String]) -> Result {
    let python = python::environment()?;
    let assets = assets(&[])?;
    let with_env = |command: &mut Command| {
        run(command.env("MIDTREAD_PYTHON", &python).env("MIDTREAD_ASSETS", &assets))
    };
    if !has_nextest() {
        return with_env(cargo().args(["test", "--workspace"]).args(args));
    }
    with_env(cargo().args(["nextest", "run", "--workspace"]).args(args))?;
    if args.is_empty() {
        // nextest does not run documentation tests. A filter is meant for the tests above.
        with_env(cargo().args(["test", "--doc", "--workspace"]))?;
    }
    Ok(())
}

fn has_nextest() -> bool {
    cargo().args(["nextest", "--version"]).output().is_ok_and(|output| output.status.success())
}

/// Makes the named assets, or all that the tests need, and returns the folder they are in.
fn assets(names: &[String]) -> Result<PathBuf> {
    let mut command = Command::new(python::environment()?);
    let folder =
        process::output(command.arg(root().join("tools/assets.py")).arg("fetch").args(names))?;
    Ok(PathBuf::from(folder.trim()))
}

fn generate(args: &[String]) -> Result {
    let is_check = match args {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => return Err("usage: cargo xtask generate [--check]".into()),
    };
    // The reference pages and the golden plans: a test compares them, or writes them when it is told to.
    let mut pages = cargo();
    pages.args(["test", "--quiet", "--package", "midtread-cli", "--test", "generated"]);
    if !is_check {
        pages.env("MIDTREAD_GENERATE", "1");
    }
    run(&mut pages)?;
    let manifest = root().join("xtask/protogen/Cargo.toml");
    if !manifest.exists() {
        eprintln!(
            "generate: there is no xtask/protogen, so the code that reads protobuf is not remade"
        );
        return Ok(());
    }
    // A workspace of its own, because its dependencies are not needed to build midtread.
    let target = root().join("target/protogen");
    run(cargo()
        .args(["run", "--quiet", "--locked", "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(target)
        .args(if is_check { &["--", "--check"][..] } else { &[] }))
}

/// Needs npm and node, which nothing else does.
fn vendor(args: &[String]) -> Result {
    let is_check = match args {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => return Err("usage: cargo xtask vendor [--check]".into()),
    };
    let folder = root().join("crates/report/assets/vendor");
    let files = ["vendor.js", "vendor.css"].map(|name| folder.join(name));
    let read = || files.each_ref().map(std::fs::read).map(|bytes| bytes.unwrap_or_default());
    let before = read();
    run(Command::new("npm").args(["ci", "--ignore-scripts"]).current_dir(&folder))?;
    run(Command::new("node").arg("build.mjs").current_dir(&folder))?;
    if is_check && read() != before {
        return Err("the bundle was not what package-lock.json pins; it is now".into());
    }
    Ok(())
}

fn ci(args: &[String]) -> Result {
    if !args.is_empty() {
        return Err("`ci` takes no arguments".into());
    }
    // What fails in seconds comes first.
    run(cargo().args(["fmt", "--all", "--check"]))?;
    invariants::check(root())?;
    run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))?;
    run(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    generate(&["--check".into()])?;
    test(&[])
}

/// The repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder in the repository")
}
