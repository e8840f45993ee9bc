//! The members of a JSON object as text, so that some can be removed and the others keep their
//! bytes.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// The members of an object by key, in file order; a key can occur twice.
struct ObjectMembers<'t>(Vec<(String, &'t RawValue)>);

impl<'de> Deserialize<'de> for ObjectMembers<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Collect)
    }
}

struct Collect;

impl<'de> Visitor<'de> for Collect {
    type Value = ObjectMembers<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ObjectMembers<'de>, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(ObjectMembers(members))
    }
}

/// The JSON object `text` without `keys`; everything else is unchanged, including white space.
pub(crate) fn without(text: &str, keys: &[&str]) -> serde_json::Result<String> {
    let ObjectMembers(members) = serde_json::from_str(text)?;
    let mut kept = String::with_capacity(text.len());
    // The end of the previous member. Between it and the value are a comma and the key.
    let mut end = 0;
    for (key, value) in &members {
        let start = value.get().as_ptr().addr() - text.as_ptr().addr();
        let before = &text[end..start];
        end = start + value.get().len();
        if keys.contains(&key.as_str()) {
            continue;
        }
        // The first member that is kept follows the brace.
        match before.trim_start().strip_prefix(',').filter(|_| kept.is_empty()) {
            Some(rest) => kept.extend(["{", rest]),
            None => kept.push_str(before),
        }
        kept.push_str(value.get());
    }
    if kept.is_empty() && !members.is_empty() {
        kept.push('{');
    }
    kept.push_str(&text[end..]);
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_members_keep_their_bytes() {
        let cases = [
            (
                "{\n  \"a\": 1,\n  \"b\": [1e-05, {\"a\": 2}],\n  \"c\": \"\\u00e9\"\n}\n",
                vec!["a"],
                "{\n  \"b\": [1e-05, {\"a\": 2}],\n  \"c\": \"\\u00e9\"\n}\n",
            ),
            (
                "{\n  \"a\": 1,\n  \"b\": 2,\n  \"c\": 3\n}\n",
                vec!["b"],
                "{\n  \"a\": 1,\n  \"c\": 3\n}\n",
            ),
            ("{\n  \"a\": 1,\n  \"b\": 2,\n  \"c\": 3\n}\n", vec!["c", "a"], "{\n  \"b\": 2\n}\n"),
            ("{\"a\":1 , \"b\":2}", vec!["a"], "{ \"b\":2}"),
            ("{\"a\":1,\"b\":2,\"a\":3}", vec!["a"], "{\"b\":2}"),
            (" {\"a\":1}\n", vec!["a"], "{}\n"),
            ("{}", vec!["a"], "{}"),
            ("{\"a\":1}", vec!["b"], "{\"a\":1}"),
        ];
        for (text, keys, wanted) in cases {
            assert_eq!(without(text, &keys).unwrap(), wanted, "{text} without {keys:?}");
        }
        assert!(without("[1]", &["a"]).is_err());
    }
}
