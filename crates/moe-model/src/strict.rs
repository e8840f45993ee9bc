//! Types of config values that transformers 5 requires, and the conversion of values to them.

use std::collections::BTreeMap;

use moe_checkpoint::json::{is_float, is_int, shown};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Config keys by the JSON type of their values. A `?` after a key means that null is also valid.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Strict {
    /// Numbers with a point or an exponent: transformers refuses 1 where it wants 1.0.
    pub float: Vec<String>,
    /// True or false.
    pub bool: Vec<String>,
    /// Whole numbers.
    pub int: Vec<String>,
    /// Keys that take values of several types.
    #[serde(default)]
    pub several: BTreeMap<String, Vec<JsonType>>,
}

/// A type of config values in transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JsonType {
    /// A number with a point or an exponent.
    Float,
    /// True or false.
    Bool,
    /// A whole number.
    Int,
    /// A list of whole numbers.
    Ints,
    /// Null.
    Null,
}

impl JsonType {
    fn is_of(self, value: &Value) -> bool {
        match self {
            Self::Float => is_float(value),
            Self::Bool => value.is_boolean(),
            Self::Int => is_int(value),
            Self::Ints => {
                value.as_array().is_some_and(|list| list.iter().all(|value| Self::Int.is_of(value)))
            }
            Self::Null => value.is_null(),
        }
    }

    fn said(self) -> &'static str {
        match self {
            Self::Float => "a number with a decimal point",
            Self::Bool => "true or false",
            Self::Int => "a whole number",
            Self::Ints => "a list of whole numbers",
            Self::Null => "null",
        }
    }

    /// Converts `value` to this type; None if that isn't possible or is ambiguous.
    fn of(self, value: &Value) -> Option<Value> {
        match self {
            Self::Float => finite(value).map(Value::from),
            Self::Bool => match finite(value)? {
                0.0 => Some(false.into()),
                1.0 => Some(true.into()),
                _ => None,
            },
            Self::Int => whole(value).map(Value::from),
            Self::Ints => {
                let list: Option<Vec<Value>> =
                    value.as_array()?.iter().map(|value| Self::Int.of(value)).collect();
                list.map(Value::from)
            }
            Self::Null => None,
        }
    }
}

/// Returns the finite number that `value` is, or that its text spells.
fn finite(value: &Value) -> Option<f64> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
    number.filter(|x: &f64| x.is_finite())
}

/// Returns the whole number that `value` means, if an f64 holds it exactly.
fn whole(value: &Value) -> Option<i64> {
    const EXACT: f64 = (1_u64 << 53) as f64;
    let single = value.as_array().filter(|list| list.len() == 1).and_then(|list| list[0].as_i64());
    let whole = finite(value).filter(|x| x.fract() == 0.0 && x.abs() < EXACT);
    // In Python, true is 1.
    let truth = value.as_bool().map(i64::from);
    single.or(whole.map(|x| x as i64)).or(truth)
}

impl Strict {
    /// Returns each key with its valid types.
    pub(crate) fn rules(&self) -> impl Iterator<Item = (&str, Vec<JsonType>)> {
        let alone = [
            (&self.float, JsonType::Float),
            (&self.bool, JsonType::Bool),
            (&self.int, JsonType::Int),
        ];
        let alone =
            alone.into_iter().flat_map(|(keys, kind)| keys.iter().map(move |key| (key, kind)));
        let alone = alone.map(|(key, kind)| match key.strip_suffix('?') {
            Some(key) => (key, vec![kind, JsonType::Null]),
            None => (key.as_str(), vec![kind]),
        });
        alone.chain(self.several.iter().map(|(key, kinds)| (key.as_str(), kinds.clone())))
    }

    /// Whether `key` has boolean values.
    pub(crate) fn is_switch(&self, key: &str) -> bool {
        self.bool.iter().any(|known| known.strip_suffix('?').unwrap_or(known) == key)
    }

    /// Returns a sentence for each value of `config` whose type transformers 5 refuses.
    pub fn refused(&self, config: &Map<String, Value>) -> Vec<String> {
        let refused = self.rules().filter_map(|(key, kinds)| {
            let value = config.get(key)?;
            if kinds.iter().any(|kind| kind.is_of(value)) {
                return None;
            }
            let mut wanted: Vec<&str> = kinds.iter().map(|kind| kind.said()).collect();
            // With only one other type, the message asks for that one, although null is valid too.
            if kinds.len() == 2 {
                wanted.retain(|said| *said != JsonType::Null.said());
            }
            let wanted = wanted.join(" or ");
            Some(format!(
                "config.json says {key} {}, where transformers 5 wants {wanted}",
                shown(value)
            ))
        });
        refused.collect()
    }

    /// Converts values of other types to what they mean; `defaults` are the values that loaders
    /// assume for missing keys. Values that can't be converted stay, and [`Self::refused`] reports
    /// them.
    pub(crate) fn mend(&self, config: &mut Map<String, Value>, defaults: &Map<String, Value>) {
        *config = self.meant(config);
        for (key, kinds) in self.rules() {
            if kinds.contains(&JsonType::Null) || !config.get(key).is_some_and(Value::is_null) {
                continue;
            }
            // Loaders used the default instead.
            match defaults.get(key).filter(|value| !value.is_null()) {
                Some(value) => _ = config.insert(key.to_owned(), value.clone()),
                None => _ = config.remove(key),
            }
        }
    }

    /// Returns `config` with values of other types converted to what they mean, if that is
    /// unambiguous. Null stays, since older loaders may read it as false or as a missing number.
    pub(crate) fn meant(&self, config: &Map<String, Value>) -> Map<String, Value> {
        let mut meant = config.clone();
        for (key, kinds) in self.rules() {
            let wrong = config
                .get(key)
                .filter(|value| !value.is_null() && !kinds.iter().any(|kind| kind.is_of(value)));
            if let Some(value) =
                wrong.and_then(|value| kinds.iter().find_map(|kind| kind.of(value)))
            {
                meant.insert(key.to_owned(), value);
            }
        }
        meant
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_written_in_the_type_that_is_wanted() {
        let strict: Strict = serde_json::from_value(json!({
            "float": ["range"], "bool": ["cache"], "int": ["length", "pad?"],
            "several": { "eos": ["int", "ints", "null"], "dropout": ["int", "float"] },
        }))
        .unwrap();
        let defaults = json!({ "length": 2048 });
        let cases = [
            ("range", json!(1), json!(1.0)),
            ("range", json!("0.02"), json!(0.02)),
            ("range", json!(null), json!(null)),
            ("cache", json!(0), json!(false)),
            ("cache", json!(1.0), json!(true)),
            ("cache", json!(null), json!(null)),
            ("cache", json!("yes"), json!("yes")),
            ("length", json!(64.0), json!(64)),
            ("length", json!(64.5), json!(64.5)),
            ("length", json!(null), json!(2048)),
            ("pad", json!([0]), json!(0)),
            ("pad", json!(null), json!(null)),
            ("pad", json!(true), json!(1)),
            ("pad", json!("x"), json!("x")),
            ("eos", json!([2.0, 3]), json!([2, 3])),
            ("eos", json!("2"), json!(2)),
            ("eos", json!([[2]]), json!([2])),
            ("eos", json!([[2, 3]]), json!([[2, 3]])),
            ("dropout", json!(null), json!(null)),
            ("dropout", json!("0.1"), json!(0.1)),
        ];
        for (key, value, wanted) in cases {
            let mut config = Map::from_iter([(key.to_owned(), value.clone())]);
            strict.mend(&mut config, defaults.as_object().unwrap());
            assert_eq!(config.get(key).cloned().unwrap_or_default(), wanted, "{key} {value}");
            let can_be =
                !["yes", "64.5", "x", "[[2,3]]"].contains(&wanted.to_string().trim_matches('"'));
            assert_eq!(strict.refused(&config).is_empty(), can_be, "{key} {value}");
        }
        let config = json!({ "eos": 2.5, "pad": "x" });
        assert_eq!(
            strict.refused(config.as_object().unwrap()),
            [
                "config.json says pad \"x\", where transformers 5 wants a whole number",
                "config.json says eos 2.5, where transformers 5 wants a whole number or a list of whole numbers or null",
            ]
        );
    }
}
