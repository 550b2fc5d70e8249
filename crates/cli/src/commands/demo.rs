//! `midtread demo`.

use std::{fs, path::PathBuf, time::Instant};

use clap::Args;
use midtread::{
    Error, Format, Options, PlanOptions, Runner, Runtime, Target,
    data::{self, InputSpec, Labels, Preprocess},
    demo::{self, Figures},
    evaluate::{Prediction, predict, score},
    graph::Model,
    latency::latency,
    manifest::Recorded,
    onnx::{self, SaveOptions},
    quant::calibrate::{Collect, Samples},
    samples::{self, DataSamples},
};
use serde_json::{Value, json};

use crate::{
    context::{Context, Outcome, write},
    pages,
    table::{percent, size, table},
};

/// A MobileNetV2-like network trained on Fashion-MNIST, the data set's 10,000 test images, and 512 of its training
/// images to calibrate with.
const MODEL: &[u8] = include_bytes!("../../../../assets/demo/fashion_mobilenet.onnx");
const FILES: &[(&str, &[u8])] = &[
    (
        "calibration-images-idx3-ubyte.gz",
        include_bytes!("../../../../assets/demo/calibration-images-idx3-ubyte.gz"),
    ),
    (
        "t10k-images-idx3-ubyte.gz",
        include_bytes!("../../../../assets/demo/t10k-images-idx3-ubyte.gz"),
    ),
    (
        "t10k-labels-idx1-ubyte.gz",
        include_bytes!("../../../../assets/demo/t10k-labels-idx1-ubyte.gz"),
    ),
];
const CLASSES: &str = include_str!("../../../../assets/demo/labels.json");

#[derive(Args)]
#[command(after_help = "Example:
  midtread demo --output out/demo && open out/demo/report.html")]
pub(crate) struct Demo {
    /// Where the models, the plan, the statistics and the report go
    #[arg(long, short, default_value = "out/demo", value_name = "FOLDER")]
    output: PathBuf,
}

impl Demo {
    pub(crate) fn run(&self, context: &Context) -> anyhow::Result<Outcome> {
        let start = Instant::now();
        let folder = &self.output;
        fs::create_dir_all(folder)
            .map_err(|source| Error::File { path: folder.clone(), source })?;
        let float_path = folder.join("fashion_mobilenet.onnx");
        let int8_path = folder.join("fashion_mobilenet.int8.onnx");
        write(&float_path, MODEL)?;
        for (name, bytes) in FILES {
            write(&folder.join(name), bytes)?;
        }

        context.say("A MobileNetV2-like network, trained on Fashion-MNIST (28x28 pictures of clothes, 10 classes).");
        let float = onnx::load(&float_path).map_err(Error::from)?;
        let specs = InputSpec::of(&float).map_err(Error::from)?;
        let preprocess = Preprocess::preset("fashion_mnist");
        let open = |name: &str| {
            let options = data::Options { preprocess: preprocess.clone(), limit: None };
            samples::open(folder.join(name), &specs, &options).map_err(Error::from)
        };
        let (calibration, test) = (open(FILES[0].0)?, open(FILES[1].0)?);
        let labels = Labels::open(folder.join(FILES[2].0)).map_err(Error::from)?;

        let progress = context.stages();
        let options = Options {
            prepare: Default::default(),
            plan: PlanOptions::default(),
            target: Target::find("onnxruntime_cpu").map_err(Error::from)?,
            // The smaller of the two forms: a scale and a zero point of each bias need no place of their own.
            format: Format::QOperator,
            collect: Some(Collect::Histogram),
            n_threads: context.n_threads,
            max_bytes: context.max_bytes,
            progress: &progress,
            interrupted: &context.interrupted,
        };
        let result = midtread::quantize(float.clone(), Some(&calibration), &options)?;
        drop(progress);
        context.check_interrupted()?;
        onnx::save(&result.model, &int8_path, &SaveOptions::default()).map_err(Error::from)?;
        if let Some(stats) = &result.stats {
            write(&folder.join("fashion_mobilenet.stats"), stats.to_text().as_bytes())?;
        }
        write(&folder.join("fashion_mobilenet.plan"), result.plan.to_text().as_bytes())?;
        let steps = demo::steps(&result, calibration.names().len());
        for step in &steps {
            context.say(format!(
                "  {:<10} {:>6.2} s   {}",
                step.name,
                step.seconds.unwrap_or(0.0),
                step.did
            ));
        }

        // What was written is what is scored.
        let int8 = onnx::load(&int8_path).map_err(Error::from)?;
        let float_answers = self.score(context, "float32", &float, &test)?;
        let int8_answers = self.score(context, "int8", &int8, &test)?;
        let one = test.sample(0).map_err(Error::Sample)?;
        let time = |model: &Model, runtime| {
            latency(&Runner::new(model, runtime, None)?, &one.inputs, 100, 1)
        };
        let (float_time, int8_time) =
            (time(&result.prepared, Runtime::Interpreter)?, time(&int8, Runtime::Engine)?);
        let right: Vec<Vec<usize>> = test
            .names()
            .iter()
            .enumerate()
            .map(|(i, name)| labels.get(i, name).map(<[usize]>::to_vec).unwrap_or_default())
            .collect();
        let bytes = |path: &PathBuf| fs::metadata(path).map(|m| m.len()).unwrap_or(0);
        let float_figures = Figures::new(
            "float32",
            bytes(&float_path),
            &float_answers,
            &right,
            None,
            (float_time, Runtime::Interpreter),
        );
        let int8_figures = Figures::new(
            "int8",
            bytes(&int8_path),
            &int8_answers,
            &right,
            Some(&float_answers),
            (int8_time, Runtime::Engine),
        );

        let classes: Vec<String> = serde_json::from_str(CLASSES)?;
        let of = |i: usize| right[i].clone();
        let difference = score(&int8_answers, Some(&of), Some(&float_answers)).difference;
        // Where the error comes from shows on few samples.
        let some = Recorded::new(&calibration, 64);
        let comparison = pages::compared(&result.prepared, &int8, &some, context)?;
        let figures = [&float_figures, &int8_figures];
        let page = demo::page(&result, &comparison, steps, figures, difference, &classes);
        let report_path = folder.join("report.html");
        write(&report_path, page.to_html().as_bytes())?;

        if context.json {
            let figures = |f: &Figures| -> Value {
                json!({ "top1": f.top1, "bytes": f.bytes, "latency_ms": f.latency.median, "agreement": f.agreement })
            };
            context.print_json(&json!({
                "float": figures(&float_figures),
                "int8": figures(&int8_figures),
                "samples": test.names().len(),
                "report": report_path.display().to_string(),
                "seconds": start.elapsed().as_secs_f64(),
            }));
            return Ok(Outcome::Done);
        }
        let row = |f: &Figures| {
            vec![
                f.name.clone(),
                size(f.bytes),
                percent(f.top1),
                f.agreement.map_or("–".into(), percent),
                format!("{:.3} ms", f.latency.median),
            ]
        };
        let heading =
            ["", "size", "top-1 of 10,000", "agrees with float", "one picture, one thread"];
        let rows =
            vec![heading.map(str::to_owned).to_vec(), row(&float_figures), row(&int8_figures)];
        context.say("");
        context.say(table(&rows).trim_end());
        context.say("Scored by the interpreter, node by node, exactly as ONNX defines both models; timed are float32 in the");
        context.say("interpreter and int8 in midtread's engine, in integers.");
        context.say("");
        context.say(format!(
            "Everything is in {}; open {} in a browser.",
            folder.display(),
            report_path.display()
        ));
        context.say(format!("{:.1} s in all.", start.elapsed().as_secs_f64()));
        Ok(Outcome::Done)
    }

    fn score(
        &self,
        context: &Context,
        what: &str,
        model: &Model,
        test: &DataSamples,
    ) -> anyhow::Result<Vec<Prediction>> {
        let bar = context.bar(&format!("score {what}"), test.names().len());
        let progress = |n| bar.set_position(n as u64);
        let options = context.run_options(&progress);
        let answers = predict(model, test, &options);
        bar.finish_and_clear();
        Ok(answers?)
    }
}
