//! The page of a training: its curves, and what it came to.

use std::fmt::Write as _;

use serde::Serialize;

use crate::page::escape;

/// A training.
#[derive(Clone, Debug, Serialize)]
pub struct Training {
    /// What the page is called.
    pub title: String,
    /// A sentence under the title.
    pub subtitle: String,
    /// What is measured: `top-1`, `agrees with float`.
    pub metric: String,
    /// For each epoch: mean loss, and the metric if it was measured.
    pub epochs: Vec<(f64, Option<f64>)>,
    /// The mean loss of every so many steps: steps done, loss.
    pub losses: Vec<(usize, f64)>,
    /// Models by name, with their metric: the float model, without training, with it.
    pub models: Vec<(String, f64)>,
}

const CSS: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:48rem;padding:0 1rem;color:#222;background:#fff}\
table{border-collapse:collapse}th,td{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #8884}\
svg{width:100%;height:auto}.line{fill:none;stroke:#2563eb;stroke-width:2}.axis{stroke:#8888;stroke-width:1}text{font-size:12px;fill:currentColor}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#16181d}.line{stroke:#7aa2ff}}";

/// One HTML file that needs no other.
pub fn page(training: &Training) -> String {
    let (title, subtitle) = (escape(&training.title), escape(&training.subtitle));
    let mut body = format!("<h1>{title}</h1><p>{subtitle}</p>");
    if !training.models.is_empty() {
        write!(body, "<h2>{}</h2><table>", escape(&training.metric)).expect("strings grow");
        for (name, value) in &training.models {
            write!(body, "<tr><th>{}</th><td>{value:.4}</td></tr>", escape(name))
                .expect("strings grow");
        }
        body += "</table>";
    }
    let losses: Vec<(f64, f64)> =
        training.losses.iter().map(|&(step, loss)| (step as f64, loss)).collect();
    body += &curve("loss by step", &losses);
    let scores: Vec<(f64, f64)> = training
        .epochs
        .iter()
        .enumerate()
        .filter_map(|(i, e)| Some((i as f64 + 1.0, e.1?)))
        .collect();
    body += &curve(&format!("{} by epoch", training.metric), &scores);
    body += "<h2>Epochs</h2><table><tr><th>epoch</th><th>loss</th><th>metric</th></tr>";
    for (i, (loss, metric)) in training.epochs.iter().enumerate() {
        let metric = metric.map_or("–".to_owned(), |m| format!("{m:.4}"));
        write!(body, "<tr><td>{}</td><td>{loss:.5}</td><td>{metric}</td></tr>", i + 1)
            .expect("strings grow");
    }
    body += "</table>";
    // `</script>` inside of a string would end the element.
    let json = serde_json::to_string(training).expect("plain data").replace('<', "\\u003c");
    format!(
        r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{CSS}</style></head><body><main>{body}<p>Written by midtread. The data is in the element
<code>data</code>, as JSON.</p></main><script type="application/json" id="data">{json}</script></body></html>
"#
    )
}

/// A line through points, with the ends of both axes.
fn curve(what: &str, points: &[(f64, f64)]) -> String {
    let points: Vec<(f64, f64)> =
        points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
    let [first, .., last] = points[..] else { return String::new() };
    let (low, high) = points
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), p| (lo.min(p.1), hi.max(p.1)));
    let (width, height) = (last.0 - first.0, (high - low).max(f64::MIN_POSITIVE));
    let path: Vec<String> = points
        .iter()
        .map(|(x, y)| {
            format!(
                "{:.1},{:.1}",
                70.0 + 560.0 * (x - first.0) / width,
                170.0 - 150.0 * (y - low) / height
            )
        })
        .collect();
    let what = escape(what);
    format!(
        r#"<h2>{what}</h2><svg viewBox="0 0 640 200" role="img" aria-label="{what}: from {:.4} to {:.4}"><path class="axis" d="M70,20V170H630"/>
<polyline class="line" points="{}"/><text x="64" y="26" text-anchor="end">{high:.4}</text><text x="64" y="172" text-anchor="end">{low:.4}</text>
<text x="70" y="190">{}</text><text x="630" y="190" text-anchor="end">{}</text></svg>"#,
        first.1,
        last.1,
        path.join(" "),
        first.0,
        last.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_the_curves_and_keeps_names_from_being_markup() {
        let training = Training {
            title: "a </script><b> & c".into(),
            subtitle: String::new(),
            metric: "top-1".into(),
            epochs: vec![(0.5, Some(0.9)), (0.25, Some(0.95))],
            losses: vec![(10, 0.75), (20, 0.5), (30, 0.25)],
            models: vec![("float".into(), 0.93)],
        };
        let page = page(&training);
        assert_eq!(page.matches("<polyline").count(), 2);
        assert!(page.contains("70.0,20.0 350.0,95.0 630.0,170.0"), "{page}");
        assert!(page.contains("0.9300") && !page.contains("</script><b>"));
        let start = page.find("id=\"data\">").unwrap() + 10;
        let json = &page[start..][..page[start..].find("</script>").unwrap()];
        let value: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(value["title"], "a </script><b> & c");
        assert_eq!(value["losses"][1][1], 0.5);
    }

    #[test]
    fn one_epoch_has_no_curve() {
        assert_eq!(curve("x", &[(1.0, 2.0)]), "");
    }
}
