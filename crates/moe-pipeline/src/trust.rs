//! The cost of a conversion on held-out text, as receipts and reports give it.

use moe_forward::{DomainReport, EvalReport};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Quality on held-out text against the original.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct HeldOutReport {
    /// Quality of the result.
    pub result: EvalReport,
    /// The result after each stage. Empty if it was made in one stage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageReport>,
    /// The name of the baseline. None if no baseline was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline_name: Option<String>,
    /// Quality of the baseline, a model of the same size that was made without data. None if no
    /// baseline was measured.
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

/// The quality after one stage of a conversion.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct StageReport {
    /// The name of the stage.
    pub stage: String,
    /// Whether its edits were kept: they measured better than what was there before.
    pub kept: bool,
    /// Quality of the model after this stage.
    pub report: EvalReport,
}

impl StageReport {
    /// Returns the name of the stage, with a note if its edits were taken back.
    pub fn name(&self) -> String {
        let done = self.stage.replace('-', " ");
        if self.kept { done } else { format!("{done} (taken back)") }
    }
}
