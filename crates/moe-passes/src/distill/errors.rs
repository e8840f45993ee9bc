//! Errors of dense layers' outputs against the outputs of the mixtures.

use std::collections::BTreeMap;

use candle_core::Tensor;
use moe_model::Result;

use super::DistilledLayer;
use super::observe::{Tokens, failed};
use crate::output_error::OutputError;
use crate::pass::DecidedLayer;

/// Σ ‖y − y'‖² and Σ ‖y‖² of each layer, on held-out tokens; without any, on all tokens that
/// decide.
#[derive(Default)]
pub(super) struct LayerErrors {
    layers: BTreeMap<usize, OutputError>,
    /// The layer that was compared last, and how many of its tokens were.
    compared: (usize, usize),
}

impl LayerErrors {
    /// Adds errors of layer `index` for the next of `tokens`: what the mixture gave and what the
    /// dense network gives.
    pub fn add(
        &mut self,
        index: usize,
        tokens: &Tokens,
        original: &Tensor,
        converted: &Tensor,
    ) -> Result<()> {
        let first = if self.compared.0 == index { self.compared.1 } else { 0 };
        let end = first + original.dim(0).map_err(|e| failed(index, e))?;
        self.compared = (index, end);
        let (rows, _) = tokens.of(tokens.measured(), first..end);
        if rows.is_empty() {
            return Ok(());
        }
        let original = rows_of(original, &rows).map_err(|e| failed(index, e))?;
        let converted = rows_of(converted, &rows).map_err(|e| failed(index, e))?;
        let layer = self.layers.entry(index).or_default();
        layer.add(&original, &converted).map_err(|e| failed(index, e))
    }

    /// Writes the errors into the records of `layers`.
    pub fn record(&self, layers: &mut BTreeMap<usize, DecidedLayer>) {
        for (index, error) in &self.layers {
            let Some(layer) = layers.get_mut(index) else { continue };
            layer.record.change_details(|made: &mut DistilledLayer| {
                made.output_error = error.relative();
            });
        }
    }
}

fn rows_of(outputs: &Tensor, rows: &[u32]) -> candle_core::Result<Tensor> {
    outputs.index_select(&Tensor::from_slice(rows, rows.len(), outputs.device())?, 0)
}
