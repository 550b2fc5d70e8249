//! What must hold for the bytes of any file: no panic, no memory out of proportion, no endless work.

use std::{collections::BTreeMap, error::Error as _};

use midtread_exec::{Interpreter, Options};
use midtread_graph::{Bytes, DataType, Dim, Graph, Model, Tensor, Type, TypeKind};
use midtread_ops::Datum;
use midtread_passes::{PrepareOptions, infer_shapes::infer, prepare as prepare_model};

/// A function that takes a file's bytes.
pub type Target = fn(&[u8]);

/// Every target, by the name that `cargo xtask fuzz` takes.
pub static TARGETS: &[(&str, Target)] = &[
    ("load", load),
    ("load_save_load", load_save_load),
    ("infer", infer_types),
    ("prepare", prepare),
    ("run", run),
];

/// What a run may hold.
const MAX_BYTES: usize = 64 << 20;

/// An input with more elements is not made.
const MAX_INPUT: usize = 1 << 14;

fn model(data: &[u8]) -> Option<Model> {
    midtread_onnx::from_bytes(Bytes::copy_from_slice(data), None).ok()
}

/// Reading refuses or gives a model.
pub fn load(data: &[u8]) {
    model(data);
}

/// What was read and written is read again, and written as the same bytes.
pub fn load_save_load(data: &[u8]) {
    let Some(model) = model(data) else { return };
    let once = midtread_onnx::to_bytes(&model).expect("a model from so few bytes");
    let again = midtread_onnx::from_bytes(Bytes::from(once.clone()), None)
        .unwrap_or_else(|err| panic!("what was written is not read again: {err}"));
    assert!(midtread_onnx::to_bytes(&again).expect("as before") == once);
}

/// Types are inferred or left open.
pub fn infer_types(data: &[u8]) {
    let Some(model) = model(data) else { return };
    assert_eq!(infer(&model).infos.len(), model.graph.values().len());
}

/// What is prepared is a model that can be written and read.
pub fn prepare(data: &[u8]) {
    let Some(model) = model(data) else { return };
    for opset in [None, Some(21)] {
        let options = PrepareOptions { opset, ..PrepareOptions::default() };
        let Ok((prepared, _)) = prepare_model(model.clone(), &options) else { continue };
        let bytes = midtread_onnx::to_bytes(&prepared).expect("a model from so few bytes");
        midtread_onnx::from_bytes(Bytes::from(bytes), None)
            .unwrap_or_else(|err| panic!("what was prepared is not read again: {err}"));
    }
}

/// A run fails or gives outputs; and where it gives outputs, so does the prepared model.
pub fn run(data: &[u8]) {
    let Some(model) = model(data) else { return };
    if may_not_end(&model.graph) || model.functions.iter().any(|f| may_not_end(&f.body)) {
        return;
    }
    let Ok(before) = outputs(&model) else { return };
    let Ok((prepared, _)) = prepare_model(model, &PrepareOptions::default()) else { return };
    let types = |outputs: &[(String, Datum)]| -> Vec<(String, Vec<(DataType, Vec<usize>)>)> {
        let of = |t: &Tensor| (t.dtype(), t.dims().to_vec());
        outputs.iter().map(|(n, d)| (n.clone(), d.tensors().iter().map(of).collect())).collect()
    };
    let after = outputs(&prepared)
        .unwrap_or_else(|err| panic!("what ran does not run when it is prepared: {err}"));
    assert_eq!(types(&before), types(&after));
}

/// Whether there is a loop: how often it runs is the model's affair.
fn may_not_end(graph: &Graph) -> bool {
    graph.nodes.iter().any(|n| n.op_type == "Loop" || n.subgraphs().any(may_not_end))
}

fn outputs(model: &Model) -> Result<Vec<(String, Datum)>, String> {
    let options = Options { max_bytes: Some(MAX_BYTES) };
    let interpreter = Interpreter::new(model, options).map_err(text)?;
    let mut symbols = BTreeMap::new();
    let inputs: Option<Vec<(String, Datum)>> = interpreter
        .inputs()
        .iter()
        .filter(|port| !port.has_default)
        .map(|port| Some((port.name.clone(), datum(port.ty.as_ref()?, &mut symbols)?)))
        .collect();
    interpreter.run_data(inputs.ok_or("there are no such inputs")?).map_err(text)
}

/// An error and what is behind it.
fn text(err: midtread_exec::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        text = format!("{text}: {err}");
        source = err.source();
    }
    text
}

/// Some value of the type. Open sizes are 1, 2 or 3, the same name the same.
fn datum(ty: &Type, symbols: &mut BTreeMap<String, usize>) -> Option<Datum> {
    match &ty.kind {
        TypeKind::Tensor { .. } => tensor(ty, symbols).map(Datum::Tensor),
        TypeKind::Sequence(Some(element)) => {
            Some(Datum::Sequence(vec![tensor(element, symbols)?, tensor(element, symbols)?].into()))
        }
        TypeKind::Optional(Some(inner)) => datum(inner, symbols),
        _ => None,
    }
}

fn tensor(ty: &Type, symbols: &mut BTreeMap<String, usize>) -> Option<Tensor> {
    let elem = ty.elem()?;
    let mut dims = Vec::new();
    for dim in ty.dims()? {
        dims.push(match dim {
            Dim::Known(n) => *n,
            Dim::Symbol(name) => {
                let next = 1 + symbols.len() % 3;
                *symbols.entry(name.clone()).or_insert(next)
            }
            Dim::Unknown => 2,
        });
    }
    let n = midtread_graph::tensor::n_elements(&dims).ok().filter(|&n| n <= MAX_INPUT)?;
    let small = |i: usize| (i % 5) as i64 - 1;
    match elem {
        DataType::Float => {
            Tensor::from_slice(dims, &(0..n).map(|i| small(i) as f32 * 0.5).collect::<Vec<_>>())
        }
        DataType::Double => {
            Tensor::from_slice(dims, &(0..n).map(|i| small(i) as f64 * 0.5).collect::<Vec<_>>())
        }
        DataType::Int64 => Tensor::from_slice(dims, &(0..n).map(small).collect::<Vec<_>>()),
        DataType::Int32 => {
            Tensor::from_slice(dims, &(0..n).map(|i| small(i) as i32).collect::<Vec<_>>())
        }
        DataType::String => {
            let strings = (0..n).map(|i| Bytes::from_static([&b"a"[..], b"bc", b""][i % 3]));
            Tensor::from_strings(dims, strings.collect())
        }
        _ => {
            let bytes: Vec<u8> = (0..elem.n_bytes(n)?).map(|i| u8::from(i % 3 == 0)).collect();
            Tensor::from_bytes(elem, dims, bytes.into())
        }
    }
    .ok()
}
