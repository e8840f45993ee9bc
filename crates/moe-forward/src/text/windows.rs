//! Windows of tokens, filled as tokens come.

use std::collections::BTreeSet;

/// Bytes of a window beside its tokens: where it is, and what it leaves unused.
const WINDOW_BYTES: u64 = 64;

/// Which windows are held of those that are seen.
#[derive(Debug, Default)]
enum KeptTokens {
    #[default]
    All,
    /// None is held; this is how many tokens each has.
    Lengths(Vec<u32>),
    /// The windows that have these numbers.
    Chosen { numbers: BTreeSet<usize>, seen: usize },
}

/// The windows of a label.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    length: usize,
    kept: KeptTokens,
    /// Whether they run across documents.
    pack: bool,
    current: Vec<u32>,
    /// The windows that are done and held, each of at least two tokens.
    pub done: Vec<Vec<u32>>,
    /// Tokens in these, and bytes that they take.
    pub held: usize,
    pub bytes: u64,
    /// Tokens in all that are done.
    pub tokens: usize,
    /// Documents that were seen.
    pub documents: usize,
    /// Tokens that stood alone in a window, where there is nothing to predict.
    pub alone: usize,
    /// Tokens that were masked, or padding.
    pub padding: usize,
}

impl Windows {
    pub fn new(length: usize, pack: bool) -> Self {
        Self { length, pack, ..Self::default() }
    }

    /// Keeps the windows that have these numbers, counted from the first that is done.
    pub fn chosen(length: usize, pack: bool, numbers: BTreeSet<usize>) -> Self {
        Self { kept: KeptTokens::Chosen { numbers, seen: 0 }, ..Self::new(length, pack) }
    }

    /// Whether there are `enough` tokens, if that is bounded.
    pub fn have(&self, enough: Option<usize>) -> bool {
        enough.is_some_and(|enough| self.tokens >= enough)
    }

    /// Holds no window any more, only how long each is.
    pub fn count_only(&mut self) {
        let lengths = self.done.drain(..).map(|window| window.len() as u32).collect();
        (self.kept, self.held, self.bytes) = (KeptTokens::Lengths(lengths), 0, 0);
        self.done.shrink_to_fit();
    }

    /// How long each window is, if that is all that was kept.
    pub fn lengths(&self) -> Option<&[u32]> {
        match &self.kept {
            KeptTokens::Lengths(lengths) => Some(lengths),
            _ => None,
        }
    }

    /// What was counted until now, without the windows.
    pub fn counts(&self) -> Self {
        let Self { tokens, documents, alone, padding, .. } = *self;
        Self { tokens, documents, alone, padding, ..Self::default() }
    }

    /// Takes the next tokens of a document.
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

    /// Ends a file: no window runs across two.
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
