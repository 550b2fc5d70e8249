//! What can be asked for, and recipes that work as they are.

/// How weights and biases are changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// Stochastic gradient descent with momentum; weight decay is part of the gradient.
    Sgd {
        /// Share of the last step that is taken again.
        momentum: f32,
    },
    /// Adam, with weight decay beside the gradient (AdamW). Scales take steps in their logarithm (Jain et al., 2020,
    /// "Trained quantization thresholds").
    Adam,
}

/// Where scales come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// The plan's, to the end.
    Fixed,
    /// Learned with the weights, from the plan's (LSQ; Esser et al., 2020), and zero points too (LSQ+).
    Learned,
    /// As `Learned`, but of an activation from 0 only the upper bound is learned, from what lies above it, with a
    /// penalty on its square (PACT; Choi et al., 2018).
    Pact,
    /// Followed: weights by their largest magnitude, activations by moving averages of their extrema, until they
    /// freeze.
    Observed,
}

/// What is minimized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Weight of the cross-entropy with the labels.
    pub cross_entropy: f32,
    /// Weight of the squared difference from given values.
    pub squared: f32,
    /// Weight of the distance from the float model's outputs (Kullback-Leibler divergence of softened outputs).
    pub distill: f32,
    /// The temperature that softens them.
    pub temperature: f32,
    /// Weight of the squared difference of inner values from the float model's, relative to their mean square.
    pub features: f32,
}

/// Changes to pictures that leave what they show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Augment {
    /// Moves a picture by at most so many pixels each way; its border is repeated.
    pub crop: usize,
    /// Mirrors half of the pictures.
    pub flip: bool,
}

/// Everything about a training run besides the model, the plan and the data.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Passes over the data.
    pub epochs: usize,
    /// Samples of a step.
    pub batch: usize,
    /// Samples that are in memory at once, if that is to be fewer than `batch`: their gradients are added up.
    pub micro_batch: Option<usize>,
    /// Whether values in the middle of the network are computed again on the way back instead of kept.
    pub recompute: bool,
    /// How the parameters are changed.
    pub optimizer: Optimizer,
    /// The largest learning rate. It falls to 0 along half a cosine.
    pub learning_rate: f32,
    /// Share of all steps in which the learning rate rises from 0 to it.
    pub warmup: f32,
    /// Of weights, not of biases, normalizations and scales.
    pub weight_decay: f32,
    /// The largest norm of all gradients together; longer ones are shortened.
    pub clip: Option<f32>,
    /// What is minimized.
    pub loss: Loss,
    /// Inner values that are to be as the float model's, by name.
    pub features: Vec<String>,
    /// Where scales come from.
    pub scales: Scales,
    /// Share of all steps before anything is quantized: only ranges are measured.
    pub delay: f32,
    /// Share of all steps after which observed ranges freeze.
    pub freeze_ranges: f32,
    /// Share of all steps after which batch normalizations use their running statistics and no longer change them.
    pub freeze_norms: f32,
    /// Weight of a new batch in running statistics and observed ranges.
    pub momentum: f32,
    /// Changes to pictures.
    pub augment: Augment,
    /// Epochs without a better score after which training ends; `None` trains to the end.
    pub patience: Option<usize>,
    /// Steps between two checkpoints inside of an epoch.
    pub checkpoint_steps: usize,
    /// Decides every random choice.
    pub seed: u64,
}

/// Settings that work as they are.
pub struct Recipe {
    /// `snake_case`, unique.
    pub name: &'static str,
    /// One line for `--help`.
    pub summary: &'static str,
    /// The settings.
    pub options: fn() -> Options,
}

fn base() -> Options {
    Options {
        epochs: 1,
        batch: 64,
        micro_batch: None,
        recompute: false,
        optimizer: Optimizer::Adam,
        learning_rate: 1e-4,
        warmup: 0.02,
        weight_decay: 1e-4,
        clip: Some(5.0),
        loss: Loss {
            cross_entropy: 0.5,
            squared: 0.0,
            distill: 0.5,
            temperature: 2.0,
            features: 0.0,
        },
        features: Vec::new(),
        scales: Scales::Learned,
        delay: 0.0,
        freeze_ranges: 0.5,
        freeze_norms: 0.0,
        momentum: 0.05,
        augment: Augment::default(),
        patience: None,
        checkpoint_steps: 200,
        seed: 0,
    }
}

/// Every recipe, from the most bits to the fewest.
pub static RECIPES: &[Recipe] = &[
    Recipe {
        name: "touch_up",
        summary: "8 bits: one epoch at a small learning rate, normalizations as they are",
        options: base,
    },
    Recipe {
        name: "four_bits",
        summary: "3 to 7 bits: three epochs, normalizations follow for two thirds of them",
        options: || Options { epochs: 3, learning_rate: 1e-3, freeze_norms: 0.67, ..base() },
    },
    Recipe {
        name: "two_bits",
        summary: "2 bits: three epochs at a larger learning rate",
        options: || Options { epochs: 3, learning_rate: 2e-3, freeze_norms: 0.75, ..base() },
    },
];

/// The recipe for a model whose fewest bits are these.
pub fn recipe_for_bits(bits: u32) -> &'static Recipe {
    &RECIPES[match bits {
        8.. => 0,
        3..8 => 1,
        _ => 2,
    }]
}

impl Options {
    /// Refuses what makes no sense, before any sample is read.
    pub fn check(&self) -> Result<(), crate::Error> {
        let refuse = |what: &str| Err(crate::Error::Options(what.to_owned()));
        let shares = [self.warmup, self.delay, self.freeze_ranges, self.freeze_norms];
        if shares.iter().any(|share| !(0.0..=1.0).contains(share)) {
            return refuse("a share of the steps is between 0 and 1");
        }
        if self.delay == 1.0 {
            return refuse("a delay of all steps leaves none that is quantized");
        }
        if self.epochs == 0 || self.batch == 0 || self.micro_batch == Some(0) {
            return refuse("epochs and batches are at least 1");
        }
        if !(self.learning_rate.is_finite() && 0.0 < self.learning_rate) {
            return refuse("the learning rate is above 0");
        }
        if !(0.0..1.0).contains(&self.momentum) || !(0.0..1.0).contains(&self.weight_decay) {
            return refuse("momentum and weight decay are at least 0 and below 1");
        }
        if self.clip.is_some_and(|clip| clip <= 0.0 || clip.is_nan()) {
            return refuse("the largest gradient is above 0");
        }
        let loss = &self.loss;
        let parts = [loss.cross_entropy, loss.squared, loss.distill, loss.features];
        if parts.iter().any(|part| !(part.is_finite() && 0.0 <= *part))
            || parts.iter().all(|part| *part == 0.0)
        {
            return refuse("the weights of the loss are not negative, and one is above 0");
        }
        if loss.temperature <= 0.0 || loss.temperature.is_nan() {
            return refuse("the temperature is above 0");
        }
        if loss.features != 0.0 && self.features.is_empty() {
            return refuse("matching inner values needs their names");
        }
        Ok(())
    }
}
