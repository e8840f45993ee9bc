//! The results of an evaluation.

use moe_math::figures::{Checked, check_share, within};
use moe_math::load::Load;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::{Corpus, Domain};

/// Comparison of a model with its original on the same tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Comparison {
    /// The original's mean loss in nats.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub original_loss: f64,
    /// Mean KL(original ‖ model) in nats, over all tokens.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub kl: f64,
    /// Mean KL weighted towards rare experts: the weight of a token is the sum of the gates that
    /// the original gives to rare experts, the quarter of each layer's experts that the fewest of
    /// these tokens choose. None for a dense original.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rare_kl: Option<f64>,
    /// Share of tokens whose most probable next token is the same.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub top1_agreement: f64,
}

/// Quality on one domain.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub loss: f64,
    /// e^loss; null in JSON if that is infinite.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub perplexity: f64,
    /// Against the original, if one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Comparison>,
}

/// Expert load of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EvalReport {
    /// A row for each domain.
    pub domains: Vec<DomainReport>,
    /// All domains together: by tokens, or by their weights where all have one.
    pub all: DomainReport,
    /// Expert load of every sparse layer.
    pub load: Vec<LayerLoad>,
}

impl DomainReport {
    fn check(&self) -> Checked {
        let Some(against) = &self.against else { return Ok(()) };
        within("against", check_share("top1_agreement", against.top1_agreement))
    }

    /// Returns the KL to the original; None without one.
    pub fn kl(&self) -> Option<f64> {
        Some(self.against.as_ref()?.kl)
    }

    /// Returns the loss minus the original's, in nats per predicted token; None without an
    /// original.
    pub fn loss_change(&self) -> Option<f64> {
        Some(self.loss - self.against.as_ref()?.original_loss)
    }
}

impl EvalReport {
    /// Refuses figures that no evaluation gives.
    ///
    /// # Errors
    /// What is wrong, in a sentence that begins with the key.
    pub fn check(&self) -> Checked {
        for (index, domain) in self.domains.iter().enumerate() {
            within(format_args!("domains[{index}]"), domain.check())?;
        }
        within("all", self.all.check())?;
        for (index, layer) in self.load.iter().enumerate() {
            within(format_args!("load[{index}]"), layer.load.check())?;
        }
        Ok(())
    }

    /// Returns the rows of the domains, followed by that of all together.
    pub fn rows(&self) -> impl Iterator<Item = &DomainReport> {
        self.domains.iter().chain([&self.all])
    }
}

/// Pools the domains: each counts by its tokens or, if all have weights, by its weight.
pub(super) fn pool(
    corpus: &Corpus,
    domains: &[DomainReport],
    pooled_rare: Option<f64>,
) -> DomainReport {
    let rows = PooledRows {
        weighted: corpus.domains.iter().all(|d| d.weight.is_some()),
        pairs: domains.iter().zip(&corpus.domains).collect(),
    };
    let loss = rows.mean(|d| d.predicted_tokens, |d| d.loss);
    let compared = domains.iter().all(|d| d.against.is_some());
    let against = compared.then(|| Comparison {
        original_loss: rows.mean_against(|d| d.predicted_tokens, |c| c.original_loss),
        kl: rows.mean_against(|d| d.tokens, |c| c.kl),
        rare_kl: pooled_rare,
        top1_agreement: rows.mean_against(|d| d.tokens, |c| c.top1_agreement),
    });
    DomainReport {
        label: "all".to_owned(),
        sequences: domains.iter().map(|d| d.sequences).sum(),
        tokens: domains.iter().map(|d| d.tokens).sum(),
        predicted_tokens: domains.iter().map(|d| d.predicted_tokens).sum(),
        loss,
        perplexity: loss.exp(),
        against,
    }
}

/// The domains that means are taken over.
struct PooledRows<'a> {
    /// Whether all domains have weights.
    weighted: bool,
    pairs: Vec<(&'a DomainReport, &'a Domain)>,
}

impl PooledRows<'_> {
    fn mean(
        &self,
        tokens: fn(&DomainReport) -> usize,
        value: impl Fn(&DomainReport) -> f64,
    ) -> f64 {
        let weights = self.pairs.iter().map(|(report, domain)| match domain.weight {
            Some(weight) if self.weighted => weight,
            _ => tokens(report) as f64,
        });
        let weights: Vec<f64> = weights.collect();
        let weighted = weights.iter().zip(&self.pairs).map(|(w, (report, _))| w * value(report));
        weighted.sum::<f64>() / weights.iter().sum::<f64>()
    }

    fn mean_against(
        &self,
        tokens: fn(&DomainReport) -> usize,
        value: fn(&Comparison) -> f64,
    ) -> f64 {
        self.mean(tokens, |d| d.against.as_ref().map_or(0.0, value))
    }
}
