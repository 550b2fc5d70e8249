//! Files read and written at any place by several threads at once.
//!
//! Read, not mapped: the pages of a mapping count as memory of the process, so converting a checkpoint of any size would
//! seem to need as much; and a file that becomes shorter is an error here, not the end of the process.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::Error;

/// A file that tensors are read from.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) len: u64,
    file: File,
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        // A pipe would wait for a writer, and a device need not end.
        if !fs::metadata(path).map_err(Error::io(path, "opened"))?.is_file() {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(Error::io(path, "opened"))?;
        let len = file.metadata().map_err(Error::io(path, "opened"))?.len();
        Ok(Self { path: path.to_owned(), len, file })
    }

    /// Fills `bytes` from `offset` on.
    pub(crate) fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<(), Error> {
        read_exact_at(&self.file, bytes, offset).map_err(Error::io(&self.path, "read"))
    }

    /// The first bytes, as many as there are up to `n`.
    pub(crate) fn head(&self, n: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; self.len.min(n) as usize];
        self.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

/// A whole file under a temporary name beside its final one, removed unless it is put in place.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    file: NamedTempFile,
}

impl Partial {
    /// An empty file of `len` bytes, which are 0 until they are written.
    pub(crate) fn create(path: &Path, len: u64) -> Result<Self, Error> {
        // A folder cannot be replaced by a file, and a device must not be.
        if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(path.file_name().unwrap_or_default());
        prefix.push(".");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".partial");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(Error::io(path, "created"))?;
        file.as_file().set_len(len).map_err(Error::io(path, "created"))?;
        Ok(Self { path: path.to_owned(), file })
    }

    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        write_all_at(self.file.as_file(), bytes, offset).map_err(Error::io(&self.path, "written"))
    }

    pub(crate) fn put_in_place(self) -> Result<PathBuf, Error> {
        let failed = Error::io(&self.path, "replaced");
        self.file.persist(&self.path).map_err(|e| failed(e.error))?;
        Ok(self.path)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, bytes, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[n..];
        offset += n as u64;
    }
    Ok(())
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}
