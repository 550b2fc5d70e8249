//! Random numbers, for when somebody asks for them.

use midtread_graph::{DataType, Sample, Tensor};

use crate::{
    error::Error,
    source::Source,
    spec::{Check, InputSpec, fit},
};

struct Random {
    names: Vec<String>,
    specs: Vec<InputSpec>,
    dims: Vec<Vec<usize>>,
    seed: u64,
}

/// `n` samples of random numbers: about normal with standard deviation 1 for real types, 0 to 9 for integers. An
/// open leading size is taken as 1; other sizes must be fixed. The same seed gives the same samples.
///
/// Ranges calibrated with them say nothing about real data: [`Source::warning`] says so.
pub fn random(specs: &[InputSpec], n: usize, seed: u64) -> Result<Box<dyn Source>, Error> {
    let specs: Vec<_> = specs.iter().filter(|spec| spec.required).cloned().collect();
    let sizes = |spec: &InputSpec| {
        let unknown = |axis| Error::UnknownSize { input: spec.name.clone(), axis };
        let dims = spec.dims.as_ref().ok_or_else(|| unknown(0))?;
        let size = |(axis, d): (usize, &Option<usize>)| match d {
            None if axis == 0 => Ok(1),
            d => d.ok_or_else(|| unknown(axis)),
        };
        dims.iter().enumerate().map(size).collect()
    };
    let dims = specs.iter().map(sizes).collect::<Result<_, _>>()?;
    let width = n.saturating_sub(1).to_string().len();
    let names = (0..n).map(|i| format!("random[{i:0width$}]")).collect();
    Ok(Box::new(Random { names, specs, dims, seed }))
}

impl Source for Random {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn sample(&self, i: usize) -> Result<Sample, Error> {
        let given = self.specs.iter().zip(&self.dims).enumerate().map(|(k, (spec, dims))| {
            // A stream for each tensor, so that samples do not depend on the order in which they are read.
            let stream = SplitMix(self.seed).next() ^ (i as u64) << 20 ^ k as u64;
            Ok((spec.name.clone(), tensor(spec, dims, &mut SplitMix(stream))?))
        });
        fit(&self.names[i], &self.specs, given.collect::<Result<_, Error>>()?, Check::Shape)
    }

    fn warning(&self) -> Option<&str> {
        Some("the data is random: ranges, and accuracy, on real data will be different")
    }
}

fn tensor(spec: &InputSpec, dims: &[usize], random: &mut SplitMix) -> Result<Tensor, Error> {
    let unsupported = |what: String| Error::Unsupported { input: spec.name.clone(), what };
    let n = midtread_graph::tensor::n_elements(dims).map_err(|e| unsupported(e.to_string()))?;
    let mut floats = || (0..n).map(|_| random.normal()).collect::<Vec<f32>>();
    let dims = dims.to_vec();
    let tensor = match spec.dtype {
        DataType::Float => Tensor::from_slice(dims, &floats()),
        DataType::Double => {
            Tensor::from_slice(dims, &floats().into_iter().map(f64::from).collect::<Vec<_>>())
        }
        DataType::Float16 => Tensor::from_slice(
            dims,
            &floats().into_iter().map(half::f16::from_f32).collect::<Vec<_>>(),
        ),
        DataType::Bfloat16 => Tensor::from_slice(
            dims,
            &floats().into_iter().map(half::bf16::from_f32).collect::<Vec<_>>(),
        ),
        DataType::Int64 => {
            Tensor::from_slice(dims, &(0..n).map(|_| random.digit()).collect::<Vec<i64>>())
        }
        DataType::Int32 => {
            Tensor::from_slice(dims, &(0..n).map(|_| random.digit() as i32).collect::<Vec<_>>())
        }
        DataType::Uint8 => {
            Tensor::from_slice(dims, &(0..n).map(|_| random.digit() as u8).collect::<Vec<_>>())
        }
        DataType::Int8 => {
            Tensor::from_slice(dims, &(0..n).map(|_| random.digit() as i8).collect::<Vec<_>>())
        }
        DataType::Bool => {
            let bytes: Vec<u8> = (0..n).map(|_| random.digit() as u8 & 1).collect();
            return Tensor::from_bytes(DataType::Bool, dims, bytes.into())
                .map_err(|e| unsupported(e.to_string()));
        }
        other => return Err(unsupported(format!("random data of type {other}"))),
    };
    tensor.map_err(|e| unsupported(e.to_string()))
}

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn digit(&mut self) -> i64 {
        (self.next() % 10) as i64
    }

    /// The sum of twelve numbers in [0, 1), less 6: the same on every machine, unlike a logarithm.
    fn normal(&mut self) -> f32 {
        let sum: u64 = (0..12).map(|_| self.next() >> 40).sum();
        (sum as f64 / f64::from(1 << 24) - 6.0) as f32
    }
}
