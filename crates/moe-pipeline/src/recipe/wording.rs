//! Puts messages about options of the command line into the words of a recipe.
//!
//! Messages write an option as `--max-kl`. In a recipe it is the key `max-kl`.

use std::ops::Range;

use moe_checkpoint::Error;

use super::mistake::{Mistake, key_of};

/// Options of the program, which no step has.
const OF_PROGRAM: [&str; 2] = ["help", "json"];

/// The mistake for `error` of a check of options, which are keys here.
pub(super) fn mistake(error: Error) -> Mistake {
    error.reworded(|text| as_keys(text, |key| !OF_PROGRAM.contains(&key))).into()
}

/// `text` with options such as `--max-kl` as `max-kl` in backticks, where `is_key` holds.
pub(super) fn as_keys(text: &str, is_key: impl Fn(&str) -> bool) -> String {
    let mut made = String::new();
    let mut end = 0;
    for option in mentioned(text, is_key) {
        made += &text[end..option.start];
        end = option.end;
        match (key_of(&text[option]), made.strip_suffix("give ")) {
            ("overwrite", Some(before)) => {
                made = format!("{before}put `overwrite = true` into the step");
            }
            (key, _) => made += &format!("`{key}`"),
        }
    }
    made + &text[end..]
}

/// The places in `text` of options for which `is_key` holds.
fn mentioned(text: &str, is_key: impl Fn(&str) -> bool) -> impl Iterator<Item = Range<usize>> {
    let is_of_key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    text.match_indices("--").filter_map(move |(start, hyphens)| {
        let after = &text[start + hyphens.len()..];
        let key = &after[..after.find(|c| !is_of_key(c)).unwrap_or(after.len())];
        // An option of another command stays an option.
        let stays = key.is_empty() || text[..start].ends_with("observe ") || !is_key(key);
        (!stays).then(|| start..start + hyphens.len() + key.len())
    })
}
