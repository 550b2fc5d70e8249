//! How the scale of a group is chosen: from the largest magnitude, or the one that loses least.

use core::ops::Range;

use super::Settings;

/// How scales are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Search {
    /// The largest magnitude is the largest code: rounding to the nearest and nothing else.
    #[default]
    MaxAbs,
    /// The scale with the least squared error, weighted with the importances where they are given, among
    /// [`N_STEPS`] shrunk ones. The one that [`Self::MaxAbs`] gives is among them, so it never loses more.
    Mse,
}

impl Search {
    /// Every way.
    pub const ALL: &'static [Self] = &[Self::MaxAbs, Self::Mse];

    /// As options spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MaxAbs => "max_abs",
            Self::Mse => "mse",
        }
    }

    /// The way called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|search| search.name() == name)
    }
}

/// Candidates of [`Search::Mse`]: the scale times `1 - i / 100`. GPTQ's and BRECQ's grid, `i` from 0 to 79.
pub const N_STEPS: u32 = 80;

/// The scale of a group whose widest is `widest`; 1 where that is 0, so that dividing by it is harmless.
///
/// `round_trip` says what a value becomes with a scale. Candidates that `f32` cannot hold are left out.
pub fn scale(
    search: Search,
    x: &[f32],
    importance: Option<&[f32]>,
    widest: f32,
    round_trip: impl Fn(f32, f32) -> f32,
) -> f32 {
    if widest < f32::MIN_POSITIVE {
        return 1.0;
    }
    match search {
        Search::MaxAbs => widest,
        Search::Mse => {
            let candidates = (0..N_STEPS).map(|i| widest * (1.0 - i as f32 / 100.0));
            best(candidates.filter(|scale| scale.is_normal()), |scale| {
                error(x, importance, |x| round_trip(x, scale))
            })
            .unwrap_or(widest)
        }
    }
}

/// The first candidate with the smallest loss.
pub fn best<T: Copy>(candidates: impl Iterator<Item = T>, loss: impl Fn(T) -> f64) -> Option<T> {
    let mut best = None;
    for candidate in candidates {
        let loss = loss(candidate);
        if best.is_none_or(|(_, least)| loss < least) {
            best = Some((candidate, loss));
        }
    }
    best.map(|(candidate, _)| candidate)
}

/// Weighted sum of squared errors.
pub fn error(x: &[f32], importance: Option<&[f32]>, round_trip: impl Fn(f32) -> f32) -> f64 {
    let square = |x: f32| {
        let error = f64::from(round_trip(x)) - f64::from(x);
        error * error
    };
    match importance {
        None => x.iter().map(|x| square(*x)).sum(),
        Some(w) => x.iter().zip(w).map(|(x, w)| f64::from(*w) * square(*x)).sum(),
    }
}

/// The importances of a group within one row; none for a group of several rows, which they cannot tell apart.
pub(crate) fn columns<'a>(
    settings: &Settings<'a>,
    group: &Range<usize>,
    cols: usize,
) -> Option<&'a [f32]> {
    let importance = settings.importance?;
    if cols == 0 || cols < group.len() {
        return None;
    }
    let start = group.start % cols;
    importance.get(start..start + group.len())
}
