//! Held-out quality: loss and perplexity per domain, distance to another model, expert load.

mod choices;
mod load_counter;
mod report;

use std::path::Path;

use candle_core::Tensor;
use moe_checkpoint::{Error, Kind, Result};
use moe_math::Compute;
use moe_math::likelihood::{agreements, divergence, log_probabilities, negative_log_likelihood};
use moe_model::Model;

use self::choices::Choices;
use self::load_counter::LoadCounter;
use self::report::pool;
pub use self::report::{Comparison, DomainReport, EvalReport, LayerLoad};
use crate::batch::Batch;
use crate::context::Context;
use crate::corpus::Corpus;
use crate::observer::Observer;
use crate::states::Storage;
use crate::sweep::{Head, Sweep};

/// Logits are compared in blocks of this many bytes of f64.
const LOGIT_BYTES: usize = 64 << 20;

/// Refuses models whose distributions of next tokens can't be compared.
///
/// # Errors
/// [`Kind::Mismatch`] where they have different vocabularies.
pub fn check_vocabularies(model: usize, original: usize, config_file: &Path) -> Result<()> {
    if model == original {
        return Ok(());
    }
    let what = format!("vocabularies of {model} and {original} tokens can't be compared");
    Err(Error::new(Kind::Mismatch, what)
        .file(config_file)
        .remedy("compare models with the same tokenizer"))
}

/// Evaluates `model` on `corpus`, beside `original` if it is given; `storage` says where hidden
/// states are kept.
///
/// # Errors
/// [`Kind::Mismatch`] where the two have different vocabularies; what the sweeps return.
pub fn evaluate(
    model: &Model,
    original: Option<&Model>,
    corpus: &Corpus,
    storage: &Storage,
    compute: &Compute,
    observer: &mut dyn Observer,
) -> Result<EvalReport> {
    original.map_or(Ok(()), |original| {
        check_vocabularies(model.vocab, original.vocab, &original.config_file)
    })?;
    let sequences: Vec<&[u32]> =
        corpus.domains.iter().flat_map(|d| &d.sequences).map(Vec::as_slice).collect();
    let batch = Batch::new(sequences);
    let mut counter = LoadCounter::new(corpus, observer);
    let hidden = Scored::run(model, &batch, compute, storage, &mut counter)?;
    let load = counter.finish();
    let mut choices = Choices { tokens: batch.tokens(), layers: Vec::new() };
    let reference = original
        .map(|original| {
            let scored = Scored::run(original, &batch, compute, storage, &mut choices);
            scored.map_err(|error| of_original(error, original))
        })
        .transpose()?;
    let rare = choices.rare_mass(batch.tokens());
    let mut spans = batch.spans.iter();
    let (mut domains, mut rare_sums) = (Vec::new(), [0.0; 2]);
    for domain in &corpus.domains {
        let mut sums = Sums::default();
        for span in spans.by_ref().take(domain.sequences.len()) {
            score(&hidden, reference.as_ref(), &batch.ids, &rare, span.clone(), &mut sums)
                .context(|| "the loss".into())??;
        }
        domains.push(sums.report(&domain.label, domain.sequences.len(), original.is_some()));
        rare_sums = [rare_sums[0] + sums.rare_kl, rare_sums[1] + sums.rare_mass];
    }
    let all = pool(corpus, &domains, (rare_sums[1] > 0.0).then(|| rare_sums[0] / rare_sums[1]));
    Ok(EvalReport { domains, all, load })
}

/// A model that a sweep has run, and its head.
struct Scored<'a> {
    model: &'a Model,
    head: Head,
    sweep: Sweep<'a>,
}

impl<'a> Scored<'a> {
    fn run(
        model: &'a Model,
        batch: &'a Batch,
        compute: &'a Compute,
        storage: &Storage,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let mut sweep = Sweep::stored(model, batch, compute, storage)?;
        sweep.run(observer)?;
        Ok(Self { model, head: Head::load(model, compute)?, sweep })
    }

    /// Logarithms of its probabilities of what follows the tokens `rows`.
    fn log_probabilities(&self, rows: std::ops::Range<usize>) -> Result<Tensor> {
        let hidden = self.sweep.hidden(rows)?;
        log_probabilities(&self.head.logits(&hidden)?).context(|| "log-probabilities".into())
    }
}

/// `error` in running the model that is compared with: nothing is wrong with the one that is
/// evaluated.
fn of_original(error: Error, original: &Model) -> Error {
    error.within("the original").file(&original.config_file)
}

#[derive(Default)]
struct Sums {
    tokens: usize,
    predicted: usize,
    loss: f64,
    original_loss: f64,
    kl: f64,
    rare_kl: f64,
    rare_mass: f64,
    agreements: u64,
}

impl Sums {
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

/// Adds the sequence `span` of `ids` to `sums`; `rare` holds each token's share of rare experts.
fn score(
    model: &Scored<'_>,
    original: Option<&Scored<'_>>,
    ids: &[u32],
    rare: &[f64],
    span: std::ops::Range<usize>,
    sums: &mut Sums,
) -> candle_core::Result<Result<()>> {
    let block = (LOGIT_BYTES / 8 / model.head.vocab()).max(1);
    for start in span.clone().step_by(block) {
        let rows = block.min(span.end - start);
        let tokens = start..start + rows;
        let log_q = match model.log_probabilities(tokens.clone()) {
            Ok(log_q) => log_q,
            Err(error) => return Ok(Err(error)),
        };
        // The last token of the sequence predicts nothing.
        let predicted = rows.min(span.end - 1 - start);
        let targets =
            Tensor::from_slice(&ids[start + 1..start + 1 + predicted], predicted, log_q.device())?;
        let loss = |log: &Tensor| match predicted {
            0 => Ok(0.0),
            _ => negative_log_likelihood(&log.narrow(0, 0, predicted)?, &targets),
        };
        sums.tokens += rows;
        sums.predicted += predicted;
        sums.loss += loss(&log_q)?;
        if let Some(original) = original {
            let log_p = match original.log_probabilities(tokens) {
                Ok(log_p) => log_p,
                Err(error) => return Ok(Err(of_original(error, original.model))),
            };
            sums.original_loss += loss(&log_p)?;
            let divergences = divergence(&log_p, &log_q)?;
            sums.kl += divergences.iter().sum::<f64>();
            for (divergence, share) in divergences.iter().zip(&rare[start..]) {
                sums.rare_kl += share * divergence;
                sums.rare_mass += share;
            }
            sums.agreements += agreements(&log_p, &log_q)?;
        }
    }
    Ok(Ok(()))
}
