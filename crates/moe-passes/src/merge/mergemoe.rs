//! MergeMoE (2510.14436): groups as M-SMoE's, with down projections fitted to the groups' outputs.

use moe_math::saliency;
use moe_math::statistics::CalibrationSums;
use moe_model::{Model, Result};

use super::fit::{self, Fit};
use super::grouped::{self, Grouped};
use super::groups::like_logits;
use crate::reduce::{LayerView, Method, Needs, Reduced};

/// The algorithm `mergemoe`.
pub(super) struct MergeMoe;

impl Grouped for MergeMoe {
    fn saliency(&self, sums: &CalibrationSums) -> Vec<f64> {
        saliency::frequency(sums)
    }

    fn groups(&self, layer: &LayerView<'_>, sums: &CalibrationSums) -> Result<Vec<Vec<usize>>> {
        Ok(like_logits(layer, sums, &self.saliency(sums)))
    }

    fn fit<'a>(&self, layer: &'a LayerView<'a>) -> Result<Option<Fit<'a>>> {
        Fit::new(layer).map(Some)
    }
}

impl Method for MergeMoe {
    fn needs(&self) -> Needs {
        Needs { inputs: true, ..Needs::SUMS }
    }

    fn working_bytes(&self, model: &Model, experts: usize, tokens: usize) -> u64 {
        fit::working_bytes(model, experts, tokens)
    }

    fn reduce(&self, layer: &LayerView<'_>) -> Result<Reduced> {
        grouped::reduce(self, layer)
    }
}
