//! The record of a pass, for receipts, cards and reports.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::details::{Details, LayerDetails};
use super::edits::{Encodings, NetworkEdit, RouterEdit, SharedEdit};

/// The record of one layer: what was done to each of its parts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LayerRecord {
    /// The layer's index; layers for multi-token prediction are numbered after the others.
    pub layer: usize,
    /// The edit that made the router. None if it is unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterEdit>,
    /// The edit that made each expert, in order. Empty if they are unchanged, and if the layer has
    /// none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub experts: Vec<NetworkEdit>,
    /// The edit that made the shared expert. None if it is unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<SharedEdit>,
    /// The quantization of its parts.
    #[serde(default, skip_serializing_if = "Encodings::is_empty")]
    pub encodings: Encodings,
    /// Details of this pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub details: Option<Details>,
}

impl LayerRecord {
    /// The record of a layer that stays as it was.
    pub fn unchanged(layer: usize) -> Self {
        Self { layer, ..Self::default() }
    }

    /// The details as a `T`; None where they are of another type.
    pub fn details<T: LayerDetails>(&self) -> Option<T> {
        self.details.as_ref()?.read()
    }

    /// Changes the details with `change`; does nothing where there are none of the type `T`.
    pub fn change_details<T: LayerDetails>(&mut self, change: impl FnOnce(&mut T)) {
        if let Some(mut details) = self.details::<T>() {
            change(&mut details);
            self.details = Some(Details::of(details));
        }
    }

    /// Sentences that say how experts were made: one for each of a few kinds, and a count of the
    /// others.
    pub fn experts_by_kind(&self) -> Vec<String> {
        const SHOWN: usize = 8;
        let mut kinds: Vec<(String, usize)> = Vec::new();
        for expert in self.experts.iter().map(NetworkEdit::to_string) {
            match kinds.iter_mut().find(|(kind, _)| *kind == expert) {
                Some((_, count)) => *count += 1,
                None => kinds.push((expert, 1)),
            }
        }
        if let [(kind, _)] = kinds.as_slice() {
            return vec![kind.clone()];
        }
        let mut lines: Vec<String> =
            kinds.iter().take(SHOWN).map(|(kind, count)| format!("{count} × {kind}")).collect();
        if kinds.len() > SHOWN {
            lines.push(format!("and {} other kinds", kinds.len() - SHOWN));
        }
        lines
    }

    /// A sentence that says how the shared expert was made.
    pub fn shared_sentence(&self) -> Option<String> {
        let of_others =
            self.experts.iter().flat_map(|e| &e.sources).any(|source| source.model.is_some());
        Some(self.shared.as_ref()?.sentence(of_others))
    }
}
