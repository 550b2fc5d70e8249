//! What a path holds.

use std::{
    fs,
    path::{Path, PathBuf},
};

use midtread_graph::Sample;

use crate::{
    arrays, error::Error, idx, images, preprocess::Preprocess, spec::InputSpec, test_sets,
};

/// Samples that are read when they are asked for, from any thread.
pub trait Source: Send + Sync {
    /// The samples' names: each different, in ascending order.
    fn names(&self) -> &[String];

    /// Reads sample `i`, its tensors in the order of the model's inputs. Panics where there is no such sample.
    fn sample(&self, i: usize) -> Result<Sample, Error>;

    /// How many samples there are; at least one.
    fn n_samples(&self) -> usize {
        self.names().len()
    }

    /// What a user should be told about the data before relying on results.
    fn warning(&self) -> Option<&str> {
        None
    }
}

/// How to read data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// From a picture to numbers; needed for pictures, and for images in IDX files.
    pub preprocess: Option<Preprocess>,
    /// Use the first so many samples, in the order of their names.
    pub limit: Option<usize>,
}

/// File name extensions, in lower case.
const PICTURES: &[&str] = &["png", "jpg", "jpeg", "bmp", "webp"];

/// Finds out what is at `path` and lists its samples for a model with the inputs `specs`.
///
/// | path | samples |
/// |---|---|
/// | folder with `test_data_set_*` in it, or one of these | each data set, `input_0.pb`, `input_1.pb`, ... |
/// | folder with pictures (png, jpg, bmp, webp), at any depth, or a picture | each picture |
/// | folder with a `NAME.npy` for every input `NAME` | along the arrays' leading axis |
/// | folder of folders with a `NAME.npy` for every input | each inner folder |
/// | folder with `.npy` files, at any depth, for a model with one input | each file |
/// | folder with `.npz` files, at any depth; keys are input names | each file |
/// | `.pb` file with a `TensorProto`, for a model with one input | it |
/// | `.npy` or `.npz` file | along the leading axis; one, if the array has no axis for it |
/// | IDX file, also compressed with gzip (`train-images-idx3-ubyte.gz`) | along the leading axis |
pub fn open(
    path: impl AsRef<Path>,
    specs: &[InputSpec],
    options: &Options,
) -> Result<Box<dyn Source>, Error> {
    let path = path.as_ref();
    let is_dir = fs::metadata(path).map_err(Error::io(path))?.is_dir();
    let limit = options.limit.unwrap_or(usize::MAX);
    let source =
        if is_dir { open_folder(path, specs, options)? } else { open_file(path, specs, options)? };
    if source.names().is_empty() || limit == 0 {
        return Err(Error::NoData { path: path.to_owned() });
    }
    if source.names().len() <= limit {
        return Ok(source);
    }
    let names = source.names()[..limit].to_vec();
    Ok(Box::new(First { names, source }))
}

/// The first samples of a source.
struct First {
    names: Vec<String>,
    source: Box<dyn Source>,
}

impl Source for First {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn sample(&self, i: usize) -> Result<Sample, Error> {
        assert!(i < self.names.len(), "sample {i} of {}", self.names.len());
        self.source.sample(i)
    }

    fn warning(&self) -> Option<&str> {
        self.source.warning()
    }
}

fn open_file(
    path: &Path,
    specs: &[InputSpec],
    options: &Options,
) -> Result<Box<dyn Source>, Error> {
    let extension = extension(path);
    let root = path.parent().unwrap_or(Path::new(""));
    let file = vec![path.to_owned()];
    match extension.as_str() {
        "npy" => arrays::stacked_npy(path, specs),
        "npz" => arrays::stacked_npz(path, specs),
        "pb" => test_sets::one_file(path, specs),
        e if PICTURES.contains(&e) => images::open(path, root, file, specs, options),
        _ if idx::is_idx(path)? => idx::open(path, specs, options),
        _ => Err(Error::NoData { path: path.to_owned() }),
    }
}

fn open_folder(
    path: &Path,
    specs: &[InputSpec],
    options: &Options,
) -> Result<Box<dyn Source>, Error> {
    let sets = test_sets::folders(path)?;
    if !sets.is_empty() {
        return test_sets::open(path, sets, specs);
    }
    let mut files = Vec::new();
    list(path, 0, &mut files)?;
    files.sort_by_cached_key(|file| relative(path, file));
    let with = |extensions: &[&str]| -> Vec<PathBuf> {
        files
            .iter()
            .filter(|file| extensions.contains(&extension(file).as_str()))
            .cloned()
            .collect()
    };
    let (pictures, npy, npz) = (with(PICTURES), with(&["npy"]), with(&["npz"]));
    let idx: Vec<_> = files.iter().filter(|file| idx::has_idx_name(file)).cloned().collect();
    let kinds = [
        (!pictures.is_empty(), "pictures"),
        (!npy.is_empty(), ".npy files"),
        (!npz.is_empty(), ".npz files"),
        (!idx.is_empty(), "IDX files"),
    ];
    let mut present = kinds.iter().filter(|(present, _)| *present).map(|(_, kind)| *kind);
    if let (Some(one), Some(other)) = (present.next(), present.next()) {
        return Err(Error::Ambiguous { path: path.to_owned(), one, other });
    }
    if !pictures.is_empty() {
        return images::open(path, path, pictures, specs, options);
    }
    if !npz.is_empty() {
        return arrays::npz_files(path, npz, specs);
    }
    if !npy.is_empty() {
        return arrays::npy_files(path, npy, specs);
    }
    match idx.as_slice() {
        [] => Err(Error::NoData { path: path.to_owned() }),
        [one] => idx::open(one, specs, options),
        _ => Err(Error::Ambiguous { path: path.to_owned(), one: "one IDX file", other: "another" }),
    }
}

/// Adds the files in a folder and the folders in it. Hidden ones are left out.
fn list(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    // Links may lead back up.
    const MAX_DEPTH: usize = 16;
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        // A link that leads nowhere is not data.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if metadata.is_dir() && depth < MAX_DEPTH {
            list(&path, depth + 1, files)?;
        } else if metadata.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

/// A file's extension in lower case.
pub(crate) fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// A sample's name: its path below the folder that was given, with `/` on every system.
pub(crate) fn relative(root: &Path, path: &Path) -> String {
    let path = path.strip_prefix(root).unwrap_or(path);
    path.components()
        .map(|c| c.as_os_str().to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join("/")
}

/// A sample that is at hand.
pub(crate) struct One {
    pub(crate) names: Vec<String>,
    pub(crate) sample: Sample,
}

impl Source for One {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn sample(&self, i: usize) -> Result<Sample, Error> {
        assert_eq!(i, 0, "there is one sample");
        Ok(self.sample.clone())
    }
}

/// Names for samples along an axis, whose order is that of their numbers.
pub(crate) fn numbered(file: &Path, n: usize) -> Vec<String> {
    let file = file.file_name().unwrap_or_default().to_string_lossy();
    let width = n.saturating_sub(1).to_string().len();
    (0..n).map(|i| format!("{file}[{i:0width$}]")).collect()
}
