//! Real models: loaded, saved and loaded again, prepared, and run, against what ONNX Runtime computed when the assets
//! were made (tools/real_models.py). Those of the asset `more_models` are run where somebody has fetched it.

use std::{fs, path::Path};

use midtread_exec::{Interpreter, Options};
use midtread_graph::{Bytes, DataType, Model, Tensor};
use midtread_passes::{PrepareOptions, prepare};

/// Models of the assets that every run of the tests has.
const N_MODELS: usize = 11;

/// The largest difference that sums in another order may make, in parts of an output's largest value. What was seen is
/// in bench/results/models.md.
const TOLERANCE: f64 = 1.0 / 4096.0;

#[test]
fn real_models_load_round_trip_prepare_and_run_as_in_onnxruntime() {
    let folder = midtread_testkit::asset("models");
    let mut n = 0;
    for folder in [folder.clone(), folder.with_file_name("more_models")] {
        let Ok(entries) = fs::read_dir(&folder) else {
            println!("{} is not there: `cargo xtask assets more_models`", folder.display());
            continue;
        };
        let mut models: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
        models.sort();
        for path in models {
            check(&path);
            n += 1;
        }
    }
    assert!(N_MODELS <= n, "{n} models");
}

fn check(path: &Path) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let model = midtread_onnx::load(path.join("model.onnx")).unwrap();
    let bytes = midtread_onnx::to_bytes(&model).unwrap();
    let again = midtread_onnx::from_bytes(bytes.clone().into(), None).unwrap();
    assert_eq!(midtread_onnx::to_bytes(&again).unwrap(), bytes, "{name} changes when it is saved");

    let data = path.join("test_data_set_0");
    let (inputs, wanted) = (tensors(&data, "input"), tensors(&data, "output"));
    let as_it_is = difference(&again, &inputs, &wanted).unwrap_or_else(|e| panic!("{name}: {e}"));
    let (prepared, _) = prepare(model.clone(), &PrepareOptions::default()).unwrap();
    let after =
        difference(&prepared, &inputs, &wanted).unwrap_or_else(|e| panic!("{name}, prepared: {e}"));
    println!(
        "| {name} | {} | {} | {as_it_is:.1e} | {after:.1e} |",
        model.graph.nodes.len(),
        prepared.graph.nodes.len()
    );
}

/// The tensors of a case's files, each with the name that is in it.
fn tensors(folder: &Path, kind: &str) -> Vec<(String, Tensor)> {
    let read = |i: usize| {
        let bytes = fs::read(folder.join(format!("{kind}_{i}.pb"))).ok()?;
        let tensor = midtread_onnx::tensor_from_bytes(Bytes::from(bytes)).unwrap();
        Some((tensor.notes().unwrap().name.clone(), tensor))
    };
    (0..).map_while(read).collect()
}

/// The largest difference of any element of any output, in parts of that output's largest value.
fn difference(
    model: &Model,
    inputs: &[(String, Tensor)],
    wanted: &[(String, Tensor)],
) -> Result<f64, String> {
    let interpreter = Interpreter::new(model, Options::default()).map_err(|e| e.to_string())?;
    let outputs = interpreter.run(inputs.to_vec()).map_err(|e| e.to_string())?;
    let mut worst = 0.0_f64;
    for ((name, got), (wanted_name, want)) in outputs.iter().zip(wanted) {
        if name != wanted_name {
            return Err(format!("an output `{name}`, not `{wanted_name}`"));
        }
        if got.dtype() != want.dtype() || got.dims() != want.dims() {
            return Err(format!("`{name}` is {got:?}, not {want:?}"));
        }
        if got.dtype() != DataType::Float {
            if got != want {
                return Err(format!("`{name}` is {got:?}, not {want:?}"));
            }
            continue;
        }
        let (got, want) = (got.to_vec::<f32>().unwrap(), want.to_vec::<f32>().unwrap());
        let largest = want.iter().fold(0.0_f64, |a, b| a.max(f64::from(b.abs())));
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            let difference = (f64::from(*g) - f64::from(*w)).abs() / largest.max(f64::MIN_POSITIVE);
            if !(difference <= TOLERANCE || g == w) {
                return Err(format!("`{name}` [{i}] is {g}, not {w}; the largest is {largest}"));
            }
            worst = worst.max(difference);
        }
    }
    if outputs.len() == wanted.len() { Ok(worst) } else { Err("another number of outputs".into()) }
}
