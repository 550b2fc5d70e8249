//! The ONNX project's own test cases for single operators (`libonnx-testdata`), through the table: every case whose
//! operators are in it must come out, but those that are refused by name.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use midtread_graph::{Bytes, DataType, Graph, Model, Node, Tensor, ValueId};
use midtread_ops::{Args, EvalCtx, InferCtx, Info, OpError, Pool, SymDim, find};

/// What a case came to.
#[derive(Debug)]
enum Outcome {
    Passed,
    /// An operator is not in the table, or older than it knows.
    Absent(String),
    /// An operator said that it does not support this form.
    Refused(String),
    Failed(String),
}

/// What is refused, and why it is not computed: the beginnings of the cases' names. A beginning of which no case is
/// refused any more has to leave the list.
const REFUSED: &[(&str, &str)] = &[
    ("test_batchnorm_epsilon_training_mode", "statistics of a batch are training"),
    ("test_batchnorm_example_training_mode", "statistics of a batch are training"),
    ("test_training_dropout", "random numbers are training"),
    ("test_cast_FLOAT_to_STRING", "text is not computed with"),
    ("test_cast_STRING_to_FLOAT", "text is not computed with"),
    ("test_castlike_FLOAT_to_STRING", "text is not computed with"),
    ("test_castlike_STRING_to_FLOAT", "text is not computed with"),
    ("test_resize_downsample_scales_cubic", "no model that is quantized here has it"),
    ("test_resize_downsample_sizes_cubic", "no model that is quantized here has it"),
    ("test_resize_upsample_scales_cubic", "no model that is quantized here has it"),
    ("test_resize_upsample_sizes_cubic", "no model that is quantized here has it"),
    ("test_resize_tf_crop_and_resize", "no model that is quantized here has it"),
    ("test_scatter_elements_with_duplicate_indices", "a reduction while scattering"),
];

/// Cases whose expected results are not what the operators must give, and why.
const WRONG: &[(&str, &str)] = &[
    ("test_blackmanwindow", "its results were made with pi to six digits; off by up to 1e-4"),
    ("test_hammingwindow", "its results were made with pi to six digits; off by up to 1e-4"),
    ("test_hannwindow", "its results were made with pi to six digits; off by up to 1e-4"),
    ("test_cast_BFLOAT16_to_FLOAT", "the file holds bfloat16 as uint16"),
    ("test_cast_FLOAT_to_BFLOAT16", "the file holds bfloat16 as uint16"),
    ("test_castlike_BFLOAT16_to_FLOAT", "the file holds bfloat16 as uint16"),
    ("test_castlike_FLOAT_to_BFLOAT16", "the file holds bfloat16 as uint16"),
    (
        "test_resize_downsample_scales_linear_align_corners",
        "corners are aligned to 2.4 outputs of which there are 2; ONNX Runtime differs too",
    ),
];

#[test]
fn every_node_case_of_the_table_passes_or_is_refused_by_name() {
    let folder = midtread_testkit::asset("onnx_node_tests");
    let mut cases: Vec<PathBuf> =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    let (mut n_passed, mut absent, mut refused, mut failed) =
        (0, BTreeMap::<String, usize>::new(), BTreeMap::new(), Vec::new());
    for case in &cases {
        let name = case.file_name().unwrap().to_str().unwrap().to_owned();
        match run_case(case) {
            Outcome::Passed => n_passed += 1,
            Outcome::Absent(op) => *absent.entry(op).or_default() += 1,
            Outcome::Refused(why) => drop(refused.insert(name, why)),
            Outcome::Failed(why) => failed.push(format!("{name}: {why}")),
        }
    }
    let n_absent: usize = absent.values().sum();
    println!(
        "{n_passed} passed, {} refused, {n_absent} not in the table, {} failed",
        refused.len(),
        failed.len()
    );
    println!("refused: {refused:#?}\nnot in the table: {absent:?}");
    let listed =
        |list: &[(&str, &str)], name: &str| list.iter().any(|(start, _)| name.starts_with(start));
    let (wrong, failed): (Vec<_>, Vec<_>) = failed.into_iter().partition(|f| listed(WRONG, f));
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    let unlisted: Vec<_> = refused.iter().filter(|(name, _)| !listed(REFUSED, name)).collect();
    assert!(unlisted.is_empty(), "refused, but not in the list: {unlisted:#?}");
    let names: Vec<&str> =
        refused.keys().map(String::as_str).chain(wrong.iter().map(String::as_str)).collect();
    for (start, _) in REFUSED.iter().chain(WRONG) {
        assert!(
            names.iter().any(|name| name.starts_with(start)),
            "no case of {start} differs any more"
        );
    }
    assert!(600 <= n_passed, "{n_passed} cases passed: are they all there?");
}

fn read_tensor(path: &Path) -> Option<Tensor> {
    midtread_onnx::tensor_from_bytes(Bytes::from(fs::read(path).unwrap())).ok()
}

fn run_case(case: &Path) -> Outcome {
    let model = match midtread_onnx::load(case.join("model.onnx")) {
        Ok(model) => model,
        Err(err) => return Outcome::Absent(format!("(not read: {err})")),
    };
    for node in &model.graph.nodes {
        match find(&node.domain, &node.op_type) {
            None => return Outcome::Absent(node.op_type.clone()),
            Some(op) => {
                let opset = model.opset(&node.domain).unwrap_or(1);
                if opset < op.versions[0] {
                    return Outcome::Absent(format!(
                        "{} before version {}",
                        node.op_type, op.versions[0]
                    ));
                }
                if let Err(err) = op.check(node, opset) {
                    return Outcome::Refused(format!("{}: {err}", node.op_type));
                }
            }
        }
    }
    for set in 0.. {
        let folder = case.join(format!("test_data_set_{set}"));
        if !folder.exists() {
            break;
        }
        match run_set(&model, &folder) {
            Outcome::Passed => {}
            other => return other,
        }
    }
    Outcome::Passed
}

fn run_set(model: &Model, folder: &Path) -> Outcome {
    let graph = &model.graph;
    let mut values: Vec<Option<Tensor>> =
        graph.values().iter().map(|v| v.constant.clone()).collect();
    for (i, id) in graph.inputs.iter().enumerate() {
        let path = folder.join(format!("input_{i}.pb"));
        if path.exists() {
            match read_tensor(&path) {
                Some(tensor) => values[id.idx()] = Some(tensor),
                None => return Outcome::Absent("(an input that is no tensor)".to_owned()),
            }
        }
    }
    let pool = Pool::default();
    for node in &graph.nodes {
        let args: Vec<Option<Tensor>> =
            node.inputs.iter().map(|id| id.and_then(|id| values[id.idx()].clone())).collect();
        let outputs = match eval(model, node, args, &pool) {
            Ok(outputs) => outputs,
            Err(err @ OpError::Unsupported(_)) => {
                return Outcome::Refused(format!("{}: {err}", node.op_type));
            }
            Err(err) => return Outcome::Failed(format!("{}: {err}", node.op_type)),
        };
        for (id, tensor) in node.outputs.iter().zip(outputs) {
            if let Some(id) = id {
                values[id.idx()] = Some(tensor);
            }
        }
    }
    for (i, id) in graph.outputs.iter().enumerate() {
        let Some(want) = read_tensor(&folder.join(format!("output_{i}.pb"))) else {
            return Outcome::Absent("(an output that is no tensor)".to_owned());
        };
        let Some(got) = &values[id.idx()] else {
            return Outcome::Failed(format!("output {i} is missing"));
        };
        if let Err(why) = compare(got, &want, graph, *id) {
            return Outcome::Failed(why);
        }
    }
    Outcome::Passed
}

/// The outputs, after checking that the shape rule said nothing else: once with the sizes alone, and once with the
/// inputs as constants.
fn eval(
    model: &Model,
    node: &Node,
    args: Vec<Option<Tensor>>,
    pool: &Pool,
) -> Result<Vec<Tensor>, OpError> {
    let op = find(&node.domain, &node.op_type).expect("checked before");
    let opset = model.opset(&node.domain).unwrap_or(1);
    let mut inferred = Vec::new();
    for is_constant in [false, true] {
        let info = |t: &Tensor| Info {
            elem: Some(t.dtype()),
            dims: Some(t.dims().iter().map(|&d| SymDim::known(d as i64)).collect()),
            value: None,
            constant: is_constant.then(|| t.clone()),
        };
        let inputs: Vec<Option<Info>> = args.iter().map(|t| t.as_ref().map(info)).collect();
        let mut n_fresh = 0;
        let mut ctx = InferCtx::new(node, opset, &inputs, &mut n_fresh);
        (op.infer)(&mut ctx)?;
        inferred.push(ctx.into_outputs());
    }
    let outputs = (op.eval)(&EvalCtx { node, opset, pool }, Args(args))?;
    for infos in &inferred {
        for (i, (info, tensor)) in infos.iter().zip(&outputs).enumerate() {
            let wrong_elem = info.elem.is_some_and(|e| e != tensor.dtype());
            let wrong_dims = info.dims.as_ref().is_some_and(|dims| {
                dims.len() != tensor.dims().len()
                    || dims
                        .iter()
                        .zip(tensor.dims())
                        .any(|(s, &d)| s.as_known().is_some_and(|n| n != d as i64))
            });
            let wrong_value = info.value.as_ref().is_some_and(|value| {
                midtread_ops::infer::ints(tensor).is_some_and(|ints| {
                    value.len() != ints.len()
                        || value
                            .iter()
                            .zip(&ints)
                            .any(|(v, &i)| v.as_known().is_some_and(|n| n != i))
                })
            });
            if wrong_elem || wrong_dims || wrong_value {
                return Err(OpError::Invalid(format!(
                    "output {i} is {tensor:?}, inferred was {info:?}"
                )));
            }
        }
    }
    Ok(outputs)
}

/// Integers must be equal. Floats may differ by what the order of a sum and another library's functions make: 2^-18
/// of the value, or of the largest value of the tensor where terms of that size have cancelled (the cases are computed
/// by NumPy in `f32`; ONNX's own runner allows 1e-3).
fn compare(got: &Tensor, want: &Tensor, graph: &Graph, id: ValueId) -> Result<(), String> {
    let name = graph.value_name(id);
    if got.dtype() != want.dtype() || got.dims() != want.dims() {
        return Err(format!("`{name}` is {got:?}, not {want:?}"));
    }
    let (relative, got_values, want_values) = match got.dtype() {
        DataType::Float => (2_f64.powi(-18), floats::<f32>(got), floats::<f32>(want)),
        DataType::Double => (2_f64.powi(-40), floats::<f64>(got), floats::<f64>(want)),
        DataType::Float16 | DataType::Bfloat16 => {
            let halves = |t: &Tensor| -> Vec<f64> {
                match t.dtype() {
                    DataType::Float16 => {
                        t.to_vec::<half::f16>().unwrap().iter().map(|h| h.to_f64()).collect()
                    }
                    _ => t.to_vec::<half::bf16>().unwrap().iter().map(|h| h.to_f64()).collect(),
                }
            };
            (2_f64.powi(-7), halves(got), halves(want))
        }
        _ if got == want => return Ok(()),
        _ => return Err(format!("`{name}` is {got:?}, not {want:?}")),
    };
    let largest = want_values.iter().filter(|x| x.is_finite()).fold(0.0_f64, |a, b| a.max(b.abs()));
    for (i, (&g, &w)) in got_values.iter().zip(&want_values).enumerate() {
        let equal = g == w
            || g.is_nan() && w.is_nan()
            || (g - w).abs() <= relative * largest.min(w.abs().max(1.0));
        if !equal {
            return Err(format!("`{name}`[{i}] is {g}, not {w}"));
        }
    }
    Ok(())
}

fn floats<T: midtread_graph::Element + Into<f64>>(tensor: &Tensor) -> Vec<f64> {
    tensor.to_vec::<T>().unwrap().into_iter().map(Into::into).collect()
}
