//! Where a run stands, as bytes: it goes on from there as if it had never stopped.

use serde::{Deserialize, Serialize};

use crate::{error::Error, run::Epoch};

const MAGIC: &[u8] = b"midtread training 1\n";

/// Everything but the numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Of the model, the plan's options, the training options and the data: another run's checkpoint is refused.
    pub(crate) run: String,
    pub(crate) epoch: usize,
    /// Steps of the epoch that are done.
    pub(crate) step: usize,
    /// Sum of the losses of the epoch so far.
    pub(crate) loss: f64,
    /// Of the optimizer.
    pub(crate) n_steps: u32,
    pub(crate) history: Vec<Epoch>,
    /// The best score, and in which epoch.
    pub(crate) best: Option<(f64, usize)>,
    /// How many numbers follow, and how many of the best epoch.
    n_numbers: usize,
    n_best: usize,
}

impl Header {
    /// At the start of a run.
    pub(crate) fn start(run: String) -> Self {
        Self {
            run,
            epoch: 0,
            step: 0,
            loss: 0.0,
            n_steps: 0,
            history: Vec::new(),
            best: None,
            n_numbers: 0,
            n_best: 0,
        }
    }

    /// The bytes of a checkpoint with these numbers.
    pub(crate) fn write(&self, numbers: &[f32], best: &[f32]) -> Vec<u8> {
        let header = Self { n_numbers: numbers.len(), n_best: best.len(), ..self.clone() };
        let header = serde_json::to_vec(&header).expect("plain data");
        let mut bytes = MAGIC.to_vec();
        bytes.extend((header.len() as u64).to_le_bytes());
        bytes.extend(&header);
        for number in numbers.iter().chain(best) {
            bytes.extend(number.to_le_bytes());
        }
        let sum = checksum(&bytes);
        bytes.extend(sum.to_le_bytes());
        bytes
    }

    /// Reads what [`Header::write`] wrote for the run `run`: the header, and both lists of numbers.
    pub(crate) fn read(bytes: &[u8], run: &str) -> Result<(Self, Vec<f32>, Vec<f32>), Error> {
        let damaged = || Error::Checkpoint("is damaged".into());
        let (content, sum) = bytes.split_last_chunk::<8>().ok_or_else(damaged)?;
        if u64::from_le_bytes(*sum) != checksum(content) {
            return Err(damaged());
        }
        let rest = content.strip_prefix(MAGIC).ok_or_else(damaged)?;
        let (len, rest) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
        let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|_| damaged())?;
        let (header, numbers) = rest.split_at_checked(len).ok_or_else(damaged)?;
        let header: Self = serde_json::from_slice(header).map_err(|_| damaged())?;
        if header.run != run {
            return Err(Error::Checkpoint(
                "is of a run with other options, data or another model".into(),
            ));
        }
        let mut numbers: Vec<f32> =
            numbers.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if header.n_numbers.checked_add(header.n_best) != Some(numbers.len()) {
            return Err(damaged());
        }
        let best = numbers.split_off(header.n_numbers);
        Ok((header, numbers, best))
    }
}

/// FNV-1a, of eight bytes at a time.
fn checksum(bytes: &[u8]) -> u64 {
    let step =
        |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, word| step(hash, u64::from_le_bytes(*word)));
    rest.iter().fold(hash, |hash, byte| step(hash, u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else_is() {
        let header = Header {
            epoch: 2,
            loss: 0.1 + 0.2,
            best: Some((0.9, 1)),
            ..Header::start("a run".into())
        };
        let bytes = header.write(&[1.0, -0.0, 3.5], &[f32::MIN_POSITIVE]);
        let (read, numbers, best) = Header::read(&bytes, "a run").unwrap();
        assert_eq!((read.epoch, read.loss, read.best), (2, 0.1 + 0.2, Some((0.9, 1))));
        assert_eq!((numbers, best), (vec![1.0, -0.0, 3.5], vec![f32::MIN_POSITIVE]));
        assert!(
            Header::read(&bytes, "another run").unwrap_err().to_string().contains("other options")
        );
        for cut in 0..bytes.len() {
            assert!(Header::read(&bytes[..cut], "a run").is_err(), "{cut}");
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 4;
            assert!(Header::read(&bytes, "a run").is_err(), "{at}");
        }
    }
}
