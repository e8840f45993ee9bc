//! Measures how evenly tokens are spread over experts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::figures::{Checked, check_experts, check_part, check_share};

/// Expert load of one layer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Load {
    /// Tokens routed to each expert.
    pub counts: Vec<u64>,
    /// Gini coefficient: 0 where all are equal, towards 1 where one expert gets everything.
    pub gini: f64,
    /// Entropy of the load in units of its maximum, ln(experts): 1 where all are equal.
    pub entropy: f64,
    /// Experts that no token reached.
    pub dead: usize,
    /// Experts with more than three times the mean load.
    pub overloaded: Vec<usize>,
}

impl Load {
    /// Measures `counts`, tokens per expert.
    pub fn new(counts: Vec<u64>) -> Self {
        let total: u64 = counts.iter().sum();
        let mean = total as f64 / counts.len().max(1) as f64;
        let overloaded = (0..counts.len()).filter(|&e| counts[e] as f64 > 3.0 * mean).collect();
        let dead = counts.iter().filter(|&&c| c == 0).count();
        Self { gini: gini(&counts), entropy: normalized_entropy(&counts), dead, overloaded, counts }
    }

    /// Refuses figures that contradict each other, which [`Self::new`] doesn't give.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Checked {
        let experts = self.counts.len();
        let total = self.counts.iter().try_fold(0u64, |sum, count| sum.checked_add(*count));
        if total.is_none() {
            return Err("counts add up to more than can be counted".to_owned());
        }
        check_part(["dead", "the number of experts"], self.dead as u64, experts as u64)?;
        check_experts("overloaded", &self.overloaded, experts)?;
        check_share("gini", self.gini)?;
        check_share("entropy", self.entropy)
    }
}

/// G = Σᵢ (2i − n − 1) xᵢ / (n Σ x), with x ascending and i from 1; 0 if all counts are 0.
fn gini(counts: &[u64]) -> f64 {
    let mut sorted = counts.to_vec();
    sorted.sort_unstable();
    let total: u64 = sorted.iter().sum();
    if total == 0 {
        return 0.0;
    }
    let n = sorted.len() as f64;
    let weighted: f64 =
        sorted.iter().enumerate().map(|(i, &x)| (2.0 * (i + 1) as f64 - n - 1.0) * x as f64).sum();
    weighted / (n * total as f64)
}

fn normalized_entropy(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    if total == 0 || counts.len() < 2 {
        return 1.0;
    }
    let shares = counts.iter().filter(|&&c| c > 0).map(|&c| c as f64 / total as f64);
    // Subtracting from 0 gives 0 rather than −0 if one expert takes all tokens.
    (0.0 - shares.map(|p| p * p.ln()).sum::<f64>()) / (counts.len() as f64).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_load_has_no_gini_and_full_entropy() {
        let load = Load::new(vec![5; 4]);
        assert_eq!((load.gini, load.dead, load.overloaded.len()), (0.0, 0, 0));
        assert!((load.entropy - 1.0).abs() < 1e-12);
    }

    #[test]
    fn one_expert_with_all_tokens_is_found() {
        let load = Load::new(vec![0, 0, 0, 8]);
        // (2·4 − 4 − 1)·8 / (4·8) = 3/4.
        assert_eq!((load.gini, load.entropy, load.dead), (0.75, 0.0, 3));
        assert!(load.entropy.is_sign_positive());
        assert_eq!(load.overloaded, [3]);
    }

    #[test]
    fn gini_is_half_the_relative_mean_difference() {
        let counts = [1u64, 2, 3, 10, 0, 7];
        let (n, total) = (counts.len() as f64, counts.iter().sum::<u64>() as f64);
        let differences: f64 =
            counts.iter().flat_map(|a| counts.iter().map(move |b| a.abs_diff(*b) as f64)).sum();
        assert!((Load::new(counts.to_vec()).gini - differences / (2.0 * n * total)).abs() < 1e-12);
    }

    #[test]
    fn without_tokens_nothing_is_divided_by_zero() {
        let load = Load::new(vec![0; 3]);
        assert_eq!((load.gini, load.dead), (0.0, 3));
    }
}
