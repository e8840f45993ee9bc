//! Neurons as vectors, and how one expert's neurons are matched with another's.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use moe_forward::to_f32;
use moe_math::meter::Work;
use moe_math::principal::Rows as _;
use moe_math::statistics::{CalibrationSums, Quantity};
use moe_math::{Compute, alignment, principal};
use moe_model::{Error, Expert, Kind, Model, Moe, Result};
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

/// The limit on memory for pairs that are compared at once: wide experts on every thread would take
/// gigabytes.
const AT_ONCE_BYTES: usize = 512 << 20;
/// The number of rows in a block of scores.
pub(crate) const ROWS_AT_ONCE: usize = 128;

/// The size of a layer's experts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExpertSizes {
    pub width: usize,
    pub hidden: usize,
}

impl ExpertSizes {
    pub fn of(moe: &Moe) -> Self {
        let width = moe.experts.iter().map(Expert::width).max().unwrap_or(0);
        Self {
            width,
            hidden: moe.experts.first().map_or(0, |expert| expert.gate.weight.shape()[1]),
        }
    }

    /// The maximum of `bytes` over the layers of `model`.
    pub fn largest(model: &Model, bytes: impl Fn(Self) -> usize) -> u64 {
        model.moes().map(|(_, moe)| bytes(Self::of(moe)) as u64).max().unwrap_or(0)
    }

    /// Bytes of one expert's neurons in f64.
    fn neurons(self) -> usize {
        8 * self.width * 3 * self.hidden
    }

    /// Bytes that reading the neurons takes in addition to them: one matrix as it is stored, in f32
    /// and in f64.
    fn reading(self) -> usize {
        10 * self.width * self.hidden
    }

    /// Bytes of a cost for each pair of two experts' neurons.
    fn costs(self) -> usize {
        8 * self.width.pow(2)
    }

    /// Bytes that comparing one expert with another holds: both experts' neurons, and their costs
    /// `costs` times.
    pub fn compared(self, costs: usize) -> usize {
        let block = 8 * ROWS_AT_ONCE * self.width;
        2 * self.neurons() + self.reading().max(costs * self.costs() + block)
    }

    /// Bytes that scoring one expert's neurons holds: the neurons, and a copy without their mean.
    fn scored(self) -> usize {
        self.neurons() + self.neurons().max(self.reading())
    }
}

/// How many results can be computed at once where each computation holds `bytes_each`.
pub(crate) fn at_once(bytes_each: usize) -> usize {
    (AT_ONCE_BYTES / bytes_each.max(1)).clamp(1, rayon::current_num_threads())
}

/// Results of `find` for `items`, `together` of them at a time. Without this limit, a thread that
/// waits inside `find` would start on further items.
pub(crate) fn found_by<T: Sync, R: Send, C: FromIterator<R>>(
    items: &[T],
    together: usize,
    find: impl Fn(&T) -> Result<R> + Sync,
) -> Result<C> {
    let found =
        items.chunks(together).map(|some| some.par_iter().map(&find).collect::<Result<Vec<R>>>());
    Ok(found.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Bytes that aligning experts of these sizes by their weights holds.
pub(crate) fn bytes_by_weights(sizes: ExpertSizes) -> usize {
    let one = sizes.compared(BY_WEIGHTS_COSTS);
    at_once(one) * one
}

/// Bytes that aligning the experts of any layer of `model` by their weights holds.
pub(crate) fn aligning_bytes(model: &Model) -> u64 {
    model.moes().map(|(_, moe)| bytes_by_weights(ExpertSizes::of(moe)) as u64).max().unwrap_or(0)
}

/// Bytes that aligning `experts` of these sizes by activations and weights holds.
pub(crate) fn bytes_by_activations_and_weights(sizes: ExpertSizes, experts: usize) -> usize {
    let (scored, costs) = (sizes.scored(), sizes.costs());
    let rho = 8 * experts * sizes.width * COMPONENTS;
    let components = principal::bytes(experts * sizes.width, sizes.width, 3 * sizes.hidden);
    // Costs of some experts are computed while neurons of others are still held.
    components.max(rho + at_once(scored) * scored + at_once(costs) * costs)
}

/// Copies of the costs that aligning by weights holds at once: the tensor, and its values on the
/// host.
const BY_WEIGHTS_COSTS: usize = 2;

/// An expert's neurons, f64 `[width, 3 · hidden]`: gate row, up row, down column.
fn neurons(expert: &Expert) -> Result<Tensor> {
    let all = Vec::from_iter(0..expert.width() as u32);
    tensor(chosen(expert, &all)?, &all).map_err(|e| failed(expert, e))
}

/// Neurons scaled to length 1; zero vectors stay zero.
pub(crate) fn unit_neurons(expert: &Expert) -> Result<Tensor> {
    some_unit_neurons(expert, &Vec::from_iter(0..expert.width() as u32))
}

/// The neurons `rows` of an expert, scaled to length 1.
fn some_unit_neurons(expert: &Expert, rows: &[u32]) -> Result<Tensor> {
    let mut values = chosen(expert, rows)?;
    unit(&mut values, 3 * expert.gate.weight.shape()[1]);
    tensor(values, rows).map_err(|e| failed(expert, e))
}

fn tensor(values: Vec<f64>, rows: &[u32]) -> candle_core::Result<Tensor> {
    let d = values.len() / rows.len().max(1);
    Tensor::from_vec(values, (rows.len(), d), &Device::Cpu)
}

/// The neurons `rows`, one after the other. Of the three matrices, one is read at a time, straight
/// to where it belongs.
fn chosen(expert: &Expert, rows: &[u32]) -> Result<Vec<f64>> {
    let hidden = expert.gate.weight.shape()[1];
    let mut values = vec![0.0; rows.len() * 3 * hidden];
    for (place, linear) in expert.linears().into_iter().enumerate() {
        let matrix = to_f32(&linear.weight, &Compute::cpu())?;
        let matrix = matrix
            .flatten_all()
            .and_then(|matrix| matrix.to_vec1::<f32>())
            .map_err(|e| failed(expert, e))?;
        let is_down = place == 2;
        for (neuron, row) in values.chunks_exact_mut(3 * hidden).zip(rows) {
            let row = *row as usize;
            let neuron = &mut neuron[place * hidden..][..hidden];
            if is_down {
                let column = matrix[row..].iter().step_by(expert.width());
                neuron.iter_mut().zip(column).for_each(copy);
            } else {
                neuron.iter_mut().zip(&matrix[row * hidden..][..hidden]).for_each(copy);
            }
        }
    }
    Ok(values)
}

fn copy((to, from): (&mut f64, &f32)) {
    *to = f64::from(*from);
}

fn unit(values: &mut [f64], d: usize) {
    for row in values.chunks_exact_mut(d) {
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|x| *x /= norm);
        }
    }
}

/// The permutation of each member of `groups` except the centroids, by `find(centroid, member)`.
/// Each call holds `bytes_each`.
fn of_members(
    groups: &[Vec<usize>],
    bytes_each: usize,
    find: impl Fn(usize, usize) -> Result<Vec<u32>> + Sync,
) -> Result<Permutations> {
    let pairs = groups.iter().flat_map(|group| group[1..].iter().map(|member| (group[0], *member)));
    let pairs: Vec<_> = pairs.collect();
    found_by(&pairs, at_once(bytes_each), |(centroid, member)| {
        Ok((*member, find(*centroid, *member)?.into()))
    })
}

fn least(cost: &[f64], expert: &Expert) -> Result<Vec<u32>> {
    alignment::permutation(cost, expert.width()).map_err(|e| {
        Error::new(Kind::Numeric, "the neurons of this expert can't be aligned")
            .source(e)
            .tensor(expert.gate.weight.name())
            .remedy("look for values that are not finite: moe-convert verify")
    })
}

/// M-SMoE's permutations: the greatest Σ ⟨v_c\[p\], v_j\[π(p)\]⟩.
pub(crate) fn by_weights(moe: &Moe, groups: &[Vec<usize>]) -> Result<Permutations> {
    of_members(groups, ExpertSizes::of(moe).compared(BY_WEIGHTS_COSTS), |centroid, member| {
        let member = &moe.experts[member];
        let cost = alignment::negative_products(neurons(&moe.experts[centroid])?, neurons(member)?);
        least(&cost.map_err(|e| failed(member, e))?, member)
    })
}

/// REAM's permutations: the least Σ |α_c\[p\] − α_j\[π(p)\]| + ‖ρ_c\[p\] − ρ_j\[π(p)\]‖, where α
/// are mean activations over their root mean square, and ρ unit vectors of the first 64 principal
/// components of all the layer's neurons, scaled to length 1.
pub(crate) fn by_activations_and_weights(
    layer: &LayerView<'_>,
    sums: &CalibrationSums,
    groups: &[Vec<usize>],
) -> Result<Permutations> {
    if groups.iter().all(|group| group.len() == 1) {
        return Ok(Permutations::new());
    }
    let merged = groups.iter().filter(|group| group.len() > 1).flatten().copied();
    let scores = Scores::of(layer, &merged.collect::<Vec<_>>())?;
    of_members(groups, ExpertSizes::of(layer.moe).costs(), |centroid, member| {
        let [rho_c, rho_j] = [centroid, member].map(|expert| &scores.by_expert[&expert]);
        let mut cost = alignment::distances(rho_c, rho_j, scores.rank);
        let (a, b) = (alpha(sums, centroid), alpha(sums, member));
        for (row, a) in cost.chunks_exact_mut(b.len()).zip(&a) {
            row.iter_mut().zip(&b).for_each(|(cost, b)| *cost += (a - b).abs());
        }
        least(&cost, &layer.moe.experts[member])
    })
}

/// Unit vectors of principal components of all the layer's neurons, scaled to length 1.
struct Scores {
    /// The number of components.
    rank: usize,
    by_expert: BTreeMap<usize, Vec<f64>>,
}

impl Scores {
    /// The scores of the neurons of `experts`.
    fn of(layer: &LayerView<'_>, experts: &[usize]) -> Result<Self> {
        let moe = layer.moe;
        let rows = UnitNeurons(moe);
        let principal = layer.compute.stage("principal components", Work::UNCOUNTED, || {
            principal::Principal::of(&rows, COMPONENTS, layer.seed, &layer.compute.device)
        });
        let principal = principal.map_err(|e| failed(&moe.experts[0], e))?;
        let rank = principal.rank();
        let work = Work::products(rows.count(), rows.width() * rank);
        let by_expert = layer.compute.stage("scores", work, || {
            found_by(experts, at_once(ExpertSizes::of(moe).scored()), |expert| {
                Ok((*expert, scores_of(&rows, &principal, *expert)?))
            })
        })?;
        Ok(Self { rank, by_expert })
    }
}

/// The scores of the neurons of `expert`, scaled to length 1.
fn scores_of(
    rows: &UnitNeurons<'_>,
    principal: &principal::Principal,
    expert: usize,
) -> Result<Vec<f64>> {
    let scores = principal::Rows::part(rows, expert).and_then(|neurons| principal.scores(&neurons));
    let mut scores = scores.map_err(|e| failed(&rows.0.experts[expert], e))?;
    unit(&mut scores, principal.rank());
    Ok(scores)
}

/// Mean activations over their root mean square; 0 for an expert without tokens.
fn alpha(sums: &CalibrationSums, expert: usize) -> Vec<f64> {
    let values = sums.of(Quantity::Activations, expert);
    let rms = (values.iter().map(|a| a * a).sum::<f64>() / values.len() as f64).sqrt();
    values.iter().map(|a| if rms > 0.0 { a / rms } else { 0.0 }).collect()
}

/// All neurons of a layer, scaled to length 1, expert by expert.
struct UnitNeurons<'a>(&'a Moe);

impl principal::Rows for UnitNeurons<'_> {
    fn width(&self) -> usize {
        3 * self.0.experts[0].gate.weight.shape()[1]
    }

    fn parts(&self) -> Vec<usize> {
        self.0.experts.iter().map(Expert::width).collect()
    }

    fn some(&self, part: usize, rows: &[u32]) -> candle_core::Result<Tensor> {
        some_unit_neurons(&self.0.experts[part], rows).map_err(candle_core::Error::wrap)
    }
}
