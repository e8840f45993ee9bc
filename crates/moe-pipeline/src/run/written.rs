//! Writes, measures and hashes the result in parallel, and then publishes it under its name.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use moe_checkpoint::{
    CONFIG_FILE, Error, Kind, LOG_FILE, OutputDir, Result, SideFiles, WriteSummary, json,
    read_whole, sha256_bytes,
};
use moe_forward::TOKENIZER_FILE;

use super::decided::Decided;
use super::planned::Planned;
use super::proof::Proof;
use super::tensors;
use crate::applicable::heals;
use crate::card::{self, name_of};
use crate::context::RunContext;
use crate::conversion::{Conversion, HasTokenizer};
use crate::file_names::{CARD_FILE, RECEIPT_FILE, RUN_FILE};
use crate::outputs::existing;
use crate::progress::{Overlap, Timings, Unit};
use crate::receipt::Receipt;
use crate::report;
use crate::resources::RunRecord;
use crate::train::TrainingDir;
use crate::verify::has_tokenizer;

impl RunContext<'_> {
    /// Creates the output. An earlier result that it replaces is hashed first; where that takes
    /// time, it is a stage of its own.
    pub fn create_output(&self, timings: &mut Timings) -> Result<OutputDir> {
        let Self { output, options, progress, .. } = *self;
        const SHOWN_BYTES: u64 = 1 << 30;
        let files = std::fs::read_dir(output).into_iter().flatten().flatten();
        let bytes: u64 =
            files.filter_map(|file| file.metadata().ok()).map(|found| found.len()).sum();
        let created = if !options.overwrite || bytes < SHOWN_BYTES {
            OutputDir::create(output, existing(options))?
        } else {
            let start = Instant::now();
            progress.stage("hash the earlier result", bytes, Unit::Bytes);
            let created = OutputDir::create_watched(output, existing(options), &|bytes| {
                progress.advance(bytes)
            })?;
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
}

impl Decided<'_> {
    /// Writes the result, its receipt and all side files, and publishes it.
    ///
    /// # Errors
    /// Errors of reading weights and of writing; [`Kind::Numeric`] where a result that promises
    /// identity doesn't keep it. Nothing is left under the output's name then.
    pub fn write(self, mut dir: OutputDir, mut timings: Timings) -> Result<Conversion> {
        let run = self.planned.opened.run;
        let (proof, summary) = self.write_tensors(&dir, &mut timings)?;
        let mut receipt = self.receipt();
        proof.hashes.record(&mut receipt);
        receipt.measured = proof.measured;
        receipt.warnings.extend(proof.warnings);
        dir.add_hashes(summary.hashes);
        write_side_files(&mut dir, &self.planned)?;
        write_record(&mut dir, &mut receipt, &run)?;
        self.write_run(&mut dir, &timings)?;
        // The receipt is true only if the sources are unchanged.
        self.planned.check_unchanged()?;
        timings.time("commit", || {
            dir.commit()?;
            self.remove_training();
            Ok(())
        })?;
        let result = self.planned.result();
        Ok(Conversion {
            receipt,
            timings,
            bytes: summary.bytes,
            hashing_seconds: summary.hashing.as_secs_f64(),
            engines: result.engines(),
            heals: heals(result),
            tokenizer: tokenizer(&self.planned.side_files),
        })
    }

    /// Removes the folder of a training once the result contains everything that it was for.
    fn remove_training(&self) {
        if self.trained.is_none() && !self.planned.saves() {
            return;
        }
        let run = self.planned.opened.run;
        let training = TrainingDir::of(run.output);
        // An error here doesn't matter to the result.
        training.remove().unwrap_or_else(|error| {
            let path = training.path().display();
            run.progress.note(&format!("{path} is left: {}", left(&error)));
        });
    }

    /// Writes all tensors, and computes the receipt's proof at the same time.
    fn write_tensors(
        &self,
        dir: &OutputDir,
        timings: &mut Timings,
    ) -> Result<(Proof, WriteSummary)> {
        let planned = &self.planned;
        let run = &planned.opened.run;
        let start = Instant::now();
        run.progress.stage("write", planned.declaration().bytes(), Unit::Bytes);
        let (proof, summary) = written_and_proven(planned, dir)?;
        for (name, time) in &proof.times {
            timings.add_overlapping(name, *time, Overlap::BesideNext);
        }
        timings.add_metered(&run.compute().meter);
        timings.add("write", start.elapsed(), Some(summary.bytes));
        Ok((proof, summary))
    }

    /// Writes facts that differ from run to run, which no manifest lists.
    fn write_run(&self, dir: &mut OutputDir, timings: &Timings) -> Result<()> {
        let run = &self.planned.opened.run;
        let budget = run.options.memory_budget;
        let mut record = RunRecord::now(run.input, run.compute(), budget, timings.clone());
        if self.trained.is_some() {
            let lines = read_whole(&TrainingDir::of(run.output).log(), json::MAX_JSON_BYTES)?;
            dir.write_unlisted(LOG_FILE, &lines)?;
            record.training_log_sha256 = Some(sha256_bytes(&lines));
        }
        dir.write_unlisted(RUN_FILE, record.sealed().as_bytes())
    }
}

/// Writes all tensors of `planned`, and computes the receipt's proof on another thread.
fn written_and_proven(planned: &Planned<'_>, dir: &OutputDir) -> Result<(Proof, WriteSummary)> {
    let stop = AtomicBool::new(false);
    let (proof, summary) = std::thread::scope(|scope| {
        let prove = || Proof::new(planned, &stop).inspect_err(|_| stop.store(true, Relaxed));
        let proof = std::thread::Builder::new().spawn_scoped(scope, prove).map_err(|e| {
            Error::new(Kind::Io, "cannot start a thread that measures during the writing")
                .source(e)
                .remedy("allow more processes (ulimit -u) and address space (ulimit -v)")
        })?;
        let summary = tensors::write(planned, dir, &stop, planned.opened.run.progress)
            .inspect_err(|_| stop.store(true, Relaxed));
        Ok::<_, Error>((proof.join().unwrap_or_else(|panic| resume_unwind(panic)), summary))
    })?;
    // Whichever failed first stopped the other, whose error says no more than that.
    match (proof, summary) {
        (Err(error), _) if error.kind() != Kind::Stopped => Err(error),
        (_, Err(error)) => Err(error),
        (proof, Ok(summary)) => Ok((proof?, summary)),
    }
}

/// Writes reports, the receipt, which has hashes of all files written before it, and the card.
fn write_record(dir: &mut OutputDir, receipt: &mut Receipt, run: &RunContext<'_>) -> Result<()> {
    for (file, page) in report::pages(receipt) {
        dir.write(&file, page.as_bytes())?;
    }
    receipt.files.clone_from(dir.files());
    dir.write(RECEIPT_FILE, json::to_pretty(receipt).as_bytes())?;
    let card = card::render(receipt, &name_of(run.output), &card::carried(run.input));
    dir.write(CARD_FILE, card.as_bytes())
}

/// The tokenizer of a result with these `files`.
fn tokenizer(files: &SideFiles) -> HasTokenizer {
    if files.carried.iter().any(|file| file.name == TOKENIZER_FILE) {
        HasTokenizer::Here
    } else if has_tokenizer(files) {
        HasTokenizer::Elsewhere
    } else {
        HasTokenizer::Nowhere
    }
}

/// Formats on one line why a folder could not be removed: the error, and the file that it names.
fn left(error: &Error) -> String {
    let file = error.named_file().map_or(String::new(), |file| format!(" ({})", file.display()));
    error.briefly() + &file
}

/// Writes config, tokenizer, templates, code and all other side files.
fn write_side_files(dir: &mut OutputDir, planned: &Planned<'_>) -> Result<()> {
    dir.write(CONFIG_FILE, json::to_pretty_python(&planned.declaration().config).as_bytes())?;
    for file in &planned.side_files.carried {
        match planned.rewritten.as_ref().filter(|rewritten| rewritten.name == file.name) {
            Some(rewritten) => dir.write(&file.name, rewritten.text.as_bytes())?,
            None => dir.carry(&file.path, &file.name)?,
        }
    }
    Ok(())
}
