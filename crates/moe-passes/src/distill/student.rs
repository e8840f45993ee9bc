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

/// A layer whose mixture becomes a dense network, and how.
pub(super) struct StudentLayer<'a> {
    /// The index of the layer.
    pub index: usize,
    /// Its mixture.
    pub moe: &'a Moe,
    pub sums: &'a LayerSums,
    pub options: &'a DistillOptions,
    /// The number of neurons of the dense network.
    pub width: usize,
}

impl StudentLayer<'_> {
    /// The dense network, and its record.
    pub fn student(&self) -> Result<(Expert, DistilledLayer)> {
        let gates = self.sums.mean_gates();
        let shared_gate = self.shared_gate();
        let mean_gates = MeanGates { experts: &gates, shared: shared_gate };
        let made = match self.options.init {
            Init::Select => self.selected()?,
            Init::Mean => averaged(self.moe, mean_gates, &vec![1.0; gates.len()], self.width)?,
            Init::UsageMean => averaged(self.moe, mean_gates, &gates, self.width)?,
            Init::Random => self.drawn(),
        };
        let record = DistilledLayer {
            distinct: made.distinct,
            width: self.width,
            zeros: made.zeros,
            parts: made.parts,
            gates,
            shared_gate,
            scores: made.scores,
            fit: None,
            trained: Vec::new(),
            output_error: None,
            kept: made.kept,
        };
        Ok((made.network, record))
    }

    /// The mean gate of the shared expert; None without one.
    fn shared_gate(&self) -> Option<f64> {
        let shared = self.moe.shared.as_ref()?;
        Some(shared.gate.as_ref().map_or(1.0, |_| self.sums.mean_shared_gate()))
    }

    /// A network of selected neurons.
    fn selected(&self) -> Result<MadeStudent> {
        let networks = Networks::of(self.moe);
        let neurons = distinct(self.moe, &networks, self.sums)?;
        let (chosen, scores) = match self.options.select {
            Select::Neurons => (by_neurons(&neurons, self.width), Vec::new()),
            Select::Experts => {
                let criterion = self.options.criterion;
                let (order, scores) =
                    criterion.order(self.index, self.sums, self.experts_taken())?;
                (by_experts(&neurons, &networks, &order, self.width), scores)
            }
        };
        let picks: Arc<[Pick]> =
            chosen.iter().map(|index| self.pick(&networks, &neurons[*index])).collect();
        let is_uniform = self.options.down == Down::Uniform;
        Ok(MadeStudent {
            parts: parts(&picks, |network| networks.source(network)),
            distinct: neurons.iter().filter(|neuron| neuron.gives).count(),
            zeros: self.width - picks.len(),
            scores,
            kept: if is_uniform { Kept::No } else { kept(&neurons, &chosen) },
            network: picked(&networks.all, picks, self.width),
        })
    }

    /// The number of experts that some neurons are taken of, where experts are selected.
    fn experts_taken(&self) -> usize {
        (self.width - shared_width(self.moe)).div_ceil(self.moe.experts[0].width())
    }

    /// `neuron` in its first place, with the factor that --down asks for.
    fn pick(&self, networks: &Networks, neuron: &Neuron) -> Pick {
        let (network, place, _) = neuron.places[0];
        let factor = match self.options.down {
            Down::Uniform if network >= networks.shared => 1.0 / self.experts_taken() as f64,
            _ => neuron.factor,
        };
        Pick { network: network as u32, neuron: place as u32, factor: factor as f32 }
    }

    /// A random network that uses no weight of the layer.
    fn drawn(&self) -> MadeStudent {
        let Self { index, moe, width, .. } = *self;
        let shared = moe.shared.iter().map(|shared| &shared.expert);
        MadeStudent {
            network: random(&moe.experts[0], width, self.options.calibration.seed, index),
            parts: vec![DistilledPart { from: PartSource::Chance, neurons: width, factor: 1.0 }],
            distinct: moe.experts.iter().chain(shared).map(Expert::width).sum(),
            zeros: 0,
            scores: Vec::new(),
            kept: Kept::No,
        }
    }
}

/// Mean gates of a layer's experts over all tokens.
#[derive(Clone, Copy)]
struct MeanGates<'a> {
    experts: &'a [f64],
    /// That of the shared expert, where there is one.
    shared: Option<f64>,
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

/// The mean of the experts of `moe`, next to its shared expert; the arguments give their mean
/// gates.
pub(super) fn mean_of_experts(
    moe: &Moe,
    gates: &[f64],
    shared_gate: Option<f64>,
    width: usize,
) -> Result<Expert> {
    let mean_gates = MeanGates { experts: gates, shared: shared_gate };
    Ok(averaged(moe, mean_gates, &vec![1.0; gates.len()], width)?.network)
}

struct MadeStudent {
    network: Expert,
    parts: Vec<DistilledPart>,
    distinct: usize,
    zeros: usize,
    scores: Vec<f64>,
    kept: Kept,
}

/// Whether the chosen neurons give what all neurons give.
fn kept(neurons: &[Neuron], chosen: &[usize]) -> Kept {
    let lost = neurons
        .iter()
        .enumerate()
        .any(|(index, neuron)| neuron.gives && chosen.binary_search(&index).is_err());
    let mut giving = neurons.iter().filter(|neuron| neuron.gives);
    if lost || giving.clone().any(|neuron| neuron.measured) {
        Kept::No
    } else if giving.all(|neuron| is_zero_or_power_of_two(neuron.factor)) {
        Kept::Exactly
    } else {
        Kept::Approximately
    }
}

/// Whether a product with `factor` is exact.
fn is_zero_or_power_of_two(factor: f64) -> bool {
    factor == 0.0 || factor.abs().log2().fract() == 0.0
}

/// Means of as many groups of experts as fit next to the shared expert. Experts of a group are
/// weighed by `weights`.
fn averaged(moe: &Moe, gates: MeanGates<'_>, weights: &[f64], width: usize) -> Result<MadeStudent> {
    let known = Gates::of(moe)?;
    let (shared, each) = (shared_width(moe), moe.experts[0].width());
    let count = ((width - shared) / each).min(moe.experts.len());
    let Means { networks, groups } = means(moe, count, weights)?;
    let factors = group_factors(&known, gates, &groups);
    let mut sources: Vec<PartSource> =
        moe.shared.iter().map(|_| PartSource::SharedExpert).collect();
    sources.extend(groups.into_iter().map(|experts| PartSource::Mean { experts }));
    let all: Vec<Expert> =
        moe.shared.iter().map(|shared| shared.expert.clone()).chain(networks).collect();
    let picks = all_neurons(&all, &factors);
    Ok(MadeStudent {
        parts: parts(&picks, |network| sources[network].clone()),
        distinct: shared + moe.experts.len() * each,
        zeros: width - picks.len(),
        scores: Vec::new(),
        kept: Kept::No,
        network: picked(&all, picks, width),
    })
}

/// The gate of the shared expert where there is one, then the summed gates of each group. The sum
/// of all gates of a token may be known; the sums of groups are measured.
fn group_factors(known: &Gates, gates: MeanGates<'_>, groups: &[Vec<usize>]) -> Vec<f64> {
    let experts = gates.experts;
    let of_groups = groups.iter().map(|group| {
        let parts: Vec<f64> =
            (0..experts.len()).map(|e| f64::from(u8::from(group.contains(&e)))).collect();
        known.sum(&parts).unwrap_or_else(|| group.iter().map(|expert| experts[*expert]).sum())
    });
    let shared = gates.shared.iter().map(|gate| known.shared.unwrap_or(*gate));
    shared.chain(of_groups).collect()
}

/// Every neuron of `networks`, each times the factor of its network.
fn all_neurons(networks: &[Expert], factors: &[f64]) -> Arc<[Pick]> {
    let picks = networks.iter().zip(factors).enumerate().flat_map(|(index, (network, factor))| {
        let factor = *factor as f32;
        (0..network.width() as u32).map(move |neuron| Pick {
            network: index as u32,
            neuron,
            factor,
        })
    });
    picks.collect()
}

/// The number of picks from each network.
fn parts(picks: &[Pick], source: impl Fn(usize) -> PartSource) -> Vec<DistilledPart> {
    let parts = picks.chunk_by(|a, b| a.network == b.network).map(|picks| DistilledPart {
        from: source(picks[0].network as usize),
        neurons: picks.len(),
        factor: picks.iter().map(|pick| f64::from(pick.factor)).sum::<f64>() / picks.len() as f64,
    });
    parts.collect()
}
