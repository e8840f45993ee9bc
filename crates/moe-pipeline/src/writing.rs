//! Options for writing a checkpoint. The bytes of the result depend on them, as they do on the
//! passes' options.

use moe_checkpoint::{Error, Kind, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::resources::ByteSize;

/// Options for writing a checkpoint, whatever the passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct WritingOptions {
    /// Maximum size of a weights file
    #[arg(long, value_name = "SIZE", default_value = SHARD_SIZE)]
    pub max_shard_size: ByteSize,

    /// Random tokens on which the result is compared with its source while it is written; 0 for
    /// none
    #[arg(long, value_name = "TOKENS", default_value_t = Self::default().probe_tokens)]
    pub probe_tokens: usize,
}

/// The size at which most hubs split files.
const SHARD_SIZE: &str = "5GB";

/// A limit in bytes this low is a forgotten unit (`5` for `5GB`).
const MIN_SHARD_BYTES: u64 = 1000;
/// Comparing more tokens is the task of `eval`.
const MAX_PROBE_TOKENS: usize = 4096;

impl WritingOptions {
    /// Refuses options that no model can be written with.
    ///
    /// # Errors
    /// [`Kind::Usage`].
    pub fn check(&self) -> Result<()> {
        let size = self.max_shard_size;
        if size.0 < MIN_SHARD_BYTES {
            let what = format!(
                "--max-shard-size {} is {size}: every tensor would have a file of its own",
                size.0
            );
            return Err(Error::new(Kind::Usage, what)
                .options(&["--max-shard-size"])
                .remedy(format!("write the unit, such as {}GB", size.0.clamp(1, 999))));
        }
        if self.probe_tokens > MAX_PROBE_TOKENS {
            let what =
                format!("--probe-tokens {} is more than {MAX_PROBE_TOKENS}", self.probe_tokens);
            return Err(Error::new(Kind::Usage, what)
                .options(&["--probe-tokens"])
                .remedy("lower --probe-tokens; eval measures on as much text as you like"));
        }
        Ok(())
    }
}

impl Default for WritingOptions {
    fn default() -> Self {
        let max_shard_size = SHARD_SIZE.parse().expect("it is written as a size");
        Self { max_shard_size, probe_tokens: 32 }
    }
}
