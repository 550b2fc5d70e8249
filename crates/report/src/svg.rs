//! Small pictures as SVG text, in the page's colors (`currentColor` and CSS variables).

use std::fmt::Write as _;

/// Horizontal bars with a label and a figure each; lengths are relative to the longest.
pub fn bars(rows: &[(String, f64, String)]) -> String {
    let longest = rows.iter().map(|r| r.1).fold(0.0, f64::max);
    let height = rows.len() * 30;
    let mut svg = format!(r#"<svg class="bars" viewBox="0 0 560 {height}" role="img">"#);
    for (i, (label, value, figure)) in rows.iter().enumerate() {
        let width = if longest > 0.0 { 300.0 * value / longest } else { 0.0 };
        let y = i * 30;
        let (label, figure) = (escape(label), escape(figure));
        write!(
            svg,
            r#"<text x="96" y="{}" text-anchor="end">{label}</text><rect class="bar b{}" x="106" y="{}" width="{:.1}" height="18" rx="3"/><text x="{:.1}" y="{}">{figure}</text>"#,
            y + 19,
            i % 2,
            y + 6,
            width.max(1.0),
            114.0 + width,
            y + 19,
        )
        .expect("strings grow");
    }
    svg + "</svg>"
}

/// A histogram as a small filled curve. `heights` are between 0 and 1.
pub fn sparkline(heights: &[f32]) -> String {
    if heights.is_empty() {
        return String::new();
    }
    let step = 96.0 / heights.len() as f32;
    let mut path = String::from("M0,24");
    for (i, h) in heights.iter().enumerate() {
        let (x, y) = (i as f32 * step, 24.0 - 22.0 * h.clamp(0.0, 1.0));
        write!(path, "L{x:.1},{y:.1}L{:.1},{y:.1}", x + step).expect("strings grow");
    }
    format!(
        r#"<svg class="spark" viewBox="0 0 96 24" aria-hidden="true"><path d="{path}L96,24Z"/></svg>"#
    )
}

/// Text that may stand in HTML.
pub fn escape(text: &str) -> String {
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
