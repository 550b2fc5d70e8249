//! Batch normalization while its folded form is trained.
//!
//! The convolution multiplies by `fake_quantize(W * k)` with `k = gamma / sqrt(var + epsilon)` of the running statistics,
//! as the deployed one will. While statistics still follow, the result is normalized with those of the batch: the product
//! is divided by `k` (which undoes the folding up to rounding), and normalized as ever; that is Krishnamoorthi's
//! (2018) correction `sqrt(running variance) / sqrt(batch variance)`. Once frozen it is the folded convolution with its
//! bias, and gradients go through `k`.

use midtread_graph::{Graph, Links, Model, Node, Tensor};
use midtread_kernels::{
    conv::{Conv2d, conv2d},
    gemm::Epilogue,
    grad::{
        batch_norm::{Planes, affine, combine, statistics, sums},
        conv2d_input, conv2d_weights,
    },
};
use midtread_ops::{OpError, Pool};

/// A normalization that the prepared model has folded into a convolution.
#[derive(Debug)]
pub(crate) struct Norm {
    /// The convolution's index in the prepared graph.
    pub(crate) node: usize,
    pub(crate) name: String,
    pub(crate) dims: Vec<usize>,
    /// Before folding, with the convolution's own bias (zeros if it has none).
    pub(crate) weight: Vec<f32>,
    pub(crate) own_bias: Vec<f32>,
    pub(crate) gamma: Vec<f32>,
    pub(crate) beta: Vec<f32>,
    pub(crate) mean: Vec<f32>,
    pub(crate) var: Vec<f32>,
    epsilon: f32,
    /// The factors with which the weights of this step were folded: running statistics move on before it ends.
    k: Vec<f32>,
}

/// What the gradient needs of a normalization with the batch's statistics.
#[derive(Debug)]
pub(crate) struct BatchCache {
    pub(crate) product: Tensor,
    mean: Vec<f32>,
    /// `1 / (k * sigma)`: from the product less its mean to the normalized value.
    inverse: Vec<f32>,
}

/// Gradients of the normalized convolution.
pub(crate) struct NormGrads {
    pub(crate) x: Option<Tensor>,
    /// Of the folded, quantized weights.
    pub(crate) weight: Vec<f32>,
    pub(crate) gamma: Vec<f32>,
    pub(crate) beta: Vec<f32>,
}

impl Norm {
    /// The factor of each output channel.
    pub(crate) fn factors(&self) -> Vec<f32> {
        self.gamma
            .iter()
            .zip(&self.var)
            .map(|(gamma, var)| gamma / (var + self.epsilon).sqrt())
            .collect()
    }

    /// Folds with the present parameters and statistics from here on.
    pub(crate) fn fold(&mut self) {
        self.k = self.factors();
    }

    /// Weights as they are multiplied with.
    pub(crate) fn folded_weight(&self) -> Vec<f32> {
        let k = self.factors();
        let n = self.weight.len() / k.len().max(1);
        self.weight.iter().enumerate().map(|(i, w)| w * k[i / n]).collect()
    }

    /// The bias with running statistics.
    pub(crate) fn folded_bias(&self) -> Vec<f32> {
        let k = self.factors();
        (0..k.len()).map(|c| (self.own_bias[c] - self.mean[c]) * k[c] + self.beta[c]).collect()
    }

    /// The gradient of the folded weights as that of the weights; with `through_k`, gamma's part is added to `gamma`.
    pub(crate) fn unfold_weight(
        &self,
        grad: &[f32],
        weight: &mut [f32],
        gamma: Option<&mut [f32]>,
    ) {
        let k = &self.k;
        let n = self.weight.len() / k.len().max(1);
        for (i, (to, grad)) in weight.iter_mut().zip(grad).enumerate() {
            *to += grad * k[i / n];
        }
        let Some(gamma) = gamma else { return };
        for (c, gamma) in gamma.iter_mut().enumerate() {
            let part = c * n..(c + 1) * n;
            let dk: f64 = self.weight[part.clone()]
                .iter()
                .zip(&grad[part])
                .map(|(w, g)| f64::from(*w) * f64::from(*g))
                .sum();
            *gamma += (dk / f64::from(self.var[c] + self.epsilon).sqrt()) as f32;
        }
    }

    /// The gradient of the folded bias as those of gamma and beta.
    pub(crate) fn unfold_bias(&self, grad: &[f32], gamma: &mut [f32], beta: &mut [f32]) {
        for c in 0..grad.len() {
            beta[c] += grad[c];
            gamma[c] +=
                grad[c] * (self.own_bias[c] - self.mean[c]) / (self.var[c] + self.epsilon).sqrt();
        }
    }

    /// The output with the batch's statistics, which the running ones follow.
    pub(crate) fn forward(
        &mut self,
        pool: &Pool,
        node: &Node,
        x: &Tensor,
        weight: &[f32],
        momentum: Option<f32>,
    ) -> Result<(Tensor, BatchCache), OpError> {
        let conv = self.sizes(node, x)?;
        let planes = planes(&conv);
        let dims = [&[conv.n, conv.c_out][..], &conv.output()[4 - self.dims.len()..]].concat();
        let product = pool.fill::<f32>(dims.clone(), |y| {
            conv2d(&conv, x.as_slice()?, weight, &Epilogue::default(), y);
            Ok(())
        })?;
        let y0 = product.as_slice::<f32>()?;
        let (mut mean, mut var) = (vec![0.0; conv.c_out], vec![0.0; conv.c_out]);
        statistics(planes, y0, &mut mean, &mut var);
        let k = &self.k;
        let count = (planes.n * planes.len) as f32;
        let (mut inverse, mut factor, mut shift) =
            (vec![0.0; k.len()], vec![0.0; k.len()], vec![0.0; k.len()]);
        for c in 0..k.len() {
            // A channel that multiplies by nothing is its shift.
            if k[c].abs() < 1e-12 {
                shift[c] = self.beta[c];
                continue;
            }
            let (batch_mean, batch_var) = (mean[c] / k[c], var[c] / (k[c] * k[c]));
            inverse[c] = 1.0 / (k[c] * (batch_var + self.epsilon).sqrt());
            factor[c] = self.gamma[c] * inverse[c];
            shift[c] = self.beta[c] - factor[c] * mean[c];
            if let Some(momentum) = momentum {
                self.mean[c] += momentum * (batch_mean + self.own_bias[c] - self.mean[c]);
                let unbiased = batch_var * count / (count - 1.0).max(1.0);
                self.var[c] += momentum * (unbiased - self.var[c]);
            }
        }
        let y = pool.fill::<f32>(dims, |y| {
            affine(planes, y0, &factor, &shift, y);
            Ok(())
        })?;
        Ok((y, BatchCache { product, mean, inverse }))
    }

    /// Gradients of [`Norm::forward`]; the input's only where it is wanted.
    pub(crate) fn backward(
        &self,
        pool: &Pool,
        node: &Node,
        (x, wants_x): (&Tensor, bool),
        weight: &[f32],
        cache: &BatchCache,
        dy: &Tensor,
    ) -> Result<NormGrads, OpError> {
        let conv = self.sizes(node, x)?;
        let planes = planes(&conv);
        let (y0, grad) = (cache.product.as_slice::<f32>()?, dy.as_slice::<f32>()?);
        let sums = sums(planes, y0, grad, &cache.mean);
        let count = (planes.n * planes.len) as f32;
        let (mut gamma, mut beta) = (vec![0.0; conv.c_out], vec![0.0; conv.c_out]);
        let factors: Vec<[f32; 3]> = (0..conv.c_out)
            .map(|c| {
                let r = cache.inverse[c];
                (gamma[c], beta[c]) = (sums[c][1] * r, sums[c][0]);
                let of_dy = self.gamma[c] * r;
                let of_y = -of_dy * r * gamma[c] / count;
                [of_dy, of_y, -of_dy * beta[c] / count - of_y * cache.mean[c]]
            })
            .collect();
        let d_product = pool.fill::<f32>(dy.dims().to_vec(), |to| {
            combine(planes, y0, grad, &factors, to);
            Ok(())
        })?;
        let d_product = d_product.as_slice::<f32>()?;
        let mut d_weight = vec![0.0; weight.len()];
        conv2d_weights(&conv, x.as_slice()?, d_product, &mut d_weight);
        let d_x = if wants_x {
            Some(pool.fill::<f32>(x.dims().to_vec(), |dx| {
                conv2d_input(&conv, weight, d_product, dx);
                Ok(())
            })?)
        } else {
            None
        };
        Ok(NormGrads { x: d_x, weight: d_weight, gamma, beta })
    }

    fn sizes(&self, node: &Node, x: &Tensor) -> Result<Conv2d, OpError> {
        midtread_ops::window::conv_2d(node, x.dims(), &self.dims)
    }
}

fn planes(conv: &Conv2d) -> Planes {
    let [height, width] = conv.output();
    Planes { n: conv.n, channels: conv.c_out, len: height * width }
}

/// The normalizations of `unfused`, a model prepared without folding them, that `prepared` has folded into
/// convolutions: those whose folded weights and biases are the prepared ones, bit for bit.
pub(crate) fn find(unfused: &Model, prepared: &Model) -> Vec<Norm> {
    let (from, to) = (&unfused.graph, &prepared.graph);
    let (from_links, to_links) = (Links::new(from), Links::new(to));
    (0..from.nodes.len())
        .filter_map(|i| {
            let mut norm = read(from, &from_links, i)?;
            norm.node = to_links.producer(to.find(&norm.name)?)?;
            let node = &to.nodes[norm.node];
            let same = |input: usize, values: &[f32]| {
                let constant = node.input(input).and_then(|id| to.constant(id));
                constant.and_then(|t| t.to_vec::<f32>().ok()).is_some_and(|t| t == values)
            };
            let is_it = node.is("Conv")
                && same(1, &norm.folded_weight())
                && same(2, &norm.folded_bias())
                && to_links.only_consumer(node.input(1)?) == Some(norm.node)
                && to_links.only_consumer(node.input(2)?) == Some(norm.node);
            is_it.then_some(norm)
        })
        .collect()
}

/// Normalization `i` and the convolution before it.
fn read(graph: &Graph, links: &Links, i: usize) -> Option<Norm> {
    let node = &graph.nodes[i];
    if !node.is("BatchNormalization") {
        return None;
    }
    let x = node.input(0)?;
    let conv = &graph.nodes[links.producer(x)?];
    if !conv.is("Conv") || links.only_consumer(x) != Some(i) {
        return None;
    }
    let floats = |id| graph.constant(id).and_then(|t| t.to_vec::<f32>().ok());
    let weight_id = conv.input(1)?;
    let dims = graph.constant(weight_id)?.dims().to_vec();
    if !(3..=4).contains(&dims.len()) {
        return None;
    }
    let channels = dims[0];
    let own_bias = match conv.input(2) {
        Some(id) => floats(id)?,
        None => vec![0.0; channels],
    };
    let [gamma, beta, mean, var] = [1, 2, 3, 4].map(|k| node.input(k).and_then(floats));
    let mut norm = Norm {
        // Found by the caller, in the other graph.
        node: usize::MAX,
        name: graph.value_name(node.output(0)?).to_owned(),
        dims,
        weight: floats(weight_id)?,
        own_bias,
        gamma: gamma?,
        beta: beta?,
        mean: mean?,
        var: var?,
        epsilon: node.float("epsilon").unwrap_or(1e-5),
        k: Vec::new(),
    };
    norm.fold();
    Some(norm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99_991);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn norm() -> (Norm, Node) {
        let mut graph = Graph::default();
        let [x, w, y] = ["x", "w", "y"].map(|n| graph.intern(n));
        let node = Node::new("Conv", "conv", [x, w], [y]);
        let mut norm = Norm {
            node: 0,
            name: "y".into(),
            dims: vec![2, 3, 2, 2],
            weight: numbers(24, 1),
            own_bias: vec![0.25, -0.5],
            gamma: vec![1.5, -0.75],
            beta: vec![0.1, 0.2],
            mean: vec![0.3, -0.1],
            var: vec![0.8, 1.7],
            epsilon: 1e-3,
            k: Vec::new(),
        };
        norm.fold();
        (norm, node)
    }

    fn x() -> Tensor {
        Tensor::from_slice(vec![3, 3, 5, 4], &numbers(180, 2)).unwrap()
    }

    /// Sum of the outputs, each with its own weight.
    fn total(y: &Tensor) -> f64 {
        let y = y.to_vec::<f32>().unwrap();
        y.iter().zip(numbers(y.len(), 3)).map(|(y, c)| f64::from(*y) * f64::from(c)).sum()
    }

    #[test]
    fn with_the_batchs_statistics_it_is_the_unfolded_normalization_whatever_the_running_ones_are() {
        let (mut norm, node) = norm();
        let pool = Pool::default();
        let run = |norm: &mut Norm| {
            norm.fold();
            let w = norm.folded_weight();
            norm.forward(&pool, &node, &x(), &w, None).unwrap().0.to_vec::<f32>().unwrap()
        };
        let a = run(&mut norm);
        (norm.mean, norm.var) = (vec![5.0, -4.0], vec![0.1, 30.0]);
        let b = run(&mut norm);
        // The running statistics only scale the product; what is left is rounding of numbers near 1, and epsilon is
        // where it is in both.
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {b:?}");
    }

    #[test]
    fn running_statistics_are_those_of_the_unfolded_convolution() {
        let (mut norm, node) = norm();
        let pool = Pool::default();
        let w = norm.folded_weight();
        // All of the new batch.
        norm.forward(&pool, &node, &x(), &w, Some(1.0)).unwrap();
        let conv = norm.sizes(&node, &x()).unwrap();
        let mut y = vec![0.0; conv.lens()[2]];
        conv2d(&conv, &x().to_vec::<f32>().unwrap(), &norm.weight, &Epilogue::default(), &mut y);
        let (mut mean, mut var) = ([0.0; 2], [0.0; 2]);
        statistics(planes(&conv), &y, &mut mean, &mut var);
        for c in 0..2 {
            let n = 3.0 * 12.0;
            assert!((norm.mean[c] - (mean[c] + norm.own_bias[c])).abs() < 1e-5, "{c}");
            assert!((norm.var[c] - var[c] * n / (n - 1.0)).abs() < 1e-4, "{c}");
        }
    }

    #[test]
    fn gradients_are_slopes_in_both_modes() {
        let pool = Pool::default();
        let (mut first, node) = norm();
        let w = first.folded_weight();
        let (y, cache) = first.forward(&pool, &node, &x(), &w, None).unwrap();
        let dy = Tensor::from_slice(y.dims().to_vec(), &numbers(y.len(), 3)).unwrap();
        let grads = first.backward(&pool, &node, (&x(), true), &w, &cache, &dy).unwrap();
        let slope = |at: &dyn Fn(f32) -> f64| {
            let central = |h: f32| (at(h) - at(-h)) / (2.0 * f64::from(h));
            (4.0 * central(1.0 / 128.0) - central(1.0 / 64.0)) / 3.0
        };
        // As in the law of the operators' gradients: rounding of some tens of numbers over the step.
        let same = |got: f32, want: f64, what: &str| {
            assert!(
                (f64::from(got) - want).abs() < 1e-3 * want.abs().max(1.0),
                "{what}: {got} {want}"
            );
        };
        let run = |norm: &mut Norm, x: &Tensor, w: &[f32]| {
            total(&norm.forward(&pool, &node, x, w, None).unwrap().0)
        };
        let dx = grads.x.unwrap().to_vec::<f32>().unwrap();
        for i in [0, 77, 179] {
            let at = |d: f32| {
                let mut moved = x().to_vec::<f32>().unwrap();
                moved[i] += d;
                run(&mut norm().0, &Tensor::from_slice(vec![3, 3, 5, 4], &moved).unwrap(), &w)
            };
            same(dx[i], slope(&at), &format!("x {i}"));
        }
        for i in 0..24 {
            let at = |d: f32| {
                let mut moved = w.clone();
                moved[i] += d;
                run(&mut norm().0, &x(), &moved)
            };
            same(grads.weight[i], slope(&at), &format!("weight {i}"));
        }
        for c in 0..2 {
            // The folded weights stay: gamma and beta act after them.
            let at = |d: f32, which: usize| {
                let (mut norm, _) = norm();
                let folded = norm.k.clone();
                let part = if which == 0 { &mut norm.gamma } else { &mut norm.beta };
                part[c] += d;
                // `k` comes from gamma, so that its change is undone in the weights that are given.
                let k = norm.factors();
                let w: Vec<f32> =
                    w.iter().enumerate().map(|(i, w)| w / folded[i / 12] * k[i / 12]).collect();
                norm.fold();
                run(&mut norm, &x(), &w)
            };
            same(grads.gamma[c], slope(&|d| at(d, 0)), &format!("gamma {c}"));
            same(grads.beta[c], slope(&|d| at(d, 1)), &format!("beta {c}"));
        }
        // Folded, with frozen statistics: the output is conv(x, w * k) + b.
        let conv = first.sizes(&node, &x()).unwrap();
        let folded = |norm: &Norm| {
            let mut y = vec![0.0; conv.lens()[2]];
            let bias = norm.folded_bias();
            let epilogue = Epilogue {
                bias: midtread_kernels::gemm::Bias::PerRow(&bias),
                ..Epilogue::default()
            };
            conv2d(&conv, &x().to_vec::<f32>().unwrap(), &norm.folded_weight(), &epilogue, &mut y);
            total(&Tensor::from_slice(dy.dims().to_vec(), &y).unwrap())
        };
        let mut d_folded = vec![0.0; 24];
        conv2d_weights(
            &conv,
            &x().to_vec::<f32>().unwrap(),
            &dy.to_vec::<f32>().unwrap(),
            &mut d_folded,
        );
        let (mut d_weight, mut d_gamma, mut d_beta) = (vec![0.0; 24], vec![0.0; 2], vec![0.0; 2]);
        first.unfold_weight(&d_folded, &mut d_weight, Some(&mut d_gamma));
        let d_bias: Vec<f32> = sums(
            planes(&conv),
            &dy.to_vec::<f32>().unwrap(),
            &dy.to_vec::<f32>().unwrap(),
            &[0.0; 2],
        )
        .iter()
        .map(|s| s[0])
        .collect();
        first.unfold_bias(&d_bias, &mut d_gamma, &mut d_beta);
        let changed = |d: f32, change: &dyn Fn(&mut Norm, f32)| {
            let (mut norm, _) = norm();
            change(&mut norm, d);
            folded(&norm)
        };
        for c in 0..2 {
            same(
                d_gamma[c],
                slope(&|d| changed(d, &|n, d| n.gamma[c] += d)),
                &format!("folded gamma {c}"),
            );
            same(
                d_beta[c],
                slope(&|d| changed(d, &|n, d| n.beta[c] += d)),
                &format!("folded beta {c}"),
            );
        }
        for (i, &d_weight) in d_weight.iter().enumerate() {
            same(
                d_weight,
                slope(&|d| changed(d, &|n, d| n.weight[i] += d)),
                &format!("folded weight {i}"),
            );
        }
    }
}
