//! Files and folders that lie where a recipe's steps are to write. If they can't be replaced, the
//! recipe is refused before its first step runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Result, Snapshot, shown_path};
use moe_passes::Pass;
use moe_pipeline::{
    Difference, FoundResult, Recipe, Step, StepKind, check_observe, check_output, find_result,
    has_result, has_statistics, is_observed, other_work,
};

use super::How;
use crate::commands::{Session, other_result};

/// What a step does with the result that lies at its output, as far as can be known before the
/// steps run.
enum Fate {
    /// The step keeps it, since it is what the step would make; the snapshot is of its files.
    Kept(Snapshot),
    /// It was made by other work than the step's; the text says how it differs, where that is
    /// known.
    Other(Option<Difference>),
    /// The step makes it, since no finished result lies there.
    Made,
    /// Whether it is kept depends on a result that an earlier step hasn't made yet.
    Open,
}

impl Session {
    /// Refuses steps of the recipe at `path` whose outputs are in the way, and neither finished nor
    /// to be replaced. Outputs that an earlier step makes are checked when their step runs. Returns
    /// the steps that are finished, with a snapshot of the files that prove it: while these don't
    /// change, nothing needs to be hashed again.
    ///
    /// # Errors
    /// The error that the step itself would return, with the name of the step.
    pub(super) fn check_earlier(
        &self,
        recipe: &Recipe,
        path: &Path,
        how: How,
    ) -> Result<BTreeMap<usize, Snapshot>> {
        let mut made: BTreeSet<&Path> = BTreeSet::new();
        // Fates are found out only where something is in the way, since results are hashed for
        // them.
        let mut fates = Vec::new();
        for (index, step) in recipe.steps.iter().enumerate() {
            let writes = step.writes();
            let is_made_before = writes.iter().any(|path| made.contains(path));
            made.extend(writes);
            let Some(refusal) = self.refusal(step, how).filter(|_| !is_made_before) else {
                continue;
            };
            if !how.fresh && has_finished(step) {
                while fates.len() <= index {
                    fates.push(self.fate(recipe, how, &fates));
                }
            }
            if let Some(error) = in_the_way(step, fates.get(index), refusal) {
                return Err(step.in_keys(error).within(&format!(
                    "step {} ({}) of {}",
                    index + 1,
                    step.name(),
                    shown_path(path)
                )));
            }
        }
        let kept = fates.into_iter().enumerate().filter_map(|(index, fate)| match fate {
            Fate::Kept(files) => Some((index, files)),
            Fate::Other(_) | Fate::Made | Fate::Open => None,
        });
        Ok(kept.collect())
    }

    /// The reason why `step` can't write its output; None if it can.
    fn refusal(&self, step: &Step, how: How) -> Option<Error> {
        match &step.kind {
            StepKind::Convert { passes, output, overwrite, writing } => {
                let passes: Vec<&dyn Pass> = passes.iter().map(Box::as_ref).collect();
                check_output(
                    &passes,
                    output,
                    &self.convert_options(*overwrite, how.resume, *writing),
                )
                .err()
            }
            // An earlier step may make the folder.
            StepKind::Observe { output, .. } if output.parent().is_some_and(is_missing) => None,
            StepKind::Observe { output, overwrite, options } => {
                check_observe(&step.model, options, output, *overwrite).err()
            }
            StepKind::Eval { .. } | StepKind::Verify | StepKind::Inspect => None,
        }
    }

    /// The fate of the result at the output of the step after those of `fates`.
    fn fate(&self, recipe: &Recipe, how: How, fates: &[Fate]) -> Fate {
        let index = fates.len();
        let step = &recipe.steps[index];
        if how.fresh || !has_finished(step) {
            return Fate::Made;
        }
        let work = other_work_of(step);
        if work.is_some() {
            return Fate::Other(work);
        }
        let others = written(recipe, fates, |fate| matches!(fate, Fate::Other(_)));
        if recipe.awaited(index, &others).is_some_and(|(path, _)| others.contains(path)) {
            return Fate::Other(None);
        }
        if recipe
            .awaited(index, &written(recipe, fates, |fate| !matches!(fate, Fate::Kept(_))))
            .is_some()
        {
            return Fate::Open;
        }
        self.found(step, how)
    }

    /// The fate of the result at the output of `step`, whose inputs are all in their final state.
    fn found(&self, step: &Step, how: How) -> Fate {
        let files = step.snapshot();
        match &step.kind {
            StepKind::Convert { passes, output, overwrite, writing } => {
                let passes: Vec<&dyn Pass> = passes.iter().map(Box::as_ref).collect();
                let options = self.convert_options(*overwrite, how.resume, *writing);
                match find_result(&passes, &step.model, output, &options) {
                    Ok(FoundResult::Same) => Fate::Kept(files),
                    Ok(FoundResult::Other(found)) => Fate::Other(Some(found)),
                    Ok(FoundResult::Nothing) | Err(_) => Fate::Made,
                }
            }
            StepKind::Observe { output, options, .. } => {
                match is_observed(&step.model, options, output, &self.compute) {
                    Ok(true) => Fate::Kept(files),
                    Ok(false) => Fate::Other(None),
                    Err(_) => Fate::Made,
                }
            }
            StepKind::Eval { .. } | StepKind::Verify | StepKind::Inspect => Fate::Made,
        }
    }
}

/// The reason why `step` can't run, by the `fate` of the result at its output. None where it can
/// run, or where that is still open. `refusal` is the reason by its place alone.
fn in_the_way(step: &Step, fate: Option<&Fate>, refusal: Error) -> Option<Error> {
    match fate {
        Some(Fate::Kept(_)) => None,
        // An input that was removed to save space may be made again unchanged.
        Some(Fate::Open) if !overwrites(step) => None,
        Some(Fate::Other(Some(found))) if !overwrites(step) => {
            Some(other_result(found, step.writes()[0]))
        }
        _ => Some(refusal),
    }
}

/// Returns the outputs of the steps whose fate `is_so`.
fn written(recipe: &Recipe, fates: &[Fate], is_so: fn(&Fate) -> bool) -> BTreeSet<PathBuf> {
    let steps = recipe.steps.iter().zip(fates).filter(|(_, fate)| is_so(fate));
    steps.flat_map(|(step, _)| step.writes()).map(Path::to_owned).collect()
}

fn is_missing(folder: &Path) -> bool {
    !folder.as_os_str().is_empty() && !folder.is_dir()
}

/// Returns whether any finished result lies at the output of `step`.
fn has_finished(step: &Step) -> bool {
    match &step.kind {
        StepKind::Convert { output, .. } => has_result(output),
        StepKind::Observe { output, .. } => has_statistics(output),
        StepKind::Eval { .. } | StepKind::Verify | StepKind::Inspect => false,
    }
}

/// How the work that made the result at the output of `step` differs in passes or options from the
/// step's; None if it doesn't.
fn other_work_of(step: &Step) -> Option<Difference> {
    let StepKind::Convert { passes, output, .. } = &step.kind else { return None };
    let passes: Vec<&dyn Pass> = passes.iter().map(Box::as_ref).collect();
    other_work(&passes, output).unwrap_or_default()
}

fn overwrites(step: &Step) -> bool {
    match &step.kind {
        StepKind::Convert { overwrite, .. } | StepKind::Observe { overwrite, .. } => *overwrite,
        StepKind::Eval { .. } | StepKind::Verify | StepKind::Inspect => false,
    }
}
