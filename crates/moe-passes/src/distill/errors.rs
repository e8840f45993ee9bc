//! How far what layers become is from what they gave.

use std::collections::BTreeMap;

use candle_core::Tensor;
use moe_model::Result;

use super::DistilledLayer;
use super::observe::{BlockPart, Tokens, failed};
use crate::output_error::OutputError;
use crate::pass::DecidedLayer;

/// Σ ‖y − y'‖² and Σ ‖y‖² of each layer, on held-out tokens; on all that decide, where there are
/// none.
#[derive(Default)]
pub(super) struct LayerErrors {
    layers: BTreeMap<usize, OutputError>,
    /// The layer that was compared last, and how many of its tokens.
    compared: (usize, usize),
}

impl LayerErrors {
    /// Adds what layer `index` gave for the next of `tokens`, and what it gives now.
    pub fn add(
        &mut self,
        index: usize,
        tokens: &Tokens,
        original: &Tensor,
        converted: &Tensor,
    ) -> Result<()> {
        let fail = |e| failed(index, e);
        let first = if self.compared.0 == index { self.compared.1 } else { 0 };
        let end = first + original.dim(0).map_err(fail)?;
        self.compared = (index, end);
        let part = if tokens.count(BlockPart::HeldOut) > 0 {
            BlockPart::HeldOut
        } else {
            BlockPart::Decide
        };
        let (rows, _) = tokens.of(part, first..end);
        if rows.is_empty() {
            return Ok(());
        }
        let pick =
            |t: &Tensor| t.index_select(&Tensor::from_slice(&rows, rows.len(), t.device())?, 0);
        let layer = self.layers.entry(index).or_default();
        let mut add = || layer.add(&pick(original)?, &pick(converted)?);
        add().map_err(fail)
    }

    /// Puts them in the records of `layers`.
    pub fn record(&self, layers: &mut BTreeMap<usize, DecidedLayer>) {
        for (index, error) in &self.layers {
            let Some(layer) = layers.get_mut(index) else { continue };
            layer.record.change_details(|made: &mut DistilledLayer| {
                made.output_error = error.relative();
            });
        }
    }
}
