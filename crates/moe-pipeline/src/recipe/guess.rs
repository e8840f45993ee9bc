//! Suggests the intended word for a mistyped one.

use crate::spelling::OtherName;

/// Minimum Jaro–Winkler similarity of a suggestion.
const MIN_SIMILARITY: f64 = 0.8;

/// Returns "; did you mean X?" with the word of `known` that is most similar to `word`, or an empty
/// string.
pub(super) fn guess<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    best(word, known).map_or(String::new(), |other| format!("; did you mean {other}?"))
}

/// [`guess`] for a key, which `others` lead to as well as the `known` ones.
pub(super) fn guess_key(key: &str, known: &[String], others: &[OtherName]) -> String {
    let names = others.iter().map(|other| other.name).chain(known.iter().map(String::as_str));
    let Some(name) = best(key, names) else { return String::new() };
    match others.iter().find(|other| other.name == name) {
        Some(OtherName { option, is_earlier: true, .. }) => {
            format!("; did you mean {option}, which was {name}?")
        }
        _ => format!("; did you mean {name}?"),
    }
}

fn best<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let alike = known.into_iter().map(|other| (strsim::jaro_winkler(word, other), other));
    let best =
        alike.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(alike, _)| *alike >= MIN_SIMILARITY);
    best.map(|(_, other)| other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_similar_words_are_suggested() {
        let passes = ["prune", "merge", "quantize"];
        assert_eq!(guess("quantise", passes), "; did you mean quantize?");
        assert_eq!(guess("prunes", passes), "; did you mean prune?");
        assert_eq!(guess("verify", passes), "");
        assert_eq!(guess("x", []), "");
    }
}
