//! Objects that have each key once. Python reads the last value of a key that is given twice, and
//! so do we in files that others write. In a file of ours such a key is a mistake of its editor.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Any JSON in which no object has a key twice. Nothing of it is kept.
#[derive(Debug)]
pub struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueKeysVisitor)
    }
}

struct UniqueKeysVisitor;

impl<'de> Visitor<'de> for UniqueKeysVisitor {
    type Value = UniqueKeys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueKeys, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if keys.contains(&key) {
                // The words of serde for fields of structures.
                return Err(A::Error::custom(format_args!("duplicate field `{key}`")));
            }
            map.next_value::<UniqueKeys>()?;
            keys.insert(key);
        }
        Ok(UniqueKeys)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<UniqueKeys, A::Error> {
        while list.next_element::<UniqueKeys>()?.is_some() {}
        Ok(UniqueKeys)
    }

    fn visit_unit<E>(self) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_bool<E>(self, _: bool) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_i64<E>(self, _: i64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_u64<E>(self, _: u64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_f64<E>(self, _: f64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_str<E>(self, _: &str) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }
}

#[cfg(test)]
mod tests {
    use super::super::parsed;
    use super::*;

    #[test]
    fn a_doubled_key_is_named_with_its_path() {
        for (text, said) in [
            (r#"{"a": 1, "b": {}, "a": 2}"#, "a is given twice (line 1, column 21)"),
            (r#"{"b": [0, {"a": 1, "c": {"a": 1}, "a": null}]}"#, "b[1].a is given twice (line 1"),
            (r#"{"a": 1, "\u0061": 1}"#, "a is given twice"),
            ("{\"a`\\n\": 1, \"a`\\n\": 1}", "a`\\n is given twice"),
            (r#"{"a": 1"#, "the file ends within an object"),
        ] {
            let found = parsed::<UniqueKeys>(text.as_bytes()).unwrap_err();
            assert!(found.starts_with(said), "{text}: {found}");
        }
    }

    #[test]
    fn other_json_has_unique_keys() {
        for text in [
            r#"{"a": {"a": [1, -1, 0.5, true, null, "a"]}, "b": {"a": 1}}"#,
            r#"[{"a": 1, "A": 1}, {"a": 1}]"#,
            "3",
            "[]",
        ] {
            parsed::<UniqueKeys>(text.as_bytes()).unwrap();
        }
    }
}
