//! M-SMoE (2310.01334): the most chosen experts take those of most similar router logits, and
//! neurons are aligned by weights.

use moe_math::saliency;
use moe_math::statistics::CalibrationSums;
use moe_model::{Model, Result};

use super::grouped::{self, Grouped};
use super::groups::like_logits;
use crate::align::{self, ExpertSizes, Permutations};
use crate::reduce::{LayerView, Method, Needs, Reduced};

/// The algorithm `m-smoe`.
pub(super) struct MSmoe;

impl Grouped for MSmoe {
    fn saliency(&self, sums: &CalibrationSums) -> Vec<f64> {
        saliency::frequency(sums)
    }

    fn groups(&self, layer: &LayerView<'_>, sums: &CalibrationSums) -> Result<Vec<Vec<usize>>> {
        Ok(like_logits(layer, sums, &self.saliency(sums)))
    }

    fn permutations(
        &self,
        layer: &LayerView<'_>,
        _sums: &CalibrationSums,
        groups: &[Vec<usize>],
    ) -> Result<Permutations> {
        align::by_weights(layer.moe, groups)
    }
}

impl Method for MSmoe {
    fn needs(&self) -> Needs {
        Needs::SUMS
    }

    fn working_bytes(&self, model: &Model, _experts: usize, _tokens: usize) -> u64 {
        ExpertSizes::largest(model, align::bytes_by_weights)
    }

    fn reduce(&self, layer: &LayerView<'_>) -> Result<Reduced> {
        grouped::reduce(self, layer)
    }
}
