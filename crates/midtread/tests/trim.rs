//! The demo's network, trimmed on a few of its test images, written, and run by ONNX Runtime.

use std::sync::atomic::AtomicBool;

use midtread::{
    Runner, Runtime,
    data::{self, InputSpec, Labels, Preprocess},
    graph::{DataType, Model, Tensor},
    onnx::{self, SaveOptions},
    passes::PrepareOptions,
    quant::calibrate::{Calibrator, Samples as _},
    quantize::Silent,
    samples::DataSamples,
    trim::{self, Mode, Options, Outcome, Rounding, formats::Numbers, search::Group},
};
use midtread_testkit::{npz, oracle, root};

static NEVER: AtomicBool = AtomicBool::new(false);

fn demo(n: usize) -> (Model, DataSamples, Vec<Vec<usize>>) {
    let folder = root().join("assets/demo");
    let model = onnx::load(folder.join("fashion_mobilenet.onnx")).unwrap();
    let preprocess = Some(Preprocess::find("fashion_mnist").unwrap());
    let options = data::Options { preprocess, limit: Some(n) };
    let specs = InputSpec::of(&model).unwrap();
    let images = folder.join("t10k-images-idx3-ubyte.gz");
    let samples = midtread::samples::open(&images, &specs, &options).unwrap();
    let labels = Labels::open(folder.join("t10k-labels-idx1-ubyte.gz")).unwrap();
    let names = samples.names();
    let labels = names.iter().enumerate().map(|(i, name)| labels.get(i, name).unwrap().to_vec());
    let labels = labels.collect();
    (model, samples, labels)
}

fn trimmed(
    (mode, rounding, calibrator): (Mode, Rounding, &str),
    n_samples: usize,
    margin: f64,
    max_trials: usize,
) -> Outcome {
    let (model, samples, labels) = demo(n_samples);
    let options = Options {
        prepare: PrepareOptions::default(),
        mode,
        rounding,
        seed: 1,
        margin,
        calibrator: Calibrator::named(calibrator).unwrap(),
        max_trials,
        labels: Some(&labels),
        n_threads: 2,
        max_bytes: None,
        progress: &Silent,
        trials: &|_| {},
        interrupted: &NEVER,
    };
    trim::trim(model, &samples, &options).unwrap()
}

#[test]
fn fixed_point_keeps_the_margin_and_onnxruntime_computes_the_same() {
    let found = trimmed((Mode::FixedPoint, Rounding::Nearest, "min_max"), 32, 0.05, 30);
    assert!(found.keeps_margin && found.float_score - 0.05 <= found.written_score + 1e-9);
    // Fewer bits than 16 everywhere, or nothing was searched.
    assert!(
        found.widths.0.len() == 3 && found.widths.0.values().all(|bits| *bits <= 12),
        "{:?}",
        found.widths
    );
    assert!(found.trials.len() <= 31, "{}", found.trials.len());

    // Every scale is a power of two, and every tensor's lengths are its width.
    let plan = found.plan.as_ref().unwrap();
    for tensor in &found.tensors {
        let Numbers::Fixed { params, .. } = &tensor.numbers else { panic!("fixed point") };
        assert_eq!(params.scale().to_bits() & 0x007f_ffff, 0, "{}", tensor.tensor);
        let (integer, fraction) = tensor.numbers.lengths().unwrap();
        assert_eq!(integer + fraction, tensor.numbers.n_bits() as i32);
        assert_eq!(plan.tensors[&tensor.tensor].params.as_slice()[0], *params);
    }

    // The file, without ONNX Runtime's own fusing: the same codes, so the same outputs.
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    onnx::save(&found.model, path("model.onnx"), &SaveOptions::default()).unwrap();
    oracle(&["check", &path("model.onnx")]);
    let (_, samples, _) = demo(4);
    let model = onnx::load(path("model.onnx")).unwrap();
    let interpreter =
        midtread::exec::Interpreter::new(&model, midtread::exec::Options::default()).unwrap();
    let engine = Runner::new(&model, Runtime::Engine, None).unwrap();
    let Runner::Engine(program) = &engine else { unreachable!("it is the engine's") };
    assert!(program.steps().any(|step| step.kind != "operator"), "nothing runs in integers");
    for i in 0..4 {
        let inputs = samples.sample(i).unwrap().inputs;
        npz::write(path("in.npz").as_ref(), &inputs);
        #[rustfmt::skip]
        oracle(&["run", &path("model.onnx"), "--inputs", &path("in.npz"), "--outputs", &path("out.npz"), "--no-optimize"]);
        // With powers of two every product and sum is exact, in floats as in integers, here as there.
        let exact = engine.run(inputs.clone()).unwrap();
        let (want, got) = (interpreter.run(inputs).unwrap(), npz::read(path("out.npz").as_ref()));
        assert_eq!(floats(&want[0].1), floats(&exact[0].1));
        let (want, got) = (&want[0].1, &got[0].1);
        assert_eq!((want.dtype(), want.dims()), (DataType::Float, got.dims()));
        assert_eq!(floats(want), floats(got), "here, and in ONNX Runtime");
    }
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.to_vec().unwrap()
}

#[test]
fn the_other_modes_and_roundings_search_too_and_repeat_themselves() {
    let run = || {
        let found = trimmed((Mode::FixedPoint, Rounding::Stochastic, "mse"), 6, 0.2, 10);
        (found.widths.clone(), found.trials.clone(), found.written_score)
    };
    assert_eq!(run(), run());
    for mode in [Mode::Minifloat, Mode::PowerOfTwo] {
        let found = trimmed((mode, Rounding::Nearest, "min_max"), 6, 0.2, 10);
        assert!(found.trials.len() > 5 && found.plan.is_none());
        let weights = found.tensors.iter().filter(|t| t.group != Group::Activations);
        for weight in weights {
            // The file has these weights and no others.
            let id = found.model.graph.find(&weight.tensor).unwrap();
            let values = found.model.graph.constant(id).unwrap().to_vec::<f32>().unwrap();
            assert_eq!(weight.numbers.round_all(&values, 0), values, "{mode} {}", weight.tensor);
        }
    }
}
