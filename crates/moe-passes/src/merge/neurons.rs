//! Neurons as vectors, and which of one expert's goes where among another's.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use moe_forward::to_f32;
use moe_math::meter::Work;
use moe_math::principal::Rows as _;
use moe_math::statistics::{Quantity, Sums};
use moe_math::{Compute, alignment, principal};
use moe_model::{Error, Expert, Kind, Moe, Result};
use rayon::prelude::*;

use crate::reduce::LayerView;

/// Principal components that REAM compares neurons by.
const COMPONENTS: usize = 64;

/// Permutations of merged members' neurons, by member.
pub(crate) type Permutations = BTreeMap<usize, Arc<[u32]>>;

fn failed(expert: &Expert, error: candle_core::Error) -> Error {
    Error::new(Kind::Numeric, "cannot compare the neurons of this expert")
        .source(error)
        .tensor(expert.gate.weight.name())
}

/// An expert's neurons, f64 `[width, 3 · hidden]`: gate row, up row, down column.
pub(super) fn neurons(expert: &Expert) -> Result<Tensor> {
    stored_neurons(expert)?.to_dtype(DType::F64).map_err(|e| failed(expert, e))
}

/// The same in f32, which is all that files hold.
fn stored_neurons(expert: &Expert) -> Result<Tensor> {
    let [gate, up, down] = expert.linears().map(|linear| to_f32(&linear.weight, &Compute::cpu()));
    let (gate, up, down) = (gate?, up?, down?);
    let rows = || Tensor::cat(&[&gate, &up, &down.t()?], 1);
    rows().map_err(|e| failed(expert, e))
}

/// Rows of length 1; those of 0 stay.
pub(super) fn unit_rows(rows: &Tensor) -> candle_core::Result<Tensor> {
    let (n, d) = rows.dims2()?;
    let mut values: Vec<f64> = rows.flatten_all()?.to_vec1()?;
    unit(&mut values, d);
    Tensor::from_vec(values, (n, d), rows.device())
}

fn unit(values: &mut [f64], d: usize) {
    for row in values.chunks_exact_mut(d) {
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|x| *x /= norm);
        }
    }
}

/// The permutation of each member of `groups` but the centroids, by `find(centroid, member)`.
fn of_members(groups: &[Vec<usize>], find: impl Fn(usize, usize) -> Result<Vec<u32>> + Sync) -> Result<Permutations> {
    let pairs = groups.iter().flat_map(|group| group[1..].iter().map(|member| (group[0], *member)));
    let pairs: Vec<_> = pairs.collect();
    pairs.par_iter().map(|(centroid, member)| Ok((*member, find(*centroid, *member)?.into()))).collect()
}

fn least(cost: &[f64], expert: &Expert) -> Result<Vec<u32>> {
    alignment::permutation(cost, expert.width()).map_err(|e| {
        Error::new(Kind::Numeric, "the neurons of this expert can't be aligned")
            .source(e)
            .tensor(expert.gate.weight.name())
            .remedy("look for values that are not finite: moe-convert verify")
    })
}

/// M-SMoE's: the greatest Σ ⟨v_c\[p\], v_j\[π(p)\]⟩.
pub(crate) fn by_weights(moe: &Moe, groups: &[Vec<usize>]) -> Result<Permutations> {
    of_members(groups, |centroid, member| {
        let member = &moe.experts[member];
        let cost = alignment::negative_products(&neurons(&moe.experts[centroid])?, &neurons(member)?);
        least(&cost.map_err(|e| failed(member, e))?, member)
    })
}

/// REAM's: the least Σ |α_c\[p\] − α_j\[π(p)\]| + ‖ρ_c\[p\] − ρ_j\[π(p)\]‖, α the mean activations over their root mean
/// square, ρ the unit vectors of the first 64 principal components of all the layer's neurons of length 1.
pub(super) fn by_activations_and_weights(
    layer: &LayerView<'_>,
    sums: &Sums,
    groups: &[Vec<usize>],
) -> Result<Permutations> {
    if groups.iter().all(|group| group.len() == 1) {
        return Ok(Permutations::new());
    }
    let moe = layer.moe;
    let rows = UnitNeurons(moe);
    let find = || principal::Principal::of(&rows, COMPONENTS, layer.seed, &layer.compute.device);
    let principal =
        layer.compute.stage("principal components", Work::UNCOUNTED, find).map_err(|e| failed(&moe.experts[0], e))?;
    let rank = principal.rank();
    let rho = |expert: usize| -> Result<(usize, Vec<f64>)> {
        let scores = principal::Rows::part(&rows, expert).and_then(|rows| principal.scores(&rows));
        let mut scores = scores.map_err(|e| failed(&moe.experts[expert], e))?;
        unit(&mut scores, rank);
        Ok((expert, scores))
    };
    let merged = groups.iter().filter(|group| group.len() > 1).flatten().copied().collect::<Vec<_>>();
    let work = Work::products(rows.count(), rows.width() * rank);
    let all = || merged.into_par_iter().map(rho).collect::<Result<_>>();
    let rho: BTreeMap<usize, Vec<f64>> = layer.compute.stage("scores", work, all)?;
    of_members(groups, |centroid, member| {
        let mut cost = alignment::distances(&rho[&centroid], &rho[&member], rank);
        let (a, b) = (alpha(sums, centroid), alpha(sums, member));
        for (row, a) in cost.chunks_exact_mut(b.len()).zip(&a) {
            row.iter_mut().zip(&b).for_each(|(cost, b)| *cost += (a - b).abs());
        }
        least(&cost, &moe.experts[member])
    })
}

/// Mean activations over their root mean square; 0 without tokens.
fn alpha(sums: &Sums, expert: usize) -> Vec<f64> {
    let values = sums.of(Quantity::Activations, expert);
    let rms = (values.iter().map(|a| a * a).sum::<f64>() / values.len() as f64).sqrt();
    values.iter().map(|a| if rms > 0.0 { a / rms } else { 0.0 }).collect()
}

/// All neurons of a layer, of length 1, expert by expert.
struct UnitNeurons<'a>(&'a Moe);

impl principal::Rows for UnitNeurons<'_> {
    fn width(&self) -> usize {
        3 * self.0.experts[0].gate.weight.shape()[1]
    }

    fn parts(&self) -> Vec<usize> {
        self.0.experts.iter().map(Expert::width).collect()
    }

    fn some(&self, part: usize, rows: &[u32]) -> candle_core::Result<Tensor> {
        let neurons = stored_neurons(&self.0.experts[part]).map_err(candle_core::Error::wrap)?;
        let chosen = Tensor::from_slice(rows, rows.len(), &Device::Cpu)?;
        // What is joined along columns lies in memory by columns.
        unit_rows(&neurons.contiguous()?.index_select(&chosen, 0)?.to_dtype(DType::F64)?)
    }
}
