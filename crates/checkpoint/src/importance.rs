//! How much each column of a weight matters: the mean square of what it is multiplied with.
//!
//! A file has them by the weight's name: a safetensors or GGUF file with a tensor of that name and as many elements as
//! a row of the weight, or llama.cpp's importance matrix in GGUF: `NAME.in_sum2` with sums and `NAME.counts` with how
//! many rows they are of.

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::dtype::Values;
use crate::error::Error;

/// Importances by the name of the weight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importances(BTreeMap<String, Vec<f32>>);

/// The longest row that importances are read for.
const MAX_COLS: u64 = 1 << 24;

impl Importances {
    /// From a map.
    pub fn new(by_name: BTreeMap<String, Vec<f32>>) -> Self {
        Self(by_name)
    }

    /// Reads a file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open(path)?;
        let mut by_name = BTreeMap::new();
        let find = |name: &str| checkpoint.tensors.iter().position(|t| t.name == name);
        for (i, tensor) in checkpoint.tensors.iter().enumerate() {
            if tensor.name.ends_with(".counts") {
                continue;
            }
            let (name, counts) = match tensor.name.strip_suffix(".in_sum2") {
                Some(name) => (name, find(&format!("{name}.counts"))),
                None => (tensor.name.as_str(), None),
            };
            let bad =
                |what: &str| Error::malformed(path, format!("importances of `{name}`: {what}"));
            let mut values = read(&checkpoint, i).map_err(|what| bad(&what))??;
            if let Some(counts) = counts {
                match read(&checkpoint, counts).map_err(|what| bad(&what))??[..] {
                    [n] if 0.0 < n => values.iter_mut().for_each(|x| *x /= n),
                    [_] => continue,
                    _ => return Err(bad("several matrices in one tensor are not supported")),
                }
            }
            if values.iter().any(|x| !(x.is_finite() && 0.0 <= *x)) {
                return Err(bad("they must be finite and not negative"));
            }
            by_name.insert(name.to_owned(), values);
        }
        Ok(Self(by_name))
    }

    /// Those of a weight.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.0.get(name).map(Vec::as_slice)
    }
}

/// The values of a small float32 tensor; the outer error is a clause.
fn read(checkpoint: &Checkpoint, i: usize) -> Result<Result<Vec<f32>, Error>, String> {
    let tensor = &checkpoint.tensors[i];
    if !matches!(tensor.dtype.values, Some(Values::F32)) {
        return Err(format!("they are {}, and float32 is needed", tensor.dtype.name));
    }
    if 4 * MAX_COLS < tensor.n_bytes {
        return Err("there are too many".into());
    }
    let mut bytes = vec![0; tensor.n_bytes as usize];
    Ok(checkpoint
        .read(i, 0, &mut bytes)
        .map(|()| bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
}
