//! Training of a planned model on the text of its task.

use std::sync::Arc;

use candle_core::DType;
use moe_checkpoint::{Result, Saved};
use moe_forward::train::{
    BatchWeight, Goal, Gradients, Losses, Objective, Parameters, Reference, Trainee,
};
use moe_forward::{Batch, Corpus, EvalReport, Silent, Storage, evaluate};
use moe_model::Model;
use moe_passes::{Precision, Training};

use super::dir::TrainingDir;
use super::need::TrainingMemory;
use super::order::Order;
use super::record::{self, TrainingRecord};
use super::task::TrainingTask;
use super::trainer::{Task, Trainer, TrainingOutcome};
use crate::context::RunContext;
use crate::needs::WorkLimits;
use crate::progress::Unit;

/// A model to train, and everything that its training needs.
pub(crate) struct TrainingJob<'a> {
    /// The planned model.
    pub model: &'a Model,
    pub teacher: Option<&'a Model>,
    pub task: &'a TrainingTask,
    /// Hash of everything that decides the training's outcome.
    pub fingerprint: String,
    pub run: RunContext<'a>,
}

impl TrainingJob<'_> {
    /// Trains, and returns the trained model and the record of the training.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Usage`] where it needs more memory than there is; errors of the
    /// training.
    pub fn train(&self) -> Result<(Model, TrainingRecord)> {
        let RunContext { output, options, .. } = self.run;
        // A state that can't be resumed from is refused before anything is computed.
        let goes_on = options.resume && TrainingDir::of(output).is_used()?;
        let saved = TrainingDir::of(output).open(self.fingerprint.clone(), options.resume)?;
        let work = self.run.work();
        let (need, keep_graphs) = self.need(&work)?;
        let training = &self.task.training;
        let precision = dtype(training.options.precision);
        let sequences: Vec<&[u32]> = self.task.windows().collect();
        let parameters = Parameters::read(self.model, &training.parts, precision, work.compute)?;
        let trainee = Trainee {
            model: self.model,
            parameters: &parameters,
            compute: work.compute,
            keep_graphs,
        };
        let task = self.text_task(&sequences, trainee)?;
        let outcome = self.run(task, &saved).inspect_err(|_| {
            // A folder without a state to resume from would only hinder the next run. A folder that
            // was there before stays.
            if !goes_on {
                TrainingDir::of(output).remove_unless_saved();
            }
        })?;
        let model = parameters.applied(self.model, &outcome.encoded);
        Ok((model, record_of(outcome, &parameters, need.bytes(keep_graphs))))
    }

    /// The memory that the training needs, and whether there is room to keep all graphs.
    fn need(&self, work: &WorkLimits<'_>) -> Result<(TrainingMemory, bool)> {
        let need = self.task.need(self.model, self.teacher, work)?;
        let ways = self.task.needs(self.model, self.teacher, work)?;
        let keep_graphs = need.check(&ways, work.budget)?;
        Ok((need, keep_graphs))
    }

    /// The task of training `trainee` on `sequences`.
    fn text_task<'t>(
        &'t self,
        sequences: &'t [&'t [u32]],
        trainee: Trainee<'t>,
    ) -> Result<TextTask<'t>> {
        let training = &self.task.training;
        let reference = self.reference(sequences)?;
        let held_out = self.task.held_out();
        let tokens = held_out.map_or(0, Corpus::tokens);
        Ok(TextTask {
            trainee,
            order: Order::new(
                sequences.iter().map(|sequence| sequence.len()).collect(),
                training.options.batch_tokens,
                training.text.seed,
            ),
            sequences,
            accumulate: training.options.accumulate,
            reference,
            objective: objective(training),
            held_out,
            original: self.teacher,
            storage: self.run.storage(self.model, tokens)?,
        })
    }

    /// The teacher's answers for `sequences`; None where nothing is learned from it.
    fn reference<'t>(&'t self, sequences: &'t [&'t [u32]]) -> Result<Option<Reference<'t>>> {
        let Some((options, teacher)) = self.task.training.teacher.zip(self.teacher) else {
            return Ok(None);
        };
        let (scratch, compute) = (self.run.scratch(), self.run.compute());
        Reference::new(teacher, options.kind, sequences, scratch, compute).map(Some)
    }

    /// Runs the trainer on `task`, with what is `saved`.
    fn run(&self, mut task: TextTask<'_>, saved: &Saved) -> Result<TrainingOutcome> {
        let options = &self.task.training.options;
        let progress = self.run.progress;
        progress.stage("train", options.steps, Unit::Steps);
        let parameters = task.trainee.parameters;
        Trainer { parameters, options, saved, progress }.run(&mut task)
    }
}

fn dtype(precision: Precision) -> DType {
    match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    }
}

/// The loss that `training` minimizes.
fn objective(training: &Training) -> Objective {
    let weight = training.teacher.map_or(0.0, |teacher| teacher.weight);
    Objective {
        cross_entropy: 1.0 - weight,
        teacher: weight,
        balance: training.routers.balance,
        over: training.routers.over(),
        z: training.routers.z_loss,
        capacity_factor: training.routers.capacity_factor,
    }
}

/// The record of a training of `parameters` that was planned to hold `memory_estimate_bytes`.
fn record_of(
    outcome: TrainingOutcome,
    parameters: &Parameters,
    memory_estimate_bytes: u64,
) -> TrainingRecord {
    let [before, after] = outcome.reports.map_or([None, None], |reports| reports.map(Some));
    TrainingRecord {
        parameters: parameters.list.iter().map(|p| p.weight.elements()).sum(),
        steps: outcome.steps.last().map_or(0, |step| step.step),
        stopped_early: outcome.stopped_early,
        written: outcome.written,
        tokens: outcome.steps.iter().map(|step| step.tokens as u64).sum(),
        memory_estimate_bytes,
        curve: record::thinned(&outcome.steps),
        settings: outcome.settings,
        measurements: outcome.measurements,
        before,
        after,
        load: record::changes(&outcome.load[0], &outcome.load[1]),
    }
}

/// Training on next tokens of text, with a teacher, and with losses of routers.
struct TextTask<'a> {
    trainee: Trainee<'a>,
    sequences: &'a [&'a [u32]],
    order: Order,
    accumulate: usize,
    reference: Option<Reference<'a>>,
    objective: Objective,
    held_out: Option<&'a Corpus>,
    /// The model to compare the result with.
    original: Option<&'a Model>,
    storage: Storage,
}

impl Task for TextTask<'_> {
    fn gradients(&mut self, gradients: &mut Gradients) -> Result<Losses> {
        let chosen: Vec<Vec<usize>> = (0..self.accumulate).map(|_| self.order.next()).collect();
        let batch = |windows: &Vec<usize>| Batch::new(windows.iter().map(|w| self.sequences[*w]));
        let batches: Vec<Batch> = chosen.iter().map(batch).collect();
        let weight = BatchWeight::over(&batches);
        let mut losses = Vec::new();
        for (batch, windows) in batches.iter().zip(&chosen) {
            let targets = self
                .reference
                .as_mut()
                .map(|reference| reference.targets(batch, windows))
                .transpose()?;
            let goal = Goal { objective: &self.objective, teacher: targets.as_ref(), weight };
            losses.push(self.trainee.accumulate(batch, goal, gradients)?);
        }
        Ok(Losses::together(&losses))
    }

    fn skip(&mut self, steps: u64) {
        for _ in 0..steps * self.accumulate as u64 {
            self.order.next();
        }
    }

    fn total(&self, losses: &Losses) -> f64 {
        losses.total(&self.objective)
    }

    fn measure(&mut self, encoded: &[Arc<Vec<u8>>]) -> Result<Option<EvalReport>> {
        let Some(held_out) = self.held_out else { return Ok(None) };
        let model = self.trainee.parameters.applied(self.trainee.model, encoded);
        let compute = self.trainee.compute;
        evaluate(&model, self.original, held_out, &self.storage, compute, &mut Silent).map(Some)
    }
}
