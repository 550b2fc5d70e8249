//! Which widths: each group by itself, then all together, then what has to be given back.

use std::collections::BTreeMap;

use crate::error::Error;

/// What is trimmed to one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// Weights of convolutions.
    ConvWeights,
    /// Weights of matrix products.
    ProductWeights,
    /// What layers take and make.
    Activations,
}

impl Group {
    /// Every group, in the order in which they are searched.
    pub const ALL: [Self; 3] = [Self::ConvWeights, Self::ProductWeights, Self::Activations];

    /// `weights of convolutions`, `weights of products`, `activations`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConvWeights => "weights of convolutions",
            Self::ProductWeights => "weights of products",
            Self::Activations => "activations",
        }
    }
}

/// Bits of each group that is not in float.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Widths(pub BTreeMap<Group, u32>);

impl Widths {
    /// Of one group.
    pub fn get(&self, group: Group) -> Option<u32> {
        self.0.get(&group).copied()
    }

    fn with(&self, group: Group, n_bits: u32) -> Self {
        let mut widths = self.clone();
        widths.0.insert(group, n_bits);
        widths
    }

    /// Gives every group a bit more; `false` where none can have it.
    pub(crate) fn widen_all(&mut self, search: &Search) -> bool {
        let mut is_wider = false;
        for (group, n_bits) in &mut self.0 {
            if *n_bits < search.max_width(*group) {
                *n_bits += 1;
                is_wider = true;
            }
        }
        is_wider
    }
}

/// The narrowest width tried.
pub const MIN_WIDTH: u32 = 2;

/// The widest.
pub const MAX_WIDTH: u32 = 16;

/// What is searched.
pub(crate) struct Search {
    /// And how many numbers each has.
    pub(crate) groups: Vec<(Group, u64)>,
    /// The least score that will do.
    pub(crate) floor: f64,
    /// The widest width of weights.
    pub(crate) max_weight_width: u32,
    /// Scorings allowed, the combination's and its repairs included.
    pub(crate) max_trials: usize,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    pub(crate) widths: Widths,
    pub(crate) score: f64,
    pub(crate) keeps_margin: bool,
}

impl Search {
    fn max_width(&self, group: Group) -> u32 {
        match group {
            Group::ConvWeights | Group::ProductWeights => self.max_weight_width,
            Group::Activations => MAX_WIDTH,
        }
    }

    /// `score` is told what is tried and with which widths.
    pub(crate) fn run(
        &self,
        score: &mut dyn FnMut(&str, &Widths) -> Result<f64, Error>,
    ) -> Result<Found, Error> {
        let mut tries = Tries { score, tried: Vec::new() };
        let holds = |score: f64| self.floor <= score + 1e-12;

        // Each group by itself: the narrowest width that holds, if what is wider than one that holds holds too.
        let mut widths = Widths::default();
        for &(group, _) in &self.groups {
            let (mut low, mut high) = (MIN_WIDTH, self.max_width(group));
            while low < high {
                let middle = low.midpoint(high);
                let what = format!("{} in {middle} bits", group.name());
                if holds(tries.score(what, &Widths::default().with(group, middle))?) {
                    high = middle;
                } else {
                    low = middle + 1;
                }
            }
            widths.0.insert(group, low);
        }

        // All together, and a bit back for the group that gains most by it until the margin holds.
        let mut best = tries.score("all groups together".to_owned(), &widths)?;
        while !holds(best) {
            let mut next: Option<(f64, u64, Widths)> = None;
            for &(group, n) in &self.groups {
                let n_bits = widths.get(group).unwrap_or(MIN_WIDTH);
                if n_bits == self.max_width(group) || self.max_trials <= tries.tried.len() {
                    continue;
                }
                let wider = widths.with(group, n_bits + 1);
                let what = format!("repair: {} in {} bits", group.name(), n_bits + 1);
                let score = tries.score(what, &wider)?;
                // Of equal scores, the group that costs least.
                let is_better =
                    next.as_ref().is_none_or(|(s, cost, _)| (*s, n) < (score, *cost) || *s < score);
                if is_better {
                    next = Some((score, n, wider));
                }
            }
            let Some((score, _, wider)) = next else { break };
            (best, widths) = (score, wider);
        }
        Ok(Found { widths, score: best, keeps_margin: holds(best) })
    }
}

/// Scores that are known: no widths are tried twice.
struct Tries<'a> {
    score: &'a mut dyn FnMut(&str, &Widths) -> Result<f64, Error>,
    tried: Vec<(Widths, f64)>,
}

impl Tries<'_> {
    fn score(&mut self, what: String, widths: &Widths) -> Result<f64, Error> {
        if let Some((_, score)) = self.tried.iter().find(|(w, _)| w == widths) {
            return Ok(*score);
        }
        let score = (self.score)(&what, widths)?;
        self.tried.push((widths.clone(), score));
        Ok(score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores `1 - loss`, each group's loss halved by each bit, and all losses added.
    fn found(floor: f64, max_trials: usize) -> (Found, usize) {
        let search = Search {
            groups: vec![
                (Group::ConvWeights, 100),
                (Group::ProductWeights, 1000),
                (Group::Activations, 3),
            ],
            floor,
            max_weight_width: 16,
            max_trials,
        };
        let mut n = 0;
        let found = search.run(&mut |_, widths| {
            n += 1;
            let loss = |(group, bits): (&Group, &u32)| {
                let scale = match group {
                    Group::ConvWeights => 1.0,
                    Group::ProductWeights => 0.25,
                    Group::Activations => 2.0,
                };
                scale * 0.5_f64.powi(*bits as i32)
            };
            Ok(1.0 - widths.0.iter().map(loss).sum::<f64>())
        });
        (found.unwrap(), n)
    }

    #[test]
    fn groups_that_hold_by_themselves_are_repaired_until_they_hold_together() {
        let (found, n_trials) = found(0.99, 100);
        // Alone: 2^-7 < 0.01, 2^-7 / 2 at 5 bits, and 2 * 2^-8. Together they lose more than 0.01.
        assert!(found.keeps_margin && 0.99 <= found.score, "{found:?}");
        let sum: u32 = found.widths.0.values().sum();
        assert!((20..=24).contains(&sum), "{found:?}");
        assert!(n_trials < 30, "{n_trials}");
    }

    #[test]
    fn a_budget_ends_the_repairs_and_is_said() {
        let (found, _) = found(0.999_99, 1);
        assert!(!found.keeps_margin);
    }

    #[test]
    fn what_no_width_holds_ends_at_the_widest() {
        let (found, _) = found(1.5, 1000);
        assert!(!found.keeps_margin);
        assert!(found.widths.0.values().all(|bits| *bits == 16), "{found:?}");
    }
}
