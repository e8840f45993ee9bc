//! A run whose checkpoint is open.

use std::sync::Arc;

use moe_checkpoint::{Checkpoint, Result, ScratchStore};
use moe_model::Model;

use crate::context::RunContext;

/// The first state of a run: its checkpoint is open.
pub(crate) struct Opened<'r> {
    pub run: RunContext<'r>,
    pub checkpoint: Checkpoint,
    /// The checkpoint's model, which the first pass converts.
    pub source: Model,
    /// Storage for made weights until they are written.
    pub scratch: Arc<ScratchStore>,
}

impl<'r> Opened<'r> {
    /// Opens the checkpoint that `run` converts.
    ///
    /// # Errors
    /// Errors of reading it.
    pub fn new(run: RunContext<'r>) -> Result<Self> {
        let checkpoint = Checkpoint::open(run.input)?;
        let source = Model::read(&checkpoint)?;
        let scratch = Arc::new(ScratchStore::new(run.scratch()));
        Ok(Self { run, checkpoint, source, scratch })
    }
}
