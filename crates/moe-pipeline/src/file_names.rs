//! Names of the files of a result.

pub use moe_checkpoint::{CARD_FILE, RECEIPT_FILE, RUN_FILE};

/// The report of a result.
pub(crate) const REPORT_FILE: &str = "report.html";
