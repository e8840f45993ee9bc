//! What a run leaves that is killed while it replaces an earlier result: both, whole, or the new
//! one whole.

use std::fs::File;
use std::path::Path;

use super::earlier::{EarlierResult, HashProgress, check_whole};
use super::lock::lock;
use super::names::{aside, complete};
use super::rename::rename_new;
use super::unmovable::{finish, is_waiting};
use super::{Existing, OutputDir};
use crate::error::{Error, Kind, Result};

/// That something has the name `target`, which nobody asked to replace.
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

/// Gives `target` what a run that was killed while it replaced an earlier result has left under a
/// hidden name: the earlier result where that was moved away, or the complete new one, for which
/// the earlier one is being removed. Whether there was any such thing.
///
/// # Errors
/// As for [`OutputDir::create_watched`].
pub(super) fn bring_back(
    target: &Path,
    existing: Existing,
    watch: HashProgress<'_>,
) -> Result<bool> {
    let fail = |e| Error::io("cannot bring this back", target, e);
    let (aside, complete) = (aside(target), complete(target));
    if is_waiting(target) {
        // A run may be at work there.
        lock(target, &File::open(&complete).map_err(fail)?)?;
    }
    let is_dir = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_dir());
    let has_target = target.symlink_metadata().is_ok();
    match [&complete, &aside].into_iter().find(|hidden| is_dir(hidden)) {
        Some(hidden) if !has_target => rename_new(hidden, target).map_err(fail)?,
        // Whoever asks for that asks for no less than the killed run was asked for.
        Some(hidden) if *hidden == complete && existing == Existing::Replaced => {
            check_whole(hidden, watch)?;
            let found = EarlierResult::look(target, watch)?;
            finish(target, found.names()).map_err(fail)?;
        }
        _ => return Ok(false),
    }
    OutputDir::check(target, existing).map_err(|error| match existing {
        Existing::Kept => {
            let what =
                "the output exists: it is what a run left that was stopped while it replaced it, and was brought back";
            Error::new(Kind::Usage, what)
                .file(target)
                .remedy("look at it; remove it, choose another name, or give --overwrite")
        }
        Existing::Replaced => error,
    })?;
    Ok(true)
}
