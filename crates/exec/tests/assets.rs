//! The interpreter and ONNX Runtime on real models: every value, one by one.

use std::{collections::BTreeMap, fs, path::Path};

use midtread_exec::{Interpreter, Options};
use midtread_graph::{DataType, Tensor};
use midtread_testkit::{asset, npz, oracle};

/// A folder of this test's own, removed at its end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("midtread-exec-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The largest difference of two values in units of `2^-24` of the largest element: the rounding errors of one
/// operation on numbers of that size.
fn ulps_of_largest(ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.dims(), theirs.dims());
    let (a, b): (Vec<f32>, Vec<f32>) = (ours.to_vec().unwrap(), theirs.to_vec().unwrap());
    let largest = b.iter().fold(0.0_f64, |m, x| m.max(f64::from(x.abs())));
    let worst =
        a.iter().zip(&b).fold(0.0_f64, |m, (x, y)| m.max((f64::from(*x) - f64::from(*y)).abs()));
    if worst == 0.0 { 0.0 } else { worst / largest * f64::from(1 << 24) }
}

/// Compares every float value of a run with ONNX Runtime's, which runs without optimizations, so that it has the
/// same values. Returns how many there were, and the worst.
fn compare(model: &Path, inputs: Vec<(String, Tensor)>, name: &str) -> (usize, f64, String) {
    let folder = Folder::new(name);
    let (given, answered) = (folder.0.join("in.npz"), folder.0.join("out.npz"));
    npz::write(&given, &inputs);
    let [model_text, given, answered_text] =
        [model, &given, &answered].map(|p| p.to_str().expect("a path in UTF-8"));
    oracle(&[
        "run",
        model_text,
        "--inputs",
        given,
        "--outputs",
        answered_text,
        "--all-values",
        "--no-optimize",
    ]);
    let theirs: BTreeMap<String, Tensor> = npz::read(&answered).into_iter().collect();

    let interpreter =
        Interpreter::new(&midtread_onnx::load(model).unwrap(), Options::default()).unwrap();
    let (mut n, mut worst) = (0, (0.0, String::new()));
    interpreter
        .run_observed(inputs, &mut |_, name, ours| {
            let Some(theirs) = theirs.get(name).filter(|_| ours.dtype() == DataType::Float) else {
                return;
            };
            let ulps = ulps_of_largest(ours, theirs);
            n += 1;
            if worst.0 < ulps {
                worst = (ulps, name.to_owned());
            }
        })
        .unwrap();
    assert_eq!(n, theirs.len(), "every value was compared");
    (n, worst.0, worst.1)
}

#[test]
fn efficientnet_agrees_with_onnx_runtime_in_every_value() {
    let picture = fs::read(asset("lite0_npy").join("animals__amphibians__frog.npy")).unwrap();
    let picture = npz::from_npy(&picture);
    let dims = [&[1], picture.dims()].concat();
    let model = asset("efficientnet_lite0.onnx");
    let input = midtread_onnx::load(&model).unwrap();
    let input = input.graph.value_name(input.graph.inputs[0]).to_owned();
    let inputs = vec![(input, picture.reshaped(dims).unwrap())];
    let (n, worst, at) = compare(&model, inputs, "lite0");
    assert!(100 < n, "{n} values");
    // Sums of up to 1152 products in another order, through 50 layers that each pass the error on. Measured: 96, and
    // 218 where ReLU6 cuts the largest element to 6 but not the error that came with it. Twice that for other CPUs.
    assert!(worst < 440.0, "`{at}`: {worst}");
}

#[test]
fn minilm_agrees_with_onnx_runtime_in_every_value() {
    let inputs = npz::read(&asset("minilm_inputs").join("Japanese.npz"));
    let (n, worst, at) = compare(&asset("minilm.onnx"), inputs, "minilm");
    assert!(100 < n, "{n} values");
    // Measured: 41 (an erf of a sum of 384 products). Twice that for other CPUs.
    assert!(worst < 82.0, "`{at}`: {worst}");
}
