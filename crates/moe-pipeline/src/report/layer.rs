//! A layer of the report, with the fate of each of its experts.

use moe_passes::{LayerRecord, LayerTrust};

/// The fate of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays, and others may have been merged into it.
    Kept,
    /// It was merged into another.
    Merged,
    /// It was removed.
    Dropped,
}

/// A layer that was decided on data.
pub(super) struct ReportedLayer {
    /// Index of the layer.
    pub index: usize,
    /// Figures about the decision.
    pub trust: LayerTrust,
    /// The fate of each expert.
    pub fates: Vec<Fate>,
}

impl ReportedLayer {
    /// The layer of `record`; None if it wasn't decided on data.
    pub fn new(record: &LayerRecord) -> Option<Self> {
        let trust: LayerTrust = record.details()?;
        let mut fates = vec![Fate::Dropped; trust.experts[0]];
        let mut set =
            |expert: usize, fate| fates.get_mut(expert).into_iter().for_each(|f| *f = fate);
        for cluster in &trust.clusters {
            cluster.iter().skip(1).for_each(|expert| set(*expert, Fate::Merged));
            cluster.iter().take(1).for_each(|expert| set(*expert, Fate::Kept));
        }
        Some(Self { index: record.layer, trust, fates })
    }

    /// The experts with this fate, ascending.
    pub fn with(&self, fate: Fate) -> Vec<usize> {
        (0..self.fates.len()).filter(|e| self.fates[*e] == fate).collect()
    }

    /// The number of choices of an expert by a token that were counted.
    pub fn choices(&self) -> u64 {
        self.trust.load.counts.iter().sum()
    }

    /// `value`, or None where nothing was counted that it could be based on.
    pub fn counted(&self, value: f64) -> Option<f64> {
        (self.choices() > 0).then_some(value)
    }

    /// Tokens for each expert if the load were even.
    pub fn mean_load(&self) -> f64 {
        self.choices() as f64 / self.trust.load.counts.len().max(1) as f64
    }

    /// The share of mass that is kept; None where nothing was counted, or where all of it is kept
    /// by definition.
    pub fn mass(&self) -> Option<f64> {
        self.counted(self.trust.retained_mass).filter(|_| !self.trust.merges_all())
    }

    /// The share of mass that is kept in the worst domain.
    pub fn worst(&self) -> Option<f64> {
        self.trust.worst_domain.as_ref().and_then(|(_, share)| self.counted(*share))
    }
}

/// Whether experts were merged in any layer.
pub(super) fn merges(layers: &[ReportedLayer]) -> bool {
    layers.iter().any(|layer| layer.fates.contains(&Fate::Merged))
}
