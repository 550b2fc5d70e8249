//! The ONNX project's own cases for single operators and small models, through the interpreter and shape inference:
//! every case comes out, but those in `testdata/conformance/denied.txt`, each of which has a reason there.
//!
//! Three sets: the 932 node cases of Debian's `libonnx-testdata` (ONNX 1.12), what the `onnx` package generates and
//! has as files, and ONNX Runtime's own operators with its results (tools/ort_cases.py).
//! `CASE=test_scan cargo nextest run -p midtread-passes conformance` runs those whose names contain it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use midtread_exec::{Interpreter, Options};
use midtread_graph::{Bytes, DataType, Model, Tensor, Type, TypeKind, Value};
use midtread_ops::{Datum, Info};
use midtread_passes::infer_shapes::infer;

/// The sets of cases: folder among the assets, and how many cases it has.
const SETS: &[(&str, usize)] =
    &[("onnx_node_tests", 932), ("onnx_generated_tests", 2027), ("onnxruntime_cases", 82)];

#[test]
fn every_case_passes_or_is_denied_with_a_reason_that_still_holds() {
    let only = std::env::var("CASE").ok();
    let denied = denied();
    let mut unused: BTreeSet<&str> = denied.keys().map(String::as_str).collect();
    let mut wrong = Vec::new();
    for &(set, n_cases) in SETS {
        let cases = cases(set);
        assert_eq!(cases.len(), n_cases, "cases of {set}");
        let results = run_all(&cases, only.as_deref());
        let (mut n_passed, mut n_denied, mut n_loose) = (0, 0, 0);
        for (name, result) in &results {
            let patterns: Vec<&str> =
                denied.keys().map(String::as_str).filter(|p| matches(p, set, name)).collect();
            match (result, patterns.is_empty()) {
                (Ok(tolerance), true) => {
                    n_passed += 1;
                    n_loose += usize::from(*tolerance == Tolerance::Package);
                }
                (Err(_), false) => n_denied += 1,
                (Ok(_), false) => wrong.push(format!("{set}/{name} is denied, but passes")),
                (Err(why), true) => wrong.push(format!("{set}/{name}: {why}")),
            }
            patterns.iter().for_each(|p| {
                unused.remove(p);
            });
        }
        println!(
            "{set}: {n_passed} of {} cases passed ({n_loose} of them within the package's tolerance only), {n_denied} denied",
            results.len(),
        );
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(only.is_some() || unused.is_empty(), "denied, but no such case: {unused:?}");
}

/// `[set/]name: reason` a line; a name may end in `*`.
fn denied() -> BTreeMap<String, String> {
    let text = include_str!("../../../testdata/conformance/denied.txt");
    let lines = text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
    let entry = |line: &str| {
        let (name, reason) = line.split_once(": ").unwrap_or_else(|| panic!("no reason: {line}"));
        assert!(8 < reason.len(), "no reason: {line}");
        (name.to_owned(), reason.to_owned())
    };
    lines.map(entry).collect()
}

fn matches(pattern: &str, set: &str, name: &str) -> bool {
    let pattern = match pattern.split_once('/') {
        Some((wanted, rest)) if wanted == set => rest,
        Some(_) => return false,
        None => pattern,
    };
    pattern.strip_suffix('*').map_or(name == pattern, |start| name.starts_with(start))
}

fn cases(set: &str) -> Vec<PathBuf> {
    let folder = midtread_testkit::asset(set);
    let mut cases: Vec<PathBuf> =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    cases.retain(|case| case.join("model.onnx").exists());
    cases.sort();
    cases
}

type Results = BTreeMap<String, Result<Tolerance, String>>;

fn run_all(cases: &[PathBuf], only: Option<&str>) -> Results {
    let (results, next) = (Mutex::new(Results::new()), AtomicUsize::new(0));
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let name = case.file_name().unwrap().to_str().unwrap().to_owned();
            if only.is_some_and(|only| !name.contains(only)) {
                continue;
            }
            let result = catch_unwind(AssertUnwindSafe(|| run_case(case)));
            let result = result.unwrap_or_else(|_| Err("panicked".to_owned()));
            results.lock().unwrap().insert(name, result);
        }
    };
    std::thread::scope(|scope| {
        let n = std::thread::available_parallelism().map_or(1, usize::from);
        (0..n).for_each(|_| drop(scope.spawn(work)));
    });
    results.into_inner().unwrap()
}

/// How close the results came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tolerance {
    /// Integers equal, floats to what the order of a sum makes.
    Tight,
    /// As the package's own runner asks: 1e-3 of the value.
    Package,
}

fn run_case(case: &Path) -> Result<Tolerance, String> {
    let model = midtread_onnx::load(case.join("model.onnx")).map_err(|e| with_sources(&e))?;
    let again = midtread_onnx::to_bytes(&model).map_err(|e| with_sources(&e))?;
    midtread_onnx::from_bytes(again.into(), None)
        .map_err(|e| format!("saved: {}", with_sources(&e)))?;
    let interpreter = Interpreter::new(&model, Options::default()).map_err(|e| with_sources(&e))?;
    let mut tolerance = Tolerance::Tight;
    let mut n_sets = 0;
    for set in 0.. {
        let folder = case.join(format!("test_data_set_{set}"));
        if !folder.exists() {
            break;
        }
        tolerance = tolerance.max(run_set(&model, &interpreter, &folder)?);
        n_sets += 1;
    }
    if n_sets == 0 { Err("no data".to_owned()) } else { Ok(tolerance) }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn run_set(model: &Model, interpreter: &Interpreter, folder: &Path) -> Result<Tolerance, String> {
    let graph = &model.graph;
    let mut inputs = Vec::new();
    for (i, &id) in graph.inputs.iter().enumerate() {
        if let Some(datum) = read(&folder.join(format!("input_{i}.pb")), graph.value(id))? {
            inputs.push((graph.value_name(id).to_owned(), datum));
        }
    }
    let outputs = interpreter.run_data(inputs.clone()).map_err(|e| with_sources(&e))?;
    let mut tolerance = Tolerance::Tight;
    for (i, ((name, got), &id)) in outputs.iter().zip(&graph.outputs).enumerate() {
        let want = read(&folder.join(format!("output_{i}.pb")), graph.value(id))?;
        let want = want.ok_or_else(|| format!("no expected `{name}`"))?;
        if got.kind() != want.kind() || got.tensors().len() != want.tensors().len() {
            return Err(format!("`{name}` is {got:?}, not {want:?}"));
        }
        for (got, want) in got.tensors().iter().zip(want.tensors()) {
            tolerance = tolerance.max(compare(got, want).map_err(|why| format!("`{name}` {why}"))?);
        }
    }
    check_inference(model, &inputs, &outputs)?;
    Ok(tolerance)
}

/// Shape inference, told only what the inputs are (their sizes alone, and their elements too), contradicts no result.
fn check_inference(
    model: &Model,
    inputs: &[(String, Datum)],
    outputs: &[(String, Datum)],
) -> Result<(), String> {
    for are_constant in [false, true] {
        let mut model = model.clone();
        let graph = &mut model.graph;
        for id in graph.value_ids().collect::<Vec<_>>() {
            if !graph.inputs.contains(&id) {
                graph.value_mut(id).ty = None;
            }
        }
        graph.value_info.clear();
        for (name, datum) in inputs {
            let id = graph.find(name).unwrap();
            let Some(tensor) = datum.as_tensor() else { continue };
            let dims = tensor.dims().iter().map(|&d| midtread_graph::Dim::Known(d)).collect();
            graph.value_mut(id).ty = Some(Type::tensor(tensor.dtype(), Some(dims)));
            if are_constant {
                graph.inputs.retain(|&input| input != id);
                graph.set_constant(id, tensor.clone());
            }
        }
        let inference = infer(&model);
        if let Some((node, because)) = inference.refusals.first() {
            return Err(format!("inference refused `{node}`: {because}"));
        }
        for ((name, got), id) in outputs.iter().zip(&model.graph.outputs) {
            let info = &inference.infos[id.idx()];
            let info = info.element.as_deref().unwrap_or(info);
            for tensor in got.tensors() {
                agrees(info, tensor).map_err(|what| format!("inferred `{name}` {what}"))?;
            }
        }
    }
    Ok(())
}

fn agrees(info: &Info, tensor: &Tensor) -> Result<(), String> {
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
                || value.iter().zip(&ints).any(|(v, &i)| v.as_known().is_some_and(|n| n != i))
        })
    });
    if wrong_elem || wrong_dims || wrong_value {
        return Err(format!("as {info:?}, but it is {tensor:?}"));
    }
    Ok(())
}

/// A file of the case's data, as the type of the value says; `None` where there is none.
fn read(path: &Path, value: &Value) -> Result<Option<Datum>, String> {
    let Ok(bytes) = fs::read(path) else { return Ok(None) };
    let kind = value.ty.as_ref().map(|ty| &ty.kind);
    decode(&bytes, kind).map(Some).map_err(|why| format!("{}: {why}", path.display()))
}

fn decode(bytes: &[u8], kind: Option<&TypeKind>) -> Result<Datum, String> {
    match kind {
        // SequenceProto: tensor_values is field 3.
        Some(TypeKind::Sequence(_)) => {
            let tensors = fields(bytes)?.into_iter().filter(|&(number, _)| number == 3);
            let tensors = tensors.map(|(_, bytes)| tensor(bytes)).collect::<Result<_, _>>()?;
            Ok(Datum::Sequence(Arc::new(tensors)))
        }
        // OptionalProto: tensor_value is field 3, sequence_value field 5.
        Some(TypeKind::Optional(_)) => {
            let fields = fields(bytes)?;
            let value = fields.iter().find(|(number, _)| matches!(number, 3 | 5));
            Ok(match value {
                Some((3, bytes)) => Datum::Tensor(tensor(bytes)?),
                Some((_, bytes)) => decode(bytes, Some(&TypeKind::Sequence(None)))?,
                None => Datum::Empty,
            })
        }
        _ => Ok(Datum::Tensor(tensor(bytes)?)),
    }
}

fn tensor(bytes: &[u8]) -> Result<Tensor, String> {
    midtread_onnx::tensor_from_bytes(Bytes::copy_from_slice(bytes)).map_err(|e| with_sources(&e))
}

/// The fields with a length of a protobuf message.
fn fields(mut bytes: &[u8]) -> Result<Vec<(u64, &[u8])>, String> {
    fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = bytes.split_first().ok_or("cut off")?;
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number of more than 64 bits".to_owned())
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        match key & 7 {
            0 => drop(varint(&mut bytes)?),
            2 => {
                let len = varint(&mut bytes)? as usize;
                let (field, rest) = bytes.split_at_checked(len).ok_or("cut off")?;
                fields.push((key >> 3, field));
                bytes = rest;
            }
            other => return Err(format!("wire type {other}")),
        }
    }
    Ok(fields)
}

/// Integers must be equal. Floats may differ by what the order of a sum and another library's functions make: 2^-18
/// of the value, or of the largest value of the tensor where terms of that size have cancelled (the cases are computed
/// by NumPy in `f32`); or else by the 1e-3 of ONNX's own runner, which is counted.
fn compare(got: &Tensor, want: &Tensor) -> Result<Tolerance, String> {
    if got.dtype() != want.dtype() || got.dims() != want.dims() {
        return Err(format!("is {got:?}, not {want:?}"));
    }
    let relative = match got.dtype() {
        DataType::Float => 2_f64.powi(-18),
        DataType::Double => 2_f64.powi(-40),
        DataType::Float16 | DataType::Bfloat16 => 2_f64.powi(-7),
        _ if got == want => return Ok(Tolerance::Tight),
        _ => return Err(format!("is {got:?}, not {want:?}")),
    };
    let (got, want) = (floats(got), floats(want));
    let largest = want.iter().filter(|x| x.is_finite()).fold(0.0_f64, |a, b| a.max(b.abs()));
    let mut tolerance = Tolerance::Tight;
    for (i, (&g, &w)) in got.iter().zip(&want).enumerate() {
        let same = g == w || g.is_nan() && w.is_nan();
        if same || (g - w).abs() <= relative * largest.min(w.abs().max(1.0)) {
            continue;
        }
        let is_close = (g - w).abs() <= 1e-7 + 1e-3 * w.abs();
        if !is_close {
            return Err(format!("[{i}] is {g}, not {w}"));
        }
        tolerance = Tolerance::Package;
    }
    Ok(tolerance)
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    fn of<T: midtread_graph::Element>(tensor: &Tensor, f: impl Fn(T) -> f64) -> Vec<f64> {
        tensor.to_vec::<T>().unwrap().into_iter().map(f).collect()
    }
    match tensor.dtype() {
        DataType::Float => of::<f32>(tensor, f64::from),
        DataType::Double => of::<f64>(tensor, |x| x),
        DataType::Float16 => of::<half::f16>(tensor, f64::from),
        _ => of::<half::bf16>(tensor, f64::from),
    }
}

#[test]
fn a_denied_name_matches_its_set_and_its_beginning_only() {
    assert!(matches("test_a*", "s", "test_abs"));
    assert!(matches("s/test_abs", "s", "test_abs"));
    assert!(!matches("t/test_abs", "s", "test_abs"));
    assert!(!matches("test_ab", "s", "test_abs"));
}
