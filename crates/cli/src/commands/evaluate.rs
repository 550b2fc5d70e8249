//! `midtread evaluate`.

use std::path::PathBuf;

use clap::Args;
use midtread::{
    Error, Requantize, Runtime,
    evaluate::{Difference, Prediction, RunOptions, closeness, predict, score},
    graph::Model,
    metric::metric,
    onnx,
    quant::calibrate::Samples,
    significance::Verdict,
};
use serde_json::json;

use crate::{
    args::DataArgs,
    commands::run::parse_runtime,
    context::{Context, Outcome},
    samples,
    table::percent,
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread evaluate model.int8.onnx --data pictures/ --labels labels.json --against model.onnx
  midtread evaluate model.int8.onnx --data pictures/ --against model.onnx --min-agreement 99
  midtread evaluate model.int8.onnx --data pictures/ --labels labels.json --against model.onnx --max-drop 0.5%
  midtread evaluate embed.int8.onnx --data sentences/ --against embed.onnx --values
  midtread evaluate detect.int8.onnx --data pictures/ --against detect.onnx --metric-command 'python map.py truth.json'
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
    /// Compare the values of the output instead of answers: mean absolute error, cosine, Spearman's correlation
    #[arg(long, requires = "against", conflicts_with_all = ["labels", "min_agreement"])]
    values: bool,
    /// Let a program judge the outputs: it is run by the shell with a folder as its last argument (samples.json, and
    /// a folder for each sample with OUTPUT.npy) and prints a number
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["labels", "values", "min_agreement"])]
    metric_command: Option<String>,
    /// Exit with status 1 if that number is less than this
    #[arg(long, value_name = "NUMBER", requires = "metric_command", allow_negative_numbers = true)]
    min_metric: Option<f64>,
    /// What runs the model; the other one is run by the interpreter: interpreter, engine
    #[arg(long, value_name = "NAME", default_value = "interpreter", value_parser = parse_runtime)]
    runtime: Runtime,
    /// How the engine comes from sums to codes: float, as ONNX Runtime, or fixed-point
    #[arg(long, value_name = "HOW", default_value = "float",
          value_parser = super::compile::parse_requantize)]
    requantize: Requantize,
    /// Exit with status 1 unless, with 95 % confidence, this percentage of right answers is lost at most: 0.5%
    #[arg(long, value_name = "PERCENT", requires_all = ["labels", "against"], value_parser = parse_percent)]
    max_drop: Option<f64>,
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
        if let Some(other) = against.as_ref().filter(|_| self.values) {
            return self.compare_values(&model, other, &data, context);
        }
        if let Some(command) = &self.metric_command {
            return self.ask(command, &model, against.as_ref(), &data, context);
        }
        let predict = |what: &str, model: &Model, runtime| -> anyhow::Result<Vec<Prediction>> {
            let bar = context.bar(what, data.names().len());
            let progress = |n| bar.set_position(n as u64);
            let options = RunOptions {
                runtime,
                output: self.output.as_deref(),
                ..context.run_options(&progress)
            };
            let predictions = predict(model, &data, &options);
            bar.finish_and_clear();
            Ok(predictions?)
        };
        let ours = predict("evaluate", &model, self.runtime.requantizing(self.requantize))?;
        let theirs = against
            .as_ref()
            .map(|m| predict("the other model", m, Runtime::Interpreter))
            .transpose()?;
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
        if let Some(difference) = &result.difference {
            say_difference(difference, context);
            if let Some(most) = self.max_drop
                && !is_within(difference, most, context)
            {
                outcome = Outcome::CheckFailed;
            }
        }
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

    fn ask(
        &self,
        command: &str,
        model: &Model,
        against: Option<&Model>,
        data: &dyn Samples,
        context: &Context,
    ) -> anyhow::Result<Outcome> {
        let ask = |model: &Model, runtime| -> anyhow::Result<f64> {
            let bar = context.bar("evaluate", data.names().len());
            let progress = |n| bar.set_position(n as u64);
            let options = RunOptions { runtime, ..context.run_options(&progress) };
            let number = metric(model, data, &options, command);
            bar.finish_and_clear();
            Ok(number?)
        };
        let ours = ask(model, self.runtime)?;
        let theirs = against.map(|other| ask(other, Runtime::Interpreter)).transpose()?;
        let n = data.names().len();
        if context.json {
            context.print_json(&json!({
                "samples": n, "metric": ours, "against": theirs,
                "difference": theirs.map(|theirs| ours - theirs),
            }));
        }
        context.say(format!("{n} samples\n  metric: {ours}"));
        if let Some(theirs) = theirs {
            context.say(format!("  the other model: {theirs} (difference {:+})", ours - theirs));
        }
        if let Some(least) = self.min_metric.filter(|&least| ours < least) {
            context.warn(format!("the metric is {ours}, less than {least}"));
            return Ok(Outcome::CheckFailed);
        }
        Ok(Outcome::Done)
    }

    fn compare_values(
        &self,
        model: &Model,
        other: &Model,
        data: &dyn Samples,
        context: &Context,
    ) -> anyhow::Result<Outcome> {
        let bar = context.bar("evaluate", data.names().len());
        let progress = |n| bar.set_position(n as u64);
        let options = RunOptions {
            runtime: self.runtime.requantizing(self.requantize),
            output: self.output.as_deref(),
            ..context.run_options(&progress)
        };
        let result = closeness(model, other, data, &options);
        bar.finish_and_clear();
        let result = result?;
        if context.json {
            context.print_json(&serde_json::to_value(result)?);
        }
        context.say(format!("{} samples", result.samples));
        context.say(format!("  mean absolute error: {:.4e}", result.mae));
        context.say(format!("  cosine: {:.6}", result.cosine));
        context.say(format!("  Spearman's correlation: {:.6}", result.spearman));
        Ok(Outcome::Done)
    }
}

pub(super) fn say_difference(difference: &Difference, context: &Context) {
    let (low, high) = difference.interval;
    context.say(format!(
        "  top-1 lost: {} ({} to {} with 95 % confidence; McNemar's p = {:.3})",
        percent(difference.drop),
        percent(low),
        percent(high),
        difference.p_value
    ));
    context.say(format!(
        "  {} only the other model has right, {} only this one; to tell a loss of 0.5 % takes {} samples",
        difference.paired.lost, difference.paired.gained, difference.samples_for_half_percent
    ));
}

/// Whether the drop is within the limit; says why it is not.
fn is_within(difference: &Difference, most: f64, context: &Context) -> bool {
    let (low, high) = difference.interval;
    match difference.paired.verdict(most) {
        Verdict::Within => return true,
        Verdict::Exceeded => context.warn(format!(
            "top-1 drops by more than {}: by {} at least, with 95 % confidence",
            percent(most),
            percent(low)
        )),
        Verdict::Unknown => context.warn(format!(
            "{} samples do not tell whether top-1 drops by more than {}: it may drop by up to {}; about {} samples would",
            difference.paired.n,
            percent(most),
            percent(high),
            difference.paired.samples_to_tell(most)
        )),
    }
    false
}

/// `0.5%` or `0.5`, as a share.
pub(super) fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').trim().parse::<f64>().ok();
    number
        .filter(|p| (0.0..=100.0).contains(p) && 0.0 < *p)
        .map(|p| p / 100.0)
        .ok_or_else(|| "a drop is a percentage above 0: 0.5%".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_may_have_its_sign() {
        assert_eq!(parse_percent("0.5%"), Ok(0.005));
        assert_eq!(parse_percent("2"), Ok(0.02));
        for text in ["", "%", "-1", "0", "101%", "nan"] {
            assert!(parse_percent(text).is_err(), "{text}");
        }
    }
}
