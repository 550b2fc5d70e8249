//! As much of the ZIP format as `numpy.savez` and `savez_compressed` write: entries that are stored or deflated,
//! with 64-bit sizes where needed.
//!
//! PKWARE's APPNOTE.TXT, sections 4.3 to 4.5.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use flate2::read::DeflateDecoder;

/// A file in an archive.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    method: u16,
    compressed: u64,
    /// Size when unpacked.
    pub(crate) n_bytes: u64,
    header_at: u64,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn u16_at(bytes: &[u8], at: usize) -> io::Result<u16> {
    let bytes = bytes.get(at..at + 2).ok_or_else(|| bad("the archive is cut off"))?;
    Ok(u16::from_le_bytes(bytes.try_into().expect("two bytes")))
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    let bytes = bytes.get(at..at + 4).ok_or_else(|| bad("the archive is cut off"))?;
    Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
}

fn u64_at(bytes: &[u8], at: usize) -> io::Result<u64> {
    Ok(u64::from(u32_at(bytes, at)?) | u64::from(u32_at(bytes, at + 4)?) << 32)
}

/// The archive's entries, from the directory at its end.
pub(crate) fn entries(path: &Path) -> io::Result<Vec<Entry>> {
    /// The directory of a file of calibration data has a line an input.
    const MAX_DIRECTORY: u64 = 64 << 20;
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    // The end record has 22 bytes and a comment; before it may be the 64-bit one's address.
    let n_tail = len.min(22 + 65_535 + 20);
    let mut tail = vec![0; n_tail as usize];
    file.seek(SeekFrom::Start(len - n_tail))?;
    file.read_exact(&mut tail)?;
    let end = tail
        .windows(4)
        .rposition(|w| w == b"PK\x05\x06")
        .ok_or_else(|| bad("it is not a ZIP archive"))?;
    let mut n_directory = u64::from(u32_at(&tail, end + 12)?);
    let mut directory_at = u64::from(u32_at(&tail, end + 16)?);
    if 20 <= end && tail[end - 20..end].starts_with(b"PK\x06\x07") {
        let record_at = u64_at(&tail, end - 20 + 8)?;
        let mut record = [0; 56];
        file.seek(SeekFrom::Start(record_at))?;
        file.read_exact(&mut record)?;
        if !record.starts_with(b"PK\x06\x06") {
            return Err(bad("the archive's end record is damaged"));
        }
        (n_directory, directory_at) = (u64_at(&record, 40)?, u64_at(&record, 48)?);
    }
    if MAX_DIRECTORY.min(len) < n_directory {
        return Err(bad("the archive's directory is damaged"));
    }
    let mut directory = vec![0; n_directory as usize];
    file.seek(SeekFrom::Start(directory_at))?;
    file.read_exact(&mut directory)?;

    let mut entries = Vec::new();
    let mut rest = &directory[..];
    while rest.starts_with(b"PK\x01\x02") {
        let (n_name, n_extra, n_comment) = (
            usize::from(u16_at(rest, 28)?),
            usize::from(u16_at(rest, 30)?),
            usize::from(u16_at(rest, 32)?),
        );
        let total = 46 + n_name + n_extra + n_comment;
        if rest.len() < total {
            return Err(bad("the archive's directory is cut off"));
        }
        if u16_at(rest, 8)? & 1 != 0 {
            return Err(bad("the archive is encrypted"));
        }
        let mut entry = Entry {
            name: String::from_utf8_lossy(&rest[46..46 + n_name]).into_owned(),
            method: u16_at(rest, 10)?,
            compressed: u64::from(u32_at(rest, 20)?),
            n_bytes: u64::from(u32_at(rest, 24)?),
            header_at: u64::from(u32_at(rest, 42)?),
        };
        // Sizes that do not fit 32 bits are in an extra field, in this order.
        let mut extra = &rest[46 + n_name..46 + n_name + n_extra];
        while 4 <= extra.len() {
            let (id, n) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
            let Some(content) = extra.get(4..4 + n) else { break };
            if id == 1 {
                let mut at = 0;
                for field in [&mut entry.n_bytes, &mut entry.compressed, &mut entry.header_at] {
                    if *field == u64::from(u32::MAX) {
                        *field = u64_at(content, at)?;
                        at += 8;
                    }
                }
            }
            extra = &extra[4 + n..];
        }
        // Sizes are a claim until here. Deflate packs 258 bytes into two bits at best.
        let at_most = if entry.is_stored() {
            entry.compressed
        } else {
            entry.compressed.saturating_mul(1032)
        };
        if len < entry.compressed || at_most < entry.n_bytes {
            return Err(bad("the archive's directory has sizes that are not possible"));
        }
        entries.push(entry);
        rest = &rest[total..];
    }
    Ok(entries)
}

impl Entry {
    /// Whether a part can be read without what comes before it.
    pub(crate) fn is_stored(&self) -> bool {
        self.method == 0
    }

    /// The unpacked bytes, from the beginning.
    pub(crate) fn open(&self, path: &Path) -> io::Result<Box<dyn Read>> {
        let packed = io::BufReader::new(self.open_stored(path)?.take(self.compressed));
        match self.method {
            0 => Ok(Box::new(packed)),
            8 => Ok(Box::new(DeflateDecoder::new(packed).take(self.n_bytes))),
            _ => Err(bad("the archive uses a compression that is not supported")),
        }
    }

    /// The file, at the entry's first byte.
    pub(crate) fn open_stored(&self, path: &Path) -> io::Result<File> {
        let mut file = File::open(path)?;
        let mut header = [0; 30];
        file.seek(SeekFrom::Start(self.header_at))?;
        file.read_exact(&mut header)?;
        if !header.starts_with(b"PK\x03\x04") {
            return Err(bad("the archive's directory is damaged"));
        }
        let skip = u64::from(u16_at(&header, 26)?) + u64::from(u16_at(&header, 28)?);
        file.seek(SeekFrom::Start(self.header_at + 30 + skip))?;
        Ok(file)
    }
}
