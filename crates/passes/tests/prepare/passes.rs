//! The passes that do not change a weight.

use std::collections::BTreeMap;

use crate::common::{Builder, changes, ints, only, op_types, prepared, skips};
use midtread_graph::{
    AttrValue, DataType, Dim, Graph, Model, Node, Tensor, Type, TypeKind, ValueId,
};
use midtread_passes::{Error, PASSES, PassSet, PrepareOptions, prepare, upgrade};

#[test]
fn names_of_passes_are_unique_and_sets_are_made_of_them() {
    let names: Vec<_> = PASSES.iter().map(|p| p.name).collect();
    for (i, name) in names.iter().enumerate() {
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
        assert!(!names[..i].contains(name), "{name}");
        assert!(PassSet::all().contains(name) && !PassSet::none().contains(name));
    }
    let err = PassSet::canonical().without("fold_everything").unwrap_err();
    assert!(matches!(err, Error::UnknownPass { .. }));
    assert!(
        err.to_string()
            .starts_with("there is no pass `fold_everything` (there are inline_functions, ")
    );
    assert!(!PassSet::canonical().without("fuse_mul").unwrap().contains("fuse_mul"));
}

#[test]
fn constants_in_nodes_become_initializers() {
    let mut b = Builder::default();
    let x = b.input("x", &["2"]);
    let tensor = Tensor::vector(&[1.0_f32, 2.0]).with_notes(midtread_graph::Notes {
        name: "const_tensor".to_owned(),
        ..Default::default()
    });
    let c = b.node_with("Constant", &[], "c", &[("value", AttrValue::Tensor(tensor))]);
    let f = b.node_with("Constant", &[], "f", &[("value_float", AttrValue::Float(3.0))]);
    let out = b.node_with("Constant", &[], "out", &[("value_ints", ints(&[4, 5]))]);
    let a = b.node("Add", &[x, c], "a");
    let y = b.node("Mul", &[a, f], "y");
    let (after, report) = prepared(&b.model(13, &[y, out]), &only(&["constants_to_initializers"]));
    assert_eq!(op_types(&after), ["Constant", "Add", "Mul"]);
    assert_eq!(
        changes(&report, "constants_to_initializers"),
        ["`c` is an initializer", "`f` is an initializer"]
    );
    assert_eq!(
        skips(&report, "constants_to_initializers"),
        ["`out` was left as it is: it is an output of the graph"]
    );
    let f = after.graph.find("f").unwrap();
    assert_eq!(after.graph.constant(f), Some(&Tensor::scalar(3.0_f32)));
    let c = after.graph.find("c").unwrap();
    assert!(after.graph.constant(c).unwrap().notes().is_none());
}

#[test]
fn identities_go_and_outputs_keep_their_names() {
    let mut b = Builder::default();
    let x = b.input("x", &["n", "3", "4", "4"]);
    let i1 = b.node("Identity", &[x], "i1");
    let d = b.node("Dropout", &[i1], "d");
    let c = b.node_with("Cast", &[d], "c", &[("to", AttrValue::Int(1))]);
    let t = b.node_with("Transpose", &[c], "t", &[("perm", ints(&[0, 1, 2, 3]))]);
    let pads = b.constant("pads", Tensor::vector(&[0_i64; 8]));
    let p = b.node("Pad", &[t, pads], "p");
    let one = b.floats("one", &[1, 1], &[1.0]);
    let m = b.node("Mul", &[p, one], "m");
    let q = b.node("Div", &[m, one], "q");
    let zero = b.floats("zero", &[], &[0.0]);
    let s = b.node("Sub", &[q, zero], "s");
    let k = b.node_with("Concat", &[s], "k", &[("axis", AttrValue::Int(1))]);
    let r = b.node("Relu", &[k], "r");
    let i2 = b.node("Identity", &[r], "i2");
    let y = b.node("Identity", &[i2], "y");
    let z = b.node("Neg", &[r], "z");
    let (after, report) = prepared(&b.model(13, &[y, z]), &PrepareOptions::default());
    assert_eq!(op_types(&after), ["Relu", "Neg"]);
    assert_eq!(changes(&report, "eliminate_identity").len(), 11);
    let relu = &after.graph.nodes[0];
    assert_eq!(after.graph.value_name(relu.input(0).unwrap()), "x");
    assert_eq!(after.graph.value_name(relu.output(0).unwrap()), "y");
}

#[test]
fn reshapes_to_the_same_sizes_go_once_the_sizes_are_known_to_be_equal() {
    let mut b = Builder::default();
    let x = b.input("x", &["n", "3", "4"]);
    let shape = b.constant("shape", Tensor::vector(&[0_i64, 3, -1]));
    let a = b.node("Relu", &[x], "a");
    let r = b.node("Reshape", &[a, shape], "r");
    let other = b.constant("other", Tensor::vector(&[0_i64, 4, 3]));
    let o = b.node("Reshape", &[r, other], "o");
    let y = b.node("Neg", &[o], "y");
    let (after, _) = prepared(&b.model(13, &[y]), &PrepareOptions::default());
    assert_eq!(op_types(&after), ["Relu", "Reshape", "Neg"]);
}

#[test]
fn what_is_not_quite_an_identity_stays() {
    // x + 0 turns -0.0 into 0.0; a constant of higher rank or with more elements changes the shape; an unknown
    // training mode may be training.
    let mut b = Builder::default();
    let x = b.input("x", &["1", "3"]);
    let mode = b.typed_input("mode", DataType::Float, &["1"]);
    let zero = b.floats("zero", &[], &[0.0]);
    let a = b.node("Add", &[x, zero], "a");
    let high = b.floats("high", &[1, 1, 1], &[1.0]);
    let m = b.node("Mul", &[a, high], "m");
    let wide = b.floats("wide", &[1, 2, 1], &[1.0, 1.0]);
    let w = b.node("Mul", &[m, wide], "w");
    let one = b.floats("one", &[1], &[1.0]);
    let v = b.node("Div", &[one, w], "v");
    let y = b.node("Add", &[v, mode], "y");
    let (after, _) = prepared(&b.model(13, &[y]), &only(&["infer_shapes", "eliminate_identity"]));
    assert_eq!(op_types(&after), ["Add", "Mul", "Mul", "Div", "Add"]);
}

#[test]
fn identities_between_names_that_are_both_needed_stay() {
    let mut b = Builder::default();
    let x = b.input("x", &["2"]);
    let c = b.floats("c", &[2], &[1.0, 2.0]);
    let r = b.node("Relu", &[x], "r");
    let y = b.node("Identity", &[r], "y");
    let from_input = b.node("Identity", &[x], "from_input");
    let from_constant = b.node("Identity", &[c], "from_constant");
    let twice = b.node("Identity", &[r], "twice");
    let model = b.model(13, &[r, y, from_input, from_constant, twice]);
    let (after, report) = prepared(&model, &PrepareOptions::default());
    assert_eq!(op_types(&after), ["Relu", "Identity", "Identity", "Identity", "Identity"]);
    assert_eq!(
        skips(&report, "eliminate_identity"),
        [
            "`y_node` was left as it is: its input is needed under its own name, too",
            "`from_input_node` was left as it is: it hands an input or a constant on to an output of the graph",
            "`from_constant_node` was left as it is: it hands an input or a constant on to an output of the graph",
            "`twice_node` was left as it is: its input is needed under its own name, too",
        ]
    );
}

#[test]
fn two_outputs_through_identities_of_one_value_keep_both_names() {
    let mut b = Builder::default();
    let x = b.input("x", &["2"]);
    let r = b.node("Relu", &[x], "r");
    let y = b.node("Identity", &[r], "y");
    let z = b.node("Identity", &[r], "z");
    let n = b.node("Neg", &[r], "n");
    let (after, _) = prepared(&b.model(13, &[y, z, n]), &PrepareOptions::default());
    assert_eq!(op_types(&after), ["Relu", "Identity", "Neg"]);
}

/// A node whose body uses `name` of the graph around it.
fn capturing(b: &mut Builder, name: &str) -> ValueId {
    let mut inner = Graph::default();
    let (captured, out) = (inner.intern(name), inner.intern("inner_out"));
    inner.nodes.push(Node::new("Identity", "", [captured], [out]));
    inner.outputs = vec![out];
    let body = AttrValue::Graph(Box::new(inner));
    let cond = b.typed_input("cond", DataType::Bool, &[]);
    b.node_with("If", &[cond], "w", &[("then_branch", body.clone()), ("else_branch", body)])
}

#[test]
fn values_that_subgraphs_take_by_name_stay() {
    let mut b = Builder::default();
    let x = b.input("x", &["2"]);
    let c = b.floats("c", &[2], &[1.0, 2.0]);
    let two = b.floats("two", &[1], &[2.0]);
    let product = b.node("Mul", &[c, two], "product");
    let copy = b.node("Identity", &[x], "copy");
    let y = b.node("Add", &[copy, product], "y");
    for captured in ["copy", "product"] {
        let mut b = Builder { graph: b.graph.clone(), ..Builder::default() };
        let w = capturing(&mut b, captured);
        let (after, report) = prepare(b.model(13, &[y, w]), &PrepareOptions::default()).unwrap();
        let id = after.graph.find(captured).unwrap();
        let is_made = after.graph.nodes.iter().any(|n| n.outputs.contains(&Some(id)));
        assert!(is_made || after.graph.constant(id).is_some(), "`{captured}` is still there");
        let expected = match captured {
            "copy" => vec!["`copy_node` was left as it is: a subgraph uses its output by name"],
            _ => vec![],
        };
        assert_eq!(skips(&report, "eliminate_identity"), expected);
    }
}

#[test]
fn constant_subgraphs_fold_in_one_walk() {
    let mut b = Builder::default();
    let x = b.input("x", &["2"]);
    let c = b.floats("c", &[2], &[1.0, -2.0]);
    let mut last = c;
    for i in 0..10 {
        last = b.node(if i % 2 == 0 { "Neg" } else { "Abs" }, &[last], &format!("f{i}"));
    }
    let y = b.node("Add", &[x, last], "y");
    let (after, report) = prepared(&b.model(13, &[y]), &PrepareOptions::default());
    assert_eq!(op_types(&after), ["Add"]);
    assert_eq!(changes(&report, "fold_constants").len(), 10);
    assert_eq!(report.n_rounds, 2);
    assert_eq!(after.graph.initializers.len(), 1);
}

#[test]
fn folding_does_not_make_the_file_larger() {
    let mut b = Builder::default();
    let x = b.input("x", &["1"]);
    // 4 MB out of 16 bytes; 8 KB out of nothing (allowed); a transposed weight instead of the weight.
    let shape = b.constant("shape", Tensor::vector(&[1000_i64, 1000]));
    let big = b.node("ConstantOfShape", &[shape], "big");
    let small_shape = b.constant("small_shape", Tensor::vector(&[2000_i64]));
    let small = b.node("ConstantOfShape", &[small_shape], "small");
    let w = b.weights("w", &[300, 100]);
    let wt = b.node_with("Transpose", &[w], "wt", &[("perm", ints(&[1, 0]))]);
    // The same, but the weight itself is used, too.
    let v = b.weights("v", &[300, 100]);
    let vt = b.node_with("Transpose", &[v], "vt", &[("perm", ints(&[1, 0]))]);
    let outputs: Vec<_> = [big, small, wt, vt, v]
        .into_iter()
        .enumerate()
        .map(|(i, id)| b.node("Add", &[id, x], &format!("y{i}")))
        .collect();
    let (after, report) = prepared(&b.model(13, &outputs), &PrepareOptions::default());
    assert_eq!(
        changes(&report, "fold_constants"),
        ["`small_node` is constant", "`wt_node` is constant"]
    );
    assert_eq!(
        skips(&report, "fold_constants"),
        [
            "`big_node` was left as it is: its 4000000 bytes are more than the 57560 by which constants may grow here",
            "`vt_node` was left as it is: its 120000 bytes are more than the 57544 by which constants may grow here",
        ]
    );
    assert!(
        after.graph.find("w").is_none_or(|w| after.graph.constant(w).is_none()),
        "the old weight is gone"
    );
}

#[test]
fn integers_that_stand_for_weights_and_outputs_are_not_folded() {
    let mut b = Builder::default();
    let x = b.input("x", &["2"]);
    let q = b.constant("q", Tensor::vector(&[1_i8, -2]));
    let scale = b.floats("scale", &[], &[0.5]);
    let w = b.node("DequantizeLinear", &[q, scale], "w");
    let c = b.floats("c", &[2], &[1.0, -2.0]);
    let out = b.node("Neg", &[c], "out");
    let y = b.node("Add", &[x, w], "y");
    let (after, _) = prepared(&b.model(13, &[y, out]), &PrepareOptions::default());
    assert_eq!(op_types(&after), ["DequantizeLinear", "Neg", "Add"]);
}

/// `Reshape(x, [Shape(x)[0], -1])`, the way exporters write `flatten(1)`.
fn flatten_by_shape() -> Model {
    let mut b = Builder::default();
    let x = b.input("x", &["batch", "3", "4"]);
    let shape = b.node("Shape", &[x], "shape");
    let zero = b.constant("zero", Tensor::scalar(0_i64));
    let n = b.node_with("Gather", &[shape, zero], "n", &[("axis", AttrValue::Int(0))]);
    let axes = b.constant("axes", Tensor::vector(&[0_i64]));
    let n1 = b.node("Unsqueeze", &[n, axes], "n1");
    let rest = b.constant("rest", Tensor::vector(&[-1_i64]));
    let target = b.node_with("Concat", &[n1, rest], "target", &[("axis", AttrValue::Int(0))]);
    let y = b.node("Reshape", &[x, target], "y");
    b.model(13, &[y])
}

#[test]
fn shapes_follow_the_names_of_sizes_through_the_graph() {
    let (after, report) = prepared(&flatten_by_shape(), &PrepareOptions::default());
    assert_eq!(op_types(&after), ["Shape", "Gather", "Unsqueeze", "Concat", "Reshape"]);
    let y = after.graph.value(after.graph.find("y").unwrap()).ty.clone().unwrap();
    assert_eq!(y.to_string(), "float[batch,12]");
    assert!(skips(&report, "infer_shapes").is_empty());
    // Everything made is listed, except what an output says already.
    let listed: Vec<_> =
        after.graph.value_info.iter().map(|&id| after.graph.value_name(id)).collect();
    assert_eq!(listed, ["shape", "n", "n1", "target"]);
}

#[test]
fn a_fixed_size_folds_the_shapes_that_hang_on_it() {
    for name in ["batch", "x:0"] {
        let options = PrepareOptions {
            dims: BTreeMap::from([(name.to_owned(), 1)]),
            ..PrepareOptions::default()
        };
        let (after, report) = prepared(&flatten_by_shape(), &options);
        assert_eq!(op_types(&after), ["Reshape"]);
        assert!(!changes(&report, "fold_shapes").is_empty());
        let y = after.graph.value(after.graph.outputs[0]).ty.clone().unwrap();
        assert_eq!(y.to_string(), "float[1,12]");
    }
    let fix = |name: &str, size| {
        let options = PrepareOptions {
            dims: BTreeMap::from([(name.to_owned(), size)]),
            ..PrepareOptions::default()
        };
        prepare(flatten_by_shape(), &options).unwrap_err().to_string()
    };
    assert_eq!(fix("bach", 1), "no input has a size `bach` (there are `batch`)");
    assert_eq!(fix("x:3", 1), "no input has a size `x:3` (there are `batch`)");
    assert_eq!(fix("x:1", 5), "size 1 of input `x` is 3, not 5");
}

#[test]
fn contradictions_with_the_file_are_told_and_the_rule_is_believed() {
    let mut b = Builder::default();
    let x = b.input("x", &["2", "3"]);
    let r = b.node("Relu", &[x], "r");
    let y = b.node("Neg", &[r], "y");
    b.graph.value_mut(r).ty =
        Some(Type::tensor(DataType::Float, Some(vec![Dim::Known(2), Dim::Known(4)])));
    b.graph.value_info.push(r);
    b.graph.value_mut(y).ty =
        Some(Type::tensor(DataType::Float, Some(vec![Dim::Symbol("rows".into()), Dim::Unknown])));
    let (after, report) = prepare(b.model(13, &[y]), &only(&["infer_shapes"])).unwrap();
    assert!(report.is_fixed_point);
    assert_eq!(
        changes(&report, "infer_shapes"),
        ["`r` has another type: the file said its size 1 is 4, but its node makes 3"]
    );
    assert_eq!(report.pass("infer_shapes").unwrap().n_types, 2);
    let ty = |name: &str| {
        after.graph.value(after.graph.find(name).unwrap()).ty.clone().unwrap().to_string()
    };
    assert_eq!((ty("r"), ty("y")), ("float[2,3]".to_owned(), "float[2,3]".to_owned()));
}

#[test]
fn unknown_operators_keep_what_the_file_says() {
    let mut b = Builder::default();
    let x = b.input("x", &["n", "3"]);
    let u = b.node("Frobnicate", &[x], "u");
    let y = b.node("Relu", &[u], "y");
    b.graph.value_mut(u).ty =
        Some(Type::tensor(DataType::Float, Some(vec![Dim::Symbol("n".into()), Dim::Known(7)])));
    b.graph.value_info.push(u);
    let (after, _) = prepare(b.model(13, &[y]), &PrepareOptions::default()).unwrap();
    let ty = after.graph.value(after.graph.outputs[0]).ty.clone().unwrap();
    assert_eq!(ty.to_string(), "float[n,7]");
}

#[test]
fn forms_that_are_not_known_are_told_and_neither_inferred_nor_folded() {
    let mut b = Builder::default();
    let x = b.input("x", &["n", "3"]);
    let odd = [("rounding", AttrValue::Int(1))];
    let u = b.node_with("Relu", &[x], "u", &odd);
    let c = b.floats("c", &[3], &[1.0, 2.0, 3.0]);
    let f = b.node_with("Neg", &[c], "f", &odd);
    let y = b.node("Add", &[u, f], "y");
    let (after, report) = prepare(b.model(13, &[y]), &PrepareOptions::default()).unwrap();
    assert_eq!(op_types(&after), ["Relu", "Neg", "Add"]);
    let why =
        |node: &str| format!("`{node}` was left as it is: attribute `rounding` is not supported");
    assert_eq!(skips(&report, "infer_shapes"), [why("u_node"), why("f_node")]);
    assert_eq!(skips(&report, "fold_constants"), [why("f_node")]);
    assert_eq!(after.graph.value(u).ty, None);
}

#[test]
fn values_that_are_no_tensors_keep_their_types() {
    let mut b = Builder::default();
    let x = b.input("x", &["n", "3"]);
    let s = b.node("SequenceConstruct", &[x], "s");
    let sequence = Type { kind: TypeKind::Sequence(None), denotation: String::new() };
    b.graph.value_mut(s).ty = Some(sequence.clone());
    let (after, _) = prepare(b.model(13, &[s]), &PrepareOptions::default()).unwrap();
    assert_eq!(after.graph.value(after.graph.outputs[0]).ty, Some(sequence));
}

#[test]
fn what_no_output_depends_on_goes() {
    let mut b = Builder::default();
    let x = b.input("x", &["2"]);
    let unused = b.input("unused", &["2"]);
    let c = b.floats("c", &[2], &[1.0, 2.0]);
    let dead = b.node("Add", &[unused, c], "dead");
    b.node("Neg", &[dead], "dead2");
    let y = b.node("Relu", &[x], "y");
    let (after, report) = prepared(&b.model(13, &[y]), &only(&["remove_unused"]));
    assert_eq!(op_types(&after), ["Relu"]);
    assert!(after.graph.initializers.is_empty());
    assert_eq!(
        changes(&report, "remove_unused"),
        [
            "`dead_node` is gone: no output depends on it",
            "`dead2_node` is gone: no output depends on it",
            "`c` is gone: no node uses it"
        ]
    );
}

#[test]
fn initializers_of_old_models_are_constants_and_of_new_ones_defaults() {
    for (ir_version, expected) in [(3, vec!["Relu", "Neg"]), (4, vec!["Relu", "Add", "Neg"])] {
        let mut b = Builder::default();
        let x = b.input("x", &["2"]);
        let c = b.floats("c", &[2], &[0.0, 0.0]);
        let r = b.node("Relu", &[x], "r");
        let a = b.node(if ir_version == 3 { "Sub" } else { "Add" }, &[r, c], "a");
        let y = b.node("Neg", &[a], "y");
        b.graph.inputs.push(c);
        let mut model = b.model(8, &[y]);
        model.ir_version = ir_version;
        let one = Tensor::scalar(0.0_f32);
        if ir_version == 3 {
            model.graph.set_constant(c, one);
        }
        let (after, _) = prepare(model, &PrepareOptions::default()).unwrap();
        assert_eq!(op_types(&after), expected);
        assert_eq!(after.graph.inputs.len(), expected.len() - 1);
        assert_eq!(after.ir_version, 4);
    }
}

#[test]
fn nodes_in_any_order_are_sorted_and_cycles_are_errors() {
    let mut model = flatten_by_shape();
    model.graph.nodes.reverse();
    let (after, _) = prepared(&model, &only(&[]));
    assert_eq!(op_types(&after), ["Shape", "Gather", "Unsqueeze", "Concat", "Reshape"]);
    let y = model.graph.find("target").unwrap();
    model.graph.nodes[4].inputs[0] = Some(y);
    let err = prepare(model, &PrepareOptions::default()).unwrap_err();
    assert_eq!(err.to_string(), "graph `g`");
}

/// Operators in their forms of operator set 9 whose forms have changed since.
fn old_model() -> Model {
    let mut b = Builder::default();
    let x = b.input("x", &["n", "3", "4", "2"]);
    let bounds = [("min", AttrValue::Float(-2.0)), ("max", AttrValue::Float(3.0))];
    let c = b.node_with("Clip", &[x], "c", &bounds);
    let s = b.node_with("Softmax", &[c], "s", &[("axis", AttrValue::Int(2))]);
    let pads = [("pads", ints(&[0, 0, 1, 0, 0, 0, 0, 1])), ("value", AttrValue::Float(7.0))];
    let p = b.node_with("Pad", &[s], "p", &pads);
    let slice = [("axes", ints(&[2, 3])), ("starts", ints(&[0, 1])), ("ends", ints(&[4, 100]))];
    let l = b.node_with("Slice", &[p], "l", &slice);
    let m = b.node_with(
        "ReduceMean",
        &[l],
        "m",
        &[("axes", ints(&[1])), ("keepdims", AttrValue::Int(1))],
    );
    let r = b.node_with(
        "ReduceSum",
        &[m],
        "r",
        &[("axes", ints(&[3])), ("keepdims", AttrValue::Int(0))],
    );
    let u = b.node_with("Unsqueeze", &[r], "u", &[("axes", ints(&[0]))]);
    let q = b.node_with("Squeeze", &[u], "q", &[("axes", ints(&[0]))]);
    let d = b.node_with("Dropout", &[q], "d", &[("ratio", AttrValue::Float(0.3))]);
    let (h, k) = (b.graph.intern("h"), b.graph.intern("k"));
    b.graph.nodes.push(
        Node::new("Split", "split", [d], [h, k])
            .with_attr("axis", AttrValue::Int(2))
            .with_attr("split", ints(&[3, 1])),
    );
    let (h1, h2, h3) = (b.graph.intern("h1"), b.graph.intern("h2"), b.graph.intern("h3"));
    b.graph
        .nodes
        .push(Node::new("Split", "split3", [h], [h1, h2, h3]).with_attr("axis", AttrValue::Int(2)));
    let log = b.node("LogSoftmax", &[h1], "log");
    b.model(9, &[log, h2, h3, k])
}

#[test]
fn operators_are_brought_to_every_newer_version() {
    for target in 10..=22 {
        let mut options = only(&["infer_shapes", "upgrade_opset"]);
        options.opset = Some(target);
        let (after, report) = prepared(&old_model(), &options);
        assert_eq!(after.opset(""), Some(target));
        assert!(skips(&report, "upgrade_opset").is_empty());
        let softmax = after.graph.nodes.iter().find(|n| n.is("Softmax")).unwrap();
        assert_eq!(softmax.int("axis"), Some(if target < 13 { 2 } else { -1 }));
        let squeeze = after.graph.nodes.iter().find(|n| n.is("Squeeze")).unwrap();
        assert_eq!(squeeze.inputs.len(), if target < 13 { 1 } else { 2 });
        assert_eq!(after.ir_version, midtread_passes::upgrade_opset::ir_version(target).max(8));
    }
}

#[test]
fn an_upgrade_that_cannot_be_done_changes_nothing_and_names_the_nodes() {
    let mut model = old_model();
    model.graph.nodes[1].op_type = "Frobnicate".to_owned();
    let spatial =
        Node::new("BatchNormalization", "bn", [], []).with_attr("spatial", AttrValue::Int(0));
    model.opset_imports[0].1 = 8;
    model.graph.nodes.push(spatial);
    let before = format!("{:?}", model.graph.nodes);
    let skips = upgrade(&mut model, 13).unwrap_err();
    let texts: Vec<_> = skips.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "`s_node` was left as it is: operator Frobnicate is not supported",
            "`p_node` was left as it is: the type of its input is not known",
            "`bn` was left as it is: it does not normalize per channel",
        ]
    );
    assert_eq!(format!("{:?}", model.graph.nodes), before);
    assert_eq!(model.opset(""), Some(8));
    assert!(upgrade(&mut model, 99).is_err());
    assert_eq!(upgrade(&mut model, 8), Ok(Vec::new()));
}

/// Convolutions with batch norms, shapes computed at run time, constants, identities: `n_blocks` times 7 nodes.
fn long_model(n_blocks: usize) -> Model {
    let mut b = Builder::default();
    let mut x = b.input("x", &["batch", "2", "4", "4"]);
    for i in 0..n_blocks {
        let w = b.floats(&format!("w{i}"), &[2, 2, 1, 1], &[0.5, 0.25, 0.25, 0.5]);
        let y = b.node("Conv", &[x, w], &format!("conv{i}"));
        let ones = b.floats(&format!("ones{i}"), &[2], &[1.0, 1.0]);
        let bn = b.node("BatchNormalization", &[y, ones, ones, ones, ones], &format!("bn{i}"));
        let id = b.node("Identity", &[bn], &format!("id{i}"));
        let shape = b.node("Shape", &[id], &format!("shape{i}"));
        let c = b.floats(&format!("c{i}"), &[1], &[2.0]);
        let f = b.node("Neg", &[c], &format!("f{i}"));
        let m = b.node("Mul", &[id, f], &format!("m{i}"));
        x = b.node("Reshape", &[m, shape], &format!("r{i}"));
    }
    b.model(13, &[x])
}

#[test]
fn cost_grows_with_the_graph_and_not_with_its_square() {
    let seconds = |n_nodes: usize| {
        let model = long_model(n_nodes / 7);
        assert_eq!(model.graph.nodes.len(), n_nodes);
        let times = (0..3).map(|_| {
            let model = model.clone();
            let start = std::time::Instant::now();
            let (after, report) = prepare(model, &PrepareOptions::default()).unwrap();
            let time = start.elapsed().as_secs_f64();
            assert!(report.is_fixed_point && report.n_rounds <= 4, "{} rounds", report.n_rounds);
            assert!(after.graph.nodes.len() <= n_nodes / 7 * 3);
            time
        });
        times.fold(f64::INFINITY, f64::min)
    };
    let (small, middle, large) = (seconds(504), seconds(2002), seconds(8008));
    // Four times the nodes: a cost with the square in it would come near 16 times the time.
    assert!(large < 9.0 * middle, "500 nodes {small} s, 2000 {middle} s, 8000 {large} s");
    assert!(middle < 1.0, "2000 nodes {middle} s");
}
