//! Reads models and writes them again: `cargo run -p midtread-onnx --example resave -- OUT_DIR MODEL...`

use std::{error::Error, path::Path};

use midtread_onnx::{SaveOptions, load, save};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let out = args.next().ok_or("give a folder and models")?;
    for path in args {
        let name = Path::new(&path).file_name().ok_or("a model has a name")?;
        let written = load(&path)
            .and_then(|model| save(&model, Path::new(&out).join(name), &SaveOptions::default()));
        if let Err(error) = written {
            println!(
                "{error}{}",
                error.source().map_or(String::new(), |source| format!(": {source}"))
            );
        }
    }
    Ok(())
}
