//! Gives finished outputs their names.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::names::aside;
use super::remove::remove_tree;
use crate::error::{Error, Kind};

/// Renames `from` to `to`. If that name is taken, uses a free one next to it, which is returned.
pub(super) fn rename_to_free(from: &Path, to: &Path) -> io::Result<Option<PathBuf>> {
    let is_dir = from.is_dir();
    let others = (2..).map(|number| numbered(to, number, is_dir));
    for (index, place) in std::iter::once(to.to_owned()).chain(others).enumerate() {
        match rename_new(from, &place) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.map(|()| (index > 0).then_some(place)),
        }
    }
    Ok(None)
}

/// The name of `path` with this number added. A file keeps its extension.
fn numbered(path: &Path, number: u32, is_dir: bool) -> PathBuf {
    match (path.file_stem(), path.extension()) {
        (Some(stem), Some(end)) if !is_dir => path.with_file_name(format!(
            "{}-{number}.{}",
            stem.to_string_lossy(),
            end.to_string_lossy()
        )),
        _ => path.with_file_name(format!(
            "{}-{number}",
            path.file_name().unwrap_or_default().to_string_lossy()
        )),
    }
}

/// The error if the result was renamed to `place` because something else has the name `target`.
/// `why` says why that can't be replaced; None if it appeared or changed while the run worked.
pub(super) fn in_the_way(target: &Path, place: &Path, why: Option<io::Error>) -> Error {
    let what =
        format!("this is in the way, and can't be replaced; the result is {}", place.display());
    let error =
        Error::new(Kind::Io, what).file(target).remedy("look at both, and rename the one you want");
    match why {
        Some(why) => error.source(why),
        None => error,
    }
}

/// The error if the result is complete under the hidden name `staging` and can't get the name
/// `target`.
pub(super) fn unmoved(staging: &Path, target: &Path, error: io::Error) -> Error {
    let hidden = staging.display();
    Error::io(
        format!("the result is complete, and can't be moved to its place; it is {hidden}"),
        target,
        error,
    )
    .better_remedy(format!("rename {hidden} before the next run to this output, which removes it"))
}

/// Exchanges `staging` with an earlier result at `target`; returns the earlier result's new name.
pub(super) fn replace(staging: &Path, target: &Path) -> io::Result<PathBuf> {
    match renameat_with(CWD, staging, CWD, target, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(staging.to_owned()),
        Err(Errno::INVAL | Errno::NOSYS) => replace_by_turns(staging, target),
        Err(e) => Err(e.into()),
    }
}

/// Like [`replace`], for file systems that can't exchange names, such as NFS. For a moment neither
/// has the name: a kill then leaves both directories complete, and [`super::OutputDir::create`]
/// recovers the earlier one.
pub(super) fn replace_by_turns(staging: &Path, target: &Path) -> io::Result<PathBuf> {
    let aside = aside(target);
    if aside.symlink_metadata().is_ok() {
        // A leftover of a run that was killed while it removed what it had replaced.
        remove_tree(&aside)?;
    }
    rename_new(target, &aside)?;
    match rename_new(staging, target) {
        Ok(()) => Ok(aside),
        Err(e) => rename_new(&aside, target).and(Err(e)),
    }
}

/// Renames `from` to `to`, which must not exist.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems don't support the flag. Between checking and renaming, something rarely
        // appears.
        Err(Errno::INVAL | Errno::NOSYS) => match to.symlink_metadata() {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(from, to),
        },
        other => Ok(other?),
    }
}

/// Waits until the names in `dir` are on the disk.
pub(super) fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all())
}

/// Waits until the names in `dir` and all of its folders are on the disk.
pub(super) fn sync_directories(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_directories(&entry.path())?;
        }
    }
    File::open(dir)?.sync_all()
}
