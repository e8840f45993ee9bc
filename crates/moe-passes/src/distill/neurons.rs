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
use moe_model::{Error, Expert, Kind, Moe, Result, Router, Scoring};
use rayon::prelude::*;

use super::observe::LayerSums;
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

    /// The position of routed expert `expert`.
    pub fn routed(&self, expert: usize) -> usize {
        self.shared + expert
    }
}

/// A distinct neuron, with all places where it occurs.
#[derive(Debug, Clone)]
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

/// What is known of the gates without measuring.
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
        let router = &moe.router;
        let experts = moe.experts.len();
        let rows = rows(router)?;
        // Compares values rather than bits, since a zero may have either sign.
        let same = |range: &[Vec<f32>]| range.iter().all(|row| *row == range[0]);
        let all_chosen = router.top_k == experts && router.scoring == Scoring::Softmax;
        let all_equal =
            router.scoring == Scoring::Softmax && router.groups.is_none() && same(&rows);
        let total = match () {
            () if router.normalize || all_chosen => Some(router.scale),
            () if all_equal => Some(router.scale * router.top_k as f64 / experts as f64),
            () => None,
        };
        // Of equal rows the first ones are chosen, so that whole blocks are chosen where top-k is a
        // multiple of their size.
        let divides =
            |size: &usize| router.top_k.is_multiple_of(*size) && experts.is_multiple_of(*size);
        let together =
            |size: &usize| *size == 1 || (router.groups.is_none() && rows.chunks(*size).all(same));
        let blocks = (1..=router.top_k).filter(divides).filter(together).collect();
        let shared = match moe.shared.as_ref().map(|shared| &shared.gate) {
            None => None,
            Some(None) => Some(1.0),
            Some(Some(gate)) => finite_values(gate)?.iter().all(|x| *x == 0.0).then_some(0.5),
        };
        Ok(Self { total, blocks, shared })
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

/// What the choice of each expert depends on: its router row, and its bias where there is one.
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
    let found: Vec<(Vec<Fingerprint>, Vec<f64>)> =
        networks.all.par_iter().map(described).collect::<Result<_>>()?;
    let mut index: HashMap<u128, usize> = HashMap::new();
    let mut neurons: Vec<(Neuron, i32)> = Vec::new();
    for (network, (prints, _)) in found.iter().enumerate() {
        for (place, print) in prints.iter().enumerate() {
            let at = *index.entry(print.hash).or_insert_with(|| {
                let neuron = Neuron {
                    places: vec![],
                    factor: 0.0,
                    measured: false,
                    importance: 0.0,
                    gives: false,
                };
                neurons.push((neuron, print.exponent));
                neurons.len() - 1
            });
            let (neuron, exponent) = &mut neurons[at];
            neuron.places.push((network, place, 2f64.powi(print.exponent - *exponent)));
        }
    }
    let mean = sums.mean_gates();
    let mut neurons: Vec<Neuron> = neurons.into_iter().map(|(neuron, _)| neuron).collect();
    for neuron in &mut neurons {
        let mut parts = vec![0.0; moe.experts.len()];
        let mut in_shared = 0.0;
        for (network, place, factor) in &neuron.places {
            let square = found[*network].1[*place];
            neuron.gives |= square > 0.0;
            match network.checked_sub(networks.shared) {
                None => in_shared += factor,
                Some(expert) => {
                    parts[expert] += factor;
                    let energy =
                        sums.experts[expert].energies[*place] / sums.tokens.max(f64::MIN_POSITIVE);
                    neuron.importance += energy * square;
                }
            }
        }
        if in_shared > 0.0 && neuron.gives {
            neuron.importance = f64::INFINITY;
        } else if !neuron.gives {
            neuron.importance = -1.0;
        }
        let is_routed = parts.iter().any(|part| *part != 0.0);
        let routed = if is_routed { gates.sum(&parts) } else { Some(0.0) };
        let shared =
            if in_shared == 0.0 { Some(0.0) } else { gates.shared.map(|gate| gate * in_shared) };
        neuron.measured = routed.is_none() || shared.is_none();
        let measured = || parts.iter().zip(&mean).map(|(part, gate)| part * gate).sum::<f64>();
        neuron.factor = routed.unwrap_or_else(measured)
            + shared.unwrap_or_else(|| in_shared * sums.mean_shared_gate());
    }
    Ok(neurons)
}

/// A fingerprint and ‖down‖² of each neuron of `network`.
fn described(network: &Expert) -> Result<(Vec<Fingerprint>, Vec<f64>)> {
    let values = |weight: &moe_model::Weight| -> Result<Vec<f32>> {
        let tensor = to_f32(weight, &Compute::cpu())?;
        tensor.flatten_all().and_then(|t| t.to_vec1()).map_err(|e| {
            Error::new(Kind::Numeric, "cannot look at these neurons")
                .source(e)
                .tensor(weight.name())
        })
    };
    let [gate, up, down] = network.linears().map(|linear| values(&linear.weight));
    let (gate, up, down) = (gate?, up?, down?);
    let mut squares = vec![0f64; network.width()];
    for row in down.chunks_exact(network.width()) {
        squares.iter_mut().zip(row).for_each(|(sum, d)| *sum += f64::from(*d).powi(2));
    }
    Ok((fingerprints(&gate, &up, &down, network.gate.weight.shape()[1]), squares))
}
