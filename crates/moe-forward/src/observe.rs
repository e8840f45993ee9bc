//! Accumulates [`CalibrationSums`] while a sweep runs.

use std::sync::Arc;

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_math::observed::{ExpertResults, Observed};
use moe_math::routing::Routing;
use moe_math::statistics::{CalibrationSums, MixtureSizes, Quantity};
use moe_model::Model;

use crate::context::Context;
use crate::observer::{ExpertRun, LeftOut, Observer, Wants};

/// The index of the group, such as a domain, that a token is counted in; [`UNCOUNTED`] for none.
pub type GroupIndex = u32;

/// The group of tokens that take part in the forward pass, but not in statistics.
pub const UNCOUNTED: GroupIndex = GroupIndex::MAX;

/// Which statistics are collected, and of which tokens.
#[derive(Debug, Clone)]
pub struct ObserverOptions {
    /// Number of groups.
    pub groups: usize,
    /// The group of each token of the batch.
    pub group_of: Arc<[GroupIndex]>,
    /// Whether to measure outputs without each expert.
    pub left_out: bool,
    /// All experts run on every `sample_every`-th token, for the mean of their outputs; 0 for none.
    pub sample_every: usize,
}

impl ObserverOptions {
    /// Returns every `sample_every`-th of the tokens that count.
    fn sampled(&self) -> Arc<[usize]> {
        if self.sample_every == 0 {
            return Arc::default();
        }
        let tokens = (0..self.group_of.len()).step_by(self.sample_every);
        tokens.filter(|token| self.group_of[*token] != UNCOUNTED).collect()
    }
}

/// Sums up statistics of a model's mixtures, layer by layer.
pub struct StatisticsObserver {
    options: ObserverOptions,
    /// Tokens of the batch that all experts run on.
    sampled: Arc<[usize]>,
    sizes: Vec<Option<MixtureSizes>>,
    layer: Option<ObservedLayer>,
}

/// The layer that is running.
struct ObservedLayer {
    index: usize,
    sums: Vec<CalibrationSums>,
    observed: Observed,
    /// The range of the batch's tokens in the last `routed`.
    tokens: std::ops::Range<usize>,
}

impl StatisticsObserver {
    /// Creates an observer of sweeps over `model`.
    pub fn new(model: &Model, options: ObserverOptions) -> Self {
        let sizes = model.layers.iter().map(|layer| {
            let moe = layer.ffn.moe()?;
            Some(MixtureSizes {
                experts: moe.experts.len(),
                hidden: model.hidden,
                width: moe.experts[0].width(),
            })
        });
        let sampled = options.sampled();
        Self { sizes: sizes.collect(), options, sampled, layer: None }
    }

    /// Returns the sums of the layer that has just run, by group; None if it has no mixture.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn take(&mut self) -> Result<Option<Vec<CalibrationSums>>> {
        let Some(ObservedLayer { index, mut sums, mut observed, .. }) = self.layer.take() else {
            return Ok(None);
        };
        observed.finish(&mut sums).context(|| format!("statistics of layer {index}"))?;
        Ok(Some(sums))
    }

    /// Returns those of the batch's `tokens` that count in statistics, as positions among `tokens`.
    pub fn counted_of(&self, tokens: std::ops::Range<usize>) -> Vec<u32> {
        let first = tokens.start;
        tokens
            .filter(|token| self.group(*token).is_some())
            .map(|token| (token - first) as u32)
            .collect()
    }

    fn group(&self, token: usize) -> Option<usize> {
        Some(self.options.group_of[token])
            .filter(|group| *group != UNCOUNTED)
            .map(|group| group as usize)
    }

    /// Returns the group and the position of those `rows` of the last `routed` that count.
    fn counted<'a>(&'a self, rows: impl Iterator<Item = usize> + 'a) -> Vec<(usize, usize)> {
        let first = self.layer.as_ref().map_or(0, |layer| layer.tokens.start);
        rows.enumerate()
            .filter_map(|(position, row)| Some((self.group(first + row)?, position)))
            .collect()
    }

    /// Moves on to the next `count` tokens of layer `index`, and returns their range in the batch.
    fn go_on(&mut self, index: usize, sizes: MixtureSizes, count: usize) -> std::ops::Range<usize> {
        let layer = match self.layer.take() {
            Some(layer) if layer.index == index => layer,
            _ => {
                let sums = vec![CalibrationSums::new(sizes); self.options.groups];
                ObservedLayer { index, sums, observed: Observed::default(), tokens: 0..0 }
            }
        };
        let start = layer.tokens.end;
        let tokens = start..start + count;
        self.layer = Some(ObservedLayer { tokens: tokens.clone(), ..layer });
        tokens
    }

    fn layer(&mut self) -> &mut ObservedLayer {
        self.layer.as_mut().expect("routed comes first")
    }
}

impl Observer for StatisticsObserver {
    fn wants(&self) -> Wants {
        let left_out = self.options.left_out;
        Wants { experts: true, left_out, sampled: self.sampled.clone() }
    }

    fn routed(&mut self, index: usize, logits: &Tensor, routing: &Routing) -> Result<()> {
        let Some(sizes) = self.sizes[index] else { return Ok(()) };
        let tokens = self.go_on(index, sizes, routing.tokens());
        let sampled = self.wants().sampled_in(&tokens);
        for (group, _) in self.counted(sampled.iter().map(|token| *token as usize)) {
            self.layer().sums[group].get_mut(Quantity::SampledTokens)[0] += 1.0;
        }
        let counted = self.counted(0..routing.tokens());
        let ObservedLayer { sums, observed, .. } = self.layer();
        for (group, token) in &counted {
            let sums = &mut sums[*group];
            sums.get_mut(Quantity::SeenTokens)[0] += 1.0;
            let scores = &routing.scores[token * routing.experts..][..routing.experts];
            let probabilities = sums.get_mut(Quantity::Probabilities).iter_mut().zip(scores);
            probabilities.for_each(|(sum, score)| *sum += f64::from(*score));
        }
        observed
            .logits(sums, logits, &counted)
            .context(|| format!("statistics of the router of layer {index}"))
    }

    fn expert_ran(&mut self, index: usize, run: &ExpertRun<'_>) -> Result<()> {
        let counted = self.counted(run.tokens.iter().map(|row| *row as usize));
        let ran = ExpertResults {
            expert: run.expert,
            gates: run.gates,
            activations: run.activations,
            outputs: run.output,
        };
        let ObservedLayer { sums, observed, .. } = self.layer();
        observed
            .expert(sums, &ran, &counted)
            .context(|| format!("statistics of expert {} in layer {index}", run.expert))
    }

    fn left_out(&mut self, _: usize, found: &LeftOut<'_>) -> Result<()> {
        let k = found.routing.top_k;
        for (group, token) in self.counted(0..found.routing.tokens()) {
            let sums = &mut self.layer().sums[group];
            sums.get_mut(Quantity::OutputSquareNorms)[0] += found.output_square_norms[token];
            for slot in token * k..(token + 1) * k {
                let expert = found.routing.selected[slot] as usize;
                sums.get_mut(Quantity::LeftOutErrors)[expert] += found.errors[slot];
                sums.get_mut(Quantity::LeftOutCosines)[expert] += found.cosines[slot];
            }
        }
        Ok(())
    }

    fn sampled_output(
        &mut self,
        layer: usize,
        expert: usize,
        tokens: &[u32],
        output: &Tensor,
    ) -> Result<()> {
        let counted = self.counted(tokens.iter().map(|token| *token as usize));
        let ObservedLayer { sums, observed, .. } = self.layer();
        let added = observed.sampled(sums, expert, output, &counted);
        added.context(|| format!("statistics of expert {expert} in layer {layer}"))
    }
}
