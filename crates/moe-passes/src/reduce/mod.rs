//! Fewer experts: what pruning and merging share.

mod guard;
mod options;
mod reducer;
mod trust;

use std::sync::Arc;

use candle_core::Tensor;
use moe_forward::Group;
use moe_math::Compute;
use moe_math::statistics::Sums;
use moe_model::{Error, Expert, Ffn, Kind, Model, Moe, Result, Weight};

use crate::part;
use crate::pass::{DecidedLayer, LayerRecord};

pub use options::ReduceOptions;
pub use trust::LayerTrust;

pub(crate) use options::Size;
pub(crate) use reducer::{Reducer, decide_now};

/// How a layer gets fewer experts.
pub(crate) trait Method: Send + Sync {
    /// What it needs to see beyond sums.
    fn needs(&self) -> Needs;

    /// Decides one layer.
    fn reduce(&self, layer: &LayerView<'_>) -> Result<Reduced>;
}

/// What a method needs to see of a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Any statistics at all; others decide from weights, or by chance.
    pub sums: bool,
    /// What experts do where each is left out.
    pub left_out: bool,
    /// The mean output of every expert, over this share of all tokens: one in so many; 0 for none.
    pub sample_every: usize,
    /// The inputs themselves, which no file of statistics holds.
    pub inputs: bool,
}

/// A layer as a method sees it.
pub(crate) struct LayerView<'a> {
    pub index: usize,
    pub moe: &'a Moe,
    /// Experts to be left.
    pub count: usize,
    /// Experts that must be among the kept ones.
    pub protected: &'a [usize],
    pub groups: &'a [Group],
    /// Sums of each group of tokens; empty for methods that need none.
    pub sums: &'a [Sums],
    /// The inputs of the block, `[tokens, hidden]` in parts, where the method needs them.
    pub inputs: &'a [Tensor],
    pub seed: u64,
    pub compute: &'a Compute,
}

/// What becomes of a layer's experts.
pub(crate) struct Reduced {
    /// For each expert that is left, ascending by the first: the expert whose router row it keeps, then what was merged
    /// into it.
    pub clusters: Vec<Vec<usize>>,
    /// What the decision ranks experts by; greater is kept.
    pub saliency: Vec<f64>,
    /// The same from each half of the data alone, where there are two.
    pub halves: Option<[Vec<f64>; 2]>,
    /// The experts that are left, where they aren't just the first of each cluster.
    pub experts: Option<Vec<Expert>>,
    /// How experts were made, where that isn't plain.
    pub made: Option<Vec<String>>,
}

impl Reduced {
    /// The experts whose router rows stay, ascending.
    pub fn kept(&self) -> Vec<usize> {
        self.clusters.iter().map(|cluster| cluster[0]).collect()
    }

    /// The layer that this makes of `moe`.
    pub fn decided(self, index: usize, moe: &Moe, trust: Option<LayerTrust>) -> Result<DecidedLayer> {
        let kept = self.kept();
        let experts = self.experts.unwrap_or_else(|| kept.iter().map(|e| moe.experts[*e].clone()).collect());
        let ffn = Ffn::Moe(Box::new(with_experts(moe, &kept, experts)));
        let plain = |cluster: &Vec<usize>| match cluster.as_slice() {
            [one] => format!("expert {one}"),
            [first, others @ ..] => {
                let others: Vec<_> = others.iter().map(usize::to_string).collect();
                format!("expert {first} with {}", others.join(", "))
            }
            [] => String::new(),
        };
        let record = LayerRecord {
            layer: index,
            router: Some(format!("{} of {} rows", kept.len(), moe.experts.len())),
            experts: self.made.unwrap_or_else(|| self.clusters.iter().map(plain).collect()),
            trust,
            ..LayerRecord::default()
        };
        Ok(DecidedLayer { ffn, record, clusters: self.clusters, saliency: self.saliency })
    }
}

/// `moe` with `experts` behind the router rows `kept`.
pub(crate) fn with_experts(moe: &Moe, kept: &[usize], experts: Vec<Expert>) -> Moe {
    let rows: Arc<[usize]> = kept.into();
    let chosen = |weight: &Weight| part::chosen_rows(weight, rows.clone());
    let mut moe = moe.clone();
    moe.router.weight = chosen(&moe.router.weight);
    moe.router.bias = moe.router.bias.as_ref().map(chosen);
    moe.experts = experts;
    moe
}

/// The number of experts that all mixtures of `model` have.
pub(crate) fn expert_count(model: &Model) -> Result<usize> {
    let mut counts = model.moes().map(|(_, moe)| moe.experts.len());
    counts.next().ok_or_else(|| {
        Error::new(Kind::Usage, "this model has no mixture of experts")
            .file(&model.config_file)
            .remedy("give an MoE; upcycle makes one of a dense model")
    })
}
