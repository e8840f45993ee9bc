//! The paths, options and progress that all parts of a run share.

use std::path::Path;

use moe_checkpoint::Result;
use moe_forward::Storage;
use moe_math::Compute;
use moe_model::Model;

use crate::needs::WorkLimits;
use crate::options::ConvertOptions;
use crate::progress::Progress;
use crate::resources::{directory_of, storage};

/// The places that a run reads and writes, its options, and the receiver of its progress.
#[derive(Clone, Copy)]
pub(crate) struct RunContext<'a> {
    /// The checkpoint that is converted.
    pub input: &'a Path,
    /// The directory of the result.
    pub output: &'a Path,
    pub options: &'a ConvertOptions,
    pub progress: &'a dyn Progress,
}

impl<'a> RunContext<'a> {
    pub fn compute(&self) -> &'a Compute {
        &self.options.compute
    }

    /// The directory for hidden states and made weights that don't fit in memory.
    pub fn scratch(&self) -> &'a Path {
        directory_of(self.output)
    }

    /// The limits of the work: scratch directory, memory budget and device.
    pub fn work(&self) -> WorkLimits<'a> {
        let budget = self.options.memory_budget;
        WorkLimits { budget, compute: self.compute(), scratch: self.scratch() }
    }

    /// The storage for hidden states of a sweep of `tokens` tokens over `model`.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Usage`] for a budget that not even the smallest block fits in.
    pub fn storage(&self, model: &Model, tokens: usize) -> Result<Storage> {
        let budget = self.options.memory_budget;
        storage(model, tokens, budget, self.compute(), self.scratch())
    }
}
