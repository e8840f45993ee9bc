//! Progress and timings of runs.

use std::time::{Duration, Instant};

use moe_checkpoint::Result;
use moe_math::meter::{Meter, StageTime};

use crate::live::peak_live_bytes_of_stage;

/// Receives the progress of a run. Its methods do nothing unless an implementation overrides them.
///
/// A run calls `stage` when a stage begins, then `advance` as parts of it are done; `status` and
/// `note` come at any time.
pub trait Progress: Sync {
    /// A stage of `total` units begins, and the one before it ends.
    fn stage(&self, name: &str, total: u64, unit: Unit) {
        let _ = (name, total, unit);
    }

    /// `units` more units of the stage are done.
    fn advance(&self, units: u64) {
        let _ = units;
    }

    /// A few words on how the stage is going; they replace the last such words.
    fn status(&self, text: &str) {
        let _ = text;
    }

    /// A message that the user should read now.
    fn note(&self, text: &str) {
        let _ = text;
    }
}

/// The unit that progress is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes read or written.
    Bytes,
    /// Layers of a sweep.
    Layers {
        /// Tokens that go through each layer.
        tokens: usize,
    },
    /// Whole files.
    Files,
    /// Parts of any other kind.
    Parts,
    /// Training steps.
    Steps,
}

/// Ignores all progress.
pub struct Quiet;

impl Progress for Quiet {}

/// The stages of a run with their times, in order.
#[derive(Debug, Clone, Default, serde::Serialize, schemars::JsonSchema)]
pub struct Timings(pub Vec<Stage>);

/// One stage of a run.
#[derive(Debug, Clone, serde::Serialize, schemars::JsonSchema)]
pub struct Stage {
    /// The name of the stage.
    pub name: String,
    /// Wall time.
    pub seconds: f64,
    /// Bytes that it moved. None if moving bytes isn't what takes its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Floating-point operations. None if they aren't what takes its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flops: Option<f64>,
    /// Number of parts that it was done in. None for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
    /// Peak of the bytes that the program had allocated. None if they weren't counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_live_bytes: Option<u64>,
    /// Whether it overlaps the next stage in time.
    #[serde(skip_serializing_if = "Overlap::is_none")]
    pub overlap: Overlap,
}

/// The overlap of a stage with the next one. Time that overlaps isn't added to the run's total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Overlap {
    /// It doesn't overlap another stage.
    #[default]
    None,
    /// It ran at the same time as the next stage.
    BesideNext,
    /// It is a part of the next stage.
    WithinNext,
}

impl Overlap {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

impl Timings {
    /// Runs `stage` and records its wall time under `name`.
    pub fn time<T>(&mut self, name: &str, stage: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = stage();
        self.add(name, start.elapsed(), None);
        result
    }

    /// As `time`, for a stage during which `meter` records stages of its own.
    pub fn time_metered<T>(&mut self, name: &str, meter: &Meter, stage: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = stage();
        self.add_metered(meter);
        self.add(name, start.elapsed(), None);
        result
    }

    /// Adds a stage that ran at the same time as the next one, or within it, as `overlap` says.
    pub fn add_overlapping(&mut self, name: &str, time: Duration, overlap: Overlap) {
        self.push(name, time, None, overlap);
    }

    /// Adds the stages that `meter` recorded, which lie within the next stage.
    pub fn add_metered(&mut self, meter: &Meter) {
        let stage = |StageTime { name, time, calls, work }: StageTime| Stage {
            name: name.to_owned(),
            seconds: time.as_secs_f64(),
            bytes: (work.bytes > 0.0).then_some(work.bytes as u64),
            flops: (work.flops > 0.0).then_some(work.flops),
            calls: (calls > 1).then_some(calls),
            peak_live_bytes: None,
            overlap: Overlap::WithinNext,
        };
        self.0.extend(meter.take().into_iter().map(stage));
    }

    /// Wall time of all stages, in seconds.
    pub fn total(&self) -> f64 {
        self.0.iter().filter(|stage| stage.overlap.is_none()).map(|stage| stage.seconds).sum()
    }

    fn push(&mut self, name: &str, time: Duration, bytes: Option<u64>, overlap: Overlap) {
        let (name, seconds) = (name.to_owned(), time.as_secs_f64());
        let peak_live_bytes = if overlap.is_none() { peak_live_bytes_of_stage() } else { None };
        self.0.push(Stage {
            name,
            seconds,
            bytes,
            flops: None,
            calls: None,
            peak_live_bytes,
            overlap,
        });
    }

    /// Adds a stage that took `time` and processed `bytes`, if known.
    pub fn add(&mut self, name: &str, time: Duration, bytes: Option<u64>) {
        self.push(name, time, bytes, Overlap::None);
    }
}

/// Reports the layers of a sweep to a [`Progress`].
pub(crate) struct LayerProgress<'a>(pub &'a dyn Progress);

impl moe_forward::Observer for LayerProgress<'_> {
    fn layer_done(&mut self, _: usize, _: usize) -> Result<()> {
        self.0.advance(1);
        Ok(())
    }
}
