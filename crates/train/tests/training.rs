//! Training small models: what the integer model computes, and that nothing depends on threads or interruptions.

use std::{
    cell::RefCell,
    sync::atomic::{AtomicBool, Ordering},
};

use midtread_graph::{AttrValue, DataType, Dim, Graph, Model, Node, Sample, Tensor, Type, ValueId};
use midtread_passes::{PassSet, PrepareOptions, prepare};
use midtread_quant::{
    Format, Plan, PlanOptions, Target, apply,
    calibrate::{self, Calibrator, Collect, Samples, Watch},
    plan::{IntType, fingerprint},
};
use midtread_train::{
    Augment, Data, Epoch, Error, Hooks, Labels, Loss, Optimizer, Options, Progress, Scales, Start,
    Trained, recipe_for_bits, recover, score, train,
};

static NEVER: AtomicBool = AtomicBool::new(false);

fn numbers(n: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        size * ((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
    };
    (0..n).map(|_| next()).collect()
}

fn constant(graph: &mut Graph, name: &str, dims: &[usize], values: &[f32]) -> ValueId {
    graph.add_constant(name, Tensor::from_slice(dims.to_vec(), values).unwrap())
}

/// Convolution, normalization, clamp; depthwise; a residual; pool; classifier. For pictures of 6 x 6 in two channels.
fn model() -> Model {
    let mut graph = Graph::default();
    let x = graph.intern("x");
    let dims = vec![Dim::Symbol("n".into()), Dim::Known(2), Dim::Known(6), Dim::Known(6)];
    graph.value_mut(x).ty = Some(Type::tensor(DataType::Float, Some(dims)));
    graph.inputs = vec![x];
    let mut at = x;
    for (i, (c_in, c_out, groups)) in [(2, 8, 1), (8, 8, 8), (8, 8, 1)].into_iter().enumerate() {
        let kernel = if groups == 1 { 1 } else { 3 };
        let dims = [c_out, c_in / groups, kernel, kernel];
        let name = |what: &str| format!("{what}{i}");
        let weights = numbers(dims.iter().product(), 10 + i as u64, 0.8);
        let w = constant(&mut graph, &name("w"), &dims, &weights);
        let [conv, norm, clamp] = ["conv", "norm", "clamp"].map(|what| graph.intern(&name(what)));
        let pads = AttrValue::Ints(vec![(kernel / 2) as i64; 4]);
        let node = Node::new("Conv", &name("conv"), [at, w], [conv])
            .with_attr("group", AttrValue::Int(groups as i64))
            .with_attr("pads", pads);
        graph.nodes.push(node);
        let positive = |seed| numbers(c_out, seed, 0.4).iter().map(|x| 1.0 + x).collect::<Vec<_>>();
        let stats = [positive(20), numbers(c_out, 21, 0.3), numbers(c_out, 22, 0.2), positive(23)];
        let mut inputs = vec![conv];
        for (k, values) in stats.iter().enumerate() {
            inputs.push(constant(&mut graph, &format!("norm{i}_{k}"), &[c_out], values));
        }
        graph.nodes.push(Node::new("BatchNormalization", &name("norm"), inputs, [norm]));
        let bounds = [0.0, 6.0].map(|x| constant(&mut graph, &name("bound"), &[], &[x]));
        let clip = Node::new("Clip", &name("clamp"), [norm, bounds[0], bounds[1]], [clamp]);
        graph.nodes.push(clip);
        at = match i {
            2 => {
                let sum = graph.intern("sum");
                graph.nodes.push(Node::new("Add", "add", [at, clamp], [sum]));
                sum
            }
            _ => clamp,
        };
    }
    let [pool, flat, logits] = ["pool", "flat", "logits"].map(|n| graph.intern(n));
    graph.nodes.push(Node::new("GlobalAveragePool", "pool", [at], [pool]));
    graph.nodes.push(Node::new("Flatten", "flat", [pool], [flat]));
    let w = constant(&mut graph, "w_out", &[4, 8], &numbers(32, 30, 0.7));
    let b = constant(&mut graph, "b_out", &[4], &numbers(4, 31, 0.3));
    let gemm = Node::new("Gemm", "classifier", [flat, w, b], [logits]);
    graph.nodes.push(gemm.with_attr("transB", AttrValue::Int(1)));
    let dims = vec![Dim::Symbol("n".into()), Dim::Known(4)];
    graph.value_mut(logits).ty = Some(Type::tensor(DataType::Float, Some(dims)));
    graph.outputs = vec![logits];
    let opset_imports = vec![(String::new(), 21)];
    Model { graph, ir_version: 10, opset_imports, ..Model::default() }
}

/// Pictures whose class is the channel that stands out, and how.
struct Pictures(usize);

impl Samples for Pictures {
    fn names(&self) -> Vec<String> {
        (0..self.0).map(|i| format!("{i:04}")).collect()
    }

    fn sample(&self, i: usize) -> Result<Sample, Box<dyn std::error::Error + Send + Sync>> {
        let mut pixels = numbers(72, 1000 + i as u64, 0.5);
        let class = i % 4;
        for (k, pixel) in pixels.iter_mut().enumerate() {
            if k / 36 == class / 2 {
                *pixel += if class.is_multiple_of(2) { 1.0 } else { -1.0 };
            }
        }
        let x = Tensor::from_slice(vec![1, 2, 6, 6], &pixels)?;
        Ok(Sample { name: format!("{i:04}"), inputs: vec![("x".into(), x)] })
    }
}

fn classes(n: usize) -> Labels {
    Labels::Classes((0..n).map(|i| vec![i % 4]).collect())
}

struct Case {
    prepared: Model,
    unfused: Model,
    plan: Plan,
}

/// A type, and how many of its bits are used.
type Width = (IntType, Option<u32>);

fn case([weights, activations]: [Width; 2]) -> Case {
    let options = PrepareOptions::default();
    let (prepared, _) = prepare(model(), &options).unwrap();
    let passes = PassSet::default().without("fuse_batch_norm").unwrap();
    let (unfused, _) = prepare(model(), &PrepareOptions { passes, ..options }).unwrap();
    let options = calibrate::Options {
        model: fingerprint(&prepared),
        collect: Collect::Histogram,
        watch: Watch::Quantizable,
        n_threads: 1,
        max_bytes: None,
        progress: &|_| {},
        interrupted: &NEVER,
    };
    let stats = calibrate::calibrate(&prepared, &Pictures(32), &options).unwrap();
    let plan = PlanOptions {
        weight_type: weights.0,
        weight_bits: weights.1,
        activation_type: activations.0,
        activation_bits: activations.1,
        calibrator: Calibrator::named("mse").unwrap(),
        ..PlanOptions::default()
    };
    let target = Target::find("onnxruntime_cpu").unwrap();
    let plan = midtread_quant::plan(&prepared, Some(&stats), &target, &plan).unwrap();
    Case { prepared, unfused, plan }
}

fn options() -> Options {
    Options {
        epochs: 3,
        batch: 16,
        learning_rate: 5e-3,
        freeze_norms: 0.5,
        checkpoint_steps: 3,
        // The statistics of these random networks are not the data's: they are to be so soon.
        momentum: 0.3,
        augment: Augment { crop: 0, flip: true },
        ..(recipe_for_bits(4).options)()
    }
}

#[derive(Default)]
struct Watcher {
    checkpoints: RefCell<Vec<Vec<u8>>>,
    losses: RefCell<Vec<f64>>,
    /// Asks to stop after so many steps.
    stop: Option<(usize, AtomicBool)>,
}

impl Hooks for Watcher {
    fn progress(&self, progress: &Progress) {
        if let Some((step, flag)) = &self.stop
            && progress.step == *step
        {
            flag.store(true, Ordering::Relaxed);
        }
    }

    fn epoch(&self, epoch: &Epoch) {
        self.losses.borrow_mut().push(epoch.loss);
    }

    fn checkpoint(&self, bytes: &[u8]) -> std::io::Result<()> {
        self.checkpoints.borrow_mut().push(bytes.to_vec());
        Ok(())
    }
}

const N: usize = 96;

fn run(
    case: &Case,
    options: &Options,
    resume: Option<&[u8]>,
    watch: &Watcher,
    labels: Option<&Labels>,
) -> Result<Trained, Error> {
    let (which, valid): (Vec<usize>, Vec<usize>) = ((0..N).collect(), (N..N + 32).collect());
    let samples = Pictures(N + 32);
    let all = classes(N + 32);
    let data = Data { samples: &samples, which: &which, labels };
    let valid = Data { samples: &samples, which: &valid, labels: Some(&all) };
    let start = Start { prepared: &case.prepared, unfused: &case.unfused, plan: &case.plan };
    let interrupted = watch.stop.as_ref().map_or(&NEVER, |(_, flag)| flag);
    train(start, data, Some(valid), options, resume, watch, interrupted)
}

/// Every number of a result.
fn numbers_of(trained: &Trained) -> (Vec<Tensor>, String) {
    let values = trained.model.graph.values();
    (values.iter().filter_map(|v| v.constant.clone()).collect(), trained.plan.to_text())
}

const WIDTHS: [[Width; 2]; 4] = [
    [(IntType::I8, None), (IntType::U8, None)],
    [(IntType::I4, None), (IntType::U4, None)],
    [(IntType::I4, Some(2)), (IntType::U4, None)],
    [(IntType::I4, Some(3)), (IntType::U8, Some(6))],
];

#[test]
fn the_simulation_is_the_integer_model_at_every_width() {
    let labels = classes(N + 32);
    for widths in WIDTHS {
        for scales in [Scales::Fixed, Scales::Learned, Scales::Pact, Scales::Observed] {
            let case = case(widths);
            let options = Options { epochs: 1, scales, ..options() };
            let trained = run(&case, &options, None, &Watcher::default(), Some(&labels)).unwrap();
            assert_eq!(trained.n_norms, 3, "every normalization is folded in training");
            let simulated = trained.epochs[0].score.unwrap();
            let model = apply(&trained.model, &trained.plan, Format::Qdq).unwrap();
            let which: Vec<usize> = (N..N + 32).collect();
            let data = Data { samples: &Pictures(N + 32), which: &which, labels: Some(&labels) };
            let computed = score(&model, &case.prepared, &data, 16, &NEVER).unwrap();
            // The same floating-point operations in the same order, so the same bits.
            assert_eq!(simulated, computed, "{widths:?} {scales:?}");
            let has_changed = trained.plan.tensors != case.plan.tensors;
            assert_eq!(has_changed, scales != Scales::Fixed, "{scales:?}");
        }
    }
}

#[test]
fn training_lowers_the_loss_with_either_optimizer_and_without_labels() {
    let case = case(WIDTHS[1]);
    let labels = classes(N + 32);
    for (optimizer, rate) in [(Optimizer::Adam, 3e-2), (Optimizer::Sgd { momentum: 0.9 }, 1e-1)] {
        for labels in [Some(&labels), None] {
            let base = options();
            let cross_entropy = if labels.is_some() { 1.0 } else { 0.0 };
            let loss = Loss { cross_entropy, distill: 1.0 - cross_entropy, ..base.loss };
            let options = Options { epochs: 8, optimizer, learning_rate: rate, loss, ..base };
            let watch = Watcher::default();
            run(&case, &options, None, &watch, labels).unwrap();
            let losses = watch.losses.into_inner();
            assert!(losses[7] < 0.7 * losses[0], "{optimizer:?} {}: {losses:?}", labels.is_some());
        }
    }
}

#[test]
fn a_run_that_was_stopped_anywhere_goes_on_as_if_it_had_not() {
    let case = case(WIDTHS[1]);
    let labels = classes(N + 32);
    let options = Options { delay: 0.2, ..options() };
    let again = |checkpoint: Option<&[u8]>| {
        numbers_of(&run(&case, &options, checkpoint, &Watcher::default(), Some(&labels)).unwrap())
    };
    let whole = Watcher::default();
    let expected = numbers_of(&run(&case, &options, None, &whole, Some(&labels)).unwrap());
    let checkpoints = whole.checkpoints.into_inner();
    // Six steps an epoch: one inside of each, and one after it.
    assert_eq!(checkpoints.len(), 6);
    for (i, checkpoint) in checkpoints.iter().enumerate() {
        assert!(again(Some(checkpoint)) == expected, "killed after checkpoint {i}");
    }
    for step in [1, 5, 6, 13] {
        let watch = Watcher { stop: Some((step, AtomicBool::new(false))), ..Watcher::default() };
        let stopped = run(&case, &options, None, &watch, Some(&labels));
        assert!(matches!(stopped, Err(Error::Interrupted)), "stopped at {step}");
        let checkpoints = watch.checkpoints.into_inner();
        assert!(again(checkpoints.last().map(Vec::as_slice)) == expected, "stopped at {step}");
    }
    let other = Options { seed: 1, ..options };
    let refused = run(&case, &other, Some(&checkpoints[0]), &Watcher::default(), Some(&labels));
    assert!(matches!(refused, Err(Error::Checkpoint(_))));
}

#[test]
fn the_result_depends_on_the_seed_and_not_on_the_threads() {
    let case = case(WIDTHS[1]);
    let labels = classes(N + 32);
    let trained = |n_threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let options = Options { seed, ..options() };
        pool.install(|| {
            numbers_of(&run(&case, &options, None, &Watcher::default(), Some(&labels)).unwrap())
        })
    };
    let one = trained(1, 0);
    assert!(one == trained(3, 0));
    assert!(one != trained(1, 1));
}

#[test]
fn a_batch_in_parts_has_the_gradients_of_the_whole() {
    let case = case(WIDTHS[0]);
    let labels = classes(N + 32);
    // With folded normalizations: statistics of a batch differ from those of its parts.
    let whole = Options { epochs: 1, freeze_norms: 0.0, ..options() };
    let parts = Options { micro_batch: Some(4), ..whole.clone() };
    let losses = [whole, parts].map(|options| {
        let watch = Watcher::default();
        run(&case, &options, None, &watch, Some(&labels)).unwrap();
        watch.losses.into_inner()[0]
    });
    // Sums in another order; a rounded code may fall the other way.
    assert!((losses[0] / losses[1] - 1.0).abs() < 1e-3, "{losses:?}");
}

#[test]
fn values_that_are_computed_again_are_those_that_were_kept() {
    let case = case(WIDTHS[1]);
    let labels = classes(N + 32);
    // Both kinds of normalization, and observers, which see everything once.
    let options = Options { scales: Scales::Observed, ..options() };
    let [kept, again] = [false, true].map(|recompute| {
        let options = Options { recompute, ..options.clone() };
        run(&case, &options, None, &Watcher::default(), Some(&labels)).unwrap()
    });
    assert!(numbers_of(&kept) == numbers_of(&again));
    assert!(again.kept_bytes < kept.kept_bytes / 2, "{} {}", again.kept_bytes, kept.kept_bytes);
}

#[test]
fn recovery_brings_outputs_nearer_on_pictures_it_has_not_seen() {
    let labels = classes(N + 32);
    let (seen, others): (Vec<usize>, Vec<usize>) = ((0..64).collect(), (N..N + 32).collect());
    let samples = Pictures(N + 32);
    for widths in [WIDTHS[1], WIDTHS[2]] {
        let case = case(widths);
        let start = Start { prepared: &case.prepared, unfused: &case.unfused, plan: &case.plan };
        let data = Data { samples: &samples, which: &seen, labels: None };
        let (model, plan) = recover(start, data, 64).unwrap();
        let data = Data { samples: &samples, which: &others, labels: Some(&labels) };
        let [before, after] = [(&case.prepared, &case.plan), (&model, &plan)].map(|(m, p)| {
            let quantized = apply(m, p, Format::Qdq).unwrap();
            score(&quantized, &case.prepared, &data, 16, &NEVER).unwrap().difference
        });
        // What is left is rounding around the right mean.
        assert!(after < 0.6 * before, "{widths:?}: {after} {before}");
    }
}

#[test]
fn what_cannot_be_trained_is_named() {
    let case = case(WIDTHS[0]);
    let refused = |options: &Options, labels: Option<&Labels>| {
        let result = run(&case, options, None, &Watcher::default(), labels);
        result.err().map(|e| e.to_string()).unwrap_or_default()
    };
    let (base, right) = (options(), classes(N + 32));
    assert!(refused(&base, None).contains("needs labels"));
    assert!(refused(&base, Some(&classes(3))).contains("not every sample"));
    let loss = Loss { features: 1.0, ..base.loss };
    let features = Options { loss, features: vec!["nowhere".into()], ..base.clone() };
    assert!(refused(&features, Some(&right)).contains("`nowhere`"));
    let many = Labels::Classes((0..N + 32).map(|i| vec![i]).collect());
    assert!(refused(&base, Some(&many)).contains("node `logits`"));
    let never = Options { learning_rate: f32::NAN, ..base };
    assert!(refused(&never, Some(&right)).contains("learning rate"));
}
