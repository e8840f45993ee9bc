//! Whether a pass keeps the function of a model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether a converted model computes the function of its original.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// The identity that results from `effects` together.
    pub fn of(effects: &[Effect]) -> Self {
        let reasons = effects
            .iter()
            .filter(|effect| effect.kept != Kept::Exactly)
            .map(|effect| effect.why.as_str());
        let reason = reasons.collect::<Vec<_>>().join("; ");
        if effects.iter().any(|effect| effect.kept == Kept::No) {
            Self::Changed { reason }
        } else if effects.iter().any(|effect| effect.kept == Kept::Approximately) {
            Self::Approximate { reason }
        } else {
            Self::Exact
        }
    }
}

/// Whether an option keeps the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// Up to the rounding of the computation.
    Exactly,
    /// Up to what the effect says.
    Approximately,
    /// By design.
    No,
}

/// The effect of one option on the function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
