//! The table of algorithms: what each is called, how a report describes it, and what runs it.

use std::sync::Arc;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::dern::Dern;
use super::hc_smoe::HcSmoe;
use super::m_smoe::MSmoe;
use super::mergemoe::MergeMoe;
use super::parameters::Parameters;
use super::ream::Ream;
use crate::reduce::Method;

/// The algorithm that groups experts and makes one of each group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MergeAlgorithm {
    /// The most salient experts by REAP take those nearest by gated outputs and router logits,
    /// neurons aligned by activations and weights (2604.04356).
    Ream,
    /// Clusters by mean outputs, averaged by how often experts are chosen (2410.08589).
    HcSmoe,
    /// The most chosen experts take those of most similar router logits, neurons aligned by weights
    /// (2310.01334).
    MSmoe,
    /// Groups as m-smoe; the down projection is fitted to the group's outputs by least squares
    /// (2510.14436); needs --data.
    Mergemoe,
    /// The most chosen experts stay; neurons of others join the most similar kept ones
    /// (2509.10377).
    #[default]
    Dern,
    /// Clusters as hc-smoe, plain means: the baseline.
    Average,
}

/// The sentence that a report has for the algorithm `name`.
pub(super) fn words(name: &str) -> Option<&'static str> {
    Some(match MergeAlgorithm::from_str(name, false).ok()? {
        MergeAlgorithm::Ream => "like experts around the most salient ones, neurons aligned",
        MergeAlgorithm::HcSmoe => "hierarchical clusters of mean outputs",
        MergeAlgorithm::MSmoe => "like router logits around the most used experts",
        MergeAlgorithm::Mergemoe => "down-projections fitted to the group's output",
        MergeAlgorithm::Dern => "neurons of dropped experts given to the fitting kept ones",
        MergeAlgorithm::Average => return None,
    })
}

impl MergeAlgorithm {
    /// What runs the algorithm.
    pub(super) fn method(self, parameters: Parameters) -> Arc<dyn Method> {
        let Parameters { grouping, group_cap, dern_threshold, sample_every } = parameters;
        match self {
            Self::Ream => Arc::new(Ream { grouping, group_cap }),
            Self::HcSmoe => Arc::new(HcSmoe { sample_every, is_plain: false }),
            Self::MSmoe => Arc::new(MSmoe),
            Self::Mergemoe => Arc::new(MergeMoe),
            Self::Dern => Arc::new(Dern { threshold: dern_threshold }),
            Self::Average => Arc::new(HcSmoe { sample_every, is_plain: true }),
        }
    }
}
