//! What is written as GGUF, read by the `gguf` package.

use std::path::PathBuf;
use std::process::Command;

use midtread_checkpoint::{Checkpoint, Container, Options, Run, Weights, convert, plan};
use midtread_num::formats::{Format, Matrix};
use midtread_testkit::root;
use serde_json::Value;

/// A safetensors file with one matrix.
fn safetensors(rows: usize, cols: usize, x: &[f32]) -> Vec<u8> {
    let header = format!(
        "{{\"__metadata__\":{{\"general.name\":\"x\"}},\"w\":{{\"dtype\":\"F32\",\"shape\":[{rows},{cols}],\"data_offsets\":[0,{}]}}}}",
        4 * x.len()
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(x.iter().flat_map(|x| x.to_le_bytes()));
    bytes
}

#[test]
fn the_gguf_package_reads_keys_types_sizes_and_values() {
    let folder = tempfile::tempdir().unwrap();
    let x: Vec<f32> = (0..3 * 512).map(|i| ((i * 7919) % 1009) as f32 * 1e-3 - 0.5).collect();
    let from = folder.path().join("model.safetensors");
    std::fs::write(&from, safetensors(3, 512, &x)).unwrap();
    let checkpoint = Checkpoint::open(&from).unwrap();
    let python = std::env::var_os("MIDTREAD_PYTHON")
        .map_or_else(|| root().join("target/venv/bin/python"), PathBuf::from);
    for name in [
        "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl",
        "bfloat16",
    ] {
        let to = folder.path().join("out.gguf");
        let options = Options::new(Weights::named(name).unwrap(), Container::Gguf);
        let plan = plan(&checkpoint, &options).unwrap();
        convert(&checkpoint, &plan, &options, &to, &Run::ALONE).unwrap();
        let script = root().join("crates/checkpoint/tests/read_gguf.py");
        let output = Command::new(&python).arg(script).arg(&to).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {stderr}");
        let read: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(read["keys"]["general.name"], "x");
        assert_eq!(read["keys"]["general.quantization_version"], 2);
        let tensor = &read["tensors"]["w"];
        let ty = if name == "bfloat16" { "BF16".into() } else { name.to_uppercase() };
        assert_eq!(tensor["type"], ty);
        assert_eq!(tensor["shape"], serde_json::json!([512, 3]));
        let want = Format::named(name).unwrap().round_trip(&Matrix::new(&x, 512).unwrap()).unwrap();
        let values = tensor["values"].as_array().unwrap();
        assert_eq!(values.len(), want.len());
        for (i, (value, want)) in values.iter().zip(want).enumerate() {
            // The package multiplies and adds in another order for some types: two roundings of a value of about 1/2.
            let value = value.as_f64().unwrap() as f32;
            assert!(
                (value - want).abs() <= 2.0 * f32::EPSILON,
                "{name}, element {i}: {value}, not {want}"
            );
        }
    }
}
