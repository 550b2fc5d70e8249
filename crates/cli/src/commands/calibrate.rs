//! `midtread calibrate`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use midtread::{Options, PlanOptions, onnx, quant::calibrate::Collect, quantize};
use serde_json::json;

use crate::{
    args::{DataArgs, OpsetArgs, PrepareArgs},
    context::{Context, Outcome, check_output, write},
    samples,
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread calibrate model.onnx --data pictures/ --preprocess imagenet -o model.stats
  midtread calibrate model.onnx --data half1/ -o 1.stats      (then: midtread stats merge 1.stats 2.stats -o all.stats)")]
pub(crate) struct Calibrate {
    /// The float model; it is prepared first, as `quantize` does
    model: PathBuf,
    /// Where the statistics go
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    prepare: PrepareArgs,
    #[command(flatten)]
    opset: OpsetArgs,
    /// What to keep of each tensor: its extrema alone, or a histogram, which every calibrator can use
    #[arg(long, default_value = "histogram", value_name = "WHAT")]
    collect: What,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Extrema,
    Histogram,
}

impl Calibrate {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        check_output(&self.output)?;
        let progress = context.stages();
        let options = Options {
            prepare: self.prepare.options(Some(self.opset.opset))?,
            plan: PlanOptions::default(),
            target: midtread::Target::find("onnxruntime_cpu").map_err(midtread::Error::from)?,
            format: midtread::Format::Qdq,
            collect: None,
            n_threads: context.n_threads,
            max_bytes: context.max_bytes,
            progress: &progress,
            interrupted: &context.interrupted,
        };
        let model = onnx::load(&self.model).map_err(midtread::Error::from)?;
        let samples = samples::open(&self.data, &model, context)?;
        let (prepared, _) =
            midtread::passes::prepare(model, &options.prepare).map_err(midtread::Error::from)?;
        let collect = match self.collect {
            What::Extrema => Collect::Extrema,
            What::Histogram => Collect::Histogram,
        };
        let stats = quantize::measure(&prepared, &samples, collect, &options)?;
        drop(progress);
        write(&self.output, stats.to_text().as_bytes())?;
        let (n_tensors, n_samples) = (stats.tensors().len(), stats.samples().len());
        if context.json {
            context.print_json(&json!({
                "output": self.output.display().to_string(),
                "tensors": n_tensors,
                "samples": n_samples,
                "peak_bytes": quantize::peak_bytes(),
            }));
        }
        context.say(format!(
            "{}: {n_tensors} tensors over {n_samples} samples",
            self.output.display()
        ));
        Ok(Outcome::Done)
    }
}
