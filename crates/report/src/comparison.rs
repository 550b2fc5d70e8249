//! The page of a comparison of two models: outputs, error along the graph, and each tensor with advice.
//!
//! The page is a view of the JSON that `midtread compare --json` prints, which it also holds. It needs no network and
//! no other file; everything on it can be reached with the keyboard.

use serde::Serialize;

use crate::svg::escape;

const CSS: &str = include_str!("../assets/comparison.css");
const JS: &str = include_str!("../assets/comparison.js");

/// One HTML file. `comparison` is serialized as the library's `Comparison`: `samples`, `tensors`, `outputs`,
/// `unmatched` and `remarks`.
///
/// # Errors
///
/// When `comparison` cannot be serialized.
pub fn page(
    title: &str,
    subtitle: &str,
    comparison: &impl Serialize,
) -> Result<String, serde_json::Error> {
    // `</script>` or `<!--` inside of a string would change how the page is read: `<` need not be written as itself.
    let json = serde_json::to_string(comparison)?.replace('<', "\\u003c");
    let (title, subtitle) = (escape(title), escape(subtitle));
    Ok(format!(
        r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{CSS}</style></head>
<body><main><header><h1>{title}</h1><p class="muted">{subtitle}</p></header>
<section><h2>Outputs</h2><div class="scroll" id="outputs"></div><div id="remarks"></div></section>
<section><h2>Error along the graph</h2>
<div class="tools"><button type="button" id="out" aria-label="zoom out">−</button><button type="button" id="in" aria-label="zoom in">+</button>
<span class="muted"><span class="key" style="background:var(--all)"></span>all error so far<span class="key" style="background:var(--own)"></span>its own.
Higher is worse; no bar is no error.</span></div>
<div class="scroll" id="chart"></div><div id="detail" aria-live="polite"></div></section>
<section><h2>Tensors</h2><div class="tools"><input type="search" id="search" aria-label="search tensors" placeholder="name, operator, type">
<select id="kind" aria-label="show"><option value="">everything</option><option value="activation">activations</option>
<option value="weight">weights</option><option value="bias">biases</option><option value="advice">with advice</option></select>
<span class="muted" id="count" role="status"></span></div><div class="scroll tall" id="rows"></div></section>
<section><details><summary>Only in the float model</summary><div class="scroll" id="unmatched"></div></details></section>
<footer><p>Own error: the node run on float inputs with the quantized weights, its result rounded. All error: the quantized
model's value against the float one's. Signal to noise in dB, more is better; a dash is no error.
Written by midtread. The data is in the element <code>data</code>, as JSON.</p></footer></main>
<script type="application/json" id="data">{json}</script><script>{JS}</script></body></html>
"#
    ))
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use serde_json::{Value, json};

    use super::*;

    fn comparison(n: usize) -> Value {
        let tensor = |i: usize| {
            let cause = json!({"cause": "broken_scale", "text": "its scale is 3 times too large", "option": "--calibrator mse"});
            let kind = ["activation", "weight", "bias"][i % 3];
            json!({
                "name": format!("block_{i}</script><b>"), "kind": kind, "rank": i + 1, "node": "n",
                "op_type": "Conv", "quantized_name": "q", "matched_by": "name", "point": "after", "dtype": "uint8",
                "sqnr_db": 30.0 - (i % 20) as f64, "own_sqnr_db": if i % 4 == 3 { Value::Null } else { json!(10.0 + i as f64 / 3.0) },
                "rounding_sqnr_db": 40.0, "channel_sqnr_db": 35.0, "mse": 1e-5, "mae": 1e-3, "max_error": 0.02, "cosine": 0.999,
                "clipped": 0.001, "codes_used": 0.9, "min_max": [-1.0, 2.0], "range": [-1.0, 2.0], "scale": [0.01, 0.01],
                "advice": if i == 0 { json!([cause]) } else { json!([]) }, "order": n - i,
            })
        };
        json!({
            "samples": 8, "prepared": true, "tensors": (0..n).map(tensor).collect::<Vec<_>>(),
            "outputs": [{"name": "logits", "sqnr_db": 25.0, "mse": 1e-3, "mae": 1e-2, "max_error": 0.1, "cosine": 0.998, "kl": 0.01,
                "agreement": 0.97, "top5_agreement": 1.0}],
            "unmatched": [{"name": "hidden", "reason": "the quantized model has no such value"}],
            "remarks": [{"cause": "saturated_sums", "text": "16 bits", "option": "--reduce-range"}],
        })
    }

    #[test]
    fn names_cannot_become_markup_and_nothing_comes_from_outside() {
        let html = page("a <model>", "x", &comparison(3)).unwrap();
        assert!(html.contains("a &lt;model&gt;"));
        // The page's own two scripts, and no other.
        assert_eq!(html.matches("</script>").count(), 2);
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn a_page_of_500_tensors_stays_far_below_two_megabytes() {
        assert!(page("t", "s", &comparison(500)).unwrap().len() < 500_000);
    }

    /// A browser that runs without a screen, if there is one.
    fn browser() -> Option<&'static str> {
        ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
            Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success())
        })
    }

    #[test]
    fn every_view_works_in_a_browser() {
        let Some(browser) = browser() else {
            eprintln!("skipped: no Chromium or Chrome is installed");
            return;
        };
        // What a reader does, after the page has drawn itself; errors end up in the page, where they are looked for.
        let listen = "<script>addEventListener('error',e=>document.documentElement.dataset.failed=e.message)</script></head>";
        let click = "<script>{const see=(ok,what)=>{if(!ok)throw Error(what)},q=s=>[...document.querySelectorAll(s)];\
            see(q('#tensors tbody tr').length===40,'rows');see(q('#chart g.bar').length===40,'bars');\
            see(q('#detail h3')[0].textContent==='block_0<'+'/script><b>','worst first');}</script>";
        let more = "<script>{const see=(ok,what)=>{if(!ok)throw Error(what)},q=s=>[...document.querySelectorAll(s)];\
            q('#chart g.bar')[5].dispatchEvent(new KeyboardEvent('keydown',{key:'Enter'}));\
            see(q('#detail h3')[0].textContent===q('#chart g.bar')[5].dataset.name,'a bar opens its tensor');\
            q('#tensors th button')[4].click();const own=()=>q('#tensors tbody tr').map(r=>parseFloat(r.cells[4].textContent)).filter(x=>x===x);\
            see(own().every((x,i,a)=>!i||a[i-1]<=x),'ascending');q('#tensors th button')[4].click();see(own().every((x,i,a)=>!i||a[i-1]>=x),'descending');\
            const s=document.getElementById('search');s.value='block_39';s.dispatchEvent(new Event('input'));see(q('#tensors tbody tr').length===1,'search');\
            q('#tensors td button')[0].click();see(q('#detail h3')[0].textContent.startsWith('block_39'),'a row opens its tensor');\
            s.value='';const k=document.getElementById('kind');k.value='advice';k.dispatchEvent(new Event('change'));see(q('#tensors tbody tr').length===1,'advice');\
            const w=q('#chart svg')[0].clientWidth;document.getElementById('in').click();see(q('#chart svg')[0].clientWidth>w,'zoom');\
            see(document.documentElement.scrollWidth<=innerWidth,'nothing is wider than the screen');\
            document.documentElement.dataset.clicked='true';}</script></body>";
        let html = page("a model", "8 samples", &comparison(40)).unwrap();
        let html =
            html.replacen("</head>", listen, 1).replacen("</body>", &format!("{click}{more}"), 1);
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
                .args(["--window-size=500,900", "--virtual-time-budget=5000", "--dump-dom"])
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
