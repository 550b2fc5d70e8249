//! Round trips of real files, judged by the `onnx` package.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use midtread_onnx::{ExternalData, SaveOptions, load, save};
use midtread_testkit::{asset, root};

/// The interpreter that `cargo xtask test` sets up.
fn python() -> PathBuf {
    let python = std::env::var_os("MIDTREAD_PYTHON")
        .map_or_else(|| root().join("target/venv/bin/python"), PathBuf::from);
    assert!(
        python.exists(),
        "{} is missing: run the tests with `cargo xtask test`",
        python.display()
    );
    python
}

fn round_trip_py(args: &[&Path], verb: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/round_trip.py");
    let output = Command::new(python()).arg(script).arg(verb).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    text
}

fn onnx_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "onnx"))
        .collect();
    files.sort();
    files
}

#[test]
fn every_model_that_onnx_has_comes_back_the_same_and_passes_its_checker() {
    let before = tempfile::tempdir().unwrap();
    let real = asset("efficientnet_lite0.onnx");
    round_trip_py(&[before.path(), real.parent().unwrap()], "collect");

    let files = onnx_files(before.path());
    assert!(1000 < files.len(), "only {} models were collected", files.len());
    let inline = tempfile::tempdir().unwrap();
    let external = tempfile::tempdir().unwrap();
    for file in &files {
        let name = file.file_name().unwrap();
        let model =
            load(file).unwrap_or_else(|e| panic!("{e}: {:?}", std::error::Error::source(&e)));
        save(&model, inline.path().join(name), &SaveOptions::default()).unwrap();
        let external_data = ExternalData::Always { min_bytes: 1 };
        save(&model, external.path().join(name), &SaveOptions { external_data }).unwrap();

        // What was written reads back as the same model: saving it again gives the same bytes.
        for folder in [&inline, &external] {
            let again = load(folder.path().join(name)).unwrap();
            assert_eq!(
                midtread_onnx::to_bytes(&again).unwrap(),
                std::fs::read(inline.path().join(name)).unwrap(),
                "{}",
                name.display()
            );
        }
    }
    println!("{}", round_trip_py(&[before.path(), inline.path()], "compare"));
    println!("{}", round_trip_py(&[before.path(), external.path()], "compare"));
}
