//! Fills windows with tokens as they come.

use std::collections::BTreeSet;

/// Bytes of a window in addition to its tokens: its header and unused capacity.
const WINDOW_BYTES: u64 = 64;

/// Which of the windows are held.
#[derive(Debug, Default)]
enum KeptTokens {
    #[default]
    All,
    /// No window is held, only the number of tokens of each.
    Lengths(Vec<u32>),
    /// The windows with these numbers.
    Chosen { numbers: BTreeSet<usize>, seen: usize },
}

/// The windows of a label.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    length: usize,
    kept: KeptTokens,
    /// Whether windows run across documents.
    pack: bool,
    current: Vec<u32>,
    /// The finished windows that are held, each of at least two tokens.
    pub done: Vec<Vec<u32>>,
    /// Tokens in `done`, and bytes that they take.
    pub held: usize,
    pub bytes: u64,
    /// Tokens in all finished windows, whether held or not.
    pub tokens: usize,
    /// Number of documents seen.
    pub documents: usize,
    /// Number of tokens that were alone in a window, where there is nothing to predict.
    pub alone: usize,
    /// Number of tokens that were masked, or padding.
    pub padding: usize,
}

impl Windows {
    pub fn new(length: usize, pack: bool) -> Self {
        Self { length, pack, ..Self::default() }
    }

    /// Creates windows of which only those with these numbers are held, counted from the first.
    pub fn chosen(length: usize, pack: bool, numbers: BTreeSet<usize>) -> Self {
        Self { kept: KeptTokens::Chosen { numbers, seen: 0 }, ..Self::new(length, pack) }
    }

    /// Returns whether there are `enough` tokens; never if None.
    pub fn have(&self, enough: Option<usize>) -> bool {
        enough.is_some_and(|enough| self.tokens >= enough)
    }

    /// Drops all windows, and from now on keeps only their lengths.
    pub fn count_only(&mut self) {
        let lengths = self.done.drain(..).map(|window| window.len() as u32).collect();
        (self.kept, self.held, self.bytes) = (KeptTokens::Lengths(lengths), 0, 0);
        self.done.shrink_to_fit();
    }

    /// Returns the length of each window, if only lengths are kept.
    pub fn lengths(&self) -> Option<&[u32]> {
        match &self.kept {
            KeptTokens::Lengths(lengths) => Some(lengths),
            _ => None,
        }
    }

    /// Returns the counts so far, without the windows.
    pub fn counts(&self) -> Self {
        let Self { tokens, documents, alone, padding, .. } = *self;
        Self { tokens, documents, alone, padding, ..Self::default() }
    }

    /// Adds the next tokens of a document.
    pub fn push(&mut self, mut ids: &[u32]) {
        while !ids.is_empty() {
            let (now, later) = ids.split_at(ids.len().min(self.length - self.current.len()));
            self.current.extend_from_slice(now);
            ids = later;
            if self.current.len() == self.length {
                self.close();
            }
        }
    }

    /// Ends a document.
    pub fn end_document(&mut self) {
        self.documents += 1;
        if !self.pack {
            self.close();
        }
    }

    /// Ends a file: no window runs across two files.
    pub fn end_file(&mut self) {
        self.close();
    }

    fn close(&mut self) {
        let window = std::mem::take(&mut self.current);
        match window.len() {
            0 => {}
            1 => self.alone += 1,
            tokens => {
                self.tokens += tokens;
                self.keep(window);
            }
        }
    }

    fn keep(&mut self, window: Vec<u32>) {
        match &mut self.kept {
            KeptTokens::Lengths(lengths) => return lengths.push(window.len() as u32),
            KeptTokens::Chosen { numbers, seen } => {
                *seen += 1;
                if !numbers.contains(&(*seen - 1)) {
                    return;
                }
            }
            KeptTokens::All => {}
        }
        self.held += window.len();
        self.bytes += 4 * window.capacity() as u64 + WINDOW_BYTES;
        self.done.push(window);
    }
}
