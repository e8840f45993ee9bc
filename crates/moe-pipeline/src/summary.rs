//! One row for each evaluation of a recipe.

use moe_forward::{DomainReport, EvalReport, LayerLoad};
use serde::Serialize;

/// An evaluation in a row.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// What was evaluated.
    pub label: String,
    /// Mean loss in nats per token.
    pub loss: f64,
    /// Mean KL from the original in nats, if there was one.
    pub kl: Option<f64>,
    /// The same over what rare experts serve.
    pub rare_kl: Option<f64>,
    /// Share of tokens whose most probable next token is the original's.
    pub top1_agreement: Option<f64>,
    /// Load of the experts, if there are any.
    pub load: Option<LoadSummary>,
    /// Each domain by itself.
    pub domains: Vec<DomainSummary>,
}

/// One domain of an evaluation.
#[derive(Debug, Clone, Serialize)]
pub struct DomainSummary {
    /// Its label.
    pub label: String,
    /// Mean loss in nats per token.
    pub loss: f64,
    /// Mean KL from the original in nats, if there was one.
    pub kl: Option<f64>,
}

/// Expert load over all layers.
#[derive(Debug, Clone, Serialize)]
pub struct LoadSummary {
    /// Mean Gini coefficient over layers.
    pub gini: f64,
    /// The greatest.
    pub worst_gini: f64,
    /// Mean entropy over layers, as a share of its maximum.
    pub entropy: f64,
    /// The least.
    pub least_entropy: f64,
    /// Experts without a token, in all layers.
    pub dead: usize,
    /// Experts in all layers.
    pub experts: usize,
    /// Mean over layers of the mutual information between the expert of a choice and the domain of its token, in bits.
    pub information: f64,
}

impl Summary {
    /// What `report` says under the name `label`.
    pub fn new(label: &str, report: &EvalReport) -> Self {
        let against = report.all.against.as_ref();
        Self {
            label: label.to_owned(),
            loss: report.all.loss,
            kl: against.map(|a| a.kl),
            rare_kl: against.and_then(|a| a.rare_kl),
            top1_agreement: against.map(|a| a.top1_agreement),
            load: LoadSummary::new(&report.load),
            domains: report.domains.iter().map(DomainSummary::new).collect(),
        }
    }
}

impl DomainSummary {
    fn new(report: &DomainReport) -> Self {
        Self { label: report.label.clone(), loss: report.loss, kl: report.against.as_ref().map(|a| a.kl) }
    }
}

impl LoadSummary {
    fn new(layers: &[LayerLoad]) -> Option<Self> {
        let mean = |of: &dyn Fn(&LayerLoad) -> f64| layers.iter().map(of).sum::<f64>() / layers.len() as f64;
        (!layers.is_empty()).then(|| Self {
            gini: mean(&|l| l.load.gini),
            worst_gini: layers.iter().map(|l| l.load.gini).fold(0.0, f64::max),
            entropy: mean(&|l| l.load.entropy),
            least_entropy: layers.iter().map(|l| l.load.entropy).fold(1.0, f64::min),
            dead: layers.iter().map(|l| l.load.dead).sum(),
            experts: layers.iter().map(|l| l.load.counts.len()).sum(),
            information: mean(&|l| information(&l.counts_by_domain)),
        })
    }
}

/// Mutual information in bits of the row and the column of a count.
fn information(counts: &[Vec<u64>]) -> f64 {
    let total: u64 = counts.iter().flatten().sum();
    let rows: Vec<u64> = counts.iter().map(|row| row.iter().sum()).collect();
    let columns: Vec<u64> =
        (0..counts.first().map_or(0, Vec::len)).map(|c| counts.iter().map(|row| row[c]).sum()).collect();
    let mut bits = 0.0;
    for (row, of_row) in counts.iter().zip(&rows) {
        for (count, of_column) in row.iter().zip(&columns).filter(|(count, _)| **count > 0) {
            let joint = *count as f64 / total as f64;
            bits += joint * (*count as f64 * total as f64 / (*of_row as f64 * *of_column as f64)).log2();
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn information_by_hand() {
        assert!((information(&[vec![5, 0], vec![0, 5]]) - 1.0).abs() < 1e-12);
        assert!(information(&[vec![3, 9], vec![1, 3]]).abs() < 1e-12);
        // H(column) − H(column | row) = 1 − (¾ log₂ 4/3 + ¼ log₂ 4) for rows (3, 1) and (1, 3).
        let expected = 1.0 - (0.75 * (4.0f64 / 3.0).log2() + 0.25 * 2.0);
        assert!((information(&[vec![3, 1], vec![1, 3]]) - expected).abs() < 1e-12);
        assert_eq!(information(&[]), 0.0);
    }
}
