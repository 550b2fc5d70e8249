//! Faults planted into quantized models are found, ranked first and named.

mod residual;

use std::sync::atomic::AtomicBool;

use midtread::{
    Format, Options, PlanOptions, Target,
    compare::{self, Comparison, advice::Cause, compare},
    graph::{Graph, Model, Node, Tensor},
    passes::PrepareOptions,
    quant::plan::WeightGranularity,
    quantize::Silent,
};
use residual::{CHANNELS, Pictures, residual, types};

static NEVER: AtomicBool = AtomicBool::new(false);

fn quantized(model: &Model, granularity: WeightGranularity, format: Format) -> Model {
    quantized_as(model, PlanOptions { granularity, ..PlanOptions::default() }, format)
}

fn quantized_as(model: &Model, plan: PlanOptions, format: Format) -> Model {
    let options = Options {
        prepare: PrepareOptions::default(),
        plan,
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

fn compared(float: &Model, quantized: &Model, n_threads: usize) -> Comparison {
    let options =
        compare::Options { n_threads, max_bytes: None, progress: &|_| {}, interrupted: &NEVER };
    compare(float, quantized, &Pictures(12), &options).unwrap()
}

/// Changes a constant of the quantized model.
fn edit<T: midtread::graph::Element>(model: &mut Model, name: &str, change: impl Fn(&mut [T])) {
    let id = model.graph.find(name).unwrap_or_else(|| {
        let names: Vec<&str> = model.graph.values().iter().map(|v| v.name()).collect();
        panic!("no `{name}` among {names:?}")
    });
    let tensor = model.graph.constant(id).expect("a constant");
    let mut values = tensor.to_vec::<T>().unwrap();
    change(&mut values);
    let tensor = Tensor::from_slice(tensor.dims().to_vec(), &values).unwrap();
    model.graph.set_constant(id, tensor);
}

/// The first row's name, the operator's node, and the causes named there.
fn first(result: &Comparison) -> (&str, &str, Vec<Cause>) {
    let row = &result.tensors[0];
    (&row.name, &row.node, row.advice.iter().map(|a| a.cause).collect())
}

fn summary(result: &Comparison) -> String {
    let line = |t: &compare::TensorRow| {
        format!(
            "{} ({:?} of {}): own {:?} channels {:?} all {:.1}, clipped {:?}, {:?}\n",
            t.name,
            t.kind,
            t.node,
            t.own_sqnr_db,
            t.channel_sqnr_db,
            t.sqnr_db,
            t.clipped,
            t.advice
        )
    };
    result.tensors.iter().map(line).collect()
}

#[test]
fn a_sound_model_has_every_tensor_matched_and_no_advice() {
    let float = residual();
    for format in [Format::Qdq, Format::QOperator] {
        let result = compared(&float, &quantized(&float, WeightGranularity::PerChannel, format), 2);
        let names: Vec<&str> = result.tensors.iter().map(|t| t.name.as_str()).collect();
        for name in ["x", "r1", "r2", "c3", "sum", "logits", "c1_w", "c2_w", "c3_b", "fc_w"] {
            assert!(names.contains(&name), "{format:?}: {name} of {names:?}");
        }
        let advised: Vec<_> = result.tensors.iter().filter(|t| !t.advice.is_empty()).collect();
        assert!(advised.is_empty(), "{format:?}: {}", summary(&result));
        assert!(20.0 < result.worst_output_db(), "{}", summary(&result));
        // Error adds up on the way: nothing is better in the end than by itself, but for chance.
        for t in &result.tensors {
            let own = t.own_sqnr_db.unwrap_or(f64::INFINITY);
            assert!(t.sqnr_db <= own + 3.0, "{format:?} {}: {own} and {}", t.name, t.sqnr_db);
        }
    }
}

#[test]
fn the_figures_do_not_depend_on_the_number_of_threads() {
    let float = residual();
    let model = quantized(&float, WeightGranularity::PerTensor, Format::Qdq);
    let text = |n| serde_json::to_string(&compared(&float, &model, n)).unwrap();
    assert_eq!(text(1), text(4));
}

#[test]
fn a_broken_scale_is_ranked_first_and_named() {
    let float = residual();
    // An activation's scale, read and written: its values are clipped or its range is too wide.
    for (factor, cause) in [(0.2_f32, Cause::Clipped), (40.0, Cause::TooWide)] {
        let mut model = quantized(&float, WeightGranularity::PerChannel, Format::Qdq);
        edit::<f32>(&mut model, "r2_scale", |s| s[0] *= factor);
        let result = compared(&float, &model, 2);
        let (name, node, causes) = first(&result);
        assert_eq!((name, node), ("r2", "r2_node"), "{}", summary(&result));
        assert_eq!(causes, [cause], "{}", summary(&result));
    }
    // One channel of a weight.
    let mut model = quantized(&float, WeightGranularity::PerChannel, Format::Qdq);
    edit::<f32>(&mut model, "c2_w_scale", |s| s[5] *= 3.0);
    let result = compared(&float, &model, 2);
    let (name, node, causes) = first(&result);
    assert!(matches!(name, "c2_w" | "c2"), "{}", summary(&result));
    assert_eq!((node, &causes[..]), ("c2_node", &[Cause::BrokenScale][..]), "{}", summary(&result));
    assert!(result.tensors[0].advice[0].text.contains("channel 5"), "{}", summary(&result));
}

#[test]
fn swapped_channels_are_ranked_first_and_named() {
    let float = residual();
    let mut model = quantized(&float, WeightGranularity::PerChannel, Format::Qdq);
    edit::<i8>(&mut model, "c3_w_quantized", |codes| {
        let n = codes.len() / CHANNELS;
        for i in 0..n {
            codes.swap(2 * n + i, 6 * n + i);
        }
    });
    let result = compared(&float, &model, 2);
    let (name, node, causes) = first(&result);
    // The weight, or what is computed with it.
    assert!(matches!(name, "c3_w" | "c3"), "{}", summary(&result));
    assert_eq!(node, "c3_node", "{}", summary(&result));
    assert_eq!(causes, [Cause::SwappedChannels], "{}", summary(&result));
    let text = &result.tensors[0].advice[0].text;
    assert!(text.contains("channel 2") && text.contains("channel 6"), "{text}");
}

#[test]
fn a_clipped_residual_is_ranked_first_and_named() {
    let float = residual();
    let mut model = quantized(&float, WeightGranularity::PerChannel, Format::Qdq);
    edit::<f32>(&mut model, "sum_scale", |s| s[0] *= 0.25);
    let result = compared(&float, &model, 2);
    let (name, node, causes) = first(&result);
    assert_eq!(
        (name, node, &causes[..]),
        ("sum", "sum_node", &[Cause::Clipped][..]),
        "{}",
        summary(&result)
    );
    // What comes after it inherits the error and is not blamed.
    let after = result.tensors.iter().find(|t| t.name == "pool" || t.name == "flat").unwrap();
    assert!(
        after.sqnr_db + 10.0 < after.own_sqnr_db.unwrap_or(f64::INFINITY),
        "{}",
        summary(&result)
    );
}

#[test]
fn an_outlier_channel_is_ranked_first_and_named() {
    let mut float = residual();
    // One channel of the second convolution a thousand times as loud; the third undoes it.
    edit::<f32>(&mut float, "c2_w", |w| {
        let n = w.len() / CHANNELS;
        w[3 * n..4 * n].iter_mut().for_each(|x| *x *= 1000.0);
    });
    edit::<f32>(&mut float, "c3_w", |w| {
        for o in 0..CHANNELS {
            w[(o * CHANNELS + 3) * 9..][..9].iter_mut().for_each(|x| *x *= 0.001);
        }
    });
    let model = quantized(&float, WeightGranularity::PerChannel, Format::Qdq);
    let result = compared(&float, &model, 2);
    let (name, node, causes) = first(&result);
    assert_eq!(
        (name, node, &causes[..]),
        ("r2", "r2_node", &[Cause::ChannelRanges][..]),
        "{}",
        summary(&result)
    );
    let advice = &result.tensors[0].advice[0];
    assert!(advice.text.contains("channel 3"), "{}", advice.text);
    assert!(advice.option.as_ref().unwrap().contains("r2_node"), "{advice:?}");
    // With one scale for the weight, the weight's channels are what is lost.
    let model = quantized(&float, WeightGranularity::PerTensor, Format::Qdq);
    let result = compared(&float, &model, 2);
    let row = result.tensors.iter().find(|t| t.name == "c2_w").unwrap();
    assert_eq!(row.advice[0].cause, Cause::ChannelRanges, "{}", summary(&result));
    assert_eq!(row.advice[0].option.as_deref(), Some("--granularity per_channel"));
}

#[test]
fn a_channel_that_rounding_leaves_nothing_of_is_named() {
    // One channel of an activation a ten thousandth as loud as the others: less than half a step.
    let mut float = residual();
    for name in ["c2_w", "c2_b"] {
        edit::<f32>(&mut float, name, |w| {
            let n = w.len() / CHANNELS;
            w[3 * n..4 * n].iter_mut().for_each(|x| *x *= 1e-4);
        });
    }
    let model = quantized(&float, WeightGranularity::PerChannel, Format::Qdq);
    let result = compared(&float, &model, 2);
    let (name, node, causes) = first(&result);
    assert_eq!(
        (name, node, &causes[..]),
        ("r2", "r2_node", &[Cause::DeadChannels][..]),
        "{}",
        summary(&result)
    );
    assert!(result.tensors[0].advice[0].text.starts_with("1 of 8"), "{}", summary(&result));

    // A channel of a weight whose integers are all 0.
    let float = residual();
    let mut model = quantized(&float, WeightGranularity::PerChannel, Format::Qdq);
    edit::<i8>(&mut model, "c2_w_quantized", |codes| {
        let n = codes.len() / CHANNELS;
        codes[3 * n..4 * n].fill(0);
    });
    let result = compared(&float, &model, 2);
    let (name, node, causes) = first(&result);
    assert!(matches!(name, "c2_w" | "c2"), "{}", summary(&result));
    assert_eq!(
        (node, &causes[..]),
        ("c2_node", &[Cause::DeadChannels][..]),
        "{}",
        summary(&result)
    );
}

#[test]
fn sums_that_can_saturate_are_named() {
    // Pairs of products in 16 bits: whole bytes can, seven bits cannot.
    let float = residual();
    for (reduce_range, n_remarks) in [(false, 1), (true, 0)] {
        let plan = PlanOptions { reduce_range, ..PlanOptions::default() };
        let result = compared(&float, &quantized_as(&float, plan, Format::Qdq), 2);
        assert_eq!(result.remarks.len(), n_remarks, "{:?}", result.remarks);
        for remark in &result.remarks {
            assert_eq!(remark.cause, Cause::SaturatedSums);
            assert_eq!(remark.option.as_deref(), Some("--reduce-range"));
        }
    }
    // A sum of 70,000 products of 255 and 127 in 32 bits.
    let mut graph = Graph::default();
    let [x, y] = ["x", "y"].map(|name| graph.intern(name));
    let wide = 3 * 12 * 12 * 170;
    let w = Tensor::from_slice(vec![wide, 2], &vec![1.0_f32; 2 * wide]).unwrap();
    let w = graph.add_constant("w", w);
    let repeats = graph.add_constant("repeats", Tensor::vector(&[1_i64, 170]));
    let sizes = graph.add_constant("sizes", Tensor::vector(&[1_i64, -1]));
    let [flat, long] = ["flat", "long"].map(|name| graph.intern(name));
    graph.inputs.push(x);
    graph.outputs.push(y);
    graph.nodes.push(Node::new("Reshape", "reshape", [x, sizes], [flat]));
    graph.nodes.push(Node::new("Tile", "tile", [flat, repeats], [long]));
    graph.nodes.push(Node::new("MatMul", "product", [long, w], [y]));
    types(&mut graph, x, &[1, 3, 12, 12]);
    types(&mut graph, y, &[1, 2]);
    let mut float = Model { graph, ..Model::default() };
    float.ir_version = 8;
    float.set_opset("", 13);
    let model = quantized(&float, WeightGranularity::PerChannel, Format::Qdq);
    let result = compared(&float, &model, 2);
    let row = result.tensors.iter().find(|t| t.name == "w").unwrap();
    assert_eq!(row.advice[0].cause, Cause::SaturatedSums, "{}", summary(&result));
    assert!(row.advice[0].text.contains("2 of its outputs can exceed 32 bits"), "{:?}", row.advice);
}
