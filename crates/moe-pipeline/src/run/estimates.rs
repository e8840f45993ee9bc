//! Estimates of a planned run's memory, disk and time, without reading weights.

use moe_checkpoint::Result;
use moe_forward::{Corpus, ForwardWork};
use moe_model::Weight;
use moe_passes::TextSource;

use super::held_out::held_out_of;
use super::pass_run::{Open, PassRun};
use super::planned::Planned;
use super::texts::surveyed;
use crate::budget;
use crate::deciding::Deciding;
use crate::estimate::measuring;
use crate::live::live_bytes;
use crate::memory;
use crate::needs::{self, Share, StageMemory, WorkLimits, measuring_bytes};
use crate::resources::ByteSize;
use crate::train::{TrainingMemory, TrainingTask};

impl<'r> Planned<'r> {
    fn last_passes(&self, count: usize) -> &[PassRun<'r>] {
        &self.passes[self.passes.len().saturating_sub(count)..]
    }

    /// The approximate number of floating-point operations of the last `own` passes and of
    /// measuring.
    pub fn flops(&self, own: usize) -> f64 {
        let measured = self.held_out.as_ref().zip(held_out_of(self.last().pass));
        let measured = measured.map_or(0.0, |(corpus, asked)| {
            measuring([self.source(), self.result()], corpus.tokens(), asked.sequence_length)
        });
        self.last_passes(own).iter().map(PassRun::flops).sum::<f64>() + measured
    }

    /// Returns the number of logits of the result that are compared with the source's on held-out
    /// text. A training evaluates at least twice: before its first step and after its last one.
    /// Without a teacher, an evaluation only takes a log-softmax, about a third of that work.
    pub fn compared_logits(&self) -> f64 {
        let times = match self.last().training() {
            Some(task) if self.held_out.is_none() => {
                2.0 * task.training.teacher.map_or(1.0 / 3.0, |_| 1.0)
            }
            _ => 1.0,
        };
        times * self.measured_tokens().unwrap_or(0) as f64 * self.source().vocab as f64
    }

    /// Returns the peak disk space of the last `own` passes in bytes: the result, and scratch files
    /// that are kept until it is written.
    pub fn disk_bytes(&self, own: usize) -> u64 {
        self.declaration().bytes()
            + self.side_files.bytes()
            + self.last_passes(own).iter().map(PassRun::disk_bytes).sum::<u64>()
    }

    /// Returns the live bytes that each stage allocates at its peak, in addition to those held now.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Usage`] for a budget that no block of tokens fits in.
    fn stages(&self, budget: Option<ByteSize>) -> Result<Vec<StageMemory>> {
        let run = &self.opened.run;
        let work = WorkLimits { budget, ..run.work() };
        let mut stages = Vec::new();
        let mut first = 0;
        while first < self.passes.len() {
            let end = self.end_of_sweep(first);
            let mut decided = StageMemory::default();
            for pass in &self.passes[first..end] {
                decided = decided.combined_with(pass.deciding_needs(&work)?);
                stages.extend(pass.needs(&work)?);
            }
            stages.push(decided);
            first = end;
        }
        stages.extend(self.measuring_needs(&work)?);
        let most = self.writing_bytes(run.options.probe_tokens);
        stages.push(StageMemory::lowered(most, "lower --probe-tokens", self.writing_bytes(0)));
        Ok(stages)
    }

    /// Memory of measuring the result on held-out text; None without such text.
    fn measuring_needs(&self, work: &WorkLimits<'_>) -> Result<Option<StageMemory>> {
        let Some(corpus) = &self.held_out else { return Ok(None) };
        StageMemory::of_text("--held-out-tokens", corpus.longest(), |share, length| {
            let tokens = share.of(corpus.tokens());
            measuring_bytes(self.result(), Some(self.source()), tokens, length, work)
        })
        .map(Some)
    }

    /// Live bytes of writing the result while it is compared on `probe_tokens` tokens.
    fn writing_bytes(&self, probe_tokens: usize) -> u64 {
        let working = self.passes.iter().map(|pass| pass.planned.working_bytes).max().unwrap_or(0);
        let (models, tensors) = ([self.source(), self.result()], &self.declaration().tensors);
        working + memory::writing(models, tensors, probe_tokens, self.opened.run.compute())
    }

    /// The maximum number of bytes that the run asks for at once under `budget`, beyond those held
    /// now.
    fn live_bytes(&self, budget: Option<ByteSize>) -> Result<u64> {
        Ok(self.stages(budget)?.into_iter().map(|stage| stage.live).max().unwrap_or(0))
    }

    /// Checks that the run fits its memory budget, and returns the resident memory that it
    /// promises.
    ///
    /// # Errors
    /// As for [`budget::check_budget`].
    pub fn check_budget(&self) -> Result<ByteSize> {
        let budget = self.opened.run.options.memory_budget;
        let ways = |budget| needs::ways(&self.stages(Some(budget)).ok()?, budget);
        let checked = budget::check_budget(budget, ways, |budget| self.live_bytes(Some(budget)))?;
        let live = checked.map_or_else(|| self.live_bytes(None), Ok)?;
        Ok(budget::resident(live + live_bytes().unwrap_or(0)))
    }

    /// Tokens of held-out text that the result will be measured on; None if there is no such text.
    pub fn measured_tokens(&self) -> Option<usize> {
        self.held_out.as_ref().map(Corpus::tokens).or_else(|| self.last().measured_tokens())
    }
}

impl PassRun<'_> {
    /// The approximate number of floating-point operations of surveys, decisions and training.
    fn flops(&self) -> f64 {
        let surveyed = self.texts.iter().map(|text| text.batch());
        let surveyed = surveyed
            .map(|batch| ForwardWork::of(&self.source, batch.tokens(), batch.longest()).total());
        let decided = self.deciding().map_or(0.0, Deciding::flops);
        let trained = self.training().map_or(0.0, |task| {
            let (options, text) = (&task.training.options, &task.training.text);
            let model = &self.planned.model;
            let tokens = options.batch_tokens * options.accumulate;
            let head = 2.0 * tokens as f64 * model.hidden as f64 * model.vocab as f64;
            let step = ForwardWork::of(model, tokens, text.sequence_length).total() + head;
            // The backward pass takes twice the work of the forward pass, and layers whose graphs
            // aren't kept run again; a teacher adds a forward pass.
            let times = if task.training.teacher.is_some() { 5.0 } else { 4.0 };
            options.steps as f64 * times * step
        });
        surveyed.sum::<f64>() + decided + trained
    }

    /// Disk space, in bytes, for made weights until the result is written, and for the saved
    /// training.
    fn disk_bytes(&self) -> u64 {
        let made = self
            .declaration
            .tensors
            .iter()
            .map(|(_, weight)| weight)
            .filter(|weight| weight.stored().is_none());
        // Decided weights are kept until they are written; others are made only then.
        let decides = matches!(self.open, Open::Decide(_) | Open::Layers(_));
        let made = if decides { made.map(Weight::bytes).sum() } else { 0 };
        made + self
            .training()
            .map_or(0, |task| TrainingMemory::disk_bytes(&self.planned.model, &task.training))
    }

    /// Memory of each survey and of training, which run one at a time.
    fn needs(&self, work: &WorkLimits<'_>) -> Result<Vec<StageMemory>> {
        let mut needs = Vec::new();
        for (survey, text) in self.planned.surveys.iter().zip(&self.texts) {
            let batch = text.batch();
            let live = |share: Share, length| {
                Ok(surveyed(survey, &self.source, share.of(batch.tokens()), length, work))
            };
            needs.push(match &survey.text {
                TextSource::Data { .. } => {
                    StageMemory::of_text("--data-tokens", batch.longest(), live)?
                }
                TextSource::Prompts { .. } => {
                    StageMemory::fixed(live(Share::All, batch.longest())?)
                }
            });
        }
        if let Some(task) = self.training() {
            let teacher = task.training.teacher.and(self.inputs.models.first());
            needs.push(task.needs(&self.planned.model, teacher, work)?);
        }
        Ok(needs)
    }

    /// Memory of deciding; zero where the pass doesn't decide in a sweep.
    fn deciding_needs(&self, work: &WorkLimits<'_>) -> Result<StageMemory> {
        self.deciding()
            .map_or(Ok(StageMemory::default()), |deciding| deciding.needs(&self.source, work))
    }

    /// Number of tokens that the training is evaluated on; None without a training or held-out
    /// text.
    fn measured_tokens(&self) -> Option<usize> {
        self.training().and_then(TrainingTask::measured_tokens)
    }
}
