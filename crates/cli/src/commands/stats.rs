//! `midtread stats`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use midtread::{
    Stats,
    num::QRange,
    quant::calibrate::{CALIBRATORS, Calibrator, RangeGoal},
};
use serde_json::json;

use crate::{
    context::{Context, Outcome, read_text, write},
    table::table,
};

#[derive(Args)]
pub(crate) struct StatsArgs {
    #[command(subcommand)]
    command: StatsCommand,
}

#[derive(Subcommand)]
enum StatsCommand {
    /// Add statistics of the same model over different samples
    Merge {
        /// Files that `calibrate` wrote
        #[arg(required = true, num_args = 2..)]
        files: Vec<PathBuf>,
        /// Where the sum goes
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
    /// Show the ranges that each calibrator chooses
    Show {
        /// A file that `calibrate` wrote
        file: PathBuf,
        /// Only tensors whose name contains this
        #[arg(long, value_name = "TEXT")]
        tensor: Option<String>,
    },
}

impl StatsArgs {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        match &self.command {
            StatsCommand::Merge { files, output } => merge(files, output, context),
            StatsCommand::Show { file, tensor } => show(file, tensor.as_deref(), context),
        }
    }
}

/// Statistics from a file, which an error names.
pub(super) fn load(path: &Path) -> anyhow::Result<Stats> {
    let text = read_text(path)?;
    let stats = Stats::from_text(&text).map_err(midtread::Error::from);
    anyhow::Context::with_context(stats, || path.display().to_string())
}

fn merge(files: &[PathBuf], output: &Path, context: &Context) -> anyhow::Result<Outcome> {
    let mut sum: Option<Stats> = None;
    for file in files {
        let stats = load(file)?;
        sum = Some(match sum {
            None => stats,
            Some(sum) => {
                let merged = sum.merge(&stats).map_err(midtread::Error::from);
                anyhow::Context::with_context(merged, || file.display().to_string())?
            }
        });
    }
    let sum = sum.expect("clap asks for two files or more");
    write(output, sum.to_text().as_bytes())?;
    let (n_tensors, n_samples) = (sum.tensors().len(), sum.samples().len());
    if context.json {
        let output = output.display().to_string();
        context
            .print_json(&json!({ "output": output, "tensors": n_tensors, "samples": n_samples }));
    }
    context.say(format!("{}: {n_tensors} tensors over {n_samples} samples", output.display()));
    Ok(Outcome::Done)
}

fn show(file: &Path, filter: Option<&str>, context: &Context) -> anyhow::Result<Outcome> {
    let stats = load(file)?;
    let goal = RangeGoal { range: QRange::U8, symmetric: false };
    let usable = |def: &&midtread::quant::calibrate::CalibratorDef| {
        !def.needs_histogram || stats.collect() == midtread::quant::calibrate::Collect::Histogram
    };
    let defs: Vec<_> = CALIBRATORS.iter().filter(usable).collect();
    let names = stats.tensors().keys().filter(|name| filter.is_none_or(|f| name.contains(f)));
    let mut rows = vec![vec!["tensor".to_owned()]];
    rows[0].extend(defs.iter().map(|def| def.name.to_owned()));
    let mut documents = Vec::new();
    for name in names {
        let ranges: Vec<_> = defs
            .iter()
            .map(|def| {
                let calibrator = Calibrator::named(def.name).expect("it is in the list");
                stats.range(name, &calibrator, &goal).ok()
            })
            .collect();
        let text = |r: &Option<(f32, f32)>| {
            r.map_or("–".into(), |(lo, hi)| format!("{lo:.4} … {hi:.4}"))
        };
        rows.push(std::iter::once(name.clone()).chain(ranges.iter().map(text)).collect());
        let ranges: serde_json::Map<_, _> =
            defs.iter().zip(&ranges).map(|(def, r)| (def.name.to_owned(), json!(r))).collect();
        documents.push(json!({ "tensor": name, "ranges": ranges }));
    }
    if context.json {
        context.print_json(&json!({ "samples": stats.samples().len(), "tensors": documents }));
    }
    context.say(table(&rows).trim_end());
    Ok(Outcome::Done)
}
