//! `cargo xtask fuzz`: files that nobody meant to write, for minutes, with libFuzzer.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    Result, assets,
    process::{cargo, run},
    root,
};

/// Models to start from are at most as large: time goes into many small ones.
const MAX_MODEL: u64 = 8192;

/// Runs the named targets, or all, one after the other. What they find lies in `target/fuzz/found`.
pub(crate) fn fuzz(args: &[String]) -> Result {
    let mut seconds = 300_u32;
    let mut wanted = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--seconds" {
            let value = args.next().and_then(|text| text.parse().ok());
            seconds = value.ok_or("usage: cargo xtask fuzz [TARGET ..] [--seconds N]")?;
        } else {
            wanted.push(arg.clone());
        }
    }
    let targets = targets()?;
    if let Some(unknown) = wanted.iter().find(|name| !targets.contains(name)) {
        return Err(format!("there is no target `{unknown}`: {}", targets.join(", ")));
    }
    if !cargo().args(["fuzz", "--version"]).output().is_ok_and(|output| output.status.success()) {
        return Err("cargo-fuzz is missing: cargo install cargo-fuzz".into());
    }

    let folder = root().join("target/fuzz");
    let start = folder.join("corpus/start");
    fs::create_dir_all(&start).map_err(|error| format!("{}: {error}", start.display()))?;
    let mut models = Vec::new();
    collect(&root().join("testdata/hostile"), &mut models)?;
    let assets = assets(&["onnx_node_tests".into(), "onnx_generated_tests".into()])?;
    for set in ["onnx_node_tests", "onnx_generated_tests"] {
        collect(&assets.join(set), &mut models)?;
    }
    for (i, model) in models.iter().enumerate() {
        let to = start.join(format!("{i}.onnx"));
        fs::copy(model, to).map_err(|error| format!("{}: {error}", model.display()))?;
    }

    for target in targets.iter().filter(|name| wanted.is_empty() || wanted.contains(name)) {
        let (own, found) = (folder.join("corpus").join(target), folder.join("found").join(target));
        for path in [&own, &found] {
            fs::create_dir_all(path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        // Without a sanitizer the stable toolchain will do, and the code under test has no `unsafe` but in kernels.
        run(cargo()
            .args(["fuzz", "run", "--fuzz-dir", "fuzz", "--sanitizer", "none", "--target-dir"])
            .arg(&folder)
            .arg(target)
            .args([&own, &start])
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}/", found.display()))
            .args(["-max_len=16384", "-timeout=10", "-rss_limit_mb=1024"]))
        .map_err(|error| format!("{error}; {} has what it found", found.display()))?;
    }
    Ok(())
}

/// The files in `fuzz/fuzz_targets`.
fn targets() -> Result<Vec<String>> {
    let mut names: Vec<String> = read_dir(&root().join("fuzz/fuzz_targets"))?
        .iter()
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Small ONNX files in a folder and in those below it.
fn collect(folder: &Path, into: &mut Vec<PathBuf>) -> Result {
    for path in read_dir(folder)? {
        if path.is_dir() {
            collect(&path, into)?;
        } else if path.extension().is_some_and(|ext| ext == "onnx")
            && fs::metadata(&path).is_ok_and(|meta| meta.len() <= MAX_MODEL)
        {
            into.push(path);
        }
    }
    Ok(())
}

fn read_dir(folder: &Path) -> Result<Vec<PathBuf>> {
    let explain = |error| format!("{}: {error}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(explain)? {
        paths.push(entry.map_err(explain)?.path());
    }
    paths.sort();
    Ok(paths)
}
