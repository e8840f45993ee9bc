//! The number of experts that each layer keeps, where it follows from their mass: the share of Σ g
//! ‖f‖.

use std::collections::BTreeMap;

use moe_forward::group_factors;
use moe_math::statistics::{CalibrationSums, Quantity};
use moe_model::{Error, Kind, Model, Moe, Result};

use super::with_experts;
use crate::part;
use crate::pass::{
    DecidedLayer, LayerStatistics, NetworkEdit, NetworkSource, RouterEdit, RouterRows,
};

/// Σ g ‖f‖ of each expert, descending, by layer.
pub(super) type Masses = BTreeMap<usize, Vec<f64>>;

/// The expert correction bias of an expert that no token is to choose; scores lie between 0 and 1.
const NEVER: f32 = -1e4;

/// The masses of `model`'s layers.
pub(super) fn masses(model: &Model, statistics: &dyn LayerStatistics) -> Result<Masses> {
    let factors = group_factors(statistics.groups());
    let layers = model.moes().map(|(index, _)| {
        let sums = sums_of(statistics, index)?;
        let pooled = CalibrationSums::pooled(sums.iter().zip(factors.iter().copied()));
        let mut masses = pooled.get(Quantity::GatedNorms).to_vec();
        masses.sort_by(|a, b| b.total_cmp(a));
        Ok((index, masses))
    });
    layers.collect()
}

/// The minimum number of experts with which every layer keeps the share `share` of its mass.
pub(super) fn least_uniform(masses: &Masses, share: f64) -> usize {
    masses.values().map(|masses| experts_for(masses, share)).max().unwrap_or(0)
}

/// The minimum number of experts with which a layer keeps the share `share` of its mass.
fn experts_for(masses: &[f64], share: f64) -> usize {
    let all: f64 = masses.iter().sum();
    let mut kept = 0.0;
    // In another order, the sum of all may be less than `all` by rounding.
    let enough = masses.iter().position(|mass| {
        kept += mass;
        kept >= share * all * (1.0 - 1e-12)
    });
    enough.map_or(masses.len(), |last| last + 1)
}

/// The number of experts of each layer: `total` in all, at least `least` in each, so that the
/// smallest share of mass that a layer keeps is as large as possible.
pub(super) fn equal_mass(masses: &Masses, least: usize, total: usize) -> BTreeMap<usize, usize> {
    let mut counts: BTreeMap<usize, usize> =
        masses.iter().map(|(layer, masses)| (*layer, least.min(masses.len()))).collect();
    while counts.values().sum::<usize>() < total {
        let growing = counts.iter().filter(|(layer, count)| **count < masses[*layer].len());
        // Among equals, the first layer.
        let Some((layer, count)) =
            growing.map(|(l, c)| (*l, *c)).min_by(|(a, kept_of_a), (b, kept_of_b)| {
                let share = share_of_first(&masses[a], *kept_of_a);
                share.total_cmp(&share_of_first(&masses[b], *kept_of_b))
            })
        else {
            break;
        };
        counts.insert(layer, count + 1);
    }
    counts
}

/// The share of a layer's mass that its first `count` experts have.
fn share_of_first(masses: &[f64], count: usize) -> f64 {
    let all: f64 = masses.iter().sum();
    if all > 0.0 { masses[..count].iter().sum::<f64>() / all } else { 1.0 }
}

/// Refuses a router that can't have rows that are never selected.
pub(crate) fn check_padding(index: usize, moe: &Moe) -> Result<()> {
    if moe.router.bias.is_some() && moe.router.groups.is_none() {
        return Ok(());
    }
    let what = match moe.router.groups {
        Some(_) => {
            "a router that chooses groups first would rank a group by experts that stand for nothing"
        }
        None => "a router without an expert correction bias has no row that is never selected",
    };
    Err(Error::new(Kind::Unsupported, format!("{what} (layer {index})"))
        .tensor(moe.router.weight.name())
        .remedy("keep the same number in every layer: --keep-mass finds one by the same measure"))
}

/// `layer` of `moe`, padded to `count` experts with copies of its first expert that no token
/// chooses.
pub(crate) fn padded(layer: DecidedLayer, moe: &Moe, count: usize) -> DecidedLayer {
    let kept: Vec<usize> = layer.clusters.iter().map(|cluster| cluster[0]).collect();
    let missing = count.saturating_sub(kept.len());
    let Some(reduced) = layer.ffn.moe().filter(|_| missing > 0) else { return layer };
    let rows: Vec<usize> =
        kept.iter().copied().chain(std::iter::repeat_n(kept[0], missing)).collect();
    let mut experts = reduced.experts.clone();
    experts.extend(std::iter::repeat_n(experts[0].clone(), missing));
    let mut padded = with_experts(moe, &rows, experts);
    padded.router.bias = padded.router.bias.map(|bias| part::with_tail(&bias, missing, NEVER));
    let mut record = layer.record;
    let first = NetworkSource::expert(kept[0]);
    let filling = NetworkEdit { never_selected: true, ..NetworkEdit::of(vec![first]) };
    record.experts.extend(std::iter::repeat_n(filling, missing));
    let rows =
        RouterRows::Kept { kept: kept.len(), of: moe.experts.len(), never_selected: missing };
    record.router = Some(RouterEdit { rows, repeated: 1 });
    DecidedLayer { ffn: moe_model::Ffn::Moe(Box::new(padded)), record, ..layer }
}

/// The sums of each group of tokens in layer `index`.
pub(super) fn sums_of(
    statistics: &dyn LayerStatistics,
    index: usize,
) -> Result<Vec<CalibrationSums>> {
    statistics.layer(index)?.ok_or_else(|| {
        Error::new(Kind::Mismatch, format!("the statistics have no layer {index}"))
            .remedy("observe this model again")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masses() -> Masses {
        BTreeMap::from([(1, vec![8.0, 1.0, 0.5, 0.5]), (2, vec![3.0, 3.0, 2.0, 2.0])])
    }

    #[test]
    fn a_uniform_number_serves_the_layer_that_needs_most() {
        // Layer 1 has 80 % of its mass in its first expert, layer 2 in its first three.
        assert_eq!(least_uniform(&masses(), 0.8), 3);
        assert_eq!((least_uniform(&masses(), 0.3), least_uniform(&masses(), 1.0)), (1, 4));
    }

    #[test]
    fn equal_mass_gives_experts_where_they_are_missed() {
        assert_eq!(equal_mass(&masses(), 1, 5), BTreeMap::from([(1, 2), (2, 3)]));
        assert_eq!(equal_mass(&masses(), 2, 4), BTreeMap::from([(1, 2), (2, 2)]));
        assert_eq!(equal_mass(&masses(), 1, 99), BTreeMap::from([(1, 4), (2, 4)]));
    }
}
