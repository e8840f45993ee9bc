//! The dense network of a layer before it is fitted or trained.

use std::sync::Arc;

use moe_model::{Expert, Ffn, Moe, Result};

use super::mean::{Means, means};
use super::neurons::{Gates, Networks, Neuron, distinct};
use super::observe::LayerSums;
use super::options::shared_width;
use super::record::{DistilledLayer, DistilledPart, PartSource};
use super::select::{Select, by_experts, by_neurons};
use super::weights::{Pick, picked, random};
use super::{DistillOptions, Down, Init};
use crate::pass::{DecidedLayer, Kept, LayerRecord};

/// The dense network of `width` neurons for layer `index`, whose mixture is `moe`, and its record.
pub(super) fn student(
    index: usize,
    moe: &Moe,
    sums: &LayerSums,
    options: &DistillOptions,
    width: usize,
) -> Result<(Expert, DistilledLayer)> {
    let gates = sums.mean_gates();
    let shared_gate = moe
        .shared
        .as_ref()
        .map(|shared| shared.gate.as_ref().map_or(1.0, |_| sums.mean_shared_gate()));
    let made = match options.init {
        Init::Select => selected(index, moe, sums, options, width)?,
        Init::Mean => averaged(moe, &gates, shared_gate, &vec![1.0; gates.len()], width)?,
        Init::UsageMean => averaged(moe, &gates, shared_gate, &gates, width)?,
        Init::Random => drawn(index, moe, options.calibration.seed, width),
    };
    let MadeStudent { network, parts, distinct, zeros, scores, kept } = made;
    let record = DistilledLayer {
        distinct,
        width,
        zeros,
        parts,
        gates,
        shared_gate,
        scores,
        fit: None,
        trained: Vec::new(),
        output_error: None,
        kept,
    };
    Ok((network, record))
}

/// `network` in the place of a layer's mixture.
pub(super) fn dense(network: Expert, record: LayerRecord) -> DecidedLayer {
    DecidedLayer {
        ffn: Ffn::Dense(Box::new(network)),
        record,
        clusters: Vec::new(),
        saliency: Vec::new(),
    }
}

/// The mean of the experts of `moe` beside its shared expert; the arguments give their mean gates.
pub(super) fn mean_of_experts(
    moe: &Moe,
    gates: &[f64],
    shared_gate: Option<f64>,
    width: usize,
) -> Result<Expert> {
    Ok(averaged(moe, gates, shared_gate, &vec![1.0; gates.len()], width)?.network)
}

struct MadeStudent {
    network: Expert,
    parts: Vec<DistilledPart>,
    distinct: usize,
    zeros: usize,
    scores: Vec<f64>,
    kept: Kept,
}

/// A network of selected neurons.
fn selected(
    index: usize,
    moe: &Moe,
    sums: &LayerSums,
    options: &DistillOptions,
    width: usize,
) -> Result<MadeStudent> {
    let networks = Networks::of(moe);
    let neurons = distinct(moe, &networks, sums)?;
    let taken = (width - shared_width(moe)).div_ceil(moe.experts[0].width());
    let (chosen, scores) = match options.select {
        Select::Neurons => (by_neurons(&neurons, width), Vec::new()),
        Select::Experts => {
            let (order, scores) = options.criterion.order(index, sums, taken)?;
            (by_experts(&neurons, &networks, &order, width), scores)
        }
    };
    let pick = |index: &usize| {
        let (network, neuron, _) = neurons[*index].places[0];
        let factor = match options.down {
            Down::Uniform if network >= networks.shared => 1.0 / taken as f64,
            _ => neurons[*index].factor,
        };
        Pick { network: network as u32, neuron: neuron as u32, factor: factor as f32 }
    };
    let picks: Arc<[Pick]> = chosen.iter().map(pick).collect();
    let source = |network: usize| match network.checked_sub(networks.shared) {
        None => PartSource::SharedExpert,
        Some(expert) => PartSource::Expert { expert },
    };
    Ok(MadeStudent {
        parts: parts(&picks, source),
        distinct: neurons.iter().filter(|neuron| neuron.gives).count(),
        zeros: width - picks.len(),
        scores,
        kept: if options.down == Down::Uniform { Kept::No } else { kept(&neurons, &chosen) },
        network: picked(&networks.all, picks, width),
    })
}

/// A random network that uses no weight of layer `index`, whose mixture is `moe`.
fn drawn(index: usize, moe: &Moe, seed: u64, width: usize) -> MadeStudent {
    MadeStudent {
        network: random(&moe.experts[0], width, seed, index),
        parts: vec![DistilledPart { from: PartSource::Chance, neurons: width, factor: 1.0 }],
        distinct: moe
            .experts
            .iter()
            .chain(moe.shared.iter().map(|shared| &shared.expert))
            .map(Expert::width)
            .sum(),
        zeros: 0,
        scores: Vec::new(),
        kept: Kept::No,
    }
}

/// Whether the chosen neurons give what all neurons give.
fn kept(neurons: &[Neuron], chosen: &[usize]) -> Kept {
    let lost = neurons
        .iter()
        .enumerate()
        .any(|(index, neuron)| neuron.gives && chosen.binary_search(&index).is_err());
    let mut giving = neurons.iter().filter(|neuron| neuron.gives);
    let power_of_two = |factor: f64| factor == 0.0 || factor.abs().log2().fract() == 0.0;
    match () {
        () if lost || giving.clone().any(|neuron| neuron.measured) => Kept::No,
        () if giving.all(|neuron| power_of_two(neuron.factor)) => Kept::Exactly,
        () => Kept::Approximately,
    }
}

/// Means of as many groups of experts as fit beside the shared expert; the arguments give the
/// experts' mean gates.
fn averaged(
    moe: &Moe,
    gates: &[f64],
    shared_gate: Option<f64>,
    weights: &[f64],
    width: usize,
) -> Result<MadeStudent> {
    let known = Gates::of(moe)?;
    let (shared, each) = (shared_width(moe), moe.experts[0].width());
    let count = ((width - shared) / each).min(moe.experts.len());
    let Means { networks, groups } = means(moe, count, weights)?;
    // The sum of all gates of a token may be known; the sums of groups are measured.
    let of_group = |group: &Vec<usize>| {
        let parts: Vec<f64> =
            (0..gates.len()).map(|e| f64::from(u8::from(group.contains(&e)))).collect();
        known.sum(&parts).unwrap_or_else(|| group.iter().map(|expert| gates[*expert]).sum())
    };
    let mut factors: Vec<f64> =
        shared_gate.iter().map(|gate| known.shared.unwrap_or(*gate)).collect();
    factors.extend(groups.iter().map(of_group));
    let mut sources: Vec<PartSource> =
        moe.shared.iter().map(|_| PartSource::SharedExpert).collect();
    sources.extend(groups.iter().map(|group| PartSource::Mean { experts: group.clone() }));
    let all: Vec<Expert> =
        moe.shared.iter().map(|shared| shared.expert.clone()).chain(networks).collect();
    let of_network = |(index, (network, factor)): (usize, (&Expert, &f64))| {
        let pick = move |neuron| Pick { network: index as u32, neuron, factor: *factor as f32 };
        (0..network.width() as u32).map(pick).collect::<Vec<_>>()
    };
    let picks: Arc<[Pick]> = all.iter().zip(&factors).enumerate().flat_map(of_network).collect();
    Ok(MadeStudent {
        parts: parts(&picks, |network| sources[network].clone()),
        distinct: shared + moe.experts.len() * each,
        zeros: width - picks.len(),
        scores: Vec::new(),
        kept: Kept::No,
        network: picked(&all, picks, width),
    })
}

/// The number of picks from each network.
fn parts(picks: &[Pick], source: impl Fn(usize) -> PartSource) -> Vec<DistilledPart> {
    let of = |picks: &[Pick]| DistilledPart {
        from: source(picks[0].network as usize),
        neurons: picks.len(),
        factor: picks.iter().map(|pick| f64::from(pick.factor)).sum::<f64>() / picks.len() as f64,
    };
    picks.chunk_by(|a, b| a.network == b.network).map(of).collect()
}
