//! Options of a run that hold for every pass.

use moe_math::Compute;

use crate::resources::ByteSize;
use crate::writing::WritingOptions;

/// Options of a run that hold for every pass.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Whether to replace an earlier result.
    pub overwrite: bool,
    /// Whether to resume a training that was killed.
    pub resume: bool,
    /// Maximum size of a shard.
    pub max_shard_size: ByteSize,
    /// Number of random tokens on which the result is compared with its source; 0 for no
    /// comparison.
    pub probe_tokens: usize,
    /// The device and precision to compute with.
    pub compute: Compute,
    /// Maximum memory to hold; hidden states that don't fit go to a scratch file. None for no
    /// limit.
    pub memory_budget: Option<ByteSize>,
}

impl ConvertOptions {
    /// The options that the bytes of the result depend on.
    pub fn writing(&self) -> WritingOptions {
        WritingOptions { max_shard_size: self.max_shard_size, probe_tokens: self.probe_tokens }
    }
}
