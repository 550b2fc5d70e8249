//! Real models, quantized here, loaded and run by ONNX Runtime, and compared with its own quantizer.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use midtread::{
    Format, Options, PlanOptions, Quantized, Scheme, Target,
    data::{self, InputSpec, Preprocess},
    evaluate::{RunOptions, predict, score},
    exec::Interpreter,
    graph::{Model, Tensor},
    onnx::{self, SaveOptions},
    passes::PrepareOptions,
    quant::{calibrate::Samples as _, plan::WeightGranularity},
    quantize::Silent,
    samples::DataSamples,
};
use midtread_testkit::{asset, npz, oracle, root};
use serde_json::Value;

static NEVER: AtomicBool = AtomicBool::new(false);

fn options(plan: PlanOptions, format: Format) -> Options<'static> {
    Options {
        prepare: PrepareOptions::default(),
        plan,
        target: Target::find("onnxruntime_cpu").unwrap(),
        format,
        collect: None,
        n_threads: 2,
        max_bytes: None,
        progress: &Silent,
        interrupted: &NEVER,
    }
}

/// The first `n` files of a folder of arrays.
fn arrays(model: &Model, folder: &Path, n: usize) -> DataSamples {
    let options = data::Options { limit: Some(n), ..data::Options::default() };
    midtread::samples::open(folder, &InputSpec::of(model).unwrap(), &options).unwrap()
}

fn save(model: &Model, folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    onnx::save(model, &path, &SaveOptions::default()).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Loads in ONNX Runtime, passes its checker, and is no larger than the file it came from.
fn check(path: &Path, source: &Path) {
    oracle(&["check", text(path)]);
    let (after, before) =
        (std::fs::metadata(path).unwrap().len(), std::fs::metadata(source).unwrap().len());
    assert!(after <= before, "{}: {after} bytes from {before}", path.display());
}

/// Scales by initializer name, each a number or a list.
fn scales(path: &Path) -> BTreeMap<String, Vec<f64>> {
    let Value::Object(map) = oracle(&["scales", text(path)]) else { panic!("an object of scales") };
    let numbers = |v: &Value| match v {
        Value::Array(list) => list.iter().map(|x| x.as_f64().unwrap()).collect(),
        one => vec![one.as_f64().unwrap()],
    };
    map.iter()
        .filter(|(name, _)| name.ends_with("_scale"))
        .map(|(name, v)| (name.clone(), numbers(v)))
        .collect()
}

fn quantize_efficientnet(format: Format, granularity: WeightGranularity) -> (Quantized, PathBuf) {
    let source = asset("efficientnet_lite0.onnx");
    let model = onnx::load(&source).unwrap();
    let samples = arrays(&model, &asset("lite0_npy"), 32);
    let plan = PlanOptions { granularity, ..PlanOptions::default() };
    (midtread::quantize(model, Some(&samples), &options(plan, format)).unwrap(), source)
}

#[test]
fn efficientnet_scales_equal_onnxruntimes_own_and_its_answers_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (result, source) = quantize_efficientnet(Format::Qdq, WeightGranularity::PerChannel);
    let ours = save(&result.model, folder.path(), "ours.onnx");
    check(&ours, &source);

    let theirs = folder.path().join("theirs.onnx");
    let arrays_dir = asset("lite0_npy");
    #[rustfmt::skip]
    oracle(&[
        "quantize", text(&source), text(&theirs), "--inputs-dir", text(&arrays_dir), "--limit", "32",
        "--method", "minmax", "--activation", "u8", "--weight", "s8", "--per-channel", "--format", "qdq",
    ]);
    let (a, b) = (scales(&ours), scales(&theirs));
    let shared: Vec<&String> = b.keys().filter(|name| a.contains_key(*name)).collect();
    // Weights of fused convolutions have other names there; activations and the classifier have the same.
    assert!(shared.len() >= 50, "{} of {} names are shared", shared.len(), b.len());
    for name in shared {
        let (a, b) = (&a[name], &b[name]);
        assert_eq!(a.len(), b.len(), "{name}");
        for (x, y) in a.iter().zip(b) {
            // Both are extrema of float32 sums in different orders.
            assert!(
                (x / y - 1.0).abs() <= 1e-6,
                "{name}: {x} here, {y} there, {:e} apart",
                x / y - 1.0
            );
        }
    }
}

#[test]
fn efficientnet_runs_the_same_in_onnxruntime_and_here() {
    let folder = tempfile::tempdir().unwrap();
    for (format, name) in [(Format::Qdq, "qdq.onnx"), (Format::QOperator, "qoperator.onnx")] {
        let (result, source) = quantize_efficientnet(format, WeightGranularity::PerChannel);
        let path = save(&result.model, folder.path(), name);
        check(&path, &source);
        let model = onnx::load(&path).unwrap();
        let samples = arrays(&model, &asset("lite0_npy"), 8);
        let options = RunOptions {
            runtime: midtread::Runtime::Interpreter,
            n_threads: 2,
            max_bytes: None,
            output: None,
            progress: &|_| {},
            interrupted: &NEVER,
        };
        let here = predict(&model, &samples, &options).unwrap();
        let float = predict(&result.prepared, &samples, &options).unwrap();
        let same = score(&here, None, Some(&float)).agreement.unwrap();
        assert!(same >= 0.75, "{name}: the int8 model agrees with float on {same} of 8 pictures");
        assert!(result.plan.counts().quantized > 50, "{:?}", result.plan.counts());
    }
}

#[test]
fn minilm_dynamic_is_as_good_as_onnxruntimes_own() {
    let folder = tempfile::tempdir().unwrap();
    let source = asset("minilm.onnx");
    let model = onnx::load(&source).unwrap();
    let plan = PlanOptions { scheme: Scheme::Dynamic, ..PlanOptions::default() };
    let result = midtread::quantize(model, None, &options(plan, Format::Qdq)).unwrap();
    let ours = save(&result.model, folder.path(), "ours.onnx");
    check(&ours, &source);
    let theirs = folder.path().join("theirs.onnx");
    oracle(&["quantize-dynamic", text(&source), text(&theirs)]);
    let assets = asset("");
    let spearman = |path: &Path| {
        oracle(&["wordsim", text(path), "--dir", text(&assets)])["spearman"].as_f64().unwrap()
    };
    let (a, b) = (spearman(&ours), spearman(&theirs));
    assert!((a - b).abs() <= 0.01 || a > b, "{a} here, {b} there");
}

#[test]
fn the_demo_net_keeps_its_accuracy_in_every_scheme_and_form() {
    let folder = tempfile::tempdir().unwrap();
    let source = root().join("assets/demo/fashion_mobilenet.onnx");
    let demo = |name: &str| root().join("assets/demo").join(name);
    let model = onnx::load(&source).unwrap();
    let specs = InputSpec::of(&model).unwrap();
    let open = |name: &str, n| {
        let options =
            data::Options { limit: Some(n), preprocess: Preprocess::preset("fashion_mnist") };
        midtread::samples::open(demo(name), &specs, &options).unwrap()
    };
    let calibration = open("calibration-images-idx3-ubyte.gz", 256);
    let test = open("t10k-images-idx3-ubyte.gz", 1000);
    let run = RunOptions {
        runtime: midtread::Runtime::Interpreter,
        n_threads: 2,
        max_bytes: None,
        output: None,
        progress: &|_| {},
        interrupted: &NEVER,
    };
    let float = predict(&model, &test, &run).unwrap();
    for (scheme, format, at_least) in [
        (Scheme::Static, Format::Qdq, 0.985),
        (Scheme::Static, Format::QOperator, 0.985),
        (Scheme::Dynamic, Format::Qdq, 0.985),
        (Scheme::WeightOnly, Format::Qdq, 0.99),
    ] {
        let what = format!("{scheme} {format}");
        let plan = PlanOptions { scheme, ..PlanOptions::default() };
        let result =
            midtread::quantize(model.clone(), Some(&calibration), &options(plan, format)).unwrap();
        let path = save(&result.model, folder.path(), &format!("{scheme}_{format}.onnx"));
        check(&path, &source);
        let quantized = onnx::load(&path).unwrap();
        let answers = predict(&quantized, &test, &run).unwrap();
        let same = score(&answers, None, Some(&float)).agreement.unwrap();
        assert!(same >= at_least, "{what}: agrees with float on {same} of 1000");
    }
}

/// The largest difference between this interpreter's outputs and ONNX Runtime's (without graph optimization) on one
/// picture, as a share of the largest output.
fn largest_difference(path: &Path, folder: &Path, inputs: Vec<(String, Tensor)>) -> f64 {
    let (given, answered) = (folder.join("in.npz"), folder.join("out.npz"));
    npz::write(&given, &inputs);
    let paths = [text(path), text(&given), text(&answered)];
    oracle(&["run", paths[0], "--inputs", paths[1], "--outputs", paths[2], "--no-optimize"]);
    let interpreter = Interpreter::new(&onnx::load(path).unwrap(), Default::default()).unwrap();
    let ours = interpreter.run(inputs).unwrap();
    let theirs: BTreeMap<String, Tensor> = npz::read(&answered).into_iter().collect();
    let mut worst = 0.0_f64;
    for (name, ours) in ours {
        let (ours, theirs) =
            (ours.to_vec::<f32>().unwrap(), theirs[&name].to_vec::<f32>().unwrap());
        assert_eq!(ours.len(), theirs.len(), "{name}");
        let largest = theirs.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let difference = ours.iter().zip(&theirs).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        worst = worst.max(f64::from(difference / largest));
    }
    worst
}

#[test]
fn quantized_models_compute_here_what_they_compute_in_onnxruntime() {
    let folder = tempfile::tempdir().unwrap();
    let model = onnx::load(root().join("assets/demo/fashion_mobilenet.onnx")).unwrap();
    let specs = InputSpec::of(&model).unwrap();
    let limit = data::Options { limit: Some(64), preprocess: Preprocess::preset("fashion_mnist") };
    let images = root().join("assets/demo/calibration-images-idx3-ubyte.gz");
    let calibration = midtread::samples::open(&images, &specs, &limit).unwrap();
    for (scheme, format) in [
        (Scheme::Static, Format::Qdq),
        (Scheme::Static, Format::QOperator),
        (Scheme::Dynamic, Format::Qdq),
        (Scheme::WeightOnly, Format::Qdq),
    ] {
        let what = format!("{scheme} {format}");
        // Seven bits of weights: ONNX Runtime's integer kernels saturate 16-bit sums of eight on CPUs without VNNI.
        let plan = PlanOptions { scheme, reduce_range: true, ..PlanOptions::default() };
        let result =
            midtread::quantize(model.clone(), Some(&calibration), &options(plan, format)).unwrap();
        let path = save(&result.model, folder.path(), &format!("{scheme}_{format}.onnx"));
        let mut n_apart = 0;
        for i in 0..4 {
            let inputs = calibration.sample(i).unwrap().inputs;
            let difference = largest_difference(&path, folder.path(), inputs);
            println!("{what}, sample {i}: {difference:e}");
            // 32 roundings of a float32 (2^-24 each): sums are in another order. None was seen in static models,
            // which end in a quantized value, and five of them (3e-7) in the others.
            let rounding = 2e-6;
            n_apart += usize::from(rounding < difference);
            // A sum in another order may move a value over a rounding threshold. That is a step of the last layer,
            // which is 2 / 255 of the largest output at most, and rare. Weight-only models have no thresholds.
            let most = if scheme == Scheme::WeightOnly { rounding } else { 2.0 / 255.0 };
            assert!(difference <= most, "{what}, sample {i}: {difference}");
        }
        assert!(n_apart <= 1, "{what}: {n_apart} of 4 samples differ by more than rounding");
    }
}

#[test]
fn the_same_bytes_come_out_whatever_the_thread_count() {
    let model = onnx::load(root().join("assets/demo/fashion_mobilenet.onnx")).unwrap();
    let specs = InputSpec::of(&model).unwrap();
    let limit = data::Options { limit: Some(40), preprocess: Preprocess::preset("fashion_mnist") };
    let path = root().join("assets/demo/calibration-images-idx3-ubyte.gz");
    let calibration = midtread::samples::open(&path, &specs, &limit).unwrap();
    let bytes: Vec<Vec<u8>> = [1, 2, 5]
        .into_iter()
        .map(|n_threads| {
            let options = Options { n_threads, ..options(PlanOptions::default(), Format::Qdq) };
            let result = midtread::quantize(model.clone(), Some(&calibration), &options).unwrap();
            onnx::to_bytes(&result.model).unwrap()
        })
        .collect();
    assert_eq!(bytes[0], bytes[1]);
    assert_eq!(bytes[0], bytes[2]);
}

#[test]
fn as_many_tensors_are_matched_as_onnxruntimes_own_debugging_matches() {
    let folder = tempfile::tempdir().unwrap();
    let (source, inputs) = (asset("efficientnet_lite0.onnx"), asset("lite0_npy"));
    let theirs = folder.path().join("theirs.onnx");
    #[rustfmt::skip]
    oracle(&[
        "quantize", text(&source), text(&theirs), "--inputs-dir", text(&inputs), "--limit", "4",
        "--method", "minmax", "--activation", "u8", "--weight", "s8", "--per-channel", "--format", "qdq",
    ]);
    #[rustfmt::skip]
    let found = oracle(&[
        "debug-pairs", text(&source), text(&theirs), "--inputs-dir", text(&inputs), "--limit", "1",
    ]);
    let count = |kind: &str| found[kind].as_array().unwrap().len();
    let (float, quantized) = (onnx::load(&source).unwrap(), onnx::load(&theirs).unwrap());
    let options = midtread::compare::Options {
        n_threads: 2,
        max_bytes: None,
        progress: &|_| {},
        interrupted: &NEVER,
    };
    let samples = arrays(&float, &inputs, 2);
    let result = midtread::compare::compare(&float, &quantized, &samples, &options).unwrap();
    let is_activation = |t: &&midtread::compare::TensorRow| {
        t.kind == midtread::compare::Kind::Activation && t.dtype.is_some()
    };
    let activations = result.tensors.iter().filter(is_activation).count();
    let weights =
        result.tensors.iter().filter(|t| t.kind != midtread::compare::Kind::Activation).count();
    let all = (activations, weights, count("activations"), count("weights"));
    assert!(count("activations") <= activations && count("weights") <= weights, "{all:?}");
    assert!(40 < activations && 40 < weights, "{all:?}");
    // The functions for looking by hand find the same weights, with the same values.
    let pairs = midtread::debug::match_weights(&float, &quantized);
    for (name, sizes) in found["weight_sizes"].as_object().unwrap() {
        let pair =
            pairs.get(name).unwrap_or_else(|| panic!("{name} is not among {:?}", pairs.keys()));
        let (ours, theirs) = (pair.slices(), sizes.as_array().unwrap());
        for (ours, theirs) in [(&ours.0, &theirs[0]), (&ours.1, &theirs[1])] {
            let size: f64 = ours.iter().map(|x| f64::from(x.abs())).sum();
            let theirs = theirs.as_f64().unwrap();
            // They dequantize in float32 as well; only the sums are not the same additions.
            assert!((size - theirs).abs() <= 1e-5 * theirs, "{name}: {size} and {theirs}");
        }
    }
    // What is matched is the same thing: the quantized model is close to the float one everywhere.
    for t in result.tensors.iter().filter(is_activation) {
        assert!(0.8 < t.cosine, "{}: cosine {} to {}", t.name, t.cosine, t.quantized_name);
    }
    assert!(result.outputs[0].kl.is_some_and(|kl| kl < 1.0), "{:?}", result.outputs);
}
