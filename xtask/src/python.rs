//! The Python environment that the tests and the asset tools use: `target/venv`, with the pinned packages of
//! `tools/requirements-test.txt`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Result,
    process::{output, run},
    root,
};

/// The interpreter of the environment, which is made again if the requirements or the Python have changed.
pub(crate) fn environment() -> Result<PathBuf> {
    let requirements = root().join("tools/requirements-test.txt");
    let folder = root().join("target/venv");
    let python = folder.join("bin/python");
    let stamp = folder.join("midtread-stamp");
    let wanted = format!("{}\n{}", version()?, read(&requirements)?);
    if python.exists() && fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == wanted) {
        return Ok(python);
    }

    need_ensurepip()?;
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    // The list is complete, and `--no-deps` keeps it so.
    run(Command::new(&python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--requirement",
        ])
        .arg(&requirements))?;
    // Written last: an interrupted installation has none.
    fs::write(&stamp, wanted).map_err(|error| format!("{}: {error}", stamp.display()))?;
    Ok(python)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The version of `python3`, which has to be one that the pinned packages exist for.
fn version() -> Result<String> {
    let program = "import sys; print('%d.%d.%d' % sys.version_info[:3]); sys.exit(sys.version_info < (3, 11))";
    let found = Command::new("python3")
        .args(["-c", program])
        .output()
        .map_err(|error| format!("the tests need Python 3.11 or later as `python3`: {error}"))?;
    let version = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    if !found.status.success() {
        return Err(format!("the tests need Python 3.11 or later; `python3` is {version}"));
    }
    Ok(version)
}

/// Debian packs the module that puts pip into an environment on its own; as root, as in a container, install it.
fn need_ensurepip() -> Result {
    let has = || {
        Command::new("python3")
            .args(["-c", "import ensurepip, venv"])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if has() {
        return Ok(());
    }
    if is_root() && Path::new("/usr/bin/apt-get").exists() {
        run(Command::new("apt-get").args(["--quiet", "update"]))?;
        run(Command::new("apt-get")
            .args(["--quiet", "install", "--yes", "--no-install-recommends", "python3-venv"])
            .env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    if has() {
        Ok(())
    } else {
        Err("`python3` has no module `venv` or `ensurepip` (on Debian and Ubuntu: apt-get install python3-venv)".into())
    }
}

fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0")
}
