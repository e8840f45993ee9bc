//! What a conversion costs on held-out text, as receipts and reports say it.

use moe_forward::{DomainReport, EvalReport};
use serde::Serialize;

/// Quality on held-out text against the original.
#[derive(Debug, Clone, Serialize)]
pub struct HeldOutReport {
    /// The result.
    pub result: EvalReport,
    /// What it was behind each stage, where it was made in several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageReport>,
    /// What it is measured beside.
    pub control_name: &'static str,
    /// That, if it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<EvalReport>,
}

impl HeldOutReport {
    /// The rows of the result, each with that of the control.
    pub fn rows(&self) -> impl Iterator<Item = (&DomainReport, Option<&DomainReport>)> {
        let mut control = self.control.iter().flat_map(EvalReport::rows);
        self.result.rows().map(move |row| (row, control.next()))
    }
}

/// What a stage of a conversion gave.
#[derive(Debug, Clone, Serialize)]
pub struct StageReport {
    /// What it did.
    pub stage: &'static str,
    /// Whether it stays: it measured better than what was there before.
    pub kept: bool,
    /// The model behind it.
    pub report: EvalReport,
}

impl StageReport {
    /// What it did, and whether that was taken back.
    pub fn name(&self) -> String {
        if self.kept { self.stage.to_owned() } else { format!("{} (taken back)", self.stage) }
    }
}
