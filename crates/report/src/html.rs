//! The page.

use std::fmt::Write as _;

use crate::{
    Report, Variant,
    svg::{bars, escape, sparkline},
};

/// The report as one HTML file that needs no other.
pub fn page(report: &Report) -> String {
    let mut body = String::new();
    write!(
        body,
        "<header><h1>{}</h1><p>{}</p></header>",
        escape(&report.title),
        escape(&report.subtitle)
    )
    .expect("strings grow");
    body += &summary(report);
    body += &steps(report);
    if !report.classes.is_empty() {
        body += &classes(report);
    }
    body += &nodes(report);
    body += &tensors(report);
    // `</script>` inside a string would end the element: JSON allows the slash to be escaped.
    let json = serde_json::to_string(report).expect("plain data").replace("</", "<\\/");
    format!(
        r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{}</title><style>{CSS}</style></head>
<body><main>{body}<footer>Written by midtread. The data of this page is in its <code>#data</code> element, as JSON.</footer></main>
<script type="application/json" id="data">{json}</script><script>{JS}</script></body></html>
"#,
        escape(&report.title)
    )
}

fn summary(report: &Report) -> String {
    let mut html = String::from(
        "<section><h2>Before and after</h2><div class=\"scroll\"><table><tr><th></th>",
    );
    let cells = |row: &dyn Fn(&Variant) -> String| -> String {
        report.variants.iter().map(|v| format!("<td>{}</td>", escape(&row(v)))).collect()
    };
    let percent =
        |share: Option<f64>| share.map_or("–".into(), |s| format!("{:.2} %", 100.0 * s));
    for v in &report.variants {
        write!(html, "<th>{}</th>", escape(&v.name)).expect("strings grow");
    }
    html += "</tr>";
    for (label, row) in [
        ("size", &(|v: &Variant| size(v.bytes)) as &dyn Fn(&Variant) -> String),
        ("top-1", &|v| percent(v.top1)),
        ("agrees with float", &|v| percent(v.agreement)),
        ("latency, one sample", &|v| v.latency_ms.map_or("–".into(), |ms| format!("{ms:.3} ms"))),
        ("run by", &|v| v.runtime.clone()),
    ] {
        write!(html, "<tr><th>{label}</th>{}</tr>", cells(row)).expect("strings grow");
    }
    html += "</table></div><div class=\"charts\">";
    let chart = |caption: &str, value: &dyn Fn(&Variant) -> Option<(f64, String)>| {
        let rows: Vec<_> = report
            .variants
            .iter()
            .filter_map(|v| value(v).map(|(x, figure)| (v.name.clone(), x, figure)))
            .collect();
        format!("<figure>{}<figcaption>{caption}</figcaption></figure>", bars(&rows))
    };
    html += &chart("size of the file", &|v| Some((v.bytes as f64, size(v.bytes))));
    if report.variants.iter().any(|v| v.top1.is_some()) {
        html += &chart("top-1", &|v| v.top1.map(|t| (t, percent(Some(t)))));
    }
    html + "</div></section>"
}

fn steps(report: &Report) -> String {
    let mut html = String::from("<section><h2>What was done</h2><ol class=\"steps\">");
    for step in &report.steps {
        write!(
            html,
            "<li><b>{}</b> <span class=\"muted\">{:.2} s</span><br>{}</li>",
            escape(&step.name),
            step.seconds,
            escape(&step.did)
        )
        .expect("strings grow");
    }
    html + "</ol></section>"
}

fn classes(report: &Report) -> String {
    let mut html = String::from(
        "<section><h2>By class</h2><div class=\"scroll\"><table class=\"sort\"><thead><tr><th>class</th>",
    );
    for v in &report.variants {
        write!(html, "<th>{} top-1</th>", escape(&v.name)).expect("strings grow");
    }
    html += "</tr></thead><tbody>";
    for row in &report.classes {
        write!(html, "<tr><td>{}</td>", escape(&row.class)).expect("strings grow");
        for share in &row.top1 {
            write!(html, "<td>{:.1} %</td>", 100.0 * share).expect("strings grow");
        }
        html += "</tr>";
    }
    html + "</tbody></table></div></section>"
}

fn nodes(report: &Report) -> String {
    let n = |status: &str| report.nodes.iter().filter(|n| n.status == status).count();
    let mut html = format!(
        "<section><h2>Nodes</h2><p>{} quantized, {} absorbed into another, {} kept in float, {} that compute shapes.</p>\
         <input type=\"search\" placeholder=\"filter nodes\" aria-label=\"filter nodes\" data-filter=\"nodes\">\
         <div class=\"scroll tall\"><table id=\"nodes\" class=\"sort\"><thead><tr><th>node</th><th>operator</th><th>status</th>\
         <th>reason</th></tr></thead><tbody>",
        n("quantized"),
        n("absorbed"),
        n("float"),
        n("structural")
    );
    for row in &report.nodes {
        write!(
            html,
            "<tr><td>{}</td><td>{}</td><td class=\"s-{}\">{}</td><td>{}</td></tr>",
            escape(&row.node),
            escape(&row.op_type),
            escape(&row.status),
            escape(&row.status),
            escape(&row.reason)
        )
        .expect("strings grow");
    }
    html + "</tbody></table></div></section>"
}

fn tensors(report: &Report) -> String {
    let mut html = String::from(
        "<section><h2>Tensors</h2>\
         <input type=\"search\" placeholder=\"filter tensors\" aria-label=\"filter tensors\" data-filter=\"tensors\">\
         <div class=\"scroll tall\"><table id=\"tensors\" class=\"sort\"><thead><tr><th>tensor</th><th>type</th><th>scale</th>\
         <th>zero point</th><th>from</th><th>values</th></tr></thead><tbody>",
    );
    for row in &report.tensors {
        write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&row.tensor),
            escape(&row.dtype),
            escape(&row.scale),
            escape(&row.zero_point),
            escape(&row.why),
            sparkline(&row.histogram)
        )
        .expect("strings grow");
    }
    html + "</tbody></table></div></section>"
}

/// `1.25 MB`, in units of 1000.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

const CSS: &str = "
:root{color-scheme:light dark;--ink:#1b1f24;--muted:#667;--paper:#fff;--line:#dde;--a:#8a94a6;--b:#2f6fed;--warn:#b45309}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--muted:#9aa4b2;--paper:#14171b;--line:#2b3138;--a:#6b7686;--b:#6ea0ff;--warn:#f0a94b}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:960px;margin:0 auto;padding:24px 16px}h1{margin:0}header p,.muted,figcaption,footer{color:var(--muted)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px;width:100%}
th,td{text-align:left;padding:4px 10px;border-bottom:1px solid var(--line);vertical-align:top}
thead th{position:sticky;top:0;background:var(--paper);cursor:pointer}
.scroll{overflow-x:auto}.tall{max-height:480px;overflow-y:auto}.charts{display:flex;flex-wrap:wrap;gap:16px;margin-top:16px}
figure{margin:0;flex:1 1 340px}svg text{fill:currentColor;font-size:13px}.bar.b0{fill:var(--a)}.bar.b1{fill:var(--b)}
.spark{width:96px;height:24px}.spark path{fill:var(--b)}.s-float{color:var(--warn)}
input[type=search]{font:inherit;padding:4px 8px;margin:4px 0 8px;width:min(100%,320px)}
td{overflow-wrap:anywhere}.steps li{margin-bottom:8px}footer{margin-top:32px;font-size:13px}
";

const JS: &str = "
for(const box of document.querySelectorAll('[data-filter]')){
  const rows=document.getElementById(box.dataset.filter).tBodies[0].rows;
  box.addEventListener('input',()=>{const word=box.value.toLowerCase();
    for(const row of rows)row.hidden=!row.textContent.toLowerCase().includes(word);});
}
for(const table of document.querySelectorAll('table.sort')){
  [...table.tHead.rows[0].cells].forEach((th,i)=>{
    th.tabIndex=0;let up=false;
    const sort=()=>{up=!up;const body=table.tBodies[0];const key=r=>r.cells[i].textContent;
      const rows=[...body.rows].sort((a,b)=>key(a).localeCompare(key(b),undefined,{numeric:true}));
      if(!up)rows.reverse();body.append(...rows);
      for(const other of table.tHead.rows[0].cells)other.removeAttribute('aria-sort');
      th.setAttribute('aria-sort',up?'ascending':'descending');};
    th.addEventListener('click',sort);
    th.addEventListener('keydown',e=>{if(e.key==='Enter'||e.key===' '){e.preventDefault();sort();}});
  });
}
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeRow, Step, TensorRow};

    fn report() -> Report {
        let variant = |name: &str, bytes| Variant {
            name: name.into(),
            bytes,
            top1: Some(0.931),
            agreement: None,
            latency_ms: Some(0.5),
            runtime: "midtread".into(),
        };
        Report {
            title: "a <model>".into(),
            subtitle: "on data".into(),
            variants: vec![variant("float32", 700_000), variant("int8", 200_000)],
            steps: vec![Step { name: "prepare".into(), did: "folded 3".into(), seconds: 0.1 }],
            nodes: vec![NodeRow {
                node: "</script><script>alert(1)</script>".into(),
                op_type: "Conv".into(),
                status: "quantized".into(),
                reason: String::new(),
            }],
            tensors: vec![TensorRow {
                tensor: "t".into(),
                dtype: "uint8".into(),
                scale: "0.1".into(),
                zero_point: "0".into(),
                why: "min_max".into(),
                histogram: vec![0.0, 1.0, 0.5],
            }],
            classes: Vec::new(),
        }
    }

    #[test]
    fn names_from_the_model_cannot_become_markup() {
        let html = page(&report());
        assert!(html.contains("a &lt;model&gt;"));
        assert!(!html.contains("</script><script>alert"));
        // The page's own two scripts, and no other.
        assert_eq!(html.matches("</script>").count(), 2);
    }

    #[test]
    fn the_page_needs_nothing_from_outside_and_shows_every_section() {
        let html = page(&report());
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
        for shown in ["93.10 %", "700.0 kB", "200.0 kB", "folded 3", "min_max", "1 quantized"] {
            assert!(html.contains(shown), "{shown}");
        }
    }
}
