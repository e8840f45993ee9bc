//! Reuse of existing results, of an earlier run or an earlier step.
//!
//! A receipt identifies by hashes what a result was made from: the same passes with the same
//! options on the same bytes give the same result. Names and places of files don't matter, but
//! which file is read for what does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use moe_checkpoint::{
    Error, Kind, LOG_FILE, MANIFEST_FILE, Manifest, OutputDir, Result, file_exists, is_own_log,
    is_own_run_record, json, read_text, read_whole, sha256_file,
};
use moe_passes::Pass;
use serde_json::{Map, Value};

use crate::card::{self, name_of};
use crate::context::RunContext;
use crate::convert::Run;
use crate::file_names::{CARD_FILE, RECEIPT_FILE, RUN_FILE};
use crate::option_paths::PathlessOptions;
use crate::options::ConvertOptions;
use crate::outputs::{SLACK_BYTES, check_places, existing, plan_names};
use crate::portable::short_names;
use crate::progress::Quiet;
use crate::receipt::{Receipt, ReceiptFile, Tool, age};
use crate::verify::{check_hashes, listed};
use crate::writing::WritingOptions;

/// The state of the place where a result is to be written.
#[derive(Debug, PartialEq, Eq)]
pub enum FoundResult {
    /// No result that a run has finished.
    Nothing,
    /// Another result.
    Other(Difference),
    /// The finished result of the same passes with the same options on the same bytes, written in
    /// the same way by the same build.
    Same,
}

/// How a result differs from the wanted one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// In words that follow "it".
    pub how: String,
    /// What to give instead, with which it would be the wanted one; None where nothing makes it so.
    pub instead: Option<&'static str>,
}

impl Difference {
    fn new(how: impl Into<String>) -> Self {
        Self { how: how.into(), instead: None }
    }

    fn with(how: impl Into<String>, instead: &'static str) -> Self {
        Self { how: how.into(), instead: Some(instead) }
    }
}

/// Whether `output` is the result of `passes` on `input`.
///
/// # Errors
/// As for [`Run::find`].
pub fn find_result(
    passes: &[&dyn Pass],
    input: &Path,
    output: &Path,
    options: &ConvertOptions,
) -> Result<FoundResult> {
    Run::new(passes, input, output, options, &Quiet).find()
}

/// Whether `output` holds a result that a run has finished, of any kind.
pub fn has_result(output: &Path) -> bool {
    output.join(RECEIPT_FILE).is_file()
}

/// Describes how the work that made the result in `output` differs from `passes`, judging by its
/// receipt alone; None where it doesn't.
///
/// # Errors
/// Errors of reading the receipt.
pub fn other_work(passes: &[&dyn Pass], output: &Path) -> Result<Option<Difference>> {
    Ok(match ReceiptFile::read(output)? {
        ReceiptFile::Read(receipt) => differing_work(&receipt, passes),
        ReceiptFile::Other { format, .. } => Some(other_format(format)),
    })
}

/// The manifest of a finished result, or how it differs from the wanted one.
type Finished = Result<Manifest, Difference>;

impl Run<'_> {
    /// Whether the result of this run is at the output already.
    ///
    /// # Errors
    /// Errors of reading the source and the receipt.
    pub fn find(&mut self) -> Result<FoundResult> {
        let RunContext { output, options, .. } = self.context;
        Ok(match self.finished(output, options.resume)? {
            None => FoundResult::Nothing,
            Some(Err(how)) => FoundResult::Other(how),
            Some(Ok(_)) => FoundResult::Same,
        })
    }

    /// Makes the output a copy of `from`, if that is its result. Returns whether it is. Errors in
    /// `from` don't concern this run: they count as no.
    ///
    /// # Errors
    /// Errors of writing.
    pub fn copy_finished(&mut self, from: &Path) -> Result<bool> {
        let RunContext { input, output, options, .. } = self.context;
        let Ok(Some(Ok(manifest))) = self.finished(from, false) else { return Ok(false) };
        check_places(self.passes(), input, output, &[from])?;
        copy(from, manifest, output, options)?;
        Ok(true)
    }

    /// The result in `dir`, if a run has finished one and all that its manifest lists is unchanged.
    /// With `resume`, a training that went on with other settings may have made it.
    fn finished(&mut self, dir: &Path, resume: bool) -> Result<Option<Finished>> {
        if !file_exists(&dir.join(RECEIPT_FILE))? {
            return Ok(None);
        }
        let differs = match ReceiptFile::read(dir)? {
            ReceiptFile::Read(receipt) => self.difference(&receipt, resume)?,
            ReceiptFile::Other { format, .. } => Some(other_format(format)),
        };
        Ok(Some(match differs {
            Some(how) => Err(how),
            None => unchanged(dir).ok_or_else(|| Difference::new("was changed since it was made")),
        }))
    }

    /// Describes how the result of the receipt `found` differs from the one that this run would
    /// write; None where it doesn't.
    fn difference(&mut self, found: &Receipt, resume: bool) -> Result<Option<Difference>> {
        if !has_plans(found, self.passes()) {
            return Ok(Some(Difference::new("has no such plan beside it")));
        }
        if let Some(how) = differing_work(found, self.passes()) {
            return Ok(Some(how));
        }
        let planned = self.planned()?;
        let mut wanted = planned.receipt();
        planned.hashes()?.record(&mut wanted);
        difference(found, &wanted, resume)
    }
}

/// Whether the plans that `passes` write are those that were written with the result of the receipt
/// `found`: a plan that is written together with a result is part of it. A plan that went to a pipe
/// can't be reused.
fn has_plans(found: &Receipt, passes: &[&dyn Pass]) -> bool {
    let is_there = |(plan, name): (&Path, String)| {
        let written = found.written.get(&name);
        written.is_some() && sha256_file(plan).ok().as_ref() == written
    };
    plan_names(passes.iter().copied()).into_iter().all(is_there)
}

/// The manifest of the result in `dir`; None where it was changed, or files were added to the
/// result.
fn unchanged(dir: &Path) -> Option<Manifest> {
    let (manifest, _) = listed(dir).ok()?;
    manifest.filter(|manifest| check_hashes(dir, manifest, "a result", &Quiet).is_ok())
}

/// The difference of a result whose receipt can't be compared.
fn other_format(format: u64) -> Difference {
    let age = age(format);
    Difference::new(format!("has a receipt of {age} format, of another build of moe-convert"))
}

/// Describes how the work in the receipt `found` differs from `passes`, apart from the files that
/// both read; None where it doesn't.
fn differing_work(found: &Receipt, passes: &[&dyn Pass]) -> Option<Difference> {
    let names = passes.iter().map(|pass| pass.name()).collect::<Vec<_>>().join(" → ");
    if found.passes() != names {
        return Some(Difference::new(format!("was made by {}, not by {names}", found.passes())));
    }
    // Another build may have spelled the same options otherwise.
    if found.tool != Tool::this() {
        return Some(Difference::new("was made by another build of moe-convert"));
    }
    let pairs = found.work().map(|(_, options)| options).zip(passes);
    let options = pairs.flat_map(|(found, pass)| {
        let [found, wanted] = [found.clone(), pass.options()].map(PathlessOptions::new);
        other_keys(&found.options, &wanted.options)
    });
    other_options(options.collect())
}

/// The difference where these `options` have other values; None where there are none.
fn other_options(options: Vec<String>) -> Option<Difference> {
    let how = || format!("was made with other options ({})", options.join(", "));
    let instead = "the options that it was made with";
    (!options.is_empty()).then(|| Difference::with(how(), instead))
}

/// Describes how a result of the same work differs from the wanted one. A training that was resumed
/// with other settings counts as different, unless `resume` is set.
fn difference(found: &Receipt, wanted: &Receipt, resume: bool) -> Result<Option<Difference>> {
    let options = other_settings(found, wanted)?;
    let went_on = found.training.as_ref().is_some_and(|training| !training.settings.is_empty());
    // The number of copied tensors is known only once experts are chosen, which isn't repeated
    // here.
    let other_size = found.result.parameters != wanted.result.parameters;
    Ok(if options.is_some() {
        options
    } else if !resume && went_on {
        // A training that was resumed with other settings is finished for a run that may resume it,
        // but its result isn't the one of these options.
        Some(Difference::new("comes of a training that went on with other settings"))
    } else if !read_same_files(found, wanted) {
        let how = "was made with other text, or with text that has changed";
        Some(Difference::with(how, "the text that it was made with"))
    } else if read(found) != read(wanted) || other_size {
        let how = "was made of another checkpoint, or of one that has changed";
        Some(Difference::with(how, "the checkpoint that it was made of"))
    } else {
        None
    })
}

/// The difference where a result was computed or written with other options.
fn other_settings(found: &Receipt, wanted: &Receipt) -> Result<Option<Difference>> {
    let computed = [
        ("dtype", found.dtype != wanted.dtype),
        ("router-dtype", found.router_dtype != wanted.router_dtype),
        ("device", found.device != wanted.device),
    ];
    let computed = computed.into_iter().filter(|(_, differs)| *differs);
    let computed = computed.map(|(option, _)| option.to_owned());
    let written = other_keys(&as_json(&found.writing)?, &as_json(&wanted.writing)?);
    Ok(other_options(computed.chain(written).collect()))
}

fn as_json(writing: &WritingOptions) -> Result<Value> {
    serde_json::to_value(writing).map_err(|e| {
        Error::new(Kind::Malformed, "these options can't be written")
            .source(e)
            .remedy("please report it")
    })
}

/// The keys whose values differ.
fn other_keys(a: &Value, b: &Value) -> Vec<String> {
    let keys: BTreeSet<&String> =
        [a, b].into_iter().filter_map(Value::as_object).flat_map(Map::keys).collect();
    keys.into_iter().filter(|key| a[key.as_str()] != b[key.as_str()]).cloned().collect()
}

/// Makes `output` a copy of the result in `from` with this manifest.
fn copy(
    from: &Path,
    Manifest { files }: Manifest,
    output: &Path,
    options: &ConvertOptions,
) -> Result<()> {
    let mut dir = OutputDir::create(output, existing(options))?;
    let sizes = files.keys().filter_map(|name| from.join(name).metadata().ok());
    dir.require_space(sizes.map(|file| file.len()).sum::<u64>() + SLACK_BYTES)?;
    let renamed = [MANIFEST_FILE, CARD_FILE];
    for (name, hash) in files.iter().filter(|(name, _)| !renamed.contains(&name.as_str())) {
        dir.copy(from, name, hash)?;
    }
    let card = read_text(&from.join(CARD_FILE), json::MAX_JSON_BYTES)?;
    dir.write(CARD_FILE, card::renamed(&card, &name_of(from), &name_of(output)).as_bytes())?;
    // The record and log describe the run that made the result, so they are copied from there.
    for (name, is_own) in UNHASHED {
        let path = from.join(name);
        // A link could lead to any file that this user can read.
        if path.symlink_metadata().is_ok_and(|found| found.is_file()) && is_own(from) {
            dir.write_unlisted(name, &read_whole(&path, json::MAX_JSON_BYTES)?)?;
        }
    }
    dir.commit()
}

/// Whether a run wrote the file in this directory of a result.
type IsOwn = fn(&Path) -> bool;

/// Files that a run writes and no manifest lists, and how to recognize them.
const UNHASHED: [(&str, IsOwn); 2] = [(RUN_FILE, is_own_run_record), (LOG_FILE, is_own_log)];

/// Whether the files that the options of two receipts name are the same, each for the same purpose:
/// text, statistics and plans. The options are equal apart from their paths.
fn read_same_files(a: &Receipt, b: &Receipt) -> bool {
    let (a, b) = (hashes_by_use(a), hashes_by_use(b));
    a.is_some() && a == b
}

/// SHA-256 of each file that options name, in the order of the options. None where the receipt
/// doesn't have the hash of one of them.
fn hashes_by_use(receipt: &Receipt) -> Option<Vec<&String>> {
    let files: Vec<PathBuf> = receipt
        .work()
        .flat_map(|(_, options)| PathlessOptions::new(options.clone()).files)
        .collect();
    let names = short_names(files.iter().map(PathBuf::as_path));
    files.iter().map(|file| receipt.texts.get(&names[file.as_path()])).collect()
}

/// The hashes of all checkpoints that were read; their paths don't matter.
fn read(receipt: &Receipt) -> Vec<&BTreeMap<String, String>> {
    std::iter::once(&receipt.source).chain(&receipt.others).map(|source| &source.sha256).collect()
}
