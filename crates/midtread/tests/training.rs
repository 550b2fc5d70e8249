//! The demo's network, trained for its integers for a few steps, saved, and run by ONNX Runtime.

use std::sync::atomic::AtomicBool;

use midtread::{
    Format, Options, PlanOptions, Target,
    data::{self, InputSpec, Labels as FileLabels, Preprocess},
    exec::Interpreter,
    graph::{Model, Tensor},
    onnx::{self, SaveOptions},
    passes::PrepareOptions,
    quant::{
        calibrate::{Calibrator, Samples as _},
        plan::{IntType, Params},
    },
    quantize::Silent,
    train::{Data, Epoch, Hooks, Labels, Progress, recipe_for_bits},
    training::{TrainingRun, train},
};
use midtread_testkit::{npz, oracle, root};

static NEVER: AtomicBool = AtomicBool::new(false);

struct Nobody;

impl Hooks for Nobody {
    fn progress(&self, _: &Progress) {}
    fn epoch(&self, _: &Epoch) {}
    fn checkpoint(&self, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

fn logits(outputs: Vec<(String, Tensor)>) -> Vec<f32> {
    let found = outputs.into_iter().find(|(name, _)| name == "logits");
    found.expect("the model's output").1.to_vec::<f32>().unwrap()
}

fn batch(samples: &[(String, Tensor)]) -> Tensor {
    let values: Vec<f32> = samples.iter().flat_map(|(_, x)| x.to_vec::<f32>().unwrap()).collect();
    Tensor::from_slice(vec![samples.len(), 1, 28, 28], &values).unwrap()
}

#[test]
fn onnxruntime_computes_what_was_trained_at_every_width() {
    let demo = root().join("assets/demo");
    let model = onnx::load(demo.join("fashion_mobilenet.onnx")).unwrap();
    let specs = InputSpec::of(&model).unwrap();
    let limit = data::Options { limit: None, preprocess: Preprocess::preset("fashion_mnist") };
    let images = demo.join("calibration-images-idx3-ubyte.gz");
    let samples = midtread::samples::open(images, &specs, &limit).unwrap();
    let labels = FileLabels::open(demo.join("calibration-labels-idx1-ubyte.gz")).unwrap();
    let names = samples.names();
    let classes = names.iter().enumerate().map(|(i, name)| labels.get(i, name).unwrap().to_vec());
    let classes = Labels::Classes(classes.collect());
    let (which, held): (Vec<usize>, Vec<usize>) = ((0..128).collect(), (448..512).collect());
    let folder = tempfile::tempdir().unwrap();
    let tested: Vec<(String, Tensor)> =
        held.iter().map(|&i| samples.sample(i).unwrap().inputs.remove(0)).collect();
    let input = vec![("input".to_owned(), batch(&tested))];

    for (weights, activations) in [
        ((IntType::I8, None), (IntType::U8, None)),
        ((IntType::I4, Some(2)), (IntType::U8, Some(6))),
    ] {
        let plan = PlanOptions {
            weight_type: weights.0,
            weight_bits: weights.1,
            activation_type: activations.0,
            activation_bits: activations.1,
            calibrator: Calibrator::named("mse").unwrap(),
            ..PlanOptions::default()
        };
        let options = Options {
            prepare: PrepareOptions::default(),
            plan,
            target: Target::find("onnxruntime_cpu").unwrap(),
            format: Format::Qdq,
            collect: None,
            n_threads: 2,
            max_bytes: None,
            progress: &Silent,
            interrupted: &NEVER,
        };
        let training = midtread::train::Options {
            epochs: 1,
            batch: 32,
            ..(recipe_for_bits(weights.1.unwrap_or(8)).options)()
        };
        let data = Data { samples: &samples, which: &which, labels: Some(&classes) };
        let validation = Data { which: &held, ..data };
        let model: Model = model.clone();
        let run = TrainingRun { training: &training, n_calibration: 32, resume: None };
        let trained = train(model, data, Some(validation), &options, run, &Nobody).unwrap();
        // Every one of its batch normalizations follows a convolution.
        assert_eq!(trained.n_norms, 22);
        let scores = trained.scores.unwrap();
        let last = trained.epochs[0].score.unwrap();
        // The simulation, and the integer model in the interpreter: the same numbers, rounded once more where a
        // convolution is computed together with what follows it.
        assert_eq!(scores.qat.value, last.value, "{weights:?}");

        let path = folder.path().join("trained.onnx");
        onnx::save(&trained.model, &path, &SaveOptions::default()).unwrap();
        let path_text = path.to_str().unwrap();
        oracle(&["check", path_text]);
        let (given, answered) = (folder.path().join("in.npz"), folder.path().join("out.npz"));
        npz::write(&given, &input);
        let (given, answered_text) = (given.to_str().unwrap(), answered.to_str().unwrap());
        oracle(&["run", path_text, "--inputs", given, "--outputs", answered_text, "--no-optimize"]);
        let theirs = logits(npz::read(&answered));
        let interpreter =
            Interpreter::new(&onnx::load(&path).unwrap(), Default::default()).unwrap();
        let ours = logits(interpreter.run(input.clone()).unwrap());
        let Params::PerTensor(output) = trained.plan.tensors["logits"].params else {
            panic!("activations are per tensor")
        };
        // Sums of floats in another order round a value between two codes the other way, once in a while, and so
        // shift the output by a step; more than a step in many places would be another model.
        let steps: Vec<f32> =
            ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs() / output.scale()).collect();
        let n_apart = steps.iter().filter(|&&s| 0.01 < s).count();
        let worst = steps.iter().fold(0.0_f32, |m, &s| m.max(s));
        assert!(
            n_apart * 50 < steps.len(),
            "{weights:?}: {n_apart} of {} apart, {worst} steps",
            steps.len()
        );
    }
}
