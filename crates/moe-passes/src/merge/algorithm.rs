//! The table of algorithms: what each is called, how a report describes it, and what runs it.

use std::sync::Arc;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::dern::Dern;
use super::hc_smoe::HcSmoe;
use super::m_smoe::MSmoe;
use super::mergemoe::MergeMoe;
use super::options::{DERN_THRESHOLD, GROUP_CAP, MergeOptions};
use super::ream::Ream;
use crate::reduce::Method;

/// Which experts become one, and how.
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

impl MergeOptions {
    /// The algorithm that is asked for, with its parameters.
    pub(super) fn method(&self) -> Arc<dyn Method> {
        let sample_every = self.all_experts_every.unwrap_or(1);
        match self.algorithm {
            MergeAlgorithm::Ream => Arc::new(Ream {
                grouping: self.grouping.unwrap_or_default(),
                group_cap: self.group_cap.unwrap_or(GROUP_CAP),
            }),
            MergeAlgorithm::HcSmoe => Arc::new(HcSmoe { sample_every, is_plain: false }),
            MergeAlgorithm::MSmoe => Arc::new(MSmoe),
            MergeAlgorithm::Mergemoe => Arc::new(MergeMoe),
            MergeAlgorithm::Dern => {
                Arc::new(Dern { threshold: self.dern_threshold.unwrap_or(DERN_THRESHOLD) })
            }
            MergeAlgorithm::Average => Arc::new(HcSmoe { sample_every, is_plain: true }),
        }
    }
}
