//! Mapped files, and tensors whose data lies in other files than the model.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use midtread_graph::{DataType, Pages, Tensor, TensorError};

use crate::error::{Problem, TensorProblem};

/// A mapped file.
pub(crate) struct Mapping(Mmap);

impl Pages for Mapping {
    #[cfg_attr(
        unix,
        expect(unsafe_code, reason = "the only way to bound what a mapping keeps in memory")
    )]
    fn release(&self, bytes: &[u8]) {
        let start = (bytes.as_ptr() as usize).checked_sub(self.0.as_ptr() as usize);
        let Some(start) = start.filter(|start| start + bytes.len() <= self.0.len()) else { return };
        // Only pages that hold nothing else: a neighbour may be in use.
        let (from, to) = (start.next_multiple_of(PAGE), (start + bytes.len()) / PAGE * PAGE);
        #[cfg(unix)]
        if from < to {
            // SAFETY: the mapping is of a file, read-only and private: its bytes are the file's before and after. That
            // it cannot be done (locked pages) is no reason to fail.
            let _ = unsafe {
                self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, from, to - from)
            };
        }
        #[cfg(not(unix))]
        let _ = (from, to);
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// At least the size of a page, on every system that lets pages go.
const PAGE: usize = 1 << 16;

/// The bytes of a mapped file, and who lets their pages go. The mapping lives as long as any slice of the bytes.
#[derive(Clone)]
pub(crate) struct Mapped {
    pub(crate) bytes: Bytes,
    pub(crate) pages: Arc<dyn Pages>,
}

impl Mapped {
    /// A file that is not empty.
    fn new(file: &File) -> io::Result<Self> {
        let mapping = Arc::new(Mapping(map(file)?));
        Ok(Self { bytes: Bytes::from_owner(Shared(mapping.clone())), pages: mapping })
    }
}

/// Lets `Bytes` own a mapping.
struct Shared(Arc<Mapping>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref().as_ref()
    }
}

/// A file, mapped; `None` where it is empty.
pub(crate) fn map_file(path: &Path) -> Result<Option<Mapped>, Problem> {
    // A pipe would wait for a writer, and a device need not end.
    let is_file =
        fs::metadata(path).map_err(|source| Problem::Io { doing: "opened", source })?.is_file();
    if !is_file {
        return Err(Problem::NotAFile);
    }
    map_regular_file(path).map_err(|source| Problem::Io { doing: "opened", source })
}

fn map_regular_file(path: &Path) -> io::Result<Option<Mapped>> {
    let file = File::open(path)?;
    match file.metadata()?.len() {
        0 => Ok(None),
        _ => Mapped::new(&file).map(Some),
    }
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
    mapped: BTreeMap<String, Option<Mapped>>,
    /// Of the model's own file, if it is one.
    model: Option<Arc<dyn Pages>>,
}

impl Files {
    /// Files in `base_dir`; none at all without one.
    pub(crate) fn new(base_dir: Option<&Path>) -> Self {
        Self {
            folders: base_dir.into_iter().map(Path::to_owned).collect(),
            mapped: BTreeMap::new(),
            model: None,
        }
    }

    /// Files in the folder of the model at `path`, which is mapped.
    pub(crate) fn beside(path: &Path, model: Arc<dyn Pages>) -> Self {
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
            model: Some(model),
        }
    }

    /// A tensor whose bytes are in the model's own file.
    pub(crate) fn inline(
        &self,
        dtype: DataType,
        dims: Vec<usize>,
        bytes: Bytes,
    ) -> Result<Tensor, TensorError> {
        match &self.model {
            Some(pages) => Tensor::from_mapped(dtype, dims, bytes, pages.clone()),
            None => Tensor::from_bytes(dtype, dims, bytes),
        }
    }

    /// A tensor of `n_bytes` in another file.
    pub(crate) fn external(
        &mut self,
        at: &Location,
        dtype: DataType,
        dims: Vec<usize>,
        n_bytes: usize,
    ) -> Result<Tensor, TensorProblem> {
        let refuse = |what: String| TensorProblem::External { location: at.location.clone(), what };
        if let Some(length) = at.length.filter(|&length| length != n_bytes as u64) {
            return Err(refuse(format!(
                "it gives the tensor {length} bytes, which needs {n_bytes}"
            )));
        }
        let file = self.map(&at.location)?;
        let len = file.as_ref().map_or(0, |file| file.bytes.len() as u64);
        let end = at.offset.checked_add(n_bytes as u64).filter(|&end| end <= len);
        match (end, file) {
            (Some(end), Some(Mapped { bytes, pages })) => {
                let bytes = bytes.slice(at.offset as usize..end as usize);
                Ok(Tensor::from_mapped(dtype, dims, bytes, pages.clone())?)
            }
            (Some(_), None) => Ok(Tensor::from_bytes(dtype, dims, Bytes::new())?),
            (None, _) => Err(refuse(format!(
                "the tensor lies at byte {} and needs {n_bytes} bytes, and the file has {len}",
                at.offset,
            ))),
        }
    }

    fn map(&mut self, location: &str) -> Result<&Option<Mapped>, TensorProblem> {
        if !self.mapped.contains_key(location) {
            let path = self.resolve(location)?;
            let file =
                map_regular_file(&path).map_err(|source| io_problem(location, "opened", source))?;
            self.mapped.insert(location.to_owned(), file);
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
