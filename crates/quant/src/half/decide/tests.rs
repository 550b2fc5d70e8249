use midtread_graph::{AttrValue, Tensor};

use super::*;
use crate::{half::apply, testing::Net};

fn options(half: HalfType) -> HalfOptions {
    HalfOptions { half, keep_io_types: true, include: Vec::new(), exclude: Vec::new() }
}

fn planned(model: &Model, target: &str, half: HalfType) -> HalfPlan {
    plan(model, None, &Target::find(target).unwrap(), &options(half)).unwrap()
}

/// Each node's operator, with why it stays in float32 if it does.
fn decisions(plan: &HalfPlan) -> Vec<(String, Option<String>)> {
    let nodes = plan.graphs.iter().flat_map(|g| &g.nodes);
    nodes.map(|n| (n.op_type.clone(), n.decision.reason().map(str::to_owned))).collect()
}

fn casts(model: &Model) -> usize {
    model.graph.nodes.iter().filter(|n| n.is("Cast")).count()
}

fn half_ops(plan: &HalfPlan) -> Vec<&str> {
    let nodes = plan.graphs.iter().flat_map(|g| &g.nodes);
    nodes.filter(|n| n.decision == HalfDecision::Half).map(|n| n.op_type.as_str()).collect()
}

#[test]
fn a_row_of_products_has_one_cast_at_each_end() {
    let model = Net::new(&["x"])
        .wave("w", &[8, 8], 1.0)
        .wave("v", &[8, 8], 1.0)
        .node("MatMul", &["x", "w"], &["a"])
        .node("Relu", &["a"], &["b"])
        .node("MatMul", &["b", "v"], &["c"])
        .node("Relu", &["c"], &["y"])
        .outputs(&["y"]);
    let plan = planned(&model, "onnx", HalfType::Float16);
    assert_eq!(half_ops(&plan), ["MatMul", "Relu", "MatMul", "Relu"]);
    let after = apply(&model, &plan).unwrap();
    assert_eq!(casts(&after), 2);
    // The weights are there in 16 bits alone.
    assert!(after.graph.initializers.iter().all(|id| {
        after.graph.value(*id).constant.as_ref().unwrap().dtype() == DataType::Float16
    }));
    // Without --keep-io-types there is no cast at all, and the names stay.
    let free = HalfOptions { keep_io_types: false, ..options(HalfType::Float16) };
    let target = Target::find("onnx").unwrap();
    let after = apply(&model, &super::plan(&model, None, &target, &free).unwrap()).unwrap();
    assert_eq!(casts(&after), 0);
    for (id, name) in [(after.graph.inputs[0], "x"), (after.graph.outputs[0], "y")] {
        assert_eq!(after.graph.value_name(id), name);
        assert_eq!(after.graph.type_of(id).unwrap().elem(), Some(DataType::Float16));
    }
}

#[test]
fn a_value_with_users_of_both_types_is_cast_once() {
    let model = Net::new(&["x"])
        .wave("w", &[8, 8], 1.0)
        .floats("eps", &[], &[1e-12])
        .node("MatMul", &["x", "w"], &["a"])
        .node("Add", &["a", "eps"], &["p"])
        .node("Add", &["a", "eps"], &["q"])
        .node("Add", &["p", "q"], &["s"])
        .node("MatMul", &["s", "w"], &["y"])
        .outputs(&["y"]);
    let plan = planned(&model, "onnx", HalfType::Float16);
    let reasons = decisions(&plan);
    assert_eq!(
        reasons[1].1.as_deref(),
        Some("`eps` holds 1e-12, which would become 0e0 in float16")
    );
    // The sum of the two is a node among float32 ones and a product: it is worth what it costs either way.
    let after = apply(&model, &plan).unwrap();
    // x, a, the two sums, y.
    assert!(casts(&after) <= 5, "{:?}", after.graph.nodes);
    assert_eq!(
        after.graph.nodes.iter().filter(|n| n.is("Cast") && n.input(0) == n.output(0)).count(),
        0
    );
    // bfloat16 has room for the epsilon.
    let plan = planned(&model, "onnx", HalfType::Bfloat16);
    assert!(decisions(&plan).iter().all(|(_, reason)| reason.is_none()));
}

#[test]
fn what_divides_by_a_guarded_sum_stays_with_it() {
    let model = Net::new(&["x"])
        .wave("w", &[8, 8], 1.0)
        .floats("eps", &[], &[1e-12])
        .node("MatMul", &["x", "w"], &["a"])
        .node("Mul", &["a", "a"], &["sq"])
        .node("Add", &["sq", "eps"], &["guarded"])
        .node("Sqrt", &["guarded"], &["root"])
        .node("Div", &["a", "root"], &["n"])
        .node("MatMul", &["n", "w"], &["y"])
        .outputs(&["y"]);
    let plan = planned(&model, "onnx", HalfType::Float16);
    let float: Vec<String> =
        decisions(&plan).into_iter().filter(|d| d.1.is_some()).map(|d| d.0).collect();
    assert_eq!(float, ["Add", "Sqrt", "Div"]);
}

#[test]
fn a_mask_is_brought_into_range_and_another_large_constant_is_not() {
    let net = |last: &str| {
        Net::new(&["x", "mask"])
            .wave("w", &[8, 8], 1.0)
            .floats("low", &[], &[f32::MIN])
            .node("MatMul", &["x", "w"], &["a"])
            .node("Mul", &["mask", "low"], &["m"])
            .node("Add", &["a", "m"], &["scores"])
            .node(last, &["scores"], &["p"])
            .node("MatMul", &["p", "w"], &["y"])
            .outputs(&["y"])
    };
    let model = net("Softmax");
    let plan = planned(&model, "onnx", HalfType::Float16);
    assert!(decisions(&plan).iter().all(|d| d.1.is_none()), "{:?}", decisions(&plan));
    let low = plan.graphs[0].constants.iter().find(|c| c.constant == "low").unwrap();
    assert_eq!(low.storage, Storage::Mask);
    let after = apply(&model, &plan).unwrap();
    let low = after.graph.value(after.graph.find("low_float16").unwrap()).constant.clone().unwrap();
    assert_eq!(low.item::<half::f16>().unwrap().to_f32(), -32752.0);

    // Relu keeps what is large: the product, and what takes it, stay.
    let plan = planned(&net("Relu"), "onnx", HalfType::Float16);
    let float: Vec<String> =
        decisions(&plan).into_iter().filter(|d| d.1.is_some()).map(|d| d.0).collect();
    assert_eq!(float, ["Mul", "Add"]);
}

#[test]
fn a_target_without_kernels_keeps_the_computation_and_halves_the_weights() {
    let model = Net::new(&["x"])
        .wave("w", &[8, 8], 1.0)
        .wave("b", &[8], 1.0)
        .ints("perm", &[0, 1])
        .node("MatMul", &["x", "w"], &["a"])
        .node("Add", &["a", "b"], &["c"])
        .node("Transpose", &["c"], &["y"])
        .outputs(&["y"]);
    let plan = planned(&model, "onnxruntime_cpu", HalfType::Float16);
    let reasons = decisions(&plan);
    assert_eq!(reasons[0].1.as_deref(), Some("onnxruntime_cpu has no float16 kernel for it"));
    // Transpose could move halves, and would have to cast for it.
    assert!(reasons[2].1.as_deref().unwrap().contains("like its neighbors"), "{reasons:?}");
    let after = apply(&model, &plan).unwrap();
    // The one cast is the weight's; the bias is too small to be worth one.
    assert_eq!(casts(&after), 1);
    let stored =
        |name: &str| after.graph.find(name).map(|id| after.graph.value(id).constant.is_some());
    assert_eq!(
        (stored("w_float16"), stored("w"), stored("b")),
        (Some(true), Some(false), Some(true))
    );
}

#[test]
fn bfloat16_waits_for_the_operator_set_that_has_it() {
    let mut model = Net::new(&["x"])
        .wave("w", &[4, 4, 1, 1], 1.0)
        .node("Conv", &["x", "w"], &["y"])
        .outputs(&["y"]);
    let plan = planned(&model, "onnx", HalfType::Bfloat16);
    assert_eq!(
        decisions(&plan)[0].1.as_deref(),
        Some("its operator has bfloat16 from operator set 22 on")
    );
    model.set_opset("", 22);
    assert_eq!(half_ops(&planned(&model, "onnx", HalfType::Bfloat16)), ["Conv"]);
}

#[test]
fn types_in_attributes_follow() {
    let model = Net::new(&["x"])
        .ints("shape", &[2, 8])
        .wave("w", &[8, 8], 1.0)
        .node_with(
            "ConstantOfShape",
            &["shape"],
            &["ones"],
            &[("value", AttrValue::Tensor(Tensor::vector(&[1.0_f32])))],
        )
        .node("Add", &["x", "ones"], &["a"])
        .node("MatMul", &["a", "w"], &["y"])
        .outputs(&["y"]);
    let plan = planned(&model, "onnx", HalfType::Float16);
    assert_eq!(half_ops(&plan), ["ConstantOfShape", "Add", "MatMul"]);
    let after = apply(&model, &plan).unwrap();
    let made = after.graph.nodes.iter().find(|n| n.is("ConstantOfShape")).unwrap();
    let Some(AttrValue::Tensor(value)) = made.attr("value") else { panic!("it has a value") };
    assert_eq!(value.item::<half::f16>().unwrap().to_f32(), 1.0);
}

#[test]
fn plans_are_read_back_and_belong_to_their_model() {
    let net = |w: f32| {
        Net::new(&["x"])
            .wave("w", &[8, 8], w)
            .floats("eps", &[], &[1e-12])
            .node("MatMul", &["x", "w"], &["a"])
            .node("Add", &["a", "eps"], &["y"])
            .outputs(&["y"])
    };
    let plan = planned(&net(1.0), "onnx", HalfType::Float16);
    assert_eq!(HalfPlan::from_text(&plan.to_text()).unwrap(), plan);
    assert!(matches!(apply(&net(2.0), &plan), Err(Error::OtherModel { .. })));
    for (from, to, message) in [
        ("\"half\"", "\"quarter\"", "half, either, or float with a `reason`"),
        ("float16", "float12", "is not a 16-bit float"),
        ("{\"graph\":\"\"}\n", "", "a `graph` comes before its nodes"),
    ] {
        let text = plan.to_text().replacen(from, to, 1);
        let err = HalfPlan::from_text(&text).unwrap_err().to_string();
        assert!(err.contains(message), "{err}");
    }
}

#[test]
fn a_pattern_without_a_node_is_refused_and_one_with_a_node_keeps_it() {
    let model = Net::new(&["x"])
        .wave("w", &[8, 8], 1.0)
        .node("MatMul", &["x", "w"], &["y"])
        .outputs(&["y"]);
    let target = Target::find("onnx").unwrap();
    let with = |pattern: &str| HalfOptions {
        exclude: vec![pattern.parse().unwrap()],
        ..options(HalfType::Float16)
    };
    let plan = super::plan(&model, None, &target, &with("type:MatMul")).unwrap();
    assert_eq!(decisions(&plan)[0].1.as_deref(), Some("excluded by `type:MatMul`"));
    assert!(super::plan(&model, None, &target, &with("y_nod")).is_err());
}
