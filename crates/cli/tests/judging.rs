//! Commands that say how good a model is: what they print, write, and exit with.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use midtread::{
    Runner, Runtime,
    data::{self, Preprocess},
    graph::Tensor,
    onnx,
};
use midtread_testkit::{npz, oracle, root};
use serde_json::Value;

fn midtread(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_midtread"))
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs")
}

/// The exit status, the document on stdout and what is on stderr.
fn json(folder: &Path, args: &[&str]) -> (i32, Value, String) {
    let output = midtread(folder, &[args, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let document = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), document, stderr)
}

/// The demo's model, and options that name 200 of its test pictures and their labels.
fn folder() -> (tempfile::TempDir, Vec<String>, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(demo("fashion_mobilenet.onnx"), folder.path().join("model.onnx")).unwrap();
    let path = |name: &str| demo(name).to_str().unwrap().to_owned();
    let data = [
        "--data",
        &path("t10k-images-idx3-ubyte.gz"),
        "--preprocess",
        "fashion_mnist",
        "--samples",
        "200",
    ];
    let labels = path("t10k-labels-idx1-ubyte.gz");
    (folder, data.map(str::to_owned).to_vec(), labels)
}

fn demo(name: &str) -> PathBuf {
    root().join("assets/demo").join(name)
}

fn with<'a>(args: &[&'a str], data: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    args.iter()
        .copied()
        .chain(data.iter().map(String::as_str))
        .chain(more.iter().copied())
        .collect()
}

/// A copy of the model whose last weight has the other sign: the least likely class is its answer.
fn contrary(folder: &Path) {
    let mut model = onnx::load(folder.join("model.onnx")).unwrap();
    let last = model.graph.nodes.iter().rev().find(|n| matches!(&*n.op_type, "Gemm" | "MatMul"));
    let id = last.unwrap().input(1).unwrap();
    let tensor = model.graph.constant(id).unwrap();
    let values: Vec<f32> = tensor.to_vec::<f32>().unwrap().iter().map(|x| -x).collect();
    let tensor = Tensor::from_slice(tensor.dims().to_vec(), &values).unwrap();
    model.graph.set_constant(id, tensor);
    onnx::save(&model, folder.join("contrary.onnx"), &Default::default()).unwrap();
}

#[test]
fn a_drop_beyond_the_limit_and_one_that_cannot_be_told_end_with_status_1() {
    let (folder, data, labels) = folder();
    let folder = folder.path();
    contrary(folder);
    let gate = |model, most| {
        let more = ["--labels", &labels, "--against", "model.onnx", "--max-drop", most];
        json(folder, &with(&["evaluate", model], &data, &more))
    };
    // Equal models differ nowhere: 200 samples tell 5 %, and not half a percent.
    let (status, same, _) = gate("model.onnx", "5%");
    assert_eq!((status, &same["agreement"]), (0, &1.0.into()));
    assert!(same["top1"].as_f64().unwrap() <= same["top5"].as_f64().unwrap(), "{same}");
    let (status, _, stderr) = gate("model.onnx", "0.5%");
    assert!(status == 1 && stderr.contains("do not tell"), "{status}: {stderr}");
    let (status, worse, stderr) = gate("contrary.onnx", "5%");
    assert!(status == 1 && stderr.contains("drops by more than"), "{status}: {stderr}");
    let interval = &worse["difference"]["interval"];
    assert!(0.5 < interval[0].as_f64().unwrap(), "{worse}");
}

#[test]
fn values_of_outputs_are_compared_by_three_figures() {
    let (folder, data, _) = folder();
    let folder = folder.path();
    contrary(folder);
    let more = ["--against", "model.onnx", "--values"];
    let (_, same, _) = json(folder, &with(&["evaluate", "model.onnx"], &data, &more));
    assert_eq!((&same["mae"], &same["samples"]), (&0.0.into(), &200.into()));
    for figure in ["cosine", "spearman"] {
        assert!((same[figure].as_f64().unwrap() - 1.0).abs() < 1e-9, "{same}");
    }
    let (_, other, _) = json(folder, &with(&["evaluate", "contrary.onnx"], &data, &more));
    assert!(
        other["spearman"].as_f64().unwrap() < 0.0 && 0.0 < other["mae"].as_f64().unwrap(),
        "{other}"
    );
}

#[cfg(unix)]
#[test]
fn a_program_of_ones_own_judges_the_outputs() {
    let (folder, data, _) = folder();
    let folder = folder.path();
    // A folder for each sample, an array in each, and the list.
    let count = "f() { ls \"$1\"/*/*.npy | wc -l; }; f";
    let args = with(
        &["evaluate", "model.onnx", "--metric-command", count],
        &data,
        &["--against", "model.onnx"],
    );
    let (status, result, stderr) = json(folder, &args);
    assert_eq!(
        (status, &result["metric"], &result["difference"]),
        (0, &200.0.into(), &0.0.into()),
        "{stderr}"
    );
    let names = "f() { grep -c '\"name\"' \"$1/samples.json\"; }; f";
    let args = ["evaluate", "model.onnx", "--metric-command", names, "--min-metric"];
    assert_eq!(json(folder, &with(&args, &["200".into()], &[])).0, 2, "no data is given");
    let [enough, few] = ["200", "201"]
        .map(|least| json(folder, &with(&[&args[..], &[least]].concat(), &data, &[])).0);
    assert_eq!((enough, few), (0, 1));
    let (status, _, stderr) = json(
        folder,
        &with(&["evaluate", "model.onnx", "--metric-command", "echo bad; false #"], &data, &[]),
    );
    assert!(status == 2 && stderr.contains("failed"), "{status}: {stderr}");
}

#[test]
fn sensitive_layers_are_kept_in_float_and_the_work_goes_on_where_it_stopped() {
    let (folder, mut data, labels) = folder();
    let folder = folder.path();
    *data.last_mut().unwrap() = "4".to_owned();
    let more = [
        "--labels",
        &labels,
        "--state",
        "layers.state",
        "--budget",
        "1ns",
        "-o",
        "keep.toml",
        "--keep",
        "2",
    ];
    let more = more.map(|word| if word == "1ns" { "0.000001s" } else { word });
    let args = with(&["sensitivity", "model.onnx", "--report", "layers.html"], &data, &more);
    let (status, first, stderr) = json(folder, &args);
    assert_eq!((status, &first["samples"]), (0, &1.into()), "{stderr}");
    assert!(first["nodes_run"].as_u64() < first["nodes_whole"].as_u64(), "{first}");
    // Without the budget, from the state: as without a state.
    let all = with(&["sensitivity", "model.onnx"], &data, &["--labels", &labels]);
    let (_, rest, _) = json(folder, &[&all[..], &["--state", "layers.state"]].concat());
    let (_, whole, _) = json(folder, &all);
    assert_eq!((&rest, &rest["samples"]), (&whole, &4.into()));
    // The overrides keep two nodes in float, and the ledger says so (what clamps their outputs stays too).
    let args =
        with(&["quantize", "model.onnx", "--overrides", "keep.toml"], &data, &["-o", "int8.onnx"]);
    let (status, quantized, stderr) = json(folder, &args);
    let ledger = quantized["ledger"].as_array().unwrap().iter();
    let excluded = ledger.filter(|n| n["reason"].as_str().is_some_and(|r| r.contains("excluded")));
    assert_eq!((status, excluded.count()), (0, 2), "{stderr}");
    let page = fs::read_to_string(folder.join("layers.html")).unwrap();
    assert!(page.len() < 2_000_000 && page.contains("\"sensitivity\":{"));
    // Another model's state is refused.
    let args = with(
        &["sensitivity", "model.onnx", "--state", "layers.state", "--weights", "u8"],
        &data,
        &["--labels", &labels],
    );
    let (status, _, stderr) = json(folder, &args);
    assert!(status == 2 && stderr.contains("other options"), "{status}: {stderr}");
}

#[test]
fn the_page_depends_on_inputs_and_options_alone_but_for_times() {
    let (folder, mut data, _) = folder();
    let folder = folder.path();
    *data.last_mut().unwrap() = "8".to_owned();
    let page = |threads| {
        let more = ["-o", "int8.onnx", "--report", "page.html", "--threads", threads];
        let output = midtread(folder, &with(&["quantize", "model.onnx"], &data, &more));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut data = page_data(folder, "page.html");
        for variant in data["variants"].as_array_mut().unwrap() {
            assert!(variant["latencies"].as_array().is_some_and(|times| !times.is_empty()));
            variant["latencies"] = Value::Null;
        }
        data.to_string()
    };
    let first = page("1");
    assert_eq!(first, page("3"));
    for shown in [
        "sha256:",
        "\"calibrator\":\"entropy\"",
        "\"convergence\":{",
        "\"own_sqnr_db\"",
        "\"macs\":",
    ] {
        assert!(first.contains(shown), "{shown}");
    }
    assert!(first.len() < 2_000_000, "{}", first.len());
}

#[test]
fn size_accuracy_and_latency_stand_in_one_table() {
    let (folder, mut data, labels) = folder();
    let folder = folder.path();
    *data.last_mut().unwrap() = "40".to_owned();
    let quantize = with(&["quantize", "model.onnx"], &data, &["-o", "int8.onnx"]);
    assert!(midtread(folder, &quantize).status.success());
    let python = std::env::var_os("MIDTREAD_PYTHON")
        .map_or_else(|| root().join("target/venv/bin/python"), PathBuf::from);
    let args = [
        "report",
        "model.onnx",
        "int8.onnx",
        "--labels",
        &labels,
        "--python",
        python.to_str().unwrap(),
    ];
    let more = ["-o", "report.html", "--repeat", "10", "--thread-counts", "1"];
    let (status, report, stderr) = json(folder, &with(&args, &data, &more));
    assert_eq!(status, 0, "{stderr}");
    for (variant, name) in
        report["variants"].as_array().unwrap().iter().zip(["model.onnx", "int8.onnx"])
    {
        assert_eq!(variant["name"], name);
        let interval = &variant["top1_interval"];
        assert!(interval[0].as_f64() < variant["top1"].as_f64(), "{variant}");
        let latencies = variant["latencies"].as_array().unwrap();
        let of: Vec<&str> = latencies.iter().map(|l| l["runtime"].as_str().unwrap()).collect();
        assert_eq!(of, ["engine", "onnxruntime"]);
        assert!(latencies.iter().all(|l| 0.0 < l["median_ms"].as_f64().unwrap()), "{variant}");
    }
    assert!(report["difference"]["samples_for_half_percent"].as_u64().is_some(), "{report}");
    assert!(fs::read_to_string(folder.join("report.html")).unwrap().contains("onnxruntime"));
    let output = midtread(
        folder,
        &with(&["report", "model.onnx", "int8.onnx", "--repeat", "2"], &data, &[]),
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.lines().all(|l| l.chars().count() <= 110), "{text}");
    let args = with(&["report", "model.onnx", "int8.onnx", "--python", "/no/python"], &data, &[]);
    let (status, _, stderr) = json(folder, &args);
    assert!(status == 2 && stderr.contains("/no/python"), "{stderr}");
}

#[test]
fn tuning_takes_the_cheapest_model_that_keeps_its_quality() {
    let (folder, data, labels) = folder();
    let folder = folder.path();
    let more = ["--labels", &labels, "--max-drop", "1%", "--four-bit", "-o", "tuned.onnx"];
    let files = ["--report", "tune.html", "--save-plan", "tuned.plan"];
    let few = ["--calibration-samples", "16", "--ranking-samples", "2"];
    let args = with(&["tune", "model.onnx"], &data, &[&more[..], &files, &few].concat());
    let (status, tuned, stderr) = json(folder, &args);
    assert_eq!(status, 0, "{stderr}");
    let trials = tuned["trials"].as_array().unwrap();
    let best = &trials[tuned["best"].as_u64().unwrap() as usize];
    let number = |trial: &Value, name: &str| trial[name].as_f64().unwrap();
    // Nothing that keeps enough is smaller by more than a hundredth, and four bits are worth more than that here.
    let within = |trial: &&Value| trial["quality"]["loss"].as_f64().unwrap() <= 0.01;
    assert!(within(&best) && best["is_within"] == true, "{best}");
    for trial in trials.iter().filter(within) {
        assert!(number(best, "bytes") <= 1.01 * number(trial, "bytes"), "{trial}\n{best}");
    }
    assert!(0 < best["n_four_bit"].as_u64().unwrap(), "{best}");
    assert!(trials.iter().any(|trial| trial["n_float"] == 2), "{tuned}");
    // What was written is what was judged, here and in ONNX Runtime.
    let bytes = fs::metadata(folder.join("tuned.onnx")).unwrap().len();
    assert_eq!(number(best, "bytes") as u64, bytes);
    let args = with(&["evaluate", "tuned.onnx"], &data, &["--labels", &labels]);
    let (_, evaluated, _) = json(folder, &args);
    assert_eq!(evaluated["top1"], best["quality"]["value"]);
    same_in_onnxruntime(folder, "tuned.onnx");
    let apply =
        ["apply", "model.onnx", "--plan", "tuned.plan", "--opset", "21", "-o", "again.onnx"];
    let (status, _, stderr) = json(folder, &apply);
    assert_eq!(status, 0, "{stderr}");
    assert!(
        fs::read(folder.join("again.onnx")).unwrap()
            == fs::read(folder.join("tuned.onnx")).unwrap(),
        "the plan makes another model"
    );
    let page = fs::read_to_string(folder.join("tune.html")).unwrap();
    for shown in ["\"pareto\":[{", "\"top1_interval\":[", "\"sensitivity\":{", "\"drop\":"] {
        assert!(page.contains(shown), "{shown}");
    }
    assert!(page.len() < 2_000_000);
}

#[test]
fn tuning_without_a_way_that_keeps_enough_writes_the_best_and_says_so() {
    let (folder, mut data, _) = folder();
    let folder = folder.path();
    *data.last_mut().unwrap() = "20".to_owned();
    // Two bits keep nobody's answers, and the budget ends with the first trial.
    let more = ["--weights", "i2", "--max-drop", "0.01%", "--budget", "0.001s"];
    let (status, tuned, stderr) = json(folder, &with(&["tune", "model.onnx"], &data, &more));
    assert!(status == 1 && stderr.contains("no way that was tried"), "{status}: {stderr}");
    let trials = tuned["trials"].as_array().unwrap();
    assert_eq!((trials.len(), &tuned["is_cut_short"]), (1, &true.into()), "{tuned}");
    assert_eq!((&tuned["measure"], &tuned["is_within"]), (&"agreement".into(), &false.into()));
    assert!(folder.join("model.int8.onnx").exists());
    // A program judges; more is better, and nothing is lost where it says the same of all.
    let more = ["--metric-command", "echo 7; :", "--budget", "0.001s"];
    let (status, tuned, stderr) = json(folder, &with(&["tune", "model.onnx"], &data, &more));
    assert_eq!((status, &tuned["float"]["value"]), (0, &7.0.into()), "{stderr}");
    // Values of outputs are judged by their cosine.
    let more = ["--values", "--budget", "0.001s"];
    let (status, tuned, stderr) = json(folder, &with(&["tune", "model.onnx"], &data, &more));
    assert_eq!((status, &tuned["measure"]), (0, &"cosine".into()), "{stderr}");
    let cosine = tuned["trials"][0]["quality"]["value"].as_f64().unwrap();
    assert!((0.99..1.0).contains(&cosine), "{cosine}");
}

#[test]
fn pages_show_accuracy_and_latency_beside_size() {
    let (folder, mut data, labels) = folder();
    let folder = folder.path();
    *data.last_mut().unwrap() = "16".to_owned();
    // Labels of other pictures: few are right, but they are counted.
    let valid = demo("calibration-images-idx3-ubyte.gz").to_str().unwrap().to_owned();
    let judged = ["--valid", &valid, "--valid-labels", &labels];
    let more = [&["-o", "int8.onnx", "--report", "quantize.html"], &judged[..]].concat();
    let output = midtread(folder, &with(&["quantize", "model.onnx"], &data, &more));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let more = ["--labels", &labels, "--report", "compare.html"];
    let output = midtread(folder, &with(&["compare", "model.onnx", "int8.onnx"], &data, &more));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (page, n) in [("quantize.html", 512), ("compare.html", 16)] {
        let shown = page_data(folder, page);
        for variant in shown["variants"].as_array().unwrap() {
            let interval = [0, 1].map(|i| variant["top1_interval"][i].as_f64().unwrap());
            let top1 = variant["top1"].as_f64().unwrap();
            assert!(interval[0] < top1 && top1 <= interval[1], "{page}: {variant}");
            assert!(0.0 < variant["latencies"][0]["median_ms"].as_f64().unwrap(), "{page}");
        }
        assert_eq!(shown["difference"]["paired"]["n"], n, "{page}");
    }
    // Right answers without a page would be for nothing.
    let args = with(&["quantize", "model.onnx"], &data, &["--labels", &labels]);
    let (status, _, stderr) = json(folder, &args);
    assert!(status == 2 && stderr.contains("--report"), "{status}: {stderr}");
}

/// Checks a model in ONNX Runtime, and that it computes there what it computes here.
fn same_in_onnxruntime(folder: &Path, model: &str) {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (model, given, answered) = (path(model), path("in.npz"), path("out.npz"));
    oracle(&["check", &model]);
    let loaded = onnx::load(&model).unwrap();
    let options = data::Options { limit: Some(1), preprocess: Preprocess::preset("fashion_mnist") };
    let specs = data::InputSpec::of(&loaded).unwrap();
    let images = demo("t10k-images-idx3-ubyte.gz");
    let inputs = data::open(&images, &specs, &options).unwrap().sample(0).unwrap().inputs;
    npz::write(Path::new(&given), &inputs);
    oracle(&["run", &model, "--inputs", &given, "--outputs", &answered, "--no-optimize"]);
    let ours = Runner::new(&loaded, Runtime::Interpreter, None).unwrap().run(inputs).unwrap();
    let values = |tensor: &Tensor| tensor.to_vec::<f32>().unwrap();
    let (ours, theirs) = (values(&ours[0].1), values(&npz::read(Path::new(&answered))[0].1));
    let largest = theirs.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    for (a, b) in ours.iter().zip(&theirs) {
        // A sum in another order may move a value over a rounding threshold: a step of the last layer.
        assert!((a - b).abs() <= largest * 2.0 / 255.0, "{ours:?} {theirs:?}");
    }
}

/// The data that a page shows.
fn page_data(folder: &Path, page: &str) -> Value {
    let page = fs::read_to_string(folder.join(page)).unwrap();
    let (_, data) = page.split_once("id=\"data\">").unwrap();
    serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap()
}
