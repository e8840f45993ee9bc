//! The file that a pass writes its decisions to.

use std::io::Write as _;
use std::path::Path;

use moe_checkpoint::{Result, Seal, StagedFile, check_file, is_stream, json, sha256_bytes};
use serde_json::Value;

use crate::file_kinds::PLAN;

/// A plan to be written.
pub(super) struct PlanFile<'p> {
    path: &'p Path,
    staged: StagedFile,
}

impl<'p> PlanFile<'p> {
    /// Makes sure that a plan can be written to `path`.
    ///
    /// # Errors
    /// As for [`check_file`] and [`StagedFile::create`].
    pub fn new(path: &'p Path, overwrite: bool) -> Result<Self> {
        let staged = StagedFile::create(path, check_file(path, &PLAN, overwrite)?)?;
        Ok(Self { path, staged })
    }

    /// Writes `plan`. Returns its hash; None for a pipe, which can't be read again.
    ///
    /// # Errors
    /// Errors of writing.
    pub fn write(self, plan: &Value) -> Result<Option<String>> {
        let text = Seal::JSON.close(&json::to_pretty(plan));
        self.staged.commit(|file| file.write_all(text.as_bytes()))?;
        Ok((!is_stream(self.path)).then(|| sha256_bytes(text.as_bytes())))
    }
}
