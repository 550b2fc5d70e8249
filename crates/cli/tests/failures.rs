//! Bad input: each gets a message that names what is wrong, exit status 2, and leaves no file behind.

use midtread::graph::{AttrValue, DataType, Dim, Tensor, ValueId};
use midtread_testkit::npz;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

fn midtread(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_midtread"))
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs")
}

/// A folder with the demo's model and a few good samples.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(asset("fashion_mobilenet.onnx"), folder.path().join("model.onnx")).unwrap();
    let good = folder.path().join("good");
    fs::create_dir(&good).unwrap();
    for i in 0..3 {
        fs::write(
            good.join(format!("{i}.npy")),
            npy(&[1, 28, 28], |j| (j % 7) as f32 * 0.2 - 0.5 + i as f32 * 0.01),
        )
        .unwrap();
    }
    folder
}

fn asset(name: &str) -> PathBuf {
    midtread_testkit::root().join("assets/demo").join(name)
}

/// A float32 .npy file (format 1.0).
fn npy(dims: &[usize], value: impl Fn(usize) -> f32) -> Vec<u8> {
    let dims_text: String = dims.iter().map(|d| format!("{d},")).collect();
    let mut header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({dims_text}), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend((0..dims.iter().product()).flat_map(|i| value(i).to_le_bytes()));
    bytes
}

/// Runs `midtread quantize` with these arguments and checks the failure: status 2, every one of `words` in the
/// message, no output and no temporary file.
fn refuses(folder: &Path, args: &[&str], words: &[&str]) {
    let before = files(folder);
    let output = midtread(folder, &[&["quantize"], args, &["-o", "out.onnx"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: `{word}` is not in: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    assert_eq!(files(folder), before, "{args:?} left something behind");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn a_good_command_works_in_the_same_folder() {
    let folder = folder();
    let output = midtread(
        folder.path(),
        &["quantize", "model.onnx", "--data", "good", "-o", "out.onnx", "--json"],
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["samples"], 3);
    let bytes = fs::metadata(folder.path().join("out.onnx")).unwrap().len();
    assert_eq!(document["bytes_out"], bytes);
    assert!(bytes < document["bytes_in"].as_u64().unwrap());
    assert_eq!(files(folder.path()).len(), 3, "the model, the data and the result");
}

#[test]
fn models_that_cannot_be_read() {
    let folder = folder();
    let dir = folder.path();
    refuses(dir, &["absent.onnx", "--data", "good"], &["absent.onnx"]);
    fs::write(dir.join("text.onnx"), "this is not a model, whatever its name says").unwrap();
    refuses(dir, &["text.onnx", "--data", "good"], &["text.onnx"]);
    let whole = fs::read(dir.join("model.onnx")).unwrap();
    fs::write(dir.join("half.onnx"), &whole[..whole.len() / 2]).unwrap();
    refuses(dir, &["half.onnx", "--data", "good"], &["half.onnx"]);
    fs::write(dir.join("empty.onnx"), "").unwrap();
    refuses(dir, &["empty.onnx", "--data", "good"], &["empty.onnx"]);
}

#[test]
fn data_that_does_not_fit() {
    let folder = folder();
    let dir = folder.path();
    refuses(dir, &["model.onnx", "--data", "absent"], &["absent"]);
    fs::create_dir(dir.join("none")).unwrap();
    refuses(dir, &["model.onnx", "--data", "none"], &["none"]);

    fs::create_dir(dir.join("shape")).unwrap();
    fs::write(dir.join("shape/a.npy"), npy(&[1, 28, 27], |_| 0.0)).unwrap();
    refuses(dir, &["model.onnx", "--data", "shape"], &["a.npy", "27", "28"]);

    fs::create_dir(dir.join("nan")).unwrap();
    fs::write(dir.join("nan/a.npy"), npy(&[1, 28, 28], |_| f32::NAN)).unwrap();
    refuses(dir, &["model.onnx", "--data", "nan"], &["a.npy", "finite"]);

    let npz = |name: &str, arrays: &[(&str, &[usize])]| {
        fs::create_dir(dir.join(name)).unwrap();
        let arrays: Vec<_> = arrays
            .iter()
            .map(|&(key, dims)| {
                (key.to_owned(), Tensor::zeros(DataType::Float, dims.to_vec()).unwrap())
            })
            .collect();
        npz::write(&dir.join(name).join("a.npz"), &arrays);
    };
    npz("key", &[("pixels", &[1, 28, 28])]);
    refuses(dir, &["model.onnx", "--data", "key"], &["a.npz", "`input`", "`pixels`"]);
    npz("more", &[("input", &[1, 28, 28]), ("mask", &[3])]);
    refuses(dir, &["model.onnx", "--data", "more"], &["a.npz", "`mask`", "`input`"]);
    npz("size", &[("input", &[1, 28, 27])]);
    refuses(dir, &["model.onnx", "--data", "size"], &["a.npz", "`input`", "27", "28"]);
    // The same in one archive with samples along the leading axis.
    refuses(dir, &["model.onnx", "--data", "key/a.npz"], &["`input`", "`pixels`"]);
    refuses(dir, &["model.onnx", "--data", "size/a.npz"], &["`input`", "27", "28"]);

    fs::create_dir(dir.join("broken")).unwrap();
    fs::write(dir.join("broken/a.npy"), &npy(&[1, 28, 28], |_| 0.0)[..100]).unwrap();
    refuses(dir, &["model.onnx", "--data", "broken"], &["a.npy"]);
}

#[test]
fn options_that_are_not_known_or_contradict_each_other() {
    let folder = folder();
    let dir = folder.path();
    refuses(
        dir,
        &["model.onnx", "--data", "good", "--calibrator", "minmax"],
        &["minmax", "min_max"],
    );
    refuses(dir, &["model.onnx", "--data", "good", "--activations", "u17"], &["u17"]);
    refuses(dir, &["model.onnx", "--data", "good", "--target", "toaster"], &["toaster"]);
    refuses(dir, &["model.onnx", "--data", "good", "--exclude", "no_such_node"], &["no_such_node"]);
    refuses(dir, &["model.onnx", "--data", "good", "--without", "no_such_pass"], &["no_such_pass"]);
    refuses(dir, &["model.onnx", "--data", "good", "--max-memory", "lots"], &["lots"]);
    refuses(dir, &["model.onnx"], &["--data"]);
    refuses(dir, &["model.onnx", "--data", "good", "--scheme", "fast"], &["fast", "dynamic"]);
    refuses(dir, &["model.onnx", "--data", "good", "--format", "tflite"], &["tflite", "qdq"]);
    refuses(dir, &["model.onnx", "--data", "good", "--granularity", "blocked:0"], &["blocked:0"]);
    refuses(dir, &["model.onnx", "--data", "good", "--threads", "0"], &["--threads"]);
    refuses(dir, &["model.onnx", "--data", "good", "--calibrate", "mse"], &["--calibrate"]);
}

/// The message of a command that fails with status 2.
fn failure(dir: &Path, args: &[&str]) -> String {
    let output = midtread(dir, args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    stderr
}

#[test]
fn a_model_with_an_attribute_that_no_version_has_is_not_run_as_if_it_had_none() {
    let folder = folder();
    let dir = folder.path();
    let mut model = midtread::onnx::load(dir.join("model.onnx")).unwrap();
    let conv = model.graph.nodes.iter_mut().find(|node| node.is("Conv")).unwrap();
    let name = conv.name.clone();
    conv.set_attr("padding_mode", AttrValue::Int(1));
    midtread::onnx::save(&model, dir.join("later.onnx"), &Default::default()).unwrap();
    refuses(
        dir,
        &["later.onnx", "--data", "good"],
        &[&format!("`{name}`"), "Conv", "`padding_mode` is not supported"],
    );
}

#[test]
fn a_size_is_fixed_by_its_name_and_other_names_and_sizes_are_refused() {
    let folder = folder();
    let dir = folder.path();
    let fix = |dim: &str| midtread(dir, &["prepare", "model.onnx", "--dim", dim, "-o", "out.onnx"]);
    for dim in ["N=2", "input:0=2"] {
        let output = fix(dim);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let model = midtread::onnx::load(dir.join("out.onnx")).unwrap();
        let dims = |id: ValueId| model.graph.type_of(id).unwrap().dims().unwrap().to_vec();
        assert_eq!(dims(model.graph.inputs[0])[0], Dim::Known(2), "{dim}");
        assert_eq!(dims(model.graph.outputs[0]), [Dim::Known(2), Dim::Known(10)], "{dim}");
        fs::remove_file(dir.join("out.onnx")).unwrap();
    }
    let before = files(dir);
    for (dim, words) in [
        ("batch=2", &["`batch`", "`N`"][..]),
        ("input:7=2", &["`input:7`", "`N`"]),
        ("input:1=3", &["`input`", "is 1, not 3"]),
        ("N", &["NAME=SIZE"]),
        ("N=many", &["`many`"]),
        ("N=-1", &["`-1`"]),
    ] {
        let message = failure(dir, &["prepare", "model.onnx", "--dim", dim, "-o", "out.onnx"]);
        for word in words {
            assert!(message.contains(word), "--dim {dim}: `{word}` is not in: {message}");
        }
    }
    assert_eq!(files(dir), before);
}

#[test]
fn places_that_cannot_be_written() {
    let folder = folder();
    let dir = folder.path();
    fs::write(dir.join("file"), "").unwrap();
    let before = files(dir);
    // A folder that is not there, a folder that is a file, a folder in the file's place, and a device.
    let mut places = vec!["no/such/folder/out", "file/out", "good"];
    places.extend(Path::new("/dev/full").exists().then_some("/dev/full"));
    for place in places {
        for args in [
            &["quantize", "model.onnx", "--data", "good", "-o", place][..],
            &["quantize", "model.onnx", "--data", "good", "-o", "x.onnx", "--save-plan", place],
            &["quantize", "model.onnx", "--data", "good", "-o", "x.onnx", "--save-stats", place],
            &["calibrate", "model.onnx", "--data", "good", "-o", place],
            &["plan", "model.onnx", "--scheme", "weight_only", "-o", place],
            &["prepare", "model.onnx", "-o", place],
        ] {
            let message = failure(dir, args);
            assert!(message.contains(place), "{args:?}: {message}");
            assert_eq!(files(dir), before, "{args:?} left something behind");
        }
    }
}

/// A folder in which even root may write nothing: one without the permission, or else a filesystem mounted so.
#[cfg(unix)]
#[test]
fn a_read_only_folder_is_named_before_any_work() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let dir = folder.path();
    let locked = dir.join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    let is_writable = || tempfile::tempfile_in(&locked).is_ok();
    let mut is_mounted = false;
    if is_writable() {
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "ro", "tmpfs"]).arg(&locked).status();
        is_mounted = mount.is_ok_and(|status| status.success());
    }
    if is_writable() {
        println!("this user may write anywhere, and may not mount: not tested");
        return;
    }
    let results: Vec<_> = [
        &["quantize", "model.onnx", "--data", "good", "-o", "locked/out.onnx"][..],
        &["calibrate", "model.onnx", "--data", "good", "-o", "locked/out.stats"],
        &["prepare", "model.onnx", "-o", "locked/out.onnx"],
    ]
    .into_iter()
    .map(|args| (args, midtread(dir, args), files(&locked)))
    .collect();
    if is_mounted {
        let unmounted = Command::new("umount").arg(&locked).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
    for (args, output, left) in results {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(
            stderr.contains("locked/out") && stderr.contains("permissions"),
            "{args:?}: {stderr}"
        );
        assert!(left.is_empty(), "{args:?}: {left:?}");
    }
}

/// A small filesystem that fills up. Making one needs rights that not every machine gives: then this says so.
#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let folder = folder();
    let small = folder.path().join("small");
    fs::create_dir(&small).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&small).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("no right to mount a small filesystem here: not tested");
        return;
    }
    let output = midtread(
        folder.path(),
        &["quantize", "model.onnx", "--data", "good", "-o", "small/out.onnx"],
    );
    let left = files(&small);
    let unmounted = Command::new("umount").arg(&small).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("small/out.onnx"), "{stderr}");
    assert!(left.is_empty(), "{left:?}");
}

/// A disk that fills up for anyone, without a filesystem of its own: a limit on the size of files, whose signal is
/// ignored, so that the write that reaches it fails.
#[cfg(unix)]
#[test]
fn a_write_that_fails_half_way_leaves_nothing_half_written() {
    let folder = folder();
    let dir = folder.path();
    let before = files(dir);
    for args in [
        "quantize model.onnx --data good -o out.onnx",
        "prepare model.onnx -o out.onnx",
        "calibrate model.onnx --data good -o out.stats",
    ] {
        // Eight blocks of at most 1 KiB.
        let script = format!("trap '' XFSZ; ulimit -f 8; exec \"$0\" {args}");
        let output = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_midtread")])
            .current_dir(dir)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args}: {stderr}");
        assert!(stderr.contains("out.") && stderr.contains("File too large"), "{args}: {stderr}");
        assert_eq!(files(dir), before, "{args}");
    }
}

/// Waits until the process has its own way with an interruption: before that, one ends it at once.
#[cfg(unix)]
fn wait_until_caught(process: u32) {
    const INTERRUPT: u64 = 1 << (2 - 1);
    let pause = || std::thread::sleep(std::time::Duration::from_millis(100));
    for _ in 0..300 {
        let status = fs::read_to_string(format!("/proc/{process}/status"));
        let caught = status.ok().and_then(|status| {
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        });
        if caught.is_some_and(|mask| mask & INTERRUPT != 0) {
            break;
        }
        if caught.is_none() {
            // Not Linux: half a second is enough to start.
            std::thread::sleep(std::time::Duration::from_millis(400));
            break;
        }
        pause();
    }
    pause();
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_with_status_2_and_no_file() {
    let folder = folder();
    let dir = folder.path();
    // Enough samples that the signal arrives while they are measured.
    let many = dir.join("many");
    fs::create_dir(&many).unwrap();
    for i in 0..4000 {
        fs::write(
            many.join(format!("{i:04}.npy")),
            npy(&[1, 28, 28], |j| ((i + j) % 11) as f32 * 0.1),
        )
        .unwrap();
    }
    let before = files(dir);
    let child = Command::new(env!("CARGO_BIN_EXE_midtread"))
        .args([
            "quantize",
            "model.onnx",
            "--data",
            "many",
            "-o",
            "out.onnx",
            "--calibrator",
            "mse",
            "--threads",
            "1",
        ])
        .current_dir(dir)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until_caught(child.id());
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.is_ok_and(|status| status.success()));
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("interrupted"), "{stderr}");
    assert_eq!(files(dir), before);
}
