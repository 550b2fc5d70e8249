//! `midtread sensitivity`.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use midtread::{
    Error, Scheme,
    compare::sensitivity::{self, Effect, LayerRow, Options, Sensitivity, State, Task},
    manifest::Recorded,
    onnx,
    page::{Sources, page},
    quant::calibrate::{Collect, Samples},
    quantize::{Options as QuantizeOptions, measured},
    sensitivity::overrides_text,
};

use crate::{
    args::{DataArgs, PlanArgs, PrepareArgs},
    context::{Context, Outcome, check_output, read_text, write},
    pages, samples,
    table::{percent, shorten, table},
};

#[derive(Args)]
#[command(after_help = "Examples:
  midtread sensitivity model.onnx --data pictures/ --samples 32 --budget 60s
  midtread sensitivity model.onnx --data pictures/ --labels labels.csv --state layers.state
  midtread sensitivity model.onnx --data pictures/ --report layers.html
  midtread sensitivity model.onnx --data pictures/ -o sensitive.toml --keep 3
  midtread quantize model.onnx --data pictures/ --overrides sensitive.toml")]
pub(crate) struct SensitivityCommand {
    /// The float model; it is prepared first, as `quantize` does
    model: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// What `calibrate` left behind [default: calibrate on the samples]
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// The right answers: then accuracy ranks, and loss where it is equal
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Begin no other sample after this long; the first is always finished: 60s, 5m, 1h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    budget: Option<Duration>,
    /// Keep what is done in this file, and go on from it if it is there
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Write the most sensitive layers as overrides (`keep_float`) for `plan` and `quantize`
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How many layers those are [default: those that make up half of what all lose]
    #[arg(long, value_name = "N", requires = "output")]
    keep: Option<usize>,
    /// Write the ranking as one HTML page that needs no network
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Rows of the table, 0 for all; JSON always has all
    #[arg(long, default_value_t = 20, value_name = "N")]
    rows: usize,
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    prepare: PrepareArgs,
}

impl SensitivityCommand {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        let plan = self.plan.options()?;
        for path in [&self.output, &self.state, &self.report].into_iter().flatten() {
            check_output(path)?;
        }
        let resume = match self.state.as_ref().filter(|path| path.exists()) {
            Some(path) => Some(State::from_json(&read_text(path)?).map_err(Error::from)?),
            None => None,
        };
        let stats = self.stats.as_deref().map(super::stats::load).transpose()?;
        let model = onnx::load(&self.model).map_err(Error::from)?;
        let data = samples::open(&self.data, &model, context)?;
        let labels = self.labels.as_ref().map(|path| samples::labels(path, &data)).transpose()?;
        let data = Recorded::new(&data, usize::MAX);

        let progress = context.stages();
        let options = QuantizeOptions {
            prepare: self.prepare.options(None)?,
            target: self.plan.target()?,
            format: midtread::Format::Qdq,
            collect: self.report.as_ref().map(|_| Collect::Histogram),
            n_threads: context.n_threads,
            max_bytes: context.max_bytes,
            progress: &progress,
            interrupted: &context.interrupted,
            plan,
        };
        let is_static = options.plan.scheme == Scheme::Static;
        let measured =
            measured(model, stats, is_static.then_some(&data as &dyn Samples), &options)?;
        let QuantizeOptions { target, plan, .. } = options;
        drop(progress);

        let task = Task {
            prepared: &measured.prepared,
            ranges: measured.stats.as_ref().map(|stats| stats as _),
            target: &target,
            plan: &plan,
        };
        let bar = context.bar("sensitivity", 0);
        // A state that cannot be written is said at the end: the figures are there all the same.
        let (mut failed, mut written) = (None, std::time::Instant::now());
        let mut checkpoint = |state: &State| {
            let is_last = state.n_done == state.samples.len();
            let is_time =
                is_last || Duration::from_secs(1) < written.elapsed() || state.n_done == 1;
            if let Some(path) = self.state.as_ref().filter(|_| is_time) {
                failed = save(path, state).err();
                written = std::time::Instant::now();
            }
        };
        let labels = labels.as_ref().map(|labels| |i: usize| labels[i].clone());
        let result = sensitivity::sensitivity(
            &task,
            &data,
            Options {
                n_threads: context.n_threads,
                max_bytes: context.max_bytes,
                budget: self.budget,
                labels: labels.as_ref().map(|labels| labels as _),
                resume,
                checkpoint: &mut checkpoint,
                progress: &|done, of| {
                    bar.set_length(of as u64);
                    bar.set_position(done as u64);
                },
                interrupted: &context.interrupted,
            },
        );
        bar.finish_and_clear();
        let result = result.map_err(Error::from)?;
        let n_keep = self.keep.unwrap_or_else(|| result.half_of_the_loss());
        if let Some(path) = &self.output {
            context.check_interrupted()?;
            write(path, overrides_text(&result, n_keep).as_bytes())?;
        }
        if let Some(path) = &self.report {
            let whole = midtread::plan(&measured.prepared, measured.stats.as_ref(), &target, &plan)
                .map_err(Error::from)?;
            let sources = Sources {
                model: &measured.prepared,
                plan: Some(&whole),
                stats: measured.stats.as_ref(),
                comparison: None,
                sensitivity: Some(&result),
            };
            let title = format!("{}: sensitivity of its layers", pages::name(&self.model));
            let mut page = page(&title, &format!("{} samples", result.samples), &sources);
            page.manifest.push(pages::inputs(&[("model", &self.model)], Some(&data))?);
            context.check_interrupted()?;
            write(path, page.to_html().as_bytes())?;
        }
        if context.json {
            context.print_json(&serde_json::to_value(&result)?);
        } else {
            self.show(&result, n_keep, context);
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(Outcome::Done),
        }
    }

    fn show(&self, result: &Sensitivity, n_keep: usize, context: &Context) {
        let of = match result.samples_given {
            n if n == result.samples => String::new(),
            n => format!(" of {n} (the budget is spent)"),
        };
        context.say(format!(
            "{} layers, {} samples{of}; {} nodes run a sample instead of {}\n",
            result.layers.len(),
            result.samples,
            result.nodes_run,
            result.nodes_whole
        ));
        let n = if self.rows == 0 { result.layers.len() } else { self.rows };
        let has_labels = result.float_top1.is_some();
        let mut heading = vec!["layer, most sensitive first", "operator", "loss alone", "dB"];
        heading.extend(has_labels.then_some("top-1"));
        heading.extend(["loss without", "gain", "dB"]);
        heading.extend(has_labels.then_some("top-1"));
        let mut rows = vec![heading.into_iter().map(String::from).collect()];
        rows.extend(result.layers.iter().take(n).map(row));
        context.say(table(&rows));
        context.say("alone: only this layer quantized; without: all but this layer; gain: of the loss, what its float form saves");
        let whole = &result.quantized;
        context.say(format!(
            "all quantized: loss {:.2e}, {} dB{}",
            whole.loss,
            db(whole.sqnr_db),
            match (result.float_top1, whole.top1) {
                (Some(float), Some(top1)) =>
                    format!(", top-1 {} of {} in float", percent(top1), percent(float)),
                _ => String::new(),
            }
        ));
        if n < result.layers.len() {
            context.say(format!("({} layers more with --rows 0)", result.layers.len() - n));
        }
        if let Some(path) = &self.output {
            context.say(format!(
                "{}: {n_keep} layers to keep in float; use it with --overrides {}",
                path.display(),
                path.display()
            ));
        }
    }
}

fn save(path: &std::path::Path, state: &State) -> anyhow::Result<()> {
    write(path, serde_json::to_string(state)?.as_bytes())
}

fn row(layer: &LayerRow) -> Vec<String> {
    let top1 = |effect: &Effect| effect.top1.map(percent);
    let mut cells = vec![
        shorten(&layer.node, 28),
        layer.op_type.clone(),
        format!("{:.2e}", layer.alone.loss),
        db(layer.alone.sqnr_db),
    ];
    cells.extend(top1(&layer.alone));
    cells.extend([
        format!("{:.2e}", layer.in_float.loss),
        format!("{:+.1e}", layer.gain),
        db(layer.in_float.sqnr_db),
    ]);
    cells.extend(top1(&layer.in_float));
    cells
}

fn db(x: f64) -> String {
    if x.is_finite() { format!("{x:.1}") } else { "–".to_owned() }
}

/// `60s`, `90`, `5m`, `1h`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => f64::NAN,
    };
    let seconds = digits.parse::<f64>().unwrap_or(f64::NAN) * unit;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "a time is a number with s, m or h: 60s, 5m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_or_is_seconds() {
        for (text, want) in [("60s", 60.0), ("90", 90.0), ("1.5m", 90.0), ("1h", 3600.0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs_f64(want)), "{text}");
        }
        for text in ["", "s", "-1s", "0", "1d", "nan", "1e300h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
