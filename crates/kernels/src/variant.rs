//! Which implementation of a kernel runs.
//!
//! A kernel's implementations are rows of a static list of [`Variant`]s, fastest first and `scalar`
//! last. A call runs the first row that this CPU has the instructions for.
//! `MIDTREAD_ISA=scalar|avx2|avx512|neon` in the environment (read once) instead runs the first row
//! of that class, so that a slower path can be tested on a faster machine; a kernel that has no row
//! of the class, or whose row this CPU cannot run, falls back to `scalar`.

use alloc::{string::String, vec::Vec};
#[cfg(feature = "std")]
use std::sync::OnceLock;

/// A class of instruction sets: what `MIDTREAD_ISA` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, on every CPU.
    Scalar,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL, with or without VNNI.
    Avx512,
    /// AArch64.
    Neon,
}

impl Isa {
    /// Every class.
    pub const ALL: &'static [Self] = &[Self::Scalar, Self::Avx2, Self::Avx512, Self::Neon];

    /// As `MIDTREAD_ISA` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }

    /// The class that `MIDTREAD_ISA` forces, if it is set to one.
    ///
    /// An unknown word is an error that [`requested`] reports and this ignores, because a kernel
    /// cannot refuse.
    pub fn forced() -> Option<Self> {
        requested().as_ref().ok().copied().flatten()
    }
}

/// What `MIDTREAD_ISA` asks for: `Ok(None)` when unset or empty, `Err` with the word when it names no class.
///
/// Read once, so that a process never mixes classes.
pub fn requested() -> &'static Result<Option<Isa>, String> {
    // Where there is no environment, nothing is asked for.
    #[cfg(not(feature = "std"))]
    return &Ok(None);
    #[cfg(feature = "std")]
    requested_once()
}

#[cfg(feature = "std")]
fn requested_once() -> &'static Result<Option<Isa>, String> {
    static REQUESTED: OnceLock<Result<Option<Isa>, String>> = OnceLock::new();
    REQUESTED.get_or_init(|| match std::env::var_os("MIDTREAD_ISA") {
        Some(word) => parse(&word.to_string_lossy()),
        None => Ok(None),
    })
}

#[cfg(feature = "std")]
fn parse(word: &str) -> Result<Option<Isa>, String> {
    if word.is_empty() {
        return Ok(None);
    }
    match Isa::ALL.iter().find(|isa| isa.name() == word) {
        Some(isa) => Ok(Some(*isa)),
        None => Err(word.to_owned()),
    }
}

/// One implementation of a kernel. `F` is a function pointer that is safe to call when `available` is true.
pub struct Variant<F> {
    /// `"avx2"`, or with what tells it from others of its class: `"avx512_vnni-6x32"`.
    pub name: &'static str,
    /// Its class.
    pub isa: Isa,
    /// Whether this CPU can run it.
    pub available: fn() -> bool,
    /// The implementation. Private, so that [`Variant::get`] is the only way to it.
    run: F,
}

impl<F: Copy> Variant<F> {
    /// One row of a list. `run` may use the instructions that `available` looks for, and no others.
    pub const fn new(name: &'static str, isa: Isa, available: fn() -> bool, run: F) -> Self {
        Self { name, isa, available, run }
    }

    /// The scalar row, with which every list ends.
    pub const fn scalar(run: F) -> Self {
        Self { name: "scalar", isa: Isa::Scalar, available: || true, run }
    }

    /// The implementation, when this CPU can run it.
    pub fn get(&self) -> Option<F> {
        (self.available)().then_some(self.run)
    }
}

/// The implementation to run: the first available row, or the first of the class that `MIDTREAD_ISA` forces.
///
/// # Panics
///
/// When `list` has no row that this CPU can run; a list ends with [`Variant::scalar`].
pub fn select<F: Copy>(list: &[Variant<F>]) -> F {
    select_for(list, Isa::forced())
}

fn select_for<F: Copy>(list: &[Variant<F>], forced: Option<Isa>) -> F {
    let first = |isa: Option<Isa>| {
        list.iter().filter(|v| isa.is_none_or(|isa| v.isa == isa)).find_map(Variant::get)
    };
    match forced {
        Some(isa) => first(Some(isa)).or_else(|| first(Some(Isa::Scalar))),
        None => first(None),
    }
    .expect("a list of variants ends with the scalar one")
}

/// A row of [`variants`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VariantInfo {
    /// The kernel: its module path below this crate and its function, `"quantize::quantize_u8"`.
    pub kernel: &'static str,
    /// The implementation's name.
    pub name: &'static str,
    /// Its class.
    pub isa: Isa,
    /// Whether this CPU can run it.
    pub available: bool,
    /// Whether it is the one that runs, given this CPU and `MIDTREAD_ISA`.
    pub selected: bool,
}

/// What [`VariantInfo`] says of every row of `list`.
pub fn describe<F: Copy>(kernel: &'static str, list: &[Variant<F>]) -> Vec<VariantInfo> {
    describe_for(kernel, list, Isa::forced())
}

fn describe_for<F: Copy>(
    kernel: &'static str,
    list: &[Variant<F>],
    forced: Option<Isa>,
) -> Vec<VariantInfo> {
    // The same rule as `select_for`, on rows instead of functions.
    let first = |isa: Option<Isa>| {
        list.iter().position(|v| (v.available)() && isa.is_none_or(|isa| v.isa == isa))
    };
    let selected = match forced {
        Some(isa) => first(Some(isa)).or_else(|| first(Some(Isa::Scalar))),
        None => first(None),
    };
    list.iter()
        .enumerate()
        .map(|(i, v)| VariantInfo {
            kernel,
            name: v.name,
            isa: v.isa,
            available: (v.available)(),
            selected: selected == Some(i),
        })
        .collect()
}

/// What a module lists for [`variants`]: one function that describes its kernels.
pub type Describe = fn() -> Vec<VariantInfo>;

/// Every implementation of every kernel, by kernel and fastest first. `midtread inspect --cpu` prints it.
pub fn variants() -> Vec<VariantInfo> {
    crate::DESCRIBE.iter().flat_map(|describe| describe()).collect()
}

/// Whether this CPU has what an `Isa::Avx2` row may use: AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
pub fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Whether this CPU has what an `Isa::Avx512` row may use: AVX-512 F, BW, DQ and VL, besides AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
pub fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// Whether this CPU has AVX-512's VNNI besides.
#[cfg(target_arch = "x86_64")]
pub fn has_avx512_vnni() -> bool {
    has_avx512() && is_x86_feature_detected!("avx512vnni")
}

/// Whether this CPU has AVX-512's VBMI besides.
#[cfg(target_arch = "x86_64")]
pub fn has_avx512_vbmi() -> bool {
    has_avx512() && is_x86_feature_detected!("avx512vbmi")
}

#[cfg(test)]
mod tests {
    use super::*;

    static LIST: &[Variant<fn() -> u32>] = &[
        Variant::new("avx512-missing", Isa::Avx512, || false, || 4),
        Variant::new("avx2-a", Isa::Avx2, || true, || 3),
        Variant::new("avx2-b", Isa::Avx2, || true, || 2),
        Variant::scalar(|| 1),
    ];

    #[test]
    fn the_first_available_row_runs_unless_a_class_is_forced() {
        assert_eq!(select_for(LIST, None)(), 3);
        assert_eq!(select_for(LIST, Some(Isa::Avx2))(), 3);
        assert_eq!(select_for(LIST, Some(Isa::Scalar))(), 1);
        assert_eq!(select_for(LIST, Some(Isa::Avx512))(), 1, "not available: scalar");
        assert_eq!(select_for(LIST, Some(Isa::Neon))(), 1, "no such row: scalar");
    }

    #[test]
    fn the_description_marks_the_row_that_runs() {
        for forced in Isa::ALL.iter().copied().map(Some).chain([None]) {
            let rows = describe_for("k", LIST, forced);
            let marked: Vec<usize> = (0..rows.len()).filter(|i| rows[*i].selected).collect();
            assert_eq!(marked.len(), 1, "{forced:?}");
            assert_eq!(LIST[marked[0]].get().unwrap()(), select_for(LIST, forced)(), "{forced:?}");
        }
    }

    #[test]
    fn words_are_class_names_and_nothing_else() {
        assert_eq!(parse(""), Ok(None));
        for isa in Isa::ALL {
            assert_eq!(parse(isa.name()), Ok(Some(*isa)));
        }
        for word in ["AVX2", "avx512_vnni", " scalar", "sse2"] {
            assert_eq!(parse(word), Err(word.to_owned()));
        }
    }

    #[test]
    fn every_kernel_ends_with_scalar_and_has_unique_names() {
        let all = variants();
        let mut kernels: Vec<&str> = all.iter().map(|v| v.kernel).collect();
        kernels.dedup();
        for kernel in kernels {
            let mut names: Vec<&str> =
                all.iter().filter(|v| v.kernel == kernel).map(|v| v.name).collect();
            assert_eq!(names.last(), Some(&"scalar"), "{kernel}");
            let n_rows = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), n_rows, "{kernel}: a name occurs twice");
        }
    }
}
