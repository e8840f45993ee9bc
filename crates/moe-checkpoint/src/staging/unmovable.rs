//! Earlier results that can't be renamed, so that their files are removed one by one before the new
//! result gets the name. overlayfs moves no directory of a lower layer (without `redirect_dir`), as
//! that of a result which a container's image ships; XFS none of another project.
//!
//! Meanwhile the new result, which is complete and on the disk, is called
//! `.OUT.complete-moe-convert`. Who is killed then leaves it there, beside what is left of the
//! earlier one, and the next run with `--overwrite` ends what was begun ([`finish`]).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::names::{complete, parent_of};
use super::rename::{rename_new, sync_directory};
use crate::manifest::MANIFEST_FILE;
use crate::result::{LOG_FILE, RECEIPT_FILE, RUN_FILE};

/// A new result that couldn't take the place of an earlier one.
#[derive(Debug)]
pub(super) struct Unreplaced {
    /// What the new result is called.
    pub new: PathBuf,
    /// Why the earlier one can't be replaced; None where it is another by now than the one that was
    /// looked at.
    pub why: Option<io::Error>,
}

/// Gives `staging`, which is complete and on the disk, the name `target`, where an earlier result
/// with the files `listed` is removed first.
pub(super) fn replace_by_removal<'a>(
    staging: &Path,
    target: &Path,
    listed: impl Iterator<Item = &'a str>,
) -> Result<(), Unreplaced> {
    let complete = complete(target);
    let set_aside = rename_new(staging, &complete);
    set_aside.map_err(|why| Unreplaced { new: staging.to_owned(), why: Some(why) })?;
    // Nothing is removed before the disk knows that name.
    let finished = sync_directory(&parent_of(target)).and_then(|()| finish(target, listed));
    finished.map_err(|why| Unreplaced { new: complete, why: Some(why) })
}

/// Removes the earlier result `target`, of which these `listed` files may be there still, and gives
/// its name to the complete one beside it.
pub(super) fn finish<'a>(target: &Path, listed: impl Iterator<Item = &'a str>) -> io::Result<()> {
    remove_listed(target, listed)?;
    rename_new(&complete(target), target)
}

/// Removes the directory `target` and the files of a result in it; anything else that lies there by
/// now stays, with the directory around it.
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

/// A step of removing a result.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Removed {
    /// Below the result.
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

/// The files of a result that lists `listed`, and the folders that they lie in, in an order in
/// which what is left after any number of steps is known for what it is: what says of a file that
/// it is the result's goes after that file.
pub(super) fn in_order<'a>(listed: impl Iterator<Item = &'a str>) -> Vec<Removed> {
    const LAST: [&str; 2] = [RECEIPT_FILE, MANIFEST_FILE];
    let files: BTreeSet<&str> = listed.filter(|name| !LAST.contains(name)).collect();
    let folders = files.iter().copied().flat_map(|name: &str| Path::new(name).ancestors().skip(1));
    let folders: BTreeSet<&Path> =
        folders.filter(|folder| !folder.as_os_str().is_empty()).collect();
    let files = files.into_iter().chain([LOG_FILE, RUN_FILE]).map(Removed::file);
    // What lies in a folder sorts behind it.
    let folders = folders.into_iter().rev().map(Removed::folder);
    files.chain(folders).chain(LAST.map(Removed::file)).collect()
}

/// Whether the directory `target` is what the last step but one of [`finish`] has left: the list of
/// files alone, beside the complete result.
pub(super) fn is_remainder(target: &Path) -> bool {
    let names: Vec<_> = fs::read_dir(target)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    names == [MANIFEST_FILE] && is_waiting(target)
}

/// Whether a complete result waits for the name `target` since a run was killed, or works.
pub(super) fn is_waiting(target: &Path) -> bool {
    complete(target).symlink_metadata().is_ok_and(|found| found.is_dir())
}
