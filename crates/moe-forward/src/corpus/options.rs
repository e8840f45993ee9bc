//! Options for turning text into sequences.

use moe_checkpoint::{Error, Kind, Result};

use crate::chat::Clock;
use crate::text::Room;

/// Options for turning text into sequences.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenizeOptions {
    /// Number of tokens in a window. Documents are cut into windows; each is a sequence of its own.
    pub sequence_length: usize,
    /// Size of the vocabulary; all token ids must be below it.
    pub vocab: usize,
    /// Maximum number of tokens of each domain; None for all.
    pub max_tokens: Option<usize>,
    /// Whether windows run across the documents of a domain, so that short documents fill them.
    pub pack: bool,
    /// The seed by which windows are drawn; None for the first ones.
    pub sample: Option<u64>,
    /// Maximum memory of a chat template, in bytes.
    pub memory_bytes: Option<u64>,
    /// The room for all tokens, if a memory budget limits it.
    pub room: Option<Room>,
    /// The clock of chat templates that write the date.
    pub clock: Clock,
}

impl TokenizeOptions {
    pub(super) fn check(&self) -> Result<()> {
        if self.sequence_length >= 2 {
            return Ok(());
        }
        Err(Error::new(Kind::Usage, "a sequence length below 2 leaves nothing to predict")
            .options(&["--sequence-length"])
            .remedy("raise --sequence-length"))
    }
}
