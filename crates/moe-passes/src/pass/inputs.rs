//! What a pass reads beside the model that it converts.

use std::path::{Path, PathBuf};

use moe_forward::DataSpec;

/// Every path that the options of a pass name, once. Hashes, the check of outputs against inputs,
/// dry runs and reuse follow from it.
#[derive(Debug, Clone, Default)]
pub struct Inputs<'a> {
    /// Other checkpoints, in the order of [`super::Sources::others`].
    pub models: &'a [PathBuf],
    /// Text that it decides or trains on.
    pub learned: Vec<&'a Path>,
    /// Text that its result is measured on.
    pub measured: Vec<&'a Path>,
    /// A file of statistics that it decides from.
    pub statistics: Option<&'a Path>,
    /// A file with decisions, instead of statistics or text.
    pub plan: Option<&'a Path>,
}

impl<'a> Inputs<'a> {
    /// A pass that learns from `data` and measures its result on `held_out`.
    pub fn of_text(data: &'a [DataSpec], held_out: &'a [DataSpec]) -> Self {
        Self {
            learned: DataSpec::files(data).collect(),
            measured: DataSpec::files(held_out).collect(),
            ..Self::default()
        }
    }

    /// All text.
    pub fn texts(self) -> impl Iterator<Item = &'a Path> {
        self.learned.into_iter().chain(self.measured)
    }

    /// All files: text, statistics and the plan.
    pub fn files(self) -> impl Iterator<Item = &'a Path> {
        let (statistics, plan) = (self.statistics, self.plan);
        self.texts().chain(statistics).chain(plan)
    }

    /// All paths: other checkpoints, too.
    pub fn paths(self) -> impl Iterator<Item = &'a Path> {
        self.models.iter().map(PathBuf::as_path).chain(self.files())
    }
}
