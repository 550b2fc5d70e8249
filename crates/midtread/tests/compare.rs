//! Faults planted into quantized models are found, ranked first and named.

use std::sync::atomic::AtomicBool;

use midtread::{
    Format, Options, PlanOptions, Target,
    compare::{self, Comparison, advice::Cause, compare},
    graph::{AttrValue, DataType, Dim, Graph, Model, Node, Sample, Tensor, Type, ValueId},
    passes::PrepareOptions,
    quant::{calibrate::Samples, plan::WeightGranularity},
    quantize::Silent,
};

static NEVER: AtomicBool = AtomicBool::new(false);

/// Numbers around zero, from a linear congruential generator, shaped like the sum of four uniform ones.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        let mut sum = 0.0;
        for _ in 0..4 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            sum += (self.0 >> 40) as f32 / (1 << 24) as f32 - 0.5;
        }
        sum
    }

    fn tensor(&mut self, dims: &[usize], scale: f32) -> Tensor {
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| scale * self.next()).collect();
        Tensor::from_slice(dims.to_vec(), &values).unwrap()
    }
}

const CHANNELS: usize = 8;

fn types(graph: &mut Graph, id: ValueId, dims: &[usize]) {
    let dims = dims.iter().map(|&n| Dim::Known(n)).collect();
    graph.value_mut(id).ty = Some(Type::tensor(DataType::Float, Some(dims)));
}

/// Three convolutions, the third of which is added to the first, and a classifier.
fn residual() -> Model {
    let mut noise = Noise(1);
    let mut graph = Graph::default();
    graph.name = "residual".to_owned();
    let x = graph.intern("x");
    types(&mut graph, x, &[1, 3, 12, 12]);
    graph.inputs.push(x);
    let mut conv = |graph: &mut Graph, input: &str, output: &str, n_in: usize| {
        let w = graph.add_constant(
            &format!("{output}_w"),
            noise.tensor(&[CHANNELS, n_in, 3, 3], 1.0 / (n_in as f32).sqrt()),
        );
        let b = graph.add_constant(&format!("{output}_b"), noise.tensor(&[CHANNELS], 0.1));
        let inputs = vec![Some(graph.intern(input)), Some(w), Some(b)];
        let outputs = vec![Some(graph.intern(output))];
        let mut node = Node { op_type: "Conv".into(), inputs, outputs, ..Node::default() };
        node.name = format!("{output}_node");
        graph.nodes.push(node.with_attr("pads", AttrValue::Ints(vec![1, 1, 1, 1])));
    };
    let push = |graph: &mut Graph, op_type: &str, inputs: &[&str], output: &str| {
        let inputs = inputs.iter().map(|name| Some(graph.intern(name))).collect();
        let outputs = vec![Some(graph.intern(output))];
        let name = format!("{output}_node");
        graph.nodes.push(Node {
            op_type: op_type.into(),
            inputs,
            outputs,
            name,
            ..Node::default()
        });
    };
    conv(&mut graph, "x", "c1", 3);
    push(&mut graph, "Relu", &["c1"], "r1");
    conv(&mut graph, "r1", "c2", CHANNELS);
    push(&mut graph, "Relu", &["c2"], "r2");
    conv(&mut graph, "r2", "c3", CHANNELS);
    push(&mut graph, "Add", &["c3", "r1"], "sum");
    push(&mut graph, "GlobalAveragePool", &["sum"], "pool");
    push(&mut graph, "Flatten", &["pool"], "flat");
    graph.add_constant("fc_w", Noise(2).tensor(&[CHANNELS, 10], 1.0));
    graph.add_constant("fc_b", Noise(3).tensor(&[10], 0.1));
    push(&mut graph, "Gemm", &["flat", "fc_w", "fc_b"], "logits");
    let logits = graph.intern("logits");
    types(&mut graph, logits, &[1, 10]);
    graph.outputs.push(logits);
    let mut model = Model { graph, ..Model::default() };
    model.ir_version = 8;
    model.set_opset("", 13);
    model
}

struct Pictures(usize);

impl Samples for Pictures {
    fn names(&self) -> Vec<String> {
        (0..self.0).map(|i| format!("{i:03}")).collect()
    }

    fn sample(&self, i: usize) -> Result<Sample, Box<dyn std::error::Error + Send + Sync>> {
        let inputs = vec![("x".to_owned(), Noise(100 + i as u64).tensor(&[1, 3, 12, 12], 1.0))];
        Ok(Sample { name: format!("{i:03}"), inputs })
    }
}

fn quantized(model: &Model, granularity: WeightGranularity, format: Format) -> Model {
    let options = Options {
        prepare: PrepareOptions::default(),
        plan: PlanOptions { granularity, ..PlanOptions::default() },
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
