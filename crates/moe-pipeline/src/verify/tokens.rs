//! Tokens of a tokenizer that its model has no embedding for.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use moe_checkpoint::json;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The largest id that a tokenizer in `dir` gives to a token, with the token and the file that says so.
pub(super) fn largest(dir: &Path) -> Option<(u64, String, &'static str)> {
    let added = |file: &'static str, tokens: Vec<(u64, String)>| {
        tokens.into_iter().max_by_key(|(id, _)| *id).map(|(id, token)| (id, token, file))
    };
    let tokenizer: Tokenizer = json::read(&dir.join("tokenizer.json")).unwrap_or_default();
    let mut tokens: Vec<_> = tokenizer.added_tokens.into_iter().map(|token| (token.id, token.content)).collect();
    tokens.extend(tokenizer.model.vocab.0);
    let decoder: TokenizerConfig = json::read(&dir.join("tokenizer_config.json")).unwrap_or_default();
    let decoder =
        decoder.added_tokens_decoder.into_iter().filter_map(|(id, token)| Some((id.parse().ok()?, token.content)));
    let plain: BTreeMap<String, u64> = json::read(&dir.join("added_tokens.json")).unwrap_or_default();
    [
        added("tokenizer.json", tokens),
        added("tokenizer_config.json", decoder.collect()),
        added("added_tokens.json", plain.into_iter().map(|(token, id)| (id, token)).collect()),
    ]
    .into_iter()
    .flatten()
    .max_by_key(|(id, ..)| *id)
}

#[derive(Default, Deserialize)]
struct Tokenizer {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    model: TokenModel,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
}

#[derive(Default, Deserialize)]
struct TokenModel {
    #[serde(default)]
    vocab: Last,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    added_tokens_decoder: BTreeMap<String, Content>,
}

#[derive(Deserialize)]
struct Content {
    content: String,
}

/// The last token of a vocabulary, which is an object of ids, or a list for Unigram.
#[derive(Default)]
struct Last(Option<(u64, String)>);

impl<'de> Deserialize<'de> for Last {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LastVisitor)
    }
}

struct LastVisitor;

impl<'de> Visitor<'de> for LastVisitor {
    type Value = Last;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Last, A::Error> {
        let mut last: Option<(u64, String)> = None;
        while let Some((token, id)) = map.next_entry::<String, u64>()? {
            if last.as_ref().is_none_or(|(known, _)| id > *known) {
                last = Some((id, token));
            }
        }
        Ok(Last(last))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Last, A::Error> {
        let mut count = 0;
        while list.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Last((count > 0).then(|| (count - 1, format!("number {count}")))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_id_is_found_wherever_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let found = || largest(dir.path()).map(|(id, token, file)| (id, format!("{token} {file}")));
        assert_eq!(found(), None);
        write("tokenizer.json", r#"{"model": {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0], ["c", -2.0]]}}"#);
        assert_eq!(found(), Some((2, "number 3 tokenizer.json".to_owned())));
        write(
            "tokenizer.json",
            r#"{"added_tokens": [{"id": 3, "content": "<x>"}], "model": {"vocab": {"a": 4, "b": 1}}}"#,
        );
        assert_eq!(found(), Some((4, "a tokenizer.json".to_owned())));
        write("added_tokens.json", r#"{"<y>": 7}"#);
        assert_eq!(found(), Some((7, "<y> added_tokens.json".to_owned())));
        write("tokenizer_config.json", r#"{"added_tokens_decoder": {"9": {"content": "<z>"}}}"#);
        assert_eq!(found(), Some((9, "<z> tokenizer_config.json".to_owned())));
    }
}
