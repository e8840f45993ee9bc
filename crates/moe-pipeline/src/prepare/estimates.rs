//! What a prepared run will hold and take, with everything planned and no weight read.

use std::path::Path;

use moe_checkpoint::Result;
use moe_forward::{Corpus, Storage};
use moe_model::Model;

use super::{PassRun, Prepared, held_out_of};
use crate::estimate::measuring;
use crate::memory::{self, Text};
use crate::needs::{Needs, Work};
use crate::options::ConvertOptions;
use crate::resources::storage;

impl<'p> Prepared<'p> {
    pub(super) fn own(&self, own: usize) -> &[PassRun<'p>] {
        &self.applied[self.applied.len().saturating_sub(own)..]
    }

    /// About how many floating-point operations the last `own` passes and measuring take.
    pub fn flops(&self, own: usize) -> f64 {
        let measured = self.held_out.as_ref().zip(held_out_of(self.last().pass));
        let measured = measured
            .map_or(0.0, |(corpus, asked)| measuring(self, corpus.tokens(), asked.sequence_length));
        self.own(own).iter().map(PassRun::flops).sum::<f64>() + measured
    }

    /// Logits of the result that are compared with the source's on held-out text. A training
    /// measures before its first step and behind its last one, at the least; without a teacher it
    /// takes one logarithm, which is about a third of that work.
    pub fn compared_logits(&self) -> f64 {
        let times = match self.last().training() {
            Some(task) if self.held_out.is_none() => {
                2.0 * task.training.teacher.map_or(1.0 / 3.0, |_| 1.0)
            }
            _ => 1.0,
        };
        times * self.measured_tokens().unwrap_or(0) as f64 * self.source.vocab as f64
    }

    /// Bytes on the disk that the last `own` passes need at once: the result's, and what is kept
    /// until that is written.
    pub fn disk_bytes(&self, own: usize) -> u64 {
        self.declaration().bytes()
            + self.side_files.bytes()
            + self.own(own).iter().map(PassRun::disk_bytes).sum::<u64>()
    }

    /// What each stage of the run asks for at once beyond what is held now, with everything planned
    /// and no weight read.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a budget that no block of tokens fits in.
    pub fn stages(&self, options: &ConvertOptions, output: &Path) -> Result<Vec<Needs>> {
        let work = options.work(output);
        let mut stages = Vec::new();
        let mut first = 0;
        while first < self.applied.len() {
            let end = self.end_of_sweep(first);
            let mut decided = Needs::default();
            for applied in &self.applied[first..end] {
                decided = decided.beside(applied.deciding_needs(&work)?);
                stages.extend(applied.needs(&work)?);
            }
            stages.push(decided);
            first = end;
        }
        let (source, result) = (&self.source, self.result());
        if let Some(corpus) = &self.held_out {
            let longest = Text::of(corpus, Storage::default()).longest;
            stages.push(Needs::of_text("--held-out-tokens", longest, |share, length| {
                measured_bytes(source, result, share.of(corpus.tokens()), length, &work)
            })?);
        }
        let working =
            self.applied.iter().map(|applied| applied.planned.working_bytes).max().unwrap_or(0);
        let writing = |probe: usize| {
            working
                + memory::writing(
                    source,
                    result,
                    &self.declaration().tensors,
                    probe,
                    &options.compute,
                )
        };
        stages.push(Needs::lowered(
            writing(options.probe_tokens),
            "lower --probe-tokens",
            writing(0),
        ));
        Ok(stages)
    }

    /// The most bytes that the run asks for at once beyond those that are held now.
    ///
    /// # Errors
    /// As for [`Self::stages`].
    pub fn live_bytes(&self, options: &ConvertOptions, output: &Path) -> Result<u64> {
        Ok(self.stages(options, output)?.into_iter().map(|stage| stage.live).max().unwrap_or(0))
    }

    /// Tokens of held-out text that the result will be measured on; none if there is no such text.
    pub fn measured_tokens(&self) -> Option<usize> {
        self.held_out.as_ref().map(Corpus::tokens).or_else(|| self.last().measured_tokens())
    }
}

/// Live bytes of measuring `result` beside `source` on so many tokens, in sequences of `length` at
/// most.
pub(super) fn measured_bytes(
    source: &Model,
    result: &Model,
    tokens: usize,
    length: usize,
    work: &Work<'_>,
) -> Result<u64> {
    let storage = storage(source, tokens, work.budget, work.compute, work.scratch)?;
    Ok(memory::evaluation(
        result,
        Some(source),
        &Text::first(tokens, length, storage),
        work.compute,
    ))
}
