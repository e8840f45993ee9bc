//! Which experts run on which tokens.

use moe_math::routing::Routing;
use moe_model::{Expert, Moe};

/// Neighbouring experts that are run as one.
pub(super) struct ExpertGroup<'m> {
    /// The index of the first of them.
    pub first: usize,
    /// Their network.
    pub expert: &'m Expert,
    /// The positions in `Routing::selected` that go to any of them.
    pub slots: Vec<u32>,
    /// The tokens of these, ascending, each once.
    pub tokens: Vec<u32>,
    /// What each token weighs: experts of the same bytes give a token that chose several of them
    /// one output.
    pub gates: Vec<f32>,
}

/// Experts that have tokens, each with `capacity` of its slots at most. With `join`, neighbours
/// that are made of the same bytes, as in a plain upcycling before it is written, are one, which
/// takes what all of them may.
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

/// The tokens of `slots`, and what each weighs.
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

    /// The first mixture of a model, in which the first two experts are one network.
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

    /// A switched model must drop the same choices whether its twins run as one or apart.
    #[test]
    fn joined_experts_take_what_each_of_them_may() {
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
