//! IDX, the format of MNIST and its relatives: two zeros, an element type, the number of sizes, big-endian sizes,
//! big-endian elements; often compressed with gzip.
//!
//! <http://yann.lecun.com/exdb/mnist/>

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use flate2::read::GzDecoder;
use midtread_graph::{AlignedBuf, DataType, Sample, Tensor, tensor::n_elements};

use crate::{
    error::Error,
    images,
    preprocess::{Pixels, Preprocess},
    source::{Options, Source, extension, numbered},
    spec::{Check, InputSpec, fit},
};

/// Whether a file's name is one that these files have.
pub(crate) fn has_idx_name(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let kind = name.rsplit(['-', '.']).next().unwrap_or_default();
    name.contains("idx")
        && kind.starts_with(|c: char| "ubidfs".contains(c))
        && !name.contains("labels")
}

/// Whether a file begins as these do.
pub(crate) fn is_idx(path: &Path) -> Result<bool, Error> {
    let mut start = [0; 4];
    let read = open_file(path)?.read_exact(&mut start);
    Ok(read.is_ok()
        && start[..2] == [0, 0]
        && dtype_of(start[2]).is_some()
        && (1..=8).contains(&start[3]))
}

fn open_file(path: &Path) -> Result<Box<dyn Read>, Error> {
    let file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    Ok(if extension(path) == "gz" { Box::new(GzDecoder::new(file)) } else { Box::new(file) })
}

fn dtype_of(code: u8) -> Option<DataType> {
    Some(match code {
        0x08 => DataType::Uint8,
        0x09 => DataType::Int8,
        0x0b => DataType::Int16,
        0x0c => DataType::Int32,
        0x0d => DataType::Float,
        0x0e => DataType::Double,
        _ => return None,
    })
}

/// The whole array. These files are small (MNIST's largest has 47 MB).
pub(crate) fn read(path: &Path) -> Result<Tensor, Error> {
    let bad = |what: String| Error::format(path, what);
    let cut_off = || bad("it is cut off".to_owned());
    let mut file = open_file(path)?;
    let mut start = [0; 4];
    file.read_exact(&mut start).map_err(|_| cut_off())?;
    let dtype = dtype_of(start[2]).filter(|_| start[..2] == [0, 0] && (1..=8).contains(&start[3]));
    let dtype = dtype.ok_or_else(|| bad("it is not an IDX file".to_owned()))?;
    let mut dims = Vec::new();
    for _ in 0..start[3] {
        let mut size = [0; 4];
        file.read_exact(&mut size).map_err(|_| cut_off())?;
        dims.push(u32::from_be_bytes(size) as usize);
    }
    let n_bytes = n_elements(&dims).ok().and_then(|n| dtype.n_bytes(n));
    let n_bytes =
        n_bytes.ok_or_else(|| bad(format!("{dims:?} has more elements than can be addressed")))?;
    // Grows as bytes come, so that sizes that are not true cost nothing.
    let mut bytes = Vec::new();
    let limit = n_bytes as u64;
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|e| bad(format!("it cannot be unpacked: {e}")))?;
    if bytes.len() < n_bytes {
        return Err(cut_off());
    }
    let size = dtype.n_bytes(1).expect("of a fixed size");
    bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    Ok(Tensor::from_buf(dtype, dims, AlignedBuf::from_bytes(&bytes))
        .expect("as long as the sizes call for"))
}

struct Idx {
    names: Vec<String>,
    array: Tensor,
    spec: InputSpec,
    /// Bytes are images, and this is what to do with them.
    preprocess: Option<Preprocess>,
    path: std::path::PathBuf,
}

pub(crate) fn open(
    path: &Path,
    specs: &[InputSpec],
    options: &Options,
) -> Result<Box<dyn Source>, Error> {
    let array = read(path)?;
    if array.is_empty() {
        return Err(Error::format(path, format!("{:?} has no elements", array.dims())));
    }
    let is_image = array.dtype() == DataType::Uint8 && matches!(array.dims().len(), 3 | 4);
    let takes_bytes = specs.iter().any(|spec| spec.required && spec.dtype == DataType::Uint8);
    let (spec, preprocess) = if is_image && !(takes_bytes && options.preprocess.is_none()) {
        let (spec, preprocess) = images::only_input(path, specs, options)?;
        (spec, Some(preprocess))
    } else {
        let mut required = specs.iter().filter(|spec| spec.required);
        match (required.next(), required.next()) {
            (Some(spec), None) => (spec.clone(), None),
            _ => {
                return Err(Error::format(
                    path,
                    "it is one array, and the model does not have one input",
                ));
            }
        }
    };
    if preprocess.is_some() && array.dims().len() == 4 && array.dims()[3] != 3 {
        return Err(Error::format(
            path,
            format!("{:?} are no pictures in gray or RGB", array.dims()),
        ));
    }
    Ok(Box::new(Idx {
        names: numbered(path, array.dims()[0]),
        array,
        spec,
        preprocess,
        path: path.to_owned(),
    }))
}

impl Source for Idx {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn sample(&self, i: usize) -> Result<Sample, Error> {
        let dims = &self.array.dims()[1..];
        let n_bytes = self.array.as_bytes().len() / self.array.dims()[0];
        let bytes = self.array.to_shared_bytes().slice(i * n_bytes..(i + 1) * n_bytes);
        let tensor = match &self.preprocess {
            Some(preprocess) => {
                let n_channels = dims.get(2).map_or(1, |&n| n);
                let (height, width) = (dims[0] as u32, dims[1] as u32);
                let pixels = Pixels { width, height, n_channels, bytes: bytes.to_vec() };
                preprocess
                    .apply(pixels, &self.spec)
                    .map_err(|what| Error::format(&self.path, what))?
            }
            None => {
                let tensor = Tensor::from_bytes(self.array.dtype(), dims.to_vec(), bytes);
                tensor.expect("one part of equal ones").to_aligned()
            }
        };
        let given = vec![(self.spec.name.clone(), tensor)];
        fit(&self.names[i], std::slice::from_ref(&self.spec), given, Check::Finite)
    }
}
