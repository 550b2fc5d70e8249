//! A walk over a file's bytes before anything is built from them.
//!
//! It reads tags and lengths, jumps over data, and allocates nothing that grows with the file. What it lets through
//! is well formed, holds only fields that the definitions have (prost would drop others without a word), nests no
//! deeper than the stack allows, and unfolds to a bounded multiple of its size.

use crate::{error::Problem, schema::MESSAGES};

/// A protobuf message.
pub(crate) struct Message {
    /// Without the package.
    pub(crate) name: &'static str,
    /// By number.
    pub(crate) fields: &'static [Field],
}

/// A field of a message.
pub(crate) struct Field {
    pub(crate) number: u32,
    pub(crate) name: &'static str,
    pub(crate) repeated: bool,
    pub(crate) kind: Kind,
}

/// What a field holds.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Varint,
    Fixed32,
    Fixed64,
    /// UTF-8.
    String,
    Bytes,
    /// Another message, by its position in [`MESSAGES`].
    Message(usize),
}

/// Messages inside messages. prost stops at 100; a graph in a node of a graph is three levels deeper than it, so
/// control flow can nest 31 deep.
const MAX_DEPTH: usize = 96;

/// Fields that old versions of the definitions had, and that mean nothing any more: `FunctionProto.since_version`
/// and `.status`, gone since IR version 8.
const DEPRECATED: &[(&str, u32)] = &[("FunctionProto", 2), ("FunctionProto", 3)];

/// About what a message or a string takes in memory besides what it holds.
const MESSAGE_COST: u64 = 256;
const STRING_COST: u64 = 48;

/// What a file may take in memory: `BASE_COST + COST_PER_BYTE * size`. The nodes of real graphs cost about 10 times
/// their bytes in the file; an empty message costs 128 times its two.
const BASE_COST: u64 = 128 << 20;
const COST_PER_BYTE: u64 = 16;

/// Checks that `bytes` are the message `root` of [`MESSAGES`].
pub(crate) fn check(bytes: &[u8], root: usize) -> Result<(), Problem> {
    if let Some(what) = other_format(bytes) {
        return Err(Problem::NotOnnx { what });
    }
    let mut scan = Scan { bytes, path: Vec::new(), cost: 0, n_carried: 0 };
    scan.message(root, 0, bytes.len()).map_err(|problem| match problem {
        // `ir_version` comes first in every ONNX file in practice, so this is no ONNX file that was damaged.
        Problem::Truncated { .. } | Problem::Malformed { .. } | Problem::UnknownField { .. }
            if scan.path.is_empty() && bytes[0] != 0x08 =>
        {
            Problem::NotOnnx { what: "it is not a protobuf file of that kind" }
        }
        problem => problem,
    })
}

/// What the first bytes give away, of files that people have in the same folders.
fn other_format(bytes: &[u8]) -> Option<&'static str> {
    const MAGIC: &[(usize, &[u8], &str)] = &[
        (0, b"PK\x03\x04", "it looks like a ZIP archive (PyTorch and Keras save such files)"),
        (
            0,
            b"version https://git-lfs",
            "it is a Git LFS pointer; `git lfs pull` fetches the file itself",
        ),
        (0, b"<!DOCTYPE", "it looks like a web page"),
        (0, b"<!doctype", "it looks like a web page"),
        (0, b"<html", "it looks like a web page"),
        (0, b"GGUF", "it looks like a GGUF file"),
        (0, b"\x89HDF", "it looks like an HDF5 file"),
        (4, b"ORTM", "it looks like ONNX Runtime's own format (.ort)"),
        (4, b"TFL3", "it looks like a TensorFlow Lite model"),
        (8, b"{\"", "it looks like a safetensors file"),
        (0, b"\x1f\x8b", "it is compressed with gzip"),
        (0, b"\x93NUMPY", "it is a NumPy array"),
        (0, b"\x80\x02", "it looks like a Python pickle"),
    ];
    if bytes.is_empty() {
        return Some("it is empty");
    }
    let matches =
        |&&(at, magic, _): &&(usize, &[u8], &str)| bytes.get(at..at + magic.len()) == Some(magic);
    MAGIC.iter().find(matches).map(|&(_, _, what)| what)
}

struct Scan<'a> {
    bytes: &'a [u8],
    /// Field and position, from the outermost. Left as it is by an error.
    path: Vec<(&'static Field, usize)>,
    cost: u64,
    /// How many of the messages around are carried, not decoded.
    n_carried: usize,
}

impl Scan<'_> {
    fn message(&mut self, message: usize, mut pos: usize, end: usize) -> Result<(), Problem> {
        let message = &MESSAGES[message];
        let mut counts = [0_usize; 32];
        while pos < end {
            let start = pos;
            let key = self.varint(&mut pos, end)?;
            let (number, wire_type) = (key >> 3, key & 7);
            let Some(field_idx) = message.fields.iter().position(|f| u64::from(f.number) == number)
            else {
                let number = u32::try_from(number).ok().filter(|&n| 0 < n && n < 1 << 29);
                let Some(number) = number.filter(|_| matches!(wire_type, 0 | 1 | 2 | 5)) else {
                    return Err(self.malformed(start, format!("{key} is no field's tag")));
                };
                if !DEPRECATED.contains(&(message.name, number)) {
                    let at = self.at();
                    return Err(Problem::UnknownField { at, message: message.name, number });
                }
                self.skip(wire_type, &mut pos, end)?;
                continue;
            };
            let field = &message.fields[field_idx];
            match (field.kind, wire_type) {
                (Kind::Varint, 0) => {
                    let value = self.varint(&mut pos, end)?;
                    if 0 < self.n_carried
                        && message.name == "TensorProto"
                        && field.name == "data_location"
                        && value == 1
                    {
                        let what = "external data of a sparse tensor or of training information";
                        return Err(Problem::Unsupported { what: what.to_owned() });
                    }
                    self.pay(8)?;
                }
                (Kind::Fixed32, 5) | (Kind::Fixed64, 1) => {
                    self.skip(wire_type, &mut pos, end)?;
                    self.pay(8)?;
                }
                (Kind::Varint | Kind::Fixed32 | Kind::Fixed64, 2) if field.repeated => {
                    // Packed: at most eight times as large in memory, which the allowance covers.
                    let n = self.length(field, counts[field_idx], &mut pos, end)?;
                    self.pay(if matches!(field.kind, Kind::Varint) {
                        8 * n as u64
                    } else {
                        n as u64
                    })?;
                    pos += n;
                }
                (Kind::Bytes, 2) => {
                    let n = self.length(field, counts[field_idx], &mut pos, end)?;
                    self.pay(STRING_COST)?;
                    pos += n;
                }
                (Kind::String, 2) => {
                    let n = self.length(field, counts[field_idx], &mut pos, end)?;
                    if std::str::from_utf8(&self.bytes[pos..pos + n]).is_err() {
                        return Err(self.malformed(pos, format!("`{}` is not UTF-8", field.name)));
                    }
                    self.pay(STRING_COST + n as u64)?;
                    pos += n;
                }
                (Kind::Message(inner), 2) => {
                    let n = self.length(field, counts[field_idx], &mut pos, end)?;
                    self.pay(MESSAGE_COST)?;
                    self.path.push((field, counts[field_idx]));
                    if MAX_DEPTH < self.path.len() {
                        let what = format!("its messages nest deeper than {MAX_DEPTH} levels");
                        return Err(Problem::Excessive { what });
                    }
                    let carried =
                        matches!(MESSAGES[inner].name, "SparseTensorProto" | "TrainingInfoProto");
                    self.n_carried += usize::from(carried);
                    self.message(inner, pos, pos + n)?;
                    self.n_carried -= usize::from(carried);
                    self.path.pop();
                    pos += n;
                }
                _ => {
                    let what = format!("`{}` has wire type {wire_type}", field.name);
                    return Err(self.malformed(start, what));
                }
            }
            counts[field_idx] += 1;
        }
        Ok(())
    }

    fn pay(&mut self, cost: u64) -> Result<(), Problem> {
        self.cost += cost;
        let allowed = BASE_COST + COST_PER_BYTE * self.bytes.len() as u64;
        if self.cost <= allowed {
            return Ok(());
        }
        let what = format!(
            "its {} bytes would take more than {} MiB of memory",
            self.bytes.len(),
            allowed >> 20
        );
        Err(Problem::Excessive { what })
    }

    /// Reads a length, and checks that as much is left.
    fn length(
        &mut self,
        field: &'static Field,
        count: usize,
        pos: &mut usize,
        end: usize,
    ) -> Result<usize, Problem> {
        let needed = self.varint(pos, end)?;
        let got = (end - *pos) as u64;
        if needed <= got {
            return Ok(needed as usize);
        }
        self.path.push((field, count));
        let at = self.at();
        self.path.pop();
        Err(Problem::Truncated { at, needed, got })
    }

    fn skip(&mut self, wire_type: u64, pos: &mut usize, end: usize) -> Result<(), Problem> {
        let n = match wire_type {
            0 => return self.varint(pos, end).map(drop),
            1 => 8,
            2 => self.varint(pos, end)?,
            _ => 4,
        };
        let got = (end - *pos) as u64;
        if got < n {
            return Err(Problem::Truncated { at: self.at(), needed: n, got });
        }
        *pos += n as usize;
        Ok(())
    }

    fn varint(&mut self, pos: &mut usize, end: usize) -> Result<u64, Problem> {
        let start = *pos;
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            if *pos == end {
                return Err(Problem::Truncated { at: self.at(), needed: 1, got: 0 });
            }
            let byte = self.bytes[*pos];
            *pos += 1;
            value |= u64::from(byte & 0x7f) << shift;
            // The tenth byte holds the last bit.
            if byte < 0x80 && (shift < 63 || byte <= 1) {
                return Ok(value);
            }
        }
        Err(self.malformed(start, "a number is longer than 64 bits".to_owned()))
    }

    fn malformed(&self, offset: usize, what: String) -> Problem {
        Problem::Malformed { at: self.at(), offset, what }
    }

    fn at(&self) -> String {
        let mut at = String::new();
        for (field, i) in &self.path {
            if !at.is_empty() {
                at.push('.');
            }
            at.push_str(field.name);
            if field.repeated {
                at.push_str(&format!("[{i}]"));
            }
        }
        if at.is_empty() { "the outermost message".to_owned() } else { at }
    }
}
