//! How good a model is beside its float form, in one number that is better the larger it is.

use midtread_graph::Model;
use midtread_quant::calibrate::Samples;
use serde::Serialize;

use crate::{
    error::Error,
    evaluate::{Difference, Prediction, RunOptions, closeness, predict, score},
    metric::metric,
    significance::wilson,
};

/// What the number is.
#[derive(Clone, Debug)]
pub enum Measure {
    /// The share of right first answers; these are the right classes of each sample.
    Top1(Vec<Vec<usize>>),
    /// The share of first answers that are the float model's.
    Agreement,
    /// The mean cosine between the first output and the float model's.
    Cosine,
    /// What a program says (see [`mod@crate::metric`]); more is better.
    Command(String),
}

impl Measure {
    /// `top-1`, `agreement`, `cosine`, `metric`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Top1(_) => "top-1",
            Self::Agreement => "agreement",
            Self::Cosine => "cosine",
            Self::Command(_) => "metric",
        }
    }
}

/// How good a model is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quality {
    /// The number itself.
    pub value: f64,
    /// What of it was lost, 0 to 1: the float model's less this one's; of a program's number the share that is gone.
    pub loss: f64,
    /// Where the loss lies for the whole population with 95 % confidence, if that can be told.
    pub interval: Option<(f64, f64)>,
    /// Share of first answers that are the float model's, where the models answer.
    pub agreement: Option<f64>,
    /// How right answers differ, where the right ones are known.
    pub difference: Option<Difference>,
}

/// Judges models against one float model on the same samples.
pub struct Judge<'a> {
    float: &'a Model,
    samples: &'a dyn Samples,
    options: RunOptions<'a>,
    measure: Measure,
    answers: Vec<Prediction>,
    /// The float model's own.
    pub of_float: Quality,
}

impl<'a> Judge<'a> {
    /// Runs the float model, once. `progress` of the options is called with the samples done of each model.
    pub fn new(
        float: &'a Model,
        samples: &'a dyn Samples,
        measure: Measure,
        options: RunOptions<'a>,
    ) -> Result<Self, Error> {
        if samples.names().is_empty() {
            return Err(Error::Options("there is no sample to judge by".into()));
        }
        let mut this = Self {
            float,
            samples,
            options,
            measure,
            answers: Vec::new(),
            of_float: Quality::default(),
        };
        let value = match &this.measure {
            Measure::Top1(right) => {
                this.answers = predict(float, samples, &this.options)?;
                score(&this.answers, Some(&|i| right[i].clone()), None).top1.unwrap_or(0.0)
            }
            Measure::Agreement => {
                this.answers = predict(float, samples, &this.options)?;
                1.0
            }
            Measure::Cosine => 1.0,
            Measure::Command(command) => metric(float, samples, &this.options, command)?,
        };
        this.of_float.value = value;
        Ok(this)
    }

    /// What the number is.
    pub fn measure(&self) -> &Measure {
        &self.measure
    }

    /// Samples that models are judged by.
    pub fn n_samples(&self) -> usize {
        self.samples.names().len()
    }

    /// Where the float model's share lies for the whole population with 95 % confidence; of shares alone.
    pub fn interval(&self, value: f64) -> Option<(f64, f64)> {
        let is_share = matches!(self.measure, Measure::Top1(_) | Measure::Agreement);
        is_share.then(|| wilson(value, self.n_samples()))
    }

    /// Runs a model and judges it.
    pub fn judge(&self, model: &Model) -> Result<Quality, Error> {
        let (samples, options) = (self.samples, &self.options);
        let of_float = self.of_float.value;
        Ok(match &self.measure {
            Measure::Top1(right) => {
                let answers = predict(model, samples, options)?;
                let scored = score(&answers, Some(&|i| right[i].clone()), Some(&self.answers));
                Quality {
                    value: scored.top1.unwrap_or(0.0),
                    loss: scored.difference.map_or(0.0, |d| d.drop),
                    interval: scored.difference.map(|d| d.interval),
                    agreement: scored.agreement,
                    difference: scored.difference,
                }
            }
            Measure::Agreement => {
                let answers = predict(model, samples, options)?;
                let value = score(&answers, None, Some(&self.answers)).agreement.unwrap_or(0.0);
                let (low, high) = wilson(value, answers.len());
                Quality {
                    value,
                    loss: 1.0 - value,
                    interval: Some((1.0 - high, 1.0 - low)),
                    agreement: Some(value),
                    difference: None,
                }
            }
            Measure::Cosine => {
                let value = closeness(model, self.float, samples, options)?.cosine;
                Quality { value, loss: 1.0 - value, ..Quality::default() }
            }
            Measure::Command(command) => {
                let value = metric(model, samples, options, command)?;
                let whole = if of_float == 0.0 { 1.0 } else { of_float.abs() };
                Quality { value, loss: (of_float - value) / whole, ..Quality::default() }
            }
        })
    }
}
