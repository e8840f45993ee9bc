//! The trait of all kinds of text files.

use std::path::Path;

use moe_checkpoint::{Error, Kind, Result, without_mark};

use super::bytes::TextBytes;
use super::command::naming_file;
use super::source::{TextFile, TextOrigin, ending};

/// Number of bytes at the start of a file that its kind is detected from.
pub(super) const HEAD_BYTES: usize = 64 << 10;

/// A kind of text file: a row of [`super::kinds::KINDS`].
///
/// The beginning of a file is passed to [`TextFormat::recognizes`] of each kind, in the order of
/// the table, until one accepts or refuses it. That one is called to [`TextFormat::open`] the file.
/// If the result is [`OpenedText::Unpacked`], its content goes through the table again.
pub(super) trait TextFormat: Sync {
    /// Returns whether a file that begins with `head` is of this kind.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a file that can't be text, with the command that makes text of it.
    fn recognizes(&self, head: &FileStart<'_>) -> Result<bool>;

    /// Opens a file of this kind as a text.
    ///
    /// # Errors
    /// Errors of reading; [`Kind::Malformed`] if it can't be unpacked.
    fn open(&self, bytes: TextBytes, head: &FileStart<'_>) -> Result<OpenedText>;
}

/// The result of opening a file.
pub(super) enum OpenedText {
    Text(TextFile),
    /// Other bytes, whose kind has yet to be detected.
    Unpacked(TextBytes, Box<dyn TextOrigin>),
}

/// The beginning of a file.
pub(super) struct FileStart<'a> {
    /// The file's name. It decides only if the content doesn't: a broken first line.
    pub name: &'a Path,
    pub bytes: &'a [u8],
    /// Whether this is the whole file.
    pub is_all: bool,
}

impl FileStart<'_> {
    /// Returns the length of the byte order mark, in bytes.
    pub fn mark(&self) -> usize {
        self.bytes.len() - without_mark(self.bytes).len()
    }

    /// Returns the bytes after a byte order mark and white space.
    pub fn body(&self) -> &[u8] {
        without_mark(self.bytes).trim_ascii_start()
    }

    /// Returns the ending of the name.
    pub fn ending(&self) -> String {
        ending(self.name)
    }

    /// Returns the error for a file that holds `what`; `remedy` makes text of `FILE`.
    pub fn refused(&self, what: &str, remedy: &str) -> Error {
        let what = format!("this is {what}; data is UTF-8 text or JSON Lines");
        Error::new(Kind::Unsupported, what).remedy(naming_file(remedy, self.name))
    }
}
