//! A training that a pass asks for: its text, and the memory that it takes.

use moe_checkpoint::{Checkpoint, Result};
use moe_forward::train::{Parameters, TrainedPart};
use moe_forward::{Corpus, TextRead, TokenizeOptions};
use moe_model::{Expert, Model};
use moe_passes::{Idle, Training, idle_routers};

use super::lessened::Lessened;
use super::need::{PlannedTraining, TrainingMemory};
use super::settings::CHANGEABLE;
use crate::budget;
use crate::needs::{StageMemory, WorkLimits, measuring_bytes};

/// A training that a pass asks for, and its text.
pub(crate) struct TrainingTask {
    pub training: Training,
    text: Corpus,
    held_out: Option<Corpus>,
}

impl TrainingTask {
    /// Reads the text to train `model` on, and the text to measure it on, compared with `teacher`,
    /// by the tokenizer of `source`. Refuses text that doesn't fit in memory together with the
    /// training.
    ///
    /// # Errors
    /// As for [`Corpus::load`].
    pub fn read(
        training: Training,
        model: &Model,
        teacher: Option<&Model>,
        source: &Checkpoint,
        work: &WorkLimits<'_>,
    ) -> Result<Self> {
        let reading = Reading { training: &training, model, teacher, source, work };
        let held_out = reading.held_out()?;
        let text = reading.text(held_out.as_ref())?;
        Ok(Self { training, text, held_out })
    }

    /// Memory that training `model` takes; on held-out text it is compared with `teacher`.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Usage`] for a budget that no block of held-out tokens fits in.
    pub fn need(
        &self,
        model: &Model,
        teacher: Option<&Model>,
        work: &WorkLimits<'_>,
    ) -> Result<TrainingMemory> {
        self.lessened(Lessened::default(), model, teacher, work)
    }

    /// The same memory, with the options that lower it.
    ///
    /// # Errors
    /// As for [`Self::need`].
    pub fn needs(
        &self,
        model: &Model,
        teacher: Option<&Model>,
        work: &WorkLimits<'_>,
    ) -> Result<StageMemory> {
        let mut needs = StageMemory::fixed(self.need(model, teacher, work)?.planned(work.budget));
        for lessened in self.lessenable(model).ways() {
            let live = self.lessened(lessened, model, teacher, work)?.planned(work.budget);
            if lessened.options() > 1 {
                needs.add_several(lessened.remedy(), live);
            } else {
                needs.add(lessened.remedy(), live);
            }
        }
        Ok(needs)
    }

    /// The parts that options can still lower below what was asked for.
    fn lessenable(&self, model: &Model) -> Lessened {
        let trains_more = self.training.parts.iter().any(|part| *part != TrainedPart::Routers);
        let has_routers = Parameters::elements(model, &[TrainedPart::Routers]) > 0;
        Lessened {
            parts: trains_more && has_routers,
            batch: true,
            length: true,
            held_out: self.held_out.is_some(),
        }
    }

    /// Memory of training `model` where everything that is `lessened` is at its minimum.
    fn lessened(
        &self,
        lessened: Lessened,
        model: &Model,
        teacher: Option<&Model>,
        work: &WorkLimits<'_>,
    ) -> Result<TrainingMemory> {
        let mut measured = 0;
        if let Some(corpus) = &self.held_out {
            let tokens = lessened.share_of_held_out().of(corpus.tokens());
            let length = lessened.length_of(corpus.longest());
            measured = measuring_bytes(model, teacher, tokens, length, work)?;
        }
        let training = &lessened.training(&self.training);
        let length = lessened.length_of(self.longest());
        Ok(TrainingMemory::of(&PlannedTraining {
            model,
            teacher,
            training,
            length,
            measured,
            compute: work.compute,
        }))
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

/// Text that is read for the training of `model`.
struct Reading<'a> {
    training: &'a Training,
    model: &'a Model,
    teacher: Option<&'a Model>,
    source: &'a Checkpoint,
    work: &'a WorkLimits<'a>,
}

impl Reading<'_> {
    /// Reads the text to measure on, if there is some.
    fn held_out(&self) -> Result<Option<Corpus>> {
        let text = &self.training.text;
        if text.held_out.is_empty() {
            return Ok(None);
        }
        let room = budget::room(self.work.budget, "--held-out-tokens", |tokens| {
            self.live_bytes(tokens, text.sequence_length)
        });
        let options = TokenizeOptions {
            max_tokens: Some(text.held_out_tokens),
            room,
            ..self.tokenize_options()
        };
        Corpus::load(&text.held_out, self.source.dir(), options).map(Some)
    }

    /// Reads the text to train on, which must fit in memory together with `held_out`.
    fn text(&self, held_out: Option<&Corpus>) -> Result<Corpus> {
        let Training { text, options, .. } = self.training;
        let beside = self.live_bytes(held_out.map_or(0, Corpus::tokens), text.sequence_length)?;
        let options = TokenizeOptions {
            max_tokens: Some(text.most_tokens(options)),
            pack: text.pack,
            sample: Some(text.seed),
            room: budget::room(self.work.budget, "--data-tokens", |_| Ok(beside)),
            ..self.tokenize_options()
        };
        Corpus::load(&text.data, self.source.dir(), options)
    }

    fn tokenize_options(&self) -> TokenizeOptions {
        TokenizeOptions {
            sequence_length: self.training.text.sequence_length,
            vocab: self.model.vocab,
            memory_bytes: self.work.budget.map(|budget| budget.0),
            ..TokenizeOptions::default()
        }
    }

    /// Live bytes of a training that is measured on `held_out` tokens, in sequences of `length`.
    fn live_bytes(&self, held_out: usize, length: usize) -> Result<u64> {
        let Self { training, model, teacher, work, .. } = *self;
        let measured = match held_out {
            0 => 0,
            tokens => measuring_bytes(model, teacher, tokens, length, work)?,
        };
        let compute = work.compute;
        Ok(TrainingMemory::of(&PlannedTraining {
            model,
            teacher,
            training,
            length,
            measured,
            compute,
        })
        .bytes(false))
    }
}

/// The warning for a training that can't change anything.
const IDLE: &str = "routers alone can change nothing here: all experts of each layer are the same network, and their weights sum to \
     the same. Give --train router,experts, or upcycle with --noise-std, --init drop or --expert-model";
/// The warning where shared experts have gates, which are trained with routers.
const IDLE_BUT_SHARED: &str = "routers decide nothing here: all experts of each layer are the same network, and their weights sum to the same, so \
     that training them changes only how much the shared expert counts for. Give --train router,experts, or upcycle with --noise-std, --init \
     drop or --expert-model";
