//! Runs passes: from a checkpoint to a verified checkpoint with receipt, model card and manifest.
//! Also recipes, gates and reports.
//!
//! Nothing here prints. Results are values, and progress goes to a [`Progress`].

#![deny(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod applicable;
mod bench;
mod budget;
mod build;
mod calibration;
mod card;
mod context;
mod conversion;
mod convert;
mod deciding;
mod estimate;
mod evaluation;
mod file_kinds;
mod file_names;
mod filling;
mod fingerprint;
mod gates;
mod inspect;
#[cfg(test)]
mod json_page;
mod learned;
mod live;
mod logits;
mod markdown;
mod memory;
mod needs;
mod observe;
mod option_paths;
mod options;
mod outputs;
mod peaks;
mod portable;
mod progress;
mod receipt;
mod recipe;
mod report;
mod resources;
mod reuse;
mod run;
mod selftest;
pub mod spelling;
mod statistics;
mod summary;
mod train;
mod trust;
mod verify;
mod writing;

pub use applicable::Applicable;
pub use bench::{BenchOptions, BenchReport, BenchedPass, BenchedStage, bench};
pub use budget::{check_small_budget, passed_budget};
pub use build::{BUILD, VERSION};
pub use card::identity as describe_identity;
pub use conversion::{Conversion, HasTokenizer};
pub use convert::{PlannedOutput, Run, convert, plan};
pub use evaluation::{EvalOptions, eval};
pub use file_names::{RECEIPT_FILE, RUN_FILE};
pub use fingerprint::Fingerprint;
pub use gates::{DomainGate, Gates, MeasuredGate, not_met};
pub use inspect::{Inspection, LatentSummary, MoeSummary, inspect};
pub use live::{
    count_allocated, count_freed, has_budget, live_bytes, peak_live_bytes, resident_limit,
    untouched_bytes,
};
pub use logits::write_logits;
pub use markdown::{MarkdownCode, MarkdownText};
pub use observe::{
    Observation, ObserveOptions, ObservedLayer, check_observe, has_statistics, is_observed, observe,
};
pub use options::ConvertOptions;
pub use outputs::check_output;
pub use peaks::Peaks;
pub use progress::{Overlap, Progress, Quiet, Stage, Timings, Unit};
pub use receipt::{Receipt, ReceiptFile, receipt_schema};
pub use recipe::{
    JUNIT, Recipe, Step, StepKind, StepOutcome, StepStatus, check_summary, junit, markdown,
    recipe_schema,
};
pub use report::{report, write_report};
pub use resources::{
    ByteSize, begin_step, memory_bytes, peak_memory_bytes, process_peak_memory_bytes,
};
pub use reuse::{Difference, FoundResult, find_result, has_result, other_work};
pub use selftest::{Check, UNCHECKED, selftest};
pub use statistics::{About, StatisticsFile};
pub use summary::{Average, DomainSummary, Figures, LoadSummary, Spread, Summary};
pub use train::{LoadChange, Measurement, StepRecord, TrainingRecord, training_left};
pub use trust::{HeldOutReport, StageReport};
pub use verify::{VerifyReport, verify, verify_bytes};
pub use writing::WritingOptions;
