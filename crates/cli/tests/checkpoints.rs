//! `midtread quantize` on checkpoints: what it writes, reports, and refuses.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

/// Sizes of the matrix in the checkpoint.
const ROWS: usize = 8;
const COLS: usize = 512;

/// The exit status, the document on stdout and what is on stderr.
fn quantize(folder: &Path, args: &[&str]) -> (i32, Value, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_midtread"))
        .arg("quantize")
        .args(args)
        .arg("--json")
        .current_dir(folder)
        .output()
        .expect("the binary runs");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let document = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), document, stderr)
}

/// Values like those of a trained layer: small, bell-shaped.
fn weights() -> Vec<f32> {
    let mut state = 1_u64;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 24) as f32
    };
    (0..ROWS * COLS).map(|_| 0.02 * ((0..12).map(|_| uniform()).sum::<f32>() - 6.0)).collect()
}

/// A checkpoint with a matrix and the scales of a norm.
fn write_checkpoint(path: &Path, matrix: &[f32]) {
    let n = 4 * matrix.len();
    let header = json!({
        "layers.0.weight": { "dtype": "F32", "shape": [ROWS, COLS], "data_offsets": [0, n] },
        "norm.weight": { "dtype": "F32", "shape": [4], "data_offsets": [n, n + 16] },
    });
    let text = header.to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.extend(matrix.iter().chain(&[1.0; 4]).flat_map(|x| x.to_le_bytes()));
    fs::write(path, bytes).unwrap();
}

/// The matrix of a checkpoint in float32.
fn read_matrix(path: &Path) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let entry = &header["layers.0.weight"];
    assert_eq!((&entry["dtype"], &entry["shape"]), (&"F32".into(), &json!([ROWS, COLS])));
    let at = |i: usize| 8 + n + entry["data_offsets"][i].as_u64().unwrap() as usize;
    let numbers = bytes[at(0)..at(1)].as_chunks::<4>().0;
    numbers.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn sqnr_db(x: &[f32], y: &[f32]) -> f64 {
    let sum = |of: &dyn Fn(f32, f32) -> f32| -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from(of(*x, *y)).powi(2)).sum()
    };
    10.0 * (sum(&|x, _| x) / sum(&|x, y| x - y)).log10()
}

#[test]
fn a_checkpoint_goes_to_every_container_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let matrix = weights();
    write_checkpoint(&folder.join("model.safetensors"), &matrix);
    // A uniform quantizer of n bits over a bell loses what it must: about 6 dB a bit, less the peaks. NF4's 16 levels and
    // Q4's are 4 bits; two dB are left for chance.
    for (weights, file, least_db) in [
        ("int8", "int8.safetensors", 38.0),
        ("nf4", "nf4.safetensors", 18.0),
        ("bfloat16", "bf16.safetensors", 48.0),
        ("q8_0", "q8.gguf", 42.0),
        ("q4_k", "q4k.gguf", 20.0),
    ] {
        let (status, report, stderr) =
            quantize(folder, &["model.safetensors", "--weights", weights, "-o", file]);
        assert_eq!(status, 0, "{weights}: {stderr}");
        let ledger = report["ledger"].as_array().unwrap();
        assert_eq!(
            (&ledger[0]["status"], &ledger[0]["to"]),
            (&"converted".into(), &weights.into())
        );
        // What stays says why; 16-bit floats take vectors too.
        let reason = if weights == "bfloat16" { "" } else { "less than two dimensions" };
        assert_eq!(ledger[1]["reason"], reason, "{weights}");
        let bytes = fs::metadata(folder.join(file)).unwrap().len();
        assert_eq!(report["bytes_out"], bytes, "{weights}");
        let (status, _, stderr) =
            quantize(folder, &[file, "--weights", "float32", "-o", "back.safetensors"]);
        assert_eq!(status, 0, "{weights}: {stderr}");
        let db = sqnr_db(&matrix, &read_matrix(&folder.join("back.safetensors")));
        assert!(least_db < db && db < least_db + 12.0, "{weights}: {db} dB");
    }
}

#[test]
fn what_is_kept_and_what_cannot_be_is_said_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_checkpoint(&folder.join("model.safetensors"), &weights());
    let args =
        ["model.safetensors", "--weights", "nf4", "--keep", "layers.*", "-o", "kept.safetensors"];
    let (status, report, stderr) = quantize(folder, &args);
    assert_eq!(
        (status, &report["ledger"][0]["reason"]),
        (0, &"--keep layers.*".into()),
        "{stderr}"
    );
    assert_eq!(read_matrix(&folder.join("kept.safetensors")), weights());

    let refused = |args: &[&str], word: &str| {
        let (status, _, stderr) = quantize(folder, &[args, &["-o", "no.safetensors"]].concat());
        assert!(status == 2 && stderr.contains(word), "{args:?}: {status}: {stderr}");
        assert!(!folder.join("no.safetensors").exists(), "{args:?}");
    };
    refused(&["model.safetensors", "--weights", "nf5"], "nf5");
    refused(&["none.safetensors", "--weights", "nf4"], "none.safetensors");
    refused(&["model.safetensors", "--weights", "nf4", "--random", "4"], "--random");
    let mut spoiled = weights();
    spoiled[COLS + 3] = f32::NAN;
    write_checkpoint(&folder.join("nan.safetensors"), &spoiled);
    refused(&["nan.safetensors", "--weights", "nf4"], "layers.0.weight");
    let whole = fs::read(folder.join("model.safetensors")).unwrap();
    fs::write(folder.join("short.safetensors"), &whole[..whole.len() - 100]).unwrap();
    refused(&["short.safetensors", "--weights", "nf4"], "short.safetensors");
    // Nothing is left over, not even under another name.
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["kept", "model", "nan", "short"].map(|n| format!("{n}.safetensors")));
}
