//! The record of a layer whose experts were quantized.

use moe_math::figures::{Checked, check_part, within};
use moe_model::{Ffn, Moe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::options::{QuantizeOptions, QuantizedPart, SolverChoice};
use super::solve::ExpertRecord;
use super::widths::LayerWidths;
use crate::pass::{
    DecidedLayer, Details, EncodingEdit, Encodings, LayerDetails, LayerRecord, Rounding,
};

/// The record of a layer whose experts were quantized.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QuantizedLayer {
    /// The bit widths that its weights got, and what others cost. None where all layers have the
    /// same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bit_widths: Option<LayerWidths>,
    /// The calibration of each expert, in order. Empty if values were rounded to the nearest code.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub experts: Vec<ExpertRecord>,
}

impl LayerDetails for QuantizedLayer {
    const KIND: &'static str = "quantized";

    fn check(&self) -> Checked {
        for (index, expert) in self.experts.iter().enumerate() {
            let [used, routed] = [expert.counts.used, expert.counts.routed].map(|n| n as u64);
            within(format_args!("experts[{index}]"), check_part(["used", "routed"], used, routed))?;
        }
        Ok(())
    }
}

/// The decision to put `moe` in a layer's place, expert by expert.
pub(super) fn decided(moe: Moe, record: LayerRecord) -> DecidedLayer {
    let clusters = (0..moe.experts.len()).map(|expert| vec![expert]).collect();
    DecidedLayer { ffn: Ffn::Moe(Box::new(moe)), record, clusters, saliency: Vec::new() }
}

impl QuantizeOptions {
    /// The record of a layer: its encodings, and `details`.
    pub(super) fn record(&self, layer: usize, moe: &Moe, details: QuantizedLayer) -> LayerRecord {
        let rounding = match self.solver() {
            SolverChoice::Gptq => Rounding::Gptq,
            SolverChoice::Rtn => Rounding::Nearest,
        };
        let schemes = match self.schemes(details.bit_widths.as_ref()) {
            [gate, up, down] if gate == up && up == down => vec![gate],
            different => different.to_vec(),
        };
        let of_experts = EncodingEdit { schemes, rounding };
        let has_shared = moe.shared.is_some() && self.include.contains(&QuantizedPart::Shared);
        let attention = EncodingEdit { schemes: vec![self.encoding()], rounding };
        let has_attention = self.include.contains(&QuantizedPart::Attention);
        LayerRecord {
            encodings: Encodings {
                shared_expert: has_shared.then(|| of_experts.clone()),
                experts: Some(of_experts),
                attention: has_attention.then_some(attention),
            },
            details: (details != QuantizedLayer::default()).then(|| Details::of(details)),
            ..LayerRecord::unchanged(layer)
        }
    }
}
