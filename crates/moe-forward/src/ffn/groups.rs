//! Groups tokens by the expert that they are routed to.

use moe_math::routing::Routing;
use moe_model::{Expert, Moe};

/// Adjacent experts that are run as one, with their tokens.
pub(super) struct ExpertGroup<'m> {
    /// Index of the first of these experts.
    pub first: usize,
    /// The network that they share.
    pub expert: &'m Expert,
    /// Positions in `Routing::selected` at which any of them is chosen.
    pub slots: Vec<u32>,
    /// Tokens of these positions, ascending, without repetition.
    pub tokens: Vec<u32>,
    /// Gate of each token. If a token chose several of the experts, it is the sum of their gates.
    pub gates: Vec<f32>,
}

/// Groups the tokens of `routing` by expert, with at most `capacity` tokens for each expert.
/// Experts without tokens are left out. With `join`, adjacent experts with the same weights, as in
/// a plain upcycling before it is written, form one group, with the capacity of all of them.
pub(super) fn groups<'m>(
    moe: &'m Moe,
    routing: &Routing,
    join: bool,
    capacity: Option<usize>,
) -> Vec<ExpertGroup<'m>> {
    let capacity = capacity.unwrap_or(usize::MAX);
    let mut groups: Vec<(usize, &Expert, Vec<u32>)> = Vec::new();
    let with_tokens =
        routing.slots_by_expert().into_iter().enumerate().filter(|(_, slots)| !slots.is_empty());
    for (first, mut slots) in with_tokens {
        slots.truncate(capacity);
        let expert = &moe.experts[first];
        match groups.last_mut() {
            Some((_, last, all)) if join && last.same_source(expert) => all.extend(slots),
            _ => groups.push((first, expert, slots)),
        }
    }
    let gathered = groups.into_iter().map(|(first, expert, slots)| {
        let (tokens, gates) = gathered(&slots, routing);
        ExpertGroup { first, expert, slots, tokens, gates }
    });
    gathered.collect()
}

/// Returns the tokens at the positions `slots`, and the gate of each.
fn gathered(slots: &[u32], routing: &Routing) -> (Vec<u32>, Vec<f32>) {
    let mut slots = slots.to_vec();
    slots.sort_unstable();
    let (mut tokens, mut gates): (Vec<u32>, Vec<f32>) = (Vec::new(), Vec::new());
    for slot in slots {
        let (token, gate) = (slot / routing.top_k as u32, routing.weights[slot as usize]);
        match (tokens.last(), gates.last_mut()) {
            (Some(last), Some(sum)) if *last == token => *sum += gate,
            _ => {
                tokens.push(token);
                gates.push(gate);
            }
        }
    }
    (tokens, gates)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use moe_checkpoint::Checkpoint;
    use moe_model::{Ffn, Model};

    use super::*;

    /// The first mixture of a model, with its first two experts made the same network.
    fn moe_with_twins() -> Moe {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/models/moe");
        let model = Model::read(&Checkpoint::open(&dir).unwrap()).unwrap();
        let mixtures = model.layers.into_iter().filter_map(|layer| match layer.ffn {
            Ffn::Moe(moe) => Some(moe),
            _ => None,
        });
        let mut moe = mixtures.into_iter().next().unwrap();
        moe.experts[1] = moe.experts[0].clone();
        *moe
    }

    /// In a model with capacities, the same choices must be dropped whether twins run as one or
    /// separately.
    #[test]
    fn joined_experts_keep_the_capacity_of_each() {
        let moe = moe_with_twins();
        let selected = vec![0, 0, 0, 1, 2, 2, 1];
        let (weights, scores) = (vec![1.0; selected.len()], Vec::new());
        let routing = Routing { experts: moe.experts.len(), top_k: 1, selected, weights, scores };
        let apart = groups(&moe, &routing, false, Some(2));
        let joined = groups(&moe, &routing, true, Some(2));
        assert_eq!((apart.len(), joined.len()), (3, 2));
        assert_eq!(joined[0].slots, [0, 1, 3, 6]);
        assert_eq!(joined[0].slots, [&apart[0].slots[..], &apart[1].slots].concat());
        assert_eq!(joined[1].slots, apart[2].slots);
    }
}
