//! How text becomes sequences.

use moe_checkpoint::{Error, Kind, Result};

use crate::chat::Clock;
use crate::text::Room;

/// How text becomes sequences.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenizeOptions {
    /// Documents are cut into windows of this many tokens; each is a sequence of its own.
    pub sequence_length: usize,
    /// Size of the vocabulary, which no token id may reach.
    pub vocab: usize,
    /// At most this many tokens are kept of each domain.
    pub max_tokens: Option<usize>,
    /// Windows run across the documents of a domain, so that short ones fill them.
    pub pack: bool,
    /// Which windows are kept: drawn at random with this seed; the first ones without.
    pub sample: Option<u64>,
    /// A chat template may hold at most this many bytes.
    pub memory_bytes: Option<u64>,
    /// What all tokens may take, if anything bounds them.
    pub room: Option<Room>,
    /// The present, for chat templates that write the date.
    pub clock: Clock,
}

impl TokenizeOptions {
    pub(super) fn check(&self) -> Result<()> {
        if self.sequence_length >= 2 {
            return Ok(());
        }
        Err(Error::new(Kind::Usage, "a sequence length below 2 leaves nothing to predict")
            .remedy("raise --sequence-length"))
    }
}
