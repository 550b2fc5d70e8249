//! What is promised about sources, on files made here.

use std::{error::Error as _, fs, path::PathBuf};

use flate2::{Compression, write::GzEncoder};
use image::{DynamicImage, GrayImage, ImageBuffer, ImageFormat, Luma, Rgb, RgbImage};
use midtread_graph::{DataType, Dim, Model, Tensor, Type};
use tempfile::TempDir;

use crate::{
    Error, InputSpec, Labels, Options, PRESETS, Preprocess, Source, open, preprocess::Step, random,
    test_sets, write::write_npy,
};

fn input(name: &str, dtype: DataType, dims: &[Option<usize>]) -> InputSpec {
    InputSpec { name: name.to_owned(), dtype, dims: Some(dims.to_vec()), required: true }
}

fn pictures_spec() -> Vec<InputSpec> {
    vec![input("image", DataType::Float, &[None, Some(3), Some(4), Some(4)])]
}

fn with(preprocess: &str) -> Options {
    Options { preprocess: Some(Preprocess::from_toml(preprocess, "test").unwrap()), limit: None }
}

fn plain() -> Options {
    Options::default()
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn picture(&self, name: &str, format: ImageFormat) {
        let picture = RgbImage::from_fn(4, 4, |x, y| Rgb([x as u8 * 10, y as u8 * 20, 200]));
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        picture.save_with_format(self.path(name), format).unwrap();
    }

    fn npy(&self, name: &str, tensor: &Tensor) {
        let path = self.path(name);
        let folder = path.parent().unwrap();
        write_npy(folder, path.file_stem().unwrap().to_str().unwrap(), tensor).unwrap();
    }
}

fn message(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn refusal<T>(result: Result<T, Error>) -> String {
    message(&result.err().expect("refused"))
}

fn values(source: &dyn Source, i: usize) -> Vec<f32> {
    source.sample(i).unwrap().inputs[0].1.to_vec().unwrap()
}

fn floats(dims: &[usize]) -> Tensor {
    let n = dims.iter().product();
    Tensor::from_slice(dims.to_vec(), &(0..n).map(|i| i as f32).collect::<Vec<_>>()).unwrap()
}

#[test]
fn pictures_are_found_at_any_depth_in_the_order_of_their_names() {
    let folder = Folder::new();
    folder.picture("b/x.png", ImageFormat::Png);
    folder.picture("a.JPEG", ImageFormat::Jpeg);
    folder.picture("b/a/z.bmp", ImageFormat::Bmp);
    folder.picture("c.webp", ImageFormat::WebP);
    // The wrong extension, which is common, and things that are not data.
    folder.picture("d.jpg", ImageFormat::Png);
    folder.write("labels.csv", "a,1");
    folder.write(".hidden.png", "");
    folder.write("b/.git/x.png", "");
    let source = open(folder.0.path(), &pictures_spec(), &with("")).unwrap();
    assert_eq!(source.names(), ["a.JPEG", "b/a/z.bmp", "b/x.png", "c.webp", "d.jpg"]);
    for i in 0..source.n_samples() {
        let sample = source.sample(i).unwrap();
        assert_eq!(sample.name, source.names()[i]);
        assert_eq!(
            (sample.inputs[0].0.as_str(), sample.inputs[0].1.dims()),
            ("image", &[1, 3, 4, 4][..])
        );
    }
    let first_two = Options { limit: Some(2), ..with("") };
    assert_eq!(
        open(folder.0.path(), &pictures_spec(), &first_two).unwrap().names(),
        ["a.JPEG", "b/a/z.bmp"]
    );
    assert_eq!(
        open(folder.path("c.webp"), &pictures_spec(), &with("")).unwrap().names(),
        ["c.webp"]
    );
}

#[test]
fn samples_can_be_read_from_several_threads() {
    let folder = Folder::new();
    (0..8).for_each(|i| folder.picture(&format!("{i}.png"), ImageFormat::Png));
    let source = open(folder.0.path(), &pictures_spec(), &with("")).unwrap();
    let source = &source;
    std::thread::scope(|scope| {
        for i in 0..8 {
            scope.spawn(move || assert_eq!(source.sample(i).unwrap().name, format!("{i}.png")));
        }
    });
}

#[test]
fn numbers_layout_and_color_are_as_described() {
    let folder = Folder::new();
    folder.picture("x.png", ImageFormat::Png);
    let read = |text: &str, dims: [usize; 3]| {
        let dims: Vec<_> = [None].into_iter().chain(dims.map(Some)).collect();
        let source =
            open(folder.path("x.png"), &[input("i", DataType::Float, &dims)], &with(text)).unwrap();
        values(&*source, 0)
    };
    let nchw = read("", [3, 4, 4]);
    // Pixel (y 1, x 2) is 20, 20, 200.
    assert_eq!([nchw[6], nchw[16 + 6], nchw[32 + 6]], [20.0, 20.0, 200.0]);
    // The shape alone says where the channels are.
    let nhwc = read("", [4, 4, 3]);
    assert_eq!(nhwc[3 * 6..3 * 7], [20.0, 20.0, 200.0]);
    assert_eq!(read("layout = 'nhwc'", [4, 4, 3]), nhwc);
    let bgr = read("color = 'bgr'", [3, 4, 4]);
    assert_eq!((&bgr[..16], &bgr[32..]), (&nchw[32..], &nchw[..16]));
    // (19595 * 20 + 38470 * 20 + 7471 * 200 + 32768) / 65536
    assert_eq!(read("color = 'gray'", [1, 4, 4])[6], 41.0);
    let scaled = read("divisor = 255\nmean = [0.5, 0.25, 0.0]\nstd = 2.0", [3, 4, 4]);
    let expected =
        [(20.0_f32 / 255.0 - 0.5) / 2.0, (20.0_f32 / 255.0 - 0.25) / 2.0, 200.0_f32 / 255.0 / 2.0];
    assert_eq!([scaled[6], scaled[16 + 6], scaled[32 + 6]], expected);

    // A model that takes bytes gets them, if they stay bytes.
    let bytes = [input("i", DataType::Uint8, &[Some(1), Some(4), Some(4), Some(3)])];
    let sample = open(folder.path("x.png"), &bytes, &with("")).unwrap().sample(0).unwrap();
    assert_eq!(sample.inputs[0].1.as_bytes()[3 * 6..3 * 7], [20, 20, 200]);
    let text = refusal(open(folder.path("x.png"), &bytes, &with("divisor = 2")).unwrap().sample(0));
    assert!(
        text.contains("x.png`: the model takes bytes, and `test` makes other numbers of them"),
        "{text}"
    );

    let halves = [input("i", DataType::Float16, &[Some(1), Some(3), Some(4), Some(4)])];
    let sample = open(folder.path("x.png"), &halves, &with("")).unwrap().sample(0).unwrap();
    assert_eq!(sample.inputs[0].1.to_vec::<half::f16>().unwrap()[6].to_f32(), 20.0);
}

#[test]
fn crops_are_where_torchvision_and_tensorflow_cut() {
    // One row of pixels that know their places.
    let row = |n: u32| {
        let picture = GrayImage::from_fn(n, n, |x, _| Luma([x as u8]));
        crate::preprocess::Pixels::from(DynamicImage::from(picture))
    };
    let spec = InputSpec { dims: None, ..input("i", DataType::Float, &[]) };
    let cut = |step: Step, n: u32| {
        let preprocess = Preprocess {
            steps: vec![step],
            ..Preprocess::from_toml("color = 'gray'", "t").unwrap()
        };
        let tensor = preprocess.apply(row(n), &spec).unwrap();
        let values = tensor.to_vec::<f32>().unwrap();
        let width = tensor.dims()[2];
        (values[0], values[width - 1])
    };
    let center = Step::CenterCrop { height: 4, width: 4 };
    assert_eq!(cut(center, 8), (2.0, 5.0));
    // Half a pixel: 0.5 rounds to 0, 1.5 to 2.
    assert_eq!(cut(center, 5), (0.0, 3.0));
    assert_eq!(cut(center, 7), (2.0, 5.0));
    assert_eq!(cut(Step::CenterCropFraction(0.875), 256), (16.0, 239.0));
    // 0.875 * 100 = 87.5; what is left over is 13, of which TensorFlow takes 7 first.
    assert_eq!(cut(Step::CenterCropFraction(0.875), 100), (7.0, 93.0));
    let small = Preprocess { steps: vec![center], ..Preprocess::from_toml("", "t").unwrap() };
    let text = small.apply(row(3), &spec).unwrap_err();
    assert_eq!(text, "a 3 x 3 picture (height x width) is smaller than the crop of 4 x 4");
}

#[test]
fn every_preset_keeps_the_laws_and_toml_can_say_what_it_says() {
    let mut names = Vec::new();
    for preset in PRESETS {
        let made = (preset.make)();
        assert_eq!(made.name, preset.name);
        names.push(preset.name);
        let picture = ImageBuffer::<Rgb<u8>, _>::from_pixel(300, 280, Rgb([10_u8, 200, 30]));
        let spec = InputSpec { dims: None, ..input("i", DataType::Float, &[]) };
        let tensor = made.apply(DynamicImage::from(picture).into(), &spec).unwrap();
        let values = tensor.to_vec::<f32>().unwrap();
        assert!(values.iter().all(|x| x.is_finite()), "{}", preset.name);
        // One color everywhere stays one color.
        let plane = values.len() / tensor.dims()[0];
        assert!(values.chunks(plane).all(|c| c.iter().all(|x| *x == c[0])), "{}", preset.name);
        let again =
            Preprocess::from_toml(&format!("preset = '{}'", preset.name), preset.name).unwrap();
        assert_eq!(again, made);
        assert_eq!(Preprocess::find(preset.name).unwrap(), made);
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), PRESETS.len());

    let text = "color = 'rgb'\ndivisor = 255\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n\
                steps = [{ resize_shorter_side = 256, filter = 'bilinear' }, { center_crop = [224, 224] }]";
    assert_eq!(
        Preprocess::from_toml(text, "imagenet").unwrap(),
        Preprocess::preset("imagenet").unwrap()
    );
}

#[test]
fn preprocessings_that_make_no_sense_are_refused_by_name() {
    for (text, expected) in [
        ("means = [1]", "unknown field `means`"),
        ("preset = 'imagnet'", "there is no preset `imagnet`"),
        ("mean = [1, 2]", "`mean` has 2 values for 3 channels"),
        ("color = 'gray'\nstd = [1, 2, 3]", "`std` has 3 values for 1 channels"),
        ("std = 0.0", "`std` and `divisor` must not be 0"),
        ("mean = nan", "`mean` must be finite"),
        ("steps = [{ resize = [4, 4] }]", "a resize needs a `filter`"),
        ("steps = [{ center_crop = [4, 4], filter = 'bicubic' }]", "a crop has no `filter`"),
        ("steps = [{ center_crop = [0, 4] }]", "sizes must lie in 1..=16384"),
        ("steps = [{ center_crop_fraction = 1.5 }]", "must lie in (0, 1]: 1.5"),
        ("steps = [{}]", "a step has one of"),
        ("steps = [{ resize = [4, 4], filter = 'cubic' }]", "unknown variant `cubic`"),
        ("color = ", "TOML parse error"),
    ] {
        let text = refusal(Preprocess::from_toml(text, "my.toml"));
        assert!(text.starts_with("preprocessing `my.toml`: ") && text.contains(expected), "{text}");
    }
    let text = refusal(Preprocess::find("imagenett"));
    assert!(
        text.contains("`imagenett`: there is no such preset or file; the presets are imagenet,"),
        "{text}"
    );
}

#[test]
fn broken_pictures_and_empty_folders_are_named() {
    let folder = Folder::new();
    let text = refusal(open(folder.path("missing"), &pictures_spec(), &plain()));
    assert!(text.contains("missing` cannot be read: No such file"), "{text}");
    let error = open(folder.0.path(), &pictures_spec(), &with("")).err().unwrap();
    assert!(matches!(&error, Error::NoData { .. }), "{error}");
    assert!(error.hint().unwrap().contains("png"));

    folder.picture("whole.png", ImageFormat::Png);
    let bytes = fs::read(folder.path("whole.png")).unwrap();
    folder.write("cut.png", &bytes[..bytes.len() / 2]);
    folder.write("text.png", "hello");
    folder.write("empty.png", "");
    let source = open(folder.0.path(), &pictures_spec(), &with("")).unwrap();
    assert_eq!(source.names(), ["cut.png", "empty.png", "text.png", "whole.png"]);
    for (i, name) in source.names().iter().enumerate().take(3) {
        let text = refusal(source.sample(i));
        assert!(
            text.starts_with("picture `") && text.contains(&format!("{name}` cannot be decoded: ")),
            "{text}"
        );
    }
    source.sample(3).unwrap();

    let text = refusal(open(folder.0.path(), &pictures_spec(), &plain()));
    assert!(
        text.ends_with("holds pictures, and how to turn them into numbers is not given"),
        "{text}"
    );
    let two = [pictures_spec(), vec![input("mask", DataType::Float, &[None])]].concat();
    assert_eq!(
        refusal(open(folder.0.path(), &two, &with(""))),
        "pictures are one tensor, and the model has 2 inputs"
    );
    folder.npy("x.npy", &floats(&[2]));
    let text = refusal(open(folder.0.path(), &pictures_spec(), &with("")));
    assert!(text.ends_with("holds both pictures and .npy files"), "{text}");
}

#[test]
fn a_wrong_name_type_or_shape_says_what_was_expected_and_found() {
    let folder = Folder::new();
    folder.npy("f.npy", &floats(&[5, 3]));
    let path = folder.path("f.npy");
    let first = |specs: &[InputSpec]| open(&path, specs, &plain()).unwrap().sample(0).map(drop);
    first(&[input("x", DataType::Float, &[None, Some(3)])]).unwrap();
    assert_eq!(
        refusal(first(&[input("x", DataType::Int64, &[None, Some(3)])])),
        "sample `f.npy[0]`, input `x`: the model takes int64, and the data is float"
    );
    assert_eq!(
        refusal(first(&[input("x", DataType::Float, &[None, Some(4)])])),
        "sample `f.npy[0]`, input `x`: the model takes [?, 4], and the data is [3]"
    );
    assert_eq!(
        refusal(first(&[input("x", DataType::Float, &[Some(8), Some(3)])])),
        "sample `f.npy[0]`, input `x`: the model takes [8, 3], and the data is [3]"
    );

    fs::create_dir(folder.path("sets")).unwrap();
    folder.npy("sets/0/ids.npy", &Tensor::vector(&[1_i64, 2]));
    folder.npy("sets/0/mask.npy", &Tensor::vector(&[1_i64, 1]));
    folder.npy("sets/1/ids.npy", &Tensor::vector(&[1_i64, 2, 3]));
    let specs = |names: &[&str]| -> Vec<InputSpec> {
        names.iter().map(|name| input(name, DataType::Int64, &[None, None])).collect()
    };
    let source = open(folder.path("sets"), &specs(&["ids", "mask"]), &plain()).unwrap();
    assert_eq!(source.names(), ["0", "1"]);
    let inputs = source.sample(0).unwrap().inputs;
    assert_eq!((inputs[0].0.as_str(), inputs[1].0.as_str()), ("ids", "mask"));
    assert_eq!(inputs[0].1.dims(), [1, 2]);
    assert_eq!(
        refusal(source.sample(1)),
        "sample `1` has nothing for the input `mask`; it has `ids`"
    );
    let source = open(folder.path("sets"), &specs(&["ids", "token_type_ids"]), &plain()).unwrap();
    assert_eq!(
        refusal(source.sample(0)),
        "sample `0` has nothing for the input `token_type_ids`; it has `ids`, `mask`"
    );
    let mut optional = specs(&["ids", "other", "third"]);
    optional[2].required = false;
    optional[1].required = false;
    let source = open(folder.path("sets"), &optional, &plain()).unwrap();
    assert_eq!(
        refusal(source.sample(0)),
        "sample `0` has `mask`, which is no input of the model; those are `ids`, `other`, `third`"
    );
    assert_eq!(source.sample(1).unwrap().inputs.len(), 1, "what is optional may be missing");
}

#[test]
fn arrays_for_several_inputs_may_be_stacked_in_a_folder() {
    let folder = Folder::new();
    folder.npy("a_0.npy", &floats(&[3, 2]));
    folder.npy("b.npy", &floats(&[3]));
    // A file cannot be called `a:0`.
    let specs =
        [input("a:0", DataType::Float, &[None, Some(2)]), input("b", DataType::Float, &[Some(1)])];
    let source = open(folder.0.path(), &specs, &plain()).unwrap();
    assert_eq!(source.n_samples(), 3);
    let sample = source.sample(2).unwrap();
    assert_eq!(sample.inputs[0].1.to_vec::<f32>().unwrap(), [4.0, 5.0]);
    assert_eq!(sample.inputs[1].1.to_vec::<f32>().unwrap(), [2.0]);
    folder.npy("b.npy", &floats(&[4]));
    let text = refusal(open(folder.0.path(), &specs, &plain()));
    assert!(text.ends_with("holds 3 samples of `a:0` and 4 of `b`"), "{text}");
}

#[test]
fn a_folder_of_arrays_has_a_sample_a_file_of_any_batch() {
    let folder = Folder::new();
    folder.npy("one.npy", &floats(&[2]));
    folder.npy("three.npy", &floats(&[3, 2]));
    let source =
        open(folder.0.path(), &[input("x", DataType::Float, &[None, Some(2)])], &plain()).unwrap();
    assert_eq!(source.names(), ["one.npy", "three.npy"]);
    assert_eq!(source.sample(0).unwrap().inputs[0].1.dims(), [1, 2]);
    assert_eq!(source.sample(1).unwrap().inputs[0].1.dims(), [3, 2]);
}

#[test]
fn data_without_a_finite_number_is_refused() {
    let folder = Folder::new();
    folder.npy("x.npy", &Tensor::vector(&[f32::NAN, f32::INFINITY, f32::NAN]));
    folder.npy("y.npy", &Tensor::vector(&[f32::NAN, 1.0, f32::NAN]));
    let source = open(folder.0.path(), &[input("i", DataType::Float, &[None])], &plain()).unwrap();
    assert_eq!(
        refusal(source.sample(0)),
        "sample `x.npy`, input `i`: none of its 3 values is finite"
    );
    source.sample(1).unwrap();
}

#[test]
fn damaged_arrays_are_refused_by_name_and_allocate_nothing() {
    let folder = Folder::new();
    folder.npy("good.npy", &floats(&[4, 2]));
    let good = fs::read(folder.path("good.npy")).unwrap();
    let specs = [input("x", DataType::Float, &[None, Some(2)])];
    let header = |text: &str| {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes
    };
    for (name, bytes, expected) in [
        ("empty", vec![], "it ends too early"),
        ("text", b"hello world".to_vec(), "it is not a .npy file"),
        ("cut", good[..good.len() - 1].to_vec(), "[4, 2] needs 32 bytes, and the file has 31"),
        (
            "version",
            b"\x93NUMPY\x09\x00\x00\x00".to_vec(),
            "version 9 of the .npy format is not known",
        ),
        (
            "huge_header",
            b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(),
            "its header is longer than 1 MiB",
        ),
        (
            "huge",
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 2)}"),
            "[1099511627776, 2] needs 8796093022208 bytes, and the file has 0",
        ),
        (
            "overflow",
            header(
                "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4611686018427387904)}",
            ),
            "more elements than can be addressed",
        ),
        (
            "record",
            header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}"),
            "arrays of records",
        ),
        (
            "object",
            header("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}"),
            "type `|O` are not supported",
        ),
        (
            "shape",
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,x)}"),
            "size `x` is no number",
        ),
        (
            "no_shape",
            header("{'descr': '<f4', 'fortran_order': False}"),
            "its header has no `shape`",
        ),
    ] {
        let path = folder.write(&format!("{name}/{name}.npy"), bytes);
        let last = open(&path, &specs, &plain())
            .and_then(|source| source.sample(source.n_samples().min(4) - 1));
        let text = refusal(last);
        assert!(
            text.contains(&format!("{name}.npy`")) && text.contains(expected),
            "{name}: {text}"
        );
    }
    for (name, bytes) in [("a.npz", &b"PK\x03\x04"[..]), ("b.npz", b"no archive"), ("c.npz", b"")] {
        let path = folder.write(name, bytes);
        let text = refusal(open(&path, &specs, &plain()));
        assert!(text.contains(name) && text.contains("not a usable .npz file"), "{text}");
    }
}

fn idx(code: u8, dims: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0, code, dims.len() as u8];
    out.extend(dims.iter().flat_map(|d| d.to_be_bytes()));
    out.extend(bytes);
    out
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    std::io::Write::write_all(&mut out, bytes).unwrap();
    out.finish().unwrap()
}

#[test]
fn idx_files_are_images_and_labels_by_position() {
    let folder = Folder::new();
    let images = idx(8, &[2, 2, 3], &[0, 1, 2, 3, 4, 5, 10, 20, 30, 40, 50, 60]);
    folder.write("t-images-idx3-ubyte.gz", gzip(&images));
    folder.write("t-labels-idx1-ubyte.gz", gzip(&idx(8, &[2], &[7, 3])));
    let specs = [input("x", DataType::Float, &[None, Some(1), Some(2), Some(3)])];
    let half = with("color = 'gray'\ndivisor = 2");
    // The folder has one file of images; labels are no samples.
    for path in [folder.0.path().to_owned(), folder.path("t-images-idx3-ubyte.gz")] {
        let source = open(&path, &specs, &half).unwrap();
        assert_eq!(source.names(), ["t-images-idx3-ubyte.gz[0]", "t-images-idx3-ubyte.gz[1]"]);
        assert_eq!(values(&*source, 1), [5.0, 10.0, 15.0, 20.0, 25.0, 30.0]);
    }
    let labels = Labels::open(folder.path("t-labels-idx1-ubyte.gz")).unwrap();
    assert_eq!((labels.get(1, "whatever"), labels.get(2, "whatever")), (Some(&[3][..]), None));

    let error = open(folder.0.path(), &specs, &plain()).err().unwrap();
    assert!(matches!(error, Error::NoPreprocess { .. }), "{error}");
    // A model that takes bytes gets them without being asked how.
    let bytes = [input("x", DataType::Uint8, &[None, Some(2), Some(3)])];
    let source = open(folder.0.path(), &bytes, &plain()).unwrap();
    assert_eq!(source.sample(1).unwrap().inputs[0].1.as_bytes(), [10, 20, 30, 40, 50, 60]);

    // Big-endian, as all of the format.
    let shorts = folder.write("s-idx1-short", idx(0x0b, &[2], &[1, 2, 0xff, 0xfe]));
    let specs = [input("x", DataType::Int16, &[Some(1)])];
    let source = open(shorts, &specs, &plain()).unwrap();
    assert_eq!(source.sample(1).unwrap().inputs[0].1.to_vec::<i16>().unwrap(), [-2]);
    assert_eq!(source.sample(0).unwrap().inputs[0].1.to_vec::<i16>().unwrap(), [258]);

    for (name, bytes) in [
        ("cut-idx3-ubyte", images[..20].to_vec()),
        ("cut-idx3-ubyte.gz", gzip(&images)[..30].to_vec()),
        ("empty-idx3-ubyte", idx(8, &[u32::MAX, 0, 1], &[])),
        ("huge-idx3-ubyte", idx(8, &[u32::MAX, u32::MAX, 1], &[])),
    ] {
        let path = folder.write(name, bytes);
        let text = refusal(open(&path, &specs, &half));
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn onnx_test_data_sets_are_read_by_number_and_by_name() {
    let folder = Folder::new();
    let notes = |name: &str| midtread_graph::Notes { name: name.to_owned(), ..Default::default() };
    let tensor = |name: &str, x: f32| {
        midtread_onnx::tensor_to_bytes(&Tensor::vector(&[x]).with_notes(notes(name)))
    };
    for i in [0, 2, 10] {
        folder.write(&format!("test_data_set_{i}/input_0.pb"), tensor("b", i as f32));
        folder.write(&format!("test_data_set_{i}/input_1.pb"), tensor("a", 100.0));
        folder.write(&format!("test_data_set_{i}/output_0.pb"), tensor("y", 1.0));
    }
    let specs = [input("a", DataType::Float, &[Some(1)]), input("b", DataType::Float, &[Some(1)])];
    let source = open(folder.0.path(), &specs, &plain()).unwrap();
    assert_eq!(source.names(), ["0_test_data_set_0", "1_test_data_set_2", "2_test_data_set_10"]);
    let inputs = source.sample(2).unwrap().inputs;
    assert_eq!((inputs[0].0.as_str(), inputs[0].1.item::<f32>()), ("a", Some(100.0)), "by name");
    assert_eq!(inputs[1].1.item::<f32>(), Some(10.0));
    let set = folder.path("test_data_set_2");
    assert_eq!(open(&set, &specs, &plain()).unwrap().names(), ["test_data_set_2"]);
    assert_eq!(test_sets::tensors(&set, "output").unwrap().len(), 1);

    // Names that are not the model's: by position.
    let other = [input("p", DataType::Float, &[Some(1)]), input("q", DataType::Float, &[Some(1)])];
    let inputs = open(&set, &other, &plain()).unwrap().sample(0).unwrap().inputs;
    assert_eq!((inputs[0].0.as_str(), inputs[0].1.item::<f32>()), ("p", Some(2.0)));

    folder.write("test_data_set_2/input_0.pb", "no tensor");
    let text = refusal(open(&set, &specs, &plain()).unwrap().sample(0));
    assert!(text.contains("input_0.pb`"), "{text}");
}

#[test]
fn random_data_is_the_same_for_the_same_seed_and_comes_with_a_warning() {
    let specs = [
        input("x", DataType::Float, &[None, Some(500)]),
        input("ids", DataType::Int64, &[Some(2), Some(3)]),
        InputSpec { required: false, ..input("optional", DataType::String, &[]) },
    ];
    let (a, b, c) = (
        random(&specs, 3, 1).unwrap(),
        random(&specs, 3, 1).unwrap(),
        random(&specs, 3, 2).unwrap(),
    );
    assert!(a.warning().is_some());
    assert_eq!(a.sample(2).unwrap(), b.sample(2).unwrap());
    assert_ne!(a.sample(2).unwrap().inputs, c.sample(2).unwrap().inputs);
    assert_ne!(a.sample(1).unwrap().inputs, a.sample(2).unwrap().inputs);
    let x = values(&*a, 0);
    let variance = x.iter().map(|x| x * x).sum::<f32>() / 500.0;
    assert!((0.8..1.2).contains(&variance), "{variance}: within three standard errors of 1");
    assert_eq!(a.sample(0).unwrap().inputs[1].1.dims(), [2, 3]);

    let text = refusal(random(&[input("x", DataType::Float, &[None, None])], 1, 0));
    assert_eq!(
        text,
        "input `x` has no known size along axis 1, so random data cannot be made for it"
    );
    let text = refusal(random(&[input("x", DataType::String, &[])], 1, 0).unwrap().sample(0));
    assert_eq!(text, "input `x`: random data of type string is not supported");
}

#[test]
fn labels_come_in_the_forms_that_people_keep_them_in() {
    let folder = Folder::new();
    let read = |name: &str, text: &str| Labels::open(folder.write(name, text));
    for (name, text) in [
        ("a.csv", "file,label\ncat.png,1|2\n\"a/dog, old.png\", 3\n"),
        ("b.csv", "cat.png,1|2\r\n\"a/dog, old.png\",3\r\n"),
        ("a.json", r#"{"cat.png": [1, 2], "a/dog, old.png": 3}"#),
        (
            "b.json",
            r#"[{"file": "cat.png", "labels": [1, 2]}, {"file": "a/dog, old.png", "label": 3}]"#,
        ),
    ] {
        let labels = read(name, text).unwrap();
        assert_eq!(labels.n_labeled(), 2, "{name}");
        assert_eq!(labels.get(9, "cat.png"), Some(&[1, 2][..]), "{name}");
        assert_eq!(labels.get(9, "some/folder/cat.png"), Some(&[1, 2][..]), "by file name");
        assert_eq!(labels.get(9, "cat.npy"), Some(&[1, 2][..]), "made from it");
        assert_eq!(labels.get(9, "cat-1.png"), None);
        assert_eq!(labels.get(9, "ca"), None);
        assert_eq!(labels.get(9, "a/dog, old.png"), Some(&[3][..]));
    }
    assert_eq!(read("c.json", "[4, [5, 6]]").unwrap().get(1, "any"), Some(&[5, 6][..]));

    for (name, text, expected) in [
        ("d.csv", "", "there are none"),
        ("e.csv", "a.png,1\nb.png,cat", "line 2: the label is no number: `b.png,cat`"),
        ("f.csv", "a.png,1\nb.png", "line 2: there is no comma: `b.png`"),
        ("g.csv", "a.png,1\na.png,2", "line 2: the file is there twice: `a.png,2`"),
        ("d.json", "{\"a\": -1}", "`a`: -1 is no class number"),
        ("e.json", "3", "it is neither an object nor a list"),
        ("f.json", "[{}]", "entry 0 has no `file`"),
        ("g.json", "{", "EOF while parsing"),
        ("h.txt", "a 1", "it is neither CSV, JSON nor IDX"),
    ] {
        let text = refusal(read(name, text));
        assert!(text.contains(name) && text.contains(expected), "{text}");
    }
}

#[test]
fn a_models_inputs_are_what_a_caller_can_give() {
    let mut model = Model::default();
    let graph = &mut model.graph;
    let dims = vec![Dim::Symbol("batch".to_owned()), Dim::Known(3), Dim::Unknown];
    let x = graph.fresh_typed("x", DataType::Float, Some(dims));
    let open_rank = graph.fresh_typed("open", DataType::Int64, None);
    let default = graph.add_constant("default", Tensor::vector(&[1.0_f32, 2.0]));
    graph.inputs = vec![x, open_rank, default];
    let specs = InputSpec::of(&model).unwrap();
    assert_eq!(specs[0], input("x", DataType::Float, &[None, Some(3), None]));
    assert_eq!((specs[1].dims.clone(), specs[1].dtype), (None, DataType::Int64));
    assert_eq!((specs[2].required, specs[2].dims.clone()), (false, Some(vec![Some(2)])));

    let untyped = model.graph.fresh("untyped");
    model.graph.inputs.push(untyped);
    assert_eq!(
        refusal(InputSpec::of(&model)),
        "input `untyped`: an input without a type is not supported"
    );
    model.graph.value_mut(untyped).ty =
        Some(Type { kind: midtread_graph::TypeKind::Sequence(None), denotation: String::new() });
    assert_eq!(
        refusal(InputSpec::of(&model)),
        "input `untyped`: an input of type sequence is not supported"
    );
}
