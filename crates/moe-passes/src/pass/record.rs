//! What a pass did, for receipts, cards and reports.

use serde::Serialize;
use serde_json::Value;

use crate::distill::DistilledLayer;
use crate::quantize::{ExpertRecord, LayerWidths};
use crate::reduce::LayerTrust;

/// Whether a converted model computes the function of its original.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Identity {
    /// It does, up to the rounding of the computation: every stored weight is exact.
    Exact,
    /// It does, up to what is named here.
    Approximate {
        /// Why it isn't exact.
        reason: String,
    },
    /// It doesn't, by design.
    Changed {
        /// What changes it.
        reason: String,
    },
}

impl Identity {
    /// What `effects` come to.
    pub fn of(effects: &[Effect]) -> Self {
        let has = |kept: Kept| effects.iter().any(|effect| effect.kept == kept);
        let reasons = effects
            .iter()
            .filter(|effect| effect.kept != Kept::Exactly)
            .map(|effect| effect.why.as_str());
        let reason = reasons.collect::<Vec<_>>().join("; ");
        match (has(Kept::No), has(Kept::Approximately)) {
            (true, _) => Self::Changed { reason },
            (false, true) => Self::Approximate { reason },
            (false, false) => Self::Exact,
        }
    }
}

/// Whether an option keeps the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// Up to the rounding of the computation.
    Exactly,
    /// Up to what the effect says.
    Approximately,
    /// By design.
    No,
}

/// What one option does to the function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Effect {
    /// The option.
    pub option: String,
    /// Whether it keeps the function.
    pub kept: Kept,
    /// Why.
    pub why: String,
}

impl Effect {
    pub(crate) fn new(option: impl Into<String>, kept: Kept, why: impl Into<String>) -> Self {
        Self { option: option.into(), kept, why: why.into() }
    }
}

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
