//! REAM (2604.04356): the most salient experts take those nearest by gated outputs and router
//! logits, and neurons are aligned by activations and weights.

use moe_math::saliency;
use moe_math::statistics::{CalibrationSums, Quantity};
use moe_model::{Model, Result};

use super::grouped::{self, Grouped};
use super::groups::{Similarity, around_most_salient, by_logits};
use super::parameters::Grouping;
use crate::align::{self, ExpertSizes, Permutations};
use crate::reduce::{LayerView, Method, Needs, Reduced};

/// The algorithm `ream`.
pub(super) struct Ream {
    pub grouping: Grouping,
    /// Maximum number of experts of a group.
    pub group_cap: usize,
}

impl Grouped for Ream {
    fn saliency(&self, sums: &CalibrationSums) -> Vec<f64> {
        saliency::reap(sums)
    }

    fn groups(&self, layer: &LayerView<'_>, sums: &CalibrationSums) -> Result<Vec<Vec<usize>>> {
        let outputs =
            Similarity::cosines(sums.get(Quantity::GatedOutputs), layer.moe.experts.len());
        let similarity = outputs.mean(&by_logits(layer, sums));
        let saliency = self.saliency(sums);
        Ok(around_most_salient(layer, &saliency, &similarity, (self.grouping, self.group_cap)))
    }

    fn permutations(
        &self,
        layer: &LayerView<'_>,
        sums: &CalibrationSums,
        groups: &[Vec<usize>],
    ) -> Result<Permutations> {
        align::by_activations_and_weights(layer, sums, groups)
    }
}

impl Method for Ream {
    fn needs(&self) -> Needs {
        Needs::SUMS
    }

    fn working_bytes(&self, model: &Model, experts: usize, _tokens: usize) -> u64 {
        ExpertSizes::largest(model, |sizes| align::bytes_by_activations_and_weights(sizes, experts))
    }

    fn reduce(&self, layer: &LayerView<'_>) -> Result<Reduced> {
        grouped::reduce(self, layer)
    }
}
