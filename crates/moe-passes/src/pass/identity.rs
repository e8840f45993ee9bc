//! Whether a pass keeps the function of a model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether a converted model computes the function of its original.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Identity {
    /// It does, up to the rounding of the computation: every stored weight is exact.
    Exact,
    /// It does, up to the reason given.
    Approximate {
        /// The reason why it isn't exact.
        reason: String,
    },
    /// It doesn't, by design.
    Changed {
        /// The reason for the change.
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
    /// It does, up to the rounding of the computation.
    Exactly,
    /// It does, up to the reason given.
    Approximately,
    /// It doesn't, by design.
    No,
}

/// The effect of one option on the function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Effect {
    /// The option.
    pub option: String,
    /// Whether it keeps the function.
    pub kept: Kept,
    /// The reason.
    pub why: String,
}

impl Effect {
    pub(crate) fn new(option: impl Into<String>, kept: Kept, why: impl Into<String>) -> Self {
        Self { option: option.into(), kept, why: why.into() }
    }
}
