//! Which file is meant, and in which state.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use crate::locations::Id;

/// One state of one file or directory. A file system may give an inode that became free to the next
/// file at once, and a file may be edited in place: every write, every change of name, and in a
/// directory every name that comes or goes, moves the time of change, which nobody can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    id: Id,
    bytes: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

impl Version {
    /// Whether both are states of one file or directory.
    pub fn is_of_same(&self, other: &Self) -> bool {
        self.id == other.id
    }

    pub fn of(found: &Metadata) -> Self {
        Self { id: Id::of(found), bytes: found.len(), changed: (found.ctime(), found.ctime_nsec()) }
    }
}
