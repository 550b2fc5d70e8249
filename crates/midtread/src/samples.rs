//! Data sources as the samples that calibration and evaluation read.

use std::path::Path;

use midtread_data::{Error, InputSpec, Options, Source};
use midtread_graph::Sample;
use midtread_quant::calibrate::Samples;

/// A data source that can be calibrated with.
pub struct DataSamples(pub Box<dyn Source>);

impl Samples for DataSamples {
    fn names(&self) -> Vec<String> {
        self.0.names().to_vec()
    }

    fn sample(&self, i: usize) -> Result<Sample, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.sample(i)?)
    }
}

/// The samples at `path`, for a model with the inputs `specs`.
pub fn open(
    path: impl AsRef<Path>,
    specs: &[InputSpec],
    options: &Options,
) -> Result<DataSamples, Error> {
    Ok(DataSamples(midtread_data::open(path, specs, options)?))
}
