//! What quantization did, as data, and that data as one self-contained HTML page.
//!
//! The page is a view of [`Page`]: it computes nothing that changes what it shows, loads nothing from a network, and
//! holds the same data as JSON. All is in [`page`]; a training has a small page
//! of its own, [`training`].
#![forbid(unsafe_code)]

pub mod page;
pub mod training;

pub use page::Page;

/// `1.25 MB`, in units of 1000.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
