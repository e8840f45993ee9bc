//! Fills in [`Sums`] while a sweep runs.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use moe_checkpoint::Result;
use moe_math::routing::Routing;
use moe_math::statistics::{Quantity, Sizes, Sums};
use moe_model::Model;

use crate::context::Context;
use crate::left_out::LeftOut;
use crate::sweep::{ExpertRun, Observer, Wants};

/// Tokens are counted in one of several groups, such as a domain's; those of [`UNCOUNTED`] in none.
pub type GroupIndex = u32;

/// The group of tokens that take part in the forward pass, but in no statistic.
pub const UNCOUNTED: GroupIndex = GroupIndex::MAX;

/// What is observed, and of which tokens.
#[derive(Debug, Clone)]
pub struct ObserverOptions {
    /// Number of groups.
    pub groups: usize,
    /// The group of each token of the batch.
    pub group_of: Arc<[GroupIndex]>,
    /// Whether experts are left out in turn.
    pub left_out: bool,
    /// Run all experts on one token in so many, for the mean of their outputs; 0 for none.
    pub sample_every: usize,
}

/// Sums up what the mixtures of a model do, layer by layer.
pub struct StatisticsObserver {
    options: ObserverOptions,
    sizes: Vec<Option<Sizes>>,
    layer: Option<Layer>,
}

/// The layer that is running.
struct Layer {
    index: usize,
    sums: Vec<Sums>,
    /// The first token of the last `routed`, and the first after it.
    tokens: std::ops::Range<usize>,
}

impl StatisticsObserver {
    /// For sweeps over `model`.
    pub fn new(model: &Model, options: ObserverOptions) -> Self {
        let sizes = |layer: &moe_model::Layer| {
            let moe = layer.ffn.moe()?;
            Some(Sizes { experts: moe.experts.len(), hidden: model.hidden, width: moe.experts[0].width() })
        };
        Self { sizes: model.layers.iter().map(sizes).collect(), options, layer: None }
    }

    /// The sums of the layer that has just run, by group; none if it has no mixture.
    pub fn take(&mut self) -> Option<Vec<Sums>> {
        self.layer.take().map(|layer| layer.sums)
    }

    /// Which of the batch's `tokens` count in any statistic, as positions among these.
    pub fn counted_of(&self, tokens: std::ops::Range<usize>) -> Vec<u32> {
        let first = tokens.start;
        tokens.filter(|token| self.group(*token).is_some()).map(|token| (token - first) as u32).collect()
    }

    fn group(&self, token: usize) -> Option<usize> {
        Some(self.options.group_of[token]).filter(|group| *group != UNCOUNTED).map(|group| group as usize)
    }

    /// The group and the position of those rows of the last `routed` that count.
    fn counted<'a>(&'a self, rows: impl Iterator<Item = usize> + 'a) -> Vec<(usize, usize)> {
        let first = self.layer.as_ref().map_or(0, |layer| layer.tokens.start);
        rows.enumerate().filter_map(|(position, row)| Some((self.group(first + row)?, position))).collect()
    }

    fn sums(&mut self) -> &mut [Sums] {
        &mut self.layer.as_mut().expect("routed comes first").sums
    }
}

impl Observer for StatisticsObserver {
    fn wants(&self) -> Wants {
        Wants { experts: true, left_out: self.options.left_out }
    }

    fn routed(&mut self, index: usize, logits: &Tensor, routing: &Routing) {
        let Some(sizes) = self.sizes[index] else { return };
        let groups = self.options.groups;
        let layer = match self.layer.take() {
            Some(layer) if layer.index == index => layer,
            _ => Layer { index, sums: vec![Sums::new(sizes); groups], tokens: 0..0 },
        };
        let start = layer.tokens.end;
        self.layer = Some(Layer { tokens: start..start + routing.tokens(), ..layer });
        // A device that fails here fails in the sweep, too.
        let logits = logits.to_dtype(DType::F32).and_then(|l| l.to_vec2::<f32>()).unwrap_or_default();
        let counted = self.counted(0..routing.tokens());
        for (group, token) in counted {
            let sums = &mut self.sums()[group];
            sums.get_mut(Quantity::SeenTokens)[0] += 1.0;
            add(
                sums.get_mut(Quantity::Probabilities),
                &routing.scores[token * routing.experts..][..routing.experts],
                1.0,
            );
            add(sums.get_mut(Quantity::Logits), &logits[token], 1.0);
            let products = sums.get_mut(Quantity::LogitProducts);
            for (row, z) in products.chunks_exact_mut(routing.experts).zip(&logits[token]) {
                add(row, &logits[token], f64::from(*z));
            }
        }
    }

    fn expert_ran(&mut self, index: usize, run: &ExpertRun<'_>) -> Result<()> {
        let of = || format!("statistics of expert {} in layer {index}", run.expert);
        let rows = |t: &Tensor| t.to_dtype(DType::F32)?.to_vec2::<f32>();
        let (activations, outputs) = (rows(run.activations).context(of)?, rows(run.output).context(of)?);
        for (group, row) in self.counted(run.tokens.iter().map(|row| *row as usize)) {
            let (gate, phi, f) = (f64::from(run.gates[row]), &activations[row], &outputs[row]);
            let square_norm: f64 = f.iter().map(|f| f64::from(*f).powi(2)).sum();
            let largest = f.iter().fold(0f32, |most, f| most.max(f.abs()));
            let sums = &mut self.sums()[group];
            let mut one = |quantity, value: f64| sums.of_mut(quantity, run.expert)[0] += value;
            one(Quantity::Tokens, 1.0);
            one(Quantity::Gates, gate);
            one(Quantity::GatedNorms, gate * square_norm.sqrt());
            one(Quantity::Norms, square_norm.sqrt());
            one(Quantity::SquareNorms, square_norm);
            let most = &mut sums.of_mut(Quantity::Largest, run.expert)[0];
            *most = most.max(f64::from(largest));
            add(sums.of_mut(Quantity::GatedOutputs, run.expert), f, gate);
            add(sums.of_mut(Quantity::Activations, run.expert), phi, 1.0);
            let squares = sums.of_mut(Quantity::GatedSquareActivations, run.expert);
            squares.iter_mut().zip(phi).for_each(|(sum, phi)| *sum += (gate * f64::from(*phi)).powi(2));
            let largest = sums.of_mut(Quantity::LargestGatedActivations, run.expert);
            largest.iter_mut().zip(phi).for_each(|(most, phi)| *most = most.max((gate * f64::from(*phi)).abs()));
        }
        Ok(())
    }

    fn left_out(&mut self, _: usize, found: &LeftOut<'_>) -> Result<()> {
        let k = found.routing.top_k;
        for (group, token) in self.counted(0..found.routing.tokens()) {
            let sums = &mut self.sums()[group];
            sums.get_mut(Quantity::OutputSquareNorms)[0] += found.output_square_norms[token];
            for slot in token * k..(token + 1) * k {
                let expert = found.routing.selected[slot] as usize;
                sums.get_mut(Quantity::LeftOutErrors)[expert] += found.errors[slot];
                sums.get_mut(Quantity::LeftOutCosines)[expert] += found.cosines[slot];
            }
        }
        Ok(())
    }

    fn sampled(&mut self, _: usize) -> Vec<u32> {
        let Some(layer) = self.layer.as_ref().filter(|_| self.options.sample_every > 0) else { return Vec::new() };
        let chosen = layer.tokens.clone().filter(|token| token.is_multiple_of(self.options.sample_every));
        let counted = chosen.filter(|token| self.group(*token).is_some());
        let tokens: Vec<u32> = counted.map(|token| (token - layer.tokens.start) as u32).collect();
        for (group, _) in self.counted(tokens.iter().map(|token| *token as usize)) {
            self.sums()[group].get_mut(Quantity::SampledTokens)[0] += 1.0;
        }
        tokens
    }

    fn sampled_output(&mut self, layer: usize, expert: usize, tokens: &[u32], output: &Tensor) -> Result<()> {
        let rows = output.to_dtype(DType::F32).and_then(|o| o.to_vec2::<f32>());
        let rows = rows.context(|| format!("statistics of expert {expert} in layer {layer}"))?;
        for (group, position) in self.counted(tokens.iter().map(|token| *token as usize)) {
            add(self.sums()[group].of_mut(Quantity::SampledOutputs, expert), &rows[position], 1.0);
        }
        Ok(())
    }
}

/// sums += factor · values
fn add(sums: &mut [f64], values: &[f32], factor: f64) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * f64::from(*value));
}
