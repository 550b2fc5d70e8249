//! Where the program is that the binary gets: `MIDTREAD_PROGRAM`, made by `midtread compile`.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=MIDTREAD_PROGRAM");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("program.mtp");
    match env::var_os("MIDTREAD_PROGRAM") {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", PathBuf::from(&path).display());
            fs::copy(&path, &out).expect("MIDTREAD_PROGRAM is a file that can be read");
        }
        // So that it compiles with the rest of the workspace; running it says what is missing.
        None => fs::write(&out, []).expect("the build's folder can be written"),
    }
}
