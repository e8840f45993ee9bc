//! Held-out quality: loss and perplexity per domain, distance to another model, expert load.

use std::path::Path;

use candle_core::Tensor;
use moe_checkpoint::{Error, Kind, Result};
use moe_math::Compute;
use moe_math::likelihood::{agreements, divergence, log_probabilities, negative_log_likelihood};
use moe_math::load::Load;
use moe_math::routing::Routing;
use moe_model::Model;
use serde::Serialize;

use crate::batch::Batch;
use crate::context::Context;
use crate::corpus::Corpus;
use crate::observer::Observer;
use crate::states::Storage;
use crate::sweep::{Head, Sweep};

/// Logits are compared in blocks of this many bytes of f64.
const LOGIT_BYTES: usize = 64 << 20;

/// A model beside its original on the same tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// The original's mean loss in nats.
    pub original_loss: f64,
    /// Mean KL(original ‖ model) in nats, over all tokens.
    pub kl: f64,
    /// The same over what rare experts serve: each token weighs as much as the gates that the
    /// original gives to the quarter of each layer's experts that fewest of all these tokens
    /// choose. None for a dense original.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rare_kl: Option<f64>,
    /// Share of tokens whose most probable next token is the same.
    pub top1_agreement: f64,
}

/// Quality on one domain.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DomainReport {
    /// The domain's label; `all` for the pooled row.
    pub label: String,
    /// Number of sequences.
    pub sequences: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// Number of tokens that were predicted: all but each sequence's first.
    pub predicted_tokens: usize,
    /// Mean negative log-likelihood in nats per predicted token.
    pub loss: f64,
    /// e^loss.
    pub perplexity: f64,
    /// Against the original, if one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Comparison>,
}

/// Expert load of one layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerLoad {
    /// The layer's index.
    pub layer: usize,
    /// Load over all domains.
    #[serde(flatten)]
    pub load: Load,
    /// Tokens per expert for each domain, in the order of the report's domains.
    pub counts_by_domain: Vec<Vec<u64>>,
}

/// The result of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalReport {
    /// A row for each domain.
    pub domains: Vec<DomainReport>,
    /// All domains together: by tokens, or by their weights where all have one.
    pub all: DomainReport,
    /// Expert load of every sparse layer.
    pub load: Vec<LayerLoad>,
}

impl DomainReport {
    /// KL to the original; none without one.
    pub fn kl(&self) -> Option<f64> {
        Some(self.against.as_ref()?.kl)
    }

    /// The loss less the original's, in nats per predicted token; none without an original.
    pub fn loss_change(&self) -> Option<f64> {
        Some(self.loss - self.against.as_ref()?.original_loss)
    }
}

impl EvalReport {
    /// The domains, then all together.
    pub fn rows(&self) -> impl Iterator<Item = &DomainReport> {
        self.domains.iter().chain([&self.all])
    }
}

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

/// All domains together: each weighs its tokens, or its weight where all have one.
fn pool(corpus: &Corpus, domains: &[DomainReport], pooled_rare: Option<f64>) -> DomainReport {
    let weighted = corpus.domains.iter().all(|d| d.weight.is_some());
    let mean = |tokens: fn(&DomainReport) -> usize, value: &dyn Fn(&DomainReport) -> f64| {
        let weight = |(report, domain): (&DomainReport, &crate::Domain)| match domain.weight {
            Some(weight) if weighted => weight,
            _ => tokens(report) as f64,
        };
        let pairs = || domains.iter().zip(&corpus.domains);
        let total: f64 = pairs().map(weight).sum();
        pairs().map(|pair| weight(pair) * value(pair.0)).sum::<f64>() / total
    };
    let loss = mean(|d| d.predicted_tokens, &|d| d.loss);
    let of = |f: fn(&Comparison) -> f64| move |d: &DomainReport| d.against.as_ref().map_or(0.0, f);
    let compared = domains.iter().all(|d| d.against.is_some());
    DomainReport {
        label: "all".to_owned(),
        sequences: domains.iter().map(|d| d.sequences).sum(),
        tokens: domains.iter().map(|d| d.tokens).sum(),
        predicted_tokens: domains.iter().map(|d| d.predicted_tokens).sum(),
        loss,
        perplexity: loss.exp(),
        against: compared.then(|| Comparison {
            original_loss: mean(|d| d.predicted_tokens, &of(|c| c.original_loss)),
            kl: mean(|d| d.tokens, &of(|c| c.kl)),
            rare_kl: pooled_rare,
            top1_agreement: mean(|d| d.tokens, &of(|c| c.top1_agreement)),
        }),
    }
}

/// Where all tokens went.
#[derive(Default)]
struct Choices {
    /// All tokens that are to come.
    tokens: usize,
    layers: Vec<LayerChoices>,
}

/// Where all tokens went in a layer.
struct LayerChoices {
    layer: usize,
    experts: usize,
    /// Experts that each token goes to.
    top_k: usize,
    /// These experts with their weights, token by token.
    chosen: Vec<(u32, f32)>,
}

impl Choices {
    /// For each of `tokens` tokens the share of its gates, over all layers, that goes to the
    /// quarter of experts that fewest tokens choose; zeros without experts.
    fn rare_mass(&self, tokens: usize) -> Vec<f64> {
        let mut mass = vec![0.0; tokens];
        for LayerChoices { experts, top_k, chosen, .. } in &self.layers {
            let mut counts = vec![0u64; *experts];
            chosen.iter().for_each(|(expert, _)| counts[*expert as usize] += 1);
            let mut order: Vec<usize> = (0..*experts).collect();
            order.sort_by_key(|expert| counts[*expert]);
            let rare = &order[..experts / 4];
            for (mass, choices) in mass.iter_mut().zip(chosen.chunks_exact(*top_k)) {
                let of = |chosen: &mut dyn Iterator<Item = &(u32, f32)>| {
                    chosen.map(|(_, gate)| f64::from(*gate)).sum::<f64>()
                };
                let all = of(&mut choices.iter());
                let rare = of(&mut choices
                    .iter()
                    .filter(|(expert, _)| rare.contains(&(*expert as usize))));
                *mass += if all > 0.0 { rare / all / self.layers.len() as f64 } else { 0.0 };
            }
        }
        mass
    }
}

impl Observer for Choices {
    fn routed(&mut self, layer: usize, _: &Tensor, routing: &Routing) -> Result<()> {
        if self.layers.last().is_none_or(|last| last.layer != layer) {
            // Room for all tokens at once: a vector that grows holds twice as much while it does.
            let chosen = Vec::with_capacity(self.tokens * routing.top_k);
            self.layers.push(LayerChoices {
                layer,
                experts: routing.experts,
                top_k: routing.top_k,
                chosen,
            });
        }
        let last = self.layers.last_mut().expect("it was just pushed");
        last.chosen.extend(routing.selected.iter().copied().zip(routing.weights.iter().copied()));
        Ok(())
    }
}

/// Counts tokens per layer, domain and expert, and passes events on.
struct LoadCounter<'a> {
    /// The domain of each token.
    domain_of: Vec<usize>,
    domains: usize,
    /// Layer, tokens seen in it, counts by domain.
    layers: Vec<(usize, usize, Vec<Vec<u64>>)>,
    next: &'a mut dyn Observer,
}

impl<'a> LoadCounter<'a> {
    fn new(corpus: &Corpus, next: &'a mut dyn Observer) -> Self {
        let tokens = |d: &crate::Domain| d.sequences.iter().map(Vec::len).sum();
        let domain_of = corpus
            .domains
            .iter()
            .enumerate()
            .flat_map(|(i, d)| std::iter::repeat_n(i, tokens(d)))
            .collect();
        Self { domain_of, domains: corpus.domains.len(), layers: Vec::new(), next }
    }

    fn finish(self) -> Vec<LayerLoad> {
        let total = |by_domain: &[Vec<u64>]| {
            (0..by_domain[0].len())
                .map(|e| by_domain.iter().map(|counts| counts[e]).sum())
                .collect()
        };
        let layers = self.layers.into_iter();
        layers
            .map(|(layer, _, counts_by_domain)| LayerLoad {
                layer,
                load: Load::new(total(&counts_by_domain)),
                counts_by_domain,
            })
            .collect()
    }
}

impl Observer for LoadCounter<'_> {
    fn routed(&mut self, layer: usize, logits: &Tensor, routing: &Routing) -> Result<()> {
        if self.layers.last().is_none_or(|(last, _, _)| *last != layer) {
            self.layers.push((layer, 0, vec![vec![0; routing.experts]; self.domains]));
        }
        let (_, seen, counts) = self.layers.last_mut().expect("it was just pushed");
        for (token, selected) in routing.selected.chunks_exact(routing.top_k).enumerate() {
            let counts = &mut counts[self.domain_of[*seen + token]];
            selected.iter().for_each(|e| counts[*e as usize] += 1);
        }
        *seen += routing.tokens();
        self.next.routed(layer, logits, routing)
    }

    fn layer_done(&mut self, layer: usize, layers: usize) -> Result<()> {
        self.next.layer_done(layer, layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_weigh_as_much_as_their_rare_experts() {
        let first = [
            [(0, 0.5), (1, 0.5)],
            [(0, 0.9), (3, 0.1)],
            [(1, 0.6), (2, 0.4)],
            [(1, 1.0), (2, 1.0)],
        ]
        .concat();
        let layer = |layer, top_k, chosen| LayerChoices { layer, experts: 4, top_k, chosen };
        let choices =
            Choices { tokens: 4, layers: vec![layer(0, 2, first), layer(1, 1, vec![(0, 1.0); 4])] };
        // Expert 3 is the rare one of layer 0; in layer 1 three have none, and the first of them is
        // it.
        let mass = choices.rare_mass(4);
        assert!(
            (mass[1] - 0.05).abs() < 1e-7 && [0, 2, 3].iter().all(|token| mass[*token] == 0.0),
            "{mass:?}"
        );
        assert_eq!(Choices::default().rare_mass(2), [0.0; 2]);
    }
}
