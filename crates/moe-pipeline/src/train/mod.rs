//! Training of a planned model before it is written.

mod dir;
mod log;
mod need;
mod order;
mod record;
mod settings;
mod speed;
mod state;
mod trainer;

use std::sync::Arc;

use candle_core::DType;
use moe_checkpoint::{Checkpoint, Result};
use moe_forward::train::{
    Goal, Gradients, Losses, Objective, Parameters, Reference, Scale, TrainedPart, Trainee,
};
use moe_forward::{
    Batch, Corpus, EvalReport, Silent, Storage, TextRead, TokenizeOptions, evaluate,
};
use moe_model::{Expert, Model};
use moe_passes::{Idle, Precision, Training, idle_routers};

use order::Order;
use settings::CHANGEABLE;
use trainer::{Task, Trainer};

use crate::budget;
use crate::context::RunContext;
use crate::needs::{Needs, Share, Work, measuring_bytes};
use crate::progress::Unit;

pub use dir::training_left;
pub(crate) use dir::{NOTHING_SAVED, TrainingDir};
pub(crate) use need::Need;
pub use record::{LoadChange, Measurement, StepRecord, TrainingRecord};
pub use settings::Settings;

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

/// A training that a pass asks for, and its text.
pub(crate) struct TrainingTask {
    pub training: Training,
    text: Corpus,
    held_out: Option<Corpus>,
}

impl TrainingTask {
    /// Reads the text to train `model` on, and the text to measure it on, compared with `teacher`,
    /// by the tokenizer of `source`. Refuses text that doesn't fit in memory beside the training.
    ///
    /// # Errors
    /// As for [`Corpus::load`].
    pub fn read(
        training: Training,
        model: &Model,
        teacher: Option<&Model>,
        source: &Checkpoint,
        work: &Work<'_>,
    ) -> Result<Self> {
        let text = &training.text;
        let options = TokenizeOptions {
            sequence_length: text.sequence_length,
            vocab: model.vocab,
            memory_bytes: work.budget.map(|budget| budget.0),
            ..TokenizeOptions::default()
        };
        let need = |measured| {
            Need::of(model, &training, text.sequence_length, teacher, measured, work.compute)
                .bytes(false)
        };
        let live =
            |tokens| Ok(need(measuring_bytes(model, teacher, tokens, text.sequence_length, work)?));
        let measured = TokenizeOptions {
            max_tokens: Some(text.held_out_tokens),
            room: budget::room(work.budget, "--held-out-tokens", live),
            ..options
        };
        let held_out = (!text.held_out.is_empty())
            .then(|| Corpus::load(&text.held_out, source.dir(), measured));
        let held_out = held_out.transpose()?;
        let measuring = held_out.as_ref().map_or(Ok(0), |corpus| {
            measuring_bytes(model, teacher, corpus.tokens(), text.sequence_length, work)
        })?;
        let beside = need(measuring);
        let trained = TokenizeOptions {
            // All steps together don't see more tokens of a label.
            max_tokens: Some(
                text.data_tokens
                    .unwrap_or_else(|| training.options.most_tokens(text.sequence_length)),
            ),
            pack: text.pack,
            sample: Some(text.seed),
            room: budget::room(work.budget, "--data-tokens", |_| Ok(beside)),
            ..options
        };
        Ok(Self { text: Corpus::load(&text.data, source.dir(), trained)?, held_out, training })
    }

    /// Memory that training `model` takes; on held-out text it is compared with `teacher`.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Usage`] for a budget that no block of held-out tokens fits in.
    pub fn need(&self, model: &Model, teacher: Option<&Model>, work: &Work<'_>) -> Result<Need> {
        let measured = match &self.held_out {
            Some(corpus) => {
                measuring_bytes(model, teacher, corpus.tokens(), corpus.longest(), work)?
            }
            None => 0,
        };
        Ok(Need::of(model, &self.training, self.longest(), teacher, measured, work.compute))
    }

    /// The same memory, with the options that lower it.
    ///
    /// # Errors
    /// As for [`Self::need`].
    pub fn needs(&self, model: &Model, teacher: Option<&Model>, work: &Work<'_>) -> Result<Needs> {
        let all = Lessened::default();
        let live = self.need(model, teacher, work)?.planned(work.budget);
        let of = |lessened: Lessened| self.lessened(model, teacher, lessened, work);
        let mut needs = Needs::fixed(live);
        let (parts, batch) = (Lessened { parts: true, ..all }, Lessened { batch: true, ..all });
        let (shorter, measured) =
            (Lessened { batch: true, length: true, ..all }, Lessened { measured: true, ..all });
        let has_parts = self.training.parts.iter().any(|part| *part != TrainedPart::Routers);
        let has_parts = has_parts && Parameters::elements(model, &[TrainedPart::Routers]) > 0;
        if has_parts {
            needs.add("train fewer parts of the model (--train router takes least)", of(parts)?);
        }
        needs.add("lower --batch-tokens", of(batch)?);
        if self.held_out.is_some() {
            needs.add("lower --held-out-tokens", of(measured)?);
        }
        needs.add_several("lower --batch-tokens and --sequence-length", of(shorter)?);
        let (held_out, also) = match self.held_out {
            Some(_) => (true, "lower --batch-tokens, --sequence-length and --held-out-tokens"),
            None => (false, "lower --batch-tokens and --sequence-length"),
        };
        let text = Lessened { measured: held_out, ..shorter };
        if held_out {
            needs.add_several(also, of(text)?);
        }
        if has_parts {
            let way =
                format!("train fewer parts of the model (--train router takes least) and {also}");
            needs.add_several(&way, of(Lessened { parts: true, ..text })?);
        }
        Ok(needs)
    }

    /// Live bytes where everything that is `lessened` is at its minimum.
    fn lessened(
        &self,
        model: &Model,
        teacher: Option<&Model>,
        lessened: Lessened,
        work: &Work<'_>,
    ) -> Result<u64> {
        const TOKENS: usize = 64;
        let mut training = self.training.clone();
        if lessened.parts {
            training.parts = vec![TrainedPart::Routers];
        }
        if lessened.batch {
            training.options.batch_tokens = training.options.batch_tokens.min(TOKENS);
        }
        let shortened =
            |longest: usize| if lessened.length { longest.min(TOKENS) } else { longest };
        let measured = match &self.held_out {
            Some(corpus) => {
                let share = if lessened.measured { Share::Least } else { Share::All };
                measuring_bytes(
                    model,
                    teacher,
                    share.of(corpus.tokens()),
                    shortened(corpus.longest()),
                    work,
                )?
            }
            None => 0,
        };
        let length = shortened(self.longest());
        Ok(Need::of(model, &training, length, teacher, measured, work.compute).planned(work.budget))
    }

    /// Tokens of held-out text; None without such text.
    pub fn measured_tokens(&self) -> Option<usize> {
        self.held_out.as_ref().map(Corpus::tokens)
    }

    fn longest(&self) -> usize {
        self.text.longest().max(1)
    }

    /// The windows to train on.
    pub fn windows(&self) -> impl Iterator<Item = &[u32]> {
        self.text.sequences()
    }

    /// The held-out text; None without such text.
    pub fn held_out(&self) -> Option<&Corpus> {
        self.held_out.as_ref()
    }

    /// Records of all text that was read.
    pub fn reads(&self) -> impl Iterator<Item = &TextRead> {
        self.text.texts.iter().chain(self.held_out.iter().flat_map(|held_out| &held_out.texts))
    }

    /// The warning where only routers of `model` are trained and have nothing to decide, since all
    /// experts are the same network according to `same`; otherwise None.
    ///
    /// # Errors
    /// Errors of `same`.
    pub fn idle(
        &self,
        model: &Model,
        same: fn(&Expert, &Expert) -> Result<bool>,
    ) -> Result<Option<&'static str>> {
        let only_routers = self.training.parts.iter().all(|part| *part == TrainedPart::Routers);
        if !only_routers || self.training.options.steps == 0 {
            return Ok(None);
        }
        Ok(idle_routers(model, same)?.map(|idle| match idle {
            Idle::All => IDLE,
            Idle::ButSharedGates => IDLE_BUT_SHARED,
        }))
    }

    /// The part of `options` that decides the outcome of a training; the rest may change when it is
    /// resumed.
    pub fn deciding(&self, mut options: serde_json::Value) -> serde_json::Value {
        if let Some(options) = options.as_object_mut() {
            CHANGEABLE.iter().for_each(|key| _ = options.remove(*key));
        }
        options
    }
}

/// Which parts of a training are at their minimum.
#[derive(Debug, Clone, Copy, Default)]
struct Lessened {
    /// Only routers are trained.
    parts: bool,
    batch: bool,
    length: bool,
    /// The amount of held-out text.
    measured: bool,
}

/// The warning for a training that can't change anything.
const IDLE: &str = "routers alone can change nothing here: all experts of each layer are the same network, and their weights sum to \
     the same. Give --train router,experts, or upcycle with --noise-std, --init drop or --expert-model";
/// The same where shared experts have gates, which are trained with routers.
const IDLE_BUT_SHARED: &str = "routers decide nothing here: all experts of each layer are the same network, and their weights sum to the same, so \
     that training them changes only how much the shared expert counts for. Give --train router,experts, or upcycle with --noise-std, --init \
     drop or --expert-model";

impl TrainingJob<'_> {
    /// Trains, and returns the trained model and the record of the training.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Usage`] where it needs more memory than there is; errors of the
    /// training.
    pub fn train(&self) -> Result<(Model, TrainingRecord)> {
        let TrainingTask { training, text, held_out } = self.task;
        let RunContext { output, options, progress, .. } = self.run;
        // A state that can't be resumed from is refused before anything is computed.
        let goes_on = options.resume && TrainingDir::of(output).is_used()?;
        let saved = TrainingDir::of(output).open(self.fingerprint.clone(), options.resume)?;
        let work = self.run.work();
        let (compute, scratch) = (work.compute, work.scratch);
        let need = self.task.need(self.model, self.teacher, &work)?;
        let ways = self.task.needs(self.model, self.teacher, &work)?;
        let keep_graphs = need.check(&ways, options.memory_budget)?;
        let sequences: Vec<&[u32]> = text.sequences().collect();
        let precision = match training.options.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        let parameters = Parameters::read(self.model, &training.parts, precision, compute)?;
        let reference = training.teacher.zip(self.teacher).map(|(options, teacher)| {
            Reference::new(teacher, options.kind, &sequences, scratch, compute)
        });
        let weight = training.teacher.map_or(0.0, |teacher| teacher.weight);
        let tokens = held_out.as_ref().map_or(0, Corpus::tokens);
        let mut task = TextTask {
            trainee: Trainee { model: self.model, parameters: &parameters, compute, keep_graphs },
            order: Order::new(
                sequences.iter().map(|sequence| sequence.len()).collect(),
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
            storage: self.run.storage(self.model, tokens)?,
        };
        progress.stage("train", training.options.steps, Unit::Steps);
        let trainer = Trainer {
            parameters: &parameters,
            options: &training.options,
            saved: &saved,
            progress,
        };
        let outcome = trainer.run(&mut task).inspect_err(|_| {
            // A folder without a state to resume from would only hinder the next run. A folder that
            // was there before stays.
            if !goes_on {
                TrainingDir::of(output).remove_unless_saved();
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
        let scale = Scale::over(&batches);
        let mut losses = Vec::new();
        for (batch, windows) in batches.iter().zip(&chosen) {
            let targets = self
                .reference
                .as_mut()
                .map(|reference| reference.targets(batch, windows))
                .transpose()?;
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
