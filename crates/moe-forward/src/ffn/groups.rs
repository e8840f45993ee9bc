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
/// that are made of the same bytes, as in a plain upcycling before it is written, are one.
pub(super) fn groups<'m>(
    moe: &'m Moe,
    routing: &Routing,
    join: bool,
    capacity: Option<usize>,
) -> Vec<ExpertGroup<'m>> {
    let mut groups: Vec<(usize, &Expert, Vec<u32>)> = Vec::new();
    let with_tokens =
        routing.slots_by_expert().into_iter().enumerate().filter(|(_, slots)| !slots.is_empty());
    for (first, slots) in with_tokens {
        let expert = &moe.experts[first];
        match groups.last_mut() {
            Some((_, last, all)) if join && last.same_source(expert) => all.extend(slots),
            _ => groups.push((first, expert, slots)),
        }
    }
    let capacity = capacity.unwrap_or(usize::MAX);
    let gathered = groups.into_iter().map(|(first, expert, mut slots)| {
        slots.truncate(capacity);
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
