//! Runs a teacher layer by layer, so that it is never in memory together with the trained model.
//! Its distributions may be kept in a file.

use std::ops::Range;
use std::path::Path;

use candle_core::{D, DType, Tensor};
use moe_checkpoint::{Result, Scratch};
use moe_math::losses::Teacher;
use moe_math::{Compute, sampling};
use moe_model::Model;
use rand_core::RngCore;
use rayon::prelude::*;

use crate::batch::Batch;
use crate::context::Context;
use crate::observer::Silent;
use crate::sweep::{LOGIT_BYTES, LmHead, Sweep};
/// Bytes of an entry in the file: a token id and its probability.
const ENTRY_BYTES: usize = 8;
/// Approximate number of tokens that the teacher runs on together when its distributions are kept.
/// The groups are fixed: rounding depends on the other tokens in a batch, and batches differ when a
/// run is continued.
const GROUP_TOKENS: usize = 4096;

/// Which part of the teacher's distribution is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TeacherKind {
    /// The whole distribution. The teacher runs for every batch.
    Logits,
    /// The most probable tokens, this many, and the mass of all others together. They are kept, so
    /// the teacher runs once.
    Top(usize),
    /// This many tokens drawn by the teacher's probabilities with this seed, each weighted by its
    /// share of the draws: an unbiased sample, unlike the most probable tokens (2503.16870). They
    /// are kept.
    Sampled(usize, u64),
}

/// A teacher, and its distributions for the sequences of a text.
pub struct Reference<'a> {
    model: &'a Model,
    compute: &'a Compute,
    kind: TeacherKind,
    sequences: &'a [&'a [u32]],
    /// Index of each sequence's first token among all tokens, and the end of the last one.
    offsets: Vec<usize>,
    /// Groups of sequences that run together, and whether their entries are in the file.
    groups: Vec<(Range<usize>, bool)>,
    file: Option<Scratch>,
}

impl<'a> Reference<'a> {
    /// Creates a teacher of `sequences`, whose ids must be in its vocabulary. Distributions are
    /// kept in an anonymous file in `scratch`.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Io`].
    pub fn new(
        model: &'a Model,
        kind: TeacherKind,
        sequences: &'a [&'a [u32]],
        scratch: &Path,
        compute: &'a Compute,
    ) -> Result<Self> {
        let mut offsets = vec![0];
        sequences
            .iter()
            .for_each(|sequence| offsets.push(offsets[offsets.len() - 1] + sequence.len()));
        let file = (kind != TeacherKind::Logits).then(|| Scratch::create(scratch)).transpose()?;
        let mut groups: Vec<(Range<usize>, bool)> = Vec::new();
        for index in 0..sequences.len() {
            match groups.last_mut() {
                Some((group, _)) if offsets[index + 1] - offsets[group.start] <= GROUP_TOKENS => {
                    group.end = index + 1
                }
                _ => groups.push((index..index + 1, false)),
            }
        }
        Ok(Self { model, compute, kind, sequences, offsets, groups, file })
    }

    /// Returns the teacher's distributions for `batch`, which was made from the sequences
    /// `indices`.
    ///
    /// # Errors
    /// Errors of sweeps and of the scratch file.
    pub fn targets(&mut self, batch: &Batch, indices: &[usize]) -> Result<Targets> {
        let entries = match self.kind {
            TeacherKind::Logits => {
                let mut sweep = Sweep::new(self.model, batch, self.compute)?;
                sweep.run(&mut Silent)?;
                let states = sweep.hidden(0..batch.tokens())?;
                return Ok(Targets::Running {
                    head: Box::new(LmHead::load(self.model, self.compute)?),
                    states,
                });
            }
            TeacherKind::Top(entries) | TeacherKind::Sampled(entries, _) => {
                entries.min(self.model.vocab)
            }
        };
        for at in 0..self.groups.len() {
            let (group, kept) = &self.groups[at];
            if !kept && indices.iter().any(|index| group.contains(index)) {
                self.keep(group.clone(), entries)?;
                self.groups[at].1 = true;
            }
        }
        self.read(indices, entries)
    }

    fn file(&self) -> &Scratch {
        self.file.as_ref().expect("kinds that are kept have a file")
    }

    fn keep(&self, group: Range<usize>, entries: usize) -> Result<()> {
        let batch = Batch::new(self.sequences[group.clone()].iter().copied());
        let mut sweep = Sweep::new(self.model, &batch, self.compute)?;
        sweep.run(&mut Silent)?;
        let head = LmHead::load(self.model, self.compute)?;
        let rows = (LOGIT_BYTES / 4 / head.vocab()).max(1);
        for (span, index) in batch.spans.iter().zip(group) {
            for start in span.clone().step_by(rows) {
                let range = start..(start + rows).min(span.end);
                let logits = head.logits(&sweep.hidden(range)?)?;
                let p = probabilities(&logits).context(|| "a teacher's probabilities".into())?;
                let first = self.offsets[index] + start - span.start;
                let bytes = self.encoded(&p, first, entries);
                self.file().write_at((first * entries * ENTRY_BYTES) as u64, &bytes)?;
            }
        }
        Ok(())
    }

    /// Encodes the entries of tokens with probabilities `p` for the file. `first` is the index of
    /// the first token among all.
    fn encoded(&self, p: &[Vec<f32>], first: usize, entries: usize) -> Vec<u8> {
        let few = p.par_iter().enumerate().map(|(row, p)| match self.kind {
            TeacherKind::Sampled(_, seed) => {
                drawn(p, entries, &mut sampling::generator(seed, (first + row) as u64))
            }
            TeacherKind::Top(_) | TeacherKind::Logits => top(p, entries),
        });
        let few: Vec<Vec<(u32, f32)>> = few.collect();
        few.iter()
            .flatten()
            .flat_map(|(id, p)| id.to_le_bytes().into_iter().chain(p.to_le_bytes()))
            .collect()
    }

    fn read(&self, indices: &[usize], entries: usize) -> Result<Targets> {
        let (mut ids, mut probabilities) = (Vec::new(), Vec::new());
        for index in indices {
            let (start, end) = (self.offsets[*index], self.offsets[*index + 1]);
            let mut bytes = vec![0u8; (end - start) * entries * ENTRY_BYTES];
            self.file().read_at((start * entries * ENTRY_BYTES) as u64, &mut bytes)?;
            for entry in bytes.as_chunks::<ENTRY_BYTES>().0 {
                let [a, b, c, d, e, f, g, h] = *entry;
                ids.push(u32::from_le_bytes([a, b, c, d]));
                probabilities.push(f32::from_le_bytes([e, f, g, h]));
            }
        }
        let shape = (ids.len() / entries, entries);
        let device = &self.compute.device;
        let ids = Tensor::from_vec(ids, shape, device).context(tokens_label)?;
        let probabilities = Tensor::from_vec(probabilities, shape, device).context(tokens_label)?;
        Ok(Targets::Kept { ids, probabilities })
    }
}

/// The teacher's distributions for a batch.
pub enum Targets {
    /// The logits, `[tokens, vocab]`.
    Logits(Tensor),
    /// The whole distribution, computed on demand.
    Running {
        /// The teacher's head.
        head: Box<LmHead>,
        /// The teacher's last hidden states, `[tokens, hidden]`.
        states: Tensor,
    },
    /// Probabilities of a few tokens of the vocabulary for each token.
    Kept {
        /// `[tokens, k]`.
        ids: Tensor,
        /// `[tokens, k]`.
        probabilities: Tensor,
    },
}

impl Targets {
    /// Returns the distributions of the tokens `range`.
    pub(super) fn rows(&self, range: Range<usize>) -> Result<Teacher> {
        Ok(match self {
            Self::Logits(logits) => Teacher::Logits(tokens(logits, &range)?),
            Self::Running { head, states } => {
                Teacher::Logits(head.logits(&tokens(states, &range)?)?)
            }
            Self::Kept { ids, probabilities } => Teacher::Few {
                ids: tokens(ids, &range)?,
                probabilities: tokens(probabilities, &range)?,
            },
        })
    }
}

fn tokens(rows: &Tensor, range: &Range<usize>) -> Result<Tensor> {
    rows.narrow(0, range.start, range.len()).context(tokens_label)
}

fn tokens_label() -> String {
    "a teacher's tokens".to_owned()
}

/// Returns the distribution over the vocabulary of each row of `logits`.
fn probabilities(logits: &Tensor) -> candle_core::Result<Vec<Vec<f32>>> {
    candle_nn::ops::softmax(&logits.to_dtype(DType::F32)?, D::Minus1)?.to_vec2()
}

/// Returns the `count` most probable tokens.
fn top(p: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut order: Vec<u32> = (0..p.len() as u32).collect();
    let most_probable_first =
        |a: &u32, b: &u32| p[*b as usize].total_cmp(&p[*a as usize]).then(a.cmp(b));
    if count < order.len() {
        order.select_nth_unstable_by(count, most_probable_first);
    }
    order.truncate(count);
    order.sort_unstable_by(most_probable_first);
    order.into_iter().map(|id| (id, p[id as usize])).collect()
}

/// Draws `count` times, and returns each token with its share of the draws. Unused entries have a
/// share of zero.
fn drawn(p: &[f32], count: usize, random: &mut impl RngCore) -> Vec<(u32, f32)> {
    let mut sum = 0f64;
    let mut cumulated = Vec::with_capacity(p.len());
    for p in p {
        sum += f64::from(*p);
        cumulated.push(sum);
    }
    let mut ids = Vec::with_capacity(count);
    for _ in 0..count {
        let x = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * sum;
        ids.push(cumulated.partition_point(|c| *c <= x).min(p.len() - 1) as u32);
    }
    ids.sort_unstable();
    let mut entries: Vec<(u32, f32)> = Vec::with_capacity(count);
    for run in ids.chunk_by(|a, b| a == b) {
        entries.push((run[0], run.len() as f32 / count as f32));
    }
    entries.resize(count, (0, 0.0));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_tokens_are_kept() {
        assert_eq!(top(&[0.1, 0.4, 0.2, 0.3], 2), [(1, 0.4), (3, 0.3)]);
        assert_eq!(top(&[0.5, 0.5], 2), [(0, 0.5), (1, 0.5)]);
    }

    /// The tolerance is five standard errors.
    #[test]
    fn draws_are_unbiased() {
        let p = [0.5, 0.3, 0.15, 0.05];
        let mut sums = [0f64; 4];
        const ROWS: u64 = 2_000;
        for row in 0..ROWS {
            let entries = drawn(&p, 12, &mut sampling::generator(3, row));
            assert_eq!(entries.len(), 12);
            entries.iter().for_each(|(id, share)| sums[*id as usize] += f64::from(*share));
        }
        for (sum, p) in sums.iter().zip(p) {
            let error = (f64::from(p) * (1.0 - f64::from(p)) / (12 * ROWS) as f64).sqrt();
            assert!((sum / ROWS as f64 - f64::from(p)).abs() < 5.0 * error, "{sums:?}");
        }
    }
}
