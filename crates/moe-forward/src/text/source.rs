//! A data file whose content is known for what it is.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Kind, Result, Scratch, open_file};

use super::recognize::{Content, Format, HEAD_BYTES, recognize};
use super::unpack::{lines_of_array, unpacked};

/// What a file was unpacked from whose records are the elements of a list.
pub(super) const ARRAY: &str = "a JSON array";

/// How much is read at once where all is looked at.
const CHUNK_BYTES: u64 = 1 << 20;

/// A data file, read by position.
pub(crate) struct TextFile {
    path: PathBuf,
    bytes: ByteSource,
    /// Where the text begins: behind a byte order mark.
    start: u64,
    end: u64,
    /// What it holds.
    pub format: Format,
    /// How it was made readable, where it isn't so as it lies there.
    pub unpacked: Option<&'static str>,
    /// The list whose elements these lines are, byte for byte in the same places.
    list: Option<Box<Self>>,
}

/// Where its bytes are.
enum ByteSource {
    File(File),
    /// In a nameless file, since the file itself can't be read by position.
    Scratch(Scratch),
}

impl TextFile {
    /// Opens `path`.
    ///
    /// # Errors
    /// [`Kind::Missing`] where there is no such file, [`Kind::Malformed`] where it is no regular
    /// one, [`Kind::Unsupported`] for a known format that isn't text.
    pub fn open(path: &Path) -> Result<Self> {
        if path.metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
            return Err(Error::new(Kind::Missing, "no such data file")
                .file(path)
                .remedy("check the path, which --data, --held-out or --pool gives"));
        }
        let file = open_file(path)?;
        let end =
            file.metadata().map_err(|e| Error::io("cannot read this data file", path, e))?.len();
        let file = Self::whole(path, ByteSource::File(file), end);
        file.recognized(path).map_err(|e| e.file(path))
    }

    fn whole(path: &Path, bytes: ByteSource, end: u64) -> Self {
        Self {
            path: path.to_owned(),
            bytes,
            start: 0,
            end,
            format: Format::Prose,
            unpacked: None,
            list: None,
        }
    }

    /// Finds out what it holds, which is called `name`.
    fn recognized(mut self, name: &Path) -> Result<Self> {
        let mut head = vec![0; (self.end as usize).min(HEAD_BYTES)];
        self.read_at(0, &mut head)?;
        let is_all = head.len() as u64 == self.end;
        match recognize(name, &head, is_all)? {
            Content::Text { format, start } => {
                (self.format, self.start) = (format, start);
                Ok(self)
            }
            Content::Gzip if self.unpacked.is_some() => {
                Err(Error::new(Kind::Unsupported, "this is gzip within gzip")
                    .remedy("unpack it first: gunzip"))
            }
            Content::Gzip => {
                let ByteSource::File(file) = &self.bytes else {
                    unreachable!("a scratch file was unpacked")
                };
                let (scratch, end) = unpacked(file)?;
                let mut inner = Self::whole(&self.path, ByteSource::Scratch(scratch), end);
                inner.unpacked = Some("gzip");
                inner.recognized(&name.with_extension(""))
            }
            Content::Array { start } => {
                self.start = start;
                let (scratch, end) = lines_of_array(&self)?;
                let mut lines = Self::whole(&self.path, ByteSource::Scratch(scratch), end);
                lines.format = Format::Records;
                lines.unpacked = Some(ARRAY);
                lines.list = Some(Box::new(self));
                Ok(lines)
            }
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its name says the same of it as its content.
    pub fn is_named_so(&self) -> bool {
        let ending = self.ending();
        match self.format {
            Format::Prose => other_format(&ending).is_none(),
            Format::Records => matches!(ending.as_str(), "jsonl" | "ndjson" | "jl" | "json"),
        }
    }

    /// What its name ends with, before a `.gz`.
    fn ending(&self) -> String {
        let ending = |path: &Path| {
            path.extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase()
        };
        match ending(&self.path).as_str() {
            "gz" => ending(&self.path.with_extension("")),
            _ => ending(&self.path),
        }
    }

    /// How many bytes of the file stand before byte `at` of its text; none where the text lies
    /// elsewhere.
    pub fn bytes_before(&self, at: u64) -> Option<u64> {
        self.is_plain().then_some(self.start + at)
    }

    /// Where the list, if it is one, has the record whose bytes begin at `at`: which record it is,
    /// and on which line it begins, both from 1 on. None where that can't be read. All before it is
    /// read for it.
    pub fn place_in_list(&self, at: u64) -> Option<(u64, u64)> {
        let list = self.list.as_ref()?;
        let (mut records, mut line) = (0, 1);
        let mut has_begun = false;
        let mut from = 0;
        while from < self.len() {
            let bytes = CHUNK_BYTES.min(self.len() - from) as usize;
            let (mut own, mut of_list) = (vec![0; bytes], vec![0; bytes]);
            self.read_at(from, &mut own).and_then(|()| list.read_at(from, &mut of_list)).ok()?;
            for (offset, (own, of_list)) in (from..).zip(own.into_iter().zip(of_list)) {
                // Blanks, and what is a line break in the list, may stand before the record.
                if offset >= at && !own.is_ascii_whitespace() {
                    return Some((records, line));
                }
                line += u64::from(of_list == b'\n');
                has_begun |= of_list == b'[';
                records += u64::from(has_begun && own == b'\n');
            }
            from += bytes as u64;
        }
        None
    }

    /// How many bytes of text there are.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether its bytes are those of the file, in their places.
    pub fn is_plain(&self) -> bool {
        matches!(self.bytes, ByteSource::File(_))
    }

    /// Fills `buffer` with the text's bytes from `at` on.
    ///
    /// # Errors
    /// [`Kind::Io`], as where the file has become shorter.
    pub fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        match &self.bytes {
            ByteSource::File(file) => file
                .read_exact_at(buffer, self.start + at)
                .map_err(|e| Error::io("cannot read this data file", &self.path, e)),
            ByteSource::Scratch(scratch) => scratch.read_at(self.start + at, buffer),
        }
    }

    /// What it was taken for, in words.
    pub fn taken_for(&self) -> String {
        let format = match (self.format, other_format(&self.ending())) {
            (Format::Prose, None) => "plain text, one document",
            (Format::Prose, Some(what)) => {
                return format!("plain text, one document, {what} included");
            }
            (Format::Records, _) => "JSON Lines, a document a line",
        };
        self.unpacked.map_or(format.to_owned(), |packed| format!("{format}, out of {packed}"))
    }
}

/// What a file named for another format has around its text, which is taken for text, too.
fn other_format(ending: &str) -> Option<&'static str> {
    Some(match ending {
        "csv" => "commas, quotes and the header of CSV",
        "tsv" | "tab" | "psv" => "separators and the header of the table",
        "html" | "htm" | "xhtml" | "xml" | "svg" | "rss" => "tags",
        "yaml" | "yml" | "toml" | "ini" => "keys",
        "tex" | "bib" => "commands",
        "rtf" => "commands of RTF",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_a_list_is_found_on_its_line_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.json");
        let text = "\u{feff}\n[\n\n  {\"text\":\n \"a\\nb\"}, {\"text\": \"c\"},\n  {\"text\": \"d\"}\n]\n";
        std::fs::write(&path, text).unwrap();
        let file = TextFile::open(&path).unwrap();
        let at = |record: &str| {
            let bytes = text.find(record).unwrap() - "\u{feff}".len();
            // A line of the records begins behind a comma or bracket.
            let mut before = text.as_bytes()["\u{feff}".len()..][..bytes].iter();
            let start = before.rposition(|byte| b"[,".contains(byte)).unwrap() + 1;
            file.place_in_list(start as u64).unwrap()
        };
        assert_eq!(at("{\"text\":\n"), (1, 4));
        assert_eq!(at("{\"text\": \"c\""), (2, 5));
        assert_eq!(at("{\"text\": \"d\""), (3, 6));
        std::fs::write(&path, "{\"text\": \"a\"}\n").unwrap();
        assert_eq!(TextFile::open(&path).unwrap().place_in_list(0), None);
        for (text, line) in
            [("[{},\n,{}]", 2), ("[{}]\n\nx", 3), ("[\n{},\n{}\n", 4), ("[{},\n]", 2)]
        {
            std::fs::write(&path, text).unwrap();
            let error = TextFile::open(&path).map(drop).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line}")), "{text}: {error}");
        }
    }
}
