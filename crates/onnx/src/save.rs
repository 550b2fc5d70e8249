//! Writing files so that there is always either the old one or the new one.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use midtread_graph::{Model, Tensor};
use tempfile::NamedTempFile;

use crate::{
    encode::{self, External, Layout, Measure},
    error::{Error, Problem},
};

/// What protobuf's libraries read at most.
const MAX_PROTOBUF_BYTES: u64 = i32::MAX as u64;

/// Above this, [`ExternalData::Auto`] moves weights out. Not at the very limit: runtimes add a little to a model
/// when they optimize and save it.
const MAX_INLINE_BYTES: u64 = 2_000_000_000;

/// Tensors of fewer bytes are never worth a place in another file (the default of the `onnx` package, too).
const MIN_EXTERNAL_BYTES: usize = 1024;

/// How to write a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaveOptions {
    /// Where the weights go.
    pub external_data: ExternalData,
}

/// Where the weights go: into the model's file, or into one beside it, named like it with `.data` at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExternalData {
    /// Into the model's file if it stays under 2 GB, which is about what protobuf allows; else those of a kibibyte
    /// and more into the other.
    #[default]
    Auto,
    /// Into the model's file. Fails for models above protobuf's limit.
    Never,
    /// Tensors of at least `min_bytes` into the other file.
    Always {
        /// In bytes.
        min_bytes: usize,
    },
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveReport {
    /// Size of the model's file.
    pub n_bytes: u64,
    /// The file with external data and its size, if there is one.
    pub external_data: Option<(PathBuf, u64)>,
}

/// The model as the bytes of an ONNX file, all data inside.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>, Error> {
    let layout = Measure::model(model, None);
    check_size(&layout)?;
    let mut bytes = Vec::with_capacity(layout.n_bytes as usize);
    layout.write(model, &mut bytes).expect("a vector takes all bytes");
    Ok(bytes)
}

/// How many bytes [`to_bytes`] would make of it, without making them.
pub fn n_bytes(model: &Model) -> u64 {
    Measure::model(model, None).n_bytes
}

/// A tensor as the bytes of a `TensorProto` file, the format of ONNX test data sets.
pub fn tensor_to_bytes(tensor: &Tensor) -> Vec<u8> {
    encode::tensor_message(tensor)
}

/// Writes the model to `path`, and its external data, if any, beside it.
///
/// Files are written under temporary names in the same folder and renamed at the end, the external data first.
/// After an error nothing is left of them. A file with the same name may be one that `model` was loaded from: its
/// mapping stays valid. The same model and options give the same bytes.
pub fn save(
    model: &Model,
    path: impl AsRef<Path>,
    options: &SaveOptions,
) -> Result<SaveReport, Error> {
    let path = path.as_ref();
    let in_file = |problem| Error::in_file(path, problem);
    let name = path.file_name().ok_or_else(|| in_file(Problem::NotAFile))?;
    // The name of the other file goes into this one, as text.
    let mut data_name = name.to_string_lossy().into_owned();
    data_name.push_str(".data");
    let data_path = path.with_file_name(&data_name);
    let external = |min_bytes| Some(External { location: data_name.clone(), min_bytes });

    let layout = match options.external_data {
        ExternalData::Never => Measure::model(model, None),
        ExternalData::Always { min_bytes } => Measure::model(model, external(min_bytes)),
        ExternalData::Auto => {
            let inline = Measure::model(model, None);
            if inline.n_bytes <= MAX_INLINE_BYTES {
                inline
            } else {
                Measure::model(model, external(MIN_EXTERNAL_BYTES))
            }
        }
    };
    check_size(&layout).map_err(in_file)?;

    let data = if layout.tensors.is_empty() {
        None
    } else {
        let write = |out: &mut BufWriter<&mut fs::File>| layout.write_data(out);
        Some(
            Partial::write(&data_path, write)
                .map_err(|problem| Error::in_file(&data_path, problem))?,
        )
    };
    let main = Partial::write(path, |out| layout.write(model, out)).map_err(in_file)?;
    let had_data = data_path.exists();
    let external_data = match data {
        Some(data) => {
            data.put_in_place().map_err(|problem| Error::in_file(&data_path, problem))?;
            Some((data_path.clone(), layout.data_bytes))
        }
        None => None,
    };
    main.put_in_place().map_err(|problem| {
        if external_data.is_some() && !had_data {
            // Without its model it is of no use. If it stays nevertheless, the first error is the one to tell.
            let _ = fs::remove_file(&data_path);
        }
        in_file(problem)
    })?;
    Ok(SaveReport { n_bytes: layout.n_bytes, external_data })
}

fn check_size(layout: &Layout) -> Result<(), Problem> {
    if layout.n_bytes <= MAX_PROTOBUF_BYTES {
        return Ok(());
    }
    Err(Problem::TooLargeForProtobuf { n_bytes: layout.n_bytes, max_bytes: MAX_PROTOBUF_BYTES })
}

/// Removes the temporary files of every [`save`] that is under way, which then fails. For a program that is about
/// to end on Ctrl-C and does not unwind.
pub fn remove_partial_files() {
    for path in std::mem::take(&mut *partial_files()) {
        let _ = fs::remove_file(path);
    }
}

static PARTIAL_FILES: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn partial_files() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    PARTIAL_FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A whole file under a temporary name, removed unless it is put in place.
pub(crate) struct Partial<'a> {
    file: Option<NamedTempFile>,
    path: &'a Path,
    temp_path: PathBuf,
}

impl<'a> Partial<'a> {
    pub(crate) fn write(
        path: &'a Path,
        write: impl FnOnce(&mut BufWriter<&mut fs::File>) -> io::Result<()>,
    ) -> Result<Self, Problem> {
        // A folder cannot be replaced by a file, and a device must not be.
        if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
            return Err(Problem::NotAFile);
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(path.file_name().unwrap_or_default());
        prefix.push(".");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".partial");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = {
            // Held over the creation, so that no file is missed by `remove_partial_files`.
            let mut partial_files = partial_files();
            let file = builder
                .tempfile_in(folder)
                .map_err(|source| Problem::Io { doing: "created", source })?;
            partial_files.insert(file.path().to_owned());
            file
        };
        let temp_path = file.path().to_owned();
        let mut partial = Self { file: Some(file), path, temp_path };
        let file = partial.file.as_mut().expect("not yet put in place").as_file_mut();
        let mut out = BufWriter::with_capacity(1 << 16, file);
        write(&mut out)
            .and_then(|()| out.flush())
            .map_err(|source| Problem::Io { doing: "written", source })?;
        drop(out);
        Ok(partial)
    }

    fn put_in_place(mut self) -> Result<(), Problem> {
        let file = self.file.take().expect("put in place once");
        file.persist(self.path).map_err(|e| Problem::Io { doing: "replaced", source: e.error })?;
        Ok(())
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        // The file itself goes with `self.file`.
        self.file = None;
        partial_files().remove(&self.temp_path);
    }
}
