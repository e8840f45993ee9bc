//! What all steps of a recipe together must keep, so that a long run doesn't fail, or average what it must not, at its end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Recipe, Step, StepKind};

/// Refuses steps that write over each other unasked, and evaluations that share a row but not what they measure.
pub(super) fn steps(steps: &[Step]) -> Result<(), String> {
    let numbered = || steps.iter().enumerate().map(|(index, step)| (index + 1, step));
    let mut written: BTreeMap<&Path, usize> = BTreeMap::new();
    for (number, step) in numbered() {
        let Some((output, overwrite)) = step.output() else { continue };
        if let Some(earlier) = written.insert(output, number).filter(|_| !overwrite) {
            return Err(format!(
                "step {number} ({}) writes to {}, as step {earlier} does: let a variable tell them apart, or say overwrite = true",
                step.name(),
                output.display()
            ));
        }
    }
    let mut rows: BTreeMap<String, (usize, &Step)> = BTreeMap::new();
    for (number, step) in numbered().filter(|(_, step)| matches!(step.kind, StepKind::Eval { .. })) {
        let (earlier, first) = *rows.entry(step.row()).or_insert((number, step));
        if !first.measures_as(step) {
            return Err(format!(
                "step {number} ({}) has the label of step {earlier}, {:?}, but not its data, limits and original: runs of one \
                 label are averaged",
                step.name(),
                step.row()
            ));
        }
    }
    Ok(())
}

impl Recipe {
    /// What step `index` reads that an earlier step is to make and hasn't made yet, and that step's number.
    pub fn awaited(&self, index: usize) -> Option<(&Path, usize)> {
        let reads = self.steps[index].reads();
        let earlier = self.steps[..index].iter().enumerate();
        let outputs = earlier.filter_map(|(index, step)| step.output().map(|(output, _)| (output, index + 1)));
        outputs.into_iter().find(|(output, _)| reads.contains(output) && !output.exists())
    }
}

impl Step {
    /// What it reads, text apart.
    fn reads(&self) -> Vec<&Path> {
        let mut all: Vec<&Path> = match &self.kind {
            StepKind::Convert { passes, .. } => passes
                .iter()
                .flat_map(|pass| {
                    let others = pass.others().iter().map(PathBuf::as_path);
                    others.chain(pass.statistics()).chain(pass.given_plan())
                })
                .collect(),
            StepKind::Eval { against, .. } => against.iter().map(PathBuf::as_path).collect(),
            StepKind::Observe { .. } | StepKind::Verify | StepKind::Inspect => Vec::new(),
        };
        all.push(&self.model);
        all
    }

    /// Where its result goes, and whether it replaces an earlier one.
    pub(super) fn output(&self) -> Option<(&Path, bool)> {
        match &self.kind {
            StepKind::Convert { output, overwrite, .. } | StepKind::Observe { output, overwrite, .. } => {
                Some((output, *overwrite))
            }
            StepKind::Eval { .. } | StepKind::Verify | StepKind::Inspect => None,
        }
    }

    /// What it makes, or else what it reads.
    pub(super) fn subject(&self) -> std::path::Display<'_> {
        self.output().map_or(self.model.as_path(), |(output, _)| output).display()
    }

    /// Whether both evaluate on the same text beside the same original.
    fn measures_as(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (StepKind::Eval { against: a, options: of }, StepKind::Eval { against: b, options: to }) => {
                a == b && (&of.data, of.sequence_length, of.max_tokens) == (&to.data, to.sequence_length, to.max_tokens)
            }
            _ => false,
        }
    }
}
