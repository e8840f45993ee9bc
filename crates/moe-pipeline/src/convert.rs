//! Running a pass: plan, validate, write and measure side by side, and let the result appear.

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use moe_checkpoint::{
    CONFIG_FILE, Existing, LOG_FILE, OutputDir, ShardPlan, SideFiles, WriteSummary, Writer, json,
};
use moe_checkpoint::{Error, Kind, Result, read_whole, sha256_bytes};
use moe_forward::{TOKENIZER_FILE, float_dtype, not_finite};
use moe_math::Compute;
use moe_math::encoding::first_non_finite;
use moe_model::{Verdict, Weight};
use moe_passes::Pass;
use serde::Serialize;

use crate::applicable::heals;
use crate::budget;
use crate::card::{self, CARD_FILE, name_of};
use crate::estimate;
use crate::live::{live_bytes, promise_resident_memory};
use crate::needs;
use crate::options::ConvertOptions;
use crate::outputs::{check_places, check_plans};
use crate::prepare::{Prepared, check_together};
use crate::progress::{Overlap, Progress, Quiet, Timings, Unit};
use crate::proof::{Proof, check_stop};
use crate::receipt::{RECEIPT_FILE, RUN_FILE, Receipt};
use crate::report;
use crate::resources::{ByteSize, RunRecord};
use crate::train::TrainingDir;
use crate::trust;
use crate::verify::has_tokenizer;
use crate::writing::WritingOptions;

/// Copies of a larger tensor are read again rather than kept in memory.
const MAX_COPIED_BYTES: u64 = 256 << 20;
/// Config, cards and file-system overhead, on top of the tensors.
pub(crate) const SLACK_BYTES: u64 = 4 << 20;

/// What a run will write, known before anything is written.
#[derive(Debug, Serialize)]
pub struct PlannedOutput {
    /// What the receipt will say, short of what is measured.
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
    /// With an estimate of the time that it takes: its reading, which was done to plan it, its
    /// products at this machine's speed, which is measured, comparing distributions of next tokens
    /// on held-out text, and its writing. What is done on the host between products, such as groups
    /// and alignments of `merge`, isn't in it.
    ///
    /// # Errors
    /// What the device returns.
    pub fn timed(mut self, compute: &Compute) -> Result<Self> {
        let bytes = self.shards.iter().map(|(_, bytes)| bytes).sum();
        let cost =
            estimate::Cost { flops: self.flops, bytes, compared_logits: self.compared_logits };
        self.time_estimate_seconds = Some(self.reading_seconds + cost.seconds(compute)?);
        Ok(self)
    }
}

/// What makes tokens of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HasTokenizer {
    /// tokenizer.json, which this program reads.
    Here,
    /// Files of a tokenizer that only others read.
    Elsewhere,
    /// Nothing.
    Nowhere,
}

impl HasTokenizer {
    fn of(files: &SideFiles) -> Self {
        match () {
            () if files.carried.iter().any(|file| file.name == TOKENIZER_FILE) => Self::Here,
            () if has_tokenizer(files) => Self::Elsewhere,
            () => Self::Nowhere,
        }
    }
}

/// What a run has done.
#[derive(Debug, Serialize)]
pub struct Conversion {
    /// The receipt, as written.
    pub receipt: Receipt,
    /// Time of each stage.
    pub timings: Timings,
    /// Bytes of all weight files.
    pub bytes: u64,
    /// Seconds that the hashing thread was busy while writing.
    pub hashing_seconds: f64,
    /// What engines do with the result's quantized experts.
    pub engines: Vec<Verdict>,
    /// Whether `heal` can train the result further.
    pub heals: bool,
    /// What makes tokens of text for the result.
    pub tokenizer: HasTokenizer,
}

/// Plans a run of passes, each on what the one before makes, without writing anything. Estimates
/// are of the last `own` passes, since other runs carry out the earlier ones. With `decide`,
/// decisions are taken where that takes little, and written where a pass shall write its plan,
/// unless a training comes before them.
///
/// # Errors
/// Whatever would stop the run before its first byte.
pub fn plan(
    passes: &[&dyn Pass],
    own: usize,
    decide: bool,
    input: &Path,
    output: &Path,
    options: &ConvertOptions,
) -> Result<PlannedOutput> {
    // The plans of those before are written by other runs.
    check_options(&passes[passes.len().saturating_sub(own)..], input, output, options)?;
    let start = Instant::now();
    let mut prepared = Prepared::new(passes, input, output, options)?;
    let reading_seconds = start.elapsed().as_secs_f64();
    check_budget(&prepared, options, output)?;
    let promised = promised(&prepared, options, output)?.0;
    let at_once = prepared.decided_at_once();
    let deciding = passes
        .iter()
        .rposition(|pass| pass.outputs().plan.is_some())
        .map_or(at_once, |last| at_once.max(last + 1));
    if decide && !passes[..deciding].iter().any(|pass| pass.outputs().training) {
        prepared.carry_out(deciding, options, output, &Quiet, &mut Timings::default())?;
    }
    let size = |s: &ShardPlan| (s.file.clone(), s.header.len() as u64 + s.data_bytes());
    Ok(PlannedOutput {
        receipt: prepared.receipt(),
        shards: prepared.shards.iter().map(size).collect(),
        memory_estimate_bytes: promised,
        disk_bytes: prepared.disk_bytes(own),
        flops: prepared.flops(own),
        measured_tokens: prepared.measured_tokens(),
        compared_logits: prepared.compared_logits(),
        reading_seconds,
        time_estimate_seconds: None,
    })
}

/// Runs `passes` on the checkpoint `input`, each on what the one before makes, and writes the last
/// one's result to `output`. Those that can decide in one sweep do.
///
/// # Errors
/// What reading, planning and writing return; [`Kind::Numeric`] where a result that promises
/// identity doesn't keep it. Nothing appears under the output's name then.
pub fn convert(
    passes: &[&dyn Pass],
    input: &Path,
    output: &Path,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<Conversion> {
    check_together(passes)?;
    check_options(passes, input, output, options)?;
    let mut timings = Timings::default();
    let meter = &options.compute.meter;
    meter.take();
    let mut prepared = timings.time("plan", || Prepared::new(passes, input, output, options))?;
    check_budget(&prepared, options, output)?;
    promise_resident_memory(promised(&prepared, options, output)?.0);
    prepared.warnings().iter().for_each(|w| progress.note(w));
    let mut dir = create(output, options, progress, &mut timings)?;
    dir.require_space(prepared.disk_bytes(passes.len()) + SLACK_BYTES)?;
    prepared.carry_out(passes.len(), options, output, progress, &mut timings)?;
    let mut receipt = prepared.receipt();
    let start = Instant::now();
    receipt.held_out = trust::measure(&prepared, options, output, progress)?;
    if receipt.held_out.is_some() {
        timings.add_metered(meter);
        timings.add("measure on held-out text", start.elapsed(), None);
    }

    let start = Instant::now();
    progress.stage("write", prepared.declaration().bytes(), Unit::Bytes);
    let stop = AtomicBool::new(false);
    let (proof, summary) = std::thread::scope(|scope| {
        let prove =
            || Proof::new(&prepared, options, &stop).inspect_err(|_| stop.store(true, Relaxed));
        let proof = std::thread::Builder::new().spawn_scoped(scope, prove).map_err(|e| {
            Error::new(Kind::Io, "cannot start a thread that measures beside the writing")
                .source(e)
                .remedy("allow more processes (ulimit -u) and address space (ulimit -v)")
        })?;
        let summary =
            write(&prepared, &dir, &stop, progress).inspect_err(|_| stop.store(true, Relaxed));
        Ok::<_, Error>((proof.join().unwrap_or_else(|panic| resume_unwind(panic)), summary))
    })?;
    // Whichever failed first stopped the other, which then says no more than that.
    let (proof, summary) = match (proof, summary) {
        (Err(error), _) if error.kind() != Kind::Stopped => return Err(error),
        (_, Err(error)) => return Err(error),
        (proof, Ok(summary)) => (proof?, summary),
    };
    proof
        .times
        .iter()
        .for_each(|(name, time)| timings.add_overlapping(name, *time, Overlap::BesideNext));
    timings.add_metered(meter);
    timings.add("write", start.elapsed(), Some(summary.bytes));
    proof.hashes.record(&mut receipt);
    receipt.measured = proof.measured;
    receipt.warnings.extend(proof.warnings);
    dir.add_hashes(summary.hashes);
    write_side_files(&mut dir, &prepared)?;

    for (file, page) in report::pages(&receipt) {
        dir.write(&file, page.as_bytes())?;
    }
    // What was written so far, the receipt answers for.
    receipt.files.clone_from(dir.files());
    dir.write(RECEIPT_FILE, json::to_pretty(&receipt).as_bytes())?;
    dir.write(
        CARD_FILE,
        card::render(&receipt, &name_of(output), &card::carried(input)).as_bytes(),
    )?;
    let training = TrainingDir::of(output);
    let (trained, saved) = (prepared.is_trained(), prepared.saves());
    let mut record =
        RunRecord::now(input, &options.compute, options.memory_budget, timings.clone());
    if trained {
        let log = training.log();
        let lines = read_whole(&log, json::MAX_JSON_BYTES)?;
        // Times differ from run to run.
        dir.write_unlisted(LOG_FILE, &lines)?;
        record.training_log_sha256 = Some(sha256_bytes(&lines));
    }
    dir.write_unlisted(RUN_FILE, record.sealed().as_bytes())?;
    // Only of sources that stayed as they were is the receipt true.
    prepared.check_unchanged()?;
    let start = Instant::now();
    dir.commit()?;
    if trained || saved {
        // All that it was for is in the result, which is there whatever comes of this.
        training.remove().unwrap_or_else(|error| {
            progress.note(&format!("{} is left: {}", training.path().display(), left(&error)))
        });
    }
    timings.add("commit", start.elapsed(), None);
    Ok(Conversion {
        receipt,
        timings,
        bytes: summary.bytes,
        hashing_seconds: summary.hashing.as_secs_f64(),
        engines: prepared.result().engines(),
        heals: heals(prepared.result()),
        tokenizer: HasTokenizer::of(&prepared.side_files),
    })
}

/// Creates the output. All of an earlier result that it replaces is hashed first, which is shown
/// where it takes time.
fn create(
    output: &Path,
    options: &ConvertOptions,
    progress: &dyn Progress,
    timings: &mut Timings,
) -> Result<OutputDir> {
    const SHOWN_BYTES: u64 = 1 << 30;
    let files = std::fs::read_dir(output).into_iter().flatten().flatten();
    let bytes: u64 = files.filter_map(|file| file.metadata().ok()).map(|found| found.len()).sum();
    let created = if !options.overwrite || bytes < SHOWN_BYTES {
        OutputDir::create(output, existing(options))?
    } else {
        let start = Instant::now();
        progress.stage("hash the earlier result", bytes, Unit::Bytes);
        let created =
            OutputDir::create_watched(output, existing(options), &|bytes| progress.advance(bytes))?;
        timings.add("hash the earlier result", start.elapsed(), Some(bytes));
        created
    };
    if created.brought_back() {
        progress.note(&format!(
            "a run was stopped while it replaced {}: what it left is whole, lies there again, and is replaced when this run ends",
            output.display()
        ));
    }
    Ok(created)
}

/// Resident memory that the run is said to hold.
fn promised(prepared: &Prepared<'_>, options: &ConvertOptions, output: &Path) -> Result<ByteSize> {
    Ok(budget::resident(prepared.live_bytes(options, output)? + live_bytes().unwrap_or(0)))
}

fn check_budget(prepared: &Prepared<'_>, options: &ConvertOptions, output: &Path) -> Result<()> {
    let within = |budget| ConvertOptions { memory_budget: Some(budget), ..options.clone() };
    let ways = |budget| needs::ways(&prepared.stages(&within(budget), output).ok()?, budget);
    budget::check_budget(options.memory_budget, ways, |budget| {
        prepared.live_bytes(&within(budget), output)
    })
}

/// Writes all tensors; ends early where `stop` is set.
fn write(
    prepared: &Prepared<'_>,
    dir: &OutputDir,
    stop: &AtomicBool,
    progress: &dyn Progress,
) -> Result<WriteSummary> {
    let mut writer = dir.writer(prepared.shards.clone())?;
    for copies in prepared.declaration().tensors.chunk_by(|(_, a), (_, b)| is_copy(a, b)) {
        check_stop(stop)?;
        if let Some(place) = copies.first().and_then(|(name, _)| place(name)) {
            progress.status(&place);
        }
        push(&mut writer, copies)?;
        progress.advance(copies.iter().map(|(_, weight)| weight.bytes()).sum());
    }
    writer.finish()
}

/// The layer that the tensor `name` belongs to and, where it is one expert's, which: numbers in
/// names are these, in this order.
fn place(name: &str) -> Option<String> {
    let mut numbers = name.split('.').filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
    let layer = format!("layer {}", numbers.next()?);
    Some(numbers.next().map_or(layer.clone(), |expert| format!("{layer}, expert {expert}")))
}

/// What needs neither source nor plan.
fn check_options(
    passes: &[&dyn Pass],
    input: &Path,
    output: &Path,
    options: &ConvertOptions,
) -> Result<()> {
    let ConvertOptions { max_shard_size, probe_tokens, .. } = *options;
    WritingOptions { max_shard_size, probe_tokens }.check()?;
    if input.is_dir() {
        check_places(passes, input, output, &[])?;
        OutputDir::check(output, existing(options))?;
        check_plans(passes, options.overwrite)?;
    }
    if passes.iter().any(|pass| pass.outputs().training) {
        // What it has saved so far is not what a stopped run has left.
        OutputDir::check_idle(output)?;
        TrainingDir::of(output).check(options.resume, options.overwrite)?;
    }
    Ok(())
}

/// Refuses what lies where `passes` are to write and may not be replaced, without touching the
/// disk.
///
/// # Errors
/// As for [`OutputDir::check`]; [`Kind::Usage`] for plans, and for what a stopped training has
/// saved.
pub fn check_output(passes: &[&dyn Pass], output: &Path, options: &ConvertOptions) -> Result<()> {
    OutputDir::check(output, existing(options))?;
    check_plans(passes, options.overwrite)?;
    match passes.iter().any(|pass| pass.outputs().training) {
        true => TrainingDir::of(output).check(options.resume, options.overwrite),
        false => Ok(()),
    }
}

/// Why something is left, in a line.
fn left(error: &Error) -> String {
    let file = error.named_file().map_or(String::new(), |file| format!(" ({})", file.display()));
    error.briefly() + &file
}

pub(crate) fn existing(options: &ConvertOptions) -> Existing {
    if options.overwrite { Existing::Replaced } else { Existing::Kept }
}

fn numeric(error: candle_core::Error) -> Error {
    Error::new(Kind::Numeric, "cannot check a tensor").source(error)
}

/// Whether `next` is written from what was read for `weight`.
fn is_copy(weight: &Weight, next: &Weight) -> bool {
    weight.bytes() <= MAX_COPIED_BYTES && weight.stored().is_some() && weight.same_source(next)
}

/// Writes tensors that are made of the same bytes.
fn push(writer: &mut Writer, copies: &[(String, Weight)]) -> Result<()> {
    let (name, weight) = &copies[0];
    let float = float_dtype(weight.dtype());
    let Some(stored) = weight.stored() else {
        let bytes = weight.read()?;
        let found = float
            .map(|dtype| first_non_finite(&bytes, dtype))
            .transpose()
            .map_err(numeric)?
            .flatten();
        return found
            .map_or_else(|| writer.push(name, &bytes), |at| Err(not_finite(weight, at as u64)));
    };
    let names: Vec<&str> = copies.iter().map(|(name, _)| name.as_str()).collect();
    writer.push_copies(&names, stored.bytes(), |offset, buffer| {
        stored.read_at(offset, buffer)?;
        // A probe sees a few tokens; here every value passes by.
        let found = float
            .map(|dtype| Ok((first_non_finite(buffer, dtype).map_err(numeric)?, dtype)))
            .transpose()?;
        match found {
            Some((Some(at), dtype)) => {
                Err(not_finite(weight, offset / dtype.size_in_bytes() as u64 + at as u64))
            }
            _ => Ok(()),
        }
    })
}

/// Config, tokenizer, templates, code and whatever else comes along.
fn write_side_files(dir: &mut OutputDir, prepared: &Prepared<'_>) -> Result<()> {
    dir.write(CONFIG_FILE, json::to_pretty_python(&prepared.declaration().config).as_bytes())?;
    for file in &prepared.side_files.carried {
        match prepared.rewritten.as_ref().filter(|rewritten| rewritten.name == file.name) {
            Some(rewritten) => dir.write(&file.name, rewritten.text.as_bytes())?,
            None => dir.carry(&file.path, &file.name)?,
        }
    }
    Ok(())
}
