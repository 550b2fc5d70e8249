//! Models in 16-bit floats, run by ONNX Runtime and compared with float32.

use std::{path::Path, sync::atomic::AtomicBool};

use midtread::{
    Runner, Runtime, Target,
    data::{self, InputSpec},
    graph::{AttrValue, DataType, Dim, Graph, Model, Node, Tensor, Type},
    half::{self, Converted},
    num::error::ErrorSums,
    onnx::{self, SaveOptions},
    passes::PrepareOptions,
    quant::{
        calibrate::Samples,
        half::{HalfOptions, HalfType},
    },
    quantize::Silent,
    samples::DataSamples,
};
use midtread_testkit::{asset, npz, oracle, root};

static NEVER: AtomicBool = AtomicBool::new(false);

fn convert(
    model: &Model,
    samples: Option<&dyn Samples>,
    half: HalfType,
    target: &str,
) -> Converted {
    let options = half::Options {
        prepare: PrepareOptions::default(),
        half: HalfOptions { half, keep_io_types: true, include: Vec::new(), exclude: Vec::new() },
        target: Target::find(target).unwrap(),
        n_threads: 2,
        max_bytes: None,
        progress: &Silent,
        interrupted: &NEVER,
    };
    half::convert(model.clone(), samples, &options).unwrap()
}

/// What ONNX Runtime makes of a model.
fn run(model: &Model, inputs: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    onnx::save(model, path("model.onnx"), &SaveOptions::default()).unwrap();
    npz::write(&path("in.npz"), inputs);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    oracle(&["check", &text("model.onnx")]);
    oracle(&[
        "run",
        &text("model.onnx"),
        "--inputs",
        &text("in.npz"),
        "--outputs",
        &text("out.npz"),
    ]);
    npz::read(&path("out.npz"))
}

/// Signal over noise, in decibels, of all float outputs together.
fn sqnr(want: &[(String, Tensor)], got: &[(String, Tensor)]) -> f64 {
    let mut sums = ErrorSums::default();
    for ((name, want), (_, got)) in want.iter().zip(got) {
        assert_eq!(want.dims(), got.dims(), "{name}");
        if want.dtype() == DataType::Float {
            sums = sums.merge(ErrorSums::of(&want.to_vec().unwrap(), &got.to_vec().unwrap()));
        }
    }
    sums.sqnr_db()
}

fn samples(model: &Model, folder: &Path, n: usize) -> DataSamples {
    let options = data::Options { limit: Some(n), ..data::Options::default() };
    midtread::samples::open(folder, &InputSpec::of(model).unwrap(), &options).unwrap()
}

#[test]
fn real_models_lose_no_more_than_rounding_in_onnxruntime() {
    // What onnxruntime.transformers' conversion of the whole model reaches on eight such inputs (bench/half.py), in
    // decibels, less 3 for the two that are run here.
    for (name, folder, theirs) in
        [("efficientnet_lite0.onnx", "lite0_npy", 40.5), ("minilm.onnx", "minilm_inputs", 57.2)]
    {
        let model = onnx::load(asset(name)).unwrap();
        let samples = samples(&model, &asset(folder), 2);
        let inputs = samples.sample(0).unwrap().inputs;
        let want = run(&model, &inputs);
        let bytes: usize = constants(&model.graph);
        for target in ["onnx", "onnxruntime_cpu"] {
            let result = convert(&model, Some(&samples), HalfType::Float16, target);
            let got = sqnr(&want, &run(&result.model, &inputs));
            assert!(theirs <= got, "{name} for {target}: {got:.1} dB");
            let ratio = constants(&result.model.graph) as f64 / bytes as f64;
            assert!(ratio < 0.51, "{name} for {target}: {ratio}");
        }
        // ONNX Runtime's CPU kernels know little of bfloat16: nodes stay, weights shrink. Three bits fewer: 18 dB.
        let result = convert(&model, Some(&samples), HalfType::Bfloat16, "onnxruntime_cpu");
        let got = sqnr(&want, &run(&result.model, &inputs));
        assert!(theirs - 18.0 <= got, "{name} in bfloat16: {got:.1} dB");
    }
}

fn constants(graph: &Graph) -> usize {
    graph.values().iter().flat_map(|v| &v.constant).map(|t| t.as_bytes().len()).sum()
}

#[test]
fn the_demo_network_in_bfloat16_runs_here_and_in_float16_there() {
    let model = onnx::load(root().join("assets/demo/fashion_mobilenet.onnx")).unwrap();
    let x: Vec<f32> = (0..784).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let inputs = vec![("input".to_owned(), Tensor::from_slice(vec![1, 1, 28, 28], &x).unwrap())];
    let want = run(&model, &inputs);
    let result = convert(&model, None, HalfType::Float16, "onnx");
    assert!(
        result.plan.counts().half > 20 && result.plan.counts().float == 0,
        "{:?}",
        result.plan.counts()
    );
    assert!(50.0 < sqnr(&want, &run(&result.model, &inputs)));
    // Conv has bfloat16 from operator set 22 on.
    let mut newer = model.clone();
    newer.set_opset("", 22);
    let result = convert(&newer, None, HalfType::Bfloat16, "onnx");
    assert!(result.plan.counts().half > 20, "{:?}", result.plan.counts());
    let runner = Runner::new(&result.model, Runtime::Interpreter, None).unwrap();
    let got = runner.run(inputs.clone()).unwrap();
    let got = sqnr(&want, &got);
    assert!(25.0 < got, "{got}");
}

/// `y = if (sum(x) > 0) { Relu(x w) } else { x w / sqrt(x w ^ 2 + 1e-12) }`, the weight a Constant node of each body.
fn branches() -> Model {
    let body = |last: &str| {
        let mut g = Graph::default();
        g.name = last.to_owned();
        let [x, w, eps, a, sq, guarded, root, y] =
            ["x", "w", "eps", "a", "sq", "guarded", "root", "y"]
                .map(|n| g.intern(&if n == "x" { n.to_owned() } else { format!("{last}_{n}") }));
        let values: Vec<f32> = (0..256).map(|i| ((i * 29) % 64) as f32 / 64.0 - 0.5).collect();
        let constant = |id, tensor| {
            Node::new("Constant", "", [], [id]).with_attr("value", AttrValue::Tensor(tensor))
        };
        g.nodes = vec![
            constant(w, Tensor::from_slice(vec![16, 16], &values).unwrap()),
            Node::new("MatMul", "", [x, w], [a]),
        ];
        if last == "then" {
            g.nodes.push(Node::new("Relu", "", [a], [y]));
        } else {
            g.nodes.extend([
                constant(eps, Tensor::scalar(1e-12_f32)),
                Node::new("Mul", "", [a, a], [sq]),
                Node::new("Add", "", [sq, eps], [guarded]),
                Node::new("Sqrt", "", [guarded], [root]),
                Node::new("Div", "", [a, root], [y]),
            ]);
        }
        g.value_mut(y).ty = Some(Type::tensor(DataType::Float, None));
        g.outputs = vec![y];
        AttrValue::Graph(Box::new(g))
    };
    let mut model = Model { ir_version: 8, ..Model::default() };
    model.set_opset("", 17);
    let g = &mut model.graph;
    g.name = "branches".to_owned();
    let [input, x, zero, sum, is_positive, y] =
        ["input", "x", "zero", "sum", "is_positive", "y"].map(|n| g.intern(n));
    g.set_constant(zero, Tensor::scalar(0.0_f32));
    let dims = Some(vec![Dim::Known(2), Dim::Known(16)]);
    g.value_mut(input).ty = Some(Type::tensor(DataType::Float, dims.clone()));
    g.value_mut(y).ty = Some(Type::tensor(DataType::Float, dims));
    g.inputs = vec![input];
    g.outputs = vec![y];
    g.nodes = vec![
        Node::new("Relu", "", [input], [x]),
        Node::new("ReduceSum", "", [x], [sum]).with_attr("keepdims", AttrValue::Int(0)),
        Node::new("Greater", "", [sum, zero], [is_positive]),
        Node::new("If", "if", [is_positive], [y])
            .with_attr("then_branch", body("then"))
            .with_attr("else_branch", body("else")),
    ];
    model
}

#[test]
fn branches_are_decided_node_by_node() {
    let model = branches();
    let result = convert(&model, None, HalfType::Float16, "onnx");
    let graph = |path: &str| result.plan.graphs.iter().find(|g| g.path == path).unwrap();
    let float = |path: &str| -> Vec<&str> {
        let nodes = graph(path).nodes.iter().filter(|n| n.decision.reason().is_some());
        nodes.map(|n| n.op_type.as_str()).collect()
    };
    assert!(float("if/then_branch/").is_empty());
    assert_eq!(float("if/else_branch/"), ["Add", "Sqrt", "Div"]);
    // Both weights, in the bodies.
    assert_eq!(result.plan.counts().half_constants, 2);
    for x in [[1.0_f32; 32], [-1.0; 32]] {
        let inputs = vec![("input".to_owned(), Tensor::from_slice(vec![2, 16], &x).unwrap())];
        let (want, got) = (run(&model, &inputs), run(&result.model, &inputs));
        let zero = want[0].1.to_vec::<f32>().unwrap().iter().all(|y| *y == 0.0);
        // Rounded weights and one rounded product: 11 bits. Of zeros, nothing is left to be wrong.
        assert!(zero && want[0].1 == got[0].1 || 55.0 < sqnr(&want, &got), "{want:?} {got:?}");
    }
}
