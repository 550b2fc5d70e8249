//! Fuzzing with libFuzzer: `cargo xtask fuzz TARGET`.
//!
//! What is tested is in [`targets`], how files are changed in [`mutate`].

pub mod mutate;
pub mod targets;

use midtread_graph::Bytes;

/// A fuzz target that calls a function of [`targets`] with a file's bytes.
#[macro_export]
macro_rules! target {
    ($target:path) => {
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $target(data));

        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            $crate::change(data, size, max_size, seed)
        });
    };
}

/// Changes a model in half of the calls, and bytes in the other: what only bytes reach is the reading of files, and
/// what only models reach lies behind it.
pub fn change(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut rng = mutate::Rng::new(u64::from(seed));
    if rng.below(2) == 0
        && let Ok(model) = midtread_onnx::from_bytes(Bytes::copy_from_slice(&data[..size]), None)
        && let Some(changed) = mutate::changed(model, &mut rng)
        && changed.len() <= max_size
    {
        data[..changed.len()].copy_from_slice(&changed);
        return changed.len();
    }
    libfuzzer_sys::fuzzer_mutate(data, size, max_size)
}
