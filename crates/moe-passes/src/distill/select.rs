//! The choice of neurons that fill the dense network.

use std::collections::BTreeSet;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::neurons::{Networks, Neuron};

/// The unit that is selected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    /// Experts by --criterion, until the width is filled; of the last one, only the neurons with
    /// the greatest E[(g h)²] ‖down‖².
    Experts,
    /// Neurons of all experts, by E[(g h)²] ‖down‖².
    #[default]
    Neurons,
}

/// Indices of the chosen `neurons`, ascending, at most `width`: first those of the shared expert,
/// then those of experts in `order`, and last those whose output is zero.
pub(super) fn by_experts(
    neurons: &[Neuron],
    networks: &Networks,
    order: &[usize],
    width: usize,
) -> Vec<usize> {
    let mut in_network = vec![Vec::new(); networks.all.len()];
    for (index, neuron) in neurons.iter().enumerate().filter(|(_, neuron)| neuron.gives) {
        neuron.places.iter().for_each(|(network, ..)| in_network[*network].push(index));
    }
    let nothing = (0..neurons.len()).filter(|index| !neurons[*index].gives).collect();
    let in_order = (0..networks.shared).chain(order.iter().map(|expert| networks.routed(*expert)));
    let mut chosen = BTreeSet::new();
    for candidates in
        in_order.map(|network| std::mem::take(&mut in_network[network])).chain([nothing])
    {
        let new: BTreeSet<usize> = candidates.into_iter().filter(|n| !chosen.contains(n)).collect();
        let left = width - chosen.len();
        chosen.extend(most_important(neurons, new, left));
    }
    chosen.into_iter().collect()
}

/// Indices of the `width` most important `neurons`, ascending.
pub(super) fn by_neurons(neurons: &[Neuron], width: usize) -> Vec<usize> {
    let mut chosen = most_important(neurons, 0..neurons.len(), width);
    chosen.sort_unstable();
    chosen
}

/// At most `count` of the ascending `candidates`: those of the greatest importance; among equals,
/// the first.
fn most_important(
    neurons: &[Neuron],
    candidates: impl IntoIterator<Item = usize>,
    count: usize,
) -> Vec<usize> {
    let mut candidates: Vec<usize> = candidates.into_iter().collect();
    if candidates.len() > count {
        candidates.sort_by(|a, b| neurons[*b].importance.total_cmp(&neurons[*a].importance));
        candidates.truncate(count);
    }
    candidates
}
