//! The page: one HTML file with views of whatever data it is given.
//!
//! A [`Page`] is plain data. What is left empty has no view: the pages of `quantize`, `compare`, `sensitivity`, `report`
//! and `demo` are one page with other parts filled in. It needs no network and no other file, everything on it can be
//! reached with the keyboard, and it holds its data as JSON. Charts and graph layout are uPlot's and dagre's, which
//! `assets/vendor` pins and bundles.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

const CSS: &str = include_str!("../assets/page.css");
const JS: &str = include_str!("../assets/page.js");
const VENDOR_CSS: &str = include_str!("../assets/vendor/vendor.css");
const VENDOR_JS: &str = include_str!("../assets/vendor/vendor.js");

/// What a page shows.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Page {
    /// What it is called.
    pub title: String,
    /// A sentence under the title.
    pub subtitle: String,
    /// Cards of the summary, besides those that follow from the rest.
    pub figures: Vec<Figure>,
    /// Models side by side, the float one first.
    pub variants: Vec<Variant>,
    /// How the first answers of the first two variants differ: `midtread`'s `Difference`.
    pub difference: Option<Value>,
    /// What each step did, in order.
    pub steps: Vec<Step>,
    /// The float model's nodes, in its order: the graph, and the layers.
    pub nodes: Vec<NodeRow>,
    /// How tensors are quantized, by name.
    pub tensors: BTreeMap<String, TensorRow>,
    /// What values activations take, by name.
    pub profiles: BTreeMap<String, Profile>,
    /// What weights look like, by name.
    pub weights: BTreeMap<String, WeightMap>,
    /// Two models compared: `midtread-compare`'s `Comparison`.
    pub comparison: Option<Value>,
    /// Each layer alone: `midtread-compare`'s `Sensitivity`.
    pub sensitivity: Option<Value>,
    /// How calibration converged.
    pub convergence: Option<Convergence>,
    /// Other curves: losses over epochs.
    pub charts: Vec<Chart>,
    /// Ways of quantizing, with what each costs and gives.
    pub pareto: Vec<Point>,
    /// What `cost` (less is better) and `quality` (more is better) of those are.
    pub pareto_axes: [String; 2],
    /// Right answers by class.
    pub classes: Vec<ClassRow>,
    /// What went in.
    pub manifest: Vec<Group>,
}

/// A card of the summary.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// In large letters.
    pub value: String,
    /// Below it.
    pub label: String,
    /// `good`, `bad`, `warn` or nothing.
    pub tone: Option<&'static str>,
}

/// One model's figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Variant {
    /// `float32`, or a file's name.
    pub name: String,
    /// Size of the file.
    pub bytes: u64,
    /// Share of right answers, 0 to 1.
    pub top1: Option<f64>,
    /// Where that lies for the whole population, with 95 % confidence.
    pub top1_interval: Option<(f64, f64)>,
    /// A figure of the user's own.
    pub metric: Option<f64>,
    /// Share of samples on which it agrees with the float model, 0 to 1.
    pub agreement: Option<f64>,
    /// How long one sample takes.
    pub latencies: Vec<Latency>,
}

/// How long a model takes for one sample.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// What ran it.
    pub runtime: String,
    /// With so many threads.
    pub threads: usize,
    /// Half of the runs took less.
    pub median_ms: f64,
    /// The shortest run.
    pub min_ms: f64,
}

/// One step of the work.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// `prepare`, `calibrate`.
    pub name: String,
    /// What it did, in a sentence.
    pub did: String,
    /// How long it took; pages that depend on their inputs alone leave it out.
    pub seconds: Option<f64>,
}

/// One node.
#[derive(Clone, Debug, Default, Serialize)]
pub struct NodeRow {
    /// What people call it.
    pub name: String,
    /// Its operator.
    pub op_type: String,
    /// `quantized`, `absorbed`, `float`, `structural`.
    pub status: String,
    /// Why, as a clause; empty where there is nothing to say.
    pub reason: String,
    /// The tensors that it takes, and that vary.
    pub inputs: Vec<String>,
    /// The constants that it takes.
    pub constants: Vec<String>,
    /// The tensors that it makes.
    pub outputs: Vec<String>,
    /// Sizes of the first output: `1x32x112x112`.
    pub shape: String,
    /// Multiplications for one sample, of operators that are made of them.
    pub macs: Option<u64>,
}

/// How one tensor is quantized.
#[derive(Clone, Debug, Serialize)]
pub struct TensorRow {
    /// `uint8`, `int8 per channel`.
    pub dtype: String,
    /// The scale, or the smallest and largest of several.
    pub scale: String,
    /// The zero point, likewise.
    pub zero_point: String,
    /// Where the parameters come from.
    pub why: String,
}

/// What values an activation takes.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    /// Samples it was measured on.
    pub samples: usize,
    /// Values.
    pub n: u64,
    /// Left edge of the first bin.
    pub lo: f64,
    /// Right edge of the last one.
    pub hi: f64,
    /// Values in each bin, those that are exactly 0 left out.
    pub counts: Vec<u64>,
    /// Share of values that are exactly 0.
    pub zeros: f64,
    /// The range of each calibrator, and the one in use.
    pub thresholds: Vec<Threshold>,
}

/// A range for a tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Threshold {
    /// Whose.
    pub calibrator: String,
    /// Its ends.
    pub min: f64,
    /// Its ends.
    pub max: f64,
    /// Whether it is what the quantized model has.
    pub used: bool,
}

/// A weight, channel by channel.
#[derive(Clone, Debug, Serialize)]
pub struct WeightMap {
    /// Its name.
    pub name: String,
    /// Channels.
    pub channels: usize,
    /// Left edge of the first bin.
    pub lo: f64,
    /// Right edge of the last one.
    pub hi: f64,
    /// Bins of a row.
    pub bins: usize,
    /// A channel each, or several neighbours where there are many.
    pub rows: Vec<WeightRow>,
}

/// Some channels of a weight.
#[derive(Clone, Debug, Serialize)]
pub struct WeightRow {
    /// A digit for each bin: 0 for none, 9 for the fullest of the row.
    pub counts: String,
    /// The ends of the integers' range.
    pub range: Option<(f32, f32)>,
}

/// How the ranges of all tensors grew from sample to sample, as shares of what they are in the end.
#[derive(Clone, Debug, Serialize)]
pub struct Convergence {
    /// Tensors.
    pub n_tensors: usize,
    /// Mean share, after each sample.
    pub mean: Vec<f64>,
    /// The least share.
    pub least: Vec<f64>,
    /// Share of tensors within a percent of their final range.
    pub done: Vec<f64>,
}

/// Curves over one axis.
#[derive(Clone, Debug, Serialize)]
pub struct Chart {
    /// What it is called.
    pub title: String,
    /// What the axis to the right counts.
    pub x_label: String,
    /// What the axis upwards measures.
    pub y_label: String,
    /// Positions, ascending.
    pub x: Vec<f64>,
    /// The curves.
    pub series: Vec<Series>,
    /// A sentence below it.
    pub note: Option<String>,
}

/// One curve.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// What it is called.
    pub name: String,
    /// One for each position; `None` is a gap.
    pub values: Vec<Option<f64>>,
}

/// One way of quantizing.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// What it is called.
    pub name: String,
    /// Less is better.
    pub cost: f64,
    /// More is better.
    pub quality: f64,
    /// Whether no other is better in one and as good in the other.
    pub on_front: bool,
}

/// One class.
#[derive(Clone, Debug, Serialize)]
pub struct ClassRow {
    /// Its name.
    pub class: String,
    /// Share of right answers of each variant, 0 to 1.
    pub top1: Vec<f64>,
}

/// Part of the manifest.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// `inputs`, `options`.
    pub name: String,
    /// Names and values.
    pub items: Vec<(String, String)>,
}

impl Page {
    /// The page as one HTML file.
    pub fn to_html(&self) -> String {
        // `</script>` or `<!--` inside of a string would change how the page is read: `<` need not be written as itself.
        let json = serde_json::to_string(self).expect("plain data").replace('<', "\\u003c");
        let (title, subtitle) = (escape(&self.title), escape(&self.subtitle));
        format!(
            r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{VENDOR_CSS}{CSS}</style></head>
<body><header><h1>{title}</h1><p class="muted">{subtitle}</p></header>
<nav><div role="tablist" aria-label="views" id="tabs"></div></nav><main id="views"></main>
<footer>Written by midtread {version}. Signal to noise in dB: more is better; a dash is no error. The data of this page is in its
<code>#data</code> element, as JSON.</footer>
<script type="application/json" id="data">{json}</script><script>{VENDOR_JS}</script><script>{JS}</script></body></html>
"#,
            version = env!("CARGO_PKG_VERSION"),
        )
    }
}

/// Text that may stand in HTML.
pub(crate) fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use serde_json::json;

    use super::*;

    /// A page with something in every view, of `n` layers in a row with a branch over each two of them.
    fn sample(n: usize) -> Page {
        let name = |i: usize| format!("block_{i}</script><b>");
        let out = |i: usize| format!("out_{i}");
        let tensor = |i: usize| {
            let cause = json!({"cause": "broken_scale", "text": "its scale is 3 times too large", "option": "--calibrator mse"});
            let kind = ["activation", "weight"][i % 2];
            let layer = i / 2;
            json!({
                "name": if kind == "activation" { out(layer) } else { format!("w_{layer}") }, "kind": kind, "rank": i + 1, "node": name(layer),
                "op_type": "Conv", "quantized_name": "q", "matched_by": "name", "point": "after", "dtype": "uint8",
                "sqnr_db": 30.0 - (i % 20) as f64, "own_sqnr_db": if i % 5 == 4 { Value::Null } else { json!(10.0 + i as f64 / 3.0) },
                "rounding_sqnr_db": 40.0, "channel_sqnr_db": 35.0, "mse": 1e-5, "mae": 1e-3, "max_error": 0.02, "cosine": 0.999,
                "clipped": 0.001, "codes_used": 0.9, "min_max": [-1.0, 2.0], "range": [-1.0, 2.0], "scale": [0.01, 0.01],
                "advice": if i == 0 { json!([cause]) } else { json!([]) }, "order": layer,
            })
        };
        let effect = |loss: f64| json!({"loss": loss, "sqnr_db": 30.0, "kl": loss, "agreement": 0.99, "top1": 0.9});
        let layer = |i: usize| {
            json!({"rank": i + 1, "node": name(n - 1 - i), "op_type": "Conv", "tensor": out(n - 1 - i),
                "alone": effect(1e-3 / (i + 1) as f64), "in_float": effect(0.01), "gain": 1e-4})
        };
        let node = |i: usize| NodeRow {
            name: name(i),
            op_type: "Conv".into(),
            status: if i == 1 { "float" } else { "quantized" }.into(),
            reason: if i == 1 { "excluded by `x`" } else { "" }.into(),
            inputs: match i {
                0 => vec!["input".into()],
                1 => vec![out(0)],
                _ => vec![out(i - 1), out(i - 2)],
            },
            constants: vec![format!("w_{i}")],
            outputs: vec![out(i)],
            shape: "1x8x4x4".into(),
            macs: Some(1000 + i as u64),
        };
        let profile = Profile {
            samples: 8,
            n: 1000,
            lo: -1.0,
            hi: 2.0,
            counts: (0..72).map(|i| i * i).collect(),
            zeros: 0.4,
            thresholds: vec![Threshold {
                calibrator: "min_max".into(),
                min: -1.0,
                max: 2.0,
                used: true,
            }],
        };
        let weight = |i: usize| WeightMap {
            name: format!("w_{i}"),
            channels: 3,
            lo: -1.0,
            hi: 1.0,
            bins: 4,
            rows: vec![WeightRow { counts: "0192".into(), range: Some((-1.0, 1.0)) }; 3],
        };
        let variant = |name: &str, bytes, latency| Variant {
            name: name.into(),
            bytes,
            top1: Some(0.9),
            top1_interval: Some((0.85, 0.93)),
            latencies: vec![Latency {
                runtime: "engine".into(),
                threads: 1,
                median_ms: latency,
                min_ms: latency,
            }],
            ..Variant::default()
        };
        let row = TensorRow {
            dtype: "u8".into(),
            scale: "0.01".into(),
            zero_point: "3".into(),
            why: "calibrated: min_max".into(),
        };
        let point = |name: &str, cost, quality, on_front| Point {
            name: name.into(),
            cost,
            quality,
            on_front,
        };
        Page {
            title: "a <model>".into(),
            subtitle: "8 samples".into(),
            figures: vec![Figure { value: "7".into(), label: "of something".into(), tone: None }],
            variants: vec![variant("float32", 700_000, 3.0), variant("int8", 200_000, 1.0)],
            difference: Some(
                json!({"drop": 0.01, "interval": [-0.01, 0.03], "p_value": 0.4, "samples_for_half_percent": 9000}),
            ),
            steps: vec![Step {
                name: "prepare".into(),
                did: "folded 3".into(),
                seconds: Some(0.5),
            }],
            nodes: (0..n).map(node).collect(),
            tensors: (0..n).map(|i| (out(i), row.clone())).collect(),
            profiles: (0..n).map(|i| (out(i), profile.clone())).collect(),
            weights: (0..n).map(|i| (format!("w_{i}"), weight(i))).collect(),
            comparison: Some(json!({
                "samples": 8, "prepared": true, "tensors": (0..2 * n).map(tensor).collect::<Vec<_>>(),
                "outputs": [{"name": "logits", "sqnr_db": 25.0, "mse": 1e-3, "mae": 1e-2, "max_error": 0.1, "cosine": 0.998,
                    "kl": 0.01, "agreement": 0.97, "top5_agreement": 1.0}],
                "unmatched": [{"name": "hidden", "reason": "the quantized model has no such value"}],
                "remarks": [{"cause": "saturated_sums", "text": "16 bits", "option": "--reduce-range"}],
            })),
            sensitivity: Some(
                json!({"samples": 4, "samples_given": 8, "float_top1": 0.9, "quantized": effect(0.01),
                "layers": (0..n).map(layer).collect::<Vec<_>>(), "only_with_others": ["pool"], "nodes_run": 5, "nodes_whole": 9}),
            ),
            convergence: Some(Convergence {
                n_tensors: n,
                mean: vec![0.5, 0.9, 1.0],
                least: vec![0.1, 0.5, 1.0],
                done: vec![0.0, 0.5, 1.0],
            }),
            charts: vec![Chart {
                title: "loss".into(),
                x_label: "epoch".into(),
                y_label: "loss".into(),
                x: vec![1.0, 2.0],
                series: vec![Series { name: "qat".into(), values: vec![Some(2.0), None] }],
                note: None,
            }],
            pareto: vec![point("a", 1.0, 0.5, true), point("b", 2.0, 0.4, false)],
            pareto_axes: ["size".into(), "top-1".into()],
            classes: vec![ClassRow { class: "shoe".into(), top1: vec![0.9, 0.8] }],
            manifest: vec![Group {
                name: "inputs".into(),
                items: vec![("model".into(), "sha256:00".into())],
            }],
        }
    }

    #[test]
    fn names_cannot_become_markup_and_nothing_comes_from_outside() {
        let html = sample(3).to_html();
        assert!(html.contains("a &lt;model&gt;"));
        // The page's own three scripts, and no other.
        assert_eq!(html.matches("</script>").count(), 3);
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn a_page_of_500_layers_stays_far_below_two_megabytes() {
        let n = sample(500).to_html().len();
        assert!(n < 1_500_000, "{n}");
    }

    #[test]
    fn the_bundled_libraries_are_those_that_are_pinned() {
        let lock: Value =
            serde_json::from_str(include_str!("../assets/vendor/package-lock.json")).unwrap();
        let head = VENDOR_JS.lines().next().unwrap();
        for name in ["@dagrejs/dagre", "@dagrejs/graphlib", "uplot"] {
            let version = lock["packages"][format!("node_modules/{name}")]["version"].as_str();
            let wanted = format!("{name} {}", version.expect("pinned"));
            assert!(head.contains(&wanted), "{wanted} in `{head}`: cargo xtask vendor");
        }
    }

    /// A browser that runs without a screen, if there is one.
    fn browser() -> Option<&'static str> {
        ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
            Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success())
        })
    }

    /// What a reader does, view by view. Throws where something is not as it should be.
    const READER: &str = r#"
addEventListener('load', () => setTimeout(() => {
  const see = (ok, what) => { if (!ok) throw Error(what); }, q = s => [...document.querySelectorAll(s)], id = s => document.getElementById(s);
  const key = (el, k) => el.dispatchEvent(new KeyboardEvent('keydown', { key: k, bubbles: true }));
  const open = name => { id('tab-' + name).click(); see(!id('view-' + name).hidden, name + ' is shown'); see(document.documentElement.scrollWidth <= innerWidth, name + ' is not wider than the screen'); };
  const tabs = q('[role=tab]').map(t => t.id.slice(4));
  see(tabs.join() === 'summary,graph,layers,tensors,sensitivity,calibration,curves,pareto,manifest', 'every view has a tab: ' + tabs);
  see(q('#view-summary .card').length === 7, 'cards: ' + q('#view-summary .card').length);
  see(q('#variants-table tbody tr').length === 2 && q('#classes-table tbody tr').length === 1, 'the summary\u2019s tables');
  id('tab-summary').focus(); key(id('tab-summary'), 'ArrowRight');
  see(document.activeElement.id === 'tab-graph' && !id('view-graph').hidden, 'arrows go from tab to tab');

  open('graph');
  see(q('.gnode').length === 20 && q('.edge').length === 37, 'nodes and edges: ' + q('.gnode').length + ' ' + q('.edge').length);
  see(q('#view-graph [data-detail] h2')[0].textContent === 'block_0<' + '/script><b>', 'the worst layer is open at first');
  const world = q('#graph-box svg > g')[0], before = world.getAttribute('transform');
  id('graph-in').click(); see(world.getAttribute('transform') !== before, 'zoom');
  id('graph-fit').click(); id('graph-worst').click();
  see(q('.gnode[aria-current]').length === 1, 'one is marked');
  key(q('.gnode')[0], 'ArrowDown'); see(document.activeElement === q('.gnode')[1], 'arrows go along the edges');
  key(q('.gnode')[5], 'Enter'); see(q('#view-graph [data-detail] h2')[0].textContent.startsWith('block_5<'), 'Enter opens a layer');
  id('graph-search').value = 'block_17'; id('graph-search').dispatchEvent(new Event('input'));
  see(q('.gnode.hit').length === 1 && q('.gnode.dim').length === 19, 'search');
  const colours = () => q('.gnode rect').map(r => r.style.fill).join(), first = colours();
  id('graph-color').value = '3'; id('graph-color').dispatchEvent(new Event('change')); see(colours() !== first, 'another colouring');

  open('layers');
  see(q('#layers-table tbody tr').length === 20 && q('.strip g.bar').length === 20, 'layers');
  q('.strip g.bar')[3].dispatchEvent(new MouseEvent('click')); see(q('#view-layers [data-detail] h2')[0].textContent.startsWith('block_3<'), 'a bar opens its layer');
  see(q('#view-layers [data-detail] canvas.heat').length === 1 && q('#view-layers [data-detail] figure').length === 2, 'its weight and its values');
  q('#layers-table td button')[1].click(); see(q('#view-layers [data-detail]')[0].textContent.includes('excluded by'), 'why it is in float');
  id('layers-choice').value = 'float'; id('layers-choice').dispatchEvent(new Event('change')); see(q('#layers-table tbody tr').length === 1, 'in float');

  open('tensors');
  const own = () => q('#tensors-table tbody tr').map(r => parseFloat(r.cells[5].textContent)).filter(x => x === x);
  q('#tensors-table th button')[5].click(); see(own().every((x, i, a) => !i || a[i - 1] <= x), 'ascending');
  q('#tensors-table th button')[5].click(); see(own().every((x, i, a) => !i || a[i - 1] >= x), 'descending');
  id('tensors-search').value = 'w_19'; id('tensors-search').dispatchEvent(new Event('input')); see(q('#tensors-table tbody tr').length === 1, 'search');
  q('#tensors-table td button')[0].click(); see(!id('view-layers').hidden && q('#view-layers [data-detail] h2')[0].textContent.startsWith('block_19'), 'a tensor opens its layer');

  open('sensitivity'); see(q('#ranking-table tbody tr').length === 20 && q('#ranking-table .meter').length === 40, 'ranking');
  open('calibration'); see(q('#ranges-table tbody tr').length === 20, 'ranges');
  open('curves'); open('pareto'); see(q('#pareto-table tbody tr').length === 2, 'points');
  open('manifest'); see(id('view-manifest').textContent.includes('sha256:00') && id('save'), 'manifest');
  see(JSON.parse(id('data').textContent).nodes.length === 20, 'the data is there');
  open('calibration');
  setTimeout(() => { see(q('#view-calibration canvas').length === 1, 'the chart is drawn'); document.documentElement.dataset.clicked = 'true'; }, 300);
}, 200));
"#;

    #[test]
    fn every_view_works_in_a_browser() {
        let Some(browser) = browser() else {
            eprintln!("skipped: no Chromium or Chrome is installed");
            return;
        };
        // Errors end up in the page, where they are looked for.
        let listen = "<script>addEventListener('error',e=>document.documentElement.dataset.failed=e.message);\
            console.error=console.warn=m=>document.documentElement.dataset.failed=m</script></head>";
        let html = sample(20).to_html().replacen("</head>", listen, 1);
        let html = html.replacen("</body>", &format!("<script>{READER}</script></body>"), 1);
        let folder = std::env::temp_dir().join(format!("midtread-page-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("page.html");
        std::fs::write(&file, html).unwrap();
        let dom = |path: &Path| {
            let output = Command::new(browser)
                .args([
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-quic",
                    "--no-first-run",
                ])
                .args([
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--disable-sync",
                ])
                .args(["--window-size=500,900", "--virtual-time-budget=8000", "--dump-dom"])
                .arg(format!("--user-data-dir={}", folder.join("profile").display()))
                .arg(format!("file://{}", path.display()))
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let dom = dom(&file);
        let root = &dom[dom.find("<html").unwrap_or(0)..];
        let root = &root[..root.find('>').unwrap_or(root.len())];
        let _ = std::fs::remove_dir_all(&folder);
        assert!(!root.contains("data-failed"), "{root}");
        assert!(
            root.contains(r#"data-ready="true""#) && root.contains(r#"data-clicked="true""#),
            "{root}"
        );
    }
}
