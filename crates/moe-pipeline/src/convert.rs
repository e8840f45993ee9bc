//! Running a pass: plan, validate, write and measure side by side, and let the result appear.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use moe_checkpoint::{
    CONFIG_FILE, Checkpoint, Declared, Manifest, OutputDir, OutputOptions, ShardPlan, WriteSummary, Writer, json, plan_shards,
    sha256_file,
};
use moe_checkpoint::{Error, Kind, Result};
use moe_forward::{Batch, Difference, Observer, candle_dtype, logit_difference, not_finite};
use moe_math::encoding::first_non_finite;
use moe_math::{Compute, sampling};
use moe_model::{Declaration, Model, Weight};
use moe_passes::{Identity, Pass, Plan};
use rayon::prelude::*;
use serde::Serialize;

use crate::card;
use crate::progress::{Progress, Quiet, Timings, Unit};
use crate::receipt::{Measured, RECEIPT_FILE, RUN_FILE, Receipt, ResultRecord, SourceRecord, Tool};
use crate::resources::{ByteSize, RunRecord};
use crate::verify::check_hashes;

/// Logits of a result that promises identity may differ by this much for each unit of the largest logit.
const IDENTITY_TOLERANCE: f64 = 1e-4;
/// Logits of all of them are in memory at once.
const MAX_PROBE_TOKENS: usize = 4096;
/// Config, cards and file-system overhead, on top of the tensors.
const SLACK_BYTES: u64 = 4 << 20;

/// How a pass is run.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Replace an earlier result.
    pub overwrite: bool,
    /// Most bytes of a shard.
    pub max_shard_size: ByteSize,
    /// Random tokens on which the result is compared with its source; 0 for none.
    pub probe_tokens: usize,
    /// Where to compute.
    pub compute: Compute,
}

/// What a run will write, known before anything is written.
#[derive(Debug, Serialize)]
pub struct PlannedOutput {
    /// What the receipt will say, short of what is measured.
    pub receipt: Receipt,
    /// Files of weights with their size in bytes.
    pub shards: Vec<(String, u64)>,
    /// Estimate of the most memory that the run holds at once, in bytes.
    pub memory_estimate_bytes: u64,
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
}

/// A pass applied to a checkpoint, validated down to every output name.
struct Prepared {
    checkpoint: Checkpoint,
    source: Model,
    plan: Plan,
    declaration: Declaration,
    /// The declaration read back: names and config as loaders find them, weights still lazy.
    result: Model,
    shards: Vec<ShardPlan>,
}

impl Prepared {
    fn new<P: Pass>(pass: &P, input: &Path, max_shard_size: ByteSize) -> Result<Self> {
        let checkpoint = Checkpoint::open(input)?;
        let source = Model::read(&checkpoint)?;
        let plan = pass.plan(&source)?;
        let declaration = plan.model.declare()?;
        // What loaders will find must be a model; a contradiction shows here, before the first byte.
        let result = declaration.reread()?;
        let declared: Vec<Declared> = declaration
            .tensors
            .iter()
            .map(|(name, w)| Declared { name: name.clone(), dtype: w.dtype(), shape: w.shape().to_vec() })
            .collect();
        let shards = plan_shards(&declared, max_shard_size.0)?;
        Ok(Self { checkpoint, source, plan, declaration, result, shards })
    }

    fn receipt<P: Pass>(&self, pass: &P, input: &Path) -> Receipt {
        let parameters = self.plan.model.parameters();
        let copied = self.declaration.tensors.iter().filter(|(_, w)| w.stored().is_some()).count();
        let name = input.canonicalize().unwrap_or_else(|_| input.to_owned());
        Receipt {
            tool: Tool::this(),
            pass: P::NAME,
            options: serde_json::to_value(pass).unwrap_or_default(),
            source: SourceRecord {
                name: name.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                model_type: self.source.family.model_type.clone(),
                sha256: BTreeMap::new(),
            },
            result: ResultRecord {
                model_type: self.plan.model.family.model_type.clone(),
                total_parameters: parameters.total(),
                active_parameters: parameters.active(),
                parameters,
                tensors: self.declaration.tensors.len(),
                tensors_copied: copied,
                bytes: self.declaration.bytes(),
            },
            identity: self.plan.identity.clone(),
            measured: None,
            layers: self.plan.layers.clone(),
            warnings: self.plan.warnings.clone(),
        }
    }

    /// The probe's largest tensors: the head in f32 beside logits of both models, or a layer's weights.
    fn memory_estimate(&self, probe_tokens: usize) -> u64 {
        const WRITER_BYTES: u64 = 64 << 20;
        if probe_tokens == 0 {
            return WRITER_BYTES;
        }
        let head = (self.source.vocab * self.source.hidden * 4) as u64;
        let logits = (self.source.vocab * probe_tokens * 8 * 6) as u64;
        WRITER_BYTES + head + logits
    }
}

/// Plans a run without writing anything.
///
/// # Errors
/// Whatever would stop the run before its first byte.
pub fn plan<P: Pass>(pass: &P, input: &Path, output: &Path, options: &ConvertOptions) -> Result<PlannedOutput> {
    check_options(input, output, options)?;
    let prepared = Prepared::new(pass, input, options.max_shard_size)?;
    let size = |s: &ShardPlan| (s.file.clone(), s.header.len() as u64 + s.data_bytes());
    Ok(PlannedOutput {
        receipt: prepared.receipt(pass, input),
        shards: prepared.shards.iter().map(size).collect(),
        memory_estimate_bytes: prepared.memory_estimate(options.probe_tokens),
    })
}

/// Whether `output` is the finished result of the same pass with the same options on the same source.
///
/// # Errors
/// What reading the source and the receipt return.
pub fn is_finished<P: Pass>(pass: &P, input: &Path, output: &Path, options: &ConvertOptions) -> Result<bool> {
    let receipt = output.join(RECEIPT_FILE);
    if !receipt.is_file() {
        return Ok(false);
    }
    let found: serde_json::Value = json::read(&receipt)?;
    let prepared = Prepared::new(pass, input, options.max_shard_size)?;
    let mut wanted = prepared.receipt(pass, input);
    wanted.source.sha256 = hash_source(&prepared.checkpoint, &Quiet)?;
    let wanted = serde_json::to_value(&wanted).unwrap_or_default();
    let same = ["tool", "pass", "options", "source", "result"].iter().all(|key| found[key] == wanted[key]);
    let whole = || Manifest::read(output).is_ok_and(|m| m.is_some_and(|m| check_hashes(output, &m, &Quiet).is_ok()));
    Ok(same && whole())
}

/// Runs `pass` on the checkpoint `input` and writes the result to `output`.
///
/// # Errors
/// What reading, planning and writing return; [`Kind::Numeric`] where a result that promises identity
/// doesn't keep it. Nothing appears under the output's name then.
pub fn convert<P: Pass>(
    pass: &P,
    input: &Path,
    output: &Path,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<Conversion> {
    check_options(input, output, options)?;
    let mut timings = Timings::default();
    let prepared = timings.time("plan", || Prepared::new(pass, input, options.max_shard_size))?;
    let mut receipt = prepared.receipt(pass, input);
    receipt.warnings.iter().for_each(|w| progress.note(w));
    let mut dir = OutputDir::create(output, &[input], output_options(options))?;
    dir.require_space(prepared.declaration.bytes() + SLACK_BYTES)?;

    let start = Instant::now();
    progress.stage("write", prepared.declaration.bytes(), Unit::Bytes);
    let stop = AtomicBool::new(false);
    let (proof, summary) = std::thread::scope(|scope| {
        let proof = scope.spawn(|| Proof::new(&prepared, options, &stop).inspect_err(|_| stop.store(true, Relaxed)));
        let summary = write(&prepared, dir.path(), &stop, progress).inspect_err(|_| stop.store(true, Relaxed));
        (proof.join().unwrap_or_else(|panic| resume_unwind(panic)), summary)
    });
    // Whichever failed first stopped the other, which then says no more than that.
    let (proof, summary) = match (proof, summary) {
        (Err(error), _) if error.kind() != Kind::Stopped => return Err(error),
        (_, Err(error)) => return Err(error),
        (proof, Ok(summary)) => (proof?, summary),
    };
    proof.times.iter().for_each(|(name, time)| timings.add_beside(name, *time));
    timings.add("write", start.elapsed(), Some(summary.bytes));
    (receipt.source.sha256, receipt.measured) = (proof.source, proof.measured);
    dir.add_hashes(summary.hashes);
    write_side_files(&mut dir, &prepared)?;

    let name = output.file_name().unwrap_or_default().to_string_lossy();
    dir.write(RECEIPT_FILE, json::to_pretty(&receipt).as_bytes())?;
    dir.write("README.md", card::render(&receipt, &name).as_bytes())?;
    let record = RunRecord::now(input, &options.compute.device, timings.clone());
    dir.write_unlisted(RUN_FILE, json::to_pretty(&record).as_bytes())?;
    let start = Instant::now();
    dir.commit()?;
    timings.add("commit", start.elapsed(), None);
    Ok(Conversion { receipt, timings, bytes: summary.bytes, hashing_seconds: summary.hashing.as_secs_f64() })
}

/// Writes all tensors; ends early where `stop` is set.
fn write(prepared: &Prepared, dir: &Path, stop: &AtomicBool, progress: &dyn Progress) -> Result<WriteSummary> {
    let mut writer = Writer::create(dir, prepared.shards.clone())?;
    for (name, weight) in &prepared.declaration.tensors {
        check_stop(stop)?;
        push(&mut writer, name, weight)?;
        progress.advance(weight.bytes());
    }
    writer.finish()
}

fn check_stop(stop: &AtomicBool) -> Result<()> {
    if stop.load(Relaxed) { Err(Error::new(Kind::Stopped, "stopped")) } else { Ok(()) }
}

/// What the receipt says of source and result, found while the result is being written.
struct Proof {
    source: BTreeMap<String, String>,
    measured: Option<Measured>,
    times: Vec<(&'static str, Duration)>,
}

impl Proof {
    fn new(prepared: &Prepared, options: &ConvertOptions, stop: &AtomicBool) -> Result<Self> {
        let start = Instant::now();
        let measured = (options.probe_tokens > 0).then(|| measure(prepared, options, stop)).transpose()?;
        if let Some(measured) = &measured {
            check_identity(&prepared.plan.identity, &measured.difference)?;
        }
        let mut times = Vec::from_iter(measured.is_some().then(|| ("measure", start.elapsed())));
        let start = Instant::now();
        let source = hash_source(&prepared.checkpoint, &Quiet)?;
        times.push(("hash source", start.elapsed()));
        Ok(Self { source, measured, times })
    }
}

/// Ends a sweep where it is set.
struct Stop<'a>(&'a AtomicBool);

impl Observer for Stop<'_> {
    fn layer_done(&mut self, _: usize, _: usize) -> Result<()> {
        check_stop(self.0)
    }
}

/// What needs neither source nor plan.
fn check_options(input: &Path, output: &Path, options: &ConvertOptions) -> Result<()> {
    if options.probe_tokens > MAX_PROBE_TOKENS {
        let what = format!("{} probe tokens are more than {MAX_PROBE_TOKENS}", options.probe_tokens);
        return Err(
            Error::new(Kind::Usage, what).remedy("lower --probe-tokens; eval measures on as much text as you like")
        );
    }
    if input.is_dir() {
        OutputDir::check(output, &[input], output_options(options))?;
    }
    Ok(())
}

fn output_options(options: &ConvertOptions) -> OutputOptions<'static> {
    OutputOptions { overwrite: options.overwrite, replaceable_if: RECEIPT_FILE }
}

fn numeric(error: candle_core::Error) -> Error {
    Error::new(Kind::Numeric, "cannot check a tensor").source(error)
}

fn push(writer: &mut Writer, name: &str, weight: &Weight) -> Result<()> {
    let Some(stored) = weight.stored() else { return writer.push(name, &weight.read()?) };
    let float = candle_dtype(weight).ok();
    writer.push_from(name, stored.bytes(), |offset, buffer| {
        stored.read_at(offset, buffer)?;
        // A probe sees a few tokens; here every value passes by.
        let found = float.map(|dtype| Ok((first_non_finite(buffer, dtype).map_err(numeric)?, dtype))).transpose()?;
        match found {
            Some((Some(at), dtype)) => Err(not_finite(weight, offset / dtype.size_in_bytes() as u64 + at as u64)),
            _ => Ok(()),
        }
    })
}

/// SHA-256 of config and weights; files are hashed side by side.
fn hash_source(checkpoint: &Checkpoint, progress: &dyn Progress) -> Result<BTreeMap<String, String>> {
    let mut paths = vec![(checkpoint.dir().join(CONFIG_FILE), 0)];
    paths.extend(checkpoint.files().iter().map(|f| (f.path().to_owned(), f.bytes())));
    let hash = |(path, bytes): &(std::path::PathBuf, u64)| -> Result<(String, String)> {
        let hash = sha256_file(path)?;
        progress.advance(*bytes);
        Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), hash))
    };
    paths.par_iter().map(hash).collect()
}

/// Config, tokenizer, templates and generation config.
fn write_side_files(dir: &mut OutputDir, prepared: &Prepared) -> Result<()> {
    dir.write(CONFIG_FILE, json::to_pretty(&prepared.declaration.config).as_bytes())?;
    for path in prepared.checkpoint.side_files()? {
        let bytes = std::fs::read(&path).map_err(|e| Error::io("cannot read this file", &path, e))?;
        dir.write(&path.file_name().unwrap_or_default().to_string_lossy(), &bytes)?;
    }
    Ok(())
}

/// Compares what will be written, by the names it will have, with its source on seeded random tokens.
///
/// This happens beside the writing, from the very weights that are written: reading the files back would cost a
/// large model the time of writing it again. `eval --against` does that.
fn measure(prepared: &Prepared, options: &ConvertOptions, stop: &AtomicBool) -> Result<Measured> {
    const SEED: u64 = 0;
    let source = &prepared.source;
    let ids = sampling::token_ids(options.probe_tokens, source.vocab, &mut sampling::generator(SEED, 0));
    let batch = Batch::new([ids.as_slice()]);
    let difference = logit_difference(source, &prepared.result, &batch, &options.compute, &mut Stop(stop))?;
    Ok(Measured { seed: SEED, difference })
}

fn check_identity(identity: &Identity, difference: &Difference) -> Result<()> {
    let limit = IDENTITY_TOLERANCE * difference.max_logit.max(1.0);
    if *identity != Identity::Exact || difference.max_logit_difference <= limit {
        return Ok(());
    }
    let what = format!(
        "the result should compute the source's function, but a logit differs by {:.3e}",
        difference.max_logit_difference
    );
    Err(Error::new(Kind::Numeric, what).remedy("this is a bug in moe-convert; please report it with this command"))
}
