//! How far the outputs are apart, as figures that predict accuracy.

use midtread_num::{
    ErrorSums,
    error::{kl_divergence, softmax_kl},
};

/// What an output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// Rows of scores before a softmax.
    Logits,
    /// Rows that sum to 1.
    Probabilities,
    /// Something else: no rows.
    None,
}

/// Sums over the rows of one output.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OutputSums {
    /// Over all elements.
    pub sums: ErrorSums,
    /// Rows of scores.
    pub n_rows: u64,
    /// Sum over the rows of the divergence in nats.
    pub kl: f64,
    /// Rows whose largest score is at the same place.
    pub n_same: u64,
    /// Rows whose largest float score is among the five largest of the quantized model.
    pub n_in_top5: u64,
}

/// How many answers are looked at.
const K: usize = 5;

impl OutputSums {
    /// The sums over one pair of tensors.
    ///
    /// # Panics
    ///
    /// When the slices differ in length.
    pub fn of(reference: &[f32], other: &[f32], dims: &[usize], scores: Scores) -> Self {
        let mut sums = Self { sums: ErrorSums::of(reference, other), ..Self::default() };
        let n_classes = dims.last().copied().unwrap_or(0);
        // Feature maps have their classes elsewhere, and one score is none.
        if scores == Scores::None || !(1..=3).contains(&dims.len()) || n_classes < 2 {
            return sums;
        }
        for (a, b) in reference.chunks(n_classes).zip(other.chunks(n_classes)) {
            sums.n_rows += 1;
            sums.kl += match scores {
                Scores::Probabilities => {
                    let of =
                        |row: &[f32]| -> Vec<f64> { row.iter().map(|&p| f64::from(p)).collect() };
                    kl_divergence(&of(a), &of(b))
                }
                Scores::Logits | Scores::None => softmax_kl(a, b, n_classes),
            };
            let (first, top) = (top(a, 1), top(b, K));
            sums.n_same += u64::from(top.first() == first.first());
            sums.n_in_top5 += u64::from(first.iter().all(|class| top.contains(class)));
        }
        sums
    }

    /// The sums over both, this one's samples first.
    pub fn merge(&mut self, later: &Self) {
        self.sums = self.sums.merge(later.sums);
        self.n_rows += later.n_rows;
        self.kl += later.kl;
        self.n_same += later.n_same;
        self.n_in_top5 += later.n_in_top5;
    }

    /// Divergence of the quantized model's answers in nats, a row on average.
    pub fn kl(&self) -> Option<f64> {
        (self.n_rows != 0).then(|| self.kl / self.n_rows as f64)
    }

    /// Share of rows with the same first answer.
    pub fn agreement(&self) -> Option<f64> {
        (self.n_rows != 0).then(|| self.n_same as f64 / self.n_rows as f64)
    }

    /// Share of rows whose first float answer is among the quantized model's first five.
    pub fn top5(&self) -> Option<f64> {
        (self.n_rows != 0).then(|| self.n_in_top5 as f64 / self.n_rows as f64)
    }

    /// What a ranking goes by, larger being worse: the divergence, or the share of noise where there are no rows.
    pub fn loss(&self) -> f64 {
        self.kl().unwrap_or_else(|| {
            let s = self.sums;
            if s.squared == 0.0 { 0.0 } else { s.squared / s.reference_squared }
        })
    }
}

/// The places of the `k` largest, the first of equals first.
fn top(row: &[f32], k: usize) -> Vec<usize> {
    let mut top: Vec<usize> = Vec::with_capacity(k + 1);
    for (i, x) in row.iter().enumerate() {
        let at = top.partition_point(|&other| row[other].total_cmp(x).is_ge());
        if at < k {
            top.insert(at, i);
            top.truncate(k);
        }
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_compared_by_divergence_and_by_answers() {
        let a = [0.1, 0.2, 0.7, 0.5, 0.3, 0.2];
        let b = [0.1, 0.7, 0.2, 0.5, 0.3, 0.2];
        let sums = OutputSums::of(&a, &b, &[2, 3], Scores::Probabilities);
        assert_eq!((sums.agreement(), sums.top5()), (Some(0.5), Some(1.0)));
        let want = (0.2 * (0.2_f64 / 0.7).ln() + 0.7 * (0.7_f64 / 0.2).ln()) / 2.0;
        assert!((sums.kl().unwrap() - want).abs() < 1e-6);
        let same = OutputSums::of(&a, &a, &[2, 3], Scores::Logits);
        assert_eq!((same.kl(), same.agreement(), same.loss()), (Some(0.0), Some(1.0), 0.0));
    }

    #[test]
    fn feature_maps_have_no_rows() {
        let sums = OutputSums::of(&[1.0; 16], &[2.0; 16], &[1, 1, 4, 4], Scores::Logits);
        assert_eq!((sums.kl(), sums.agreement(), sums.loss()), (None, None, 1.0));
    }

    #[test]
    fn the_sixth_answer_is_not_among_five() {
        let a: Vec<f32> = (0..8).map(|i| i as f32).collect();
        // The float model's first answer, class 7, is sixth here.
        let b = [1.0, 0.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0];
        let sums = OutputSums::of(&a, &b, &[8], Scores::Logits);
        assert_eq!((sums.agreement(), sums.top5()), (Some(0.0), Some(0.0)));
    }
}
