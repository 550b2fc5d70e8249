//! The page of a training: its curves, and what it came to.

use crate::page::{Chart, Figure, Group, Page, Series, Step, Variant};

/// A training.
#[derive(Clone, Debug)]
pub struct Training {
    /// What the page is called.
    pub title: String,
    /// A sentence under the title.
    pub subtitle: String,
    /// What is measured: `top-1`, `agreement`, `mse`.
    pub metric: String,
    /// Every epoch.
    pub epochs: Vec<EpochRow>,
    /// Which of them the model is of, from 1.
    pub best: usize,
    /// Every so many steps: steps done, mean loss of the epoch so far, learning rate.
    pub steps: Vec<(usize, f64, f64)>,
    /// The float model, the trained one, and others: name, size in bytes, metric.
    pub models: Vec<(String, u64, f64)>,
    /// What the page says went in, by name.
    pub manifest: Vec<Group>,
}

/// One epoch.
#[derive(Clone, Copy, Debug)]
pub struct EpochRow {
    /// Mean loss.
    pub loss: f64,
    /// The metric, if it was measured.
    pub metric: Option<f64>,
    /// Time it took.
    pub seconds: f64,
}

/// The page: losses, learning rates and metrics as curves, the models side by side, and an epoch a line.
pub fn page(training: &Training) -> Page {
    let Training { metric, epochs, steps, .. } = training;
    let shown = |value: f64| match metric.as_str() {
        "mse" => format!("{value:.6}"),
        _ => format!("{:.2} %", 100.0 * value),
    };
    let x: Vec<f64> = steps.iter().map(|(step, ..)| *step as f64).collect();
    let curve = |title: &str, y: &str, x: &[f64], x_label: &str, values: Vec<Option<f64>>| Chart {
        title: title.to_owned(),
        x_label: x_label.to_owned(),
        y_label: y.to_owned(),
        x: x.to_vec(),
        series: vec![Series { name: y.to_owned(), values }],
        note: None,
    };
    let mut charts = Vec::new();
    // A point is no curve.
    if 1 < steps.len() {
        let loss = steps.iter().map(|(_, loss, _)| Some(*loss)).collect();
        let rate = steps.iter().map(|(.., rate)| Some(*rate)).collect();
        let note = "The mean since the epoch began: a jump is the beginning of an epoch.";
        charts.push(Chart {
            note: Some(note.to_owned()),
            ..curve("Loss", "loss", &x, "steps", loss)
        });
        charts.push(curve("Learning rate", "learning rate", &x, "steps", rate));
    }
    let at: Vec<f64> = (1..=epochs.len()).map(|i| i as f64).collect();
    if 1 < epochs.iter().filter(|e| e.metric.is_some()).count() {
        let scores = epochs.iter().map(|e| e.metric).collect();
        let mut chart = curve("On the validation data", metric, &at, "epochs", scores);
        for (name, _, value) in training.models.iter().filter(|m| m.0 != "trained") {
            let values = vec![Some(*value); epochs.len()];
            chart.series.push(Series { name: name.clone(), values });
        }
        charts.push(chart);
    }
    let variant = |(name, bytes, value): &(String, u64, f64)| {
        let mut variant = Variant { name: name.clone(), bytes: *bytes, ..Variant::default() };
        *match metric.as_str() {
            "top-1" => &mut variant.top1,
            "agreement" => &mut variant.agreement,
            _ => &mut variant.metric,
        } = Some(*value);
        variant
    };
    let line = |(i, epoch): (usize, &EpochRow)| Step {
        name: format!("epoch {}", i + 1),
        did: match epoch.metric {
            Some(value) => format!("loss {:.5}, {metric} {}", epoch.loss, shown(value)),
            None => format!("loss {:.5}", epoch.loss),
        },
        seconds: Some(epoch.seconds),
    };
    let figure = |value: String, label: &str| Figure { value, label: label.to_owned(), tone: None };
    Page {
        title: training.title.clone(),
        subtitle: training.subtitle.clone(),
        figures: vec![
            figure(epochs.len().to_string(), "epochs"),
            figure(training.best.to_string(), "is the epoch that the weights are of"),
        ],
        variants: training.models.iter().map(variant).collect(),
        steps: epochs.iter().enumerate().map(line).collect(),
        charts,
        manifest: training.manifest.clone(),
        ..Page::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training() -> Training {
        let epoch = |loss, metric| EpochRow { loss, metric: Some(metric), seconds: 2.5 };
        Training {
            title: "a </script><b> & c".into(),
            subtitle: String::new(),
            metric: "top-1".into(),
            epochs: vec![epoch(0.5, 0.9), epoch(0.25, 0.95)],
            best: 2,
            steps: vec![(10, 0.75, 1e-3), (20, 0.5, 5e-4), (30, 0.25, 0.0)],
            models: vec![("float".into(), 4000, 0.96), ("trained".into(), 1000, 0.95)],
            manifest: vec![Group { name: "options".into(), items: vec![("x".into(), "1".into())] }],
        }
    }

    #[test]
    fn the_page_is_that_of_the_other_reports_with_the_curves_in_it() {
        let made = page(&training());
        let titles: Vec<&str> = made.charts.iter().map(|c| c.title.as_str()).collect();
        assert_eq!(titles, ["Loss", "Learning rate", "On the validation data"]);
        assert_eq!(made.charts[0].series[0].values, [Some(0.75), Some(0.5), Some(0.25)]);
        // The trained model's own curve, and what it is compared with.
        let names: Vec<&str> = made.charts[2].series.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["top-1", "float"]);
        assert_eq!(made.variants[1].top1, Some(0.95));
        assert_eq!(made.steps[1].did, "loss 0.25000, top-1 95.00 %");
        let html = made.to_html();
        assert!(html.contains("role=\"tablist\"") && !html.contains("</script><b>"));
        let start = html.find("id=\"data\">").unwrap() + 10;
        let json = &html[start..][..html[start..].find("</script>").unwrap()];
        let value: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(value["title"], "a </script><b> & c");
        assert_eq!(value["charts"][0]["series"][0]["values"][1], 0.5);
    }

    #[test]
    fn one_point_is_no_curve() {
        let mut training = training();
        training.epochs.truncate(1);
        training.steps.truncate(1);
        assert!(page(&training).charts.is_empty());
    }
}
