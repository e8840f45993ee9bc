//! The bytes of a text, read by position.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Result, Scratch};

/// The bytes of a text, in the user's file or in a scratch file.
pub(crate) struct TextBytes {
    path: PathBuf,
    source: ByteSource,
    /// Position of the first byte of text, after a byte order mark.
    start: u64,
    end: u64,
}

enum ByteSource {
    File(File),
    /// A scratch file, used if the file itself can't be read by position.
    Scratch(Scratch),
}

impl TextBytes {
    /// Wraps the first `end` bytes of `file`, which lies at `path`.
    pub fn of_file(path: &Path, file: File, end: u64) -> Self {
        Self { path: path.to_owned(), source: ByteSource::File(file), start: 0, end }
    }

    /// Wraps the first `end` bytes of `scratch`, which were unpacked from these bytes.
    pub fn unpacked(&self, scratch: Scratch, end: u64) -> Self {
        Self { path: self.path.clone(), source: ByteSource::Scratch(scratch), start: 0, end }
    }

    /// Skips the first `bytes` bytes.
    pub fn skipping(self, bytes: usize) -> Self {
        Self { start: self.start + bytes as u64, ..self }
    }

    /// Returns the path that the user gave.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the user's file; None if the text is in a scratch file.
    pub fn file(&self) -> Option<&File> {
        match &self.source {
            ByteSource::File(file) => Some(file),
            ByteSource::Scratch(_) => None,
        }
    }

    /// Returns the number of bytes of text.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Returns the offset in the user's file of byte `at` of the text; None if the text is in a
    /// scratch file.
    pub fn before(&self, at: u64) -> Option<u64> {
        self.file().map(|_| self.start + at)
    }

    /// Fills `buffer` with the text's bytes from `at` on.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Io`], also if the file has become shorter.
    pub fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        match &self.source {
            ByteSource::File(file) => file
                .read_exact_at(buffer, self.start + at)
                .map_err(|e| Error::io("cannot read this data file", &self.path, e)),
            ByteSource::Scratch(scratch) => scratch.read_at(self.start + at, buffer),
        }
    }
}
