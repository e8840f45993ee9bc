//! Keys of a step about text that it doesn't read.

use toml::Table;

/// Drops keys that say how text is read from a step without text, if they come from `[defaults]`,
/// or if a choice has emptied its list of text. `own` are the keys that the step has itself.
pub(super) fn drop_idle(step: &mut Table, own: &[String]) {
    let data = has_text(step, "data") == Some(true);
    let held_out = has_text(step, "held-out") == Some(true);
    let is_emptied = is_emptied(step);
    step.retain(|key, _| {
        let is_used = match key {
            "data-tokens" | "pack" | "mask-special" => data,
            "held-out-tokens" => held_out,
            // Both texts are split into windows.
            "sequence-length" => data || held_out,
            _ => true,
        };
        is_used || (!is_emptied && own.iter().any(|own| own == key))
    });
}

/// Whether `step` has a list of text that is empty.
pub(super) fn is_emptied(step: &Table) -> bool {
    ["data", "held-out"].iter().any(|text| has_text(step, text) == Some(false))
}

/// Whether the list of text under `key` is non-empty; None where there is no such key.
fn has_text(step: &Table, key: &str) -> Option<bool> {
    step.get(key).map(|files| files.as_array().is_none_or(|files| !files.is_empty()))
}
