//! `midtread evaluate`.

use std::path::PathBuf;

use clap::Args;
use midtread::{
    Error,
    evaluate::{Prediction, RunOptions, predict, score},
    graph::Model,
    onnx,
    quant::calibrate::Samples,
};

use crate::{
    args::DataArgs,
    context::{Context, Outcome},
    samples,
    table::percent,
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread evaluate model.int8.onnx --data pictures/ --labels labels.json --against model.onnx
  midtread evaluate model.int8.onnx --data pictures/ --against model.onnx --min-agreement 99
  midtread evaluate model.onnx --data t10k-images-idx3-ubyte.gz --labels t10k-labels-idx1-ubyte.gz")]
pub(crate) struct Evaluate {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// The right answers: CSV (file,label), JSON ({\"file\": label}) or an IDX file
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Another model, to see how often the two agree
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    /// The output with the scores [default: the first]
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// Exit with status 1 if less than this percentage of the first answers is right
    #[arg(long, value_name = "PERCENT", requires = "labels")]
    min_top1: Option<f64>,
    /// Exit with status 1 if the two models agree on less than this percentage
    #[arg(long, value_name = "PERCENT", requires = "against")]
    min_agreement: Option<f64>,
}

impl Evaluate {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        let model = onnx::load(&self.model).map_err(Error::from)?;
        let against =
            self.against.as_ref().map(|p| onnx::load(p).map_err(Error::from)).transpose()?;
        let data = samples::open(&self.data, &model, context)?;
        let labels = self.labels.as_ref().map(|path| samples::labels(path, &data)).transpose()?;
        let predict = |what: &str, model: &Model| -> anyhow::Result<Vec<Prediction>> {
            let bar = context.bar(what, data.names().len());
            let options = RunOptions {
                n_threads: context.n_threads,
                max_bytes: context.max_bytes,
                output: self.output.as_deref(),
                progress: &|n| bar.set_position(n as u64),
                interrupted: &context.interrupted,
            };
            let predictions = predict(model, &data, &options);
            bar.finish_and_clear();
            Ok(predictions?)
        };
        let ours = predict("evaluate", &model)?;
        let theirs = against.as_ref().map(|m| predict("the other model", m)).transpose()?;
        let right = labels.as_ref().map(|labels| |i: usize| labels[i].clone());
        let result = score(
            &ours,
            right.as_ref().map(|f| f as &dyn Fn(usize) -> Vec<usize>),
            theirs.as_deref(),
        );
        if context.json {
            context.print_json(&serde_json::to_value(&result)?);
        }
        context.say(format!("{} samples", result.samples));
        for (name, share) in [
            ("top-1", result.top1),
            ("top-5", result.top5),
            ("agrees with the other model", result.agreement),
        ] {
            if let Some(share) = share {
                context.say(format!("  {name}: {}", percent(share)));
            }
        }
        let mut outcome = Outcome::Done;
        for (what, share, least) in [
            ("top-1", result.top1, self.min_top1),
            ("agreement", result.agreement, self.min_agreement),
        ] {
            if let (Some(share), Some(least)) = (share, least)
                && 100.0 * share < least
            {
                context.warn(format!("{what} is {}, less than {least} %", percent(share)));
                outcome = Outcome::CheckFailed;
            }
        }
        Ok(outcome)
    }
}
