//! Sums of losses and distances over the sequences of one or two models, and their means.

use std::ops::Range;

use candle_core::{Result as CandleResult, Tensor};
use moe_checkpoint::{Error, Result};
use moe_math::Compute;
use moe_math::likelihood::{agreements, divergence, log_probabilities, negative_log_likelihood};
use moe_model::Model;

use super::report::{Comparison, DomainReport, pool};
use crate::batch::Batch;
use crate::context::Context;
use crate::corpus::Corpus;
use crate::observer::Observer;
use crate::states::Storage;
use crate::sweep::{LOGIT_BYTES, LmHead, Sweep};

/// A model after its sweep, with its head.
pub(super) struct Scored<'a> {
    model: &'a Model,
    head: LmHead,
    sweep: Sweep<'a>,
}

impl<'a> Scored<'a> {
    pub fn run(
        model: &'a Model,
        batch: &'a Batch,
        compute: &'a Compute,
        storage: &Storage,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let mut sweep = Sweep::stored(model, batch, compute, storage)?;
        sweep.run(observer)?;
        Ok(Self { model, head: LmHead::load(model, compute)?, sweep })
    }

    /// Returns the log probabilities of the token after each of the tokens `rows`.
    fn log_probabilities(&self, rows: Range<usize>) -> Result<Tensor> {
        let hidden = self.sweep.hidden(rows)?;
        log_probabilities(&self.head.logits(&hidden)?).context(|| "log-probabilities".into())
    }
}

/// Marks `error` as one of the original, so that it isn't blamed on the evaluated model.
pub(super) fn of_original(error: Error, original: &Model) -> Error {
    error.within("the original").file(&original.config_file)
}

/// Scores a model, and compares it with its original if there is one.
pub(super) struct Scorer<'a> {
    pub model: Scored<'a>,
    pub original: Option<Scored<'a>>,
    pub batch: &'a Batch,
    /// For each token, the share of its gates that goes to rare experts.
    pub rare: Vec<f64>,
}

impl Scorer<'_> {
    /// Returns a row for each domain of `corpus`, whose sequences make up the batch, and one for
    /// all.
    pub fn rows(&self, corpus: &Corpus) -> Result<(Vec<DomainReport>, DomainReport)> {
        let mut spans = self.batch.spans.iter();
        let mut domains = Vec::new();
        let (mut rare_kl, mut rare_mass) = (0.0, 0.0);
        for domain in &corpus.domains {
            let mut sums = ScoreSums::default();
            for span in spans.by_ref().take(domain.sequences.len()) {
                self.add_sequence(span.clone(), &mut sums)?;
            }
            let compared = self.original.is_some();
            domains.push(sums.report(&domain.label, domain.sequences.len(), compared));
            rare_kl += sums.rare_kl;
            rare_mass += sums.rare_mass;
        }
        let all = pool(corpus, &domains, (rare_mass > 0.0).then(|| rare_kl / rare_mass));
        Ok((domains, all))
    }

    fn add_sequence(&self, span: Range<usize>, sums: &mut ScoreSums) -> Result<()> {
        let block = (LOGIT_BYTES / 8 / self.model.head.vocab()).max(1);
        for start in span.clone().step_by(block) {
            let tokens = start..(start + block).min(span.end);
            // The last token of the sequence predicts nothing.
            let next = &self.batch.ids[start + 1..(tokens.end + 1).min(span.end)];
            self.add_block(tokens, next, sums)?;
        }
        Ok(())
    }

    /// Adds a block of tokens. `next` are the targets of its first tokens.
    fn add_block(&self, tokens: Range<usize>, next: &[u32], sums: &mut ScoreSums) -> Result<()> {
        let log_q = self.model.log_probabilities(tokens.clone())?;
        let targets = Tensor::from_slice(next, next.len(), log_q.device());
        let targets = targets.context(|| "the loss".into())?;
        sums.tokens += tokens.len();
        sums.predicted += next.len();
        sums.loss += loss(&log_q, &targets).context(|| "the loss".into())?;
        if let Some(original) = &self.original {
            let rare = &self.rare[tokens.clone()];
            let log_p = original.log_probabilities(tokens);
            let log_p = log_p.map_err(|error| of_original(error, original.model))?;
            sums.original_loss += loss(&log_p, &targets).context(|| "the loss".into())?;
            sums.compare(&log_p, &log_q, rare).context(|| "the loss".into())?;
        }
        Ok(())
    }
}

/// Returns the summed negative log-likelihood of `targets` in the first rows of `log`.
fn loss(log: &Tensor, targets: &Tensor) -> CandleResult<f64> {
    match targets.dim(0)? {
        0 => Ok(0.0),
        predicted => negative_log_likelihood(&log.narrow(0, 0, predicted)?, targets),
    }
}

#[derive(Default)]
struct ScoreSums {
    tokens: usize,
    predicted: usize,
    loss: f64,
    original_loss: f64,
    kl: f64,
    rare_kl: f64,
    rare_mass: f64,
    agreements: u64,
}

impl ScoreSums {
    /// Adds the distance between the original's distributions and the model's. `rare` has each
    /// token's share of rare experts.
    fn compare(&mut self, log_p: &Tensor, log_q: &Tensor, rare: &[f64]) -> CandleResult<()> {
        let divergences = divergence(log_p, log_q)?;
        self.kl += divergences.iter().sum::<f64>();
        for (divergence, share) in divergences.iter().zip(rare) {
            self.rare_kl += share * divergence;
            self.rare_mass += share;
        }
        self.agreements += agreements(log_p, log_q)?;
        Ok(())
    }

    fn report(&self, label: &str, sequences: usize, compared: bool) -> DomainReport {
        let loss = self.loss / self.predicted as f64;
        let against = compared.then(|| Comparison {
            original_loss: self.original_loss / self.predicted as f64,
            kl: self.kl / self.tokens as f64,
            rare_kl: (self.rare_mass > 0.0).then(|| self.rare_kl / self.rare_mass),
            top1_agreement: self.agreements as f64 / self.tokens as f64,
        });
        DomainReport {
            label: label.to_owned(),
            sequences,
            tokens: self.tokens,
            predicted_tokens: self.predicted,
            loss,
            perplexity: loss.exp(),
            against,
        }
    }
}
