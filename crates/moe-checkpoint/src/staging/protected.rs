//! Write protection of what would be replaced: renaming over a file asks its directory alone, so that it has to be looked at here.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::error::{Error, Kind, Result};

/// Refuses to replace what `path` was `found` to be, a file or a directory, if somebody has protected it, or this user couldn't write to it.
///
/// # Errors
/// [`Kind::Usage`] then.
pub(super) fn check_writable(path: &Path, found: &Metadata) -> Result<()> {
    let access = if found.is_dir() { Access::WRITE_OK | Access::EXEC_OK } else { Access::WRITE_OK };
    // Root may do everything; who took the bits away meant it all the same.
    let is_protected = found.mode() & 0o222 == 0;
    if !is_protected && accessat(CWD, path, access, AtFlags::EACCESS).is_ok() {
        return Ok(());
    }
    let what = if is_protected {
        "the output exists and is write-protected, so that it is not replaced"
    } else {
        "the output exists, and you have no right to write to it"
    };
    Err(Error::new(Kind::Usage, what)
        .file(path)
        .remedy("choose another name, or allow it with chmod u+w if it is yours to replace"))
}
