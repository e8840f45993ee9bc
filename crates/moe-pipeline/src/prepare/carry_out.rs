//! What plans leave open is found out: passes decide, survey and train, one after the other or in
//! one sweep.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use moe_checkpoint::{Checkpoint, Result, Saved};
use moe_forward::{EvalReport, Sweep};
use moe_math::Compute;
use moe_model::Model;
use moe_passes::{LayerEdits, same_bytes};

use super::pass_run::{Open, PassRun, declared};
use super::{Prepared, shards};
use crate::deciding::{Deciding, decide_together};
use crate::fingerprint;
use crate::options::ConvertOptions;
use crate::progress::{Progress, Timings, Unit};
use crate::resources::directory_of;
use crate::train::{NOTHING_SAVED, TrainingDir, TrainingJob};
use crate::trust;

impl Prepared<'_> {
    /// Finds out what the plans of the first `count` passes left open: decides, surveys and trains.
    pub fn carry_out(
        &mut self,
        count: usize,
        options: &ConvertOptions,
        output: &Path,
        progress: &dyn Progress,
        timings: &mut Timings,
    ) -> Result<()> {
        let (compute, meter) = (&options.compute, &options.compute.meter);
        self.applied[..count]
            .iter_mut()
            .try_for_each(|applied| applied.stage_plan(options.overwrite))?;
        let mut first = 0;
        while first < count {
            let end = self.end_of_sweep(first).min(count);
            if first > 0 {
                let model = self.applied[first - 1].result.clone();
                self.applied[first].converts(model, compute, &self.spill)?;
            }
            let name = |what: &str| match self.applied.len() {
                1 => what.to_owned(),
                _ => {
                    let names: Vec<_> = self.applied[first..end]
                        .iter()
                        .map(|applied| applied.pass.name())
                        .collect();
                    format!("{}: {what}", names.join(", "))
                }
            };
            let (decide, survey, train) = (name("decide"), name("survey"), name("train"));
            let last = end - 1;
            let start = Instant::now();
            let decided = match end - first {
                1 => self.decide(first, &decide, options, output, progress)?,
                _ => self.decide_together(first..end, &decide, options, output, progress)?,
            };
            if decided {
                timings.add_metered(meter);
                timings.add(&decide, start.elapsed(), None);
            }
            if !self.applied[last].planned.surveys.is_empty() {
                timings.time_metered(&survey, meter, || self.survey(last, compute, progress))?;
            }
            let start = Instant::now();
            if self.train(last, options, output, progress)? {
                timings.add_metered(meter);
                timings.add(&train, start.elapsed(), None);
            }
            first = end;
        }
        self.shards = shards(self.declaration(), self.writing.max_shard_size)?;
        Ok(())
    }

    /// The end of the passes from `first` on that decide in one sweep.
    pub(super) fn end_of_sweep(&self, first: usize) -> usize {
        let joining = self.applied[first..].windows(2).take_while(|pair| pair[1].joins(&pair[0]));
        first + 1 + joining.count()
    }

    /// Decides what the plan of pass `index` left open, and plans anew; whether there was anything.
    fn decide(
        &mut self,
        index: usize,
        name: &str,
        options: &ConvertOptions,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<bool> {
        let compute = &options.compute;
        let open = std::mem::replace(&mut self.applied[index].open, Open::Ready);
        let decisions = match open {
            Open::Layers(mut deciding) => {
                if deciding.decider.saves() {
                    let saved = self.saved(index, options, output)?;
                    if options.resume {
                        progress.note(match saved.has_steps() {
                            true => "what was trained before is taken from what was saved",
                            false => NOTHING_SAVED,
                        });
                    }
                    deciding.decider.save_in(saved);
                }
                let applied = &self.applied[index];
                // It is the last pass's text, and the last pass's result.
                let held_out = self.held_out.as_ref().filter(|_| index + 1 == self.applied.len());
                let mut measured = |decisions: &LayerEdits| -> Result<Option<EvalReport>> {
                    let Some(corpus) = held_out else { return Ok(None) };
                    let sources = applied.sources(compute, &self.spill);
                    let planned = applied.transform.apply(&sources, Some(decisions))?;
                    let (_, result) = declared(&planned.model)?;
                    let name = "measure on held-out text";
                    trust::evaluated(name, &result, &self.source, corpus, options, output, progress)
                        .map(Some)
                };
                let (decisions, stages) = deciding.run(
                    &applied.source,
                    name,
                    options,
                    directory_of(output),
                    progress,
                    &mut measured,
                )?;
                self.stages = stages;
                self.applied[index].open = Open::Layers(deciding);
                Some(decisions)
            }
            Open::Decide(decide) => {
                let edits = decide(&self.applied[index].sources(compute, &self.spill))?;
                self.applied[index].open = Open::Decide(decide);
                Some(edits)
            }
            open => {
                self.applied[index].open = open;
                None
            }
        };
        let Some(decisions) = decisions else { return Ok(false) };
        self.decided(index, decisions, compute)?;
        Ok(true)
    }

    /// Decides in one sweep what the plans of the passes `group` left open.
    fn decide_together(
        &mut self,
        group: Range<usize>,
        name: &str,
        options: &ConvertOptions,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<bool> {
        let mut parts: Vec<(&Model, &mut Deciding)> = self.applied[group.clone()]
            .iter_mut()
            .filter_map(|applied| match &mut applied.open {
                Open::Layers(deciding) => Some((&applied.source, &mut **deciding)),
                _ => None,
            })
            .collect();
        decide_together(&mut parts, name, options, directory_of(output), progress)?;
        for index in group.clone() {
            if index > group.start {
                self.applied[index].source = self.applied[index - 1].result.clone();
            }
            let PassRun { source, open: Open::Layers(deciding), .. } = &mut self.applied[index]
            else {
                continue;
            };
            deciding.decider.model_mut().clone_from(source);
            let decisions = deciding.decider.finish()?;
            self.decided(index, decisions, &options.compute)?;
        }
        Ok(true)
    }

    /// Plans pass `index` with what was decided, which is written where its user wants it.
    fn decided(&mut self, index: usize, decisions: LayerEdits, compute: &Compute) -> Result<()> {
        let applied = &mut self.applied[index];
        applied.decided(decisions, compute, &self.spill)?;
        applied.write_plan()
    }

    /// Where the costly steps in which pass `index` decides are saved beside `output`.
    fn saved(&self, index: usize, options: &ConvertOptions, output: &Path) -> Result<Saved> {
        let own = self.applied[index].pass.options();
        let key = self.key(index, own, &options.compute, None)?;
        TrainingDir::of(output).open(key, options.resume)
    }

    /// Hash of all that pass `index` with its `own` options depends on: what came before it, too.
    fn key(
        &self,
        index: usize,
        own: serde_json::Value,
        compute: &Compute,
        teacher: Option<&Checkpoint>,
    ) -> Result<String> {
        let before = &self.applied[..index];
        let options = match before {
            [] => own.clone(),
            _ => {
                let earlier: Vec<_> = before.iter().map(|applied| applied.pass.options()).collect();
                serde_json::json!({ "earlier": earlier, "options": own })
            }
        };
        let files: Vec<&Path> = self.applied[..=index]
            .iter()
            .flat_map(|applied| applied.pass.inputs().files())
            .collect();
        let read = before.iter().flat_map(|applied| &applied.beside.others);
        let models = std::iter::once(&self.checkpoint).chain(read).chain(teacher);
        fingerprint::of_training(&options, &own, compute, models, &files, &self.digests)
    }

    /// Trains what pass `index` plans, if that is what it does; whether it is.
    fn train(
        &mut self,
        index: usize,
        options: &ConvertOptions,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<bool> {
        let applied = &self.applied[index];
        let Some(task) = applied.training() else { return Ok(false) };
        let teacher = task
            .training
            .teacher
            .and_then(|_| applied.beside.others.first().zip(applied.beside.models.first()));
        let own = task.deciding(applied.pass.options());
        let teacher_read = teacher.map(|(checkpoint, _)| checkpoint);
        let key = self.key(index, own, &options.compute, teacher_read)?;
        let subject = TrainingJob {
            model: &applied.planned.model,
            teacher: teacher.map(|(_, model)| model),
            task,
            fingerprint: key,
            output,
            resume: options.resume,
            memory_budget: options.memory_budget,
            compute: &options.compute,
        };
        // The plan has compared a checkpoint's experts. Those that passes before this one made are
        // alike by their bytes alone, and what is said already isn't said twice.
        let known = &applied.planned.warnings;
        let found = if index == 0 { None } else { task.idle(&applied.planned.model, same_bytes)? };
        let idle = found.filter(|idle| known.iter().all(|known| known != idle));
        idle.iter().for_each(|warning| progress.note(warning));
        let (model, record) = subject.train(progress)?;
        self.applied[index].planned.warnings.extend(idle.map(str::to_owned));
        self.applied[index].trained(model, &record)?;
        self.trained = Some(record);
        Ok(true)
    }

    /// Runs the surveys of pass `index`, each a sweep over what it converts.
    fn survey(&mut self, index: usize, compute: &Compute, progress: &dyn Progress) -> Result<()> {
        let PassRun { source, planned, texts, .. } = &mut self.applied[index];
        for (survey, text) in planned.surveys.iter_mut().zip(texts) {
            let layers = source.layers.len();
            let tokens = text.batch().tokens();
            progress.stage(
                &format!("survey {tokens} tokens"),
                layers as u64,
                Unit::Layers { tokens },
            );
            survey.surveyor.begin(text)?;
            let mut sweep = Sweep::new(source, text.batch(), compute)?;
            for index in 0..layers {
                sweep.layer(index, survey.surveyor.as_mut())?;
                progress.advance(1);
            }
            for (layer, found) in survey.surveyor.found() {
                planned
                    .layers
                    .iter_mut()
                    .filter(|r| r.layer == layer)
                    .for_each(|r| r.found.push(found.clone()));
            }
        }
        Ok(())
    }
}
