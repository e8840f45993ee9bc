//! What was read of a data file, for receipts and messages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use moe_checkpoint::{Hasher, Result, open_file, sha256_bytes, sha256_file};
use std::io::Read as _;

use crate::chat::Dates;
use crate::text::{TextFile, Windows};

/// Files that aren't larger are hashed whole, however much was read of them: that takes a tenth of
/// a second.
const HASHED_BYTES: u64 = 64 << 20;
/// What stands before the hash of what was read of a file, where that isn't the file's.
const OF_PARTS: &str = "parts:";
/// What stands before the hash of a file and of the dates that a chat template wrote into its text.
const DATED: &str = "dated:";
/// A note names so many dates.
const SHOWN_DATES: usize = 3;
/// A note names formats and dates up to so many characters.
const SHOWN_CHARACTERS: usize = 40;

/// What was read of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextRead {
    /// The file.
    pub path: PathBuf,
    /// What it was taken for, in words.
    pub taken_for: String,
    /// Whether its name says the same.
    pub is_named_so: bool,
    /// Documents that were read; at places, parts of long ones count as such.
    pub documents: usize,
    /// Tokens in windows.
    pub tokens: usize,
    /// Tokens that stood alone in a window, and were dropped: there is nothing to predict.
    pub alone: usize,
    /// Tokens that were dropped since they are masked, or padding.
    pub padding: usize,
    /// Whether the file, or its label, holds more than was wanted.
    pub has_more: bool,
    /// The dates that a chat template wrote into its text, by their formats.
    dates: Dates,
    /// How it was read.
    how: How,
    /// Bytes of text.
    bytes: u64,
    /// Whether the text's bytes are the file's.
    is_plain: bool,
}

/// How a file was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum How {
    /// To its end.
    Whole,
    /// So many bytes of it.
    Beginning(u64),
    /// At places that were drawn.
    Places {
        /// Cells that were read, and all.
        cells: [u64; 2],
        /// Hash of all that what was found depends on.
        digest: String,
    },
}

impl TextRead {
    /// What `windows` has that wasn't there `before`, out of `file`, with `dates` of a chat
    /// template in it.
    pub(crate) fn of(
        file: &TextFile,
        windows: &Windows,
        before: &Windows,
        how: How,
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
            has_more: how != How::Whole,
            dates,
            how,
            bytes: file.len(),
            is_plain: file.is_plain(),
        }
    }

    /// What a user should know of it; nothing where the file is what its name says and was read
    /// whole.
    pub fn note(&self) -> Option<String> {
        let places = match &self.how {
            How::Places { cells: [read, all], .. } => {
                Some(format!("read at {read} of {all} places, which the seed drew"))
            }
            _ => None,
        };
        let taken = (!self.is_named_so).then(|| format!("taken for {}", self.taken_for));
        let said: Vec<String> = taken.into_iter().chain(places).chain(self.dated()).collect();
        (!said.is_empty()).then(|| format!("{}: {}", self.path.display(), said.join("; ")))
    }

    /// That its text is of this day alone, if a chat template wrote the date into it.
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

    /// The hash of what was read, where the file is large and only part of it was: one that another
    /// content of the rest doesn't change, since it changes no result either.
    fn digest_of_parts(&self) -> Result<Option<String>> {
        if self.bytes <= HASHED_BYTES || !self.is_plain {
            return Ok(None);
        }
        match &self.how {
            How::Whole => Ok(None),
            How::Places { digest, .. } => Ok(Some(digest.clone())),
            How::Beginning(end) => beginning(&self.path, self.bytes, *end).map(Some),
        }
    }
}

/// The hash of the first `end` bytes of a file, and of its size.
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

/// A format and what it gave, each up to so many characters as a note has room for.
fn shown_date((format, date): (&String, &String)) -> String {
    let shortened = |text: &str| text.chars().take(SHOWN_CHARACTERS).collect::<String>();
    format!("{:?} for {:?}", shortened(date), shortened(format))
}

/// The hashes of those of `texts` that the hash of the file doesn't tell apart: `parts:` and the
/// SHA-256 of the file's size and of all bytes that the result depends on, where only parts were
/// read; `dated:` and the SHA-256 of that and of the dates that a chat template wrote, where it
/// wrote any. Other files are to be hashed whole.
///
/// # Errors
/// What reading returns.
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

/// The hash of all `reads` of the file `path`, unless it is the file's.
fn digest_of(path: &Path, reads: &[&TextRead]) -> Result<Option<String>> {
    let parts: Vec<Option<String>> =
        reads.iter().map(|read| read.digest_of_parts()).collect::<Result<_>>()?;
    // What is read whole for another purpose is hashed whole.
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
