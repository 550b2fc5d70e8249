use std::{collections::BTreeMap, num::NonZero};

use midtread_exec::{Interpreter, interpreter::Options};
use midtread_graph::{AttrValue, DataType, Graph, Tensor, Type};

use super::*;
use crate::{
    plan::{IntType, Io, Overrides, PlanOptions, Symmetry, WeightGranularity, plan_ranges},
    testing::{Net, check_graph, listing, ort, ranges, unit_ranges},
};

fn planned(model: &Model, list: &[(&str, f32, f32)]) -> Plan {
    plan_ranges(model, Some(&ranges(list)), &ort(), &PlanOptions::default()).unwrap()
}

fn applied(model: &Model, plan: &Plan, format: Format) -> Model {
    let quantized = apply(model, plan, format).unwrap();
    check_graph(&quantized);
    assert_eq!(
        listing(&quantized),
        listing(&apply(model, plan, format).unwrap()),
        "the same twice"
    );
    let names = |m: &Model, ids: &[midtread_graph::ValueId]| -> Vec<String> {
        ids.iter().map(|&id| m.graph.value_name(id).to_owned()).collect()
    };
    assert_eq!(names(&quantized, &quantized.graph.outputs), names(model, &model.graph.outputs));
    assert_eq!(names(&quantized, &quantized.graph.inputs), names(model, &model.graph.inputs));
    quantized
}

/// Bytes of all initializers.
fn n_bytes(graph: &Graph) -> usize {
    graph
        .initializers
        .iter()
        .map(|&id| graph.value(id).constant.as_ref().unwrap().as_bytes().len())
        .sum()
}

/// The first output for inputs of these sizes, filled with a fixed wave in [-1, 1].
fn run(model: &Model, inputs: &[(&str, &[usize])]) -> Vec<f32> {
    let inputs = inputs.iter().map(|(name, dims)| {
        let n: usize = dims.iter().product();
        let values: Vec<f32> = (0..n).map(|i| ((i * 29 + 7) % 83) as f32 / 41.0 - 1.0).collect();
        ((*name).to_owned(), Tensor::from_slice(dims.to_vec(), &values).unwrap())
    });
    let interpreter = Interpreter::new(model, Options::default()).unwrap();
    let outputs = interpreter.run(inputs.collect()).unwrap();
    outputs[0].1.to_vec().unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// x -> Conv -> Relu -> MaxPool -> Conv -> y
fn conv_net() -> Model {
    Net::new(&["x"])
        .wave("w1", &[8, 3, 3, 3], 0.5)
        .floats("b1", &[8], &[0.1, -0.2, 0.3, 0.0, 0.5, 0.1, 0.2, -0.7])
        .wave("w2", &[2, 8, 1, 1], 0.5)
        .node("Conv", &["x", "w1", "b1"], &["c1"])
        .node("Relu", &["c1"], &["r1"])
        .node_with("MaxPool", &["r1"], &["p"], &[("kernel_shape", AttrValue::Ints(vec![2, 2]))])
        .node("Conv", &["p", "w2"], &["y"])
        .outputs(&["y"])
}

const CONV_RANGES: &[(&str, f32, f32)] = &[("x", -1.0, 1.0), ("r1", 0.0, 6.0), ("y", -4.0, 8.0)];

#[test]
fn the_qdq_form_has_onnxruntimes_names_and_one_pair_a_tensor() {
    let model = conv_net();
    let q = applied(&model, &planned(&model, CONV_RANGES), Format::Qdq);
    assert_eq!(
        listing(&q),
        [
            "DequantizeLinear(w1_quantized, w1_scale, w1_zero_point) -> w1_DequantizeLinear_Output",
            "DequantizeLinear(b1_quantized, b1_quantized_scale, b1_quantized_zero_point) -> \
             b1_DequantizeLinear_Output",
            "QuantizeLinear(x, x_scale, x_zero_point) -> x_QuantizeLinear_Output",
            "DequantizeLinear(x_QuantizeLinear_Output, x_scale, x_zero_point) -> x_DequantizeLinear_Output",
            "Conv(x_DequantizeLinear_Output, w1_DequantizeLinear_Output, b1_DequantizeLinear_Output) -> r1",
            "QuantizeLinear(r1, r1_scale, r1_zero_point) -> r1_QuantizeLinear_Output",
            "DequantizeLinear(r1_QuantizeLinear_Output, r1_scale, r1_zero_point) -> r1_DequantizeLinear_Output",
            "MaxPool(r1_DequantizeLinear_Output) -> p",
            "QuantizeLinear(p, r1_scale, r1_zero_point) -> p_QuantizeLinear_Output",
            "DequantizeLinear(p_QuantizeLinear_Output, r1_scale, r1_zero_point) -> p_DequantizeLinear_Output",
            "DequantizeLinear(w2_quantized, w2_scale, w2_zero_point) -> w2_DequantizeLinear_Output",
            "Conv(p_DequantizeLinear_Output, w2_DequantizeLinear_Output) -> y_QuantizeLinear_Input",
            "QuantizeLinear(y_QuantizeLinear_Input, y_scale, y_zero_point) -> y_QuantizeLinear_Output",
            "DequantizeLinear(y_QuantizeLinear_Output, y_scale, y_zero_point) -> y",
        ]
    );
    let constant =
        |name: &str| q.graph.value(q.graph.find(name).unwrap()).constant.clone().unwrap();
    assert_eq!(
        (constant("w1_quantized").dtype(), constant("w1_scale").dims()),
        (DataType::Int8, &[8][..])
    );
    assert_eq!(
        (constant("b1_quantized").dtype(), constant("x_zero_point").dtype()),
        (DataType::Int32, DataType::Uint8)
    );
    assert!(
        q.graph
            .initializers
            .iter()
            .all(|&id| !["w1", "w2", "b1"].contains(&q.graph.value_name(id)))
    );
}

#[test]
fn every_form_computes_what_the_float_model_does_within_a_few_steps() {
    let model = conv_net();
    let inputs: &[(&str, &[usize])] = &[("x", &[1, 3, 8, 8])];
    let float = run(&model, inputs);
    let range = (-4.0_f32, 8.0_f32);
    assert!(float.iter().all(|y| range.0 < *y && *y < range.1), "the test's own ranges hold");
    let step = (range.1 - range.0) / 255.0;
    let q = applied(&model, &planned(&model, CONV_RANGES), Format::Qdq);
    // A step of the output, and the errors of inputs and weights summed over 27 and 8 products.
    assert!(largest_difference(&float, &run(&q, inputs)) < 3.0 * step);
    for scheme in [Scheme::Dynamic, Scheme::WeightOnly] {
        let options = PlanOptions { scheme, ..PlanOptions::default() };
        let plan = plan_ranges(&model, None, &ort(), &options).unwrap();
        let q = applied(&model, &plan, Format::Qdq);
        let difference = largest_difference(&float, &run(&q, inputs));
        assert!(0.0 < difference && difference < 3.0 * step, "{scheme}: {difference}");
    }
}

#[test]
fn the_qoperator_form_quantizes_and_dequantizes_at_the_borders_only() {
    let model = conv_net();
    let q = applied(&model, &planned(&model, CONV_RANGES), Format::QOperator);
    assert_eq!(
        listing(&q),
        [
            "QuantizeLinear(x, x_scale, x_zero_point) -> x_quantized",
            "QLinearConv(x_quantized, x_scale, x_zero_point, w1_quantized, w1_scale, w1_zero_point, r1_scale, \
             r1_zero_point, b1_quantized) -> r1_quantized",
            "MaxPool(r1_quantized) -> p_quantized",
            "QLinearConv(p_quantized, r1_scale, r1_zero_point, w2_quantized, w2_scale, w2_zero_point, y_scale, \
             y_zero_point) -> y_quantized",
            "DequantizeLinear(y_quantized, y_scale, y_zero_point) -> y",
        ]
    );
    assert_eq!(q.opset("com.microsoft"), None, "nothing of it is used");
}

#[test]
fn operators_without_an_integer_form_get_floats_in_the_qoperator_form() {
    let model = Net::new(&["x"])
        .wave("w", &[8, 8], 0.5)
        .wave("v", &[8, 8], 0.5)
        .floats("one", &[1], &[1.0])
        .node("MatMul", &["x", "w"], &["m"])
        .node("Add", &["m", "one"], &["a"])
        .node("Erf", &["a"], &["e"])
        .node("Softmax", &["e"], &["s"])
        .node("MatMul", &["s", "v"], &["y"])
        .outputs(&["y", "a"]);
    let plan =
        plan_ranges(&model, Some(&unit_ranges(&model)), &ort(), &PlanOptions::default()).unwrap();
    let q = applied(&model, &plan, Format::QOperator);
    let listed = listing(&q);
    let ops: Vec<&str> = listed.iter().map(|l| l.split('(').next().unwrap()).collect();
    assert_eq!(
        ops,
        [
            "QuantizeLinear",
            "QLinearMatMul",
            "QLinearAdd",
            "DequantizeLinear",
            "Erf",
            "Softmax",
            "QuantizeLinear",
            "QLinearMatMul",
            "DequantizeLinear",
        ]
    );
    assert_eq!(q.opset("com.microsoft"), Some(1));
}

#[test]
fn a_graph_output_in_the_middle_is_made_and_read() {
    let model = Net::new(&["x"])
        .wave("w", &[4, 4], 0.5)
        .node("MatMul", &["x", "w"], &["a"])
        .node("MatMul", &["a", "w"], &["y"])
        .outputs(&["y", "a"]);
    let plan =
        plan_ranges(&model, Some(&unit_ranges(&model)), &ort(), &PlanOptions::default()).unwrap();
    let q = applied(&model, &plan, Format::Qdq);
    assert!(
        listing(&q)
            .contains(&"MatMul(a, w_DequantizeLinear_Output) -> y_QuantizeLinear_Input".to_owned())
    );
    let a = q.graph.find("a").unwrap();
    assert_eq!(q.graph.type_of(a).unwrap().elem(), Some(DataType::Float));
    let q = applied(&model, &plan, Format::QOperator);
    assert!(listing(&q).iter().any(|l| l.starts_with("QLinearMatMul(a_quantized")));
}

#[test]
fn integer_inputs_and_outputs_keep_their_names() {
    let model = conv_net();
    let options = PlanOptions { io: Io::Integer, ..PlanOptions::default() };
    let plan = plan_ranges(&model, Some(&ranges(CONV_RANGES)), &ort(), &options).unwrap();
    for format in [Format::Qdq, Format::QOperator] {
        let q = applied(&model, &plan, format);
        for name in ["x", "y"] {
            let ty = q.graph.type_of(q.graph.find(name).unwrap()).unwrap();
            assert_eq!(ty.elem(), Some(DataType::Uint8), "{name} of {format}");
        }
        let n = |op: &str| q.graph.nodes.iter().filter(|n| n.op_type == op).count();
        match format {
            Format::Qdq => assert_eq!((n("QuantizeLinear"), n("DequantizeLinear")), (3, 6)),
            Format::QOperator => assert_eq!((n("QuantizeLinear"), n("DequantizeLinear")), (0, 0)),
        }
    }
}

#[test]
fn an_integer_output_that_is_also_read_inside_is_dequantized_there() {
    let model = Net::new(&["x"])
        .wave("w", &[4, 4], 0.5)
        .node("MatMul", &["x", "w"], &["a"])
        .node("Erf", &["a"], &["y"])
        .outputs(&["a", "y"]);
    let options = PlanOptions { io: Io::Integer, ..PlanOptions::default() };
    let plan = plan_ranges(&model, Some(&unit_ranges(&model)), &ort(), &options).unwrap();
    for format in [Format::Qdq, Format::QOperator] {
        let q = applied(&model, &plan, format);
        assert_eq!(q.graph.type_of(q.graph.outputs[0]).unwrap().elem(), Some(DataType::Uint8));
        assert!(
            listing(&q).contains(&"Erf(a_DequantizeLinear_Output) -> y".to_owned()),
            "{:?}",
            listing(&q)
        );
    }
}

#[test]
fn what_is_written_has_fewer_bytes_of_constants_than_what_was_read() {
    // The constant is also read by a node that stays in float.
    let model = Net::new(&["x"])
        .wave("w", &[64, 64], 0.5)
        .wave("b", &[64], 0.5)
        .node("MatMul", &["x", "w"], &["a"])
        .node("Erf", &["w"], &["e"])
        .node("Gemm", &["a", "e", "b"], &["y"])
        .outputs(&["y"]);
    for scheme in [Scheme::Static, Scheme::Dynamic, Scheme::WeightOnly] {
        let options = PlanOptions { scheme, ..PlanOptions::default() };
        let plan = plan_ranges(&model, Some(&unit_ranges(&model)), &ort(), &options).unwrap();
        let before = n_bytes(&model.graph);
        for format in [Format::Qdq, Format::QOperator] {
            let after = n_bytes(&applied(&model, &plan, format).graph);
            assert!(3 * after < before, "{scheme}, {format}: {before} bytes became {after}");
        }
    }
}

#[test]
fn an_activation_of_several_products_is_quantized_once_at_run_time() {
    let model = Net::new(&["x"])
        .wave("q", &[16, 8], 0.5)
        .wave("k", &[16, 8], 0.5)
        .wave("bias", &[8], 1.0)
        .node("MatMul", &["x", "q"], &["a"])
        .node("MatMul", &["x", "k"], &["b"])
        .node_with(
            "Gemm",
            &["x", "k", "bias"],
            &["c"],
            &[("alpha", AttrValue::Float(0.5)), ("beta", AttrValue::Float(2.0))],
        )
        .node("Add", &["a", "b"], &["d"])
        .node("Add", &["d", "c"], &["y"])
        .outputs(&["y"]);
    let options = PlanOptions { scheme: Scheme::Dynamic, ..PlanOptions::default() };
    let plan = plan_ranges(&model, None, &ort(), &options).unwrap();
    let q = applied(&model, &plan, Format::Qdq);
    let n = |op: &str| q.graph.nodes.iter().filter(|n| n.op_type == op).count();
    assert_eq!((n("DynamicQuantizeLinear"), n("MatMulInteger")), (1, 3));
    let inputs: &[(&str, &[usize])] = &[("x", &[3, 16])];
    let (float, got) = (run(&model, inputs), run(&q, inputs));
    // 16 products of values below 1 and weights below 0.5, each off by at most half a step of either, thrice.
    let bound = 3.0 * 16.0 * (0.5 * 1.0 / 127.0 + 1.0 * 0.25 / 127.0);
    assert!(largest_difference(&float, &got) < bound);
}

#[test]
fn transposed_weights_are_stored_as_the_integer_product_wants_them() {
    let model = Net::new(&["x"])
        .wave("w", &[5, 16], 0.5)
        .node_with("Gemm", &["x", "w"], &["y"], &[("transB", AttrValue::Int(1))])
        .outputs(&["y"]);
    let options = PlanOptions { scheme: Scheme::Dynamic, ..PlanOptions::default() };
    let plan = plan_ranges(&model, None, &ort(), &options).unwrap();
    let q = applied(&model, &plan, Format::Qdq);
    let w = q.graph.find("w_quantized").unwrap();
    assert_eq!(q.graph.value(w).constant.as_ref().unwrap().dims(), [16, 5]);
    let inputs: &[(&str, &[usize])] = &[("x", &[3, 16])];
    assert!(largest_difference(&run(&model, inputs), &run(&q, inputs)) < 16.0 * 0.75 / 127.0);
}

#[test]
fn tables_are_looked_up_as_integers() {
    let mut net = Net::new(&["ids"]);
    let ids = net.value("ids");
    net.graph().value_mut(ids).ty = Some(Type::tensor(DataType::Int64, None));
    let model = net
        .wave("table", &[64, 32], 1.0)
        .wave("w", &[32, 8], 1.0)
        .node("Gather", &["table", "ids"], &["e"])
        .node("MatMul", &["e", "w"], &["y"])
        .outputs(&["y"]);
    for scheme in [Scheme::Dynamic, Scheme::WeightOnly] {
        let plan =
            plan_ranges(&model, None, &ort(), &PlanOptions { scheme, ..PlanOptions::default() })
                .unwrap();
        let q = applied(&model, &plan, Format::Qdq);
        assert_eq!(
            listing(&q)[..2],
            [
                "Gather(table_quantized, ids) -> e_quantized",
                "DequantizeLinear(e_quantized, table_scale, table_zero_point) -> e",
            ]
        );
    }
}

#[test]
fn four_bit_blocks_have_scales_of_the_weights_rank() {
    let mut model = Net::new(&["x"])
        .wave("w", &[70, 4], 1.0)
        .node("MatMul", &["x", "w"], &["y"])
        .outputs(&["y"]);
    let options = PlanOptions {
        scheme: Scheme::WeightOnly,
        weight_type: IntType::U4,
        granularity: WeightGranularity::Blocked(NonZero::new(32).unwrap()),
        ..PlanOptions::default()
    };
    let plan = plan_ranges(&model, None, &ort(), &options).unwrap();
    assert_eq!(required_opset(&plan, Format::Qdq), 21);
    let err = apply(&model, &plan, Format::Qdq).unwrap_err();
    assert_eq!(err.to_string(), "the plan needs operator set 21, and the model imports 13");
    model.set_opset("", 21);
    let plan = plan_ranges(&model, None, &ort(), &options).unwrap();
    let q = applied(&model, &plan, Format::Qdq);
    let constant =
        |name: &str| q.graph.value(q.graph.find(name).unwrap()).constant.clone().unwrap();
    assert_eq!(constant("w_quantized").dtype(), DataType::Uint4);
    assert_eq!(constant("w_quantized").as_bytes().len(), 140);
    assert_eq!(constant("w_scale").dims(), [3, 4]);
    assert_eq!(constant("w_zero_point").dims(), [3, 4]);
    assert_eq!(q.graph.nodes[0].int("block_size"), Some(32));
    assert!(10 <= q.ir_version);
}

#[test]
fn a_plan_for_another_model_is_refused() {
    let (model, mut other) = (conv_net(), conv_net());
    let plan = planned(&model, CONV_RANGES);
    let w = other.graph.find("w1").unwrap();
    other.graph.value_mut(w).constant.as_mut().unwrap().to_mut::<f32>().unwrap()[0] += 0.1;
    assert!(matches!(apply(&other, &plan, Format::Qdq), Err(Error::OtherModel { .. })));
}

#[test]
fn the_qoperator_form_refuses_what_is_not_of_eight_bits() {
    let mut model = conv_net();
    model.set_opset("", 21);
    let overrides = Overrides::from_toml("o", "[tensors.w2]\ntype = \"i4\"\n").unwrap();
    let options = PlanOptions { overrides, ..PlanOptions::default() };
    let plan = plan_ranges(&model, Some(&ranges(CONV_RANGES)), &ort(), &options).unwrap();
    assert_eq!(required_opset(&plan, Format::QOperator), 21);
    let err = apply(&model, &plan, Format::QOperator).unwrap_err();
    assert_eq!(err.to_string(), "the qoperator format has 8-bit tensors only, and `w2` is i4");
    applied(&model, &plan, Format::Qdq);
}

#[test]
fn residuals_branches_and_shared_constants_stay_connected_in_every_form() {
    let model = Net::new(&["x"])
        .wave("w", &[8, 8, 1, 1], 0.3)
        .wave("b", &[8], 0.3)
        .node("Conv", &["x", "w", "b"], &["c1"])
        .node("Relu", &["c1"], &["r1"])
        .node("Conv", &["r1", "w", "b"], &["c2"])
        .node("Add", &["c2", "x"], &["s"])
        .node("Relu", &["s"], &["r2"])
        .node_with("Concat", &["r1", "r2", "x"], &["k"], &[("axis", AttrValue::Int(1))])
        .node("GlobalAveragePool", &["k"], &["g"])
        .node_with("Flatten", &["g"], &["y"], &[("axis", AttrValue::Int(1))])
        .outputs(&["y"]);
    let inputs: &[(&str, &[usize])] = &[("x", &[2, 8, 4, 4])];
    let float = run(&model, inputs);
    let list: BTreeMap<String, (f32, f32)> =
        model.graph.values().iter().map(|v| (v.name().to_owned(), (-2.0, 2.0))).collect();
    for symmetry in [Symmetry::Asymmetric, Symmetry::Symmetric] {
        let activation_type =
            if symmetry == Symmetry::Symmetric { IntType::I8 } else { IntType::U8 };
        let options = PlanOptions {
            activation_type,
            activation_symmetry: symmetry,
            ..PlanOptions::default()
        };
        let plan = plan_ranges(&model, Some(&list), &ort(), &options).unwrap();
        let q = applied(&model, &plan, Format::Qdq);
        let difference = largest_difference(&float, &run(&q, inputs));
        // Means over 16 values that are each off by a few steps of 4 / 255.
        assert!(difference < 4.0 * 4.0 / 255.0, "{symmetry:?}: {difference}");
        applied(&model, &plan, Format::QOperator);
    }
}

#[test]
fn eight_thousand_nodes_are_rewritten_in_linear_time() {
    let build = |n: usize| {
        let mut net = Net::new(&["v0"]).wave("w", &[4, 4], 1.0);
        for i in 0..n {
            let (x, c, r) = (format!("v{i}"), format!("c{i}"), format!("v{}", i + 1));
            net = net.node("MatMul", &[&x, "w"], &[&c]).node("Relu", &[&c], &[&r]);
        }
        let model = net.outputs(&[&format!("v{n}")]);
        let ranges: BTreeMap<String, (f32, f32)> =
            model.graph.values().iter().map(|v| (v.name().to_owned(), (0.0, 1.0))).collect();
        let plan = plan_ranges(&model, Some(&ranges), &ort(), &PlanOptions::default()).unwrap();
        (model, plan)
    };
    for format in [Format::Qdq, Format::QOperator] {
        let time = |(model, plan): &(Model, Plan)| {
            let start = std::time::Instant::now();
            apply(model, plan, format).unwrap();
            start.elapsed().as_secs_f64()
        };
        let (small, large) = (build(1000), build(4000));
        time(&small);
        let (small, large) = (time(&small), time(&large));
        // Quadratic cost would be 16 times.
        assert!(
            large < 0.5 || large < 8.0 * small,
            "{format}: {small} s for 2,000 nodes, {large} s for 8,000"
        );
    }
}
