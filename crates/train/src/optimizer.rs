//! Steps against the gradient.

use crate::options::Optimizer;

/// What the optimizer remembers of each group of numbers, and how it steps.
#[derive(Debug)]
pub(crate) struct Steps {
    optimizer: Optimizer,
    /// First and second moments.
    moments: Vec<[Vec<f32>; 2]>,
    /// Steps taken.
    pub(crate) n: u32,
}

/// Adam's usual constants.
const BETAS: [f32; 2] = [0.9, 0.999];
const EPSILON: f32 = 1e-8;

impl Steps {
    /// For groups of these sizes.
    pub(crate) fn new(optimizer: Optimizer, sizes: &[usize]) -> Self {
        let second = |n: usize| if optimizer == Optimizer::Adam { n } else { 0 };
        let moments = sizes.iter().map(|&n| [vec![0.0; n], vec![0.0; second(n)]]).collect();
        Self { optimizer, moments, n: 0 }
    }

    /// One step of a group.
    pub(crate) fn step(
        &mut self,
        group: usize,
        values: &mut [f32],
        grads: &[f32],
        rate: f32,
        decay: f32,
    ) {
        let [first, second] = &mut self.moments[group];
        match self.optimizer {
            Optimizer::Sgd { momentum } => {
                for ((x, g), m) in values.iter_mut().zip(grads).zip(first) {
                    *m = momentum * *m + (g + decay * *x);
                    *x -= rate * *m;
                }
            }
            Optimizer::Adam => {
                let [b1, b2] = BETAS;
                let correct = |b: f32| 1.0 - b.powi(self.n as i32);
                let (c1, c2) = (correct(b1), correct(b2));
                for (((x, g), m), v) in values.iter_mut().zip(grads).zip(first).zip(second) {
                    *m += (1.0 - b1) * (g - *m);
                    *v += (1.0 - b2) * (g * g - *v);
                    *x -= rate * ((*m / c1) / ((*v / c2).sqrt() + EPSILON) + decay * *x);
                }
            }
        }
    }

    /// Calls `f` with everything it remembers, in a fixed order.
    pub(crate) fn visit(&mut self, mut f: impl FnMut(&mut [f32])) {
        for [first, second] in &mut self.moments {
            f(first);
            f(second);
        }
    }
}

/// The learning rate at a step: up along a line, down along half a cosine.
pub(crate) fn rate_at(step: usize, n_steps: usize, warmup: f32, largest: f32) -> f32 {
    let n_up = (n_steps as f64 * f64::from(warmup)).round();
    let step = step as f64;
    let factor = if step < n_up {
        (step + 1.0) / (n_up + 1.0)
    } else {
        let done = (step - n_up) / (n_steps as f64 - n_up).max(1.0);
        0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    };
    (f64::from(largest) * factor) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_find_the_lowest_point_of_a_bowl() {
        for (optimizer, rate) in [(Optimizer::Sgd { momentum: 0.9 }, 0.02), (Optimizer::Adam, 0.05)]
        {
            let mut steps = Steps::new(optimizer, &[2]);
            let mut x = [3.0_f32, -2.0];
            for step in 0..600 {
                steps.n += 1;
                let grads = [x[0] - 1.0, 4.0 * (x[1] - 0.5)];
                steps.step(0, &mut x, &grads, rate_at(step, 600, 0.0, rate), 0.0);
            }
            assert!((x[0] - 1.0).abs() < 0.01 && (x[1] - 0.5).abs() < 0.01, "{optimizer:?} {x:?}");
        }
    }

    #[test]
    fn weights_without_gradient_decay() {
        for optimizer in [Optimizer::Sgd { momentum: 0.0 }, Optimizer::Adam] {
            let mut steps = Steps::new(optimizer, &[1]);
            steps.n = 1;
            let mut x = [1.0];
            steps.step(0, &mut x, &[0.0], 0.1, 0.5);
            assert_eq!(x, [0.95], "{optimizer:?}");
        }
    }

    #[test]
    fn the_rate_rises_then_falls_to_nothing() {
        let rates: Vec<f32> = (0..=100).map(|step| rate_at(step, 100, 0.1, 2.0)).collect();
        assert!(rates[..11].is_sorted() && rates[10..].iter().rev().is_sorted());
        assert_eq!((rates[10], rates[100]), (2.0, 0.0));
        assert!(0.0 < rates[0]);
    }
}
