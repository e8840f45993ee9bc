//! The cost of a conversion on held-out text, as receipts and reports give it.

use moe_forward::{DomainReport, EvalReport};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Quality on held-out text against the original.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct HeldOutReport {
    /// The result.
    pub result: EvalReport,
    /// What it was behind each stage, where it was made in several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageReport>,
    /// What the baseline is; None where none was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline_name: Option<String>,
    /// The baseline: a model of the same size that was made without evidence. None where none was
    /// measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<EvalReport>,
}

impl HeldOutReport {
    /// The rows of the result, each with the baseline's, if there is one.
    pub fn rows(&self) -> impl Iterator<Item = (&DomainReport, Option<&DomainReport>)> {
        let mut baseline = self.baseline.iter().flat_map(EvalReport::rows);
        self.result.rows().map(move |row| (row, baseline.next()))
    }
}

/// What a stage of a conversion gave.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct StageReport {
    /// What it did.
    pub stage: String,
    /// Whether it stays: it measured better than what was there before.
    pub kept: bool,
    /// The model behind it.
    pub report: EvalReport,
}

impl StageReport {
    /// Returns the name of the stage, with a note if its edits were taken back.
    pub fn name(&self) -> String {
        let done = self.stage.replace('-', " ");
        if self.kept { done } else { format!("{done} (taken back)") }
    }
}
