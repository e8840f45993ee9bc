//! A data file whose kind is known.

use std::ffi::OsStr;
use std::path::Path;

use super::bytes::TextBytes;
use super::documents::Documents;

/// A data file as a text of documents. Files of all kinds are opened as this.
pub(crate) struct TextFile {
    /// The bytes of the text, read by position.
    pub bytes: TextBytes,
    pub(super) documents: &'static dyn Documents,
    pub(super) origin: Option<Box<dyn TextOrigin>>,
}

/// The origin of a text that was converted from the file, such as an unpacked one.
pub(super) trait TextOrigin {
    /// Returns a description of the original file, for messages.
    fn name(&self) -> &'static str;

    /// Describes the place in the file of the record whose line begins at byte `at` of `text`. None
    /// if lines of the text are lines of the file, or if the place can't be read.
    fn place(&self, text: &TextBytes, at: u64) -> Option<String> {
        let _ = (text, at);
        None
    }

    /// Returns what a line of the text corresponds to in the file.
    fn unit(&self) -> &'static TextUnit {
        &LINE
    }
}

/// What a line of a text corresponds to in its file.
pub(super) struct TextUnit {
    /// The name of the unit, for messages.
    pub name: &'static str,
    /// Whether the unit is a line of the file, so that columns mean something.
    pub is_line: bool,
    /// The jq expression that yields each unit.
    pub jq: &'static str,
}

const LINE: TextUnit = TextUnit { name: "line", is_line: true, jq: "" };

impl TextFile {
    /// Wraps `bytes`, which `documents` divides into documents.
    pub(super) fn of(bytes: TextBytes, documents: &'static dyn Documents) -> Self {
        Self { bytes, documents, origin: None }
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        self.bytes.path()
    }

    /// Returns the number of bytes of text.
    pub fn len(&self) -> u64 {
        self.bytes.len()
    }

    /// Returns whether the text's bytes are those of the file, at the same positions.
    pub fn is_plain(&self) -> bool {
        self.bytes.file().is_some()
    }

    /// Returns whether the file's name agrees with its content.
    pub fn is_named_so(&self) -> bool {
        self.documents.is_named_so(&self.ending())
    }

    /// Describes the kind that the file was detected as.
    pub fn taken_for(&self) -> String {
        let documents = self.documents.taken_for(&self.ending());
        match &self.origin {
            Some(origin) => format!("{documents}, out of {}", origin.name()),
            None => documents,
        }
    }

    /// Returns what a line of the text corresponds to in the file.
    pub(super) fn unit(&self) -> &'static TextUnit {
        self.origin.as_ref().map_or(&LINE, |origin| origin.unit())
    }

    /// Describes the place in the file of the record whose line begins at byte `at`; None if the
    /// record is a line of the file.
    pub(super) fn place(&self, at: u64) -> Option<String> {
        self.origin.as_ref()?.place(&self.bytes, at)
    }

    /// Returns the ending of the file's name, before any `.gz`.
    fn ending(&self) -> String {
        match ending(self.path()).as_str() {
            "gz" => ending(&self.path().with_extension("")),
            own => own.to_owned(),
        }
    }
}

/// Returns the ending of the name `path`.
pub(super) fn ending(path: &Path) -> String {
    path.extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase()
}
