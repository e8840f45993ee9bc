//! Kinds of files that text comes in.

use std::path::Path;

use moe_checkpoint::{Error, Kind, Result, without_mark};

use super::bytes::TextBytes;
use super::command::naming_file;
use super::source::{Origin, TextFile, ending};

/// As much of a file is looked at.
pub(super) const HEAD_BYTES: usize = 64 << 10;

/// A kind of file that text comes in: a row of [`super::kinds::KINDS`].
///
/// The beginning of a file is shown to [`FileKind::recognizes`] of each kind, in the order of the
/// table, until one says yes or refuses it; that one is asked to [`FileKind::open`] it. What is
/// unpacked, but not known for what it is, goes through the table again.
pub(super) trait FileKind: Sync {
    /// Whether a file that begins so is of this kind.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for what can't be text, with what makes text of it.
    fn recognizes(&self, head: &Head<'_>) -> Result<bool>;

    /// Makes a text of a file of this kind.
    ///
    /// # Errors
    /// What reading returns; [`Kind::Malformed`] for what can't be unpacked.
    fn open(&self, bytes: TextBytes, head: &Head<'_>) -> Result<Opened>;
}

/// What a file was opened as.
pub(super) enum Opened {
    Text(TextFile),
    /// Other bytes, which are a file of any kind.
    Unpacked(TextBytes, Box<dyn Origin>),
}

/// The beginning of a file.
pub(super) struct Head<'a> {
    /// What the file is called; its name only decides where content can't: a first line that is
    /// broken.
    pub name: &'a Path,
    pub bytes: &'a [u8],
    /// Whether that is all of it.
    pub is_all: bool,
}

impl Head<'_> {
    /// How many bytes stand before the text: those of a byte order mark.
    pub fn mark(&self) -> usize {
        self.bytes.len() - without_mark(self.bytes).len()
    }

    /// What stands behind a byte order mark and white space.
    pub fn body(&self) -> &[u8] {
        without_mark(self.bytes).trim_ascii_start()
    }

    /// What the name ends with.
    pub fn ending(&self) -> String {
        ending(self.name)
    }

    /// The error of a file that holds `what`; `remedy` makes text of `FILE`.
    pub fn refused(&self, what: &str, remedy: &str) -> Error {
        let what = format!("this is {what}; data is UTF-8 text or JSON Lines");
        Error::new(Kind::Unsupported, what).remedy(naming_file(remedy, self.name))
    }
}
