//! The common part of pruning and merging: fewer experts.

mod budget;
mod expert_reducer;
mod guard;
mod mtp;
mod options;
mod pass;
mod trust;
mod trusted;

use std::sync::Arc;

use candle_core::Tensor;
use moe_forward::{Group, group_factors, labels};
use moe_math::saliency::greatest;
use moe_math::statistics::CalibrationSums;
use moe_math::{Compute, sampling};
use moe_model::{Error, Expert, Ffn, Kind, Model, Moe, Result};

use crate::part;
use crate::pass::{
    DecidedLayer, Details, LayerRecord, NetworkEdit, NetworkSource, RouterEdit, RouterRows,
};

pub use options::{MtpChoice, ReduceOptions};
pub use trust::LayerTrust;

pub(crate) use budget::{check_padding, padded};
pub(crate) use mtp::aimer;
pub(crate) use options::{Size, check_groups, default_divisible_by};
pub(crate) use pass::{BASELINE, Reduction, fewer};

/// A method that leaves a layer fewer experts.
pub(crate) trait Method: Send + Sync {
    /// The data about a layer that the method needs.
    fn needs(&self) -> Needs;

    /// The maximum number of bytes that deciding a layer of `experts` experts holds, in addition to
    /// the inputs of `tokens` tokens if it has kept them.
    fn working_bytes(&self, model: &Model, experts: usize, tokens: usize) -> u64 {
        let _ = (model, experts, tokens);
        0
    }

    /// Decides one layer.
    fn reduce(&self, layer: &LayerView<'_>) -> Result<Reduced>;
}

/// The data that a method needs to see of a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Whether it needs statistics at all. Methods that don't decide by weights or by chance.
    pub sums: bool,
    /// Whether it needs the effect of leaving each expert out.
    pub left_out: bool,
    /// For the mean output of every expert, it needs one token in this many; 0 for none.
    pub sample_every: usize,
    /// Whether it needs the inputs themselves, which no file of statistics holds.
    pub inputs: bool,
}

impl Needs {
    /// Statistics alone.
    pub const SUMS: Self = Self { sums: true, left_out: false, sample_every: 0, inputs: false };
}

/// A layer as a method sees it.
pub(crate) struct LayerView<'a> {
    pub index: usize,
    pub moe: &'a Moe,
    /// The number of experts to keep.
    pub count: usize,
    /// Experts that must be kept.
    pub protected: &'a [usize],
    pub groups: &'a [Group],
    /// Sums of each group of tokens; empty for methods that need no sums.
    pub sums: &'a [CalibrationSums],
    /// The inputs of the block, `[tokens, hidden]` in parts, where the method needs them.
    pub inputs: &'a [Tensor],
    pub seed: u64,
    pub compute: &'a Compute,
}

impl LayerView<'_> {
    /// The sums of all tokens, where those of each domain are multiplied by its factor.
    pub fn pooled(&self) -> CalibrationSums {
        CalibrationSums::pooled(self.sums.iter().zip(group_factors(self.groups)))
    }

    /// The sums of each domain's tokens.
    pub fn domains(&self) -> Vec<(&str, CalibrationSums)> {
        let domains = labels(self.groups).into_iter().map(|label| {
            let groups =
                self.groups.iter().zip(self.sums).filter(|(group, _)| group.label == label);
            (label, CalibrationSums::pooled(groups.map(|(_, sums)| (sums, 1.0))))
        });
        domains.collect()
    }

    /// `saliency` of the sums of each half of the tokens; None where a half is empty.
    pub fn halves(
        &self,
        saliency: impl Fn(&CalibrationSums) -> Option<Vec<f64>>,
    ) -> Option<[Vec<f64>; 2]> {
        Some([saliency(&self.half(0)?)?, saliency(&self.half(1)?)?])
    }

    /// The sums of one half of the tokens; None where it is empty.
    fn half(&self, half: u8) -> Option<CalibrationSums> {
        let groups = self
            .groups
            .iter()
            .zip(self.sums)
            .filter(|(group, _)| group.half == half && group.tokens > 0);
        let mut sums = groups.map(|(_, sums)| (sums, 1.0)).peekable();
        sums.peek()?;
        Some(CalibrationSums::pooled(sums))
    }
}

/// The decision about a layer's experts.
pub(crate) struct Reduced {
    /// For each expert that is left, ascending by the first: the expert whose router row it keeps,
    /// then those merged into it.
    pub clusters: Vec<Vec<usize>>,
    /// The score that ranked each expert; the greatest are kept.
    pub saliency: Vec<f64>,
    /// The scores from each half of the data alone; None where there aren't two.
    pub halves: Option<[Vec<f64>; 2]>,
    /// The experts that are left; None where they are the first of each cluster, unchanged.
    pub experts: Option<Vec<Expert>>,
    /// How experts were made; None where they are unchanged.
    pub made: Option<Vec<NetworkEdit>>,
    /// The share of each expert that is contained in those that are left. None where it is 1 for
    /// experts in a cluster and 0 for others.
    pub carried: Option<Vec<f64>>,
}

impl Reduced {
    /// A decision that keeps the experts `kept`, unchanged.
    pub fn unmerged(kept: impl IntoIterator<Item = usize>, saliency: Vec<f64>) -> Self {
        let clusters = kept.into_iter().map(|expert| vec![expert]).collect();
        Self { clusters, saliency, halves: None, experts: None, made: None, carried: None }
    }

    /// The experts whose router rows stay, ascending.
    pub fn kept(&self) -> Vec<usize> {
        self.clusters.iter().map(|cluster| cluster[0]).collect()
    }

    /// For each of `experts` experts, the share that is kept, by itself or merged into another.
    pub fn carried(&self, experts: usize) -> Vec<f64> {
        self.carried.clone().unwrap_or_else(|| {
            let kept = (0..experts).map(|e| self.clusters.iter().any(|c| c.contains(&e)));
            kept.map(|kept| f64::from(u8::from(kept))).collect()
        })
    }

    /// The edit of layer `index`, whose mixture is `moe`, by this decision.
    pub fn decided(self, index: usize, moe: &Moe, trust: Option<LayerTrust>) -> DecidedLayer {
        let kept = self.kept();
        let experts =
            self.experts.unwrap_or_else(|| kept.iter().map(|e| moe.experts[*e].clone()).collect());
        let ffn = Ffn::Moe(Box::new(with_experts(moe, &kept, experts)));
        let rows = RouterRows::Kept { kept: kept.len(), of: moe.experts.len(), never_selected: 0 };
        let record = LayerRecord {
            layer: index,
            router: Some(RouterEdit { rows, repeated: 1 }),
            experts: self
                .made
                .unwrap_or_else(|| self.clusters.iter().map(|c| edit_of(c)).collect()),
            details: trust.map(Details::of),
            ..LayerRecord::default()
        };
        DecidedLayer { ffn, record, clusters: self.clusters, saliency: self.saliency }
    }
}

/// The record of the expert that `cluster` becomes.
fn edit_of(cluster: &[usize]) -> NetworkEdit {
    NetworkEdit::of(cluster.iter().map(|expert| NetworkSource::expert(*expert)).collect())
}

/// `moe` with `experts`, which get the router rows `kept`.
pub(crate) fn with_experts(moe: &Moe, kept: &[usize], experts: Vec<Expert>) -> Moe {
    let rows: Arc<[usize]> = kept.into();
    let mut moe = moe.clone();
    moe.router.weight = part::chosen_rows(&moe.router.weight, rows.clone());
    moe.router.bias = moe.router.bias.as_ref().map(|bias| part::chosen_rows(bias, rows));
    moe.experts = experts;
    moe
}

/// The `count` experts of `moe` of the greatest saliency, ascending: equally many of each of the
/// router's groups, where it has some.
pub(crate) fn most_salient(saliency: &[f64], moe: &Moe, count: usize) -> Vec<usize> {
    let groups = moe.router.groups.map_or(1, |groups| groups.count);
    let size = saliency.len() / groups;
    let kept = saliency.chunks_exact(size).enumerate().flat_map(|(group, saliency)| {
        let kept = greatest(saliency, count / groups);
        kept.into_iter().map(move |expert| group * size + expert)
    });
    kept.collect()
}

/// Refuses a saliency of layer `index` that isn't a number: sorting would put it first or last by
/// chance.
fn check_saliency(index: usize, moe: &Moe, saliency: &[f64]) -> Result<()> {
    let Some(expert) = saliency.iter().position(|value| !value.is_finite()) else { return Ok(()) };
    for linear in moe.experts.get(expert).iter().flat_map(|expert| expert.linears()) {
        if linear.weight.scheme().is_none() {
            part::read_finite(&linear.weight)?;
        }
    }
    let what = format!(
        "expert {expert} of layer {index} can't be ranked: what it is ranked by is {}",
        saliency[expert]
    );
    Err(Error::new(Kind::Numeric, what)
        .remedy("look at the expert's weights with verify, or rank experts by something else"))
}

/// A random choice of `count` experts in each layer of `model`, without its layers for multi-token
/// prediction.
fn random_model(model: &Model, count: usize, seed: u64) -> Model {
    let mut pruned = model.clone();
    for (index, moe) in model.moes() {
        let kept = most_salient(&random_saliency(moe.experts.len(), index, seed), moe, count);
        let experts = kept.iter().map(|e| moe.experts[*e].clone()).collect();
        pruned.layers[index].ffn = Ffn::Moe(Box::new(with_experts(moe, &kept, experts)));
    }
    pruned.mtp.clear();
    pruned
}

/// A random order of the experts of layer `index`.
pub(crate) fn random_saliency(experts: usize, index: usize, seed: u64) -> Vec<f64> {
    let mut saliency = vec![0.0; experts];
    let order = sampling::choose(experts, experts, &mut sampling::generator(seed, index as u64));
    order.into_iter().enumerate().for_each(|(rank, expert)| saliency[expert] = rank as f64);
    saliency
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
