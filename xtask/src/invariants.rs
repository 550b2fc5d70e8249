//! Rules of ARCHITECTURE.md that a search through the sources can check. They look at what a release contains:
//! comments, `tests.rs` and whatever follows `#[cfg(test)]` are left out, because a test may well compute the naive way.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::Result;

/// Where one may divide by a scale: `num` defines quantization and `kernels` computes the same function.
const DIVIDES_BY_SCALE: &[&str] = &["crates/num/", "crates/kernels/"];

/// The only code that puts quantization nodes into a graph.
const WRITES_QDQ: &str = "crates/quant/src/apply/";

/// What a node to be written begins with, in code without white space.
const QDQ_NODES: &[&str] =
    &[r#"Node::new("QuantizeLinear""#, r#"Node::new("DequantizeLinear""#, r#"Node::new("QLinear"#];

/// Checks every rule over the crates in `root`, and names every line that breaks one.
pub(crate) fn check(root: &Path) -> Result {
    let mut files = Vec::new();
    for entry in read_dir(&root.join("crates"))? {
        let src = entry.join("src");
        if src.is_dir() {
            collect(&src, &mut files)?;
        }
    }
    let mut broken = Vec::new();
    for path in &files {
        let text =
            fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let name = path
            .strip_prefix(root)
            .expect("collected below the root")
            .to_string_lossy()
            .replace('\\', "/");
        broken.extend(broken_rules(&name, &text));
    }
    if broken.is_empty() { Ok(()) } else { Err(broken.join("\nerror: ")) }
}

/// The Rust files below `folder` that are not only tests, sorted.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result {
    for path in read_dir(folder)? {
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|ext| ext == "rs")
            && path.file_name() != Some("tests.rs".as_ref())
        {
            files.push(path);
        }
    }
    Ok(())
}

fn read_dir(folder: &Path) -> Result<Vec<PathBuf>> {
    let explain = |error| format!("{}: {error}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(explain)? {
        paths.push(entry.map_err(explain)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn broken_rules(name: &str, text: &str) -> Vec<String> {
    let code: Vec<&str> = text
        .lines()
        .take_while(|line| line.trim() != "#[cfg(test)]")
        .map(without_comment)
        .collect();
    let mut broken = Vec::new();

    if !DIVIDES_BY_SCALE.iter().any(|folder| name.starts_with(folder)) {
        for (i, line) in code.iter().enumerate() {
            if divides_by_scale(line) {
                broken.push(format!(
                    "{name}:{}: only `num` and `kernels` divide by a scale: {}",
                    i + 1,
                    line.trim()
                ));
            }
        }
    }

    if !name.starts_with(WRITES_QDQ) {
        // rustfmt may put the name of the operator on a line of its own.
        let dense: String = code.concat().split_whitespace().collect();
        for node in QDQ_NODES.iter().filter(|node| dense.contains(**node)) {
            broken.push(format!("{name}: only quant's apply writes `{node}` nodes"));
        }
    }
    broken
}

fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

/// Whether a `/` or `/=` is followed by a path such as `scale`, `self.x_scale` or `f64::from(scale)`.
fn divides_by_scale(line: &str) -> bool {
    line.match_indices('/').any(|(at, _)| {
        let divisor = line[at + 1..].trim_start_matches('=').trim_start();
        let end = divisor
            .find(|c: char| !(c.is_alphanumeric() || "_.:(&*".contains(c)))
            .unwrap_or(divisor.len());
        let names = divisor[..end].split(['.', ':', '(', '&', '*']);
        names.into_iter().any(|name| name == "scale" || name.ends_with("_scale"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisions_by_a_scale_are_found_in_every_form() {
        for line in [
            "x / scale",
            "x / self.scale",
            "x /= y_scale;",
            "a / f64::from(x_scale)",
            "x / (*scale)",
        ] {
            assert!(divides_by_scale(line), "{line}");
        }
        for line in ["scale / x", "x * scale", "x / n", "x / rescaled", "x / n * scale"] {
            assert!(!divides_by_scale(line), "{line}");
        }
    }

    #[test]
    fn a_rule_holds_outside_the_crates_that_may_break_it_and_not_in_comments_or_tests() {
        let dividing = "let q = x / scale;";
        assert_eq!(broken_rules("crates/exec/src/lib.rs", dividing).len(), 1);
        assert_eq!(broken_rules("crates/num/src/affine.rs", dividing), [""; 0]);
        assert_eq!(
            broken_rules("crates/exec/src/lib.rs", "// x / scale\n#[cfg(test)]\nx / scale"),
            [""; 0]
        );

        let node = "Node::new(\n    \"QuantizeLinear\", name";
        assert_eq!(broken_rules("crates/passes/src/lib.rs", node).len(), 1);
        assert_eq!(broken_rules("crates/quant/src/apply/qdq.rs", node), [""; 0]);
    }
}
