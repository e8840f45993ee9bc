//! How far the logits of two models lie apart on the same tokens.

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_math::Compute;
use moe_math::likelihood::{agreements, divergence, log_probabilities};
use moe_model::Model;
use serde::Serialize;

use crate::batch::Batch;
use crate::context::Context;
use crate::loader::{Loader, Shared};
use crate::sweep::{Head, Observer, Silent, Sweep, weights_of};

/// Logits of a model beside those of its original.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Tokens compared.
    pub tokens: usize,
    /// Largest absolute difference of a logit.
    pub max_logit_difference: f64,
    /// Largest absolute logit of the original, for scale.
    pub max_logit: f64,
    /// Mean KL(original ‖ model) in nats.
    pub kl: f64,
    /// Share of tokens whose most probable next token is the same.
    pub top1_agreement: f64,
}

/// Runs both models on `batch` in step, so that weights which both are made of are loaded once.
///
/// # Errors
/// What the sweeps return.
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
    let [first, second] = &mut sweeps;
    let layers = model.layers.len();
    for index in 0..layers.max(original.layers.len()) {
        shared.record_of(model.layers.get(index).into_iter().flat_map(weights_of).cloned().collect());
        if index < original.layers.len() {
            first.layer(index, &mut Silent)?;
        }
        shared.lend();
        if index < layers {
            second.layer(index, observer)?;
        }
        observer.layer_done(index, layers)?;
    }
    let loader = Loader::sharing(compute, &shared);
    shared.record();
    let p = Head::load_with(original, loader)?.logits(&first.hidden(0..batch.tokens())?)?;
    shared.lend();
    let q = Head::load_with(model, loader)?.logits(&second.hidden(0..batch.tokens())?)?;
    let measure = || -> candle_core::Result<Difference> {
        let max = |t: Tensor| t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>().map(f64::from);
        let (log_p, log_q) = (log_probabilities(&p)?, log_probabilities(&q)?);
        let tokens = batch.tokens();
        Ok(Difference {
            tokens,
            max_logit_difference: max((&p - &q)?)?,
            max_logit: max(p.clone())?,
            kl: divergence(&log_p, &log_q)?.iter().sum::<f64>() / tokens as f64,
            top1_agreement: agreements(&log_p, &log_q)? as f64 / tokens as f64,
        })
    };
    measure().context(|| "the difference of logits".into())
}
