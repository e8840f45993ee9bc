//! Locks on outputs, so that other runs of this program keep away from them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
use crate::locations::Id;

const TRIES: usize = 1000;

/// Opens `hidden` with `open` and locks it. It tries again if a run that is ending has just removed
/// or renamed it.
pub(super) fn locked(
    target: &Path,
    hidden: &Path,
    open: impl Fn() -> io::Result<File>,
) -> Result<File> {
    let mut vanished = None;
    for _ in 0..TRIES {
        let file = match open() {
            Err(e) if has_vanished(&e, hidden) => {
                vanished = Some(e);
                continue;
            }
            other => other.map_err(|e| cannot_create(hidden, e))?,
        };
        vanished = None;
        lock(target, &file)?;
        let of_file = Id::of(&file.metadata().map_err(|e| cannot_create(hidden, e))?);
        if fs::symlink_metadata(hidden).is_ok_and(|there| Id::of(&there) == of_file) {
            return Ok(file);
        }
    }
    // Some directories, such as those in /proc, report in this way that they take no files.
    Err(vanished.map_or_else(|| busy(target), |e| cannot_create(hidden, e)))
}

/// Whether `error` says that `hidden` was removed or renamed while it was opened.
fn has_vanished(error: &io::Error, hidden: &Path) -> bool {
    error.kind() == io::ErrorKind::NotFound && hidden.parent().is_some_and(Path::is_dir)
}

fn cannot_create(hidden: &Path, error: io::Error) -> Error {
    let error = Error::io("cannot create the output", hidden, error);
    match hidden.symlink_metadata() {
        Ok(_) => error.better_remedy(
            "remove this, which a stopped run may have left, or choose another output: a run needs the name",
        ),
        Err(_) => error,
    }
}

/// Locks `file`, which is `target` or will become it.
pub(super) fn lock(target: &Path, file: &File) -> Result<()> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(busy(target)),
        Err(e) => Err(Error::io("cannot lock this output", target, e.into())),
    }
}

fn busy(target: &Path) -> Error {
    Error::new(Kind::Io, "another run is writing this output")
        .file(target)
        .remedy("wait for it, or choose another output")
}

/// Options for opening hidden files: links, which an archive may contain, aren't followed.
pub(super) fn options_of(flags: OFlags) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((flags | OFlags::NOFOLLOW).bits() as i32);
    options
}
