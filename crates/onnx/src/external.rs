//! Mapped files, and tensors whose data lies in other files than the model.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
};

use bytes::Bytes;
use memmap2::Mmap;

use crate::error::{Problem, TensorProblem};

/// The bytes of a file, mapped. The mapping lives as long as any slice of it.
pub(crate) fn map_file(path: &Path) -> Result<Bytes, Problem> {
    // A pipe would wait for a writer, and a device need not end.
    let is_file =
        fs::metadata(path).map_err(|source| Problem::Io { doing: "opened", source })?.is_file();
    if !is_file {
        return Err(Problem::NotAFile);
    }
    map_regular_file(path).map_err(|source| Problem::Io { doing: "opened", source })
}

fn map_regular_file(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    Ok(Bytes::from_owner(map(&file)?))
}

#[expect(unsafe_code, reason = "a mapping is what keeps weights out of private memory")]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is read-only and private. Nothing here writes to a file in place (`save` renames), and
    // `load` says that others must not while the model is alive.
    unsafe { Mmap::map(file) }
}

/// Where a tensor's data lies: `TensorProto.external_data`.
#[derive(Debug, Default)]
pub(crate) struct Location {
    pub(crate) location: String,
    pub(crate) offset: u64,
    pub(crate) length: Option<u64>,
}

/// The files that a model's tensors point to, each mapped once.
pub(crate) struct Files {
    /// Folders that the data may lie in: the model's, and, where its path is a link, that of the file itself.
    folders: Vec<PathBuf>,
    mapped: BTreeMap<String, Bytes>,
}

impl Files {
    /// Files in `base_dir`; none at all without one.
    pub(crate) fn new(base_dir: Option<&Path>) -> Self {
        Self {
            folders: base_dir.into_iter().map(Path::to_owned).collect(),
            mapped: BTreeMap::new(),
        }
    }

    /// Files in the folder of the model at `path`.
    pub(crate) fn beside(path: &Path) -> Self {
        let folder = |path: &Path| match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
            Some(parent) => parent.to_owned(),
            None => PathBuf::from("."),
        };
        // Download caches keep links to files elsewhere: then the model's own folder is where it really lies.
        let real = fs::canonicalize(path).ok().map(|real| folder(&real));
        Self {
            folders: [Some(folder(path)), real].into_iter().flatten().collect(),
            mapped: BTreeMap::new(),
        }
    }

    /// The data of a tensor of `n_bytes`.
    pub(crate) fn slice(&mut self, at: &Location, n_bytes: usize) -> Result<Bytes, TensorProblem> {
        let refuse = |what: String| TensorProblem::External { location: at.location.clone(), what };
        if let Some(length) = at.length.filter(|&length| length != n_bytes as u64) {
            return Err(refuse(format!(
                "it gives the tensor {length} bytes, which needs {n_bytes}"
            )));
        }
        let file = self.map(&at.location)?;
        let end = at.offset.checked_add(n_bytes as u64).filter(|&end| end <= file.len() as u64);
        match end {
            Some(end) => Ok(file.slice(at.offset as usize..end as usize)),
            None => Err(refuse(format!(
                "the tensor lies at byte {} and needs {n_bytes} bytes, and the file has {}",
                at.offset,
                file.len()
            ))),
        }
    }

    fn map(&mut self, location: &str) -> Result<&Bytes, TensorProblem> {
        if !self.mapped.contains_key(location) {
            let path = self.resolve(location)?;
            let bytes =
                map_regular_file(&path).map_err(|source| io_problem(location, "opened", source))?;
            self.mapped.insert(location.to_owned(), bytes);
        }
        Ok(&self.mapped[location])
    }

    /// The real path of a file that a model names, which must lie in the model's folder.
    fn resolve(&self, location: &str) -> Result<PathBuf, TensorProblem> {
        let refuse = |what: &str| {
            Err(TensorProblem::External { location: location.to_owned(), what: what.to_owned() })
        };
        let Some(first) = self.folders.first() else {
            return refuse("the model comes without a folder");
        };
        // Backslashes separate on one system only; a model that has them means that.
        let relative = Path::new(location);
        let inside = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
        if location.is_empty() || location.contains('\0') || !relative.components().all(inside) {
            return refuse("it must be a path inside the model's folder");
        }
        let path = fs::canonicalize(first.join(relative))
            .map_err(|e| io_problem(location, "opened", e))?;
        let is_inside = |folder: &PathBuf| {
            fs::canonicalize(folder).is_ok_and(|folder| path.starts_with(folder))
        };
        if !self.folders.iter().any(is_inside) {
            return refuse("it is a link that leaves the model's folder");
        }
        if !path.is_file() {
            return refuse("it is not a regular file");
        }
        Ok(path)
    }
}

fn io_problem(location: &str, doing: &'static str, source: io::Error) -> TensorProblem {
    TensorProblem::ExternalIo { location: location.to_owned(), doing, source }
}
