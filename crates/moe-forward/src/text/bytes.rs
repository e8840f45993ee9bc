//! The bytes of a text, by position.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Result, Scratch};

/// The bytes of a text, which lie in a file of the user or in a nameless one.
pub(crate) struct TextBytes {
    path: PathBuf,
    source: ByteSource,
    /// Where the text begins: behind a byte order mark.
    start: u64,
    end: u64,
}

enum ByteSource {
    File(File),
    /// They lie in a nameless file, since the file itself can't be read by position.
    Scratch(Scratch),
}

impl TextBytes {
    /// The first `end` bytes of `file`, which lies at `path`.
    pub fn of_file(path: &Path, file: File, end: u64) -> Self {
        Self { path: path.to_owned(), source: ByteSource::File(file), start: 0, end }
    }

    /// What was unpacked from these bytes: the first `end` of `scratch`.
    pub fn unpacked(&self, scratch: Scratch, end: u64) -> Self {
        Self { path: self.path.clone(), source: ByteSource::Scratch(scratch), start: 0, end }
    }

    /// The text behind the first `bytes`.
    pub fn behind(self, bytes: usize) -> Self {
        Self { start: self.start + bytes as u64, ..self }
    }

    /// The path that the user gave.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that they lie in, if it is the user's.
    pub fn file(&self) -> Option<&File> {
        match &self.source {
            ByteSource::File(file) => Some(file),
            ByteSource::Scratch(_) => None,
        }
    }

    /// How many bytes of text there are.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// How many bytes of the user's file stand before byte `at` of the text; none where the text
    /// lies elsewhere.
    pub fn before(&self, at: u64) -> Option<u64> {
        self.file().map(|_| self.start + at)
    }

    /// Fills `buffer` with the text's bytes from `at` on.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Io`], as where the file has become shorter.
    pub fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        match &self.source {
            ByteSource::File(file) => file
                .read_exact_at(buffer, self.start + at)
                .map_err(|e| Error::io("cannot read this data file", &self.path, e)),
            ByteSource::Scratch(scratch) => scratch.read_at(self.start + at, buffer),
        }
    }
}
