//! A data file whose content is known for what it is.

use std::ffi::OsStr;
use std::path::Path;

use super::bytes::TextBytes;
use super::documents::Documents;

/// A data file as a text of documents: what every kind of file is opened as.
pub(crate) struct TextFile {
    /// The text, read by position.
    pub bytes: TextBytes,
    pub(super) documents: &'static dyn Documents,
    pub(super) origin: Option<Box<dyn Origin>>,
}

/// What a text was made of, where the file as it lies there isn't the text.
pub(super) trait Origin {
    /// Says in words what it was made of.
    fn name(&self) -> &'static str;

    /// Where the file has the record whose line begins at byte `at` of `text`, in words; `None`
    /// where lines of the text are lines of the file, or where that can't be read.
    fn place(&self, text: &TextBytes, at: u64) -> Option<String> {
        let _ = (text, at);
        None
    }

    /// What a line of the text is in the file.
    fn unit(&self) -> &'static TextUnit {
        &LINE
    }
}

/// What a line of a text is in its file.
pub(super) struct TextUnit {
    /// A name for it.
    pub name: &'static str,
    /// Whether it is a line there, in which something is in a column.
    pub is_line: bool,
    /// What gives each of them to a filter of jq.
    pub jq: &'static str,
}

const LINE: TextUnit = TextUnit { name: "line", is_line: true, jq: "" };

impl TextFile {
    /// `bytes` as `documents` divide them.
    pub(super) fn of(bytes: TextBytes, documents: &'static dyn Documents) -> Self {
        Self { bytes, documents, origin: None }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.bytes.path()
    }

    /// How many bytes of text there are.
    pub fn len(&self) -> u64 {
        self.bytes.len()
    }

    /// Whether its bytes are those of the file, in their places.
    pub fn is_plain(&self) -> bool {
        self.bytes.file().is_some()
    }

    /// Whether its name says the same of it as its content.
    pub fn is_named_so(&self) -> bool {
        self.documents.is_named_so(&self.ending())
    }

    /// What it was taken for, in words.
    pub fn taken_for(&self) -> String {
        let documents = self.documents.taken_for(&self.ending());
        match &self.origin {
            Some(origin) => format!("{documents}, out of {}", origin.name()),
            None => documents,
        }
    }

    /// What a line of it is in the file.
    pub(super) fn unit(&self) -> &'static TextUnit {
        self.origin.as_ref().map_or(&LINE, |origin| origin.unit())
    }

    /// Where the file has the record whose line begins at byte `at`, in words, unless it is a line
    /// there.
    pub(super) fn place(&self, at: u64) -> Option<String> {
        self.origin.as_ref()?.place(&self.bytes, at)
    }

    /// What its name ends with, before a `.gz`.
    fn ending(&self) -> String {
        match ending(self.path()).as_str() {
            "gz" => ending(&self.path().with_extension("")),
            own => own.to_owned(),
        }
    }
}

/// What the name `path` ends with.
pub(super) fn ending(path: &Path) -> String {
    path.extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase()
}
