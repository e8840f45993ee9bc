//! Results that are there already: an earlier run's, or an earlier step's.
//!
//! A receipt says by hashes what a result was made of: the same passes with the same options on the same bytes give the same result.

use std::path::Path;

use moe_checkpoint::{MANIFEST_FILE, Manifest, OutputDir, Result, json};
use moe_passes::Pass;
use serde_json::Value;

use crate::convert::{ConvertOptions, SLACK_BYTES, inputs, output_options};
use crate::prepare::Prepared;
use crate::progress::Quiet;
use crate::receipt::{RECEIPT_FILE, RUN_FILE};
use crate::verify::check_hashes;

/// Whether `output` is the finished result of the same passes with the same options on the same bytes, made by the same version.
///
/// # Errors
/// What reading the source and the receipt return.
pub fn is_finished(passes: &[&dyn Pass], input: &Path, output: &Path, options: &ConvertOptions) -> Result<bool> {
    let receipt = output.join(RECEIPT_FILE);
    if !receipt.is_file() {
        return Ok(false);
    }
    // A plan that it writes beside is part of what it gives.
    if passes.iter().filter_map(|pass| pass.plan_out()).any(|plan| !plan.is_file()) {
        return Ok(false);
    }
    let found: Value = json::read(&receipt)?;
    let wanted: Vec<Work> = passes.iter().map(|pass| (pass.name().into(), pass.options())).collect();
    if work(&found) != wanted {
        return Ok(false);
    }
    let prepared = Prepared::new(passes, input, output, options)?;
    let mut wanted = prepared.receipt();
    prepared.hashes()?.record(&mut wanted);
    let wanted = serde_json::to_value(&wanted).unwrap_or_default();
    // How many tensors are copies is known only when experts are chosen, which need not be done again.
    let sizes = |receipt: &Value| receipt["result"]["parameters"].clone();
    let same = found["tool"] == wanted["tool"]
        && found["texts"] == wanted["texts"]
        && read(&found) == read(&wanted)
        && sizes(&found) == sizes(&wanted);
    Ok(same && manifest(output).is_some())
}

/// Makes `output` a copy of `from`, if that is what the passes would make of `input`; whether it is.
///
/// # Errors
/// As for [`is_finished`]; what writing returns.
pub fn copy_finished(
    passes: &[&dyn Pass],
    input: &Path,
    from: &Path,
    output: &Path,
    options: &ConvertOptions,
) -> Result<bool> {
    if !is_finished(passes, input, from, options)? {
        return Ok(false);
    }
    let Some(Manifest { files }) = manifest(from) else { return Ok(false) };
    let mut inputs = inputs(passes, input);
    inputs.push(from);
    let mut dir = OutputDir::create(output, &inputs, output_options(options))?;
    let sizes = files.keys().filter_map(|name| from.join(name).metadata().ok());
    dir.require_space(sizes.map(|file| file.len()).sum::<u64>() + SLACK_BYTES)?;
    for (name, hash) in files.iter().filter(|(name, _)| *name != MANIFEST_FILE) {
        dir.copy(from, name, hash)?;
    }
    let about = serde_json::json!({ "copied_from": from });
    dir.write_unlisted(RUN_FILE, json::to_pretty(&about).as_bytes())?;
    dir.commit()?;
    Ok(true)
}

/// A pass and its options.
type Work = (Value, Value);

/// The passes of a receipt in order.
fn work(receipt: &Value) -> Vec<Work> {
    let before = receipt["before"].as_array().into_iter().flatten();
    before.chain([receipt]).map(|pass| (pass["pass"].clone(), pass["options"].clone())).collect()
}

/// The hashes of all checkpoints that were read; where they lay doesn't matter.
fn read(receipt: &Value) -> Vec<&Value> {
    let others = receipt["others"].as_array().into_iter().flatten();
    std::iter::once(&receipt["source"]).chain(others).map(|source| &source["sha256"]).collect()
}

/// The manifest of `dir`, if all that it lists is there unchanged.
fn manifest(dir: &Path) -> Option<Manifest> {
    Manifest::read(dir).ok()?.filter(|manifest| check_hashes(dir, manifest, &Quiet).is_ok())
}
