//! Batch norms and arithmetic that go into weights. Values are small integers and factors powers of two, so that both
//! ways of computing are exact and must agree to the bit; one test has values that round.

use std::{fs, path::Path};

use crate::common::{
    Builder, changes, inputs, ints, only, op_types, prepared, prepared_within, skips, values_of,
};
use midtread_graph::{AttrValue, DataType, Graph, Model, Node, Tensor, Type, ValueId};
use midtread_onnx::SaveOptions;
use midtread_passes::prepare;
use midtread_testkit::{npz, oracle};

const FUSE: &[&str] = &["infer_shapes", "fuse_batch_norm", "fuse_mul", "fuse_add", "remove_unused"];

/// Batch norm with factors that are powers of two: `gamma / sqrt(var)` is 2/1, 1/2, 3/1 (an exact integer), -1/4.
fn batch_norm(b: &mut Builder, x: ValueId, out: &str, n: usize) -> ValueId {
    let cycle = |values: [f32; 4]| -> Vec<f32> { (0..n).map(|c| values[c % 4]).collect() };
    let gamma = b.floats(&format!("{out}_gamma"), &[n], &cycle([2.0, 1.0, 3.0, -1.0]));
    let beta = b.floats(&format!("{out}_beta"), &[n], &cycle([0.5, 0.0, -1.0, 2.0]));
    let mean = b.floats(&format!("{out}_mean"), &[n], &cycle([1.0, -1.0, 0.0, 3.0]));
    let var = b.floats(&format!("{out}_var"), &[n], &cycle([1.0, 4.0, 1.0, 16.0]));
    b.node_with(
        "BatchNormalization",
        &[x, gamma, beta, mean, var],
        out,
        &[("epsilon", AttrValue::Float(0.0))],
    )
}

fn conv(b: &mut Builder, x: ValueId, out: &str, dims: &[usize], group: i64) -> ValueId {
    let w = b.weights(&format!("{out}_w"), dims);
    b.node_with(
        "Conv",
        &[x, w],
        out,
        &[("group", AttrValue::Int(group)), ("pads", ints(&[1, 1, 1, 1]))],
    )
}

#[test]
fn batch_norm_goes_into_a_convolution_with_and_without_a_bias() {
    for has_bias in [false, true] {
        let mut b = Builder::default();
        let x = b.input("x", &["n", "2", "5", "5"]);
        let w = b.floats("w", &[2, 2, 1, 1], &[1.0, 2.0, 3.0, 4.0]);
        let mut conv_inputs = vec![x, w];
        if has_bias {
            conv_inputs.push(b.floats("bias", &[2], &[4.0, -2.0]));
        }
        let y = b.node("Conv", &conv_inputs, "y");
        let z = batch_norm(&mut b, y, "z", 2);
        let (after, report) = prepared(&b.model(13, &[z]), &only(FUSE));
        assert_eq!(op_types(&after), ["Conv"]);
        assert_eq!(changes(&report, "fuse_batch_norm"), ["`y_node` took in `z_node`"]);
        // k = 2, 1/2; b' = k * (b - mean) + beta.
        assert_eq!(values_of(&after, "z_weight"), [2.0, 4.0, 1.5, 2.0]);
        assert_eq!(values_of(&after, "z_bias"), if has_bias { [6.5, -0.5] } else { [-1.5, 0.5] });
        assert_eq!(after.graph.initializers.len(), 2, "the old constants are gone");
    }
}

#[test]
fn batch_norm_goes_into_grouped_transposed_and_one_dimensional_convolutions() {
    for (op_type, in_channels, dims, group, n) in [
        ("Conv", "4", vec![4, 1, 3, 3], 4, 4),
        ("Conv", "4", vec![6, 2, 3, 3], 2, 6),
        ("ConvTranspose", "4", vec![4, 3, 3, 3], 1, 3),
        ("ConvTranspose", "4", vec![4, 3, 2, 2], 2, 6),
    ] {
        let mut b = Builder::default();
        let x = b.input("x", &["n", in_channels, "6", "6"]);
        let w = b.weights("w", &dims);
        let y = b.node_with(op_type, &[x, w], "y", &[("group", AttrValue::Int(group))]);
        let z = batch_norm(&mut b, y, "z", n);
        let (after, _) = prepared(&b.model(13, &[z]), &only(FUSE));
        assert_eq!(op_types(&after), [op_type], "{dims:?}");
    }
    let mut b = Builder::default();
    let x = b.input("x", &["n", "2", "9"]);
    let w = b.weights("w", &[4, 2, 3]);
    let y = b.node("Conv", &[x, w], "y");
    let z = batch_norm(&mut b, y, "z", 4);
    let (after, _) = prepared(&b.model(13, &[z]), &only(FUSE));
    assert_eq!(op_types(&after), ["Conv"]);
}

#[test]
fn batch_norm_goes_into_gemm_with_its_alpha_and_beta() {
    for trans_b in [0, 1] {
        for bias_dims in [None, Some(vec![4]), Some(vec![1, 4]), Some(vec![]), Some(vec![1])] {
            let mut b = Builder::default();
            let x = b.input("x", &["n", "3"]);
            let w = b.weights("w", if trans_b == 1 { &[4, 3] } else { &[3, 4] });
            let mut gemm_inputs = vec![x, w];
            if let Some(dims) = &bias_dims {
                gemm_inputs.push(b.weights("bias", dims));
            }
            let attrs = [
                ("transB", AttrValue::Int(trans_b)),
                ("alpha", AttrValue::Float(0.5)),
                ("beta", AttrValue::Float(4.0)),
            ];
            let y = b.node_with("Gemm", &gemm_inputs, "y", &attrs);
            let z = batch_norm(&mut b, y, "z", 4);
            let (after, _) = prepared(&b.model(13, &[z]), &only(FUSE));
            assert_eq!(op_types(&after), ["Gemm"], "{trans_b} {bias_dims:?}");
            assert_eq!(after.graph.nodes[0].float("alpha"), Some(0.5));
        }
    }
}

#[test]
fn convolutions_that_share_weights_stay_apart() {
    let mut b = Builder::default();
    let x = b.input("x", &["n", "2", "4", "4"]);
    let w = b.weights("w", &[4, 2, 3, 3]);
    let y1 = b.node("Conv", &[x, w], "y1");
    let y2 = b.node("Conv", &[x, w], "y2");
    let y3 = b.node("Conv", &[x, w], "y3");
    let z1 = batch_norm(&mut b, y1, "z1", 4);
    let two = b.floats("two", &[1], &[2.0]);
    let z2 = b.node("Mul", &[y2, two], "z2");
    let (after, _) = prepared(&b.model(13, &[z1, z2, y3]), &only(FUSE));
    assert_eq!(op_types(&after), ["Conv", "Conv", "Conv"]);
    assert_eq!(after.graph.initializers.len(), 4);
}

#[test]
fn a_whole_chain_is_taken_in_at_once() {
    let mut b = Builder::default();
    let x = b.input("x", &["n", "2", "4", "4"]);
    let y = conv(&mut b, x, "y", &[4, 2, 3, 3], 1);
    let n1 = batch_norm(&mut b, y, "n1", 4);
    let two = b.floats("two", &[1, 4, 1, 1], &[2.0, 4.0, 0.5, -2.0]);
    let m = b.node("Mul", &[two, n1], "m");
    let half = b.floats("half", &[], &[0.5]);
    let d = b.node("Div", &[m, half], "d");
    let one = b.floats("one", &[4, 1, 1], &[1.0, 2.0, 3.0, 4.0]);
    let a = b.node("Add", &[one, d], "a");
    let s = b.node("Sub", &[a, half], "s");
    let n2 = batch_norm(&mut b, s, "n2", 4);
    let out = b.node("Relu", &[n2], "out");
    let (after, report) = prepared(&b.model(13, &[out]), &only(FUSE));
    assert_eq!(op_types(&after), ["Conv", "Relu"]);
    // The second batch norm waits for the addition before it; the last round finds nothing.
    assert_eq!(report.n_rounds, 3);
    assert_eq!(changes(&report, "fuse_batch_norm").len(), 2);
    let conv = &after.graph.nodes[0];
    assert_eq!(after.graph.value_name(conv.output(0).unwrap()), "n2");
    assert_eq!(after.graph.value_name(conv.input(1).unwrap()), "n2_weight");
}

#[test]
fn values_that_round_agree_to_a_few_units_in_the_last_place() {
    let mut b = Builder::default();
    let x = b.input("x", &["n", "8", "7", "7"]);
    let random = |b: &mut Builder, n: usize, from: f32| -> Vec<f32> {
        (0..n).map(|_| from + (b.random() % 10_000) as f32 / 7001.0).collect()
    };
    let w = random(&mut b, 16 * 8 * 9, -0.7);
    let w = b.floats("w", &[16, 8, 3, 3], &w);
    let y = b.node("Conv", &[x, w], "y");
    let parameters: Vec<_> = [("gamma", 0.5), ("beta", -0.7), ("mean", -0.7), ("var", 0.1)]
        .into_iter()
        .map(|(name, from)| {
            let values = random(&mut b, 16, from);
            b.floats(name, &[16], &values)
        })
        .collect();
    let z = b.node("BatchNormalization", &[&[y], &parameters[..]].concat(), "z");
    // 72 terms and a bias, each product rounded once more than before: sqrt(73) * 2^-24 = 5e-7 is typical for the
    // sum of rounding errors, 73 * 2^-24 = 4.4e-6 the worst.
    let (after, _) = prepared_within(&b.model(13, &[z]), &only(FUSE), 4.4e-6);
    assert_eq!(op_types(&after), ["Conv"]);
}

/// A refusal says why, and changes nothing.
fn refused(model: &Model, pass: &str, expected: &[&str]) {
    let (after, report) = prepare(model.clone(), &only(&[pass])).unwrap();
    assert_eq!(skips(&report, pass), expected);
    assert!(changes(&report, pass).is_empty());
    assert_eq!(format!("{:?}", model.graph.nodes), format!("{:?}", after.graph.nodes));
    assert_eq!(model.graph.values().len(), after.graph.values().len());
}

#[test]
fn refusals_name_the_value_and_change_nothing() {
    // The convolution's output has two uses: two batch norms, an output of the graph, a subgraph.
    let mut b = Builder::default();
    let x = b.input("x", &["n", "2", "4", "4"]);
    let y = conv(&mut b, x, "y", &[4, 2, 3, 3], 1);
    let z1 = batch_norm(&mut b, y, "z1", 4);
    let z2 = batch_norm(&mut b, y, "z2", 4);
    let two = ["`y` was left as it is: it has another use"; 2];
    refused(&b.model(13, &[z1, z2]), "fuse_batch_norm", &two);

    let simple = |f: &dyn Fn(&mut Builder, ValueId, ValueId) -> Vec<ValueId>| {
        let mut b = Builder::default();
        let x = b.input("x", &["n", "2", "4", "4"]);
        let y = conv(&mut b, x, "y", &[4, 2, 3, 3], 1);
        let z = batch_norm(&mut b, y, "z", 4);
        let outputs = f(&mut b, y, z);
        b.model(13, &outputs)
    };
    let another_use = "`y` was left as it is: it has another use";
    refused(&simple(&|_, y, z| vec![z, y]), "fuse_batch_norm", &[another_use]);
    let captured = simple(&|b, _, z| {
        let mut inner = Graph::default();
        let (y, out) = (inner.intern("y"), inner.intern("inner_out"));
        inner.nodes.push(Node::new("Identity", "", [y], [out]));
        inner.outputs = vec![out];
        let body = AttrValue::Graph(Box::new(inner));
        let cond = b.constant(
            "cond",
            Tensor::scalar(1_u8).with_dtype(midtread_graph::DataType::Bool).unwrap(),
        );
        let w = b.node_with(
            "If",
            &[cond],
            "w",
            &[("then_branch", body.clone()), ("else_branch", body)],
        );
        vec![z, w]
    });
    refused(&captured, "fuse_batch_norm", &[another_use]);

    // Parameters.
    let changed = |name: &str, tensor: Tensor| {
        let mut model = simple(&|_, _, z| vec![z]);
        let id = model.graph.find(name).unwrap();
        model.graph.set_constant(id, tensor);
        model
    };
    refused(
        &changed("z_beta", Tensor::vector(&[0.5_f32])),
        "fuse_batch_norm",
        &["`z_beta` was left as it is: it does not have one value per channel"],
    );
    refused(
        &changed("z_var", Tensor::vector(&[1.0_f32, 0.0, 1.0, 1.0])),
        "fuse_batch_norm",
        &["`z_node` was left as it is: its scale is not finite for some channel"],
    );
    refused(
        &changed("z_mean", Tensor::vector(&[1.0_f64; 4])),
        "fuse_batch_norm",
        &["`z_mean` was left as it is: it is not float32"],
    );
    let mut overridable = simple(&|_, _, z| vec![z]);
    let w = overridable.graph.find("y_w").unwrap();
    overridable.graph.inputs.push(w);
    refused(
        &overridable,
        "fuse_batch_norm",
        &["`y_w` was left as it is: the weight is not constant"],
    );
    let mut training = simple(&|_, _, z| vec![z]);
    training.opset_imports[0].1 = 15;
    training.graph.nodes[1].set_attr("training_mode", AttrValue::Int(1));
    refused(&training, "fuse_batch_norm", &["`z_node` was left as it is: it is in training mode"]);
}

#[test]
fn constants_that_are_not_per_channel_are_refused() {
    for (op_type, pass, dims, why) in [
        ("Mul", "fuse_mul", vec![1, 1, 1, 4], "the constant does not have one value per channel"),
        ("Add", "fuse_add", vec![4], "the constant does not have one value per channel"),
        (
            "Add",
            "fuse_add",
            vec![1, 1, 4, 1, 1],
            "the constant does not have one value per channel",
        ),
        (
            "Add",
            "fuse_add",
            vec![1, 1, 1, 1, 1],
            "the constant does not have one value per channel",
        ),
        ("Mul", "fuse_mul", vec![2, 4, 1, 1], "the constant does not have one value per channel"),
    ] {
        let mut b = Builder::default();
        let x = b.input("x", &["1", "2", "4", "4"]);
        let y = conv(&mut b, x, "y", &[4, 2, 3, 3], 1);
        let c = b.weights("c", &dims);
        let z = b.node(op_type, &[y, c], "z");
        refused(&b.model(13, &[z]), pass, &[&format!("`z_node` was left as it is: {why}")]);
    }
    let mut b = Builder::default();
    let x = b.input("x", &["1", "2", "4", "4"]);
    let y = conv(&mut b, x, "y", &[4, 2, 3, 3], 1);
    let c = b.floats("c", &[], &[f32::INFINITY]);
    let z = b.node("Mul", &[y, c], "z");
    refused(
        &b.model(13, &[z]),
        "fuse_mul",
        &["`z_node` was left as it is: the constant is not finite"],
    );
}

#[test]
fn a_constant_divided_by_or_less_the_result_is_another_function() {
    for op_type in ["Div", "Sub"] {
        let mut b = Builder::default();
        let x = b.input("x", &["1", "2", "4", "4"]);
        let y = conv(&mut b, x, "y", &[4, 2, 3, 3], 1);
        let c = b.floats("c", &[], &[2.0]);
        let z = b.node(op_type, &[c, y], "z");
        let (after, _) = prepared(&b.model(13, &[z]), &only(FUSE));
        assert_eq!(op_types(&after), ["Conv", op_type]);
    }
}

#[test]
fn matmul_takes_in_factors_and_leaves_sums() {
    let mut b = Builder::default();
    let x = b.input("x", &["n", "3", "5"]);
    let w = b.weights("w", &[5, 4]);
    let y = b.node("MatMul", &[x, w], "y");
    let k = b.floats("k", &[1, 1, 4], &[2.0, 0.5, 4.0, -1.0]);
    let m = b.node("Mul", &[y, k], "m");
    let c = b.weights("c", &[4]);
    let a = b.node("Add", &[m, c], "a");
    let (after, _) = prepared(&b.model(13, &[a]), &only(FUSE));
    assert_eq!(op_types(&after), ["MatMul", "Add"]);
}

/// `BatchNormalization(MatMul(x, w))` over inputs and weights of these sizes, with `n` channels.
fn matmul_and_norm(x: &[&str], w: &[usize], n: usize, opset: i64) -> Model {
    let mut b = Builder::default();
    let x = b.input("x", x);
    let w = b.weights("w", w);
    let y = b.node("MatMul", &[x, w], "y");
    let z = batch_norm(&mut b, y, "z", n);
    b.model(opset, &[z])
}

/// Every output of ONNX Runtime, without its own optimizer, for the same inputs.
fn in_onnxruntime(model: &Model, folder: &Path) -> Vec<(String, Tensor)> {
    let paths = ["model.onnx", "in.npz", "out.npz"].map(|name| folder.join(name));
    midtread_onnx::save(model, &paths[0], &SaveOptions::default()).unwrap();
    npz::write(&paths[1], &inputs(model, 3));
    let [file, given, answered] = paths.each_ref().map(|path| path.to_str().unwrap());
    oracle(&["run", file, "--inputs", given, "--outputs", answered, "--no-optimize"]);
    npz::read(&paths[2])
}

#[test]
fn onnxruntime_computes_the_same_after_a_batch_norm_was_taken_in() {
    let folder = std::env::temp_dir().join(format!("midtread-fuse-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    // Each before a BatchNormalization of four channels.
    let before: [(&str, &[&str], &[usize], bool); 5] = [
        ("MatMul", &["3", "5"], &[5, 4], false),
        ("Gemm", &["3", "5"], &[5, 4], false),
        ("Gemm", &["3", "5"], &[5, 4], true),
        ("Conv", &["3", "2", "6", "5"], &[4, 2, 3, 2], true),
        ("ConvTranspose", &["3", "2", "6", "5"], &[2, 4, 3, 2], true),
    ];
    for (op_type, x, w, has_bias) in before {
        let mut b = Builder::default();
        let mut operands = vec![b.input("x", x), b.weights("w", w)];
        if has_bias {
            operands.push(b.weights("b", &[4]));
        }
        let y = b.node(op_type, &operands, "y");
        let z = batch_norm(&mut b, y, "z", 4);
        b.graph.value_mut(z).ty = Some(Type::tensor(DataType::Float, None));
        let model = b.model(13, &[z]);
        let (after, _) = prepared(&model, &only(FUSE));
        assert_eq!(after.graph.nodes.len(), 1, "{op_type}: {:?}", op_types(&after));
        // Small integers and powers of two: no rounding in either.
        let (was, is) = (in_onnxruntime(&model, &folder), in_onnxruntime(&after, &folder));
        assert_eq!(was, is, "{op_type}, bias: {has_bias}");
    }
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn batch_norm_after_a_product_of_matrices_makes_it_a_gemm() {
    let (after, report) = prepared(&matmul_and_norm(&["n", "5"], &[5, 4], 4, 13), &only(FUSE));
    assert_eq!(op_types(&after), ["Gemm"]);
    assert_eq!(changes(&report, "fuse_batch_norm"), ["`y_node` took in `z_node`"]);
    assert!(after.graph.nodes[0].attrs.is_empty());
    // No bias before: b' = beta - k * mean.
    assert_eq!(values_of(&after, "z_bias"), [-1.5, 0.5, -1.0, 2.75]);
}

#[test]
fn batch_norm_over_the_rows_of_a_batch_of_products_stays() {
    // Axis 1 of the product is its rows, of which there are as many as columns here.
    let why = "`z_node` was left as it is: the MatMul before it is not known to be of two matrices";
    for (x, w) in [(&["n", "4", "5"][..], &[5, 4][..]), (&["4", "5"], &[1, 5, 4])] {
        let model = matmul_and_norm(x, w, 4, 13);
        let (after, report) =
            prepared(&model, &only(&["infer_shapes", "fuse_batch_norm", "remove_unused"]));
        assert_eq!(op_types(&after), ["MatMul", "BatchNormalization"]);
        assert_eq!(skips(&report, "fuse_batch_norm"), [why]);
    }
    // Without shape inference the rank of the product is not known.
    refused(&matmul_and_norm(&["n", "5"], &[5, 4], 4, 13), "fuse_batch_norm", &[why]);
}
