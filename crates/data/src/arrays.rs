//! `.npy` and `.npz`: a file a sample, or samples along a file's leading axis.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use midtread_graph::{Sample, Tensor};

use crate::{
    error::Error,
    npy::{Header, NpyError},
    source::{One, Source, numbered, relative},
    spec::{Check, InputSpec, fit},
    zip,
};

fn in_file(path: &Path) -> impl Fn(NpyError) -> Error + use<> {
    let path = path.to_owned();
    move |error| match error {
        NpyError::Io(source) => Error::Io { path: path.clone(), source },
        NpyError::Format(what) => Error::Format { path: path.clone(), what },
    }
}

/// An array in a file.
#[derive(Clone)]
struct Array {
    path: PathBuf,
    /// In an archive.
    entry: Option<zip::Entry>,
    header: Header,
}

impl Array {
    fn npy(path: &Path) -> Result<Self, Error> {
        let mut file = BufReader::new(File::open(path).map_err(Error::io(path))?);
        let header = Header::read(&mut file).map_err(in_file(path))?;
        Ok(Self { path: path.to_owned(), entry: None, header })
    }

    /// The arrays of an archive, by their keys.
    fn npz(path: &Path) -> Result<Vec<(String, Self)>, Error> {
        let entries = zip::entries(path).map_err(|e| npz_error(path, e))?;
        let entries = entries.into_iter().filter(|entry| entry.name.ends_with(".npy"));
        entries
            .map(|entry| {
                let mut file = entry.open(path).map_err(|e| npz_error(path, e))?;
                let header = Header::read(&mut file).map_err(in_file(path))?;
                let key = entry.name.trim_end_matches(".npy").to_owned();
                Ok((key, Self { path: path.to_owned(), entry: Some(entry), header }))
            })
            .collect()
    }

    /// Fails unless the file is as long as the header says. Until then, sizes are only a claim.
    fn check_length(&self) -> Result<(), Error> {
        let needed = self.header.n_bytes().unwrap_or(usize::MAX) as u64;
        let whole = match &self.entry {
            Some(entry) => entry.n_bytes,
            None => std::fs::metadata(&self.path).map_err(Error::io(&self.path))?.len(),
        };
        let got = whole.saturating_sub(self.header.data_at);
        if needed <= got {
            return Ok(());
        }
        let what = format!("{:?} needs {needed} bytes, and the file has {got}", self.header.dims);
        Err(Error::format(&self.path, what))
    }

    /// The elements, from the first one on, and how many bytes there are.
    fn open(&self) -> Result<(Box<dyn Read>, u64), NpyError> {
        let skip = self.header.data_at;
        match &self.entry {
            None => {
                let mut file = File::open(&self.path)?;
                let left = file.metadata()?.len().saturating_sub(skip);
                file.seek(SeekFrom::Start(skip))?;
                Ok((Box::new(file), left))
            }
            Some(entry) => {
                let mut file = entry.open(&self.path).map_err(NpyError::Io)?;
                std::io::copy(&mut (&mut file).take(skip), &mut std::io::sink())?;
                Ok((file, entry.n_bytes.saturating_sub(skip)))
            }
        }
    }

    fn read(&self) -> Result<Tensor, Error> {
        let read = || {
            let (mut file, left) = self.open()?;
            self.header.read_elements(&self.header.dims, &mut file, left)
        };
        read().map_err(in_file(&self.path))
    }

    /// Part `i` along the leading axis, which is read alone.
    fn read_part(&self, i: usize) -> Result<Tensor, Error> {
        let dims = &self.header.dims[1..];
        let n_bytes = self.header.n_bytes().unwrap_or(0) / self.header.dims[0].max(1);
        let skip = n_bytes as u64 * i as u64;
        let read = || {
            let (mut file, left): (Box<dyn Read>, _) = match &self.entry {
                Some(entry) if !entry.is_stored() => self.open()?,
                Some(entry) => {
                    let mut file = entry.open_stored(&self.path)?;
                    file.seek(SeekFrom::Current((self.header.data_at + skip) as i64))?;
                    let left = entry.n_bytes.saturating_sub(self.header.data_at + skip);
                    return self.header.read_elements(dims, &mut file, left);
                }
                None => {
                    let mut file = File::open(&self.path)?;
                    let left = file.metadata()?.len().saturating_sub(self.header.data_at + skip);
                    file.seek(SeekFrom::Start(self.header.data_at + skip))?;
                    return self.header.read_elements(dims, &mut file, left);
                }
            };
            std::io::copy(&mut (&mut file).take(skip), &mut std::io::sink())?;
            self.header.read_elements(dims, &mut file, left.saturating_sub(skip))
        };
        read().map_err(in_file(&self.path))
    }
}

fn npz_error(path: &Path, error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => {
            Error::format(path, format!("it is not a usable .npz file: {error}"))
        }
        _ => Error::Io { path: path.to_owned(), source: error },
    }
}

/// The array of a `.npy` file.
pub fn read_npy(path: &Path) -> Result<Tensor, Error> {
    let array = Array::npy(path)?;
    array.check_length()?;
    array.read()
}

/// The arrays under the names of inputs: an archive with one array and no name for it (`arr_0`) is the one input's.
fn named(specs: &[InputSpec], mut arrays: Vec<(String, Array)>) -> Vec<(String, Array)> {
    let required: Vec<_> = specs.iter().filter(|spec| spec.required).collect();
    if let ([spec], [(key, _)]) = (required.as_slice(), arrays.as_mut_slice())
        && key == "arr_0"
    {
        spec.name.clone_into(key);
    }
    arrays
}

/// A sample a file (`.npz`), or a folder with a file an input.
struct Files {
    names: Vec<String>,
    samples: Vec<FileSample>,
    specs: Vec<InputSpec>,
}

enum FileSample {
    /// The only input's.
    Npy(PathBuf),
    Npz(PathBuf),
    /// By input.
    Folder(Vec<(String, PathBuf)>),
}

impl Source for Files {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn sample(&self, i: usize) -> Result<Sample, Error> {
        let given = match &self.samples[i] {
            FileSample::Npy(path) => {
                let spec = self
                    .specs
                    .iter()
                    .find(|spec| spec.required)
                    .expect("checked when this was made");
                vec![(spec.name.clone(), Array::npy(path)?.read()?)]
            }
            FileSample::Npz(path) => {
                let arrays = named(&self.specs, Array::npz(path)?);
                arrays
                    .into_iter()
                    .map(|(key, array)| Ok((key, array.read()?)))
                    .collect::<Result<_, _>>()?
            }
            FileSample::Folder(files) => files
                .iter()
                .map(|(name, path)| Ok((name.clone(), Array::npy(path)?.read()?)))
                .collect::<Result<_, _>>()?,
        };
        fit(&self.names[i], &self.specs, given, Check::Finite)
    }
}

/// A sample in each archive.
pub(crate) fn npz_files(
    root: &Path,
    files: Vec<PathBuf>,
    specs: &[InputSpec],
) -> Result<Box<dyn Source>, Error> {
    let names = files.iter().map(|file| relative(root, file)).collect();
    let samples = files.into_iter().map(FileSample::Npz).collect();
    Ok(Box::new(Files { names, samples, specs: specs.to_vec() }))
}

/// The arrays in a folder: one for every input, such a set in every inner folder, or one a sample.
pub(crate) fn npy_files(
    root: &Path,
    files: Vec<PathBuf>,
    specs: &[InputSpec],
) -> Result<Box<dyn Source>, Error> {
    let required: Vec<_> = specs.iter().filter(|spec| spec.required).collect();
    let stem = |file: &Path| file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    // Names that files cannot have ("input:0", "a/b") are found with `_` in their place.
    let file_name = |name: &str| name.replace(['/', '\\', ':'], "_");
    let mut sets: BTreeMap<PathBuf, Vec<(String, PathBuf)>> = BTreeMap::new();
    for file in &files {
        let stem = stem(file);
        let input = specs.iter().find(|spec| spec.name == stem || file_name(&spec.name) == stem);
        let folder = file.parent().unwrap_or(root).to_owned();
        let name = input.map_or(stem, |spec| spec.name.clone());
        sets.entry(folder).or_default().push((name, file.clone()));
    }
    let is_set = |set: &Vec<(String, PathBuf)>| {
        required.iter().all(|spec| set.iter().any(|(name, _)| *name == spec.name))
            && set.iter().all(|(name, _)| specs.iter().any(|spec| spec.name == *name))
    };
    // Then the folder is meant as a sample, and what does not fit in it is worth telling.
    let names_an_input = |set: &Vec<(String, PathBuf)>| {
        set.iter().any(|(name, _)| specs.iter().any(|spec| spec.name == *name))
    };
    if let Some(set) = sets.get(root).filter(|set| sets.len() == 1 && is_set(set)) {
        let arrays = set.iter().map(|(name, file)| Ok((name.clone(), Array::npy(file)?)));
        return stacked(root, arrays.collect::<Result<_, Error>>()?, specs);
    }
    if 1 < required.len() || (sets.values().all(names_an_input) && !sets.contains_key(root)) {
        // With more than one input, a folder that is no whole set is an error of that sample.
        let names = sets.keys().map(|folder| relative(root, folder)).collect();
        let samples = sets.into_values().map(FileSample::Folder).collect();
        return Ok(Box::new(Files { names, samples, specs: specs.to_vec() }));
    }
    if required.is_empty() {
        return Err(Error::NotAnImageModel { n_inputs: 0 });
    }
    let names = files.iter().map(|file| relative(root, file)).collect();
    let samples = files.into_iter().map(FileSample::Npy).collect();
    Ok(Box::new(Files { names, samples, specs: specs.to_vec() }))
}

/// A `.npy` file for a model with one input.
pub(crate) fn stacked_npy(path: &Path, specs: &[InputSpec]) -> Result<Box<dyn Source>, Error> {
    let array = Array::npy(path)?;
    let mut required = specs.iter().filter(|spec| spec.required);
    let (Some(spec), None) = (required.next(), required.next()) else {
        let n_inputs = specs.iter().filter(|spec| spec.required).count();
        let what =
            format!("it is one array, and the model has {n_inputs} inputs; use an .npz file");
        return Err(Error::format(path, what));
    };
    stacked(path, vec![(spec.name.clone(), array)], specs)
}

/// An `.npz` file with an array an input.
pub(crate) fn stacked_npz(path: &Path, specs: &[InputSpec]) -> Result<Box<dyn Source>, Error> {
    stacked(path, named(specs, Array::npz(path)?), specs)
}

/// Samples along the leading axes of arrays.
struct Stacked {
    names: Vec<String>,
    arrays: Vec<(String, Part)>,
    specs: Vec<InputSpec>,
}

enum Part {
    /// Read from the file for each sample.
    Lazy(Array),
    /// In the other order a sample is spread over the whole file, and a compressed file has no places: held.
    Held(Tensor),
}

impl Source for Stacked {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn sample(&self, i: usize) -> Result<Sample, Error> {
        let given = self.arrays.iter().map(|(name, part)| {
            let tensor = match part {
                Part::Lazy(array) => array.read_part(i)?,
                Part::Held(tensor) => {
                    let dims = tensor.dims()[1..].to_vec();
                    let n_bytes = tensor.as_bytes().len() / tensor.dims()[0];
                    let bytes = tensor.to_shared_bytes().slice(i * n_bytes..(i + 1) * n_bytes);
                    Tensor::from_bytes(tensor.dtype(), dims, bytes)
                        .expect("one part of equal ones")
                        .to_aligned()
                }
            };
            Ok((name.clone(), tensor))
        });
        fit(&self.names[i], &self.specs, given.collect::<Result<_, Error>>()?, Check::Finite)
    }
}

fn stacked(
    path: &Path,
    arrays: Vec<(String, Array)>,
    specs: &[InputSpec],
) -> Result<Box<dyn Source>, Error> {
    let spec_of = |name: &str| specs.iter().find(|spec| spec.name == name);
    // An array with a size less than the model takes is one sample without its batch axis.
    let is_one = |(name, array): &(String, Array)| {
        let rank = array.header.dims.len();
        let own = spec_of(name).and_then(|spec| spec.dims.as_ref()).map(Vec::len);
        rank == 0 || own.is_some_and(|own| rank < own)
    };
    if arrays.iter().any(is_one) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let given = arrays.into_iter().map(|(name, array)| Ok((name, array.read()?)));
        let sample = fit(&name, specs, given.collect::<Result<_, Error>>()?, Check::Finite)?;
        return Ok(Box::new(One { names: vec![name], sample }));
    }
    let Some((first, array)) = arrays.first() else {
        return Err(Error::NoData { path: path.to_owned() });
    };
    let (first, n) = (first.clone(), array.header.dims[0]);
    if let Some((other, array)) = arrays.iter().find(|(_, array)| array.header.dims[0] != n) {
        let (other, other_n) = (other.clone(), array.header.dims[0]);
        return Err(Error::Lengths { path: path.to_owned(), input: first, n, other, other_n });
    }
    for (_, array) in &arrays {
        array.check_length()?;
        // Otherwise there could be any number of samples in no bytes.
        if array.header.n_bytes() == Some(0) {
            return Err(Error::format(
                &array.path,
                format!("{:?} has no elements", array.header.dims),
            ));
        }
    }
    let arrays = arrays.into_iter().map(|(name, array)| {
        let is_deflated = array.entry.as_ref().is_some_and(|entry| !entry.is_stored());
        let part = if array.header.fortran_order || is_deflated {
            Part::Held(array.read()?)
        } else {
            Part::Lazy(array)
        };
        Ok((name, part))
    });
    let arrays = arrays.collect::<Result<_, Error>>()?;
    Ok(Box::new(Stacked { names: numbered(path, n), arrays, specs: specs.to_vec() }))
}
