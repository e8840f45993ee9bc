//! Identifies a file and its state.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use crate::locations::FileId;

/// One state of one file or directory. A file system may reuse an inode at once, and a file may be
/// edited in place. But every write, every renaming and, in a directory, every name added or
/// removed sets the time of change, which users can't set themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    id: FileId,
    bytes: u64,
    /// Seconds and nanoseconds of the time of change.
    changed: (i64, i64),
}

impl Version {
    /// Whether both are states of one file or directory.
    pub fn is_of_same(&self, other: &Self) -> bool {
        self.id == other.id
    }

    pub fn of(found: &Metadata) -> Self {
        Self {
            id: FileId::of(found),
            bytes: found.len(),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}
