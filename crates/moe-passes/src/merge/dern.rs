//! DERN (2509.10377): whole experts are dropped, and their neurons join similar neurons of kept
//! experts.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use moe_math::meter::Work;
use moe_math::saliency;
use moe_model::{Error, Expert, Kind, Model, Result};

use super::groups::of_layer;
use crate::align::{ExpertSizes, ROWS_AT_ONCE, at_once, found_by, unit_neurons};
use crate::merged::{Gift, Share, merged};
use crate::pass::{NetworkEdit, NetworkSource, Neurons};
use crate::reduce::{LayerView, Method, Needs, Reduced};

/// The neuron that a dropped neuron joins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct MergeTarget {
    /// The position of its expert among the kept ones, and its index there.
    pub kept: usize,
    pub neuron: usize,
}

/// A dropped expert, and the target of each of its neurons: None for a neuron that is lost.
pub(super) type Targets = (usize, Vec<Option<MergeTarget>>);

/// The algorithm `dern`: the experts of greatest Σ of gates stay. Each neuron of the others joins
/// the kept neuron of greatest cosine, and is lost if no cosine is large enough. Neurons that are
/// joined become their mean, weighted by saliency.
pub(super) struct Dern {
    /// Minimum cosine at which a neuron joins another.
    pub threshold: f64,
}

impl Method for Dern {
    fn needs(&self) -> Needs {
        Needs::SUMS
    }

    fn working_bytes(&self, model: &Model, _experts: usize, _tokens: usize) -> u64 {
        ExpertSizes::largest(model, working_bytes)
    }

    fn reduce(&self, layer: &LayerView<'_>) -> Result<Reduced> {
        let saliency = saliency::soft_frequency(&layer.pooled());
        let reduced = layer.compute.stage("neurons' targets", Work::UNCOUNTED, || {
            reduce(layer, saliency, self.threshold)
        })?;
        let halves = layer.halves(|sums| Some(saliency::soft_frequency(sums)));
        Ok(Reduced { halves, ..reduced })
    }
}

/// Decides a layer; the halves of its saliency are left out.
fn reduce(layer: &LayerView<'_>, saliency: Vec<f64>, threshold: f64) -> Result<Reduced> {
    let kept = kept(layer, &saliency);
    let targets = targets(layer, &kept, threshold)?;
    let joining = Joining { layer, kept: &kept, targets: &targets, saliency: &saliency };
    let made: Vec<_> = (0..kept.len()).map(|position| joining.merged(position)).collect();
    let clusters = made.iter().map(|made| made.cluster.clone()).collect();
    let edits = made.iter().map(|made| made.edit.clone()).collect();
    let experts = made.into_iter().map(|made| made.expert).collect();
    let carried = Some(carried(layer.moe.experts.len(), &targets));
    Ok(Reduced {
        clusters,
        saliency,
        halves: None,
        experts: Some(experts),
        made: Some(edits),
        carried,
    })
}

/// For each of `experts` experts, the share of its neurons that stay or have a target.
pub(super) fn carried(experts: usize, targets: &[Targets]) -> Vec<f64> {
    let mut carried = vec![1.0; experts];
    for (dropped, targets) in targets {
        carried[*dropped] = targets.iter().flatten().count() as f64 / targets.len() as f64;
    }
    carried
}

/// The kept experts, ascending.
fn kept(layer: &LayerView<'_>, saliency: &[f64]) -> Vec<usize> {
    let groups = of_layer(layer.moe, layer.count, layer.protected, |division| {
        let (centroids, _) = division.centroids(saliency);
        centroids.into_iter().map(|expert| vec![expert]).collect()
    });
    groups.into_iter().map(|group| group[0]).collect()
}

/// The targets of all neurons of each dropped expert, by expert, ascending.
pub(super) fn targets(
    layer: &LayerView<'_>,
    kept: &[usize],
    threshold: f64,
) -> Result<Vec<Targets>> {
    let experts = layer.moe.experts.len();
    let dropped: Vec<usize> = (0..experts).filter(|e| !kept.contains(e)).collect();
    found_by(&dropped, at_once(ExpertSizes::of(layer.moe).compared(COSTS)), |dropped| {
        targets_of(layer, *dropped, kept, threshold)
    })
}

/// The targets of the neurons of expert `dropped`. Neurons stay in their routing group, and none
/// joins a protected expert.
fn targets_of(
    layer: &LayerView<'_>,
    dropped: usize,
    kept: &[usize],
    threshold: f64,
) -> Result<Targets> {
    let experts = &layer.moe.experts;
    let size = experts.len() / layer.moe.router.groups.map_or(1, |groups| groups.count);
    let rows = device_rows(layer, &experts[dropped])?;
    let mut best = vec![(threshold, None); experts[dropped].width()];
    for (position, expert) in kept.iter().enumerate() {
        if expert / size != dropped / size || layer.protected.contains(expert) {
            continue;
        }
        let other = device_rows(layer, &experts[*expert])?;
        raise_all(&mut best, position, &rows, &other).map_err(|e| failed(layer, e))?;
    }
    Ok((dropped, best.into_iter().map(|(_, target)| target).collect()))
}

/// Raises the `best` target of each of the neurons `rows` to one of the neurons `other`, which are
/// those of the kept expert at this position, where one is nearer.
fn raise_all(
    best: &mut [(f64, Option<MergeTarget>)],
    position: usize,
    rows: &Tensor,
    other: &Tensor,
) -> candle_core::Result<()> {
    let cosines = rows.matmul(&other.t()?)?;
    for (block, best) in best.chunks_mut(ROWS_AT_ONCE).enumerate() {
        let some = cosines.narrow(0, block * ROWS_AT_ONCE, best.len())?.to_vec2::<f64>()?;
        best.iter_mut().zip(&some).for_each(|(best, row)| raise(best, position, row));
    }
    Ok(())
}

/// The number of times that cosines of all pairs are held.
const COSTS: usize = 1;

/// Bytes that finding targets for neurons of experts of these sizes takes.
fn working_bytes(sizes: ExpertSizes) -> usize {
    let one = sizes.compared(COSTS);
    at_once(one) * one
}

/// Makes the greatest of `cosines` the best where it is greater; without a target so far, a cosine
/// as great as the threshold is enough.
fn raise(best: &mut (f64, Option<MergeTarget>), kept: usize, cosines: &[f64]) {
    for (neuron, cosine) in cosines.iter().enumerate() {
        if *cosine > best.0 || (best.1.is_none() && *cosine >= best.0) {
            *best = (*cosine, Some(MergeTarget { kept, neuron }));
        }
    }
}

/// Neurons of length 1, on the device where they are compared. They are in f64, which Metal lacks.
fn device_rows(layer: &LayerView<'_>, expert: &Expert) -> Result<Tensor> {
    let device = if layer.compute.device.is_metal() { &Device::Cpu } else { &layer.compute.device };
    unit_neurons(expert)?.to_device(device).map_err(|e| failed(layer, e))
}

struct MergedBlock {
    cluster: Vec<usize>,
    edit: NetworkEdit,
    expert: Expert,
}

/// The neurons of a layer's dropped experts, and the kept experts that they join.
struct Joining<'a> {
    layer: &'a LayerView<'a>,
    kept: &'a [usize],
    targets: &'a [Targets],
    saliency: &'a [f64],
}

/// A dropped expert, and its neurons that join a kept one, each with the neuron that it joins.
type Arrival = (usize, Vec<(usize, usize)>);

impl Joining<'_> {
    /// The kept expert at this position with the neurons that join it; without any it stays as it
    /// is stored.
    fn merged(&self, position: usize) -> MergedBlock {
        let experts = &self.layer.moe.experts;
        let own = self.kept[position];
        let arrivals = self.arrivals(position);
        let donors = arrivals.iter().map(|(dropped, _)| *dropped);
        let cluster = std::iter::once(own).chain(donors).collect();
        let mut edit = NetworkEdit::of(vec![NetworkSource::expert(own)]);
        if arrivals.is_empty() {
            return MergedBlock { cluster, edit, expert: experts[own].clone() };
        }
        let totals = self.totals(own, &arrivals);
        let gift = |expert: usize, from: usize, to: usize| {
            let coefficient = self.share(expert, totals[to], own);
            Gift { from: from as u32, to: to as u32, coefficient }
        };
        let stays: Arc<[Gift]> =
            (0..totals.len()).map(|neuron| gift(own, neuron, neuron)).collect();
        let mut members = vec![(&experts[own], Share::Some(stays))];
        for (dropped, neurons) in arrivals {
            let source = NetworkSource::expert(dropped);
            let count = Some(Neurons::Count(neurons.len()));
            edit.sources.push(NetworkSource { neurons: count, ..source });
            let gifts = neurons.into_iter().map(|(from, to)| gift(dropped, from, to)).collect();
            members.push((&experts[dropped], Share::Some(gifts)));
        }
        MergedBlock { cluster, edit, expert: merged(&members) }
    }

    /// The neurons that join the kept expert at this position.
    fn arrivals(&self, position: usize) -> Vec<Arrival> {
        self.targets
            .iter()
            .map(|(dropped, targets)| (*dropped, joining(targets, position)))
            .filter(|(_, neurons)| !neurons.is_empty())
            .collect()
    }

    /// For each neuron of the kept expert `own`, the saliency of all that become it.
    fn totals(&self, own: usize, arrivals: &[Arrival]) -> Vec<f64> {
        let mut totals = vec![self.saliency[own]; self.layer.moe.experts[own].width()];
        for (dropped, neurons) in arrivals {
            neurons.iter().for_each(|(_, to)| totals[*to] += self.saliency[*dropped]);
        }
        totals
    }

    /// The share that a neuron of `expert` has in one whose neurons have the saliency `total`.
    /// Where all weights are 0, the neuron of the kept expert `own` stays unchanged.
    fn share(&self, expert: usize, total: f64, own: usize) -> f64 {
        if total > 0.0 { self.saliency[expert] / total } else { f64::from(u8::from(expert == own)) }
    }
}

/// The neurons whose `targets` are in the kept expert at this position, each with its target there.
fn joining(targets: &[Option<MergeTarget>], position: usize) -> Vec<(usize, usize)> {
    targets
        .iter()
        .enumerate()
        .filter_map(|(from, target)| {
            target.filter(|t| t.kept == position).map(|t| (from, t.neuron))
        })
        .collect()
}

fn failed(layer: &LayerView<'_>, error: candle_core::Error) -> Error {
    Error::new(Kind::Numeric, format!("cannot compare the neurons of layer {}", layer.index))
        .source(error)
}
