//! Samples, labels and inputs as the command line names them.

use std::path::Path;

use anyhow::{Context as _, bail};
use midtread::{
    Error, Loaded,
    data::{self, InputSpec, Labels, Preprocess},
    graph::{Model, Tensor},
    quant::calibrate::Samples,
    samples::{self, DataSamples},
};

use crate::{args::DataArgs, context::Context};

/// The samples that the arguments name.
pub(crate) fn open(
    args: &DataArgs,
    model: &Model,
    context: &Context,
) -> anyhow::Result<DataSamples> {
    let samples = match (&args.data, args.random) {
        (Some(path), _) => {
            return open_at(path, args, args.samples.map(|n| n.get()), model, context);
        }
        (None, Some(n)) => {
            let specs = InputSpec::of(model).map_err(Error::from)?;
            DataSamples(data::random(&specs, n.get(), 0).map_err(Error::from)?)
        }
        (None, None) => {
            bail!("static quantization needs data: give --data PATH (or --random N, to try things)")
        }
    };
    Ok(samples)
}

/// The samples at another path, made into inputs as the arguments say.
pub(crate) fn open_at(
    path: &Path,
    args: &DataArgs,
    limit: Option<usize>,
    model: &Model,
    context: &Context,
) -> anyhow::Result<DataSamples> {
    let specs = InputSpec::of(model).map_err(Error::from)?;
    let preprocess =
        args.preprocess.as_deref().map(Preprocess::find).transpose().map_err(Error::from)?;
    let options = data::Options { preprocess, limit };
    let samples = samples::open(path, &specs, &options).map_err(Error::from)?;
    if let Some(warning) = samples.0.warning() {
        context.warn(warning);
    }
    Ok(samples)
}

/// The right classes of each sample.
pub(crate) fn labels(path: &Path, samples: &dyn Samples) -> anyhow::Result<Vec<Vec<usize>>> {
    let labels = Labels::open(path).map_err(Error::from)?;
    let names = samples.names();
    let of = |(i, name): (usize, &String)| labels.get(i, name).map(<[usize]>::to_vec);
    let found: Vec<_> = names.iter().enumerate().map(of).collect();
    if let Some(i) = found.iter().position(Option::is_none) {
        bail!("{} has no label for sample `{}`", path.display(), names[i]);
    }
    Ok(found.into_iter().flatten().collect())
}

/// The inputs of one run.
pub(crate) fn read_inputs_of(
    path: &Path,
    loaded: &Loaded,
) -> anyhow::Result<Vec<(String, Tensor)>> {
    let specs = loaded.inputs()?;
    let samples = data::open(path, &specs, &data::Options::default()).map_err(Error::from)?;
    Ok(samples.sample(0).map_err(Error::from)?.inputs)
}

/// Writes each output as NAME.npy.
pub(crate) fn write_outputs(folder: &Path, outputs: &[(String, Tensor)]) -> anyhow::Result<()> {
    for (name, tensor) in outputs {
        data::write::write_npy(folder, name, tensor).map_err(Error::from)?;
    }
    Ok(())
}

/// Bytes of a model's file and of the files with its external data.
pub(crate) fn model_bytes(path: &Path, model: &Model) -> anyhow::Result<u64> {
    let bytes = std::fs::metadata(path).with_context(|| path.display().to_string())?.len();
    // Tensors that lie in other files are not in this one.
    let constants: u64 = model
        .graph
        .values()
        .iter()
        .flat_map(|v| &v.constant)
        .map(|t| t.as_bytes().len() as u64)
        .sum();
    Ok(bytes.max(constants))
}
