//! Removes directories of runs, but nothing that is mounted in them, since a mount's contents
//! belong elsewhere.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::protected::{is_mount_point, mounted};
use crate::error::{Error, Result};

/// Removes the directory `dir` and everything in it.
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] if something is mounted there; then nothing was removed.
pub(super) fn remove_tree(dir: &Path) -> io::Result<()> {
    if let Some(mount) = mount_in(dir)? {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("{} is a mount point", mount.display()),
        ));
    }
    fs::remove_dir_all(dir)
}

/// Refuses to remove the directory `dir` if it is a mount point or contains one.
///
/// # Errors
/// [`crate::Kind::Usage`], naming the mount point.
pub(super) fn check_no_mount_in(dir: &Path) -> Result<()> {
    match mount_in(dir).map_err(|e| Error::io("cannot look through this directory", dir, e))? {
        Some(mount) => Err(mounted(&mount)),
        None => Ok(()),
    }
}

/// A mount point in `dir`, or `dir` itself; it may be a file. Links are not followed.
fn mount_in(dir: &Path) -> io::Result<Option<PathBuf>> {
    let found = dir.symlink_metadata()?;
    if is_mount_point(dir, &found) {
        return Ok(Some(dir.to_owned()));
    }
    if !found.is_dir() {
        return Ok(None);
    }
    for entry in fs::read_dir(dir)? {
        match mount_in(&entry?.path()) {
            // Another writer may have removed it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Ok(None) => {}
            found => return found,
        }
    }
    Ok(None)
}
