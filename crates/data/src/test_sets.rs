//! ONNX test data sets: folders `test_data_set_0`, `test_data_set_1`, ... beside a model, with a `TensorProto` in
//! each `input_0.pb`, `input_1.pb`, ... and `output_0.pb`, ...

use std::{
    fs,
    path::{Path, PathBuf},
};

use midtread_graph::{Sample, Tensor};

use crate::{
    error::Error,
    source::{One, Source, relative},
    spec::{Check, InputSpec, fit},
};

/// The data sets at a path: itself, or those in it, by number.
pub fn folders(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if path.join("input_0.pb").is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut sets = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io(path))? {
        let entry = entry.map_err(Error::io(path))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(number) =
            name.strip_prefix("test_data_set_").and_then(|n| n.parse::<u64>().ok())
        {
            sets.push((number, entry.path()));
        }
    }
    sets.sort();
    Ok(sets.into_iter().map(|(_, path)| path).collect())
}

/// The tensors `PREFIX_0.pb`, `PREFIX_1.pb`, ... in a folder, with their names in [`Tensor::notes`]. `prefix` is
/// `input` or `output`.
pub fn tensors(folder: &Path, prefix: &str) -> Result<Vec<Tensor>, Error> {
    let paths =
        (0..).map(|i| folder.join(format!("{prefix}_{i}.pb"))).take_while(|path| path.is_file());
    paths.map(|path| tensor(&path)).collect()
}

fn tensor(path: &Path) -> Result<Tensor, Error> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    midtread_onnx::tensor_from_bytes(bytes.into()).map_err(|e| Error::Tensor(e.at(path)))
}

/// The tensor in one file, whatever its name.
pub(crate) fn one_file(path: &Path, specs: &[InputSpec]) -> Result<Box<dyn Source>, Error> {
    let mut required = specs.iter().filter(|spec| spec.required);
    let (Some(spec), None) = (required.next(), required.next()) else {
        return Err(Error::format(path, "it is one tensor, and the model does not have one input"));
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let sample = fit(&name, specs, vec![(spec.name.clone(), tensor(path)?)], Check::Shape)?;
    Ok(Box::new(One { names: vec![name], sample }))
}

struct TestSets {
    names: Vec<String>,
    folders: Vec<PathBuf>,
    specs: Vec<InputSpec>,
}

/// A sample in each of `folders`.
pub(crate) fn open(
    root: &Path,
    folders: Vec<PathBuf>,
    specs: &[InputSpec],
) -> Result<Box<dyn Source>, Error> {
    let width = folders.len().saturating_sub(1).to_string().len();
    // Numbered, because `test_data_set_10` comes before `test_data_set_2` in the order of names.
    let name = |(i, folder): (usize, &PathBuf)| match relative(root, folder) {
        name if name.is_empty() => {
            root.file_name().unwrap_or_default().to_string_lossy().into_owned()
        }
        name if folders.len() == 1 => name,
        name => format!("{i:0width$}_{name}"),
    };
    let names = folders.iter().enumerate().map(name).collect();
    Ok(Box::new(TestSets { names, folders, specs: specs.to_vec() }))
}

impl Source for TestSets {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn sample(&self, i: usize) -> Result<Sample, Error> {
        let tensors = tensors(&self.folders[i], "input")?;
        let is_input = |name: &str| self.specs.iter().any(|spec| spec.name == name);
        let name_of =
            |tensor: &Tensor| tensor.notes().map(|notes| notes.name.clone()).unwrap_or_default();
        // By name where every tensor has one; some programs leave the names out, or make up their own.
        let by_name = tensors.iter().all(|tensor| is_input(&name_of(tensor)));
        let name = |(k, tensor): (usize, &Tensor)| match self.specs.get(k) {
            Some(spec) if !by_name => spec.name.clone(),
            _ => name_of(tensor),
        };
        let given = tensors.iter().enumerate().map(|t| (name(t), t.1.clone())).collect();
        fit(&self.names[i], &self.specs, given, Check::Shape)
    }
}
