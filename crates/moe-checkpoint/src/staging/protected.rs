//! Checks whether an output can and should be replaced. A rename depends only on the directory and
//! would fail only after all work is done, so this is checked early.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, StatxAttributes, StatxFlags, accessat, statx};
use rustix::process::geteuid;

use super::names::parent_of;
use crate::error::{Error, Kind, Result};

/// Refuses to replace the file or directory `found` at `path` if someone has protected it, or this
/// user couldn't write to it or move it.
///
/// # Errors
/// [`Kind::Usage`] in these cases.
pub(super) fn check_replaceable(path: &Path, found: &Metadata) -> Result<()> {
    if is_protected(path, found) {
        return Err(Error::new(Kind::Usage, "the output exists and is write-protected, so that it is not replaced")
            .file(path)
            .remedy("choose another name, or allow it with chmod u+w (or chattr -ia) if it is yours to replace"));
    }
    let access = if found.is_dir() { Access::WRITE_OK | Access::EXEC_OK } else { Access::WRITE_OK };
    if accessat(CWD, path, access, AtFlags::EACCESS).is_err() {
        let what = "the output exists, and you have no right to write to it";
        return Err(Error::new(Kind::Usage, what)
            .file(path)
            .remedy("choose another name, or allow it with chmod u+w if it is yours to replace"));
    }
    if is_held_by_owner(path, found) {
        let what = "the output exists and is another user's, in a directory where only its owner may move it (chmod +t)";
        return Err(Error::new(Kind::Usage, what)
            .file(path)
            .remedy("choose another name, or another directory"));
    }
    Ok(())
}

/// Whether write permission for `path` was removed. Root could write anyway, but the bits were
/// removed on purpose.
fn is_protected(path: &Path, found: &Metadata) -> bool {
    found.mode() & 0o222 == 0 || has(path, StatxAttributes::IMMUTABLE | StatxAttributes::APPEND)
}

/// Refuses the directory `dir` for outputs if nothing in it can be renamed, as finished outputs
/// must be. Files could still be added to such a directory.
///
/// # Errors
/// [`Kind::Usage`] in this case.
pub(super) fn check_takes_names(dir: &Path) -> Result<()> {
    if !has(dir, StatxAttributes::APPEND) {
        return Ok(());
    }
    let what = "nothing in this directory can be renamed (chattr +a), as the output must be when it is complete";
    Err(Error::new(Kind::Usage, what)
        .file(dir)
        .remedy("choose another directory, or allow it with chattr -a"))
}

/// Whether `path` is in a directory such as /tmp, where users can move only their own files.
fn is_held_by_owner(path: &Path, found: &Metadata) -> bool {
    const STICKY: u32 = 0o1000;
    let user = geteuid();
    let Ok(parent) = parent_of(path).metadata() else { return false };
    let owners = [parent.uid(), found.uid()];
    !user.is_root() && parent.mode() & STICKY != 0 && !owners.contains(&user.as_raw())
}

/// Refuses to replace what was `found` at `path` if something is mounted there, such as a
/// container's volume, since nothing can take its name.
///
/// # Errors
/// [`Kind::Usage`] in this case.
pub(super) fn check_no_mount(path: &Path, found: &Metadata) -> Result<()> {
    if !is_mount_point(path, found) {
        return Ok(());
    }
    let what =
        "the output is a mount point, whose name nothing else can take when the result is complete";
    let remedy = match path.file_name().filter(|_| found.is_dir()) {
        Some(name) => format!("give a name in it, such as {}", path.join(name).display()),
        None => "give a name in a directory that is mounted as a whole".to_owned(),
    };
    Err(Error::new(Kind::Usage, what).file(path).remedy(remedy))
}

/// The error for a mount point `path` within what would be removed.
pub(crate) fn mounted(path: &Path) -> Error {
    Error::new(
        Kind::Usage,
        "something is mounted here, and would be emptied together with the directory around it",
    )
    .file(path)
    .remedy("unmount it (umount), or choose another output")
}

/// Whether something is mounted at `path`, a directory or file that was `found` there.
pub(crate) fn is_mount_point(path: &Path, found: &Metadata) -> bool {
    let stated = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    match stated {
        // A bind mount may be of the same file system.
        Ok(stated) if stated.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            stated.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
        }
        // For Linux before 5.8.
        _ => parent_of(path).metadata().is_ok_and(|parent| parent.dev() != found.dev()),
    }
}

/// Whether `path` has one of `attributes`; false if its file system doesn't say.
fn has(path: &Path, attributes: StatxAttributes) -> bool {
    let stated = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    stated.is_ok_and(|stated| stated.stx_attributes.intersects(attributes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_refused_with_a_name_that_works() {
        let refused = |path: &str| {
            let path = Path::new(path);
            check_no_mount(path, &path.symlink_metadata().unwrap())
        };
        let error = refused("/proc").unwrap_err();
        assert!(
            error.kind() == Kind::Usage && error.to_string().contains("such as /proc/proc"),
            "{error}"
        );
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        refused(&dir.path().to_string_lossy()).unwrap();
        refused(&dir.path().join("file").to_string_lossy()).unwrap();
    }
}
