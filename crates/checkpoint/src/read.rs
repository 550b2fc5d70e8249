//! A piece of a tensor as `f32`, whatever it is stored as.

use midtread_kernels::formats::floats;
use midtread_num::formats::{Shape, Sharing, nested};

use crate::checkpoint::Checkpoint;
use crate::dtype::Values;
use crate::error::Error;
use crate::layout::{Entry, Part, Parts, Stored};

/// Memory that a thread uses again and again.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) values: Vec<f32>,
    bytes: Vec<u8>,
}

impl Scratch {
    /// `n` bytes of anything.
    pub(crate) fn bytes(&mut self, n: usize) -> &mut [u8] {
        if self.bytes.len() < n {
            self.bytes.resize(n, 0);
        }
        &mut self.bytes[..n]
    }
}

/// Pieces of an entry can begin at multiples of so many elements.
pub(crate) fn source_unit(checkpoint: &Checkpoint, entry: &Entry) -> usize {
    match &entry.stored {
        Stored::Plain(i) => checkpoint.tensors[*i].dtype.block_size,
        Stored::Parts(parts) if parts.format.def.is_flat => match parts.format.settings.sharing {
            Sharing::Block(size) => size.saturating_mul(2 * nested::BLOCK_SIZE),
            _ => unreachable!("flat formats have blocks"),
        },
        // Eight rows end at a byte's border, whatever the width of the codes.
        Stored::Parts(parts) => parts.shape.cols.saturating_mul(8),
    }
}

/// Elements `start..start + len` into `scratch.values`.
pub(crate) fn read_values(
    checkpoint: &Checkpoint,
    entry: &Entry,
    start: usize,
    len: usize,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    if scratch.values.len() < len {
        scratch.values.resize(len, 0.0);
    }
    match &entry.stored {
        Stored::Plain(i) => read_plain(checkpoint, *i, start, len, scratch),
        Stored::Parts(parts) => read_parts(checkpoint, entry, parts, start, len, scratch),
    }
}

fn read_plain(
    checkpoint: &Checkpoint,
    i: usize,
    start: usize,
    len: usize,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let dtype = checkpoint.tensors[i].dtype;
    let offset = (start / dtype.block_size * dtype.n_bytes) as u64;
    let n_bytes = len / dtype.block_size * dtype.n_bytes;
    let Some(kind) = dtype.values else { unreachable!("the plan converts what can be read") };
    if let Values::F32 = kind {
        let values = &mut scratch.values[..len];
        checkpoint.read(i, offset, bytemuck::cast_slice_mut(values))?;
        if cfg!(target_endian = "big") {
            values.iter_mut().for_each(|x| *x = f32::from_bits(x.to_bits().swap_bytes()));
        }
        return Ok(());
    }
    checkpoint.read(i, offset, scratch.bytes(n_bytes))?;
    let (bytes, values) = (&scratch.bytes[..n_bytes], &mut scratch.values[..len]);
    match kind {
        Values::F32 => unreachable!("read above"),
        Values::Bf16 => {
            floats::from_bf16(bytes.as_chunks().0, values);
        }
        Values::F16 => {
            floats::from_f16(bytes.as_chunks().0, values);
        }
        Values::Float8(ty) => {
            for (x, b) in values.iter_mut().zip(bytes) {
                *x = ty.decode(u32::from(*b));
            }
        }
        Values::Blocks(_) => {
            dtype.blocks().expect("a block type").dequantize_row(bytes, values);
        }
    }
    Ok(())
}

fn read_parts(
    checkpoint: &Checkpoint,
    entry: &Entry,
    parts: &Parts,
    start: usize,
    len: usize,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let of = |n: usize| match (parts.format.def.is_flat, parts.shape.cols) {
        (true, _) => Shape { rows: 1, cols: n },
        (false, 0) => Shape { rows: 0, cols: 0 },
        (false, cols) => Shape { rows: n / cols, cols },
    };
    let (before, piece) = (parts.format.layout(of(start)), parts.format.layout(of(len)));
    let mut bytes = vec![];
    for (k, part) in parts.parts.iter().enumerate() {
        let offset = if before[k].is_whole || start == 0 { 0 } else { before[k].n_bytes() };
        bytes.push(match part {
            Part::Tensor(i) => {
                let mut bytes = vec![0; piece[k].n_bytes()];
                checkpoint.read(*i, offset as u64, &mut bytes)?;
                bytes
            }
            Part::Bytes(bytes) => bytes[offset..offset + piece[k].n_bytes()].to_vec(),
        });
    }
    let bytes: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
    let failed = |source| Error::Tensor { tensor: entry.name.clone(), source };
    let encoded = parts.format.unpack(&bytes, of(len)).map_err(failed)?;
    let values = parts.format.dequantize(&encoded, of(len));
    scratch.values[..len].copy_from_slice(&values);
    Ok(())
}
