//! Real models, prepared: what the passes find in them, and that ONNX Runtime computes the same as before.

use std::{fs, path::Path};

use midtread_graph::{Model, Tensor};
use midtread_onnx::SaveOptions;
use midtread_passes::{PrepareOptions, Report, prepare};
use midtread_testkit::{asset, npz, oracle};

/// ONNX Runtime's outputs.
fn reference(model: &Path, inputs: &[(String, Tensor)], folder: &Path) -> Vec<(String, Tensor)> {
    let (given, answered) = (folder.join("in.npz"), folder.join("out.npz"));
    npz::write(&given, inputs);
    let [model, given, answered_text] =
        [model, &given, &answered].map(|p| p.to_str().expect("a path in UTF-8"));
    oracle(&["run", model, "--inputs", given, "--outputs", answered_text, "--no-optimize"]);
    npz::read(&answered)
}

/// Prepares the model, and has ONNX Runtime check it and run it before and after. The largest difference, in units
/// of `2^-24` of the largest element, must be below `bound`.
fn prepared(
    name: &str,
    inputs: &[(String, Tensor)],
    options: &PrepareOptions,
    bound: f64,
) -> (Model, Report) {
    let path = asset(name);
    let folder =
        std::env::temp_dir().join(format!("midtread-passes-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (after, report) = prepare(midtread_onnx::load(&path).unwrap(), options).unwrap();
    assert!(report.is_fixed_point);
    let saved = folder.join("prepared.onnx");
    midtread_onnx::save(&after, &saved, &SaveOptions::default()).unwrap();
    oracle(&["check", saved.to_str().expect("a path in UTF-8")]);
    let (before, now) = (reference(&path, inputs, &folder), reference(&saved, inputs, &folder));
    assert_eq!(before.len(), now.len());
    for ((name, a), (other, b)) in before.iter().zip(&now) {
        assert_eq!((name, a.dims()), (other, b.dims()));
        let (a, b): (Vec<f32>, Vec<f32>) = (a.to_vec().unwrap(), b.to_vec().unwrap());
        let largest = a.iter().fold(0.0_f64, |m, x| m.max(f64::from(x.abs())));
        let worst = a.iter().zip(&b).fold(0.0_f64, |m, (x, y)| m.max(f64::from((x - y).abs())));
        let ulps = worst / largest * f64::from(1 << 24);
        assert!(ulps < bound, "`{name}`: {ulps} ulp of the largest");
    }
    // The file may grow by its types (a line for each value), not by constants.
    let (was, is) = (fs::metadata(&path).unwrap().len(), fs::metadata(&saved).unwrap().len());
    assert!(is < was + 64 * 1024, "{was} bytes became {is}");
    fs::remove_dir_all(&folder).unwrap();
    (after, report)
}

#[test]
fn efficientnet_loses_its_batch_norms_and_nothing_else() {
    let picture = fs::read(asset("lite0_npy").join("animals__amphibians__frog.npy")).unwrap();
    let picture = npz::from_npy(&picture);
    let dims = [&[1], picture.dims()].concat();
    let model = midtread_onnx::load(asset("efficientnet_lite0.onnx")).unwrap();
    let input = model.graph.value_name(model.graph.inputs[0]).to_owned();
    let inputs = [(input, picture.reshaped(dims).unwrap())];
    // 50 layers whose weights are rounded once more each.
    let (after, report) =
        prepared("efficientnet_lite0.onnx", &inputs, &PrepareOptions::default(), 100.0);
    let count = |op: &str| after.graph.nodes.iter().filter(|n| n.is(op)).count();
    let n_norms = model.graph.nodes.iter().filter(|n| n.is("BatchNormalization")).count();
    assert!(0 < n_norms && count("BatchNormalization") == 0);
    assert_eq!(report.pass("fuse_batch_norm").unwrap().changes.len(), n_norms);
    for pass in &report.passes {
        assert!(pass.skips.is_empty(), "{pass:?}");
    }
    for id in after.graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten()) {
        let value = after.graph.value(*id);
        let dims = value.ty.as_ref().and_then(|ty| ty.dims());
        assert!(
            dims.is_some_and(|dims| dims[1..].iter().all(|d| d.known().is_some())),
            "{value:?}"
        );
    }
}

#[test]
fn minilm_keeps_its_values_bit_for_bit() {
    let inputs = npz::read(&asset("minilm_inputs").join("Japanese.npz"));
    // Only folding of constants, which computes what ONNX Runtime would.
    let (after, report) = prepared("minilm.onnx", &inputs, &PrepareOptions::default(), 1e-9);
    for pass in &report.passes {
        assert!(pass.skips.is_empty(), "{pass:?}");
    }
    for id in after.graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten()) {
        let value = after.graph.value(*id);
        assert!(value.ty.as_ref().is_some_and(|ty| ty.dims().is_some()), "{value:?}");
    }
}
