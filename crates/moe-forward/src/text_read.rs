//! Facts about the part of a data file that was read, for receipts and messages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use moe_checkpoint::{Hasher, Result, open_file, sha256_bytes, sha256_file};
use std::io::Read as _;

use crate::chat::Dates;
use crate::text::{TextFile, Windows};

/// Files up to this size are hashed whole, however much of them was read: that takes a tenth of a
/// second.
const HASHED_BYTES: u64 = 64 << 20;
/// Prefix of the hash of the parts that were read, if it isn't the hash of the file.
const OF_PARTS: &str = "parts:";
/// Prefix of the hash of a file and of the dates that a chat template wrote into its text.
const DATED: &str = "dated:";
/// Maximum number of dates that a note names.
const SHOWN_DATES: usize = 3;
/// Maximum number of characters of a format or date in a note.
const SHOWN_CHARACTERS: usize = 40;

/// The facts about the part of a data file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextRead {
    /// The file's path.
    pub path: PathBuf,
    /// A description of the kind that the file was detected as.
    pub taken_for: String,
    /// Whether the file's name agrees with that.
    pub is_named_so: bool,
    /// Number of documents read. In a sample, each part of a long document counts as one.
    pub documents: usize,
    /// Number of tokens in windows.
    pub tokens: usize,
    /// Number of tokens that were dropped because they were alone in a window: there is nothing to
    /// predict.
    pub alone: usize,
    /// Number of tokens that were dropped because they are masked, or padding.
    pub padding: usize,
    /// Whether the file, or its label, holds more than was wanted.
    pub has_more: bool,
    /// The dates that a chat template wrote into its text, by their formats.
    dates: Dates,
    /// Which part was read.
    how: ReadExtent,
    /// Number of bytes of text.
    bytes: u64,
    /// Whether the text's bytes are the file's.
    is_plain: bool,
}

/// Which part of a file was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReadExtent {
    /// All of it.
    Whole,
    /// This many bytes from its beginning.
    Beginning(u64),
    /// Places that were drawn.
    Places {
        /// Number of cells that were read, and number of all cells.
        cells: [u64; 2],
        /// Hash of everything that the sample depends on.
        digest: String,
    },
}

impl TextRead {
    /// Makes the facts about `file` from the counts of `windows` less those `before` it was read.
    /// `dates` were written by a chat template.
    pub(crate) fn of(
        file: &TextFile,
        windows: &Windows,
        before: &Windows,
        how: ReadExtent,
        dates: Dates,
    ) -> Self {
        Self {
            path: file.path().to_owned(),
            taken_for: file.taken_for(),
            is_named_so: file.is_named_so(),
            documents: windows.documents - before.documents,
            tokens: windows.tokens - before.tokens,
            alone: windows.alone - before.alone,
            padding: windows.padding - before.padding,
            has_more: how != ReadExtent::Whole,
            dates,
            how,
            bytes: file.len(),
            is_plain: file.is_plain(),
        }
    }

    /// Returns a note for the user; None if the file is what its name says and was read whole.
    pub fn note(&self) -> Option<String> {
        let places = match &self.how {
            ReadExtent::Places { cells: [read, all], .. } => {
                Some(format!("read at {read} of {all} places, which the seed drew"))
            }
            _ => None,
        };
        let taken = (!self.is_named_so).then(|| format!("taken for {}", self.taken_for));
        let said: Vec<String> = taken.into_iter().chain(places).chain(self.dated()).collect();
        (!said.is_empty()).then(|| format!("{}: {}", self.path.display(), said.join("; ")))
    }

    /// Returns a note that the text depends on the day, if the chat template wrote a date into it.
    fn dated(&self) -> Option<String> {
        if self.dates.is_empty() {
            return None;
        }
        let mut dates: Vec<String> = self.dates.iter().take(SHOWN_DATES).map(shown_date).collect();
        if self.dates.len() > SHOWN_DATES {
            dates.push(format!("{} more", self.dates.len() - SHOWN_DATES));
        }
        let dates = dates.join(", ");
        Some(format!(
            "the chat template writes the date ({dates}), so that its tokens are others on another day"
        ))
    }

    /// Returns the hash of the parts that were read, if the file is large and wasn't read whole. It
    /// doesn't change with the rest of the file, which doesn't affect results.
    fn digest_of_parts(&self) -> Result<Option<String>> {
        if self.bytes <= HASHED_BYTES || !self.is_plain {
            return Ok(None);
        }
        match &self.how {
            ReadExtent::Whole => Ok(None),
            ReadExtent::Places { digest, .. } => Ok(Some(digest.clone())),
            ReadExtent::Beginning(end) => beginning(&self.path, self.bytes, *end).map(Some),
        }
    }
}

/// Returns the hash of the first `end` bytes of a file, and of its size.
fn beginning(path: &Path, bytes: u64, end: u64) -> Result<String> {
    let mut hasher = Hasher::default();
    hasher.update(format!("{end} of {bytes} bytes").as_bytes());
    let mut left = open_file(path)?.take(end);
    let mut chunk = vec![0; 1 << 20];
    loop {
        let read = left
            .read(&mut chunk)
            .map_err(|e| moe_checkpoint::Error::io("cannot read this file", path, e))?;
        if read == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&chunk[..read]);
    }
}

/// Returns a format and its date, each cut to the length that a note has room for.
fn shown_date((format, date): (&String, &String)) -> String {
    format!("{:?} for {:?}", shortened(date), shortened(format))
}

fn shortened(text: &str) -> String {
    text.chars().take(SHOWN_CHARACTERS).collect()
}

/// Returns the hashes of those `texts` that the hash of the file doesn't identify. Where only parts
/// were read: `parts:` and the SHA-256 of the file's size and of all bytes that the result depends
/// on. Where a chat template wrote dates: `dated:` and the SHA-256 of that hash and the dates. All
/// other files are to be hashed whole.
///
/// # Errors
/// Errors of reading.
pub fn digests_of<'a>(
    texts: impl IntoIterator<Item = &'a TextRead>,
) -> Result<BTreeMap<PathBuf, String>> {
    let mut reads: BTreeMap<&Path, Vec<&TextRead>> = BTreeMap::new();
    for text in texts {
        reads.entry(&text.path).or_default().push(text);
    }
    let mut digests = BTreeMap::new();
    for (path, reads) in reads {
        if let Some(digest) = digest_of(path, &reads)? {
            digests.insert(path.to_owned(), digest);
        }
    }
    Ok(digests)
}

/// Returns the hash of all `reads` of the file `path`; None if the file's own hash identifies them.
fn digest_of(path: &Path, reads: &[&TextRead]) -> Result<Option<String>> {
    let parts: Vec<Option<String>> =
        reads.iter().map(|read| read.digest_of_parts()).collect::<Result<_>>()?;
    // A file that is read whole for any use is hashed whole.
    let parts: Option<Vec<String>> = parts.into_iter().collect();
    let digest = parts.map(|parts| joined(&parts));
    let dates: BTreeSet<_> = reads.iter().flat_map(|read| &read.dates).collect();
    if dates.is_empty() {
        return Ok(digest);
    }
    let digest = digest.map_or_else(|| sha256_file(path), Ok)?;
    Ok(Some(format!("{DATED}{}", sha256_bytes(format!("{digest} {dates:?}").as_bytes()))))
}

fn joined(digests: &[String]) -> String {
    match digests {
        [one] => format!("{OF_PARTS}{one}"),
        many => format!("{OF_PARTS}{}", sha256_bytes(many.concat().as_bytes())),
    }
}
