//! Each layer alone: what is measured is what whole models do, and the work can stop and go on.

mod residual;

use std::{sync::atomic::AtomicBool, time::Duration};

use midtread::{
    Format, Options, PlanOptions, Scheme, Target, apply,
    compare::{
        self,
        outputs::{OutputSums, Scores},
        sensitivity::{self, Sensitivity, State, Task},
    },
    exec::{self, Interpreter},
    graph::Model,
    passes::PrepareOptions,
    plan,
    quant::{
        calibrate::Samples,
        plan::{IntType, Overrides, Pattern},
    },
    quantize::{Measured, Silent, measured},
    sensitivity::overrides_text,
};
use residual::{CHANNELS, Pictures, residual};

static NEVER: AtomicBool = AtomicBool::new(false);
const N: usize = 6;

fn target() -> Target {
    Target::find("onnxruntime_cpu").unwrap()
}

fn ready(model: Model, plan: &PlanOptions) -> Measured {
    let options = Options {
        prepare: PrepareOptions::default(),
        plan: plan.clone(),
        target: target(),
        format: Format::Qdq,
        collect: None,
        n_threads: 2,
        max_bytes: None,
        progress: &Silent,
        interrupted: &NEVER,
    };
    measured(model, None, Some(&Pictures(16)), &options).unwrap()
}

/// With defaults, but for what `change` changes.
fn sensitivity(
    ready: &Measured,
    plan: &PlanOptions,
    labels: Option<&(dyn Fn(usize) -> Vec<usize> + Sync)>,
    change: impl FnOnce(&mut sensitivity::Options<'_>),
) -> Result<(Sensitivity, Vec<State>), compare::Error> {
    let mut states = Vec::new();
    let mut keep = |state: &State| states.push(state.clone());
    let task = Task {
        prepared: &ready.prepared,
        ranges: ready.stats.as_ref().map(|stats| stats as _),
        target: &target(),
        plan,
    };
    let mut options = sensitivity::Options {
        n_threads: 2,
        max_bytes: None,
        budget: None,
        labels,
        resume: None,
        checkpoint: &mut keep,
        progress: &|_, _| {},
        interrupted: &NEVER,
    };
    change(&mut options);
    let result = sensitivity::sensitivity(&task, &Pictures(N), options)?;
    Ok((result, states))
}

/// The outputs of a whole model against the float model's, over all samples.
fn whole(float: &Model, model: &Model) -> OutputSums {
    let [float, model] =
        [float, model].map(|m| Interpreter::new(m, exec::Options::default()).unwrap());
    let mut sums = OutputSums::default();
    for i in 0..N {
        let outputs = [&float, &model].map(|run| {
            let outputs = run.run(Pictures(N).sample(i).unwrap().inputs).unwrap();
            outputs[0].1.to_vec::<f32>().unwrap()
        });
        sums.merge(&OutputSums::of(&outputs[0], &outputs[1], &[1, 10], Scores::Logits));
    }
    sums
}

#[test]
fn what_is_measured_is_what_whole_models_do_and_less_is_run() {
    let options = PlanOptions::default();
    let dynamic = PlanOptions { scheme: Scheme::Dynamic, ..PlanOptions::default() };
    for options in [options, dynamic] {
        let ready = ready(residual(), &options);
        let (result, _) = sensitivity(&ready, &options, None, |_| {}).unwrap();
        let model = |options: &PlanOptions| {
            let plan = plan(&ready.prepared, ready.stats.as_ref(), &target(), options).unwrap();
            apply(&ready.prepared, &plan, Format::Qdq).unwrap()
        };
        let float = &ready.prepared;
        assert_eq!(result.quantized.loss, whole(float, &model(&options)).loss());
        assert!(4 <= result.layers.len(), "{:?}", options.scheme);
        for layer in &result.layers {
            let name = vec![Pattern::Name(layer.node.clone())];
            let alone = PlanOptions { include: name.clone(), ..options.clone() };
            let without = PlanOptions { exclude: name, ..options.clone() };
            assert_eq!(layer.alone.loss, whole(float, &model(&alone)).loss(), "{}", layer.node);
            assert_eq!(
                layer.in_float.loss,
                whole(float, &model(&without)).loss(),
                "{}",
                layer.node
            );
        }
        // Prefixes are not run again: about half is left.
        assert!(4 * result.nodes_run < 3 * result.nodes_whole, "{result:?}");
        assert_eq!(result.samples, N);
    }
}

/// A network whose second convolution has one channel a thousand times as loud as the others.
fn with_a_bad_layer() -> Model {
    let mut model = residual();
    let mut scale = |name: &str, by: fn(usize) -> f32| {
        let id = model.graph.find(name).unwrap();
        let mut tensor = model.graph.constant(id).unwrap().clone();
        for (i, x) in tensor.to_mut::<f32>().unwrap().iter_mut().enumerate() {
            *x *= by(i);
        }
        model.graph.set_constant(id, tensor);
    };
    scale("c2_w", |i| if i / (CHANNELS * 9) == 3 { 1000.0 } else { 1.0 });
    scale("c3_w", |i| if i / 9 % CHANNELS == 3 { 0.001 } else { 1.0 });
    model
}

#[test]
fn the_layer_that_hurts_is_first_and_keeping_it_in_float_helps() {
    let options = PlanOptions::default();
    let ready = ready(with_a_bad_layer(), &options);
    let (result, _) = sensitivity(&ready, &options, None, |_| {}).unwrap();
    let first = &result.layers[0];
    assert!(matches!(&*first.node, "c2_node" | "c3_node"), "{:?}", result.layers);
    let best = result.layers.iter().max_by(|a, b| a.gain.total_cmp(&b.gain)).unwrap();
    assert!(0.0 < best.gain, "{:?}", result.layers);

    // What is written is read by `plan`, and does what was measured.
    let text = overrides_text(&result, 1);
    let overrides = Overrides::from_toml("sensitive.toml", &text).unwrap();
    let kept = PlanOptions { overrides, ..options };
    let plan = plan(&ready.prepared, ready.stats.as_ref(), &target(), &kept).unwrap();
    let node = plan.nodes.iter().find(|n| n.node == first.node).unwrap();
    assert_eq!(node.decision.status(), "float");
    let model = apply(&ready.prepared, &plan, Format::Qdq).unwrap();
    assert_eq!(whole(&ready.prepared, &model).loss(), first.in_float.loss);
}

#[test]
fn work_that_stopped_goes_on_and_comes_to_the_same() {
    let options = PlanOptions { weight_type: IntType::I4, ..PlanOptions::default() };
    let options = PlanOptions { scheme: Scheme::WeightOnly, ..options };
    let ready = ready(residual(), &options);
    let text = |result: &Sensitivity| serde_json::to_string(result).unwrap();
    let (all, states) = sensitivity(&ready, &options, None, |_| {}).unwrap();
    assert_eq!(states.len(), N);
    // A budget of nothing is one sample, and after that one more is none.
    let spent = Some(Duration::ZERO);
    let (one, first) = sensitivity(&ready, &options, None, |o| o.budget = spent).unwrap();
    assert_eq!((one.samples, one.samples_given, &first[..]), (1, N, &states[..1]));
    let resume =
        |state: &State| Some(State::from_json(&serde_json::to_string(state).unwrap()).unwrap());
    let (same, none) = sensitivity(&ready, &options, None, |o| {
        (o.budget, o.resume) = (spent, resume(&states[0]));
    })
    .unwrap();
    assert_eq!((text(&same), none.len()), (text(&one), 0));
    // On one thread, from the middle.
    let (rest, _) = sensitivity(&ready, &options, None, |o| {
        (o.n_threads, o.resume) = (1, resume(&states[2]));
    })
    .unwrap();
    assert_eq!(text(&rest), text(&all));

    let mut other = options.clone();
    other.weight_type = IntType::I8;
    let error = sensitivity(&ready, &other, None, |o| o.resume = resume(&states[2])).unwrap_err();
    assert!(error.to_string().contains("other options"), "{error}");
    let labels = |_: usize| vec![0];
    let error = sensitivity(&ready, &options, Some(&labels), |o| o.resume = resume(&states[2]));
    assert!(error.unwrap_err().to_string().contains("labels"));
}

#[test]
fn accuracy_ranks_where_the_right_answers_are_known() {
    let options = PlanOptions { weight_type: IntType::I4, ..PlanOptions::default() };
    let options = PlanOptions { scheme: Scheme::WeightOnly, ..options };
    let ready = ready(residual(), &options);
    // What the float model says is right.
    let run = Interpreter::new(&ready.prepared, exec::Options::default()).unwrap();
    let best = |i: usize| {
        let outputs = run.run(Pictures(N).sample(i).unwrap().inputs).unwrap();
        let scores = outputs[0].1.to_vec::<f32>().unwrap();
        vec![(0..10).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap()]
    };
    let (result, _) = sensitivity(&ready, &options, Some(&best), |_| {}).unwrap();
    assert_eq!(result.float_top1, Some(1.0));
    assert!(
        result
            .layers
            .is_sorted_by(|a, b| { (a.alone.top1, b.alone.loss) <= (b.alone.top1, a.alone.loss) })
    );
    for layer in &result.layers {
        assert_eq!(layer.alone.top1, layer.alone.agreement, "{}", layer.node);
    }
}
