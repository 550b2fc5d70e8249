//! Operators written out as exporters write them (operator sets before the operator was one), and what the passes make of
//! them. ONNX Runtime computes the same of both.

use std::fs;

use midtread_graph::{AttrValue, Model, Tensor, ValueId};
use midtread_onnx::SaveOptions;
use midtread_passes::{PassSet, PrepareOptions, prepare};
use midtread_testkit::{npz, oracle};

use crate::common::{
    Builder, changes, inputs, ints, only, op_types, prepared, prepared_within, skips,
};

fn scalar(b: &mut Builder, value: f32) -> ValueId {
    b.graph.add_constant("c", Tensor::scalar(value))
}

fn name(b: &Builder, what: &str) -> String {
    format!("{what}{}", b.graph.values().len())
}

fn node(b: &mut Builder, op_type: &str, inputs: &[ValueId]) -> ValueId {
    let out = name(b, "v");
    b.node(op_type, inputs, &out)
}

fn with(b: &mut Builder, op_type: &str, x: ValueId, value: f32) -> ValueId {
    let c = scalar(b, value);
    node(b, op_type, &[x, c])
}

fn mean(b: &mut Builder, x: ValueId) -> ValueId {
    let axes = b.graph.add_constant("axes", Tensor::vector(&[-1_i64]));
    node(b, "ReduceMean", &[x, axes])
}

/// `0.5 x (1 + erf(x / sqrt 2))` in one of three orders.
fn gelu_erf(b: &mut Builder, x: ValueId, order: usize) -> ValueId {
    let inner = match order {
        2 => with(b, "Mul", x, std::f32::consts::FRAC_1_SQRT_2),
        _ => with(b, "Div", x, std::f32::consts::SQRT_2),
    };
    let erf = node(b, "Erf", &[inner]);
    let gate = with(b, "Add", erf, 1.0);
    match order {
        0 => {
            let y = node(b, "Mul", &[x, gate]);
            with(b, "Mul", y, 0.5)
        }
        1 => {
            let half = with(b, "Mul", x, 0.5);
            node(b, "Mul", &[half, gate])
        }
        _ => {
            let half = with(b, "Mul", gate, 0.5);
            node(b, "Mul", &[half, x])
        }
    }
}

/// `0.5 x (1 + tanh(..))`: with a power, with products, and with the `x` outside of the sum.
fn gelu_tanh(b: &mut Builder, x: ValueId, form: usize) -> ValueId {
    let root = (2.0 / std::f32::consts::PI).sqrt();
    let inner = match form {
        0 => {
            let cube = with(b, "Pow", x, 3.0);
            let cube = with(b, "Mul", cube, 0.044715);
            let sum = node(b, "Add", &[x, cube]);
            with(b, "Mul", sum, root)
        }
        1 => {
            let square = node(b, "Mul", &[x, x]);
            let cube = node(b, "Mul", &[square, x]);
            let cube = with(b, "Mul", cube, 0.044715);
            let sum = node(b, "Add", &[cube, x]);
            with(b, "Mul", sum, root)
        }
        _ => {
            let scaled = with(b, "Mul", x, 0.044715);
            let square = node(b, "Mul", &[scaled, x]);
            let sum = with(b, "Add", square, 1.0);
            let root = with(b, "Mul", x, root);
            node(b, "Mul", &[root, sum])
        }
    };
    let tanh = node(b, "Tanh", &[inner]);
    let gate = with(b, "Add", tanh, 1.0);
    let half = with(b, "Mul", x, 0.5);
    node(b, "Mul", &[half, gate])
}

/// A layer normalization over the last axis of `n`.
fn layer_norm(b: &mut Builder, x: ValueId, n: usize, power: bool, affine: bool) -> ValueId {
    let average = mean(b, x);
    let d = node(b, "Sub", &[x, average]);
    let square = if power { with(b, "Pow", d, 2.0) } else { node(b, "Mul", &[d, d]) };
    let variance = mean(b, square);
    let shifted = with(b, "Add", variance, 1e-5);
    let root = node(b, "Sqrt", &[shifted]);
    let y = node(b, "Div", &[d, root]);
    if !affine {
        return y;
    }
    let (gamma, beta) = (name(b, "gamma"), name(b, "beta"));
    let (gamma, beta) = (b.weights(&gamma, &[n]), b.weights(&beta, &[n]));
    let y = node(b, "Mul", &[gamma, y]);
    node(b, "Add", &[y, beta])
}

fn rms_norm(b: &mut Builder, x: ValueId, n: usize, reciprocal: bool) -> ValueId {
    let square = with(b, "Pow", x, 2.0);
    let square = mean(b, square);
    let shifted = with(b, "Add", square, 1e-6);
    let root = node(b, "Sqrt", &[shifted]);
    let y = if reciprocal {
        let inverse = node(b, "Reciprocal", &[root]);
        node(b, "Mul", &[x, inverse])
    } else {
        node(b, "Div", &[x, root])
    };
    let gamma = name(b, "gamma");
    let gamma = b.weights(&gamma, &[n]);
    node(b, "Mul", &[gamma, y])
}

fn clip_swish(b: &mut Builder, x: ValueId, divided_first: bool) -> ValueId {
    let shifted = with(b, "Add", x, 3.0);
    let (low, high) = (scalar(b, 0.0), scalar(b, 6.0));
    let clipped = node(b, "Clip", &[shifted, low, high]);
    if divided_first {
        let gate = with(b, "Div", clipped, 6.0);
        node(b, "Mul", &[x, gate])
    } else {
        let y = node(b, "Mul", &[x, clipped]);
        with(b, "Div", y, 6.0)
    }
}

/// `q`, `k`, `v` of sizes (1, 2, 3, 4), `k` perhaps from (1, 3, 2, 4).
fn attention(b: &mut Builder, tag: &str, masked: bool, from_projection: bool) -> ValueId {
    let sizes = ["1", "2", "3", "4"];
    let q = b.input(&format!("{tag}_q"), &sizes);
    let v = b.input(&format!("{tag}_v"), &sizes);
    let (k, perm) = match from_projection {
        true => (b.input(&format!("{tag}_k"), &["1", "3", "2", "4"]), [0, 2, 3, 1]),
        false => (b.input(&format!("{tag}_k"), &sizes), [0, 1, 3, 2]),
    };
    let kt = name(b, "kt");
    let kt = b.node_with("Transpose", &[k], &kt, &[("perm", ints(&perm))]);
    let scores = node(b, "MatMul", &[q, kt]);
    let mut scores = with(b, "Div", scores, 2.0);
    if masked {
        let mask = b.input(&format!("{tag}_mask"), &["1", "1", "3", "3"]);
        scores = node(b, "Add", &[scores, mask]);
    }
    let p = name(b, "p");
    let p = b.node_with("Softmax", &[scores], &p, &[("axis", AttrValue::Int(-1))]);
    node(b, "MatMul", &[p, v])
}

/// ONNX Runtime's outputs, without its optimizer.
fn reference(model: &Model, given: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    let folder = tempfile::tempdir().unwrap();
    let [path, ins, outs] = ["m.onnx", "in.npz", "out.npz"].map(|file| folder.path().join(file));
    midtread_onnx::save(model, &path, &SaveOptions::default()).unwrap();
    npz::write(&ins, given);
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    oracle(&[
        "run",
        &text(&path),
        "--inputs",
        &text(&ins),
        "--outputs",
        &text(&outs),
        "--no-optimize",
    ]);
    assert!(fs::metadata(&outs).is_ok());
    npz::read(&outs)
}

/// ONNX Runtime computes the same of both, within some roundings of the largest element.
fn same_in_onnxruntime(before: &Model, after: &Model) {
    let given = inputs(before, 2);
    let (a, b) = (reference(before, &given), reference(after, &given));
    assert_eq!(a.len(), b.len());
    for ((name, a), (_, b)) in a.iter().zip(&b) {
        let (a, b): (Vec<f32>, Vec<f32>) = (a.to_vec().unwrap(), b.to_vec().unwrap());
        let largest = a.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let worst = a.iter().zip(&b).fold(0.0_f32, |m, (x, y)| m.max((x - y).abs()));
        // Eight units in the last place of the largest: a handful of operators, each rounded once.
        assert!(a.len() == b.len() && worst <= 1e-6 * largest, "`{name}`: {worst} of {largest}");
    }
}

fn all_but(without: &str) -> PrepareOptions {
    PrepareOptions { passes: PassSet::all().without(without).unwrap(), ..PrepareOptions::default() }
}

#[test]
fn what_exporters_write_out_becomes_the_operator_it_is() {
    let mut b = Builder::default();
    let x = b.input("x", &["n", "3", "8"]);
    let mut outputs = Vec::new();
    let mut expected = Vec::new();
    for order in 0..3 {
        outputs.push(gelu_erf(&mut b, x, order));
        outputs.push(gelu_tanh(&mut b, x, order));
        expected.extend(["Gelu", "Gelu"]);
    }
    for (power, affine) in [(true, true), (false, true), (true, false)] {
        outputs.push(layer_norm(&mut b, x, 8, power, affine));
        expected.push("LayerNormalization");
    }
    for reciprocal in [false, true] {
        outputs.push(rms_norm(&mut b, x, 8, reciprocal));
        expected.push("RMSNormalization");
    }
    for divided_first in [false, true] {
        outputs.push(clip_swish(&mut b, x, divided_first));
        expected.push("HardSwish");
    }
    let (alpha, gate) = (AttrValue::Float(1.0 / 6.0), name(&b, "gate"));
    let gate = b.node_with("HardSigmoid", &[x], &gate, &[("alpha", alpha)]);
    outputs.push(node(&mut b, "Mul", &[gate, x]));
    expected.push("HardSwish");
    for alpha in [1.0, 1.702] {
        let inner = if alpha == 1.0 { x } else { with(&mut b, "Mul", x, alpha) };
        let gate = node(&mut b, "Sigmoid", &[inner]);
        outputs.push(node(&mut b, "Mul", &[x, gate]));
        expected.push("Swish");
    }
    for (tag, masked, from_projection) in [("a", false, false), ("b", true, true)] {
        outputs.push(attention(&mut b, tag, masked, from_projection));
        expected.push("Attention");
    }
    let model = b.model(24, &outputs);
    // Sharing would find the squares that several of them compute.
    let options = all_but("share_nodes");
    let (after, _) = prepare(model.clone(), &options).unwrap();
    let mut ops = op_types(&after);
    ops.retain(|op| *op != "Transpose");
    assert_eq!(ops, expected);
    same_in_onnxruntime(&model, &after);
    prepared_within(&model, &options, 1e-6);
}

#[test]
fn what_only_looks_like_it_stays() {
    type Build = fn(&mut Builder, ValueId) -> ValueId;
    let almost: &[(&str, Build)] = &[
        ("another factor", |b, x| {
            let y = gelu_erf(b, x, 0);
            with(b, "Mul", y, 3.0)
        }),
        ("1.5 instead of 1", |b, x| {
            let inner = with(b, "Div", x, std::f32::consts::SQRT_2);
            let erf = node(b, "Erf", &[inner]);
            let gate = with(b, "Add", erf, 1.5);
            let half = with(b, "Mul", x, 0.5);
            node(b, "Mul", &[half, gate])
        }),
        ("another x outside", |b, x| {
            let inner = with(b, "Div", x, std::f32::consts::SQRT_2);
            let erf = node(b, "Erf", &[inner]);
            let gate = with(b, "Add", erf, 1.0);
            let other = node(b, "Neg", &[x]);
            let half = with(b, "Mul", other, 0.5);
            node(b, "Mul", &[half, gate])
        }),
        ("5.9 instead of 6", |b, x| {
            let shifted = with(b, "Add", x, 3.0);
            let (low, high) = (scalar(b, 0.0), scalar(b, 5.9));
            let clipped = node(b, "Clip", &[shifted, low, high]);
            let y = node(b, "Mul", &[x, clipped]);
            with(b, "Div", y, 6.0)
        }),
        ("the mean over another axis", |b, x| {
            let axes = b.graph.add_constant("axes", Tensor::vector(&[1_i64]));
            let average = node(b, "ReduceMean", &[x, axes]);
            let d = node(b, "Sub", &[x, average]);
            let square = with(b, "Pow", d, 2.0);
            let variance = mean(b, square);
            let shifted = with(b, "Add", variance, 1e-5);
            let root = node(b, "Sqrt", &[shifted]);
            node(b, "Div", &[d, root])
        }),
    ];
    for (what, build) in almost {
        let mut b = Builder::default();
        let x = b.input("x", &["n", "3", "8"]);
        let y = build(&mut b, x);
        let (after, _) = prepared_within(&b.model(24, &[y]), &all_but("fuse_attention"), 1e-6);
        let fused = ["Gelu", "LayerNormalization", "HardSwish"];
        let has = op_types(&after).iter().any(|op| fused.contains(op));
        // A product around a Gelu leaves the Gelu alone only as a whole: 1.5 x (..) is none.
        assert!(!has, "{what}: {:?}", op_types(&after));
    }
}

#[test]
fn a_pattern_whose_middle_is_needed_elsewhere_stays_and_says_so() {
    let mut b = Builder::default();
    let x = b.input("x", &["n", "3", "8"]);
    let y = layer_norm(&mut b, x, 8, true, true);
    let root = b.graph.nodes.iter().find(|n| n.is("Sqrt")).unwrap().output(0).unwrap();
    let root_name = b.graph.value_name(root).to_owned();
    let (after, report) =
        prepared(&b.model(18, &[y, root]), &only(&["infer_shapes", "fuse_layer_norm"]));
    assert!(op_types(&after).contains(&"Sqrt"));
    let said = skips(&report, "fuse_layer_norm");
    assert!(said[0].contains(&format!("but `{root_name}` has another use")), "{said:?}");

    // And before the operator existed.
    let mut b = Builder::default();
    let x = b.input("x", &["n", "3", "8"]);
    let y = gelu_erf(&mut b, x, 0);
    let (after, _) = prepared(&b.model(19, &[y]), &all_but("fuse_attention"));
    assert!(op_types(&after).contains(&"Erf"));
}

#[test]
fn a_sum_and_a_normalization_become_onnxruntimes_operator_on_request() {
    let mut b = Builder::default();
    let (x, skip) = (b.input("x", &["n", "3", "8"]), b.input("skip", &["n", "3", "8"]));
    let sum = node(&mut b, "Add", &[x, skip]);
    let (gamma, beta) = (b.weights("gamma", &[8]), b.weights("beta", &[8]));
    let y = node(&mut b, "LayerNormalization", &[sum, gamma, beta]);
    let z = node(&mut b, "Relu", &[sum]);
    let model = b.model(17, &[y, z]);
    let passes = ["infer_shapes", "fuse_skip_layer_norm"];
    let (after, _) = prepare(model.clone(), &only(&passes)).unwrap();
    assert_eq!(op_types(&after), ["SkipLayerNormalization", "Relu"]);
    assert_eq!(after.opset("com.microsoft"), Some(1));
    same_in_onnxruntime(&model, &after);
    let (default, _) = prepare(model, &PrepareOptions::default()).unwrap();
    assert!(op_types(&default).contains(&"LayerNormalization"), "it must run anywhere");
}

#[test]
fn transpositions_reshapes_and_casts_in_a_row_become_one_or_none() {
    let mut b = Builder::default();
    let x = b.input("x", &["2", "3", "4"]);
    let first = b.node_with("Transpose", &[x], "first", &[("perm", ints(&[0, 2, 1]))]);
    let second = b.node_with("Transpose", &[first], "second", &[("perm", ints(&[1, 2, 0]))]);
    let back = b.node_with("Transpose", &[first], "back", &[("perm", ints(&[0, 2, 1]))]);
    let relu = b.node("Relu", &[back], "relu");
    let shape = b.constant("shape", Tensor::vector(&[6_i64, -1]));
    let flat = b.node_with("Flatten", &[x], "flat", &[("axis", AttrValue::Int(2))]);
    let reshaped = b.node("Reshape", &[flat, shape], "reshaped");
    let copy = b.constant("copy", Tensor::vector(&[0_i64, 2, 2]));
    let kept = b.node("Reshape", &[flat, copy], "kept");
    let cast = |b: &mut Builder, x, out: &str, to: i64| {
        b.node_with("Cast", &[x], out, &[("to", AttrValue::Int(to))])
    };
    let double = cast(&mut b, x, "double", 11);
    let float = cast(&mut b, double, "float", 1);
    let sum = b.node("Add", &[float, relu], "sum");
    let half = cast(&mut b, x, "half", 10);
    let rounded = cast(&mut b, half, "rounded", 1);
    let model = b.model(17, &[second, sum, reshaped, kept, rounded]);
    let (after, report) = prepared(&model, &all_but("fuse_attention"));
    let mut ops = op_types(&after);
    ops.sort_unstable();
    // What rounds stays, and so does what a 0 in the shape copies from.
    assert_eq!(ops, ["Add", "Cast", "Cast", "Flatten", "Relu", "Reshape", "Reshape", "Transpose"]);
    assert_eq!(changes(&report, "merge_casts"), ["`float_node` takes the input of `double_node`"]);
    let transpose = after.graph.nodes.iter().find(|n| n.is("Transpose")).unwrap();
    assert_eq!(transpose.ints("perm"), Some(&[2, 1, 0][..]));
    same_in_onnxruntime(&model, &after);
}

#[test]
fn what_is_there_twice_is_there_once() {
    let mut b = Builder::default();
    let x = b.input("x", &["2", "4"]);
    let (w1, w2) = (b.weights("w1", &[4, 4]), b.graph.intern("w2"));
    let copy = b.graph.constant(w1).unwrap().clone();
    b.graph.set_constant(w2, copy);
    let y1 = b.node("MatMul", &[x, w1], "y1");
    let y2 = b.node("MatMul", &[x, w2], "y2");
    let s1 = b.node_with("Softmax", &[y1], "s1", &[("axis", AttrValue::Int(0))]);
    let s2 = b.node_with("Softmax", &[y2], "s2", &[("axis", AttrValue::Int(1))]);
    let sum = b.node("Add", &[s1, s2], "sum");
    let named = b.node("MatMul", &[x, w2], "named");
    let model = b.model(17, &[sum, named]);
    let passes = ["infer_shapes", "share_constants", "share_nodes", "remove_unused"];
    let (after, report) = prepared(&model, &only(&passes));
    assert_eq!(op_types(&after), ["MatMul", "Softmax", "Softmax", "Add", "MatMul"]);
    assert_eq!(after.graph.initializers.len(), 1);
    assert_eq!(changes(&report, "share_constants"), ["`w2` is `w1`"]);
    assert_eq!(changes(&report, "share_nodes"), ["`y2_node` is `y1_node`"]);
    assert!(skips(&report, "share_nodes")[0].contains("it makes an output of the graph"));
}

#[test]
fn random_numbers_are_not_shared() {
    let mut b = Builder::default();
    let x = b.input("x", &["2", "4"]);
    let (r1, r2) = (b.node("RandomNormalLike", &[x], "r1"), b.node("RandomNormalLike", &[x], "r2"));
    let y = b.node("Add", &[r1, r2], "y");
    let (after, _) = prepare(b.model(17, &[y]), &all_but("fuse_attention")).unwrap();
    assert_eq!(op_types(&after), ["RandomNormalLike", "RandomNormalLike", "Add"]);
}

#[test]
fn padding_goes_into_the_convolution_if_it_is_with_zeros_and_around_the_picture() {
    let pad = |pads: &[i64], value: Option<f32>, mode: &str, auto_pad: &str| {
        let mut b = Builder::default();
        let x = b.input("x", &["1", "2", "5", "5"]);
        let mut pad_inputs = vec![x, b.constant("pads", Tensor::vector(pads))];
        pad_inputs.extend(value.map(|value| b.constant("value", Tensor::scalar(value))));
        let mode = AttrValue::String(mode.as_bytes().to_vec().into());
        let padded = b.node_with("Pad", &pad_inputs, "padded", &[("mode", mode)]);
        let w = b.weights("w", &[3, pad_channels(pads), 3, 3]);
        let attrs = match auto_pad {
            "" => ("pads", ints(&[1, 0, 0, 2])),
            mode => ("auto_pad", AttrValue::String(mode.as_bytes().to_vec().into())),
        };
        let y = b.node_with("Conv", &[padded, w], "y", &[attrs]);
        let model = b.model(17, &[y]);
        let (after, report) =
            prepared(&model, &only(&["infer_shapes", "fuse_pad", "remove_unused"]));
        let conv = after.graph.nodes.last().unwrap().ints("pads").map(<[i64]>::to_vec);
        (op_types(&after).len(), conv, skips(&report, "fuse_pad"))
    };
    let around = [0, 0, 1, 2, 0, 0, 3, 4];
    assert_eq!(pad(&around, None, "constant", "").1.unwrap(), [2, 2, 3, 6]);
    assert_eq!(pad(&around, Some(0.0), "constant", "VALID").1.unwrap(), [1, 2, 3, 4]);
    for (pads, value, mode, auto_pad, said) in [
        (around, Some(1.0), "constant", "", "it does not pad with zeros"),
        ([0, 0, 1, 2, 0, 0, 3, 4], None, "reflect", "", "it does not pad with a constant"),
        (around, None, "constant", "SAME_UPPER", "pads by itself"),
        ([0, 1, 1, 1, 0, 0, 1, 1], None, "constant", "", "it does more than to add around"),
        ([0, 0, -1, 0, 0, 0, 1, 1], None, "constant", "", "it does more than to add around"),
    ] {
        let (n_nodes, _, skips) = pad(&pads, value, mode, auto_pad);
        assert!(n_nodes == 2 && skips[0].contains(said), "{skips:?}");
    }
}

fn pad_channels(pads: &[i64]) -> usize {
    usize::try_from(2 + pads[1] + pads[5]).unwrap()
}

#[test]
fn outputs_that_nobody_uses_are_left_out() {
    let mut b = Builder::default();
    let x = b.input("x", &["1", "2", "6", "6"]);
    let y = b.node_with("MaxPool", &[x], "y", &[("kernel_shape", ints(&[2, 2]))]);
    let indices = b.graph.intern("indices");
    b.graph.nodes[0].outputs.push(Some(indices));
    let (after, report) = prepared(&b.model(17, &[y]), &only(&["remove_unused"]));
    assert_eq!(after.graph.nodes[0].outputs.len(), 1);
    assert_eq!(changes(&report, "remove_unused"), ["`y_node` leaves out what nobody uses"]);
}
