//! Calibration text: the tokens of a sweep, and which of them are counted together.

use std::collections::BTreeSet;
use std::sync::Arc;

use moe_checkpoint::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::corpus::{Corpus, Domain};
use crate::observe::{GroupIndex, UNCOUNTED};

/// Tokens whose statistics are summed up together: every second window of a domain, so that two
/// halves tell how stable a ranking is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Group {
    /// The domain's label.
    pub label: String,
    /// 0 or 1.
    pub half: u8,
    /// The domain's share in decisions, if given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub weight: Option<f64>,
    /// Tokens that count.
    pub tokens: u64,
}

/// The tokens of a calibration sweep.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// All sequences.
    pub batch: Batch,
    /// Two groups for each domain.
    pub groups: Vec<Group>,
    /// The group of each token.
    pub group_of: Arc<[GroupIndex]>,
}

impl Calibration {
    /// Groups the windows of `corpus`. Tokens of `uncounted` take part in the forward pass, but not
    /// in statistics.
    ///
    /// # Errors
    /// [`Kind::Usage`] if no token counts.
    pub fn new(corpus: &Corpus, uncounted: &BTreeSet<u32>) -> Result<Self> {
        let mut groups = Vec::new();
        let mut group_of = Vec::new();
        for domain in &corpus.domains {
            let first = groups.len();
            groups.extend(halves(domain));
            for (index, sequence) in domain.sequences.iter().enumerate() {
                let group = first + index % 2;
                for id in sequence {
                    let counts = !uncounted.contains(id);
                    groups[group].tokens += u64::from(counts);
                    group_of.push(if counts { group as GroupIndex } else { UNCOUNTED });
                }
            }
        }
        if groups.iter().all(|group| group.tokens == 0) {
            return Err(Error::new(Kind::Usage, "this data has only special tokens")
                .options(&["--mask-special", "--data"])
                .remedy("give text, or leave --mask-special out"));
        }
        Ok(Self { batch: corpus.batch(), groups, group_of: group_of.into() })
    }

    /// Returns the number of tokens that count.
    pub fn counted(&self) -> u64 {
        self.groups.iter().map(|group| group.tokens).sum()
    }

    /// Selects whole sequences, evenly spaced, with about `tokens` tokens.
    #[must_use]
    pub fn sampled(&self, tokens: usize) -> Self {
        let every = self.batch.tokens().div_ceil(tokens.max(1)).max(1);
        self.selected((0..self.batch.spans.len()).step_by(every))
    }

    /// Appends the tokens of `other`, whose groups stay separate.
    #[must_use]
    pub fn joined(&self, other: &Self) -> Self {
        let own_groups = self.groups.len() as GroupIndex;
        let shifted = other.group_of.iter().map(|group| match *group {
            UNCOUNTED => UNCOUNTED,
            group => group + own_groups,
        });
        let sequences = [self, other]
            .into_iter()
            .flat_map(|of| of.batch.spans.iter().map(|s| &of.batch.ids[s.clone()]));
        Self {
            batch: Batch::new(sequences),
            groups: self.groups.iter().chain(&other.groups).cloned().collect(),
            group_of: self.group_of.iter().copied().chain(shifted).collect(),
        }
    }

    /// Selects the sequences with these indices.
    #[must_use]
    pub fn selected(&self, sequences: impl IntoIterator<Item = usize>) -> Self {
        let spans: Vec<_> =
            sequences.into_iter().map(|sequence| self.batch.spans[sequence].clone()).collect();
        let batch = Batch::new(spans.iter().map(|span| &self.batch.ids[span.clone()]));
        let group_of: Vec<_> =
            spans.into_iter().flat_map(|span| self.group_of[span].iter().copied()).collect();
        let counted =
            |index: usize| group_of.iter().filter(|group| **group as usize == index).count() as u64;
        let groups = self.groups.iter().enumerate();
        let groups = groups
            .map(|(index, group)| Group { tokens: counted(index), ..group.clone() })
            .collect();
        Self { batch, groups, group_of: group_of.into() }
    }
}

fn halves(domain: &Domain) -> [Group; 2] {
    [0, 1].map(|half| Group { label: domain.label.clone(), half, weight: domain.weight, tokens: 0 })
}

/// Returns the factor of each group in decisions. It is 1 unless all domains have a weight; then it
/// gives the domains the shares that they ask for.
pub fn group_factors(groups: &[Group]) -> Vec<f64> {
    let weighted = groups.iter().all(|group| group.weight.is_some());
    let all: u64 = groups.iter().map(|g| g.tokens).sum();
    let of_weights: f64 = labels(groups)
        .iter()
        .filter_map(|label| groups.iter().find(|g| g.label == *label).and_then(|g| g.weight))
        .sum();
    let factors = groups.iter().map(|group| match group.weight {
        Some(weight) if weighted => {
            weight / of_weights * all as f64 / (tokens_of(groups, &group.label) as f64).max(1.0)
        }
        _ => 1.0,
    });
    factors.collect()
}

fn tokens_of(groups: &[Group], label: &str) -> u64 {
    groups.iter().filter(|group| group.label == label).map(|group| group.tokens).sum()
}

/// Returns the labels of the domains, in order of appearance.
pub fn labels(groups: &[Group]) -> Vec<&str> {
    let mut labels: Vec<&str> = Vec::new();
    for group in groups {
        if !labels.contains(&group.label.as_str()) {
            labels.push(&group.label);
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus() -> Corpus {
        let domain = |label: &str, weight, sequences: &[&[u32]]| Domain {
            label: label.into(),
            weight: Some(weight),
            sequences: sequences.iter().map(|s| s.to_vec()).collect(),
        };
        let domains =
            vec![domain("a", 3.0, &[&[1, 2, 0], &[3, 4]]), domain("b", 1.0, &[&[5; 10], &[6; 5]])];
        Corpus { domains, texts: Vec::new() }
    }

    #[test]
    fn windows_alternate_between_halves_and_special_tokens_are_not_counted() {
        let calibration = Calibration::new(&corpus(), &BTreeSet::from([0])).unwrap();
        assert_eq!(calibration.group_of[..5], [0, 0, UNCOUNTED, 1, 1]);
        assert_eq!(calibration.groups.iter().map(|g| g.tokens).collect::<Vec<_>>(), [2, 2, 10, 5]);
        assert!(Calibration::new(&corpus(), &(0..7).collect()).is_err());
    }

    #[test]
    fn a_sample_is_made_of_whole_sequences() {
        let calibration = Calibration::new(&corpus(), &BTreeSet::new()).unwrap();
        let sample = calibration.sampled(10);
        assert_eq!(sample.batch.ids, [[1, 2, 0].as_slice(), &[5; 10]].concat());
        assert_eq!(*sample.group_of, [[0; 3].as_slice(), &[2; 10]].concat());
        assert_eq!(sample.groups.iter().map(|g| g.tokens).collect::<Vec<_>>(), [3, 0, 10, 0]);
        assert_eq!(calibration.sampled(1000).batch, calibration.batch);
    }

    #[test]
    fn joined_sequences_keep_their_groups() {
        let calibration = Calibration::new(&corpus(), &BTreeSet::from([0])).unwrap();
        let joined = calibration.joined(&calibration.selected([1]));
        assert_eq!(joined.batch.tokens(), calibration.batch.tokens() + 2);
        assert_eq!(joined.batch.spans.last(), Some(&(20..22)));
        assert_eq!((joined.group_of[2], joined.group_of[20]), (UNCOUNTED, 5));
        assert_eq!(
            joined.groups.iter().map(|g| g.tokens).collect::<Vec<_>>(),
            [2, 2, 10, 5, 0, 2, 0, 0]
        );
    }

    #[test]
    fn weights_are_shares_of_all_tokens() {
        let calibration = Calibration::new(&corpus(), &BTreeSet::new()).unwrap();
        let factors = group_factors(&calibration.groups);
        let share = |range: std::ops::Range<usize>| -> f64 {
            range.map(|g| factors[g] * calibration.groups[g].tokens as f64).sum()
        };
        assert!((share(0..2) - 15.0).abs() < 1e-12 && (share(2..4) - 5.0).abs() < 1e-12);
    }
}
