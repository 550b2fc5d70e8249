//! The example of a small binary with a network in it: builds without `std`, is small, and says what the engine says.

use std::{path::Path, process::Command, sync::atomic::AtomicBool};

use midtread::{
    EngineOptions, Format, Options, PlanOptions, Target,
    data::{self, InputSpec, Preprocess},
    engine::{Code, Program},
    onnx,
    passes::PrepareOptions,
    quant::calibrate::Samples as _,
    quantize::Silent,
};
use midtread_testkit::root;

/// What the binary may weigh besides its network.
const MOST: u64 = 3_000_000;

static NEVER: AtomicBool = AtomicBool::new(false);

#[test]
fn a_binary_with_a_network_in_it_is_small_and_answers_as_the_engine_does() {
    let folder = tempfile::tempdir().unwrap();
    let model = onnx::load(root().join("assets/demo/fashion_mobilenet.onnx")).unwrap();
    let specs = InputSpec::of(&model).unwrap();
    let limit = data::Options { limit: Some(4), preprocess: Preprocess::preset("fashion_mnist") };
    let images = root().join("assets/demo/calibration-images-idx3-ubyte.gz");
    let samples = midtread::samples::open(&images, &specs, &limit).unwrap();
    let options = Options {
        prepare: PrepareOptions::default(),
        plan: PlanOptions::default(),
        target: Target::find("onnxruntime_cpu").unwrap(),
        format: Format::Qdq,
        collect: None,
        n_threads: 1,
        max_bytes: None,
        progress: &Silent,
        interrupted: &NEVER,
    };
    let int8 = midtread::quantize(model, Some(&samples), &options).unwrap().model;
    let code = Code::compile(&int8, &EngineOptions::default()).unwrap();
    let file = folder.path().join("demo.mtp");
    std::fs::write(&file, code.to_bytes()).unwrap();

    let target = root().join("target/small");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "midtread-small", "--profile", "small"])
        .args(["--locked", "--offline", "--target-dir"])
        .arg(&target)
        .env("MIDTREAD_PROGRAM", &file)
        .current_dir(root())
        .status()
        .unwrap();
    assert!(built.success());
    let binary =
        target.join("small").join(format!("midtread-small{}", std::env::consts::EXE_SUFFIX));
    let size = |path: &Path| std::fs::metadata(path).unwrap().len();
    let own = size(&binary) - size(&file);
    assert!(own <= MOST, "{own} bytes without the network");

    let program = Program::new(code).unwrap();
    let name = program.inputs()[0].name.clone();
    for i in 0..4 {
        let picture = samples.sample(i).unwrap().inputs[0].1.clone();
        let raw = folder.path().join("picture.f32");
        std::fs::write(&raw, picture.as_bytes()).unwrap();
        let output = Command::new(&binary).arg(&raw).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let theirs: Vec<f32> = text.lines().map(|line| line.parse().unwrap()).collect();
        let ours = program.run(vec![(name.clone(), picture)]).unwrap();
        assert_eq!(theirs, ours[0].1.to_vec::<f32>().unwrap(), "picture {i}");
    }
}
