//! Rows of a recipe's summary: one for each evaluation, and the averages of each label.

use moe_forward::{DomainReport, EvalReport, LayerLoad};
use serde::Serialize;

/// An evaluation in a row.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct Summary {
    /// The label of the evaluation.
    pub label: String,
    /// The measured values.
    #[serde(flatten)]
    pub figures: Figures<f64>,
}

/// All evaluations of a label in a row.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct Average {
    /// The label of the evaluations.
    pub label: String,
    /// The number of evaluations.
    pub runs: usize,
    /// The measured values, averaged.
    #[serde(flatten)]
    pub figures: Figures<Spread>,
}

/// Mean and standard deviation over several runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation, √(Σ (x − mean)² / (n − 1)). None for a single run.
    pub deviation: Option<f64>,
}

/// The values that an evaluation measures: numbers, or their spread over several runs.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct Figures<T> {
    /// Mean loss in nats per token.
    pub loss: T,
    /// Mean KL from the original in nats, if there was one.
    pub kl: Option<T>,
    /// Mean KL, weighted towards tokens that rare experts serve.
    pub rare_kl: Option<T>,
    /// Share of tokens whose most probable next token is the original's.
    pub top1_agreement: Option<T>,
    /// Load of the experts, if there are any.
    pub load: Option<LoadSummary<T>>,
    /// Each domain by itself.
    pub domains: Vec<DomainSummary<T>>,
}

/// One domain of an evaluation.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct DomainSummary<T> {
    /// The label of the domain.
    pub label: String,
    /// Mean loss in nats per token.
    pub loss: T,
    /// Mean KL from the original in nats, if there was one.
    pub kl: Option<T>,
}

/// Expert load over all layers.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct LoadSummary<T> {
    /// Mean Gini coefficient over layers.
    pub gini: T,
    /// The greatest Gini coefficient of a layer.
    pub worst_gini: T,
    /// Mean entropy over layers, as a share of its maximum.
    pub entropy: T,
    /// The least entropy of a layer.
    pub least_entropy: T,
    /// Experts without a token, in all layers.
    pub dead: T,
    /// Experts in all layers.
    pub experts: usize,
    /// Mean over layers of the mutual information between the expert of a choice and the domain of
    /// its token, in bits.
    pub information: T,
}

impl Summary {
    /// The row of `report` under the name `label`.
    pub fn new(label: String, report: &EvalReport) -> Self {
        let against = report.all.against.as_ref();
        let figures = Figures {
            loss: report.all.loss,
            kl: against.map(|a| a.kl),
            rare_kl: against.and_then(|a| a.rare_kl),
            top1_agreement: against.map(|a| a.top1_agreement),
            load: LoadSummary::new(&report.load),
            domains: report.domains.iter().map(DomainSummary::new).collect(),
        };
        Self { label, figures }
    }
}

impl Average {
    /// The average for each label, in the order of their first rows; all rows of a label must be
    /// measured on the same text.
    pub fn of(rows: &[Summary]) -> Vec<Self> {
        let mut labels: Vec<(&str, Vec<&Figures<f64>>)> = Vec::new();
        for Summary { label, figures } in rows {
            match labels.iter_mut().find(|(known, _)| known == label) {
                Some((_, runs)) => runs.push(figures),
                None => labels.push((label, vec![figures])),
            }
        }
        let average = |(label, runs): (&str, Vec<&Figures<f64>>)| Self {
            label: label.to_owned(),
            runs: runs.len(),
            figures: Figures::over(&runs),
        };
        labels.into_iter().map(average).collect()
    }
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        Self { mean, deviation: (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()) }
    }

    /// The spread of `of` over `runs`.
    fn over<R>(runs: &[R], of: impl Fn(&R) -> f64) -> Self {
        Self::of(&runs.iter().map(of).collect::<Vec<_>>())
    }

    /// The spread of `of` over `runs`; None where a run has no value.
    fn over_known<R>(runs: &[R], of: impl Fn(&R) -> Option<f64>) -> Option<Self> {
        runs.iter().map(of).collect::<Option<Vec<_>>>().map(|values| Self::of(&values))
    }
}

impl Figures<Spread> {
    fn over(runs: &[&Figures<f64>]) -> Self {
        let loads: Option<Vec<_>> = runs.iter().map(|run| run.load.as_ref()).collect();
        let domains = 0..runs.iter().map(|run| run.domains.len()).min().unwrap_or(0);
        Self {
            loss: Spread::over(runs, |run| run.loss),
            kl: Spread::over_known(runs, |run| run.kl),
            rare_kl: Spread::over_known(runs, |run| run.rare_kl),
            top1_agreement: Spread::over_known(runs, |run| run.top1_agreement),
            load: loads.map(|loads| LoadSummary::over(&loads)),
            domains: domains
                .map(|d| {
                    DomainSummary::over(&runs.iter().map(|run| &run.domains[d]).collect::<Vec<_>>())
                })
                .collect(),
        }
    }
}

impl DomainSummary<f64> {
    fn new(report: &DomainReport) -> Self {
        Self {
            label: report.label.clone(),
            loss: report.loss,
            kl: report.against.as_ref().map(|a| a.kl),
        }
    }
}

impl DomainSummary<Spread> {
    fn over(runs: &[&DomainSummary<f64>]) -> Self {
        Self {
            label: runs[0].label.clone(),
            loss: Spread::over(runs, |run| run.loss),
            kl: Spread::over_known(runs, |run| run.kl),
        }
    }
}

impl LoadSummary<f64> {
    fn new(layers: &[LayerLoad]) -> Option<Self> {
        let mean = |of: &dyn Fn(&LayerLoad) -> f64| {
            layers.iter().map(of).sum::<f64>() / layers.len() as f64
        };
        (!layers.is_empty()).then(|| Self {
            gini: mean(&|l| l.load.gini),
            worst_gini: layers.iter().map(|l| l.load.gini).fold(0.0, f64::max),
            entropy: mean(&|l| l.load.entropy),
            least_entropy: layers.iter().map(|l| l.load.entropy).fold(1.0, f64::min),
            dead: layers.iter().map(|l| l.load.dead).sum::<usize>() as f64,
            experts: layers.iter().map(|l| l.load.counts.len()).sum(),
            information: mean(&|l| information(&l.counts_by_domain)),
        })
    }
}

impl LoadSummary<Spread> {
    fn over(runs: &[&LoadSummary<f64>]) -> Self {
        Self {
            gini: Spread::over(runs, |run| run.gini),
            worst_gini: Spread::over(runs, |run| run.worst_gini),
            entropy: Spread::over(runs, |run| run.entropy),
            least_entropy: Spread::over(runs, |run| run.least_entropy),
            dead: Spread::over(runs, |run| run.dead),
            experts: runs[0].experts,
            information: Spread::over(runs, |run| run.information),
        }
    }
}

/// Mutual information, in bits, of the row and the column of a table of counts.
fn information(counts: &[Vec<u64>]) -> f64 {
    let total: u64 = counts.iter().flatten().sum();
    let rows: Vec<u64> = counts.iter().map(|row| row.iter().sum()).collect();
    let columns: Vec<u64> = (0..counts.first().map_or(0, Vec::len))
        .map(|c| counts.iter().map(|row| row[c]).sum())
        .collect();
    let mut bits = 0.0;
    for (row, of_row) in counts.iter().zip(&rows) {
        for (count, of_column) in row.iter().zip(&columns).filter(|(count, _)| **count > 0) {
            let joint = *count as f64 / total as f64;
            bits += joint
                * (*count as f64 * total as f64 / (*of_row as f64 * *of_column as f64)).log2();
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row with this KL for two domains, the second of which has the greater loss.
    fn row(label: &str, kl: f64) -> Summary {
        let domain =
            |label: &str, loss| DomainSummary { label: label.to_owned(), loss, kl: Some(kl) };
        let domains = vec![domain("a", 1.0), domain("b", 2.0 + kl)];
        let figures = Figures {
            loss: 1.5,
            kl: Some(kl),
            rare_kl: None,
            top1_agreement: None,
            load: None,
            domains,
        };
        Summary { label: label.to_owned(), figures }
    }

    #[test]
    fn rows_of_a_label_are_averaged() {
        let averages = Average::of(&[row("x", 2.0), row("y", 7.0), row("x", 4.0), row("x", 9.0)]);
        let names: Vec<_> = averages.iter().map(|a| (a.label.as_str(), a.runs)).collect();
        assert_eq!(names, [("x", 3), ("y", 1)]);
        // Of 2, 4 and 9: mean 5, squares 9 + 1 + 16 = 26, divided by two.
        let expected = Spread { mean: 5.0, deviation: Some(13.0f64.sqrt()) };
        let x = &averages[0].figures;
        assert_eq!((x.kl, x.domains[1].kl), (Some(expected), Some(expected)));
        assert_eq!(x.loss, Spread { mean: 1.5, deviation: Some(0.0) });
        assert_eq!((x.domains[0].loss.mean, x.domains[1].loss.mean), (1.0, 7.0));
        assert!(x.rare_kl.is_none() && x.load.is_none());
        assert_eq!(averages[1].figures.kl, Some(Spread { mean: 7.0, deviation: None }));
    }

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
