//! Text that stands in two places: what a model was made on says nothing of how good it is.

use std::collections::{HashMap, HashSet};

/// So many tokens in a row aren't the same by chance.
const RUN: usize = 32;
/// What each token of a run is multiplied by once for every token behind it: odd, so that no bit is lost.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// A run that stands in more sequences than these is a template of theirs, such as a system prompt or a licence, and no text of its own.
const MOST_ALIKE: u32 = 2;

/// How many tokens of `sequences` stand in runs of 32 tokens that `others` have, too, at whatever place. A sequence that is shorter is the
/// same as a whole one of `others`, or counts as another text. Templates, which stand in three sequences or more, don't count, nor do runs
/// that are half of one.
pub fn overlap<'s>(sequences: &[&'s [u32]], others: impl IntoIterator<Item = &'s [u32]>) -> usize {
    // In how many sequences each run stands, and the last of them.
    let mut wanted: HashMap<u64, (u32, usize)> = HashMap::new();
    for (at, sequence) in sequences.iter().enumerate() {
        each_run(sequence, |_, hash| {
            let (count, last) = wanted.entry(hash).or_insert((1, at));
            if *last != at {
                (*count, *last) = (*count + 1, at);
            }
        });
    }
    let mut found = HashSet::new();
    for other in others {
        each_run(other, |_, hash| {
            if wanted.get(&hash).is_some_and(|(count, _)| *count <= MOST_ALIKE) {
                found.insert(hash);
            }
        });
    }
    let templates: HashSet<u64> =
        wanted.into_iter().filter(|(_, (count, _))| *count > MOST_ALIKE).map(|(hash, _)| hash).collect();
    sequences.iter().map(|sequence| covered(sequence, &found, &templates)).sum()
}

/// Tokens of `sequence` in runs whose hashes were `found`, those of `templates` left out.
fn covered(sequence: &[u32], found: &HashSet<u64>, templates: &HashSet<u64>) -> usize {
    let mut of_template = vec![false; sequence.len()];
    let mut end = 0;
    each_run(sequence, |start, hash| {
        if templates.contains(&hash) {
            let to = sequence.len().min(start + RUN);
            of_template[start.max(end)..to].fill(true);
            end = to;
        }
    });
    let (mut tokens, mut end) = (0, 0);
    each_run(sequence, |start, hash| {
        let to = sequence.len().min(start + RUN);
        let own = |from: usize| of_template[from..to].iter().filter(|of_template| !**of_template).count();
        // Texts that begin alike behind a template share a few words more.
        if found.contains(&hash) && 2 * own(start) > to - start {
            tokens += own(start.max(end));
            end = to;
        }
    });
    tokens
}

/// Calls `see` with start and hash of every run of `sequence`, which is one run itself where it is shorter.
fn each_run(sequence: &[u32], mut see: impl FnMut(usize, u64)) {
    let add = |hash: u64, token: u32| hash.wrapping_mul(BASE).wrapping_add(u64::from(token) + 1);
    if sequence.len() < RUN {
        if !sequence.is_empty() {
            // Of another length, so another hash than any run's.
            see(0, sequence.iter().fold(sequence.len() as u64, |hash, token| add(hash, *token)));
        }
        return;
    }
    let mut hash = sequence[..RUN].iter().fold(0, |hash, token| add(hash, *token));
    see(0, hash);
    let leaving = (0..RUN - 1).fold(1u64, |power, _| power.wrapping_mul(BASE));
    for (start, (first, next)) in sequence.iter().zip(&sequence[RUN..]).enumerate() {
        hash = add(hash.wrapping_sub(leaving.wrapping_mul(u64::from(*first) + 1)), *next);
        see(start + 1, hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_stand_elsewhere_are_counted_once() {
        let text: Vec<u32> = (0..200).map(|i| i * i % 97).collect();
        let other: Vec<u32> = (1000..1200).collect();
        let shifted = [&other[..7], &text[20..120], &other[7..50]].concat();
        assert_eq!(overlap(&[&text], [text.as_slice()]), 200);
        assert_eq!(overlap(&[&text], [other.as_slice()]), 0);
        // i² mod 97 comes again after 97 tokens, so that every run of the text is one of the hundred.
        assert_eq!(overlap(&[&text[..97]], [shifted.as_slice()]), 77);
        assert_eq!(overlap(&[&text[..40], &other[..32]], [shifted.as_slice(), &other]), 32);
        // A short one is found as a whole alone.
        assert_eq!(overlap(&[&text[..9], &other[..9]], [&text[..9], &other]), 9);
        assert_eq!(overlap(&[&[]], [text.as_slice()]), 0);
    }

    /// Chats under one system prompt, and files under one licence, are no less held out.
    #[test]
    fn templates_of_the_text_are_not_learned() {
        let template: Vec<u32> = (0..100).collect();
        let greeting = [7, 8, 9];
        let chat = |own: u32| [&template[..], &greeting, &(own..own + 60).collect::<Vec<u32>>()].concat();
        let held_out: Vec<Vec<u32>> = (1..6).map(|at| chat(1000 * at)).collect();
        let held_out: Vec<&[u32]> = held_out.iter().map(Vec::as_slice).collect();
        let (other, again) = (chat(9000), chat(3000));
        assert_eq!(overlap(&held_out, [other.as_slice()]), 0);
        // What is learned of a chat's own text counts.
        assert_eq!(overlap(&held_out, [other.as_slice(), again.as_slice()]), 60);
        assert_eq!(overlap(&held_out[..2], [other.as_slice()]), 2 * 103);
    }
}
