//! What an engine does with a checkpoint.

use std::fmt;

/// What one engine does with a quantized checkpoint.
#[derive(
    Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub struct Verdict {
    /// The engine and its version.
    pub engine: String,
    /// Whether it takes the checkpoint.
    pub answer: Answer,
    /// The conditions under which it takes the checkpoint, or why it doesn't and what to change.
    pub says: String,
}

/// Whether an engine takes a checkpoint.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It does.
    Takes,
    /// It refuses it, or reads something else.
    Refuses,
    /// No rule here says.
    NotKnown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { engine, says, .. } = self;
        match self.answer {
            Answer::Takes if says.is_empty() => write!(f, "{engine} takes it"),
            Answer::Takes => write!(f, "{engine} takes it, {says}"),
            Answer::Refuses => write!(f, "{engine} does not take it: {says}"),
            Answer::NotKnown => write!(f, "{engine} is not known to take it: {says}"),
        }
    }
}

/// The conditions under which an engine takes a checkpoint, or another answer and its reason.
pub(super) type EngineAnswer = Result<String, (Answer, String)>;

pub(super) fn refuses(says: impl Into<String>) -> EngineAnswer {
    Err((Answer::Refuses, says.into()))
}

pub(super) fn not_known(says: impl Into<String>) -> EngineAnswer {
    Err((Answer::NotKnown, says.into()))
}

/// Joins the conditions of all `found`; if one of them is an error, returns the first.
pub(super) fn every(found: impl Iterator<Item = EngineAnswer>) -> EngineAnswer {
    let mut says: Vec<String> = found.collect::<Result<_, _>>()?;
    says.retain(|condition| !condition.is_empty());
    says.dedup();
    Ok(says.join("; "))
}
