//! Recovers the results of a run that was killed while it replaced an earlier result: both results
//! complete, or the new one complete.

use std::fs::File;
use std::io;
use std::path::Path;

use super::earlier::{EarlierResult, HashProgress, check_whole};
use super::lock::lock;
use super::names::{aside, complete};
use super::rename::rename_new;
use super::unmovable::{finish, is_waiting};
use super::{Existing, OutputDir};
use crate::error::{Error, Kind, Result};

/// The error if something has the name `target`, and replacing wasn't asked for.
pub(super) fn exists(target: &Path) -> Error {
    let remedy = "remove it, choose another name, or give --overwrite";
    if !is_waiting(target) {
        return Error::new(Kind::Usage, "the output exists").file(target).remedy(remedy);
    }
    let complete = complete(target);
    let what = format!(
        "the output exists; a run that was replacing it was stopped, and has left a complete result at {}",
        complete.display()
    );
    Error::new(Kind::Usage, what).file(target).remedy(format!("rename one of them, or {remedy}"))
}

/// Recovers what a run left under a hidden name if it was killed while it replaced an earlier
/// result. Gives the name `target` to the earlier result if it was moved away, or to the complete
/// new one if the earlier one was being removed. Returns whether there was anything to recover.
///
/// # Errors
/// As for [`OutputDir::create_watched`].
pub(super) fn bring_back(
    target: &Path,
    existing: Existing,
    watch: HashProgress<'_>,
) -> Result<bool> {
    let (aside, complete) = (aside(target), complete(target));
    if is_waiting(target) {
        // A run may still be working there.
        lock(target, &File::open(&complete).map_err(|e| not_back(target, e))?)?;
    }
    let has_target = target.symlink_metadata().is_ok();
    match [&complete, &aside].into_iter().find(|hidden| is_directory(hidden)) {
        Some(hidden) if !has_target => {
            rename_new(hidden, target).map_err(|e| not_back(target, e))?
        }
        // This user asks for no less than the killed run's did.
        Some(hidden) if *hidden == complete && existing == Existing::Replaced => {
            finish_replacing(target, hidden, watch)?
        }
        _ => return Ok(false),
    }
    let checked = OutputDir::check(target, existing);
    checked.map_err(|error| if existing == Existing::Kept { kept(target) } else { error })?;
    Ok(true)
}

/// Replaces the earlier result at `target` by the complete one at `complete`.
fn finish_replacing(target: &Path, complete: &Path, watch: HashProgress<'_>) -> Result<()> {
    check_whole(complete, watch)?;
    let found = EarlierResult::look(target, watch)?;
    finish(target, found.names()).map_err(|e| not_back(target, e))
}

fn not_back(target: &Path, error: io::Error) -> Error {
    Error::io("cannot bring this back", target, error)
}

fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// The error if the earlier result was brought back to `target` and stays there.
fn kept(target: &Path) -> Error {
    let what = "the output exists: it is what a run left that was stopped while it replaced it, and was brought back";
    Error::new(Kind::Usage, what)
        .file(target)
        .remedy("look at it; remove it, choose another name, or give --overwrite")
}
