//! The losses of routers, and the counts of their choices.

use candle_core::Tensor;
use moe_checkpoint::{Error, Kind, Result};
use moe_math::losses::{load_balance, mean_probabilities, router_z};
use moe_math::routing::{Routing, Scoring};

use super::objective::{BalanceOver, Objective};
use crate::context::Context;
use crate::ffn::Capacity;
use crate::observer::Observer;

/// An observer that keeps the routing of a layer.
#[derive(Default)]
pub(super) struct RouterWatch {
    pub routed: Option<(Tensor, Routing)>,
}

impl Observer for RouterWatch {
    fn routed(&mut self, _: usize, logits: &Tensor, routing: &Routing) -> Result<()> {
        self.routed = Some((logits.clone(), routing.clone()));
        Ok(())
    }
}

/// A layer's load in a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerCounts {
    /// The layer's index.
    pub layer: usize,
    /// Tokens that chose each expert.
    pub counts: Vec<u64>,
    /// Number of choices beyond the experts' capacity, which were dropped.
    pub dropped: u64,
}

impl LayerCounts {
    pub(super) fn new(layer: usize, routing: &Routing, capacity: Option<Capacity>) -> Self {
        let counts = routing.counts();
        let limit = capacity.map_or(u64::MAX, |capacity| capacity.tokens(routing) as u64);
        let dropped = counts.iter().map(|count| count.saturating_sub(limit)).sum();
        Self { layer, counts, dropped }
    }
}

/// Adds the counts of `more` to `sums`, which must be of the same layers or empty.
pub fn add_counts(sums: &mut Vec<LayerCounts>, more: &[LayerCounts]) {
    if sums.is_empty() {
        sums.extend_from_slice(more);
        return;
    }
    for (sum, more) in sums.iter_mut().zip(more) {
        sum.counts.iter_mut().zip(&more.counts).for_each(|(sum, count)| *sum += count);
        sum.dropped += more.dropped;
    }
}

/// The shares of tokens' choices that balance losses are computed from.
pub(super) struct Shares<'a> {
    /// Number of layers with a mixture.
    layers: usize,
    /// Counts by expert and number of tokens over all layers; None unless these are balanced
    /// together.
    pooled: Option<(Vec<u64>, u64)>,
    objective: &'a Objective,
}

impl<'a> Shares<'a> {
    pub fn new(objective: &'a Objective, load: &[LayerCounts], tokens: usize) -> Result<Self> {
        let pooled = (objective.over == BalanceOver::Model && !load.is_empty())
            .then(|| pool(load, tokens))
            .transpose()?;
        Ok(Self { layers: load.len(), pooled, objective })
    }

    /// Returns the balance loss and the z-loss of a layer, each divided by the number of layers,
    /// and their differentiable weighted sum.
    pub fn losses(
        &self,
        scoring: Scoring,
        logits: &Tensor,
        routing: &Routing,
    ) -> Result<RouterLosses> {
        self.computed(scoring, logits, routing).context(|| "the losses of a router".into())
    }

    fn computed(
        &self,
        scoring: Scoring,
        logits: &Tensor,
        routing: &Routing,
    ) -> candle_core::Result<RouterLosses> {
        let probabilities = mean_probabilities(logits, scoring)?;
        let balance = match &self.pooled {
            Some((counts, tokens)) => load_balance(&probabilities, counts, *tokens)?,
            None => load_balance(&probabilities, &routing.counts(), routing.tokens() as u64)?,
        };
        let balance = (balance / self.layers as f64)?;
        let z = (router_z(logits)? / self.layers as f64)?;
        let weighted = ((&balance * self.objective.balance)? + (&z * self.objective.z)?)?;
        Ok(RouterLosses {
            balance: f64::from(balance.to_scalar::<f32>()?),
            z: f64::from(z.to_scalar::<f32>()?),
            weighted,
        })
    }
}

/// Losses of one layer's router.
pub(super) struct RouterLosses {
    pub balance: f64,
    pub z: f64,
    pub weighted: Tensor,
}

fn pool(load: &[LayerCounts], tokens: usize) -> Result<(Vec<u64>, u64)> {
    let mut sum = vec![0; load[0].counts.len()];
    for layer in load {
        if layer.counts.len() != sum.len() {
            let what = format!(
                "layers of {} and {} experts can't be balanced together",
                sum.len(),
                layer.counts.len()
            );
            return Err(Error::new(Kind::Usage, what).remedy("balance each layer by itself"));
        }
        sum.iter_mut().zip(&layer.counts).for_each(|(sum, count)| *sum += count);
    }
    Ok((sum, (load.len() * tokens) as u64))
}
