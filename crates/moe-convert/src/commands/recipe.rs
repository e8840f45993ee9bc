//! `run`: runs the steps of a recipe, and reports on them.

mod earlier;
mod reports;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use moe_checkpoint::{Error, Snapshot, counted, shown, shown_path};
use moe_forward::EvalReport;
use moe_passes::Pass;
use moe_pipeline::{
    Average, FoundResult, Outcome, Progress as _, Recipe, Run, Step, StepKind, StepOutcome,
    Summary, Timings, begin_step, check_observe, is_observed,
};

use super::{After, Session, kind, other_result};
use crate::allocator::purge;
use crate::{render, usage};
pub(super) use reports::Reports;

/// The finished steps, each with a snapshot of all files that prove it.
type Finished = BTreeMap<usize, Snapshot>;

impl Session<'_> {
    /// Runs the recipe `path`, whose variables `set` replaces.
    pub(super) fn recipe(
        &self,
        path: &Path,
        set: &[(String, String)],
        how: How,
        mut reports: Reports,
        timings: &mut Timings,
    ) -> Result<()> {
        let (recipe, finished) = self.checked(path, set, how, &mut reports)?;
        let count = recipe.steps.len();
        let (mut rows, mut planned) = (Vec::new(), Vec::new());
        let not_run = |index| StepOutcome {
            name: recipe.step_name(index),
            seconds: 0.0,
            outcome: Outcome::NotRun,
        };
        let mut outcomes: Vec<StepOutcome> = (0..count).map(not_run).collect();
        // In a dry run: outputs that steps would make again, whatever lies there now.
        let mut stale = BTreeSet::new();
        let mut failed = None;
        for (index, step) in recipe.steps.iter().enumerate() {
            let (number, name) = (index + 1, step.name());
            self.progress.note(&format!("{}, step {number} of {count}: {name}", recipe.name));
            if !how.dry_run {
                outcomes[index].outcome = Outcome::unfinished();
                reports.note_junit(&recipe.name, &outcomes, &self.progress);
            }
            let mut failure = |error: anyhow::Error| {
                let error = error
                    .downcast::<Error>()
                    .map_or_else(|other| other, |error| step.in_keys(error).into());
                let outcome = Outcome::failed(kind(&error), format!("{error:#}"));
                let of =
                    format!("step {number} ({}) of {} failed", shown(&name, ""), shown_path(path));
                failed = Some(error.context(of));
                outcome
            };
            let start = Instant::now();
            // An earlier step may have changed the files since.
            let is_finished = finished.get(&index).is_some_and(|files| files.check().is_ok());
            let result = match how.dry_run {
                _ if is_finished => self.keep(step),
                true => self.plan_step(&recipe, index, how, &stale),
                false => self.step(&recipe, index, how, timings),
            };
            outcomes[index].outcome = match result {
                Ok(StepResult::Done) => Outcome::Done,
                Ok(StepResult::Reused) => Outcome::Reused,
                Ok(StepResult::Planned(seconds)) => {
                    planned.extend(seconds);
                    stale.extend(step.writes().into_iter().map(Path::to_owned));
                    Outcome::NotRun
                }
                Ok(StepResult::Evaluated(report, gates)) => {
                    rows.push(Summary::new(step.row(), &report));
                    gates.map_or_else(|error| failure(error.into()), |()| Outcome::Done)
                }
                Err(error) => failure(error),
            };
            outcomes[index].seconds = start.elapsed().as_secs_f64();
            if failed.is_some() {
                break;
            }
        }
        if failed.is_none() && !how.dry_run {
            self.progress.note(&format!("{}: {} done", recipe.name, counted(count as u64, "step")));
        }
        if planned.len() > 1 {
            let all = render::duration(planned.iter().sum());
            self.progress.note(&format!(
                "{} steps that convert: {all} in all, evaluations not counted",
                planned.len()
            ));
        }
        let averages = Average::of(&rows);
        if rows.len() > 1 {
            let value = serde_json::json!({ "summary": rows, "averages": averages });
            self.print(&value, || render::summary(&averages))?;
        }
        let written = reports.write(&recipe.name, &outcomes, &averages);
        // The reason why a step failed matters more than a report that couldn't be written.
        failed.map_or(written, Err)
    }

    /// The recipe `path`, all of whose steps can run as far as can be known, and the steps that are
    /// finished. `reports` record why a step can't run.
    fn checked(
        &self,
        path: &Path,
        set: &[(String, String)],
        how: How,
        reports: &mut Reports,
    ) -> Result<(Recipe, Finished)> {
        let mut recipe = match Recipe::read(path, set) {
            Ok(recipe) => recipe,
            Err(error) => {
                let error = match usage::key_instead(&error) {
                    Some(remedy) => error.better_remedy(remedy),
                    None => error,
                };
                return Err(reports.refused_unread(path, error));
            }
        };
        recipe.notes(path).iter().for_each(|note| self.progress.note(note));
        let places = recipe.check_outputs(path, &reports.paths());
        match (recipe.check_inputs(), places) {
            (Ok(()), places) => places?,
            (Err(error), Ok(())) => return Err(reports.refused_early(&recipe.name, error)),
            (Err(error), Err(_)) => return Err(error.into()),
        }
        reports.check()?;
        match recipe.fit_models(&self.compute).and_then(|()| self.check_earlier(&recipe, path, how))
        {
            Ok(finished) => Ok((recipe, finished)),
            Err(error) => Err(reports.refused(&recipe.name, error)),
        }
    }

    /// Reports that `step` has nothing to do.
    fn keep(&self, step: &Step) -> Result<StepResult> {
        if let StepKind::Convert { output, .. } | StepKind::Observe { output, .. } = &step.kind {
            self.kept(output)?;
        }
        Ok(StepResult::Reused)
    }

    /// Reports what step `index` would do. Paths in `stale` count as missing.
    fn plan_step(
        &self,
        recipe: &Recipe,
        index: usize,
        how: How,
        stale: &BTreeSet<PathBuf>,
    ) -> Result<StepResult> {
        let step = &recipe.steps[index];
        let yet = recipe.awaited(index, stale);
        let yet =
            yet.map(|(path, maker)| format!("step {maker} is yet to make {}", path.display()));
        let lineage = recipe.lineage(index, stale);
        match (&yet, &lineage) {
            (Some(yet), Some(_)) => {
                self.progress
                    .note(&format!("{yet}: planned together with the steps that lead to it"));
            }
            (Some(yet), None) => {
                self.progress.note(&format!("not planned: {yet}"));
                return Ok(StepResult::Planned(None));
            }
            (None, _) => {}
        }
        if let StepKind::Observe { output, overwrite, options } = &step.kind {
            if !how.fresh
                && yet.is_none()
                && is_observed(&step.model, options, output, &self.compute)?
            {
                self.kept(output)?;
                return Ok(StepResult::Reused);
            }
            check_observe(&step.model, options, output, *overwrite)?;
            self.progress.note(&format!("would write {}", shown_path(output)));
            return Ok(StepResult::Planned(None));
        }
        // Steps that read a result can't run before it exists.
        let StepKind::Convert { passes, output, overwrite, writing } = &step.kind else {
            return Ok(StepResult::Done);
        };
        let passes: Vec<&dyn Pass> = passes.iter().map(Box::as_ref).collect();
        let options = self.convert_options(*overwrite, how.resume, *writing);
        let mut run = Run::new(&passes, &step.model, output, &options, &self.progress);
        // Results are copied only in a run that may write.
        if !how.fresh && yet.is_none() && self.reuse(&mut run, &[])? {
            return Ok(StepResult::Reused);
        }
        if let Some((all, source)) = &lineage {
            run = Run::new(all, source, output, &options, &self.progress);
        }
        self.plan(run, passes.len()).map(|seconds| StepResult::Planned(Some(seconds)))
    }

    /// Runs step `index`.
    fn step(
        &self,
        recipe: &Recipe,
        index: usize,
        how: How,
        timings: &mut Timings,
    ) -> Result<StepResult> {
        let step = &recipe.steps[index];
        let meter = &self.compute.meter;
        // Memory that an earlier step left unused isn't counted for this one.
        purge();
        begin_step();
        match &step.kind {
            StepKind::Convert { passes, output, overwrite, writing } => {
                let passes: Vec<&dyn Pass> = passes.iter().map(Box::as_ref).collect();
                let options = self.convert_options(*overwrite, how.resume, *writing);
                let mut run = Run::new(&passes, &step.model, output, &options, &self.progress);
                if !how.fresh && self.reuse(&mut run, &recipe.made_alike(index))? {
                    return Ok(StepResult::Reused);
                }
                self.make(run, timings, After::Steps)?;
            }
            StepKind::Observe { output, options, .. }
                if !how.fresh && is_observed(&step.model, options, output, &self.compute)? =>
            {
                self.kept(output)?;
                return Ok(StepResult::Reused);
            }
            StepKind::Observe { output, overwrite, options } => {
                timings.time_metered("observe", meter, || {
                    self.observe(&step.model, options, output, *overwrite)
                })?;
            }
            StepKind::Eval { original, options } => {
                let eval = || self.eval(&step.model, original.as_deref(), options);
                let (report, gates) = timings.time_metered("eval", meter, eval)?;
                return Ok(StepResult::Evaluated(Box::new(report), gates));
            }
            StepKind::Verify => timings.time("verify", || self.verify(&step.model))?,
            StepKind::Inspect => self.inspect(&step.model)?,
        }
        Ok(StepResult::Done)
    }

    /// Whether the result of `run` is finished, or was copied from one of the results `alike`.
    fn reuse(&self, run: &mut Run<'_>, alike: &[&Path]) -> Result<bool> {
        let (output, overwrite) = (run.output(), run.overwrites());
        let found = match run.find() {
            // The old output is replaced, whatever is wrong with it. A missing input is left to
            // later code, which complains about it or makes it.
            Err(_) if overwrite || !run.input().exists() => FoundResult::Nothing,
            other => other?,
        };
        match found {
            FoundResult::Same => {
                self.kept(output)?;
                return Ok(true);
            }
            FoundResult::Other(how) if !overwrite => {
                return Err(other_result(&how, output).into());
            }
            FoundResult::Other(_) | FoundResult::Nothing => {}
        }
        for from in alike {
            if run.copy_finished(from)? {
                self.print(
                    &serde_json::json!({ "finished": output.to_string_lossy(), "copied_from": from.to_string_lossy() }),
                    || {
                        format!(
                            "{} is a copy of {}: same passes, options and source\n",
                            shown_path(output),
                            shown_path(from)
                        )
                    },
                )?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// How the steps of a recipe are run.
#[derive(Clone, Copy)]
pub(super) struct How {
    pub resume: bool,
    pub fresh: bool,
    pub dry_run: bool,
}

/// The outcome of a step that didn't fail.
enum StepResult {
    Done,
    /// A dry run planned it. The estimated seconds, where they are known.
    Planned(Option<f64>),
    /// Its result was finished before.
    Reused,
    /// The report of an evaluation, and whether its gates were met.
    Evaluated(Box<EvalReport>, Result<(), Error>),
}
