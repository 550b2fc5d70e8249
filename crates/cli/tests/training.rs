//! `midtread train` as a process: killed, resumed, compared.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use midtread_testkit::root;
use serde_json::Value;

/// `midtread train` of the demo's network with a few of its pictures: 2 epochs of 12 steps, a checkpoint every second.
fn train(folder: &Path, output: &str, more: &[&str]) -> Command {
    let demo = root().join("assets/demo");
    let mut command = Command::new(env!("CARGO_BIN_EXE_midtread"));
    command
        .args(["train", "--preprocess", "fashion_mnist", "--samples", "112", "--holdout", "16"])
        .args(["--weights", "i4", "--activations", "u4", "--epochs", "2", "--batch", "8"])
        .args(["--calibration-samples", "8", "--checkpoint-steps", "2", "--threads", "1"])
        .args(["--flip", "--freeze-norms", "0.5", "--json", "-o", output])
        .args(more)
        .arg("--labels")
        .arg(demo.join("t10k-labels-idx1-ubyte.gz"))
        .arg("--data")
        .arg(demo.join("t10k-images-idx3-ubyte.gz"))
        .arg(demo.join("fashion_mobilenet.onnx"))
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn document(command: &mut Command) -> Value {
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

/// Steps that were done when a checkpoint was written: its header is text.
fn n_steps(checkpoint: &Path) -> u32 {
    let bytes = fs::read(checkpoint).unwrap();
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]).into_owned();
    let number = text.split("\"n_steps\":").nth(1).expect("the header has it");
    number[..number.find(',').unwrap()].parse().unwrap()
}

#[test]
fn killed_at_random_moments_and_resumed_it_writes_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let since = Instant::now();
    let whole = document(&mut train(folder, "whole.onnx", &[]));
    let time = since.elapsed();
    let expected = fs::read(folder.join("whole.onnx")).unwrap();

    let checkpoint = folder.join("killed.checkpoint");
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let (mut random, mut n_kills, mut n_done) = (u64::from(seed), 0, 0);
    // Each run gets at least to its first checkpoint, so that it cannot go on like this for ever.
    while n_kills < 4 {
        let before = fs::metadata(&checkpoint).and_then(|m| m.modified()).ok();
        let mut child = train(folder, "killed.onnx", &["--resume"]).spawn().unwrap();
        let is_new = || {
            let now = fs::metadata(&checkpoint).and_then(|m| m.modified()).ok();
            now.is_some() && now != before
        };
        while !is_new() && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1));
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        sleep(time.mul_f64((random >> 40) as f64 / f64::from(1 << 24) / 4.0));
        // SIGKILL: it has no time to tidy up.
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            break;
        }
        // It went on from where the last one was, and did not begin again.
        let n = n_steps(&checkpoint);
        assert!(n_done < n, "seed {seed}, kill {n_kills}: {n} steps after {n_done}");
        n_done = n;
        n_kills += 1;
    }
    assert!(0 < n_kills, "seed {seed}: it was done before it was killed");
    if checkpoint.exists() {
        let resumed = document(&mut train(folder, "killed.onnx", &["--resume"]));
        for key in ["best_epoch", "qat", "ptq", "recovered", "float"] {
            assert_eq!(resumed[key], whole[key], "{key}, seed {seed}, {n_kills} kills");
        }
        let losses = |run: &Value| -> Vec<Value> {
            let epochs = run["epochs"].as_array().unwrap();
            epochs.iter().map(|epoch| epoch["loss"].clone()).collect()
        };
        assert_eq!(losses(&resumed), losses(&whole));
    }
    let same = fs::read(folder.join("killed.onnx")).unwrap() == expected;
    assert!(same, "seed {seed}: other weights after {n_kills} kills");
    assert!(!checkpoint.exists(), "what is done needs no checkpoint");
}

#[test]
fn a_comparison_has_a_model_a_page_and_four_scores_for_each_width() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let more = ["--compare", "w8a8,w4a4", "--report", "page.html", "--recompute"];
    let all = document(&mut train(folder, "out.onnx", &more));
    let runs = all["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for run in runs {
        let name = run["name"].as_str().unwrap();
        for key in ["float", "ptq", "recovered", "qat"] {
            let score = run[key]["top1"].as_f64().unwrap();
            // 16 pictures: what is broken gets two of them.
            assert!((0.5..=1.0).contains(&score), "{name} {key}: {score}");
        }
        assert!(folder.join(format!("out.{name}.onnx")).exists());
        let page = fs::read_to_string(folder.join(format!("page.{name}.html"))).unwrap();
        let start = page.find("id=\"data\">").unwrap() + 10;
        let data = &page[start..][..page[start..].find("</script>").unwrap()];
        let data: Value = serde_json::from_str(data).unwrap();
        let titles: Vec<&Value> =
            data["charts"].as_array().unwrap().iter().map(|c| &c["title"]).collect();
        assert_eq!(titles, ["Loss", "Learning rate", "On the validation data"]);
        let variants = data["variants"].as_array().unwrap();
        assert_eq!(variants.len(), 4);
        assert!(variants.iter().all(|v| v["top1_interval"][0].as_f64() < v["top1"].as_f64()));
        // Float and trained are timed.
        assert!(
            variants[..2].iter().all(|v| 0.0 < v["latencies"][0]["median_ms"].as_f64().unwrap())
        );
        let nodes = data["nodes"].as_array().unwrap();
        assert!(nodes.iter().any(|n| n["status"] == "quantized") && data["tensors"].is_object());
    }
}
