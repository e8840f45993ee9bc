//! A plan of pruning as a readable file, which can be edited and applied.

use std::collections::BTreeMap;

use moe_model::{Error, Kind, Model, Result};
use serde::{Deserialize, Serialize};

use crate::pass::{DecidedBy, Decisions};
use crate::reduce::{Reduced, Size};

/// Which experts stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrunePlan {
    /// What decided.
    #[serde(default)]
    pub method: String,
    /// By layer.
    pub layers: BTreeMap<usize, PlannedLayer>,
}

/// Which experts of a layer stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedLayer {
    /// How many there were.
    pub experts: usize,
    /// Those that stay, in the order in which they are written.
    pub keep: Vec<usize>,
    /// What experts were ranked by; not read.
    #[serde(default)]
    pub saliency: Vec<f64>,
}

impl PrunePlan {
    /// What `decisions` about `model` say.
    pub(super) fn new(method: String, model: &Model, decisions: &Decisions) -> Self {
        let planned = |(index, moe): (usize, &moe_model::Moe)| {
            let layer = decisions.layers.get(&index)?;
            let keep = layer.clusters.iter().map(|cluster| cluster[0]).collect();
            Some((index, PlannedLayer { experts: moe.experts.len(), keep, saliency: layer.saliency.clone() }))
        };
        Self { method, layers: model.moes().filter_map(planned).collect() }
    }

    /// How many experts stay in each layer of `model`.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a plan that this model can't follow.
    pub(super) fn size(&self, model: &Model) -> Result<Size> {
        let usage = |what: String, remedy: &str| Error::new(Kind::Usage, what).remedy(remedy.to_owned());
        if let Some(index) = self.layers.keys().find(|index| model.moes().all(|(layer, _)| layer != **index)) {
            return Err(usage(format!("the plan has layer {index}, which has no experts"), "remove it from the plan"));
        }
        let mut size: Option<Size> = None;
        for (index, moe) in model.moes() {
            let Some(layer) = self.layers.get(&index) else {
                return Err(usage(format!("the plan leaves layer {index} out"), "give every layer with experts"));
            };
            let before = moe.experts.len();
            if layer.experts != before {
                let what = format!("the plan is for {} experts in layer {index}, which has {before}", layer.experts);
                return Err(usage(what, "give the plan of this model"));
            }
            let mut seen = layer.keep.clone();
            seen.sort_unstable();
            if let Some(expert) = seen.iter().find(|e| **e >= before) {
                return Err(usage(
                    format!("the plan keeps expert {expert} of layer {index}, which has {before}"),
                    "correct \"keep\"",
                ));
            }
            if seen.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(usage(format!("the plan keeps an expert of layer {index} twice"), "correct \"keep\""));
            }
            if seen.len() < moe.router.top_k {
                let what = format!(
                    "the plan keeps {} experts of layer {index}, where each token goes to {}",
                    seen.len(),
                    moe.router.top_k
                );
                return Err(usage(what, "keep at least as many as that"));
            }
            let after = seen.len();
            if size.is_some_and(|size| size.after != after) {
                let what = format!("the plan keeps {after} experts in layer {index} and another number before");
                return Err(usage(what, "keep the same number in every layer: loaders read one"));
            }
            size = Some(Size { before, after });
        }
        size.ok_or_else(|| usage("this model has no mixture of experts".into(), "give an MoE"))
    }

    /// The plan as decisions; [`Self::size`] has found nothing wrong with it.
    pub(super) fn decisions(&self, model: &Model) -> Result<Decisions> {
        let mut layers = BTreeMap::new();
        for (index, moe) in model.moes() {
            let keep = &self.layers[&index].keep;
            let clusters = keep.iter().map(|e| vec![*e]).collect();
            let reduced = Reduced { clusters, saliency: Vec::new(), halves: None, experts: None, made: None };
            layers.insert(index, reduced.decided(index, moe, None)?);
        }
        Ok(Decisions { by: DecidedBy::GivenPlan, layers })
    }
}
