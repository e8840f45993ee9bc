//! The distinct neurons of a layer, and the mean contribution of each.
//!
//! Neurons that compute the same up to a power of two count as one, whose gates add up: in an
//! upcycled model each dense neuron occurs many times. Where the gates of a neuron have the same
//! sum for every token, that sum is known without measuring, so that an upcycled model comes back
//! bit for bit.

use std::collections::HashMap;

use moe_forward::to_f32;
use moe_math::Compute;
use moe_math::fingerprint::{Fingerprint, fingerprints};
use moe_model::{Error, Expert, Kind, Moe, Result, Router, Scoring, Weight};
use rayon::prelude::*;

use super::observe::LayerSums;
use super::record::PartSource;
use crate::part::finite_values;

/// The networks of a layer. The shared expert comes first where there is one.
pub(super) struct Networks {
    pub all: Vec<Expert>,
    /// 1 where the first network is the shared expert, else 0.
    pub shared: usize,
}

impl Networks {
    pub fn of(moe: &Moe) -> Self {
        let shared = moe.shared.iter().map(|shared| shared.expert.clone());
        let all = shared.chain(moe.experts.iter().cloned()).collect();
        Self { all, shared: usize::from(moe.shared.is_some()) }
    }

    /// What the network at this position is, as records name it.
    pub fn source(&self, network: usize) -> PartSource {
        match network.checked_sub(self.shared) {
            None => PartSource::SharedExpert,
            Some(expert) => PartSource::Expert { expert },
        }
    }

    /// The position of routed expert `expert`.
    pub fn routed(&self, expert: usize) -> usize {
        self.shared + expert
    }
}

/// A distinct neuron, with all places where it occurs.
#[derive(Debug, Clone, Default)]
pub(super) struct Neuron {
    /// Where it occurs: network, neuron there, and its output there as a multiple of its output in
    /// the first place. Ordered by network.
    pub places: Vec<(usize, usize, f64)>,
    /// The factor on its down column of the first place: the mean gate, or the constant sum of the
    /// gates.
    pub factor: f64,
    /// Whether `factor` was measured.
    pub measured: bool,
    /// E\[(g h)²\] ‖down‖²; infinite for neurons of the shared expert, which is kept whole.
    pub importance: f64,
    /// Whether its down column is nonzero. Where it is zero, leaving the neuron out loses nothing.
    pub gives: bool,
}

/// The knowledge about gates that needs no measuring.
pub(super) struct Gates {
    /// The sum of a token's gates, where it is the same for every token.
    total: Option<f64>,
    /// Sizes of blocks of consecutive experts that are always chosen together, with one gate. 1 is
    /// always a member.
    blocks: Vec<usize>,
    /// The gate of the shared expert, where it is the same for every token.
    pub shared: Option<f64>,
}

impl Gates {
    pub fn of(moe: &Moe) -> Result<Self> {
        let rows = rows(&moe.router)?;
        let shared = match moe.shared.as_ref().map(|shared| &shared.gate) {
            None => None,
            Some(None) => Some(1.0),
            Some(Some(gate)) => finite_values(gate)?.iter().all(|x| *x == 0.0).then_some(0.5),
        };
        Ok(Self { total: total_gate(moe, &rows), blocks: blocks_chosen(moe, &rows), shared })
    }

    /// Σ gate · part over the experts of a token, where it is the same for every token. `parts` are
    /// by expert.
    pub fn sum(&self, parts: &[f64]) -> Option<f64> {
        let total = self.total?;
        self.blocks.iter().find_map(|size| {
            let mut sums = parts.chunks(*size).map(|block| block.iter().sum::<f64>());
            let first = sums.next()?;
            sums.all(|sum| sum == first).then(|| total * first / *size as f64)
        })
    }
}

/// The sum of a token's gates, where it is the same for every token. `rows` are by expert.
fn total_gate(moe: &Moe, rows: &[Vec<f32>]) -> Option<f64> {
    let router = &moe.router;
    let experts = moe.experts.len();
    let is_softmax = router.scoring == Scoring::Softmax;
    if router.normalize || (router.top_k == experts && is_softmax) {
        return Some(router.scale);
    }
    let all_equal = is_softmax && router.groups.is_none() && are_equal(rows);
    all_equal.then(|| router.scale * router.top_k as f64 / experts as f64)
}

/// Sizes of blocks of consecutive experts that are always chosen together. Of equal rows the first
/// ones are chosen, so that whole blocks are chosen where top-k is a multiple of their size.
fn blocks_chosen(moe: &Moe, rows: &[Vec<f32>]) -> Vec<usize> {
    let router = &moe.router;
    let experts = moe.experts.len();
    let divides =
        |size: &usize| router.top_k.is_multiple_of(*size) && experts.is_multiple_of(*size);
    let together =
        |size: &usize| *size == 1 || (router.groups.is_none() && rows.chunks(*size).all(are_equal));
    (1..=router.top_k).filter(divides).filter(together).collect()
}

/// Compares values rather than bits, since a zero may have either sign.
fn are_equal(rows: &[Vec<f32>]) -> bool {
    rows.iter().all(|row| *row == rows[0])
}

/// The values that the choice of each expert depends on: its router row, and its bias if it has
/// one.
fn rows(router: &Router) -> Result<Vec<Vec<f32>>> {
    let experts = router.weight.shape()[0];
    let mut rows = vec![Vec::new(); experts];
    for weight in router.weights() {
        let values = finite_values(weight)?;
        let each = values.len() / experts;
        rows.iter_mut()
            .zip(values.chunks_exact(each))
            .for_each(|(row, values)| row.extend_from_slice(values));
    }
    Ok(rows)
}

/// The neurons of `networks`, which are those of `moe`: each once, in order of its first place.
pub(super) fn distinct(moe: &Moe, networks: &Networks, sums: &LayerSums) -> Result<Vec<Neuron>> {
    let gates = Gates::of(moe)?;
    let networks_found = networks.all.par_iter().map(described).collect::<Result<Vec<_>>>()?;
    let mut neurons = occurring(&networks_found);
    let mean_gates = sums.mean_gates();
    let layer = MeasuredNeurons { networks, found: &networks_found, sums, gates, mean_gates };
    neurons.iter_mut().for_each(|neuron| layer.measure(neuron));
    Ok(neurons)
}

/// The neurons of all networks with their places; nothing else is known of them yet.
fn occurring(networks: &[Described]) -> Vec<Neuron> {
    let mut index: HashMap<u128, usize> = HashMap::new();
    let mut neurons: Vec<(Neuron, i32)> = Vec::new();
    for (network, Described { prints, .. }) in networks.iter().enumerate() {
        for (place, print) in prints.iter().enumerate() {
            let at = *index.entry(print.hash).or_insert_with(|| {
                neurons.push((Neuron::default(), print.exponent));
                neurons.len() - 1
            });
            let (neuron, exponent) = &mut neurons[at];
            neuron.places.push((network, place, 2f64.powi(print.exponent - *exponent)));
        }
    }
    neurons.into_iter().map(|(neuron, _)| neuron).collect()
}

/// What neurons of a layer are measured by.
struct MeasuredNeurons<'a> {
    networks: &'a Networks,
    found: &'a [Described],
    sums: &'a LayerSums,
    gates: Gates,
    mean_gates: Vec<f64>,
}

impl MeasuredNeurons<'_> {
    /// Fills in all but the places of `neuron`.
    fn measure(&self, neuron: &mut Neuron) {
        let (routed, in_shared) = self.multiples(neuron);
        let square =
            |(network, place, _): &(usize, usize, f64)| self.found[*network].squares[*place];
        neuron.gives = neuron.places.iter().any(|place| square(place) > 0.0);
        neuron.importance = if !neuron.gives {
            -1.0
        } else if in_shared > 0.0 {
            f64::INFINITY
        } else {
            self.importance(neuron)
        };
        let is_routed = routed.iter().any(|part| *part != 0.0);
        let of_routed = if is_routed { self.gates.sum(&routed) } else { Some(0.0) };
        let of_shared = if in_shared == 0.0 {
            Some(0.0)
        } else {
            self.gates.shared.map(|gate| gate * in_shared)
        };
        neuron.measured = of_routed.is_none() || of_shared.is_none();
        let mean =
            || routed.iter().zip(&self.mean_gates).map(|(part, gate)| part * gate).sum::<f64>();
        neuron.factor = of_routed.unwrap_or_else(mean)
            + of_shared.unwrap_or_else(|| in_shared * self.sums.mean_shared_gate());
    }

    /// How many times `neuron` is in each routed expert, and in the shared one, where a place
    /// counts as a multiple of the first place.
    fn multiples(&self, neuron: &Neuron) -> (Vec<f64>, f64) {
        let mut routed = vec![0.0; self.networks.all.len() - self.networks.shared];
        let mut in_shared = 0.0;
        for (network, _, factor) in &neuron.places {
            match network.checked_sub(self.networks.shared) {
                None => in_shared += factor,
                Some(expert) => routed[expert] += factor,
            }
        }
        (routed, in_shared)
    }

    /// E\[(g h)²\] ‖down‖², summed over the places in routed experts.
    fn importance(&self, neuron: &Neuron) -> f64 {
        let mut importance = 0.0;
        for (network, place, _) in &neuron.places {
            if let Some(expert) = network.checked_sub(self.networks.shared) {
                let energies = &self.sums.experts[expert].energies;
                let energy = energies[*place] / self.sums.tokens.max(f64::MIN_POSITIVE);
                importance += energy * self.found[*network].squares[*place];
            }
        }
        importance
    }
}

/// The neurons of a network.
struct Described {
    prints: Vec<Fingerprint>,
    /// ‖down‖² of each.
    squares: Vec<f64>,
}

/// Describes the neurons of `network`.
fn described(network: &Expert) -> Result<Described> {
    let [gate, up, down] = network.linears().map(|linear| f32_values(&linear.weight));
    let (gate, up, down) = (gate?, up?, down?);
    let mut squares = vec![0f64; network.width()];
    for row in down.chunks_exact(network.width()) {
        squares.iter_mut().zip(row).for_each(|(sum, d)| *sum += f64::from(*d).powi(2));
    }
    let prints = fingerprints(&gate, &up, &down, network.gate.weight.shape()[1]);
    Ok(Described { prints, squares })
}

fn f32_values(weight: &Weight) -> Result<Vec<f32>> {
    let tensor = to_f32(weight, &Compute::cpu())?;
    tensor.flatten_all().and_then(|t| t.to_vec1()).map_err(|e| {
        Error::new(Kind::Numeric, "cannot look at these neurons").source(e).tensor(weight.name())
    })
}
