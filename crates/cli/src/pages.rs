//! What the pages of several commands have in common.

use std::path::Path;

use midtread::{
    Comparison, Error, Format, Options, PlanOptions, Stats, Target,
    compare::{self, compare},
    graph::Model,
    manifest::{Recorded, file_checksum},
    page::{Sources, page},
    passes,
    quant::calibrate::{Collect, Samples},
    quantize::measure,
    report::{
        Page,
        page::{Group, Variant},
    },
};

use crate::context::{Context, Stages};

/// Compares two models, with a bar.
pub(crate) fn compared(
    float: &Model,
    quantized: &Model,
    samples: &dyn Samples,
    context: &Context,
) -> anyhow::Result<Comparison> {
    let bar = context.bar("compare", samples.names().len());
    let options = compare::Options {
        n_threads: context.n_threads,
        max_bytes: context.max_bytes,
        progress: &|n| bar.set_position(n as u64),
        interrupted: &context.interrupted,
    };
    let result = compare(float, quantized, samples, &options);
    bar.finish_and_clear();
    Ok(result.map_err(Error::from)?)
}

/// What values a model's tensors take, with histograms.
fn measured(model: &Model, samples: &dyn Samples, context: &Context) -> anyhow::Result<Stats> {
    let progress = context.stages();
    let options = defaults(&progress, context)?;
    Ok(measure(model, samples, Collect::Histogram, &options)?)
}

/// Quantization as nobody asked for anything special.
fn defaults<'a>(progress: &'a Stages, context: &'a Context) -> anyhow::Result<Options<'a>> {
    Ok(Options {
        prepare: Default::default(),
        plan: PlanOptions::default(),
        target: Target::find("onnxruntime_cpu").map_err(Error::from)?,
        format: Format::Qdq,
        collect: None,
        n_threads: context.n_threads,
        max_bytes: context.max_bytes,
        progress,
        interrupted: &context.interrupted,
    })
}

/// The page of a float model and a quantized one, compared on these samples.
pub(crate) fn of_two(
    [(float_path, float_bytes), (quantized_path, quantized_bytes)]: [(&Path, u64); 2],
    float: &Model,
    samples: &Recorded<'_>,
    comparison: &Comparison,
    context: &Context,
) -> anyhow::Result<Page> {
    let prepared = match comparison.prepared {
        true => Some(passes::prepare(float.clone(), &Default::default()).map_err(Error::from)?.0),
        false => None,
    };
    let model = prepared.as_ref().unwrap_or(float);
    let stats = measured(model, samples, context)?;
    let sources = Sources {
        model,
        plan: None,
        stats: Some(&stats),
        comparison: Some(comparison),
        sensitivity: None,
    };
    let title = format!("{} and {}", name(float_path), name(quantized_path));
    let note = if comparison.prepared { "; the float model was prepared first" } else { "" };
    let mut page = page(&title, &format!("{} samples{note}", comparison.samples), &sources);
    page.variants = vec![
        variant(float_path, float_bytes, None),
        variant(quantized_path, quantized_bytes, Some(comparison)),
    ];
    page.manifest
        .push(inputs(&[("float", float_path), ("quantized", quantized_path)], Some(samples))?);
    Ok(page)
}

/// One model of the table.
pub(crate) fn variant(path: &Path, bytes: u64, comparison: Option<&Comparison>) -> Variant {
    let agreement = comparison.and_then(|c| c.outputs.iter().find_map(|o| o.agreement));
    Variant { name: name(path), bytes, agreement, ..Variant::default() }
}

/// A file's name without its folder.
pub(crate) fn name(path: &Path) -> String {
    path.file_name()
        .map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}

/// The inputs of a manifest.
pub(crate) fn inputs(
    files: &[(&str, &Path)],
    samples: Option<&Recorded<'_>>,
) -> anyhow::Result<Group> {
    let mut items = Vec::new();
    for (what, path) in files {
        items.push(((*what).to_owned(), format!("{} {}", name(path), file_checksum(path)?)));
    }
    if let Some(samples) = samples {
        let (n, checksum) = samples.checksum();
        items.push(("samples".to_owned(), format!("{n} {checksum}")));
    }
    Ok(Group { name: "inputs".to_owned(), items })
}
