//! Pictures against Pillow, arrays against NumPy.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use midtread_data::{InputSpec, Options, Preprocess, open, write::write_npy};
use midtread_graph::{DataType, Tensor};
use midtread_testkit::{asset, root};

fn spec(dtype: DataType, dims: &[Option<usize>]) -> Vec<InputSpec> {
    vec![InputSpec { name: "x".to_owned(), dtype, dims: Some(dims.to_vec()), required: true }]
}

fn python(args: &[&Path]) -> String {
    let python = std::env::var_os("MIDTREAD_PYTHON")
        .map_or_else(|| root().join("target/venv/bin/python"), PathBuf::from);
    assert!(
        python.exists(),
        "{} is missing: run the tests with `cargo xtask test`",
        python.display()
    );
    let output = Command::new(python).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn made_by_python() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    python(&[&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pillow.py"), folder.path()]);
    folder
}

fn one(path: &Path, specs: &[InputSpec], preprocess: Option<&Preprocess>) -> Tensor {
    let options = Options { preprocess: preprocess.cloned(), limit: None };
    let source = open(path, specs, &options).unwrap_or_else(|e| panic!("{e}"));
    let sample =
        source.sample(0).unwrap_or_else(|e| panic!("{e}: {:?}", std::error::Error::source(&e)));
    sample.inputs.into_iter().next().unwrap().1
}

/// The largest difference in gray levels, and the share of values that differ at all.
fn compare(ours: &Tensor, theirs: &Tensor, gray_level: f32) -> (f32, f64) {
    assert_eq!(ours.dims(), theirs.dims());
    let (a, b) = (ours.as_slice::<f32>().unwrap(), theirs.as_slice::<f32>().unwrap());
    let levels = |(x, y): (&f32, &f32)| ((x - y) / gray_level).abs();
    let max = a.iter().zip(b).map(levels).fold(0.0, f32::max);
    let n = a.iter().zip(b).map(levels).filter(|&d| 0.5 < d).count();
    (max, n as f64 / a.len() as f64)
}

#[test]
fn pictures_are_decoded_and_resampled_as_pillow_does_it() {
    let folder = made_by_python();
    let path = |name: &str| folder.path().join(name);
    let any = spec(DataType::Float, &[None, None, None, None]);
    let mut cases = Vec::new();
    for filter in ["nearest", "bilinear", "bicubic", "lanczos"] {
        let steps = format!("steps = [{{ resize = [64, 96], filter = \"{filter}\" }}]");
        cases.push((format!("resize_{filter}"), steps));
        let steps = format!(
            "steps = [{{ resize_shorter_side = 73, filter = \"{filter}\" }}, {{ center_crop = [64, 64] }}]"
        );
        cases.push((format!("shorter_{filter}"), steps));
    }
    cases.push(("gray".to_owned(), "color = \"gray\"".to_owned()));
    cases.push(("rgb".to_owned(), String::new()));
    for (case, text) in cases {
        let preprocess = Preprocess::from_toml(&text, &case).unwrap();
        for picture in
            ["smooth", "noise", "alpha", "gray", "gray_alpha", "palette", "bits", "small"]
        {
            let ours = one(&path(&format!("pictures/{picture}.png")), &any, Some(&preprocess));
            let theirs = one(&path(&format!("{case}/{picture}.npy")), &any, None);
            assert!(ours == theirs, "{case}, {picture}: {:?}", compare(&ours, &theirs, 1.0));
        }
    }
}

#[test]
fn efficientnets_pictures_are_those_that_pillow_makes() {
    let preprocess = Preprocess::preset("efficientnet_lite").unwrap();
    let specs = spec(DataType::Float, &[None, Some(3), Some(224), Some(224)]);
    let options = Options { preprocess: Some(preprocess), limit: Some(40) };
    let ours = open(asset("tuxpaint"), &specs, &options).unwrap();
    let theirs = open(asset("lite0_npy"), &specs, &options).unwrap();
    let mut largest = 0.0_f32;
    let mut differing = 0.0;
    for i in 0..ours.n_samples() {
        let (a, b) = (ours.sample(i).unwrap(), theirs.sample(i).unwrap());
        assert_eq!(a.name.rsplit_once('.').unwrap().0, b.name.rsplit_once('.').unwrap().0);
        assert_eq!(a.inputs[0].1.dims(), [1, 3, 224, 224]);
        let (max, share) = compare(&a.inputs[0].1, &b.inputs[0].1, 1.0 / 128.0);
        largest = largest.max(max);
        differing += share / ours.n_samples() as f64;
    }
    println!("at most {largest} levels; {:.4} % of the values differ", 100.0 * differing);
    assert_eq!((largest, differing), (0.0, 0.0));
}

#[test]
fn arrays_are_what_numpy_wrote() {
    let folder = made_by_python();
    let path = |name: &str| folder.path().join("arrays").join(name);
    let whole = [Some(2), Some(3), Some(4)];
    let types = [
        ("f2", DataType::Float16),
        ("f4", DataType::Float),
        ("f8", DataType::Double),
        ("i1", DataType::Int8),
        ("i2", DataType::Int16),
        ("i4", DataType::Int32),
        ("i8", DataType::Int64),
        ("u1", DataType::Uint8),
        ("u2", DataType::Uint16),
        ("u4", DataType::Uint32),
        ("u8", DataType::Uint64),
        ("bool", DataType::Bool),
        ("c8", DataType::Complex64),
        ("c16", DataType::Complex128),
        ("big_f4", DataType::Float),
        ("big_i2", DataType::Int16),
    ];
    for (name, dtype) in types {
        // One size more than the file: it is one sample.
        let specs = spec(dtype, &[&[None][..], &whole].concat());
        let tensor = one(&path(&format!("{name}.npy")), &specs, None);
        assert_eq!((tensor.dtype(), tensor.dims()), (dtype, &[1, 2, 3, 4][..]));
        match name {
            "f4" | "big_f4" => {
                assert_eq!(
                    tensor.to_vec::<f32>().unwrap(),
                    (0..24).map(|i| i as f32).collect::<Vec<_>>()
                );
            }
            "i2" | "big_i2" => {
                assert_eq!(tensor.to_vec::<i16>().unwrap(), (0..24).collect::<Vec<_>>())
            }
            "bool" => assert_eq!(tensor.as_bytes()[..3], [0, 1, 1]),
            _ => {}
        }
    }
    let float = spec(DataType::Float, &[None, Some(3), Some(4)]);
    for name in ["f4.npy", "fortran.npy", "unnamed.npz"] {
        let source = open(path(name), &float, &Options::default()).unwrap();
        assert_eq!(source.names(), [format!("{name}[0]"), format!("{name}[1]")]);
        let second = source.sample(1).unwrap();
        assert_eq!(second.inputs[0].1.dims(), [1, 3, 4], "{name}");
        assert_eq!(
            second.inputs[0].1.to_vec::<f32>().unwrap(),
            (12..24).map(|i| i as f32).collect::<Vec<_>>()
        );
    }
    let mut both = spec(DataType::Float, &[None, Some(3), Some(4)]);
    both[0].name = "a".to_owned();
    both.push(InputSpec {
        name: "b".to_owned(),
        dtype: DataType::Int64,
        dims: Some(vec![None]),
        required: true,
    });
    for name in ["stored.npz", "packed.npz"] {
        let source = open(path(name), &both, &Options::default()).unwrap();
        let second = source.sample(1).unwrap();
        assert_eq!(
            second.inputs[0].1.to_vec::<f32>().unwrap(),
            (12..24).map(|i| i as f32).collect::<Vec<_>>()
        );
        assert_eq!(second.inputs[1].1.to_vec::<i64>().unwrap(), [1]);
        assert_eq!(second.inputs[1].1.dims(), [1]);
    }
    let scalar = one(&path("scalar.npy"), &spec(DataType::Float, &[]), None);
    assert_eq!((scalar.dims(), scalar.item::<f32>()), (&[][..], Some(7.0)));
}

#[test]
fn numpy_reads_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..6).map(|i| i as f32 - 2.5).collect();
    let tensors = [
        ("scores/0:x", Tensor::from_slice(vec![2, 3], &values).unwrap()),
        ("scalar", Tensor::scalar(7_i64)),
        ("vector", Tensor::vector(&[1_u8, 2])),
        (
            "brain",
            Tensor::from_slice(vec![2], &[half::bf16::from_f32(1.5), half::bf16::from_f32(-3.0)])
                .unwrap(),
        ),
        ("empty", Tensor::from_slice::<f32>(vec![0, 3], &[]).unwrap()),
    ];
    for (name, tensor) in &tensors {
        write_npy(&folder.path().join("made"), name, tensor).unwrap();
    }
    let script = folder.path().join("read.py");
    std::fs::write(
        &script,
        "import sys, numpy as np\n\
         for n in ['scores_0_x', 'scalar', 'vector', 'brain', 'empty']:\n\
         \x20   a = np.load(f'{sys.argv[1]}/{n}.npy'); print(n, a.dtype, a.shape, a.ravel().tolist())\n",
    )
    .unwrap();
    let text = python(&[&script, &folder.path().join("made")]);
    let expected = "scores_0_x float32 (2, 3) [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]\n\
                    scalar int64 () [7]\n\
                    vector uint8 (2,) [1, 2]\n\
                    brain float32 (2,) [1.5, -3.0]\n\
                    empty float32 (0, 3) []\n";
    assert_eq!(text, expected);
}
