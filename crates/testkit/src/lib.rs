//! What the tests of several crates share: the reference runtime, the real assets, and values that are hard.
//!
//! Not published. The reference runtime is ONNX Runtime in a Python environment, and the assets are real models and
//! data; `cargo xtask test` sets both up and tells the tests where they are.
#![forbid(unsafe_code)]

pub mod npz;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Values at which float-to-integer conversions differ between instruction sets.
#[rustfmt::skip]
pub const HARD: &[f32] = &[
    0.0, -0.0, 0.5, -0.5, 1.5, 2.5, 254.5, 255.5, 3e9, -3e9, 1e20, 1e-45, f32::MIN_POSITIVE,
    f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN,
];

/// The workspace's folder.
pub fn root() -> PathBuf {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("crates/ is above");
    crates.parent().expect("the workspace is above crates/").to_owned()
}

/// The folder of real models and data, by what `cargo xtask assets` calls them.
///
/// # Panics
///
/// When the asset is not there: run the tests with `cargo xtask test`, or `cargo xtask assets` once.
pub fn asset(name: &str) -> PathBuf {
    let folder = std::env::var_os("MIDTREAD_ASSETS").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        cache
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
            .map(|c| c.join("midtread"))
    });
    let path = folder.expect("a home folder").join(name);
    assert!(path.exists(), "the asset {} is missing: run `cargo xtask assets`", path.display());
    path
}

/// Runs `tools/oracle.py` and returns the one JSON document it prints.
///
/// # Panics
///
/// When the Python environment is missing (run the tests with `cargo xtask test`) or the oracle fails.
pub fn oracle(args: &[&str]) -> Value {
    let python = std::env::var_os("MIDTREAD_PYTHON")
        .map_or_else(|| root().join("target/venv/bin/python"), PathBuf::from);
    assert!(
        python.exists(),
        "{} is missing: run the tests with `cargo xtask test`",
        python.display()
    );
    let output = Command::new(&python)
        .arg(root().join("tools/oracle.py"))
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", python.display()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "oracle {args:?}: {stderr}");
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("oracle {args:?}: {e}: {stderr}"))
}
