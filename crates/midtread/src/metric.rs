//! A figure of merit that another program computes from a model's outputs.

use std::{path::Path, process::Command};

use midtread_graph::{Model, Tensor};
use midtread_quant::calibrate::Samples;
use serde_json::json;

use crate::{
    error::Error,
    evaluate::{RunOptions, map_outputs},
};

/// Runs the model on every sample, writes what comes out to a folder that is removed afterwards, and asks `command`.
///
/// The folder has a folder for each sample (`000000`, `000001`, ...) with `OUTPUT.npy` for each output, and
/// `samples.json`: a list of `{"name", "folder"}` in the order of the samples. The command is run by the system's
/// shell with the folder as its last argument (and as the variable `MIDTREAD_OUTPUTS`); the last line that it prints is
/// the number.
///
/// # Errors
///
/// When the model fails, a file cannot be written, or the command fails or prints no number.
pub fn metric(
    model: &Model,
    samples: &dyn Samples,
    options: &RunOptions<'_>,
    command: &str,
) -> Result<f64, Error> {
    let names = samples.names();
    let folder =
        tempfile::tempdir().map_err(|source| Error::File { path: std::env::temp_dir(), source })?;
    let index: std::collections::HashMap<&str, usize> =
        names.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let of = |i: usize| format!("{i:06}");
    map_outputs(model, samples, options, |name, outputs| {
        let folder = folder.path().join(of(index[name]));
        for (name, tensor) in outputs {
            write(&folder, name, tensor)?;
        }
        Ok(())
    })?;
    let list: Vec<_> = (names.iter().enumerate())
        .map(|(i, name)| json!({ "name": name, "folder": of(i) }))
        .collect();
    let path = folder.path().join("samples.json");
    let text = serde_json::to_string_pretty(&list).expect("plain data");
    std::fs::write(&path, text).map_err(|source| Error::File { path, source })?;
    run(command, folder.path())
}

fn write(folder: &Path, name: &str, tensor: &Tensor) -> Result<(), Error> {
    midtread_data::write::write_npy(folder, name, tensor)?;
    Ok(())
}

/// The number that the command prints about the outputs in `folder`.
fn run(command: &str, folder: &Path) -> Result<f64, Error> {
    let mut shell;
    if cfg!(windows) {
        shell = Command::new("cmd");
        shell.args(["/C", &format!("{command} \"%MIDTREAD_OUTPUTS%\"")]);
    } else {
        shell = Command::new("sh");
        shell.args(["-c", &format!("{command} \"$MIDTREAD_OUTPUTS\"")]);
    }
    let output = shell
        .env("MIDTREAD_OUTPUTS", folder)
        .output()
        .map_err(|source| Error::File { path: "sh".into(), source })?;
    let line = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        last.unwrap_or_default().trim().to_owned()
    };
    if !output.status.success() {
        let said = line(&output.stderr);
        return Err(Error::Options(format!(
            "the metric command failed ({}): {said}",
            output.status
        )));
    }
    let last = line(&output.stdout);
    last.parse::<f64>().ok().filter(|x| x.is_finite()).ok_or_else(|| {
        Error::Options(format!("the metric command printed `{last}` last, which is no number"))
    })
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_number_and_all_else_is_refused_with_what_was_said() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("samples.json"), "[1, 2]").unwrap();
        let ask = |command: &str| run(command, folder.path()).map_err(|e| e.to_string());
        assert_eq!(ask("printf 'reading\\n0.75\\n\\n' #"), Ok(0.75));
        assert_eq!(ask("f() { wc -c < \"$1/samples.json\"; }; f"), Ok(6.0));
        let refused = ask("echo oh no >&2; exit 3 #").unwrap_err();
        assert!(refused.contains("oh no") && refused.contains('3'), "{refused}");
        for command in ["echo many #", "true #", "echo nan #"] {
            assert!(ask(command).unwrap_err().contains("no number"), "{command}");
        }
    }
}
