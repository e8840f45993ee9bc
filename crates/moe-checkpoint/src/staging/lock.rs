//! Locks outputs against other runs of this program.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
use crate::locations::FileId;

/// Maximum number of times that a name is opened. Each retry means that another run has just ended.
const MAX_TRIES: usize = 1000;

/// Opens `hidden` with `open` and locks it. Retries if a run that was ending removed or renamed the
/// file in between.
pub(super) fn locked(
    target: &Path,
    hidden: &Path,
    open: impl Fn() -> io::Result<File>,
) -> Result<File> {
    let mut vanished = None;
    for _ in 0..MAX_TRIES {
        let file = match open() {
            Err(e) if has_vanished(&e, hidden) => {
                vanished = Some(e);
                continue;
            }
            other => other.map_err(|e| cannot_create(hidden, e))?,
        };
        vanished = None;
        lock(target, &file)?;
        let of_file = FileId::of(&file.metadata().map_err(|e| cannot_create(hidden, e))?);
        if fs::symlink_metadata(hidden).is_ok_and(|there| FileId::of(&there) == of_file) {
            return Ok(file);
        }
    }
    // Some directories, such as those in /proc, fail with NotFound because no file can be created
    // in them.
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

/// Returns options for opening hidden files. Symbolic links, which an unpacked archive may contain,
/// aren't followed.
pub(super) fn open_options(flags: OFlags) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((flags | OFlags::NOFOLLOW).bits() as i32);
    options
}
