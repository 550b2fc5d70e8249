//! Whole models in the engine: every class of instructions gives the same bits, and ONNX Runtime the same answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    sync::atomic::AtomicBool,
};

use midtread::{
    EngineOptions, Format, Options, PlanOptions, Target,
    data::{self, InputSpec, Preprocess},
    engine::Program,
    graph::{Model, Tensor},
    onnx::{self, SaveOptions},
    passes::PrepareOptions,
    quant::calibrate::Samples as _,
    quantize::Silent,
};
use midtread_testkit::{asset, npz, oracle, root};

static NEVER: AtomicBool = AtomicBool::new(false);

/// Where a child finds the model and its inputs.
const FOLDER: &str = "MIDTREAD_TEST_FOLDER";

fn quantize(model: Model, samples: &Path, preset: Option<&str>, limit: usize) -> Model {
    let specs = InputSpec::of(&model).unwrap();
    let preprocess = preset.map_or_else(Default::default, Preprocess::preset);
    let limit = data::Options { limit: Some(limit), preprocess };
    let samples = midtread::samples::open(samples, &specs, &limit).unwrap();
    let options = Options {
        prepare: PrepareOptions::default(),
        plan: PlanOptions::default(),
        target: Target::find("onnxruntime_cpu").unwrap(),
        format: Format::Qdq,
        collect: None,
        n_threads: 2,
        max_bytes: None,
        progress: &Silent,
        interrupted: &NEVER,
    };
    midtread::quantize(model, Some(&samples), &options).unwrap().model
}

fn save(model: &Model, path: &Path) {
    onnx::save(model, path, &SaveOptions::default()).unwrap();
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Not a test by itself: what the next one runs in processes of their own, because a process never mixes classes.
#[test]
#[ignore = "a part of another test"]
fn child_that_runs_models_in_a_folder() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    for name in ["demo", "efficientnet", "minilm"] {
        let model = onnx::load(folder.join(name).with_extension("onnx")).unwrap();
        let inputs = npz::read(&folder.join(name).with_extension("npz"));
        let program = Program::compile(&model, &EngineOptions::default()).unwrap();
        for n_threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let made = pool.install(|| program.run(inputs.clone())).unwrap();
            let bytes: Vec<u8> =
                made.iter().flat_map(|(_, tensor)| tensor.as_bytes().to_vec()).collect();
            println!("bits of {name}: {:016x}", hash(&bytes));
        }
    }
}

#[test]
fn whole_models_give_the_same_bits_on_every_class_of_instructions_and_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);

    let demo = onnx::load(root().join("assets/demo/fashion_mobilenet.onnx")).unwrap();
    let images = root().join("assets/demo/calibration-images-idx3-ubyte.gz");
    let input = InputSpec::of(&demo).unwrap();
    let limit = data::Options { limit: Some(2), preprocess: Preprocess::preset("fashion_mnist") };
    let pictures = midtread::samples::open(&images, &input, &limit).unwrap();
    npz::write(&at("demo.npz"), &pictures.sample(1).unwrap().inputs);
    save(&quantize(demo, &images, Some("fashion_mnist"), 32), &at("demo.onnx"));

    let efficientnet = onnx::load(asset("efficientnet_lite0.onnx")).unwrap();
    let pictures = asset("lite0_npy");
    let input = InputSpec::of(&efficientnet).unwrap();
    let limit = data::Options { limit: Some(1), ..data::Options::default() };
    let picture = midtread::samples::open(&pictures, &input, &limit).unwrap();
    npz::write(&at("efficientnet.npz"), &picture.sample(0).unwrap().inputs);
    save(&quantize(efficientnet, &pictures, None, 4), &at("efficientnet.onnx"));

    // 21 tokens: no multiple of anything.
    let ids: Vec<i64> = (0..21).map(|i| 1000 + i * 997 % 20000).collect();
    let row = |values: Vec<i64>| Tensor::from_slice(vec![1, 21], &values).unwrap();
    let words =
        [("input_ids", ids), ("attention_mask", vec![1; 21]), ("token_type_ids", vec![0; 21])];
    let words: Vec<_> = words.into_iter().map(|(name, x)| (name.to_owned(), row(x))).collect();
    npz::write(&at("minilm.npz"), &words);
    let minilm = onnx::load(asset("minilm.onnx")).unwrap();
    save(&quantize(minilm, &at("minilm.npz"), None, 1), &at("minilm.onnx"));

    let mut bits: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let classes = if cfg!(target_arch = "x86_64") {
        &["", "avx512", "avx2", "scalar"][..]
    } else {
        &["", "neon", "scalar"]
    };
    for class in classes {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_runs_models_in_a_folder", "--ignored", "--nocapture"])
            .env("MIDTREAD_ISA", class)
            .env(FOLDER, folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(child.status.success(), "{class}: {said}");
        let lines: Vec<&str> =
            said.lines().filter_map(|line| line.split("bits of ").nth(1)).collect();
        assert_eq!(lines.len(), 6, "{class}: three models on two numbers of threads: {said}");
        for line in lines {
            let (name, hash) = line.split_once(": ").unwrap();
            bits.entry(name.to_owned()).or_default().insert(hash.trim().to_owned());
        }
    }
    assert!(bits.values().all(|hashes| hashes.len() == 1), "{bits:?}");
}

/// ONNX Runtime's answer: the last output.
fn onnxruntime(
    model: &Path,
    inputs: &[(String, Tensor)],
    folder: &Path,
    options: &[&str],
) -> Vec<f32> {
    let paths = ["given.npz", "answered.npz"].map(|name| folder.join(name));
    npz::write(&paths[0], inputs);
    let [given, answered] = paths.each_ref().map(|path| path.to_str().unwrap());
    let command = ["run", model.to_str().unwrap(), "--inputs", given, "--outputs", answered];
    oracle(&[&command[..], options].concat());
    npz::read(&paths[1]).last().unwrap().1.to_vec().unwrap()
}

type Inputs = Vec<(String, Tensor)>;

/// All pictures in one tensor, and one by one.
fn pictures(model: &Model, limit: Option<usize>) -> (Inputs, Vec<Inputs>) {
    let specs = InputSpec::of(model).unwrap();
    let options = data::Options { limit, ..data::Options::default() };
    let samples = midtread::samples::open(asset("lite0_npy"), &specs, &options).unwrap();
    let each: Vec<_> =
        (0..samples.names().len()).map(|i| samples.sample(i).unwrap().inputs).collect();
    let name = each[0][0].0.clone();
    let all: Vec<f32> =
        each.iter().flat_map(|inputs| inputs[0].1.to_vec::<f32>().unwrap()).collect();
    let dims = [&[each.len()][..], &each[0][0].1.dims()[1..]].concat();
    (vec![(name, Tensor::from_slice(dims, &all).unwrap())], each)
}

fn argmax(values: &[f32]) -> usize {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap()
}

#[test]
fn efficientnet_gives_onnxruntimes_answer_to_every_labelled_picture() {
    let folder = tempfile::tempdir().unwrap();
    let model = onnx::load(asset("efficientnet_lite0.onnx")).unwrap();
    let int8 = quantize(model, &asset("lite0_npy"), None, 32);
    let path = folder.path().join("int8.onnx");
    save(&int8, &path);
    let (all, each) = pictures(&int8, None);
    assert_eq!(each.len(), 149);
    let theirs = onnxruntime(&path, &all, folder.path(), &[]);
    let program = Program::compile(&int8, &EngineOptions::default()).unwrap();
    let n_classes = theirs.len() / 149;
    let mut different = Vec::new();
    for (i, (inputs, theirs)) in each.into_iter().zip(theirs.chunks_exact(n_classes)).enumerate() {
        let ours = program.run(inputs).unwrap()[0].1.to_vec::<f32>().unwrap();
        if argmax(&ours) != argmax(theirs) {
            different.push((i, argmax(&ours), argmax(theirs)));
        }
    }
    assert!(different.is_empty(), "{different:?}");
}

#[test]
fn what_onnxruntimes_quantizer_writes_gives_the_codes_that_it_makes_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let float = asset("efficientnet_lite0.onnx");
    let images = asset("lite0_npy");
    // In signed codes some code inside of the model comes out as its neighbour, which makes two steps in the end: as many
    // as there are between ONNX Runtime's own answers with and without its optimizations.
    for (format, activation, more, allowed) in [
        ("qdq", "u8", &["--per-channel"][..], 0.001),
        ("qoperator", "u8", &["--per-channel"], 0.001),
        ("qdq", "s8", &[], 2.001),
        ("qoperator", "s8", &[], 2.001),
    ] {
        let path = folder.path().join(format!("{format}-{activation}.onnx"));
        let [from, to, dir] = [&float, &path, &images].map(|path| path.to_str().unwrap());
        let command = ["quantize", from, to, "--inputs-dir", dir, "--limit", "8"];
        let options = ["--format", format, "--activation", activation];
        oracle(&[&command[..], &options, more].concat());
        let model = onnx::load(&path).unwrap();
        let program = Program::compile(&model, &EngineOptions::default()).unwrap();
        let in_integers =
            |op: &str| program.steps().filter(|s| s.op_type == op).all(|s| s.kind != "operator");
        for op in ["Conv", "QLinearConv", "Add", "QLinearAdd", "Gemm", "QGemm"] {
            assert!(in_integers(op), "{format} {activation}: {op}");
        }
        // What the output is steps of.
        let graph = &model.graph;
        let last = graph.nodes.iter().find(|node| node.outputs.contains(&Some(graph.outputs[0])));
        let last = last.unwrap();
        assert!(last.is("DequantizeLinear"), "{format} {activation}: ends with {}", last.op_type);
        let scale = graph.value(last.input(1).unwrap()).constant.as_ref().unwrap();
        let step = scale.item::<f32>().unwrap();
        let (all, each) = pictures(&model, Some(8));
        let theirs = onnxruntime(&path, &all, folder.path(), &[]);
        let n_classes = theirs.len() / each.len();
        let mut furthest = 0.0_f32;
        for (inputs, theirs) in each.into_iter().zip(theirs.chunks_exact(n_classes)) {
            let ours = program.run(inputs).unwrap()[0].1.to_vec::<f32>().unwrap();
            for (ours, theirs) in ours.iter().zip(theirs) {
                furthest = furthest.max((ours - theirs).abs() / step);
            }
        }
        assert!(furthest <= allowed, "{format} {activation}: {furthest} steps");
    }
}

#[test]
fn a_static_transformer_is_as_near_to_onnxruntime_as_its_optimizations_leave_it() {
    let folder = tempfile::tempdir().unwrap();
    let sentences = asset("minilm_inputs");
    let int8 = quantize(onnx::load(asset("minilm.onnx")).unwrap(), &sentences, None, 32);
    let path = folder.path().join("int8.onnx");
    save(&int8, &path);
    let program = Program::compile(&int8, &EngineOptions::default()).unwrap();
    for op in ["MatMul", "Softmax", "Erf", "Transpose"] {
        let of: Vec<_> = program.steps().filter(|step| step.op_type == op).collect();
        assert!(of.iter().all(|step| step.kind != "operator"), "{op}: {of:?}");
    }
    let specs = InputSpec::of(&int8).unwrap();
    let options = data::Options { limit: Some(4), ..data::Options::default() };
    let samples = midtread::samples::open(&sentences, &specs, &options).unwrap();
    let error = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
    let [mut ours, mut theirs] = [0.0; 2];
    for i in 0..4 {
        let inputs = samples.sample(i).unwrap().inputs;
        let run = |options: &[&str]| onnxruntime(&path, &inputs, folder.path(), options);
        let (optimized, defined) = (run(&[]), run(&["--no-optimize"]));
        let answer = program.run(inputs.clone()).unwrap().pop().unwrap().1.to_vec::<f32>().unwrap();
        ours += error(&answer, &optimized);
        theirs += error(&defined, &optimized);
    }
    // A code that comes out as its neighbour goes through six layers, so that errors are like drawn by lot: a quarter
    // more is no other computation.
    assert!(ours <= 1.25 * theirs, "{ours}, and {theirs} between ONNX Runtime's own");
}
