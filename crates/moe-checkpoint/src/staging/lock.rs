//! Locks on what is being written, which another run of this program then keeps away from.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
use crate::locations::Id;

const TRIES: usize = 1000;

/// Gives what `open` opens at `hidden`, locked. It is tried again where a run that ends has just taken
/// that away from there.
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
    // Some directories, such as those of /proc, take no files and say so in this way.
    Err(vanished.map_or_else(|| busy(target), |e| cannot_create(hidden, e)))
}

/// Whether `error` says that `hidden` was taken away while it was opened.
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

/// Locks `file`, which is, or becomes, `target`.
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

/// How hidden files are opened: a link under their name, such as an archive may bring along, would
/// lead anywhere.
pub(super) fn options_of(flags: OFlags) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((flags | OFlags::NOFOLLOW).bits() as i32);
    options
}
