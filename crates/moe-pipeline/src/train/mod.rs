//! Training a planned model before it is written.

mod dir;
mod log;
mod need;
mod order;
mod record;
mod settings;
mod state;
mod trainer;

use std::path::Path;
use std::sync::Arc;

use candle_core::DType;
use moe_checkpoint::{Checkpoint, Result};
use moe_forward::train::{Goal, Gradients, Losses, Objective, Parameters, Part, Reference, Scale, Trainee};
use moe_forward::{Batch, Corpus, EvalReport, Silent, Storage, TextRead, TokenizeOptions, evaluate};
use moe_math::Compute;
use moe_model::Model;
use moe_passes::{Idle, Precision, Training, idle_routers, same_bytes};

use order::Order;
use settings::CHANGEABLE;
use trainer::{Task, Trainer};

use crate::memory::{self, Text};
use crate::progress::{Progress, Unit};
use crate::resources::{ByteSize, directory_of, storage};

pub(crate) use dir::TrainingDir;
pub use dir::training_left;
pub(crate) use need::{Need, less_memory};
pub use record::{LoadChange, Measurement, StepRecord, TrainingRecord};
pub use settings::Settings;

/// A model that shall be trained, and what with.
pub(crate) struct Subject<'a> {
    /// The planned model.
    pub model: &'a Model,
    pub teacher: Option<&'a Model>,
    pub task: &'a TrainingTask,
    /// Hash of all that decides what comes of the training.
    pub fingerprint: String,
    pub output: &'a Path,
    pub resume: bool,
    pub memory_budget: Option<ByteSize>,
    pub compute: &'a Compute,
}

/// What a pass wants trained, and the text for it.
pub(crate) struct TrainingTask {
    pub training: Training,
    text: Corpus,
    held_out: Option<Corpus>,
}

impl TrainingTask {
    /// Reads the text by the tokenizer of `source`, of so many tokens; text that `memory` doesn't hold is refused.
    ///
    /// # Errors
    /// As for [`Corpus::load`].
    pub fn read(training: Training, source: &Checkpoint, vocab: usize, memory: Option<ByteSize>) -> Result<Self> {
        let text = &training.text;
        let options = TokenizeOptions {
            sequence_length: text.sequence_length,
            vocab,
            memory_bytes: memory.map(|budget| budget.0),
            ..TokenizeOptions::default()
        };
        let trained =
            TokenizeOptions { max_tokens: text.data_tokens, pack: text.pack, sample: Some(text.seed), ..options };
        let measured = TokenizeOptions { max_tokens: Some(text.held_out_tokens), ..options };
        let held_out = (!text.held_out.is_empty()).then(|| Corpus::load(&text.held_out, source.dir(), measured));
        Ok(Self { text: Corpus::load(&text.data, source.dir(), trained)?, held_out: held_out.transpose()?, training })
    }

    /// Memory that training `model` takes; held-out text is measured beside `teacher`.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Usage`] for a budget that no block of held-out tokens fits in.
    pub fn need(
        &self,
        model: &Model,
        teacher: Option<&Model>,
        memory_budget: Option<ByteSize>,
        compute: &Compute,
        scratch: &Path,
    ) -> Result<Need> {
        let measured = match &self.held_out {
            Some(corpus) => {
                let storage = storage(model, corpus.tokens(), memory_budget, compute, scratch)?;
                memory::evaluation(model, teacher, &Text::of(corpus, storage), compute)
            }
            None => 0,
        };
        let sequences = self.text.domains.iter().flat_map(|domain| &domain.sequences);
        let longest = sequences.map(Vec::len).max().unwrap_or(1);
        Ok(Need::of(model, &self.training, longest, teacher, measured, compute))
    }

    /// The windows that are trained on.
    pub fn windows(&self) -> impl Iterator<Item = &[u32]> {
        self.text.sequences()
    }

    /// What is measured on, if there is some.
    pub fn held_out(&self) -> Option<&Corpus> {
        self.held_out.as_ref()
    }

    /// What was read of its text.
    pub fn reads(&self) -> impl Iterator<Item = &TextRead> {
        self.text.texts.iter().chain(self.held_out.iter().flat_map(|held_out| &held_out.texts))
    }

    /// Those of `options` that decide what comes of it: the others may be changed when it goes on.
    pub fn deciding(&self, mut options: serde_json::Value) -> serde_json::Value {
        if let Some(options) = options.as_object_mut() {
            CHANGEABLE.iter().for_each(|key| _ = options.remove(*key));
        }
        options
    }
}

/// What is said where `--resume` finds nothing to go on from.
pub(crate) const NOTHING_SAVED: &str = "nothing was saved here: training begins anew";

/// What is said of a training that has nothing to find.
const IDLE: &str = "routers alone can change nothing here: all experts of each layer are the same network, and their weights sum to \
     the same. Give --train router,experts, or upcycle with --noise-std, --init drop or --expert";
/// The same where shared experts have gates, which are trained with routers.
const IDLE_BUT_SHARED: &str = "routers decide nothing here: all experts of each layer are the same network, and their weights sum to the same, so \
     that training them changes only how much the shared expert counts for. Give --train router,experts, or upcycle with --noise-std, --init \
     drop or --expert";

impl Subject<'_> {
    /// What is said where only routers are trained, and have nothing to decide. The experts' weights are read, once, where they are alike.
    ///
    /// # Errors
    /// What reading them returns.
    pub fn idle(&self) -> Result<Option<&'static str>> {
        let TrainingTask { training, .. } = self.task;
        let only_routers = training.parts.iter().all(|part| *part == Part::Routers);
        if !only_routers || training.options.steps == 0 {
            return Ok(None);
        }
        Ok(idle_routers(self.model, same_bytes)?.map(|idle| match idle {
            Idle::All => IDLE,
            Idle::ButSharedGates => IDLE_BUT_SHARED,
        }))
    }

    /// Trains, and gives the trained model.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Usage`] where it needs more memory than there is; what the training returns.
    pub fn train(&self, progress: &dyn Progress) -> Result<(Model, TrainingRecord)> {
        let TrainingTask { training, text, held_out } = self.task;
        // What can't be gone on from is refused before anything is computed.
        let goes_on = self.resume && TrainingDir::of(self.output).is_used()?;
        let saved = TrainingDir::of(self.output).open(self.fingerprint.clone(), self.resume)?;
        let scratch = directory_of(self.output);
        let need = self.task.need(self.model, self.teacher, self.memory_budget, self.compute, scratch)?;
        let keep_graphs = need.check(training, self.memory_budget)?;
        let sequences: Vec<Vec<u32>> = text.domains.iter().flat_map(|domain| domain.sequences.clone()).collect();
        let precision = match training.options.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        let parameters = Parameters::read(self.model, &training.parts, precision, self.compute)?;
        let reference = training
            .teacher
            .zip(self.teacher)
            .map(|(options, teacher)| Reference::new(teacher, options.kind, &sequences, scratch, self.compute));
        let weight = training.teacher.map_or(0.0, |teacher| teacher.weight);
        let tokens = held_out.as_ref().map_or(0, Corpus::tokens);
        let mut task = TextTask {
            trainee: Trainee { model: self.model, parameters: &parameters, compute: self.compute, keep_graphs },
            order: Order::new(
                sequences.iter().map(Vec::len).collect(),
                training.options.batch_tokens,
                training.text.seed,
            ),
            sequences: &sequences,
            accumulate: training.options.accumulate,
            reference: reference.transpose()?,
            objective: Objective {
                cross_entropy: 1.0 - weight,
                teacher: weight,
                balance: training.routers.balance,
                over: training.routers.over(),
                z: training.routers.z_loss,
                capacity_factor: training.routers.capacity_factor,
            },
            held_out: held_out.as_ref(),
            original: self.teacher,
            storage: storage(self.model, tokens, self.memory_budget, self.compute, scratch)?,
        };
        progress.stage("train", training.options.steps, Unit::Steps);
        let trainer = Trainer { parameters: &parameters, options: &training.options, saved: &saved, progress };
        let outcome = trainer.run(&mut task).inspect_err(|_| {
            // A folder in which nothing lies to go on from would only be in the way of the next run. What lay there before stays.
            if !goes_on {
                TrainingDir::of(self.output).remove_unless_saved();
            }
        })?;
        let model = parameters.applied(self.model, &outcome.encoded);
        let [before, after] = outcome.reports.map_or([None, None], |reports| reports.map(Some));
        let record = TrainingRecord {
            parameters: parameters.list.iter().map(|p| p.weight.elements()).sum(),
            steps: outcome.steps.last().map_or(0, |step| step.step),
            stopped_early: outcome.stopped_early,
            written: outcome.written,
            tokens: outcome.steps.iter().map(|step| step.tokens as u64).sum(),
            memory_estimate_bytes: need.bytes(keep_graphs),
            curve: record::thinned(&outcome.steps),
            settings: outcome.settings,
            measurements: outcome.measurements,
            before,
            after,
            load: record::changes(&outcome.load[0], &outcome.load[1]),
        };
        Ok((model, record))
    }
}

/// Next tokens of text, a teacher, and routers.
struct TextTask<'a> {
    trainee: Trainee<'a>,
    sequences: &'a [Vec<u32>],
    order: Order,
    accumulate: usize,
    reference: Option<Reference<'a>>,
    objective: Objective,
    held_out: Option<&'a Corpus>,
    /// What the result is measured beside.
    original: Option<&'a Model>,
    storage: Storage,
}

impl Task for TextTask<'_> {
    fn gradients(&mut self, gradients: &mut Gradients) -> Result<Losses> {
        let chosen: Vec<Vec<usize>> = (0..self.accumulate).map(|_| self.order.next()).collect();
        let batch = |windows: &Vec<usize>| Batch::new(windows.iter().map(|w| self.sequences[*w].as_slice()));
        let batches: Vec<Batch> = chosen.iter().map(batch).collect();
        let scale = Scale::over(&batches);
        let mut losses = Vec::new();
        for (batch, windows) in batches.iter().zip(&chosen) {
            let targets = self.reference.as_mut().map(|reference| reference.targets(batch, windows)).transpose()?;
            let goal = Goal { objective: &self.objective, teacher: targets.as_ref(), scale };
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
