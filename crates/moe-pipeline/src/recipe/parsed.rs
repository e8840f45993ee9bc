//! A recipe that was read, and its steps.

use std::path::PathBuf;

use moe_checkpoint::Error;
use moe_passes::Pass;

use super::keys::StepKeys;
use super::schema::keys_of_step;
use super::spelled::EarlierKeys;
use super::wording::as_keys;
use crate::evaluation::EvalOptions;
use crate::observe::ObserveOptions;
use crate::writing::WritingOptions;

/// A parsed recipe.
#[derive(Debug)]
pub struct Recipe {
    /// The name that the recipe gives, or else the file's.
    pub name: String,
    /// Steps in the order in which they run.
    pub steps: Vec<Step>,
    pub(super) earlier: EarlierKeys,
}

/// A step of a recipe, checked and ready to run.
#[derive(Debug)]
pub struct Step {
    /// The command that the step runs.
    pub command: String,
    /// The checkpoint that the command reads.
    pub model: PathBuf,
    /// The name of the step's row in the summary; None for the checkpoint's name.
    pub label: Option<String>,
    /// The values chosen in the blocks around it, such as "bits 3, seed 0"; empty outside of
    /// blocks.
    pub chosen: String,
    /// The command's work and options.
    pub kind: StepKind,
    /// The keys that it was parsed from.
    pub(super) keys: StepKeys,
}

impl Step {
    /// The name of its row in the summary.
    pub fn row(&self) -> String {
        self.label.clone().unwrap_or_else(|| self.model.display().to_string())
    }

    /// `error` of running the step, with options of the command line replaced by keys of the step.
    pub fn in_keys(&self, error: Error) -> Error {
        let own: Vec<&String> = self.commands().filter_map(keys_of_step).flatten().collect();
        error.reworded(|text| as_keys(text, |key| own.iter().any(|own| *own == key)))
    }

    /// The names of its command and of its passes.
    pub(super) fn commands(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.command.as_str()).chain(self.passes().iter().map(|pass| pass.name()))
    }

    /// The passes that it runs; empty where it runs another command.
    pub(super) fn passes(&self) -> &[Box<dyn Pass>] {
        match &self.kind {
            StepKind::Convert { passes, .. } => passes,
            _ => &[],
        }
    }

    /// The name of its command, and the values chosen for it.
    pub fn name(&self) -> String {
        let command = match &self.kind {
            StepKind::Convert { passes, .. } => {
                passes.iter().map(|pass| pass.name()).collect::<Vec<_>>().join(" → ")
            }
            _ => self.command.clone(),
        };
        if self.chosen.is_empty() { command } else { format!("{command}; {}", self.chosen) }
    }
}

/// The work of a step.
#[derive(Debug)]
pub enum StepKind {
    /// One pass or several, each on the result of the one before.
    Convert {
        /// The passes in order.
        passes: Vec<Box<dyn Pass>>,
        /// The directory of the result.
        output: PathBuf,
        /// Whether an earlier result is replaced.
        overwrite: bool,
        /// Options that the written bytes depend on.
        writing: WritingOptions,
    },
    /// `observe`.
    Observe {
        /// The file of the statistics.
        output: PathBuf,
        /// Whether an earlier file is replaced.
        overwrite: bool,
        /// Statistics and text.
        options: ObserveOptions,
    },
    /// `eval`.
    Eval {
        /// The checkpoint to compare with.
        original: Option<PathBuf>,
        /// Data, held-out text and gates.
        options: EvalOptions,
    },
    /// `verify`.
    Verify,
    /// `inspect`.
    Inspect,
}
