//! A checkpoint that was opened for a run.

use std::sync::Arc;

use moe_checkpoint::{Checkpoint, Result, ScratchStore};
use moe_model::Model;

use crate::context::RunContext;

/// The state that a run begins in.
pub(crate) struct Opened<'r> {
    pub run: RunContext<'r>,
    pub checkpoint: Checkpoint,
    /// The checkpoint's model, which the first pass converts.
    pub source: Model,
    /// Where made weights are kept until they are written.
    pub spill: Arc<ScratchStore>,
}

impl<'r> Opened<'r> {
    /// Opens the checkpoint that `run` converts.
    ///
    /// # Errors
    /// What reading it returns.
    pub fn new(run: RunContext<'r>) -> Result<Self> {
        let checkpoint = Checkpoint::open(run.input)?;
        let source = Model::read(&checkpoint)?;
        let spill = Arc::new(ScratchStore::new(run.scratch()));
        Ok(Self { run, checkpoint, source, spill })
    }
}
