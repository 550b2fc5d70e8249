//! What went into a result: checksums of files and samples. No clock, so that the same inputs give the same manifest.

use std::{collections::BTreeMap, io::Read, path::Path, sync::Mutex};

use midtread_graph::Sample;
use midtread_quant::calibrate::Samples;
use sha2::{Digest, Sha256};

use crate::error::Error;

/// SHA-256 of a file's bytes, as `sha256:` and 64 hexadecimal digits.
pub fn file_checksum(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(text(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn text(digest: &[u8]) -> String {
    let digits: Vec<String> = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{}", digits.concat())
}

/// Samples that remember what was read of them.
pub struct Recorded<'a> {
    samples: &'a dyn Samples,
    limit: usize,
    seen: Mutex<BTreeMap<usize, [u8; 32]>>,
}

impl<'a> Recorded<'a> {
    /// The first `limit` of these.
    pub fn new(samples: &'a dyn Samples, limit: usize) -> Self {
        Self { samples, limit, seen: Mutex::default() }
    }

    /// How many samples were read, and a SHA-256 over the names, types, sizes and bytes of all of them, in their order.
    pub fn checksum(&self) -> (usize, String) {
        let seen = self.seen.lock().expect("no panic while the lock is held");
        let mut hash = Sha256::new();
        seen.values().for_each(|digest| hash.update(digest));
        (seen.len(), text(&hash.finalize()))
    }
}

impl Samples for Recorded<'_> {
    fn names(&self) -> Vec<String> {
        let mut names = self.samples.names();
        names.truncate(self.limit);
        names
    }

    fn sample(&self, i: usize) -> Result<Sample, Box<dyn std::error::Error + Send + Sync>> {
        let sample = self.samples.sample(i)?;
        let is_new = !self.seen.lock().expect("no panic while the lock is held").contains_key(&i);
        if is_new {
            let mut hash = Sha256::new();
            hash.update(&sample.name);
            for (name, tensor) in &sample.inputs {
                hash.update(format!("\0{name}\0{} {:?}\0", tensor.dtype(), tensor.dims()));
                match tensor.as_strings() {
                    Some(strings) => strings.iter().for_each(|s| {
                        hash.update((s.len() as u64).to_le_bytes());
                        hash.update(s);
                    }),
                    None => hash.update(tensor.as_bytes()),
                }
            }
            let digest = hash.finalize().into();
            self.seen.lock().expect("no panic while the lock is held").insert(i, digest);
        }
        Ok(sample)
    }
}

#[cfg(test)]
mod tests {
    use midtread_graph::Tensor;

    use super::*;

    struct Two(f32);

    impl Samples for Two {
        fn names(&self) -> Vec<String> {
            vec!["a".into(), "b".into()]
        }

        fn sample(&self, i: usize) -> Result<Sample, Box<dyn std::error::Error + Send + Sync>> {
            let tensor = Tensor::vector(&[i as f32, self.0]);
            Ok(Sample { name: self.names()[i].clone(), inputs: vec![("x".into(), tensor)] })
        }
    }

    #[test]
    fn a_file_has_the_checksum_that_everyone_gives_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        // FIPS 180-4, appendix B.1.
        let want = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(file_checksum(file.path()).unwrap(), want);
    }

    #[test]
    fn the_checksum_depends_on_what_is_read_and_not_on_the_order_of_reading() {
        let read = |value: f32, order: &[usize], limit| {
            let samples = Two(value);
            let recorded = Recorded::new(&samples, limit);
            order.iter().for_each(|&i| drop(recorded.sample(i).unwrap()));
            (recorded.names().len(), recorded.checksum())
        };
        let all = read(0.5, &[0, 1], 9);
        assert_eq!(all, read(0.5, &[1, 0, 1], 9));
        assert_ne!(all.1, read(0.25, &[0, 1], 9).1);
        assert_eq!(read(0.5, &[0], 1).0, 1);
        assert_ne!(all.1, read(0.5, &[0], 1).1);
    }
}
