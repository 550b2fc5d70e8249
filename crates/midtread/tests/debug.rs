//! Looking into quantized models by hand: what onnxruntime's own debugging module does, and what it gets wrong.

mod residual;

use std::sync::atomic::AtomicBool;

use midtread::{
    Format, Options, PlanOptions, Runtime, Target,
    debug::{collect, expose_intermediates, match_activations, match_weights},
    evaluate::RunOptions,
    graph::{Model, Tensor},
    num::ErrorSums,
    passes::PrepareOptions,
    quantize::Silent,
};
use residual::{Pictures, residual};

static NEVER: AtomicBool = AtomicBool::new(false);
const N: usize = 3;

fn quantized(model: &Model, format: Format) -> Model {
    let options = Options {
        prepare: PrepareOptions::default(),
        plan: PlanOptions::default(),
        target: Target::find("onnxruntime_cpu").unwrap(),
        format,
        collect: None,
        n_threads: 2,
        max_bytes: None,
        progress: &Silent,
        interrupted: &NEVER,
    };
    midtread::quantize(model.clone(), Some(&Pictures(16)), &options).unwrap().model
}

fn collected(model: &Model) -> midtread::debug::Collected {
    let options = RunOptions {
        runtime: Runtime::Interpreter,
        n_threads: 2,
        max_bytes: None,
        output: None,
        progress: &|_| {},
        interrupted: &NEVER,
    };
    collect(&expose_intermediates(model, &|_, _| true), &Pictures(N), &options).unwrap()
}

fn db(a: &[Tensor], b: &[Tensor]) -> f64 {
    let floats =
        |t: &[Tensor]| t.iter().flat_map(|t| t.to_vec::<f32>().unwrap()).collect::<Vec<_>>();
    ErrorSums::of(&floats(a), &floats(b)).sqnr_db()
}

#[test]
fn weights_match_in_both_forms_and_are_what_the_integers_stand_for() {
    let float = residual();
    for format in [Format::Qdq, Format::QOperator] {
        let weights = match_weights(&float, &quantized(&float, format));
        let names: Vec<&str> = weights.keys().map(String::as_str).collect();
        let want = ["c1_b", "c1_w", "c2_b", "c2_w", "c3_b", "c3_w", "fc_b", "fc_w"];
        assert_eq!(names, want, "{format}");
        for (name, pair) in &weights {
            let (a, b) = pair.slices();
            let sqnr = ErrorSums::of(&a, &b).sqnr_db();
            assert!(35.0 < sqnr, "{format} {name}: {sqnr}");
        }
    }
}

#[test]
fn every_node_s_values_are_collected_once_a_sample() {
    let float = residual();
    let all = collected(&float);
    assert_eq!(all.len(), float.graph.nodes.len());
    assert!(all.values().all(|values| values.len() == N));
    let some = expose_intermediates(&float, &|op_type, _| op_type == "Relu");
    let names: Vec<&str> = some.graph.outputs.iter().map(|&id| some.graph.value_name(id)).collect();
    assert_eq!(names, ["logits", "r1", "r2"]);
}

#[test]
fn activations_match_with_the_float_model_and_without_it() {
    let float = residual();
    let of_float = collected(&float);
    for format in [Format::Qdq, Format::QOperator] {
        let model = quantized(&float, format);
        let of_model = collected(&model);
        let with = match_activations(&model, &of_model, Some((&float, &of_float)));
        let without = match_activations(&model, &of_model, None);
        for name in ["r1", "r2", "c3", "sum", "logits"] {
            let found =
                with.get(name).unwrap_or_else(|| panic!("{format} {name}: {:?}", with.keys()));
            let sqnr = db(found.float.as_ref().unwrap(), &found.after);
            assert!(20.0 < sqnr, "{format} {name}: {sqnr}");
            // What integers stand for, not the integers: nothing wraps. (A Relu is in the range of r1 and r2: before
            // it there is more.)
            if let Some(before) = found.before.as_ref().filter(|_| !name.starts_with('r')) {
                assert!(30.0 < db(before, &found.after), "{format} {name}");
            }
            let alone = without
                .get(name)
                .unwrap_or_else(|| panic!("{format} {name}: {:?}", without.keys()));
            assert_eq!((&alone.float, &alone.after), (&None, &found.after), "{format} {name}");
        }
        assert_eq!(format == Format::Qdq, with["r2"].before.is_some());
    }
}
