//! The conversion passes, one module each: options, plan, and the transformed layers.
//!
//! A pass does no I/O: it maps typed layers to typed layers whose weights are lazy, and says what
//! it will do before anything is computed.

#![deny(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]
// Tests read goldens.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod align;
mod batches;
mod calibrate;
pub mod distill;
pub mod heal;
mod idle;
pub mod merge;
mod merged;
mod output_error;
mod part;
mod pass;
pub mod prune;
pub mod quantize;
mod reduce;
mod train;
pub mod upcycle;
mod usage;

pub use calibrate::{CalibrationOptions, HeldOut, HeldOutOptions, check_windows};
pub use distill::DistillOptions;
pub use heal::HealOptions;
pub use idle::{Idle, idle_routers, same_bytes, same_source};
pub use merge::MergeOptions;
pub use pass::{
    Baseline, BenchmarkedModel, Choice, Decide, DecidedBy, DecidedLayer, Details, DetailsType,
    Effect, EncodingEdit, Encodings, Identity, Inputs, Kept, LayerDetails, LayerEdits, LayerPass,
    LayerRecord, LayerStage, LayerStatistics, LayerSweep, Network, NetworkEdit, NetworkSource,
    Neurons, Next, NoiseEdit, Outputs, Pass, PassInfo, PassOptions, Plan, PlannedModel, Pool,
    PoolStats, ProjectionScale, ReportKind, Rounding, RouterEdit, RouterRows, SharedEdit, Sources,
    Survey, SurveyText, Surveyor, SweptText, TextSource, Transform,
};
pub use prune::PruneOptions;
pub use quantize::QuantizeOptions;
pub use reduce::{LayerTrust, MtpChoice, ReduceOptions};
pub use train::{Precision, RouterOptions, TeacherOptions, TrainOptions, Training, TrainingText};
pub use upcycle::UpcycleOptions;
pub use usage::refuse_unused;

/// All passes, in the order in which help lists them.
pub static PASSES: [&PassInfo; 6] =
    [&upcycle::INFO, &prune::INFO, &merge::INFO, &quantize::INFO, &distill::INFO, &heal::INFO];

impl PassInfo {
    /// The pass `name`.
    pub fn named(name: &str) -> Option<&'static Self> {
        PASSES.into_iter().find(|info| info.name == name)
    }
}
