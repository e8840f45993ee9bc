//! Files that a pass reads besides its model, and writes besides its result.

use std::path::{Path, PathBuf};

use moe_forward::DataSpec;

use crate::calibrate::HeldOut;

/// Every path that the options of a pass name, listed once. Hashes, the check of outputs against
/// inputs, dry runs and reuse follow from it.
#[derive(Debug, Clone, Default)]
pub struct Inputs<'a> {
    /// Other checkpoints, in the order of [`super::Sources::others`].
    pub models: &'a [PathBuf],
    /// Text that the pass decides or trains on.
    pub learned: Vec<&'a Path>,
    /// Text that the result is measured on.
    pub held_out: Option<HeldOut<'a>>,
    /// A file of statistics that the pass decides by.
    pub statistics: Option<&'a Path>,
    /// A file of decisions, which replaces statistics and text.
    pub plan: Option<&'a Path>,
}

impl<'a> Inputs<'a> {
    /// The inputs of a pass that learns from `data` and measures its result on `held_out`.
    pub fn of_text(data: &'a [DataSpec], held_out: Option<HeldOut<'a>>) -> Self {
        Self { learned: DataSpec::files(data).collect(), held_out, ..Self::default() }
    }

    /// The files of held-out text.
    pub fn measured(&self) -> impl Iterator<Item = &'a Path> + use<'a> {
        DataSpec::files(self.held_out.map_or(&[], |held_out| held_out.data))
    }

    /// All files of text.
    pub fn texts(self) -> impl Iterator<Item = &'a Path> {
        let measured = self.measured();
        self.learned.into_iter().chain(measured)
    }

    /// All files: text, statistics and the plan.
    pub fn files(self) -> impl Iterator<Item = &'a Path> {
        let (statistics, plan) = (self.statistics, self.plan);
        self.texts().chain(statistics).chain(plan)
    }

    /// All paths: the files, and other checkpoints.
    pub fn paths(self) -> impl Iterator<Item = &'a Path> {
        self.models.iter().map(PathBuf::as_path).chain(self.files())
    }
}

/// Files that a pass writes besides its result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outputs<'a> {
    /// A file that decisions are written to, in the format that [`Inputs::plan`] is read in.
    pub plan: Option<&'a Path>,
    /// Whether the pass trains, before or while it decides. What a killed run continues from lies
    /// in a folder of its own until the result is written.
    pub training: bool,
}
