//! Earlier results that can't be renamed: their files are removed one by one before the new result
//! gets the name. overlayfs can't move a directory of a lower layer (without `redirect_dir`), such
//! as a result in a container's image; XFS can't move one of another project.
//!
//! Meanwhile the new result is complete and on the disk as `.OUT.complete-moe-convert`. A kill
//! leaves it there next to the rest of the earlier one, and the next run with `--overwrite`
//! completes the replacement ([`finish`]).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::names::{complete, parent_of};
use super::rename::{rename_new, sync_directory};
use crate::manifest::MANIFEST_FILE;
use crate::result::{LOG_FILE, RECEIPT_FILE, RUN_FILE};

/// A new result that couldn't replace an earlier one.
#[derive(Debug)]
pub(super) struct Unreplaced {
    /// The current path of the new result.
    pub new: PathBuf,
    /// The reason why the earlier one can't be replaced; None if it has changed since it was
    /// checked.
    pub why: Option<io::Error>,
}

/// Gives `staging`, which is complete and on the disk, the name `target`, after removing the
/// earlier result there, which has the files `listed`.
pub(super) fn replace_by_removal<'a>(
    staging: &Path,
    target: &Path,
    listed: impl Iterator<Item = &'a str>,
) -> Result<(), Unreplaced> {
    let complete = complete(target);
    let set_aside = rename_new(staging, &complete);
    set_aside.map_err(|why| Unreplaced { new: staging.to_owned(), why: Some(why) })?;
    // Nothing is removed before that name is on the disk.
    let finished = sync_directory(&parent_of(target)).and_then(|()| finish(target, listed));
    finished.map_err(|why| Unreplaced { new: complete, why: Some(why) })
}

/// Removes the earlier result `target`, of which the `listed` files may still exist, and gives its
/// name to the complete one next to it.
pub(super) fn finish<'a>(target: &Path, listed: impl Iterator<Item = &'a str>) -> io::Result<()> {
    remove_listed(target, listed)?;
    rename_new(&complete(target), target)
}

/// Removes the directory `target` and the files of a result in it. Anything else that is there by
/// now stays, with the directories around it.
fn remove_listed<'a>(target: &Path, listed: impl Iterator<Item = &'a str>) -> io::Result<()> {
    for removed in in_order(listed) {
        let path = target.join(&removed.name);
        let result = if removed.is_dir { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        match result {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    fs::remove_dir(target)
}

/// A file or folder to remove, as one step.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Removed {
    /// Path within the result.
    pub name: PathBuf,
    pub is_dir: bool,
}

impl Removed {
    fn file(name: &str) -> Self {
        Self { name: name.into(), is_dir: false }
    }

    fn folder(name: &Path) -> Self {
        Self { name: name.to_owned(), is_dir: true }
    }
}

/// The files of a result that lists `listed`, and their folders, in the order of removal. A file
/// that identifies others as the result's comes after them, so that the rest can be recognized
/// after any step.
pub(super) fn in_order<'a>(listed: impl Iterator<Item = &'a str>) -> Vec<Removed> {
    const LAST: [&str; 2] = [RECEIPT_FILE, MANIFEST_FILE];
    let files: BTreeSet<&str> = listed.filter(|name| !LAST.contains(name)).collect();
    let folders = files.iter().copied().flat_map(|name: &str| Path::new(name).ancestors().skip(1));
    let folders: BTreeSet<&Path> =
        folders.filter(|folder| !folder.as_os_str().is_empty()).collect();
    let files = files.into_iter().chain([LOG_FILE, RUN_FILE]).map(Removed::file);
    // Reversed, since a folder sorts before the folders in it.
    let folders = folders.into_iter().rev().map(Removed::folder);
    files.chain(folders).chain(LAST.map(Removed::file)).collect()
}

/// Whether the directory `target` is what [`finish`] leaves before its last step: only the list of
/// files, next to the complete result.
pub(super) fn is_remainder(target: &Path) -> bool {
    let names: Vec<_> = fs::read_dir(target)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    names == [MANIFEST_FILE] && is_waiting(target)
}

/// Whether a complete result waits for the name `target`, left by a killed run or held by a running
/// one.
pub(super) fn is_waiting(target: &Path) -> bool {
    complete(target).symlink_metadata().is_ok_and(|found| found.is_dir())
}
