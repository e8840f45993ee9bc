//! `run`: runs the steps of a recipe, and reports on them.

mod conversion;
mod earlier;
mod reports;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use moe_checkpoint::{Error, Snapshot, counted, shown, shown_path};
use moe_pipeline::{
    Average, Progress as _, Recipe, Step, StepOutcome, StepStatus, Summary, Timings,
};

use super::{Session, kind};
use crate::{render, usage};
pub(super) use reports::Reports;
use step::StepResult;

/// The finished steps, each with a snapshot of all files that prove it.
type Finished = BTreeMap<usize, Snapshot>;

impl Session {
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
        let tally = Tally::new(&recipe);
        RecipeRun { session: self, path, recipe, finished, how, reports, tally }.run(timings)
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
        let mut recipe = Recipe::read(path, set)
            .map_err(|error| reports.refused_unread(path, with_key_instead(error)))?;
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
}

/// `error`, with the key that has the meaning of an unknown one in another tool.
fn with_key_instead(error: Error) -> Error {
    match usage::key_instead(&error) {
        Some(remedy) => error.better_remedy(remedy),
        None => error,
    }
}

/// A recipe that is run, or planned in a dry run.
struct RecipeRun<'r> {
    session: &'r Session,
    path: &'r Path,
    recipe: Recipe,
    finished: Finished,
    how: How,
    reports: Reports,
    tally: Tally,
}

impl RecipeRun<'_> {
    /// Runs the steps up to the first that fails, and reports on them.
    fn run(mut self, timings: &mut Timings) -> Result<()> {
        let done = (0..self.recipe.steps.len()).try_for_each(|index| self.step(index, timings));
        self.note_end(done.is_ok());
        let averages = Average::of(&self.tally.rows);
        if self.tally.rows.len() > 1 {
            let value = serde_json::json!({ "summary": self.tally.rows, "averages": averages });
            self.session.print(&value, || render::summary(&averages))?;
        }
        let written = self.reports.write(&self.recipe.name, &self.tally.outcomes, &averages);
        // The reason why a step failed matters more than a report that couldn't be written.
        done.and(written)
    }

    /// Runs or plans step `index`, and records its status.
    fn step(&mut self, index: usize, timings: &mut Timings) -> Result<()> {
        self.announce(index);
        let start = Instant::now();
        let result = self.result(index, timings);
        let taken = self.tally.take_in(&self.recipe.steps[index], result);
        let record = &mut self.tally.outcomes[index];
        record.seconds = start.elapsed().as_secs_f64();
        match taken {
            Ok(status) => {
                record.status = status;
                Ok(())
            }
            Err(error) => {
                record.status = StepStatus::failed(kind(&error), format!("{error:#}"));
                let of = self.failed(index);
                // The name of the step is part of the error, for readers of JSON.
                Err(match error.downcast::<Error>() {
                    Ok(error) => error.within(&of).into(),
                    Err(other) => other.context(of),
                })
            }
        }
    }

    /// Says that step `index` begins, and notes it in the reports.
    fn announce(&mut self, index: usize) {
        let (name, count) = (&self.recipe.name, self.recipe.steps.len());
        let step = self.recipe.steps[index].name();
        let progress = &self.session.progress;
        progress.note(&format!("{name}, step {} of {count}: {step}", index + 1));
        if !self.how.dry_run {
            self.tally.outcomes[index].status = StepStatus::unfinished();
            self.reports.note_junit(name, &self.tally.outcomes, progress);
        }
    }

    fn result(&self, index: usize, timings: &mut Timings) -> Result<StepResult> {
        let Self { session, recipe, how, .. } = self;
        // An earlier step may have changed the files since.
        let is_finished = self.finished.get(&index).is_some_and(|files| files.check().is_ok());
        if is_finished {
            session.keep(&recipe.steps[index])
        } else if how.dry_run {
            session.plan_step(recipe, index, *how, &self.tally.stale)
        } else {
            session.step(recipe, index, *how, timings)
        }
    }

    /// The sentence that step `index` failed.
    fn failed(&self, index: usize) -> String {
        let name = self.recipe.steps[index].name();
        format!("step {} ({}) of {} failed", index + 1, shown(&name, ""), shown_path(self.path))
    }

    /// Says how many steps are done, and how long those that were planned will take.
    fn note_end(&self, all_done: bool) {
        let (progress, planned) = (&self.session.progress, &self.tally.planned);
        if all_done && !self.how.dry_run {
            let steps = counted(self.recipe.steps.len() as u64, "step");
            progress.note(&format!("{}: {steps} done", self.recipe.name));
        }
        if planned.len() > 1 {
            let all = render::duration(planned.iter().sum());
            progress.note(&format!(
                "{} steps that convert: {all} in all, evaluations not counted",
                planned.len()
            ));
        }
    }
}

/// The results of a recipe's steps so far.
struct Tally {
    outcomes: Vec<StepOutcome>,
    /// A row for each evaluation.
    rows: Vec<Summary>,
    /// The estimated seconds of each step that was planned.
    planned: Vec<f64>,
    /// In a dry run: outputs that steps would make again, whatever lies there now.
    stale: BTreeSet<PathBuf>,
}

impl Tally {
    fn new(recipe: &Recipe) -> Self {
        let names = (0..recipe.steps.len()).map(|index| recipe.step_name(index));
        let not_run = |name| StepOutcome { name, seconds: 0.0, status: StepStatus::NotRun };
        Self {
            outcomes: names.map(not_run).collect(),
            rows: Vec::new(),
            planned: Vec::new(),
            stale: BTreeSet::new(),
        }
    }

    /// The status of `step` by its `result`, or its error with keys in place of options.
    fn take_in(&mut self, step: &Step, result: Result<StepResult>) -> Result<StepStatus> {
        let in_keys = |error: anyhow::Error| match error.downcast::<Error>() {
            Ok(error) => step.in_keys(error).into(),
            Err(other) => other,
        };
        Ok(match result.map_err(in_keys)? {
            StepResult::Done => StepStatus::Done,
            StepResult::Reused => StepStatus::Reused,
            StepResult::Planned(seconds) => {
                self.planned.extend(seconds);
                self.stale.extend(step.writes().into_iter().map(Path::to_owned));
                StepStatus::NotRun
            }
            StepResult::Evaluated(report, gates) => {
                self.rows.push(Summary::new(step.row(), &report));
                gates.map_err(|error| step.in_keys(error))?;
                StepStatus::Done
            }
        })
    }
}

/// The way in which the steps of a recipe are run.
#[derive(Clone, Copy)]
pub(super) struct How {
    pub resume: bool,
    pub fresh: bool,
    pub dry_run: bool,
}
