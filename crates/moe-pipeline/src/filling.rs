//! Filling files with content that can fail for other reasons than the disk.

use std::io;

use moe_checkpoint::{Error, Result};

/// The reason why a file wasn't filled.
pub(crate) enum Unfilled {
    /// The disk refused it.
    Disk(io::Error),
    /// The content couldn't be computed.
    Content(Error),
}

impl From<io::Error> for Unfilled {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

impl From<Error> for Unfilled {
    fn from(error: Error) -> Self {
        Self::Content(error)
    }
}

/// Keeps the error of making a file's content, while writers of files know only errors of the disk.
/// `keep` is called within such a writer, and `instead_of` with its outcome.
#[derive(Default)]
pub(crate) struct Failure(Option<Error>);

impl Failure {
    /// The outcome of filling a file, for the writer of that file.
    ///
    /// # Errors
    /// The error of the disk, or one that only stands for the error that is kept.
    pub fn keep(&mut self, filled: Result<(), Unfilled>) -> io::Result<()> {
        filled.map_err(|unfilled| match unfilled {
            Unfilled::Disk(error) => error,
            Unfilled::Content(error) => {
                self.0 = Some(error);
                io::Error::other("the content of this file can't be made")
            }
        })
    }

    /// The outcome of writing the file, where nothing else has failed before.
    ///
    /// # Errors
    /// The error that was kept, or else the writer's.
    pub fn instead_of<T>(self, written: Result<T>) -> Result<T> {
        self.0.map_or(written, Err)
    }
}
