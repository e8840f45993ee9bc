//! Criteria that look at single tokens: the best subset, and votes.

use candle_core::{DType, Tensor};
use moe_forward::{ExpertsOn, experts_on, router_scores};
use moe_math::saliency;
use moe_model::{Error, Kind, Model, Result};
use rayon::prelude::*;

use crate::reduce::{LayerView, Size};
use crate::usage::usage;

/// The maximum number of experts whose subsets are searched.
const MAX_EXPERTS: usize = 16;
/// The maximum number of tokens, the first ones: outputs of all experts on all tokens are held in
/// memory.
const MAX_TOKENS: usize = 2048;

pub(super) fn check(model: &Model, size: &Size) -> Result<()> {
    if size.before > MAX_EXPERTS {
        let what = format!("there are too many subsets of {} experts", size.before);
        return Err(usage(
            &["--criterion"],
            what,
            format!("exhaustive is for up to {MAX_EXPERTS} experts; choose another --criterion"),
        )
        .file(&model.config_file));
    }
    Ok(())
}

fn all_inputs(layer: &LayerView<'_>) -> Result<Tensor> {
    Tensor::cat(layer.inputs, 0).map_err(|e| failed(layer, e))
}

fn failed(layer: &LayerView<'_>, error: candle_core::Error) -> Error {
    Error::new(Kind::Numeric, format!("cannot compare the experts of layer {}", layer.index))
        .source(error)
}

/// The maximum number of bytes that [`ranked_choice`] holds in addition to its inputs.
pub(super) fn ranked_choice_bytes(hidden: usize, experts: usize, tokens: usize) -> u64 {
    // The inputs joined; logits, scores and choices of the router; then each token's ranking.
    let ranking = size_of::<Vec<u32>>() + 4 * experts;
    (tokens * (4 * hidden + 5 * 4 * experts + ranking)) as u64
}

/// The maximum number of bytes that [`best_subset`] holds in addition to its inputs.
pub(super) fn best_subset_bytes(hidden: usize, experts: usize, tokens: usize) -> u64 {
    let used = tokens.min(MAX_TOKENS);
    // A thread holds Z' of one subset in f64, twice.
    let mixed = 16 * rayon::current_num_threads() + 8;
    // Outputs of all experts on the device, and their values on the host.
    (tokens * 4 * hidden + used * hidden * (8 * experts + mixed)) as u64
}

/// The round in which each expert is eliminated ([`saliency::ranked_choice`]).
pub(super) fn ranked_choice(layer: &LayerView<'_>) -> Result<Vec<f64>> {
    let scores = router_scores(layer.moe, &all_inputs(layer)?, layer.compute)?;
    Ok(saliency::ranked_choice(&scores, layer.moe.experts.len(), layer.moe.router.top_k))
}

/// The subset with which the block's output is nearest to that of all experts, with tokens
/// rerouted: the least ‖Z − Z'‖_F. Among equals, the first in lexicographic order (NAEE,
/// 2402.14800).
pub(super) fn best_subset(layer: &LayerView<'_>) -> Result<Vec<usize>> {
    let x = all_inputs(layer)?;
    let x = first_tokens(&x).map_err(|e| failed(layer, e))?;
    let runs = experts_on(layer.moe, &x, layer.compute)?;
    let block = ExpertOutputs::of(runs, &x).map_err(|e| failed(layer, e))?;
    let candidates: Vec<Vec<usize>> = subsets(layer.moe.experts.len(), layer.count)
        .into_iter()
        .filter(|subset| {
            layer.protected.iter().all(|p| subset.contains(p))
                || layer.protected.len() > layer.count
        })
        .collect();
    let distances = block.distances(&candidates).map_err(|e| failed(layer, e))?;
    let best = (0..candidates.len()).min_by(|a, b| distances[*a].total_cmp(&distances[*b]));
    Ok(best.map(|best| candidates[best].clone()).unwrap_or_default())
}

fn first_tokens(x: &Tensor) -> candle_core::Result<Tensor> {
    x.narrow(0, 0, x.dim(0)?.min(MAX_TOKENS))
}

/// The outputs of all experts of a block on the same tokens.
struct ExpertOutputs {
    runs: ExpertsOn,
    hidden: usize,
    /// For each expert, `[tokens, hidden]`.
    values: Vec<Vec<f32>>,
}

impl ExpertOutputs {
    /// The outputs of `runs` on the tokens `x`, `[tokens, hidden]`.
    fn of(runs: ExpertsOn, x: &Tensor) -> candle_core::Result<Self> {
        let values = runs
            .outputs
            .iter()
            .map(|output| output.to_dtype(DType::F32)?.flatten_all()?.to_vec1())
            .collect::<candle_core::Result<_>>()?;
        Ok(Self { runs, hidden: x.dim(1)?, values })
    }

    /// ‖Z − Z'‖² of each of `subsets`, whose experts alone make Z'.
    fn distances(&self, subsets: &[Vec<usize>]) -> candle_core::Result<Vec<f64>> {
        let experts = self.values.len();
        let whole = self.mixed(&vec![false; experts])?;
        let distances = subsets.par_iter().map(|subset| {
            let masked: Vec<bool> = (0..experts).map(|e| !subset.contains(&e)).collect();
            Ok(self.mixed(&masked)?.iter().zip(&whole).map(|(a, b)| (a - b).powi(2)).sum())
        });
        distances.collect()
    }

    /// The block's outputs Z, with each token routed among the experts that aren't `masked` alone.
    fn mixed(&self, masked: &[bool]) -> candle_core::Result<Vec<f64>> {
        let hidden = self.hidden;
        let routing = self.runs.routed(masked)?;
        let mut z = vec![0f64; routing.tokens() * hidden];
        for (slot, (expert, gate)) in routing.selected.iter().zip(&routing.weights).enumerate() {
            let token = slot / routing.top_k;
            let output = &self.values[*expert as usize][token * hidden..][..hidden];
            let z = &mut z[token * hidden..][..hidden];
            z.iter_mut().zip(output).for_each(|(z, f)| *z += f64::from(*gate) * f64::from(*f));
        }
        Ok(z)
    }
}

/// All sets of `count` numbers below `n`, in lexicographic order.
fn subsets(n: usize, count: usize) -> Vec<Vec<usize>> {
    fn extend(set: &mut Vec<usize>, n: usize, count: usize, all: &mut Vec<Vec<usize>>) {
        if set.len() == count {
            all.push(set.clone());
            return;
        }
        for next in set.last().map_or(0, |last| last + 1)..n {
            set.push(next);
            extend(set, n, count, all);
            set.pop();
        }
    }
    let mut all = Vec::new();
    extend(&mut Vec::new(), n, count, &mut all);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_come_in_order() {
        assert_eq!(subsets(4, 2), [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]].map(Vec::from));
        assert_eq!(subsets(16, 8).len(), 12_870);
    }
}
