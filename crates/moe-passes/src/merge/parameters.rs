//! Parameters of the algorithms, and their defaults.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Minimum cosine between a dropped neuron and the kept one that it joins, unless given.
pub(super) const DERN_THRESHOLD: f64 = 0.3;
/// Maximum number of experts of a REAM group, unless given; 2604.04356 uses 16.
pub(super) const GROUP_CAP: usize = 16;

/// The rule by which experts join REAM's centroids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grouping {
    /// The most salient centroid takes as many of its nearest as it has room for, then the next:
    /// the paper's.
    Pseudo,
    /// Each expert joins its nearest centroid that has room.
    #[default]
    Nearest,
}

/// The parameters of all algorithms; each reads its own.
pub(super) struct Parameters {
    pub grouping: Grouping,
    /// Maximum number of experts of a group.
    pub group_cap: usize,
    pub dern_threshold: f64,
    /// All experts run on one token in this many.
    pub sample_every: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            grouping: Grouping::default(),
            group_cap: GROUP_CAP,
            dern_threshold: DERN_THRESHOLD,
            sample_every: 1,
        }
    }
}
