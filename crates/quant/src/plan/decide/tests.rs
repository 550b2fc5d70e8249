use std::num::NonZero;

use midtread_graph::{AttrValue, Tensor};

use super::*;
use crate::plan::Overrides;
use crate::testing::{Net, is_quantized, ledger, ort, ranges, unit_ranges};

fn planned(model: &Model, list: &[(&str, f32, f32)]) -> Plan {
    plan_ranges(model, Some(&ranges(list)), &ort(), &PlanOptions::default()).unwrap()
}

fn with(model: &Model, options: &PlanOptions) -> Result<Plan, Error> {
    plan_ranges(model, Some(&unit_ranges(model)), &ort(), options)
}

fn per_tensor(plan: &Plan, name: &str) -> (f32, i32) {
    match &plan.tensors[name].params {
        Params::PerTensor(p) => (p.scale(), p.zero_point()),
        other => panic!("{name}: {other:?}"),
    }
}

/// x -> Conv -> Relu -> MaxPool -> Conv -> Clip -> y
fn conv_net() -> Model {
    let clip = [("kernel_shape", AttrValue::Ints(vec![2, 2]))];
    Net::new(&["x"])
        .wave("w1", &[4, 3, 1, 1], 0.5)
        .floats("b1", &[4], &[0.1, -0.2, 0.3, 0.0])
        .wave("w2", &[2, 4, 1, 1], 2.0)
        .floats("lo", &[], &[0.0])
        .floats("hi", &[], &[6.0])
        .node("Conv", &["x", "w1", "b1"], &["c1"])
        .node("Relu", &["c1"], &["r1"])
        .node_with("MaxPool", &["r1"], &["p"], &clip)
        .node("Conv", &["p", "w2"], &["c2"])
        .node("Clip", &["c2", "lo", "hi"], &["y"])
        .outputs(&["y"])
}

const CONV_RANGES: &[(&str, f32, f32)] =
    &[("x", -1.0, 3.0), ("r1", 0.0, 4.0), ("p", 0.0, 3.5), ("y", 0.0, 6.0)];

#[test]
fn a_clamp_is_absorbed_and_its_range_is_the_producers() {
    let plan = planned(&conv_net(), CONV_RANGES);
    assert_eq!(
        ledger(&plan),
        [
            "c1_node: quantized",
            "r1_node: absorbed (absorbed into the range of `c1_node`)",
            "p_node: quantized",
            "c2_node: quantized",
            "y_node: absorbed (absorbed into the range of `c2_node`)",
        ]
    );
    assert_eq!(plan.tensors.keys().collect::<Vec<_>>(), ["p", "r1", "w1", "w2", "x", "y"]);
    assert_eq!(per_tensor(&plan, "x"), (4.0 / 255.0, 64));
    assert_eq!(per_tensor(&plan, "r1"), (4.0 / 255.0, 0));
    // MaxPool has its input's parameters, whatever was seen of its output.
    assert_eq!(per_tensor(&plan, "p"), (4.0 / 255.0, 0));
    assert_eq!(plan.tensors["p"].why, Why::SameAs("r1".into()));
    assert_eq!(plan.tensors["r1"].why, Why::Calibrated("min_max".into()));
    assert_eq!(plan.biases["b1"], BiasPlan { of: None, input: "x".into(), weight: "w1".into() });
    let Params::PerAxis { axis: 0, params } = &plan.tensors["w1"].params else { panic!() };
    assert_eq!(params.len(), 4);
    assert_eq!(plan.tensors["w1"].range, QRange::I8_NARROW);
}

#[test]
fn symmetric_activations_keep_the_clamp_and_its_input_takes_its_range() {
    let options = PlanOptions {
        activation_type: IntType::I8,
        activation_symmetry: Symmetry::Symmetric,
        ..PlanOptions::default()
    };
    let plan = plan_ranges(&conv_net(), Some(&ranges(CONV_RANGES)), &ort(), &options).unwrap();
    assert!(is_quantized(&plan, "r1_node") && is_quantized(&plan, "y_node"));
    assert_eq!(per_tensor(&plan, "c1"), ((8.0_f64 / 254.0) as f32, 0));
    assert_eq!(plan.tensors["c1"].why, Why::SameAs("r1".into()));
}

#[test]
fn a_clamp_stays_whose_bounds_the_levels_exceed() {
    // Seen up to 6, but clipped at 4 by the graph: a range that did not come from this clamp.
    let over = Overrides::from_toml("o", "[tensors.y]\nmin = -8.0\nmax = 8.0\n").unwrap();
    let options = PlanOptions { overrides: over, ..PlanOptions::default() };
    let plan = plan_ranges(&conv_net(), Some(&ranges(CONV_RANGES)), &ort(), &options).unwrap();
    assert!(is_quantized(&plan, "y_node"), "{:?}", ledger(&plan));
    assert_eq!(plan.tensors["y"].why, Why::Override);
    assert_eq!(per_tensor(&plan, "c2"), per_tensor(&plan, "y"));
}

#[test]
fn a_clamp_with_another_reader_of_its_input_stays() {
    let model = Net::new(&["x"])
        .wave("w", &[4, 3, 1, 1], 0.5)
        .node("Conv", &["x", "w"], &["c"])
        .node("Relu", &["c"], &["r"])
        .node("Add", &["c", "r"], &["y"])
        .outputs(&["y"]);
    let plan =
        planned(&model, &[("x", -1.0, 1.0), ("c", -2.0, 2.0), ("r", 0.0, 2.0), ("y", -2.0, 4.0)]);
    assert!(is_quantized(&plan, "r_node"));
    assert_eq!(per_tensor(&plan, "c").1, 128);
    assert_eq!(per_tensor(&plan, "r").1, 0);
}

#[test]
fn a_clamp_whose_input_is_a_graph_output_stays() {
    let model = Net::new(&["x"])
        .wave("w", &[4, 3, 1, 1], 0.5)
        .node("Conv", &["x", "w"], &["c"])
        .node("Relu", &["c"], &["r"])
        .outputs(&["c", "r"]);
    let plan = planned(&model, &[("x", -1.0, 1.0), ("c", -2.0, 2.0), ("r", 0.0, 2.0)]);
    assert!(is_quantized(&plan, "r_node") && plan.tensors.contains_key("c"));
}

#[test]
fn rows_of_clamps_are_absorbed_to_the_last() {
    let model = Net::new(&["x"])
        .wave("w", &[4, 3, 1, 1], 0.5)
        .floats("lo", &[], &[0.0])
        .floats("hi", &[], &[6.0])
        .node("Conv", &["x", "w"], &["c"])
        .node("Relu", &["c"], &["r"])
        .node("Clip", &["r", "lo", "hi"], &["y"])
        .outputs(&["y"]);
    // Calibration leaves out what only a clamp reads.
    let plan = planned(&model, &[("x", -1.0, 1.0), ("y", 0.0, 6.0)]);
    assert_eq!(plan.counts().absorbed, 2);
    assert!(!plan.tensors.contains_key("c") && !plan.tensors.contains_key("r"));
}

#[test]
fn an_excluded_clamp_leaves_its_input_the_range_that_matters() {
    let options =
        PlanOptions { exclude: vec!["y_node".parse().unwrap()], ..PlanOptions::default() };
    let plan = plan_ranges(&conv_net(), Some(&ranges(CONV_RANGES)), &ort(), &options).unwrap();
    assert_eq!(ledger(&plan)[4], "y_node: float (excluded by `y_node`)");
    assert_eq!(per_tensor(&plan, "c2"), ((6.0_f64 / 255.0) as f32, 0));
}

#[test]
fn concat_shares_the_union_of_its_inputs_and_softmax_has_its_range_beforehand() {
    let model = Net::new(&["a", "b"])
        .node("Softmax", &["a"], &["s"])
        .node_with("Concat", &["a", "b"], &["y"], &[("axis", AttrValue::Int(1))])
        .outputs(&["s", "y"]);
    let plan =
        planned(&model, &[("a", -3.0, 1.0), ("b", -1.0, 5.0), ("s", 0.0, 0.4), ("y", 0.0, 0.0)]);
    let (scale, zero_point) = per_tensor(&plan, "y");
    assert_eq!(zero_point, (3.0_f64 / (8.0 / 255.0)).round() as i32);
    assert_eq!(scale, (8.0_f64 / 255.0) as f32);
    for name in ["a", "b"] {
        assert_eq!(per_tensor(&plan, name), (scale, zero_point), "{name}");
    }
    assert_eq!(plan.tensors["y"].why, Why::SameAs("a".into()));
    assert_eq!(per_tensor(&plan, "s"), ((1.0_f64 / 255.0) as f32, 0));
    assert_eq!(plan.tensors["s"].why, Why::Fixed("Softmax".into()));
}

#[test]
fn what_moves_floats_stays_in_float() {
    let model = Net::new(&["x"])
        .ints("shape", &[1, -1])
        .wave("w", &[4, 4], 1.0)
        .node("Reshape", &["x", "shape"], &["r"])
        .node("MatMul", &["r", "w"], &["y"])
        .outputs(&["y"]);
    let plan = with(&model, &PlanOptions::default()).unwrap();
    assert_eq!(ledger(&plan), ["r_node: float (its input is not quantized)", "y_node: quantized"]);
}

#[test]
fn a_product_of_two_activations_has_both_quantized() {
    let model = Net::new(&["a", "b"]).node("MatMul", &["a", "b"], &["y"]).outputs(&["y"]);
    let plan = planned(&model, &[("a", -1.0, 1.0), ("b", 0.0, 2.0), ("y", -1.0, 1.0)]);
    assert_eq!(plan.tensors.len(), 3);
    assert_eq!(per_tensor(&plan, "b").1, 0);
}

#[test]
fn the_weight_scale_is_raised_only_where_the_bias_would_not_fit() {
    let model = Net::new(&["x"])
        .floats("w", &[2, 1, 1, 1], &[0.5, 1e-9])
        .floats("b", &[2], &[0.1, 3.0])
        .node("Conv", &["x", "w", "b"], &["y"])
        .outputs(&["y"]);
    let plan = planned(&model, &[("x", 0.0, 0.255), ("y", 0.0, 4.0)]);
    let Params::PerAxis { params, .. } = &plan.tensors["w"].params else { panic!() };
    assert_eq!(params[0].scale(), (0.5_f64 / 127.0) as f32);
    let bias_scale = f64::from(per_tensor(&plan, "x").0) * f64::from(params[1].scale());
    let steps = 3.0 / bias_scale;
    assert!((2.0_f64.powi(31) * 0.999..2.0_f64.powi(31)).contains(&steps), "{steps}");
    assert_eq!(plan.tensors["w"].why, Why::RaisedForBias("b".into()));
}

#[test]
fn a_bias_of_two_convolutions_has_a_form_for_each_and_a_shared_weight_one() {
    let model = Net::new(&["x", "z"])
        .wave("w", &[2, 2, 1, 1], 1.0)
        .floats("b", &[2], &[0.5, -0.5])
        .node("Conv", &["x", "w", "b"], &["y1"])
        .node("Conv", &["z", "w", "b"], &["y2"])
        .outputs(&["y1", "y2"]);
    let list = [("x", -1.0, 1.0), ("z", -2.0, 2.0), ("y1", -1.0, 1.0), ("y2", -1.0, 1.0)];
    let plan = planned(&model, &list);
    assert_eq!(plan.tensors.keys().filter(|k| k.starts_with('w')).count(), 1);
    assert_eq!(plan.biases["b"], BiasPlan { of: None, input: "x".into(), weight: "w".into() });
    assert_eq!(
        plan.biases["b_2"],
        BiasPlan { of: Some("b".into()), input: "z".into(), weight: "w".into() }
    );
}

#[test]
fn a_constant_used_along_two_axes_has_two_sets_of_parameters() {
    let model = Net::new(&["x", "z"])
        .wave("w", &[3, 3], 1.0)
        .node_with("Gemm", &["x", "w"], &["y1"], &[("transB", AttrValue::Int(1))])
        .node("MatMul", &["z", "w"], &["y2"])
        .outputs(&["y1", "y2"]);
    let plan = with(&model, &PlanOptions::default()).unwrap();
    let axis = |key: &str| match &plan.tensors[key].params {
        Params::PerAxis { axis, .. } => *axis,
        other => panic!("{other:?}"),
    };
    assert_eq!((axis("w"), axis("w_2")), (0, 1));
    assert_eq!(plan.tensors["w_2"].of.as_deref(), Some("w"));
}

#[test]
fn gemm_with_factors_keeps_its_bias_in_float() {
    let gemm = |attrs: &[(&str, AttrValue)]| {
        let model = Net::new(&["x"])
            .wave("w", &[3, 4], 1.0)
            .wave("c", &[4], 1.0)
            .node_with("Gemm", &["x", "w", "c"], &["y"], attrs)
            .outputs(&["y"]);
        with(&model, &PlanOptions::default()).unwrap()
    };
    assert_eq!(gemm(&[]).biases.len(), 1);
    for name in ["alpha", "beta"] {
        let plan = gemm(&[(name, AttrValue::Float(0.5))]);
        assert!(plan.biases.is_empty() && is_quantized(&plan, "y_node"), "{name}");
    }
}

#[test]
fn a_bias_whose_sizes_do_not_go_with_the_channels_stays_in_float() {
    let model = Net::new(&["x"])
        .wave("w", &[3, 4], 1.0)
        .floats("c", &[1], &[0.5])
        .node("Gemm", &["x", "w", "c"], &["y"])
        .outputs(&["y"]);
    assert!(with(&model, &PlanOptions::default()).unwrap().biases.is_empty());
    let per_tensor =
        PlanOptions { granularity: WeightGranularity::PerTensor, ..PlanOptions::default() };
    assert_eq!(with(&model, &per_tensor).unwrap().biases.len(), 1);
}

#[test]
fn nodes_are_chosen_by_name_glob_and_type() {
    let model = conv_net();
    let status = |include: &[&str], exclude: &[&str]| {
        let parse = |list: &[&str]| list.iter().map(|p| p.parse().unwrap()).collect();
        let options = PlanOptions {
            include: parse(include),
            exclude: parse(exclude),
            ..PlanOptions::default()
        };
        with(&model, &options).map(|plan| plan.counts().quantized)
    };
    assert_eq!(status(&["c1_node"], &[]).unwrap(), 1);
    assert_eq!(status(&["c?_node"], &[]).unwrap(), 2);
    assert_eq!(status(&["type:Conv"], &["c2*"]).unwrap(), 1);
    let err = status(&[], &["c1_nod"]).unwrap_err();
    assert_eq!(err.to_string(), "node `c1_nod` is not in the model; did you mean `c1_node`?");
    let err = status(&["type:conv"], &[]).unwrap_err();
    assert_eq!(err.to_string(), "operator type `conv` is not in the model; did you mean `Conv`?");
    assert_eq!(
        status(&["z*"], &[]).unwrap_err().to_string(),
        "pattern `z*` matches no node of the model"
    );
}

#[test]
fn overrides_are_checked_against_the_model_and_the_target_up_front() {
    let model = conv_net();
    let with_over = |text: &str, target: &str| {
        let overrides = Overrides::from_toml("o", text).unwrap();
        let options = PlanOptions { overrides, ..PlanOptions::default() };
        plan_ranges(&model, Some(&ranges(CONV_RANGES)), &Target::find(target).unwrap(), &options)
    };
    let err =
        with_over("[tensors.x]\ntype = \"i8\"\n[tensors.w3]\ntype = \"i4\"\n", "onnxruntime_cpu")
            .unwrap_err();
    assert_eq!(err.to_string(), "tensor `w3` is not in the model; did you mean `w1`?");
    let err = with_over("[tensors.x]\ntype = \"i8\"\n[tensors.r1]\ntype = \"u16\"\n", "openvino")
        .unwrap_err();
    assert_eq!(
        err.to_string(),
        "override of tensor `r1`: target `openvino` does not have u16 there"
    );
    let err = with_over("[tensors.p]\ncalibrator = \"mse\"\n", "onnxruntime_cpu").unwrap_err();
    assert_eq!(err.to_string(), "override of tensor `p`: it takes the range of another tensor");
    let err =
        with_over("[tensors.x]\nscale = 0.1\nzero_point = -3\n", "onnxruntime_cpu").unwrap_err();
    assert_eq!(err.to_string(), "tensor `x`");

    let plan =
        with_over("[tensors.w2]\ntype = \"i4\"\n[tensors.p]\ntype = \"u16\"\n", "onnxruntime_cpu")
            .unwrap();
    assert_eq!(plan.tensors["w2"].int_type, IntType::I4);
    assert_eq!(
        (plan.tensors["p"].int_type, plan.tensors["r1"].int_type),
        (IntType::U16, IntType::U16)
    );
}

#[test]
fn options_that_the_target_or_the_scheme_does_not_have_are_refused() {
    let model = conv_net();
    let tensorrt = Target::find("tensorrt").unwrap();
    let refused = |target: &Target, options: &PlanOptions| {
        plan_ranges(&model, Some(&ranges(CONV_RANGES)), target, options).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&tensorrt, &PlanOptions::default()),
        "target `tensorrt` has no u8 activations"
    );
    let dynamic = PlanOptions { scheme: Scheme::Dynamic, ..PlanOptions::default() };
    assert_eq!(refused(&tensorrt, &dynamic), "target `tensorrt` does not run dynamic models");
    let int4 = PlanOptions { weight_type: IntType::I4, ..dynamic };
    assert_eq!(refused(&ort(), &int4), "dynamic quantization has 8-bit weights only, not i4");
    let err = plan_ranges(&model, None, &ort(), &PlanOptions::default()).unwrap_err();
    assert!(matches!(err, Error::NoStats));
}

#[test]
fn tensors_without_a_range_are_counted_and_the_first_is_named() {
    let err = plan_ranges(
        &conv_net(),
        Some(&ranges(&[("x", 0.0, 1.0)])),
        &ort(),
        &PlanOptions::default(),
    );
    match err.unwrap_err() {
        Error::NotCalibrated { first, n_tensors } => {
            assert_eq!((first.as_str(), n_tensors), ("r1", 2))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name_and_place() {
    for (bad, what) in [(f32::NAN, "NaN"), (f32::INFINITY, "an infinity")] {
        let model = Net::new(&["x"])
            .floats("w", &[2, 2], &[1.0, 2.0, bad, 0.0])
            .node("MatMul", &["x", "w"], &["y"])
            .outputs(&["y"]);
        let err = with(&model, &PlanOptions::default()).unwrap_err();
        assert_eq!(err.to_string(), format!("constant `w` has {what} at element 2"));
    }
}

#[test]
fn nodes_with_reasons_to_stay_in_float_say_them() {
    let mut net = Net::new(&["x", "h"]);
    let h = net.value("h");
    net.graph().value_mut(h).ty = Some(midtread_graph::Type::tensor(DataType::Float16, None));
    let mut model = net
        .wave("w", &[2, 2], 1.0)
        .node("MatMul", &["h", "w"], &["y1"])
        .node("Erf", &["x"], &["y2"])
        .node("NoSuchOperator", &["x"], &["y3"])
        .node("MatMul", &["x", "d"], &["y4"])
        .outputs(&["y1", "y2", "y3", "y4"]);
    let d = model.graph.find("d").unwrap();
    model.graph.inputs.push(d);
    model.graph.set_constant(d, Tensor::from_slice(vec![1, 1], &[1.0_f32]).unwrap());
    let plan = with(&model, &PlanOptions::default()).unwrap();
    assert_eq!(
        ledger(&plan),
        [
            "y1_node: float (`h` is float16)",
            "y2_node: float (it has no integer form)",
            "y3_node: float (its operator is not in the operator table)",
            "y4_node: float (`d` is a default that callers can replace)",
        ]
    );
}

#[test]
fn arithmetic_on_integers_is_structural() {
    let mut net = Net::new(&["n"]);
    let n = net.value("n");
    net.graph().value_mut(n).ty = Some(midtread_graph::Type::tensor(DataType::Int64, None));
    let model = net.ints("one", &[1]).node("Add", &["n", "one"], &["m"]).outputs(&["m"]);
    assert_eq!(ledger(&with(&model, &PlanOptions::default()).unwrap()), ["m_node: structural"]);
}

#[test]
fn where_is_quantized_only_after_quantized_inputs() {
    let mut net = Net::new(&["c", "x"]).wave("w", &[2, 2], 1.0).floats("lowest", &[1], &[f32::MIN]);
    let c = net.value("c");
    net.graph().value_mut(c).ty = Some(midtread_graph::Type::tensor(DataType::Bool, None));
    let model = net
        .node("MatMul", &["x", "w"], &["m"])
        .node("Where", &["c", "m", "lowest"], &["y"])
        .outputs(&["y"]);
    let plan = with(&model, &PlanOptions::default()).unwrap();
    assert_eq!(ledger(&plan)[1], "y_node: float (its inputs are not all quantized)");
}

#[test]
fn dynamic_plans_have_weights_only_and_large_tables() {
    let model = Net::new(&["x"])
        .wave("table", &[64, 32], 1.0)
        .wave("w", &[32, 8], 1.0)
        .ints("ids", &[1, 2])
        .node("Gather", &["table", "ids"], &["e"])
        .node("MatMul", &["e", "w"], &["m"])
        .node("MatMul", &["m", "x"], &["y"])
        .outputs(&["y"]);
    let options = PlanOptions { scheme: Scheme::Dynamic, ..PlanOptions::default() };
    let plan = plan_ranges(&model, None, &ort(), &options).unwrap();
    assert_eq!(
        ledger(&plan),
        ["e_node: quantized", "m_node: quantized", "y_node: float (its weight is not constant)"]
    );
    assert_eq!(plan.tensors.keys().collect::<Vec<_>>(), ["table", "w"]);
    let Decision::Quantized { inputs, .. } = &plan.nodes[1].decision else { panic!() };
    assert_eq!(inputs[..], [Operand::Dynamic, Operand::Tensor("w".into())]);
}

#[test]
fn what_a_static_plan_looks_up_has_the_parameters_of_the_table() {
    let model = Net::new(&["x"])
        .wave("table", &[64, 32], 2.0)
        .ints("ids", &[1, 2])
        .node("Gather", &["table", "ids"], &["e"])
        .node("Add", &["e", "x"], &["y"])
        .outputs(&["y"]);
    let plan = planned(&model, &[("x", -1.0, 1.0), ("e", -0.1, 0.1), ("y", -1.0, 1.0)]);
    assert_eq!(per_tensor(&plan, "e"), per_tensor(&plan, "table"));
    assert_eq!(plan.tensors["table"].why, Why::Constant);
    assert_eq!(plan.tensors["e"].why, Why::SameAs("table".into()));
}

#[test]
fn blocks_run_along_the_dimension_that_is_summed_over() {
    let model = Net::new(&["x"])
        .wave("w", &[70, 4], 1.0)
        .node("MatMul", &["x", "w"], &["y"])
        .outputs(&["y"]);
    let block_size = NonZero::new(32).unwrap();
    let options = PlanOptions {
        scheme: Scheme::WeightOnly,
        weight_type: IntType::U4,
        granularity: WeightGranularity::Blocked(block_size),
        ..PlanOptions::default()
    };
    let plan = plan_ranges(&model, None, &ort(), &options).unwrap();
    match &plan.tensors["w"].params {
        Params::Blocked { axis: 0, block_size: got, params } => {
            assert_eq!((*got, params.len()), (block_size, 3 * 4));
            assert!(params.iter().any(|p| p.zero_point() != 8), "u4 blocks are asymmetric");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn text_gives_the_same_plan_and_the_same_text() {
    let mut model = conv_net();
    let options =
        PlanOptions { exclude: vec!["p_node".parse().unwrap()], ..PlanOptions::default() };
    for scheme in [Scheme::Static, Scheme::Dynamic, Scheme::WeightOnly] {
        let plan = with(&model, &PlanOptions { scheme, ..options.clone() }).unwrap();
        let text = plan.to_text();
        let again = Plan::from_text(&text).unwrap();
        assert_eq!(again, plan);
        assert_eq!(again.to_text(), text);
    }
    model.set_opset("", 21);
    let blocked = PlanOptions {
        scheme: Scheme::WeightOnly,
        weight_type: IntType::U4,
        granularity: WeightGranularity::Blocked(NonZero::new(2).unwrap()),
        ..PlanOptions::default()
    };
    let plan = with(&model, &blocked).unwrap();
    assert_eq!(Plan::from_text(&plan.to_text()).unwrap(), plan);
}

#[test]
fn edited_plans_are_checked_line_by_line() {
    let text = planned(&conv_net(), CONV_RANGES).to_text();
    let edited = |from: &str, to: &str| {
        assert!(text.contains(from), "{from} in\n{text}");
        Plan::from_text(&text.replacen(from, to, 1)).unwrap_err().to_string()
    };
    assert_eq!(
        edited("\"zero_point\":0", "\"zero_point\":300"),
        "plan line 2: tensor `p`: zero_point 300 is outside 0..=255"
    );
    assert_eq!(
        edited("\"qmax\":255", "\"qmax\":256"),
        "plan line 2: tensor `p`: 0..=256 is not within 0..=255, the integers of u8"
    );
    assert!(edited("\"midtread_plan\":1", "\"midtread_plan\":2").contains("version 2"));
    assert!(edited("\"qmin\"", "\"minq\"").contains("unknown field `minq`"));
    assert!(edited("tensor:x", "tensor:q").contains("tensor `q` is used and has no line"));
    assert!(
        edited("\"why\":\"same as: r1\"", "\"why\":\"because\"")
            .contains("`because` is not a reason")
    );
    assert!(Plan::from_text("").is_err());
}

#[test]
fn eight_thousand_nodes_are_planned_in_linear_time() {
    let build = |n: usize| {
        let mut net = Net::new(&["v0"]).wave("w", &[4, 4], 1.0);
        for i in 0..n {
            let (x, c, r) = (format!("v{i}"), format!("c{i}"), format!("v{}", i + 1));
            net = net.node("MatMul", &[&x, "w"], &[&c]).node("Relu", &[&c], &[&r]);
        }
        net.outputs(&[&format!("v{n}")])
    };
    let time = |n: usize| {
        let model = build(n);
        let ranges: BTreeMap<String, (f32, f32)> =
            model.graph.values().iter().map(|v| (v.name().to_owned(), (0.0, 1.0))).collect();
        let start = std::time::Instant::now();
        let plan = plan_ranges(&model, Some(&ranges), &ort(), &PlanOptions::default()).unwrap();
        assert_eq!(plan.counts().absorbed, n);
        start.elapsed().as_secs_f64()
    };
    time(500);
    let (small, large) = (time(1000), time(4000));
    // Quadratic cost would be 16 times; half a second is what onnxruntime takes for fifty nodes.
    assert!(large < 0.5 || large < 8.0 * small, "{small} s for 2,000 nodes, {large} s for 8,000");
}
