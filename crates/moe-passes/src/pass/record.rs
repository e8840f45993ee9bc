//! What a pass did, for receipts, cards and reports.

use serde::Serialize;
use serde_json::Value;

use crate::distill::DistilledLayer;
use crate::quantize::{ExpertRecord, LayerWidths};
use crate::reduce::LayerTrust;

/// How one layer was made.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LayerRecord {
    /// The layer's index.
    pub layer: usize,
    /// How the router was made; none where the layer stays as it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<String>,
    /// How each expert was made, in order.
    pub experts: Vec<String>,
    /// How the shared expert was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<String>,
    /// How attention was made, where it changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention: Option<String>,
    /// How far the decision about the layer can be trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<LayerTrust>,
    /// The widths that its weights got, and what others cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub widths: Option<LayerWidths>,
    /// How each expert was quantized on its samples.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub quantized: Vec<ExpertRecord>,
    /// How its mixture became one network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distilled: Option<DistilledLayer>,
    /// What surveys of the layer's inputs found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<Value>,
}

impl LayerRecord {
    /// How experts were made, those that were made alike together; a few kinds, the others counted.
    pub fn experts_by_kind(&self) -> Vec<String> {
        const SHOWN: usize = 8;
        let mut kinds: Vec<(&str, usize)> = Vec::new();
        for expert in &self.experts {
            match kinds.iter_mut().find(|(kind, _)| kind == expert) {
                Some((_, count)) => *count += 1,
                None => kinds.push((expert, 1)),
            }
        }
        if let [(kind, _)] = kinds.as_slice() {
            return vec![(*kind).to_owned()];
        }
        let mut lines: Vec<String> =
            kinds.iter().take(SHOWN).map(|(kind, count)| format!("{count} × {kind}")).collect();
        if kinds.len() > SHOWN {
            lines.push(format!("and {} other kinds", kinds.len() - SHOWN));
        }
        lines
    }
}
