//! Held-out text that isn't held out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use moe_checkpoint::Result;
use moe_forward::{Corpus, overlap};

use super::pass_run::PassRun;
use crate::fingerprint::sha256_of;
use crate::learned;
use crate::portable::portable;

/// Text that is written by hand shares less than this with another; templates and licences may
/// share some.
const LEAST_SHARE: f64 = 0.01;

/// What is said where text that `applied` passes learn from is measured on: the same files, or the
/// same windows, whatever their files. `measured` is what the result is measured on; of texts that
/// are read in parts, `digests` has the hash of what was read.
///
/// # Errors
/// What reading that text returns.
pub(super) fn warnings(
    applied: &[PassRun<'_>],
    measured: Option<&Corpus>,
    digests: &BTreeMap<PathBuf, String>,
) -> Result<Vec<String>> {
    let trained = applied.iter().filter_map(|applied| applied.training()?.held_out());
    let mut warnings = Vec::new();
    for corpus in measured.into_iter().chain(trained) {
        warnings.extend(match warning(applied, corpus) {
            None => observed(applied, corpus, digests)?,
            warning => warning,
        });
    }
    Ok(warnings)
}

/// What is said where statistics were gathered on the text of `held_out`.
fn observed(
    applied: &[PassRun<'_>],
    held_out: &Corpus,
    digests: &BTreeMap<PathBuf, String>,
) -> Result<Option<String>> {
    let learned: BTreeSet<&String> =
        applied.iter().flat_map(|applied| applied.observed().values()).collect();
    if learned.is_empty() {
        return Ok(None);
    }
    for text in &held_out.texts {
        if learned.contains(&sha256_of(&text.path, digests)?) {
            let name = portable(&text.path);
            let what = "is held out, and the statistics were gathered on it, so that what is measured looks better than it is";
            return Ok(Some(format!("{name} {what}: give --held-out other text")));
        }
    }
    Ok(None)
}

/// What is said where a pass measures on text that the checkpoint in `input` was made on already.
///
/// # Errors
/// What reading that text and the receipt returns.
pub(super) fn learned_before(applied: &[PassRun<'_>], input: &Path) -> Result<Vec<String>> {
    learned::notes(input, applied.iter().flat_map(|applied| applied.pass.inputs().measured()))
}

fn warning(applied: &[PassRun<'_>], held_out: &Corpus) -> Option<String> {
    let windows: Vec<&[u32]> = held_out.sequences().collect();
    let shared = overlap(&windows, applied.iter().flat_map(PassRun::windows));
    let share = shared as f64 / held_out.tokens().max(1) as f64;
    let learned: Vec<PathBuf> =
        applied.iter().flat_map(|applied| applied.pass.inputs().learned).filter_map(real).collect();
    let twice = held_out
        .texts
        .iter()
        .find(|text| real(&text.path).is_some_and(|path| learned.contains(&path)));
    let remedy = "give --held-out other text";
    if share >= LEAST_SHARE {
        let percent = 100.0 * share;
        return Some(format!(
            "{percent:.0} % of the held-out text stands in the text that was learned from, so that what is measured looks better than it is: \
             {remedy}"
        ));
    }
    twice.map(|text| {
        format!(
            "{} is learned from and held out, which differ only as far as the seed draws other windows: {remedy}",
            portable(&text.path)
        )
    })
}

fn real(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok()
}
