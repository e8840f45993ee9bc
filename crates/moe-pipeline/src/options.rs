//! How a pass is run.

use moe_math::Compute;

use crate::resources::ByteSize;
use crate::writing::WritingOptions;

/// How a pass is run.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Replace an earlier result.
    pub overwrite: bool,
    /// Go on with a training that was killed.
    pub resume: bool,
    /// Most bytes of a shard.
    pub max_shard_size: ByteSize,
    /// Random tokens on which the result is compared with its source; 0 for none.
    pub probe_tokens: usize,
    /// Where to compute.
    pub compute: Compute,
    /// Most memory that may be held; hidden states that are too many for it go to a scratch file.
    pub memory_budget: Option<ByteSize>,
}

impl ConvertOptions {
    /// How the result is written.
    pub fn writing(&self) -> WritingOptions {
        WritingOptions { max_shard_size: self.max_shard_size, probe_tokens: self.probe_tokens }
    }
}
