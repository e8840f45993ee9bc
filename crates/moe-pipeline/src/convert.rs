//! Runs passes: plans, decides, writes and measures at the same time, and then publishes the
//! result.

use std::path::Path;
use std::time::{Duration, Instant};

use moe_checkpoint::{OutputDir, Result, ShardPlan};
use moe_math::Compute;
use moe_passes::Pass;
use serde::Serialize;

use crate::context::RunContext;
use crate::conversion::Conversion;
use crate::estimate;
use crate::live::promise_resident_memory;
use crate::options::ConvertOptions;
use crate::outputs::{SLACK_BYTES, check_places, check_plans, existing};
use crate::progress::{Progress, Quiet, Timings};
use crate::receipt::Receipt;
use crate::run::{Opened, Planned, check_together};
use crate::train::TrainingDir;

/// The output of a run, as far as it is known before anything is written.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct PlannedOutput {
    /// The receipt, without measurements.
    pub receipt: Receipt,
    /// Files of weights with their size in bytes.
    pub shards: Vec<(String, u64)>,
    /// Estimate of the most memory that the run holds at once, in bytes.
    pub memory_estimate_bytes: u64,
    /// Bytes that it needs on the disk of the output at once.
    pub disk_bytes: u64,
    /// About how many floating-point operations it takes.
    pub flops: f64,
    /// Tokens of held-out text that the result will be measured on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_tokens: Option<usize>,
    /// Logits of the result that are compared with the source's on that text.
    #[serde(skip)]
    compared_logits: f64,
    /// Seconds that reading took, text above all, which the run will take again.
    #[serde(skip)]
    reading_seconds: f64,
    /// Estimate of its time, in seconds, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_estimate_seconds: Option<f64>,
}

impl PlannedOutput {
    /// Adds an estimate of the run's time: reading (already done for the plan), matrix products at
    /// this machine's speed, which is measured here, comparing distributions of next tokens on
    /// held-out text, and writing. Work on the host between products, such as groups and alignments
    /// of `merge`, isn't included.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn timed(mut self, compute: &Compute) -> Result<Self> {
        let bytes = self.shards.iter().map(|(_, bytes)| bytes).sum();
        let cost =
            estimate::Cost { flops: self.flops, bytes, compared_logits: self.compared_logits };
        self.time_estimate_seconds = Some(self.reading_seconds + cost.seconds(compute)?);
        Ok(self)
    }
}

/// Passes to run on a checkpoint, each on the result of the one before, and the place of the last
/// result.
///
/// The passes are planned when a plan is first needed, and only once: the plan that a result is
/// compared with ([`Run::find`]) is the plan that is carried out.
pub struct Run<'r> {
    passes: &'r [&'r dyn Pass],
    pub(crate) context: RunContext<'r>,
    planned: Option<Planned<'r>>,
    /// Wall time of planning.
    planning: Duration,
}

impl<'r> Run<'r> {
    /// A run of `passes` on the checkpoint `input` that writes to `output`. Nothing is read yet.
    pub fn new(
        passes: &'r [&'r dyn Pass],
        input: &'r Path,
        output: &'r Path,
        options: &'r ConvertOptions,
        progress: &'r dyn Progress,
    ) -> Self {
        let context = RunContext { input, output, options, progress };
        Self { passes, context, planned: None, planning: Duration::ZERO }
    }

    /// The passes in order.
    pub fn passes(&self) -> &'r [&'r dyn Pass] {
        self.passes
    }

    /// The checkpoint that the first pass converts.
    pub fn input(&self) -> &'r Path {
        self.context.input
    }

    /// The place of the result.
    pub fn output(&self) -> &'r Path {
        self.context.output
    }

    /// Whether the run replaces an earlier result.
    pub fn overwrites(&self) -> bool {
        self.context.options.overwrite
    }

    /// The plan of all passes.
    ///
    /// # Errors
    /// Any error that would stop the run before its first byte.
    pub(crate) fn planned(&mut self) -> Result<&Planned<'r>> {
        if self.planned.is_none() {
            // What was metered before belongs to other runs.
            self.context.compute().meter.take();
            let start = Instant::now();
            self.planned = Some(Opened::new(self.context)?.plan(self.passes)?);
            self.planning = start.elapsed();
        }
        Ok(self.planned.as_ref().expect("the passes were just planned"))
    }

    fn into_planned(mut self) -> Result<(Planned<'r>, Duration)> {
        self.planned()?;
        Ok((self.planned.expect("the passes were just planned"), self.planning))
    }

    /// Plans without writing anything. Estimates cover the last `own` passes, since other runs
    /// carry out the earlier ones. With `decide`, decisions are taken where that is cheap, and
    /// written where a pass has to write its plan, unless a training comes before them.
    ///
    /// # Errors
    /// Any error that would stop the run before its first byte.
    pub fn plan(self, own: usize, decide: bool) -> Result<PlannedOutput> {
        // Plans of the earlier passes are written by other runs.
        check_options(&self.passes[self.passes.len().saturating_sub(own)..], &self.context)?;
        let (planned, planning) = self.into_planned()?;
        let promised = planned.check_budget()?;
        let deciding = if decide { planned.decided_in_dry_run() } else { 0 };
        let planned = planned.decide(deciding, &mut Timings::default())?.planned;
        let size = |s: &ShardPlan| (s.file.clone(), s.header.len() as u64 + s.data_bytes());
        Ok(PlannedOutput {
            receipt: planned.receipt(),
            shards: planned.shards.iter().map(size).collect(),
            memory_estimate_bytes: promised.0,
            disk_bytes: planned.disk_bytes(own),
            flops: planned.flops(own),
            measured_tokens: planned.measured_tokens(),
            compared_logits: planned.compared_logits(),
            reading_seconds: planning.as_secs_f64(),
            time_estimate_seconds: None,
        })
    }

    /// Writes the result. Passes that can decide in one sweep do so.
    ///
    /// # Errors
    /// Errors of reading, planning and writing; [`moe_checkpoint::Kind::Numeric`] where a result
    /// that promises identity doesn't keep it. Nothing appears under the output's name then.
    pub fn convert(self) -> Result<Conversion> {
        let Self { passes, context: run, .. } = self;
        check_together(passes)?;
        check_options(passes, &run)?;
        let mut timings = Timings::default();
        let (planned, planning) = self.into_planned()?;
        timings.add("plan", planning, None);
        promise_resident_memory(planned.check_budget()?.0);
        planned.warnings().iter().for_each(|w| run.progress.note(w));
        let dir = run.create_output(&mut timings)?;
        dir.require_space(planned.disk_bytes(passes.len()) + SLACK_BYTES)?;
        planned.decide(passes.len(), &mut timings)?.measure(&mut timings)?.write(dir, timings)
    }
}

/// Plans a run of `passes` on the checkpoint `input`, as [`Run::plan`] does.
///
/// # Errors
/// As for [`Run::plan`].
pub fn plan(
    passes: &[&dyn Pass],
    own: usize,
    decide: bool,
    input: &Path,
    output: &Path,
    options: &ConvertOptions,
) -> Result<PlannedOutput> {
    Run::new(passes, input, output, options, &Quiet).plan(own, decide)
}

/// Runs `passes` on the checkpoint `input`, each on the result of the one before, and writes the
/// last result to `output`.
///
/// # Errors
/// As for [`Run::convert`].
pub fn convert(
    passes: &[&dyn Pass],
    input: &Path,
    output: &Path,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<Conversion> {
    Run::new(passes, input, output, options, progress).convert()
}

/// Checks that need neither source nor plan.
fn check_options(passes: &[&dyn Pass], run: &RunContext<'_>) -> Result<()> {
    let RunContext { input, output, options, .. } = *run;
    options.writing().check()?;
    if input.is_dir() {
        check_places(passes, input, output, &[])?;
        OutputDir::check(output, existing(options))?;
        check_plans(passes, options.overwrite)?;
    }
    if passes.iter().any(|pass| pass.outputs().training) {
        // The saved state of a training that is still running isn't one that a stopped run left.
        OutputDir::check_idle(output)?;
        TrainingDir::of(output).check(options.resume, options.overwrite)?;
    }
    Ok(())
}
