//! Runs and plans single steps of a recipe.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use moe_checkpoint::{Error, shown_path};
use moe_forward::EvalReport;
use moe_passes::Pass;
use moe_pipeline::{
    ObserveOptions, Progress as _, Recipe, Run, Step, StepKind, Timings, begin_step, check_observe,
    is_observed,
};

use super::How;
use super::conversion::Conversion;
use crate::allocator::purge;
use crate::commands::{After, Session};

/// The outcome of a step that didn't fail.
pub(super) enum StepResult {
    Done,
    /// A dry run planned it. The estimated seconds, where they are known.
    Planned(Option<f64>),
    /// The step's result was finished before.
    Reused,
    /// The report of an evaluation, and whether its gates were met.
    Evaluated(Box<EvalReport>, Result<(), Error>),
}

/// The statistics that a step makes.
struct Observation<'r> {
    model: &'r Path,
    options: &'r ObserveOptions,
    output: &'r Path,
    overwrite: bool,
}

impl Session {
    /// Reports that `step` has nothing to do.
    pub(super) fn keep(&self, step: &Step) -> Result<StepResult> {
        if let StepKind::Convert { output, .. } | StepKind::Observe { output, .. } = &step.kind {
            self.kept(output)?;
        }
        Ok(StepResult::Reused)
    }

    /// Reports what step `index` would do. Paths in `stale` count as missing.
    pub(super) fn plan_step(
        &self,
        recipe: &Recipe,
        index: usize,
        how: How,
        stale: &BTreeSet<PathBuf>,
    ) -> Result<StepResult> {
        let step = &recipe.steps[index];
        let awaited = recipe.awaited(index, stale);
        let lineage = recipe.lineage(index, stale);
        if let Some((path, maker)) = awaited {
            let yet = format!("step {maker} is yet to make {}", path.display());
            if lineage.is_none() {
                self.progress.note(&format!("not planned: {yet}"));
                return Ok(StepResult::Planned(None));
            }
            let together = "planned together with the steps that lead to it";
            self.progress.note(&format!("{yet}: {together}"));
        }
        let may_reuse = !how.fresh && awaited.is_none();
        match &step.kind {
            StepKind::Observe { output, overwrite, options } => {
                let (model, overwrite) = (step.model.as_path(), *overwrite);
                self.plan_observation(&Observation { model, options, output, overwrite }, may_reuse)
            }
            StepKind::Convert { passes, output, overwrite, writing } => {
                let options = self.convert_options(*overwrite, how.resume, *writing);
                let own = Conversion::new(passes, &step.model, output, options);
                self.plan_conversion(&own, lineage, may_reuse)
            }
            // Steps that read a result can't run before it exists.
            StepKind::Eval { .. } | StepKind::Verify | StepKind::Inspect => Ok(StepResult::Done),
        }
    }

    fn plan_observation(
        &self,
        observation: &Observation<'_>,
        may_reuse: bool,
    ) -> Result<StepResult> {
        let Observation { model, options, output, overwrite } = *observation;
        if may_reuse && is_observed(model, options, output, &self.compute)? {
            self.kept(output)?;
            return Ok(StepResult::Reused);
        }
        check_observe(model, options, output, overwrite)?;
        self.progress.note(&format!("would write {}", shown_path(output)));
        Ok(StepResult::Planned(None))
    }

    /// Plans `own`, together with the passes of earlier steps where its input is yet to be made:
    /// `lineage` are all these passes and their input.
    fn plan_conversion(
        &self,
        own: &Conversion<'_>,
        lineage: Option<(Vec<&dyn Pass>, &Path)>,
        may_reuse: bool,
    ) -> Result<StepResult> {
        let mut run = own.run(&self.progress);
        // Results are copied only in a run that may write.
        if may_reuse && self.reuse(&mut run, &[])? {
            return Ok(StepResult::Reused);
        }
        if let Some((all, source)) = &lineage {
            run = Run::new(all, source, own.output, &own.options, &self.progress);
        }
        let seconds = self.plan(run, own.passes.len())?;
        Ok(StepResult::Planned(Some(seconds)))
    }

    /// Runs step `index`.
    pub(super) fn step(
        &self,
        recipe: &Recipe,
        index: usize,
        how: How,
        timings: &mut Timings,
    ) -> Result<StepResult> {
        let step = &recipe.steps[index];
        // Memory that an earlier step left unused isn't counted for this one.
        purge();
        begin_step();
        match &step.kind {
            StepKind::Convert { passes, output, overwrite, writing } => {
                let options = self.convert_options(*overwrite, how.resume, *writing);
                let conversion = Conversion::new(passes, &step.model, output, options);
                let alike = (!how.fresh).then(|| recipe.made_alike(index));
                self.run_conversion(&conversion, alike.as_deref(), timings)
            }
            StepKind::Observe { output, overwrite, options } => {
                let (model, overwrite) = (step.model.as_path(), *overwrite);
                let observation = Observation { model, options, output, overwrite };
                self.run_observation(&observation, !how.fresh, timings)
            }
            StepKind::Eval { original, options } => {
                let eval = || self.eval(&step.model, original.as_deref(), options);
                let (report, gates) = timings.time_metered("eval", &self.compute.meter, eval)?;
                Ok(StepResult::Evaluated(Box::new(report), gates))
            }
            StepKind::Verify => {
                timings.time("verify", || self.verify(&step.model)).map(|()| StepResult::Done)
            }
            StepKind::Inspect => self.inspect(&step.model).map(|()| StepResult::Done),
        }
    }

    /// Runs `conversion`, unless it is finished or can be copied from one of the results `alike`;
    /// None where it is to run in any case.
    fn run_conversion(
        &self,
        conversion: &Conversion<'_>,
        alike: Option<&[&Path]>,
        timings: &mut Timings,
    ) -> Result<StepResult> {
        let mut run = conversion.run(&self.progress);
        if let Some(alike) = alike
            && self.reuse(&mut run, alike)?
        {
            return Ok(StepResult::Reused);
        }
        self.make(run, timings, After::Steps)?;
        Ok(StepResult::Done)
    }

    fn run_observation(
        &self,
        observation: &Observation<'_>,
        may_reuse: bool,
        timings: &mut Timings,
    ) -> Result<StepResult> {
        let Observation { model, options, output, overwrite } = *observation;
        if may_reuse && is_observed(model, options, output, &self.compute)? {
            self.kept(output)?;
            return Ok(StepResult::Reused);
        }
        let observe = || self.observe(model, options, output, overwrite);
        timings.time_metered("observe", &self.compute.meter, observe)?;
        Ok(StepResult::Done)
    }
}
