//! Token sequences that go through a model together.

use std::ops::Range;
use std::path::Path;

use moe_checkpoint::{Error, Kind, Result, json};

/// Sequences of token ids, end to end. Positions count from 0 in each, and no sequence attends to
/// another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// All ids in order.
    pub ids: Vec<u32>,
    /// The range of each sequence in `ids`.
    pub spans: Vec<Range<usize>>,
}

impl Batch {
    /// Joins `sequences` end to end.
    pub fn new<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self::default();
        for sequence in sequences {
            let start = batch.ids.len();
            batch.ids.extend_from_slice(sequence);
            batch.spans.push(start..batch.ids.len());
        }
        batch
    }

    /// Reads `[[ids of a sequence], …]` from a JSON file.
    ///
    /// # Errors
    /// [`Kind::Malformed`] if the file has another form, or no token.
    pub fn from_json(path: &Path) -> Result<Self> {
        const REMEDY: &str = "give a JSON list of lists of token ids, such as [[1, 2, 3], [4, 5]]";
        let sequences: Vec<Vec<u32>> = json::read_expecting(path, REMEDY)?;
        if sequences.iter().any(Vec::is_empty) || sequences.is_empty() {
            return Err(Error::new(Kind::Malformed, "a sequence without tokens")
                .file(path)
                .remedy(REMEDY));
        }
        Ok(Self::new(sequences.iter().map(Vec::as_slice)))
    }

    /// Checks that a vocabulary of `vocab` tokens has all ids, which came from `file`.
    ///
    /// # Errors
    /// [`Kind::Usage`] if it hasn't.
    pub fn check_vocabulary(&self, vocab: usize, file: &Path) -> Result<()> {
        check_ids(&self.ids, vocab).map_err(|e| e.file(file))
    }

    /// Returns the sequences in order.
    pub fn sequences(&self) -> impl Iterator<Item = &[u32]> {
        self.spans.iter().map(|span| &self.ids[span.clone()])
    }

    /// Returns the number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Returns the length of the longest sequence.
    pub fn longest(&self) -> usize {
        self.spans.iter().map(ExactSizeIterator::len).max().unwrap_or(0)
    }
}

/// Checks that a vocabulary of `vocab` tokens has all `ids`.
pub(crate) fn check_ids(ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::new(Kind::Usage, format!("token id {id}, but the vocabulary has {vocab}"))
            .remedy("give ids below that; where a tokenizer gave them, it is of another model, or has tokens that this one lacks rows for")),
    }
}
