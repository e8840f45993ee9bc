//! Windows of tokens, filled as tokens come.

/// The windows of a label.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    length: usize,
    /// Whether they run across documents.
    pack: bool,
    current: Vec<u32>,
    /// Those that are done, each of at least two tokens.
    pub done: Vec<Vec<u32>>,
    /// Tokens in them.
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
                self.done.push(window);
            }
        }
    }
}
