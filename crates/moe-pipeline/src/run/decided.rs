//! Fills in what plans leave open: passes decide, survey and train, one after the other or in one
//! sweep.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use moe_checkpoint::{Checkpoint, Result, Saved};
use moe_forward::{EvalReport, Sweep};
use moe_model::Model;
use moe_passes::{LayerEdits, same_bytes};

use super::held_out::evaluated;
use super::pass_run::{Open, PassRun, declared};
use super::planned::{Planned, shards};
use crate::deciding::{Deciding, decide_together};
use crate::fingerprint;
use crate::option_paths::PathlessOptions;
use crate::progress::{Timings, Unit};
use crate::receipt::Receipt;
use crate::train::{NOTHING_SAVED, TrainingDir, TrainingJob, TrainingRecord, TrainingTask};
use crate::trust::{HeldOutReport, StageReport};

/// A run after its passes have decided, surveyed and trained: all weights are determined.
pub(crate) struct Decided<'r> {
    pub planned: Planned<'r>,
    /// Measurements after each stage of deciding, where there are several.
    pub stages: Vec<StageReport>,
    /// The record of a pass's training, if one trained.
    pub trained: Option<TrainingRecord>,
    /// The cost on held-out text, once it is measured.
    pub(super) held_out: Option<HeldOutReport>,
}

impl<'r> Planned<'r> {
    /// Decides, surveys and trains what the plans of the first `count` passes left open.
    ///
    /// # Errors
    /// Errors of reading weights, of sweeps and of trainings.
    pub fn decide(mut self, count: usize, timings: &mut Timings) -> Result<Decided<'r>> {
        let overwrite = self.opened.run.options.overwrite;
        self.passes[..count].iter_mut().try_for_each(|pass| pass.stage_plan(overwrite))?;
        let (stages, trained, held_out) = (Vec::new(), None, None);
        let mut decided = Decided { planned: self, stages, trained, held_out };
        let mut first = 0;
        while first < count {
            let end = decided.planned.end_of_sweep(first).min(count);
            decided.find_out(first..end, timings)?;
            first = end;
        }
        let planned = &mut decided.planned;
        planned.shards = shards(planned.declaration(), planned.opened.run.options.max_shard_size)?;
        Ok(decided)
    }

    /// The end (exclusive) of the passes from `first` on that decide in one sweep.
    pub(super) fn end_of_sweep(&self, first: usize) -> usize {
        let joining = self.passes[first..].windows(2).take_while(|pair| pair[1].joins(&pair[0]));
        first + 1 + joining.count()
    }
}

impl Decided<'_> {
    /// The receipt before anything is written.
    pub fn receipt(&self) -> Receipt {
        let (training, held_out) = (self.trained.clone(), self.held_out.clone());
        Receipt { training, held_out, ..self.planned.receipt() }
    }

    /// Decides, surveys and trains what the plans of the passes `group` left open; they decide in
    /// one sweep.
    fn find_out(&mut self, group: Range<usize>, timings: &mut Timings) -> Result<()> {
        let Planned { passes, opened, .. } = &mut self.planned;
        if group.start > 0 {
            let made = passes[group.start - 1].result.clone();
            passes[group.start].converts(made, opened)?;
        }
        let meter = &opened.run.compute().meter;
        let last = group.end - 1;
        let start = Instant::now();
        let name = self.name(&group, "decide");
        let decided = match group.len() {
            1 => self.decide(last, &name)?,
            _ => self.decide_together(group.clone(), &name)?,
        };
        if decided {
            timings.add_metered(meter);
            timings.add(&name, start.elapsed(), None);
        }
        if !self.planned.passes[last].planned.surveys.is_empty() {
            let name = self.name(&group, "survey");
            timings.time_metered(&name, meter, || self.survey(last))?;
        }
        let start = Instant::now();
        if self.train(last)? {
            timings.add_metered(meter);
            timings.add(&self.name(&group, "train"), start.elapsed(), None);
        }
        Ok(())
    }

    /// Returns the name of the stage in which the passes `group` do `what`.
    fn name(&self, group: &Range<usize>, what: &str) -> String {
        let passes = &self.planned.passes;
        if passes.len() == 1 {
            return what.to_owned();
        }
        let names: Vec<_> = passes[group.clone()].iter().map(|pass| pass.pass.name()).collect();
        format!("{}: {what}", names.join(", "))
    }

    /// Decides what the plan of pass `index` left open. Returns whether there was anything.
    fn decide(&mut self, index: usize, name: &str) -> Result<bool> {
        let open = std::mem::replace(&mut self.planned.passes[index].open, Open::Ready);
        let (edits, open) = match open {
            Open::Layers(mut deciding) => {
                let edits = self.sweep(index, &mut deciding, name)?;
                (Some(edits), Open::Layers(deciding))
            }
            Open::Decide(decide) => {
                let sources = self.planned.passes[index].sources(&self.planned.opened);
                (Some(decide(&sources)?), Open::Decide(decide))
            }
            open => (None, open),
        };
        let Planned { passes, opened, .. } = &mut self.planned;
        passes[index].open = open;
        let is_decided = edits.is_some();
        edits.map_or(Ok(()), |edits| passes[index].decided(edits, opened))?;
        Ok(is_decided)
    }

    /// Lets pass `index` decide in the sweeps of `deciding`.
    fn sweep(&mut self, index: usize, deciding: &mut Deciding, name: &str) -> Result<LayerEdits> {
        let planned = &self.planned;
        let run = &planned.opened.run;
        let saved = deciding.has_stages().then(|| self.saved(index)).transpose()?;
        if let Some(saved) = saved.as_ref().filter(|_| run.options.resume) {
            run.progress.note(if saved.has_steps() {
                "what was trained before is taken from what was saved"
            } else {
                NOTHING_SAVED
            });
        }
        let pass = &planned.passes[index];
        let measured = |edits: &LayerEdits| self.measured(index, edits);
        let (edits, stages) = deciding.run(&pass.source, name, saved, &measured, run)?;
        self.stages = stages;
        Ok(edits)
    }

    /// Measures the model after a stage of pass `index`; None if that isn't the last pass, or there
    /// is no held-out text.
    fn measured(&self, index: usize, edits: &LayerEdits) -> Result<Option<EvalReport>> {
        let Planned { opened, passes, held_out, .. } = &self.planned;
        // The held-out text is the last pass's, and measures its result.
        let Some(corpus) = held_out.as_ref().filter(|_| index + 1 == passes.len()) else {
            return Ok(None);
        };
        let pass = &passes[index];
        let planned = pass.transform.apply(&pass.sources(opened), Some(edits))?;
        let (_, result) = declared(&planned.model)?;
        let name = "measure on held-out text";
        evaluated(name, &result, &opened.source, corpus, &opened.run).map(Some)
    }

    /// Decides in one sweep what the plans of the passes `group` left open.
    fn decide_together(&mut self, group: Range<usize>, name: &str) -> Result<bool> {
        let Planned { passes, opened, .. } = &mut self.planned;
        let mut parts: Vec<(&Model, &mut Deciding)> = passes[group.clone()]
            .iter_mut()
            .filter_map(|pass| match &mut pass.open {
                Open::Layers(deciding) => Some((&pass.source, &mut **deciding)),
                _ => None,
            })
            .collect();
        decide_together(&mut parts, name, &opened.run)?;
        for index in group.clone() {
            if index > group.start {
                passes[index].source = passes[index - 1].result.clone();
            }
            let PassRun { source, open: Open::Layers(deciding), .. } = &mut passes[index] else {
                continue;
            };
            let deciding_pass = &mut deciding.sweep.pass;
            deciding_pass.model_mut().clone_from(source);
            let edits = deciding_pass.finish()?;
            passes[index].decided(edits, opened)?;
        }
        Ok(true)
    }

    /// Opens the directory next to the output where pass `index` saves the expensive steps of its
    /// decision.
    fn saved(&self, index: usize) -> Result<Saved> {
        let run = &self.planned.opened.run;
        let own = self.planned.passes[index].pass.options();
        TrainingDir::of(run.output).open(self.key(index, own, None)?, run.options.resume)
    }

    /// Hash of everything that pass `index` with its `own` options depends on, including earlier
    /// passes.
    fn key(
        &self,
        index: usize,
        own: serde_json::Value,
        teacher: Option<&Checkpoint>,
    ) -> Result<String> {
        let Planned { opened, passes, digests, .. } = &self.planned;
        let before = &passes[..index];
        let own = PathlessOptions::new(own).options;
        let options = match before {
            [] => own.clone(),
            _ => {
                let earlier = before.iter().map(|pass| PathlessOptions::new(pass.pass.options()));
                let earlier: Vec<_> = earlier.map(|pathless| pathless.options).collect();
                serde_json::json!({ "earlier": earlier, "options": own })
            }
        };
        let files: Vec<&Path> =
            passes[..=index].iter().flat_map(|pass| pass.pass.inputs().files()).collect();
        let read = before.iter().flat_map(|pass| &pass.inputs.others);
        let models = std::iter::once(&opened.checkpoint).chain(read).chain(teacher);
        fingerprint::of_training(&options, &own, opened.run.compute(), models, &files, digests)
    }

    /// Trains the model that pass `index` plans. Returns whether the pass trains at all.
    fn train(&mut self, index: usize) -> Result<bool> {
        let pass = &self.planned.passes[index];
        let Some(task) = pass.training() else { return Ok(false) };
        let teacher = task
            .training
            .teacher
            .and_then(|_| pass.inputs.others.first().zip(pass.inputs.models.first()));
        let own = task.deciding(pass.pass.options());
        let job = TrainingJob {
            model: &pass.planned.model,
            teacher: teacher.map(|(_, model)| model),
            task,
            fingerprint: self.key(index, own, teacher.map(|(checkpoint, _)| checkpoint))?,
            run: self.planned.opened.run,
        };
        let idle = self.idle(index, task)?;
        idle.iter().for_each(|warning| job.run.progress.note(warning));
        let (model, record) = job.train()?;
        let pass = &mut self.planned.passes[index];
        pass.planned.warnings.extend(idle.map(str::to_owned));
        pass.trained(model, &record)?;
        self.trained = Some(record);
        Ok(true)
    }

    /// The warning where the `task` of pass `index` can change nothing, unless it was given before.
    /// For the first pass, the plan has compared the checkpoint's experts. Experts made by earlier
    /// passes can be compared only now, by their bytes.
    fn idle(&self, index: usize, task: &TrainingTask) -> Result<Option<&'static str>> {
        if index == 0 {
            return Ok(None);
        }
        let planned = &self.planned.passes[index].planned;
        let found = task.idle(&planned.model, same_bytes)?;
        Ok(found.filter(|idle| planned.warnings.iter().all(|known| known != idle)))
    }

    /// Runs the surveys of pass `index`, each a sweep over its source.
    fn survey(&mut self, index: usize) -> Result<()> {
        let Planned { passes, opened, .. } = &mut self.planned;
        let run = &opened.run;
        let PassRun { source, planned, texts, .. } = &mut passes[index];
        for (survey, text) in planned.surveys.iter_mut().zip(texts) {
            let layers = source.layers.len();
            let tokens = text.batch().tokens();
            run.progress.stage(
                &format!("survey {tokens} tokens"),
                layers as u64,
                Unit::Layers { tokens },
            );
            survey.surveyor.begin(text)?;
            let mut sweep = Sweep::new(source, text.batch(), run.compute())?;
            for index in 0..layers {
                sweep.layer(index, survey.surveyor.as_mut())?;
                run.progress.advance(1);
            }
            survey.surveyor.record(&mut planned.layers);
        }
        Ok(())
    }
}
