//! The difference between the logits of two models on the same tokens.

use std::ops::Range;

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_math::Compute;
use moe_math::likelihood::{agreements, divergence, log_probabilities};
use moe_model::Model;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::context::Context;
use crate::loader::{Loader, Shared};
use crate::observer::{Observer, Silent};
use crate::sweep::{LOGIT_BYTES, LmHead, Sweep, weights_of};

/// Logits of a model beside those of its original.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Difference {
    /// Tokens compared.
    pub tokens: usize,
    /// Largest absolute difference of a logit.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub max_logit_difference: f64,
    /// Largest absolute logit of the original, for scale.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub max_logit: f64,
    /// Mean KL(original ‖ model) in nats.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub kl: f64,
    /// Share of tokens whose most probable next token is the same.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub top1_agreement: f64,
}

/// Runs both models on `batch` in step, so that weights which both contain are loaded once.
///
/// # Errors
/// Errors of the sweeps.
pub fn logit_difference(
    original: &Model,
    model: &Model,
    batch: &Batch,
    compute: &Compute,
    observer: &mut dyn Observer,
) -> Result<Difference> {
    let shared = Shared::default();
    let mut sweeps = [Sweep::new(original, batch, compute)?, Sweep::new(model, batch, compute)?];
    sweeps.iter_mut().for_each(|sweep| sweep.share(&shared));
    run_in_step(&mut sweeps, [original, model], &shared, observer)?;
    let loader = Loader::sharing(compute, &shared);
    shared.record();
    let original = LmHead::load_with(original, loader)?;
    shared.lend();
    let model = LmHead::load_with(model, loader)?;
    let all = 0..batch.tokens();
    let [first, second] = &sweeps;
    Difference::over([&original, &model], [&first.hidden(all.clone())?, &second.hidden(all)?])
}

/// Runs both models layer by layer. The original goes first, and the other takes what it can of the
/// weights that were just loaded.
fn run_in_step(
    [first, second]: &mut [Sweep<'_>; 2],
    [original, model]: [&Model; 2],
    shared: &Shared,
    observer: &mut dyn Observer,
) -> Result<()> {
    let layers = model.layers.len();
    for index in 0..layers.max(original.layers.len()) {
        shared
            .record_of(model.layers.get(index).into_iter().flat_map(weights_of).cloned().collect());
        if index < original.layers.len() {
            first.layer(index, &mut Silent)?;
        }
        shared.lend();
        if index < layers {
            second.layer(index, observer)?;
        }
        observer.layer_done(index, layers)?;
    }
    Ok(())
}

fn logits(head: &LmHead, states: &Tensor, range: Range<usize>) -> Result<Tensor> {
    let states = states.narrow(0, range.start, range.len());
    head.logits(&states.context(|| "hidden states".into())?)
}

impl Difference {
    /// Compares two models by their heads and last hidden states; the original comes first.
    fn over(
        [original, model]: [&LmHead; 2],
        [entering, entering_model]: [&Tensor; 2],
    ) -> Result<Self> {
        let mut difference = Self::default();
        let rows = (LOGIT_BYTES / 8 / original.vocab().max(1)).max(1);
        let tokens = entering.dim(0).context(|| "hidden states".into())?;
        for start in (0..tokens).step_by(rows) {
            let range = start..(start + rows).min(tokens);
            let p = logits(original, entering, range.clone())?;
            let q = logits(model, entering_model, range)?;
            difference.add(&p, &q).context(|| "the difference of logits".into())?;
        }
        Ok(difference.of_mean())
    }

    /// Adds the logits of two models for some tokens. Fields that are means hold sums until
    /// [`Self::of_mean`].
    fn add(&mut self, p: &Tensor, q: &Tensor) -> candle_core::Result<()> {
        self.tokens += p.dim(0)?;
        self.max_logit_difference = self.max_logit_difference.max(max_absolute(&(p - q)?)?);
        self.max_logit = self.max_logit.max(max_absolute(p)?);
        let (log_p, log_q) = (log_probabilities(p)?, log_probabilities(q)?);
        self.kl += divergence(&log_p, &log_q)?.iter().sum::<f64>();
        self.top1_agreement += agreements(&log_p, &log_q)? as f64;
        Ok(())
    }

    /// Divides sums to make means.
    fn of_mean(self) -> Self {
        let tokens = self.tokens as f64;
        Self { kl: self.kl / tokens, top1_agreement: self.top1_agreement / tokens, ..self }
    }
}

fn max_absolute(t: &Tensor) -> candle_core::Result<f64> {
    t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>().map(f64::from)
}
