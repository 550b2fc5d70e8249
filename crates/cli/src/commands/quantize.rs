//! `midtread quantize`.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use midtread::{
    Options, Quantized,
    checkpoint::Checkpoint,
    half,
    manifest::Recorded,
    onnx::{self, SaveOptions},
    page::Sources,
    quant::{
        Plan, Scheme,
        blocks::{self, BlockDecision, BlockOptions, BlockPlan, Written},
        calibrate::{Collect, Samples},
        half::{HalfConstant, HalfDecision, HalfOptions, HalfPlan, Storage},
        plan::{Decision, NodePlan},
    },
    quantize::{Progress, peak_bytes},
    report::Page,
};
use serde_json::{Value, json};

use super::checkpoint::{self, CheckpointArgs};
use crate::{
    args::{DataArgs, FormatArgs, JudgeArgs, PlanArgs, PrepareArgs},
    context::{Context, Outcome, check_output, default_output, write},
    judging::{self, Timing},
    pages, samples,
    table::{size, table},
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread quantize mobilenet.onnx --data pictures/ --preprocess imagenet -o mobilenet.int8.onnx
  midtread quantize bert.onnx --scheme dynamic -o bert.int8.onnx
  midtread quantize model.onnx --data pictures/ --report report.html --valid held_out/ --valid-labels labels.csv
  midtread quantize model.onnx --data samples.npz --calibrator percentile --exclude 'head/*'
  midtread quantize model.onnx --scheme weight_only --weights i4 --granularity blocked:32
  midtread quantize model.onnx --scheme weight_only --format qoperator --weights nf4 --granularity blocked:64
  midtread quantize model.onnx --weights float16 --data samples.npz --keep-io-types
  midtread quantize model.safetensors --weights nf4 --nested -o model.nf4.safetensors
  midtread quantize model.safetensors.index.json --weights int4:32 --search mse --keep 'model.layers.0.*'
  midtread quantize model-f16.gguf --weights q4_k_m --importance imatrix.gguf -o model-q4_k_m.gguf
  midtread quantize model.nf4.safetensors --weights bfloat16 -o back.safetensors")]
pub(crate) struct Quantize {
    /// The float model: ONNX, or a checkpoint (.safetensors, .safetensors.index.json, .gguf)
    model: PathBuf,
    /// Where the quantized model goes [default: MODEL with .int8.onnx]; checkpoints: its ending says what is written
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    prepare: PrepareArgs,
    /// Keep the statistics of calibration in this file
    #[arg(long, value_name = "FILE")]
    save_stats: Option<PathBuf>,
    /// Keep the plan in this file
    #[arg(long, value_name = "FILE")]
    save_plan: Option<PathBuf>,
    /// Write what was done and what it cost as one HTML page that needs no network
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    judge: JudgeArgs,
    /// List every node or tensor, not only those kept in float
    #[arg(long)]
    ledger: bool,
    #[command(flatten)]
    checkpoint: Box<CheckpointArgs>,
}

impl Quantize {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        if Checkpoint::is_one(&self.model) {
            return self.convert(context);
        }
        if let Some(option) = self.checkpoint.used() {
            bail!(
                "{option} is for checkpoints: .safetensors, .safetensors.index.json and .gguf files"
            );
        }
        if let (Some(option), None) = (self.judge.used(), &self.report) {
            bail!("{option} is for the page: add --report FILE (or see `midtread evaluate`)");
        }
        let start = std::time::Instant::now();
        if let Some(options) = self.plan.half(Some(self.format.format))? {
            return self.run_half(options, context);
        }
        if let Some(options) = self.plan.blocks(self.format.format)? {
            return self.run_blocks(&options, context);
        }
        let plan = self.plan.options()?;
        let output = self.output.clone().unwrap_or_else(|| default_output(&self.model, "int8"));
        let outputs = [&self.save_stats, &self.save_plan, &self.report].map(Option::as_ref);
        outputs.into_iter().flatten().chain([&output]).try_for_each(|path| check_output(path))?;
        let progress = context.stages();
        let options = Options {
            prepare: self.prepare.options(None)?,
            target: self.plan.target()?,
            format: self.format.format,
            // The page shows histograms.
            collect: self.report.as_ref().map(|_| Collect::Histogram),
            n_threads: context.n_threads,
            max_bytes: context.max_bytes,
            progress: &progress,
            interrupted: &context.interrupted,
            plan,
        };
        let model = onnx::load(&self.model).map_err(midtread::Error::from)?;
        let is_static = options.plan.scheme == Scheme::Static;
        // The page of a scheme that needs no data compares on what data there is.
        let is_given = self.data.data.is_some() || self.data.random.is_some();
        let data = match is_static || (self.report.is_some() && is_given) {
            true => Some(samples::open(&self.data, &model, context)?),
            false => None,
        };
        let data = data.as_ref().map(|data| Recorded::new(data, usize::MAX));
        let bytes_in = samples::model_bytes(&self.model, &model)?;
        let samples = data.as_ref().filter(|_| is_static).map(|data| data as &dyn Samples);
        let result = midtread::quantize(model, samples, &options)?;
        drop(progress);
        context.check_interrupted()?;
        if let (Some(path), Some(stats)) = (&self.save_stats, &result.stats) {
            write(path, stats.to_text().as_bytes())?;
        }
        if let Some(path) = &self.save_plan {
            write(path, result.plan.to_text().as_bytes())?;
        }
        let saved = onnx::save(&result.model, &output, &SaveOptions::default())
            .map_err(midtread::Error::from)?;
        if let Some(path) = &self.report {
            let page =
                self.page(&result, &output, [bytes_in, saved.n_bytes], data.as_ref(), context)?;
            context.check_interrupted()?;
            write(path, page.to_html().as_bytes())?;
        }
        let seconds = start.elapsed().as_secs_f64();
        if context.json {
            context.print_json(&document(
                &output.display().to_string(),
                bytes_in,
                saved.n_bytes,
                &result,
                seconds,
            ));
            return Ok(Outcome::Done);
        }
        let counts = result.plan.counts();
        context.say(format!(
            "{} -> {}: {} -> {} ({:.2} of it), {:.1} s",
            self.model.display(),
            output.display(),
            size(bytes_in),
            size(saved.n_bytes),
            saved.n_bytes as f64 / bytes_in as f64,
            seconds
        ));
        context.say(format!(
            "{} nodes quantized, {} absorbed, {} kept in float, {} compute shapes",
            counts.quantized, counts.absorbed, counts.float, counts.structural
        ));
        context.say(ledger_text(&result.plan, self.ledger).trim_end());
        Ok(Outcome::Done)
    }

    fn page(
        &self,
        result: &Quantized,
        output: &Path,
        [bytes_in, bytes_out]: [u64; 2],
        data: Option<&Recorded<'_>>,
        context: &Context,
    ) -> anyhow::Result<Page> {
        let n_samples = data.map_or(0, |data| data.names().len());
        let comparison = match data {
            Some(data) => {
                let some = Recorded::new(data, MAX_COMPARED);
                Some(pages::compared(&result.prepared, &result.model, &some, context)?)
            }
            None => None,
        };
        let sources = Sources {
            model: &result.prepared,
            plan: Some(&result.plan),
            stats: result.stats.as_ref(),
            comparison: comparison.as_ref(),
            sensitivity: None,
        };
        let subtitle = match &comparison {
            Some(c) => format!("{n_samples} samples; compared on {} of them", c.samples),
            None => "without data: give --data to see the error of every layer".to_owned(),
        };
        let title = format!("{} quantized", pages::name(&self.model));
        // No clock but the latency's: the same inputs make the same page otherwise.
        let mut steps = midtread::demo::steps(result, n_samples);
        steps.iter_mut().for_each(|step| step.seconds = None);
        let mut page = midtread::page::page(&title, &subtitle, &sources);
        page.variants = vec![
            pages::variant(&self.model, bytes_in, None),
            pages::variant(output, bytes_out, comparison.as_ref()),
        ];
        page.steps = steps;
        let models = [&result.prepared, &result.model];
        let data_samples = data.map(|data| data as &dyn Samples);
        let found = judging::judge_by_labels(
            &mut page.variants,
            models,
            &self.judge,
            &self.data,
            data_samples,
            context,
        )?;
        page.difference = found.map(serde_json::to_value).transpose()?;
        if let Some(data) = data {
            let inputs = judging::first_inputs(data)?;
            Timing::BRIEF.time(&mut page.variants, models, &inputs, context)?;
        }
        page.manifest.push(pages::inputs(&[("model", &self.model), ("output", output)], data)?);
        Ok(page)
    }
}

impl Quantize {
    /// The whole model in 16-bit floats.
    fn run_half(&self, half: HalfOptions, context: &Context) -> anyhow::Result<Outcome> {
        let start = std::time::Instant::now();
        let tag = half.half.name();
        let output = self.output.clone().unwrap_or_else(|| default_output(&self.model, tag));
        let outputs = [Some(&output), self.save_stats.as_ref(), self.save_plan.as_ref()];
        outputs.into_iter().flatten().try_for_each(|path| check_output(path))?;
        if self.report.is_some() {
            bail!(
                "--report is about integers: compare the model in {tag} with `midtread report` instead"
            );
        }
        let progress = context.stages();
        let options = half::Options {
            prepare: self.prepare.options(None)?,
            half,
            target: self.plan.target()?,
            n_threads: context.n_threads,
            max_bytes: context.max_bytes,
            progress: &progress,
            interrupted: &context.interrupted,
        };
        let model = onnx::load(&self.model).map_err(midtread::Error::from)?;
        let has_data = self.data.data.is_some() || self.data.random.is_some();
        let samples =
            if has_data { Some(samples::open(&self.data, &model, context)?) } else { None };
        if self.save_stats.is_some() && !has_data {
            anyhow::bail!("--save-stats needs data: without it nothing is measured");
        }
        let bytes_in = samples::model_bytes(&self.model, &model)?;
        let samples = samples.as_ref().map(|s| s as &dyn midtread::quant::calibrate::Samples);
        let result = half::convert(model, samples, &options)?;
        drop(progress);
        context.check_interrupted()?;
        if let (Some(path), Some(stats)) = (&self.save_stats, &result.stats) {
            write(path, stats.to_text().as_bytes())?;
        }
        if let Some(path) = &self.save_plan {
            write(path, result.plan.to_text().as_bytes())?;
        }
        let saved = onnx::save(&result.model, &output, &SaveOptions::default())
            .map_err(midtread::Error::from)?;
        let seconds = start.elapsed().as_secs_f64();
        let counts = result.plan.counts();
        if context.json {
            context.print_json(&json!({
                "output": output.display().to_string(),
                "bytes_in": bytes_in,
                "bytes_out": saved.n_bytes,
                "nodes": { "half": counts.half, "float": counts.float, "either": counts.either },
                "constants": { "half": counts.half_constants, "float": counts.float_constants },
                "ledger": half_ledger(&result.plan),
                "samples": result.stats.as_ref().map_or(0, |stats| stats.samples().len()),
                "stages": result.seconds.iter().map(|(name, s)| json!({ "stage": name, "seconds": s })).collect::<Vec<_>>(),
                "seconds": seconds,
                "peak_bytes": peak_bytes(),
            }));
            return Ok(Outcome::Done);
        }
        context.say(format!(
            "{} -> {}: {} -> {} ({:.2} of it), {seconds:.1} s",
            self.model.display(),
            output.display(),
            size(bytes_in),
            size(saved.n_bytes),
            saved.n_bytes as f64 / bytes_in as f64,
        ));
        context.say(half_summary(&result.plan));
        context.say(half_ledger_text(&result.plan, self.ledger).trim_end());
        Ok(Outcome::Done)
    }
}

impl Quantize {
    /// Weights in blocks, for operators of ONNX Runtime.
    fn run_blocks(&self, options: &BlockOptions, context: &Context) -> anyhow::Result<Outcome> {
        let start = std::time::Instant::now();
        if self.save_plan.is_some() || self.save_stats.is_some() || self.report.is_some() {
            bail!(
                "--save-plan, --save-stats and --report: blocks have no plan file, statistics or page"
            );
        }
        let tag = options.block_type.to_string();
        let output = self.output.clone().unwrap_or_else(|| default_output(&self.model, &tag));
        check_output(&output)?;
        let progress = context.stages();
        let model = onnx::load(&self.model).map_err(midtread::Error::from)?;
        let bytes_in = samples::model_bytes(&self.model, &model)?;
        progress.stage("prepare", None);
        let (prepared, _) = midtread::passes::prepare(model, &self.prepare.options(None)?)
            .map_err(midtread::Error::from)?;
        progress.stage("quantize", None);
        let plan = blocks::plan(&prepared, options).map_err(midtread::Error::from)?;
        let (quantized, written) =
            blocks::apply(&prepared, &plan).map_err(midtread::Error::from)?;
        drop(progress);
        context.check_interrupted()?;
        let saved = onnx::save(&quantized, &output, &SaveOptions::default())
            .map_err(midtread::Error::from)?;
        let seconds = start.elapsed().as_secs_f64();
        if context.json {
            let weight = |w: &Written| {
                json!({
                    "weight": w.weight,
                    "rows": w.rows,
                    "cols": w.cols,
                    "bits_per_weight": w.bits_per_weight,
                    "sqnr_db": w.sqnr_db,
                })
            };
            context.print_json(&json!({
                "output": output.display().to_string(),
                "bytes_in": bytes_in,
                "bytes_out": saved.n_bytes,
                "weights": written.iter().map(weight).collect::<Vec<_>>(),
                "ledger": block_rows(&plan, true).iter().map(|[node, op_type, status, reason]| {
                    let reason = (!reason.is_empty()).then_some(reason);
                    json!({ "node": node, "op_type": op_type, "status": status, "reason": reason })
                }).collect::<Vec<_>>(),
                "seconds": seconds,
                "peak_bytes": peak_bytes(),
            }));
            return Ok(Outcome::Done);
        }
        context.say(format!(
            "{} -> {}: {} -> {} ({:.2} of it), {seconds:.1} s",
            self.model.display(),
            output.display(),
            size(bytes_in),
            size(saved.n_bytes),
            saved.n_bytes as f64 / bytes_in as f64,
        ));
        let mut rows =
            vec![["weight", "rows", "columns", "bits", "SQNR"].map(str::to_owned).to_vec()];
        rows.extend(written.iter().map(|w| {
            vec![
                w.weight.clone(),
                w.rows.to_string(),
                w.cols.to_string(),
                format!("{:.2}", w.bits_per_weight),
                format!("{:.1} dB", w.sqnr_db),
            ]
        }));
        if 1 < rows.len() {
            context.say(table(&rows).trim_end());
        }
        let mut rows = vec![["node", "operator", "status", "reason"].map(str::to_owned).to_vec()];
        rows.extend(block_rows(&plan, self.ledger).into_iter().map(|row| row.to_vec()));
        if 1 < rows.len() {
            context.say(table(&rows).trim_end());
        }
        Ok(Outcome::Done)
    }
}

/// Node, operator, status and reason of the nodes that stay in float, or of all.
fn block_rows(plan: &BlockPlan, all: bool) -> Vec<[String; 4]> {
    let rows = plan.nodes.iter().filter_map(|node| {
        let (status, reason) = match &node.decision {
            BlockDecision::Float(reason) => ("float", reason.clone()),
            BlockDecision::Product { .. } | BlockDecision::Lookup if all => {
                ("quantized", String::new())
            }
            BlockDecision::NoWeight if all => ("no weight", String::new()),
            _ => return None,
        };
        Some([node.node.clone(), node.op_type.clone(), status.to_owned(), reason])
    });
    rows.collect()
}

/// One line about a 16-bit plan.
pub(super) fn half_summary(plan: &HalfPlan) -> String {
    let (counts, half) = (plan.counts(), plan.half);
    format!(
        "{} nodes in {half}, {} kept in float32, {} of no or either type; {} constants in {half}, {} in float32",
        counts.half, counts.float, counts.either, counts.half_constants, counts.float_constants
    )
}

/// Nodes and constants of a 16-bit plan as JSON.
pub(super) fn half_ledger(plan: &HalfPlan) -> Vec<Value> {
    let mut rows = Vec::new();
    for graph in &plan.graphs {
        for node in &graph.nodes {
            rows.push(json!({
                "node": format!("{}{}", graph.path, node.node),
                "op_type": node.op_type,
                "status": node.decision.status(),
                "reason": node.decision.reason(),
            }));
        }
        for HalfConstant { constant, storage } in &graph.constants {
            let (status, reason) = match storage {
                Storage::Half => ("half", None),
                Storage::Mask => ("mask", None),
                Storage::Float(reason) => ("float", Some(reason)),
            };
            rows.push(json!({
                "constant": format!("{}{constant}", graph.path),
                "status": status,
                "reason": reason,
            }));
        }
    }
    rows
}

/// The nodes kept in float32 with their reasons, those of one kind and reason in one row; or every node.
pub(super) fn half_ledger_text(plan: &HalfPlan, all: bool) -> String {
    let mut rows = vec![["node", "operator", "status", "reason"].map(str::to_owned).to_vec()];
    let mut groups: Vec<(&str, &str, Vec<String>)> = Vec::new();
    for graph in &plan.graphs {
        for node in &graph.nodes {
            let label = format!("{}{}", graph.path, node.node);
            let reason = node.decision.reason().unwrap_or_default();
            if all {
                let status = node.decision.status();
                rows.push(vec![label, node.op_type.clone(), status.into(), reason.into()]);
            } else if matches!(node.decision, HalfDecision::Float(_)) {
                let key = (node.op_type.as_str(), reason);
                match groups.iter_mut().find(|(op_type, why, _)| (*op_type, *why) == key) {
                    Some((_, _, labels)) => labels.push(label),
                    None => groups.push((key.0, key.1, vec![label])),
                }
            }
        }
        for HalfConstant { constant, storage } in &graph.constants {
            if *storage == Storage::Mask {
                let label = format!("{}{constant}", graph.path);
                let reason = "a mask before a Softmax: brought into the type's range";
                rows.push(vec![label, "constant".into(), "mask".into(), reason.into()]);
            }
        }
    }
    for (op_type, reason, labels) in groups {
        let first = match labels.len() {
            1 => labels[0].clone(),
            n => format!("{} and {} more", labels[0], n - 1),
        };
        rows.push(vec![first, op_type.into(), "float".into(), reason.into()]);
    }
    if rows.len() == 1 { String::new() } else { table(&rows) }
}
/// Samples that the page's comparison is about, at most.
const MAX_COMPARED: usize = 32;

impl Quantize {
    /// Of a checkpoint only the weights are there: nothing is calibrated.
    fn convert(&self, context: &Context) -> anyhow::Result<Outcome> {
        let given = [
            ("--data", self.data.data.is_some()),
            ("--random", self.data.random.is_some()),
            ("--save-stats", self.save_stats.is_some()),
            ("--save-plan", self.save_plan.is_some()),
            ("--report", self.report.is_some()),
            ("--labels", self.judge.labels.is_some()),
            ("--valid", self.judge.valid.is_some()),
            ("--overrides", self.plan.overrides.is_some()),
        ];
        if let Some((option, _)) = given.iter().find(|(_, is_given)| *is_given) {
            bail!("{option} is for ONNX models: a checkpoint has weights only");
        }
        let (output, weights) = (self.output.as_deref(), &self.plan.weights);
        checkpoint::quantize(context, &self.model, output, weights, &self.checkpoint, self.ledger)
    }
}

fn document(
    output: &str,
    bytes_in: u64,
    bytes_out: u64,
    result: &Quantized,
    seconds: f64,
) -> Value {
    let counts = result.plan.counts();
    json!({
        "output": output,
        "bytes_in": bytes_in,
        "bytes_out": bytes_out,
        "nodes": {
            "quantized": counts.quantized,
            "absorbed": counts.absorbed,
            "float": counts.float,
            "structural": counts.structural,
        },
        "ledger": ledger(&result.plan),
        "samples": result.stats.as_ref().map_or(0, |stats| stats.samples().len()),
        "stages": result.seconds.iter().map(|(name, s)| json!({ "stage": name, "seconds": s })).collect::<Vec<_>>(),
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
    })
}

/// The ledger as JSON.
pub(super) fn ledger(plan: &Plan) -> Vec<Value> {
    let row = |node: &NodePlan| {
        json!({
            "node": node.node,
            "op_type": node.op_type,
            "status": node.decision.status(),
            "reason": node.decision.reason(),
        })
    };
    plan.nodes.iter().map(row).collect()
}

/// The ledger for people: the nodes kept in float, or all.
pub(super) fn ledger_text(plan: &Plan, all: bool) -> String {
    let mut rows = vec![["node", "operator", "status", "reason"].map(str::to_owned).to_vec()];
    for node in &plan.nodes {
        if all || matches!(node.decision, Decision::Float { .. }) {
            rows.push(vec![
                node.node.clone(),
                node.op_type.clone(),
                node.decision.status().to_owned(),
                node.decision.reason().unwrap_or_default(),
            ]);
        }
    }
    if rows.len() == 1 { String::new() } else { table(&rows) }
}
