//! Finds text that occurs in two places: a model's quality on text that it was made with says
//! nothing about its quality on other text.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Number of tokens in a row that don't agree by chance.
const RUN: usize = 32;
/// The base of the rolling hash: a token is multiplied by it once for every token after it in the
/// run. It is odd, so that no bit is lost.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// A run that occurs in more sequences than this is a template, such as a system prompt or a
/// license, and not the sequences' own text.
const MAX_ALIKE: u32 = 2;

/// A sequence with a smaller known share is clean: texts of one kind share that many words (Llama
/// 2, arXiv:2307.09288, appendix A.6).
const CLEAN: f64 = 0.2;

/// Returns how many tokens of `sequences` also occur in `others`, at any position, in runs of 32
/// tokens. A sequence shorter than that counts only if it equals one of `others`.
///
/// Templates, which occur in three sequences or more, don't show whether a sequence is known: its
/// own tokens decide, and then the result holds for all of its tokens. A sequence of which less
/// than a fifth is known doesn't count.
pub fn overlap<'s>(sequences: &[&'s [u32]], others: impl IntoIterator<Item = &'s [u32]>) -> usize {
    let wanted = runs(sequences);
    let mut found = HashSet::new();
    for other in others {
        each_run(other, |_, hash| {
            if wanted.contains_key(&hash) {
                found.insert(hash);
            }
        });
    }
    let templates: HashSet<u64> = wanted
        .into_iter()
        .filter(|(_, (count, _))| *count > MAX_ALIKE)
        .map(|(hash, _)| hash)
        .collect();
    let known = sequences.iter().map(|sequence| {
        let share = known_share(sequence, &found, &templates);
        if share < CLEAN { 0 } else { (share * sequence.len() as f64).round() as usize }
    });
    known.sum()
}

/// Returns the number of sequences that each run occurs in, and the last of them.
fn runs(sequences: &[&[u32]]) -> HashMap<u64, (u32, usize)> {
    let mut runs = HashMap::new();
    for (at, sequence) in sequences.iter().enumerate() {
        each_run(sequence, |_, hash| {
            let (count, last) = runs.entry(hash).or_insert((1, at));
            if *last != at {
                (*count, *last) = (*count + 1, at);
            }
        });
    }
    runs
}

/// Returns the share of a sequence's own tokens that are in runs whose hashes were `found`. If all
/// its tokens are from `templates`, these count as its own.
fn known_share(sequence: &[u32], found: &HashSet<u64>, templates: &HashSet<u64>) -> f64 {
    let of_template = covered(sequence, |_, hash| templates.contains(&hash));
    let is_own: Vec<bool> = if of_template.contains(&false) {
        of_template.iter().map(|of_template| !of_template).collect()
    } else {
        vec![true; sequence.len()]
    };
    let known = covered(sequence, |run, hash| {
        // Texts with the same beginning after a template share a few more words.
        let own = is_own[run.clone()].iter().filter(|own| **own).count();
        found.contains(&hash) && 2 * own > run.len()
    });
    let count = is_own.iter().filter(|own| **own).count();
    let known = is_own.iter().zip(known).filter(|(own, known)| **own && *known).count();
    known as f64 / count.max(1) as f64
}

/// Marks the tokens of `sequence` that are in a run which `is_meant` accepts by range and hash.
fn covered(sequence: &[u32], is_meant: impl Fn(Range<usize>, u64) -> bool) -> Vec<bool> {
    let mut covered = vec![false; sequence.len()];
    let mut end = 0;
    each_run(sequence, |start, hash| {
        let run = start..sequence.len().min(start + RUN);
        if is_meant(run.clone(), hash) {
            covered[start.max(end)..run.end].fill(true);
            end = run.end;
        }
    });
    covered
}

/// Calls `see` with the start and the hash of every run of `sequence`. A sequence shorter than a
/// run is one run itself.
fn each_run(sequence: &[u32], mut see: impl FnMut(usize, u64)) {
    if sequence.len() < RUN {
        if !sequence.is_empty() {
            // The hash begins with the length, so that it differs from any run's.
            see(0, sequence.iter().fold(sequence.len() as u64, hash_with));
        }
        return;
    }
    let mut hash = sequence[..RUN].iter().fold(0, hash_with);
    see(0, hash);
    let leaving = (0..RUN - 1).fold(1u64, |power, _| power.wrapping_mul(BASE));
    for (start, (first, next)) in sequence.iter().zip(&sequence[RUN..]).enumerate() {
        hash = hash_with(hash.wrapping_sub(leaving.wrapping_mul(u64::from(*first) + 1)), next);
        see(start + 1, hash);
    }
}

/// Returns the hash of tokens with the hash `hash` and of `token` after them.
fn hash_with(hash: u64, token: &u32) -> u64 {
    hash.wrapping_mul(BASE).wrapping_add(u64::from(*token) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_occur_elsewhere_are_counted_once() {
        let text: Vec<u32> = (0..200).map(|i| i * i % 97).collect();
        let other: Vec<u32> = (1000..1200).collect();
        let shifted = [&other[..7], &text[20..120], &other[7..50]].concat();
        assert_eq!(overlap(&[&text], [text.as_slice()]), 200);
        assert_eq!(overlap(&[&text], [other.as_slice()]), 0);
        // i² mod 97 repeats after 97 tokens, so every run of the text is one of a hundred.
        assert_eq!(overlap(&[&text[..97]], [shifted.as_slice()]), 77);
        assert_eq!(overlap(&[&text[..40], &other[..32]], [shifted.as_slice(), &other]), 32);
        // A short sequence is only found as a whole.
        assert_eq!(overlap(&[&text[..9], &other[..9]], [&text[..9], &other]), 9);
        assert_eq!(overlap(&[&[]], [text.as_slice()]), 0);
    }

    /// Chats with the same system prompt, and files with the same license, still count as held out.
    #[test]
    fn templates_of_the_text_are_not_learned() {
        let template: Vec<u32> = (0..100).collect();
        let greeting = [7, 8, 9];
        let chat =
            |own: u32| [&template[..], &greeting, &(own..own + 60).collect::<Vec<u32>>()].concat();
        let held_out: Vec<Vec<u32>> = (1..6).map(|at| chat(1000 * at)).collect();
        let held_out: Vec<&[u32]> = held_out.iter().map(Vec::as_slice).collect();
        let (other, again) = (chat(9000), chat(3000));
        assert_eq!(overlap(&held_out, [other.as_slice()]), 0);
        // A chat whose own text is known counts as a whole.
        assert_eq!(overlap(&held_out, [other.as_slice(), again.as_slice()]), 163);
        assert_eq!(overlap(&held_out[..2], [other.as_slice()]), 2 * 103);
    }

    /// Texts of one kind use the same words; a text that was learned is known from end to end.
    #[test]
    fn words_that_many_texts_use_are_not_learned() {
        let phrase: Vec<u32> = (0..40).collect();
        let text = |own: u32| {
            [
                &(own..own + 100).collect::<Vec<u32>>()[..],
                &phrase,
                &(own + 100..own + 180).collect::<Vec<u32>>(),
            ]
            .concat()
        };
        let held_out = [text(1000), text(2000)];
        let held_out: Vec<&[u32]> = held_out.iter().map(Vec::as_slice).collect();
        let (other, again) = (text(9000), text(2000));
        assert_eq!(overlap(&held_out, [other.as_slice()]), 0);
        assert_eq!(overlap(&held_out, [other.as_slice(), again.as_slice()]), 220);
        // Half of the text counts as half.
        assert_eq!(overlap(&held_out, [&again[..110]]), 110);
        // The same text three times isn't a template.
        let same = [held_out[0], held_out[0], held_out[0]];
        assert_eq!(overlap(&same, [held_out[0]]), 660);
        assert_eq!(overlap(&same, [other.as_slice()]), 0);
    }
}
