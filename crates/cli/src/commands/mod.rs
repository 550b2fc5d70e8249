//! One file a command.

mod apply;
mod bench;
mod calibrate;
mod checkpoint;
mod compare;
mod compile;
mod demo;
mod evaluate;
mod explain;
mod inspect;
mod plan;
mod prepare;
mod quantize;
mod report;
mod run;
mod sensitivity;
mod stats;
mod train;
mod trim;
mod tune;

use clap::Subcommand;

use crate::context::{Context, Outcome};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Quantize a real network on real data, and show what it cost
    Demo(demo::Demo),
    /// Show what a model is made of, and what this machine offers
    Inspect(inspect::Inspect),
    /// Fold, fuse and clean a model, without changing what it computes
    Prepare(prepare::Prepare),
    /// Measure what values each tensor of a prepared model takes
    Calibrate(calibrate::Calibrate),
    /// Show or merge what calibration left behind
    Stats(stats::StatsArgs),
    /// Decide how every tensor is represented, and write that down
    Plan(plan::PlanCommand),
    /// Write the quantized model that a plan describes
    Apply(apply::Apply),
    /// Quantize a model: prepare, calibrate, plan and apply in one; or convert a checkpoint's weights
    Quantize(quantize::Quantize),
    /// Try ways of quantizing from one calibration, and write the smallest model that keeps its quality
    Tune(Box<tune::Tune>),
    /// Train a model for its integers: quantization-aware training, no training framework needed
    Train(Box<train::Train>),
    /// Find how few bits a network needs within an error margin, and write it so
    Trim(trim::Trim),
    /// Run a model once, or many times to see how long it takes
    Run(run::Run),
    /// Compile a quantized model for the engine, into a file that is read without compiling again
    Compile(compile::Compile),
    /// Time models side by side: threads, interpreter, engine and ONNX Runtime
    Bench(bench::Bench),
    /// Show what quantization did to every tensor, the worst first, and what would help
    Compare(compare::Compare),
    /// Measure what each layer costs, quantized alone and left in float alone
    Sensitivity(Box<sensitivity::SensitivityCommand>),
    /// Join size, accuracy and latency of a model before and after, in one table and one page
    Report(report::ReportCommand),
    /// Score a model on labelled data, or against another model
    Evaluate(evaluate::Evaluate),
    /// Show what quantization does to a value or a tensor, and what each number type holds
    Explain(explain::Explain),
}

impl Command {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        match self {
            Self::Demo(args) => args.run(context),
            Self::Inspect(args) => args.run(context),
            Self::Prepare(args) => args.run(context),
            Self::Calibrate(args) => args.run(context),
            Self::Stats(args) => args.run(context),
            Self::Plan(args) => args.run(context),
            Self::Apply(args) => args.run(context),
            Self::Quantize(args) => args.run(context),
            Self::Tune(args) => args.run(context),
            Self::Train(args) => args.run(context),
            Self::Trim(args) => args.run(context),
            Self::Run(args) => args.run(context),
            Self::Compile(args) => args.run(context),
            Self::Bench(args) => args.run(context),
            Self::Compare(args) => args.run(context),
            Self::Sensitivity(args) => args.run(context),
            Self::Report(args) => args.run(context),
            Self::Evaluate(args) => args.run(context),
            Self::Explain(args) => args.run(context),
        }
    }
}
