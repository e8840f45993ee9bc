//! A plan for pruning as a readable file, which can be edited and applied.

use std::collections::BTreeMap;

use moe_model::{Error, Model, Moe, Result};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::pass::{DecidedBy, LayerEdits};
use crate::reduce::{Reduced, Size, check_groups, check_padding, expert_count, padded};
use crate::usage::usage;

/// Which experts stay in each layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PrunePlan {
    /// The method that decided; not read. A plan written by hand may lack it.
    #[serde(default)]
    pub method: String,
    /// The plan of each layer.
    pub layers: BTreeMap<usize, PlannedLayer>,
    /// The digest that tells whether the file was edited since it was written; not read.
    #[serde(default, skip_serializing)]
    pub sha256: IgnoredAny,
}

/// Which experts of a layer stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlannedLayer {
    /// The number of experts before pruning.
    pub experts: usize,
    /// Indices of the experts that stay, in the order in which they are written.
    pub keep: Vec<usize>,
    /// The score that ranked each expert; not read. Empty where the plan has none.
    #[serde(default)]
    pub saliency: Vec<f64>,
}

impl PrunePlan {
    /// The plan that `decisions` about `model` make.
    pub fn new(method: String, model: &Model, decisions: &LayerEdits) -> Self {
        let planned = |(index, moe): (usize, &Moe)| {
            let layer = decisions.layers.get(&index)?;
            let keep = layer.clusters.iter().map(|cluster| cluster[0]).collect();
            Some((
                index,
                PlannedLayer { experts: moe.experts.len(), keep, saliency: layer.saliency.clone() },
            ))
        };
        Self { method, layers: model.moes().filter_map(planned).collect(), sha256: IgnoredAny }
    }

    /// How many experts stay in each layer of `model`.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`] for a plan that this model can't follow.
    pub fn size(&self, model: &Model) -> Result<Size> {
        if let Some(index) =
            self.layers.keys().find(|index| model.moes().all(|(layer, _)| layer != **index))
        {
            let what = format!("the plan has layer {index}, which has no experts");
            return Err(wrong_plan(what, "remove it from the plan"));
        }
        let before = expert_count(model)?;
        let mut counts = BTreeMap::new();
        for (index, moe) in model.moes() {
            let Some(layer) = self.layers.get(&index) else {
                let what = format!("the plan leaves layer {index} out");
                return Err(wrong_plan(what, "give every layer with experts"));
            };
            layer.check(index, moe)?;
            counts.insert(index, layer.keep.len());
        }
        // Loaders read one number of experts: layers that keep fewer are padded, where that is
        // possible.
        let after = counts.values().copied().max().unwrap_or(before);
        if counts.values().any(|count| *count != after) {
            model.moes().try_for_each(|(index, moe)| check_padding(index, moe))?;
        }
        Ok(Size { before, after, counts })
    }

    /// The decisions of this plan, after [`Self::size`] has accepted it.
    pub fn decisions(&self, model: &Model, size: &Size) -> LayerEdits {
        let decided = |(index, moe): (usize, &Moe)| {
            let kept = self.layers[&index].keep.iter().copied();
            let layer = Reduced::unmerged(kept, Vec::new()).decided(index, moe, None);
            (index, padded(layer, moe, size.after))
        };
        LayerEdits {
            by: DecidedBy::GivenPlan,
            layers: model.moes().map(decided).collect(),
            attention: BTreeMap::new(),
        }
    }
}

impl PlannedLayer {
    /// Refuses a plan that layer `index`, whose mixture is `moe`, can't follow.
    fn check(&self, index: usize, moe: &Moe) -> Result<()> {
        let before = moe.experts.len();
        if self.experts != before {
            let planned = self.experts;
            let what =
                format!("the plan is for {planned} experts in layer {index}, which has {before}");
            return Err(wrong_plan(what, "give the plan of this model"));
        }
        let saliencies = self.saliency.len();
        if ![0, before].contains(&saliencies) {
            let what = format!(
                "the plan has {saliencies} saliencies of layer {index}, which has {before} experts"
            );
            return Err(wrong_plan(what, "give one for each expert, or leave \"saliency\" out"));
        }
        self.check_kept(index)?;
        let (after, top_k) = (self.keep.len(), moe.router.top_k);
        if after < top_k {
            let what = format!(
                "the plan keeps {after} experts of layer {index}, where each token goes to {top_k}"
            );
            return Err(wrong_plan(what, "keep at least as many as that"));
        }
        check_groups(index, moe, after)
    }

    /// Refuses experts that layer `index` doesn't have, and experts that are kept twice.
    fn check_kept(&self, index: usize) -> Result<()> {
        let mut kept = self.keep.clone();
        kept.sort_unstable();
        let before = self.experts;
        if let Some(expert) = kept.iter().find(|e| **e >= before) {
            let what =
                format!("the plan keeps expert {expert} of layer {index}, which has {before}");
            return Err(wrong_plan(what, "correct \"keep\""));
        }
        if kept.windows(2).any(|pair| pair[0] == pair[1]) {
            let what = format!("the plan keeps an expert of layer {index} twice");
            return Err(wrong_plan(what, "correct \"keep\""));
        }
        Ok(())
    }
}

/// The error that the plan can't be followed.
fn wrong_plan(what: String, remedy: &str) -> Error {
    usage(&["--plan"], what, remedy)
}
