//! Asks the network in this binary about a picture: `midtread-small PICTURE`, a file of little-endian `f32`.
#![forbid(unsafe_code)]

use std::{error::Error, fs, time::Instant};

use midtread_small::Network;

fn main() -> Result<(), Box<dyn Error>> {
    if Network::n_bytes() == 0 {
        return Err(
            "no network in here: build with MIDTREAD_PROGRAM=FILE, from `midtread compile`".into(),
        );
    }
    let mut network = Network::new()?;
    let picture: Vec<f32> = match std::env::args_os().nth(1) {
        Some(path) => {
            let bytes = fs::read(path)?;
            bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
        }
        None => vec![0.0; network.n_inputs()],
    };
    let scores = network.scores(&picture)?;
    let start = Instant::now();
    network.scores(&picture)?;
    eprintln!("{:.3} ms", start.elapsed().as_secs_f64() * 1e3);
    for score in &scores {
        println!("{score}");
    }
    Ok(())
}
