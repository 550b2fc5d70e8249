//! The clipping threshold that keeps the most information, by Kullback-Leibler divergence (Migacz, "8-bit inference
//! with TensorRT", GTC 2017).

use super::{
    Calibrator, CalibratorDef, RangeGoal, TensorStats,
    histogram::{Bin, magnitudes},
};

pub(super) const DEF: CalibratorDef = CalibratorDef {
    name: "entropy",
    summary: "the threshold of least KL divergence between the values and their quantized form",
    needs_histogram: true,
    range,
};

/// Bins of equal width that the magnitudes are spread over.
const N_LINEAR: usize = 2048;

fn range(stats: &TensorStats, _: &Calibrator, goal: &RangeGoal) -> (f32, f32) {
    let (min, max) = stats.min_max().expect("the caller checks that something was seen");
    let amax = f64::from(max.max(-min));
    // Levels for magnitudes: all of them where one sign is all there is and the range need not be symmetric.
    let n_codes = (goal.range.qmax() - goal.range.qmin() + 1) as usize;
    let one_sided = !goal.symmetric && (min >= 0.0 || max <= 0.0);
    let n_levels = if one_sided { n_codes } else { n_codes / 2 };
    let counts = linear(&magnitudes(stats.counts()), amax);
    let bound = (amax * best_length(&counts, n_levels) as f64 / N_LINEAR as f64) as f32;
    (min.max(-bound), max.min(bound))
}

/// What an empty bin counts as where the divergence would be infinite otherwise (onnxruntime smooths with the same).
const TRACE: f64 = 1e-4;

/// Spreads bins evenly over `N_LINEAR` bins of `[0, amax]`. Zeros are left out: every range represents them exactly,
/// and their spike (half of a Relu's output) would hide the rest.
fn linear(magnitudes: &[Bin], amax: f64) -> Vec<f64> {
    let mut counts = vec![0.0; N_LINEAR];
    if amax == 0.0 {
        return counts;
    }
    let per_unit = N_LINEAR as f64 / amax;
    for bin in magnitudes.iter().filter(|bin| bin.hi > 0.0) {
        // The last bin may reach past the greatest value seen.
        let (lo, hi) = (bin.lo * per_unit, (bin.hi * per_unit).min(N_LINEAR as f64));
        let density = bin.n as f64 / (hi - lo).max(f64::MIN_POSITIVE);
        let (first, last) = (lo as usize, (hi.ceil() as usize).clamp(1, N_LINEAR) - 1);
        if first >= last {
            counts[first.min(N_LINEAR - 1)] += bin.n as f64;
            continue;
        }
        for (i, count) in counts.iter_mut().enumerate().take(last + 1).skip(first) {
            let overlap = (hi.min((i + 1) as f64) - lo.max(i as f64)).max(0.0);
            *count += density * overlap;
        }
    }
    counts
}

/// The number of leading bins to keep, of `n_levels` and more, whose quantized form diverges least from the whole.
///
/// For each length `i`: the reference P is the first `i` bins with everything beyond them added to the last; the
/// candidate Q merges the first `i` bins into `n_levels` groups and spreads each group evenly over its non-empty
/// bins. With prefix sums a candidate costs `n_levels` steps, not `i`.
fn best_length(counts: &[f64], n_levels: usize) -> usize {
    let prefix = |f: &dyn Fn(f64) -> f64| -> Vec<f64> {
        let mut sum = 0.0;
        let sums = counts.iter().map(|&c| {
            sum += f(c);
            sum
        });
        std::iter::once(0.0).chain(sums).collect()
    };
    let mass = prefix(&|c| c);
    let n_filled = prefix(&|c| f64::from(u8::from(c > 0.0)));
    let c_log_c = prefix(&|c| if c > 0.0 { c * c.ln() } else { 0.0 });
    let total = mass[counts.len()];

    let mut best = (f64::INFINITY, counts.len());
    for i in n_levels.min(counts.len())..=counts.len() {
        let (kept, tail, last) = (mass[i], total - mass[i], counts[i - 1]);
        if kept <= 0.0 {
            continue;
        }
        // sum of P ln P, in counts.
        let with_tail = last + tail;
        let mut p_log_p = c_log_c[i - 1];
        if with_tail > 0.0 {
            p_log_p += with_tail * with_tail.ln();
        }
        // sum of P ln Q, in counts. Where Q would have nothing and P has the tail, Q has a trace.
        let tail_is_alone = last <= 0.0;
        let mut p_log_q = if tail_is_alone { tail * (TRACE / kept).ln() } else { 0.0 };
        for group in 0..n_levels {
            let (from, to) = (group * i / n_levels, (group + 1) * i / n_levels);
            let (sum, n) = (mass[to] - mass[from], n_filled[to] - n_filled[from]);
            if n > 0.0 {
                let p = if to == i && !tail_is_alone { sum + tail } else { sum };
                p_log_q += p * (sum / n / kept).ln();
            }
        }
        let divergence = (p_log_p - p_log_q) / total - total.ln();
        // On a tie the longer one, which clips less.
        if divergence <= best.0 {
            best = (divergence, i);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, without prefix sums.
    fn divergence(counts: &[f64], i: usize, n_levels: usize) -> f64 {
        let total: f64 = counts.iter().sum();
        let mut p = counts[..i].to_vec();
        p[i - 1] += counts[i..].iter().sum::<f64>();
        let kept: f64 = counts[..i].iter().sum();
        let mut q = vec![0.0; i];
        for group in 0..n_levels {
            let bins = group * i / n_levels..(group + 1) * i / n_levels;
            let n = counts[bins.clone()].iter().filter(|&&c| c > 0.0).count();
            let sum: f64 = counts[bins.clone()].iter().sum();
            for j in bins.filter(|&j| counts[j] > 0.0) {
                q[j] = sum / n as f64;
            }
        }
        if q[i - 1] == 0.0 {
            q[i - 1] = TRACE;
        }
        let terms = p.iter().zip(&q).filter(|(p, _)| **p > 0.0);
        terms.map(|(p, q)| p / total * ((p / total) / (q / kept)).ln()).sum()
    }

    #[test]
    fn the_length_found_has_the_least_divergence_of_all() {
        let n_levels = 16;
        for seed in 1..20_u64 {
            let counts: Vec<f64> = (0..200_u64)
                .map(|i| {
                    let noise = (i * 2_654_435_761 * seed) % 97;
                    let bell = 1000.0 * (-((i as f64) / 30.0).powi(2)).exp();
                    if noise % 5 == 0 { 0.0 } else { (bell + noise as f64 / 50.0).floor() }
                })
                .collect();
            let best = best_length(&counts, n_levels);
            let least = divergence(&counts, best, n_levels);
            for i in n_levels..=counts.len() {
                let other = divergence(&counts, i, n_levels);
                // Sums in another order: 1e-9 of a divergence of order 1.
                assert!(least <= other + 1e-9, "seed {seed}: {best} has {least}, {i} has {other}");
            }
        }
    }

    #[test]
    fn many_lengths_are_tried() {
        // The field's default tries one, 128 of 128, which always keeps everything.
        let mut counts = vec![0.0; N_LINEAR];
        counts[..200].iter_mut().enumerate().for_each(|(i, c)| *c = 1000.0 - 5.0 * i as f64);
        counts[N_LINEAR - 1] = 1.0;
        let best = best_length(&counts, 128);
        assert!((128..=220).contains(&best), "{best}");
    }
}
