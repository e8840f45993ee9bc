//! HC-SMoE (2410.08589): clusters by mean outputs, averaged by how often experts are chosen or, as
//! the baseline `average`, plainly.

use moe_math::saliency;
use moe_math::statistics::CalibrationSums;
use moe_model::Result;

use super::grouped::{self, Grouped};
use super::groups::clusters_of_outputs;
use crate::reduce::{LayerView, Method, Needs, Reduced};

/// The algorithms `hc-smoe` and `average`.
pub(super) struct HcSmoe {
    /// All experts run on one token in this many.
    pub sample_every: usize,
    /// Whether members weigh alike.
    pub is_plain: bool,
}

impl Grouped for HcSmoe {
    fn saliency(&self, sums: &CalibrationSums) -> Vec<f64> {
        saliency::frequency(sums)
    }

    // The centroid is the member nearest to the mean.
    fn is_ranked(&self) -> bool {
        false
    }

    fn weights(&self, sums: &CalibrationSums) -> Vec<f64> {
        if self.is_plain { vec![1.0; sums.sizes().experts] } else { self.saliency(sums) }
    }

    fn groups(&self, layer: &LayerView<'_>, sums: &CalibrationSums) -> Result<Vec<Vec<usize>>> {
        clusters_of_outputs(layer, sums)
    }
}

impl Method for HcSmoe {
    fn needs(&self) -> Needs {
        Needs { sample_every: self.sample_every, ..Needs::SUMS }
    }

    fn reduce(&self, layer: &LayerView<'_>) -> Result<Reduced> {
        grouped::reduce(self, layer)
    }
}
